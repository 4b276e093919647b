//! Addresses: MOBIKE (RFC 4555), and what moves without it.

use std::net::SocketAddr;
use std::time::Duration;

use peregrine_core::command::Path;
use peregrine_core::wire::iana::{ExchangeType, NotifyType};

use super::peer::{Table, note};
use super::said::Said;

const INFORM: ExchangeType = ExchangeType::INFORMATIONAL;

fn elsewhere() -> SocketAddr {
    "203.0.113.5:1234".parse().unwrap()
}

/// Tells the gateway that the client is where the table's path says; the answer.
fn update(table: &mut Table, sa: usize) -> Said {
    let (i, r) = (table.sas[sa].i, table.sas[sa].r);
    let source = table.nat_hash(i, r, false);
    let destination = table.nat_hash(i, r, true);
    table.ask(
        sa,
        INFORM,
        &[
            note(NotifyType::UPDATE_SA_ADDRESSES, &[]),
            note(NotifyType::NAT_DETECTION_SOURCE_IP, &source),
            note(NotifyType::NAT_DETECTION_DESTINATION_IP, &destination),
            note(NotifyType::COOKIE2, &[0xab; 20]),
        ],
    )
}

/// Where the gateway sends ESP and IKE requests to.
fn reached_at(table: &mut Table) -> (Path, Path) {
    let (_, esp) = table.gateway_sends().unwrap();
    table.gateway_does(|gateway, now| gateway.ask_liveness(now));
    let question = table.request();
    table.reply(&question, &[]);
    (esp, question.path)
}

#[test]
fn only_an_update_moves_the_sas() {
    for behind_nat in [false, true] {
        let mut table = Table::new(|_| {});
        table.masked = behind_nat;
        table.connect();
        moves_with_updates_only(table);
    }
}

fn moves_with_updates_only(mut table: Table) {
    let home = table.path;
    table.path.remote = elsewhere();
    let answer = table.ask(0, INFORM, &[]);
    assert_eq!(
        answer.path, table.path,
        "an answer goes where the question came from"
    );
    assert!(table.sends_on(0), "packets are taken from anywhere");
    assert_eq!(reached_at(&mut table), (home, home));

    let answer = update(&mut table, 0);
    let here = table.path;
    assert_eq!(answer.path, here);
    assert_eq!(reached_at(&mut table), (here, here));
    let (i, r) = (table.sas[0].i, table.sas[0].r);
    assert_eq!(
        answer.notify(NotifyType::NAT_DETECTION_SOURCE_IP).unwrap(),
        table.nat_hash(i, r, true)
    );
    assert_eq!(
        answer.notify(NotifyType::NAT_DETECTION_DESTINATION_IP).unwrap(),
        table.nat_hash(i, r, false)
    );
    assert_eq!(answer.notify(NotifyType::COOKIE2), Some(vec![0xab; 20]));

    // Another address of the gateway's, and another family.
    table.path = Path::udp(
        "[2001:db8::1]:4500".parse().unwrap(),
        "[2001:db8:5::5]:4500".parse().unwrap(),
    );
    update(&mut table, 0);
    let here = table.path;
    assert_eq!(reached_at(&mut table), (here, here));
}

#[test]
fn nat_detection_in_any_question_is_answered_for_the_path_that_it_took() {
    let mut table = Table::connected(|_| {});
    table.path.remote = elsewhere();
    let destination = [9; 20];
    let answer = table.ask(
        0,
        INFORM,
        &[note(NotifyType::NAT_DETECTION_DESTINATION_IP, &destination)],
    );
    let (i, r) = (table.sas[0].i, table.sas[0].r);
    assert_eq!(
        answer.notify(NotifyType::NAT_DETECTION_DESTINATION_IP).unwrap(),
        table.nat_hash(i, r, false)
    );
    assert!(table.ask(0, INFORM, &[]).kinds().is_empty());
    // After an IKE rekey it is about the new SPIs.
    let new = table.rekey_ike(0);
    let answer = update(&mut table, new);
    let (i, r) = (table.sas[new].i, table.sas[new].r);
    assert_eq!(
        answer.notify(NotifyType::NAT_DETECTION_SOURCE_IP).unwrap(),
        table.nat_hash(i, r, true)
    );
}

