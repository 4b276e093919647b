//! The framework around the methods, with EAP-MSCHAPv2 as the method.

use proptest::prelude::*;

use super::*;
use crate::rng::Rng;

const OUR_TYPE: u8 = 26;
const NOW: UnixTime = UnixTime(std::time::Duration::from_secs(1_790_000_000));

fn eap() -> Eap {
    Eap::new(EapConfig {
        identity: "alice@example.org".to_owned(),
        method: EapMethod::MsChapV2(EapMsChapV2 {
            username: "alice".to_owned(),
            password: Secret::new(b"secret".to_vec()),
        }),
    })
}

fn give(eap: &mut Eap, packet: &[u8]) -> Result<Vec<u8>, EapError> {
    match eap.handle(packet, &mut Rng::new([7; 32]), NOW)? {
        Step::Reply(reply) => Ok(reply),
        Step::Success(_) => panic!("success"),
        Step::Ask(question) => panic!("{question:?}"),
        Step::Check(presented) => panic!("{presented:?}"),
    }
}

fn request(identifier: u8, kind: u8, data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(5 + data.len()).unwrap().to_be_bytes();
    [&[1, identifier, length[0], length[1], kind], data].concat()
}

fn challenge(identifier: u8) -> Vec<u8> {
    request(identifier, OUR_TYPE, &[&[1, 1, 0, 21, 16], &[9; 16][..]].concat())
}

/// What a server that knows the password sends after our response.
fn proof(identifier: u8, reply: &[u8]) -> Vec<u8> {
    let hash = mschapv2::challenge_hash(reply[10..26].try_into().unwrap(), &[9; 16], "alice");
    let proof = mschapv2::authenticator_response("secret", reply[34..58].try_into().unwrap(), &hash);
    let hex: String = proof.iter().map(|octet| format!("{octet:02X}")).collect();
    request(
        identifier,
        OUR_TYPE,
        &[&[3, 1, 0, 46], format!("S={hex}").as_bytes()].concat(),
    )
}

