//! EAP-TLS (RFC 5216; RFC 9190 for TLS 1.3).
//!
//! TLS itself is rustls: TLS 1.2 and 1.3, ephemeral elliptic curves and AEAD ciphers only, no resumption, no early
//! data, no name in the ClientHello. What is here is its packaging, the decision when it has succeeded, and the key.

use std::fmt;
use std::io::Read as _;
use std::mem;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientConfig, ClientConnection, Resumption};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::sign::SingleCertAndKey;
use rustls::{CertificateError, DigitallySignedStruct, OtherError, ProtocolVersion, SignatureScheme};

use super::{EapError, EapTls, Msk, Progress};
use crate::crypto::Secret;
use crate::pki::{self, CertError, Certificate};
use crate::profile::Identity;
use crate::timer::UnixTime;

/// A TLS alert (RFC 8446, section 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TlsAlert(pub u8);

impl TlsAlert {
    /// The alert says that the receiver of our certificate, or of a signature made with its key, does not accept it.
    #[must_use]
    pub const fn is_about_our_certificate(self) -> bool {
        // bad_certificate, unsupported_certificate, certificate_revoked, certificate_expired, certificate_unknown,
        // unknown_ca, access_denied, decrypt_error, certificate_required
        matches!(self.0, 42..=46 | 48 | 49 | 51 | 116)
    }

    /// Its name in RFC 8446, or in RFC 5246 when it is older.
    #[must_use]
    pub const fn name(self) -> Option<&'static str> {
        Some(match self.0 {
            0 => "close_notify",
            10 => "unexpected_message",
            20 => "bad_record_mac",
            21 => "decryption_failed",
            22 => "record_overflow",
            30 => "decompression_failure",
            40 => "handshake_failure",
            41 => "no_certificate",
            42 => "bad_certificate",
            43 => "unsupported_certificate",
            44 => "certificate_revoked",
            45 => "certificate_expired",
            46 => "certificate_unknown",
            47 => "illegal_parameter",
            48 => "unknown_ca",
            49 => "access_denied",
            50 => "decode_error",
            51 => "decrypt_error",
            60 => "export_restriction",
            70 => "protocol_version",
            71 => "insufficient_security",
            80 => "internal_error",
            86 => "inappropriate_fallback",
            90 => "user_canceled",
            100 => "no_renegotiation",
            109 => "missing_extension",
            110 => "unsupported_extension",
            112 => "unrecognized_name",
            113 => "bad_certificate_status_response",
            115 => "unknown_psk_identity",
            116 => "certificate_required",
            120 => "no_application_protocol",
            _ => return None,
        })
    }
}

impl fmt::Display for TlsAlert {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.is_about_our_certificate() {
            "rejected our certificate"
        } else {
            "ended the TLS handshake"
        };
        match self.name() {
            Some(name) => write!(f, "{what} (alert {name})"),
            None => write!(f, "{what} (alert {})", self.0),
        }
    }
}

