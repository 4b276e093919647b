//! How large an inner packet may be, and what to say to the sender of a larger one.

use std::net::IpAddr;

use super::selector::Inner;
use super::{HEADER, TRAILER, alignment};
use crate::crypto::CipherSuite;

/// The least MTU of a tunnel: what every IPv6 link carries (RFC 8200, section 5).
pub const MIN_MTU: u16 = 1280;

const UDP_HEADER: usize = 8;

/// The largest inner packet, in octets, that travels in one outer packet of `outer_mtu` octets, over IPv4 or IPv6
/// with ESP in UDP: 1438 in 1500 over IPv4 for every AEAD. Never less than [`MIN_MTU`]: below, the outer packets
/// are to be fragmented.
#[must_use]
pub const fn inner_mtu(outer_mtu: u16, ipv6_outer: bool, suite: CipherSuite) -> u16 {
    let ip_header = if ipv6_outer { 40 } else { 20 };
    let overhead = ip_header + UDP_HEADER + HEADER + suite.iv_len() + suite.icv_len();
    let room = (outer_mtu as usize).saturating_sub(overhead);
    let inner = (room - room % alignment(suite)).saturating_sub(TRAILER);
    if inner < MIN_MTU as usize {
        MIN_MTU
    } else {
        inner as u16
    }
}

/// The ICMP message that makes the sender of `packet` send smaller ones: "fragmentation needed" (RFC 1191,
/// section 4) or "packet too big" (RFC 4443, section 3.2) with `mtu`. It seems to come from the packet's
/// destination, the only address beyond the tunnel that is known to have a way back.
///
/// `None` when nothing is to be said: the packet fits, its sender wants it fragmented rather than refused, or
/// ICMP forbids an answer (RFC 1122, section 3.2.2; RFC 4443, section 2.4).
#[must_use]
pub fn too_big(packet: &[u8], mtu: u16) -> Option<Vec<u8>> {
    let inner = Inner::parse(packet).ok()?;
    if inner.len <= usize::from(mtu) || !inner.may_be_answered() {
        return None;
    }
    match (inner.source, inner.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            const DONT_FRAGMENT: u8 = 0x40;
            if packet.get(6)? & DONT_FRAGMENT == 0 {
                return None;
            }
            // RFC 1812, section 4.3.2.3: as much as fits into 576 octets.
            let quoted = packet.get(..inner.len.min(576 - 28))?;
            let mut header = [0; 20];
            header[0] = 0x45;
            header[2..4].copy_from_slice(&((28 + quoted.len()) as u16).to_be_bytes());
            header[8..10].copy_from_slice(&[64, 1]);
            header[12..16].copy_from_slice(&destination.octets());
            header[16..20].copy_from_slice(&source.octets());
            let sum = checksum(&[&header]).to_be_bytes();
            header[10..12].copy_from_slice(&sum);
            let [high, low] = mtu.to_be_bytes();
            let mut icmp = [3, 4, 0, 0, 0, 0, high, low];
            let sum = checksum(&[&icmp, quoted]).to_be_bytes();
            icmp[2..4].copy_from_slice(&sum);
            Some([&header[..], &icmp, quoted].concat())
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let quoted = packet.get(..inner.len.min(usize::from(MIN_MTU) - 48))?;
            let len = ((8 + quoted.len()) as u16).to_be_bytes();
            let mut header = [0; 40];
            header[0] = 0x60;
            header[4..6].copy_from_slice(&len);
            header[6..8].copy_from_slice(&[58, 64]);
            header[8..24].copy_from_slice(&destination.octets());
            header[24..40].copy_from_slice(&source.octets());
            let [high, low] = mtu.to_be_bytes();
            let mut icmp = [2, 0, 0, 0, 0, 0, high, low];
            let pseudo = [&[0, 0][..], &len, &[0, 0, 0, 58]].concat();
            let sum = checksum(&[&header[8..], &pseudo, &icmp, quoted]).to_be_bytes();
            icmp[2..4].copy_from_slice(&sum);
            Some([&header[..], &icmp, quoted].concat())
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => None,
    }
}

/// The Internet checksum (RFC 1071) over parts, all but the last of an even length.
pub(super) fn checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let sum: u64 = words
        .map(|word| match word {
            [high, low] => u64::from(u16::from_be_bytes([*high, *low])),
            [high] => u64::from(*high) << 8,
            _ => 0,
        })
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}
