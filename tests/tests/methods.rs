//! More ways to authenticate, in virtual time: tunnels, questions to the user, EAP alone, and two rounds.

use std::time::Duration;

use peregrine_core::command::{Cause, Command, Failure, Happening, PromptId, PromptKind, Side, Stage, State};
use peregrine_core::crypto::Secret;
use peregrine_core::eap::EapError;
use peregrine_core::pki::CertError;
use peregrine_core::profile::{AuthKind, Identity, PeapInner, Profile, TtlsInner};
use peregrine_core::wire::iana::{EapType, ExchangeType, NotifyType, PayloadType};
use peregrine_tests::cast::{Cast, GATEWAY, PASSWORD};
use peregrine_tests::eap_server::{EapServer, GtcServer, ServerMethod};
use peregrine_tests::gateway::{ClientAuth, EapOnly, Proof};
use peregrine_tests::world::World;

const TTLS: AuthKind = AuthKind::EapTtls(TtlsInner::MsChapV2);
const PEAP: AuthKind = AuthKind::EapPeap(PeapInner::MsChapV2);

fn secret(text: &str) -> Secret {
    Secret::from_slice(text.as_bytes())
}

/// What the client sent in its IKE_AUTH exchanges, with their numbers.
fn requests(world: &World) -> Vec<Vec<PayloadType>> {
    world
        .gateway
        .transcript
        .iter()
        .filter(|(exchange, ..)| *exchange == ExchangeType::IKE_AUTH)
        .map(|(_, _, kinds)| kinds.clone())
        .collect()
}

fn spoke_eap(world: &World) -> bool {
    requests(world)
        .iter()
        .any(|kinds| kinds.contains(&PayloadType::EAP))
}

#[test]
fn a_wrong_password_ends_every_method_once_and_for_all() {
    let cast = Cast::default();
    for method in [
        AuthKind::EapMsChapV2,
        AuthKind::EapTtls(TtlsInner::MsChapV2),
        AuthKind::EapTtls(TtlsInner::EapMsChapV2),
        AuthKind::EapTtls(TtlsInner::Pap),
        AuthKind::EapTtls(TtlsInner::Gtc),
        AuthKind::EapTtls(TtlsInner::Md5),
        AuthKind::EapPeap(PeapInner::MsChapV2),
        AuthKind::EapPeap(PeapInner::Gtc),
        AuthKind::EapGtc,
    ] {
        let mut world = cast.world(method, 1);
        let mut credentials = cast.credentials();
        credentials.password = Some(secret("wrong"));
        let failure = world
            .connect_and_wait(cast.profile(method), credentials)
            .unwrap_err();
        assert_eq!(failure.code(), "authentication_failed", "{method:?}: {failure}");
        assert_eq!((failure.stage, failure.side()), (Stage::Eap, Side::Client));
        let before = world.sent.len();
        world.run(Duration::from_secs(600));
        assert!(
            world.sent.len() <= before + 1,
            "an account is locked by repetition"
        );
    }
}

/// Nobody sees the name before the tunnel to the EAP server stands, not even the gateway.
#[test]
fn the_name_stays_in_the_tunnel() {
    let cast = Cast::default();
    for method in [TTLS, PEAP] {
        let mut world = cast.world(method, 2);
        world
            .connect_and_wait(cast.profile(method), cast.credentials())
            .unwrap();
        assert_eq!(world.gateway.eap_identities(), ["anonymous"]);
        assert_eq!(world.gateway.identities(), [Identity::Fqdn("anonymous".into())]);
    }
}

fn gtc(questions: &[(&str, &str)]) -> ClientAuth {
    let questions: Vec<(String, String)> = questions
        .iter()
        .map(|(question, answer)| ((*question).into(), (*answer).into()))
        .collect();
    ClientAuth::Eap(Box::new(move || {
        let questions: Vec<(&str, &str)> = questions
            .iter()
            .map(|(question, answer)| (question.as_str(), answer.as_str()))
            .collect();
        EapServer::new(ServerMethod::Gtc(GtcServer::new(&questions)), true)
    }))
}

