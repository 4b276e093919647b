//! Published vectors, both ways between ourselves, and public values that must not be accepted.

use hex_literal::hex;

use super::*;
use crate::crypto::{constant_time_eq, sha2_256};

/// The methods where both sides do the same.
const METHODS: [KeMethod; 11] = [
    KeMethod::CURVE25519,
    KeMethod::ECP_256,
    KeMethod::ECP_384,
    KeMethod::ECP_521,
    KeMethod::MODP_1024,
    KeMethod::MODP_1536,
    KeMethod::MODP_2048,
    KeMethod::MODP_3072,
    KeMethod::MODP_4096,
    KeMethod::MODP_6144,
    KeMethod::MODP_8192,
];

const KEMS: [KeMethod; 3] = [KeMethod::ML_KEM_512, KeMethod::ML_KEM_768, KeMethod::ML_KEM_1024];

fn exchange(method: KeMethod, private: &[u8]) -> KeyExchange {
    KeyExchange::from_private(method, Secret::from_slice(private)).unwrap()
}

/// An exchange that offers `peer` to itself, without using itself up.
fn agree(ours: &KeyExchange, peer: &[u8]) -> Result<Secret, CryptoError> {
    KeyExchange {
        group: ours.group,
        private: ours.private.clone(),
        public: ours.public.clone(),
    }
    .agree(peer)
}

/// Both halves of a vector: the publics that belong to the privates, and the secret from either side.
fn check(method: KeMethod, privates: [&[u8]; 2], publics: [&[u8]; 2], shared: &[u8]) {
    let [initiator, responder] = privates.map(|private| exchange(method, private));
    assert_eq!(initiator.public(), publics[0], "{method}");
    assert_eq!(responder.public(), publics[1], "{method}");
    assert_eq!(
        initiator.agree(publics[1]).unwrap().as_bytes(),
        shared,
        "{method}"
    );
    assert_eq!(
        responder.agree(publics[0]).unwrap().as_bytes(),
        shared,
        "{method}"
    );
}

/// RFC 5903, section 8.1.
#[test]
fn ecp_256_of_rfc_5903() {
    check(
        KeMethod::ECP_256,
        [
            &hex!("c88f01f510d9ac3f70a292daa2316de544e9aab8afe84049c62a9c57862d1433"),
            &hex!("c6ef9c5d78ae012a011164acb397ce2088685d8f06bf9be0b283ab46476bee53"),
        ],
        [
            &hex!(
                "dad0b65394221cf9b051e1feca5787d098dfe637fc90b9ef945d0c37725811805271a0461cdb8252d61f1c45"
                "6fa3e59ab1f45b33accf5f58389e0577b8990bb3"
            ),
            &hex!(
                "d12dfb5289c8d4f81208b70270398c342296970a0bccb74c736fc7554494bf6356fbf3ca366cc23e8157854c"
                "13c58d6aac23f046ada30f8353e74f33039872ab"
            ),
        ],
        &hex!("d6840f6b42f6edafd13116e0e12565202fef8e9ece7dce03812464d04b9442de"),
    );
}

/// RFC 5903, section 8.2.
#[test]
fn ecp_384_of_rfc_5903() {
    check(
        KeMethod::ECP_384,
        [
            &hex!(
                "099f3c7034d4a2c699884d73a375a67f7624ef7c6b3c0f160647b67414dce655e35b538041e649ee3faef896"
                "783ab194"
            ),
            &hex!(
                "41cb0779b4bdb85d47846725fbec3c9430fab46cc8dc5060855cc9bda0aa2942e0308312916b8ed2960e4bd5"
                "5a7448fc"
            ),
        ],
        [
            &hex!(
                "667842d7d180ac2cde6f74f37551f55755c7645c20ef73e31634fe72b4c55ee6de3ac808acb4bdb4c88732ae"
                "e95f41aa9482ed1fc0eeb9cafc4984625ccfc23f65032149e0e144ada024181535a0f38eeb9fcff3c2c947da"
                "e69b4c634573a81c"
            ),
            &hex!(
                "e558dbef53eecde3d3fccfc1aea08a89a987475d12fd950d83cfa41732bc509d0d1ac43a0336def96fda41d0"
                "774a3571dcfbec7aacf3196472169e838430367f66eebe3c6e70c416dd5f0c68759dd1fff83fa40142209dff"
                "5eaad96db9e6386c"
            ),
        ],
        &hex!(
            "11187331c279962d93d604243fd592cb9d0a926f422e47187521287e7156c5c4d603135569b9e9d09cf5d4a2"
            "70f59746"
        ),
    );
}

