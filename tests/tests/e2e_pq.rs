//! Post-quantum key exchange (RFC 9370, RFC 9242) and pre-shared keys (RFC 8784), with the real client against a
//! strongSwan that has both and one that has neither.

use std::process::ExitCode;
use std::time::Duration;

use peregrine_tests::lab::{self, Lab, Profile, names, wire};
use serde_json::Value;

fn main() -> ExitCode {
    lab::run(
        "pgpq",
        &[
            (
                "by_default_with_a_gateway_that_has_ml_kem",
                by_default_with_a_gateway_that_has_ml_kem,
            ),
            (
                "by_default_with_gateways_that_do_not",
                by_default_with_gateways_that_do_not,
            ),
            ("ml_kem_512", ml_kem_512),
            ("ml_kem_768", ml_kem_768),
            ("ml_kem_1024", ml_kem_1024),
            ("two_additional_key_exchanges", two_additional_key_exchanges),
            ("we_rekey_with_ml_kem", we_rekey_with_ml_kem),
            ("the_gateway_rekeys_with_ml_kem", the_gateway_rekeys_with_ml_kem),
            (
                "an_optional_one_that_the_gateway_leaves_out",
                an_optional_one_that_the_gateway_leaves_out,
            ),
            ("with_aes_cbc", with_aes_cbc),
            ("over_ipv6", over_ipv6),
            ("in_small_fragments", in_small_fragments),
            ("without_ike_fragments", without_ike_fragments),
            ("with_a_pre_shared_key", with_a_pre_shared_key),
            ("with_eap_tls_1_3", with_eap_tls_1_3),
            ("after_rekeyings_of_both_sides", after_rekeyings_of_both_sides),
            ("required_and_there", required_and_there),
            ("required_and_not_there", required_and_not_there),
            ("ppk_optional", ppk_optional),
            ("ppk_required", ppk_required),
            ("ppk_in_a_file", ppk_in_a_file),
            (
                "ppk_that_the_gateway_does_not_know",
                ppk_that_the_gateway_does_not_know,
            ),
            ("ppk_required_and_not_known", ppk_required_and_not_known),
            (
                "ppk_required_and_no_gateway_for_it",
                ppk_required_and_no_gateway_for_it,
            ),
            (
                "ppk_optional_and_no_gateway_for_it",
                ppk_optional_and_no_gateway_for_it,
            ),
            ("ppk_that_is_wrong", ppk_that_is_wrong),
            ("ppk_that_the_gateway_requires", ppk_that_the_gateway_requires),
            ("ppk_with_eap", ppk_with_eap),
            ("ppk_with_eap_that_is_wrong", ppk_with_eap_that_is_wrong),
            (
                "ppk_and_ml_kem_and_a_pre_shared_key",
                ppk_and_ml_kem_and_a_pre_shared_key,
            ),
            ("tshark_reads_ike_intermediate", tshark_reads_ike_intermediate),
        ],
    )
}

/// Both SAs are replaced with ML-KEM in IKE_FOLLOWUP_KE while pings go through.
fn rekeys(lab: &Lab, profile: &Profile, by: &str) {
    let mut tunnel = lab.connect(profile);
    tunnel.connected();
    for kind in ["child_sa", "ike_sa", "child_sa"] {
        let rekey = tunnel.event("rekeyed", |it| {
            it["event"] == "rekey" && it["kind"] == kind && it["by"] == by
        });
        let suite = rekey["suite"].as_str().unwrap_or("");
        assert!(suite.contains("ke1_mlkem768"), "{rekey}");
        let ping = ["ping", "-n", "-c", "5", "-i", "0.1", "-W", "2", names::NEW_V4];
        lab.must("cli", &ping);
    }
    let sas = lab.must("new", &["swanctl", "--list-sas"]);
    assert!(sas.matches("ML_KEM_768").count() >= 2, "{sas}");
    let ended = tunnel.stop("TERM");
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert!(
        ended.events.iter().all(|it| it["event"] != "reconnect"),
        "{}",
        ended.log
    );
}

