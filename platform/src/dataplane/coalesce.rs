//! Putting segments together again, so that the machine handles one large packet instead of many small ones: what
//! Linux's own GRO does on a network card's behalf.

use std::io::{self, IoSlice};

use super::checksum::{Sum, pseudo_header};
use super::virtio::{Header, Kind};
use super::{
    IPV4_HEADER, IPV6_HEADER, TCP, TCP_CHECKSUM, TCP_HEADER, UDP, UDP_CHECKSUM, UDP_HEADER, put, u16_at,
    u32_at,
};

/// How many packets one train has at most.
const LONGEST: usize = 64;
/// The most octets of a train, headers included.
const LARGEST: usize = 65_535;
/// How many of the latest trains are looked at for one that a packet continues.
const RECENT: usize = 16;
/// How many packets are looked at together at most.
const PACKETS: usize = 4096;
/// Octets of the longest headers that a train has: IPv6 and TCP with all the options there may be.
const HEADERS: usize = IPV6_HEADER + 60;

const ACK: u8 = 0x10;
const PSH: u8 = 0x08;

/// What a tunnel device takes in one piece.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offers {
    /// Segments of TCP.
    pub tcp: bool,
    /// Datagrams of UDP.
    pub udp: bool,
}

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// A train that the device should take was refused, so its packets were written one by one.
    pub refused: bool,
    /// Packets that the device did not take even so.
    pub lost: usize,
}

/// Sorts packets into trains and writes these. What it needs is allocated once.
///
/// Only such packets are put together as can be taken apart again without any loss: of the same addresses and ports,
/// with the same type of service, time to live, options, acknowledgement and window, complete and right by their
/// own checksum, each continuing the one before; a shorter one or one with PSH is the last. Packets of one flow are
/// never reordered.
#[derive(Debug)]
pub struct Coalescer {
    packets: Vec<Packet>,
    trains: Vec<Train>,
}

/// Where a packet lies, and the index of the one behind it in its train.
#[derive(Clone, Copy, Debug)]
struct Packet {
    start: usize,
    len: usize,
    next: usize,
}

impl Packet {
    fn octets<'b>(&self, buffer: &'b [u8]) -> &'b [u8] {
        let rest = buffer.get(self.start..).unwrap_or_default();
        rest.get(..self.len).unwrap_or_default()
    }
}

/// Packets that are written as one.
#[derive(Clone, Copy, Debug)]
struct Train {
    /// The indices of its first and last packet.
    first: usize,
    last: usize,
    count: usize,
    /// Octets of all its packets' payloads.
    payload: usize,
    /// Of the addresses and ports.
    hash: u64,
    /// The first packet, and what the next one must be; none for what nothing may be joined with.
    flow: Option<Flow>,
}

/// What may be done with a packet.
#[derive(Clone, Copy, Debug)]
enum Role {
    /// It may be joined with others of its flow, of which the hash of addresses and ports is this.
    Part(u64, Flow),
    /// It stays alone, and no packet of its flow may overtake it.
    Alone(u64),
    /// It stays alone, and as its flow is not known, no packet at all may overtake it.
    Barrier,
}

/// What tells whether a packet continues another one.
#[derive(Clone, Copy, Debug)]
struct Flow {
    kind: Kind,
    transport_at: usize,
    header_len: usize,
    /// Octets of payload.
    size: usize,
    /// TCP: the sequence number.
    sequence: u32,
    /// The identification of an IPv4 packet that may be fragmented (RFC 6864).
    id: Option<u16>,
    /// TCP: nothing must follow in the same train.
    pushed: bool,
}

impl Coalescer {
    /// One without packets.
    #[must_use]
    pub fn new() -> Self {
        Self {
            packets: Vec::with_capacity(PACKETS),
            trains: Vec::with_capacity(PACKETS),
        }
    }

