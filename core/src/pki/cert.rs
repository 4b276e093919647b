//! An X.509 certificate: its octets, and what we need to know of its content.

use std::fmt;
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use jiff::civil::DateTime;
use sha1::{Digest as _, Sha1};

use super::der::{self, Der, Value};
use super::error::CertError;
use super::name;
use super::revocation::sources;
use crate::timer::UnixTime;

/// The largest certificate that we look at, in octets.
pub const MAX_CERTIFICATE_OCTETS: usize = 32 * 1024;

/// The most subjectAltNames that we look at.
const MAX_NAMES: usize = 1024;

/// An X.509 certificate. Cloning it is cheap.
#[derive(Clone)]
pub struct Certificate(Arc<Inner>);

struct Inner {
    der: Vec<u8>,
    serial: Range<usize>,
    issuer: Range<usize>,
    subject: Range<usize>,
    spki: Range<usize>,
    public_key: Range<usize>,
    not_before: UnixTime,
    not_after: UnixTime,
    key_kind: KeyKind,
    names: Vec<SubjectName>,
    extensions: Extensions,
}

/// What the extensions say that concerns us.
#[derive(Default)]
struct Extensions {
    version1: bool,
    ca: bool,
    key_usage: Option<u16>,
    extended: Option<Vec<Vec<u8>>>,
    /// Where the certificate's status can be had.
    ocsp_urls: Vec<String>,
    crl_urls: Vec<String>,
    ocsp_nocheck: bool,
}

/// A subjectAltName (RFC 5280, section 4.2.1.6).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SubjectName {
    /// dNSName, as written in the certificate; it may start with `*.`.
    Dns(String),
    /// iPAddress.
    Ip(IpAddr),
    /// rfc822Name.
    Rfc822(String),
    /// directoryName: a DER `Name`.
    Directory(Vec<u8>),
    /// Another kind of name, which proves no identity here.
    Other,
}

impl fmt::Display for SubjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(text) | Self::Rfc822(text) => f.write_str(&name::escape(text)),
            Self::Ip(address) => write!(f, "{address}"),
            Self::Directory(name) => f.write_str(&name::dn_text(name)),
            Self::Other => f.write_str("(a name of another kind)"),
        }
    }
}

/// The kind of a public or private key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeyKind {
    /// RSA (rsaEncryption), with the length of the modulus.
    Rsa {
        /// Bits of the modulus.
        bits: u32,
    },
    /// NIST P-256.
    EcP256,
    /// NIST P-384.
    EcP384,
    /// NIST P-521.
    EcP521,
    /// Ed25519 (RFC 8410).
    Ed25519,
    /// Anything else, which we cannot use.
    Unsupported,
}

impl fmt::Display for KeyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rsa { bits } => write!(f, "RSA {bits}"),
            Self::EcP256 => f.write_str("ECDSA P-256"),
            Self::EcP384 => f.write_str("ECDSA P-384"),
            Self::EcP521 => f.write_str("ECDSA P-521"),
            Self::Ed25519 => f.write_str("Ed25519"),
            Self::Unsupported => f.write_str("an unsupported kind"),
        }
    }
}

impl Certificate {
    /// Reads a certificate from DER.
    ///
    /// # Errors
    ///
    /// [`CertError::TooLarge`] above [`MAX_CERTIFICATE_OCTETS`], else [`CertError::Malformed`]. An unknown kind of
    /// key or an unknown extension is no error here; it is when the certificate is to be believed.
    pub fn from_der(octets: &[u8]) -> Result<Self, CertError> {
        if octets.len() > MAX_CERTIFICATE_OCTETS {
            return Err(CertError::TooLarge { octets: octets.len() });
        }
        parse(octets)
            .map(|inner| Self(Arc::new(inner)))
            .map_err(|what| CertError::Malformed {
                what: what.to_owned(),
            })
    }

    /// The whole certificate in DER.
    #[must_use]
    pub fn der(&self) -> &[u8] {
        &self.0.der
    }

    /// The subject: a DER `Name`.
    #[must_use]
    pub fn subject_der(&self) -> &[u8] {
        self.part(&self.0.subject)
    }

