//! EAP-TTLS (RFC 5281) and PEAP version 0.

use std::fmt;
use std::sync::Arc;

use peregrine_core::eap::mschapv2 as computations;
use rustls::server::ServerConfig;

use super::tls::{Engine, START, Taken};
use super::{EapServer, ServerMethod, ServerStep, TlsBehaviour, Verdict};

/// What a server says in its tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word {
    /// This, which may be nothing.
    Say(Vec<u8>),
    /// Nothing more: it is content.
    Accept,
    /// Nothing more: it refuses.
    Refuse,
}

/// What goes on in a tunnel.
pub trait Inside {
    /// Answers what the peer said, which is nothing when the handshake is over. `challenge` is the implicit challenge of
    /// EAP-TTLS.
    fn hear(&mut self, said: &[u8], challenge: &[u8; 17]) -> Word;
}

impl<F: FnMut(&[u8], &[u8; 17]) -> Word> Inside for F {
    fn hear(&mut self, said: &[u8], challenge: &[u8; 17]) -> Word {
        self(said, challenge)
    }
}

/// An EAP-TTLS or PEAP server.
pub struct TunnelServer {
    kind: u8,
    /// The version that it offers.
    version: u8,
    engine: Engine,
    inside: Box<dyn Inside>,
    /// What it says before it has the peer's Finished.
    at_once: Vec<u8>,
}

impl TunnelServer {
    /// An EAP-TTLS server for one peer.
    ///
    /// # Panics
    ///
    /// If rustls does not accept `config`.
    pub fn ttls(config: Arc<ServerConfig>, behaviour: TlsBehaviour, inside: impl Inside + 'static) -> Self {
        Self {
            kind: 21,
            version: 0,
            engine: Engine::new(config, behaviour),
            inside: Box::new(inside),
            at_once: Vec::new(),
        }
    }

    /// It says this before it has the peer's Finished.
    #[must_use]
    pub fn and_at_once(mut self, words: &[u8]) -> Self {
        self.at_once = words.to_vec();
        self
    }

    /// A PEAP server for one peer, which would speak version 1, too.
    ///
    /// # Panics
    ///
    /// If rustls does not accept `config`.
    pub fn peap(config: Arc<ServerConfig>, behaviour: TlsBehaviour, inside: impl Inside + 'static) -> Self {
        Self {
            kind: 25,
            version: 1,
            ..Self::ttls(config, behaviour, inside)
        }
    }

    /// Why the server refused the peer, or the peer the server, in the words of TLS.
    #[must_use]
    pub const fn error(&self) -> Option<&rustls::Error> {
        self.engine.error()
    }

    pub(super) const fn kind(&self) -> u8 {
        self.kind
    }

    pub(super) fn start(&self) -> Vec<u8> {
        vec![START | self.version]
    }

    pub(super) fn handle(&mut self, data: &[u8]) -> Verdict {
        let message = match self.engine.take(data) {
            Taken::Part(answer) => return Verdict::Continue(answer),
            Taken::Message(_) if self.error().is_some() => return Verdict::Refuse,
            Taken::Message(message) => message,
        };
        let was_handshaking = self.engine.connection.is_handshaking();
        let said = self.engine.feed(&message);
        if matches!(self.error(), Some(rustls::Error::AlertReceived(_))) {
            return Verdict::Refuse;
        }
        if self.error().is_some() || self.engine.connection.is_handshaking() {
            let words = std::mem::take(&mut self.at_once);
            self.engine.say(&words);
            return Verdict::Continue(self.engine.flight());
        }
        if was_handshaking {
            assert!(said.is_empty(), "a peer waits for the server's Finished");
            return Verdict::Continue(self.engine.flight());
        }
        let challenge = self
            .engine
            .connection
            .export_keying_material([0; 17], b"ttls challenge", None)
            .expect("key material");
        match self.inside.hear(&said, &challenge) {
            Word::Say(words) => {
                self.engine.say(&words);
                Verdict::Continue(self.engine.flight())
            }
            Word::Accept => Verdict::Accept(Some(self.msk())),
            Word::Refuse => Verdict::Refuse,
        }
    }

    /// The Master Session Key.
    ///
    /// # Panics
    ///
    /// If the handshake is not complete.
    #[must_use]
    pub fn msk(&self) -> Box<[u8; 64]> {
        let label: &[u8] = match self.kind {
            21 => b"ttls keying material",
            _ => b"client EAP encryption",
        };
        self.engine.msk(self.kind, label)
    }
}

impl fmt::Debug for TunnelServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TunnelServer")
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

