//! Why a connection failed: in which phase, at which step, on whose side, and what to do about it.

use std::fmt;

use serde::ser::SerializeStruct;
use serde::{Deserialize, Serialize, Serializer};

use crate::command::{Redirect, Stage};
use crate::eap::{EapError, PromptKind};
use crate::pki::CertError;
use crate::wire::iana::{AuthMethod, EapType, KeMethod, NotifyType};

/// Which of the two phases of IKEv2, or what around them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Between this machine and the gateway.
    Network,
    /// Phase 1 · IKE SA.
    Phase1,
    /// Phase 2 · Child SA.
    Phase2,
    /// This machine.
    Host,
}

/// On whose side something must change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// The gateway's administrator.
    Gateway,
    /// This machine or its profile.
    Client,
    /// Something in between.
    Network,
}

/// What the host could not do. The text names the object, never a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostFault {
    /// What was being done, such as `create the tunnel device`.
    pub action: String,
    /// The operating system's own words.
    pub reason: String,
    /// The operation was refused for want of a privilege.
    pub permission: bool,
}

impl fmt::Display for HostFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "could not {}: {}", self.action, self.reason)
    }
}

/// Why a redirect (RFC 5685) is not followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RedirectRefusal {
    /// The profile does not allow it.
    NotPermitted,
    /// There were too many in a short time.
    TooMany,
}

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The gateway's name has no address, or could not be looked up.
    NameNotFound(String),
    /// No address of the gateway can be reached from here: no route, or no network.
    NoRoute(HostFault),
    /// Nothing answered at any address within the time allowed.
    NoAnswer,
    /// The same, and TCP (RFC 9329) does not help either; the text says why.
    NoAnswerOverTcp(String),
    /// The gateway answered IKE_SA_INIT and then fell silent.
    WentSilent,
    /// The gateway answered in IKEv1, or says that it does not speak version 2.
    Ikev1Only,
    /// The gateway refuses all our IKE proposals (NO_PROPOSAL_CHOSEN in IKE_SA_INIT).
    NoIkeProposal,
    /// The gateway takes part in no post-quantum key exchange, which the profile demands.
    NoPostQuantum,
    /// The gateway does not use the post-quantum pre-shared key (RFC 8784), which the profile demands.
    PpkNotUsed,
    /// The gateway's answer broke the protocol; the text says how.
    Protocol(String),
    /// The gateway refused with this error, before its identity was proven.
    Refused(NotifyType),
    /// The gateway asks for a key exchange method that we did not offer.
    KeyExchangeNotOffered(u16),
    /// The gateway's certificate or its chain is not acceptable.
    Certificate(CertError),
    /// The gateway proved another identity than the profile demands.
    IdentityMismatch {
        /// What the profile demands.
        expected: String,
        /// What the gateway calls itself.
        received: String,
    },
    /// The gateway's AUTH payload does not verify: wrong pre-shared key, or wrong private key.
    GatewayAuthInvalid(AuthMethod),
    /// The gateway proves itself in a way that the profile does not allow.
    AuthMethodNotAllowed(AuthMethod),
    /// The gateway signs with RSA and SHA-1, or knows no other signature of ours, and the profile does not allow it.
    Sha1Only,
    /// The gateway proves itself by a signature although the profile has a pre-shared key.
    CertificateForPsk(AuthMethod),
    /// The gateway does not hold the key that EAP agreed on with its server.
    EapKeyMismatch,
    /// The gateway asked something while connecting, and nobody answered.
    Unanswered(PromptKind),
    /// The gateway lets a client authenticate once only, but the profile has two methods (RFC 4739).
    OneRoundOnly,
    /// The gateway wanted its EAP round before proving its identity.
    GatewayUnproven,
    /// The gateway does not resume the IKE SA (RFC 5723). Nobody sees it: the attempt authenticates in full.
    NotResumed,
    /// The gateway sends us to another one. Nobody sees it: the attempt goes on there.
    Redirected(Redirect),
    /// The gateway sends us to another one, to which we do not go.
    RedirectRefused {
        /// The other one.
        to: String,
        /// Why we do not go.
        why: RedirectRefusal,
    },
    /// The gateway refused our authentication (AUTHENTICATION_FAILED).
    AuthenticationFailed,
    /// The gateway asks for another EAP method than the profile has.
    EapMethod {
        /// What the gateway offers.
        offered: EapType,
        /// What the profile has.
        wanted: EapType,
    },
    /// The gateway asks for EAP although the profile authenticates without, or the other way round.
    EapExpectation {
        /// The gateway wants EAP.
        gateway_wants_eap: bool,
    },
    /// The EAP method failed.
    Eap(EapError),
    /// Our own credential cannot be used; the text says why and names no secret.
    Credential(String),
    /// The gateway refuses all our ESP proposals (NO_PROPOSAL_CHOSEN with the Child SA).
    NoChildProposal,
    /// The gateway refuses our traffic selectors (TS_UNACCEPTABLE).
    SelectorsRefused,
    /// The gateway's traffic selectors reach beyond what we offered.
    SelectorsNotSubset,
    /// The profile asks for everything through the tunnel, but the gateway allows only a part.
    SelectorsNarrowed(String),
    /// The gateway has no inner address for us (INTERNAL_ADDRESS_FAILURE, or none in its reply).
    NoInnerAddress,
    /// The gateway refused the Child SA with another error.
    ChildRefused(NotifyType),
    /// The gateway's answer about the Child SA broke the protocol; the text says how.
    ChildProtocol(String),
    /// The gateway ended the connection (Delete).
    DeletedByGateway,
    /// The gateway ended the connection and said why.
    EndedByGateway(NotifyType),
    /// The network changed, and the gateway cannot follow (no MOBIKE).
    LeftBehind,
    /// The gateway no longer answers.
    PeerDead,
    /// An SA reached the end of its lifetime and could not be replaced in time.
    Expired,
    /// An SA reached a limit that it must not pass: sequence numbers, or the amount of data under one key.
    Exhausted,
    /// This machine refused.
    Host(HostFault),
    /// The time allowed by the caller is over.
    TimedOut,
    /// The user ended the attempt.
    Cancelled,
}

