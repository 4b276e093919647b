//! REDIRECT (RFC 5685) in virtual time: at every stage, what the profile allows, and circles.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use peregrine_core::command::{Cause, Happening, Means, Path, RedirectRefusal, State, Why};
use peregrine_core::profile::{AuthKind, Host, Profile, RedirectTarget, Redirects};
use peregrine_core::wire::iana::{ExchangeType, NotifyType};
use peregrine_core::wire::{Message, Payload};
use peregrine_tests::cast::{Cast, GATEWAY, packet};
use peregrine_tests::gateway::{Elsewhere, Redirect, RedirectWhen};
use peregrine_tests::link::{Fate, Interface, Rule, Way};
use peregrine_tests::world::World;

const FIRST: &str = "192.0.2.1";
const SECOND: &str = "192.0.2.2";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Whoever comes to the first address is sent to the second.
fn to_second(when: RedirectWhen) -> Redirect {
    Redirect {
        at: Some(ip(FIRST)),
        when,
        to: Elsewhere::Address(ip(SECOND)),
    }
}

fn permitting(cast: &Cast, method: AuthKind, redirect: Redirects) -> Profile {
    let mut profile = cast.profile(method);
    profile.gateway.redirect = redirect;
    profile
}

fn everywhere() -> Redirects {
    Redirects::To(vec![RedirectTarget::Network("192.0.2.0/24".parse().unwrap())])
}

/// The data of every REDIRECTED_FROM of the client's, each request once.
fn redirected_from(world: &World) -> Vec<Vec<u8>> {
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for (_, path, datagram) in &world.sent {
        let message = match path.remote.port() {
            500 => datagram.as_slice(),
            _ => datagram.strip_prefix(&[0; 4]).unwrap_or_default(),
        };
        let is_first = message.get(18) == Some(&ExchangeType::IKE_SA_INIT.0) && seen.insert(message.to_vec());
        if let (true, Ok(message)) = (is_first, Message::decode(message)) {
            found.extend(message.payloads.iter().filter_map(|payload| match payload {
                Payload::Notify(it) if it.kind == NotifyType::REDIRECTED_FROM => Some(it.data.to_vec()),
                _ => None,
            }));
        }
    }
    found
}

/// How many INFORMATIONAL requests went to this address since the last IKE_AUTH request.
fn informational_to(world: &World, address: &str) -> usize {
    let kind = |datagram: &[u8]| {
        datagram
            .strip_prefix(&[0; 4])
            .and_then(|message| Some((*message.get(18)?, message.get(19)? & 0x20)))
    };
    let last_auth = world
        .sent
        .iter()
        .rposition(|(_, _, datagram)| kind(datagram) == Some((ExchangeType::IKE_AUTH.0, 0)));
    let after = &world.sent[last_auth.unwrap()..];
    let requests = after.iter().filter(|(_, path, datagram)| {
        path.remote.ip() == ip(address) && kind(datagram) == Some((ExchangeType::INFORMATIONAL.0, 0))
    });
    requests.count()
}

/// The tunnel works, along a way to this address.
fn goes_to(world: &mut World, address: &str) {
    assert_eq!(world.status().state, State::Connected);
    assert_eq!(world.status().path.unwrap().remote.ip(), ip(address));
    let before = world.gateway.traffic().iter().map(|it| it.received).sum::<u64>();
    world.send(&packet("10.3.0.1", "10.9.9.9", 100));
    world.run(Duration::from_secs(1));
    let after = world.gateway.traffic().iter().map(|it| it.received).sum::<u64>();
    assert_eq!(after, before + 1, "the packet came through");
}

#[test]
fn a_redirect_in_every_exchange_of_the_beginning_is_followed() {
    let cast = Cast::default();
    for method in [
        AuthKind::Psk,
        AuthKind::Certificate,
        AuthKind::EapMsChapV2,
        AuthKind::EapTls,
    ] {
        for when in [
            RedirectWhen::Init,
            RedirectWhen::FirstAuth,
            RedirectWhen::LastAuth,
        ] {
            let mut world = cast.world(method, 1);
            world.gateway.config.redirect = Some(to_second(when));
            let profile = permitting(&cast, method, everywhere());
            world.connect_and_wait(profile, cast.credentials()).unwrap();
            world.run(Duration::from_secs(3));
            goes_to(&mut world, SECOND);
            // In the midst of EAP there is no SA to delete (RFC 5685, section 6): the gateway forgets it by itself.
            let half_open = usize::from(method.is_eap() && when == RedirectWhen::FirstAuth);
            assert_eq!(world.gateway.sas(), 1 + half_open, "{method:?} {when:?}");
            world.run(Duration::from_secs(30));
            assert_eq!(
                redirected_from(&world),
                [[1, 4, 192, 0, 2, 1]],
                "{method:?} {when:?}"
            );
            assert_eq!(
                world.status().gateway.unwrap().redirected_to.as_deref(),
                Some(SECOND)
            );
            assert!(
                world.ends_agree(),
                "{method:?} {when:?}: nothing is left at the first gateway"
            );
        }
    }
}

