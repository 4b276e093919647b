//! Every path to the gateway and every ESP suite, with real traffic, and nothing on the wire that does not belong there.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::process::ExitCode;

use peregrine_tests::lab::{self, Frame, Lab, Profile, names, wire};

fn main() -> ExitCode {
    lab::run(
        "pgpath",
        &[
            ("through_nat", through_nat),
            ("without_nat", without_nat),
            ("over_ipv6", over_ipv6),
            ("by_the_name_of_the_gateway", by_the_name_of_the_gateway),
            ("esp_aes_gcm_256", |lab| esp(lab, "aes256gcm16", "AES_GCM_16-256")),
            ("esp_aes_gcm_128", |lab| esp(lab, "aes128gcm16", "AES_GCM_16-128")),
            ("esp_chacha20_poly1305", |lab| {
                esp(lab, "chacha20poly1305", "CHACHA20_POLY1305")
            }),
            ("esp_aes_cbc_256_sha1", |lab| {
                esp(lab, "aes256-sha1", "AES_CBC-256/HMAC_SHA1_96")
            }),
            ("esp_aes_cbc_256_sha256", |lab| {
                esp(lab, "aes256-sha256", "AES_CBC-256/HMAC_SHA2_256_128")
            }),
            ("esp_aes_cbc_256_sha384", |lab| {
                esp(lab, "aes256-sha384", "AES_CBC-256/HMAC_SHA2_384_192")
            }),
            ("esp_aes_cbc_256_sha512", |lab| {
                esp(lab, "aes256-sha512", "AES_CBC-256/HMAC_SHA2_512_256")
            }),
            ("esp_aes_cbc_128_sha256", |lab| {
                esp(lab, "aes128-sha256", "AES_CBC-128/HMAC_SHA2_256_128")
            }),
            ("ike_ecp256_sha256", |lab| {
                ike(lab, "aes128gcm16-prfsha256-ecp256")
            }),
            ("ike_ecp384_sha384", |lab| {
                ike(lab, "aes256gcm16-prfsha384-ecp384")
            }),
            ("ike_ecp521_sha512", |lab| {
                ike(lab, "aes256gcm16-prfsha512-ecp521")
            }),
            ("ike_modp2048_cbc", |lab| {
                ike(lab, "aes256-sha256-prfsha256-modp2048")
            }),
            ("ike_modp3072_cbc", |lab| {
                ike(lab, "aes256-sha384-prfsha384-modp3072")
            }),
            ("ike_modp4096_cbc", |lab| {
                ike(lab, "aes128-sha512-prfsha512-modp4096")
            }),
            ("ike_chacha20_poly1305", |lab| {
                ike(lab, "chacha20poly1305-prfsha256-x25519")
            }),
            (
                "the_gateway_chooses_another_key_exchange",
                the_gateway_chooses_another_key_exchange,
            ),
            (
                "long_certificate_chains_in_ike_fragments",
                long_certificate_chains_in_ike_fragments,
            ),
            (
                "names_are_looked_up_through_the_tunnel",
                names_are_looked_up_through_the_tunnel,
            ),
            ("fifty_megabytes_over_ipv4", |lab| {
                download(lab, "http://10.1.0.2/random.bin")
            }),
            ("fifty_megabytes_over_ipv6", |lab| {
                download(lab, "http://[fd01::2]/random.bin")
            }),
            ("only_chosen_networks", only_chosen_networks),
            ("the_wire_shows_ike_and_esp_only", the_wire_shows_ike_and_esp_only),
            (
                "tshark_reads_ike_sa_init_without_complaint",
                tshark_reads_ike_sa_init_without_complaint,
            ),
        ],
    )
}

/// Connects, pings through and leaves; returns the status when connected and what the gateway said then.
fn through(lab: &Lab, profile: &Profile) -> (serde_json::Value, String) {
    let mut tunnel = lab.connect(profile);
    let status = tunnel.connected();
    assert!(lab.pings(names::SERVER_V4), "no answer over IPv4");
    assert!(lab.pings(names::SERVER_V6), "no answer over IPv6");
    let sas = lab.gateway_sas();
    let ended = tunnel.stop("TERM");
    assert_eq!(ended.code, Some(0), "{ended:?}");
    (status, sas)
}

fn certificate() -> Profile {
    Profile::certificate("cert.vpn.lab", "alice")
}

fn through_nat(lab: &Lab) {
    let (status, sas) = through(lab, &certificate().address(names::GATEWAY_NAT));
    assert_eq!(status["gateway"]["address"], "192.0.2.1:4500");
    // This gateway cannot do ESP without UDP, and says that it is behind a NAT to force UDP.
    assert_eq!(status["path"]["nat"], "both", "{status}");
    assert!(
        sas.contains("192.0.2.254["),
        "the gateway sees the router's address: {sas}"
    );
}

