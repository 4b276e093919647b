//! The firewall of the kill switch, and what keeps neighbours from probing for the tunnel's address: nftables.
//!
//! There is one table for each instance, which is replaced as a whole in one transaction: at any moment it is the old one
//! or the new one. It outlives this process, so that a machine that was locked stays locked when we crash.
//!
//! A verdict of ours to let a packet out is no word on other tables: what they refuse stays refused.

use std::fmt::{self, Display, Write as _};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use peregrine_core::command::{Endpoint, Transport};
use peregrine_core::plan::{Closed, Lock, TunnelConfig};

use super::netlink::Family;
use super::program;
use super::socket::MARK;

/// What a machine can be reached by without leaving its own network: never the prefix of an interface as such, which
/// whoever answers DHCP chooses (CVE-2023-36672).
const LAN_V4: [&str; 6] = [
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "169.254.0.0/16",
    "224.0.0.0/24",
    "255.255.255.255",
];
/// The last two are multicast on a link and in a site.
const LAN_V6: [&str; 4] = ["fe80::/10", "fc00::/7", "ff02::/16", "ff05::/16"];
/// Where devices and services of the local network announce themselves (SSDP; site-local multicast, RFC 2365).
const LAN_MULTICAST_V4: &str = "239.255.0.0/16";

/// What the firewall is to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Rules {
    pub(super) lock: Lock,
    pub(super) tunnel: Option<Inside>,
}

/// What the rules need to know of the tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Inside {
    /// The device.
    interface: String,
    /// Our addresses in it that no other interface has.
    addresses: Vec<IpAddr>,
    /// What the profile keeps out of it.
    excluded: Vec<IpNet>,
    /// Its name servers that lie outside of it.
    servers: Vec<IpAddr>,
}

impl Inside {
    /// `shared` are addresses that a physical interface has too.
    pub(super) fn new(interface: &str, config: &TunnelConfig, shared: &[IpAddr]) -> Self {
        let excluded = IpNet::aggregate(&config.excluded.iter().copied().collect());
        let is_excluded = |address: &&IpAddr| excluded.iter().any(|net| net.contains(*address));
        Self {
            interface: interface.to_owned(),
            addresses: config
                .addresses
                .iter()
                .map(IpNet::addr)
                .filter(|address| !shared.contains(address))
                .collect(),
            servers: config.dns.servers.iter().filter(is_excluded).copied().collect(),
            excluded,
        }
    }
}

/// The firewall of one instance.
#[derive(Debug)]
pub(super) struct Firewall {
    program: Option<PathBuf>,
    table: String,
    /// What it is, and what the kernel shows of it.
    put: Option<(Rules, String)>,
    /// It may be another one meanwhile.
    is_doubtful: bool,
}

impl Firewall {
    /// The firewall of the instance that holds `slot`; `programs` is where nft(8) may be.
    pub(super) fn new(programs: &[PathBuf], slot: u32) -> Self {
        let user = nix::unistd::geteuid();
        Self {
            program: programs.iter().find(|program| program.exists()).cloned(),
            table: if user.is_root() {
                format!("peregrine_{slot}")
            } else {
                // Whose records we do not see, and who does not see ours.
                format!("peregrine_{slot}_{user}")
            },
            put: None,
            is_doubtful: false,
        }
    }

    /// Whether nft(8) is.
    pub(super) const fn is_there(&self) -> bool {
        self.program.is_some()
    }

    /// The lock that it holds.
    pub(super) fn lock(&self) -> Lock {
        self.put
            .as_ref()
            .map_or(Lock::Open, |(rules, _)| rules.lock.clone())
    }

    /// Makes the firewall what is wanted, unless it is.
    pub(super) fn put(&mut self, rules: &Rules) -> io::Result<()> {
        if !self.is_doubtful && self.put.as_ref().is_some_and(|(present, _)| present == rules) {
            return Ok(());
        }
        self.run(&ruleset(&self.table, rules))?;
        self.is_doubtful = false;
        // One that cannot be shown now is put once more when it is looked at.
        self.put = Some((rules.clone(), self.show().unwrap_or_default()));
        Ok(())
    }

