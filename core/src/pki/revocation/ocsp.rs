//! What an OCSP response says of a certificate, and the request for one (RFC 6960).

use rustls_pki_types::CertificateDer;
use sha1::Sha1;
use sha2::{Digest as _, Sha256, Sha384, Sha512};

use super::crl::{Extensions, enumerated};
use super::{Status, Subject, Unusable, check_time, reason, signed};
use crate::pki::algorithms;
use crate::pki::cert::{self, Certificate, SIGNING};
use crate::pki::der::{self, Der, Value};
use crate::pki::name::dn_matches;
use crate::timer::UnixTime;

/// The largest response that is looked at, in octets.
pub const MAX_OCSP_OCTETS: usize = 64 * 1024;

/// More certificates in a response are not looked at.
const MAX_RESPONDERS: usize = 4;
/// How long an answer is believed that does not say until when it holds, in seconds: such a responder always has news
/// (RFC 6960, section 4.2.2.1).
const WITHOUT_END: u64 = 3600;

const BASIC: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 0x30, 1, 1];
const OCSP_SIGNING: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 9];
const OID_SHA1: &[u8] = &[0x2b, 0x0e, 3, 2, 0x1a];
const OID_SHA256: &[u8] = &[0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1];
const OID_SHA384: &[u8] = &[0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 2];
const OID_SHA512: &[u8] = &[0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 3];

/// A request about one certificate, unsigned, without a nonce so that responders can answer from stock (RFC 5019). The
/// hashes of the certID are SHA-1, which every responder knows; they only name the issuer.
#[must_use]
pub fn ocsp_request(subject: Subject<'_>) -> Vec<u8> {
    let Subject { certificate, issuer } = subject;
    let algorithm = der::wrap(
        der::SEQUENCE,
        &[&der::wrap(der::OID, OID_SHA1)[..], &[5, 0]].concat(),
    );
    let id = [
        algorithm,
        der::wrap(der::OCTET_STRING, &Sha1::digest(issuer.subject_der())),
        der::wrap(der::OCTET_STRING, &Sha1::digest(issuer.public_key())),
        der::wrap(der::INTEGER, certificate.serial()),
    ];
    // Request, requestList, TBSRequest, OCSPRequest.
    (0..4).fold(der::wrap(der::SEQUENCE, &id.concat()), |inner, _| {
        der::wrap(der::SEQUENCE, &inner)
    })
}

/// What `response`, an OCSPResponse in DER, says of the certificate of `subject`. The issuer has signed it, or a
/// responder with a certificate by that issuer for this purpose (RFC 6960, section 4.2.2.2).
///
/// # Errors
///
/// [`Unusable`] says why nothing in the response may be believed, or why it is not about the certificate.
pub fn check_ocsp(response: &[u8], subject: Subject<'_>, now: UnixTime) -> Result<Status, Unusable> {
    if response.len() > MAX_OCSP_OCTETS {
        return Err(Unusable::TooLarge {
            octets: response.len(),
        });
    }
    let basic = open(response)?;
    let response = Response::parse(basic).map_err(Unusable::Malformed)?;
    response.check_signature(subject.issuer, now)?;
    // From here on the issuer speaks.
    if has_critical(response.extensions)? {
        return Err(Unusable::CriticalExtension);
    }
    response.find(subject, now)
}

/// The BasicOCSPResponse in an OCSPResponse (RFC 6960, section 4.2.1).
fn open(response: &[u8]) -> Result<&[u8], Unusable> {
    const BROKEN: Unusable = Unusable::Malformed("OCSPResponse");
    let mut outer = Der::new(der::sole(response, der::SEQUENCE).ok_or(BROKEN)?.body);
    let status = outer.expect(der::ENUMERATED).ok_or(BROKEN)?;
    match enumerated(status.whole) {
        Some(0) => {}
        Some(1) => return Err(Unusable::Refused("malformedRequest")),
        Some(2) => return Err(Unusable::Refused("internalError")),
        Some(3) => return Err(Unusable::Refused("tryLater")),
        Some(5) => return Err(Unusable::Refused("sigRequired")),
        Some(6) => return Err(Unusable::Refused("unauthorized")),
        _ => return Err(BROKEN),
    }
    let wrapped = outer
        .expect(der::context_constructed(0))
        .filter(|_| outer.is_empty())
        .ok_or(BROKEN)?;
    let mut bytes = Der::new(der::sole(wrapped.body, der::SEQUENCE).ok_or(BROKEN)?.body);
    if bytes.expect(der::OID).ok_or(BROKEN)?.body != BASIC {
        return Err(Unusable::Malformed("responseType: not a basic response"));
    }
    let basic = bytes.expect(der::OCTET_STRING).filter(|_| bytes.is_empty());
    basic.map(|basic| basic.body).ok_or(BROKEN)
}

