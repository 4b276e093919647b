//! Finding out for all certificates of a path, asking the host for what is not known.

use std::collections::VecDeque;
use std::time::Duration;

use super::cache::{Cache, Known};
use super::{Status, Subject, Unusable, check_crl, check_ocsp, ocsp_request};
use crate::failure::HostFault;
use crate::fetch::{Fetch, FetchId, HttpUrl};
use crate::pki::cert::Certificate;
use crate::pki::error::CertError;
use crate::profile::Revocation;
use crate::rng::Rng;
use crate::timer::{Instant, UnixTime};

/// All of it may take so long: a gateway waits half a minute for an EAP answer, a user less.
const DEADLINE: Duration = Duration::from_secs(6);
/// Who is asked first has so much time before the next is asked, too.
const HEAD_START: Duration = Duration::from_secs(2);
/// Of one kind, no more URLs of a certificate are tried.
const MAX_TRIED: usize = 2;
/// No more is fetched for one path.
const MAX_FETCHES: usize = 16;

/// What a peer brought with its certificates.
#[derive(Clone, Debug, Default)]
pub(crate) struct Evidence {
    /// OCSP responses.
    pub(crate) ocsp: Vec<Vec<u8>>,
    /// Certificate revocation lists.
    pub(crate) crls: Vec<Vec<u8>>,
}

/// No certificate of a path is known to be revoked, and as much is known of each as the policy demands. Only a [`Check`]
/// makes one.
#[derive(Debug)]
pub(crate) struct NotRevoked {
    /// What could not be found out, in sentences for the user.
    pub(crate) notes: Vec<String>,
}

/// What a check may use besides its own.
pub(crate) struct Means<'a> {
    pub(crate) now: Instant,
    pub(crate) unix: UnixTime,
    pub(crate) rng: &'a mut Rng,
    pub(crate) cache: &'a mut Cache,
}

/// A path that is being checked.
#[derive(Debug)]
pub(crate) struct Check {
    is_strict: bool,
    /// Addresses of private networks may be asked.
    private: bool,
    /// The peer's certificate first, the anchor last.
    path: Vec<Certificate>,
    open: Vec<Open>,
    fetches: usize,
    deadline: Instant,
    notes: Vec<String>,
}

/// A certificate of which nothing is known yet.
#[derive(Debug)]
struct Open {
    /// Its place in the path.
    index: usize,
    /// Who was asked, and what came of it.
    tried: Vec<String>,
    sources: VecDeque<Source>,
    asked: Vec<(FetchId, Source)>,
    /// When the next source is asked although the last one has not answered.
    next_at: Instant,
}

#[derive(Clone, Debug)]
struct Source {
    kind: Kind,
    url: HttpUrl,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Ocsp,
    Crl,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Ocsp => "OCSP",
            Self::Crl => "CRL",
        }
    }

    fn look(self, octets: &[u8], subject: Subject<'_>, now: UnixTime) -> Result<Status, Unusable> {
        match self {
            Self::Ocsp => check_ocsp(octets, subject, now),
            Self::Crl => check_crl(octets, subject, now),
        }
    }
}

impl Check {
    /// Begins with what the peer brought and what is known. `path` leads from the peer's certificate to the anchor, which
    /// is not checked itself: it has proven to be trusted before anything is asked of anybody.
    ///
    /// # Errors
    ///
    /// A certificate is revoked.
    pub(crate) fn start(
        policy: Revocation,
        path: &[Certificate],
        evidence: &Evidence,
        private: bool,
        means: &mut Means<'_>,
    ) -> Result<Self, CertError> {
        let mut check = Self {
            is_strict: policy == Revocation::Strict,
            private,
            path: path.to_vec(),
            open: Vec::new(),
            fetches: 0,
            deadline: means.now + DEADLINE,
            notes: Vec::new(),
        };
        let count = match policy {
            Revocation::Off => 0,
            Revocation::Soft | Revocation::Strict => path.len().saturating_sub(1),
        };
        for index in 0..count {
            check.begin(index, evidence, means)?;
        }
        Ok(check)
    }

    fn begin(&mut self, index: usize, evidence: &Evidence, means: &mut Means<'_>) -> Result<(), CertError> {
        let Some(subject) = subject(&self.path, index) else {
            return Ok(());
        };
        let mut tried = Vec::new();
        let brought = evidence.ocsp.iter().map(|octets| (Kind::Ocsp, octets));
        let brought = brought.chain(evidence.crls.iter().map(|octets| (Kind::Crl, octets)));
        for (kind, octets) in brought {
            match kind.look(octets, subject, means.unix) {
                Ok(Status::Good { until }) => {
                    tracing::debug!(
                        subject = subject.certificate.subject_text(),
                        how = kind.name(),
                        "not revoked, says what came with it"
                    );
                    means.cache.good(subject, until, means.unix);
                    return Ok(());
                }
                Ok(Status::Revoked { since, reason }) => {
                    return Err(revoked(
                        subject,
                        since,
                        reason,
                        format!("{} that came with it", kind.name()),
                    ));
                }
                // It is about another certificate of the path.
                Err(Unusable::OtherCertificate | Unusable::OtherIssuer) => {}
                Err(error) => tried.push(format!("{} that came with it: {error}", kind.name())),
            }
        }
        match means.cache.get(subject, means.unix) {
            Some(Known::Good) => return Ok(()),
            Some(Known::Unanswered(known)) if !self.is_strict => {
                tried.extend(known.iter().cloned());
                self.notes.extend(note(subject, &tried));
                return Ok(());
            }
            Some(Known::Unanswered(_)) | None => {}
        }
        let mut sources = VecDeque::new();
        let kinds = [
            (Kind::Ocsp, subject.certificate.ocsp_urls()),
            (Kind::Crl, subject.certificate.crl_urls()),
        ];
        for (kind, urls) in kinds {
            let mut count = 0;
            for text in urls {
                match HttpUrl::parse(text) {
                    Ok(url) if count < MAX_TRIED => {
                        count += 1;
                        sources.push_back(Source { kind, url });
                    }
                    Ok(_) => {}
                    Err(error) => tried.push(format!("{} {text}: {error}", kind.name())),
                }
            }
        }
        self.open.push(Open {
            index,
            tried,
            sources,
            asked: Vec::new(),
            next_at: means.now,
        });
        Ok(())
    }

