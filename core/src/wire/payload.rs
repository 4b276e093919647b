//! The payloads, and the chain that they form (RFC 7296, sections 3.2 to 3.16).

use super::iana::{
    AuthMethod, CertEncoding, CfgAttr, CfgType, EapCode, IdType, KeMethod, NotifyType, PayloadType,
    ProtocolId,
};
use super::reader::Reader;
use super::sa::{self, Proposal};
use super::ts::{self, Ts};
use super::{
    DecodeError, DecodeErrorKind, Element, EncodeError, MAX_CERT, MAX_CERTS, MAX_CERTS_TOTAL,
    MAX_CFG_ATTRIBUTES, MAX_ID, MAX_PAYLOADS, NONCE_LEN,
};

/// The bit of the generic header that says "refuse the message if you do not know this payload".
const CRITICAL: u8 = 0x80;
/// The length of the generic payload header.
const GENERIC_HEADER: usize = 4;

/// One payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload<'a> {
    /// SA: proposals.
    Sa(Vec<Proposal<'a>>),
    /// KE: a public key.
    Ke(Ke<'a>),
    /// IDi.
    IdInitiator(Id<'a>),
    /// IDr.
    IdResponder(Id<'a>),
    /// CERT.
    Cert(Cert<'a>),
    /// CERTREQ.
    CertReq(CertReq<'a>),
    /// AUTH.
    Auth(Auth<'a>),
    /// Ni or Nr: 16 to 256 octets.
    Nonce(&'a [u8]),
    /// N.
    Notify(Notify<'a>),
    /// D.
    Delete(Delete<'a>),
    /// V.
    VendorId(&'a [u8]),
    /// TSi: at least one selector.
    TsInitiator(Vec<Ts<'a>>),
    /// TSr: at least one selector.
    TsResponder(Vec<Ts<'a>>),
    /// CP.
    Cp(Cp<'a>),
    /// EAP: one packet, as long as its own length field says.
    Eap(&'a [u8]),
    /// SK, always the last of a message.
    Sealed(Sealed),
    /// SKF, always the last of a message.
    Fragment(Fragment),
    /// A payload of a type without a meaning here. Writing one writes `body` under any type: the way to write a
    /// payload that this module cannot compose.
    Unknown {
        /// Its type.
        kind: PayloadType,
        /// Whoever does not know the type must refuse the message.
        critical: bool,
        /// What follows the generic payload header.
        body: &'a [u8],
    },
}

impl Payload<'_> {
    /// Its type.
    #[must_use]
    pub const fn kind(&self) -> PayloadType {
        match self {
            Self::Sa(_) => PayloadType::SA,
            Self::Ke(_) => PayloadType::KE,
            Self::IdInitiator(_) => PayloadType::ID_INITIATOR,
            Self::IdResponder(_) => PayloadType::ID_RESPONDER,
            Self::Cert(_) => PayloadType::CERT,
            Self::CertReq(_) => PayloadType::CERTREQ,
            Self::Auth(_) => PayloadType::AUTH,
            Self::Nonce(_) => PayloadType::NONCE,
            Self::Notify(_) => PayloadType::NOTIFY,
            Self::Delete(_) => PayloadType::DELETE,
            Self::VendorId(_) => PayloadType::VENDOR_ID,
            Self::TsInitiator(_) => PayloadType::TS_INITIATOR,
            Self::TsResponder(_) => PayloadType::TS_RESPONDER,
            Self::Cp(_) => PayloadType::CP,
            Self::Eap(_) => PayloadType::EAP,
            Self::Sealed(_) => PayloadType::SK,
            Self::Fragment(_) => PayloadType::SKF,
            Self::Unknown { kind, .. } => *kind,
        }
    }
}

/// A public key (RFC 7296, section 3.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ke<'a> {
    /// The method that it is for.
    pub method: KeMethod,
    /// The public key as the method defines it.
    pub data: &'a [u8],
}

/// An identity (RFC 7296, section 3.5): at most [`MAX_ID`] octets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Id<'a> {
    /// What `data` is.
    pub kind: IdType,
    /// The reserved octets as received, since AUTH covers them.
    pub reserved: [u8; 3],
    /// The identity.
    pub data: &'a [u8],
}

impl<'a> Id<'a> {
    /// An identity to be sent.
    #[must_use]
    pub const fn new(kind: IdType, data: &'a [u8]) -> Self {
        Self {
            kind,
            reserved: [0; 3],
            data,
        }
    }

    /// The payload without its generic header, which AUTH covers (RFC 7296, section 2.15: `RestOfInitIDPayload`).
    #[must_use]
    pub fn body(&self) -> Vec<u8> {
        let mut body = Vec::with_capacity(self.data.len().saturating_add(GENERIC_HEADER));
        body.push(self.kind.0);
        body.extend_from_slice(&self.reserved);
        body.extend_from_slice(self.data);
        body
    }
}

/// A certificate, or what stands for one (RFC 7296, section 3.6): at most [`MAX_CERT`] octets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cert<'a> {
    /// What `data` is.
    pub encoding: CertEncoding,
    /// The certificate.
    pub data: &'a [u8],
}

/// A request for certificates (RFC 7296, section 3.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CertReq<'a> {
    /// What is wanted.
    pub encoding: CertEncoding,
    /// For X.509: the SHA-1 hashes of the accepted authorities' public keys, 20 octets each.
    pub data: &'a [u8],
}

/// A proof of identity (RFC 7296, section 3.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Auth<'a> {
    /// How it was made.
    pub method: AuthMethod,
    /// The proof.
    pub data: &'a [u8],
}

/// A notification (RFC 7296, section 3.10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Notify<'a> {
    /// What `spi` belongs to; [`ProtocolId::NONE`] without SPI.
    pub protocol: ProtocolId,
    /// The SA that it is about; empty for none or the IKE SA itself.
    pub spi: &'a [u8],
    /// What is notified.
    pub kind: NotifyType,
    /// More, as `kind` defines it.
    pub data: &'a [u8],
}

impl<'a> Notify<'a> {
    /// A notification that is about no SA in particular.
    #[must_use]
    pub const fn new(kind: NotifyType, data: &'a [u8]) -> Self {
        Self {
            protocol: ProtocolId::NONE,
            spi: &[],
            kind,
            data,
        }
    }
}

/// The end of SAs (RFC 7296, section 3.11).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delete<'a> {
    /// What kind of SA.
    pub protocol: ProtocolId,
    /// The sender's inbound SPIs, all of one length; none for the IKE SA itself.
    pub spis: Vec<&'a [u8]>,
}

/// Configuration (RFC 7296, section 3.15).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cp<'a> {
    /// Request or reply.
    pub kind: CfgType,
    /// At most [`MAX_CFG_ATTRIBUTES`].
    pub attributes: Vec<CfgAttribute<'a>>,
}

/// One attribute of a configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CfgAttribute<'a> {
    /// What `value` is.
    pub kind: CfgAttr,
    /// The value; empty to ask for one.
    pub value: &'a [u8],
}

/// An SK payload, still sealed (RFC 7296, section 3.14). It ends where the message ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// The type of the first payload inside.
    pub first: PayloadType,
    /// Where the payload's generic header stands in the message.
    pub offset: usize,
}

/// An SKF payload, still sealed (RFC 7383, section 2.5). It ends where the message ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// The type of the first payload of the whole message; in fragment 1 only.
    pub first: PayloadType,
    /// Its number, from 1 to `total`.
    pub number: u16,
    /// The number of fragments.
    pub total: u16,
    /// Where the payload's generic header stands in the message.
    pub offset: usize,
}

/// Reads the decrypted payloads of SK: `first` is the type of the first, `base_offset` where errors count from.
pub fn decode_payloads(
    first: PayloadType,
    bytes: &[u8],
    base_offset: usize,
) -> Result<Vec<Payload<'_>>, DecodeError> {
    decode_chain(first, bytes, base_offset, false)
}

/// Reads a chain of payloads; SK and SKF are allowed as its last only when `outer`.
pub(super) fn decode_chain(
    first: PayloadType,
    bytes: &[u8],
    base_offset: usize,
    outer: bool,
) -> Result<Vec<Payload<'_>>, DecodeError> {
    let mut reader = Reader::new(bytes, base_offset, Element::Payloads);
    let mut payloads = Vec::new();
    let mut certificates = Certificates::default();
    let mut kind = first;
    while kind != PayloadType::NONE {
        if payloads.len() >= MAX_PAYLOADS {
            return Err(reader.error(DecodeErrorKind::TooMany));
        }
        let element = Element::Payload(kind);
        let mut head = reader.named(element);
        let start = head;
        let next = PayloadType(head.u8()?);
        let critical = head.u8()? & CRITICAL != 0;
        let at_length = head;
        let Some(len) = usize::from(head.u16()?).checked_sub(GENERIC_HEADER) else {
            return Err(at_length.error(DecodeErrorKind::Length));
        };
        let body = head.sub(len, element)?;
        reader = head.named(Element::Payloads);

        let sealed = matches!(kind, PayloadType::SK | PayloadType::SKF);
        if sealed && !outer {
            return Err(start.error(DecodeErrorKind::Misplaced));
        }
        if kind == PayloadType::CERT {
            certificates.admit(start, body)?;
        }
        payloads.push(decode_body(kind, critical, next, start, body)?);
        if sealed {
            // The next payload of SK is the first inside it, so that SK ends the chain.
            break;
        }
        kind = next;
    }
    reader.finish()?;
    Ok(payloads)
}

