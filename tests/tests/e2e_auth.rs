//! Every way to authenticate, with the real client against real gateways.

use std::process::ExitCode;

use peregrine_tests::lab::{self, Lab, Profile, certs, names};
use serde_json::Value;

fn main() -> ExitCode {
    lab::run(
        "pgauth",
        &[
            ("eap_tls_with_tls_1_2", eap_tls_with_tls_1_2),
            (
                "eap_tls_with_tls_1_3_and_a_server_of_its_own",
                eap_tls_with_tls_1_3_and_a_server_of_its_own,
            ),
            ("eap_mschapv2", eap_mschapv2),
            (
                "eap_mschapv2_with_the_password_in_a_file",
                eap_mschapv2_with_the_password_in_a_file,
            ),
            ("pre_shared_key", pre_shared_key),
            ("certificates_ecdsa_p256", certificates_ecdsa_p256),
            ("certificates_ecdsa_p384", certificates_ecdsa_p384),
            ("certificates_ecdsa_p521", certificates_ecdsa_p521),
            ("certificates_rsa", certificates_rsa),
            ("certificates_ed25519", certificates_ed25519),
            ("certificate_and_key_in_pkcs12", certificate_and_key_in_pkcs12),
            (
                "certificate_and_key_in_old_pkcs12",
                certificate_and_key_in_old_pkcs12,
            ),
            ("key_under_a_passphrase", key_under_a_passphrase),
            (
                "the_pinned_certificate_of_the_gateway",
                the_pinned_certificate_of_the_gateway,
            ),
            (
                "ecdsa_with_a_gateway_without_rfc_7427",
                ecdsa_with_a_gateway_without_rfc_7427,
            ),
            (
                "rsa_sha1_with_an_old_gateway_if_the_profile_allows",
                rsa_sha1_with_an_old_gateway_if_the_profile_allows,
            ),
        ],
    )
}

/// Connects, uses the tunnel in both address families, compares with what the gateway says, and leaves.
fn works(lab: &Lab, profile: &Profile, arguments: &[&str]) -> Value {
    let mut tunnel = lab.connect_with(profile, arguments);
    let status = tunnel.connected();
    assert!(
        lab.pings(names::SERVER_V4),
        "the server behind the gateway does not answer over IPv4"
    );
    assert!(
        lab.pings(names::SERVER_V6),
        "the server behind the gateway does not answer over IPv6"
    );
    let addresses = status["addresses"].to_string();
    assert!(
        addresses.contains("10.3.0.") && addresses.contains("fd03::"),
        "addresses: {addresses}"
    );
    let (ours, theirs) = (spis(&status), lab.gateway_sas());
    for spi in ours {
        assert!(
            theirs.contains(&spi),
            "the gateway does not know SPI {spi}: {theirs}"
        );
    }
    let ended = tunnel.stop("TERM");
    assert_eq!(ended.code, Some(0), "after SIGTERM: {ended:?}");
    lab::eventually("the gateway forgets the SAs", || {
        !lab.gateway_sas().contains("ESTABLISHED")
    });
    status
}

/// The four SPIs of a status, in hexadecimal as `swanctl --list-sas` prints them.
fn spis(status: &Value) -> Vec<String> {
    let (ike, child) = (&status["ike_sa"], &status["child_sas"][0]);
    [
        &ike["initiator_spi"],
        &ike["responder_spi"],
        &child["inbound_spi"],
        &child["outbound_spi"],
    ]
    .map(|spi| {
        spi.as_str()
            .unwrap_or_else(|| panic!("a status without all SPIs: {status}"))
            .to_lowercase()
    })
    .into()
}

fn eap_tls_with_tls_1_2(lab: &Lab) {
    let status = works(lab, &Profile::eap_tls(), &[]);
    assert_eq!(status["gateway"]["identity"], "eap-tls.vpn.lab");
}