fn we_rekey_with_ml_kem(lab: &Lab) {
    let profile = certificate()
        .child("rekey", "\"10s\"")
        .ike("rekey", "\"15s\"")
        .esp_proposals(&["aes256gcm16-x25519-ke1_mlkem768-esn-noesn"]);
    rekeys(lab, &profile, "client");
}

fn the_gateway_rekeys_with_ml_kem(lab: &Lab) {
    rekeys(
        lab,
        &new(Profile::certificate("rekey.vpn.lab", "alice")),
        "gateway",
    );
}

/// A profile of the new gateway's.
fn new(profile: Profile) -> Profile {
    profile
        .address(names::GATEWAY_NEW)
        .remote_ts(&["10.6.0.0/24", "fd06::/64"])
}

fn certificate() -> Profile {
    new(Profile::certificate("cert.vpn.lab", "alice"))
}

fn with_ppk(identity: &str, id: &str, secret: &str) -> Profile {
    new(Profile::certificate(identity, "alice"))
        .auth("ppk_id", id)
        .auth("ppk", secret)
}

/// Connects to the new gateway, uses the tunnel in both address families, and leaves: the status, and what the gateway
/// said of its SAs then.
fn works(lab: &Lab, profile: &Profile) -> (Value, String) {
    let mut tunnel = lab.connect(profile);
    let status = tunnel.connected();
    assert!(lab.pings(names::NEW_V4), "no answer over IPv4");
    assert!(lab.pings(names::NEW_V6), "no answer over IPv6");
    let sas = lab.must("new", &["swanctl", "--list-sas"]);
    assert_eq!(tunnel.stop("TERM").code, Some(0));
    lab::eventually("the gateway forgets the SAs", || {
        !lab.must("new", &["swanctl", "--list-sas"])
            .contains("ESTABLISHED")
    });
    (status, sas)
}

/// Both sides know of this suite, in our keywords and in strongSwan's words.
fn works_with(lab: &Lab, profile: &Profile, suite: &str, theirs: &str) {
    let (status, sas) = works(lab, profile);
    assert_eq!(status["ike_sa"]["suite"], suite);
    assert_eq!(status["features"]["post_quantum"], suite.contains("mlkem"));
    assert!(sas.contains(theirs), "the gateway does not say {theirs}: {sas}");
}

fn fails(lab: &Lab, profile: &Profile, exit: i32, code: &str) {
    lab.connect(profile)
        .end(Duration::from_secs(30))
        .must_be(exit, code);
}

fn by_default_with_a_gateway_that_has_ml_kem(lab: &Lab) {
    let (status, sas) = works(lab, &certificate());
    assert_eq!(status["features"]["post_quantum"], true);
    let suite = status["ike_sa"]["suite"].as_str().unwrap_or("");
    assert!(suite.ends_with("-x25519-ke1_mlkem768"), "{suite}");
    assert!(sas.contains("/CURVE_25519/KE1_ML_KEM_768"), "{sas}");
}

fn by_default_with_gateways_that_do_not(lab: &Lab) {
    let old = Profile::certificate("old.vpn.lab", "alice")
        .address(names::GATEWAY_OLD)
        .remote_ts(&["10.5.0.0/24"]);
    for profile in [Profile::certificate("cert.vpn.lab", "alice"), old] {
        let mut tunnel = lab.connect(&profile);
        let status = tunnel.connected();
        assert_eq!(status["features"]["post_quantum"], false, "{status}");
        assert_eq!(tunnel.stop("TERM").code, Some(0));
    }
}

fn ml_kem_512(lab: &Lab) {
    let suite = "aes256gcm16-prfsha384-x25519-ke1_mlkem512";
    let profile = certificate().ike_proposals(&[suite]);
    works_with(lab, &profile, suite, "/CURVE_25519/KE1_ML_KEM_512");
}

fn ml_kem_768(lab: &Lab) {
    let suite = "aes256gcm16-prfsha384-ecp384-ke1_mlkem768";
    let profile = certificate().ike_proposals(&[suite]);
    works_with(lab, &profile, suite, "/ECP_384/KE1_ML_KEM_768");
}

fn ml_kem_1024(lab: &Lab) {
    let suite = "aes256gcm16-prfsha512-ecp256-ke1_mlkem1024";
    let profile = certificate().ike_proposals(&[suite]);
    works_with(lab, &profile, suite, "/ECP_256/KE1_ML_KEM_1024");
}