/// The caps on certificates in one message.
#[derive(Default)]
struct Certificates {
    count: usize,
    octets: usize,
}

impl Certificates {
    fn admit(&mut self, start: Reader<'_>, body: Reader<'_>) -> Result<(), DecodeError> {
        self.count = self.count.saturating_add(1);
        self.octets = self.octets.saturating_add(body.len());
        if self.count > MAX_CERTS {
            return Err(start.error(DecodeErrorKind::TooMany));
        }
        if body.len() > MAX_CERT || self.octets > MAX_CERTS_TOTAL {
            return Err(start.error(DecodeErrorKind::TooLarge));
        }
        Ok(())
    }
}

/// Reads one payload: `start` is a reader at its generic header, `body` is what follows that.
fn decode_body<'a>(
    kind: PayloadType,
    critical: bool,
    next: PayloadType,
    start: Reader<'a>,
    mut body: Reader<'a>,
) -> Result<Payload<'a>, DecodeError> {
    Ok(match kind {
        PayloadType::SA => Payload::Sa(sa::decode(body)?),
        PayloadType::KE => {
            let method = KeMethod(body.u16()?);
            let _reserved = body.u16()?;
            Payload::Ke(Ke {
                method,
                data: body.rest(),
            })
        }
        PayloadType::ID_INITIATOR => Payload::IdInitiator(decode_id(body)?),
        PayloadType::ID_RESPONDER => Payload::IdResponder(decode_id(body)?),
        PayloadType::CERT => Payload::Cert(Cert {
            encoding: CertEncoding(body.u8()?),
            data: body.rest(),
        }),
        PayloadType::CERTREQ => Payload::CertReq(CertReq {
            encoding: CertEncoding(body.u8()?),
            data: body.rest(),
        }),
        PayloadType::AUTH => {
            let method = AuthMethod(body.u8()?);
            let _reserved: [u8; 3] = body.array()?;
            Payload::Auth(Auth {
                method,
                data: body.rest(),
            })
        }
        PayloadType::NONCE if NONCE_LEN.contains(&body.len()) => Payload::Nonce(body.rest()),
        PayloadType::NONCE => return Err(start.error(DecodeErrorKind::Length)),
        PayloadType::NOTIFY => {
            let protocol = ProtocolId(body.u8()?);
            let spi_size = body.u8()?;
            let kind = NotifyType(body.u16()?);
            let spi = body.take(usize::from(spi_size))?;
            Payload::Notify(Notify {
                protocol,
                spi,
                kind,
                data: body.rest(),
            })
        }
        PayloadType::DELETE => Payload::Delete(decode_delete(body)?),
        PayloadType::VENDOR_ID => Payload::VendorId(body.rest()),
        PayloadType::TS_INITIATOR => Payload::TsInitiator(ts::decode(body, kind)?),
        PayloadType::TS_RESPONDER => Payload::TsResponder(ts::decode(body, kind)?),
        PayloadType::CP => Payload::Cp(decode_cp(body)?),
        PayloadType::EAP => Payload::Eap(decode_eap(body)?),
        PayloadType::SK => Payload::Sealed(Sealed {
            first: next,
            offset: start.offset(),
        }),
        PayloadType::SKF => {
            let at_number = body;
            let (number, total) = (body.u16()?, body.u16()?);
            if number == 0 || number > total {
                return Err(at_number.error(DecodeErrorKind::Value));
            }
            Payload::Fragment(Fragment {
                first: next,
                number,
                total,
                offset: start.offset(),
            })
        }
        _ => Payload::Unknown {
            kind,
            critical,
            body: body.rest(),
        },
    })
}

