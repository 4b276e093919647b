//! Who plays in virtual time: an authority, a gateway and a user, with their certificates, profiles and secrets.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use peregrine_core::crypto::Secret;
use peregrine_core::esp::{Limits, Marking};
use peregrine_core::pki::{Certificate, PrivateKey, load_private_key};
use peregrine_core::profile;
use peregrine_core::profile::{
    Anchors, Auth, AuthKind, ChildConfig, Credentials, DnsPolicy, Host, Identity, IkeConfig, NetworkConfig,
    Profile, Redirects,
};
use peregrine_core::proposal::{EspProposal, IkeProposal, default_esp, default_ike};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::eap_server::{
    EapServer, EapTlsServer, GtcServer, Md5Server, MsChapBehaviour, MsChapServer, PeapInside, ServerMethod,
    TlsBehaviour, TtlsInside, TunnelServer, tls_server_config,
};
use crate::gateway::{ClientAuth, Gateway, GatewayConfig, Proof};
use crate::world::{BEGINNING, World};

/// The gateway's name.
pub const GATEWAY: &str = "vpn.example.org";
/// The pre-shared key.
pub const PSK: &[u8] = b"a pre-shared key of good length";
/// The user's password.
pub const PASSWORD: &str = "correct horse battery staple";

/// A certificate and its key.
pub struct Holder {
    /// The certificate in DER.
    pub der: Vec<u8>,
    /// The key as PKCS#8 in DER.
    pub key: Vec<u8>,
}

impl Holder {
    /// As the core reads it.
    #[must_use]
    pub fn certificate(&self) -> Certificate {
        Certificate::from_der(&self.der).expect("rcgen's certificates can be read")
    }

    /// As the core reads it.
    #[must_use]
    pub fn private_key(&self) -> PrivateKey {
        load_private_key(&self.key, None).expect("rcgen's keys can be read")
    }
}

/// Everybody.
pub struct Cast {
    /// The authority that both sides trust.
    pub authority: Holder,
    /// The gateway, for [`GATEWAY`].
    pub gateway: Holder,
    /// The user, for `alice@example.org`.
    pub user: Holder,
}

static AUTHORITIES: AtomicU32 = AtomicU32::new(1);

impl Default for Cast {
    fn default() -> Self {
        let ca_key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec![]).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        // Two authorities of one name would be told apart by their signatures only.
        let name = format!("Test authority {}", AUTHORITIES.fetch_add(1, Ordering::Relaxed));
        params.distinguished_name.push(DnType::CommonName, name);
        let authority = params.self_signed(&ca_key).expect("self-signed").der().to_vec();
        let ca_pkcs8 = ca_key.serialize_der();
        let issuer = Issuer::new(params, ca_key);
        let gateway = issue(&issuer, GATEWAY, ExtendedKeyUsagePurpose::ServerAuth);
        let user = issue(&issuer, "alice@example.org", ExtendedKeyUsagePurpose::ClientAuth);
        Self {
            authority: Holder {
                der: authority,
                key: ca_pkcs8,
            },
            gateway,
            user,
        }
    }
}

