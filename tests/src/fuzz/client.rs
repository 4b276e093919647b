//! The whole client against a gateway that says whatever it is told to, before and inside of encryption.

use std::net::SocketAddr;
use std::sync::LazyLock;

use peregrine_core::client::Client;
use peregrine_core::command::{Answer, Ask, Bound, Command, Event, Path, State};
use peregrine_core::crypto::{KeyExchange, PacketKey, Prf, Secret};
use peregrine_core::pki::SignatureEncoding;
use peregrine_core::profile::{AuthKind, Identity, PeapInner, TtlsInner};
use peregrine_core::proposal::IkeSuite;
use peregrine_core::rng::Rng;
use peregrine_core::timer::Instant;
use peregrine_core::wire::iana::{
    AuthMethod, CertEncoding, ExchangeType, HashAlgorithm, NotifyType, PayloadType,
};
use peregrine_core::wire::{
    Auth, Cert, Flags, Header, Id, IkeSpi, Ke, Message, Notify, Payload, Reassembly, VERSION,
    decode_payloads, encode_message, encode_payloads, open_sealed,
};

use super::{Feed, seal_text, secret};
use crate::cast::{self, Cast, GATEWAY, PSK};
use crate::world::BEGINNING;

/// What the gateway may do to the client in one run.
const MAX_STEPS: usize = 64;
/// More timers than any connection has before it is at rest.
const MAX_TIMEOUTS: usize = 2000;

const SPI: IkeSpi = IkeSpi([0xEE; 8]);
const NONCE: [u8; 32] = [0x4E; 32];

static CAST: LazyLock<Cast> = LazyLock::new(Cast::default);

/// The client connects, and the gateway does what the octets say. A gateway without the credentials that the profile
/// demands never brings it as far as a tunnel, nor to a single word of EAP.
pub fn client(data: &[u8]) {
    let mut feed = Feed(data);
    let choice = feed.octet();
    let methods = if choice & 8 == 0 {
        [
            AuthKind::Psk,
            AuthKind::Certificate,
            AuthKind::EapMsChapV2,
            AuthKind::EapTls,
        ]
    } else {
        [
            AuthKind::EapGtc,
            AuthKind::EapTtls(TtlsInner::Pap),
            AuthKind::EapPeap(PeapInner::MsChapV2),
            AuthKind::EapTls,
        ]
    };
    let method = methods[usize::from(choice % 4)];
    let suite = SUITES[usize::from(choice >> 5 & 1)];
    let mut scene = Scene::new(method, choice & 4 != 0, choice & 16 != 0, suite);
    for _ in 0..MAX_STEPS {
        if feed.0.is_empty() {
            break;
        }
        scene.step(&mut feed);
        scene.check();
    }
    scene.client.handle_command(Command::Disconnect, scene.now);
    scene.drain();
    for _ in 0..MAX_TIMEOUTS {
        if !scene.pass_time() {
            assert_eq!(
                scene.client.status().state,
                State::Idle,
                "nothing more will happen"
            );
            scene.check();
            return;
        }
    }
    panic!("the client does not come to rest");
}

/// What both sides agree on: the second makes the client go through IKE_INTERMEDIATE, of which it gets no good answer.
const SUITES: [&str; 2] = [
    "aes128gcm16-prfsha256-x25519",
    "aes128gcm16-prfsha256-x25519-ke1_mlkem512",
];

/// A request of the client's.
#[derive(Clone)]
struct Request {
    header: Header,
    path: Path,
    octets: Vec<u8>,
}

struct Keys {
    prf: Prf,
    proof: Vec<u8>,
    seal: PacketKey,
    open: PacketKey,
}

struct Scene {
    method: AuthKind,
    suite: &'static str,
    /// The gateway is the one that the profile names.
    genuine: bool,
    /// It may prove itself by EAP alone.
    eap_only: bool,
    client: Client,
    now: Instant,
    rng: Rng,
    /// IKE_SA_INIT, and what the gateway said to it.
    init: Option<(Request, Vec<u8>)>,
    last: Option<Request>,
    keys: Option<Keys>,
    iv: u64,
    next_id: u32,
    reassembly: Reassembly,
    spoke_eap: bool,
    had_tunnel: bool,
}

