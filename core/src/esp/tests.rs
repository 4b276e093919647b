use std::sync::Arc;

use hex_literal::hex;
use proptest::prelude::*;

use super::*;
use crate::crypto::{Encr, Integ, PacketKey};
use crate::wire::TrafficSelector;

const CHACHA: CipherSuite = CipherSuite {
    encr: Encr::ChaCha20Poly1305,
    integ: None,
};
const GCM: CipherSuite = CipherSuite {
    encr: Encr::AesGcm16 { bits: 256 },
    integ: None,
};
const CBC: CipherSuite = CipherSuite {
    encr: Encr::AesCbc { bits: 256 },
    integ: Some(Integ::HmacSha2_256_128),
};
const SUITES: [CipherSuite; 6] = [
    GCM,
    CHACHA,
    CBC,
    CipherSuite {
        encr: Encr::AesCbc { bits: 128 },
        integ: Some(Integ::HmacSha1_96),
    },
    CipherSuite {
        encr: Encr::AesCbc { bits: 256 },
        integ: Some(Integ::HmacSha2_384_192),
    },
    CipherSuite {
        encr: Encr::AesCbc { bits: 256 },
        integ: Some(Integ::HmacSha2_512_256),
    },
];
const SPI: EspSpi = EspSpi(0x0102_0304);

fn key(suite: CipherSuite) -> PacketKey {
    let encr: Vec<u8> = (0x80..).take(suite.encr_key_len()).collect();
    let integ: Vec<u8> = (0x10..).take(suite.integ_key_len()).collect();
    PacketKey::new(suite, &encr, &integ).unwrap()
}

fn everything() -> Arc<Selectors> {
    let any = vec![TrafficSelector::ANY_V4, TrafficSelector::ANY_V6];
    Arc::new(Selectors {
        local: any.clone(),
        remote: any,
    })
}

/// Both ends of one direction.
fn pair(suite: CipherSuite, extended: bool) -> (Outbound, Inbound) {
    let outbound = Outbound::new(SPI, key(suite), extended, everything());
    (outbound, Inbound::new(SPI, key(suite), extended, everything()))
}

/// An IPv4/UDP packet of `len` octets from 10.0.0.2 to 192.0.2.1.
fn packet(len: usize) -> Vec<u8> {
    let mut packet = hex!("4500 0000 0000 4000 4011 0000 0a000002 c0000201 1000 2000 0000 0000").to_vec();
    packet.resize(len, 0xab);
    packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
    packet
}

fn seal(outbound: &mut Outbound, packet: &[u8]) -> Vec<u8> {
    let mut datagram = vec![0; outbound.sealed_len(packet.len())];
    let len = outbound.seal(packet, &mut datagram).unwrap();
    assert_eq!(len, datagram.len());
    datagram
}

/// Seals what no well-behaved peer would: any plaintext, trailer included.
fn seal_text(suite: CipherSuite, sequence: u64, text: &[u8]) -> Vec<u8> {
    let header = [&SPI.0.to_be_bytes()[..], &(sequence as u32).to_be_bytes()].concat();
    let mut body = [&vec![0; suite.iv_len()], text, &vec![0; suite.icv_len()]].concat();
    key(suite).seal(sequence, &header, &[], &mut body).unwrap();
    [header, body].concat()
}

/// RFC 7634, appendix A, whole.
#[test]
fn rfc7634_packet_is_byte_exact() {
    let inner = hex!(
        "45000054a6f200004001e778c6336405 c000020508005b7a3a080000553bec10 0007362708090a0b0c0d0e0f10111213
         1415161718191a1b1c1d1e1f20212223 2425262728292a2b2c2d2e2f30313233 34353637"
    );
    let sealed = hex!(
        "01020304 00000005 1011121314151617 24039428b97f417e3c13753a4f05087b 67c352e6a7fab1b982d466ef407ae5c6
         14ee8099d52844eb61aa95dfab4c02f7 2aa71e7c4c4f64c9befe2facc638e8f3 cbec163fac469b502773f6fb94e664da
         9165b82829f641e0 76aaa8266b7fb0f7b11b369907e1ad43"
    );
    let (outbound, mut inbound) = pair(CHACHA, false);
    let mut datagram = vec![0; outbound.sealed_len(inner.len())];
    datagram[16..16 + inner.len()].copy_from_slice(&inner);
    outbound
        .seal_as(5, 0x1011_1213_1415_1617, IPV4, inner.len(), &mut datagram)
        .unwrap();
    assert_eq!(datagram, sealed);
    assert_eq!(inbound.open(&mut datagram).unwrap(), inner);
}