/// `BasicOCSPResponse`, not believed yet.
struct Response<'a> {
    tbs: Value<'a>,
    algorithm: Value<'a>,
    signature: Value<'a>,
    /// The content of certs.
    certificates: &'a [u8],
    responder: Responder<'a>,
    /// The content of responses.
    responses: &'a [u8],
    /// The content of responseExtensions.
    extensions: &'a [u8],
}

/// `ResponderID`.
enum Responder<'a> {
    Name(&'a [u8]),
    /// SHA-1 of the responder's public key.
    Key(&'a [u8]),
}

impl Responder<'_> {
    fn is(&self, certificate: &Certificate) -> bool {
        match self {
            Self::Name(name) => dn_matches(name, certificate.subject_der()),
            Self::Key(hash) => Sha1::digest(certificate.public_key())[..] == **hash,
        }
    }
}

impl<'a> Response<'a> {
    fn parse(octets: &'a [u8]) -> Result<Self, &'static str> {
        let whole = der::sole(octets, der::SEQUENCE).ok_or("BasicOCSPResponse")?;
        let mut outer = Der::new(whole.body);
        let tbs = outer.expect(der::SEQUENCE).ok_or("tbsResponseData")?;
        let algorithm = outer.expect(der::SEQUENCE).ok_or("signatureAlgorithm")?;
        let signature = outer.expect(der::BIT_STRING).ok_or("signature")?;
        let certificates = match outer.optional(der::context_constructed(0)) {
            Some(wrapped) => der::sole(wrapped.body, der::SEQUENCE).ok_or("certs")?.body,
            None => &[],
        };
        if !outer.is_empty() {
            return Err("BasicOCSPResponse");
        }
        let mut data = Der::new(tbs.body);
        if let Some(version) = data.optional(der::context_constructed(0))
            && der::sole(version.body, der::INTEGER).is_none_or(|version| version.body != [0])
        {
            return Err("version");
        }
        let responder = data.any().ok_or("responderID")?;
        let responder = match responder.tag {
            BY_NAME => Responder::Name(
                der::sole(responder.body, der::SEQUENCE)
                    .ok_or("responderID")?
                    .whole,
            ),
            BY_KEY => Responder::Key(
                der::sole(responder.body, der::OCTET_STRING)
                    .ok_or("responderID")?
                    .body,
            ),
            _ => return Err("responderID"),
        };
        time(data.any()).ok_or("producedAt")?;
        let responses = data.expect(der::SEQUENCE).ok_or("responses")?.body;
        let extensions = extensions(&mut data).ok_or("responseExtensions")?;
        if !data.is_empty() {
            return Err("tbsResponseData");
        }
        Ok(Self {
            tbs,
            algorithm,
            signature,
            certificates,
            responder,
            responses,
            extensions,
        })
    }

    fn check_signature(&self, issuer: &Certificate, now: UnixTime) -> Result<(), Unusable> {
        let check = |signer| signed::check(signer, self.algorithm.body, self.tbs.whole, &self.signature);
        if self.responder.is(issuer) {
            return check(issuer);
        }
        let mut list = Der::new(self.certificates);
        for _ in 0..MAX_RESPONDERS {
            let Some(der) = list.expect(der::SEQUENCE) else {
                break;
            };
            if let Ok(signer) = Certificate::from_der(der.whole)
                && self.responder.is(&signer)
            {
                check_responder(&signer, issuer, now).map_err(Unusable::Responder)?;
                return check(&signer);
            }
        }
        Err(Unusable::Responder("its certificate is not there"))
    }

    /// What is said of the certificate. Of several words, the worst counts.
    fn find(&self, subject: Subject<'_>, now: UnixTime) -> Result<Status, Unusable> {
        const BROKEN: Unusable = Unusable::Malformed("responses");
        let mut list = Der::new(self.responses);
        let mut said = Err(Unusable::OtherCertificate);
        while !list.is_empty() {
            let mut single = list.enter(der::SEQUENCE).ok_or(BROKEN)?;
            let id = single.enter(der::SEQUENCE).ok_or(BROKEN)?;
            let status = single.any().ok_or(BROKEN)?;
            let from = time(single.any()).ok_or(BROKEN)?;
            let until = match single.optional(der::context_constructed(0)) {
                Some(wrapped) => time(der::sole(wrapped.body, der::GENERALIZED_TIME)).ok_or(BROKEN)?,
                None => UnixTime(from.0.saturating_add(std::time::Duration::from_secs(WITHOUT_END))),
            };
            let extensions = extensions(&mut single)
                .filter(|_| single.is_empty())
                .ok_or(BROKEN)?;
            if !is_about(id, subject).ok_or(BROKEN)? {
                continue;
            }
            if has_critical(extensions)? {
                return Err(Unusable::CriticalExtension);
            }
            let word = check_time(from, until, now).and_then(|()| read_status(&status, until));
            match word {
                Ok(Status::Revoked { .. }) => return word,
                Ok(Status::Good { .. }) => said = said.or(word),
                Err(_) if matches!(said, Err(Unusable::OtherCertificate)) => said = word,
                Err(_) => {}
            }
        }
        said
    }
}

const BY_NAME: u8 = der::context_constructed(1);
const BY_KEY: u8 = der::context_constructed(2);

/// Whether `issuer` lets the holder of this certificate answer for it (RFC 6960, section 4.2.2.2).
fn check_responder(signer: &Certificate, issuer: &Certificate, now: UnixTime) -> Result<(), &'static str> {
    let usages = signer.extended_key_usage().unwrap_or_default();
    if !usages.iter().any(|usage| usage == OCSP_SIGNING) {
        return Err("its certificate is not for OCSP (id-kp-OCSPSigning)");
    }
    if !signer.allows_key_usage(SIGNING) {
        return Err("the key usage of its certificate does not allow signatures");
    }
    // Whether the responder itself was revoked would have to be asked of somebody, too.
    if !signer.has_ocsp_nocheck() {
        return Err("its certificate does not say that it need not be checked itself (id-pkix-ocsp-nocheck)");
    }
    let (signer, issuer) = (
        CertificateDer::from(signer.der()),
        CertificateDer::from(issuer.der()),
    );
    let now = rustls_pki_types::UnixTime::since_unix_epoch(now.0);
    let anchor =
        webpki::anchor_from_trusted_cert(&issuer).map_err(|_| "the issuer's certificate cannot be used")?;
    webpki::EndEntityCert::try_from(&signer)
        .and_then(|signer| {
            let usage = webpki::KeyUsage::required(OCSP_SIGNING);
            signer
                .verify_for_usage(algorithms::ALL, &[anchor], &[], now, usage, None, None)
                .map(|_| ())
        })
        .map_err(|_| "its certificate is not valid, or not by the issuer")
}

