//! Attribute-value pairs in the tunnel of EAP-TTLS (RFC 5281, section 10).

use super::EapError;

/// What a pair is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kind {
    /// Who gave the code its meaning; 0 is IETF.
    pub(super) vendor: u32,
    pub(super) code: u32,
}

impl Kind {
    pub(super) const USER_NAME: Self = Self::ietf(1);
    pub(super) const USER_PASSWORD: Self = Self::ietf(2);
    pub(super) const REPLY_MESSAGE: Self = Self::ietf(18);
    pub(super) const EAP_MESSAGE: Self = Self::ietf(79);
    pub(super) const MS_CHAP_ERROR: Self = Self::microsoft(2);
    pub(super) const MS_CHAP_DOMAIN: Self = Self::microsoft(10);
    pub(super) const MS_CHAP_CHALLENGE: Self = Self::microsoft(11);
    pub(super) const MS_CHAP2_RESPONSE: Self = Self::microsoft(25);
    pub(super) const MS_CHAP2_SUCCESS: Self = Self::microsoft(26);

    const fn ietf(code: u32) -> Self {
        Self { vendor: 0, code }
    }

    /// RFC 2548.
    const fn microsoft(code: u32) -> Self {
        Self { vendor: 311, code }
    }
}

/// One pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Avp<'a> {
    pub(super) kind: Kind,
    /// Whoever does not know it must not go on.
    pub(super) mandatory: bool,
    pub(super) data: &'a [u8],
}

mod flag {
    pub(super) const VENDOR: u8 = 0x80;
    pub(super) const MANDATORY: u8 = 0x40;
}

/// The pairs of a message.
pub(super) fn decode(message: &[u8]) -> Result<Vec<Avp<'_>>, EapError> {
    const BROKEN: EapError = EapError::Malformed("an attribute in the tunnel that does not fit its length");
    let mut avps = Vec::new();
    let mut rest = message;
    while let Some((head, _)) = rest.split_first_chunk::<8>() {
        let &[c0, c1, c2, c3, flags, l0, l1, l2] = head;
        let length = usize::try_from(u32::from_be_bytes([0, l0, l1, l2])).unwrap_or(usize::MAX);
        let (avp, after) = rest.split_at_checked(length).ok_or(BROKEN)?;
        let body = avp.get(8..).ok_or(BROKEN)?;
        let (vendor, data) = if flags & flag::VENDOR == 0 {
            (0, body)
        } else {
            let (vendor, data) = body.split_first_chunk().ok_or(BROKEN)?;
            (u32::from_be_bytes(*vendor), data)
        };
        avps.push(Avp {
            kind: Kind {
                vendor,
                code: u32::from_be_bytes([c0, c1, c2, c3]),
            },
            mandatory: flags & flag::MANDATORY != 0,
            data,
        });
        // Some servers leave the padding of the last one out.
        rest = after.get(padding(length)..).unwrap_or_default();
    }
    if rest.is_empty() { Ok(avps) } else { Err(BROKEN) }
}

/// Appends a pair that the server must know.
pub(super) fn encode(kind: Kind, data: &[u8], message: &mut Vec<u8>) -> Result<(), EapError> {
    let is_vendors = kind.vendor != 0;
    let length = data.len() + if is_vendors { 12 } else { 8 };
    let [0, l0, l1, l2] = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes() else {
        return Err(EapError::Credential(
            "the user name or the password is too long".to_owned(),
        ));
    };
    message.extend_from_slice(&kind.code.to_be_bytes());
    message.push(flag::MANDATORY | if is_vendors { flag::VENDOR } else { 0 });
    message.extend_from_slice(&[l0, l1, l2]);
    if is_vendors {
        message.extend_from_slice(&kind.vendor.to_be_bytes());
    }
    message.extend_from_slice(data);
    message.resize(message.len() + padding(length), 0);
    Ok(())
}