fn two_additional_key_exchanges(lab: &Lab) {
    let suite = "aes256gcm16-prfsha384-x25519-ke1_mlkem768-ke2_mlkem1024";
    let profile = certificate().ike_proposals(&[suite]);
    works_with(
        lab,
        &profile,
        suite,
        "/CURVE_25519/KE1_ML_KEM_768/KE2_ML_KEM_1024",
    );
}

fn an_optional_one_that_the_gateway_leaves_out(lab: &Lab) {
    let offer = "aes256gcm16-prfsha384-x25519-ke1_mlkem768-ke3_mlkem512-ke3_none";
    let suite = "aes256gcm16-prfsha384-x25519-ke1_mlkem768";
    let profile = certificate().ike_proposals(&[offer]);
    works_with(lab, &profile, suite, "/CURVE_25519/KE1_ML_KEM_768");
}

/// The integrity key is of another generation after each exchange, too.
fn with_aes_cbc(lab: &Lab) {
    let suite = "aes256-sha384-prfsha384-x25519-ke1_mlkem768";
    let profile = certificate().ike_proposals(&[suite]);
    works_with(
        lab,
        &profile,
        suite,
        "AES_CBC-256/HMAC_SHA2_384_192/PRF_HMAC_SHA2_384/CURVE_25519/KE1_ML_KEM_768",
    );
}

fn over_ipv6(lab: &Lab) {
    let (status, _) = works(lab, &certificate().address(names::GATEWAY_NEW_V6));
    assert_eq!(status["features"]["post_quantum"], true);
}

/// Our requests have three or more fragments; strongSwan's response, whose own limit is 1280, has two.
fn in_small_fragments(lab: &Lab) {
    let suite = "aes256gcm16-prfsha384-x25519-ke1_mlkem1024";
    let profile = certificate().ike_proposals(&[suite]).ike("fragment_size", "576");
    let before = lab.log("charon-new").len();
    works_with(lab, &profile, suite, "KE1_ML_KEM_1024");
    let log = lab.log("charon-new").split_off(before);
    for said in [
        "parsed IKE_INTERMEDIATE request 1 [ EF(4/4) ]",
        "generating IKE_INTERMEDIATE response 1 [ EF(2/2) ]",
    ] {
        assert!(log.contains(said), "{said}: {log}");
    }
}

fn without_ike_fragments(lab: &Lab) {
    let suite = "aes256gcm16-prfsha384-x25519-ke1_mlkem512";
    let profile = certificate()
        .ike_proposals(&[suite])
        .ike("fragmentation", "false");
    works_with(lab, &profile, suite, "KE1_ML_KEM_512");
}

fn with_a_pre_shared_key(lab: &Lab) {
    let (status, _) = works(lab, &new(Profile::psk()));
    assert_eq!(status["features"]["post_quantum"], true);
}

fn with_eap_tls_1_3(lab: &Lab) {
    let before = lab.log("charon-new").len();
    let (status, sas) = works(lab, &new(Profile::eap_tls()));
    assert_eq!(status["features"]["post_quantum"], true);
    assert!(sas.contains("KE1_ML_KEM_768"), "{sas}");
    let log = lab.log("charon-new").split_off(before);
    assert!(log.contains("negotiated TLS 1.3"), "{log}");
}

/// Rekeying makes no additional key exchange; what was made at the beginning stays in the keys. The gateway offers one with
/// it and one without.
fn after_rekeyings_of_both_sides(lab: &Lab) {
    let profile = certificate().child("rehearse_rekey", "true");
    let mut tunnel = lab.connect(&profile);
    tunnel.connected();
    let rekey = |kind: &'static str, by: &'static str| {
        move |event: &Value| event["event"] == "rekey" && event["kind"] == kind && event["by"] == by
    };
    tunnel.event("its child rekeyed", rekey("child_sa", "client"));
    assert!(lab.pings(names::NEW_V4));
    lab.must("new", &["swanctl", "--rekey", "--child", "net"]);
    tunnel.event("its child rekeyed by the gateway", rekey("child_sa", "gateway"));
    assert!(lab.pings(names::NEW_V4));
    lab.must("new", &["swanctl", "--rekey", "--ike", "cert"]);
    tunnel.event("rekeyed by the gateway", rekey("ike_sa", "gateway"));
    assert!(lab.pings(names::NEW_V4) && lab.pings(names::NEW_V6));
    let status = tunnel.event("told of it", |event| {
        event["event"] == "status" && event["state"] == "connected"
    });
    assert_eq!(status["features"]["post_quantum"], true, "{status}");
    assert_eq!(tunnel.stop("TERM").code, Some(0));
}

