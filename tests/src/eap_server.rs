//! The server side of the EAP methods, as a gateway or its authentication server runs it.
//!
//! Made for tests: it may panic on a peer that breaks the protocol, and it breaks the protocol itself on demand.

use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::time::Duration;

use peregrine_core::eap::mschapv2;
use peregrine_core::timer::UnixTime;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ServerConfig, ServerConnection, WebPkiClientVerifier};
use rustls::{ProtocolVersion, RootCertStore, SupportedProtocolVersion};

/// What the server does with a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerStep {
    /// It sends this EAP-Request.
    Request(Vec<u8>),
    /// It is content with the peer: an EAP-Success, and the MSK for the gateway.
    Success {
        /// The EAP-Success.
        packet: Vec<u8>,
        /// The Master Session Key.
        msk: Box<[u8; 64]>,
    },
    /// It refuses the peer with this EAP-Failure.
    Failure(Vec<u8>),
}

/// The server side of one EAP conversation.
#[derive(Debug)]
pub struct EapServer {
    method: ServerMethod,
    identifier: u8,
    ask_identity: bool,
    identity: Option<String>,
}

/// The method that a server runs.
#[derive(Debug)]
pub enum ServerMethod {
    /// EAP-TLS.
    Tls(Box<EapTlsServer>),
    /// EAP-MSCHAPv2.
    MsChapV2(MsChapServer),
}

/// What a method does with the type data of a response.
enum Verdict {
    Continue(Vec<u8>),
    Accept(Box<[u8; 64]>),
    Refuse,
}

impl EapServer {
    /// A server that runs `method`, after a request for the peer's identity if `ask_identity` says so.
    #[must_use]
    pub const fn new(method: ServerMethod, ask_identity: bool) -> Self {
        Self {
            method,
            identifier: 0,
            ask_identity,
            identity: None,
        }
    }

    /// The first request.
    pub fn start(&mut self) -> Vec<u8> {
        if self.ask_identity {
            self.request(1, &[])
        } else {
            self.start_method()
        }
    }

    /// The peer's answer to the request for its identity.
    #[must_use]
    pub fn identity(&self) -> Option<&str> {
        self.identity.as_deref()
    }

    /// The method, to see how it ended.
    #[must_use]
    pub const fn method(&self) -> &ServerMethod {
        &self.method
    }

    /// Takes a response.
    ///
    /// # Panics
    ///
    /// If it is no EAP-Response to the last request, or of a type that was not asked for.
    pub fn handle(&mut self, response: &[u8]) -> ServerStep {
        let [2, identifier, high, low, kind, data @ ..] = response else {
            panic!("not an EAP-Response: {response:02x?}");
        };
        assert_eq!(*identifier, self.identifier, "the identifier of the request");
        assert_eq!(
            usize::from(u16::from_be_bytes([*high, *low])),
            response.len(),
            "the length of the response"
        );

        let verdict = match (kind, &mut self.method) {
            (1, _) if self.ask_identity && self.identity.is_none() => {
                self.identity = Some(String::from_utf8(data.to_vec()).expect("an identity in UTF-8"));
                return ServerStep::Request(self.start_method());
            }
            (3, _) => Verdict::Refuse,
            (13, ServerMethod::Tls(server)) => server.handle(data),
            (26, ServerMethod::MsChapV2(server)) => server.handle(data),
            (kind, _) => panic!("a response of EAP type {kind} that nobody asked for"),
        };
        match verdict {
            Verdict::Continue(data) => ServerStep::Request(self.request(self.kind(), &data)),
            Verdict::Accept(msk) => ServerStep::Success {
                packet: vec![3, self.identifier, 0, 4],
                msk,
            },
            Verdict::Refuse => ServerStep::Failure(vec![4, self.identifier, 0, 4]),
        }
    }

    const fn kind(&self) -> u8 {
        match self.method {
            ServerMethod::Tls(_) => 13,
            ServerMethod::MsChapV2(_) => 26,
        }
    }

    fn start_method(&mut self) -> Vec<u8> {
        let data = match &mut self.method {
            ServerMethod::Tls(_) => vec![START],
            ServerMethod::MsChapV2(server) => server.challenge(),
        };
        self.request(self.kind(), &data)
    }

