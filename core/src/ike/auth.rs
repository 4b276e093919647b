//! IKE_AUTH: both sides prove who they are, and the first Child SA is made (RFC 7296, sections 1.2 and 2.16).

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::channel::{Channel, Opened};
use super::child::{self, ChildOffer};
use super::established::{self, Established};
use super::init::Agreed;
use super::keys::PpkKeys;
use super::nat::Nat;
use super::proof::{self, PeerVerified, Proven, Transcript, shared_key_mic};
use super::{
    Broken, Cx, News, Next, SaConfig, State, delete_ike, error_notify, notify, refuse_critical, unsendable,
};
use crate::command::{Cause, Failure, Path, Stage};
use crate::crypto::Prf;
use crate::eap::{Eap, EapConfig, EapError, EapMethod, EapMsChapV2, EapTls, Msk, Step};
use crate::profile::{AuthKind, DnsPolicy, Identity};
use crate::proposal::{self, IkeSuite};
use crate::timer::{Instant, Timer};
use crate::wire::iana::{
    AuthMethod, CertEncoding, CfgAttr, CfgType, ExchangeType, HashAlgorithm, IdType, NotifyType,
};
use crate::wire::{self, Cert, CertReq, CfgAttribute, Cp, Header, Id, Payload, Ts};

/// A gateway that asks a slow RADIUS server needs longer than one that answers by itself.
const PATIENCE: Duration = Duration::from_secs(30);
/// The largest EAP packet that we send, in octets: what fits into RADIUS on its way to an authentication server.
const EAP_FRAGMENT: usize = 1024;
/// The type of a PPK_ID that is configured on both sides (RFC 8784, section 5.1).
const PPK_ID_FIXED: u8 = 2;
/// The whole of IKE_AUTH.
const DEADLINE: Duration = Duration::from_secs(90);

/// IKE_AUTH under way.
pub(super) struct Auth {
    config: Arc<SaConfig>,
    pub(super) channel: Channel,
    transcript: Transcript,
    suite: IkeSuite,
    nat: Nat,
    hashes: Option<Vec<HashAlgorithm>>,
    uses_ppk: bool,
    /// The keys without the PPK, from our AUTH on until the gateway says whether it has the PPK.
    without_ppk: Option<PpkKeys>,
    /// IDi': what our AUTH covers of our identity.
    id: (IdType, Vec<u8>),
    offer: ChildOffer,
    progress: Progress,
    started: Instant,
}