/// An attribute-value pair of EAP-TTLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Avp {
    /// Its vendor, 0 for IETF, and its code.
    pub kind: (u32, u32),
    /// Whoever does not know it must not go on.
    pub mandatory: bool,
    /// What it says.
    pub data: Vec<u8>,
}

impl Avp {
    /// One that the other side must know.
    #[must_use]
    pub fn new(kind: (u32, u32), data: &[u8]) -> Self {
        Self {
            kind,
            mandatory: true,
            data: data.to_vec(),
        }
    }

    /// As it goes over the wire.
    ///
    /// # Panics
    ///
    /// If it is longer than its length can tell.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let (vendor, code) = self.kind;
        let vendor_id = if vendor == 0 {
            vec![]
        } else {
            vendor.to_be_bytes().to_vec()
        };
        let length = u32::try_from(8 + vendor_id.len() + self.data.len()).expect("a short pair");
        assert!(length < 1 << 24, "a short pair");
        let flags = u32::from(vendor != 0) << 31 | u32::from(self.mandatory) << 30;
        let mut octets = [
            &code.to_be_bytes(),
            &(flags | length).to_be_bytes(),
            vendor_id.as_slice(),
            &self.data,
        ]
        .concat();
        octets.resize(octets.len().next_multiple_of(4), 0);
        octets
    }
}

/// The pairs that a peer said.
///
/// # Panics
///
/// If they are not as RFC 5281 has them.
#[must_use]
pub fn avps(mut said: &[u8]) -> Vec<Avp> {
    let mut pairs = Vec::new();
    while !said.is_empty() {
        let word = |at: usize| u32::from_be_bytes(said[at..at + 4].try_into().expect("four octets"));
        let (code, flags, length) = (word(0), word(4) >> 24, (word(4) & 0x00ff_ffff) as usize);
        assert_eq!(flags & 0x3f, 0, "reserved flags");
        let (vendor, start) = if flags & 0x80 == 0 { (0, 8) } else { (word(8), 12) };
        let padded = length.next_multiple_of(4);
        assert_eq!(said[length..padded], vec![0; padded - length], "padding");
        pairs.push(Avp {
            kind: (vendor, code),
            mandatory: flags & 0x40 != 0,
            data: said[start..length].to_vec(),
        });
        said = &said[padded..];
    }
    pairs
}

/// How an EAP-TTLS server authenticates its one user.
pub enum TtlsInside {
    /// PAP: questions, of which the first is never asked, and the answers to them.
    Pap(String, Vec<(String, String)>),
    /// MSCHAPv2: user name and password, and whether success was said.
    MsChapV2(String, String, bool),
    /// An EAP method.
    Eap(Box<EapServer>),
}

impl TtlsInside {
    /// PAP.
    #[must_use]
    pub fn pap(username: &str, password: &str) -> Self {
        Self::Pap(username.to_owned(), vec![(String::new(), password.to_owned())])
    }

    /// MSCHAPv2.
    #[must_use]
    pub fn ms_chap_v2(username: &str, password: &str) -> Self {
        Self::MsChapV2(username.to_owned(), password.to_owned(), false)
    }

    /// An EAP method.
    #[must_use]
    pub fn eap(method: ServerMethod) -> Self {
        Self::Eap(Box::new(EapServer::new(method, true)))
    }
}

impl Inside for TtlsInside {
    fn hear(&mut self, said: &[u8], challenge: &[u8; 17]) -> Word {
        match self {
            Self::Pap(username, questions) => pap(said, username, questions),
            Self::MsChapV2(_, _, true) => {
                if said.is_empty() {
                    Word::Accept
                } else {
                    Word::Refuse
                }
            }
            Self::MsChapV2(username, password, told) => {
                let word = ms_chap_v2(said, challenge, username, password);
                *told = matches!(word, Word::Say(_));
                word
            }
            Self::Eap(server) => {
                let [pair] = <[Avp; 1]>::try_from(avps(said)).expect("one pair");
                assert_eq!((pair.kind, pair.mandatory), ((0, 79), true), "EAP-Message");
                let step = if server.identity().is_none() {
                    // Nobody has asked for it.
                    server.start();
                    let mut response = pair.data;
                    assert_eq!(response[1], 0, "the identifier of what was not asked for");
                    response[1] = 1;
                    server.handle(&response)
                } else {
                    server.handle(&pair.data)
                };
                match step {
                    ServerStep::Request(packet) => Word::Say(Avp::new((0, 79), &packet).encode()),
                    ServerStep::Success { .. } => Word::Accept,
                    ServerStep::Failure(_) => Word::Refuse,
                }
            }
        }
    }
}

