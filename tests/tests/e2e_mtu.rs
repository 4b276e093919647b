//! The path MTU, found with a real strongSwan behind a router that drops what is too large and says nothing, and behind
//! one that says so.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use peregrine_tests::lab::{self, Lab, Profile, Tunnel, names, wire};
use serde_json::Value;

fn main() -> ExitCode {
    lab::run(
        "pgmtu",
        &[
            // First, because what another test has left in the air comes in here.
            ("an_idle_tunnel_sends_no_probes", an_idle_tunnel_sends_no_probes),
            ("a_path_without_obstacles", a_path_without_obstacles),
            (
                "a_number_stalls_on_a_narrow_path",
                a_number_stalls_on_a_narrow_path,
            ),
            ("a_narrow_path_is_found_out", a_narrow_path_is_found_out),
            (
                "a_narrow_path_over_ipv6_is_found_out",
                a_narrow_path_over_ipv6_is_found_out,
            ),
            (
                "a_path_too_narrow_for_ipv6_inside",
                a_path_too_narrow_for_ipv6_inside,
            ),
            ("a_router_that_speaks_is_heard", a_router_that_speaks_is_heard),
            (
                "from_a_wide_network_to_a_narrow_one_and_back",
                from_a_wide_network_to_a_narrow_one_and_back,
            ),
            (
                "a_path_that_narrows_under_an_upload",
                a_path_that_narrows_under_an_upload,
            ),
            ("ike_with_cbc", ike_with_cbc),
        ],
    )
}

/// A measurement, for whoever reads the test's output.
fn tell(line: &str) {
    let _unread = writeln!(std::io::stderr(), "{line}");
}

fn profile() -> Profile {
    Profile::certificate("cert.vpn.lab", "alice").address(names::GATEWAY_NAT)
}

/// What the router drops from now on without a word, by an expression of nftables.
fn router_drops(lab: &Lab, what: &str) {
    let rules = format!(
        "nft delete table inet narrow 2>/dev/null; nft add table inet narrow; \
         nft add chain inet narrow forward '{{ type filter hook forward priority -300; }}'; \
         nft add rule inet narrow forward {what} drop"
    );
    lab.must("rtr", &["sh", "-c", &rules]);
}

/// The router as it is at first, and all networks, whatever a test before left.
fn as_at_first(lab: &Lab) {
    lab.must(
        "rtr",
        &[
            "sh",
            "-c",
            "nft delete table inet narrow 2>/dev/null; ip link set wan mtu 1500",
        ],
    );
    lab.must(
        "cli",
        &[
            "sh",
            "-c",
            "ip link set lte up; ip link set wifi up; ip route flush cache; \
             ip addr add 2001:db8:12::2/64 dev lte nodad 2>/dev/null; \
             ip addr add 2001:db8:11::2/64 dev wifi nodad 2>/dev/null; \
             ip route replace default via 10.12.0.1 dev lte metric 600; \
             ip -6 route replace default via 2001:db8:12::1 dev lte metric 600; \
             ip route replace default via 10.11.0.1 dev wifi metric 100; \
             ip -6 route replace default via 2001:db8:11::1 dev wifi metric 100",
        ],
    );
}

/// Waits until the status says this MTU; how long that took.
fn until_mtu(tunnel: &mut Tunnel, mtu: u16) -> Duration {
    let begun = Instant::now();
    tunnel.event(&format!("found to carry {mtu} octets"), |it| it["mtu"] == mtu);
    let took = begun.elapsed();
    tell(&format!("{mtu} after {took:?}"));
    took
}

fn connected(lab: &Lab, profile: &Profile) -> (Tunnel, Value) {
    let mut tunnel = lab.connect(profile);
    let status = tunnel.connected();
    (tunnel, status)
}

/// Whether a packet of this length that nobody may fragment is answered through the tunnel.
fn carries(lab: &Lab, server: &str, len: u16) -> bool {
    let headers = if server.contains(':') { 48 } else { 28 };
    let size = (len - headers).to_string();
    let ping = lab.run(
        "cli",
        &[
            "ping", "-n", "-c", "1", "-W", "2", "-M", "do", "-s", &size, server,
        ],
    );
    ping.status.success()
}

fn device_mtu(lab: &Lab) -> String {
    let device = lab.must("cli", &["ip", "-o", "link", "show", "peregrine0"]);
    device
        .split(' ')
        .skip_while(|word| *word != "mtu")
        .nth(1)
        .unwrap_or_default()
        .to_owned()
}

/// Downloads for at most so many seconds; whether it was all.
fn downloads(lab: &Lab, seconds: u32) -> bool {
    let command = format!("curl -sS --max-time {seconds} -o /dev/null http://10.1.0.2/random.bin");
    lab.run("cli", &["sh", "-c", &command]).status.success()
}

/// A small page from this server.
fn page(lab: &Lab, server: &str) {
    let url = format!("http://{server}/index.html");
    lab.must(
        "cli",
        &["curl", "-sS", "--max-time", "10", "-o", "/dev/null", &url],
    );
}

