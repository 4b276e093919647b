//! The program `resolvconf`: Debian's or openresolv's.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use peregrine_core::command::HostFault;

use super::{Refusal, Wanted, fault};

/// How long it may take, hooks included.
const PATIENCE: Duration = Duration::from_secs(10);

/// Debian's list of interfaces, the first of them first.
const INTERFACE_ORDER: &str = "/etc/resolvconf/interface-order";

/// The first of `candidates` that is a resolvconf and not systemd's stand-in, which only talks to systemd-resolved.
pub(super) fn find(candidates: &[PathBuf]) -> Option<PathBuf> {
    candidates.iter().find_map(|candidate| {
        let program = fs::canonicalize(candidate).ok()?;
        (program.file_name()? != "resolvectl").then(|| candidate.clone())
    })
}

/// The name under which our servers are given. Debian's orders by name: one that begins like the first pattern of
/// its list comes before every physical interface.
pub(super) fn record_name(interface: &str) -> String {
    let order = fs::read_to_string(INTERFACE_ORDER).unwrap_or_default();
    let first = order.lines().map(str::trim).find_map(|line| {
        let prefix = line.strip_suffix('*')?;
        (!prefix.is_empty()
            && prefix
                .bytes()
                .all(|octet| octet.is_ascii_alphanumeric() || octet == b'-'))
        .then(|| prefix.to_owned())
    });
    first.map_or_else(|| interface.to_owned(), |prefix| format!("{prefix}.{interface}"))
}

/// Gives our servers, and looks whether that had an effect.
pub(super) fn put(
    program: &Path,
    name: &str,
    resolv_conf: &Path,
    wanted: &Wanted<'_>,
) -> Result<(), Refusal> {
    let mut input = String::new();
    for server in wanted.servers {
        let _never_fails = writeln!(input, "nameserver {server}");
    }
    if !wanted.domains.is_empty() {
        let _never_fails = writeln!(input, "search {}", wanted.domains.join(" "));
    }
    // openresolv alone knows a metric (-m) and "only this one" (-x).
    let mut arguments = vec!["-a", name];
    if run(program, &["--version"], "").is_ok_and(|words| words.contains("openresolv")) {
        arguments.extend(["-m", "0"]);
        if wanted.full {
            arguments.push("-x");
        }
    }
    run(program, &arguments, &input).map_err(|error| Refusal::Failed(failed(program, "set", &error)))?;
    let effective = super::read_to_string(resolv_conf).is_ok_and(|content| {
        super::servers(&content)
            .next()
            .is_some_and(|first| first.is_loopback() || wanted.servers.contains(&first))
    });
    if !effective {
        put_back(program, name).map_err(Refusal::Failed)?;
        return Err(Refusal::NotInCharge);
    }
    Ok(())
}

/// Withdraws our servers. A program that is gone has nothing to withdraw.
pub(super) fn put_back(program: &Path, name: &str) -> Result<(), HostFault> {
    match run(program, &["-d", name], "") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(program, "withdraw", &error)),
        Ok(_) => Ok(()),
    }
}

fn failed(program: &Path, verb: &str, error: &io::Error) -> HostFault {
    fault(
        format!("{verb} the name servers with {}", program.display()),
        error.to_string(),
    )
}

/// Runs the program without a shell and with a fixed path for the programs that it calls itself; its output, or what
/// it complained about.
fn run(program: &Path, arguments: &[&str], input: &str) -> io::Result<String> {
    let mut child = Command::new(program)
        .args(arguments)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    // Both are far smaller than a pipe; a program that closes its input unread is no failure.
    if let Some(mut stdin) = child.stdin.take() {
        let _unread = stdin.write_all(input.as_bytes());
    }
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            return Err(io::Error::new(io::ErrorKind::TimedOut, "it did not end in time"));
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let mut words = [String::new(), String::new()];
    let [output, complaint] = &mut words;
    if let Some(stdout) = &mut child.stdout {
        stdout.read_to_string(output)?;
    }
    if let Some(stderr) = &mut child.stderr {
        stderr.read_to_string(complaint)?;
    }
    let [output, complaint] = words;
    if status.success() {
        return Ok(output);
    }
    let complaint = complaint.trim();
    Err(io::Error::other(if complaint.is_empty() {
        status.to_string()
    } else {
        complaint.to_owned()
    }))
}
