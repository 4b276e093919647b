//! CREATE_CHILD_SA for a Child SA: in place of another or anew, begun by us or by the gateway or by both at once
//! (RFC 7296, sections 1.3.1, 1.3.3, 2.8.1, 2.9.2 and 2.25.1).

use std::sync::Arc;

use super::channel::Opened;
use super::child::{ChildSa, new_spi, ranges};
use super::children::ChildState;
use super::established::{Doing, End, Established, notifies};
use super::followup::{Pending, PendingSubject};
use super::keys::{Nonces, Role, SharedSecrets};
use super::{Broken, Cx, News, Renewal, error_notify, notify};
use crate::command::{Cause, Initiator, Rekey, RekeyKind};
use crate::crypto::{KeyExchange, Prf, Secret};
use crate::esp::Selectors;
use crate::profile::ChildConfig;
use crate::proposal::{self, EspProposal, EspSuite};
use crate::timer::Instant;
use crate::wire::iana::{ExchangeType, KeMethod, NotifyType, ProtocolId};
use crate::wire::{EspSpi, Ke, Notify, Payload, Proposal, TrafficSelector, Ts};

/// How many times one rekeying is begun again in another way: with other methods, or without key exchange.
const MAX_TRIES: u8 = 4;

/// How many Deletes of unknown children are remembered.
const MAX_DELETED: usize = 8;

/// Whether Child SAs are replaced with a fresh key exchange (perfect forward secrecy). The first Child SA never has one,
/// so the two sides find out at the first rekeying whether they agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pfs {
    /// With it; without, if the gateway does not want it.
    Preferred,
    /// With it, or not at all.
    Required,
    /// Without; with it, if the gateway does not do without.
    Unwanted,
}

impl Pfs {
    pub(super) fn wanted(child: &ChildConfig) -> Self {
        let has_method = |proposal: &EspProposal| !proposal.key_exchanges.is_empty();
        if child.require_pfs {
            Self::Required
        } else if child.proposals.iter().any(has_method) {
            Self::Preferred
        } else {
            Self::Unwanted
        }
    }

    /// The other way, where the profile leaves it open.
    fn other(self) -> Option<Self> {
        match self {
            Self::Preferred => Some(Self::Unwanted),
            Self::Unwanted => Some(Self::Preferred),
            Self::Required => None,
        }
    }
}

/// Our CREATE_CHILD_SA request.
pub(super) struct MakeChild {
    /// The inbound SPI of the child that it replaces.
    replaces: Option<EspSpi>,
    /// The new child's.
    spi: EspSpi,
    nonce: [u8; 32],
    exchange: Option<KeyExchange>,
    offer: Vec<EspProposal>,
    selectors: Arc<Selectors>,
    /// The child by which the gateway meanwhile replaced the same one.
    rival: Option<Rival>,
    /// What the gateway deleted meanwhile that we do not know: it may be what its answer, still on its way, is about.
    deleted: Vec<[u8; 4]>,
    pfs: Pfs,
    tries: u8,
    began: Instant,
}

/// What the gateway made of the child that we are replacing.
struct Rival {
    spi: EspSpi,
    /// The lower of its two nonces.
    lowest: Vec<u8>,
}

impl MakeChild {
    /// Whether it replaces the child with this inbound SPI.
    fn replaces(&self, spi: EspSpi) -> bool {
        self.replaces == Some(spi)
    }

    /// The inbound SPI of the child that it replaces.
    pub(super) fn replaced(&self) -> Option<EspSpi> {
        self.replaces
    }

    /// The gateway deleted a child that we do not know.
    pub(super) fn note_deleted(&mut self, spi: &[u8]) {
        if let Ok(spi) = spi.try_into()
            && self.deleted.len() < MAX_DELETED
        {
            self.deleted.push(spi);
        }
    }
}