/// A failure, with where it happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// How far the attempt had come.
    pub stage: Stage,
    /// What went wrong.
    pub cause: Cause,
}

impl Failure {
    /// In which phase it happened.
    #[must_use]
    pub const fn phase(&self) -> Phase {
        match self.stage {
            Stage::Resolve | Stage::Reach => Phase::Network,
            Stage::IkeSaInit | Stage::IkeIntermediate | Stage::IkeAuth | Stage::Eap => Phase::Phase1,
            Stage::ChildSa => Phase::Phase2,
            Stage::Apply => match self.cause {
                Cause::Host(_) => Phase::Host,
                Cause::PeerDead | Cause::LeftBehind => Phase::Network,
                Cause::Exhausted | Cause::Expired => Phase::Phase2,
                _ => Phase::Phase1,
            },
        }
    }

    /// How far it had come, as a stable word for scripts: the stage, or `connected` when the tunnel was up.
    #[must_use]
    pub const fn step(&self) -> &'static str {
        match (self.stage, &self.cause) {
            (Stage::Apply, Cause::Host(_) | Cause::TimedOut | Cause::Cancelled) => Stage::Apply.name(),
            (Stage::Apply, _) => "connected",
            (stage, _) => stage.name(),
        }
    }

    /// A stable word for scripts.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match &self.cause {
            Cause::NameNotFound(_) => "name_not_found",
            Cause::NoRoute(_) => "no_route",
            Cause::NoAnswer | Cause::NoAnswerOverTcp(_) => "no_answer",
            Cause::WentSilent => "went_silent",
            Cause::Ikev1Only => "ikev1_only",
            Cause::NoIkeProposal | Cause::NoChildProposal => "no_proposal_chosen",
            Cause::NoPostQuantum => "no_post_quantum",
            Cause::PpkNotUsed => "ppk_not_used",
            Cause::Protocol(_) | Cause::ChildProtocol(_) => "protocol_violation",
            Cause::Refused(_) | Cause::ChildRefused(_) => "refused",
            Cause::KeyExchangeNotOffered(_) => "key_exchange_not_offered",
            Cause::Certificate(CertError::Revoked { .. }) => "gateway_certificate_revoked",
            Cause::Certificate(CertError::RevocationUnknown { .. }) => "gateway_revocation_unknown",
            Cause::Certificate(_) => "gateway_certificate_rejected",
            Cause::IdentityMismatch { .. } => "gateway_identity_mismatch",
            Cause::GatewayAuthInvalid(AuthMethod::SHARED_KEY_MIC) => "wrong_psk",
            Cause::GatewayAuthInvalid(_) => "gateway_signature_invalid",
            Cause::AuthMethodNotAllowed(_) | Cause::Sha1Only | Cause::CertificateForPsk(_) => {
                "gateway_auth_method_not_allowed"
            }
            Cause::EapKeyMismatch => "eap_key_mismatch",
            Cause::Unanswered(_) => "unanswered",
            Cause::OneRoundOnly => "one_round_only",
            Cause::NotResumed => "not_resumed",
            Cause::Redirected(_) => "redirected",
            Cause::RedirectRefused { .. } => "redirect_refused",
            Cause::GatewayUnproven => "gateway_unproven",
            Cause::AuthenticationFailed => "authentication_failed",
            Cause::EapMethod { .. } => "eap_method_mismatch",
            Cause::EapExpectation { .. } => "eap_expectation",
            Cause::Eap(error) => eap_code(error),
            Cause::Credential(_) => "credential_unusable",
            Cause::SelectorsRefused => "ts_unacceptable",
            Cause::SelectorsNotSubset => "ts_not_subset",
            Cause::SelectorsNarrowed(_) => "ts_narrowed",
            Cause::NoInnerAddress => "internal_address_failure",
            Cause::DeletedByGateway | Cause::EndedByGateway(_) => "deleted_by_gateway",
            Cause::LeftBehind => "left_behind",
            Cause::PeerDead => "peer_dead",
            Cause::Exhausted => "exhausted",
            Cause::Expired => "expired",
            Cause::Host(fault) if fault.permission => "permission_denied",
            Cause::Host(_) => "host",
            Cause::TimedOut => "timed_out",
            Cause::Cancelled => "cancelled",
        }
    }

    /// On whose side something must change.
    #[must_use]
    pub const fn side(&self) -> Side {
        match &self.cause {
            Cause::NoRoute(_)
            | Cause::NoAnswer
            | Cause::NoAnswerOverTcp(_)
            | Cause::WentSilent
            | Cause::LeftBehind
            | Cause::PeerDead
            | Cause::TimedOut => Side::Network,
            Cause::NameNotFound(_)
            | Cause::Credential(_)
            | Cause::AuthenticationFailed
            | Cause::EapMethod { .. }
            | Cause::EapExpectation { .. }
            | Cause::Unanswered(_)
            | Cause::RedirectRefused {
                why: RedirectRefusal::NotPermitted,
                ..
            }
            | Cause::GatewayAuthInvalid(AuthMethod::SHARED_KEY_MIC)
            | Cause::IdentityMismatch { .. }
            | Cause::Exhausted
            | Cause::Host(_)
            | Cause::Cancelled => Side::Client,
            Cause::Eap(error) => {
                if is_eap_servers_fault(error) {
                    Side::Gateway
                } else {
                    Side::Client
                }
            }
            Cause::Ikev1Only
            | Cause::NoIkeProposal
            | Cause::NoPostQuantum
            | Cause::PpkNotUsed
            | Cause::NoChildProposal
            | Cause::Protocol(_)
            | Cause::ChildProtocol(_)
            | Cause::Refused(_)
            | Cause::ChildRefused(_)
            | Cause::KeyExchangeNotOffered(_)
            | Cause::Certificate(_)
            | Cause::GatewayAuthInvalid(_)
            | Cause::AuthMethodNotAllowed(_)
            | Cause::Sha1Only
            | Cause::CertificateForPsk(_)
            | Cause::EapKeyMismatch
            | Cause::OneRoundOnly
            | Cause::NotResumed
            | Cause::Redirected(_)
            | Cause::RedirectRefused { .. }
            | Cause::GatewayUnproven
            | Cause::SelectorsRefused
            | Cause::SelectorsNotSubset
            | Cause::SelectorsNarrowed(_)
            | Cause::NoInnerAddress
            | Cause::DeletedByGateway
            | Cause::EndedByGateway(_)
            | Cause::Expired => Side::Gateway,
        }
    }

    /// What happened, as one sentence.
    #[must_use]
    pub fn message(&self) -> String {
        match &self.cause {
            Cause::NameNotFound(name) => format!("The gateway's name {name} has no address."),
            Cause::NoRoute(fault) => format!("This machine has no way to the gateway: {}.", fault.reason),
            Cause::NoAnswer => "The gateway does not answer.".into(),
            Cause::NoAnswerOverTcp(reason) => {
                format!("The gateway does not answer over UDP, and not over TCP either: {reason}.")
            }
            Cause::WentSilent => "The gateway answered at first and then fell silent.".into(),
            Cause::Ikev1Only => "The gateway speaks IKEv1 only.".into(),
            Cause::NoIkeProposal => "The gateway accepts none of the IKE proposals.".into(),
            Cause::NoPostQuantum => {
                "The gateway accepts no post-quantum key exchange, which the profile demands.".into()
            }
            Cause::PpkNotUsed => {
                "The gateway does not use the post-quantum pre-shared key, which the profile demands.".into()
            }
            Cause::Protocol(what) | Cause::ChildProtocol(what) => {
                format!("The gateway's answer breaks the protocol: {what}.")
            }
            Cause::Refused(notify) => format!("The gateway refused the connection with {notify}."),
            Cause::KeyExchangeNotOffered(method) => format!(
                "The gateway insists on the key exchange method {}, which the profile does not offer.",
                KeMethod(*method)
            ),
            Cause::Certificate(error) => format!("The gateway's certificate was rejected: {error}."),
            Cause::IdentityMismatch { expected, received } => {
                format!("The gateway calls itself {received}, but the profile demands {expected}.")
            }
            Cause::GatewayAuthInvalid(AuthMethod::SHARED_KEY_MIC) => {
                "The gateway's proof does not fit the pre-shared key.".into()
            }
            Cause::GatewayAuthInvalid(method) => format!("The gateway's signature ({method}) is not valid."),
            Cause::Sha1Only => {
                "The gateway knows RSA signatures with SHA-1 only, which the profile does not allow.".into()
            }
            Cause::CertificateForPsk(method) => {
                format!(
                    "The gateway proves its identity with {method}, but the profile has a pre-shared key."
                )
            }
            Cause::EapKeyMismatch => "The gateway does not hold the key that EAP agreed on.".into(),
            Cause::Unanswered(PromptKind::Password) => {
                "The gateway asked for the password, and nobody answered.".into()
            }
            Cause::Unanswered(PromptKind::OneTimeCode) => {
                "The gateway asked for a one-time code, and nobody answered.".into()
            }
            Cause::OneRoundOnly => {
                "The gateway lets a client authenticate only once, but the profile has two methods.".into()
            }
            Cause::NotResumed => "The gateway does not resume the connection.".into(),
            Cause::Redirected(redirect) => format!("The gateway sends us to {}.", redirect.to),
            Cause::RedirectRefused {
                to,
                why: RedirectRefusal::NotPermitted,
            } => format!("The gateway sends us to {to}, which the profile does not allow."),
            Cause::RedirectRefused {
                to,
                why: RedirectRefusal::TooMany,
            } => format!("The gateways send us from one to the other without end, the last time to {to}."),
            Cause::AuthMethodNotAllowed(method) => {
                format!("The gateway proves its identity with {method}, which the profile does not allow.")
            }
            Cause::GatewayUnproven => {
                "The gateway did not prove its identity, so it was told nothing.".into()
            }
            Cause::AuthenticationFailed => "The gateway rejected our authentication.".into(),
            Cause::EapMethod { offered, wanted } => {
                format!("The gateway offers {offered}, but the profile is made for {wanted}.")
            }
            Cause::EapExpectation {
                gateway_wants_eap: true,
            } => "The gateway wants EAP, but the profile authenticates without it.".into(),
            Cause::EapExpectation {
                gateway_wants_eap: false,
            } => "The profile authenticates with EAP, but the gateway does not ask for it.".into(),
            Cause::Eap(error) => format!("EAP failed: {error}."),
            Cause::Credential(why) => format!("Our credentials cannot be used: {why}."),
            Cause::NoChildProposal => "The gateway accepts none of the ESP proposals.".into(),
            Cause::SelectorsRefused => "The gateway refuses the networks that the profile asks for.".into(),
            Cause::SelectorsNotSubset => "The gateway answered with networks that were not asked for.".into(),
            Cause::SelectorsNarrowed(missing) => {
                format!("The gateway does not let {missing} through the tunnel, as the profile demands.")
            }
            Cause::NoInnerAddress => "The gateway has no address for this machine.".into(),
            Cause::ChildRefused(notify) => format!("The gateway refused the tunnel with {notify}."),
            Cause::DeletedByGateway => "The gateway ended the connection.".into(),
            Cause::EndedByGateway(notify) => format!("The gateway ended the connection with {notify}."),
            Cause::Expired => {
                "The tunnel's keys have reached the end of their life, and the gateway did not \
                               replace them."
                    .into()
            }
            Cause::LeftBehind => "The network changed, and the gateway cannot follow.".into(),
            Cause::PeerDead => "The gateway no longer answers.".into(),
            Cause::Exhausted => "The tunnel's keys have protected as much data as they may.".into(),
            Cause::Host(fault) => format!("This machine {fault}."),
            Cause::TimedOut => "The connection was not up within the time allowed.".into(),
            Cause::Cancelled => "The connection was cancelled.".into(),
        }
    }

    /// What to change, the likeliest first, each with the side that must do it.
    #[must_use]
    pub fn advice(&self) -> Vec<&'static str> {
        match &self.cause {
            Cause::NameNotFound(_) => vec![
                "Check `gateway.address` in the profile for a typing error.",
                "Check that this machine is online and can resolve other names.",
            ],
            Cause::NoRoute(_) => vec!["Connect this machine to a network."],
            Cause::NoAnswer => vec![
                "Check the gateway's address, and that the gateway runs.",
                "This network may block UDP ports 500 and 4500: try another one, such as a phone's hotspot.",
            ],
            Cause::NoAnswerOverTcp(_) => vec![
                "Check the gateway's address, and that the gateway runs.",
                "This network may block UDP ports 500 and 4500: try another one, such as a phone's hotspot.",
                "Gateway: let it take IKE and ESP over TCP port 4500 too (RFC 9329), or set `gateway.tcp_port` to the port that it has for that.",
            ],
            Cause::WentSilent => vec![
                "This network may block UDP port 4500 or drop IP fragments: try another one.",
                "Gateway: look for this connection attempt in its log; its RADIUS server may not answer.",
            ],
            Cause::Ikev1Only => {
                vec!["Gateway: enable IKEv2 (RFC 7296). IKEv1 is obsolete (RFC 9395) and not spoken here."]
            }
            Cause::NoIkeProposal => vec![
                "Compare `ike.proposals` in the profile with the gateway's Phase 1 settings: encryption, integrity, PRF and key exchange group must have one combination in common.",
            ],
            Cause::NoPostQuantum => vec![
                "Gateway: add a key exchange of `ike.proposals` such as `ke1_mlkem768` to its Phase 1 settings (RFC 9370).",
                "If the gateway cannot, `ike.require_pq = false` connects without; whoever records the traffic may read it once there are quantum computers.",
            ],
            Cause::PpkNotUsed => vec![
                "Gateway: it needs the key under the same `auth.ppk_id` (RFC 8784).",
                "If the gateway cannot, `auth.ppk_required = false` connects without the key.",
            ],
            Cause::NoChildProposal => vec![
                "Compare `child.proposals` in the profile with the gateway's Phase 2 settings: encryption and integrity must have one combination in common.",
            ],
            Cause::KeyExchangeNotOffered(_) => {
                vec!["Add the gateway's key exchange group to `ike.proposals`, if it is one that you accept."]
            }
            Cause::Certificate(error) => certificate_advice(error),
            Cause::IdentityMismatch { .. } => vec![
                "If the received name is the right gateway, write it into `gateway.identity`; if not, somebody else answers in its place.",
            ],
            Cause::GatewayAuthInvalid(AuthMethod::SHARED_KEY_MIC) => {
                vec!["Check the pre-shared key: it must be the same on both sides, octet for octet."]
            }
            Cause::GatewayAuthInvalid(_) => {
                vec!["Gateway: its private key must belong to the certificate that it sends."]
            }
            Cause::Sha1Only => vec![
                "Gateway: let it sign with SHA-256 or better (RFC 7427).",
                "If that is impossible, `gateway.allow_sha1_auth = true` accepts SHA-1 for this profile, which is weak.",
            ],
            Cause::CertificateForPsk(_) => vec![
                "Set `auth.method` to what the gateway's administrator names.",
                "Gateway: use the pre-shared key on both sides.",
            ],
            Cause::Unanswered(_) => vec![
                "Connect again and answer within three minutes; some gateways wait for less than half a minute.",
                "Where there is no terminal, give the answers with --password-file or --password-fd, one on a line.",
            ],
            Cause::RedirectRefused {
                why: RedirectRefusal::NotPermitted,
                ..
            } => vec![
                "If that gateway may be used, write it into `gateway.redirect`; it must prove the same identity.",
            ],
            Cause::RedirectRefused {
                why: RedirectRefusal::TooMany,
                ..
            } => vec!["Gateway: its load balancing sends clients in a circle (RFC 5685, section 7)."],
            Cause::NotResumed | Cause::Redirected(_) => vec![],
            Cause::OneRoundOnly => vec![
                "Set `auth.method` to the one method that the gateway's administrator names.",
                "Gateway: enable several rounds of authentication (RFC 4739).",
            ],
            Cause::EapKeyMismatch => vec![
                "Gateway: its RADIUS server must hand over the session key (MS-MPPE-Send-Key and -Recv-Key).",
            ],
            Cause::AuthMethodNotAllowed(_) | Cause::GatewayUnproven => {
                vec!["Gateway: it must prove itself with a certificate before it asks who we are."]
            }
            Cause::AuthenticationFailed => vec![
                "Check `auth.identity` and the certificate, password or key of the profile.",
                "Gateway: its log says why it rejected them; the user may be unknown, locked or not allowed.",
            ],
            Cause::EapMethod { .. } => {
                vec![
                    "Set `auth.method` to what the gateway offers, or enable the profile's method on the gateway.",
                ]
            }
            Cause::EapExpectation {
                gateway_wants_eap: true,
            } => {
                vec!["Set `auth.method` to the EAP method that the gateway's administrator names."]
            }
            Cause::EapExpectation {
                gateway_wants_eap: false,
            } => {
                vec![
                    "Set `auth.method` to `certificate` or `psk`, or enable EAP for this user on the gateway.",
                ]
            }
            Cause::Eap(error) => eap_advice(error),
            Cause::Credential(_) => vec!["Correct the profile's `auth` section."],
            Cause::SelectorsRefused => {
                vec!["Compare `child.remote_ts` in the profile with the networks that the gateway allows."]
            }
            Cause::SelectorsNarrowed(_) => vec![
                "Write the networks that the gateway allows into `child.remote_ts`, or leave that key out to accept the gateway's choice.",
            ],
            Cause::NoInnerAddress => {
                vec!["Gateway: its address pool may be empty, or none is set for this connection."]
            }
            Cause::Protocol(_) | Cause::ChildProtocol(_) | Cause::SelectorsNotSubset => {
                vec!["Gateway: update its software; report this message if that does not help."]
            }
            Cause::Refused(_) | Cause::ChildRefused(_) => vec!["Gateway: its log says why."],
            Cause::DeletedByGateway | Cause::EndedByGateway(_) => {
                vec!["Connect again. Gateway: its log says why it ended the connection."]
            }
            Cause::PeerDead | Cause::LeftBehind => vec!["Check the network, then connect again."],
            Cause::Exhausted | Cause::Expired => vec!["Connect again: that makes new keys."],
            Cause::Host(fault) if fault.permission => vec![
                "Run the command with sudo, or give the program the right once: sudo setcap cap_net_admin+ep $(command -v peregrine).",
            ],
            Cause::Host(_) => vec!["The message above says what this machine refused."],
            Cause::TimedOut => vec!["Allow more time with --timeout, or see which step took so long."],
            Cause::Cancelled => vec![],
        }
    }

    /// The gateway's own word for it, with its number.
    #[must_use]
    pub fn notify(&self) -> Option<String> {
        let notify = match &self.cause {
            Cause::NoIkeProposal | Cause::NoChildProposal => NotifyType::NO_PROPOSAL_CHOSEN,
            Cause::AuthenticationFailed => NotifyType::AUTHENTICATION_FAILED,
            Cause::SelectorsRefused => NotifyType::TS_UNACCEPTABLE,
            Cause::KeyExchangeNotOffered(_) => NotifyType::INVALID_KE_PAYLOAD,
            Cause::Refused(notify) | Cause::ChildRefused(notify) => *notify,
            _ => return None,
        };
        Some(notify.to_string())
    }
}

