//! EAP-TLS.

use std::sync::Arc;

use peregrine_core::eap::{Eap, EapConfig, EapError, EapMethod, EapTls, Step, TlsAlert, TlsServer};
use peregrine_core::pki::{CertError, Certificate, load_private_key};
use peregrine_core::profile::Identity;
use peregrine_core::rng::Rng;
use peregrine_core::wire::iana::EapType;
use peregrine_tests::eap_server::{
    EapServer, EapTlsServer, MsChapBehaviour, MsChapServer, ServerMethod, ServerStep, TlsBehaviour,
    tls_server_config,
};
use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};
use rcgen::{
    CertificateParams, DnType, ExtendedKeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384,
    PKCS_ED25519, PKCS_RSA_SHA256, date_time_ymd,
};
use rustls::server::{ServerConfig, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::{TLS12, TLS13};
use rustls::{RootCertStore, SupportedProtocolVersion};

use super::certificates::{Authority, Holder, SERVER, key};
use super::{NOW, converse, converse_through};

const IN_ONE_PACKET: TlsBehaviour = TlsBehaviour {
    fragment_size: 9000,
    ..TlsBehaviour::REGULAR
};

/// Everybody in one room: the authority, its server, its user.
struct Room {
    authority: Authority,
    server: Holder,
    user: Holder,
}

impl Room {
    fn new() -> Self {
        let authority = Authority::new("Test CA");
        let server = authority.server(key(&PKCS_ECDSA_P256_SHA256));
        let user = authority.user(key(&PKCS_ECDSA_P256_SHA256));
        Self {
            authority,
            server,
            user,
        }
    }

    fn server(&self, version: &'static SupportedProtocolVersion) -> EapServer {
        self.server_that(version, TlsBehaviour::REGULAR)
    }

    fn server_that(&self, version: &'static SupportedProtocolVersion, behaviour: TlsBehaviour) -> EapServer {
        self.server_of(&self.server, version, behaviour)
    }

    /// A server with the certificate of `holder`, for the users of our authority.
    fn server_of(
        &self,
        holder: &Holder,
        version: &'static SupportedProtocolVersion,
        behaviour: TlsBehaviour,
    ) -> EapServer {
        let config = tls_server_config(
            holder.chain.clone(),
            holder.private_key(),
            Some(self.authority.der()),
            &[version],
            NOW,
        );
        tls_server(config, behaviour)
    }

    fn peer(&self) -> Eap {
        self.peer_with(|_| {})
    }

    fn peer_with(&self, change: impl FnOnce(&mut EapTls)) -> Eap {
        let mut tls = EapTls {
            chain: self
                .user
                .chain
                .iter()
                .map(|der| Certificate::from_der(der).unwrap())
                .collect(),
            key: load_private_key(self.user.key.serialized_der(), None).unwrap(),
            server: TlsServer {
                anchors: vec![Certificate::from_der(&self.authority.der()).unwrap()],
                identity: Identity::Fqdn(SERVER.to_owned()),
                fragment_size: 1024,
                check_revocation: false,
            },
        };
        change(&mut tls);
        Eap::new(EapConfig {
            identity: "@example.org".to_owned(),
            method: EapMethod::Tls(tls),
        })
    }
}

fn tls_server(config: Arc<ServerConfig>, behaviour: TlsBehaviour) -> EapServer {
    EapServer::new(
        ServerMethod::Tls(Box::new(EapTlsServer::new(config, behaviour))),
        true,
    )
}

#[derive(Debug)]
struct Clock;

impl rustls::time_provider::TimeProvider for Clock {
    fn current_time(&self) -> Option<rustls::pki_types::UnixTime> {
        Some(rustls::pki_types::UnixTime::since_unix_epoch(NOW.0))
    }
}

fn tls(server: &EapServer) -> &EapTlsServer {
    match server.method() {
        ServerMethod::Tls(server) => server,
        _ => panic!("not EAP-TLS"),
    }
}

/// Both versions of TLS.
const VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];

