use std::collections::BTreeMap;

use etherparse::{IpHeaders, TcpHeader};
use proptest::prelude::*;

use super::super::sample;
use super::super::segment::Outgoing;
use super::*;

const ALL: Offers = Offers { tcp: true, udp: true };

/// What was written: each piece's header and packet.
type Pieces = Vec<(Header, Vec<u8>)>;

fn write(packets: &[Vec<u8>], offers: Offers) -> Pieces {
    let mut coalescer = Coalescer::new();
    let mut start = 0;
    for packet in packets {
        coalescer.add(start, packet.len());
        start += packet.len();
    }
    let mut pieces = Vec::new();
    let written = coalescer.write(&packets.concat(), offers, |parts| {
        let header = Header::from_octets((*parts[0]).try_into().unwrap());
        pieces.push((header, parts[1..].iter().flat_map(|part| part.to_vec()).collect()));
        Ok(())
    });
    assert_eq!(written, Written::default());
    pieces
}

/// What the kernel would cut the pieces into again.
fn taken_apart(pieces: Pieces) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for (header, mut packet) in pieces {
        match Outgoing::new(&mut packet, header).unwrap() {
            Outgoing::Whole(packet) => all.push(packet.to_vec()),
            Outgoing::Segments(segments) => {
                for index in 0..segments.count() {
                    let mut out = vec![0; segments.len(index)];
                    segments.write(index, &mut out);
                    all.push(out);
                }
            }
        }
    }
    all
}

/// Addresses and ports, as far as an order within them matters.
fn flow_of(packet: &[u8]) -> Vec<u8> {
    if packet[0] >> 4 == 4 {
        let at = usize::from(packet[0] & 0x0f) * 4;
        [&packet[9..10], &packet[12..20], &packet[at..at + 4]].concat()
    } else {
        [&packet[6..7], &packet[8..44]].concat()
    }
}

/// What may differ without a difference: the identification means nothing in a packet that must not be fragmented (RFC
/// 6864, section 4.1), and a checksum of zero has two forms.
fn canonical(mut packet: Vec<u8>) -> Vec<u8> {
    let is_v4 = packet[0] >> 4 == 4;
    let (protocol, at) = if is_v4 {
        (packet[9], usize::from(packet[0] & 0x0f) * 4)
    } else {
        (packet[6], IPV6_HEADER)
    };
    let checksum_at = at
        + if protocol == TCP {
            TCP_CHECKSUM
        } else {
            UDP_CHECKSUM
        };
    if packet[checksum_at..checksum_at + 2] == [0xff; 2] {
        packet[checksum_at..checksum_at + 2].fill(0);
    }
    if is_v4 && packet[6] & 0x40 != 0 {
        let is_right = Sum::default().with(&packet[..at]).folded() == [0xff; 2];
        packet[4..6].fill(0);
        packet[10..12].fill(u8::from(is_right));
    }
    packet
}

fn by_flow(packets: Vec<Vec<u8>>) -> BTreeMap<Vec<u8>, Vec<Vec<u8>>> {
    let mut flows = BTreeMap::<_, Vec<_>>::new();
    for packet in packets {
        flows.entry(flow_of(&packet)).or_default().push(canonical(packet));
    }
    flows
}

/// What happens to one packet of a flow before it comes in.
#[derive(Clone, Copy, Debug)]
enum Quirk {
    None,
    Push,
    Fin,
    Ece,
    OtherAck,
    OtherWindow,
    OtherTtl,
    Congestion,
    BadChecksum,
    BadHeader,
    Repeated,
    Skipped,
    OtherId,
}

fn quirk() -> impl Strategy<Value = Quirk> {
    prop_oneof![
        20 => Just(Quirk::None),
        1 => Just(Quirk::Push),
        1 => Just(Quirk::Fin),
        1 => Just(Quirk::Ece),
        1 => Just(Quirk::OtherAck),
        1 => Just(Quirk::OtherWindow),
        1 => Just(Quirk::OtherTtl),
        1 => Just(Quirk::Congestion),
        1 => Just(Quirk::BadChecksum),
        1 => Just(Quirk::BadHeader),
        1 => Just(Quirk::Repeated),
        1 => Just(Quirk::Skipped),
        1 => Just(Quirk::OtherId),
    ]
}

/// A flow, with what its packets carry.
#[derive(Clone, Debug)]
struct Sender {
    ip: IpHeaders,
    tcp: Option<TcpHeader>,
    sequence: u32,
    sent: usize,
}

