//! IKE_AUTH: both proofs, EAP, the first Child SA (RFC 7296, sections 1.2, 2.15 and 2.16).

use std::net::IpAddr;

use peregrine_core::command::Path;
use peregrine_core::crypto::Secret;
use peregrine_core::esp::Selectors;
use peregrine_core::pki::{self, Certificate, SignatureEncoding, SignatureScheme};
use peregrine_core::proposal;
use peregrine_core::wire::iana::{AuthMethod, CertEncoding, CfgAttr, CfgType, HashAlgorithm, NotifyType};
use peregrine_core::wire::{
    self, Auth, Cert, CfgAttribute, Cp, EspSpi, Header, Id, Payload, TrafficSelector, Ts,
};

use super::book::{Arrival, Cx, Note, Ticket};
use super::child::{Agreed, Child, choose, exactly, ranges};
use super::config::{ClientAuth, EapOnly, GatewayConfig, Proof, RedirectWhen, Side};
use super::inform::{address, no_nats};
use super::init::applicable;
use super::intermediate::Additional;
use super::keys::{Nonces, SaKeys};
use super::session::{SaState, Session};
use crate::eap_server::{EapServer, ServerStep};

/// What IKE_AUTH needs to know of what was said before.
pub(super) struct Handshake {
    /// RealMessage1.
    pub(super) request: Vec<u8>,
    /// RealMessage2.
    pub(super) response: Vec<u8>,
    pub(super) nonces: Nonces,
    pub(super) additional: Additional,
    /// The ticket that the client came with.
    ticket: Option<(Vec<u8>, Ticket)>,
    eap: Option<EapServer>,
    /// The client has proven itself by certificate, and has a second round to go.
    signed: bool,
    /// The secrets that the client's AUTH and ours are made with, once EAP is over.
    after_eap: Option<[Vec<u8>; 2]>,
    offer: Option<Offer>,
    wishes: Wishes,
}

/// What the client offers and asks for in its first IKE_AUTH request.
#[derive(Default)]
struct Wishes {
    mobike: bool,
    initial_contact: bool,
    ticket: bool,
    /// OCSP responses with our certificates (RFC 4806).
    ocsp: bool,
    /// Families of inner addresses that it asks for, and which address it would like.
    families: Vec<CfgAttr>,
    hints: Vec<IpAddr>,
}

struct Offer {
    spi: EspSpi,
    proposal: wire::Proposal<'static>,
    suite: proposal::EspSuite,
    remote: Vec<TrafficSelector>,
}

impl Handshake {
    pub(super) fn new(
        request: Vec<u8>,
        response: Vec<u8>,
        nonces: Nonces,
        additional: Additional,
        ticket: Option<(Vec<u8>, Ticket)>,
    ) -> Self {
        Self {
            request,
            response,
            nonces,
            additional,
            ticket,
            eap: None,
            signed: false,
            after_eap: None,
            offer: None,
            wishes: Wishes::default(),
        }
    }

    /// What AUTH covers: `RealMessage | Nonce of the other | prf(SK_p, ID) [| IntAuth]`.
    fn octets(&self, side: Side, keys: &SaKeys, id: &[u8]) -> Vec<u8> {
        let (message, nonce, key) = match side {
            Side::Client => (&self.request, &self.nonces.responder, &keys.proof_initiator),
            Side::Gateway => (&self.response, &self.nonces.initiator, &keys.proof_responder),
        };
        let mac = keys.prf.compute(key.as_bytes(), &[id]);
        let int_auth = self.additional.int_auth();
        [message.as_slice(), nonce, mac.as_bytes(), &int_auth].concat()
    }

