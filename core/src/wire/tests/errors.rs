//! Every way of being wrong, with the element and the place that the error names.

use hex_literal::hex;

use super::super::iana::{CertEncoding, CfgAttr, CfgType, PayloadType, ProtocolId, TransformType};
use super::super::*;
use super::{header, message};

use DecodeErrorKind::{Count, Length, Misplaced, TooLarge, TooMany, Trailing, Truncated, Value, Version};

/// Where a payload's body stands in [`message`].
const BODY: usize = Header::LEN + 4;

/// The body of a payload is refused: the error names `element`, and the place `at` octets into the body.
#[track_caller]
fn refused(kind: PayloadType, body: &[u8], element: Element, at: usize, error: DecodeErrorKind) {
    let expected = DecodeError {
        element,
        offset: BODY + at,
        kind: error,
    };
    assert_eq!(
        Message::decode(&message(kind, body)).unwrap_err(),
        expected,
        "{expected}"
    );
}

#[track_caller]
fn refused_message(bytes: &[u8], element: Element, offset: usize, kind: DecodeErrorKind) {
    assert_eq!(
        Message::decode(bytes).unwrap_err(),
        DecodeError {
            element,
            offset,
            kind
        }
    );
}

#[test]
fn headers() {
    let valid = message(PayloadType::NOTIFY, &hex!("00004000"));
    refused_message(&valid[..27], Element::Header, 24, Truncated);
    refused_message(&[], Element::Header, 0, Truncated);
    // The header's length is the datagram's: neither more ...
    refused_message(&valid[..valid.len() - 1], Element::Header, 24, Truncated);
    // ... nor less.
    let longer = [valid.as_slice(), &[0]].concat();
    refused_message(&longer, Element::Header, 24, Length);
    let mut ikev1 = valid;
    ikev1[17] = 0x10;
    refused_message(&ikev1, Element::Header, 17, Version(1));
}

#[test]
fn chains() {
    // The header promises a payload that is not there.
    let mut bytes = encode_message(header(), &[]).unwrap();
    bytes[16] = 40;
    refused_message(&bytes, Element::Payload(PayloadType::NONCE), 28, Truncated);
    // Octets after the last payload.
    let mut bytes = message(PayloadType::VENDOR_ID, &[]);
    bytes[16] = 0;
    refused_message(&bytes, Element::Payloads, 28, Trailing);
    // A payload shorter than its own header would never end the chain.
    for length in 0..4 {
        let mut bytes = message(PayloadType::VENDOR_ID, &[]);
        bytes[31] = length;
        refused_message(&bytes, Element::Payload(PayloadType::VENDOR_ID), 30, Length);
    }
    // A payload longer than the message.
    let mut bytes = message(PayloadType::VENDOR_ID, &[]);
    bytes[31] = 5;
    refused_message(&bytes, Element::Payload(PayloadType::VENDOR_ID), 32, Truncated);
}

#[test]
fn sealed_payloads() {
    // Nothing follows SK ...
    let mut bytes = message(PayloadType::SK, &[0; 8]);
    bytes[31] = 8;
    refused_message(&bytes, Element::Payloads, 36, Trailing);
    // ... and nothing sealed is inside it.
    for kind in [PayloadType::SK, PayloadType::SKF] {
        let error = decode_payloads(kind, &hex!("00000008" "00010001"), 100).unwrap_err();
        assert_eq!(
            error,
            DecodeError {
                element: Element::Payload(kind),
                offset: 100,
                kind: Misplaced
            }
        );
    }
    let skf = Element::Payload(PayloadType::SKF);
    refused(PayloadType::SKF, &hex!("00000001"), skf, 0, Value);
    refused(PayloadType::SKF, &hex!("00000000"), skf, 0, Value);
    refused(PayloadType::SKF, &hex!("00030002"), skf, 0, Value);
    refused(PayloadType::SKF, &hex!("000100"), skf, 2, Truncated);
}

