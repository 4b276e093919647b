//! Gateways that say no, or that lie, in virtual time: each has its named failure, and nobody's secret leaves early.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::time::Duration;

use peregrine_core::command::{Cause, Failure, HostFault, Side, Stage, State};
use peregrine_core::crypto::Secret;
use peregrine_core::eap::EapError;
use peregrine_core::pki::CertError;
use peregrine_core::profile::{AuthKind, Identity};
use peregrine_core::wire::TrafficSelector;
use peregrine_core::wire::iana::{AuthMethod, EapType, ExchangeType, KeMethod, NotifyType, PayloadType};
use peregrine_tests::cast::{Cast, PSK, esp, ike};
use peregrine_tests::gateway::{ClientAuth, Proof};
use peregrine_tests::world::World;

fn fails(world: &mut World, cast: &Cast, method: AuthKind) -> Failure {
    let failure = world
        .connect_and_wait(cast.profile(method), cast.credentials())
        .unwrap_err();
    assert_eq!(world.status().state, State::Idle);
    assert!(
        world.plans.iter().all(|plan| plan.tunnel.is_none()),
        "the machine was changed"
    );
    failure
}

#[test]
fn a_cookie_is_brought_back() {
    let cast = Cast::default();
    let mut world = cast.world(AuthKind::Psk, 1);
    world.gateway.config.cookie = true;
    world
        .connect_and_wait(cast.profile(AuthKind::Psk), cast.credentials())
        .unwrap();
    // The same request again, with the cookie before everything else.
    let [first, second] = [&world.sent[0].2, &world.sent[1].2];
    assert_eq!(first[..8], second[..8], "the SPI stays");
    assert_eq!(
        (first[16], second[16]),
        (PayloadType::SA.0, PayloadType::NOTIFY.0)
    );
    assert_eq!(&second[28 + 28..], &first[28..], "the rest stays to the octet");
}

#[test]
fn another_key_exchange_method_is_used_when_offered() {
    let cast = Cast::default();
    for (method, cookie) in [
        (KeMethod::ECP_256, false),
        (KeMethod::MODP_2048, true),
        (KeMethod::ECP_384, true),
    ] {
        let mut world = cast.world(AuthKind::Psk, 2);
        let name = format!(
            "aes256gcm16-prfsha256-{}",
            match method {
                KeMethod::ECP_256 => "ecp256",
                KeMethod::ECP_384 => "ecp384",
                _ => "modp2048",
            }
        );
        world.gateway.config.ike = ike(&name);
        world.gateway.config.cookie = cookie;
        world
            .connect_and_wait(cast.profile(AuthKind::Psk), cast.credentials())
            .unwrap();
        assert_eq!(world.status().ike_sa.unwrap().suite, name);
    }
}

#[test]
fn a_key_exchange_method_that_we_did_not_offer_is_refused() {
    let cast = Cast::default();
    for method in [KeMethod::MODP_1024, KeMethod(1), KeMethod(0), KeMethod(65_535)] {
        let mut world = cast.world(AuthKind::Psk, 3);
        world.gateway.config.insist_on = Some(method);
        let failure = fails(&mut world, &cast, AuthKind::Psk);
        assert_eq!(failure.cause, Cause::KeyExchangeNotOffered(method.0));
        assert!(
            world
                .sent
                .iter()
                .all(|(_, _, datagram)| datagram[18] == ExchangeType::IKE_SA_INIT.0)
        );
    }
}

