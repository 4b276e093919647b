//! CREATE_CHILD_SA as the one who begins it, and Deletes: what is asked for, and what comes of the answer (RFC 7296,
//! sections 1.3, 1.4.1, 2.8 and 2.25).

use peregrine_core::crypto::{KeyExchange, Secret};
use peregrine_core::esp::Selectors;
use peregrine_core::proposal;
use peregrine_core::wire::iana::{ExchangeType, KeMethod, NotifyType, ProtocolId};
use peregrine_core::wire::{Delete, EspSpi, IkeSpi, Ke, Notify, Payload, Proposal, Ts};

use super::book::Cx;
use super::channel::Channel;
use super::child::{Aged, Agreed, Child, ChildState, ranges};
use super::config::{Pfs, Side};
use super::keys::{Nonces, Spis};
use super::session::{
    Active, DELETE_PATIENCE, IkeSa, PUT_OFF, PUT_OFF_LIMIT, Queued, SaState, Session, Task,
};

/// How often an exchange is begun again because of another key exchange method.
const MAX_TRIES: u32 = 3;

/// A Child SA that the gateway has asked for.
pub(super) struct ChildAttempt {
    /// The one that it takes the place of, by the gateway's SPI.
    pub(super) rekeys: Option<EspSpi>,
    spi: EspSpi,
    nonce: Vec<u8>,
    ke: Option<KeyExchange>,
    pub(super) queued: Queued,
    /// The client did the same meanwhile: the SPI of its Child SA, and the lowest nonce of its exchange.
    pub(super) rival: Option<(EspSpi, Vec<u8>)>,
    /// The client began the same meanwhile, with more key exchanges to come: the lowest nonce of its exchange.
    pub(super) pending_rival: Option<Vec<u8>>,
}

/// An IKE SA that the gateway has asked for.
pub(super) struct IkeAttempt {
    spi: IkeSpi,
    nonce: Vec<u8>,
    ke: KeyExchange,
    pub(super) queued: Queued,
    /// The client did the same meanwhile: the gateway's SPI of its IKE SA, and the lowest nonce of its exchange.
    pub(super) rival: Option<(IkeSpi, Vec<u8>)>,
    /// The client began the same meanwhile, with more key exchanges to come: the lowest nonce of its exchange.
    pub(super) pending_rival: Option<Vec<u8>>,
}

/// What an answer to CREATE_CHILD_SA brought.
enum Reply<'a, 'p> {
    Refused(NotifyType, &'a [u8]),
    Granted(Granted<'a, 'p>),
}

struct Granted<'a, 'p> {
    sa: &'a [Proposal<'p>],
    nonce: &'a [u8],
    ke: Option<Ke<'a>>,
    ts: Option<(&'a [Ts<'p>], &'a [Ts<'p>])>,
}

impl<'a, 'p> Reply<'a, 'p> {
    fn read(payloads: &'a [Payload<'p>]) -> Self {
        let (mut sa, mut nonce, mut ke, mut ts_i, mut ts_r, mut error) = (None, None, None, None, None, None);
        for payload in payloads {
            match payload {
                Payload::Sa(value) => sa = Some(value.as_slice()),
                Payload::Nonce(value) => nonce = Some(*value),
                Payload::Ke(value) => ke = Some(*value),
                Payload::TsInitiator(value) => ts_i = Some(value.as_slice()),
                Payload::TsResponder(value) => ts_r = Some(value.as_slice()),
                Payload::Notify(it) if it.kind.is_error() => error = error.or(Some((it.kind, it.data))),
                _ => {}
            }
        }
        match (sa, nonce, error) {
            (Some(sa), Some(nonce), None) => Self::Granted(Granted {
                sa,
                nonce,
                ke,
                ts: ts_i.zip(ts_r),
            }),
            (None, _, Some((kind, data))) => Self::Refused(kind, data),
            _ => panic!("the client's answer to CREATE_CHILD_SA is neither: {payloads:?}"),
        }
    }
}

