//! Replacing the IKE SA, begun by us or by the gateway or by both at once (RFC 7296, sections 1.3.2, 2.8.2, 2.18 and
//! 2.25.2).
//!
//! Child SAs belong to [`Established`] and not to one IKE SA, so the new one inherits them by being the present one.

use std::time::Duration;

use super::channel::{Channel, Opened};
use super::established::{Doing, End, Established, early, grace, notifies};
use super::followup::{Pending, PendingSubject};
use super::keys::{Nonces, Role, SharedSecrets, Spis};
use super::make_child::{agree, check_nonce};
use super::{Broken, Cx, News, Renewal, delete_ike, error_notify, notify};
use crate::command::{Cause, Initiator, Path, Rekey, RekeyKind};
use crate::crypto::{CryptoError, KeyExchange};
use crate::proposal::{self, IkeProposal, IkeSuite};
use crate::rng::Rng;
use crate::timer::Instant;
use crate::wire::iana::{ExchangeType, KeMethod, NotifyType, ProtocolId};
use crate::wire::{Delete, Header, IkeSpi, Ke, Payload, Proposal};

/// How long the gateway has to delete an IKE SA that it has replaced, or to confirm our Delete of one.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a deleted IKE SA still answers repeated requests.
const ECHO: Duration = Duration::from_secs(15);
/// No more are kept, whatever the gateway does.
const MAX_OLD: usize = 8;
/// How many times one rekeying is begun again with another method.
const MAX_TRIES: u8 = 3;

/// Our request for a new IKE SA.
pub(super) struct RekeyIke {
    spi: IkeSpi,
    nonce: [u8; 32],
    exchange: KeyExchange,
    offer: Vec<IkeProposal>,
    tries: u8,
    began: Instant,
}

/// An IKE SA that the gateway made to replace the present one. It takes over when the gateway uses it or deletes the
/// present one.
pub(super) struct Heir {
    pub(super) channel: Channel,
    suite: IkeSuite,
    /// The lower nonce of its exchange.
    lowest: Vec<u8>,
    /// If the gateway has not deleted the present one by then, we do.
    pub(super) until: Instant,
}

/// An IKE SA that was replaced.
pub(super) struct Old {
    pub(super) channel: Channel,
    fate: Fate,
    until: Instant,
    /// Our own rekeying of it, unanswered when the gateway's took effect, and the lower nonce of the gateway's.
    rekeying: Option<(Box<RekeyIke>, Vec<u8>)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// We are to delete it, once its window is free.
    Ours,
    /// Our Delete is on its way.
    Told,
    /// The gateway deletes it.
    Theirs,
    /// It is deleted and only answers repeated requests.
    Gone,
}

impl Heir {
    pub(super) fn new(channel: Channel, suite: IkeSuite, nonces: &Nonces, now: Instant) -> Self {
        Self {
            channel,
            suite,
            lowest: nonces.lowest().to_vec(),
            until: now + PATIENCE,
        }
    }
}

impl Old {
    fn new(channel: Channel, fate: Fate, now: Instant) -> Self {
        let patience = if fate == Fate::Gone { ECHO } else { PATIENCE };
        Self {
            channel,
            fate,
            until: now + patience,
            rekeying: None,
        }
    }

    /// When there is something to do for it.
    pub(super) fn due_at(&self) -> Instant {
        match self.channel.poll_timeout(Duration::MAX) {
            Some((due, _)) => due.min(self.until),
            None => self.until,
        }
    }

    /// Sends our Delete, if it is for us to send and the window is free.
    fn tell(&mut self, cx: &mut Cx<'_>) {
        if self.fate == Fate::Ours && self.channel.is_free() {
            self.fate = Fate::Told;
            let sent = self
                .channel
                .request(ExchangeType::INFORMATIONAL, &[delete_ike()], cx);
            if sent.is_err() {
                self.fate = Fate::Gone;
            }
        }
    }
}

