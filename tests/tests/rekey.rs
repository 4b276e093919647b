//! SAs are replaced while traffic flows, begun by either side, in virtual time.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::time::Duration;

use peregrine_core::command::{Happening, Initiator, RekeyKind, State, Why};
use peregrine_core::esp::Limits;
use peregrine_core::profile::{AuthKind, Profile};
use peregrine_core::wire::iana::NotifyType;
use peregrine_tests::cast::{Cast, esp, ike, packet};
use peregrine_tests::gateway::{End, Gateway, GatewayConfig, Life, Pfs};
use peregrine_tests::link::{Fate, Rule, Way};
use peregrine_tests::world::World;

const SECOND: Duration = Duration::from_secs(1);

/// A tunnel, after `set` has changed the gateway and the profile.
fn connected(seed: u64, set: impl FnOnce(&mut GatewayConfig, &mut Profile)) -> World {
    let cast = Cast::default();
    let (mut config, mut profile) = (cast.gateway(AuthKind::Psk), cast.profile(AuthKind::Psk));
    set(&mut config, &mut profile);
    let mut world = World::new(Gateway::new(config, 0x47), seed);
    world.connect_and_wait(profile, cast.credentials()).unwrap();
    world
}

/// Sends a packet every 50 ms for `span` and fails if one of them, or its echo, is lost.
fn traffic_flows(world: &mut World, span: Duration) {
    let end = world.now + span;
    let (up, down) = (world.gateway.received.len(), world.received.len());
    let mut sent = 0;
    while world.now < end {
        world.send(&packet("10.3.0.1", "10.9.9.9", 100));
        sent += 1;
        world.run(Duration::from_millis(50));
    }
    world.run(SECOND);
    assert_eq!(world.gateway.received.len() - up, sent, "packets to the gateway");
    assert_eq!(world.received.len() - down, sent, "packets from the gateway");
}

fn rekeys(world: &World, kind: RekeyKind, by: Initiator) -> usize {
    let happenings = world.happenings.iter();
    happenings
        .filter(|(_, happening)| matches!(happening, Happening::Rekey(rekey) if rekey.kind == kind && rekey.by == by))
        .count()
}

#[test]
fn nothing_is_left_at_the_gateway_by_a_rekeying_that_the_end_overtakes() {
    for kind in [RekeyKind::IkeSa, RekeyKind::ChildSa] {
        for wait in [0, 5, 15, 25] {
            let mut world = connected(99, |_, _| {});
            world.run(SECOND);
            world.rekey(kind);
            world.run(Duration::from_millis(wait));
            world.disconnect();
            world.run(SECOND);
            assert_eq!(world.gateway.sas(), 0, "{kind:?}, disconnected after {wait} ms");
            world.run(2 * SECOND);
            assert_eq!(world.status().state, State::Idle);
        }
    }
}

#[test]
fn octets_and_packets_of_the_profile_call_for_a_new_child() {
    for limits in [
        Limits {
            octets: 2 << 20,
            packets: u64::MAX,
        },
        Limits {
            octets: u64::MAX,
            packets: 1500,
        },
    ] {
        let cast = Cast::default();
        let mut profile = cast.profile(AuthKind::Psk);
        profile.child.limits = limits;
        let mut world = cast.world(AuthKind::Psk, 1);
        world.connect_and_wait(profile, cast.credentials()).unwrap();
        let rekeyed = |world: &World| world.happenings.len();
        for _ in 0..1200 {
            world.send(&packet("10.3.0.1", "10.9.9.9", 1400));
        }
        world.run(Duration::from_secs(1));
        assert_eq!(rekeyed(&world), 0, "{limits:?}");
        for _ in 0..400 {
            world.send(&packet("10.3.0.1", "10.9.9.9", 1400));
        }
        world.run(Duration::from_secs(1));
        assert_eq!(rekeyed(&world), 1, "{limits:?}");
    }
}

