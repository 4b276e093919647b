//! A tunnel over TCP (RFC 9329), in virtual time: where UDP does not get through, back again, and through every break of
//! a connection.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::collections::BTreeSet;
use std::time::Duration;

use peregrine_core::command::{Cause, Happening, Means, RekeyKind, Stage, State, Transport, Why};
use peregrine_core::profile::{AuthKind, Profile};
use peregrine_core::wire::Header;
use peregrine_core::wire::iana::{ExchangeType, NotifyType, PayloadType};
use peregrine_tests::cast::{Cast, packet};
use peregrine_tests::gateway::{Gateway, GatewayConfig, Unique};
use peregrine_tests::link::{Interface, Way};
use peregrine_tests::world::World;

const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

fn wifi() -> Interface {
    Interface::new("wifi", &["10.11.0.2"]).behind("198.51.100.11")
}

fn lte() -> Interface {
    Interface::new("lte", &["10.12.0.2"]).behind("198.51.100.12")
}

fn world(seed: u64, set: impl FnOnce(&mut GatewayConfig, &mut Profile)) -> (World, Profile, Cast) {
    let cast = Cast::default();
    let (mut config, mut profile) = (cast.gateway(AuthKind::Psk), cast.profile(AuthKind::Psk));
    config.unique = Unique::Replace;
    set(&mut config, &mut profile);
    let mut world = World::new(Gateway::new(config, 0x47), seed);
    world.link.interfaces = vec![wifi()];
    (world, profile, cast)
}

/// A tunnel that is up, over whatever the network lets through.
fn connected(seed: u64, at: Interface, set: impl FnOnce(&mut GatewayConfig, &mut Profile)) -> World {
    let (mut world, profile, cast) = world(seed, set);
    world.link.interfaces = vec![at];
    world.connect_and_wait(profile, cast.credentials()).unwrap();
    world
}

fn transport(world: &World) -> &'static str {
    world.status().path.map_or("none", |path| path.transport)
}

/// Until a packet goes through and its echo comes back; how long that took.
#[track_caller]
fn gap(world: &mut World, limit: Duration) -> Duration {
    let begun = world.now;
    while world.now.since(begun) < limit {
        let before = world.received.len();
        world.send(&packet("10.3.0.1", "10.9.9.9", 100));
        world.run_until(50 * MS, |world| world.received.len() > before);
        if world.received.len() > before {
            return world.now.since(begun);
        }
    }
    panic!("nothing goes through for {limit:?}: {:?}", world.status());
}

fn reconnects(world: &World) -> Vec<Why> {
    let happenings = world.happenings.iter();
    happenings
        .filter_map(|(_, happening)| match happening {
            Happening::Reconnect(it) => Some(it.why),
            _ => None,
        })
        .collect()
}

fn roams(world: &World) -> Vec<(Transport, Transport, Means)> {
    let happenings = world.happenings.iter();
    happenings
        .filter_map(|(_, happening)| match happening {
            Happening::Roam(it) => Some((it.from.transport, it.to.transport, it.means)),
            _ => None,
        })
        .collect()
}

/// The headers of all IKE messages that the client sent over TCP.
fn over_tcp(world: &World) -> Vec<Header> {
    let sent = world.sent.iter().filter(|(_, path, _)| path.is_tcp());
    sent.filter_map(|(_, _, content)| Header::decode(content.strip_prefix(&[0; 4])?).ok())
        .collect()
}

