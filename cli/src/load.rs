//! Reading a profile with its files, and asking for secrets.

use std::io::{IsTerminal as _, Read as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::signal::{SigSet, Signal};
use peregrine_core::crypto::Secret;
use peregrine_core::pki::Certificate;
use peregrine_core::profile::{self, FileRef, MissingSecret, Parsed, Passphrase, ProfileErrors, Source};
use peregrine_core::timer::UnixTime;

use crate::args::SecretOptions;

/// No profile, certificate or key is larger, in octets.
const MAX_FILE: u64 = 4 << 20;
/// How often a wrong passphrase may be typed.
const ATTEMPTS: u32 = 3;

/// Why there is no profile.
pub(crate) enum LoadFault {
    /// The profile's text is wrong.
    Profile(ProfileErrors),
    /// Anything else, as a sentence.
    Other(String),
}

/// Where secrets come from.
pub(crate) struct Secrets {
    /// The one from `--password-file` or `--password-fd`.
    given: Option<Secret>,
    /// Somebody can be asked.
    terminal: bool,
    /// Nothing is going to be opened: an encrypted key may stay closed.
    later: bool,
}

impl Secrets {
    /// Reads the secret that the options name. `later` leaves encrypted keys closed instead of asking.
    pub(crate) fn new(options: &SecretOptions, later: bool) -> Result<Self, String> {
        let path = match (&options.password_file, options.password_fd) {
            (Some(path), _) => Some(path.clone()),
            (None, Some(descriptor)) => Some(PathBuf::from(format!("/dev/fd/{descriptor}"))),
            (None, None) => None,
        };
        let given = match path {
            Some(path) => Some(first_line(&path)?),
            None => None,
        };
        Ok(Self {
            given,
            terminal: std::io::stdin().is_terminal(),
            later,
        })
    }

    /// Asks for a secret that the profile does not hold.
    pub(crate) fn ask(&self, missing: MissingSecret, profile: &profile::Profile) -> Result<Secret, String> {
        let prompt = match missing {
            MissingSecret::Psk => format!("Pre-shared key of {}: ", profile.gateway.host),
            MissingSecret::Password => {
                format!(
                    "Password of {}: ",
                    profile.auth.username.as_deref().unwrap_or_default()
                )
            }
        };
        let secret = match &self.given {
            Some(secret) => secret.clone(),
            None if self.terminal => prompt_for(&prompt)?,
            None => {
                let what = match missing {
                    MissingSecret::Psk => "pre-shared key",
                    MissingSecret::Password => "password",
                };
                return Err(format!(
                    "the profile holds no {what} and there is no terminal to ask: use --password-file or \
                     --password-fd"
                ));
            }
        };
        if secret.as_bytes().is_empty() {
            Err("nothing was entered".to_owned())
        } else {
            Ok(secret)
        }
    }
}

/// Reads a profile and every file it names.
pub(crate) fn load(path: &Path, secrets: &Secrets) -> Result<Parsed, LoadFault> {
    let shown = path.display().to_string();
    let octets = read(path).map_err(|reason| LoadFault::Other(format!("{shown}: {reason}")))?;
    let octets = Secret::new(octets);
    let text = std::str::from_utf8(octets.as_bytes())
        .map_err(|_| LoadFault::Other(format!("{shown}: it is not a profile: it is not UTF-8 text")))?;
    if let Some(format) = foreign(text) {
        return Err(LoadFault::Other(format!(
            "{shown}: it is {format}; this version reads TOML profiles only"
        )));
    }
    let folder = path.parent().unwrap_or_else(|| Path::new("")).to_owned();
    let mut files = Files { folder, secrets };
    profile::parse(text, &shown, &mut files, now()).map_err(LoadFault::Profile)
}

/// The wall clock.
pub(crate) fn now() -> UnixTime {
    UnixTime(
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or(Duration::ZERO),
    )
}

/// A format that is not ours, by its first character.
fn foreign(text: &str) -> Option<&'static str> {
    match text.trim_start().get(..1)? {
        "<" => Some("XML, such as an Apple configuration profile"),
        "{" => Some("JSON, such as a strongSwan profile"),
        _ => None,
    }
}

struct Files<'a> {
    folder: PathBuf,
    secrets: &'a Secrets,
}

impl Source for Files<'_> {
    fn load(&mut self, file: &FileRef) -> Result<Vec<u8>, String> {
        read(&self.folder.join(&file.path))
    }

    fn passphrase(&mut self, what: &str, attempt: u32) -> Passphrase {
        match &self.secrets.given {
            Some(secret) if attempt == 1 => return Passphrase::Is(secret.clone()),
            Some(_) => return Passphrase::GiveUp,
            None => {}
        }
        if self.secrets.later {
            return Passphrase::Later;
        }
        if !self.secrets.terminal || attempt > ATTEMPTS {
            return Passphrase::GiveUp;
        }
        let again = if attempt == 1 { "" } else { "That was wrong. " };
        prompt_for(&format!("{again}Passphrase of {what}: ")).map_or(Passphrase::GiveUp, Passphrase::Is)
    }

    fn system_anchors(&mut self) -> Result<Vec<Certificate>, String> {
        let found = rustls_native_certs::load_native_certs();
        let certificates: Vec<Certificate> = found
            .certs
            .iter()
            .filter_map(|der| Certificate::from_der(der).ok())
            .collect();
        if !certificates.is_empty() {
            return Ok(certificates);
        }
        let reason = found
            .errors
            .first()
            .map_or_else(|| "it is empty".to_owned(), ToString::to_string);
        Err(reason)
    }
}

/// A file's octets, or why not.
fn read(path: &Path) -> Result<Vec<u8>, String> {
    let sentence = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => "there is no such file".to_owned(),
        std::io::ErrorKind::PermissionDenied => "it may not be read".to_owned(),
        std::io::ErrorKind::IsADirectory => "it is a folder".to_owned(),
        _ => error.to_string(),
    };
    let mut octets = Vec::new();
    let file = std::fs::File::open(path).map_err(sentence)?;
    file.take(MAX_FILE + 1)
        .read_to_end(&mut octets)
        .map_err(sentence)?;
    if octets.len() as u64 > MAX_FILE {
        return Err("it is too large".to_owned());
    }
    Ok(octets)
}

/// A secret from a file: its first line, without the end of the line.
fn first_line(path: &Path) -> Result<Secret, String> {
    let octets = Secret::new(read(path).map_err(|reason| format!("{}: {reason}", path.display()))?);
    let line = octets
        .as_bytes()
        .split(|octet| *octet == b'\n')
        .next()
        .unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.is_empty() {
        return Err(format!("{}: its first line is empty", path.display()));
    }
    Ok(Secret::new(line.to_vec()))
}

fn prompt_for(prompt: &str) -> Result<Secret, String> {
    // Ctrl-C must not end us while the terminal shows no typing: the signal waits until that is put back.
    let interrupt = SigSet::from(Signal::SIGINT);
    let held = interrupt.thread_block().is_ok();
    let answer = rpassword::prompt_password(prompt);
    if held {
        interrupt.thread_unblock().map_err(|error| error.to_string())?;
    }
    let text = answer.map_err(|error| format!("the terminal cannot be read: {error}"))?;
    Ok(Secret::new(text.into_bytes()))
}