#[test]
fn a_refusal_in_clear_stands_only_after_three_seconds_without_a_better_answer() {
    let cast = Cast::default();
    for (error, cause) in [
        (NotifyType::NO_PROPOSAL_CHOSEN, Cause::NoIkeProposal),
        (NotifyType::INVALID_MAJOR_VERSION, Cause::Ikev1Only),
        (
            NotifyType::INVALID_SYNTAX,
            Cause::Refused(NotifyType::INVALID_SYNTAX),
        ),
        (
            NotifyType::AUTHENTICATION_FAILED,
            Cause::Refused(NotifyType::AUTHENTICATION_FAILED),
        ),
    ] {
        let mut world = cast.world(AuthKind::Psk, 4);
        world.gateway.config.refuse_init = Some(error);
        let begun = world.now;
        world.connect(cast.profile(AuthKind::Psk), cast.credentials());
        // The refusal came after 20 ms. Whoever could forge it must not have stopped us:
        world.run(Duration::from_secs(1));
        assert_eq!(world.status().state, State::Connecting);
        let mut spared = cast.world(AuthKind::Psk, 4);
        std::mem::swap(&mut spared, &mut world);
        assert!(
            spared.run_until(Duration::from_secs(10), |world| world.status().state
                == State::Idle)
        );
        assert_eq!(
            spared.failure(),
            Some(Failure {
                stage: Stage::IkeSaInit,
                cause
            })
        );
        let took = spared.now.since(begun).as_secs_f64();
        assert!((3.0..4.0).contains(&took), "{took} s");
    }
}

#[test]
fn a_forged_refusal_does_not_stop_the_attempt() {
    let cast = Cast::default();
    let mut world = cast.world(AuthKind::Psk, 5);
    world.gateway.config.refuse_init = Some(NotifyType::NO_PROPOSAL_CHOSEN);
    world.connect(cast.profile(AuthKind::Psk), cast.credentials());
    world.run(Duration::from_millis(100));
    world.gateway.config.refuse_init = None;
    assert!(
        world.run_until(Duration::from_secs(2), |world| world.status().state
            == State::Connected)
    );
}

#[test]
fn refusals_of_phase_1_and_phase_2_are_told_apart() {
    let cast = Cast::default();
    let mut world = cast.world(AuthKind::Certificate, 6);
    world.gateway.config.ike = ike("aes128-sha1-modp1024");
    let failure = fails(&mut world, &cast, AuthKind::Certificate);
    assert_eq!(
        (failure.cause, failure.stage),
        (Cause::NoIkeProposal, Stage::IkeSaInit)
    );

    let mut world = cast.world(AuthKind::Certificate, 6);
    world.gateway.config.esp = esp("aes128-sha1");
    let failure = fails(&mut world, &cast, AuthKind::Certificate);
    assert_eq!(
        (failure.cause.clone(), failure.stage),
        (Cause::NoChildProposal, Stage::ChildSa)
    );
    world.run(Duration::from_secs(1));
    assert_eq!(world.gateway.sas(), 0, "the IKE SA without child was deleted");

    for (error, cause) in [
        (NotifyType::TS_UNACCEPTABLE, Cause::SelectorsRefused),
        (NotifyType::INTERNAL_ADDRESS_FAILURE, Cause::NoInnerAddress),
        (NotifyType::FAILED_CP_REQUIRED, Cause::NoInnerAddress),
        (
            NotifyType::SINGLE_PAIR_REQUIRED,
            Cause::ChildRefused(NotifyType::SINGLE_PAIR_REQUIRED),
        ),
    ] {
        let mut world = cast.world(AuthKind::EapTls, 6);
        world.gateway.config.refuse_child = Some(error);
        let failure = fails(&mut world, &cast, AuthKind::EapTls);
        assert_eq!((failure.cause, failure.stage), (cause, Stage::ChildSa));
    }
    let mut world = cast.world(AuthKind::Psk, 6);
    world.gateway.config.refuse_auth = Some(NotifyType::AUTHENTICATION_FAILED);
    let failure = fails(&mut world, &cast, AuthKind::Psk);
    assert_eq!(
        (failure.cause.clone(), failure.side()),
        (Cause::AuthenticationFailed, Side::Client)
    );
}