#[test]
fn where_udp_is_blocked_the_tunnel_is_up_over_tcp_within_eight_seconds() {
    for seed in 0..20 {
        let mut world = connected(seed, wifi().without_udp(), |_, profile| {
            profile.ike.rekey = 60 * SECOND
        });
        let took = world.now.since(world.sent[0].0);
        assert!((3 * SECOND..8 * SECOND).contains(&took), "{took:?}");
        assert_eq!(transport(&world), "tcp");
        // RFC 9329, section 5.1: UDP first, sent again at least once, then another SPI.
        let first: Vec<(bool, Header)> = world
            .sent
            .iter()
            .filter_map(|(_, path, content)| {
                let message = content.strip_prefix(&[0; 4]).unwrap_or(content);
                let header = Header::decode(message).ok()?;
                (header.exchange == ExchangeType::IKE_SA_INIT).then_some((path.is_tcp(), header))
            })
            .collect();
        let tcp: Vec<_> = first.iter().filter(|(is_tcp, _)| *is_tcp).collect();
        assert_eq!(tcp.len(), 1, "nothing is sent again on a live connection");
        assert!(
            !first
                .iter()
                .any(|(is_tcp, it)| !is_tcp && it.initiator_spi == tcp[0].1.initiator_spi)
        );
        let udp = first
            .iter()
            .filter(|(is_tcp, it)| !is_tcp && it.initiator_spi == first[0].1.initiator_spi);
        assert!(udp.count() >= 2);
        assert!(gap(&mut world, SECOND) <= 50 * MS);
        // Fragmentation is agreed on for a later UDP, and no fragment goes over TCP (section 7.5).
        assert!(world.status().features.fragmentation);
        world.run(200 * SECOND);
        let sent = over_tcp(&world);
        assert!(sent.iter().all(|header| header.next_payload != PayloadType::SKF));
        assert!(
            sent.iter()
                .any(|header| header.exchange == ExchangeType::CREATE_CHILD_SA)
        );
        // No NAT keepalives (section 6.6), and nobody asks twice.
        let keepalive = |(_, path, content): &&(_, peregrine_core::command::Path, Vec<u8>)| {
            path.is_tcp() && content[..] == [0xff]
        };
        assert_eq!(world.sent.iter().filter(keepalive).count(), 0);
        assert!(world.ends_agree());
        world.disconnect();
        world.run(5 * SECOND);
        assert_eq!(world.status().state, State::Idle);
        assert_eq!(
            world.open_connections(),
            0,
            "the originator closes it (section 6.1)"
        );
        assert_eq!(world.gateway.sas(), 0);
    }
}

#[test]
fn without_tcp_fallback_nothing_is_tried() {
    let (mut world, mut profile, cast) = world(1, |_, _| ());
    world.link.interfaces = vec![wifi().without_udp()];
    profile.network.tcp_fallback = false;
    let failure = world.connect_and_wait(profile, cast.credentials()).unwrap_err();
    assert_eq!((failure.stage, failure.cause), (Stage::Reach, Cause::NoAnswer));
}

#[test]
fn a_gateway_without_tcp_and_one_behind_a_wall_are_told_apart() {
    for (refuses, reason) in [(true, "connection refused"), (false, "connection timed out")] {
        let (mut world, profile, cast) = world(2, |_, _| ());
        let home = wifi().without_udp();
        world.link.interfaces = vec![Interface {
            no_tcp: !refuses,
            ..home
        }];
        world.link.refuses_tcp = refuses;
        let begun = world.now;
        let failure = world.connect_and_wait(profile, cast.credentials()).unwrap_err();
        assert_eq!(failure.stage, Stage::Reach);
        assert_eq!(failure.cause, Cause::NoAnswerOverTcp(reason.into()));
        assert_eq!(failure.code(), "no_answer");
        let message = failure.message();
        assert!(
            message.contains("UDP") && message.contains("TCP") && message.contains(reason),
            "{message}"
        );
        assert!(world.now.since(begun) <= 16 * SECOND);
        assert_eq!(world.open_connections(), 0);
    }
}

#[test]
fn an_error_in_ike_sa_init_over_tcp_is_final_at_once() {
    let (mut world, profile, cast) = world(3, |config, profile| {
        config.ike = peregrine_tests::cast::ike("aes256gcm16-prfsha256-x25519");
        profile.ike.proposals = peregrine_tests::cast::ike("aes128gcm16-prfsha256-x25519");
    });
    world.link.interfaces = vec![wifi().without_udp()];
    let begun = world.now;
    let failure = world.connect_and_wait(profile, cast.credentials()).unwrap_err();
    assert_eq!(failure.cause, Cause::NoIkeProposal);
    let took = world.now.since(begun);
    assert!(took <= 3 * SECOND + 500 * MS, "{took:?}");
    world.run(SECOND);
    assert_eq!(world.open_connections(), 0);
}

