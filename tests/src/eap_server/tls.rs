//! TLS in EAP packets, and EAP-TLS around it.

use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::time::Duration;

use peregrine_core::timer::UnixTime;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ServerConfig, ServerConnection, WebPkiClientVerifier};
use rustls::{ProtocolVersion, RootCertStore, SupportedProtocolVersion};

use super::Verdict;

const LENGTH: u8 = 0x80;
const MORE: u8 = 0x40;
pub(super) const START: u8 = 0x20;

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

/// TLS as an authentication server configures it: its certificate chain and key, the authority of its users
/// if they have certificates, and the time at which it believes to live.
///
/// # Panics
///
/// If the certificate, the key or the authority cannot be used.
#[must_use]
pub fn tls_server_config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    users: Option<CertificateDer<'static>>,
    versions: &[&'static SupportedProtocolVersion],
    now: UnixTime,
) -> Arc<ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = match users {
        None => WebPkiClientVerifier::no_client_auth(),
        Some(users) => {
            let mut roots = RootCertStore::empty();
            roots.add(users).expect("an authority");
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                .build()
                .expect("a verifier")
        }
    };
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

/// TLS in packets.
#[derive(Debug)]
pub(super) struct Engine {
    pub(super) connection: ServerConnection,
    fragment_size: usize,
    length_everywhere: bool,
    incoming: Vec<u8>,
    announced: Option<usize>,
    outgoing: Vec<u8>,
    sent: usize,
    error: Option<rustls::Error>,
    fragments_received: usize,
}

/// What a packet of the peer's was.
pub(super) enum Taken {
    /// A part of something; this answers it.
    Part(Vec<u8>),
    /// A whole message, which may be empty.
    Message(Vec<u8>),
}

impl Engine {
    pub(super) fn new(config: Arc<ServerConfig>, behaviour: TlsBehaviour) -> Self {
        Self {
            connection: ServerConnection::new(config).expect("a usable configuration"),
            fragment_size: behaviour.fragment_size,
            length_everywhere: behaviour.length_everywhere,
            incoming: Vec::new(),
            announced: None,
            outgoing: Vec::new(),
            sent: 0,
            error: None,
            fragments_received: 0,
        }
    }

    pub(super) const fn error(&self) -> Option<&rustls::Error> {
        self.error.as_ref()
    }

    pub(super) fn take(&mut self, data: &[u8]) -> Taken {
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
            return Taken::Part(self.next_fragment());
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
            return Taken::Part(vec![0]);
        }
        if let Some(announced) = self.announced.take() {
            assert_eq!(announced, self.incoming.len(), "the announced length");
        }
        Taken::Message(std::mem::take(&mut self.incoming))
    }

    /// Feeds TLS, and returns what the peer said in it.
    pub(super) fn feed(&mut self, message: &[u8]) -> Vec<u8> {
        let mut said = Vec::new();
        let mut rest = message;
        while !rest.is_empty() {
            self.connection
                .read_tls(&mut rest)
                .expect("room in the TLS engine");
            match self.connection.process_new_packets() {
                Ok(state) => {
                    let mut data = vec![0; state.plaintext_bytes_to_read()];
                    self.connection.reader().read_exact(&mut data).expect("plaintext");
                    said.extend(data);
                }
                Err(error) => {
                    self.error = Some(error);
                    break;
                }
            }
        }
        said
    }

    pub(super) fn say(&mut self, data: &[u8]) {
        self.connection
            .writer()
            .write_all(data)
            .expect("room in the TLS engine");
    }

    /// The first packet of what TLS has to say.
    pub(super) fn flight(&mut self) -> Vec<u8> {
        self.outgoing.clear();
        self.sent = 0;
        while self.connection.wants_write() {
            self.connection
                .write_tls(&mut self.outgoing)
                .expect("a vector takes everything");
        }
        self.next_fragment()
    }

    fn next_fragment(&mut self) -> Vec<u8> {
        let rest = &self.outgoing[self.sent..];
        let part = &rest[..rest.len().min(self.fragment_size)];
        let more = part.len() < rest.len();
        let length = (more && self.sent == 0) || self.length_everywhere;
        let mut packet = vec![if more { MORE } else { 0 } | if length { LENGTH } else { 0 }];
        if length {
            let total = u32::try_from(self.outgoing.len()).expect("a message that fits");
            packet.extend_from_slice(&total.to_be_bytes());
        }
        packet.extend_from_slice(part);
        self.sent += part.len();
        packet
    }

    /// The first 64 of 128 octets of key material.
    pub(super) fn msk(&self, kind: u8, label: &[u8]) -> Box<[u8; 64]> {
        let context = [kind];
        let (label, context): (&[u8], Option<&[u8]>) = match self.connection.protocol_version() {
            Some(ProtocolVersion::TLSv1_3) => (b"EXPORTER_EAP_TLS_Key_Material", Some(&context)),
            _ => (label, None),
        };
        let keys = self
            .connection
            .export_keying_material([0; 128], label, context)
            .expect("key material");
        Box::new(*keys.first_chunk().expect("64 of 128 octets"))
    }
}