impl Sender {
    fn next(&mut self, len: usize, quirk: Quirk) -> Vec<Vec<u8>> {
        let mut ip = sample::later(&self.ip, self.sent);
        match (&mut ip, quirk) {
            (IpHeaders::Ipv4(header, _), Quirk::OtherTtl) => header.time_to_live ^= 1,
            (IpHeaders::Ipv6(header, _), Quirk::OtherTtl) => header.hop_limit ^= 1,
            (IpHeaders::Ipv4(header, _), Quirk::Congestion) => {
                header.ecn = etherparse::IpEcn::try_new(3).unwrap()
            }
            (IpHeaders::Ipv6(header, _), Quirk::Congestion) => header.traffic_class |= 3,
            (IpHeaders::Ipv4(header, _), Quirk::OtherId) => header.identification ^= 0x0100,
            _ => {}
        }
        let payload = sample::payload(len, self.sent as u8);
        self.sent += 1;
        let mut packet = match &self.tcp {
            None => sample::udp(&ip, (1000, 2000), &payload),
            Some(tcp) => {
                let mut tcp = tcp.clone();
                tcp.sequence_number = self.sequence;
                match quirk {
                    Quirk::Push => tcp.psh = true,
                    Quirk::Fin => tcp.fin = true,
                    Quirk::Ece => tcp.ece = true,
                    Quirk::OtherAck => tcp.acknowledgment_number ^= 8,
                    Quirk::OtherWindow => tcp.window_size ^= 8,
                    _ => {}
                }
                self.sequence = self.sequence.wrapping_add(len as u32);
                sample::tcp(&ip, &tcp, &payload)
            }
        };
        match quirk {
            Quirk::BadChecksum => {
                let last = packet.len() - 1;
                packet[last] ^= 0x10;
                vec![packet]
            }
            Quirk::BadHeader => {
                if packet[0] >> 4 == 4 {
                    packet[10] ^= 0x10;
                }
                vec![packet]
            }
            Quirk::Repeated => vec![packet.clone(), packet],
            Quirk::Skipped => vec![],
            _ => vec![packet],
        }
    }
}

