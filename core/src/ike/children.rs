//! The Child SAs of an IKE SA: the one in use, the ones that replace it, and the ones that still take what was on its
//! way (RFC 7296, sections 1.4.1 and 2.8).

use std::time::Duration;

use super::child::ChildSa;
use crate::command::Traffic;
use crate::esp::{self, Discard};
use crate::timer::Instant;
use crate::wire::EspSpi;

/// How long a deleted child still takes packets that the network delayed.
const DRAIN: Duration = Duration::from_secs(5);
/// How long the gateway has for the Delete of a child that it has replaced, before we delete it.
const REPLACED: Duration = Duration::from_secs(30);
/// No more are kept, whatever the gateway does.
const MAX: usize = 12;

/// A Child SA and its place in life.
pub(crate) struct Child {
    pub(crate) sa: ChildSa,
    pub(super) made_at: Instant,
    /// When it shall be replaced for its age, or because a try failed.
    pub(crate) rekey_at: Instant,
    /// When it must not be used any longer.
    pub(crate) expires_at: Instant,
    /// It has carried so much that it is to be replaced for that, which is noticed once.
    pub(super) is_used_up: bool,
    pub(super) state: ChildState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ChildState {
    /// In use, or ready to be.
    Live,
    /// To be deleted by us: we have replaced it, or it is the one too many of two simultaneous rekeyings.
    Condemned,
    /// The gateway has replaced it and will delete it; if not by then, we do.
    Replaced(Instant),
    /// Deleted on both sides; what was on its way is taken until then.
    Draining(Instant),
}

/// All of them.
#[derive(Default)]
pub(crate) struct Children {
    list: Vec<Child>,
    /// Which one sends.
    sending: Option<usize>,
    /// What those that are gone have carried.
    past: Traffic,
}

impl Children {
    /// The child that carries outbound traffic.
    pub(crate) fn current(&self) -> Option<&Child> {
        self.list.get(self.sending?)
    }

    /// There is one to send with.
    pub(crate) fn can_send(&self) -> bool {
        self.current().is_some()
    }

    fn current_mut(&mut self) -> Option<&mut Child> {
        self.list.get_mut(self.sending?)
    }

    /// Those that the status shows: in use, or ready to be.
    pub(crate) fn live(&self) -> impl Iterator<Item = &Child> {
        self.list.iter().filter(|child| child.state == ChildState::Live)
    }

    /// The child with this inbound SPI, unless it is deleted.
    pub(super) fn ours(&mut self, inbound: EspSpi) -> Option<&mut Child> {
        self.list
            .iter_mut()
            .find(|child| child.sa.inbound_spi == inbound && !child.is_draining())
    }

    /// The child with this outbound SPI, unless it is deleted.
    pub(super) fn theirs(&mut self, outbound: &[u8]) -> Option<&mut Child> {
        self.list
            .iter_mut()
            .find(|child| child.sa.outbound_spi.0.to_be_bytes() == *outbound && !child.is_draining())
    }

    /// Adds a child. Where there is none to send with, it sends.
    pub(super) fn add(&mut self, child: Child) {
        if self.list.len() >= MAX {
            self.drop_at(0);
        }
        self.list.push(child);
        if self.sending.is_none() {
            self.sending = Some(self.list.len() - 1);
        }
    }

    /// Outbound traffic goes through the child with this inbound SPI from now on.
    pub(super) fn send_with(&mut self, inbound: EspSpi) {
        let index = self.list.iter().position(|child| child.sa.inbound_spi == inbound);
        self.sending = index.or(self.sending);
    }

    /// The gateway has replaced the child with this inbound SPI.
    pub(super) fn replaced(&mut self, inbound: EspSpi, now: Instant) {
        if let Some(child) = self.ours(inbound)
            && child.state == ChildState::Live
        {
            child.state = ChildState::Replaced(now + REPLACED);
        }
    }

    /// The child with this inbound SPI is deleted on both sides; it takes what is on its way for a moment longer.
    pub(super) fn drain(&mut self, inbound: EspSpi, now: Instant) {
        let Some(index) = self
            .list
            .iter()
            .position(|child| child.sa.inbound_spi == inbound && !child.is_draining())
        else {
            return;
        };
        if let Some(child) = self.list.get_mut(index) {
            child.state = ChildState::Draining(now + DRAIN);
        }
        if self.sending == Some(index) {
            self.sending = self
                .list
                .iter()
                .rposition(|child| child.state == ChildState::Live)
                .or_else(|| self.list.iter().rposition(|child| !child.is_draining()));
        }
    }

    /// The inbound SPIs of those that we are to delete.
    pub(super) fn condemned(&self) -> Vec<EspSpi> {
        self.list
            .iter()
            .filter(|child| child.state == ChildState::Condemned)
            .map(|child| child.sa.inbound_spi)
            .collect()
    }

    /// The inbound SPI of the one in use, when it is time to replace it. What the gateway has just made is not replaced
    /// before it shows that it knows it.
    pub(super) fn due(&self, now: Instant) -> Option<EspSpi> {
        let due = self.live().find(|child| now >= child.rekey_at);
        due.filter(|_| !self.is_changing())
            .map(|child| child.sa.inbound_spi)
    }

    /// The gateway has made a child to replace another, which it has not deleted yet.
    fn is_changing(&self) -> bool {
        self.list
            .iter()
            .any(|child| matches!(child.state, ChildState::Replaced(_)))
    }

