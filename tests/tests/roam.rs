//! A tunnel that lives while networks change, NATs forget, machines sleep and gateways restart, in virtual time.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::net::IpAddr;
use std::time::Duration;

use peregrine_core::command::{Cause, Happening, Means, RekeyKind, State, Why};
use peregrine_core::profile::{AuthKind, Host, Profile};
use peregrine_core::wire::iana::{ExchangeType, NotifyType};
use peregrine_tests::cast::{Cast, packet};
use peregrine_tests::gateway::{Gateway, GatewayConfig, Unique};
use peregrine_tests::link::{Fate, Interface, Rule, Way};
use peregrine_tests::world::World;

const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

fn wifi() -> Interface {
    Interface::new("wifi", &["10.11.0.2", "2001:db8:11::2"]).behind("198.51.100.11")
}

fn lte() -> Interface {
    Interface::new("lte", &["10.12.0.2"]).behind("198.51.100.12")
}

fn v6_only() -> Interface {
    Interface::new("six", &["2001:db8:13::2"])
}

/// A tunnel over Wi-Fi, after `set` has changed the gateway and the profile.
fn connected(seed: u64, set: impl FnOnce(&mut GatewayConfig, &mut Profile)) -> World {
    let cast = Cast::default();
    let (mut config, mut profile) = (cast.gateway(AuthKind::Psk), cast.profile(AuthKind::Psk));
    config.unique = Unique::Replace;
    set(&mut config, &mut profile);
    let mut world = World::new(Gateway::new(config, 0x47), seed);
    world.names.insert(
        "vpn.example.org".into(),
        vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
    );
    world.link.interfaces = vec![wifi()];
    world.connect_and_wait(profile, cast.credentials()).unwrap();
    world.run(5 * SECOND);
    world
}

/// Until a packet goes through and its echo comes back; how long that took.
fn gap(world: &mut World, limit: Duration) -> Duration {
    let begun = world.now;
    while world.now.since(begun) < limit {
        let before = world.received.len();
        world.send(&packet("10.3.0.1", "10.9.9.9", 100));
        world.run_until(20 * MS, |world| world.received.len() > before);
        if world.received.len() > before {
            return world.now.since(begun);
        }
    }
    panic!("nothing goes through for {limit:?}: {:?}", world.status());
}

