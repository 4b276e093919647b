//! TLS inside EAP packets, as far as EAP-TLS, EAP-TTLS and PEAP do the same: handshake, packaging, the judgement of
//! the server's certificate, keys.
//!
//! TLS itself is rustls, fed with the messages of the server and drained for ours. What a method does with the tunnel
//! is its [`Inside`].

use std::fmt;
use std::io::{Read as _, Write as _};
use std::mem;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientConfig, ClientConnection, Resumption};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    CertificateError, DigitallySignedStruct, OtherError, ProtocolVersion, SignatureScheme,
    SupportedProtocolVersion,
};
use zeroize::Zeroizing;

use super::alert::TlsAlert;
use super::fragment::{Flight, Fragment, Reassembly};
use super::p521::Secp521r1;
use super::{EapError, Msk, Presented, Progress, Question, TlsServer, Turn};
use crate::crypto::Secret;
use crate::pki::{self, CertError, Certificate, VerifiedPeer};
use crate::profile::Identity;
use crate::timer::UnixTime;
use crate::wire::iana::EapType;

/// What a method says and hears in its tunnel.
pub(super) trait Inside: fmt::Debug {
    /// Takes what the start packet holds besides the request to start.
    fn start(&mut self, data: &[u8]) -> Result<(), EapError>;

    /// Takes what one message of the server's brought, which may be nothing but a part of the handshake.
    fn advance(&mut self, tls: &mut Tls, heard: &Heard, turn: &mut Turn<'_>) -> Result<Then, EapError>;

    /// Takes the user's answer to the question with which `advance` ended.
    fn answer(&mut self, _tls: &mut Tls, _answer: &Secret) -> Result<Then, EapError> {
        Err(EapError::Malformed("an answer to no question"))
    }

    /// The server may be content now: all that the peer has to say and to check is said and checked.
    fn is_content(&self) -> bool {
        false
    }

    /// The method's key, once the tunnel stands.
    fn key(&self, tls: &Tls) -> Result<Msk, EapError>;
}

/// What follows from a message.
#[derive(Debug)]
pub(super) enum Then {
    /// What the method or TLS has to say is sent, and the next message awaited.
    Continue,
    /// The user must be asked before anything is sent.
    Ask(Question),
    /// What there is to say is sent, and the method is complete.
    Complete,
    /// What there is to say is sent so that the server learns of it, and the method has failed.
    Abort(EapError),
}

/// What a method makes of TLS.
pub(super) struct Setup {
    pub(super) server: TlsServer,
    /// Our certificate and key, if the method has them.
    pub(super) ours: Option<CertifiedKey>,
    pub(super) versions: &'static [&'static SupportedProtocolVersion],
    /// Tell the length of messages of the handshake that need no cutting, too.
    pub(super) announce: bool,
}

