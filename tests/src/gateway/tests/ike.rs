//! IKE SAs: rekeying by either end and by both, inheritance, and every way to end.

use std::time::Duration;

use peregrine_core::crypto::HashKind;
use peregrine_core::proposal::IkeProposal;
use peregrine_core::wire::iana::{ExchangeType, KeMethod, NotifyType};

use super::peer::{Table, delete_ike, note};
use super::said::Said;
use crate::gateway::Side;

const CREATE: ExchangeType = ExchangeType::CREATE_CHILD_SA;
const INFORM: ExchangeType = ExchangeType::INFORMATIONAL;
const DEFAULT: &str = "aes256gcm16-prfsha256-x25519";

fn connected() -> Table {
    Table::connected(|_| {})
}

/// Everything works on this IKE SA: both ends ask, and Child SAs are rekeyed with its keys.
#[track_caller]
fn works(table: &mut Table, sa: usize, child: usize) -> usize {
    assert!(table.ask(sa, INFORM, &[]).kinds().is_empty());
    table.gateway_does(|gateway, now| gateway.ask_liveness(now));
    let question = table.request();
    assert_eq!(question.header.initiator_spi, table.sas[sa].i);
    table.reply(&question, &[]);
    let new = table.rekey_child(sa, child, &[KeMethod::CURVE25519]);
    assert!(table.sends_on(new) && table.is_sent_on(new));
    table.delete_child(sa, child);
    new
}

#[test]
fn the_client_rekeys_and_the_children_move() {
    let mut table = connected();
    table.ask(0, INFORM, &[]);
    let new = table.rekey_ike(0);
    table.has(&[(0, &[]), (new, &[0])]);
    assert!(
        table.sends_on(0) && table.is_sent_on(0),
        "nothing happens to them"
    );
    assert!(table.ask(0, INFORM, &[delete_ike()]).kinds().is_empty());
    table.has(&[(new, &[0])]);
    let child = works(&mut table, new, 0);
    let newer = table.rekey_ike(new);
    table.ask(new, INFORM, &[delete_ike()]);
    table.has(&[(newer, &[child])]);
    works(&mut table, newer, child);
}

#[test]
fn another_prf_and_method_may_be_agreed_on() {
    let mut table = connected();
    // SKEYSEED comes of the old PRF, all else of the new one.
    let draft = table.draft_ike("aes256gcm16-prfsha384-ecp256");
    let granted = table.ask(0, CREATE, &draft.payloads());
    let new = table.make_ike(0, &draft, &granted, HashKind::Sha2_384);
    table.ask(0, INFORM, &[delete_ike()]);
    works(&mut table, new, 0);
}

#[test]
fn the_gateway_rekeys_and_becomes_the_original_initiator() {
    let mut table = connected();
    table.gateway_does(|gateway, now| gateway.rekey_ike(now));
    let request = table.request();
    let (grant, new) = table.grant_ike(0, &request);
    table.send(&grant);
    table.has(&[(0, &[]), (new, &[0])]);
    let delete = table.request();
    assert!(delete.deletes_ike());
    assert_eq!(
        delete.header.initiator_spi, table.sas[0].i,
        "the last request on the old one"
    );
    table.reply(&delete, &[]);
    table.has(&[(new, &[0])]);
    let child = works(&mut table, new, 0);
    // And back again.
    let newer = table.rekey_ike(new);
    table.ask(new, INFORM, &[delete_ike()]);
    works(&mut table, newer, child);
}

