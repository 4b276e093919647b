//! SK and SKF, and reassembly.

use hex_literal::hex;

use super::super::iana::{ExchangeType, KeMethod, NotifyType, PayloadType};
use super::super::*;
use super::{header, message};
use crate::crypto::{CipherSuite, CryptoError, Encr, Integ, PacketKey};

const SUITES: [CipherSuite; 4] = [
    CipherSuite {
        encr: Encr::AesGcm16 { bits: 256 },
        integ: None,
    },
    CipherSuite {
        encr: Encr::ChaCha20Poly1305,
        integ: None,
    },
    CipherSuite {
        encr: Encr::AesCbc { bits: 128 },
        integ: Some(Integ::HmacSha2_256_128),
    },
    CipherSuite {
        encr: Encr::AesCbc { bits: 256 },
        integ: Some(Integ::HmacSha2_512_256),
    },
];

fn key(suite: CipherSuite) -> PacketKey {
    PacketKey::new(
        suite,
        &vec![0xE1; suite.encr_key_len()],
        &vec![0xA1; suite.integ_key_len()],
    )
    .unwrap()
}

/// RFC 7634, appendix B.
const RFC_7634: [u8; 69] = hex!(
    "c0c1c2c3c4c5c6c7d0d1d2d3d4d5d6d7"
    "2e202500000000090000004529000029"
    "10111213141516176103947 01f8d017f"
    "7c12924889 6b71bfe25236efd7cdc670"
    "66906315b2"
);

fn rfc_7634_key() -> PacketKey {
    let suite = CipherSuite {
        encr: Encr::ChaCha20Poly1305,
        integ: None,
    };
    let key_and_salt = hex!("808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f" "a0a1a2a3");
    PacketKey::new(suite, &key_and_salt, &[]).unwrap()
}

#[test]
fn rfc_7634_appendix_b_opens() {
    let mut bytes = RFC_7634;
    let opened = open_sealed(&mut bytes, &rfc_7634_key()).unwrap();
    assert_eq!(opened.body, hex!("0000000c000040010000000a"));
    assert_eq!(
        (opened.first, opened.offset, opened.fragment),
        (PayloadType::NOTIFY, 40, None)
    );
    assert_eq!(opened.header.message_id, 9);
    let payloads = decode_payloads(opened.first, opened.body, opened.offset).unwrap();
    let expected = Notify::new(NotifyType::SET_WINDOW_SIZE, &[0, 0, 0, 10]);
    assert_eq!(payloads, [Payload::Notify(expected)]);
}

#[test]
fn rfc_7634_appendix_b_is_sealed() {
    let header = Header {
        initiator_spi: IkeSpi(hex!("c0c1c2c3c4c5c6c7")),
        responder_spi: IkeSpi(hex!("d0d1d2d3d4d5d6d7")),
        flags: Flags::default(),
        message_id: 9,
        ..header()
    };
    let notify = Notify::new(NotifyType::SET_WINDOW_SIZE, &[0, 0, 0, 10]);
    let mut iv = 0x1011_1213_1415_1617;
    let sealed = seal_message(header, &[Payload::Notify(notify)], &rfc_7634_key(), &mut iv).unwrap();
    assert_eq!(sealed, RFC_7634);
    assert_eq!(iv, 0x1011_1213_1415_1618);
}

#[test]
fn what_is_sealed_opens_and_nothing_else_does() {
    for suite in SUITES {
        let key = key(suite);
        let mut iv = 1;
        for len in 0..40 {
            let octets = vec![len; usize::from(len)];
            let payloads = [Payload::VendorId(&octets)];
            let sealed = seal_message(header(), &payloads, &key, &mut iv).unwrap();
            let opened = open_sealed(&mut sealed.clone(), &key).map(|opened| {
                assert_eq!(
                    decode_payloads(opened.first, opened.body, opened.offset).unwrap(),
                    payloads
                );
                (opened.header.message_id, opened.fragment)
            });
            assert_eq!(opened, Ok((7, None)));
            // Every octet counts: those of the header, too.
            for place in 0..sealed.len() {
                let mut changed = sealed.clone();
                changed[place] ^= 1;
                assert!(
                    open_sealed(&mut changed, &key).is_err(),
                    "{suite:?} octet {place}"
                );
            }
            for end in 0..sealed.len() {
                assert!(open_sealed(&mut sealed[..end].to_vec(), &key).is_err());
            }
        }
        assert_eq!(iv, 41);
    }
}

