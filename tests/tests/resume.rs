//! Session resumption (RFC 5723) in virtual time: when it is used, when not, and what happens when it fails.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::collections::BTreeSet;
use std::time::Duration;

use peregrine_core::command::{Happening, Means, Reconnect, RekeyKind, State, Why};
use peregrine_core::profile::AuthKind;
use peregrine_core::wire::iana::{ExchangeType, NotifyType};
use peregrine_tests::cast::{Cast, packet};
use peregrine_tests::gateway::{Elsewhere, Gateway, GatewayConfig};
use peregrine_tests::link::{Fate, Interface, Rule, Way};
use peregrine_tests::world::World;

fn connected(cast: &Cast, method: AuthKind, seed: u64, adjust: impl FnOnce(&mut GatewayConfig)) -> World {
    let mut config = cast.gateway(method);
    config.tickets = Some(Duration::from_secs(3600));
    adjust(&mut config);
    let mut world = World::new(Gateway::new(config, 0x47), seed);
    world
        .connect_and_wait(cast.profile(method), cast.credentials())
        .unwrap();
    world.run(Duration::from_secs(5));
    world
}

/// How many different requests of this kind the client has sent.
fn exchanges(world: &World, kind: ExchangeType) -> usize {
    let mut seen = BTreeSet::new();
    for (_, path, datagram) in &world.sent {
        let message = match path.remote.port() {
            500 => datagram.as_slice(),
            _ => datagram.strip_prefix(&[0; 4]).unwrap_or_default(),
        };
        if message.get(18) == Some(&kind.0) {
            seen.insert(message);
        }
    }
    seen.len()
}

fn reconnects(world: &World) -> Vec<Reconnect> {
    let all = world.happenings.iter();
    all.filter_map(|(_, it)| match it {
        Happening::Reconnect(again) => Some(again.clone()),
        _ => None,
    })
    .collect()
}

/// The tunnel works both ways, and both ends have the same SAs: nothing is left of those before.
fn is_well(world: &mut World) {
    world.run(Duration::from_secs(1));
    assert_eq!(world.status().state, State::Connected);
    assert!(world.ends_agree());
    let before = world.received.len();
    world.send(&packet("10.3.0.1", "10.9.9.9", 100));
    world.run(Duration::from_secs(1));
    assert_eq!(world.received.len(), before + 1);
    assert_eq!(world.status().addresses[0].to_string(), "10.3.0.1/32");
}

/// Another network, to which a gateway without MOBIKE cannot follow.
fn elsewhere() -> Interface {
    Interface::new("lte", &["10.44.0.2"])
}

#[test]
fn without_mobike_a_new_network_costs_two_round_trips_and_no_password() {
    let cast = Cast::default();
    for method in [
        AuthKind::EapMsChapV2,
        AuthKind::EapTls,
        AuthKind::Certificate,
        AuthKind::Psk,
    ] {
        let mut world = connected(&cast, method, 1, |config| config.mobike = false);
        let (inits, auths) = (
            exchanges(&world, ExchangeType::IKE_SA_INIT),
            exchanges(&world, ExchangeType::IKE_AUTH),
        );
        let suite = world.status().ike_sa.unwrap().suite;
        let identity = world.status().gateway.unwrap().identity;
        world.move_to(elsewhere());
        is_well(&mut world);
        assert_eq!(
            exchanges(&world, ExchangeType::IKE_SESSION_RESUME),
            1,
            "{method:?}"
        );
        assert_eq!(exchanges(&world, ExchangeType::IKE_SA_INIT), inits, "{method:?}");
        assert_eq!(exchanges(&world, ExchangeType::IKE_AUTH), auths + 1, "{method:?}");
        let again = reconnects(&world);
        assert_eq!(again.len(), 1);
        assert_eq!(
            (again[0].why, again[0].means),
            (Why::NetworkChanged, Means::Resumption)
        );
        assert_eq!(world.status().ike_sa.unwrap().suite, suite);
        assert_eq!(world.status().gateway.unwrap().identity, identity);
        assert_eq!(world.plans.len(), 1, "{method:?}: the machine sees nothing of it");
        // And once more, with the ticket that came with the new SA.
        world.move_to(Interface::new("wifi", &["10.45.0.2"]));
        is_well(&mut world);
        assert_eq!(exchanges(&world, ExchangeType::IKE_SA_INIT), inits, "{method:?}");
        assert_eq!(reconnects(&world).len(), 2);
        // A resumed SA is one like others.
        for kind in [RekeyKind::ChildSa, RekeyKind::IkeSa] {
            world.rekey(kind);
            world.run(Duration::from_secs(2));
            is_well(&mut world);
        }
        world.disconnect();
        world.run(Duration::from_secs(3));
        assert_eq!(world.gateway.sas(), 0, "{method:?}");
    }
}