#[test]
fn another_key_exchange_method_is_asked_for_by_both() {
    let mut table = Table::connected(|config| {
        config.ike = vec![IkeProposal::parse("aes256gcm16-prfsha256-ecp256-x25519").unwrap()];
    });
    table.gateway.config.ike = vec![IkeProposal::parse("aes256gcm16-prfsha256-ecp256").unwrap()];
    let draft = table.draft_ike("aes256gcm16-prfsha256-x25519-ecp256");
    let answer = table.ask(0, CREATE, &draft.payloads());
    assert_eq!(answer.notify(NotifyType::INVALID_KE_PAYLOAD), Some(vec![0, 19]));
    let draft = table.draft_ike(DEFAULT);
    let answer = table.ask(0, CREATE, &draft.payloads());
    assert_eq!(answer.error(), NotifyType::NO_PROPOSAL_CHOSEN);

    let mut table = connected();
    table.gateway_does(|gateway, now| gateway.rekey_ike(now));
    let request = table.request();
    table.reply(&request, &[note(NotifyType::INVALID_KE_PAYLOAD, &[0, 19])]);
    let request = table.request();
    assert_eq!(request.ke().map(|(method, _)| method), Some(KeMethod::ECP_256));
    let (grant, new) = table.grant_ike(0, &request);
    table.send(&grant);
    table.has(&[(0, &[]), (new, &[0])]);
}

#[test]
fn refusals_are_as_configured() {
    let no_more = NotifyType::NO_ADDITIONAL_SAS;
    let mut table = Table::connected(|config| config.refuse_ike_rekey = Some(no_more));
    let draft = table.draft_ike(DEFAULT);
    assert_eq!(table.ask(0, CREATE, &draft.payloads()).error(), no_more);
    table.has(&[(0, &[0])]);
    works(&mut table, 0, 0);
}

#[test]
fn what_was_rekeyed_cannot_be_rekeyed_again() {
    let mut table = connected();
    let new = table.rekey_ike(0);
    let draft = table.draft_ike(DEFAULT);
    let temporary = NotifyType::TEMPORARY_FAILURE;
    assert_eq!(table.ask(0, CREATE, &draft.payloads()).error(), temporary);
    let draft = table.draft_child(Some(0), &[]);
    assert_eq!(table.ask(0, CREATE, &draft.payloads()).error(), temporary);
    // A Child SA is still deleted, whichever IKE SA says so.
    assert_eq!(
        table.delete_child(0, 0).deleted(),
        [table.children[0].outbound.spi()]
    );
    table.has(&[(0, &[]), (new, &[])]);
}

#[test]
fn what_the_client_should_have_deleted_is_deleted_for_it() {
    let mut table = connected();
    let new = table.rekey_ike(0);
    table.pass(Duration::from_secs(29));
    assert!(table.requests.is_empty());
    table.pass(Duration::from_secs(2));
    let delete = table.request();
    assert!(delete.deletes_ike());
    assert_eq!(delete.header.initiator_spi, table.sas[0].i);
    table.reply(&delete, &[]);
    table.has(&[(new, &[0])]);

    // And forgotten when the client does not answer either.
    let mut table = connected();
    let new = table.rekey_ike(0);
    table.pass(Duration::from_secs(70));
    table.has(&[(new, &[0])]);
}

/// Both ends rekey the IKE SA: the gateway's request, and the client's new IKE SA.
fn cross(table: &mut Table) -> (Said, usize) {
    table.gateway_does(|gateway, now| gateway.rekey_ike(now));
    let request = table.request();
    let new = table.rekey_ike(0);
    table.has(&[(0, &[0]), (new, &[])]);
    (request, new)
}

#[test]
fn when_both_rekey_whoever_has_the_lowest_nonce_deletes_its_own() {
    // The client loses.
    let mut table = Table::connected(|config| config.loser = Some(Side::Client));
    let (request, theirs) = cross(&mut table);
    let (grant, ours) = table.grant_ike(0, &request);
    table.send(&grant);
    table.has(&[(0, &[]), (theirs, &[]), (ours, &[0])]);
    let delete = table.request();
    assert_eq!(
        (delete.deletes_ike(), delete.header.initiator_spi),
        (true, table.sas[0].i)
    );
    table.reply(&delete, &[]);
    table.ask(theirs, INFORM, &[delete_ike()]);
    table.has(&[(ours, &[0])]);
    works(&mut table, ours, 0);

    // The gateway loses: its new one is deleted on itself, with message ID 0.
    let mut table = Table::connected(|config| config.loser = Some(Side::Gateway));
    let (request, theirs) = cross(&mut table);
    let (grant, ours) = table.grant_ike(0, &request);
    table.send(&grant);
    table.has(&[(0, &[]), (theirs, &[0]), (ours, &[])]);
    let delete = table.request();
    assert!(delete.deletes_ike());
    assert_eq!(
        (delete.header.initiator_spi, delete.header.message_id),
        (table.sas[ours].i, 0)
    );
    table.ask(0, INFORM, &[delete_ike()]);
    table.reply(&delete, &[]);
    table.has(&[(theirs, &[0])]);
    works(&mut table, theirs, 0);
}