/// RFC 5903, section 8.3.
#[test]
fn ecp_521_of_rfc_5903() {
    check(
        KeMethod::ECP_521,
        [
            &hex!(
                "0037ade9319a89f4dabdb3ef411aaccca5123c61acab57b5393dce47608172a095aa85a30fe1c2952c6771d9"
                "37ba9777f5957b2639bab072462f68c27a57382d4a52"
            ),
            &hex!(
                "0145ba99a847af43793fdd0e872e7cdfa16be30fdc780f97bccc3f078380201e9c677d600b343757a3bdbf2a"
                "3163e4c2f869cca7458aa4a4effc311f5cb151685eb9"
            ),
        ],
        [
            &hex!(
                "0015417e84dbf28c0ad3c278713349dc7df153c897a1891bd98bab4357c9ecbee1e3bf42e00b8e380aeae57c"
                "2d107564941885942af5a7f4601723c4195d176ced3e017cae20b6641d2eeb695786d8c946146239d099e18e"
                "1d5a514c739d7cb4a10ad8a788015ac405d7799dc75e7b7d5b6cf2261a6a7f1507438bf01beb6ca3926f9582"
            ),
            &hex!(
                "00d0b3975ac4b799f5bea16d5e13e9af971d5e9b984c9f39728b5e5739735a219b97c356436adc6e95bb0352"
                "f6be64a6c2912d4ef2d0433ced2b6171640012d9460f015c68226383956e3bd066e797b623c27ce0eac2f551"
                "a10c2c724d9852077b87220b6536c5c408a1d2aebb8e86d678ae49cb57091f4732296579ab44fcd17f0fc56a"
            ),
        ],
        &hex!(
            "01144c7d79ae6956bc8edb8e7c787c4521cb086fa64407f97894e5e6b2d79b04d1427e73ca4baa240a347868"
            "59810c06b3c715a3a8cc3151f2bee417996d19f3ddea"
        ),
    );
}

/// RFC 7748, section 6.1.
#[test]
fn x25519_of_rfc_7748() {
    check(
        KeMethod::CURVE25519,
        [
            &hex!("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a"),
            &hex!("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"),
        ],
        [
            &hex!("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"),
            &hex!("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"),
        ],
        &hex!("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"),
    );
}

/// RFC 7748, section 5.2: single multiplications and the first thousand iterations.
#[test]
fn x25519_function_of_rfc_7748() {
    let x25519 = |scalar: &[u8], u: &[u8]| exchange(KeMethod::CURVE25519, scalar).agree(u).unwrap();
    let output = x25519(
        &hex!("a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4"),
        &hex!("e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c"),
    );
    assert_eq!(
        output.as_bytes(),
        hex!("c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552")
    );
    let output = x25519(
        &hex!("4b66e9d4d1b4673c5ad22691957d6af5c11b6421e0ea01d42ca4169e7918ba0d"),
        &hex!("e5210f12786811d3f4b7959d0538ae2c31dbe7106fc03c3efc4cd549c715a493"),
    );
    assert_eq!(
        output.as_bytes(),
        hex!("95cbde9476e8907d7aade45cb4b873f88b595a68799fa152e6f8f7647aac7957")
    );

    let mut k = hex!("0900000000000000000000000000000000000000000000000000000000000000").to_vec();
    let mut u = k.clone();
    for round in 1..=1000 {
        let output = x25519(&k, &u).as_bytes().to_vec();
        u = std::mem::replace(&mut k, output);
        if round == 1 {
            assert_eq!(
                k,
                hex!("422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079")
            );
        }
    }
    assert_eq!(
        k,
        hex!("684cf59ba83309552800ef566f2f4d3c1c3887c49360e3875f2eb94d99532c51")
    );
}

