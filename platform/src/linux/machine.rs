//! Making the machine equal to a plan, and taking everything back.
//!
//! Plain blocking code on a thread of its own: the steps follow each other, each is written down before it is done,
//! and the packets do not wait for any of them.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ipnet::IpNet;
use peregrine_core::command::HostFault;
use peregrine_core::plan::{Lock, Plan, TunnelConfig};

use super::dns;
use super::lock::{Firewall, Inside, Rules};
use super::netlink::{Family, Netlink};
use super::route::{self, Place};
use super::state::Slot;
use super::sysctl;
use super::tun::{Device, Queue};
use super::{Config, Shared, Tunnel, fault};

/// The kernel's table of its own addresses.
const TABLE_LOCAL: u32 = 255;

/// How many packets may wait in the tunnel device, twice what a new one has: 10 ms of 1 Gbit/s in datagrams of 1340 octets,
/// as long as it may take until we have a processor when everybody wants one.
const QUEUE: u32 = 1000;

/// This machine, as far as one instance changes it.
pub(super) struct Machine {
    config: Config,
    shared: Arc<Shared>,
    netlink: Netlink,
    families: Vec<Family>,
    slot: Option<Slot>,
    firewall: Option<Firewall>,
    /// What crashed runs left, and is not taken back yet.
    left_behind: Vec<Slot>,
    device: Option<Link>,
}

/// The tunnel device.
#[derive(Clone, Debug)]
struct Link {
    name: String,
    index: u32,
}

/// What a plan made.
#[derive(Debug)]
pub(super) struct Made {
    /// The descriptor of a new tunnel device.
    pub(super) queue: Option<Queue>,
    /// The tunnel device's name, while there is one.
    pub(super) interface: Option<String>,
}

impl Machine {
    /// The machine in the network namespace of the calling thread. Changes nothing.
    pub(super) fn new(config: Config, shared: Arc<Shared>) -> Result<Self, HostFault> {
        let netlink = Netlink::open().map_err(|error| fault("talk to the kernel about routes", error))?;
        // A kernel without IPv6 has no IPv6 that could go past the tunnel either.
        let mut families = vec![Family::V4];
        if Path::new("/proc/sys/net/ipv6").exists() {
            families.push(Family::V6);
        }
        Ok(Self {
            config,
            shared,
            netlink,
            families,
            slot: None,
            firewall: None,
            left_behind: Vec::new(),
            device: None,
        })
    }

    /// Makes the machine equal to `plan`. If that fails, everything of ours is taken back but the lock.
    pub(super) fn apply(&mut self, plan: &Plan) -> Result<Made, HostFault> {
        self.claim_slot()?;
        // Another user, whose records we do not see, may have connected since we claimed it.
        if let Some(slot) = &self.slot
            && *plan != Plan::default()
            && !slot.record.routing
            && !slot.record.firewall
            && route::is_taken(&mut self.netlink, Place::of_slot(slot.number), &self.families)?
        {
            self.slot = None;
            self.left_behind.clear();
            self.claim_slot()?;
        }
        if let Some(made) = self.put_lock_only(plan)? {
            return Ok(made);
        }
        // Before anything is taken back, a crashed run's lock too: so that there is no moment without one.
        if plan.lock != Lock::Open {
            self.put_firewall(&plan.lock)?;
        }
        self.clean_up()?;
        let Some(config) = &plan.tunnel else {
            self.take_back(&plan.lock)?;
            return Ok(Made {
                queue: None,
                interface: None,
            });
        };
        let made = self.put(config).and_then(|made| {
            self.put_firewall(&plan.lock)?;
            Ok(made)
        });
        made.inspect_err(|fault| {
            tracing::debug!(%fault, "taking everything back");
            if let Err(second) = self.take_back(&plan.lock) {
                tracing::warn!(%second, "not everything could be taken back; the next start tries again");
            }
        })
    }

