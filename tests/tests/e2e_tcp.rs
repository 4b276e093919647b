//! The real client over TCP (RFC 9329) to the gateway of the virtual-time tests on real sockets, through a router that
//! drops UDP; and what tshark says of the frames.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, ExitCode, Stdio};
use std::time::{Duration, Instant};

use peregrine_tests::lab::{self, Lab, Profile, wire};

const ADDRESS: &str = "192.0.2.20";
/// An address of the same host where nothing listens.
const NOBODY: &str = "192.0.2.21";
/// Whatever is sent here the gateway sends back with its addresses exchanged, so that this machine answers itself.
const BEHIND: &str = "10.9.9.9";

fn main() -> ExitCode {
    lab::run(
        "pgtcp",
        &[
            (
                "udp_is_blocked_and_then_let_through_again",
                udp_is_blocked_and_then_let_through_again,
            ),
            (
                "from_network_to_network_over_tcp",
                from_network_to_network_over_tcp,
            ),
            ("a_connection_is_reset", a_connection_is_reset),
            ("a_gateway_without_tcp", a_gateway_without_tcp),
            ("tshark_reads_every_frame", tshark_reads_every_frame),
        ],
    )
}

/// Our gateway in the lab, and whether the router lets UDP through to it.
struct Scene<'a> {
    lab: &'a Lab,
    gateway: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl<'a> Scene<'a> {
    fn new(lab: &'a Lab) -> Self {
        for address in [ADDRESS, NOBODY] {
            let _there = lab.run(
                "v1",
                &["ip", "addr", "add", &format!("{address}/24"), "dev", "wan"],
            );
        }
        networks(lab);
        let mut gateway = lab
            .command("v1", lab::program("lab-gateway"))
            .arg(ADDRESS)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let commands = gateway.stdin.take().unwrap();
        let mut answers = BufReader::new(gateway.stdout.take().unwrap());
        let mut line = String::new();
        answers.read_line(&mut line).unwrap();
        assert_eq!(line.trim(), "ready");
        let scene = Self {
            lab,
            gateway,
            commands,
            answers,
        };
        scene.block_udp();
        scene
    }

    fn say(&mut self, command: &str) -> String {
        writeln!(self.commands, "{command}").unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line
    }

    fn block_udp(&self) {
        let rules = "table inet no_udp { chain forward { type filter hook forward priority filter; policy accept; \
                     meta l4proto udp drop; }; }";
        let _there = self.lab.run("rtr", &["nft", "delete", "table", "inet", "no_udp"]);
        self.lab.must("rtr", &["nft", rules]);
    }

    fn let_udp_through(&self) {
        self.lab
            .must("rtr", &["nft", "delete", "table", "inet", "no_udp"]);
    }

    fn pings(&self, limit: Duration) -> Duration {
        let begun = Instant::now();
        while begun.elapsed() < limit {
            let ping = self.lab.run("cli", &["ping", "-n", "-c", "1", "-W", "1", BEHIND]);
            if ping.status.success() {
                return begun.elapsed();
            }
        }
        panic!("nothing goes through for {limit:?}");
    }

    /// Eight megabytes from this machine to itself, through the tunnel and back.
    fn downloads(&self) {
        let folder = self.lab.dir().join("tcp");
        let script = format!(
            "set -e -o pipefail; mkdir -p {0}; cd {0}; [ -e file ] || head -c 8000000 /dev/urandom >file
             python3 -m http.server 8088 >/dev/null 2>&1 & server=$!
             trap 'kill $server' EXIT
             for _ in $(seq 50); do ss -ltn | grep -q :8088 && break; sleep 0.1; done
             curl -sS --max-time 25 http://{BEHIND}:8088/file | cmp - file",
            folder.display()
        );
        self.lab.must("cli", &["bash", "-c", &script]);
    }
}

impl Drop for Scene<'_> {
    fn drop(&mut self) {
        let _ = self.gateway.kill();
        let _ = self.gateway.wait();
        let _ = self.lab.run("rtr", &["nft", "delete", "table", "inet", "no_udp"]);
    }
}

/// Both networks are there, Wi-Fi the better one.
fn networks(lab: &Lab) {
    lab.must(
        "cli",
        &[
            "sh",
            "-c",
            "ip link set wifi up; ip link set lte up; \
             ip route replace default via 10.11.0.1 dev wifi metric 100; \
             ip route replace default via 10.12.0.1 dev lte metric 600",
        ],
    );
}

fn profile() -> Profile {
    Profile::psk().address(ADDRESS)
}

/// The same behind the kill switch, which must let these connections out.
fn locked() -> Profile {
    profile().network("kill_switch", "true")
}

fn is_roam(event: &serde_json::Value, transport: &str) -> bool {
    event["event"] == "roam" && event["to"]["transport"] == transport
}

fn udp_is_blocked_and_then_let_through_again(lab: &Lab) {
    let scene = Scene::new(lab);
    let begun = Instant::now();
    let mut tunnel = lab.connect(&profile());
    let status = tunnel.connected();
    let took = begun.elapsed();
    assert!(took <= Duration::from_secs(8), "{took:?}");
    assert_eq!(status["path"]["transport"], "tcp", "{status}");
    assert_eq!(status["path"]["remote"], format!("{ADDRESS}:4500"));
    scene.pings(Duration::from_secs(2));
    scene.downloads();
    scene.let_udp_through();
    tunnel.event("on UDP again", |it| is_roam(it, "udp"));
    scene.pings(Duration::from_secs(2));
    scene.downloads();
    let ended = tunnel.stop("TERM");
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert!(
        !ended.events.iter().any(|it| it["event"] == "reconnect"),
        "the SA stays"
    );
    let connections = lab.must("cli", &["ss", "-Htn", "state", "established"]);
    assert!(!connections.contains(ADDRESS), "{connections}");
}