    fn request(&mut self, kind: u8, data: &[u8]) -> Vec<u8> {
        self.identifier = self.identifier.wrapping_add(1);
        let length = u16::try_from(5 + data.len())
            .expect("a request that fits")
            .to_be_bytes();
        let mut packet = vec![1, self.identifier, length[0], length[1], kind];
        packet.extend_from_slice(data);
        packet
    }
}

const LENGTH: u8 = 0x80;
const MORE: u8 = 0x40;
const START: u8 = 0x20;

/// An EAP-TLS server (RFC 5216, RFC 9190) around rustls.
#[derive(Debug)]
pub struct EapTlsServer {
    connection: ServerConnection,
    behaviour: TlsBehaviour,
    incoming: Vec<u8>,
    announced: Option<usize>,
    outgoing: Vec<u8>,
    sent: usize,
    indicated: bool,
    error: Option<rustls::Error>,
    fragments_received: usize,
}

/// How an EAP-TLS server behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TlsBehaviour {
    /// TLS octets in one packet.
    pub fragment_size: usize,
    /// Repeat the length of the message in every packet, as some servers do.
    pub length_everywhere: bool,
    /// Send the protected success indication of RFC 9190, section 2.5.
    pub success_indication: bool,
    /// Send it together with the server's Finished, as drafts of RFC 9190 had it.
    pub early_indication: bool,
    /// Send this as application data at the end of the handshake, and no success indication.
    pub application_data: Option<&'static [u8]>,
}

impl TlsBehaviour {
    /// As it should.
    pub const REGULAR: Self = Self {
        fragment_size: 1000,
        length_everywhere: false,
        success_indication: true,
        early_indication: false,
        application_data: None,
    };
}

/// TLS as an authentication server configures it: its certificate chain and key, the authority of its users, and the
/// time at which it believes to live.
///
/// # Panics
///
/// If the certificate, the key or the authority cannot be used.
#[must_use]
pub fn tls_server_config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    users: CertificateDer<'static>,
    versions: &[&'static SupportedProtocolVersion],
    now: UnixTime,
) -> Arc<ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(users).expect("an authority");
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .build()
        .expect("a verifier");
    let config = ServerConfig::builder_with_details(provider, Arc::new(Clock(now)))
        .with_protocol_versions(versions)
        .expect("TLS versions")
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .expect("a certificate and its key");
    Arc::new(config)
}

#[derive(Debug)]
struct Clock(UnixTime);

impl rustls::time_provider::TimeProvider for Clock {
    fn current_time(&self) -> Option<rustls::pki_types::UnixTime> {
        Some(rustls::pki_types::UnixTime::since_unix_epoch(
            Duration::from_secs(self.0.as_secs()),
        ))
    }
}

impl EapTlsServer {
    /// A server for one peer.
    ///
    /// # Panics
    ///
    /// If rustls does not accept `config`.
    #[must_use]
    pub fn new(config: Arc<ServerConfig>, behaviour: TlsBehaviour) -> Self {
        Self {
            connection: ServerConnection::new(config).expect("a usable configuration"),
            behaviour,
            incoming: Vec::new(),
            announced: None,
            outgoing: Vec::new(),
            sent: 0,
            indicated: false,
            error: None,
            fragments_received: 0,
        }
    }

    /// Why the server refused the peer, or the peer the server, in the words of TLS.
    #[must_use]
    pub const fn error(&self) -> Option<&rustls::Error> {
        self.error.as_ref()
    }

    /// The certificates that the peer sent, in its order.
    #[must_use]
    pub fn peer_certificates(&self) -> &[CertificateDer<'static>] {
        self.connection.peer_certificates().unwrap_or_default()
    }

    /// How many packets with the peer's More flag came.
    #[must_use]
    pub const fn fragments_received(&self) -> usize {
        self.fragments_received
    }

