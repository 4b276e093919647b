//! The real client against Libreswan, which shares nothing with strongSwan: on a machine of its own with a kernel of its
//! own, because it needs ESP in the kernel.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Instant;

use peregrine_tests::lab::{self, Lab, Profile, Tunnel, names};
use serde_json::Value;

fn main() -> ExitCode {
    if std::env::consts::ARCH != "x86_64" {
        // What is fetched for it is for amd64 only.
        tell("not run: Libreswan's machine is an amd64 one");
        return ExitCode::SUCCESS;
    }
    lab::run(
        "pglsw",
        &[
            ("with_a_pre_shared_key", with_a_pre_shared_key),
            ("over_ipv6", over_ipv6),
            ("with_certificates", with_certificates),
            ("another_network_with_mobike", another_network_with_mobike),
            ("we_rekey", we_rekey),
            ("the_gateway_rekeys", the_gateway_rekeys),
            ("the_gateway_ends_it", the_gateway_ends_it),
            (
                "a_ticket_is_taken_without_nat_detection",
                a_ticket_is_taken_without_nat_detection,
            ),
            ("a_ticket_of_before_the_restart", a_ticket_of_before_the_restart),
            ("tcp_where_udp_is_blocked", tcp_where_udp_is_blocked),
            ("tcp_over_ipv6", tcp_over_ipv6),
            ("a_tcp_connection_is_reset", a_tcp_connection_is_reset),
            (
                "a_tcp_connection_is_reset_without_mobike",
                a_tcp_connection_is_reset_without_mobike,
            ),
            ("another_network_over_tcp", another_network_over_tcp),
            ("we_rekey_over_tcp", we_rekey_over_tcp),
            ("from_udp_to_tcp", from_udp_to_tcp),
        ],
    )
}

/// A measurement, for whoever reads the test's output.
fn tell(line: &str) {
    let _unread = writeln!(std::io::stderr(), "  {line}");
}

/// Starts the machine, unless a test before has.
fn machine(lab: &Lab) {
    if !lab.dir().join("lsw").exists() {
        let since = Instant::now();
        lab.start_libreswan();
        tell(&format!("the machine is up after {:?}", since.elapsed()));
    }
}

fn psk(identity: &str) -> Profile {
    Profile::psk()
        .identity(identity)
        .address(names::GATEWAY_LIBRESWAN)
}

/// Connects, and sends through the tunnel in both of its families.
fn works(lab: &Lab, profile: &Profile) -> (Tunnel, Value) {
    machine(lab);
    let since = Instant::now();
    let mut tunnel = lab.connect(profile);
    let status = tunnel.connected();
    tell(&format!("connected after {:?}", since.elapsed()));
    assert!(lab.pings(names::LIBRESWAN_V4), "{status}");
    assert!(lab.pings(names::LIBRESWAN_V6), "{status}");
    (tunnel, status)
}

fn ends(tunnel: Tunnel) {
    assert_eq!(tunnel.stop("TERM").code, Some(0));
}

fn with_a_pre_shared_key(lab: &Lab) {
    let (tunnel, status) = works(lab, &psk("psk.vpn.lab"));
    // Libreswan prefers a group of which we sent no value at first.
    assert_eq!(
        status["ike_sa"]["suite"], "aes256gcm16-prfsha512-ecp256",
        "{status}"
    );
    assert_eq!(status["features"]["mobike"], true, "{status}");
    let page = lab.must(
        "cli",
        &[
            "curl",
            "-sS",
            "--max-time",
            "10",
            &format!("http://{}/", names::LIBRESWAN_V4),
        ],
    );
    assert!(page.contains("machine of Libreswan"), "{page}");
    ends(tunnel);
}

fn over_ipv6(lab: &Lab) {
    let (tunnel, status) = works(lab, &psk("psk.vpn.lab").address(names::GATEWAY_LIBRESWAN_V6));
    assert_eq!(status["path"]["nat"], "none", "{status}");
    ends(tunnel);
}

fn with_certificates(lab: &Lab) {
    let profile = Profile::certificate("cert.vpn.lab", "alice").address(names::GATEWAY_LIBRESWAN);
    let (tunnel, status) = works(lab, &profile);
    assert_eq!(status["gateway"]["identity"], "cert.vpn.lab", "{status}");
    ends(tunnel);
}

fn leave_wifi(lab: &Lab) {
    lab.must("cli", &["ip", "link", "set", "wifi", "down"]);
}

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

fn another_network_with_mobike(lab: &Lab) {
    let (mut tunnel, _) = works(lab, &psk("psk.vpn.lab"));
    for change in [leave_wifi, join_wifi] {
        change(lab);
        let roam = tunnel.event("on another network", |it| it["event"] == "roam");
        tell(&roam.to_string());
        assert_eq!(roam["means"], "mobike", "{roam}");
        assert!(lab.pings(names::LIBRESWAN_V4), "{roam}");
    }
    ends(tunnel);
}

