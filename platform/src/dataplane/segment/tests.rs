use etherparse::{IpHeaders, Ipv6Extensions, Ipv6Header, TcpHeader};
use proptest::prelude::*;

use super::super::sample;
use super::*;

/// Puts the sum of the pseudo-header in the checksum's place, as the kernel leaves it.
fn leave_checksum(packet: &mut [u8], at: usize, protocol: u8, checksum_at: usize) -> (u16, u16) {
    let sum = pseudo_header(packet, protocol, packet.len() - at).unwrap();
    put(packet, at + checksum_at, sum.folded()).unwrap();
    (at as u16, checksum_at as u16)
}

fn written(segments: &Segments<'_>) -> Vec<Vec<u8>> {
    (0..segments.count())
        .map(|index| {
            let mut out = vec![0xaa; segments.len(index)];
            segments.write(index, &mut out);
            out
        })
        .collect()
}

fn segments(packet: &mut [u8], header: Header) -> Vec<Vec<u8>> {
    match Outgoing::new(packet, header).unwrap() {
        Outgoing::Segments(segments) => written(&segments),
        Outgoing::Whole(_) => panic!("it was to be cut"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Every segment is the packet that etherparse makes of its piece.
    #[test]
    fn segments_of_tcp_are_complete_packets(
        ip in sample::ip_headers(),
        tcp in sample::tcp_header(),
        len in prop_oneof![0_usize..40, 1_usize..5000, 60_000_usize..64_000],
        segment_len in prop_oneof![1_u16..60, 500_u16..1500, Just(u16::MAX)],
        hint: u16,
    ) {
        let len = if segment_len < 60 { len % 3000 } else { len };
        let payload = sample::payload(len, 7);
        let mut large = sample::tcp(&ip, &tcp, &payload);
        let at = sample::ip_len(&ip);
        let checksum = leave_checksum(&mut large, at, TCP, TCP_CHECKSUM);
        let kind = if sample::is_v4(&ip) { Kind::TcpV4 } else { Kind::TcpV6 };
        let header = Header { checksum: Some(checksum), kind, ecn: tcp.cwr, header_len: hint, segment_len };
        let chunks: Vec<&[u8]> = if len == 0 { vec![&[]] } else { payload.chunks(segment_len.into()).collect() };
        let count = chunks.len();
        let expected: Vec<_> = chunks.into_iter().enumerate().map(|(index, chunk)| {
            let mut tcp = tcp.clone();
            let offset = (index * usize::from(segment_len)) as u32;
            tcp.sequence_number = tcp.sequence_number.wrapping_add(offset);
            tcp.cwr &= index == 0;
            tcp.fin &= index + 1 == count;
            tcp.psh &= index + 1 == count;
            sample::tcp(&sample::later(&ip, index), &tcp, chunk)
        }).collect();
        // A checksum of zero may be written in both ways, and etherparse writes the other one.
        let found = segments(&mut large, header);
        prop_assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(&expected) {
            prop_assert_eq!(zeroes_alike(found, at + TCP_CHECKSUM), zeroes_alike(expected, at + TCP_CHECKSUM));
        }
    }

    /// On its way by a routing header, a packet's checksum is that of its last destination, which etherparse does not know
    /// of either: a packet with that in its header is what they are compared with.
    #[test]
    fn segments_of_a_routed_packet_have_the_checksum_of_where_it_goes(
        tcp in sample::tcp_header(),
        len in 1_usize..5000,
        last: [u8; 16],
        next: [u8; 16],
    ) {
        let payload = sample::payload(len, 5);
        let header = |destination| Ipv6Header { destination, hop_limit: 64, ..Ipv6Header::default() };
        let direct = |chunk: &[u8], tcp: &TcpHeader| {
            sample::tcp(&IpHeaders::Ipv6(header(last), Ipv6Extensions::default()), tcp, chunk)
        };
        // Type 2 (RFC 6275, section 6.4): one address, which is the last.
        let route = [&[TCP, 2, 2, 1, 0, 0, 0, 0][..], &last].concat();
        let routed = |packet: Vec<u8>| {
            let mut packet = [&packet[..40], &route[..], &packet[40..]].concat();
            let payload_len = (packet.len() - 40) as u16;
            packet[4..6].copy_from_slice(&payload_len.to_be_bytes());
            packet[6] = ROUTING;
            packet[24..40].copy_from_slice(&next);
            packet
        };
        let mut large = direct(&payload, &tcp);
        let _ = leave_checksum(&mut large, 40, TCP, TCP_CHECKSUM);
        let mut large = routed(large);
        let at = 40 + route.len();
        let header = Header {
            checksum: Some((at as u16, TCP_CHECKSUM as u16)),
            kind: Kind::TcpV6,
            segment_len: 1000,
            ..Header::default()
        };
        let count = len.div_ceil(1000);
        let expected: Vec<_> = payload.chunks(1000).enumerate().map(|(index, chunk)| {
            let mut tcp = tcp.clone();
            tcp.sequence_number = tcp.sequence_number.wrapping_add(index as u32 * 1000);
            tcp.cwr &= index == 0;
            tcp.fin &= index + 1 == count;
            tcp.psh &= index + 1 == count;
            zeroes_alike(&routed(direct(chunk, &tcp)), at + TCP_CHECKSUM)
        }).collect();
        let found: Vec<_> = segments(&mut large.clone(), header)
            .iter()
            .map(|segment| zeroes_alike(segment, at + TCP_CHECKSUM))
            .collect();
        prop_assert_eq!(found, expected);
        let unsaid = Header { checksum: None, ..header };
        prop_assert_eq!(Outgoing::new(&mut large, unsaid).err(), Some(Unfit::Headers));
    }

    #[test]
    fn segments_of_udp_are_complete_packets(
        ip in sample::ip_headers(),
        ports: (u16, u16),
        len in 1_usize..20_000,
        segment_len in 1_u16..1500,
    ) {
        let len = if segment_len < 60 { 1 + len % 3000 } else { len };
        let payload = sample::payload(len, 9);
        let mut large = sample::udp(&ip, ports, &payload);
        let at = sample::ip_len(&ip);
        let checksum = leave_checksum(&mut large, at, UDP, UDP_CHECKSUM);
        let header = Header { checksum: Some(checksum), kind: Kind::Udp, segment_len, ..Header::default() };
        let chunks = payload.chunks(segment_len.into()).enumerate();
        let expected: Vec<_> = chunks
            .map(|(index, chunk)| sample::udp(&sample::later(&ip, index), ports, chunk))
            .collect();
        prop_assert_eq!(segments(&mut large, header), expected);
    }

    #[test]
    fn a_checksum_that_was_left_is_completed(
        ip in sample::ip_headers(),
        tcp in sample::tcp_header(),
        len in 0_usize..1500,
        is_tcp: bool,
    ) {
        let payload = sample::payload(len, 3);
        let at = sample::ip_len(&ip);
        let (expected, protocol, checksum_at) = if is_tcp {
            (sample::tcp(&ip, &tcp, &payload), TCP, TCP_CHECKSUM)
        } else {
            (sample::udp(&ip, (53, 5353), &payload), UDP, UDP_CHECKSUM)
        };
        let mut packet = expected.clone();
        let checksum = leave_checksum(&mut packet, at, protocol, checksum_at);
        let header = Header { checksum: Some(checksum), ..Header::default() };
        prop_assert!(matches!(Outgoing::new(&mut packet, header), Ok(Outgoing::Whole(_))));
        prop_assert_eq!(zeroes_alike(&packet, at + checksum_at), zeroes_alike(&expected, at + checksum_at));
    }

    /// Whatever the header and the packet say, nothing panics, and nothing grows beyond the packet's own segments.
    #[test]
    fn nonsense_is_refused(
        mut packet in prop::collection::vec(any::<u8>(), 0..200),
        version in prop_oneof![Just(0x45), Just(0x4f), Just(0x60), any::<u8>()],
        next in prop_oneof![Just(TCP), Just(UDP), Just(0), any::<u8>()],
        octets: [u8; super::super::virtio::LEN],
        kind in prop_oneof![Just(0_u8), Just(1), Just(4), Just(5), Just(0x81), any::<u8>()],
    ) {
        for (at, value) in [(0, version), (6, next), (9, next)] {
            if let Some(octet) = packet.get_mut(at) {
                *octet = value;
            }
        }
        let mut octets = octets;
        octets[1] = kind;
        let len = packet.len();
        if let Ok(Outgoing::Segments(segments)) = Outgoing::new(&mut packet, Header::from_octets(octets)) {
            prop_assert!(segments.count() <= len);
            prop_assert!(written(&segments).iter().all(|segment| segment.len() <= len));
        }
    }
}

fn zeroes_alike(packet: &[u8], at: usize) -> Vec<u8> {
    let mut copy = packet.to_vec();
    if copy[at..at + 2] == [0xff; 2] {
        copy[at..at + 2].fill(0);
    }
    copy
}

#[test]
fn what_cannot_be_is_named() {
    let packet = || {
        let mut packet = [0; 60];
        packet[0] = 0x45;
        packet[9] = TCP;
        packet[32] = 0x50;
        packet
    };
    let header = |kind, segment_len| Header {
        kind,
        segment_len,
        ..Header::default()
    };
    let refused = |packet: &mut [u8], header| Outgoing::new(packet, header).err();
    assert_eq!(refused(&mut packet(), header(Kind::TcpV4, 10)), None);
    assert_eq!(
        refused(&mut packet(), header(Kind::TcpV4, 0)),
        Some(Unfit::SegmentLen)
    );
    assert_eq!(
        refused(&mut packet(), header(Kind::TcpV6, 10)),
        Some(Unfit::Headers)
    );
    assert_eq!(
        refused(&mut packet(), header(Kind::Udp, 10)),
        Some(Unfit::Headers)
    );
    assert_eq!(
        refused(&mut packet()[..30], header(Kind::TcpV4, 10)),
        Some(Unfit::Headers)
    );
    let unknown = Kind::Unknown(3);
    assert_eq!(
        refused(&mut packet(), header(unknown, 10)),
        Some(Unfit::Kind(unknown))
    );
    let mut fragment = packet();
    fragment[6] = 0x20;
    assert_eq!(
        refused(&mut fragment, header(Kind::TcpV4, 10)),
        Some(Unfit::Headers)
    );
    let outside = Header {
        checksum: Some((50, 10)),
        ..Header::default()
    };
    assert_eq!(refused(&mut packet(), outside), Some(Unfit::Checksum));
}
