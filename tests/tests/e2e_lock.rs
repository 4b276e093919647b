//! The kill switch in front of real gateways: while programs talk to everybody in every way, nothing but IKE and ESP to the
//! gateway leaves the machine, whatever happens to the client, the machine and the network.
//!
//! `PEREGRINE_LONG=1` does everything ten times.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::net::IpAddr;
use std::process::{Child, ExitCode, Stdio};
use std::time::{Duration, Instant};

use peregrine_tests::lab::{self, Capture, Ended, Frame, Lab, Profile, Tunnel, names};
use serde_json::Value;

/// What every datagram of the talking programs carries.
const MARK: &[u8] = b"peregrine-chatter";

fn main() -> ExitCode {
    lab::run(
        "pglock",
        &[
            ("without_a_lock_it_would_show", without_a_lock_it_would_show),
            ("nothing_but_the_tunnel", nothing_but_the_tunnel),
            ("while_nothing_answers", while_nothing_answers),
            (
                "a_wrong_password_changes_nothing",
                a_wrong_password_changes_nothing,
            ),
            ("the_client_is_killed", the_client_is_killed),
            (
                "a_password_that_is_no_longer_good_blocks",
                a_password_that_is_no_longer_good_blocks,
            ),
            ("somebody_changes_the_firewall", somebody_changes_the_firewall),
            ("faults_of_the_machine", faults_of_the_machine),
            ("faults_of_the_network", faults_of_the_network),
            ("faults_of_the_gateway", faults_of_the_gateway),
        ],
    )
}

fn times() -> u32 {
    if std::env::var_os("PEREGRINE_LONG").is_some() {
        10
    } else {
        1
    }
}

/// The gateway by its name, so that it is looked up too.
fn locked() -> Profile {
    open().network("kill_switch", "true")
}

fn open() -> Profile {
    Profile::certificate("cert.vpn.lab", "alice").address(names::GATEWAY_NAME)
}

/// Programs that talk to everybody.
struct Chatter(Child);

impl Chatter {
    fn start(lab: &Lab) -> Self {
        let mut child = lab
            .command("cli", concat!(env!("CARGO_MANIFEST_DIR"), "/netns/chatter"))
            .args(["wifi", "lte"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the chatter can be run");
        let stdout = child.stdout.as_mut().expect("a pipe");
        let mut line = String::new();
        BufReader::with_capacity(1, stdout)
            .read_line(&mut line)
            .expect("a line");
        assert_eq!(line, "ready\n");
        Self(child)
    }

    /// Ends it; how often it sent what, by which way, and how often it was not let.
    fn stop(mut self) -> Value {
        drop(self.0.stdin.take());
        let mut said = String::new();
        let stdout = self.0.stdout.take().expect("a pipe");
        BufReader::new(stdout).read_line(&mut said).expect("a line");
        let ended = self.0.wait().expect("it ends");
        assert!(ended.success(), "the chatter failed");
        serde_json::from_str(&said).expect("JSON")
    }
}

impl Drop for Chatter {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _ended = self.0.wait();
    }
}

/// Everything that leaves by the two uplinks.
struct Watch([Capture; 2]);

impl Watch {
    fn start(lab: &Lab) -> Self {
        Self(["wifi", "lte"].map(|interface| lab.capture_from(interface)))
    }