fn without_nat(lab: &Lab) {
    let (status, sas) = through(lab, &certificate().address(names::GATEWAY_DIRECT));
    assert_eq!(status["path"]["nat"], "remote", "{status}");
    assert!(sas.contains("10.11.0.2["), "the gateway sees our address: {sas}");
}

fn over_ipv6(lab: &Lab) {
    let (status, sas) = through(lab, &certificate().address(names::GATEWAY_V6));
    assert_eq!(status["gateway"]["address"], "[2001:db8:1::1]:4500");
    assert!(
        sas.contains("2001:db8:11::2["),
        "the gateway sees our address: {sas}"
    );
}

fn by_the_name_of_the_gateway(lab: &Lab) {
    let (status, _) = through(lab, &certificate().address(names::GATEWAY_NAME));
    assert_eq!(status["gateway"]["host"], names::GATEWAY_NAME);
}

fn esp(lab: &Lab, keywords: &str, in_the_gateways_words: &str) {
    let (status, sas) = through(lab, &certificate().esp_proposals(&[keywords]));
    let notes = status["notes"].to_string();
    assert_eq!(
        notes.contains("takes about ten times"),
        keywords.contains("-sha"),
        "{notes}"
    );
    assert!(sas.contains(&format!("ESP:{in_the_gateways_words}")), "{sas}");
}

fn ike(lab: &Lab, keywords: &str) {
    let (status, _) = through(lab, &certificate().ike_proposals(&[keywords]));
    assert_eq!(status["ike_sa"]["suite"], keywords);
}

/// The gateway does not do ECP with Brainpool or MODP 6144; our first group is one that it lacks, so that it asks for
/// another one of ours (INVALID_KE_PAYLOAD).
fn the_gateway_chooses_another_key_exchange(lab: &Lab) {
    let (status, _) = through(
        lab,
        &certificate().ike_proposals(&["aes256gcm16-prfsha384-modp6144-ecp384"]),
    );
    assert_eq!(status["ike_sa"]["suite"], "aes256gcm16-prfsha384-ecp384");
}

/// Both chains are larger than a datagram may be, and the router drops every IP fragment.
fn long_certificate_chains_in_ike_fragments(lab: &Lab) {
    assert!(
        !lab.run(
            "cli",
            &["ping", "-c", "1", "-W", "1", "-s", "3000", names::GATEWAY_NAT]
        )
        .status
        .success()
    );
    let capture = lab.capture("cli", "wifi");
    through(lab, &Profile::certificate("cert-long.vpn.lab", "alice-long"));
    let (mut sent, mut received) = (0, 0);
    for frame in capture.frames() {
        let Frame::Udp {
            source,
            destination,
            payload,
        } = frame
        else {
            continue;
        };
        // Next payload 53 (SKF) behind the non-ESP marker (RFC 7383, section 2.5; RFC 3948, section 2.2).
        if payload.starts_with(&[0; 4]) && payload.get(20) == Some(&53) {
            assert!(
                payload.len() + 28 <= 1280,
                "an IKE fragment in {} octets of IP",
                payload.len() + 28
            );
            if destination.1 == 4500 {
                sent += 1
            } else if source.1 == 4500 {
                received += 1
            }
        }
    }
    assert!(
        sent >= 2 && received >= 2,
        "{sent} IKE fragments sent, {received} received"
    );
}

fn names_are_looked_up_through_the_tunnel(lab: &Lab) {
    let lookup = ["getent", "ahosts", names::SERVER_NAME];
    assert!(
        !lab.run("cli", &lookup).status.success(),
        "the name is known outside of the tunnel"
    );
    let mut tunnel = lab.connect(&certificate());
    let status = tunnel.connected();
    assert_eq!(
        status["dns"]["servers"],
        serde_json::json!([names::SERVER_V4, names::SERVER_V6])
    );
    let answer = lab.must("cli", &lookup);
    assert!(
        answer.contains(names::SERVER_V4) && answer.contains(names::SERVER_V6),
        "{answer}"
    );
    assert!(
        lab.must(
            "cli",
            &["curl", "-sS", "--max-time", "10", "http://www.corp.lab/"]
        )
        .contains("behind the gateway")
    );
    assert_eq!(tunnel.stop("TERM").code, Some(0));
}

fn download(lab: &Lab, url: &str) {
    let mut tunnel = lab.connect(&certificate());
    tunnel.connected();
    let line = format!("curl -sS --max-time 25 '{url}' | sha256sum");
    let received = lab.must("cli", &["bash", "-c", &format!("set -o pipefail; {line}")]);
    let sent = lab.must(
        "lan",
        &[
            "sh",
            "-c",
            &format!("sha256sum <{}/www/random.bin", lab.dir().display()),
        ],
    );
    assert_eq!(received, sent, "the file did not arrive as it was sent");
    let ended = tunnel.stop("TERM");
    assert_eq!(ended.code, Some(0), "{ended:?}");
}

