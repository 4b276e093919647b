//! An authority, its servers and its users.

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_RSA_SHA256, SignatureAlgorithm, date_time_ymd,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

/// The name of every server.
pub(crate) const SERVER: &str = "radius.example.org";

pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

pub(crate) struct Holder {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: KeyPair,
}

impl Holder {
    pub(crate) fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.serialize_der()).into()
    }
}

fn params(name: &str, usages: &[ExtendedKeyUsagePurpose]) -> CertificateParams {
    let mut params = CertificateParams::new([name.to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = date_time_ymd(2026, 1, 1);
    params.not_after = date_time_ymd(2027, 1, 1);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = usages.to_vec();
    params
}

fn authority_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new([]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = date_time_ymd(2026, 1, 1);
    params.not_after = date_time_ymd(2027, 1, 1);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        Self(CertifiedIssuer::self_signed(authority_params(name), KeyPair::generate().unwrap()).unwrap())
    }

    pub(crate) fn below(&self, name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::signed_by(authority_params(name), key, &self.0).unwrap())
    }

    pub(crate) fn der(&self) -> CertificateDer<'static> {
        self.0.der().clone()
    }

    pub(crate) fn server(&self, key: KeyPair) -> Holder {
        self.server_with(key, |_| {})
    }

    pub(crate) fn server_with(&self, key: KeyPair, change: impl FnOnce(&mut CertificateParams)) -> Holder {
        self.issue(SERVER, ExtendedKeyUsagePurpose::ServerAuth, key, change)
    }

    pub(crate) fn user(&self, key: KeyPair) -> Holder {
        self.issue(
            "alice@example.org",
            ExtendedKeyUsagePurpose::ClientAuth,
            key,
            |_| {},
        )
    }

    pub(crate) fn issue(
        &self,
        name: &str,
        usage: ExtendedKeyUsagePurpose,
        key: KeyPair,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Holder {
        let mut params = params(name, &[usage]);
        change(&mut params);
        let certificate = params.signed_by(&key, &self.0).unwrap();
        Holder {
            chain: vec![certificate.der().clone()],
            key,
        }
    }
}

/// A key of the kind. RSA keys cannot be made here, so that there is only one.
pub(crate) fn key(kind: &'static SignatureAlgorithm) -> KeyPair {
    if kind == &PKCS_RSA_SHA256 {
        KeyPair::try_from(&include_bytes!("rsa2048.pk8")[..]).unwrap()
    } else {
        KeyPair::generate_for(kind).unwrap()
    }
}