impl RekeyIke {
    /// What the answer on `old`, the one to be replaced, says.
    fn read_answer(&self, old: &Channel, payloads: &[Payload<'_>]) -> Result<IkeAnswer, Cause> {
        let broken = |what: &str| Cause::Protocol(format!("CREATE_CHILD_SA: {what}"));
        let parts = Parts::read(payloads).ok_or_else(|| broken("SA, Nonce or KE is missing"))?;
        let suite =
            proposal::select_ike(&self.offer, parts.proposals).map_err(|error| broken(&error.to_string()))?;
        let responder = parts
            .proposals
            .first()
            .and_then(|proposal| <[u8; 8]>::try_from(&*proposal.spi).ok())
            .filter(|spi| *spi != [0; 8])
            .ok_or_else(|| broken("the new SPI is none"))?;
        if suite.ke != parts.ke.method || suite.ke != self.exchange.method() {
            return Err(broken("the key exchange is not of the chosen method"));
        }
        let nonces = Nonces {
            initiator: self.nonce.to_vec(),
            responder: check_nonce(old.keys.prf, parts.nonce, &self.nonce)?,
        };
        let spis = Spis {
            initiator: self.spi,
            responder: IkeSpi(responder),
        };
        let shared = agree(&self.exchange, &parts.ke)?;
        Ok(IkeAnswer {
            suite,
            spis,
            nonces,
            shared,
        })
    }
}

impl RekeyIke {
    /// The SA that the gateway has made to replace `old`, which nobody wants any more: it is deleted.
    pub(super) fn undo(&self, old: &Channel, payloads: &[Payload<'_>], cx: &mut Cx<'_>) {
        let Ok(answer) = self.read_answer(old, payloads) else {
            return;
        };
        // With more key exchanges to come there is no SA yet (RFC 9370, section 2.2.4).
        if answer.suite.additional.methods().next().is_some() {
            return;
        }
        if let Ok(mut made) = answer.make(old, cx.now) {
            made.farewell(ExchangeType::INFORMATIONAL, &[delete_ike()], cx);
        }
    }
}

/// What the gateway answered to our request.
pub(super) struct IkeAnswer {
    pub(super) suite: IkeSuite,
    spis: Spis,
    nonces: Nonces,
    pub(super) shared: SharedSecrets,
}

impl IkeAnswer {
    /// The SA that replaces `old`.
    fn make(&self, old: &Channel, now: Instant) -> Result<Channel, CryptoError> {
        let keys = old.keys.derive_rekeyed(
            &self.suite,
            &self.shared,
            &self.nonces,
            self.spis,
            Role::Initiator,
        )?;
        Ok(old.successor(self.spis, keys, now))
    }
}

/// What a CREATE_CHILD_SA message for an IKE SA carries.
struct Parts<'a> {
    proposals: &'a [Proposal<'a>],
    nonce: &'a [u8],
    ke: Ke<'a>,
}

impl<'a> Parts<'a> {
    fn read(payloads: &'a [Payload<'a>]) -> Option<Self> {
        let (mut sa, mut nonce, mut ke) = (None, None, None);
        for payload in payloads {
            match payload {
                Payload::Sa(proposals) => sa = Some(proposals),
                Payload::Nonce(value) => nonce = Some(*value),
                Payload::Ke(value) => ke = Some(*value),
                _ => {}
            }
        }
        Some(Self {
            proposals: sa?,
            nonce: nonce?,
            ke: ke?,
        })
    }
}

impl Established {
    /// Asks for a new IKE SA, with another key exchange method than the present one's if `method` says so.
    pub(super) fn rekey_ike(&mut self, method: Option<KeMethod>, cx: &mut Cx<'_>) -> Result<(), End> {
        self.ask_for_ike(method.unwrap_or(self.suite.ke), 1, cx.now, cx)
    }

