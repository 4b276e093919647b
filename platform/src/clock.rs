//! Time and entropy.

use std::future::Future;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use peregrine_core::command::HostFault;
use peregrine_core::timer::{Instant, UnixTime};

/// A clock that never goes backwards and counts the time that the machine sleeps.
pub trait Clock {
    /// Something that rings at an instant of this clock.
    type Alarm: Alarm;

    /// The present instant.
    fn now(&self) -> Instant;

    /// The wall clock's time.
    fn unix_time(&self) -> UnixTime;

    /// How long the machine has slept, from some beginning on: only its growth means something.
    fn slept(&self) -> Duration;

    /// A new alarm that is not set.
    ///
    /// # Errors
    /// The operating system has no timer for us.
    fn alarm(&self) -> Result<Self::Alarm, HostFault>;
}

/// Something that rings at an instant. An alarm whose time passed while the machine slept rings on waking.
pub trait Alarm {
    /// Rings at `at` and no longer at an earlier set time; never when there is none.
    fn set(&mut self, at: Option<Instant>);

    /// Waits until the set time has come. May ring early, never late. Dropping the future loses nothing.
    fn ring(&mut self) -> impl Future<Output = ()>;
}

/// The wall clock's time, from the standard library.
#[must_use]
pub fn unix_time() -> UnixTime {
    UnixTime(
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or(Duration::ZERO),
    )
}

/// 32 octets of the operating system's entropy.
///
/// # Errors
/// The operating system gives none.
pub fn seed() -> Result<[u8; 32], HostFault> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|error| HostFault {
        action: "read entropy for keys".to_owned(),
        reason: error.to_string(),
        permission: false,
    })?;
    Ok(seed)
}