    /// The one in use is to be replaced before its time.
    pub(super) fn rekey_now(&mut self, now: Instant) {
        for child in self
            .list
            .iter_mut()
            .filter(|child| child.state == ChildState::Live)
        {
            child.rekey_at = child.rekey_at.min(now);
        }
    }

    /// When [`Self::due`] gives one.
    pub(super) fn rekey_at(&self) -> Option<Instant> {
        let at = self.live().map(|child| child.rekey_at).min();
        at.filter(|_| !self.is_changing())
    }

    /// When the one in use must not be used any longer.
    pub(super) fn expires_at(&self) -> Option<Instant> {
        self.live().map(|child| child.expires_at).min()
    }

    /// There is a child to use.
    pub(super) fn is_alive(&self) -> bool {
        self.live().next().is_some()
    }

    /// Forgets what is drained, and condemns what the gateway did not delete in time.
    pub(super) fn tidy(&mut self, now: Instant) {
        for child in &mut self.list {
            if matches!(child.state, ChildState::Replaced(until) if now >= until) {
                child.state = ChildState::Condemned;
            }
        }
        while let Some(index) = self
            .list
            .iter()
            .position(|child| matches!(child.state, ChildState::Draining(until) if now >= until))
        {
            self.drop_at(index);
        }
    }

    /// When [`Self::tidy`] has something to do.
    pub(super) fn tidy_at(&self) -> Option<Instant> {
        self.list
            .iter()
            .filter_map(|child| match child.state {
                ChildState::Replaced(until) | ChildState::Draining(until) => Some(until),
                ChildState::Live | ChildState::Condemned => None,
            })
            .min()
    }

    fn drop_at(&mut self, index: usize) {
        let gone = self.list.remove(index);
        add_traffic(&mut self.past, gone.sa.traffic());
        self.sending = match self.sending {
            Some(sending) if sending == index => None,
            Some(sending) if sending > index => Some(sending - 1),
            other => other,
        };
    }

    /// Opens an ESP packet in place, with the child that its SPI names.
    pub(super) fn open<'d>(&mut self, datagram: &'d mut [u8], now: Instant) -> Result<&'d mut [u8], Discard> {
        let spi = esp::spi(datagram).ok_or(Discard::Malformed)?;
        let index = self
            .list
            .iter()
            .position(|child| child.sa.inbound_spi == spi)
            .ok_or(Discard::UnknownSpi)?;
        let is_successor = self.is_successor(index);
        let child = self.list.get_mut(index).ok_or(Discard::UnknownSpi)?;
        let opened = child.sa.inbound.open(datagram);
        if !child.is_used_up && child.sa.inbound.rekey_due() {
            child.use_up(now);
        }
        // The gateway sends with what it made to replace the one that we send with: it is ready for ours there.
        if is_successor
            && opened
                .as_ref()
                .map_or_else(|reason| reason.is_authentic(), |_| true)
        {
            self.sending = Some(index);
        }
        opened
    }

    /// Whether a child is ready and the one that sends has been replaced by the gateway.
    fn is_successor(&self, index: usize) -> bool {
        let replaced = self
            .current()
            .is_some_and(|child| matches!(child.state, ChildState::Replaced(_)));
        replaced
            && self
                .list
                .get(index)
                .is_some_and(|child| child.state == ChildState::Live)
    }

    /// Whether an ESP packet is for one of these.
    pub(super) fn is_for(&self, spi: EspSpi) -> bool {
        self.list.iter().any(|child| child.sa.inbound_spi == spi)
    }

    /// The length of the datagram that an inner packet of `inner` octets becomes; none without a child to send with.
    pub(crate) fn sealed_len(&self, inner: usize) -> Option<usize> {
        Some(self.current()?.sa.outbound.sealed_len(inner))
    }

    /// Whether one of these sends to this SPI.
    pub(crate) fn sends_to(&self, spi: &[u8]) -> bool {
        self.list
            .iter()
            .any(|child| child.sa.outbound_spi.0.to_be_bytes() == *spi)
    }

    /// Seals an inner packet of `len` octets, which `write` writes, into `out`.
    pub(super) fn seal(
        &mut self,
        len: usize,
        write: impl FnOnce(&mut [u8]),
        out: &mut [u8],
        now: Instant,
    ) -> Result<usize, Discard> {
        let child = self.current_mut().ok_or(Discard::UnknownSpi)?;
        let sealed = child.sa.outbound.seal_written(len, write, out);
        if !child.is_used_up && child.sa.outbound.rekey_due() {
            child.use_up(now);
        }
        sealed
    }

    /// What went through all of them, those that are gone included.
    pub(crate) fn traffic(&self) -> Traffic {
        let mut all = self.past.clone();
        for child in &self.list {
            add_traffic(&mut all, child.sa.traffic());
        }
        all
    }
}

impl Child {
    /// It is to be replaced now.
    fn use_up(&mut self, now: Instant) {
        self.is_used_up = true;
        self.rekey_at = self.rekey_at.min(now);
    }

    fn is_draining(&self) -> bool {
        matches!(self.state, ChildState::Draining(_))
    }
}

/// Adds `more` to `sum`.
pub(crate) fn add_traffic(sum: &mut Traffic, more: Traffic) {
    sum.tx_bytes += more.tx_bytes;
    sum.rx_bytes += more.rx_bytes;
    sum.tx_packets += more.tx_packets;
    sum.rx_packets += more.rx_packets;
    for (reason, count) in more.dropped {
        *sum.dropped.entry(reason).or_default() += count;
    }
}