fn from_network_to_network_over_tcp(lab: &Lab) {
    let scene = Scene::new(lab);
    let mut tunnel = lab.connect(&locked());
    tunnel.connected();
    for round in 0..4 {
        if round % 2 == 0 {
            lab.must("cli", &["ip", "link", "set", "wifi", "down"]);
        } else {
            networks(lab);
        }
        let took = scene.pings(Duration::from_secs(15));
        assert!(took <= Duration::from_secs(8), "round {round}: {took:?}");
        tunnel.event("on the other network", |it| is_roam(it, "tcp"));
    }
    let ended = tunnel.stop("TERM");
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert!(
        !ended.events.iter().any(|it| it["event"] == "reconnect"),
        "the SA stays"
    );
}

fn a_connection_is_reset(lab: &Lab) {
    let mut scene = Scene::new(lab);
    let mut tunnel = lab.connect(&locked());
    tunnel.connected();
    for _ in 0..3 {
        scene.say("reset");
        let took = scene.pings(Duration::from_secs(15));
        assert!(took <= Duration::from_secs(3), "{took:?}");
        tunnel.event("on another connection", |it| it["means"] == "new_connection");
    }
    for what in ["rekey-child", "rekey-ike"] {
        scene.say(what);
        scene.say("reset");
        tunnel.event("rekeyed", |it| it["event"] == "rekey");
        scene.pings(Duration::from_secs(5));
    }
    let told = scene.say("tell");
    assert!(told.contains("paths=tcp:"), "{told}");
    let ended = tunnel.stop("TERM");
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert!(
        !ended.events.iter().any(|it| it["event"] == "reconnect"),
        "the SA stays"
    );
}

fn a_gateway_without_tcp(lab: &Lab) {
    let _scene = Scene::new(lab);
    let ended = lab
        .connect(&Profile::psk().address(NOBODY))
        .end(Duration::from_secs(30));
    ended.must_be(3, "no_answer");
    ended.must_say("over TCP");
    ended.must_say("refused");
    let ended = lab
        .connect(&profile().network("tcp_fallback", "false"))
        .end(Duration::from_secs(30));
    ended.must_be(3, "no_answer");
}

fn tshark_reads_every_frame(lab: &Lab) {
    let mut scene = Scene::new(lab);
    let capture = lab.capture("cli", "wifi");
    let mut tunnel = lab.connect(&profile());
    tunnel.connected();
    scene.pings(Duration::from_secs(2));
    scene.say("rekey-ike");
    scene.say("rekey-child");
    scene.pings(Duration::from_secs(2));
    // No more than what a busy machine captures without a gap.
    let flood = [
        "ping", "-n", "-q", "-c", "300", "-i", "0.005", "-s", "1200", BEHIND,
    ];
    lab.must("cli", &flood);
    assert_eq!(tunnel.stop("TERM").code, Some(0));
    let file = capture.end();
    // tshark knows IKE and ESP in UDP, and another encapsulation in TCP that was there before this one: what it puts
    // together of the stream is cut into frames here, and each is shown to it as a datagram.
    let [up, down] = wire::tcp_stream(&file);
    let up = up.strip_prefix(b"IKETCP").expect("the prefix is sent first");
    let (up, down) = (frames(up), frames(&down));
    let again = lab.file("frames.pcap", "");
    wire::write_udp(&again, &[up.clone(), down.clone()].concat());
    let count = |filter: &str| wire::tshark(&again, filter, &["frame.number"]).len();
    assert_eq!(count("udpencap && (isakmp || esp)"), up.len() + down.len());
    for (exchange, at_least) in [(34, 2), (35, 2), (36, 4), (37, 2)] {
        let seen = count(&format!("isakmp.exchangetype == {exchange}"));
        assert!(seen >= at_least, "exchange {exchange}: {seen} messages");
    }
    assert!(count("esp.sequence") >= 1000, "ESP");
    assert_eq!(count("isakmp.typepayload == 53"), 0, "fragments");
    let inits = wire::tshark(
        &again,
        "isakmp.exchangetype == 34 && isakmp.flag_r == 0",
        &["isakmp.ispi"],
    );
    assert_eq!(inits.len(), 1, "nothing is sent again: {inits:?}");
    let complaints = wire::tshark(
        &again,
        "_ws.malformed || _ws.expert.severity >= 0x600000",
        &["frame.number", "_ws.expert.message"],
    );
    assert!(complaints.is_empty(), "{complaints:#?}");
}

/// RFC 9329, section 3: each frame begins with its own length, the two octets of the length included.
fn frames(mut stream: &[u8]) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    while let [high, low, ..] = *stream {
        let length = usize::from(u16::from_be_bytes([high, low]));
        assert!(length >= 2 + 4, "a frame of {length} octets");
        let (frame, rest) = stream.split_at(length);
        frames.push(frame[2..].to_vec());
        stream = rest;
    }
    assert!(stream.is_empty(), "half a frame at the end");
    frames
}
