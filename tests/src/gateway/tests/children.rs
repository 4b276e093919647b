//! Child SAs: keys, rekeying by either end and by both, and every way to end.

use std::time::Duration;

use peregrine_core::proposal::{EspProposal, IkeProposal};
use peregrine_core::timer::Instant;
use peregrine_core::wire::iana::{ExchangeType, KeMethod, NotifyType, PayloadType, ProtocolId};
use peregrine_core::wire::{Notify, Payload};

use super::peer::{CBC, Table, note};
use crate::gateway::{Gateway, Pfs, Side};

const X25519: KeMethod = KeMethod::CURVE25519;
const P256: KeMethod = KeMethod::ECP_256;
const CREATE: ExchangeType = ExchangeType::CREATE_CHILD_SA;
const SECOND: Duration = Duration::from_secs(1);

fn connected() -> Table {
    Table::connected(|_| {})
}

fn esp(keywords: &str) -> Vec<EspProposal> {
    vec![EspProposal::parse(keywords).unwrap()]
}

#[test]
fn a_first_child_carries_packets_both_ways() {
    let mut table = connected();
    table.has(&[(0, &[0])]);
    assert!(table.sends_on(0));
    assert!(table.is_sent_on(0));
}

#[test]
fn the_client_rekeys_with_and_without_a_key_exchange() {
    for methods in [&[X25519][..], &[P256], &[P256, X25519], &[]] {
        let mut table = connected();
        let new = table.rekey_child(0, 0, methods);
        table.has(&[(0, &[0, new])]);
        // The client may not have the answer yet (RFC 7296, section 2.8).
        assert!(table.is_sent_on(0));
        assert!(table.sends_on(0), "the old one still receives");
        assert!(table.is_sent_on(0));
        assert!(table.sends_on(new));
        assert!(table.is_sent_on(new), "the client is known to receive");
        let answer = table.delete_child(0, 0);
        assert_eq!(answer.deleted(), [table.children[0].outbound.spi()]);
        table.has(&[(0, &[new])]);
        assert!(table.is_sent_on(new));
    }
}

#[test]
fn keys_of_ciphers_with_a_separate_integrity_algorithm_are_in_order() {
    let mut table = Table::new(|config| {
        config.ike = vec![IkeProposal::parse("aes256-sha256-x25519").unwrap()];
        config.esp = esp("aes256-sha256-x25519");
    });
    (table.ike_cipher, table.esp_cipher) = (CBC, CBC);
    table.connect();
    assert!(table.sends_on(0) && table.is_sent_on(0));
    let new = table.rekey_child(0, 0, &[X25519]);
    assert!(table.sends_on(new) && table.is_sent_on(new));
}

#[test]
fn a_delete_of_the_old_one_opens_the_new_one_and_stragglers_get_in() {
    let mut table = connected();
    let new = table.rekey_child(0, 0, &[]);
    assert!(table.is_sent_on(0));
    table.delete_child(0, 0);
    assert!(
        table.is_sent_on(new),
        "nothing came on it, but the old one is gone"
    );
    table.pass(Duration::from_millis(4900));
    assert!(table.sends_on(0), "packets that were on their way");
    table.pass(Duration::from_millis(200));
    assert!(!table.sends_on(0));
    assert!(table.sends_on(new));
}

#[test]
fn a_second_rekey_uses_the_nonces_and_secret_of_its_own_exchange() {
    let mut table = connected();
    let mut last = 0;
    for methods in [&[X25519][..], &[], &[P256]] {
        let new = table.rekey_child(0, last, methods);
        assert!(table.sends_on(new) && table.is_sent_on(new));
        table.delete_child(0, last);
        last = new;
    }
    table.has(&[(0, &[last])]);
}