#[test]
fn a_name_is_looked_up() {
    let cast = Cast::default();
    let mut world = cast.world(AuthKind::Psk, 2);
    world.names.insert("vpn2.example.org".into(), vec![ip(SECOND)]);
    world.gateway.config.redirect = Some(Redirect {
        to: Elsewhere::Name("vpn2.example.org".into()),
        ..to_second(RedirectWhen::LastAuth)
    });
    world
        .connect_and_wait(cast.profile(AuthKind::Psk), cast.credentials())
        .unwrap();
    goes_to(&mut world, SECOND);
    // One that does not exist ends the attempt, and says which.
    let mut world = cast.world(AuthKind::Psk, 2);
    world.gateway.config.redirect = Some(Redirect {
        to: Elsewhere::Name("nowhere.example.org".into()),
        ..to_second(RedirectWhen::LastAuth)
    });
    let failure = world
        .connect_and_wait(cast.profile(AuthKind::Psk), cast.credentials())
        .unwrap_err();
    assert_eq!(failure.cause, Cause::NameNotFound("nowhere.example.org".into()));
}

#[test]
fn before_the_gateway_has_proven_itself_only_the_profiles_targets_are_followed() {
    let cast = Cast::default();
    let elsewhere = Redirects::To(vec![
        RedirectTarget::Network("198.51.100.0/24".parse().unwrap()),
        RedirectTarget::Name("vpn2.example.org".into()),
    ]);
    let refused = Cause::RedirectRefused {
        to: SECOND.into(),
        why: RedirectRefusal::NotPermitted,
    };
    for (when, redirect) in [
        (RedirectWhen::Init, Redirects::Proven),
        (RedirectWhen::Init, elsewhere.clone()),
        (RedirectWhen::LastAuth, elsewhere),
    ] {
        let mut world = cast.world(AuthKind::Psk, 3);
        world.gateway.config.redirect = Some(to_second(when));
        let profile = permitting(&cast, AuthKind::Psk, redirect);
        let failure = world.connect_and_wait(profile, cast.credentials()).unwrap_err();
        assert_eq!(failure.cause, refused, "{when:?}");
        assert_eq!(failure.code(), "redirect_refused");
        assert!(
            world
                .sent
                .iter()
                .all(|(_, path, _)| path.remote.ip() == ip(FIRST))
        );
        world.run(Duration::from_secs(5));
        assert_eq!(world.gateway.established(), 0);
    }
    // Where the profile wants none, the gateway is not even told that we could.
    let mut world = cast.world(AuthKind::Psk, 3);
    world.gateway.config.redirect = Some(to_second(RedirectWhen::Init));
    let profile = permitting(&cast, AuthKind::Psk, Redirects::Never);
    world.connect_and_wait(profile, cast.credentials()).unwrap();
    goes_to(&mut world, FIRST);
}

#[test]
fn gateways_that_send_us_in_a_circle_are_left_after_five() {
    let cast = Cast::default();
    for when in [RedirectWhen::Init, RedirectWhen::LastAuth] {
        let mut world = cast.world(AuthKind::Psk, 4);
        world.gateway.config.redirect = Some(Redirect {
            at: None,
            ..to_second(when)
        });
        let profile = permitting(&cast, AuthKind::Psk, everywhere());
        let failure = world.connect_and_wait(profile, cast.credentials()).unwrap_err();
        assert_eq!(
            failure.cause,
            Cause::RedirectRefused {
                to: SECOND.into(),
                why: RedirectRefusal::TooMany,
            }
        );
        assert_eq!(redirected_from(&world).len(), 5, "{when:?}");
    }
}

