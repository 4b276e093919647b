//! IKE_FOLLOWUP_KE: the key exchanges after that of CREATE_CHILD_SA, begun by either end (RFC 9370, section 2.2.4). The SA
//! exists when the last of them is over.

use std::collections::VecDeque;
use std::time::Duration;

use peregrine_core::command::Path;
use peregrine_core::crypto::{KeyExchange, Secret};
use peregrine_core::proposal::IkeSuite;
use peregrine_core::timer::Instant;
use peregrine_core::wire::iana::{ExchangeType, KeMethod, NotifyType};
use peregrine_core::wire::{EspSpi, Header, Ke, Notify, Payload};

use super::book::Cx;
use super::channel::Channel;
use super::child::{Agreed, ChildState};
use super::config::Side;
use super::keys::{Nonces, Spis};
use super::rekey::{ChildAttempt, IkeAttempt};
use super::session::{Active, IkeSa, SaState, Session, Task};

/// How long the client has for its next request (RFC 9370, section 2.2.4: 5 to 20 seconds).
const PATIENCE: Duration = Duration::from_secs(20);

/// What is made.
pub(super) enum Making {
    Ike { suite: IkeSuite, spis: Spis },
    Child { agreed: Agreed, old: Option<EspSpi> },
}

/// What the client makes, as far as it has come.
pub(super) struct Pending {
    making: Making,
    nonces: Nonces,
    /// Of an IKE SA; those of a Child SA are in `making`.
    shared: Vec<Secret>,
    remaining: VecDeque<KeMethod>,
    link: [u8; 8],
    until: Instant,
}

impl Pending {
    pub(super) fn new(
        making: Making,
        nonces: Nonces,
        shared: Vec<Secret>,
        remaining: VecDeque<KeMethod>,
        link: [u8; 8],
        now: Instant,
    ) -> Self {
        Self {
            making,
            nonces,
            shared,
            remaining,
            link,
            until: now + PATIENCE,
        }
    }
}

/// What the gateway makes: its outstanding request.
pub(super) struct FollowUp {
    of: Of,
    nonces: Nonces,
    exchange: KeyExchange,
    remaining: VecDeque<KeMethod>,
}

enum Of {
    Ike(IkeAttempt, (IkeSuite, Spis), Vec<Secret>),
    Child(ChildAttempt, Agreed),
}

impl FollowUp {
    pub(super) fn is_for_ike(&self) -> bool {
        matches!(self.of, Of::Ike(..))
    }

    /// The Child SA that is rekeyed, by the gateway's SPI.
    pub(super) fn rekeys(&self) -> Option<EspSpi> {
        match &self.of {
            Of::Child(attempt, _) => attempt.rekeys,
            Of::Ike(..) => None,
        }
    }
}

