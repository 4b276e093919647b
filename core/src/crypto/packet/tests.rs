#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use hex_literal::hex;

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
    let cases: [(&[u8; 16], &[u8; 16], &[u8], &[u8]); 4] = [
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
