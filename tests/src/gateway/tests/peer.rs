//! A client played by hand: it says exactly what a test wants, and checks every octet that comes back.
//!
//! Its keys come from HMAC alone, after the formulas of RFC 7296 and RFC 5723, so that they agree with the gateway's
//! only if both are right.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use peregrine_core::command::Path;
use peregrine_core::crypto::hash::hmac;
use peregrine_core::crypto::{CipherSuite, Encr, HashKind, Integ, KeyExchange, PacketKey, sha1};
use peregrine_core::esp::{self, Inbound, Outbound, Selectors};
use peregrine_core::profile::Identity;
use peregrine_core::proposal::{EspProposal, IkeProposal};
use peregrine_core::rng::Rng;
use peregrine_core::timer::Instant;
use peregrine_core::wire::iana::{
    AuthMethod, CfgAttr, CfgType, ExchangeType, IdType, KeMethod, NotifyType, PayloadType, ProtocolId,
};
use peregrine_core::wire::{
    Auth, CfgAttribute, Cp, Delete, EspSpi, Flags, Header, Id, IkeSpi, Message, Notify, Payload, Reassembly,
    TrafficSelector, Ts, VERSION, encode_message, open_sealed, seal_message,
};

use super::drafts::ke_payload;
use super::said::{Said, clear};
use crate::cast::packet;
use crate::gateway::{ClientAuth, Gateway, GatewayConfig, Outgoing, Proof, SaSet};

pub(super) const PSK: &[u8] = b"a pre-shared key of good length";
pub(super) const INNER: &str = "10.3.0.1";
pub(super) const BEHIND: &str = "10.9.9.9";

/// Both ends at one table: datagrams are handed over when a test says so.
pub(super) struct Table {
    pub(super) gateway: Gateway,
    pub(super) now: Instant,
    /// The gateway's address is local.
    pub(super) path: Path,
    pub(super) sas: Vec<Sa>,
    pub(super) children: Vec<Pair>,
    /// The gateway's requests that no test has looked at.
    pub(super) requests: VecDeque<Said>,
    pub(super) responses: VecDeque<Said>,
    /// ESP packets of the gateway's.
    pub(super) esp: VecDeque<Outgoing>,
    /// Unprotected messages of the gateway's.
    pub(super) clear: VecDeque<Outgoing>,
    /// What the last IKE_AUTH response said.
    pub(super) welcome: Option<Said>,
    /// What is in the first IKE_AUTH request beside what must be.
    pub(super) wishes: Vec<(NotifyType, Vec<u8>)>,
    /// What is in the first message of all beside what must be.
    pub(super) hello: Vec<(NotifyType, Vec<u8>)>,
    /// The inner address that it would like.
    pub(super) hint: Vec<u8>,
    /// It says that it is somewhere else than it is seen, as behind a NAT.
    pub(super) masked: bool,
    pub(super) identity: &'static [u8],
    pub(super) ike_cipher: CipherSuite,
    pub(super) esp_cipher: CipherSuite,
    /// The client's nonce in the last answer of its own.
    pub(super) said_nonce: Vec<u8>,
    pub(super) rng: Rng,
}

/// One IKE SA as the client has it.
pub(super) struct Sa {
    pub(super) i: IkeSpi,
    pub(super) r: IkeSpi,
    /// The client is the original initiator.
    pub(super) is_initiator: bool,
    pub(super) keys: Keys,
    iv: u64,
    pub(super) next: u32,
    reassembly: Reassembly,
}

/// The seven keys.
pub(super) struct Keys {
    pub(super) hash: HashKind,
    pub(super) d: Vec<u8>,
    pi: Vec<u8>,
    pr: Vec<u8>,
    from_i: PacketKey,
    from_r: PacketKey,
}

/// One Child SA as the client has it.
pub(super) struct Pair {
    pub(super) inbound: Inbound,
    pub(super) outbound: Outbound,
}

/// `prf+` (RFC 7296, section 2.13).
pub(super) fn prf_plus(hash: HashKind, key: &[u8], seed: &[u8], len: usize) -> Vec<u8> {
    let (mut stream, mut block) = (Vec::new(), Vec::new());
    for count in 1_u8.. {
        block = hmac(hash, key, &[&block, seed, &[count]]).as_bytes().to_vec();
        stream.extend_from_slice(&block);
        if stream.len() >= len {
            break;
        }
    }
    stream.truncate(len);
    stream
}

