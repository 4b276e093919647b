//! IKE_AUTH: both sides prove who they are, and the first Child SA is made (RFC 7296, sections 1.2 and 2.16).

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use zeroize::Zeroizing;

use super::channel::{Channel, Opened};
use super::child::{self, ChildOffer};
use super::established::{self, Established};
use super::init::Agreed;
use super::keys::{PpkKeys, SaKeys};
use super::method;
use super::nat::Nat;
use super::proof::{self, Authentic, PeerVerified, Proven, Standing, Transcript, shared_key_mic};
use super::resume::{Identities, Ticket};
use super::{
    Broken, Cx, News, Next, SaConfig, State, delete_ike, error_notify, notify, redirect, refuse_critical,
    unsendable,
};
use crate::command::{Cause, Failure, HostFault, Path, Prompt, PromptId, PromptKind, Stage};
use crate::crypto::Secret;
use crate::eap::{Eap, EapError, Msk, Question, Step};
use crate::fetch::{self, FetchId};
use crate::pki::revocation::{Check, Evidence, Means, NotRevoked};
use crate::pki::{CertError, Certificate};
use crate::profile::{AuthKind, DnsPolicy, Identity, Revocation};
use crate::proposal::{self, IkeSuite};
use crate::timer::{Instant, Timer};
use crate::wire::iana::{
    AuthMethod, CertEncoding, CfgAttr, CfgType, ExchangeType, HashAlgorithm, IdType, NotifyType,
};
use crate::wire::{self, Cert, CertReq, CfgAttribute, Cp, Header, Id, Payload, Ts};

/// A gateway that asks a slow RADIUS server needs longer than one that answers by itself.
const PATIENCE: Duration = Duration::from_secs(30);
/// The type of a PPK_ID that is configured on both sides (RFC 8784, section 5.1).
const PPK_ID_FIXED: u8 = 2;
/// The whole of IKE_AUTH, without the time in which the user types.
const DEADLINE: Duration = Duration::from_secs(90);
/// The user's time for one answer.
const ANSWER: Duration = Duration::from_secs(180);
/// How often the mapping of a NAT is kept while the user types (RFC 3948, section 4).
const NAT_KEEPALIVE: Duration = Duration::from_secs(20);

/// IKE_AUTH under way.
pub(super) struct Auth {
    config: Arc<SaConfig>,
    pub(super) channel: Channel,
    transcript: Transcript,
    suite: IkeSuite,
    nat: Nat,
    hashes: Option<Vec<HashAlgorithm>>,
    uses_ppk: bool,
    /// Our first AUTH is made: whether with the PPK is decided.
    ppk_told: bool,
    /// The keys without the PPK, from our AUTH on until the gateway says whether it has the PPK.
    without_ppk: Option<PpkKeys>,
    /// IDi': what our AUTH covers of our identity.
    id: (IdType, Vec<u8>),
    offer: ChildOffer,
    /// The ticket that is resumed with: nobody authenticates anew.
    resumed: Option<Arc<Ticket>>,
    progress: Progress,
    /// Whether certificates were revoked is being found out; until that is known nothing goes on.
    vetting: Option<Vetting>,
    started: Instant,
}

/// How far IKE_AUTH has come.
enum Progress {
    /// The gateway has not proven anything.
    First,
    /// Both sides are proven by certificate, and we have said who begins the second round (RFC 4739).
    Second { standing: Standing, proven: Proven },
    /// EAP rounds prove us, and the gateway too if it has only claimed to be the one that we want.
    Eap {
        eap: Box<Eap>,
        standing: Standing,
        proven: Proven,
        asked: Option<Asked>,
    },
    /// EAP is over; both sides prove that they share its key.
    Last {
        msk: Option<Msk>,
        standing: Standing,
        proven: Proven,
    },
}

/// A check of certificates under way, and what follows it.
struct Vetting {
    check: Check,
    of: Vetted,
}

/// Whose certificates are checked.
enum Vetted {
    /// The gateway's, which came in this response.
    Gateway {
        opened: Box<Opened>,
        authentic: Authentic,
        proven: Proven,
    },
    /// Those of the server in the EAP method that runs.
    EapServer,
}

/// A question that waits for the user.
struct Asked {
    id: PromptId,
    kind: PromptKind,
    since: Instant,
}