fn ke_of<'a>(payloads: &'a [Payload<'_>]) -> Option<Ke<'a>> {
    payloads.iter().find_map(|payload| match payload {
        Payload::Ke(ke) => Some(*ke),
        _ => None,
    })
}

fn link_of<'a>(payloads: &'a [Payload<'_>]) -> Option<&'a [u8]> {
    payloads.iter().find_map(|payload| match payload {
        Payload::Notify(it) if it.kind == NotifyType::ADDITIONAL_KEY_EXCHANGE => Some(it.data),
        _ => None,
    })
}

impl Session {
    /// What the client makes, if it has not given it up.
    pub(super) fn pending_now(&mut self, now: Instant) -> Option<&Pending> {
        self.pending.take_if(|pending| pending.until <= now);
        self.pending.as_deref()
    }

    /// The client makes an IKE SA, or a Child SA in the place of this one.
    pub(super) fn client_makes(&mut self, rekeys: Option<EspSpi>, now: Instant) -> bool {
        self.pending_now(now)
            .is_some_and(|pending| match &pending.making {
                Making::Ike { .. } => true,
                Making::Child { old, .. } => rekeys.is_some() && *old == rekeys,
            })
    }

    /// The client's next key exchange.
    pub(super) fn serve_followup(
        &mut self,
        index: usize,
        header: &Header,
        payloads: &[Payload<'_>],
        path: Path,
        cx: &mut Cx<'_>,
    ) {
        self.pending_now(cx.now);
        // What is going gets no successor.
        self.pending.take_if(|_| self.sas[index].state != SaState::Up);
        let known = self
            .pending
            .take_if(|pending| link_of(payloads) == Some(pending.link.as_slice()));
        let Some(mut pending) = known else {
            let error = Notify::new(NotifyType::STATE_NOT_FOUND, &[]);
            return self.answer(index, header, &[Payload::Notify(error)], path, cx);
        };
        let ke = ke_of(payloads).expect("a key exchange in IKE_FOLLOWUP_KE");
        let method = pending.remaining.pop_front().expect("one that is expected");
        assert_eq!(ke.method, method, "the method of its turn");
        let (public, secret) =
            KeyExchange::respond(method, ke.data, &mut cx.book.rng).expect("a good value of the client's");
        match &mut pending.making {
            Making::Ike { .. } => pending.shared.push(secret),
            Making::Child { agreed, .. } => agreed.shared.push(secret),
        }
        pending.link = cx.book.rng.bytes();
        pending.until = cx.now + PATIENCE;
        let link = pending.link;
        let mut reply = vec![Payload::Ke(Ke {
            method,
            data: &public,
        })];
        if !pending.remaining.is_empty() {
            reply.push(Payload::Notify(Notify::new(
                NotifyType::ADDITIONAL_KEY_EXCHANGE,
                &link,
            )));
        }
        self.answer(index, header, &reply, path, cx);
        if !pending.remaining.is_empty() {
            self.pending = Some(pending);
            return;
        }
        let Pending {
            making,
            nonces,
            shared,
            ..
        } = *pending;
        match making {
            Making::Child { agreed, old } => self.made_by_client(index, agreed, old, &nonces, cx),
            Making::Ike { suite, spis } => {
                let old = &self.sas[index].channel;
                let keys = old.keys.rekeyed(&suite, &shared, &nonces, spis);
                let channel = Channel::new(spis, Side::Client, keys, old.fragment(), 0);
                self.void_tickets(cx);
                self.sas[index].await_delete(cx);
                self.tasks.retain(|queued| queued.task != Task::RekeyIke);
                self.sas.push(IkeSa::rekeyed(channel, suite, SaState::Up, cx.now));
            }
        }
    }

    /// The client has answered CREATE_CHILD_SA for a Child SA.
    pub(super) fn follow_child(
        &mut self,
        index: usize,
        attempt: ChildAttempt,
        agreed: Agreed,
        nonces: Nonces,
        payloads: &[Payload<'_>],
        cx: &mut Cx<'_>,
    ) {
        let remaining: VecDeque<KeMethod> = agreed.suite.additional.methods().collect();
        if !remaining.is_empty() && Self::loses(attempt.pending_rival.as_deref(), &nonces) {
            // RFC 9370, section 2.2.4: there is nothing to delete yet. The client goes on with its own.
            let old = attempt.rekeys.and_then(|spi| self.child(spi));
            if let Some(old) = old.filter(|old| old.state == ChildState::Rekeying) {
                old.state = ChildState::Up;
            }
            return;
        }
        self.follow(index, Of::Child(attempt, agreed), nonces, remaining, payloads, cx);
    }

    /// The same for an IKE SA.
    #[expect(clippy::too_many_arguments, reason = "all that an exchange has agreed on")]
    pub(super) fn follow_ike(
        &mut self,
        index: usize,
        attempt: IkeAttempt,
        made: (IkeSuite, Spis),
        shared: Secret,
        nonces: Nonces,
        payloads: &[Payload<'_>],
        cx: &mut Cx<'_>,
    ) {
        let remaining: VecDeque<KeMethod> = made.0.additional.methods().collect();
        if !remaining.is_empty() && Self::loses(attempt.pending_rival.as_deref(), &nonces) {
            return;
        }
        self.follow(
            index,
            Of::Ike(attempt, made, vec![shared]),
            nonces,
            remaining,
            payloads,
            cx,
        );
    }

    fn loses(rival: Option<&[u8]>, nonces: &Nonces) -> bool {
        rival.is_some_and(|rival| nonces.lowest() < rival)
    }

    fn follow(
        &mut self,
        index: usize,
        of: Of,
        nonces: Nonces,
        mut remaining: VecDeque<KeMethod>,
        payloads: &[Payload<'_>],
        cx: &mut Cx<'_>,
    ) {
        let Some(method) = remaining.pop_front() else {
            return match of {
                Of::Child(attempt, agreed) => self.finish_child(index, attempt, agreed, &nonces, cx),
                Of::Ike(attempt, made, shared) => {
                    self.finish_ike(index, attempt, made, &shared, &nonces, cx);
                }
            };
        };
        // Whoever goes on has won: the client stops what it makes of the same.
        self.pending = None;
        let link = link_of(payloads)
            .expect("the client links its key exchanges")
            .to_vec();
        let exchange = KeyExchange::generate(method, &mut cx.book.rng).expect("a known method");
        let request = [
            Payload::Ke(Ke {
                method,
                data: exchange.public(),
            }),
            Payload::Notify(Notify::new(NotifyType::ADDITIONAL_KEY_EXCHANGE, &link)),
        ];
        let messages = self.sas[index]
            .channel
            .request(ExchangeType::IKE_FOLLOWUP_KE, &request, cx.now);
        self.sas[index].active = Some(Active::FollowUp(Box::new(FollowUp {
            of,
            nonces,
            exchange,
            remaining,
        })));
        cx.send(self.path, &messages);
    }

    /// The client has answered IKE_FOLLOWUP_KE.
    pub(super) fn conclude_followup(
        &mut self,
        index: usize,
        follow: FollowUp,
        payloads: &[Payload<'_>],
        cx: &mut Cx<'_>,
    ) {
        let FollowUp {
            mut of,
            nonces,
            exchange,
            remaining,
        } = follow;
        let Some(ke) = ke_of(payloads) else {
            // STATE_NOT_FOUND: all of it is to be done anew.
            return match of {
                Of::Child(attempt, _) => {
                    self.child_refused(attempt, NotifyType::TEMPORARY_FAILURE, &[], cx);
                }
                Of::Ike(attempt, ..) => {
                    self.ike_refused(index, attempt, NotifyType::TEMPORARY_FAILURE, &[], cx);
                }
            };
        };
        assert_eq!(ke.method, exchange.method(), "the method of its turn");
        let secret = exchange.agree(ke.data).expect("a good value of the client's");
        match &mut of {
            Of::Child(_, agreed) => agreed.shared.push(secret),
            Of::Ike(_, _, shared) => shared.push(secret),
        }
        self.follow(index, of, nonces, remaining, payloads, cx);
    }
}
