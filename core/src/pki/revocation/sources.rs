//! Where a certificate says that its status can be had: authorityInfoAccess and cRLDistributionPoints.

use crate::pki::der::{self, Der};

/// More URLs of one kind than these are not looked at.
const MAX_URLS: usize = 8;

/// `uniformResourceIdentifier` of a GeneralName.
const URI: u8 = der::context(6);
const ID_AD_OCSP: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 0x30, 1];

/// The URLs of OCSP responders in an authorityInfoAccess (RFC 5280, section 4.2.2.1).
pub(in crate::pki) fn ocsp_urls(value: &[u8]) -> Option<Vec<String>> {
    let mut list = Der::new(der::sole(value, der::SEQUENCE)?.body);
    let mut urls = Vec::new();
    while !list.is_empty() {
        let mut access = list.enter(der::SEQUENCE)?;
        let method = access.expect(der::OID)?.body;
        let location = access.any()?;
        if method == ID_AD_OCSP && location.tag == URI {
            push(&mut urls, location.body);
        }
    }
    Some(urls)
}

/// The URLs in cRLDistributionPoints (RFC 5280, section 4.2.1.13) of lists that the certificate's own issuer makes, and
/// that cover all reasons.
pub(in crate::pki) fn crl_urls(value: &[u8]) -> Option<Vec<String>> {
    let mut list = Der::new(der::sole(value, der::SEQUENCE)?.body);
    let mut urls = Vec::new();
    while !list.is_empty() {
        let mut point = list.enter(der::SEQUENCE)?;
        let name = point.optional(der::context_constructed(0));
        let reasons = point.optional(der::context(1));
        let other_issuer = point.optional(der::context_constructed(2));
        if let (Some(name), None, None) = (name, reasons, other_issuer) {
            for url in full_name(name.body)? {
                push(&mut urls, url);
            }
        }
    }
    Some(urls)
}

/// The URIs in a DistributionPointName; none of a name relative to the issuer.
pub(super) fn full_name(name: &[u8]) -> Option<Vec<&[u8]>> {
    let mut name = Der::new(name);
    let Some(mut names) = name.enter(der::context_constructed(0)) else {
        return Some(Vec::new());
    };
    let mut urls = Vec::new();
    while !names.is_empty() {
        let name = names.any()?;
        if name.tag == URI {
            urls.push(name.body);
        }
    }
    Some(urls)
}

fn push(urls: &mut Vec<String>, url: &[u8]) {
    if let (Ok(url), true) = (std::str::from_utf8(url), urls.len() < MAX_URLS)
        && url.bytes().all(|octet| octet.is_ascii_graphic())
        && !urls.iter().any(|known| known == url)
    {
        urls.push(url.to_owned());
    }
}
