//! IKE_SA_INIT: proposals, key exchange, NAT detection (RFC 7296, section 1.2); and IKE_SESSION_RESUME, which a ticket
//! puts in its place (RFC 5723, section 4.3.2).

use std::sync::Arc;
use std::time::Duration;

use super::channel::Channel;
use super::intermediate::Intermediate;
use super::keys::{Nonces, Role, SaKeys, Spis};
use super::nat::{self, Nat};
use super::proof::Transcript;
use super::resume::{RESUME_PATIENCE, Ticket};
use super::window::Backoff;
use super::{
    Broken, Cx, IKE_PORT, NAT_T_PORT, Next, SaConfig, State, datagram, error_notify, notify, redirect,
    unsendable,
};
use crate::command::{Cause, Failure, Path, Stage};
use crate::crypto::KeyExchange;
use crate::profile::Redirects;
use crate::proposal::{self, IkeProposal, SelectError};
use crate::timer::{Instant, Timer};
use crate::wire::iana::{ExchangeType, HashAlgorithm, KeMethod, NotifyType, PayloadType};
use crate::wire::{self, Flags, Header, IkeSpi, Ke, Message, Payload, encode_message};

/// An address that has not answered within this time never will.
const PATIENCE: Duration = Duration::from_secs(12);
/// An unauthenticated refusal counts when nothing better came within this time (RFC 7296, section 2.21.1).
const REFUSAL_STANDS: Duration = Duration::from_secs(3);
/// How many times the gateway may make us begin again, with cookies or for another key exchange method.
const MAX_RESTARTS: u8 = 5;
/// The longest cookie (RFC 7296, section 2.6).
const MAX_COOKIE: usize = 64;

/// The hash algorithms that we accept in signatures (RFC 7427, section 4).
pub(super) const SIGNATURE_HASHES: [HashAlgorithm; 4] = [
    HashAlgorithm::SHA2_256,
    HashAlgorithm::SHA2_384,
    HashAlgorithm::SHA2_512,
    HashAlgorithm::IDENTITY,
];

/// Waiting for the gateway's IKE_SA_INIT.
pub(super) struct Init {
    config: Arc<SaConfig>,
    /// What is presented instead of proposals and a key exchange.
    pub(super) ticket: Option<Arc<Ticket>>,
    path: Path,
    pub(super) spi: IkeSpi,
    nonce: [u8; 32],
    /// Stands in for our real source in NAT detection, so that the gateway encapsulates ESP in UDP always.
    masked_source: [u8; 20],
    exchange: KeyExchange,
    cookie: Option<Vec<u8>>,
    /// RealMessage1.
    request: Vec<u8>,
    backoff: Backoff,
    started: Instant,
    restarts: u8,
    /// Answers to requests before the present one that may still come.
    stale: u32,
    refused: Option<(Cause, Instant)>,
}

