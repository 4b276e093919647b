//! The SA payload: proposals and their transforms (RFC 7296, section 3.3).

use std::borrow::Cow;

use super::iana::{PayloadType, ProtocolId, TransformType};
use super::payload::{put_length, put_u16};
use super::reader::Reader;
use super::{
    DecodeError, DecodeErrorKind, Element, EncodeError, MAX_PROPOSALS, MAX_TRANSFORM_ATTRIBUTES,
    MAX_TRANSFORMS,
};

/// The attribute type of the key length (RFC 7296, section 3.3.5), with the bit that says "type and value only".
const KEY_LENGTH: u16 = 0x800E;
/// The bit of an attribute's type that says "type and value only".
const TYPE_VALUE: u16 = 0x8000;

/// A proposal: transforms to choose from, one of each type (RFC 7296, section 3.3.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal<'a> {
    /// Its number: from 1, each one more than the one before.
    pub number: u8,
    /// What it protects.
    pub protocol: ProtocolId,
    /// The sender's SPI for the SA to be made: empty for the first IKE SA, else 8 octets for IKE, 4 for ESP and AH.
    pub spi: Cow<'a, [u8]>,
    /// The algorithms, in the sender's order of preference.
    pub transforms: Vec<Transform>,
}

/// An algorithm (RFC 7296, section 3.3.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transform {
    /// What it is for.
    pub kind: TransformType,
    /// Which it is, in the registry of `kind`.
    pub id: u16,
    /// The key length in bits, for algorithms that have more than one.
    pub key_bits: Option<u16>,
    /// All other attributes, among them malformed and repeated key lengths. A transform with any is another
    /// algorithm than the same without.
    pub attributes: Vec<Attribute>,
}

impl Transform {
    /// A transform without other attributes than the key length.
    #[must_use]
    pub const fn new(kind: TransformType, id: u16, key_bits: Option<u16>) -> Self {
        Self {
            kind,
            id,
            key_bits,
            attributes: Vec::new(),
        }
    }
}

/// An attribute of a transform that has no meaning here (RFC 7296, section 3.3.5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attribute {
    /// Its type: 15 bits.
    pub kind: u16,
    /// Its value.
    pub value: AttributeValue,
}

/// The two forms of an attribute, which are not interchangeable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AttributeValue {
    /// Type and value.
    Short(u16),
    /// Type, length, and value.
    Long(Vec<u8>),
}

/// Positions count from 1, in errors.
fn position(index: usize) -> u16 {
    u16::try_from(index.saturating_add(1)).unwrap_or(u16::MAX)
}

/// Reads the body of an SA payload.
pub(super) fn decode<'a>(mut reader: Reader<'a>) -> Result<Vec<Proposal<'a>>, DecodeError> {
    let mut proposals: Vec<Proposal<'a>> = Vec::new();
    loop {
        let element = Element::Proposal(position(proposals.len()));
        if proposals.len() >= MAX_PROPOSALS {
            return Err(reader
                .named(Element::Payload(PayloadType::SA))
                .error(DecodeErrorKind::TooMany));
        }
        let (last, body) = substructure(&mut reader, element, 2)?;
        let proposal = decode_proposal(
            body,
            proposals.len(),
            proposals.last().map(|previous| previous.number),
        )?;
        proposals.push(proposal);
        if last {
            reader.finish()?;
            return Ok(proposals);
        }
    }
}

/// Splits off the next proposal or transform: `more` is the value of its first octet unless it is the last.
fn substructure<'a>(
    reader: &mut Reader<'a>,
    element: Element,
    more: u8,
) -> Result<(bool, Reader<'a>), DecodeError> {
    let mut head = reader.named(element);
    let start = head;
    let last = match head.u8()? {
        0 => true,
        octet if octet == more => false,
        _ => return Err(start.error(DecodeErrorKind::Value)),
    };
    let _reserved = head.u8()?;
    let at_length = head;
    let Some(len) = usize::from(head.u16()?).checked_sub(4) else {
        return Err(at_length.error(DecodeErrorKind::Length));
    };
    let body = head.sub(len, element)?;
    *reader = head.named(Element::Payload(PayloadType::SA));
    Ok((last, body))
}

