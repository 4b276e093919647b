//! Octets written by hand from the figures of RFC 7296, section 3, against values.

mod errors;
mod properties;
mod sealed;
mod stream;

use std::borrow::Cow;

use hex_literal::hex;

use super::iana::{
    AuthMethod, CertEncoding, CfgAttr, CfgType, ExchangeType, IdType, KeMethod, NotifyType, PayloadType,
    ProtocolId, TransformType, TsType,
};
use super::*;

/// A header that only lacks its length and its first payload.
pub(super) fn header() -> Header {
    Header {
        initiator_spi: IkeSpi(hex!("0102030405060708")),
        responder_spi: IkeSpi(hex!("1112131415161718")),
        next_payload: PayloadType::NONE,
        version: VERSION,
        exchange: ExchangeType::INFORMATIONAL,
        flags: Flags {
            initiator: true,
            version: false,
            response: false,
        },
        message_id: 7,
        length: 0,
    }
}

/// A message with the one payload `kind`, whose generic header is composed around `body`.
pub(super) fn message(kind: PayloadType, body: &[u8]) -> Vec<u8> {
    let payload = Payload::Unknown {
        kind,
        critical: false,
        body,
    };
    encode_message(header(), &[payload]).unwrap()
}

/// The octets of a payload's body mean `expected`, and `expected` is written as those octets.
fn same(body: &[u8], expected: Payload<'_>) {
    let bytes = message(expected.kind(), body);
    assert_eq!(
        Message::decode(&bytes).unwrap().payloads,
        std::slice::from_ref(&expected)
    );
    assert_eq!(encode_message(header(), &[expected]).unwrap(), bytes);
}

#[test]
fn the_header() {
    let bytes = hex!(
        "0102030405060708" "0000000000000000" "21" "20" "22" "08" "00000000" "0000001c"
    );
    let header = Header {
        initiator_spi: IkeSpi([1, 2, 3, 4, 5, 6, 7, 8]),
        responder_spi: IkeSpi::ZERO,
        next_payload: PayloadType::SA,
        version: VERSION,
        exchange: ExchangeType::IKE_SA_INIT,
        flags: Flags {
            initiator: true,
            version: false,
            response: false,
        },
        message_id: 0,
        length: 28,
    };
    assert_eq!(Header::decode(&bytes), Ok(header));
    let mut out = Vec::new();
    header.encode(&mut out);
    assert_eq!(out, bytes);
    assert_eq!(header.initiator_spi.to_string(), "0102030405060708");
    assert_eq!(EspSpi(0xC0FFEE).to_string(), "00c0ffee");
}

#[test]
fn the_flags() {
    for (octet, flags) in [
        (0x00, Flags::default()),
        (
            0x08,
            Flags {
                initiator: true,
                ..Flags::default()
            },
        ),
        (
            0x10,
            Flags {
                version: true,
                ..Flags::default()
            },
        ),
        (
            0x20,
            Flags {
                response: true,
                ..Flags::default()
            },
        ),
        (
            0x38,
            Flags {
                initiator: true,
                version: true,
                response: true,
            },
        ),
    ] {
        let mut bytes = Vec::new();
        Header { flags, ..header() }.encode(&mut bytes);
        assert_eq!(bytes[19], octet);
        // Bits without a meaning are ignored.
        bytes[19] |= 0xC7;
        assert_eq!(Header::decode(&bytes).unwrap().flags, flags);
    }
}

#[test]
fn a_header_of_another_version_can_still_be_read() {
    let mut bytes = message(PayloadType::NOTIFY, &hex!("00000005"));
    bytes[17] = 0x31;
    assert_eq!(Header::decode(&bytes).unwrap().major_version(), 3);
    assert_eq!(
        Message::decode(&bytes).unwrap_err().kind,
        DecodeErrorKind::Version(3)
    );
    // The minor version does not matter (RFC 7296, section 2.5).
    bytes[17] = 0x2F;
    assert!(Message::decode(&bytes).is_ok());
}

