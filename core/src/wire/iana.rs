//! IANA's numbers.

/// Notify message types (RFC 7296, section 3.10.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NotifyType(pub u16);

/// Authentication methods (RFC 7296, section 3.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AuthMethod(pub u8);

/// EAP method types (RFC 3748, section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EapType(pub u8);
