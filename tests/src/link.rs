//! The network between client and gateway: delay, loss, repetition, disorder, a NAT, and rules for single messages.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use peregrine_core::command::Path;
use peregrine_core::rng::Rng;
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

/// The network. Seeded, so that every run is the same.
pub struct Link {
    rng: Rng,
    /// One way, without disorder.
    pub latency: Duration,
    /// Up to this much is added to each datagram's latency, so that datagrams overtake each other.
    pub jitter: Duration,
    /// Datagrams lost, per mille.
    pub loss: u64,
    /// Datagrams repeated, per mille.
    pub repetition: u64,
    /// The client is behind this address.
    pub nat: Option<IpAddr>,
    /// UDP payloads above this many octets are lost, as where IP fragments are dropped.
    pub largest: Option<usize>,
    /// Rules for single messages, the first that fits counts.
    pub rules: Vec<Rule>,
    /// Nothing gets through to or from these ports of the gateway.
    pub blocked_ports: Vec<u16>,
    mapped: Option<IpAddr>,
}

impl Link {
    /// A good network: 10 ms each way.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut octets = [0x4c; 32];
        octets[..8].copy_from_slice(&seed.to_be_bytes());
        Self {
            rng: Rng::new(octets),
            latency: Duration::from_millis(10),
            jitter: Duration::ZERO,
            loss: 0,
            repetition: 0,
            nat: None,
            largest: None,
            rules: Vec::new(),
            blocked_ports: Vec::new(),
            mapped: None,
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

    /// The client's path as the gateway sees it.
    pub fn seen_by_gateway(&mut self, path: Path) -> Path {
        let mut client = path.local;
        if let Some(public) = self.nat {
            self.mapped = Some(client.ip());
            client = SocketAddr::new(public, client.port().wrapping_add(10_000));
        }
        Path {
            local: path.remote,
            remote: client,
        }
    }

    /// The gateway's path as the client sees it.
    #[must_use]
    pub fn seen_by_client(&self, path: Path) -> Path {
        let mut client = path.remote;
        if let (Some(_), Some(inner)) = (self.nat, self.mapped) {
            client = SocketAddr::new(inner, client.port().wrapping_sub(10_000));
        }
        Path {
            local: client,
            remote: path.local,
        }
    }
}
