//! Additional key exchanges (RFC 9370) in IKE_INTERMEDIATE (RFC 9242), in virtual time: on bad networks, and with gateways
//! that do it wrongly.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::time::Duration;

use peregrine_core::command::{Cause, Failure, Stage};
use peregrine_core::profile::{AuthKind, Profile};
use peregrine_core::wire::iana::{AuthMethod, ExchangeType, PayloadType};
use peregrine_tests::cast::{Cast, ike, packet};
use peregrine_tests::link::{Fate, Rule, Way};
use peregrine_tests::world::World;

const TWO: &str = "aes256gcm16-prfsha384-x25519-ke1_mlkem768-ke2_mlkem512";

/// A gateway and a profile that agree on this suite.
fn stage(cast: &Cast, method: AuthKind, suite: &str, seed: u64) -> (World, Profile) {
    let mut world = cast.world(method, seed);
    world.gateway.config.ike = ike(suite);
    let mut profile = cast.profile(method);
    profile.ike.proposals = ike(suite);
    (world, profile)
}

fn connect(world: &mut World, profile: Profile, cast: &Cast) {
    world
        .connect_and_wait(profile, cast.credentials())
        .unwrap_or_else(|failure| panic!("{failure:?}"));
    let before = world.received.len();
    let answered = (0..50).any(|_| {
        world.send(&packet("10.3.0.1", "10.9.9.9", 200));
        world.run_until(Duration::from_millis(200), |world| world.received.len() > before)
    });
    assert!(answered, "nothing comes back: {:?}", world.status().traffic);
}

fn fails(world: &mut World, profile: Profile, cast: &Cast) -> Failure {
    let failure = world.connect_and_wait(profile, cast.credentials()).unwrap_err();
    assert!(world.plans.iter().all(|plan| plan.tunnel.is_none()));
    failure
}

#[test]
fn one_exchange_for_each_and_then_authentication() {
    let cast = Cast::default();
    for method in [
        AuthKind::Psk,
        AuthKind::Certificate,
        AuthKind::EapTls,
        AuthKind::EapMsChapV2,
    ] {
        let (mut world, profile) = stage(&cast, method, TWO, 1);
        connect(&mut world, profile, &cast);
        let said: Vec<_> = world
            .gateway
            .transcript
            .iter()
            .take(3)
            .map(|(exchange, id, kinds)| (*exchange, *id, kinds[0]))
            .collect();
        assert_eq!(
            said,
            [
                (ExchangeType::IKE_INTERMEDIATE, 1, PayloadType::KE),
                (ExchangeType::IKE_INTERMEDIATE, 2, PayloadType::KE),
                (ExchangeType::IKE_AUTH, 3, PayloadType::ID_INITIATOR),
            ]
        );
        let status = world.status();
        assert_eq!(status.ike_sa.unwrap().suite, TWO);
        assert!(status.features.post_quantum);
        let mut stages: Vec<Stage> = world
            .statuses
            .iter()
            .filter_map(|(_, status)| status.stage)
            .collect();
        assert!(stages.is_sorted(), "{stages:?}");
        stages.dedup();
        assert!(stages.contains(&Stage::IkeIntermediate), "{stages:?}");
    }
}

#[test]
fn all_seven_places() {
    let cast = Cast::default();
    let suite = "aes256-sha512-prfsha512-x25519-ke1_ecp256-ke2_mlkem512-ke3_ecp384-ke4_mlkem768-ke5_modp2048-\
                 ke6_mlkem1024-ke7_ecp521";
    let (mut world, profile) = stage(&cast, AuthKind::Certificate, suite, 2);
    connect(&mut world, profile, &cast);
    let additional = world
        .gateway
        .transcript
        .iter()
        .filter(|(exchange, ..)| *exchange == ExchangeType::IKE_INTERMEDIATE);
    assert_eq!(additional.count(), 7);
    assert_eq!(world.status().ike_sa.unwrap().suite, suite);
}

#[test]
fn any_one_message_may_be_lost_repeated_or_late() {
    let cast = Cast::default();
    for (exchange, id) in [
        (ExchangeType::IKE_INTERMEDIATE, 1),
        (ExchangeType::IKE_INTERMEDIATE, 2),
        (ExchangeType::IKE_AUTH, 3),
    ] {
        for way in [Way::Up, Way::Down] {
            for times in [1, 3] {
                for fate in [Fate::Drop, Fate::Twice, Fate::Late(Duration::from_millis(700))] {
                    let (mut world, profile) = stage(&cast, AuthKind::Certificate, TWO, 4);
                    world.link.rules = vec![Rule {
                        message_id: Some(id),
                        times,
                        ..Rule::first(way, exchange, fate)
                    }];
                    connect(&mut world, profile, &cast);
                    assert_eq!(world.gateway.established(), 1, "{exchange} {id} {way:?} {fate:?}");
                }
            }
        }
    }
}

