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
