//! What the client wants to have from the web: lists and answers about revoked certificates, which are signed and
//! therefore come over plain HTTP.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Serialize, Serializer};

/// The longest URL that is looked at, in octets.
const MAX_URL: usize = 1024;

/// An `http` URL (RFC 9110, section 4.2.1) without user information and fragment.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct HttpUrl {
    host: String,
    port: u16,
    target: String,
}

/// Why a URL is not one to fetch from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// Not plain HTTP, such as `ldap` or `https`: fetching a certificate's status by TLS could ask for its status.
    #[error("only http is fetched")]
    Scheme,
    /// It is longer than any sensible one, or has characters that no URL has.
    #[error("not a sensible URL")]
    Malformed,
}

impl HttpUrl {
    /// Reads `http://host[:port][/path][?query]`; a fragment is cut off.
    ///
    /// # Errors
    ///
    /// [`UrlError`] says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, UrlError> {
        if text.len() > MAX_URL || !text.bytes().all(|octet| octet.is_ascii_graphic()) {
            return Err(UrlError::Malformed);
        }
        let (scheme, rest) = text.split_once(':').ok_or(UrlError::Malformed)?;
        if !scheme.eq_ignore_ascii_case("http") {
            return Err(UrlError::Scheme);
        }
        let rest = rest.strip_prefix("//").ok_or(UrlError::Malformed)?;
        let rest = rest.split('#').next().unwrap_or_default();
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, target) = rest.split_at(end);
        let (host, port) = match authority.rsplit_once(':') {
            // The colons of an IPv6 address stand in brackets.
            Some((host, port)) if !port.ends_with(']') => {
                (host, if port.is_empty() { Some(80) } else { decimal(port) })
            }
            _ => (authority, Some(80)),
        };
        let literal = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let host = match literal {
            Some(literal) => literal.parse::<Ipv6Addr>().ok().map(|_| literal),
            None => is_name(host).then_some(host),
        };
        Ok(Self {
            host: host.ok_or(UrlError::Malformed)?.to_ascii_lowercase(),
            port: port.filter(|port| *port > 0).ok_or(UrlError::Malformed)?,
            target: if target.starts_with('/') {
                target.to_owned()
            } else {
                format!("/{target}")
            },
        })
    }

    /// The URL that a `Location` field names, seen from this one (RFC 9110, section 10.2.2).
    ///
    /// # Errors
    ///
    /// As [`HttpUrl::parse`].
    pub fn join(&self, location: &str) -> Result<Self, UrlError> {
        if let Some(rest) = location.strip_prefix("//") {
            return Self::parse(&format!("http://{rest}"));
        }
        if location.starts_with('/') {
            return Self::parse(&format!("http://{}{location}", self.authority()));
        }
        Self::parse(location)
    }

    /// The host: a name, or an address without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Path and query, as a request line has them.
    #[must_use]
    pub fn target(&self) -> &str {
        &self.target
    }

    /// What a `Host` field says: the host, in brackets where it is an IPv6 address, and the port if it is not 80.
    #[must_use]
    pub fn authority(&self) -> String {
        let host = if self.host.contains(':') {
            format!("[{}]", self.host)
        } else {
            self.host.clone()
        };
        match self.port {
            80 => host,
            port => format!("{host}:{port}"),
        }
    }
}

/// A port; nothing but digits.
fn decimal(text: &str) -> Option<u16> {
    text.bytes()
        .all(|octet| octet.is_ascii_digit())
        .then(|| text.parse().ok())?
}

fn is_name(host: &str) -> bool {
    let plain = |octet: u8| octet.is_ascii_alphanumeric() || matches!(octet, b'-' | b'_' | b'.');
    !host.is_empty() && host.len() <= 253 && host.bytes().all(plain)
}

impl fmt::Display for HttpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.authority(), self.target)
    }
}

impl fmt::Debug for HttpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for HttpUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Which fetch an answer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct FetchId(pub u32);

/// Something to fetch over HTTP, on the physical network and never through the tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetch {
    /// Which one it is.
    pub id: FetchId,
    /// Where it is.
    pub url: HttpUrl,
    /// What to send with POST, and its media type; none: GET.
    pub post: Option<(&'static str, Vec<u8>)>,
    /// Addresses of private networks may be asked.
    pub private: bool,
}

impl Fetch {
    /// A body larger than this, in octets, is not taken.
    pub const MAX_BODY: usize = 1024 * 1024;
    /// All of it may take so long, in seconds.
    pub const PATIENCE: std::time::Duration = std::time::Duration::from_secs(5);
    /// So many redirections are followed.
    pub const MAX_REDIRECTIONS: usize = 3;

    /// Whether this address may be connected to. Whoever issues certificates chooses the URL, and whoever answers for
    /// its name chooses the address: neither shall make us knock at this machine, at its neighbours on the link, or,
    /// unless the gateway itself is in a private network, at what is private here.
    #[must_use]
    pub fn permits(&self, address: IpAddr) -> bool {
        match kind(address) {
            Kind::Global => true,
            Kind::Private => self.private,
            Kind::Never => false,
        }
    }
}