fn connect_with_gtc(cast: &Cast, world: &mut World) -> Result<(), Failure> {
    world.connect_and_wait(cast.profile(AuthKind::EapGtc), cast.credentials())
}

#[test]
fn a_code_is_asked_for_while_connecting() {
    let cast = Cast::default();
    let mut world = cast.world(AuthKind::EapGtc, 3);
    world.gateway.config.client = gtc(&[
        ("Password: ", PASSWORD),
        ("Code\x07 for \u{202e}alice: ", "123456"),
    ]);
    world.replies.push_back(Some(secret("123456")));
    connect_with_gtc(&cast, &mut world).unwrap();
    let [(_, prompt)] = world.prompts.as_slice() else {
        panic!("{:?}", world.prompts)
    };
    assert_eq!(prompt.kind, PromptKind::OneTimeCode);
    assert_eq!(prompt.profile, "Office");
    assert_eq!(prompt.message.as_deref(), Some(r"Code\u{7} for \u{202e}alice:"));
}

#[test]
fn a_wrong_code_is_refused() {
    let cast = Cast::default();
    let mut world = cast.world(AuthKind::EapGtc, 3);
    world.gateway.config.client = gtc(&[("Password: ", PASSWORD), ("Code: ", "123456")]);
    world.replies.push_back(Some(secret("654321")));
    let failure = connect_with_gtc(&cast, &mut world).unwrap_err();
    assert_eq!(failure.cause, Cause::Eap(EapError::Refused));
}

/// A world that waits for the user.
fn waiting(cast: &Cast, seed: u64) -> (World, PromptId) {
    let mut world = cast.world(AuthKind::EapGtc, seed);
    world.gateway.config.client = gtc(&[("Password: ", PASSWORD), ("Code: ", "123456")]);
    world.gateway.config.half_open = Duration::from_secs(300);
    world.connect(cast.profile(AuthKind::EapGtc), cast.credentials());
    assert!(world.run_until(Duration::from_secs(10), |world| !world.prompts.is_empty()));
    let id = world.prompts[0].1.id;
    (world, id)
}

#[test]
fn the_user_may_take_longer_than_the_gateway_is_given() {
    let cast = Cast::default();
    let (mut world, id) = waiting(&cast, 4);
    world.run(Duration::from_secs(170));
    let status = world.status();
    assert_eq!(
        (status.state, status.stage),
        (State::Connecting, Some(Stage::Eap))
    );
    world.reply(id, Some(secret("123456")));
    assert!(
        world.run_until(Duration::from_secs(5), |world| world.status().state
            == State::Connected)
    );
}

#[test]
fn nobody_waits_for_the_user_for_ever() {
    let cast = Cast::default();
    let (mut world, _) = waiting(&cast, 5);
    let asked_at = world.prompts[0].0;
    assert!(
        world.run_until(Duration::from_secs(200), |world| world.status().state
            == State::Idle)
    );
    assert_eq!(world.now.since(asked_at), Duration::from_secs(180));
    let failure = world.failure().unwrap();
    assert_eq!(failure.cause, Cause::Unanswered(PromptKind::OneTimeCode));
    assert_eq!((failure.stage, failure.side()), (Stage::Eap, Side::Client));
    world.run(Duration::from_secs(2));
    assert_eq!(world.gateway.sas(), 0, "the gateway was told");
}

#[test]
fn a_user_who_does_not_answer_ends_the_attempt() {
    let cast = Cast::default();
    let (mut world, id) = waiting(&cast, 6);
    world.reply(id, None);
    let failure = world.failure().unwrap();
    assert_eq!(
        (failure.cause.clone(), failure.code()),
        (Cause::Unanswered(PromptKind::OneTimeCode), "unanswered")
    );
    world.run(Duration::from_secs(2));
    assert_eq!(world.gateway.sas(), 0, "the gateway was told");
}