/// How far IKE_AUTH has come.
enum Progress {
    /// The gateway has not proven anything.
    First,
    /// The gateway is proven; EAP rounds prove us.
    Eap {
        eap: Box<Eap>,
        verified: PeerVerified,
        proven: Proven,
    },
    /// EAP is over; both sides prove that they share its key.
    Last {
        msk: Msk,
        verified: PeerVerified,
        proven: Proven,
    },
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
        } = agreed;
        let id = our_identity(&config, &channel).to_wire();
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
            without_ppk: None,
            id,
            offer,
            progress,
            started: cx.now,
        };
        match auth.send_first(cx) {
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
        let prf = self.channel.keys.prf;
        let auth = match method {
            AuthKind::Psk => {
                let psk = credentials.psk.as_ref();
                let psk = psk.ok_or_else(|| Cause::Credential("the profile has no pre-shared key".into()))?;
                Some(self.prove(|octets| Ok(shared_key_auth(prf, psk.as_bytes(), octets)))?)
            }
            AuthKind::Certificate => {
                let hashes = self.hashes.clone();
                Some(self.prove(|octets| proof::sign(&config, hashes.as_deref(), octets))?)
            }
            AuthKind::EapTls | AuthKind::EapMsChapV2 => None,
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
        if method == AuthKind::Certificate {
            payloads.extend(credentials.chain.iter().map(|link| {
                Payload::Cert(Cert {
                    encoding: CertEncoding::X509_SIGNATURE,
                    data: link.der(),
                })
            }));
        }
        if profile.ike.initial_contact {
            payloads.push(notify(NotifyType::INITIAL_CONTACT, &[]));
        }
        if method != AuthKind::Psk {
            // Without it many gateways send no certificate at all.
            payloads.push(Payload::CertReq(CertReq {
                encoding: CertEncoding::X509_SIGNATURE,
                data: &authorities,
            }));
        }
        if profile.gateway.send_idr {
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
        if profile.ike.mobike {
            payloads.push(notify(NotifyType::MOBIKE_SUPPORTED, &[]));
        }
        payloads.extend(auth.iter().flat_map(OurProof::notifies));
        self.channel
            .request(ExchangeType::IKE_AUTH, &payloads, cx)
            .map_err(|error| unsendable(&error))
    }

    /// Our AUTH, made by `sign` of the octets that it covers. If both sides know of a PPK, it is stirred into the keys from
    /// here on (RFC 8784, section 3).
    fn prove(
        &mut self,
        sign: impl Fn(&[u8]) -> Result<(AuthMethod, Vec<u8>), Cause>,
    ) -> Result<OurProof, Cause> {
        let id = Id::new(self.id.0, &self.id.1).body();
        let config = Arc::clone(&self.config);
        let ppk = config.ppk().filter(|_| self.uses_ppk);
        let mut proof = OurProof {
            ppk_id: None,
            without_ppk: None,
            method: AuthMethod::SHARED_KEY_MIC,
            data: Vec::new(),
        };
        if let Some((ppk, secret)) = ppk {
            if !ppk.required {
                let octets = self.transcript.initiator_octets(&self.channel.keys, &id);
                let (_, data) = sign(&octets)?;
                proof.without_ppk = Some(data);
            }
            proof.ppk_id = Some([&[PPK_ID_FIXED], ppk.id.as_slice()].concat());
            self.without_ppk = Some(self.channel.keys.stir_in(secret).map_err(Broken::from)?);
        } else if config.ppk().is_some() {
            tracing::warn!("the gateway knows no post-quantum pre-shared keys: going on without");
        }
        let octets = self.transcript.initiator_octets(&self.channel.keys, &id);
        (proof.method, proof.data) = sign(&octets)?;
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

    fn stage(&self) -> Stage {
        match self.progress {
            Progress::First => Stage::IkeAuth,
            Progress::Eap { .. } | Progress::Last { .. } => Stage::Eap,
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<(Instant, Timer)> {
        let deadline = (self.started + DEADLINE, Timer::AttemptDeadline);
        Some(
            self.channel
                .poll_timeout(PATIENCE)
                .map_or(deadline, |due| deadline.min(due)),
        )
    }

    pub(super) fn handle_timeout(mut self: Box<Self>, cx: &mut Cx<'_>) -> Next {
        if self.channel.is_given_up(cx.now, PATIENCE) || cx.now >= self.started + DEADLINE {
            return Err(Failure {
                stage: self.stage(),
                cause: Cause::WentSilent,
            });
        }
        self.channel.handle_timeout(cx);
        Ok(State::Auth(self))
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
        // answered once both sides are proven.
        if Header::decode(message).is_ok_and(|header| !header.flags.response) {
            return Ok(State::Auth(self));
        }
        let Some(opened) = self.channel.open(path, message, cx) else {
            return Ok(State::Auth(self));
        };
        let stage = self.stage();
        match self.answer(&opened, cx) {
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
        mut self: Box<Self>,
        opened: &Opened,
        cx: &mut Cx<'_>,
    ) -> Result<Answered, (Cause, Box<Channel>)> {
        match self.advance(opened, cx) {
            Ok(None) => Ok(Answered::More(self)),
            Ok(Some((verified, proven))) => {
                let Self {
                    config,
                    mut channel,
                    transcript,
                    suite,
                    nat,
                    offer,
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
                            identity: proven.identity,
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

    /// One response. None: another request was sent. Some: authentication is over and good on both sides.
    fn advance(&mut self, opened: &Opened, cx: &mut Cx<'_>) -> Result<Option<(PeerVerified, Proven)>, Cause> {
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
            Progress::First => {
                let wants_eap = matches!(
                    self.config.profile.auth.method,
                    AuthKind::EapTls | AuthKind::EapMsChapV2
                );
                if !has_auth {
                    return Err(Cause::GatewayUnproven);
                }
                let (verified, proven) = proof::verify_gateway(
                    &self.config,
                    &payloads,
                    &self.transcript,
                    &self.channel.keys,
                    self.hashes.is_some(),
                    cx.unix,
                )?;
                match (wants_eap, eap) {
                    (false, None) => Ok(Some((verified, proven))),
                    (true, Some(packet)) => {
                        cx.news.push_back(News::Stage(Stage::Eap));
                        let eap = Box::new(Eap::new(self.eap_config(&verified)?));
                        self.progress = Progress::Eap {
                            eap,
                            verified,
                            proven,
                        };
                        self.handle_eap(packet, cx).map(|()| None)
                    }
                    (_, eap) => Err(Cause::EapExpectation {
                        gateway_wants_eap: eap.is_some(),
                    }),
                }
            }
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
                verified,
                proven,
            } => {
                let auth = payloads.iter().find_map(|payload| match payload {
                    Payload::Auth(auth) => Some(auth),
                    _ => None,
                });
                let auth = auth.ok_or(Cause::GatewayUnproven)?;
                proof::verify_msk(&proven, auth, &self.transcript, &self.channel.keys, &msk)?;
                Ok(Some((verified, proven)))
            }
        }
    }

    /// No secret is within reach of an EAP method before the gateway is proven, hence the witness.
    fn eap_config(&self, _witness: &PeerVerified) -> Result<EapConfig, Cause> {
        let SaConfig {
            profile, credentials, ..
        } = &*self.config;
        let auth = &profile.auth;
        let identity = auth.eap_identity.clone().or_else(|| auth.username.clone());
        let anchors = auth.aaa_anchors.as_ref().unwrap_or(&profile.gateway.anchors);
        let missing = |what: &str| Cause::Credential(format!("the profile has no {what}"));
        let method = match auth.method {
            AuthKind::EapTls => EapMethod::Tls(EapTls {
                chain: credentials.chain.clone(),
                key: credentials
                    .key
                    .clone()
                    .ok_or_else(|| missing("private key for EAP-TLS"))?,
                anchors: anchors.certificates.clone(),
                server_identity: auth
                    .aaa_identity
                    .clone()
                    .unwrap_or_else(|| profile.gateway.identity.clone()),
                fragment_size: EAP_FRAGMENT,
            }),
            AuthKind::EapMsChapV2 => EapMethod::MsChapV2(EapMsChapV2 {
                username: auth.username.clone().ok_or_else(|| missing("user name"))?,
                password: credentials.password.clone().ok_or_else(|| missing("password"))?,
            }),
            AuthKind::Psk | AuthKind::Certificate => {
                return Err(Cause::EapExpectation {
                    gateway_wants_eap: true,
                });
            }
        };
        let identity = identity.unwrap_or_else(|| our_identity(&self.config, &self.channel).to_string());
        Ok(EapConfig { identity, method })
    }

    fn handle_eap(&mut self, packet: &[u8], cx: &mut Cx<'_>) -> Result<(), Cause> {
        let Progress::Eap {
            mut eap,
            verified,
            proven,
        } = std::mem::replace(&mut self.progress, Progress::First)
        else {
            return Err(Cause::GatewayUnproven);
        };
        let step = eap.handle(packet, cx.rng, cx.unix).map_err(|error| match error {
            EapError::MethodOffered { offered, wanted } => Cause::EapMethod { offered, wanted },
            other => Cause::Eap(other),
        })?;
        match step {
            Step::Reply(reply) => {
                self.progress = Progress::Eap {
                    eap,
                    verified,
                    proven,
                };
                self.channel
                    .request(ExchangeType::IKE_AUTH, &[Payload::Eap(&reply)], cx)
            }
            Step::Success(msk) => {
                let prf = self.channel.keys.prf;
                let proof = self.prove(|octets| Ok(shared_key_auth(prf, msk.as_bytes(), octets)))?;
                self.progress = Progress::Last {
                    msk,
                    verified,
                    proven,
                };
                let payloads: Vec<Payload<'_>> = [proof.auth()].into_iter().chain(proof.notifies()).collect();
                self.channel.request(ExchangeType::IKE_AUTH, &payloads, cx)
            }
        }
        .map_err(|error| unsendable(&error))
    }
}

impl Progress {
    /// Why EAP has failed on our side, when the gateway only says that it has.
    fn failure(&self) -> Option<Cause> {
        match self {
            Self::Eap { eap, .. } => eap.failure().cloned().map(Cause::Eap),
            Self::First | Self::Last { .. } => None,
        }
    }
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

fn shared_key_auth(prf: Prf, secret: &[u8], octets: &[u8]) -> (AuthMethod, Vec<u8>) {
    let mic = shared_key_mic(prf, secret, octets);
    (AuthMethod::SHARED_KEY_MIC, mic.as_bytes().to_vec())
}

enum Answered {
    More(Box<Auth>),
    Up(Box<Established>),
}

/// IDi: as configured, or what our credentials say.
fn our_identity(config: &SaConfig, channel: &Channel) -> Identity {
    let auth = &config.profile.auth;
    let certificate = match auth.method {
        AuthKind::Certificate | AuthKind::EapTls => config.credentials.chain.first(),
        AuthKind::Psk | AuthKind::EapMsChapV2 => None,
    };
    auth.identity
        .clone()
        .or_else(|| certificate.map(Identity::of_certificate))
        .or_else(|| auth.username.as_deref().map(user_identity))
        .unwrap_or_else(|| Identity::Address(channel.path.local.ip()))
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
            Cause::AuthenticationFailed | Cause::Refused(_) | Cause::Eap(EapError::Refused)
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
