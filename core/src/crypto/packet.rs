//! One direction of a packet cipher, for SK payloads and ESP alike.
//!
//! A packet is `iv | ciphertext | ICV`, preceded by associated data that is authenticated and not encrypted.
//! AEAD suites take the nonce `salt | iv` (RFC 4106, section 4; RFC 7634, section 2; RFC 5282, section 4); the
//! others encrypt with AES-CBC and then authenticate (RFC 3602, RFC 4868, RFC 2404). Nothing here allocates
//! once a key exists.

use std::fmt;

use aes::{Aes128, Aes256};
use cbc::cipher::{
    Array, BlockCipherEncrypt, BlockModeDecrypt, BlockModeEncrypt, InnerIvInit, KeyInit, consts::U16,
};
use ring::aead::{self, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::hmac;
use subtle::ConstantTimeEq;

use super::CryptoError;

/// Octets of an AES block and of a CBC initialisation vector.
const BLOCK: usize = 16;
/// Octets of an AEAD's explicit initialisation vector.
const AEAD_IV: usize = 8;
/// Octets of an AEAD's salt, the implicit part of its nonce, at the end of the keying material.
const SALT: usize = 4;
/// Octets of an AEAD's tag. The variants with 8 and 12 octets are not offered.
const TAG: usize = 16;

/// An encryption algorithm with its key length.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Encr {
    /// AES-GCM with a 16-octet ICV (RFC 4106), keys of 128 or 256 bits.
    AesGcm16 {
        /// The key's length in bits, without the salt.
        bits: u16,
    },
    /// ChaCha20-Poly1305 (RFC 7634).
    ChaCha20Poly1305,
    /// AES-CBC (RFC 3602), keys of 128 or 256 bits.
    AesCbc {
        /// The key's length in bits.
        bits: u16,
    },
}

/// An integrity algorithm: which hash, and to how many bits its output is cut.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Integ {
    /// HMAC-SHA1-96 (RFC 2404).
    HmacSha1_96,
    /// HMAC-SHA-256-128 (RFC 4868).
    HmacSha2_256_128,
    /// HMAC-SHA-384-192 (RFC 4868).
    HmacSha2_384_192,
    /// HMAC-SHA-512-256 (RFC 4868).
    HmacSha2_512_256,
}

impl Integ {
    /// Octets of the key (RFC 2404, section 3; RFC 4868, section 2.1.1).
    #[must_use]
    pub const fn key_len(self) -> usize {
        match self {
            Self::HmacSha1_96 => 20,
            Self::HmacSha2_256_128 => 32,
            Self::HmacSha2_384_192 => 48,
            Self::HmacSha2_512_256 => 64,
        }
    }

    /// Octets of the truncated MAC that travel with the packet.
    #[must_use]
    pub const fn icv_len(self) -> usize {
        match self {
            Self::HmacSha1_96 => 12,
            Self::HmacSha2_256_128 => 16,
            Self::HmacSha2_384_192 => 24,
            Self::HmacSha2_512_256 => 32,
        }
    }

    fn algorithm(self) -> hmac::Algorithm {
        match self {
            Self::HmacSha1_96 => hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY,
            Self::HmacSha2_256_128 => hmac::HMAC_SHA256,
            Self::HmacSha2_384_192 => hmac::HMAC_SHA384,
            Self::HmacSha2_512_256 => hmac::HMAC_SHA512,
        }
    }
}

/// How packets are protected: an AEAD alone, or encryption with a separate integrity algorithm.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct CipherSuite {
    /// The encryption algorithm.
    pub encr: Encr,
    /// The integrity algorithm; `None` exactly when `encr` is an AEAD.
    pub integ: Option<Integ>,
}

impl CipherSuite {
    /// Whether encryption and integrity come from one algorithm with one key.
    #[must_use]
    pub const fn is_aead(&self) -> bool {
        match self.encr {
            Encr::AesGcm16 { .. } | Encr::ChaCha20Poly1305 => true,
            Encr::AesCbc { .. } => false,
        }
    }