/// There are no published vectors for the groups of RFC 3526. These are Python's `pow(2, x, p)`, `p` being the RFC's
/// formula over its own computation of pi. Privates are SHAKE256 of `peregrine modp BITS x` and `.. y`; the publics
/// and the secret stand here as their SHA-256 digests, left-padded to the length of the modulus.
#[test]
fn modp_against_an_independent_computation() {
    check_digests(
        KeMethod::MODP_1024,
        [
            &hex!("e2d9c6d87871d8ae8cf997192e4e5decfa3ad7302a17f610063d4ba5c4705eb5"),
            &hex!("30d0e67a940903f5d88e260c91ea60fcf1d70e70e128d8432edee7154c09d67b"),
        ],
        [
            hex!("0ef341485151f9355ca63fb9b2a9a48998195a656f5b4a3afe0ad6f1bcc0f5a5"),
            hex!("52590376bae5d46ea0a7379dca2f05abe1037a574480726c2308ac3d951dbacc"),
        ],
        hex!("a4b1a2465639ff6cd5565b317319d08159e198385ce678a3df3aeff7a9f3a448"),
    );
    check_digests(
        KeMethod::MODP_1536,
        [
            &hex!("aaba9b7f4eef2feb6a7efcb6eed51f973dccda6fa173a3c12805364ca24a210d"),
            &hex!("1efe4d4f9d01feca26e02677d2c77cb2dfb30308c76d735e0414a406b305c530"),
        ],
        [
            hex!("fb7dfc8d1304a580c29291b0bae69871d33ad06ceb593432302c7f1e41e827b4"),
            hex!("199688b6809c473ff4e68c1627f2d7a1da5024191d84de8fd8324818aa975ea9"),
        ],
        hex!("0ed019953adfce399e68950ebe8dd99a34c018911b7116821705cf572fec6b95"),
    );
    check_digests(
        KeMethod::MODP_2048,
        [
            &hex!("80f78e016e255259ac1c4e206ed00f4985658c4aba0ec36c9cbddeded5734cd56d7f66915d892be2"),
            &hex!("0d9f8e60e9f2c91d9e5f169b03c64a8b949668f12b85887126c2f4714df3db55e0a7087313d63860"),
        ],
        [
            hex!("51dc0168328b15eb76eaab36c38de64c4fbd0197cd4a03a96ce30ebd54224d26"),
            hex!("17d4e5efc17443baf4689e9d64f9b258b26ea2667919f4417a5532ff84731a44"),
        ],
        hex!("3da52cf4dc456c07e9ec386616300972bcccfc15dab48fc3b7b3612566d50358"),
    );
    check_digests(
        KeMethod::MODP_3072,
        [
            &hex!(
                "da9bc296d20e0c8fb0988d5fc70d17c510ab3b7cd88ee35ae026397254c1231a4fdc67497aaa5eddc7332f29"
                "d45eec3e986469a2650b12f2"
            ),
            &hex!(
                "d801b435bc43a100e640a7e9bc0c3e39a7d514e6ac46ed0a0bdba47d88e8c32098e89ff5c016cd2a63ccf2dd"
                "9a05b0a26306eb8e1fca0d49"
            ),
        ],
        [
            hex!("73095ab9919b6cfc6bc2564333257805ae09211d2a4c8ad61376b7baafaba193"),
            hex!("f9d5136b0ad8a5a90cd556d1603ad8f4deead7a3be364ccf5a248db52307a17e"),
        ],
        hex!("0888ca13fe092ad402deb2666bb7e67fe2eb69e044f9293fa52d94a8337964f6"),
    );
    check_digests(
        KeMethod::MODP_4096,
        [
            &hex!(
                "dddab54412d6af1dbb26af3c8257108312be69922943a3bccec71980b8052a7e6e3a3b27b227ee844356d686"
                "467f427608ec9ce957f91d3777bfab0ad42195b9"
            ),
            &hex!(
                "295990508b00b879e79d5ac7a4b874c46071100b5a6089f6b57acfe22c93cdb19e7b5934530c96045423b7d9"
                "cf8a5a3c22880cfc2bc0790fc08746e21401bda2"
            ),
        ],
        [
            hex!("00bd0a662ed8b55d051e566e70520b912bc15b1ee007819e661fe13ea0676a81"),
            hex!("9f206d1db0476d6a42fbfdc325e2d32443e57193dc1813d1b9e2bf4b864f9a6f"),
        ],
        hex!("7a430bea2ec89873385ddc8c3ffb6e1dadf97ec232fc95fbddc8be333ea1c6da"),
    );
    check_digests(
        KeMethod::MODP_6144,
        [
            &hex!(
                "5749624ec3e2aad023555e38a98db6d7c95b71948094eebad640c5bb71d98d85f505159ecd35675da82002bb"
                "85fc616e36eab8021dd361ca71292165a632b2685ed0d695d18eb998"
            ),
            &hex!(
                "baf61875c6b7a00c363b638efaf5ea95dabaffe9cf945cdfbb44bc45ccdad312777924bc5091c1291fd96d10"
                "7ecbf702359986a1bd10b2db1dc3a7183c072e9266fc68ac8482b8d4"
            ),
        ],
        [
            hex!("d42520ec383efe71084bf0c7107f4b44735dd7f6cdd9613caa66a1f28c72e3e2"),
            hex!("053a4156d4b482940a9ab5a1426d84e3db54ff5cfe925125756252124859ca32"),
        ],
        hex!("0f33e68771b40decbcae2cf8d26dd2aa1771f4bac801443c7a870f6bb9d5adad"),
    );
    check_digests(
        KeMethod::MODP_8192,
        [
            &hex!(
                "334816badfb71e08cb0262e940d27f57cc3cd9b44ef8817bd1c4a21b0bf82d353aa175daa34098345931693e"
                "a35eaf7d6471a5953d14a6465d1e63132608b8044f234d779e12a5b50c9b44187d0a952a"
            ),
            &hex!(
                "de764338f27a86971039d6fc96d5930f1509be5526a773bc49398712c1dc022fda9d978379cc48d046e2e896"
                "28f52049e123e909bf3cc1ca5361d76460bfe4aa2d8bad66afff81f953ccf54b7366946b"
            ),
        ],
        [
            hex!("98d75ddf5e79ac299652243aa73e32b3af23e5bc164d3d230e610f0aa9d34449"),
            hex!("cf9a3994f819d1c3f996430b43086fa085dc1af32fddfcad3f04ce2e69922838"),
        ],
        hex!("8001ab11672eb3de8c83b8e6167872dfb3203a8cc467318b0ed4b7a209cc11bc"),
    );
}

