//! What the gateway keeps beyond single sessions: inner addresses, tickets, and records of what was said.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use peregrine_core::command::Path;
use peregrine_core::crypto::Secret;
use peregrine_core::profile::Identity;
use peregrine_core::proposal::IkeSuite;
use peregrine_core::rng::Rng;
use peregrine_core::timer::Instant;
use peregrine_core::wire::iana::{ExchangeType, NotifyType, PayloadType};
use peregrine_core::wire::{EspSpi, IkeSpi, Notify, Payload};

use super::child::ChildTraffic;
use super::config::{GatewayConfig, Side};
use super::{Outgoing, wrap};

/// What a session may use besides its own.
pub(super) struct Cx<'a> {
    pub(super) now: Instant,
    pub(super) config: &'a GatewayConfig,
    pub(super) book: &'a mut Book,
}

impl Cx<'_> {
    /// Sends IKE messages.
    pub(super) fn send(&mut self, path: Path, messages: &[Vec<u8>]) {
        self.book
            .out
            .extend(messages.iter().map(|message| wrap(path, message)));
    }

    /// A nonce for an exchange that `initiator` began.
    pub(super) fn nonce(&mut self, initiator: Side) -> Vec<u8> {
        let mut nonce: [u8; 32] = self.book.rng.bytes();
        if let Some(loser) = self.config.loser {
            nonce[..8].fill(if loser == initiator { 0 } else { 0xff });
        }
        nonce.to_vec()
    }
}

/// A notify that owns its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Note {
    pub(super) kind: NotifyType,
    pub(super) data: Vec<u8>,
}

impl Note {
    pub(super) fn new(kind: NotifyType, data: &[u8]) -> Self {
        let data = data.to_vec();
        Self { kind, data }
    }

    pub(super) fn payload(&self) -> Payload<'_> {
        Payload::Notify(Notify::new(self.kind, &self.data))
    }
}

/// A session has come up.
pub(super) struct Arrival {
    pub(super) session: u32,
    /// IDi as it came.
    pub(super) identity: Vec<u8>,
    /// The client says that it has no other IKE SA.
    pub(super) initial_contact: bool,
    /// The session that it continues.
    pub(super) continues: Option<u32>,
}

/// What all sessions share.
pub(super) struct Book {
    pub(super) rng: Rng,
    pub(super) out: Vec<Outgoing>,
    pub(super) leases: Leases,
    pub(super) tickets: BTreeMap<Vec<u8>, Ticket>,
    /// Every request of the client's, decrypted: exchange, message ID, payloads.
    pub(super) transcript: Vec<(ExchangeType, u32, Vec<PayloadType>)>,
    /// The notifies of every request of the client's, with protocol and SPI left away.
    pub(super) notified: Vec<Note>,
    /// Every IDi of the client's.
    pub(super) identities: Vec<Identity>,
    /// Whom EAP has proven, by the name in EAP-Response/Identity.
    pub(super) eap_identities: Vec<String>,
    /// The notifies of every response of the client's.
    pub(super) answers: Vec<Vec<NotifyType>>,
    pub(super) arrival: Option<Arrival>,
    /// Child SAs that are gone.
    pub(super) past: Vec<ChildTraffic>,
    serial: u32,
}

impl Book {
    pub(super) fn new(seed: u8) -> Self {
        Self {
            rng: Rng::new([seed; 32]),
            out: Vec::new(),
            leases: Leases::default(),
            tickets: BTreeMap::new(),
            transcript: Vec::new(),
            notified: Vec::new(),
            identities: Vec::new(),
            eap_identities: Vec::new(),
            answers: Vec::new(),
            arrival: None,
            past: Vec::new(),
            serial: 0,
        }
    }

    /// A number that was not used before.
    pub(super) fn serial(&mut self) -> u32 {
        self.serial += 1;
        self.serial
    }

    pub(super) fn ike_spi(&mut self) -> IkeSpi {
        IkeSpi(self.rng.bytes())
    }

    /// In a range where nobody takes it for a mistake, and not soon the same again: the serial number is in it.
    pub(super) fn esp_spi(&mut self) -> EspSpi {
        let random = u32::from_be_bytes(self.rng.bytes()) & 0x00ff_0000;
        EspSpi(0xc000_0000 | random | (self.serial() & 0xffff))
    }
}

/// Which inner addresses are whose: every address of the pool, moved on by the same number.
#[derive(Default)]
pub(super) struct Leases {
    held: BTreeMap<Vec<u8>, u32>,
    next: u32,
}

impl Leases {
    /// The addresses for `identity`, who asked for `hints`.
    pub(super) fn assign(
        &mut self,
        identity: &[u8],
        hints: &[IpAddr],
        config: &GatewayConfig,
    ) -> Vec<IpAddr> {
        let number = self.number(identity, hints, config);
        self.held.insert(identity.to_vec(), number);
        config
            .pool
            .iter()
            .map(|first| match first {
                IpAddr::V4(ip) => Ipv4Addr::from_bits(ip.to_bits().wrapping_add(number)).into(),
                IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits().wrapping_add(number.into())).into(),
            })
            .collect()
    }

    fn number(&mut self, identity: &[u8], hints: &[IpAddr], config: &GatewayConfig) -> u32 {
        if !config.sticky {
            self.next += 1;
            return self.next - 1;
        }
        if let Some(number) = self.held.get(identity) {
            return *number;
        }
        let is_free = |number: &u32| !self.held.values().any(|held| held == number);
        let hinted = config.pool.iter().find_map(|first| {
            let wanted = hints.iter().find(|hint| hint.is_ipv4() == first.is_ipv4())?;
            let distance = match (first, wanted) {
                (IpAddr::V4(first), IpAddr::V4(wanted)) => wanted.to_bits().checked_sub(first.to_bits())?,
                (IpAddr::V6(first), IpAddr::V6(wanted)) => {
                    u32::try_from(wanted.to_bits().checked_sub(first.to_bits())?).ok()?
                }
                _ => return None,
            };
            // No pool is larger than this.
            (distance < 250).then_some(distance)
        });
        hinted
            .filter(is_free)
            .unwrap_or_else(|| (0..).find(is_free).expect("numbers do not run out"))
    }

    /// Forgets all.
    pub(super) fn clear(&mut self) {
        self.held.clear();
    }
}

/// What a ticket stands for (RFC 5723, section 5).
#[derive(Clone)]
pub(super) struct Ticket {
    /// SK_d.
    pub(super) derive: Secret,
    pub(super) suite: IkeSuite,
    /// IDi as it came.
    pub(super) identity: Vec<u8>,
    pub(super) session: u32,
    pub(super) expires: Instant,
}
