//! Keys and rules for rustls.

use std::sync::Arc;

use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, SubjectPublicKeyInfoDer};
use rustls::sign::{CertifiedKey, Signer, SigningKey};
use rustls::{SignatureAlgorithm, SignatureScheme as TlsScheme};
use webpki::ring as webpki_ring;

use super::algorithms;
use super::cert::{Certificate, KeyKind};
use super::key::PrivateKey;
use super::scheme::{SignatureEncoding, SignatureScheme};

/// The signatures that a TLS server may make, and those that may be in its chain: those of *ring*, and P-521.
///
/// For a certificate verifier's `verify_tls12_signature`, `verify_tls13_signature` and `supported_verify_schemes`.
pub static SUPPORTED_ALGORITHMS: WebPkiSupportedAlgorithms = WebPkiSupportedAlgorithms {
    all: algorithms::ALL,
    mapping: &[
        // TLS 1.3 takes the first of a list only; in TLS 1.2 the curve is free.
        (
            TlsScheme::ECDSA_NISTP256_SHA256,
            &[webpki_ring::ECDSA_P256_SHA256, webpki_ring::ECDSA_P384_SHA256],
        ),
        (
            TlsScheme::ECDSA_NISTP384_SHA384,
            &[webpki_ring::ECDSA_P384_SHA384, webpki_ring::ECDSA_P256_SHA384],
        ),
        (TlsScheme::ECDSA_NISTP521_SHA512, &[algorithms::ECDSA_P521_SHA512]),
        (TlsScheme::ED25519, &[webpki_ring::ED25519]),
        (
            TlsScheme::RSA_PSS_SHA256,
            &[webpki_ring::RSA_PSS_2048_8192_SHA256_LEGACY_KEY],
        ),
        (
            TlsScheme::RSA_PSS_SHA384,
            &[webpki_ring::RSA_PSS_2048_8192_SHA384_LEGACY_KEY],
        ),
        (
            TlsScheme::RSA_PSS_SHA512,
            &[webpki_ring::RSA_PSS_2048_8192_SHA512_LEGACY_KEY],
        ),
        (
            TlsScheme::RSA_PKCS1_SHA256,
            &[webpki_ring::RSA_PKCS1_2048_8192_SHA256],
        ),
        (
            TlsScheme::RSA_PKCS1_SHA384,
            &[webpki_ring::RSA_PKCS1_2048_8192_SHA384],
        ),
        (
            TlsScheme::RSA_PKCS1_SHA512,
            &[webpki_ring::RSA_PKCS1_2048_8192_SHA512],
        ),
    ],
};

/// Our certificate with its chain and private key, for TLS client authentication.
#[must_use]
pub fn certified_key(chain: &[Certificate], key: &PrivateKey) -> CertifiedKey {
    let chain = chain
        .iter()
        .map(|certificate| CertificateDer::from(certificate.der().to_vec()))
        .collect();
    CertifiedKey::new(chain, Arc::new(TlsKey(key.clone())))
}

/// A private key as rustls wants it.
#[derive(Debug)]
struct TlsKey(PrivateKey);

impl SigningKey for TlsKey {
    fn choose_scheme(&self, offered: &[TlsScheme]) -> Option<Box<dyn Signer>> {
        let (tls, ours) = schemes(self.0.kind())
            .iter()
            .copied()
            .find(|(tls, _)| offered.contains(tls))?;
        Some(Box::new(TlsSigner {
            key: self.0.clone(),
            tls,
            ours,
        }))
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        None
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        match self.0.kind() {
            KeyKind::Rsa { .. } => SignatureAlgorithm::RSA,
            KeyKind::Ed25519 => SignatureAlgorithm::ED25519,
            KeyKind::EcP256 | KeyKind::EcP384 | KeyKind::EcP521 | KeyKind::Unsupported => {
                SignatureAlgorithm::ECDSA
            }
        }
    }
}

/// A private key and the scheme that it signs with.
#[derive(Debug)]
struct TlsSigner {
    key: PrivateKey,
    tls: TlsScheme,
    ours: SignatureScheme,
}

impl Signer for TlsSigner {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        self.key
            .sign(self.ours, message, SignatureEncoding::Der)
            .map_err(|error| rustls::Error::General(error.to_string()))
    }

    fn scheme(&self) -> TlsScheme {
        self.tls
    }
}

/// What a key of this kind signs with in TLS, best first. TLS 1.3 ties the hash to the curve (RFC 8446, section 4.2.3).
const fn schemes(key: KeyKind) -> &'static [(TlsScheme, SignatureScheme)] {
    match key {
        KeyKind::Rsa { .. } => &[
            (TlsScheme::RSA_PSS_SHA512, SignatureScheme::RsaPssSha2_512),
            (TlsScheme::RSA_PSS_SHA384, SignatureScheme::RsaPssSha2_384),
            (TlsScheme::RSA_PSS_SHA256, SignatureScheme::RsaPssSha2_256),
            (TlsScheme::RSA_PKCS1_SHA512, SignatureScheme::RsaPkcs1Sha2_512),
            (TlsScheme::RSA_PKCS1_SHA384, SignatureScheme::RsaPkcs1Sha2_384),
            (TlsScheme::RSA_PKCS1_SHA256, SignatureScheme::RsaPkcs1Sha2_256),
        ],
        KeyKind::EcP256 => &[(TlsScheme::ECDSA_NISTP256_SHA256, SignatureScheme::EcdsaSha2_256)],
        KeyKind::EcP384 => &[(TlsScheme::ECDSA_NISTP384_SHA384, SignatureScheme::EcdsaSha2_384)],
        KeyKind::EcP521 => &[(TlsScheme::ECDSA_NISTP521_SHA512, SignatureScheme::EcdsaSha2_512)],
        KeyKind::Ed25519 => &[(TlsScheme::ED25519, SignatureScheme::Ed25519)],
        KeyKind::Unsupported => &[],
    }
}
