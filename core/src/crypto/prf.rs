//! The pseudorandom functions that IKEv2 negotiates, and prf+ (RFC 7296, section 2.13).

use zeroize::Zeroizing;

use super::hash::{HashKind, hmac};
use super::{CryptoError, Secret};
use crate::wire::iana::PrfId;

/// A negotiated pseudorandom function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Prf {
    /// HMAC with SHA-1 (RFC 2104), for old gateways.
    HmacSha1,
    /// HMAC with SHA-256 (RFC 4868).
    HmacSha2_256,
    /// HMAC with SHA-384 (RFC 4868).
    HmacSha2_384,
    /// HMAC with SHA-512 (RFC 4868).
    HmacSha2_512,
}

impl Prf {
    /// The function that IANA's number names, if Peregrine has it.
    #[must_use]
    pub fn from_id(id: PrfId) -> Option<Self> {
        match id {
            PrfId::HMAC_SHA1 => Some(Self::HmacSha1),
            PrfId::HMAC_SHA2_256 => Some(Self::HmacSha2_256),
            PrfId::HMAC_SHA2_384 => Some(Self::HmacSha2_384),
            PrfId::HMAC_SHA2_512 => Some(Self::HmacSha2_512),
            _ => None,
        }
    }

    /// IANA's number.
    #[must_use]
    pub fn id(self) -> PrfId {
        match self {
            Self::HmacSha1 => PrfId::HMAC_SHA1,
            Self::HmacSha2_256 => PrfId::HMAC_SHA2_256,
            Self::HmacSha2_384 => PrfId::HMAC_SHA2_384,
            Self::HmacSha2_512 => PrfId::HMAC_SHA2_512,
        }
    }

    /// The preferred key length in octets, which for these functions is the output length (RFC 7296, section 2.13).
    /// It is the length of SK_d, SK_pi and SK_pr.
    #[must_use]
    pub fn key_len(self) -> usize {
        self.hash().output_len()
    }

    /// prf(key, data), `data` being the concatenation of its parts: [`Self::key_len`] octets. Takes keys of every
    /// length, as RFC 7296, section 2.14 asks for where nonces or a shared secret are the key.
    #[must_use]
    pub fn compute(self, key: &[u8], data: &[&[u8]]) -> Secret {
        hmac(self.hash(), key, data)
    }

    /// The first `len` octets of prf+(key, seed), `seed` being the concatenation of its parts (RFC 7296, section
    /// 2.13): `T1 | T2 | ..` where `T1 = prf(key, seed | 1)` and `Tn = prf(key, Tn-1 | seed | n)`.
    ///
    /// # Errors
    /// [`CryptoError::Length`] when `len` is more than 255 outputs, where the counter octet ends.
    pub fn plus(self, key: &[u8], seed: &[&[u8]], len: usize) -> Result<Secret, CryptoError> {
        let blocks = len.div_ceil(self.key_len());
        let last = u8::try_from(blocks).map_err(|_| CryptoError::Length)?;
        let mut stream = Zeroizing::new(Vec::with_capacity(blocks * self.key_len()));
        let mut block = Secret::new(Vec::new());
        for counter in 1..=last {
            let counter = [counter];
            let data: Vec<&[u8]> = [block.as_bytes()]
                .into_iter()
                .chain(seed.iter().copied())
                .chain([counter.as_slice()])
                .collect();
            block = self.compute(key, &data);
            stream.extend_from_slice(block.as_bytes());
        }
        stream.truncate(len);
        Ok(Secret(stream))
    }

    fn hash(self) -> HashKind {
        match self {
            Self::HmacSha1 => HashKind::Sha1,
            Self::HmacSha2_256 => HashKind::Sha2_256,
            Self::HmacSha2_384 => HashKind::Sha2_384,
            Self::HmacSha2_512 => HashKind::Sha2_512,
        }
    }
}

#[cfg(test)]
mod tests {
    use hex_literal::hex;

    use super::*;
    use crate::crypto::sha2_256;

    const ALL: [Prf; 4] = [
        Prf::HmacSha1,
        Prf::HmacSha2_256,
        Prf::HmacSha2_384,
        Prf::HmacSha2_512,
    ];

    #[test]
    fn numbers_are_ianas() {
        for prf in ALL {
            assert_eq!(Prf::from_id(prf.id()), Some(prf));
        }
        assert_eq!(ALL.map(|prf| prf.id().0), [2, 5, 6, 7]);
        assert_eq!(ALL.map(Prf::key_len), [20, 32, 48, 64]);
        for other in (0..=1).chain([3, 4]).chain(8..=1024) {
            assert_eq!(Prf::from_id(PrfId(other)), None);
        }
    }

