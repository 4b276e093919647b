//! A tunnel that is up, in virtual time: liveness, the gateway's requests, and the end.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::net::IpAddr;
use std::time::Duration;

use peregrine_core::command::{Cause, State, Why};
use peregrine_core::profile::AuthKind;
use peregrine_core::wire::iana::ExchangeType;
use peregrine_tests::cast::{Cast, packet};
use peregrine_tests::link::{Fate, Rule, Way};
use peregrine_tests::world::World;

fn connected(cast: &Cast, seed: u64) -> World {
    let mut world = cast.world(AuthKind::Psk, seed);
    world
        .connect_and_wait(cast.profile(AuthKind::Psk), cast.credentials())
        .unwrap();
    world
}

fn informational(world: &World) -> usize {
    let kinds = world.gateway.transcript.iter();
    kinds
        .filter(|(exchange, ..)| *exchange == ExchangeType::INFORMATIONAL)
        .count()
}

#[test]
fn silence_is_asked_about_and_traffic_is_not() {
    let cast = Cast::default();
    let mut world = connected(&cast, 1);
    for _ in 0..50 {
        world.run(Duration::from_secs(2));
        world.send(&packet("10.3.0.1", "10.9.9.9", 100));
    }
    world.run(Duration::from_secs(1));
    assert_eq!(informational(&world), 0, "traffic shows that the gateway lives");
    world.run(Duration::from_secs(300));
    assert!(
        (2..=3).contains(&informational(&world)),
        "{} in 300 s",
        informational(&world)
    );
    assert_eq!(world.status().state, State::Connected);
}

#[test]
fn a_dead_gateway_is_noticed_soon_when_somebody_waits_and_the_machine_stays_as_it_is() {
    let cast = Cast::default();
    let mut world = connected(&cast, 2);
    world.gateway.silent = true;
    let begun = world.now;
    world.send(&packet("10.3.0.1", "10.9.9.9", 100));
    let gone = |world: &World| world.status().state == State::Reconnecting;
    assert!(world.run_until(Duration::from_secs(90), gone));
    let took = world.now.since(begun).as_secs_f64();
    assert!(
        (17.0..19.0).contains(&took),
        "{took} s: 10 of silence, 8 of doubt"
    );
    assert_eq!(world.status().why, Some(Why::PeerDead));
    let given_up = |world: &World| world.failure().is_some_and(|it| it.cause == Cause::PeerDead);
    assert!(world.run_until(Duration::from_secs(90), given_up));
    let took = world.now.since(begun).as_secs_f64();
    assert!(
        (39.0..42.0).contains(&took),
        "{took} s: 10 of silence, 30 without an answer"
    );
    world.run(Duration::from_secs(300));
    assert_eq!(world.status().state, State::Reconnecting);
    assert_eq!(world.plans.len(), 1, "nothing leaves beside the tunnel");
    // In an idle tunnel it takes longer, for nobody waits.
    let mut world = connected(&cast, 2);
    world.gateway.silent = true;
    world.run(Duration::from_secs(110));
    assert_eq!(world.status().state, State::Connected);
    assert!(world.run_until(Duration::from_secs(30), gone));
}

#[test]
fn a_lost_question_or_answer_is_no_death() {
    let cast = Cast::default();
    for way in [Way::Up, Way::Down] {
        let mut world = connected(&cast, 3);
        world.link.rules = vec![Rule {
            times: 4,
            ..Rule::first(way, ExchangeType::INFORMATIONAL, Fate::Drop)
        }];
        world.run(Duration::from_secs(120));
        assert_eq!(world.status().state, State::Connected, "{way:?}");
    }
}