    fn handle(&mut self, data: &[u8]) -> Verdict {
        let (flags, data) = data.split_first().expect("flags");
        assert_eq!(flags & !(LENGTH | MORE), 0, "flags that a peer may set");
        let (length, data) = if flags & LENGTH == 0 {
            (None, data)
        } else {
            let (length, data) = data.split_first_chunk().expect("the length of the message");
            (Some(u32::from_be_bytes(*length) as usize), data)
        };

        if self.sent < self.outgoing.len() {
            assert!(data.is_empty() && *flags == 0, "an acknowledgement");
            return Verdict::Continue(self.next_fragment());
        }
        if self.error.is_some() {
            return Verdict::Refuse;
        }
        if self.is_done() && data.is_empty() {
            return Verdict::Accept(self.msk());
        }

        if self.incoming.is_empty() {
            self.announced = length;
        }
        self.incoming.extend_from_slice(data);
        if flags & MORE != 0 {
            assert!(
                self.announced.is_some(),
                "the first fragment announces the length"
            );
            assert!(!data.is_empty(), "a fragment with data");
            self.fragments_received += 1;
            return Verdict::Continue(vec![0]);
        }
        if let Some(announced) = self.announced.take() {
            assert_eq!(announced, self.incoming.len(), "the announced length");
        }
        let message = std::mem::take(&mut self.incoming);
        self.advance(&message);
        // Nothing but EAP-Failure may follow an alert of the peer (RFC 9190, section 2.5).
        if matches!(self.error, Some(rustls::Error::AlertReceived(_))) {
            return Verdict::Refuse;
        }
        // Without the indication of RFC 9190 there is nothing more to say once TLS is content.
        if self.outgoing.is_empty() && self.error.is_none() && self.is_done() {
            return Verdict::Accept(self.msk());
        }
        Verdict::Continue(self.next_fragment())
    }

    fn is_done(&self) -> bool {
        !self.connection.is_handshaking() && (self.indicated || !self.indicates_success())
    }

    fn indicates_success(&self) -> bool {
        self.connection.protocol_version() == Some(ProtocolVersion::TLSv1_3)
            && self.behaviour.success_indication
    }

    fn advance(&mut self, message: &[u8]) {
        let mut rest = message;
        while !rest.is_empty() {
            self.connection
                .read_tls(&mut rest)
                .expect("room in the TLS engine");
            match self.connection.process_new_packets() {
                Ok(state) => {
                    let mut data = vec![0; state.plaintext_bytes_to_read()];
                    self.connection.reader().read_exact(&mut data).expect("plaintext");
                    assert!(data.is_empty(), "a peer never sends application data");
                }
                Err(error) => {
                    self.error = Some(error);
                    break;
                }
            }
        }
        let is_time = !self.connection.is_handshaking() || self.behaviour.early_indication;
        if self.error.is_none() && is_time && !self.indicated {
            let data = match self.behaviour.application_data {
                Some(data) => data,
                None if self.indicates_success() => &[0],
                None => &[],
            };
            self.connection
                .writer()
                .write_all(data)
                .expect("room in the TLS engine");
            self.indicated = true;
        }
        self.outgoing.clear();
        self.sent = 0;
        while self.connection.wants_write() {
            self.connection
                .write_tls(&mut self.outgoing)
                .expect("a vector takes everything");
        }
    }

    fn next_fragment(&mut self) -> Vec<u8> {
        let rest = &self.outgoing[self.sent..];
        let part = &rest[..rest.len().min(self.behaviour.fragment_size)];
        let more = part.len() < rest.len();
        let length = (more && self.sent == 0) || self.behaviour.length_everywhere;
        let mut packet = vec![if more { MORE } else { 0 } | if length { LENGTH } else { 0 }];
        if length {
            let total = u32::try_from(self.outgoing.len()).expect("a message that fits");
            packet.extend_from_slice(&total.to_be_bytes());
        }
        packet.extend_from_slice(part);
        self.sent += part.len();
        packet
    }

    /// The Master Session Key.
    ///
    /// # Panics
    ///
    /// If the handshake is not complete.
    #[must_use]
    pub fn msk(&self) -> Box<[u8; 64]> {
        let (label, context): (&[u8], Option<&[u8]>) = match self.connection.protocol_version() {
            Some(ProtocolVersion::TLSv1_3) => (b"EXPORTER_EAP_TLS_Key_Material", Some(&[13])),
            _ => (b"client EAP encryption", None),
        };
        let keys = self
            .connection
            .export_keying_material([0; 128], label, context)
            .expect("key material");
        Box::new(*keys.first_chunk().expect("64 of 128 octets"))
    }
}

