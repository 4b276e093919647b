//! Bad networks, in virtual time: every message lost, repeated or late, in every exchange, and everything at once.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::net::IpAddr;
use std::time::Duration;

use peregrine_core::command::{Cause, Stage, State};
use peregrine_core::profile::{AuthKind, PeapInner, TtlsInner};
use peregrine_core::wire::iana::ExchangeType;
use peregrine_tests::cast::{Cast, packet};
use peregrine_tests::link::{Fate, Rule, Way};
use peregrine_tests::world::World;

const METHODS: [AuthKind; 7] = [
    AuthKind::Psk,
    AuthKind::Certificate,
    AuthKind::EapTls,
    AuthKind::EapMsChapV2,
    AuthKind::EapTtls(TtlsInner::MsChapV2),
    AuthKind::EapPeap(PeapInner::MsChapV2),
    AuthKind::EapGtc,
];

fn carries_traffic(world: &mut World) {
    let before = world.received.len();
    for _ in 0..200 {
        world.send(&packet("10.3.0.1", "10.9.9.9", 200));
        if world.run_until(Duration::from_millis(200), |world| world.received.len() > before) {
            return;
        }
    }
    panic!("nothing comes back: {:?}", world.status().traffic);
}

/// The message IDs that a connection by this method uses, with their exchange.
fn conversation(cast: &Cast, method: AuthKind) -> Vec<(ExchangeType, u32)> {
    let mut world = cast.world(method, 3);
    world
        .connect_and_wait(cast.profile(method), cast.credentials())
        .unwrap();
    let auth = world
        .gateway
        .transcript
        .iter()
        .map(|(exchange, id, _)| (*exchange, *id));
    std::iter::once((ExchangeType::IKE_SA_INIT, 0))
        .chain(auth)
        .collect()
}

#[test]
fn any_one_message_may_be_lost_repeated_or_late() {
    let cast = Cast::default();
    for method in METHODS {
        let conversation = conversation(&cast, method);
        assert!(conversation.len() >= 2, "{method:?}: {conversation:?}");
        for (exchange, id) in conversation {
            for way in [Way::Up, Way::Down] {
                for fate in [Fate::Drop, Fate::Twice, Fate::Late(Duration::from_millis(700))] {
                    let mut world = cast.world(method, 4);
                    // All datagrams of the message, for it may travel in fragments.
                    world.link.rules = vec![Rule {
                        message_id: Some(id),
                        times: 1,
                        ..Rule::first(way, exchange, fate)
                    }];
                    world
                        .connect_and_wait(cast.profile(method), cast.credentials())
                        .unwrap_or_else(|it| panic!("{method:?} {exchange} {id} {way:?} {fate:?}: {it}"));
                    assert_eq!(world.gateway.established(), 1);
                    carries_traffic(&mut world);
                }
            }
        }
    }
}

#[test]
fn a_message_lost_three_times_still_gets_through() {
    let cast = Cast::default();
    for (exchange, id) in conversation(&cast, AuthKind::EapTls) {
        for way in [Way::Up, Way::Down] {
            let mut world = cast.world(AuthKind::EapTls, 5);
            world.link.rules = vec![Rule {
                message_id: Some(id),
                times: 3,
                ..Rule::first(way, exchange, Fate::Drop)
            }];
            world
                .connect_and_wait(cast.profile(AuthKind::EapTls), cast.credentials())
                .unwrap();
            carries_traffic(&mut world);
        }
    }
}

#[test]
fn seeded_networks_of_all_qualities_end_connected() {
    let cast = Cast::default();
    for seed in 0..300 {
        let method = METHODS[usize::try_from(seed).unwrap() % METHODS.len()];
        let mut world = cast.world(method, seed);
        world.link.loss = seed % 20 * 10;
        world.link.repetition = seed % 7 * 40;
        world.link.jitter = Duration::from_millis(seed % 5 * 40);
        if seed % 3 == 0 {
            world.link.nat = Some("198.51.100.7".parse::<IpAddr>().unwrap());
        }
        world
            .connect_and_wait(cast.profile(method), cast.credentials())
            .unwrap_or_else(|it| panic!("seed {seed} {method:?}: {it}"));
        carries_traffic(&mut world);
        world.disconnect();
        world.run_until(Duration::from_secs(3), |world| {
            world.status().state == State::Idle
        });
        assert_eq!(world.status().state, State::Idle, "seed {seed}");
    }
}

#[test]
fn where_ip_fragments_are_dropped_ike_fragments_get_through() {
    let cast = Cast::default();
    let mut world = cast.world(AuthKind::Certificate, 6);
    world.link.largest = Some(1252);
    world
        .connect_and_wait(cast.profile(AuthKind::Certificate), cast.credentials())
        .unwrap();
    assert!(world.status().features.fragmentation);
    carries_traffic(&mut world);
}

