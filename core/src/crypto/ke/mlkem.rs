//! ML-KEM (FIPS 203) as a key exchange method (draft-ietf-ipsecme-ikev2-mlkem): the initiator's value is an encapsulation
//! key, the responder's a ciphertext.

use ml_kem::kem::Decapsulator;
use ml_kem::{
    Decapsulate, Encapsulate, Kem, KeyExport as _, KeyInit, MlKem512, MlKem768, MlKem1024, TryKeyInit as _,
};
use rand_core::CryptoRng;
use zeroize::Zeroize as _;

use crate::crypto::{CryptoError, Secret};
use crate::wire::iana::KeMethod;

/// `d | z`: what a key pair is made of (FIPS 203, section 7.1).
pub(super) const SEED: usize = 64;

#[derive(Clone, Copy)]
pub(super) enum MlKem {
    P512,
    P768,
    P1024,
}

impl MlKem {
    pub(super) fn of(method: KeMethod) -> Option<Self> {
        match method {
            KeMethod::ML_KEM_512 => Some(Self::P512),
            KeMethod::ML_KEM_768 => Some(Self::P768),
            KeMethod::ML_KEM_1024 => Some(Self::P1024),
            _ => None,
        }
    }

    pub(super) fn method(self) -> KeMethod {
        match self {
            Self::P512 => KeMethod::ML_KEM_512,
            Self::P768 => KeMethod::ML_KEM_768,
            Self::P1024 => KeMethod::ML_KEM_1024,
        }
    }

    /// The length of an encapsulation key in octets.
    fn public_len(self) -> usize {
        match self {
            Self::P512 => 800,
            Self::P768 => 1184,
            Self::P1024 => 1568,
        }
    }

    /// The length of a ciphertext in octets.
    pub(super) fn ciphertext_len(self) -> usize {
        match self {
            Self::P512 => 768,
            Self::P768 => 1088,
            Self::P1024 => 1568,
        }
    }

    /// The encapsulation key of the pair that `seed` makes.
    pub(super) fn public(self, seed: &Secret) -> Result<Vec<u8>, CryptoError> {
        match self {
            Self::P512 => public::<MlKem512>(seed),
            Self::P768 => public::<MlKem768>(seed),
            Self::P1024 => public::<MlKem1024>(seed),
        }
    }

    /// The secret in a ciphertext of [`Self::ciphertext_len`] octets. What was tampered with gives a secret that nobody
    /// else has (implicit rejection).
    pub(super) fn decapsulate(self, seed: &Secret, ciphertext: &[u8]) -> Result<Secret, CryptoError> {
        match self {
            Self::P512 => decapsulate::<MlKem512>(seed, ciphertext),
            Self::P768 => decapsulate::<MlKem768>(seed, ciphertext),
            Self::P1024 => decapsulate::<MlKem1024>(seed, ciphertext),
        }
    }

    /// A fresh secret, and its ciphertext for the owner of the encapsulation key `public`.
    pub(super) fn encapsulate(
        self,
        public: &[u8],
        rng: &mut impl CryptoRng,
    ) -> Result<(Vec<u8>, Secret), CryptoError> {
        let expected = self.public_len();
        if public.len() != expected {
            return Err(CryptoError::PublicLength {
                expected,
                actual: public.len(),
            });
        }
        match self {
            Self::P512 => encapsulate::<MlKem512>(public, rng),
            Self::P768 => encapsulate::<MlKem768>(public, rng),
            Self::P1024 => encapsulate::<MlKem1024>(public, rng),
        }
    }
}

fn key_pair<P>(seed: &Secret) -> Result<P::DecapsulationKey, CryptoError>
where
    P: Kem<DecapsulationKey: KeyInit>,
{
    KeyInit::new_from_slice(seed.as_bytes()).map_err(|_| CryptoError::PrivateKey)
}

fn public<P>(seed: &Secret) -> Result<Vec<u8>, CryptoError>
where
    P: Kem<DecapsulationKey: KeyInit>,
{
    Ok(key_pair::<P>(seed)?.encapsulation_key().to_bytes().to_vec())
}

fn decapsulate<P>(seed: &Secret, ciphertext: &[u8]) -> Result<Secret, CryptoError>
where
    P: Kem<DecapsulationKey: KeyInit + Decapsulate>,
{
    let mut shared = key_pair::<P>(seed)?
        .decapsulate_slice(ciphertext)
        .map_err(|_| CryptoError::PublicValue)?;
    Ok(keep(&mut shared))
}

fn encapsulate<P: Kem>(public: &[u8], rng: &mut impl CryptoRng) -> Result<(Vec<u8>, Secret), CryptoError> {
    // This is where every coefficient is checked to be below the modulus (FIPS 203, section 7.2).
    let key = P::EncapsulationKey::new_from_slice(public).map_err(|_| CryptoError::PublicValue)?;
    let (ciphertext, mut shared) = key.encapsulate_with_rng(rng);
    Ok((ciphertext.to_vec(), keep(&mut shared)))
}

fn keep(shared: &mut [u8]) -> Secret {
    let secret = Secret::from_slice(shared);
    shared.zeroize();
    secret
}
