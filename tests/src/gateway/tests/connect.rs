//! Connecting: what IKE_SA_INIT and IKE_AUTH bring beside the SAs, tickets, redirects, leases, older IKE SAs.

use std::net::IpAddr;
use std::time::Duration;

use peregrine_core::wire::iana::{CfgAttr, ExchangeType, NotifyType, PayloadType};
use peregrine_core::wire::{IkeSpi, Payload};

use super::peer::{Table, delete_ike, note};
use super::said::{Said, clear};
use crate::gateway::{Elsewhere, Redirect, RedirectWhen, Unique};

const INFORM: ExchangeType = ExchangeType::INFORMATIONAL;

/// The inner address that an IKE_AUTH response assigns.
fn address(said: &Said) -> IpAddr {
    let payloads = said.payloads();
    let address = payloads.iter().find_map(|payload| match payload {
        Payload::Cp(cp) => {
            let mut attributes = cp.attributes.iter();
            attributes.find(|it| it.kind == CfgAttr::INTERNAL_IP4_ADDRESS)
        }
        _ => None,
    });
    let octets: [u8; 4] = address.unwrap().value.try_into().unwrap();
    octets.into()
}

fn address_of(table: &Table) -> String {
    address(table.welcome.as_ref().unwrap()).to_string()
}

#[test]
fn the_same_client_gets_the_same_address_and_another_one_another() {
    let mut table = Table::connected(|_| {});
    assert_eq!(address_of(&table), "10.3.0.1");
    table.connect();
    assert_eq!(address_of(&table), "10.3.0.1");
    table.identity = b"bob@example.org";
    table.connect();
    assert_eq!(address_of(&table), "10.3.0.2");
    // A hint is honoured if nobody has the address.
    table.identity = b"carol@example.org";
    table.hint = vec![10, 3, 0, 9];
    table.connect();
    assert_eq!(address_of(&table), "10.3.0.9");
    table.identity = b"dave@example.org";
    table.connect();
    assert_eq!(address_of(&table), "10.3.0.3");
    // After a restart the hint is all that the gateway knows.
    table.gateway.restart();
    table.identity = b"carol@example.org";
    table.connect();
    assert_eq!(address_of(&table), "10.3.0.9");
}

#[test]
fn a_gateway_may_give_another_address_every_time() {
    let mut table = Table::connected(|config| config.sticky = false);
    assert_eq!(address_of(&table), "10.3.0.1");
    table.hint = vec![10, 3, 0, 1];
    table.connect();
    assert_eq!(address_of(&table), "10.3.0.2");
}

#[test]
fn packets_go_to_the_newest_session_with_that_address() {
    let mut table = Table::connected(|_| {});
    assert!(table.is_sent_on(0));
    table.connect();
    assert!(table.is_sent_on(1));
    assert!(table.sends_on(0) && table.sends_on(1));
    table.identity = b"bob@example.org";
    table.connect();
    assert!(table.is_sent_on(1), "somebody else's address is not this one's");
}

#[test]
fn mobike_is_agreed_on_only_if_both_want_it() {
    let others = ["192.0.2.1", "192.0.2.9", "2001:db8::9"];
    for (gateway, client) in [(true, true), (true, false), (false, true)] {
        let mut table = Table::new(|config| {
            config.mobike = gateway;
            config.addresses = others.iter().map(|ip| ip.parse().unwrap()).collect();
        });
        if !client {
            table.wishes.clear();
        }
        table.connect();
        let welcome = table.welcome.as_ref().unwrap();
        let both = gateway && client;
        assert_eq!(welcome.notify(NotifyType::MOBIKE_SUPPORTED).is_some(), both);
        // Without the one that is in use.
        assert_eq!(
            welcome.notify(NotifyType::ADDITIONAL_IP4_ADDRESS),
            both.then(|| vec![192, 0, 2, 9])
        );
        let v6 = welcome.notify(NotifyType::ADDITIONAL_IP6_ADDRESS);
        assert_eq!(v6.map(|octets| octets.len()), both.then_some(16));
    }
}