#[test]
fn a_whole_message_of_several_payloads() {
    let bytes = hex!(
        "0102030405060708" "1112131415161718" "28" "20" "22" "20" "00000000" "0000005c"
        "2b000014" "000102030405060708090a0b0c0d0e0f"         // Nonce, then V
        "87000006" "5657"                                     // V, then 135
        "29800008" "deadbeef"                                 // 135, critical, then N
        "2d000008" "00004004"                                 // N, then TSr
        "00000016" "01000000" "09ff000e" "0123456789abcdef0123" // TSr of unknown type
    );
    let expected = [
        Payload::Nonce(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]),
        Payload::VendorId(b"VW"),
        Payload::Unknown {
            kind: PayloadType(135),
            critical: true,
            body: &hex!("deadbeef"),
        },
        Payload::Notify(Notify::new(NotifyType::NAT_DETECTION_SOURCE_IP, &[])),
        Payload::TsResponder(vec![Ts::Unknown {
            kind: TsType(9),
            protocol: 255,
            body: &hex!("0123456789abcdef0123"),
        }]),
    ];
    let message = Message::decode(&bytes).unwrap();
    assert_eq!(message.payloads, expected);
    assert_eq!(
        message.header.flags,
        Flags {
            response: true,
            ..Flags::default()
        }
    );
    assert_eq!(encode_message(message.header, &expected).unwrap(), bytes);
}

#[test]
fn a_message_without_payloads() {
    let bytes = encode_message(header(), &[]).unwrap();
    assert_eq!(bytes.len(), Header::LEN);
    assert_eq!(Message::decode(&bytes).unwrap().payloads, []);
    assert_eq!(decode_payloads(PayloadType::NONE, &[], 0), Ok(vec![]));
}

#[test]
fn security_associations() {
    let gcm = Transform::new(TransformType::ENCR, 20, Some(256));
    let prf = Transform::new(TransformType::PRF, 5, None);
    let ke = Transform::new(TransformType::KE, 31, None);
    let esn = Transform::new(TransformType::ESN, 0, None);
    same(
        &hex!(
            "00000024" "01010003" // last, number 1, IKE, no SPI, 3 transforms
            "0300000c" "01000014" "800e0100"
            "03000008" "02000005"
            "00000008" "0400001f"
        ),
        Payload::Sa(vec![Proposal {
            number: 1,
            protocol: ProtocolId::IKE,
            spi: Cow::Borrowed(&[]),
            transforms: vec![gcm.clone(), prf, ke],
        }]),
    );
    same(
        &hex!(
            "02000020" "01030402" "c0ffee01"
            "0300000c" "01000014" "800e0100"
            "00000008" "05000000"
            "00000010" "02010800" "a1a2a3a4a5a6a7a8"
        ),
        Payload::Sa(vec![
            Proposal {
                number: 1,
                protocol: ProtocolId::ESP,
                spi: Cow::Borrowed(&hex!("c0ffee01")),
                transforms: vec![gcm, esn],
            },
            Proposal {
                number: 2,
                protocol: ProtocolId::IKE,
                spi: Cow::Borrowed(&hex!("a1a2a3a4a5a6a7a8")),
                transforms: vec![],
            },
        ]),
    );
}

#[test]
fn unknown_transforms_and_attributes_survive() {
    same(
        &hex!(
            "00000031" "05010002"
            "03000019" "f1000bad" "800e0080" "8011abcd" "0012" "0005" "68656c6c6f"
            "00000010" "01000014" "800e0080" "800e0100"
        ),
        Payload::Sa(vec![Proposal {
            number: 5,
            protocol: ProtocolId::IKE,
            spi: Cow::Borrowed(&[]),
            transforms: vec![
                Transform {
                    attributes: vec![
                        Attribute {
                            kind: 17,
                            value: AttributeValue::Short(0xABCD),
                        },
                        Attribute {
                            kind: 18,
                            value: AttributeValue::Long(b"hello".to_vec()),
                        },
                    ],
                    ..Transform::new(TransformType(0xF1), 0x0BAD, Some(128))
                },
                // A second key length makes the transform another one.
                Transform {
                    attributes: vec![Attribute {
                        kind: 14,
                        value: AttributeValue::Short(256),
                    }],
                    ..Transform::new(TransformType::ENCR, 20, Some(128))
                },
            ],
        }]),
    );
    // A key length with a length field is none (RFC 7296, section 3.3.5).
    same(
        &hex!("00000016" "01010001" "0000000e" "01000014" "000e0002" "0100"),
        Payload::Sa(vec![Proposal {
            number: 1,
            protocol: ProtocolId::IKE,
            spi: Cow::Borrowed(&[]),
            transforms: vec![Transform {
                attributes: vec![Attribute {
                    kind: 14,
                    value: AttributeValue::Long(vec![1, 0]),
                }],
                ..Transform::new(TransformType::ENCR, 20, None)
            }],
        }]),
    );
}

