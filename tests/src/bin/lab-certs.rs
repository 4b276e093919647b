//! `lab-certs DIR` writes the lab's certificates and keys to `DIR/pki` and its standard profiles to `DIR/profiles`.

#![expect(
    clippy::print_stderr,
    reason = "a program's usage belongs on the standard error"
)]

use std::path::Path;
use std::process::ExitCode;

use peregrine_tests::lab::{certs, profile};

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(dir), None) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: lab-certs DIR");
        return ExitCode::from(2);
    };
    match write(Path::new(&dir)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab-certs: {error}");
            ExitCode::FAILURE
        }
    }
}

fn write(dir: &Path) -> Result<(), certs::Error> {
    certs::write_all(&dir.join("pki"))?;
    let profiles = dir.join("profiles");
    std::fs::create_dir_all(&profiles)?;
    for (name, profile) in profile::standard() {
        std::fs::write(
            profiles.join(format!("{name}.toml")),
            profile.to_toml(Path::new("../pki")),
        )?;
    }
    Ok(())
}
