//! IKE_FOLLOWUP_KE: the additional key exchanges after CREATE_CHILD_SA, begun by us or by the gateway (RFC 9370, section
//! 2.2.4). The new SA exists when the last of them is over.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::channel::Opened;
use super::child::ChildSa;
use super::established::{Doing, End, Established, notifies};
use super::keys::{Nonces, Role, SharedSecrets, Spis};
use super::make_child::{ChildAnswer, MakeChild};
use super::rekey_ike::{Heir, IkeAnswer, RekeyIke};
use super::{Cx, Renewal, error_notify, notify};
use crate::command::Cause;
use crate::crypto::KeyExchange;
use crate::esp::Selectors;
use crate::proposal::{EspSuite, IkeSuite};
use crate::timer::Instant;
use crate::wire::iana::{ExchangeType, KeMethod, NotifyType};
use crate::wire::{EspSpi, Ke, Payload};

/// How long the gateway has for its next request (RFC 9370, section 2.2.4: 5 to 20 seconds).
const PATIENCE: Duration = Duration::from_secs(20);

/// Our IKE_FOLLOWUP_KE request.
pub(super) struct FollowUp {
    subject: Subject,
    exchange: KeyExchange,
    /// The methods after this one.
    remaining: VecDeque<KeMethod>,
}

/// What we make.
enum Subject {
    Child(MakeChild, ChildAnswer),
    Ike(RekeyIke, IkeAnswer),
}

impl FollowUp {
    /// Whether it is for an IKE SA.
    pub(super) fn is_for_ike(&self) -> bool {
        matches!(self.subject, Subject::Ike(..))
    }

    /// The gateway deleted a child that we do not know.
    pub(super) fn note_deleted(&mut self, spi: &[u8]) {
        if let Subject::Child(making, _) = &mut self.subject {
            making.note_deleted(spi);
        }
    }
}

/// What the gateway makes, as far as it has come.
pub(super) struct Pending {
    pub(super) subject: PendingSubject,
    pub(super) nonces: Nonces,
    shared: Option<SharedSecrets>,
    remaining: VecDeque<KeMethod>,
    link: [u8; 8],
    until: Instant,
}

pub(super) enum PendingSubject {
    Child {
        old: Option<EspSpi>,
        suite: EspSuite,
        /// Inbound and outbound.
        spis: (EspSpi, EspSpi),
        selectors: Arc<Selectors>,
    },
    Ike {
        suite: IkeSuite,
        spis: Spis,
    },
}

impl Pending {
    pub(super) fn new(
        subject: PendingSubject,
        nonces: Nonces,
        shared: Option<SharedSecrets>,
        remaining: VecDeque<KeMethod>,
        cx: &mut Cx<'_>,
    ) -> Self {
        Self {
            subject,
            nonces,
            shared,
            remaining,
            link: cx.rng.bytes(),
            until: cx.now + PATIENCE,
        }
    }

    /// What the gateway sends back with its next request.
    pub(super) fn link(&self) -> [u8; 8] {
        self.link
    }

    pub(super) fn is_for_ike(&self) -> bool {
        matches!(self.subject, PendingSubject::Ike { .. })
    }

    /// No key exchange is left.
    pub(super) fn is_over(&self) -> bool {
        self.remaining.is_empty()
    }

    /// Whether it is for the child with this inbound SPI to be.
    pub(super) fn makes(&self, inbound: EspSpi) -> bool {
        matches!(&self.subject, PendingSubject::Child { spis, .. } if spis.0 == inbound)
    }
}

