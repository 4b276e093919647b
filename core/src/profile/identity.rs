//! Who somebody is: the identities of IKE (RFC 7296, section 3.5).

use std::fmt;
use std::net::IpAddr;

use crate::pki::{self, Certificate, SubjectName};
use crate::wire::iana::IdType;

/// An identity (RFC 7296, section 3.5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// ID_IPV4_ADDR or ID_IPV6_ADDR.
    Address(IpAddr),
    /// ID_FQDN, in A-labels.
    Fqdn(String),
    /// ID_RFC822_ADDR.
    Rfc822(String),
    /// ID_DER_ASN1_DN: a DER `Name`.
    Dn(Vec<u8>),
    /// ID_KEY_ID: opaque octets.
    KeyId(Vec<u8>),
}

/// Why a text is no identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// There is nothing.
    #[error("an identity must not be empty")]
    Empty,
    /// Not an IP address although declared as one.
    #[error("“{0}” is not an IP address")]
    Address(String),
    /// Not a host name although declared as one.
    #[error("“{0}” is not a host name")]
    Fqdn(String),
    /// Not an e-mail address.
    #[error("“{0}” is not an e-mail address")]
    Rfc822(String),
    /// Not a distinguished name.
    #[error("“{0}” is not a distinguished name such as \"C=CH, O=Example, CN=gateway\"")]
    Dn(String),
    /// Not hexadecimal digits although declared as such.
    #[error("“{0}” is not a key ID in hexadecimal digits")]
    KeyId(String),
}

impl Identity {
    /// Reads an identity as a user writes it.
    ///
    /// The kind is taken from the text: an IP address; a distinguished name such as `C=CH, O=Example, CN=gateway` (in
    /// the order of the certificate); an e-mail address, when there is an `@` inside; a host name; and otherwise opaque
    /// octets (a key ID). A prefix settles it: `ip:`, `dn:`, `email:`, `fqdn:`, or `keyid:` with text or `0x` and
    /// hexadecimal digits; strongSwan's `@name`, `@@user@name` and `@#hex` are understood too.
    ///
    /// International host names become A-labels; a final dot is dropped.
    ///
    /// # Errors
    ///
    /// [`IdentityError`] when the text is empty, or not of the kind that it claims to be.
    pub fn parse(text: &str) -> Result<Self, IdentityError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(IdentityError::Empty);
        }
        let shown = || pki::escape(text);
        if let Some(digits) = text.strip_prefix("@#") {
            return pki::from_hex(digits)
                .filter(|octets| !octets.is_empty())
                .map(Self::KeyId)
                .ok_or_else(|| IdentityError::KeyId(shown()));
        }
        if let Some(mail) = text.strip_prefix("@@") {
            return mail_address(mail)
                .map(Self::Rfc822)
                .ok_or_else(|| IdentityError::Rfc822(shown()));
        }
        if let Some(host) = text.strip_prefix('@') {
            return host_name(host)
                .map(Self::Fqdn)
                .ok_or_else(|| IdentityError::Fqdn(shown()));
        }
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        if let Some((prefix, rest)) = text.split_once(':') {
            let rest = rest.trim();
            match prefix {
                "ip" => {
                    return rest
                        .parse()
                        .map(Self::Address)
                        .map_err(|_| IdentityError::Address(shown()));
                }
                "dn" => {
                    return pki::dn_from_text(rest)
                        .map(Self::Dn)
                        .ok_or_else(|| IdentityError::Dn(shown()));
                }
                "email" => {
                    return mail_address(rest)
                        .map(Self::Rfc822)
                        .ok_or_else(|| IdentityError::Rfc822(shown()));
                }
                "fqdn" => {
                    return host_name(rest)
                        .map(Self::Fqdn)
                        .ok_or_else(|| IdentityError::Fqdn(shown()));
                }
                "keyid" => {
                    return key_id(rest)
                        .map(Self::KeyId)
                        .ok_or_else(|| IdentityError::KeyId(shown()));
                }
                _ => {}
            }
        }
        if text.contains('=') {
            return pki::dn_from_text(text)
                .map(Self::Dn)
                .ok_or_else(|| IdentityError::Dn(shown()));
        }
        if text.contains('@') {
            return mail_address(text)
                .map(Self::Rfc822)
                .ok_or_else(|| IdentityError::Rfc822(shown()));
        }
        Ok(host_name(text).map_or_else(|| Self::KeyId(text.as_bytes().to_vec()), Self::Fqdn))
    }

    /// The type and the octets of an Identification payload.
    #[must_use]
    pub fn to_wire(&self) -> (IdType, Vec<u8>) {
        match self {
            Self::Address(IpAddr::V4(address)) => (IdType::IPV4_ADDR, address.octets().to_vec()),
            Self::Address(IpAddr::V6(address)) => (IdType::IPV6_ADDR, address.octets().to_vec()),
            Self::Fqdn(name) => (IdType::FQDN, name.as_bytes().to_vec()),
            Self::Rfc822(mail) => (IdType::RFC822_ADDR, mail.as_bytes().to_vec()),
            Self::Dn(name) => (IdType::DER_ASN1_DN, name.clone()),
            Self::KeyId(octets) => (IdType::KEY_ID, octets.clone()),
        }
    }

    /// The identity in an Identification payload; `None` when the octets do not fit the type, or the type is none of
    /// ours.
    #[must_use]
    pub fn from_wire(kind: IdType, octets: &[u8]) -> Option<Self> {
        let text = || {
            let text = std::str::from_utf8(octets).ok()?;
            (!text.is_empty() && !text.contains(char::is_control)).then(|| text.to_owned())
        };
        match kind {
            IdType::IPV4_ADDR => <[u8; 4]>::try_from(octets)
                .ok()
                .map(|address| Self::Address(address.into())),
            IdType::IPV6_ADDR => <[u8; 16]>::try_from(octets)
                .ok()
                .map(|address| Self::Address(address.into())),
            IdType::FQDN => text().map(Self::Fqdn),
            IdType::RFC822_ADDR => text().map(Self::Rfc822),
            IdType::DER_ASN1_DN => pki::is_well_formed(octets).then(|| Self::Dn(octets.to_vec())),
            IdType::KEY_ID => (!octets.is_empty()).then(|| Self::KeyId(octets.to_vec())),
            _ => None,
        }
    }

    /// The identity that a certificate gives its holder: the first subjectAltName that can be one, else the subject.
    #[must_use]
    pub fn of_certificate(certificate: &Certificate) -> Self {
        let name = certificate
            .subject_alt_names()
            .iter()
            .find_map(|name| match name {
                SubjectName::Dns(name) => Some(Self::Fqdn(name.clone())),
                SubjectName::Ip(address) => Some(Self::Address(*address)),
                SubjectName::Rfc822(mail) => Some(Self::Rfc822(mail.clone())),
                SubjectName::Directory(_) | SubjectName::Other => None,
            });
        name.unwrap_or_else(|| Self::Dn(certificate.subject_der().to_vec()))
    }

    /// Whether a certificate carries this identity: as subjectAltName of its kind, a distinguished name as subject too, by
    /// the rules of [`pki::verify_gateway`]. A key ID is in no certificate.
    #[must_use]
    pub fn is_in(&self, certificate: &Certificate) -> bool {
        pki::carries(certificate, self).unwrap_or(false)
    }

    /// Whether both mean the same: names and e-mail addresses without regard to ASCII case, distinguished names as RFC
    /// 5280, section 7.1 compares them, everything else as octets.
    #[must_use]
    pub fn matches(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Fqdn(left), Self::Fqdn(right)) | (Self::Rfc822(left), Self::Rfc822(right)) => {
                left.eq_ignore_ascii_case(right)
            }
            (Self::Dn(left), Self::Dn(right)) => pki::dn_matches(left, right),
            _ => self == other,
        }
    }
}

