//! What a tunnel carries: inner packets against the negotiated traffic selectors (RFC 4301, section 4.4.1.1).

use std::net::{IpAddr, Ipv4Addr};

use super::Discard;
use crate::wire::TrafficSelector;

/// How many IPv6 extension headers are walked before a packet is given up. Real packets have at most three.
const MAX_EXTENSION_HEADERS: usize = 8;

/// The traffic selectors of a Child SA after narrowing. A packet passes when its near end is in one of `local`
/// and its far end in one of `remote`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selectors {
    /// Our side's: TSi, as we are the initiator.
    pub local: Vec<TrafficSelector>,
    /// The gateway's side's: TSr.
    pub remote: Vec<TrafficSelector>,
}

impl Selectors {
    /// Whether an inner packet may be sent.
    pub(super) fn allow_outbound(&self, inner: &Inner) -> bool {
        let [source, destination] = inner.upper.fields();
        let local = self
            .local
            .iter()
            .any(|selector| inner.is_in(selector, inner.source, source));
        local
            && self
                .remote
                .iter()
                .any(|selector| inner.is_in(selector, inner.destination, destination))
    }

    /// Whether an inner packet may be received.
    pub(super) fn allow_inbound(&self, inner: &Inner) -> bool {
        let [source, destination] = inner.upper.fields();
        let remote = self
            .remote
            .iter()
            .any(|selector| inner.is_in(selector, inner.source, source));
        remote
            && self
                .local
                .iter()
                .any(|selector| inner.is_in(selector, inner.destination, destination))
    }
}

/// What selectors look at in an inner packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Inner {
    /// The packet's length by its own header; octets behind it are padding (RFC 4303, section 2.7).
    pub(super) len: usize,
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    /// The first header that is not an extension header; `None` when a fragment hides it.
    protocol: Option<u8>,
    upper: Upper,
    /// Whether the packet is a fragment other than the first.
    later_fragment: bool,
}

/// The fields of the upper layer that selectors call ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Upper {
    Ports {
        source: u16,
        destination: u16,
    },
    /// ICMP: type and code. Mobility header: type, and zero.
    Type(u16),
    /// There are none, or a fragment hides them: OPAQUE.
    Hidden,
}

/// What one end's port selector is compared with.
#[derive(Clone, Copy)]
enum Field {
    Value(u16),
    Hidden,
    /// This end's selector says what it may send, and it is not the sender.
    Unchecked,
}

impl Upper {
    /// The fields of source and destination. A type is checked at its sender's end only: one end's selector can
    /// thus let out a type that the other's does not (RFC 4301, section 4.4.1.3).
    const fn fields(self) -> [Field; 2] {
        match self {
            Self::Ports { source, destination } => [Field::Value(source), Field::Value(destination)],
            Self::Type(value) => [Field::Value(value), Field::Unchecked],
            Self::Hidden => [Field::Hidden, Field::Hidden],
        }
    }
}

impl Inner {
    /// Reads the headers of an IPv4 or IPv6 packet.
    ///
    /// # Errors
    /// [`Discard::Malformed`] when there is less packet than its headers say, or more of them than is reasonable.
    pub(super) fn parse(packet: &[u8]) -> Result<Self, Discard> {
        match packet.first().map(|octet| octet >> 4) {
            Some(4) => Self::parse_v4(packet),
            Some(6) => Self::parse_v6(packet),
            Some(_) | None => None,
        }
        .ok_or(Discard::Malformed)
    }

    fn parse_v4(packet: &[u8]) -> Option<Self> {
        let header = packet.first_chunk::<20>()?;
        let header_len = usize::from(header[0] & 0x0f) * 4;
        let len = usize::from(u16::from_be_bytes([header[2], header[3]]));
        if header_len < 20 {
            return None;
        }
        let payload = packet.get(..len)?.get(header_len..)?;
        let later_fragment = u16::from_be_bytes([header[6], header[7]]) & 0x1fff != 0;
        let protocol = header[9];
        Some(Self {
            len,
            source: IpAddr::V4(Ipv4Addr::new(header[12], header[13], header[14], header[15])),
            destination: IpAddr::V4(Ipv4Addr::new(header[16], header[17], header[18], header[19])),
            protocol: Some(protocol),
            upper: if later_fragment {
                Upper::Hidden
            } else {
                upper(protocol, payload)
            },
            later_fragment,
        })
    }

    fn parse_v6(packet: &[u8]) -> Option<Self> {
        let (header, _) = packet.split_first_chunk::<40>()?;
        let len = 40 + usize::from(u16::from_be_bytes([header[4], header[5]]));
        let mut payload = packet.get(..len)?.get(40..)?;
        let source: [u8; 16] = header[8..24].try_into().ok()?;
        let destination: [u8; 16] = header[24..40].try_into().ok()?;
        let mut next = header[6];
        let mut later_fragment = false;
        // RFC 4301, section 4.4.1.1, has AH and ESP count as what a packet carries, not as extension headers.
        for _ in 0..=MAX_EXTENSION_HEADERS {
            if later_fragment || !is_extension_header(next) {
                let protocol = (!is_extension_header(next)).then_some(next);
                return Some(Self {
                    len,
                    source: IpAddr::V6(source.into()),
                    destination: IpAddr::V6(destination.into()),
                    protocol,
                    upper: if later_fragment {
                        Upper::Hidden
                    } else {
                        upper(next, payload)
                    },
                    later_fragment,
                });
            }
            let head = payload.first_chunk::<8>()?;
            let head_len = if next == FRAGMENT {
                later_fragment = u16::from_be_bytes([head[2], head[3]]) >> 3 != 0;
                8
            } else {
                8 + usize::from(head[1]) * 8
            };
            next = head[0];
            payload = payload.get(head_len..)?;
        }
        None
    }