#[test]
fn we_replace_both_sas_again_and_again_and_lose_nothing() {
    let mut world = connected(1, |_, profile| {
        profile.child.rekey = 10 * SECOND;
        profile.ike.rekey = 30 * SECOND;
    });
    traffic_flows(&mut world, 300 * SECOND);
    let (child, ike) = (
        rekeys(&world, RekeyKind::ChildSa, Initiator::Client),
        rekeys(&world, RekeyKind::IkeSa, Initiator::Client),
    );
    assert!((28..=34).contains(&child), "{child} child SAs in 300 s");
    assert!((9..=12).contains(&ike), "{ike} IKE SAs in 300 s");
    assert_eq!(rekeys(&world, RekeyKind::ChildSa, Initiator::Gateway), 0);
    assert_eq!(world.status().state, State::Connected);
    world.run(40 * SECOND);
    assert!(world.ends_agree());
    assert_eq!(world.plans.len(), 1, "the machine stays as it is");
}

#[test]
fn the_gateway_replaces_both_sas_again_and_again_and_nothing_is_lost() {
    for pfs in [Pfs::Never, Pfs::Optional, Pfs::Required] {
        let mut world = connected(2, |config, _| {
            config.pfs = pfs;
            let rekey = |age| Some(Life { age, end: End::Rekey });
            config.child_life = rekey(10 * SECOND);
            config.ike_life = rekey(30 * SECOND);
        });
        traffic_flows(&mut world, 200 * SECOND);
        let (child, ike) = (
            rekeys(&world, RekeyKind::ChildSa, Initiator::Gateway),
            rekeys(&world, RekeyKind::IkeSa, Initiator::Gateway),
        );
        assert!((15..=21).contains(&child), "{child} child SAs in 200 s, {pfs:?}");
        assert!((5..=7).contains(&ike), "{ike} IKE SAs in 200 s");
        assert_eq!(rekeys(&world, RekeyKind::ChildSa, Initiator::Client), 0);
        world.run(5 * SECOND);
        assert!(world.ends_agree(), "{pfs:?}");
    }
}

#[test]
fn each_side_replaces_what_the_other_has_made() {
    let mut world = connected(3, |_, _| ());
    for round in 0..6 {
        if round % 2 == 0 {
            world.gateway_does(|gateway, now| gateway.rekey_ike(now));
            world.run(2 * SECOND);
            world.gateway_does(|gateway, now| gateway.rekey_child(now));
        } else {
            world.rekey(RekeyKind::IkeSa);
            world.run(2 * SECOND);
            world.rekey(RekeyKind::ChildSa);
        }
        traffic_flows(&mut world, 7 * SECOND);
        assert!(world.ends_agree(), "round {round}");
        world.gateway_does(|gateway, now| gateway.ask_liveness(now));
        world.run(SECOND);
    }
    assert_eq!(rekeys(&world, RekeyKind::IkeSa, Initiator::Gateway), 3);
    assert_eq!(rekeys(&world, RekeyKind::IkeSa, Initiator::Client), 3);
}

#[test]
fn a_gateway_with_other_ideas_of_key_exchange_keeps_its_client() {
    // What the profile offers, what the gateway wants, whether that works.
    for (pfs, required, works) in [
        (Pfs::Never, false, true),
        (Pfs::Required, false, true),
        (Pfs::Required, true, true),
        (Pfs::Never, true, false),
    ] {
        let mut world = connected(4, |config, profile| {
            config.pfs = pfs;
            profile.child.require_pfs = required;
            profile.child.rehearse = true;
        });
        world.run(8 * SECOND);
        let rehearsed = rekeys(&world, RekeyKind::ChildSa, Initiator::Client);
        assert_eq!(rehearsed > 0, works, "{pfs:?}, required: {required}");
        traffic_flows(&mut world, 5 * SECOND);
        assert_eq!(world.status().state, State::Connected);
    }
    // A profile without key exchange, a gateway that insists on one.
    let mut world = connected(5, |config, profile| {
        config.pfs = Pfs::Required;
        profile.child.proposals = esp("aes256gcm16-esn");
    });
    world.rekey(RekeyKind::ChildSa);
    traffic_flows(&mut world, 5 * SECOND);
    assert_eq!(rekeys(&world, RekeyKind::ChildSa, Initiator::Client), 1);
}

