//! Certificates and private keys from the files that people have.

use zeroize::Zeroizing;

use super::cert::{self, Certificate, KeyKind};
use super::der::{self, Der};
use super::error::CertError;
use super::key::{KeyRejected, PrivateKey};
use super::pem::{self, Block};
use super::{pbe, pkcs12};
use crate::crypto::Secret;

/// The largest file that is looked at, in octets. Some systems keep all their authorities in one file.
const MAX_FILE: usize = 4 << 20;

/// Why a file holds nothing that we can use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// It is encrypted and no passphrase was given.
    #[error("it is encrypted: a passphrase is needed")]
    PassphraseNeeded,
    /// The passphrase does not fit.
    #[error("the passphrase is wrong")]
    WrongPassphrase,
    /// There is no certificate in it.
    #[error("it is not a certificate (PEM or DER)")]
    NotACertificate,
    /// There is no private key in it.
    #[error("it is not a private key (PEM or DER)")]
    NotAKey,
    /// It is no PKCS #12 file.
    #[error("it is not a PKCS #12 file (.p12 or .pfx)")]
    NotPkcs12,
    /// It is a PKCS #12 file where a certificate or a key in PEM or DER was expected.
    #[error("it is a PKCS #12 file: use it as `pkcs12`")]
    IsPkcs12,
    /// A PKCS #12 file holds no private key.
    #[error("it holds no private key")]
    NoKey,
    /// A PKCS #12 file holds no certificate of its private key.
    #[error("it holds no certificate of its private key")]
    NoMatchingCertificate,
    /// A certificate in it is not acceptable.
    #[error("{0}")]
    Certificate(CertError),
    /// It is encrypted in a way that we do not know: an object identifier, a name, or what is too much of it.
    #[error("its encryption is not supported ({0})")]
    Encryption(String),
    /// The key is of a kind that we do not know.
    #[error("the kind of its private key is not supported ({0})")]
    UnsupportedKey(String),
    /// RSA below 2048 bits, or with a public exponent below 65537.
    #[error("its private key is too weak: RSA needs 2048 bits and a public exponent of 65537")]
    WeakKey,
    /// It is larger than any such file.
    #[error("it is too large")]
    TooLarge,
    /// Its encoding breaks off or contradicts itself.
    #[error("it is damaged")]
    Damaged,
}

impl LoadError {
    /// [`Self::WrongPassphrase`] if this is one of `garbage`: errors that a wrong passphrase causes when the padding
    /// happens to come out right.
    pub(super) fn or_wrong_passphrase(self, garbage: &[Self]) -> Self {
        if garbage.contains(&self) {
            Self::WrongPassphrase
        } else {
            self
        }
    }
}

/// Reads certificates: any number in PEM with any text around, or one in DER.
///
/// # Errors
///
/// [`LoadError::NotACertificate`] when there is none, [`LoadError::Certificate`] when one cannot be read,
/// [`LoadError::IsPkcs12`] for a PKCS #12 file.
pub fn load_certificates(octets: &[u8]) -> Result<Vec<Certificate>, LoadError> {
    check_size(octets)?;
    if !pem::is_pem(octets) {
        if pkcs12::is_pkcs12(octets) {
            return Err(LoadError::IsPkcs12);
        }
        if der::sole(octets, der::SEQUENCE).is_none() {
            return Err(LoadError::NotACertificate);
        }
        return Certificate::from_der(octets)
            .map(|certificate| vec![certificate])
            .map_err(LoadError::Certificate);
    }
    let mut certificates = Vec::new();
    for block in pem::blocks(octets) {
        let octets = match block.label {
            "CERTIFICATE" | "X509 CERTIFICATE" => block.octets.ok_or(LoadError::Damaged)?,
            // OpenSSL's own form has its trust settings behind the certificate.
            "TRUSTED CERTIFICATE" => {
                let octets = block.octets.ok_or(LoadError::Damaged)?;
                let certificate = Der::new(&octets)
                    .expect(der::SEQUENCE)
                    .ok_or(LoadError::Damaged)?;
                Zeroizing::new(certificate.whole.to_vec())
            }
            _ => continue,
        };
        certificates.push(Certificate::from_der(&octets).map_err(LoadError::Certificate)?);
    }
    if certificates.is_empty() {
        Err(LoadError::NotACertificate)
    } else {
        Ok(certificates)
    }
}

