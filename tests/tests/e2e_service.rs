//! The service with real gateways: profiles, several users, the kill switch over its whole life, and what others try with its
//! socket.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, ExitCode, Output, Stdio};
use std::time::{Duration, Instant};

use peregrine_tests::lab::{self, Lab, Profile, names};
use serde_json::Value;

const SOCKET: &str = "/run/peregrined/ipc";

/// The command line where every user may run it.
const PROGRAM: &str = "/run/peregrine-for-all";

/// Members of the group and somebody who is none, by their numbers.
const MEMBER: u32 = 4201;
const OTHER_MEMBER: u32 = 4202;
const GROUP: u32 = 4242;
const NOBODY: u32 = 65_534;

fn main() -> ExitCode {
    lab::run(
        "pgserve",
        &[
            ("from_import_to_down", from_import_to_down),
            (
                "what_a_profile_does_not_hold_is_asked_for",
                what_a_profile_does_not_hold_is_asked_for,
            ),
            (
                "failures_are_told_as_in_the_foreground",
                failures_are_told_as_in_the_foreground,
            ),
            ("several_watch_the_same", several_watch_the_same),
            ("a_lock_outlives_the_service", a_lock_outlives_the_service),
            ("users_have_their_own", users_have_their_own),
            ("abuse_by_nobody", |lab| abuse(lab, NOBODY)),
            ("abuse_by_a_member", |lab| abuse(lab, MEMBER)),
        ],
    )
}

/// `peregrined run` in the client's place.
struct Service(Child);

impl Service {
    fn start(lab: &Lab) -> Self {
        // The place has an /etc of its own.
        lab.must(
            "cli",
            &[
                "sh",
                "-ec",
                &format!(
                    "grep -q ^peregrine: /etc/group || echo peregrine:x:{GROUP}:one,two >>/etc/group; \
                     grep -q ^one: /etc/passwd || printf 'one:x:{MEMBER}:{MEMBER}::/:/bin/sh\\ntwo:x:{OTHER_MEMBER}:{OTHER_MEMBER}::/:/bin/sh\\n' >>/etc/passwd"
                ),
            ],
        );
        let program = lab::program("peregrine").display().to_string();
        lab.must("cli", &["install", "-m", "755", &program, PROGRAM]);
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(lab.dir().join("log/peregrined"))
            .expect("a log");
        let child = lab
            .command("cli", lab::program("peregrined"))
            .arg("run")
            .env("RUST_LOG", "debug")
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("peregrined can be run");
        lab::eventually("the service listens", || {
            lab.run("cli", &["test", "-S", SOCKET]).status.success()
                && peregrine(lab, 0, &["status"]).status.success()
        });
        Self(child)
    }

    fn stop(mut self, signal: &str) {
        let pid = self.0.id().to_string();
        let sent = Command::new("kill").args(["-s", signal, &pid]).status();
        assert!(sent.is_ok_and(|sent| sent.success()));
        let ended = self.0.wait().expect("it ends");
        assert_eq!(ended.success(), signal == "TERM", "{signal}: {ended}");
    }

    /// In KiB.
    fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).expect("it runs");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .expect("a size");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _ended = self.0.wait();
    }
}

/// Runs `peregrine` as this user, to its end.
fn peregrine(lab: &Lab, user: u32, line: &[&str]) -> Output {
    let (user, group) = (user.to_string(), GROUP.to_string());
    let mut command = vec!["setpriv", "--reuid", &user, "--regid", &user];
    if [MEMBER.to_string(), OTHER_MEMBER.to_string()].contains(&user) {
        command.extend(["--groups", &group]);
    } else {
        command.push("--clear-groups");
    }
    command.push(PROGRAM);
    command.extend(line);
    lab.run("cli", &command)
}

fn text(octets: &[u8]) -> String {
    String::from_utf8_lossy(octets).into_owned()
}

