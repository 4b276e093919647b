//! Child SAs: the pair of ESP SAs, their state, and what is agreed on for one.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use peregrine_core::command::{Path, Sink};
use peregrine_core::crypto::{KeyExchange, Secret};
use peregrine_core::esp::{Discard, Inbound, Marking, Outbound, Selectors, ds_field};
use peregrine_core::proposal::{self, EspSuite, IkeProposal, IkeSuite};
use peregrine_core::rng::Rng;
use peregrine_core::timer::Instant;
use peregrine_core::wire::iana::{KeMethod, NotifyType, TransformType};
use peregrine_core::wire::{self, EspSpi, IkeSpi, Ke, TrafficSelector, Ts};

use super::config::{GatewayConfig, Pfs, Side};
use super::keys::{Nonces, SaKeys};

/// How long packets of a Child SA that is gone may still be on their way.
const GRACE: Duration = Duration::from_secs(5);
/// By then the client has the answer that made a Child SA, or has given up.
pub(super) const CONFIRMED_BY_TIME: Duration = Duration::from_secs(30);
/// How long the client has to delete a Child SA that is its to delete.
pub(super) const DELETE_PATIENCE: Duration = Duration::from_secs(60);

/// A Child SA.
pub(super) struct Child {
    pub(super) inbound: Inbound,
    outbound: Outbound,
    pub(super) selectors: Arc<Selectors>,
    pub(super) made: Instant,
    pub(super) state: ChildState,
    /// The gateway may send on it: the client is known to receive.
    pub(super) sends: bool,
    /// The IKE SA, by the gateway's SPI, on which the client has yet to show that it got the answer that made this one.
    pub(super) unconfirmed: Option<IkeSpi>,
    /// The one that it takes the place of, by the gateway's SPI.
    pub(super) replaces: Option<EspSpi>,
    /// When `state` has lasted long enough.
    pub(super) until: Option<Instant>,
    /// What its age has already led to.
    pub(super) aged: Aged,
    /// The highest sequence number that came.
    highest: u32,
}

/// What is the matter with a Child SA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ChildState {
    /// Nothing.
    Up,
    /// The gateway is rekeying it.
    Rekeying,
    /// Another one takes its place, or it lost a collision: the client will delete it.
    Awaiting,
    /// The gateway is deleting it, or about to.
    Closing,
    /// It is gone, but for packets that are on their way to the gateway.
    Closed,
}

/// What the age of an SA has already led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Aged {
    /// It is young.
    Not,
    /// Its end has begun.
    Soft,
    /// It has been deleted.
    Hard,
}

/// What went through a Child SA, as the gateway sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChildTraffic {
    /// What the client sends with.
    pub inbound: EspSpi,
    /// What the gateway sends with.
    pub outbound: EspSpi,
    /// Packets that came.
    pub received: u64,
    /// Packets that did not come although later ones did: lost, or on their way.
    pub missing: u64,
    /// Packets sent.
    pub sent: u64,
    /// It is still there.
    pub is_live: bool,
}

impl Child {
    /// The Child SA of an exchange that `initiator` began and that agreed on all of this.
    pub(super) fn new(agreed: Agreed, keys: &SaKeys, nonces: &Nonces, now: Instant) -> Self {
        let Agreed {
            initiator,
            suite,
            inbound,
            outbound,
            selectors,
            shared,
        } = agreed;
        let (there, back) = keys.child(&suite, &shared, nonces);
        let (from_client, to_client) = match initiator {
            Side::Client => (there, back),
            Side::Gateway => (back, there),
        };
        let selectors = Arc::new(selectors);
        Self {
            inbound: Inbound::new(inbound, from_client, suite.esn, Arc::clone(&selectors)),
            outbound: Outbound::new(outbound, to_client, suite.esn, Arc::clone(&selectors)),
            selectors,
            made: now,
            state: ChildState::Up,
            sends: true,
            unconfirmed: None,
            replaces: None,
            until: None,
            aged: Aged::Not,
            highest: 0,
        }
    }

    /// The gateway's SPI: what the client sends with.
    pub(super) fn spi(&self) -> EspSpi {
        self.inbound.spi()
    }

    /// The client's SPI: what the gateway sends with.
    pub(super) fn client_spi(&self) -> EspSpi {
        self.outbound.spi()
    }

    pub(super) fn is_live(&self) -> bool {
        self.state != ChildState::Closed
    }

    /// Whether the gateway would send on it, if there is none better.
    pub(super) fn is_for_sending(&self) -> bool {
        self.sends
            && matches!(
                self.state,
                ChildState::Up | ChildState::Rekeying | ChildState::Awaiting
            )
    }

    /// Another one takes its place, or it lost: the client has some time to delete it.
    pub(super) fn await_delete(&mut self, now: Instant) {
        self.state = ChildState::Awaiting;
        self.until = Some(now + DELETE_PATIENCE);
    }

