//! Whether a certificate was revoked: certificate revocation lists (RFC 5280, section 6.3) and OCSP (RFC 6960).
//!
//! | module | its one job |
//! |---|---|
//! | `sources` | where a certificate says that its status can be had |
//! | `signed` | the signature of a list or an answer |
//! | `crl` | what a certificate revocation list says of a certificate |
//! | `ocsp` | what an OCSP response says of a certificate, and the request for one |
//! | `cache` | what is known already |
//! | `check` | find out for all certificates of a path, asking the host for what is not known |

mod cache;
mod check;
mod crl;
mod ocsp;
mod signed;
pub(super) mod sources;

use std::time::Duration;

use super::cert::Certificate;
use crate::timer::UnixTime;

pub(crate) use cache::Cache;
pub(crate) use check::{Check, Evidence, Means, NotRevoked};
pub use crl::{MAX_CRL_OCTETS, check_crl};
pub use ocsp::{MAX_OCSP_OCTETS, check_ocsp, ocsp_request};

/// Clocks may differ by so much.
const SKEW: Duration = Duration::from_secs(300);

/// Certificate and issuer: what a status is about.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// The certificate.
    pub certificate: &'a Certificate,
    /// The one above it in a path that leads to an anchor.
    pub issuer: &'a Certificate,
}

/// What a valid list or answer says of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It is not revoked, which may be believed until then.
    Good {
        /// The end of the statement's validity.
        until: UnixTime,
    },
    /// It is revoked.
    Revoked {
        /// Since when.
        since: UnixTime,
        /// Why, in the CRLReason's words (RFC 5280, section 5.3.1).
        reason: Option<&'static str>,
    },
}

/// Why a list or an answer says nothing that can be believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unusable {
    /// It is larger than what we look at.
    #[error("it has {octets} octets, which is too much")]
    TooLarge {
        /// Its size in octets.
        octets: usize,
    },
    /// The octets are not what they should be.
    #[error("it is malformed: {0}")]
    Malformed(&'static str),
    /// It was made in the future.
    #[error("it is not valid yet")]
    NotYetValid,
    /// Its time is over.
    #[error("it is out of date since {0}")]
    Expired(UnixTime),
    /// It does not say until when it holds, which a list must.
    #[error("it does not say until when it holds")]
    Endless,
    /// Another authority than the certificate's has made it.
    #[error("it is by another issuer")]
    OtherIssuer,
    /// The issuer's certificate does not let it sign lists.
    #[error("its issuer may not sign revocation lists")]
    NotAllowed,
    /// The signature is wrong.
    #[error("its signature is wrong")]
    Signature,
    /// The signature is of a kind that is not accepted, such as SHA-1.
    #[error("its signature is of a kind that is not accepted")]
    Algorithm,
    /// A part that must be understood is not.
    #[error("it has an unknown critical extension")]
    CriticalExtension,
    /// It is a delta, an indirect list, or one of some reasons only.
    #[error("it is {0}, which is not supported")]
    Partial(&'static str),
    /// It is a list for other certificates of the issuer.
    #[error("it does not cover this certificate")]
    OutOfScope,
    /// The responder has no answer, in the words of RFC 6960, section 4.2.1.
    #[error("the responder says {0}")]
    Refused(&'static str),
    /// The responder does not know the certificate.
    #[error("the responder does not know the certificate")]
    Unknown,
    /// The answer is about other certificates.
    #[error("it is about another certificate")]
    OtherCertificate,
    /// Neither the issuer nor a responder of its choice has signed it; the text says what is wrong with the responder.
    #[error("its signer may not answer for the issuer: {0}")]
    Responder(&'static str),
}

/// The words for a CRLReason (RFC 5280, section 5.3.1).
const fn reason(code: u8) -> Option<&'static str> {
    Some(match code {
        1 => "key compromise",
        2 => "CA compromise",
        3 => "affiliation changed",
        4 => "superseded",
        5 => "cessation of operation",
        6 => "certificate hold",
        8 => "removed from the list",
        9 => "privilege withdrawn",
        10 => "AA compromise",
        _ => return None,
    })
}

/// Whether something made at `from` and good until `until` is good now.
fn check_time(from: UnixTime, until: UnixTime, now: UnixTime) -> Result<(), Unusable> {
    if from.0 > now.0.saturating_add(SKEW) {
        return Err(Unusable::NotYetValid);
    }
    if until.0.saturating_add(SKEW) < now.0 {
        return Err(Unusable::Expired(until));
    }
    Ok(())
}
