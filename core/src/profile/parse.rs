//! Reading a profile: TOML in, everything the client needs out. Files and passphrases come from a [`Source`].

use std::net::IpAddr;

use toml::de::DeTable;

use super::reader::{self, Reader, Schema, Section, fault};
use super::report::{ProfileError, ProfileErrors, Report};
use super::value::host_name;
use super::{
    Anchors, Auth, AuthKind, Credentials, Gateway, Host, Identity, PeapInner, Profile, Revocation, TtlsInner,
};
use crate::crypto::Secret;
use crate::pki::Certificate;
use crate::timer::UnixTime;

mod credentials;
mod ppk;
mod settings;

pub use credentials::{DATA, WEAK_PSK_WARNING, is_weak_psk};

/// A file that a profile names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileRef {
    /// The key that names it, with its table: `auth.key`.
    pub key: String,
    /// The path as written; a relative one is relative to the profile.
    pub path: String,
}

/// What reading a profile needs from outside.
pub trait Source {
    /// The octets of a file.
    ///
    /// # Errors
    /// Why it cannot be read, as the second half of a sentence: `there is no such file`.
    fn load(&mut self, file: &FileRef) -> Result<Vec<u8>, String>;

    /// The passphrase of an encrypted private key, which `what` names. Called only when one is needed, with `attempt`
    /// 1 at first, and again with the next number when it was wrong.
    fn passphrase(&mut self, what: &str, attempt: u32) -> Passphrase;

    /// The certification authorities that the operating system trusts.
    ///
    /// # Errors
    /// Why they cannot be had.
    fn system_anchors(&mut self) -> Result<Vec<Certificate>, String>;
}

/// The answer to the question for a passphrase.
#[derive(Clone, Debug)]
pub enum Passphrase {
    /// This may be it.
    Is(Secret),
    /// Nobody knows: the profile cannot be used.
    GiveUp,
    /// The key stays closed, since nobody is going to connect now; [`Credentials::key`] is then none.
    Later,
}

/// A profile that was read.
#[derive(Debug)]
pub struct Parsed {
    /// What the user configured.
    pub profile: Profile,
    /// What the profile holds, or names, of the user's secrets.
    pub credentials: Credentials,
    /// What was used, defaulted, doubted and left unused.
    pub report: Report,
}

/// A secret that a profile may leave out, and that is then asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MissingSecret {
    /// [`Credentials::password`].
    Password,
    /// [`Credentials::psk`].
    Psk,
}

impl Parsed {
    /// The secret that the method needs and the profile does not hold.
    #[must_use]
    pub const fn missing_secret(&self) -> Option<MissingSecret> {
        match self.profile.auth.method {
            AuthKind::Psk if self.credentials.psk.is_none() => Some(MissingSecret::Psk),
            method if method.needs_password() && self.credentials.password.is_none() => {
                Some(MissingSecret::Password)
            }
            _ => None,
        }
    }
}

/// Reads a profile.
///
/// `file` is the profile's name in errors, `now` decides which certificates have expired.
///
/// # Errors
/// Everything that is wrong, each with its place. Private keys are opened only when nothing else is wrong.
pub fn parse(
    text: &str,
    file: &str,
    source: &mut dyn Source,
    now: UnixTime,
) -> Result<Parsed, ProfileErrors> {
    let mut reader = Reader::new(text, SCHEMAS);
    let (document, faults) = DeTable::parse_recoverable(text);
    for fault in &faults {
        reader.error(
            fault.span().unwrap_or(0..0),
            None,
            format!("not valid TOML: {}", fault.message()),
        );
    }
    let mut parser = Parser { reader, source, now };
    // Whatever follows a syntax error is guesswork.
    let parsed = if parser.reader.is_sound() {
        parser.profile(document.get_ref())
    } else {
        None
    };
    let report = parser.reader.finish(file)?;
    let Some((profile, credentials)) = parsed else {
        let message = "the profile is incomplete".to_owned();
        let error = ProfileError {
            line: 1,
            column: 1,
            key: None,
            message,
        };
        return Err(ProfileErrors {
            file: file.to_owned(),
            errors: vec![error],
        });
    };
    Ok(Parsed {
        profile,
        credentials,
        report,
    })
}

