//! What EAP-TTLS and PEAP have in common: the tunnel, and whom it leads to.

use std::sync::Arc;

use peregrine_core::crypto::Secret;
use peregrine_core::eap::{
    Eap, EapConfig, EapError, EapGtc, EapMethod, EapPeap, EapTtls, InnerEap, Step, TlsAlert, TlsServer,
    TtlsInner,
};
use peregrine_core::pki::{CertError, Certificate};
use peregrine_core::profile::Identity;
use peregrine_core::rng::Rng;
use peregrine_core::wire::iana::EapType;
use peregrine_tests::eap_server::{
    EapServer, GtcServer, Inside, MsChapBehaviour, MsChapServer, PeapInside, ServerMethod, TlsBehaviour,
    TtlsInside, TunnelServer, Word, tls_server_config,
};
use rcgen::{ExtendedKeyUsagePurpose, PKCS_ECDSA_P256_SHA256, date_time_ymd};
use rustls::SupportedProtocolVersion;
use rustls::server::ServerConfig;
use rustls::version::{TLS12, TLS13};

use super::certificates::{Authority, Holder, SERVER, key};
use super::{NOW, Outcome, converse, converse_through};

pub(crate) const USER: &str = r"EXAMPLE\alice";
pub(crate) const PASSWORD: &str = "pässwörd 🔑";

type Versions = &'static [&'static SupportedProtocolVersion];
const BOTH: Versions = &[&TLS13, &TLS12];
const OLD: Versions = &[&TLS12];

/// The authority and its server.
pub(crate) struct Room {
    authority: Authority,
    server: Holder,
    versions: Versions,
}

impl Room {
    pub(crate) fn new() -> Self {
        let authority = Authority::new("Test CA");
        let server = authority.server(key(&PKCS_ECDSA_P256_SHA256));
        Self {
            authority,
            server,
            versions: BOTH,
        }
    }

    /// One whose server speaks both versions of TLS, and one whose server speaks the old one.
    pub(crate) fn of_each_version() -> [Self; 2] {
        [
            Self::new(),
            Self {
                versions: OLD,
                ..Self::new()
            },
        ]
    }

    fn tls(&self) -> Arc<ServerConfig> {
        self.tls_of(&self.server)
    }

    fn tls_of(&self, holder: &Holder) -> Arc<ServerConfig> {
        tls_server_config(
            holder.chain.clone(),
            holder.private_key(),
            None,
            self.versions,
            NOW,
        )
    }

    pub(crate) fn ttls_server(&self, inside: impl Inside + 'static) -> EapServer {
        tunnel(TunnelServer::ttls(self.tls(), TlsBehaviour::REGULAR, inside))
    }

    pub(crate) fn peap_server(&self, inside: impl Inside + 'static) -> EapServer {
        tunnel(TunnelServer::peap(self.tls(), TlsBehaviour::REGULAR, inside))
    }

    fn trust(&self) -> TlsServer {
        TlsServer {
            anchors: vec![Certificate::from_der(&self.authority.der()).unwrap()],
            identity: Identity::Fqdn(SERVER.to_owned()),
            fragment_size: 1024,
            check_revocation: false,
        }
    }

    pub(crate) fn ttls_peer(&self, inner: TtlsInner) -> Eap {
        self.ttls_peer_with(inner, |_| {})
    }

    fn ttls_peer_with(&self, inner: TtlsInner, change: impl FnOnce(&mut TlsServer)) -> Eap {
        let mut server = self.trust();
        change(&mut server);
        Eap::new(EapConfig {
            identity: "anonymous".to_owned(),
            method: EapMethod::Ttls(EapTtls {
                server,
                username: USER.to_owned(),
                inner,
            }),
        })
    }

    pub(crate) fn peap_peer(&self, inner: InnerEap) -> Eap {
        Eap::new(EapConfig {
            identity: "anonymous".to_owned(),
            method: EapMethod::Peap(EapPeap {
                server: self.trust(),
                username: USER.to_owned(),
                inner,
            }),
        })
    }