    /// Ends it; what does not belong there, and how many datagrams do.
    fn end(self) -> (BTreeSet<String>, usize) {
        let mut wrong = BTreeSet::new();
        let mut right = 0;
        for capture in self.0 {
            let path = capture.end();
            let octets = std::fs::read(&path).expect("a capture");
            if octets.windows(MARK.len()).any(|window| window == MARK) {
                wrong.insert("the mark of the talking programs".to_owned());
            }
            for frame in lab::wire::frames(&octets).expect("a capture") {
                match belongs(&frame) {
                    Ok(ours) => right += usize::from(ours),
                    Err(what) => {
                        wrong.insert(what);
                    }
                }
            }
        }
        (wrong, right)
    }
}

/// Whether a frame is ours to or from the gateway (or a router's own); else what it is.
fn belongs(frame: &Frame) -> Result<bool, String> {
    let gateways: [IpAddr; 2] =
        [names::GATEWAY_NAT, names::GATEWAY_V6].map(|text| text.parse().expect("an address"));
    let resolvers: [IpAddr; 2] = ["10.11.0.1", "10.12.0.1"].map(|text| text.parse().expect("an address"));
    match frame {
        Frame::Arp | Frame::Neighbours => Ok(false),
        Frame::Udp {
            source,
            destination,
            payload,
        } => {
            let of = |hosts: &[IpAddr; 2], ports: &[u16]| {
                [source, destination]
                    .iter()
                    .any(|(host, port)| hosts.contains(host) && ports.contains(port))
            };
            // The gateway's name, and no other.
            let asked = payload.windows(6).any(|window| window == b"gw\x03vpn");
            if of(&gateways, &[500, 4500]) || (of(&resolvers, &[53]) && asked) {
                return Ok(true);
            }
            Err(format!("UDP from {source:?} to {destination:?}"))
        }
        Frame::Other(what) => {
            let to_gateway = [names::GATEWAY_NAT, names::GATEWAY_V6].iter().any(|gateway| {
                what.contains(&format!(" to {gateway}, port 4500"))
                    || what.ends_with(&format!(" to {gateway}"))
            });
            // A connection of ours, or a datagram that a narrow path has divided: its mark was looked for already.
            let is_ours = what.starts_with("IP protocol 6 ") || what.starts_with("a fragment of ");
            if to_gateway && is_ours {
                Ok(true)
            } else {
                Err(what.clone())
            }
        }
    }
}

/// All kinds of traffic were tried, by all ways, and past the routes none was let.
fn was_busy(said: &Value) {
    for way in ["routed", "wifi", "lte"] {
        for kind in ["udp", "udp6", "multicast", "dns", "icmp", "icmp6", "tcp"] {
            let counts = &said[way][kind];
            let tries = counts[0].as_u64().unwrap_or(0) + counts[1].as_u64().unwrap_or(0);
            assert!(
                tries >= 10,
                "{kind} by {way} was tried {tries} times only: {said}"
            );
        }
    }
}

/// The machine is as it was before; the order in which the kernel lists things may differ after a link was down.
fn unchanged(after: &str, before: &str, now: &str) {
    let lines = |text: &str| -> BTreeSet<String> { text.lines().map(str::to_owned).collect() };
    let (before, now) = (lines(before), lines(now));
    let (gone, new): (Vec<_>, Vec<_>) = (
        before.difference(&now).collect(),
        now.difference(&before).collect(),
    );
    assert!(
        gone.is_empty() && new.is_empty(),
        "after '{after}' gone: {gone:#?}, left behind: {new:#?}"
    );
}

/// Connects with the kill switch, and does `act` while programs talk; nothing of theirs may leave until they are silent.
fn holds(
    what: &str,
    lab: &Lab,
    profile: &Profile,
    act: impl FnOnce(&Lab, Tunnel) -> Option<Tunnel>,
) -> usize {
    let mut tunnel = lab.connect(profile);
    // The lock is there before anything is said, and before that nothing is promised: gateways still send to those who were
    // killed, and the kernel answers.
    tunnel.event("connecting", |event| event["state"] == "connecting");
    let watch = Watch::start(lab);
    let chatter = Chatter::start(lab);
    let tunnel = act(lab, tunnel);
    std::thread::sleep(Duration::from_millis(500));
    let said = chatter.stop();
    let (wrong, right) = watch.end();
    if let Some(tunnel) = tunnel {
        assert_eq!(tunnel.stop("TERM").code, Some(0));
    }
    assert!(
        wrong.is_empty(),
        "{what}: this left the machine: {wrong:#?}\n{said}"
    );
    was_busy(&said);
    right
}

fn connected(mut tunnel: Tunnel) -> Tunnel {
    tunnel.connected();
    tunnel
}

/// The same without the kill switch leaks by every way past the routes: these tests can fail.
fn without_a_lock_it_would_show(lab: &Lab) {
    let before = lab.snapshot();
    let watch = Watch::start(lab);
    let mut tunnel = lab.connect(&open());
    tunnel.connected();
    let chatter = Chatter::start(lab);
    std::thread::sleep(Duration::from_secs(1));
    was_busy(&chatter.stop());
    assert_eq!(tunnel.stop("TERM").code, Some(0));
    let (wrong, _) = watch.end();
    for what in [
        "the mark",
        "192.0.2.12",
        "2001:db8:1::14",
        "224.0.0.251",
        "ff02::fb",
        "10.11.0.1",
    ] {
        assert!(wrong.iter().any(|leak| leak.contains(what)), "{what}: {wrong:#?}");
    }
    unchanged("the end", &before, &lab.snapshot());
}

fn nothing_but_the_tunnel(lab: &Lab) {
    let before = lab.snapshot();
    let right = holds("a tunnel", lab, &locked(), |lab, tunnel| {
        let tunnel = connected(tunnel);
        assert!(lab.pings(names::SERVER_V4) && lab.pings(names::SERVER_V6));
        let answer = lab.must("cli", &["getent", "ahosts", names::SERVER_NAME]);
        assert!(answer.contains(names::SERVER_V4), "{answer}");
        // Past the tunnel, and refused at once.
        let begun = Instant::now();
        let bound = [
            "curl",
            "-sS",
            "--max-time",
            "5",
            "--interface",
            "wifi",
            "http://192.0.2.11/",
        ];
        assert!(!lab.run("cli", &bound).status.success());
        assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
        Some(tunnel)
    });
    assert!(right > 100, "{right} datagrams of ours");
    unchanged("the end", &before, &lab.snapshot());
}

fn while_nothing_answers(lab: &Lab) {
    let before = lab.snapshot();
    let watch = Watch::start(lab);
    let mut tunnel = lab.connect(&locked().address(names::GATEWAY_SILENT));
    tunnel.event("connecting", |event| event["state"] == "connecting");
    let chatter = Chatter::start(lab);
    std::thread::sleep(Duration::from_secs(3));
    was_busy(&chatter.stop());
    let ended = tunnel.stop("INT");
    assert!(ended.code.is_some_and(|code| code != 0), "{ended:?}");
    let (wrong, _) = watch.end();
    let to_silent = |what: &&String| !what.contains(names::GATEWAY_SILENT);
    let wrong: Vec<_> = wrong.iter().filter(to_silent).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    unchanged("the end", &before, &lab.snapshot());
}

/// Nothing was up, and who called sees why: the machine is as it was.
fn a_wrong_password_changes_nothing(lab: &Lab) {
    let before = lab.snapshot();
    let profile = Profile::mschapv2()
        .network("kill_switch", "true")
        .auth("password", "wrong");
    let ended: Ended = lab.connect(&profile).end(Duration::from_secs(30));
    assert_eq!(ended.code, Some(6), "{ended:?}");
    unchanged("the end", &before, &lab.snapshot());
}

/// A crash leaves the machine locked; the next run takes over without a gap; and one without a lock opens it.
fn the_client_is_killed(lab: &Lab) {
    let before = lab.snapshot();
    for signal in ["KILL", "ABRT", "TRAP"].iter().cycle().take(3 * times() as usize) {
        holds(signal, lab, &locked(), |lab, tunnel| {
            let tunnel = connected(tunnel);
            assert_eq!(tunnel.stop(signal).code, None);
            std::thread::sleep(Duration::from_secs(1));
            assert!(!lab.pings(names::SERVER_V4));
            let again = connected(lab.connect(&locked()));
            assert!(lab.pings(names::SERVER_V4));
            Some(again)
        });
        unchanged("the end", &before, &lab.snapshot());
    }
    let tunnel = connected(lab.connect(&locked()));
    assert_eq!(tunnel.stop("KILL").code, None);
    assert!(
        !lab.run("cli", &["ping", "-c", "1", "-W", "1", "192.0.2.12"])
            .status
            .success()
    );
    let open = connected(lab.connect(&open()));
    assert_eq!(open.stop("TERM").code, Some(0));
    unchanged("the end", &before, &lab.snapshot());
}

/// What was in the tunnel does not go beside it when the tunnel cannot come back: until somebody says so.
fn a_password_that_is_no_longer_good_blocks(lab: &Lab) {
    let before = lab.snapshot();
    let secrets = "/etc/swanctl/swanctl.conf";
    let profile = Profile::mschapv2().network("kill_switch", "true");
    let original = lab.must("gw", &["cat", secrets]);
    let changed = original.replace(names::PASSWORD, "another password");
    assert_ne!(original, changed, "the gateway's secrets are elsewhere");
    let load = |text: &str| {
        let file = lab.file("swanctl.conf", text);
        lab.must(
            "gw",
            &["sh", "-c", &format!("cat '{}' >{secrets}", file.display())],
        );
        lab.must("gw", &["swanctl", "--load-all", "--noprompt"]);
    };
    let watch = Watch::start(lab);
    let mut tunnel = lab.connect(&profile);
    tunnel.connected();
    let chatter = Chatter::start(lab);
    load(&changed);
    lab.run(
        "gw",
        &[
            "swanctl",
            "--terminate",
            "--ike",
            "eap-mschapv2",
            "--timeout",
            "5",
        ],
    );
    let blocked = tunnel.event("blocked", |event| event["state"] == "blocked");
    assert_eq!(blocked["failure"]["phase"], "phase1", "{blocked}");
    std::thread::sleep(Duration::from_secs(2));
    was_busy(&chatter.stop());
    let ended = tunnel.stop("TERM");
    load(&original);
    let (wrong, _) = watch.end();
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(ended.code, Some(6), "{ended:?}");
    unchanged("the end", &before, &lab.snapshot());
}

/// What happens to a tunnel that is up.
struct Fault {
    name: &'static str,
    /// In which place, with a shell.
    place: &'static str,
    does: &'static str,
    /// How it is undone, if it does not pass.
    undo: &'static str,
}

const fn on_client(name: &'static str, does: &'static str, undo: &'static str) -> Fault {
    Fault {
        name,
        place: "cli",
        does,
        undo,
    }
}

/// Each in its turn; afterwards there is a tunnel again, and the machine is what it was.
fn endure(lab: &Lab, faults: &[Fault]) {
    for _ in 0..times() {
        for fault in faults {
            let before = lab.snapshot();
            holds(fault.name, lab, &locked(), |lab, tunnel| {
                let tunnel = connected(tunnel);
                let pid = tunnel.pid();
                let shell = |place: &str, script: &str| {
                    let script = format!("CLIENT={pid}; {script}");
                    lab.must(place, &["sh", "-ec", &script]);
                };
                shell(fault.place, fault.does);
                std::thread::sleep(Duration::from_secs(2));
                if !fault.undo.is_empty() {
                    shell(fault.place, fault.undo);
                }
                lab::eventually(&format!("after '{}' there is a tunnel again", fault.name), || {
                    lab.run("cli", &["ping", "-n", "-c", "1", "-W", "1", names::SERVER_V4])
                        .status
                        .success()
                });
                Some(tunnel)
            });
            unchanged(fault.name, &before, &lab.snapshot());
        }
    }
}

/// Whoever may change the firewall can open it; a second later it is closed again, whatever was done to it.
fn somebody_changes_the_firewall(lab: &Lab) {
    let before = lab.snapshot();
    let tunnel = connected(lab.connect(&locked()));
    let ours = lab.must("cli", &["nft", "-s", "list", "ruleset"]);
    for meddling in [
        "nft flush ruleset",
        "nft delete table inet peregrine_0",
        "nft flush chain inet peregrine_0 output",
        "nft insert rule inet peregrine_0 output accept",
        "nft add chain inet peregrine_0 output '{ policy accept ; }'",
        "nft delete table arp peregrine_0",
    ] {
        lab.must("cli", &["sh", "-c", meddling]);
        std::thread::sleep(Duration::from_secs(1));
        assert_eq!(
            lab.must("cli", &["nft", "-s", "list", "ruleset"]),
            ours,
            "{meddling}"
        );
        let watch = Watch::start(lab);
        let chatter = Chatter::start(lab);
        std::thread::sleep(Duration::from_millis(700));
        was_busy(&chatter.stop());
        let (wrong, _) = watch.end();
        assert!(wrong.is_empty(), "{meddling}: {wrong:#?}");
    }
    assert!(lab.pings(names::SERVER_V4));
    assert_eq!(tunnel.stop("TERM").code, Some(0));
    unchanged("the end", &before, &lab.snapshot());
}

fn faults_of_the_machine(lab: &Lab) {
    let resolver = "printf 'nameserver 10.11.0.1\\n' >/etc/resolv.conf";
    endure(
        lab,
        &[
            on_client(
                "the client is stopped and goes on",
                "kill -STOP $CLIENT; sleep 3",
                "kill -CONT $CLIENT",
            ),
            on_client("the tunnel device is deleted", "ip link del peregrine0", ""),
            on_client("the tunnel device is set down", "ip link set peregrine0 down", ""),
            on_client(
                "the inner addresses are removed",
                "ip addr flush dev peregrine0",
                "",
            ),
            on_client(
                "our rules are deleted",
                "ip rule flush; ip rule add pref 32766 lookup main; ip rule add pref 32767 lookup default",
                "",
            ),
            on_client(
                "our IPv6 rules are deleted",
                "ip -6 rule flush; ip -6 rule add pref 32766 lookup main",
                "",
            ),
            on_client("our routes are flushed", "ip route flush table 1885667328", ""),
            on_client("the name servers are rewritten", resolver, ""),
        ],
    );
}

fn faults_of_the_network(lab: &Lab) {
    let wifi = "ip addr replace 10.11.0.2/24 dev wifi; ip -6 addr replace 2001:db8:11::2/64 dev wifi nodad; \
                ip route replace default via 10.11.0.1 dev wifi metric 100; \
                ip -6 route replace default via 2001:db8:11::1 dev wifi metric 100";
    let wifi_back: &'static str = Box::leak(format!("ip link set wifi up; {wifi}").into_boxed_str());
    endure(
        lab,
        &[
            on_client("a link goes down and comes back", "ip link set wifi down", wifi_back),
            on_client(
                "all links go down and come back",
                "ip link set wifi down; ip link set lte down",
                Box::leak(
                    format!(
                        "ip link set lte up; {wifi_back}; ip -6 addr replace 2001:db8:12::2/64 dev lte nodad; \
                         ip route replace default via 10.12.0.1 dev lte metric 600; \
                         ip -6 route replace default via 2001:db8:12::1 dev lte metric 600"
                    )
                    .into_boxed_str(),
                ),
            ),
            on_client("the default route changes", "ip route del default via 10.11.0.1", wifi_back),
            on_client("all routes are flushed", "ip route flush table main", Box::leak(
                format!(
                    "ip route add 10.11.0.0/24 dev wifi proto kernel scope link src 10.11.0.2; \
                     ip route add 10.12.0.0/24 dev lte proto kernel scope link src 10.12.0.2; {wifi}; \
                     ip route replace default via 10.12.0.1 dev lte metric 600"
                )
                .into_boxed_str(),
            )),
            on_client(
                "our address changes",
                "ip addr add 10.11.0.77/24 dev wifi; ip addr del 10.11.0.2/24 dev wifi",
                Box::leak(format!("ip addr flush dev wifi scope global; {wifi}").into_boxed_str()),
            ),
            on_client(
                "DHCP brings more specific routes (CVE-2024-3661)",
                "ip route add 192.0.2.0/25 via 10.11.0.1; ip route add 0.0.0.0/1 via 10.11.0.1; ip route add 128.0.0.0/1 via 10.11.0.1; \
                 ip -6 route add 2001:db8:1::/64 via 2001:db8:11::1",
                "ip route del 192.0.2.0/25; ip route del 0.0.0.0/1; ip route del 128.0.0.0/1; ip -6 route del 2001:db8:1::/64",
            ),
            on_client(
                "DHCP calls public addresses local (CVE-2023-36672)",
                "ip addr add 192.0.2.200/24 dev wifi",
                "ip addr del 192.0.2.200/24 dev wifi",
            ),
            on_client("the path becomes narrow", "ip link set wifi mtu 1280", "ip link set wifi mtu 1500"),
            Fault {
                name: "the router drops everything for a while",
                place: "rtr",
                does: "nft add table inet hole; nft add chain inet hole f '{ type filter hook forward priority 0 ; policy drop ; }'",
                undo: "nft delete table inet hole",
            },
            Fault {
                name: "the router refuses everything for a while",
                place: "rtr",
                does: "nft add table inet hole; nft add chain inet hole f '{ type filter hook forward priority 0 ; }'; \
                       nft add rule inet hole f reject",
                undo: "nft delete table inet hole",
            },
        ],
    );
}

fn faults_of_the_gateway(lab: &Lab) {
    let fault = |name, does| Fault {
        name,
        place: "gw",
        does,
        undo: "",
    };
    endure(
        lab,
        &[
            fault(
                "the gateway ends the IKE SA",
                "swanctl --terminate --ike cert --timeout 2 || true",
            ),
            fault(
                "the gateway ends the Child SA",
                "swanctl --terminate --child net --timeout 2 || true",
            ),
            fault(
                "the gateway rekeys the IKE SA",
                "swanctl --rekey --ike cert || true",
            ),
            fault(
                "the gateway authenticates anew",
                "swanctl --rekey --ike cert --reauth || true",
            ),
        ],
    );
    let before = lab.snapshot();
    holds(
        "the gateway restarts",
        lab,
        &locked().ike("dpd", "\"5s\""),
        |lab, tunnel| {
            let tunnel = connected(tunnel);
            lab.restart_gateway();
            lab::eventually("after the restart there is a tunnel again", || {
                lab.run("cli", &["ping", "-n", "-c", "1", "-W", "1", names::SERVER_V4])
                    .status
                    .success()
            });
            Some(tunnel)
        },
    );
    unchanged("the end", &before, &lab.snapshot());
}