    /// The subject as text that is safe to show, such as `C=CH, O=Example, CN=gateway`; the first subjectAltName
    /// when the subject is empty.
    #[must_use]
    pub fn subject_text(&self) -> String {
        let text = name::dn_text(self.subject_der());
        if !text.is_empty() {
            return text;
        }
        self.0
            .names
            .first()
            .map_or_else(|| "(no name)".to_owned(), ToString::to_string)
    }

    /// The issuer: a DER `Name`.
    #[must_use]
    pub fn issuer_der(&self) -> &[u8] {
        self.part(&self.0.issuer)
    }

    /// The issuer as text that is safe to show.
    #[must_use]
    pub fn issuer_text(&self) -> String {
        name::dn_text(self.issuer_der())
    }

    /// The content octets of the serial number.
    pub(crate) fn serial(&self) -> &[u8] {
        self.part(&self.0.serial)
    }

    /// The subjectAltNames, in the order of the certificate.
    #[must_use]
    pub fn subject_alt_names(&self) -> &[SubjectName] {
        &self.0.names
    }

    /// The SubjectPublicKeyInfo in DER.
    #[must_use]
    pub fn spki_der(&self) -> &[u8] {
        self.part(&self.0.spki)
    }

    /// The SHA-1 hash of the SubjectPublicKeyInfo, as a CERTREQ payload lists authorities (RFC 7296, section 3.7).
    #[must_use]
    pub fn spki_sha1(&self) -> [u8; 20] {
        Sha1::digest(self.spki_der()).into()
    }

    /// The public key: an `RSAPublicKey` in DER, an uncompressed point, or the 32 octets of an Edwards point.
    pub(crate) fn public_key(&self) -> &[u8] {
        self.part(&self.0.public_key)
    }

    /// The kind of the public key.
    #[must_use]
    pub fn key_kind(&self) -> KeyKind {
        self.0.key_kind
    }

    /// The first second at which the certificate is valid.
    #[must_use]
    pub fn not_before(&self) -> UnixTime {
        self.0.not_before
    }

    /// The last second at which the certificate is valid.
    #[must_use]
    pub fn not_after(&self) -> UnixTime {
        self.0.not_after
    }

    /// Whether basicConstraints say that this is a certification authority.
    #[must_use]
    pub fn is_ca(&self) -> bool {
        self.0.extensions.ca
    }

    /// Whether subject and issuer are the same name.
    #[must_use]
    pub fn is_self_issued(&self) -> bool {
        self.subject_der() == self.issuer_der()
    }

    /// Whether this may vouch for others as a trust anchor: a CA that may sign certificates, or a version 1
    /// certificate, which cannot say.
    pub(crate) fn may_anchor(&self) -> bool {
        (self.is_ca() || self.0.extensions.version1) && self.allows_key_usage(KEY_CERT_SIGN)
    }

    /// Whether keyUsage is absent or has any bit of `mask`.
    pub(crate) fn allows_key_usage(&self, mask: u16) -> bool {
        self.0.extensions.key_usage.is_none_or(|bits| bits & mask != 0)
    }

    /// The content octets of the OIDs in extKeyUsage, if present.
    pub(crate) fn extended_key_usage(&self) -> Option<&[Vec<u8>]> {
        self.0.extensions.extended.as_deref()
    }

    /// The URLs of OCSP responders that the certificate names (RFC 5280, section 4.2.2.1): printable ASCII, of any scheme.
    pub(crate) fn ocsp_urls(&self) -> &[String] {
        &self.0.extensions.ocsp_urls
    }

    /// The URLs of its issuer's revocation lists that the certificate names (RFC 5280, section 4.2.1.13): printable ASCII,
    /// of any scheme.
    pub(crate) fn crl_urls(&self) -> &[String] {
        &self.0.extensions.crl_urls
    }

    /// Whether the issuer says that this certificate of an OCSP responder needs no check of its own (RFC 6960, section
    /// 4.2.2.2.1).
    pub(crate) fn has_ocsp_nocheck(&self) -> bool {
        self.0.extensions.ocsp_nocheck
    }

    fn part(&self, range: &Range<usize>) -> &[u8] {
        self.0.der.get(range.clone()).unwrap_or_default()
    }
}

impl PartialEq for Certificate {
    fn eq(&self, other: &Self) -> bool {
        self.0.der == other.0.der
    }
}

impl Eq for Certificate {}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Certificate({})", self.subject_text())
    }
}