    /// Octets of keying material for encryption, including an AEAD's salt (RFC 4106, section 8.1).
    #[must_use]
    pub const fn encr_key_len(&self) -> usize {
        match self.encr {
            Encr::AesGcm16 { bits } => bits as usize / 8 + SALT,
            Encr::ChaCha20Poly1305 => 32 + SALT,
            Encr::AesCbc { bits } => bits as usize / 8,
        }
    }

    /// Octets of keying material for integrity; zero for an AEAD.
    #[must_use]
    pub const fn integ_key_len(&self) -> usize {
        match self.integ {
            Some(integ) => integ.key_len(),
            None => 0,
        }
    }

    /// Octets of the explicit initialisation vector.
    #[must_use]
    pub const fn iv_len(&self) -> usize {
        if self.is_aead() { AEAD_IV } else { BLOCK }
    }

    /// Octets of the integrity check value.
    #[must_use]
    pub const fn icv_len(&self) -> usize {
        match self.integ {
            Some(integ) => integ.icv_len(),
            None => TAG,
        }
    }

    /// The multiple of octets that a plaintext must have: 1 for an AEAD.
    #[must_use]
    pub const fn block_len(&self) -> usize {
        if self.is_aead() { 1 } else { BLOCK }
    }
}

/// One direction's key. The key schedule is computed once; it lives on the heap and is overwritten when dropped.
pub struct PacketKey {
    suite: CipherSuite,
    cipher: Box<Cipher>,
}

enum Cipher {
    Aead { key: LessSafeKey, salt: [u8; SALT] },
    Cbc { key: AesKey, mac: hmac::Key },
}

/// Wipes itself when dropped (feature `zeroize` of `aes`).
enum AesKey {
    Aes128(Aes128),
    Aes256(Aes256),
}

impl PacketKey {
    /// A key of `suite.encr_key_len()` octets (an AEAD's salt last) and one of `suite.integ_key_len()` octets.
    ///
    /// # Errors
    /// `CryptoError::Unsupported` for a suite that nobody defined: a key length other than 128 or 256 bits, an
    /// AEAD with an integrity algorithm, CBC without; `CryptoError::KeyLength` when a key has another length than
    /// the suite says.
    pub fn new(suite: CipherSuite, encr_key: &[u8], integ_key: &[u8]) -> Result<Self, CryptoError> {
        if encr_key.len() != suite.encr_key_len() || integ_key.len() != suite.integ_key_len() {
            return Err(CryptoError::KeyLength);
        }
        let cipher = match (suite.encr, suite.integ) {
            (Encr::AesGcm16 { bits: 128 }, None) => aead_key(&aead::AES_128_GCM, encr_key)?,
            (Encr::AesGcm16 { bits: 256 }, None) => aead_key(&aead::AES_256_GCM, encr_key)?,
            (Encr::ChaCha20Poly1305, None) => aead_key(&aead::CHACHA20_POLY1305, encr_key)?,
            (Encr::AesCbc { bits: 128 }, Some(integ)) => Cipher::Cbc {
                key: AesKey::Aes128(Aes128::new_from_slice(encr_key).map_err(|_| CryptoError::KeyLength)?),
                mac: hmac::Key::new(integ.algorithm(), integ_key),
            },
            (Encr::AesCbc { bits: 256 }, Some(integ)) => Cipher::Cbc {
                key: AesKey::Aes256(Aes256::new_from_slice(encr_key).map_err(|_| CryptoError::KeyLength)?),
                mac: hmac::Key::new(integ.algorithm(), integ_key),
            },
            (Encr::AesGcm16 { .. } | Encr::ChaCha20Poly1305 | Encr::AesCbc { .. }, _) => {
                return Err(CryptoError::Unsupported);
            }
        };
        Ok(Self {
            suite,
            cipher: Box::new(cipher),
        })
    }

    /// The suite that this is a key of.
    #[must_use]
    pub const fn suite(&self) -> CipherSuite {
        self.suite
    }