    fn ask_for_ike(
        &mut self,
        method: KeMethod,
        tries: u8,
        began: Instant,
        cx: &mut Cx<'_>,
    ) -> Result<(), End> {
        let exchange = KeyExchange::generate(method, cx.rng)
            .map_err(|error| End::Tell(Cause::Protocol(error.to_string())))?;
        let mut offer = self.config.profile.ike.proposals.clone();
        for proposal in &mut offer {
            proposal.prefer(method);
        }
        offer.sort_by_key(|proposal| !proposal.offers(&self.suite));
        let rekeying = RekeyIke {
            spi: new_spi(cx.rng),
            nonce: cx.rng.bytes(),
            exchange,
            offer,
            tries,
            began,
        };
        let payloads = [
            Payload::Sa(proposal::ike_offer(&rekeying.offer, &rekeying.spi.0)),
            Payload::Nonce(&rekeying.nonce),
            Payload::Ke(Ke {
                method,
                data: rekeying.exchange.public(),
            }),
        ];
        self.channel
            .request(ExchangeType::CREATE_CHILD_SA, &payloads, cx)
            .map_err(|error| End::Tell(super::unsendable(&error)))?;
        self.doing = Doing::RekeyIke(Box::new(rekeying));
        Ok(())
    }

    /// The gateway's answer to our request.
    pub(super) fn ike_answered(
        &mut self,
        rekeying: RekeyIke,
        payloads: &[Payload<'_>],
        cx: &mut Cx<'_>,
    ) -> Result<(), End> {
        let complete = payloads.iter().any(|payload| matches!(payload, Payload::Sa(_)));
        if let Some(error) = error_notify(payloads).filter(|_| !complete) {
            return self.ike_refused(&rekeying, error, payloads, cx);
        }
        let answer = match rekeying.read_answer(&self.channel, payloads) {
            Ok(answer) => answer,
            Err(cause) => {
                // The gateway has an IKE SA that we do not have: what we have may be taken from us at any time.
                tracing::warn!(
                    ?cause,
                    "the gateway's answer to a rekeying of the IKE SA is not acceptable"
                );
                self.renew(Renewal::Refused(cause), cx);
                self.rekey_at = self.put_off(cx);
                return Ok(());
            }
        };
        if answer.suite.additional.methods().next().is_none() {
            return self.ike_made(&rekeying, answer, cx);
        }
        let rival = self.heir.as_ref().map(|heir| heir.lowest.as_slice());
        let rival = rival.or_else(|| {
            let pending = self.pending.as_ref().filter(|pending| pending.is_for_ike());
            pending.map(|pending| pending.nonces.lowest())
        });
        if rival.is_some_and(|rival| answer.nonces.lowest() < rival) {
            // There is nothing to delete yet, so it is just not gone on with (RFC 9370, section 2.2.4).
            self.leave_to_gateway();
            return Ok(());
        }
        self.follow_ike(rekeying, answer, payloads, cx)
    }

    /// All key exchanges of our request are over.
    pub(super) fn ike_made(
        &mut self,
        rekeying: &RekeyIke,
        answer: IkeAnswer,
        cx: &mut Cx<'_>,
    ) -> Result<(), End> {
        let (suite, lowest) = (answer.suite, answer.nonces.lowest().to_vec());
        let channel = answer
            .make(&self.channel, cx.now)
            .map_err(|error| End::Tell(Cause::from(Broken::from(error))))?;
        self.setbacks = 0;
        self.pending.take_if(|pending| pending.is_for_ike());
        match self.heir.take() {
            // Of the two new ones, that with the lowest nonce is one too many; its initiator deletes it, and that of
            // the other one the old one.
            Some(heir) if lowest < heir.lowest => {
                self.bury(channel, Fate::Ours, cx);
                self.heir = Some(heir);
                self.inherit(cx);
                return Ok(());
            }
            Some(heir) => self.bury(heir.channel, Fate::Theirs, cx),
            None => {}
        }
        let old_spi = self.own_spi().to_string();
        let old = self.take_over(channel, suite, cx);
        self.bury(old, Fate::Ours, cx);
        cx.news.push_back(News::Rekeyed(Rekey {
            kind: RekeyKind::IkeSa,
            by: Initiator::Client,
            suite: suite.to_string(),
            old_spi: Some(old_spi),
            new_spi: self.own_spi().to_string(),
            took: Some(cx.now.since(rekeying.began)),
        }));
        Ok(())
    }

    fn ike_refused(
        &mut self,
        rekeying: &RekeyIke,
        error: NotifyType,
        payloads: &[Payload<'_>],
        cx: &mut Cx<'_>,
    ) -> Result<(), End> {
        // The gateway's own rekeying is under way and goes on.
        let makes_one = self.pending.as_ref().is_some_and(|pending| pending.is_for_ike());
        if self.heir.is_some() || makes_one {
            self.leave_to_gateway();
            return Ok(());
        }
        if error == NotifyType::INVALID_KE_PAYLOAD
            && rekeying.tries < MAX_TRIES
            && let Some(notify) = notifies(payloads, error).next()
            && let Some(octets) = notify.data.as_array::<2>()
        {
            let method = KeMethod(u16::from_be_bytes(*octets));
            let offered = rekeying
                .offer
                .iter()
                .any(|proposal| proposal.key_exchanges().any(|offered| offered == method));
            if offered && method != rekeying.exchange.method() {
                return self.ask_for_ike(method, rekeying.tries + 1, rekeying.began, cx);
            }
        }
        self.rekey_at = self.put_off(cx);
        if error != NotifyType::TEMPORARY_FAILURE {
            // NO_ADDITIONAL_SAS, NO_PROPOSAL_CHOSEN: only a new authentication helps (RFC 7296, section 1.3).
            tracing::warn!(%error, "the gateway refuses to rekey the IKE SA");
            self.renew(Renewal::Refused(Cause::Refused(error)), cx);
        }
        Ok(())
    }

    /// The gateway wants to replace the IKE SA.
    pub(super) fn serve_ike_rekey(&mut self, opened: &Opened, payloads: &[Payload<'_>], cx: &mut Cx<'_>) {
        // RFC 7296, section 2.25.2; RFC 9370, section 2.2.4.
        let busy = matches!(
            self.doing,
            Doing::MakeChild(_) | Doing::DeleteChildren(_) | Doing::FollowUp(_)
        );
        if busy || self.heir.is_some() {
            return self.answer(opened, &[notify(NotifyType::TEMPORARY_FAILURE, &[])], cx);
        }
        let Some(parts) = Parts::read(payloads) else {
            return self.answer(opened, &[notify(NotifyType::INVALID_SYNTAX, &[])], cx);
        };
        let proposals = &self.config.profile.ike.proposals;
        let Some(chosen) = proposal::choose_ike(proposals, &self.suite, parts.ke.method, parts.proposals)
        else {
            return self.answer(opened, &[notify(NotifyType::NO_PROPOSAL_CHOSEN, &[])], cx);
        };
        if chosen.suite.ke != parts.ke.method {
            let wanted = chosen.suite.ke.0.to_be_bytes();
            return self.answer(opened, &[notify(NotifyType::INVALID_KE_PAYLOAD, &wanted)], cx);
        }
        let spi = new_spi(cx.rng);
        let own: [u8; 32] = cx.rng.bytes();
        let syntax = notify(NotifyType::INVALID_SYNTAX, &[]);
        let (Ok((public, first)), Ok(initiator)) = (
            KeyExchange::respond(chosen.suite.ke, parts.ke.data, cx.rng),
            check_nonce(self.suite.prf, parts.nonce, &own),
        ) else {
            return self.answer(opened, &[syntax], cx);
        };
        let subject = PendingSubject::Ike {
            suite: chosen.suite,
            spis: Spis {
                initiator: chosen.spi,
                responder: spi,
            },
        };
        let nonces = Nonces {
            initiator,
            responder: own.to_vec(),
        };
        let shared = SharedSecrets {
            first,
            additional: Vec::new(),
        };
        let remaining = chosen.suite.additional.methods().collect();
        let pending = Pending::new(subject, nonces, Some(shared), remaining, cx);
        let mut reply = vec![
            Payload::Sa(vec![chosen.to_wire(spi)]),
            Payload::Nonce(&own),
            Payload::Ke(Ke {
                method: chosen.suite.ke,
                data: &public,
            }),
        ];
        let link = pending.link();
        if !pending.is_over() {
            reply.push(notify(NotifyType::ADDITIONAL_KEY_EXCHANGE, &link));
        }
        self.answer(opened, &reply, cx);
        self.go_on_with(pending, cx);
    }

    /// A message of the SA that is to replace the present one.
    pub(super) fn handle_heir(&mut self, path: Path, message: &mut [u8], cx: &mut Cx<'_>) -> Result<(), End> {
        let Some(mut heir) = self.heir.take() else {
            return Ok(());
        };
        let Some(opened) = heir.channel.open(path, message, cx) else {
            self.heir = Some(heir);
            return Ok(());
        };
        let deletes = opened.payloads().is_ok_and(|payloads| {
            payloads.iter().any(
                |payload| matches!(payload, Payload::Delete(delete) if delete.protocol == ProtocolId::IKE),
            )
        });
        if deletes && matches!(self.doing, Doing::RekeyIke(_)) {
            // The gateway finds its own one too many: ours takes over when its answer comes.
            let _ = heir.channel.respond(&opened, &[], cx);
            self.bury(heir.channel, Fate::Gone, cx);
            return Ok(());
        }
        self.heir = Some(heir);
        self.inherit(cx);
        self.handle_opened(&opened, cx)
    }

    /// What the gateway made takes the place of the present IKE SA, which the gateway deletes.
    pub(super) fn inherit(&mut self, cx: &mut Cx<'_>) {
        self.inherit_leaving(Fate::Theirs, cx);
    }

    /// The same after the gateway has deleted the present one.
    pub(super) fn inherit_after_delete(&mut self, cx: &mut Cx<'_>) {
        self.inherit_leaving(Fate::Gone, cx);
    }

    fn inherit_leaving(&mut self, fate: Fate, cx: &mut Cx<'_>) {
        let Some(heir) = self.heir.take() else {
            return;
        };
        let old_spi = self.own_spi().to_string();
        let late = cx.now >= heir.until;
        let (suite, lowest) = (heir.suite, heir.lowest);
        let rekeying = match std::mem::replace(&mut self.doing, Doing::Nothing) {
            Doing::RekeyIke(rekeying) => Some(rekeying),
            other => {
                self.doing = other;
                None
            }
        };
        let mut old = self.take_over(heir.channel, suite, cx);
        if fate == Fate::Gone {
            // Whatever we asked there has no answer any more (RFC 7296, section 2.8.2).
            old.forget_request();
        }
        let fate = if late && fate == Fate::Theirs {
            Fate::Ours
        } else {
            fate
        };
        self.bury(old, fate, cx);
        if let Some(old) = self.old.last_mut().filter(|_| fate != Fate::Gone) {
            old.rekeying = rekeying.map(|rekeying| (rekeying, lowest));
        }
        self.setbacks = 0;
        cx.news.push_back(News::Rekeyed(Rekey {
            kind: RekeyKind::IkeSa,
            by: Initiator::Gateway,
            suite: suite.to_string(),
            old_spi: Some(old_spi),
            new_spi: self.own_spi().to_string(),
            took: None,
        }));
    }

    /// Makes `channel` the present IKE SA, with everything that the one before it had.
    fn take_over(&mut self, mut channel: Channel, suite: IkeSuite, cx: &mut Cx<'_>) -> Channel {
        // The path may have changed while the new one waited.
        channel.path = self.channel.path;
        let lifetime = self.config.profile.ike.rekey;
        self.rekey_at = cx.now + early(lifetime, cx.rng);
        self.expires_at = self.rekey_at + grace(lifetime);
        self.suite = suite;
        self.since = cx.unix;
        self.made_at = cx.now;
        self.is_reached = false;
        self.tickets.void(cx.now);
        // What was asked on the old one is asked again on the new one, if it is still wanted.
        let doing = std::mem::replace(&mut self.doing, Doing::Nothing);
        self.mobility
            .renewed(matches!(doing, Doing::Update(_)) || self.nat.local);
        std::mem::replace(&mut self.channel, channel)
    }

    fn bury(&mut self, channel: Channel, fate: Fate, cx: &mut Cx<'_>) {
        if self.old.len() >= MAX_OLD {
            self.old.remove(0);
        }
        let mut old = Old::new(channel, fate, cx.now);
        old.tell(cx);
        self.old.push(old);
    }

    /// A message of a replaced SA.
    pub(super) fn handle_old(&mut self, header: &Header, path: Path, message: &mut [u8], cx: &mut Cx<'_>) {
        let Some(old) = self.old.iter_mut().find(|old| old.channel.is_for(header)) else {
            return;
        };
        let Some(opened) = old.channel.open(path, message, cx) else {
            return;
        };
        if opened.header.flags.response {
            if let Some((rekeying, rival)) = old.rekeying.take() {
                let made = opened.payloads().ok().and_then(|payloads| {
                    let answer = rekeying.read_answer(&old.channel, &payloads).ok()?;
                    // With additional key exchanges there is nothing yet.
                    let is_made = answer.suite.additional.methods().next().is_none();
                    let channel = is_made.then(|| answer.make(&old.channel, cx.now).ok())??;
                    Some((channel, answer.suite, answer.nonces.lowest() < rival.as_slice()))
                });
                // Of the two new SAs the one with the lowest nonce is one too many, and its initiator's to delete.
                match made {
                    Some((channel, _, true)) => {
                        old.tell(cx);
                        self.bury(channel, Fate::Ours, cx);
                    }
                    Some((channel, suite, false)) => {
                        old.fate = Fate::Ours;
                        old.tell(cx);
                        let redundant = self.take_over(channel, suite, cx);
                        self.bury(redundant, Fate::Theirs, cx);
                    }
                    None => old.tell(cx),
                }
                return;
            }
            if old.fate == Fate::Told {
                old.fate = Fate::Gone;
                old.until = cx.now + ECHO;
            }
            old.tell(cx);
            return;
        }
        let payloads = opened.payloads().unwrap_or_default();
        let (mut deletes, mut children) = (false, Vec::new());
        for payload in &payloads {
            let Payload::Delete(delete) = payload else {
                continue;
            };
            deletes |= delete.protocol == ProtocolId::IKE;
            // Children belong to whichever IKE SA is the present one (RFC 7296, section 2.25.2).
            let spis = delete.spis.iter().filter(|_| delete.protocol == ProtocolId::ESP);
            let found = spis.filter_map(|spi| self.deleted_child(spi, cx));
            children.extend(found.map(|spi| spi.0.to_be_bytes()));
        }
        let mut reply = Vec::new();
        if opened.header.exchange == ExchangeType::CREATE_CHILD_SA {
            // What we are closing, or have replaced, is not rekeyed again.
            reply.push(notify(NotifyType::TEMPORARY_FAILURE, &[]));
        }
        if !children.is_empty() {
            reply.push(Payload::Delete(Delete {
                protocol: ProtocolId::ESP,
                spis: children.iter().map(<[u8; 4]>::as_slice).collect(),
            }));
        }
        let Some(old) = self.old.iter_mut().find(|old| old.channel.is_for(header)) else {
            return;
        };
        let _ = old.channel.respond(&opened, &reply, cx);
        if deletes {
            old.channel.forget_request();
            old.fate = Fate::Gone;
            old.until = cx.now + ECHO;
        }
    }

    /// Repeats Deletes, and forgets what has had its time.
    pub(super) fn old_on_time(&mut self, cx: &mut Cx<'_>) {
        for old in &mut self.old {
            old.channel.handle_timeout(cx);
            if old.fate == Fate::Theirs && cx.now >= old.until {
                old.fate = Fate::Ours;
                old.until = cx.now + PATIENCE;
                old.tell(cx);
            }
        }
        self.old.retain(|old| cx.now < old.until);
    }
}

fn new_spi(rng: &mut Rng) -> IkeSpi {
    loop {
        let spi = IkeSpi(rng.bytes());
        if spi != IkeSpi::ZERO {
            return spi;
        }
    }
}