#[test]
fn an_answer_to_another_question_is_ignored() {
    let cast = Cast::default();
    let (mut world, id) = waiting(&cast, 7);
    for other in [PromptId(id.0.wrapping_add(1)), PromptId(0)] {
        world.reply(other, Some(secret("wrong")));
        world.reply(other, None);
        assert_eq!(world.status().state, State::Connecting, "{:?}", world.failure());
    }
    // By the other way, and only once.
    let command = |answer: &str| Command::Reply(id, Some(secret(answer)));
    world.command(command("123456"));
    world.command(command("wrong"));
    assert!(
        world.run_until(Duration::from_secs(5), |world| world.status().state
            == State::Connected)
    );
    world.command(command("wrong"));
    world.reply(id, None);
    assert_eq!(world.status().state, State::Connected);
}

/// A tunnel whose gateway asks for a code each time.
fn up_with_a_code(cast: &Cast, seed: u64) -> World {
    let (mut world, id) = waiting(cast, seed);
    world.reply(id, Some(secret("123456")));
    assert!(world.run_until(Duration::from_secs(5), |world| {
        world.status().state == State::Connected
    }));
    world
}

/// Runs until another question than the first comes, and answers it rightly.
fn answer_the_second(world: &mut World) {
    assert!(world.run_until(Duration::from_secs(600), |world| world.prompts.len() > 1));
    let (first, second) = (world.prompts[0].1.id, world.prompts[1].1.id);
    assert_ne!(first, second);
    world.reply(first, None);
    world.reply(second, Some(secret("123456")));
}

fn reconnected(world: &World) -> usize {
    let happenings = world.happenings.iter();
    happenings
        .filter(|(_, happening)| matches!(happening, Happening::Reconnect(_)))
        .count()
}

#[test]
fn a_code_is_asked_for_when_the_connection_is_lost() {
    let cast = Cast::default();
    let mut world = up_with_a_code(&cast, 21);
    let plans = world.plans.len();
    world.gateway_does(|gateway, now| gateway.delete_ike(now));
    answer_the_second(&mut world);
    assert!(world.run_until(Duration::from_secs(5), |world| reconnected(world) == 1));
    assert_eq!(world.status().state, State::Connected);
    assert_eq!(world.plans.len(), plans, "the machine stayed as it was");
}

#[test]
fn a_code_is_asked_for_beside_the_tunnel_that_is_up() {
    let cast = Cast::default();
    let mut world = cast.world(AuthKind::EapGtc, 22);
    world.gateway.config.client = gtc(&[("Code: ", "123456")]);
    world.gateway.config.auth_lifetime = Some(Duration::from_secs(600));
    world.replies.push_back(Some(secret("123456")));
    let mut credentials = cast.credentials();
    credentials.password = None;
    world
        .connect_and_wait(cast.profile(AuthKind::EapGtc), credentials)
        .unwrap();
    assert!(world.run_until(Duration::from_secs(600), |world| world.prompts.len() > 1));
    assert_eq!(
        world.status().state,
        State::Connected,
        "the tunnel is not left meanwhile"
    );
    answer_the_second(&mut world);
    assert!(world.run_until(Duration::from_secs(5), |world| reconnected(world) == 1));
    assert_eq!(world.status().state, State::Connected);
}

/// A user who does not answer is not asked again and again.
#[test]
fn who_does_not_answer_is_not_asked_again() {
    let cast = Cast::default();
    let mut world = up_with_a_code(&cast, 23);
    world.gateway_does(|gateway, now| gateway.delete_ike(now));
    assert!(
        world.run_until(Duration::from_secs(600), |world| world.status().state
            == State::Idle)
    );
    assert_eq!(world.prompts.len(), 2);
    let failure = world.failure().unwrap();
    assert_eq!(failure.cause, Cause::Unanswered(PromptKind::OneTimeCode));
}

