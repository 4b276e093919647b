//! Revoked certificates, and who can tell, in virtual time.

use std::sync::Arc;
use std::time::Duration;

use peregrine_core::command::{Failure, HostFault, State};
use peregrine_core::profile::{AuthKind, Host, Identity, Profile, Revocation, TtlsInner};
use peregrine_core::wire::iana::{CertEncoding, ExchangeType, NotifyType, PayloadType};
use peregrine_tests::authority::{CRL_URL, OCSP_URL, Word};
use peregrine_tests::cast::{Cast, GATEWAY, PASSWORD};
use peregrine_tests::eap_server::{
    EapServer, EapTlsServer, ServerMethod, TlsBehaviour, TtlsInside, TunnelServer, tls_server_config,
};
use peregrine_tests::gateway::{ClientAuth, Gateway, GatewayConfig, Proof};
use peregrine_tests::link::Interface;
use peregrine_tests::world::{BEGINNING, World};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

const SERIAL: u64 = 0x1234_5678;
const PASSWORD_METHOD: AuthKind = AuthKind::EapMsChapV2;
const FAST: Duration = Duration::from_millis(30);

/// A cast whose gateway's certificate names these URLs.
fn cast(urls: &[&str]) -> Cast {
    let mut cast = Cast::default();
    cast.gateway = cast.server(GATEWAY, SERIAL, urls);
    cast
}

fn world(cast: &Cast, method: AuthKind, change: impl FnOnce(&mut GatewayConfig)) -> World {
    let mut config = cast.gateway(method);
    change(&mut config);
    World::new(Gateway::new(config, 0x47), 7)
}

fn profile(cast: &Cast, method: AuthKind, revocation: Revocation) -> Profile {
    let mut profile = cast.profile(method);
    profile.gateway.revocation = revocation;
    profile
}

fn page(world: &mut World, url: &str, takes: Duration, body: Vec<u8>) {
    world.pages.insert(url.to_owned(), (takes, Ok(body)));
}

fn word(cast: &Cast, word: Word) -> Vec<u8> {
    cast.ocsp(&cast.gateway.certificate(), word)
}

fn connect(world: &mut World, cast: &Cast, method: AuthKind, revocation: Revocation) -> Result<(), Failure> {
    world.connect_and_wait(profile(cast, method, revocation), cast.credentials())
}

/// The payloads of the client's IKE_AUTH requests.
fn requests(world: &World) -> Vec<Vec<PayloadType>> {
    let all = world.gateway.transcript.iter();
    let auth = all.filter(|(exchange, ..)| *exchange == ExchangeType::IKE_AUTH);
    auth.map(|(_, _, kinds)| kinds.clone()).collect()
}

fn spoke_eap(world: &World) -> bool {
    requests(world)
        .iter()
        .any(|kinds| kinds.contains(&PayloadType::EAP))
}

/// How often the gateway was told that we do not believe it.
fn told(world: &World) -> usize {
    world.gateway.notified(NotifyType::AUTHENTICATION_FAILED).len()
}

const BOTH: [Revocation; 2] = [Revocation::Soft, Revocation::Strict];

#[test]
fn one_that_is_not_revoked_connects_and_nothing_is_noted() {
    let lists: [(&[&str], usize); 3] = [(&[OCSP_URL], 1), (&[CRL_URL], 1), (&[OCSP_URL, CRL_URL], 1)];
    for (urls, fetches) in lists {
        for method in [PASSWORD_METHOD, AuthKind::Certificate] {
            for revocation in BOTH {
                let cast = cast(urls);
                let mut world = world(&cast, method, |_| {});
                page(&mut world, OCSP_URL, FAST, word(&cast, Word::Good));
                page(&mut world, CRL_URL, FAST, cast.crl(&[SERIAL + 1]));
                connect(&mut world, &cast, method, revocation).unwrap();
                assert_eq!(world.fetched.len(), fetches, "{urls:?}");
                assert!(world.fetched.iter().all(|(_, fetch)| !fetch.private));
                assert_eq!(world.status().notes, Vec::<String>::new());
                let post = world.fetched[0].1.post.as_ref();
                assert_eq!(
                    post.map(|(kind, _)| *kind),
                    (urls[0] == OCSP_URL).then_some("application/ocsp-request")
                );
            }
        }
    }
}

