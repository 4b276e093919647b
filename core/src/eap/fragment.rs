//! How TLS travels in EAP packets: EAP-TLS (RFC 5216, sections 2.1.5 and 3.1), EAP-TTLS (RFC 5281, section 9) and PEAP,
//! the last two with a version of the method, which is 0, in the lowest bits of the flags.

use std::mem;

use super::EapError;

/// The type data of a packet (RFC 5216, section 3.1).
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fragment<'a> {
    pub(super) start: bool,
    pub(super) more: bool,
    /// The length of the whole message, if the packet tells it.
    pub(super) total: Option<usize>,
    pub(super) data: &'a [u8],
}

mod flag {
    pub(super) const LENGTH: u8 = 0x80;
    pub(super) const MORE: u8 = 0x40;
    pub(super) const START: u8 = 0x20;
}

impl<'a> Fragment<'a> {
    pub(super) fn decode(data: &'a [u8]) -> Result<Self, EapError> {
        const TRUNCATED: EapError = EapError::Malformed("a truncated TLS fragment");
        let (&flags, rest) = data.split_first().ok_or(TRUNCATED)?;
        let (total, data) = if flags & flag::LENGTH == 0 {
            (None, rest)
        } else {
            let (total, data) = rest.split_first_chunk().ok_or(TRUNCATED)?;
            let total = usize::try_from(u32::from_be_bytes(*total)).unwrap_or(usize::MAX);
            (Some(total), data)
        };
        Ok(Self {
            start: flags & flag::START != 0,
            more: flags & flag::MORE != 0,
            total,
            data,
        })
    }
}

/// A message of the server that comes in fragments (RFC 5216, section 2.1.5).
#[derive(Debug, Default)]
pub(super) struct Reassembly {
    /// What the first fragment announced, while the message is incomplete.
    total: Option<usize>,
    data: Vec<u8>,
}

impl Reassembly {
    /// The whole message, if this fragment was its last.
    pub(super) fn add(&mut self, fragment: &Fragment<'_>) -> Result<Option<Vec<u8>>, EapError> {
        let total = match (self.total, fragment.total) {
            (Some(total), None) => total,
            // Some servers repeat the length in every fragment.
            (Some(total), Some(again)) if again == total => total,
            (Some(_), Some(_)) => {
                return Err(EapError::Malformed("a TLS message that changes its length"));
            }
            (None, Some(total)) => total,
            (None, None) if fragment.more => {
                return Err(EapError::Malformed(
                    "a first TLS fragment without the length of the message",
                ));
            }
            (None, None) => fragment.data.len(),
        };
        if total > MAX_MESSAGE {
            return Err(EapError::Malformed("a TLS message of more than 64 KiB"));
        }
        if fragment.more && fragment.data.is_empty() {
            return Err(EapError::Malformed("an empty TLS fragment"));
        }
        self.data.extend_from_slice(fragment.data);
        if self.data.len() > total || fragment.more != (self.data.len() < total) {
            return Err(EapError::Malformed(
                "a TLS message whose length is not the announced one",
            ));
        }
        if fragment.more {
            self.total = Some(total);
            return Ok(None);
        }
        self.total = None;
        Ok(Some(mem::take(&mut self.data)))
    }
}

/// What we have to send, in fragments (RFC 5216, section 2.1.5).
#[derive(Debug)]
pub(super) struct Flight {
    /// The most TLS octets in one packet, counted so that the length field fits as well.
    room: usize,
    /// Tell the length of a message that needs no cutting, too.
    announce: bool,
    data: Vec<u8>,
    sent: usize,
}

impl Flight {
    pub(super) fn new(packet_size: usize) -> Self {
        Self {
            room: packet_size.clamp(256, 1400) - OVERHEAD,
            announce: false,
            data: Vec::new(),
            sent: 0,
        }
    }

    /// The next message, whose length is told even if it fits into one packet if `announce` says so.
    pub(super) fn refill(&mut self, data: Vec<u8>, announce: bool) {
        self.announce = announce && !data.is_empty();
        self.data = data;
        self.sent = 0;
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    pub(super) const fn is_sent(&self) -> bool {
        self.sent >= self.data.len()
    }

    /// The type data of the next packet.
    pub(super) fn next(&mut self) -> Vec<u8> {
        let rest = self.data.get(self.sent..).unwrap_or_default();
        let part = rest.get(..self.room).unwrap_or(rest);
        let mut flags = 0;
        let mut length = None;
        let more = part.len() < rest.len();
        if more {
            flags |= flag::MORE;
        }
        if self.sent == 0 && (more || self.announce) {
            flags |= flag::LENGTH;
            length = u32::try_from(self.data.len()).ok();
        }
        let mut packet = vec![flags];
        packet.extend(length.into_iter().flat_map(u32::to_be_bytes));
        packet.extend_from_slice(part);
        self.sent += part.len();
        packet
    }
}

/// The most that a server may say at once, in octets.
const MAX_MESSAGE: usize = 65_536;

/// The headers of EAP and of the method, with the length of the message, in octets.
const OVERHEAD: usize = 10;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fragment(flags: u8, total: u32, data: &[u8]) -> Vec<u8> {
        let mut packet = vec![flags];
        if flags & flag::LENGTH != 0 {
            packet.extend_from_slice(&total.to_be_bytes());
        }
        packet.extend_from_slice(data);
        packet
    }