/// Reads a private key: the first one in PEM, or DER. PKCS #8, also encrypted (PBES2 with AES or 3DES and PBKDF2 or scrypt,
/// and the schemes of PKCS #12), PKCS #1, SEC 1, and the traditional PEM encryption of OpenSSL.
///
/// # Errors
///
/// [`LoadError::PassphraseNeeded`] without a `passphrase` for an encrypted key, [`LoadError::WrongPassphrase`] for the wrong
/// one, else what is wrong with the file or the key. A passphrase for a key that is not encrypted is ignored.
pub fn load_private_key(octets: &[u8], passphrase: Option<&Secret>) -> Result<PrivateKey, LoadError> {
    check_size(octets)?;
    if !pem::is_pem(octets) {
        if pkcs12::is_pkcs12(octets) {
            return Err(LoadError::IsPkcs12);
        }
        return key_from_der(octets, passphrase);
    }
    for block in pem::blocks(octets) {
        match block.label {
            "PRIVATE KEY" | "RSA PRIVATE KEY" | "EC PRIVATE KEY" | "ENCRYPTED PRIVATE KEY" => {
                return key_from_pem(block, passphrase);
            }
            "OPENSSH PRIVATE KEY" | "DSA PRIVATE KEY" | "ANY PRIVATE KEY" => {
                return Err(LoadError::UnsupportedKey(block.label.to_owned()));
            }
            _ => {}
        }
    }
    Err(LoadError::NotAKey)
}

/// Opens a PKCS #12 file: its private key, and its certificates with the one of the key first.
///
/// # Errors
///
/// [`LoadError::PassphraseNeeded`] without a `passphrase` unless the file has none or an empty one,
/// [`LoadError::WrongPassphrase`] for the wrong one, else what is wrong with the file.
pub fn load_pkcs12(
    octets: &[u8],
    passphrase: Option<&Secret>,
) -> Result<(PrivateKey, Vec<Certificate>), LoadError> {
    check_size(octets)?;
    let contents = pkcs12::open(octets, passphrase.map(Secret::as_bytes))?;
    let mut certificates = contents
        .certificates
        .iter()
        .map(|der| Certificate::from_der(der).map_err(LoadError::Certificate))
        .collect::<Result<Vec<_>, _>>()?;
    let mut trouble = LoadError::NoKey;
    for key in &contents.keys {
        match key_from_der(key, None) {
            Err(error) => trouble = error,
            Ok(key) => match certificates
                .iter()
                .position(|certificate| key.matches(certificate))
            {
                None => trouble = LoadError::NoMatchingCertificate,
                Some(own) => {
                    let own = certificates.remove(own);
                    certificates.insert(0, own);
                    return Ok((key, certificates));
                }
            },
        }
    }
    Err(trouble)
}

fn check_size(octets: &[u8]) -> Result<(), LoadError> {
    if octets.len() > MAX_FILE {
        Err(LoadError::TooLarge)
    } else {
        Ok(())
    }
}

fn key_from_pem(block: Block<'_>, passphrase: Option<&Secret>) -> Result<PrivateKey, LoadError> {
    let octets = block.octets.ok_or(LoadError::Damaged)?;
    let Some(encryption) = block.encryption else {
        return key_from_der(&octets, passphrase);
    };
    let passphrase = passphrase.ok_or(LoadError::PassphraseNeeded)?;
    let octets = pbe::decrypt_pem(encryption, passphrase.as_bytes(), &octets)?;
    // Wrong padding escapes notice once in 256 times; garbage is no key.
    key_from_der(&octets, None)
        .map_err(|error| error.or_wrong_passphrase(&[LoadError::NotAKey, LoadError::Damaged]))
}

