//! PKCS #12 files (RFC 7292): a private key with its certificates, behind a passphrase.

use zeroize::Zeroizing;

use super::der::{self, Der};
use super::load::LoadError;
use super::pbe;

/// The deepest nesting of a file.
const MAX_DEPTH: usize = 16;
/// The most bags that we look into.
const MAX_BAGS: usize = 256;

const OID_DATA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 7, 1];
const OID_ENCRYPTED_DATA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 7, 6];
const OID_X509_CERTIFICATE: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 22, 1];
/// 1.2.840.113549.1.12.10.1, the kinds of bags.
const BAG_ARC: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 12, 10, 1];

/// What a file holds, decrypted.
#[derive(Default)]
pub(super) struct Contents {
    /// `PrivateKeyInfo` (PKCS #8) of each key.
    pub(super) keys: Vec<Zeroizing<Vec<u8>>>,
    /// Certificates in DER, in the order of the file.
    pub(super) certificates: Vec<Vec<u8>>,
    /// How many parts of it were decrypted.
    decrypted: usize,
}

/// Files have one encrypted part or two, and a key that is encrypted once more. Each costs as much time as it likes.
const MAX_DECRYPTED: usize = 16;

impl Contents {
    /// One more part is to be decrypted.
    fn decrypt(&mut self) -> Result<(), LoadError> {
        self.decrypted += 1;
        if self.decrypted > MAX_DECRYPTED {
            return Err(LoadError::Damaged);
        }
        Ok(())
    }
}

/// Whether this could be a PKCS #12 file: `SEQUENCE { INTEGER 3, SEQUENCE ...`, in DER or BER.
pub(super) fn is_pkcs12(octets: &[u8]) -> bool {
    to_der(octets).is_some_and(|file| {
        let mut file = Der::new(&file);
        file.enter(der::SEQUENCE).is_some_and(|mut pfx| {
            pfx.expect(der::INTEGER)
                .is_some_and(|version| version.body == [3])
        })
    })
}

/// Opens a file. Without a passphrase it is tried as a file with none, or with an empty one.
pub(super) fn open(octets: &[u8], passphrase: Option<&[u8]>) -> Result<Contents, LoadError> {
    let file = to_der(octets).ok_or(LoadError::NotPkcs12)?;
    let mut pfx = Der::new(&file).enter(der::SEQUENCE).ok_or(LoadError::NotPkcs12)?;
    if pfx.expect(der::INTEGER).is_none_or(|version| version.body != [3]) {
        return Err(LoadError::NotPkcs12);
    }
    let safe = pfx
        .enter(der::SEQUENCE)
        .and_then(data)
        .ok_or(LoadError::NotPkcs12)?;
    let wrong = if passphrase.is_some() {
        LoadError::WrongPassphrase
    } else {
        LoadError::PassphraseNeeded
    };
    let passphrase = passphrase.unwrap_or_default();
    if let Some(mac) = pfx.enter(der::SEQUENCE)
        && !mac_fits(mac, passphrase, &safe)?
    {
        return Err(wrong);
    }
    let mut contents = Contents::default();
    match read_safe(&safe, passphrase, &mut contents) {
        Err(LoadError::WrongPassphrase) => Err(wrong),
        result => result.map(|()| contents),
    }
}

/// `MacData` (RFC 7292, section 4), of which this is the content.
fn mac_fits(mut mac_data: Der<'_>, passphrase: &[u8], content: &[u8]) -> Result<bool, LoadError> {
    let mut digest = mac_data.enter(der::SEQUENCE).ok_or(LoadError::Damaged)?;
    let hash = digest
        .enter(der::SEQUENCE)
        .and_then(|mut algorithm| algorithm.expect(der::OID));
    let hash = hash.ok_or(LoadError::Damaged)?.body;
    let mac = digest.expect(der::OCTET_STRING).ok_or(LoadError::Damaged)?.body;
    let salt = mac_data.expect(der::OCTET_STRING).ok_or(LoadError::Damaged)?.body;
    let iterations = match mac_data.optional(der::INTEGER) {
        Some(value) => pbe::small(&value).ok_or(LoadError::Damaged)?,
        None => 1,
    };
    let bmp = pbe::bmp_string(passphrase);
    let fits = pbe::pkcs12_mac_fits(hash, &bmp, salt, iterations, content, mac)?;
    // Some programs make an empty passphrase no octets at all, without the final zero.
    let fits_empty = passphrase.is_empty()
        && pbe::pkcs12_mac_fits(hash, &[], salt, iterations, content, mac)? == Some(true);
    Ok(fits != Some(false) || fits_empty)
}

