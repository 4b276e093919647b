//! Why a connection failed: in which phase, at which step, on whose side, and what to do about it.

use std::fmt;

use serde::Serialize;

use crate::command::Stage;
use crate::eap::EapError;
use crate::pki::CertError;
use crate::wire::iana::{AuthMethod, EapType, NotifyType};

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

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The gateway's name has no address, or could not be looked up.
    NameNotFound(String),
    /// No address of the gateway can be reached from here: no route, or no network.
    NoRoute(HostFault),
    /// Nothing answered at any address within the time allowed.
    NoAnswer,
    /// The gateway answered IKE_SA_INIT and then fell silent.
    WentSilent,
    /// The gateway answered in IKEv1, or says that it does not speak version 2.
    Ikev1Only,
    /// The gateway refuses all our IKE proposals (NO_PROPOSAL_CHOSEN in IKE_SA_INIT).
    NoIkeProposal,
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
    /// The gateway wanted its EAP round before proving its identity.
    GatewayUnproven,
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
    /// The gateway ended the connection (Delete).
    DeletedByGateway,
    /// The gateway no longer answers.
    PeerDead,
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// How far the attempt had come.
    pub stage: Stage,
    /// What went wrong.
    #[serde(skip)]
    pub cause: Cause,
}