#[test]
fn another_method_than_the_first_is_taken_where_the_gateway_wants_it() {
    let mut world = connected(6, |config, profile| {
        config.esp = esp("aes256gcm16-ecp384-esn-noesn");
        config.ike = ike("aes256gcm16-prfsha384-ecp256");
        profile.ike.proposals = ike("aes256gcm16-prfsha384-x25519-ecp256");
        profile.child.proposals = esp("aes256gcm16-x25519-ecp384-esn-noesn");
    });
    world.rekey(RekeyKind::ChildSa);
    world.rekey(RekeyKind::IkeSa);
    traffic_flows(&mut world, 5 * SECOND);
    let suite = &world.status().child_sas[0].suite;
    assert!(suite.contains("ecp384"), "{suite}");
    assert_eq!(rekeys(&world, RekeyKind::IkeSa, Initiator::Client), 1);
    assert!(world.ends_agree());
}

#[test]
fn what_the_gateway_puts_off_is_tried_again_later_and_not_at_once() {
    let mut world = connected(7, |config, _| {
        config.refuse_child_rekey = Some(NotifyType::TEMPORARY_FAILURE);
        config.refuse_ike_rekey = Some(NotifyType::TEMPORARY_FAILURE);
    });
    world.rekey(RekeyKind::ChildSa);
    world.rekey(RekeyKind::IkeSa);
    let before = world.gateway.transcript.len();
    world.run(8 * SECOND);
    let asked = world.gateway.transcript.len() - before;
    assert_eq!(asked, 2, "once each within 8 s");
    world.run(30 * SECOND);
    world.gateway.config.refuse_child_rekey = None;
    world.gateway.config.refuse_ike_rekey = None;
    traffic_flows(&mut world, 30 * SECOND);
    assert_eq!(rekeys(&world, RekeyKind::ChildSa, Initiator::Client), 1);
    assert_eq!(rekeys(&world, RekeyKind::IkeSa, Initiator::Client), 1);
    assert!(world.ends_agree());
}

#[test]
fn what_the_gateway_refuses_for_good_is_made_by_a_fresh_ike_sa() {
    for kind in [RekeyKind::ChildSa, RekeyKind::IkeSa] {
        let mut world = connected(8, |config, _| {
            config.refuse_child_rekey = Some(NotifyType::NO_ADDITIONAL_SAS);
            config.refuse_ike_rekey = Some(NotifyType::NO_ADDITIONAL_SAS);
        });
        world.rekey(kind);
        traffic_flows(&mut world, 10 * SECOND);
        let anew = world.happenings.iter().any(
            |(_, happening)| matches!(happening, Happening::Reconnect(it) if it.why == Why::RekeyRefused),
        );
        assert!(anew, "{kind:?}");
        world.run(5 * SECOND);
        assert!(world.ends_agree(), "{kind:?}");
        assert!(
            world
                .statuses
                .iter()
                .all(|(_, status)| status.state != State::Reconnecting),
            "the user need not notice"
        );
    }
}

#[test]
fn a_child_that_the_gateway_has_lost_is_made_anew() {
    let mut world = connected(9, |_, _| ());
    world.gateway.lose_children();
    world.rekey(RekeyKind::ChildSa);
    world.run(2 * SECOND);
    traffic_flows(&mut world, 3 * SECOND);
    assert!(world.ends_agree());
    world.run(10 * SECOND);
    world.gateway_does(|gateway, now| gateway.delete_child(now));
    world.run(2 * SECOND);
    traffic_flows(&mut world, 3 * SECOND);
    world.run(6 * SECOND);
    assert!(world.ends_agree());
    assert_eq!(world.status().state, State::Connected);
}

#[test]
fn a_lost_message_costs_time_and_nothing_else() {
    for kind in [RekeyKind::ChildSa, RekeyKind::IkeSa] {
        for (way, skip) in [(Way::Up, 0), (Way::Down, 0), (Way::Up, 1), (Way::Down, 1)] {
            for times in [1, 3] {
                let mut world = connected(10, |_, _| ());
                world.link.rules = vec![Rule {
                    way,
                    exchange: None,
                    message_id: None,
                    skip,
                    times,
                    fate: Fate::Drop,
                }];
                world.rekey(kind);
                traffic_flows(&mut world, 15 * SECOND);
                assert_eq!(
                    rekeys(&world, kind, Initiator::Client),
                    1,
                    "{kind:?} {way:?} {skip}"
                );
                assert!(world.ends_agree(), "{kind:?} {way:?} {skip} {times}");
            }
        }
    }
}