const SCHEMAS: &[Schema] = &[
    Schema {
        table: "",
        keys: &["name"],
    },
    Schema {
        table: "gateway",
        keys: &[
            "address",
            "port",
            "tcp_port",
            "identity",
            "ca",
            "certificate",
            "send_idr",
            "allow_sha1_auth",
            "redirect",
            "revocation",
        ],
    },
    Schema {
        table: "auth",
        keys: &[
            "method",
            "inner",
            "eap_only",
            "identity",
            "eap_identity",
            "certificate",
            "key",
            "pkcs12",
            "pkcs11",
            "aaa_identity",
            "aaa_ca",
            "username",
            "password",
            "psk",
            "ppk",
            "ppk_file",
            "ppk_id",
            "ppk_required",
        ],
    },
    Schema {
        table: "ike",
        keys: &[
            "proposals",
            "require_pq",
            "rekey",
            "mobike",
            "fragmentation",
            "fragment_size",
            "dpd",
            "initial_contact",
            "resumption",
        ],
    },
    Schema {
        table: "child",
        keys: &[
            "proposals",
            "remote_ts",
            "accept_narrowing",
            "exclude",
            "rekey",
            "rekey_bytes",
            "rekey_packets",
            "copy_ecn",
            "copy_dscp",
            "require_pfs",
            "rehearse_rekey",
        ],
    },
    Schema {
        table: "network",
        keys: &[
            "kill_switch",
            "allow_lan",
            "dns",
            "domains",
            "mtu",
            "tcp_fallback",
        ],
    },
];

/// The methods of authentication, those with a tunnel with what runs in it by default.
const METHODS: &[(&str, AuthKind)] = &[
    ("eap-tls", AuthKind::EapTls),
    ("certificate", AuthKind::Certificate),
    ("eap-mschapv2", AuthKind::EapMsChapV2),
    ("eap-ttls", AuthKind::EapTtls(TtlsInner::MsChapV2)),
    ("eap-peap", AuthKind::EapPeap(PeapInner::MsChapV2)),
    ("eap-gtc", AuthKind::EapGtc),
    ("psk", AuthKind::Psk),
];

/// What may run in the tunnel of EAP-TTLS.
const TTLS_INNER: &[(&str, TtlsInner)] = &[
    ("mschapv2", TtlsInner::MsChapV2),
    ("eap-mschapv2", TtlsInner::EapMsChapV2),
    ("pap", TtlsInner::Pap),
    ("gtc", TtlsInner::Gtc),
    ("md5", TtlsInner::Md5),
];

/// What may run in the tunnel of PEAP.
const PEAP_INNER: &[(&str, PeapInner)] = &[
    ("mschapv2", PeapInner::MsChapV2),
    ("eap-mschapv2", PeapInner::MsChapV2),
    ("gtc", PeapInner::Gtc),
];

/// How we prove ourselves, as `auth.method` says it.
#[derive(Clone, Copy)]
struct Method {
    kind: AuthKind,
    /// `certificate+` is before it.
    certificate_first: bool,
    name: &'static str,
}

impl Method {
    fn parse(text: &str) -> Option<Self> {
        let (certificate_first, name) = match text.strip_prefix("certificate+") {
            Some(name) => (true, name),
            None => (false, text),
        };
        let (name, kind) = METHODS.iter().find(|(known, _)| *known == name)?;
        let method = Self {
            kind: *kind,
            certificate_first,
            name,
        };
        (kind.is_eap() || !certificate_first).then_some(method)
    }

    const fn needs_certificate(self) -> bool {
        self.certificate_first || self.kind.needs_certificate()
    }
}

impl std::fmt::Display for Method {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let first = if self.certificate_first {
            "certificate+"
        } else {
            ""
        };
        write!(f, "{first}{}", self.name)
    }
}

struct Parser<'t, 's> {
    reader: Reader<'t>,
    source: &'s mut dyn Source,
    now: UnixTime,
}