/// The identity as text that is safe to show and that [`Identity::parse`] reads back.
impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => write!(f, "{address}"),
            Self::Fqdn(text) | Self::Rfc822(text) => f.write_str(&pki::escape(text)),
            Self::Dn(name) => f.write_str(&pki::dn_text(name)),
            Self::KeyId(octets) => match std::str::from_utf8(octets) {
                Ok(text) if octets.iter().all(u8::is_ascii_graphic) && !text.starts_with("0x") => {
                    write!(f, "keyid:{text}")
                }
                _ => write!(f, "keyid:0x{}", pki::hex(octets)),
            },
        }
    }
}

/// A host name in A-labels, if `text` is one.
fn host_name(text: &str) -> Option<String> {
    let text = text.strip_suffix('.').unwrap_or(text);
    let name = if text.is_ascii() {
        text.to_owned()
    } else {
        idna::domain_to_ascii(text).ok()?
    };
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|octet| octet.is_ascii_alphanumeric() || octet == b'-' || octet == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    (name.len() <= 253 && name.split('.').all(label)).then_some(name)
}

/// An e-mail address with its host in A-labels, if `text` is one.
fn mail_address(text: &str) -> Option<String> {
    let (local, host) = text.rsplit_once('@')?;
    let host = host_name(host)?;
    let sound = !local.is_empty()
        && local.len() <= 255
        && !local.contains(|character: char| character.is_control() || character.is_whitespace());
    sound.then(|| format!("{local}@{host}"))
}

