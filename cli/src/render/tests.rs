use std::collections::BTreeMap;

use peregrine_core::command::{
    Cause, ChildSaStatus, Features, GatewayStatus, HostFault, IkeSaStatus, PathStatus, PromptId,
};
use peregrine_core::plan::Dns;
use peregrine_core::timer::UnixTime;

use super::*;

const PLAIN: Style = Style {
    colour: false,
    unicode: true,
    width: None,
};

fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

fn connecting(stage: Stage) -> Status {
    Status {
        state: State::Connecting,
        stage: Some(stage),
        attempt: 1,
        ..Status::default()
    }
}

fn connected() -> Status {
    Status {
        state: State::Connected,
        attempt: 1,
        gateway: Some(GatewayStatus {
            host: "vpn.example.org".into(),
            address: Some("192.0.2.1:4500".parse().unwrap()),
            identity: Some("vpn.example.org".into()),
            redirected_to: None,
        }),
        path: Some(PathStatus {
            local: "10.11.0.2:40000".parse().unwrap(),
            remote: "192.0.2.1:4500".parse().unwrap(),
            transport: "udp",
            nat: "local",
            interface: Some("wlan0".into()),
            rtt_ms: Some(3),
        }),
        ike_sa: Some(IkeSaStatus {
            initiator_spi: "00".into(),
            responder_spi: "01".into(),
            suite: "aes256gcm16-prfsha384-x25519".into(),
            established: UnixTime::default(),
            rekey_at: None,
        }),
        child_sas: vec![ChildSaStatus {
            inbound_spi: "c0".into(),
            outbound_spi: "c1".into(),
            suite: "aes256gcm16-esn".into(),
            local_ts: vec!["10.3.0.1/32".into()],
            remote_ts: vec!["0.0.0.0/0".into(), "::/0".into()],
            rekey_at: None,
        }],
        addresses: vec!["10.3.0.1/32".parse().unwrap()],
        dns: Dns {
            servers: vec!["10.1.0.2".parse().unwrap()],
            domains: vec!["corp.lab".into()],
        },
        mtu: Some(1400),
        features: Features::default(),
        ..Status::default()
    }
}

fn traffic(rx_bytes: u64, tx_bytes: u64) -> Traffic {
    Traffic {
        rx_bytes,
        tx_bytes,
        rx_packets: 1,
        tx_packets: 1,
        dropped: BTreeMap::new(),
    }
}

#[test]
fn each_step_becomes_a_line_when_it_is_over() {
    let mut progress = Progress::new(PLAIN);
    assert!(progress.status(&connecting(Stage::Resolve), ms(0)).is_empty());
    assert_eq!(
        progress.live(ms(1)).as_deref(),
        Some("… Network find the gateway's address")
    );
    let lines = progress.status(&connecting(Stage::IkeSaInit), ms(12));
    assert_eq!(
        lines,
        ["✓ Network               find the gateway's address         12 ms"]
    );
    // The same status again is no news.
    assert!(progress.status(&connecting(Stage::IkeSaInit), ms(13)).is_empty());
    let lines = progress.status(&connecting(Stage::IkeAuth), ms(45));
    assert_eq!(
        lines,
        ["✓ Phase 1 · IKE SA      IKE_SA_INIT: agree on keys         33 ms"]
    );
    let lines = progress.status(&connecting(Stage::ChildSa), ms(50));
    assert!(
        lines[0].contains("Phase 1 · IKE SA") && lines[0].contains("IKE_AUTH"),
        "{lines:?}"
    );
    let lines = progress.status(&connecting(Stage::Apply), ms(51));
    assert!(lines[0].contains("Phase 2 · Child SA"), "{lines:?}");
    assert!(!progress.is_connected());
}

#[test]
fn a_connection_is_summed_up() {
    let mut progress = Progress::new(PLAIN);
    progress.status(&connecting(Stage::Apply), ms(100));
    let lines = progress.status(&connected(), ms(143));
    assert_eq!(
        lines,
        [
            "✓ This machine          device, routes, name servers       43 ms",
            "",
            "Connected to vpn.example.org in 143 ms",
            "  Phase 1 · IKE SA    aes256gcm16-prfsha384-x25519",
            "  Phase 2 · Child SA  aes256gcm16-esn",
            "  path                10.11.0.2:40000 → 192.0.2.1:4500 over UDP via wlan0, we are behind a NAT",
            "  in the tunnel       all traffic",
            "  addresses           10.3.0.1/32",
            "  name servers        10.1.0.2 for corp.lab",
            "  MTU                 1400",
        ]
    );
    assert!(progress.is_connected());
    assert!(progress.status(&connected(), ms(200)).is_empty());
}