fn leaves(tunnel: Tunnel) -> Vec<Value> {
    let ended = tunnel.stop("TERM");
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert!(
        !ended.events.iter().any(|it| it["event"] == "reconnect"),
        "{}",
        ended.log
    );
    ended.events
}

fn a_path_without_obstacles(lab: &Lab) {
    as_at_first(lab);
    let (mut tunnel, status) = connected(lab, &profile());
    if status["mtu"] != 1438 {
        let took = until_mtu(&mut tunnel, 1438);
        assert!(took < Duration::from_secs(2), "{took:?}");
    }
    assert!(
        carries(lab, names::SERVER_V4, 1400),
        "the gateway's own tunnel carries no more"
    );
    leaves(tunnel);
}

/// What becomes of a tunnel that believes its interface: the reason for all this.
fn a_number_stalls_on_a_narrow_path(lab: &Lab) {
    as_at_first(lab);
    router_drops(lab, "meta length gt 1400");
    let (tunnel, status) = connected(lab, &profile().network("mtu", "1438"));
    assert_eq!(status["mtu"], 1438);
    assert!(lab.pings(names::SERVER_V4), "what is small goes through");
    assert!(!downloads(lab, 8), "the path is not narrow");
    leaves(tunnel);
}

fn a_narrow_path_is_found_out(lab: &Lab) {
    as_at_first(lab);
    router_drops(lab, "meta length gt 1400");
    let (mut tunnel, status) = connected(lab, &profile());
    assert_eq!(status["mtu"], 1282, "safe at first: {status}");
    let took = until_mtu(&mut tunnel, 1338);
    assert!(took < Duration::from_secs(6), "{took:?}");
    assert_eq!(device_mtu(lab), "1338");
    assert!(carries(lab, names::SERVER_V4, 1338));
    assert!(carries(lab, names::SERVER_V6, 1338));
    assert!(!carries(lab, names::SERVER_V4, 1339), "the device takes no more");

    assert!(downloads(lab, 60), "the download stalls");
    let (there, here) = (lab.capture("lan", "lan"), lab.capture("cli", "peregrine0"));
    page(lab, "10.1.0.2");
    let mss = |capture, filter| wire::tshark(capture, filter, &["tcp.options.mss_val"]);
    let (there, here) = (there.end(), here.end());
    assert_eq!(mss(&there, "tcp.flags.syn == 1 && tcp.flags.ack == 0"), ["1298"]);
    assert_eq!(
        mss(&here, "tcp.flags.syn == 1 && tcp.flags.ack == 1"),
        ["1298"],
        "the server's announcement is lowered too"
    );
    leaves(tunnel);
}

fn a_narrow_path_over_ipv6_is_found_out(lab: &Lab) {
    as_at_first(lab);
    router_drops(lab, "meta length gt 1400");
    let (mut tunnel, _) = connected(lab, &profile().address(names::GATEWAY_V6));
    until_mtu(&mut tunnel, 1318);
    assert!(carries(lab, names::SERVER_V4, 1318));
    assert!(downloads(lab, 60), "the download stalls");
    leaves(tunnel);
}

fn a_path_too_narrow_for_ipv6_inside(lab: &Lab) {
    as_at_first(lab);
    router_drops(lab, "meta length gt 1280");
    let (mut tunnel, _) = connected(lab, &profile());
    until_mtu(&mut tunnel, 1280);
    assert_eq!(device_mtu(lab), "1280", "IPv6 needs it");
    // What the path does not carry is divided, or refused with a reason.
    let capture = lab.capture("lan", "lan");
    let divided = [
        "ping",
        "-n",
        "-c",
        "1",
        "-W",
        "1",
        "-M",
        "dont",
        "-s",
        "1252",
        names::SERVER_V4,
    ];
    let _no_answer_fits = lab.run("cli", &divided);
    let parts = wire::tshark(
        &capture.end(),
        "ip.src == 10.3.0.0/16 && ip.flags.mf == 1",
        &["ip.len"],
    );
    assert_eq!(parts.len(), 1, "two fragments");
    assert!(!carries(lab, names::SERVER_V4, 1219));
    let route = lab.must("cli", &["ip", "route", "get", names::SERVER_V4]);
    assert!(route.contains("mtu 1218"), "{route}");
    assert!(carries(lab, names::SERVER_V4, 1218));
    let capture = lab.capture("lan", "lan");
    page(lab, "10.1.0.2");
    page(lab, "[fd01::2]");
    let mss = wire::tshark(
        &capture.end(),
        "tcp.flags.syn == 1 && tcp.flags.ack == 0",
        &["tcp.options.mss_val"],
    );
    assert_eq!(mss, ["1178", "1158"]);
    assert!(downloads(lab, 90), "the download stalls");
    leaves(tunnel);
}

/// A hop with a smaller MTU that sends what ICMP has for that.
fn a_router_that_speaks_is_heard(lab: &Lab) {
    as_at_first(lab);
    lab.must("rtr", &["ip", "link", "set", "wan", "mtu", "1412"]);
    let (mut tunnel, _) = connected(lab, &profile());
    let took = until_mtu(&mut tunnel, 1350);
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert!(carries(lab, names::SERVER_V4, 1350));
    leaves(tunnel);
}