fn decode_id(mut body: Reader<'_>) -> Result<Id<'_>, DecodeError> {
    let start = body;
    let kind = IdType(body.u8()?);
    let reserved = body.array()?;
    if body.len() > MAX_ID {
        return Err(start.error(DecodeErrorKind::TooLarge));
    }
    Ok(Id {
        kind,
        reserved,
        data: body.rest(),
    })
}

fn decode_delete(mut body: Reader<'_>) -> Result<Delete<'_>, DecodeError> {
    let protocol = ProtocolId(body.u8()?);
    let at_size = body;
    let size = usize::from(body.u8()?);
    let at_count = body;
    let count = usize::from(body.u16()?);
    let possible = match protocol {
        ProtocolId::IKE => size == 0,
        ProtocolId::ESP | ProtocolId::AH => size == 4,
        _ => true,
    };
    if !possible {
        return Err(at_size.error(DecodeErrorKind::Length));
    }
    if size.checked_mul(count) != Some(body.len()) || (size == 0 && count != 0) {
        return Err(at_count.error(DecodeErrorKind::Count));
    }
    let mut spis = Vec::with_capacity(count);
    while !body.is_empty() {
        spis.push(body.take(size)?);
    }
    Ok(Delete { protocol, spis })
}

fn decode_cp(mut body: Reader<'_>) -> Result<Cp<'_>, DecodeError> {
    let kind = CfgType(body.u8()?);
    let _reserved: [u8; 3] = body.array()?;
    let mut attributes = Vec::new();
    while !body.is_empty() {
        if attributes.len() >= MAX_CFG_ATTRIBUTES {
            return Err(body.error(DecodeErrorKind::TooMany));
        }
        let position = u16::try_from(attributes.len().saturating_add(1)).unwrap_or(u16::MAX);
        let mut attribute = body.named(Element::CfgAttribute(position));
        let kind = CfgAttr(attribute.u16()? & 0x7FFF);
        let len = attribute.u16()?;
        attributes.push(CfgAttribute {
            kind,
            value: attribute.take(usize::from(len))?,
        });
        body = attribute.named(Element::Payload(PayloadType::CP));
    }
    Ok(Cp { kind, attributes })
}

/// One EAP packet fills the payload; Success and Failure have nothing but their header (RFC 3748, section 4.2).
fn decode_eap(mut body: Reader<'_>) -> Result<&[u8], DecodeError> {
    let packet = { body }.rest();
    let code = EapCode(body.u8()?);
    let _identifier = body.u8()?;
    let at_length = body;
    let len = usize::from(body.u16()?);
    let bare = matches!(code, EapCode::SUCCESS | EapCode::FAILURE);
    if len != packet.len() || (bare && len != 4) {
        return Err(at_length.error(DecodeErrorKind::Length));
    }
    Ok(packet)
}

/// Appends a chain of payloads to `out` and returns the type of the first, [`PayloadType::NONE`] for no payloads.
/// Appends nothing in case of an error.
pub fn encode_payloads(payloads: &[Payload<'_>], out: &mut Vec<u8>) -> Result<PayloadType, EncodeError> {
    let start = out.len();
    let result = encode_chain(payloads, out);
    if result.is_err() {
        out.truncate(start);
    }
    result?;
    Ok(payloads.first().map_or(PayloadType::NONE, Payload::kind))
}

fn encode_chain(payloads: &[Payload<'_>], out: &mut Vec<u8>) -> Result<(), EncodeError> {
    if payloads.len() > MAX_PAYLOADS {
        return Err(EncodeError::TooLarge(Element::Payloads));
    }
    let following = payloads
        .iter()
        .skip(1)
        .map(Payload::kind)
        .chain([PayloadType::NONE]);
    for (payload, next) in payloads.iter().zip(following) {
        let start = out.len();
        let critical = matches!(payload, Payload::Unknown { critical: true, .. });
        out.extend_from_slice(&[next.0, if critical { CRITICAL } else { 0 }, 0, 0]);
        encode_body(payload, out)?;
        put_length(out, start, 2, Element::Payload(payload.kind()))?;
    }
    Ok(())
}

fn encode_body(payload: &Payload<'_>, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    match payload {
        Payload::Sa(proposals) => sa::encode(proposals, out)?,
        Payload::Ke(Ke { method, data }) => {
            put_u16(out, method.0);
            put_u16(out, 0);
            out.extend_from_slice(data);
        }
        Payload::IdInitiator(id) | Payload::IdResponder(id) => out.append(&mut id.body()),
        Payload::Cert(Cert { encoding, data }) | Payload::CertReq(CertReq { encoding, data }) => {
            out.push(encoding.0);
            out.extend_from_slice(data);
        }
        Payload::Auth(Auth { method, data }) => {
            out.extend_from_slice(&[method.0, 0, 0, 0]);
            out.extend_from_slice(data);
        }
        Payload::Nonce(octets) | Payload::VendorId(octets) | Payload::Eap(octets) => {
            out.extend_from_slice(octets)
        }
        Payload::Notify(Notify {
            protocol,
            spi,
            kind,
            data,
        }) => {
            out.push(protocol.0);
            let size = u8::try_from(spi.len());
            out.push(size.map_err(|_| EncodeError::TooLarge(Element::Payload(PayloadType::NOTIFY)))?);
            put_u16(out, kind.0);
            out.extend_from_slice(spi);
            out.extend_from_slice(data);
        }
        Payload::Delete(delete) => encode_delete(delete, out)?,
        Payload::TsInitiator(selectors) | Payload::TsResponder(selectors) => {
            ts::encode(selectors, payload.kind(), out)?;
        }
        Payload::Cp(Cp { kind, attributes }) => {
            out.extend_from_slice(&[kind.0, 0, 0, 0]);
            for (index, CfgAttribute { kind, value }) in attributes.iter().enumerate() {
                let position = u16::try_from(index.saturating_add(1)).unwrap_or(u16::MAX);
                let element = Element::CfgAttribute(position);
                if kind.0 > 0x7FFF {
                    return Err(EncodeError::Value(element));
                }
                put_u16(out, kind.0);
                put_u16(
                    out,
                    u16::try_from(value.len()).map_err(|_| EncodeError::TooLarge(element))?,
                );
                out.extend_from_slice(value);
            }
        }
        Payload::Sealed(_) | Payload::Fragment(_) => return Err(EncodeError::Misplaced(payload.kind())),
        Payload::Unknown { body, .. } => out.extend_from_slice(body),
    }
    Ok(())
}

fn encode_delete(delete: &Delete<'_>, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    let element = Element::Payload(PayloadType::DELETE);
    let size = delete
        .spis
        .first()
        .map_or(if delete.protocol == ProtocolId::IKE { 0 } else { 4 }, |spi| {
            spi.len()
        });
    if delete.spis.iter().any(|spi| spi.len() != size || spi.is_empty()) {
        return Err(EncodeError::Value(element));
    }
    out.push(delete.protocol.0);
    out.push(u8::try_from(size).map_err(|_| EncodeError::TooLarge(element))?);
    put_u16(
        out,
        u16::try_from(delete.spis.len()).map_err(|_| EncodeError::TooLarge(element))?,
    );
    out.extend(delete.spis.iter().flat_map(|spi| spi.iter()));
    Ok(())
}

pub(super) fn put_u16(out: &mut Vec<u8>, value: u16) {
    out.extend_from_slice(&value.to_be_bytes());
}

/// Writes the length of the element that began at `start`, up to here, `at` octets behind its beginning.
pub(super) fn put_length(
    out: &mut [u8],
    start: usize,
    at: usize,
    element: Element,
) -> Result<(), EncodeError> {
    let too_large = EncodeError::TooLarge(element);
    let Ok(len) = u16::try_from(out.len().saturating_sub(start)) else {
        return Err(too_large);
    };
    let field = out
        .get_mut(start.saturating_add(at)..)
        .and_then(<[u8]>::first_chunk_mut);
    *field.ok_or(too_large)? = len.to_be_bytes();
    Ok(())
}
