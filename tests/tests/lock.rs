//! What the kill switch lets out, and when, in virtual time: the world has a firewall that is as the client plans it, and a
//! question that it does not let out fails the test.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::collections::BTreeSet;
use std::time::Duration;

use peregrine_core::command::{Cause, Command, Endpoint, HostFault, State};
use peregrine_core::plan::{Closed, Lock, Plan};
use peregrine_core::profile::{AuthKind, Host, Profile, Revocation};
use peregrine_tests::authority::{OCSP_URL, Word};
use peregrine_tests::cast::{Cast, GATEWAY, PSK, packet};
use peregrine_tests::gateway::{ClientAuth, Gateway, GatewayConfig, Unique};
use peregrine_tests::link::Interface;
use peregrine_tests::world::World;

const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

fn wifi() -> Interface {
    Interface::new("wifi", &["10.11.0.2"]).behind("198.51.100.11")
}

fn lte() -> Interface {
    Interface::new("lte", &["10.12.0.2"]).behind("198.51.100.12")
}

/// A world whose plans take a while, and a profile with the kill switch on whose gateway has a name.
fn world(
    cast: &Cast,
    method: AuthKind,
    set: impl FnOnce(&mut GatewayConfig, &mut Profile),
) -> (World, Profile) {
    let (mut config, mut profile) = (cast.gateway(method), cast.profile(method));
    config.unique = Unique::Replace;
    profile.gateway.host = Host::Name("vpn.example.org".into());
    profile.network.kill_switch = true;
    set(&mut config, &mut profile);
    let mut world = World::new(Gateway::new(config, 0x47), 5);
    world.plan_takes = 20 * MS;
    world.link.interfaces = vec![wifi()];
    world
        .names
        .insert("vpn.example.org".into(), vec!["192.0.2.1".parse().unwrap()]);
    (world, profile)
}

fn connected(set: impl FnOnce(&mut GatewayConfig, &mut Profile)) -> World {
    let cast = Cast::default();
    let (mut world, profile) = world(&cast, AuthKind::Psk, set);
    world.connect_and_wait(profile, cast.credentials()).unwrap();
    world
}

fn closed(plan: &Plan) -> &Closed {
    match &plan.lock {
        Lock::Closed(closed) => closed,
        Lock::Open => panic!("open: {plan:?}"),
    }
}

fn udp(text: &str) -> Endpoint {
    Endpoint::udp(text.parse().unwrap())
}

#[track_caller]
fn goes_through(world: &mut World) {
    let before = world.received.len();
    let begun = world.now;
    while world.received.len() == before {
        assert!(world.now.since(begun) < 5 * SECOND, "{:?}", world.status());
        world.send(&packet("10.3.0.1", "10.9.9.9", 100));
        world.run_until(50 * MS, |world| world.received.len() > before);
    }
}

#[test]
fn locked_from_the_first_moment_until_the_user_ends_it() {
    let mut world = connected(|_, profile| profile.network.allow_lan = true);
    let first = &world.plans[0];
    assert_eq!(first.tunnel, None);
    assert!(closed(first).names && closed(first).gateways.is_empty());
    goes_through(&mut world);
    let last = world.plans.last().unwrap();
    assert!(last.tunnel.is_some());
    let gateways = BTreeSet::from([udp("192.0.2.1:500"), udp("192.0.2.1:4500")]);
    assert_eq!(
        *closed(last),
        Closed {
            gateways,
            lan: true,
            ..Closed::default()
        }
    );
    assert!(
        world.sent.iter().all(|(at, ..)| *at > world.statuses[0].0),
        "something was sent at once"
    );
    let locked = world.plans.len();
    assert!(world.plans.iter().all(|plan| plan.lock != Lock::Open));

    world.disconnect();
    world.run(5 * SECOND);
    assert_eq!(world.status().state, State::Idle);
    assert_eq!(world.plans[locked..], [Plan::default()]);
    assert!(world.refused.is_empty(), "{:?}", world.refused);
    assert_eq!(world.gateway.established(), 0, "the gateway was told");
}