    /// Puts back what somebody else changed; whether anybody had.
    pub(super) fn restore(&mut self) -> io::Result<bool> {
        let Some((rules, shown)) = &self.put else {
            return Ok(false);
        };
        // A table that is gone cannot be shown.
        if self.show().is_ok_and(|now| now == *shown) {
            return Ok(false);
        }
        self.is_doubtful = true;
        self.run(&ruleset(&self.table, rules))?;
        let shown = self.show()?;
        self.is_doubtful = false;
        if let Some((_, before)) = &mut self.put {
            *before = shown;
        }
        Ok(true)
    }

    /// Removes it. One that is not there is no error.
    pub(super) fn remove(&mut self) -> io::Result<()> {
        self.run(&without(&self.table))?;
        self.put = None;
        Ok(())
    }

    fn show(&self) -> io::Result<String> {
        // One after the other: nft 1.0.6 does not find two of different families in one script.
        let list = |family| program::run(self.program()?, &["-s", "list", "table", family, &self.table], "");
        Ok(list("inet")? + &list("arp")?)
    }

    fn run(&self, script: &str) -> io::Result<()> {
        program::run(self.program()?, &["-f", "-"], script).map(drop)
    }

    fn program(&self) -> io::Result<&Path> {
        let absent = || io::Error::new(io::ErrorKind::NotFound, "nft is not installed (package nftables)");
        self.program.as_deref().ok_or_else(absent)
    }
}

fn without(table: &str) -> String {
    // What is to be deleted must be there.
    let delete = |family: &str| format!("add table {family} {table}\ndelete table {family} {table}\n");
    delete("inet") + &delete("arp")
}

/// Everything that takes the place of what there is.
fn ruleset(table: &str, rules: &Rules) -> String {
    let mut text = without(table);
    let _never_fails = write_ruleset(&mut text, table, rules);
    text
}

fn write_ruleset(text: &mut String, table: &str, rules: &Rules) -> fmt::Result {
    writeln!(text, "table inet {table} {{")?;
    if let Lock::Closed(closed) = &rules.lock {
        write_output(text, closed, rules.tunnel.as_ref())?;
        write_leave(text, closed, rules.tunnel.as_ref())?;
    }
    if let Some(inside) = &rules.tunnel {
        write_guard(text, inside)?;
    }
    writeln!(text, "}}\ntable arp {table} {{")?;
    if let Some(inside) = &rules.tunnel {
        write_arp_guard(text, inside)?;
    }
    writeln!(text, "}}")
}

/// What this machine sends: docs/security.md, "Packets allowed in each state".
fn write_output(text: &mut String, closed: &Closed, tunnel: Option<&Inside>) -> fmt::Result {
    writeln!(
        text,
        "chain output {{\ntype filter hook output priority filter; policy drop;"
    )?;
    writeln!(text, "oifname \"lo\" accept")?;
    if let Some(Inside { interface, .. }) = tunnel {
        writeln!(text, "oifname \"{interface}\" accept")?;
    }
    writeln!(text, "meta mark {MARK:#x} jump ours")?;
    // DHCP as a client (RFC 2131, section 4.1; RFC 8415, section 7.2), and of neighbour discovery what a host says.
    writeln!(text, "meta nfproto ipv4 udp sport 68 udp dport 67 accept")?;
    writeln!(text, "ip6 saddr fe80::/10 udp sport 546 udp dport 547 accept")?;
    let said = "{ nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert }";
    writeln!(text, "icmpv6 type {said} ip6 hoplimit 255 accept")?;
    writeln!(text, "goto leave\n}}")?;

    writeln!(text, "chain ours {{")?;
    for Endpoint { transport, address } in &closed.gateways {
        let ip = address.ip();
        let protocol = match transport {
            Transport::Udp => "udp",
            Transport::Tcp => "tcp",
        };
        let port = address.port();
        writeln!(text, "{} daddr {ip} {protocol} dport {port} accept", family(ip))?;
    }
    if closed.names {
        writeln!(text, "meta l4proto {{ tcp, udp }} th dport 53 accept")?;
    }
    write_set(text, "tcp dport", closed.fetches.iter())?;
    writeln!(text, "}}")
}

