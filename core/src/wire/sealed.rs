//! SK and SKF: messages under a key (RFC 7296, section 3.14; RFC 5282; RFC 7383, section 2.5).

use std::fmt;

use super::header::{Header, Message};
use super::iana::PayloadType;
use super::payload::{Fragment, Payload, Sealed, encode_payloads};
use super::{DecodeError, Element, EncodeError, MAX_FRAGMENTS};
use crate::crypto::{CipherSuite, CryptoError, PacketKey};

/// The generic header of SK.
const SK_HEADER: usize = 4;
/// The generic header of SKF, the fragment's number and the number of fragments.
const SKF_HEADER: usize = 8;

/// Why nothing came out of a sealed message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// The message outside of SK or SKF does not follow RFC 7296.
    Malformed(DecodeError),
    /// The message has neither SK nor SKF.
    NotSealed,
    /// The message is not authentic, or too short to be.
    Crypto(CryptoError),
    /// The message is authentic, but its padding is longer than its content.
    Padding,
}

impl From<DecodeError> for OpenError {
    fn from(error: DecodeError) -> Self {
        Self::Malformed(error)
    }
}

impl From<CryptoError> for OpenError {
    fn from(error: CryptoError) -> Self {
        Self::Crypto(error)
    }
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(error) => write!(f, "{error}"),
            Self::NotSealed => write!(f, "the message is not encrypted"),
            Self::Crypto(error) => write!(f, "the message is not authentic: {error}"),
            Self::Padding => write!(f, "the message's padding is longer than its content"),
        }
    }
}

impl std::error::Error for OpenError {}

/// What was sealed in a message; it is authentic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenedBody<'a> {
    /// The message's header.
    pub header: Header,
    /// All octets before the encrypted ones, as received: from the header to the generic header of SK, or to the fragment
    /// numbers of SKF.
    pub covered: &'a [u8],
    /// The type of the first payload in `body`; [`PayloadType::NONE`] without payloads, and in all fragments but
    /// the first.
    pub first: PayloadType,
    /// The payloads, for [`super::decode_payloads`]; of a fragment, the part of them that it carries.
    pub body: &'a [u8],
    /// Where `body` stands in the message.
    pub offset: usize,
    /// The number of the fragment, from 1, and of how many; none for a whole message.
    pub fragment: Option<(u16, u16)>,
}

/// Verifies a message with SK or SKF under `key` and then decrypts it in place: nothing inside is looked at before.
///
/// Payloads before SK are authenticated with it and otherwise ignored: no exchange of ours has any.
///
/// # Errors
/// [`OpenError`]; unless it is [`OpenError::Padding`], the message may come from anybody and must change nothing.
pub fn open_sealed<'a>(message: &'a mut [u8], key: &PacketKey) -> Result<OpenedBody<'a>, OpenError> {
    let (header, place) = {
        let Message { header, payloads } = Message::decode(message)?;
        (header, payloads.last().and_then(Place::of))
    };
    let Place {
        first,
        start,
        fragment,
    } = place.ok_or(OpenError::NotSealed)?;
    let Some((covered, sealed)) = message.split_at_mut_checked(start) else {
        return Err(OpenError::Crypto(CryptoError::Length));
    };
    let text: &'a [u8] = key.open(covered, &[], sealed)?;
    let Some((padding, text)) = text.split_last() else {
        return Err(OpenError::Padding);
    };
    let body = text
        .len()
        .checked_sub(usize::from(*padding))
        .and_then(|len| text.get(..len));
    let body = body.ok_or(OpenError::Padding)?;
    Ok(OpenedBody {
        header,
        covered,
        first,
        body,
        offset: start.saturating_add(key.suite().iv_len()),
        fragment,
    })
}

/// Where the sealed octets of a message begin, and what is known about them.
#[derive(Clone, Copy)]
struct Place {
    first: PayloadType,
    start: usize,
    fragment: Option<(u16, u16)>,
}

impl Place {
    const fn of(payload: &Payload<'_>) -> Option<Self> {
        if let Payload::Sealed(Sealed { first, offset }) = *payload {
            Some(Self {
                first,
                start: offset.saturating_add(SK_HEADER),
                fragment: None,
            })
        } else if let Payload::Fragment(Fragment {
            first,
            number,
            total,
            offset,
        }) = *payload
        {
            Some(Self {
                first,
                start: offset.saturating_add(SKF_HEADER),
                fragment: Some((number, total)),
            })
        } else {
            None
        }
    }
}

