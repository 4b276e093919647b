//! The TSi and TSr payloads (RFC 7296, section 3.13).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::iana::{PayloadType, TsType};
use super::payload::{put_length, put_u16};
use super::reader::Reader;
use super::{DecodeError, DecodeErrorKind, Element, EncodeError};

/// One selector of a TSi or TSr payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ts<'a> {
    /// A range of addresses.
    Range(TrafficSelector),
    /// A type without a meaning here.
    Unknown {
        /// Its type.
        kind: TsType,
        /// The octet that is the IP protocol in the known types.
        protocol: u8,
        /// What follows the selector's length.
        body: &'a [u8],
    },
}

impl From<TrafficSelector> for Ts<'_> {
    fn from(selector: TrafficSelector) -> Self {
        Self::Range(selector)
    }
}

/// Packets of one protocol between two addresses and two ports, all inclusive: what a Child SA carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TrafficSelector {
    /// The IP protocol; 0 stands for any.
    pub protocol: u8,
    /// The lowest port; for ICMP and ICMPv6 the lowest type and code, in the high and the low octet.
    pub start_port: u16,
    /// The highest port, or type and code. 65535 to 0 is OPAQUE: ports that cannot be seen.
    pub end_port: u16,
    /// The lowest address.
    pub start: IpAddr,
    /// The highest address, of the same family.
    pub end: IpAddr,
}

impl TrafficSelector {
    /// All of IPv4.
    pub const ANY_V4: Self =
        Self::addresses(IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V4(Ipv4Addr::BROADCAST));
    /// All of IPv6.
    pub const ANY_V6: Self = Self::addresses(
        IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        IpAddr::V6(Ipv6Addr::from_bits(u128::MAX)),
    );

    /// All protocols and ports between two addresses of the same family.
    #[must_use]
    pub const fn addresses(start: IpAddr, end: IpAddr) -> Self {
        Self {
            protocol: 0,
            start_port: 0,
            end_port: u16::MAX,
            start,
            end,
        }
    }

    /// Whether the selector is for packets whose ports cannot be seen (RFC 7296, section 3.13.1).
    #[must_use]
    pub const fn is_opaque(&self) -> bool {
        self.start_port == u16::MAX && self.end_port == 0
    }

    /// Whether every packet that `inner` is for is one that this is for too.
    #[must_use]
    pub fn contains(&self, inner: &Self) -> bool {
        let same_family = self.start.is_ipv4() == inner.start.is_ipv4();
        let ports = (self.start_port, self.end_port) == (inner.start_port, inner.end_port)
            || (!self.is_opaque()
                && !inner.is_opaque()
                && self.start_port <= inner.start_port
                && inner.end_port <= self.end_port);
        same_family
            && self.start <= inner.start
            && inner.end <= self.end
            && (self.protocol == 0 || self.protocol == inner.protocol)
            && ports
    }

    /// The prefix length, if the addresses are exactly those of a prefix.
    fn prefix(&self) -> Option<u32> {
        let (differing, common) = match (self.start, self.end) {
            (IpAddr::V4(start), IpAddr::V4(end)) => {
                let differing = start.to_bits() ^ end.to_bits();
                (
                    u128::from(differing),
                    (start.to_bits() & differing == 0).then(|| differing.leading_zeros()),
                )
            }
            (IpAddr::V6(start), IpAddr::V6(end)) => {
                let differing = start.to_bits() ^ end.to_bits();
                (
                    differing,
                    (start.to_bits() & differing == 0).then(|| differing.leading_zeros()),
                )
            }
            _ => return None,
        };
        common.filter(|_| differing & differing.wrapping_add(1) == 0)
    }

    /// Whether the ranges are ranges: one family, and the start not after the end.
    const fn is_possible(&self) -> bool {
        let addresses = match (self.start, self.end) {
            (IpAddr::V4(start), IpAddr::V4(end)) => start.to_bits() <= end.to_bits(),
            (IpAddr::V6(start), IpAddr::V6(end)) => start.to_bits() <= end.to_bits(),
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        };
        addresses && (self.start_port <= self.end_port || self.is_opaque())
    }
}

impl fmt::Display for TrafficSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            protocol,
            start_port,
            end_port,
            start,
            end,
        } = self;
        match self.prefix() {
            _ if start == end => write!(f, "{start}"),
            Some(prefix) => write!(f, "{start}/{prefix}"),
            None => write!(f, "{start}-{end}"),
        }?;
        let any_port = (*start_port, *end_port) == (0, u16::MAX);
        match (protocol, any_port) {
            (0, true) => Ok(()),
            (_, true) => write!(f, "[protocol {protocol}]"),
            _ if self.is_opaque() => write!(f, "[protocol {protocol}, opaque ports]"),
            _ if start_port == end_port => write!(f, "[protocol {protocol}, port {start_port}]"),
            _ => write!(f, "[protocol {protocol}, ports {start_port}-{end_port}]"),
        }
    }
}