    /// Both methods with MSCHAPv2 inside, peer and server.
    fn both(&self, holder: &Holder, behaviour: TlsBehaviour) -> [(Eap, EapServer); 2] {
        let ttls = TunnelServer::ttls(
            self.tls_of(holder),
            behaviour,
            TtlsInside::ms_chap_v2(USER, PASSWORD),
        );
        let peap = TunnelServer::peap(self.tls_of(holder), behaviour, PeapInside::new(ms_chap()));
        [
            (
                self.ttls_peer(TtlsInner::MsChapV2 {
                    password: password(PASSWORD),
                }),
                tunnel(ttls),
            ),
            (self.peap_peer(inner_ms_chap(PASSWORD)), tunnel(peap)),
        ]
    }
}

fn tunnel(server: TunnelServer) -> EapServer {
    EapServer::new(ServerMethod::Tunnel(Box::new(server)), true)
}

pub(crate) fn password(text: &str) -> Secret {
    Secret::from_slice(text.as_bytes())
}

pub(crate) fn ms_chap() -> ServerMethod {
    ServerMethod::MsChapV2(MsChapServer::new(
        USER,
        PASSWORD,
        [0x5a; 16],
        MsChapBehaviour::Regular,
    ))
}

pub(crate) fn inner_ms_chap(text: &str) -> InnerEap {
    InnerEap::MsChapV2 {
        password: password(text),
    }
}

pub(crate) fn inner_gtc(text: Option<&str>) -> InnerEap {
    InnerEap::Gtc(EapGtc {
        password: text.map(password),
    })
}

pub(crate) fn gtc(questions: &[(&str, &str)]) -> ServerMethod {
    ServerMethod::Gtc(GtcServer::new(questions))
}

/// What the peer sent in the clear, as text.
fn in_the_clear(outcome: &Outcome) -> String {
    String::from_utf8_lossy(&outcome.replies.concat()).into_owned()
}

#[test]
fn the_user_is_anonymous_outside() {
    for room in Room::of_each_version() {
        for (mut peer, mut server) in room.both(&room.server, TlsBehaviour::REGULAR) {
            let outcome = converse(&mut peer, &mut server);
            outcome.assert_success();
            assert_eq!(server.identity(), Some("anonymous"));
            assert!(!in_the_clear(&outcome).contains("alice"));
        }
    }
}

/// Servers do not agree on how PEAP binds its inner method to a tunnel of TLS 1.3.
#[test]
fn the_tunnel_of_peap_has_tls_12() {
    let room = Room::new();
    let [ttls, peap] = room
        .both(&room.server, TlsBehaviour::REGULAR)
        .map(|(mut peer, mut server)| converse(&mut peer, &mut server).replies[1].clone());
    // The extension supported_versions.
    for (hello, versions) in [
        (ttls, &[0, 43, 0, 5, 4, 3, 4, 3, 3][..]),
        (peap, &[0, 43, 0, 3, 2, 3, 3]),
    ] {
        assert!(hello.windows(versions.len()).any(|window| window == versions));
    }
}

#[test]
fn messages_are_fragmented_both_ways() {
    let mut room = Room::new();
    let servers = room.authority.below("Servers");
    room.server = servers.server_with(key(&PKCS_ECDSA_P256_SHA256), |params| {
        params.subject_alt_names.extend((0..40).map(|n| {
            rcgen::SanType::DnsName(format!("name-{n}.of.the.server.example.org").try_into().unwrap())
        }));
    });
    room.server.chain.push(servers.der());
    for length_everywhere in [false, true] {
        let behaviour = TlsBehaviour {
            fragment_size: 150,
            length_everywhere,
            ..TlsBehaviour::REGULAR
        };
        for (mut peer, mut server) in room.both(&room.server, behaviour) {
            let outcome = converse(&mut peer, &mut server);
            outcome.assert_success();
            assert!(outcome.sent.len() > 15, "{}", outcome.sent.len());
        }
    }
}

