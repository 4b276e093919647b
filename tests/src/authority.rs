//! What the authority of the [`Cast`] says of the certificates that it has issued: revocation lists and OCSP responses.

use peregrine_core::pki::revocation::{Subject, ocsp_request};
use peregrine_core::pki::{Certificate, SignatureEncoding, SignatureScheme};
use rcgen::{
    CertificateParams, CertificateRevocationListParams, CrlDistributionPoint, CustomExtension,
    ExtendedKeyUsagePurpose, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevocationReason,
    RevokedCertParams, SanType, SerialNumber, date_time_ymd,
};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use crate::cast::{Cast, Holder};

/// Where the authority's list is.
pub const CRL_URL: &str = "http://crl.example.org/ca.crl";
/// Where its responder is.
pub const OCSP_URL: &str = "http://ocsp.example.org/";

/// What an OCSP response says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// Not revoked.
    Good,
    /// Revoked.
    Revoked,
    /// Never heard of.
    Unknown,
}

impl Cast {
    /// A certificate of the authority for a server of this name and with this number, which names where its status can be
    /// had.
    ///
    /// # Panics
    ///
    /// If the name cannot be in a certificate.
    #[must_use]
    pub fn server(&self, name: &str, serial: u64, urls: &[&str]) -> Holder {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec![]).expect("no names");
        params.subject_alt_names = vec![SanType::DnsName(name.try_into().expect("names are ASCII"))];
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.serial_number = Some(SerialNumber::from(serial));
        for url in urls {
            if *url == OCSP_URL {
                let location = tlv(0x86, url.as_bytes());
                let method = [0x06, 8, 0x2b, 6, 1, 5, 5, 7, 0x30, 1];
                let access = tlv(0x30, &tlv(0x30, &[&method[..], &location].concat()));
                let oid = [1, 3, 6, 1, 5, 5, 7, 1, 1];
                params
                    .custom_extensions
                    .push(CustomExtension::from_oid_content(&oid, access));
            } else {
                params.crl_distribution_points.push(CrlDistributionPoint {
                    uris: vec![(*url).to_owned()],
                });
            }
        }
        let der = params.signed_by(&key, &self.issuer()).expect("signed");
        Holder {
            der: der.der().to_vec(),
            key: key.serialize_der(),
        }
    }

    fn issuer(&self) -> Issuer<'static, KeyPair> {
        let key = PrivatePkcs8KeyDer::from(self.authority.key.clone());
        let key = KeyPair::try_from(&key).expect("the authority's key");
        Issuer::from_ca_cert_der(&CertificateDer::from(self.authority.der.clone()), key)
            .expect("the authority")
    }

    /// The authority's list with these numbers, valid from a day before the beginning until a day after it.
    ///
    /// # Panics
    ///
    /// They do if it cannot be signed.
    #[must_use]
    pub fn crl(&self, revoked: &[u64]) -> Vec<u8> {
        let entry = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: date_time_ymd(2026, 11, 1),
            reason_code: Some(RevocationReason::KeyCompromise),
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2026, 11, 20),
            next_update: date_time_ymd(2026, 11, 22),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: revoked.iter().map(entry).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer()).expect("signed").der().to_vec()
    }

    /// What the authority answers about a certificate, valid as the list is.
    ///
    /// # Panics
    ///
    /// They do if it cannot be signed.
    #[must_use]
    pub fn ocsp(&self, certificate: &Certificate, word: Word) -> Vec<u8> {
        let issuer = self.authority.certificate();
        let request = ocsp_request(Subject {
            certificate,
            issuer: &issuer,
        });
        // CertID is in four SEQUENCEs that are shorter than 128 octets.
        let id = &request[8..];
        let status = match word {
            Word::Good => vec![0x80, 0],
            Word::Revoked => tlv(0xa1, &tlv(0x18, b"20261101000000Z")),
            Word::Unknown => vec![0x82, 0],
        };
        let from = tlv(0x18, b"20261120000000Z");
        let until = tlv(0xa0, &tlv(0x18, b"20261122000000Z"));
        let single = tlv(0x30, &[id, &status, &from, &until].concat());
        self.signed_response(&[from, tlv(0x30, &single)].concat())
    }

    /// A response that the authority signs, whatever it says behind its name.
    ///
    /// # Panics
    ///
    /// They do if it cannot be signed, or is too long.
    #[must_use]
    pub fn signed_response(&self, said: &[u8]) -> Vec<u8> {
        let issuer = self.authority.certificate();
        let responder = tlv(0xa1, issuer.subject_der());
        let basic = self.signed(&[responder, said.to_vec()].concat());
        let kind = vec![0x06, 9, 0x2b, 6, 1, 5, 5, 7, 0x30, 1, 1];
        let bytes = tlv(0x30, &[kind, tlv(0x04, &basic)].concat());
        tlv(0x30, &[vec![0x0a, 1, 0], tlv(0xa0, &bytes)].concat())
    }

    /// A list that the authority signs, whatever it says behind its name.
    ///
    /// # Panics
    ///
    /// They do if it cannot be signed, or is too long.
    #[must_use]
    pub fn signed_list(&self, said: &[u8]) -> Vec<u8> {
        let issuer = self.authority.certificate();
        let algorithm = SignatureScheme::EcdsaSha2_256.algorithm_identifier();
        self.signed(&[&[2, 1, 1], algorithm, issuer.subject_der(), said].concat())
    }

    fn signed(&self, content: &[u8]) -> Vec<u8> {
        let data = tlv(0x30, content);
        let key = self.authority.private_key();
        let signature = key
            .sign(SignatureScheme::EcdsaSha2_256, &data, SignatureEncoding::Der)
            .expect("signed");
        let algorithm = SignatureScheme::EcdsaSha2_256.algorithm_identifier().to_vec();
        let signature = tlv(0x03, &[&[0], &signature[..]].concat());
        tlv(0x30, &[data, algorithm, signature].concat())
    }
}

fn tlv(tag: u8, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(body.len()).expect("short enough").to_be_bytes();
    let head = match body.len() {
        0..0x80 => vec![tag, len[3]],
        0x80..0x100 => vec![tag, 0x81, len[3]],
        0x100..0x1_0000 => vec![tag, 0x82, len[2], len[3]],
        _ => vec![tag, 0x84, len[0], len[1], len[2], len[3]],
    };
    [&head, body].concat()
}
