//! Keeping TCP's segments small enough for the tunnel from the start, where path MTU discovery may fail.

/// Lowers the maximum segment size that a TCP SYN announces to what an inner packet of `mtu` octets carries
/// (RFC 9293, section 3.7.1): `mtu` less 40 octets over IPv4 and 60 over IPv6. Returns whether it had to.
///
/// The TCP checksum is corrected for the change (RFC 1624), so it must be complete: of a packet whose checksum
/// the kernel left to be finished, finish it first. Everything that is not a well-formed first fragment of a SYN
/// is left alone.
pub fn clamp_mss(packet: &mut [u8], mtu: u16) -> bool {
    let Some((tcp, headers)) = tcp_segment(packet) else {
        return false;
    };
    let max = mtu.saturating_sub(headers);
    clamp_segment(tcp, max).is_some()
}

/// The TCP segment in an IP packet, and the octets that IP's and TCP's plain headers take.
fn tcp_segment(packet: &mut [u8]) -> Option<(&mut [u8], u16)> {
    match *packet {
        [
            0x45..=0x4f,
            _,
            len_high,
            len_low,
            _,
            _,
            fragment_high,
            fragment_low,
            _,
            TCP,
            ..,
        ] => {
            let header_len = usize::from(packet[0] & 0x0f) * 4;
            let len = usize::from(u16::from_be_bytes([len_high, len_low]));
            let first = u16::from_be_bytes([fragment_high, fragment_low]) & 0x1fff == 0;
            let segment = packet.get_mut(..len)?.get_mut(header_len..)?;
            first.then_some((segment, 40))
        }
        // Nobody sends a SYN behind extension headers.
        [0x60..=0x6f, _, _, _, len_high, len_low, TCP, ..] => {
            let len = usize::from(u16::from_be_bytes([len_high, len_low]));
            Some((packet.get_mut(40..)?.get_mut(..len)?, 60))
        }
        _ => None,
    }
}

fn clamp_segment(tcp: &mut [u8], max: u16) -> Option<()> {
    const SYN: u8 = 0x02;
    if tcp.get(13)? & SYN == 0 {
        return None;
    }
    let data = usize::from(tcp.get(12)? >> 4) * 4;
    let mut at = 20;
    loop {
        let options = tcp.get(at..data)?;
        let (len, value) = match *options {
            [NO_OPERATION, ..] => (1, None),
            [MAXIMUM_SEGMENT_SIZE, 4, high, low, ..] => (4, Some(u16::from_be_bytes([high, low]))),
            [END_OF_OPTIONS, ..] | [_, 0 | 1, ..] | [_] | [] => return None,
            [_, len, ..] => (usize::from(len), None),
        };
        if let Some(announced) = value {
            if announced <= max {
                return None;
            }
            replace(tcp, at + 2, max.to_be_bytes())?;
            return Some(());
        }
        at += len;
    }
}

/// Writes two octets and adds the difference to the checksum. Options may lie at odd offsets, so each octet
/// counts by its own place (RFC 1624, equation 3).
fn replace(tcp: &mut [u8], at: usize, octets: [u8; 2]) -> Option<()> {
    let old_sum = u16::from_be_bytes([*tcp.get(16)?, *tcp.get(17)?]);
    let mut sum = u32::from(!old_sum);
    for (place, new) in (at..).zip(octets) {
        let octet = tcp.get_mut(place)?;
        let shift = if place % 2 == 0 { 8 } else { 0 };
        sum += u32::from(!(u16::from(*octet) << shift)) + (u32::from(new) << shift);
        *octet = new;
    }
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    tcp.get_mut(16..18)?.copy_from_slice(&sum.to_be_bytes());
    Some(())
}