/// Whoever holds a stolen key learns nothing of the user, and is not asked again.
#[test]
fn a_revoked_gateway_is_refused_before_it_learns_anything_and_for_good() {
    for (url, urls) in [(OCSP_URL, [OCSP_URL, CRL_URL]), (CRL_URL, [CRL_URL, CRL_URL])] {
        for revocation in BOTH {
            let cast = cast(&urls);
            let mut world = world(&cast, PASSWORD_METHOD, |_| {});
            page(&mut world, OCSP_URL, FAST, word(&cast, Word::Revoked));
            page(&mut world, CRL_URL, FAST, cast.crl(&[SERIAL - 1, SERIAL]));
            let failure = connect(&mut world, &cast, PASSWORD_METHOD, revocation).unwrap_err();
            assert_eq!(failure.code(), "gateway_certificate_revoked");
            let message = failure.message();
            assert!(
                message.contains("2026-11-01T00:00:00Z") && message.contains(url),
                "{message}"
            );
            assert!(!spoke_eap(&world), "{:?}", requests(&world));
            let sent = world.sent.len();
            world.run(Duration::from_secs(600));
            assert!(world.sent.len() <= sent + 1 && world.status().state == State::Idle);
            assert_eq!(told(&world), 1, "the gateway is told");
        }
    }
}

#[test]
fn where_nobody_answers_soft_connects_and_says_so_and_strict_does_not() {
    let refused = || {
        Err(HostFault {
            action: "fetch".to_owned(),
            reason: "connection refused".to_owned(),
            permission: false,
        })
    };
    for (answer, why) in [
        (None, "no answer in time"),
        (Some(refused()), "connection refused"),
        (Some(Ok(b"<html>".to_vec())), "malformed"),
    ] {
        for revocation in BOTH {
            let cast = cast(&[OCSP_URL, CRL_URL, "ldap://ldap.example.org/CN=CA"]);
            let mut world = world(&cast, PASSWORD_METHOD, |_| {});
            if let Some(answer) = &answer {
                for url in [OCSP_URL, CRL_URL] {
                    world.pages.insert(url.to_owned(), (FAST, answer.clone()));
                }
            }
            let began = world.now;
            let result = connect(&mut world, &cast, PASSWORD_METHOD, revocation);
            assert_eq!(world.fetched.len(), 2);
            assert!(
                world.now.since(began) < Duration::from_millis(6500),
                "{:?}",
                world.now.since(began)
            );
            let told = match revocation {
                Revocation::Strict => {
                    let failure = result.unwrap_err();
                    assert_eq!(failure.code(), "gateway_revocation_unknown");
                    assert!(!spoke_eap(&world));
                    failure.message()
                }
                _ => {
                    result.unwrap();
                    let notes = world.status().notes;
                    assert_eq!(notes.len(), 1);
                    notes[0].clone()
                }
            };
            for part in [OCSP_URL, CRL_URL, "ldap://ldap.example.org/CN=CA: only http", why] {
                assert!(told.contains(part), "{part}: {told}");
            }
        }
    }
}

/// A private authority often has neither list nor responder: that is no news, but no proof either.
#[test]
fn a_certificate_that_names_nobody() {
    let cast = cast(&[]);
    let mut soft = world(&cast, PASSWORD_METHOD, |_| {});
    connect(&mut soft, &cast, PASSWORD_METHOD, Revocation::Soft).unwrap();
    assert!(soft.fetched.is_empty() && soft.status().notes.is_empty());
    let mut strict = world(&cast, PASSWORD_METHOD, |_| {});
    let failure = connect(&mut strict, &cast, PASSWORD_METHOD, Revocation::Strict).unwrap_err();
    assert_eq!(failure.code(), "gateway_revocation_unknown");
    assert!(failure.message().contains("names nobody to ask"), "{failure}");
}