#[test]
fn proposals() {
    let sa = PayloadType::SA;
    let first = Element::Proposal(1);
    refused(sa, &[], first, 0, Truncated);
    refused(sa, &hex!("01000008" "01010000"), first, 0, Value); // neither the last nor more
    refused(sa, &hex!("00000003" "01010000"), first, 2, Length);
    refused(sa, &hex!("00000009" "01010000"), first, 4, Truncated);
    refused(sa, &hex!("00000004"), first, 4, Truncated);
    refused(
        sa,
        &hex!("02000008" "01010000"),
        Element::Proposal(2),
        8,
        Truncated,
    ); // more, but there is none
    refused(
        sa,
        &hex!("00000008" "01010000" "00"),
        Element::Payload(sa),
        8,
        Trailing,
    );
    refused(sa, &hex!("00000009" "01010000" "00"), first, 8, Trailing);
    refused(sa, &hex!("00000008" "00010000"), first, 4, Value); // number 0
    refused(
        sa,
        &hex!("02000008" "01010000" "00000008" "03010000"),
        Element::Proposal(2),
        12,
        Value,
    );
    refused(
        sa,
        &hex!("02000008" "01010000" "00000008" "01010000"),
        Element::Proposal(2),
        12,
        Value,
    );
    refused(
        sa,
        &hex!("02000008" "ff010000" "00000008" "00010000"),
        Element::Proposal(2),
        12,
        Value,
    );
    refused(sa, &hex!("0000000c" "01010400" "01020304"), first, 6, Length); // IKE with 4
    refused(
        sa,
        &hex!("00000010" "01030800" "0102030405060708"),
        first,
        6,
        Length,
    ); // ESP with 8
    refused(sa, &hex!("0000000a" "01030400" "0102"), first, 8, Truncated);
}

#[test]
fn transforms() {
    let sa = PayloadType::SA;
    let proposal = Element::Proposal(1);
    let one = Element::Transform {
        proposal: 1,
        transform: 1,
    };
    let two = Element::Transform {
        proposal: 1,
        transform: 2,
    };
    refused(
        sa,
        &hex!("00000010" "01010002" "00000008" "02000005"),
        proposal,
        7,
        Count,
    );
    refused(
        sa,
        &hex!("00000010" "01010001" "03000008" "02000005"),
        proposal,
        7,
        Count,
    );
    refused(
        sa,
        &hex!("00000010" "01010000" "00000008" "02000005"),
        proposal,
        8,
        Trailing,
    );
    refused(sa, &hex!("00000008" "01010001"), one, 8, Truncated);
    refused(
        sa,
        &hex!("00000010" "01010002" "03000008" "02000005"),
        two,
        16,
        Truncated,
    );
    refused(
        sa,
        &hex!("00000010" "01010001" "02000008" "02000005"),
        one,
        8,
        Value,
    );
    refused(
        sa,
        &hex!("00000010" "01010001" "00000000" "02000005"),
        one,
        10,
        Length,
    );
    refused(
        sa,
        &hex!("0000000e" "01010001" "00000006" "0200"),
        one,
        14,
        Truncated,
    );
    refused(
        sa,
        &hex!("00000012" "01010001" "0000000a" "01000014" "800e"),
        one,
        18,
        Truncated,
    );
    refused(
        sa,
        &hex!("00000015" "01010001" "0000000d" "01000014" "00120002" "00"),
        one,
        20,
        Truncated,
    );
}

#[test]
fn short_payloads() {
    for (kind, fixed) in [
        (PayloadType::KE, 4),
        (PayloadType::ID_INITIATOR, 4),
        (PayloadType::ID_RESPONDER, 4),
        (PayloadType::CERT, 1),
        (PayloadType::CERTREQ, 1),
        (PayloadType::AUTH, 4),
        (PayloadType::NOTIFY, 4),
        (PayloadType::DELETE, 4),
        (PayloadType::TS_INITIATOR, 4),
        (PayloadType::TS_RESPONDER, 4),
        (PayloadType::CP, 4),
        (PayloadType::EAP, 4),
        (PayloadType::SKF, 4),
    ] {
        for len in 0..fixed {
            let error = Message::decode(&message(kind, &vec![1; len])).unwrap_err();
            assert_eq!((error.element, error.kind), (Element::Payload(kind), Truncated));
        }
    }
    refused(
        PayloadType::NOTIFY,
        &hex!("0304400901"),
        Element::Payload(PayloadType::NOTIFY),
        4,
        Truncated,
    );
}

#[test]
fn nonces() {
    for len in [0, 15, 257] {
        let bytes = message(PayloadType::NONCE, &vec![0; len]);
        refused_message(&bytes, Element::Payload(PayloadType::NONCE), 28, Length);
    }
}

