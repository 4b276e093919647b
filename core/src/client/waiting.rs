//! Packets that wait for the next SA.

use std::collections::VecDeque;
use std::time::Duration;

use crate::timer::Instant;

/// No more packets wait, in number and in octets.
const MAX_PACKETS: usize = 32;
const MAX_OCTETS: usize = 64 * 1024;
/// What is older is of no use: its sender has sent it again, or has given up.
const MAX_AGE: Duration = Duration::from_secs(3);

/// The newest packets that there was no SA for, the oldest first.
#[derive(Default)]
pub(super) struct Waiting {
    packets: VecDeque<(Instant, Box<[u8]>)>,
    octets: usize,
}

impl Waiting {
    /// Lets a packet wait; how many others are dropped for it, or for their age.
    pub(super) fn push(&mut self, packet: Box<[u8]>, now: Instant) -> u64 {
        if packet.len() > MAX_OCTETS {
            return 1;
        }
        self.octets += packet.len();
        self.packets.push_back((now, packet));
        let mut dropped = 0;
        while self.packets.len() > MAX_PACKETS || self.octets > MAX_OCTETS || self.is_stale(now) {
            self.pop();
            dropped += 1;
        }
        dropped
    }

    /// The oldest.
    pub(super) fn pop(&mut self) -> Option<Box<[u8]>> {
        let (_, packet) = self.packets.pop_front()?;
        self.octets -= packet.len();
        Some(packet)
    }

    /// Drops what is too old; how many packets that were.
    pub(super) fn age(&mut self, now: Instant) -> u64 {
        let mut dropped = 0;
        while self.is_stale(now) {
            self.pop();
            dropped += 1;
        }
        dropped
    }

    pub(super) fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    fn is_stale(&self, now: Instant) -> bool {
        self.packets
            .front()
            .is_some_and(|(since, _)| now >= *since + MAX_AGE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::new(Duration::from_secs(seconds))
    }

    #[test]
    fn the_newest_wait_in_their_order() {
        let mut waiting = Waiting::default();
        for number in 0..40 {
            assert_eq!(waiting.push(Box::new([number]), at(1)), u64::from(number >= 32));
        }
        assert_eq!(waiting.pop().as_deref(), Some(&[8][..]));
        assert_eq!(waiting.pop().as_deref(), Some(&[9][..]));
    }

    #[test]
    fn they_are_bounded_in_octets_and_age() {
        let mut waiting = Waiting::default();
        for _ in 0..4 {
            assert_eq!(waiting.push(Box::new([0; 16_384]), at(1)), 0);
        }
        assert_eq!(waiting.push(Box::new([1]), at(2)), 1);
        assert_eq!(
            waiting.push(Box::new([0; 65_537]), at(2)),
            1,
            "it alone is too much"
        );
        assert_eq!(waiting.age(at(3)), 0);
        assert_eq!(waiting.age(at(4)), 3);
        assert_eq!(waiting.push(Box::new([2]), at(5)), 1);
        assert_eq!(waiting.pop().as_deref(), Some(&[2][..]));
        assert!(waiting.is_empty());
        assert_eq!(waiting.octets, 0);
    }
}