#[test]
fn the_next_is_asked_when_the_first_is_slow_and_the_slow_one_counts_if_it_comes() {
    // The list comes while the responder still thinks.
    let cast = cast(&[OCSP_URL, CRL_URL]);
    let mut one = world(&cast, PASSWORD_METHOD, |_| {});
    page(&mut one, CRL_URL, FAST, cast.crl(&[]));
    let began = one.now;
    connect(&mut one, &cast, PASSWORD_METHOD, Revocation::Strict).unwrap();
    let took = one.now.since(began);
    assert!(
        took > Duration::from_secs(2) && took < Duration::from_secs(3),
        "{took:?}"
    );
    // The responder comes late, but in time.
    let mut two = world(&cast, PASSWORD_METHOD, |_| {});
    page(
        &mut two,
        OCSP_URL,
        Duration::from_secs(5),
        word(&cast, Word::Good),
    );
    connect(&mut two, &cast, PASSWORD_METHOD, Revocation::Strict).unwrap();
    // Too late: nothing happens any more.
    for revocation in BOTH {
        let mut three = world(&cast, PASSWORD_METHOD, |_| {});
        page(
            &mut three,
            OCSP_URL,
            Duration::from_secs(7),
            word(&cast, Word::Revoked),
        );
        let result = connect(&mut three, &cast, PASSWORD_METHOD, revocation);
        assert_eq!(result.is_ok(), revocation == Revocation::Soft);
        let state = three.status().state;
        three.run(Duration::from_secs(5));
        assert_eq!(three.status().state, state);
    }
}

#[test]
fn disconnecting_does_not_wait_for_an_answer() {
    let cast = cast(&[OCSP_URL]);
    let mut world = world(&cast, PASSWORD_METHOD, |_| {});
    page(
        &mut world,
        OCSP_URL,
        Duration::from_secs(4),
        word(&cast, Word::Good),
    );
    world.connect(
        profile(&cast, PASSWORD_METHOD, Revocation::Strict),
        cast.credentials(),
    );
    assert!(world.run_until(Duration::from_secs(2), |world| !world.fetched.is_empty()));
    world.disconnect();
    assert_eq!(world.status().state, State::Idle);
    world.run(Duration::from_secs(60));
    assert_eq!(world.status().state, State::Idle);
    assert!(!spoke_eap(&world) && world.failure().is_none());
    assert_eq!(world.gateway.sa_set().len(), 0, "the gateway is told");
}

/// What the gateway says meanwhile is not taken, however often it says it.
#[test]
fn nothing_moves_while_the_answer_is_waited_for() {
    for method in [PASSWORD_METHOD, AuthKind::Certificate] {
        let cast = cast(&[OCSP_URL]);
        let mut world = world(&cast, method, |config| config.dpd = Some(Duration::from_secs(1)));
        world.link.repetition = 1000;
        page(
            &mut world,
            OCSP_URL,
            Duration::from_millis(4500),
            word(&cast, Word::Good),
        );
        connect(&mut world, &cast, method, Revocation::Strict).unwrap();
        assert!(world.busiest < 10, "{}", world.busiest);
        world.run(Duration::from_secs(30));
        assert_eq!(world.status().state, State::Connected);
        assert!(world.ends_agree());
    }
}