#[test]
fn a_network_without_udp_and_back_to_one_with_it() {
    for seed in 0..10 {
        let mut world = connected(seed, wifi(), |_, _| ());
        assert_eq!(transport(&world), "udp");
        for round in 0..3 {
            world.move_to(lte().without_udp());
            let took = gap(&mut world, 10 * SECOND);
            assert!(took <= 4 * SECOND, "round {round}: {took:?}");
            world.run(SECOND);
            assert_eq!(transport(&world), "tcp");
            assert_eq!(world.open_connections(), 1);
            // From TCP to TCP.
            world.move_to(wifi().without_udp());
            let took = gap(&mut world, 10 * SECOND);
            assert!(took <= 4 * SECOND, "round {round}: {took:?}");
            world.run(11 * SECOND);
            assert_eq!((transport(&world), world.open_connections()), ("tcp", 1));
            world.move_to(lte());
            let took = gap(&mut world, 10 * SECOND);
            assert!(took <= 100 * MS, "UDP is tried first: {took:?}");
            world.run(11 * SECOND);
            assert_eq!((transport(&world), world.open_connections()), ("udp", 0));
            world.move_to(wifi());
            world.run(2 * SECOND);
        }
        assert!(reconnects(&world).is_empty());
        assert!(world.ends_agree());
        let moved = roams(&world);
        assert!(
            moved.contains(&(Transport::Udp, Transport::Tcp, Means::Mobike)),
            "{moved:?}"
        );
        assert!(moved.contains(&(Transport::Tcp, Transport::Udp, Means::Mobike)));
        assert!(moved.contains(&(Transport::Tcp, Transport::Tcp, Means::Mobike)));
    }
}

#[test]
fn udp_that_is_blocked_later_and_let_through_again_in_the_same_network() {
    let mut world = connected(4, wifi(), |_, _| ());
    world.link.interfaces[0].no_udp = true;
    let took = gap(&mut world, 30 * SECOND);
    assert!(took <= 15 * SECOND, "{took:?}");
    world.run(2 * SECOND);
    assert_eq!(transport(&world), "tcp");
    let before = world.sent.len();
    world.run(900 * SECOND);
    let probes = world.sent[before..]
        .iter()
        .filter(|(_, path, _)| !path.is_tcp())
        .count();
    assert!(
        (6..=40).contains(&probes),
        "UDP is asked now and then, and less often: {probes}"
    );
    assert_eq!(transport(&world), "tcp");
    assert!(
        gap(&mut world, SECOND) <= 50 * MS,
        "and the tunnel does not notice"
    );
    world.link.interfaces[0].no_udp = false;
    // Somebody says that the network may have changed.
    let home = world.link.interfaces.remove(0);
    world.move_to(home);
    world.run(2 * SECOND);
    assert_eq!(transport(&world), "udp");
    world.run(15 * SECOND);
    assert_eq!(world.open_connections(), 0);
    assert!(reconnects(&world).is_empty());
    assert!(world.ends_agree());

    // Without anybody saying so.
    world.link.interfaces[0].no_udp = true;
    gap(&mut world, 30 * SECOND);
    world.run(30 * SECOND);
    world.link.interfaces[0].no_udp = false;
    let back = world.run_until(90 * SECOND, |world| transport(world) == "udp");
    assert!(back);
    assert!(reconnects(&world).is_empty());
}

#[test]
fn a_connection_that_is_reset_is_opened_anew() {
    for mobike in [true, false] {
        let mut world = connected(5, wifi().without_udp(), |config, _| config.mobike = mobike);
        world.run(SECOND);
        for round in 0..10 {
            world.reset_connections();
            let took = gap(&mut world, 5 * SECOND);
            assert!(took <= 250 * MS, "round {round}, mobike {mobike}: {took:?}");
            world.run(SECOND);
            assert_eq!((transport(&world), world.open_connections()), ("tcp", 1));
            // Only the gateway has something to say.
            let before = world.received.len();
            world.gateway_does(|gateway, _| gateway.send(&packet("10.9.9.9", "10.3.0.1", 100)));
            world.run(SECOND);
            assert_eq!(world.received.len(), before + 1);
        }
        assert!(reconnects(&world).is_empty());
        assert_eq!(
            roams(&world),
            [(Transport::Tcp, Transport::Tcp, Means::NewConnection); 10],
            "mobike {mobike}"
        );
        assert_eq!(
            world.gateway.notified(NotifyType::UPDATE_SA_ADDRESSES).len(),
            if mobike { 10 } else { 0 }
        );
        assert!(world.ends_agree());
    }
}

