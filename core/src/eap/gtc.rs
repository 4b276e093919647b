//! EAP-GTC (RFC 3748, section 5.6): the server asks, and the answer goes to it as it is.
//!
//! It proves nothing of the server and makes no key, which is why it runs only where the server, or the gateway before
//! it, has proven itself.

use std::fmt;

use super::text::harmless;
use super::{EapGtc, Progress, PromptKind, Question};
use crate::crypto::Secret;

/// The peer's side.
pub(super) struct Peer {
    /// The answer to the first question, if it is known.
    password: Option<Secret>,
    /// Something was answered.
    answered: bool,
}

impl Peer {
    pub(super) fn new(config: EapGtc) -> Self {
        Self {
            password: config.password,
            answered: false,
        }
    }

    /// Takes a question.
    pub(super) fn handle(&mut self, data: &[u8]) -> Progress {
        match self.password.take() {
            Some(password) => self.answer(&password),
            None => Progress::Ask(Question {
                // Only the first can be for the password: it is not asked for twice.
                kind: if self.answered {
                    PromptKind::OneTimeCode
                } else {
                    PromptKind::Password
                },
                message: message(data),
            }),
        }
    }

    /// Sends an answer.
    pub(super) fn answer(&mut self, answer: &Secret) -> Progress {
        self.answered = true;
        Progress::Reply(answer.as_bytes().to_vec())
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer")
            .field("answered", &self.answered)
            .finish_non_exhaustive()
    }
}

/// What a server wants its user to read, harmless to show, if it is more than nothing.
pub(super) fn message(data: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(data.get(..MAX_MESSAGE).unwrap_or(data));
    Some(harmless(&text, MAX_MESSAGE)).filter(|message| !message.is_empty())
}

/// As much of a question as we show, in octets.
const MAX_MESSAGE: usize = 512;