    /// What to fetch now, and what has come of the check if it is over.
    pub(crate) fn poll(
        &mut self,
        fetches: &mut Vec<Fetch>,
        means: &mut Means<'_>,
    ) -> Option<Result<NotRevoked, CertError>> {
        let is_late = means.now >= self.deadline;
        let mut open = std::mem::take(&mut self.open);
        let mut still_open = Vec::new();
        for mut it in open.drain(..) {
            if is_late {
                for (_, source) in it.asked.drain(..) {
                    it.tried.push(told(&source, "no answer in time"));
                }
                it.sources.clear();
            }
            while (it.asked.is_empty() || means.now >= it.next_at)
                && let Some(source) = it.sources.pop_front()
            {
                if self.fetches >= MAX_FETCHES {
                    it.tried.push(told(&source, "too much to fetch"));
                    continue;
                }
                self.fetches += 1;
                let id = FetchId(u32::from_be_bytes(means.rng.bytes()));
                let request = subject(&self.path, it.index).filter(|_| source.kind == Kind::Ocsp);
                fetches.push(Fetch {
                    id,
                    url: source.url.clone(),
                    post: request.map(|subject| ("application/ocsp-request", ocsp_request(subject))),
                    private: self.private,
                });
                it.asked.push((id, source));
                it.next_at = means.now + HEAD_START;
            }
            if !it.asked.is_empty() {
                still_open.push(it);
            } else if let Some(subject) = subject(&self.path, it.index) {
                if self.is_strict {
                    return Some(Err(CertError::RevocationUnknown {
                        subject: subject.certificate.subject_text(),
                        tried: it.tried,
                    }));
                }
                self.notes.extend(note(subject, &it.tried));
                means.cache.unanswered(subject, it.tried, means.unix);
            }
        }
        self.open = still_open;
        self.open.is_empty().then(|| {
            Ok(NotRevoked {
                notes: std::mem::take(&mut self.notes),
            })
        })
    }

    /// Takes what the host fetched, if this check has asked for it and does not know it yet.
    ///
    /// # Errors
    ///
    /// A certificate is revoked.
    pub(crate) fn answer(
        &mut self,
        id: FetchId,
        result: &Result<Vec<u8>, HostFault>,
        means: &mut Means<'_>,
    ) -> Result<(), CertError> {
        let place = |it: &Open| it.asked.iter().position(|(asked, _)| *asked == id);
        let Some((at, place)) = self
            .open
            .iter()
            .enumerate()
            .find_map(|(at, it)| place(it).map(|place| (at, place)))
        else {
            return Ok(());
        };
        let Some(it) = self.open.get_mut(at) else {
            return Ok(());
        };
        let (_, source) = it.asked.remove(place);
        let Some(subject) = subject(&self.path, it.index) else {
            return Ok(());
        };
        let said = match result {
            Ok(octets) => source
                .kind
                .look(octets, subject, means.unix)
                .map_err(|error| error.to_string()),
            Err(fault) => Err(fault.reason.clone()),
        };
        match said {
            Ok(Status::Good { until }) => {
                tracing::debug!(subject = subject.certificate.subject_text(), url = %source.url, "not revoked");
                means.cache.good(subject, until, means.unix);
                self.open.remove(at);
                Ok(())
            }
            Ok(Status::Revoked { since, reason }) => Err(revoked(
                subject,
                since,
                reason,
                format!("{} {}", source.kind.name(), source.url),
            )),
            Err(why) => {
                it.tried.push(told(&source, &why));
                Ok(())
            }
        }
    }

    /// When to call [`Check::poll`] if nothing is answered before.
    pub(crate) fn poll_timeout(&self) -> Instant {
        let waiting = self.open.iter().filter(|it| !it.sources.is_empty());
        waiting
            .map(|it| it.next_at)
            .chain([self.deadline])
            .min()
            .unwrap_or(self.deadline)
    }
}

fn subject(path: &[Certificate], index: usize) -> Option<Subject<'_>> {
    match path.get(index..)? {
        [certificate, issuer, ..] => Some(Subject { certificate, issuer }),
        _ => None,
    }
}

fn told(source: &Source, why: &str) -> String {
    format!("{} {}: {why}", source.kind.name(), source.url)
}

/// What the user is told when nobody could say whether a certificate was revoked. Nothing if the certificate names nobody
/// who could: then it is no news.
fn note(subject: Subject<'_>, tried: &[String]) -> Option<String> {
    let subject = subject.certificate.subject_text();
    if tried.is_empty() {
        tracing::debug!(
            subject,
            "the certificate names nobody who could tell whether it was revoked"
        );
        return None;
    }
    let tried = tried.join("; ");
    tracing::warn!(
        subject,
        tried,
        "whether a certificate was revoked could not be found out"
    );
    Some(format!(
        "Whether the certificate “{subject}” was revoked could not be found out: {tried}."
    ))
}

fn revoked(subject: Subject<'_>, since: UnixTime, reason: Option<&'static str>, by: String) -> CertError {
    CertError::Revoked {
        subject: subject.certificate.subject_text(),
        since,
        reason,
        by,
    }
}
