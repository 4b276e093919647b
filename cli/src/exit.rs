//! The exit status. Its numbers are a stable interface.

use std::io::Write as _;
use std::process::ExitCode;

use peregrine_core::command::{Failure, Kind};
use serde::Deserialize as _;
use serde_json::Value;

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

impl From<Kind> for Exit {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Unreachable => Self::Unreachable,
            Kind::Phase1 => Self::Phase1,
            Kind::Phase2 => Self::Phase2,
            Kind::Authentication => Self::Authentication,
            Kind::Host => Self::Host,
            Kind::TimedOut => Self::TimedOut,
            Kind::Cancelled => Self::Unexpected,
        }
    }
}

impl From<&Failure> for Exit {
    fn from(failure: &Failure) -> Self {
        failure.kind().into()
    }
}

impl Exit {
    /// Of a failure as the service tells it.
    pub(crate) fn of(failure: &Value) -> Self {
        Kind::deserialize(&failure["kind"]).map_or(Self::Unexpected, Self::from)
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

/// Tells what this machine refuses.
pub(crate) fn host(message: &str) -> Exit {
    complain(message);
    Exit::Host
}

/// Tells what took too long.
pub(crate) fn late(message: &str) -> Exit {
    complain(message);
    Exit::TimedOut
}

fn complain(message: &str) {
    // Who closed the standard error does not want to know.
    let _unheard = writeln!(std::io::stderr(), "peregrine: {message}");
}

#[cfg(test)]
mod tests {
    use peregrine_core::command::{Cause, HostFault, Stage};
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