#[test]
fn the_gateway_rekeys_with_and_without_a_key_exchange() {
    for pfs in [Pfs::Never, Pfs::Optional, Pfs::Required] {
        let mut table = Table::connected(|config| config.pfs = pfs);
        table.gateway_does(|gateway, now| gateway.rekey_child(now));
        let request = table.request();
        assert_eq!(request.rekeyed_spi(), Some(table.children[0].outbound.spi()));
        let method = request.ke().map(|(method, _)| method);
        assert_eq!(method, (pfs != Pfs::Never).then_some(X25519), "{pfs:?}");
        let (grant, new) = table.grant_child(0, &request);
        assert!(table.is_sent_on(0));
        table.send(&grant);
        assert!(table.is_sent_on(new), "who began the exchange may send at once");
        assert!(table.sends_on(0), "the client may still send on the old one");
        assert!(table.sends_on(new));
        let delete = table.request();
        table.has(&[(0, &[0, new])]);
        table.confirm_delete(&delete, 0);
        table.has(&[(0, &[new])]);
        assert!(table.sends_on(0));
        table.pass(Duration::from_millis(5100));
        assert!(table.requests.is_empty());
        assert!(!table.sends_on(0));
    }
}

#[test]
fn the_gateways_selectors_are_those_of_the_old_child() {
    let mut table = connected();
    let (ours, theirs) = table.welcome.as_ref().unwrap().selectors();
    table.gateway_does(|gateway, now| gateway.rekey_child(now));
    let request = table.request();
    assert_eq!(request.selectors(), (theirs, ours));
}

#[test]
fn another_key_exchange_method_is_asked_for_when_that_is_acceptable() {
    let mut table = Table::connected(|config| config.esp = esp("aes256gcm16-ecp256"));
    for methods in [&[X25519, P256][..], &[P256]] {
        let draft = table.draft_child(Some(0), methods);
        let answer = table.ask(0, CREATE, &draft.payloads());
        if methods.len() == 2 {
            assert_eq!(
                answer.notify(NotifyType::INVALID_KE_PAYLOAD),
                Some(vec![0, 19]),
                "two octets, and P-256's number"
            );
            assert_eq!(answer.error(), NotifyType::INVALID_KE_PAYLOAD);
        } else {
            let new = table.make_child(0, &draft, &answer);
            assert!(table.sends_on(new));
        }
    }
}

#[test]
fn who_insists_on_or_refuses_a_key_exchange_says_no_proposal_chosen() {
    for (pfs, good, bad) in [
        (Pfs::Required, &[X25519][..], &[][..]),
        (Pfs::Never, &[], &[X25519]),
    ] {
        let mut table = Table::connected(|config| config.pfs = pfs);
        let draft = table.draft_child(Some(0), bad);
        let answer = table.ask(0, CREATE, &draft.payloads());
        assert_eq!(answer.error(), NotifyType::NO_PROPOSAL_CHOSEN, "{pfs:?}");
        table.has(&[(0, &[0])]);
        let new = table.rekey_child(0, 0, good);
        assert!(table.sends_on(new));
    }
    let mut table = connected();
    let draft = table.draft_child(Some(0), &[KeMethod::ECP_384]);
    let answer = table.ask(0, CREATE, &draft.payloads());
    assert_eq!(
        answer.error(),
        NotifyType::NO_PROPOSAL_CHOSEN,
        "nothing in common"
    );
}

#[test]
fn refusals_are_as_configured() {
    let no_more = NotifyType::NO_ADDITIONAL_SAS;
    let mut table = Table::connected(|config| config.refuse_child_rekey = Some(no_more));
    let draft = table.draft_child(Some(0), &[]);
    assert_eq!(table.ask(0, CREATE, &draft.payloads()).error(), no_more);
    let draft = table.draft_child(None, &[]);
    let answer = table.ask(0, CREATE, &draft.payloads());
    assert!(
        answer.kinds().contains(&PayloadType::SA),
        "a further one is something else"
    );

    let mut table = Table::connected(|config| config.refuse_new_child = Some(no_more));
    let draft = table.draft_child(None, &[]);
    assert_eq!(table.ask(0, CREATE, &draft.payloads()).error(), no_more);
    table.rekey_child(0, 0, &[]);
}