#[test]
fn a_client_that_did_not_notice_the_collision_is_followed() {
    // RFC 7296, section 2.8.2: its Delete comes while the gateway's request is unanswered.
    let mut table = connected();
    let (request, theirs) = cross(&mut table);
    table.ask(0, INFORM, &[delete_ike()]);
    table.has(&[(theirs, &[0])]);
    works(&mut table, theirs, 0);
    let late = table.seal_reply(&request, &[note(NotifyType::TEMPORARY_FAILURE, &[])]);
    table.send(&late);
    table.pass(Duration::from_secs(60));
    assert!(table.requests.is_empty(), "the gateway has forgotten its own");

    // Its refusal comes first.
    let mut table = connected();
    let (request, theirs) = cross(&mut table);
    table.reply(&request, &[note(NotifyType::TEMPORARY_FAILURE, &[])]);
    table.has(&[(0, &[]), (theirs, &[0])]);
    table.ask(0, INFORM, &[delete_ike()]);
    works(&mut table, theirs, 0);
    table.pass(Duration::from_secs(60));
    assert!(table.requests.is_empty());
}

#[test]
fn a_client_that_lost_may_be_done_before_the_gateway_knows_of_it() {
    let mut table = Table::connected(|config| config.loser = Some(Side::Client));
    let (request, theirs) = cross(&mut table);
    let (grant, ours) = table.grant_ike(0, &request);
    // The answer is lost; the client has seen both exchanges and deletes its own.
    table.ask(theirs, INFORM, &[delete_ike()]);
    table.has(&[(0, &[0])]);
    table.send(&grant);
    table.has(&[(0, &[]), (ours, &[0])]);
    let delete = table.request();
    table.reply(&delete, &[]);
    works(&mut table, ours, 0);
}

#[test]
fn children_and_the_ike_sa_are_not_rekeyed_at_the_same_time() {
    let temporary = NotifyType::TEMPORARY_FAILURE;
    let busy: [fn(&mut crate::gateway::Gateway, peregrine_core::timer::Instant) -> _; 3] = [
        crate::gateway::Gateway::rekey_child,
        crate::gateway::Gateway::new_child,
        crate::gateway::Gateway::delete_child,
    ];
    for act in busy {
        let mut table = connected();
        table.gateway_does(act);
        let draft = table.draft_ike(DEFAULT);
        assert_eq!(table.ask(0, CREATE, &draft.payloads()).error(), temporary);
    }
    let mut table = connected();
    table.gateway_does(|gateway, now| gateway.rekey_ike(now));
    for rekeys in [Some(0), None] {
        let draft = table.draft_child(rekeys, &[]);
        assert_eq!(table.ask(0, CREATE, &draft.payloads()).error(), temporary);
    }
    // But a Delete is a Delete.
    assert_eq!(
        table.delete_child(0, 0).deleted(),
        [table.children[0].outbound.spi()]
    );
    let request = table.request();
    let (grant, new) = table.grant_ike(0, &request);
    table.send(&grant);
    table.has(&[(0, &[]), (new, &[])]);
}