/// Opaque octets, written as text or as `0x` and hexadecimal digits.
fn key_id(text: &str) -> Option<Vec<u8>> {
    let octets = match text.strip_prefix("0x") {
        Some(digits) => pki::from_hex(digits)?,
        None => text.as_bytes().to_vec(),
    };
    (!octets.is_empty()).then_some(octets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_tells_the_kind() {
        let fqdn = |text: &str| Ok(Identity::Fqdn(text.into()));
        let mail = |text: &str| Ok(Identity::Rfc822(text.into()));
        let key_id = |octets: &[u8]| Ok(Identity::KeyId(octets.to_vec()));
        let dn = |text: &str| Ok(Identity::Dn(pki::dn_from_text(text).unwrap()));
        for (text, expected) in [
            ("vpn.example.org", fqdn("vpn.example.org")),
            (" vpn.example.org. ", fqdn("vpn.example.org")),
            ("VPN.Example.org", fqdn("VPN.Example.org")),
            ("bücher.example", fqdn("xn--bcher-kva.example")),
            ("alice", fqdn("alice")),
            ("_ike.example", fqdn("_ike.example")),
            ("@vpn.example.org", fqdn("vpn.example.org")),
            ("fqdn:192.0.2.1", fqdn("192.0.2.1")),
            ("192.0.2.1", Ok(Identity::Address([192, 0, 2, 1].into()))),
            (
                "2001:db8::1",
                Ok(Identity::Address("2001:db8::1".parse().unwrap())),
            ),
            ("ip: ::1", Ok(Identity::Address("::1".parse().unwrap()))),
            ("alice@example.org", mail("alice@example.org")),
            ("@@alice@example.org", mail("alice@example.org")),
            ("email:alice@bücher.example", mail("alice@xn--bcher-kva.example")),
            ("\"a@b\"@example.org", mail("\"a@b\"@example.org")),
            ("C=CH, O=Example, CN=gateway", dn("C=CH, O=Example, CN=gateway")),
            ("dn:CN=alice@example.org", dn("CN=alice@example.org")),
            ("EXAMPLE\\alice", key_id(b"EXAMPLE\\alice")),
            ("my phone", key_id(b"my phone")),
            ("keyid:alice", key_id(b"alice")),
            ("keyid:0x00ff", key_id(&[0, 0xff])),
            ("@#00ff", key_id(&[0, 0xff])),
            ("", Err(IdentityError::Empty)),
            ("  ", Err(IdentityError::Empty)),
            ("ip:vpn", Err(IdentityError::Address("ip:vpn".into()))),
            ("@", Err(IdentityError::Fqdn("@".into()))),
            ("@a b", Err(IdentityError::Fqdn("@a b".into()))),
            (
                "fqdn:*.example.org",
                Err(IdentityError::Fqdn("fqdn:*.example.org".into())),
            ),
            ("alice@", Err(IdentityError::Rfc822("alice@".into()))),
            (
                "a lice@example.org",
                Err(IdentityError::Rfc822("a lice@example.org".into())),
            ),
            ("foo=bar", Err(IdentityError::Dn("foo=bar".into()))),
            ("@#0", Err(IdentityError::KeyId("@#0".into()))),
            ("keyid:0xzz", Err(IdentityError::KeyId("keyid:0xzz".into()))),
            ("keyid:", Err(IdentityError::KeyId("keyid:".into()))),
        ] {
            assert_eq!(Identity::parse(text), expected, "{text}");
        }
    }

    #[test]
    fn identities_survive_the_wire_and_text() {
        for text in [
            "vpn.example.org",
            "192.0.2.1",
            "2001:db8::1",
            "alice@example.org",
            "C=CH, O=Example, CN=gateway",
            "keyid:alice",
            "keyid:0x00ff",
        ] {
            let identity = Identity::parse(text).unwrap();
            assert_eq!(identity.to_string(), text);
            let (kind, octets) = identity.to_wire();
            assert_eq!(Identity::from_wire(kind, &octets), Some(identity), "{text}");
        }
        assert_eq!(
            Identity::parse("192.0.2.1").unwrap().to_wire(),
            (IdType::IPV4_ADDR, vec![192, 0, 2, 1])
        );
        assert_eq!(Identity::parse("::1").unwrap().to_wire().1.len(), 16);
    }

    #[test]
    fn the_wire_is_not_believed() {
        for (kind, octets) in [
            (IdType::IPV4_ADDR, &[1, 2, 3][..]),
            (IdType::IPV6_ADDR, &[1, 2, 3, 4]),
            (IdType::FQDN, b""),
            (IdType::FQDN, b"vpn.example.org\0"),
            (IdType::FQDN, b"vpn\x1b[2J"),
            (IdType::FQDN, b"\xff"),
            (IdType::RFC822_ADDR, b"a@b\r\n"),
            (IdType::DER_ASN1_DN, b"\x30\x01"),
            (IdType::KEY_ID, b""),
            (IdType::NULL, b"x"),
            (IdType(200), b"x"),
        ] {
            assert_eq!(Identity::from_wire(kind, octets), None, "{kind}");
        }
        let hostile = Identity::from_wire(IdType::FQDN, "a\u{202e}b".as_bytes()).unwrap();
        assert_eq!(hostile.to_string(), "a\\u{202e}b");
    }

    #[test]
    fn same_identities_match() {
        let id = |text| Identity::parse(text).unwrap();
        assert!(id("VPN.example.org").matches(&id("vpn.Example.ORG")));
        assert!(id("Alice@example.org").matches(&id("alice@EXAMPLE.org")));
        assert!(id("C=CH, CN=Gateway").matches(&id("c=ch, cn=gateway")));
        assert!(id("192.0.2.1").matches(&id("192.0.2.1")));
        assert!(!id("192.0.2.1").matches(&id("fqdn:192.0.2.1")));
        assert!(!id("keyid:a").matches(&id("keyid:A")));
        assert!(!id("vpn.example.org").matches(&id("vpn.example.com")));
    }
}