/// RFC 4806: the gateway has asked its responder itself. CRLs in CERT payloads: RFC 7296, section 3.6.
#[test]
fn what_the_gateway_brings_makes_fetching_needless() {
    let cast = cast(&[OCSP_URL, CRL_URL]);
    let (good, bad) = (word(&cast, Word::Good), word(&cast, Word::Revoked));
    let ocsp = CertEncoding::OCSP_CONTENT;
    for revocation in BOTH {
        for evidence in [(ocsp, good.clone()), (CertEncoding::CRL, cast.crl(&[]))] {
            let mut world = world(&cast, PASSWORD_METHOD, |config| config.evidence = vec![evidence]);
            connect(&mut world, &cast, PASSWORD_METHOD, revocation).unwrap();
            assert!(world.fetched.is_empty());
        }
        for evidence in [(ocsp, bad.clone()), (CertEncoding::CRL, cast.crl(&[SERIAL]))] {
            let mut world = world(&cast, PASSWORD_METHOD, |config| config.evidence = vec![evidence]);
            let failure = connect(&mut world, &cast, PASSWORD_METHOD, revocation).unwrap_err();
            assert_eq!(failure.code(), "gateway_certificate_revoked");
            assert!(world.fetched.is_empty() && !spoke_eap(&world));
        }
        // What says nothing of use is as good as nothing.
        let other = cast.ocsp(&cast.user.certificate(), Word::Good);
        for evidence in [other, word(&cast, Word::Unknown), vec![0x30]] {
            let mut world = world(&cast, PASSWORD_METHOD, |config| {
                config.evidence = vec![(ocsp, evidence)]
            });
            page(&mut world, OCSP_URL, FAST, good.clone());
            connect(&mut world, &cast, PASSWORD_METHOD, revocation).unwrap();
            assert_eq!(world.fetched.len(), 1);
        }
    }
    // One that is not asked for is not sent (by this gateway), and one that is sent nonetheless not looked at.
    let mut world = world(&cast, PASSWORD_METHOD, |config| {
        config.evidence = vec![(ocsp, bad.clone()), (CertEncoding::CRL, cast.crl(&[SERIAL]))];
    });
    connect(&mut world, &cast, PASSWORD_METHOD, Revocation::Off).unwrap();
    assert!(world.fetched.is_empty());
}

/// CVE-2022-40617: whoever is not trusted must not make us knock at doors of its choice.
#[test]
fn nothing_is_fetched_for_a_gateway_that_is_not_trusted() {
    let mut codes = Vec::new();
    for wrong in 0..4 {
        let mut cast = cast(&[OCSP_URL, CRL_URL]);
        let mut trusting = profile(&cast, PASSWORD_METHOD, Revocation::Strict);
        match wrong {
            // Another authority; another name; a certificate without its key.
            0 => trusting.gateway.anchors.certificates = vec![Cast::default().authority.certificate()],
            1 => cast.gateway = cast.server("other.example.org", SERIAL, &[OCSP_URL, CRL_URL]),
            _ => {}
        }
        let other = cast.server(GATEWAY, SERIAL, &[]).private_key();
        let mut world = world(&cast, PASSWORD_METHOD, |config| {
            if wrong == 2 {
                config.proof = Proof::Certificate(vec![cast.gateway.certificate()], other);
            }
        });
        let result = world.connect_and_wait(trusting, cast.credentials());
        let count = world.fetched.len();
        let failure = result.unwrap_err();
        assert_eq!(count, if wrong == 3 { 2 } else { 0 }, "{failure}");
        codes.push(failure.code());
    }
    assert_eq!(
        codes,
        [
            "gateway_certificate_rejected",
            "gateway_certificate_rejected",
            "gateway_signature_invalid",
            "gateway_revocation_unknown"
        ]
    );
}

/// Another network, without MOBIKE: a fresh IKE SA, in full, and nobody is asked again until the answer is too old.
#[test]
fn what_is_known_is_not_asked_again() {
    let cast = cast(&[OCSP_URL]);
    let mut world = world(&cast, PASSWORD_METHOD, |config| config.mobike = false);
    page(&mut world, OCSP_URL, FAST, word(&cast, Word::Good));
    connect(&mut world, &cast, PASSWORD_METHOD, Revocation::Strict).unwrap();
    assert_eq!(world.fetched.len(), 1);
    let again = |world: &mut World, address: &str| {
        let happened = world.happenings.len();
        world.move_to(Interface::new("wlan0", &[address]));
        assert!(world.run_until(Duration::from_secs(60), |world| {
            world.happenings.len() > happened && world.status().state == State::Connected
        }));
    };
    again(&mut world, "10.9.0.2");
    assert_eq!(world.fetched.len(), 1);
    // A day later the answer is too old.
    world.run(Duration::from_secs(25 * 3600));
    world.pages.clear();
    let failures = |world: &World| world.status().failure;
    let before = world.fetched.len();
    world.move_to(Interface::new("wlan0", &["10.9.1.2"]));
    world.run(Duration::from_secs(30));
    assert!(world.fetched.len() > before, "{:?}", failures(&world));
}