#[test]
fn what_one_end_seals_the_other_opens() {
    for suite in SUITES {
        for extended in [false, true] {
            let (mut outbound, mut inbound) = pair(suite, extended);
            for len in (28..80).chain([1280, 1438, 65_000]) {
                let packet = packet(len);
                let mut datagram = seal(&mut outbound, &packet);
                assert_eq!(
                    (datagram.len() - outbound.header_len() - suite.icv_len()) % alignment(suite),
                    0
                );
                assert_eq!(
                    inbound.open(&mut datagram).unwrap(),
                    packet,
                    "{suite:?} {extended} {len}"
                );
            }
            for counters in [outbound.counters(), inbound.counters()] {
                assert_eq!(
                    (counters.packets, counters.octets),
                    (55, (28..80).sum::<u64>() + 1280 + 1438 + 65_000)
                );
                assert!(counters.by_reason().all(|(_, count)| count == 0));
            }
        }
    }
}

#[test]
fn ipv6_travels_as_ipv6() {
    let (mut outbound, mut inbound) = pair(GCM, true);
    let mut packet = hex!("60000000 0000 3b40").to_vec();
    packet.extend([[0xfd; 16], [0x20; 16]].concat());
    let mut datagram = seal(&mut outbound, &packet);
    assert_eq!(inbound.open(&mut datagram).unwrap(), packet);
}

#[test]
fn in_place_is_the_same_as_with_a_copy() {
    for suite in SUITES {
        let (mut copying, _) = pair(suite, true);
        let (mut in_place, _) = pair(suite, true);
        let packet = packet(100);
        let mut buf = vec![0x77; 300];
        let start = in_place.header_len();
        buf[start..start + packet.len()].copy_from_slice(&packet);
        let len = in_place.seal_in_place(packet.len(), &mut buf).unwrap();
        assert_eq!(len, in_place.sealed_len(packet.len()));
        assert_eq!(buf[..len], seal(&mut copying, &packet));
        assert!(
            buf[len..].iter().all(|octet| *octet == 0x77),
            "octets behind the datagram are not ours"
        );
    }
}

/// The padding counts up, the IV is the sequence number, and the header is what RFC 4303 says.
#[test]
fn the_layout_is_rfc4303s() {
    let (mut outbound, _) = pair(GCM, false);
    let packet = packet(31);
    let datagram = seal(&mut outbound, &packet);
    let (header, body) = datagram.split_at(8);
    assert_eq!(header, hex!("01020304 00000001"));
    assert_eq!(body[..8], hex!("0000000000000001"));
    let mut body = body.to_vec();
    let text = key(GCM).open(header, &[], &mut body).unwrap();
    assert_eq!(text, [&packet[..], &[1, 2, 3, 3, 4]].concat());
}

/// RFC 4303, section 2.2.1, and RFC 4106, section 5: where the high half goes.
#[test]
fn the_high_half_is_authenticated_and_not_sent() {
    for suite in [GCM, CBC] {
        let (mut outbound, _) = pair(suite, true);
        outbound.set_used(0x0000_0007_ffff_fffe, 0);
        let datagram = seal(&mut outbound, &packet(40));
        let (header, body) = datagram.split_at(8);
        assert_eq!(header, hex!("01020304 ffffffff"));
        let (aad, trailer): (&[u8], &[u8]) = if suite.is_aead() {
            (&hex!("01020304 00000007 ffffffff"), &[])
        } else {
            (header, &hex!("00000007"))
        };
        assert!(key(suite).open(aad, trailer, &mut body.to_vec()).is_ok());
        assert!(key(suite).open(header, &[], &mut body.to_vec()).is_err());
    }
}

#[test]
fn extended_numbers_go_on_beyond_32_bits_in_step() {
    for suite in [GCM, CBC] {
        let (mut outbound, mut inbound) = pair(suite, true);
        outbound.set_used((1 << 32) - 10, 0);
        inbound.set_top((1 << 32) - 10);
        let mut datagrams: Vec<_> = (0..20).map(|_| seal(&mut outbound, &packet(60))).collect();
        // Out of order across the edge: high half 1 first, then the rest of high half 0.
        datagrams.reverse();
        for datagram in &mut datagrams {
            assert!(inbound.open(datagram).is_ok());
        }
        assert_eq!(inbound.top(), (1 << 32) + 10);
    }
}

