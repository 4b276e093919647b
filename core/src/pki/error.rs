//! Why a certificate or a signature is not acceptable.

use std::fmt;

use super::cert::KeyKind;
use super::scheme::SignatureScheme;
use crate::timer::UnixTime;

/// Why a certificate or a signature is not acceptable. All names in it are escaped: they can be shown and logged.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CertError {
    /// The peer sent no certificate.
    NoCertificate,
    /// The peer sent more certificates than anybody needs.
    TooMany {
        /// How many.
        count: usize,
    },
    /// A certificate is larger than any sensible one.
    TooLarge {
        /// Its size in octets.
        octets: usize,
    },
    /// The octets are no X.509 certificate.
    Malformed {
        /// Which part of it breaks the encoding.
        what: String,
    },
    /// No certification authority that we trust has issued this certificate or one above it.
    UnknownIssuer {
        /// The peer's certificate.
        subject: String,
        /// Who issued it, or the topmost certificate that came with it.
        issuer: String,
    },
    /// A certificate has expired.
    Expired {
        /// Which one.
        subject: String,
        /// Its last valid second.
        at: UnixTime,
    },
    /// A certificate is not valid yet (or our clock is wrong).
    NotYetValid {
        /// Which one.
        subject: String,
        /// Its first valid second.
        from: UnixTime,
    },
    /// The certificate does not carry the identity that we demand, as subjectAltName (or as subject, for a
    /// distinguished name). The common name does not count.
    NameMismatch {
        /// What we demand.
        expected: String,
        /// The names that it carries.
        presented: Vec<String>,
    },
    /// The authority that issued a certificate has revoked it.
    Revoked {
        /// Which one.
        subject: String,
        /// Since when.
        since: UnixTime,
        /// Why, if the authority says.
        reason: Option<&'static str>,
        /// What says so.
        by: String,
    },
    /// Whether a certificate was revoked cannot be found out, which the profile demands.
    RevocationUnknown {
        /// Which one.
        subject: String,
        /// Who was asked, and what came of it; nobody if the certificate names nobody.
        tried: Vec<String>,
    },
    /// The gateway calls itself something that its certificate does not confirm.
    IdentityUnconfirmed {
        /// What it calls itself.
        received: String,
        /// The names that its certificate carries.
        presented: Vec<String>,
    },
    /// The certificate is for clients only (extKeyUsage clientAuth): its holder is a user, not a gateway.
    NotForServer {
        /// Which one.
        subject: String,
    },
    /// The certificate's extKeyUsage allows other uses than this.
    ExtendedKeyUsage {
        /// Which one.
        subject: String,
        /// The uses that it allows, as object identifiers.
        usages: Vec<String>,
    },
    /// The certificate's keyUsage does not allow signatures.
    KeyUsage {
        /// Which one.
        subject: String,
    },
    /// The certificate is a certification authority's and not the peer's own.
    CaAsEndEntity {
        /// Which one.
        subject: String,
    },
    /// A certificate has issued another without being a certification authority, or without keyCertSign.
    NotACa {
        /// Which one, or the peer's when that is not known.
        subject: String,
    },
    /// The chain is longer than a certification authority in it allows (pathLenConstraint).
    PathTooLong {
        /// The peer's certificate.
        subject: String,
    },
    /// A certification authority in the chain may not vouch for the names in this certificate (nameConstraints).
    NameConstraint {
        /// The peer's certificate.
        subject: String,
    },
    /// A certificate has a critical extension that we do not know.
    CriticalExtension {
        /// Which one, or the peer's when that is not known.
        subject: String,
    },
    /// The key is too weak: RSA below 2048 bits, or with a public exponent below 65537.
    WeakKey {
        /// Whose.
        subject: String,
        /// The kind of key.
        key: KeyKind,
    },
    /// The key is of a kind that we cannot use.
    UnsupportedKey {
        /// Whose.
        subject: String,
    },
    /// A certificate in the chain is signed with MD5 or SHA-1.
    WeakSignature {
        /// The peer's certificate.
        subject: String,
        /// The algorithm.
        algorithm: String,
    },
    /// A certificate in the chain is signed with an algorithm that we do not know.
    UnsupportedSignature {
        /// The peer's certificate.
        subject: String,
        /// The algorithm's object identifier.
        algorithm: String,
    },
    /// The signature on a certificate in the chain is wrong.
    ChainSignature {
        /// The peer's certificate.
        subject: String,
    },
    /// The chain takes too much work to check.
    TooComplex {
        /// The peer's certificate.
        subject: String,
    },
    /// The certificate is not the one that the profile pins.
    PinMismatch {
        /// The peer's certificate.
        subject: String,
    },
    /// The peer signed with an algorithm that its certificate's key cannot make.
    SchemeMismatch {
        /// What it signed with.
        scheme: SignatureScheme,
        /// The kind of key that it has.
        key: KeyKind,
    },
    /// The signature does not verify with the certificate's key.
    SignatureInvalid {
        /// The peer's certificate.
        subject: String,
    },
}