#[test]
fn deletions() {
    let delete = PayloadType::DELETE;
    let element = Element::Payload(delete);
    refused(delete, &hex!("01000001"), element, 2, Count);
    refused(delete, &hex!("01040001" "00000001"), element, 1, Length);
    refused(delete, &hex!("03080001" "0000000000000001"), element, 1, Length);
    refused(delete, &hex!("03040002" "00000001"), element, 2, Count);
    refused(delete, &hex!("03040000" "00000001"), element, 2, Count);
    refused(delete, &hex!("0900ffff"), element, 2, Count);
}

#[test]
fn traffic_selectors() {
    let ts = PayloadType::TS_INITIATOR;
    let element = Element::Payload(ts);
    let first = Element::TrafficSelector(ts, 1);
    refused(ts, &hex!("00000000"), element, 0, Count);
    refused(
        ts,
        &hex!("02000000" "07000010" "0000ffff" "00000000" "ffffffff"),
        element,
        0,
        Count,
    );
    refused(
        ts,
        &hex!("01000000" "07000010" "0000ffff" "00000000" "ffffffff" "07"),
        element,
        0,
        Count,
    );
    refused(ts, &hex!("01000000" "0700"), first, 6, Truncated);
    refused(ts, &hex!("01000000" "07000003"), first, 6, Length);
    refused(
        ts,
        &hex!("01000000" "07000010" "0000ffff" "00000000" "ffffff"),
        first,
        8,
        Truncated,
    );
    refused(
        ts,
        &hex!("01000000" "0700000f" "0000ffff" "00000000" "ffffff"),
        first,
        6,
        Length,
    );
    refused(
        ts,
        &hex!("01000000" "07000011" "0000ffff" "00000000" "ffffffff" "00"),
        first,
        6,
        Length,
    );
    refused(
        ts,
        &hex!("01000000" "08000010" "0000ffff" "00000000" "ffffffff"),
        first,
        6,
        Length,
    );
    refused(
        ts,
        &hex!("01000000" "07000010" "0000ffff" "00000001" "00000000"),
        first,
        8,
        Value,
    );
    refused(
        ts,
        &hex!("01000000" "07000010" "00020001" "00000000" "00000000"),
        first,
        8,
        Value,
    );
    refused(
        ts,
        &hex!("01000000" "07000010" "ffff0001" "00000000" "00000000"),
        first,
        8,
        Value,
    );
}

#[test]
fn configuration() {
    let cp = PayloadType::CP;
    refused(
        cp,
        &hex!("02000000" "000100"),
        Element::CfgAttribute(1),
        6,
        Truncated,
    );
    refused(
        cp,
        &hex!("02000000" "00010000" "00030004" "080808"),
        Element::CfgAttribute(2),
        12,
        Truncated,
    );
}

#[test]
fn eap_packets() {
    let eap = PayloadType::EAP;
    let element = Element::Payload(eap);
    refused(eap, &hex!("01010003" "01"), element, 2, Length);
    refused(eap, &hex!("01010006" "01"), element, 2, Length);
    refused(eap, &hex!("01010000" "01"), element, 2, Length);
    refused(eap, &hex!("03010005" "00"), element, 2, Length); // Success has four octets
    refused(eap, &hex!("04010005" "00"), element, 2, Length);
}

