//! Reading a profile with its files, and asking for secrets.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use peregrine_core::crypto::Secret;
use peregrine_core::pki::Certificate;
use peregrine_core::profile::{self, FileRef, MissingSecret, Parsed, Passphrase, ProfileErrors, Source};
use peregrine_core::timer::UnixTime;
use peregrine_platform::anchors;
use peregrine_platform::ipc::Text;

use crate::answers::Answers;
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
    answers: Answers,
    /// Nothing is going to be opened: an encrypted key may stay closed.
    later: bool,
}

impl Secrets {
    /// Those that the options name, or else the terminal's. `later` leaves encrypted keys closed instead of asking.
    pub(crate) fn new(options: &SecretOptions, later: bool) -> Result<Self, String> {
        Ok(Self {
            answers: Answers::new(options)?,
            later,
        })
    }

    /// Asks for a secret that the profile does not hold.
    pub(crate) fn ask(&self, missing: MissingSecret, profile: &profile::Profile) -> Result<Secret, String> {
        let (what, prompt) = match missing {
            MissingSecret::Psk => (
                "pre-shared key",
                format!("Pre-shared key of {}: ", profile.gateway.host),
            ),
            MissingSecret::Password => {
                let username = profile.auth.username.as_deref().unwrap_or_default();
                ("password", format!("Password of {username}: "))
            }
        };
        match self.answers.ask(&prompt)? {
            Some(secret) if secret.is_empty() => Err("nothing was entered".to_owned()),
            Some(secret) => Ok(secret),
            None if matches!(self.answers, Answers::Nobody) => Err(format!(
                "the profile holds no {what} and there is no terminal to ask: use --password-file or \
                 --password-fd"
            )),
            None => Err(format!("there is no line with the {what}")),
        }
    }

    /// Who answers the questions that come while connecting.
    pub(crate) fn into_answers(self) -> Answers {
        self.answers
    }
}

/// Reads a profile and every file it names.
pub(crate) fn load(path: &Path, secrets: &Secrets) -> Result<Parsed, LoadFault> {
    let shown = path.display().to_string();
    let text = text(path)?;
    let folder = path.parent().unwrap_or_else(|| Path::new("")).to_owned();
    let mut files = Files { folder, secrets };
    profile::parse(text.as_str(), &shown, &mut files, now()).map_err(LoadFault::Profile)
}

/// Reads a profile's text.
pub(crate) fn text(path: &Path) -> Result<Text, LoadFault> {
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
    Ok(Text::new(text))
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
        let attempts = match &self.secrets.answers {
            // The next line is for the next question.
            Answers::Given(_) => 1,
            Answers::Terminal | Answers::Nobody if self.secrets.later => return Passphrase::Later,
            Answers::Terminal => ATTEMPTS,
            Answers::Nobody => 0,
        };
        if attempt > attempts {
            return Passphrase::GiveUp;
        }
        let again = if attempt == 1 { "" } else { "That was wrong. " };
        let answer = self
            .secrets
            .answers
            .ask(&format!("{again}Passphrase of {what}: "));
        answer
            .unwrap_or_else(|error| {
                tracing::warn!(%error, "the passphrase cannot be read");
                None
            })
            .map_or(Passphrase::GiveUp, Passphrase::Is)
    }

    fn system_anchors(&mut self) -> Result<Vec<Certificate>, String> {
        anchors::system()
    }
}

/// A file's octets, or why not.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, String> {
    let mut octets = Vec::new();
    let file = std::fs::File::open(path).map_err(|error| sentence(&error))?;
    file.take(MAX_FILE + 1)
        .read_to_end(&mut octets)
        .map_err(|error| sentence(&error))?;
    if octets.len() as u64 > MAX_FILE {
        return Err("it is too large".to_owned());
    }
    Ok(octets)
}

/// Why a file cannot be read, as the second half of a sentence.
pub(crate) fn sentence(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "there is no such file".to_owned(),
        std::io::ErrorKind::PermissionDenied => "it may not be read".to_owned(),
        std::io::ErrorKind::IsADirectory => "it is a folder".to_owned(),
        _ => error.to_string(),
    }
}