/// An EAP-MSCHAPv2 server with one user.
#[derive(Debug)]
pub struct MsChapServer {
    username: String,
    password: String,
    challenge: [u8; 16],
    behaviour: MsChapBehaviour,
    state: MsChapState,
}

/// How an EAP-MSCHAPv2 server behaves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum MsChapBehaviour {
    /// As it should.
    #[default]
    Regular,
    /// It lets everybody in and answers this message in its Success packet, since it does not know the password.
    Impostor(String),
    /// It refuses everybody with this message.
    Refuse(String),
}

#[derive(Debug)]
enum MsChapState {
    Challenged,
    Proven(Box<[u8; 64]>),
    Refused,
}

impl MsChapServer {
    /// A server that lets `username` in with `password`, and asks with `challenge`.
    #[must_use]
    pub fn new(username: &str, password: &str, challenge: [u8; 16], behaviour: MsChapBehaviour) -> Self {
        Self {
            username: username.to_owned(),
            password: password.to_owned(),
            challenge,
            behaviour,
            state: MsChapState::Challenged,
        }
    }

    fn challenge(&self) -> Vec<u8> {
        let name = b"gateway";
        let mut data = vec![1, MS_CHAP_ID, 0, 21 + name.len() as u8, 16];
        data.extend_from_slice(&self.challenge);
        data.extend_from_slice(name);
        data
    }

    fn handle(&mut self, data: &[u8]) -> Verdict {
        match std::mem::replace(&mut self.state, MsChapState::Refused) {
            MsChapState::Challenged => self.judge(data),
            MsChapState::Proven(msk) if data == [3] => Verdict::Accept(msk),
            MsChapState::Proven(_) | MsChapState::Refused => Verdict::Refuse,
        }
    }

    fn judge(&mut self, data: &[u8]) -> Verdict {
        let [2, MS_CHAP_ID, high, low, 49, value @ ..] = data else {
            panic!("not an MSCHAPv2 response: {data:02x?}");
        };
        assert_eq!(
            usize::from(u16::from_be_bytes([*high, *low])),
            data.len(),
            "the length of the response"
        );
        let (peer_challenge, value) = value.split_first_chunk::<16>().expect("a challenge");
        let (reserved, value) = value.split_first_chunk::<8>().expect("reserved octets");
        let (nt_response, value) = value.split_first_chunk::<24>().expect("an NT response");
        let (flags, name) = value.split_first().expect("flags");
        assert_eq!((*reserved, *flags), ([0; 8], 0), "reserved octets and flags");

        let hash = mschapv2::challenge_hash(peer_challenge, &self.challenge, &self.username);
        let known =
            name == self.username.as_bytes() && *nt_response == mschapv2::nt_response(&self.password, &hash);
        let message = match &self.behaviour {
            MsChapBehaviour::Regular if known => {
                let proof = mschapv2::authenticator_response(&self.password, nt_response, &hash);
                let hex: String = proof.iter().map(|octet| format!("{octet:02X}")).collect();
                format!("S={hex} M=Welcome")
            }
            MsChapBehaviour::Impostor(message) => message.clone(),
            MsChapBehaviour::Regular => {
                return refusal("E=691 R=0 C=000102030405060708090A0B0C0D0E0F V=3 M=Authentication failed");
            }
            MsChapBehaviour::Refuse(message) => return refusal(message),
        };
        let msk = mschapv2::msk(&self.password, nt_response);
        self.state = MsChapState::Proven(Box::new(*msk.as_bytes().first_chunk().expect("64 octets")));
        Verdict::Continue(packet(3, &message))
    }
}

/// The MS-CHAPv2-ID of all packets.
const MS_CHAP_ID: u8 = 0x42;

fn refusal(message: &str) -> Verdict {
    Verdict::Continue(packet(4, message))
}

fn packet(op_code: u8, message: &str) -> Vec<u8> {
    let length = u16::try_from(4 + message.len())
        .expect("a message that fits")
        .to_be_bytes();
    let mut data = vec![op_code, MS_CHAP_ID, length[0], length[1]];
    data.extend_from_slice(message.as_bytes());
    data
}