/// TLS as configured, before its first word.
fn connect(
    server: TlsServer,
    ours: Option<CertifiedKey>,
    versions: &'static [&'static SupportedProtocolVersion],
    clock: Arc<Clock>,
    verdict: Arc<Verdict>,
) -> Result<ClientConnection, EapError> {
    let mut provider = rustls::crypto::ring::default_provider();
    provider.kx_groups.push(&Secp521r1);
    let verifier = Verifier {
        anchors: server.anchors,
        identity: server.identity,
        keep: server.check_revocation,
        verdict,
    };
    let builder = ClientConfig::builder_with_details(Arc::new(provider), clock)
        .with_protocol_versions(versions)
        .map_err(|error| EapError::Tls(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut tls = match ours {
        // There is only one certificate to choose, whatever authorities the server lists.
        Some(ours) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(ours))),
        None => builder.with_no_client_auth(),
    };
    // A resumed session would skip the certificates.
    tls.resumption = Resumption::disabled();
    // Authentication servers have one name at most, and the name that we expect is nobody's business.
    tls.enable_sni = false;
    let never_sent = ServerName::from(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    ClientConnection::new(Arc::new(tls), never_sent).map_err(|error| EapError::Tls(error.to_string()))
}

/// The peer's side of a method once the server has started it.
pub(super) struct Peer<I> {
    inside: I,
    tls: Tls,
    clock: Arc<Clock>,
    announce: bool,
    incoming: Reassembly,
    outgoing: Flight,
    /// What the server said with its certificate, until that is known not to be revoked.
    held: Option<Heard>,
    /// What follows once all of `outgoing` is sent.
    end: End,
}

enum End {
    Continue,
    Complete(Msk),
    Abort(EapError),
}

impl<I: Inside> Peer<I> {
    /// Answers the Start packet with the ClientHello.
    pub(super) fn start(
        setup: Setup,
        mut inside: I,
        data: &[u8],
        now: UnixTime,
    ) -> Result<(Self, Progress), EapError> {
        let Setup {
            server,
            ours,
            versions,
            announce,
        } = setup;
        let start = Fragment::decode(data)?;
        if !start.start || start.more {
            return Err(EapError::Malformed(
                "the method does not begin with a start packet",
            ));
        }
        inside.start(start.data)?;
        let fragment_size = server.fragment_size;
        let clock = Arc::new(Clock::new(now));
        let verdict = Arc::new(Verdict::default());
        let connection = connect(server, ours, versions, Arc::clone(&clock), Arc::clone(&verdict))?;
        let mut peer = Self {
            inside,
            tls: Tls { connection, verdict },
            clock,
            announce,
            incoming: Reassembly::default(),
            outgoing: Flight::new(fragment_size),
            held: None,
            end: End::Continue,
        };
        peer.collect_output();
        let progress = peer.reply();
        Ok((peer, progress))
    }

    /// Takes the next request.
    pub(super) fn handle(&mut self, data: &[u8], turn: &mut Turn<'_>) -> Result<Progress, EapError> {
        self.clock.set(turn.now);
        let fragment = Fragment::decode(data)?;
        if fragment.start {
            return Err(EapError::Malformed("the method starts a second time"));
        }
        if !self.outgoing.is_sent() {
            if fragment.more || !fragment.data.is_empty() {
                return Err(EapError::Malformed(
                    "TLS data instead of the acknowledgement of a fragment",
                ));
            }
            return Ok(self.reply());
        }
        let Some(message) = self.incoming.add(&fragment)? else {
            return Ok(Progress::Reply(vec![0]));
        };
        let heard = match self.tls.feed(&message) {
            Ok(heard) => heard,
            // What TLS has ready after it has seen a certificate says who we are, and nobody has vetted that one.
            Err(error) if self.tls.verdict.take_presented().is_some() => return Err(error),
            Err(error) => return self.follow(Err(error)),
        };
        // TLS has its answer ready, with our certificate; it stays here.
        if let Some(presented) = self.tls.verdict.take_presented() {
            self.held = Some(heard);
            return Ok(Progress::Check(presented));
        }
        let then = self.inside.advance(&mut self.tls, &heard, turn);
        self.follow(then)
    }

    /// Takes word of the server's certificate. After a bad one nothing is sent any more, not even an alert: what TLS has
    /// ready says who we are.
    pub(super) fn checked(
        &mut self,
        verdict: Result<(), CertError>,
        turn: &mut Turn<'_>,
    ) -> Result<Progress, EapError> {
        let heard = self
            .held
            .take()
            .ok_or(EapError::Malformed("no certificate to check"))?;
        verdict.map_err(EapError::ServerCertificate)?;
        let then = self.inside.advance(&mut self.tls, &heard, turn);
        self.follow(then)
    }

    /// Takes the user's answer.
    pub(super) fn answer(&mut self, answer: &Secret) -> Result<Progress, EapError> {
        let then = self.inside.answer(&mut self.tls, answer);
        self.follow(then)
    }

    pub(super) fn is_content(&self) -> bool {
        self.outgoing.is_sent() && self.inside.is_content()
    }

    pub(super) fn key(&self) -> Result<Msk, EapError> {
        self.inside.key(&self.tls)
    }

    fn follow(&mut self, then: Result<Then, EapError>) -> Result<Progress, EapError> {
        self.end = match then {
            Ok(Then::Ask(question)) => return Ok(Progress::Ask(question)),
            Ok(Then::Continue) => End::Continue,
            Ok(Then::Complete) => End::Complete(self.inside.key(&self.tls)?),
            Ok(Then::Abort(error)) | Err(error) => End::Abort(error),
        };
        self.collect_output();
        match mem::replace(&mut self.end, End::Continue) {
            // An empty packet would say yes.
            End::Abort(error) if self.outgoing.is_empty() => Err(error),
            end => {
                self.end = end;
                Ok(self.reply())
            }
        }
    }

    fn collect_output(&mut self) {
        let announce = self.announce && self.tls.is_handshaking();
        self.outgoing.refill(self.tls.output(), announce);
    }

    /// The next fragment of what we have to say, which may be nothing.
    fn reply(&mut self) -> Progress {
        let data = self.outgoing.next();
        if !self.outgoing.is_sent() {
            return Progress::Reply(data);
        }
        match mem::replace(&mut self.end, End::Continue) {
            End::Continue => Progress::Reply(data),
            End::Complete(msk) => Progress::Complete(data, Some(msk)),
            End::Abort(error) => Progress::Abort(data, error),
        }
    }
}

impl<I: Inside> fmt::Debug for Peer<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer")
            .field("inside", &self.inside)
            .field("version", &self.tls.connection.protocol_version())
            .field("handshaking", &self.tls.is_handshaking())
            .finish_non_exhaustive()
    }
}

/// The TLS connection.
pub(super) struct Tls {
    connection: ClientConnection,
    verdict: Arc<Verdict>,
}

/// What one message of the server's brought.
pub(super) struct Heard {
    /// What it said in the tunnel.
    pub(super) plaintext: Zeroizing<Vec<u8>>,
    /// The handshake was not over before it, on our side.
    pub(super) was_handshaking: bool,
    /// The server has closed the connection.
    pub(super) closed: bool,
}

