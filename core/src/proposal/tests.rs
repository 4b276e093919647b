use std::borrow::Cow;

use super::*;

fn ike(text: &str) -> IkeProposal {
    IkeProposal::parse(text).unwrap()
}

fn esp(text: &str) -> EspProposal {
    EspProposal::parse(text).unwrap()
}

fn ike_error(text: &str) -> (String, String) {
    let error = IkeProposal::parse(text).unwrap_err();
    (text[error.span.clone()].to_owned(), error.to_string())
}

/// A gateway's answer to proposal `number`, in keywords.
fn ike_answer(number: u8, text: &str) -> Vec<wire::Proposal<'static>> {
    vec![ike(text).to_wire(number, &[])]
}

fn esp_answer(number: u8, text: &str) -> Vec<wire::Proposal<'static>> {
    vec![esp(text).to_wire(number, EspSpi(0xc0de_0001), true)]
}

#[test]
fn keywords_become_transforms_grouped_by_kind() {
    let proposal = ike("x25519-aes256-prfsha384-sha256-aes128-ecp384");
    assert_eq!(
        proposal.transforms,
        [
            Transform {
                kind: TransformType::ENCR,
                id: 12,
                key_bits: Some(256)
            },
            Transform {
                kind: TransformType::ENCR,
                id: 12,
                key_bits: Some(128)
            },
            Transform {
                kind: TransformType::INTEG,
                id: 12,
                key_bits: None
            },
            Transform {
                kind: TransformType::PRF,
                id: 6,
                key_bits: None
            },
            Transform {
                kind: TransformType::KE,
                id: 31,
                key_bits: None
            },
            Transform {
                kind: TransformType::KE,
                id: 20,
                key_bits: None
            },
        ]
    );
    assert_eq!(
        proposal.key_exchanges().collect::<Vec<_>>(),
        [KeMethod::CURVE25519, KeMethod::ECP_384]
    );
}

#[test]
fn prf_defaults_to_the_integrity_algorithms() {
    assert_eq!(
        ike("aes256-sha256-sha1-modp2048").to_string(),
        "aes256-sha256-sha1-prfsha256-prfsha1-modp2048"
    );
    assert_eq!(
        ike("aes256gcm16-sha384-ecp384").to_string(),
        "aes256gcm16-prfsha384-ecp384"
    );
    assert_eq!(
        ike("aes256-sha256-prfsha512-modp2048").to_string(),
        "aes256-sha256-prfsha512-modp2048"
    );
}

#[test]
fn aliases_and_case_are_accepted_and_repetition_is_dropped() {
    assert_eq!(
        ike("AES256GCM-aes256gcm128-chacha20poly1305-PRFSHA256-curve25519-x25519").to_string(),
        "aes256gcm16-chacha20poly1305-prfsha256-x25519"
    );
    assert_eq!(
        ike("aes-sha-modp2048").to_string(),
        "aes128-sha1-prfsha1-modp2048"
    );
}

#[test]
fn every_keyword_is_printed_as_something_that_reads_back() {
    for proposal in default_ike() {
        assert_eq!(ike(&proposal.to_string()), proposal);
    }
    for proposal in default_esp() {
        assert_eq!(esp(&proposal.to_string()), proposal);
    }
    for (index, (word, transform)) in KEYWORDS.iter().enumerate() {
        assert!(
            transform.kind != TransformType::KE || KeyExchange::is_supported(KeMethod(transform.id)),
            "{word}"
        );
        let first = KEYWORDS.iter().position(|(_, known)| known == transform).unwrap();
        assert!(
            first <= index && !KEYWORDS[..index].iter().any(|(known, _)| known == word),
            "{word}"
        );
    }
}

#[test]
fn esp_offers_32_bit_sequence_numbers_unless_told() {
    assert_eq!(esp("aes256gcm16").to_string(), "aes256gcm16-noesn");
    assert_eq!(esp("aes256gcm16-esn").to_string(), "aes256gcm16-esn");
    assert_eq!(
        esp("aes256gcm16-esn-noesn-x25519").to_string(),
        "aes256gcm16-esn-noesn-x25519"
    );
}