#[test]
fn a_redirect_without_our_nonce_is_as_if_it_had_not_come() {
    let cast = Cast::default();
    let mut world = cast.world(AuthKind::Psk, 5);
    // The gateway's own answer is lost at first, and somebody else's comes.
    world.link.rules = vec![Rule::first(Way::Down, ExchangeType::IKE_SA_INIT, Fate::Drop)];
    let profile = permitting(&cast, AuthKind::Psk, everywhere());
    world.connect(profile, cast.credentials());
    world.run(Duration::from_millis(100));
    let (_, path, request) = world.sent.first().cloned().unwrap();
    for nonce in [vec![], vec![0x11; 32]] {
        let data = [&[1, 4, 192, 0, 2, 66][..], &nonce].concat();
        let mut forged = forged_redirect(&request, &data);
        assert!(
            world
                .client
                .handle_datagram(path, &mut forged, world.now)
                .is_none()
        );
    }
    let done = |world: &World| world.status().state == State::Connected;
    assert!(world.run_until(Duration::from_secs(10), done));
    goes_to(&mut world, FIRST);
    assert!(
        world
            .sent
            .iter()
            .all(|(_, path, _)| path.remote.ip() == ip(FIRST))
    );
}

/// An IKE_SA_INIT response with nothing but REDIRECT.
fn forged_redirect(request: &[u8], data: &[u8]) -> Vec<u8> {
    let payload_len = u16::try_from(8 + data.len()).unwrap();
    let total = u32::try_from(28 + 8 + data.len()).unwrap();
    [
        &request[..8],
        &[0; 8],
        &[41, 0x20, 34, 0x20, 0, 0, 0, 0],
        &total.to_be_bytes(),
        &[0, 0],
        &payload_len.to_be_bytes(),
        &[0, 0],
        &NotifyType::REDIRECT.0.to_be_bytes(),
        data,
    ]
    .concat()
}

#[test]
fn a_tunnel_that_is_up_goes_to_the_other_gateway_without_a_gap() {
    let cast = Cast::default();
    let mut world = cast.world(AuthKind::EapMsChapV2, 6);
    world
        .connect_and_wait(cast.profile(AuthKind::EapMsChapV2), cast.credentials())
        .unwrap();
    world.run(Duration::from_secs(60));
    let addresses = world.status().addresses;
    world.gateway_does(|gateway, now| gateway.redirect(&Elsewhere::Address(ip(SECOND)), now));
    let moved = |world: &World| world.status().path.is_some_and(|it| it.remote.ip() == ip(SECOND));
    let mut sent = 0;
    while !moved(&world) {
        world.send(&packet("10.3.0.1", "10.9.9.9", 100));
        sent += 1;
        world.run(Duration::from_millis(10));
        assert!(sent < 1000, "it never goes");
    }
    world.run(Duration::from_secs(3));
    assert_eq!(world.status().state, State::Connected);
    // The gateway that was left is told so, and not the other one (RFC 5685, section 5).
    let deletes = informational_to(&world, FIRST);
    assert_eq!(
        deletes, 1,
        "INFORMATIONAL requests to the first gateway after the move"
    );
    assert_eq!(world.status().traffic.tx_packets, sent);
    assert_eq!(world.status().addresses, addresses);
    assert_eq!(world.plans.len(), 1, "the machine sees nothing of it");
    assert!(world.ends_agree());
    goes_to(&mut world, SECOND);
    let happened: Vec<_> = world.happenings.iter().map(|(_, it)| it.clone()).collect();
    assert!(
        matches!(
            happened.as_slice(),
            [Happening::Roam(roam), Happening::Reconnect(again)]
                if roam.means == Means::NewSa && again.means == Means::NewSa && again.why == Why::Redirected && again.attempts == 1
        ),
        "{happened:?}"
    );
}

#[test]
fn a_gateway_that_does_not_answer_costs_nothing_while_the_first_one_stays() {
    let cast = Cast::default();
    let mut world = cast.world(AuthKind::Psk, 7);
    world.unreachable.push(ip(SECOND));
    world
        .connect_and_wait(cast.profile(AuthKind::Psk), cast.credentials())
        .unwrap();
    world.gateway_does(|gateway, now| gateway.redirect(&Elsewhere::Address(ip(SECOND)), now));
    world.run(Duration::from_secs(120));
    goes_to(&mut world, FIRST);
    // Then the first one ends it: we begin where the profile says.
    world.gateway_does(|gateway, now| gateway.delete_ike(now));
    world.run(Duration::from_secs(30));
    goes_to(&mut world, FIRST);
    assert_eq!(world.status().gateway.unwrap().redirected_to, None);
}