impl Session {
    pub(super) fn begin_child(
        &mut self,
        index: usize,
        rekeys: Option<EspSpi>,
        queued: Queued,
        cx: &mut Cx<'_>,
    ) {
        if self.client_makes(rekeys, cx.now) {
            return self.put_off(queued, cx);
        }
        let (local, remote) = match rekeys {
            None => self.selectors.clone(),
            Some(spi) => {
                // It may have been rekeyed or deleted by the client before it was our turn.
                let Some(old) = self.child(spi).filter(|child| child.state == ChildState::Up) else {
                    return;
                };
                old.state = ChildState::Rekeying;
                (old.selectors.local.clone(), old.selectors.remote.clone())
            }
        };
        let methods: Vec<KeMethod> = cx
            .config
            .esp
            .iter()
            .flat_map(|proposal| &proposal.key_exchanges)
            .copied()
            .collect();
        let with_ke = cx.config.pfs != Pfs::Never && !queued.without_ke && !methods.is_empty();
        let suggested = queued.method.unwrap_or(self.sas[index].suite.ke);
        let method = methods
            .iter()
            .find(|method| **method == suggested)
            .or_else(|| methods.first());
        let ke = method
            .filter(|_| with_ke)
            .map(|method| KeyExchange::generate(*method, &mut cx.book.rng).expect("a known method"));
        let spi = cx.book.esp_spi();
        let nonce = cx.nonce(Side::Gateway);
        let rekeyed = rekeys.map(|spi| spi.0.to_be_bytes());
        let mut payloads = Vec::new();
        payloads.extend(rekeyed.as_ref().map(|spi| {
            Payload::Notify(Notify {
                protocol: ProtocolId::ESP,
                spi,
                kind: NotifyType::REKEY_SA,
                data: &[],
            })
        }));
        payloads.push(Payload::Sa(proposal::esp_offer(&cx.config.esp, spi, with_ke)));
        payloads.push(Payload::Nonce(&nonce));
        payloads.extend(ke.as_ref().map(|ke| {
            Payload::Ke(Ke {
                method: ke.method(),
                data: ke.public(),
            })
        }));
        payloads.push(Payload::TsInitiator(local.into_iter().map(Ts::from).collect()));
        payloads.push(Payload::TsResponder(remote.into_iter().map(Ts::from).collect()));
        let sa = &mut self.sas[index];
        let messages = sa
            .channel
            .request(ExchangeType::CREATE_CHILD_SA, &payloads, cx.now);
        sa.active = Some(Active::Child(Box::new(ChildAttempt {
            rekeys,
            spi,
            nonce: nonce.clone(),
            ke,
            queued,
            rival: None,
            pending_rival: None,
        })));
        cx.send(self.path, &messages);
    }