fn we_rekey(lab: &Lab) {
    let profile = psk("psk.vpn.lab")
        .ike("rekey", "\"15s\"")
        .child("rekey", "\"10s\"");
    let (mut tunnel, _) = works(lab, &profile);
    for kind in ["child_sa", "ike_sa"] {
        rekeyed(lab, &mut tunnel, kind, "client");
    }
    ends(tunnel);
}

fn the_gateway_rekeys(lab: &Lab) {
    let (mut tunnel, _) = works(lab, &psk("psk.vpn.lab"));
    for (option, kind) in [
        ("--rekey-child", "child_sa"),
        ("--rekey-ike", "ike_sa"),
        ("--rekey-child", "child_sa"),
    ] {
        lab.on_libreswan(&["ipsec", "whack", option, "--name", "psk", "--asynchronous"]);
        rekeyed(lab, &mut tunnel, kind, "gateway");
    }
    ends(tunnel);
}

fn rekeyed(lab: &Lab, tunnel: &mut Tunnel, kind: &str, by: &str) {
    tunnel.event("rekeyed", |it| {
        it["event"] == "rekey" && it["kind"] == kind && it["by"] == by
    });
    assert!(lab.pings(names::LIBRESWAN_V4), "after {kind}");
}

fn the_gateway_ends_it(lab: &Lab) {
    let (mut tunnel, _) = works(lab, &psk("psk.vpn.lab"));
    lab.on_libreswan(&["ipsec", "whack", "--name", "psk", "--terminate"]);
    let reconnected = tunnel.event("connected anew", |it| it["event"] == "reconnect");
    assert_eq!(reconnected["why"], "deleted_by_gateway", "{reconnected}");
    assert_eq!(reconnected["means"], "new_sa", "{reconnected}");
    assert!(lab.pings(names::LIBRESWAN_V4), "{reconnected}");
    ends(tunnel);
}

/// Connects without MOBIKE, and changes to another network once `before` is done. Returns the event of the new SA, and what
/// Libreswan has said in the meantime.
fn moves_without_mobike(lab: &Lab, before: impl FnOnce()) -> (Value, String) {
    let (mut tunnel, status) = works(lab, &psk("no-mobike.vpn.lab"));
    assert_eq!(status["features"]["mobike"], false, "{status}");
    before();
    let already = lab.log("lsw").len();
    leave_wifi(lab);
    let reconnected = tunnel.event("connected anew", |it| it["event"] == "reconnect");
    tell(&reconnected.to_string());
    assert_eq!(reconnected["why"], "network_changed", "{reconnected}");
    assert!(lab.pings(names::LIBRESWAN_V4), "{reconnected}");
    assert!(lab.pings(names::LIBRESWAN_V6), "{reconnected}");
    ends(tunnel);
    join_wifi(lab);
    (reconnected, lab.log("lsw").split_off(already))
}

/// Libreswan takes its ticket, but does not look for a NAT again and would send ESP bare. (It would also demand an AUTH over
/// RealMessage1 alone, and not over what RFC 5723, section 4.3.3, takes from RFC 7296, section 2.15.)
fn a_ticket_is_taken_without_nat_detection(lab: &Lab) {
    let (reconnected, said) = moves_without_mobike(lab, || ());
    for part in [
        "processing IKE_SESSION_RESUME request",
        "using session resume key",
        "sent IKE_SESSION_RESUME response",
    ] {
        assert!(said.contains(part), "Libreswan does not say '{part}': {said}");
    }
    assert_eq!(reconnected["means"], "new_sa", "{reconnected}");
}

fn a_ticket_of_before_the_restart(lab: &Lab) {
    let (reconnected, said) = moves_without_mobike(lab, || {
        let already = lab.log("lsw").len();
        lab.on_libreswan(&["killall", "-9", "pluto"]);
        lab::eventually("Libreswan is up again", || {
            lab.log("lsw")[already..].contains("loading secrets from")
        });
    });
    assert!(said.contains("processing IKE_SESSION_RESUME request"), "{said}");
    assert!(
        said.contains("with unencrypted notification TICKET_NACK"),
        "{said}"
    );
    assert_eq!(reconnected["means"], "new_sa", "{reconnected}");
}

/// A rule of the router's, which goes with this value.
struct Rule<'a>(&'a Lab, &'static str);

impl<'a> Rule<'a> {
    fn new(lab: &'a Lab, name: &'static str, rule: &str) -> Self {
        lab.must(
            "rtr",
            &[
                "nft",
                &format!("table inet {name} {{ chain forward {{ type filter hook forward priority filter; {rule}; }}; }}"),
            ],
        );
        Self(lab, name)
    }

