//! Files as other programs write them.

use super::OpenSsl;
use crate::crypto::Secret;
use crate::pki::der::{self, Der};
use crate::pki::{
    CertError, Certificate, KeyKind, LoadError, PrivateKey, SubjectName, load_certificates, load_pkcs12,
    load_private_key,
};
use crate::rng::Rng;

const PASSPHRASE: &str = "correct horse ✓";

fn secret(text: &str) -> Secret {
    Secret::new(text.as_bytes().to_vec())
}

/// A directory with a key of each kind and a certificate of each, and one authority above them.
fn with_keys() -> OpenSsl {
    let openssl = OpenSsl::new();
    openssl
        .write("pass", PASSPHRASE)
        .write("ext.cnf", "subjectAltName=DNS:alice.example.org,email:alice@example.org,IP:192.0.2.7,URI:urn:x,dirName:dn\n[dn]\nCN=alice\n")
        .run("genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out ca.key")
        .run("req -x509 -new -key ca.key -subj /O=Test/CN=ca -days 36500 -out ca.pem");
    for (name, options) in KINDS {
        openssl
            .run(&format!("genpkey {options} -out {name}.key"))
            .run(&format!("req -new -key {name}.key -subj /O=Test/CN={name} -out {name}.csr"))
            .run(&format!(
                "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 36500 -extfile ext.cnf -out {name}.pem"
            ));
    }
    openssl
}

const KINDS: [(&str, &str); 5] = [
    ("rsa", "-algorithm RSA -pkeyopt rsa_keygen_bits:2048"),
    ("p256", "-algorithm EC -pkeyopt ec_paramgen_curve:P-256"),
    ("p384", "-algorithm EC -pkeyopt ec_paramgen_curve:P-384"),
    ("p521", "-algorithm EC -pkeyopt ec_paramgen_curve:P-521"),
    ("ed25519", "-algorithm ED25519"),
];

fn certificate(openssl: &OpenSsl, name: &str) -> Certificate {
    load_certificates(&openssl.read(format!("{name}.pem")))
        .unwrap()
        .remove(0)
}

fn error<T>(result: Result<T, LoadError>) -> LoadError {
    result.map(|_| ()).unwrap_err()
}

#[test]
fn plain_keys_in_every_form() {
    let openssl = with_keys();
    for (name, _) in KINDS {
        let expected = certificate(&openssl, name);
        let mut forms = vec![
            format!("pkey -in {name}.key"),
            format!("pkey -in {name}.key -outform DER"),
        ];
        if name != "ed25519" {
            forms.push(format!("pkey -in {name}.key -traditional"));
            forms.push(format!("pkey -in {name}.key -traditional -outform DER"));
        }
        for form in forms {
            openssl.run(&format!("{form} -out form"));
            let octets = openssl.read("form");
            let key = load_private_key(&octets, None).unwrap_or_else(|error| panic!("{form}: {error}"));
            assert!(key.matches(&expected), "{form}");
            // A passphrase that is not needed does no harm.
            assert!(
                load_private_key(&octets, Some(&secret(PASSPHRASE))).is_ok(),
                "{form}"
            );
        }
    }
}

