//! Key exchange methods: X25519 (RFC 8031), the ECP groups (RFC 5903), the MODP groups (RFC 3526), ML-KEM
//! (draft-ietf-ipsecme-ikev2-mlkem).

mod ecp;
mod mlkem;
mod modp;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod wycheproof_tests;

use std::fmt;

use p256::NistP256;
use p384::NistP384;
use p521::NistP521;
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

use self::mlkem::MlKem;
use self::modp::Modp;
use super::{CryptoError, Secret};
use crate::rng::Rng;
use crate::wire::iana::KeMethod;

/// The initiator's half of one key exchange: an ephemeral private value, used once, and the public value of the KE
/// payload. [`KeyExchange::respond`] is the responder's half.
///
/// The private value is the octets that the method's own definition serializes, on the heap, zeroized when dropped.
pub struct KeyExchange {
    group: Group,
    private: Secret,
    public: Vec<u8>,
}

impl KeyExchange {
    /// Whether Peregrine has this method.
    #[must_use]
    pub fn is_supported(method: KeMethod) -> bool {
        Group::of(method).is_some()
    }

    /// Whether the method is too weak to be offered unless a profile names it: the MODP groups of 1024 and 1536 bits
    /// (RFC 8247, section 2.4).
    #[must_use]
    pub fn is_legacy(method: KeMethod) -> bool {
        matches!(method, KeMethod::MODP_1024 | KeMethod::MODP_1536)
    }

    /// Whether the method holds against a quantum computer: ML-KEM.
    #[must_use]
    pub fn is_post_quantum(method: KeMethod) -> bool {
        MlKem::of(method).is_some()
    }

    /// A fresh private value and the public value that belongs to it.
    ///
    /// # Errors
    /// [`CryptoError::Unsupported`] when Peregrine does not have the method.
    pub fn generate(method: KeMethod, rng: &mut Rng) -> Result<Self, CryptoError> {
        Self::draw(method, |octets| rng.fill(octets))
    }

    fn draw(method: KeMethod, mut fill: impl FnMut(&mut [u8])) -> Result<Self, CryptoError> {
        let group = Group::of(method).ok_or(CryptoError::Unsupported)?;
        loop {
            let mut octets = Zeroizing::new(vec![0; group.private_len()]);
            fill(&mut octets);
            if let (Group::Ecp521, Some(first)) = (group, octets.first_mut()) {
                *first &= 0x01;
            }
            // Only a scalar of an ECP group that is zero or not below the order is drawn again, which happens once
            // in 2^32 for P-256 and practically never for the others (FIPS 186-5, A.2.2).
            match Self::from_private(method, Secret(octets)) {
                Err(CryptoError::PrivateKey) => {}
                outcome => return outcome,
            }
        }
    }

    /// The exchange with a given private value, big-endian where it is a number, little-endian for X25519.
    ///
    /// # Errors
    /// [`CryptoError::Unsupported`] for a method that we do not have, [`CryptoError::PrivateKey`] for a value that is
    /// no private value of the group.
    fn from_private(method: KeMethod, private: Secret) -> Result<Self, CryptoError> {
        let group = Group::of(method).ok_or(CryptoError::Unsupported)?;
        let public = match group {
            Group::X25519 => PublicKey::from(&x25519_private(&private)?).as_bytes().to_vec(),
            Group::Ecp256 => ecp::public::<NistP256>(&private)?,
            Group::Ecp384 => ecp::public::<NistP384>(&private)?,
            Group::Ecp521 => ecp::public::<NistP521>(&private)?,
            Group::Modp(modp) => modp.public(&private),
            Group::MlKem(kem) => kem.public(&private)?,
        };
        Ok(Self {
            group,
            private,
            public,
        })
    }

    /// The method.
    #[must_use]
    pub fn method(&self) -> KeMethod {
        self.group.method()
    }

    /// The responder's half of a key exchange with the owner of the public value `peer`: what the responder's KE payload
    /// carries, and the shared secret. For ML-KEM that is a ciphertext and the fresh secret in it, for the others a
    /// fresh public value and what both values make.
    ///
    /// # Errors
    /// [`CryptoError::Unsupported`] for a method that we do not have; otherwise as [`Self::agree`]. An encapsulation key
    /// that fails the checks of FIPS 203, section 7.2, is [`CryptoError::PublicLength`] or [`CryptoError::PublicValue`].
    pub fn respond(method: KeMethod, peer: &[u8], rng: &mut Rng) -> Result<(Vec<u8>, Secret), CryptoError> {
        if let Some(kem) = MlKem::of(method) {
            return kem.encapsulate(peer, rng);
        }
        let ours = Self::generate(method, rng)?;
        let shared = ours.agree(peer)?;
        Ok((ours.public, shared))
    }

