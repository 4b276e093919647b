//! A private key, and signing with it.

use std::fmt;
use std::sync::Arc;

use p256::ecdsa::signature::{Signer as _, hazmat::PrehashSigner as _};
use ring::rand::{SecureRandom as _, SystemRandom};
use ring::signature::{self, RsaEncoding, RsaKeyPair};
use sha2::{Digest as _, Sha256, Sha384, Sha512};

use super::cert::{Certificate, KeyKind, rsa_public};
use super::der::{self, Der};
use super::scheme::{SignatureEncoding, SignatureScheme};
use crate::crypto::{self, Secret};
use crate::rng::Rng;
use crate::wire::iana::HashAlgorithm;

/// A private key. Cloning it is cheap; it is printed as its kind only.
///
/// The scalars of ECDSA and Ed25519 keys and the file form of an RSA key are zeroized when the last clone is dropped;
/// *ring*'s own form of an RSA key is not, because *ring* cannot.
#[derive(Clone)]
pub struct PrivateKey(Arc<Inner>);

struct Inner {
    kind: KeyKind,
    /// What a certificate has in its SubjectPublicKeyInfo's BIT STRING.
    public: Vec<u8>,
    signer: Signer,
}

enum Signer {
    Rsa {
        pair: Box<RsaKeyPair>,
        /// `RSAPrivateKey` (RFC 8017, appendix A.1.2).
        der: Secret,
    },
    P256(p256::ecdsa::SigningKey),
    P384(p384::ecdsa::SigningKey),
    P521(p521::ecdsa::SigningKey),
    Ed25519(Box<ed25519_dalek::SigningKey>),
}

/// Why a signature could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    /// The key is of another kind than the scheme.
    #[error("{scheme} does not fit a key of kind {key}")]
    SchemeMismatch {
        /// What was asked for.
        scheme: SignatureScheme,
        /// What the key is.
        key: KeyKind,
    },
    /// The key is broken: its parts do not belong together.
    #[error("the private key is inconsistent")]
    InconsistentKey,
    /// The operating system has no randomness.
    #[error("the operating system gives no random numbers")]
    NoRandomness,
}

/// Why octets are no private key that we can use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeyRejected {
    /// Not the encoding that it should be, or parts that do not belong together.
    Malformed,
    /// RSA below 2048 bits, or with a public exponent below 65537.
    Weak,
    /// RSA above 4096 bits, or of more than two primes.
    Unsupported,
}

impl PrivateKey {
    /// From an `RSAPrivateKey` (RFC 8017, appendix A.1.2).
    pub(crate) fn from_rsa_der(der: &[u8]) -> Result<Self, KeyRejected> {
        let mut parts = Der::new(der).enter(der::SEQUENCE).ok_or(KeyRejected::Malformed)?;
        let version = parts.expect(der::INTEGER).ok_or(KeyRejected::Malformed)?;
        let [modulus, exponent] = [(); 2].map(|()| parts.expect(der::INTEGER).map(|value| value.whole));
        let (modulus, exponent) = modulus.zip(exponent).ok_or(KeyRejected::Malformed)?;
        let public = der::wrap(der::SEQUENCE, &[modulus, exponent].concat());
        let (bits, exponent) = rsa_public(&public).ok_or(KeyRejected::Malformed)?;
        if bits < 2048 || exponent.is_some_and(|exponent| exponent < 65537) {
            return Err(KeyRejected::Weak);
        }
        // Version 1 has more than two primes.
        if bits > 4096 || version.body != [0] {
            return Err(KeyRejected::Unsupported);
        }
        let pair = RsaKeyPair::from_der(der).map_err(|_| KeyRejected::Malformed)?;
        let signer = Signer::Rsa {
            pair: Box::new(pair),
            der: Secret::new(der.to_vec()),
        };
        Ok(Self::new(KeyKind::Rsa { bits }, public, signer))
    }