fn decode_proposal(
    mut reader: Reader<'_>,
    index: usize,
    previous: Option<u8>,
) -> Result<Proposal<'_>, DecodeError> {
    let start = reader;
    let number = reader.u8()?;
    let consecutive = previous.is_none_or(|previous| previous.checked_add(1) == Some(number));
    if number == 0 || !consecutive {
        return Err(start.error(DecodeErrorKind::Value));
    }
    let protocol = ProtocolId(reader.u8()?);
    let at_spi_size = reader;
    let spi_size = reader.u8()?;
    let possible = match protocol {
        ProtocolId::IKE => spi_size == 0 || spi_size == 8,
        ProtocolId::ESP | ProtocolId::AH => spi_size == 4,
        _ => true,
    };
    if !possible {
        return Err(at_spi_size.error(DecodeErrorKind::Length));
    }
    let at_count = reader;
    let count = usize::from(reader.u8()?);
    let spi = Cow::Borrowed(reader.take(usize::from(spi_size))?);
    if count > MAX_TRANSFORMS {
        return Err(at_count.error(DecodeErrorKind::TooMany));
    }
    let mut transforms = Vec::new();
    let mut ended = count == 0;
    while !ended {
        if transforms.len() >= count {
            return Err(at_count.error(DecodeErrorKind::Count));
        }
        let element = Element::Transform {
            proposal: position(index),
            transform: position(transforms.len()),
        };
        let mut rest = reader;
        let (last, body) = substructure(&mut rest, element, 3)?;
        reader = rest.named(Element::Proposal(position(index)));
        transforms.push(decode_transform(body)?);
        ended = last;
    }
    if transforms.len() != count {
        return Err(at_count.error(DecodeErrorKind::Count));
    }
    reader.finish()?;
    Ok(Proposal {
        number,
        protocol,
        spi,
        transforms,
    })
}

fn decode_transform(mut reader: Reader<'_>) -> Result<Transform, DecodeError> {
    let kind = TransformType(reader.u8()?);
    let _reserved = reader.u8()?;
    let mut transform = Transform::new(kind, reader.u16()?, None);
    let mut count = 0_usize;
    while !reader.is_empty() {
        count = count.saturating_add(1);
        if count > MAX_TRANSFORM_ATTRIBUTES {
            return Err(reader.error(DecodeErrorKind::TooMany));
        }
        let kind = reader.u16()?;
        let is_short = kind & TYPE_VALUE != 0;
        let number = reader.u16()?;
        if kind == KEY_LENGTH && transform.key_bits.is_none() {
            transform.key_bits = Some(number);
            continue;
        }
        let value = if is_short {
            AttributeValue::Short(number)
        } else {
            AttributeValue::Long(reader.take(usize::from(number))?.to_vec())
        };
        transform.attributes.push(Attribute {
            kind: kind & !TYPE_VALUE,
            value,
        });
    }
    Ok(transform)
}

/// Writes the body of an SA payload.
pub(super) fn encode(proposals: &[Proposal<'_>], out: &mut Vec<u8>) -> Result<(), EncodeError> {
    for (index, proposal) in proposals.iter().enumerate() {
        let element = Element::Proposal(position(index));
        let too_large = |_| EncodeError::TooLarge(element);
        let start = out.len();
        out.push(if index.saturating_add(1) == proposals.len() {
            0
        } else {
            2
        });
        out.extend_from_slice(&[0; 3]);
        out.push(proposal.number);
        out.push(proposal.protocol.0);
        out.push(u8::try_from(proposal.spi.len()).map_err(too_large)?);
        out.push(u8::try_from(proposal.transforms.len()).map_err(too_large)?);
        out.extend_from_slice(&proposal.spi);
        for (number, transform) in proposal.transforms.iter().enumerate() {
            let last = number.saturating_add(1) == proposal.transforms.len();
            let element = Element::Transform {
                proposal: position(index),
                transform: position(number),
            };
            encode_transform(transform, last, element, out)?;
        }
        put_length(out, start, 2, element)?;
    }
    Ok(())
}

fn encode_transform(
    transform: &Transform,
    last: bool,
    element: Element,
    out: &mut Vec<u8>,
) -> Result<(), EncodeError> {
    let start = out.len();
    out.push(if last { 0 } else { 3 });
    out.extend_from_slice(&[0; 3]);
    out.push(transform.kind.0);
    out.push(0);
    put_u16(out, transform.id);
    if let Some(bits) = transform.key_bits {
        put_u16(out, KEY_LENGTH);
        put_u16(out, bits);
    }
    for Attribute { kind, value } in &transform.attributes {
        if kind & TYPE_VALUE != 0 {
            return Err(EncodeError::Value(element));
        }
        match value {
            AttributeValue::Short(value) => {
                put_u16(out, kind | TYPE_VALUE);
                put_u16(out, *value);
            }
            AttributeValue::Long(value) => {
                put_u16(out, *kind);
                put_u16(
                    out,
                    u16::try_from(value.len()).map_err(|_| EncodeError::TooLarge(element))?,
                );
                out.extend_from_slice(value);
            }
        }
    }
    put_length(out, start, 2, element)
}