impl Scene {
    fn new(method: AuthKind, genuine: bool, eap_only: bool, suite: &'static str) -> Self {
        let now = Instant::default();
        let mut profile = CAST.profile(method);
        profile.ike.proposals = cast::ike(suite);
        profile.child.proposals = cast::esp("aes128gcm16");
        // A profile that has it with any other method is refused when it is read.
        profile.auth.eap_only = eap_only && method.proves_the_server();
        let eap_only = profile.auth.eap_only;
        let mut scene = Self {
            method,
            suite,
            genuine,
            eap_only,
            client: Client::new([0x43; 32], now, BEGINNING),
            now,
            rng: Rng::new([0x47; 32]),
            init: None,
            last: None,
            keys: None,
            iv: 0,
            next_id: 0,
            reassembly: Reassembly::new(),
            spoke_eap: false,
            had_tunnel: false,
        };
        let command = Command::Connect(Box::new(profile), CAST.credentials());
        scene.client.handle_command(command, now);
        scene.drain();
        scene
    }

    /// What must hold at any time.
    fn check(&self) {
        let may_succeed = self.genuine
            && self.suite == SUITES[0]
            && matches!(self.method, AuthKind::Psk | AuthKind::Certificate);
        let up = self.had_tunnel || self.client.status().state == State::Connected;
        assert!(may_succeed || !up, "a tunnel to a gateway that proved nothing");
        assert!(
            self.genuine || self.eap_only || !self.spoke_eap,
            "EAP with a gateway that proved nothing"
        );
    }

    fn step(&mut self, feed: &mut Feed<'_>) {
        let action = feed.octet() % 8;
        let detail = feed.octet();
        let len = usize::from(feed.number());
        let body = feed.take(len);
        let first = PayloadType(body.first().copied().unwrap_or(0));
        let chain = body.get(1..).unwrap_or_default();
        match action {
            0 => self.say_plain(detail, first, chain),
            1 => self.answer_init(first, chain),
            2 => self.say_sealed(true, detail, first, None, chain),
            3 => self.say_sealed(false, detail, first, None, chain),
            4 => drop(self.pass_time()),
            5 => {
                let fragment = (u16::from(detail & 15), u16::from(detail >> 4));
                self.say_sealed(true, 0, first, Some(fragment), chain);
            }
            6 => self.prove(first, chain),
            _ => self.send(body.to_vec()),
        }
    }

