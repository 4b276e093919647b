//! IKE messages and ESP packets in a TCP stream (RFC 9329, sections 3 and 4): `Length(2) [00 00 00 00] IKE`, or
//! `Length(2) ESP`, where the length counts itself.
//!
//! A frame's content is what a UDP payload to port 4500 would be. Both directions have one buffer that is allocated
//! once; neither knows of sockets.

/// What the one who opened the connection sends first, once, and nobody else ever (RFC 9329, section 4).
pub const STREAM_PREFIX: [u8; 6] = *b"IKETCP";
/// The largest content of a frame: the length has 16 bits and counts its own two octets.
pub const MAX_FRAME: usize = 65_533;
/// The octets of the length.
const LENGTH: usize = 2;
/// The largest frame.
const LARGEST: usize = LENGTH + MAX_FRAME;

/// The stream makes no sense any more: the connection must be closed (RFC 9329, section 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a frame in the TCP stream claims to be {0} octets long, which cannot be")]
pub struct StreamError(pub u16);

/// Takes a stream apart as it comes in.
///
/// Read into [`Self::room`], say with [`Self::filled`] how much was read, then take frames from [`Self::next_frame`]
/// until there is none. A frame that has come in part waits here for its rest; whoever loses the connection drops the
/// reader, and the part with it.
#[derive(Debug)]
pub struct StreamReader {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl StreamReader {
    /// Room for a frame and as much again, so that a read brings many small ones.
    #[must_use]
    pub fn new() -> Self {
        Self {
            buffer: vec![0; 2 * LARGEST].into_boxed_slice(),
            start: 0,
            end: 0,
        }
    }

    /// Where the next octets of the stream go. Never empty once all frames were taken.
    pub fn room(&mut self) -> &mut [u8] {
        // What is left is a part of one frame, nearly always a short one.
        self.buffer.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        self.buffer.get_mut(self.end..).unwrap_or_default()
    }

    /// The first `len` octets of the last [`Self::room`] are the stream's next.
    pub fn filled(&mut self, len: usize) {
        self.end = (self.end + len).min(self.buffer.len());
    }

    /// The content of the next whole frame, without the empty ones and the NAT keepalives, which mean nothing
    /// (RFC 9329, sections 3 and 6.6).
    ///
    /// # Errors
    /// [`StreamError`] at a length of 0 or 1, now and for ever.
    pub fn next_frame(&mut self) -> Result<Option<&mut [u8]>, StreamError> {
        loop {
            let pending = self.buffer.get(self.start..self.end).unwrap_or_default();
            let Some((length, rest)) = pending.split_first_chunk::<LENGTH>() else {
                return Ok(None);
            };
            let length = u16::from_be_bytes(*length);
            let Some(content) = usize::from(length).checked_sub(LENGTH) else {
                return Err(StreamError(length));
            };
            let Some(frame) = rest.get(..content) else {
                return Ok(None);
            };
            let is_empty = matches!(frame, [] | [0xff]);
            let from = self.start + LENGTH;
            self.start = from + content;
            if !is_empty {
                return Ok(self.buffer.get_mut(from..from + content));
            }
        }
    }
}

impl Default for StreamReader {
    fn default() -> Self {
        Self::new()
    }
}

/// How many octets of a [`StreamWriter`] ESP packets may fill: at 100 Mbit/s they leave within 20 ms.
const FOR_ESP: usize = 256 << 10;
/// What is kept free for IKE messages beyond that: two of the largest.
const FOR_IKE: usize = 2 * LARGEST;

/// Puts frames together until the socket takes them.
#[derive(Debug)]
pub struct StreamWriter {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl StreamWriter {
    /// The stream of whoever opened the connection: the prefix waits to be sent.
    #[must_use]
    pub fn new() -> Self {
        let mut buffer = vec![0; FOR_ESP + FOR_IKE].into_boxed_slice();
        if let Some(prefix) = buffer.first_chunk_mut() {
            *prefix = STREAM_PREFIX;
        }
        Self {
            buffer,
            start: 0,
            end: STREAM_PREFIX.len(),
        }
    }

    /// Room for an ESP packet of at most `len` octets, or none while too many wait: the packet is dropped.
    pub fn reserve(&mut self, len: usize) -> Option<&mut [u8]> {
        if self.pending().len() + LENGTH + len > FOR_ESP {
            return None;
        }
        self.room(len)
    }

    /// The last [`Self::reserve`]d room holds a packet of `len` octets.
    pub fn commit(&mut self, len: usize) {
        let total = u16::try_from(len + LENGTH).unwrap_or(u16::MAX);
        if let Some(length) = self.buffer.get_mut(self.end..self.end + LENGTH) {
            length.copy_from_slice(&total.to_be_bytes());
            self.end += usize::from(total);
        }
    }

    /// Appends a frame, into the room that ESP must leave if need be. Whether it could: a stream that takes nothing for
    /// so long is dead.
    pub fn push(&mut self, content: &[u8]) -> bool {
        let Some(room) = self.room(content.len()) else {
            return false;
        };
        room.copy_from_slice(content);
        self.commit(content.len());
        true
    }

    fn room(&mut self, len: usize) -> Option<&mut [u8]> {
        if len > MAX_FRAME {
            return None;
        }
        if self.end + LENGTH + len > self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let from = self.end + LENGTH;
        self.buffer.get_mut(from..from + len)
    }

    /// What waits to be sent.
    #[must_use]
    pub fn pending(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    /// The first `len` octets of [`Self::pending`] were sent.
    pub fn sent(&mut self, len: usize) {
        self.start = (self.start + len).min(self.end);
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }
}

impl Default for StreamWriter {
    fn default() -> Self {
        Self::new()
    }
}
