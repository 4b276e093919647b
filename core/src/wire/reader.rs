//! A cursor that knows where in the message it stands.

use super::{DecodeError, DecodeErrorKind, Element};

/// Reads the octets of one element, from front to back.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a> {
    rest: &'a [u8],
    /// The position of `rest` in the message.
    offset: usize,
    element: Element,
}

impl<'a> Reader<'a> {
    /// A reader of `bytes`, which stand at `offset` in the message and make up `element`.
    pub(super) const fn new(bytes: &'a [u8], offset: usize, element: Element) -> Self {
        Self {
            rest: bytes,
            offset,
            element,
        }
    }

    /// The position of the next octet in the message.
    pub(super) const fn offset(&self) -> usize {
        self.offset
    }

    /// How many octets are left.
    pub(super) const fn len(&self) -> usize {
        self.rest.len()
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// An error of this element at the next octet.
    pub(super) const fn error(&self, kind: DecodeErrorKind) -> DecodeError {
        DecodeError::new(self.element, self.offset, kind)
    }

    /// The next `len` octets.
    pub(super) fn take(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        let Some((taken, rest)) = self.rest.split_at_checked(len) else {
            return Err(self.error(DecodeErrorKind::Truncated));
        };
        self.rest = rest;
        self.offset = self.offset.saturating_add(len);
        Ok(taken)
    }

    /// The next `N` octets.
    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let Some((taken, rest)) = self.rest.split_first_chunk::<N>() else {
            return Err(self.error(DecodeErrorKind::Truncated));
        };
        self.rest = rest;
        self.offset = self.offset.saturating_add(N);
        Ok(*taken)
    }

    pub(super) fn u8(&mut self) -> Result<u8, DecodeError> {
        self.array().map(|[octet]| octet)
    }

    pub(super) fn u16(&mut self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_be_bytes)
    }

    /// All that is left.
    pub(super) fn rest(&mut self) -> &'a [u8] {
        let rest = self.rest;
        self.rest = &[];
        self.offset = self.offset.saturating_add(rest.len());
        rest
    }

    /// A reader of the next `len` octets, which make up `element`.
    pub(super) fn sub(&mut self, len: usize, element: Element) -> Result<Self, DecodeError> {
        let offset = self.offset;
        Ok(Self::new(self.take(len)?, offset, element))
    }

    /// The same octets, as part of `element` from here on.
    pub(super) const fn named(self, element: Element) -> Self {
        Self { element, ..self }
    }

    /// Nothing may be left.
    pub(super) const fn finish(&self) -> Result<(), DecodeError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(self.error(DecodeErrorKind::Trailing))
        }
    }
}
