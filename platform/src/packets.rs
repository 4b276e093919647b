//! Packets on their way between the tunnel device and the sockets.

use std::io::IoSlice;

use peregrine_core::client::{Client, InnerMtu};
use peregrine_core::command::{Path, Sink};
use peregrine_core::esp::{self, clamp_mss, take_ecn};
use peregrine_core::timer::Instant;

use crate::batch::Batch;
use crate::dataplane::coalesce::{Coalescer, Offers};
use crate::dataplane::segment::{Outgoing, Segments};
use crate::dataplane::virtio;
use crate::host::{Arrival, Socket, Stream, Tun};
use crate::links::Links;

/// Whoever holds the keys.
pub trait Endpoint {
    /// Takes a datagram; the inner packet, if it was one of ESP's, opened in place.
    fn open<'d>(&mut self, path: Path, datagram: &'d mut [u8], now: Instant) -> Option<&'d mut [u8]>;

    /// Seals an inner packet of `len` octets, which `write` writes, into `sink`'s room.
    fn seal(&mut self, len: usize, write: impl FnOnce(&mut [u8]), sink: &mut impl Sink, now: Instant);

    /// The largest inner packet, while there is a tunnel.
    fn inner_mtu(&self) -> Option<InnerMtu>;

    /// A packet that was opened has been dropped: it met congestion, and cannot say so (RFC 6040, section 4.2).
    fn note_congested(&mut self) {}
}

impl Endpoint for Client {
    fn open<'d>(&mut self, path: Path, datagram: &'d mut [u8], now: Instant) -> Option<&'d mut [u8]> {
        self.handle_datagram(path, datagram, now)
    }

    fn seal(&mut self, len: usize, write: impl FnOnce(&mut [u8]), sink: &mut impl Sink, now: Instant) {
        self.handle_packet_of(len, write, sink, now);
    }

    fn inner_mtu(&self) -> Option<InnerMtu> {
        self.inner_mtu()
    }

    fn note_congested(&mut self) {
        self.note_congested();
    }
}

/// The tunnel device and the sockets, with what is known about both.
pub struct Packets<T, S, C> {
    /// The sockets and connections.
    pub links: Links<S, C>,
    /// The tunnel device, while there is one.
    pub tun: Option<T>,
    /// Packets went through since somebody last looked.
    pub moved: bool,
    /// What the device takes in one piece, until it refuses some of it.
    offers: Offers,
    coalescer: Coalescer,
}

impl<T: Tun, S: Socket, C: Stream> Packets<T, S, C> {
    /// Without a device and without sockets.
    #[must_use]
    pub fn new() -> Self {
        Self {
            links: Links::new(),
            tun: None,
            moved: false,
            offers: Offers::default(),
            coalescer: Coalescer::new(),
        }
    }

    /// There is another device, or none any more.
    pub fn set_device(&mut self, tun: Option<T>) {
        self.offers = tun.as_ref().map(Tun::offers).unwrap_or_default();
        self.tun = tun;
    }

    /// Opens datagrams that came in, and gives what was in them to the machine. The batch is empty afterwards.
    pub fn open(&mut self, endpoint: &mut impl Endpoint, batch: &mut Batch<Arrival>, now: Instant) {
        let start_of = |octets: &[u8]| octets.as_ptr().addr();
        for (Arrival { path, ecn }, start, datagram) in batch.packets() {
            let begin = start_of(datagram);
            let Some(packet) = endpoint.open(path, datagram, now) else {
                continue;
            };
            self.moved = true;
            let Some(mtu) = endpoint.inner_mtu() else {
                continue;
            };
            if !take_ecn(packet, ecn) {
                endpoint.note_congested();
                continue;
            }
            clamp_mss(packet, mtu.octets);
            self.coalescer
                .add(start + (start_of(packet) - begin), packet.len());
        }
        if let Some(tun) = &self.tun {
            let written = self
                .coalescer
                .write(batch.octets(), self.offers, |parts| tun.send(parts));
            if written.refused {
                tracing::warn!(
                    "the tunnel device refuses several packets in one piece; they are written one by one from now on"
                );
                self.offers = Offers::default();
            }
        }
        self.coalescer.clear();
        batch.clear();
    }

    /// Seals packets that came out of the tunnel device, which wait for the next [`Links::flush`]. The batch is empty
    /// afterwards.
    pub fn seal(&mut self, endpoint: &mut impl Endpoint, batch: &mut Batch<virtio::Header>, now: Instant) {
        if let Some(mtu) = endpoint.inner_mtu() {
            for (header, _, packet) in batch.packets() {
                match Outgoing::new(packet, header) {
                    Ok(Outgoing::Whole(packet)) => self.seal_one(endpoint, packet, mtu, now),
                    Ok(Outgoing::Segments(segments)) => self.seal_segments(endpoint, &segments, mtu, now),
                    Err(unfit) => tracing::trace!(%unfit, "nothing can be done with what the machine sent"),
                }
            }
            self.moved = true;
        }
        batch.clear();
    }

    fn seal_one(&mut self, endpoint: &mut impl Endpoint, packet: &mut [u8], mtu: InnerMtu, now: Instant) {
        clamp_mss(packet, mtu.octets);
        if packet.len() > usize::from(mtu.octets) && mtu.is_proven {
            self.seal_large(endpoint, packet, mtu.octets, now);
        } else {
            self.seal_copy(endpoint, packet, now);
        }
    }

    /// Several packets came out of the tunnel device in one piece. All but the last are equally long.
    fn seal_segments(
        &mut self,
        endpoint: &mut impl Endpoint,
        segments: &Segments<'_>,
        mtu: InnerMtu,
        now: Instant,
    ) {
        let is_large = segments.len(0) > usize::from(mtu.octets) && mtu.is_proven;
        for index in 0..segments.count() {
            let len = segments.len(index);
            if is_large {
                let mut packet = vec![0; len];
                segments.write(index, &mut packet);
                if self.seal_large(endpoint, &packet, mtu.octets, now) {
                    // The sender knows, and sends all of it again.
                    return;
                }
            } else {
                let write = |room: &mut [u8]| segments.write(index, room);
                endpoint.seal(len, write, &mut self.links, now);
            }
        }
    }

    /// A packet came out of the tunnel device that the path does not carry in one piece: the device's MTU was larger a
    /// moment ago, or IPv6 does not let it be as small as the path's. Its sender is told, or the packet is fragmented.
    /// What allows neither is sent as it is. Whether the sender was told.
    fn seal_large(&mut self, endpoint: &mut impl Endpoint, packet: &[u8], mtu: u16, now: Instant) -> bool {
        if let Some(parts) = esp::fragments(packet, mtu) {
            for part in parts {
                self.seal_copy(endpoint, &part, now);
            }
        } else if let (Some(tun), Some(answer)) = (&self.tun, esp::too_big(packet, mtu)) {
            let whole = virtio::Header::default().to_octets();
            if let Err(error) = tun.send(&[IoSlice::new(&whole), IoSlice::new(&answer)]) {
                tracing::trace!(%error, "the machine did not take a packet");
            }
            return true;
        } else {
            self.seal_copy(endpoint, packet, now);
        }
        false
    }

    fn seal_copy(&mut self, endpoint: &mut impl Endpoint, packet: &[u8], now: Instant) {
        let write = |room: &mut [u8]| room.copy_from_slice(packet);
        endpoint.seal(packet.len(), write, &mut self.links, now);
    }
}

impl<T: Tun, S: Socket, C: Stream> Default for Packets<T, S, C> {
    fn default() -> Self {
        Self::new()
    }
}