fn eap_tls_with_tls_1_3_and_a_server_of_its_own(lab: &Lab) {
    works(lab, &Profile::eap_tls13(), &[]);
    let log = lab.log("radius");
    assert!(log.contains("Login OK: [alice@vpn.lab]"), "{log}");
}

fn eap_mschapv2(lab: &Lab) {
    works(lab, &Profile::mschapv2(), &[]);
}

fn eap_mschapv2_with_the_password_in_a_file(lab: &Lab) {
    let file = lab
        .file("password", &format!("{}\n", names::PASSWORD))
        .display()
        .to_string();
    works(
        lab,
        &Profile::mschapv2().without_auth("password"),
        &["--password-file", &file],
    );
}

fn pre_shared_key(lab: &Lab) {
    works(lab, &Profile::psk(), &[]);
}

fn certificates_ecdsa_p256(lab: &Lab) {
    works(lab, &Profile::certificate("cert.vpn.lab", "alice"), &[]);
}

fn certificates_ecdsa_p384(lab: &Lab) {
    works(lab, &Profile::certificate("cert-p384.vpn.lab", "alice-p384"), &[]);
}

fn certificates_ecdsa_p521(lab: &Lab) {
    works(lab, &Profile::certificate("cert-p521.vpn.lab", "alice-p521"), &[]);
}

fn certificates_rsa(lab: &Lab) {
    works(lab, &Profile::certificate("cert-rsa.vpn.lab", "alice-rsa"), &[]);
}

fn certificates_ed25519(lab: &Lab) {
    works(
        lab,
        &Profile::certificate("cert-ed25519.vpn.lab", "alice-ed25519"),
        &[],
    );
}

fn in_pkcs12(lab: &Lab, bag: &str) {
    let passphrase = lab.file("passphrase", certs::PASSPHRASE).display().to_string();
    let profile = Profile::new("cert.vpn.lab")
        .method("certificate")
        .auth("pkcs12", bag);
    works(lab, &profile, &["--password-file", &passphrase]);
}

fn certificate_and_key_in_pkcs12(lab: &Lab) {
    in_pkcs12(lab, "alice.p12");
}

fn certificate_and_key_in_old_pkcs12(lab: &Lab) {
    in_pkcs12(lab, "alice-legacy.p12");
}

fn key_under_a_passphrase(lab: &Lab) {
    let passphrase = lab.file("passphrase", certs::PASSPHRASE).display().to_string();
    let profile = Profile::certificate("cert.vpn.lab", "alice").auth("key", "alice-encrypted.key");
    works(lab, &profile, &["--password-file", &passphrase]);
}

fn the_pinned_certificate_of_the_gateway(lab: &Lab) {
    works(
        lab,
        &Profile::certificate("cert.vpn.lab", "alice").pin("server-ecdsa.pem"),
        &[],
    );
}

/// The old gateway protects another network, over IPv4 only.
fn works_with_the_old_gateway(lab: &Lab, profile: &Profile) {
    let mut tunnel = lab.connect(
        &profile
            .clone()
            .address(names::GATEWAY_OLD)
            .remote_ts(&["10.5.0.0/24"]),
    );
    tunnel.connected();
    assert!(
        lab.pings("10.5.0.1"),
        "the old gateway's inner address does not answer"
    );
    assert_eq!(tunnel.stop("TERM").code, Some(0));
}

fn ecdsa_with_a_gateway_without_rfc_7427(lab: &Lab) {
    works_with_the_old_gateway(lab, &Profile::certificate("old.vpn.lab", "alice"));
}

fn rsa_sha1_with_an_old_gateway_if_the_profile_allows(lab: &Lab) {
    let profile = Profile::certificate("old-rsa.vpn.lab", "alice-rsa");
    let refused = lab
        .connect(&profile.clone().address(names::GATEWAY_OLD))
        .end(std::time::Duration::from_secs(30));
    refused.must_be(6, "gateway_auth_method_not_allowed");
    works_with_the_old_gateway(lab, &profile.gateway("allow_sha1_auth", "true"));
}