#[test]
fn a_sequence_number_is_never_used_twice() {
    for (extended, last) in [(false, u64::from(u32::MAX)), (true, u64::MAX)] {
        let (mut outbound, mut inbound) = pair(GCM, extended);
        outbound.set_used(last - 10, 0);
        inbound.set_top(last - 10);
        for _ in 0..10 {
            let mut datagram = seal(&mut outbound, &packet(60));
            assert!(inbound.open(&mut datagram).is_ok());
        }
        assert_eq!(inbound.top(), last);
        let mut out = [0; 200];
        for _ in 0..3 {
            assert_eq!(outbound.seal(&packet(60), &mut out), Err(Discard::Exhausted));
        }
        assert_eq!(outbound.counters().discarded(Discard::Exhausted), 3);
    }
}

#[test]
fn a_refused_packet_uses_no_sequence_number() {
    let (mut outbound, mut inbound) = pair(GCM, false);
    assert!(outbound.seal(&[0; 60], &mut [0; 200]).is_err());
    assert!(outbound.seal(&packet(60), &mut [0; 61]).is_err());
    let mut datagram = seal(&mut outbound, &packet(60));
    assert_eq!(datagram[4..8], [0, 0, 0, 1]);
    assert!(inbound.open(&mut datagram).is_ok());
}

#[test]
fn what_a_key_may_protect_ends() {
    let (mut outbound, mut inbound) = pair(GCM, true);
    outbound.set_used(7, HARD_OCTETS - 100);
    seal(&mut outbound, &packet(60));
    assert_eq!(outbound.seal(&packet(60), &mut [0; 200]), Err(Discard::Exhausted));

    let (mut sender, _) = pair(GCM, true);
    inbound.set_used(HARD_OCTETS - 1, 0);
    assert!(inbound.open(&mut seal(&mut sender, &packet(60))).is_ok());
    assert_eq!(
        inbound.open(&mut seal(&mut sender, &packet(60))),
        Err(Discard::Exhausted)
    );
    inbound.set_used(0, HARD_FORGERIES - 1);
    let mut forged = seal(&mut sender, &packet(60));
    forged[30] ^= 1;
    assert_eq!(inbound.open(&mut forged), Err(Discard::Integrity));
    assert_eq!(
        inbound.open(&mut seal(&mut sender, &packet(60))),
        Err(Discard::Exhausted)
    );
}

#[test]
fn rekeying_is_due_half_way() {
    for (extended, soft) in [
        (false, u64::from(u32::MAX) - (1 << 31)),
        (true, u64::MAX - (1 << 31)),
    ] {
        let (mut outbound, mut inbound) = pair(GCM, extended);
        assert!(!outbound.rekey_due() && !inbound.rekey_due());
        outbound.set_used(soft - 1, 0);
        inbound.set_top(soft - 1);
        assert!(!outbound.rekey_due() && !inbound.rekey_due());
        assert!(inbound.open(&mut seal(&mut outbound, &packet(60))).is_ok());
        assert!(outbound.rekey_due() && inbound.rekey_due());
    }
    let (mut outbound, mut inbound) = pair(GCM, true);
    outbound.set_used(1, SOFT_OCTETS - 1);
    inbound.set_used(SOFT_OCTETS - 1, 0);
    assert!(!outbound.rekey_due() && !inbound.rekey_due());
    assert!(inbound.open(&mut seal(&mut outbound, &packet(60))).is_ok());
    assert!(outbound.rekey_due() && inbound.rekey_due());
    inbound.set_used(0, SOFT_FORGERIES - 1);
    assert!(!inbound.rekey_due());
    assert_eq!(
        inbound.open(&mut seal_text(CHACHA, 9, &[0; 4])),
        Err(Discard::Integrity)
    );
    assert!(inbound.rekey_due());
}

#[test]
fn any_flipped_bit_is_noticed_and_moves_nothing() {
    for suite in SUITES {
        for extended in [false, true] {
            let (mut outbound, mut inbound) = pair(suite, extended);
            assert!(inbound.open(&mut seal(&mut outbound, &packet(28))).is_ok());
            let datagram = seal(&mut outbound, &packet(28));
            for bit in 0..datagram.len() * 8 {
                let mut flipped = datagram.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                let reason = inbound.open(&mut flipped).unwrap_err();
                let expected: &[Discard] = match bit / 8 {
                    0..4 => &[Discard::UnknownSpi],
                    // The number may become one that was seen, or zero.
                    4..8 => &[Discard::Integrity, Discard::Replay, Discard::TooOld],
                    _ => &[Discard::Integrity],
                };
                assert!(expected.contains(&reason), "{suite:?} bit {bit}: {reason:?}");
                assert_eq!(inbound.top(), 1);
            }
            assert!(
                inbound.open(&mut datagram.clone()).is_ok(),
                "the window did not move"
            );
            assert_eq!(inbound.open(&mut datagram.clone()), Err(Discard::Replay));
        }
    }
}

