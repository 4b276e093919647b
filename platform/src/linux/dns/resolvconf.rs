//! The program `resolvconf`: Debian's or openresolv's.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use peregrine_core::command::HostFault;

use super::{Refusal, Wanted, fault};

/// How long it may take, hooks included.
const PATIENCE: Duration = Duration::from_secs(10);

/// Debian's list of interfaces, the first of them first.
const INTERFACE_ORDER: &str = "/etc/resolvconf/interface-order";

/// Where Debian's keeps what it was given, each under its name.
const RECORDS: &str = "/run/resolvconf/interface";

/// The first of `candidates` that is a resolvconf and not systemd's stand-in, which only talks to systemd-resolved.
pub(super) fn find(candidates: &[PathBuf]) -> Option<PathBuf> {
    candidates.iter().find_map(|candidate| {
        let program = fs::canonicalize(candidate).ok()?;
        (program.file_name()? != "resolvectl").then(|| candidate.clone())
    })
}

/// The name under which our servers are given. Both kinds order by name, and this one comes before every physical
/// interface: Debian's has a list of patterns, of which it begins like the first; openresolv prefers `tun[0-9]*`
/// (`dynamic_order` in resolvconf.conf(5)).
pub(super) fn record_name(program: &Path, interface: &str) -> String {
    if is_openresolv(program) {
        return format!("tun0.{interface}");
    }
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
    // "Only this one", which Debian's does not know.
    let mut arguments = vec!["-a", name];
    if wanted.full && is_openresolv(program) {
        arguments.push("-x");
    }
    run(program, &arguments, &input).map_err(|error| Refusal::Failed(failed(program, "set", &error)))?;
    if !is_effective(resolv_conf, wanted.servers) {
        put_back(program, name).map_err(Refusal::Failed)?;
        return Err(Refusal::NotInCharge);
    }
    Ok(())
}

/// Whether programs that read `resolv_conf` ask our servers, or a resolver on this machine.
pub(super) fn is_effective(resolv_conf: &Path, servers: &[IpAddr]) -> bool {
    super::read_to_string(resolv_conf).is_ok_and(|content| {
        super::servers(&content)
            .next()
            .is_some_and(|first| first.is_loopback() || servers.contains(&first))
    })
}

/// What others than `name` have given, if that can be told.
pub(super) fn others(program: &Path, name: &str) -> Option<String> {
    if !is_openresolv(program) {
        let records = fs::read_dir(RECORDS).ok()?.filter_map(Result::ok);
        let others = records.filter(|record| record.file_name() != name);
        return Some(
            others
                .filter_map(|record| super::read_to_string(&record.path()).ok())
                .collect(),
        );
    }
    let list = run(program, &["-l"], "").ok()?;
    let mut is_ours = false;
    let others = list.lines().filter(|line| {
        if let Some(of) = line.strip_prefix("# resolv.conf from ") {
            is_ours = of == name;
        }
        !is_ours
    });
    Some(others.map(|line| format!("{line}\n")).collect())
}

/// Withdraws our servers. A program that is gone has nothing to withdraw.
pub(super) fn put_back(program: &Path, name: &str) -> Result<(), HostFault> {
    // openresolv alone complains about a name that it does not know, unless forced (-f).
    let forced: &[&str] = if is_openresolv(program) { &["-f"] } else { &[] };
    match run(program, &[forced, &["-d", name]].concat(), "") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(program, "withdraw", &error)),
        Ok(_) => Ok(()),
    }
}

fn is_openresolv(program: &Path) -> bool {
    run(program, &["--version"], "").is_ok_and(|words| words.contains("openresolv"))
}

fn failed(program: &Path, verb: &str, error: &io::Error) -> HostFault {
    fault(
        format!("{verb} the name servers with {}", program.display()),
        error.to_string(),
    )
}

/// Runs the program without a shell and with a fixed path for the programs that it calls itself; its output, or what
/// it complained about.
///
/// What it says goes into files and not into pipes: a daemon that one of its hooks starts may keep them open for as
/// long as it likes. It has a process group of its own, so that Ctrl-C in a terminal does not stop it half way.
fn run(program: &Path, arguments: &[&str], input: &str) -> io::Result<String> {
    let (output, complaint) = (Words::new()?, Words::new()?);
    let mut child = Command::new(program)
        .args(arguments)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(output.writer()?)
        .stderr(complaint.writer()?)
        .process_group(0)
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
            let group = i32::try_from(child.id()).map_err(io::Error::other)?;
            killpg(Pid::from_raw(group), Signal::SIGKILL)?;
            child.wait()?;
            return Err(io::Error::new(io::ErrorKind::TimedOut, "it did not end in time"));
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    if status.success() {
        return output.read();
    }
    let complaint = complaint.read()?;
    let complaint = complaint.trim();
    Err(io::Error::other(if complaint.is_empty() {
        status.to_string()
    } else {
        complaint.to_owned()
    }))
}

/// What a program says, in a file without a name.
struct Words(File);

impl Words {
    /// More than this is not looked at.
    const MOST: usize = 65_536;

    fn new() -> io::Result<Self> {
        let file = memfd_create(c"resolvconf", MFdFlags::MFD_CLOEXEC)?;
        Ok(Self(file.into()))
    }

    fn writer(&self) -> io::Result<Stdio> {
        self.0.try_clone().map(Stdio::from)
    }

    fn read(&self) -> io::Result<String> {
        let mut octets = vec![0; Self::MOST];
        let len = self.0.read_at(&mut octets, 0)?;
        octets.truncate(len);
        Ok(String::from_utf8_lossy(&octets).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_that_a_hook_starts_is_not_waited_for() {
        let begun = Instant::now();
        let said = run(
            Path::new("/bin/sh"),
            &["-c", "sleep 8 & read word; echo \"$word\""],
            "hello\n",
        );
        assert_eq!(said.unwrap(), "hello\n");
        assert!(begun.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn a_complaint_is_the_reason() {
        let error = run(Path::new("/bin/sh"), &["-c", "echo no >&2; exit 1"], "").unwrap_err();
        assert_eq!(error.to_string(), "no");
    }
}