#[test]
fn limits() {
    let vendors = vec![Payload::VendorId(&[]); MAX_PAYLOADS];
    let mut bytes = encode_message(header(), &vendors).unwrap();
    assert_eq!(Message::decode(&bytes).unwrap().payloads.len(), MAX_PAYLOADS);
    let last = bytes.len() - 4;
    bytes[last] = PayloadType::VENDOR_ID.0;
    bytes.extend_from_slice(&hex!("00000004"));
    bytes[24..28].copy_from_slice(&u32::try_from(last + 8).unwrap().to_be_bytes());
    refused_message(&bytes, Element::Payloads, last + 4, TooMany);

    let proposal = |number| Proposal {
        number,
        protocol: ProtocolId::IKE,
        spi: [][..].into(),
        transforms: vec![],
    };
    let proposals = |count| {
        let list = (1..=u8::try_from(count).unwrap()).map(proposal).collect();
        encode_message(header(), &[Payload::Sa(list)]).unwrap()
    };
    assert!(Message::decode(&proposals(MAX_PROPOSALS)).is_ok());
    let at = BODY + 8 * MAX_PROPOSALS;
    refused_message(
        &proposals(MAX_PROPOSALS + 1),
        Element::Payload(PayloadType::SA),
        at,
        TooMany,
    );

    let transforms = |count| {
        let transforms = vec![Transform::new(TransformType::PRF, 5, None); count];
        encode_message(
            header(),
            &[Payload::Sa(vec![Proposal {
                transforms,
                ..proposal(1)
            }])],
        )
        .unwrap()
    };
    assert!(Message::decode(&transforms(MAX_TRANSFORMS)).is_ok());
    refused_message(
        &transforms(MAX_TRANSFORMS + 1),
        Element::Proposal(1),
        BODY + 7,
        TooMany,
    );

    let attributes = |count| {
        let attributes = vec![
            Attribute {
                kind: 17,
                value: AttributeValue::Short(0)
            };
            count
        ];
        let transforms = vec![Transform {
            attributes,
            ..Transform::new(TransformType::PRF, 5, None)
        }];
        encode_message(
            header(),
            &[Payload::Sa(vec![Proposal {
                transforms,
                ..proposal(1)
            }])],
        )
        .unwrap()
    };
    assert!(Message::decode(&attributes(MAX_TRANSFORM_ATTRIBUTES)).is_ok());
    let element = Element::Transform {
        proposal: 1,
        transform: 1,
    };
    refused_message(
        &attributes(MAX_TRANSFORM_ATTRIBUTES + 1),
        element,
        BODY + 48,
        TooMany,
    );

    let configuration = |count| {
        let attributes = vec![
            CfgAttribute {
                kind: CfgAttr::INTERNAL_IP4_DNS,
                value: &[]
            };
            count
        ];
        encode_message(
            header(),
            &[Payload::Cp(Cp {
                kind: CfgType::REPLY,
                attributes,
            })],
        )
        .unwrap()
    };
    assert!(Message::decode(&configuration(MAX_CFG_ATTRIBUTES)).is_ok());
    let at = BODY + 4 + 4 * MAX_CFG_ATTRIBUTES;
    refused_message(
        &configuration(MAX_CFG_ATTRIBUTES + 1),
        Element::Payload(PayloadType::CP),
        at,
        TooMany,
    );
}

#[test]
fn sizes() {
    let id = |len: usize| message(PayloadType::ID_RESPONDER, &vec![2; 4 + len]);
    assert!(Message::decode(&id(MAX_ID)).is_ok());
    refused_message(
        &id(MAX_ID + 1),
        Element::Payload(PayloadType::ID_RESPONDER),
        BODY,
        TooLarge,
    );

    let certificates = |sizes: &[usize]| {
        let data = vec![0; MAX_CERT];
        let cert = |len: &usize| Cert {
            encoding: CertEncoding::X509_SIGNATURE,
            data: &data[..*len],
        };
        let payloads: Vec<_> = sizes.iter().map(cert).map(Payload::Cert).collect();
        encode_message(header(), &payloads).unwrap()
    };
    let element = Element::Payload(PayloadType::CERT);
    let most = MAX_CERT - 1; // the encoding's octet counts
    assert!(Message::decode(&certificates(&[most, most])).is_ok());
    refused_message(
        &certificates(&[most, most + 1]),
        element,
        28 + 4 + MAX_CERT,
        TooLarge,
    );
    refused_message(
        &certificates(&[most, most, 0]),
        element,
        28 + 2 * (4 + MAX_CERT),
        TooLarge,
    );
    assert!(Message::decode(&certificates(&[1; MAX_CERTS])).is_ok());
    refused_message(
        &certificates(&[1; MAX_CERTS + 1]),
        element,
        28 + 6 * MAX_CERTS,
        TooMany,
    );
}

