//! What goes into the tunnel, what stays out of it, and what goes nowhere.
//!
//! Our routes stand in a table of our own, which one rule for each address family puts before the main table:
//! `not fwmark MARK lookup TABLE`. Everything but our own sockets therefore asks our table first, so no more
//! specific route of the main table can pull traffic out of the tunnel (CVE-2024-3661, "TunnelVision"), and the
//! gateway needs no route of its own that another program could use (CVE-2023-36673, "TunnelCrack").
//!
//! * a destination of the plan is a route into the device, with our inner address as the preferred source;
//! * an excluded one is a `throw` route: the rules after ours decide, as if the tunnel were not there;
//! * a refused one is an `unreachable` route: the sender is told at once.
//!
//! The connected networks are no exception: with everything in the tunnel, the printer on the desk is reached only
//! when the profile excludes its network. (Letting in whatever prefix DHCP gave the interface is CVE-2023-36672.)
//! The kernel's `local` table still comes first, so our own addresses stay where they are.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use peregrine_core::command::HostFault;
use peregrine_core::plan::TunnelConfig;

use super::fault;
use super::netlink::{Family, Netlink, Rule, Target};
use super::socket::MARK;

/// The tables of all instances: numbers that nothing else is likely to use.
const TABLES: u32 = 0x7065_0000;

/// Whether `table` is one of ours or of another instance.
pub(super) const fn is_place(table: u32) -> bool {
    table & 0xffff_0000 == TABLES
}

/// The routing table and the place of the rules that one instance has for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) table: u32,
    pub(super) priority: u32,
}

impl Place {
    /// The place of the instance that holds `slot`.
    pub(super) const fn of_slot(slot: u32) -> Self {
        // Rules after an administrator's own and before the main table (32766).
        Self {
            table: TABLES + slot,
            priority: 7_000 + slot,
        }
    }

    const fn rule(self, family: Family) -> Rule {
        Rule {
            family,
            priority: self.priority,
            mark: MARK,
            table: self.table,
        }
    }
}

/// The routes that `config` asks for, into the device with `index`.
///
/// An exclusion wins over everything inside it; apart from that, the more specific destination wins, and of two
/// equal ones the one in the tunnel.
fn routes(config: &TunnelConfig, index: u32, families: &[Family]) -> BTreeMap<IpNet, Target> {
    let source = |net: &IpNet| {
        let same_family = |address: &&IpNet| Family::of(address) == Family::of(net);
        config.addresses.iter().find(same_family).map(IpNet::addr)
    };
    let excluded = |net: &IpNet| config.excluded.iter().any(|excluded| excluded.contains(net));
    let mut routes = BTreeMap::new();
    for net in config
        .refused
        .iter()
        .map(IpNet::trunc)
        .filter(|net| !excluded(net))
    {
        routes.insert(net, Target::Unreachable);
    }
    for net in config
        .routes
        .iter()
        .map(IpNet::trunc)
        .filter(|net| !excluded(net))
    {
        routes.insert(net, Target::Device(index, source(&net)));
    }
    for net in config.excluded.iter().map(IpNet::trunc) {
        routes.insert(net, Target::Throw);
    }
    routes.retain(|net, _| families.contains(&Family::of(net)));
    routes
}

/// Whether all names may be resolved through the tunnel: one address family goes into it as a whole.
pub(super) fn is_full(config: &TunnelConfig) -> bool {
    IpNet::aggregate(&config.routes.iter().copied().collect())
        .iter()
        .any(|net| net.prefix_len() == 0)
}

/// Whether a route of `config` covers `address`.
pub(super) fn covers(config: &TunnelConfig, address: IpAddr) -> bool {
    config.routes.iter().any(|net| net.contains(&address))
        && !config.excluded.iter().any(|net| net.contains(&address))
}

/// Whether a datagram to `address` that carries no mark stays out of the physical network: a route of `config` covers
/// it, or it is refused.
pub(super) fn keeps(config: &TunnelConfig, address: IpAddr) -> bool {
    let is_excluded = config.excluded.iter().any(|net| net.contains(&address));
    let mut kept = config.routes.iter().chain(&config.refused);
    !is_excluded && kept.any(|net| net.contains(&address))
}

/// Makes the table equal to `config`: what is new first, so that there is no moment without a route.
pub(super) fn put_routes(
    netlink: &mut Netlink,
    place: Place,
    config: &TunnelConfig,
    index: u32,
    families: &[Family],
) -> Result<(), (IpNet, io::Error)> {
    let whole = |family| match family {
        Family::V4 => IpNet::from(IpAddr::from([0; 4])),
        Family::V6 => IpNet::from(IpAddr::from([0; 16])),
    };
    let mut wanted = routes(config, index, families);
    let mut stale = Vec::new();
    for &family in families {
        let present = netlink
            .routes(family, place.table)
            .map_err(|error| (whole(family), error))?;
        for (net, target) in present {
            match wanted.get(&net) {
                Some(wish) if *wish == target => {
                    wanted.remove(&net);
                }
                Some(_) => (), // replaced below
                None => stale.push(net),
            }
        }
    }
    for (net, target) in wanted {
        netlink
            .replace_route(place.table, net, target)
            .map_err(|error| (net, error))?;
    }
    for net in stale {
        netlink
            .delete_route(place.table, net)
            .map_err(|error| (net, error))?;
    }
    Ok(())
}

