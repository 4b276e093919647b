//! The one place that names a cryptography crate.

pub mod packet;

use std::fmt;

use zeroize::Zeroizing;

pub use packet::{CipherSuite, Encr, Integ, PacketKey};

/// Octets that must not outlive their use: zeroized when dropped, printed as nothing.
#[derive(Clone)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Takes `octets` over.
    #[must_use]
    pub fn new(octets: Vec<u8>) -> Self {
        Self(Zeroizing::new(octets))
    }

    /// The octets.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Why an operation on keys failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CryptoError {
    /// Nobody defined this algorithm, or this combination of algorithms.
    #[error("the combination of algorithms is not supported")]
    Unsupported,
    /// A key has not the length that its algorithm wants.
    #[error("a key has the wrong length for its algorithm")]
    KeyLength,
    /// A buffer cannot hold what the algorithm makes of it, or is not padded.
    #[error("a buffer has the wrong length for its algorithm")]
    Length,
    /// The integrity check value does not fit: the packet is not authentic.
    #[error("the integrity check failed")]
    BadIcv,
}
