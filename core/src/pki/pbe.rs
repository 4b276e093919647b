//! Decryption with a passphrase: PBES2 (RFC 8018), the schemes of PKCS #12 (RFC 7292, appendices B and C), and the
//! traditional PEM encryption of OpenSSL.
//!
//! These protect files at rest. The old ones protect badly, but their files exist and hold good keys.

use aes::{Aes128, Aes192, Aes256};
use cbc::cipher::{BlockCipherDecrypt, BlockModeDecrypt as _, InnerIvInit as _, KeyInit};
use des::{TdesEde2, TdesEde3};
use hmac::{Hmac, Mac as _};
use md5::Md5;
use rc2::Rc2;
use sha1::{Digest, Sha1};
use sha2::{Sha224, Sha256, Sha384, Sha512};
use zeroize::Zeroizing;

use super::der::{self, Der, Value};
use super::load::LoadError;
use super::name;

/// The most iterations that we do for a key; a file that asks for more would only keep us busy.
const MAX_ITERATIONS: u32 = 4_000_000;
/// The most memory in octets that we use for scrypt.
const MAX_SCRYPT_MEMORY: u64 = 256 << 20;

const OID_PBES2: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 5, 13];
const OID_PBKDF2: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 5, 12];
const OID_SCRYPT: &[u8] = &[0x2b, 6, 1, 4, 1, 0xda, 0x47, 4, 11];
const OID_DES_EDE3_CBC: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 3, 7];
const OID_AES128_CBC: &[u8] = &[0x60, 0x86, 0x48, 1, 0x65, 3, 4, 1, 2];
const OID_AES192_CBC: &[u8] = &[0x60, 0x86, 0x48, 1, 0x65, 3, 4, 1, 22];
const OID_AES256_CBC: &[u8] = &[0x60, 0x86, 0x48, 1, 0x65, 3, 4, 1, 42];
/// 1.2.840.113549.2, with HMAC-SHA-1 as 7 and HMAC-SHA-2 from 8 on.
const HMAC_ARC: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 2];
/// 1.2.840.113549.1.12.1, the schemes of PKCS #12.
const PKCS12_ARC: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 12, 1];

/// Decrypts `ciphertext` by an AlgorithmIdentifier, of which `algorithm` is the content.
///
/// # Errors
///
/// [`LoadError::WrongPassphrase`] when the padding comes out wrong, [`LoadError::Encryption`] for an algorithm that we do
/// not know or that asks for too much work, [`LoadError::Damaged`] for parameters that make no sense.
pub(super) fn decrypt(
    algorithm: &[u8],
    passphrase: &[u8],
    ciphertext: &[u8],
) -> Result<Zeroizing<Vec<u8>>, LoadError> {
    let mut algorithm = Der::new(algorithm);
    let oid = algorithm.expect(der::OID).ok_or(LoadError::Damaged)?.body;
    let parameters = algorithm.enter(der::SEQUENCE).ok_or(LoadError::Damaged);
    if oid == OID_PBES2 {
        return pbes2(parameters?, passphrase, ciphertext);
    }
    let Some([scheme]) = oid.strip_prefix(PKCS12_ARC) else {
        return Err(unknown(oid));
    };
    let mut parameters = parameters?;
    let salt = parameters
        .expect(der::OCTET_STRING)
        .ok_or(LoadError::Damaged)?
        .body;
    let iterations = parameters
        .expect(der::INTEGER)
        .and_then(|value| small(&value))
        .ok_or(LoadError::Damaged)?;
    let passphrase = bmp_string(passphrase);
    let derive = |purpose, length| pkcs12_key::<Sha1>(purpose, &passphrase, salt, iterations, length);
    let iv = derive(Purpose::Iv, 8)?;
    let key = |length| derive(Purpose::Key, length);
    match scheme {
        3 => cbc_decrypt::<TdesEde3>(TdesEde3::new_from_slice(&key(24)?).ok(), &iv, ciphertext),
        4 => cbc_decrypt::<TdesEde2>(TdesEde2::new_from_slice(&key(16)?).ok(), &iv, ciphertext),
        5 => cbc_decrypt::<Rc2>(Rc2::new_from_slice(&key(16)?).ok(), &iv, ciphertext),
        6 => cbc_decrypt::<Rc2>(Rc2::new_from_slice(&key(5)?).ok(), &iv, ciphertext),
        _ => Err(unknown(oid)),
    }
}