/// Windows Server wants the length in PEAP's handshake even where nothing is cut.
#[test]
fn the_client_hello_of_peap_tells_its_length() {
    let room = Room::new();
    let [ttls, peap] = room
        .both(&room.server, TlsBehaviour::REGULAR)
        .map(|(mut peer, mut server)| converse(&mut peer, &mut server).replies[1].clone());
    assert_eq!(ttls[4..6], [21, 0]);
    let length = u32::try_from(peap.len() - 10).unwrap().to_be_bytes();
    assert_eq!(peap[4..10], [&[25, 0x80], &length[..]].concat());
}

#[test]
fn a_server_certificate_that_does_not_fit_is_refused_before_anything_is_said() {
    type Check = fn(&CertError) -> bool;
    let p256 = || key(&PKCS_ECDSA_P256_SHA256);
    let room = Room::new();
    let cases: [(Holder, Check, &str); 4] = [
        (
            Authority::new("Another CA").server(p256()),
            |e| matches!(e, CertError::UnknownIssuer { .. }),
            "unknown_ca",
        ),
        (
            room.authority.issue(
                "www.example.org",
                ExtendedKeyUsagePurpose::ServerAuth,
                p256(),
                |_| {},
            ),
            |e| matches!(e, CertError::NameMismatch { .. }),
            "bad_certificate",
        ),
        (
            room.authority
                .server_with(p256(), |params| params.not_after = date_time_ymd(2026, 11, 20)),
            |e| matches!(e, CertError::Expired { .. }),
            "certificate_expired",
        ),
        (
            room.authority
                .issue(SERVER, ExtendedKeyUsagePurpose::ClientAuth, p256(), |_| {}),
            |e| matches!(e, CertError::NotForServer { .. }),
            "unsupported_certificate",
        ),
    ];
    for (holder, check, alert) in cases {
        for (mut peer, mut server) in room.both(&holder, TlsBehaviour::REGULAR) {
            let outcome = converse(&mut peer, &mut server);
            let ServerMethod::Tunnel(tunnel) = server.method() else {
                panic!("a tunnel")
            };
            let Some(rustls::Error::AlertReceived(heard)) = tunnel.error() else {
                panic!("{:?}", tunnel.error());
            };
            assert_eq!(TlsAlert(u8::from(*heard)).name(), Some(alert));
            let EapError::ServerCertificate(error) = outcome.error() else {
                panic!("another error")
            };
            assert!(check(&error), "{error:?}");
        }
    }
}

