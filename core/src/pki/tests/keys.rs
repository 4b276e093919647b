//! Signing, and what else keys do.

use rustls::SignatureScheme as TlsScheme;

use super::OpenSsl;
use crate::pki::{
    CertError, Certificate, KeyKind, PrivateKey, SignatureEncoding, SignatureScheme, load_certificates,
    load_private_key, tls, verify_signature,
};
use crate::wire::iana::HashAlgorithm;

/// A key and a self-signed certificate, made with options of `openssl genpkey`.
fn key_and_certificate(options: &str) -> (PrivateKey, Certificate) {
    let openssl = OpenSsl::new();
    openssl
        .run(&format!("genpkey {options} -out key.pem"))
        .run("req -x509 -new -key key.pem -subj /CN=test -days 36500 -out cert.pem");
    let key = load_private_key(&openssl.read("key.pem"), None).unwrap();
    let certificate = load_certificates(&openssl.read("cert.pem")).unwrap().remove(0);
    (key, certificate)
}

const KINDS: [(&str, KeyKind); 6] = [
    (
        "-algorithm RSA -pkeyopt rsa_keygen_bits:2048",
        KeyKind::Rsa { bits: 2048 },
    ),
    (
        "-algorithm RSA -pkeyopt rsa_keygen_bits:4096",
        KeyKind::Rsa { bits: 4096 },
    ),
    ("-algorithm EC -pkeyopt ec_paramgen_curve:P-256", KeyKind::EcP256),
    ("-algorithm EC -pkeyopt ec_paramgen_curve:P-384", KeyKind::EcP384),
    ("-algorithm EC -pkeyopt ec_paramgen_curve:P-521", KeyKind::EcP521),
    ("-algorithm ED25519", KeyKind::Ed25519),
];

#[test]
fn what_a_key_signs_its_certificate_verifies() {
    for (options, kind) in KINDS {
        let (key, certificate) = key_and_certificate(options);
        assert_eq!((key.kind(), certificate.key_kind()), (kind, kind));
        assert!(key.matches(&certificate));
        for scheme in SignatureScheme::ALL {
            for encoding in [SignatureEncoding::Der, SignatureEncoding::Raw] {
                let Ok(mut signature) = key.sign(scheme, b"message", encoding) else {
                    assert!(!scheme.fits(kind), "{kind} {scheme}");
                    let error = verify_signature(&certificate, scheme, b"message", &[0; 256], encoding);
                    assert_eq!(error, Err(CertError::SchemeMismatch { scheme, key: kind }));
                    continue;
                };
                assert!(scheme.fits(kind));
                let verify = |message: &[u8], signature: &[u8], encoding| {
                    verify_signature(&certificate, scheme, message, signature, encoding)
                };
                assert_eq!(
                    verify(b"message", &signature, encoding),
                    Ok(()),
                    "{kind} {scheme}"
                );
                let invalid = Err(CertError::SignatureInvalid {
                    subject: "CN=test".into(),
                });
                assert_eq!(verify(b"massage", &signature, encoding), invalid);
                assert_eq!(
                    verify(b"message", &[&signature[..], &[0]].concat(), encoding),
                    invalid
                );
                assert_eq!(verify(b"message", &signature[1..], encoding), invalid);
                assert_eq!(verify(b"message", &[], encoding), invalid);
                if matches!(kind, KeyKind::EcP256 | KeyKind::EcP384 | KeyKind::EcP521) {
                    let other = match encoding {
                        SignatureEncoding::Der => SignatureEncoding::Raw,
                        SignatureEncoding::Raw => SignatureEncoding::Der,
                    };
                    assert_eq!(verify(b"message", &signature, other), invalid);
                }
                let middle = signature.len() / 2;
                signature[middle] ^= 1;
                assert_eq!(verify(b"message", &signature, encoding), invalid);
            }
        }
    }
}