#[test]
fn eap_tls_with_every_kind_of_key() {
    for version in VERSIONS {
        for kind in [
            &PKCS_ECDSA_P256_SHA256,
            &PKCS_ECDSA_P384_SHA384,
            &PKCS_ED25519,
            &PKCS_RSA_SHA256,
        ] {
            let mut room = Room::new();
            room.server = room.authority.server(key(kind));
            room.user = room.authority.user(key(kind));
            let mut server = room.server(version);
            let outcome = converse(&mut room.peer(), &mut server);
            outcome.assert_success();
            assert_eq!(server.identity(), Some("@example.org"));
        }
    }
}

#[test]
fn the_keys_of_two_conversations_differ() {
    let room = Room::new();
    let keys = VERSIONS.map(|version| {
        let run = || {
            converse(&mut room.peer(), &mut room.server(version))
                .peer
                .unwrap()
        };
        let (first, second) = (run(), run());
        assert_ne!(first, second);
        first
    });
    assert_ne!(keys[0], keys[1]);
}

#[test]
fn long_chains_are_fragmented_both_ways() {
    for version in VERSIONS {
        for length_everywhere in [false, true] {
            let mut room = Room::new();
            let (first, second) = (room.authority.below("Users"), Authority::new("Stranger"));
            let third = first.below("Users of the north");
            room.user = third.user(key(&PKCS_ECDSA_P256_SHA256));
            // In any order, with the root and one that does not belong to it.
            room.user
                .chain
                .extend([second.der(), first.der(), room.authority.der(), third.der()]);
            let servers = room.authority.below("Servers");
            room.server = servers.server_with(key(&PKCS_ECDSA_P256_SHA256), |params| {
                params.subject_alt_names.extend((0..40).map(|n| {
                    rcgen::SanType::DnsName(format!("name-{n}.of.the.server.example.org").try_into().unwrap())
                }));
            });
            room.server.chain.push(servers.der());

            let behaviour = TlsBehaviour {
                fragment_size: 150,
                length_everywhere,
                ..TlsBehaviour::REGULAR
            };
            let mut server = room.server_that(version, behaviour);
            let outcome = converse(
                &mut room.peer_with(|tls| tls.server.fragment_size = 1),
                &mut server,
            );
            outcome.assert_success();
            assert!(
                tls(&server).fragments_received() >= 5,
                "{}",
                tls(&server).fragments_received()
            );
            // In the order of TLS 1.2, without the root and without the stranger.
            let expected = [room.user.chain[0].clone(), third.der(), first.der()];
            assert_eq!(tls(&server).peer_certificates(), expected);
            assert!(outcome.sent.len() > 20, "{}", outcome.sent.len());
            // 256 is the smallest size that we take for sensible.
            assert_eq!(outcome.replies.iter().map(Vec::len).max(), Some(256));
        }
    }
}

#[test]
fn our_packets_are_as_large_as_configured_and_no_larger() {
    for (configured, expected) in [(600, 600), (1024, 1024), (5000, 1400)] {
        let mut room = Room::new();
        let users = room.authority.below("Users");
        room.user = users.issue(
            "alice@example.org",
            ExtendedKeyUsagePurpose::ClientAuth,
            key(&PKCS_ED25519),
            |params| {
                params
                    .distinguished_name
                    .push(DnType::OrganizationalUnitName, "x".repeat(3000));
            },
        );
        room.user.chain.push(users.der());
        let outcome = converse(
            &mut room.peer_with(|tls| tls.server.fragment_size = configured),
            &mut room.server(&TLS13),
        );
        outcome.assert_success();
        assert_eq!(outcome.replies.iter().map(Vec::len).max(), Some(expected));
    }
}

