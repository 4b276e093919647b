//! A tunnel to real strongSwan gateways that lives: keys replaced under traffic, networks changed, cables pulled, the
//! machine asleep, the gateway restarted.
//!
//! `PEREGRINE_LIVE=long` runs the storms for ten minutes and a hundred changes of network; without it they are as long
//! as CI can bear.

use std::io::Write as _;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use peregrine_tests::lab::{self, Lab, Profile, Tunnel, names};
use serde_json::Value;

fn main() -> ExitCode {
    lab::run(
        "pglive",
        &[
            ("we_rekey_in_a_storm", we_rekey_in_a_storm),
            ("the_gateway_rekeys_in_a_storm", the_gateway_rekeys_in_a_storm),
            (
                "from_wifi_to_lte_and_back_during_a_download",
                from_wifi_to_lte_and_back_during_a_download,
            ),
            ("from_ipv4_to_ipv6_and_back", from_ipv4_to_ipv6_and_back),
            ("without_mobike", without_mobike),
            ("the_cable_is_pulled", the_cable_is_pulled),
            ("the_machine_sleeps", the_machine_sleeps),
            ("a_nat_forgets", a_nat_forgets),
            ("the_gateway_sends_us_elsewhere", the_gateway_sends_us_elsewhere),
            (
                "the_gateway_is_killed_and_starts_again",
                the_gateway_is_killed_and_starts_again,
            ),
        ],
    )
}

fn is_long() -> bool {
    std::env::var("PEREGRINE_LIVE").is_ok_and(|value| value == "long")
}

/// The tunnel of a test, from the same beginnings.
fn connected(lab: &Lab, profile: &Profile) -> (Tunnel, Value) {
    every_network(lab);
    let mut tunnel = lab.connect(profile);
    let status = tunnel.connected();
    (tunnel, status)
}

fn certificate(identity: &str) -> Profile {
    Profile::certificate(identity, "alice").address(names::GATEWAY_NAT)
}

/// A ping that goes on, and notes when each answer came.
struct Pings {
    child: Child,
    /// Reads all the time: a full pipe would stop the ping.
    output: Option<std::thread::JoinHandle<String>>,
    every: Duration,
}

/// What such a ping saw.
struct Seen {
    sent: usize,
    /// Sequence number and time of each answer, in seconds since 1970.
    answers: Vec<(usize, f64)>,
}

impl Pings {
    fn start(lab: &Lab, every: Duration) -> Self {
        let interval = every.as_secs_f64().to_string();
        let mut child = lab
            .command("cli", "ping")
            .args(["-n", "-D", "-i", &interval, "-W", "1", names::SERVER_V4])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("ping can be run");
        let mut stdout = child.stdout.take().expect("it is a pipe");
        let output = std::thread::spawn(move || {
            let mut output = String::new();
            std::io::Read::read_to_string(&mut stdout, &mut output).expect("ping prints text");
            output
        });
        Self {
            child,
            output: Some(output),
            every,
        }
    }

    fn stop(mut self) -> Seen {
        std::thread::sleep(Duration::from_millis(500));
        let signalled = Command::new("kill")
            .args(["-INT", &self.child.id().to_string()])
            .status();
        assert!(signalled.is_ok_and(|status| status.success()), "ping had ended");
        let _ = self.child.wait();
        let reader = self.output.take().expect("it is read once");
        let output = reader.join().expect("ping prints text");
        let answers: Vec<(usize, f64)> = output
            .lines()
            .filter_map(|line| {
                let time = line.strip_prefix('[')?.split(']').next()?.parse().ok()?;
                let sequence = line.split("icmp_seq=").nth(1)?.split(' ').next()?.parse().ok()?;
                line.contains("bytes from").then_some((sequence, time))
            })
            .collect();
        let sent = output
            .lines()
            .find_map(|line| line.split(" packets transmitted").next()?.parse().ok())
            .expect("ping counts");
        Seen { sent, answers }
    }
}

impl Drop for Pings {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Seen {
    /// Sequence numbers without an answer, apart from the last one, which may still be on its way.
    fn lost(&self) -> Vec<usize> {
        let last = self.sent.saturating_sub(1);
        (1..=last)
            .filter(|number| !self.answers.iter().any(|(sequence, _)| sequence == number))
            .collect()
    }