#[test]
fn an_empty_message_has_no_first_payload() {
    for suite in SUITES {
        let mut sealed = seal_message(header(), &[], &key(suite), &mut 5).unwrap();
        let opened = open_sealed(&mut sealed, &key(suite)).unwrap();
        assert_eq!((opened.first, opened.body), (PayloadType::NONE, [].as_slice()));
    }
}

#[test]
fn what_cannot_be_authentic_is_refused() {
    for suite in SUITES {
        let key = key(suite);
        // Too short for an initialization vector and an integrity check value.
        for len in 0..80 {
            let mut bytes = message(PayloadType::SK, &vec![0; len]);
            assert!(matches!(open_sealed(&mut bytes, &key), Err(OpenError::Crypto(_))));
        }
        let mut bytes = message(PayloadType::VENDOR_ID, &[]);
        assert_eq!(open_sealed(&mut bytes, &key), Err(OpenError::NotSealed));
        assert!(matches!(open_sealed(&mut [], &key), Err(OpenError::Malformed(_))));
    }
}

/// An authentic message whose text is `text`, under ChaCha20-Poly1305.
fn sealed_text(text: &[u8]) -> Vec<u8> {
    let body = [&[0; 8], text, &[0; 16]].concat();
    let mut bytes = message(PayloadType::SK, &body);
    let (covered, sealed) = bytes.split_at_mut(32);
    key(SUITES[1]).seal(3, covered, &[], sealed).unwrap();
    bytes
}

#[test]
fn the_padding_cannot_be_longer_than_the_content() {
    let key = key(SUITES[1]);
    // Content, padding of any kind, its length.
    let mut bytes = sealed_text(&hex!("aabbcc" "ffee" "02"));
    assert_eq!(open_sealed(&mut bytes, &key).unwrap().body, hex!("aabbcc"));
    let mut bytes = sealed_text(&hex!("ffee" "02"));
    assert!(open_sealed(&mut bytes, &key).unwrap().body.is_empty());
    assert_eq!(
        open_sealed(&mut sealed_text(&hex!("ffee" "03")), &key),
        Err(OpenError::Padding)
    );
    assert_eq!(
        open_sealed(&mut sealed_text(&hex!("ff")), &key),
        Err(OpenError::Padding)
    );
    assert_eq!(open_sealed(&mut sealed_text(&[]), &key), Err(OpenError::Padding));
}

#[test]
fn payloads_before_sk_are_authenticated_with_it() {
    let key = key(SUITES[0]);
    let mut bytes = encode_message(
        header(),
        &[
            Payload::VendorId(b"clear"),
            Payload::Unknown {
                kind: PayloadType::SK,
                critical: false,
                body: &[0; 8 + 1 + 16],
            },
        ],
    )
    .unwrap();
    let (covered, sealed) = bytes.split_at_mut(28 + 9 + 4);
    key.seal(3, covered, &[], sealed).unwrap();
    assert_eq!(
        open_sealed(&mut bytes.clone(), &key).unwrap().offset,
        28 + 9 + 4 + 8
    );
    bytes[33] ^= 1;
    assert_eq!(
        open_sealed(&mut bytes, &key),
        Err(OpenError::Crypto(CryptoError::BadIcv))
    );
}

#[test]
fn initialization_vectors_run_out_before_they_repeat() {
    let mut iv = u64::MAX;
    assert_eq!(
        seal_message(header(), &[], &key(SUITES[0]), &mut iv),
        Err(EncodeError::IvExhausted)
    );
    assert_eq!(iv, u64::MAX);
}

#[test]
fn a_message_too_large_for_its_length_field_is_not_sealed() {
    let octets = vec![0; 65503];
    let sealed_len = |octets| {
        let message = seal_message(header(), &[Payload::VendorId(octets)], &key(SUITES[0]), &mut 0);
        message.map(|message| message.len())
    };
    assert_eq!(sealed_len(&octets[1..]), Ok(28 + 65535));
    assert_eq!(
        sealed_len(&octets),
        Err(EncodeError::TooLarge(Element::Payload(PayloadType::SK)))
    );
}

