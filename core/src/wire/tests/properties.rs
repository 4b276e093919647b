//! What holds for all messages.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::collection::vec;
use proptest::prelude::*;

use super::super::iana::{
    AuthMethod, CertEncoding, CfgAttr, CfgType, IdType, KeMethod, NotifyType, PayloadType, ProtocolId,
    TransformType, TsType,
};
use super::super::*;
use super::{header, message};

/// What a payload is made of, since payloads borrow: some numbers, octets, and parts of the same.
#[derive(Clone, Debug)]
struct Material {
    kind: u8,
    octet: u8,
    number: u16,
    other: u16,
    octets: Vec<u8>,
    parts: Vec<(u8, u16, u16, Vec<u8>)>,
}

fn material() -> impl Strategy<Value = Material> {
    let part = (any::<u8>(), any::<u16>(), any::<u16>(), vec(any::<u8>(), 0..20));
    (
        0..16_u8,
        any::<u8>(),
        any::<u16>(),
        any::<u16>(),
        vec(any::<u8>(), 0..40),
        vec(part, 1..6),
    )
        .prop_map(|(kind, octet, number, other, octets, parts)| Material {
            kind,
            octet,
            number,
            other,
            octets,
            parts,
        })
}

/// A payload that a decoder could have made.
fn payload(material: &Material) -> Payload<'_> {
    let Material {
        kind,
        octet,
        number,
        other,
        octets,
        parts,
    } = material;
    let id = Id {
        kind: IdType(*octet),
        reserved: [*octet, 7, 0],
        data: octets,
    };
    match kind {
        0 => Payload::Sa(
            parts
                .iter()
                .zip(1..)
                .map(|(part, number)| proposal(part, number, parts))
                .collect(),
        ),
        1 => Payload::Ke(Ke {
            method: KeMethod(*number),
            data: octets,
        }),
        2 => Payload::IdInitiator(id),
        3 => Payload::IdResponder(id),
        4 => Payload::Cert(Cert {
            encoding: CertEncoding(*octet),
            data: octets,
        }),
        5 => Payload::CertReq(CertReq {
            encoding: CertEncoding(*octet),
            data: octets,
        }),
        6 => Payload::Auth(Auth {
            method: AuthMethod(*octet),
            data: octets,
        }),
        7 if octets.len() >= 16 => Payload::Nonce(octets),
        8 => {
            let (protocol, _, _, spi) = &parts[0];
            Payload::Notify(Notify {
                protocol: ProtocolId(*protocol),
                spi,
                kind: NotifyType(*number),
                data: octets,
            })
        }
        9 => {
            let (protocol, size) = match octet % 3 {
                0 => (ProtocolId::ESP, 4),
                1 => (ProtocolId(octet.saturating_add(4)), usize::from(*octet) + 1),
                _ => (ProtocolId::IKE, 0),
            };
            let spis = if size == 0 {
                vec![]
            } else {
                octets.chunks_exact(size).collect()
            };
            Payload::Delete(Delete { protocol, spis })
        }
        10 => Payload::TsInitiator(parts.iter().map(selector).collect()),
        11 => Payload::TsResponder(parts.iter().map(selector).collect()),
        12 => {
            let attribute =
                |(_, kind, _, value): &'_ (u8, u16, u16, Vec<u8>)| (CfgAttr(kind & 0x7FFF), value.len());
            let attributes = parts
                .iter()
                .map(|part| CfgAttribute {
                    kind: attribute(part).0,
                    value: &part.3,
                })
                .collect();
            Payload::Cp(Cp {
                kind: CfgType(*octet),
                attributes,
            })
        }
        13 if octet % 2 == 0 => Payload::Eap(&[1, 9, 0, 5, 26]),
        14 => Payload::VendorId(octets),
        _ => Payload::Unknown {
            kind: PayloadType((*octet).max(PayloadType::PS.0)),
            critical: other % 2 == 0,
            body: octets,
        },
    }
}

fn proposal<'a>(
    (protocol, spi, _, octets): &'a (u8, u16, u16, Vec<u8>),
    number: u8,
    parts: &[(u8, u16, u16, Vec<u8>)],
) -> Proposal<'a> {
    const SPI: [u8; 8] = [1, 2, 3, 4, 5, 6, 7, 8];
    let (protocol, spi) = match protocol % 4 {
        0 => (ProtocolId::IKE, [].as_slice()),
        1 => (ProtocolId::IKE, SPI.as_slice()),
        2 => (ProtocolId::ESP, &SPI[..4]),
        _ => (ProtocolId(spi.to_be_bytes()[0].max(4)), octets.as_slice()),
    };
    Proposal {
        number,
        protocol,
        spi: spi.into(),
        transforms: parts.iter().map(transform).collect(),
    }
}