    /// The longest time without an answer that begins in this second of each of `moments`.
    fn gaps(&self, moments: &[f64], every: Duration) -> Vec<Duration> {
        let times: Vec<f64> = self.answers.iter().map(|(_, time)| *time).collect();
        moments
            .iter()
            .map(|moment| {
                // The last answer before the change may be older than the change by one interval.
                let longest = times
                    .windows(2)
                    .filter(|pair| pair[1] >= *moment && pair[0] < moment + 1.0)
                    .map(|pair| pair[1] - pair[0].max(*moment))
                    .fold(0.0, f64::max);
                Duration::from_secs_f64((longest - every.as_secs_f64()).max(0.0))
            })
            .collect()
    }
}

/// A measurement, for whoever reads the test's output.
fn tell(line: &str) {
    let _unread = writeln!(std::io::stderr(), "{line}");
}

fn unix() -> f64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}

fn count(events: &[Value], event: &str, key: &str, value: &str) -> usize {
    events
        .iter()
        .filter(|it| it["event"] == event && it[key] == value)
        .count()
}

/// Pings under `storm`, of which not one may be lost.
fn nothing_is_lost(lab: &Lab, tunnel: Tunnel, storm: Duration) -> Vec<Value> {
    let pings = Pings::start(lab, Duration::from_millis(20));
    std::thread::sleep(storm);
    let every = pings.every;
    let seen = pings.stop();
    let ended = tunnel.stop("TERM");
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert!(
        seen.sent as f64 > storm.as_secs_f64() / every.as_secs_f64() * 0.2,
        "only {} pings in {storm:?}: {}",
        seen.sent,
        ended.log
    );
    assert_eq!(
        seen.lost(),
        Vec::<usize>::new(),
        "of {}: {}",
        seen.sent,
        ended.log
    );
    ended.events
}

fn storm() -> Duration {
    Duration::from_secs(if is_long() { 600 } else { 45 })
}

fn we_rekey_in_a_storm(lab: &Lab) {
    let profile = certificate("cert.vpn.lab")
        .ike("rekey", "\"30s\"")
        .child("rekey", "\"10s\"");
    let (tunnel, _) = connected(lab, &profile);
    let events = nothing_is_lost(lab, tunnel, storm());
    let expected = storm().as_secs() as usize;
    let children = count(&events, "rekey", "kind", "child_sa");
    assert!(children >= expected / 11 - 1, "{children} Child SAs replaced");
    let ike = count(&events, "rekey", "kind", "ike_sa");
    assert!(ike >= expected / 33, "{ike} IKE SAs replaced");
    assert_eq!(count(&events, "reconnect", "why", "peer_dead"), 0);
}

fn the_gateway_rekeys_in_a_storm(lab: &Lab) {
    let (tunnel, _) = connected(lab, &certificate("rekey.vpn.lab"));
    let events = nothing_is_lost(lab, tunnel, storm());
    let expected = storm().as_secs() as usize;
    let by_gateway = count(&events, "rekey", "by", "gateway");
    assert!(
        by_gateway >= expected / 12,
        "{by_gateway} SAs replaced by the gateway"
    );
    assert!(
        events
            .iter()
            .any(|it| it["kind"] == "ike_sa" && it["by"] == "gateway"),
        "no IKE SA replaced by the gateway"
    );
}

/// strongSwan's administrator sends its clients to another address, then to a name.
fn the_gateway_sends_us_elsewhere(lab: &Lab) {
    let (mut tunnel, _) = connected(lab, &certificate("cert.vpn.lab"));
    let pings = Pings::start(lab, Duration::from_millis(20));
    for (to, address) in [
        (names::GATEWAY_DIRECT, names::GATEWAY_DIRECT),
        (names::GATEWAY_NAME, names::GATEWAY_V6),
    ] {
        lab.must("gw", &["swanctl", "--redirect", "--ike", "cert", "--gateway", to]);
        let again = tunnel.event("reconnect", |event| event["event"] == "reconnect");
        assert_eq!(again["why"], "redirected", "{again}");
        assert_eq!(again["attempts"], 1, "{again}");
        let status = tunnel.connected();
        assert_eq!(status["gateway"]["redirected_to"], to, "{status}");
        let remote = status["path"]["remote"].as_str().expect("an address");
        assert!(remote.contains(address), "{remote}");
        // Five in five minutes are followed.
        std::thread::sleep(Duration::from_secs(2));
        let sas = lab.must("gw", &["swanctl", "--list-sas", "--ike", "cert"]);
        assert_eq!(sas.matches("ESTABLISHED").count(), 1, "{sas}");
    }
    let seen = pings.stop();
    // The other gateway gives another inner address: an answer to the one before that is on its way then comes too late.
    assert!(seen.lost().len() <= 2, "{:?} of {}", seen.lost(), seen.sent);
    assert_eq!(tunnel.stop("TERM").code, Some(0));
}

/// Wi-Fi goes away: what is left is LTE.
fn leave_wifi(lab: &Lab) {
    lab.must("cli", &["ip", "link", "set", "wifi", "down"]);
}

