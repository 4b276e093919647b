//! Bytes to borrowed values and back (RFC 7296, section 3; RFC 7383).
//!
//! | file | its one job |
//! |---|---|
//! | [`iana`] | the registries |
//! | `header` | the IKE header, and a message as it stands in the datagram |
//! | `payload` | the payloads, and the chain that they form |
//! | `sa`, `ts` | the two payloads with structure inside: proposals, traffic selectors |
//! | `sealed` | SK and SKF: messages under a key |
//! | `reassembly` | fragments back to a message |
//! | `stream` | messages and packets in a TCP stream (RFC 9329) |
//! | `authenticated` | what both sides prove of an IKE_INTERMEDIATE message |
//!
//! Decoding is strict about structure: every length, count and chain must be consistent to the last octet, and what
//! an element says about itself must be possible. It is tolerant where RFC 7296 demands tolerance: unknown numbers
//! survive, reserved bits are ignored, payloads come in any order. What an acceptable value *means* is decided
//! elsewhere. Nothing recurses, and what is allocated is bounded by the length of the message.

mod authenticated;
mod header;
pub mod iana;
mod payload;
mod reader;
mod reassembly;
mod sa;
mod sealed;
mod stream;
#[cfg(test)]
mod tests;
mod ts;

use std::fmt;

pub use authenticated::{authenticated_octets, covered_head};
pub use header::{Flags, Header, Message, VERSION, encode_message};
pub use payload::{
    Auth, Cert, CertReq, CfgAttribute, Cp, Delete, Fragment, Id, Ke, Notify, Payload, Sealed,
    decode_payloads, encode_payloads,
};
pub use reassembly::{MAX_FRAGMENTS, MAX_REASSEMBLED, Reassembly};
pub use sa::{Attribute, AttributeValue, Proposal, Transform};
pub use sealed::{OpenError, OpenedBody, open_sealed, seal_fragments, seal_message, sealed_room};
pub use stream::{MAX_FRAME, STREAM_PREFIX, StreamError, StreamReader, StreamWriter};
pub use ts::{TrafficSelector, Ts};

use crate::crypto::CryptoError;
use iana::PayloadType;

/// The most payloads in one message, outside and inside SK together counted apart.
pub const MAX_PAYLOADS: usize = 128;
/// The most proposals in one SA payload.
pub const MAX_PROPOSALS: usize = 32;
/// The most transforms in one proposal.
pub const MAX_TRANSFORMS: usize = 128;
/// The most attributes of one transform, the key length included.
pub const MAX_TRANSFORM_ATTRIBUTES: usize = 8;
/// The most attributes in one configuration payload.
pub const MAX_CFG_ATTRIBUTES: usize = 1024;
/// The most octets of one identity.
pub const MAX_ID: usize = 4096;
/// The most CERT payloads in one message.
pub const MAX_CERTS: usize = 10;
/// The most octets of one certificate.
pub const MAX_CERT: usize = 32 * 1024;
/// The most octets of all certificates in one message together.
pub const MAX_CERTS_TOTAL: usize = 64 * 1024;
/// The fewest and the most octets of a nonce (RFC 7296, section 3.9).
pub const NONCE_LEN: std::ops::RangeInclusive<usize> = 16..=256;

/// An SPI of an IKE SA: eight octets, chosen by one end. Shown as 16 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IkeSpi(pub [u8; 8]);

impl IkeSpi {
    /// Not yet chosen.
    pub const ZERO: Self = Self([0; 8]);
}

impl fmt::Display for IkeSpi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", u64::from_be_bytes(self.0))
    }
}

impl fmt::Debug for IkeSpi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An SPI of an ESP SA. Shown as 8 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EspSpi(pub u32);

impl fmt::Display for EspSpi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

