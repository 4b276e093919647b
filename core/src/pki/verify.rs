//! Checking signatures.

use p256::ecdsa::signature::hazmat::PrehashVerifier as _;
use ring::signature::{self, UnparsedPublicKey, VerificationAlgorithm};
use sha2::{Digest as _, Sha256, Sha384, Sha512};

use super::cert::{Certificate, KeyKind, rsa_public};
use super::error::CertError;
use super::scheme::{SignatureEncoding, SignatureScheme};

/// Checks that `signature` over `message` was made with the private key of `certificate`.
///
/// RSA keys must have 2048 to 8192 bits and a public exponent of at least 65537. PKCS#1 v1.5 padding is not parsed:
/// the one correct encoding is compared as octets. A DER-encoded ECDSA signature must be canonical DER; Ed25519 is
/// checked strictly (RFC 8032 without low-order points). `encoding` matters for ECDSA only.
///
/// # Errors
///
/// [`CertError::SchemeMismatch`] when the key cannot make such signatures, [`CertError::WeakKey`], else
/// [`CertError::SignatureInvalid`].
pub fn verify_signature(
    certificate: &Certificate,
    scheme: SignatureScheme,
    message: &[u8],
    signature: &[u8],
    encoding: SignatureEncoding,
) -> Result<(), CertError> {
    let key = certificate.key_kind();
    if !scheme.fits(key) {
        return Err(CertError::SchemeMismatch { scheme, key });
    }
    check_key(certificate)?;
    if verify_with(
        key,
        certificate.public_key(),
        scheme,
        message,
        signature,
        encoding,
    ) {
        Ok(())
    } else {
        Err(CertError::SignatureInvalid {
            subject: certificate.subject_text(),
        })
    }
}

/// Whether the peer's own key is one that we use at all (RFC 8247, section 4.1: RSA of 2048 bits and more).
pub(crate) fn check_key(certificate: &Certificate) -> Result<(), CertError> {
    let key = certificate.key_kind();
    let subject = || certificate.subject_text();
    match key {
        KeyKind::Rsa { bits } => {
            let exponent = rsa_public(certificate.public_key()).and_then(|(_, exponent)| exponent);
            // An exponent beyond 64 bits only makes us slow (RFC 8017 allows it, nobody uses it).
            let sound = exponent.is_some_and(|exponent| exponent >= 65537 && exponent % 2 == 1);
            if bits < 2048 || !sound {
                return Err(CertError::WeakKey {
                    subject: subject(),
                    key,
                });
            }
            if bits > 8192 {
                return Err(CertError::UnsupportedKey { subject: subject() });
            }
            Ok(())
        }
        KeyKind::EcP256 | KeyKind::EcP384 | KeyKind::EcP521 | KeyKind::Ed25519 => Ok(()),
        KeyKind::Unsupported => Err(CertError::UnsupportedKey { subject: subject() }),
    }
}

/// Whether `signature` verifies. `public_key` is the content of the SubjectPublicKeyInfo's BIT STRING.
pub(crate) fn verify_with(
    key: KeyKind,
    public_key: &[u8],
    scheme: SignatureScheme,
    message: &[u8],
    signature: &[u8],
    encoding: SignatureEncoding,
) -> bool {
    if !scheme.fits(key) {
        return false;
    }
    let rsa = |algorithm: &'static dyn VerificationAlgorithm| {
        UnparsedPublicKey::new(algorithm, public_key)
            .verify(message, signature)
            .is_ok()
    };
    let ecdsa = |hash: &[u8]| verify_ecdsa(key, public_key, hash, signature, encoding);
    match scheme {
        SignatureScheme::RsaPkcs1Sha1 => rsa(&signature::RSA_PKCS1_2048_8192_SHA1_FOR_LEGACY_USE_ONLY),
        SignatureScheme::RsaPkcs1Sha2_256 => rsa(&signature::RSA_PKCS1_2048_8192_SHA256),
        SignatureScheme::RsaPkcs1Sha2_384 => rsa(&signature::RSA_PKCS1_2048_8192_SHA384),
        SignatureScheme::RsaPkcs1Sha2_512 => rsa(&signature::RSA_PKCS1_2048_8192_SHA512),
        SignatureScheme::RsaPssSha2_256 => rsa(&signature::RSA_PSS_2048_8192_SHA256),
        SignatureScheme::RsaPssSha2_384 => rsa(&signature::RSA_PSS_2048_8192_SHA384),
        SignatureScheme::RsaPssSha2_512 => rsa(&signature::RSA_PSS_2048_8192_SHA512),
        SignatureScheme::EcdsaSha2_256 => ecdsa(&Sha256::digest(message)),
        SignatureScheme::EcdsaSha2_384 => ecdsa(&Sha384::digest(message)),
        SignatureScheme::EcdsaSha2_512 => ecdsa(&Sha512::digest(message)),
        SignatureScheme::Ed25519 => verify_ed25519(public_key, message, signature),
    }
}

/// ECDSA over a finished hash, on the curve of the key.
fn verify_ecdsa(
    key: KeyKind,
    point: &[u8],
    hash: &[u8],
    signature: &[u8],
    encoding: SignatureEncoding,
) -> bool {
    macro_rules! on {
        ($curve:ident) => {{
            let parsed = match encoding {
                SignatureEncoding::Der => $curve::ecdsa::Signature::from_der(signature),
                SignatureEncoding::Raw => $curve::ecdsa::Signature::from_slice(signature),
            };
            match ($curve::ecdsa::VerifyingKey::from_sec1_bytes(point), parsed) {
                (Ok(key), Ok(signature)) => key.verify_prehash(hash, &signature).is_ok(),
                _ => false,
            }
        }};
    }
    match key {
        KeyKind::EcP256 => on!(p256),
        KeyKind::EcP384 => on!(p384),
        KeyKind::EcP521 => on!(p521),
        KeyKind::Rsa { .. } | KeyKind::Ed25519 | KeyKind::Unsupported => false,
    }
}

fn verify_ed25519(public_key: &[u8], message: &[u8], signature: &[u8]) -> bool {
    let Ok(key) = <&[u8; 32]>::try_from(public_key) else {
        return false;
    };
    match (
        ed25519_dalek::VerifyingKey::from_bytes(key),
        ed25519_dalek::Signature::from_slice(signature),
    ) {
        (Ok(key), Ok(signature)) => key.verify_strict(message, &signature).is_ok(),
        _ => false,
    }
}