    /// Ends it; what is on its way still gets in.
    pub(super) fn close(&mut self, now: Instant) {
        self.state = ChildState::Closed;
        self.until = Some(now + GRACE);
    }

    pub(super) fn open<'d>(&mut self, datagram: &'d mut [u8]) -> Result<&'d mut [u8], Discard> {
        let sequence = datagram
            .get(4..8)
            .and_then(|octets| octets.try_into().ok())
            .map(u32::from_be_bytes);
        let opened = self.inbound.open(datagram)?;
        self.highest = self.highest.max(sequence.unwrap_or(0));
        Ok(opened)
    }

    pub(super) fn seal(&mut self, packet: &[u8]) -> Result<Vec<u8>, Discard> {
        let mut sealed = vec![0; self.outbound.sealed_len(packet.len())];
        let len = self.outbound.seal(packet, &mut sealed)?;
        sealed.truncate(len);
        Ok(sealed)
    }

    pub(super) fn seal_into(
        &mut self,
        len: usize,
        write: impl FnOnce(&mut [u8]),
        path: Path,
        sink: &mut impl Sink,
    ) {
        let Some(room) = sink.reserve(path, self.outbound.sealed_len(len)) else {
            return;
        };
        let mut ds = 0;
        let write = |room: &mut [u8]| {
            write(room);
            ds = Marking::default().outer(ds_field(room));
        };
        if let Ok(len) = self.outbound.seal_written(len, write, room) {
            sink.commit(len, ds);
        }
    }

    pub(super) fn traffic(&self) -> ChildTraffic {
        let received = self.inbound.counters().packets;
        ChildTraffic {
            inbound: self.spi(),
            outbound: self.client_spi(),
            received,
            missing: u64::from(self.highest).saturating_sub(received),
            sent: self.outbound.counters().packets,
            is_live: self.is_live(),
        }
    }
}

/// What both ends agreed on for a Child SA.
pub(super) struct Agreed {
    /// Who began the exchange.
    pub(super) initiator: Side,
    pub(super) suite: EspSuite,
    /// The gateway's SPI.
    pub(super) inbound: EspSpi,
    /// The client's SPI.
    pub(super) outbound: EspSpi,
    /// The gateway's side is local.
    pub(super) selectors: Selectors,
    /// The secrets of the key exchanges, none if there was none.
    pub(super) shared: Vec<Secret>,
}

/// Why an offer is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// With this error alone.
    Error(NotifyType),
    /// For want of a key exchange with this method.
    OtherMethod(KeMethod),
}

/// What was chosen of an SA payload: the proposal as it goes back, without the gateway's SPI, and what it means.
pub(super) struct Chosen<S> {
    pub(super) proposal: wire::Proposal<'static>,
    pub(super) suite: S,
}

