//! The exit status. Its numbers are a stable interface.

use std::io::Write as _;
use std::process::ExitCode;

use peregrine_core::command::{Cause, Failure, Phase};

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    Done = 0,
    Unexpected = 1,
    Usage = 2,
    Unreachable = 3,
    Phase1 = 4,
    Phase2 = 5,
    Authentication = 6,
    Host = 7,
    TimedOut = 8,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

impl From<&Failure> for Exit {
    fn from(failure: &Failure) -> Self {
        match &failure.cause {
            Cause::NameNotFound(_) | Cause::NoRoute(_) | Cause::NoAnswer | Cause::NoAnswerOverTcp(_) => {
                Self::Unreachable
            }
            Cause::Ikev1Only
            | Cause::NoIkeProposal
            | Cause::NoPostQuantum
            | Cause::NotResumed
            | Cause::Redirected(_)
            | Cause::RedirectRefused { .. }
            | Cause::KeyExchangeNotOffered(_) => Self::Phase1,
            Cause::NoChildProposal
            | Cause::SelectorsRefused
            | Cause::SelectorsNotSubset
            | Cause::SelectorsNarrowed(_)
            | Cause::NoInnerAddress
            | Cause::ChildRefused(_)
            | Cause::ChildProtocol(_) => Self::Phase2,
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
            | Cause::Credential(_) => Self::Authentication,
            Cause::Host(_) => Self::Host,
            Cause::TimedOut => Self::TimedOut,
            Cause::Cancelled => Self::Unexpected,
            Cause::Protocol(_)
            | Cause::Refused(_)
            | Cause::WentSilent
            | Cause::DeletedByGateway
            | Cause::EndedByGateway(_)
            | Cause::Expired
            | Cause::LeftBehind
            | Cause::PeerDead
            | Cause::Exhausted => match failure.phase() {
                Phase::Network => Self::Unreachable,
                Phase::Phase1 => Self::Phase1,
                Phase::Phase2 => Self::Phase2,
                Phase::Host => Self::Host,
            },
        }
    }
}

/// Tells what is wrong with the arguments or the profile.
pub(crate) fn usage(message: &str) -> Exit {
    complain(message);
    Exit::Usage
}

/// Tells what nobody expects.
pub(crate) fn unexpected(message: &str) -> Exit {
    complain(message);
    Exit::Unexpected
}

fn complain(message: &str) {
    // Who closed the standard error does not want to know.
    let _unheard = writeln!(std::io::stderr(), "peregrine: {message}");
}

#[cfg(test)]
mod tests {
    use peregrine_core::command::{HostFault, Stage};
    use peregrine_core::wire::iana::{AuthMethod, NotifyType};

    use super::*;

    fn code(stage: Stage, cause: Cause) -> u8 {
        Exit::from(&Failure { stage, cause }) as u8
    }

    fn fault() -> HostFault {
        HostFault {
            action: "x".into(),
            reason: "y".into(),
            permission: true,
        }
    }

    #[test]
    fn every_kind_of_failure_has_its_documented_number() {
        assert_eq!(code(Stage::Resolve, Cause::NameNotFound("x".into())), 3);
        assert_eq!(code(Stage::Reach, Cause::NoRoute(fault())), 3);
        assert_eq!(code(Stage::IkeSaInit, Cause::NoAnswer), 3);
        assert_eq!(code(Stage::Reach, Cause::Ikev1Only), 4);
        assert_eq!(code(Stage::Reach, Cause::NoIkeProposal), 4);
        assert_eq!(code(Stage::IkeSaInit, Cause::NoPostQuantum), 4);
        assert_eq!(code(Stage::IkeIntermediate, Cause::WentSilent), 4);
        assert_eq!(code(Stage::IkeAuth, Cause::WentSilent), 4);
        assert_eq!(code(Stage::IkeAuth, Cause::Protocol("x".into())), 4);
        assert_eq!(code(Stage::ChildSa, Cause::Protocol("x".into())), 5);
        assert_eq!(code(Stage::ChildSa, Cause::NoChildProposal), 5);
        assert_eq!(code(Stage::IkeAuth, Cause::SelectorsRefused), 5);
        assert_eq!(code(Stage::ChildSa, Cause::ChildRefused(NotifyType(35))), 5);
        assert_eq!(code(Stage::IkeAuth, Cause::AuthenticationFailed), 6);
        assert_eq!(code(Stage::IkeSaInit, Cause::PpkNotUsed), 6);
        assert_eq!(code(Stage::IkeAuth, Cause::GatewayAuthInvalid(AuthMethod(2))), 6);
        assert_eq!(code(Stage::Apply, Cause::Host(fault())), 7);
        assert_eq!(code(Stage::Eap, Cause::TimedOut), 8);
        assert_eq!(code(Stage::Reach, Cause::Cancelled), 1);
        assert_eq!(code(Stage::Apply, Cause::PeerDead), 3);
        assert_eq!(code(Stage::Apply, Cause::DeletedByGateway), 4);
    }
}
