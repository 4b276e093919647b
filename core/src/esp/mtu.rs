//! How large an inner packet may be, and what to say to the sender of a larger one.

use std::net::IpAddr;

use super::selector::Inner;
use super::{HEADER, TRAILER, alignment};
use crate::crypto::CipherSuite;

/// The least MTU of a tunnel: what every IPv6 link carries (RFC 8200, section 5).
pub const MIN_MTU: u16 = 1280;

const UDP_HEADER: usize = 8;

/// The largest inner packet, in octets, that travels in one outer packet of `outer_mtu` octets, over IPv4 or IPv6
/// with ESP in UDP: 1438 in 1500 over IPv4 for every AEAD.
#[must_use]
pub const fn inner_mtu(outer_mtu: u16, ipv6_outer: bool, suite: CipherSuite) -> u16 {
    let room = (outer_mtu as usize).saturating_sub(overhead(ipv6_outer, suite));
    (room - room % alignment(suite)).saturating_sub(TRAILER) as u16
}

/// The octets of the outer packet that an inner one of `inner` octets becomes, with the same headers as
/// [`inner_mtu`] has in mind.
#[must_use]
pub const fn outer_len(inner: u16, ipv6_outer: bool, suite: CipherSuite) -> u16 {
    let padded = (inner as usize + TRAILER).next_multiple_of(alignment(suite));
    let len = overhead(ipv6_outer, suite) + padded;
    if len > u16::MAX as usize {
        u16::MAX
    } else {
        len as u16
    }
}

/// The outer headers, the initialization vector and the integrity check value.
const fn overhead(ipv6_outer: bool, suite: CipherSuite) -> usize {
    let ip_header = if ipv6_outer { 40 } else { 20 };
    ip_header + UDP_HEADER + HEADER + suite.iv_len() + suite.icv_len()
}

/// The ICMP message that makes the sender of `packet` send smaller ones: "fragmentation needed" (RFC 1191,
/// section 4) or "packet too big" (RFC 4443, section 3.2) with `mtu`. It seems to come from the packet's
/// destination, the only address beyond the tunnel that is known to have a way back. To IPv6 it never says less than
/// [`MIN_MTU`], which nobody would believe (RFC 8201, section 4).
///
/// `None` when nothing is to be said: the packet fits, its sender wants it fragmented rather than refused, or
/// ICMP forbids an answer (RFC 1122, section 3.2.2; RFC 4443, section 2.4).
#[must_use]
pub fn too_big(packet: &[u8], mtu: u16) -> Option<Vec<u8>> {
    let inner = Inner::parse(packet).ok()?;
    let mtu = if inner.source.is_ipv6() {
        mtu.max(MIN_MTU)
    } else {
        mtu
    };
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

/// The fragments, of at most `mtu` octets each, of an IPv4 packet whose sender allows them (RFC 791, section 3.2).
/// One with options is left alone: some of them belong into every fragment, and some do not.
///
/// `None` when the packet fits, must not be fragmented, or cannot be.
#[must_use]
pub fn fragments(packet: &[u8], mtu: u16) -> Option<Vec<Vec<u8>>> {
    const DONT_FRAGMENT: u16 = 0x4000;
    const MORE_FRAGMENTS: u16 = 0x2000;
    const OFFSET: u16 = 0x1fff;
    let inner = Inner::parse(packet).ok()?;
    let packet = packet.get(..inner.len)?;
    let (header, data) = packet.split_first_chunk::<20>()?;
    let flags = u16::from_be_bytes([header[6], header[7]]);
    if header[0] != 0x45 || inner.len <= usize::from(mtu) || flags & DONT_FRAGMENT != 0 {
        return None;
    }
    let room = usize::from(mtu).checked_sub(header.len())? / 8;
    let mut offset = flags & OFFSET;
    let mut chunks = data.chunks((room > 0).then_some(room * 8)?).peekable();
    let mut all = Vec::new();
    while let Some(chunk) = chunks.next() {
        let more = if chunks.peek().is_some() {
            MORE_FRAGMENTS
        } else {
            flags & MORE_FRAGMENTS
        };
        let mut head = *header;
        head[2..4].copy_from_slice(&((header.len() + chunk.len()) as u16).to_be_bytes());
        head[6..8].copy_from_slice(&(more | offset).to_be_bytes());
        head[10..12].fill(0);
        let sum = checksum(&[&head]).to_be_bytes();
        head[10..12].copy_from_slice(&sum);
        all.push([&head, chunk].concat());
        offset = offset.checked_add(room as u16)?;
    }
    Some(all)
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
    fn small_paths_carry_little() {
        let inner = |outer| inner_mtu(outer, false, GCM);
        assert_eq!([0, 1, 61, 576, 1280, 1343].map(inner), [0, 0, 0, 514, 1218, 1278]);
        assert_eq!([1344, 1347, 1348].map(inner), [1282, 1282, 1286]);
    }

    #[test]
    fn an_outer_packet_is_as_long_as_its_inner_one_needs() {
        assert_eq!(outer_len(1280, false, GCM), 1344);
        assert_eq!(outer_len(1280, true, GCM), 1364);
        assert_eq!(outer_len(u16::MAX, false, GCM), u16::MAX);
        for suite in [GCM, CHACHA, cbc(Integ::HmacSha1_96)] {
            for outer in 576..1501 {
                let inner = inner_mtu(outer, true, suite);
                assert!(outer_len(inner, true, suite) <= outer);
                assert!(outer_len(inner + 1, true, suite) > outer);
            }
        }
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
    fn what_may_be_fragmented_is() {
        let mut packet = large_v4(1500);
        assert_eq!(fragments(&packet, 1218), None, "it must not be");
        packet[6..8].copy_from_slice(&[0, 0]);
        assert_eq!(fragments(&packet, 1500), None, "it fits");
        let sum = checksum(&[&packet[..20]]).to_be_bytes();
        packet[10..12].copy_from_slice(&sum);
        let parts = fragments(&packet, 1218).expect("it may be");
        // 1218 - 20 = 1198, of which 149 * 8 = 1192 go into each but the last.
        assert_eq!(parts.iter().map(Vec::len).collect::<Vec<_>>(), [1212, 308]);
        assert_eq!([&parts[0][20..], &parts[1][20..]].concat(), packet[20..]);
        assert_eq!(
            (&parts[0][6..8], &parts[1][6..8]),
            (&[0x20, 0][..], &[0, 149][..])
        );
        for part in &parts {
            assert_eq!(checksum(&[&part[..20]]), 0);
            assert_eq!(usize::from(u16::from_be_bytes([part[2], part[3]])), part.len());
        }
        // A fragment is cut again where it stands.
        let again = fragments(&parts[0], 700).expect("it may be");
        assert_eq!(
            again.iter().map(|part| [part[6], part[7]]).collect::<Vec<_>>(),
            [[0x20, 0], [0x20, 85]]
        );
        assert_eq!(fragments(&packet, 27), None, "nothing would fit");
        assert_eq!(fragments(&large_v6(1500), 1218), None);
        assert_eq!(fragments(&[], 1218), None);
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
        assert_eq!(too_big(&large_v6(1280), 1218), None, "IPv6 needs it");
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
