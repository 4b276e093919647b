//! The IKE header, and a message as it stands in the datagram (RFC 7296, section 3.1).

use super::iana::{ExchangeType, PayloadType};
use super::payload::{Payload, decode_chain, encode_payloads};
use super::reader::Reader;
use super::{DecodeError, DecodeErrorKind, Element, EncodeError, IkeSpi};

/// The version octet that we send: major 2, minor 0.
pub const VERSION: u8 = 0x20;

const INITIATOR: u8 = 0x08;
const HIGHER_VERSION: u8 = 0x10;
const RESPONSE: u8 = 0x20;

/// The flags of the header. Bits without a meaning are ignored when received and sent as zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// The sender is the original initiator of the IKE SA.
    pub initiator: bool,
    /// The sender can speak a higher major version.
    pub version: bool,
    /// The message answers a request with the same message ID.
    pub response: bool,
}

/// The IKE header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The original initiator's SPI.
    pub initiator_spi: IkeSpi,
    /// The original responder's SPI; zero in the first request.
    pub responder_spi: IkeSpi,
    /// The type of the first payload.
    pub next_payload: PayloadType,
    /// Major version in the high four bits, minor version in the low four.
    pub version: u8,
    /// What the message is for.
    pub exchange: ExchangeType,
    /// Direction.
    pub flags: Flags,
    /// The number of the request, per direction.
    pub message_id: u32,
    /// The length of the message in octets, this header included.
    pub length: u32,
}

impl Header {
    /// Its length in octets.
    pub const LEN: usize = 28;

    /// Reads the first 28 octets of `bytes`, whatever version they are of, whatever follows.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes, 0, Element::Header);
        let initiator_spi = IkeSpi(reader.array()?);
        let responder_spi = IkeSpi(reader.array()?);
        let next_payload = PayloadType(reader.u8()?);
        let version = reader.u8()?;
        let exchange = ExchangeType(reader.u8()?);
        let flags = reader.u8()?;
        Ok(Self {
            initiator_spi,
            responder_spi,
            next_payload,
            version,
            exchange,
            flags: Flags {
                initiator: flags & INITIATOR != 0,
                version: flags & HIGHER_VERSION != 0,
                response: flags & RESPONSE != 0,
            },
            message_id: reader.u32()?,
            length: reader.u32()?,
        })
    }

    /// The major version.
    #[must_use]
    pub const fn major_version(&self) -> u8 {
        self.version >> 4
    }

    /// Appends the 28 octets to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let Flags {
            initiator,
            version,
            response,
        } = self.flags;
        let flags = [
            (initiator, INITIATOR),
            (version, HIGHER_VERSION),
            (response, RESPONSE),
        ];
        out.extend_from_slice(&self.initiator_spi.0);
        out.extend_from_slice(&self.responder_spi.0);
        out.push(self.next_payload.0);
        out.push(self.version);
        out.push(self.exchange.0);
        out.push(
            flags
                .into_iter()
                .filter(|(set, _)| *set)
                .fold(0, |all, (_, bit)| all | bit),
        );
        out.extend_from_slice(&self.message_id.to_be_bytes());
        out.extend_from_slice(&self.length.to_be_bytes());
    }

    /// Checks that this is the header of a message of IKE version 2 that is `len` octets long.
    pub(super) fn check(&self, len: usize) -> Result<(), DecodeError> {
        let at = |offset, kind| Err(DecodeError::new(Element::Header, offset, kind));
        if self.major_version() != 2 {
            return at(17, DecodeErrorKind::Version(self.major_version()));
        }
        match usize::try_from(self.length) {
            Ok(length) if length == len => Ok(()),
            Ok(length) if length > len => at(24, DecodeErrorKind::Truncated),
            _ => at(24, DecodeErrorKind::Length),
        }
    }
}

/// A message as it stands in the datagram: what is under a key is a [`Payload::Sealed`] or [`Payload::Fragment`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// The header.
    pub header: Header,
    /// The payloads, in the order received.
    pub payloads: Vec<Payload<'a>>,
}

impl<'a> Message<'a> {
    /// Reads a whole message: `bytes` is the datagram without the non-ESP marker, no octet more or less.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let header = Header::decode(bytes)?;
        header.check(bytes.len())?;
        let body = bytes.get(Header::LEN..).unwrap_or_default();
        let payloads = decode_chain(header.next_payload, body, Header::LEN, true)?;
        Ok(Self { header, payloads })
    }
}

/// Writes an unprotected message. The header's `length` and `next_payload` are filled in.
pub fn encode_message(mut header: Header, payloads: &[Payload<'_>]) -> Result<Vec<u8>, EncodeError> {
    let mut body = Vec::new();
    header.next_payload = encode_payloads(payloads, &mut body)?;
    header.length = u32::try_from(Header::LEN.saturating_add(body.len()))
        .map_err(|_| EncodeError::TooLarge(Element::Payloads))?;
    let mut message = Vec::with_capacity(Header::LEN.saturating_add(body.len()));
    header.encode(&mut message);
    message.append(&mut body);
    Ok(message)
}
