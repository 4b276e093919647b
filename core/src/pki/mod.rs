//! Certificates, private keys, signatures, and who may be trusted.

use std::fmt;

/// An X.509 certificate.
#[derive(Clone, Debug)]
pub struct Certificate {}

/// A private key.
#[derive(Clone)]
pub struct PrivateKey {}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(..)")
    }
}

/// Why a certificate is not acceptable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CertError {}
