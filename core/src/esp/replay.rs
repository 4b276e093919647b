//! The anti-replay window, with 32-bit and with extended sequence numbers (RFC 4303, sections 3.4.3 and A2; the
//! ring of words is RFC 6479's).

use super::Discard;

/// How many sequence numbers below the highest one are still told apart. Gateways that spread one SA over
/// several cores reorder by hundreds of packets.
pub const WINDOW: u64 = 8192;

/// A window that starts anywhere in a word touches one word more than it fills.
const WORDS: usize = WINDOW as usize / 64 + 1;

/// Which sequence numbers were authenticated already.
#[derive(Debug)]
pub(super) struct Window {
    extended: bool,
    /// The highest sequence number authenticated so far: T of RFC 4303. Zero is never sent, so it means none.
    top: u64,
    /// Bit `n % 64` of word `n / 64 % WORDS` says whether `n` was seen. Words of numbers above `top` are stale.
    seen: [u64; WORDS],
}

impl Window {
    pub(super) const fn new(extended: bool) -> Self {
        Self {
            extended,
            top: 0,
            seen: [0; WORDS],
        }
    }

    pub(super) const fn top(&self) -> u64 {
        self.top
    }

    /// The sequence number of a packet that carries `low`, if it may still come. The window does not move:
    /// nothing is authentic yet.
    ///
    /// # Errors
    /// [`Discard::Replay`] for a number that was seen, [`Discard::TooOld`] for one that left the window, or that
    /// no sender uses: zero, and beyond the last.
    pub(super) fn check(&self, low: u32) -> Result<u64, Discard> {
        let sequence = if self.extended {
            self.extend(low)
        } else {
            Some(u64::from(low))
        };
        let sequence = sequence
            .filter(|sequence| *sequence != 0)
            .ok_or(Discard::TooOld)?;
        if sequence > self.top {
            return Ok(sequence);
        }
        if self.top - sequence >= WINDOW {
            return Err(Discard::TooOld);
        }
        let (word, bit) = place(sequence);
        match self.seen.get(word) {
            Some(seen) if seen & bit == 0 => Ok(sequence),
            Some(_) | None => Err(Discard::Replay),
        }
    }

    /// Marks a number that [`Self::check`] gave out as seen, now that its packet is authentic.
    pub(super) fn commit(&mut self, sequence: u64) {
        if sequence > self.top {
            // The words between the old top's and the new top's held numbers that have left the window.
            let steps = (sequence / 64 - self.top / 64).min(WORDS as u64);
            for step in 0..steps {
                let (word, _) = place(sequence - step * 64);
                if let Some(seen) = self.seen.get_mut(word) {
                    *seen = 0;
                }
            }
            self.top = sequence;
        }
        let (word, bit) = place(sequence);
        if let Some(seen) = self.seen.get_mut(word) {
            *seen |= bit;
        }
    }

    /// The only 64-bit number with the low half `low` from the window's bottom to less than 2^32 above it. Both
    /// cases of RFC 4303, section A2.2, are this one; `None` where they leave the 64-bit numbers.
    fn extend(&self, low: u32) -> Option<u64> {
        let bottom = i128::from(self.top) - i128::from(WINDOW - 1);
        // Truncation keeps what modulo 2^32 keeps, also of a bottom below zero.
        let above = low.wrapping_sub(bottom as u32);
        u64::try_from(bottom + i128::from(above)).ok()
    }
}