/// Chooses for a Child SA of CREATE_CHILD_SA: what goes with the key exchange that came along if that is possible at
/// all (RFC 7296, section 1.3).
pub(super) fn choose_child(
    config: &GatewayConfig,
    offered: &[wire::Proposal<'_>],
    ke: Option<&Ke<'_>>,
) -> Result<Chosen<(EspSuite, EspSpi)>, Refusal> {
    let with = |method: Option<KeMethod>| {
        choose(offered, |answer| {
            let chosen = method_of(answer)?;
            if config.pfs == Pfs::Never || method.is_some_and(|method| method != chosen) {
                return None;
            }
            proposal::select_esp(&config.esp, std::slice::from_ref(answer), true)
                .ok()
                .filter(|(suite, _)| suite.ke.is_some())
        })
    };
    let without = || {
        choose(offered, |answer| {
            if config.pfs == Pfs::Required || method_of(answer).is_some() {
                return None;
            }
            let mut bare = answer.clone();
            bare.transforms
                .retain(|transform| transform.kind != TransformType::KE);
            proposal::select_esp(&config.esp, &[bare], false).ok()
        })
    };
    let other_method = || {
        let (_, (suite, _)) = with(None)?;
        suite.ke.map(Refusal::OtherMethod)
    };
    let chosen = match ke {
        Some(ke) => match (with(Some(ke.method)), other_method()) {
            (None, Some(refusal)) => return Err(refusal),
            (chosen, _) => chosen.or_else(without),
        },
        None => match (without(), other_method()) {
            (None, Some(refusal)) => return Err(refusal),
            (chosen, _) => chosen,
        },
    };
    let (proposal, suite) = chosen.ok_or(Refusal::Error(NotifyType::NO_PROPOSAL_CHOSEN))?;
    Ok(Chosen { proposal, suite })
}

/// Chooses for an IKE SA that takes another one's place.
pub(super) fn choose_ike(
    accepted: &[IkeProposal],
    offered: &[wire::Proposal<'_>],
    ke: &Ke<'_>,
) -> Result<Chosen<(IkeSuite, IkeSpi)>, Refusal> {
    let with = |method: Option<KeMethod>| {
        choose(offered, |answer| {
            let suite = proposal::select_ike(accepted, std::slice::from_ref(answer)).ok()?;
            let spi = <[u8; 8]>::try_from(&*answer.spi).ok()?;
            let fits = method.is_none_or(|method| method == suite.ke);
            fits.then_some((suite, IkeSpi(spi)))
        })
    };
    match (with(Some(ke.method)), with(None)) {
        (Some((proposal, suite)), _) => Ok(Chosen { proposal, suite }),
        (None, Some((_, (suite, _)))) => Err(Refusal::OtherMethod(suite.ke)),
        (None, None) => Err(Refusal::Error(NotifyType::NO_PROPOSAL_CHOSEN)),
    }
}

/// The key exchange method of a proposal with one transform of each kind.
fn method_of(proposal: &wire::Proposal<'_>) -> Option<KeMethod> {
    proposal
        .transforms
        .iter()
        .find(|transform| transform.kind == TransformType::KE)
        .map(|transform| KeMethod(transform.id))
        .filter(|method| *method != KeMethod::NONE)
}

/// The first combination of the client's offer that `accept` takes, as a proposal with one transform of each kind.
pub(super) fn choose<T>(
    offered: &[wire::Proposal<'_>],
    accept: impl Fn(&wire::Proposal<'static>) -> Option<T>,
) -> Option<(wire::Proposal<'static>, T)> {
    for offer in offered {
        let mut kinds: Vec<_> = offer.transforms.iter().map(|transform| transform.kind).collect();
        kinds.sort_unstable();
        kinds.dedup();
        let mut combinations: Vec<Vec<wire::Transform>> = vec![vec![]];
        for kind in kinds {
            let choices: Vec<_> = offer
                .transforms
                .iter()
                .filter(|transform| transform.kind == kind)
                .collect();
            combinations = combinations
                .iter()
                .flat_map(|partial| {
                    choices.iter().map(|choice| {
                        let mut longer = partial.clone();
                        longer.push((*choice).clone());
                        longer
                    })
                })
                .collect();
        }
        for transforms in combinations {
            // Numbered as `accept` numbers its own list: each is asked for in turn.
            for number in 1..=4 {
                let spi = offer.spi.to_vec().into();
                let candidate = wire::Proposal {
                    number,
                    protocol: offer.protocol,
                    spi,
                    transforms: transforms.clone(),
                };
                if let Some(found) = accept(&candidate) {
                    return Some((
                        wire::Proposal {
                            number: offer.number,
                            ..candidate
                        },
                        found,
                    ));
                }
            }
        }
    }
    None
}

/// The gateway's half of a key exchange that the client began: its public value, and the secret.
pub(super) fn answer_ke(ke: &Ke<'_>, rng: &mut Rng) -> Result<(Vec<u8>, Secret), Refusal> {
    let invalid = Refusal::Error(NotifyType::INVALID_SYNTAX);
    let exchange = KeyExchange::generate(ke.method, rng).map_err(|_| invalid)?;
    let secret = exchange.agree(ke.data).map_err(|_| invalid)?;
    Ok((exchange.public().to_vec(), secret))
}

/// The ranges of a TS payload; what is no range is nothing that the gateway has.
pub(super) fn ranges(selectors: &[Ts<'_>]) -> Vec<TrafficSelector> {
    selectors
        .iter()
        .filter_map(|selector| match selector {
            Ts::Range(range) => Some(*range),
            Ts::Unknown { .. } => None,
        })
        .collect()
}

/// What is in both (RFC 7296, section 2.9).
pub(super) fn narrow(asked: &[TrafficSelector], allowed: &[TrafficSelector]) -> Vec<TrafficSelector> {
    let both = |a: &TrafficSelector, b: &TrafficSelector| {
        let protocol = match (a.protocol, b.protocol) {
            (0, other) | (other, 0) => other,
            (one, other) if one == other => one,
            _ => return None,
        };
        let narrowed = TrafficSelector {
            protocol,
            start_port: a.start_port.max(b.start_port),
            end_port: a.end_port.min(b.end_port),
            start: a.start.max(b.start),
            end: a.end.min(b.end),
        };
        let same_family = a.start.is_ipv4() == b.start.is_ipv4();
        let possible = narrowed.start <= narrowed.end && narrowed.start_port <= narrowed.end_port;
        (same_family && possible).then_some(narrowed)
    };
    asked
        .iter()
        .flat_map(|a| allowed.iter().filter_map(|b| both(a, b)))
        .collect()
}

/// Selectors for these addresses alone.
pub(super) fn exactly(addresses: &[IpAddr]) -> Vec<TrafficSelector> {
    addresses
        .iter()
        .map(|ip| TrafficSelector::addresses(*ip, *ip))
        .collect()
}
