//! Message IDs, retransmission and the request window of one (RFC 7296, sections 2.1 to 2.3).

use std::time::Duration;

use crate::rng::Rng;
use crate::timer::Instant;

/// The wait before the first retransmission.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// No wait is longer.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// The same two after a change of the network, when the user waits: a loss there costs little time.
const FIRST_QUICK_WAIT: Duration = Duration::from_millis(300);
const LONGEST_QUICK_WAIT: Duration = Duration::from_secs(2);

/// When an unanswered request is sent again: 0.5 s, then 1.8 times longer each time up to 10 s, each wait shifted by
/// up to a tenth either way so that many clients do not speak in chorus.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backoff {
    started: Instant,
    due: Instant,
    wait: Duration,
    longest: Duration,
    transmissions: u32,
}

impl Backoff {
    /// The request was sent for the first time.
    pub(crate) fn start(now: Instant, rng: &mut Rng) -> Self {
        Self::waiting(FIRST_WAIT, LONGEST_WAIT, now, rng)
    }

    /// The same on a network that has just changed: 0.3 s, then 1.8 times longer up to 2 s.
    pub(crate) fn quick(now: Instant, rng: &mut Rng) -> Self {
        Self::waiting(FIRST_QUICK_WAIT, LONGEST_QUICK_WAIT, now, rng)
    }

    /// The same for a request that is sent in another form after `wait`.
    pub(crate) fn probe(wait: Duration, now: Instant, rng: &mut Rng) -> Self {
        Self::waiting(wait, LONGEST_WAIT, now, rng)
    }

    /// From now on in quick succession, for what has waited since it was first sent.
    pub(crate) fn hurry(&mut self, now: Instant, rng: &mut Rng) {
        *self = Self {
            started: self.started,
            transmissions: self.transmissions.saturating_add(1),
            ..Self::quick(now, rng)
        };
    }

    fn waiting(wait: Duration, longest: Duration, now: Instant, rng: &mut Rng) -> Self {
        Self {
            started: now,
            due: now + jitter(wait, rng),
            wait,
            longest,
            transmissions: 1,
        }
    }

    /// The request was sent again.
    pub(crate) fn again(&mut self, now: Instant, rng: &mut Rng) {
        self.wait = self.wait.mul_f64(1.8).min(self.longest);
        self.due = now + jitter(self.wait, rng);
        self.transmissions = self.transmissions.saturating_add(1);
    }

    pub(crate) fn due(&self) -> Instant {
        self.due
    }

    pub(crate) fn transmissions(&self) -> u32 {
        self.transmissions
    }

    pub(crate) fn started(&self) -> Instant {
        self.started
    }
}

pub(crate) fn jitter(wait: Duration, rng: &mut Rng) -> Duration {
    let tenth = u64::try_from(wait.as_micros() / 10).unwrap_or(0);
    wait.saturating_sub(Duration::from_micros(tenth)) + Duration::from_micros(rng.below(2 * tenth + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_cap_with_a_tenth_of_jitter() {
        let mut rng = Rng::new([7; 32]);
        let mut now = Instant::default();
        let mut backoff = Backoff::start(now, &mut rng);
        let mut expected = 0.5;
        for _ in 0..12 {
            let wait = backoff.due().since(now).as_secs_f64();
            assert!(
                (expected * 0.9..=expected * 1.1).contains(&wait),
                "{wait} for {expected}"
            );
            now = backoff.due();
            backoff.again(now, &mut rng);
            expected = (expected * 1.8_f64).min(10.0);
        }
        assert_eq!(backoff.transmissions(), 13);
        assert_eq!(backoff.started(), Instant::default());
    }
}