#[test]
fn a_port_of_its_own_is_the_only_one() {
    let world = connected(|_, profile| profile.gateway.port = 4501);
    let gateways = &closed(world.plans.last().unwrap()).gateways;
    assert_eq!(*gateways, BTreeSet::from([udp("192.0.2.1:4501")]));
}

#[test]
fn networks_change_and_nothing_of_ours_is_refused() {
    let mut world = connected(|config, _| {
        config.addresses = vec!["192.0.2.1".parse().unwrap(), "192.0.2.3".parse().unwrap()];
    });
    for round in 0..10 {
        if round == 5 {
            // The name now leads elsewhere too: that is let out as well, before anything is sent there.
            let both = ["192.0.2.3", "192.0.2.1"].map(|text| text.parse().unwrap());
            world.names.insert("vpn.example.org".into(), both.into());
        }
        world.move_to(if round % 2 == 0 { lte() } else { wifi() });
        goes_through(&mut world);
        world.run(5 * SECOND);
        let lock = closed(world.plans.last().unwrap());
        assert!(!lock.names, "names may be asked for although nobody does");
        assert!(world.refused.is_empty(), "{:?}", world.refused);
    }
    assert!(world.plans.iter().all(|plan| plan.lock != Lock::Open));
    assert!(
        closed(world.plans.last().unwrap())
            .gateways
            .contains(&udp("192.0.2.3:4500"))
    );
}

#[test]
fn a_gateway_that_is_silent_is_waited_for_behind_the_lock() {
    let mut world = connected(|_, _| {});
    world.black_hole("wifi");
    world.run(600 * SECOND);
    assert_eq!(world.status().state, State::Reconnecting);
    let tries = world.sent.len();
    world.run(600 * SECOND);
    assert!(world.sent.len() > tries, "it is tried again");
    assert!(world.plans.iter().all(|plan| plan.lock != Lock::Open));
    world.move_to(lte());
    world.run(120 * SECOND);
    goes_through(&mut world);
    assert!(world.refused.is_empty(), "{:?}", world.refused);
}

#[test]
fn tcp_is_let_out_where_it_is_needed() {
    let cast = Cast::default();
    let (mut world, profile) = world(&cast, AuthKind::Psk, |_, _| {});
    world.link.interfaces = vec![wifi().without_udp()];
    world.connect_and_wait(profile, cast.credentials()).unwrap();
    goes_through(&mut world);
    let gateways = &closed(world.plans.last().unwrap()).gateways;
    assert!(gateways.contains(&Endpoint::tcp("192.0.2.1:4500".parse().unwrap())));
    assert!(world.refused.is_empty(), "{:?}", world.refused);
}

#[test]
fn a_revocation_list_is_fetched_and_no_longer() {
    let mut cast = Cast::default();
    cast.gateway = cast.server(GATEWAY, 77, &[OCSP_URL]);
    let (mut world, mut profile) = world(&cast, AuthKind::Certificate, |_, _| {});
    profile.gateway.revocation = Revocation::Strict;
    let word = cast.ocsp(&cast.gateway.certificate(), Word::Good);
    world.pages.insert(OCSP_URL.to_owned(), (30 * MS, Ok(word)));
    world.connect_and_wait(profile, cast.credentials()).unwrap();
    let fetches = |plan: &Plan| closed(plan).fetches.clone();
    assert!(
        world
            .plans
            .iter()
            .any(|plan| fetches(plan) == BTreeSet::from([80]) && closed(plan).names)
    );
    let last = world.plans.last().unwrap();
    assert!(fetches(last).is_empty() && !closed(last).names, "{last:?}");
}