    /// Where nothing but the lock is to change, that is all that is done: name servers, for example, are told nothing.
    fn put_lock_only(&mut self, plan: &Plan) -> Result<Option<Made>, HostFault> {
        let present = self.shared.tunnel().as_ref().map(|tunnel| tunnel.config.clone());
        let is_new = self
            .firewall
            .as_ref()
            .is_none_or(|firewall| firewall.lock() != plan.lock);
        if plan.lock == Lock::Open || plan.tunnel.is_none() || plan.tunnel != present || !is_new {
            return Ok(None);
        }
        let index = self.device.as_ref().map(|link| link.index);
        if index.is_none_or(|index| self.netlink.link(index).is_err()) {
            return Ok(None);
        }
        self.put_firewall(&plan.lock)?;
        let interface = self.device.as_ref().map(|link| link.name.clone());
        Ok(Some(Made {
            queue: None,
            interface,
        }))
    }

    /// Makes the firewall what the lock and the tunnel that there is ask for. Without a lock it only hides our address,
    /// and may be missing.
    fn put_firewall(&mut self, lock: &Lock) -> Result<(), HostFault> {
        let (Some(slot), Some(firewall)) = (&mut self.slot, &mut self.firewall) else {
            return Err(fault("write a record", "no slot is held"));
        };
        let is_locked = *lock != Lock::Open;
        if is_locked {
            // From now on, whatever the system looks up for us does not get out.
            self.shared.locked.store(true, Ordering::Relaxed);
        }
        let shared: Vec<_> = self.shared.gateways().sources().collect();
        let tunnel = self.shared.tunnel();
        let inside = tunnel.as_ref().zip(self.device.as_ref());
        let rules = Rules {
            lock: lock.clone(),
            tunnel: inside.map(|(tunnel, link)| Inside::new(&link.name, &tunnel.config, &shared)),
        };
        drop(tunnel);
        let (had_one, was_locked) = (slot.record.firewall, firewall.lock() != Lock::Open);
        if !had_one || slot.record.locked != is_locked {
            slot.record.firewall = true;
            // Locked until it is known to be open.
            slot.record.locked |= is_locked;
            slot.save()?;
        }
        let done = firewall.put(&rules);
        // Whatever became of it, nothing of it is left.
        if done.is_err() && !had_one && (!firewall.is_there() || firewall.remove().is_ok()) {
            (slot.record.firewall, slot.record.locked) = (false, false);
            slot.save()?;
        }
        if done.is_ok() && slot.record.locked != is_locked {
            slot.record.locked = is_locked;
            slot.save()?;
        }
        self.shared
            .locked
            .store(is_locked || (was_locked && done.is_err()), Ordering::Relaxed);
        match done {
            Err(error) if !is_locked && !was_locked => {
                tracing::debug!(%error, "neighbours may find out our address in the tunnel");
                Ok(())
            }
            done => done.map_err(|error| fault("set the firewall of the kill switch", error)),
        }
    }

    /// Puts the firewall back when somebody else has changed it; whether it is as it should be then.
    pub(super) fn restore_lock(&mut self) -> bool {
        match self.firewall.as_mut().map(Firewall::restore) {
            Some(Ok(true)) => tracing::warn!("somebody changed our firewall; it is as it was again"),
            Some(Err(error)) => {
                tracing::error!(%error, "somebody changed our firewall, and it cannot be put back");
                return false;
            }
            Some(Ok(false)) | None => {}
        }
        true
    }

    /// Takes a slot for this instance, and finds what crashed ones left.
    fn claim_slot(&mut self) -> Result<(), HostFault> {
        if self.slot.is_some() {
            return Ok(());
        }
        let (left_behind, ours) = Slot::claim(&self.config.state, |number| {
            route::is_taken(&mut self.netlink, Place::of_slot(number), &self.families)
        })?;
        self.firewall = Some(Firewall::new(&self.config.nft, ours.number));
        self.slot = Some(ours);
        self.left_behind = left_behind;
        Ok(())
    }

