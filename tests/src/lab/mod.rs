//! A small internet in network namespaces with real gateways in it (`tests/netns/lab` builds it), and the real
//! `peregrine` in the client's place of it. Everything here needs root.

pub mod certs;
mod client;
pub mod names;
pub mod profile;
mod runner;
pub mod wire;

use std::cell::Cell;
use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

pub use client::{Ended, Tunnel};
pub use profile::Profile;
pub use runner::{Case, run};
pub use wire::{Capture, Frame};

/// Seconds within which anything in the lab that is not a tunnel must be done.
const PATIENCE: Duration = Duration::from_secs(30);

/// A lab that stands, and is taken down when dropped.
pub struct Lab {
    name: String,
    dir: PathBuf,
    files: Cell<u32>,
}

impl Lab {
    /// Builds a lab. `name` and this process's number keep it apart from others on this machine. What an earlier
    /// process left behind under this name because it was killed is taken down first.
    ///
    /// # Errors
    /// When the lab's script fails; the text is what it said.
    pub fn up(name: &str) -> Result<Self, String> {
        sweep(name);
        let mut lab = Self {
            name: format!("{name}{}", std::process::id()),
            dir: PathBuf::new(),
            files: Cell::new(0),
        };
        let certs = program("lab-certs");
        let made = finish(lab.script().arg("up").arg(&certs), Duration::from_secs(120));
        if !made.status.success() {
            return Err(format!("the lab cannot be made: {}", text(&made.stderr)));
        }
        let dir = finish(lab.script().arg("dir"), PATIENCE);
        lab.dir = PathBuf::from(text(&dir.stdout).trim());
        Ok(lab)
    }

    fn script(&self) -> Command {
        let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/netns/lab"));
        command.env("PEREGRINE_LAB", &self.name);
        command
    }

    /// The lab's folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The folder of certificates and keys.
    pub fn pki(&self) -> PathBuf {
        self.dir.join("pki")
    }

    /// A new file with this content, readable by root alone.
    ///
    /// # Panics
    /// When the file cannot be written.
    pub fn file(&self, name: &str, content: &str) -> PathBuf {
        let number = self.files.replace(self.files.get() + 1);
        let path = self.dir.join(format!("{number:03}-{name}"));
        std::fs::write(&path, content).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        path
    }

    /// A profile as a file.
    pub fn profile(&self, profile: &Profile) -> PathBuf {
        self.file("profile.toml", &profile.to_toml(&self.pki()))
    }

    /// A command in a place of the lab (`cli`, `gw` ...).
    ///
    /// # Panics
    /// When the lab does not stand.
    pub fn command(&self, place: &str, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let noted = std::fs::read_to_string(self.dir.join("pid").join(format!("holder-{place}")))
            .unwrap_or_else(|error| panic!("the lab has no place '{place}': {error}"));
        let pid = noted.split_whitespace().next().unwrap_or_default().to_owned();
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &pid, "--net", "--mount", "--"])
            .arg(program);
        command
    }

    /// Runs a command in a place to its end and returns what it printed, whether it succeeded or not.
    pub fn run(&self, place: &str, line: &[&str]) -> Output {
        let (program, arguments) = line.split_first().expect("a command has a program");
        finish(self.command(place, program).args(arguments), PATIENCE)
    }

    /// Runs a command that must succeed, and returns what it printed on its standard output.
    ///
    /// # Panics
    /// When it fails.
    pub fn must(&self, place: &str, line: &[&str]) -> String {
        let output = self.run(place, line);
        assert!(
            output.status.success(),
            "{line:?} in {place} failed: {}{}",
            text(&output.stdout),
            text(&output.stderr)
        );
        text(&output.stdout)
    }

    /// Starts `peregrine connect` with a profile.
    pub fn connect(&self, profile: &Profile) -> Tunnel {
        self.connect_with(profile, &[])
    }

    /// Starts `peregrine connect` with a profile and more arguments.
    pub fn connect_with(&self, profile: &Profile, arguments: &[&str]) -> Tunnel {
        self.connect_file(&self.profile(profile), arguments)
    }

    /// Starts `peregrine connect` with a file and more arguments.
    pub fn connect_file(&self, file: &Path, arguments: &[&str]) -> Tunnel {
        self.run_client(self.command("cli", "env"), file, arguments)
    }

    /// Starts `peregrine connect` at the end of a command that runs another one (`env`, `setpriv` ...).
    pub fn run_client(&self, mut command: Command, file: &Path, arguments: &[&str]) -> Tunnel {
        command
            .arg(program("peregrine"))
            .arg("connect")
            .arg(file)
            .arg("--json")
            .args(arguments);
        Tunnel::start(command)
    }

    /// Whether a host answers a ping from the client.
    pub fn pings(&self, address: &str) -> bool {
        let ping = self.run("cli", &["ping", "-n", "-c", "2", "-i", "0.2", "-W", "2", address]);
        if !ping.status.success() {
            // Why it failed is in its words: no route, no address, or no answer.
            writeln!(io::stderr(), "{}{}", text(&ping.stdout), text(&ping.stderr))
                .expect("the test's output");
        }
        ping.status.success()
    }

    /// The client's whole network state as text: rules, routes, addresses, devices, firewall, name resolution.
    pub fn snapshot(&self) -> String {
        self.must("cli", &[concat!(env!("CARGO_MANIFEST_DIR"), "/netns/snapshot")])
    }

    /// What the gateway's strongSwan says about its SAs.
    pub fn gateway_sas(&self) -> String {
        self.must("gw", &["swanctl", "--list-sas"])
    }

    /// Kills the gateway's strongSwan without warning, and starts it again.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn restart_gateway(&self) {
        let noted = std::fs::read_to_string(self.dir.join("pid/charon-gw")).expect("the gateway runs");
        let pid = noted.split_whitespace().next().unwrap_or_default();
        let killed = Command::new("kill").args(["-KILL", pid]).status();
        assert!(
            killed.is_ok_and(|status| status.success()),
            "the gateway cannot be killed"
        );
        for step in [&["stop", "charon-gw"][..], &["swanctl", "gw"]] {
            let done = finish(self.script().args(step), PATIENCE);
            assert!(done.status.success(), "{step:?}: {}", text(&done.stderr));
        }
    }

    /// Starts the machine with Libreswan, which becomes the place `lsw`. What it says is in [`Self::log`] of `lsw`.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start_libreswan(&self) {
        let done = finish(self.script().arg("libreswan"), Duration::from_secs(180));
        assert!(done.status.success(), "{}", text(&done.stderr));
    }

    /// Runs a command on Libreswan's machine, which must succeed, and returns what it printed.
    ///
    /// # Panics
    /// When it fails.
    pub fn on_libreswan(&self, line: &[&str]) -> String {
        let done = finish(self.script().args(["exec", "lsw"]).args(line), PATIENCE);
        let said = text(&done.stdout) + &text(&done.stderr);
        assert!(
            done.status.success(),
            "{line:?} on Libreswan's machine failed: {said}"
        );
        said
    }

    /// What a place's daemon (`charon-gw`, `radius`, `name-server` ...) has logged so far.
    pub fn log(&self, daemon: &str) -> String {
        std::fs::read(self.dir.join("log").join(daemon))
            .map(|bytes| text(&bytes))
            .unwrap_or_default()
    }

    /// Starts to capture what passes an interface of a place.
    pub fn capture(&self, place: &str, interface: &str) -> Capture {
        let path = self.file("capture.pcap", "");
        Capture::start(self.command(place, "tcpdump"), interface, path, "0")
    }

    /// Starts to capture what the client sends by an interface: what its router hears on the one of the same name.
    pub fn capture_from(&self, interface: &str) -> Capture {
        let path = self.file("capture.pcap", "");
        let mut command = self.command("rtr", "tcpdump");
        command.args(["-Q", "in"]);
        Capture::start(command, interface, path, "0")
    }

    /// The same as [`Self::capture`], but only the beginnings of frames, with their headers: many more of these find room until they are written.
    pub fn capture_headers(&self, place: &str, interface: &str) -> Capture {
        let path = self.file("capture.pcap", "");
        Capture::start(self.command(place, "tcpdump"), interface, path, "128")
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let output = finish(self.script().arg("down"), PATIENCE);
        if !output.status.success() {
            let _ = io::stderr().write_all(&output.stderr);
        }
    }
}