#[test]
fn one_more_child_stands_beside_the_first() {
    let mut table = connected();
    let draft = table.draft_child(None, &[X25519]);
    let answer = table.ask(0, CREATE, &draft.payloads());
    let new = table.make_child(0, &draft, &answer);
    table.has(&[(0, &[0, new])]);
    assert!(table.sends_on(0) && table.sends_on(new));
    assert!(table.is_sent_on(new));
    table.delete_child(0, new);
    assert!(table.is_sent_on(0));

    table.gateway_does(|gateway, now| gateway.new_child(now));
    let request = table.request();
    assert_eq!(request.rekeyed_spi(), None);
    let (grant, third) = table.grant_child(0, &request);
    table.send(&grant);
    table.has(&[(0, &[0, third])]);
    assert!(table.is_sent_on(third) && table.sends_on(third));
    assert!(table.requests.is_empty(), "nothing is replaced");
}

#[test]
fn what_nobody_knows_cannot_be_rekeyed() {
    let mut table = connected();
    let outbound = table.children[0].outbound.spi().0.to_be_bytes();
    for (protocol, spi, echoed) in [
        (ProtocolId::ESP, &[9; 4][..], ProtocolId::ESP),
        (ProtocolId::AH, &[9; 4], ProtocolId::AH),
        // The gateway's SPI is not the one to name.
        (ProtocolId::ESP, &outbound, ProtocolId::ESP),
        (ProtocolId(77), &[9; 200], ProtocolId::NONE),
    ] {
        let draft = table.draft_child(None, &[]);
        let mut payloads = draft.payloads();
        payloads.push(Payload::Notify(Notify {
            protocol,
            spi,
            kind: NotifyType::REKEY_SA,
            data: &[],
        }));
        let answer = table.ask(0, CREATE, &payloads);
        assert_eq!(answer.error(), NotifyType::CHILD_SA_NOT_FOUND);
        let payloads = answer.payloads();
        let [Payload::Notify(it)] = payloads.as_slice() else {
            panic!("one notify");
        };
        assert_eq!(it.protocol, echoed);
        let expected = if echoed == ProtocolId::NONE { &[][..] } else { spi };
        assert_eq!(it.spi, expected);
    }
}

#[test]
fn what_is_gone_is_not_known() {
    let mut table = connected();
    let draft = table.draft_child(Some(0), &[]);
    table.delete_child(0, 0);
    let answer = table.ask(0, CREATE, &draft.payloads());
    assert_eq!(answer.error(), NotifyType::CHILD_SA_NOT_FOUND);
    assert!(table.delete_child(0, 0).kinds().is_empty(), "nor deleted again");
    assert_eq!(table.gateway.sas(), 1, "the IKE SA stays");
    assert_eq!(table.gateway.established(), 0);
}

#[test]
fn rekeying_what_the_gateway_deletes_is_put_off() {
    let mut table = connected();
    let draft = table.draft_child(Some(0), &[]);
    table.gateway_does(|gateway, now| gateway.delete_child(now));
    let delete = table.request();
    let answer = table.ask(0, CREATE, &draft.payloads());
    assert_eq!(answer.error(), NotifyType::TEMPORARY_FAILURE);
    table.confirm_delete(&delete, 0);
    table.has(&[(0, &[])]);
}

#[test]
fn deletes_that_cross_are_answered_without_a_delete() {
    let mut table = connected();
    table.gateway_does(|gateway, now| gateway.delete_child(now));
    let delete = table.request();
    assert!(table.delete_child(0, 0).kinds().is_empty());
    table.reply(&delete, &[]);
    table.has(&[(0, &[])]);
    table.pass(Duration::from_secs(10));
    assert!(table.requests.is_empty());
}

#[test]
fn a_delete_that_waits_for_its_turn_is_not_a_delete_that_was_sent() {
    let mut table = connected();
    table.gateway_does(|gateway, now| gateway.ask_liveness(now));
    table.gateway_does(|gateway, now| gateway.delete_child(now));
    let question = table.request();
    let answer = table.delete_child(0, 0);
    assert_eq!(answer.deleted(), [table.children[0].outbound.spi()]);
    table.reply(&question, &[]);
    assert!(table.requests.is_empty(), "there is nothing left to delete");
}

