//! The one place that names a cryptography crate.
//!
//! | module | its one job |
//! |---|---|
//! | [`hash`] | digests, HMAC, and the relics that old EAP methods need |
//! | [`ke`] | agree on a secret with a peer |
//! | [`packet`] | seal and open one packet, for SK payloads and ESP alike |
//! | [`prf`] | stretch a secret into keys |
//! | [`rsa_sha1`] | sign as old gateways want it |

pub mod hash;
pub mod ke;
pub mod packet;
pub mod prf;
pub mod rsa_sha1;

use std::fmt;

use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

pub use hash::{HashKind, des_encrypt, hmac, md4, md5, sha1, sha2_256, sha2_384, sha2_512};
pub use ke::KeyExchange;
pub use packet::{CipherSuite, Encr, Integ, PacketKey};
pub use prf::Prf;
pub use rsa_sha1::rsa_pkcs1_sha1_sign;

/// Octets that must not outlive their use: zeroized when dropped, printed as nothing, compared in constant time.
#[derive(Clone)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Takes `octets` over. The vector must not have been reallocated while it held the secret, because the
    /// allocator keeps what it held before.
    #[must_use]
    pub fn new(octets: Vec<u8>) -> Self {
        Self(Zeroizing::new(octets))
    }

    /// Copies `octets`, whose own storage stays the caller's to wipe.
    #[must_use]
    pub fn from_slice(octets: &[u8]) -> Self {
        Self::new(octets.to_vec())
    }

    /// The octets.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The number of octets.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no octets.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        constant_time_eq(self.as_bytes(), other.as_bytes())
    }
}

impl Eq for Secret {}

/// Whether `a` and `b` are the same octets, in a time that depends on their lengths alone.
#[must_use]
pub fn constant_time_eq(a: &[u8], b: &[u8]) -> bool {
    a.ct_eq(b).into()
}

/// Why a cryptographic operation failed. Never says anything about a key's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CryptoError {
    /// Nobody defined this algorithm, or this combination of algorithms, or Peregrine does not have it.
    #[error("the algorithm, or the combination of algorithms, is not supported")]
    Unsupported,
    /// A key has not the length that its algorithm wants.
    #[error("a key has the wrong length for its algorithm")]
    KeyLength,
    /// A buffer cannot hold what the algorithm makes of it, is not padded, or more output is asked for than the
    /// algorithm may give.
    #[error("a buffer has the wrong length for its algorithm")]
    Length,
    /// The integrity check value does not fit: the packet is not authentic.
    #[error("the integrity check failed")]
    BadIcv,
    /// The peer's public value has not the length that its key exchange method fixes (RFC 7296, 3.4; RFC 5903, 7;
    /// RFC 8031, 3.1).
    #[error("the public value has {actual} octets where its key exchange method wants {expected}")]
    PublicLength {
        /// What the method wants, in octets.
        expected: usize,
        /// What the peer sent, in octets.
        actual: usize,
    },
    /// The peer's public value is outside the group: not between 1 and p - 1, not on the curve, or of so small an
    /// order that the shared secret is known to everyone (RFC 6989, 2; RFC 7748, 6.1).
    #[error("the public value is not a usable element of its group")]
    PublicValue,
    /// A private key is malformed, or of a size that is not supported.
    #[error("the private key is malformed or of an unsupported size")]
    PrivateKey,
    /// A signature could not be made, or was made wrongly and withheld.
    #[error("the signature could not be made")]
    Signature,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_prints_nothing_and_compares_its_octets() {
        let secret = Secret::new(b"correct horse".to_vec());
        assert_eq!(format!("{secret:?} {secret:#?}"), "Secret(..) Secret(..)");
        assert_eq!(secret, Secret::from_slice(b"correct horse"));
        assert_ne!(secret, Secret::from_slice(b"correct horsf"));
        assert_ne!(secret, Secret::from_slice(b"correct hors"));
        assert_eq!((secret.len(), secret.is_empty()), (13, false));
        assert!(Secret::from_slice(&[]).is_empty());
    }

    #[test]
    fn octets_differ_when_any_bit_or_the_length_does() {
        let octets: Vec<u8> = (0..64).collect();
        assert!(constant_time_eq(&octets, &octets));
        assert!(constant_time_eq(&[], &[]));
        assert!(!constant_time_eq(&octets, &octets[..63]));
        for bit in 0..64 * 8 {
            let mut other = octets.clone();
            other[bit / 8] ^= 1 << (bit % 8);
            assert!(!constant_time_eq(&octets, &other), "bit {bit}");
        }
    }
}