/// What leaves beside the tunnel, from this machine or through it.
fn write_leave(text: &mut String, closed: &Closed, tunnel: Option<&Inside>) -> fmt::Result {
    writeln!(
        text,
        "chain forward {{\ntype filter hook forward priority filter; policy drop;"
    )?;
    if let Some(Inside { interface, .. }) = tunnel {
        // What comes from the gateway is for our own addresses only.
        writeln!(
            text,
            "iifname \"{interface}\" accept\noifname \"{interface}\" accept"
        )?;
    }
    writeln!(text, "goto leave\n}}")?;

    writeln!(text, "chain leave {{")?;
    let servers = tunnel.map_or(&[][..], |inside| &inside.servers);
    for server in servers {
        let family = family(*server);
        writeln!(
            text,
            "{family} daddr {server} meta l4proto {{ tcp, udp }} th dport {{ 53, 853 }} accept"
        )?;
    }
    // Names are asked for in the tunnel or not at all: also those asked for by broadcast and multicast (NBNS, LLMNR).
    writeln!(
        text,
        "meta l4proto {{ tcp, udp }} th dport {{ 53, 853 }} goto refuse"
    )?;
    writeln!(text, "udp dport {{ 137, 5355 }} goto refuse")?;
    let excluded = tunnel.map_or(&[][..], |inside| &inside.excluded);
    let of = |wanted: Family| excluded.iter().filter(move |net| Family::of(net) == wanted);
    write_set(text, "ip daddr", of(Family::V4))?;
    write_set(text, "ip6 daddr", of(Family::V6))?;
    if closed.lan {
        write_set(text, "ip daddr", LAN_V4.iter().chain([&LAN_MULTICAST_V4]))?;
        write_set(text, "ip6 daddr", LAN_V6.iter())?;
    }
    writeln!(text, "goto refuse\n}}")?;

    // So that programs give up at once and do not wait.
    writeln!(text, "chain refuse {{\nmeta l4proto tcp reject with tcp reset")?;
    writeln!(text, "reject with icmpx admin-prohibited\n}}")
}

/// Nobody beside us finds out our address in the tunnel by sending to it (CVE-2019-14899).
fn write_guard(text: &mut String, inside: &Inside) -> fmt::Result {
    writeln!(
        text,
        "chain guard {{\ntype filter hook prerouting priority raw; policy accept;"
    )?;
    for address in &inside.addresses {
        let (family, interface) = (family(*address), &inside.interface);
        writeln!(
            text,
            "iifname != {{ \"lo\", \"{interface}\" }} {family} daddr {address} drop"
        )?;
    }
    writeln!(text, "}}")
}

/// Nor by asking for its hardware address.
fn write_arp_guard(text: &mut String, inside: &Inside) -> fmt::Result {
    writeln!(
        text,
        "chain guard {{\ntype filter hook input priority filter; policy accept;"
    )?;
    for address in inside.addresses.iter().filter(|address| address.is_ipv4()) {
        writeln!(text, "arp operation request arp daddr ip {address} drop")?;
    }
    writeln!(text, "}}")
}

fn write_set<T: Display>(text: &mut String, what: &str, items: impl Iterator<Item = T>) -> fmt::Result {
    let items: Vec<String> = items.map(|item| item.to_string()).collect();
    if items.is_empty() {
        return Ok(());
    }
    writeln!(text, "{what} {{ {} }} accept", items.join(", "))
}

const fn family(address: IpAddr) -> &'static str {
    match address {
        IpAddr::V4(_) => "ip",
        IpAddr::V6(_) => "ip6",
    }
}