/// Decrypts a traditional PEM block: `cipher` and `iv` are those of its `DEK-Info` header.
pub(super) fn decrypt_pem(
    (cipher, iv): (&str, &str),
    passphrase: &[u8],
    ciphertext: &[u8],
) -> Result<Zeroizing<Vec<u8>>, LoadError> {
    let iv = name::from_hex(iv.trim()).ok_or(LoadError::Damaged)?;
    // OpenSSL's EVP_BytesToKey with MD5, one iteration, and the start of the initialization vector as salt.
    let salt = iv.get(..8).ok_or(LoadError::Damaged)?;
    let mut key: Zeroizing<Vec<u8>> = Zeroizing::new(Vec::with_capacity(64));
    while key.len() < 32 {
        let mut hash = Md5::new();
        hash.update(
            key.len()
                .checked_sub(16)
                .and_then(|start| key.get(start..))
                .unwrap_or_default(),
        );
        hash.update(passphrase);
        hash.update(salt);
        key.extend_from_slice(&hash.finalize());
    }
    let key = |length| key.get(..length).unwrap_or_default();
    match cipher.trim() {
        "AES-128-CBC" => cbc_decrypt::<Aes128>(Aes128::new_from_slice(key(16)).ok(), &iv, ciphertext),
        "AES-192-CBC" => cbc_decrypt::<Aes192>(Aes192::new_from_slice(key(24)).ok(), &iv, ciphertext),
        "AES-256-CBC" => cbc_decrypt::<Aes256>(Aes256::new_from_slice(key(32)).ok(), &iv, ciphertext),
        "DES-EDE3-CBC" => cbc_decrypt::<TdesEde3>(TdesEde3::new_from_slice(key(24)).ok(), &iv, ciphertext),
        other => Err(LoadError::Encryption(name::escape(other))),
    }
}

/// PBES2 (RFC 8018, section 6.2) with PBKDF2 or scrypt (RFC 7914, section 7), and AES or 3DES in CBC mode.
fn pbes2(
    mut parameters: Der<'_>,
    passphrase: &[u8],
    ciphertext: &[u8],
) -> Result<Zeroizing<Vec<u8>>, LoadError> {
    let mut derivation = parameters.enter(der::SEQUENCE).ok_or(LoadError::Damaged)?;
    let mut scheme = parameters.enter(der::SEQUENCE).ok_or(LoadError::Damaged)?;
    let cipher = scheme.expect(der::OID).ok_or(LoadError::Damaged)?.body;
    let iv = scheme
        .expect(der::OCTET_STRING)
        .ok_or_else(|| unknown(cipher))?
        .body;
    let length = match cipher {
        OID_AES128_CBC => 16,
        OID_AES192_CBC | OID_DES_EDE3_CBC => 24,
        OID_AES256_CBC => 32,
        _ => return Err(unknown(cipher)),
    };
    let mut key = Zeroizing::new(vec![0; length]);
    let function = derivation.expect(der::OID).ok_or(LoadError::Damaged)?.body;
    let parameters = derivation.enter(der::SEQUENCE).ok_or(LoadError::Damaged)?;
    match function {
        OID_PBKDF2 => derive_pbkdf2(parameters, passphrase, &mut key)?,
        OID_SCRYPT => derive_scrypt(parameters, passphrase, &mut key)?,
        _ => return Err(unknown(function)),
    }
    match cipher {
        OID_AES128_CBC => cbc_decrypt::<Aes128>(Aes128::new_from_slice(&key).ok(), iv, ciphertext),
        OID_AES192_CBC => cbc_decrypt::<Aes192>(Aes192::new_from_slice(&key).ok(), iv, ciphertext),
        OID_AES256_CBC => cbc_decrypt::<Aes256>(Aes256::new_from_slice(&key).ok(), iv, ciphertext),
        _ => cbc_decrypt::<TdesEde3>(TdesEde3::new_from_slice(&key).ok(), iv, ciphertext),
    }
}