/// Nothing was ever protected, but whoever asked for the lock has it until he says otherwise.
#[test]
fn a_failure_leaves_the_machine_locked_and_lets_nothing_out() {
    let cast = Cast::default();
    let (mut world, profile) = world(&cast, AuthKind::Psk, |config, _| {
        config.client = ClientAuth::Psk(b"quite another pre-shared key".to_vec());
    });
    let failure = world
        .connect_and_wait(profile.clone(), cast.credentials())
        .unwrap_err();
    assert_eq!(failure.cause, Cause::AuthenticationFailed);
    world.run(10 * SECOND);
    let status = world.status();
    assert_eq!((status.state, status.failure), (State::Blocked, Some(failure)));
    assert_eq!(world.lock, Lock::Closed(Closed::default()));

    // The next attempt begins behind the lock.
    let before = world.plans.len();
    world.gateway.config.client = ClientAuth::Psk(PSK.to_vec());
    world.connect_and_wait(profile, cast.credentials()).unwrap();
    assert_eq!(world.status().state, State::Connected);
    assert!(world.plans[before..].iter().all(|plan| plan.lock != Lock::Open));
    world.disconnect();
    world.run(5 * SECOND);
    assert_eq!((world.status().state, &world.lock), (State::Idle, &Lock::Open));
}

#[test]
fn only_the_users_wish_opens_what_is_blocked() {
    let cast = Cast::default();
    let (mut world, profile) = world(&cast, AuthKind::Psk, |config, _| {
        config.client = ClientAuth::Psk(b"quite another pre-shared key".to_vec());
    });
    world.connect_and_wait(profile, cast.credentials()).unwrap_err();
    world.run(3600 * SECOND);
    assert_eq!(world.status().state, State::Blocked);
    assert!(world.plans.iter().all(|plan| plan.lock != Lock::Open));
    world.disconnect();
    world.run(SECOND);
    assert_eq!(world.status().state, State::Idle);
    assert_eq!(world.plans.last(), Some(&Plan::default()));
}

#[test]
fn from_one_locked_profile_to_the_next_there_is_no_gap() {
    let cast = Cast::default();
    let (mut world, profile) = world(&cast, AuthKind::Psk, |_, _| {});
    world
        .connect_and_wait(profile.clone(), cast.credentials())
        .unwrap();
    let other = Profile {
        name: "Home".into(),
        ..profile.clone()
    };
    world.connect(other, cast.credentials());
    world.run(10 * SECOND);
    assert_eq!(world.status().profile.as_deref(), Some("Home"));
    goes_through(&mut world);
    assert!(world.plans.iter().all(|plan| plan.lock != Lock::Open));
    assert!(world.refused.is_empty(), "{:?}", world.refused);

    // One without a kill switch opens the machine: that is what it says.
    let mut without = profile;
    without.network.kill_switch = false;
    world.connect(without, cast.credentials());
    world.run(10 * SECOND);
    goes_through(&mut world);
    assert_eq!(world.lock, Lock::Open);
}

/// As the service ends: nobody has said that traffic may go beside the tunnel.
#[test]
fn a_program_that_ends_leaves_the_machine_locked() {
    let mut world = connected(|_, _| {});
    world.command(Command::Rest);
    world.run(5 * SECOND);
    let status = world.status();
    assert_eq!((status.state, status.failure), (State::Blocked, None));
    assert_eq!(world.lock, Lock::Closed(Closed::default()));
    assert_eq!(world.plans.last().unwrap().tunnel, None);
    assert_eq!(world.gateway.established(), 0, "the gateway was told");
    assert!(world.plans.iter().all(|plan| plan.lock != Lock::Open));
    assert!(world.refused.is_empty(), "{:?}", world.refused);
    world.disconnect();
    world.run(SECOND);
    assert_eq!((world.status().state, &world.lock), (State::Idle, &Lock::Open));
    // Without a lock there is nothing to leave.
    let mut world = connected(|_, profile| profile.network.kill_switch = false);
    world.command(Command::Rest);
    world.run(5 * SECOND);
    assert_eq!(
        (world.status().state, world.plans.last()),
        (State::Idle, Some(&Plan::default()))
    );
}