/// The same, which must end with this exit status; what it printed.
fn ends(lab: &Lab, user: u32, line: &[&str], code: i32) -> String {
    let output = peregrine(lab, user, line);
    let said = text(&output.stdout);
    assert_eq!(
        output.status.code(),
        Some(code),
        "{line:?} as {user}: {said}{}\n{}",
        text(&output.stderr),
        lab.log("peregrined")
            .lines()
            .rev()
            .take(30)
            .collect::<Vec<_>>()
            .join("\n")
    );
    said
}

fn status(lab: &Lab) -> Value {
    serde_json::from_str(&ends(lab, 0, &["status", "--json"], 0)).expect("JSON")
}

/// Has this user import a profile under a name.
fn import(lab: &Lab, user: u32, profile: &Profile, name: &str) {
    let file = lab.profile(profile);
    let path = file.display().to_string();
    if user != 0 {
        // It names files of root's; a user's are the user's.
        let whole = ends(lab, 0, &["import", &path, "--name", "for-export", "--replace"], 0);
        assert!(whole.contains("for-export"), "{whole}");
        let whole = ends(lab, 0, &["export", "for-export"], 0);
        ends(lab, 0, &["remove", "for-export"], 0);
        let own = lab.file("whole.toml", &whole).display().to_string();
        let owner = user.to_string();
        let place = "/run/whole.toml";
        lab.must("cli", &["install", "-m", "600", "-o", &owner, &own, place]);
        ends(lab, user, &["import", place, "--name", name], 0);
        return;
    }
    ends(lab, user, &["import", &path, "--name", name, "--replace"], 0);
}

fn certificate() -> Profile {
    Profile::certificate("cert.vpn.lab", "alice")
}

fn from_import_to_down(lab: &Lab) {
    let service = Service::start(lab);
    let before = lab.snapshot();
    assert!(ends(lab, 0, &["list"], 0).contains("There is no profile yet"));
    let file = lab.profile(&certificate());
    assert_eq!(
        ends(lab, 0, &["import", &file.display().to_string()], 0),
        "Imported cert\n"
    );
    ends(lab, 0, &["import", &file.display().to_string()], 2);
    assert!(ends(lab, 0, &["import", &file.display().to_string(), "--replace"], 0).contains("Replaced cert"));
    // What was imported does not need the files any more.
    let whole = ends(lab, 0, &["export", "cert"], 0);
    assert!(
        !whole.contains("alice.key") && whole.contains("data:;base64,"),
        "{whole}"
    );
    let listed: Value = serde_json::from_str(&ends(lab, 0, &["list", "--json"], 0)).expect("JSON");
    assert_eq!(
        (&listed["name"], &listed["gateway"], &listed["is_on"]),
        (&"cert".into(), &"192.0.2.1".into(), &false.into())
    );

    let said = ends(lab, 0, &["up", "cert", "--timeout", "20"], 0);
    assert!(said.contains("Connected cert"), "{said}");
    assert!(lab.pings(names::SERVER_V4) && lab.pings(names::SERVER_V6));
    let now = status(lab);
    assert_eq!(
        (&now["state"], &now["profile"]),
        (&"connected".into(), &"cert".into())
    );
    assert!(ends(lab, 0, &["status"], 0).contains("Phase 1 · IKE SA"));
    assert!(ends(lab, 0, &["list"], 0).contains('●'));
    ends(lab, 0, &["remove", "cert"], 7);
    assert!(ends(lab, 0, &["down"], 0).contains("Disconnected"));
    assert_eq!(lab.snapshot(), before);
    assert!(
        !lab.gateway_sas().contains("cert.vpn.lab"),
        "the gateway was told"
    );
    ends(lab, 0, &["up", "nonsense"], 2);
    ends(lab, 0, &["remove", "cert"], 0);
    service.stop("TERM");
    assert_eq!(lab.snapshot(), before);
    // Without the service its commands say so.
    assert!(text(&peregrine(lab, 0, &["status"]).stderr).contains("is not running"));
    ends(lab, 0, &["status"], 7);
}

