//! EAP packets (RFC 3748, section 4).

use super::EapError;
use crate::wire::iana::EapType;

/// A packet from the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Packet<'a> {
    pub(super) identifier: u8,
    pub(super) code: Code<'a>,
}

/// What a server may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Code<'a> {
    Request { kind: EapType, data: &'a [u8] },
    Success,
    Failure,
}

const HEADER: usize = 4;

impl<'a> Packet<'a> {
    pub(super) fn decode(packet: &'a [u8]) -> Result<Self, EapError> {
        let Some((&[code, identifier, high, low], body)) = packet.split_first_chunk::<HEADER>() else {
            return Err(EapError::Malformed("a packet shorter than its header"));
        };
        // Over a link there might be padding, but IKE's EAP payload is exactly the packet (RFC 7296, section 3.16).
        if usize::from(u16::from_be_bytes([high, low])) != packet.len() {
            return Err(EapError::Malformed(
                "a packet whose Length field is not its length",
            ));
        }
        let code = match (code, body) {
            (1, &[kind, ref data @ ..]) => Code::Request {
                kind: EapType(kind),
                data,
            },
            (1, []) => return Err(EapError::Malformed("a request without a type")),
            (3, []) => Code::Success,
            (4, []) => Code::Failure,
            (3 | 4, _) => return Err(EapError::Malformed("EAP-Success or EAP-Failure with data")),
            _ => return Err(EapError::Malformed("a code that no server sends")),
        };
        Ok(Self { identifier, code })
    }
}

/// An EAP-Response.
pub(super) fn response(identifier: u8, kind: EapType, data: &[u8]) -> Result<Vec<u8>, EapError> {
    encode(2, identifier, kind, data).ok_or_else(|| {
        EapError::Credential("the identity or the answer is too long for an EAP packet".to_owned())
    })
}

/// An EAP-Request whose header was left out.
pub(super) fn request(identifier: u8, kind: EapType, data: &[u8]) -> Result<Vec<u8>, EapError> {
    encode(1, identifier, kind, data).ok_or(EapError::Malformed("a request that is too long for its header"))
}

fn encode(code: u8, identifier: u8, kind: EapType, data: &[u8]) -> Option<Vec<u8>> {
    let length = u16::try_from(HEADER + 1 + data.len()).ok()?;
    let mut packet = Vec::with_capacity(length.into());
    packet.extend_from_slice(&[code, identifier]);
    packet.extend_from_slice(&length.to_be_bytes());
    packet.push(kind.0);
    packet.extend_from_slice(data);
    Some(packet)
}