#[test]
fn redirects_carry_the_nonce_in_ike_sa_init_only() {
    for (to, encoded) in [
        (
            Elsewhere::Address("192.0.2.9".parse().unwrap()),
            vec![1, 4, 192, 0, 2, 9],
        ),
        (
            Elsewhere::Name("b.example.org".into()),
            [&[3, 13], b"b.example.org".as_slice()].concat(),
        ),
    ] {
        let redirect = Redirect {
            at: None,
            when: RedirectWhen::Init,
            to: to.clone(),
        };
        let mut table = Table::new(|config| config.redirect = Some(redirect.clone()));
        table.connect();
        table.has(&[(0, &[0])]);
        for support in [NotifyType::REDIRECT_SUPPORTED, NotifyType::REDIRECTED_FROM] {
            table.hello = vec![(support, vec![])];
            let nonce: [u8; 32] = table.bytes();
            let i = IkeSpi(table.bytes());
            let (_, response) = table.say_hello(ExchangeType::IKE_SA_INIT, i, &[Payload::Nonce(&nonce)]);
            let said = clear(&response);
            assert_eq!(said.header.responder_spi, IkeSpi::ZERO);
            assert_eq!(
                said.notify(NotifyType::REDIRECT).unwrap(),
                [encoded.as_slice(), &nonce].concat()
            );
        }
        assert_eq!(table.gateway.sas(), 1, "nothing came of it");

        for when in [RedirectWhen::FirstAuth, RedirectWhen::LastAuth] {
            let mut table = Table::new(|config| {
                config.redirect = Some(Redirect {
                    when,
                    ..redirect.clone()
                });
            });
            table.hello = vec![(NotifyType::REDIRECT_SUPPORTED, vec![])];
            table.connect();
            let welcome = table.welcome.as_ref().unwrap();
            assert_eq!(welcome.notify(NotifyType::REDIRECT).unwrap(), encoded);
            assert!(!welcome.kinds().contains(&PayloadType::SA));
            assert_eq!(table.gateway.established(), 0);
            table.ask(0, INFORM, &[delete_ike()]);
            assert_eq!(table.gateway.sas(), 0);
        }

        let mut table = Table::connected(|_| {});
        table.gateway_does(|gateway, now| gateway.redirect(&to, now));
        assert!(table.requests.is_empty(), "this client cannot be redirected");
        table.hello = vec![(NotifyType::REDIRECT_SUPPORTED, vec![])];
        table.connect();
        table.gateway_does(|gateway, now| gateway.redirect(&to, now));
        let said = table.request();
        assert_eq!(said.notify(NotifyType::REDIRECT).unwrap(), encoded);
        assert!(table.requests.is_empty());
    }
}

#[test]
fn a_redirect_may_apply_at_one_address_only() {
    let mut table = Table::new(|config| {
        config.redirect = Some(Redirect {
            at: Some("192.0.2.1".parse().unwrap()),
            when: RedirectWhen::LastAuth,
            to: Elsewhere::Address("192.0.2.2".parse().unwrap()),
        });
    });
    table.hello = vec![(NotifyType::REDIRECT_SUPPORTED, vec![])];
    table.connect();
    assert_eq!(table.gateway.established(), 0);
    table.path.local = "192.0.2.2:4500".parse().unwrap();
    table.connect();
    assert_eq!(table.gateway.established(), 1);
}

#[test]
fn a_redirected_client_that_says_nothing_more_is_forgotten() {
    let mut table = Table::new(|config| {
        config.redirect = Some(Redirect {
            at: None,
            when: RedirectWhen::LastAuth,
            to: Elsewhere::Address("192.0.2.2".parse().unwrap()),
        });
    });
    table.hello = vec![(NotifyType::REDIRECT_SUPPORTED, vec![])];
    table.connect();
    table.pass(Duration::from_secs(31));
    assert_eq!(table.gateway.sas(), 0);
}

