//! What every parser must withstand: any octets at all, without a panic, and without believing them.
//!
//! Each function here is one target of `tests/fuzz`, which feeds it octets of libFuzzer's invention, and is fed the
//! committed corpora by `tests/tests/fuzz_corpus.rs`. Where octets are accepted, something must hold for what came
//! out; a target panics when it does not.

mod client;
mod revocation;
mod tunnel;

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use peregrine_core::crypto::{CipherSuite, Encr, Integ, PacketKey, Secret};
use peregrine_core::eap::{
    Eap, EapConfig, EapGtc, EapMethod, EapMsChapV2, EapPeap, EapTls, EapTtls, InnerEap, Step, TlsServer,
    TtlsInner,
};
use peregrine_core::esp::{Discard, Inbound, Outbound, Selectors, clamp_mss, too_big};
use peregrine_core::pki::{
    Certificate, PrivateKey, SignatureEncoding, SignatureScheme, load_certificates, load_pkcs12,
    load_private_key, verify_gateway, verify_signature, verify_tls_server,
};
use peregrine_core::profile::{AuthKind, FileRef, Identity, Passphrase, Profile, Source, parse};
use peregrine_core::proposal::{self, EspProposal, IkeProposal};
use peregrine_core::rng::Rng;
use peregrine_core::timer::UnixTime;
use peregrine_core::wire::iana::{ExchangeType, PayloadType};
use peregrine_core::wire::{
    EspSpi, Flags, Header, IkeSpi, MAX_FRAGMENTS, MAX_REASSEMBLED, Message, OpenError, Payload, Reassembly,
    StreamReader, StreamWriter, TrafficSelector, VERSION, decode_payloads, encode_message, encode_payloads,
    open_sealed, seal_fragments,
};

use peregrine_platform::ipc::{self, Call};

pub use client::client;
pub use revocation::revocation;
pub use tunnel::tunnel;

/// A target.
pub type Target = fn(&[u8]);

/// All targets, by the names of their corpora.
pub const TARGETS: [(&str, Target); 15] = [
    ("certificate", certificate),
    ("client", client),
    ("eap", eap),
    ("esp", esp),
    ("ipc", ipc),
    ("key", key),
    ("message", message),
    ("payloads", payloads),
    ("profile", profile),
    ("reassembly", reassembly),
    ("revocation", revocation),
    ("sealed", sealed),
    ("stream", stream),
    ("text", text),
    ("tunnel", tunnel),
];

/// 2030-03-17T17:46:40Z: the certificates of the corpora are valid.
const NOW: UnixTime = UnixTime(Duration::from_secs(1_900_000_000));

/// The suites under which targets seal.
const SUITES: [CipherSuite; 3] = [
    CipherSuite {
        encr: Encr::AesGcm16 { bits: 256 },
        integ: None,
    },
    CipherSuite {
        encr: Encr::ChaCha20Poly1305,
        integ: None,
    },
    CipherSuite {
        encr: Encr::AesCbc { bits: 256 },
        integ: Some(Integ::HmacSha2_256_128),
    },
];

fn packet_key(suite: CipherSuite) -> PacketKey {
    let (encr, integ) = (
        vec![0xE1; suite.encr_key_len()],
        vec![0xA1; suite.integ_key_len()],
    );
    PacketKey::new(suite, &encr, &integ).expect("keys of the suite's lengths")
}

/// Decisions and octets for a target, taken from the front of what it is fed. What has run out is zero.
struct Feed<'a>(&'a [u8]);

impl<'a> Feed<'a> {
    fn octet(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    fn number(&mut self) -> u16 {
        u16::from_be_bytes([self.octet(), self.octet()])
    }

    fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn suite(&mut self) -> CipherSuite {
        let choice = usize::from(self.octet()) % SUITES.len();
        SUITES[choice]
    }
}

/// A whole IKE message, as anybody can send it.
pub fn message(data: &[u8]) {
    let _ = Header::decode(data);
    match Message::decode(data) {
        Ok(message) => {
            assert_eq!(usize::try_from(message.header.length), Ok(data.len()));
            reads_the_same_again(&message.payloads);
            message.payloads.iter().for_each(interpret);
        }
        Err(error) => assert!(error.offset <= data.len(), "{error}"),
    }
}

/// What a local user writes to the service's socket: frames with calls. One that is understood means the same when it is
/// written again.
pub fn ipc(data: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let mut stream = data;
        while let Ok(Some(call)) = ipc::read::<Call>(&mut stream).await {
            let frame = ipc::frame(&call).expect("what came in a frame fits in one");
            let mut written = frame.as_bytes();
            let again = ipc::read::<Call>(&mut written)
                .await
                .expect("it is a call")
                .expect("it is there");
            assert_eq!(ipc::frame(&again).expect("the same"), frame);
            assert!(written.is_empty());
        }
    });
}