impl fmt::Display for CertError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCertificate => f.write_str("no certificate was sent"),
            Self::TooMany { count } => write!(f, "{count} certificates were sent, which is too many"),
            Self::TooLarge { octets } => write!(f, "a certificate of {octets} octets is too large"),
            Self::Malformed { what } => write!(f, "not a valid certificate: {what}"),
            Self::UnknownIssuer { subject, issuer } => {
                write!(
                    f,
                    "the certificate “{subject}” was issued by “{issuer}”, which is not trusted here"
                )
            }
            Self::Expired { subject, at } => write!(f, "the certificate “{subject}” expired at {at}"),
            Self::NotYetValid { subject, from } => {
                write!(f, "the certificate “{subject}” is not valid before {from}")
            }
            Self::NameMismatch { expected, presented } => {
                write!(
                    f,
                    "the certificate is not for “{expected}”, but for {}",
                    listed(presented)
                )
            }
            Self::Revoked {
                subject,
                since,
                reason,
                by,
            } => {
                write!(f, "the certificate “{subject}” was revoked at {since}")?;
                if let Some(reason) = reason {
                    write!(f, " ({reason})")?;
                }
                write!(f, ", says {by}")
            }
            Self::RevocationUnknown { subject, tried } => {
                write!(
                    f,
                    "whether the certificate “{subject}” was revoked cannot be found out: "
                )?;
                if tried.is_empty() {
                    f.write_str("it names nobody to ask (no OCSP responder, no revocation list)")
                } else {
                    f.write_str(&tried.join("; "))
                }
            }
            Self::IdentityUnconfirmed { received, presented } => {
                write!(
                    f,
                    "the gateway calls itself “{received}”, but its certificate is for {}",
                    listed(presented)
                )
            }
            Self::NotForServer { subject } => {
                write!(
                    f,
                    "the certificate “{subject}” is for clients only and cannot prove a gateway"
                )
            }
            Self::ExtendedKeyUsage { subject, usages } => {
                write!(
                    f,
                    "the extended key usage of the certificate “{subject}” ({}) does not cover a gateway",
                    usages.join(", ")
                )
            }
            Self::KeyUsage { subject } => {
                write!(
                    f,
                    "the key usage of the certificate “{subject}” does not allow digital signatures"
                )
            }
            Self::CaAsEndEntity { subject } => {
                write!(
                    f,
                    "the certificate “{subject}” is a certification authority's and cannot prove a gateway"
                )
            }
            Self::NotACa { subject } => {
                write!(
                    f,
                    "in the chain of the certificate “{subject}”, an issuer is not a certification authority"
                )
            }
            Self::PathTooLong { subject } => {
                write!(
                    f,
                    "the chain of the certificate “{subject}” is longer than its certification authority allows"
                )
            }
            Self::NameConstraint { subject } => {
                write!(
                    f,
                    "the certification authority may not vouch for the names in the certificate “{subject}”"
                )
            }
            Self::CriticalExtension { subject } => {
                write!(
                    f,
                    "in the chain of the certificate “{subject}”, there is an unknown critical extension"
                )
            }
            Self::WeakKey { subject, key } => {
                write!(f, "the key of the certificate “{subject}” is too weak: {key}")
            }
            Self::UnsupportedKey { subject } => {
                write!(
                    f,
                    "the key of the certificate “{subject}” is of an unsupported kind"
                )
            }
            Self::WeakSignature { subject, algorithm } => {
                write!(
                    f,
                    "in the chain of the certificate “{subject}”, a signature is too weak: {algorithm}"
                )
            }
            Self::UnsupportedSignature { subject, algorithm } => {
                write!(
                    f,
                    "in the chain of the certificate “{subject}”, a signature algorithm is not supported: {algorithm}"
                )
            }
            Self::ChainSignature { subject } => {
                write!(
                    f,
                    "in the chain of the certificate “{subject}”, a signature is wrong"
                )
            }
            Self::TooComplex { subject } => {
                write!(
                    f,
                    "the chain of the certificate “{subject}” takes too much work to check"
                )
            }
            Self::PinMismatch { subject } => {
                write!(
                    f,
                    "the certificate “{subject}” is not the one that the profile pins"
                )
            }
            Self::SchemeMismatch { scheme, key } => {
                write!(
                    f,
                    "the peer signed with {scheme}, but the key of its certificate is {key}"
                )
            }
            Self::SignatureInvalid { subject } => {
                write!(
                    f,
                    "the signature does not verify with the key of the certificate “{subject}”"
                )
            }
        }
    }
}

impl std::error::Error for CertError {}

/// Names as a list for a sentence.
fn listed(names: &[String]) -> String {
    if names.is_empty() {
        return "no name at all (it has no subjectAltName)".to_owned();
    }
    names
        .iter()
        .map(|name| format!("“{name}”"))
        .collect::<Vec<_>>()
        .join(", ")
}