#[test]
fn without_a_way_to_the_other_gateway_the_profiles_own_is_asked() {
    let cast = Cast::default();
    for name in [true, false] {
        let mut world = cast.world(AuthKind::Psk, 10);
        let mut profile = cast.profile(AuthKind::Psk);
        if name {
            world.names.insert(GATEWAY.into(), vec![ip(FIRST)]);
            profile.gateway.host = Host::Name(GATEWAY.into());
        }
        world.connect_and_wait(profile, cast.credentials()).unwrap();
        let v6 = Elsewhere::Address(ip("2001:db8::1"));
        world.gateway_does(|gateway, now| gateway.redirect(&v6, now));
        world.run(Duration::from_secs(10));
        assert_eq!(
            world.status().gateway.unwrap().redirected_to.as_deref(),
            Some("2001:db8::1")
        );
        world.move_to(Interface::new("lte", &["10.44.0.2"]));
        world.run(Duration::from_secs(5));
        goes_to(&mut world, FIRST);
        assert_eq!(world.status().gateway.unwrap().redirected_to, None);
        // Without any network it waits, and goes on when there is one.
        world.go_offline();
        world.run(Duration::from_secs(100));
        assert_eq!(world.status().why, Some(Why::Offline));
        world.move_to(Interface::new("lte", &["10.44.0.2"]));
        world.run(Duration::from_secs(5));
        goes_to(&mut world, FIRST);
    }
}

#[test]
fn five_redirects_of_a_tunnel_that_is_up_are_followed_in_five_minutes() {
    let cast = Cast::default();
    let mut world = cast.world(AuthKind::Psk, 8);
    world
        .connect_and_wait(cast.profile(AuthKind::Psk), cast.credentials())
        .unwrap();
    let there_and_back: Vec<&str> = [SECOND, FIRST].into_iter().cycle().take(6).collect();
    for (number, to) in there_and_back.iter().enumerate() {
        world.gateway_does(|gateway, now| gateway.redirect(&Elsewhere::Address(ip(to)), now));
        world.run(Duration::from_secs(10));
        let expected = if number < 5 { to } else { there_and_back[4] };
        goes_to(&mut world, expected);
    }
    world.run(Duration::from_secs(300));
    world.gateway_does(|gateway, now| gateway.redirect(&Elsewhere::Address(ip(FIRST)), now));
    world.run(Duration::from_secs(10));
    goes_to(&mut world, FIRST);
}

#[test]
fn a_gateway_that_says_it_again_and_again_does_not_make_us_begin_again() {
    let cast = Cast::default();
    let mut world = cast.world(AuthKind::Psk, 11);
    world
        .connect_and_wait(cast.profile(AuthKind::Psk), cast.credentials())
        .unwrap();
    world.unreachable.push(ip(SECOND));
    let second = Elsewhere::Address(ip(SECOND));
    for _ in 0..10 {
        world.gateway_does(|gateway, now| gateway.redirect(&second, now));
        world.run(Duration::from_millis(200));
    }
    // And whoever names another one each time is counted, although we never came to be there.
    let before = redirected_from(&world).len();
    for last in 10..30 {
        let other = Elsewhere::Address(ip(&format!("192.0.2.{last}")));
        world.gateway_does(|gateway, now| gateway.redirect(&other, now));
        world.run(Duration::from_millis(25));
    }
    assert!(redirected_from(&world).len() <= before + 5);
    assert_eq!(world.status().state, State::Connected);
}

#[test]
fn a_redirect_to_nowhere_is_answered_and_not_followed() {
    let cast = Cast::default();
    for to in ["127.0.0.1", "224.0.0.1", "0.0.0.0", "::1", "fe80::1"] {
        let mut world = cast.world(AuthKind::Psk, 9);
        world
            .connect_and_wait(cast.profile(AuthKind::Psk), cast.credentials())
            .unwrap();
        world.gateway_does(|gateway, now| gateway.redirect(&Elsewhere::Address(ip(to)), now));
        world.run(Duration::from_secs(60));
        goes_to(&mut world, FIRST);
        let elsewhere = |path: &Path| path.remote.ip() != ip(FIRST);
        assert!(!world.sent.iter().any(|(_, path, _)| elsewhere(path)), "{to}");
    }
}