    fn is_in(&self, selector: &TrafficSelector, address: IpAddr, field: Field) -> bool {
        let addresses = match (selector.start, address, selector.end) {
            (IpAddr::V4(start), IpAddr::V4(address), IpAddr::V4(end)) => start <= address && address <= end,
            (IpAddr::V6(start), IpAddr::V6(address), IpAddr::V6(end)) => start <= address && address <= end,
            (IpAddr::V4(_) | IpAddr::V6(_), _, _) => false,
        };
        let protocol = selector.protocol == 0 || self.protocol == Some(selector.protocol);
        let any = (selector.start_port, selector.end_port) == (0, u16::MAX);
        let ports = match field {
            Field::Value(port) => selector.start_port <= port && port <= selector.end_port,
            // Ranges cannot match what cannot be seen: the fragment might be of any port.
            Field::Hidden => any || selector.is_opaque(),
            Field::Unchecked => true,
        };
        addresses && protocol && ports
    }

    /// Whether ICMP permits an error message about the packet: not about an error message, a later fragment, or
    /// what was sent to many or by nobody (RFC 1122, section 3.2.2; RFC 4443, section 2.4).
    pub(super) fn may_be_answered(&self) -> bool {
        let error = match (self.protocol, self.upper) {
            (Some(ICMP), Upper::Type(value)) => matches!(value >> 8, 3 | 4 | 5 | 11 | 12),
            (Some(ICMPV6), Upper::Type(value)) => value >> 8 < 128 || value >> 8 == ICMPV6_REDIRECT,
            _ => self.later_fragment,
        };
        let broadcast = self.destination == IpAddr::V4(Ipv4Addr::BROADCAST);
        let many = self.destination.is_multicast() || broadcast || self.source.is_multicast();
        !error && !many && !self.source.is_unspecified()
    }

    /// Whether a packet that came through the tunnel claims what nobody at a tunnel's far end can be or say:
    /// a source that is no single host's, this machine's inside, or a neighbour's word on who its neighbours and
    /// routers are (RFC 4861), which no gateway forwards.
    pub(super) fn is_martian(&self) -> bool {
        let source = match self.source {
            IpAddr::V4(source) => {
                source.octets()[0] == 0
                    || source.is_loopback()
                    || source.is_multicast()
                    || source.is_broadcast()
            }
            IpAddr::V6(source) => {
                source.is_unspecified()
                    || source.is_loopback()
                    || source.is_multicast()
                    || source.to_ipv4_mapped().is_some()
            }
        };
        let destination = self.destination.is_unspecified() || self.destination.is_loopback();
        let neighbour = match (self.protocol, self.upper) {
            (Some(ICMP), Upper::Type(value)) => value >> 8 == ICMP_REDIRECT,
            (Some(ICMPV6), Upper::Type(value)) => NEIGHBOUR_DISCOVERY.contains(&(value >> 8)),
            _ => false,
        };
        source || destination || neighbour
    }
}

fn is_extension_header(kind: u8) -> bool {
    matches!(kind, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS)
}

fn upper(protocol: u8, payload: &[u8]) -> Upper {
    let fields = match (protocol, payload) {
        (TCP | UDP | DCCP | SCTP | UDP_LITE, [a, b, c, d, ..]) => Some(Upper::Ports {
            source: u16::from_be_bytes([*a, *b]),
            destination: u16::from_be_bytes([*c, *d]),
        }),
        (ICMP | ICMPV6, [kind, code, ..]) => Some(Upper::Type(u16::from_be_bytes([*kind, *code]))),
        (MOBILITY, [_, _, kind, ..]) => Some(Upper::Type(u16::from_be_bytes([*kind, 0]))),
        _ => None,
    };
    fields.unwrap_or(Upper::Hidden)
}

const HOP_BY_HOP: u8 = 0;
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const DCCP: u8 = 33;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const ICMPV6: u8 = 58;
const DESTINATION_OPTIONS: u8 = 60;
const SCTP: u8 = 132;
const MOBILITY: u8 = 135;
const UDP_LITE: u8 = 136;
const ICMP_REDIRECT: u16 = 5;
const ICMPV6_REDIRECT: u16 = 137;
/// Router and neighbour solicitations and advertisements, and redirects (RFC 4861, section 4).
const NEIGHBOUR_DISCOVERY: std::ops::RangeInclusive<u16> = 133..=137;

#[cfg(test)]
mod tests;