const fn eap_code(error: &EapError) -> &'static str {
    match error {
        EapError::Refused | EapError::MsChap { .. } => "authentication_failed",
        EapError::MethodOffered { .. } | EapError::InnerMethodOffered { .. } => "eap_method_mismatch",
        EapError::ServerCertificate(CertError::Revoked { .. }) => "eap_server_certificate_revoked",
        EapError::ServerCertificate(CertError::RevocationUnknown { .. }) => "eap_server_revocation_unknown",
        EapError::ServerCertificate(_) => "eap_server_certificate_rejected",
        EapError::TlsAlert(_) => "eap_tls_alert",
        EapError::Tls(_) => "eap_tls_failed",
        EapError::ServerUnproven | EapError::Unbound => "eap_server_unproven",
        EapError::EarlySuccess | EapError::Malformed(_) | EapError::TooManyRounds => "protocol_violation",
        EapError::Credential(_) => "credential_unusable",
    }
}

const fn is_eap_servers_fault(error: &EapError) -> bool {
    match error {
        EapError::ServerCertificate(_)
        | EapError::Tls(_)
        | EapError::ServerUnproven
        | EapError::Unbound
        | EapError::EarlySuccess
        | EapError::Malformed(_)
        | EapError::TooManyRounds => true,
        EapError::Refused
        | EapError::MethodOffered { .. }
        | EapError::InnerMethodOffered { .. }
        | EapError::TlsAlert(_)
        | EapError::MsChap { .. }
        | EapError::Credential(_) => false,
    }
}