    /// Encrypts and authenticates `buf` in place: `iv | plaintext | room for the ICV`, the plaintext padded to
    /// `block_len()` already. The IV's and the ICV's octets are overwritten.
    ///
    /// `counter` must never repeat under a key. An AEAD's IV is the counter itself (RFC 4106, section 3.1); CBC's
    /// is the counter encrypted under the key, which nobody can predict (NIST SP 800-38A, appendix C).
    ///
    /// `aad` is the associated data, for CBC what the MAC covers before `buf`. `trailer` is what CBC's MAC covers
    /// after the ciphertext: the unsent half of an extended sequence number (RFC 4303, section 2.2.1). An AEAD
    /// has that in its `aad`, and `trailer` is empty.
    ///
    /// # Errors
    /// `CryptoError::Length` when `buf` is too short or not padded, or an AEAD is given a trailer. `buf` then
    /// holds nothing that may be sent.
    pub fn seal(&self, counter: u64, aad: &[u8], trailer: &[u8], buf: &mut [u8]) -> Result<(), CryptoError> {
        let text_end = buf
            .len()
            .checked_sub(self.suite.icv_len())
            .ok_or(CryptoError::Length)?;
        match &*self.cipher {
            Cipher::Aead { key, salt } => {
                if !trailer.is_empty() {
                    return Err(CryptoError::Length);
                }
                let (sealed, icv) = buf.split_at_mut(text_end);
                let (iv, text) = sealed
                    .split_first_chunk_mut::<AEAD_IV>()
                    .ok_or(CryptoError::Length)?;
                *iv = counter.to_be_bytes();
                let tag = key
                    .seal_in_place_separate_tag(nonce(*salt, *iv), Aad::from(aad), text)
                    .map_err(|_| CryptoError::Length)?;
                icv.copy_from_slice(tag.as_ref());
            }
            Cipher::Cbc { key, mac } => {
                let (sealed, icv) = buf.split_at_mut(text_end);
                let (iv, text) = sealed
                    .split_first_chunk_mut::<BLOCK>()
                    .ok_or(CryptoError::Length)?;
                let (blocks, rest) = Array::slice_as_chunks_mut(text);
                if !rest.is_empty() {
                    return Err(CryptoError::Length);
                }
                *iv = u128::from(counter).to_be_bytes();
                key.encrypt_block(iv);
                key.encrypt_cbc(iv, blocks);
                let tag = authenticate(mac, aad, sealed, trailer);
                for (to, from) in icv.iter_mut().zip(tag.as_ref()) {
                    *to = *from;
                }
            }
        }
        Ok(())
    }

    /// Verifies `buf`, which is `iv | ciphertext | ICV`, then decrypts it in place and returns the plaintext.
    /// `aad` and `trailer` are as for [`Self::seal`].
    ///
    /// # Errors
    /// `CryptoError::Length` when `buf` cannot be a packet of this suite, `CryptoError::BadIcv` when it is not
    /// authentic. The comparison takes the same time for every wrong ICV. After an error the contents of `buf`
    /// are unspecified, and never plaintext.
    pub fn open<'a>(
        &self,
        aad: &[u8],
        trailer: &[u8],
        buf: &'a mut [u8],
    ) -> Result<&'a mut [u8], CryptoError> {
        let text_end = buf
            .len()
            .checked_sub(self.suite.icv_len())
            .ok_or(CryptoError::Length)?;
        match &*self.cipher {
            Cipher::Aead { key, salt } => {
                let (iv, sealed) = buf
                    .split_first_chunk_mut::<AEAD_IV>()
                    .ok_or(CryptoError::Length)?;
                if !trailer.is_empty() || sealed.len() < TAG {
                    return Err(CryptoError::Length);
                }
                key.open_in_place(nonce(*salt, *iv), Aad::from(aad), sealed)
                    .map_err(|_| CryptoError::BadIcv)
            }
            Cipher::Cbc { key, mac } => {
                let (sealed, icv) = buf.split_at_mut(text_end);
                if sealed.len() < BLOCK || sealed.len() % BLOCK != 0 {
                    return Err(CryptoError::Length);
                }
                let tag = authenticate(mac, aad, sealed, trailer);
                let expected = tag.as_ref().get(..icv.len()).ok_or(CryptoError::Length)?;
                if !bool::from(expected.ct_eq(icv)) {
                    return Err(CryptoError::BadIcv);
                }
                let (iv, text) = sealed
                    .split_first_chunk_mut::<BLOCK>()
                    .ok_or(CryptoError::Length)?;
                let (blocks, _) = Array::slice_as_chunks_mut(text);
                key.decrypt_cbc(iv, blocks);
                Ok(text)
            }
        }
    }
}