fn required_and_there(lab: &Lab) {
    let (status, _) = works(lab, &certificate().ike("require_pq", "true"));
    assert_eq!(status["features"]["post_quantum"], true);
}

fn required_and_not_there(lab: &Lab) {
    let profile = Profile::certificate("cert.vpn.lab", "alice").ike("require_pq", "true");
    fails(lab, &profile, 4, "no_post_quantum");
    // Optional for the gateway alone, which chooses it where the profile lets it.
    let offer = "aes256gcm16-prfsha384-x25519-ke3_mlkem512-ke3_none";
    let profile = certificate().ike_proposals(&[offer]).ike("require_pq", "true");
    fails(lab, &profile, 4, "no_post_quantum");
}

/// strongSwan says PPK at the end of the suite of an IKE SA that has one in its keys.
fn has_ppk(sas: &str) -> bool {
    sas.lines()
        .any(|line| line.contains("PRF_") && line.ends_with("/PPK"))
}

fn ppk_optional(lab: &Lab) {
    let (status, sas) = works(lab, &with_ppk("ppk.vpn.lab", names::PPK_ID, names::PPK));
    assert!(has_ppk(&sas), "{sas}");
    assert_eq!(status["features"]["ppk"], true);
    assert_eq!(status["features"]["post_quantum"], true);
}

fn ppk_required(lab: &Lab) {
    let suite = "aes256gcm16-prfsha384-x25519";
    let profile = with_ppk("ppk.vpn.lab", names::PPK_ID, names::PPK)
        .auth_raw("ppk_required", "true")
        .ike_proposals(&[suite]);
    let (status, sas) = works(lab, &profile);
    assert!(has_ppk(&sas), "{sas}");
    assert_eq!(status["ike_sa"]["suite"], suite);
}

fn ppk_in_a_file(lab: &Lab) {
    let file = lab
        .file("ppk", &format!("{}\n", names::PPK))
        .display()
        .to_string();
    let profile = with_ppk("ppk.vpn.lab", names::PPK_ID, names::PPK)
        .without_auth("ppk")
        .auth("ppk_file", &file)
        .auth_raw("ppk_required", "true");
    let (_, sas) = works(lab, &profile);
    assert!(has_ppk(&sas), "{sas}");
}

/// The gateway goes on with what NO_PPK_AUTH says.
fn ppk_that_the_gateway_does_not_know(lab: &Lab) {
    let before = lab.log("charon-new").len();
    let (status, sas) = works(lab, &with_ppk("cert.vpn.lab", "another", names::PPK));
    assert!(!has_ppk(&sas), "{sas}");
    assert_eq!(status["features"]["ppk"], false);
    let log = lab.log("charon-new").split_off(before);
    assert!(log.contains("using NO_PPK_AUTH notify"), "{log}");
}

fn ppk_required_and_not_known(lab: &Lab) {
    let profile = with_ppk("cert.vpn.lab", "another", names::PPK).auth_raw("ppk_required", "true");
    fails(lab, &profile, 6, "authentication_failed");
    // This connection of the gateway's has one PPK only.
    let profile = with_ppk("ppk.vpn.lab", "another", names::PPK);
    fails(lab, &profile, 6, "authentication_failed");
}

fn ppk_required_and_no_gateway_for_it(lab: &Lab) {
    let profile = Profile::certificate("cert.vpn.lab", "alice")
        .auth("ppk_id", names::PPK_ID)
        .auth("ppk", names::PPK)
        .auth_raw("ppk_required", "true");
    fails(lab, &profile, 6, "ppk_not_used");
}

