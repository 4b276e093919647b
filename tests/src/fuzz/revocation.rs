//! Revocation lists and OCSP responses.

use std::sync::LazyLock;

use peregrine_core::fetch::HttpUrl;
use peregrine_core::pki::Certificate;
use peregrine_core::pki::revocation::{Subject, check_crl, check_ocsp, ocsp_request};

use super::Feed;
use crate::authority::CRL_URL;
use crate::cast::{Cast, GATEWAY};
use crate::world::BEGINNING;

static CAST: LazyLock<(Cast, Certificate, Certificate)> = LazyLock::new(|| {
    let cast = Cast::default();
    let certificate = cast.server(GATEWAY, 0x1001, &[CRL_URL]).certificate();
    let issuer = cast.authority.certificate();
    (cast, certificate, issuer)
});

/// Lists and responses that nobody signed are never believed; what the authority signed is read, whatever it is. And the
/// URLs of certificates.
pub fn revocation(data: &[u8]) {
    let (cast, certificate, issuer) = &*CAST;
    let subject = Subject { certificate, issuer };
    let mut feed = Feed(data);
    match feed.octet() % 5 {
        0 => assert!(
            check_crl(feed.0, subject, BEGINNING).is_err(),
            "a list that nobody signed"
        ),
        1 => assert!(
            check_ocsp(feed.0, subject, BEGINNING).is_err(),
            "an answer that nobody signed"
        ),
        2 => {
            let _ = check_crl(&cast.signed_list(feed.0), subject, BEGINNING);
        }
        3 => {
            let _ = check_ocsp(&cast.signed_response(feed.0), subject, BEGINNING);
        }
        _ => {
            if let Ok(url) = std::str::from_utf8(feed.0)
                .map_err(drop)
                .and_then(|text| HttpUrl::parse(text).map_err(drop))
            {
                let again = HttpUrl::parse(&url.to_string());
                assert_eq!(
                    again.as_ref(),
                    Ok(&url),
                    "what was read can be written, and reads the same again"
                );
            }
            if let Ok(certificate) = Certificate::from_der(feed.0) {
                let request = ocsp_request(Subject {
                    certificate: &certificate,
                    issuer,
                });
                assert!(!request.is_empty());
            }
        }
    }
}