/// `PBKDF2-params` (RFC 8018, appendix A.2).
fn derive_pbkdf2(mut parameters: Der<'_>, passphrase: &[u8], key: &mut [u8]) -> Result<(), LoadError> {
    let salt = parameters
        .expect(der::OCTET_STRING)
        .ok_or(LoadError::Damaged)?
        .body;
    let iterations = parameters
        .expect(der::INTEGER)
        .and_then(|value| small(&value))
        .ok_or(LoadError::Damaged)?;
    check_iterations(iterations)?;
    if let Some(length) = parameters.optional(der::INTEGER)
        && small(&length).and_then(|length| usize::try_from(length).ok()) != Some(key.len())
    {
        return Err(LoadError::Damaged);
    }
    let prf = match parameters.enter(der::SEQUENCE) {
        None => 7,
        Some(mut algorithm) => {
            let oid = algorithm.expect(der::OID).ok_or(LoadError::Damaged)?.body;
            match oid.strip_prefix(HMAC_ARC) {
                Some([prf]) => *prf,
                _ => return Err(unknown(oid)),
            }
        }
    };
    match prf {
        7 => pbkdf2::pbkdf2_hmac::<Sha1>(passphrase, salt, iterations, key),
        8 => pbkdf2::pbkdf2_hmac::<Sha224>(passphrase, salt, iterations, key),
        9 => pbkdf2::pbkdf2_hmac::<Sha256>(passphrase, salt, iterations, key),
        10 => pbkdf2::pbkdf2_hmac::<Sha384>(passphrase, salt, iterations, key),
        11 => pbkdf2::pbkdf2_hmac::<Sha512>(passphrase, salt, iterations, key),
        _ => return Err(unknown(&[HMAC_ARC, &[prf]].concat())),
    }
    Ok(())
}

/// `scrypt-params` (RFC 7914, section 7.1).
fn derive_scrypt(mut parameters: Der<'_>, passphrase: &[u8], key: &mut [u8]) -> Result<(), LoadError> {
    let salt = parameters
        .expect(der::OCTET_STRING)
        .ok_or(LoadError::Damaged)?
        .body;
    let mut number = || {
        parameters
            .expect(der::INTEGER)
            .and_then(|value| small(&value))
            .ok_or(LoadError::Damaged)
    };
    let (cost, block, parallel) = (number()?, number()?, number()?);
    if !cost.is_power_of_two() || cost < 2 || block == 0 || parallel == 0 {
        return Err(LoadError::Damaged);
    }
    let memory = u64::from(cost)
        .saturating_mul(u64::from(block))
        .saturating_mul(128);
    if memory > MAX_SCRYPT_MEMORY || memory.saturating_mul(u64::from(parallel)) > 16 * MAX_SCRYPT_MEMORY {
        return Err(LoadError::Encryption(
            "scrypt with too large parameters".to_owned(),
        ));
    }
    let log_cost = u8::try_from(cost.trailing_zeros()).map_err(|_| LoadError::Damaged)?;
    let parameters = scrypt::Params::new(log_cost, block, parallel).map_err(|_| LoadError::Damaged)?;
    scrypt::scrypt(passphrase, salt, &parameters, key).map_err(|_| LoadError::Damaged)
}

/// What a key of [`pkcs12_key`] is for: the diversifier of RFC 7292, appendix B.3.
#[derive(Clone, Copy)]
enum Purpose {
    Key = 1,
    Iv = 2,
    Mac = 3,
}

/// Whether the MAC of a PKCS #12 file fits `content` (RFC 7292, appendix B.1). `hash` is the content of an OID. `None` for
/// a hash that we do not know; then decryption has to show whether the passphrase is right.
pub(super) fn pkcs12_mac_fits(
    hash: &[u8],
    passphrase: &[u8],
    salt: &[u8],
    iterations: u32,
    content: &[u8],
    mac: &[u8],
) -> Result<Option<bool>, LoadError> {
    const OID_SHA1: &[u8] = &[0x2b, 0x0e, 3, 2, 0x1a];
    const SHA2_ARC: &[u8] = &[0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2];
    macro_rules! fits {
        ($hash:ty) => {{
            let length = <$hash as Digest>::output_size();
            let key = pkcs12_key::<$hash>(Purpose::Mac, passphrase, salt, iterations, length)?;
            let mut hmac = <Hmac<$hash> as KeyInit>::new_from_slice(&key).map_err(|_| LoadError::Damaged)?;
            hmac.update(content);
            Ok(Some(hmac.verify_slice(mac).is_ok()))
        }};
    }
    match (hash, hash.strip_prefix(SHA2_ARC)) {
        (OID_SHA1, _) => fits!(Sha1),
        (_, Some([1])) => fits!(Sha256),
        (_, Some([2])) => fits!(Sha384),
        (_, Some([3])) => fits!(Sha512),
        (_, Some([4])) => fits!(Sha224),
        _ => Ok(None),
    }
}

