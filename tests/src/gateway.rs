//! A gateway in memory: an IKEv2 responder that decides every octet and every delay.
//!
//! It shares `wire` and `crypto` with the client and so proves nothing about how we read the RFC; it proves how the
//! client behaves when messages are lost, repeated, late or hostile. The real gateways are in `netns/`.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use peregrine_core::command::Path;
use peregrine_core::crypto::{KeyExchange, PacketKey, Prf, Secret, sha1};
use peregrine_core::esp::{Inbound, Outbound, Selectors};
use peregrine_core::pki::{self, Certificate, PrivateKey, SignatureEncoding, SignatureScheme};
use peregrine_core::profile::Identity;
use peregrine_core::proposal::{self, EspProposal, IkeProposal};
use peregrine_core::rng::Rng;
use peregrine_core::timer::Instant;
use peregrine_core::wire::iana::{
    AuthMethod, CertEncoding, CfgAttr, CfgType, ExchangeType, HashAlgorithm, KeMethod, NotifyType,
    PayloadType, ProtocolId,
};
use peregrine_core::wire::{
    self, Auth, Cert, CfgAttribute, Cp, Delete, EspSpi, Flags, Header, Id, IkeSpi, Ke, Message, Notify,
    Payload, Reassembly, TrafficSelector, Ts, decode_payloads, encode_message, open_sealed, seal_fragments,
};

use crate::eap_server::{EapServer, ServerStep};

/// How the gateway behaves.
pub struct GatewayConfig {
    /// IDr.
    pub identity: Identity,
    /// How it proves itself.
    pub proof: Proof,
    /// What it demands of the client.
    pub client: ClientAuth,
    /// IKE proposals that it accepts, in its order of preference.
    pub ike: Vec<IkeProposal>,
    /// ESP proposals that it accepts.
    pub esp: Vec<EspProposal>,
    /// Demand a cookie first, another one for every request (RFC 7296, section 2.6).
    pub cookie: bool,
    /// Answer IKE_SA_INIT with this error instead.
    pub refuse_init: Option<NotifyType>,
    /// Answer every IKE_AUTH with this error instead.
    pub refuse_auth: Option<NotifyType>,
    /// Answer the Child SA with this error instead.
    pub refuse_child: Option<NotifyType>,
    /// Leave AUTH out when the Child SA is refused, as some gateways do.
    pub bare_refusal: bool,
    /// Make the AUTH after EAP with another key.
    pub wrong_msk: bool,
    /// Ask for this key exchange method, whatever was offered.
    pub insist_on: Option<KeMethod>,
    /// Speak RFC 7427.
    pub signature_hashes: bool,
    /// Cut IKE messages above this many octets (RFC 7383); none: no support.
    pub fragment: Option<usize>,
    /// Inner addresses that it assigns.
    pub pool: Vec<IpAddr>,
    /// Name servers that it assigns.
    pub servers: Vec<IpAddr>,
    /// TSr; none: as the client asked.
    pub selectors: Option<Vec<TrafficSelector>>,
}

/// How the gateway proves itself.
pub enum Proof {
    /// A pre-shared key.
    Psk(Vec<u8>),
    /// A certificate chain and its key.
    Certificate(Vec<Certificate>, PrivateKey),
}

/// What the gateway demands of the client.
pub enum ClientAuth {
    /// A pre-shared key.
    Psk(Vec<u8>),
    /// A signature by the key of the certificate that comes with it.
    Certificate,
    /// EAP.
    Eap(Box<EapServer>),
}

/// A datagram of the gateway's.
pub type Outgoing = (Path, Vec<u8>);

struct Keys {
    prf: Prf,
    derive: Secret,
    proof_initiator: Secret,
    proof_responder: Secret,
    seal: PacketKey,
    open: PacketKey,
    iv: u64,
}

struct Sa {
    spi_i: IkeSpi,
    spi_r: IkeSpi,
    path: Path,
    keys: Keys,
    request: Vec<u8>,
    response: Vec<u8>,
    nonces: (Vec<u8>, Vec<u8>),
    fragment: Option<usize>,
    expected: u32,
    answered: Vec<Vec<u8>>,
    reassembly: Reassembly,
    own: Own,
    /// IDi as it came, once EAP is running.
    id: Option<Vec<u8>>,
    offer: Option<Offer>,
    msk: Option<Vec<u8>>,
    child: Option<Child>,
}