    /// Takes what the first request says.
    fn read(&mut self, payloads: &[Payload<'_>], config: &GatewayConfig) {
        let (mut sa, mut remote) = (None, None);
        for payload in payloads {
            match payload {
                Payload::Sa(value) => sa = Some(value),
                Payload::TsResponder(value) => remote = Some(ranges(value)),
                Payload::Cp(cp) if cp.kind == CfgType::REQUEST => {
                    self.wishes.families = cp.attributes.iter().map(|it| it.kind).collect();
                    let hints = cp.attributes.iter().filter_map(|it| match it.kind {
                        CfgAttr::INTERNAL_IP4_ADDRESS => address(it.value),
                        CfgAttr::INTERNAL_IP6_ADDRESS => it.value.get(..16).and_then(address),
                        _ => None,
                    });
                    self.wishes.hints = hints.collect();
                }
                Payload::CertReq(it) => self.wishes.ocsp |= it.encoding == CertEncoding::OCSP_CONTENT,
                Payload::Notify(it) => match it.kind {
                    NotifyType::MOBIKE_SUPPORTED => self.wishes.mobike = true,
                    NotifyType::INITIAL_CONTACT => self.wishes.initial_contact = true,
                    NotifyType::TICKET_REQUEST => self.wishes.ticket = true,
                    _ => {}
                },
                _ => {}
            }
        }
        if let (Some(sa), Some(remote)) = (sa, remote) {
            let chosen = choose(sa, |answer| {
                proposal::select_esp(&config.esp, std::slice::from_ref(answer), false).ok()
            });
            self.offer = chosen.map(|(proposal, (suite, spi))| Offer {
                spi,
                proposal,
                suite,
                remote,
            });
        }
    }
}

/// `prf(prf(Shared Secret, "Key Pad for IKEv2"), <octets>)`.
fn mic(keys: &SaKeys, secret: &[u8], octets: &[u8]) -> Secret {
    let key = keys.prf.compute(secret, &[b"Key Pad for IKEv2"]);
    keys.prf.compute(key.as_bytes(), &[octets])
}

/// How the gateway's AUTH is made.
#[derive(Clone, Copy)]
enum ProveWith<'a> {
    /// As configured, with IDr.
    Identity,
    /// With the key that EAP made, or else with SK_pr.
    Eap(&'a [u8]),
    /// With SK_pr, with IDr (RFC 5723, section 4.3.3).
    Resumption,
}

impl Session {
    pub(super) fn authenticate(
        &mut self,
        index: usize,
        header: &Header,
        payloads: &[Payload<'_>],
        path: Path,
        cx: &mut Cx<'_>,
    ) {
        if let Some(handshake) = self.sas[index].handshake.as_deref_mut() {
            assert!(
                handshake.additional.remaining.is_empty(),
                "key exchanges come first"
            );
            handshake.additional.first_auth.get_or_insert(header.message_id);
        }
        let (notes, outcome) = self.judge(index, payloads, path, cx);
        let payloads: Vec<Payload<'_>> = notes.iter().map(Owned::payload).collect();
        self.answer(index, header, &payloads, path, cx);
        if outcome == Outcome::Up {
            self.come_up(index, cx);
        }
    }

    /// The answer to an IKE_AUTH request, and what it means for the session.
    fn judge(
        &mut self,
        index: usize,
        payloads: &[Payload<'_>],
        path: Path,
        cx: &mut Cx<'_>,
    ) -> (Vec<Owned>, Outcome) {
        if let Some(kind) = cx.config.refuse_auth {
            return refuse(kind);
        }
        let (mut auth, mut leaf, mut eap) = (None, None, None);
        for payload in payloads {
            match payload {
                Payload::Auth(value) => auth = Some(*value),
                Payload::IdInitiator(value) => {
                    self.peer.identity = value.body();
                    // RFC 4555, section 3.3: addresses are those of the first IKE_AUTH request.
                    self.path = path;
                    self.esp_path = path;
                }
                Payload::Cert(cert) => leaf = leaf.or_else(|| Certificate::from_der(cert.data).ok()),
                Payload::Eap(packet) => eap = Some(*packet),
                Payload::Notify(it) if it.kind == NotifyType::NO_NATS_ALLOWED && it.data != no_nats(path) => {
                    return refuse(NotifyType::UNEXPECTED_NAT_DETECTED);
                }
                _ => {}
            }
        }
        let sa = &mut self.sas[index];
        let keys = &sa.channel.keys;
        let handshake = sa.handshake.as_deref_mut().expect("IKE_AUTH is going on");
        handshake.read(payloads, cx.config);
        let octets = handshake.octets(Side::Client, keys, &self.peer.identity);
        let has = |kind| {
            payloads
                .iter()
                .any(|payload| matches!(payload, Payload::Notify(it) if it.kind == kind))
        };
        let failed = refuse(NotifyType::AUTHENTICATION_FAILED);
        if let Some((_, ticket)) = &handshake.ticket {
            let expected = keys.prf.compute(keys.proof_initiator.as_bytes(), &[&octets]);
            let is_good = auth.is_some_and(|auth| auth.data == expected.as_bytes());
            return if is_good && ticket.identity == self.peer.identity {
                self.finish(index, ProveWith::Resumption, path, cx)
            } else {
                failed
            };
        }
        if cx.config.ignore_auth && eap.is_none() && handshake.after_eap.is_none() {
            auth = None;
        }
        match (&cx.config.client, auth, eap) {
            (ClientAuth::Psk(psk), Some(auth), None) => {
                if auth.data != mic(keys, psk, &octets).as_bytes() {
                    return failed;
                }
                self.finish(index, ProveWith::Identity, path, cx)
            }
            (ClientAuth::Certificate, Some(auth), None) => {
                let leaf = leaf.expect("the client sent its certificate");
                if !signature_is_good(&leaf, auth, &octets) {
                    return failed;
                }
                self.finish(index, ProveWith::Identity, path, cx)
            }
            (ClientAuth::CertificateThenEap(_), Some(auth), None) if !handshake.signed => {
                assert!(
                    has(NotifyType::MULTIPLE_AUTH_SUPPORTED) && has(NotifyType::ANOTHER_AUTH_FOLLOWS),
                    "the client announces a second round"
                );
                let leaf = leaf.expect("the client sent its certificate");
                if !signature_is_good(&leaf, auth, &octets) {
                    return failed;
                }
                handshake.signed = true;
                (
                    self.prove(index, ProveWith::Identity, cx.config),
                    Outcome::HalfOpen,
                )
            }
            (ClientAuth::CertificateThenEap(make), None, None) if handshake.signed => {
                let packet = handshake.eap.insert(make()).start();
                (vec![Owned::Eap(packet)], Outcome::HalfOpen)
            }
            (ClientAuth::Eap(make), None, None) => {
                let packet = handshake.eap.insert(make()).start();
                let asked = has(NotifyType::EAP_ONLY_AUTHENTICATION);
                if cx.config.eap_only == EapOnly::Always || cx.config.eap_only == EapOnly::IfAsked && asked {
                    let (kind, data) = cx.config.identity.to_wire();
                    let claim = vec![Owned::IdResponder(kind, data.to_vec()), Owned::Eap(packet)];
                    return (claim, Outcome::HalfOpen);
                }
                let mut answer = self.prove(index, ProveWith::Identity, cx.config);
                match applicable(cx.config, RedirectWhen::FirstAuth, path).filter(|_| self.peer.redirects) {
                    // RFC 5685, section 6: the gateway is proven, the client will not be.
                    Some(redirect) => answer.push(Owned::note(NotifyType::REDIRECT, &redirect.to.encode())),
                    None => answer.push(Owned::Eap(packet)),
                }
                (answer, Outcome::HalfOpen)
            }
            (ClientAuth::Eap(_) | ClientAuth::CertificateThenEap(_), None, Some(packet)) => {
                let server = handshake.eap.as_mut().expect("EAP has begun");
                let packet = match server.handle(packet) {
                    ServerStep::Request(packet) | ServerStep::Failure(packet) => packet,
                    ServerStep::Success { packet, msk } => {
                        cx.book
                            .eap_identities
                            .extend(server.identity().map(str::to_owned));
                        handshake.after_eap = Some(match msk {
                            Some(msk) => [msk.to_vec(), msk.to_vec()],
                            None => [&keys.proof_initiator, &keys.proof_responder]
                                .map(|key| key.as_bytes().to_vec()),
                        });
                        packet
                    }
                };
                (vec![Owned::Eap(packet)], Outcome::HalfOpen)
            }
            (ClientAuth::Eap(_) | ClientAuth::CertificateThenEap(_), Some(auth), None) => {
                let [theirs, ours] = handshake.after_eap.clone().expect("EAP is over");
                if auth.data != mic(keys, &theirs, &octets).as_bytes() {
                    return failed;
                }
                self.finish(index, ProveWith::Eap(&ours), path, cx)
            }
            _ => failed,
        }
    }

    /// IDr, CERT and AUTH, or as much of it as belongs there.
    fn prove(&self, index: usize, with: ProveWith<'_>, config: &GatewayConfig) -> Vec<Owned> {
        let sa = &self.sas[index];
        let keys = &sa.channel.keys;
        let handshake = sa.handshake.as_deref().expect("IKE_AUTH is going on");
        let (kind, data) = config.identity.to_wire();
        let id = Id::new(kind, &data).body();
        let mut octets = handshake.octets(Side::Gateway, keys, &id);
        if config.unproven_intermediate {
            octets.truncate(octets.len() - handshake.additional.int_auth().len());
        }
        let shared = |mic: Secret| Owned::Auth(AuthMethod::SHARED_KEY_MIC, mic.as_bytes().to_vec());
        let id = Owned::IdResponder(kind, data.to_vec());
        match with {
            ProveWith::Eap(secret) => {
                let secret = if config.wrong_msk { b"another" } else { secret };
                vec![shared(mic(keys, secret, &octets))]
            }
            ProveWith::Resumption => {
                let key = if config.wrong_msk {
                    b"another"
                } else {
                    keys.proof_responder.as_bytes()
                };
                let proof = keys.prf.compute(key, &[&octets]);
                vec![id, shared(proof)]
            }
            ProveWith::Identity => match &config.proof {
                Proof::Psk(psk) => vec![id, shared(mic(keys, psk, &octets))],
                Proof::Certificate(chain, key) => {
                    let hashes = [2, 3, 4, 5].map(HashAlgorithm);
                    let scheme = key.choose_scheme(&hashes).expect("the gateway's key can sign");
                    let signature = key
                        .sign(scheme, &octets, SignatureEncoding::Der)
                        .expect("the gateway can sign");
                    let identifier = scheme.algorithm_identifier();
                    let length = u8::try_from(identifier.len()).expect("identifiers are short");
                    let proof = [&[length], identifier, &signature].concat();
                    let mut payloads = vec![id];
                    let link =
                        |link: &Certificate| Owned::Cert(CertEncoding::X509_SIGNATURE, link.der().to_vec());
                    payloads.extend(chain.iter().map(link));
                    let wanted = |encoding| encoding != CertEncoding::OCSP_CONTENT || handshake.wishes.ocsp;
                    let evidence = config.evidence.iter().filter(|(encoding, _)| wanted(*encoding));
                    payloads.extend(evidence.map(|(encoding, data)| Owned::Cert(*encoding, data.clone())));
                    payloads.push(Owned::Auth(AuthMethod::DIGITAL_SIGNATURE, proof));
                    payloads
                }
            },
        }
    }

    /// The last answer: the client is proven.
    fn finish(
        &mut self,
        index: usize,
        with: ProveWith<'_>,
        path: Path,
        cx: &mut Cx<'_>,
    ) -> (Vec<Owned>, Outcome) {
        let mut answer = self.prove(index, with, cx.config);
        let first = matches!(with, ProveWith::Identity | ProveWith::Resumption);
        let redirect = applicable(cx.config, RedirectWhen::LastAuth, path)
            .or_else(|| applicable(cx.config, RedirectWhen::FirstAuth, path).filter(|_| first));
        if let Some(redirect) = redirect.filter(|_| self.peer.redirects) {
            answer.push(Owned::note(NotifyType::REDIRECT, &redirect.to.encode()));
            return (answer, Outcome::HalfOpen);
        }
        let sa = &mut self.sas[index];
        let handshake = sa.handshake.as_deref_mut().expect("IKE_AUTH is going on");
        let offer = handshake.offer.take();
        let wishes = std::mem::take(&mut handshake.wishes);
        let refused = cx
            .config
            .refuse_child
            .or_else(|| offer.is_none().then_some(NotifyType::NO_PROPOSAL_CHOSEN));
        match (refused, offer) {
            (None, Some(offer)) => {
                let nonces = handshake.nonces.clone();
                answer.extend(self.first_child(index, offer, &wishes, &nonces, cx));
            }
            (Some(kind), _) if cx.config.bare_refusal => return refuse(kind),
            (kind, _) => answer.extend(kind.map(|kind| Owned::note(kind, &[]))),
        }
        self.peer.mobike = wishes.mobike && cx.config.mobike;
        if self.peer.mobike {
            answer.push(Owned::note(NotifyType::MOBIKE_SUPPORTED, &[]));
            answer.extend(self.additional_addresses(cx.config).into_iter().map(Owned::Note));
        }
        if let Some(lifetime) = cx.config.auth_lifetime {
            self.auth_deadline = Some(cx.now + lifetime);
            let seconds = u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX);
            answer.push(Owned::note(NotifyType::AUTH_LIFETIME, &seconds.to_be_bytes()));
        }
        if wishes.ticket {
            let sa = &self.sas[index];
            answer.extend(self.issue_ticket(&sa.channel.keys, sa.suite, cx).map(Owned::Note));
        }
        let sa = &mut self.sas[index];
        let ticket = sa
            .handshake
            .as_deref_mut()
            .and_then(|handshake| handshake.ticket.take());
        let continues = ticket.map(|(octets, ticket)| {
            // RFC 5723, section 4.3.1: once.
            cx.book.tickets.remove(&octets);
            ticket.session
        });
        cx.book.arrival = Some(Arrival {
            session: self.number,
            identity: self.peer.identity.clone(),
            initial_contact: wishes.initial_contact,
            continues,
        });
        (answer, Outcome::Up)
    }

    /// The first Child SA, with what the answer says of it.
    fn first_child(
        &mut self,
        index: usize,
        offer: Offer,
        wishes: &Wishes,
        nonces: &Nonces,
        cx: &mut Cx<'_>,
    ) -> Vec<Owned> {
        let config = cx.config;
        let leased = cx.book.leases.assign(&self.peer.identity, &wishes.hints, config);
        let asked_for = |ip: &IpAddr| {
            let kind = if ip.is_ipv4() {
                CfgAttr::INTERNAL_IP4_ADDRESS
            } else {
                CfgAttr::INTERNAL_IP6_ADDRESS
            };
            wishes.families.contains(&kind)
        };
        let addresses: Vec<IpAddr> = leased.into_iter().filter(asked_for).collect();
        let attributes = addresses
            .iter()
            .map(|ip| match ip {
                IpAddr::V4(ip) => (CfgAttr::INTERNAL_IP4_ADDRESS, ip.octets().to_vec()),
                IpAddr::V6(ip) => (
                    CfgAttr::INTERNAL_IP6_ADDRESS,
                    [ip.octets().as_slice(), &[128]].concat(),
                ),
            })
            .chain(config.servers.iter().map(|ip| match ip {
                IpAddr::V4(ip) => (CfgAttr::INTERNAL_IP4_DNS, ip.octets().to_vec()),
                IpAddr::V6(ip) => (CfgAttr::INTERNAL_IP6_DNS, ip.octets().to_vec()),
            }))
            .collect();
        let mut of_client = exactly(&addresses);
        if of_client.is_empty() {
            of_client = vec![TrafficSelector::ANY_V4];
        }
        let behind = config.selectors.clone().unwrap_or(offer.remote);
        let inbound = cx.book.esp_spi();
        let mut proposal = offer.proposal;
        proposal.spi = inbound.0.to_be_bytes().to_vec().into();
        self.selectors = (behind.clone(), of_client.clone());
        let agreed = Agreed {
            initiator: Side::Client,
            suite: offer.suite,
            inbound,
            outbound: offer.spi,
            selectors: Selectors {
                local: behind.clone(),
                remote: of_client.clone(),
            },
            shared: Vec::new(),
        };
        let keys = &self.sas[index].channel.keys;
        self.children.push(Child::new(agreed, keys, nonces, cx.now));
        vec![
            Owned::Cp(attributes),
            Owned::Sa(proposal),
            Owned::TsInitiator(of_client),
            Owned::TsResponder(behind),
        ]
    }

    /// The gateway's addresses beside the one that the client uses (RFC 4555, section 3.4).
    pub(super) fn additional_addresses(&self, config: &GatewayConfig) -> Vec<Note> {
        let others = config.addresses.iter().filter(|ip| **ip != self.path.local.ip());
        others
            .map(|ip| match ip {
                IpAddr::V4(ip) => Note::new(NotifyType::ADDITIONAL_IP4_ADDRESS, &ip.octets()),
                IpAddr::V6(ip) => Note::new(NotifyType::ADDITIONAL_IP6_ADDRESS, &ip.octets()),
            })
            .collect()
    }

    fn come_up(&mut self, index: usize, cx: &Cx<'_>) {
        let sa = &mut self.sas[index];
        sa.state = SaState::Up;
        sa.until = None;
        sa.made = cx.now;
    }
}

/// What an IKE_AUTH request has led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// Authentication goes on, or has failed: the client may ask again.
    HalfOpen,
    /// Both ends are proven.
    Up,
}

fn refuse(kind: NotifyType) -> (Vec<Owned>, Outcome) {
    (vec![Owned::note(kind, &[])], Outcome::HalfOpen)
}

/// A payload of an answer that owns its content.
enum Owned {
    IdResponder(wire::iana::IdType, Vec<u8>),
    Cert(CertEncoding, Vec<u8>),
    Auth(AuthMethod, Vec<u8>),
    Eap(Vec<u8>),
    Cp(Vec<(CfgAttr, Vec<u8>)>),
    Sa(wire::Proposal<'static>),
    TsInitiator(Vec<TrafficSelector>),
    TsResponder(Vec<TrafficSelector>),
    Note(Note),
}

impl Owned {
    fn note(kind: NotifyType, data: &[u8]) -> Self {
        Self::Note(Note::new(kind, data))
    }

