//! RSASSA-PKCS1-v1_5 with SHA-1 (RFC 8017, section 8.2.1): what authentication method 1 signs with when the gateway
//! does not know RFC 7427 (RFC 7296, section 3.8). ring verifies such signatures but does not make them.

use crypto_bigint::modular::{BoxedMontyForm, BoxedMontyParams};
use crypto_bigint::{BoxedUint, NonZero, Odd, RandomMod as _};
use pkcs1::RsaPrivateKeyRef;
use zeroize::Zeroizing;

use super::{CryptoError, constant_time_eq, sha1};
use crate::rng::Rng;

/// The signature of `message` under an RSA private key in the DER of PKCS#1 (RFC 8017, appendix A.1.2), as many octets
/// as the modulus has.
///
/// The time that it takes depends on the sizes of the key's numbers alone: exponentiation takes every bit of the
/// exponent alike and the base is blinded with a random number. The Chinese remainder theorem is not used, so that a
/// computing error cannot reveal a factor, and the result is checked with the public exponent before it is returned.
///
/// # Errors
/// [`CryptoError::PrivateKey`] for a key that is malformed, whose modulus has not 2048 to 8192 bits, or whose numbers
/// are out of range; [`CryptoError::Signature`] when the check fails, which a private exponent that does not belong to
/// the public one causes too.
pub fn rsa_pkcs1_sha1_sign(
    private_key_pkcs1_der: &[u8],
    message: &[u8],
    rng: &mut Rng,
) -> Result<Vec<u8>, CryptoError> {
    let key = Key::decode(private_key_pkcs1_der)?;
    let encoded = encode_message(message, key.octets);
    let signature = key.private_operation(&encoded, rng)?;
    if !constant_time_eq(&key.public_operation(&signature), &encoded) {
        return Err(CryptoError::Signature);
    }
    Ok(signature)
}

struct Key {
    params: BoxedMontyParams,
    /// The modulus' length in octets.
    octets: usize,
    public_exponent: BoxedUint,
    private_exponent: Zeroizing<BoxedUint>,
}

impl Key {
    fn decode(der: &[u8]) -> Result<Self, CryptoError> {
        let key = RsaPrivateKeyRef::try_from(der).map_err(|_| CryptoError::PrivateKey)?;
        let modulus = BoxedUint::from_be_slice_vartime(key.modulus.as_bytes());
        let bits = modulus.bits_vartime();
        if !MODULUS_BITS.contains(&bits) {
            return Err(CryptoError::PrivateKey);
        }
        let precision = modulus.bits_precision();
        let private_exponent = BoxedUint::from_be_slice(key.private_exponent.as_bytes(), precision)
            .map(Zeroizing::new)
            .map_err(|_| CryptoError::PrivateKey)?;
        let public_exponent = BoxedUint::from_be_slice_vartime(key.public_exponent.as_bytes());
        let exponents_fit = *private_exponent < modulus
            && public_exponent >= BoxedUint::from(3_u8)
            && public_exponent.bits_vartime() <= PUBLIC_EXPONENT_BITS;
        let modulus = Odd::new(modulus)
            .into_option()
            .filter(|_| exponents_fit)
            .ok_or(CryptoError::PrivateKey)?;
        Ok(Self {
            params: BoxedMontyParams::new_vartime(modulus),
            octets: bits.div_ceil(8) as usize,
            public_exponent,
            private_exponent,
        })
    }

    /// encoded^d mod n, as `(encoded * r^e)^d * r^-1`.
    fn private_operation(&self, encoded: &[u8], rng: &mut Rng) -> Result<Vec<u8>, CryptoError> {
        let modulus: &NonZero<BoxedUint> = self.params.modulus().as_nz_ref();
        // A number without an inverse shares a factor with the modulus and is never met by chance.
        let blind = Zeroizing::new(self.residue(BoxedUint::random_mod_vartime(rng, modulus)));
        let unblind = blind
            .invert()
            .into_option()
            .map(Zeroizing::new)
            .ok_or(CryptoError::Signature)?;
        let blinded = Zeroizing::new(self.public_power(&blind) * &self.number(encoded));
        let power =
            Zeroizing::new(blinded.pow_bounded_exp(&self.private_exponent, self.params.bits_precision()));
        Ok(self.octets(&(&*power * &*unblind)))
    }

    /// signature^e mod n.
    fn public_operation(&self, signature: &[u8]) -> Vec<u8> {
        self.octets(&self.public_power(&self.number(signature)))
    }

    fn public_power(&self, base: &BoxedMontyForm) -> BoxedMontyForm {
        base.pow_bounded_exp(&self.public_exponent, self.public_exponent.bits_vartime())
    }

    fn number(&self, octets: &[u8]) -> BoxedMontyForm {
        self.residue(BoxedUint::from_be_slice_truncated(
            octets,
            self.params.bits_precision(),
        ))
    }

    fn residue(&self, number: BoxedUint) -> BoxedMontyForm {
        BoxedMontyForm::new(number, &self.params)
    }

    fn octets(&self, residue: &BoxedMontyForm) -> Vec<u8> {
        let number = residue.retrieve().to_be_bytes();
        let padding = number.len().saturating_sub(self.octets);
        number.into_iter().skip(padding).collect()
    }
}

/// EMSA-PKCS1-v1_5 (RFC 8017, section 9.2): `00 01 FF .. FF 00 | DigestInfo`, `len` octets.
fn encode_message(message: &[u8], len: usize) -> Vec<u8> {
    let digest = sha1(&[message]);
    let padding = len.saturating_sub(3 + DIGEST_INFO.len() + digest.len());
    [
        &[0x00, 0x01],
        vec![0xff; padding].as_slice(),
        &[0x00],
        DIGEST_INFO,
        &digest,
    ]
    .concat()
}

