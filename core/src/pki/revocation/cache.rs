//! What is known already, so that a tunnel that comes back need not ask again.

use std::collections::VecDeque;
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use super::Subject;
use crate::timer::UnixTime;

/// More certificates are not remembered.
const MAX_ENTRIES: usize = 64;
/// No word is remembered for longer, whatever it says of itself: authorities revoke between two lists, too.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// For so long nobody is asked again who did not answer, where that does not matter.
const UNANSWERED: Duration = Duration::from_secs(600);

/// What is known of certificates, in memory only, and bounded: a few octets for each, not what said it.
#[derive(Debug, Default)]
pub(crate) struct Cache {
    entries: VecDeque<Entry>,
}

#[derive(Debug)]
struct Entry {
    key: [u8; 32],
    since: UnixTime,
    until: UnixTime,
    known: Known,
}

/// What is known of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// It is not revoked.
    Good,
    /// Nobody could say; who was asked, and what came of it.
    Unanswered(Vec<String>),
}

fn key(subject: Subject<'_>) -> [u8; 32] {
    Sha256::new()
        .chain_update(subject.certificate.der())
        .chain_update(subject.issuer.spki_der())
        .finalize()
        .into()
}

impl Cache {
    /// What is known at `now`. A clock that was set back makes everything unknown again.
    pub(super) fn get(&self, subject: Subject<'_>, now: UnixTime) -> Option<&Known> {
        let key = key(subject);
        self.entries
            .iter()
            .find(|entry| entry.key == key && entry.since <= now && now <= entry.until)
            .map(|entry| &entry.known)
    }

    /// The certificate is not revoked, which may be believed until then.
    pub(super) fn good(&mut self, subject: Subject<'_>, until: UnixTime, now: UnixTime) {
        let latest = UnixTime(now.0.saturating_add(LONGEST));
        self.put(subject, Known::Good, until.min(latest), now);
    }

    /// Nobody could say.
    pub(super) fn unanswered(&mut self, subject: Subject<'_>, tried: Vec<String>, now: UnixTime) {
        let until = UnixTime(now.0.saturating_add(UNANSWERED));
        self.put(subject, Known::Unanswered(tried), until, now);
    }

    fn put(&mut self, subject: Subject<'_>, known: Known, until: UnixTime, now: UnixTime) {
        let key = key(subject);
        self.entries.retain(|entry| entry.key != key);
        if self.entries.len() >= MAX_ENTRIES {
            self.entries.pop_front();
        }
        self.entries.push_back(Entry {
            key,
            since: now,
            until,
            known,
        });
    }
}
