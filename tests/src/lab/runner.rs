//! Runs the tests of one file one after the other in one lab, and reports as cargo's own harness does.
//!
//! Cargo's harness has no place to take a shared lab down, and would run tests at once that change the same routes.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test harness reports on the standard output"
)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

use super::Lab;

/// A test: its name and what it does in the lab.
pub type Case = (&'static str, fn(&Lab));

/// Runs those of `cases` whose names contain one of the arguments, or all, in a lab named `name`.
pub fn run(name: &str, cases: &[Case]) -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--list") {
        for (case, _) in cases {
            println!("{case}: test");
        }
        return ExitCode::SUCCESS;
    }
    let filters: Vec<_> = arguments
        .iter()
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    let chosen: Vec<_> = cases
        .iter()
        .filter(|(case, _)| filters.is_empty() || filters.iter().any(|filter| case.contains(filter.as_str())))
        .collect();
    println!("\nrunning {} tests", chosen.len());
    if chosen.is_empty() {
        println!("\ntest result: ok. 0 passed; 0 failed");
        return ExitCode::SUCCESS;
    }
    let began = Instant::now();
    let lab = match Lab::up(name) {
        Ok(lab) => lab,
        Err(error) => {
            eprintln!("{error}");
            println!("\ntest result: FAILED. 0 passed; {} failed", chosen.len());
            return ExitCode::FAILURE;
        }
    };
    let mut failed = Vec::new();
    for (case, test) in &chosen {
        let since = Instant::now();
        let held = catch_unwind(AssertUnwindSafe(|| test(&lab))).is_ok();
        println!(
            "test {case} ... {} ({:.1} s)",
            if held { "ok" } else { "FAILED" },
            since.elapsed().as_secs_f32()
        );
        if !held {
            failed.push(case);
        }
    }
    if let Some(keep) = std::env::var_os("PEREGRINE_LAB_KEEP").filter(|_| !failed.is_empty()) {
        println!(
            "the lab is left standing ({}): {}",
            keep.display(),
            lab.dir().display()
        );
        std::mem::forget(lab);
    }
    println!(
        "\ntest result: {}. {} passed; {} failed; finished in {:.2}s",
        if failed.is_empty() { "ok" } else { "FAILED" },
        chosen.len() - failed.len(),
        failed.len(),
        began.elapsed().as_secs_f32()
    );
    if failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
