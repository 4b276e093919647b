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

#[cfg(test)]
mod tests {
    use hex_literal::hex;

    use super::*;
    use crate::crypto::{Encr, Integ};

    const GCM: CipherSuite = CipherSuite {
        encr: Encr::AesGcm16 { bits: 256 },
        integ: None,
    };
    const CHACHA: CipherSuite = CipherSuite {
        encr: Encr::ChaCha20Poly1305,
        integ: None,
    };

    const fn cbc(integ: Integ) -> CipherSuite {
        CipherSuite {
            encr: Encr::AesCbc { bits: 256 },
            integ: Some(integ),
        }
    }

    #[test]
    fn an_ethernet_carries_1438_octets() {
        assert_eq!(inner_mtu(1500, false, GCM), 1438);
        assert_eq!(inner_mtu(1500, true, CHACHA), 1418);
        // 1500 - 20 - 8 - 8 - 16 - 16 = 1432 = 89 * 16 + 8; 89 * 16 - 2.
        assert_eq!(inner_mtu(1500, false, cbc(Integ::HmacSha2_256_128)), 1422);
        assert_eq!(inner_mtu(u16::MAX, false, GCM), 65_470);
    }

    #[test]
    fn it_never_falls_below_what_ipv6_needs() {
        for outer in [0, 1, 576, 1280, 1341] {
            assert_eq!(inner_mtu(outer, false, GCM), 1280);
        }
        assert_eq!(inner_mtu(1346, false, GCM), 1282);
    }

    #[test]
    fn the_largest_packet_fits_and_a_larger_one_does_not() {
        use std::sync::Arc;

        use crate::crypto::PacketKey;
        use crate::esp::{Outbound, Selectors};
        use crate::wire::EspSpi;

        for suite in [GCM, CHACHA, cbc(Integ::HmacSha1_96), cbc(Integ::HmacSha2_512_256)] {
            let key = PacketKey::new(
                suite,
                &vec![1; suite.encr_key_len()],
                &vec![2; suite.integ_key_len()],
            );
            let key = key.expect("the lengths are the suite's");
            let outbound = Outbound::new(EspSpi(256), key, true, Arc::new(Selectors::default()));
            for (ipv6, headers) in [(false, 28), (true, 48)] {
                for outer in 1420..1520_u16 {
                    let mtu = inner_mtu(outer, ipv6, suite);
                    assert!(headers + outbound.sealed_len(mtu.into()) <= outer.into());
                    assert!(headers + outbound.sealed_len(usize::from(mtu) + 1) > outer.into());
                }
            }
        }
    }

    fn large_v4(len: u16) -> Vec<u8> {
        let mut packet = hex!("4500 0000 0001 4000 4011 0000 0a000002 c0000201 1000 2000 05dc 0000").to_vec();
        packet[2..4].copy_from_slice(&len.to_be_bytes());
        packet.resize(len.into(), 0x31);
        packet
    }

    fn large_v6(len: u16) -> Vec<u8> {
        let mut packet = hex!("60000000 0000 1140").to_vec();
        packet[4..6].copy_from_slice(&(len - 40).to_be_bytes());
        packet.extend([[0xfd; 16], [0x20; 16]].concat());
        packet.resize(len.into(), 0x31);
        packet
    }

    #[test]
    fn an_ipv4_sender_hears_the_mtu() {
        let packet = large_v4(1500);
        let answer = too_big(&packet, 1438).expect("it is larger and must not be fragmented");
        assert_eq!(answer.len(), 576);
        assert_eq!(answer[..10], hex!("4500 0240 0000 0000 4001"));
        assert_eq!(answer[12..20], hex!("c0000201 0a000002"));
        assert_eq!(answer[20..22], [3, 4]);
        assert_eq!(answer[24..28], [0, 0, 0x05, 0x9e]);
        assert_eq!(answer[28..], packet[..548]);
        assert_eq!((checksum(&[&answer[..20]]), checksum(&[&answer[20..]])), (0, 0));
    }

    #[test]
    fn an_ipv6_sender_hears_the_mtu() {
        let packet = large_v6(1500);
        let answer = too_big(&packet, 1418).expect("it is larger");
        assert_eq!(answer.len(), 1280);
        assert_eq!(answer[..8], hex!("60000000 04d8 3a40"));
        assert_eq!(answer[8..40], [[0x20; 16], [0xfd; 16]].concat());
        assert_eq!(answer[40..42], [2, 0]);
        assert_eq!(answer[44..48], [0, 0, 0x05, 0x8a]);
        assert_eq!(answer[48..], packet[..1232]);
        assert_eq!(
            checksum(&[&answer[8..40], &hex!("000004d8 0000003a"), &answer[40..]]),
            0
        );
    }

    #[test]
    fn nothing_is_said_where_nothing_may_be() {
        assert_eq!(too_big(&large_v4(1438), 1438), None);
        assert_eq!(too_big(&large_v6(1438), 1438), None);
        assert_eq!(too_big(&[], 1438), None);
        let with = |packet: Vec<u8>, at: usize, octets: &[u8]| {
            let mut packet = packet;
            packet[at..at + octets.len()].copy_from_slice(octets);
            too_big(&packet, 1300)
        };
        assert!(with(large_v4(1500), 0, &[0x45]).is_some());
        for (at, octets) in [
            (6, &[0][..]),
            (7, &[1]),
            (12, &[0, 0, 0, 0]),
            (12, &[224, 0, 0, 1]),
            (16, &[224]),
            (16, &[255; 4]),
        ] {
            assert_eq!(with(large_v4(1500), at, octets), None, "{octets:?} at {at}");
        }
        let icmp = |kind| {
            let mut packet = large_v4(1500);
            packet[9] = 1;
            packet[20] = kind;
            too_big(&packet, 1300)
        };
        assert!(icmp(8).is_some());
        assert_eq!([3, 4, 5, 11, 12].map(icmp), [const { None }; 5]);
        let icmpv6 = |kind| {
            let mut packet = large_v6(1500);
            packet[6] = 58;
            packet[40] = kind;
            too_big(&packet, 1300)
        };
        assert!(icmpv6(128).is_some());
        assert_eq!([1, 2, 127, 137].map(icmpv6), [const { None }; 4]);
        assert_eq!(with(large_v6(1500), 24, &[0xff]), None);
    }
}
