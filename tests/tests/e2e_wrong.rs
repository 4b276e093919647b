//! Wrong things, each with its exit status and its named failure. Routes and name resolution stay as they were.

use std::process::ExitCode;
use std::time::Duration;

use peregrine_tests::lab::{self, Ended, Lab, Profile, names};

fn main() -> ExitCode {
    lab::run(
        "pgwrong",
        &[
            ("gateway_of_an_unknown_ca", gateway_of_an_unknown_ca),
            ("our_ca_file_is_another_one", our_ca_file_is_another_one),
            ("expired_gateway_certificate", expired_gateway_certificate),
            ("gateway_certificate_of_tomorrow", gateway_certificate_of_tomorrow),
            (
                "gateway_certificate_for_clients_only",
                gateway_certificate_for_clients_only,
            ),
            ("gateway_of_another_name", gateway_of_another_name),
            (
                "gateway_with_another_certificate_than_pinned",
                gateway_with_another_certificate_than_pinned,
            ),
            ("eap_tls_server_of_another_name", eap_tls_server_of_another_name),
            (
                "certificate_that_the_gateway_does_not_trust",
                certificate_that_the_gateway_does_not_trust,
            ),
            ("wrong_psk", wrong_psk),
            ("wrong_password", wrong_password),
            (
                "gateway_refuses_our_ike_proposals",
                gateway_refuses_our_ike_proposals,
            ),
            (
                "gateway_refuses_our_esp_proposals",
                gateway_refuses_our_esp_proposals,
            ),
            ("gateway_refuses_our_selectors", gateway_refuses_our_selectors),
            (
                "gateway_offers_another_eap_method",
                gateway_offers_another_eap_method,
            ),
            (
                "gateway_wants_eap_and_the_profile_has_none",
                gateway_wants_eap_and_the_profile_has_none,
            ),
            ("gateway_that_does_not_answer", gateway_that_does_not_answer),
            ("port_where_nothing_listens", port_where_nothing_listens),
            ("gateway_without_a_route_to_it", gateway_without_a_route_to_it),
            ("name_without_an_address", name_without_an_address),
            ("gateway_that_answers_in_ikev1", gateway_that_answers_in_ikev1),
            ("profile_with_a_typo", profile_with_a_typo),
            ("profile_that_is_missing", profile_that_is_missing),
            ("key_file_that_is_missing", key_file_that_is_missing),
            ("key_of_another_certificate", key_of_another_certificate),
            ("wrong_passphrase_of_the_key", wrong_passphrase_of_the_key),
            ("without_privileges", without_privileges),
        ],
    )
}

fn certificate(identity: &str) -> Profile {
    Profile::certificate(identity, "alice")
}

/// Tries to connect, which must fail, and compares the machine before and after.
fn fails(lab: &Lab, profile: &Profile) -> Ended {
    fails_with(lab, profile, &[])
}

fn fails_with(lab: &Lab, profile: &Profile, arguments: &[&str]) -> Ended {
    let before = lab.snapshot();
    let ended = lab.connect_with(profile, arguments).end(Duration::from_secs(60));
    assert_eq!(lab.snapshot(), before, "a failure changed the machine");
    ended
}

fn gateway_of_an_unknown_ca(lab: &Lab) {
    fails(lab, &certificate("unknown.vpn.lab")).must_be(6, "gateway_certificate_rejected");
}

fn our_ca_file_is_another_one(lab: &Lab) {
    fails(lab, &certificate("cert.vpn.lab").ca("other-ca.pem")).must_be(6, "gateway_certificate_rejected");
}

fn expired_gateway_certificate(lab: &Lab) {
    let ended = fails(lab, &certificate("expired.vpn.lab"));
    ended.must_be(6, "gateway_certificate_rejected");
    ended.must_say("expired");
}

fn gateway_certificate_of_tomorrow(lab: &Lab) {
    let ended = fails(lab, &certificate("notyet.vpn.lab"));
    ended.must_be(6, "gateway_certificate_rejected");
    ended.must_say("not valid before");
}

fn gateway_certificate_for_clients_only(lab: &Lab) {
    fails(lab, &certificate("clientonly.vpn.lab")).must_be(6, "gateway_certificate_rejected");
}

/// The gateway claims the name, but its certificate does not have it.
fn gateway_of_another_name(lab: &Lab) {
    let ended = fails(lab, &certificate("mismatch.vpn.lab"));
    ended.must_be(6, "gateway_certificate_rejected");
    ended.must_say("mismatch.vpn.lab");
}

fn gateway_with_another_certificate_than_pinned(lab: &Lab) {
    let pinned = certificate("cert.vpn.lab").pin("server-p384.pem");
    fails(lab, &pinned).must_be(6, "gateway_certificate_rejected");
}

fn eap_tls_server_of_another_name(lab: &Lab) {
    let elsewhere = Profile::eap_tls13().auth("aaa_identity", "another.lab");
    fails(lab, &elsewhere).must_be(6, "eap_server_certificate_rejected");
}

fn certificate_that_the_gateway_does_not_trust(lab: &Lab) {
    let mallory = Profile::certificate("cert.vpn.lab", "mallory");
    fails(lab, &mallory).must_be(6, "authentication_failed");
}

/// The gateway cannot tell who we are before it has checked us, so that it is the one who refuses.
fn wrong_psk(lab: &Lab) {
    let ended = fails(lab, &Profile::psk().auth("psk", "not-the-key-9Kf2mQx7Lw"));
    ended.must_be(6, "authentication_failed");
}

fn wrong_password(lab: &Lab) {
    fails(lab, &Profile::mschapv2().auth("password", "not the password")).must_be(6, "authentication_failed");
}

