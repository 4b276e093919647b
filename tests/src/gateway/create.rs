//! CREATE_CHILD_SA as the one who answers it (RFC 7296, sections 1.3, 2.8 and 2.25).

use std::collections::VecDeque;

use peregrine_core::command::Path;
use peregrine_core::esp::Selectors;
use peregrine_core::wire::iana::{KeMethod, NotifyType, ProtocolId};
use peregrine_core::wire::{EspSpi, Header, Ke, Notify, Payload, Proposal, Ts};

use super::book::{Cx, Note};
use super::channel::Channel;
use super::child::{Agreed, Child, ChildState, Refusal, answer_ke, choose_child, choose_ike, narrow, ranges};
use super::config::Side;
use super::followup::{Making, Pending};
use super::keys::{Nonces, Spis};
use super::session::{Active, IkeSa, SaState, Session, Task};

/// A request, with what every one of them has.
struct Request<'a> {
    sa: &'a [Proposal<'a>],
    nonce: &'a [u8],
    ke: Option<Ke<'a>>,
    ts: Option<(&'a [Ts<'a>], &'a [Ts<'a>])>,
    rekey: Option<Notify<'a>>,
    wants_ticket: bool,
}

impl<'a> Request<'a> {
    fn read(payloads: &'a [Payload<'a>]) -> Self {
        let (mut sa, mut nonce, mut ke, mut ts_i, mut ts_r, mut rekey) = (None, None, None, None, None, None);
        let mut wants_ticket = false;
        for payload in payloads {
            match payload {
                Payload::Sa(value) => sa = Some(value.as_slice()),
                Payload::Nonce(value) => nonce = Some(*value),
                Payload::Ke(value) => ke = Some(*value),
                Payload::TsInitiator(value) => ts_i = Some(value.as_slice()),
                Payload::TsResponder(value) => ts_r = Some(value.as_slice()),
                Payload::Notify(it) if it.kind == NotifyType::REKEY_SA => rekey = Some(*it),
                Payload::Notify(it) => wants_ticket |= it.kind == NotifyType::TICKET_REQUEST,
                _ => {}
            }
        }
        Self {
            sa: sa.expect("an SA payload in CREATE_CHILD_SA"),
            nonce: nonce.expect("a nonce in CREATE_CHILD_SA"),
            ke,
            ts: ts_i.zip(ts_r),
            rekey,
            wants_ticket,
        }
    }

    fn is_for_ike(&self) -> bool {
        self.sa
            .iter()
            .all(|proposal| proposal.protocol == ProtocolId::IKE)
    }
}

