//! Time: lifetimes, silence, restarts, and SPIs that nobody knows.

use std::time::Duration;

use peregrine_core::wire::IkeSpi;
use peregrine_core::wire::iana::{ExchangeType, NotifyType};

use super::peer::{Table, delete_ike, note};
use super::said::clear;
use crate::gateway::{End, Life};

const INFORM: ExchangeType = ExchangeType::INFORMATIONAL;

const fn life(seconds: u64, end: End) -> Option<Life> {
    Some(Life {
        age: Duration::from_secs(seconds),
        end,
    })
}

#[test]
fn a_child_of_age_is_rekeyed_and_so_is_its_successor() {
    let mut table = Table::connected(|config| config.child_life = life(10, End::Rekey));
    let mut last = 0;
    for _ in 0..3 {
        table.pass(Duration::from_millis(9900));
        assert!(table.requests.is_empty());
        table.pass(Duration::from_millis(200));
        let request = table.request();
        assert_eq!(request.rekeyed_spi(), Some(table.children[last].outbound.spi()));
        let (grant, new) = table.grant_child(0, &request);
        table.send(&grant);
        let delete = table.request();
        table.confirm_delete(&delete, last);
        last = new;
        table.has(&[(0, &[last])]);
    }
}

#[test]
fn a_child_that_cannot_be_rekeyed_is_deleted() {
    let mut table = Table::connected(|config| config.child_life = life(1000, End::Rekey));
    table.pass(Duration::from_secs(1000));
    let request = table.request();
    table.reply(&request, &[note(NotifyType::NO_ADDITIONAL_SAS, &[])]);
    table.pass(Duration::from_secs(99));
    assert!(table.requests.is_empty());
    table.pass(Duration::from_secs(1));
    let delete = table.request();
    table.confirm_delete(&delete, 0);
    table.has(&[(0, &[])]);
    table.pass(Duration::from_secs(2000));
    assert!(table.requests.is_empty());
}

#[test]
fn a_child_may_simply_end() {
    let mut table = Table::connected(|config| config.child_life = life(10, End::Delete));
    table.pass(Duration::from_secs(10));
    let delete = table.request();
    table.confirm_delete(&delete, 0);
    table.has(&[(0, &[])]);
}

#[test]
fn an_ike_sa_of_age_is_rekeyed_or_deleted() {
    let mut table = Table::connected(|config| config.ike_life = life(30, End::Rekey));
    let mut last = 0;
    for _ in 0..3 {
        table.pass(Duration::from_secs(30));
        let request = table.request();
        let (grant, new) = table.grant_ike(last, &request);
        table.send(&grant);
        let delete = table.request();
        table.reply(&delete, &[]);
        last = new;
        table.has(&[(last, &[0])]);
    }
    // The client rekeys: the age begins anew.
    table.pass(Duration::from_secs(20));
    let new = table.rekey_ike(last);
    table.ask(last, INFORM, &[delete_ike()]);
    table.pass(Duration::from_secs(29));
    assert!(table.requests.is_empty());
    table.pass(Duration::from_secs(1));
    let request = table.request();
    table.reply(&request, &[note(NotifyType::NO_ADDITIONAL_SAS, &[])]);
    table.pass(Duration::from_secs(60));
    let delete = table.request();
    assert!(delete.deletes_ike(), "it cannot be rekeyed");
    table.reply(&delete, &[]);
    table.has(&[]);
    let _ = new;

    let mut table = Table::connected(|config| config.ike_life = life(30, End::Delete));
    table.pass(Duration::from_secs(30));
    assert!(table.request().deletes_ike());
}

#[test]
fn authentication_runs_out_whatever_is_rekeyed() {
    let mut table = Table::connected(|config| config.auth_lifetime = Some(Duration::from_secs(100)));
    let welcome = table.welcome.as_ref().unwrap();
    assert_eq!(
        welcome.notify(NotifyType::AUTH_LIFETIME),
        Some(vec![0, 0, 0, 100])
    );
    table.pass(Duration::from_secs(50));
    let new = table.rekey_ike(0);
    table.ask(0, INFORM, &[delete_ike()]);
    table.pass(Duration::from_secs(49));
    assert!(table.requests.is_empty());
    table.pass(Duration::from_secs(1));
    let delete = table.request();
    assert_eq!(
        (delete.deletes_ike(), delete.header.initiator_spi),
        (true, table.sas[new].i)
    );

    let mut table = Table::connected(|_| {});
    table.gateway_does(|gateway, now| gateway.announce_lifetime(Duration::from_secs(7), now));
    let said = table.request();
    assert_eq!(said.notify(NotifyType::AUTH_LIFETIME), Some(vec![0, 0, 0, 7]));
    table.reply(&said, &[]);
    table.pass(Duration::from_secs(7));
    assert!(table.request().deletes_ike());
}