/// A TCP stream (RFC 9329): the first octet says how long the pieces are that the rest comes in. What a reader takes out
/// of it, a writer puts together to the same again.
pub fn stream(data: &[u8]) {
    let mut feed = Feed(data);
    let piece = usize::from(feed.octet()) * 7 + 1;
    let (mut reader, mut writer, mut again) = (StreamReader::new(), StreamWriter::new(), StreamReader::new());
    writer.sent(writer.pending().len());
    for octets in feed.0.chunks(piece) {
        let room = reader.room();
        room[..octets.len()].copy_from_slice(octets);
        reader.filled(octets.len());
        while let Ok(Some(frame)) = reader.next_frame() {
            assert!(!frame.is_empty() && frame != [0xff]);
            assert!(writer.push(frame), "it was empty");
            let pending = writer.pending();
            again.room()[..pending.len()].copy_from_slice(pending);
            again.filled(pending.len());
            writer.sent(pending.len());
            let copy = again.next_frame().expect("a writer's frames are frames");
            assert_eq!(copy, Some(frame));
        }
        if let Err(error) = reader.next_frame() {
            assert!(error.0 < 2, "{error}");
            return;
        }
    }
}

/// The payloads inside SK: the first octet is the type of the first.
pub fn payloads(data: &[u8]) {
    let mut feed = Feed(data);
    let first = PayloadType(feed.octet());
    if let Ok(payloads) = decode_payloads(first, feed.0, 0) {
        reads_the_same_again(&payloads);
        payloads.iter().for_each(interpret);
    }
}