fn ppk_optional_and_no_gateway_for_it(lab: &Lab) {
    let profile = Profile::certificate("cert.vpn.lab", "alice")
        .auth("ppk_id", names::PPK_ID)
        .auth("ppk", names::PPK);
    let mut tunnel = lab.connect(&profile);
    tunnel.connected();
    assert!(lab.pings(names::SERVER_V4));
    assert_eq!(tunnel.stop("TERM").code, Some(0));
}

fn ppk_that_is_wrong(lab: &Lab) {
    let wrong = names::PPK.replace('7', "8");
    assert_ne!(wrong, names::PPK);
    let profile = with_ppk("ppk.vpn.lab", names::PPK_ID, &wrong);
    fails(lab, &profile, 6, "authentication_failed");
    fails(
        lab,
        &profile.auth_raw("ppk_required", "true"),
        6,
        "authentication_failed",
    );
}

fn ppk_that_the_gateway_requires(lab: &Lab) {
    let profile = with_ppk("ppk-required.vpn.lab", names::PPK_ID, names::PPK);
    let (_, sas) = works(lab, &profile);
    assert!(has_ppk(&sas), "{sas}");
    let without = new(Profile::certificate("ppk-required.vpn.lab", "alice"));
    fails(lab, &without, 6, "authentication_failed");
    let unknown = with_ppk("ppk-required.vpn.lab", "another", names::PPK);
    fails(lab, &unknown, 6, "authentication_failed");
}

fn eap_with_ppk(secret: &str) -> Profile {
    new(Profile::eap_tls().identity("ppk-eap.vpn.lab"))
        .auth("ppk_id", names::PPK_ID)
        .auth("ppk", secret)
}

fn ppk_with_eap(lab: &Lab) {
    for required in ["true", "false"] {
        let profile = eap_with_ppk(names::PPK).auth_raw("ppk_required", required);
        let (status, sas) = works(lab, &profile);
        assert!(has_ppk(&sas) && sas.contains("KE1_ML_KEM_768"), "{sas}");
        assert_eq!(status["features"]["post_quantum"], true);
        assert_eq!(status["features"]["ppk"], true);
    }
}

fn ppk_with_eap_that_is_wrong(lab: &Lab) {
    let wrong = names::PPK.replace('7', "8");
    fails(lab, &eap_with_ppk(&wrong), 6, "authentication_failed");
}

fn ppk_and_ml_kem_and_a_pre_shared_key(lab: &Lab) {
    let suite = "aes256gcm16-prfsha384-x25519-ke1_mlkem768-ke2_mlkem1024";
    let profile = new(Profile::psk())
        .auth("ppk_id", names::PPK_ID)
        .auth("ppk", names::PPK)
        .ike_proposals(&[suite]);
    let (status, sas) = works(lab, &profile);
    assert!(has_ppk(&sas), "{sas}");
    assert_eq!(status["ike_sa"]["suite"], suite);
}

fn tshark_reads_ike_intermediate(lab: &Lab) {
    let capture = lab.capture("cli", "wifi");
    works(lab, &certificate());
    let file = capture.end();
    let init = wire::tshark(
        &file,
        "isakmp.exchangetype == 34 && isakmp.flag_i == 1",
        &["isakmp.notify.msgtype", "isakmp.tf.type"],
    );
    assert!(!init.is_empty(), "no IKE_SA_INIT request in the capture");
    for request in &init {
        // INTERMEDIATE_EXCHANGE_SUPPORTED, and transforms of type ADDKE1.
        assert!(request.contains("16438") && request.contains(",6,"), "{request}");
    }
    let fragments = wire::tshark(
        &file,
        "isakmp.exchangetype == 43 && isakmp.messageid == 1 && isakmp.flag_r == 0",
        &["isakmp.typepayload", "isakmp.frag.number", "isakmp.frag.total"],
    );
    assert_eq!(fragments.len(), 2, "{fragments:?}");
    assert!(
        fragments.iter().all(|fragment| fragment.starts_with("53")),
        "{fragments:?}"
    );
    let complaints = wire::tshark(
        &file,
        "isakmp && (_ws.malformed || _ws.expert.severity >= 0x600000)",
        &["frame.number", "_ws.expert.message"],
    );
    assert!(complaints.is_empty(), "{complaints:#?}");
}