#[test]
fn silence_is_asked_about() {
    let mut table = Table::connected(|config| config.dpd = Some(Duration::from_secs(20)));
    for _ in 0..5 {
        table.pass(Duration::from_secs(15));
        assert!(table.sends_on(0));
    }
    assert!(table.requests.is_empty(), "the client lives");
    table.pass(Duration::from_secs(20));
    let question = table.request();
    assert!(question.kinds().is_empty());
    table.reply(&question, &[]);
    table.pass(Duration::from_secs(19));
    assert!(table.requests.is_empty());
    table.pass(Duration::from_secs(32));
    assert_eq!(table.gateway.sas(), 0, "it was asked, and did not answer");
}

#[test]
fn after_a_restart_nothing_is_known_and_that_is_said_in_clear() {
    let mut table = Table::connected(|_| {});
    table.gateway.restart();
    let request = table.seal_request(0, INFORM, &[]);
    table.send(&request);
    let (path, message) = table.clear.pop_front().unwrap();
    assert_eq!(path, table.path);
    let said = clear(&message[4..]);
    assert_eq!(said.error(), NotifyType::INVALID_IKE_SPI);
    let header = said.header;
    assert_eq!(
        (header.initiator_spi, header.responder_spi, header.message_id),
        (table.sas[0].i, table.sas[0].r, 2)
    );
    assert_eq!(header.exchange, INFORM);
    assert!(header.flags.response && !header.flags.initiator);
    table.send(&request);
    assert!(table.clear.is_empty(), "not for every message");

    table.now = table.now + Duration::from_secs(1);
    assert!(!table.sends_on(0));
    let (_, message) = table.clear.pop_front().unwrap();
    let said = clear(&message[4..]);
    assert_eq!(
        said.notify(NotifyType::INVALID_SPI).unwrap(),
        table.children[0].outbound.spi().0.to_be_bytes()
    );
    assert_eq!(said.header.initiator_spi, IkeSpi::ZERO);
    assert!(said.header.flags.initiator && !said.header.flags.response);

    table.now = table.now + Duration::from_secs(1);
    table.gateway.config.complain = false;
    assert!(!table.sends_on(0));
    table.send(&request);
    assert!(table.clear.is_empty());
    table.connect();
    assert!(table.sends_on(1));
}

#[test]
fn answers_are_never_complained_about() {
    let mut table = Table::connected(|_| {});
    table.gateway_does(|gateway, now| gateway.ask_liveness(now));
    let question = table.request();
    table.gateway.restart();
    table.reply(&question, &[]);
    assert!(table.clear.is_empty());
}

#[test]
fn a_lost_child_is_told_of_inside_the_ike_sa() {
    let mut table = Table::connected(|_| {});
    table.gateway.lose_children();
    table.has(&[(0, &[])]);
    assert!(!table.sends_on(0));
    assert!(table.clear.is_empty());
    let said = table.request();
    assert_eq!(
        said.notify(NotifyType::INVALID_SPI).unwrap(),
        table.children[0].outbound.spi().0.to_be_bytes()
    );
    table.reply(&said, &[]);
    assert!(!table.sends_on(0));
    assert!(table.requests.is_empty(), "once");
    let draft = table.draft_child(None, &[]);
    let answer = table.ask(0, ExchangeType::CREATE_CHILD_SA, &draft.payloads());
    let new = table.make_child(0, &draft, &answer);
    assert!(table.sends_on(new) && table.is_sent_on(new));
}

#[test]
fn a_silent_gateway_does_nothing_and_remembers_all() {
    let mut table = Table::connected(|config| config.child_life = life(10, End::Rekey));
    table.gateway.silent = true;
    assert!(!table.sends_on(0));
    table.pass(Duration::from_secs(100));
    table.gateway.silent = false;
    assert!(table.sends_on(0));
    table.pass(Duration::ZERO);
    assert!(table.request().rekeyed_spi().is_some());
}
