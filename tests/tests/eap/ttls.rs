//! EAP-TTLS: what is said in its tunnel.

use peregrine_core::eap::{EapError, EapMd5, InnerEap, MsChapCode, PromptKind, TtlsInner};
use peregrine_core::wire::iana::EapType;
use peregrine_tests::eap_server::{Avp, Md5Server, ServerMethod, TtlsInside, Word, avps};

use super::tunnels::{PASSWORD, Room, USER, gtc, inner_gtc, inner_ms_chap, ms_chap, password};
use super::{Outcome, converse, converse_with};

fn pap() -> TtlsInner {
    TtlsInner::Pap {
        password: password(PASSWORD),
    }
}

fn plain_ms_chap() -> TtlsInner {
    TtlsInner::MsChapV2 {
        password: password(PASSWORD),
    }
}

fn md5(text: &str) -> TtlsInner {
    TtlsInner::Eap(InnerEap::Md5(EapMd5 {
        password: password(text),
    }))
}

/// What becomes of a conversation with a server that says this in its tunnel, one after the other, and then EAP-Success.
fn says(room: &Room, inner: TtlsInner, words: &[Vec<u8>]) -> Outcome {
    let words: Vec<_> = words.to_vec();
    let mut words = words.into_iter();
    let mut server =
        room.ttls_server(move |_: &[u8], _: &[u8; 17]| words.next().map_or(Word::Accept, Word::Say));
    converse(&mut room.ttls_peer(inner), &mut server)
}

fn eap_message(packet: &[u8]) -> Vec<u8> {
    Avp::new((0, 79), packet).encode()
}

#[test]
fn every_method_in_the_tunnel_succeeds_with_the_right_password_and_no_other() {
    for room in Room::of_each_version() {
        type Case = (TtlsInner, fn() -> TtlsInside);
        let cases = |text: &str| -> [Case; 5] {
            [
                (
                    TtlsInner::Pap {
                        password: password(text),
                    },
                    || TtlsInside::pap(USER, PASSWORD),
                ),
                (
                    TtlsInner::MsChapV2 {
                        password: password(text),
                    },
                    || TtlsInside::ms_chap_v2(USER, PASSWORD),
                ),
                (TtlsInner::Eap(inner_ms_chap(text)), || TtlsInside::eap(ms_chap())),
                (TtlsInner::Eap(inner_gtc(Some(text))), || {
                    TtlsInside::eap(gtc(&[("Password: ", PASSWORD)]))
                }),
                (md5(text), || {
                    TtlsInside::eap(ServerMethod::Md5(Md5Server::new(PASSWORD)))
                }),
            ]
        };
        for (inner, server) in cases(PASSWORD) {
            let outcome = converse(&mut room.ttls_peer(inner), &mut room.ttls_server(server()));
            outcome.assert_success();
        }
        for text in ["password", "", &"x".repeat(200)] {
            for (number, (inner, server)) in cases(text).into_iter().enumerate() {
                let outcome = converse(&mut room.ttls_peer(inner), &mut room.ttls_server(server()));
                let expected = match number {
                    2 => EapError::MsChap {
                        code: MsChapCode::AUTHENTICATION_FAILURE,
                        message: "Authentication failed".to_owned(),
                    },
                    _ => EapError::Refused,
                };
                assert_eq!(outcome.error(), expected, "{number}");
            }
        }
    }
}

#[test]
fn a_code_is_asked_for_after_the_password() {
    for room in Room::of_each_version() {
        let questions = [
            (String::new(), PASSWORD.to_owned()),
            ("Code on your phone? \u{202e}".to_owned(), "123456".to_owned()),
            (String::new(), "654321".to_owned()),
        ];
        let inside = TtlsInside::Pap(USER.to_owned(), questions.to_vec());
        let mut server = room.ttls_server(inside);
        let outcome = converse_with(&mut room.ttls_peer(pap()), &mut server, &["123456", "654321"]);
        outcome.assert_success();
        let asked: Vec<_> = outcome
            .questions
            .iter()
            .map(|question| (question.kind, question.message.as_deref()))
            .collect();
        assert_eq!(
            asked,
            [
                (PromptKind::OneTimeCode, Some(r"Code on your phone? \u{202e}")),
                (PromptKind::OneTimeCode, None),
            ]
        );

        let mut server = room.ttls_server(TtlsInside::eap(gtc(&[
            ("Password: ", PASSWORD),
            ("Code: ", "123456"),
        ])));
        let mut peer = room.ttls_peer(TtlsInner::Eap(inner_gtc(None)));
        let outcome = converse_with(&mut peer, &mut server, &[PASSWORD, "123456"]);
        outcome.assert_success();
        let kinds: Vec<_> = outcome.questions.iter().map(|question| question.kind).collect();
        assert_eq!(kinds, [PromptKind::Password, PromptKind::OneTimeCode]);
    }
}