/// A key in any DER form, told apart by what the outer SEQUENCE starts with.
fn key_from_der(octets: &[u8], passphrase: Option<&Secret>) -> Result<PrivateKey, LoadError> {
    let whole = der::sole(octets, der::SEQUENCE).ok_or(LoadError::NotAKey)?;
    let mut parts = Der::new(whole.body);
    let first = parts.any().ok_or(LoadError::NotAKey)?;
    let second = parts.any().ok_or(LoadError::NotAKey)?;
    match (first.tag, second.tag) {
        (der::INTEGER, der::SEQUENCE) => {
            let key = parts.expect(der::OCTET_STRING).ok_or(LoadError::NotAKey)?;
            pkcs8_key(second.body, key.body)
        }
        (der::INTEGER, der::INTEGER) => PrivateKey::from_rsa_der(octets).map_err(rejected),
        (der::INTEGER, der::OCTET_STRING) => {
            let mut curve = parts
                .enter(der::context_constructed(0))
                .ok_or(LoadError::Damaged)?;
            let curve = curve
                .expect(der::OID)
                .ok_or_else(|| LoadError::UnsupportedKey("explicit curve".to_owned()))?;
            ec_key(curve.body, second.body)
        }
        (der::SEQUENCE, der::OCTET_STRING) => {
            let passphrase = passphrase.ok_or(LoadError::PassphraseNeeded)?;
            let key = pkcs12::decrypt_key(octets, passphrase.as_bytes())?;
            key_from_der(&key, None).map_err(|error| error.or_wrong_passphrase(&[LoadError::NotAKey]))
        }
        _ => Err(LoadError::NotAKey),
    }
}

/// `PrivateKeyInfo` (RFC 5958, section 2): the content of the algorithm, and the key's octets.
fn pkcs8_key(algorithm: &[u8], key: &[u8]) -> Result<PrivateKey, LoadError> {
    let mut algorithm = Der::new(algorithm);
    let oid = algorithm.expect(der::OID).ok_or(LoadError::Damaged)?.body;
    match oid {
        cert::OID_RSA => PrivateKey::from_rsa_der(key).map_err(rejected),
        cert::OID_EC => {
            let curve = algorithm.expect(der::OID);
            let curve = curve.ok_or_else(|| LoadError::UnsupportedKey("explicit curve".to_owned()))?;
            // ECPrivateKey (RFC 5915, section 3).
            let mut key = Der::new(key).enter(der::SEQUENCE).ok_or(LoadError::Damaged)?;
            key.expect(der::INTEGER).ok_or(LoadError::Damaged)?;
            ec_key(
                curve.body,
                key.expect(der::OCTET_STRING).ok_or(LoadError::Damaged)?.body,
            )
        }
        // CurvePrivateKey (RFC 8410, section 7).
        cert::OID_ED25519 => {
            let seed = der::sole(key, der::OCTET_STRING).ok_or(LoadError::Damaged)?;
            PrivateKey::from_ed25519_seed(seed.body).map_err(rejected)
        }
        _ => Err(LoadError::UnsupportedKey(super::name::dotted(oid))),
    }
}

fn ec_key(curve: &[u8], scalar: &[u8]) -> Result<PrivateKey, LoadError> {
    let kind = cert::curve(curve);
    if kind == KeyKind::Unsupported {
        return Err(LoadError::UnsupportedKey(super::name::dotted(curve)));
    }
    PrivateKey::from_ec_scalar(kind, scalar).map_err(rejected)
}

fn rejected(error: KeyRejected) -> LoadError {
    match error {
        KeyRejected::Malformed => LoadError::Damaged,
        KeyRejected::Weak => LoadError::WeakKey,
        KeyRejected::Unsupported => {
            LoadError::UnsupportedKey("RSA above 4096 bits, or of more than two primes".to_owned())
        }
    }
}