fn check_digests(method: KeMethod, privates: [&[u8]; 2], publics: [[u8; 32]; 2], shared: [u8; 32]) {
    let [initiator, responder] = privates.map(|private| exchange(method, private));
    assert_eq!(sha2_256(&[initiator.public()]), publics[0], "{method}");
    assert_eq!(sha2_256(&[responder.public()]), publics[1], "{method}");
    let secret = agree(&initiator, responder.public()).unwrap();
    assert_eq!(sha2_256(&[secret.as_bytes()]), shared, "{method}");
    assert_eq!(responder.agree(initiator.public()).unwrap(), secret, "{method}");
}

#[test]
fn both_ends_agree_and_nobody_repeats() {
    let mut rng = Rng::new([1; 32]);
    for method in METHODS {
        let ours = KeyExchange::generate(method, &mut rng).unwrap();
        let theirs = KeyExchange::generate(method, &mut rng).unwrap();
        assert_eq!(ours.method(), method);
        assert_ne!(ours.public(), theirs.public(), "{method}");
        let (our_public, their_public) = (ours.public().to_vec(), theirs.public().to_vec());
        let secret = ours.agree(&their_public).unwrap();
        assert_eq!(secret, theirs.agree(&our_public).unwrap(), "{method}");
        assert_eq!((our_public.len(), secret.len()), lengths(method), "{method}");
    }
}