#[test]
fn a_hello_retry_request_is_answered() {
    let room = Room::new();
    let mut provider = rustls::crypto::ring::default_provider();
    provider.kx_groups = vec![rustls::crypto::ring::kx_group::SECP384R1];
    let provider = Arc::new(provider);
    let mut roots = RootCertStore::empty();
    roots.add(room.authority.der()).unwrap();
    let users = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .build()
        .unwrap();
    let config = ServerConfig::builder_with_details(provider, Arc::new(Clock))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_client_cert_verifier(users)
        .with_single_cert(room.server.chain.clone(), room.server.private_key())
        .unwrap();
    let mut server = tls_server(Arc::new(config), TlsBehaviour::REGULAR);
    converse(&mut room.peer(), &mut server).assert_success();
}

/// Every certificate of a server that must not be believed, and what is wrong with it.
#[test]
fn a_server_certificate_that_does_not_fit_is_refused() {
    type Check = fn(&CertError) -> bool;
    let p256 = || key(&PKCS_ECDSA_P256_SHA256);
    let room = Room::new();
    let stranger = Authority::new("Another CA");
    let same_name = Authority::new("Test CA");
    let not_an_authority = {
        let user = room.authority.user(p256());
        let issuer = rcgen::Issuer::from_ca_cert_der(&user.chain[0], user.key).unwrap();
        let key = p256();
        let mut params = CertificateParams::new([SERVER.to_owned()]).unwrap();
        params.not_before = date_time_ymd(2026, 1, 1);
        params.not_after = date_time_ymd(2027, 1, 1);
        let certificate = params.signed_by(&key, &issuer).unwrap();
        Holder {
            chain: vec![certificate.der().clone(), user.chain[0].clone()],
            key,
        }
    };
    let cases: Vec<(&str, Holder, Check, &str)> = vec![
        (
            "unknown CA",
            stranger.server(p256()),
            |e| matches!(e, CertError::UnknownIssuer { .. }),
            "unknown_ca",
        ),
        (
            "CA of the same name",
            same_name.server(p256()),
            |e| {
                matches!(
                    e,
                    CertError::ChainSignature { .. } | CertError::UnknownIssuer { .. }
                )
            },
            "certificate_unknown",
        ),
        (
            "wrong name",
            room.authority.issue(
                "www.example.org",
                ExtendedKeyUsagePurpose::ServerAuth,
                p256(),
                |_| {},
            ),
            |e| matches!(e, CertError::NameMismatch { presented, .. } if presented == &["www.example.org"]),
            "bad_certificate",
        ),
        (
            "name as common name only",
            room.authority
                .server_with(p256(), |params| params.subject_alt_names.clear()),
            |e| matches!(e, CertError::NameMismatch { presented, .. } if presented.is_empty()),
            "bad_certificate",
        ),
        (
            "expired",
            room.authority
                .server_with(p256(), |params| params.not_after = date_time_ymd(2026, 11, 20)),
            |e| matches!(e, CertError::Expired { .. }),
            "certificate_expired",
        ),
        (
            "not yet valid",
            room.authority
                .server_with(p256(), |params| params.not_before = date_time_ymd(2026, 11, 22)),
            |e| matches!(e, CertError::NotYetValid { .. }),
            "certificate_expired",
        ),
        (
            "for clients only",
            room.authority
                .issue(SERVER, ExtendedKeyUsagePurpose::ClientAuth, p256(), |_| {}),
            |e| matches!(e, CertError::NotForServer { .. }),
            "unsupported_certificate",
        ),
        (
            "issued by a user",
            not_an_authority,
            |e| matches!(e, CertError::NotACa { .. }),
            "certificate_unknown",
        ),
    ];
    for (name, holder, check, alert) in cases {
        for version in VERSIONS {
            let mut server = room.server_of(&holder, version, TlsBehaviour::REGULAR);
            let error = converse(&mut room.peer(), &mut server).error();
            let EapError::ServerCertificate(error) = error else {
                panic!("{name}: {error}")
            };
            assert!(check(&error), "{name}: {error:?}");
            // The server has heard of it, and why.
            let Some(rustls::Error::AlertReceived(heard)) = tls(&server).error() else {
                panic!("{name}: {:?}", tls(&server).error());
            };
            assert_eq!(TlsAlert(u8::from(*heard)).name(), Some(alert), "{name}");
        }
    }
}

