//! `peregrine check`: what a profile says, and what is made of it.

use std::fmt::Write as _;
use std::io::Write as _;

use peregrine_core::profile::{Parsed, ProfileError, ProfileErrors, Remark, Report, Setting};
use serde::Serialize;

use crate::args::CheckOptions;
use crate::exit::{self, Exit};
use crate::load::{self, LoadFault, Secrets};

/// What `check --json` prints.
#[derive(Serialize)]
#[serde(tag = "event", rename = "check")]
struct Outcome<'a> {
    file: String,
    ok: bool,
    name: Option<&'a str>,
    #[serde(flatten)]
    report: Option<&'a Report>,
    errors: &'a [ProfileError],
}

/// Columns from which on a list does not fit beside its key.
const LONG: usize = 60;

pub(crate) fn run(options: &CheckOptions) -> Exit {
    let secrets = match Secrets::new(&options.secret, true) {
        Ok(secrets) => secrets,
        Err(message) => return exit::usage(&message),
    };
    let file = options.file.display().to_string();
    match load::load(&options.file, &secrets) {
        Ok(parsed) if options.json => {
            let name = Some(parsed.profile.name.as_str());
            let outcome = Outcome {
                file,
                ok: true,
                name,
                report: Some(&parsed.report),
                errors: &[],
            };
            print(&json(&outcome), Exit::Done)
        }
        Ok(parsed) => print(&text(&file, &parsed), Exit::Done),
        Err(LoadFault::Profile(errors)) if options.json => {
            let outcome = Outcome {
                file,
                ok: false,
                name: None,
                report: None,
                errors: &errors.errors,
            };
            print(&json(&outcome), Exit::Usage)
        }
        Err(LoadFault::Profile(errors)) => exit::usage(&refusal(&errors)),
        Err(LoadFault::Other(message)) => exit::usage(&message),
    }
}

/// Why a profile cannot be used, for people.
pub(crate) fn refusal(errors: &ProfileErrors) -> String {
    let count = match errors.errors.len() {
        1 => "a mistake".to_owned(),
        count => format!("{count} mistakes"),
    };
    format!("the profile has {count}:\n{errors}")
}

fn json(outcome: &Outcome<'_>) -> String {
    serde_json::to_string(outcome).unwrap_or_default() + "\n"
}

/// The report for people.
fn text(file: &str, parsed: &Parsed) -> String {
    let report = &parsed.report;
    let mut text = format!("{}: {file} can be used.\n", parsed.profile.name);
    let keys = report
        .used
        .iter()
        .chain(&report.defaulted)
        .map(|setting| setting.key.len());
    let width = keys.max().unwrap_or(0);
    settings(&mut text, "Used", &report.used, width);
    settings(
        &mut text,
        "Not in the profile, so that these hold",
        &report.defaulted,
        width,
    );
    remarks(&mut text, "Warnings", &report.warnings);
    remarks(&mut text, "In the profile, but not used", &report.not_used);
    text
}

fn settings(text: &mut String, title: &str, settings: &[Setting], width: usize) {
    if settings.is_empty() {
        return;
    }
    let _infallible = write!(text, "\n{title}:\n");
    for setting in settings {
        // A long list reads better with one item on a line.
        let value = if setting.value.len() > LONG {
            setting.value.replace(", ", &format!(",\n{:1$}", "", width + 4))
        } else {
            setting.value.clone()
        };
        let _infallible = writeln!(text, "  {:width$}  {value}", setting.key);
    }
}

fn remarks(text: &mut String, title: &str, remarks: &[Remark]) {
    if remarks.is_empty() {
        return;
    }
    let _infallible = write!(text, "\n{title}:\n");
    for remark in remarks {
        let line = remark
            .line
            .map_or_else(String::new, |line| format!("line {line}, "));
        let _infallible = writeln!(text, "  {line}{}: {}", remark.key, remark.message);
    }
}

fn print(text: &str, exit: Exit) -> Exit {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => exit,
        Err(error) => exit::unexpected(&format!("the standard output cannot be written: {error}")),
    }
}
