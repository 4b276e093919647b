//! The network between client and gateway: interfaces, NATs, delay, loss, repetition, disorder, damage, and rules for
//! single messages.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use peregrine_core::command::{Path, Transport};
use peregrine_core::rng::Rng;
use peregrine_core::timer::Instant;
use peregrine_core::wire::Header;
use peregrine_core::wire::iana::ExchangeType;

/// Which way a datagram goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the client.
    Up,
    /// From the gateway.
    Down,
}

/// What a rule does with the datagrams that it names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It never arrives.
    Drop,
    /// It arrives twice.
    Twice,
    /// It arrives this much later.
    Late(Duration),
}

/// A rule for some datagrams of one exchange.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Only this way.
    pub way: Way,
    /// Only this exchange; none: any IKE message.
    pub exchange: Option<ExchangeType>,
    /// Only this message ID; none: any.
    pub message_id: Option<u32>,
    /// So many datagrams that fit are let through first.
    pub skip: u32,
    /// For so many datagrams that fit, then never again.
    pub times: u32,
    /// What happens to them.
    pub fate: Fate,
}

impl Rule {
    /// For the first datagram of `exchange` that goes `way`.
    #[must_use]
    pub const fn first(way: Way, exchange: ExchangeType, fate: Fate) -> Self {
        Self {
            way,
            exchange: Some(exchange),
            message_id: None,
            skip: 0,
            times: 1,
            fate,
        }
    }
}

/// A network that the client's machine is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// The interface's name.
    pub name: String,
    /// The machine's IPv4 address there.
    pub v4: Option<Ipv4Addr>,
    /// The machine's IPv6 address there.
    pub v6: Option<Ipv6Addr>,
    /// The machine is behind this address there.
    pub nat: Option<IpAddr>,
    /// The largest IP datagram that is known to get through.
    pub mtu: Option<u16>,
    /// The largest IP datagram that really gets through, either way. Nobody says so when one does not.
    pub carries: u16,
    /// It is up, but nothing gets through.
    pub is_dead: bool,
    /// Nothing gets out, as where a route is gone; what comes in still does.
    pub takes_nothing: bool,
    /// UDP does not get through.
    pub no_udp: bool,
    /// TCP does not get through.
    pub no_tcp: bool,
}

impl Interface {
    /// A network with these addresses of the machine.
    ///
    /// # Panics
    ///
    /// If one of them is no address.
    #[must_use]
    pub fn new(name: &str, addresses: &[&str]) -> Self {
        let mut interface = Self {
            name: name.to_owned(),
            v4: None,
            v6: None,
            nat: None,
            mtu: Some(1500),
            carries: u16::MAX,
            is_dead: false,
            takes_nothing: false,
            no_udp: false,
            no_tcp: false,
        };
        for address in addresses {
            match address.parse().expect("an address") {
                IpAddr::V4(ip) => interface.v4 = Some(ip),
                IpAddr::V6(ip) => interface.v6 = Some(ip),
            }
        }
        interface
    }

    /// The same behind a NAT with this address.
    ///
    /// # Panics
    ///
    /// If it is no address.
    #[must_use]
    pub fn behind(self, nat: &str) -> Self {
        Self {
            nat: Some(nat.parse().expect("an address")),
            ..self
        }
    }

    /// The same without UDP.
    #[must_use]
    pub fn without_udp(self) -> Self {
        Self { no_udp: true, ..self }
    }

    /// The same with a path that carries IP datagrams of this size at most.
    #[must_use]
    pub fn carrying(self, carries: u16) -> Self {
        Self { carries, ..self }
    }

    fn has(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(ip) => self.v4 == Some(ip),
            IpAddr::V6(ip) => self.v6 == Some(ip),
        }
    }
}

/// A NAT's memory of one socket of the client's.
#[derive(Clone, Copy, Debug)]
struct Mapping {
    inner: SocketAddr,
    outer: SocketAddr,
    used: Instant,
    is_alive: bool,
}

/// The network. Seeded, so that every run is the same.
pub struct Link {
    rng: Rng,
    /// Where the machine is, what it prefers first.
    pub interfaces: Vec<Interface>,
    /// One way, without disorder.
    pub latency: Duration,
    /// Up to this much is added to each datagram's latency, so that datagrams overtake each other.
    pub jitter: Duration,
    /// Datagrams lost, per mille.
    pub loss: u64,
    /// Datagrams repeated, per mille.
    pub repetition: u64,
    /// Datagrams with one bit turned over, per mille.
    pub damage: u64,
    /// The client is behind this address, wherever the interface has no NAT of its own.
    pub nat: Option<IpAddr>,
    /// A NAT forgets a mapping through which nothing went out for so long.
    pub nat_patience: Option<Duration>,
    /// UDP payloads above this many octets are lost, as where IP fragments are dropped.
    pub largest: Option<usize>,
    /// Rules for single messages, the first that fits counts.
    pub rules: Vec<Rule>,
    /// Nothing gets through to or from these ports of the gateway.
    pub blocked_ports: Vec<u16>,
    /// Nothing gets through to or from these addresses of the gateway.
    pub blocked: Vec<IpAddr>,
    /// The gateway refuses TCP connections.
    pub refuses_tcp: bool,
    mappings: Vec<Mapping>,
}