#[test]
fn a_wrong_pre_shared_key_is_refused_on_both_sides() {
    let cast = Cast::default();
    let mut world = cast.world(AuthKind::Psk, 7);
    let mut credentials = cast.credentials();
    credentials.psk = Some(Secret::from_slice(b"another key"));
    let failure = world
        .connect_and_wait(cast.profile(AuthKind::Psk), credentials)
        .unwrap_err();
    assert_eq!(failure.cause, Cause::AuthenticationFailed);

    // A gateway that takes ours but does not have it.
    let mut world = cast.world(AuthKind::Psk, 7);
    world.gateway.config.proof = Proof::Psk(b"a guess".to_vec());
    let failure = fails(&mut world, &cast, AuthKind::Psk);
    assert_eq!(
        failure.cause,
        Cause::GatewayAuthInvalid(AuthMethod::SHARED_KEY_MIC)
    );
    world.run(Duration::from_secs(1));
    assert_eq!(world.gateway.sas(), 0, "it was told");
}

#[test]
fn a_gateway_of_another_name_gets_nothing() {
    let cast = Cast::default();
    let mut world = cast.world(AuthKind::Psk, 8);
    world.gateway.config.identity = Identity::Fqdn("evil.example.org".into());
    let failure = fails(&mut world, &cast, AuthKind::Psk);
    assert!(
        matches!(failure.cause, Cause::IdentityMismatch { .. }),
        "{failure:?}"
    );

    for method in [AuthKind::Certificate, AuthKind::EapTls, AuthKind::EapMsChapV2] {
        // Another customer of the same authority, with a good certificate of its own.
        let mut world = cast.world(method, 8);
        world.gateway.config.proof =
            Proof::Certificate(vec![cast.user.certificate()], cast.user.private_key());
        let failure = fails(&mut world, &cast, method);
        assert!(
            matches!(failure.cause, Cause::Certificate(_)),
            "{method:?}: {failure:?}"
        );
        no_eap_was_said(&world);
    }
}

fn no_eap_was_said(world: &World) {
    let spoke = world
        .gateway
        .transcript
        .iter()
        .any(|(_, _, kinds)| kinds.contains(&PayloadType::EAP));
    assert!(
        !spoke,
        "EAP began before the gateway was proven: {:?}",
        world.gateway.transcript
    );
}

#[test]
fn an_unknown_authority_gets_nothing() {
    let (cast, others) = (Cast::default(), Cast::default());
    for method in [AuthKind::Certificate, AuthKind::EapTls, AuthKind::EapMsChapV2] {
        let mut world = others.world(method, 9);
        let failure = fails(&mut world, &cast, method);
        assert!(
            matches!(failure.cause, Cause::Certificate(CertError::UnknownIssuer { .. })),
            "{method:?}: {failure:?}"
        );
        no_eap_was_said(&world);
    }
}

#[test]
fn a_key_that_is_not_the_certificates_is_noticed() {
    let cast = Cast::default();
    for method in [AuthKind::Certificate, AuthKind::EapMsChapV2] {
        let mut world = cast.world(method, 10);
        world.gateway.config.proof =
            Proof::Certificate(vec![cast.gateway.certificate()], cast.user.private_key());
        let failure = fails(&mut world, &cast, method);
        assert_eq!(
            failure.cause,
            Cause::GatewayAuthInvalid(AuthMethod::DIGITAL_SIGNATURE)
        );
        no_eap_was_said(&world);
    }
}

#[test]
fn a_pre_shared_key_never_stands_in_for_the_certificate() {
    let cast = Cast::default();
    for method in [AuthKind::Certificate, AuthKind::EapTls, AuthKind::EapMsChapV2] {
        let mut world = cast.world(method, 11);
        world.gateway.config.proof = Proof::Psk(PSK.to_vec());
        let failure = fails(&mut world, &cast, method);
        assert_eq!(
            failure.cause,
            Cause::AuthMethodNotAllowed(AuthMethod::SHARED_KEY_MIC)
        );
        no_eap_was_said(&world);
    }
}