#[test]
fn openssl_verifies_what_we_sign() {
    let openssl = OpenSsl::new();
    openssl.write("message", b"message");
    for (options, kind) in KINDS {
        openssl
            .run(&format!("genpkey {options} -out key.pem"))
            .run("pkey -in key.pem -pubout -out public.pem");
        let key = load_private_key(&openssl.read("key.pem"), None).unwrap();
        for &scheme in SignatureScheme::preferred(kind) {
            openssl.write(
                "signature",
                key.sign(scheme, b"message", SignatureEncoding::Der).unwrap(),
            );
            let options = match scheme {
                SignatureScheme::RsaPssSha2_256 => {
                    "-digest sha256 -pkeyopt rsa_padding_mode:pss -pkeyopt rsa_pss_saltlen:32"
                }
                SignatureScheme::RsaPssSha2_384 => {
                    "-digest sha384 -pkeyopt rsa_padding_mode:pss -pkeyopt rsa_pss_saltlen:48"
                }
                SignatureScheme::RsaPssSha2_512 => {
                    "-digest sha512 -pkeyopt rsa_padding_mode:pss -pkeyopt rsa_pss_saltlen:64"
                }
                SignatureScheme::RsaPkcs1Sha2_256 | SignatureScheme::EcdsaSha2_256 => "-digest sha256",
                SignatureScheme::RsaPkcs1Sha2_384 | SignatureScheme::EcdsaSha2_384 => "-digest sha384",
                SignatureScheme::RsaPkcs1Sha2_512 | SignatureScheme::EcdsaSha2_512 => "-digest sha512",
                SignatureScheme::Ed25519 => "",
                SignatureScheme::RsaPkcs1Sha1 => unreachable!("never preferred"),
            };
            openssl.run(&format!(
                "pkeyutl -verify -pubin -inkey public.pem -rawin -in message -sigfile signature {options}"
            ));
        }
    }
}

#[test]
fn schemes_follow_the_key_and_the_peers_hashes() {
    const ALL: [HashAlgorithm; 5] = [
        HashAlgorithm::SHA1,
        HashAlgorithm::SHA2_256,
        HashAlgorithm::SHA2_384,
        HashAlgorithm::SHA2_512,
        HashAlgorithm::IDENTITY,
    ];
    let best = [
        SignatureScheme::RsaPssSha2_256,
        SignatureScheme::RsaPssSha2_384,
        SignatureScheme::EcdsaSha2_256,
        SignatureScheme::EcdsaSha2_384,
        SignatureScheme::EcdsaSha2_512,
        SignatureScheme::Ed25519,
    ];
    for ((options, kind), best) in KINDS.into_iter().zip(best) {
        let (key, _) = key_and_certificate(options);
        assert_eq!(key.choose_scheme(&ALL), Some(best));
        assert_eq!(key.choose_scheme(&[]), None);
        assert_eq!(
            key.choose_scheme(&[HashAlgorithm::SHA1]),
            None,
            "SHA-1 is never chosen (RFC 7427)"
        );
        for scheme in key.schemes(&ALL) {
            assert!(scheme.fits(kind) && key.sign(scheme, b"", SignatureEncoding::Der).is_ok());
        }
        let only = key.schemes(&[HashAlgorithm::SHA2_512]);
        assert!(
            only.iter().all(|scheme| scheme.hash() == HashAlgorithm::SHA2_512),
            "{only:?}"
        );
        assert_eq!(only.is_empty(), kind == KeyKind::Ed25519);
    }
}

#[test]
fn rustls_signs_with_every_kind_of_key() {
    let offered = [
        TlsScheme::RSA_PKCS1_SHA1,
        TlsScheme::RSA_PKCS1_SHA256,
        TlsScheme::RSA_PSS_SHA256,
        TlsScheme::ECDSA_NISTP256_SHA256,
        TlsScheme::ECDSA_NISTP384_SHA384,
        TlsScheme::ECDSA_NISTP521_SHA512,
        TlsScheme::ED25519,
    ];
    for (options, _) in KINDS {
        let (key, certificate) = key_and_certificate(options);
        let certified = tls::certified_key(std::slice::from_ref(&certificate), &key);
        assert_eq!(certified.cert[0].as_ref(), certificate.der());
        let signer = certified.key.choose_scheme(&offered).unwrap();
        assert!(
            certified
                .key
                .choose_scheme(&[TlsScheme::RSA_PKCS1_SHA1, TlsScheme::ED448])
                .is_none()
        );
        let signature = signer.sign(b"message").unwrap();
        let algorithms = tls::SUPPORTED_ALGORITHMS
            .mapping
            .iter()
            .find(|(scheme, _)| *scheme == signer.scheme());
        let parsed = rustls::pki_types::CertificateDer::from(certificate.der());
        let parsed = webpki::EndEntityCert::try_from(&parsed).unwrap();
        parsed
            .verify_signature(algorithms.unwrap().1[0], b"message", &signature)
            .unwrap();
        assert!(
            parsed
                .verify_signature(algorithms.unwrap().1[0], b"massage", &signature)
                .is_err()
        );
    }
}

#[test]
fn keys_are_not_printed() {
    let (key, _) = key_and_certificate("-algorithm ED25519");
    assert_eq!(format!("{key:?}"), "PrivateKey(Ed25519)");
}