/// With nobody to ask, the first connection waits; the next does not, if it does not matter.
#[test]
fn whoever_did_not_answer_is_not_asked_again_at_once() {
    let cast = cast(&[OCSP_URL]);
    let mut world = world(&cast, PASSWORD_METHOD, |_| {});
    connect(&mut world, &cast, PASSWORD_METHOD, Revocation::Soft).unwrap();
    let asked = world.fetched.len();
    let began = world.now;
    connect(&mut world, &cast, PASSWORD_METHOD, Revocation::Soft).unwrap();
    assert!(
        world.now.since(began) < Duration::from_secs(4),
        "{:?}",
        world.now.since(began)
    );
    assert_eq!((world.fetched.len(), world.status().notes.len()), (asked, 1));
    let failure = connect(&mut world, &cast, PASSWORD_METHOD, Revocation::Strict).unwrap_err();
    assert_eq!(failure.code(), "gateway_revocation_unknown");
    assert_eq!(world.fetched.len(), asked + 1);
}

/// A gateway in a private network may have its authority there, too.
#[test]
fn private_addresses_are_asked_where_the_gateway_has_one() {
    let cast = cast(&[OCSP_URL]);
    let mut world = world(&cast, PASSWORD_METHOD, |_| {});
    page(&mut world, OCSP_URL, FAST, word(&cast, Word::Good));
    let mut profile = profile(&cast, PASSWORD_METHOD, Revocation::Strict);
    profile.gateway.host = Host::Address("10.200.0.1".parse().unwrap());
    world.connect_and_wait(profile, cast.credentials()).unwrap();
    assert!(world.fetched.len() == 1 && world.fetched[0].1.private);
}

const RADIUS: &str = "radius.example.org";

/// A cast whose gateway talks for an EAP server of its own certificate, with this OCSP response stapled to it.
fn with_radius(method: AuthKind, staple: Option<Word>) -> (Cast, World, Profile) {
    let cast = cast(&[]);
    let radius = cast.server(RADIUS, SERIAL + 1, &[OCSP_URL]);
    let chain = vec![CertificateDer::from(radius.der.clone())];
    let key = || PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(radius.key.clone()));
    let users = (method == AuthKind::EapTls).then(|| CertificateDer::from(cast.authority.der.clone()));
    let config = tls_server_config(chain.clone(), key(), users, rustls::ALL_VERSIONS, BEGINNING);
    let config = match staple {
        None => config,
        Some(word) => {
            let mut stapling = rustls::ServerConfig::clone(&config);
            let key = rustls::crypto::ring::sign::any_ecdsa_type(&key()).expect("a key");
            let mut certified = rustls::sign::CertifiedKey::new(chain, key);
            certified.ocsp = Some(cast.ocsp(&radius.certificate(), word));
            stapling.cert_resolver = Arc::new(rustls::sign::SingleCertAndKey::from(certified));
            Arc::new(stapling)
        }
    };
    let server = move || {
        let config = Arc::clone(&config);
        let method = match method {
            AuthKind::EapTls => ServerMethod::Tls(Box::new(EapTlsServer::new(config, TlsBehaviour::REGULAR))),
            _ => {
                let inside = TtlsInside::ms_chap_v2("alice", PASSWORD);
                ServerMethod::Tunnel(Box::new(TunnelServer::ttls(
                    config,
                    TlsBehaviour::REGULAR,
                    inside,
                )))
            }
        };
        EapServer::new(method, true)
    };
    let proof = Proof::Certificate(vec![cast.gateway.certificate()], cast.gateway.private_key());
    let mut config = cast.gateway(method);
    (config.proof, config.client) = (proof, ClientAuth::Eap(Box::new(server)));
    let mut world = World::new(Gateway::new(config, 0x47), 9);
    let good = cast.ocsp(&radius.certificate(), Word::Good);
    page(&mut world, OCSP_URL, FAST, good);
    let mut profile = profile(&cast, method, Revocation::Soft);
    profile.auth.aaa_identity = Some(Identity::Fqdn(RADIUS.to_owned()));
    (cast, world, profile)
}