/// With a part of the networks in the tunnel, the rest goes on as before.
fn only_chosen_networks(lab: &Lab) {
    let before = lab.must("cli", &["ip", "route", "get", "192.0.2.12"]);
    let mut tunnel = lab.connect(&certificate().remote_ts(&["10.1.0.0/24"]));
    tunnel.connected();
    assert!(lab.pings(names::SERVER_V4));
    let outside = |text: &str| text.split_whitespace().take(5).collect::<Vec<_>>().join(" ");
    let during = lab.must("cli", &["ip", "route", "get", "192.0.2.12"]);
    assert_eq!(outside(&during), outside(&before));
    assert!(
        lab.must("cli", &["ip", "route", "get", "10.1.0.2"])
            .contains("src 10.3.0.")
    );
    assert_eq!(tunnel.stop("TERM").code, Some(0));
}

/// From before the start until after the end: IKE and ESP in UDP to and from the gateway, keepalives, ARP and neighbour
/// discovery. All traffic is in the tunnel, so nothing else may show, whatever programs do meanwhile.
fn the_wire_shows_ike_and_esp_only(lab: &Lab) {
    let captures = [lab.capture("cli", "wifi"), lab.capture("cli", "lte")];
    let mut tunnel = lab.connect(&certificate());
    tunnel.connected();
    assert!(lab.pings(names::SERVER_V4) && lab.pings(names::SERVER_V6));
    lab.must("cli", &["getent", "ahosts", names::SERVER_NAME]);
    lab.must(
        "cli",
        &[
            "curl",
            "-sS",
            "--max-time",
            "10",
            "-o",
            "/dev/null",
            "http://10.1.0.2/index.html",
        ],
    );
    // To somewhere that exists only outside of the tunnel.
    lab.run("cli", &["ping", "-c", "1", "-W", "1", names::GATEWAY_V1]);
    assert_eq!(tunnel.stop("TERM").code, Some(0));

    let gateway: IpAddr = names::GATEWAY_NAT.parse().expect("an address");
    let (mut ike, mut esp) = (0, 0);
    let mut wrong = BTreeSet::new();
    for frame in captures.into_iter().flat_map(lab::Capture::frames) {
        match frame {
            Frame::Arp | Frame::Neighbours => {}
            Frame::Udp {
                source,
                destination,
                payload,
            } => {
                let port = match (source.0 == gateway, destination.0 == gateway) {
                    (true, false) => source.1,
                    (false, true) => destination.1,
                    _ => 0,
                };
                match (port, payload.as_slice()) {
                    (500, [..]) | (4500, [0, 0, 0, 0, ..]) => ike += 1,
                    (4500, [0xff]) => {}
                    (4500, [_, _, _, _, ..]) => esp += 1,
                    _ => {
                        wrong.insert(format!("UDP from {source:?} to {destination:?}"));
                    }
                }
            }
            Frame::Other(what) => {
                wrong.insert(what);
            }
        }
    }
    assert!(wrong.is_empty(), "what does not belong on the wire: {wrong:#?}");
    assert!(ike >= 6, "{ike} IKE messages");
    assert!(esp >= 12, "{esp} ESP packets");
}

fn tshark_reads_ike_sa_init_without_complaint(lab: &Lab) {
    let capture = lab.capture("cli", "wifi");
    through(lab, &Profile::eap_tls());
    let file = capture.end();
    let sent = wire::tshark(
        &file,
        "isakmp.exchangetype == 34 && isakmp.flag_i == 1",
        &["isakmp.version", "isakmp.typepayload", "isakmp.notify.msgtype"],
    );
    assert!(!sent.is_empty(), "no IKE_SA_INIT request in the capture");
    for request in &sent {
        // SA, KE, nonce; NAT_DETECTION_SOURCE_IP, NAT_DETECTION_DESTINATION_IP, IKEV2_FRAGMENTATION_SUPPORTED.
        for part in ["0x20", "33", "34", "40", "16388", "16389", "16430"] {
            assert!(request.contains(part), "no {part} in {request}");
        }
    }
    // Expert severities: 0x400000 is a note, 0x600000 a warning, 0x800000 an error.
    let complaints = wire::tshark(
        &file,
        "isakmp && (_ws.malformed || _ws.expert.severity >= 0x600000)",
        &["frame.number", "_ws.expert.message"],
    );
    assert!(complaints.is_empty(), "{complaints:#?}");
}