/// The digitalSignature and nonRepudiation bits of keyUsage (RFC 5280, section 4.2.1.3), bit 0 being the highest.
pub(crate) const SIGNING: u16 = 0b1100_0000_0000_0000;
/// The keyCertSign bit of keyUsage.
pub(crate) const KEY_CERT_SIGN: u16 = 0b0000_0100_0000_0000;
/// The cRLSign bit of keyUsage.
pub(crate) const CRL_SIGN: u16 = 0b0000_0010_0000_0000;

pub(super) const OID_RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1];
pub(super) const OID_EC: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1];
const OID_P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7];
const OID_P384: &[u8] = &[0x2b, 0x81, 4, 0, 34];
const OID_P521: &[u8] = &[0x2b, 0x81, 4, 0, 35];
pub(super) const OID_ED25519: &[u8] = &[0x2b, 0x65, 0x70];
const OID_KEY_USAGE: &[u8] = &[0x55, 0x1d, 15];
const OID_SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 17];
const OID_BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 19];
const OID_EXTENDED_KEY_USAGE: &[u8] = &[0x55, 0x1d, 37];
const OID_CRL_DISTRIBUTION_POINTS: &[u8] = &[0x55, 0x1d, 31];
const OID_AUTHORITY_INFO_ACCESS: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 1, 1];
const OID_OCSP_NOCHECK: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 0x30, 1, 5];

/// `Certificate` (RFC 5280, section 4.1); the error says in which part the encoding breaks.
fn parse(octets: &[u8]) -> Result<Inner, &'static str> {
    let whole = der::sole(octets, der::SEQUENCE).ok_or("not one DER SEQUENCE")?;
    let mut outer = Der::new(whole.body);
    let mut tbs = outer.enter(der::SEQUENCE).ok_or("tbsCertificate")?;
    outer.expect(der::SEQUENCE).ok_or("signatureAlgorithm")?;
    outer
        .expect(der::BIT_STRING)
        .filter(|_| outer.is_empty())
        .ok_or("signatureValue")?;

    let version1 = tbs.optional(der::context_constructed(0)).is_none();
    let serial = tbs.expect(der::INTEGER).ok_or("serialNumber")?;
    tbs.expect(der::SEQUENCE).ok_or("signature")?;
    let issuer = tbs
        .expect(der::SEQUENCE)
        .filter(|value| name::is_well_formed(value.whole))
        .ok_or("issuer")?;
    let mut validity = tbs.enter(der::SEQUENCE).ok_or("validity")?;
    let not_before = validity.any().and_then(|value| time(&value)).ok_or("notBefore")?;
    let not_after = validity.any().and_then(|value| time(&value)).ok_or("notAfter")?;
    let subject = tbs
        .expect(der::SEQUENCE)
        .filter(|value| name::is_well_formed(value.whole))
        .ok_or("subject")?;
    let spki = tbs.expect(der::SEQUENCE).ok_or("subjectPublicKeyInfo")?;
    let (key_kind, public_key) = public_key(spki.body).ok_or("subjectPublicKeyInfo")?;
    tbs.optional(der::context(1));
    tbs.optional(der::context(2));
    let mut extensions = Extensions {
        version1,
        ..Extensions::default()
    };
    let mut names = Vec::new();
    if let Some(wrapped) = tbs.optional(der::context_constructed(3)) {
        let list = der::sole(wrapped.body, der::SEQUENCE).ok_or("extensions")?;
        parse_extensions(list.body, &mut extensions, &mut names)?;
    }
    if !tbs.is_empty() {
        return Err("tbsCertificate");
    }
    Ok(Inner {
        serial: range(octets, serial.body),
        issuer: range(octets, issuer.whole),
        subject: range(octets, subject.whole),
        spki: range(octets, spki.whole),
        public_key: range(octets, public_key),
        der: octets.to_vec(),
        not_before,
        not_after,
        key_kind,
        names,
        extensions,
    })
}

/// Where in `whole` its own subslice `part` lies.
fn range(whole: &[u8], part: &[u8]) -> Range<usize> {
    let start = part.as_ptr().addr().saturating_sub(whole.as_ptr().addr());
    start..start.saturating_add(part.len())
}