#[test]
fn what_could_not_be_found_out_is_said() {
    let mut progress = Progress::new(PLAIN);
    progress.status(&connecting(Stage::Apply), ms(100));
    let mut status = connected();
    status.notes = vec!["Nobody could say.".to_owned()];
    let lines = progress.status(&status, ms(143));
    assert_eq!(
        lines.last().map(String::as_str),
        Some("  note                Nobody could say.")
    );
}

#[test]
fn throughput_is_the_difference_of_samples() {
    let mut progress = Progress::new(PLAIN);
    progress.status(&connecting(Stage::Apply), ms(0));
    progress.status(&connected(), ms(1000));
    assert_eq!(
        progress.live(ms(1500)).as_deref(),
        Some("Connected 00:00:00  no traffic yet")
    );
    progress.traffic(&traffic(1_000_000, 500), ms(2000));
    assert_eq!(
        progress.live(ms(2000)).as_deref(),
        Some("Connected 00:00:01  ↓ 1.00 MB/s ↑ 500 B/s  total ↓ 1.00 MB ↑ 500 B")
    );
    progress.traffic(&traffic(3_500_000, 500), ms(3000));
    assert_eq!(
        progress.live(ms(3100)).as_deref(),
        Some("Connected 00:00:02  ↓ 2.50 MB/s ↑ 0 B/s  total ↓ 3.50 MB ↑ 500 B")
    );
    // After a silence, what counts is the second in which something moved.
    progress.traffic(&traffic(3_600_000, 500), ms(60_000));
    assert!(progress.live(ms(60_000)).unwrap().contains("↓ 100 kB/s"));
    // Without news nothing flows.
    assert_eq!(
        progress.live(ms(3_602_000)).as_deref(),
        Some("Connected 01:00:01  ↓ 0 B/s ↑ 0 B/s  total ↓ 3.60 MB ↑ 500 B")
    );
    let down = Status {
        state: State::Disconnecting,
        ..Status::default()
    };
    assert!(progress.status(&down, ms(4000)).is_empty());
    assert_eq!(progress.live(ms(4000)).as_deref(), Some("… disconnecting"));
    assert_eq!(
        progress.farewell(ms(4500)).as_deref(),
        Some("Disconnected after 00:00:03, ↓ 3.60 MB ↑ 500 B")
    );
}

#[test]
fn the_step_that_failed_is_marked_by_more_than_colour() {
    let mut progress = Progress::new(PLAIN);
    progress.status(&connecting(Stage::Eap), ms(10));
    let cause = Cause::AuthenticationFailed;
    let idle = Status {
        state: State::Idle,
        failure: Some(Failure {
            stage: Stage::Eap,
            cause,
        }),
        ..Status::default()
    };
    let lines = progress.status(&idle, ms(30));
    assert_eq!(
        lines,
        ["✗ Phase 1 · IKE SA      EAP: prove who we are              20 ms"]
    );
    assert!(progress.farewell(ms(30)).is_none() && progress.live(ms(30)).is_none());
    // A connection that was up and then failed has no step to mark.
    let mut progress = Progress::new(PLAIN);
    progress.status(&connecting(Stage::Apply), ms(0));
    progress.status(&connected(), ms(1));
    assert!(progress.status(&idle, ms(2)).is_empty());
}

#[test]
fn a_new_attempt_is_said() {
    let mut progress = Progress::new(PLAIN);
    progress.status(&connecting(Stage::IkeSaInit), ms(0));
    let again = Status {
        attempt: 2,
        ..connecting(Stage::Resolve)
    };
    assert_eq!(progress.status(&again, ms(5)), ["Attempt 2"]);
}