fn pap(said: &[u8], username: &str, questions: &mut Vec<(String, String)>) -> Word {
    let [name, answer] = <[Avp; 2]>::try_from(avps(said)).expect("two pairs");
    assert_eq!(
        (name.kind, answer.kind),
        ((0, 1), (0, 2)),
        "User-Name, User-Password"
    );
    assert!(name.mandatory && answer.mandatory);
    assert!(
        !answer.data.is_empty() && answer.data.len().is_multiple_of(16),
        "padding that hides the length"
    );
    let (_, expected) = questions.remove(0);
    let answer: Vec<u8> = answer.data.into_iter().take_while(|octet| *octet != 0).collect();
    if name.data != username.as_bytes() || answer != expected.as_bytes() {
        return Word::Refuse;
    }
    match questions.first() {
        None => Word::Accept,
        Some((question, _)) => Word::Say(Avp::new((0, 18), question.as_bytes()).encode()),
    }
}

fn ms_chap_v2(said: &[u8], implicit: &[u8; 17], username: &str, password: &str) -> Word {
    let [name, challenge, response] = <[Avp; 3]>::try_from(avps(said)).expect("three pairs");
    assert_eq!(
        (name.kind, challenge.kind, response.kind),
        ((0, 1), (311, 11), (311, 25))
    );
    assert_eq!(challenge.data, implicit[..16], "the implicit challenge");
    let [ident, 0, value @ ..] = response.data.as_slice() else {
        panic!("not an MS-CHAP2-Response: {response:02x?}");
    };
    assert_eq!(*ident, implicit[16], "the implicit identifier");
    let (peer_challenge, value) = value.split_first_chunk::<16>().expect("a challenge");
    let (reserved, nt_response) = value.split_first_chunk::<8>().expect("reserved octets");
    assert_eq!(*reserved, [0; 8]);
    let nt_response: &[u8; 24] = nt_response.try_into().expect("an NT response and no more");
    let challenge = challenge.data.try_into().expect("16 octets");
    let hash = computations::challenge_hash(peer_challenge, &challenge, username);
    if name.data != username.as_bytes() || *nt_response != computations::nt_response(password, &hash) {
        return Word::Refuse;
    }
    let proof = computations::authenticator_response(password, nt_response, &hash);
    let hex: String = proof.iter().map(|octet| format!("{octet:02X}")).collect();
    let success = [&[*ident], format!("S={hex}").as_bytes()].concat();
    Word::Say(Avp::new((311, 26), &success).encode())
}

/// How a PEAP server authenticates its one user, by an EAP method.
pub struct PeapInside {
    server: EapServer,
    /// What has been said besides EAP packets.
    state: PeapState,
    /// The identifier that the peer must use in the tunnel, where headers are left out.
    identifier: u8,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum PeapState {
    Began,
    Eap,
    Result,
}

impl PeapInside {
    /// An EAP method, with a request for the identity as FreeRADIUS makes it: with its header.
    #[must_use]
    pub fn new(method: ServerMethod) -> Self {
        Self {
            server: EapServer::new(method, true),
            state: PeapState::Began,
            identifier: 0,
        }
    }

    /// The result that a server tells, or a peer repeats.
    #[must_use]
    pub fn result(code: u8, identifier: u8, verdict: u8) -> Vec<u8> {
        vec![code, identifier, 0, 11, 33, 0x80, 3, 0, 2, 0, verdict]
    }
}

impl Inside for PeapInside {
    fn hear(&mut self, said: &[u8], _challenge: &[u8; 17]) -> Word {
        match self.state {
            PeapState::Began => {
                assert!(said.is_empty(), "a peer waits for the first word");
                self.state = PeapState::Eap;
                let request = self.server.start();
                self.identifier = request[1];
                Word::Say(request)
            }
            PeapState::Eap => {
                // The header is what both sides know anyway.
                let length = u16::try_from(said.len() + 4)
                    .expect("a short packet")
                    .to_be_bytes();
                let response = [&[2, self.identifier, length[0], length[1]], said].concat();
                match self.server.handle(&response) {
                    ServerStep::Request(request) => {
                        self.identifier = request[1];
                        Word::Say(request[4..].to_vec())
                    }
                    ServerStep::Success { .. } => {
                        self.state = PeapState::Result;
                        Word::Say(Self::result(1, 0x77, 1))
                    }
                    ServerStep::Failure(_) => {
                        self.state = PeapState::Result;
                        Word::Say(Self::result(1, 0x77, 2))
                    }
                }
            }
            PeapState::Result if said == Self::result(2, 0x77, 1) => Word::Accept,
            PeapState::Result => Word::Refuse,
        }
    }
}