/// Public value and shared secret (RFC 7296, sections 2.14 and 3.4; RFC 5903, section 7; RFC 8031, section 3.1).
fn lengths(method: KeMethod) -> (usize, usize) {
    match method {
        KeMethod::CURVE25519 => (32, 32),
        KeMethod::ECP_256 => (64, 32),
        KeMethod::ECP_384 => (96, 48),
        KeMethod::ECP_521 => (132, 66),
        KeMethod::MODP_1024 => (128, 128),
        KeMethod::MODP_1536 => (192, 192),
        KeMethod::MODP_2048 => (256, 256),
        KeMethod::MODP_3072 => (384, 384),
        KeMethod::MODP_4096 => (512, 512),
        KeMethod::MODP_6144 => (768, 768),
        KeMethod::MODP_8192 => (1024, 1024),
        other => panic!("{other} has no lengths here"),
    }
}

#[test]
fn a_responder_answers_every_method() {
    let mut rng = Rng::new([7; 32]);
    for method in METHODS.into_iter().chain(KEMS) {
        let ours = KeyExchange::generate(method, &mut rng).unwrap();
        let (value, secret) = KeyExchange::respond(method, ours.public(), &mut rng).unwrap();
        let (other_value, other_secret) = KeyExchange::respond(method, ours.public(), &mut rng).unwrap();
        assert_eq!(agree(&ours, &value).unwrap(), secret, "{method}");
        assert_eq!(agree(&ours, &other_value).unwrap(), other_secret, "{method}");
        assert!(value != other_value && secret != other_secret, "{method}");
        for actual in [0, 1, ours.public().len() - 1, ours.public().len() + 1] {
            let outcome = KeyExchange::respond(method, &vec![1; actual], &mut rng);
            let expected = ours.public().len();
            assert_eq!(
                outcome.err(),
                Some(CryptoError::PublicLength { expected, actual }),
                "{method}"
            );
        }
    }
    let outcome = KeyExchange::respond(KeMethod::NONE, &[], &mut rng);
    assert_eq!(outcome.err(), Some(CryptoError::Unsupported));
}

/// Table 1 of draft-ietf-ipsecme-ikev2-mlkem.
#[test]
fn encapsulation_keys_and_ciphertexts_have_the_lengths_of_the_draft() {
    let mut rng = Rng::new([8; 32]);
    for (method, key_len, ciphertext_len) in [
        (KeMethod::ML_KEM_512, 800, 768),
        (KeMethod::ML_KEM_768, 1184, 1088),
        (KeMethod::ML_KEM_1024, 1568, 1568),
    ] {
        assert!(KeyExchange::is_post_quantum(method));
        let ours = KeyExchange::generate(method, &mut rng).unwrap();
        assert_eq!((ours.method(), ours.public().len()), (method, key_len));
        let (ciphertext, secret) = KeyExchange::respond(method, ours.public(), &mut rng).unwrap();
        assert_eq!((ciphertext.len(), secret.len()), (ciphertext_len, 32), "{method}");
        for actual in (0..2000).filter(|actual| *actual != ciphertext_len) {
            let expected = ciphertext_len;
            assert_eq!(
                agree(&ours, &vec![0xa5; actual]),
                Err(CryptoError::PublicLength { expected, actual }),
                "{method}"
            );
        }
    }
    assert!(!METHODS.into_iter().any(KeyExchange::is_post_quantum));
}

/// FIPS 203, section 6.3: nothing tells the sender of a wrong ciphertext that it was wrong.
#[test]
fn a_wrong_ciphertext_gives_a_secret_that_nobody_has() {
    let mut rng = Rng::new([9; 32]);
    for method in KEMS {
        let ours = KeyExchange::generate(method, &mut rng).unwrap();
        let (mut ciphertext, secret) = KeyExchange::respond(method, ours.public(), &mut rng).unwrap();
        let last = ciphertext.len() - 1;
        ciphertext[last] ^= 0x80;
        let rejected = agree(&ours, &ciphertext).unwrap();
        assert_ne!(rejected, secret, "{method}");
        assert_eq!(rejected, agree(&ours, &ciphertext).unwrap(), "{method}");
    }
}

#[test]
fn the_same_seed_makes_the_same_exchange() {
    for method in METHODS.into_iter().chain(KEMS) {
        let public = |seed| {
            KeyExchange::generate(method, &mut Rng::new([seed; 32]))
                .unwrap()
                .public()
                .to_vec()
        };
        assert_eq!(public(3), public(3), "{method}");
        assert_ne!(public(3), public(4), "{method}");
    }
}

