//! Time as a parameter.

use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

/// A point on the host's clock: the time since an origin of the host's own choosing, usually its boot.
///
/// The clock must never go backwards and must count the time that the machine sleeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(Duration);

impl Instant {
    /// The instant `since_origin` after the clock's origin.
    #[must_use]
    pub const fn new(since_origin: Duration) -> Self {
        Self(since_origin)
    }

    /// How long after `earlier` this instant is; zero when it is not after it.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// The time since the clock's origin.
    #[must_use]
    pub const fn since_origin(self) -> Duration {
        self.0
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    fn add(self, by: Duration) -> Self {
        Self(self.0.saturating_add(by))
    }
}

impl Sub<Duration> for Instant {
    type Output = Self;

    fn sub(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(by))
    }
}

/// Wall-clock time: the time since 1970-01-01T00:00:00Z, without leap seconds.
///
/// Shown and serialized as RFC 3339 in UTC, to the second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct UnixTime(pub Duration);

impl UnixTime {
    /// Whole seconds since 1970.
    #[must_use]
    pub const fn as_secs(self) -> u64 {
        self.0.as_secs()
    }
}

impl fmt::Display for UnixTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = i64::try_from(self.0.as_secs()).unwrap_or(i64::MAX);
        let timestamp = jiff::Timestamp::from_second(seconds).unwrap_or(jiff::Timestamp::MAX);
        write!(f, "{timestamp:.0}")
    }
}

impl serde::Serialize for UnixTime {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Why the client wants to be called again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Timer {
    /// The connection attempt has taken as long as it may.
    AttemptDeadline,
    /// The next address of the gateway may be tried beside the present one.
    NextCandidate,
    /// An unanswered request is due to be sent again (RFC 7296, section 2.1).
    Retransmit,
    /// An unauthenticated refusal has stood long enough without a better answer (RFC 7296, section 2.21.1).
    Refused,
    /// Whether a certificate was revoked must be known soon, or another one is asked.
    Revocation,
    /// The gateway has been silent: ask whether it lives (RFC 7296, section 2.4).
    Liveness,
    /// The NAT mapping needs a packet (RFC 3948, section 4).
    NatKeepalive,
    /// How large a datagram gets through is to be found out, or again (RFC 8899).
    PathMtu,
    /// An SA is due to be replaced or forgotten (RFC 7296, section 2.8).
    Rekey,
    /// The lifetime of the authentication ends soon (RFC 4478).
    Reauthenticate,
    /// A ticket of the gateway's is needed (RFC 5723).
    Ticket,
    /// The next attempt to connect again.
    Reconnect,
    /// A path that was left is not needed any more.
    Release,
    /// The gateway has had its time to confirm our Delete.
    CloseDeadline,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wall_clock_time_is_shown_as_rfc_3339() {
        assert_eq!(
            UnixTime(Duration::from_millis(1_795_228_800_999)).to_string(),
            "2026-11-21T02:40:00Z"
        );
        assert_eq!(UnixTime::default().to_string(), "1970-01-01T00:00:00Z");
    }

    #[test]
    fn instants_saturate() {
        let early = Instant::new(Duration::from_secs(1));
        let late = Instant::new(Duration::from_secs(3));
        assert_eq!(late.since(early), Duration::from_secs(2));
        assert_eq!(early.since(late), Duration::ZERO);
        assert_eq!(early - Duration::from_secs(9), Instant::default());
        assert_eq!(late + Duration::MAX, Instant::new(Duration::MAX));
    }
}