#[test]
fn disconnecting_ends_the_wait_for_the_user() {
    let cast = Cast::default();
    let (mut world, id) = waiting(&cast, 8);
    world.disconnect();
    assert!(
        world.run_until(Duration::from_secs(3), |world| world.status().state
            == State::Idle)
    );
    world.reply(id, Some(secret("123456")));
    world.run(Duration::from_secs(5));
    assert_eq!((world.status().state, world.failure()), (State::Idle, None));
    assert_eq!(world.gateway.sas(), 0);
}

/// Behind a NAT the mapping must outlive the user's search for his phone.
#[test]
fn the_mapping_of_a_nat_is_kept_while_the_user_types() {
    let cast = Cast::default();
    let (mut world, _) = waiting(&cast, 9);
    let before = world.sent.len();
    world.run(Duration::from_secs(70));
    assert_eq!(world.sent.len(), before, "without a NAT nothing is sent");

    let mut world = cast.world(AuthKind::EapGtc, 9);
    world.link.nat = Some("198.51.100.7".parse().unwrap());
    world.gateway.config.client = gtc(&[("Password: ", PASSWORD), ("Code: ", "123456")]);
    world.connect(cast.profile(AuthKind::EapGtc), cast.credentials());
    assert!(world.run_until(Duration::from_secs(10), |world| !world.prompts.is_empty()));
    let before = world.sent.len();
    world.run(Duration::from_secs(70));
    let sent: Vec<_> = world.sent[before..]
        .iter()
        .map(|(_, _, datagram)| datagram.as_slice())
        .collect();
    assert_eq!(sent, [[0xff], [0xff], [0xff]]);
}

/// GTC makes no key and proves nothing of the gateway.
#[test]
fn gtc_needs_a_gateway_that_is_proven_by_certificate() {
    let cast = Cast::default();
    for eap_only in [EapOnly::Always, EapOnly::IfAsked] {
        let mut world = cast.world(AuthKind::EapGtc, 10);
        world.gateway.config.eap_only = eap_only;
        world.gateway.config.proof =
            Proof::Certificate(vec![cast.user.certificate()], cast.user.private_key());
        let failure = connect_with_gtc(&cast, &mut world).unwrap_err();
        assert!(
            matches!(failure.cause, Cause::GatewayUnproven | Cause::Certificate(_)),
            "{failure:?}"
        );
        assert!(!spoke_eap(&world));
    }
    // A profile can not say so, but if one did, nothing would be said either.
    let mut world = cast.world(AuthKind::EapGtc, 10);
    world.gateway.config.eap_only = EapOnly::IfAsked;
    let mut profile = cast.profile(AuthKind::EapGtc);
    profile.auth.eap_only = true;
    let failure = world.connect_and_wait(profile, cast.credentials()).unwrap_err();
    assert_eq!(failure.cause, Cause::GatewayUnproven);
    assert!(!spoke_eap(&world));
}

#[test]
fn a_gateway_with_another_key_after_gtc_is_noticed() {
    let cast = Cast::default();
    let mut world = cast.world(AuthKind::EapGtc, 11);
    world.gateway.config.wrong_msk = true;
    let failure = connect_with_gtc(&cast, &mut world).unwrap_err();
    assert_eq!(failure.cause, Cause::EapKeyMismatch);
}

fn eap_only(cast: &Cast, method: AuthKind) -> Profile {
    let mut profile = cast.profile(method);
    profile.auth.eap_only = true;
    profile
}