#[test]
fn what_the_client_may_not_have_yet_is_left_alone() {
    let begin: [fn(&mut Gateway, Instant) -> _; 2] = [Gateway::rekey_child, Gateway::delete_child];
    for act in begin {
        // The next request shows that the answer has come; so does a packet.
        let mut table = connected();
        table.rekey_child(0, 0, &[]);
        table.gateway_does(act);
        assert!(table.requests.is_empty());
        table.delete_child(0, 0);
        assert_eq!(table.requests.len(), 1);

        let mut table = connected();
        let draft = table.draft_child(None, &[]);
        let answer = table.ask(0, CREATE, &draft.payloads());
        let new = table.make_child(0, &draft, &answer);
        table.delete_child(0, 0);
        assert!(table.sends_on(new));
        table.gateway_does(act);
        assert_eq!(table.requests.len(), 1);

        // By time it has come, or the client has given up.
        let mut table = connected();
        table.rekey_child(0, 0, &[]);
        table.gateway_does(act);
        table.pass(Duration::from_secs(29));
        assert!(table.requests.is_empty());
        table.pass(2 * SECOND);
        assert!(!table.requests.is_empty());
    }
}

/// Both ends rekey the first child: the gateway's request and the client's draft with its answer.
fn cross(table: &mut Table) -> (super::said::Said, usize) {
    table.gateway_does(|gateway, now| gateway.rekey_child(now));
    let request = table.request();
    let new = table.rekey_child(0, 0, &[X25519]);
    assert!(table.is_sent_on(0));
    (request, new)
}

#[test]
fn when_both_rekey_whoever_has_the_lowest_nonce_deletes_its_own() {
    // The client loses: the gateway deletes the old one, and the client its new one.
    let mut table = Table::connected(|config| config.loser = Some(Side::Client));
    let (request, theirs) = cross(&mut table);
    let (grant, ours) = table.grant_child(0, &request);
    table.send(&grant);
    table.has(&[(0, &[0, theirs, ours])]);
    assert!(table.is_sent_on(ours));
    let delete = table.request();
    table.confirm_delete(&delete, 0);
    let answer = table.delete_child(0, theirs);
    assert_eq!(answer.deleted(), [table.children[theirs].outbound.spi()]);
    table.has(&[(0, &[ours])]);
    assert!(table.is_sent_on(ours) && table.sends_on(ours));

    // The gateway loses: the client deletes the old one, and the gateway its new one.
    let mut table = Table::connected(|config| config.loser = Some(Side::Gateway));
    let (request, theirs) = cross(&mut table);
    let (grant, ours) = table.grant_child(0, &request);
    table.send(&grant);
    table.has(&[(0, &[0, theirs, ours])]);
    let delete = table.request();
    assert!(
        table.is_sent_on(0),
        "the client has not shown that it has the new one"
    );
    let answer = table.delete_child(0, 0);
    assert_eq!(answer.deleted(), [table.children[0].outbound.spi()]);
    assert!(table.is_sent_on(theirs));
    table.confirm_delete(&delete, ours);
    table.has(&[(0, &[theirs])]);
    assert!(table.is_sent_on(theirs) && table.sends_on(theirs));
    assert!(table.requests.is_empty());
}

#[test]
fn nonces_are_compared_octet_by_octet_over_all_four() {
    // Nobody arranges the nonces: whoever has the lowest one loses.
    let (mut gateway_lost, mut client_lost) = (0, 0);
    for round in 0..24 {
        let mut table = connected();
        for _ in 0..round {
            let _: [u8; 8] = table.bytes();
        }
        table.gateway_does(|gateway, now| gateway.rekey_child(now));
        let request = table.request();
        let draft = table.draft_child(Some(0), &[]);
        let answer = table.ask(0, CREATE, &draft.payloads());
        let theirs = table.make_child(0, &draft, &answer);
        let (grant, ours) = table.grant_child(0, &request);
        table.send(&grant);
        let gateways = request.nonce().min(table.said_nonce.clone());
        let clients = draft.nonce.clone().min(answer.nonce());
        let delete = table.request();
        if gateways < clients {
            assert_eq!(delete.deleted(), [table.children[ours].outbound.spi()]);
            gateway_lost += 1;
        } else {
            assert_eq!(delete.deleted(), [table.children[0].outbound.spi()]);
            client_lost += 1;
        }
        table.has(&[(0, &[0, theirs, ours])]);
    }
    assert!(
        gateway_lost > 0 && client_lost > 0,
        "{gateway_lost} {client_lost}"
    );
}

