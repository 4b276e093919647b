//! Gateways whose certificates name who can tell whether they were revoked: a list and openssl's OCSP responder, and a
//! strongSwan that brings the responder's answer itself.

use std::process::ExitCode;
use std::time::Duration;

use peregrine_tests::lab::{self, Ended, Lab, Profile, Tunnel, names};

fn main() -> ExitCode {
    lab::run(
        "pgrevoke",
        &[
            ("good_by_list", good_by_list),
            ("good_by_ocsp", good_by_ocsp),
            ("revoked_by_list", revoked_by_list),
            ("revoked_by_ocsp", revoked_by_ocsp),
            ("nobody_is_asked_when_off", nobody_is_asked_when_off),
            ("where_nobody_answers", where_nobody_answers),
            ("second_choice", second_choice),
            ("untrusted", untrusted),
            ("the_gateway_brings_the_answer", the_gateway_brings_the_answer),
        ],
    )
}

fn profile(name: &str, revocation: &str) -> Profile {
    Profile::certificate(&format!("{name}.vpn.lab"), "alice")
        .gateway("revocation", &format!("{revocation:?}"))
}

/// What the status server was asked so far.
fn asked(lab: &Lab) -> usize {
    let log = lab.log("status");
    log.lines()
        .filter(|line| line.contains("\"GET ") || line.contains("\"POST "))
        .count()
}

/// Connects, and gives what the status notes.
fn connects(lab: &Lab, profile: &Profile) -> Vec<String> {
    let mut tunnel: Tunnel = lab.connect(profile);
    let status = tunnel.connected();
    let notes = status["notes"].as_array().expect("the status has notes").clone();
    let ended = tunnel.stop("INT");
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    notes
        .iter()
        .map(|note| note.as_str().expect("a sentence").to_owned())
        .collect()
}

/// Tries to connect, which must fail, and compares the machine before and after.
fn fails(lab: &Lab, profile: &Profile) -> Ended {
    let before = lab.snapshot();
    let ended = lab.connect(profile).end(Duration::from_secs(60));
    assert_eq!(lab.snapshot(), before, "a failure changed the machine");
    ended
}

/// By a name, and over a redirection.
fn good_by_list(lab: &Lab) {
    for revocation in ["soft", "strict"] {
        let before = asked(lab);
        assert!(connects(lab, &profile("listed", revocation)).is_empty());
        assert_eq!(asked(lab), before + 2, "{}", lab.log("status"));
    }
}

fn good_by_ocsp(lab: &Lab) {
    for revocation in ["soft", "strict"] {
        let before = asked(lab);
        assert!(connects(lab, &profile("ocsp", revocation)).is_empty());
        assert_eq!(asked(lab), before + 1);
    }
}

fn revoked_by_list(lab: &Lab) {
    for revocation in ["soft", "strict"] {
        let ended = fails(lab, &profile("listed-revoked", revocation));
        ended.must_be(6, "gateway_certificate_revoked");
        ended.must_say("2026-01-02");
        ended.must_say("/moved.crl");
        ended.must_say("key compromise");
    }
}

fn revoked_by_ocsp(lab: &Lab) {
    for revocation in ["soft", "strict"] {
        let ended = fails(lab, &profile("ocsp-revoked", revocation));
        ended.must_be(6, "gateway_certificate_revoked");
        ended.must_say("/ocsp");
    }
}

fn nobody_is_asked_when_off(lab: &Lab) {
    let before = asked(lab);
    for name in ["listed-revoked", "ocsp-revoked"] {
        assert!(connects(lab, &profile(name, "off")).is_empty());
    }
    assert_eq!(asked(lab), before);
}

fn where_nobody_answers(lab: &Lab) {
    let notes = connects(lab, &profile("status-down", "soft"));
    assert!(notes.len() == 1 && notes[0].contains("refused"), "{notes:?}");
    let ended = fails(lab, &profile("status-down", "strict"));
    ended.must_be(6, "gateway_revocation_unknown");
    ended.must_say("OCSP http://192.0.2.11:81/: ");
    ended.must_say("CRL http://192.0.2.11:81/: ");
}

fn second_choice(lab: &Lab) {
    assert!(connects(lab, &profile("second-choice", "strict")).is_empty());
}

/// CVE-2022-40617.
fn untrusted(lab: &Lab) {
    let before = asked(lab);
    for revocation in ["soft", "strict"] {
        fails(lab, &profile("untrusted", revocation)).must_be(6, "gateway_certificate_rejected");
    }
    // Another name than the certificate's is no better.
    let elsewhere = profile("listed", "strict").identity("cert.vpn.lab");
    let ended = fails(lab, &elsewhere);
    assert_ne!(ended.code, Some(0));
    assert_eq!(asked(lab), before, "{}", lab.log("status"));
}

/// RFC 4806: it is the gateway that asks.
fn the_gateway_brings_the_answer(lab: &Lab) {
    let at_new = |name: &str| profile(name, "strict").address(names::GATEWAY_NEW);
    assert!(connects(lab, &at_new("ocsp")).is_empty());
    let log = lab.log("charon-new");
    assert!(log.contains("received empty OCSP cert request"), "{log}");
    assert!(log.contains("sending OCSP status for certificate"), "{log}");
    fails(lab, &at_new("ocsp-revoked")).must_be(6, "gateway_certificate_revoked");
    // Only strongSwan has asked.
    let server = lab.log("status");
    let ours = server
        .lines()
        .filter(|line| line.contains("POST") && !line.starts_with(names::GATEWAY_NEW));
    let after = ours.count();
    connects(lab, &at_new("ocsp"));
    let server = lab.log("status");
    let ours = server
        .lines()
        .filter(|line| line.contains("POST") && !line.starts_with(names::GATEWAY_NEW));
    assert_eq!(ours.count(), after, "{server}");
}