/// Reads the body of a TSi or TSr payload.
pub(super) fn decode<'a>(mut reader: Reader<'a>, payload: PayloadType) -> Result<Vec<Ts<'a>>, DecodeError> {
    let at_count = reader;
    let count = reader.u8()?;
    let _reserved: [u8; 3] = reader.array()?;
    if count == 0 {
        return Err(at_count.error(DecodeErrorKind::Count));
    }
    let mut selectors = Vec::new();
    for position in 1..=u16::from(count) {
        if reader.is_empty() {
            return Err(at_count.error(DecodeErrorKind::Count));
        }
        let element = Element::TrafficSelector(payload, position);
        let mut head = reader.named(element);
        let kind = TsType(head.u8()?);
        let protocol = head.u8()?;
        let at_length = head;
        let Some(len) = usize::from(head.u16()?).checked_sub(4) else {
            return Err(at_length.error(DecodeErrorKind::Length));
        };
        let body = head.sub(len, element)?;
        reader = head.named(Element::Payload(payload));
        selectors.push(match kind {
            TsType::IPV4_ADDR_RANGE => Ts::Range(decode_range(body, at_length, protocol, |reader| {
                reader
                    .array::<4>()
                    .map(|octets| IpAddr::V4(Ipv4Addr::from(octets)))
            })?),
            TsType::IPV6_ADDR_RANGE => Ts::Range(decode_range(body, at_length, protocol, |reader| {
                reader
                    .array::<16>()
                    .map(|octets| IpAddr::V6(Ipv6Addr::from(octets)))
            })?),
            _ => Ts::Unknown {
                kind,
                protocol,
                body: { body }.rest(),
            },
        });
    }
    if !reader.is_empty() {
        return Err(at_count.error(DecodeErrorKind::Count));
    }
    Ok(selectors)
}

/// Reads ports and addresses. A wrong length is an error of the length field, `at_length`.
fn decode_range<'a>(
    mut body: Reader<'a>,
    at_length: Reader<'a>,
    protocol: u8,
    address: impl Fn(&mut Reader<'a>) -> Result<IpAddr, DecodeError>,
) -> Result<TrafficSelector, DecodeError> {
    let start = body;
    let mut read = || {
        Ok(TrafficSelector {
            protocol,
            start_port: body.u16()?,
            end_port: body.u16()?,
            start: address(&mut body)?,
            end: address(&mut body)?,
        })
    };
    let selector = read();
    match selector {
        Ok(selector) if body.is_empty() && selector.is_possible() => Ok(selector),
        Ok(_) if body.is_empty() => Err(start.error(DecodeErrorKind::Value)),
        Ok(_) => Err(at_length.error(DecodeErrorKind::Length)),
        Err(DecodeError { .. }) => Err(at_length.error(DecodeErrorKind::Length)),
    }
}

/// Writes the body of a TSi or TSr payload.
pub(super) fn encode(
    selectors: &[Ts<'_>],
    payload: PayloadType,
    out: &mut Vec<u8>,
) -> Result<(), EncodeError> {
    out.push(u8::try_from(selectors.len()).map_err(|_| EncodeError::TooLarge(Element::Payload(payload)))?);
    out.extend_from_slice(&[0; 3]);
    for (index, selector) in selectors.iter().enumerate() {
        let position = u16::try_from(index.saturating_add(1)).unwrap_or(u16::MAX);
        let element = Element::TrafficSelector(payload, position);
        let start = out.len();
        match selector {
            Ts::Range(range) => {
                let kind = match (range.start, range.end) {
                    (IpAddr::V4(_), IpAddr::V4(_)) => TsType::IPV4_ADDR_RANGE,
                    (IpAddr::V6(_), IpAddr::V6(_)) => TsType::IPV6_ADDR_RANGE,
                    (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {
                        return Err(EncodeError::Value(element));
                    }
                };
                out.extend_from_slice(&[kind.0, range.protocol, 0, 0]);
                put_u16(out, range.start_port);
                put_u16(out, range.end_port);
                for address in [range.start, range.end] {
                    match address {
                        IpAddr::V4(address) => out.extend_from_slice(&address.octets()),
                        IpAddr::V6(address) => out.extend_from_slice(&address.octets()),
                    }
                }
            }
            Ts::Unknown { kind, protocol, body } => {
                out.extend_from_slice(&[kind.0, *protocol, 0, 0]);
                out.extend_from_slice(body);
            }
        }
        put_length(out, start, 2, element)?;
    }
    Ok(())
}