/// A client with a ticket: the ticket, and SK_d of its IKE SA.
fn with_ticket(adjust: impl FnOnce(&mut crate::gateway::GatewayConfig)) -> (Table, Vec<u8>, Vec<u8>) {
    let mut table = Table::new(|config| {
        config.tickets = Some(Duration::from_secs(600));
        adjust(config);
    });
    table.wishes.push((NotifyType::TICKET_REQUEST, vec![]));
    table.connect();
    let ticket = ticket(table.welcome.as_ref().unwrap(), 600);
    let derive = table.sas[0].keys.d.clone();
    (table, ticket, derive)
}

#[track_caller]
fn ticket(said: &Said, lifetime: u32) -> Vec<u8> {
    let data = said.notify(NotifyType::TICKET_LT_OPAQUE).unwrap();
    let (seconds, ticket) = data.split_at(4);
    assert_eq!(seconds, lifetime.to_be_bytes());
    ticket.to_vec()
}

#[test]
fn a_ticket_is_given_to_who_asks_for_one() {
    let mut table = Table::connected(|config| config.tickets = Some(Duration::from_secs(600)));
    let welcome = table.welcome.as_ref().unwrap();
    assert_eq!(welcome.notify(NotifyType::TICKET_LT_OPAQUE), None);
    let answer = table.ask(0, INFORM, &[note(NotifyType::TICKET_REQUEST, &[])]);
    ticket(&answer, 600);
    table.gateway.config.tickets = None;
    let answer = table.ask(0, INFORM, &[note(NotifyType::TICKET_REQUEST, &[])]);
    assert!(answer.kinds().is_empty());
}

#[test]
fn a_ticket_continues_an_ike_sa_once_and_ends_the_old_one_silently() {
    let (mut table, first, derive) = with_ticket(|_| {});
    assert_eq!(table.resume(&first, &derive), None);
    table.has(&[(1, &[1])]);
    assert!(table.requests.is_empty(), "without a word");
    assert!(table.sends_on(1) && table.is_sent_on(1));
    assert!(!table.sends_on(0));
    assert_eq!(
        table.resume(&first, &derive),
        Some(NotifyType::TICKET_NACK),
        "it is used up"
    );
    // The resumed one has a ticket of its own, for its own keys.
    let second = ticket(table.welcome.as_ref().unwrap(), 600);
    let derive = table.sas[1].keys.d.clone();
    assert_eq!(table.resume(&second, &derive), None);
    table.has(&[(2, &[2])]);
}

#[test]
#[should_panic(expected = "AUTH")]
fn a_ticket_is_for_who_got_it() {
    let (mut table, ticket, derive) = with_ticket(|_| {});
    table.identity = b"mallory@example.org";
    table.resume(&ticket, &derive);
}

#[test]
fn a_ticket_is_void_when_its_ike_sa_is_over_or_rekeyed() {
    let nack = Some(NotifyType::TICKET_NACK);
    let (mut table, ticket, derive) = with_ticket(|_| {});
    table.ask(0, INFORM, &[delete_ike()]);
    assert_eq!(table.resume(&ticket, &derive), nack);

    let (mut table, ticket, derive) = with_ticket(|_| {});
    table.gateway_does(|gateway, now| gateway.delete_ike(now));
    let delete = table.request();
    table.reply(&delete, &[]);
    assert_eq!(table.resume(&ticket, &derive), nack);

    let (mut table, ticket, derive) = with_ticket(|_| {});
    let new = table.rekey_ike(0);
    assert_eq!(table.resume(&ticket, &derive), nack);
    // A new one for the new IKE SA; that the old one is deleted does not touch it.
    let answer = table.ask(new, INFORM, &[note(NotifyType::TICKET_REQUEST, &[])]);
    let ticket = self::ticket(&answer, 600);
    table.ask(0, INFORM, &[delete_ike()]);
    let derive = table.sas[new].keys.d.clone();
    assert_eq!(table.resume(&ticket, &derive), None);

    let (mut table, ticket, derive) = with_ticket(|_| {});
    table.now = table.now + Duration::from_secs(601);
    assert_eq!(table.resume(&ticket, &derive), nack);
    assert_eq!(table.resume(b"never given", &derive), nack);
}

