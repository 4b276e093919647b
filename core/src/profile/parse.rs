//! Reading a profile: TOML in, everything the client needs out. Files and passphrases come from a [`Source`].

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::ops::Range;
use std::time::Duration;

use ipnet::IpNet;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::reader::{self, Fault, Reader, Schema, Section, fault};
use super::report::{ProfileError, ProfileErrors, Report};
use super::value::{duration, duration_text, host_name, network};
use super::{
    Anchors, Auth, AuthKind, ChildConfig, Credentials, DnsPolicy, Gateway, Host, Identity, IkeConfig,
    NetworkConfig, Profile,
};
use crate::crypto::Secret;
use crate::pki::Certificate;
use crate::proposal::{EspProposal, IkeProposal, ProposalError, default_esp, default_ike};
use crate::timer::UnixTime;

mod credentials;

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
        ],
    },
    Schema {
        table: "ike",
        keys: &[
            "proposals",
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
        keys: &["proposals", "remote_ts", "accept_narrowing", "exclude", "rekey"],
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

const HOUR: Duration = Duration::from_secs(3600);
/// More proposals than any gateway expects; each also needs a number of one octet (RFC 7296, section 3.3.1).
const MAX_PROPOSALS: usize = 16;
/// Old gateways give up on longer lists.
const MANY_PROPOSALS: usize = 4;
/// Fewer characters can be guessed by whoever answers in the gateway's place (RFC 7296, section 2.15).
const WEAK_PSK: usize = 20;
const NO_ROAMING: &str = "this version does not follow a change of networks yet";
const NO_REKEYING: &str = "this version does not rekey by itself yet";

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
        let method = method?;
        let credentials = self.credentials(auth, method, identities.as_ref());
        Some((
            Profile {
                name,
                gateway: gateway?,
                auth: identities?,
                ike,
                child,
                network,
            },
            credentials?,
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

    fn ike(&mut self, section: Section<'_, 't>) -> IkeConfig {
        let proposals = self
            .proposals(section, IkeProposal::parse, IkeProposal::legacy, default_ike)
            .unwrap_or_else(default_ike);
        let rekey = self.rekey(section, HOUR * 4);
        let mobike = self
            .reader
            .value_or(section, "mobike", true, NO_ROAMING, |_, v| reader::boolean(v));
        if mobike && section.has("mobike") {
            self.reader
                .not_used(section, "mobike", format!("not used: {NO_ROAMING}"));
        }
        let fragmentation = self.switch(section, "fragmentation", true);
        let fragment_size = self
            .reader
            .value_or(section, "fragment_size", 1280, "1280", |_, value| {
                reader::number(value, 576..=9000)
            });
        let dpd = self.seconds(section, "dpd", Duration::from_secs(30), 5..=3600);
        let initial_contact = self.switch(section, "initial_contact", false);
        IkeConfig {
            proposals,
            rekey,
            mobike,
            fragmentation,
            fragment_size,
            dpd,
            initial_contact,
        }
    }

    fn child(&mut self, section: Section<'_, 't>) -> ChildConfig {
        let proposals = self
            .proposals(section, EspProposal::parse, EspProposal::legacy, default_esp)
            .unwrap_or_else(default_esp);
        let everything = || {
            ["0.0.0.0/0", "::/0"]
                .iter()
                .filter_map(|text| text.parse().ok())
                .collect()
        };
        let remote_ts: Vec<IpNet> = self.reader.value_or(
            section,
            "remote_ts",
            everything(),
            "0.0.0.0/0, ::/0 (everything)",
            |_, value| reader::texts(value)?.into_iter().map(read_network).collect(),
        );
        let (narrowing, why) = if section.has("remote_ts") {
            (false, "false, for remote_ts says what is wanted")
        } else {
            (true, "true, for remote_ts does not say what is wanted")
        };
        let accept_narrowing = self
            .reader
            .value_or(section, "accept_narrowing", narrowing, why, |_, v| {
                reader::boolean(v)
            });
        let exclude: BTreeSet<IpNet> = self.reader.value_or(
            section,
            "exclude",
            BTreeSet::new(),
            "nothing",
            |_, v| {
                let excluded: Vec<(IpNet, Range<usize>)> = optional_texts(v)?
                    .into_iter()
                    .map(|(text, span)| Ok((read_network((text, span.clone()))?, span)))
                    .collect::<Result<_, Fault>>()?;
                for (network, span) in &excluded {
                    if !remote_ts.iter().any(|wanted| wanted.contains(network)) {
                        let inside = remote_ts.iter().find(|wanted| network.contains(*wanted));
                        let message = match inside {
                            Some(wanted) => format!("`{network}` leaves nothing of `{wanted}` in remote_ts"),
                            None => format!(
                                "`{network}` is not part of remote_ts, so that there is nothing to exclude"
                            ),
                        };
                        return Err(Fault {
                            span: span.clone(),
                            message,
                        });
                    }
                }
                Ok(excluded.into_iter().map(|(network, _)| network).collect())
            },
        );
        if remote_ts.iter().all(|wanted| exclude.contains(wanted)) {
            self.reader
                .error_at(section, "exclude", "leaves nothing that goes into the tunnel");
        }
        let rekey = self.rekey(section, HOUR);
        ChildConfig {
            proposals,
            remote_ts,
            accept_narrowing,
            exclude,
            rekey,
        }
    }

    fn rekey(&mut self, section: Section<'_, 't>, default: Duration) -> Duration {
        if !section.has("rekey") {
            self.reader.defaulted(section, "rekey", NO_REKEYING);
            return default;
        }
        let rekey = self.seconds(section, "rekey", default, 60..=7 * 86400);
        self.reader
            .not_used(section, "rekey", format!("not used: {NO_REKEYING}"));
        rekey
    }

    fn network(&mut self, section: Section<'_, 't>) -> NetworkConfig {
        self.kill_switch(section);
        if self.switch_if_there(section, "allow_lan").is_some() {
            self.reader.not_used(
                section,
                "allow_lan",
                "not used by this version: it blocks nothing",
            );
        }
        if self.switch_if_there(section, "tcp_fallback") == Some(true) {
            let message = "not used by this version: it speaks IKE and ESP over UDP only";
            self.reader.not_used(section, "tcp_fallback", message);
        }
        let dns = self
            .reader
            .value_or(section, "dns", DnsPolicy::Gateway, "gateway", |_, value| {
                dns(value)
            });
        let domains = self
            .reader
            .value_or(section, "domains", Vec::new(), "the gateway's", |_, value| {
                reader::texts(value)?
                    .into_iter()
                    .map(|(text, span)| host_name(text).map_err(|message| Fault { span, message }))
                    .collect()
            });
        if dns == DnsPolicy::None && section.has("domains") {
            self.reader.not_used(
                section,
                "domains",
                "with dns = \"none\" no name is resolved through the tunnel",
            );
        }
        let mtu = self
            .reader
            .value_or(section, "mtu", None, "auto", |_, value| match value.get_ref() {
                DeValue::String(text) if text == "auto" => Ok(None),
                DeValue::Integer(_) => reader::number(value, 1280..=9000).map(Some),
                other => Err(fault(value, reader::wrong_type("\"auto\" or a number", other))),
            });
        NetworkConfig { dns, domains, mtu }
    }

    /// We do not pretend to protect: a profile that counts on the kill switch is refused.
    fn kill_switch(&mut self, section: Section<'_, 't>) {
        match self.switch_if_there(section, "kill_switch") {
            Some(true) => self.reader.error_at(
                section,
                "kill_switch",
                "this version cannot block traffic outside the tunnel; write `kill_switch = false` \
                 if the connection may be used without that protection",
            ),
            Some(false) => {}
            None if section.has("kill_switch") => {}
            None => {
                let value = "false: traffic is not blocked when the tunnel is down";
                self.reader.defaulted(section, "kill_switch", value);
            }
        }
    }

    fn switch(&mut self, section: Section<'_, 't>, key: &str, default: bool) -> bool {
        self.reader
            .value_or(section, key, default, default.to_string(), |_, value| {
                reader::boolean(value)
            })
    }

    fn switch_if_there(&mut self, section: Section<'_, 't>, key: &str) -> Option<bool> {
        self.reader.value(section, key, |_, value| reader::boolean(value))
    }

    fn seconds(
        &mut self,
        section: Section<'_, 't>,
        key: &str,
        default: Duration,
        limits: std::ops::RangeInclusive<u64>,
    ) -> Duration {
        self.reader
            .value_or(section, key, default, duration_text(default), |_, value| {
                let read = duration(reader::text(value)?).map_err(|message| fault(value, message))?;
                if limits.contains(&read.as_secs()) {
                    return Ok(read);
                }
                let [least, most] =
                    [limits.start(), limits.end()].map(|s| duration_text(Duration::from_secs(*s)));
                Err(fault(value, format!("must be from {least} to {most}")))
            })
    }

    fn proposals<P: std::fmt::Display>(
        &mut self,
        section: Section<'_, 't>,
        parse: fn(&str) -> Result<P, ProposalError>,
        legacy: fn(&P) -> Vec<&'static str>,
        default: fn() -> Vec<P>,
    ) -> Option<Vec<P>> {
        if !section.has("proposals") {
            let shown: Vec<String> = default().iter().map(ToString::to_string).collect();
            self.reader.defaulted(section, "proposals", shown.join(", "));
            return None;
        }
        let proposals: Vec<P> = self.reader.value(section, "proposals", |reader, value| {
            let texts = reader::texts(value)?;
            if texts.len() > MAX_PROPOSALS {
                return Err(fault(
                    value,
                    format!("must not be more than {MAX_PROPOSALS} proposals"),
                ));
            }
            let read = |(text, span): (&str, Range<usize>)| {
                parse(text).map_err(|error| Fault {
                    span: reader.part(span, error.span.clone(), text.len()),
                    message: error.to_string(),
                })
            };
            texts.into_iter().map(read).collect()
        })?;
        let mut weak: Vec<&str> = proposals.iter().flat_map(legacy).collect();
        weak.sort_unstable();
        weak.dedup();
        if !weak.is_empty() {
            let message = format!(
                "{} is outdated; use it only if the gateway knows nothing better",
                weak.join(", ")
            );
            self.reader.warn(section, "proposals", message);
        }
        if proposals.len() > MANY_PROPOSALS {
            self.reader.warn(
                section,
                "proposals",
                "more than four proposals are too many for some gateways",
            );
        }
        Some(proposals)
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

fn read_network((text, span): (&str, Range<usize>)) -> Result<IpNet, Fault> {
    network(text).map_err(|message| Fault { span, message })
}

/// Texts, of which there may be none.
fn optional_texts<'a>(value: &'a Spanned<DeValue<'_>>) -> Result<Vec<(&'a str, Range<usize>)>, Fault> {
    match value.get_ref() {
        DeValue::Array(items) if items.is_empty() => Ok(Vec::new()),
        _ => reader::texts(value),
    }
}

fn dns(value: &Spanned<DeValue<'_>>) -> Result<DnsPolicy, Fault> {
    let servers = reader::texts(value)?;
    match (value.get_ref(), servers.as_slice()) {
        (DeValue::String(_), [("gateway", _)]) => return Ok(DnsPolicy::Gateway),
        (DeValue::String(_), [("none", _)]) => return Ok(DnsPolicy::None),
        _ => {}
    }
    let read = |(text, span): (&str, Range<usize>)| {
        let message =
            format!("`{text}` is not an IP address; write \"gateway\", \"none\" or a list of addresses");
        text.parse::<IpAddr>().map_err(|_| Fault { span, message })
    };
    servers
        .into_iter()
        .map(read)
        .collect::<Result<_, _>>()
        .map(DnsPolicy::Servers)
}