#[test]
fn bad_networks_end_connected() {
    let cast = Cast::default();
    for seed in 0..100 {
        let method = [AuthKind::Psk, AuthKind::Certificate, AuthKind::EapMsChapV2][seed as usize % 3];
        let (mut world, profile) = stage(&cast, method, TWO, seed);
        world.link.loss = seed % 20 * 10;
        world.link.repetition = seed % 7 * 40;
        world.link.jitter = Duration::from_millis(seed % 5 * 40);
        connect(&mut world, profile, &cast);
    }
}

/// Both sides prove the whole message, however it is divided, and however it is divided anew on its way.
#[test]
fn in_fragments_of_any_size() {
    let cast = Cast::default();
    for (ours, theirs) in [(1280, 1200), (576, 300), (1280, 200), (900, 65_000)] {
        let (mut world, mut profile) = stage(&cast, AuthKind::Certificate, TWO, 5);
        profile.ike.fragment_size = ours;
        world.gateway.config.fragment = Some(theirs);
        connect(&mut world, profile, &cast);
    }
    let (mut world, profile) = stage(&cast, AuthKind::Psk, TWO, 6);
    world.link.largest = Some(576);
    world.gateway.config.fragment = Some(500);
    connect(&mut world, profile, &cast);
    let (mut world, profile) = stage(&cast, AuthKind::Psk, TWO, 7);
    world.gateway.config.fragment = None;
    connect(&mut world, profile, &cast);
    assert!(!world.status().features.fragmentation);
}

#[test]
fn a_value_of_the_wrong_length_ends_the_attempt() {
    let cast = Cast::default();
    for len in [0, 1, 767, 1087] {
        let (mut world, profile) = stage(&cast, AuthKind::Psk, TWO, 8);
        world.gateway.config.cut_ciphertext = Some(len);
        let failure = fails(&mut world, profile, &cast);
        assert_eq!(failure.stage, Stage::IkeIntermediate);
        assert_eq!(failure.code(), "protocol_violation");
        let lengths = format!("{len} octets where its key exchange method wants 1088");
        assert!(failure.message().contains(&lengths), "{failure}");
        assert!(
            world.gateway.transcript.len() == 1,
            "nothing more was said: {:?}",
            world.gateway.transcript
        );
    }
}

#[test]
fn additional_key_exchanges_without_ike_intermediate_are_refused() {
    let cast = Cast::default();
    let (mut world, profile) = stage(&cast, AuthKind::Psk, TWO, 9);
    world.gateway.config.silent_intermediate = true;
    let failure = fails(&mut world, profile, &cast);
    assert_eq!(failure.stage, Stage::IkeSaInit);
    assert!(
        failure.message().contains("without IKE_INTERMEDIATE"),
        "{failure}"
    );
}

#[test]
fn a_gateway_must_prove_what_was_said() {
    let cast = Cast::default();
    for (method, auth) in [
        (AuthKind::Psk, AuthMethod::SHARED_KEY_MIC),
        (AuthKind::Certificate, AuthMethod::DIGITAL_SIGNATURE),
    ] {
        let (mut world, profile) = stage(&cast, method, TWO, 10);
        world.gateway.config.unproven_intermediate = true;
        let failure = fails(&mut world, profile, &cast);
        assert_eq!(failure.cause, Cause::GatewayAuthInvalid(auth));
    }
}

#[test]
fn a_gateway_that_falls_silent_is_given_up() {
    let cast = Cast::default();
    let (mut world, profile) = stage(&cast, AuthKind::Psk, TWO, 11);
    world.link.rules = vec![Rule {
        times: 1000,
        ..Rule::first(Way::Up, ExchangeType::IKE_INTERMEDIATE, Fate::Drop)
    }];
    let failure = fails(&mut world, profile, &cast);
    assert_eq!(
        (failure.stage, failure.cause),
        (Stage::IkeIntermediate, Cause::WentSilent)
    );
}

#[test]
fn a_profile_can_insist() {
    let cast = Cast::default();
    let insist = |mut profile: Profile| {
        profile
            .ike
            .proposals
            .retain(|proposal| proposal.is_post_quantum());
        profile.ike.require_pq = true;
        profile
    };
    // Against a gateway that knows nothing of it, and one that may choose none.
    let mut world = cast.world(AuthKind::Psk, 12);
    let failure = fails(&mut world, insist(cast.profile(AuthKind::Psk)), &cast);
    assert_eq!(
        (failure.stage, failure.cause),
        (Stage::IkeSaInit, Cause::NoPostQuantum)
    );
    let optional = "aes256gcm16-prfsha384-x25519-ke1_none-ke1_mlkem768";
    let (mut world, profile) = stage(&cast, AuthKind::Psk, optional, 13);
    world.gateway.config.ike = ike("aes256gcm16-prfsha384-x25519-ke1_none");
    let failure = fails(&mut world, insist(profile), &cast);
    assert_eq!(
        (failure.stage, failure.cause),
        (Stage::IkeSaInit, Cause::NoPostQuantum)
    );
    let (mut world, profile) = stage(&cast, AuthKind::Psk, TWO, 14);
    connect(&mut world, insist(profile), &cast);
}