#[test]
fn a_ticket_comes_with_the_answer_to_an_ike_rekey() {
    let (mut table, _, _) = with_ticket(|_| {});
    let draft = table.draft_ike("aes256gcm16-prfsha256-x25519");
    let mut payloads = draft.payloads();
    payloads.push(note(NotifyType::TICKET_REQUEST, &[]));
    let granted = table.ask(0, ExchangeType::CREATE_CHILD_SA, &payloads);
    let ticket = ticket(&granted, 600);
    let hash = peregrine_core::crypto::HashKind::Sha2_256;
    let new = table.make_ike(0, &draft, &granted, hash);
    let derive = table.sas[new].keys.d.clone();
    assert_eq!(table.resume(&ticket, &derive), None);
}

#[test]
fn a_ticket_serves_a_client_that_was_given_up() {
    let (mut table, ticket, derive) = with_ticket(|_| {});
    table.gateway_does(|gateway, now| gateway.ask_liveness(now));
    table.pass(Duration::from_secs(31));
    assert_eq!(table.gateway.sas(), 0);
    assert_eq!(table.resume(&ticket, &derive), None);
}

#[test]
fn a_restart_keeps_tickets_only_if_they_carry_their_state() {
    for survive in [false, true] {
        let (mut table, ticket, derive) = with_ticket(|config| config.tickets_survive = survive);
        table.gateway.restart();
        assert_eq!(table.gateway.sas(), 0);
        let refusal = table.resume(&ticket, &derive);
        assert_eq!(refusal, (!survive).then_some(NotifyType::TICKET_NACK));
    }
}

#[test]
fn a_ticket_lives_no_longer_than_authentication() {
    let mut table = Table::new(|config| {
        config.tickets = Some(Duration::from_secs(600));
        config.auth_lifetime = Some(Duration::from_secs(400));
    });
    table.wishes.push((NotifyType::TICKET_REQUEST, vec![]));
    table.connect();
    ticket(table.welcome.as_ref().unwrap(), 400);
}

#[test]
fn older_ike_sas_of_the_same_client_end_as_configured() {
    // Nothing happens to them.
    let mut table = Table::connected(|_| {});
    table.connect();
    table.pass(Duration::from_secs(20));
    table.has(&[(0, &[0]), (1, &[1])]);

    // The client says that there are none.
    table.wishes.push((NotifyType::INITIAL_CONTACT, vec![]));
    table.connect();
    table.has(&[(2, &[2])]);
    assert!(table.requests.is_empty(), "silently");

    // They are deleted: at once when the client is elsewhere, later when it may be authenticating anew.
    for elsewhere in [true, false] {
        let mut table = Table::connected(|config| config.unique = Unique::Replace);
        if elsewhere {
            table.path.remote = "203.0.113.5:40000".parse().unwrap();
        }
        table.connect();
        table.pass(Duration::ZERO);
        if !elsewhere {
            assert!(table.requests.is_empty());
            table.pass(Duration::from_secs(10));
        }
        let delete = table.request();
        assert_eq!(
            (delete.deletes_ike(), delete.header.initiator_spi),
            (true, table.sas[0].i)
        );
        table.reply(&delete, &[]);
        table.has(&[(1, &[1])]);
        // Somebody else is left alone.
        table.identity = b"bob@example.org";
        table.connect();
        table.pass(Duration::from_secs(20));
        table.has(&[(1, &[1]), (2, &[2])]);
    }
}

#[test]
fn whoever_does_not_go_on_is_forgotten() {
    let (mut table, ticket, derive) = with_ticket(|_| {});
    table.gateway.restart();
    assert_eq!(table.resume(&ticket, &derive), Some(NotifyType::TICKET_NACK));
    assert_eq!(table.gateway.sas(), 0, "a refusal leaves nothing behind");
    table.init();
    assert_eq!(table.gateway.sas(), 1);
    table.pass(Duration::from_secs(29));
    assert_eq!(table.gateway.sas(), 1);
    table.pass(Duration::from_secs(1));
    assert_eq!(table.gateway.sas(), 0);
}