/// CVE-2023-26463 was a client that took the key of any certificate; here it is the right one, without its key.
#[test]
fn a_server_without_the_key_of_its_certificate_is_refused() {
    let room = Room::new();
    let other = rustls::crypto::ring::sign::any_ecdsa_type(&room.user.private_key()).unwrap();
    let stolen = CertifiedKey::new(room.server.chain.clone(), other);
    for version in VERSIONS {
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(stolen.clone())));
        let outcome = converse(
            &mut room.peer(),
            &mut tls_server(Arc::new(config), TlsBehaviour::REGULAR),
        );
        let expected = "the server's signature is wrong, or of a kind that we do not know";
        assert_eq!(outcome.error(), EapError::Tls(expected.to_owned()));
    }
}

#[test]
fn what_the_server_says_of_our_refusal_does_not_matter() {
    let room = Room::new();
    let stranger = Authority::new("Another CA").server(key(&PKCS_ECDSA_P256_SHA256));
    for last_word in [
        &[3, 4, 0, 4][..],
        &[4, 4, 0, 4],
        &[1, 4, 0, 6, 13, 0],
        &[1, 4, 0, 5, 4],
        b"",
    ] {
        let mut server = room.server_of(&stranger, &TLS13, IN_ONE_PACKET);
        let mut peer = room.peer();
        let outcome = converse_through(&mut peer, &mut server, |number, packet| {
            if number == 3 { last_word.to_vec() } else { packet }
        });
        assert_eq!(outcome.sent.len(), 4);
        assert!(matches!(
            outcome.error(),
            EapError::ServerCertificate(CertError::UnknownIssuer { .. })
        ));
    }
}

#[test]
fn the_reason_is_known_before_the_server_answers() {
    let room = Room::new();
    let stranger = Authority::new("Another CA").server(key(&PKCS_ECDSA_P256_SHA256));
    let mut server = room.server_of(&stranger, &TLS13, IN_ONE_PACKET);
    let mut peer = room.peer();
    let mut packet = server.start();
    for _ in 0..3 {
        assert!(peer.failure().is_none());
        let Step::Reply(reply) = peer.handle(&packet, &mut Rng::new([3; 32]), NOW).unwrap() else {
            panic!("success")
        };
        if let ServerStep::Request(next) = server.handle(&reply) {
            packet = next;
        }
    }
    assert!(matches!(peer.failure(), Some(EapError::ServerCertificate(_))));
}

#[test]
fn the_server_rejects_our_certificate() {
    for version in VERSIONS {
        let mut room = Room::new();
        room.user = Authority::new("Another CA").user(key(&PKCS_ECDSA_P256_SHA256));
        let error = converse(&mut room.peer(), &mut room.server(version)).error();
        let EapError::TlsAlert(alert) = &error else {
            panic!("{error}")
        };
        assert_eq!(alert.name(), Some("unknown_ca"));
        assert!(alert.is_about_our_certificate());
        assert_eq!(
            error.to_string(),
            "the EAP server rejected our certificate (alert unknown_ca)"
        );

        let mut room = Room::new();
        room.user = room.authority.issue(
            "alice@example.org",
            ExtendedKeyUsagePurpose::ClientAuth,
            key(&PKCS_ECDSA_P256_SHA256),
            |params| params.not_after = date_time_ymd(2026, 6, 1),
        );
        let error = converse(&mut room.peer(), &mut room.server(version)).error();
        assert_eq!(
            error.to_string(),
            "the EAP server rejected our certificate (alert certificate_expired)"
        );
    }
}