/// The gateway's own requests.
#[derive(Default)]
struct Own {
    next: u32,
    pending: Option<(Vec<Vec<u8>>, Instant, u32)>,
    answers: VecDeque<Vec<NotifyType>>,
}

struct Offer {
    spi: EspSpi,
    proposal: wire::Proposal<'static>,
    suite: proposal::EspSuite,
    remote: Vec<TrafficSelector>,
}

struct Child {
    outbound: Outbound,
    inbound: Inbound,
    inbound_spi: EspSpi,
}

/// The gateway.
pub struct Gateway {
    /// How it behaves. May be changed between messages.
    pub config: GatewayConfig,
    rng: Rng,
    sas: Vec<Sa>,
    /// Inner packets that came through the tunnel.
    pub received: Vec<Vec<u8>>,
    /// Answer every inner packet with its reverse.
    pub echo: bool,
    out: Vec<Outgoing>,
    cookies: u32,
    /// Every decrypted payload type that the client sent, with the exchange: what an eavesdropper at the gateway sees.
    pub transcript: Vec<(ExchangeType, u32, Vec<PayloadType>)>,
    /// No more than this is answered: the gateway is dead.
    pub silent: bool,
}

const RETRY: Duration = Duration::from_secs(1);

impl Gateway {
    /// A gateway with its own random numbers.
    #[must_use]
    pub fn new(config: GatewayConfig, seed: u8) -> Self {
        Self {
            config,
            rng: Rng::new([seed; 32]),
            sas: Vec::new(),
            received: Vec::new(),
            echo: true,
            out: Vec::new(),
            cookies: 0,
            transcript: Vec::new(),
            silent: false,
        }
    }

    /// How many IKE SAs have a child.
    #[must_use]
    pub fn established(&self) -> usize {
        self.sas.iter().filter(|sa| sa.child.is_some()).count()
    }

    /// How many IKE SAs there are, finished or not.
    #[must_use]
    pub fn sas(&self) -> usize {
        self.sas.len()
    }

    /// What the client answered the gateway's requests with: the notifies of each answer.
    #[must_use]
    pub fn answers(&self) -> Vec<Vec<NotifyType>> {
        self.sas
            .iter()
            .flat_map(|sa| sa.own.answers.iter().cloned())
            .collect()
    }

