//! Typed access to a TOML text that knows where everything is, and keeps account of it.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::report::{ProfileError, ProfileErrors, Remark, Report, Setting};

/// A value that is not acceptable: where, and why.
pub(super) struct Fault {
    pub(super) span: Range<usize>,
    pub(super) message: String,
}

/// The keys of a table.
pub(super) struct Schema {
    /// The table's name; empty for the top level.
    pub(super) table: &'static str,
    pub(super) keys: &'static [&'static str],
}

/// A table of the text, or the absence of one.
#[derive(Clone, Copy)]
pub(super) struct Section<'a, 't> {
    name: &'static str,
    table: Option<&'a DeTable<'t>>,
}

impl<'a, 't> Section<'a, 't> {
    /// The full name of a key.
    pub(super) fn key(&self, key: &str) -> String {
        full_name(self.name, key)
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.find(key).is_some()
    }

    fn find(&self, key: &str) -> Option<(&'a Spanned<toml::de::DeString<'t>>, &'a Spanned<DeValue<'t>>)> {
        self.table?.iter().find(|(known, _)| known.get_ref() == key)
    }
}

/// Reads one text.
pub(super) struct Reader<'t> {
    text: &'t str,
    schemas: &'static [Schema],
    errors: Vec<(usize, ProfileError)>,
    report: Report,
}

impl<'t> Reader<'t> {
    pub(super) const fn new(text: &'t str, schemas: &'static [Schema]) -> Self {
        Self {
            text,
            schemas,
            errors: Vec::new(),
            report: Report {
                used: Vec::new(),
                defaulted: Vec::new(),
                warnings: Vec::new(),
                not_used: Vec::new(),
            },
        }
    }

    /// What was found, in the order of the schemas, or everything that is wrong, in the order of the text.
    pub(super) fn finish(mut self, file: &str) -> Result<Report, ProfileErrors> {
        let rank = |key: &str| {
            let known = |schema: &Schema| {
                schema
                    .keys
                    .iter()
                    .map(|k| full_name(schema.table, k))
                    .collect::<Vec<_>>()
            };
            self.schemas.iter().flat_map(known).position(|known| known == key)
        };
        if self.errors.is_empty() {
            self.report.used.sort_by_key(|setting| rank(&setting.key));
            self.report.defaulted.sort_by_key(|setting| rank(&setting.key));
            self.report.warnings.sort_by_key(|remark| rank(&remark.key));
            self.report.not_used.sort_by_key(|remark| rank(&remark.key));
            return Ok(self.report);
        }
        self.errors
            .sort_by_key(|(offset, error)| (*offset, error.key.as_deref().and_then(rank)));
        let errors = self.errors.into_iter().map(|(_, error)| error).collect();
        Err(ProfileErrors {
            file: file.to_owned(),
            errors,
        })
    }

    pub(super) const fn is_sound(&self) -> bool {
        self.errors.is_empty()
    }

    pub(super) fn error(&mut self, span: Range<usize>, key: Option<String>, message: impl Into<String>) {
        let (line, column) = place(self.text, span.start);
        self.errors.push((
            span.start,
            ProfileError {
                line,
                column,
                key,
                message: message.into(),
            },
        ));
    }

    /// An error at a key that is there, or about one that is not, at its table.
    pub(super) fn error_at(&mut self, section: Section<'_, '_>, key: &str, message: impl Into<String>) {
        let span = section.find(key).map(|(found, _)| found.span());
        let span = span.unwrap_or_else(|| self.section_start(section));
        self.error(span, Some(section.key(key)), message);
    }

    pub(super) fn warn(&mut self, section: Section<'_, '_>, key: &str, message: impl Into<String>) {
        let remark = self.remark(section, key, message);
        self.report.warnings.push(remark);
    }

    /// A key that is read and checked, and then serves nothing.
    pub(super) fn not_used(&mut self, section: Section<'_, '_>, key: &str, message: impl Into<String>) {
        let remark = self.remark(section, key, message);
        self.report.used.retain(|setting| setting.key != remark.key);
        self.report.not_used.push(remark);
    }

    pub(super) fn defaulted(&mut self, section: Section<'_, '_>, key: &str, value: impl Into<String>) {
        self.report.defaulted.push(Setting {
            key: section.key(key),
            value: value.into(),
            line: None,
        });
    }

    pub(super) fn used(&mut self, section: Section<'_, '_>, key: &str, value: impl Into<String>) {
        let line = self.line(section, key);
        self.report.used.push(Setting {
            key: section.key(key),
            value: value.into(),
            line,
        });
    }

