//! Message IDs, the window, retransmission, fragments.

use std::time::Duration;

use peregrine_core::wire::iana::{CertEncoding, ExchangeType, NotifyType};
use peregrine_core::wire::{Cert, Payload};

use super::peer::Table;

const INFORM: ExchangeType = ExchangeType::INFORMATIONAL;

#[test]
fn requests_wait_for_their_turn() {
    let mut table = Table::connected(|_| {});
    table.gateway_does(|gateway, now| gateway.ask_liveness(now));
    table.gateway_does(|gateway, now| gateway.rekey_child(now));
    table.gateway_does(|gateway, now| gateway.ask_liveness(now));
    let first = table.request();
    assert!(table.requests.is_empty());
    table.reply(&first, &[]);
    let second = table.request();
    assert!(table.requests.is_empty());
    let (grant, _) = table.grant_child(0, &second);
    table.send(&grant);
    let third = table.request();
    assert_eq!(
        [first, second, third].map(|said| said.header.message_id),
        [0, 1, 2]
    );
    assert!(table.requests.is_empty());
}

#[test]
fn a_request_is_sent_again_with_growing_pauses_and_then_the_client_is_forgotten() {
    let mut table = Table::connected(|_| {});
    let begun = table.now;
    table.gateway_does(|gateway, now| gateway.ask_liveness(now));
    let first = table.request();
    let mut times = Vec::new();
    while table.gateway.sas() == 1 {
        table.pass(Duration::from_millis(100));
        if let Some(again) = table.requests.pop_front() {
            assert_eq!(again.raw, first.raw, "the same octets");
            times.push(table.now.since(begun).as_secs());
        }
    }
    assert_eq!(times, [1, 3, 7, 11, 15, 19, 23, 27]);
    assert_eq!(table.now.since(begun), Duration::from_secs(30));
    assert!(table.requests.is_empty(), "silently");
    table.has(&[]);
    assert_eq!(
        table.gateway.traffic().len(),
        1,
        "what went through is not forgotten"
    );
}

#[test]
fn an_answer_ends_retransmission_and_a_second_answer_changes_nothing() {
    let mut table = Table::connected(|_| {});
    table.gateway_does(|gateway, now| gateway.ask_liveness(now));
    let question = table.request();
    table.pass(Duration::from_secs(4));
    assert_eq!(table.requests.len(), 2);
    table.requests.clear();
    let answer = table.seal_reply(&question, &[]);
    table.send(&answer);
    table.send(&answer);
    assert_eq!(table.gateway.answers().len(), 1);
    table.gateway_does(|gateway, now| gateway.ask_liveness(now));
    table.send(&answer);
    assert_eq!(table.gateway.answers().len(), 1, "that was the other question");
    let question = table.request();
    table.reply(&question, &[]);
    assert_eq!(table.gateway.answers().len(), 2);
    table.pass(Duration::from_secs(60));
    assert!(table.requests.is_empty());
    table.has(&[(0, &[0])]);
}

#[test]
fn a_repeated_request_gets_the_same_octets_and_a_strange_one_nothing() {
    let mut table = Table::connected(|_| {});
    let request = table.seal_request(0, INFORM, &[]);
    let later = table.seal_request(0, INFORM, &[]);
    table.send(&later);
    assert!(table.responses.is_empty(), "ahead of the window");
    table.send(&request);
    let answer = table.responses.pop_front().unwrap();
    table.send(&request);
    assert_eq!(table.responses.pop_front().unwrap().raw, answer.raw);
    table.send(&later);
    assert!(table.responses.pop_front().is_some());
    table.send(&request);
    assert!(table.responses.is_empty(), "behind the window");
    assert_eq!(table.gateway.transcript.len(), 3, "IKE_AUTH and these two");
}

#[test]
fn what_is_not_from_the_client_is_not_heard() {
    let mut table = Table::connected(|_| {});
    let request = table.seal_request(0, INFORM, &[]);
    for position in 4..request.len() {
        let mut bent = request.clone();
        bent[position] ^= 1;
        table.send(&bent);
        assert!(
            table.responses.is_empty() && table.requests.is_empty(),
            "octet {position}"
        );
    }
    // A message of the gateway's own, reflected.
    table.gateway_does(|gateway, now| gateway.ask_liveness(now));
    let question = table.request();
    table.send(&[&[0; 4], question.raw.as_slice()].concat());
    assert!(table.responses.is_empty());
    table.send(&request);
    assert_eq!(table.responses.len(), 1);
}

#[test]
fn long_messages_travel_in_fragments_if_both_can() {
    for speaks in [false, true] {
        let mut table = Table::new(|config| config.fragment = Some(100));
        if speaks {
            table.hello = vec![(NotifyType::IKEV2_FRAGMENTATION_SUPPORTED, vec![])];
        }
        table.connect();
        table.gateway_does(|gateway, now| gateway.rekey_child(now));
        let request = table.request();
        assert_eq!(request.raw.len() <= 100, speaks, "{} octets", request.raw.len());
        let (grant, new) = table.grant_child(0, &request);
        table.send(&grant);
        assert!(table.sends_on(new));
    }
}

#[test]
fn a_request_in_fragments_is_answered_once() {
    use peregrine_core::wire::{Flags, Header, VERSION, seal_fragments};

    let mut table = Table::connected(|_| {});
    let data = [7; 900];
    let cert = Payload::Cert(Cert {
        encoding: CertEncoding::X509_SIGNATURE,
        data: &data,
    });
    let (i, r) = (table.sas[0].i, table.sas[0].r);
    let header = Header {
        initiator_spi: i,
        responder_spi: r,
        next_payload: peregrine_core::wire::iana::PayloadType::NONE,
        version: VERSION,
        exchange: INFORM,
        flags: Flags {
            initiator: true,
            version: false,
            response: false,
        },
        message_id: table.sas[0].next,
        length: 0,
    };
    let mut iv = 1000;
    let parts = seal_fragments(header, &[cert], table.sas[0].key_out(), &mut iv, 300).unwrap();
    assert!(parts.len() > 2);
    let datagrams: Vec<Vec<u8>> = parts
        .iter()
        .map(|part| [&[0; 4], part.as_slice()].concat())
        .collect();
    for datagram in datagrams.iter().rev() {
        assert!(table.responses.is_empty());
        table.send(datagram);
    }
    assert_eq!(table.responses.len(), 1);
    for datagram in &datagrams {
        table.send(datagram);
    }
    assert_eq!(
        table.responses.len(),
        2,
        "only the first fragment draws the answer again"
    );
    assert_eq!(table.gateway.transcript.len(), 2);
}