#[test]
fn fragments_fit_and_come_together_in_any_order() {
    let octets: Vec<u8> = (0..=255).cycle().take(3000).collect();
    let payloads = [Payload::VendorId(&octets), Payload::Nonce(&octets[..32])];
    for suite in SUITES {
        let key = key(suite);
        for max in [200, 548, 549, 550, 551, 1252, 3000] {
            let mut iv = 9;
            let fragments = seal_fragments(header(), &payloads, &key, &mut iv, max).unwrap();
            assert_eq!(iv, 9 + u64::try_from(fragments.len()).unwrap());
            assert!(fragments.len() > 1);
            assert!(fragments.iter().all(|fragment| fragment.len() <= max));
            // No fragment wastes more than a block.
            assert!(fragments[0].len() + suite.block_len() > max);

            let mut reassembly = Reassembly::new();
            let mut complete = None;
            for (position, fragment) in fragments.iter().enumerate().rev() {
                assert_eq!(complete, None);
                let mut fragment = fragment.clone();
                let opened = open_sealed(&mut fragment, &key).unwrap();
                let (number, total) = opened.fragment.unwrap();
                assert_eq!(
                    (usize::from(number), usize::from(total)),
                    (position + 1, fragments.len())
                );
                let expected = if number == 1 {
                    PayloadType::VENDOR_ID
                } else {
                    PayloadType::NONE
                };
                assert_eq!(opened.first, expected);
                assert_eq!(opened.header.exchange, ExchangeType::INFORMATIONAL);
                complete = reassembly.add(7, number, total, opened.first, opened.body);
            }
            let (first, body) = complete.unwrap();
            assert_eq!(decode_payloads(first, &body, 0).unwrap(), payloads);
        }
    }
}

#[test]
fn the_fragment_header_is_authenticated() {
    let octets = [7; 600];
    for suite in SUITES {
        let key = key(suite);
        let fragments = seal_fragments(header(), &[Payload::VendorId(&octets)], &key, &mut 0, 400).unwrap();
        let mut fragment = fragments[0].clone();
        assert_eq!(fragment[32..36], hex!("0001" "0002"));
        fragment[35] = 3;
        assert_eq!(
            open_sealed(&mut fragment, &key),
            Err(OpenError::Crypto(CryptoError::BadIcv))
        );
    }
}

#[test]
fn only_what_is_too_large_is_fragmented() {
    for suite in SUITES {
        let key = key(suite);
        let payloads = [Payload::VendorId(&[7; 600])];
        let whole = seal_message(header(), &payloads, &key, &mut 3).unwrap();
        let sealed = seal_fragments(header(), &payloads, &key, &mut 3, whole.len()).unwrap();
        assert_eq!(sealed, std::slice::from_ref(&whole));
        let sealed = seal_fragments(header(), &payloads, &key, &mut 3, whole.len() - 1).unwrap();
        assert_eq!(sealed.len(), 2);
    }
}

#[test]
fn impossible_fragment_sizes_are_refused() {
    let octets = vec![7; 4000];
    let payloads = [Payload::VendorId(&octets)];
    for suite in SUITES {
        let key = key(suite);
        // From too small for a single octet to too small for 64 fragments.
        for max in [0, 28, 60, 61, 68, 80, 100] {
            let result = seal_fragments(header(), &payloads, &key, &mut 0, max);
            assert_eq!(result, Err(EncodeError::FragmentSize), "{suite:?} {max}");
        }
        assert!(seal_fragments(header(), &payloads, &key, &mut 0, 200).is_ok());
    }
}