/// The password's length does not show in that of the packet.
#[test]
fn the_length_of_a_password_is_hidden() {
    let room = Room::new();
    let length = |text: &str| {
        let peer = TtlsInner::Pap {
            password: password(text),
        };
        let mut server = room.ttls_server(TtlsInside::pap(USER, text));
        let outcome = converse(&mut room.ttls_peer(peer), &mut server);
        outcome.assert_success();
        outcome.replies.last().unwrap().len()
    };
    assert_eq!(length("x"), length(&"x".repeat(16)));
    assert_eq!(length(""), length("x"));
    assert_eq!(length(&"x".repeat(17)), length("x") + 16);
}

/// Some servers ask for the identity although they need not.
#[test]
fn a_server_may_ask_for_the_identity_in_the_tunnel() {
    let room = Room::new();
    let mut inside = TtlsInside::eap(ms_chap());
    let mut asked = false;
    let mut server = room.ttls_server(move |said: &[u8], challenge: &[u8; 17]| {
        if !asked {
            asked = true;
            let [pair] = <[Avp; 1]>::try_from(avps(said)).unwrap();
            assert_eq!(pair.data, [&[2, 0, 0, 18, 1], USER.as_bytes()].concat());
            return Word::Say(eap_message(&[1, 0x63, 0, 5, 1]));
        }
        // The second answer has the identifier of the question.
        let said = if said.windows(2).any(|window| window == [2, 0x63]) {
            eap_message(&[&[2, 0, 0, 18, 1], USER.as_bytes()].concat())
        } else {
            said.to_vec()
        };
        peregrine_tests::eap_server::Inside::hear(&mut inside, &said, challenge)
    });
    let mut peer = room.ttls_peer(TtlsInner::Eap(inner_ms_chap(PASSWORD)));
    converse(&mut peer, &mut server).assert_success();
}

/// What becomes of a conversation with a server that claims success with this value, made from the identifier.
fn claims(room: &Room, value: impl Fn(u8) -> Vec<u8> + 'static) -> Outcome {
    let mut told = false;
    let mut server = room.ttls_server(move |_: &[u8], challenge: &[u8; 17]| {
        if std::mem::replace(&mut told, true) {
            return Word::Accept;
        }
        Word::Say(Avp::new((311, 26), &value(challenge[16])).encode())
    });
    converse(&mut room.ttls_peer(plain_ms_chap()), &mut server)
}

/// The right proof, with the identifier of another response.
#[test]
fn a_proof_for_another_response_is_not_believed() {
    for room in Room::of_each_version() {
        for (flipped, good) in [(0, true), (1, false)] {
            let mut inside = TtlsInside::ms_chap_v2(USER, PASSWORD);
            let mut server = room.ttls_server(move |said: &[u8], challenge: &[u8; 17]| {
                match peregrine_tests::eap_server::Inside::hear(&mut inside, said, challenge) {
                    Word::Say(mut words) => {
                        words[12] ^= flipped;
                        Word::Say(words)
                    }
                    other => other,
                }
            });
            let outcome = converse(&mut room.ttls_peer(plain_ms_chap()), &mut server);
            match good {
                true => outcome.assert_success(),
                false => assert_eq!(outcome.error(), EapError::ServerUnproven),
            }
        }
    }
}

#[test]
fn a_server_that_does_not_know_the_password_is_not_believed() {
    for room in Room::of_each_version() {
        const GUESS: &[u8] = b"S=0123456789ABCDEF0123456789ABCDEF01234567 M=Welcome";
        // Without a proof.
        assert_eq!(says(&room, plain_ms_chap(), &[]).error(), EapError::EarlySuccess);
        assert_eq!(
            says(&room, plain_ms_chap(), &[Vec::new()]).error(),
            EapError::EarlySuccess
        );
        // With one that is guessed.
        let outcome = claims(&room, |ident| [&[ident], GUESS].concat());
        // A packet without data would say that we are content.
        assert_eq!(outcome.sent.len(), outcome.replies.len() + 1, "no answer");
        assert_eq!(outcome.error(), EapError::ServerUnproven);
        for value in [&b""[..], b"\x01"] {
            let outcome = says(&room, plain_ms_chap(), &[Avp::new((311, 26), value).encode()]);
            assert!(
                matches!(outcome.error(), EapError::Malformed(_) | EapError::ServerUnproven),
                "{value:?}"
            );
        }
    }
}