/// TLS as configured, before its first word.
fn connect(config: EapTls, clock: Arc<Clock>, verdict: Arc<Verdict>) -> Result<ClientConnection, EapError> {
    let EapTls {
        chain,
        key,
        anchors,
        server_identity,
        fragment_size: _,
    } = config;
    if !chain.first().is_some_and(|certificate| key.matches(certificate)) {
        return Err(EapError::Credential(
            "the private key does not belong to the certificate".to_owned(),
        ));
    }
    let ours = pki::tls::certified_key(&in_order(&chain), &key);
    let verifier = Verifier {
        anchors,
        server_identity,
        verdict,
    };
    let mut tls =
        ClientConfig::builder_with_details(Arc::new(rustls::crypto::ring::default_provider()), clock)
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(|error| EapError::Tls(error.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            // There is only one certificate to choose, whatever authorities the server lists.
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(ours)));
    // A resumed session would skip the certificates.
    tls.resumption = Resumption::disabled();
    // Authentication servers have one name at most, and the name that we expect is nobody's business.
    tls.enable_sni = false;
    let never_sent = ServerName::from(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    ClientConnection::new(Arc::new(tls), never_sent).map_err(|error| EapError::Tls(error.to_string()))
}

/// Our certificate, and each time the issuer of the one before, as TLS 1.2 demands (RFC 5246, section 7.4.2). What the
/// server must have anyway stays out: the root.
fn in_order(chain: &[Certificate]) -> Vec<Certificate> {
    let mut ordered: Vec<Certificate> = chain.first().into_iter().cloned().collect();
    while let Some(last) = ordered.last() {
        let issuer = chain.iter().find(|candidate| {
            candidate.subject_der() == last.issuer_der()
                && !candidate.is_self_issued()
                && ordered.iter().all(|used| used.der() != candidate.der())
        });
        match issuer {
            Some(issuer) => ordered.push(issuer.clone()),
            None => break,
        }
    }
    ordered
}

/// The peer's side once the server has started it.
pub(super) struct Peer {
    connection: ClientConnection,
    clock: Arc<Clock>,
    verdict: Arc<Verdict>,
    incoming: Reassembly,
    outgoing: Flight,
    /// What follows once all of `outgoing` is sent.
    then: Then,
}

#[derive(Debug)]
enum Then {
    Continue,
    Complete(Msk),
    Abort(EapError),
}

impl Peer {
    /// Answers the Start packet with the ClientHello.
    pub(super) fn start(config: EapTls, data: &[u8], now: UnixTime) -> Result<(Self, Progress), EapError> {
        let start = Fragment::decode(data)?;
        if !start.start || start.more || !start.data.is_empty() {
            return Err(EapError::Malformed("EAP-TLS does not begin with a start packet"));
        }
        let fragment_size = config.fragment_size;
        let clock = Arc::new(Clock::new(now));
        let verdict = Arc::new(Verdict::default());
        let connection = connect(config, Arc::clone(&clock), Arc::clone(&verdict))?;
        let mut peer = Self {
            connection,
            clock,
            verdict,
            incoming: Reassembly::default(),
            outgoing: Flight::new(fragment_size),
            then: Then::Continue,
        };
        peer.collect_output();
        let progress = peer.reply();
        Ok((peer, progress))
    }

    /// Takes the next request.
    pub(super) fn handle(&mut self, data: &[u8], now: UnixTime) -> Result<Progress, EapError> {
        self.clock.set(now);
        let fragment = Fragment::decode(data)?;
        if fragment.start {
            return Err(EapError::Malformed("EAP-TLS starts a second time"));
        }
        if !self.outgoing.is_sent() {
            if fragment.more || !fragment.data.is_empty() {
                return Err(EapError::Malformed(
                    "EAP-TLS data instead of the acknowledgement of a fragment",
                ));
            }
            return Ok(self.reply());
        }
        let Some(message) = self.incoming.add(&fragment)? else {
            return Ok(Progress::Reply(vec![0]));
        };
        let result = self.advance(&message);
        self.collect_output();
        self.then = match result {
            Ok(None) => Then::Continue,
            Ok(Some(msk)) => Then::Complete(msk),
            Err(error) => Then::Abort(error),
        };
        Ok(self.reply())
    }

    /// Feeds TLS with all that the server sent in one EAP message. The key, if that was the end.
    fn advance(&mut self, message: &[u8]) -> Result<Option<Msk>, EapError> {
        let was_handshaking = self.connection.is_handshaking();
        let mut closed = false;
        let mut received = Vec::new();
        let mut rest = message;
        while !rest.is_empty() && !closed {
            self.connection
                .read_tls(&mut rest)
                .map_err(|error| EapError::Tls(error.to_string()))?;
            let state = self
                .connection
                .process_new_packets()
                .map_err(|error| self.diagnose(&error))?;
            closed = state.peer_has_closed();
            // One octet is all that a server may ever say; a second one is enough to know that it says more.
            let available = state.plaintext_bytes_to_read().min(2);
            let old = received.len();
            received.resize(old.saturating_add(available), 0);
            if let Some(new) = received.get_mut(old..) {
                self.connection
                    .reader()
                    .read_exact(new)
                    .map_err(|error| EapError::Tls(error.to_string()))?;
            }
            if received.len() > 1 {
                return Err(EapError::Tls("the server sent application data".to_owned()));
            }
        }

        let complete = match (self.connection.protocol_version(), received.as_slice()) {
            (Some(ProtocolVersion::TLSv1_3), []) => false,
            // The server's protected word that it accepts us. Before it has seen our Finished it cannot mean that,
            // and without it an attacker could cut the conversation short (RFC 9190, section 2.5).
            (Some(ProtocolVersion::TLSv1_3), [0]) if !was_handshaking => true,
            (_, []) => !self.connection.is_handshaking(),
            (_, _) => return Err(EapError::Tls("the server sent application data".to_owned())),
        };
        if complete {
            return self.export_msk().map(Some);
        }
        if closed {
            return Err(EapError::Tls(
                "the server closed the connection before the end".to_owned(),
            ));
        }
        Ok(None)
    }

    /// RFC 5216, section 2.3; RFC 9190, section 2.3.
    fn export_msk(&self) -> Result<Msk, EapError> {
        let (label, context): (&[u8], Option<&[u8]>) =
            if self.connection.protocol_version() == Some(ProtocolVersion::TLSv1_3) {
                (b"EXPORTER_EAP_TLS_Key_Material", Some(&[13]))
            } else {
                (b"client EAP encryption", None)
            };
        // All 128 octets must be asked for: in TLS 1.3, fewer would be others. The rest is the EMSK.
        let key_material = self
            .connection
            .export_keying_material(vec![0; 128], label, context)
            .map(Secret::new)
            .map_err(|error| EapError::Tls(error.to_string()))?;
        Ok(Msk(Secret::new(key_material.as_bytes()[..64].to_vec())))
    }

    /// The cause behind an error of rustls: our own verdict on a certificate is better than what TLS makes of it.
    fn diagnose(&self, error: &rustls::Error) -> EapError {
        if let Some(verdict) = self.verdict.take() {
            return EapError::ServerCertificate(verdict);
        }
        if let rustls::Error::AlertReceived(alert) = error {
            return EapError::TlsAlert(TlsAlert(u8::from(*alert)));
        }
        EapError::Tls(error.to_string())
    }

    fn collect_output(&mut self) {
        let mut flight = Vec::new();
        while self.connection.wants_write() {
            // Writing to a Vec cannot fail, and rustls writes all that it has.
            if !self
                .connection
                .write_tls(&mut flight)
                .is_ok_and(|written| written > 0)
            {
                break;
            }
        }
        self.outgoing.refill(flight);
    }

    /// The next fragment of what we have to say, which may be nothing.
    fn reply(&mut self) -> Progress {
        let data = self.outgoing.next();
        if !self.outgoing.is_sent() {
            return Progress::Reply(data);
        }
        match mem::replace(&mut self.then, Then::Continue) {
            Then::Continue => Progress::Reply(data),
            Then::Complete(msk) => Progress::Complete(data, msk),
            Then::Abort(error) => Progress::Abort(data, error),
        }
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer")
            .field("version", &self.connection.protocol_version())
            .field("handshaking", &self.connection.is_handshaking())
            .finish_non_exhaustive()
    }
}

/// The type data of an EAP-TLS packet (RFC 5216, section 3.1).
#[derive(Debug, PartialEq, Eq)]
struct Fragment<'a> {
    start: bool,
    more: bool,
    /// The length of the whole message, if the packet tells it.
    total: Option<usize>,
    data: &'a [u8],
}