    fn payload(&self) -> Payload<'_> {
        match self {
            Self::IdResponder(kind, data) => Payload::IdResponder(Id::new(*kind, data)),
            Self::Cert(encoding, data) => Payload::Cert(Cert {
                encoding: *encoding,
                data,
            }),
            Self::Auth(method, data) => Payload::Auth(Auth {
                method: *method,
                data,
            }),
            Self::Eap(packet) => Payload::Eap(packet),
            Self::Cp(attributes) => Payload::Cp(Cp {
                kind: CfgType::REPLY,
                attributes: attributes
                    .iter()
                    .map(|(kind, value)| CfgAttribute { kind: *kind, value })
                    .collect(),
            }),
            Self::Sa(proposal) => Payload::Sa(vec![proposal.clone()]),
            Self::TsInitiator(ranges) => Payload::TsInitiator(ranges.iter().copied().map(Ts::from).collect()),
            Self::TsResponder(ranges) => Payload::TsResponder(ranges.iter().copied().map(Ts::from).collect()),
            Self::Note(note) => note.payload(),
        }
    }
}

fn signature_is_good(leaf: &Certificate, auth: Auth<'_>, octets: &[u8]) -> bool {
    let (scheme, signature, encoding) = match auth.method {
        AuthMethod::DIGITAL_SIGNATURE => {
            let (identifier, signature) = auth.data[1..].split_at(auth.data[0].into());
            let Some(scheme) = SignatureScheme::from_algorithm_identifier(identifier) else {
                return false;
            };
            (scheme, signature, SignatureEncoding::Der)
        }
        AuthMethod::ECDSA_P256_SHA256 => (SignatureScheme::EcdsaSha2_256, auth.data, SignatureEncoding::Raw),
        AuthMethod::ECDSA_P384_SHA384 => (SignatureScheme::EcdsaSha2_384, auth.data, SignatureEncoding::Raw),
        AuthMethod::ECDSA_P521_SHA512 => (SignatureScheme::EcdsaSha2_512, auth.data, SignatureEncoding::Raw),
        _ => return false,
    };
    pki::verify_signature(leaf, scheme, octets, signature, encoding).is_ok()
}