    /// Takes back what crashed runs left.
    fn clean_up(&mut self) -> Result<(), HostFault> {
        let mut blocked = Ok(());
        for mut slot in std::mem::take(&mut self.left_behind) {
            tracing::info!(slot = slot.number, "taking back what a crashed run left");
            let mut firewall = Firewall::new(&self.config.nft, slot.number);
            // Its device went with its process.
            let done = undo(
                &mut self.netlink,
                &self.families,
                &self.config.dns,
                &mut slot,
                None,
                Some(&mut firewall),
            );
            match done {
                // Traffic that still goes by dead rules, or is still blocked, is no ground to build on.
                Err(fault) if slot.record.routing || slot.record.firewall => {
                    blocked = blocked.and(Err(fault));
                    self.left_behind.push(slot);
                }
                Err(fault) => tracing::warn!(%fault, "a crashed run left this; the next start tries again"),
                Ok(()) => (),
            }
        }
        blocked
    }

    fn put(&mut self, config: &TunnelConfig) -> Result<Made, HostFault> {
        let Some(slot) = &mut self.slot else {
            return Err(fault("write a record", "no slot is held"));
        };
        let place = Place::of_slot(slot.number);
        if !slot.record.routing {
            slot.record.routing = true;
            slot.save()?;
        }

        let vanished = |link: &Link, netlink: &mut Netlink| netlink.link(link.index).is_err();
        if self
            .device
            .as_ref()
            .is_some_and(|link| vanished(link, &mut self.netlink))
        {
            tracing::warn!("the tunnel device was deleted by somebody else; making a new one");
            self.device = None;
        }
        let mut queue = None;
        let link = if let Some(link) = &self.device {
            link.clone()
        } else {
            let device = Device::create(self.config.offloads)?;
            let index = nix::net::if_::if_nametoindex(device.name.as_str())
                .map_err(|error| fault("look at the tunnel device", error))?;
            let link = Link {
                name: device.name,
                index,
            };
            queue = Some(device.queue);
            self.device.insert(link).clone()
        };

        let stale = put_device(&mut self.netlink, &link, config, &self.families)?;
        route::put_routes(&mut self.netlink, place, config, link.index, &self.families)
            .map_err(|(net, error)| fault(format!("set the route to {net}"), error))?;
        for address in stale {
            self.netlink
                .delete_address(link.index, address)
                .map_err(|error| fault(format!("remove the address {address}"), error))?;
        }

        loosen(&self.shared, slot, &link, config)?;

        // From here on the traffic goes another way.
        route::put_rules(&mut self.netlink, place, &self.families)
            .map_err(|error| fault("set the rule that leads into the tunnel", error))?;

        // From the first of our name servers to the last, what they replace is the same.
        let before = match &*self.shared.tunnel() {
            Some(Tunnel {
                replaced: Some(replaced),
                ..
            }) => replaced.before().to_owned(),
            _ => dns::read_to_string(&self.config.dns.resolv_conf).unwrap_or_default(),
        };
        if config.dns.servers.is_empty() {
            dns::put_back(&self.config.dns, slot)?;
        } else {
            let wanted = dns::Wanted {
                interface: &link.name,
                index: link.index,
                servers: &config.dns.servers,
                domains: &config.dns.domains,
                full: route::is_full(config),
            };
            dns::put(&self.config.dns, slot, &wanted)?;
        }
        *self.shared.tunnel() = Some(Tunnel {
            index: link.index,
            table: place.table,
            config: config.clone(),
            replaced: dns::Replaced::new(slot, &config.dns.servers, before),
        });
        Ok(Made {
            queue,
            interface: Some(link.name),
        })
    }

    /// Whether everything that the last plan put here is here, and nothing of others beside it. A device that is gone
    /// is not for this to tell: whoever reads from it knows.
    pub(super) fn is_intact(&mut self) -> bool {
        let tunnel = self.shared.tunnel().clone();
        let (Some(slot), Some(link), Some(tunnel)) = (&self.slot, &self.device, tunnel) else {
            return true;
        };
        let config = &tunnel.config;
        let mut look = || -> io::Result<bool> {
            let state = match self.netlink.link(link.index) {
                Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(true),
                state => state?,
            };
            let mut present = self.netlink.addresses(link.index)?;
            let mut wanted = addresses(config, &self.families);
            present.sort_unstable();
            wanted.sort_unstable();
            wanted.dedup();
            let place = Place::of_slot(slot.number);
            Ok(state == (u32::from(config.mtu), true)
                && present == wanted
                && route::is_put(&mut self.netlink, place, config, link.index, &self.families)?
                && dns::is_put(&self.config.dns, slot, &config.dns.servers))
        };
        look().unwrap_or_else(|error| {
            tracing::debug!(%error, "what is on this machine could not be looked at");
            true
        })
    }

