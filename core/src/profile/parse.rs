//! Reading a profile: TOML in, everything the client needs out. Files and passphrases come from a [`Source`].

use std::net::IpAddr;

use toml::de::DeTable;

use super::reader::{self, Reader, Schema, Section, fault};
use super::report::{ProfileError, ProfileErrors, Report};
use super::value::host_name;
use super::{Anchors, Auth, AuthKind, Credentials, Gateway, Host, Identity, Profile};
use crate::crypto::Secret;
use crate::pki::Certificate;
use crate::timer::UnixTime;

mod credentials;
mod ppk;
mod settings;

pub use credentials::{WEAK_PSK_WARNING, is_weak_psk};

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
            AuthKind::EapMsChapV2 if self.credentials.password.is_none() => Some(MissingSecret::Password),
            AuthKind::Psk | AuthKind::EapMsChapV2 | AuthKind::Certificate | AuthKind::EapTls => None,
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
            "identity",
            "ca",
            "certificate",
            "send_idr",
            "allow_sha1_auth",
        ],
    },
    Schema {
        table: "auth",
        keys: &[
            "method",
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

/// The methods of authentication, and those that other clients or later versions know.
const METHODS: &[(&str, Option<AuthKind>)] = &[
    ("eap-tls", Some(AuthKind::EapTls)),
    ("certificate", Some(AuthKind::Certificate)),
    ("eap-mschapv2", Some(AuthKind::EapMsChapV2)),
    ("psk", Some(AuthKind::Psk)),
    ("eap-ttls", None),
    ("eap-peap", None),
    ("eap-gtc", None),
];

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
        let ike = self.ike(ike);
        let child = self.child(child);
        let network = self.network(network);
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

    fn gateway(&mut self, section: Section<'_, 't>, method: Option<AuthKind>) -> Option<Gateway> {
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
        let (anchors, pin) = if method == Some(AuthKind::Psk) {
            for key in ["ca", "certificate"].into_iter().filter(|key| section.has(key)) {
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
            identity: identity?,
            send_idr,
            anchors: anchors?,
            pin,
            allow_sha1_auth,
        })
    }

    fn gateway_anchors(&mut self, section: Section<'_, 't>, method: Option<AuthKind>) -> Option<Anchors> {
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

    fn method(&mut self, section: Section<'_, 't>) -> Option<AuthKind> {
        let names = || {
            METHODS
                .iter()
                .filter(|(_, kind)| kind.is_some())
                .map(|(name, _)| *name)
        };
        if !section.has("method") {
            let message = format!("is missing: one of {}", names().collect::<Vec<_>>().join(", "));
            self.reader.error_at(section, "method", message);
        }
        self.reader.value(section, "method", |_, value| {
            let text = reader::text(value)?;
            match METHODS.iter().find(|(name, _)| *name == text) {
                Some((_, Some(kind))) => return Ok(*kind),
                Some((_, None)) => {
                    let message = format!(
                        "`{text}` is not supported by this version; it knows {}",
                        names().collect::<Vec<_>>().join(", ")
                    );
                    return Err(fault(value, message));
                }
                None => {}
            }
            if text.starts_with("certificate+") {
                let message = "two rounds of authentication are not supported by this version";
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

    /// Who we are, and whom EAP-TLS meets.
    fn auth(&mut self, section: Section<'_, 't>, method: AuthKind) -> Auth {
        let eap = matches!(method, AuthKind::EapTls | AuthKind::EapMsChapV2);
        let certificate = matches!(method, AuthKind::EapTls | AuthKind::Certificate);
        let serves = |key: &str| match key {
            "eap_identity" => eap,
            "certificate" | "key" | "pkcs12" => certificate,
            "aaa_identity" | "aaa_ca" => method == AuthKind::EapTls,
            "username" | "password" => method == AuthKind::EapMsChapV2,
            "psk" => method == AuthKind::Psk,
            _ => true,
        };
        let idle = |key: &&&str| section.has(key) && !serves(key);
        for key in SCHEMAS
            .iter()
            .filter(|s| s.table == "auth")
            .flat_map(|s| s.keys)
            .filter(idle)
        {
            let name = METHODS
                .iter()
                .find(|(_, kind)| *kind == Some(method))
                .map_or("", |(name, _)| name);
            self.reader
                .not_used(section, key, format!("method {name} does not use it"));
        }
        if section.has("pkcs11") {
            let message = "smart cards and tokens (PKCS #11) are not supported by this version";
            self.reader.error_at(section, "pkcs11", message);
        }
        let identity = self.identity(section, "identity");
        let username = if serves("username") {
            self.username(section)
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
        if method == AuthKind::EapTls {
            for key in ["aaa_identity", "aaa_ca"]
                .into_iter()
                .filter(|key| !section.has(key))
            {
                self.reader.defaulted(section, key, "the gateway's");
            }
        }
        Auth {
            method,
            identity,
            eap_identity,
            username,
            aaa_identity,
            aaa_anchors,
            ppk: None,
        }
    }

    fn username(&mut self, section: Section<'_, 't>) -> Option<String> {
        if !section.has("username") {
            self.reader.error_at(
                section,
                "username",
                "is missing: method eap-mschapv2 needs a user name",
            );
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