    /// When the gateway has something to send again.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.silent {
            return None;
        }
        self.sas
            .iter()
            .filter_map(|sa| sa.own.pending.as_ref().map(|(_, due, _)| *due))
            .min()
    }

    /// Sends again what the client has not answered, eight times at most.
    pub fn handle_timeout(&mut self, now: Instant) -> Vec<Outgoing> {
        for sa in &mut self.sas {
            let Some((messages, due, tries)) = &mut sa.own.pending else {
                continue;
            };
            if now < *due {
                continue;
            }
            if *tries >= 8 {
                sa.own.pending = None;
                continue;
            }
            *tries += 1;
            *due = now + RETRY;
            let messages = messages.clone();
            self.out
                .extend(messages.iter().map(|message| wrap(sa.path, message)));
        }
        std::mem::take(&mut self.out)
    }

    /// Asks every client whether it lives.
    pub fn ask_liveness(&mut self, now: Instant) -> Vec<Outgoing> {
        self.ask(now, ExchangeType::INFORMATIONAL, |_| vec![])
    }

    /// Ends every IKE SA.
    pub fn delete_ike(&mut self, now: Instant) -> Vec<Outgoing> {
        self.ask(now, ExchangeType::INFORMATIONAL, |_| {
            vec![Payload::Delete(Delete {
                protocol: ProtocolId::IKE,
                spis: vec![],
            })]
        })
    }

    /// Ends every Child SA.
    pub fn delete_child(&mut self, now: Instant) -> Vec<Outgoing> {
        let spis: Vec<[u8; 4]> = self
            .sas
            .iter()
            .map(|sa| {
                sa.child
                    .as_ref()
                    .map_or([0; 4], |child| child.inbound_spi.0.to_be_bytes())
            })
            .collect();
        self.ask(now, ExchangeType::INFORMATIONAL, |index| {
            vec![Payload::Delete(Delete {
                protocol: ProtocolId::ESP,
                spis: vec![&spis[index]],
            })]
        })
    }

    /// Begins to rekey every Child SA.
    pub fn rekey_child(&mut self, now: Instant) -> Vec<Outgoing> {
        let nonce = [9; 32];
        let offer = proposal::esp_offer(&self.config.esp, EspSpi(0x1234_5678), true);
        self.ask(now, ExchangeType::CREATE_CHILD_SA, |_| {
            vec![
                Payload::Notify(Notify {
                    protocol: ProtocolId::ESP,
                    spi: &[1, 2, 3, 4],
                    kind: NotifyType::REKEY_SA,
                    data: &[],
                }),
                Payload::Sa(offer.clone()),
                Payload::Nonce(&nonce),
                Payload::TsInitiator(vec![Ts::from(TrafficSelector::ANY_V4)]),
                Payload::TsResponder(vec![Ts::from(TrafficSelector::ANY_V4)]),
            ]
        })
    }

    fn ask<'a>(
        &mut self,
        now: Instant,
        exchange: ExchangeType,
        payloads: impl Fn(usize) -> Vec<Payload<'a>>,
    ) -> Vec<Outgoing> {
        for (index, sa) in self.sas.iter_mut().enumerate() {
            let header = sa.header(exchange, sa.own.next, false);
            sa.own.next += 1;
            let messages = sa.seal(header, &payloads(index));
            self.out
                .extend(messages.iter().map(|message| wrap(sa.path, message)));
            sa.own.pending = Some((messages, now + RETRY, 1));
        }
        std::mem::take(&mut self.out)
    }

    /// A UDP payload from a client. `path` is as the gateway sees it: its own address is `local`.
    pub fn handle(&mut self, path: Path, datagram: &[u8]) -> Vec<Outgoing> {
        if self.silent {
            return Vec::new();
        }
        match datagram {
            [0xff] => {}
            _ if path.local.port() == 500 => self.handle_ike(path, datagram),
            [0, 0, 0, 0, message @ ..] => self.handle_ike(path, message),
            packet => self.handle_esp(packet),
        }
        std::mem::take(&mut self.out)
    }

    /// An inner packet for the client.
    pub fn send(&mut self, packet: &[u8]) -> Vec<Outgoing> {
        for sa in &mut self.sas {
            let Some(child) = &mut sa.child else { continue };
            let mut sealed = vec![0; child.outbound.sealed_len(packet.len())];
            if let Ok(length) = child.outbound.seal(packet, &mut sealed) {
                sealed.truncate(length);
                self.out.push((sa.path, sealed));
            }
        }
        std::mem::take(&mut self.out)
    }

    fn handle_esp(&mut self, packet: &[u8]) {
        let mut packet = packet.to_vec();
        let mut reverses = Vec::new();
        for sa in &mut self.sas {
            let Some(child) = &mut sa.child else { continue };
            if let Ok(inner) = child.inbound.open(&mut packet) {
                self.received.push(inner.to_vec());
                reverses.extend(self.echo.then(|| reverse(inner)));
                break;
            }
        }
        for packet in reverses {
            let sent = self.send(&packet);
            self.out.extend(sent);
        }
    }

    fn handle_ike(&mut self, path: Path, message: &[u8]) {
        let Ok(header) = Header::decode(message) else {
            return;
        };
        if header.exchange == ExchangeType::IKE_SA_INIT {
            self.init(path, message);
            return;
        }
        let Some(index) = self.sas.iter().position(|sa| sa.spi_i == header.initiator_spi) else {
            return;
        };
        if self.sas[index].serve(
            header,
            message.to_vec(),
            &mut self.config,
            &mut self.rng,
            &mut self.out,
            &mut self.transcript,
        ) == Verdict::Gone
        {
            self.sas.remove(index);
        } else {
            self.sas[index].path = path;
        }
    }

    fn init(&mut self, path: Path, raw: &[u8]) {
        let Ok(message) = Message::decode(raw) else { return };
        let header = message.header;
        if header.flags.response || header.message_id != 0 {
            return;
        }
        if let Some(sa) = self.sas.iter().find(|sa| sa.spi_i == header.initiator_spi) {
            if sa.request == raw {
                let again = wrap(path, &sa.response);
                self.out.push(again);
            }
            return;
        }
        let reply = |payloads: &[Payload<'_>], spi_r: IkeSpi| {
            let header = Header {
                responder_spi: spi_r,
                flags: Flags {
                    initiator: false,
                    version: false,
                    response: true,
                },
                ..header
            };
            encode_message(header, payloads).expect("a response of ours can be encoded")
        };
        let refuse =
            |kind: NotifyType, data: &[u8]| reply(&[Payload::Notify(Notify::new(kind, data))], IkeSpi::ZERO);
        if let Some(error) = self.config.refuse_init {
            self.out.push(wrap(path, &refuse(error, &[])));
            return;
        }
        let cookie = sha1(&[b"cookie", &self.cookies.to_be_bytes()]);
        let has_cookie = message.payloads.iter().any(|payload| match payload {
            Payload::Notify(it) if it.kind == NotifyType::COOKIE => {
                (0..self.cookies).any(|number| it.data == sha1(&[b"cookie", &u32::to_be_bytes(number)]))
            }
            _ => false,
        });
        if self.config.cookie && !has_cookie {
            self.cookies += 1;
            self.out.push(wrap(path, &refuse(NotifyType::COOKIE, &cookie)));
            return;
        }
        let (mut sa, mut ke, mut nonce, mut fragments) = (None, None, None, false);
        for payload in &message.payloads {
            match payload {
                Payload::Sa(value) => sa = Some(value),
                Payload::Ke(value) => ke = Some(value),
                Payload::Nonce(value) => nonce = Some(*value),
                Payload::Notify(it) => fragments |= it.kind == NotifyType::IKEV2_FRAGMENTATION_SUPPORTED,
                _ => {}
            }
        }
        let (Some(sa), Some(ke), Some(nonce)) = (sa, ke, nonce) else {
            return;
        };
        let Some((proposal, suite)) =
            choose(sa, |answer| proposal::select_ike(&self.config.ike, answer).ok())
        else {
            self.out
                .push(wrap(path, &refuse(NotifyType::NO_PROPOSAL_CHOSEN, &[])));
            return;
        };
        let method = self.config.insist_on.unwrap_or(suite.ke);
        if ke.method != method {
            self.out.push(wrap(
                path,
                &refuse(NotifyType::INVALID_KE_PAYLOAD, &method.0.to_be_bytes()),
            ));
            return;
        }
        let Ok(exchange) = KeyExchange::generate(method, &mut self.rng) else {
            return;
        };
        let public = exchange.public().to_vec();
        let Ok(shared) = exchange.agree(ke.data) else {
            return;
        };
        let own_nonce: [u8; 32] = self.rng.bytes();
        let spi_r = IkeSpi(self.rng.bytes());
        let source = natd(header.initiator_spi, spi_r, path.local);
        let destination = natd(header.initiator_spi, spi_r, path.remote);
        let hashes: Vec<u8> = [2_u16, 3, 4, 5]
            .iter()
            .flat_map(|hash| hash.to_be_bytes())
            .collect();
        let mut payloads = vec![
            Payload::Sa(vec![proposal]),
            Payload::Ke(Ke {
                method,
                data: &public,
            }),
            Payload::Nonce(&own_nonce),
            Payload::Notify(Notify::new(NotifyType::NAT_DETECTION_SOURCE_IP, &source)),
            Payload::Notify(Notify::new(
                NotifyType::NAT_DETECTION_DESTINATION_IP,
                &destination,
            )),
        ];
        let fragment = self.config.fragment.filter(|_| fragments);
        if fragment.is_some() {
            payloads.push(Payload::Notify(Notify::new(
                NotifyType::IKEV2_FRAGMENTATION_SUPPORTED,
                &[],
            )));
        }
        if self.config.signature_hashes {
            payloads.push(Payload::Notify(Notify::new(
                NotifyType::SIGNATURE_HASH_ALGORITHMS,
                &hashes,
            )));
        }
        let response = reply(&payloads, spi_r);
        let nonces = (nonce.to_vec(), own_nonce.to_vec());
        let keys = Keys::derive(&suite, &shared, &nonces, header.initiator_spi, spi_r);
        self.out.push(wrap(path, &response));
        self.sas.push(Sa {
            spi_i: header.initiator_spi,
            spi_r,
            path,
            keys,
            request: raw.to_vec(),
            response,
            nonces,
            fragment,
            expected: 1,
            answered: Vec::new(),
            reassembly: Reassembly::new(),
            own: Own::default(),
            id: None,
            offer: None,
            msk: None,
            child: None,
        });
    }
}