#[test]
fn a_profile_that_wants_none_gets_none() {
    let cast = Cast::default();
    let mut config = cast.gateway(AuthKind::Psk);
    config.tickets = Some(Duration::from_secs(3600));
    config.mobike = false;
    let mut world = World::new(Gateway::new(config, 0x47), 2);
    let mut profile = cast.profile(AuthKind::Psk);
    profile.ike.resumption = false;
    world.connect_and_wait(profile, cast.credentials()).unwrap();
    assert!(world.gateway.notified(NotifyType::TICKET_REQUEST).is_empty());
    world.move_to(elsewhere());
    is_well(&mut world);
    assert_eq!(exchanges(&world, ExchangeType::IKE_SESSION_RESUME), 0);
    assert_eq!(reconnects(&world)[0].means, Means::NewSa);
}

#[test]
fn a_gateway_that_was_away_is_resumed_with_if_its_tickets_outlive_it() {
    let cast = Cast::default();
    for survive in [true, false] {
        let mut world = connected(&cast, AuthKind::EapMsChapV2, 3, |config| {
            config.tickets_survive = survive;
        });
        let auths = exchanges(&world, ExchangeType::IKE_AUTH);
        world.gateway.silent = true;
        world.gateway.restart();
        world.send(&packet("10.3.0.1", "10.9.9.9", 100));
        world.run(Duration::from_secs(60));
        // It comes back while nobody asks. To whoever is asking in full already it answers that.
        let pausing = |world: &World| world.status().retry_at.is_some();
        assert!(world.run_until(Duration::from_secs(70), pausing));
        world.gateway.silent = false;
        let back = |world: &World| world.status().state == State::Connected;
        assert!(world.run_until(Duration::from_secs(70), back));
        is_well(&mut world);
        let again = reconnects(&world).pop().unwrap();
        let expected = if survive { Means::Resumption } else { Means::NewSa };
        assert_eq!((again.why, again.means), (Why::PeerDead, expected));
        let auths = exchanges(&world, ExchangeType::IKE_AUTH) - auths;
        assert_eq!(auths == 1, survive, "{auths} requests in IKE_AUTH");
    }
}

#[test]
fn what_the_gateway_has_ended_is_not_resumed() {
    let cast = Cast::default();
    let mut world = connected(&cast, AuthKind::Psk, 4, |_| {});
    world.gateway_does(|gateway, now| gateway.delete_ike(now));
    world.run(Duration::from_secs(30));
    is_well(&mut world);
    assert_eq!(exchanges(&world, ExchangeType::IKE_SESSION_RESUME), 0);
    // Nor is authentication that expires, nor one gateway by another.
    world.gateway_does(|gateway, now| gateway.announce_lifetime(Duration::from_secs(100), now));
    world.run(Duration::from_secs(110));
    is_well(&mut world);
    let other = Elsewhere::Address("192.0.2.2".parse().unwrap());
    world.gateway_does(|gateway, now| gateway.redirect(&other, now));
    world.run(Duration::from_secs(10));
    is_well(&mut world);
    let why: Vec<Why> = reconnects(&world).iter().map(|it| it.why).collect();
    assert_eq!(why, [Why::DeletedByGateway, Why::AuthLifetime, Why::Redirected]);
    assert_eq!(exchanges(&world, ExchangeType::IKE_SESSION_RESUME), 0);
}

#[test]
fn a_ticket_is_asked_for_again_when_the_ike_sa_is_replaced_and_before_it_expires() {
    let cast = Cast::default();
    let mut world = connected(&cast, AuthKind::Psk, 5, |config| config.mobike = false);
    let asked = |world: &World| world.gateway.notified(NotifyType::TICKET_REQUEST).len();
    assert_eq!(asked(&world), 1);
    world.rekey(RekeyKind::IkeSa);
    world.run(Duration::from_secs(2));
    assert_eq!(asked(&world), 2);
    world.gateway_does(|gateway, now| gateway.rekey_ike(now));
    world.run(Duration::from_secs(2));
    assert_eq!(asked(&world), 3);
    world.run(Duration::from_secs(3500));
    assert_eq!(asked(&world), 4);
    world.move_to(elsewhere());
    is_well(&mut world);
    assert_eq!(reconnects(&world)[0].means, Means::Resumption);
}