#[test]
fn the_old_one_may_go_before_the_gateway_has_its_answer() {
    // The client saw both exchanges, its answer was lost, and it has acted on the nonces already.
    let mut table = Table::connected(|config| config.loser = Some(Side::Gateway));
    let (request, theirs) = cross(&mut table);
    let (grant, ours) = table.grant_child(0, &request);
    table.delete_child(0, 0);
    assert!(table.is_sent_on(theirs));
    table.send(&grant);
    let delete = table.request();
    table.confirm_delete(&delete, ours);
    table.has(&[(0, &[theirs])]);
    assert!(table.is_sent_on(theirs));

    // The same, and the client lost: its new one is gone before the gateway's answer comes.
    let mut table = Table::connected(|config| config.loser = Some(Side::Client));
    let (request, theirs) = cross(&mut table);
    let (grant, ours) = table.grant_child(0, &request);
    table.delete_child(0, theirs);
    table.send(&grant);
    let delete = table.request();
    table.confirm_delete(&delete, 0);
    table.has(&[(0, &[ours])]);
    assert!(table.is_sent_on(ours));
}

#[test]
fn a_rekey_that_the_client_did_not_notice_is_not_tried_again() {
    // RFC 7296, section 2.8.1, second sequence: the gateway's request was lost, the client is done.
    for error in [NotifyType::CHILD_SA_NOT_FOUND, NotifyType::TEMPORARY_FAILURE] {
        let mut table = connected();
        let (request, theirs) = cross(&mut table);
        table.delete_child(0, 0);
        table.reply(&request, &[note(error, &[])]);
        table.has(&[(0, &[theirs])]);
        assert!(table.is_sent_on(theirs));
        table.pass(Duration::from_secs(30));
        assert!(table.requests.is_empty(), "{error}");
    }
}

#[test]
fn what_the_client_did_meanwhile_stands_and_the_old_one_goes() {
    let mut table = connected();
    let (request, theirs) = cross(&mut table);
    table.reply(&request, &[note(NotifyType::TEMPORARY_FAILURE, &[])]);
    // The client forgets to delete it.
    table.pass(Duration::from_secs(61));
    let delete = table.request();
    table.confirm_delete(&delete, 0);
    table.has(&[(0, &[theirs])]);
}

#[test]
fn deleting_what_the_gateway_rekeys_is_answered_as_usual() {
    let mut table = connected();
    table.gateway_does(|gateway, now| gateway.rekey_child(now));
    let request = table.request();
    let answer = table.delete_child(0, 0);
    assert_eq!(answer.deleted(), [table.children[0].outbound.spi()]);
    table.reply(&request, &[note(NotifyType::CHILD_SA_NOT_FOUND, &[])]);
    table.has(&[(0, &[])]);
    table.pass(Duration::from_secs(20));
    assert!(table.requests.is_empty(), "the client wanted its end");
}

#[test]
fn a_rekey_is_tried_again_ten_seconds_after_a_temporary_failure() {
    let mut table = connected();
    table.gateway_does(|gateway, now| gateway.rekey_child(now));
    for _ in 0..3 {
        let request = table.request();
        assert!(request.rekeyed_spi().is_some());
        table.reply(&request, &[note(NotifyType::TEMPORARY_FAILURE, &[])]);
        table.pass(Duration::from_millis(9900));
        assert!(table.requests.is_empty(), "not at once");
        table.pass(Duration::from_millis(200));
    }
    let request = table.request();
    let (grant, new) = table.grant_child(0, &request);
    table.send(&grant);
    assert!(table.sends_on(new));
}