#[test]
fn a_million_forgeries_are_refused() {
    let (mut outbound, mut inbound) = pair(GCM, true);
    let mut datagram = seal(&mut outbound, &packet(28));
    let count = if cfg!(debug_assertions) {
        20_000_u64
    } else {
        1_000_000
    };
    for number in 0..count {
        let mut forged = datagram.clone();
        let icv = forged.len() - 8;
        forged[icv..].copy_from_slice(&number.to_be_bytes());
        assert_eq!(inbound.open(&mut forged), Err(Discard::Integrity));
    }
    assert_eq!(inbound.counters().discarded(Discard::Integrity), count);
    assert!(inbound.open(&mut datagram).is_ok());
}

#[test]
fn every_reason_to_discard_is_reached_and_counted() {
    let (mut outbound, mut inbound) = pair(GCM, false);
    let mut out = [0; 200];
    assert_eq!(outbound.seal(&packet(60), &mut out[..60]), Err(Discard::Buffer));
    assert_eq!(outbound.seal(&packet(60), &mut []), Err(Discard::Buffer));
    assert_eq!(
        outbound.seal(&packet(60)[..59], &mut out),
        Err(Discard::Malformed)
    );
    assert_eq!(
        outbound.seal(&[&packet(60)[..], &[0]].concat(), &mut out),
        Err(Discard::Malformed)
    );
    outbound.set_used(u64::from(u32::MAX), 0);
    assert_eq!(outbound.seal(&packet(60), &mut out), Err(Discard::Exhausted));
    let nothing = Arc::new(Selectors::default());
    let mut outbound = Outbound::new(SPI, key(GCM), false, Arc::clone(&nothing));
    assert_eq!(outbound.seal(&packet(60), &mut out), Err(Discard::Selector));

    let inner = packet(30);
    let good = [&inner[..], &[0, IPV4]].concat();
    let with_source = |source: [u8; 4]| {
        let mut text = good.clone();
        text[12..16].copy_from_slice(&source);
        text
    };
    let with_trailer = |trailer: &[u8]| [&packet(32 - trailer.len()), trailer].concat();
    let cases = [
        (seal_text(GCM, 0, &good), Discard::TooOld),
        (seal_text(CHACHA, 1, &good), Discard::Integrity),
        (seal_text(GCM, 2, &good[..31]), Discard::Malformed),
        (seal_text(GCM, 3, &[]), Discard::Malformed),
        (seal_text(GCM, 4, &[0x45, 0, 0, IPV4]), Discard::Malformed),
        (seal_text(GCM, 5, &[0, 0, 3, IPV4]), Discard::Padding),
        (seal_text(GCM, 6, &[0, 0, 255, IPV4]), Discard::Padding),
        (
            seal_text(GCM, 7, &with_trailer(&[1, 1, 2, IPV4])),
            Discard::Padding,
        ),
        (seal_text(GCM, 8, &with_trailer(&[0, 6])), Discard::NextHeader),
        (seal_text(GCM, 9, &with_trailer(&[0, IPV6])), Discard::NextHeader),
        (seal_text(GCM, 10, &[0, 0, 0, IPV4]), Discard::NextHeader),
        (seal_text(GCM, 11, &[1, 2, 2, IPV4]), Discard::Malformed),
        (seal_text(GCM, 12, &[0, 0, 0, NO_NEXT_HEADER]), Discard::Dummy),
        (seal_text(GCM, 13, &with_source([127, 0, 0, 1])), Discard::Martian),
        (seal_text(GCM, 12, &good), Discard::Replay),
        (
            [&hex!("01020305")[..], &seal_text(GCM, 14, &good)[4..]].concat(),
            Discard::UnknownSpi,
        ),
        (hex!("01020304 00000009").to_vec(), Discard::Malformed),
        (hex!("010203").to_vec(), Discard::Malformed),
        (Vec::new(), Discard::Malformed),
    ];
    let mut seen: Vec<_> = cases.iter().map(|(_, reason)| *reason).collect();
    for (number, (mut datagram, reason)) in cases.into_iter().enumerate() {
        let before = *inbound.counters();
        let top = inbound.top();
        assert_eq!(inbound.open(&mut datagram), Err(reason), "case {number}");
        // Malformed outside or inside: of that reason nobody can say.
        if reason != Discard::Malformed {
            assert_eq!(inbound.top() > top, reason.is_authentic(), "case {number}");
        }
        assert_eq!(inbound.counters().discarded(reason), before.discarded(reason) + 1);
    }
    inbound.set_top(20_000);
    assert_eq!(inbound.open(&mut seal_text(GCM, 15, &good)), Err(Discard::TooOld));
    inbound.set_used(HARD_OCTETS, 0);
    assert_eq!(
        inbound.open(&mut seal_text(GCM, 20_001, &good)),
        Err(Discard::Exhausted)
    );
    let mut inbound = Inbound::new(SPI, key(GCM), false, nothing);
    assert_eq!(
        inbound.open(&mut seal_text(GCM, 1, &good)),
        Err(Discard::Selector)
    );

    seen.extend([Discard::Buffer, Discard::Exhausted, Discard::Selector]);
    assert!(
        Discard::ALL.iter().all(|reason| seen.contains(reason)),
        "{seen:?}"
    );
    let names: std::collections::BTreeSet<_> = inbound.counters().by_reason().map(|(name, _)| name).collect();
    assert_eq!(names.len(), Discard::ALL.len());
    assert_eq!(
        inbound.counters().by_reason().find(|(_, count)| *count > 0),
        Some(("selector", 1))
    );
}