fn eap_advice(error: &EapError) -> Vec<&'static str> {
    match error {
        EapError::Refused | EapError::MsChap { .. } => vec![
            "Check the user name and the password.",
            "Gateway: the account may be locked, expired or not allowed to connect.",
        ],
        EapError::TlsAlert(_) => vec![
            "Check that the profile's certificate is valid and was issued by an authority that the gateway accepts.",
            "Gateway: the log of its EAP or RADIUS server says what it disliked.",
        ],
        EapError::ServerCertificate(
            error @ (CertError::Revoked { .. } | CertError::RevocationUnknown { .. }),
        ) => certificate_advice(error),
        EapError::ServerCertificate(_) => vec![
            "If the EAP server has a certificate of its own, name it in `auth.aaa_identity` and its authority in `auth.aaa_ca`.",
            "Gateway: the EAP server's certificate must be valid and carry that name.",
        ],
        EapError::ServerUnproven => {
            vec!["Check the password: the server could not prove that it knows the same one."]
        }
        EapError::Unbound => vec![
            "Gateway: somebody may stand between the user and the RADIUS server; PEAP and its inner method must end in the same place.",
        ],
        EapError::InnerMethodOffered { .. } => vec![
            "Set `auth.inner` to what the EAP server offers in its tunnel, or enable the profile's method on the server.",
        ],
        EapError::Credential(_) => vec!["Correct the profile's `auth` section."],
        EapError::MethodOffered { .. } => {
            vec![
                "Set `auth.method` to what the gateway offers, or enable the profile's method on the gateway.",
            ]
        }
        EapError::Tls(_) | EapError::EarlySuccess | EapError::Malformed(_) | EapError::TooManyRounds => {
            vec!["Gateway: look at the log of its EAP or RADIUS server."]
        }
    }
}

