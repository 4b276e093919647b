//! The path MTU is found by probing, followed from network to network, and doubted when packets vanish; in virtual
//! time, on paths that drop what is too large and say nothing.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::time::Duration;

use peregrine_core::command::{RekeyKind, State};
use peregrine_core::profile::{AuthKind, Profile};
use peregrine_core::wire::iana::ExchangeType;
use peregrine_tests::cast::{Cast, ike, packet};
use peregrine_tests::gateway::{Gateway, GatewayConfig};
use peregrine_tests::link::{Fate, Interface, Rule, Way};
use peregrine_tests::world::World;

const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);
/// A tunnel over IPv4 with AES-GCM takes so much of each datagram.
const OVERHEAD: u16 = 62;
/// With what the search begins: what 1344 octets outside carry, the least that has room for 1280 inside.
const BASE: u16 = 1282;

fn wifi() -> Interface {
    Interface::new("wifi", &["10.11.0.2"]).behind("198.51.100.11")
}

fn lte() -> Interface {
    Interface::new("lte", &["10.12.0.2"]).behind("198.51.100.12")
}

/// A tunnel in this network with "auto", after `set` has changed the gateway and the profile.
fn connected(first: Interface, set: impl FnOnce(&mut GatewayConfig, &mut Profile)) -> World {
    let cast = Cast::default();
    let (mut config, mut profile) = (cast.gateway(AuthKind::Psk), cast.profile(AuthKind::Psk));
    profile.network.mtu = None;
    set(&mut config, &mut profile);
    let mut world = World::new(Gateway::new(config, 0x47), 1);
    world.link.interfaces = vec![first];
    world.connect_and_wait(profile, cast.credentials()).unwrap();
    world
}

fn mtu(world: &World) -> u16 {
    world.client.inner_mtu().unwrap().octets
}

/// Every MTU that the machine was given, without repetitions.
fn given(world: &World) -> Vec<u16> {
    let tunnels = world.plans.iter().map(|plan| plan.tunnel.as_ref().unwrap().mtu);
    let mut all: Vec<u16> = tunnels.collect();
    all.dedup();
    all
}

/// How many large datagrams with INFORMATIONAL were sent.
fn probes(world: &World) -> usize {
    let is_probe = |datagram: &[u8]| datagram.len() > 1000 && datagram[..4] == [0; 4] && datagram[22] == 37;
    world
        .sent
        .iter()
        .filter(|(_, _, datagram)| is_probe(datagram))
        .count()
}

/// Whether a packet of this length comes back from the gateway's echo.
fn echoes(world: &mut World, len: u16) -> bool {
    let before = world.received.len();
    world.send(&packet("10.3.0.1", "10.9.9.9", len.into()));
    world.run_until(500 * MS, |world| world.received.len() > before)
}

fn found(world: &mut World, limit: Duration) -> (u16, Duration) {
    let begun = world.now;
    let proven = |world: &World| world.client.inner_mtu().is_some_and(|mtu| mtu.is_proven);
    assert!(
        world.run_until(limit, proven),
        "nothing is found: {:?}",
        world.status()
    );
    (mtu(world), world.now.since(begun))
}

#[test]
fn a_path_that_carries_all_costs_one_probe_and_then_nothing() {
    let mut world = connected(wifi(), |_, _| {});
    assert_eq!(
        (mtu(&world), world.status().mtu),
        (BASE, Some(BASE)),
        "safe before it is known"
    );
    let (mtu, took) = found(&mut world, SECOND);
    assert_eq!((mtu, world.status().mtu), (1438, Some(1438)));
    assert!(took <= 20 * MS, "{took:?}");
    assert!(echoes(&mut world, 1438));
    assert_eq!((given(&world), probes(&world)), (vec![BASE, 1438], 1));
    world.run(3600 * SECOND);
    assert_eq!(probes(&world), 1, "an idle tunnel asks nothing");
    assert!(world.busiest <= 8, "{} timeouts at once", world.busiest);
}

#[test]
fn paths_that_drop_large_datagrams_in_silence_are_found_out() {
    for carries in [1499, 1492, 1480, 1452, 1436, 1420, 1400, 1381, 1364, 1344] {
        let mut world = connected(wifi().carrying(carries), |_, _| {});
        let (mtu, took) = found(&mut world, 8 * SECOND);
        assert!(mtu + OVERHEAD <= carries, "{mtu} on {carries}");
        assert!(mtu + OVERHEAD + 20 > carries, "{mtu} on {carries}");
        assert!(took < 5 * SECOND, "{took:?} on {carries}");
        assert!(echoes(&mut world, mtu));
        assert_eq!(
            given(&world),
            if mtu == BASE { vec![BASE] } else { vec![BASE, mtu] }
        );
        world.run(3600 * SECOND);
        assert_eq!(world.status().state, State::Connected);
        assert_eq!(world.gateway.sas(), 1);
    }
}

