//! The EAP conversation that a profile asks for.

use super::SaConfig;
use super::proof::Standing;
use crate::command::Cause;
use crate::crypto::Secret;
use crate::eap::{
    Eap, EapConfig, EapGtc, EapMd5, EapMethod, EapMsChapV2, EapPeap, EapTls, EapTtls, InnerEap, TlsServer,
    TtlsInner,
};
use crate::profile::{self, AuthKind, Identity, PeapInner};

/// The largest EAP packet that we send, in octets: what fits into RADIUS on its way to an authentication server.
const FRAGMENT: usize = 1024;

/// A conversation that has not begun. No secret is within reach of an EAP method before the gateway is proven or is to
/// be proven by the method itself, hence `standing`. `ours` is IDi.
pub(super) fn conversation(config: &SaConfig, standing: &Standing, ours: &Identity) -> Result<Eap, Cause> {
    let auth = &config.profile.auth;
    let config = EapConfig {
        identity: auth.outer_identity().unwrap_or_else(|| ours.to_string()),
        method: method(config, standing)?,
    };
    Ok(match standing {
        Standing::Verified(_) => Eap::new(config),
        Standing::Claimed(_) => Eap::alone(config),
    })
}

fn method(config: &SaConfig, standing: &Standing) -> Result<EapMethod, Cause> {
    let SaConfig {
        profile, credentials, ..
    } = config;
    let auth = &profile.auth;
    let missing = |what: &str| Cause::Credential(format!("the profile has no {what}"));
    let username = || auth.username.clone().ok_or_else(|| missing("user name"));
    let password = || credentials.password.clone().ok_or_else(|| missing("password"));
    let gtc = || EapGtc {
        password: credentials.password.clone(),
    };
    Ok(match auth.method {
        AuthKind::EapTls => EapMethod::Tls(EapTls {
            chain: credentials.chain.clone(),
            key: credentials
                .key
                .clone()
                .ok_or_else(|| missing("private key for EAP-TLS"))?,
            server: server(config, standing),
        }),
        AuthKind::EapTtls(inner) => EapMethod::Ttls(EapTtls {
            server: server(config, standing),
            username: username()?,
            inner: match inner {
                profile::TtlsInner::Pap => TtlsInner::Pap {
                    password: password()?,
                },
                profile::TtlsInner::MsChapV2 => TtlsInner::MsChapV2 {
                    password: password()?,
                },
                profile::TtlsInner::EapMsChapV2 => TtlsInner::Eap(ms_chap_v2(password()?)),
                profile::TtlsInner::Gtc => TtlsInner::Eap(InnerEap::Gtc(gtc())),
                profile::TtlsInner::Md5 => TtlsInner::Eap(InnerEap::Md5(EapMd5 {
                    password: password()?,
                })),
            },
        }),
        AuthKind::EapPeap(inner) => EapMethod::Peap(EapPeap {
            server: server(config, standing),
            username: username()?,
            inner: match inner {
                PeapInner::MsChapV2 => ms_chap_v2(password()?),
                PeapInner::Gtc => InnerEap::Gtc(gtc()),
            },
        }),
        AuthKind::EapMsChapV2 => EapMethod::MsChapV2(EapMsChapV2 {
            username: username()?,
            password: password()?,
        }),
        AuthKind::EapGtc => EapMethod::Gtc(gtc()),
        AuthKind::Psk | AuthKind::Certificate => {
            return Err(Cause::EapExpectation {
                gateway_wants_eap: true,
            });
        }
    })
}

const fn ms_chap_v2(password: Secret) -> InnerEap {
    InnerEap::MsChapV2 { password }
}

/// Whom TLS must meet. Where nothing else proves the gateway, it is the gateway that proves itself there.
fn server(config: &SaConfig, standing: &Standing) -> TlsServer {
    let (gateway, auth) = (&config.profile.gateway, &config.profile.auth);
    let named = match standing {
        Standing::Verified(_) => auth.aaa_identity.as_ref(),
        Standing::Claimed(_) => None,
    };
    let anchors = auth.aaa_anchors.as_ref().unwrap_or(&gateway.anchors);
    TlsServer {
        anchors: anchors.certificates.clone(),
        identity: named.unwrap_or(&gateway.identity).clone(),
        fragment_size: FRAGMENT,
        check_revocation: gateway.revocation != profile::Revocation::Off,
    }
}
