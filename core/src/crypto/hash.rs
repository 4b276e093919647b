//! Digests, HMAC (RFC 2104), and the two relics that MSCHAPv2 needs: MD4 (RFC 1320) and DES.

use ::hmac::digest::Digest;
use ::hmac::{EagerHash, Hmac, Mac as _};
use des::Des;
use des::cipher::{BlockCipherEncrypt as _, KeyInit as _};
use zeroize::Zeroizing;

use super::Secret;

/// The SHA-1 digest of the concatenated `parts`. For names and checksums of the protocol only, where no collision
/// helps anyone: NAT detection (RFC 7296, 2.23), CERTREQ (RFC 7296, 3.7), MSCHAPv2.
#[must_use]
pub fn sha1(parts: &[&[u8]]) -> [u8; 20] {
    digest::<sha1::Sha1>(parts).into()
}

/// The SHA-256 digest of the concatenated `parts`.
#[must_use]
pub fn sha2_256(parts: &[&[u8]]) -> [u8; 32] {
    digest::<sha2::Sha256>(parts).into()
}

/// The SHA-384 digest of the concatenated `parts`.
#[must_use]
pub fn sha2_384(parts: &[&[u8]]) -> [u8; 48] {
    digest::<sha2::Sha384>(parts).into()
}

/// The SHA-512 digest of the concatenated `parts`.
#[must_use]
pub fn sha2_512(parts: &[&[u8]]) -> [u8; 64] {
    digest::<sha2::Sha512>(parts).into()
}

/// The MD4 digest of `data` (RFC 1320), which MSCHAPv2 calls the password's hash (RFC 2759, 8.3). Broken as a hash.
#[must_use]
pub fn md4(data: &[u8]) -> [u8; 16] {
    digest::<md4::Md4>(&[data]).into()
}

/// One DES encryption of `block` under 56 key bits, to which the parity bits are added here (RFC 2759, 8.6).
/// Broken as a cipher; for MSCHAPv2 only.
#[must_use]
pub fn des_encrypt(key: &[u8; 7], block: &[u8; 8]) -> [u8; 8] {
    let bits = Zeroizing::new(key.iter().fold(0, |bits, octet| (bits << 8) | u64::from(*octet)));
    let mut expanded = Zeroizing::new([0; 8]);
    for (octet, shift) in expanded.iter_mut().zip((0..8).rev()) {
        let seven = ((*bits >> (shift * 7)) & 0x7f) as u8;
        *octet = (seven << 1) | u8::from(seven.count_ones() % 2 == 0);
    }
    let mut block = (*block).into();
    Des::new((&*expanded).into()).encrypt_block(&mut block);
    block.into()
}

/// The hash inside an HMAC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HashKind {
    /// SHA-1.
    Sha1,
    /// SHA-256.
    Sha2_256,
    /// SHA-384.
    Sha2_384,
    /// SHA-512.
    Sha2_512,
}

impl HashKind {
    /// The digest's length in octets.
    #[must_use]
    pub const fn output_len(self) -> usize {
        match self {
            Self::Sha1 => 20,
            Self::Sha2_256 => 32,
            Self::Sha2_384 => 48,
            Self::Sha2_512 => 64,
        }
    }
}

/// HMAC of the concatenated `parts` under a key of any length (RFC 2104), untruncated.
#[must_use]
pub fn hmac(hash: HashKind, key: &[u8], parts: &[&[u8]]) -> Secret {
    match hash {
        HashKind::Sha1 => hmac_with::<sha1::Sha1>(key, parts),
        HashKind::Sha2_256 => hmac_with::<sha2::Sha256>(key, parts),
        HashKind::Sha2_384 => hmac_with::<sha2::Sha384>(key, parts),
        HashKind::Sha2_512 => hmac_with::<sha2::Sha512>(key, parts),
    }
}

fn hmac_with<D: EagerHash>(key: &[u8], parts: &[&[u8]]) -> Secret {
    let mut mac = Hmac::<D>::new_from_slice(key).expect("HMAC takes keys of every length");
    for part in parts {
        mac.update(part);
    }
    Secret::from_slice(&Zeroizing::new(mac.finalize().into_bytes()))
}

fn digest<D: Digest>(parts: &[&[u8]]) -> ::hmac::digest::Output<D> {
    let mut hasher = D::new();
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize()
}