    fn header(&self, exchange: ExchangeType, message_id: u32, response: bool) -> Header {
        let last = self.last.as_ref();
        Header {
            initiator_spi: last.map_or(IkeSpi::ZERO, |last| last.header.initiator_spi),
            responder_spi: SPI,
            next_payload: PayloadType::NONE,
            version: VERSION,
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

    /// An unprotected message.
    fn say_plain(&mut self, detail: u8, first: PayloadType, chain: &[u8]) {
        let Some(last) = &self.last else { return };
        let exchange = if detail & 1 == 0 {
            last.header.exchange
        } else {
            ExchangeType::INFORMATIONAL
        };
        let mut header = self.header(exchange, last.header.message_id, detail & 2 == 0);
        if detail & 4 != 0 {
            header.responder_spi = IkeSpi::ZERO;
        }
        if detail & 8 != 0 {
            header.version = detail;
        }
        header.next_payload = first;
        header.length = u32::try_from(Header::LEN + chain.len()).expect("a small message");
        let mut message = Vec::new();
        header.encode(&mut message);
        message.extend_from_slice(chain);
        self.say(&message);
    }

    /// A proper answer to IKE_SA_INIT, with more payloads behind.
    fn answer_init(&mut self, first: PayloadType, chain: &[u8]) {
        let is_init = |last: &&Request| last.header.exchange == ExchangeType::IKE_SA_INIT;
        let Some(request) = self.last.as_ref().filter(is_init).cloned() else {
            return;
        };
        let (mut peer, mut nonce) = (None, None);
        let message = Message::decode(&request.octets).expect("the client's messages can be read");
        for payload in &message.payloads {
            if let Payload::Ke(ke) = payload {
                peer = Some(*ke);
            } else if let Payload::Nonce(octets) = payload {
                nonce = Some(*octets);
            }
        }
        let (peer, nonce) = (peer.expect("KE"), nonce.expect("a nonce"));
        let exchange = KeyExchange::generate(peer.method, &mut self.rng).expect("a key");
        let public = exchange.public().to_vec();
        let shared = exchange.agree(peer.data).expect("a good public value");
        let proposal = cast::ike(self.suite).remove(0).to_wire(1, &[]);
        let suite = super::proposal::select_ike(&cast::ike(self.suite), std::slice::from_ref(&proposal));
        let mut payloads = vec![
            Payload::Sa(vec![proposal]),
            Payload::Ke(Ke {
                method: peer.method,
                data: &public,
            }),
            Payload::Nonce(&NONCE),
            Payload::Notify(Notify::new(
                NotifyType::SIGNATURE_HASH_ALGORITHMS,
                &[0, 2, 0, 3, 0, 4],
            )),
            Payload::Notify(Notify::new(NotifyType::IKEV2_FRAGMENTATION_SUPPORTED, &[])),
            Payload::Notify(Notify::new(NotifyType::INTERMEDIATE_EXCHANGE_SUPPORTED, &[])),
        ];
        payloads.extend(decode_payloads(first, chain, 0).unwrap_or_default());
        let header = self.header(ExchangeType::IKE_SA_INIT, 0, true);
        let Ok(response) = encode_message(header, &payloads) else {
            return;
        };
        let initiator = request.header.initiator_spi;
        let suite = suite.expect("a suite that was offered");
        self.keys = Some(Keys::derive(&suite, &shared, nonce, initiator));
        self.init = Some((request.clone(), response.clone()));
        self.say(&response);
    }

    /// A sealed message with a text of the feed's.
    fn say_sealed(
        &mut self,
        response: bool,
        detail: u8,
        first: PayloadType,
        fragment: Option<(u16, u16)>,
        text: &[u8],
    ) {
        let header = if response {
            let Some(last) = &self.last else { return };
            let skew = u32::from(detail & 1);
            self.header(last.header.exchange, last.header.message_id + skew, true)
        } else {
            let kinds = [
                ExchangeType::INFORMATIONAL,
                ExchangeType::CREATE_CHILD_SA,
                ExchangeType::IKE_AUTH,
                ExchangeType(detail),
            ];
            let header = self.header(kinds[usize::from(detail % 4)], self.next_id, false);
            self.next_id += 1;
            header
        };
        let Some(keys) = &self.keys else { return };
        self.iv += 1;
        if let Some(message) = seal_text(
            header,
            first,
            fragment,
            &[text, &[0]].concat(),
            &keys.seal,
            self.iv,
        ) {
            self.say(&message);
        }
    }

    /// An answer to IKE_AUTH with IDr, CERT and AUTH, right if the gateway is genuine, and more payloads behind.
    fn prove(&mut self, first: PayloadType, chain: &[u8]) {
        let (Some(keys), Some((init, response)), Some(last)) = (&self.keys, &self.init, &self.last) else {
            return;
        };
        let (kind, name) = Identity::Fqdn(GATEWAY.into()).to_wire();
        let id = Id::new(kind, &name);
        let message = Message::decode(&init.octets).expect("the client's messages can be read");
        let nonce = message.payloads.iter().find_map(|payload| match payload {
            Payload::Nonce(octets) => Some(*octets),
            _ => None,
        });
        let mac = keys.prf.compute(&keys.proof, &[&id.body()]);
        let octets = [response, nonce.unwrap_or_default(), mac.as_bytes()].concat();
        let certificate = CAST.gateway.certificate();
        let mut payloads = vec![Payload::IdResponder(id)];
        let proof: Vec<u8>;
        if self.method == AuthKind::Psk {
            let psk = if self.genuine { PSK } else { b"another" };
            let key = keys.prf.compute(psk, &[b"Key Pad for IKEv2"]);
            proof = keys.prf.compute(key.as_bytes(), &[&octets]).as_bytes().to_vec();
            let method = AuthMethod::SHARED_KEY_MIC;
            payloads.push(Payload::Auth(Auth { method, data: &proof }));
        } else {
            let holder = if self.genuine { &CAST.gateway } else { &CAST.user };
            let key = holder.private_key();
            let scheme = key.choose_scheme(&[HashAlgorithm::SHA2_256]).expect("a scheme");
            let signature = key
                .sign(scheme, &octets, SignatureEncoding::Der)
                .expect("a signature");
            let identifier = scheme.algorithm_identifier();
            let len = u8::try_from(identifier.len()).expect("identifiers are short");
            proof = [&[len], identifier, &signature].concat();
            payloads.push(Payload::Cert(Cert {
                encoding: CertEncoding::X509_SIGNATURE,
                data: certificate.der(),
            }));
            let method = AuthMethod::DIGITAL_SIGNATURE;
            payloads.push(Payload::Auth(Auth { method, data: &proof }));
        }
        payloads.extend(decode_payloads(first, chain, 0).unwrap_or_default());
        let mut text = Vec::new();
        let Ok(first) = encode_payloads(&payloads, &mut text) else {
            return;
        };
        text.push(0);
        let header = self.header(last.header.exchange, last.header.message_id, true);
        self.iv += 1;
        if let Some(message) = seal_text(header, first, None, &text, &keys.seal, self.iv) {
            self.say(&message);
        }
    }

    /// Sends an IKE message, with the non-ESP marker where it belongs.
    fn say(&mut self, message: &[u8]) {
        let Some(last) = &self.last else { return };
        let marker: &[u8] = if last.path.remote.port() == 500 {
            &[]
        } else {
            &[0; 4]
        };
        self.send([marker, message].concat());
    }

    fn send(&mut self, mut datagram: Vec<u8>) {
        if let Some(path) = self.last.as_ref().map(|last| last.path) {
            let _ = self.client.handle_datagram(path, &mut datagram, self.now);
            self.drain();
        }
    }

    /// Lets the client's next timer expire, if it has one.
    fn pass_time(&mut self) -> bool {
        let Some((due, _)) = self.client.poll_timeout() else {
            return false;
        };
        self.now = self.now.max(due);
        self.client.handle_timeout(self.now);
        self.drain();
        true
    }

    fn drain(&mut self) {
        loop {
            if let Some(transmit) = self.client.poll_transmit() {
                self.hear(transmit.path, &transmit.payload);
            } else if let Some(event) = self.client.poll_event() {
                let answer = match event {
                    Event::Status(_) | Event::Release(_) | Event::Happened(_) => continue,
                    Event::Plan(plan) => {
                        self.had_tunnel |= plan.tunnel.is_some();
                        Answer::Applied(Ok(None))
                    }
                    Event::Ask(Ask::Resolve(name)) => Answer::Resolved {
                        name,
                        result: Ok(vec![]),
                    },
                    Event::Ask(Ask::Fetch(fetch)) => {
                        Answer::Fetched(fetch.id, Ok(fetch.url.to_string().into()))
                    }
                    Event::Ask(Ask::Prompt(prompt)) => Answer::Reply(prompt.id, Some(secret())),
                    Event::Ask(Ask::Bind(remote)) => {
                        let path = Path {
                            local: SocketAddr::from(([10, 0, 0, 2], 40_000)),
                            remote: remote.address,
                            transport: remote.transport,
                        };
                        let bound = Bound {
                            path,
                            mtu: Some(1500),
                            interface: None,
                        };
                        Answer::Bound(remote, Ok(bound))
                    }
                };
                self.client.handle_answer(answer, self.now);
            } else {
                return;
            }
        }
    }

    fn hear(&mut self, path: Path, datagram: &[u8]) {
        let message = match datagram {
            [0, 0, 0, 0, message @ ..] => message,
            message if path.remote.port() == 500 => message,
            _ => return,
        };
        let header = Header::decode(message).expect("the client's messages can be read");
        if let Some(keys) = &self.keys
            && let Ok(opened) = open_sealed(&mut message.to_vec(), &keys.open)
        {
            let whole = match opened.fragment {
                None => Some((opened.first, opened.body.to_vec())),
                Some((number, total)) => {
                    let id = header.message_id;
                    self.reassembly.add(id, number, total, opened.first, opened.body)
                }
            };
            let payloads = whole.map(|(first, body)| {
                let payloads = decode_payloads(first, &body, 0).expect("the client's payloads can be read");
                payloads.iter().map(Payload::kind).collect::<Vec<_>>()
            });
            self.spoke_eap |= payloads.is_some_and(|payloads| payloads.contains(&PayloadType::EAP));
        }
        if !header.flags.response {
            self.last = Some(Request {
                header,
                path,
                octets: message.to_vec(),
            });
        }
    }
}

impl Keys {
    fn derive(suite: &IkeSuite, shared: &Secret, nonce: &[u8], initiator: IkeSpi) -> Self {
        let IkeSuite { cipher, prf, .. } = *suite;
        let seed = prf.compute(&[nonce, &NONCE].concat(), &[shared.as_bytes()]);
        let (encr, proof) = (cipher.encr_key_len(), prf.key_len());
        let seeds: [&[u8]; 4] = [nonce, &NONCE, &initiator.0, &SPI.0];
        let material = prf
            .plus(seed.as_bytes(), &seeds, 3 * proof + 2 * encr)
            .expect("short enough");
        // SK_d, SK_ei, SK_er, SK_pi, SK_pr: an AEAD has no keys for integrity.
        let mut rest = Feed(material.as_bytes());
        let _ = rest.take(proof);
        let (ei, er) = (rest.take(encr), rest.take(encr));
        let _ = rest.take(proof);
        Self {
            prf,
            proof: rest.take(proof).to_vec(),
            seal: PacketKey::new(cipher, er, &[]).expect("a key"),
            open: PacketKey::new(cipher, ei, &[]).expect("a key"),
        }
    }
}