pub(super) const GCM: CipherSuite = CipherSuite {
    encr: Encr::AesGcm16 { bits: 256 },
    integ: None,
};
pub(super) const CBC: CipherSuite = CipherSuite {
    encr: Encr::AesCbc { bits: 256 },
    integ: Some(Integ::HmacSha2_256_128),
};

impl Keys {
    /// `{SK_d | SK_ai | SK_ar | SK_ei | SK_er | SK_pi | SK_pr} = prf+(SKEYSEED, Ni | Nr | SPIi | SPIr)`.
    pub(super) fn expand(
        cipher: CipherSuite,
        hash: HashKind,
        skeyseed: &[u8],
        nonces: &[u8],
        i: IkeSpi,
        r: IkeSpi,
    ) -> Self {
        let (p, a, e) = (hash.output_len(), cipher.integ_key_len(), cipher.encr_key_len());
        let mut rest = prf_plus(
            hash,
            skeyseed,
            &[nonces, &i.0, &r.0].concat(),
            3 * p + 2 * a + 2 * e,
        );
        let mut next = |len: usize| rest.drain(..len).collect::<Vec<u8>>();
        let d = next(p);
        let (ai, ar, ei, er) = (next(a), next(a), next(e), next(e));
        Self {
            hash,
            d,
            from_i: PacketKey::new(cipher, &ei, &ai).unwrap(),
            from_r: PacketKey::new(cipher, &er, &ar).unwrap(),
            pi: next(p),
            pr: next(p),
        }
    }
}

pub(super) fn note(kind: NotifyType, data: &[u8]) -> Payload<'_> {
    Payload::Notify(Notify::new(kind, data))
}

pub(super) fn delete_ike<'a>() -> Payload<'a> {
    Payload::Delete(Delete {
        protocol: ProtocolId::IKE,
        spis: vec![],
    })
}

fn config() -> GatewayConfig {
    GatewayConfig {
        ike: vec![IkeProposal::parse("aes256gcm16-prfsha256-prfsha384-x25519-ecp256").unwrap()],
        esp: vec![EspProposal::parse("aes256gcm16-x25519-ecp256").unwrap()],
        pool: vec![INNER.parse().unwrap()],
        fragment: None,
        ..GatewayConfig::new(
            Identity::Fqdn("vpn.example.org".into()),
            Proof::Psk(PSK.to_vec()),
            ClientAuth::Psk(PSK.to_vec()),
        )
    }
}

impl Table {
    /// Nothing has been said yet.
    pub(super) fn new(adjust: impl FnOnce(&mut GatewayConfig)) -> Self {
        let mut config = config();
        adjust(&mut config);
        Self {
            gateway: Gateway::new(config, 0x47),
            now: Instant::new(Duration::from_secs(1000)),
            path: Path::udp(
                "192.0.2.1:4500".parse().unwrap(),
                "198.51.100.7:40000".parse().unwrap(),
            ),
            sas: Vec::new(),
            children: Vec::new(),
            requests: VecDeque::new(),
            responses: VecDeque::new(),
            esp: VecDeque::new(),
            clear: VecDeque::new(),
            welcome: None,
            wishes: vec![(NotifyType::MOBIKE_SUPPORTED, vec![])],
            hello: Vec::new(),
            hint: Vec::new(),
            masked: false,
            identity: b"alice@example.org",
            ike_cipher: GCM,
            esp_cipher: GCM,
            said_nonce: Vec::new(),
            rng: Rng::new([0x50; 32]),
        }
    }

    /// An IKE SA and a Child SA are up.
    pub(super) fn connected(adjust: impl FnOnce(&mut GatewayConfig)) -> Self {
        let mut table = Self::new(adjust);
        table.connect();
        table
    }

    pub(super) fn bytes<const N: usize>(&mut self) -> [u8; N] {
        self.rng.bytes()
    }

    fn header(exchange: ExchangeType, i: IkeSpi, r: IkeSpi, id: u32) -> Header {
        Header {
            initiator_spi: i,
            responder_spi: r,
            next_payload: PayloadType::NONE,
            version: VERSION,
            exchange,
            flags: Flags {
                initiator: true,
                version: false,
                response: false,
            },
            message_id: id,
            length: 0,
        }
    }