fn certificate_advice(error: &CertError) -> Vec<&'static str> {
    match error {
        CertError::UnknownIssuer { .. } => {
            vec!["If this is the right gateway, put its authority's certificate into `gateway.ca`."]
        }
        CertError::Expired { .. } => vec![
            "Gateway: renew the certificate.",
            "Check this machine's date and time.",
        ],
        CertError::Revoked { .. } => vec![
            "Do not connect: somebody else may hold the key. Ask the gateway's administrator by another way.",
            "Gateway: it needs a new key and a new certificate.",
        ],
        CertError::RevocationUnknown { .. } => vec![
            "Check that this network lets plain HTTP through to the addresses above.",
            "Gateway: let it send an OCSP response itself (RFC 4806), which works in every network.",
            "If nobody can tell, `gateway.revocation = \"soft\"` refuses only what is known to be revoked.",
        ],
        CertError::NotYetValid { .. } => vec![
            "Check this machine's date and time.",
            "Gateway: the certificate begins to be valid only later.",
        ],
        CertError::NameMismatch { .. } => vec![
            "If one of its names is the right gateway, write it into `gateway.identity`.",
            "Gateway: its certificate needs the demanded name as subjectAltName.",
        ],
        CertError::NotForServer { .. } => {
            vec!["Gateway: it must use a certificate for servers; one for clients could be any user's."]
        }
        CertError::NoCertificate => {
            vec!["Gateway: it must send its certificate (strongSwan: send_cert = always)."]
        }
        _ => vec!["Gateway: it needs a certificate that follows RFC 4945."],
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message())
    }
}