impl Auth {
    pub(super) fn start(config: Arc<SaConfig>, agreed: Agreed, cx: &mut Cx<'_>) -> Result<Self, Failure> {
        let Agreed {
            channel,
            transcript,
            suite,
            nat,
            hashes,
            uses_ppk,
            multiple_auth,
            resumed,
        } = agreed;
        let id = match &resumed {
            Some(ticket) => ticket.ids.ours.clone(),
            None => our_identity(&config, &channel).to_wire(),
        };
        let offer = ChildOffer::new(&config.profile, cx.rng);
        let progress = Progress::First;
        let mut auth = Self {
            config,
            channel,
            transcript,
            suite,
            nat,
            hashes,
            uses_ppk,
            ppk_told: false,
            without_ppk: None,
            id,
            offer,
            resumed,
            progress,
            vetting: None,
            started: cx.now,
        };
        let rounds = auth.config.profile.auth.certificate_first && auth.resumed.is_none();
        let sent = if rounds && !multiple_auth {
            Err(Cause::OneRoundOnly)
        } else {
            auth.send_first(cx)
        };
        match sent {
            Ok(()) => Ok(auth),
            Err(cause) => {
                auth.abandon(cx);
                Err(Failure {
                    stage: Stage::IkeAuth,
                    cause,
                })
            }
        }
    }

    fn send_first(&mut self, cx: &mut Cx<'_>) -> Result<(), Cause> {
        let config = Arc::clone(&self.config);
        let (profile, credentials) = (&config.profile, &config.credentials);
        let method = profile.auth.method;
        let resumed = self.resumed.is_some();
        // Neither certificates nor another round belong to what is resumed (RFC 5723, section 4.3.3).
        let certificate_first = profile.auth.certificate_first && !resumed;
        let shows_certificate = (method == AuthKind::Certificate && !resumed) || certificate_first;
        let auth = match method {
            _ if resumed => {
                Some(self.prove(|keys, octets| Ok(shared_key(&proof::prove_resumed(keys, octets))))?)
            }
            AuthKind::Psk => {
                let psk = credentials.psk.as_ref();
                let psk = psk.ok_or_else(|| Cause::Credential("the profile has no pre-shared key".into()))?;
                Some(self.prove(|keys, octets| {
                    Ok(shared_key(&shared_key_mic(keys.prf, psk.as_bytes(), octets)))
                })?)
            }
            AuthKind::Certificate => {
                let hashes = self.hashes.clone();
                Some(self.prove(|_, octets| proof::sign(&config, hashes.as_deref(), octets))?)
            }
            _ if certificate_first => {
                let hashes = self.hashes.clone();
                Some(self.prove(|_, octets| proof::sign(&config, hashes.as_deref(), octets))?)
            }
            _ => None,
        };
        let id = Id::new(self.id.0, &self.id.1);
        let authorities: Vec<u8> = if profile.gateway.anchors.system {
            Vec::new()
        } else {
            profile
                .gateway
                .anchors
                .certificates
                .iter()
                .flat_map(|anchor| anchor.spki_sha1())
                .collect()
        };
        let gateway_id = profile.gateway.identity.to_wire();
        let mut payloads = vec![Payload::IdInitiator(id)];
        if shows_certificate {
            payloads.extend(credentials.chain.iter().map(|link| {
                Payload::Cert(Cert {
                    encoding: CertEncoding::X509_SIGNATURE,
                    data: link.der(),
                })
            }));
        }
        if profile.ike.initial_contact && !resumed {
            payloads.push(notify(NotifyType::INITIAL_CONTACT, &[]));
        }
        if method != AuthKind::Psk && !resumed {
            // Without it many gateways send no certificate at all.
            payloads.push(Payload::CertReq(CertReq {
                encoding: CertEncoding::X509_SIGNATURE,
                data: &authorities,
            }));
        }
        if profile.gateway.revocation != Revocation::Off && method != AuthKind::Psk && !resumed {
            // Any responder that the authority itself trusts will do (RFC 4806, section 3.1).
            payloads.push(Payload::CertReq(CertReq {
                encoding: CertEncoding::OCSP_CONTENT,
                data: &[],
            }));
        }
        if profile.gateway.send_idr && !resumed {
            payloads.push(Payload::IdResponder(Id::new(gateway_id.0, &gateway_id.1)));
        }
        payloads.extend(auth.as_ref().map(OurProof::auth));
        let former = former_addresses(&self.config.former);
        payloads.push(Payload::Cp(configuration_request(
            profile.network.dns == DnsPolicy::Gateway,
            &former,
        )));
        payloads.push(Payload::Sa(proposal::esp_offer(
            &profile.child.proposals,
            self.offer.spi,
            false,
        )));
        payloads.push(Payload::TsInitiator(
            self.offer.local.iter().copied().map(Ts::from).collect(),
        ));
        payloads.push(Payload::TsResponder(
            self.offer.remote.iter().copied().map(Ts::from).collect(),
        ));
        payloads.push(notify(NotifyType::ESP_TFC_PADDING_NOT_SUPPORTED, &[]));
        if certificate_first {
            payloads.push(notify(NotifyType::MULTIPLE_AUTH_SUPPORTED, &[]));
            payloads.push(notify(NotifyType::ANOTHER_AUTH_FOLLOWS, &[]));
        }
        // With two rounds it is not clear which IDi a ticket is for.
        if profile.ike.resumption && !profile.auth.certificate_first {
            payloads.push(notify(NotifyType::TICKET_REQUEST, &[]));
        }
        if profile.auth.eap_only && !resumed {
            payloads.push(notify(NotifyType::EAP_ONLY_AUTHENTICATION, &[]));
        }
        if profile.ike.mobike {
            payloads.push(notify(NotifyType::MOBIKE_SUPPORTED, &[]));
        }
        payloads.extend(auth.iter().flat_map(OurProof::notifies));
        self.channel
            .request(ExchangeType::IKE_AUTH, &payloads, cx)
            .map_err(|error| unsendable(&error))
    }

