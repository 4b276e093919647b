//! What reading a profile brought to light: errors with their place, and what was made of the rest.

use std::fmt;

use serde::Serialize;

/// What is wrong with a profile, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ProfileError {
    /// The line, from 1.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
    /// The key, with its table: `gateway.address`. None when the text is not TOML.
    pub key: Option<String>,
    /// What is wrong, and where possible what would be right. Never holds a secret.
    pub message: String,
}

/// Everything that is wrong with a profile.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ProfileErrors {
    /// The file's name, as the caller gave it.
    pub file: String,
    /// The errors in the order of the file; at least one.
    pub errors: Vec<ProfileError>,
}

/// One line for each error: `file:line:column: key: message`.
impl fmt::Display for ProfileErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.errors.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{}:{}:{}: ", self.file, error.line, error.column)?;
            if let Some(key) = &error.key {
                write!(f, "{key}: ")?;
            }
            f.write_str(&error.message)?;
        }
        Ok(())
    }
}

impl std::error::Error for ProfileErrors {}

/// What was made of a profile. Holds no secret.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// What the profile says and the connection uses, in the order of the documentation.
    pub used: Vec<Setting>,
    /// What the profile leaves open and which value holds instead.
    pub defaulted: Vec<Setting>,
    /// What works but should be another way.
    pub warnings: Vec<Remark>,
    /// What the profile says and nothing uses.
    pub not_used: Vec<Remark>,
}

/// A key with its value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Setting {
    /// The key, with its table: `gateway.address`.
    pub key: String,
    /// The value as text; of a secret only that there is one.
    pub value: String,
    /// The line, from 1, if it comes from the profile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<usize>,
}

/// Something to know about a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Remark {
    /// The key, with its table: `gateway.address`.
    pub key: String,
    /// A sentence.
    pub message: String,
    /// The line, from 1, if it comes from the profile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<usize>,
}
