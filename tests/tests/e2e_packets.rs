//! What the packet path makes of packets, on the wire and in front of strongSwan: with every offload and without each,
//! under loss while the SAs are replaced, and with the marks of RFC 6040.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ExitCode, Stdio};
use std::time::{Duration, Instant};

use peregrine_tests::lab::{self, Lab, Profile, Tunnel, names, wire};

const STREAM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/netns/stream");

fn main() -> ExitCode {
    lab::run(
        "pgpack",
        &[
            ("with_every_offload", |lab| octets_arrive(lab, &[])),
            ("without_tso", |lab| octets_arrive(lab, &["tso"])),
            ("without_tun_gro", |lab| octets_arrive(lab, &["tun-gro"])),
            ("without_udp_gso", |lab| octets_arrive(lab, &["udp-gso"])),
            ("without_udp_gro", |lab| octets_arrive(lab, &["udp-gro"])),
            ("without_any_offload", |lab| {
                octets_arrive(lab, &["tso", "tun-gro", "udp-gso", "udp-gro"])
            }),
            ("under_loss_while_rekeying", under_loss_while_rekeying),
            (
                "a_flood_of_a_thousand_flows_takes_no_memory",
                a_flood_of_a_thousand_flows_takes_no_memory,
            ),
            (
                "the_outside_shows_what_the_profile_allows",
                the_outside_shows_what_the_profile_allows,
            ),
            (
                "congestion_marks_reach_the_packets",
                congestion_marks_reach_the_packets,
            ),
        ],
    )
}

fn certificate() -> Profile {
    Profile::certificate("cert.vpn.lab", "alice")
}

/// The server behind the gateway that sends and takes octets.
struct Server(Child);

