//! Differentiated services and congestion between inner and outer headers (RFC 6040; RFC 4301, section 5.1.2).
//!
//! Of the eight bits that IPv4 calls type of service and IPv6 traffic class, six are the DSCP (RFC 2474) and the two lowest
//! the ECN field (RFC 3168).

const ECN: u8 = 0b11;
const NOT_ECT: u8 = 0b00;
const CE: u8 = 0b11;

/// What a datagram's own header shows of its inner packet's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marking {
    /// The ECN field: RFC 6040's normal mode, which every IKEv2 peer understands (RFC 7296, section 2.24). Without it
    /// routers drop where they could have marked: the compatibility mode.
    pub copy_ecn: bool,
    /// The DSCP, which tells every network on the way what kind of traffic it is.
    pub copy_dscp: bool,
}

impl Marking {
    /// The datagram's eight bits for an inner packet with these.
    #[must_use]
    pub const fn outer(self, inner: u8) -> u8 {
        let ecn = if self.copy_ecn { inner & ECN } else { NOT_ECT };
        let dscp = if self.copy_dscp { inner & !ECN } else { 0 };
        dscp | ecn
    }
}

impl Default for Marking {
    fn default() -> Self {
        Self {
            copy_ecn: true,
            copy_dscp: false,
        }
    }
}

/// DSCP and ECN field of an IP packet; 0 of anything else.
#[must_use]
pub fn ds_field(packet: &[u8]) -> u8 {
    match packet {
        [first, second, ..] if first >> 4 == 4 => *second,
        [first, second, ..] if first >> 4 == 6 => first << 4 | second >> 4,
        _ => 0,
    }
}

/// Brings the ECN field of an outer header to the inner packet that has just been opened (RFC 6040, figure 4). Whether the
/// packet may be delivered: one that does not know of marks, but met congestion, must be dropped for its sender to see.
#[must_use]
pub fn take_ecn(packet: &mut [u8], outer: u8) -> bool {
    let (outer, field) = (outer & ECN, ds_field(packet));
    let inner = field & ECN;
    if inner == NOT_ECT {
        return outer != CE;
    }
    // From the least to the most severe: ECT(0), ECT(1), CE. Only CE and ECT(1) can be more than what the packet has.
    let severity = |ecn: u8| match ecn {
        NOT_ECT => 0,
        0b10 => 1,
        0b01 => 2,
        _ => 3,
    };
    if severity(outer) > severity(inner) {
        put_ecn(packet, outer);
    }
    true
}