#[test]
fn a_ticket_that_has_expired_is_not_presented() {
    let cast = Cast::default();
    let mut world = connected(&cast, AuthKind::Psk, 6, |config| {
        config.tickets = Some(Duration::from_secs(40));
        config.mobike = false;
    });
    // The machine sleeps for longer than the ticket lives.
    world.sleep(Duration::from_secs(50));
    world.move_to(elsewhere());
    is_well(&mut world);
    assert_eq!(exchanges(&world, ExchangeType::IKE_SESSION_RESUME), 0);
}

#[test]
fn a_gateway_that_wants_cookies_gets_them() {
    let cast = Cast::default();
    let mut world = connected(&cast, AuthKind::EapMsChapV2, 7, |config| config.mobike = false);
    world.gateway.config.cookie = true;
    world.move_to(elsewhere());
    is_well(&mut world);
    assert_eq!(reconnects(&world)[0].means, Means::Resumption);
}

#[test]
fn a_gateway_that_does_not_answer_a_ticket_is_asked_in_full_soon() {
    let cast = Cast::default();
    let mut world = connected(&cast, AuthKind::Psk, 8, |config| config.mobike = false);
    world.link.rules = vec![Rule {
        times: u32::MAX,
        ..Rule::first(Way::Up, ExchangeType::IKE_SESSION_RESUME, Fate::Drop)
    }];
    let begun = world.now;
    world.move_to(elsewhere());
    let back = |world: &World| world.status().state == State::Connected;
    assert!(world.run_until(Duration::from_secs(10), back));
    assert!(world.now.since(begun) < Duration::from_secs(4));
    assert_eq!(reconnects(&world)[0].means, Means::NewSa);
    // The SA before was kept for the ticket's sake; now the gateway is told that it is over.
    is_well(&mut world);
}

#[test]
fn a_refusal_in_ike_auth_leads_to_authentication_in_full() {
    let cast = Cast::default();
    let mut world = connected(&cast, AuthKind::EapMsChapV2, 9, |config| config.mobike = false);
    let auths = exchanges(&world, ExchangeType::IKE_AUTH);
    world.gateway.config.refuse_auth = Some(NotifyType::AUTHENTICATION_FAILED);
    world.move_to(elsewhere());
    let refused = |world: &World| exchanges(world, ExchangeType::IKE_AUTH) > auths + 1;
    assert!(world.run_until(Duration::from_secs(1), refused));
    world.gateway.config.refuse_auth = None;
    let back = |world: &World| world.status().state == State::Connected;
    assert!(world.run_until(Duration::from_secs(100), back));
    is_well(&mut world);
    assert_eq!(reconnects(&world)[0].means, Means::NewSa);
}

#[test]
fn a_gateway_that_does_not_hold_the_keys_of_before_gets_nothing() {
    let cast = Cast::default();
    let mut world = connected(&cast, AuthKind::Psk, 21, |config| config.mobike = false);
    world.gateway.config.wrong_msk = true;
    world.move_to(elsewhere());
    is_well(&mut world);
    assert_eq!(reconnects(&world)[0].means, Means::NewSa);
    let told = world.gateway.notified(NotifyType::AUTHENTICATION_FAILED);
    assert_eq!(told.len(), 1, "it is told that we do not believe it");
}

#[test]
fn a_gateway_that_does_not_look_for_a_nat_is_asked_in_full() {
    let cast = Cast::default();
    let mut world = connected(&cast, AuthKind::Psk, 12, |config| {
        config.mobike = false;
        config.resumes_without_nat = true;
    });
    let auths = exchanges(&world, ExchangeType::IKE_AUTH);
    world.move_to(elsewhere());
    is_well(&mut world);
    assert_eq!(exchanges(&world, ExchangeType::IKE_SESSION_RESUME), 1);
    assert_eq!(exchanges(&world, ExchangeType::IKE_AUTH), auths + 1);
    assert_eq!(reconnects(&world)[0].means, Means::NewSa);
}

#[test]
fn every_loss_of_one_or_two_messages_is_survived() {
    let cast = Cast::default();
    let kinds = [ExchangeType::IKE_SESSION_RESUME, ExchangeType::IKE_AUTH];
    for (seed, first) in kinds.into_iter().enumerate() {
        for way in [Way::Up, Way::Down] {
            for times in [1, 2, 3] {
                let mut world = connected(&cast, AuthKind::EapMsChapV2, 10 + seed as u64, |config| {
                    config.mobike = false;
                });
                world.link.rules = vec![Rule {
                    times,
                    ..Rule::first(way, first, Fate::Drop)
                }];
                world.move_to(elsewhere());
                let back = |world: &World| world.status().state == State::Connected;
                assert!(
                    world.run_until(Duration::from_secs(60), back),
                    "{first} {way:?} {times}"
                );
                is_well(&mut world);
            }
        }
    }
}