#[test]
fn private_values_have_the_size_that_their_group_needs() {
    // Twice the larger strength estimate of RFC 3526, section 8; for 1024 bits twice the 80 bits it can have at most.
    let least = [
        (KeMethod::MODP_1024, 160),
        (KeMethod::MODP_1536, 240),
        (KeMethod::MODP_2048, 320),
        (KeMethod::MODP_3072, 420),
        (KeMethod::MODP_4096, 480),
        (KeMethod::MODP_6144, 540),
        (KeMethod::MODP_8192, 620),
    ];
    for (method, bits) in least {
        let exchange = KeyExchange::generate(method, &mut Rng::new([2; 32])).unwrap();
        assert!(8 * exchange.private.len() >= bits, "{method}");
        assert!(
            exchange.private.as_bytes().iter().any(|octet| *octet != 0),
            "{method}"
        );
    }
}

#[test]
fn unknown_methods_are_unsupported() {
    for number in 0..=1024 {
        let method = KeMethod(number);
        assert_eq!(
            KeyExchange::is_supported(method),
            METHODS.contains(&method) || KEMS.contains(&method),
            "{method}"
        );
        if !KeyExchange::is_supported(method) {
            let outcome = KeyExchange::generate(method, &mut Rng::new([0; 32]));
            assert_eq!(outcome.err(), Some(CryptoError::Unsupported), "{method}");
        }
    }
    let legacy: Vec<KeMethod> = METHODS
        .into_iter()
        .filter(|method| KeyExchange::is_legacy(*method))
        .collect();
    assert_eq!(legacy, [KeMethod::MODP_1024, KeMethod::MODP_1536]);
}

#[test]
fn public_values_of_every_other_length_are_refused() {
    let mut rng = Rng::new([5; 32]);
    for method in METHODS {
        let ours = KeyExchange::generate(method, &mut rng).unwrap();
        let (expected, _) = lengths(method);
        for actual in (0..=300)
            .chain([expected - 1, expected + 1, 2 * expected])
            .filter(|len| *len != expected)
        {
            for fill in [0x00, 0x01, 0xff] {
                let outcome = agree(&ours, &vec![fill; actual]);
                assert_eq!(
                    outcome,
                    Err(CryptoError::PublicLength { expected, actual }),
                    "{method}"
                );
            }
        }
    }
}

#[test]
fn constant_public_values_are_refused_or_agreed_upon() {
    let mut rng = Rng::new([6; 32]);
    for method in METHODS {
        let ours = KeyExchange::generate(method, &mut rng).unwrap();
        let (len, secret_len) = lengths(method);
        let mut random = vec![0; len];
        rng.fill(&mut random);
        for public in [vec![0x00; len], vec![0x01; len], vec![0xff; len], random] {
            match agree(&ours, &public) {
                Ok(secret) => assert_eq!(secret.len(), secret_len, "{method}"),
                Err(error) => assert_eq!(error, CryptoError::PublicValue, "{method}"),
            }
        }
        // Zero is an element of no group.
        assert_eq!(
            agree(&ours, &vec![0x00; len]),
            Err(CryptoError::PublicValue),
            "{method}"
        );
    }
}

/// RFC 6989, section 2.1: 1 < y < p - 1.
#[test]
fn modp_takes_only_what_lies_strictly_between_one_and_p_minus_one() {
    for method in METHODS {
        let Some(group) = Modp::of(method) else { continue };
        let ours = exchange(method, &[3]);
        let prime = group.params().modulus().as_ref().to_be_bytes();
        let near_prime = |down: u8| {
            let mut octets = prime.to_vec();
            let last = octets.last_mut().unwrap();
            *last = last.checked_sub(down).unwrap();
            octets
        };
        let small = |value: u8| [vec![0; prime.len() - 1], vec![value]].concat();
        let refused = Err(CryptoError::PublicValue);
        for public in [
            small(0),
            small(1),
            near_prime(1),
            near_prime(0),
            vec![0xff; prime.len()],
        ] {
            assert_eq!(agree(&ours, &public), refused, "{method}");
        }
        // 2^3 = 8, left-padded; (p - 2)^3 = -8.
        assert_eq!(agree(&ours, &small(2)).unwrap().as_bytes(), small(8), "{method}");
        assert_eq!(
            agree(&ours, &near_prime(2)).unwrap().as_bytes(),
            near_prime(8),
            "{method}"
        );
    }
}

