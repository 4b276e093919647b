//! Certificates, private keys, signatures, and who may be trusted.
//!
//! | module | its one job |
//! |---|---|
//! | `algorithms` | the signature algorithms of certificate chains, for webpki |
//! | `cert` | read an X.509 certificate |
//! | `name` | distinguished names, and text that is safe to show |
//! | `path` | decide whether a chain proves an identity |
//! | `scheme` | name signature algorithms as the wire does |
//! | [`revocation`] | decide whether a certificate was revoked |
//! | `verify` | check a signature |
//! | `key` | hold a private key and sign with it |
//! | `load` | read certificates and keys from the files that people have |
//! | `pem` | find the blocks in PEM text |
//! | `pkcs12` | open PKCS #12 files |
//! | `pbe` | decrypt what a passphrase protects |
//! | [`tls`] | lend keys and rules to rustls |

mod algorithms;
mod cert;
mod der;
mod error;
mod key;
mod load;
mod name;
mod path;
mod pbe;
mod pem;
mod pkcs12;
pub mod revocation;
mod scheme;
pub mod tls;
mod verify;

pub use cert::{Certificate, KeyKind, MAX_CERTIFICATE_OCTETS, SubjectName};
pub use error::CertError;
pub use key::{PrivateKey, SignError};
pub use load::{LoadError, load_certificates, load_pkcs12, load_private_key};
pub use path::{MAX_CHAIN, VerifiedPeer, verify_gateway, verify_tls_server};
pub use scheme::{SignatureEncoding, SignatureScheme};
pub use verify::verify_signature;

pub(crate) use name::{dn_from_text, dn_matches, dn_text, escape, from_hex, hex, is_well_formed};
pub(crate) use path::carries;

#[cfg(test)]
mod tests;