#[test]
fn key_exchanges() {
    same(
        &hex!("001f0000" "0badc0de"),
        Payload::Ke(Ke {
            method: KeMethod::CURVE25519,
            data: &hex!("0badc0de"),
        }),
    );
}

#[test]
fn identities() {
    same(
        &hex!("02000000" "7670"),
        Payload::IdInitiator(Id::new(IdType::FQDN, b"vp")),
    );
    same(
        &hex!("0b000000"),
        Payload::IdResponder(Id::new(IdType::KEY_ID, &[])),
    );
    // AUTH covers the reserved octets as they were sent.
    let body = hex!("02a1b2c3" "7670");
    let id = Id {
        reserved: [0xA1, 0xB2, 0xC3],
        ..Id::new(IdType::FQDN, b"vp")
    };
    same(&body, Payload::IdResponder(id));
    assert_eq!(id.body(), body);
}

#[test]
fn certificates_and_requests() {
    same(
        &hex!("04" "3082"),
        Payload::Cert(Cert {
            encoding: CertEncoding::X509_SIGNATURE,
            data: &[0x30, 0x82],
        }),
    );
    same(
        &hex!("04"),
        Payload::CertReq(CertReq {
            encoding: CertEncoding::X509_SIGNATURE,
            data: &[],
        }),
    );
}

#[test]
fn proofs() {
    same(
        &hex!("02000000" "f00d"),
        Payload::Auth(Auth {
            method: AuthMethod::SHARED_KEY_MIC,
            data: &[0xF0, 0x0D],
        }),
    );
}

#[test]
fn nonces_from_16_to_256_octets() {
    for len in [16, 32, 256] {
        let octets = vec![0x5A; len];
        same(&octets, Payload::Nonce(&octets));
    }
}

#[test]
fn notifications() {
    same(
        &hex!("0304" "4009" "c0ffee01" "ab"),
        Payload::Notify(Notify {
            protocol: ProtocolId::ESP,
            spi: &hex!("c0ffee01"),
            kind: NotifyType::REKEY_SA,
            data: &[0xAB],
        }),
    );
    // An SPI size of zero with a protocol is common.
    same(
        &hex!("0100" "0018"),
        Payload::Notify(Notify {
            protocol: ProtocolId::IKE,
            ..Notify::new(NotifyType::AUTHENTICATION_FAILED, &[])
        }),
    );
}

#[test]
fn deletions() {
    same(
        &hex!("01000000"),
        Payload::Delete(Delete {
            protocol: ProtocolId::IKE,
            spis: vec![],
        }),
    );
    same(
        &hex!("03040002" "00000001" "00000002"),
        Payload::Delete(Delete {
            protocol: ProtocolId::ESP,
            spis: vec![&[0, 0, 0, 1], &[0, 0, 0, 2]],
        }),
    );
    same(
        &hex!("09020001" "beef"),
        Payload::Delete(Delete {
            protocol: ProtocolId(9),
            spis: vec![&[0xBE, 0xEF]],
        }),
    );
}