/// Whether a CertID, whose content this is, names the certificate.
fn is_about(mut id: Der<'_>, subject: Subject<'_>) -> Option<bool> {
    let mut algorithm = id.enter(der::SEQUENCE)?;
    let hash = algorithm.expect(der::OID)?.body;
    let name = id.expect(der::OCTET_STRING)?.body;
    let key = id.expect(der::OCTET_STRING)?.body;
    let serial = id.expect(der::INTEGER).filter(|_| id.is_empty())?.body;
    let Subject { certificate, issuer } = subject;
    let is_of = |digest: fn(&[u8]) -> Vec<u8>| {
        digest(issuer.subject_der()) == name && digest(issuer.public_key()) == key
    };
    let issuer_fits = match hash {
        OID_SHA1 => is_of(|octets| Sha1::digest(octets).to_vec()),
        OID_SHA256 => is_of(|octets| Sha256::digest(octets).to_vec()),
        OID_SHA384 => is_of(|octets| Sha384::digest(octets).to_vec()),
        OID_SHA512 => is_of(|octets| Sha512::digest(octets).to_vec()),
        _ => false,
    };
    Some(issuer_fits && serial == certificate.serial())
}

/// `CertStatus`.
fn read_status(status: &Value<'_>, until: UnixTime) -> Result<Status, Unusable> {
    const GOOD: u8 = der::context(0);
    const REVOKED: u8 = der::context_constructed(1);
    const UNKNOWN: u8 = der::context(2);
    const BROKEN: Unusable = Unusable::Malformed("certStatus");
    match (status.tag, status.body) {
        (GOOD, []) => Ok(Status::Good { until }),
        (UNKNOWN, []) => Err(Unusable::Unknown),
        (REVOKED, info) => {
            let mut info = Der::new(info);
            let since = time(info.any()).ok_or(BROKEN)?;
            let code = info.optional(der::context_constructed(0));
            Ok(Status::Revoked {
                since,
                reason: code.and_then(|code| enumerated(code.body)).and_then(reason),
            })
        }
        _ => Err(BROKEN),
    }
}

/// A GeneralizedTime.
fn time(value: Option<Value<'_>>) -> Option<UnixTime> {
    value
        .filter(|value| value.tag == der::GENERALIZED_TIME)
        .and_then(|value| cert::time(&value))
}

/// The content of the explicitly tagged `[1]` Extensions that may come next.
fn extensions<'a>(data: &mut Der<'a>) -> Option<&'a [u8]> {
    match data.optional(der::context_constructed(1)) {
        Some(wrapped) => der::sole(wrapped.body, der::SEQUENCE).map(|list| list.body),
        None => Some(&[]),
    }
}

/// Whether one of these extensions must be understood. None is.
fn has_critical(list: &[u8]) -> Result<bool, Unusable> {
    let mut critical = false;
    for extension in Extensions(Der::new(list)) {
        critical |= extension?.critical;
    }
    Ok(critical)
}