/// CVE-2021-45079, at every point of the conversation.
#[test]
fn success_before_the_end_is_refused_in_every_state() {
    let [new, old] = Room::of_each_version();
    for (room, method) in [(&new, 0), (&old, 0), (&old, 1)] {
        let run = |forged: usize| {
            let [ttls, peap] = room.both(&room.server, TlsBehaviour::REGULAR);
            let (mut peer, mut server) = if method == 0 { ttls } else { peap };
            converse_through(&mut peer, &mut server, |number, packet| {
                if number == forged {
                    vec![3, packet[1], 0, 4]
                } else {
                    packet
                }
            })
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
    let [new, old] = Room::of_each_version();
    for (room, method) in [(&new, 0), (&old, 0), (&old, 1)] {
        let run = |forged: usize| {
            let [ttls, peap] = room.both(&room.server, TlsBehaviour::REGULAR);
            let (mut peer, mut server) = if method == 0 { ttls } else { peap };
            converse_through(&mut peer, &mut server, |number, packet| {
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

/// A server that would rather have the password in the clear is declined, and gets nothing.
#[test]
fn a_weaker_method_outside_of_the_tunnel_is_declined() {
    let room = Room::new();
    for (mut peer, _) in room.both(&room.server, TlsBehaviour::REGULAR) {
        let mut server = EapServer::new(gtc(&[("Password: ", PASSWORD)]), true);
        let outcome = converse(&mut peer, &mut server);
        assert!([21, 25].contains(&outcome.replies[1][5]));
        assert_eq!(outcome.replies[1][4], 3, "a Nak");
        assert!(matches!(
            outcome.error(),
            EapError::MethodOffered {
                offered: EapType::GTC,
                ..
            }
        ));
    }
}

#[test]
fn fragments_that_never_end_do_end() {
    let room = Room::new();
    for (mut peer, mut server) in room.both(&room.server, TlsBehaviour::REGULAR) {
        let mut rng = Rng::new([3; 32]);
        let mut packet = server.start();
        for _ in 0..2 {
            let Ok(Step::Reply(reply)) = peer.handle(&packet, &mut rng, NOW) else {
                panic!("no reply")
            };
            if let peregrine_tests::eap_server::ServerStep::Request(next) = server.handle(&reply) {
                packet = next;
            }
        }
        // One octet at a time of 64 KiB.
        let kind = packet[4];
        let mut answered = 0;
        let error = loop {
            let identifier = 100 + u8::try_from(answered).unwrap();
            let fragment = if answered == 0 {
                vec![1, identifier, 0, 11, kind, 0xc0, 0, 1, 0, 0, 22]
            } else {
                vec![1, identifier, 0, 7, kind, 0x40, 22]
            };
            match peer.handle(&fragment, &mut rng, NOW) {
                Ok(Step::Reply(reply)) => assert_eq!(reply[4..], [kind, 0], "an acknowledgement"),
                Ok(other) => panic!("{other:?}"),
                Err(error) => break error,
            }
            answered += 1;
        };
        assert_eq!(error, EapError::TooManyRounds);
    }
}

/// A server that says more and more in the tunnel, without end.
#[test]
fn a_conversation_that_never_ends_does_end() {
    let room = Room::new();
    let mut server = room.ttls_server(|_: &[u8], _: &[u8; 17]| Word::Say(Vec::new()));
    let mut peer = room.ttls_peer(TtlsInner::Pap {
        password: password(PASSWORD),
    });
    assert_eq!(converse(&mut peer, &mut server).error(), EapError::TooManyRounds);
    let mut server = room.peap_server(|_: &[u8], _: &[u8; 17]| Word::Say(Vec::new()));
    let mut peer = room.peap_peer(inner_ms_chap(PASSWORD));
    assert_eq!(converse(&mut peer, &mut server).error(), EapError::TooManyRounds);
}

/// In TLS 1.3 a server can speak before it has our Finished.
#[test]
fn a_word_before_the_handshake_is_over_is_refused() {
    let room = Room::new();
    let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(room.server.chain.clone(), room.server.private_key())
        .unwrap();
    config.send_half_rtt_data = true;
    let mut server = tunnel(
        TunnelServer::ttls(
            Arc::new(config),
            TlsBehaviour::REGULAR,
            |_: &[u8], _: &[u8; 17]| Word::Accept,
        )
        .and_at_once(&[0, 0, 0, 18, 0x40, 0, 0, 8]),
    );
    let mut peer = room.ttls_peer(TtlsInner::Pap {
        password: password(PASSWORD),
    });
    assert_eq!(
        converse(&mut peer, &mut server).error(),
        EapError::Tls("the server sent application data too early".to_owned())
    );
}

#[test]
fn secrets_are_not_shown() {
    let room = Room::new();
    for (mut peer, mut server) in room.both(&room.server, TlsBehaviour::REGULAR) {
        let mut rng = Rng::new([3; 32]);
        let mut packet = server.start();
        loop {
            let shown = format!("{peer:?}");
            assert!(!shown.contains("wörd") && !shown.contains("112, 195"), "{shown}");
            match peer.handle(&packet, &mut rng, NOW).unwrap() {
                Step::Reply(reply) => {
                    packet = match server.handle(&reply) {
                        peregrine_tests::eap_server::ServerStep::Request(packet)
                        | peregrine_tests::eap_server::ServerStep::Failure(packet)
                        | peregrine_tests::eap_server::ServerStep::Success { packet, .. } => packet,
                    };
                }
                Step::Success(_) => break,
                Step::Ask(question) => panic!("{question:?}"),
                Step::Check(presented) => panic!("{presented:?}"),
            }
        }
    }
}
