//! What a certificate revocation list says of a certificate (RFC 5280, sections 5 and 6.3).

use super::{Status, Subject, Unusable, check_time, reason, signed, sources};
use crate::pki::cert::{self, CRL_SIGN, Certificate};
use crate::pki::der::{self, Der, Value};
use crate::pki::name::dn_matches;
use crate::timer::UnixTime;

/// The largest list that is looked at, in octets.
pub const MAX_CRL_OCTETS: usize = 1024 * 1024;

const OID_AUTHORITY_KEY: &[u8] = &[0x55, 0x1d, 35];
const OID_DELTA: &[u8] = &[0x55, 0x1d, 27];
const OID_DISTRIBUTION_POINT: &[u8] = &[0x55, 0x1d, 28];
const OID_CERTIFICATE_ISSUER: &[u8] = &[0x55, 0x1d, 29];
const OID_REASON: &[u8] = &[0x55, 0x1d, 21];

/// What `crl`, a complete list in DER that the issuer of `subject` has signed itself, says of its certificate.
///
/// # Errors
///
/// [`Unusable`] says why nothing in the list may be believed, or why it is not about the certificate.
pub fn check_crl(crl: &[u8], subject: Subject<'_>, now: UnixTime) -> Result<Status, Unusable> {
    if crl.len() > MAX_CRL_OCTETS {
        return Err(Unusable::TooLarge { octets: crl.len() });
    }
    let list = List::parse(crl).map_err(Unusable::Malformed)?;
    let Subject { certificate, issuer } = subject;
    if !dn_matches(list.issuer.whole, issuer.subject_der()) {
        return Err(Unusable::OtherIssuer);
    }
    if !issuer.allows_key_usage(CRL_SIGN) {
        return Err(Unusable::NotAllowed);
    }
    signed::check(issuer, list.algorithm.body, list.tbs.whole, &list.signature)?;
    // From here on the issuer speaks.
    let until = list.next_update.ok_or(Unusable::Endless)?;
    check_time(list.this_update, until, now)?;
    list.check_scope(certificate)?;
    Ok(match list.find(certificate.serial())? {
        Some((since, code)) => Status::Revoked {
            since,
            reason: code.and_then(reason),
        },
        None => Status::Good { until },
    })
}

/// `CertificateList` (RFC 5280, section 5.1), not believed yet.
struct List<'a> {
    tbs: Value<'a>,
    algorithm: Value<'a>,
    signature: Value<'a>,
    issuer: Value<'a>,
    this_update: UnixTime,
    next_update: Option<UnixTime>,
    /// The content of revokedCertificates.
    revoked: &'a [u8],
    /// The content of crlExtensions.
    extensions: &'a [u8],
}