/// Whether the table and the rules are what [`put_routes`] and [`put_rules`] make them.
pub(super) fn is_put(
    netlink: &mut Netlink,
    place: Place,
    config: &TunnelConfig,
    index: u32,
    families: &[Family],
) -> io::Result<bool> {
    let mut wanted = routes(config, index, families);
    for &family in families {
        for (net, target) in netlink.routes(family, place.table)? {
            if wanted.remove(&net) != Some(target) {
                return Ok(false);
            }
        }
        if netlink.rules(family, place.table)? != [place.rule(family)] {
            return Ok(false);
        }
    }
    Ok(wanted.is_empty())
}

/// Whether the kernel has rules or routes in `place`: somebody's whose records are not ours to see.
pub(super) fn is_taken(netlink: &mut Netlink, place: Place, families: &[Family]) -> Result<bool, HostFault> {
    let mut look = || -> io::Result<bool> {
        for &family in families {
            if !netlink.rules(family, place.table)?.is_empty()
                || !netlink.routes(family, place.table)?.is_empty()
            {
                return Ok(true);
            }
        }
        Ok(false)
    };
    look().map_err(|error| fault("look at the routing tables", error))
}

/// Puts our rule into each address family, once.
pub(super) fn put_rules(netlink: &mut Netlink, place: Place, families: &[Family]) -> io::Result<()> {
    for &family in families {
        let rule = place.rule(family);
        let present = netlink.rules(family, place.table)?;
        if !present.contains(&rule) {
            netlink.add_rule(rule)?;
        }
        for other in present {
            if other != rule {
                netlink.delete_rule(other)?;
            }
        }
    }
    Ok(())
}

/// Removes our rules. An address family that the kernel does not have is no error.
pub(super) fn remove_rules(netlink: &mut Netlink, place: Place, families: &[Family]) -> io::Result<()> {
    for &family in families {
        for rule in netlink.rules(family, place.table)? {
            netlink.delete_rule(rule)?;
        }
    }
    Ok(())
}

/// Empties our table.
pub(super) fn remove_routes(netlink: &mut Netlink, place: Place, families: &[Family]) -> io::Result<()> {
    for &family in families {
        for (net, _) in netlink.routes(family, place.table)? {
            netlink.delete_route(place.table, net)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn nets(list: &[&str]) -> BTreeSet<IpNet> {
        list.iter().map(|net| net.parse().unwrap()).collect()
    }

    fn config(routes: &[&str], excluded: &[&str], refused: &[&str]) -> TunnelConfig {
        TunnelConfig {
            addresses: vec!["10.3.0.1/32".parse().unwrap(), "fd00::1/128".parse().unwrap()],
            routes: nets(routes),
            excluded: nets(excluded),
            refused: nets(refused),
            dns: peregrine_core::plan::Dns::default(),
            mtu: 1400,
        }
    }

    fn shown(config: &TunnelConfig) -> Vec<String> {
        routes(config, 7, &Family::ALL)
            .iter()
            .map(|(net, target)| match target {
                Target::Device(7, Some(source)) => format!("{net} from {source}"),
                other => format!("{net} {other:?}"),
            })
            .collect()
    }

    #[test]
    fn an_exclusion_wins_over_everything_inside_it() {
        let config = config(
            &["0.0.0.0/0", "10.1.0.0/16", "10.0.0.0/8"],
            &["10.0.0.0/8"],
            &["10.2.0.0/16"],
        );
        assert_eq!(shown(&config), ["0.0.0.0/0 from 10.3.0.1", "10.0.0.0/8 Throw"]);
    }

    #[test]
    fn each_family_gets_its_own_source_and_what_has_no_way_is_refused() {
        let config = config(
            &["192.0.2.0/24", "2001:db8::/32"],
            &[],
            &["::/0", "2001:db8::/32"],
        );
        assert_eq!(
            shown(&config),
            [
                "192.0.2.0/24 from 10.3.0.1",
                "::/0 Unreachable",
                "2001:db8::/32 from fd00::1"
            ]
        );
    }

    #[test]
    fn two_halves_are_everything() {
        assert!(is_full(&config(&["0.0.0.0/1", "128.0.0.0/1"], &[], &[])));
        assert!(is_full(&config(&["10.0.0.0/8", "::/0"], &[], &[])));
        assert!(!is_full(&config(&["0.0.0.0/1", "128.0.0.0/2"], &[], &[])));
    }

    #[test]
    fn a_gateway_may_lie_inside_or_outside_its_own_tunnel() {
        let config = config(&["0.0.0.0/0"], &["192.0.2.0/24"], &[]);
        assert!(covers(&config, "198.51.100.1".parse().unwrap()));
        assert!(!covers(&config, "192.0.2.1".parse().unwrap()));
        assert!(!covers(&config, "2001:db8::1".parse().unwrap()));
    }
}