/// Takes down the labs called `name` whose process is gone.
fn sweep(name: &str) {
    let all = std::env::var_os("PEREGRINE_LAB_DIR").unwrap_or_else(|| "/var/tmp/peregrine-lab".into());
    for entry in std::fs::read_dir(all).into_iter().flatten().flatten() {
        let lab = entry.file_name().to_string_lossy().into_owned();
        let process = lab
            .strip_prefix(name)
            .filter(|process| process.parse::<u32>().is_ok());
        if process.is_some_and(|process| !Path::new("/proc").join(process).exists()) {
            drop(Lab {
                name: lab,
                dir: entry.path(),
                files: Cell::new(0),
            });
        }
    }
}

/// A program that cargo builds: from `PEREGRINE_BIN` if it is `peregrine`, else from beside this test's folder.
///
/// # Panics
/// When it was not built.
#[must_use]
pub fn program(name: &str) -> PathBuf {
    if name == "peregrine"
        && let Some(path) = std::env::var_os("PEREGRINE_BIN")
    {
        return path.into();
    }
    let here = std::env::current_exe().expect("a running program has a path");
    let folder = here
        .parent()
        .and_then(Path::parent)
        .expect("cargo puts tests into target/PROFILE/deps");
    let path = folder.join(name);
    assert!(
        path.exists(),
        "{} is missing: build it first (./x test does)",
        path.display()
    );
    path
}

/// Runs a command to its end, which must come within `patience`.
fn finish(command: &mut Command, patience: Duration) -> Output {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?} cannot be run: {error}"));
    let stdout = child.stdout.take().map(read_all);
    let stderr = child.stderr.take().map(read_all);
    let status = wait(&mut child, patience);
    if status.is_none() {
        let _ = child.kill();
        let _ = child.wait();
    }
    let status = status.unwrap_or_else(|| panic!("{command:?} did not end within {patience:?}"));
    let collect = |reader: Option<std::thread::JoinHandle<Vec<u8>>>| {
        reader.and_then(|reader| reader.join().ok()).unwrap_or_default()
    };
    Output {
        status,
        stdout: collect(stdout),
        stderr: collect(stderr),
    }
}

fn read_all(mut from: impl Read + Send + 'static) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = from.read_to_end(&mut bytes);
        bytes
    })
}

/// Waits until a process ends; `None` when it does not within `patience`.
fn wait(child: &mut Child, patience: Duration) -> Option<std::process::ExitStatus> {
    let until = Instant::now() + patience;
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        if Instant::now() > until {
            return None;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Tries until it succeeds or half a minute is over.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < until, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