    /// From a scalar on the curve `kind`, which may lack leading zeros.
    pub(crate) fn from_ec_scalar(kind: KeyKind, scalar: &[u8]) -> Result<Self, KeyRejected> {
        macro_rules! on {
            ($curve:ident, $length:literal, $signer:path) => {{
                let mut padded = zeroize::Zeroizing::new([0_u8; $length]);
                let start = $length - significant(scalar).len().min($length);
                let target = padded.get_mut(start..).ok_or(KeyRejected::Malformed)?;
                if target.len() != significant(scalar).len() {
                    return Err(KeyRejected::Malformed);
                }
                target.copy_from_slice(significant(scalar));
                let key =
                    $curve::ecdsa::SigningKey::from_slice(&padded[..]).map_err(|_| KeyRejected::Malformed)?;
                let public = key.verifying_key().to_sec1_point(false).as_bytes().to_vec();
                Ok(Self::new(kind, public, $signer(key)))
            }};
        }
        match kind {
            KeyKind::EcP256 => on!(p256, 32, Signer::P256),
            KeyKind::EcP384 => on!(p384, 48, Signer::P384),
            KeyKind::EcP521 => on!(p521, 66, Signer::P521),
            KeyKind::Rsa { .. } | KeyKind::Ed25519 | KeyKind::Unsupported => Err(KeyRejected::Unsupported),
        }
    }

    /// From the 32 octets of an Ed25519 private key (RFC 8032, section 5.1.5).
    pub(crate) fn from_ed25519_seed(seed: &[u8]) -> Result<Self, KeyRejected> {
        let seed = seed.try_into().map_err(|_| KeyRejected::Malformed)?;
        let key = ed25519_dalek::SigningKey::from_bytes(seed);
        let public = key.verifying_key().to_bytes().to_vec();
        Ok(Self::new(
            KeyKind::Ed25519,
            public,
            Signer::Ed25519(Box::new(key)),
        ))
    }

    fn new(kind: KeyKind, public: Vec<u8>, signer: Signer) -> Self {
        Self(Arc::new(Inner { kind, public, signer }))
    }

    /// The kind of the key.
    #[must_use]
    pub fn kind(&self) -> KeyKind {
        self.0.kind
    }

    /// Whether this is the private key of `certificate`.
    #[must_use]
    pub fn matches(&self, certificate: &Certificate) -> bool {
        self.0.kind == certificate.key_kind() && self.0.public == certificate.public_key()
    }

    /// What the key signs with for a peer that knows `peer_hashes` (SIGNATURE_HASH_ALGORITHMS, RFC 7427), best first.
    ///
    /// RSA signs with PSS; PKCS#1 v1.5 comes after all PSS schemes.
    #[must_use]
    pub fn schemes(&self, peer_hashes: &[HashAlgorithm]) -> Vec<SignatureScheme> {
        SignatureScheme::preferred(self.0.kind)
            .iter()
            .copied()
            .filter(|scheme| peer_hashes.contains(&scheme.hash()))
            .collect()
    }

    /// The best of [`Self::schemes`]; `None` when the peer knows no hash that we can use.
    #[must_use]
    pub fn choose_scheme(&self, peer_hashes: &[HashAlgorithm]) -> Option<SignatureScheme> {
        self.schemes(peer_hashes).first().copied()
    }

    /// The scheme of authentication methods 9, 10 and 11, for a peer without RFC 7427: the hash that RFC 4754 ties to
    /// the curve. `None` unless this is an ECDSA key.
    #[must_use]
    pub fn rfc4754_scheme(&self) -> Option<SignatureScheme> {
        match self.0.kind {
            KeyKind::EcP256 => Some(SignatureScheme::EcdsaSha2_256),
            KeyKind::EcP384 => Some(SignatureScheme::EcdsaSha2_384),
            KeyKind::EcP521 => Some(SignatureScheme::EcdsaSha2_512),
            KeyKind::Rsa { .. } | KeyKind::Ed25519 | KeyKind::Unsupported => None,
        }
    }