/// RFC 4303, sections 2.4 and 2.7.
#[test]
fn all_legal_padding_is_accepted() {
    let (_, mut inbound) = pair(GCM, false);
    for pad_len in 0..=255_u8 {
        let inner = packet(28 + (2 + 256 - usize::from(pad_len)) % 4);
        let text = [&inner[..], &(1..=pad_len).collect::<Vec<_>>(), &[pad_len, IPV4]].concat();
        let mut datagram = seal_text(GCM, u64::from(pad_len) + 1, &text);
        assert_eq!(inbound.open(&mut datagram).unwrap(), inner, "{pad_len}");
    }
    let padded_flow = [&packet(30)[..], &[0x99; 64], &[0, IPV4]].concat();
    assert_eq!(
        inbound.open(&mut seal_text(GCM, 300, &padded_flow)).unwrap(),
        packet(30)
    );
}

#[test]
fn an_authentic_packet_that_is_refused_still_cannot_be_replayed() {
    let (_, mut inbound) = pair(GCM, false);
    let mut dummy = seal_text(GCM, 1, &[0, 0, 0, NO_NEXT_HEADER]);
    assert_eq!(inbound.open(&mut dummy.clone()), Err(Discard::Dummy));
    assert_eq!(inbound.open(&mut dummy), Err(Discard::Replay));
}

#[test]
fn the_spi_is_read_without_opening() {
    assert_eq!(spi(&hex!("01020304 05")), Some(SPI));
    assert_eq!(spi(&hex!("010203")), None);
}

#[test]
fn both_halves_may_move_to_threads_of_their_own() {
    fn is_send<T: Send + 'static>() {}
    is_send::<Outbound>();
    is_send::<Inbound>();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn no_datagram_and_no_packet_panics(
        suite in prop::sample::select(SUITES.to_vec()),
        extended: bool,
        octets in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..200),
            prop::collection::vec(any::<u8>(), 65_000..66_000),
        ],
        room in 0_usize..300,
        top: u64,
    ) {
        let (mut outbound, mut inbound) = pair(suite, extended);
        let top = if extended { top } else { top >> 32 };
        inbound.set_top(top);
        let mut datagram = [&SPI.0.to_be_bytes()[..], &octets].concat();
        prop_assert!(inbound.open(&mut datagram).is_err());
        prop_assert_eq!(inbound.top(), top);
        let mut versioned = octets;
        if let Some(first) = versioned.first_mut() {
            *first = if *first & 1 == 0 { 0x45 } else { 0x60 };
        }
        let _ = outbound.seal(&versioned, &mut vec![0; room]);
        let _ = outbound.seal_in_place(room, &mut versioned);
        let _ = too_big(&versioned, 1280);
        clamp_mss(&mut versioned, 1280);
    }

    /// Authentic garbage: what a hostile gateway can send.
    #[test]
    fn no_plaintext_panics(
        text in prop::collection::vec(any::<u8>(), 0..120),
        version in prop::sample::select(vec![0x45_u8, 0x46, 0x4f, 0x60]),
        next_header in prop::sample::select(vec![IPV4, IPV6, NO_NEXT_HEADER, 6]),
        pad_len in prop_oneof![4 => Just(0_u8), 1 => any::<u8>()],
    ) {
        let (_, mut inbound) = pair(GCM, false);
        let mut text = [&[version][..], &text, &[pad_len, next_header]].concat();
        text.splice(1..1, vec![0; (4 - text.len() % 4) % 4]);
        let _ = inbound.open(&mut seal_text(GCM, 1, &text));
        prop_assert_eq!(inbound.top(), 1);
    }
}