#[test]
fn below_what_ipv6_needs_the_device_stays_and_tcp_shrinks() {
    let mut world = connected(wifi().carrying(1280), |_, _| {});
    let (mtu, took) = found(&mut world, 8 * SECOND);
    assert_eq!(mtu, 1218);
    assert!(took < 4 * SECOND, "{took:?}");
    let has_v6 = world.status().addresses.iter().any(|net| net.addr().is_ipv6());
    assert_eq!(world.status().mtu, Some(if has_v6 { 1280 } else { 1218 }));
    assert!(echoes(&mut world, 1218));
    assert!(!echoes(&mut world, 1230));
}

#[test]
fn each_network_is_searched_anew_and_never_with_too_much() {
    let mut world = connected(wifi(), |_, _| {});
    assert_eq!(found(&mut world, SECOND).0, 1438);
    for (network, expected) in [
        (lte().carrying(1400), 1338),
        (wifi().carrying(1280), 1218),
        (lte(), 1438),
        (wifi().carrying(1400), 1338),
    ] {
        world.move_to(network);
        assert!(mtu(&world) <= BASE, "at once, before anything is known");
        world.run_until(2 * SECOND, |world| world.status().state == State::Connected);
        let (mtu, took) = found(&mut world, 8 * SECOND);
        assert_eq!(mtu, expected);
        assert!(took < 5 * SECOND, "{took:?}");
        assert!(echoes(&mut world, mtu));
    }
    assert!(
        world.plans.iter().all(|plan| plan.tunnel.is_some()),
        "without a gap"
    );
    assert_eq!(world.gateway.sas(), 1);
}

#[test]
fn what_the_host_knows_of_an_interface_is_not_exceeded() {
    let mut narrow = wifi();
    narrow.mtu = Some(1400);
    let mut world = connected(narrow.carrying(1400), |_, _| {});
    let (mtu, took) = found(&mut world, SECOND);
    assert_eq!((mtu, probes(&world)), (1338, 1));
    assert!(took <= 20 * MS, "{took:?}");
}

#[test]
fn what_the_host_was_told_is_tried_next() {
    let mut world = connected(wifi().carrying(1412), |_, _| {});
    // The kernel has heard "too big" from a router.
    world.link.interfaces[0].mtu = Some(1412);
    let (mtu, took) = found(&mut world, 2 * SECOND);
    assert_eq!(mtu, 1350, "exactly");
    assert!(took < 700 * MS, "{took:?}");
    // It forgets that again, and the path has become better.
    world.link.interfaces[0] = wifi();
    for _ in 0..700 {
        world.run(SECOND);
        world.send(&packet("10.3.0.1", "10.9.9.9", 100));
    }
    assert_eq!(found(&mut world, 8 * SECOND).0, 1438);
}

#[test]
fn a_lie_about_the_path_is_not_believed() {
    let mut world = connected(wifi(), |_, _| {});
    assert_eq!(found(&mut world, SECOND).0, 1438);
    world.link.interfaces[0].mtu = Some(700);
    world.client.handle_network(world.now);
    world.run(5 * SECOND);
    assert_eq!(found(&mut world, SECOND).0, 1438);
}

#[test]
fn a_path_that_narrows_under_an_upload_is_noticed() {
    let mut world = connected(wifi(), |_, _| {});
    world.run(5 * SECOND);
    world.link.interfaces[0].carries = 1400;
    let begun = world.now;
    // Small packets come back all the while: the tunnel looks well.
    while mtu(&world) > 1338 {
        assert!(world.now.since(begun) < 70 * SECOND, "the upload stalls for ever");
        world.send(&packet("10.3.0.1", "10.9.9.9", 1438));
        world.send(&packet("10.3.0.1", "10.9.9.9", 100));
        world.run(500 * MS);
    }
    world.run(5 * SECOND);
    assert_eq!(found(&mut world, 5 * SECOND).0, 1338);
    assert!(echoes(&mut world, 1338));
}

#[test]
fn a_path_that_narrows_and_lets_nothing_back_is_noticed_sooner() {
    let mut world = connected(wifi(), |_, _| {});
    world.run(5 * SECOND);
    assert!(echoes(&mut world, 1400));
    world.run(57 * SECOND); // it was just confirmed
    assert!(echoes(&mut world, 1400));
    world.run(SECOND);
    world.link.interfaces[0].carries = 1400;
    let begun = world.now;
    while mtu(&world) > 1338 {
        assert!(world.now.since(begun) < 20 * SECOND, "{:?}", world.status());
        world.send(&packet("10.3.0.1", "10.9.9.9", 1438));
        world.run(500 * MS);
    }
    assert_eq!(found(&mut world, 5 * SECOND).0, 1338);
}

