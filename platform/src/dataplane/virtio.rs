//! The header before each packet that tells what is left to do with it: `struct virtio_net_hdr` of
//! "Virtual I/O Device (VIRTIO) Version 1.2", section 5.1.6, as Linux's tunnel devices speak it with
//! `IFF_VNET_HDR`.

/// Octets of a [`Header`].
pub const LEN: usize = 10;

const NEEDS_CHECKSUM: u8 = 1;
const ECN: u8 = 0x80;

/// What kind of large packet it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// One packet as it shall be.
    #[default]
    Whole,
    /// TCP over IPv4, to be cut into segments.
    TcpV4,
    /// TCP over IPv6, to be cut into segments.
    TcpV6,
    /// UDP over either, to be cut into datagrams.
    Udp,
    /// Something that we did not ask for.
    Unknown(u8),
}

/// What is left to do with a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The transport's checksum is to be computed: where the octets that it covers begin, and where it lies from
    /// there. Its place holds the sum of the pseudo-header.
    pub checksum: Option<(u16, u16)>,
    /// What it is to be cut into.
    pub kind: Kind,
    /// TCP only: congestion was signalled in the first segment only (`CWR`).
    pub ecn: bool,
    /// Octets of headers, as the sender believes.
    pub header_len: u16,
    /// Octets of payload in each segment but the last.
    pub segment_len: u16,
}

impl Header {
    /// Reads one. The numbers are in this machine's byte order.
    #[must_use]
    pub const fn from_octets(octets: [u8; LEN]) -> Self {
        let [flags, kind, h0, h1, s0, s1, c0, c1, o0, o1] = octets;
        Self {
            checksum: if flags & NEEDS_CHECKSUM == 0 {
                None
            } else {
                Some((u16::from_ne_bytes([c0, c1]), u16::from_ne_bytes([o0, o1])))
            },
            kind: match kind & !ECN {
                0 => Kind::Whole,
                1 => Kind::TcpV4,
                4 => Kind::TcpV6,
                5 => Kind::Udp,
                other => Kind::Unknown(other),
            },
            ecn: kind & ECN != 0,
            header_len: u16::from_ne_bytes([h0, h1]),
            segment_len: u16::from_ne_bytes([s0, s1]),
        }
    }

    /// Writes it.
    #[must_use]
    pub fn to_octets(self) -> [u8; LEN] {
        let (start, offset) = self.checksum.unwrap_or_default();
        let kind = match self.kind {
            Kind::Whole => 0,
            Kind::TcpV4 => 1,
            Kind::TcpV6 => 4,
            Kind::Udp => 5,
            Kind::Unknown(other) => other,
        };
        let [h0, h1] = self.header_len.to_ne_bytes();
        let [s0, s1] = self.segment_len.to_ne_bytes();
        let [c0, c1] = start.to_ne_bytes();
        let [o0, o1] = offset.to_ne_bytes();
        let flags = if self.checksum.is_some() {
            NEEDS_CHECKSUM
        } else {
            0
        };
        let kind = if self.ecn { kind | ECN } else { kind };
        [flags, kind, h0, h1, s0, s1, c0, c1, o0, o1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_comes_back() {
        for kind in [Kind::Whole, Kind::TcpV4, Kind::TcpV6, Kind::Udp, Kind::Unknown(3)] {
            for (checksum, ecn) in [(None, false), (Some((20, 16)), true), (Some((40, 6)), false)] {
                let header = Header {
                    checksum,
                    kind,
                    ecn,
                    header_len: 54,
                    segment_len: 1386,
                };
                assert_eq!(Header::from_octets(header.to_octets()), header);
            }
        }
    }

    #[test]
    fn nothing_to_do_is_all_zeroes() {
        assert_eq!(Header::default().to_octets(), [0; LEN]);
        assert_eq!(Header::from_octets([0; LEN]), Header::default());
    }

    /// As `<linux/virtio_net.h>` has it: flags, `gso_type`, `hdr_len`, `gso_size`, `csum_start`, `csum_offset`.
    #[test]
    fn the_layout_is_the_kernels() {
        let [h0, h1] = 54_u16.to_ne_bytes();
        let [s0, s1] = 1386_u16.to_ne_bytes();
        let [c0, c1] = 20_u16.to_ne_bytes();
        let [o0, o1] = 16_u16.to_ne_bytes();
        let header = Header::from_octets([1, 0x81, h0, h1, s0, s1, c0, c1, o0, o1]);
        assert_eq!(
            (header.kind, header.ecn, header.checksum),
            (Kind::TcpV4, true, Some((20, 16)))
        );
        assert_eq!((header.header_len, header.segment_len), (54, 1386));
    }
}