impl<'a> List<'a> {
    fn parse(octets: &'a [u8]) -> Result<Self, &'static str> {
        let whole = der::sole(octets, der::SEQUENCE).ok_or("not one DER SEQUENCE")?;
        let mut outer = Der::new(whole.body);
        let tbs = outer.expect(der::SEQUENCE).ok_or("tbsCertList")?;
        let algorithm = outer.expect(der::SEQUENCE).ok_or("signatureAlgorithm")?;
        let signature = outer
            .expect(der::BIT_STRING)
            .filter(|_| outer.is_empty())
            .ok_or("signatureValue")?;

        let mut list = Der::new(tbs.body);
        if list
            .optional(der::INTEGER)
            .is_some_and(|version| version.body != [1])
        {
            return Err("version");
        }
        let inner = list.expect(der::SEQUENCE).ok_or("signature")?;
        if inner.body != algorithm.body {
            return Err("signature: two algorithms");
        }
        let issuer = list.expect(der::SEQUENCE).ok_or("issuer")?;
        let this_update = list
            .any()
            .and_then(|value| cert::time(&value))
            .ok_or("thisUpdate")?;
        let next_update = list
            .optional(der::UTC_TIME)
            .or_else(|| list.optional(der::GENERALIZED_TIME))
            .map(|value| cert::time(&value).ok_or("nextUpdate"))
            .transpose()?;
        let revoked = list.optional(der::SEQUENCE).map_or(&[][..], |value| value.body);
        let extensions = match list.optional(der::context_constructed(0)) {
            Some(wrapped) => {
                der::sole(wrapped.body, der::SEQUENCE)
                    .ok_or("crlExtensions")?
                    .body
            }
            None => &[],
        };
        if !list.is_empty() {
            return Err("tbsCertList");
        }
        Ok(Self {
            tbs,
            algorithm,
            signature,
            issuer,
            this_update,
            next_update,
            revoked,
            extensions,
        })
    }

    /// Whether the list covers the certificate, for all reasons (RFC 5280, section 6.3.3, step b).
    fn check_scope(&self, certificate: &Certificate) -> Result<(), Unusable> {
        for extension in Extensions(Der::new(self.extensions)) {
            let extension = extension?;
            match extension.oid {
                OID_DELTA => return Err(Unusable::Partial("a delta of another list")),
                OID_DISTRIBUTION_POINT => check_distribution_point(extension.value, certificate)?,
                OID_AUTHORITY_KEY => {}
                _ if extension.critical => return Err(Unusable::CriticalExtension),
                _ => {}
            }
        }
        Ok(())
    }

    /// The entry for a serial number: since when, and the CRLReason. All entries are looked at: one that we do not
    /// understand could change what the others mean (RFC 5280, section 5.3).
    fn find(&self, serial: &[u8]) -> Result<Option<(UnixTime, Option<u8>)>, Unusable> {
        const BROKEN: Unusable = Unusable::Malformed("revokedCertificates");
        let mut entries = Der::new(self.revoked);
        let mut found = None;
        while !entries.is_empty() {
            let mut entry = entries.enter(der::SEQUENCE).ok_or(BROKEN)?;
            let number = entry.expect(der::INTEGER).ok_or(BROKEN)?.body;
            let since = entry.any().ok_or(BROKEN)?;
            let mut code = None;
            if let Some(extensions) = entry.optional(der::SEQUENCE) {
                for extension in Extensions(Der::new(extensions.body)) {
                    let extension = extension?;
                    match extension.oid {
                        OID_REASON => code = enumerated(extension.value),
                        OID_CERTIFICATE_ISSUER => return Err(Unusable::Partial("an indirect list")),
                        _ if extension.critical => return Err(Unusable::CriticalExtension),
                        _ => {}
                    }
                }
            }
            if !entry.is_empty() {
                return Err(BROKEN);
            }
            if number == serial && found.is_none() {
                found = Some((cert::time(&since).ok_or(BROKEN)?, code));
            }
        }
        Ok(found)
    }
}

/// `IssuingDistributionPoint` (RFC 5280, section 5.2.5).
fn check_distribution_point(value: &[u8], certificate: &Certificate) -> Result<(), Unusable> {
    const BROKEN: Unusable = Unusable::Malformed("issuingDistributionPoint");
    let mut point = Der::new(der::sole(value, der::SEQUENCE).ok_or(BROKEN)?.body);
    let name = point.optional(der::context_constructed(0));
    let mut flag = |number| match point.optional(der::context(number)).map(|value| value.body) {
        None | Some([0]) => Ok(false),
        Some([0xff]) => Ok(true),
        Some(_) => Err(BROKEN),
    };
    let (users_only, authorities_only) = (flag(1)?, flag(2)?);
    let some_reasons = point.optional(der::context(3)).is_some();
    let mut flag = |number| match point.optional(der::context(number)).map(|value| value.body) {
        None | Some([0]) => Ok(false),
        Some([0xff]) => Ok(true),
        Some(_) => Err(BROKEN),
    };
    let (indirect, attributes_only) = (flag(4)?, flag(5)?);
    if !point.is_empty() {
        return Err(BROKEN);
    }
    if indirect {
        return Err(Unusable::Partial("an indirect list"));
    }
    if some_reasons {
        return Err(Unusable::Partial("a list of some reasons only"));
    }
    if attributes_only || users_only && certificate.is_ca() || authorities_only && !certificate.is_ca() {
        return Err(Unusable::OutOfScope);
    }
    if let Some(name) = name {
        let urls = sources::full_name(name.body).ok_or(BROKEN)?;
        let is_named = |url: &&[u8]| {
            certificate
                .crl_urls()
                .iter()
                .any(|known| known.as_bytes() == *url)
        };
        if !urls.iter().any(is_named) {
            return Err(Unusable::OutOfScope);
        }
    }
    Ok(())
}

/// The value of an ENUMERATED of one octet.
pub(super) fn enumerated(octets: &[u8]) -> Option<u8> {
    match der::sole(octets, der::ENUMERATED)?.body {
        [code] => Some(*code),
        _ => None,
    }
}

/// One of a list of extensions.
pub(super) struct Extension<'a> {
    pub(super) oid: &'a [u8],
    pub(super) critical: bool,
    pub(super) value: &'a [u8],
}

/// The extensions in the content of `Extensions`; after an error there are none any more.
pub(super) struct Extensions<'a>(pub(super) Der<'a>);

impl<'a> Iterator for Extensions<'a> {
    type Item = Result<Extension<'a>, Unusable>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let extension = extension(&mut self.0);
        if extension.is_none() {
            self.0 = Der::new(&[]);
        }
        Some(extension.ok_or(Unusable::Malformed("extensions")))
    }
}

fn extension<'a>(list: &mut Der<'a>) -> Option<Extension<'a>> {
    let mut extension = list.enter(der::SEQUENCE)?;
    let oid = extension.expect(der::OID)?.body;
    let critical = match extension.optional(der::BOOLEAN).map(|value| value.body) {
        None | Some([0]) => false,
        Some([0xff]) => true,
        Some(_) => return None,
    };
    let value = extension.expect(der::OCTET_STRING)?.body;
    extension.is_empty().then_some(Extension { oid, critical, value })
}