    pub(super) fn conclude_child(
        &mut self,
        index: usize,
        attempt: ChildAttempt,
        payloads: &[Payload<'_>],
        cx: &mut Cx<'_>,
    ) {
        let granted = match Reply::read(payloads) {
            Reply::Granted(granted) => granted,
            Reply::Refused(error, data) => return self.child_refused(attempt, error, data, cx),
        };
        let with_ke = attempt.ke.is_some();
        let (suite, client_spi) = proposal::select_esp(&cx.config.esp, granted.sa, with_ke)
            .expect("the client chooses from what it was offered");
        let shared = attempt.ke.as_ref().map(|ke| {
            let theirs = granted
                .ke
                .expect("a key exchange is answered with a key exchange");
            assert_eq!(theirs.method, ke.method(), "the method that the client chose");
            ke.agree(theirs.data).expect("an element of the group")
        });
        let (ts_i, ts_r) = granted.ts.expect("traffic selectors in the answer");
        let nonces = Nonces {
            initiator: attempt.nonce.clone(),
            responder: granted.nonce.to_vec(),
        };
        let agreed = Agreed {
            initiator: Side::Gateway,
            suite,
            inbound: attempt.spi,
            outbound: client_spi,
            selectors: Selectors {
                local: ranges(ts_i),
                remote: ranges(ts_r),
            },
            shared: shared.into_iter().collect(),
        };
        self.follow_child(index, attempt, agreed, nonces, payloads, cx);
    }

    /// All key exchanges of the gateway's Child SA are over.
    pub(super) fn finish_child(
        &mut self,
        index: usize,
        attempt: ChildAttempt,
        agreed: Agreed,
        nonces: &Nonces,
        cx: &mut Cx<'_>,
    ) {
        let mut child = Child::new(agreed, &self.sas[index].channel.keys, nonces, cx.now);
        child.replaces = attempt.rekeys;
        self.children.push(child);
        let Some(old) = attempt.rekeys else { return };
        let rival = attempt
            .rival
            .filter(|(spi, _)| self.child(*spi).is_some_and(|child| child.is_live()));
        // RFC 7296, section 2.8.1: who made the one with the lowest nonce deletes it, the other one the old one.
        let doomed = match rival {
            Some((_, lowest)) if nonces.lowest() < lowest.as_slice() => {
                if let Some(old) = self.child(old).filter(|child| child.is_live()) {
                    old.await_delete(cx.now);
                }
                attempt.spi
            }
            Some((spi, _)) => {
                if let Some(redundant) = self.child(spi) {
                    redundant.await_delete(cx.now);
                }
                old
            }
            None => old,
        };
        if let Some(doomed) = self.child(doomed).filter(|child| child.is_live()) {
            doomed.state = ChildState::Closing;
            let spi = doomed.spi();
            self.want(Task::DeleteChild(vec![spi]), cx.now);
        }
    }

    pub(super) fn child_refused(
        &mut self,
        attempt: ChildAttempt,
        error: NotifyType,
        data: &[u8],
        cx: &mut Cx<'_>,
    ) {
        let now = cx.now;
        let ChildAttempt {
            rekeys,
            ke,
            queued,
            rival,
            ..
        } = attempt;
        let old = rekeys
            .and_then(|spi| self.child(spi))
            .filter(|child| child.state == ChildState::Rekeying);
        if let Some(old) = old {
            // What the client did meanwhile stands.
            if rival.is_some() {
                old.await_delete(now);
            } else {
                old.state = ChildState::Up;
            }
        }
        if rival.is_some() {
            return;
        }
        match error {
            NotifyType::TEMPORARY_FAILURE => self.put_off(queued, cx),
            NotifyType::CHILD_SA_NOT_FOUND => {
                // RFC 7296, section 2.25: it is dropped silently, and made anew if there is none beside it.
                let Some(spi) = rekeys else { return };
                let existed = self.child(spi).is_some_and(|child| child.is_live());
                self.close_child(spi, now);
                let is_last = !self.children.iter().any(|child| child.state == ChildState::Up);
                if existed && is_last {
                    self.want(Task::NewChild, now);
                }
            }
            NotifyType::INVALID_KE_PAYLOAD => self.try_method(queued, data),
            NotifyType::NO_PROPOSAL_CHOSEN if ke.is_some() && cx.config.pfs == Pfs::Optional => {
                self.tasks.push(Queued {
                    without_ke: true,
                    ..queued
                });
            }
            _ => {}
        }
    }

    /// RFC 7296, section 2.25: never at once, and not for ever.
    pub(super) fn put_off(&mut self, queued: Queued, cx: &Cx<'_>) {
        if cx.now.since(queued.since) >= PUT_OFF_LIMIT {
            self.want(Task::Close, cx.now);
        } else {
            self.tasks.push(Queued {
                due: cx.now + PUT_OFF,
                ..queued
            });
        }
    }

    fn try_method(&mut self, queued: Queued, data: &[u8]) {
        let method = data.try_into().map(u16::from_be_bytes).map(KeMethod);
        if queued.tries < MAX_TRIES {
            self.tasks.push(Queued {
                method: method.ok(),
                tries: queued.tries + 1,
                ..queued
            });
        }
    }

    pub(super) fn begin_ike(&mut self, index: usize, queued: Queued, cx: &mut Cx<'_>) {
        if self.pending_now(cx.now).is_some() {
            return self.put_off(queued, cx);
        }
        let methods: Vec<KeMethod> = cx
            .config
            .ike
            .iter()
            .flat_map(|proposal| proposal.key_exchanges())
            .collect();
        let suggested = queued.method.unwrap_or(self.sas[index].suite.ke);
        let method = methods
            .iter()
            .find(|method| **method == suggested)
            .or_else(|| methods.first())
            .expect("an IKE proposal has a key exchange method");
        let ke = KeyExchange::generate(*method, &mut cx.book.rng).expect("a known method");
        let spi = cx.book.ike_spi();
        let nonce = cx.nonce(Side::Gateway);
        let payloads = [
            Payload::Sa(proposal::ike_offer(&cx.config.ike, &spi.0)),
            Payload::Nonce(&nonce),
            Payload::Ke(Ke {
                method: ke.method(),
                data: ke.public(),
            }),
        ];
        let sa = &mut self.sas[index];
        let messages = sa
            .channel
            .request(ExchangeType::CREATE_CHILD_SA, &payloads, cx.now);
        sa.active = Some(Active::Ike(Box::new(IkeAttempt {
            spi,
            nonce: nonce.clone(),
            ke,
            queued,
            rival: None,
            pending_rival: None,
        })));
        cx.send(self.path, &messages);
    }

    pub(super) fn conclude_ike(
        &mut self,
        index: usize,
        attempt: IkeAttempt,
        payloads: &[Payload<'_>],
        cx: &mut Cx<'_>,
    ) {
        let granted = match Reply::read(payloads) {
            Reply::Granted(granted) => granted,
            Reply::Refused(error, data) => return self.ike_refused(index, attempt, error, data, cx),
        };
        let suite = proposal::select_ike(&cx.config.ike, granted.sa)
            .expect("the client chooses from what it was offered");
        let spi = <[u8; 8]>::try_from(&*granted.sa[0].spi).expect("the SPI of an IKE SA");
        let theirs = granted.ke.expect("a key exchange in the answer");
        assert_eq!(
            (theirs.method, suite.ke),
            (attempt.ke.method(), attempt.ke.method())
        );
        let shared = attempt.ke.agree(theirs.data).expect("an element of the group");
        let nonces = Nonces {
            initiator: attempt.nonce.clone(),
            responder: granted.nonce.to_vec(),
        };
        let spis = Spis {
            initiator: attempt.spi,
            responder: IkeSpi(spi),
        };
        self.follow_ike(index, attempt, (suite, spis), shared, nonces, payloads, cx);
    }

    /// All key exchanges of the gateway's IKE SA are over.
    pub(super) fn finish_ike(
        &mut self,
        index: usize,
        attempt: IkeAttempt,
        (suite, spis): (proposal::IkeSuite, Spis),
        shared: &[Secret],
        nonces: &Nonces,
        cx: &mut Cx<'_>,
    ) {
        let old = &self.sas[index];
        let old_spi = old.channel.own_spi();
        let keys = old.channel.keys.rekeyed(&suite, shared, nonces, spis);
        let channel = Channel::new(spis, Side::Gateway, keys, old.channel.fragment(), 0);
        let rival = attempt
            .rival
            .and_then(|(spi, lowest)| self.by_own_spi(spi).zip(Some(lowest)));
        // RFC 7296, section 2.8.2: who made the one with the lowest nonce deletes it, the other one the old one.
        let (state, doomed) = match rival {
            Some((rival, lowest)) if nonces.lowest() < lowest.as_slice() => {
                self.sas[rival].state = SaState::Up;
                self.sas[index].await_delete(cx);
                (SaState::Leaving, attempt.spi)
            }
            Some((rival, _)) => {
                self.sas[rival].await_delete(cx);
                self.sas[index].state = SaState::Leaving;
                (SaState::Up, old_spi)
            }
            None => {
                self.sas[index].state = SaState::Leaving;
                (SaState::Up, old_spi)
            }
        };
        self.sas.push(IkeSa::rekeyed(channel, suite, state, cx.now));
        self.want(Task::DeleteIke(doomed), cx.now);
        self.void_tickets(cx);
    }

    pub(super) fn ike_refused(
        &mut self,
        index: usize,
        attempt: IkeAttempt,
        error: NotifyType,
        data: &[u8],
        cx: &mut Cx<'_>,
    ) {
        let rival = attempt.rival.and_then(|(spi, _)| self.by_own_spi(spi));
        if let Some(rival) = rival {
            // What the client did meanwhile stands.
            self.sas[rival].state = SaState::Up;
            self.sas[index].await_delete(cx);
            self.void_tickets(cx);
            return;
        }
        match error {
            NotifyType::TEMPORARY_FAILURE => self.put_off(attempt.queued, cx),
            NotifyType::INVALID_KE_PAYLOAD => self.try_method(attempt.queued, data),
            _ => {}
        }
    }

    pub(super) fn begin_delete_child(&mut self, index: usize, spis: Vec<EspSpi>, cx: &mut Cx<'_>) {
        let mut live = spis;
        live.retain(|spi| {
            let child = self.child(*spi).filter(|child| child.is_live());
            child.is_some_and(|child| {
                child.state = ChildState::Closing;
                child.until = None;
                true
            })
        });
        if live.is_empty() {
            return;
        }
        let octets: Vec<[u8; 4]> = live.iter().map(|spi| spi.0.to_be_bytes()).collect();
        let delete = Payload::Delete(Delete {
            protocol: ProtocolId::ESP,
            spis: octets.iter().map(<[u8; 4]>::as_slice).collect(),
        });
        let active = Active::DeleteChild(live);
        self.request(index, ExchangeType::INFORMATIONAL, &[delete], active, cx);
    }

    pub(super) fn begin_delete_ike(&mut self, index: usize, cx: &mut Cx<'_>) {
        let sa = &mut self.sas[index];
        if sa.state == SaState::Up {
            sa.state = SaState::Closing;
            self.tasks
                .retain(|queued| matches!(queued.task, Task::DeleteIke(_)));
        }
        let delete = Payload::Delete(Delete {
            protocol: ProtocolId::IKE,
            spis: vec![],
        });
        self.request(
            index,
            ExchangeType::INFORMATIONAL,
            &[delete],
            Active::DeleteIke,
            cx,
        );
    }
}

impl IkeSa {
    /// An IKE SA that an exchange of another one made.
    pub(super) fn rekeyed(
        channel: Channel,
        suite: proposal::IkeSuite,
        state: SaState,
        now: peregrine_core::timer::Instant,
    ) -> Self {
        Self {
            channel,
            suite,
            state,
            made: now,
            until: None,
            aged: Aged::Not,
            active: None,
            handshake: None,
        }
    }

    /// Another one is in use instead, or it lost: the client has some time to delete it.
    pub(super) fn await_delete(&mut self, cx: &Cx<'_>) {
        self.state = SaState::Awaiting;
        self.until = Some(cx.now + DELETE_PATIENCE);
    }
}