    /// The tables of the schemas in their order. Reports every key and table that no schema knows.
    pub(super) fn sections<'a>(&mut self, document: &'a DeTable<'t>) -> Vec<Section<'a, 't>> {
        let schemas = self.schemas;
        let known_at_top = |key: &str| {
            schemas
                .iter()
                .any(|s| s.table == key || s.table.is_empty() && s.keys.contains(&key))
        };
        for (key, _) in document.iter().filter(|(key, _)| !known_at_top(key.get_ref())) {
            let tables = schemas
                .iter()
                .map(|schema| schema.table)
                .filter(|table| !table.is_empty());
            let top = schemas
                .iter()
                .filter(|schema| schema.table.is_empty())
                .flat_map(|schema| schema.keys);
            let message = unknown(key.get_ref(), tables.chain(top.copied()), "", schemas);
            self.error(key.span(), Some(key.get_ref().to_string()), message);
        }
        schemas
            .iter()
            .map(|schema| self.section(document, schema, schemas))
            .collect()
    }

    fn section<'a>(&mut self, document: &'a DeTable<'t>, schema: &Schema, all: &[Schema]) -> Section<'a, 't> {
        if schema.table.is_empty() {
            return Section {
                name: "",
                table: Some(document),
            };
        }
        let found = document.iter().find(|(key, _)| key.get_ref() == schema.table);
        let Some((key, value)) = found else {
            return Section {
                name: schema.table,
                table: None,
            };
        };
        let DeValue::Table(table) = value.get_ref() else {
            let message = format!("must be a table: write [{}] on a line of its own", schema.table);
            self.error(key.span(), Some(schema.table.to_owned()), message);
            return Section {
                name: schema.table,
                table: None,
            };
        };
        for (key, _) in table
            .iter()
            .filter(|(key, _)| !schema.keys.contains(&key.get_ref().as_ref()))
        {
            let message = unknown(key.get_ref(), schema.keys.iter().copied(), schema.table, all);
            self.error(
                key.span(),
                Some(format!("{}.{}", schema.table, key.get_ref())),
                message,
            );
        }
        Section {
            name: schema.table,
            table: Some(table),
        }
    }

    /// The value of a key: none when it is absent, or wrong and reported.
    pub(super) fn value<T>(
        &mut self,
        section: Section<'_, 't>,
        key: &str,
        read: impl FnOnce(&Self, &Spanned<DeValue<'t>>) -> Result<T, Fault>,
    ) -> Option<T> {
        let (_, value) = section.find(key)?;
        match read(self, value) {
            Ok(read) => {
                self.used(section, key, shown(value.get_ref()));
                Some(read)
            }
            Err(fault) => {
                self.error(fault.span, Some(section.key(key)), fault.message);
                None
            }
        }
    }

    /// The value of a key, or the one that holds when the key is absent, which is then reported as `shown`.
    pub(super) fn value_or<T>(
        &mut self,
        section: Section<'_, 't>,
        key: &str,
        default: T,
        shown: impl Into<String>,
        read: impl FnOnce(&Self, &Spanned<DeValue<'t>>) -> Result<T, Fault>,
    ) -> T {
        if !section.has(key) {
            self.defaulted(section, key, shown);
            return default;
        }
        self.value(section, key, read).unwrap_or(default)
    }

    /// The text of a key, reported as there but not as text: for secrets, and for what is reported otherwise.
    pub(super) fn silent_text<'a>(
        &mut self,
        section: Section<'a, 't>,
        key: &str,
    ) -> Option<(&'a str, Range<usize>)> {
        let (_, value) = section.find(key)?;
        match text(value) {
            Ok(text) => Some((text, value.span())),
            Err(fault) => {
                self.error(fault.span, Some(section.key(key)), fault.message);
                None
            }
        }
    }

    /// The texts of a key that holds one or a list of them, with their places; not reported as used.
    pub(super) fn silent_texts<'a>(
        &mut self,
        section: Section<'a, 't>,
        key: &str,
    ) -> Option<Vec<(&'a str, Range<usize>)>> {
        let (_, value) = section.find(key)?;
        match texts(value) {
            Ok(texts) => Some(texts),
            Err(fault) => {
                self.error(fault.span, Some(section.key(key)), fault.message);
                None
            }
        }
    }

    /// Where a part of a text value is in the file, or the whole value when it is written with escapes.
    pub(super) fn part(&self, value: Range<usize>, part: Range<usize>, len: usize) -> Range<usize> {
        if value.len() == len + 2 {
            value.start + 1 + part.start..value.start + 1 + part.end
        } else {
            value
        }
    }

    fn line(&self, section: Section<'_, '_>, key: &str) -> Option<usize> {
        section
            .find(key)
            .map(|(found, _)| place(self.text, found.span().start).0)
    }

    fn remark(&self, section: Section<'_, '_>, key: &str, message: impl Into<String>) -> Remark {
        Remark {
            key: section.key(key),
            message: message.into(),
            line: self.line(section, key),
        }
    }

    /// The header of a table, or the end of the text when there is none.
    fn section_start(&self, section: Section<'_, '_>) -> Range<usize> {
        let header = format!("[{}]", section.name);
        let mut offset = 0;
        for line in self.text.split_inclusive('\n') {
            if section.table.is_some() && line.trim_start().starts_with(&header) {
                return offset..offset;
            }
            offset += line.len();
        }
        if section.name.is_empty() {
            0..0
        } else {
            offset..offset
        }
    }
}

