//! Signature algorithms, and their names on the wire.

use std::fmt;

use super::cert::KeyKind;
use crate::wire::iana::HashAlgorithm;

/// How a signature is made: kind of key, padding or curve, and hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SignatureScheme {
    /// RSASSA-PKCS1-v1_5 with SHA-1: authentication method 1 of old gateways, only when the profile allows it.
    RsaPkcs1Sha1,
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    RsaPkcs1Sha2_256,
    /// RSASSA-PKCS1-v1_5 with SHA-384.
    RsaPkcs1Sha2_384,
    /// RSASSA-PKCS1-v1_5 with SHA-512.
    RsaPkcs1Sha2_512,
    /// RSASSA-PSS with SHA-256, MGF1 with SHA-256, 32 octets of salt.
    RsaPssSha2_256,
    /// RSASSA-PSS with SHA-384, MGF1 with SHA-384, 48 octets of salt.
    RsaPssSha2_384,
    /// RSASSA-PSS with SHA-512, MGF1 with SHA-512, 64 octets of salt.
    RsaPssSha2_512,
    /// ECDSA with SHA-256, on whichever curve the key is (RFC 7427 does not tie the hash to the curve).
    EcdsaSha2_256,
    /// ECDSA with SHA-384, on whichever curve the key is.
    EcdsaSha2_384,
    /// ECDSA with SHA-512, on whichever curve the key is.
    EcdsaSha2_512,
    /// Ed25519 (RFC 8420), over the message itself.
    Ed25519,
}

/// How an ECDSA signature is written. The other schemes know one form only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignatureEncoding {
    /// `SEQUENCE { r, s }` in DER: authentication method 14 (RFC 7427), X.509 and TLS.
    Der,
    /// r and s, each as long as the curve's order: authentication methods 9, 10 and 11 (RFC 4754).
    Raw,
}

impl SignatureScheme {
    /// All schemes.
    pub const ALL: [Self; 11] = [
        Self::RsaPkcs1Sha1,
        Self::RsaPkcs1Sha2_256,
        Self::RsaPkcs1Sha2_384,
        Self::RsaPkcs1Sha2_512,
        Self::RsaPssSha2_256,
        Self::RsaPssSha2_384,
        Self::RsaPssSha2_512,
        Self::EcdsaSha2_256,
        Self::EcdsaSha2_384,
        Self::EcdsaSha2_512,
        Self::Ed25519,
    ];

    /// The AlgorithmIdentifier that precedes the signature in an AUTH payload of method 14 (RFC 7427, appendix A,
    /// and RFC 8420, appendix A), in DER. For [`Self::RsaPkcs1Sha1`], which must not be used there, that of appendix
    /// A.1.1.
    #[must_use]
    pub fn algorithm_identifier(self) -> &'static [u8] {
        match self {
            Self::RsaPkcs1Sha1 => &PKCS1_SHA1,
            Self::RsaPkcs1Sha2_256 => &PKCS1_SHA2_256,
            Self::RsaPkcs1Sha2_384 => &PKCS1_SHA2_384,
            Self::RsaPkcs1Sha2_512 => &PKCS1_SHA2_512,
            Self::RsaPssSha2_256 => &PSS_SHA2_256,
            Self::RsaPssSha2_384 => &PSS_SHA2_384,
            Self::RsaPssSha2_512 => &PSS_SHA2_512,
            Self::EcdsaSha2_256 => &ECDSA_SHA2_256,
            Self::EcdsaSha2_384 => &ECDSA_SHA2_384,
            Self::EcdsaSha2_512 => &ECDSA_SHA2_512,
            Self::Ed25519 => &ED25519,
        }
    }

    /// The scheme of an AlgorithmIdentifier in an AUTH payload of method 14, compared as octets: nothing in it is
    /// parsed. Besides the forms that we send, RSASSA-PSS may leave out the default trailerField. Never SHA-1.
    #[must_use]
    pub fn from_algorithm_identifier(octets: &[u8]) -> Option<Self> {
        let with_default = [
            (&PSS_SHA2_256_SHORT, Self::RsaPssSha2_256),
            (&PSS_SHA2_384_SHORT, Self::RsaPssSha2_384),
            (&PSS_SHA2_512_SHORT, Self::RsaPssSha2_512),
        ];
        Self::ALL
            .into_iter()
            .filter(|&scheme| scheme != Self::RsaPkcs1Sha1)
            .find(|scheme| scheme.algorithm_identifier() == octets)
            .or_else(|| {
                with_default
                    .into_iter()
                    .find(|(form, _)| form[..] == *octets)
                    .map(|(_, scheme)| scheme)
            })
    }

    /// The hash, as SIGNATURE_HASH_ALGORITHMS lists it (RFC 7427, section 4; Identity for Ed25519: RFC 8420).
    #[must_use]
    pub fn hash(self) -> HashAlgorithm {
        match self {
            Self::RsaPkcs1Sha1 => HashAlgorithm::SHA1,
            Self::RsaPkcs1Sha2_256 | Self::RsaPssSha2_256 | Self::EcdsaSha2_256 => HashAlgorithm::SHA2_256,
            Self::RsaPkcs1Sha2_384 | Self::RsaPssSha2_384 | Self::EcdsaSha2_384 => HashAlgorithm::SHA2_384,
            Self::RsaPkcs1Sha2_512 | Self::RsaPssSha2_512 | Self::EcdsaSha2_512 => HashAlgorithm::SHA2_512,
            Self::Ed25519 => HashAlgorithm::IDENTITY,
        }
    }

    /// Whether a key of this kind can make and verify such signatures.
    #[must_use]
    pub fn fits(self, key: KeyKind) -> bool {
        match self {
            Self::RsaPkcs1Sha1
            | Self::RsaPkcs1Sha2_256
            | Self::RsaPkcs1Sha2_384
            | Self::RsaPkcs1Sha2_512
            | Self::RsaPssSha2_256
            | Self::RsaPssSha2_384
            | Self::RsaPssSha2_512 => matches!(key, KeyKind::Rsa { .. }),
            Self::EcdsaSha2_256 | Self::EcdsaSha2_384 | Self::EcdsaSha2_512 => {
                matches!(key, KeyKind::EcP256 | KeyKind::EcP384 | KeyKind::EcP521)
            }
            Self::Ed25519 => key == KeyKind::Ed25519,
        }
    }

    /// What a key of this kind signs with, best first: PSS before PKCS#1, and hashes in order of how well they
    /// match the key's strength.
    #[must_use]
    pub fn preferred(key: KeyKind) -> &'static [Self] {
        match key {
            KeyKind::Rsa { bits } if bits > 3072 => &[
                Self::RsaPssSha2_384,
                Self::RsaPssSha2_512,
                Self::RsaPssSha2_256,
                Self::RsaPkcs1Sha2_384,
                Self::RsaPkcs1Sha2_512,
                Self::RsaPkcs1Sha2_256,
            ],
            KeyKind::Rsa { .. } => &[
                Self::RsaPssSha2_256,
                Self::RsaPssSha2_384,
                Self::RsaPssSha2_512,
                Self::RsaPkcs1Sha2_256,
                Self::RsaPkcs1Sha2_384,
                Self::RsaPkcs1Sha2_512,
            ],
            KeyKind::EcP256 => &[Self::EcdsaSha2_256, Self::EcdsaSha2_384, Self::EcdsaSha2_512],
            KeyKind::EcP384 => &[Self::EcdsaSha2_384, Self::EcdsaSha2_512, Self::EcdsaSha2_256],
            KeyKind::EcP521 => &[Self::EcdsaSha2_512, Self::EcdsaSha2_384, Self::EcdsaSha2_256],
            KeyKind::Ed25519 => &[Self::Ed25519],
            KeyKind::Unsupported => &[],
        }
    }
}

