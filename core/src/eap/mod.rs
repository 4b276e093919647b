//! EAP methods, as peer (RFC 3748).

/// Why an EAP conversation failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EapError {}