fn issue(issuer: &Issuer<'_, KeyPair>, name: &str, usage: ExtendedKeyUsagePurpose) -> Holder {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(vec![]).expect("no names");
    let text = name.try_into().expect("names are ASCII");
    params.subject_alt_names = vec![if name.contains('@') {
        rcgen::SanType::Rfc822Name(text)
    } else {
        rcgen::SanType::DnsName(text)
    }];
    params.distinguished_name.push(DnType::CommonName, name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    let der = params.signed_by(&key, issuer).expect("signed").der().to_vec();
    Holder {
        der,
        key: key.serialize_der(),
    }
}

impl Cast {
    /// A gateway that wants `method` of its clients, and proves itself as it befits.
    #[must_use]
    pub fn gateway(&self, method: AuthKind) -> GatewayConfig {
        let (proof, client) = match method {
            AuthKind::Psk => (Proof::Psk(PSK.to_vec()), ClientAuth::Psk(PSK.to_vec())),
            AuthKind::Certificate => (self.proof(), ClientAuth::Certificate),
            method => (self.proof(), ClientAuth::Eap(self.eap_servers(method))),
        };
        GatewayConfig {
            pool: vec![
                "10.3.0.1".parse().expect("an address"),
                "fd00:3::1".parse().expect("an address"),
            ],
            servers: vec!["10.3.255.53".parse().expect("an address")],
            ..GatewayConfig::new(Identity::Fqdn(GATEWAY.into()), proof, client)
        }
    }

    fn proof(&self) -> Proof {
        Proof::Certificate(vec![self.gateway.certificate()], self.gateway.private_key())
    }

    /// EAP servers for `method` that know [`PASSWORD`], with the gateway's certificate.
    ///
    /// # Panics
    ///
    /// They do if `method` is no EAP method.
    #[must_use]
    pub fn eap_servers(&self, method: AuthKind) -> Box<dyn Fn() -> EapServer> {
        let (with_users, without) = (self.tls_config(), self.tls_without_users());
        Box::new(move || eap_server(method, &with_users, &without))
    }

    fn tls_without_users(&self) -> Arc<rustls::ServerConfig> {
        tls_server_config(
            vec![CertificateDer::from(self.gateway.der.clone())],
            PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.gateway.key.clone())),
            None,
            rustls::ALL_VERSIONS,
            BEGINNING,
        )
    }

    /// An EAP-TLS server with the gateway's certificate, TLS 1.3.
    #[must_use]
    pub fn eap_tls(&self, behaviour: TlsBehaviour) -> EapServer {
        eap_tls(&self.tls_config(), behaviour)
    }

    fn tls_config(&self) -> Arc<rustls::ServerConfig> {
        tls_server_config(
            vec![CertificateDer::from(self.gateway.der.clone())],
            PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.gateway.key.clone())),
            Some(CertificateDer::from(self.authority.der.clone())),
            rustls::ALL_VERSIONS,
            BEGINNING,
        )
    }

    /// A profile for [`Self::gateway`].
    #[must_use]
    pub fn profile(&self, method: AuthKind) -> Profile {
        let certificates = vec![self.authority.certificate()];
        Profile {
            name: "Office".into(),
            gateway: profile::Gateway {
                host: Host::Address("192.0.2.1".parse().expect("an address")),
                port: 500,
                tcp_port: 4500,
                identity: Identity::Fqdn(GATEWAY.into()),
                send_idr: true,
                anchors: Anchors {
                    certificates,
                    system: false,
                },
                pin: None,
                allow_sha1_auth: false,
                redirect: Redirects::Proven,
                revocation: profile::Revocation::Soft,
            },
            auth: Auth {
                method,
                certificate_first: false,
                eap_only: false,
                identity: None,
                eap_identity: None,
                username: Some("alice".into()),
                aaa_identity: None,
                aaa_anchors: None,
                ppk: None,
            },
            ike: IkeConfig {
                proposals: default_ike(),
                require_pq: false,
                rekey: Duration::from_secs(4 * 3600),
                mobike: true,
                fragmentation: true,
                fragment_size: 1280,
                dpd: Duration::from_secs(30),
                initial_contact: false,
                resumption: true,
            },
            child: ChildConfig {
                proposals: default_esp(),
                remote_ts: vec![
                    "0.0.0.0/0".parse().expect("a net"),
                    "::/0".parse().expect("a net"),
                ],
                accept_narrowing: false,
                exclude: BTreeSet::new(),
                rekey: Duration::from_secs(3600),
                limits: Limits::default(),
                marking: Marking::default(),
                require_pfs: false,
                rehearse: false,
            },
            network: NetworkConfig {
                kill_switch: false,
                allow_lan: false,
                dns: DnsPolicy::Gateway,
                domains: vec![],
                // Stories of other things are told without probes.
                mtu: Some(1438),
                tcp_fallback: true,
            },
        }
    }

    /// The user's secrets, all of them.
    #[must_use]
    pub fn credentials(&self) -> Credentials {
        Credentials {
            psk: Some(Secret::from_slice(PSK)),
            ppk: None,
            password: Some(Secret::from_slice(PASSWORD.as_bytes())),
            chain: vec![self.user.certificate()],
            key: Some(self.user.private_key()),
        }
    }

    /// A world with this gateway.
    #[must_use]
    pub fn world(&self, method: AuthKind, seed: u64) -> World {
        World::new(Gateway::new(self.gateway(method), 0x47), seed)
    }
}

