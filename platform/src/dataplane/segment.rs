//! What comes out of a tunnel device with work left to do: one packet without its checksum, or a large one to be cut
//! into segments, as a network card with segmentation offload would.

use std::fmt;

use super::checksum::{Sum, pseudo_header};
use super::virtio::{Header, Kind};
use super::{
    IPV4_HEADER, IPV6_HEADER, TCP, TCP_CHECKSUM, TCP_HEADER, UDP, UDP_CHECKSUM, UDP_HEADER, octets_at, put,
    u16_at, u32_at,
};

/// How many IPv6 extension headers are walked before a packet is given up.
const MAX_EXTENSION_HEADERS: usize = 8;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const DESTINATION_OPTIONS: u8 = 60;

/// TCP's flags.
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

/// Why a packet cannot be finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// It is to be cut in a way that we did not offer.
    Kind(Kind),
    /// Its headers are not those of what it is said to be, or not all there.
    Headers,
    /// It is to be cut into segments of nothing.
    SegmentLen,
    /// The checksum would lie outside of it.
    Checksum,
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kind(kind) => write!(f, "a packet to be cut in an unknown way ({kind:?})"),
            Self::Headers => f.write_str("a packet to be cut whose headers are something else"),
            Self::SegmentLen => f.write_str("a packet to be cut into segments of nothing"),
            Self::Checksum => f.write_str("a packet whose checksum would lie outside of it"),
        }
    }
}

/// What came out of a tunnel device.
#[derive(Debug)]
pub enum Outgoing<'p> {
    /// One packet, complete.
    Whole(&'p mut [u8]),
    /// Several, yet to be written one by one.
    Segments(Segments<'p>),
}

impl<'p> Outgoing<'p> {
    /// Does what `header` says is left to do with `packet`. Nothing in the header is taken on trust that the packet
    /// itself tells.
    ///
    /// # Errors
    /// The packet cannot be what the header says; there is nothing to send.
    pub fn new(packet: &'p mut [u8], header: Header) -> Result<Self, Unfit> {
        match header.kind {
            Kind::Whole => {
                if let Some(place) = header.checksum {
                    complete(packet, place).ok_or(Unfit::Checksum)?;
                }
                Ok(Self::Whole(packet))
            }
            Kind::TcpV4 | Kind::TcpV6 | Kind::Udp => Segments::new(packet, header).map(Self::Segments),
            Kind::Unknown(_) => Err(Unfit::Kind(header.kind)),
        }
    }
}

/// Computes the checksum that a packet lacks; its place holds the sum of the pseudo-header already.
fn complete(packet: &mut [u8], (start, offset): (u16, u16)) -> Option<()> {
    let sum = Sum::default().with(packet.get(start.into()..)?);
    put(
        packet,
        usize::from(start) + usize::from(offset),
        not_zero(sum.finished()),
    )
}

/// UDP writes a checksum of zero as its other form, as zero says that there is none (RFC 768); to TCP both are equal.
const fn not_zero(checksum: [u8; 2]) -> [u8; 2] {
    match checksum {
        [0, 0] => [0xff, 0xff],
        other => other,
    }
}

/// A large packet as the segments that it stands for (TCP: RFC 9293, section 3.8.3; UDP datagrams of one length).
///
/// They are what Linux itself would make of it: IPv4's identification counts up, FIN and PSH are in the last only and
/// CWR in the first only.
#[derive(Clone, Copy, Debug)]
pub struct Segments<'p> {
    headers: &'p [u8],
    payload: &'p [u8],
    transport_at: usize,
    segment_len: usize,
    is_v4: bool,
    is_tcp: bool,
    pseudo: Sum,
}

impl<'p> Segments<'p> {
    fn new(packet: &'p [u8], header: Header) -> Result<Self, Unfit> {
        if header.segment_len == 0 {
            return Err(Unfit::SegmentLen);
        }
        Self::parse(packet, header).ok_or(Unfit::Headers)
    }