#[test]
fn temporary_failures_without_end_close_the_ike_sa() {
    let mut table = connected();
    table.gateway_does(|gateway, now| gateway.rekey_child(now));
    for _ in 0..40 {
        let request = table.request();
        if request.deletes_ike() {
            let minutes = table.now.since_origin().as_secs() - 1000;
            assert!((300..330).contains(&minutes), "{minutes} s");
            table.reply(&request, &[]);
            table.has(&[]);
            return;
        }
        table.reply(&request, &[note(NotifyType::TEMPORARY_FAILURE, &[])]);
        table.pass(Duration::from_secs(10));
    }
    panic!("it goes on for ever");
}

#[test]
fn what_the_client_does_not_know_is_dropped_and_made_anew() {
    let mut table = connected();
    table.gateway_does(|gateway, now| gateway.rekey_child(now));
    let request = table.request();
    table.reply(&request, &[note(NotifyType::CHILD_SA_NOT_FOUND, &[])]);
    table.has(&[(0, &[])]);
    let request = table.request();
    assert_eq!(request.rekeyed_spi(), None, "from scratch, and without a Delete");
    let (grant, new) = table.grant_child(0, &request);
    table.send(&grant);
    table.has(&[(0, &[new])]);
    assert!(table.is_sent_on(new) && table.sends_on(new));
}

#[test]
fn the_gateway_follows_the_clients_wishes_for_the_key_exchange() {
    let mut table = connected();
    table.gateway_does(|gateway, now| gateway.rekey_child(now));
    let request = table.request();
    table.reply(&request, &[note(NotifyType::INVALID_KE_PAYLOAD, &[0, 19])]);
    let request = table.request();
    assert_eq!(request.ke().map(|(method, _)| method), Some(P256));
    table.reply(&request, &[note(NotifyType::NO_PROPOSAL_CHOSEN, &[])]);
    let request = table.request();
    assert!(request.ke().is_none(), "then without one");
    let (grant, new) = table.grant_child(0, &request);
    table.send(&grant);
    assert!(table.sends_on(new));

    let mut table = Table::connected(|config| config.pfs = Pfs::Required);
    table.gateway_does(|gateway, now| gateway.rekey_child(now));
    let request = table.request();
    table.reply(&request, &[note(NotifyType::NO_PROPOSAL_CHOSEN, &[])]);
    table.pass(Duration::from_secs(60));
    assert!(table.requests.is_empty(), "never without one");
    table.has(&[(0, &[0])]);
    table.rekey_child(0, 0, &[X25519]);
}

#[test]
fn what_the_client_should_have_deleted_is_deleted_for_it() {
    let mut table = connected();
    let new = table.rekey_child(0, 0, &[]);
    table.pass(Duration::from_secs(59));
    assert!(table.requests.is_empty());
    table.pass(2 * SECOND);
    let delete = table.request();
    table.confirm_delete(&delete, 0);
    table.has(&[(0, &[new])]);
}

#[test]
fn lost_packets_are_counted_for_each_child() {
    let mut table = connected();
    assert!(table.sends_on(0));
    let mut wasted = vec![0; 200];
    for _ in 0..3 {
        let inner = crate::cast::packet("10.3.0.1", "10.9.9.9", 60);
        table.children[0].outbound.seal(&inner, &mut wasted).unwrap();
    }
    assert_eq!(table.gateway.traffic()[0].missing, 0, "not yet known");
    assert!(table.sends_on(0));
    let new = table.rekey_child(0, 0, &[]);
    assert!(table.sends_on(new) && table.is_sent_on(new));
    table.delete_child(0, 0);
    table.pass(Duration::from_secs(6));
    let traffic = table.gateway.traffic();
    let told: Vec<_> = traffic
        .iter()
        .map(|it| (it.received, it.missing, it.sent, it.is_live))
        .collect();
    assert_eq!(told, [(2, 3, 0, false), (1, 0, 1, true)]);
}
