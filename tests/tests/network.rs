//! The virtual world's networks, as far as they do not depend on what the client makes of them.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::net::IpAddr;
use std::time::Duration;

use peregrine_core::profile::AuthKind;
use peregrine_tests::cast::{Cast, packet};
use peregrine_tests::link::Interface;
use peregrine_tests::world::World;

const SECOND: Duration = Duration::from_secs(1);

fn connected(nat: Option<&str>) -> World {
    let cast = Cast::default();
    let mut world = cast.world(AuthKind::Psk, 1);
    world.link.nat = nat.map(|nat| nat.parse::<IpAddr>().unwrap());
    world
        .connect_and_wait(cast.profile(AuthKind::Psk), cast.credentials())
        .unwrap();
    world
}

fn gateway_sends(world: &mut World) {
    world.gateway_does(|gateway, _| gateway.send(&packet("10.9.9.9", "10.3.0.1", 100)));
}

#[test]
fn both_ends_have_the_same_sas() {
    let mut world = connected(None);
    assert!(world.ends_agree());
    assert_eq!(world.gateway.sa_set().len(), 1);
    world.gateway.restart();
    assert!(!world.ends_agree());
}

#[test]
fn nothing_gets_through_a_black_hole() {
    let mut world = connected(None);
    world.send(&packet("10.3.0.1", "10.9.9.9", 100));
    world.black_hole("eth0");
    world.send(&packet("10.3.0.1", "10.9.9.9", 100));
    gateway_sends(&mut world);
    world.run(SECOND);
    assert_eq!(world.gateway.received.len(), 1, "what had left is not lost");
    assert!(world.received.is_empty(), "what was on its way back is");
    world.link.interfaces[0].is_dead = false;
    gateway_sends(&mut world);
    world.run(SECOND);
    assert_eq!(world.received.len(), 1);
}

#[test]
fn what_comes_while_the_machine_sleeps_is_lost() {
    let mut world = connected(None);
    gateway_sends(&mut world);
    let begun = world.now;
    world.sleep(SECOND);
    assert_eq!(world.now.since(begun), SECOND);
    world.run(SECOND);
    assert!(world.received.is_empty());
    gateway_sends(&mut world);
    world.run(SECOND);
    assert_eq!(world.received.len(), 1);
    // The gateway does not sleep.
    world.gateway_does(|gateway, now| gateway.ask_liveness(now));
    world.sleep(Duration::from_secs(7 * 86_400));
    assert_eq!(world.gateway.sas(), 0, "it has given up");
}

#[test]
fn a_nat_that_forgets_lets_nothing_in_before_something_goes_out() {
    let mut world = connected(Some("198.51.100.7"));
    let before = world.gateway.paths()[0].remote;
    gateway_sends(&mut world);
    world.run(SECOND);
    assert_eq!(world.received.len(), 1);
    world.rebind_nat();
    gateway_sends(&mut world);
    world.run(SECOND);
    assert_eq!(world.received.len(), 1);
    world.send(&packet("10.3.0.1", "10.9.9.9", 100));
    world.run(SECOND);
    assert_eq!(
        world.gateway.received.len(),
        1,
        "the gateway takes it from anywhere"
    );
    let path = world.link.up(world.sent.last().unwrap().1, world.now).unwrap();
    assert_ne!(path.remote, before);
}

#[test]
fn sockets_are_bound_where_the_machine_is() {
    let mut world = connected(None);
    let gateway: IpAddr = "192.0.2.1".parse().unwrap();
    let at = |world: &World| {
        let route = world.link.route(gateway);
        route.map(|(local, interface)| (local.ip().to_string(), interface.name.clone()))
    };
    let wifi = Interface::new("wlan0", &["10.7.0.2"]).behind("198.51.100.9");
    world.join(wifi.clone());
    assert_eq!(at(&world), Some(("10.7.0.2".into(), "wlan0".into())));
    world.leave("wlan0");
    assert_eq!(at(&world), Some(("10.0.0.2".into(), "eth0".into())));
    world.move_to(wifi);
    assert_eq!(at(&world), Some(("10.7.0.2".into(), "wlan0".into())));
    world.go_offline();
    assert_eq!(at(&world), None);
}