/// All networks as they are at first, whatever a test before this one left.
fn every_network(lab: &Lab) {
    lab.must(
        "cli",
        &[
            "sh",
            "-c",
            "ip link set lte up; ip addr add 2001:db8:12::2/64 dev lte nodad 2>/dev/null; \
             ip route replace default via 10.12.0.1 dev lte metric 600; \
             ip -6 route replace default via 2001:db8:12::1 dev lte metric 600",
        ],
    );
    join_wifi(lab);
}

/// Wi-Fi is back, and better than LTE.
fn join_wifi(lab: &Lab) {
    lab.must(
        "cli",
        &[
            "sh",
            "-c",
            "ip link set wifi up; ip addr add 2001:db8:11::2/64 dev wifi nodad 2>/dev/null; \
             ip route replace default via 10.11.0.1 dev wifi metric 100; \
             ip -6 route replace default via 2001:db8:11::1 dev wifi metric 100",
        ],
    );
}

fn from_wifi_to_lte_and_back_during_a_download(lab: &Lab) {
    let rounds = if is_long() { 100 } else { 20 };
    let (tunnel, _) = connected(lab, &certificate("cert.vpn.lab"));
    let pings = Pings::start(lab, Duration::from_millis(10));
    let rate = format!("{}", 52_428_800 / (rounds * 3 / 2));
    let download = lab
        .command("cli", "sh")
        .args([
            "-c",
            &format!("curl -sS --max-time 400 --limit-rate {rate} http://10.1.0.2/random.bin | sha256sum"),
        ])
        .stdout(Stdio::piped())
        .spawn()
        .expect("curl can be run");
    let mut moments = Vec::new();
    for round in 0..rounds {
        std::thread::sleep(Duration::from_millis(1300));
        if round % 2 == 0 {
            leave_wifi(lab)
        } else {
            join_wifi(lab)
        }
        moments.push(unix());
    }
    let digest = download.wait_with_output().expect("curl ends");
    let every = pings.every;
    let seen = pings.stop();
    let ended = tunnel.stop("TERM");
    join_wifi(lab);
    let expected = lab.must(
        "lan",
        &["sha256sum", &lab.dir().join("www/random.bin").to_string_lossy()],
    );
    assert_eq!(
        String::from_utf8_lossy(&digest.stdout).split(' ').next(),
        expected.split(' ').next(),
        "the download is damaged"
    );
    let roams = count(&ended.events, "roam", "means", "mobike");
    assert_eq!(roams, rounds as usize, "{}", ended.log);
    assert_eq!(
        ended
            .events
            .iter()
            .filter(|it| it["event"] == "reconnect")
            .count(),
        0
    );
    let mut gaps = seen.gaps(&moments, every);
    gaps.sort();
    let (median, p95) = (gaps[gaps.len() / 2], gaps[gaps.len() * 95 / 100]);
    tell(&format!(
        "{rounds} changes of network: gaps of {median:?} (median), {p95:?} (95 %), {:?} at most",
        gaps.last()
    ));
    // These machines are shared: what is measured exactly is in the benchmark.
    assert!(median <= Duration::from_secs(2), "{gaps:?}");
}

fn from_ipv4_to_ipv6_and_back(lab: &Lab) {
    let (mut tunnel, _) = connected(lab, &certificate("cert.vpn.lab"));
    for _ in 0..3 {
        lab.must(
            "cli",
            &[
                "sh",
                "-c",
                "ip route del default dev wifi; ip route del default dev lte",
            ],
        );
        tunnel.event("on IPv6", |it| {
            it["event"] == "roam" && it["to"]["remote"].as_str().is_some_and(|to| to.starts_with('['))
        });
        // A gateway whose question went astray with the last path asks again after four seconds.
        until_it_answers(lab, names::SERVER_V4, Duration::from_secs(15));
        lab.must(
            "cli",
            &[
                "sh",
                "-c",
                "ip route add default via 10.11.0.1 dev wifi metric 100; ip route add default via 10.12.0.1 dev lte metric 600; \
                 ip -6 route del default dev wifi; ip -6 route del default dev lte",
            ],
        );
        tunnel.event("on IPv4", |it| {
            it["event"] == "roam" && it["to"]["remote"].as_str().is_some_and(|to| !to.starts_with('['))
        });
        until_it_answers(lab, names::SERVER_V6, Duration::from_secs(15));
        lab.must(
            "cli",
            &[
                "sh",
                "-c",
                "ip -6 route add default via 2001:db8:11::1 dev wifi metric 100; \
                 ip -6 route add default via 2001:db8:12::1 dev lte metric 600",
            ],
        );
    }
    assert_eq!(tunnel.stop("TERM").code, Some(0));
}