#[test]
fn a_machine_that_was_locked_before_is_never_open_meanwhile() {
    let cast = Cast::default();
    let (mut world, profile) = world(&cast, AuthKind::Psk, |_, _| {});
    world.lock = Lock::Closed(Closed::default());
    world.client.begin_locked(&world.lock);
    world.run(60 * SECOND);
    assert_eq!(world.status().state, State::Blocked);
    assert!(world.plans.is_empty());
    world.connect_and_wait(profile, cast.credentials()).ok();
    world.run_until(30 * SECOND, |world| world.status().state == State::Connected);
    goes_through(&mut world);
    assert!(world.plans.iter().all(|plan| plan.lock != Lock::Open));
    assert!(world.refused.is_empty(), "{:?}", world.refused);
}

/// A wish that another one takes the place of before it was begun leaves no lock behind.
#[test]
fn a_wish_that_is_taken_back_at_once_leaves_nothing() {
    let cast = Cast::default();
    let (mut world, profile) = world(&cast, AuthKind::Psk, |_, _| {});
    world
        .connect_and_wait(profile.clone(), cast.credentials())
        .unwrap();
    for _ in 0..3 {
        world.connect(profile.clone(), cast.credentials());
        world.disconnect();
        world.run(10 * SECOND);
        assert_eq!(world.status().state, State::Idle);
        assert_eq!(
            (world.plans.last(), &world.lock),
            (Some(&Plan::default()), &Lock::Open)
        );
    }
}

/// Whatever fails while the machine is locked, it is not opened for that.
#[test]
fn a_lock_that_cannot_be_changed_stays() {
    let fault = || HostFault {
        action: "change the firewall".into(),
        reason: "no memory".into(),
        permission: false,
    };
    // The hole for the gateway's name, on another network.
    let mut world = connected(|_, _| {});
    world.lock_fault = Some(fault());
    world.move_to(lte());
    world.run(60 * SECOND);
    assert_eq!(world.status().state, State::Blocked);
    assert!(world.plans.iter().all(|plan| plan.lock != Lock::Open));
    world.command(Command::Rest);
    world.run(5 * SECOND);
    assert!(world.plans.iter().all(|plan| plan.lock != Lock::Open));
    world.disconnect();
    world.run(5 * SECOND);
    assert_eq!((world.status().state, &world.lock), (State::Idle, &Lock::Open));

    // The first hole of a machine that is locked from the begin.
    let cast = Cast::default();
    let (mut world, profile) = self::world(&cast, AuthKind::Psk, |_, _| {});
    world.lock = Lock::Closed(Closed::default());
    world.client.begin_locked(&world.lock);
    world.lock_fault = Some(fault());
    world.connect(profile.clone(), cast.credentials());
    world.run(10 * SECOND);
    assert_eq!(world.status().state, State::Blocked);
    assert!(world.plans.iter().all(|plan| plan.lock != Lock::Open));
    // And the next try is not held up by that.
    world.connect(profile, cast.credentials());
    world.run(10 * SECOND);
    goes_through(&mut world);
    assert!(world.plans.iter().all(|plan| plan.lock != Lock::Open));
}

#[test]
fn a_machine_that_cannot_be_locked_does_not_connect() {
    let cast = Cast::default();
    let (mut world, profile) = world(&cast, AuthKind::Psk, |_, _| {});
    let fault = HostFault {
        action: "lock".into(),
        reason: "no firewall".into(),
        permission: false,
    };
    world.lock_fault = Some(fault.clone());
    let failure = world.connect_and_wait(profile, cast.credentials()).unwrap_err();
    assert_eq!(failure.cause, Cause::Host(fault));
    assert!(world.sent.is_empty());
}

#[test]
fn a_tunnel_that_cannot_be_put_leaves_the_machine_locked() {
    let cast = Cast::default();
    let (mut world, profile) = world(&cast, AuthKind::Psk, |_, _| {});
    world.apply_fault = Some(HostFault {
        action: "make a tunnel device".into(),
        reason: "no such file or directory".into(),
        permission: false,
    });
    world.connect_and_wait(profile, cast.credentials()).unwrap_err();
    world.run(5 * SECOND);
    assert_eq!(world.status().state, State::Blocked);
    assert_eq!(world.lock, Lock::Closed(Closed::default()));
}