impl Heard {
    /// The server spoke in the tunnel before it had our Finished, as TLS 1.3 allows and nobody needs.
    pub(super) fn is_early(&self, tls: &Tls) -> bool {
        self.was_handshaking && tls.is_tls_13() && !self.plaintext.is_empty()
    }
}

impl Tls {
    pub(super) fn is_handshaking(&self) -> bool {
        self.connection.is_handshaking()
    }

    pub(super) fn is_tls_13(&self) -> bool {
        self.connection.protocol_version() == Some(ProtocolVersion::TLSv1_3)
    }

    /// TLS itself has something to say.
    pub(super) fn wants_to_speak(&self) -> bool {
        self.connection.wants_write()
    }

    /// Says something in the tunnel, once the handshake is over.
    pub(super) fn say(&mut self, plaintext: &[u8]) -> Result<(), EapError> {
        self.connection
            .writer()
            .write_all(plaintext)
            .map_err(|error| EapError::Tls(error.to_string()))
    }

    /// Key material of both sides (RFC 5705; RFC 8446, section 7.5).
    pub(super) fn export(
        &self,
        label: &[u8],
        context: Option<&[u8]>,
        length: usize,
    ) -> Result<Secret, EapError> {
        self.connection
            .export_keying_material(vec![0; length], label, context)
            .map(Secret::new)
            .map_err(|error| EapError::Tls(error.to_string()))
    }

    /// The MSK: in TLS 1.2 by the method's own label (RFC 5216, section 2.3; RFC 5281, section 8), in TLS 1.3 by a
    /// common one with the method's type (RFC 9190, section 2.3; RFC 9427, section 2.1).
    pub(super) fn msk(&self, method: EapType, label: &[u8]) -> Result<Msk, EapError> {
        // All 128 octets must be asked for: in TLS 1.3, fewer would be others. The rest is the EMSK.
        let key_material = if self.is_tls_13() {
            self.export(b"EXPORTER_EAP_TLS_Key_Material", Some(&[method.0]), 128)
        } else {
            self.export(label, None, 128)
        }?;
        Ok(Msk(Secret::from_slice(&key_material.as_bytes()[..64])))
    }

    /// Feeds TLS with all that the server sent in one EAP message.
    fn feed(&mut self, message: &[u8]) -> Result<Heard, EapError> {
        let mut heard = Heard {
            // Room for all of it at once, so that no copy is left behind by a growing vector.
            plaintext: Zeroizing::new(Vec::with_capacity(message.len())),
            was_handshaking: self.is_handshaking(),
            closed: false,
        };
        let mut rest = message;
        while !rest.is_empty() && !heard.closed {
            self.connection
                .read_tls(&mut rest)
                .map_err(|error| EapError::Tls(error.to_string()))?;
            let state = self
                .connection
                .process_new_packets()
                .map_err(|error| self.diagnose(&error))?;
            heard.closed = state.peer_has_closed();
            let old = heard.plaintext.len();
            heard
                .plaintext
                .resize(old.saturating_add(state.plaintext_bytes_to_read()), 0);
            if let Some(new) = heard.plaintext.get_mut(old..) {
                self.connection
                    .reader()
                    .read_exact(new)
                    .map_err(|error| EapError::Tls(error.to_string()))?;
            }
        }
        Ok(heard)
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

    fn output(&mut self) -> Vec<u8> {
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
        flight
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

/// Why the server's certificate was refused, or what to find out about it; rustls has no room for either.
#[derive(Debug, Default)]
struct Verdict(Mutex<(Option<CertError>, Option<Presented>)>);

impl Verdict {
    fn set(&self, error: CertError) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0 = Some(error);
    }

    fn take(&self) -> Option<CertError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0.take()
    }

    fn present(&self, presented: Presented) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1 = Some(presented);
    }

    fn take_presented(&self) -> Option<Presented> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1.take()
    }
}

/// Judges the server's certificate by our own rules.
#[derive(Debug)]
struct Verifier {
    anchors: Vec<Certificate>,
    identity: Identity,
    /// Keep what is needed to find out whether the certificate was revoked.
    keep: bool,
    verdict: Arc<Verdict>,
}

impl Verifier {
    fn judge(&self, chain: &[&CertificateDer<'_>], now: UnixTime) -> Result<VerifiedPeer, CertError> {
        let chain = chain
            .iter()
            .map(|der| Certificate::from_der(der))
            .collect::<Result<Vec<_>, _>>()?;
        pki::verify_tls_server(&chain, &self.anchors, &self.identity, now)
    }

    /// Keeps the reason for [`Tls::diagnose`], and gives rustls as much of it as it takes to choose the alert.
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
        ocsp_response: &[u8],
        now: rustls::pki_types::UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let chain: Vec<_> = std::iter::once(end_entity).chain(intermediates).collect();
        self.judge(&chain, UnixTime(Duration::from_secs(now.as_secs())))
            .map(|peer| {
                if self.keep {
                    self.verdict.present(Presented {
                        path: peer.path(),
                        ocsp: ocsp_response.to_vec(),
                    });
                }
                ServerCertVerified::assertion()
            })
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