/// The client's port.
const PORT: u16 = 40_000;
/// Where a NAT's ports begin.
const NAT_PORTS: u16 = 50_000;

impl Link {
    /// A good network: 10 ms each way.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut octets = [0x4c; 32];
        octets[..8].copy_from_slice(&seed.to_be_bytes());
        Self {
            rng: Rng::new(octets),
            interfaces: vec![Interface::new("eth0", &["10.0.0.2", "fd00::2"])],
            latency: Duration::from_millis(10),
            jitter: Duration::ZERO,
            loss: 0,
            repetition: 0,
            damage: 0,
            nat: None,
            nat_patience: None,
            largest: None,
            rules: Vec::new(),
            blocked_ports: Vec::new(),
            blocked: Vec::new(),
            refuses_tcp: false,
            mappings: Vec::new(),
        }
    }

    /// When copies of `datagram` arrive, each after the given delay.
    pub fn carry(&mut self, way: Way, gateway_port: u16, datagram: &[u8]) -> Vec<Duration> {
        if self.blocked_ports.contains(&gateway_port) || self.largest.is_some_and(|max| datagram.len() > max)
        {
            return Vec::new();
        }
        let mut delays = vec![self.delay()];
        if self.rng.below(1000) < self.loss {
            delays.clear();
        } else if self.rng.below(1000) < self.repetition {
            delays.push(self.delay());
        }
        match self.fate(way, gateway_port, datagram) {
            Some(Fate::Drop) => delays.clear(),
            Some(Fate::Twice) => delays.push(self.delay()),
            Some(Fate::Late(by)) => delays.iter_mut().for_each(|delay| *delay += by),
            None => {}
        }
        delays
    }

    /// When octets of a TCP stream arrive, where a lost segment costs `repeated`.
    pub fn segment_delay(&mut self, repeated: Duration) -> Duration {
        let mut delay = self.delay();
        while self.rng.below(1000) < self.loss {
            delay += repeated;
        }
        delay
    }

    /// Whether segments of a connection of the client's get through at present.
    #[must_use]
    pub fn lets_tcp_through(&self, path: Path) -> bool {
        let home = self.interface_of(path.local.ip());
        home.is_some_and(|interface| !interface.is_dead && !interface.no_tcp)
            && !self.blocked.contains(&path.remote.ip())
    }

    fn interface_of(&self, address: IpAddr) -> Option<&Interface> {
        self.interfaces.iter().find(|interface| interface.has(address))
    }

    fn is_open(&self, address: IpAddr, transport: Transport) -> bool {
        self.interface_of(address)
            .is_some_and(|interface| match transport {
                Transport::Udp => !interface.no_udp,
                Transport::Tcp => !interface.no_tcp,
            })
    }

    fn delay(&mut self) -> Duration {
        let jitter = u64::try_from(self.jitter.as_micros()).unwrap_or(u64::MAX);
        self.latency + Duration::from_micros(self.rng.below(jitter + 1))
    }

    fn fate(&mut self, way: Way, gateway_port: u16, datagram: &[u8]) -> Option<Fate> {
        let message = if gateway_port == 500 {
            datagram
        } else {
            datagram.strip_prefix(&[0; 4])?
        };
        let header = Header::decode(message).ok()?;
        let fits = |rule: &&mut Rule| {
            rule.way == way
                && rule.exchange.is_none_or(|exchange| exchange == header.exchange)
                && rule.message_id.is_none_or(|id| id == header.message_id)
                && rule.times > 0
        };
        let rule = self.rules.iter_mut().find(fits)?;
        if rule.skip > 0 {
            rule.skip -= 1;
            return None;
        }
        rule.times -= 1;
        Some(rule.fate)
    }

    /// The socket that reaches `remote`, and the interface that it leaves through.
    #[must_use]
    pub fn route(&self, remote: IpAddr) -> Option<(SocketAddr, &Interface)> {
        self.interfaces.iter().find_map(|interface| {
            let local = match remote {
                IpAddr::V4(_) => interface.v4.map(IpAddr::V4),
                IpAddr::V6(_) => interface.v6.map(IpAddr::V6),
            };
            local.map(|ip| (SocketAddr::new(ip, PORT), interface))
        })
    }

    /// Whether the machine has this address, and something gets through there.
    #[must_use]
    pub fn is_here(&self, address: IpAddr) -> bool {
        self.interfaces
            .iter()
            .any(|interface| interface.has(address) && !interface.is_dead)
    }

    /// Whether a datagram with this many octets after the UDP header gets through where the machine has this address.
    #[must_use]
    pub fn is_carried(&self, address: IpAddr, payload: usize) -> bool {
        let headers = if address.is_ipv4() { 28 } else { 48 };
        let interface = self.interfaces.iter().find(|interface| interface.has(address));
        interface.is_none_or(|interface| payload + headers <= usize::from(interface.carries))
    }

    fn nat_of(&self, address: IpAddr) -> Option<IpAddr> {
        let interface = self.interfaces.iter().find(|interface| interface.has(address))?;
        let nat = interface.nat.or(self.nat);
        nat.filter(|nat| nat.is_ipv4() == address.is_ipv4())
    }

    /// The client's path as the gateway sees it; none when the datagram gets nowhere.
    pub fn up(&mut self, path: Path, now: Instant) -> Option<Path> {
        let is_open = self.is_open(path.local.ip(), path.transport);
        let takes = |interface: &Interface| interface.has(path.local.ip()) && !interface.takes_nothing;
        if !is_open
            || !self.is_here(path.local.ip())
            || !self.interfaces.iter().any(takes)
            || self.blocked.contains(&path.remote.ip())
        {
            return None;
        }
        let client = match self.nat_of(path.local.ip()) {
            None => path.local,
            Some(nat) => self.map(path.local, nat, now),
        };
        Some(Path {
            local: path.remote,
            remote: client,
            transport: path.transport,
        })
    }

    /// Where a NAT lets a socket of the client's appear.
    fn map(&mut self, inner: SocketAddr, nat: IpAddr, now: Instant) -> SocketAddr {
        self.forget_idle(now);
        let known = self
            .mappings
            .iter_mut()
            .find(|mapping| mapping.is_alive && mapping.inner == inner && mapping.outer.ip() == nat);
        if let Some(mapping) = known {
            mapping.used = now;
            return mapping.outer;
        }
        let count = u16::try_from(self.mappings.len() % 10_000).unwrap_or(0);
        let outer = SocketAddr::new(nat, NAT_PORTS + count);
        self.mappings.push(Mapping {
            inner,
            outer,
            used: now,
            is_alive: true,
        });
        outer
    }

    fn forget_idle(&mut self, now: Instant) {
        let Some(patience) = self.nat_patience else { return };
        for mapping in &mut self.mappings {
            mapping.is_alive &= now < mapping.used + patience;
        }
    }

    /// The NATs forget everything: whatever goes out next appears from another port.
    pub fn forget_mappings(&mut self) {
        for mapping in &mut self.mappings {
            mapping.is_alive = false;
        }
    }

    /// The gateway's path as the client sees it; none when the datagram gets nowhere.
    pub fn down(&mut self, path: Path, now: Instant) -> Option<Path> {
        if self.blocked.contains(&path.local.ip()) {
            return None;
        }
        self.forget_idle(now);
        let mapped = self
            .mappings
            .iter()
            .find(|mapping| mapping.is_alive && mapping.outer == path.remote);
        let client = match mapped {
            Some(mapping) => mapping.inner,
            None if self.nat_of(path.remote.ip()).is_none() => path.remote,
            None => return None,
        };
        let is_open = self.is_here(client.ip()) && self.is_open(client.ip(), path.transport);
        is_open.then_some(Path {
            local: client,
            remote: path.local,
            transport: path.transport,
        })
    }

    /// The gateway's path as the client would see it, whether anything gets through or not.
    #[must_use]
    pub fn seen_by_client(&self, path: Path) -> Path {
        let mapped = self.mappings.iter().find(|mapping| mapping.outer == path.remote);
        Path {
            local: mapped.map_or(path.remote, |mapping| mapping.inner),
            remote: path.local,
            transport: path.transport,
        }
    }

    /// Turns a bit of a datagram over, if it is its turn.
    pub fn damage(&mut self, datagram: &mut [u8]) {
        if self.damage > 0 && self.rng.below(1000) < self.damage {
            let bits = u64::try_from(datagram.len() * 8).unwrap_or(0);
            let bit = usize::try_from(self.rng.below(bits)).unwrap_or(0);
            if let Some(octet) = datagram.get_mut(bit / 8) {
                *octet ^= 1 << (bit % 8);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(local: &str, remote: &str) -> Path {
        Path::udp(local.parse().expect("an end"), remote.parse().expect("an end"))
    }

    fn at(seconds: u64) -> Instant {
        Instant::new(Duration::from_secs(seconds))
    }

    const HOME: &str = "10.0.0.2:40000";
    const GATEWAY: &str = "192.0.2.1:4500";

    #[test]
    fn without_a_nat_both_see_the_same_addresses() {
        let mut link = Link::new(1);
        let up = link.up(path(HOME, GATEWAY), at(0));
        assert_eq!(up, Some(path(GATEWAY, HOME)));
        assert_eq!(link.down(path(GATEWAY, HOME), at(0)), Some(path(HOME, GATEWAY)));
        assert_eq!(
            link.up(path("10.0.0.77:40000", GATEWAY), at(0)),
            None,
            "not our address"
        );
    }

    #[test]
    fn a_nat_keeps_a_mapping_until_it_forgets_it() {
        let mut link = Link::new(1);
        link.nat = Some("198.51.100.7".parse().expect("an address"));
        link.nat_patience = Some(Duration::from_secs(30));
        let seen = |link: &mut Link, now| link.up(path(HOME, GATEWAY), at(now)).expect("a way").remote;
        let first = seen(&mut link, 0);
        assert_eq!(first.ip().to_string(), "198.51.100.7");
        assert_eq!(seen(&mut link, 29), first);
        let back = |link: &mut Link, to: SocketAddr, now| {
            let path = Path::udp(GATEWAY.parse().expect("an end"), to);
            link.down(path, at(now)).map(|path| path.local.to_string())
        };
        assert_eq!(back(&mut link, first, 58).as_deref(), Some(HOME));
        assert_eq!(back(&mut link, first, 59), None, "nothing went out for too long");
        let second = seen(&mut link, 60);
        assert_ne!(second, first);
        assert_eq!(back(&mut link, first, 60), None);
        link.forget_mappings();
        assert_eq!(back(&mut link, second, 60), None);
        let third = seen(&mut link, 60);
        assert_ne!(third, second);
        link.nat = Some("198.51.100.8".parse().expect("an address"));
        let fourth = seen(&mut link, 60);
        assert_eq!(fourth.ip().to_string(), "198.51.100.8");
        assert_eq!(back(&mut link, fourth, 60).as_deref(), Some(HOME));
        // What is inside is not reached from outside.
        assert_eq!(back(&mut link, HOME.parse().expect("an end"), 60), None);
    }

    #[test]
    fn each_network_has_its_own_addresses_and_its_own_nat() {
        let mut link = Link::new(1);
        link.interfaces = vec![
            Interface::new("wwan0", &["fd00:9::2"]),
            Interface::new("wlan0", &["10.7.0.2", "fd00:7::2"]).behind("198.51.100.7"),
        ];
        let gateway: IpAddr = "192.0.2.1".parse().expect("an address");
        let (local, interface) = link.route(gateway).expect("a route");
        assert_eq!(
            (local.to_string().as_str(), interface.name.as_str()),
            ("10.7.0.2:40000", "wlan0")
        );
        let (local, _) = link
            .route("2001:db8::1".parse().expect("an address"))
            .expect("a route");
        assert_eq!(local.to_string(), "[fd00:9::2]:40000");
        let up = link.up(path("10.7.0.2:40000", GATEWAY), at(0)).expect("a way");
        assert_eq!(up.remote.ip().to_string(), "198.51.100.7");
        let v6 = link.up(path("[fd00:7::2]:40000", "[2001:db8::1]:4500"), at(0));
        assert_eq!(
            v6.expect("a way").remote.to_string(),
            "[fd00:7::2]:40000",
            "an IPv4 NAT is none for IPv6"
        );
        link.interfaces[1].is_dead = true;
        assert!(link.up(path("10.7.0.2:40000", GATEWAY), at(0)).is_none());
        assert!(link.down(up, at(0)).is_none());
        assert!(link.route(gateway).is_some(), "nobody knows that it is dead");
        link.blocked = vec!["2001:db8::1".parse().expect("an address")];
        let v6 = path("[fd00:9::2]:40000", "[2001:db8::1]:4500");
        assert!(link.up(v6, at(0)).is_none());
    }

    #[test]
    fn damage_turns_one_bit_over() {
        let mut link = Link::new(1);
        let mut datagram = vec![0; 100];
        link.damage(&mut datagram);
        assert_eq!(datagram, [0; 100]);
        link.damage = 1000;
        link.damage(&mut datagram);
        let ones: u32 = datagram.iter().map(|octet| octet.count_ones()).sum();
        assert_eq!(ones, 1);
    }
}