/// What a CREATE_CHILD_SA message for a child carries.
struct Parts<'a> {
    proposals: &'a [Proposal<'a>],
    nonce: &'a [u8],
    ke: Option<Ke<'a>>,
    initiator: Vec<TrafficSelector>,
    responder: Vec<TrafficSelector>,
}

impl<'a> Parts<'a> {
    fn read(payloads: &'a [Payload<'a>]) -> Result<Self, Cause> {
        let (mut sa, mut nonce, mut ke, mut initiator, mut responder) = (None, None, None, None, None);
        for payload in payloads {
            match payload {
                Payload::Sa(proposals) => sa = Some(proposals),
                Payload::Nonce(value) => nonce = Some(*value),
                Payload::Ke(value) => ke = Some(*value),
                Payload::TsInitiator(selectors) => initiator = Some(ranges(selectors)?),
                Payload::TsResponder(selectors) => responder = Some(ranges(selectors)?),
                _ => {}
            }
        }
        match (sa, nonce, initiator, responder) {
            (Some(proposals), Some(nonce), Some(initiator), Some(responder)) => Ok(Self {
                proposals,
                nonce,
                ke,
                initiator,
                responder,
            }),
            _ => Err(broken("SA, Nonce, TSi or TSr is missing")),
        }
    }
}

fn broken(what: &str) -> Cause {
    Cause::ChildProtocol(format!("CREATE_CHILD_SA: {what}"))
}

impl Established {
    /// Asks for a child in place of the one with this inbound SPI, or for one anew.
    pub(super) fn make_child(&mut self, replaces: Option<EspSpi>, cx: &mut Cx<'_>) -> Result<(), End> {
        let method = match self.pfs {
            Pfs::Unwanted => None,
            Pfs::Preferred | Pfs::Required => self.child_method(),
        };
        self.ask_for_child(replaces, method, self.pfs, 1, cx.now, cx)
    }

    /// The key exchange method to begin with: the one that the gateway took last, if the profile has it.
    fn child_method(&self) -> Option<KeMethod> {
        let last = self.children.current().and_then(|child| child.sa.suite.ke);
        let offered = |method: &KeMethod| {
            let proposals = self.config.profile.child.proposals.iter();
            proposals
                .clone()
                .any(|proposal| proposal.key_exchanges.contains(method))
        };
        last.filter(offered)
            .or_else(|| Some(self.suite.ke).filter(offered))
            .or_else(|| {
                let mut proposals = self.config.profile.child.proposals.iter();
                proposals.find_map(|proposal| proposal.key_exchanges.first().copied())
            })
            // The profile names none, but the gateway insists on one.
            .or(Some(self.suite.ke))
    }

    fn ask_for_child(
        &mut self,
        replaces: Option<EspSpi>,
        method: Option<KeMethod>,
        pfs: Pfs,
        tries: u8,
        began: Instant,
        cx: &mut Cx<'_>,
    ) -> Result<(), End> {
        let unusable = |error: crate::crypto::CryptoError| End::Tell(Cause::ChildProtocol(error.to_string()));
        let exchange = method
            .map(|method| KeyExchange::generate(method, cx.rng))
            .transpose();
        let exchange = exchange.map_err(unusable)?;
        let offer = self.child_offer(method);
        let selectors = match replaces.and_then(|spi| self.children.ours(spi)) {
            Some(child) => Arc::clone(&child.sa.selectors),
            None => Arc::clone(&self.selectors),
        };
        let making = MakeChild {
            replaces,
            spi: new_spi(cx.rng),
            nonce: cx.rng.bytes(),
            exchange,
            offer,
            selectors,
            rival: None,
            deleted: Vec::new(),
            pfs,
            tries,
            began,
        };
        let old = replaces.map(|spi| spi.0.to_be_bytes());
        let mut payloads = Vec::with_capacity(6);
        if let Some(spi) = &old {
            payloads.push(Payload::Notify(Notify {
                protocol: ProtocolId::ESP,
                spi,
                kind: NotifyType::REKEY_SA,
                data: &[],
            }));
        }
        payloads.push(Payload::Sa(proposal::esp_offer(
            &making.offer,
            making.spi,
            method.is_some(),
        )));
        payloads.push(Payload::Nonce(&making.nonce));
        payloads.extend(making.exchange.as_ref().map(|exchange| {
            Payload::Ke(Ke {
                method: exchange.method(),
                data: exchange.public(),
            })
        }));
        payloads.push(Payload::TsInitiator(wire_selectors(&making.selectors.local)));
        payloads.push(Payload::TsResponder(wire_selectors(&making.selectors.remote)));
        self.channel
            .request(ExchangeType::CREATE_CHILD_SA, &payloads, cx)
            .map_err(|error| End::Tell(super::unsendable(&error)))?;
        self.doing = Doing::MakeChild(Box::new(making));
        Ok(())
    }