/// RFC 9242, section 3.3.2: neither encryption nor fragments show in what is proven.
#[test]
fn what_is_proven_of_a_message_is_the_message_in_clear() {
    let octets: Vec<u8> = (0..=255).cycle().take(1568).collect();
    let ke = Ke {
        method: KeMethod::ML_KEM_1024,
        data: &octets,
    };
    let payloads = [Payload::Ke(ke)];
    let mut body = Vec::new();
    let first = encode_payloads(&payloads, &mut body).unwrap();
    // Written by hand: header, SK's generic header, and the KE payload.
    let expected = [
        hex!("0102030405060708" "1112131415161718" "2e 20 25 08 00000007 00000648").as_slice(),
        &hex!("22 00 062c"),
        &hex!("00 00 0628 0025 0000"),
        &octets,
    ]
    .concat();
    let ours = covered_head(header(), first);
    assert_eq!(authenticated_octets(&ours, &body), Some(expected.clone()));
    for suite in SUITES {
        let key = key(suite);
        for max in [200, 548, 1252, 3000] {
            let datagrams = seal_fragments(header(), &payloads, &key, &mut 1, max).unwrap();
            let mut datagram = datagrams[0].clone();
            let opened = open_sealed(&mut datagram, &key).unwrap();
            assert_eq!(
                authenticated_octets(opened.covered, &body),
                Some(expected.clone()),
                "{max}"
            );
            // Bits that mean nothing are proven as received.
            let mut covered = opened.covered.to_vec();
            covered[17] |= 0x01;
            covered[19] |= 0xc7;
            covered[29] |= 0xff;
            let mut expected = expected.clone();
            expected[17] |= 0x01;
            expected[19] |= 0xc7;
            expected[29] |= 0xff;
            assert_eq!(authenticated_octets(&covered, &body), Some(expected));
        }
    }
}

#[test]
fn payloads_before_sk_are_proven_with_it() {
    let before = hex!("0102030405060708" "1112131415161718" "2b 20 25 08 00000007 000000ff");
    let vendor = |next: u8| [&[next, 0, 0, 9][..], b"clear"].concat();
    let body = [7; 300];
    for (next, rest) in [(46, &hex!("22 00 0144")[..]), (53, &hex!("22 00 0044 0001 0009"))] {
        let covered = [&before[..], &vendor(43), &vendor(next), rest].concat();
        let expected = [
            &before[..24],
            &hex!("0000015e"),
            &vendor(43),
            &vendor(46),
            &hex!("22 00 0130"),
            &body,
        ]
        .concat();
        assert_eq!(expected.len(), 0x15e);
        assert_eq!(authenticated_octets(&covered, &body), Some(expected));
        let whole = before.len() + 2 * 9 + 4;
        for end in 0..covered.len() {
            let octets = authenticated_octets(&covered[..end], &body);
            assert_eq!(octets.is_some(), end >= whole, "{end}");
        }
    }
    // An empty message proves its head.
    let empty = covered_head(header(), PayloadType::NONE);
    let expected = hex!("0102030405060708" "1112131415161718" "2e 20 25 08 00000007 00000020" "00 00 0004");
    assert_eq!(authenticated_octets(&empty, &[]), Some(expected.to_vec()));
}

#[test]
fn fragments_are_put_together() {
    let mut reassembly = Reassembly::new();
    assert_eq!(reassembly.add(1, 2, 3, PayloadType::NONE, b"two"), None);
    assert_eq!(reassembly.add(1, 3, 3, PayloadType::NONE, b"three"), None);
    let whole = reassembly.add(1, 1, 3, PayloadType::EAP, b"one");
    assert_eq!(whole, Some((PayloadType::EAP, b"onetwothree".to_vec())));
    // The set is empty afterwards.
    assert_eq!(reassembly.add(1, 1, 3, PayloadType::EAP, b"one"), None);
    // One of one is whole at once.
    let whole = reassembly.add(2, 1, 1, PayloadType::NOTIFY, b"n");
    assert_eq!(whole, Some((PayloadType::NOTIFY, b"n".to_vec())));
}

#[test]
fn a_duplicate_changes_nothing() {
    let mut reassembly = Reassembly::new();
    assert_eq!(reassembly.add(1, 1, 2, PayloadType::EAP, b"one"), None);
    assert_eq!(reassembly.add(1, 1, 2, PayloadType::AUTH, b"other"), None);
    let whole = reassembly.add(1, 2, 2, PayloadType::NONE, b"two");
    assert_eq!(whole, Some((PayloadType::EAP, b"onetwo".to_vec())));
}