    /// `SHA1(SPIi | SPIr | address | port)` of the client's or the gateway's end.
    pub(super) fn nat_hash(&self, i: IkeSpi, r: IkeSpi, of_gateway: bool) -> [u8; 20] {
        let end = if of_gateway {
            self.path.local
        } else {
            self.path.remote
        };
        let ip = match end.ip() {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        sha1(&[&i.0, &r.0, &ip, &end.port().to_be_bytes()])
    }

    /// Sends a first message; its octets and the answer's.
    pub(super) fn say_hello(
        &mut self,
        exchange: ExchangeType,
        i: IkeSpi,
        payloads: &[Payload<'_>],
    ) -> (Vec<u8>, Vec<u8>) {
        let mut source = self.nat_hash(i, IkeSpi::ZERO, false);
        source[0] ^= u8::from(self.masked);
        let destination = self.nat_hash(i, IkeSpi::ZERO, true);
        let hello = self.hello.clone();
        let mut payloads = payloads.to_vec();
        payloads.push(note(NotifyType::NAT_DETECTION_SOURCE_IP, &source));
        payloads.push(note(NotifyType::NAT_DETECTION_DESTINATION_IP, &destination));
        payloads.extend(hello.iter().map(|(kind, data)| note(*kind, data)));
        let request = encode_message(Self::header(exchange, i, IkeSpi::ZERO, 0), &payloads).unwrap();
        self.send(&[&[0; 4], request.as_slice()].concat());
        let (_, response) = self.clear.pop_front().expect("an answer in clear");
        assert_eq!(self.clear.len(), 0);
        (request, response[4..].to_vec())
    }

    /// IKE_SA_INIT; both messages, the client's nonce, and the gateway's.
    pub(super) fn init(&mut self) -> (Vec<u8>, Vec<u8>, Vec<u8>) {
        let i = IkeSpi(self.bytes());
        let nonce: [u8; 32] = self.bytes();
        let ke = KeyExchange::generate(KeMethod::CURVE25519, &mut self.rng).unwrap();
        let offer = IkeProposal::parse(if self.ike_cipher == GCM {
            "aes256gcm16-prfsha256-x25519"
        } else {
            "aes256-sha256-x25519"
        });
        let payloads = [
            Payload::Sa(vec![offer.unwrap().to_wire(1, &[])]),
            ke_payload(&ke),
            Payload::Nonce(&nonce),
        ];
        let (request, response) = self.say_hello(ExchangeType::IKE_SA_INIT, i, &payloads);
        let message = Message::decode(&response).unwrap();
        let r = message.header.responder_spi;
        let said = clear(&response);
        let (method, theirs) = said.ke().unwrap();
        assert_eq!(method, KeMethod::CURVE25519);
        let shared = ke.agree(&theirs).unwrap();
        let nonces = [nonce.as_slice(), &said.nonce()].concat();
        let skeyseed = hmac(HashKind::Sha2_256, &nonces, &[shared.as_bytes()]);
        let keys = Keys::expand(
            self.ike_cipher,
            HashKind::Sha2_256,
            skeyseed.as_bytes(),
            &nonces,
            i,
            r,
        );
        self.sas.push(Sa::new(i, r, true, keys, 1));
        assert_eq!(
            said.notify(NotifyType::NAT_DETECTION_SOURCE_IP).unwrap(),
            self.nat_hash(i, r, true)
        );
        assert_eq!(
            said.notify(NotifyType::NAT_DETECTION_DESTINATION_IP).unwrap(),
            self.nat_hash(i, r, false)
        );
        (request, response, nonces)
    }

    /// IKE_SA_INIT and IKE_AUTH with a pre-shared key.
    pub(super) fn connect(&mut self) {
        let (request, response, nonces) = self.init();
        self.finish(&request, &response, &nonces, None);
    }

    /// IKE_AUTH on the newest IKE SA: with the pre-shared key, or with what resumption has instead of one.
    pub(super) fn finish(&mut self, request: &[u8], response: &[u8], nonces: &[u8], derive: Option<&[u8]>) {
        let spi = u32::from_be_bytes(self.bytes()) | 0x100;
        let sa = self.sas.len() - 1;
        let identity = self.identity;
        let id = Id::new(IdType::FQDN, identity);
        let Keys { hash, pi, pr, .. } = &self.sas[sa].keys;
        let (hash, pi, pr) = (*hash, pi.clone(), pr.clone());
        let prove = |message: &[u8], nonce: &[u8], p: &[u8], id: &[u8]| {
            let mac = hmac(hash, p, &[id]);
            let octets = [message, nonce, mac.as_bytes()].concat();
            let key = match derive {
                None => hmac(hash, PSK, &[b"Key Pad for IKEv2"]).as_bytes().to_vec(),
                Some(_) => p.to_vec(),
            };
            hmac(hash, &key, &[&octets]).as_bytes().to_vec()
        };
        let (ni, nr) = nonces.split_at(32);
        let proof = prove(request, nr, &pi, &id.body());
        let wishes = self.wishes.clone();
        let offer = EspProposal::parse(if self.esp_cipher == GCM {
            "aes256gcm16"
        } else {
            "aes256-sha256"
        });
        let hint = self.hint.clone();
        let mut payloads = vec![
            Payload::IdInitiator(id),
            Payload::Auth(Auth {
                method: AuthMethod::SHARED_KEY_MIC,
                data: &proof,
            }),
            Payload::Cp(Cp {
                kind: CfgType::REQUEST,
                attributes: vec![CfgAttribute {
                    kind: CfgAttr::INTERNAL_IP4_ADDRESS,
                    value: &hint,
                }],
            }),
            Payload::Sa(vec![offer.unwrap().to_wire(1, EspSpi(spi), false)]),
            Payload::TsInitiator(vec![Ts::from(TrafficSelector::ANY_V4)]),
            Payload::TsResponder(vec![Ts::from(TrafficSelector::ANY_V4)]),
        ];
        payloads.extend(wishes.iter().map(|(kind, data)| note(*kind, data)));
        let said = self.ask(sa, ExchangeType::IKE_AUTH, &payloads);
        let theirs = said.payloads();
        let (mut auth, mut idr) = (None, None);
        for payload in &theirs {
            match payload {
                Payload::Auth(value) => auth = Some(value.data),
                Payload::IdResponder(value) => idr = Some(value.body()),
                _ => {}
            }
        }
        assert_eq!(
            auth.expect("AUTH"),
            prove(response, ni, &pr, &idr.expect("IDr")),
            "the gateway's proof"
        );
        if said.kinds().contains(&PayloadType::SA) {
            let outbound = esp::spi(&said.spi()).unwrap();
            let d = self.sas[sa].keys.d.clone();
            let (local, remote) = said.selectors();
            self.add_child(&d, hash, nonces, true, EspSpi(spi), outbound, local, remote);
        }
        self.welcome = Some(said);
    }

    /// `KEYMAT = prf+(SK_d, [g^ir (new) |] Ni | Nr)`.
    #[expect(clippy::too_many_arguments, reason = "all that a Child SA is made of")]
    pub(super) fn add_child(
        &mut self,
        d: &[u8],
        hash: HashKind,
        seed: &[u8],
        is_initiator: bool,
        inbound: EspSpi,
        outbound: EspSpi,
        local: Vec<TrafficSelector>,
        remote: Vec<TrafficSelector>,
    ) {
        let (encr, integ) = (self.esp_cipher.encr_key_len(), self.esp_cipher.integ_key_len());
        let keymat = prf_plus(hash, d, seed, 2 * (encr + integ));
        let (from_initiator, from_responder) = keymat.split_at(encr + integ);
        let key = |part: &[u8]| PacketKey::new(self.esp_cipher, &part[..encr], &part[encr..]).unwrap();
        let (out, inn) = if is_initiator {
            (from_initiator, from_responder)
        } else {
            (from_responder, from_initiator)
        };
        let selectors = Arc::new(Selectors { local, remote });
        self.children.push(Pair {
            inbound: Inbound::new(inbound, key(inn), false, Arc::clone(&selectors)),
            outbound: Outbound::new(outbound, key(out), false, selectors),
        });
    }

    /// Hands a datagram to the gateway and takes what comes back.
    pub(super) fn send(&mut self, datagram: &[u8]) {
        let out = self.gateway.handle(self.path, datagram, self.now);
        self.absorb(out);
    }

    pub(super) fn gateway_does(&mut self, act: impl FnOnce(&mut Gateway, Instant) -> Vec<Outgoing>) {
        let out = act(&mut self.gateway, self.now);
        self.absorb(out);
    }

    /// Time passes, and the gateway does what is due.
    pub(super) fn pass(&mut self, span: Duration) {
        let end = self.now + span;
        for _ in 0..1000 {
            let Some(due) = self.gateway.poll_timeout().filter(|due| *due <= end) else {
                self.now = end;
                return;
            };
            self.now = self.now.max(due);
            self.gateway_does(Gateway::handle_timeout);
        }
        panic!(
            "the gateway does not come to rest: {:?}",
            self.gateway.poll_timeout()
        );
    }

    fn absorb(&mut self, out: Vec<Outgoing>) {
        for (path, datagram) in out {
            let [0, 0, 0, 0, message @ ..] = datagram.as_slice() else {
                self.esp.push_back((path, datagram));
                continue;
            };
            let header = Header::decode(message).unwrap();
            let sa = self
                .sas
                .iter_mut()
                .find(|sa| (sa.i, sa.r) == (header.initiator_spi, header.responder_spi));
            let sealed = matches!(header.next_payload, PayloadType::SK | PayloadType::SKF);
            match sa.filter(|_| sealed) {
                None => self.clear.push_back((path, datagram)),
                Some(sa) => {
                    let Some(said) = sa.open(path, message) else {
                        continue;
                    };
                    if header.flags.response {
                        self.responses.push_back(said);
                    } else {
                        self.requests.push_back(said);
                    }
                }
            }
        }
    }

    /// Sends a request on an IKE SA, and takes the one answer.
    pub(super) fn ask(&mut self, sa: usize, exchange: ExchangeType, payloads: &[Payload<'_>]) -> Said {
        let datagram = self.seal_request(sa, exchange, payloads);
        self.send(&datagram);
        let said = self.responses.pop_front().expect("an answer");
        assert!(self.responses.is_empty(), "one answer");
        assert_eq!(
            (said.header.exchange, said.header.message_id + 1),
            (exchange, self.sas[sa].next)
        );
        said
    }

    /// A request of the client's as a datagram.
    pub(super) fn seal_request(
        &mut self,
        sa: usize,
        exchange: ExchangeType,
        payloads: &[Payload<'_>],
    ) -> Vec<u8> {
        let sa = &mut self.sas[sa];
        let datagram = sa.seal(exchange, sa.next, false, payloads);
        sa.next += 1;
        datagram
    }

    /// The gateway's next request.
    pub(super) fn request(&mut self) -> Said {
        self.requests.pop_front().expect("a request of the gateway's")
    }

    /// Answers a request of the gateway's.
    pub(super) fn reply(&mut self, to: &Said, payloads: &[Payload<'_>]) {
        let datagram = self.seal_reply(to, payloads);
        self.send(&datagram);
    }

    pub(super) fn seal_reply(&mut self, to: &Said, payloads: &[Payload<'_>]) -> Vec<u8> {
        let header = to.header;
        let sa = self
            .sas
            .iter_mut()
            .find(|sa| (sa.i, sa.r) == (header.initiator_spi, header.responder_spi))
            .unwrap();
        sa.seal(header.exchange, header.message_id, true, payloads)
    }

    /// Answers a Delete of the gateway's with the SPI that the client receives on.
    pub(super) fn confirm_delete(&mut self, request: &Said, child: usize) {
        assert_eq!(request.deleted(), [self.children[child].outbound.spi()]);
        let spi = self.children[child].inbound.spi().0.to_be_bytes();
        self.reply(
            request,
            &[Payload::Delete(Delete {
                protocol: ProtocolId::ESP,
                spis: vec![&spi],
            })],
        );
    }

    /// Deletes a Child SA on an IKE SA; the answer.
    pub(super) fn delete_child(&mut self, sa: usize, child: usize) -> Said {
        let spi = self.children[child].inbound.spi().0.to_be_bytes();
        self.ask(
            sa,
            ExchangeType::INFORMATIONAL,
            &[Payload::Delete(Delete {
                protocol: ProtocolId::ESP,
                spis: vec![&spi],
            })],
        )
    }

    /// IKE_SESSION_RESUME with a ticket for an IKE SA whose SK_d is known: the answer, if it is a refusal.
    pub(super) fn resume(&mut self, ticket: &[u8], derive: &[u8]) -> Option<NotifyType> {
        let i = IkeSpi(self.bytes());
        let nonce: [u8; 32] = self.bytes();
        let payloads = [Payload::Nonce(&nonce), note(NotifyType::TICKET_OPAQUE, ticket)];
        let (request, response) = self.say_hello(ExchangeType::IKE_SESSION_RESUME, i, &payloads);
        let said = clear(&response);
        assert_eq!(said.header.exchange, ExchangeType::IKE_SESSION_RESUME);
        if said.kinds() == [PayloadType::NOTIFY] {
            assert_eq!(said.header.responder_spi, IkeSpi::ZERO);
            return Some(said.error());
        }
        let r = said.header.responder_spi;
        let nonces = [nonce.as_slice(), &said.nonce()].concat();
        let hash = HashKind::Sha2_256;
        let skeyseed = hmac(hash, derive, &[b"Resumption", &nonces]);
        let keys = Keys::expand(self.ike_cipher, hash, skeyseed.as_bytes(), &nonces, i, r);
        self.sas.push(Sa::new(i, r, true, keys, 1));
        self.finish(&request, &response, &nonces, Some(derive));
        None
    }

    /// Sends a packet on a Child SA; whether it came through.
    pub(super) fn sends_on(&mut self, child: usize) -> bool {
        let before = self.gateway.received.len();
        let outbound = &mut self.children[child].outbound;
        let inner = packet(INNER, BEHIND, 60);
        let mut sealed = vec![0; outbound.sealed_len(inner.len())];
        outbound.seal(&inner, &mut sealed).unwrap();
        self.gateway.echo = false;
        self.send(&sealed);
        self.gateway.received.len() > before
    }

    /// Lets the gateway send a packet: on which Child SA it came, and where it was sent to.
    pub(super) fn gateway_sends(&mut self) -> Option<(usize, Path)> {
        let out = self.gateway.send(&packet(BEHIND, INNER, 60));
        let [(path, datagram)] = <[Outgoing; 1]>::try_from(out).ok()?;
        let spi = esp::spi(&datagram)?;
        let child = self.children.iter().position(|pair| pair.inbound.spi() == spi)?;
        let mut datagram = datagram;
        self.children[child]
            .inbound
            .open(&mut datagram)
            .expect("the gateway's packets open");
        Some((child, path))
    }

    /// The gateway sends on this one now.
    pub(super) fn is_sent_on(&mut self, child: usize) -> bool {
        self.gateway_sends().is_some_and(|(it, _)| it == child)
    }

    /// The gateway has exactly these IKE SAs, with these Child SAs.
    #[track_caller]
    pub(super) fn has(&self, expected: &[(usize, &[usize])]) {
        let expected: SaSet = expected
            .iter()
            .map(|(sa, children)| {
                let pairs = children.iter().map(|child| {
                    let pair = &self.children[*child];
                    (pair.outbound.spi(), pair.inbound.spi())
                });
                ((self.sas[*sa].i, self.sas[*sa].r), pairs.collect())
            })
            .collect();
        assert_eq!(self.gateway.sa_set(), expected);
    }
}

impl Sa {
    pub(super) fn new(i: IkeSpi, r: IkeSpi, is_initiator: bool, keys: Keys, next: u32) -> Self {
        Self {
            i,
            r,
            is_initiator,
            keys,
            iv: 0,
            next,
            reassembly: Reassembly::new(),
        }
    }

    /// What the client's messages are sealed with.
    pub(super) fn key_out(&self) -> &PacketKey {
        if self.is_initiator {
            &self.keys.from_i
        } else {
            &self.keys.from_r
        }
    }

    fn seal(&mut self, exchange: ExchangeType, id: u32, response: bool, payloads: &[Payload<'_>]) -> Vec<u8> {
        let mut header = Table::header(exchange, self.i, self.r, id);
        header.flags.initiator = self.is_initiator;
        header.flags.response = response;
        let mut iv = self.iv;
        let message = seal_message(header, payloads, self.key_out(), &mut iv).unwrap();
        self.iv = iv;
        [&[0; 4], message.as_slice()].concat()
    }

    fn open(&mut self, path: Path, message: &[u8]) -> Option<Said> {
        let mut opened = message.to_vec();
        let key = if self.is_initiator {
            &self.keys.from_r
        } else {
            &self.keys.from_i
        };
        let opened = open_sealed(&mut opened, key).expect("the gateway's messages open");
        assert_eq!(
            opened.header.flags.initiator, !self.is_initiator,
            "the flag says who is the original initiator"
        );
        let (first, body) = match opened.fragment {
            None => (opened.first, opened.body.to_vec()),
            Some((number, total)) => {
                let id = opened.header.message_id;
                self.reassembly
                    .add(id, number, total, opened.first, opened.body)?
            }
        };
        Some(Said {
            path,
            header: opened.header,
            raw: message.to_vec(),
            first,
            body,
        })
    }
}