    /// Our public value as the KE payload carries it: the u-coordinate, x and y, the number left-padded to the length of
    /// the modulus, or the encapsulation key.
    #[must_use]
    pub fn public(&self) -> &[u8] {
        &self.public
    }

    /// The shared secret with the responder whose value is `peer`: 32 octets for X25519, x alone for ECP (RFC 5903,
    /// section 7), the number left-padded to the length of the modulus for MODP (RFC 7296, section 2.14), 32 octets for
    /// ML-KEM, where `peer` is a ciphertext.
    ///
    /// # Errors
    /// [`CryptoError::PublicLength`] and [`CryptoError::PublicValue`], after the tests of RFC 6989, section 2, of RFC
    /// 7748, section 6.1, and of FIPS 203, section 7.3. A ciphertext of the right length that is wrong is no error: it
    /// gives a secret that nobody else has.
    pub fn agree(&self, peer: &[u8]) -> Result<Secret, CryptoError> {
        let expected = self.peer_len();
        if peer.len() != expected {
            return Err(CryptoError::PublicLength {
                expected,
                actual: peer.len(),
            });
        }
        match self.group {
            Group::X25519 => x25519(&self.private, peer),
            Group::Ecp256 => ecp::agree::<NistP256>(&self.private, peer),
            Group::Ecp384 => ecp::agree::<NistP384>(&self.private, peer),
            Group::Ecp521 => ecp::agree::<NistP521>(&self.private, peer),
            Group::Modp(modp) => modp.agree(&self.private, peer),
            Group::MlKem(kem) => kem.decapsulate(&self.private, peer),
        }
    }

    /// The length of the responder's value in octets.
    fn peer_len(&self) -> usize {
        match self.group {
            Group::MlKem(kem) => kem.ciphertext_len(),
            Group::X25519 | Group::Ecp256 | Group::Ecp384 | Group::Ecp521 | Group::Modp(_) => {
                self.public.len()
            }
        }
    }
}

impl fmt::Debug for KeyExchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyExchange")
            .field("method", &self.method())
            .finish_non_exhaustive()
    }
}

#[derive(Clone, Copy)]
enum Group {
    X25519,
    Ecp256,
    Ecp384,
    Ecp521,
    Modp(&'static Modp),
    MlKem(MlKem),
}

impl Group {
    fn of(method: KeMethod) -> Option<Self> {
        match method {
            KeMethod::CURVE25519 => Some(Self::X25519),
            KeMethod::ECP_256 => Some(Self::Ecp256),
            KeMethod::ECP_384 => Some(Self::Ecp384),
            KeMethod::ECP_521 => Some(Self::Ecp521),
            method => Modp::of(method)
                .map(Self::Modp)
                .or_else(|| MlKem::of(method).map(Self::MlKem)),
        }
    }

    fn method(self) -> KeMethod {
        match self {
            Self::X25519 => KeMethod::CURVE25519,
            Self::Ecp256 => KeMethod::ECP_256,
            Self::Ecp384 => KeMethod::ECP_384,
            Self::Ecp521 => KeMethod::ECP_521,
            Self::Modp(modp) => modp.method,
            Self::MlKem(kem) => kem.method(),
        }
    }

    fn private_len(self) -> usize {
        match self {
            Self::X25519 | Self::Ecp256 => 32,
            Self::Ecp384 => 48,
            Self::Ecp521 => 66,
            Self::Modp(modp) => modp.exponent_len,
            Self::MlKem(_) => mlkem::SEED,
        }
    }
}

fn x25519_private(private: &Secret) -> Result<StaticSecret, CryptoError> {
    let octets = <&[u8; 32]>::try_from(private.as_bytes()).map_err(|_| CryptoError::PrivateKey)?;
    Ok(StaticSecret::from(*octets))
}

fn x25519(private: &Secret, peer: &[u8]) -> Result<Secret, CryptoError> {
    let peer = <[u8; 32]>::try_from(peer).map_err(|_| CryptoError::PublicValue)?;
    let shared = x25519_private(private)?.diffie_hellman(&PublicKey::from(peer));
    // A peer of small order makes the secret all zero, whatever our half is (RFC 8031, section 2; RFC 7748, 6.1).
    if !shared.was_contributory() {
        return Err(CryptoError::PublicValue);
    }
    Ok(Secret::from_slice(shared.as_bytes()))
}
