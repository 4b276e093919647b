//! PEAP: what is said in its tunnel.

use peregrine_core::eap::{EapError, MsChapCode, PromptKind};
use peregrine_core::wire::iana::EapType;
use peregrine_tests::eap_server::{PeapInside, Word};

use super::tunnels::{PASSWORD, Room, USER, gtc, inner_gtc, inner_ms_chap, ms_chap};
use super::{Outcome, converse, converse_with};

/// What becomes of a conversation with a server that says this in its tunnel, one after the other, and then EAP-Success;
/// and what it heard.
fn says(room: &Room, password: &str, words: &[&[u8]]) -> (Outcome, Vec<Vec<u8>>) {
    let mut words: Vec<Vec<u8>> = words.iter().rev().map(|word| word.to_vec()).collect();
    let (heard, mut log) = std::sync::mpsc::channel();
    let mut server = room.peap_server(move |said: &[u8], _: &[u8; 17]| {
        heard.send(said.to_vec()).unwrap();
        words.pop().map_or(Word::Accept, Word::Say)
    });
    let outcome = converse(&mut room.peap_peer(inner_ms_chap(password)), &mut server);
    drop(server);
    let heard = log.iter().collect();
    let _ = &mut log;
    (outcome, heard)
}

const IDENTITY: &[u8] = &[1, 5, 0, 5, 1];
const SUCCESS: &[u8] = &[1, 9, 0, 11, 33, 0x80, 3, 0, 2, 0, 1];
const FAILURE: &[u8] = &[1, 9, 0, 11, 33, 0x80, 3, 0, 2, 0, 2];
const OUR_FAILURE: &[u8] = &[2, 9, 0, 11, 33, 0x80, 3, 0, 2, 0, 2];

#[test]
fn ms_chap_v2_succeeds() {
    let room = Room::new();
    let mut server = room.peap_server(PeapInside::new(ms_chap()));
    converse(&mut room.peap_peer(inner_ms_chap(PASSWORD)), &mut server).assert_success();
}

#[test]
fn gtc_succeeds_with_a_password_and_a_code() {
    let room = Room::new();
    let questions = [("Password: ", PASSWORD), ("Code: ", "123456")];
    let mut server = room.peap_server(PeapInside::new(gtc(&questions)));
    let mut peer = room.peap_peer(inner_gtc(Some(PASSWORD)));
    let outcome = converse_with(&mut peer, &mut server, &["123456"]);
    outcome.assert_success();
    assert_eq!(outcome.questions.len(), 1);
    assert_eq!(outcome.questions[0].kind, PromptKind::OneTimeCode);
    assert_eq!(outcome.questions[0].message.as_deref(), Some("Code:"));
}

#[test]
fn a_wrong_password_is_told() {
    let room = Room::new();
    let mut server = room.peap_server(PeapInside::new(ms_chap()));
    let outcome = converse(&mut room.peap_peer(inner_ms_chap("wrong")), &mut server);
    assert_eq!(
        outcome.error(),
        EapError::MsChap {
            code: MsChapCode::AUTHENTICATION_FAILURE,
            message: "Authentication failed".to_owned()
        }
    );
    // Where the inner method has no word for it, the result has.
    let mut server = room.peap_server(PeapInside::new(gtc(&[("?", PASSWORD)])));
    let outcome = converse(&mut room.peap_peer(inner_gtc(Some("wrong"))), &mut server);
    assert_eq!(outcome.error(), EapError::Refused);
}

/// The headers are left out, except from the result.
#[test]
fn answers_are_compressed() {
    let room = Room::new();
    // With the header, as FreeRADIUS asks, and without.
    for request in [IDENTITY, &[1]] {
        let (outcome, heard) = says(&room, PASSWORD, &[request]);
        assert_eq!(heard[0], b"");
        assert_eq!(heard[1], [&[1], USER.as_bytes()].concat());
        assert_eq!(outcome.error(), EapError::EarlySuccess);
    }
    let challenge = [&[26, 1, 7, 0, 21, 16][..], &[9; 16]].concat();
    let (_, heard) = says(&room, PASSWORD, &[IDENTITY, &challenge]);
    assert_eq!(heard[2][..6], [26, 2, 7, 0, 67, 49]);
}