mod flag {
    pub(super) const LENGTH: u8 = 0x80;
    pub(super) const MORE: u8 = 0x40;
    pub(super) const START: u8 = 0x20;
}

impl<'a> Fragment<'a> {
    fn decode(data: &'a [u8]) -> Result<Self, EapError> {
        const TRUNCATED: EapError = EapError::Malformed("a truncated EAP-TLS packet");
        let (&flags, rest) = data.split_first().ok_or(TRUNCATED)?;
        let (total, data) = if flags & flag::LENGTH == 0 {
            (None, rest)
        } else {
            let (total, data) = rest.split_first_chunk().ok_or(TRUNCATED)?;
            let total = usize::try_from(u32::from_be_bytes(*total)).unwrap_or(usize::MAX);
            (Some(total), data)
        };
        Ok(Self {
            start: flags & flag::START != 0,
            more: flags & flag::MORE != 0,
            total,
            data,
        })
    }
}

/// A message of the server that comes in fragments (RFC 5216, section 2.1.5).
#[derive(Debug, Default)]
struct Reassembly {
    /// What the first fragment announced, while the message is incomplete.
    total: Option<usize>,
    data: Vec<u8>,
}

impl Reassembly {
    /// The whole message, if this fragment was its last.
    fn add(&mut self, fragment: &Fragment<'_>) -> Result<Option<Vec<u8>>, EapError> {
        let total = match (self.total, fragment.total) {
            (Some(total), None) => total,
            // Some servers repeat the length in every fragment.
            (Some(total), Some(again)) if again == total => total,
            (Some(_), Some(_)) => {
                return Err(EapError::Malformed("an EAP-TLS message that changes its length"));
            }
            (None, Some(total)) => total,
            (None, None) if fragment.more => {
                return Err(EapError::Malformed(
                    "a first EAP-TLS fragment without the length of the message",
                ));
            }
            (None, None) => fragment.data.len(),
        };
        if total > MAX_MESSAGE {
            return Err(EapError::Malformed("an EAP-TLS message of more than 64 KiB"));
        }
        if fragment.more && fragment.data.is_empty() {
            return Err(EapError::Malformed("an empty EAP-TLS fragment"));
        }
        self.data.extend_from_slice(fragment.data);
        if self.data.len() > total || fragment.more != (self.data.len() < total) {
            return Err(EapError::Malformed(
                "an EAP-TLS message whose length is not the announced one",
            ));
        }
        if fragment.more {
            self.total = Some(total);
            return Ok(None);
        }
        self.total = None;
        Ok(Some(mem::take(&mut self.data)))
    }
}

