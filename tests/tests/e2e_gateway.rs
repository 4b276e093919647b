//! The gateway of the virtual-time tests against strongSwan's client: both must mean the same by keys, rekeying, and
//! collisions.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::time::Duration;

use peregrine_tests::lab::{self, Lab, eventually, names};

const ADDRESS: &str = "192.0.2.20";
const BEHIND: &str = "10.9.9.9";

fn main() -> ExitCode {
    lab::run(
        "pggateway",
        &[
            ("strongswan_rekeys", strongswan_rekeys),
            ("our_gateway_rekeys", our_gateway_rekeys),
            ("both_rekey_at_once_and_the_gateway_loses", |lab| {
                both_rekey_at_once(lab, "gateway");
            }),
            ("both_rekey_at_once_and_strongswan_loses", |lab| {
                both_rekey_at_once(lab, "client");
            }),
            ("strongswan_moves", strongswan_moves),
            ("either_ends_it", either_ends_it),
        ],
    )
}

/// Our gateway in the lab, and strongSwan's client connected to it.
struct Scene<'a> {
    lab: &'a Lab,
    gateway: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
}

/// What our gateway tells of itself.
#[derive(Debug)]
struct Told {
    packets: usize,
    answers: usize,
    paths: String,
    /// `SPIi/SPIr` of every IKE SA.
    ike: BTreeSet<String>,
    /// `from-client/to-client` of every Child SA.
    children: BTreeSet<String>,
}

impl<'a> Scene<'a> {
    fn new(lab: &'a Lab, arguments: &[&str]) -> Self {
        let _ = lab.run(
            "v1",
            &["ip", "addr", "add", &format!("{ADDRESS}/24"), "dev", "wan"],
        );
        let program = lab::program("lab-gateway");
        let mut gateway = lab
            .command("v1", &program)
            .arg(ADDRESS)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let commands = gateway.stdin.take().unwrap();
        let mut answers = BufReader::new(gateway.stdout.take().unwrap());
        let mut line = String::new();
        answers.read_line(&mut line).unwrap();
        assert_eq!(line.trim(), "ready");
        let mut scene = Self {
            lab,
            gateway,
            commands,
            answers,
        };
        scene.start_strongswan();
        scene
    }

    fn start_strongswan(&mut self) {
        self.script(&["swanctl", "cli"]);
        let file = self.lab.file(
            "ours.conf",
            &format!(
                "connections {{ ours {{ version = 2
                   remote_addrs = {ADDRESS}
                   vips = 0.0.0.0
                   proposals = aes256gcm16-prfsha384-x25519
                   rekey_time = 0
                   local {{ auth = psk
                     id = {user} }}
                   remote {{ auth = psk
                     id = psk.vpn.lab }}
                   children {{ ours {{ remote_ts = 10.9.0.0/16
                     esp_proposals = aes256gcm16-x25519
                     rekey_time = 0 }} }} }} }}
                 secrets {{ ike-ours {{ id-1 = psk.vpn.lab
                   id-2 = {user}
                   secret = \"{psk}\" }} }}\n",
                user = names::PSK_USER,
                psk = names::PSK
            ),
        );
        let file = file.display().to_string();
        self.lab
            .must("cli", &["swanctl", "--load-all", "--noprompt", "--file", &file]);
        self.lab
            .must("cli", &["swanctl", "--initiate", "--child", "ours"]);
        self.is_in_step(1);
    }

    fn script(&self, arguments: &[&str]) {
        let lab = self.lab.dir().file_name().unwrap().to_owned();
        let status = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/netns/lab"))
            .env("PEREGRINE_LAB", lab)
            .args(arguments)
            .status()
            .unwrap();
        assert!(status.success(), "lab {arguments:?}");
    }

    fn say(&mut self, command: &str) -> Told {
        writeln!(self.commands, "{command}").unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        let field = |name: &str| {
            let start = line
                .split_whitespace()
                .find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
            start.unwrap_or_default().to_owned()
        };
        let sas = field("sas");
        let sas = sas.split(';').filter(|sa| !sa.is_empty());
        let (mut ike, mut children) = (BTreeSet::new(), BTreeSet::new());
        for sa in sas {
            let (spis, rest) = sa.split_once('[').unwrap();
            ike.insert(spis.to_owned());
            let pairs = rest.trim_end_matches(']').split(',');
            children.extend(pairs.filter(|pair| !pair.is_empty()).map(str::to_owned));
        }
        Told {
            packets: field("packets").parse().unwrap(),
            answers: field("answers").parse().unwrap(),
            paths: field("paths"),
            ike,
            children,
        }
    }

    /// The same of strongSwan.
    fn strongswan(&self) -> (BTreeSet<String>, BTreeSet<String>) {
        let list = self.lab.must("cli", &["swanctl", "--list-sas"]);
        let (mut ike, mut children, mut inbound) = (BTreeSet::new(), BTreeSet::new(), String::new());
        for line in list.lines() {
            let words: Vec<&str> = line.split([' ', ',']).filter(|word| !word.is_empty()).collect();
            if let [i, r] = words
                .iter()
                .filter_map(|word| {
                    let word = word.trim_end_matches('*');
                    word.strip_suffix("_i").or_else(|| word.strip_suffix("_r"))
                })
                .collect::<Vec<_>>()[..]
            {
                ike.insert(format!("{i}/{r}"));
            }
            match words[..] {
                ["in", spi, ..] => spi.clone_into(&mut inbound),
                ["out", spi, ..] => {
                    children.insert(format!("{spi}/{inbound}"));
                }
                _ => {}
            }
        }
        (ike, children)
    }

    /// Both have one IKE SA and so many Child SAs, the same ones, and packets go both ways.
    #[track_caller]
    fn is_in_step(&mut self, children: usize) {
        let mut last = String::new();
        let mut settled = || {
            let told = self.say("tell");
            let theirs = self.strongswan();
            last = format!("{told:?}\n{theirs:?}");
            told.ike.len() == 1
                && told.children.len() == children
                && theirs.0 == told.ike
                && theirs.1 == told.children
        };
        let until = std::time::Instant::now() + Duration::from_secs(75);
        while !settled() {
            assert!(
                std::time::Instant::now() < until,
                "the ends do not agree:\n{last}\n{}",
                self.lab.log("charon-cli")
            );
            std::thread::sleep(Duration::from_millis(100));
        }
        if children > 0 {
            let before = self.say("tell").packets;
            // The gateway sends every packet back with its addresses exchanged: the client's kernel answers its own
            // question.
            self.lab
                .must("cli", &["ping", "-n", "-c", "2", "-i", "0.2", "-W", "2", BEHIND]);
            assert!(self.say("tell").packets >= before + 4);
        }
    }
}