#[test]
fn a_key_that_does_not_belong_to_the_certificate_is_not_used() {
    let room = Room::new();
    let other = key(&PKCS_ECDSA_P256_SHA256);
    let changes: [&dyn Fn(&mut EapTls); 2] = [
        &|tls| tls.key = load_private_key(other.serialized_der(), None).unwrap(),
        &|tls| tls.chain.clear(),
    ];
    for change in changes {
        let outcome = converse(&mut room.peer_with(change), &mut room.server(&TLS13));
        assert!(outcome.replies.len() <= 1, "nothing but the identity is sent");
        assert!(matches!(outcome.error(), EapError::Credential(_)));
    }
}

/// RFC 9190, section 2.5: whoever cuts the conversation off before the indication gains nothing.
#[test]
fn tls_13_without_the_success_indication_is_refused() {
    let room = Room::new();
    let behaviour = TlsBehaviour {
        success_indication: false,
        ..TlsBehaviour::REGULAR
    };
    let outcome = converse(&mut room.peer(), &mut room.server_that(&TLS13, behaviour));
    assert!(outcome.server.is_some(), "the server was content");
    assert_eq!(outcome.error(), EapError::EarlySuccess);
}

#[test]
fn a_success_indication_before_our_finished_is_refused() {
    let room = Room::new();
    // Only a server that does not ask for our certificate can be so early.
    let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(room.server.chain.clone(), room.server.private_key())
        .unwrap();
    config.send_half_rtt_data = true;
    let behaviour = TlsBehaviour {
        early_indication: true,
        ..TlsBehaviour::REGULAR
    };
    let outcome = converse(&mut room.peer(), &mut tls_server(Arc::new(config), behaviour));
    assert_eq!(
        outcome.error(),
        EapError::Tls("the server sent application data".to_owned())
    );
}

#[test]
fn anything_but_the_success_indication_is_refused() {
    let room = Room::new();
    for version in VERSIONS {
        for data in [&b"\x01"[..], b"\0\0", b"hello", &[0; 20_000]] {
            let behaviour = TlsBehaviour {
                application_data: Some(data),
                ..TlsBehaviour::REGULAR
            };
            let outcome = converse(&mut room.peer(), &mut room.server_that(version, behaviour));
            assert_eq!(
                outcome.error(),
                EapError::Tls("the server sent application data".to_owned())
            );
        }
    }
    // In TLS 1.2 there is no such indication either.
    let behaviour = TlsBehaviour {
        application_data: Some(b"\0"),
        ..TlsBehaviour::REGULAR
    };
    let outcome = converse(&mut room.peer(), &mut room.server_that(&TLS12, behaviour));
    assert_eq!(
        outcome.error(),
        EapError::Tls("the server sent application data".to_owned())
    );
}

/// CVE-2021-45079, at every point of the conversation.
#[test]
fn success_before_the_end_is_refused_in_every_state() {
    let room = Room::new();
    for version in VERSIONS {
        let behaviour = TlsBehaviour {
            fragment_size: 300,
            ..TlsBehaviour::REGULAR
        };
        let run = |forged: usize| {
            let mut peer = room.peer_with(|tls| tls.server.fragment_size = 300);
            converse_through(
                &mut peer,
                &mut room.server_that(version, behaviour),
                |number, packet| {
                    if number == forged {
                        vec![3, packet[1], 0, 4]
                    } else {
                        packet
                    }
                },
            )
        };
        let whole = run(usize::MAX);
        whole.assert_success();
        for forged in 0..whole.sent.len() - 1 {
            assert_eq!(run(forged).error(), EapError::EarlySuccess, "packet {forged}");
        }
    }
}

