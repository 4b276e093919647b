//! `CLOCK_BOOTTIME`: monotonic, and it counts suspend.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{self, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use nix::time::{ClockId, clock_gettime};
use peregrine_core::command::HostFault;
use peregrine_core::timer::Instant;
use tokio::io::unix::AsyncFd;

use super::{READING, fault, watch};
use crate::clock;

/// The present instant since boot, sleep included.
#[must_use]
pub(super) fn now() -> Instant {
    // The clock exists since Linux 2.6.39 and its reading cannot fail; zero would only make timers late.
    Instant::new(
        clock_gettime(ClockId::CLOCK_BOOTTIME)
            .map(Duration::from)
            .unwrap_or_default(),
    )
}

/// How long the machine has slept since it was booted: what the one clock counts and the other does not.
#[must_use]
pub(super) fn slept() -> Duration {
    let awake = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or_else(|_| Duration::MAX, Duration::from);
    now().since_origin().saturating_sub(awake)
}

/// A `timerfd` on `CLOCK_BOOTTIME`: unlike a runtime's timers, it does not stand still while the machine sleeps.
#[derive(Debug)]
pub struct Alarm {
    timer: TimerFd,
    /// The same timer, as something to wait for.
    expiry: AsyncFd<File>,
    wanted: Option<Instant>,
    /// What the kernel's timer is set to: not later than what is wanted. With every packet that is sent the next
    /// keepalive is due a little later, and that is not worth a system call each time.
    set_to: Option<Instant>,
}

impl Alarm {
    /// An alarm that is not set.
    pub(super) fn new() -> Result<Self, HostFault> {
        let timer = TimerFd::new(
            timerfd::ClockId::CLOCK_BOOTTIME,
            TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC,
        )
        .map_err(|error| fault("make a timer", error))?;
        let file = timer.as_fd().try_clone_to_owned().map(File::from);
        let expiry = file
            .and_then(|it| watch(it, READING))
            .map_err(|error| fault("watch a timer", error))?;
        Ok(Self {
            timer,
            expiry,
            wanted: None,
            set_to: None,
        })
    }
}

impl Alarm {
    fn program(&mut self, at: Option<Instant>) {
        let done = match at {
            None => self.timer.unset(),
            Some(at) => {
                // Zero would disarm the timer; an instant in the past rings at once.
                let at = at.since_origin().max(Duration::from_nanos(1));
                self.timer.set(
                    Expiration::OneShot(TimeSpec::from(at)),
                    TimerSetTimeFlags::TFD_TIMER_ABSTIME,
                )
            }
        };
        match done {
            Ok(()) => self.set_to = at,
            Err(error) => tracing::error!(%error, "a timer could not be set"),
        }
    }
}

impl clock::Alarm for Alarm {
    fn set(&mut self, at: Option<Instant>) {
        self.wanted = at;
        let rings_before = match (self.set_to, at) {
            (Some(set_to), Some(at)) => set_to <= at,
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        if !rings_before {
            self.program(at);
        }
    }

    async fn ring(&mut self) {
        loop {
            let Ok(mut ready) = self.expiry.readable().await else {
                return;
            };
            let mut expirations = [0; 8];
            match self.expiry.get_ref().read(&mut expirations) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                Err(_) => return,
                Ok(_) => {
                    self.set_to = None;
                    match self.wanted {
                        Some(wanted) if wanted > now() => self.program(Some(wanted)),
                        _ => {
                            self.wanted = None;
                            return;
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Alarm as _;

    #[tokio::test]
    async fn an_alarm_rings_at_its_time_and_once() {
        let mut alarm = Alarm::new().unwrap();
        let start = now();
        let at = start + Duration::from_millis(20);
        alarm.set(Some(at));
        alarm.ring().await;
        assert!(now() >= at, "rang early");
        alarm.set(Some(start)); // in the past
        alarm.ring().await;
        let silence = tokio::time::timeout(Duration::from_millis(30), alarm.ring()).await;
        assert!(silence.is_err(), "rang twice");
    }

    #[tokio::test]
    async fn an_alarm_that_is_put_off_rings_at_the_later_time() {
        let mut alarm = Alarm::new().unwrap();
        let start = now();
        for ms in [10, 20, 30, 40] {
            alarm.set(Some(start + Duration::from_millis(ms)));
        }
        alarm.ring().await;
        assert!(now() >= start + Duration::from_millis(40), "rang early");
        let silence = tokio::time::timeout(Duration::from_millis(30), alarm.ring()).await;
        assert!(silence.is_err(), "rang twice");
    }

    #[tokio::test]
    async fn an_alarm_that_is_taken_back_does_not_ring() {
        let mut alarm = Alarm::new().unwrap();
        alarm.set(Some(now() + Duration::from_millis(5)));
        alarm.set(None);
        assert!(
            tokio::time::timeout(Duration::from_millis(30), alarm.ring())
                .await
                .is_err()
        );
        alarm.set(Some(now() + Duration::from_secs(3600)));
        alarm.set(Some(now() + Duration::from_millis(5)));
        assert!(
            tokio::time::timeout(Duration::from_secs(2), alarm.ring())
                .await
                .is_ok()
        );
    }
}