    /// Loosens reverse-path filters that are stricter than the tunnel can bear: of an interface that is new, or for a
    /// gateway that is.
    pub(super) fn loosen(&mut self) -> Result<(), HostFault> {
        let tunnel = self.shared.tunnel().clone();
        let (Some(slot), Some(link), Some(tunnel)) = (&mut self.slot, &self.device, tunnel) else {
            return Ok(());
        };
        loosen(&self.shared, slot, link, &tunnel.config)
    }

    /// Takes everything of this instance back but the lock, as far as the machine allows.
    fn take_back(&mut self, lock: &Lock) -> Result<(), HostFault> {
        *self.shared.tunnel() = None;
        let Some(slot) = &mut self.slot else { return Ok(()) };
        let device = self.device.take().map(|link| link.index);
        let is_locked = *lock != Lock::Open;
        let lifted = self.firewall.as_mut().filter(|_| !is_locked);
        let undone = undo(
            &mut self.netlink,
            &self.families,
            &self.config.dns,
            slot,
            device,
            lifted,
        );
        if is_locked {
            // What counts is the lock. The rest is in the record, and is tried again when the lock is lifted.
            if let Err(fault) = undone {
                tracing::warn!(%fault, "not everything could be taken back yet");
            }
            return self.put_firewall(lock);
        }
        self.shared.locked.store(false, Ordering::Relaxed);
        undone
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Whatever ended us, only a plan lifts the lock.
        let lock = self.firewall.as_ref().map_or(Lock::Open, Firewall::lock);
        if let Err(fault) = self.take_back(&lock) {
            tracing::warn!(%fault, "not everything could be taken back; the next start tries again");
        }
    }
}

/// Loosens every strict reverse-path filter, if the tunnel covers the address of a gateway.
fn loosen(shared: &Shared, slot: &mut Slot, link: &Link, config: &TunnelConfig) -> Result<(), HostFault> {
    let is_covered = shared
        .gateways()
        .addresses()
        .any(|gateway| gateway.is_ipv4() && route::covers(config, gateway));
    if !is_covered {
        return Ok(());
    }
    let strict = sysctl::strict_filters(&link.name)
        .map_err(|error| fault("look at the reverse-path filter", error))?;
    for setting in strict {
        slot.record.sysctls.push(setting.clone());
        slot.save()?;
        setting
            .change()
            .map_err(|error| fault(format!("set {}", setting.path().display()), error))?;
    }
    Ok(())
}

/// The device's addresses, of the families that there are.
fn addresses(config: &TunnelConfig, families: &[Family]) -> Vec<IpNet> {
    let all = config.addresses.iter().copied();
    all.filter(|address| families.contains(&Family::of(address)))
        .collect()
}

/// Gives the device its MTU and addresses and brings it up; the addresses that it should not have any more are left
/// for the caller to remove, because routes with them as source go with them.
fn put_device(
    netlink: &mut Netlink,
    link: &Link,
    config: &TunnelConfig,
    families: &[Family],
) -> Result<Vec<IpNet>, HostFault> {
    if families.contains(&Family::V6) {
        let settings = format!("/proc/sys/net/ipv6/conf/{}", link.name);
        // No address of the kernel's own making, and so no neighbour discovery into the tunnel.
        let _without = fs::write(format!("{settings}/addr_gen_mode"), "1");
        if config
            .addresses
            .iter()
            .any(|address| Family::of(address) == Family::V6)
        {
            // On a machine that switched IPv6 off for its networks, the tunnel may still have it. Where it is on
            // already nothing is written: in a container nothing there may be.
            let path = format!("{settings}/disable_ipv6");
            if fs::read_to_string(&path).map_or(true, |value| value.trim_end() != "0") {
                fs::write(&path, "0")
                    .map_err(|error| fault("switch IPv6 on for the tunnel device", error))?;
            }
        }
    }
    let failed = |error| fault(format!("look at {}", link.name), error);
    if netlink.link(link.index).map_err(failed)? != (u32::from(config.mtu), true) {
        netlink.set_link(link.index, config.mtu, QUEUE).map_err(|error| {
            fault(
                format!("bring {} up with an MTU of {}", link.name, config.mtu),
                error,
            )
        })?;
    }
    let present = netlink.addresses(link.index).map_err(failed)?;
    let wanted = addresses(config, families);
    let missing: Vec<IpNet> = wanted
        .iter()
        .copied()
        .filter(|address| !present.contains(address))
        .collect();
    for address in &missing {
        netlink
            .add_address(link.index, *address)
            .map_err(|error| fault(format!("give {} the address {address}", link.name), error))?;
    }
    await_own_addresses(netlink, &missing).map_err(failed)?;
    Ok(present
        .into_iter()
        .filter(|address| !wanted.contains(address))
        .collect())
}