impl Server {
    fn start(lab: &Lab) -> Self {
        let mut child = lab
            .command("lan", STREAM)
            .arg("serve")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "ready\n");
        Self(child)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn connected(lab: &Lab, profile: &Profile, arguments: &[&str]) -> Tunnel {
    let mut tunnel = lab.connect_with(profile, arguments);
    tunnel.connected();
    tunnel
}

/// Both ways over both families, what arrives is what was sent, and the wire shows ESP as it should be.
fn octets_arrive(lab: &Lab, without: &[&str]) {
    const OCTETS: &str = "8000000";
    let _server = Server::start(lab);
    let list = without.join(",");
    let arguments = if without.is_empty() {
        vec![]
    } else {
        vec!["--without", &list]
    };
    let tunnel = connected(lab, &certificate(), &arguments);
    let capture = lab.capture_headers("cli", "wifi");
    for server in [names::SERVER_V4, names::SERVER_V6] {
        for direction in ["down", "up"] {
            lab.must("cli", &[STREAM, direction, server, OCTETS]);
        }
    }
    let ended = tunnel.stop("TERM");
    assert_eq!(ended.code, Some(0), "{ended:?}");
    esp_is_in_order(&capture.end());
}

/// Our datagrams are ESP by tshark's reading, none of them is larger than the wire or in fragments, and their sequence
/// numbers count up by one from each to the next.
fn esp_is_in_order(capture: &Path) {
    let broken = wire::tshark(
        capture,
        "ip.flags.mf == 1 || ip.frag_offset > 0 || ipv6.fraghdr || frame.len > 1514 || _ws.malformed",
        &["frame.number"],
    );
    assert!(broken.is_empty(), "frames {broken:?}");
    let sent = wire::tshark(
        capture,
        "esp && ip.src == 10.11.0.2",
        &["esp.spi", "esp.sequence"],
    );
    assert!(sent.len() > 10_000, "{} datagrams", sent.len());
    let mut next = BTreeMap::new();
    for line in &sent {
        let (spi, sequence) = line.split_once('\t').unwrap();
        let sequence: u32 = sequence.parse().unwrap();
        let expected = next.insert(spi, sequence + 1).unwrap_or(sequence);
        assert_eq!(sequence, expected, "of SPI {spi}");
    }
}

/// One datagram in a hundred is lost, both ways, and a Child SA never lives for more than a few seconds.
///
/// Two gigabytes with `PEREGRINE_LONG` in the environment.
fn under_loss_while_rekeying(lab: &Lab) {
    let octets = if std::env::var_os("PEREGRINE_LONG").is_some() {
        "2000000000"
    } else {
        "400000000"
    };
    let _server = Server::start(lab);
    let tunnel = connected(lab, &certificate().child("rekey", "\"10s\""), &[]);
    let rules = "table inet loss { chain forward { type filter hook forward priority mangle; \
                 meta l4proto udp numgen random mod 100 0 counter drop; }; }";
    lab.must("rtr", &["nft", rules]);
    let mut download = lab
        .command("cli", STREAM)
        .args(["down", names::SERVER_V4, octets])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (begun, mut by_gateway) = (Instant::now(), 0);
    let status = loop {
        if let Some(status) = download.try_wait().unwrap() {
            break status;
        }
        assert!(begun.elapsed() < Duration::from_secs(1200), "it does not end");
        if begun.elapsed() > Duration::from_secs(5) * (by_gateway + 1) {
            // A rekey of ours may be under way, and the gateway then says that it has none to do.
            let _ = lab.run("gw", &["swanctl", "--rekey", "--child", "net"]);
            by_gateway += 1;
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    let took = begun.elapsed();
    let lost = lab.must("rtr", &["nft", "list table inet loss"]);
    lab.must("rtr", &["nft", "delete table inet loss"]);
    let ended = tunnel.stop("TERM");
    assert!(status.success(), "{ended:?}");
    assert!(!lost.contains("packets 0 "), "nothing was lost: {lost}");
    let is_rekey = |it: &&serde_json::Value| it["event"] == "rekey" && it["kind"] == "child_sa";
    let rekeys = ended.events.iter().filter(is_rekey).count();
    let _unread = writeln!(std::io::stderr(), "{octets} octets in {took:?}, {rekeys} rekeys");
    let expected = took.as_secs() / 10;
    assert!(rekeys as u64 >= expected.max(1), "{rekeys} rekeys in {took:?}");
    assert!(!ended.events.iter().any(|it| it["event"] == "reconnect"));
}

/// Datagrams of a thousand flows, both ways at once, as fast as they can be made.
fn a_flood_of_a_thousand_flows_takes_no_memory(lab: &Lab) {
    let _server = Server::start(lab);
    let tunnel = connected(lab, &certificate(), &[]);
    // Every buffer is used once.
    for direction in ["down", "up"] {
        lab.must("cli", &[STREAM, direction, names::SERVER_V4, "20000000"]);
    }
    let ours = lab.must("cli", &["ip", "-4", "-o", "address", "show", "to", "10.3.0.0/16"]);
    let ours = ours.split_whitespace().nth(3).unwrap();
    let ours = ours.split('/').next().unwrap();
    let before = resident(&tunnel);
    let floods = [("cli", names::SERVER_V4), ("lan", ours)].map(|(place, host)| {
        let mut flood = lab.command(place, STREAM);
        flood.args(["flood", host, "1000", "5"]).stdout(Stdio::piped());
        flood.spawn().unwrap()
    });
    for flood in floods {
        let said = flood.wait_with_output().unwrap();
        let said = String::from_utf8(said.stdout).unwrap();
        let datagrams: u64 = said.split(' ').next().unwrap().parse().unwrap();
        assert!(datagrams > 20_000, "{said}");
    }
    let after = resident(&tunnel);
    assert!(lab.pings(names::SERVER_V4), "nothing goes through any more");
    assert!(after <= before + 2048, "{before} KiB before, {after} KiB after");
    let ended = tunnel.stop("TERM");
    assert_eq!(ended.code, Some(0), "{ended:?}");
}

/// KiB of memory that the client has.
fn resident(tunnel: &Tunnel) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", tunnel.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Pings that ask for expedited forwarding (DSCP 46), of a transport that understands marks (ECT(0)).
const MARKED: &str = "0xba";

fn ping(lab: &Lab, server: &str, field: &str) -> bool {
    let line = [
        "ping", "-n", "-c", "3", "-i", "0.2", "-W", "1", "-Q", field, server,
    ];
    lab.run("cli", &line).status.success()
}

fn the_outside_shows_what_the_profile_allows(lab: &Lab) {
    for (address, own, field) in [
        (names::GATEWAY_NAT, "ip.src == 10.11.0.2", "ip.dsfield"),
        (names::GATEWAY_V6, "ipv6.src == 2001:db8:11::2", "ipv6.tclass"),
    ] {
        for (ecn, dscp, expected) in [
            ("true", "false", 0x02),
            ("false", "false", 0x00),
            ("true", "true", 0xba),
            ("false", "true", 0xb8),
        ] {
            let profile = certificate()
                .address(address)
                .child("copy_ecn", ecn)
                .child("copy_dscp", dscp);
            let tunnel = connected(lab, &profile, &[]);
            let capture = lab.capture("cli", "wifi");
            // What IPv6 wants to know of its neighbours is not marked, nor in the tunnel.
            assert!(ping(lab, names::SERVER_V4, MARKED) && ping(lab, names::SERVER_V6, MARKED));
            assert_eq!(tunnel.stop("TERM").code, Some(0));
            let shown = wire::tshark(&capture.end(), &format!("esp && {own}"), &[field]);
            let fields = shown.iter().map(|shown| {
                let digits = shown.trim_start_matches("0x");
                u8::from_str_radix(digits, 16).unwrap()
            });
            // What is not the pings' has none.
            let (pings, others): (Vec<_>, Vec<_>) = fields.partition(|field| *field == expected);
            assert!(pings.len() >= 6, "{ecn}, {dscp}: {expected:#x} in {shown:?}");
            assert!(others.iter().all(|field| *field == 0), "{ecn}, {dscp}: {shown:?}");
        }
    }
}

/// The router marks instead of dropping, and whoever is in the tunnel is told: by the mark, or by a loss.
fn congestion_marks_reach_the_packets(lab: &Lab) {
    for (address, mark) in [
        (
            names::GATEWAY_NAT,
            "ip saddr 192.0.2.1 udp sport 4500 ip ecn set ce",
        ),
        (
            names::GATEWAY_V6,
            "ip6 saddr 2001:db8:1::1 udp sport 4500 ip6 ecn set ce",
        ),
    ] {
        let tunnel = connected(lab, &certificate().address(address), &[]);
        let route = lab.must("cli", &["ip", "route", "get", names::SERVER_V4]);
        let mut words = route.split_whitespace().skip_while(|word| *word != "dev");
        let device = words.nth(1).unwrap().to_owned();
        let rules = format!(
            "table inet congestion {{ chain forward {{ type filter hook forward priority mangle; {mark}; }}; }}"
        );
        lab.must("rtr", &["nft", &rules]);
        let capture = lab.capture("cli", &device);
        let marked = [names::SERVER_V4, names::SERVER_V6].map(|server| ping(lab, server, "0x02"));
        let unmarked = [names::SERVER_V4, names::SERVER_V6].map(|server| ping(lab, server, "0x00"));
        lab.must("rtr", &["nft", "delete table inet congestion"]);
        let capture = capture.end();
        assert!(ping(lab, names::SERVER_V4, "0x00"));
        assert_eq!(tunnel.stop("TERM").code, Some(0));
        assert_eq!((marked, unmarked), ([true; 2], [false; 2]), "{address}");
        for (replies, field) in [
            ("icmp.type == 0", "ip.dsfield.ecn"),
            ("icmpv6.type == 129", "ipv6.tclass.ecn"),
        ] {
            let replies = wire::tshark(&capture, replies, &[field]);
            assert!(replies.len() == 3, "{replies:?}");
            for reply in replies {
                assert!(reply.starts_with('3'), "no CE: {reply}");
            }
        }
    }
}