#[test]
fn encrypted_keys_in_every_form() {
    let openssl = with_keys();
    let check = |name: &str, form: &str| {
        openssl.run(&format!("{form} -out form"));
        let octets = openssl.read("form");
        let key = load_private_key(&octets, Some(&secret(PASSPHRASE)));
        let key = key.unwrap_or_else(|error| panic!("{form}: {error}"));
        assert!(key.matches(&certificate(&openssl, name)), "{form}");
        assert_eq!(
            error(load_private_key(&octets, None)),
            LoadError::PassphraseNeeded,
            "{form}"
        );
        for wrong in ["", "wrong", "correct horse"] {
            let result = load_private_key(&octets, Some(&secret(wrong)));
            assert_eq!(error(result), LoadError::WrongPassphrase, "{form}");
        }
    };
    for (name, _) in KINDS {
        check(name, &format!("pkcs8 -topk8 -in {name}.key -passout file:pass"));
    }
    for options in [
        "-v2 aes128",
        "-v2 aes192",
        "-v2 aes256 -outform DER",
        "-v2 des3",
        "-v2 aes-256-cbc -v2prf hmacWithSHA1",
        "-v2 aes-256-cbc -v2prf hmacWithSHA384",
        "-v2 aes-256-cbc -v2prf hmacWithSHA512 -iter 5000",
        "-scrypt",
        "-scrypt -scrypt_N 1024 -scrypt_r 4 -scrypt_p 2",
        "-v1 PBE-SHA1-3DES",
        "-v1 PBE-SHA1-2DES",
        "-v1 PBE-SHA1-RC2-128 -provider default -provider legacy",
        "-v1 PBE-SHA1-RC2-40 -provider default -provider legacy",
    ] {
        check(
            "rsa",
            &format!("pkcs8 -topk8 -in rsa.key -passout file:pass {options}"),
        );
    }
    for cipher in ["-aes128", "-aes192", "-aes256", "-des3"] {
        check(
            "rsa",
            &format!("rsa -traditional -in rsa.key {cipher} -passout file:pass"),
        );
        check("p521", &format!("ec -in p521.key {cipher} -passout file:pass"));
    }
}

#[test]
fn unknown_encryption_is_named() {
    let openssl = with_keys();
    openssl.run("pkcs8 -topk8 -in rsa.key -v1 PBE-MD5-DES -passout file:pass -provider default -provider legacy -out form");
    let result = load_private_key(&openssl.read("form"), Some(&secret(PASSPHRASE)));
    assert_eq!(
        error(result),
        LoadError::Encryption("1.2.840.113549.1.5.3".into())
    );
    openssl.run("rsa -traditional -in rsa.key -camellia256 -passout file:pass -out form");
    let result = load_private_key(&openssl.read("form"), Some(&secret(PASSPHRASE)));
    assert_eq!(error(result), LoadError::Encryption("CAMELLIA-256-CBC".into()));
}

/// A file may not make us busy for hours, or take all memory.
#[test]
fn too_much_work_is_refused() {
    let [integer, octets, oid, sequence] = [der::INTEGER, der::OCTET_STRING, der::OID, der::SEQUENCE]
        .map(|tag| move |parts: &[Vec<u8>]| der::wrap(tag, &parts.concat()));
    let key = |function: Vec<u8>, parameters: &[Vec<u8>]| {
        let pkcs5 = |last| vec![0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 5, last];
        let function = if function.is_empty() { pkcs5(12) } else { function };
        let cipher = sequence(&[
            oid(&[vec![0x60, 0x86, 0x48, 1, 0x65, 3, 4, 1, 2]]),
            octets(&[vec![0; 16]]),
        ]);
        let derivation = sequence(&[oid(&[function]), sequence(parameters)]);
        let algorithm = sequence(&[oid(&[pkcs5(13)]), sequence(&[derivation, cipher])]);
        sequence(&[algorithm, octets(&[vec![0; 32]])])
    };
    let salt = || octets(&[vec![0; 8]]);
    let scrypt = || vec![0x2b, 6, 1, 4, 1, 0xda, 0x47, 4, 11];
    let number = |number: u32| {
        integer(&[[&[0], &number.to_be_bytes()[..]]
            .concat()
            .into_iter()
            .skip_while(|&octet| octet == 0)
            .collect()])
    };
    for (name, file, expected) in [
        (
            "PBKDF2",
            key(vec![], &[salt(), number(0x7000_0000)]),
            LoadError::Encryption("1879048192 iterations".into()),
        ),
        (
            "no iteration",
            key(vec![], &[salt(), integer(&[vec![0]])]),
            LoadError::Damaged,
        ),
        (
            "much memory",
            key(scrypt(), &[salt(), number(1 << 24), number(8), number(1)]),
            LoadError::Encryption("scrypt with too large parameters".into()),
        ),
        (
            "many lanes",
            key(scrypt(), &[salt(), number(1 << 14), number(8), number(0x10_0000)]),
            LoadError::Encryption("scrypt with too large parameters".into()),
        ),
        (
            "no power of two",
            key(scrypt(), &[salt(), number(1000), number(8), number(1)]),
            LoadError::Damaged,
        ),
    ] {
        let result = load_private_key(&file, Some(&secret(PASSPHRASE)));
        assert_eq!(error(result), expected, "{name}");
    }
}