/// The octets in a `ContentInfo` of type data, of which this is the content.
fn data(mut info: Der<'_>) -> Option<Vec<u8>> {
    if info.expect(der::OID)?.body != OID_DATA {
        return None;
    }
    let octets = info
        .enter(der::context_constructed(0))?
        .expect(der::OCTET_STRING)?;
    Some(octets.body.to_vec())
}

/// `AuthenticatedSafe`: a list of `ContentInfo`, each plain or encrypted.
fn read_safe(safe: &[u8], passphrase: &[u8], contents: &mut Contents) -> Result<(), LoadError> {
    let safe = to_der(safe).ok_or(LoadError::Damaged)?;
    let mut safe = Der::new(&safe).enter(der::SEQUENCE).ok_or(LoadError::Damaged)?;
    while !safe.is_empty() {
        let mut info = safe.enter(der::SEQUENCE).ok_or(LoadError::Damaged)?;
        let plain = data(info);
        if let Some(plain) = plain {
            read_bags(&plain, passphrase, contents, 0)?;
            continue;
        }
        if info.expect(der::OID).ok_or(LoadError::Damaged)?.body != OID_ENCRYPTED_DATA {
            // EnvelopedData is for a recipient's public key, which nobody uses in such files.
            return Err(LoadError::Encryption("a public key".to_owned()));
        }
        contents.decrypt()?;
        let decrypted = decrypt_content(info, passphrase)?;
        // Wrong padding escapes notice once in 256 times; garbage is no list of bags.
        read_bags(&decrypted, passphrase, contents, 0)
            .map_err(|error| error.or_wrong_passphrase(&[LoadError::Damaged]))?;
    }
    Ok(())
}

/// `EncryptedData` (RFC 5652, section 8).
fn decrypt_content(mut info: Der<'_>, passphrase: &[u8]) -> Result<Zeroizing<Vec<u8>>, LoadError> {
    let mut encrypted = info
        .enter(der::context_constructed(0))
        .and_then(|mut content| content.enter(der::SEQUENCE))
        .ok_or(LoadError::Damaged)?;
    encrypted.expect(der::INTEGER).ok_or(LoadError::Damaged)?;
    let mut content = encrypted.enter(der::SEQUENCE).ok_or(LoadError::Damaged)?;
    content.expect(der::OID).ok_or(LoadError::Damaged)?;
    let algorithm = content.expect(der::SEQUENCE).ok_or(LoadError::Damaged)?;
    let ciphertext = content.any().ok_or(LoadError::Damaged)?;
    // [0] IMPLICIT OCTET STRING, in pieces when the file was streamed.
    let mut whole = Vec::new();
    if ciphertext.tag == der::context(0) {
        whole.extend_from_slice(ciphertext.body);
    } else {
        let mut pieces = Der::new(ciphertext.body);
        while !pieces.is_empty() {
            whole.extend_from_slice(pieces.expect(der::OCTET_STRING).ok_or(LoadError::Damaged)?.body);
        }
    }
    pbe::decrypt(algorithm.body, passphrase, &whole)
}

/// `SafeContents`: keys, encrypted keys, certificates, and further contents inside.
fn read_bags(bags: &[u8], passphrase: &[u8], contents: &mut Contents, depth: usize) -> Result<(), LoadError> {
    if depth > MAX_DEPTH {
        return Err(LoadError::Damaged);
    }
    let bags = Zeroizing::new(to_der(bags).ok_or(LoadError::Damaged)?);
    let mut bags = Der::new(&bags).enter(der::SEQUENCE).ok_or(LoadError::Damaged)?;
    while !bags.is_empty() {
        if contents.keys.len().saturating_add(contents.certificates.len()) >= MAX_BAGS {
            return Err(LoadError::Damaged);
        }
        let mut bag = bags.enter(der::SEQUENCE).ok_or(LoadError::Damaged)?;
        let kind = bag.expect(der::OID).ok_or(LoadError::Damaged)?.body;
        let value = bag
            .expect(der::context_constructed(0))
            .ok_or(LoadError::Damaged)?
            .body;
        match kind.strip_prefix(BAG_ARC) {
            Some([1]) => contents.keys.push(Zeroizing::new(value.to_vec())),
            Some([2]) => {
                contents.decrypt()?;
                contents.keys.push(decrypt_key(value, passphrase)?);
            }
            Some([3]) => contents.certificates.extend(certificate(value)?),
            Some([6]) => read_bags(value, passphrase, contents, depth.saturating_add(1))?,
            // CRLs and secrets are of no use to us.
            _ => {}
        }
    }
    Ok(())
}