impl Session {
    pub(super) fn create(
        &mut self,
        index: usize,
        header: &Header,
        payloads: &[Payload<'_>],
        path: Path,
        cx: &mut Cx<'_>,
    ) {
        let request = Request::read(payloads);
        let outcome = if request.is_for_ike() {
            self.rekey_ike(index, header, &request, path, cx)
        } else {
            self.make_child(index, header, &request, path, cx)
        };
        let Err(refusal) = outcome else { return };
        let (kind, data) = match refusal {
            Refusal::Error(kind) => (kind, Vec::new()),
            Refusal::OtherMethod(method) => (NotifyType::INVALID_KE_PAYLOAD, method.0.to_be_bytes().to_vec()),
        };
        // The SPI that nobody knows, and its protocol as it came (RFC 7296, section 2.25).
        let about = request
            .rekey
            .filter(|_| kind == NotifyType::CHILD_SA_NOT_FOUND)
            .filter(|it| matches!(it.protocol, ProtocolId::ESP | ProtocolId::AH));
        let notify = Notify {
            protocol: about.map_or(ProtocolId::NONE, |it| it.protocol),
            spi: about.map_or(&[], |it| it.spi),
            kind,
            data: &data,
        };
        self.answer(index, header, &[Payload::Notify(notify)], path, cx);
    }

    fn rekey_ike(
        &mut self,
        index: usize,
        header: &Header,
        request: &Request<'_>,
        path: Path,
        cx: &mut Cx<'_>,
    ) -> Result<(), Refusal> {
        let temporary = Refusal::Error(NotifyType::TEMPORARY_FAILURE);
        if self.sas[index].state != SaState::Up {
            return Err(temporary);
        }
        match &self.sas[index].active {
            Some(Active::Child(_) | Active::DeleteChild(_) | Active::FollowUp(_)) => return Err(temporary),
            Some(Active::Ike(attempt)) if attempt.rival.is_some() => return Err(temporary),
            _ => {}
        }
        if let Some(error) = cx.config.refuse_ike_rekey {
            return Err(Refusal::Error(error));
        }
        let ke = request.ke.expect("a key exchange is never missing here");
        let mut chosen = choose_ike(&cx.config.ike, request.sa, &ke)?;
        let (suite, client_spi) = chosen.suite;
        let (public, shared) = answer_ke(&ke, &mut cx.book.rng)?;
        let own_spi = cx.book.ike_spi();
        chosen.proposal.spi = own_spi.0.to_vec().into();
        let nonces = Nonces {
            initiator: request.nonce.to_vec(),
            responder: cx.nonce(Side::Client),
        };
        let spis = Spis {
            initiator: client_spi,
            responder: own_spi,
        };
        let old = &self.sas[index].channel;
        let keys = old
            .keys
            .rekeyed(&suite, std::slice::from_ref(&shared), &nonces, spis);
        let fragment = old.fragment();
        let remaining: VecDeque<KeMethod> = suite.additional.methods().collect();
        let is_complete = remaining.is_empty();
        if is_complete {
            self.void_tickets(cx);
        }
        let ticket = (request.wants_ticket && is_complete)
            .then(|| self.issue_ticket(&keys, suite, cx))
            .flatten();
        let link: [u8; 8] = cx.book.rng.bytes();
        let mut payloads = vec![
            Payload::Sa(vec![chosen.proposal]),
            Payload::Nonce(&nonces.responder),
            Payload::Ke(Ke {
                method: ke.method,
                data: &public,
            }),
        ];
        payloads.extend(ticket.as_ref().map(Note::payload));
        if !is_complete {
            payloads.push(Payload::Notify(Notify::new(
                NotifyType::ADDITIONAL_KEY_EXCHANGE,
                &link,
            )));
        }
        self.answer(index, header, &payloads, path, cx);
        if !is_complete {
            if let Some(Active::Ike(attempt)) = &mut self.sas[index].active {
                attempt.pending_rival = Some(nonces.lowest().to_vec());
            }
            let making = Making::Ike { suite, spis };
            self.pending = Some(Box::new(Pending::new(
                making,
                nonces,
                vec![shared],
                remaining,
                link,
                cx.now,
            )));
            return Ok(());
        }
        let channel = Channel::new(spis, Side::Client, keys, fragment, 0);

        let old = &mut self.sas[index];
        let state = if let Some(Active::Ike(attempt)) = &mut old.active {
            attempt.rival = Some((own_spi, nonces.lowest().to_vec()));
            SaState::Contender
        } else {
            old.await_delete(cx);
            self.tasks.retain(|queued| queued.task != Task::RekeyIke);
            SaState::Up
        };
        self.sas.push(IkeSa::rekeyed(channel, suite, state, cx.now));
        Ok(())
    }

    fn make_child(
        &mut self,
        index: usize,
        header: &Header,
        request: &Request<'_>,
        path: Path,
        cx: &mut Cx<'_>,
    ) -> Result<(), Refusal> {
        let sa = &self.sas[index];
        let is_busy = match &sa.active {
            Some(Active::Ike(_)) => true,
            Some(Active::FollowUp(follow)) => follow.is_for_ike(),
            _ => false,
        };
        if sa.state != SaState::Up || is_busy {
            return Err(Refusal::Error(NotifyType::TEMPORARY_FAILURE));
        }
        let old = request.rekey.map(|it| self.rekeyable(&it)).transpose()?;
        if let Some(Active::Child(attempt)) = &self.sas[index].active
            && attempt.rekeys == old
            && attempt.rival.is_some()
        {
            return Err(Refusal::Error(NotifyType::TEMPORARY_FAILURE));
        }
        // RFC 9370, section 2.2.4: whose series is under way goes on with it.
        if let Some(Active::FollowUp(follow)) = &self.sas[index].active
            && old.is_some()
            && follow.rekeys() == old
        {
            return Err(Refusal::Error(NotifyType::TEMPORARY_FAILURE));
        }
        let refused = if old.is_some() {
            cx.config.refuse_child_rekey
        } else {
            cx.config.refuse_new_child
        };
        if let Some(error) = refused {
            return Err(Refusal::Error(error));
        }
        let mut chosen = choose_child(cx.config, request.sa, request.ke.as_ref())?;
        let (suite, client_spi) = chosen.suite;
        let (behind, of_client) = match old.and_then(|spi| self.child(spi)) {
            Some(old) => (old.selectors.local.clone(), old.selectors.remote.clone()),
            None => self.selectors.clone(),
        };
        let (ts_i, ts_r) = request.ts.expect("traffic selectors for a Child SA");
        let selectors = Selectors {
            local: narrow(&ranges(ts_r), &behind),
            remote: narrow(&ranges(ts_i), &of_client),
        };
        if selectors.local.is_empty() || selectors.remote.is_empty() {
            return Err(Refusal::Error(NotifyType::TS_UNACCEPTABLE));
        }
        let answered = request
            .ke
            .filter(|_| suite.ke.is_some())
            .map(|ke| answer_ke(&ke, &mut cx.book.rng).map(|(public, shared)| (ke.method, public, shared)))
            .transpose()?;
        let own_spi = cx.book.esp_spi();
        chosen.proposal.spi = own_spi.0.to_be_bytes().to_vec().into();
        let nonces = Nonces {
            initiator: request.nonce.to_vec(),
            responder: cx.nonce(Side::Client),
        };
        let mut payloads = vec![
            Payload::Sa(vec![chosen.proposal]),
            Payload::Nonce(&nonces.responder),
        ];
        payloads.extend(answered.as_ref().map(|(method, public, _)| {
            Payload::Ke(Ke {
                method: *method,
                data: public,
            })
        }));
        let as_ts = |ranges: &[_]| ranges.iter().copied().map(Ts::from).collect();
        payloads.push(Payload::TsInitiator(as_ts(&selectors.remote)));
        payloads.push(Payload::TsResponder(as_ts(&selectors.local)));
        let remaining: VecDeque<KeMethod> = suite.additional.methods().collect();
        let link: [u8; 8] = cx.book.rng.bytes();
        if !remaining.is_empty() {
            payloads.push(Payload::Notify(Notify::new(
                NotifyType::ADDITIONAL_KEY_EXCHANGE,
                &link,
            )));
        }
        self.answer(index, header, &payloads, path, cx);

        let agreed = Agreed {
            initiator: Side::Client,
            suite,
            inbound: own_spi,
            outbound: client_spi,
            selectors,
            shared: answered.map(|(_, _, shared)| shared).into_iter().collect(),
        };
        if !remaining.is_empty() {
            if let Some(Active::Child(attempt)) = &mut self.sas[index].active
                && attempt.rekeys.is_some()
                && attempt.rekeys == old
            {
                attempt.pending_rival = Some(nonces.lowest().to_vec());
            }
            let making = Making::Child { agreed, old };
            self.pending = Some(Box::new(Pending::new(
                making,
                nonces,
                vec![],
                remaining,
                link,
                cx.now,
            )));
            return Ok(());
        }
        self.made_by_client(index, agreed, old, &nonces, cx);
        Ok(())
    }

    /// A Child SA that the client has made.
    pub(super) fn made_by_client(
        &mut self,
        index: usize,
        agreed: Agreed,
        old: Option<EspSpi>,
        nonces: &Nonces,
        cx: &Cx<'_>,
    ) {
        let own_spi = agreed.inbound;
        let keys = &self.sas[index].channel.keys;
        let mut child = Child::new(agreed, keys, nonces, cx.now);
        // RFC 7296, section 2.8: the client cannot receive on it before it has this answer.
        child.sends = old.is_none();
        child.unconfirmed = Some(self.sas[index].channel.own_spi());
        child.replaces = old;
        self.children.push(child);
        let Some(old) = old else { return };
        match &mut self.sas[index].active {
            Some(Active::Child(attempt)) if attempt.rekeys == Some(old) => {
                attempt.rival = Some((own_spi, nonces.lowest().to_vec()));
            }
            _ => {
                if let Some(old) = self.child(old).filter(|old| old.is_live()) {
                    old.await_delete(cx.now);
                }
            }
        }
    }

    /// The Child SA that the client wants to rekey, by the gateway's SPI, if it may.
    fn rekeyable(&mut self, rekey: &Notify<'_>) -> Result<EspSpi, Refusal> {
        let unknown = Refusal::Error(NotifyType::CHILD_SA_NOT_FOUND);
        if rekey.protocol != ProtocolId::ESP {
            return Err(unknown);
        }
        let child = self.child_of_client(rekey.spi).ok_or(unknown)?;
        match child.state {
            ChildState::Up | ChildState::Rekeying => Ok(child.spi()),
            ChildState::Awaiting | ChildState::Closing => Err(Refusal::Error(NotifyType::TEMPORARY_FAILURE)),
            ChildState::Closed => Err(unknown),
        }
    }
}