#[test]
fn pkcs12_of_every_age() {
    let openssl = with_keys();
    for (name, _) in KINDS {
        for options in [
            "",
            "-legacy",
            "-legacy -macalg sha256",
            "-certpbe PBE-SHA1-3DES -keypbe PBE-SHA1-2DES",
            "-certpbe PBE-SHA1-RC2-128 -provider default -provider legacy",
            "-certpbe AES-256-CBC -keypbe AES-128-CBC -macalg sha512",
            "-certpbe NONE",
            "-keypbe NONE -certpbe NONE",
            "-nomac",
            "-iter 1 -nomaciter",
        ] {
            if name != "rsa" && !options.is_empty() {
                continue;
            }
            openssl.run(&format!(
                "pkcs12 -export -inkey {name}.key -in {name}.pem -certfile ca.pem -name 'Alice Ünï' \
                 -passout file:pass {options} -out form"
            ));
            let octets = openssl.read("form");
            let (key, certificates) = load_pkcs12(&octets, Some(&secret(PASSPHRASE)))
                .unwrap_or_else(|error| panic!("{name} {options}: {error}"));
            assert_eq!(
                certificates,
                [certificate(&openssl, name), certificate(&openssl, "ca")],
                "{options}"
            );
            assert!(key.matches(&certificates[0]));
            assert_eq!(
                error(load_pkcs12(&octets, None)),
                LoadError::PassphraseNeeded,
                "{options}"
            );
            let result = load_pkcs12(&octets, Some(&secret("wrong")));
            assert_eq!(error(result), LoadError::WrongPassphrase, "{options}");
            assert_eq!(error(load_certificates(&octets)), LoadError::IsPkcs12);
            assert_eq!(error(load_private_key(&octets, None)), LoadError::IsPkcs12);
        }
    }
}

#[test]
fn pkcs12_without_passphrase() {
    let openssl = with_keys();
    for options in [
        "-passout pass:",
        "-legacy -passout pass:",
        "-nomac -keypbe NONE -certpbe NONE -passout pass:",
    ] {
        openssl.run(&format!(
            "pkcs12 -export -inkey p256.key -in p256.pem {options} -out form"
        ));
        let octets = openssl.read("form");
        let (_, certificates) =
            load_pkcs12(&octets, None).unwrap_or_else(|error| panic!("{options}: {error}"));
        assert_eq!(certificates, [certificate(&openssl, "p256")]);
        assert!(load_pkcs12(&octets, Some(&secret(""))).is_ok());
    }
}

#[test]
fn pkcs12_without_what_we_need() {
    let openssl = with_keys();
    openssl.run("pkcs12 -export -nokeys -in ca.pem -passout file:pass -out form");
    assert_eq!(
        error(load_pkcs12(&openssl.read("form"), Some(&secret(PASSPHRASE)))),
        LoadError::NoKey
    );
    openssl.run("pkcs12 -export -nocerts -inkey rsa.key -passout file:pass -out form");
    let result = load_pkcs12(&openssl.read("form"), Some(&secret(PASSPHRASE)));
    assert_eq!(error(result), LoadError::NoMatchingCertificate);
    let result = load_pkcs12(&openssl.read("ca.pem"), None);
    assert_eq!(error(result), LoadError::NotPkcs12);
}