/// What we have to send, in fragments (RFC 5216, section 2.1.5).
#[derive(Debug)]
struct Flight {
    /// The most TLS octets in one packet, counted so that the length field fits as well.
    room: usize,
    data: Vec<u8>,
    sent: usize,
}

impl Flight {
    fn new(packet_size: usize) -> Self {
        Self {
            room: packet_size.clamp(256, 1400) - OVERHEAD,
            data: Vec::new(),
            sent: 0,
        }
    }

    fn refill(&mut self, data: Vec<u8>) {
        self.data = data;
        self.sent = 0;
    }

    const fn is_sent(&self) -> bool {
        self.sent >= self.data.len()
    }

    /// The type data of the next packet.
    fn next(&mut self) -> Vec<u8> {
        let rest = self.data.get(self.sent..).unwrap_or_default();
        let part = rest.get(..self.room).unwrap_or(rest);
        let mut flags = 0;
        let mut length = None;
        if part.len() < rest.len() {
            flags |= flag::MORE;
            if self.sent == 0 {
                flags |= flag::LENGTH;
                length = u32::try_from(self.data.len()).ok();
            }
        }
        let mut packet = vec![flags];
        packet.extend(length.into_iter().flat_map(u32::to_be_bytes));
        packet.extend_from_slice(part);
        self.sent += part.len();
        packet
    }
}

/// The caller's time, as rustls wants to have it.
#[derive(Debug)]
struct Clock(AtomicU64);

impl Clock {
    const fn new(now: UnixTime) -> Self {
        Self(AtomicU64::new(now.as_secs()))
    }

    fn set(&self, now: UnixTime) {
        self.0.store(now.as_secs(), Ordering::Relaxed);
    }
}

impl rustls::time_provider::TimeProvider for Clock {
    fn current_time(&self) -> Option<rustls::pki_types::UnixTime> {
        let since_1970 = Duration::from_secs(self.0.load(Ordering::Relaxed));
        Some(rustls::pki_types::UnixTime::since_unix_epoch(since_1970))
    }
}

/// Why the server's certificate was refused; rustls has no room for it.
#[derive(Debug, Default)]
struct Verdict(Mutex<Option<CertError>>);

impl Verdict {
    fn set(&self, error: CertError) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }

    fn take(&self) -> Option<CertError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Judges the server's certificate by our own rules.
#[derive(Debug)]
struct Verifier {
    anchors: Vec<Certificate>,
    server_identity: Identity,
    verdict: Arc<Verdict>,
}

impl Verifier {
    fn judge(&self, chain: &[&CertificateDer<'_>], now: UnixTime) -> Result<(), CertError> {
        let chain = chain
            .iter()
            .map(|der| Certificate::from_der(der))
            .collect::<Result<Vec<_>, _>>()?;
        pki::verify_tls_server(&chain, &self.anchors, &self.server_identity, now)
    }

    /// Keeps the reason for [`Peer::diagnose`], and gives rustls as much of it as it takes to choose the alert.
    fn refuse(&self, error: CertError) -> rustls::Error {
        let told = told_to_server(&error);
        self.verdict.set(error);
        told.into()
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: rustls::pki_types::UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let chain: Vec<_> = std::iter::once(end_entity).chain(intermediates).collect();
        self.judge(&chain, UnixTime(Duration::from_secs(now.as_secs())))
            .map(|()| ServerCertVerified::assertion())
            .map_err(|error| self.refuse(error))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            certificate,
            signature,
            &pki::tls::SUPPORTED_ALGORITHMS,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signature,
            &pki::tls::SUPPORTED_ALGORITHMS,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        pki::tls::SUPPORTED_ALGORITHMS.supported_schemes()
    }
}

/// What the TLS alert says of our reason.
fn told_to_server(error: &CertError) -> CertificateError {
    if matches!(error, CertError::UnknownIssuer { .. }) {
        CertificateError::UnknownIssuer
    } else if matches!(error, CertError::Expired { .. }) {
        CertificateError::Expired
    } else if matches!(error, CertError::NotYetValid { .. }) {
        CertificateError::NotValidYet
    } else if matches!(error, CertError::NameMismatch { .. }) {
        CertificateError::NotValidForName
    } else if matches!(
        error,
        CertError::NotForServer { .. } | CertError::ExtendedKeyUsage { .. }
    ) {
        CertificateError::InvalidPurpose
    } else if matches!(error, CertError::Malformed { .. }) {
        CertificateError::BadEncoding
    } else {
        CertificateError::Other(OtherError(Arc::new(error.clone())))
    }
}

/// The most that a server may say at once, in octets.
const MAX_MESSAGE: usize = 65_536;

/// The headers of EAP and EAP-TLS, with the length of the message, in octets.
const OVERHEAD: usize = 10;