/// A passphrase as PKCS #12 wants it: UTF-16, big-endian, with a final zero (RFC 7292, appendix B.1).
pub(super) fn bmp_string(passphrase: &[u8]) -> Zeroizing<Vec<u8>> {
    let text = String::from_utf8_lossy(passphrase);
    let mut out = Zeroizing::new(Vec::with_capacity(
        passphrase.len().saturating_mul(4).saturating_add(2),
    ));
    for unit in text.encode_utf16().chain([0]) {
        out.extend_from_slice(&unit.to_be_bytes());
    }
    out
}

/// The key derivation of RFC 7292, appendix B.2. `passphrase` is a [`bmp_string`], or empty.
fn pkcs12_key<D: Digest>(
    purpose: Purpose,
    passphrase: &[u8],
    salt: &[u8],
    iterations: u32,
    length: usize,
) -> Result<Zeroizing<Vec<u8>>, LoadError> {
    check_iterations(iterations)?;
    // v: 64 for SHA-1 to SHA-256, 128 for SHA-384 and SHA-512.
    let block = if <D as Digest>::output_size() > 32 {
        128
    } else {
        64
    };
    let fill = |text: &[u8]| -> Vec<u8> {
        let whole = text.len().div_ceil(block).saturating_mul(block);
        text.iter().copied().cycle().take(whole).collect()
    };
    let mut input = Zeroizing::new([fill(salt), fill(passphrase)].concat());
    let mut out = Zeroizing::new(Vec::with_capacity(length.saturating_add(64)));
    while out.len() < length {
        let mut hash = D::new()
            .chain_update(vec![purpose as u8; block])
            .chain_update(&input[..])
            .finalize();
        for _ in 1..iterations {
            hash = D::digest(&hash);
        }
        out.extend_from_slice(&hash);
        // I_j = (I_j + B + 1) mod 2^v for every block of I, with B the hash repeated.
        let repeated: Vec<u8> = hash.iter().copied().cycle().take(block).collect();
        for chunk in input.chunks_exact_mut(block) {
            let mut carry = 1_u16;
            for (octet, add) in chunk.iter_mut().zip(&repeated).rev() {
                carry = carry
                    .saturating_add(u16::from(*octet))
                    .saturating_add(u16::from(*add));
                let [high, low] = carry.to_be_bytes();
                *octet = low;
                carry = u16::from(high);
            }
        }
    }
    out.truncate(length);
    Ok(out)
}

/// CBC decryption with the padding of PKCS #7 (RFC 5652, section 6.3).
fn cbc_decrypt<C: BlockCipherDecrypt>(
    cipher: Option<C>,
    iv: &[u8],
    ciphertext: &[u8],
) -> Result<Zeroizing<Vec<u8>>, LoadError> {
    let cipher = cipher.ok_or(LoadError::Damaged)?;
    let mut decryptor = cbc::Decryptor::inner_iv_slice_init(cipher, iv).map_err(|_| LoadError::Damaged)?;
    let block = iv.len();
    if ciphertext.is_empty() || !ciphertext.len().is_multiple_of(block) {
        return Err(LoadError::Damaged);
    }
    let mut out = Zeroizing::new(ciphertext.to_vec());
    for chunk in out.chunks_exact_mut(block) {
        decryptor.decrypt_block(chunk.try_into().map_err(|_| LoadError::Damaged)?);
    }
    let padding = usize::from(*out.last().unwrap_or(&0));
    let content = out.len().checked_sub(padding).ok_or(LoadError::WrongPassphrase)?;
    let padded = out
        .get(content..)
        .is_some_and(|tail| tail.iter().all(|&octet| usize::from(octet) == padding));
    if padding == 0 || padding > block || !padded {
        return Err(LoadError::WrongPassphrase);
    }
    out.truncate(content);
    Ok(out)
}

fn check_iterations(iterations: u32) -> Result<(), LoadError> {
    if iterations == 0 {
        return Err(LoadError::Damaged);
    }
    if iterations > MAX_ITERATIONS {
        return Err(LoadError::Encryption(format!("{iterations} iterations")));
    }
    Ok(())
}

/// A small INTEGER.
pub(super) fn small(value: &Value<'_>) -> Option<u32> {
    let octets = der::unsigned(value)?;
    (octets.len() <= 4).then(|| octets.iter().fold(0, |sum, &octet| sum << 8 | u32::from(octet)))
}

fn unknown(oid: &[u8]) -> LoadError {
    LoadError::Encryption(name::dotted(oid))
}