#[test]
fn an_update_that_is_repeated_from_elsewhere_moves_nothing() {
    let mut table = Table::connected(|_| {});
    table.path.remote = elsewhere();
    let request = table.seal_request(0, INFORM, &[note(NotifyType::UPDATE_SA_ADDRESSES, &[])]);
    table.send(&request);
    let there = table.path;
    table.path.remote = "203.0.113.77:1".parse().unwrap();
    table.send(&request);
    assert_eq!(table.responses.len(), 2);
    assert_eq!(table.responses[1].path, table.path);
    assert_eq!(table.gateway.paths(), [there]);
}

#[test]
fn an_unacceptable_address_is_refused_and_nothing_moves() {
    for address in [elsewhere().ip(), "192.0.2.1".parse().unwrap()] {
        let mut table = Table::connected(|config| config.unacceptable = vec![address]);
        let home = table.path;
        table.path.remote = elsewhere();
        let answer = update(&mut table, 0);
        let kinds: Vec<_> = answer.notifies().into_iter().map(|(kind, _)| kind).collect();
        assert_eq!(kinds, [NotifyType::COOKIE2, NotifyType::UNACCEPTABLE_ADDRESSES]);
        assert_eq!(reached_at(&mut table), (home, home));
    }
}

#[test]
fn a_forbidden_nat_is_noticed() {
    let mut table = Table::connected(|_| {});
    let home = table.path;
    table.path.remote = elsewhere();
    let right = [203, 0, 113, 5, 192, 0, 2, 1, 0x04, 0xd2, 0x11, 0x94];
    let mut wrong = right;
    wrong[0] = 10;
    let say = |table: &mut Table, data: &[u8]| {
        let update = note(NotifyType::UPDATE_SA_ADDRESSES, &[]);
        table.ask(0, INFORM, &[update, note(NotifyType::NO_NATS_ALLOWED, data)])
    };
    let answer = say(&mut table, &wrong);
    assert_eq!(answer.error(), NotifyType::UNEXPECTED_NAT_DETECTED);
    assert_eq!(table.gateway.paths(), [home]);
    assert!(say(&mut table, &right).kinds().is_empty());
    assert_eq!(table.gateway.paths(), [table.path]);
    table.path.local = "[2001:db8::1]:4500".parse().unwrap();
    table.path.remote = "[2001:db8::2]:4500".parse().unwrap();
    let [mut source, mut destination] = [[0_u8; 16]; 2];
    (source[..4]).copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
    destination[..4].copy_from_slice(&source[..4]);
    (source[15], destination[15]) = (2, 1);
    let ports = [0x11, 0x94, 0x11, 0x94];
    let right = [source.as_slice(), &destination, &ports].concat();
    assert_eq!(right.len(), 36);
    assert!(say(&mut table, &right).kinds().is_empty());
}

#[test]
fn a_gateway_may_rekey_its_children_after_an_update() {
    let mut table = Table::connected(|config| config.rekey_after_update = true);
    table.path.remote = elsewhere();
    update(&mut table, 0);
    let request = table.request();
    assert_eq!(request.path, table.path);
    assert_eq!(request.rekeyed_spi(), Some(table.children[0].outbound.spi()));
    let (grant, new) = table.grant_child(0, &request);
    table.send(&grant);
    assert!(table.is_sent_on(new));
}