#[test]
fn where_even_1280_is_too_large_fragments_shrink_to_576() {
    let cast = Cast::default();
    let mut profile = cast.profile(AuthKind::Certificate);
    // Enough certificates that the request does not fit into one datagram.
    let mut credentials = cast.credentials();
    let link = credentials.chain[0].clone();
    credentials.chain.extend(vec![link; 3]);
    profile.ike.fragment_size = 1280;
    let mut world = cast.world(AuthKind::Certificate, 7);
    world.gateway.config.fragment = Some(500);
    world.link.largest = Some(548);
    world.connect_and_wait(profile, credentials).unwrap();
    let largest_late = world
        .sent
        .iter()
        .rev()
        .take(4)
        .map(|(_, _, datagram)| datagram.len())
        .max();
    assert!(largest_late.is_some_and(|len| len <= 548), "{largest_late:?}");
}

#[test]
fn single_fragments_may_be_lost_both_ways() {
    let cast = Cast::default();
    for way in [Way::Up, Way::Down] {
        for skip in 0..4 {
            let mut profile = cast.profile(AuthKind::Certificate);
            profile.ike.fragment_size = 576;
            let mut world = cast.world(AuthKind::Certificate, 8);
            world.gateway.config.fragment = Some(400);
            let rule = Rule::first(way, ExchangeType::IKE_AUTH, Fate::Drop);
            world.link.rules = vec![Rule { skip, ..rule }];
            world.connect_and_wait(profile, cast.credentials()).unwrap();
            carries_traffic(&mut world);
        }
    }
}

#[test]
fn a_gateway_without_fragmentation_gets_whole_messages() {
    let cast = Cast::default();
    let mut world = cast.world(AuthKind::Certificate, 9);
    world.gateway.config.fragment = None;
    world
        .connect_and_wait(cast.profile(AuthKind::Certificate), cast.credentials())
        .unwrap();
    assert!(!world.status().features.fragmentation);
}

#[test]
fn a_silent_gateway_is_given_up_in_time() {
    let cast = Cast::default();
    let mut world = cast.world(AuthKind::Psk, 10);
    world.gateway.silent = true;
    let begun = world.now;
    let failure = world
        .connect_and_wait(cast.profile(AuthKind::Psk), cast.credentials())
        .unwrap_err();
    // Its machine takes connections, and nothing comes of them.
    let cause = Cause::NoAnswerOverTcp("nothing answers on the connection".into());
    assert_eq!((failure.stage, failure.cause), (Stage::Reach, cause));
    let took = world.now.since(begun).as_secs_f64();
    assert!((12.0..16.0).contains(&took), "{took} s");
    // Sent with growing pauses: to port 500, and to 4500 beside it.
    let ports: Vec<u16> = world.sent.iter().map(|(_, path, _)| path.remote.port()).collect();
    assert!(ports.contains(&500) && ports.contains(&4500), "{ports:?}");
    assert!(ports.len() <= 16, "{} datagrams", ports.len());
}

#[test]
fn a_gateway_that_falls_silent_in_ike_auth_is_told_apart() {
    let cast = Cast::default();
    let mut world = cast.world(AuthKind::Certificate, 11);
    world.link.blocked_ports = vec![4500];
    let failure = world
        .connect_and_wait(cast.profile(AuthKind::Certificate), cast.credentials())
        .unwrap_err();
    assert_eq!(
        (failure.stage, failure.cause),
        (Stage::IkeAuth, Cause::WentSilent)
    );
}

#[test]
fn where_port_500_is_blocked_4500_serves() {
    let cast = Cast::default();
    let mut world = cast.world(AuthKind::Psk, 12);
    world.link.blocked_ports = vec![500];
    world
        .connect_and_wait(cast.profile(AuthKind::Psk), cast.credentials())
        .unwrap();
    carries_traffic(&mut world);
}

#[test]
fn the_family_that_works_wins() {
    let cast = Cast::default();
    let [v6, v4]: [IpAddr; 2] = ["2001:db8::1".parse().unwrap(), "192.0.2.1".parse().unwrap()];
    for dead in [v6, v4] {
        let mut profile = cast.profile(AuthKind::Psk);
        profile.gateway.host = peregrine_core::profile::Host::Name("vpn.example.org".into());
        let mut world = cast.world(AuthKind::Psk, 13);
        world.names.insert("vpn.example.org".into(), vec![v6, v4]);
        world.unreachable = vec![dead];
        let begun = world.now;
        world.connect_and_wait(profile, cast.credentials()).unwrap();
        assert!(
            world.now.since(begun) < Duration::from_secs(1),
            "no waiting for what cannot work"
        );
        assert_ne!(world.status().path.unwrap().remote.ip(), dead);
    }
}

#[test]
fn a_name_without_addresses_is_told() {
    let cast = Cast::default();
    let mut profile = cast.profile(AuthKind::Psk);
    profile.gateway.host = peregrine_core::profile::Host::Name("nowhere.example.org".into());
    let mut world = cast.world(AuthKind::Psk, 14);
    let failure = world.connect_and_wait(profile, cast.credentials()).unwrap_err();
    assert_eq!(failure.cause, Cause::NameNotFound("nowhere.example.org".into()));
    assert_eq!(failure.stage, Stage::Resolve);
}