fn parse_extensions(
    list: &[u8],
    extensions: &mut Extensions,
    names: &mut Vec<SubjectName>,
) -> Result<(), &'static str> {
    let mut list = Der::new(list);
    let mut seen: Vec<&[u8]> = Vec::new();
    while !list.is_empty() {
        let mut extension = list.enter(der::SEQUENCE).ok_or("extensions")?;
        let oid = extension.expect(der::OID).ok_or("extensions")?.body;
        extension.optional(der::BOOLEAN);
        let value = extension
            .expect(der::OCTET_STRING)
            .filter(|_| extension.is_empty())
            .ok_or("extensions")?
            .body;
        // RFC 5280, section 4.2: no extension may appear twice.
        if seen.contains(&oid) {
            return Err("extensions: one appears twice");
        }
        seen.push(oid);
        match oid {
            OID_BASIC_CONSTRAINTS => extensions.ca = basic_constraints(value).ok_or("basicConstraints")?,
            OID_KEY_USAGE => extensions.key_usage = Some(key_usage(value).ok_or("keyUsage")?),
            OID_EXTENDED_KEY_USAGE => {
                extensions.extended = Some(extended_key_usage(value).ok_or("extKeyUsage")?)
            }
            OID_SUBJECT_ALT_NAME => *names = subject_alt_names(value).ok_or("subjectAltName")?,
            // What we cannot read here names nobody to ask.
            OID_AUTHORITY_INFO_ACCESS => extensions.ocsp_urls = sources::ocsp_urls(value).unwrap_or_default(),
            OID_CRL_DISTRIBUTION_POINTS => extensions.crl_urls = sources::crl_urls(value).unwrap_or_default(),
            OID_OCSP_NOCHECK => extensions.ocsp_nocheck = true,
            _ => {}
        }
    }
    Ok(())
}

fn basic_constraints(value: &[u8]) -> Option<bool> {
    let mut constraints = Der::new(der::sole(value, der::SEQUENCE)?.body);
    match constraints.optional(der::BOOLEAN).map(|value| value.body) {
        None => Some(false),
        Some([0]) => Some(false),
        Some([0xff]) => Some(true),
        Some(_) => None,
    }
}

fn key_usage(value: &[u8]) -> Option<u16> {
    let (&unused, bits) = der::sole(value, der::BIT_STRING)?.body.split_first()?;
    if unused > 7 {
        return None;
    }
    let high = u16::from(*bits.first().unwrap_or(&0));
    let low = u16::from(*bits.get(1).unwrap_or(&0));
    Some(high << 8 | low)
}

fn extended_key_usage(value: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut list = Der::new(der::sole(value, der::SEQUENCE)?.body);
    let mut usages = Vec::new();
    while !list.is_empty() {
        usages.push(list.expect(der::OID)?.body.to_vec());
    }
    (!usages.is_empty()).then_some(usages)
}

fn subject_alt_names(value: &[u8]) -> Option<Vec<SubjectName>> {
    let mut list = Der::new(der::sole(value, der::SEQUENCE)?.body);
    let mut names = Vec::new();
    while !list.is_empty() && names.len() < MAX_NAMES {
        names.push(subject_alt_name(&list.any()?));
    }
    Some(names)
}

/// One name; what does not fit its kind proves nothing and is [`SubjectName::Other`].
fn subject_alt_name(value: &Value<'_>) -> SubjectName {
    const RFC822: u8 = der::context(1);
    const DNS: u8 = der::context(2);
    const DIRECTORY: u8 = der::context_constructed(4);
    const IP: u8 = der::context(7);
    let ascii = || {
        let printable = !value.body.is_empty() && value.body.iter().all(u8::is_ascii_graphic);
        printable.then(|| String::from_utf8_lossy(value.body).into_owned())
    };
    match value.tag {
        RFC822 => ascii().map_or(SubjectName::Other, SubjectName::Rfc822),
        DNS => ascii().map_or(SubjectName::Other, SubjectName::Dns),
        DIRECTORY if name::is_well_formed(value.body) => SubjectName::Directory(value.body.to_vec()),
        IP => match (<[u8; 4]>::try_from(value.body), <[u8; 16]>::try_from(value.body)) {
            (Ok(v4), _) => SubjectName::Ip(IpAddr::from(v4)),
            (_, Ok(v6)) => SubjectName::Ip(IpAddr::from(v6)),
            _ => SubjectName::Other,
        },
        _ => SubjectName::Other,
    }
}