#[test]
fn failures_say_what_where_whose_and_what_to_do() {
    let lines = failure(
        PLAIN,
        &Failure {
            stage: Stage::IkeAuth,
            cause: Cause::AuthenticationFailed,
        },
        ms(84),
    );
    assert_eq!(lines[0], "✗ The gateway rejected our authentication.");
    assert_eq!(
        lines[1],
        "  where               Phase 1 · IKE SA, step IKE_AUTH, after 84 ms"
    );
    assert_eq!(lines[2], "  whose side          this machine or its profile");
    assert!(lines[3].starts_with("  try this            "), "{lines:?}");
    assert_eq!(
        lines.last().unwrap(),
        "  technical           AUTHENTICATION_FAILED (24)"
    );

    let lines = failure(
        PLAIN,
        &Failure {
            stage: Stage::ChildSa,
            cause: Cause::NoChildProposal,
        },
        ms(9),
    );
    assert_eq!(
        lines[1],
        "  where               Phase 2 · Child SA, step Child SA, after 9 ms"
    );
    assert_eq!(lines[2], "  whose side          the gateway");

    let fault = HostFault {
        action: "make network devices".into(),
        reason: "that needs root".into(),
        permission: true,
    };
    let lines = failure(
        PLAIN,
        &Failure {
            stage: Stage::Apply,
            cause: Cause::Host(fault),
        },
        ms(0),
    );
    let text = lines.join("\n");
    assert!(
        text.contains("This machine") && text.contains("sudo") && text.contains("setcap cap_net_admin+ep")
    );
    assert!(!text.contains("technical"));
}

#[test]
fn narrow_terminals_wrap_under_the_label() {
    let style = Style {
        width: Some(60),
        ..PLAIN
    };
    let lines = failure(
        style,
        &Failure {
            stage: Stage::Reach,
            cause: Cause::NoAnswer,
        },
        ms(1),
    );
    assert!(lines.iter().all(|line| line.chars().count() <= 60), "{lines:#?}");
    assert!(
        lines
            .iter()
            .any(|line| line.starts_with("                      ")),
        "{lines:#?}"
    );
}

#[test]
fn colour_decorates_and_changes_no_word() {
    let colour = Style {
        colour: true,
        ..PLAIN
    };
    let cause = Failure {
        stage: Stage::IkeAuth,
        cause: Cause::AuthenticationFailed,
    };
    let strip = |text: &str| {
        let mut plain = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('\x1b') {
            plain.push_str(before);
            rest = after.split_once('m').map_or("", |(_, rest)| rest);
        }
        plain + rest
    };
    let painted: Vec<String> = failure(colour, &cause, ms(1))
        .iter()
        .map(|line| strip(line))
        .collect();
    assert_eq!(painted, failure(PLAIN, &cause, ms(1)));
    assert_ne!(failure(colour, &cause, ms(1)), failure(PLAIN, &cause, ms(1)));
}

#[test]
fn amounts_have_three_digits() {
    for (count, text) in [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (12_345, "12.3 kB"),
        (999_499, "999 kB"),
        (999_500, "1.00 MB"),
        (1_234_567_890, "1.23 GB"),
        (5_000_000_000_000_000, "5 PB"),
    ] {
        assert_eq!(octets(count), text);
    }
}

#[test]
fn everything_is_said_in_words() {
    let ts = |texts: &[&str]| networks(&texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>());
    assert_eq!(ts(&["0.0.0.0/0", "::/0"]), "all traffic");
    assert_eq!(ts(&["0.0.0.0/0"]), "all IPv4 traffic");
    assert_eq!(ts(&["::/0"]), "all IPv6 traffic");
    assert_eq!(ts(&["10.0.0.0/8", "fd00::/8"]), "10.0.0.0/8, fd00::/8");
}

#[test]
fn questions_are_shown_as_the_gateways() {
    let mut prompt = Prompt {
        id: PromptId(7),
        kind: PromptKind::OneTimeCode,
        profile: "Office".into(),
        message: Some("Code?".into()),
    };
    assert_eq!(
        gateway_asks(PLAIN, &prompt),
        ["? The gateway of Office asks: “Code?”"]
    );
    assert_eq!(question(&prompt), "Your answer (it is not shown): ");
    prompt.message = None;
    assert_eq!(gateway_asks(PLAIN, &prompt), Vec::<String>::new());
    assert_eq!(question(&prompt), "One-time code: ");
    prompt.kind = PromptKind::Password;
    assert_eq!(question(&prompt), "Password: ");
}