    fn add(
        reassembly: &mut Reassembly,
        flags: u8,
        total: u32,
        data: &[u8],
    ) -> Result<Option<Vec<u8>>, EapError> {
        reassembly.add(&Fragment::decode(&fragment(flags, total, data))?)
    }

    const L: u8 = flag::LENGTH;
    const M: u8 = flag::MORE;

    #[test]
    fn fragments_are_put_together() {
        let mut reassembly = Reassembly::default();
        // Twice: nothing is left of the first message. The reserved flags mean nothing (RFC 5216, section 3.1).
        for repeat in [0, L] {
            assert_eq!(add(&mut reassembly, L | M | 0x1f, 5, b"ab"), Ok(None));
            assert_eq!(add(&mut reassembly, M | repeat, 5, b"cd"), Ok(None));
            assert_eq!(add(&mut reassembly, repeat, 5, b"e"), Ok(Some(b"abcde".to_vec())));
        }
        assert_eq!(add(&mut reassembly, 0, 0, b"whole"), Ok(Some(b"whole".to_vec())));
        assert_eq!(add(&mut reassembly, L, 5, b"whole"), Ok(Some(b"whole".to_vec())));
    }

    #[test]
    fn the_sum_must_be_the_announced_length() {
        let wrong = EapError::Malformed("a TLS message whose length is not the announced one");
        for (first, total, data) in [
            (L, 4, "abcde"),
            (L, 6, "abcde"),
            (L | M, 5, "abcde"),
            (L | M, 4, "abcde"),
            (L, 0, "a"),
            (L | M, 0, "a"),
        ] {
            let result = add(&mut Reassembly::default(), first, total, data.as_bytes());
            assert_eq!(result, Err(wrong.clone()), "{first:x} {total} {data}");
        }
        for (flags, data) in [(0, "cd"), (0, "cdef"), (M, "cde"), (M, "cdef"), (0, "")] {
            let mut reassembly = Reassembly::default();
            assert_eq!(add(&mut reassembly, L | M, 5, b"ab"), Ok(None));
            assert_eq!(
                add(&mut reassembly, flags, 0, data.as_bytes()),
                Err(wrong.clone()),
                "{flags:x} {data}"
            );
        }
    }

    #[test]
    fn a_message_does_not_grow() {
        let mut reassembly = Reassembly::default();
        assert_eq!(add(&mut reassembly, L | M, 5, b"ab"), Ok(None));
        let error = EapError::Malformed("a TLS message that changes its length");
        assert_eq!(add(&mut reassembly, L | M, 6, b"cd"), Err(error));
    }

    #[test]
    fn a_message_has_at_most_64_kib() {
        assert_eq!(add(&mut Reassembly::default(), L | M, 65_536, b"a"), Ok(None));
        let error = EapError::Malformed("a TLS message of more than 64 KiB");
        for total in [65_537, u32::MAX] {
            assert_eq!(
                add(&mut Reassembly::default(), L | M, total, b"a"),
                Err(error.clone())
            );
        }
    }

    #[test]
    fn fragments_make_progress() {
        let error = EapError::Malformed("an empty TLS fragment");
        assert_eq!(add(&mut Reassembly::default(), L | M, 5, b""), Err(error));
        let error = EapError::Malformed("a first TLS fragment without the length of the message");
        assert_eq!(add(&mut Reassembly::default(), M, 0, b"a"), Err(error));
    }

    #[test]
    fn truncated_packets_are_refused() {
        let error = EapError::Malformed("a truncated TLS fragment");
        for data in [&[][..], &[L], &[L, 0, 0, 0]] {
            assert_eq!(Fragment::decode(data), Err(error.clone()));
        }
    }

    proptest! {
        #[test]
        fn what_we_fragment_can_be_put_together(
            size in 0..3000_usize,
            data in prop::collection::vec(any::<u8>(), 0..9000),
            announce in any::<bool>(),
        ) {
            let mut flight = Flight::new(size);
            flight.refill(data.clone(), announce);
            let mut reassembly = Reassembly::default();
            loop {
                let packet = flight.next();
                // With the header and the type of EAP before it.
                prop_assert!(packet.len() + 5 <= size.clamp(256, 1400));
                match reassembly.add(&Fragment::decode(&packet)?)? {
                    Some(whole) => {
                        prop_assert!(flight.is_sent());
                        prop_assert_eq!(whole, data);
                        break;
                    }
                    None => prop_assert!(!flight.is_sent()),
                }
            }
        }

        #[test]
        fn no_sequence_of_fragments_panics(
            packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..12), 0..6)
        ) {
            let mut reassembly = Reassembly::default();
            for packet in packets {
                let Ok(fragment) = Fragment::decode(&packet) else { return Ok(()) };
                match reassembly.add(&fragment) {
                    Ok(Some(whole)) => prop_assert!(whole.len() <= MAX_MESSAGE),
                    Ok(None) => prop_assert!(reassembly.data.len() < MAX_MESSAGE),
                    Err(_) => return Ok(()),
                }
            }
        }
    }
}