impl Established {
    /// Begins the additional key exchanges of a child. `payloads` are those of the answer to CREATE_CHILD_SA.
    pub(super) fn follow_child(
        &mut self,
        making: MakeChild,
        answer: ChildAnswer,
        payloads: &[Payload<'_>],
        cx: &mut Cx<'_>,
    ) -> Result<(), End> {
        let remaining = answer.suite.additional.methods().collect();
        self.follow(Subject::Child(making, answer), remaining, payloads, cx)
    }

    /// The same of an IKE SA.
    pub(super) fn follow_ike(
        &mut self,
        rekeying: RekeyIke,
        answer: IkeAnswer,
        payloads: &[Payload<'_>],
        cx: &mut Cx<'_>,
    ) -> Result<(), End> {
        let remaining = answer.suite.additional.methods().collect();
        self.follow(Subject::Ike(rekeying, answer), remaining, payloads, cx)
    }

    /// Sends the next of our key exchanges, or makes the SA if that was the last.
    fn follow(
        &mut self,
        subject: Subject,
        mut remaining: VecDeque<KeMethod>,
        payloads: &[Payload<'_>],
        cx: &mut Cx<'_>,
    ) -> Result<(), End> {
        let Some(method) = remaining.pop_front() else {
            return match subject {
                Subject::Child(making, answer) => self.child_made(making, answer, cx),
                Subject::Ike(rekeying, answer) => self.ike_made(&rekeying, answer, cx),
            };
        };
        let Some(link) = notifies(payloads, NotifyType::ADDITIONAL_KEY_EXCHANGE).next() else {
            let what = "CREATE_CHILD_SA: the gateway does not link its additional key exchanges";
            return self.follow_failed(subject, Cause::Protocol(what.into()), cx);
        };
        let exchange = match KeyExchange::generate(method, cx.rng) {
            Ok(exchange) => exchange,
            Err(error) => return self.follow_failed(subject, Cause::Protocol(error.to_string()), cx),
        };
        let payloads = [
            Payload::Ke(Ke {
                method,
                data: exchange.public(),
            }),
            notify(NotifyType::ADDITIONAL_KEY_EXCHANGE, link.data),
        ];
        self.channel
            .request(ExchangeType::IKE_FOLLOWUP_KE, &payloads, cx)
            .map_err(|error| End::Tell(super::unsendable(&error)))?;
        self.doing = Doing::FollowUp(Box::new(FollowUp {
            subject,
            exchange,
            remaining,
        }));
        Ok(())
    }

    /// The gateway's answer to one of our key exchanges.
    pub(super) fn followed(
        &mut self,
        follow: FollowUp,
        payloads: &[Payload<'_>],
        cx: &mut Cx<'_>,
    ) -> Result<(), End> {
        let FollowUp {
            mut subject,
            exchange,
            remaining,
        } = follow;
        let ke = payloads.iter().find_map(|payload| match payload {
            Payload::Ke(ke) => Some(ke),
            _ => None,
        });
        let Some(ke) = ke else {
            // STATE_NOT_FOUND among them: all of it is to be done anew (RFC 9370, section 2.2.4).
            let error = error_notify(payloads).unwrap_or(NotifyType::STATE_NOT_FOUND);
            return self.follow_failed(subject, Cause::Refused(error), cx);
        };
        let shared = if ke.method == exchange.method() {
            exchange.agree(ke.data).map_err(|error| error.to_string())
        } else {
            Err("the key exchange is not of the chosen method".to_owned())
        };
        match shared {
            Ok(secret) => {
                match &mut subject {
                    Subject::Child(_, answer) => answer.add(secret),
                    Subject::Ike(_, answer) => answer.shared.additional.push(secret),
                }
                self.follow(subject, remaining, payloads, cx)
            }
            Err(what) => {
                let cause = Cause::Protocol(format!("IKE_FOLLOWUP_KE: {what}"));
                self.follow_failed(subject, cause, cx)
            }
        }
    }

    /// Nothing came of it; the gateway forgets its part in time.
    fn follow_failed(&mut self, subject: Subject, cause: Cause, cx: &mut Cx<'_>) -> Result<(), End> {
        tracing::warn!(?cause, "an additional key exchange failed");
        if !matches!(cause, Cause::Refused(NotifyType::STATE_NOT_FOUND)) {
            self.renew(Renewal::Refused(cause), cx);
        }
        match subject {
            Subject::Child(making, _) => self.postpone(making.replaced(), cx),
            Subject::Ike(..) => self.rekey_at = self.put_off(cx),
        }
        Ok(())
    }

    /// The gateway's next key exchange for what it makes.
    pub(super) fn serve_followup(&mut self, opened: &Opened, payloads: &[Payload<'_>], cx: &mut Cx<'_>) {
        let link = notifies(payloads, NotifyType::ADDITIONAL_KEY_EXCHANGE).next();
        let known = self
            .pending
            .take_if(|pending| link.is_some_and(|link| link.data == pending.link));
        let Some(mut pending) = known.filter(|pending| cx.now < pending.until) else {
            return self.answer(opened, &[notify(NotifyType::STATE_NOT_FOUND, &[])], cx);
        };
        let ke = payloads.iter().find_map(|payload| match payload {
            Payload::Ke(ke) => Some(ke),
            _ => None,
        });
        let agreed = match (ke, pending.remaining.pop_front()) {
            (Some(ke), Some(method)) if ke.method == method => KeyExchange::respond(method, ke.data, cx.rng)
                .ok()
                .map(|(public, secret)| (method, public, secret)),
            _ => None,
        };
        let Some((method, public, secret)) = agreed else {
            return self.answer(opened, &[notify(NotifyType::INVALID_SYNTAX, &[])], cx);
        };
        if let Some(shared) = &mut pending.shared {
            shared.additional.push(secret);
        }
        pending.link = cx.rng.bytes();
        pending.until = cx.now + PATIENCE;
        let link = pending.link;
        let mut reply = vec![Payload::Ke(Ke {
            method,
            data: &public,
        })];
        if !pending.remaining.is_empty() {
            reply.push(notify(NotifyType::ADDITIONAL_KEY_EXCHANGE, &link));
        }
        self.answer(opened, &reply, cx);
        self.go_on_with(*pending, cx);
    }

    /// Makes what the gateway makes if all its key exchanges are over, or else waits for the next.
    pub(super) fn go_on_with(&mut self, pending: Pending, cx: &mut Cx<'_>) {
        if !pending.is_over() {
            self.pending = Some(Box::new(pending));
            return;
        }
        let Pending {
            subject,
            nonces,
            shared,
            ..
        } = pending;
        let keys = &self.channel.keys;
        match (subject, shared) {
            (
                PendingSubject::Child {
                    old,
                    suite,
                    spis,
                    selectors,
                },
                shared,
            ) => match ChildSa::make(
                keys,
                shared.as_ref(),
                &nonces,
                Role::Responder,
                suite,
                spis,
                selectors,
            ) {
                Ok(sa) => self.adopt(sa, old, cx),
                Err(error) => tracing::error!(%error, "a child of a chosen suite cannot be made"),
            },
            (PendingSubject::Ike { suite, spis }, Some(shared)) => {
                match keys.derive_rekeyed(&suite, &shared, &nonces, spis, Role::Responder) {
                    Ok(keys) => {
                        let channel = self.channel.successor(spis, keys, cx.now);
                        self.heir = Some(Box::new(Heir::new(channel, suite, &nonces, cx.now)));
                    }
                    Err(error) => tracing::error!(%error, "an IKE SA of a chosen suite cannot be made"),
                }
            }
            (PendingSubject::Ike { .. }, None) => {}
        }
    }

    /// What the gateway is making is not begun by us as well, for as long as it may go on with it.
    pub(super) fn leave_to_gateway(&mut self) {
        let Some(pending) = &self.pending else { return };
        match &pending.subject {
            PendingSubject::Ike { .. } => self.rekey_at = self.rekey_at.max(pending.until),
            PendingSubject::Child { old, .. } => {
                if let Some(child) = old.and_then(|old| self.children.ours(old)) {
                    child.rekey_at = child.rekey_at.max(pending.until);
                }
            }
        }
    }

    /// Forgets what the gateway began and did not go on with.
    pub(super) fn forget_pending(&mut self, now: Instant) {
        self.pending.take_if(|pending| now >= pending.until);
    }
}