    fn parse(packet: &'p [u8], header: Header) -> Option<Self> {
        let is_v4 = packet.first()? >> 4 == 4;
        let (protocol, transport_at, is_routed) = if is_v4 {
            transport_v4(packet)?
        } else {
            transport_v6(packet)?
        };
        let expected = match header.kind {
            Kind::TcpV4 => (true, TCP),
            Kind::TcpV6 => (false, TCP),
            Kind::Udp => (is_v4, UDP),
            Kind::Whole | Kind::Unknown(_) => return None,
        };
        if (is_v4, protocol) != expected || packet.len() > usize::from(u16::MAX) {
            return None;
        }
        let is_tcp = protocol == TCP;
        let transport_len = if is_tcp {
            let len = usize::from(packet.get(transport_at + 12)? >> 4) * 4;
            (len >= TCP_HEADER).then_some(len)?
        } else {
            UDP_HEADER
        };
        let (headers, payload) = packet.split_at_checked(transport_at + transport_len)?;
        let pseudo = if is_routed {
            // The destination that counts is not the header's (RFC 8200, section 8.1); the sender has summed it up, with
            // the length of the whole, which is subtracted here.
            let checksum_at = if is_tcp { TCP_CHECKSUM } else { UDP_CHECKSUM };
            let place = Some((transport_at as u16, checksum_at as u16));
            let sum = u16_at(packet, transport_at + checksum_at).filter(|_| header.checksum == place)?;
            Sum::default()
                .with_word(sum)
                .with_word(!((packet.len() - transport_at) as u16))
        } else {
            pseudo_header(headers, protocol, 0)?
        };
        Some(Self {
            headers,
            payload,
            transport_at,
            segment_len: header.segment_len.into(),
            is_v4,
            is_tcp,
            pseudo,
        })
    }

    /// How many there are: at least one.
    #[must_use]
    pub const fn count(&self) -> usize {
        let count = self.payload.len().div_ceil(self.segment_len);
        if count == 0 { 1 } else { count }
    }

    /// Octets of the packet that the segment with this index becomes. All but the last are equally long.
    #[must_use]
    pub fn len(&self, index: usize) -> usize {
        self.headers.len() + self.chunk(index).len()
    }

    fn chunk(&self, index: usize) -> &'p [u8] {
        let rest = self.payload.get(index * self.segment_len..).unwrap_or_default();
        rest.get(..self.segment_len).unwrap_or(rest)
    }

    /// Writes the segment with this index as a complete packet into `out`, which has room for exactly [`Self::len`]
    /// octets; an `out` of another length is left in no useful state.
    pub fn write(&self, index: usize, out: &mut [u8]) {
        let _wrong_length = self.try_write(index, out);
    }

    fn try_write(&self, index: usize, out: &mut [u8]) -> Option<()> {
        let chunk = self.chunk(index);
        let (headers, payload) = out.split_at_mut_checked(self.headers.len())?;
        headers.copy_from_slice(self.headers);
        payload.get_mut(..chunk.len())?.copy_from_slice(chunk);

        let len = headers.len() + chunk.len();
        if self.is_v4 {
            let id = u16_at(headers, 4)?.wrapping_add(index as u16);
            put(headers, 2, (len as u16).to_be_bytes())?;
            put(headers, 4, id.to_be_bytes())?;
            put(headers, 10, [0; 2])?;
            let sum = Sum::default().with(headers.get(..self.transport_at)?);
            put(headers, 10, sum.finished())?;
        } else {
            put(headers, 4, ((len - IPV6_HEADER) as u16).to_be_bytes())?;
        }

        let transport = headers.get_mut(self.transport_at..)?;
        let transport_len = (len - self.transport_at) as u16;
        let checksum_at = if self.is_tcp {
            let offset = (index * self.segment_len) as u32;
            let sequence = u32_at(transport, 4)?.wrapping_add(offset);
            put(transport, 4, sequence.to_be_bytes())?;
            let flags = transport.get_mut(13)?;
            if index > 0 {
                *flags &= !CWR;
            }
            if index + 1 < self.count() {
                *flags &= !(FIN | PSH);
            }
            TCP_CHECKSUM
        } else {
            put(transport, 4, transport_len.to_be_bytes())?;
            UDP_CHECKSUM
        };
        put(transport, checksum_at, [0; 2])?;
        let sum = self.pseudo.with_word(transport_len).with(transport).with(payload);
        put(transport, checksum_at, not_zero(sum.finished()))
    }
}

/// An IPv4 packet's protocol, where it begins, and whether it is on its way to an address that is not the header's; of no
/// fragment.
fn transport_v4(packet: &[u8]) -> Option<(u8, usize, bool)> {
    const FRAGMENT: u16 = 0x3fff;
    let header_len = usize::from(packet.first()? & 0x0f) * 4;
    let is_fragment = u16_at(packet, 6)? & FRAGMENT != 0;
    (header_len >= IPV4_HEADER && !is_fragment).then_some((*packet.get(9)?, header_len, false))
}

/// The same of an IPv6 packet, behind its extension headers.
fn transport_v6(packet: &[u8]) -> Option<(u8, usize, bool)> {
    let mut next = *packet.get(6)?;
    let mut at = IPV6_HEADER;
    let mut is_routed = false;
    for _ in 0..=MAX_EXTENSION_HEADERS {
        if !matches!(next, HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS) {
            return Some((next, at, is_routed));
        }
        let [following, len, _, segments_left] = octets_at(packet, at)?;
        is_routed |= next == ROUTING && segments_left > 0;
        next = following;
        at += 8 + usize::from(len) * 8;
    }
    None
}

#[cfg(test)]
mod tests;
