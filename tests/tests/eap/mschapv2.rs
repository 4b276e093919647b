//! EAP-MSCHAPv2.

use peregrine_core::crypto::Secret;
use peregrine_core::eap::{Eap, EapConfig, EapError, EapMethod, EapMsChapV2, MsChapCode};
use peregrine_tests::eap_server::{EapServer, MsChapBehaviour, MsChapServer, ServerMethod};

use super::converse;

fn mschap_peer(username: &str, password: &str) -> Eap {
    let method = EapMsChapV2 {
        username: username.to_owned(),
        password: Secret::new(password.as_bytes().to_vec()),
    };
    Eap::new(EapConfig {
        identity: username.to_owned(),
        method: EapMethod::MsChapV2(method),
    })
}

fn mschap_server(username: &str, password: &str, behaviour: MsChapBehaviour) -> EapServer {
    EapServer::new(
        ServerMethod::MsChapV2(MsChapServer::new(username, password, [0x5a; 16], behaviour)),
        true,
    )
}

#[test]
fn mschapv2_succeeds() {
    for (name, password) in [
        ("alice", "secret"),
        (r"EXAMPLE\alice", "pässwörd 🔑"),
        ("alice@example.org", ""),
    ] {
        let mut server = mschap_server(name, password, MsChapBehaviour::Regular);
        converse(&mut mschap_peer(name, password), &mut server).assert_success();
        assert_eq!(server.identity(), Some(name));
    }
}

#[test]
fn mschapv2_with_a_wrong_password_or_name_fails() {
    for (name, password) in [("alice", "Secret"), ("alice", ""), ("bob", "secret")] {
        let mut server = mschap_server("alice", "secret", MsChapBehaviour::Regular);
        let error = converse(&mut mschap_peer(name, password), &mut server).error();
        let expected = EapError::MsChap {
            code: MsChapCode::AUTHENTICATION_FAILURE,
            message: "Authentication failed".to_owned(),
        };
        assert_eq!(error, expected);
    }
}

#[test]
fn mschapv2_servers_tell_why_they_refuse() {
    for (message, code) in [
        (
            "E=646 R=0 C=000102030405060708090A0B0C0D0E0F V=3 M=",
            MsChapCode::RESTRICTED_LOGON_HOURS,
        ),
        ("E=647 R=0 V=3", MsChapCode::ACCOUNT_DISABLED),
        ("E=648 R=0 V=3", MsChapCode::PASSWORD_EXPIRED),
        ("E=649 R=0 V=3", MsChapCode::NO_DIALIN_PERMISSION),
        ("E=691 R=1 V=3", MsChapCode::AUTHENTICATION_FAILURE),
        ("E=709 R=0 V=3", MsChapCode::CHANGING_PASSWORD),
    ] {
        let mut server = mschap_server("alice", "secret", MsChapBehaviour::Refuse(message.to_owned()));
        let error = converse(&mut mschap_peer("alice", "secret"), &mut server).error();
        assert_eq!(
            error,
            EapError::MsChap {
                code,
                message: String::new()
            }
        );
    }
}

#[test]
fn an_mschapv2_server_that_does_not_know_the_password_is_not_believed() {
    for message in [
        "S=407A5589115FD0D6209F510FE9C04566932CDA56 M=Welcome",
        "M=Welcome",
        "",
    ] {
        let mut server = mschap_server("alice", "secret", MsChapBehaviour::Impostor(message.to_owned()));
        let outcome = converse(&mut mschap_peer("alice", "secret"), &mut server);
        assert_eq!(outcome.replies.len(), 2, "no answer to the impostor");
        assert_eq!(outcome.error(), EapError::ServerUnproven);
    }
}
