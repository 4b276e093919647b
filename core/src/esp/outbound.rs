//! The direction from this machine into the tunnel.

use std::sync::Arc;

use super::selector::Inner;
use super::{
    Authenticated, Counters, Discard, HARD_OCTETS, HEADER, IPV4, IPV6, Limits, SOFT_PACKETS, Selectors,
    TRAILER, alignment,
};
use crate::crypto::PacketKey;
use crate::wire::EspSpi;

/// The sending half of a Child SA. There is one, and it is not `Clone`: two writers of one sequence would use a
/// nonce twice.
#[derive(Debug)]
pub struct Outbound {
    spi: EspSpi,
    key: PacketKey,
    extended: bool,
    selectors: Arc<Selectors>,
    /// The last sequence number used; the first one is 1 (RFC 4303, section 3.3.3).
    sequence: u64,
    /// Octets encrypted, with padding and ICVs.
    encrypted: u64,
    limits: Limits,
    counters: Counters,
}

impl Outbound {
    /// The half that sends to `spi`, the peer's choice, under a key of its own. `extended` says whether extended
    /// sequence numbers were negotiated.
    #[must_use]
    pub fn new(spi: EspSpi, key: PacketKey, extended: bool, selectors: Arc<Selectors>) -> Self {
        Self {
            spi,
            key,
            extended,
            selectors,
            sequence: 0,
            encrypted: 0,
            limits: Limits::default(),
            counters: Counters::default(),
        }
    }

    /// Lets [`Self::rekey_due`] say so earlier than the cipher needs it.
    pub fn limit(&mut self, limits: Limits) {
        self.limits = limits.bounded();
    }

    /// The SPI that the datagrams carry.
    #[must_use]
    pub const fn spi(&self) -> EspSpi {
        self.spi
    }

    /// Octets before the inner packet in a datagram: SPI, sequence number, IV. 16 for every AEAD.
    #[must_use]
    pub const fn header_len(&self) -> usize {
        HEADER + self.key.suite().iv_len()
    }

    /// Octets of the datagram that an inner packet of `inner` octets becomes.
    #[must_use]
    pub const fn sealed_len(&self, inner: usize) -> usize {
        let suite = self.key.suite();
        self.header_len() + (inner + TRAILER).next_multiple_of(alignment(suite)) + suite.icv_len()
    }

    /// Seals one inner packet into the beginning of `out` and returns the datagram's length,
    /// [`Self::sealed_len`]. A batch is a loop over this.
    ///
    /// # Errors
    /// [`Discard::Malformed`] and [`Discard::Selector`] for a packet that is none, has octets behind its end, or
    /// does not belong into the tunnel, [`Discard::Buffer`] when `out` is too short, [`Discard::Exhausted`] when
    /// this SA must not be used any longer.
    pub fn seal(&mut self, packet: &[u8], out: &mut [u8]) -> Result<usize, Discard> {
        self.seal_written(packet.len(), |room| room.copy_from_slice(packet), out)
    }

    /// The same for a packet of `len` octets that `write` writes into the room it is given.
    ///
    /// # Errors
    /// As [`Self::seal`].
    pub fn seal_written(
        &mut self,
        len: usize,
        write: impl FnOnce(&mut [u8]),
        out: &mut [u8],
    ) -> Result<usize, Discard> {
        let start = self.header_len();
        let room = out.get_mut(start..).and_then(|room| room.get_mut(..len));
        if let Some(room) = room {
            write(room);
        }
        self.seal_in_place(len, out)
    }

    /// The same without a copy: the inner packet lies at [`Self::header_len`] in `buf` already, with the rest of
    /// [`Self::sealed_len`] free behind it. Octets of `buf` behind the datagram are left alone.
    ///
    /// # Errors
    /// As [`Self::seal`]. The contents of `buf` must then not be sent.
    pub fn seal_in_place(&mut self, inner: usize, buf: &mut [u8]) -> Result<usize, Discard> {
        let sealed = self.try_seal(inner, buf);
        self.counters.count(sealed.map(|_| inner));
        sealed
    }

    fn try_seal(&mut self, inner: usize, buf: &mut [u8]) -> Result<usize, Discard> {
        let packet = buf
            .get(self.header_len()..)
            .and_then(|rest| rest.get(..inner))
            .ok_or(Discard::Buffer)?;
        let headers = Inner::parse(packet)?;
        if headers.len != inner {
            return Err(Discard::Malformed);
        }
        if !self.selectors.allow_outbound(&headers) {
            return Err(Discard::Selector);
        }
        let next_header = if headers.source.is_ipv4() { IPV4 } else { IPV6 };
        let datagram = buf.get_mut(..self.sealed_len(inner)).ok_or(Discard::Buffer)?;
        let encrypted = self.encrypted + (datagram.len() - self.header_len()) as u64;
        if self.sequence >= self.last_sequence() || encrypted > HARD_OCTETS {
            return Err(Discard::Exhausted);
        }
        // Used up before the cipher runs: whatever happens there, no nonce comes twice.
        self.sequence += 1;
        self.encrypted = encrypted;
        self.seal_as(self.sequence, self.sequence, next_header, inner, datagram)?;
        Ok(datagram.len())
    }

    /// `counter` makes the IV. That it is the sequence number is this implementation's choice, so that one number
    /// guards both (RFC 4106, section 3.1).
    pub(super) fn seal_as(
        &self,
        sequence: u64,
        counter: u64,
        next_header: u8,
        inner: usize,
        datagram: &mut [u8],
    ) -> Result<(), Discard> {
        let suite = self.key.suite();
        let authenticated = Authenticated::new(suite, self.extended, self.spi, sequence);
        let (header, body) = datagram
            .split_first_chunk_mut::<HEADER>()
            .ok_or(Discard::Buffer)?;
        let [s0, s1, s2, s3] = self.spi.0.to_be_bytes();
        let [.., l0, l1, l2, l3] = sequence.to_be_bytes();
        *header = [s0, s1, s2, s3, l0, l1, l2, l3];

        let text_end = body.len().checked_sub(suite.icv_len()).ok_or(Discard::Buffer)?;
        let behind = body
            .get_mut(suite.iv_len() + inner..text_end)
            .ok_or(Discard::Buffer)?;
        let (trailer, padding) = behind
            .split_last_chunk_mut::<TRAILER>()
            .map(|(a, b)| (b, a))
            .ok_or(Discard::Buffer)?;
        for (octet, value) in padding.iter_mut().zip(1..=u8::MAX) {
            *octet = value;
        }
        // An alignment of 16 leaves at most 15 octets of padding.
        *trailer = [padding.len() as u8, next_header];

        let (before, after) = (authenticated.before(), authenticated.after());
        self.key
            .seal(counter, before, after, body)
            .map_err(|_| Discard::Buffer)
    }

    /// The last sequence number there is. The next one would be the first again.
    const fn last_sequence(&self) -> u64 {
        if self.extended { u64::MAX } else { u32::MAX as u64 }
    }

    /// Whether it is time to replace this SA for what it has carried. (Its age is the caller's to watch.)
    #[must_use]
    pub const fn rekey_due(&self) -> bool {
        self.encrypted >= self.limits.octets
            || self.sequence >= self.limits.packets
            || self.sequence >= self.last_sequence() - SOFT_PACKETS
    }

    /// What this half has carried and discarded.
    #[must_use]
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    #[cfg(test)]
    pub(super) const fn set_used(&mut self, sequence: u64, encrypted: u64) {
        self.sequence = sequence;
        self.encrypted = encrypted;
    }
}