#[test]
fn eap_alone_proves_the_gateway() {
    let cast = Cast::default();
    for method in [AuthKind::EapTls, TTLS, PEAP, AuthKind::EapTtls(TtlsInner::Pap)] {
        for gateway in [EapOnly::IfAsked, EapOnly::Never] {
            let mut world = cast.world(method, 12);
            world.gateway.config.eap_only = gateway;
            world
                .connect_and_wait(eap_only(&cast, method), cast.credentials())
                .unwrap_or_else(|it| panic!("{method:?}: {it}"));
            assert_eq!(
                world.gateway.notified(NotifyType::EAP_ONLY_AUTHENTICATION).len(),
                1
            );
        }
        // Nobody asked for it.
        let mut world = cast.world(method, 12);
        world.gateway.config.eap_only = EapOnly::Always;
        let failure = world
            .connect_and_wait(cast.profile(method), cast.credentials())
            .unwrap_err();
        assert_eq!(failure.cause, Cause::GatewayUnproven);
        assert!(!spoke_eap(&world));
        assert_eq!(
            world.gateway.notified(NotifyType::EAP_ONLY_AUTHENTICATION).len(),
            0
        );
    }
}

#[test]
fn eap_alone_demands_the_gateways_own_name() {
    let cast = Cast::default();
    // It calls itself otherwise.
    let mut world = cast.world(TTLS, 13);
    world.gateway.config.eap_only = EapOnly::IfAsked;
    world.gateway.config.identity = Identity::Fqdn("evil.example.org".into());
    let failure = world
        .connect_and_wait(eap_only(&cast, TTLS), cast.credentials())
        .unwrap_err();
    assert_eq!(
        failure.cause,
        Cause::IdentityMismatch {
            expected: GATEWAY.into(),
            received: "evil.example.org".into()
        }
    );
    assert!(!spoke_eap(&world));

    // It claims the name, but its EAP server does not have it, whatever the profile says of another server.
    for method in [AuthKind::EapTls, TTLS, PEAP] {
        let mut world = cast.world(method, 13);
        world.gateway.config.eap_only = EapOnly::IfAsked;
        let elsewhere = Identity::Fqdn("vpn2.example.org".into());
        world.gateway.config.identity = elsewhere.clone();
        let mut profile = eap_only(&cast, method);
        profile.gateway.identity = elsewhere;
        profile.auth.aaa_identity = Some(Identity::Fqdn(GATEWAY.into()));
        let failure = world.connect_and_wait(profile, cast.credentials()).unwrap_err();
        assert!(
            matches!(
                failure.cause,
                Cause::Eap(EapError::ServerCertificate(CertError::NameMismatch { .. }))
            ),
            "{failure:?}"
        );
    }
}

#[test]
fn eap_alone_with_another_method_is_ended_at_once() {
    let cast = Cast::default();
    for offered in [AuthKind::EapMsChapV2, AuthKind::EapGtc] {
        let mut world = cast.world(offered, 14);
        world.gateway.config.eap_only = EapOnly::IfAsked;
        let failure = world
            .connect_and_wait(eap_only(&cast, TTLS), cast.credentials())
            .unwrap_err();
        assert!(
            matches!(
                failure.cause,
                Cause::EapMethod {
                    wanted: EapType::TTLS,
                    ..
                }
            ),
            "{failure:?}"
        );
        // Our identity, which is anonymous, and nothing more.
        let said = requests(&world)
            .iter()
            .filter(|kinds| kinds.contains(&PayloadType::EAP))
            .count();
        assert_eq!(said, 1);
    }
}

/// The EAP server is the right one, but the gateway that stands before it is not: it has no key.
#[test]
fn eap_alone_with_a_gateway_that_has_no_key_fails() {
    let cast = Cast::default();
    for method in [AuthKind::EapTls, TTLS, PEAP] {
        let mut world = cast.world(method, 15);
        world.gateway.config.eap_only = EapOnly::IfAsked;
        world.gateway.config.wrong_msk = true;
        let failure = world
            .connect_and_wait(eap_only(&cast, method), cast.credentials())
            .unwrap_err();
        assert_eq!(failure.cause, Cause::EapKeyMismatch);
        assert_eq!(world.plans.len(), 0, "no tunnel was made");
    }
}