    fn no_udp(lab: &'a Lab) -> Self {
        machine(lab);
        Self::new(lab, "no_udp", "udp dport { 500, 4500 } drop")
    }
}

impl Drop for Rule<'_> {
    fn drop(&mut self) {
        self.0.must("rtr", &["nft", "delete", "table", "inet", self.1]);
    }
}

/// The same bytes arrive as the machine has, through the tunnel.
fn downloads(lab: &Lab) {
    let sum = lab.on_libreswan(&["sha256sum", "/run/www/random.bin"]);
    let script = format!(
        "curl -sS --max-time 25 http://{}/random.bin | sha256sum",
        names::LIBRESWAN_V4
    );
    let got = lab.must("cli", &["sh", "-c", &script]);
    assert_eq!(got.split(' ').next(), sum.split(' ').next(), "{got} {sum}");
}

fn is_over_tcp(status: &Value) {
    assert_eq!(status["path"]["transport"], "tcp", "{status}");
}

fn tcp_where_udp_is_blocked(lab: &Lab) {
    let _rule = Rule::no_udp(lab);
    let already = lab.log("lsw").len();
    let (tunnel, status) = works(lab, &psk("psk.vpn.lab"));
    is_over_tcp(&status);
    downloads(lab);
    assert!(lab.log("lsw")[already..].contains("{ESPinTCP"));
    ends(tunnel);
}

fn tcp_over_ipv6(lab: &Lab) {
    let _rule = Rule::no_udp(lab);
    let (tunnel, status) = works(lab, &psk("psk.vpn.lab").address(names::GATEWAY_LIBRESWAN_V6));
    is_over_tcp(&status);
    downloads(lab);
    ends(tunnel);
}

/// Every connection to the gateway is reset for a second.
fn reset(lab: &Lab) {
    let _rule = Rule::new(lab, "resets", "tcp dport 4500 reject with tcp reset");
    // Something must be sent to be answered so.
    let _unanswered = lab.run("cli", &["ping", "-n", "-c", "1", "-W", "1", names::LIBRESWAN_V4]);
}

fn a_tcp_connection_is_reset(lab: &Lab) {
    let _rule = Rule::no_udp(lab);
    let (mut tunnel, status) = works(lab, &psk("psk.vpn.lab"));
    is_over_tcp(&status);
    for _ in 0..2 {
        reset(lab);
        let roam = tunnel.event("on another connection", |it| it["event"] == "roam");
        tell(&roam.to_string());
        assert_eq!(roam["means"], "new_connection", "{roam}");
        assert!(lab.pings(names::LIBRESWAN_V4), "{roam}");
        assert!(lab.pings(names::LIBRESWAN_V6), "{roam}");
    }
    ends(tunnel);
}

fn a_tcp_connection_is_reset_without_mobike(lab: &Lab) {
    let _rule = Rule::no_udp(lab);
    let (mut tunnel, status) = works(lab, &psk("no-mobike.vpn.lab"));
    is_over_tcp(&status);
    reset(lab);
    let event = tunnel.event("on another connection", |it| {
        it["event"] == "roam" || it["event"] == "reconnect"
    });
    tell(&event.to_string());
    lab::eventually("packets go through", || lab.pings(names::LIBRESWAN_V4));
    ends(tunnel);
}

fn another_network_over_tcp(lab: &Lab) {
    let _rule = Rule::no_udp(lab);
    let (mut tunnel, status) = works(lab, &psk("psk.vpn.lab"));
    is_over_tcp(&status);
    for change in [leave_wifi, join_wifi] {
        change(lab);
        let roam = tunnel.event("on another network", |it| it["event"] == "roam");
        tell(&roam.to_string());
        assert_eq!(roam["to"]["transport"], "tcp", "{roam}");
        assert!(lab.pings(names::LIBRESWAN_V4), "{roam}");
    }
    ends(tunnel);
}

fn we_rekey_over_tcp(lab: &Lab) {
    let _rule = Rule::no_udp(lab);
    we_rekey(lab);
}

/// Libreswan moves its IKE SA, and its Child SA stays where it was.
fn from_udp_to_tcp(lab: &Lab) {
    let (mut tunnel, _) = works(lab, &psk("psk.vpn.lab"));
    let _rule = Rule::no_udp(lab);
    let since = Instant::now();
    let event = tunnel.event("over TCP", |it| {
        it["event"] == "roam" || it["event"] == "reconnect"
    });
    tell(&event.to_string());
    lab::eventually("packets go through", || lab.pings(names::LIBRESWAN_V4));
    tell(&format!("over TCP after {:?}", since.elapsed()));
    ends(tunnel);
}