/// An EAP-TLS server (RFC 5216, RFC 9190) around rustls.
#[derive(Debug)]
pub struct EapTlsServer {
    engine: Engine,
    behaviour: TlsBehaviour,
    indicated: bool,
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
            engine: Engine::new(config, behaviour),
            behaviour,
            indicated: false,
        }
    }

    /// Why the server refused the peer, or the peer the server, in the words of TLS.
    #[must_use]
    pub const fn error(&self) -> Option<&rustls::Error> {
        self.engine.error()
    }

    /// The certificates that the peer sent, in its order.
    #[must_use]
    pub fn peer_certificates(&self) -> &[CertificateDer<'static>] {
        self.engine.connection.peer_certificates().unwrap_or_default()
    }

    /// How many packets with the peer's More flag came.
    #[must_use]
    pub const fn fragments_received(&self) -> usize {
        self.engine.fragments_received
    }

    pub(super) fn handle(&mut self, data: &[u8]) -> Verdict {
        let message = match self.engine.take(data) {
            Taken::Part(answer) => return Verdict::Continue(answer),
            Taken::Message(_) if self.error().is_some() => return Verdict::Refuse,
            Taken::Message(message) if message.is_empty() && self.is_done() => {
                return Verdict::Accept(Some(self.msk()));
            }
            Taken::Message(message) => message,
        };
        let said = self.engine.feed(&message);
        assert!(said.is_empty(), "a peer never sends application data");
        let is_time = !self.engine.connection.is_handshaking() || self.behaviour.early_indication;
        if self.error().is_none() && is_time && !self.indicated {
            let data = match self.behaviour.application_data {
                Some(data) => data,
                None if self.indicates_success() => &[0],
                None => &[],
            };
            self.engine.say(data);
            self.indicated = true;
        }
        let packet = self.engine.flight();
        // Nothing but EAP-Failure may follow an alert of the peer (RFC 9190, section 2.5).
        if matches!(self.error(), Some(rustls::Error::AlertReceived(_))) {
            return Verdict::Refuse;
        }
        // Without the indication of RFC 9190 there is nothing more to say once TLS is content.
        if self.engine.outgoing.is_empty() && self.error().is_none() && self.is_done() {
            return Verdict::Accept(Some(self.msk()));
        }
        Verdict::Continue(packet)
    }

    fn is_done(&self) -> bool {
        !self.engine.connection.is_handshaking() && (self.indicated || !self.indicates_success())
    }

    fn indicates_success(&self) -> bool {
        self.engine.connection.protocol_version() == Some(ProtocolVersion::TLSv1_3)
            && self.behaviour.success_indication
    }

    /// The Master Session Key.
    ///
    /// # Panics
    ///
    /// If the handshake is not complete.
    #[must_use]
    pub fn msk(&self) -> Box<[u8; 64]> {
        self.engine.msk(13, b"client EAP encryption")
    }
}