/// What an IKE_SA_INIT response without keys asks for.
enum Reply<'a> {
    Cookie(&'a [u8]),
    OtherMethod(KeMethod),
    Redirect(&'a [u8]),
    TicketRefused,
    Error(NotifyType),
    Answer,
}

impl Init {
    pub(super) fn start(
        config: Arc<SaConfig>,
        ticket: Option<Arc<Ticket>>,
        path: Path,
        cx: &mut Cx<'_>,
    ) -> Result<Self, Failure> {
        let fail = |cause| Failure {
            stage: Stage::IkeSaInit,
            cause,
        };
        let method = config
            .profile
            .ike
            .proposals
            .iter()
            .find_map(|proposal| proposal.key_exchanges().next())
            .ok_or_else(|| {
                fail(Cause::Credential(
                    "the profile offers no key exchange method".into(),
                ))
            })?;
        let exchange = KeyExchange::generate(method, cx.rng).map_err(|error| {
            fail(Cause::Credential(format!(
                "key exchange method {method}: {error}"
            )))
        })?;
        let mut spi = [0; 8];
        while spi == [0; 8] {
            spi = cx.rng.bytes();
        }
        let mut init = Self {
            config,
            ticket,
            path,
            spi: IkeSpi(spi),
            nonce: cx.rng.bytes(),
            masked_source: cx.rng.bytes(),
            exchange,
            cookie: None,
            request: Vec::new(),
            backoff: Backoff::start(cx.now, cx.rng),
            started: cx.now,
            restarts: 0,
            stale: 0,
            refused: None,
        };
        init.send(cx).map_err(fail)?;
        Ok(init)
    }

    pub(super) fn path(&self) -> Path {
        self.path
    }

    /// The request goes once more, on a new connection (RFC 9329, section 6.2).
    pub(super) fn reconnect(&mut self, path: Path, cx: &mut Cx<'_>) {
        self.path = path;
        cx.out.push_back(datagram(path, &self.request));
    }

    pub(super) fn refusal(&self) -> Option<&Cause> {
        self.refused.as_ref().map(|(cause, _)| cause)
    }

    fn exchange_type(&self) -> ExchangeType {
        match self.ticket {
            Some(_) => ExchangeType::IKE_SESSION_RESUME,
            None => ExchangeType::IKE_SA_INIT,
        }
    }

    fn send(&mut self, cx: &mut Cx<'_>) -> Result<(), Cause> {
        let ike = &self.config.profile.ike;
        let spis = Spis {
            initiator: self.spi,
            responder: IkeSpi::ZERO,
        };
        let destination = nat::hash(spis, self.path.remote);
        let hashes: Vec<u8> = SIGNATURE_HASHES
            .iter()
            .flat_map(|hash| hash.0.to_be_bytes())
            .collect();
        let mut payloads = Vec::with_capacity(8);
        if let Some(cookie) = &self.cookie {
            payloads.push(notify(NotifyType::COOKIE, cookie));
        }
        if self.ticket.is_none() {
            payloads.push(Payload::Sa(proposal::ike_offer(&ike.proposals, &[])));
            payloads.push(Payload::Ke(Ke {
                method: self.exchange.method(),
                data: self.exchange.public(),
            }));
        }
        payloads.push(Payload::Nonce(&self.nonce));
        if let Some(ticket) = &self.ticket {
            payloads.push(notify(NotifyType::TICKET_OPAQUE, &ticket.octets));
        }
        payloads.extend([
            notify(NotifyType::NAT_DETECTION_SOURCE_IP, &self.masked_source),
            notify(NotifyType::NAT_DETECTION_DESTINATION_IP, &destination),
        ]);
        if ike.fragmentation {
            payloads.push(notify(NotifyType::IKEV2_FRAGMENTATION_SUPPORTED, &[]));
        }
        if self.ticket.is_none() {
            payloads.push(notify(NotifyType::SIGNATURE_HASH_ALGORITHMS, &hashes));
            // RFC 9370, section 2.2.1.
            if ike.proposals.iter().any(IkeProposal::has_additional) {
                payloads.push(notify(NotifyType::INTERMEDIATE_EXCHANGE_SUPPORTED, &[]));
            }
            if self.config.ppk().is_some() {
                payloads.push(notify(NotifyType::USE_PPK, &[]));
            }
        }
        let from = self
            .config
            .redirected
            .last()
            .map(|last| redirect::redirected_from(last.from));
        // Each of the two says that we can be redirected (RFC 5685, section 9.3).
        match &from {
            Some(from) => payloads.push(notify(NotifyType::REDIRECTED_FROM, from)),
            None if self.config.profile.gateway.redirect != Redirects::Never => {
                payloads.push(notify(NotifyType::REDIRECT_SUPPORTED, &[]));
            }
            None => {}
        }
        let header = Header {
            initiator_spi: self.spi,
            responder_spi: IkeSpi::ZERO,
            next_payload: PayloadType::NONE,
            version: wire::VERSION,
            exchange: self.exchange_type(),
            flags: Flags {
                initiator: true,
                version: false,
                response: false,
            },
            message_id: 0,
            length: 0,
        };
        if !self.request.is_empty() {
            self.stale = self
                .stale
                .saturating_add(self.backoff.transmissions().saturating_sub(1));
            // The exchange has moved: what was said before is no longer the last word.
            self.refused = None;
        }
        self.request = encode_message(header, &payloads).map_err(|error| unsendable(&error))?;
        cx.out.push_back(datagram(self.path, &self.request));
        self.backoff = Backoff::start(cx.now, cx.rng);
        Ok(())
    }

    const fn patience(&self) -> Duration {
        match self.ticket {
            Some(_) => RESUME_PATIENCE,
            None => PATIENCE,
        }
    }

    pub(super) fn poll_timeout(&self) -> (Instant, Timer) {
        let retransmit = (
            self.backoff.due().min(self.started + self.patience()),
            Timer::Retransmit,
        );
        match &self.refused {
            Some((_, since)) => retransmit.min((*since + self.refusal_stands(), Timer::Refused)),
            None => retransmit,
        }
    }

    /// Over TCP nothing better can come: a message that is not the gateway's is one of somebody who has taken the
    /// connection (RFC 9329, section 6.4).
    fn refusal_stands(&self) -> Duration {
        if self.path.is_tcp() {
            Duration::ZERO
        } else {
            REFUSAL_STANDS
        }
    }

    pub(super) fn handle_timeout(mut self: Box<Self>, cx: &mut Cx<'_>) -> Next {
        if let Some((cause, since)) = &self.refused
            && cx.now >= *since + self.refusal_stands()
        {
            return Err(Failure {
                stage: Stage::IkeSaInit,
                cause: cause.clone(),
            });
        }
        if cx.now >= self.started + self.patience() {
            let (stage, cause) = match self.refused {
                Some((cause, _)) => (Stage::IkeSaInit, cause),
                None => (Stage::Reach, Cause::NoAnswer),
            };
            return Err(Failure { stage, cause });
        }
        if cx.now >= self.backoff.due() {
            // TCP repeats for us (RFC 9329, section 6.2).
            if !self.path.is_tcp() {
                cx.out.push_back(datagram(self.path, &self.request));
            }
            self.backoff.again(cx.now, cx.rng);
        }
        Ok(State::Init(self))
    }

    pub(super) fn handle(mut self: Box<Self>, path: Path, message: &[u8], cx: &mut Cx<'_>) -> Next {
        let is_elsewhere = path.remote.ip() != self.path.remote.ip() || path.transport != self.path.transport;
        if is_elsewhere || !message.starts_with(&self.spi.0) {
            return Ok(State::Init(self));
        }
        if message.get(17).is_some_and(|version| version >> 4 == 1) {
            // The gateway took our SPI for an ISAKMP cookie.
            self.remember(Cause::Ikev1Only, cx);
            return Ok(State::Init(self));
        }
        match Message::decode(message) {
            Ok(decoded) => self.handle_decoded(&decoded, message, cx),
            Err(error) => {
                self.remember(Cause::from(Broken::from(error)), cx);
                Ok(State::Init(self))
            }
        }
    }

    fn handle_decoded(mut self: Box<Self>, message: &Message<'_>, raw: &[u8], cx: &mut Cx<'_>) -> Next {
        let header = message.header;
        let expected = header.flags.response
            && !header.flags.initiator
            && header.exchange == self.exchange_type()
            && header.message_id == 0;
        if !expected {
            return Ok(State::Init(self));
        }
        match Self::classify(message) {
            // To follow a late answer to an older request would change RealMessage1 under the answer to this one.
            Reply::Cookie(_) if self.cookie.is_some() && self.stale > 0 => {
                self.stale -= 1;
                Ok(State::Init(self))
            }
            Reply::Cookie(cookie) => {
                if cookie.is_empty() || cookie.len() > MAX_COOKIE {
                    self.remember(
                        Cause::Protocol("IKE_SA_INIT: a cookie of impossible length".into()),
                        cx,
                    );
                } else if self.may_restart(cx) {
                    self.cookie = Some(cookie.to_vec());
                    self.send(cx).map_err(|cause| Failure {
                        stage: Stage::IkeSaInit,
                        cause,
                    })?;
                }
                Ok(State::Init(self))
            }
            Reply::Redirect(data) => {
                // Without our nonce it is from somebody who has not seen our request (RFC 5685, section 3).
                let Some((to, _)) = redirect::read(data)
                    .ok()
                    .filter(|(_, nonce)| *nonce == self.nonce)
                else {
                    return Ok(State::Init(self));
                };
                match redirect::judge(&self.config, to, self.path.remote.ip(), false) {
                    Ok(redirect) => Err(Failure {
                        stage: Stage::IkeSaInit,
                        cause: Cause::Redirected(redirect),
                    }),
                    Err(cause) => {
                        self.remember(cause, cx);
                        Ok(State::Init(self))
                    }
                }
            }
            // Whoever says so without proof makes us authenticate in full, and no more.
            Reply::TicketRefused | Reply::Error(_) | Reply::OtherMethod(_) if self.ticket.is_some() => {
                Err(not_resumed())
            }
            Reply::TicketRefused => Ok(State::Init(self)),
            Reply::Error(error) => {
                let cause = match error {
                    NotifyType::NO_PROPOSAL_CHOSEN if self.config.profile.ike.require_pq => {
                        Cause::NoPostQuantum
                    }
                    NotifyType::NO_PROPOSAL_CHOSEN => Cause::NoIkeProposal,
                    NotifyType::INVALID_MAJOR_VERSION => Cause::Ikev1Only,
                    other => Cause::Refused(other),
                };
                self.remember(cause, cx);
                Ok(State::Init(self))
            }
            Reply::OtherMethod(method) => {
                self.change_method(method, cx)?;
                Ok(State::Init(self))
            }
            // Without NAT detection the gateway would not encapsulate ESP, as Libreswan does not (RFC 5723, section 4.3.2).
            Reply::Answer if self.ticket.is_some() && !Nat::is_told(&message.payloads) => Err(not_resumed()),
            Reply::Answer => match self.agree(message, raw, cx) {
                Ok(agreed) => Intermediate::start(self.config, agreed, cx),
                Err(cause) => {
                    self.remember(cause, cx);
                    Ok(State::Init(self))
                }
            },
        }
    }

    fn classify<'a>(message: &Message<'a>) -> Reply<'a> {
        for payload in &message.payloads {
            let Payload::Notify(notify) = payload else {
                continue;
            };
            match (notify.kind, notify.data) {
                (NotifyType::COOKIE, cookie) => return Reply::Cookie(cookie),
                (NotifyType::REDIRECT, data) => return Reply::Redirect(data),
                (NotifyType::TICKET_NACK, _) => return Reply::TicketRefused,
                (NotifyType::INVALID_KE_PAYLOAD, &[high, low]) => {
                    return Reply::OtherMethod(KeMethod(u16::from_be_bytes([high, low])));
                }
                _ => {}
            }
        }
        error_notify(&message.payloads).map_or(Reply::Answer, Reply::Error)
    }

    fn may_restart(&mut self, cx: &Cx<'_>) -> bool {
        if self.restarts >= MAX_RESTARTS {
            let what = "IKE_SA_INIT: the gateway makes us begin again without end";
            self.remember(Cause::Protocol(what.into()), cx);
            return false;
        }
        self.restarts += 1;
        true
    }

    /// Only a method that the same SA payload offers, and another than was sent: everything else is a trick.
    fn change_method(&mut self, method: KeMethod, cx: &mut Cx<'_>) -> Result<(), Failure> {
        let proposals = &self.config.profile.ike.proposals;
        let is_offered = proposals
            .iter()
            .any(|proposal| proposal.key_exchanges().any(|offer| offer == method));
        if method == self.exchange.method() {
            let what = "IKE_SA_INIT: the gateway asks for the key exchange method that it got";
            self.remember(Cause::Protocol(what.into()), cx);
            return Ok(());
        }
        if !is_offered {
            self.remember(Cause::KeyExchangeNotOffered(method.0), cx);
            return Ok(());
        }
        if !self.may_restart(cx) {
            return Ok(());
        }
        let fail = |cause| Failure {
            stage: Stage::IkeSaInit,
            cause,
        };
        self.exchange = KeyExchange::generate(method, cx.rng).map_err(|error| {
            fail(Cause::Credential(format!(
                "key exchange method {method}: {error}"
            )))
        })?;
        self.send(cx).map_err(fail)
    }

    /// A forged answer must not end the attempt, so the first refusal is only noted; retransmission goes on.
    fn remember(&mut self, cause: Cause, cx: &Cx<'_>) {
        tracing::debug!(?cause, "unauthenticated refusal");
        self.refused.get_or_insert((cause, cx.now));
    }

    /// Checks a response completely before anything is changed.
    fn agree(&self, message: &Message<'_>, raw: &[u8], cx: &Cx<'_>) -> Result<Agreed, Cause> {
        let broken = |what: &str| Cause::Protocol(format!("IKE_SA_INIT: {what}"));
        if message.header.responder_spi == IkeSpi::ZERO {
            return Err(broken("the responder's SPI is zero"));
        }
        let (mut sa, mut ke, mut nonce) = (None, None, None);
        let (mut fragmentation, mut intermediate, mut uses_ppk, mut multiple_auth) =
            (false, false, false, false);
        let mut hashes = None;
        for payload in &message.payloads {
            let repeated = match payload {
                Payload::Sa(proposals) => sa.replace(proposals).is_some(),
                Payload::Ke(value) => ke.replace(value).is_some(),
                Payload::Nonce(value) => nonce.replace(*value).is_some(),
                Payload::Notify(notify) => {
                    fragmentation |= notify.kind == NotifyType::IKEV2_FRAGMENTATION_SUPPORTED;
                    intermediate |= notify.kind == NotifyType::INTERMEDIATE_EXCHANGE_SUPPORTED;
                    uses_ppk |= notify.kind == NotifyType::USE_PPK;
                    multiple_auth |= notify.kind == NotifyType::MULTIPLE_AUTH_SUPPORTED;
                    if notify.kind == NotifyType::SIGNATURE_HASH_ALGORITHMS {
                        let pairs = notify.data.chunks_exact(2);
                        hashes = Some(
                            pairs
                                .map(|pair| HashAlgorithm(u16::from_be_bytes([pair[0], pair[1]])))
                                .collect(),
                        );
                    }
                    false
                }
                Payload::Unknown {
                    critical: true, kind, ..
                } => {
                    return Err(broken(&format!("unknown critical payload {kind}")));
                }
                _ => false,
            };
            if repeated {
                return Err(broken("a payload is there twice"));
            }
        }
        let nonce = nonce.ok_or_else(|| broken("Nonce is missing"))?;
        let suite = match (&self.ticket, sa, ke) {
            (Some(ticket), ..) => ticket.suite,
            (None, Some(sa), Some(ke)) => {
                let suite = proposal::select_ike(&self.config.profile.ike.proposals, sa)
                    .map_err(|error: SelectError| broken(&error.to_string()))?;
                if ke.method != suite.ke || ke.method != self.exchange.method() {
                    return Err(broken("the key exchange is not of the chosen method"));
                }
                if suite.additional.methods().next().is_some() && !intermediate {
                    return Err(broken(
                        "the gateway chose additional key exchanges without IKE_INTERMEDIATE",
                    ));
                }
                if self.config.profile.ike.require_pq && !suite.is_post_quantum() {
                    return Err(Cause::NoPostQuantum);
                }
                if self.config.ppk().is_some_and(|(ppk, _)| ppk.required) && !uses_ppk {
                    return Err(Cause::PpkNotUsed);
                }
                suite
            }
            (None, ..) => return Err(broken("SA or KE is missing")),
        };
        // RFC 7296, section 2.10.
        if nonce.len() * 2 < suite.prf.key_len() {
            return Err(broken("the nonce is too short for the chosen PRF"));
        }
        if nonce == self.nonce {
            return Err(broken("our own nonce came back"));
        }
        let spis = Spis {
            initiator: self.spi,
            responder: message.header.responder_spi,
        };
        let nonces = Nonces {
            initiator: self.nonce.to_vec(),
            responder: nonce.to_vec(),
        };
        let keys = match (&self.ticket, ke) {
            (Some(ticket), _) => SaKeys::derive_resumed(ticket, &nonces, spis),
            (None, ke) => {
                let value = ke.map_or(&[][..], |ke| ke.data);
                let shared = self
                    .exchange
                    .agree(value)
                    .map_err(|error| Cause::from(Broken::from(error)))?;
                SaKeys::derive(&suite, &shared, &nonces, spis, Role::Initiator)
            }
        };
        let keys = keys.map_err(|error| Cause::from(Broken::from(error)))?;
        let nat = Nat::detect(&message.payloads, spis, self.path.local, self.path.remote);
        let port = if self.path.remote.port() == IKE_PORT && !self.path.is_tcp() {
            NAT_T_PORT
        } else {
            self.path.remote.port()
        };
        let mut path = self.path;
        path.remote.set_port(port);
        let fragment_size = (fragmentation && self.config.profile.ike.fragmentation)
            .then_some(self.config.profile.ike.fragment_size);
        let mut channel = Channel::new(spis, keys, path, fragment_size, cx.now);
        if self.backoff.transmissions() == 1 {
            channel.round_trip = Some(cx.now.since(self.backoff.started()));
        }
        let transcript = Transcript {
            request: self.request.clone(),
            response: raw.to_vec(),
            nonces,
            int_auth: Vec::new(),
        };
        Ok(Agreed {
            channel,
            transcript,
            suite,
            nat,
            hashes,
            uses_ppk,
            multiple_auth,
            resumed: self.ticket.clone(),
        })
    }
}

const fn not_resumed() -> Failure {
    Failure {
        stage: Stage::IkeSaInit,
        cause: Cause::NotResumed,
    }
}

/// What IKE_SA_INIT agreed on.
pub(super) struct Agreed {
    pub(super) channel: Channel,
    pub(super) transcript: Transcript,
    pub(super) suite: proposal::IkeSuite,
    pub(super) nat: Nat,
    /// The hash algorithms that the gateway accepts in signatures, if it speaks RFC 7427.
    pub(super) hashes: Option<Vec<HashAlgorithm>>,
    /// The gateway knows PPKs (RFC 8784).
    pub(super) uses_ppk: bool,
    /// The gateway lets a client authenticate more than once (RFC 4739).
    pub(super) multiple_auth: bool,
    /// The ticket that the gateway has accepted.
    pub(super) resumed: Option<Arc<Ticket>>,
}