fn transform((kind, id, other, octets): &(u8, u16, u16, Vec<u8>)) -> Transform {
    let long = Attribute {
        kind: other & 0x7FFF,
        value: AttributeValue::Long(octets.clone()),
    };
    let short = Attribute {
        kind: (other & 0x7FFF).max(15),
        value: AttributeValue::Short(*id),
    };
    let attributes = match id % 4 {
        0 => vec![long, short],
        1 => vec![short],
        _ => vec![],
    };
    let key_bits = (id % 2 == 0).then_some(*other);
    Transform {
        attributes,
        ..Transform::new(TransformType(*kind), *id, key_bits)
    }
}

fn selector((kind, start, end, octets): &(u8, u16, u16, Vec<u8>)) -> Ts<'_> {
    let (low, high) = (*start.min(end), *start.max(end));
    let ports = if kind % 8 == 7 { (u16::MAX, 0) } else { (low, high) };
    let v6 = |word: u16| IpAddr::V6(Ipv6Addr::from_bits(u128::from(word) << 64));
    let v4 = |word: u16| IpAddr::V4(Ipv4Addr::from_bits(u32::from(word) << 12));
    let addresses = match kind % 4 {
        0 => {
            return Ts::Unknown {
                kind: TsType((*kind).max(9)),
                protocol: *kind,
                body: octets,
            };
        }
        1 => (v6(low), v6(high)),
        _ => (v4(low), v4(high)),
    };
    Ts::Range(TrafficSelector {
        protocol: *kind,
        start_port: ports.0,
        end_port: ports.1,
        start: addresses.0,
        end: addresses.1,
    })
}

/// What can be read can be written, and reads the same again. Sealed payloads can only be sealed anew.
fn reads_the_same_again(payloads: &[Payload<'_>]) {
    let plain = |payload: &&Payload<'_>| !matches!(payload, Payload::Sealed(_) | Payload::Fragment(_));
    let payloads: Vec<_> = payloads.iter().filter(plain).cloned().collect();
    let mut bytes = Vec::new();
    let first = encode_payloads(&payloads, &mut bytes).unwrap();
    assert_eq!(decode_payloads(first, &bytes, 0).unwrap(), payloads);
}

proptest! {
    #[test]
    fn what_is_written_is_read(materials in vec(material(), 0..6)) {
        let payloads: Vec<_> = materials.iter().map(payload).collect();
        let bytes = encode_message(header(), &payloads).unwrap();
        let message = Message::decode(&bytes).unwrap();
        prop_assert_eq!(&message.payloads, &payloads);
        prop_assert_eq!(encode_message(header(), &payloads).unwrap(), bytes.clone());

        // Every cut is noticed, even where the header is made to agree with it.
        for len in 0..bytes.len() {
            let mut cut = bytes[..len].to_vec();
            prop_assert!(Message::decode(&cut).is_err());
            if let Some(field) = cut.get_mut(24..28) {
                field.copy_from_slice(&u32::try_from(len).unwrap().to_be_bytes());
                prop_assert!(Message::decode(&cut).is_err());
            }
        }
    }

    #[test]
    fn a_damaged_message_is_read_or_refused(
        materials in vec(material(), 1..6),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let payloads: Vec<_> = materials.iter().map(payload).collect();
        let mut bytes = encode_message(header(), &payloads).unwrap();
        for (place, octet) in damage {
            let place = place.index(bytes.len());
            bytes[place] = octet;
        }
        if let Ok(message) = Message::decode(&bytes) {
            reads_the_same_again(&message.payloads);
        }
    }

    #[test]
    fn random_octets_are_read_or_refused(kind in any::<u8>(), octets in vec(any::<u8>(), 0..200)) {
        let _ = Message::decode(&octets);
        let _ = Message::decode(&message(PayloadType(kind), &octets));
        if let Ok(payloads) = decode_payloads(PayloadType(kind), &octets, 0) {
            reads_the_same_again(&payloads);
        }
    }

    /// Structured payloads notice a cut even where the payload's length is made to agree with it.
    #[test]
    fn a_cut_inside_a_structured_payload_is_noticed(mut material in material()) {
        for kind in [0, 10, 11] {
            material.kind = kind;
            let payload = payload(&material);
            let bytes = encode_message(header(), std::slice::from_ref(&payload)).unwrap();
            let body = &bytes[Header::LEN + 4..];
            for len in 0..body.len() {
                prop_assert!(Message::decode(&message(payload.kind(), &body[..len])).is_err());
            }
        }
    }
}