/// `EncryptedPrivateKeyInfo` (RFC 5958, section 3) to `PrivateKeyInfo`.
pub(super) fn decrypt_key(info: &[u8], passphrase: &[u8]) -> Result<Zeroizing<Vec<u8>>, LoadError> {
    let mut info = Der::new(info).enter(der::SEQUENCE).ok_or(LoadError::Damaged)?;
    let algorithm = info.expect(der::SEQUENCE).ok_or(LoadError::Damaged)?;
    let ciphertext = info.expect(der::OCTET_STRING).ok_or(LoadError::Damaged)?;
    let decrypted = pbe::decrypt(algorithm.body, passphrase, ciphertext.body)?;
    if der::sole(&decrypted, der::SEQUENCE).is_none() {
        return Err(LoadError::WrongPassphrase);
    }
    Ok(decrypted)
}

/// `CertBag`: an X.509 certificate, or `None` for another kind.
fn certificate(value: &[u8]) -> Result<Option<Vec<u8>>, LoadError> {
    let mut bag = Der::new(value).enter(der::SEQUENCE).ok_or(LoadError::Damaged)?;
    if bag.expect(der::OID).ok_or(LoadError::Damaged)?.body != OID_X509_CERTIFICATE {
        return Ok(None);
    }
    let octets = bag
        .enter(der::context_constructed(0))
        .and_then(|mut value| value.expect(der::OCTET_STRING));
    Ok(Some(octets.ok_or(LoadError::Damaged)?.body.to_vec()))
}

/// The first BER value in `octets` as DER, as far as such files need it: indefinite lengths become definite, and octet
/// strings in pieces become one. Firefox and others write such files.
fn to_der(octets: &[u8]) -> Option<Vec<u8>> {
    let mut rest = octets;
    let mut out = Vec::with_capacity(octets.len());
    value_to_der(&mut rest, &mut out, 0)?;
    Some(out)
}

fn value_to_der(rest: &mut &[u8], out: &mut Vec<u8>, depth: usize) -> Option<()> {
    const PIECES: u8 = der::OCTET_STRING | 0x20;
    if depth > MAX_DEPTH {
        return None;
    }
    let (&tag, after) = rest.split_first()?;
    if tag & 0x1f == 0x1f {
        return None;
    }
    let (&first, mut after) = after.split_first()?;
    let length = match first {
        0x80 => None,
        _ if first < 0x80 => Some(usize::from(first)),
        _ => {
            let (octets, behind) = after.split_at_checked(usize::from(first & 0x7f))?;
            after = behind;
            let length = octets.iter().try_fold(0_usize, |sum, &octet| {
                sum.checked_mul(256)?.checked_add(octet.into())
            })?;
            Some(length)
        }
    };
    if tag & 0x20 == 0 {
        let (body, behind) = after.split_at_checked(length?)?;
        *rest = behind;
        out.extend(der::wrap(tag, body));
        return Some(());
    }
    let mut body = Zeroizing::new(Vec::new());
    match length {
        Some(length) => {
            let (mut inside, behind) = after.split_at_checked(length)?;
            *rest = behind;
            while !inside.is_empty() {
                value_to_der(&mut inside, &mut body, depth.checked_add(1)?)?;
            }
        }
        None => {
            while !after.starts_with(&[0, 0]) {
                value_to_der(&mut after, &mut body, depth.checked_add(1)?)?;
            }
            *rest = after.get(2..)?;
        }
    }
    if tag == PIECES {
        let mut pieces = Der::new(&body);
        let mut whole = Zeroizing::new(Vec::new());
        while !pieces.is_empty() {
            whole.extend_from_slice(pieces.expect(der::OCTET_STRING)?.body);
        }
        out.extend(der::wrap(der::OCTET_STRING, &whole));
    } else {
        out.extend(der::wrap(tag, &body));
    }
    Some(())
}