#[test]
fn resets_without_end_are_met_with_pauses() {
    let mut world = connected(31, wifi().without_udp(), |_, _| ());
    world.run(60 * SECOND);
    let begun = world.sent.len();
    for _ in 0..1500 {
        world.reset_connections();
        world.run(20 * MS);
    }
    let connections: BTreeSet<_> = world.sent[begun..]
        .iter()
        .map(|(_, path, _)| path.socket())
        .collect();
    assert!(
        connections.len() <= 20,
        "{} connections in 30 s",
        connections.len()
    );
    let took = gap(&mut world, 30 * SECOND);
    assert!(took < 15 * SECOND, "{took:?}");
}

#[test]
fn a_connection_that_ends_while_there_is_no_network_is_opened_when_there_is_one() {
    let mut world = connected(32, wifi().without_udp(), |_, _| ());
    world.run(60 * SECOND);
    world.go_offline();
    world.run(SECOND);
    world.reset_connections();
    world.run(10 * SECOND);
    assert_eq!(world.status().why, Some(Why::Offline));
    world.move_to(wifi().without_udp());
    let took = gap(&mut world, 10 * SECOND);
    assert!(took < 2 * SECOND, "{took:?}");
    assert_eq!(reconnects(&world), [], "the same SA goes on");
}

#[test]
fn a_connection_that_is_stuck_without_a_word_is_replaced() {
    for mobike in [true, false] {
        let mut world = connected(6, wifi().without_udp(), |config, _| config.mobike = mobike);
        world.run(SECOND);
        world.stick_connections();
        let took = gap(&mut world, 30 * SECOND);
        assert!(took <= 15 * SECOND, "{took:?}");
        world.run(11 * SECOND);
        assert_eq!(world.open_connections(), 1);
        assert!(reconnects(&world).is_empty());
    }
}

#[test]
fn a_gateway_that_is_gone_is_noticed_and_one_that_comes_back_is_found() {
    let mut world = connected(7, wifi().without_udp(), |_, _| ());
    world.link.refuses_tcp = true;
    world.gateway.restart();
    world.reset_connections();
    world.run(60 * SECOND);
    assert_eq!(world.status().state, State::Reconnecting);
    world.link.refuses_tcp = false;
    let back = world.run_until(120 * SECOND, |world| world.status().state == State::Connected);
    assert!(back, "{:?}", world.status());
    gap(&mut world, 2 * SECOND);
    world.run(10 * SECOND);
    assert_eq!(world.open_connections(), 1);
}

#[test]
fn a_gateway_that_takes_connections_and_does_not_know_us_is_given_up() {
    for mobike in [true, false] {
        let mut world = connected(12, wifi().without_udp(), |config, _| {
            config.mobike = mobike;
            config.complain = false;
        });
        world.gateway.restart();
        let took = gap(&mut world, 60 * SECOND);
        assert!(took <= 30 * SECOND, "mobike {mobike}: {took:?}");
        world.run(15 * SECOND);
        assert_eq!((transport(&world), world.open_connections()), ("tcp", 1));
    }
}

#[test]
fn the_stream_to_the_gateway_is_cut_at_every_octet() {
    cut_everywhere(Way::Up);
}

#[test]
fn the_stream_from_the_gateway_is_cut_at_every_octet() {
    cut_everywhere(Way::Down);
}