    /// Our AUTH, made by `sign` with the keys of the moment, of the octets that it covers. If both sides know of a PPK, it is
    /// stirred into the keys from our first AUTH on (RFC 8784, section 3).
    fn prove(
        &mut self,
        sign: impl Fn(&SaKeys, &[u8]) -> Result<(AuthMethod, Vec<u8>), Cause>,
    ) -> Result<OurProof, Cause> {
        let id = Id::new(self.id.0, &self.id.1).body();
        let config = Arc::clone(&self.config);
        // A second round goes on with the keys of the first, and so does what is resumed (RFC 8784, section 3).
        let configured = config
            .ppk()
            .filter(|_| self.resumed.is_none() && !std::mem::replace(&mut self.ppk_told, true));
        let ppk = configured.filter(|_| self.uses_ppk);
        let mut proof = OurProof {
            ppk_id: None,
            without_ppk: None,
            method: AuthMethod::SHARED_KEY_MIC,
            data: Vec::new(),
        };
        if let Some((ppk, secret)) = ppk {
            if !ppk.required {
                let octets = self.transcript.initiator_octets(&self.channel.keys, &id);
                let (_, data) = sign(&self.channel.keys, &octets)?;
                proof.without_ppk = Some(data);
            }
            proof.ppk_id = Some([&[PPK_ID_FIXED], ppk.id.as_slice()].concat());
            self.without_ppk = Some(self.channel.keys.stir_in(secret).map_err(Broken::from)?);
        } else if configured.is_some() {
            tracing::warn!("the gateway knows no post-quantum pre-shared keys: going on without");
        }
        let octets = self.transcript.initiator_octets(&self.channel.keys, &id);
        (proof.method, proof.data) = sign(&self.channel.keys, &octets)?;
        Ok(proof)
    }