const TCP: u8 = 6;
const END_OF_OPTIONS: u8 = 0;
const NO_OPERATION: u8 = 1;
const MAXIMUM_SEGMENT_SIZE: u8 = 2;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::esp::mtu::checksum;

    const SYN: u8 = 0x02;
    const SYN_ACK: u8 = 0x12;

    /// A TCP packet with a right checksum.
    fn segment(v6: bool, flags: u8, options: &[u8], data: &[u8]) -> Vec<u8> {
        assert_eq!(options.len() % 4, 0);
        let tcp_len = 20 + options.len() + data.len();
        let mut packet = if v6 {
            let mut header = vec![0x60, 0, 0, 0, (tcp_len >> 8) as u8, tcp_len as u8, 6, 64];
            header.extend([[0xfd; 16], [0x20; 16]].concat());
            header
        } else {
            let len = 20 + tcp_len;
            vec![
                0x45,
                0,
                (len >> 8) as u8,
                len as u8,
                0,
                0,
                0x40,
                0,
                64,
                6,
                0,
                0,
                10,
                0,
                0,
                2,
                192,
                0,
                2,
                1,
            ]
        };
        packet.extend([0x13, 0x88, 0x01, 0xbb, 1, 2, 3, 4, 0, 0, 0, 0]);
        packet.extend([(5 + options.len() as u8 / 4) << 4, flags, 0xfa, 0xf0, 0, 0, 0, 0]);
        packet.extend(options);
        packet.extend(data);
        let at = packet.len() - tcp_len + 16;
        let sum = tcp_sum(&packet).to_be_bytes();
        packet[at..at + 2].copy_from_slice(&sum);
        packet
    }

    /// Zero for a packet whose checksum is right.
    fn tcp_sum(packet: &[u8]) -> u16 {
        let (header_len, addresses) = if packet[0] >> 4 == 6 {
            (40, 8..40)
        } else {
            (20, 12..20)
        };
        let tcp = &packet[header_len..];
        checksum(&[
            &packet[addresses],
            &(tcp.len() as u32).to_be_bytes(),
            &[0, 0, 0, 6],
            tcp,
        ])
    }

    fn mss_of(packet: &[u8]) -> Option<u16> {
        let start = if packet[0] >> 4 == 6 { 60 } else { 40 };
        let at = packet[start..].windows(2).position(|window| window == [2, 4])?;
        Some(u16::from_be_bytes([
            packet[start + at + 2],
            packet[start + at + 3],
        ]))
    }

    #[test]
    fn a_syn_announces_what_fits() {
        for (v6, flags, max) in [
            (false, SYN, 1398),
            (true, SYN, 1378),
            (false, SYN_ACK, 1398),
            (true, 0xc2, 1378),
        ] {
            let mut packet = segment(v6, flags, &[2, 4, 0x05, 0xb4], b"");
            assert!(clamp_mss(&mut packet, 1438));
            assert_eq!((mss_of(&packet), tcp_sum(&packet)), (Some(max), 0));
            assert!(!clamp_mss(&mut packet, 1438), "once is enough");
        }
    }

    #[test]
    fn what_fits_already_stays() {
        for announced in [536_u16, 1397, 1398] {
            let [high, low] = announced.to_be_bytes();
            let packet = segment(false, SYN, &[2, 4, high, low], b"");
            let mut clamped = packet.clone();
            assert!(!clamp_mss(&mut clamped, 1438));
            assert_eq!(clamped, packet);
        }
    }

    #[test]
    fn only_first_fragments_of_a_syn_are_touched() {
        let option = [2, 4, 0xff, 0xff];
        let mut later_fragment = segment(false, SYN, &option, b"");
        later_fragment[7] = 1;
        let mut udp = segment(false, SYN, &option, b"");
        udp[9] = 17;
        let mut udp6 = segment(true, SYN, &option, b"");
        udp6[6] = 17;
        let mut cut = segment(false, SYN, &option, b"");
        cut.pop();
        let mut short_header = segment(false, SYN, &option, b"");
        short_header[32] = 0x50;
        let mut lying_header = segment(false, SYN, &option, b"");
        lying_header[32] = 0xf0;
        let unfit = [
            segment(false, 0x10, &option, b""),
            segment(false, SYN, &[0, 2, 4, 255, 255, 0, 0, 0], b""),
            segment(false, SYN, &[2, 3, 255, 255], b""),
            segment(false, SYN, &[8, 0, 2, 4, 255, 255, 0, 0], b""),
            segment(false, SYN, &[3, 200, 2, 4, 255, 255, 0, 0], b""),
            segment(false, SYN, &[1, 1, 2, 4], &[0xff, 0xff]),
            segment(false, SYN, &[], b"data"),
            later_fragment,
            udp,
            udp6,
            cut,
            short_header,
            lying_header,
            Vec::new(),
        ];
        for packet in unfit {
            let mut clamped = packet.clone();
            assert!(!clamp_mss(&mut clamped, 1438), "{packet:02x?}");
            assert_eq!(clamped, packet);
        }
    }

    proptest! {
        #[test]
        fn the_checksum_stays_right_wherever_the_option_lies(
            v6: bool,
            before in prop::sample::select(vec![
                vec![], vec![1], vec![1, 1], vec![3, 3, 7], vec![4, 2, 1], vec![8, 10, 1, 2, 3, 4, 5, 6, 7, 8],
            ]),
            announced: u16,
            mtu in 1280_u16..=9000,
            data in prop::collection::vec(any::<u8>(), 0..9),
        ) {
            let mut options = [&before[..], &[2, 4], &announced.to_be_bytes()].concat();
            options.resize(options.len().next_multiple_of(4), 0);
            let mut packet = segment(v6, SYN, &options, &data);
            let max = mtu - if v6 { 60 } else { 40 };
            prop_assert_eq!(clamp_mss(&mut packet, mtu), announced > max);
            prop_assert_eq!(tcp_sum(&packet), 0);
            let expected = segment(v6, SYN, &[&before[..], &[2, 4], &announced.min(max).to_be_bytes(),
                &options[before.len() + 4..]].concat(), &data);
            let checksum_at = if v6 { 56 } else { 36 };
            packet[checksum_at..checksum_at + 2].copy_from_slice(&expected[checksum_at..checksum_at + 2]);
            prop_assert_eq!(packet, expected);
        }

        #[test]
        fn no_options_panic(v6: bool, options in prop::collection::vec(any::<u8>(), 0..11), mtu: u16) {
            let mut options = options;
            options.resize(options.len().next_multiple_of(4), 2);
            let mut packet = segment(v6, SYN, &options, b"");
            clamp_mss(&mut packet, mtu);
            prop_assert_eq!(tcp_sum(&packet), 0);
        }
    }
}