#[test]
fn a_smaller_total_is_dropped_and_a_greater_starts_anew() {
    let mut reassembly = Reassembly::new();
    assert_eq!(reassembly.add(1, 1, 3, PayloadType::EAP, b"a"), None);
    assert_eq!(reassembly.add(1, 2, 3, PayloadType::NONE, b"b"), None);
    // Smaller: ignored, what is there stays.
    assert_eq!(reassembly.add(1, 1, 2, PayloadType::EAP, b"x"), None);
    assert_eq!(reassembly.add(1, 2, 2, PayloadType::NONE, b"x"), None);
    assert_eq!(reassembly.add(1, 1, 1, PayloadType::NONE, b"x"), None);
    // Greater: anew.
    assert_eq!(reassembly.add(1, 3, 4, PayloadType::NONE, b"3"), None);
    assert_eq!(reassembly.add(1, 3, 3, PayloadType::NONE, b"c"), None);
    assert_eq!(reassembly.add(1, 1, 4, PayloadType::CP, b"1"), None);
    assert_eq!(reassembly.add(1, 2, 4, PayloadType::NONE, b"2"), None);
    let whole = reassembly.add(1, 4, 4, PayloadType::NONE, b"4");
    assert_eq!(whole, Some((PayloadType::CP, b"1234".to_vec())));
}

#[test]
fn another_message_starts_anew() {
    let mut reassembly = Reassembly::new();
    assert_eq!(reassembly.add(1, 1, 2, PayloadType::EAP, b"a"), None);
    assert_eq!(reassembly.add(2, 2, 2, PayloadType::NONE, b"2"), None);
    let whole = reassembly.add(2, 1, 2, PayloadType::CP, b"1");
    assert_eq!(whole, Some((PayloadType::CP, b"12".to_vec())));
    reassembly.add(3, 1, 2, PayloadType::CP, b"1");
    reassembly.clear();
    assert_eq!(reassembly.add(3, 2, 2, PayloadType::NONE, b"2"), None);
}

#[test]
fn impossible_fragments_are_dropped() {
    let mut reassembly = Reassembly::new();
    assert_eq!(reassembly.add(1, 1, 2, PayloadType::EAP, b"a"), None);
    for (number, total) in [(0, 2), (0, 0), (3, 2), (1, 0), (1, 65), (65, 65), (1, u16::MAX)] {
        assert_eq!(reassembly.add(1, number, total, PayloadType::NONE, b"x"), None);
    }
    // They did not disturb the set.
    assert!(reassembly.add(1, 2, 2, PayloadType::NONE, b"b").is_some());
    // The most fragments that are accepted.
    for number in 1..64 {
        assert_eq!(
            reassembly.add(1, number, MAX_FRAGMENTS, PayloadType::EAP, b"a"),
            None
        );
    }
    let (_, body) = reassembly
        .add(1, 64, MAX_FRAGMENTS, PayloadType::NONE, b"a")
        .unwrap();
    assert_eq!(body.len(), 64);
}

#[test]
fn a_message_that_becomes_too_large_is_dropped() {
    let half = vec![0; MAX_REASSEMBLED / 2];
    let mut reassembly = Reassembly::new();
    assert_eq!(reassembly.add(1, 1, 2, PayloadType::EAP, &half), None);
    let (_, body) = reassembly.add(1, 2, 2, PayloadType::NONE, &half).unwrap();
    assert_eq!(body.len(), MAX_REASSEMBLED);

    assert_eq!(reassembly.add(1, 1, 3, PayloadType::EAP, &half), None);
    assert_eq!(reassembly.add(1, 2, 3, PayloadType::NONE, &half), None);
    assert_eq!(reassembly.add(1, 3, 3, PayloadType::NONE, &[0]), None);
    // All of it is gone.
    assert_eq!(reassembly.add(1, 1, 3, PayloadType::NONE, &[1]), None);
    assert_eq!(reassembly.add(1, 2, 3, PayloadType::NONE, &[1]), None);
    assert!(reassembly.add(1, 3, 3, PayloadType::NONE, &[1]).is_some());
}

#[test]
fn what_has_room_fits_and_more_does_not() {
    let gcm = CipherSuite {
        encr: Encr::AesGcm16 { bits: 256 },
        integ: None,
    };
    let cbc = CipherSuite {
        encr: Encr::AesCbc { bits: 256 },
        integ: Some(Integ::HmacSha2_256_128),
    };
    for suite in [gcm, cbc] {
        let len = |room: usize| {
            let data = vec![0; room - 8];
            let payload = Payload::Notify(Notify::new(NotifyType(50_000), &data));
            seal_message(header(), &[payload], &key(suite), &mut 0)
                .unwrap()
                .len()
        };
        for max in 200..300 {
            let room = sealed_room(suite, max);
            assert!(len(room) <= max && len(room + 1) > max, "{room} in {max}");
        }
        assert_eq!(sealed_room(suite, 0), 0);
    }
}
