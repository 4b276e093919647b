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

use super::alert::TlsAlert;
use super::fragment::{Flight, Fragment, Reassembly};
use super::p521::Secp521r1;
use super::{EapError, EapTls, Msk, Progress};
use crate::crypto::Secret;
use crate::pki::{self, CertError, Certificate};
use crate::profile::Identity;
use crate::timer::UnixTime;

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
    let mut provider = rustls::crypto::ring::default_provider();
    provider.kx_groups.push(&Secp521r1);
    let verifier = Verifier {
        anchors,
        server_identity,
        verdict,
    };
    let mut tls = ClientConfig::builder_with_details(Arc::new(provider), clock)
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
        // The certificate itself is not the reason, or there were a verdict.
        if matches!(error, rustls::Error::InvalidCertificate(_)) {
            return EapError::Tls(
                "the server's signature is wrong, or of a kind that we do not know".to_owned(),
            );
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