fn eap_server(
    method: AuthKind,
    with_users: &Arc<rustls::ServerConfig>,
    without: &Arc<rustls::ServerConfig>,
) -> EapServer {
    let inner = |method| match method {
        AuthKind::EapTtls(profile::TtlsInner::Md5) => ServerMethod::Md5(Md5Server::new(PASSWORD)),
        AuthKind::EapTtls(profile::TtlsInner::Gtc) | AuthKind::EapPeap(profile::PeapInner::Gtc) => {
            ServerMethod::Gtc(GtcServer::new(&[("Password: ", PASSWORD)]))
        }
        _ => ServerMethod::MsChapV2(MsChapServer::new(
            "alice",
            PASSWORD,
            [7; 16],
            MsChapBehaviour::Regular,
        )),
    };
    let server = match method {
        AuthKind::EapTls => return eap_tls(with_users, TlsBehaviour::REGULAR),
        AuthKind::EapMsChapV2 => inner(method),
        AuthKind::EapGtc => ServerMethod::Gtc(GtcServer::new(&[("Password: ", PASSWORD)])),
        AuthKind::EapTtls(kind) => {
            let inside = match kind {
                profile::TtlsInner::Pap => TtlsInside::pap("alice", PASSWORD),
                profile::TtlsInner::MsChapV2 => TtlsInside::ms_chap_v2("alice", PASSWORD),
                _ => TtlsInside::eap(inner(method)),
            };
            let server = TunnelServer::ttls(Arc::clone(without), TlsBehaviour::REGULAR, inside);
            ServerMethod::Tunnel(Box::new(server))
        }
        AuthKind::EapPeap(_) => {
            let inside = PeapInside::new(inner(method));
            let server = TunnelServer::peap(Arc::clone(without), TlsBehaviour::REGULAR, inside);
            ServerMethod::Tunnel(Box::new(server))
        }
        AuthKind::Psk | AuthKind::Certificate => panic!("no EAP method"),
    };
    EapServer::new(server, true)
}

fn eap_tls(config: &Arc<rustls::ServerConfig>, behaviour: TlsBehaviour) -> EapServer {
    let server = EapTlsServer::new(Arc::clone(config), behaviour);
    EapServer::new(ServerMethod::Tls(Box::new(server)), true)
}

/// IKE proposals from keywords.
///
/// # Panics
///
/// If there is no such proposal.
#[must_use]
pub fn ike(keywords: &str) -> Vec<IkeProposal> {
    vec![IkeProposal::parse(keywords).expect("a proposal")]
}

/// ESP proposals from keywords.
///
/// # Panics
///
/// If there is no such proposal.
#[must_use]
pub fn esp(keywords: &str) -> Vec<EspProposal> {
    vec![EspProposal::parse(keywords).expect("a proposal")]
}

/// A UDP packet between two inner addresses, of this many octets in all. No checksums: nobody here looks at them.
///
/// # Panics
///
/// If the addresses are no addresses, of two families, or `len` is too small.
#[must_use]
pub fn packet(source: &str, destination: &str, len: usize) -> Vec<u8> {
    let (source, destination): (std::net::IpAddr, std::net::IpAddr) = (
        source.parse().expect("an address"),
        destination.parse().expect("an address"),
    );
    let total = u16::try_from(len).expect("packets are small").to_be_bytes();
    let mut packet = match (source, destination) {
        (std::net::IpAddr::V4(from), std::net::IpAddr::V4(to)) => {
            let head = [0x45, 0, total[0], total[1], 0, 0, 0x40, 0, 64, 17, 0, 0];
            [head.as_slice(), &from.octets(), &to.octets()].concat()
        }
        (std::net::IpAddr::V6(from), std::net::IpAddr::V6(to)) => {
            let payload = u16::try_from(len - 40).expect("packets are small").to_be_bytes();
            let head = [0x60, 0, 0, 0, payload[0], payload[1], 17, 64];
            [head.as_slice(), &from.octets(), &to.octets()].concat()
        }
        _ => panic!("two families in one packet"),
    };
    packet.extend([0x30, 0x39, 0, 53, 0, 0, 0, 0]);
    assert!(packet.len() <= len, "{len} octets do not hold the headers");
    packet.resize(len, 0x5a);
    packet
}