#[test]
fn the_wrong_kind_of_authentication_is_named() {
    let cast = Cast::default();
    // The gateway asks for EAP, the profile has a certificate; the gateway lets us in by nothing else.
    let mut world = cast.world(AuthKind::EapMsChapV2, 12);
    let failure = fails(&mut world, &cast, AuthKind::EapTls);
    assert_eq!(
        failure.cause,
        Cause::EapMethod {
            offered: EapType::MSCHAPV2,
            wanted: EapType::TLS
        }
    );
    let mut world = cast.world(AuthKind::Certificate, 12);
    world.gateway.config.client = ClientAuth::Psk(PSK.to_vec());
    let failure = fails(&mut world, &cast, AuthKind::Certificate);
    assert_eq!(failure.cause, Cause::AuthenticationFailed);
}

#[test]
fn a_wrong_password_is_told_and_never_tried_again() {
    let cast = Cast::default();
    let mut world = cast.world(AuthKind::EapMsChapV2, 13);
    let mut credentials = cast.credentials();
    credentials.password = Some(Secret::from_slice(b"wrong"));
    let failure = world
        .connect_and_wait(cast.profile(AuthKind::EapMsChapV2), credentials)
        .unwrap_err();
    assert!(
        matches!(failure.cause, Cause::Eap(EapError::MsChap { .. })),
        "{failure:?}"
    );
    assert_eq!(failure.code(), "authentication_failed");
    let before = world.sent.len();
    world.run(Duration::from_secs(600));
    assert!(
        world.sent.len() <= before + 1,
        "an account is locked by repetition"
    );
}

#[test]
fn what_the_gateway_grants_is_compared_with_what_was_asked_for() {
    let cast = Cast::default();
    let range =
        |start: &str, end: &str| TrafficSelector::addresses(start.parse().unwrap(), end.parse().unwrap());
    // Less than a full tunnel, though the profile demands one.
    let mut world = cast.world(AuthKind::Psk, 14);
    world.gateway.config.selectors = Some(vec![range("10.0.0.0", "10.255.255.255")]);
    let failure = fails(&mut world, &cast, AuthKind::Psk);
    assert_eq!(failure.cause, Cause::SelectorsNarrowed("0.0.0.0/0, ::/0".into()));
    // The same, and the profile leaves it to the gateway.
    let mut world = cast.world(AuthKind::Psk, 14);
    world.gateway.config.selectors = Some(vec![range("10.0.0.0", "10.255.255.255")]);
    let mut profile = cast.profile(AuthKind::Psk);
    profile.child.accept_narrowing = true;
    world.connect_and_wait(profile, cast.credentials()).unwrap();
    let tunnel = world.plans.last().unwrap().tunnel.clone().unwrap();
    assert_eq!(
        tunnel.routes.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["10.0.0.0/8"]
    );
    assert!(tunnel.refused.is_empty());
    // More than was asked for.
    let mut world = cast.world(AuthKind::Psk, 14);
    let mut profile = cast.profile(AuthKind::Psk);
    profile.child.remote_ts = vec!["10.0.0.0/8".parse().unwrap()];
    world.gateway.config.selectors = Some(vec![range("10.0.0.0", "11.255.255.255")]);
    let failure = world.connect_and_wait(profile, cast.credentials()).unwrap_err();
    assert_eq!(failure.cause, Cause::SelectorsNotSubset);
}

#[test]
fn a_gateway_with_one_family_keeps_the_other_from_leaking() {
    let cast = Cast::default();
    let mut world = cast.world(AuthKind::Psk, 15);
    world.gateway.config.pool = vec!["10.3.0.1".parse().unwrap()];
    world
        .connect_and_wait(cast.profile(AuthKind::Psk), cast.credentials())
        .unwrap();
    let tunnel = world.plans.last().unwrap().tunnel.clone().unwrap();
    assert_eq!(
        tunnel.routes.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["0.0.0.0/0"]
    );
    assert_eq!(
        tunnel.refused.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["::/0"]
    );
    assert_eq!((tunnel.mtu, tunnel.dns.servers.len()), (1438, 1));
}