impl<'t> Parser<'t, '_> {
    fn profile(&mut self, document: &DeTable<'t>) -> Option<(Profile, Credentials)> {
        let sections = self.reader.sections(document);
        let [top, gateway, auth, ike, child, network] = *sections else {
            return None;
        };
        let name = self.name(top);
        let method = self.method(auth);
        let gateway = self.gateway(gateway, method);
        let name = match (name, &gateway) {
            (Some(name), _) => name,
            (None, Some(gateway)) => {
                let name = gateway.host.to_string();
                if !top.has("name") {
                    self.reader.defaulted(top, "name", name.as_str());
                }
                name
            }
            (None, None) => String::new(),
        };
        let identities = method.map(|method| self.auth(auth, method));
        if let (Some(gateway), Some(identities)) = (&gateway, &identities)
            && gateway.pin.is_some()
            && identities.eap_only
        {
            let message = "cannot be combined with gateway.certificate, which the gateway does not show then";
            self.reader.error_at(auth, "eap_only", message);
        }
        let ike = self.ike(ike);
        let child = self.child(child);
        let settings = self.network(network);
        if settings.kill_switch && child.remote_ts.iter().all(|net| net.prefix_len() > 0) {
            let message = "blocks everything outside `child.remote_ts` and `child.exclude`, the Internet too";
            self.reader.warn(network, "kill_switch", message);
        }
        let network = settings;
        let (ppk, ppk_secret) = self.ppk(auth).unzip();
        let method = method?;
        let credentials = self.credentials(auth, method, identities.as_ref());
        Some((
            Profile {
                name,
                gateway: gateway?,
                auth: Auth { ppk, ..identities? },
                ike,
                child,
                network,
            },
            Credentials {
                ppk: ppk_secret,
                ..credentials?
            },
        ))
    }

    fn name(&mut self, top: Section<'_, 't>) -> Option<String> {
        self.reader.value(top, "name", |_, value| {
            let name = reader::text(value)?.trim();
            if name.chars().count() > 64 || name.chars().any(char::is_control) {
                return Err(fault(value, "must be one line of at most 64 characters"));
            }
            Ok(name.to_owned())
        })
    }

    fn gateway(&mut self, section: Section<'_, 't>, method: Option<Method>) -> Option<Gateway> {
        if !section.has("address") {
            self.reader.error_at(
                section,
                "address",
                "is missing: the gateway's host name or IP address",
            );
        }
        let host = self.reader.value(section, "address", |_, value| {
            host(reader::text(value)?).map_err(|message| fault(value, message))
        });
        let port = self
            .reader
            .value_or(section, "port", 500, "500, then 4500", |_, value| {
                reader::number(value, 1..=u16::MAX)
            });
        let tcp_port = self
            .reader
            .value_or(section, "tcp_port", 4500, "4500", |_, value| {
                reader::number(value, 1..=u16::MAX)
            });
        let identity = self.identity(section, "identity");
        let identity = identity.or_else(|| {
            let host = host.as_ref()?;
            if !section.has("identity") {
                self.reader
                    .defaulted(section, "identity", format!("{host} (the address)"));
            }
            Some(match host {
                Host::Name(name) => Identity::Fqdn(name.clone()),
                Host::Address(address) => Identity::Address(*address),
            })
        });
        let send_idr = self
            .reader
            .value_or(section, "send_idr", true, "true", |_, v| reader::boolean(v));
        let allow_sha1_auth = self
            .reader
            .value_or(section, "allow_sha1_auth", false, "false", |_, v| {
                reader::boolean(v)
            });
        if allow_sha1_auth {
            let message = "a gateway that signs with SHA-1 is accepted; collisions in SHA-1 can be made";
            self.reader.warn(section, "allow_sha1_auth", message);
        }
        let redirect = self.redirects(section);
        let revocation = self.revocation(section, method);
        let (anchors, pin) = if method.is_some_and(|method| method.kind == AuthKind::Psk) {
            for key in ["ca", "certificate", "revocation"]
                .into_iter()
                .filter(|key| section.has(key))
            {
                self.reader
                    .not_used(section, key, "with method psk the gateway shows no certificate");
            }
            (
                Some(Anchors {
                    certificates: Vec::new(),
                    system: false,
                }),
                None,
            )
        } else {
            (self.gateway_anchors(section, method), self.pin(section))
        };
        Some(Gateway {
            host: host?,
            port,
            tcp_port,
            identity: identity?,
            send_idr,
            anchors: anchors?,
            pin,
            allow_sha1_auth,
            redirect,
            revocation,
        })
    }

    fn revocation(&mut self, section: Section<'_, 't>, method: Option<Method>) -> Revocation {
        if method.is_some_and(|method| method.kind == AuthKind::Psk) {
            return Revocation::Off;
        }
        let shown = "soft: a certificate that is known to be revoked is refused";
        let revocation = self
            .reader
            .value_or(
                section,
                "revocation",
                Revocation::Soft,
                shown,
                |_, value| match reader::text(value)? {
                    "off" => Ok(Revocation::Off),
                    "soft" => Ok(Revocation::Soft),
                    "strict" => Ok(Revocation::Strict),
                    other => Err(fault(value, format!("`{other}` must be off, soft or strict"))),
                },
            );
        if revocation == Revocation::Strict && section.has("certificate") {
            let message = "nobody is asked about a certificate that the profile pins: it vouches for itself";
            self.reader.warn(section, "revocation", message);
        }
        revocation
    }

    fn gateway_anchors(&mut self, section: Section<'_, 't>, method: Option<Method>) -> Option<Anchors> {
        if section.has("ca") {
            return self.anchors(section, "ca");
        }
        method?;
        match self.source.system_anchors() {
            Ok(certificates) => {
                let count = certificates.len();
                let shown = format!("the operating system's trust store ({count} certificates)");
                self.reader.defaulted(section, "ca", shown);
                Some(Anchors {
                    certificates,
                    system: true,
                })
            }
            Err(reason) => {
                let message =
                    format!("is missing, and the operating system's trust store cannot be used: {reason}");
                self.reader.error_at(section, "ca", message);
                None
            }
        }
    }

    fn method(&mut self, section: Section<'_, 't>) -> Option<Method> {
        let names = || METHODS.iter().map(|(name, _)| *name);
        if !section.has("method") {
            let message = format!("is missing: one of {}", names().collect::<Vec<_>>().join(", "));
            self.reader.error_at(section, "method", message);
        }
        self.reader.value(section, "method", |_, value| {
            let text = reader::text(value)?;
            if let Some(method) = Method::parse(text) {
                return Ok(method);
            }
            if let Some(second) = text.strip_prefix("certificate+") {
                let message = format!(
                    "`{second}` cannot be the second round; it must be an EAP method, such as eap-mschapv2"
                );
                return Err(fault(value, message));
            }
            let near = names().map(|name| (strsim::osa_distance(text, name), name)).min();
            let message = match near.filter(|(distance, _)| *distance <= 3) {
                Some((_, name)) => format!("`{text}` is not a known method; did you mean `{name}`?"),
                None => format!(
                    "`{text}` is not a known method; known are {}",
                    names().collect::<Vec<_>>().join(", ")
                ),
            };
            Err(fault(value, message))
        })
    }

    /// Who we are, and whom a method with TLS meets.
    fn auth(&mut self, section: Section<'_, 't>, method: Method) -> Auth {
        let kind = method.kind;
        let serves = |key: &str| match key {
            "inner" => kind.is_tunnelled(),
            "eap_identity" => kind.is_eap(),
            "certificate" | "key" | "pkcs12" => method.needs_certificate(),
            "aaa_identity" | "aaa_ca" => kind.proves_the_server(),
            "username" | "password" => kind.needs_username(),
            "psk" => kind == AuthKind::Psk,
            _ => true,
        };
        let idle = |key: &&&str| section.has(key) && !serves(key);
        for key in SCHEMAS
            .iter()
            .filter(|s| s.table == "auth")
            .flat_map(|s| s.keys)
            .filter(idle)
        {
            self.reader
                .not_used(section, key, format!("method {method} does not use it"));
        }
        if section.has("pkcs11") {
            let message = "smart cards and tokens (PKCS #11) are not supported by this version";
            self.reader.error_at(section, "pkcs11", message);
        }
        let kind = self.inner(section, kind);
        let eap_only = self.eap_only(section, method);
        let identity = self.identity(section, "identity");
        let username = if serves("username") {
            self.username(section, method)
        } else {
            None
        };
        let eap_identity = if serves("eap_identity") {
            self.line(section, "eap_identity")
        } else {
            None
        };
        let aaa_identity = if serves("aaa_identity") {
            self.identity(section, "aaa_identity")
        } else {
            None
        };
        let aaa_anchors = if serves("aaa_ca") {
            self.anchors(section, "aaa_ca")
        } else {
            None
        };
        if kind.proves_the_server() {
            for key in ["aaa_identity", "aaa_ca"]
                .into_iter()
                .filter(|key| !section.has(key))
            {
                self.reader.defaulted(section, key, "the gateway's");
            }
        }
        let auth = Auth {
            method: kind,
            certificate_first: method.certificate_first,
            eap_only,
            identity,
            eap_identity,
            username,
            aaa_identity,
            aaa_anchors,
            ppk: None,
        };
        if let Some(anonymous) = auth.anonymous().filter(|_| !section.has("eap_identity")) {
            self.reader.defaulted(section, "eap_identity", anonymous);
        }
        auth
    }

    /// What runs in the tunnel of a method that has one.
    fn inner(&mut self, section: Section<'_, 't>, kind: AuthKind) -> AuthKind {
        match kind {
            AuthKind::EapTtls(default) => {
                AuthKind::EapTtls(self.inner_of(section, TTLS_INNER, "EAP-TTLS", default))
            }
            AuthKind::EapPeap(default) => {
                AuthKind::EapPeap(self.inner_of(section, PEAP_INNER, "PEAP", default))
            }
            AuthKind::Psk
            | AuthKind::Certificate
            | AuthKind::EapTls
            | AuthKind::EapMsChapV2
            | AuthKind::EapGtc => kind,
        }
    }

    fn inner_of<T: Copy>(
        &mut self,
        section: Section<'_, 't>,
        known: &[(&str, T)],
        tunnel: &str,
        default: T,
    ) -> T {
        self.reader
            .value_or(section, "inner", default, "mschapv2", |_, value| {
                let text = reader::text(value)?;
                let found = known.iter().find(|(name, _)| *name == text);
                found.map(|(_, inner)| *inner).ok_or_else(|| {
                    let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
                    let message = format!(
                        "`{text}` does not run inside {tunnel}; known are {}",
                        names.join(", ")
                    );
                    fault(value, message)
                })
            })
    }

    /// Whether the gateway may prove itself in EAP alone.
    fn eap_only(&mut self, section: Section<'_, 't>, method: Method) -> bool {
        let fitting = !method.certificate_first && method.kind.proves_the_server();
        if !fitting && !section.has("eap_only") {
            return false;
        }
        let wanted = self
            .reader
            .value_or(section, "eap_only", false, "false", |_, value| {
                reader::boolean(value)
            });
        if !wanted {
            return false;
        }
        if !fitting {
            let message = format!(
                "is only for eap-tls, eap-ttls and eap-peap alone: with {method} nothing else proves the gateway"
            );
            self.reader.error_at(section, "eap_only", message);
        }
        if section.has("aaa_identity") {
            let message =
                "cannot be combined with eap_only, where the EAP server must prove the gateway's identity";
            self.reader.error_at(section, "aaa_identity", message);
        }
        true
    }

    fn username(&mut self, section: Section<'_, 't>, method: Method) -> Option<String> {
        if !section.has("username") {
            let message = format!("is missing: method {method} needs a user name");
            self.reader.error_at(section, "username", message);
        }
        self.line(section, "username")
    }

    /// A text of one line, as it goes over the wire.
    fn line(&mut self, section: Section<'_, 't>, key: &str) -> Option<String> {
        self.reader.value(section, key, |_, value| {
            let text = reader::text(value)?;
            if text.len() > 255 || text.chars().any(char::is_control) {
                return Err(fault(value, "must be one line of at most 255 octets"));
            }
            Ok(text.to_owned())
        })
    }

    fn identity(&mut self, section: Section<'_, 't>, key: &str) -> Option<Identity> {
        self.reader.value(section, key, |_, value| {
            Identity::parse(reader::text(value)?).map_err(|error| fault(value, error.to_string()))
        })
    }
}

/// A host name or an address.
fn host(text: &str) -> Result<Host, String> {
    let text = text.trim();
    let bare = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'))
        .unwrap_or(text);
    if let Ok(address) = bare.parse::<IpAddr>() {
        return Ok(Host::Address(address));
    }
    if text.contains("://") || text.contains('/') {
        return Err(format!(
            "`{text}` is a link; write the host name or IP address alone"
        ));
    }
    if text.contains(':') {
        return Err(format!("`{text}`: write the port on its own, as `port = 4500`"));
    }
    host_name(text)
        .map(Host::Name)
        .map_err(|message| format!("{message} and not an IP address"))
}