fn place(sequence: u64) -> (usize, u64) {
    ((sequence / 64 % WORDS as u64) as usize, 1 << (sequence % 64))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    /// The same window as a set, and RFC 4303's pseudo-code (section A2.3) to the letter.
    struct Model {
        extended: bool,
        top: u64,
        seen: HashSet<u64>,
    }

    impl Model {
        fn check(&self, low: u32) -> Result<u64, Discard> {
            let (top_high, top_low) = ((self.top >> 32) as u32, self.top as u32);
            let window = WINDOW as u32;
            let bottom_low = top_low.wrapping_sub(window - 1);
            let high = match (self.extended, top_low >= window - 1) {
                (false, _) => Some(0),
                (true, true) if low >= bottom_low => Some(top_high),
                (true, true) => top_high.checked_add(1),
                (true, false) if low >= bottom_low => top_high.checked_sub(1),
                (true, false) => Some(top_high),
            };
            let sequence = high
                .map(|high| u64::from(high) << 32 | u64::from(low))
                .ok_or(Discard::TooOld)?;
            if sequence == 0 || sequence + WINDOW <= self.top {
                Err(Discard::TooOld)
            } else if self.seen.contains(&sequence) {
                Err(Discard::Replay)
            } else {
                Ok(sequence)
            }
        }

        fn commit(&mut self, sequence: u64) {
            self.seen.insert(sequence);
            self.top = self.top.max(sequence);
        }
    }

    fn step() -> impl Strategy<Value = (i64, bool)> {
        let distance = prop_oneof![
            6 => -20_i64..20,
            3 => -(WINDOW as i64) - 70..200,
            2 => -(WINDOW as i64) - 2..-(WINDOW as i64) + 3,
            1 => 60_i64..40_000,
            1 => (1_i64 << 31) - 9000..(1 << 31) + 9000,
            1 => (1_i64 << 32) - 9000..(1 << 32) + 9000,
        ];
        (distance, prop::bool::weighted(0.9))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        /// Any order of any numbers, authentic or not, from anywhere in the number space.
        #[test]
        fn the_window_is_the_naive_one(
            extended: bool,
            start in prop_oneof![
                Just(0_u64), Just(1), 0_u64..20_000, (1_u64 << 32) - 9000..(1 << 32) + 9000,
                (7_u64 << 32) - 9000..(7 << 32) + 9000, Just((1 << 33) - 1), any::<u64>().prop_map(|n| n >> 1),
            ],
            steps in prop::collection::vec(step(), 1..300),
        ) {
            let start = if extended { start } else { start & 0xffff_ffff };
            let mut window = Window::new(extended);
            let mut model = Model { extended, top: 0, seen: HashSet::new() };
            window.commit(start);
            model.commit(start);
            for (distance, authentic) in steps {
                let low = model.top.wrapping_add_signed(distance) as u32;
                let checked = window.check(low);
                prop_assert_eq!(checked, model.check(low), "top {:#x}, low {:#x}", model.top, low);
                if let (Ok(sequence), true) = (checked, authentic) {
                    window.commit(sequence);
                    model.commit(sequence);
                    prop_assert_eq!(window.check(low), model.check(low));
                }
                prop_assert_eq!(window.top, model.top);
            }
        }
    }

    #[test]
    fn a_thousand_reordered_packets_pass_once_each() {
        let mut window = Window::new(false);
        let order: Vec<u32> = (0..10_000_u32)
            .map(|i| (i / 1000) * 1000 + 1000 - i % 1000)
            .collect();
        for low in &order {
            let sequence = window.check(*low).expect("reordered by less than the window");
            window.commit(sequence);
        }
        assert!(order.iter().all(|low| window.check(*low).is_err()));
    }

    #[test]
    fn zero_is_never_a_sequence_number() {
        assert_eq!(Window::new(false).check(0), Err(Discard::TooOld));
        assert_eq!(Window::new(true).check(0), Err(Discard::TooOld));
        assert_eq!(Window::new(true).check(1), Ok(1));
    }

    #[test]
    fn the_low_half_wraps_into_the_next_subspace() {
        let mut window = Window::new(true);
        window.commit(0xffff_fffe);
        assert_eq!(window.check(0), Ok(1 << 32));
        window.commit(1 << 32);
        assert_eq!(window.check(0xffff_ffff), Ok(0xffff_ffff));
        assert_eq!(window.check(0xffff_fffe), Err(Discard::Replay));
        assert_eq!(window.check(0), Err(Discard::Replay));
    }

    #[test]
    fn nothing_comes_after_the_last_number() {
        let mut window = Window::new(true);
        window.commit(u64::MAX - 1);
        assert_eq!(window.check(u32::MAX), Ok(u64::MAX));
        window.commit(u64::MAX);
        assert_eq!(window.check(0), Err(Discard::TooOld));
        assert_eq!(window.check(u32::MAX), Err(Discard::Replay));

        let mut window = Window::new(false);
        window.commit(u64::from(u32::MAX));
        assert_eq!(window.check(0), Err(Discard::TooOld));
        assert_eq!(window.check(5), Err(Discard::TooOld));
    }
}