/// Connects, rekeys both SAs and sends packets, while the stream breaks after so many octets.
fn cut_everywhere(way: Way) {
    let begin = || {
        let (mut world, profile, cast) = world(8, |config, profile| {
            config.ike = peregrine_tests::cast::ike("aes256gcm16-prfsha256-x25519");
            profile.ike.proposals = config.ike.clone();
        });
        world.link.interfaces = vec![wifi().without_udp()];
        (world, profile, cast.credentials())
    };
    let live = |world: &mut World| {
        world.run(SECOND);
        gap(world, 10 * SECOND);
        for kind in [RekeyKind::ChildSa, RekeyKind::IkeSa] {
            world.rekey(kind);
            gap(world, 10 * SECOND);
            world.run(5 * SECOND);
        }
    };
    // How much there is to cut.
    let (mut world, profile, credentials) = begin();
    world.connect_and_wait(profile, credentials).unwrap();
    live(&mut world);
    let all = world.octets_carried;
    assert!(all > 2000);
    for octets in 0..all {
        let (mut world, profile, credentials) = begin();
        world.cut = Some((way, octets));
        let result = world.connect_and_wait(profile, credentials);
        assert!(result.is_ok(), "after {octets} octets: {result:?}");
        live(&mut world);
        assert!(world.ends_agree(), "after {octets} octets");
        assert!(
            reconnects(&world).is_empty(),
            "after {octets} octets: {:?}",
            reconnects(&world)
        );
        assert_eq!(
            (transport(&world), world.open_connections()),
            ("tcp", 1),
            "after {octets} octets"
        );
    }
}

#[test]
fn without_mobike_a_fresh_sa_goes_to_tcp() {
    let mut world = connected(9, wifi(), |config, _| config.mobike = false);
    world.move_to(lte().without_udp());
    let took = gap(&mut world, 20 * SECOND);
    assert!(took <= 5 * SECOND, "{took:?}");
    world.run(10 * SECOND);
    assert_eq!((transport(&world), world.open_connections()), ("tcp", 1));
    assert_eq!(reconnects(&world), [Why::NetworkChanged]);
    world.move_to(wifi());
    let took = gap(&mut world, 20 * SECOND);
    assert!(took <= SECOND, "{took:?}");
    world.run(15 * SECOND);
    assert_eq!((transport(&world), world.open_connections()), ("udp", 0));
}

#[test]
fn sleep_ends_connections_and_not_the_tunnel() {
    for span in [30, 600, 3000] {
        let mut world = connected(10, wifi().without_udp(), |_, _| ());
        world.run(SECOND);
        world.sleep(span * SECOND);
        let took = gap(&mut world, 30 * SECOND);
        assert!(took <= 8 * SECOND, "{span} s: {took:?}");
        world.run(11 * SECOND);
        assert_eq!((transport(&world), world.open_connections()), ("tcp", 1));
    }
}

#[test]
fn long_requests_are_cut_for_udp_and_whole_for_tcp() {
    // The rekeying of an IKE SA with so long a key fills more than one datagram.
    let set = |config: &mut GatewayConfig, profile: &mut Profile| {
        config.ike = peregrine_tests::cast::ike("aes256gcm16-prfsha384-modp4096");
        profile.ike.proposals = config.ike.clone();
        profile.ike.fragment_size = 576;
        config.fragment = Some(576);
    };
    for to_tcp in [true, false] {
        let (first, then) = if to_tcp {
            (wifi(), lte().without_udp())
        } else {
            (wifi().without_udp(), lte())
        };
        let mut world = connected(11, first, set);
        world.run(2 * SECOND);
        // The request is on its way when the network goes.
        world.rekey(RekeyKind::IkeSa);
        world.move_to(then);
        gap(&mut world, 10 * SECOND);
        world.run(20 * SECOND);
        assert_eq!(transport(&world), if to_tcp { "tcp" } else { "udp" });
        assert!(
            over_tcp(&world)
                .iter()
                .all(|it| it.next_payload != PayloadType::SKF)
        );
        assert!(world.ends_agree());
        assert!(reconnects(&world).is_empty());
        let rekeyed = world
            .happenings
            .iter()
            .any(|(_, it)| matches!(it, Happening::Rekey(_)));
        assert!(rekeyed);
    }
}
