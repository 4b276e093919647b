//! Bytes to borrowed values and back.

pub mod iana;