    /// Signs `message`. ECDSA (RFC 6979), Ed25519 and RSA PKCS#1 signatures are deterministic; the salt of PSS and the
    /// blinding of RSA come from *ring*'s own generator. `encoding` matters for ECDSA only.
    ///
    /// # Errors
    ///
    /// [`SignError::SchemeMismatch`] when the key is of another kind, [`SignError::InconsistentKey`] when its parts do
    /// not belong together.
    pub fn sign(
        &self,
        scheme: SignatureScheme,
        message: &[u8],
        encoding: SignatureEncoding,
    ) -> Result<Vec<u8>, SignError> {
        let mismatch = SignError::SchemeMismatch {
            scheme,
            key: self.0.kind,
        };
        if !scheme.fits(self.0.kind) {
            return Err(mismatch);
        }
        macro_rules! ecdsa {
            ($curve:ident, $key:expr) => {{
                let signature: $curve::ecdsa::Signature = match scheme.hash() {
                    HashAlgorithm::SHA2_256 => $key.sign_prehash(&Sha256::digest(message)),
                    HashAlgorithm::SHA2_384 => $key.sign_prehash(&Sha384::digest(message)),
                    _ => $key.sign_prehash(&Sha512::digest(message)),
                }
                .map_err(|_| SignError::InconsistentKey)?;
                Ok(match encoding {
                    SignatureEncoding::Der => signature.to_der().as_bytes().to_vec(),
                    SignatureEncoding::Raw => signature.to_bytes().to_vec(),
                })
            }};
        }
        match &self.0.signer {
            Signer::Rsa { pair, der } => {
                let padding: &'static dyn RsaEncoding = match scheme {
                    SignatureScheme::RsaPkcs1Sha1 => return sign_sha1(der, message),
                    SignatureScheme::RsaPkcs1Sha2_256 => &signature::RSA_PKCS1_SHA256,
                    SignatureScheme::RsaPkcs1Sha2_384 => &signature::RSA_PKCS1_SHA384,
                    SignatureScheme::RsaPkcs1Sha2_512 => &signature::RSA_PKCS1_SHA512,
                    SignatureScheme::RsaPssSha2_256 => &signature::RSA_PSS_SHA256,
                    SignatureScheme::RsaPssSha2_384 => &signature::RSA_PSS_SHA384,
                    SignatureScheme::RsaPssSha2_512 => &signature::RSA_PSS_SHA512,
                    SignatureScheme::EcdsaSha2_256
                    | SignatureScheme::EcdsaSha2_384
                    | SignatureScheme::EcdsaSha2_512
                    | SignatureScheme::Ed25519 => return Err(mismatch),
                };
                let mut out = vec![0; pair.public().modulus_len()];
                pair.sign(padding, &SystemRandom::new(), message, &mut out)
                    .map_err(|_| SignError::InconsistentKey)?;
                Ok(out)
            }
            Signer::P256(key) => ecdsa!(p256, key),
            Signer::P384(key) => ecdsa!(p384, key),
            Signer::P521(key) => ecdsa!(p521, key),
            Signer::Ed25519(key) => {
                let signature = key.try_sign(message).map_err(|_| SignError::InconsistentKey)?;
                Ok(signature.to_bytes().to_vec())
            }
        }
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey({})", self.0.kind)
    }
}

/// RSA with SHA-1, which *ring* only verifies.
fn sign_sha1(der: &Secret, message: &[u8]) -> Result<Vec<u8>, SignError> {
    let mut seed = zeroize::Zeroizing::new([0; 32]);
    SystemRandom::new()
        .fill(&mut seed[..])
        .map_err(|_| SignError::NoRandomness)?;
    crypto::rsa_pkcs1_sha1_sign(der.as_bytes(), message, &mut Rng::new(*seed))
        .map_err(|_| SignError::InconsistentKey)
}

/// A big-endian number without its leading zeros.
fn significant(number: &[u8]) -> &[u8] {
    let zeros = number.iter().take_while(|&&octet| octet == 0).count();
    number.get(zeros..).unwrap_or_default()
}