/// Waits until the kernel takes packets to new IPv6 addresses for its own. It puts them into its table a moment after
/// it has confirmed them, and a tunnel that is up should answer the first ping. If it takes long, so be it.
fn await_own_addresses(netlink: &mut Netlink, added: &[IpNet]) -> io::Result<()> {
    const TRIES: u32 = 100;
    const PAUSE: Duration = Duration::from_millis(2);
    let added: Vec<IpNet> = added.iter().map(|net| IpNet::from(net.addr())).collect();
    if added.iter().any(|net| Family::of(net) == Family::V6) {
        for _ in 0..TRIES {
            let own = netlink.routes(Family::V6, TABLE_LOCAL)?;
            let there = |net: &IpNet| Family::of(net) == Family::V4 || own.iter().any(|(own, _)| own == net);
            if added.iter().all(there) {
                break;
            }
            std::thread::sleep(PAUSE);
        }
    }
    Ok(())
}

/// Takes back, in reverse, what `slot`'s record says, and the device; the firewall, if it is given. Goes on after a failure,
/// tells the first one, and keeps the record of what is left.
fn undo(
    netlink: &mut Netlink,
    families: &[Family],
    dns: &dns::DnsSystem,
    slot: &mut Slot,
    device: Option<u32>,
    firewall: Option<&mut Firewall>,
) -> Result<(), HostFault> {
    let mut first = None;
    let mut note = |done: Result<(), HostFault>| {
        if let Err(fault) = done {
            tracing::debug!(%fault, "not taken back");
            first.get_or_insert(fault);
        }
    };
    if device.is_none() && matches!(slot.record.dns, Some(dns::Undo::Resolved { .. })) {
        slot.record.dns = None; // it went with the device
    }
    note(dns::put_back(dns, slot));
    let mut rules_are_gone = true;
    if slot.record.routing {
        let place = Place::of_slot(slot.number);
        let rules = route::remove_rules(netlink, place, families);
        rules_are_gone = rules.is_ok();
        note(rules.map_err(|error| fault("remove the rule that leads into the tunnel", error)));
    }
    slot.record.sysctls.reverse();
    slot.record.sysctls.retain(|setting| {
        let done = setting.put_back();
        let failed = done.is_err();
        note(done.map_err(|error| fault(format!("put {} back", setting.path().display()), error)));
        failed
    });
    if slot.record.routing {
        let routes = route::remove_routes(netlink, Place::of_slot(slot.number), families);
        let routes = routes.map_err(|error| fault("remove the routes into the tunnel", error));
        slot.record.routing = !rules_are_gone || routes.is_err();
        note(routes);
    }
    if let Some(index) = device {
        note(
            netlink
                .delete_link(index)
                .map_err(|error| fault("remove the tunnel device", error)),
        );
    }
    // Last, so that nothing gets out on a way that is half taken back.
    if slot.record.firewall
        && let Some(firewall) = firewall
    {
        let removed = firewall.remove();
        slot.record.firewall = removed.is_err();
        slot.record.locked &= removed.is_err();
        note(removed.map_err(|error| fault("unblock what leaves beside the tunnel", error)));
    }
    let is_left = first.is_some() || slot.record.firewall;
    if is_left {
        slot.save()?
    } else {
        slot.clear()?
    }
    first.map_or(Ok(()), Err)
}