fn from_a_wide_network_to_a_narrow_one_and_back(lab: &Lab) {
    as_at_first(lab);
    // LTE is narrow, and nobody says so.
    router_drops(lab, "iifname lte meta length gt 1400");
    lab.must(
        "rtr",
        &[
            "nft", "add", "rule", "inet", "narrow", "forward", "oifname", "lte", "meta", "length", "gt",
            "1400", "drop",
        ],
    );
    let (mut tunnel, status) = connected(lab, &profile());
    if status["mtu"] != 1438 {
        until_mtu(&mut tunnel, 1438);
    }
    for _ in 0..3 {
        lab.must("cli", &["ip", "link", "set", "wifi", "down"]);
        tunnel.event("on LTE", |it| it["event"] == "roam");
        let took = until_mtu(&mut tunnel, 1338);
        assert!(took < Duration::from_secs(6), "{took:?}");
        assert!(carries(lab, names::SERVER_V4, 1338));
        assert!(downloads(lab, 60), "the download stalls");
        lab.must(
            "cli",
            &[
                "sh",
                "-c",
                "ip link set wifi up; ip route replace default via 10.11.0.1 dev wifi metric 100",
            ],
        );
        tunnel.event("on Wi-Fi", |it| it["event"] == "roam");
        until_mtu(&mut tunnel, 1438);
        assert!(carries(lab, names::SERVER_V4, 1400));
    }
    leaves(tunnel);
}

fn a_path_that_narrows_under_an_upload(lab: &Lab) {
    as_at_first(lab);
    let (mut tunnel, status) = connected(lab, &profile());
    if status["mtu"] != 1438 {
        until_mtu(&mut tunnel, 1438);
    }
    assert!(carries(lab, names::SERVER_V4, 1400));
    // What goes out is large, so that it is an upload that stalls; what comes back may be large.
    router_drops(lab, "iifname wifi meta length gt 1400");
    let begun = Instant::now();
    let upload = "head -c 20000000 /dev/zero | curl -sS --max-time 110 -H 'Expect:' -T - http://10.1.0.2/ -o /dev/null";
    let mut upload = lab
        .command("cli", "sh")
        .args(["-c", upload])
        .spawn()
        .expect("curl can be run");
    tunnel.event("narrower", |it| it["mtu"] == 1338);
    tell(&format!("noticed after {:?}", begun.elapsed()));
    assert!(begun.elapsed() < Duration::from_secs(80), "{:?}", begun.elapsed());
    assert!(carries(lab, names::SERVER_V4, 1338));
    let _ended = upload.kill();
    let _ended = upload.wait();
    leaves(tunnel);
}

/// Messages of IKE have the sizes that its cipher's blocks allow: what is proven is a little less.
fn ike_with_cbc(lab: &Lab) {
    as_at_first(lab);
    router_drops(lab, "meta length gt 1400");
    let (mut tunnel, _) = connected(lab, &profile().ike_proposals(&["aes256-sha256-prfsha256-x25519"]));
    let status = tunnel.event("larger", |it| it["mtu"].as_u64().is_some_and(|mtu| mtu > 1282));
    let mtu = status["mtu"].as_u64().unwrap_or(0);
    assert!((1322..=1338).contains(&mtu), "{mtu}");
    assert!(carries(lab, names::SERVER_V4, u16::try_from(mtu).unwrap_or(0)));
    leaves(tunnel);
}

/// How often a process has slept and been woken.
fn wakeups(pid: u32) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    let of = |status: String| -> Option<u64> {
        let line = status
            .lines()
            .find(|line| line.starts_with("voluntary_ctxt_switches"))?;
        line.split_whitespace().last()?.parse().ok()
    };
    tasks
        .flatten()
        .filter_map(|task| of(std::fs::read_to_string(task.path().join("status")).ok()?))
        .sum()
}

fn an_idle_tunnel_sends_no_probes(lab: &Lab) {
    as_at_first(lab);
    let (mut tunnel, status) = connected(lab, &profile());
    if status["mtu"] != 1438 {
        until_mtu(&mut tunnel, 1438);
    }
    let capture = lab.capture("cli", "wifi");
    let before = wakeups(tunnel.pid());
    std::thread::sleep(Duration::from_secs(75));
    let woken = wakeups(tunnel.pid()) - before;
    tell(&format!("woken {woken} times in 75 s"));
    assert!(woken < 60, "woken {woken} times in 75 s");
    let large = wire::tshark(
        &capture.end(),
        "udp.length > 200",
        &[
            "frame.time_relative",
            "ip.src",
            "udp.length",
            "isakmp.exchangetype",
            "esp.sequence",
        ],
    );
    assert!(large.is_empty(), "{large:?}");
    let events = leaves(tunnel);
    let statuses = events.iter().filter(|it| it["event"] == "status");
    assert!(statuses.count() < 12, "{events:?}");
}