#[derive(PartialEq, Eq)]
enum Verdict {
    Stays,
    Gone,
}

impl Sa {
    fn header(&self, exchange: ExchangeType, message_id: u32, response: bool) -> Header {
        Header {
            initiator_spi: self.spi_i,
            responder_spi: self.spi_r,
            next_payload: PayloadType::NONE,
            version: wire::VERSION,
            exchange,
            flags: Flags {
                initiator: false,
                version: false,
                response,
            },
            message_id,
            length: 0,
        }
    }

    fn seal(&mut self, header: Header, payloads: &[Payload<'_>]) -> Vec<Vec<u8>> {
        let max = self.fragment.unwrap_or(65_535);
        seal_fragments(header, payloads, &self.keys.seal, &mut self.keys.iv, max).expect("ours can be sealed")
    }

    fn serve(
        &mut self,
        header: Header,
        mut message: Vec<u8>,
        config: &mut GatewayConfig,
        rng: &mut Rng,
        out: &mut Vec<Outgoing>,
        transcript: &mut Vec<(ExchangeType, u32, Vec<PayloadType>)>,
    ) -> Verdict {
        let Ok(opened) = open_sealed(&mut message, &self.keys.open) else {
            return Verdict::Stays;
        };
        let fragment = opened.fragment;
        let (first, body) = match fragment {
            None => (opened.first, opened.body.to_vec()),
            Some((number, total)) => {
                let repeated = !header.flags.response && header.message_id + 1 == self.expected;
                if repeated {
                    if number == 1 {
                        out.extend(self.answered.iter().map(|message| wrap(self.path, message)));
                    }
                    return Verdict::Stays;
                }
                match self
                    .reassembly
                    .add(header.message_id, number, total, opened.first, opened.body)
                {
                    Some(whole) => whole,
                    None => return Verdict::Stays,
                }
            }
        };
        let payloads = decode_payloads(first, &body, Header::LEN).expect("the client's payloads can be read");
        if header.flags.response {
            if self.own.pending.is_some() && header.message_id + 1 == self.own.next {
                self.own.pending = None;
                self.own
                    .answers
                    .push_back(payloads.iter().filter_map(notify_kind).collect());
            }
            return Verdict::Stays;
        }
        if header.message_id + 1 == self.expected {
            out.extend(self.answered.iter().map(|message| wrap(self.path, message)));
            return Verdict::Stays;
        }
        if header.message_id != self.expected {
            return Verdict::Stays;
        }
        self.expected += 1;
        transcript.push((
            header.exchange,
            header.message_id,
            payloads.iter().map(Payload::kind).collect(),
        ));
        let gone = header.exchange == ExchangeType::INFORMATIONAL
            && payloads.iter().any(|payload| {
                matches!(payload, Payload::Delete(delete) if delete.protocol == ProtocolId::IKE)
                    || notify_kind(payload) == Some(NotifyType::AUTHENTICATION_FAILED)
            });
        let response = self.header(header.exchange, header.message_id, true);
        let messages = match header.exchange {
            ExchangeType::IKE_AUTH => self.auth(response, &payloads, config, rng),
            _ => self.seal(response, &[]),
        };
        out.extend(messages.iter().map(|message| wrap(self.path, message)));
        self.answered = messages;
        if gone { Verdict::Gone } else { Verdict::Stays }
    }

    fn auth(
        &mut self,
        response: Header,
        payloads: &[Payload<'_>],
        config: &mut GatewayConfig,
        rng: &mut Rng,
    ) -> Vec<Vec<u8>> {
        let error = |kind| [Payload::Notify(Notify::new(kind, &[]))];
        if let Some(kind) = config.refuse_auth {
            return self.seal(response, &error(kind));
        }
        let (mut auth, mut id, mut sa, mut remote, mut leaf, mut eap) = (None, None, None, None, None, None);
        for payload in payloads {
            match payload {
                Payload::Auth(value) => auth = Some(*value),
                Payload::IdInitiator(value) => id = Some(value.body()),
                Payload::Sa(value) => sa = Some(value),
                Payload::TsResponder(value) => remote = Some(value),
                Payload::Cert(cert) => leaf = leaf.or_else(|| Certificate::from_der(cert.data).ok()),
                Payload::Eap(packet) => eap = Some(*packet),
                _ => {}
            }
        }
        if let (Some(sa), Some(remote)) = (sa, remote) {
            let chosen = choose(sa, |answer| proposal::select_esp(&config.esp, answer, false).ok());
            self.offer = chosen.map(|(proposal, (suite, spi))| Offer {
                spi,
                proposal,
                suite,
                remote: remote
                    .iter()
                    .filter_map(|ts| match ts {
                        Ts::Range(range) => Some(*range),
                        Ts::Unknown { .. } => None,
                    })
                    .collect(),
            });
        }
        if let Some(id) = id {
            self.id = Some(id);
        }
        let id = self.id.clone().expect("the client said who it is");
        let octets = self.octets(true, &id);
        match (&mut config.client, auth, eap) {
            (ClientAuth::Psk(psk), Some(auth), None) => {
                if auth.data != self.mic(psk, &octets).as_bytes() {
                    return self.seal(response, &error(NotifyType::AUTHENTICATION_FAILED));
                }
                self.finish(response, config, None, rng)
            }
            (ClientAuth::Certificate, Some(auth), None) => {
                let leaf = leaf.expect("the client sent its certificate");
                if !signature_is_good(&leaf, auth, &octets) {
                    return self.seal(response, &error(NotifyType::AUTHENTICATION_FAILED));
                }
                self.finish(response, config, None, rng)
            }
            (ClientAuth::Eap(server), None, None) => {
                let packet = server.start();
                self.prove(response, config, Some(&packet), &[])
            }
            (ClientAuth::Eap(server), None, Some(packet)) => match server.handle(packet) {
                ServerStep::Request(packet) | ServerStep::Failure(packet) => {
                    self.seal(response, &[Payload::Eap(&packet)])
                }
                ServerStep::Success { packet, msk } => {
                    self.msk = Some(msk.to_vec());
                    self.seal(response, &[Payload::Eap(&packet)])
                }
            },
            (ClientAuth::Eap(_), Some(auth), None) => {
                let msk = self.msk.clone().expect("EAP is over");
                if auth.data != self.mic(&msk, &octets).as_bytes() {
                    return self.seal(response, &error(NotifyType::AUTHENTICATION_FAILED));
                }
                self.finish(response, config, Some(&msk), rng)
            }
            _ => self.seal(response, &error(NotifyType::AUTHENTICATION_FAILED)),
        }
    }

    fn octets(&self, initiator: bool, id: &[u8]) -> Vec<u8> {
        let (message, nonce, key) = if initiator {
            (&self.request, &self.nonces.1, &self.keys.proof_initiator)
        } else {
            (&self.response, &self.nonces.0, &self.keys.proof_responder)
        };
        let mac = self.keys.prf.compute(key.as_bytes(), &[id]);
        [message.as_slice(), nonce, mac.as_bytes()].concat()
    }

    fn mic(&self, secret: &[u8], octets: &[u8]) -> Secret {
        let key = self.keys.prf.compute(secret, &[b"Key Pad for IKEv2"]);
        self.keys.prf.compute(key.as_bytes(), &[octets])
    }

    /// IDr, CERT, AUTH, and what else belongs to this answer.
    fn prove(
        &mut self,
        response: Header,
        config: &GatewayConfig,
        eap: Option<&[u8]>,
        more: &[Payload<'_>],
    ) -> Vec<Vec<u8>> {
        let (kind, data) = config.identity.to_wire();
        let id = Id::new(kind, &data);
        let octets = self.octets(false, &id.body());
        let (method, proof) = match &config.proof {
            Proof::Psk(psk) => (
                AuthMethod::SHARED_KEY_MIC,
                self.mic(psk, &octets).as_bytes().to_vec(),
            ),
            Proof::Certificate(_, key) => {
                let hashes = [2, 3, 4, 5].map(HashAlgorithm);
                let scheme = key.choose_scheme(&hashes).expect("the gateway's key can sign");
                let signature = key
                    .sign(scheme, &octets, SignatureEncoding::Der)
                    .expect("the gateway can sign");
                let identifier = scheme.algorithm_identifier();
                let length = u8::try_from(identifier.len()).expect("identifiers are short");
                (
                    AuthMethod::DIGITAL_SIGNATURE,
                    [&[length], identifier, &signature].concat(),
                )
            }
        };
        let mut payloads = vec![Payload::IdResponder(id)];
        if let Proof::Certificate(chain, _) = &config.proof {
            payloads.extend(chain.iter().map(|link| {
                Payload::Cert(Cert {
                    encoding: CertEncoding::X509_SIGNATURE,
                    data: link.der(),
                })
            }));
        }
        payloads.push(Payload::Auth(Auth { method, data: &proof }));
        payloads.extend(eap.map(Payload::Eap));
        payloads.extend(more.iter().cloned());
        self.seal(response, &payloads)
    }

    fn finish(
        &mut self,
        response: Header,
        config: &GatewayConfig,
        msk: Option<&[u8]>,
        rng: &mut Rng,
    ) -> Vec<Vec<u8>> {
        let mut more: Vec<Payload<'_>> = Vec::new();
        let own_spi = EspSpi(0xc000_0000 | u32::from_be_bytes(rng.bytes()) >> 4);
        let addresses: Vec<(CfgAttr, Vec<u8>)> = config
            .pool
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
        let offer = self.offer.take();
        let refused = config
            .refuse_child
            .or_else(|| offer.is_none().then_some(NotifyType::NO_PROPOSAL_CHOSEN));
        if let (None, Some(offer)) = (refused, offer) {
            let remote = config.selectors.clone().unwrap_or(offer.remote);
            let local: Vec<TrafficSelector> = config
                .pool
                .iter()
                .map(|ip| TrafficSelector::addresses(*ip, *ip))
                .collect();
            let local = if local.is_empty() {
                vec![TrafficSelector::ANY_V4]
            } else {
                local
            };
            let mut proposal = offer.proposal;
            proposal.spi = own_spi.0.to_be_bytes().to_vec().into();
            more.push(Payload::Cp(Cp {
                kind: CfgType::REPLY,
                attributes: addresses
                    .iter()
                    .map(|(kind, value)| CfgAttribute { kind: *kind, value })
                    .collect(),
            }));
            more.push(Payload::Sa(vec![proposal]));
            more.push(Payload::TsInitiator(
                local.iter().copied().map(Ts::from).collect(),
            ));
            more.push(Payload::TsResponder(
                remote.iter().copied().map(Ts::from).collect(),
            ));
            self.child = Some(self.make_child(&offer.suite, offer.spi, own_spi, local, remote));
        } else if let Some(kind) = refused {
            more.push(Payload::Notify(Notify::new(kind, &[])));
        }
        if let (true, Some(kind)) = (config.bare_refusal, refused) {
            return self.seal(response, &[Payload::Notify(Notify::new(kind, &[]))]);
        }
        match msk {
            None => self.prove(response, config, None, &more),
            Some(msk) => {
                let (kind, data) = config.identity.to_wire();
                let octets = self.octets(false, &Id::new(kind, &data).body());
                let mic = if config.wrong_msk {
                    self.mic(b"another", &octets)
                } else {
                    self.mic(msk, &octets)
                };
                let auth = Payload::Auth(Auth {
                    method: AuthMethod::SHARED_KEY_MIC,
                    data: mic.as_bytes(),
                });
                let payloads: Vec<Payload<'_>> = std::iter::once(auth).chain(more).collect();
                self.seal(response, &payloads)
            }
        }
    }

    fn make_child(
        &self,
        suite: &proposal::EspSuite,
        theirs: EspSpi,
        ours: EspSpi,
        client: Vec<TrafficSelector>,
        behind: Vec<TrafficSelector>,
    ) -> Child {
        let (encr, integ) = (suite.cipher.encr_key_len(), suite.cipher.integ_key_len());
        let seed: [&[u8]; 2] = [&self.nonces.0, &self.nonces.1];
        let material = self
            .keys
            .prf
            .plus(self.keys.derive.as_bytes(), &seed, 2 * (encr + integ))
            .expect("short");
        let (to_us, to_client) = material.as_bytes().split_at(encr + integ);
        let key =
            |part: &[u8]| PacketKey::new(suite.cipher, &part[..encr], &part[encr..]).expect("lengths fit");
        // From the gateway's side the client is remote.
        let selectors = Arc::new(Selectors {
            local: behind,
            remote: client,
        });
        Child {
            outbound: Outbound::new(theirs, key(to_client), suite.esn, Arc::clone(&selectors)),
            inbound: Inbound::new(ours, key(to_us), suite.esn, selectors),
            inbound_spi: ours,
        }
    }
}

impl Keys {
    fn derive(
        suite: &proposal::IkeSuite,
        shared: &Secret,
        nonces: &(Vec<u8>, Vec<u8>),
        spi_i: IkeSpi,
        spi_r: IkeSpi,
    ) -> Self {
        let prf = suite.prf;
        let seed = prf.compute(&[nonces.0.as_slice(), &nonces.1].concat(), &[shared.as_bytes()]);
        let (encr, integ, proof) = (
            suite.cipher.encr_key_len(),
            suite.cipher.integ_key_len(),
            prf.key_len(),
        );
        let total = 3 * proof + 2 * integ + 2 * encr;
        let material = prf
            .plus(
                seed.as_bytes(),
                &[&nonces.0, &nonces.1, &spi_i.0, &spi_r.0],
                total,
            )
            .expect("short enough");
        let mut rest = material.as_bytes();
        let mut cut = |len: usize| {
            let (head, tail) = rest.split_at(len);
            rest = tail;
            head.to_vec()
        };
        let derive = Secret::new(cut(proof));
        let (ai, ar, ei, er) = (cut(integ), cut(integ), cut(encr), cut(encr));
        let (pi, pr) = (Secret::new(cut(proof)), Secret::new(cut(proof)));
        Self {
            prf,
            derive,
            proof_initiator: pi,
            proof_responder: pr,
            seal: PacketKey::new(suite.cipher, &er, &ar).expect("lengths fit"),
            open: PacketKey::new(suite.cipher, &ei, &ai).expect("lengths fit"),
            iv: 0,
        }
    }
}

/// The first combination of the client's offer that `accept` takes, as a proposal with one transform of each kind.
fn choose<T>(
    offered: &[wire::Proposal<'_>],
    accept: impl Fn(&[wire::Proposal<'_>]) -> Option<T>,
) -> Option<(wire::Proposal<'static>, T)> {
    for offer in offered {
        let mut kinds: Vec<_> = offer.transforms.iter().map(|transform| transform.kind).collect();
        kinds.sort_unstable();
        kinds.dedup();
        let mut combinations: Vec<Vec<wire::Transform>> = vec![vec![]];
        for kind in kinds {
            let choices: Vec<_> = offer
                .transforms
                .iter()
                .filter(|transform| transform.kind == kind)
                .collect();
            combinations = combinations
                .iter()
                .flat_map(|partial| {
                    choices.iter().map(|choice| {
                        let mut longer = partial.clone();
                        longer.push((*choice).clone());
                        longer
                    })
                })
                .collect();
        }
        for transforms in combinations {
            // Numbered as `accept` numbers its own list: each is asked for in turn.
            for number in 1..=4 {
                let spi = offer.spi.to_vec().into();
                let candidate = wire::Proposal {
                    number,
                    protocol: offer.protocol,
                    spi,
                    transforms: transforms.clone(),
                };
                if let Some(found) = accept(std::slice::from_ref(&candidate)) {
                    return Some((
                        wire::Proposal {
                            number: offer.number,
                            ..candidate
                        },
                        found,
                    ));
                }
            }
        }
    }
    None
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

fn notify_kind(payload: &Payload<'_>) -> Option<NotifyType> {
    match payload {
        Payload::Notify(notify) => Some(notify.kind),
        _ => None,
    }
}

fn natd(spi_i: IkeSpi, spi_r: IkeSpi, end: SocketAddr) -> [u8; 20] {
    let port = end.port().to_be_bytes();
    match end.ip() {
        IpAddr::V4(ip) => sha1(&[&spi_i.0, &spi_r.0, &ip.octets(), &port]),
        IpAddr::V6(ip) => sha1(&[&spi_i.0, &spi_r.0, &ip.octets(), &port]),
    }
}

fn wrap(path: Path, message: &[u8]) -> Outgoing {
    let marker: &[u8] = if path.local.port() == 500 { &[] } else { &[0; 4] };
    (path, [marker, message].concat())
}

/// The same packet with its addresses exchanged.
fn reverse(packet: &[u8]) -> Vec<u8> {
    let mut reversed = packet.to_vec();
    let (source, destination, len) = if packet[0] >> 4 == 4 {
        (12, 16, 4)
    } else {
        (8, 24, 16)
    };
    reversed[source..source + len].copy_from_slice(&packet[destination..destination + len]);
    reversed[destination..destination + len].copy_from_slice(&packet[source..source + len]);
    reversed
}
