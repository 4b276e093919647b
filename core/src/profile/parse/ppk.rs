//! The part of a profile about a post-quantum pre-shared key (RFC 8784).

use super::super::Ppk;
use super::super::reader::{self, Section};
use super::Parser;
use super::credentials::name_of;
use crate::crypto::Secret;

/// The least strength (RFC 8784, section 6): half of it is left against a quantum computer.
const LEAST_BITS: usize = 256;
const KEYS: [&str; 2] = ["ppk", "ppk_file"];

impl<'t> Parser<'t, '_> {
    /// The key, by which name the gateway knows it, and whether it may do without.
    pub(super) fn ppk(&mut self, section: Section<'_, 't>) -> Option<(Ppk, Secret)> {
        let Some(key) = KEYS.into_iter().find(|key| section.has(key)) else {
            for key in ["ppk_id", "ppk_required"]
                .into_iter()
                .filter(|key| section.has(key))
            {
                self.reader.error_at(
                    section,
                    key,
                    "needs the post-quantum pre-shared key itself: ppk or ppk_file",
                );
            }
            return None;
        };
        let secret = self.ppk_secret(section, key);
        if !section.has("ppk_id") {
            let message = "is missing: the name by which the gateway knows the post-quantum pre-shared key";
            self.reader.error_at(section, "ppk_id", message);
        }
        let id = self.line(section, "ppk_id");
        let required = self
            .reader
            .value_or(section, "ppk_required", false, "false", |_, value| {
                reader::boolean(value)
            });
        let id = id?.into_bytes();
        Some((Ppk { id, required }, secret?))
    }

    fn ppk_secret(&mut self, section: Section<'_, 't>, key: &str) -> Option<Secret> {
        let (text, span) = self.reader.silent_text(section, key)?;
        let secret = if key == "ppk" {
            if section.has("ppk_file") {
                let message = "cannot be combined with ppk, which is the key itself";
                self.reader.error_at(section, "ppk_file", message);
            }
            self.reader.used(section, "ppk", "(hidden)");
            let message = "the key is readable by everybody who can read this file";
            self.reader.warn(section, "ppk", message);
            Secret::from_slice(text.as_bytes())
        } else {
            let octets = self.octets(section, key, text, span)?;
            let name = name_of(section, key, text);
            self.reader.used(section, key, name);
            Secret::from_slice(without_end_of_line(&octets))
        };
        let bits = strength(secret.as_bytes());
        if bits == 0 {
            self.reader.error_at(section, key, "is empty");
            return None;
        }
        if bits < LEAST_BITS {
            let message = format!(
                "has at most {bits} bits; against a quantum computer it needs {LEAST_BITS} random ones"
            );
            self.reader.warn(section, key, message);
        }
        Some(secret)
    }
}

/// A key that is text may stand on a line; one that is octets is all of its file.
fn without_end_of_line(octets: &[u8]) -> &[u8] {
    let line = octets
        .strip_suffix(b"\r\n")
        .or_else(|| octets.strip_suffix(b"\n"));
    line.filter(|line| line.iter().all(|octet| (b' '..=b'~').contains(octet)))
        .unwrap_or(octets)
}

/// How many bits a key of this kind has at most: as hexadecimal digits, as base64, or as octets.
fn strength(key: &[u8]) -> usize {
    let is_base64 = |octet: &u8| octet.is_ascii_alphanumeric() || b"+/-_=".contains(octet);
    let bits = if key.iter().all(u8::is_ascii_hexdigit) {
        4
    } else if key.iter().all(is_base64) {
        6
    } else {
        8
    };
    bits * key.len()
}