#[test]
fn addresses_that_no_host_can_have_are_refused() {
    let cast = Cast::default();
    for address in [
        "0.0.0.0",
        "127.0.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "ff02::1",
    ] {
        let mut world = cast.world(AuthKind::Psk, 16);
        world.gateway.config.pool = vec![address.parse().unwrap()];
        let failure = fails(&mut world, &cast, AuthKind::Psk);
        assert!(
            matches!(failure.cause, Cause::ChildProtocol(_)),
            "{address}: {failure:?}"
        );
    }
    let mut world = cast.world(AuthKind::Psk, 16);
    world.gateway.config.pool = vec![];
    assert_eq!(fails(&mut world, &cast, AuthKind::Psk).stage, Stage::ChildSa);
}

#[test]
fn a_machine_that_refuses_the_plan_is_left_clean() {
    let cast = Cast::default();
    let mut world = cast.world(AuthKind::Psk, 17);
    let fault = HostFault {
        action: "create the tunnel device".into(),
        reason: "not permitted".into(),
        permission: true,
    };
    world.apply_fault = Some(fault.clone());
    let failure = world
        .connect_and_wait(cast.profile(AuthKind::Psk), cast.credentials())
        .unwrap_err();
    assert_eq!(
        (failure.stage, failure.cause.clone()),
        (Stage::Apply, Cause::Host(fault))
    );
    assert_eq!(failure.code(), "permission_denied");
    assert!(world.plans.last().is_some_and(|plan| plan.tunnel.is_none()));
    world.run(Duration::from_secs(3));
    assert_eq!(world.gateway.sas(), 0, "the gateway was told");
}

#[test]
fn all_but_an_address_counts_as_everything() {
    let cast = Cast::default();
    let mut world = cast.world(AuthKind::Psk, 18);
    world.gateway.config.pool = vec!["10.3.0.1".parse().unwrap()];
    let all_but_the_last =
        TrafficSelector::addresses("0.0.0.0".parse().unwrap(), "255.255.255.254".parse().unwrap());
    world.gateway.config.selectors = Some(vec![all_but_the_last]);
    let mut profile = cast.profile(AuthKind::Psk);
    profile.child.accept_narrowing = true;
    world.connect_and_wait(profile, cast.credentials()).unwrap();
    let tunnel = world.plans.last().unwrap().tunnel.clone().unwrap();
    assert!(
        tunnel.refused.contains(&"::/0".parse().unwrap()),
        "IPv6 would leave beside the tunnel"
    );
}

#[test]
fn a_name_server_in_an_excluded_network_is_not_asked() {
    let cast = Cast::default();
    let mut world = cast.world(AuthKind::Psk, 19);
    let mut profile = cast.profile(AuthKind::Psk);
    profile.child.exclude = ["10.3.0.0/16".parse().unwrap()].into();
    world.connect_and_wait(profile, cast.credentials()).unwrap();
    let tunnel = world.plans.last().unwrap().tunnel.clone().unwrap();
    assert_eq!(
        tunnel.dns.servers.len(),
        0,
        "its answers would come from the network outside"
    );
}

#[test]
fn a_machine_that_loses_the_tunnel_later_ends_the_connection() {
    let cast = Cast::default();
    let mut world = cast.world(AuthKind::Psk, 20);
    world
        .connect_and_wait(cast.profile(AuthKind::Psk), cast.credentials())
        .unwrap();
    let fault = HostFault {
        action: "set the name servers".into(),
        reason: "timed out".into(),
        permission: false,
    };
    world.client.handle_answer(
        peregrine_core::command::Answer::Applied(Err(fault.clone())),
        world.now,
    );
    world.run(Duration::from_secs(3));
    assert_eq!(world.failure().unwrap().cause, Cause::Host(fault));
}