fn gateway_refuses_our_ike_proposals(lab: &Lab) {
    let refusing = certificate("cert.vpn.lab").address(names::GATEWAY_REFUSING_IKE);
    let ended = fails_with(lab, &refusing, &[]);
    ended.must_be(4, "no_proposal_chosen");
    assert_eq!(ended.failure.expect("a failure")["phase"], "phase1");
}

fn gateway_refuses_our_esp_proposals(lab: &Lab) {
    let ended = fails(lab, &certificate("no-esp.vpn.lab"));
    ended.must_be(5, "no_proposal_chosen");
    assert_eq!(ended.failure.expect("a failure")["phase"], "phase2");
}

fn gateway_refuses_our_selectors(lab: &Lab) {
    let ended = fails(lab, &certificate("no-ts.vpn.lab").remote_ts(&["172.16.0.0/12"]));
    ended.must_be(5, "ts_unacceptable");
}

fn gateway_offers_another_eap_method(lab: &Lab) {
    let ended = fails(lab, &Profile::eap_tls().identity("eap-md5.vpn.lab"));
    ended.must_be(6, "eap_method_mismatch");
}

fn gateway_wants_eap_and_the_profile_has_none(lab: &Lab) {
    // strongSwan refuses a client that signs where it wants EAP.
    fails(lab, &certificate("eap-tls.vpn.lab")).must_be(6, "authentication_failed");
}

fn gateway_that_does_not_answer(lab: &Lab) {
    let ended = fails_with(
        lab,
        &certificate("cert.vpn.lab").address(names::GATEWAY_SILENT),
        &["--timeout", "5"],
    );
    assert!(matches!(ended.code, Some(3 | 8)), "{ended:?}");
    assert!(
        matches!(ended.failure_code(), "no_answer" | "timed_out"),
        "{ended:?}"
    );
}

fn port_where_nothing_listens(lab: &Lab) {
    let nobody = certificate("cert.vpn.lab").port(5999);
    let ended = fails_with(lab, &nobody, &["--timeout", "5"]);
    assert!(matches!(ended.code, Some(3 | 8)), "{ended:?}");
}

fn gateway_without_a_route_to_it(lab: &Lab) {
    let routes = [
        "via 10.11.0.1 dev wifi metric 100",
        "via 10.12.0.1 dev lte metric 600",
    ];
    for route in routes {
        lab.must("cli", &["sh", "-c", &format!("ip route del default {route}")]);
    }
    let ended = fails_with(lab, &certificate("cert.vpn.lab"), &["--timeout", "10"]);
    for route in routes {
        lab.must("cli", &["sh", "-c", &format!("ip route add default {route}")]);
    }
    ended.must_be(3, "no_route");
}

fn name_without_an_address(lab: &Lab) {
    let nowhere = certificate("cert.vpn.lab").address("nowhere.vpn.lab");
    fails_with(lab, &nowhere, &["--timeout", "20"]).must_be(3, "name_not_found");
}

fn gateway_that_answers_in_ikev1(lab: &Lab) {
    let old = certificate("cert.vpn.lab").address(names::GATEWAY_V1);
    fails_with(lab, &old, &["--timeout", "20"]).must_be(4, "ikev1_only");
}

/// A profile that cannot be used is told on the standard error with its place, and nothing is sent.
fn bad_profile(lab: &Lab, text: &str, arguments: &[&str], parts: &[&str]) {
    let file = lab.file("bad.toml", text);
    let ended = lab.connect_file(&file, arguments).end(Duration::from_secs(10));
    assert_eq!(ended.code, Some(2), "{ended:?}");
    for part in parts {
        assert!(
            ended.log.contains(part),
            "nothing about '{part}' in: {}",
            ended.log
        );
    }
}

fn profile_with_a_typo(lab: &Lab) {
    let text = certificate("cert.vpn.lab")
        .to_toml(&lab.pki())
        .replace("identity =", "identiy =");
    bad_profile(lab, &text, &[], &["identiy", "identity", ":5:"]);
}

fn profile_that_is_missing(lab: &Lab) {
    let ended = lab
        .connect_file(&lab.dir().join("none.toml"), &[])
        .end(Duration::from_secs(10));
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(ended.log.contains("none.toml"), "{ended:?}");
}

fn key_file_that_is_missing(lab: &Lab) {
    let text = certificate("cert.vpn.lab")
        .auth("key", "nobody.key")
        .to_toml(&lab.pki());
    bad_profile(lab, &text, &[], &["nobody.key"]);
}

fn key_of_another_certificate(lab: &Lab) {
    let text = certificate("cert.vpn.lab")
        .auth("key", "alice-rsa.key")
        .to_toml(&lab.pki());
    bad_profile(lab, &text, &[], &["alice-rsa.key"]);
}

fn wrong_passphrase_of_the_key(lab: &Lab) {
    let text = certificate("cert.vpn.lab")
        .auth("key", "alice-encrypted.key")
        .to_toml(&lab.pki());
    let wrong = lab.file("passphrase", "not the passphrase").display().to_string();
    bad_profile(lab, &text, &["--password-file", &wrong], &["passphrase"]);
}

/// Without CAP_NET_ADMIN: one sentence that names both ways to get it.
fn without_privileges(lab: &Lab) {
    let mut command = lab.command("cli", "setpriv");
    command.args(["--bounding-set=-all", "--inh-caps=-all"]);
    let profile = lab.profile(&certificate("cert.vpn.lab"));
    let ended = lab
        .run_client(command, &profile, &[])
        .end(Duration::from_secs(10));
    assert_eq!(ended.code, Some(7), "{ended:?}");
    let said = format!("{}{:?}", ended.log, ended.failure);
    assert!(said.contains("sudo") && said.contains("cap_net_admin"), "{said}");
}
