//! Programs of the system's that we run.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// How long it may take, with whatever else it starts.
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs the program without a shell and with a fixed path for the programs that it calls itself; its output, or what
/// it complained about.
///
/// What it says goes into files and not into pipes: a daemon that one of its hooks starts may keep them open for as
/// long as it likes. It has a process group of its own, so that Ctrl-C in a terminal does not stop it half way.
pub(super) fn run(program: &Path, arguments: &[&str], input: &str) -> io::Result<String> {
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
    // A program that closes its input unread says why, if that matters.
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
        let file = memfd_create(c"words", MFdFlags::MFD_CLOEXEC)?;
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
