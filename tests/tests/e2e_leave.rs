//! However the client ends, the machine is afterwards as it was before, to the octet.

use std::process::ExitCode;
use std::time::Duration;

use peregrine_tests::lab::{self, Lab, Profile, names};

fn main() -> ExitCode {
    lab::run(
        "pgleave",
        &[
            ("interrupted", |lab| signalled(lab, "INT")),
            ("terminated", |lab| signalled(lab, "TERM")),
            ("killed_and_started_again", killed_and_started_again),
            ("killed_and_then_refused", killed_and_then_refused),
            ("interrupted_while_connecting", interrupted_while_connecting),
            ("refused", refused),
            ("deleted_by_the_gateway", deleted_by_the_gateway),
            ("the_gateway_forgets_us_at_once", the_gateway_forgets_us_at_once),
            ("twenty_times", twenty_times),
        ],
    )
}

fn certificate() -> Profile {
    Profile::certificate("cert.vpn.lab", "alice")
}

/// Compares line by line, so that a failure shows what differs and not two walls of text.
fn unchanged(before: &str, after: &str) {
    let missing: Vec<_> = before
        .lines()
        .filter(|line| !after.lines().any(|other| other == *line))
        .collect();
    let added: Vec<_> = after
        .lines()
        .filter(|line| !before.lines().any(|other| other == *line))
        .collect();
    assert!(
        before == after,
        "gone:\n{}\nleft behind:\n{}",
        missing.join("\n"),
        added.join("\n")
    );
}

fn signalled(lab: &Lab, signal: &str) {
    let before = lab.snapshot();
    let mut tunnel = lab.connect(&certificate());
    tunnel.connected();
    assert_ne!(
        lab.snapshot(),
        before,
        "a tunnel that changes nothing carries nothing"
    );
    assert!(lab.pings(names::SERVER_V4));
    let ended = tunnel.stop(signal);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    unchanged(&before, &lab.snapshot());
    assert!(
        !lab.pings(names::SERVER_V4),
        "the inner server answers without a tunnel"
    );
}

fn killed_and_started_again(lab: &Lab) {
    let before = lab.snapshot();
    let mut tunnel = lab.connect(&certificate());
    tunnel.connected();
    assert_eq!(tunnel.stop("KILL").code, None);
    assert_ne!(lab.snapshot(), before, "a killed client cannot have cleaned up");
    let mut again = lab.connect(&certificate());
    again.connected();
    assert!(lab.pings(names::SERVER_V4));
    assert_eq!(again.stop("TERM").code, Some(0));
    unchanged(&before, &lab.snapshot());
}

/// The next start repairs even when it does not get as far as a tunnel.
fn killed_and_then_refused(lab: &Lab) {
    let before = lab.snapshot();
    let mut tunnel = lab.connect(&certificate());
    tunnel.connected();
    assert_eq!(tunnel.stop("KILL").code, None);
    let refused = lab
        .connect(&Profile::mschapv2().auth("password", "wrong"))
        .end(Duration::from_secs(30));
    assert_eq!(refused.code, Some(6), "{refused:?}");
    unchanged(&before, &lab.snapshot());
}

fn interrupted_while_connecting(lab: &Lab) {
    let before = lab.snapshot();
    let tunnel = lab.connect(&certificate().address(names::GATEWAY_SILENT));
    std::thread::sleep(Duration::from_millis(500));
    let ended = tunnel.stop("INT");
    assert!(ended.code.is_some(), "{ended:?}");
    unchanged(&before, &lab.snapshot());
}

fn refused(lab: &Lab) {
    let before = lab.snapshot();
    let ended = lab.connect(&Profile::certificate("no-ts.vpn.lab", "alice").remote_ts(&["172.16.0.0/12"]));
    assert_eq!(ended.end(Duration::from_secs(30)).code, Some(5));
    unchanged(&before, &lab.snapshot());
}

fn deleted_by_the_gateway(lab: &Lab) {
    let before = lab.snapshot();
    let mut tunnel = lab.connect(&certificate());
    tunnel.connected();
    lab.run(
        "gw",
        &["swanctl", "--terminate", "--ike", "cert", "--timeout", "5"],
    );
    // Whoever is sent away comes again, after a while, and leaves the machine as it is meanwhile.
    let lost = tunnel.event("told", |it| it["state"] == "reconnecting");
    assert_eq!(lost["why"], "deleted_by_gateway", "{lost}");
    assert_eq!(lost["failure"]["code"], "deleted_by_gateway", "{lost}");
    assert!(lost["retry_at"].is_string(), "no countdown: {lost}");
    tunnel.event("connected anew", |it| it["event"] == "reconnect");
    let ended = tunnel.stop("TERM");
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    unchanged(&before, &lab.snapshot());
}

/// After a goodbye the gateway holds nothing of us, so that the next client gets its address.
fn the_gateway_forgets_us_at_once(lab: &Lab) {
    let mut tunnel = lab.connect(&certificate());
    let status = tunnel.connected();
    let spi = status["ike_sa"]["initiator_spi"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    assert!(
        !spi.is_empty() && lab.gateway_sas().contains(&spi),
        "{spi} is not known to the gateway"
    );
    assert_eq!(tunnel.stop("TERM").code, Some(0));
    assert!(
        !lab.gateway_sas().contains(&spi),
        "{spi} is still known to the gateway"
    );
}

fn twenty_times(lab: &Lab) {
    let before = lab.snapshot();
    for _ in 0..20 {
        let mut tunnel = lab.connect(&certificate());
        tunnel.connected();
        assert_eq!(tunnel.stop("TERM").code, Some(0));
    }
    unchanged(&before, &lab.snapshot());
}