#[test]
fn a_gateway_may_check_the_new_address_first() {
    let mut table = Table::connected(|config| config.check_routability = true);
    let home = table.path;
    table.path.remote = elsewhere();
    update(&mut table, 0);
    let question = table.request();
    assert_eq!(question.path, table.path);
    let cookie = question.notify(NotifyType::COOKIE2).unwrap();
    assert!((8..=64).contains(&cookie.len()));
    assert_eq!(table.gateway_sends().unwrap().1, home, "not yet");
    table.reply(&question, &[note(NotifyType::COOKIE2, &cookie)]);
    assert_eq!(table.gateway_sends().unwrap().1, table.path);

    for wrong in [Some([1; 16]), None] {
        let mut table = Table::connected(|config| config.check_routability = true);
        update(&mut table, 0);
        let question = table.request();
        let reply: Vec<_> = wrong
            .as_ref()
            .map(|data| note(NotifyType::COOKIE2, data))
            .into_iter()
            .collect();
        table.reply(&question, &reply);
        assert!(table.request().deletes_ike(), "the IKE SA must be closed");
    }
}

#[test]
fn without_mobike_a_client_behind_a_nat_is_followed_and_no_other() {
    for behind_nat in [true, false] {
        let mut table = Table::new(|config| config.mobike = false);
        table.masked = behind_nat;
        table.connect();
        let home = table.gateway.paths()[0];
        table.path.remote = elsewhere();
        let answer = update(&mut table, 0);
        assert!(answer.kinds().is_empty(), "unknown notifies are ignored");
        let expected = if behind_nat { table.path } else { home };
        assert_eq!(reached_at(&mut table), (expected, expected));
        table.path.remote = "203.0.113.99:5".parse().unwrap();
        assert!(table.sends_on(0));
        let expected = if behind_nat { table.path } else { home };
        assert_eq!(table.gateway.paths(), [expected], "by ESP as well");
    }
}

#[test]
fn further_addresses_of_the_client_are_replaced_as_a_whole() {
    let mut table = Table::connected(|_| {});
    let v4 = note(NotifyType::ADDITIONAL_IP4_ADDRESS, &[10, 0, 0, 1]);
    let v6 = note(NotifyType::ADDITIONAL_IP6_ADDRESS, &[0xfd; 16]);
    assert!(table.ask(0, INFORM, &[v4.clone(), v6]).kinds().is_empty());
    assert_eq!(table.gateway.client_addresses()[0].len(), 2);
    table.ask(0, INFORM, &[v4]);
    assert_eq!(table.gateway.client_addresses()[0].len(), 1);
    table.ask(0, INFORM, &[note(NotifyType::NO_ADDITIONAL_ADDRESSES, &[])]);
    assert!(table.gateway.client_addresses()[0].is_empty());
}

#[test]
fn the_gateway_tells_when_its_addresses_change() {
    let mut table = Table::connected(|_| {});
    let both = vec!["192.0.2.1".parse().unwrap(), "192.0.2.5".parse().unwrap()];
    table.gateway_does(|gateway, now| gateway.announce_addresses(both, now));
    let said = table.request();
    assert_eq!(
        said.notifies(),
        [(NotifyType::ADDITIONAL_IP4_ADDRESS, vec![192, 0, 2, 5])]
    );
    table.reply(&said, &[]);
    table.gateway_does(|gateway, now| gateway.announce_addresses(vec![], now));
    let said = table.request();
    assert_eq!(said.error(), NotifyType::NO_ADDITIONAL_ADDRESSES);
}

#[test]
fn an_update_on_an_ike_sa_that_was_rekeyed_counts() {
    let mut table = Table::connected(|_| {});
    let new = table.rekey_ike(0);
    table.path.remote = elsewhere();
    update(&mut table, 0);
    let here = table.path;
    let (_, esp) = table.gateway_sends().unwrap();
    assert_eq!(esp, here);
    table.gateway_does(|gateway, now| gateway.ask_liveness(now));
    let question = table.request();
    assert_eq!(
        (question.path, question.header.initiator_spi),
        (here, table.sas[new].i)
    );
}

#[test]
fn an_unanswered_question_follows_the_client() {
    let mut table = Table::connected(|_| {});
    table.gateway_does(|gateway, now| gateway.ask_liveness(now));
    let question = table.request();
    table.path.remote = elsewhere();
    update(&mut table, 0);
    table.pass(Duration::from_secs(1));
    let again = table.request();
    assert_eq!((again.path, &again.raw), (table.path, &question.raw));
}