#[test]
fn an_error_of_ms_chap_is_told() {
    let room = Room::new();
    let value = b"\x07E=648 R=0 C=000102030405060708090A0B0C0D0E0F V=3 M=Change it";
    let outcome = says(&room, plain_ms_chap(), &[Avp::new((311, 2), value).encode()]);
    assert_eq!(
        outcome.error(),
        EapError::MsChap {
            code: MsChapCode::PASSWORD_EXPIRED,
            message: "Change it".to_owned()
        }
    );
}

/// A server that has its certificate, but asks for more than the profile gives it.
#[test]
fn a_weaker_method_in_the_tunnel_is_declined() {
    let room = Room::new();
    let gtc = eap_message(&[1, 7, 0, 6, 6, b'?']);
    let again = eap_message(&[1, 8, 0, 6, 6, b'?']);
    let outcome = says(
        &room,
        TtlsInner::Eap(inner_ms_chap(PASSWORD)),
        &[gtc.clone(), again],
    );
    assert_eq!(
        outcome.error(),
        EapError::InnerMethodOffered {
            offered: EapType::GTC,
            wanted: EapType::MSCHAPV2
        }
    );
    for inner in [pap(), plain_ms_chap()] {
        let error = says(&room, inner, std::slice::from_ref(&gtc)).error();
        let expected = "an attribute of another method than the one that runs";
        assert_eq!(error, EapError::Malformed(expected));
    }
    // What belongs to another method means nothing.
    for pair in [Avp::new((311, 26), b"\x01S="), Avp::new((311, 2), b"\x01E=691")] {
        for inner in [pap(), TtlsInner::Eap(inner_ms_chap(PASSWORD))] {
            let error = says(&room, inner, &[pair.encode()]).error();
            assert!(matches!(error, EapError::Malformed(_)), "{error}");
        }
    }
}

#[test]
fn success_in_the_tunnel_before_its_time_is_refused() {
    for room in Room::of_each_version() {
        let success = eap_message(&[3, 0, 0, 4]);
        for inner in [
            TtlsInner::Eap(inner_ms_chap(PASSWORD)),
            TtlsInner::Eap(inner_gtc(Some(PASSWORD))),
            md5(PASSWORD),
        ] {
            assert_eq!(
                says(&room, inner, std::slice::from_ref(&success)).error(),
                EapError::EarlySuccess
            );
        }
        let failure = eap_message(&[4, 0, 0, 4]);
        let error = says(&room, md5(PASSWORD), &[failure]).error();
        assert_eq!(error, EapError::Refused);
    }
}

#[test]
fn what_must_be_known_and_is_not_ends_the_conversation() {
    let room = Room::new();
    let mut unknown = Avp::new((0, 4711), b"x");
    let error = says(&room, pap(), &[unknown.encode()]).error();
    assert_eq!(
        error,
        EapError::Malformed("a mandatory attribute that we do not know")
    );
    unknown.mandatory = false;
    says(&room, pap(), &[unknown.encode()]).assert_success();
    // What may come with success.
    says(&room, pap(), &[Avp::new((311, 10), b"\x01EXAMPLE").encode()]).assert_success();
}

#[test]
fn broken_and_overlong_attributes_are_refused() {
    let room = Room::new();
    let whole = Avp::new((0, 18), b"Code?").encode();
    let mut overlong = whole.clone();
    overlong[5..8].copy_from_slice(&[0xff, 0xff, 0xff]);
    let twice = [whole.clone(), whole.clone()].concat();
    for words in [
        overlong,
        whole[..7].to_vec(),
        whole[..12].to_vec(),
        vec![0; 8],
        twice,
    ] {
        let error = says(&room, pap(), std::slice::from_ref(&words)).error();
        assert!(matches!(error, EapError::Malformed(_)), "{words:02x?}: {error}");
    }
    // A long question is cut.
    let long = Avp::new((0, 18), "x".repeat(30_000).as_bytes()).encode();
    let mut words = vec![long].into_iter();
    let mut server =
        room.ttls_server(move |_: &[u8], _: &[u8; 17]| words.next().map_or(Word::Accept, Word::Say));
    let outcome = converse_with(&mut room.ttls_peer(pap()), &mut server, &["1"]);
    outcome.assert_success();
    assert_eq!(outcome.questions[0].message.as_ref().unwrap().len(), 512);
}