    /// Whether the gateway has the PPK too, which it says in the response to our AUTH.
    fn settle_ppk(&mut self, payloads: &[Payload<'_>]) -> Result<(), Cause> {
        let Some(keys) = self.without_ppk.take() else {
            return Ok(());
        };
        let has_it = payloads.iter().any(
            |payload| matches!(payload, Payload::Notify(notify) if notify.kind == NotifyType::PPK_IDENTITY),
        );
        if has_it {
            return Ok(());
        }
        if self.config.ppk().is_none_or(|(ppk, _)| ppk.required) {
            return Err(Cause::PpkNotUsed);
        }
        tracing::warn!("the gateway does not have our post-quantum pre-shared key: going on without");
        self.channel.keys.go_without(keys);
        Ok(())
    }

    pub(super) fn is_resumed(&self) -> bool {
        self.resumed.is_some()
    }

    fn stage(&self) -> Stage {
        match self.progress {
            Progress::First => Stage::IkeAuth,
            Progress::Second { .. } | Progress::Eap { .. } | Progress::Last { .. } => Stage::Eap,
        }
    }

    fn asked(&self) -> Option<&Asked> {
        match &self.progress {
            Progress::Eap { asked, .. } => asked.as_ref(),
            Progress::First | Progress::Second { .. } | Progress::Last { .. } => None,
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<(Instant, Timer)> {
        if let Some(asked) = self.asked() {
            let deadline = (asked.since + ANSWER, Timer::AttemptDeadline);
            let keepalive = (self.channel.last_out + NAT_KEEPALIVE, Timer::NatKeepalive);
            return Some(if self.nat.local {
                deadline.min(keepalive)
            } else {
                deadline
            });
        }
        if let Some(vetting) = &self.vetting {
            return Some((vetting.check.poll_timeout(), Timer::Revocation));
        }
        let deadline = (self.started + DEADLINE, Timer::AttemptDeadline);
        Some(
            self.channel
                .poll_timeout(PATIENCE)
                .map_or(deadline, |due| deadline.min(due)),
        )
    }

    pub(super) fn handle_timeout(mut self: Box<Self>, cx: &mut Cx<'_>) -> Next {
        if let Some(asked) = self.asked() {
            if cx.now >= asked.since + ANSWER {
                let cause = Cause::Unanswered(asked.kind);
                return Err(self.give_up(cause, cx));
            }
            if self.nat.local && cx.now >= self.channel.last_out + NAT_KEEPALIVE {
                self.channel.keep_mapping(cx);
            }
            return Ok(State::Auth(self));
        }
        if self.vetting.is_some() {
            return self.vet(cx);
        }
        if self.channel.is_given_up(cx.now, PATIENCE) || cx.now >= self.started + DEADLINE {
            return Err(Failure {
                stage: self.stage(),
                cause: Cause::WentSilent,
            });
        }
        self.channel.handle_timeout(cx);
        Ok(State::Auth(self))
    }

    /// The user's answer, or that there is none.
    pub(super) fn reply(mut self: Box<Self>, id: PromptId, answer: Option<&Secret>, cx: &mut Cx<'_>) -> Next {
        let Progress::Eap { eap, asked, .. } = &mut self.progress else {
            return Ok(State::Auth(self));
        };
        let Some(question) = asked.take_if(|question| question.id == id) else {
            return Ok(State::Auth(self));
        };
        let Some(answer) = answer else {
            return Err(self.give_up(Cause::Unanswered(question.kind), cx));
        };
        // The user's time is not the gateway's.
        self.started = self.started + cx.now.since(question.since);
        let step = eap.answer(answer).map_err(eap_failure);
        match step.and_then(|step| self.follow_eap(step, cx)) {
            Ok(()) => Ok(State::Auth(self)),
            Err(cause) => Err(self.give_up(cause, cx)),
        }
    }

    /// Ends the attempt by our own decision, of which the gateway is told.
    fn give_up(&mut self, cause: Cause, cx: &mut Cx<'_>) -> Failure {
        self.abandon(cx);
        Failure {
            stage: self.stage(),
            cause,
        }
    }

    /// Tells the gateway, which may believe the SA to be up, that it is not (RFC 7296, section 2.21.2).
    pub(super) fn abandon(&mut self, cx: &mut Cx<'_>) {
        self.channel.farewell(
            ExchangeType::INFORMATIONAL,
            &[notify(NotifyType::AUTHENTICATION_FAILED, &[])],
            cx,
        );
    }

    pub(super) fn handle(mut self: Box<Self>, path: Path, message: &mut [u8], cx: &mut Cx<'_>) -> Next {
        // A gateway that believes the SA to be up may ask already. Not taken here, its request comes again and is
        // answered once both sides are proven. Nor is anything else while we find out whether it may be believed.
        if self.vetting.is_some() || Header::decode(message).is_ok_and(|header| !header.flags.response) {
            return Ok(State::Auth(self));
        }
        let Some(opened) = self.channel.open(path, message, cx) else {
            return Ok(State::Auth(self));
        };
        let stage = self.stage();
        let advanced = self.advance(&opened, cx);
        self.conclude(&opened, advanced, stage, cx)
    }

    /// Goes on with what came of a response.
    fn conclude(self: Box<Self>, opened: &Opened, advanced: Advanced, stage: Stage, cx: &mut Cx<'_>) -> Next {
        match self.answer(opened, advanced, cx) {
            Ok(Answered::More(auth)) => Ok(State::Auth(auth)),
            Ok(Answered::Up(established)) => {
                cx.news.push_back(News::Up);
                Ok(State::Established(established))
            }
            Err((cause, mut channel)) => {
                if is_our_verdict(&cause) {
                    channel.farewell(
                        ExchangeType::INFORMATIONAL,
                        &[notify(NotifyType::AUTHENTICATION_FAILED, &[])],
                        cx,
                    );
                }
                let stage = if is_about_the_child(&cause) {
                    Stage::ChildSa
                } else {
                    stage
                };
                Err(Failure { stage, cause })
            }
        }
    }

    fn answer(
        self: Box<Self>,
        opened: &Opened,
        advanced: Advanced,
        cx: &mut Cx<'_>,
    ) -> Result<Answered, (Cause, Box<Channel>)> {
        match advanced {
            Ok(None) => Ok(Answered::More(self)),
            Ok(Some((verified, proven))) => {
                let Self {
                    config,
                    mut channel,
                    transcript,
                    suite,
                    nat,
                    offer,
                    id,
                    resumed,
                    ..
                } = *self;
                let payloads = opened.payloads().unwrap_or_default();
                let made = child::conclude(
                    &config.profile,
                    offer,
                    &payloads,
                    &channel.keys,
                    &transcript.nonces,
                );
                cx.news.push_back(News::Stage(Stage::ChildSa));
                match made {
                    Ok(made) => {
                        let proven = established::Proven {
                            config,
                            channel,
                            suite,
                            nat,
                            ids: Identities {
                                ours: id,
                                theirs: proven.id_body,
                                shown: proven.identity,
                            },
                            resumed,
                            notes: proven.notes,
                            made,
                        };
                        let established = Established::new(verified, proven, &payloads, cx);
                        Ok(Answered::Up(Box::new(established)))
                    }
                    Err(cause) => {
                        // The IKE SA is up at the gateway although its child is not wanted.
                        channel.farewell(ExchangeType::INFORMATIONAL, &[delete_ike()], cx);
                        Err((cause, Box::new(channel)))
                    }
                }
            }
            Err(cause) => Err((cause, Box::new(self.channel))),
        }
    }

    /// One response.
    fn advance(&mut self, opened: &Opened, cx: &mut Cx<'_>) -> Advanced {
        let payloads = opened.payloads().map_err(Broken::from)?;
        refuse_critical("IKE_AUTH", &payloads)?;
        let has_auth = payloads.iter().any(|payload| matches!(payload, Payload::Auth(_)));
        let eap = payloads.iter().find_map(|payload| match payload {
            Payload::Eap(packet) => Some(*packet),
            _ => None,
        });
        if !has_auth && eap.is_none() {
            return Err(self.progress.failure().unwrap_or_else(|| refusal(&payloads)));
        }
        if has_auth {
            self.settle_ppk(&payloads)?;
        }
        match std::mem::replace(&mut self.progress, Progress::First) {
            Progress::First => self.advance_first(opened, &payloads, eap, cx),
            Progress::Second { standing, proven } => match eap {
                Some(packet) => self.start_eap(standing, proven, packet, cx).map(|()| None),
                None => Err(Cause::Protocol(
                    "IKE_AUTH: AUTH came instead of the second round".into(),
                )),
            },
            running @ Progress::Eap { .. } => {
                let Some(packet) = eap else {
                    return Err(Cause::Protocol(
                        "IKE_AUTH: AUTH came before the end of EAP".into(),
                    ));
                };
                self.progress = running;
                self.handle_eap(packet, cx).map(|()| None)
            }
            Progress::Last {
                msk,
                standing,
                proven,
            } => {
                let auth = payloads.iter().find_map(|payload| match payload {
                    Payload::Auth(auth) => Some(auth),
                    _ => None,
                });
                let auth = auth.ok_or(Cause::GatewayUnproven)?;
                let verified = proof::verify_eap(
                    standing,
                    &proven,
                    auth,
                    &self.transcript,
                    &self.channel.keys,
                    msk.as_ref(),
                )?;
                self.heed_redirect(&payloads, true, cx)?;
                Ok(Some((verified, proven)))
            }
        }
    }

    /// The gateway's answer to our first request.
    fn advance_first(
        &mut self,
        opened: &Opened,
        payloads: &[Payload<'_>],
        eap: Option<&[u8]>,
        cx: &mut Cx<'_>,
    ) -> Advanced {
        if let Some(ticket) = &self.resumed {
            let transcript = &self.transcript;
            let verified = proof::verify_resumed(ticket, payloads, transcript, &self.channel.keys)?;
            self.heed_redirect(payloads, true, cx)?;
            return Ok(Some(verified));
        }
        let has_auth = payloads.iter().any(|payload| matches!(payload, Payload::Auth(_)));
        if let (false, Some(packet)) = (has_auth, eap) {
            let (eap_only, proven) = proof::claimed(&self.config, payloads)?;
            self.start_eap(Standing::Claimed(eap_only), proven, packet, cx)?;
            return Ok(None);
        }
        let (authentic, proven) = proof::verify_gateway(
            &self.config,
            payloads,
            &self.transcript,
            &self.channel.keys,
            self.hashes.is_some(),
            cx.unix,
        )?;
        let mut check = self
            .check(&authentic.path, &authentic.evidence, cx)
            .map_err(Cause::Certificate)?;
        match poll(&mut check, cx) {
            Some(outcome) => {
                let clear = outcome.map_err(Cause::Certificate)?;
                self.advance_verified(payloads, authentic, proven, clear, cx)
            }
            None => {
                let of = Vetted::Gateway {
                    opened: Box::new(opened.clone()),
                    authentic,
                    proven,
                };
                self.vetting = Some(Vetting { check, of });
                Ok(None)
            }
        }
    }

    /// The gateway is proven, and not revoked as far as we want to know.
    fn advance_verified(
        &mut self,
        payloads: &[Payload<'_>],
        authentic: Authentic,
        mut proven: Proven,
        clear: NotRevoked,
        cx: &mut Cx<'_>,
    ) -> Advanced {
        let verified = authentic.clear(&clear);
        proven.notes.extend(clear.notes);
        let is_over = !self.config.profile.auth.method.is_eap();
        self.heed_redirect(payloads, is_over, cx)?;
        let eap = payloads.iter().find_map(|payload| match payload {
            Payload::Eap(packet) => Some(*packet),
            _ => None,
        });
        let auth = &self.config.profile.auth;
        match (auth.method.is_eap(), eap) {
            (false, None) => Ok(Some((verified, proven))),
            (true, None) if auth.certificate_first => {
                if payloads.iter().any(announces_another) {
                    return Err(Cause::Protocol(
                        "IKE_AUTH: the gateway wants to prove itself twice, which is not supported".into(),
                    ));
                }
                self.send_second(cx)?;
                self.progress = Progress::Second {
                    standing: Standing::Verified(verified),
                    proven,
                };
                Ok(None)
            }
            (true, Some(packet)) if !auth.certificate_first => {
                self.start_eap(Standing::Verified(verified), proven, packet, cx)?;
                Ok(None)
            }
            (_, eap) => Err(Cause::EapExpectation {
                gateway_wants_eap: eap.is_some(),
            }),
        }
    }

    /// A gateway that has proven itself may send us to another one, in the first response and in the last (RFC 5685,
    /// section 6). If authentication `is_over` it has an IKE SA, without a child, which it is told to delete.
    fn heed_redirect(
        &mut self,
        payloads: &[Payload<'_>],
        is_over: bool,
        cx: &mut Cx<'_>,
    ) -> Result<(), Cause> {
        let from = self.channel.path.remote.ip();
        let Some(judged) = redirect::proven(&self.config, payloads, from) else {
            return Ok(());
        };
        if is_over {
            self.channel
                .farewell(ExchangeType::INFORMATIONAL, &[delete_ike()], cx);
        }
        Err(judged.map_or_else(|cause| cause, Cause::Redirected))
    }

    /// Says who begins the second round: without AUTH, which means EAP (RFC 4739, section 2.1).
    fn send_second(&mut self, cx: &mut Cx<'_>) -> Result<(), Cause> {
        let user = self.config.profile.auth.outer_identity();
        if let Some(name) = user {
            self.id = user_identity(&name).to_wire();
        }
        let id = Id::new(self.id.0, &self.id.1);
        self.channel
            .request(ExchangeType::IKE_AUTH, &[Payload::IdInitiator(id)], cx)
            .map_err(|error| unsendable(&error))
    }

    fn start_eap(
        &mut self,
        standing: Standing,
        proven: Proven,
        packet: &[u8],
        cx: &mut Cx<'_>,
    ) -> Result<(), Cause> {
        cx.news.push_back(News::Stage(Stage::Eap));
        let ours = our_identity(&self.config, &self.channel);
        let eap = Box::new(method::conversation(&self.config, &standing, &ours)?);
        self.progress = Progress::Eap {
            eap,
            standing,
            proven,
            asked: None,
        };
        self.handle_eap(packet, cx)
    }

    fn handle_eap(&mut self, packet: &[u8], cx: &mut Cx<'_>) -> Result<(), Cause> {
        let Progress::Eap { eap, .. } = &mut self.progress else {
            return Err(Cause::GatewayUnproven);
        };
        let step = eap.handle(packet, cx.rng, cx.unix).map_err(eap_failure)?;
        self.follow_eap(step, cx)
    }

    fn follow_eap(&mut self, step: Step, cx: &mut Cx<'_>) -> Result<(), Cause> {
        match step {
            Step::Reply(reply) => {
                let reply = Zeroizing::new(reply);
                self.channel
                    .request(ExchangeType::IKE_AUTH, &[Payload::Eap(&reply)], cx)
                    .map_err(|error| unsendable(&error))
            }
            Step::Ask(question) => {
                self.ask(question, cx);
                Ok(())
            }
            Step::Check(presented) => {
                let ocsp = Some(presented.ocsp).filter(|octets| !octets.is_empty());
                let evidence = Evidence {
                    ocsp: ocsp.into_iter().collect(),
                    crls: Vec::new(),
                };
                let started = self.check(&presented.path, &evidence, cx);
                let mut check = match started {
                    Ok(check) => check,
                    Err(error) => return self.eap_checked(Err(error), cx),
                };
                match poll(&mut check, cx) {
                    Some(outcome) => self.eap_checked(outcome, cx),
                    None => {
                        let of = Vetted::EapServer;
                        self.vetting = Some(Vetting { check, of });
                        Ok(())
                    }
                }
            }
            Step::Success(msk) => self.send_last(msk, cx),
        }
    }

    /// EAP goes on, or not, with word of its server's certificates.
    fn eap_checked(&mut self, outcome: Result<NotRevoked, CertError>, cx: &mut Cx<'_>) -> Result<(), Cause> {
        let Progress::Eap { eap, proven, .. } = &mut self.progress else {
            return Err(Cause::GatewayUnproven);
        };
        let verdict = outcome.map(|clear| proven.notes.extend(clear.notes));
        let step = eap.checked(verdict, cx.rng, cx.unix).map_err(eap_failure)?;
        self.follow_eap(step, cx)
    }

    /// Begins to find out whether certificates were revoked.
    fn check(&self, path: &[Certificate], evidence: &Evidence, cx: &mut Cx<'_>) -> Result<Check, CertError> {
        let policy = self.config.profile.gateway.revocation;
        let private = fetch::is_private(self.channel.path.remote.ip());
        Check::start(policy, path, evidence, private, &mut means(cx))
    }

    /// What was fetched, or why not.
    pub(super) fn fetched(
        mut self: Box<Self>,
        id: FetchId,
        result: &Result<Vec<u8>, HostFault>,
        cx: &mut Cx<'_>,
    ) -> Next {
        let Some(vetting) = &mut self.vetting else {
            return Ok(State::Auth(self));
        };
        match vetting.check.answer(id, result, &mut means(cx)) {
            Ok(()) => self.vet(cx),
            Err(error) => self.vetted(Err(error), cx),
        }
    }

    /// Goes on with the check of certificates that is under way.
    fn vet(mut self: Box<Self>, cx: &mut Cx<'_>) -> Next {
        let outcome = self
            .vetting
            .as_mut()
            .and_then(|vetting| poll(&mut vetting.check, cx));
        match outcome {
            Some(outcome) => self.vetted(outcome, cx),
            None => Ok(State::Auth(self)),
        }
    }

    /// The check of certificates that was under way is over.
    fn vetted(mut self: Box<Self>, outcome: Result<NotRevoked, CertError>, cx: &mut Cx<'_>) -> Next {
        match (self.vetting.take().map(|vetting| vetting.of), outcome) {
            (None, _) => Ok(State::Auth(self)),
            (Some(Vetted::Gateway { .. }), Err(error)) => Err(self.give_up(Cause::Certificate(error), cx)),
            (
                Some(Vetted::Gateway {
                    opened,
                    authentic,
                    proven,
                }),
                Ok(clear),
            ) => {
                let stage = self.stage();
                let advanced = match opened.payloads() {
                    Ok(payloads) => self.advance_verified(&payloads, authentic, proven, clear, cx),
                    Err(error) => Err(Broken::from(error).into()),
                };
                self.conclude(&opened, advanced, stage, cx)
            }
            (Some(Vetted::EapServer), outcome) => match self.eap_checked(outcome, cx) {
                Ok(()) => Ok(State::Auth(self)),
                Err(cause) => Err(self.give_up(cause, cx)),
            },
        }
    }

    fn ask(&mut self, question: Question, cx: &mut Cx<'_>) {
        let Progress::Eap { asked, .. } = &mut self.progress else {
            return;
        };
        let Question { kind, message } = question;
        // One that nobody can mistake for another, whatever SAs there are.
        let id = PromptId(u32::from_be_bytes(cx.rng.bytes()));
        *asked = Some(Asked {
            id,
            kind,
            since: cx.now,
        });
        cx.news.push_back(News::Prompt(Prompt {
            id,
            kind,
            profile: self.config.profile.name.clone(),
            message,
        }));
    }

    /// EAP is over: proves that we have its key.
    fn send_last(&mut self, msk: Option<Msk>, cx: &mut Cx<'_>) -> Result<(), Cause> {
        let Progress::Eap { standing, proven, .. } = std::mem::replace(&mut self.progress, Progress::First)
        else {
            return Err(Cause::GatewayUnproven);
        };
        let proof =
            self.prove(|keys, octets| Ok(shared_key(&proof::prove_eap(keys, msk.as_ref(), octets))))?;
        self.progress = Progress::Last {
            msk,
            standing,
            proven,
        };
        let payloads: Vec<Payload<'_>> = [proof.auth()].into_iter().chain(proof.notifies()).collect();
        self.channel
            .request(ExchangeType::IKE_AUTH, &payloads, cx)
            .map_err(|error| unsendable(&error))
    }
}

impl Progress {
    /// Why EAP has failed on our side, when the gateway only says that it has.
    fn failure(&self) -> Option<Cause> {
        match self {
            Self::Eap { eap, .. } => eap.failure().cloned().map(Cause::Eap),
            Self::First | Self::Second { .. } | Self::Last { .. } => None,
        }
    }
}

/// None: another request was sent, or something must be found out. Some: authentication is over and good on both sides.
type Advanced = Result<Option<(PeerVerified, Proven)>, Cause>;

fn means<'a>(cx: &'a mut Cx<'_>) -> Means<'a> {
    Means {
        now: cx.now,
        unix: cx.unix,
        rng: cx.rng,
        cache: cx.revocations,
    }
}

/// What has come of a check, if it is over; else what there is to fetch is asked for.
fn poll(check: &mut Check, cx: &mut Cx<'_>) -> Option<Result<NotRevoked, CertError>> {
    let mut fetches = Vec::new();
    let outcome = check.poll(&mut fetches, &mut means(cx));
    if outcome.is_none() {
        cx.news.extend(fetches.into_iter().map(News::Fetch));
    }
    outcome
}

/// Our AUTH, and what RFC 8784 puts beside it.
struct OurProof {
    method: AuthMethod,
    data: Vec<u8>,
    /// PPK_ID, if `data` was made with the PPK.
    ppk_id: Option<Vec<u8>>,
    /// The same AUTH without the PPK, for a gateway that does not have it.
    without_ppk: Option<Vec<u8>>,
}

impl OurProof {
    fn auth(&self) -> Payload<'_> {
        Payload::Auth(wire::Auth {
            method: self.method,
            data: &self.data,
        })
    }

    fn notifies(&self) -> impl Iterator<Item = Payload<'_>> {
        let identity = self.ppk_id.iter().map(|id| notify(NotifyType::PPK_IDENTITY, id));
        let without = self.without_ppk.iter();
        identity.chain(without.map(|data| notify(NotifyType::NO_PPK_AUTH, data)))
    }
}

fn shared_key(mic: &Secret) -> (AuthMethod, Vec<u8>) {
    (AuthMethod::SHARED_KEY_MIC, mic.as_bytes().to_vec())
}

enum Answered {
    More(Box<Auth>),
    Up(Box<Established>),
}

/// IDi: as configured, or what our credentials say.
fn our_identity(config: &SaConfig, channel: &Channel) -> Identity {
    let auth = &config.profile.auth;
    let has_certificate = auth.certificate_first || auth.method.needs_certificate();
    let certificate = config.credentials.chain.first().filter(|_| has_certificate);
    auth.identity
        .clone()
        .or_else(|| certificate.map(Identity::of_certificate))
        .or_else(|| auth.user_identity().as_deref().map(user_identity))
        .unwrap_or_else(|| Identity::Address(channel.path.local.ip()))
}

fn eap_failure(error: EapError) -> Cause {
    match error {
        EapError::MethodOffered { offered, wanted } => Cause::EapMethod { offered, wanted },
        other => Cause::Eap(other),
    }
}

/// A user name as identity: an e-mail address, or else opaque octets.
fn user_identity(name: &str) -> Identity {
    Identity::parse(name).unwrap_or_else(|_| Identity::KeyId(name.as_bytes().to_vec()))
}

/// The addresses that an SA before this one had, as the values of a request (RFC 7296, section 3.15.1): the gateway may
/// give them again.
fn former_addresses(addresses: &[IpNet]) -> [Vec<u8>; 2] {
    let v4 = addresses.iter().find_map(|net| match net.addr() {
        IpAddr::V4(ip) => Some(ip.octets().to_vec()),
        IpAddr::V6(_) => None,
    });
    let v6 = addresses.iter().find_map(|net| match net.addr() {
        IpAddr::V6(ip) => Some([ip.octets().as_slice(), &[128]].concat()),
        IpAddr::V4(_) => None,
    });
    [v4.unwrap_or_default(), v6.unwrap_or_default()]
}

/// Ask for both families, for only then does the gateway say that it has but one (RFC 8983).
fn configuration_request<'a>(dns: bool, [v4, v6]: &'a [Vec<u8>; 2]) -> Cp<'a> {
    let mut wanted: Vec<(CfgAttr, &[u8])> = vec![
        (CfgAttr::INTERNAL_IP4_ADDRESS, v4),
        (CfgAttr::INTERNAL_IP6_ADDRESS, v6),
    ];
    if dns {
        wanted.extend([
            (CfgAttr::INTERNAL_IP4_DNS, [].as_slice()),
            (CfgAttr::INTERNAL_IP6_DNS, &[]),
            (CfgAttr::INTERNAL_DNS_DOMAIN, &[]),
        ]);
    }
    let attributes = wanted
        .into_iter()
        .map(|(kind, value)| CfgAttribute { kind, value })
        .collect();
    Cp {
        kind: CfgType::REQUEST,
        attributes,
    }
}

/// The sender wants to authenticate once more after this (RFC 4739, section 3.2).
fn announces_another(payload: &Payload<'_>) -> bool {
    matches!(payload, Payload::Notify(notify) if notify.kind == NotifyType::ANOTHER_AUTH_FOLLOWS)
}

/// What a response without AUTH and EAP says. Some gateways leave AUTH out when only the Child SA fails.
fn refusal(payloads: &[Payload<'_>]) -> Cause {
    match error_notify(payloads) {
        Some(NotifyType::AUTHENTICATION_FAILED) => Cause::AuthenticationFailed,
        Some(error) => child::refusal(error).unwrap_or(Cause::Refused(error)),
        None => Cause::GatewayUnproven,
    }
}

/// We reject the gateway, not it us: it must be told, or it keeps an SA that nobody uses.
fn is_our_verdict(cause: &Cause) -> bool {
    !is_about_the_child(cause)
        && !matches!(
            cause,
            Cause::AuthenticationFailed
                | Cause::Refused(_)
                | Cause::Eap(EapError::Refused)
                | Cause::Redirected(_)
                | Cause::RedirectRefused { .. }
        )
}

fn is_about_the_child(cause: &Cause) -> bool {
    matches!(
        cause,
        Cause::NoChildProposal
            | Cause::SelectorsRefused
            | Cause::SelectorsNotSubset
            | Cause::SelectorsNarrowed(_)
            | Cause::NoInnerAddress
            | Cause::ChildRefused(_)
            | Cause::ChildProtocol(_)
    )
}