/// What ring accepts for every other signature scheme.
const MODULUS_BITS: std::ops::RangeInclusive<u32> = 2048..=8192;

/// As in ring: larger ones only cost time.
const PUBLIC_EXPONENT_BITS: u32 = 33;

/// The DER of DigestInfo up to the digest, for SHA-1 (RFC 8017, section 9.2, note 1).
const DIGEST_INFO: &[u8] = &[
    0x30, 0x21, 0x30, 0x09, 0x06, 0x05, 0x2b, 0x0e, 0x03, 0x02, 0x1a, 0x05, 0x00, 0x04, 0x14,
];

#[cfg(test)]
mod tests {
    use ring::signature::{RSA_PKCS1_2048_8192_SHA1_FOR_LEGACY_USE_ONLY, UnparsedPublicKey};

    use super::*;

    const MESSAGE: &[u8] = b"the octets that AUTH signs";
    const RSA_2048: &[u8] = include_bytes!("rsa_sha1/testdata/rsa2048.der");
    /// A modulus that fills neither its last octet nor its last word.
    const RSA_2050: &[u8] = include_bytes!("rsa_sha1/testdata/rsa2050.der");

    fn rng() -> Rng {
        Rng::new([7; 32])
    }

    /// PKCS1-v1_5 is deterministic: the signatures are those that `openssl dgst -sha1 -sign` makes.
    #[test]
    fn signatures_are_those_of_openssl() {
        let sign = |key| rsa_pkcs1_sha1_sign(key, MESSAGE, &mut rng()).unwrap();
        assert_eq!(sign(RSA_2048), include_bytes!("rsa_sha1/testdata/rsa2048.sig"));
        assert_eq!(sign(RSA_2050), include_bytes!("rsa_sha1/testdata/rsa2050.sig"));
    }

    #[test]
    fn ring_verifies_what_we_sign() {
        let key = RsaPrivateKeyRef::try_from(RSA_2048).unwrap();
        let public = pkcs1::der::Encode::to_der(&key.public_key()).unwrap();
        let verifier = UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA1_FOR_LEGACY_USE_ONLY, public);
        let mut rng = rng();
        for message in [MESSAGE, b"", &[0x5a; 4000]] {
            let signature = rsa_pkcs1_sha1_sign(RSA_2048, message, &mut rng).unwrap();
            verifier.verify(message, &signature).unwrap();
            assert!(verifier.verify(b"another", &signature).is_err());
        }
    }

    #[test]
    fn a_wrong_private_exponent_signs_nothing() {
        let key = RsaPrivateKeyRef::try_from(RSA_2048).unwrap();
        let last = key.private_exponent.as_bytes();
        let at = RSA_2048
            .windows(last.len())
            .position(|window| window == last)
            .unwrap()
            + last.len()
            - 1;
        let mut der = RSA_2048.to_vec();
        der[at] ^= 2;
        assert_eq!(
            rsa_pkcs1_sha1_sign(&der, MESSAGE, &mut rng()),
            Err(CryptoError::Signature)
        );
    }

    #[test]
    fn keys_out_of_range_are_refused() {
        let refused = |key: &[u8]| {
            assert_eq!(
                rsa_pkcs1_sha1_sign(key, MESSAGE, &mut rng()),
                Err(CryptoError::PrivateKey)
            );
        };
        let good = numbers();
        assert!(rsa_pkcs1_sha1_sign(&good.der(), MESSAGE, &mut rng()).is_ok());
        refused(
            &Numbers {
                modulus: [&[0xff; 254], &[1][..]].concat(),
                private_exponent: vec![3],
                ..numbers()
            }
            .der(),
        );
        refused(
            &Numbers {
                modulus: [&[0x80; 1024], &[1][..]].concat(),
                private_exponent: vec![3],
                ..numbers()
            }
            .der(),
        );
        refused(
            &Numbers {
                private_exponent: good.modulus.clone(),
                ..numbers()
            }
            .der(),
        );
        refused(
            &Numbers {
                private_exponent: [&[1], good.modulus.as_slice(), &[0; 16]].concat(),
                ..numbers()
            }
            .der(),
        );
        refused(
            &Numbers {
                public_exponent: vec![1],
                ..numbers()
            }
            .der(),
        );
        refused(
            &Numbers {
                public_exponent: vec![3, 0, 0, 0, 1],
                ..numbers()
            }
            .der(),
        );
        let mut even = good.modulus;
        *even.last_mut().unwrap() &= 0xfe;
        refused(
            &Numbers {
                modulus: even,
                ..numbers()
            }
            .der(),
        );
        for len in 0..RSA_2048.len() {
            refused(&RSA_2048[..len]);
        }
    }

    struct Numbers {
        modulus: Vec<u8>,
        public_exponent: Vec<u8>,
        private_exponent: Vec<u8>,
    }

    impl Numbers {
        fn der(&self) -> Vec<u8> {
            let unsigned = |octets| pkcs1::UintRef::new(octets).unwrap();
            let key = RsaPrivateKeyRef::try_from(RSA_2048).unwrap();
            let key = RsaPrivateKeyRef {
                modulus: unsigned(&self.modulus),
                public_exponent: unsigned(&self.public_exponent),
                private_exponent: unsigned(&self.private_exponent),
                ..key
            };
            pkcs1::der::Encode::to_der(&key).unwrap()
        }
    }

    fn numbers() -> Numbers {
        let key = RsaPrivateKeyRef::try_from(RSA_2048).unwrap();
        Numbers {
            modulus: key.modulus.as_bytes().to_vec(),
            public_exponent: key.public_exponent.as_bytes().to_vec(),
            private_exponent: key.private_exponent.as_bytes().to_vec(),
        }
    }
}
