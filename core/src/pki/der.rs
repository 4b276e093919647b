//! The little of DER (X.690) that certificates, names and key files need: a cursor over values, and their headers.
//!
//! It reads tags of one octet and definite lengths in their shortest form, which is all that DER allows in what
//! we parse, never allocates, and cannot panic.

/// A cursor over consecutive DER values.
#[derive(Clone, Copy)]
pub(crate) struct Der<'a>(&'a [u8]);

/// One DER value.
#[derive(Clone, Copy)]
pub(crate) struct Value<'a> {
    /// The identifier octet: class, constructed bit and number.
    pub(crate) tag: u8,
    /// The content octets.
    pub(crate) body: &'a [u8],
    /// Header and content octets.
    pub(crate) whole: &'a [u8],
}

pub(crate) const BOOLEAN: u8 = 0x01;
pub(crate) const INTEGER: u8 = 0x02;
pub(crate) const BIT_STRING: u8 = 0x03;
pub(crate) const OCTET_STRING: u8 = 0x04;
pub(crate) const OID: u8 = 0x06;
pub(crate) const ENUMERATED: u8 = 0x0a;
pub(crate) const UTF8_STRING: u8 = 0x0c;
pub(crate) const NUMERIC_STRING: u8 = 0x12;
pub(crate) const PRINTABLE_STRING: u8 = 0x13;
pub(crate) const T61_STRING: u8 = 0x14;
pub(crate) const IA5_STRING: u8 = 0x16;
pub(crate) const UTC_TIME: u8 = 0x17;
pub(crate) const GENERALIZED_TIME: u8 = 0x18;
pub(crate) const UNIVERSAL_STRING: u8 = 0x1c;
pub(crate) const BMP_STRING: u8 = 0x1e;
pub(crate) const SEQUENCE: u8 = 0x30;
pub(crate) const SET: u8 = 0x31;

/// The identifier octet of a primitive `[number]`.
pub(crate) const fn context(number: u8) -> u8 {
    0x80 | number
}

/// The identifier octet of a constructed `[number]`.
pub(crate) const fn context_constructed(number: u8) -> u8 {
    0xa0 | number
}

impl<'a> Der<'a> {
    /// A cursor at the start of `octets`.
    pub(crate) const fn new(octets: &'a [u8]) -> Self {
        Self(octets)
    }

    /// Nothing is left.
    pub(crate) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next value, or `None` at the end and when the octets are not DER.
    pub(crate) fn any(&mut self) -> Option<Value<'a>> {
        let (&tag, rest) = self.0.split_first()?;
        if tag & 0x1f == 0x1f {
            return None;
        }
        let (&first, rest) = rest.split_first()?;
        let (length, header) = if first < 0x80 {
            (usize::from(first), 2)
        } else {
            let count = usize::from(first & 0x7f);
            let octets = rest.get(..count)?;
            if count == 0 || count > 4 || octets.first() == Some(&0) {
                return None;
            }
            let length = usize::try_from(
                octets
                    .iter()
                    .fold(0_u64, |sum, &octet| (sum << 8) | u64::from(octet)),
            )
            .ok()?;
            if length < 0x80 {
                return None;
            }
            (length, 2 + count)
        };
        let end = header.checked_add(length)?;
        let whole = self.0.get(..end)?;
        let body = whole.get(header..)?;
        self.0 = self.0.get(end..)?;
        Some(Value { tag, body, whole })
    }

    /// The next value, which must have this tag.
    pub(crate) fn expect(&mut self, tag: u8) -> Option<Value<'a>> {
        self.optional(tag)
    }

    /// The next value if it has this tag; otherwise the cursor stays.
    pub(crate) fn optional(&mut self, tag: u8) -> Option<Value<'a>> {
        let mut ahead = *self;
        let value = ahead.any().filter(|value| value.tag == tag)?;
        *self = ahead;
        Some(value)
    }

    /// A cursor inside the next value, which must have this tag.
    pub(crate) fn enter(&mut self, tag: u8) -> Option<Self> {
        self.expect(tag).map(|value| Self(value.body))
    }
}

/// The only value in `octets`, which must have this tag and end where `octets` ends.
pub(crate) fn sole(octets: &[u8], tag: u8) -> Option<Value<'_>> {
    let mut cursor = Der::new(octets);
    cursor.expect(tag).filter(|_| cursor.is_empty())
}

/// The octets of a BIT STRING whose length is a multiple of eight.
pub(crate) fn bit_string_octets<'a>(value: &Value<'a>) -> Option<&'a [u8]> {
    let (&unused, octets) = value.body.split_first()?;
    (value.tag == BIT_STRING && unused == 0).then_some(octets)
}

/// The content octets of a non-negative INTEGER without its sign octet.
pub(crate) fn unsigned<'a>(value: &Value<'a>) -> Option<&'a [u8]> {
    if value.tag != INTEGER {
        return None;
    }
    match value.body {
        [0, next, ..] if *next < 0x80 => None,
        [0, rest @ ..] => Some(rest),
        [first, ..] if *first < 0x80 => Some(value.body),
        _ => None,
    }
}

/// A DER value with this tag and content.
pub(crate) fn wrap(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(body.len().saturating_add(6));
    out.push(tag);
    match u8::try_from(body.len()) {
        Ok(short) if short < 0x80 => out.push(short),
        _ => {
            let octets = body.len().to_be_bytes();
            let significant: Vec<u8> = octets.into_iter().skip_while(|&octet| octet == 0).collect();
            out.push(0x80 | u8::try_from(significant.len()).unwrap_or(8));
            out.extend_from_slice(&significant);
        }
    }
    out.extend_from_slice(body);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrapped_values_are_read_back() {
        for length in [0, 1, 0x7f, 0x80, 0xff, 0x100, 0xffff, 0x1_0000] {
            let body = vec![7; length];
            let whole = wrap(OCTET_STRING, &body);
            let value = sole(&whole, OCTET_STRING).unwrap();
            assert_eq!(value.body, body);
            assert_eq!(value.whole, whole);
        }
    }

    #[test]
    fn what_is_not_der_is_refused() {
        for octets in [
            &b"\x04"[..],
            b"\x04\x02\x00",
            b"\x04\x80\x00\x00",
            b"\x04\x81\x01\x00",
            b"\x04\x82\x00\x80",
            b"\x04\x85\x01\x00\x00\x00\x00",
            b"\x04\x84\xff\xff\xff\xff",
            b"\x1f\x01\x00",
        ] {
            assert!(Der::new(octets).any().is_none(), "{octets:02x?}");
        }
        assert!(sole(b"\x04\x01\x00\x00", OCTET_STRING).is_none());
    }

    #[test]
    fn integers_are_unsigned_and_minimal() {
        let read = |octets| unsigned(&Der::new(octets).any().unwrap()).map(<[u8]>::to_vec);
        assert_eq!(read(b"\x02\x01\x7f"), Some(vec![0x7f]));
        assert_eq!(read(b"\x02\x02\x00\x80"), Some(vec![0x80]));
        assert_eq!(read(b"\x02\x01\x00"), Some(vec![]));
        assert_eq!(read(b"\x02\x02\x00\x7f"), None);
        assert_eq!(read(b"\x02\x01\x80"), None);
        assert_eq!(read(b"\x02\x00"), None);
    }
}