/// A conversation in each of its states, with its name.
fn all_states() -> [(&'static str, Eap); 5] {
    let mut declined = eap();
    give(&mut declined, &request(100, 13, &[0x20])).unwrap();
    let mut responded = eap();
    let reply = give(&mut responded, &challenge(100)).unwrap();
    let mut complete = eap();
    assert_eq!(give(&mut complete, &challenge(100)).unwrap(), reply);
    give(&mut complete, &proof(101, &reply)).unwrap();
    let mut failed = eap();
    give(&mut failed, &[4, 0, 0, 4]).unwrap_err();
    [
        ("new", eap()),
        ("declined", declined),
        ("responded", responded),
        ("complete", complete),
        ("failed", failed),
    ]
}

#[test]
fn a_whole_conversation() {
    let mut eap = eap();
    let identity = give(&mut eap, &request(0, 1, b"who\0networkid=x")).unwrap();
    assert_eq!(identity, [&[2, 0, 0, 22, 1], &b"alice@example.org"[..]].concat());
    assert_eq!(
        give(&mut eap, &request(1, 2, b"password expires in 3 days")).unwrap(),
        [2, 1, 0, 5, 2]
    );
    let reply = give(&mut eap, &challenge(2)).unwrap();
    assert_eq!(reply[..5], [2, 2, 0, 64, OUR_TYPE]);
    assert_eq!(
        give(&mut eap, &proof(3, &reply)).unwrap(),
        [2, 3, 0, 6, OUR_TYPE, 3]
    );
    let Step::Success(Some(msk)) = eap.handle(&[3, 3, 0, 4], &mut Rng::new([7; 32]), NOW).unwrap() else {
        panic!("no key")
    };
    assert_eq!(
        msk.as_bytes(),
        mschapv2::msk("secret", reply[34..58].try_into().unwrap()).as_bytes()
    );
    assert!(eap.failure().is_none());
    assert!(matches!(
        give(&mut eap, &[3, 3, 0, 4]),
        Err(EapError::Malformed(_))
    ));
}

#[test]
fn success_before_the_end_is_refused() {
    for (state, mut eap) in all_states() {
        let expected = match state {
            "complete" => continue,
            "failed" => EapError::Refused,
            _ => EapError::EarlySuccess,
        };
        assert_eq!(give(&mut eap, &[3, 100, 0, 4]).unwrap_err(), expected, "{state}");
        assert_eq!(eap.failure(), Some(&expected), "{state}");
        // It does not help to go on afterwards.
        assert_eq!(give(&mut eap, &challenge(102)).unwrap_err(), expected, "{state}");
    }
}

#[test]
fn failure_ends_every_state() {
    for (state, mut eap) in all_states() {
        let expected = match state {
            "declined" => EapError::MethodOffered {
                offered: EapType::TLS,
                wanted: EapType::MSCHAPV2,
            },
            _ => EapError::Refused,
        };
        // Whatever the identifier: there is nothing to gain from a forged refusal that dropping packets does not give.
        assert_eq!(give(&mut eap, &[4, 55, 0, 4]).unwrap_err(), expected, "{state}");
    }
}

#[test]
fn success_and_failure_have_exactly_four_octets() {
    for (state, mut eap) in all_states() {
        for code in [3, 4] {
            let error = give(&mut eap, &[code, 101, 0, 5, 0]).unwrap_err();
            let expected = match state {
                "failed" => EapError::Refused,
                _ => EapError::Malformed("EAP-Success or EAP-Failure with data"),
            };
            assert_eq!(error, expected, "{state}");
        }
    }
}

#[test]
fn the_success_identifier_may_be_ahead_by_two() {
    for (identifier, good) in [
        (100, false),
        (101, true),
        (102, true),
        (103, true),
        (104, false),
        (0, false),
    ] {
        let [.., (_, mut complete), _] = all_states();
        let result = complete.handle(&[3, identifier, 0, 4], &mut Rng::new([7; 32]), NOW);
        assert_eq!(matches!(result, Ok(Step::Success(_))), good, "{identifier}");
    }
}

#[test]
fn another_method_is_declined_once() {
    for kind in (4..=255).filter(|kind| ![OUR_TYPE, EapType::EXPANDED.0].contains(kind)) {
        let mut eap = eap();
        assert_eq!(
            give(&mut eap, &request(9, kind, &[1, 2, 3])).unwrap(),
            [2, 9, 0, 6, 3, OUR_TYPE]
        );
        let error = give(&mut eap, &request(10, kind, &[])).unwrap_err();
        assert_eq!(
            error,
            EapError::MethodOffered {
                offered: EapType(kind),
                wanted: EapType::MSCHAPV2
            }
        );
    }
}

/// Windows Server asks so for its statement of health, and for more.
#[test]
fn expanded_types_are_declined_one_after_the_other() {
    let mut eap = eap();
    for identifier in 0..5 {
        assert_eq!(
            give(&mut eap, &request(identifier, 254, &[0, 1, 0x37, 0, 0, 0, 0x21])).unwrap(),
            [2, identifier, 0, 6, 3, OUR_TYPE]
        );
    }
    assert!(give(&mut eap, &challenge(5)).is_ok());
}

#[test]
fn a_server_that_must_prove_itself_by_the_method_is_not_talked_with_about_others() {
    for kind in (4..=255).filter(|kind| *kind != OUR_TYPE) {
        let mut alone = Eap { alone: true, ..eap() };
        give(&mut alone, &request(8, 1, &[])).unwrap();
        let proves_both = [13, 18, 21, 23, 25, 43, 50, 51, 52, 55].contains(&kind);
        match give(&mut alone, &request(9, kind, &[])) {
            Ok(nak) => assert!(proves_both && nak == [2, 9, 0, 6, 3, OUR_TYPE], "{kind}"),
            Err(error) => {
                let expected = EapError::MethodOffered {
                    offered: EapType(kind),
                    wanted: EapType::MSCHAPV2,
                };
                assert!(!proves_both && error == expected, "{kind}: {error}");
            }
        }
    }
}

#[test]
fn the_method_may_follow_the_nak() {
    let mut eap = eap();
    give(&mut eap, &request(0, 1, &[])).unwrap();
    give(&mut eap, &request(1, 13, &[0x20])).unwrap();
    assert_eq!(
        give(&mut eap, &challenge(2)).unwrap()[..5],
        [2, 2, 0, 64, OUR_TYPE]
    );
}

#[test]
fn the_method_does_not_change_once_it_runs() {
    for kind in (0..=255).filter(|kind| ![2, OUR_TYPE].contains(kind)) {
        let mut eap = eap();
        give(&mut eap, &challenge(1)).unwrap();
        let error = give(&mut eap, &request(2, kind, &[0x20])).unwrap_err();
        assert_eq!(
            error,
            EapError::Malformed("a request of another type while the method runs"),
            "{kind}"
        );
    }
}

#[test]
fn types_of_responses_are_not_declined() {
    for kind in [0, 3] {
        let error = give(&mut eap(), &request(1, kind, &[4])).unwrap_err();
        assert_eq!(
            error,
            EapError::Malformed("a request of a type that exists only in responses")
        );
    }
}

#[test]
fn a_request_after_the_end_is_refused() {
    let [.., (_, mut complete), _] = all_states();
    let error = give(&mut complete, &challenge(102)).unwrap_err();
    assert_eq!(
        error,
        EapError::Malformed("a request after the method was complete")
    );
}

#[test]
fn an_identifier_is_used_once_in_a_row() {
    let mut eap = eap();
    give(&mut eap, &request(5, 1, &[])).unwrap();
    let error = give(&mut eap, &request(5, 1, &[])).unwrap_err();
    assert_eq!(
        error,
        EapError::Malformed("two requests with the same identifier")
    );
}

#[test]
fn an_endless_conversation_ends() {
    let mut eap = eap();
    for round in 0..64 {
        give(&mut eap, &request(round, 2, &[])).unwrap();
    }
    assert_eq!(
        give(&mut eap, &request(64, 2, &[])).unwrap_err(),
        EapError::TooManyRounds
    );
}

#[test]
fn broken_packets_are_refused() {
    let good = request(1, 1, b"who");
    for length in 0..good.len() {
        assert!(
            matches!(give(&mut eap(), &good[..length]), Err(EapError::Malformed(_))),
            "{length}"
        );
    }
    let padded = [&good[..], &[0]].concat();
    assert!(matches!(give(&mut eap(), &padded), Err(EapError::Malformed(_))));
    assert!(matches!(
        give(&mut eap(), &[1, 1, 0, 4]),
        Err(EapError::Malformed(_))
    ));
    for code in (0..=255).filter(|code| ![1, 3, 4].contains(code)) {
        let mut packet = good.clone();
        packet[0] = code;
        assert_eq!(
            give(&mut eap(), &packet).unwrap_err(),
            EapError::Malformed("a code that no server sends")
        );
    }
}

fn gtc(password: Option<&str>) -> Eap {
    Eap::new(EapConfig {
        identity: "alice".to_owned(),
        method: EapMethod::Gtc(EapGtc {
            password: password.map(|password| Secret::from_slice(password.as_bytes())),
        }),
    })
}

fn step(eap: &mut Eap, packet: &[u8]) -> Result<Step, EapError> {
    eap.handle(packet, &mut Rng::new([7; 32]), NOW)
}

fn asked(step: Result<Step, EapError>) -> Question {
    match step {
        Ok(Step::Ask(question)) => question,
        other => panic!("{other:?}"),
    }
}

#[test]
fn gtc_answers_with_the_password_and_then_asks() {
    let mut eap = gtc(Some("secret"));
    let reply = give(&mut eap, &request(1, 6, b"Password: ")).unwrap();
    assert_eq!(reply, [&[2, 1, 0, 11, 6], &b"secret"[..]].concat());
    let question = asked(step(&mut eap, &request(2, 6, b"Code \x1b[1msent\r\n")));
    assert_eq!(question.kind, PromptKind::OneTimeCode);
    assert_eq!(question.message.as_deref(), Some(r"Code \u{1b}[1msent"));
    let Step::Reply(reply) = eap.answer(&Secret::from_slice(b"123456")).unwrap() else {
        panic!("no reply")
    };
    assert_eq!(reply, [&[2, 2, 0, 11, 6], &b"123456"[..]].concat());
    assert!(matches!(step(&mut eap, &[3, 2, 0, 4]), Ok(Step::Success(None))));
}

#[test]
fn gtc_without_a_password_asks_for_everything() {
    let mut eap = gtc(None);
    let question = asked(step(&mut eap, &request(1, 6, b"\0 ")));
    assert_eq!((question.kind, question.message), (PromptKind::Password, None));
    // Nothing may come in between, and nothing is answered that was not asked.
    let error = EapError::Malformed("a request before the last one was answered");
    assert_eq!(give(&mut eap, &request(2, 6, b"?")).unwrap_err(), error);
    let error = EapError::Malformed("an answer to no question");
    assert_eq!(gtc(None).answer(&Secret::from_slice(b"x")).unwrap_err(), error);
}

#[test]
fn gtc_needs_an_answer_before_success() {
    for (mut eap, expected) in [
        (gtc(Some("secret")), EapError::EarlySuccess),
        (gtc(None), EapError::EarlySuccess),
    ] {
        assert_eq!(step(&mut eap, &[3, 0, 0, 4]).unwrap_err(), expected);
    }
    let mut eap = gtc(None);
    asked(step(&mut eap, &request(1, 6, b"?")));
    assert_eq!(step(&mut eap, &[3, 1, 0, 4]).unwrap_err(), EapError::EarlySuccess);
}

#[test]
fn secrets_are_not_shown() {
    for (state, eap) in all_states() {
        let shown = format!("{eap:?}");
        assert!(
            !shown.contains("secret") && !shown.contains("115, 101, 99"),
            "{state}: {shown}"
        );
    }
}

proptest! {
    #[test]
    fn no_packet_panics_in_any_state(
        packets in prop::collection::vec((1..5_u8, any::<u8>(), 0..30_u8, prop::collection::vec(any::<u8>(), 0..40)), 1..4),
        garbage in prop::collection::vec(any::<u8>(), 0..12),
    ) {
        for (_, mut eap) in all_states() {
            for (code, identifier, kind, data) in &packets {
                let mut packet = request(*identifier, *kind, data);
                packet[0] = *code;
                if !matches!(eap.handle(&packet, &mut Rng::new([7; 32]), NOW), Ok(Step::Reply(_))) {
                    break;
                }
            }
        }
        for (_, mut eap) in all_states() {
            drop(eap.handle(&garbage, &mut Rng::new([7; 32]), NOW));
        }
    }
}