fn with_line(lab: &Lab, line: &str, arguments: &[&str], code: i32) -> String {
    let file = lab.file("secret", &format!("{line}\n"));
    let file = file.display().to_string();
    let mut whole = arguments.to_vec();
    whole.extend(["--password-file", &file]);
    ends(lab, 0, &whole, code)
}

fn what_a_profile_does_not_hold_is_asked_for(lab: &Lab) {
    let service = Service::start(lab);
    import(lab, 0, &Profile::mschapv2().without_auth("password"), "bob");
    let output = peregrine(lab, 0, &["up", "bob"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        text(&output.stderr).contains("password of bob"),
        "{}",
        text(&output.stderr)
    );
    with_line(lab, names::PASSWORD, &["up", "bob", "--timeout", "20"], 0);
    assert_eq!(status(lab)["state"], "connected");
    ends(lab, 0, &["down"], 0);

    import(
        lab,
        0,
        &Profile::radius("eap-gtc")
            .auth("username", names::CODE_USER)
            .without_auth("password"),
        "code",
    );
    let log = lab.log("peregrined");
    assert!(!log.contains(names::PASSWORD), "a password is in the log");
    service.stop("TERM");
}

fn failures_are_told_as_in_the_foreground(lab: &Lab) {
    let service = Service::start(lab);
    let before = lab.snapshot();
    for (profile, name, code) in [
        (Profile::mschapv2().auth("password", "wrong"), "wrong", 6),
        (certificate().address(names::GATEWAY_V1), "v1", 4),
        (certificate().address(names::GATEWAY_SILENT), "silent", 3),
        (Profile::certificate("mismatch.vpn.lab", "alice"), "name", 6),
        (certificate().esp_proposals(&["aes128gcm8"]), "esp", 2),
    ] {
        let file = lab.profile(&profile).display().to_string();
        if code == 2 {
            ends(lab, 0, &["import", &file, "--name", name], 2);
            continue;
        }
        ends(lab, 0, &["import", &file, "--name", name], 0);
        let said = ends(lab, 0, &["up", name, "--timeout", "28"], code);
        assert!(said.contains('✗') || said.contains("failed:"), "{said}");
        assert_eq!(status(lab)["state"], "idle");
        assert_eq!(lab.snapshot(), before);
    }
    service.stop("TERM");
}

/// A program that watches, and what it has said first.
struct Watcher(Child, String);

impl Watcher {
    fn start(lab: &Lab) -> Self {
        let mut child = lab
            .command("cli", lab::program("peregrine"))
            .args(["status", "--watch", "--json"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("it can be run");
        let stdout = child.stdout.as_mut().expect("a pipe");
        let mut first = String::new();
        BufReader::with_capacity(1, stdout)
            .read_line(&mut first)
            .expect("a line");
        Self(child, first)
    }

    fn end(mut self) -> Vec<Value> {
        let _sent = Command::new("kill")
            .args(["-s", "INT", &self.0.id().to_string()])
            .status();
        let mut said = std::mem::take(&mut self.1);
        let mut stdout = self.0.stdout.take().expect("a pipe");
        std::io::Read::read_to_string(&mut stdout, &mut said).expect("text");
        assert!(self.0.wait().expect("it ends").success());
        said.lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect()
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _ended = self.0.wait();
    }
}

fn several_watch_the_same(lab: &Lab) {
    let service = Service::start(lab);
    import(lab, 0, &certificate(), "cert");
    let watchers = [Watcher::start(lab), Watcher::start(lab), Watcher::start(lab)];
    ends(lab, 0, &["up", "cert", "--timeout", "20"], 0);
    let late = Watcher::start(lab);
    assert!(lab.pings(names::SERVER_V4));
    ends(lab, 0, &["down"], 0);
    std::thread::sleep(Duration::from_millis(300));
    let states = |events: Vec<Value>| -> Vec<String> {
        let mut states: Vec<String> = events
            .iter()
            .filter(|event| event["event"] == "status")
            .map(|event| event["state"].as_str().unwrap_or_default().to_owned())
            .collect();
        states.dedup();
        states
    };
    for watcher in watchers {
        assert_eq!(
            states(watcher.end()),
            ["idle", "connecting", "connected", "disconnecting", "idle"]
        );
    }
    assert_eq!(states(late.end()), ["connected", "disconnecting", "idle"]);
    service.stop("TERM");
}

fn leaves(lab: &Lab) -> bool {
    lab.run(
        "cli",
        &["ping", "-n", "-c", "1", "-W", "1", "-I", "wifi", "10.11.0.1"],
    )
    .status
    .success()
}

/// Ended, killed and started again, the machine is locked until somebody says `down`; and the tunnel comes back by itself.
fn a_lock_outlives_the_service(lab: &Lab) {
    let mut service = Service::start(lab);
    let before = lab.snapshot();
    assert!(leaves(lab));
    import(lab, 0, &certificate().network("kill_switch", "true"), "locked");
    ends(lab, 0, &["up", "locked", "--timeout", "20"], 0);
    for signal in ["TERM", "KILL", "ABRT"] {
        assert!(!leaves(lab));
        service.stop(signal);
        assert!(!leaves(lab), "open after {signal}");
        assert!(!lab.pings(names::SERVER_V4));
        let begun = Instant::now();
        service = Service::start(lab);
        lab::eventually("the tunnel is up by itself", || {
            status(lab)["state"] == "connected"
        });
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
        assert!(lab.pings(names::SERVER_V4) && !leaves(lab));
    }
    // One that fails leaves the machine locked, and says how to open it.
    import(
        lab,
        0,
        &Profile::mschapv2()
            .auth("password", "wrong")
            .network("kill_switch", "true"),
        "wrong",
    );
    let said = ends(lab, 0, &["up", "wrong", "--timeout", "20"], 6);
    assert!(said.contains("peregrine down"), "{said}");
    assert_eq!(status(lab)["state"], "blocked");
    assert!(!leaves(lab));
    service.stop("TERM");
    service = Service::start(lab);
    assert!(!leaves(lab));
    ends(lab, 0, &["down"], 0);
    assert!(leaves(lab));
    assert_eq!(lab.snapshot(), before);
    service.stop("TERM");
    // After `down` nothing comes back by itself.
    let service = Service::start(lab);
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(status(lab)["state"], "idle");
    assert!(leaves(lab));
    service.stop("TERM");
    assert_eq!(lab.snapshot(), before);
}

fn users_have_their_own(lab: &Lab) {
    let service = Service::start(lab);
    import(lab, 0, &certificate(), "shared");
    import(lab, MEMBER, &Profile::mschapv2(), "own");
    assert!(text(&peregrine(lab, NOBODY, &["status"]).stderr).contains("group"));
    ends(lab, NOBODY, &["up", "shared"], 7);

    let names_of = |user| {
        let listed = ends(lab, user, &["list", "--json"], 0);
        let names = listed
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).expect("JSON")["name"].to_string());
        names.collect::<Vec<_>>().join(" ")
    };
    assert!(names_of(MEMBER).contains("own") && names_of(MEMBER).contains("shared"));
    assert!(!names_of(OTHER_MEMBER).contains("own") && names_of(OTHER_MEMBER).contains("shared"));
    // What is in it is its owner's.
    assert!(ends(lab, MEMBER, &["export", "own"], 0).contains(names::PASSWORD));
    ends(lab, OTHER_MEMBER, &["export", "own"], 2);
    ends(lab, OTHER_MEMBER, &["up", "own"], 2);
    ends(lab, OTHER_MEMBER, &["remove", "own"], 2);
    ends(lab, MEMBER, &["export", "shared"], 7);
    ends(lab, MEMBER, &["remove", "shared"], 7);

    ends(lab, MEMBER, &["up", "own", "--timeout", "20"], 0);
    ends(lab, OTHER_MEMBER, &["down"], 7);
    ends(lab, OTHER_MEMBER, &["up", "shared"], 7);
    assert_eq!(status(lab)["state"], "connected");
    assert!(ends(lab, OTHER_MEMBER, &["status"], 0).contains("Connected"));
    ends(lab, MEMBER, &["down"], 0);
    ends(lab, OTHER_MEMBER, &["up", "shared", "--timeout", "20"], 0);
    // A tunnel for everybody is everybody's.
    ends(lab, MEMBER, &["down"], 0);
    ends(lab, MEMBER, &["remove", "own"], 0);
    ends(lab, 0, &["remove", "shared"], 0);
    service.stop("TERM");
}

/// Whatever another user does to the socket, the tunnel stays, nothing is learned, and the service serves.
fn abuse(lab: &Lab, user: u32) {
    let service = Service::start(lab);
    import(lab, 0, &certificate().network("kill_switch", "true"), "roots");
    // Root's tunnel, by a profile that is root's own to use.
    ends(lab, 0, &["up", "roots", "--timeout", "20"], 0);
    let (stored, memory) = (store(lab), service.memory());
    let (number, group) = (user.to_string(), GROUP.to_string());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/netns/ipc-abuse");
    let mut command = lab.command("cli", "setpriv");
    command.args(["--reuid", &number, "--regid", &number]);
    if user == MEMBER {
        command.args(["--groups", &group]);
    } else {
        command.arg("--clear-groups");
    }
    // Whoever may not read the script may run it.
    let script = std::fs::File::open(script).expect("the script");
    let output = command
        .args(["/usr/bin/python3", "-", SOCKET])
        .stdin(script)
        .output()
        .expect("it can be run");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let came: BTreeMap<String, String> = text(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON"))
        .map(|it| {
            (
                it["abuse"].as_str().unwrap_or_default().to_owned(),
                it["came"].to_string(),
            )
        })
        .collect();
    assert!(came.len() >= 40, "{} abuses", came.len());
    let said = format!(
        "{came:#?}\n{}",
        lab.log("peregrined")
            .lines()
            .rev()
            .take(40)
            .collect::<Vec<_>>()
            .join("\n")
    );
    assert!(
        !said.contains("root:") && !said.contains("BEGIN"),
        "a secret was read: {said}"
    );
    if user == NOBODY {
        let is_refused = |what: &String| what.contains("PermissionError") || what == "0";
        assert!(came.values().all(is_refused), "{said}");
    } else {
        for what in ["a file", "a device"] {
            assert!(came[what].contains("reads no files"), "{what}: {said}");
        }
        for what in ["export", "remove"] {
            assert!(came[what].contains("not_permitted"), "{what}: {said}");
        }
        for what in [
            "octets",
            "no JSON",
            "deep lists",
            "an unknown request",
            "an unknown field",
            "a command",
            "a length of 4 GiB",
        ] {
            assert!(came[what].contains("not_understood"), "{what}: {said}");
        }
        let served: usize = came["a thousand connections"].parse().expect("a number");
        assert!(served <= 16, "{served} of a thousand connections are served");
        let borne: u32 = came["a slow frame"].parse().unwrap_or_else(|_| panic!("{said}"));
        assert!((4..=8).contains(&borne), "{borne} s");
    }
    // A shared profile is everybody's to take up and down; nothing else has changed.
    if user == NOBODY {
        assert_eq!(status(lab)["state"], "connected", "{said}");
        assert!(lab.pings(names::SERVER_V4));
    }
    assert_eq!(store(lab), stored, "{said}");
    assert!(
        service.memory() < memory + 8192,
        "{} KiB, before {memory}",
        service.memory()
    );
    ends(lab, 0, &["up", "roots", "--timeout", "20"], 0);
    assert!(lab.pings(names::SERVER_V4));
    ends(lab, 0, &["down"], 0);
    ends(lab, 0, &["remove", "roots"], 0);
    service.stop("TERM");
}

/// The profiles that are kept, with their content.
fn store(lab: &Lab) -> String {
    lab.must(
        "cli",
        &[
            "sh",
            "-c",
            "cd /var/lib/peregrined/profiles && sha256sum * && ls -l",
        ],
    )
}