/// Whether an address is of a private network: where the gateway is in one, so may be what tells of revocation.
pub(crate) fn is_private(address: IpAddr) -> bool {
    kind(address) != Kind::Global
}

#[derive(PartialEq, Eq)]
enum Kind {
    Global,
    Private,
    /// This machine, the link, many at once, nobody.
    Never,
}

fn kind(address: IpAddr) -> Kind {
    match address.to_canonical() {
        IpAddr::V4(v4) => kind_v4(v4),
        IpAddr::V6(v6) => match v6.octets() {
            // NAT64 (RFC 6052): what counts is the address behind the translator.
            [0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0, a, b, c, d] => kind_v4(Ipv4Addr::new(a, b, c, d)),
            // ::/96, with the unspecified and the loopback address.
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, ..] => Kind::Never,
            _ if v6.is_multicast() || v6.is_unicast_link_local() => Kind::Never,
            _ if v6.is_unique_local() => Kind::Private,
            _ => Kind::Global,
        },
    }
}

fn kind_v4(address: Ipv4Addr) -> Kind {
    match address.octets() {
        [0 | 127 | 224.., ..] | [169, 254, ..] => Kind::Never,
        // RFC 1918, and the shared addresses of carriers (RFC 6598).
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] | [100, 64..=127, ..] => Kind::Private,
        _ => Kind::Global,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read() {
        let parts = |text: &str| {
            let url = HttpUrl::parse(text).unwrap();
            (
                url.host().to_owned(),
                url.port(),
                url.target().to_owned(),
                url.to_string(),
            )
        };
        let expected = |host: &str, port, target: &str, text: &str| {
            (host.to_owned(), port, target.to_owned(), text.to_owned())
        };
        assert_eq!(
            parts("http://CRL.example.org"),
            expected("crl.example.org", 80, "/", "http://crl.example.org/")
        );
        assert_eq!(
            parts("HTTP://crl.example.org:8080/a/b.crl?c=d#e"),
            expected(
                "crl.example.org",
                8080,
                "/a/b.crl?c=d",
                "http://crl.example.org:8080/a/b.crl?c=d"
            )
        );
        assert_eq!(
            parts("http://[2001:db8::1]:80?x"),
            expected("2001:db8::1", 80, "/?x", "http://[2001:db8::1]/?x")
        );
        assert_eq!(parts("http://192.0.2.1/").0, "192.0.2.1");
    }

    #[test]
    fn what_is_no_plain_http_url_is_refused() {
        let error = |text: &str| HttpUrl::parse(text).unwrap_err();
        for text in [
            "ldap:///CN=CA?certificateRevocationList",
            "https://example.org/",
            "ftp://a/",
            "file:///etc/passwd",
        ] {
            assert_eq!(error(text), UrlError::Scheme, "{text}");
        }
        let long = format!("http://a/{}", "a".repeat(MAX_URL));
        for text in [
            "",
            "http",
            "http:",
            "http:/a",
            "http://",
            "http:///a",
            "http://user@host/",
            "http://a b/",
            "http://a/\r\nHost: b",
            "http://a:0/",
            "http://a:65536/",
            "http://a:+80/",
            "http://[::1",
            "http://::1/",
            "http://[a]/",
            "http://ä/",
            long.as_str(),
        ] {
            assert_eq!(error(text), UrlError::Malformed, "{text}");
        }
    }

    #[test]
    fn a_redirection_is_followed_from_where_it_is() {
        let url = HttpUrl::parse("http://a:81/b/c").unwrap();
        let join = |location: &str| url.join(location).map(|url| url.to_string());
        assert_eq!(join("/d").as_deref(), Ok("http://a:81/d"));
        assert_eq!(join("//e/d").as_deref(), Ok("http://e/d"));
        assert_eq!(join("http://e:82").as_deref(), Ok("http://e:82/"));
        assert_eq!(join("https://e/"), Err(UrlError::Scheme));
        assert_eq!(join("d"), Err(UrlError::Malformed));
    }

    #[test]
    fn only_what_is_far_away_is_asked() {
        let fetch = |private| Fetch {
            id: FetchId(1),
            url: HttpUrl::parse("http://a/").unwrap(),
            post: None,
            private,
        };
        let never = [
            "127.0.0.1",
            "0.0.0.0",
            "169.254.169.254",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "fe80::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "64:ff9b::7f00:1",
        ];
        let private = [
            "10.0.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "100.64.0.1",
            "fd00::1",
            "fc00::1",
            "::ffff:10.0.0.1",
            "64:ff9b::a00:1",
        ];
        let global = [
            "192.0.2.1",
            "172.32.0.1",
            "100.128.0.1",
            "2001:db8::1",
            "64:ff9b::c000:201",
        ];
        for (addresses, wanted) in [
            (&never[..], [false, false]),
            (&private[..], [false, true]),
            (&global[..], [true, true]),
        ] {
            for address in addresses {
                let permits = [false, true].map(|private| fetch(private).permits(address.parse().unwrap()));
                assert_eq!(permits, wanted, "{address}");
            }
        }
    }
}