    /// Whether there is no room for more packets.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.packets.len() >= PACKETS
    }

    /// Adds the packet of `len` octets that lies at `start` in the buffer that [`Self::write`] will be given. One more
    /// than fits is dropped; see [`Self::is_full`].
    pub fn add(&mut self, start: usize, len: usize) {
        if !self.is_full() {
            self.packets.push(Packet { start, len, next: 0 });
        }
    }

    /// Writes all packets, in as few pieces as the device's `offers` allow, and forgets them. `send` is given one
    /// piece in parts: first a [`Header`], then what makes up the packet.
    pub fn write(
        &mut self,
        buffer: &[u8],
        offers: Offers,
        mut send: impl FnMut(&[IoSlice<'_>]) -> io::Result<()>,
    ) -> Written {
        self.sort(buffer, offers);
        let mut written = Written::default();
        for train in &self.trains {
            if train.count > 1 {
                match self.write_train(train, buffer, &mut send) {
                    Ok(()) => continue,
                    Err(error) => written.refused |= error.kind() == io::ErrorKind::InvalidInput,
                }
            }
            for packet in self.packets_of(train) {
                let whole = Header::default().to_octets();
                let parts = [IoSlice::new(&whole), IoSlice::new(packet.octets(buffer))];
                if let Err(error) = send(&parts) {
                    tracing::trace!(%error, "the machine did not take a packet");
                    written.lost += 1;
                }
            }
        }
        self.clear();
        written
    }

    /// Forgets all packets.
    pub fn clear(&mut self) {
        self.packets.clear();
        self.trains.clear();
    }

    fn packets_of(&self, train: &Train) -> impl Iterator<Item = &Packet> {
        let mut next = train.first;
        (0..train.count).map_while(move |_| {
            let packet = self.packets.get(next)?;
            next = packet.next;
            Some(packet)
        })
    }

    /// Makes trains of the packets.
    fn sort(&mut self, buffer: &[u8], offers: Offers) {
        let mut barrier = 0;
        for index in 0..self.packets.len() {
            let Some(packet) = self.packets.get(index) else {
                return;
            };
            let octets = packet.octets(buffer);
            let (hash, flow) = match Role::of(octets, offers) {
                Role::Part(hash, flow) => {
                    if self.join(index, octets, (hash, flow), barrier, buffer) {
                        continue;
                    }
                    (hash, Some(flow))
                }
                Role::Alone(hash) => (hash, None),
                Role::Barrier => {
                    barrier = self.trains.len() + 1;
                    (0, None)
                }
            };
            self.trains.push(Train {
                first: index,
                last: index,
                count: 1,
                payload: flow.map_or(0, |flow| flow.size),
                hash,
                flow: flow.map(Flow::followed),
            });
        }
    }

    /// Makes the packet the last of a train behind the barrier, if it continues one.
    fn join(
        &mut self,
        index: usize,
        octets: &[u8],
        (hash, flow): (u64, Flow),
        barrier: usize,
        buffer: &[u8],
    ) -> bool {
        let open = self.trains.get_mut(barrier..).unwrap_or_default();
        // An earlier train of the same flow must not grow any more: its packets would overtake those of this one.
        let mut recent = open.iter_mut().rev().take(RECENT);
        let Some(train) = recent.find(|train| train.hash == hash) else {
            return false;
        };
        let (Some(expected), Some(first)) = (&mut train.flow, self.packets.get(train.first)) else {
            return false;
        };
        let is_next = expected.is_continued_by(&flow)
            && train.payload % expected.size == 0
            && train.count < LONGEST
            && flow.header_len + train.payload + flow.size <= LARGEST
            && flow.has_same_headers(first.octets(buffer), octets);
        if !is_next {
            return false;
        }
        let size = expected.size;
        *expected = Flow {
            size,
            ..flow.followed()
        };
        train.payload += flow.size;
        train.count += 1;
        if let Some(last) = self.packets.get_mut(train.last) {
            last.next = index;
        }
        train.last = index;
        true
    }

    /// Writes a train as one large packet.
    fn write_train(
        &self,
        train: &Train,
        buffer: &[u8],
        send: &mut impl FnMut(&[IoSlice<'_>]) -> io::Result<()>,
    ) -> io::Result<()> {
        let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
        let flow = train.flow.ok_or_else(invalid)?;
        let first = self.packets.get(train.first).ok_or_else(invalid)?;
        let mut room = [0; HEADERS];
        let headers = flow
            .large_headers(first.octets(buffer), train.payload, &mut room)
            .ok_or_else(invalid)?;
        let checksum_at = if flow.is_tcp() { TCP_CHECKSUM } else { UDP_CHECKSUM };
        let header = Header {
            checksum: Some((flow.transport_at as u16, checksum_at as u16)),
            kind: flow.kind,
            ecn: false,
            header_len: flow.header_len as u16,
            segment_len: flow.size as u16,
        }
        .to_octets();
        let mut parts = [IoSlice::new(&[]); LONGEST + 2];
        let payloads = self
            .packets_of(train)
            .map(|packet| packet.octets(buffer).get(flow.header_len..).unwrap_or_default());
        let pieces = [&header, headers].into_iter().chain(payloads);
        for (part, piece) in parts.iter_mut().zip(pieces) {
            *part = IoSlice::new(piece);
        }
        send(parts.get(..train.count + 2).ok_or_else(invalid)?)
    }
}

impl Default for Coalescer {
    fn default() -> Self {
        Self::new()
    }
}

impl Role {
    fn of(packet: &[u8], offers: Offers) -> Self {
        if !(offers.tcp || offers.udp) {
            return Self::Barrier;
        }
        Self::parse(packet, offers).unwrap_or(Self::Barrier)
    }

    fn parse(packet: &[u8], offers: Offers) -> Option<Self> {
        const DONT_FRAGMENT: u16 = 0x4000;
        let (protocol, transport_at, id, addresses) = match packet.first()? {
            0x45 => {
                let fragment = u16_at(packet, 6)?;
                let id = (fragment != DONT_FRAGMENT).then_some(u16_at(packet, 4)?);
                let is_whole =
                    usize::from(u16_at(packet, 2)?) == packet.len() && fragment & !DONT_FRAGMENT == 0;
                is_whole.then_some((*packet.get(9)?, IPV4_HEADER, id, packet.get(12..20)?))?
            }
            0x60..=0x6f => {
                let is_whole = usize::from(u16_at(packet, 4)?) + IPV6_HEADER == packet.len();
                is_whole.then_some((*packet.get(6)?, IPV6_HEADER, None, packet.get(8..40)?))?
            }
            _ => return None,
        };
        if !matches!(protocol, TCP | UDP) {
            return None;
        }
        let hash = hash(addresses, u32_at(packet, transport_at)?);
        let flow = Flow::parse(packet, protocol, transport_at, id, offers);
        Some(flow.map_or(Self::Alone(hash), |flow| Self::Part(hash, flow)))
    }
}

impl Flow {
    /// What a packet without IP options is to others, when it may be joined with any.
    fn parse(
        packet: &[u8],
        protocol: u8,
        transport_at: usize,
        id: Option<u16>,
        offers: Offers,
    ) -> Option<Self> {
        let is_v4 = transport_at == IPV4_HEADER;
        if is_v4 {
            // The large packet gets a right one, and so a wrong one must not be in it.
            let sum = Sum::default().with(packet.get(..IPV4_HEADER)?);
            (sum.folded() == [0xff; 2]).then_some(())?;
        }
        let transport = packet.get(transport_at..)?;
        let (kind, transport_header, sequence, pushed) = match protocol {
            TCP if offers.tcp => {
                let flags = *transport.get(13)?;
                let header_len = usize::from(transport.get(12)? >> 4) * 4;
                let is_data = flags & !PSH == ACK && header_len >= TCP_HEADER;
                let kind = if is_v4 { Kind::TcpV4 } else { Kind::TcpV6 };
                is_data.then_some((kind, header_len, u32_at(transport, 4)?, flags & PSH != 0))?
            }
            UDP if offers.udp => {
                let is_whole = usize::from(u16_at(transport, 4)?) == transport.len();
                // One without a checksum would get one.
                let is_checked = u16_at(transport, UDP_CHECKSUM)? != 0;
                (is_whole && is_checked).then_some((Kind::Udp, UDP_HEADER, 0, false))?
            }
            _ => return None,
        };
        let size = transport
            .len()
            .checked_sub(transport_header)
            .filter(|size| *size > 0)?;
        let sum = pseudo_header(packet, protocol, transport.len())?.with(transport);
        // A wrong one must not be replaced by a right one.
        (sum.folded() == [0xff; 2]).then_some(())?;
        Some(Self {
            kind,
            transport_at,
            header_len: transport_at + transport_header,
            size,
            sequence,
            id,
            pushed,
        })
    }

    const fn is_tcp(&self) -> bool {
        matches!(self.kind, Kind::TcpV4 | Kind::TcpV6)
    }

    /// What the packet behind this one must be.
    fn followed(mut self) -> Self {
        if self.is_tcp() {
            self.sequence = self.sequence.wrapping_add(self.size as u32);
        }
        self.id = self.id.map(|id| id.wrapping_add(1));
        self
    }

    /// Whether `next` is what comes behind the packets so far, as far as these numbers tell.
    fn is_continued_by(&self, next: &Self) -> bool {
        !self.pushed
            && self.kind == next.kind
            && self.header_len == next.header_len
            && self.sequence == next.sequence
            && self.id == next.id
            && next.size <= self.size
    }

    /// Whether two packets have the same headers, those fields apart that differ between segments.
    fn has_same_headers(&self, one: &[u8], other: &[u8]) -> bool {
        let same = |from: usize, to: usize| one.get(from..to) == other.get(from..to);
        let at = self.transport_at;
        let network = if at == IPV4_HEADER {
            // All but the length, the identification and the checksum.
            same(0, 2) && same(6, 10) && same(12, 20)
        } else {
            same(0, 4) && same(6, 40)
        };
        let transport = if self.is_tcp() {
            // The acknowledgement and the data offset; the window; the urgent pointer and the options.
            same(at + 8, at + 13) && same(at + 14, at + 16) && same(at + 18, self.header_len)
        } else {
            true
        };
        network && transport && same(at, at + 4)
    }

    /// The headers of the large packet that stands for packets like `first`, with `payload` octets of payload.
    fn large_headers<'r>(
        &self,
        first: &[u8],
        payload: usize,
        room: &'r mut [u8; HEADERS],
    ) -> Option<&'r [u8]> {
        let headers = room.get_mut(..self.header_len)?;
        headers.copy_from_slice(first.get(..self.header_len)?);
        let len = self.header_len + payload;
        let transport_len = len - self.transport_at;
        let (protocol, checksum_at) = if self.is_tcp() {
            (TCP, TCP_CHECKSUM)
        } else {
            (UDP, UDP_CHECKSUM)
        };
        if self.transport_at == IPV4_HEADER {
            put(headers, 2, (len as u16).to_be_bytes())?;
            put(headers, 10, [0; 2])?;
            let sum = Sum::default().with(headers.get(..IPV4_HEADER)?);
            put(headers, 10, sum.finished())?;
        } else {
            put(headers, 4, (transport_len as u16).to_be_bytes())?;
        }
        let pseudo = pseudo_header(headers, protocol, transport_len)?;
        let transport = headers.get_mut(self.transport_at..)?;
        if !self.is_tcp() {
            put(transport, 4, (transport_len as u16).to_be_bytes())?;
        } else if self.pushed {
            *transport.get_mut(13)? |= PSH;
        }
        // The machine, or whoever it forwards to, computes the rest.
        put(transport, checksum_at, pseudo.folded())?;
        Some(headers)
    }
}

/// A number for addresses and ports. Whoever makes two flows have the same one only keeps both from being put together.
fn hash(addresses: &[u8], ports: u32) -> u64 {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    let (words, _) = addresses.as_chunks::<4>();
    words
        .iter()
        .fold(u64::from(ports).wrapping_mul(ODD), |hash, word| {
            (hash.rotate_left(5) ^ u64::from(u32::from_ne_bytes(*word))).wrapping_mul(ODD)
        })
}

#[cfg(test)]
mod tests;