/// Octets that follow a pair of this length, so that the next begins at a multiple of four.
const fn padding(length: usize) -> usize {
    length.wrapping_neg() % 4
}

#[cfg(test)]
mod tests {
    use hex_literal::hex;
    use proptest::prelude::*;

    use super::*;

    fn encoded(kind: Kind, data: &[u8]) -> Vec<u8> {
        let mut message = Vec::new();
        encode(kind, data, &mut message).unwrap();
        message
    }

    /// RFC 5281, section 10.1, by hand.
    #[test]
    fn pairs_are_written_as_the_rfc_draws_them() {
        assert_eq!(
            encoded(Kind::USER_NAME, b"bob"),
            hex!("00000001 40 00000b 626f62 00")
        );
        assert_eq!(
            encoded(Kind::EAP_MESSAGE, b"abcd"),
            hex!("0000004f 40 00000c 61626364")
        );
        assert_eq!(
            encoded(Kind::MS_CHAP_CHALLENGE, b"x"),
            hex!("0000000b c0 00000d 00000137 78 000000")
        );
    }

    #[test]
    fn pairs_are_read_with_and_without_vendor() {
        // Vendor 0 is none (section 10.1), reserved flags mean nothing, and the last padding may be missing.
        let message = hex!(
            "00000012 00 000009 78 000000 00000012 bf 00000d 00000000 79 000000 0000001a c0 00000d 00000137 7a"
        );
        let avp = |kind, mandatory, data| Avp {
            kind,
            mandatory,
            data,
        };
        assert_eq!(
            decode(&message).unwrap(),
            [
                avp(Kind::REPLY_MESSAGE, false, b"x".as_slice()),
                avp(Kind::REPLY_MESSAGE, false, b"y"),
                avp(Kind::MS_CHAP2_SUCCESS, true, b"z"),
            ]
        );
        assert_eq!(decode(&[]).unwrap(), []);
    }

    #[test]
    fn lengths_that_do_not_fit_are_refused() {
        for message in [
            &hex!("00000012 00 000007")[..],
            &hex!("00000012 00 000009"),
            &hex!("00000012 00 ffffff 78"),
            &hex!("00000012 80 00000b 000000"),
            &hex!("00000012 80 000008"),
            &hex!("00000012 00 0000"),
            &hex!("00000012 00 000009 78 000000 00"),
        ] {
            assert!(
                matches!(decode(message), Err(EapError::Malformed(_))),
                "{message:02x?}"
            );
        }
    }

    #[test]
    fn a_pair_that_its_length_cannot_tell_is_not_sent() {
        let mut message = Vec::new();
        assert!(encode(Kind::USER_NAME, &vec![0; (1 << 24) - 9], &mut message).is_ok());
        let error = encode(Kind::USER_NAME, &vec![0; (1 << 24) - 8], &mut message);
        assert!(matches!(error, Err(EapError::Credential(_))));
    }

    proptest! {
        #[test]
        fn what_is_written_can_be_read(
            pairs in prop::collection::vec((any::<u32>(), any::<u32>(), prop::collection::vec(any::<u8>(), 0..40)), 0..6)
        ) {
            let mut message = Vec::new();
            for (vendor, code, data) in &pairs {
                encode(Kind { vendor: *vendor, code: *code }, data, &mut message).unwrap();
            }
            prop_assert_eq!(message.len() % 4, 0);
            let read: Vec<_> = decode(&message).unwrap().into_iter().map(|avp| (avp.kind.vendor, avp.kind.code, avp.data.to_vec())).collect();
            prop_assert_eq!(read, pairs);
        }

        #[test]
        fn no_message_panics(message in prop::collection::vec(any::<u8>(), 0..60), at in 0..60_usize) {
            drop(decode(&message));
            let mut pairs = encoded(Kind::MS_CHAP2_SUCCESS, &message);
            let at = at % pairs.len();
            pairs[at] ^= 1;
            drop(decode(&pairs));
        }
    }
}
