//! What both sides prove of an IKE_INTERMEDIATE message (RFC 9242, section 3.3.2).

use super::header::Header;
use super::iana::PayloadType;

/// Where the header says of which type the first payload is.
const NEXT_PAYLOAD: usize = 16;
/// Where the header says how long the message is.
const LENGTH: usize = 24;
/// A payload's generic header.
const GENERIC: usize = 4;

/// `IntAuth_A | IntAuth_P`: the message as if it had been neither encrypted nor divided, from the header to the last of
/// its payloads, both lengths counting no more than that.
///
/// `covered` is what comes before the encrypted octets of the message, or of its first fragment, as received
/// ([`super::OpenedBody`]) or as [`covered_head`] writes it. `body` is all the payloads in clear. None when `covered` does
/// not lead to SK or SKF.
#[must_use]
pub fn authenticated_octets(covered: &[u8], body: &[u8]) -> Option<Vec<u8>> {
    let mut octets = Vec::with_capacity(covered.len().saturating_add(body.len()));
    octets.extend_from_slice(covered);
    let (mut next, mut start) = (NEXT_PAYLOAD, Header::LEN);
    while ![PayloadType::SK, PayloadType::SKF].contains(&PayloadType(*octets.get(next)?)) {
        let length = octets.get(start.checked_add(2)?..)?.first_chunk::<2>()?;
        let length = usize::from(u16::from_be_bytes(*length));
        next = start;
        start = start.checked_add(length.max(GENERIC))?;
    }
    let end = start.checked_add(GENERIC).filter(|end| *end <= octets.len())?;
    octets.truncate(end);
    let payload_length = u16::try_from(GENERIC.checked_add(body.len())?).ok()?;
    let length = u32::try_from(end.checked_add(body.len())?).ok()?;
    *octets.get_mut(next)? = PayloadType::SK.0;
    octets
        .get_mut(start..)?
        .get_mut(2..GENERIC)?
        .copy_from_slice(&payload_length.to_be_bytes());
    octets
        .get_mut(LENGTH..Header::LEN)?
        .copy_from_slice(&length.to_be_bytes());
    octets.extend_from_slice(body);
    Some(octets)
}

/// What comes before the encrypted octets of a message of ours that is not divided, without its lengths. `first` is the
/// type of the first payload in it.
#[must_use]
pub fn covered_head(mut header: Header, first: PayloadType) -> Vec<u8> {
    header.next_payload = PayloadType::SK;
    let mut covered = Vec::with_capacity(Header::LEN.saturating_add(GENERIC));
    header.encode(&mut covered);
    covered.extend_from_slice(&[first.0, 0, 0, 0]);
    covered
}