#[test]
fn what_cannot_be_written_leaves_nothing() {
    let big = vec![0; 65535];
    let spi = vec![0; 256];
    let proposal = |number, transforms| Proposal {
        number,
        protocol: ProtocolId::IKE,
        spi: [][..].into(),
        transforms,
    };
    let transform = |attribute| Transform {
        attributes: vec![attribute],
        ..Transform::new(TransformType::ENCR, 20, None)
    };
    let long = |len| Attribute {
        kind: 1,
        value: AttributeValue::Long(vec![0; len]),
    };
    let element = Element::Transform {
        proposal: 1,
        transform: 1,
    };
    let v4 = TrafficSelector::ANY_V4;
    let mixed = TrafficSelector {
        end: TrafficSelector::ANY_V6.end,
        ..v4
    };
    let cases: Vec<(Payload<'_>, EncodeError)> = vec![
        (
            Payload::VendorId(&big),
            EncodeError::TooLarge(Element::Payload(PayloadType::VENDOR_ID)),
        ),
        (
            Payload::Notify(Notify {
                spi: &spi,
                ..Notify::new(iana::NotifyType::COOKIE, &[])
            }),
            EncodeError::TooLarge(Element::Payload(PayloadType::NOTIFY)),
        ),
        (
            Payload::Sa(vec![Proposal {
                spi: spi.as_slice().into(),
                ..proposal(1, vec![])
            }]),
            EncodeError::TooLarge(Element::Proposal(1)),
        ),
        (
            Payload::Sa(vec![proposal(
                1,
                vec![Transform::new(TransformType::PRF, 5, None); 256],
            )]),
            EncodeError::TooLarge(Element::Proposal(1)),
        ),
        (
            Payload::Sa(vec![proposal(1, vec![transform(long(65536))])]),
            EncodeError::TooLarge(element),
        ),
        (
            Payload::Sa(vec![proposal(1, vec![transform(long(65530))])]),
            EncodeError::TooLarge(element),
        ),
        (
            Payload::Sa(vec![proposal(
                1,
                vec![transform(Attribute {
                    kind: 0x8001,
                    ..long(0)
                })],
            )]),
            EncodeError::Value(element),
        ),
        (
            Payload::TsInitiator(vec![v4.into(), mixed.into()]),
            EncodeError::Value(Element::TrafficSelector(PayloadType::TS_INITIATOR, 2)),
        ),
        (
            Payload::TsResponder(vec![v4.into(); 256]),
            EncodeError::TooLarge(Element::Payload(PayloadType::TS_RESPONDER)),
        ),
        (
            Payload::Cp(Cp {
                kind: CfgType::REQUEST,
                attributes: vec![CfgAttribute {
                    kind: CfgAttr(0x8000),
                    value: &[],
                }],
            }),
            EncodeError::Value(Element::CfgAttribute(1)),
        ),
        (
            Payload::Delete(Delete {
                protocol: ProtocolId::ESP,
                spis: vec![&[0; 4], &[0; 5]],
            }),
            EncodeError::Value(Element::Payload(PayloadType::DELETE)),
        ),
        (
            Payload::Sealed(Sealed {
                first: PayloadType::NONE,
                offset: 0,
            }),
            EncodeError::Misplaced(PayloadType::SK),
        ),
    ];
    for (payload, error) in cases {
        let mut out = vec![0xEE];
        let payloads = [Payload::VendorId(b"before"), payload];
        assert_eq!(encode_payloads(&payloads, &mut out), Err(error));
        assert_eq!(out, [0xEE]);
    }
    let mut out = Vec::new();
    let many = vec![Payload::VendorId(&[]); MAX_PAYLOADS + 1];
    assert_eq!(
        encode_payloads(&many, &mut out),
        Err(EncodeError::TooLarge(Element::Payloads))
    );
}

#[test]
fn sentences() {
    let error = DecodeError {
        element: Element::Transform {
            proposal: 2,
            transform: 1,
        },
        offset: 60,
        kind: Truncated,
    };
    assert_eq!(
        error.to_string(),
        "SA proposal 2 transform 1 is cut off (at octet 60)"
    );
    let error = DecodeError {
        element: Element::Payload(PayloadType(77)),
        offset: 30,
        kind: Length,
    };
    assert_eq!(
        error.to_string(),
        "payload 77 has an impossible length (at octet 30)"
    );
    let element = Element::TrafficSelector(PayloadType::TS_RESPONDER, 3);
    assert_eq!(element.to_string(), "TSr selector 3");
    assert_eq!(
        EncodeError::TooLarge(element).to_string(),
        "TSr selector 3 is too large to be sent"
    );
}