fn two_rounds(cast: &Cast, method: AuthKind) -> Profile {
    let mut profile = cast.profile(method);
    profile.auth.certificate_first = true;
    profile
}

fn world_with_two_rounds(cast: &Cast, method: AuthKind, seed: u64) -> World {
    let mut world = cast.world(method, seed);
    world.gateway.config.client = ClientAuth::CertificateThenEap(cast.eap_servers(method));
    world.gateway.config.multiple_auth = true;
    world
}

#[test]
fn a_certificate_and_then_eap() {
    let cast = Cast::default();
    for method in [
        AuthKind::EapMsChapV2,
        AuthKind::EapTls,
        TTLS,
        PEAP,
        AuthKind::EapGtc,
    ] {
        let mut world = world_with_two_rounds(&cast, method, 16);
        world
            .connect_and_wait(two_rounds(&cast, method), cast.credentials())
            .unwrap_or_else(|it| panic!("{method:?}: {it}"));
        let requests = requests(&world);
        assert!(requests[0].contains(&PayloadType::AUTH) && requests[0].contains(&PayloadType::CERT));
        assert_eq!(requests[1], [PayloadType::ID_INITIATOR]);
        assert_eq!(requests.last().unwrap(), &[PayloadType::AUTH]);
        let first = Identity::Rfc822("alice@example.org".into());
        assert_eq!(world.gateway.identities()[0], first);
        assert_eq!(world.gateway.identities().len(), 2);
    }
}

#[test]
fn a_wrong_password_in_the_second_round_is_refused() {
    let cast = Cast::default();
    let mut world = world_with_two_rounds(&cast, AuthKind::EapMsChapV2, 17);
    let mut credentials = cast.credentials();
    credentials.password = Some(secret("wrong"));
    let failure = world
        .connect_and_wait(two_rounds(&cast, AuthKind::EapMsChapV2), credentials)
        .unwrap_err();
    assert_eq!(failure.code(), "authentication_failed");
}

#[test]
fn a_gateway_with_one_round_gets_nothing() {
    let cast = Cast::default();
    let mut world = world_with_two_rounds(&cast, AuthKind::EapMsChapV2, 18);
    world.gateway.config.multiple_auth = false;
    let failure = world
        .connect_and_wait(two_rounds(&cast, AuthKind::EapMsChapV2), cast.credentials())
        .unwrap_err();
    assert_eq!(failure.cause, Cause::OneRoundOnly);
    assert_eq!(requests(&world), Vec::<Vec<PayloadType>>::new());
}

#[test]
fn no_second_round_begins_with_a_gateway_that_is_not_proven() {
    let (cast, others) = (Cast::default(), Cast::default());
    let mut world = world_with_two_rounds(&others, AuthKind::EapMsChapV2, 19);
    let failure = world
        .connect_and_wait(two_rounds(&cast, AuthKind::EapMsChapV2), cast.credentials())
        .unwrap_err();
    assert!(
        matches!(failure.cause, Cause::Certificate(CertError::UnknownIssuer { .. })),
        "{failure:?}"
    );
    assert!(!spoke_eap(&world));
    assert_eq!(world.gateway.identities().len(), 1, "nor is the user named");
}

/// Both rounds are needed: a gateway that leaves the second out is not what the profile is made for.
#[test]
fn a_gateway_that_skips_a_round_is_refused() {
    let cast = Cast::default();
    let method = AuthKind::EapMsChapV2;
    // It begins with EAP, although we have signed.
    let mut world = cast.world(method, 20);
    world.gateway.config.multiple_auth = true;
    world.gateway.config.client = ClientAuth::Eap(cast.eap_servers(method));
    world.gateway.config.ignore_auth = true;
    let failure = world
        .connect_and_wait(two_rounds(&cast, method), cast.credentials())
        .unwrap_err();
    assert_eq!(
        failure.cause,
        Cause::EapExpectation {
            gateway_wants_eap: true
        }
    );
    assert!(!spoke_eap(&world));
}