fn last_means(world: &World) -> Option<Means> {
    world
        .happenings
        .iter()
        .rev()
        .find_map(|(_, happening)| match happening {
            Happening::Roam(roam) => Some(roam.means),
            _ => None,
        })
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

#[test]
fn from_network_to_network_and_back_within_a_round_trip() {
    for rekeys in [false, true] {
        let mut world = connected(1, |config, _| config.rekey_after_update = rekeys);
        for round in 0..50 {
            let (there, to) = if round % 2 == 0 {
                (lte(), "10.12.0.2")
            } else {
                (wifi(), "10.11.0.2")
            };
            world.move_to(there);
            let took = gap(&mut world, 5 * SECOND);
            assert!(took <= 100 * MS, "round {round}: {took:?}");
            world.run(SECOND);
            let path = world.status().path.unwrap();
            assert_eq!(path.local.ip(), to.parse::<IpAddr>().unwrap(), "round {round}");
            assert_eq!(world.status().state, State::Connected);
        }
        assert_eq!(
            world
                .happenings
                .iter()
                .filter(|(_, it)| matches!(it, Happening::Roam(_)))
                .count(),
            50
        );
        assert!(reconnects(&world).is_empty());
        world.run(10 * SECOND);
        assert!(world.ends_agree());
        assert_eq!(world.plans.len(), 1, "the tunnel device stays as it is");
    }
}

#[test]
fn from_one_address_family_to_the_other_and_back() {
    let mut world = connected(2, |config, profile| {
        config.addresses = vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        profile.gateway.host = Host::Address("192.0.2.1".parse().unwrap());
    });
    for _ in 0..5 {
        world.move_to(v6_only());
        assert!(gap(&mut world, 5 * SECOND) <= 100 * MS);
        world.run(2 * SECOND);
        assert!(world.status().path.unwrap().remote.is_ipv6());
        world.move_to(lte());
        assert!(gap(&mut world, 5 * SECOND) <= 100 * MS);
        world.run(2 * SECOND);
        assert!(world.status().path.unwrap().remote.is_ipv4());
    }
    assert!(reconnects(&world).is_empty());
}

#[test]
fn a_family_that_does_not_get_through_is_left_for_the_other() {
    let mut world = connected(3, |config, profile| {
        config.addresses = vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        profile.gateway.host = Host::Name("vpn.example.org".into());
    });
    // There is a route for both, and only one of them gets through.
    let blocked: IpAddr = world.status().path.unwrap().remote.ip();
    world.link.blocked = vec![blocked];
    world.move_to(Interface::new("cafe", &["10.14.0.2", "2001:db8:14::2"]));
    let took = gap(&mut world, 5 * SECOND);
    assert!(took <= 600 * MS, "{took:?}");
    world.run(2 * SECOND);
    assert_ne!(world.status().path.unwrap().remote.ip(), blocked);
    assert_eq!(world.status().state, State::Connected);
}

#[test]
fn the_network_changes_again_before_the_last_change_is_through() {
    let mut world = connected(4, |_, _| ());
    for round in 0..30_u32 {
        for step in 0..3 {
            world.move_to(if (round + step) % 2 == 0 { lte() } else { wifi() });
            world.run(MS * (3 + round % 17));
        }
        let took = gap(&mut world, 5 * SECOND);
        assert!(took <= 1500 * MS, "round {round}: {took:?}");
        world.run(5 * SECOND);
        assert_eq!(world.status().state, State::Connected, "round {round}");
    }
    assert!(world.ends_agree());
}

/// What the gateway asks on the network that we have just left comes in there, and no answer of ours gets out.
#[test]
fn a_request_that_comes_in_where_nothing_gets_out_is_answered_on_the_new_network() {
    let mut world = connected(4, |_, _| ());
    world.join(lte());
    world.run(5 * SECOND);
    assert_eq!(
        world.status().path.unwrap().local.ip(),
        "10.12.0.2".parse::<IpAddr>().unwrap()
    );
    world.gateway_does(Gateway::rekey_child);
    world.lose_route("lte");
    assert!(gap(&mut world, 5 * SECOND) <= 100 * MS);
    let replaced = |world: &World| {
        let happenings = world.happenings.iter();
        happenings
            .filter(|(_, it)| matches!(it, Happening::Rekey(_)))
            .count()
            == 1
    };
    assert!(world.run_until(200 * MS, |world| replaced(world) && world.ends_agree()));
}

#[test]
fn a_nat_that_forgets_is_noticed_within_one_keepalive() {
    let mut world = connected(5, |_, _| ());
    for _ in 0..3 {
        world.run(90 * SECOND);
        world.rebind_nat();
        let begun = world.now;
        // Only the gateway has something to say.
        let back = world.run_until(70 * SECOND, |world| {
            world.happenings.iter().any(|(at, it)| {
                *at >= begun && matches!(it, Happening::Roam(roam) if roam.means == Means::NatRebinding)
            })
        });
        assert!(back, "{:?}", world.happenings);
        let before = world.received.len();
        world.gateway_does(|gateway, _| gateway.send(&packet("10.9.9.9", "10.3.0.1", 100)));
        world.run(SECOND);
        assert_eq!(world.received.len(), before + 1);
    }
    // With traffic it shows sooner.
    gap(&mut world, SECOND);
    world.rebind_nat();
    let took = gap(&mut world, 30 * SECOND);
    assert!(took <= 12 * SECOND, "{took:?}");
}

#[test]
fn a_nat_that_forgets_while_the_ike_sa_is_replaced_is_noticed_too() {
    for by_gateway in [false, true] {
        let mut world = connected(20, |_, _| ());
        world.run(30 * SECOND);
        world.rebind_nat();
        // What we ask along the new mapping is answered there; the packets of the tunnel still go to the old one.
        world.rekey(RekeyKind::IkeSa);
        if by_gateway {
            world.run(SECOND);
            world.rebind_nat();
            world.send(&packet("10.3.0.1", "10.9.9.9", 100));
            world.gateway_does(|gateway, now| gateway.rekey_ike(now));
        }
        let took = gap(&mut world, 60 * SECOND);
        assert!(took <= 30 * SECOND, "by the gateway: {by_gateway}, {took:?}");
        assert!(reconnects(&world).is_empty());
    }
}

#[test]
fn the_sa_that_was_replaced_is_deleted_although_something_was_unanswered() {
    for silent in 9..28 {
        let mut world = connected(21, |config, _| config.unique = Unique::Keep);
        world.gateway.silent = true;
        world.send(&packet("10.3.0.1", "10.9.9.9", 100));
        world.run((10 + silent) * SECOND);
        world.gateway.silent = false;
        let connected = world.run_until(60 * SECOND, |world| world.status().state == State::Connected);
        assert!(connected, "{silent} s");
        world.run(SECOND);
        assert_eq!(world.gateway.sas(), 1, "{silent} s");
    }
}

#[test]
fn no_keepalives_while_packets_come_in() {
    let mut world = connected(6, |_, _| ());
    world.run(30 * SECOND);
    world.gateway.echo = false;
    let sent = world.sent.len();
    for _ in 0..90 {
        world.gateway_does(|gateway, _| gateway.send(&packet("10.9.9.9", "10.3.0.1", 100)));
        world.run(SECOND);
    }
    assert_eq!(world.sent.len(), sent, "nothing was sent in 90 s of reception");
}

#[test]
fn without_mobike_a_fresh_sa_takes_over_with_the_same_address() {
    let mut world = connected(7, |config, _| config.mobike = false);
    for round in 0..10 {
        world.move_to(if round % 2 == 0 { lte() } else { wifi() });
        let took = gap(&mut world, 10 * SECOND);
        assert!(took <= 500 * MS, "round {round}: {took:?}");
        assert_eq!(last_means(&world), Some(Means::NewSa));
        world.run(15 * SECOND);
        assert!(world.ends_agree(), "round {round}");
    }
    assert_eq!(world.plans.len(), 1, "the tunnel device and its addresses stay");
    assert_eq!(reconnects(&world), vec![Why::NetworkChanged; 10]);
}

#[test]
fn a_gateway_that_does_not_want_us_there_gets_a_fresh_sa() {
    let mut world = connected(8, |config, _| {
        config.unacceptable = vec!["198.51.100.12".parse().unwrap()];
    });
    world.move_to(lte());
    let took = gap(&mut world, 10 * SECOND);
    assert!(took <= SECOND, "{took:?}");
    assert_eq!(last_means(&world), Some(Means::NewSa));
}

#[test]
fn no_network_for_a_while() {
    for away in [1, 10, 120, 3000] {
        let mut world = connected(9, |config, _| config.dpd = None);
        world.go_offline();
        assert_eq!(world.status().state, State::Reconnecting);
        assert_eq!(world.status().why, Some(Why::Offline));
        let sent = world.sent.len();
        world.run(away * SECOND);
        assert_eq!(world.sent.len(), sent, "nobody to speak to for {away} s");
        // The first network back again, with the same address, and then another one.
        for there in [wifi(), lte()] {
            world.move_to(there);
            let took = gap(&mut world, 10 * SECOND);
            assert!(took <= 200 * MS, "{away} s: {took:?}");
            world.run(2 * SECOND);
            assert_eq!(world.status().state, State::Connected, "{away} s");
            assert_eq!(world.plans.len(), 1, "{away} s");
        }
    }
}

#[test]
fn back_in_the_same_network_the_tunnel_is_said_to_work_as_soon_as_it_does() {
    for mobike in [true, false] {
        let mut world = connected(19, |config, _| config.mobike = mobike);
        for _ in 0..3 {
            world.go_offline();
            world.run(5 * SECOND);
            assert_eq!(world.status().state, State::Reconnecting);
            world.move_to(wifi());
            world.run(SECOND);
            assert_eq!(world.status().state, State::Connected, "MOBIKE: {mobike}");
        }
        assert!(reconnects(&world).is_empty());
        assert!(world.ends_agree());
    }
}

#[test]
fn back_while_the_gateway_replaces_the_ike_sa_the_tunnel_is_said_to_work_too() {
    for away in 1..10 {
        let mut world = connected(22, |_, _| ());
        // Where no NAT asks for keepalives.
        let home = Interface::new("home", &["10.14.0.2"]);
        world.move_to(home.clone());
        world.run(5 * SECOND);
        world.gateway_does(|gateway, now| gateway.rekey_ike(now));
        world.run(12 * MS);
        world.go_offline();
        world.run(away * SECOND);
        world.move_to(home);
        let begun = world.now;
        while world.now.since(begun) < 35 * SECOND {
            world.send(&packet("10.3.0.1", "10.9.9.9", 100));
            world.run(SECOND);
        }
        assert_eq!(world.status().state, State::Connected, "{away} s");
        assert!(reconnects(&world).is_empty(), "{away} s");
    }
}

#[test]
fn a_nat_that_forgets_before_the_first_look_is_noticed_by_the_silence() {
    let mut world = connected(23, |_, _| ());
    world.gateway_does(|gateway, now| gateway.delete_ike(now));
    let back = |world: &World| world.status().state == State::Connected;
    world.run_until(SECOND, |world| !back(world));
    assert!(world.run_until(20 * SECOND, back));
    world.rebind_nat();
    let took = gap(&mut world, 30 * SECOND);
    assert!(took <= 12 * SECOND, "{took:?}");
}

#[test]
fn sleep_from_ten_seconds_to_a_week() {
    for asleep in [10, 600, 43_200, 7 * 86_400] {
        for elsewhere in [false, true] {
            let mut world = connected(10, |config, _| config.dpd = Some(60 * SECOND));
            world.sleep(asleep * SECOND);
            if elsewhere {
                world.move_to(lte());
            }
            let took = gap(&mut world, 30 * SECOND);
            assert!(
                took <= 12 * SECOND,
                "{asleep} s, elsewhere: {elsewhere}: {took:?}"
            );
            world.run(20 * SECOND);
            assert_eq!(world.status().state, State::Connected);
            assert!(world.ends_agree(), "{asleep} s");
        }
    }
}

#[test]
fn a_gateway_that_restarts_is_connected_to_again() {
    let mut world = connected(11, |_, _| ());
    world.gateway.restart();
    let took = gap(&mut world, 60 * SECOND);
    assert!(took <= 22 * SECOND, "{took:?}");
    assert_eq!(reconnects(&world), [Why::PeerDead]);
    world.run(40 * SECOND);
    assert!(world.ends_agree());
    // Down for a while: attempts go on, further and further apart, and the status says when.
    world.gateway.silent = true;
    world.send(&packet("10.3.0.1", "10.9.9.9", 100));
    world.run(300 * SECOND);
    let status = world.status();
    assert_eq!(
        (status.state, status.why),
        (State::Reconnecting, Some(Why::PeerDead))
    );
    assert!(status.attempt > 2, "attempt {}", status.attempt);
    world.run_until(100 * SECOND, |world| world.status().retry_at.is_some());
    assert!(world.status().retry_at.is_some());
    world.gateway.restart();
    world.gateway.silent = false;
    let took = gap(&mut world, 90 * SECOND);
    assert!(took <= 75 * SECOND, "{took:?}");
    assert!(
        world.plans.iter().all(|plan| plan.tunnel.is_some()),
        "traffic never goes beside the tunnel"
    );
}

#[test]
fn the_gateways_delete_is_followed_by_a_new_connection() {
    let mut world = connected(12, |_, _| ());
    world.gateway_does(|gateway, now| gateway.delete_ike(now));
    world.run(SECOND);
    let status = world.status();
    assert_eq!(
        (status.state, status.why),
        (State::Reconnecting, Some(Why::DeletedByGateway))
    );
    assert!(status.retry_at.is_some(), "the countdown is shown");
    assert_eq!(status.failure.unwrap().cause, Cause::DeletedByGateway);
    let took = gap(&mut world, 10 * SECOND);
    assert!((3 * SECOND..6 * SECOND).contains(&took), "{took:?}");
    assert_eq!(reconnects(&world), [Why::DeletedByGateway]);
}

#[test]
fn a_credential_that_is_refused_is_not_tried_in_a_loop() {
    let mut world = connected(13, |_, _| ());
    world.gateway.config.refuse_auth = Some(NotifyType::AUTHENTICATION_FAILED);
    let before = world.gateway.transcript.len();
    world.gateway_does(|gateway, now| gateway.delete_ike(now));
    world.run(1200 * SECOND);
    assert_eq!(world.status().state, State::Reconnecting);
    assert_eq!(world.failure().unwrap().cause, Cause::AuthenticationFailed);
    assert!(
        world.plans.iter().all(|plan| plan.tunnel.is_some()),
        "nothing goes beside the tunnel"
    );
    let asked = world.gateway.transcript[before..]
        .iter()
        .filter(|(exchange, ..)| *exchange == ExchangeType::IKE_AUTH)
        .count();
    assert!((4..=7).contains(&asked), "asked {asked} times in 20 minutes");
}

#[test]
fn authentication_is_renewed_before_its_lifetime_ends() {
    let mut world = connected(14, |config, _| config.auth_lifetime = Some(600 * SECOND));
    let begun = world.now;
    while world.now.since(begun) < 3000 * SECOND {
        let (up, down) = (world.gateway.received.len(), world.received.len());
        world.send(&packet("10.3.0.1", "10.9.9.9", 100));
        world.run(SECOND);
        assert_eq!(world.gateway.received.len(), up + 1);
        assert_eq!(world.received.len(), down + 1, "{:?}", world.now.since(begun));
    }
    let renewed = reconnects(&world);
    assert!((5..=6).contains(&renewed.len()), "{renewed:?}");
    assert!(renewed.iter().all(|why| *why == Why::AuthLifetime));
}

#[test]
fn a_hint_without_proof_is_looked_into_and_not_believed() {
    let mut world = connected(15, |_, _| ());
    world.run(60 * SECOND);
    let (initiator, responder) = {
        let set = world.gateway.sa_set();
        *set.keys().next().unwrap()
    };
    let header = peregrine_core::wire::Header {
        initiator_spi: initiator,
        responder_spi: responder,
        next_payload: peregrine_core::wire::iana::PayloadType::NONE,
        version: peregrine_core::wire::VERSION,
        exchange: ExchangeType::INFORMATIONAL,
        flags: peregrine_core::wire::Flags {
            initiator: false,
            version: false,
            response: true,
        },
        message_id: 0,
        length: 0,
    };
    let notify = peregrine_core::wire::Payload::Notify(peregrine_core::wire::Notify::new(
        NotifyType::INVALID_IKE_SPI,
        &[],
    ));
    let forged = peregrine_core::wire::encode_message(header, &[notify]).unwrap();
    let asked = |world: &World| world.gateway.transcript.len();
    let before = asked(&world);
    let path = world.gateway.paths()[0];
    for _ in 0..200 {
        let datagram = [&[0; 4], forged.as_slice()].concat();
        world.gateway_does(|_, _| vec![(path, datagram)]);
        world.run(100 * MS);
    }
    let more = asked(&world) - before;
    assert!((1..=3).contains(&more), "asked {more} times in 20 s");
    assert_eq!(world.status().state, State::Connected);
    assert!(reconnects(&world).is_empty());
}

#[test]
fn the_newest_packets_wait_for_the_next_sa() {
    let mut world = connected(31, |_, _| {});
    world.gateway_does(|gateway, now| gateway.delete_ike(now));
    world.run_until(SECOND, |world| world.status().state == State::Reconnecting);
    // The gateway's wish is respected for five seconds; what is older than three by then is gone.
    world.run(SECOND);
    world.send(&packet("10.3.0.1", "10.9.9.9", 90));
    world.run(3 * SECOND);
    let before = world.received.len();
    for len in 100..140 {
        world.send(&packet("10.3.0.1", "10.9.9.9", len));
    }
    assert!(world.run_until(10 * SECOND, |world| world.received.len() >= before + 32));
    world.run(SECOND);
    let lens: Vec<usize> = world.received[before..].iter().map(Vec::len).collect();
    assert_eq!(lens, (108..140).collect::<Vec<_>>(), "in their order, once");
    assert_eq!(world.status().traffic.dropped["no_tunnel"], 9);
}

#[test]
fn a_child_that_the_gateway_forgot_in_silence_is_found_out() {
    let mut world = connected(32, |config, _| config.complain = false);
    gap(&mut world, SECOND);
    world.gateway.lose_children();
    let begun = world.now;
    gap(&mut world, 25 * SECOND);
    assert!(
        world.now.since(begun) < 20 * SECOND,
        "{:?}",
        world.now.since(begun)
    );
    assert!(reconnects(&world).is_empty());
}

#[test]
fn traffic_that_goes_one_way_replaces_few_children() {
    let mut world = connected(33, |_, _| {});
    world.gateway.echo = false;
    let rekeys = |world: &World| {
        let of = |happening: &&(_, Happening)| matches!(happening.1, Happening::Rekey(_));
        world.happenings.iter().filter(of).count()
    };
    for _ in 0..3600 {
        world.send(&packet("10.3.0.1", "10.9.9.9", 100));
        world.run(SECOND);
    }
    assert!((1..=8).contains(&rekeys(&world)), "{}", rekeys(&world));
}

/// A client that begins to connect while something changes in its networks every second.
fn connecting(seed: u64) -> World {
    let cast = Cast::default();
    let (config, mut profile) = (cast.gateway(AuthKind::Psk), cast.profile(AuthKind::Psk));
    profile.gateway.host = Host::Name("vpn.example.org".into());
    let mut world = World::new(Gateway::new(config, 0x47), seed);
    let addresses = ["192.0.2.1", "2001:db8::1"].map(|text| text.parse().unwrap());
    world.names.insert("vpn.example.org".into(), addresses.to_vec());
    world.link.interfaces = vec![wifi()];
    world.link.latency = 600 * MS;
    world.connect(profile, cast.credentials());
    world
}

#[test]
fn a_network_that_changes_all_the_time_does_not_keep_a_connection_from_coming_about() {
    let mut world = connecting(34);
    let begun = world.now;
    while world.status().state != State::Connected {
        assert!(world.now.since(begun) < 6 * SECOND, "{:?}", world.status());
        world.run(SECOND);
        world.leave("something else");
    }
}

#[test]
fn who_waits_for_an_answer_on_a_network_that_is_gone_begins_anew_on_another() {
    let mut world = connecting(35);
    world.run(700 * MS);
    let begun = world.now;
    world.move_to(lte());
    assert!(world.run_until(6 * SECOND, |world| world.status().state == State::Connected));
    assert!(
        world.now.since(begun) <= 3 * SECOND,
        "{:?}",
        world.now.since(begun)
    );
    // And where there is none for a while, with what comes next.
    let mut world = connecting(36);
    world.run(700 * MS);
    world.go_offline();
    world.run(100 * MS);
    if world.status().state == State::Connecting {
        world.move_to(lte());
        assert!(world.run_until(6 * SECOND, |world| world.status().state == State::Connected));
    }
}

/// Seed 39599 of the random histories.
#[test]
fn a_nat_that_forgets_is_noticed_although_the_ike_sa_is_busy() {
    let cast = Cast::default();
    let mut world = cast.world(AuthKind::Psk, 99);
    world.link.interfaces = vec![Interface::new("wifi", &["10.11.0.2"]).behind("198.51.100.11")];
    let mut profile = cast.profile(AuthKind::Psk);
    profile.child.rekey = Duration::from_secs(10);
    world.connect_and_wait(profile, cast.credentials()).unwrap();
    world.run(Duration::from_secs(30));
    world.rebind_nat();
    let begun = world.now;
    let before = world.received.len();
    while world.received.len() == before {
        world.send(&packet("10.3.0.1", "10.9.9.9", 100));
        world.run(Duration::from_secs(1));
        let took = world.now.since(begun);
        assert!(took < Duration::from_secs(20), "nothing comes back");
    }
}

/// Seed 6757 of the random histories.
#[test]
fn a_gateway_that_forgets_twice_in_silence_is_found_out_twice() {
    let cast = Cast::default();
    let mut world = cast.world(AuthKind::Psk, 98);
    world.gateway.config.complain = false;
    world
        .connect_and_wait(cast.profile(AuthKind::Psk), cast.credentials())
        .unwrap();
    for _ in 0..2 {
        world.run(Duration::from_secs(1));
        world.gateway.lose_children();
        let begun = world.now;
        let before = world.happenings.len();
        // The first packets through the new child are lost with it before any answer comes.
        while world.happenings.len() == before {
            world.send(&packet("10.3.0.1", "10.9.9.9", 100));
            world.run(Duration::from_secs(1));
            assert!(
                world.now.since(begun) < Duration::from_secs(30),
                "it is not found out"
            );
        }
    }
}

/// Seed 16086 of the random histories: the gateway makes an SA beside the one that is up, its answer is lost, the machine
/// goes offline, and the gateway sends everything by the SA that nobody waits for any more.
#[test]
fn an_sa_that_was_given_up_does_not_take_the_packets_for_good() {
    let mut world = connected(34, |config, _| config.unique = Unique::Keep);
    for exchange in [ExchangeType::INFORMATIONAL, ExchangeType::IKE_AUTH] {
        let mut rule = Rule::first(Way::Down, exchange, Fate::Drop);
        rule.times = u32::MAX;
        world.link.rules.push(rule);
    }
    world.link.refuses_tcp = true;
    world.gateway.echo = false;
    world.send(&packet("10.3.0.1", "10.9.9.9", 100));
    assert!(world.run_until(60 * SECOND, |world| world.gateway.sas() == 2));
    world.run(SECOND);
    world.go_offline();
    world.run(3 * SECOND);
    world.link.rules.clear();
    world.gateway.echo = true;
    world.join(wifi());
    gap(&mut world, 25 * SECOND);
    assert_eq!(reconnects(&world), [Why::Silent]);
    // From then on there is no reason to suspect anything.
    world.gateway.echo = false;
    for _ in 0..300 {
        world.send(&packet("10.3.0.1", "10.9.9.9", 100));
        world.run(SECOND);
    }
    assert_eq!(reconnects(&world), [Why::Silent]);
}

/// Seed 81085 of the random histories: a Child SA is suspected for nothing, and then really is forgotten.
#[test]
fn a_false_suspicion_does_not_hide_the_next_one() {
    let mut world = connected(35, |config, _| config.complain = false);
    world.gateway.echo = false;
    let rekeyed = |world: &World| {
        let last = world.happenings.last();
        matches!(last, Some((_, Happening::Rekey(_))))
    };
    let suspected = (0..30).any(|_| {
        world.send(&packet("10.3.0.1", "10.9.9.9", 100));
        world.run(SECOND);
        rekeyed(&world)
    });
    assert!(suspected);
    world.gateway.echo = true;
    world.gateway.lose_children();
    gap(&mut world, 50 * SECOND);
}