impl Drop for Scene<'_> {
    fn drop(&mut self) {
        let _ = self.gateway.kill();
        let _ = self.gateway.wait();
        self.script(&["stop", "charon-cli"]);
    }
}

fn strongswan_rekeys(lab: &Lab) {
    let mut scene = Scene::new(lab, &[]);
    for what in ["--child", "--ike", "--child", "--ike", "--child"] {
        let before = scene.say("tell");
        lab.must("cli", &["swanctl", "--rekey", what, "ours"]);
        eventually("a rekeying", || {
            let now = scene.say("tell");
            if what == "--ike" {
                now.ike != before.ike
            } else {
                now.children != before.children
            }
        });
        scene.is_in_step(1);
    }
}

fn our_gateway_rekeys(lab: &Lab) {
    let mut scene = Scene::new(lab, &[]);
    for what in [
        "rekey-child",
        "rekey-ike",
        "rekey-child",
        "rekey-ike",
        "rekey-child",
    ] {
        let before = scene.say(what);
        eventually("a rekeying", || {
            let now = scene.say("tell");
            if what == "rekey-ike" {
                now.ike != before.ike
            } else {
                now.children != before.children
            }
        });
        scene.is_in_step(1);
        scene.say("liveness");
        eventually("an answer", || scene.say("tell").answers > before.answers + 1);
    }
}

fn both_rekey_at_once(lab: &Lab, loser: &str) {
    let mut scene = Scene::new(lab, &[loser]);
    // Far enough apart that both have asked before either hears of the other.
    scene.say("slow");
    let outcome = if loser == "gateway" {
        "rekey collision won"
    } else {
        "rekey collision lost"
    };
    let collisions = || lab.log("charon-cli").matches(outcome).count();
    for what in ["child", "ike", "child", "ike"] {
        let seen = collisions();
        let mut client = lab.command("cli", "swanctl");
        client.args(["--rekey", &format!("--{what}"), "ours"]);
        let mut client = client.stdout(Stdio::null()).spawn().unwrap();
        client.wait().unwrap();
        scene.say(&format!("rekey-{what}"));
        eventually(outcome, || collisions() > seen);
        scene.is_in_step(1);
    }
}

fn strongswan_moves(lab: &Lab) {
    let mut scene = Scene::new(lab, &[]);
    let before = scene.say("tell");
    // The router translates addresses: what the gateway sees is another port of the same address.
    lab.must("cli", &["ip", "link", "set", "wifi", "down"]);
    eventually("a move", || scene.say("tell").paths != before.paths);
    scene.is_in_step(1);
    lab.must("cli", &["ip", "link", "set", "wifi", "up"]);
}

fn either_ends_it(lab: &Lab) {
    let mut scene = Scene::new(lab, &[]);
    scene.say("new-child");
    scene.is_in_step(2);
    scene.say("delete-child");
    scene.is_in_step(0);
    lab.must("cli", &["swanctl", "--initiate", "--child", "ours"]);
    scene.is_in_step(1);
    lab.must("cli", &["swanctl", "--terminate", "--ike", "ours"]);
    eventually("the end", || scene.say("tell").ike.is_empty());

    lab.must("cli", &["swanctl", "--initiate", "--child", "ours"]);
    scene.is_in_step(1);
    scene.say("delete-ike");
    eventually("the end", || {
        scene.say("tell").ike.is_empty() && scene.strongswan().0.is_empty()
    });
}