#[test]
fn key_exchanges_of_esp_are_left_out_in_ike_auth() {
    let proposal = esp("aes128-sha256-ecp256-x25519");
    assert_eq!(proposal.key_exchanges, [KeMethod::ECP_256, KeMethod::CURVE25519]);
    let spi = EspSpi(0x0102_0304);
    let kinds = |with_ke| {
        let wire = proposal.to_wire(1, spi, with_ke);
        assert_eq!(
            (wire.number, wire.protocol, &*wire.spi),
            (1, ProtocolId::ESP, &[1, 2, 3, 4][..])
        );
        wire.transforms.iter().map(|t| t.kind).collect::<Vec<_>>()
    };
    let [e, i, s, k] = [
        TransformType::ENCR,
        TransformType::INTEG,
        TransformType::ESN,
        TransformType::KE,
    ];
    assert_eq!(kinds(false), [e, i, s]);
    assert_eq!(kinds(true), [e, i, s, k, k]);
}

#[test]
fn wrong_keywords_are_named_with_their_place() {
    let (word, text) = ike_error("aes256gcm16-prfsha385-x25519");
    assert_eq!(word, "prfsha385");
    assert_eq!(
        text,
        "`prfsha385` is not a known algorithm; did you mean `prfsha384`?"
    );
    assert_eq!(
        ike_error("zebra-x25519"),
        ("zebra".into(), "`zebra` is not a known algorithm".into())
    );
    let (word, text) = ike_error("aes256gcm16-prfsha384-mlkem512");
    assert_eq!(word, "mlkem512");
    assert_eq!(
        text,
        "`mlkem512` cannot be used: it is too long for IKE_SA_INIT; write it as an additional key exchange, such as \
         `ke1_mlkem768`"
    );
    assert!(ike_error("3des-sha1-modp1024").1.contains("obsolete"));
    assert!(
        ike_error("aes256gcm8-prfsha256-x25519")
            .1
            .contains("full-length tags")
    );
    assert_eq!(ike_error("aes256gcm16--x25519").0, "");
    assert!(ike_error("").1.contains("a keyword is missing"));
    assert_eq!(
        ike_error("aes256gcm16-prfsha256-x25519-esn").1,
        "`esn` has no meaning in an IKE proposal"
    );
    let error = EspProposal::parse("aes256gcm16-prfsha256").unwrap_err();
    assert_eq!(error.to_string(), "`prfsha256` has no meaning in an ESP proposal");
}

#[test]
fn every_refused_word_is_unknown_to_the_keywords() {
    for (pattern, _) in REFUSED {
        let known = KEYWORDS
            .iter()
            .filter(|(word, _)| matches_pattern(word, pattern))
            .count();
        // The patterns for short AES-GCM tags cover the full-length keywords too, which are looked up first.
        assert!(known == 0 || pattern.contains("gcm"), "{pattern}");
    }
}

#[test]
fn incomplete_proposals_are_refused() {
    let kind = |text| IkeProposal::parse(text).unwrap_err().kind;
    assert_eq!(kind("prfsha256-x25519"), ProposalErrorKind::NoCipher);
    assert_eq!(kind("aes256-prfsha256-x25519"), ProposalErrorKind::NoIntegrity);
    assert_eq!(kind("aes256gcm16-x25519"), ProposalErrorKind::NoPrf);
    assert_eq!(kind("aes256gcm16-prfsha256"), ProposalErrorKind::NoKeyExchange);
    assert_eq!(
        kind("aes256gcm16-aes256-sha256-prfsha256-x25519"),
        ProposalErrorKind::MixedCiphers
    );
    assert_eq!(
        EspProposal::parse("aes256").unwrap_err().kind,
        ProposalErrorKind::NoIntegrity
    );
    assert_eq!(
        EspProposal::parse("sha256").unwrap_err().kind,
        ProposalErrorKind::NoCipher
    );
}

#[test]
fn defaults_contain_nothing_weak() {
    for text in default_ike()
        .iter()
        .map(ToString::to_string)
        .chain(default_esp().iter().map(ToString::to_string))
    {
        for weak in ["sha1", "modp1024", "modp1536"] {
            assert!(!text.contains(weak), "{text}");
        }
    }
    assert!(
        default_ike()
            .iter()
            .all(|p| p.legacy().is_empty() && p.transforms.len() <= 20)
    );
    assert!(default_esp().iter().all(|p| p.legacy().is_empty()));
    assert_eq!(
        ike("aes128-sha1-modp1024").legacy(),
        ["sha1", "prfsha1", "modp1024"]
    );
    assert_eq!(esp("aes128-sha1-modp1536").legacy(), ["sha1", "modp1536"]);
}