#[test]
fn traffic_selectors() {
    let v4 = TrafficSelector {
        protocol: 17,
        start_port: 53,
        end_port: 53,
        start: "10.0.0.0".parse().unwrap(),
        end: "10.255.255.255".parse().unwrap(),
    };
    same(
        &hex!(
            "03000000"
            "07110010" "00350035" "0a000000" "0affffff"
            "08000028" "0000ffff" "00000000000000000000000000000000" "ffffffffffffffffffffffffffffffff"
            "0700" "0010" "ffff0000" "c0000201" "c0000201"
        ),
        Payload::TsInitiator(vec![
            v4.into(),
            TrafficSelector::ANY_V6.into(),
            TrafficSelector {
                start_port: 65535,
                end_port: 0,
                ..TrafficSelector::addresses("192.0.2.1".parse().unwrap(), "192.0.2.1".parse().unwrap())
            }
            .into(),
        ]),
    );
    same(
        &hex!("01000000" "07000010" "0000ffff" "00000000" "ffffffff"),
        Payload::TsResponder(vec![TrafficSelector::ANY_V4.into()]),
    );
    assert_eq!(v4.to_string(), "10.0.0.0/8[protocol 17, port 53]");
    let text = |start: &str, end: &str| {
        TrafficSelector::addresses(start.parse().unwrap(), end.parse().unwrap()).to_string()
    };
    assert_eq!(text("0.0.0.0", "255.255.255.255"), "0.0.0.0/0");
    assert_eq!(text("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"), "::/0");
    assert_eq!(text("fd00:3::", "fd00:3::ffff"), "fd00:3::/112");
    assert_eq!(text("10.0.0.1", "10.0.0.2"), "10.0.0.1-10.0.0.2");
    assert_eq!(text("10.0.0.0", "10.0.0.2"), "10.0.0.0-10.0.0.2");
    assert_eq!(text("10.0.0.1", "10.0.0.1"), "10.0.0.1");
    assert!(!v4.is_opaque());
}

#[test]
fn configuration() {
    same(
        &hex!("02000000" "00010004" "0a000001" "000a0000" "5ba00002" "abcd"),
        Payload::Cp(Cp {
            kind: CfgType::REPLY,
            attributes: vec![
                CfgAttribute {
                    kind: CfgAttr::INTERNAL_IP4_ADDRESS,
                    value: &[10, 0, 0, 1],
                },
                CfgAttribute {
                    kind: CfgAttr::INTERNAL_IP6_DNS,
                    value: &[],
                },
                CfgAttribute {
                    kind: CfgAttr::INTERNAL_IP4_SERVER,
                    value: &[0xAB, 0xCD],
                },
            ],
        }),
    );
    // The reserved bit of an attribute's type is ignored.
    let bytes = message(PayloadType::CP, &hex!("01000000" "80010000"));
    let expected = Cp {
        kind: CfgType::REQUEST,
        attributes: vec![CfgAttribute {
            kind: CfgAttr(1),
            value: &[],
        }],
    };
    assert_eq!(Message::decode(&bytes).unwrap().payloads, [Payload::Cp(expected)]);
}

#[test]
fn eap_packets() {
    same(
        &hex!("0101000a" "0168656c6c6f"),
        Payload::Eap(&hex!("0101000a" "0168656c6c6f")),
    );
    same(&hex!("03020004"), Payload::Eap(&hex!("03020004")));
}

#[test]
fn vendor_identifiers_and_unknown_payloads() {
    same(&[], Payload::VendorId(&[]));
    same(
        &hex!("00"),
        Payload::Unknown {
            kind: PayloadType::GSPM,
            critical: false,
            body: &[0],
        },
    );
    // Payload types of IKEv1 mean nothing (CVE-2015-3991).
    same(
        &hex!("00"),
        Payload::Unknown {
            kind: PayloadType(5),
            critical: false,
            body: &[0],
        },
    );
}

#[test]
fn sealed_payloads_end_the_message() {
    let bytes = hex!(
        "0102030405060708" "1112131415161718" "2b" "20" "25" "08" "00000001" "00000028"
        "2e000004"       // V, then SK
        "29000008" "aabbccdd" // SK; the first inside is N
    );
    let message = Message::decode(&bytes).unwrap();
    assert_eq!(
        message.payloads,
        [
            Payload::VendorId(&[]),
            Payload::Sealed(Sealed {
                first: PayloadType::NOTIFY,
                offset: 32
            })
        ]
    );
    let bytes = hex!(
        "0102030405060708" "1112131415161718" "35" "20" "25" "08" "00000001" "00000024"
        "29000008" "00010002"
    );
    let fragment = Fragment {
        first: PayloadType::NOTIFY,
        number: 1,
        total: 2,
        offset: 28,
    };
    assert_eq!(
        Message::decode(&bytes).unwrap().payloads,
        [Payload::Fragment(fragment)]
    );
}