#[test]
fn a_nat_mapping_is_kept_and_only_where_there_is_one() {
    let cast = Cast::default();
    for nat in [None, Some("198.51.100.7".parse::<IpAddr>().unwrap())] {
        let mut world = cast.world(AuthKind::Psk, 4);
        world.gateway.config.mobike = false;
        world.link.nat = nat;
        world
            .connect_and_wait(cast.profile(AuthKind::Psk), cast.credentials())
            .unwrap();
        assert_eq!(
            world.status().path.unwrap().nat,
            if nat.is_some() { "local" } else { "none" }
        );
        world.run(Duration::from_secs(100));
        let keepalives = world
            .sent
            .iter()
            .filter(|(_, _, datagram)| *datagram == [0xff])
            .count();
        assert_eq!(keepalives > 2, nat.is_some(), "{keepalives}");
        let longest = world
            .sent
            .windows(2)
            .map(|pair| pair[1].0.since(pair[0].0))
            .max()
            .unwrap();
        assert!(
            nat.is_none() || longest <= Duration::from_millis(20_100),
            "{longest:?}"
        );
    }
}

#[test]
fn the_gateways_questions_are_answered_once_each_whatever_the_network_does() {
    let cast = Cast::default();
    for fate in [Fate::Drop, Fate::Twice, Fate::Late(Duration::from_millis(1500))] {
        for way in [Way::Up, Way::Down] {
            let mut world = connected(&cast, 5);
            world.link.rules = vec![Rule::first(way, ExchangeType::INFORMATIONAL, fate)];
            for round in 1..=5 {
                world.gateway_does(|gateway, now| gateway.ask_liveness(now));
                world.run(Duration::from_secs(4));
                assert_eq!(world.gateway.answers().len(), round, "{fate:?} {way:?}");
            }
            assert_eq!(world.status().state, State::Connected);
        }
    }
}

#[test]
fn our_delete_is_sent_again_when_lost_and_waited_for_briefly() {
    let cast = Cast::default();
    let mut world = connected(&cast, 9);
    world.link.rules = vec![Rule::first(Way::Up, ExchangeType::INFORMATIONAL, Fate::Drop)];
    world.disconnect();
    assert!(
        world.run_until(Duration::from_secs(2), |world| world.status().state
            == State::Idle)
    );
    assert_eq!(world.gateway.sas(), 0);

    let mut world = connected(&cast, 9);
    world.gateway.silent = true;
    let begun = world.now;
    world.disconnect();
    assert!(
        world.plans.last().unwrap().tunnel.is_none(),
        "the machine is put back at once"
    );
    assert!(
        world.run_until(Duration::from_secs(5), |world| world.status().state
            == State::Idle)
    );
    assert!(world.now.since(begun) <= Duration::from_millis(2100));
    assert_eq!(world.failure(), None, "the user wanted it");
}

#[test]
fn a_delete_waits_for_the_question_before_it() {
    let cast = Cast::default();
    let mut world = connected(&cast, 10);
    // The liveness question is on its way, and its answer is late.
    world.link.rules = vec![Rule::first(
        Way::Down,
        ExchangeType::INFORMATIONAL,
        Fate::Late(Duration::from_millis(300)),
    )];
    world.run_until(Duration::from_secs(60), |world| informational(world) == 1);
    world.disconnect();
    assert!(
        world.run_until(Duration::from_secs(2), |world| world.status().state
            == State::Idle)
    );
    assert_eq!(
        world.gateway.sas(),
        0,
        "the window of one was kept, and both messages arrived"
    );
}

#[test]
fn nothing_from_outside_the_sa_changes_anything() {
    let cast = Cast::default();
    let mut world = connected(&cast, 11);
    let (_, path, genuine) = world.sent.last().cloned().unwrap();
    let status = format!("{:?}", world.status());
    let mut forged: Vec<Vec<u8>> = vec![
        vec![],
        vec![0xff],
        vec![0; 4],
        vec![0; 32],
        vec![0xa5; 60],
        genuine.clone(),
    ];
    for position in 0..genuine.len() {
        let mut bent = genuine.clone();
        bent[position] ^= 0x20;
        forged.push(bent);
        forged.push(genuine[..position].to_vec());
    }
    // Our own message, reflected as if it were the gateway's.
    let mut reflected = genuine;
    reflected[4 + 19] ^= 0x28;
    forged.push(reflected);
    for mut datagram in forged {
        let sent = world.sent.len();
        assert!(
            world
                .client
                .handle_datagram(path, &mut datagram, world.now)
                .is_none()
        );
        assert!(
            world.client.poll_transmit().is_none(),
            "{datagram:02x?} was answered"
        );
        assert_eq!(world.sent.len(), sent);
    }
    world.send(&packet("10.3.0.1", "10.9.9.9", 100));
    assert!(world.run_until(Duration::from_secs(1), |world| world.received.len() == 1));
    let now = world.status();
    assert_eq!((now.state, now.child_sas.len()), (State::Connected, 1));
    assert!(status.contains("Connected"));
}

