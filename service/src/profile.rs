//! Profiles as the service takes them: a text with everything in it.

use std::collections::VecDeque;

use peregrine_core::crypto::Secret;
use peregrine_core::pki::Certificate;
use peregrine_core::profile::{self, FileRef, MissingSecret, Parsed, Passphrase, Source};
use peregrine_platform::anchors;
use peregrine_platform::ipc::{Code, Refusal, Text};

/// What a profile may use: what is in it, and the answers that came with the call.
struct Inside {
    secrets: VecDeque<Secret>,
    /// A passphrase that was needed and not there, or wrong.
    missed: Option<String>,
    /// Keys stay closed: nobody is going to connect.
    later: bool,
}

impl Source for Inside {
    fn load(&mut self, _: &FileRef) -> Result<Vec<u8>, String> {
        Err("the service reads no files: their content must be in the profile".to_owned())
    }

    fn passphrase(&mut self, what: &str, attempt: u32) -> Passphrase {
        if self.later {
            return Passphrase::Later;
        }
        let next = if attempt == 1 {
            self.secrets.pop_front()
        } else {
            None
        };
        next.map_or_else(
            || {
                let wrong = if attempt == 1 { "" } else { " (it was wrong)" };
                self.missed = Some(format!("passphrase of {what}{wrong}"));
                Passphrase::GiveUp
            },
            Passphrase::Is,
        )
    }

    fn system_anchors(&mut self) -> Result<Vec<Certificate>, String> {
        anchors::system()
    }
}

/// Reads a profile without opening its keys.
pub(crate) fn check(text: &Text) -> Result<Parsed, Refusal> {
    read(text, VecDeque::new(), true)
}

/// Reads a profile with all that it takes to connect.
pub(crate) fn open(text: &Text, secrets: &[Text]) -> Result<Parsed, Refusal> {
    let secrets = secrets.iter().map(|text| text.as_secret().clone()).collect();
    read(text, secrets, false)
}

fn read(text: &Text, secrets: VecDeque<Secret>, later: bool) -> Result<Parsed, Refusal> {
    let mut inside = Inside {
        secrets,
        missed: None,
        later,
    };
    let now = peregrine_platform::clock::unix_time();
    let mut parsed = profile::parse(text.as_str(), "profile", &mut inside, now).map_err(|errors| {
        match &inside.missed {
            Some(what) => Refusal::new(Code::SecretNeeded, what.as_str()),
            None => Refusal::new(Code::BadProfile, errors.to_string()),
        }
    })?;
    if later {
        return Ok(parsed);
    }
    if let Some(missing) = parsed.missing_secret() {
        let needed = match missing {
            MissingSecret::Psk => format!("pre-shared key of {}", parsed.profile.gateway.host),
            MissingSecret::Password => {
                format!(
                    "password of {}",
                    parsed.profile.auth.username.as_deref().unwrap_or_default()
                )
            }
        };
        let secret = inside.secrets.pop_front();
        let secret = secret.ok_or_else(|| Refusal::new(Code::SecretNeeded, needed))?;
        match missing {
            MissingSecret::Psk => parsed.credentials.psk = Some(secret),
            MissingSecret::Password => parsed.credentials.password = Some(secret),
        }
    }
    Ok(parsed)
}