/// What can be read can be written, and reads the same again.
fn reads_the_same_again(payloads: &[Payload<'_>]) {
    let sealed = |payload: &Payload<'_>| matches!(payload, Payload::Sealed(_) | Payload::Fragment(_));
    let open: Vec<_> = payloads
        .iter()
        .filter(|payload| !sealed(payload))
        .cloned()
        .collect();
    let mut bytes = Vec::new();
    let first = encode_payloads(&open, &mut bytes).expect("what was read can be written");
    let again = decode_payloads(first, &bytes, 0).expect("what was written can be read");
    assert_eq!(again, open);
}

/// What others make of a payload.
fn interpret(payload: &Payload<'_>) {
    if let Payload::Sa(answer) = payload {
        let _ = proposal::select_ike(&proposal::default_ike(), answer);
        let _ = proposal::select_esp(&proposal::default_esp(), answer, true);
        let _ = proposal::select_esp(&proposal::default_esp(), answer, false);
    }
    if let Payload::IdInitiator(id) | Payload::IdResponder(id) = payload {
        let _ = Identity::from_wire(id.kind, id.data).map(|identity| identity.to_string());
    }
    if let Payload::Auth(auth) = payload {
        let mut feed = Feed(auth.data);
        let len = usize::from(feed.octet());
        let _ = SignatureScheme::from_algorithm_identifier(feed.take(len));
    }
}

/// Messages with SK and SKF: as anybody can send them, and with any content under the right key.
pub fn sealed(data: &[u8]) {
    let mut feed = Feed(data);
    let key = packet_key(feed.suite());
    let max = usize::from(feed.number());
    let first = PayloadType(feed.octet());
    let _ = open_sealed(&mut feed.0.to_vec(), &key);

    // The peer composes all that is encrypted, the padding and its length included.
    let text = feed.0;
    let Some(mut bytes) = seal_text(header(), first, None, text, &key, 1) else {
        return;
    };
    match open_sealed(&mut bytes, &key) {
        Ok(opened) => {
            assert_eq!(opened.first, first);
            assert_eq!(opened.body, &text[..opened.body.len()]);
            let Ok(payloads) = decode_payloads(first, opened.body, opened.offset) else {
                return;
            };
            payloads.iter().for_each(interpret);
            comes_through(&payloads, &key, max);
        }
        Err(error) => assert_eq!(error, OpenError::Padding),
    }
}

fn header() -> Header {
    Header {
        initiator_spi: IkeSpi([1; 8]),
        responder_spi: IkeSpi([2; 8]),
        next_payload: PayloadType::NONE,
        version: VERSION,
        exchange: ExchangeType::INFORMATIONAL,
        flags: Flags::default(),
        message_id: 1,
        length: 0,
    }
}

/// A message whose SK payload, or the SKF payload with this number and total, has `text` inside, as it is; none for a
/// text that cannot be encrypted.
fn seal_text(
    header: Header,
    first: PayloadType,
    fragment: Option<(u16, u16)>,
    text: &[u8],
    key: &PacketKey,
    iv: u64,
) -> Option<Vec<u8>> {
    let suite = key.suite();
    let (kind, mut body) = match fragment {
        None => (PayloadType::SK, Vec::new()),
        Some((number, total)) => {
            let numbers = [number.to_be_bytes(), total.to_be_bytes()].concat();
            (PayloadType::SKF, numbers)
        }
    };
    let start = Header::LEN + 4 + body.len();
    body.resize(body.len() + suite.iv_len(), 0);
    body.extend_from_slice(text);
    body.resize(body.len() + suite.icv_len(), 0);
    let payload = Payload::Unknown {
        kind,
        critical: false,
        body: &body,
    };
    let mut bytes = encode_message(header, &[payload]).ok()?;
    *bytes.get_mut(Header::LEN)? = first.0;
    let (covered, sealed) = bytes.split_at_mut_checked(start)?;
    key.seal(iv, covered, &[], sealed).ok()?;
    Some(bytes)
}

/// Payloads come through fragmentation as they were.
fn comes_through(payloads: &[Payload<'_>], key: &PacketKey, max: usize) {
    let mut iv = 2;
    let Ok(datagrams) = seal_fragments(header(), payloads, key, &mut iv, max) else {
        return;
    };
    assert_eq!(iv, 2 + datagrams.len() as u64);
    let mut reassembly = Reassembly::new();
    let mut whole = None;
    for mut datagram in datagrams {
        assert!(datagram.len() <= max && whole.is_none());
        let opened = open_sealed(&mut datagram, key).expect("what was sealed opens");
        whole = match opened.fragment {
            None => Some((opened.first, opened.body.to_vec())),
            Some((number, total)) => reassembly.add(1, number, total, opened.first, opened.body),
        };
    }
    let (first, body) = whole.expect("all fragments make a whole");
    let again = decode_payloads(first, &body, 0).expect("what was sealed can be read");
    assert_eq!(again, payloads);
}

/// Fragments of several messages in any order, against a simpler reassembly without limits of memory.
pub fn reassembly(data: &[u8]) {
    let mut feed = Feed(data);
    let mut reassembly = Reassembly::new();
    let (mut current, mut parts) = ((0, 0), BTreeMap::new());
    while !feed.0.is_empty() {
        let message_id = u32::from(feed.octet() % 4);
        let (number, total) = (u16::from(feed.octet()), u16::from(feed.octet()));
        let body = vec![feed.octet(); usize::from(feed.octet()) * 64];
        let whole = reassembly.add(message_id, number, total, PayloadType::EAP, &body);

        if number == 0 || number > total || total > MAX_FRAGMENTS {
            assert_eq!(whole, None);
            continue;
        }
        if current.0 != message_id || parts.is_empty() || total > current.1 {
            (current, parts) = ((message_id, total), BTreeMap::new());
        }
        if total == current.1 && !parts.contains_key(&number) {
            parts.insert(number, body);
        }
        let joined: Vec<u8> = parts.values().flatten().copied().collect();
        if joined.len() > MAX_REASSEMBLED {
            assert_eq!(whole, None);
            parts.clear();
        } else if parts.len() == usize::from(current.1) {
            assert_eq!(whole, Some((PayloadType::EAP, joined)));
            parts.clear();
        } else {
            assert_eq!(whole, None);
        }
    }
}

/// ESP datagrams as anybody can send them and with any content under the right key; inner packets of any kind.
pub fn esp(data: &[u8]) {
    const SPI: EspSpi = EspSpi(0xC0FF_EE01);
    let mut feed = Feed(data);
    let suite = feed.suite();
    let extended = feed.octet() % 2 == 1;
    let mtu = feed.number();
    let rest = feed.0;
    let selectors = Arc::new(Selectors {
        local: vec![TrafficSelector::ANY_V4, TrafficSelector::ANY_V6],
        remote: vec![TrafficSelector::ANY_V4, TrafficSelector::ANY_V6],
    });
    let inbound = || Inbound::new(SPI, packet_key(suite), extended, Arc::clone(&selectors));

    let mut forged = [&SPI.0.to_be_bytes(), rest].concat();
    let _ = inbound().open(&mut forged);
    let _ = inbound().open(&mut rest.to_vec());

    // The peer composes all that is encrypted. With extended sequence numbers more than this is authenticated.
    if !extended {
        let covered = [SPI.0.to_be_bytes(), 1_u32.to_be_bytes()].concat();
        let mut sealed = [&vec![0; suite.iv_len()], rest, &vec![0; suite.icv_len()]].concat();
        if packet_key(suite).seal(1, &covered, &[], &mut sealed).is_ok() {
            let mut inbound = inbound();
            let mut datagram = [covered, sealed].concat();
            let mut replay = datagram.clone();
            let delivered = inbound.open(&mut datagram).map(|inner| {
                assert_eq!(*inner, rest[..inner.len()]);
            });
            let again = inbound.open(&mut replay).expect_err("a replay");
            // What has no place for a sequence number has none to be repeated.
            let malformed = delivered.is_err() && again == Discard::Malformed;
            assert!(again == Discard::Replay || malformed, "{again:?}");
        }
    }

    let mut outbound = Outbound::new(SPI, packet_key(suite), extended, Arc::clone(&selectors));
    let mut datagram = vec![0; outbound.sealed_len(rest.len())];
    if let Ok(len) = outbound.seal(rest, &mut datagram) {
        match inbound().open(&mut datagram[..len]) {
            Ok(inner) => assert_eq!(*inner, *rest),
            // What may leave is not always what may come.
            Err(reason) => assert_eq!(reason, Discard::Martian),
        }
    }
    clamp_mss(&mut rest.to_vec(), mtu);
    if let Some(answer) = too_big(rest, mtu) {
        assert!(answer.len() <= 1280);
    }
}

static CREDENTIAL: LazyLock<(Certificate, PrivateKey)> = LazyLock::new(|| {
    let key = rcgen::KeyPair::generate().expect("a key");
    let certificate = rcgen::CertificateParams::new(vec!["radius.example".to_owned()])
        .and_then(|parameters| parameters.self_signed(&key))
        .expect("a certificate");
    (
        Certificate::from_der(certificate.der()).expect("a certificate"),
        load_private_key(key.serialize_pem().as_bytes(), None).expect("a key"),
    )
});

fn tls_server() -> TlsServer {
    TlsServer {
        anchors: vec![CREDENTIAL.0.clone()],
        identity: Identity::Fqdn("radius.example".to_owned()),
        fragment_size: 1024,
        check_revocation: false,
    }
}

fn secret() -> Secret {
    Secret::from_slice(b"secret")
}

/// A conversation with an EAP server that knows no secret: whatever it says, it never succeeds, except with a method
/// that proves nothing of it.
pub fn eap(data: &[u8]) {
    let mut feed = Feed(data);
    let username = "alice".to_owned();
    let method = match feed.octet() % 5 {
        0 => EapMethod::MsChapV2(EapMsChapV2 {
            username: username.clone(),
            password: secret(),
        }),
        1 => EapMethod::Tls(EapTls {
            chain: vec![CREDENTIAL.0.clone()],
            key: CREDENTIAL.1.clone(),
            server: tls_server(),
        }),
        2 => EapMethod::Ttls(EapTtls {
            server: tls_server(),
            username: username.clone(),
            inner: TtlsInner::Pap { password: secret() },
        }),
        3 => EapMethod::Peap(EapPeap {
            server: tls_server(),
            username: username.clone(),
            inner: InnerEap::MsChapV2 { password: secret() },
        }),
        _ => EapMethod::Gtc(EapGtc {
            password: Some(secret()),
        }),
    };
    let proves_nothing = matches!(method, EapMethod::Gtc(_));
    let mut eap = Eap::new(EapConfig {
        identity: username,
        method,
    });
    let mut rng = Rng::new([7; 32]);
    while !feed.0.is_empty() {
        let (shape, identifier, len) = (feed.octet(), feed.octet(), usize::from(feed.number()));
        let body = feed.take(len);
        let packet = if shape == 0xFF {
            body.to_vec()
        } else {
            // A packet whose length is right is worth more than one that is refused for it.
            let [high, low] = u16::try_from(body.len().saturating_add(4))
                .unwrap_or(u16::MAX)
                .to_be_bytes();
            [&[shape % 8, identifier, high, low], body].concat()
        };
        let mut step = eap.handle(&packet, &mut rng, NOW);
        if let Ok(Step::Ask(question)) = &step {
            assert!(harmless(question.message.as_deref()));
            step = eap.answer(&secret());
        }
        match step {
            Ok(Step::Reply(reply)) => assert_eq!(reply.first(), Some(&2), "an EAP-Response"),
            Ok(Step::Success(msk)) => {
                assert!(
                    proves_nothing && msk.is_none(),
                    "a server without a secret succeeds"
                );
                return;
            }
            Ok(Step::Ask(_) | Step::Check(_)) => panic!("an answer is answered with a question"),
            Err(error) => {
                assert!(!error.to_string().is_empty());
                return;
            }
        }
    }
}

/// What a gateway wants its user to read is one line, not too long, and steers nothing.
fn harmless(message: Option<&str>) -> bool {
    message.is_none_or(|message| message.len() <= 6 * 512 && !message.chars().any(char::is_control))
}

/// Certificates in files and on the wire, and chains of them.
pub fn certificate(data: &[u8]) {
    if let Ok(certificate) = Certificate::from_der(data) {
        assert_eq!(certificate.der(), data);
    }
    let Ok(chain) = load_certificates(data) else {
        return;
    };
    for certificate in &chain {
        let _ = (certificate.subject_text(), certificate.issuer_text());
        let _ = (certificate.subject_alt_names(), certificate.spki_sha1());
        let identity = Identity::of_certificate(certificate);
        let _ = (identity.to_string(), identity.is_in(certificate));
        for scheme in SignatureScheme::ALL {
            for encoding in [SignatureEncoding::Der, SignatureEncoding::Raw] {
                let forged =
                    verify_signature(certificate, scheme, b"message", &data[..data.len() / 2], encoding);
                assert!(forged.is_err(), "a signature that nobody made");
            }
        }
        let _ = verify_gateway(&chain, &chain, None, &identity, None, NOW);
        let _ = verify_tls_server(&chain, &chain, &identity, NOW);
        let stranger = std::slice::from_ref(&CREDENTIAL.0);
        assert!(verify_gateway(&chain, stranger, None, &identity, None, NOW).is_err());
    }
}

/// Private keys in files, with and without a passphrase.
pub fn key(data: &[u8]) {
    let passphrase = Secret::new(b"secret".to_vec());
    for passphrase in [None, Some(&passphrase)] {
        if let Ok(key) = load_private_key(data, passphrase) {
            let _ = key.matches(&CREDENTIAL.0);
        }
        let _ = load_pkcs12(data, passphrase);
    }
}

/// What a user writes: proposals and identities.
pub fn text(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(proposal) = IkeProposal::parse(text) {
        reads_the_same_again(&[Payload::Sa(vec![proposal.to_wire(1, &[])])]);
    }
    if let Ok(proposal) = EspProposal::parse(text) {
        reads_the_same_again(&[Payload::Sa(vec![proposal.to_wire(1, EspSpi(256), true)])]);
    }
    if let Ok(identity) = Identity::parse(text) {
        let (kind, octets) = identity.to_wire();
        assert_eq!(Identity::from_wire(kind, &octets), Some(identity));
    }
}

/// A machine whose files are what the profile says, and whose user knows one passphrase.
struct Files;

impl Source for Files {
    fn load(&mut self, file: &FileRef) -> Result<Vec<u8>, String> {
        match file.path.as_str() {
            "ca.pem" => Ok(CREDENTIAL.0.der().to_vec()),
            "none" => Err("there is no such file".to_owned()),
            text => Ok(text.as_bytes().to_vec()),
        }
    }

    fn passphrase(&mut self, _what: &str, attempt: u32) -> Passphrase {
        if attempt == 1 {
            Passphrase::Is(Secret::from_slice(b"secret"))
        } else {
            Passphrase::GiveUp
        }
    }

    fn system_anchors(&mut self) -> Result<Vec<Certificate>, String> {
        Ok(vec![CREDENTIAL.0.clone()])
    }
}

/// A profile: whatever is wrong with it is named with a place in it.
pub fn profile(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    match parse(text, "profile.toml", &mut Files, NOW) {
        Ok(parsed) => {
            let _ = parsed.missing_secret();
            let Profile { auth, gateway, .. } = parsed.profile;
            let trusts = !gateway.anchors.certificates.is_empty();
            assert!(
                auth.method == AuthKind::Psk || trusts,
                "nobody vouches for the gateway"
            );
        }
        Err(errors) => {
            assert!(!errors.errors.is_empty());
            for error in &errors.errors {
                assert!(error.line <= text.lines().count().max(1) + 1, "{error:?}");
            }
        }
    }
}
