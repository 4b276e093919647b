//! EAP-TLS (RFC 5216 with TLS 1.2, RFC 9190 with TLS 1.3).
//!
//! Nothing is said in the tunnel, except for the one octet with which a server of TLS 1.3 says that it is content.

use rustls::SupportedProtocolVersion;
use rustls::version::{TLS12, TLS13};

use super::tunnel::{Heard, Inside, Peer, Setup, Then, Tls};
use super::{EapError, EapTls, Msk, Progress, Turn};
use crate::pki::{self, Certificate};
use crate::timer::UnixTime;
use crate::wire::iana::EapType;

const VERSIONS: &[&SupportedProtocolVersion] = &[&TLS13, &TLS12];

/// The handshake is everything.
#[derive(Debug)]
pub(super) struct Handshake;

/// Answers the Start packet.
pub(super) fn start(
    config: EapTls,
    data: &[u8],
    now: UnixTime,
) -> Result<(Peer<Handshake>, Progress), EapError> {
    let EapTls { chain, key, server } = config;
    if !chain.first().is_some_and(|certificate| key.matches(certificate)) {
        return Err(EapError::Credential(
            "the private key does not belong to the certificate".to_owned(),
        ));
    }
    let setup = Setup {
        server,
        ours: Some(pki::tls::certified_key(&in_order(&chain), &key)),
        versions: VERSIONS,
        announce: false,
    };
    Peer::start(setup, Handshake, data, now)
}

impl Inside for Handshake {
    fn start(&mut self, data: &[u8]) -> Result<(), EapError> {
        if data.is_empty() {
            Ok(())
        } else {
            Err(EapError::Malformed("an EAP-TLS start packet with data"))
        }
    }

    fn advance(&mut self, tls: &mut Tls, heard: &Heard, _turn: &mut Turn<'_>) -> Result<Then, EapError> {
        let complete = match (tls.is_tls_13(), heard.plaintext.as_slice()) {
            (true, []) => false,
            // The server's protected word that it accepts us. Before it has seen our Finished it cannot mean that,
            // and without it an attacker could cut the conversation short (RFC 9190, section 2.5).
            (true, [0]) if !heard.was_handshaking => true,
            (false, []) => !tls.is_handshaking(),
            (_, _) => return Err(EapError::Tls("the server sent application data".to_owned())),
        };
        match (complete, heard.closed) {
            (true, _) => Ok(Then::Complete),
            (false, false) => Ok(Then::Continue),
            (false, true) => Err(EapError::Tls(
                "the server closed the connection before the end".to_owned(),
            )),
        }
    }

    fn key(&self, tls: &Tls) -> Result<Msk, EapError> {
        tls.msk(EapType::TLS, b"client EAP encryption")
    }
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