#[test]
fn a_new_connection_takes_the_old_one_down_first() {
    let cast = Cast::default();
    let mut world = connected(&cast, 12);
    world.connect(cast.profile(AuthKind::Psk), cast.credentials());
    assert!(
        world.run_until(Duration::from_secs(5), |world| world.status().state
            == State::Connected)
    );
    world.run(Duration::from_secs(1));
    assert_eq!((world.gateway.sas(), world.gateway.established()), (1, 1));
    let tunnels: Vec<bool> = world.plans.iter().map(|plan| plan.tunnel.is_some()).collect();
    assert_eq!(tunnels, [true, false, true]);
}

#[test]
fn a_request_that_overtakes_the_last_answer_is_served_when_it_comes_again() {
    let cast = Cast::default();
    let mut world = cast.world(AuthKind::Psk, 13);
    let late = Fate::Late(Duration::from_millis(1500));
    world.link.rules = vec![Rule {
        times: 3,
        ..Rule::first(Way::Down, ExchangeType::IKE_AUTH, late)
    }];
    world.connect(cast.profile(AuthKind::Psk), cast.credentials());
    assert!(world.run_until(Duration::from_secs(1), |world| world.gateway.established() == 1));
    world.gateway_does(|gateway, now| gateway.ask_liveness(now));
    assert!(
        world.run_until(Duration::from_secs(5), |world| world.status().state
            == State::Connected)
    );
    world.run(Duration::from_secs(5));
    assert_eq!(
        world.gateway.answers().len(),
        1,
        "the gateway's question stays unanswered for good"
    );
}

#[test]
fn replayed_messages_are_no_sign_of_life() {
    let cast = Cast::default();
    let mut world = connected(&cast, 14);
    let recorded = std::cell::RefCell::new(Vec::new());
    world.gateway_does(|gateway, now| {
        let question = gateway.ask_liveness(now);
        recorded.borrow_mut().extend(question.clone());
        question
    });
    world.run(Duration::from_secs(2));
    world.gateway.silent = true;
    world.send(&packet("10.3.0.1", "10.9.9.9", 100));
    // Somebody in the path keeps sending the gateway's last question.
    for _ in 0..30 {
        world.run(Duration::from_secs(3));
        for (path, datagram) in recorded.borrow().iter() {
            let path = world.link.seen_by_client(*path);
            let _ = world
                .client
                .handle_datagram(path, &mut datagram.clone(), world.now);
            while world.client.poll_transmit().is_some() {}
        }
    }
    let status = world.status();
    assert_eq!(
        (status.state, status.why),
        (State::Reconnecting, Some(Why::PeerDead))
    );
}

#[test]
fn sleep_in_the_middle_of_a_question_is_no_death() {
    let cast = Cast::default();
    let mut world = connected(&cast, 15);
    world.link.rules = vec![Rule::first(Way::Down, ExchangeType::INFORMATIONAL, Fate::Drop)];
    assert!(world.run_until(Duration::from_secs(130), |world| informational(world) == 1));
    world.now = world.now + Duration::from_secs(1800);
    world.run(Duration::from_secs(5));
    assert_eq!(world.status().state, State::Connected);
    world.send(&packet("10.3.0.1", "10.9.9.9", 100));
    assert!(world.run_until(Duration::from_secs(1), |world| world.received.len() == 1));
}