impl fmt::Display for SignatureScheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RsaPkcs1Sha1 => "RSA PKCS#1 v1.5 with SHA-1",
            Self::RsaPkcs1Sha2_256 => "RSA PKCS#1 v1.5 with SHA-256",
            Self::RsaPkcs1Sha2_384 => "RSA PKCS#1 v1.5 with SHA-384",
            Self::RsaPkcs1Sha2_512 => "RSA PKCS#1 v1.5 with SHA-512",
            Self::RsaPssSha2_256 => "RSA-PSS with SHA-256",
            Self::RsaPssSha2_384 => "RSA-PSS with SHA-384",
            Self::RsaPssSha2_512 => "RSA-PSS with SHA-512",
            Self::EcdsaSha2_256 => "ECDSA with SHA-256",
            Self::EcdsaSha2_384 => "ECDSA with SHA-384",
            Self::EcdsaSha2_512 => "ECDSA with SHA-512",
            Self::Ed25519 => "Ed25519",
        })
    }
}

/// `sha*WithRSAEncryption` (1.2.840.113549.1.1.`last`) with NULL parameters.
const fn pkcs1(last: u8) -> [u8; 15] {
    [
        0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, last, 0x05, 0,
    ]
}

/// `ecdsa-with-SHA*` (1.2.840.10045.4.3.`last`) without parameters.
const fn ecdsa(last: u8) -> [u8; 12] {
    [0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, last]
}

/// `id-RSASSA-PSS` with hash 2.16.840.1.101.3.4.2.`hash` in both places and an explicit trailerField.
const fn pss(hash: u8, salt: u8) -> [u8; 72] {
    [
        0x30, 0x46, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 0x0a, // id-RSASSA-PSS
        0x30, 0x39, //
        0xa0, 0x0f, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, hash, 0x05,
        0, // hashAlgorithm
        0xa1, 0x1c, 0x30, 0x1a, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 0x08, // mgf1
        0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, hash, 0x05, 0, //
        0xa2, 0x03, 0x02, 1, salt, // saltLength
        0xa3, 0x03, 0x02, 1, 1, // trailerField
    ]
}

/// The same without the default trailerField.
const fn pss_short(hash: u8, salt: u8) -> [u8; 67] {
    let long = pss(hash, salt);
    let mut short = [0; 67];
    let mut index = 0;
    while index < short.len() {
        short[index] = long[index];
        index += 1;
    }
    short[1] -= 5;
    short[14] -= 5;
    short
}

static PKCS1_SHA1: [u8; 15] = pkcs1(5);
static PKCS1_SHA2_256: [u8; 15] = pkcs1(11);
static PKCS1_SHA2_384: [u8; 15] = pkcs1(12);
static PKCS1_SHA2_512: [u8; 15] = pkcs1(13);
static PSS_SHA2_256: [u8; 72] = pss(1, 32);
static PSS_SHA2_384: [u8; 72] = pss(2, 48);
static PSS_SHA2_512: [u8; 72] = pss(3, 64);
static PSS_SHA2_256_SHORT: [u8; 67] = pss_short(1, 32);
static PSS_SHA2_384_SHORT: [u8; 67] = pss_short(2, 48);
static PSS_SHA2_512_SHORT: [u8; 67] = pss_short(3, 64);
static ECDSA_SHA2_256: [u8; 12] = ecdsa(2);
static ECDSA_SHA2_384: [u8; 12] = ecdsa(3);
static ECDSA_SHA2_512: [u8; 12] = ecdsa(4);
static ED25519: [u8; 7] = [0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70];
