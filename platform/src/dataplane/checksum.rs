//! The Internet checksum (RFC 1071).

use super::{IPV4_HEADER, octets_at};

/// A sum that is not finished: words of 32 bits in this machine's byte order, which is as good as any for a sum of
/// ones' complements (RFC 1071, section 2, B).
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum(u64);

impl Sum {
    /// Adds octets. All that comes before must be of an even length.
    #[must_use]
    pub fn with(self, octets: &[u8]) -> Self {
        let (words, rest) = octets.as_chunks::<4>();
        // Of up to 2^32 words, which is more than any packet has.
        let mut sum = words
            .iter()
            .map(|word| u64::from(u32::from_ne_bytes(*word)))
            .sum::<u64>();
        let mut last = [0; 4];
        for (to, from) in last.iter_mut().zip(rest) {
            *to = *from;
        }
        sum += u64::from(u32::from_ne_bytes(last));
        // Folded once, so that many sums can be added.
        Self(self.0 + (sum & 0xffff_ffff) + (sum >> 32))
    }

    /// Adds a number of 16 bits.
    #[must_use]
    pub fn with_word(self, word: u16) -> Self {
        Self(self.0 + u64::from(u16::from_ne_bytes(word.to_be_bytes())))
    }

    /// The sum as it lies in a packet, not complemented.
    #[must_use]
    pub const fn folded(self) -> [u8; 2] {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        (sum as u16).to_ne_bytes()
    }

    /// The checksum as it lies in a packet.
    #[must_use]
    pub const fn finished(self) -> [u8; 2] {
        let [high, low] = self.folded();
        [!high, !low]
    }
}

/// The sum of the pseudo-header of a packet (RFC 9293, section 3.1; RFC 8200, section 8.1), of which the first octets
/// are `header`, for a transport of `protocol` with `len` octets.
#[must_use]
pub fn pseudo_header(header: &[u8], protocol: u8, len: usize) -> Option<Sum> {
    let is_v4 = header.first()? >> 4 == 4;
    let sum = if is_v4 {
        Sum::default().with(&octets_at::<8>(header, IPV4_HEADER - 8)?)
    } else {
        Sum::default().with(&octets_at::<32>(header, 8)?)
    };
    Some(
        sum.with_word(u16::from(protocol))
            .with_word(u16::try_from(len).ok()?),
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As RFC 1071, section 4.1, has it.
    fn slow(octets: &[u8]) -> u16 {
        let mut sum = 0_u32;
        for pair in octets.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    #[test]
    fn the_example_of_rfc_1071() {
        let sum = Sum::default().with(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum.folded(), [0xdd, 0xf2]);
        assert_eq!(sum.finished(), [0x22, 0x0d]);
    }

    #[test]
    fn the_largest_sum_does_not_overflow() {
        let sum = (0..100).fold(Sum::default(), |sum, _| sum.with(&[0xff; 65_534]));
        assert_eq!(sum.folded(), [0xff, 0xff]);
    }

    proptest! {
        #[test]
        fn the_fast_sum_is_the_slow_one(mut parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..4)) {
            let even = parts.len().saturating_sub(1);
            for part in parts.iter_mut().take(even) {
                part.truncate(part.len() / 2 * 2);
            }
            let sum = parts.iter().fold(Sum::default(), |sum, part| sum.with(part));
            prop_assert_eq!(u16::from_be_bytes(sum.folded()), slow(&parts.concat()));
        }
    }
}