/// RFC 6989, section 2.3: every point is checked against the curve's equation, and coordinates are below p.
#[test]
fn ecp_takes_only_points_on_its_curve() {
    let mut rng = Rng::new([8; 32]);
    for method in [KeMethod::ECP_256, KeMethod::ECP_384, KeMethod::ECP_521] {
        let ours = KeyExchange::generate(method, &mut rng).unwrap();
        let good = KeyExchange::generate(method, &mut rng).unwrap().public().to_vec();
        assert!(agree(&ours, &good).is_ok());
        for bit in 0..8 * good.len() {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(
                agree(&ours, &bad),
                Err(CryptoError::PublicValue),
                "{method} bit {bit}"
            );
        }
    }
    // x + p for the point with x = 5 of P-256 would be the same point to an implementation that reduces.
    let ours = exchange(KeMethod::ECP_256, &[7; 32]);
    let y = hex!("459243b9aa581806fe913bce99817ade11ca503c64d9a3c533415c083248fbcc");
    let x = hex!("0000000000000000000000000000000000000000000000000000000000000005");
    let x_plus_p = hex!("ffffffff00000001000000000000000000000001000000000000000000000004");
    assert!(agree(&ours, &[x, y].concat()).is_ok());
    assert_eq!(
        agree(&ours, &[x_plus_p, y].concat()),
        Err(CryptoError::PublicValue)
    );
}

#[test]
fn ecp_takes_only_scalars_below_the_order() {
    let order = hex!("ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551");
    let outcome = |private: &[u8]| {
        KeyExchange::from_private(KeMethod::ECP_256, Secret::from_slice(private))
            .map(|_| ())
            .err()
    };
    assert_eq!(outcome(&order), Some(CryptoError::PrivateKey));
    assert_eq!(outcome(&[0; 32]), Some(CryptoError::PrivateKey));
    let mut below = order;
    below[31] -= 1;
    assert_eq!(outcome(&below), None);
}

/// FIPS 186-5, A.2.2: what is zero or not below the order is drawn again, not reduced.
#[test]
fn ecp_draws_again_what_is_no_scalar() {
    for method in [KeMethod::ECP_256, KeMethod::ECP_384, KeMethod::ECP_521] {
        let mut draws = [0xff, 0x00, 0x01].into_iter();
        let drawn = KeyExchange::draw(method, |octets| octets.fill(draws.next().unwrap())).unwrap();
        assert_eq!(draws.next(), None, "{method}");
        let expected = vec![0x01; drawn.private.len()];
        assert_eq!(drawn.public(), exchange(method, &expected).public(), "{method}");
    }
}

/// The points of small order of Curve25519 and its twist, canonical or not (RFC 7748, section 6.1; RFC 8031, section 2).
#[test]
fn x25519_refuses_points_of_small_order() {
    let ours = KeyExchange::generate(KeMethod::CURVE25519, &mut Rng::new([9; 32])).unwrap();
    for u in [
        hex!("0000000000000000000000000000000000000000000000000000000000000000"),
        hex!("0100000000000000000000000000000000000000000000000000000000000000"),
        hex!("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
        hex!("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
        hex!("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
        hex!("edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
        hex!("eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    ] {
        assert_eq!(agree(&ours, &u), Err(CryptoError::PublicValue));
        // The highest bit is ignored (RFC 7748, section 5).
        let mut high = u;
        high[31] |= 0x80;
        assert_eq!(agree(&ours, &high), Err(CryptoError::PublicValue));
    }
}

#[test]
fn nothing_secret_is_printed() {
    let ours = exchange(KeMethod::CURVE25519, &[0x42; 32]);
    assert_eq!(format!("{ours:?}"), "KeyExchange { method: CURVE25519 (31), .. }");
    assert!(constant_time_eq(ours.private.as_bytes(), &[0x42; 32]));
}