#[test]
fn a_result_before_its_time_is_answered_with_no() {
    let room = Room::new();
    let challenge = [&[26, 1, 7, 0, 21, 16][..], &[9; 16]].concat();
    for words in [
        &[SUCCESS][..],
        &[IDENTITY, SUCCESS],
        &[IDENTITY, &challenge, SUCCESS],
    ] {
        let (outcome, heard) = says(&room, PASSWORD, words);
        assert_eq!(heard.last().unwrap(), OUR_FAILURE);
        assert_eq!(outcome.error(), EapError::EarlySuccess);
    }
}

#[test]
fn the_result_no_is_repeated() {
    let room = Room::new();
    let (outcome, heard) = says(&room, PASSWORD, &[IDENTITY, FAILURE]);
    assert_eq!(heard.last().unwrap(), OUR_FAILURE);
    assert_eq!(outcome.error(), EapError::Refused);
}

/// The inner method is complete, but the server does not say in the tunnel that it is content.
#[test]
fn success_without_the_result_is_refused() {
    let room = Room::new();
    let questions = [("?", PASSWORD)];
    let mut inside = PeapInside::new(gtc(&questions));
    let mut server = room.peap_server(move |said: &[u8], challenge: &[u8; 17]| {
        match peregrine_tests::eap_server::Inside::hear(&mut inside, said, challenge) {
            Word::Say(words) if words.get(4) == Some(&33) => Word::Accept,
            other => other,
        }
    });
    let outcome = converse(&mut room.peap_peer(inner_gtc(Some(PASSWORD))), &mut server);
    assert!(outcome.server.is_some(), "the server was content");
    assert_eq!(outcome.error(), EapError::EarlySuccess);
}

#[test]
fn a_request_after_the_result_is_refused() {
    let room = Room::new();
    let mut inside = PeapInside::new(ms_chap());
    let mut over = false;
    let mut server = room.peap_server(move |said: &[u8], challenge: &[u8; 17]| {
        if over {
            return Word::Say(IDENTITY.to_vec());
        }
        let word = peregrine_tests::eap_server::Inside::hear(&mut inside, said, challenge);
        over = matches!(&word, Word::Say(words) if words.get(4) == Some(&33));
        word
    });
    let error = converse(&mut room.peap_peer(inner_ms_chap(PASSWORD)), &mut server).error();
    assert_eq!(
        error,
        EapError::Malformed("a request after the method was complete")
    );
}

#[test]
fn a_weaker_method_in_the_tunnel_is_declined() {
    let room = Room::new();
    let (outcome, heard) = says(&room, PASSWORD, &[IDENTITY, b"\x06Password: ", b"\x06Password: "]);
    assert_eq!(heard[2], [3, 26], "a Nak that asks for EAP-MSCHAPv2");
    assert_eq!(heard.len(), 3, "no answer to the second one");
    assert_eq!(
        outcome.error(),
        EapError::InnerMethodOffered {
            offered: EapType::GTC,
            wanted: EapType::MSCHAPV2
        }
    );
}

/// Windows Server asks for a statement of health, and for more, before it comes to the point.
#[test]
fn extensions_of_windows_server_are_declined() {
    let room = Room::new();
    let (_, heard) = says(
        &room,
        PASSWORD,
        &[
            IDENTITY,
            b"\xfe\x00\x01\x37\x00\x00\x00\x21",
            b"\xfe\x00\x01\x37\x00\x00\x00\x22",
            &[&[26, 1, 7, 0, 21, 16][..], &[9; 16]].concat(),
        ],
    );
    assert_eq!(heard[2..4], [vec![3, 26], vec![3, 26]]);
    assert_eq!(heard[4][..2], [26, 2]);
}

#[test]
fn broken_results_are_refused() {
    let room = Room::new();
    for words in [
        &[1, 9, 0, 5, 33][..],
        &[1, 9, 0, 9, 33, 0x80, 3, 0, 2],
        &[1, 9, 0, 11, 33, 0x80, 3, 0, 2, 0, 3],
        &[1, 9, 0, 11, 33, 0x80, 3, 0xff, 0xff, 0, 1],
        &[3, 9, 0, 4],
        &[4, 9, 0, 4],
    ] {
        let (outcome, _) = says(&room, PASSWORD, &[IDENTITY, words]);
        let error = outcome.error();
        assert!(matches!(error, EapError::Malformed(_)), "{words:02x?}: {error}");
    }
}
