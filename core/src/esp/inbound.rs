//! The direction from the tunnel to this machine.

use std::sync::Arc;

use super::replay::Window;
use super::selector::Inner;
use super::{
    Authenticated, Counters, Discard, HARD_FORGERIES, HARD_OCTETS, HEADER, IPV4, IPV6, Limits,
    NO_NEXT_HEADER, SOFT_FORGERIES, SOFT_PACKETS, Selectors, TRAILER, alignment,
};
use crate::crypto::{CryptoError, PacketKey};
use crate::wire::EspSpi;

/// The receiving half of a Child SA.
#[derive(Debug)]
pub struct Inbound {
    spi: EspSpi,
    key: PacketKey,
    extended: bool,
    selectors: Arc<Selectors>,
    window: Window,
    /// Octets decrypted, padding and dummies included.
    decrypted: u64,
    forgeries: u64,
    limits: Limits,
    counters: Counters,
}

impl Inbound {
    /// The half that receives on `spi`, our own choice, under a key of its own. `extended` says whether extended
    /// sequence numbers were negotiated.
    #[must_use]
    pub fn new(spi: EspSpi, key: PacketKey, extended: bool, selectors: Arc<Selectors>) -> Self {
        Self {
            spi,
            key,
            extended,
            selectors,
            window: Window::new(extended),
            decrypted: 0,
            forgeries: 0,
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

    /// Opens one datagram in place and returns the inner packet. A batch is a loop over this.
    ///
    /// The window is looked at first, so that replays cost nothing, and moves only when the datagram was found
    /// authentic. Everything after that (padding, next header, selectors) is judged on authentic octets alone.
    ///
    /// # Errors
    /// Why there is nothing to deliver. [`Discard::is_authentic`] tells which reasons prove that the peer is there.
    pub fn open<'d>(&mut self, datagram: &'d mut [u8]) -> Result<&'d mut [u8], Discard> {
        let opened = self.try_open(datagram);
        self.counters
            .count(opened.as_ref().map(|inner| inner.len()).map_err(|reason| *reason));
        opened
    }

    fn try_open<'d>(&mut self, datagram: &'d mut [u8]) -> Result<&'d mut [u8], Discard> {
        let suite = self.key.suite();
        let (header, body) = datagram
            .split_first_chunk_mut::<HEADER>()
            .ok_or(Discard::Malformed)?;
        let [s0, s1, s2, s3, l0, l1, l2, l3] = *header;
        if u32::from_be_bytes([s0, s1, s2, s3]) != self.spi.0 {
            return Err(Discard::UnknownSpi);
        }
        let text_len = body
            .len()
            .checked_sub(suite.iv_len() + suite.icv_len())
            .ok_or(Discard::Malformed)?;
        if text_len < TRAILER || text_len % alignment(suite) != 0 {
            return Err(Discard::Malformed);
        }
        if self.decrypted >= HARD_OCTETS || self.forgeries >= HARD_FORGERIES {
            return Err(Discard::Exhausted);
        }
        let sequence = self.window.check(u32::from_be_bytes([l0, l1, l2, l3]))?;

        let authenticated = Authenticated::new(suite, self.extended, self.spi, sequence);
        let text = match self.key.open(authenticated.before(), authenticated.after(), body) {
            Ok(text) => text,
            Err(CryptoError::BadIcv) => {
                self.forgeries += 1;
                return Err(Discard::Integrity);
            }
            Err(_) => return Err(Discard::Malformed),
        };
        self.window.commit(sequence);
        self.decrypted += text.len() as u64;

        let (next_header, padded) = without_padding(text)?;
        if next_header == NO_NEXT_HEADER {
            return Err(Discard::Dummy);
        }
        let version = padded.first().map(|octet| octet >> 4);
        if !matches!(
            (next_header, version),
            (IPV4, None | Some(4)) | (IPV6, None | Some(6))
        ) {
            return Err(Discard::NextHeader);
        }
        let inner = Inner::parse(padded)?;
        if inner.is_martian() {
            return Err(Discard::Martian);
        }
        if !self.selectors.allow_inbound(&inner) {
            return Err(Discard::Selector);
        }
        // What lies behind the inner packet pads traffic flows (RFC 4303, section 2.7).
        padded.get_mut(..inner.len).ok_or(Discard::Malformed)
    }

    /// Whether it is time to replace this SA for what it has carried. (Its age is the caller's to watch.)
    #[must_use]
    pub const fn rekey_due(&self) -> bool {
        let last = if self.extended { u64::MAX } else { u32::MAX as u64 };
        self.decrypted >= self.limits.octets
            || self.counters.packets >= self.limits.packets
            || self.forgeries >= SOFT_FORGERIES
            || self.window.top() >= last - SOFT_PACKETS
    }

    /// What this half has carried and discarded.
    #[must_use]
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    #[cfg(test)]
    pub(super) const fn set_used(&mut self, decrypted: u64, forgeries: u64) {
        self.decrypted = decrypted;
        self.forgeries = forgeries;
    }

    #[cfg(test)]
    pub(super) fn set_top(&mut self, sequence: u64) {
        self.window.commit(sequence);
    }

    #[cfg(test)]
    pub(super) const fn top(&self) -> u64 {
        self.window.top()
    }
}

/// The next header and what is before the padding.
fn without_padding(text: &mut [u8]) -> Result<(u8, &mut [u8]), Discard> {
    let (text, trailer) = text.split_last_chunk_mut::<TRAILER>().ok_or(Discard::Malformed)?;
    let [pad_len, next_header] = *trailer;
    let end = text
        .len()
        .checked_sub(usize::from(pad_len))
        .ok_or(Discard::Padding)?;
    let (inner, padding) = text.split_at_mut(end);
    if padding
        .iter()
        .zip(1..=u8::MAX)
        .any(|(octet, expected)| *octet != expected)
    {
        return Err(Discard::Padding);
    }
    Ok((next_header, inner))
}