#[test]
fn a_path_that_grows_is_used_after_a_while() {
    let mut world = connected(wifi().carrying(1400), |_, _| {});
    assert_eq!(found(&mut world, 5 * SECOND).0, 1338);
    world.link.interfaces[0].carries = 1500;
    for _ in 0..620 {
        assert!(echoes(&mut world, 1300));
        world.run(SECOND);
    }
    assert_eq!(mtu(&world), 1438);
    // Once a minute while large packets went through, and the search.
    assert!(probes(&world) < 40, "{}", probes(&world));
}

#[test]
fn a_number_in_the_profile_is_not_questioned() {
    let mut world = connected(wifi().carrying(1400), |_, profile| {
        profile.network.mtu = Some(1300)
    });
    world.run(60 * SECOND);
    assert_eq!(
        (mtu(&world), world.status().mtu, probes(&world)),
        (1300, Some(1300), 0)
    );
}

#[test]
fn a_gateway_without_fragments_of_ike_is_probed_too() {
    let mut world = connected(wifi().carrying(1400), |config, _| config.fragment = None);
    assert_eq!(found(&mut world, 5 * SECOND).0, 1338);
}

#[test]
fn a_probe_whose_answer_is_lost_is_answered_again() {
    let mut world = connected(wifi(), |_, _| {});
    world
        .link
        .rules
        .push(Rule::first(Way::Down, ExchangeType::INFORMATIONAL, Fate::Drop));
    assert_eq!(found(&mut world, 2 * SECOND).0, 1438);
    assert_eq!(world.gateway.sas(), 1);
    // What went out again were the same octets, and a short message beside them.
    let exchange = ExchangeType::INFORMATIONAL;
    let sent = |datagram: &[u8]| datagram[..4] == [0; 4] && datagram[22] == exchange.0;
    let sent = world.sent.iter().filter(|(_, _, datagram)| sent(datagram));
    let sent: Vec<&[u8]> = sent.map(|(_, _, datagram)| datagram.as_slice()).take(3).collect();
    assert_eq!((sent[0].len(), sent[0]), (1472, sent[2]));
    assert!(sent[1].len() < 100);
    assert_eq!(sent[0][24..28], sent[1][24..28], "the message ID");
}

#[test]
fn a_lost_probe_holds_nothing_up() {
    let mut world = connected(wifi().carrying(1400), |_, _| {});
    world.run(30 * MS); // the first is on its way to nowhere
    assert!(probes(&world) > 0);
    let begun = world.now;
    world.rekey(RekeyKind::ChildSa);
    assert!(world.run_until(5 * SECOND, |world| !world.happenings.is_empty()));
    assert!(world.now.since(begun) < 600 * MS, "{:?}", world.now.since(begun));
    // And when the network changes with one on its way, the update goes out at once.
    let mut world = connected(wifi().carrying(1400), |_, _| {});
    world.run(30 * MS);
    let begun = world.now;
    world.move_to(lte());
    assert!(world.run_until(5 * SECOND, |world| !world.happenings.is_empty()));
    assert!(world.now.since(begun) < 150 * MS, "{:?}", world.now.since(begun));
    assert_eq!(found(&mut world, 5 * SECOND).0, 1438);
}

#[test]
fn a_fresh_sa_on_the_same_path_begins_with_what_is_proven() {
    let mut world = connected(wifi().carrying(1400), |config, _| {
        config.auth_lifetime = Some(70 * SECOND);
    });
    assert_eq!(found(&mut world, 5 * SECOND).0, 1338);
    let plans = world.plans.len();
    world.run(120 * SECOND);
    assert!(!world.happenings.is_empty(), "it was renewed");
    assert_eq!(mtu(&world), 1338);
    assert_eq!(world.plans.len(), plans, "the device was left alone");
}

#[test]
fn messages_of_ike_have_the_sizes_of_their_blocks() {
    for carries in [1500, 1400] {
        let mut world = connected(wifi().carrying(carries), |config, profile| {
            config.ike = ike("aes256-sha256-prfsha256-x25519");
            profile.ike.proposals = ike("aes256-sha256-prfsha256-x25519");
        });
        let (mtu, _) = found(&mut world, 5 * SECOND);
        // No more than is proven, and less by one block at most.
        assert!(
            (carries - OVERHEAD - 16..=carries - OVERHEAD).contains(&mtu),
            "{mtu} on {carries}"
        );
    }
}