fn sender() -> impl Strategy<Value = Sender> {
    let ip = prop_oneof![4 => sample::plain_ip_headers(), 1 => sample::ip_headers()];
    let tcp = prop::option::weighted(0.75, sample::data_header());
    (ip, tcp).prop_map(|(ip, tcp)| Sender {
        sequence: tcp.as_ref().map_or(0, |tcp| tcp.sequence_number),
        ip,
        tcp,
        sent: 0,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Taken apart again, every flow is octet by octet what came in, in the same order: wrong checksums stay wrong.
    #[test]
    fn nothing_is_lost_or_changed_or_reordered(
        mut senders in prop::collection::vec(sender(), 1..5),
        events in prop::collection::vec((any::<prop::sample::Index>(), quirk(), 0..8_u8), 1..300),
        size in prop_oneof![1_usize..20, 500_usize..1448],
        tcp: bool,
        udp: bool,
    ) {
        let mut packets = Vec::new();
        for (sender, quirk, short) in events {
            let index = sender.index(senders.len());
            let len = if short == 0 { 1 + size / 2 } else { size };
            packets.extend(senders[index].next(len, quirk));
        }
        let count = packets.len();
        let pieces = write(&packets, Offers { tcp, udp });
        let parts = taken_apart(pieces);
        prop_assert_eq!(parts.len(), count);
        prop_assert_eq!(by_flow(parts), by_flow(packets));
    }

    #[test]
    fn nonsense_goes_through_as_it_is(
        packets in prop::collection::vec(
            (prop::collection::vec(any::<u8>(), 0..120), prop_oneof![Just(0x45), Just(0x60), any::<u8>()]),
            0..20,
        ),
    ) {
        let packets: Vec<_> = packets
            .into_iter()
            .map(|(mut packet, first)| {
                if let Some(octet) = packet.first_mut() {
                    *octet = first;
                }
                packet
            })
            .collect();
        let whole: Vec<_> = packets.iter().map(|packet| (Header::default(), packet.clone())).collect();
        prop_assert_eq!(write(&packets, ALL), whole);
    }
}

fn stream(count: usize, size: usize, ip: &IpHeaders) -> Vec<Vec<u8>> {
    let mut header = TcpHeader::new(443, 50_000, u32::MAX - 5000, 501);
    header.ack = true;
    header.set_options_raw(&[1; 12]).unwrap();
    (0..count)
        .map(|index| {
            let mut header = header.clone();
            header.sequence_number = header.sequence_number.wrapping_add((index * size) as u32);
            sample::tcp(
                &sample::later(ip, index),
                &header,
                &sample::payload(size, index as u8),
            )
        })
        .collect()
}

fn any_ip(v4: bool) -> IpHeaders {
    use etherparse::{Ipv4Extensions, Ipv4Header, Ipv6Extensions, Ipv6Header};
    if v4 {
        let header = Ipv4Header {
            time_to_live: 63,
            source: [10, 1, 0, 2],
            destination: [10, 3, 0, 1],
            ..Ipv4Header::default()
        };
        IpHeaders::Ipv4(header, Ipv4Extensions::default())
    } else {
        let header = Ipv6Header {
            hop_limit: 63,
            source: [1; 16],
            destination: [2; 16],
            ..Ipv6Header::default()
        };
        IpHeaders::Ipv6(header, Ipv6Extensions::default())
    }
}

/// Across the sequence numbers' end, and of two flows by turns.
#[test]
fn a_stream_is_written_in_few_pieces() {
    for v4 in [true, false] {
        let one = stream(40, 1386, &any_ip(v4));
        let pieces = write(&one, ALL);
        assert_eq!(pieces.len(), 1);
        let (header, packet) = &pieces[0];
        let headers = if v4 { 20 } else { 40 } + 32;
        assert_eq!(
            (header.segment_len, usize::from(header.header_len)),
            (1386, headers)
        );
        assert_eq!(packet.len(), headers + 40 * 1386);

        let two = stream(40, 1386, &any_ip(!v4));
        let both: Vec<_> = one.into_iter().zip(two).flat_map(|(a, b)| [a, b]).collect();
        assert_eq!(write(&both, ALL).len(), 2);
        assert_eq!(write(&both, Offers::default()).len(), 80);
        assert_eq!(
            write(
                &both,
                Offers {
                    tcp: false,
                    udp: true
                }
            )
            .len(),
            80
        );
    }
}

#[test]
fn no_piece_is_larger_than_a_packet_may_be() {
    for (size, most) in [(1386, 47), (1000, 65), (1, 65)] {
        let pieces = write(&stream(400, size, &any_ip(true)), ALL);
        assert!(pieces.iter().all(|(_, packet)| packet.len() <= 65_535));
        let least = 400_usize.div_ceil(most);
        assert!(
            (least..least + 3).contains(&pieces.len()),
            "{} of {size} octets",
            pieces.len()
        );
    }
}

#[test]
fn datagrams_are_put_together_where_the_device_takes_them() {
    let ip = any_ip(true);
    let packets: Vec<_> = (0..30)
        .map(|index| {
            sample::udp(
                &sample::later(&ip, index),
                (5001, 5002),
                &sample::payload(1340, 1),
            )
        })
        .collect();
    assert_eq!(write(&packets, ALL).len(), 1);
    assert_eq!(
        write(
            &packets,
            Offers {
                tcp: true,
                udp: false
            }
        )
        .len(),
        30
    );
}

/// A thousand flows at once: each packet alone, and all of them there.
#[test]
fn many_flows_stay_as_they_are() {
    let mut header = TcpHeader::new(443, 0, 1, 501);
    header.ack = true;
    let packets: Vec<_> = (0..2000_u16)
        .map(|index| {
            header.destination_port = index % 1000;
            header.sequence_number = u32::from(index / 1000) * 100;
            sample::tcp(&any_ip(true), &header, &[0; 100])
        })
        .collect();
    let pieces = write(&packets, ALL);
    assert_eq!(
        pieces.into_iter().map(|(_, packet)| packet).collect::<Vec<_>>(),
        packets
    );
}

#[test]
fn what_the_device_refuses_in_one_piece_is_written_one_by_one() {
    let packets = stream(5, 1000, &any_ip(true));
    let mut coalescer = Coalescer::new();
    let mut start = 0;
    for packet in &packets {
        coalescer.add(start, packet.len());
        start += packet.len();
    }
    let mut alone = Vec::new();
    let written = coalescer.write(&packets.concat(), ALL, |parts| {
        if Header::from_octets((*parts[0]).try_into().unwrap()).kind != Kind::Whole {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        alone.push(parts[1].to_vec());
        Ok(())
    });
    assert_eq!(
        written,
        Written {
            refused: true,
            lost: 0
        }
    );
    assert_eq!(alone, packets);

    for packet in &packets {
        coalescer.add(0, packet.len());
    }
    let written = coalescer.write(&packets.concat(), Offers::default(), |_| {
        Err(io::ErrorKind::NotFound.into())
    });
    assert_eq!(
        written,
        Written {
            refused: false,
            lost: 5
        }
    );
}