#[test]
fn slow_networks_and_fresh_cookies_agree_on_one_request() {
    let cast = Cast::default();
    for latency in [200, 600, 900] {
        let mut world = cast.world(AuthKind::Psk, 21);
        world.gateway.config.cookie = true;
        world.link.latency = Duration::from_millis(latency);
        world
            .connect_and_wait(cast.profile(AuthKind::Psk), cast.credentials())
            .unwrap_or_else(|it| panic!("{latency} ms: {it}"));
    }
}

#[test]
fn a_refused_child_is_named_even_without_auth() {
    let cast = Cast::default();
    for (error, cause) in [
        (NotifyType::TS_UNACCEPTABLE, Cause::SelectorsRefused),
        (NotifyType::NO_PROPOSAL_CHOSEN, Cause::NoChildProposal),
        (NotifyType::INTERNAL_ADDRESS_FAILURE, Cause::NoInnerAddress),
    ] {
        let mut world = cast.world(AuthKind::Certificate, 22);
        world.gateway.config.refuse_child = Some(error);
        world.gateway.config.bare_refusal = true;
        let failure = fails(&mut world, &cast, AuthKind::Certificate);
        assert_eq!((failure.cause, failure.stage), (cause, Stage::ChildSa));
    }
}

#[test]
fn a_gateway_without_the_eap_key_is_not_a_wrong_psk() {
    let cast = Cast::default();
    let mut world = cast.world(AuthKind::EapTls, 23);
    world.gateway.config.wrong_msk = true;
    let failure = fails(&mut world, &cast, AuthKind::EapTls);
    assert_eq!(
        (failure.cause.clone(), failure.code()),
        (Cause::EapKeyMismatch, "eap_key_mismatch")
    );
}

#[test]
fn a_certificate_where_a_psk_was_expected_is_told_as_such() {
    let cast = Cast::default();
    let mut world = cast.world(AuthKind::Psk, 24);
    world.gateway.config.proof =
        Proof::Certificate(vec![cast.gateway.certificate()], cast.gateway.private_key());
    let failure = fails(&mut world, &cast, AuthKind::Psk);
    assert_eq!(
        failure.cause,
        Cause::CertificateForPsk(AuthMethod::DIGITAL_SIGNATURE)
    );
}

#[test]
fn a_family_that_the_gateway_leaves_out_of_a_full_tunnel_does_not_leak() {
    let cast = Cast::default();
    // Addresses of both families, selectors of one.
    let mut world = cast.world(AuthKind::Psk, 25);
    world.gateway.config.selectors = Some(vec![TrafficSelector::ANY_V4]);
    let mut profile = cast.profile(AuthKind::Psk);
    profile.child.accept_narrowing = true;
    world.connect_and_wait(profile, cast.credentials()).unwrap();
    let tunnel = world.plans.last().unwrap().tunnel.clone().unwrap();
    assert_eq!(
        tunnel.refused.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["::/0"]
    );
}

#[test]
fn selectors_are_compared_as_sets() {
    let cast = Cast::default();
    let range =
        |start: &str, end: &str| TrafficSelector::addresses(start.parse().unwrap(), end.parse().unwrap());
    let mut profile = cast.profile(AuthKind::Psk);
    profile.child.remote_ts = vec!["10.0.0.0/9".parse().unwrap(), "10.128.0.0/9".parse().unwrap()];
    let mut world = cast.world(AuthKind::Psk, 26);
    world.gateway.config.selectors = Some(vec![range("10.0.0.0", "10.255.255.255")]);
    world
        .connect_and_wait(profile.clone(), cast.credentials())
        .unwrap();
    // All addresses, but one port only.
    let mut world = cast.world(AuthKind::Psk, 26);
    let web = TrafficSelector {
        protocol: 6,
        start_port: 443,
        end_port: 443,
        ..range("10.0.0.0", "10.255.255.255")
    };
    world.gateway.config.selectors = Some(vec![web]);
    let failure = world.connect_and_wait(profile, cast.credentials()).unwrap_err();
    assert!(
        matches!(failure.cause, Cause::SelectorsNarrowed(_)),
        "{failure:?}"
    );
}
