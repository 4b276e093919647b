//! `peregrine`: the command line. Turns arguments into commands, and what comes back into text or JSON.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};

mod answers;
mod args;
mod bundle;
mod check;
mod connect;
mod exit;
mod load;
mod render;
mod screen;
mod service;

use args::{Args, Command};
use exit::Exit;

fn main() -> ExitCode {
    let args = Args::parse();
    start_log(args.verbose);
    let ended = match args.command {
        Command::Connect(options) => connect::run(&options, args.verbose),
        Command::Check(options) => check::run(&options),
        Command::Import(options) => service::import(&options),
        Command::Export(options) => service::export(&options),
        Command::Remove(options) => service::remove(&options),
        Command::List(options) => service::list(&options),
        Command::Up(options) => service::up(&options),
        Command::Down => service::down(),
        Command::Status(options) => service::status(&options),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Args::command(), "peregrine", &mut script);
            print(&script)
        }
        Command::Man { command } => manual(command.as_deref()),
    };
    ended.into()
}

/// The log goes to the standard error: warnings, with `-v` what happens, with `-vv` why; `RUST_LOG` overrides.
fn start_log(verbose: u8) {
    let level = match verbose {
        0 => "warn",
        1 => "info",
        _ => "debug",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal() && screen::colours())
        .init();
}

fn manual(command: Option<&str>) -> Exit {
    let mut whole = Args::command();
    whole.build();
    let page = match command {
        None => Some(whole),
        Some(name) => whole.find_subcommand(name).cloned(),
    };
    let Some(page) = page else {
        return exit::usage(&format!("there is no command `{}`", command.unwrap_or_default()));
    };
    let mut text = Vec::new();
    match clap_mangen::Man::new(page).render(&mut text) {
        Ok(()) => print(&text),
        Err(error) => exit::unexpected(&format!("the manual page could not be made: {error}")),
    }
}

fn print(octets: &[u8]) -> Exit {
    match std::io::stdout().write_all(octets) {
        Ok(()) => Exit::Done,
        Err(error) => exit::unexpected(&format!("the standard output cannot be written: {error}")),
    }
}