/// Until a ping is answered.
fn until_it_pings(lab: &Lab, limit: Duration) -> Duration {
    until_it_answers(lab, names::SERVER_V4, limit)
}

/// Until a server behind the gateway answers a ping.
fn until_it_answers(lab: &Lab, server: &str, limit: Duration) -> Duration {
    let begun = Instant::now();
    while begun.elapsed() < limit {
        let ping = lab.run("cli", &["ping", "-n", "-c", "1", "-W", "1", server]);
        if ping.status.success() {
            return begun.elapsed();
        }
    }
    panic!("nothing goes through for {limit:?}");
}

fn without_mobike(lab: &Lab) {
    let (mut tunnel, before) = connected(lab, &certificate("no-mobike.vpn.lab"));
    for round in 0..6 {
        if round % 2 == 0 {
            leave_wifi(lab)
        } else {
            join_wifi(lab)
        }
        let took = until_it_pings(lab, Duration::from_secs(20));
        tell(&format!("without MOBIKE: {took:?}"));
        assert!(took <= Duration::from_secs(10), "round {round}: {took:?}");
        let reconnected = tunnel.event("connected anew", |it| it["event"] == "reconnect");
        assert_eq!(reconnected["why"], "network_changed", "{reconnected}");
        std::thread::sleep(Duration::from_millis(500));
    }
    let ended = tunnel.stop("TERM");
    join_wifi(lab);
    let addresses: Vec<&Value> = ended
        .events
        .iter()
        .filter(|it| it["state"] == "connected")
        .map(|it| &it["addresses"])
        .collect();
    assert!(
        addresses.iter().all(|it| **it == before["addresses"]),
        "{addresses:?}"
    );
}

fn the_cable_is_pulled(lab: &Lab) {
    let (mut tunnel, _) = connected(lab, &certificate("cert.vpn.lab"));
    let away: &[u64] = if is_long() { &[1, 10, 120] } else { &[1, 10] };
    for seconds in away {
        lab.must(
            "cli",
            &["sh", "-c", "ip link set wifi down; ip link set lte down"],
        );
        tunnel.event("offline", |it| {
            it["state"] == "reconnecting" && it["why"] == "offline"
        });
        std::thread::sleep(Duration::from_secs(*seconds));
        every_network(lab);
        let took = until_it_pings(lab, Duration::from_secs(20));
        tell(&format!("after {seconds} s without a cable: {took:?}"));
        assert!(took <= Duration::from_secs(10), "after {seconds} s: {took:?}");
        tunnel.connected();
    }
    assert_eq!(tunnel.stop("TERM").code, Some(0));
}

fn the_machine_sleeps(lab: &Lab) {
    let (tunnel, _) = connected(lab, &certificate("cert.vpn.lab"));
    let pid = tunnel.pid().to_string();
    let signal = |name: &str| {
        let sent = Command::new("kill").args(["-s", name, &pid]).status();
        assert!(sent.is_ok_and(|status| status.success()), "{name} cannot be sent");
    };
    for asleep in [3, if is_long() { 100 } else { 40 }] {
        signal("STOP");
        std::thread::sleep(Duration::from_secs(asleep));
        signal("CONT");
        let took = until_it_pings(lab, Duration::from_secs(20));
        tell(&format!("after {asleep} s of sleep: {took:?}"));
        assert!(took <= Duration::from_secs(10), "after {asleep} s: {took:?}");
    }
    assert_eq!(tunnel.stop("TERM").code, Some(0));
}

fn a_nat_forgets(lab: &Lab) {
    let (tunnel, _) = connected(lab, &certificate("cert.vpn.lab"));
    assert!(lab.pings(names::SERVER_V4), "before");
    std::thread::sleep(Duration::from_secs(3));
    // The router translates to a random port again for whatever comes next.
    lab.must("rtr", &["conntrack", "-F"]);
    let took = until_it_pings(lab, Duration::from_secs(40));
    tell(&format!("after a NAT forgot: {took:?}"));
    assert!(took <= Duration::from_secs(30), "{took:?}");
    assert_eq!(tunnel.stop("TERM").code, Some(0));
}

fn the_gateway_is_killed_and_starts_again(lab: &Lab) {
    let (mut tunnel, _) = connected(lab, &certificate("cert.vpn.lab"));
    lab.restart_gateway();
    let took = until_it_pings(lab, Duration::from_secs(90));
    tell(&format!("after a restart of the gateway: {took:?}"));
    assert!(took <= Duration::from_secs(60), "{took:?}");
    tunnel.event("connected anew", |it| it["event"] == "reconnect");
    let ended = tunnel.stop("TERM");
    assert_eq!(ended.code, Some(0), "{}", ended.log);
}