    /// What we offer: what the profile does, what is in use first.
    fn child_offer(&self, method: Option<KeMethod>) -> Vec<EspProposal> {
        let mut offer = self.config.profile.child.proposals.clone();
        for proposal in &mut offer {
            match method {
                None => {
                    proposal.key_exchanges.clear();
                    proposal.additional.clear();
                }
                // The method of the KE payload comes first (RFC 7296, section 1.3).
                Some(method) => {
                    proposal.key_exchanges.retain(|other| *other != method);
                    proposal.key_exchanges.insert(0, method);
                }
            }
        }
        offer.dedup();
        if let Some(child) = self.children.current() {
            let in_use = |proposal: &EspProposal| !proposal.offers(&child.sa.suite);
            offer.sort_by_key(in_use);
        }
        offer
    }

    /// The gateway's answer to our request.
    pub(super) fn child_answered(
        &mut self,
        making: MakeChild,
        payloads: &[Payload<'_>],
        cx: &mut Cx<'_>,
    ) -> Result<(), End> {
        let complete = payloads.iter().any(|payload| matches!(payload, Payload::Sa(_)));
        if let Some(error) = error_notify(payloads).filter(|_| !complete) {
            return self.child_refused(making, error, payloads, cx);
        }
        let answer = match self.read_child_answer(&making, payloads) {
            Ok(answer) => answer,
            Err(cause) => {
                // The gateway has a child that we cannot use, and our state and its are no longer the same.
                tracing::warn!(?cause, "the gateway's answer to a rekeying is not acceptable");
                self.renew(Renewal::Refused(cause), cx);
                self.postpone(making.replaces, cx);
                return Ok(());
            }
        };
        if answer.suite.additional.methods().next().is_none() {
            return self.child_made(making, answer, cx);
        }
        let loses = |rival: &Rival| answer.nonces.lowest() < rival.lowest.as_slice();
        if making.rival.as_ref().is_some_and(loses) {
            // There is nothing to delete yet, so it is just not gone on with (RFC 9370, section 2.2.4).
            self.leave_to_gateway();
            return Ok(());
        }
        self.follow_child(making, answer, payloads, cx)
    }

    /// All key exchanges of our request are over.
    pub(super) fn child_made(
        &mut self,
        making: MakeChild,
        answer: ChildAnswer,
        cx: &mut Cx<'_>,
    ) -> Result<(), End> {
        let sa = ChildSa::make(
            &self.channel.keys,
            answer.shared.as_ref(),
            &answer.nonces,
            Role::Initiator,
            answer.suite,
            (making.spi, answer.outbound),
            Arc::clone(&making.selectors),
        );
        let sa = sa.map_err(|error| End::Tell(Cause::from(Broken::from(error))))?;
        self.setbacks = 0;
        self.pfs = making.pfs;
        let (spi, nonces) = (sa.inbound_spi, answer.nonces);
        let rekey = Rekey {
            kind: RekeyKind::ChildSa,
            by: Initiator::Client,
            suite: sa.suite.to_string(),
            old_spi: making.replaces.map(|spi| spi.to_string()),
            new_spi: spi.to_string(),
            took: Some(cx.now.since(making.began)),
        };
        let gone = making.deleted.contains(&sa.outbound_spi.0.to_be_bytes());
        let new = self.new_child(sa, cx);
        self.children.add(new);
        if gone {
            // Its Delete overtook the answer that made it; for the gateway the old one is replaced all the same.
            self.children.drain(spi, cx.now);
            if let Some(old) = making.replaces.and_then(|old| self.children.ours(old)) {
                old.state = ChildState::Condemned;
            }
            self.setbacks = self.setbacks.saturating_add(1);
            self.remake_at = self.remake_at.max(cx.now);
            return Ok(());
        }
        let ours = nonces.lowest();
        let rival = making.rival.filter(|rival| {
            self.children.ours(rival.spi).is_some()
                || self
                    .pending
                    .as_ref()
                    .is_some_and(|pending| pending.makes(rival.spi))
        });
        match rival {
            // The one with the lowest of all four nonces is one too many; whoever asked for it deletes it.
            Some(rival) if ours < rival.lowest.as_slice() => {
                if let Some(child) = self.children.ours(spi) {
                    child.state = ChildState::Condemned;
                }
                return Ok(());
            }
            Some(rival) => self.children.replaced(rival.spi, cx.now),
            None => {}
        }
        if let Some(old) = making.replaces.and_then(|old| self.children.ours(old)) {
            old.state = ChildState::Condemned;
        }
        self.children.send_with(spi);
        cx.news.push_back(News::Rekeyed(rekey));
        Ok(())
    }

    fn read_child_answer(&self, making: &MakeChild, payloads: &[Payload<'_>]) -> Result<ChildAnswer, Cause> {
        let parts = Parts::read(payloads)?;
        let with_ke = making.exchange.is_some();
        let (suite, outbound) = proposal::select_esp(&making.offer, parts.proposals, with_ke)
            .map_err(|error| broken(&error.to_string()))?;
        let nonces = Nonces {
            initiator: making.nonce.to_vec(),
            responder: check_nonce(self.suite.prf, parts.nonce, &making.nonce)?,
        };
        let shared = match (&making.exchange, parts.ke) {
            (None, None) => None,
            (Some(exchange), Some(ke)) if suite.ke == Some(ke.method) && ke.method == exchange.method() => {
                Some(agree(exchange, &ke)?)
            }
            _ => return Err(broken("the key exchange is not what was chosen")),
        };
        let wanted = &making.selectors;
        if !same(&parts.initiator, &wanted.local) || !same(&parts.responder, &wanted.remote) {
            return Err(broken("the gateway narrows the traffic selectors when rekeying"));
        }
        Ok(ChildAnswer {
            suite,
            outbound,
            nonces,
            shared,
        })
    }

    /// The gateway makes no child of our request.
    fn child_refused(
        &mut self,
        making: MakeChild,
        error: NotifyType,
        payloads: &[Payload<'_>],
        cx: &mut Cx<'_>,
    ) -> Result<(), End> {
        // The gateway has replaced it meanwhile: whatever it says of the old one, there is a new one.
        if making.rival.is_some() {
            self.leave_to_gateway();
            return Ok(());
        }
        let again = making.tries < MAX_TRIES;
        match error {
            NotifyType::INVALID_KE_PAYLOAD if again => {
                if let Some(method) = self.other_method(&making, payloads) {
                    let (pfs, tries) = (making.pfs, making.tries + 1);
                    return self.ask_for_child(making.replaces, method, pfs, tries, making.began, cx);
                }
            }
            // Old gateways say this of a key exchange that they want, do not want, or want with another method.
            NotifyType::NO_PROPOSAL_CHOSEN if making.tries == 1 => {
                if let Some(pfs) = making.pfs.other() {
                    let method = match pfs {
                        Pfs::Unwanted => None,
                        Pfs::Preferred | Pfs::Required => self.child_method(),
                    };
                    return self.ask_for_child(making.replaces, method, pfs, 2, making.began, cx);
                }
            }
            NotifyType::CHILD_SA_NOT_FOUND => {
                // RFC 7296, section 2.25: what the gateway does not know is of no use to us either.
                match making.replaces {
                    Some(spi) => {
                        self.children.drain(spi, cx.now);
                        self.remake_at = cx.now;
                        // The suspicion was right; the next one is looked into as soon.
                        self.silent = None;
                    }
                    None => self.postpone(None, cx),
                }
                return Ok(());
            }
            NotifyType::TEMPORARY_FAILURE => {
                self.postpone(making.replaces, cx);
                return Ok(());
            }
            _ => {}
        }
        let cause = super::child::refusal(error).unwrap_or(Cause::ChildRefused(error));
        tracing::warn!(%error, "the gateway refuses to rekey the Child SA");
        self.renew(Renewal::Refused(cause), cx);
        self.postpone(making.replaces, cx);
        Ok(())
    }

    /// The method that INVALID_KE_PAYLOAD asks for: one that we have, and another than was sent. Zero is none.
    fn other_method(&self, making: &MakeChild, payloads: &[Payload<'_>]) -> Option<Option<KeMethod>> {
        let data = notifies(payloads, NotifyType::INVALID_KE_PAYLOAD).next()?.data;
        let method = KeMethod(u16::from_be_bytes(*data.as_array::<2>()?));
        let sent = making.exchange.as_ref().map(KeyExchange::method);
        if method == KeMethod(0) {
            return (sent.is_some() && making.pfs != Pfs::Required).then_some(None);
        }
        let offered = making
            .offer
            .iter()
            .any(|proposal| proposal.key_exchanges.contains(&method));
        (offered && sent != Some(method)).then_some(Some(method))
    }

    /// Tries the same again later.
    pub(super) fn postpone(&mut self, replaces: Option<EspSpi>, cx: &mut Cx<'_>) {
        let later = self.put_off(cx);
        match replaces.and_then(|spi| self.children.ours(spi)) {
            Some(child) => child.rekey_at = later,
            None => self.remake_at = later,
        }
    }

    /// The gateway asks for a child: in place of one, or anew.
    pub(super) fn serve_child(&mut self, opened: &Opened, payloads: &[Payload<'_>], cx: &mut Cx<'_>) {
        let rekeyed = notifies(payloads, NotifyType::REKEY_SA).next();
        let refusal = match rekeyed {
            Some(notify) => self.refuse_rekey(notify),
            // What we have is what we want; but a gateway may be quicker than we to replace a child that is gone.
            None if self.is_replacing() => Some(NotifyType::TEMPORARY_FAILURE),
            None if self.children.is_alive() => Some(NotifyType::NO_ADDITIONAL_SAS),
            None => None,
        };
        if let Some(error) = refusal {
            let mut about = Notify::new(error, &[]);
            if let (NotifyType::CHILD_SA_NOT_FOUND, Some(notify)) = (error, rekeyed) {
                about.spi = notify.spi;
                // Only a child's protocol is repeated: whatever else stands there is not ours to echo.
                about.protocol = ProtocolId::ESP;
            }
            self.answer(opened, &[Payload::Notify(about)], cx);
            return;
        }
        let old = rekeyed.and_then(|notify| Some(self.children.theirs(notify.spi)?.sa.inbound_spi));
        let Granted {
            answer,
            public,
            pending,
        } = match self.grant_child(old, payloads, cx) {
            Ok(granted) => granted,
            Err(Refusal(kind, data)) => return self.answer(opened, &[notify(kind, &data)], cx),
        };
        let PendingSubject::Child { spis, selectors, .. } = &pending.subject else {
            return;
        };
        if let (Doing::MakeChild(making), Some(old)) = (&mut self.doing, old)
            && making.replaces(old)
        {
            making.rival = Some(Rival {
                spi: spis.0,
                lowest: pending.nonces.lowest().to_vec(),
            });
        }
        let mut reply = vec![
            Payload::Sa(vec![answer]),
            Payload::Nonce(&pending.nonces.responder),
        ];
        reply.extend(public.as_ref().map(|(method, data)| {
            Payload::Ke(Ke {
                method: *method,
                data,
            })
        }));
        // The exchange's initiator is the gateway.
        reply.push(Payload::TsInitiator(wire_selectors(&selectors.remote)));
        reply.push(Payload::TsResponder(wire_selectors(&selectors.local)));
        let link = pending.link();
        if !pending.is_over() {
            reply.push(notify(NotifyType::ADDITIONAL_KEY_EXCHANGE, &link));
        }
        self.answer(opened, &reply, cx);
        self.go_on_with(pending, cx);
    }

    /// Puts a child that the gateway asked for beside the one that it replaces.
    pub(super) fn adopt(&mut self, sa: ChildSa, old: Option<EspSpi>, cx: &mut Cx<'_>) {
        let rekey = Rekey {
            kind: RekeyKind::ChildSa,
            by: Initiator::Gateway,
            suite: sa.suite.to_string(),
            old_spi: old.map(|spi| spi.to_string()),
            new_spi: sa.inbound_spi.to_string(),
            took: None,
        };
        let new = self.new_child(sa, cx);
        self.children.add(new);
        if let Some(old) = old {
            // Ours go out on the old one until the gateway shows that it is ready: it may not have our answer yet.
            self.children.replaced(old, cx.now);
        }
        cx.news.push_back(News::Rekeyed(rekey));
    }

    /// Why a rekeying by the gateway cannot be done now (RFC 7296, section 2.25).
    fn refuse_rekey(&mut self, rekeyed: &Notify<'_>) -> Option<NotifyType> {
        if self.is_replacing() {
            return Some(NotifyType::TEMPORARY_FAILURE);
        }
        let Some(child) = self.children.theirs(rekeyed.spi) else {
            // It may be what the gateway made of our request, whose answer is still on its way.
            return Some(match self.doing {
                Doing::MakeChild(_) | Doing::FollowUp(_) => NotifyType::TEMPORARY_FAILURE,
                _ => NotifyType::CHILD_SA_NOT_FOUND,
            });
        };
        let (spi, live) = (child.sa.inbound_spi, child.state == ChildState::Live);
        // What is half made already is not made a second time (RFC 9370, section 2.2.4).
        let busy = match &self.doing {
            Doing::DeleteChildren(spis) => spis.contains(&spi),
            Doing::FollowUp(_) => true,
            _ => false,
        };
        (busy || !live).then_some(NotifyType::TEMPORARY_FAILURE)
    }

    /// The IKE SA is being replaced, by us or by the gateway.
    pub(super) fn is_replacing(&self) -> bool {
        let ours = match &self.doing {
            Doing::RekeyIke(_) => true,
            Doing::FollowUp(follow) => follow.is_for_ike(),
            _ => false,
        };
        ours || self.heir.is_some() || self.pending.as_ref().is_some_and(|pending| pending.is_for_ike())
    }

    fn grant_child(
        &mut self,
        old: Option<EspSpi>,
        payloads: &[Payload<'_>],
        cx: &mut Cx<'_>,
    ) -> Result<Granted, Refusal> {
        let syntax = |_| Refusal(NotifyType::INVALID_SYNTAX, Vec::new());
        let parts = Parts::read(payloads).map_err(syntax)?;
        let (selectors, present) = match old.and_then(|spi| self.children.ours(spi)) {
            Some(child) => (Arc::clone(&child.sa.selectors), child.sa.suite),
            None => (Arc::clone(&self.selectors), self.child_suite),
        };
        // Never less than before, and never more (RFC 7296, section 2.9.2).
        if !covers(&parts.initiator, &selectors.remote) || !covers(&parts.responder, &selectors.local) {
            return Err(Refusal(NotifyType::TS_UNACCEPTABLE, Vec::new()));
        }
        let chosen = proposal::choose_esp(
            &self.config.profile.child.proposals,
            &present,
            parts.ke.map(|ke| ke.method),
            self.config.profile.child.require_pfs,
            parts.proposals,
        )
        .ok_or(Refusal(NotifyType::NO_PROPOSAL_CHOSEN, Vec::new()))?;
        let (public, shared) = match (chosen.suite.ke, parts.ke) {
            (None, _) => (None, None),
            (Some(method), Some(ke)) if ke.method == method => {
                let (public, first) = KeyExchange::respond(method, ke.data, cx.rng)
                    .map_err(|_| Refusal(NotifyType::INVALID_SYNTAX, Vec::new()))?;
                let shared = SharedSecrets {
                    first,
                    additional: Vec::new(),
                };
                (Some((method, public)), Some(shared))
            }
            (Some(method), _) => {
                let wanted = method.0.to_be_bytes().to_vec();
                return Err(Refusal(NotifyType::INVALID_KE_PAYLOAD, wanted));
            }
        };
        let own: [u8; 32] = cx.rng.bytes();
        let nonces = Nonces {
            initiator: check_nonce(self.suite.prf, parts.nonce, &own).map_err(syntax)?,
            responder: own.to_vec(),
        };
        let spi = new_spi(cx.rng);
        let subject = PendingSubject::Child {
            old,
            suite: chosen.suite,
            spis: (spi, chosen.spi),
            selectors,
        };
        let remaining = chosen.suite.additional.methods().collect();
        Ok(Granted {
            answer: chosen.to_wire(spi),
            public,
            pending: Pending::new(subject, nonces, shared, remaining, cx),
        })
    }
}

/// What the gateway answered to our request.
pub(super) struct ChildAnswer {
    pub(super) suite: EspSuite,
    outbound: EspSpi,
    nonces: Nonces,
    shared: Option<SharedSecrets>,
}

impl ChildAnswer {
    /// The secret of the next additional key exchange.
    pub(super) fn add(&mut self, secret: Secret) {
        if let Some(shared) = &mut self.shared {
            shared.additional.push(secret);
        }
    }
}

/// What we grant of the gateway's request.
struct Granted {
    answer: Proposal<'static>,
    /// Our part of the key exchange.
    public: Option<(KeMethod, Vec<u8>)>,
    pending: Pending,
}

/// The error to answer with, and its data.
struct Refusal(NotifyType, Vec<u8>);

/// A nonce of the gateway's: long enough (RFC 7296, section 2.10), and not our own.
pub(super) fn check_nonce(prf: Prf, theirs: &[u8], ours: &[u8]) -> Result<Vec<u8>, Cause> {
    if theirs.len() * 2 < prf.key_len() {
        return Err(broken("the nonce is too short for the PRF"));
    }
    if theirs == ours {
        return Err(broken("our own nonce came back"));
    }
    Ok(theirs.to_vec())
}

pub(super) fn agree(exchange: &KeyExchange, ke: &Ke<'_>) -> Result<SharedSecrets, Cause> {
    let first = exchange
        .agree(ke.data)
        .map_err(|error| Cause::from(Broken::from(error)))?;
    Ok(SharedSecrets {
        first,
        additional: Vec::new(),
    })
}

fn wire_selectors(selectors: &[TrafficSelector]) -> Vec<Ts<'static>> {
    selectors.iter().copied().map(Ts::from).collect()
}

/// Whether every one of `inner` lies within one of `outer`.
fn covers(outer: &[TrafficSelector], inner: &[TrafficSelector]) -> bool {
    inner
        .iter()
        .all(|inner| outer.iter().any(|outer| outer.contains(inner)))
}

fn same(one: &[TrafficSelector], other: &[TrafficSelector]) -> bool {
    covers(one, other) && covers(other, one)
}