impl fmt::Debug for PacketKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PacketKey")
            .field("suite", &self.suite)
            .finish_non_exhaustive()
    }
}

impl Drop for PacketKey {
    /// `black_box` keeps the stores from being optimised away as dead.
    fn drop(&mut self) {
        self.cipher.wipe();
        std::hint::black_box(&self.cipher);
    }
}

impl Cipher {
    /// `ring`'s keys do not wipe themselves when dropped: they are overwritten with the schedules of known keys.
    fn wipe(&mut self) {
        match self {
            Self::Aead { key, salt } => {
                let algorithm = key.algorithm();
                let zeroes = [0; 32];
                let blank = zeroes
                    .get(..algorithm.key_len())
                    .map(|zeroes| UnboundKey::new(algorithm, zeroes));
                if let Some(Ok(blank)) = blank {
                    *key = LessSafeKey::new(blank);
                }
                *salt = [0; SALT];
            }
            Self::Cbc { mac, .. } => *mac = hmac::Key::new(mac.algorithm(), &[]),
        }
    }
}

impl AesKey {
    fn encrypt_block(&self, block: &mut [u8; BLOCK]) {
        match self {
            Self::Aes128(key) => key.encrypt_block(block.into()),
            Self::Aes256(key) => key.encrypt_block(block.into()),
        }
    }

    fn encrypt_cbc(&self, iv: &[u8; BLOCK], blocks: &mut [Array<u8, U16>]) {
        match self {
            Self::Aes128(key) => cbc::Encryptor::inner_iv_init(key, iv.into()).encrypt_blocks(blocks),
            Self::Aes256(key) => cbc::Encryptor::inner_iv_init(key, iv.into()).encrypt_blocks(blocks),
        }
    }

    fn decrypt_cbc(&self, iv: &[u8; BLOCK], blocks: &mut [Array<u8, U16>]) {
        match self {
            Self::Aes128(key) => cbc::Decryptor::inner_iv_init(key, iv.into()).decrypt_blocks(blocks),
            Self::Aes256(key) => cbc::Decryptor::inner_iv_init(key, iv.into()).decrypt_blocks(blocks),
        }
    }
}

fn aead_key(algorithm: &'static aead::Algorithm, material: &[u8]) -> Result<Cipher, CryptoError> {
    let (key, salt) = material
        .split_last_chunk::<SALT>()
        .ok_or(CryptoError::KeyLength)?;
    let key = UnboundKey::new(algorithm, key).map_err(|_| CryptoError::KeyLength)?;
    Ok(Cipher::Aead {
        key: LessSafeKey::new(key),
        salt: *salt,
    })
}

/// RFC 4106, section 4; RFC 7634, section 2.
fn nonce(salt: [u8; SALT], iv: [u8; AEAD_IV]) -> Nonce {
    let mut octets = [0; aead::NONCE_LEN];
    octets[..SALT].copy_from_slice(&salt);
    octets[SALT..].copy_from_slice(&iv);
    Nonce::assume_unique_for_key(octets)
}

fn authenticate(key: &hmac::Key, aad: &[u8], sealed: &[u8], trailer: &[u8]) -> hmac::Tag {
    let mut context = hmac::Context::with_key(key);
    context.update(aad);
    context.update(sealed);
    context.update(trailer);
    context.sign()
}

#[cfg(test)]
mod tests;