/// The kind of the key in the content of a SubjectPublicKeyInfo, and the key.
pub(crate) fn public_key(spki: &[u8]) -> Option<(KeyKind, &[u8])> {
    let mut spki = Der::new(spki);
    let mut algorithm = spki.enter(der::SEQUENCE)?;
    let key = spki.expect(der::BIT_STRING).filter(|_| spki.is_empty())?;
    let key = der::bit_string_octets(&key)?;
    let oid = algorithm.expect(der::OID)?.body;
    let parameters = algorithm.any();
    let named = parameters
        .filter(|value| value.tag == der::OID)
        .map(|value| value.body);
    let kind = match (oid, named) {
        (OID_RSA, None) => KeyKind::Rsa {
            bits: rsa_public(key)?.0,
        },
        (OID_EC, Some(oid)) => curve(oid),
        (OID_ED25519, None) if parameters.is_none() => KeyKind::Ed25519,
        _ => KeyKind::Unsupported,
    };
    Some((kind, key))
}

/// The kind of key on a named curve, from the content of its OID.
pub(super) fn curve(oid: &[u8]) -> KeyKind {
    match oid {
        OID_P256 => KeyKind::EcP256,
        OID_P384 => KeyKind::EcP384,
        OID_P521 => KeyKind::EcP521,
        _ => KeyKind::Unsupported,
    }
}

/// Bits of the modulus, and the exponent if it fits 64 bits, of an `RSAPublicKey` (RFC 8017, appendix A.1.1).
pub(crate) fn rsa_public(key: &[u8]) -> Option<(u32, Option<u64>)> {
    let mut key = Der::new(der::sole(key, der::SEQUENCE)?.body);
    let modulus = key.expect(der::INTEGER)?;
    let exponent = key.expect(der::INTEGER)?;
    let modulus = der::unsigned(&modulus)?;
    let exponent = der::unsigned(&exponent)?;
    let first = modulus.first()?;
    let bits = u32::try_from(modulus.len())
        .ok()?
        .checked_mul(8)?
        .checked_sub(first.leading_zeros())?;
    let exponent = (exponent.len() <= 8).then(|| {
        exponent
            .iter()
            .fold(0_u64, |sum, &octet| sum << 8 | u64::from(octet))
    });
    key.is_empty().then_some((bits, exponent))
}

/// `Time` (RFC 5280, section 4.1.2.5): UTCTime `YYMMDDHHMMSSZ` until 2049, else GeneralizedTime `YYYYMMDDHHMMSSZ`.
pub(super) fn time(value: &Value<'_>) -> Option<UnixTime> {
    let digits = value.body.strip_suffix(b"Z")?;
    let (year, rest) = match value.tag {
        der::UTC_TIME => {
            let (year, rest) = digits.split_at_checked(2)?;
            let year = decimal(year)?;
            (if year < 50 { 2000 + year } else { 1900 + year }, rest)
        }
        der::GENERALIZED_TIME => {
            let (year, rest) = digits.split_at_checked(4)?;
            (decimal(year)?, rest)
        }
        _ => return None,
    };
    let (fields, rest) = rest.as_chunks::<2>();
    let [month, day, hour, minute, second] = fields else {
        return None;
    };
    if !rest.is_empty() {
        return None;
    }
    let field = |digits: &[u8; 2]| decimal(digits).and_then(|number| i8::try_from(number).ok());
    let civil = DateTime::new(
        year,
        field(month)?,
        field(day)?,
        field(hour)?,
        field(minute)?,
        field(second)?,
        0,
    )
    .ok()?;
    // RFC 5280's "no expiry", 99991231235959Z, is beyond what a jiff timestamp holds.
    let seconds = civil
        .duration_since(DateTime::constant(1970, 1, 1, 0, 0, 0, 0))
        .as_secs();
    // Before 1970 is before any time that we are asked about.
    Some(UnixTime(Duration::from_secs(u64::try_from(seconds).unwrap_or(0))))
}

fn decimal(digits: &[u8]) -> Option<i16> {
    digits.iter().try_fold(0_i16, |sum, digit| {
        digit
            .is_ascii_digit()
            .then(|| sum.checked_mul(10)?.checked_add(i16::from(digit - b'0')))?
    })
}