/// Firefox writes BER with indefinite lengths and octet strings in pieces; here the file of `openssl` is rewritten so.
#[test]
fn pkcs12_in_ber() {
    fn streamed(der: &[u8], out: &mut Vec<u8>) {
        let mut cursor = Der::new(der);
        while let Some(value) = cursor.any() {
            match value.tag {
                0x04 => {
                    out.extend([0x24, 0x80]);
                    for piece in value.body.chunks(100) {
                        out.extend(der::wrap(0x04, piece));
                    }
                    out.extend([0, 0]);
                }
                // [0] IMPLICIT OCTET STRING
                0x80 => {
                    out.extend([0xa0, 0x80]);
                    for piece in value.body.chunks(100) {
                        out.extend(der::wrap(0x04, piece));
                    }
                    out.extend([0, 0]);
                }
                tag if tag & 0x20 != 0 => {
                    out.extend([tag, 0x80]);
                    streamed(value.body, out);
                    out.extend([0, 0]);
                }
                _ => out.extend(value.whole),
            }
        }
    }
    let openssl = with_keys();
    for options in ["", "-legacy", "-certpbe NONE -keypbe NONE"] {
        openssl.run(&format!(
            "pkcs12 -export -inkey rsa.key -in rsa.pem -passout file:pass {options} -out form"
        ));
        let mut ber = Vec::new();
        streamed(&openssl.read("form"), &mut ber);
        let (_, certificates) = load_pkcs12(&ber, Some(&secret(PASSPHRASE))).unwrap();
        assert_eq!(certificates, [certificate(&openssl, "rsa")]);
        assert_eq!(
            error(load_pkcs12(&ber, Some(&secret("wrong")))),
            LoadError::WrongPassphrase
        );
    }
}

#[test]
fn certificates_in_every_form() {
    let openssl = with_keys();
    openssl
        .run("x509 -in rsa.pem -outform DER -out rsa.der")
        .run("x509 -in rsa.pem -trustout -addtrust clientAuth -out trusted.pem");
    let expected = certificate(&openssl, "rsa");
    assert_eq!(
        load_certificates(&openssl.read("rsa.der")).unwrap(),
        std::slice::from_ref(&expected)
    );
    assert_eq!(
        load_certificates(&openssl.read("trusted.pem")).unwrap(),
        std::slice::from_ref(&expected)
    );
    let pem = String::from_utf8(openssl.read("rsa.pem")).unwrap();
    let ca = String::from_utf8(openssl.read("ca.pem")).unwrap();
    let key = String::from_utf8(openssl.read("rsa.key")).unwrap();
    let both = [expected.clone(), certificate(&openssl, "ca")];
    let body: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    for text in [
        format!("{pem}{ca}"),
        format!(
            "Bag Attributes\n  friendlyName: x: y\nsubject=O = Test\n{pem}\n\n# comment\n{key}\n{ca}trailing"
        ),
        format!("{pem}{ca}").replace('\n', "\r\n"),
        format!("\u{feff}{pem}{ca}"),
        format!(
            "{}{ca}",
            pem.lines()
                .map(|line| format!("   {line}  \n"))
                .collect::<String>()
        ),
        format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n{ca}"),
    ] {
        assert_eq!(load_certificates(text.as_bytes()).unwrap(), both, "{text}");
    }
    let latin1 = [b"name=M\xfcller\n".to_vec(), pem.clone().into_bytes()].concat();
    assert_eq!(load_certificates(&latin1).unwrap(), [expected]);
    assert!(load_private_key(format!("{pem}{ca}{key}").as_bytes(), None).is_ok());

    assert_eq!(error(load_certificates(b"")), LoadError::NotACertificate);
    assert_eq!(error(load_certificates(b"hello")), LoadError::NotACertificate);
    assert_eq!(
        error(load_certificates(key.as_bytes())),
        LoadError::NotACertificate
    );
    assert_eq!(
        error(load_certificates(pem.replace("MII", "M!I").as_bytes())),
        LoadError::Damaged
    );
    assert_eq!(
        error(load_certificates(pem.split_at(200).0.as_bytes())),
        LoadError::NotACertificate
    );
    assert_eq!(error(load_private_key(pem.as_bytes(), None)), LoadError::NotAKey);
    assert_eq!(error(load_private_key(b"", None)), LoadError::NotAKey);
    assert_eq!(
        error(load_private_key(&openssl.read("rsa.der"), None)),
        LoadError::NotAKey
    );
    assert_eq!(
        error(load_certificates(&vec![b' '; 5 << 20])),
        LoadError::TooLarge
    );
}