/// Failures by what to do about them: what the exit status of `peregrine` tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The gateway cannot be reached.
    Unreachable,
    /// Phase 1, the IKE SA, failed.
    Phase1,
    /// Phase 2, the Child SA, failed.
    Phase2,
    /// The authentication failed, on either side.
    Authentication,
    /// This machine refused.
    Host,
    /// It was not up in time.
    TimedOut,
    /// The user took it back.
    Cancelled,
}

impl Failure {
    /// What kind of failure it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match &self.cause {
            Cause::NameNotFound(_) | Cause::NoRoute(_) | Cause::NoAnswer | Cause::NoAnswerOverTcp(_) => {
                Kind::Unreachable
            }
            Cause::Ikev1Only
            | Cause::NoIkeProposal
            | Cause::NoPostQuantum
            | Cause::NotResumed
            | Cause::Redirected(_)
            | Cause::RedirectRefused { .. }
            | Cause::KeyExchangeNotOffered(_) => Kind::Phase1,
            Cause::NoChildProposal
            | Cause::SelectorsRefused
            | Cause::SelectorsNotSubset
            | Cause::SelectorsNarrowed(_)
            | Cause::NoInnerAddress
            | Cause::ChildRefused(_)
            | Cause::ChildProtocol(_) => Kind::Phase2,
            Cause::Certificate(_)
            | Cause::IdentityMismatch { .. }
            | Cause::GatewayAuthInvalid(_)
            | Cause::AuthMethodNotAllowed(_)
            | Cause::Sha1Only
            | Cause::CertificateForPsk(_)
            | Cause::EapKeyMismatch
            | Cause::Unanswered(_)
            | Cause::OneRoundOnly
            | Cause::GatewayUnproven
            | Cause::AuthenticationFailed
            | Cause::PpkNotUsed
            | Cause::EapMethod { .. }
            | Cause::EapExpectation { .. }
            | Cause::Eap(_)
            | Cause::Credential(_) => Kind::Authentication,
            Cause::Host(_) => Kind::Host,
            Cause::TimedOut => Kind::TimedOut,
            Cause::Cancelled => Kind::Cancelled,
            Cause::Protocol(_)
            | Cause::Refused(_)
            | Cause::WentSilent
            | Cause::DeletedByGateway
            | Cause::EndedByGateway(_)
            | Cause::Expired
            | Cause::LeftBehind
            | Cause::PeerDead
            | Cause::Exhausted => match self.phase() {
                Phase::Network => Kind::Unreachable,
                Phase::Phase1 => Kind::Phase1,
                Phase::Phase2 => Kind::Phase2,
                Phase::Host => Kind::Host,
            },
        }
    }
}

impl Serialize for Failure {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_struct("Failure", 8)?;
        object.serialize_field("kind", &self.kind())?;
        object.serialize_field("phase", &self.phase())?;
        object.serialize_field("step", self.step())?;
        object.serialize_field("code", self.code())?;
        object.serialize_field("side", &self.side())?;
        object.serialize_field("message", &self.message())?;
        object.serialize_field("advice", &self.advice())?;
        object.serialize_field("notify", &self.notify())?;
        object.end()
    }
}