    /// RFC 4868, section 2.7.1, case 2, and RFC 2202, section 3, case 2.
    #[test]
    fn one_output() {
        let output = |prf: Prf| prf.compute(b"Jefe", &[b"what do ya want ", b"for nothing?"]);
        assert_eq!(
            output(Prf::HmacSha1).as_bytes(),
            hex!("effcdf6ae5eb2fa2d27416d5f184df9c259a7c79")
        );
        assert_eq!(
            output(Prf::HmacSha2_256).as_bytes(),
            hex!("5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843")
        );
        assert_eq!(
            output(Prf::HmacSha2_384).as_bytes(),
            hex!(
                "af45d2e376484031617f78d2b58a6b1b9c7ef464f5a01b47e42ec3736322445e8e2240ca5e69e2c78b3239ec"
                "fab21649"
            )
        );
        assert_eq!(
            output(Prf::HmacSha2_512).as_bytes(),
            hex!(
                "164b7a7bfcf819e2e395fbe73b56e0a387bd64222e831fd610270cd7ea2505549758bf75c05a994a6d034f65"
                "f8f0e6fdcaeab1a34d4a6b4b636e070a38bce737"
            )
        );
    }

    /// SKEYSEED and the seven keys as RFC 7296, section 2.14 derives them, all in one prf+ of three outputs and a bit.
    /// No RFC has vectors: these are of an independent implementation over Python's hmac.
    #[test]
    fn keys_of_an_ike_sa() {
        let octets = |from: u8, len: u8| (from..from + len).collect::<Vec<u8>>();
        let (initiator, responder) = (octets(0x40, 32), octets(0x80, 32));
        let (spi_i, spi_r) = (octets(0xd0, 8), octets(0xe0, 8));
        let check = |prf: Prf, seed_digest: [u8; 32], start: &[u8], digest: [u8; 32]| {
            let skeyseed = prf.compute(&[&initiator[..], &responder].concat(), &[&octets(0x10, 32)]);
            assert_eq!(sha2_256(&[skeyseed.as_bytes()]), seed_digest, "{prf:?}");
            let seed: [&[u8]; 4] = [&initiator, &responder, &spi_i, &spi_r];
            let keys = prf
                .plus(skeyseed.as_bytes(), &seed, 3 * prf.key_len() + 7)
                .unwrap();
            assert_eq!(&keys.as_bytes()[..start.len()], start, "{prf:?}");
            assert_eq!(sha2_256(&[keys.as_bytes()]), digest, "{prf:?}");
            let seed = seed.concat();
            assert_eq!(
                prf.plus(skeyseed.as_bytes(), &[&seed], keys.len()).unwrap(),
                keys,
                "{prf:?}"
            );
            // T1 is prf(K, S | 1) and T2 is prf(K, T1 | S | 2).
            let (first, rest) = keys.as_bytes().split_at(prf.key_len());
            assert_eq!(
                prf.compute(skeyseed.as_bytes(), &[&seed, &[1]]).as_bytes(),
                first,
                "{prf:?}"
            );
            let second = prf.compute(skeyseed.as_bytes(), &[first, &seed, &[2]]);
            assert_eq!(second.as_bytes(), &rest[..prf.key_len()], "{prf:?}");
        };
        check(
            Prf::HmacSha1,
            hex!("794ccec51481028cc1e3608c6279d650f244dffde827f08a15a521a6e0d20b96"),
            &hex!("c17368c0bbfeb52118993b6e4a31bfbe"),
            hex!("96fb33caa3790594080038fa2cda40e4f7068f626110cdc8971cadc8d9b1066c"),
        );
        check(
            Prf::HmacSha2_256,
            hex!("bbd34a8e300ff2ad4804b758ddb0a66f38622d2925e5b0835b9891054c14deb3"),
            &hex!("559477295c07e75ecb4d0d9a3e27dde9"),
            hex!("95282cd3ea168c5fc769d4522c15006cb85beb0e33b3c6186a487eb90f44cadb"),
        );
        check(
            Prf::HmacSha2_384,
            hex!("065fc6b135d50ffbb806f940219b3b753835bce909d856ba4a1d283c97308d37"),
            &hex!("62ce851166a6ab717625c1b6c589113a"),
            hex!("e7ec394a7406bbf770c11ef2ebfbd5465cb68b9f03b7fcd99c72d5e345a06a3f"),
        );
        check(
            Prf::HmacSha2_512,
            hex!("5a705b143008fb8e3b5396465cf98f1410a8d402e9a3351e26bb4dcfab649868"),
            &hex!("5002e505e2fef89f103e51cc6620fc52"),
            hex!("627246ea33d6841c7095f20b9849932e14e15fccce42df7c24cb578abb60f4a0"),
        );
    }

    #[test]
    fn the_counter_octet_ends_at_255() {
        let key: Vec<u8> = (0..32).collect();
        let prf = Prf::HmacSha2_256;
        let longest = prf.plus(&key, &[b"seed"], 255 * 32).unwrap();
        assert_eq!(
            sha2_256(&[longest.as_bytes()]),
            hex!("6131cbc435c56c099df30e62ad28a980e13bba7974953c13aad24ee18839f223")
        );
        assert_eq!(prf.plus(&key, &[b"seed"], 255 * 32 + 1), Err(CryptoError::Length));
        assert_eq!(prf.plus(&key, &[b"seed"], usize::MAX), Err(CryptoError::Length));
        for len in 0..200 {
            let shorter = prf.plus(&key, &[b"seed"], len).unwrap();
            assert_eq!(shorter.as_bytes(), &longest.as_bytes()[..len]);
        }
    }
}