/// Replaces the ECN field, and mends IPv4's header checksum as far as the change goes (RFC 1624, equation 3): if it was
/// wrong, it stays wrong.
fn put_ecn(packet: &mut [u8], ecn: u8) {
    match packet {
        [first, second, ..] if *first >> 4 == 6 => *second = *second & !(ECN << 4) | ecn << 4,
        [first, second, _, _, _, _, _, _, _, _, high, low, ..] => {
            let old = u16::from_be_bytes([*first, *second]);
            *second = *second & !ECN | ecn;
            let new = u16::from_be_bytes([*first, *second]);
            let sum = u32::from(!u16::from_be_bytes([*high, *low])) + u32::from(!old) + u32::from(new);
            let sum = (sum & 0xffff) + (sum >> 16);
            let sum = (sum & 0xffff) + (sum >> 16);
            [*high, *low] = (!(sum as u16)).to_be_bytes();
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ECT_0: u8 = 0b10;
    const ECT_1: u8 = 0b01;

    /// A header without anything behind it, with a DSCP of 46 (expedited forwarding).
    fn packet(version: u8, ecn: u8) -> Vec<u8> {
        let field = 46 << 2 | ecn;
        let mut packet = if version == 4 {
            let mut packet = vec![0x45, field, 0, 20, 0xab, 0xcd, 0x40, 0, 64, 17, 0, 0];
            packet.extend([10, 0, 0, 1, 192, 0, 2, 9]);
            packet
        } else {
            let mut packet = vec![0; 40];
            [packet[0], packet[1], packet[2]] = [0x60 | field >> 4, field << 4 | 0x0a, 0xbc];
            packet
        };
        if version == 4 {
            let checksum = (!sum(&packet)).to_be_bytes();
            packet[10..12].copy_from_slice(&checksum);
        }
        packet
    }

    /// The Internet checksum's sum (RFC 1071), of which a header with a right checksum has all bits set.
    fn sum(header: &[u8]) -> u16 {
        let words = header
            .chunks(2)
            .map(|it| u32::from(it[0]) << 8 | u32::from(it[1]));
        let sum = words.sum::<u32>();
        let sum = (sum & 0xffff) + (sum >> 16);
        ((sum & 0xffff) + (sum >> 16)) as u16
    }

    /// RFC 6040, figure 4: rows are the inner field, columns the outer one, both in the order not-ECT, ECT(0), ECT(1), CE;
    /// none is a packet that must be dropped.
    #[test]
    fn the_table_of_the_rfc() {
        let order = [NOT_ECT, ECT_0, ECT_1, CE];
        let table = [
            [Some(NOT_ECT), Some(NOT_ECT), Some(NOT_ECT), None],
            [Some(ECT_0), Some(ECT_0), Some(ECT_1), Some(CE)],
            [Some(ECT_1), Some(ECT_1), Some(ECT_1), Some(CE)],
            [Some(CE); 4],
        ];
        for version in [4, 6] {
            for (inner, row) in order.into_iter().zip(table) {
                for (outer, expected) in order.into_iter().zip(row) {
                    let mut opened = packet(version, inner);
                    // The outer DSCP means nothing here.
                    let is_kept = take_ecn(&mut opened, 0b1010_1000 | outer);
                    assert_eq!(
                        is_kept,
                        expected.is_some(),
                        "IPv{version}, {inner:02b} in {outer:02b}"
                    );
                    if let Some(expected) = expected {
                        assert_eq!(opened, packet(version, expected), "{inner:02b} in {outer:02b}");
                        assert_eq!(ds_field(&opened), 46 << 2 | expected);
                    }
                }
            }
        }
    }

    #[test]
    fn a_wrong_header_checksum_stays_wrong_and_a_right_one_right() {
        for id in 0..=u16::MAX {
            let mut opened = packet(4, ECT_0);
            opened[4..6].copy_from_slice(&id.to_be_bytes());
            opened[10..12].fill(0);
            let checksum = (!sum(&opened)).to_be_bytes();
            opened[10..12].copy_from_slice(&checksum);
            assert!(take_ecn(&mut opened, CE));
            assert_eq!(sum(&opened), 0xffff, "identification {id}");
            let mut wrong = packet(4, ECT_0);
            wrong[4..6].copy_from_slice(&(id ^ 0xabcd ^ 1).to_be_bytes());
            let is_wrong = sum(&wrong) != 0xffff;
            assert!(take_ecn(&mut wrong, CE));
            assert_eq!(sum(&wrong) != 0xffff, is_wrong, "identification {id}");
        }
    }

    #[test]
    fn what_is_shown_outside_is_what_the_profile_allows() {
        let inner = 46 << 2 | ECT_0;
        let outer = |copy_ecn, copy_dscp| Marking { copy_ecn, copy_dscp }.outer(inner);
        assert_eq!(outer(false, false), 0);
        assert_eq!(outer(true, false), ECT_0);
        assert_eq!(outer(false, true), 46 << 2);
        assert_eq!(outer(true, true), inner);
        assert_eq!(Marking::default().outer(inner), ECT_0);
    }

    #[test]
    fn what_is_no_packet_is_left_alone() {
        for octets in [
            &[][..],
            &[0x45],
            &[0x60],
            &[0x45, 0xff, 0, 3],
            &[0x15, 0xff, 1, 2],
        ] {
            let mut packet = octets.to_vec();
            let _ = take_ecn(&mut packet, CE);
            assert_eq!(packet, octets);
        }
    }
}