#[test]
fn the_eap_server_is_asked_about_before_anything_is_said_to_it() {
    for method in [AuthKind::EapTls, AuthKind::EapTtls(TtlsInner::MsChapV2)] {
        let (cast, mut world, profile) = with_radius(method, None);
        world.connect_and_wait(profile, cast.credentials()).unwrap();
        assert_eq!(world.fetched.len(), 1, "{method:?}");

        let (cast, mut world, profile) = with_radius(method, None);
        let der = cast.server(RADIUS, SERIAL + 1, &[]);
        page(
            &mut world,
            OCSP_URL,
            FAST,
            cast.ocsp(&der.certificate(), Word::Revoked),
        );
        let rounds = |world: &World| {
            requests(world)
                .iter()
                .filter(|kinds| kinds.contains(&PayloadType::EAP))
                .count()
        };
        let failure = world.connect_and_wait(profile, cast.credentials()).unwrap_err();
        assert_eq!(
            failure.code(),
            "eap_server_certificate_revoked",
            "{method:?}: {failure}"
        );
        // The identity, the ClientHello, perhaps the acknowledgement of a fragment; nothing after the certificate.
        assert!(rounds(&world) <= 4, "{:?}", requests(&world));
        let sent = world.sent.len();
        world.run(Duration::from_secs(600));
        assert!(world.sent.len() <= sent + 1);
        assert_eq!(told(&world), 1);

        let (cast, mut world, mut profile) = with_radius(method, None);
        world.pages.clear();
        world
            .connect_and_wait(profile.clone(), cast.credentials())
            .unwrap();
        assert_eq!(world.status().notes.len(), 1);
        profile.gateway.revocation = Revocation::Off;
        world.connect_and_wait(profile, cast.credentials()).unwrap();
        assert!(world.status().notes.is_empty());
    }
}

#[test]
fn strict_means_the_eap_server_too() {
    // The gateway brings its own answer; the server's certificate has nobody.
    let (cast, world, mut profile) = with_radius(AuthKind::EapTls, None);
    drop(world);
    profile.gateway.revocation = Revocation::Strict;
    let mut config = cast.gateway(AuthKind::EapTls);
    config.evidence = vec![(CertEncoding::OCSP_CONTENT, word(&cast, Word::Good))];
    profile.auth.aaa_identity = None;
    // The server has the gateway's certificate, which is known by then.
    let mut world = World::new(Gateway::new(config, 0x47), 9);
    world.connect_and_wait(profile, cast.credentials()).unwrap();
    assert!(world.fetched.is_empty());

    let (cast, mut world, mut profile) = with_radius(AuthKind::EapTls, None);
    profile.gateway.revocation = Revocation::Strict;
    let failure = world.connect_and_wait(profile, cast.credentials()).unwrap_err();
    assert_eq!(
        failure.code(),
        "gateway_revocation_unknown",
        "the gateway's own names nobody"
    );
}

/// RFC 6066, section 8; RFC 9190, section 5.4.
#[test]
fn a_stapled_answer_of_the_eap_server_counts() {
    for method in [AuthKind::EapTls, AuthKind::EapTtls(TtlsInner::MsChapV2)] {
        let (cast, mut world, profile) = with_radius(method, Some(Word::Good));
        world.connect_and_wait(profile, cast.credentials()).unwrap();
        assert!(world.fetched.is_empty(), "{method:?}");
        let (cast, mut world, profile) = with_radius(method, Some(Word::Revoked));
        let failure = world.connect_and_wait(profile, cast.credentials()).unwrap_err();
        assert_eq!(failure.code(), "eap_server_certificate_revoked", "{method:?}");
        assert!(world.fetched.is_empty());
        let (cast, mut world, profile) = with_radius(method, Some(Word::Unknown));
        world.connect_and_wait(profile, cast.credentials()).unwrap();
        assert_eq!(world.fetched.len(), 1, "{method:?}");
    }
}