fn full_name(table: &str, key: &str) -> String {
    if table.is_empty() {
        key.to_owned()
    } else {
        format!("{table}.{key}")
    }
}

/// A text that is not empty.
pub(super) fn text<'a>(value: &'a Spanned<DeValue<'_>>) -> Result<&'a str, Fault> {
    match value.get_ref() {
        DeValue::String(text) if text.trim().is_empty() => Err(fault(value, "must not be empty")),
        DeValue::String(text) => Ok(text),
        other => Err(fault(value, wrong_type("a text in quotation marks", other))),
    }
}

/// One text, or a list with at least one.
pub(super) fn texts<'a>(value: &'a Spanned<DeValue<'_>>) -> Result<Vec<(&'a str, Range<usize>)>, Fault> {
    let DeValue::Array(items) = value.get_ref() else {
        return match value.get_ref() {
            DeValue::String(_) => Ok(vec![(text(value)?, value.span())]),
            other => Err(fault(value, wrong_type("a list of texts", other))),
        };
    };
    if items.is_empty() {
        return Err(fault(value, "must not be empty"));
    }
    items.iter().map(|item| Ok((text(item)?, item.span()))).collect()
}

/// `true` or `false`.
pub(super) fn boolean(value: &Spanned<DeValue<'_>>) -> Result<bool, Fault> {
    match value.get_ref() {
        DeValue::Boolean(value) => Ok(*value),
        other => Err(fault(value, wrong_type("true or false", other))),
    }
}

/// A number within limits.
pub(super) fn number(
    value: &Spanned<DeValue<'_>>,
    limits: std::ops::RangeInclusive<u16>,
) -> Result<u16, Fault> {
    let limits = u64::from(*limits.start())..=u64::from(*limits.end());
    let number = large_number(value, limits)?;
    Ok(u16::try_from(number).unwrap_or(u16::MAX))
}

/// The same for larger numbers.
pub(super) fn large_number(
    value: &Spanned<DeValue<'_>>,
    limits: std::ops::RangeInclusive<u64>,
) -> Result<u64, Fault> {
    let DeValue::Integer(integer) = value.get_ref() else {
        return Err(fault(value, wrong_type("a number", value.get_ref())));
    };
    u64::from_str_radix(integer.as_str(), integer.radix())
        .ok()
        .filter(|number| limits.contains(number))
        .ok_or_else(|| {
            fault(
                value,
                format!("must be a number from {} to {}", limits.start(), limits.end()),
            )
        })
}

pub(super) fn fault(value: &Spanned<DeValue<'_>>, message: impl Into<String>) -> Fault {
    Fault {
        span: value.span(),
        message: message.into(),
    }
}

pub(super) fn wrong_type(wanted: &str, found: &DeValue<'_>) -> String {
    let found = match found {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) | DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    };
    format!("must be {wanted}, not {found}")
}

/// A value for the report: what is written, without quotation marks; PEM blocks are named only.
fn shown(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => text.to_string(),
        DeValue::Integer(number) => number.as_str().to_owned(),
        DeValue::Float(number) => number.as_str().to_owned(),
        DeValue::Boolean(value) => value.to_string(),
        DeValue::Datetime(value) => value.to_string(),
        DeValue::Array(items) => items
            .iter()
            .map(|item| shown(item.get_ref()))
            .collect::<Vec<_>>()
            .join(", "),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

/// The sentence about a key that nobody knows, with the likeliest intention.
fn unknown<'k>(
    key: &str,
    here: impl Iterator<Item = &'k str>,
    table: &'static str,
    schemas: &[Schema],
) -> String {
    let lower = key.to_ascii_lowercase();
    if let Some(other) = schemas
        .iter()
        .find(|s| s.table != table && s.keys.contains(&lower.as_str()))
    {
        let place = if other.table.is_empty() {
            "at the top, before the first table".to_owned()
        } else {
            format!("in [{}]", other.table)
        };
        return format!("unknown key; `{lower}` belongs {place}");
    }
    let mut here: Vec<&str> = here.collect();
    let nearest = here
        .iter()
        .map(|known| (strsim::osa_distance(&lower, known), *known))
        .filter(|(distance, known)| *distance <= known.len().max(3) / 3)
        .min();
    match nearest {
        Some((_, known)) => format!("unknown key; did you mean `{known}`?"),
        None => {
            here.sort_unstable();
            format!("unknown key; known here are {}", here.join(", "))
        }
    }
}

/// The line and the column, in characters, of an octet offset; both from 1.
pub(super) fn place(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let line = before.matches('\n').count() + 1;
    (
        line,
        before.get(line_start..).unwrap_or_default().chars().count() + 1,
    )
}
