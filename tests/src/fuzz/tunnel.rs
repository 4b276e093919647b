//! EAP-TTLS and PEAP after the handshake: the server is the one that the profile trusts, and says whatever it is told to.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::{Arc, LazyLock};

use peregrine_core::eap::{
    Eap, EapConfig, EapGtc, EapMd5, EapMethod, EapPeap, EapTtls, InnerEap, Step, TlsServer, TtlsInner,
};
use peregrine_core::profile::Identity;
use peregrine_core::rng::Rng;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::ServerConfig;

use super::{Feed, harmless, secret};
use crate::cast::{Cast, GATEWAY};
use crate::eap_server::{
    Avp, EapServer, Inside, ServerMethod, ServerStep, TlsBehaviour, TunnelServer, Word, tls_server_config,
};
use crate::world::BEGINNING;

static CAST: LazyLock<Cast> = LazyLock::new(Cast::default);
static TLS: LazyLock<Arc<ServerConfig>> = LazyLock::new(|| {
    tls_server_config(
        vec![CertificateDer::from(CAST.gateway.der.clone())],
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(CAST.gateway.key.clone())),
        None,
        &[&rustls::version::TLS12],
        BEGINNING,
    )
});

/// A server that proved its identity says what the octets say. Without the password it never succeeds where the method
/// makes it prove that, and never before its time elsewhere.
pub fn tunnel(data: &[u8]) {
    let mut feed = Feed(data);
    let choice = feed.octet() % 8;
    let server = TlsServer {
        anchors: vec![CAST.authority.certificate()],
        identity: Identity::Fqdn(GATEWAY.to_owned()),
        fragment_size: 1024,
        check_revocation: false,
    };
    let username = "alice".to_owned();
    let gtc = |password| InnerEap::Gtc(EapGtc { password });
    let ms_chap_v2 = || InnerEap::MsChapV2 { password: secret() };
    let inner = match choice {
        0 => TtlsInner::MsChapV2 { password: secret() },
        1 => TtlsInner::Pap { password: secret() },
        2 => TtlsInner::Eap(ms_chap_v2()),
        3 => TtlsInner::Eap(InnerEap::Md5(EapMd5 { password: secret() })),
        _ => TtlsInner::Eap(gtc(Some(secret()))),
    };
    let method = match choice {
        0..=4 => EapMethod::Ttls(EapTtls {
            server,
            username: username.clone(),
            inner,
        }),
        _ => EapMethod::Peap(EapPeap {
            server,
            username: username.clone(),
            inner: if choice == 7 { gtc(None) } else { ms_chap_v2() },
        }),
    };
    let must_prove = matches!(choice, 0 | 2 | 5 | 6);
    let said_yes = Rc::new(RefCell::new(0));
    let inside = Script {
        octets: feed.0.to_vec(),
        said_yes: Rc::clone(&said_yes),
    };
    let tls = Arc::clone(&TLS);
    let server = if choice < 5 {
        TunnelServer::ttls(tls, TlsBehaviour::REGULAR, inside)
    } else {
        TunnelServer::peap(tls, TlsBehaviour::REGULAR, inside)
    };
    let mut server = EapServer::new(ServerMethod::Tunnel(Box::new(server)), false);
    let mut eap = Eap::new(EapConfig {
        identity: username,
        method,
    });
    let mut rng = Rng::new([7; 32]);
    let mut packet = server.start();
    for _ in 0..200 {
        let mut step = eap.handle(&packet, &mut rng, BEGINNING);
        if let Ok(Step::Ask(question)) = &step {
            assert!(harmless(question.message.as_deref()));
            step = eap.answer(&secret());
        }
        let reply = match step {
            Ok(Step::Reply(reply)) => reply,
            Ok(Step::Success(msk)) => {
                assert!(msk.is_some(), "a tunnel makes a key");
                assert!(!must_prove, "a server without the password succeeds");
                assert!(choice < 5 || *said_yes.borrow() > 0, "PEAP without its result");
                return;
            }
            Ok(Step::Ask(_) | Step::Check(_)) => panic!("an answer is answered with a question"),
            Err(error) => {
                assert!(!error.to_string().is_empty());
                return;
            }
        };
        packet = match server.handle(&reply) {
            ServerStep::Request(packet)
            | ServerStep::Failure(packet)
            | ServerStep::Success { packet, .. } => packet,
        };
    }
    panic!("the conversation does not end");
}

/// What the server says, word by word.
struct Script {
    octets: Vec<u8>,
    /// How often it told a result of PEAP.
    said_yes: Rc<RefCell<u32>>,
}

impl Inside for Script {
    fn hear(&mut self, _said: &[u8], _challenge: &[u8; 17]) -> Word {
        let mut feed = Feed(&self.octets);
        if feed.0.is_empty() {
            return Word::Accept;
        }
        let (shape, detail, len) = (feed.octet() % 8, feed.octet(), usize::from(feed.number()));
        let body = feed.take(len).to_vec();
        self.octets = feed.0.to_vec();
        let [high, low] = u16::try_from(body.len().saturating_add(4))
            .unwrap_or(u16::MAX)
            .to_be_bytes();
        let packet = [&[1 + detail % 4, detail, high, low], body.as_slice()].concat();
        match shape {
            0 => Word::Refuse,
            1 => Word::Accept,
            // As it is.
            2 => Word::Say(body),
            // An EAP packet of the right length, in its pair.
            3 => Word::Say(Avp::new((0, 79), &packet).encode()),
            // The same without a pair.
            4 => Word::Say(packet),
            // Any of the pairs that mean something.
            5 => {
                let kind =
                    [(311, 26), (311, 2), (0, 18), (0, 79), (311, 10), (0, 1)][usize::from(detail % 6)];
                let mut pair = Avp::new(kind, &body);
                pair.mandatory = detail & 0x80 == 0;
                Word::Say(pair.encode())
            }
            // A result of PEAP, with more behind it.
            _ => {
                *self.said_yes.borrow_mut() += 1;
                let length = u16::try_from(body.len().saturating_add(11))
                    .unwrap_or(u16::MAX)
                    .to_be_bytes();
                let result = [
                    1,
                    detail,
                    length[0],
                    length[1],
                    33,
                    0x80,
                    3,
                    0,
                    2,
                    0,
                    1 + detail % 2,
                ];
                Word::Say([&result, body.as_slice()].concat())
            }
        }
    }
}