#[test]
fn failure_at_any_point_is_a_refusal() {
    let room = Room::new();
    for version in VERSIONS {
        let run = |forged: usize| {
            converse_through(&mut room.peer(), &mut room.server(version), |number, packet| {
                if number == forged {
                    vec![4, packet[1], 0, 4]
                } else {
                    packet
                }
            })
        };
        let whole = run(usize::MAX);
        for forged in 0..whole.sent.len() {
            assert_eq!(run(forged).error(), EapError::Refused, "packet {forged}");
        }
    }
}

#[test]
fn data_instead_of_an_acknowledgement_is_refused() {
    let room = Room::new();
    let outcome = converse_through(
        &mut room.peer_with(|tls| tls.server.fragment_size = 256),
        &mut room.server(&TLS13),
        |_, mut packet| {
            // An acknowledgement: EAP-TLS with no flag and no data.
            if packet.get(4..) == Some(&[13, 0]) {
                packet.push(23);
                packet[3] += 1;
            }
            packet
        },
    );
    let expected = EapError::Malformed("TLS data instead of the acknowledgement of a fragment");
    assert_eq!(outcome.error(), expected);
}

#[test]
fn a_server_that_wants_another_method_is_told_so() {
    let room = Room::new();
    let method = MsChapServer::new("alice", "secret", [1; 16], MsChapBehaviour::Regular);
    let mut server = EapServer::new(ServerMethod::MsChapV2(method), true);
    let outcome = converse(&mut room.peer(), &mut server);
    assert_eq!(outcome.replies[1][4..], [3, 13], "a Nak that asks for EAP-TLS");
    assert_eq!(
        outcome.error(),
        EapError::MethodOffered {
            offered: EapType::MSCHAPV2,
            wanted: EapType::TLS
        }
    );
}

proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(64))]

    /// A packet changed on the way never leads to a key that the server does not have, nor to a panic.
    #[test]
    fn a_changed_packet_never_leads_astray(
        tls13 in any::<bool>(),
        number in 0..12_usize,
        bits in proptest::collection::vec(any::<(u16, u8)>(), 1..4),
        replaced in any::<bool>(),
    ) {
        let room = Room::new();
        let version = if tls13 { &TLS13 } else { &TLS12 };
        let behaviour = TlsBehaviour { fragment_size: 300, ..TlsBehaviour::REGULAR };
        let mut server = room.server_that(version, behaviour);
        let mut peer = room.peer_with(|tls| tls.server.fragment_size = 500);
        let mut rng = Rng::new([3; 32]);
        let mut packet = server.start();
        for round in 0..80 {
            if round == number {
                if replaced {
                    // Only the header survives.
                    packet.truncate(5);
                    packet.extend(bits.iter().flat_map(|(position, octet)| [*octet, position.to_be_bytes()[0]]));
                    let length = u16::try_from(packet.len()).unwrap().to_be_bytes();
                    packet[2..4].copy_from_slice(&length);
                } else {
                    for (position, bit) in &bits {
                        let position = usize::from(*position) % packet.len();
                        packet[position] ^= 1 << (bit % 8);
                    }
                }
            }
            let reply = match peer.handle(&packet, &mut rng, NOW) {
                Ok(Step::Reply(reply)) => reply,
                Ok(Step::Ask(question)) => panic!("{question:?}"),
                Ok(Step::Check(presented)) => panic!("{presented:?}"),
                Ok(Step::Success(msk)) => {
                    let ServerMethod::Tls(tls) = server.method() else { panic!("EAP-TLS") };
                    let servers = tls.msk();
                    prop_assert_eq!(msk.as_ref().map(peregrine_core::eap::Msk::as_bytes), Some(servers.as_slice()));
                    return Ok(());
                }
                Err(_) => return Ok(()),
            };
            // What comes of a changed packet may be more than the server of the tests puts up with.
            let step = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| server.handle(&reply)));
            packet = match step {
                Ok(ServerStep::Request(packet) | ServerStep::Failure(packet) | ServerStep::Success { packet, .. }) => packet,
                Err(_) => return Ok(()),
            };
        }
        prop_assert!(false, "the conversation does not end");
    }
}
