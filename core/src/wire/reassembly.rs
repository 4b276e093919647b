//! Fragments back to a message (RFC 7383, section 2.6).

use super::iana::PayloadType;

/// The most fragments of one message, received and sent.
pub const MAX_FRAGMENTS: u16 = 64;
/// The most octets of payloads in the fragments of one message.
pub const MAX_REASSEMBLED: usize = 64 * 1024;

/// The fragments of one message, until all are there. One direction of an IKE SA has one.
///
/// It never holds more than [`MAX_REASSEMBLED`] octets in [`MAX_FRAGMENTS`] parts, of a single message. It has no
/// clock: its owner clears it when the message no longer matters (protocol: after 30 seconds).
#[derive(Debug, Default)]
pub struct Reassembly {
    set: Option<Set>,
}

#[derive(Debug)]
struct Set {
    message_id: u32,
    total: u16,
    /// The type of the first payload, which fragment 1 tells.
    first: PayloadType,
    /// One place for each of `total` fragments.
    parts: Vec<Option<Vec<u8>>>,
    octets: usize,
}

impl Set {
    fn new(message_id: u32, total: u16) -> Self {
        Self {
            message_id,
            total,
            first: PayloadType::NONE,
            parts: vec![None; usize::from(total)],
            octets: 0,
        }
    }
}

impl Reassembly {
    /// Without fragments.
    #[must_use]
    pub const fn new() -> Self {
        Self { set: None }
    }

    /// Adds an authentic fragment: fragment `number` of `total` of the message with `message_id`, and with `first`
    /// and `body` as [`super::OpenedBody`] has them. Gives the type of the first payload, and the payloads, once
    /// the message is complete; the set is empty then.
    ///
    /// A fragment that cannot be, that is there already, or that divides the message into fewer parts than known is
    /// ignored. One that divides it into more parts, or that belongs to another message, starts anew: the caller
    /// admits fragments of the one message only that it waits for. A message that would become too large is
    /// dropped.
    pub fn add(
        &mut self,
        message_id: u32,
        number: u16,
        total: u16,
        first: PayloadType,
        body: &[u8],
    ) -> Option<(PayloadType, Vec<u8>)> {
        let index = usize::from(number.checked_sub(1)?);
        if number > total || total > MAX_FRAGMENTS {
            return None;
        }
        let mut set = match self.set.take() {
            Some(set) if set.message_id == message_id && set.total >= total => set,
            _ => Set::new(message_id, total),
        };
        if set.total > total || set.parts.get(index).is_none_or(Option::is_some) {
            self.set = Some(set);
            return None;
        }
        set.octets = set.octets.saturating_add(body.len());
        if set.octets > MAX_REASSEMBLED {
            return None;
        }
        if number == 1 {
            set.first = first;
        }
        if let Some(part) = set.parts.get_mut(index) {
            *part = Some(body.to_vec());
        }
        if set.parts.iter().any(Option::is_none) {
            self.set = Some(set);
            return None;
        }
        Some((set.first, set.parts.into_iter().flatten().flatten().collect()))
    }

    /// Forgets all fragments.
    pub fn clear(&mut self) {
        self.set = None;
    }
}