#[test]
fn unusable_keys_are_named() {
    let openssl = OpenSsl::new();
    for (options, expected) in [
        ("-algorithm RSA -pkeyopt rsa_keygen_bits:1024", LoadError::WeakKey),
        (
            "-algorithm RSA -pkeyopt rsa_keygen_bits:2048 -pkeyopt rsa_keygen_pubexp:3",
            LoadError::WeakKey,
        ),
        (
            "-algorithm EC -pkeyopt ec_paramgen_curve:secp256k1",
            LoadError::UnsupportedKey("1.3.132.0.10".into()),
        ),
        (
            "-algorithm ED448",
            LoadError::UnsupportedKey("1.3.101.113".into()),
        ),
        (
            "-algorithm X25519",
            LoadError::UnsupportedKey("1.3.101.110".into()),
        ),
    ] {
        openssl.run(&format!("genpkey {options} -out key.pem"));
        assert_eq!(
            error(load_private_key(&openssl.read("key.pem"), None)),
            expected,
            "{options}"
        );
    }
    let openssh = b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n";
    assert_eq!(
        error(load_private_key(openssh, None)),
        LoadError::UnsupportedKey("OPENSSH PRIVATE KEY".into())
    );
}

#[test]
fn fields_of_a_certificate() {
    let openssl = with_keys();
    let leaf = certificate(&openssl, "p384");
    let ca = certificate(&openssl, "ca");
    assert_eq!(leaf.subject_text(), "O=Test, CN=p384");
    assert_eq!(leaf.issuer_text(), "O=Test, CN=ca");
    assert_eq!(leaf.issuer_der(), ca.subject_der());
    assert_eq!(leaf.key_kind(), KeyKind::EcP384);
    assert!(ca.is_ca() && ca.is_self_issued() && !leaf.is_ca() && !leaf.is_self_issued());
    assert!(leaf.not_before() < leaf.not_after());
    let directory = crate::pki::dn_from_text("CN=alice").unwrap();
    let [
        dns,
        mail,
        address,
        SubjectName::Other,
        SubjectName::Directory(name),
    ] = leaf.subject_alt_names()
    else {
        panic!("{:?}", leaf.subject_alt_names());
    };
    assert_eq!(dns, &SubjectName::Dns("alice.example.org".into()));
    assert_eq!(mail, &SubjectName::Rfc822("alice@example.org".into()));
    assert_eq!(address, &SubjectName::Ip([192, 0, 2, 7].into()));
    assert!(crate::pki::dn_matches(name, &directory));
    openssl
        .run("x509 -in p384.pem -noout -pubkey -out spki.pem")
        .run("pkey -pubin -in spki.pem -outform DER -out spki.der");
    assert_eq!(leaf.spki_der(), openssl.read("spki.der"));
    openssl.run("dgst -sha1 -binary -out hash spki.der");
    assert_eq!(leaf.spki_sha1().as_slice(), openssl.read("hash"));
    assert_eq!(format!("{leaf:?}"), "Certificate(O=Test, CN=p384)");
    assert!(matches!(
        Certificate::from_der(&vec![0x30; 40_000]),
        Err(CertError::TooLarge { octets: 40_000 })
    ));
}