#[test]
fn a_question_of_the_gateways_does_not_keep_the_client_from_rekeying() {
    let mut table = connected();
    table.gateway_does(|gateway, now| gateway.ask_liveness(now));
    let _lost = table.request();
    let new = table.rekey_ike(0);
    table.ask(0, INFORM, &[delete_ike()]);
    let again = table.request();
    assert_eq!(
        again.header.initiator_spi, table.sas[new].i,
        "what was not answered is asked on the new one"
    );
    table.reply(&again, &[]);
    works(&mut table, new, 0);
}

#[test]
fn what_the_client_has_rekeyed_the_gateway_need_not() {
    let mut table = connected();
    table.gateway_does(|gateway, now| gateway.ask_liveness(now));
    table.gateway_does(|gateway, now| gateway.rekey_ike(now));
    table.gateway_does(|gateway, now| gateway.rekey_child(now));
    let _unanswered = table.request();
    let child = table.rekey_child(0, 0, &[]);
    let new = table.rekey_ike(0);
    table.ask(0, INFORM, &[delete_ike()]);
    let question = table.request();
    assert!(question.kinds().is_empty(), "what was asked on the old one");
    table.reply(&question, &[]);
    assert!(table.requests.is_empty());
    table.has(&[(new, &[0, child])]);
}

#[test]
fn what_is_being_closed_is_not_rekeyed() {
    let mut table = connected();
    table.gateway_does(|gateway, now| gateway.delete_ike(now));
    let delete = table.request();
    let temporary = NotifyType::TEMPORARY_FAILURE;
    let draft = table.draft_ike(DEFAULT);
    assert_eq!(table.ask(0, CREATE, &draft.payloads()).error(), temporary);
    let draft = table.draft_child(Some(0), &[]);
    assert_eq!(table.ask(0, CREATE, &draft.payloads()).error(), temporary);
    assert!(table.ask(0, INFORM, &[delete_ike()]).kinds().is_empty());
    table.has(&[]);
    // The answer to a Delete that nobody waits for any more.
    let late = table.seal_reply(&delete, &[]);
    table.send(&late);
    assert_eq!(table.gateway.sas(), 0);
}

#[test]
fn the_client_may_end_it_all_while_the_gateway_rekeys() {
    let mut table = connected();
    table.gateway_does(|gateway, now| gateway.rekey_ike(now));
    assert!(table.ask(0, INFORM, &[delete_ike()]).kinds().is_empty());
    table.has(&[]);
    table.pass(Duration::from_secs(60));
    assert_eq!(table.gateway.sas(), 0);
}

#[test]
fn a_rekey_is_tried_again_ten_seconds_after_a_temporary_failure() {
    let mut table = connected();
    table.gateway_does(|gateway, now| gateway.rekey_ike(now));
    let request = table.request();
    table.reply(&request, &[note(NotifyType::TEMPORARY_FAILURE, &[])]);
    table.pass(Duration::from_millis(9900));
    assert!(table.requests.is_empty());
    table.pass(Duration::from_millis(200));
    let request = table.request();
    let (grant, new) = table.grant_ike(0, &request);
    table.send(&grant);
    table.has(&[(0, &[]), (new, &[0])]);
}

#[test]
fn the_gateways_end_of_it_all_waits_for_the_window() {
    let mut table = connected();
    table.gateway_does(|gateway, now| gateway.ask_liveness(now));
    table.gateway_does(|gateway, now| gateway.delete_ike(now));
    let question = table.request();
    assert!(table.requests.is_empty(), "the window is one");
    // The client rekeys meanwhile: it is the new one that ends, told in the first message on it.
    let new = table.rekey_ike(0);
    table.clear.clear();
    table.pass(Duration::from_secs(1));
    let again = table.request();
    assert_eq!(again.raw, question.raw);
    let delete = table.request();
    assert_eq!(
        (delete.deletes_ike(), delete.header.initiator_spi),
        (true, table.sas[new].i)
    );
    table.reply(&question, &[]);
    table.reply(&delete, &[]);
    assert_eq!(table.gateway.established(), 0);
}