#[test]
fn offers_are_numbered_from_one() {
    let offer = ike_offer(&default_ike(), &[]);
    assert_eq!(offer.iter().map(|p| p.number).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(
        offer
            .iter()
            .all(|p| p.protocol == ProtocolId::IKE && p.spi.is_empty())
    );
    let offer = esp_offer(&default_esp(), EspSpi(7), true);
    assert_eq!(offer.iter().map(|p| p.number).collect::<Vec<_>>(), [1, 2, 3]);
    // Without key exchanges the first two are the same.
    let offer = esp_offer(&default_esp(), EspSpi(7), false);
    assert_eq!(offer.iter().map(|p| p.number).collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn additional_key_exchanges_have_their_places() {
    let proposal = ike("ke3_none-aes256gcm16-KE1_mlkem1024-prfsha384-ke3_x25519-ke1_MLKEM768-ecp384");
    assert_eq!(
        proposal.to_string(),
        "aes256gcm16-prfsha384-ecp384-ke1_mlkem1024-ke1_mlkem768-ke3_none-ke3_x25519"
    );
    assert_eq!(ike(&proposal.to_string()), proposal);
    let wire = proposal.to_wire(1, &[]);
    let places: Vec<(u8, u16)> = wire.transforms[3..].iter().map(|t| (t.kind.0, t.id)).collect();
    assert_eq!(places, [(6, 37), (6, 36), (8, 0), (8, 31)]);
    assert!(proposal.has_additional() && proposal.is_post_quantum());
    assert_eq!(
        proposal.key_exchanges().collect::<Vec<_>>(),
        [KeMethod::ECP_384],
        "what IKE_SA_INIT may begin with"
    );
    let classical = ike("aes256gcm16-prfsha384-ecp384-ke7_x25519");
    assert!(classical.has_additional() && !classical.is_post_quantum());
    assert!(!ike("aes256gcm16-prfsha384-ecp384").has_additional());
    assert_eq!(
        ike("aes256gcm16-prfsha384-ecp384-ke1_modp1024").legacy(),
        ["modp1024"]
    );

    let proposal = esp("aes256gcm16-x25519-mlkem512-ke2_mlkem768-ke2_none");
    assert_eq!(
        proposal.to_string(),
        "aes256gcm16-noesn-x25519-mlkem512-ke2_mlkem768-ke2_none"
    );
    let in_ike_auth = proposal.to_wire(1, EspSpi(300), false);
    assert!(in_ike_auth.transforms.iter().all(|t| t.kind.0 < 6));
    assert_eq!(
        EspProposal::parse("aes256gcm16-ke1_mlkem768").unwrap_err().kind,
        ProposalErrorKind::NoKeyExchange
    );
}

#[test]
fn wrong_additional_key_exchanges_are_named_with_their_place() {
    let (word, text) = ike_error("aes256gcm16-prfsha384-x25519-ke1_mlkem769");
    assert_eq!(word, "ke1_mlkem769");
    assert_eq!(
        text,
        "`ke1_mlkem769` is not a known algorithm; did you mean `mlkem768`?"
    );
    for word in ["ke1_sha256", "ke1_prfsha256", "ke1_esn", "ke7_aes256gcm16"] {
        let (named, text) = ike_error(&format!("aes256gcm16-prfsha384-x25519-{word}"));
        assert_eq!(named, word);
        assert_eq!(
            text,
            format!("`{word}` is not a key exchange method with its place, such as `ke1_mlkem768`")
        );
    }
    assert!(
        ike_error("ke1_ntru128")
            .1
            .starts_with("`ke1_ntru128` cannot be used")
    );
    for word in ["ke0_x25519", "ke8_x25519", "ke_x25519", "ke1x25519", "ké1_x25519"] {
        assert!(ike_error(word).1.contains("is not a known algorithm"), "{word}");
    }
    assert!(ike_error("ke1_").1.contains("a keyword is missing"));
    // However long it is.
    assert!(
        ike_error(&"ke1_".repeat(100_000))
            .1
            .contains("is not a known algorithm")
    );
}

#[test]
fn additional_key_exchanges_of_the_choice() {
    let offered = [ike(
        "aes256gcm16-prfsha384-x25519-ecp384-ke1_mlkem768-ke1_mlkem1024-ke2_x25519-ke2_mlkem768-ke2_none",
    )];
    let select = |choice: &str| {
        select_ike(
            &offered,
            &ike_answer(1, &format!("aes256gcm16-prfsha384-{choice}")),
        )
    };
    let suite = select("x25519-ke1_mlkem1024-ke2_mlkem768").unwrap();
    assert_eq!(
        suite.additional.methods().collect::<Vec<_>>(),
        [KeMethod::ML_KEM_1024, KeMethod::ML_KEM_768]
    );
    assert!(suite.is_post_quantum());
    assert_eq!(
        suite.to_string(),
        "aes256gcm16-prfsha384-x25519-ke1_mlkem1024-ke2_mlkem768"
    );
    let suite = select("ecp384-ke1_mlkem768-ke2_x25519").unwrap();
    assert_eq!(
        suite.to_string(),
        "aes256gcm16-prfsha384-ecp384-ke1_mlkem768-ke2_x25519"
    );
    // NONE, said or left out.
    for choice in ["x25519-ke1_mlkem768-ke2_none", "x25519-ke1_mlkem768"] {
        let suite = select(choice).unwrap();
        assert_eq!(suite.to_string(), "aes256gcm16-prfsha384-x25519-ke1_mlkem768");
    }
    let missing = SelectError::Count {
        kind: TransformType::ADDKE1,
        count: 0,
    };
    assert_eq!(select("x25519-ke2_mlkem768"), Err(missing));
    for (choice, twice) in [
        ("ecp384-ke1_mlkem768-ke2_mlkem768", KeMethod::ML_KEM_768),
        ("x25519-ke1_mlkem768-ke2_x25519", KeMethod::CURVE25519),
    ] {
        assert_eq!(select(choice), Err(SelectError::Repeated(twice)));
    }
    for (choice, kind, id) in [
        ("x25519-ke1_mlkem512", TransformType::ADDKE1, 35),
        ("x25519-ke1_none", TransformType::ADDKE1, 0),
        ("x25519-ke1_mlkem768-ke3_mlkem1024", TransformType::ADDKE3, 37),
        ("x25519-ke1_mlkem768-ke3_none", TransformType::ADDKE3, 0),
    ] {
        let error = SelectError::NotOffered {
            kind,
            id,
            key_bits: None,
        };
        assert_eq!(select(choice), Err(error), "{choice}");
    }
    let mut both = ike_answer(1, "aes256gcm16-prfsha384-x25519-ke1_mlkem768-ke1_mlkem1024");
    let twice = SelectError::Count {
        kind: TransformType::ADDKE1,
        count: 2,
    };
    assert_eq!(select_ike(&offered, &both), Err(twice));
    both[0].transforms.pop();
    assert!(select_ike(&offered, &both).is_ok());
}

#[test]
fn additional_key_exchanges_of_the_child_choice() {
    let offered = default_esp();
    let select = |number, choice: &str, with_ke| {
        select_esp(&offered, &esp_answer(number, choice), with_ke).map(|(suite, _)| suite)
    };
    let suite = select(1, "aes256gcm16-esn-x25519-ke1_mlkem768", true).unwrap();
    assert_eq!(suite.to_string(), "aes256gcm16-x25519-ke1_mlkem768-esn");
    assert_eq!(
        suite.additional.methods().collect::<Vec<_>>(),
        [KeMethod::ML_KEM_768]
    );
    assert!(select(1, "aes256gcm16-esn-x25519", true).is_err());
    assert!(select(2, "aes256gcm16-esn-x25519-ke1_mlkem768", true).is_err());
    let suite = select(2, "aes256gcm16-esn-x25519", true).unwrap();
    assert_eq!(suite.additional, AdditionalKeyExchanges::default());
    // In IKE_AUTH there is none, and the numbers are those of its offer.
    assert!(select(1, "aes256gcm16-esn", false).is_ok());
    assert!(select(1, "aes256gcm16-esn-x25519-ke1_mlkem768", false).is_err());
    assert!(select(2, "aes256-sha256-esn", false).is_ok());
    assert_eq!(select(3, "aes256-sha256-esn", false), Err(SelectError::Number(3)));
}

#[test]
fn the_choice_becomes_a_suite() {
    let suite = select_ike(&default_ike(), &ike_answer(2, "aes256gcm16-prfsha384-x25519")).unwrap();
    assert_eq!(
        suite,
        IkeSuite {
            cipher: CipherSuite {
                encr: Encr::AesGcm16 { bits: 256 },
                integ: None
            },
            prf: Prf::HmacSha2_384,
            ke: KeMethod::CURVE25519,
            additional: AdditionalKeyExchanges::default(),
        }
    );
    assert_eq!(suite.to_string(), "aes256gcm16-prfsha384-x25519");
    assert!(!suite.is_post_quantum());
    let suite = select_ike(&default_ike(), &ike_answer(3, "aes128-sha256-prfsha512-modp2048")).unwrap();
    assert_eq!(suite.cipher.integ, Some(Integ::HmacSha2_256_128));
    assert_eq!(suite.to_string(), "aes128-sha256-prfsha512-modp2048");
    let suite = select_ike(
        &default_ike(),
        &ike_answer(1, "chacha20poly1305-prfsha256-ecp256-ke1_mlkem768"),
    )
    .unwrap();
    assert_eq!(suite.cipher.encr, Encr::ChaCha20Poly1305);
    assert!(suite.is_post_quantum());
}

#[test]
fn the_child_choice_becomes_a_suite_and_an_spi() {
    let mut answer = esp_answer(1, "aes128gcm16-esn");
    let (suite, spi) = select_esp(&default_esp(), &answer, false).unwrap();
    assert_eq!(
        (suite.to_string().as_str(), spi),
        ("aes128gcm16-esn", EspSpi(0xc0de_0001))
    );
    answer[0].spi = Cow::Owned(vec![1, 2, 3]);
    assert_eq!(
        select_esp(&default_esp(), &answer, false),
        Err(SelectError::Spi(3))
    );
    answer[0].spi = Cow::Owned(vec![0, 0, 0, 255]);
    assert_eq!(
        select_esp(&default_esp(), &answer, false),
        Err(SelectError::Spi(4))
    );

    let answer = esp_answer(3, "aes256-sha512-noesn-ecp384");
    let (suite, _) = select_esp(&default_esp(), &answer, true).unwrap();
    assert_eq!(suite.to_string(), "aes256-sha512-ecp384");
    assert_eq!((suite.esn, suite.ke), (false, Some(KeMethod::ECP_384)));
    // In IKE_AUTH no key exchange was offered.
    let answer = esp_answer(2, "aes256-sha512-noesn-ecp384");
    assert!(matches!(
        select_esp(&default_esp(), &answer, false),
        Err(SelectError::NotOffered {
            kind: TransformType::KE,
            id: 20,
            ..
        })
    ));
    // A proposal without key exchange needs none when rekeying either.
    let offered = [esp("aes256gcm16")];
    assert_eq!(
        select_esp(&offered, &esp_answer(1, "aes256gcm16"), true)
            .unwrap()
            .0
            .ke,
        None
    );
}

#[test]
fn other_choices_are_refused() {
    let offered = [
        ike("aes256gcm16-prfsha384-x25519"),
        ike("aes256-aes128-sha256-x25519"),
    ];
    let select = |answer: &[wire::Proposal<'_>]| select_ike(&offered, answer);
    let good = ike_answer(1, "aes256gcm16-prfsha384-x25519");
    assert!(select(&good).is_ok());
    assert_eq!(select(&[]), Err(SelectError::Proposals(0)));
    assert_eq!(
        select(&[good[0].clone(), good[0].clone()]),
        Err(SelectError::Proposals(2))
    );
    for number in [0, 3] {
        assert_eq!(
            select(&ike_answer(number, "aes256gcm16-prfsha384-x25519")),
            Err(SelectError::Number(number))
        );
    }
    let mut other = good.clone();
    other[0].protocol = ProtocolId::ESP;
    assert_eq!(select(&other), Err(SelectError::Protocol(ProtocolId::ESP)));
    // Offered in the other proposal only.
    assert!(matches!(
        select(&ike_answer(2, "aes256gcm16-prfsha384-x25519")),
        Err(SelectError::NotOffered {
            kind: TransformType::ENCR,
            id: 20,
            key_bits: Some(256)
        })
    ));
    assert!(matches!(
        select(&ike_answer(1, "aes128gcm16-prfsha384-x25519")),
        Err(SelectError::NotOffered {
            kind: TransformType::ENCR,
            id: 20,
            key_bits: Some(128)
        })
    ));
    let mut other = good.clone();
    other[0].transforms[0].attributes = vec![wire::Attribute {
        kind: 99,
        value: wire::AttributeValue::Short(1),
    }];
    assert!(matches!(
        select(&other),
        Err(SelectError::NotOffered {
            kind: TransformType::ENCR,
            ..
        })
    ));
    // Everything that was offered, as if the choice were ours.
    assert_eq!(
        select(&[offered[1].to_wire(2, &[])]),
        Err(SelectError::Count {
            kind: TransformType::ENCR,
            count: 2
        })
    );
    for (missing, kind) in [
        (0, TransformType::ENCR),
        (1, TransformType::PRF),
        (2, TransformType::KE),
    ] {
        let mut less = good.clone();
        less[0].transforms.remove(missing);
        assert_eq!(select(&less), Err(SelectError::Count { kind, count: 0 }));
    }
    let mut cbc = ike_answer(2, "aes256-sha256-x25519");
    assert!(select(&cbc).is_ok());
    cbc[0].transforms.retain(|t| t.kind != TransformType::INTEG);
    assert_eq!(
        select(&cbc),
        Err(SelectError::Count {
            kind: TransformType::INTEG,
            count: 0
        })
    );
    // NONE is not an integrity algorithm for AES-CBC.
    cbc[0]
        .transforms
        .push(wire::Transform::new(TransformType::INTEG, 0, None));
    assert!(matches!(
        select(&cbc),
        Err(SelectError::NotOffered {
            kind: TransformType::INTEG,
            id: 0,
            ..
        })
    ));
}

#[test]
fn integrity_none_beside_an_aead_cipher_is_tolerated() {
    let mut answer = ike_answer(2, "aes256gcm16-prfsha384-x25519");
    answer[0]
        .transforms
        .insert(1, wire::Transform::new(TransformType::INTEG, 0, None));
    assert_eq!(select_ike(&default_ike(), &answer).unwrap().cipher.integ, None);
}

#[test]
fn aes_cbc_without_key_length_means_128_bits() {
    let mut answer = esp_answer(1, "aes128-sha256");
    answer[0].transforms[0].key_bits = None;
    let (suite, _) = select_esp(&[esp("aes256-aes128-sha256")], &answer, false).unwrap();
    assert_eq!(suite.cipher.encr, Encr::AesCbc { bits: 128 });
    assert!(select_esp(&[esp("aes256-sha256")], &answer, false).is_err());
    // AES-GCM always says its length.
    let mut answer = esp_answer(1, "aes128gcm16");
    answer[0].transforms[0].key_bits = None;
    assert!(select_esp(&[esp("aes128gcm16")], &answer, false).is_err());
}

#[test]
fn refusals_read_as_sentences() {
    let answer = ike_answer(1, "aes128gcm16-prfsha384-x25519");
    let error = select_ike(&[ike("aes256gcm16-prfsha384-x25519")], &answer).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("20 with 128 bits, which was not offered"),
        "{error}"
    );
}

/// A gateway may offer additional key exchanges when it rekeys; ours has none yet (IKE_FOLLOWUP_KE).
#[test]
fn rekeying_takes_additional_key_exchanges_where_both_have_them() {
    let with = ike("aes256gcm16-prfsha384-x25519-ke1_mlkem768").to_wire(1, &[7; 8]);
    let without = ike("aes256gcm16-prfsha384-x25519").to_wire(2, &[7; 8]);
    let answer = ike_answer(2, "aes256gcm16-prfsha384-x25519");
    let present = select_ike(&default_ike(), &answer).unwrap();
    let choose = |ours: &[IkeProposal], offer: &[wire::Proposal<'_>]| {
        choose_ike(ours, &present, KeMethod::CURVE25519, offer)
    };
    for offer in [&[with.clone(), without.clone()][..], std::slice::from_ref(&with)] {
        let chosen = choose(&default_ike(), offer).unwrap();
        assert_eq!(
            (chosen.number, chosen.suite.to_string()),
            (1, "aes256gcm16-prfsha384-x25519-ke1_mlkem768".into())
        );
        let wire = chosen.to_wire(wire::IkeSpi([9; 8]));
        let added = wire.transforms.iter().find(|t| t.kind == TransformType::ADDKE1);
        assert_eq!(added.map(|t| t.id), Some(KeMethod::ML_KEM_768.0));
    }
    let chosen = choose(&default_ike(), std::slice::from_ref(&without)).unwrap();
    assert_eq!(chosen.suite.to_string(), "aes256gcm16-prfsha384-x25519");
    // Who insists on it takes nothing less, and who does not have it takes NONE or nothing.
    let insisting = [ike("aes256gcm16-prfsha384-x25519-ke1_mlkem768")];
    assert_eq!(choose(&insisting, &[without]), None);
    let plain = [ike("aes256gcm16-prfsha384-x25519")];
    assert_eq!(choose(&plain, &[with]), None);
    let optional = ike("aes256gcm16-prfsha384-x25519-ke1_mlkem768-ke1_none").to_wire(1, &[7; 8]);
    let chosen = choose(&plain, &[optional]).unwrap();
    assert_eq!(chosen.suite.to_string(), "aes256gcm16-prfsha384-x25519");
    let wire = chosen.to_wire(wire::IkeSpi([9; 8]));
    let none = wire.transforms.iter().find(|t| t.kind == TransformType::ADDKE1);
    assert_eq!(none.map(|t| t.id), Some(0), "the answer says NONE");

    let present = select_esp(&default_esp(), &esp_answer(2, "aes256gcm16-esn-x25519"), true);
    let (present, _) = present.unwrap();
    let offer = |number, text: &str| esp(text).to_wire(number, EspSpi(0xc0de_0001), true);
    let choose = |offer: &[wire::Proposal<'_>], pfs| {
        choose_esp(&default_esp(), &present, Some(KeMethod::CURVE25519), pfs, offer)
    };
    let with = offer(1, "aes256gcm16-esn-x25519-ke1_mlkem768");
    let chosen = choose(&[with, offer(2, "aes256gcm16-esn-x25519")], false).unwrap();
    assert_eq!(
        (chosen.number, chosen.suite.to_string()),
        (1, "aes256gcm16-x25519-ke1_mlkem768-esn".into())
    );
    // Perfect forward secrecy that is required is not given up for NONE.
    let mut none = offer(1, "aes256gcm16-esn");
    none.transforms
        .push(wire::Transform::new(TransformType::KE, KeMethod::NONE.0, None));
    assert!(choose(std::slice::from_ref(&none), false).is_some());
    assert_eq!(choose(&[none], true), None);
    // What our profile does not name is not taken because the gateway sent it.
    let modp = offer(1, "aes256gcm16-esn-modp1024");
    let chosen = choose_esp(
        &default_esp(),
        &present,
        Some(KeMethod::MODP_1024),
        false,
        &[modp],
    );
    assert_eq!(chosen, None);
}

/// strongSwan makes wrong keys when the PRF changes, and it offers its own order of preference, not what is in use.
#[test]
fn rekeying_stays_with_cipher_and_prf() {
    let offer = [
        ike("aes128gcm16-aes256gcm16-prfsha512-prfsha256-prfsha384-ecp256-x25519").to_wire(1, &[7; 8]),
        ike("aes256-sha256-prfsha256-x25519").to_wire(2, &[7; 8]),
    ];
    for present in [
        "aes256gcm16-prfsha256-x25519",
        "aes128gcm16-prfsha384-ecp256",
        "aes256-sha256-prfsha256-x25519",
    ] {
        let suite = (1..=3).find_map(|number| select_ike(&default_ike(), &ike_answer(number, present)).ok());
        let suite = suite.unwrap();
        let chosen = choose_ike(&default_ike(), &suite, suite.ke, &offer).unwrap();
        assert_eq!(chosen.suite.to_string(), present);
    }
    // What is no longer on offer is left for what we like best.
    let answer = ike_answer(2, "chacha20poly1305-prfsha384-x25519");
    let suite = select_ike(&default_ike(), &answer).unwrap();
    let chosen = choose_ike(&default_ike(), &suite, KeMethod::ECP_256, &offer).unwrap();
    assert_eq!(chosen.suite.to_string(), "aes256gcm16-prfsha512-ecp256");
}