/// Octets from anywhere never make a reader panic: random ones, and good files with a few octets changed.
#[test]
fn broken_files_never_panic() {
    let openssl = with_keys();
    openssl
        .run("pkcs12 -export -inkey p256.key -in p256.pem -iter 1 -nomaciter -keypbe NONE -certpbe NONE -passout pass: -out plain.p12")
        .run("pkcs12 -export -inkey p256.key -in p256.pem -iter 1 -nomaciter -nomac -passout file:pass -out some.p12")
        .run("x509 -in rsa.pem -outform DER -out rsa.der")
        .run("pkey -in rsa.key -outform DER -out rsa.key.der")
        .run("pkcs8 -topk8 -in p256.key -iter 1 -passout file:pass -outform DER -out encrypted.der")
        .run("rsa -traditional -in rsa.key -aes128 -passout file:pass -out traditional.pem");
    let files = [
        "plain.p12",
        "some.p12",
        "rsa.der",
        "rsa.key.der",
        "encrypted.der",
        "traditional.pem",
        "rsa.pem",
    ];
    let mut samples: Vec<Vec<u8>> = files.iter().map(|name| openssl.read(name)).collect();
    samples.push(Vec::new());
    let mut rng = Rng::new([7; 32]);
    let passphrase = secret(PASSPHRASE);
    let mut read = 0_u32;
    for round in 0..4000 {
        let mut octets = samples[round % samples.len()].clone();
        if octets.is_empty() {
            octets.resize(usize::try_from(rng.below(300)).unwrap(), 0);
            rng.fill(&mut octets);
        } else {
            for _ in 0..=rng.below(3) {
                let at = usize::try_from(rng.below(octets.len() as u64)).unwrap();
                // The headers are at the start.
                let at = if rng.below(2) == 0 {
                    at.min(usize::try_from(rng.below(80)).unwrap())
                } else {
                    at
                };
                octets[at] = rng.bytes::<1>()[0];
            }
            if rng.below(8) == 0 {
                octets.truncate(usize::try_from(rng.below(octets.len() as u64)).unwrap());
            }
        }
        read += u32::from(load_certificates(&octets).is_ok());
        read += u32::from(load_private_key(&octets, Some(&passphrase)).is_ok());
        read += u32::from(load_pkcs12(&octets, Some(&passphrase)).is_ok());
        let _ = load_pkcs12(&octets, None);
        if let Ok(certificate) = Certificate::from_der(&octets) {
            let _ = (
                certificate.subject_text(),
                certificate.issuer_text(),
                certificate.spki_sha1(),
            );
            let chain = [certificate.clone()];
            let expected = crate::profile::Identity::of_certificate(&certificate);
            let _ =
                crate::pki::verify_gateway(&chain, &chain, None, &expected, None, certificate.not_before());
            let _ = crate::pki::verify_gateway(
                &chain,
                &[],
                Some(&certificate),
                &expected,
                None,
                certificate.not_before(),
            );
        }
    }
    assert!(read > 100, "the changes must leave some files readable: {read}");
}

/// A key whose file lacks the leading zeros of the scalar, as some programs write.
#[test]
fn short_scalars_are_padded() {
    let mut scalar = [0_u8; 66];
    scalar[60..].copy_from_slice(&[1, 2, 3, 4, 5, 6]);
    let whole = PrivateKey::from_ec_scalar(KeyKind::EcP521, &scalar).unwrap();
    let short = PrivateKey::from_ec_scalar(KeyKind::EcP521, &scalar[60..]).unwrap();
    let sign = |key: &PrivateKey| {
        key.sign(
            crate::pki::SignatureScheme::EcdsaSha2_512,
            b"",
            crate::pki::SignatureEncoding::Raw,
        )
        .unwrap()
    };
    assert_eq!(sign(&whole), sign(&short));
    for wrong in [&[][..], &[0; 66], &[1; 67], &[0xff; 66]] {
        assert!(PrivateKey::from_ec_scalar(KeyKind::EcP521, wrong).is_err());
    }
}
