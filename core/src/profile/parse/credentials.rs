//! The part of a profile that is made of certificates, keys and secrets.

use std::ops::Range;

use super::super::reader::Section;
use super::super::{Anchors, Auth, AuthKind, Credentials, Identity};
use super::{FileRef, Method, Parser, Passphrase};
use base64ct::{Base64, Encoding as _};

use crate::crypto::Secret;
use crate::pki::{self, Certificate, LoadError, PrivateKey};

/// Fewer characters can be guessed by whoever answers in the gateway's place (RFC 7296, section 2.15).
const WEAK_PSK: usize = 20;
const ENCRYPTED: &str = "encrypted; its passphrase is asked for when connecting";

/// Something that may be encrypted.
enum Opened<T> {
    Open(T),
    /// It stays closed for now.
    Closed,
}

impl<'t> Parser<'t, '_> {
    /// Certification authorities from one or more files or PEM blocks.
    pub(super) fn anchors(&mut self, section: Section<'_, 't>, key: &str) -> Option<Anchors> {
        let mut certificates = Vec::new();
        let mut shown = Vec::new();
        for (text, span) in self.reader.silent_texts(section, key)? {
            let loaded = self.certificates(section, key, text, span)?;
            for certificate in &loaded {
                shown.push(self.describe(section, key, text, certificate));
                if !certificate.is_ca() {
                    let message = format!("{} is not a certification authority", certificate.subject_text());
                    self.reader.warn(section, key, message);
                }
            }
            certificates.extend(loaded);
        }
        self.reader.used(section, key, shown.join("; "));
        Some(Anchors {
            certificates,
            system: false,
        })
    }

    /// The gateway's own certificate.
    pub(super) fn pin(&mut self, section: Section<'_, 't>) -> Option<Certificate> {
        let (text, span) = self.reader.silent_text(section, "certificate")?;
        let certificates = self.certificates(section, "certificate", text, span.clone())?;
        let [certificate] = <[Certificate; 1]>::try_from(certificates)
            .map_err(|certificates| {
                let message = format!("must be one certificate, but there are {}", certificates.len());
                self.reader.error(span, Some(section.key("certificate")), message);
            })
            .ok()?;
        let shown = self.describe(section, "certificate", text, &certificate);
        self.reader.used(section, "certificate", shown);
        Some(certificate)
    }

    /// What proves who we are. Opens private keys last, since that may ask for a passphrase.
    pub(super) fn credentials(
        &mut self,
        section: Section<'_, 't>,
        method: Method,
        auth: Option<&Auth>,
    ) -> Option<Credentials> {
        let mut credentials = Credentials::default();
        if method.kind == AuthKind::Psk {
            credentials.psk = self.psk(section);
            self.default_identity(section, "this machine's address");
        }
        if method.kind.needs_username() {
            credentials.password = self.password(section);
        }
        if method.needs_certificate() {
            (credentials.key, credentials.chain) = self.key_and_chain(section)?;
            match credentials.chain.first() {
                Some(ours) => self.check_own_certificate(section, ours, auth),
                None => self.default_identity(section, "the certificate's"),
            }
        } else if let Some(name) = auth.and_then(Auth::user_identity) {
            self.default_identity(section, &name);
        }
        Some(credentials)
    }

    fn psk(&mut self, section: Section<'_, 't>) -> Option<Secret> {
        let Some((text, _)) = self.reader.silent_text(section, "psk") else {
            if !section.has("psk") {
                self.reader.defaulted(section, "psk", "asked for when connecting");
            }
            return None;
        };
        self.reader.used(section, "psk", "(hidden)");
        self.reader.warn(
            section,
            "psk",
            "the pre-shared key is readable by everybody who can read this file",
        );
        if is_weak_psk(text.as_bytes()) {
            self.reader.warn(section, "psk", WEAK_PSK_WARNING);
        }
        Some(Secret::new(text.as_bytes().to_vec()))
    }

    fn password(&mut self, section: Section<'_, 't>) -> Option<Secret> {
        let Some((text, _)) = self.reader.silent_text(section, "password") else {
            if !section.has("password") {
                self.reader
                    .defaulted(section, "password", "asked for when connecting");
            }
            return None;
        };
        self.reader.used(section, "password", "(hidden)");
        self.reader.warn(
            section,
            "password",
            "the password is readable by everybody who can read this file",
        );
        Some(Secret::new(text.as_bytes().to_vec()))
    }

    fn key_and_chain(&mut self, section: Section<'_, 't>) -> Option<(Option<PrivateKey>, Vec<Certificate>)> {
        if section.has("pkcs12") {
            for key in ["certificate", "key"].into_iter().filter(|key| section.has(key)) {
                self.reader
                    .error_at(section, key, "cannot be combined with pkcs12, which holds both");
            }
            return self.pkcs12(section);
        }
        if !section.has("certificate") {
            if !section.has("pkcs11") {
                let message =
                    "is missing: the certificate with its key, or pkcs12, is needed for this method";
                self.reader.error_at(section, "certificate", message);
            }
            return None;
        }
        if !section.has("key") {
            self.reader
                .error_at(section, "key", "is missing: the private key of the certificate");
        }
        let (text, span) = self.reader.silent_text(section, "certificate")?;
        let mut chain = self.certificates(section, "certificate", text, span)?;
        let (key_text, key_span) = self.reader.silent_text(section, "key")?;
        let octets = self.octets(section, "key", key_text, key_span.clone())?;
        let what = name_of(section, "key", key_text);
        let load = |passphrase: Option<&Secret>| pki::load_private_key(&octets, passphrase);
        let Opened::Open(key) = self.open(section, "key", key_span, &what, load)? else {
            let shown = name_of(section, "certificate", text);
            self.reader.used(section, "certificate", shown);
            self.reader.used(section, "key", format!("{what} ({ENCRYPTED})"));
            return Some((None, chain));
        };
        let ours = chain.iter().position(|certificate| key.matches(certificate));
        let Some(ours) = ours else {
            let subject = chain.first().map(Certificate::subject_text).unwrap_or_default();
            let message = format!("{what} is not the private key of the certificate {subject}");
            self.reader.error_at(section, "key", message);
            return None;
        };
        chain.swap(0, ours);
        let shown = self.describe(section, "certificate", text, chain.first()?);
        self.reader.used(section, "certificate", shown);
        self.reader.used(section, "key", what);
        Some((Some(key), chain))
    }

    fn pkcs12(&mut self, section: Section<'_, 't>) -> Option<(Option<PrivateKey>, Vec<Certificate>)> {
        let (text, span) = self.reader.silent_text(section, "pkcs12")?;
        let octets = self.octets(section, "pkcs12", text, span.clone())?;
        let what = name_of(section, "pkcs12", text);
        let load = |passphrase: Option<&Secret>| pki::load_pkcs12(&octets, passphrase);
        let Opened::Open((key, chain)) = self.open(section, "pkcs12", span, &what, load)? else {
            self.reader
                .used(section, "pkcs12", format!("{what} ({ENCRYPTED})"));
            return Some((None, Vec::new()));
        };
        let shown = self.describe(section, "pkcs12", text, chain.first()?);
        self.reader.used(section, "pkcs12", shown);
        Some((Some(key), chain))
    }

    /// Opens something that may be encrypted, asking for passphrases until one fits or nobody gives another.
    fn open<T>(
        &mut self,
        section: Section<'_, 't>,
        key: &str,
        span: Range<usize>,
        what: &str,
        load: impl Fn(Option<&Secret>) -> Result<T, LoadError>,
    ) -> Option<Opened<T>> {
        if !self.reader.is_sound() {
            // Nobody should type a passphrase for a profile that cannot be used anyway.
            return None;
        }
        let mut result = load(None);
        let mut attempt = 0;
        while let Err(LoadError::PassphraseNeeded | LoadError::WrongPassphrase) = result {
            attempt += 1;
            match self.source.passphrase(what, attempt) {
                Passphrase::Is(passphrase) => result = load(Some(&passphrase)),
                Passphrase::GiveUp => break,
                Passphrase::Later => return Some(Opened::Closed),
            }
        }
        match result {
            Ok(opened) => Some(Opened::Open(opened)),
            Err(error) => {
                self.reader
                    .error(span, Some(section.key(key)), format!("{what}: {error}"));
                None
            }
        }
    }

    fn check_own_certificate(&mut self, section: Section<'_, 't>, ours: &Certificate, auth: Option<&Auth>) {
        match auth.and_then(|auth| auth.identity.as_ref()) {
            None => {
                let identity = Identity::of_certificate(ours);
                self.default_identity(section, &format!("{identity} (from the certificate)"));
            }
            Some(identity) if !pki::carries(ours, identity).unwrap_or(false) => {
                let message = format!(
                    "the certificate does not carry {identity}, so that most gateways will refuse it"
                );
                self.reader.warn(section, "identity", message);
            }
            Some(_) => {}
        }
    }

    fn default_identity(&mut self, section: Section<'_, 't>, shown: &str) {
        if !section.has("identity") {
            self.reader.defaulted(section, "identity", shown);
        }
    }

    /// The certificates of a file or a PEM block; at least one.
    fn certificates(
        &mut self,
        section: Section<'_, 't>,
        key: &str,
        text: &str,
        span: Range<usize>,
    ) -> Option<Vec<Certificate>> {
        let octets = self.octets(section, key, text, span.clone())?;
        match pki::load_certificates(&octets) {
            Ok(certificates) => Some(certificates),
            Err(error) => {
                let message = format!("{}: {error}", name_of(section, key, text));
                self.reader.error(span, Some(section.key(key)), message);
                None
            }
        }
    }

    /// The octets of a file, or of a PEM block in the profile itself.
    pub(super) fn octets(
        &mut self,
        section: Section<'_, 't>,
        key: &str,
        text: &str,
        span: Range<usize>,
    ) -> Option<zeroize::Zeroizing<Vec<u8>>> {
        if is_inline(text) {
            return Some(text.as_bytes().to_vec().into());
        }
        if let Some(base64) = text.strip_prefix(DATA) {
            let decoded = Base64::decode_vec(base64);
            if decoded.is_err() {
                let message = "what follows `data:;base64,` is no base64";
                self.reader.error(span, Some(section.key(key)), message);
            }
            return decoded.ok().map(Into::into);
        }
        match self.source.load(&FileRef {
            key: section.key(key),
            path: text.to_owned(),
        }) {
            Ok(octets) => Some(octets.into()),
            Err(reason) => {
                let message = format!("{}: {reason}", name_of(section, key, text));
                self.reader.error(span, Some(section.key(key)), message);
                None
            }
        }
    }

    /// A certificate for the report, with a warning when it is not valid now.
    fn describe(
        &mut self,
        section: Section<'_, 't>,
        key: &str,
        text: &str,
        certificate: &Certificate,
    ) -> String {
        let subject = certificate.subject_text();
        if certificate.not_after() < self.now {
            let message = format!(
                "the certificate {subject} expired on {}",
                day(certificate.not_after())
            );
            self.reader.warn(section, key, message);
        } else if certificate.not_before() > self.now {
            let message = format!(
                "the certificate {subject} is valid from {}",
                day(certificate.not_before())
            );
            self.reader.warn(section, key, message);
        }
        format!(
            "{}: {subject}, valid until {}",
            name_of(section, key, text),
            day(certificate.not_after())
        )
    }
}

/// Whether a pre-shared key is short enough to be guessed.
#[must_use]
pub fn is_weak_psk(psk: &[u8]) -> bool {
    String::from_utf8_lossy(psk).chars().count() < WEAK_PSK
}

/// What to say about a pre-shared key that [`is_weak_psk`].
pub const WEAK_PSK_WARNING: &str =
    "shorter than 20 characters: whoever answers in the gateway's place can guess it at leisure";

fn is_inline(text: &str) -> bool {
    text.contains("-----BEGIN ")
}

/// How a file's content begins that is in the profile itself: what follows is base64 (RFC 2397).
pub const DATA: &str = "data:;base64,";

/// The file's path as written, or that the value is in the profile itself.
pub(super) fn name_of(section: Section<'_, '_>, key: &str, text: &str) -> String {
    if text.starts_with(DATA) {
        format!("the content of {}", section.key(key))
    } else if is_inline(text) {
        format!("the PEM text of {}", section.key(key))
    } else {
        text.to_owned()
    }
}

fn day(time: crate::timer::UnixTime) -> String {
    time.to_string()
        .chars()
        .take_while(|character| *character != 'T')
        .collect()
}