impl fmt::Debug for EspSpi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Part of a message, as named in errors. Positions count from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// The IKE header.
    Header,
    /// The chain of payloads.
    Payloads,
    /// A payload.
    Payload(PayloadType),
    /// A proposal of an SA payload.
    Proposal(u16),
    /// A transform of a proposal.
    Transform {
        /// The proposal's position.
        proposal: u16,
        /// The transform's position.
        transform: u16,
    },
    /// A selector of a TSi or TSr payload.
    TrafficSelector(PayloadType, u16),
    /// An attribute of a CP payload.
    CfgAttribute(u16),
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header => write!(f, "IKE header"),
            Self::Payloads => write!(f, "payload chain"),
            Self::Payload(kind) => match kind.name() {
                Some(name) => write!(f, "{name} payload"),
                None => write!(f, "{kind}"),
            },
            Self::Proposal(proposal) => write!(f, "SA proposal {proposal}"),
            Self::Transform { proposal, transform } => {
                write!(f, "SA proposal {proposal} transform {transform}")
            }
            Self::TrafficSelector(kind, position) => {
                write!(f, "{} selector {position}", kind.name().unwrap_or("TS"))
            }
            Self::CfgAttribute(position) => write!(f, "CP attribute {position}"),
        }
    }
}

/// What is wrong with an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeErrorKind {
    /// It ends before its last field.
    Truncated,
    /// Octets follow where it should have ended.
    Trailing,
    /// A length field says what cannot be.
    Length,
    /// A count field disagrees with what follows.
    Count,
    /// A field has a value that it must not have.
    Value,
    /// It stands where it must not.
    Misplaced,
    /// There are more of it than this implementation accepts.
    TooMany,
    /// It is larger than this implementation accepts.
    TooLarge,
    /// The message is of another major version of IKE.
    Version(u8),
}

/// A message, or a part of it, that does not follow RFC 7296.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeError {
    /// Which part.
    pub element: Element,
    /// Where in the IKE message: octets from the first of its header. Inside an SK payload it counts from where the
    /// caller said that the decrypted payloads begin.
    pub offset: usize,
    /// What is wrong.
    pub kind: DecodeErrorKind,
}

impl DecodeError {
    pub(crate) const fn new(element: Element, offset: usize, kind: DecodeErrorKind) -> Self {
        Self {
            element,
            offset,
            kind,
        }
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            element,
            offset,
            kind,
        } = self;
        match kind {
            DecodeErrorKind::Truncated => write!(f, "{element} is cut off"),
            DecodeErrorKind::Trailing => write!(f, "{element} is followed by octets that belong to nothing"),
            DecodeErrorKind::Length => write!(f, "{element} has an impossible length"),
            DecodeErrorKind::Count => write!(f, "{element} does not contain as many parts as it says"),
            DecodeErrorKind::Value => write!(f, "{element} contains a value that it must not contain"),
            DecodeErrorKind::Misplaced => write!(f, "{element} stands where it must not"),
            DecodeErrorKind::TooMany => write!(f, "{element} exceeds the number that is accepted"),
            DecodeErrorKind::TooLarge => write!(f, "{element} is larger than is accepted"),
            DecodeErrorKind::Version(major) => write!(f, "{element} is of IKE version {major}"),
        }?;
        write!(f, " (at octet {offset})")
    }
}

impl std::error::Error for DecodeError {}

/// A message that cannot be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EncodeError {
    /// The element does not fit its length or count field.
    TooLarge(Element),
    /// An SK or SKF payload among others: only sealing makes those.
    Misplaced(PayloadType),
    /// The element has a value that its field cannot hold.
    Value(Element),
    /// The allowed datagram size leaves no room for a fragment, or the message needs more fragments than a peer
    /// must accept.
    FragmentSize,
    /// The counter of initialization vectors has run out: this key must not be used any more.
    IvExhausted,
    /// The cipher refused.
    Crypto(CryptoError),
}

impl fmt::Display for EncodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge(element) => write!(f, "{element} is too large to be sent"),
            Self::Misplaced(kind) => write!(
                f,
                "{} cannot be written among other payloads",
                Element::Payload(*kind)
            ),
            Self::Value(element) => write!(f, "{element} contains a value that cannot be sent"),
            Self::FragmentSize => write!(
                f,
                "the message cannot be divided into fragments of the allowed size"
            ),
            Self::IvExhausted => write!(f, "no initialization vector is left under this key"),
            Self::Crypto(error) => write!(f, "the message could not be encrypted: {error}"),
        }
    }
}

impl std::error::Error for EncodeError {}