/// Writes a message whose payloads are all in one SK payload. The header's `length` and `next_payload` are filled
/// in. `iv` is used and stepped: it must never repeat under `key`.
///
/// # Errors
/// [`EncodeError`]; a step of `iv` may be lost with it.
pub fn seal_message(
    header: Header,
    payloads: &[Payload<'_>],
    key: &PacketKey,
    iv: &mut u64,
) -> Result<Vec<u8>, EncodeError> {
    let mut inner = Vec::new();
    let first = encode_payloads(payloads, &mut inner)?;
    seal(header, first, &inner, None, key, iv)
}

/// Writes a message as one datagram with SK if that has at most `max` octets, else as several with SKF that have at
/// most `max` octets each (RFC 7383). `max` counts from the IKE header on. The header's `length` and `next_payload`
/// are filled in. `iv` is used and stepped for every datagram: it must never repeat under `key`.
///
/// # Errors
/// [`EncodeError`], among others [`EncodeError::FragmentSize`] when more than [`MAX_FRAGMENTS`] datagrams would be
/// needed; steps of `iv` may be lost with it.
pub fn seal_fragments(
    header: Header,
    payloads: &[Payload<'_>],
    key: &PacketKey,
    iv: &mut u64,
    max: usize,
) -> Result<Vec<Vec<u8>>, EncodeError> {
    let mut inner = Vec::new();
    let first = encode_payloads(payloads, &mut inner)?;
    let suite = key.suite();
    let whole = Header::LEN
        .saturating_add(SK_HEADER)
        .saturating_add(sealed_len(suite, inner.len()));
    if whole <= max {
        return Ok(vec![seal(header, first, &inner, None, key, iv)?]);
    }
    let overhead = Header::LEN + SKF_HEADER + suite.iv_len() + suite.icv_len();
    let text = max.checked_sub(overhead).ok_or(EncodeError::FragmentSize)?;
    let text = text.checked_sub(text.checked_rem(suite.block_len()).unwrap_or(0));
    // The last octet of the text is the length of the padding.
    let capacity = text
        .and_then(|text| text.checked_sub(1))
        .filter(|capacity| *capacity > 0);
    let capacity = capacity.ok_or(EncodeError::FragmentSize)?;
    let total = u16::try_from(inner.len().div_ceil(capacity)).map_err(|_| EncodeError::FragmentSize)?;
    if total > MAX_FRAGMENTS {
        return Err(EncodeError::FragmentSize);
    }
    (1..=total)
        .zip(inner.chunks(capacity))
        .map(|(number, part)| {
            let first = if number == 1 { first } else { PayloadType::NONE };
            seal(header, first, part, Some((number, total)), key, iv)
        })
        .collect()
}

/// The most octets of payloads that fit into a message of at most `max` octets with one SK payload; `max` counts from
/// the IKE header on.
#[must_use]
pub fn sealed_room(suite: CipherSuite, max: usize) -> usize {
    let text = max.saturating_sub(Header::LEN + SK_HEADER + suite.iv_len() + suite.icv_len());
    let blocks = text.checked_div(suite.block_len()).unwrap_or(text);
    // The last octet is the length of the padding.
    (blocks * suite.block_len().max(1)).saturating_sub(1)
}

/// How long `len` octets of payloads become: initialization vector, text with padding, integrity check value.
fn sealed_len(suite: CipherSuite, len: usize) -> usize {
    let text = len.saturating_add(1).next_multiple_of(suite.block_len().max(1));
    text.saturating_add(suite.iv_len())
        .saturating_add(suite.icv_len())
}

/// Writes one datagram.
fn seal(
    mut header: Header,
    first: PayloadType,
    inner: &[u8],
    fragment: Option<(u16, u16)>,
    key: &PacketKey,
    iv: &mut u64,
) -> Result<Vec<u8>, EncodeError> {
    let suite = key.suite();
    let (kind, head) = if fragment.is_some() {
        (PayloadType::SKF, SKF_HEADER)
    } else {
        (PayloadType::SK, SK_HEADER)
    };
    let payload_len = head.saturating_add(sealed_len(suite, inner.len()));
    let payload_len =
        u16::try_from(payload_len).map_err(|_| EncodeError::TooLarge(Element::Payload(kind)))?;
    let counter = *iv;
    *iv = iv.checked_add(1).ok_or(EncodeError::IvExhausted)?;

    let len = Header::LEN.saturating_add(usize::from(payload_len));
    header.next_payload = kind;
    header.length = u32::try_from(len).map_err(|_| EncodeError::TooLarge(Element::Payload(kind)))?;
    let mut message = Vec::with_capacity(len);
    header.encode(&mut message);
    message.extend_from_slice(&[first.0, 0]);
    message.extend_from_slice(&payload_len.to_be_bytes());
    if let Some((number, total)) = fragment {
        message.extend_from_slice(&number.to_be_bytes());
        message.extend_from_slice(&total.to_be_bytes());
    }
    let start = message.len();
    message.resize(start.saturating_add(suite.iv_len()), 0);
    message.extend_from_slice(inner);
    let padding = len
        .saturating_sub(message.len())
        .saturating_sub(suite.icv_len())
        .saturating_sub(1);
    message.resize(message.len().saturating_add(padding), 0);
    message.push(u8::try_from(padding).map_err(|_| EncodeError::Crypto(CryptoError::Length))?);
    message.resize(len, 0);

    let (covered, sealed) = message.split_at_mut(start);
    key.seal(counter, covered, &[], sealed)
        .map_err(EncodeError::Crypto)?;
    Ok(message)
}
