//! While a tunnel is up, the gateway's name is asked of the physical network's name servers, and never through it.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use std::fs;
use std::net::IpAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{Bus, Files, Namespace, full_plan, plan, run, with_two_networks};
use futures_util::StreamExt as _;
use peregrine_core::plan::Plan;
use peregrine_platform::batch::Batch;
use peregrine_platform::host::{Host as _, Tun as _};
use peregrine_platform::linux::{LinuxHost, Tun};

/// dnsmasq, in the network behind the cables.
struct NameServer(Child);

impl NameServer {
    fn start(network: &Namespace, address: &'static str, options: &[&str]) -> Self {
        let options: Vec<String> = options.iter().map(|option| format!("--{option}")).collect();
        network.run(move || {
            let child = Command::new("dnsmasq")
                .args([
                    "--keep-in-foreground",
                    "--no-resolv",
                    "--no-hosts",
                    "--conf-file=/dev/null",
                ])
                .args([
                    "--bind-interfaces",
                    "--pid-file=",
                    "--user=root",
                    "--local=/example/",
                ])
                .arg(format!("--listen-address={address}"))
                .args(options)
                .stderr(Stdio::null())
                .spawn()
                .expect("the package dnsmasq-base is installed");
            let server = Self(child);
            common::eventually("the name server listens", || {
                run("ss -lnut").contains(&format!("{address}:53"))
            });
            server
        })
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

const NAMES: [&str; 2] = [
    "host-record=vpn.example,198.51.100.1,2001:db8:2::1",
    "cname=www.example,vpn.example",
];

fn route() {
    run("ip route add default via 192.0.2.1 dev uplink0");
    run("ip -6 route add default via 2001:db8:1::1 dev uplink0");
}

fn with_resolv_conf(content: &str) -> Files {
    let files = Files::new();
    fs::create_dir_all(files.path("etc")).unwrap();
    fs::write(files.resolv_conf(), content).unwrap();
    // The C library knows only the one path.
    run(&format!(
        "mount --bind {} /etc/resolv.conf",
        files.resolv_conf().display()
    ));
    files
}

async fn resolve(host: &LinuxHost, name: &str) -> Vec<String> {
    let found: Vec<IpAddr> = host.resolve(name.to_owned()).await.unwrap();
    found.iter().map(ToString::to_string).collect()
}

/// Nothing came out of the device but what the kernel itself says there.
async fn assert_untouched(tun: &Tun) {
    let mut batch = Batch::new();
    while tokio::time::timeout(Duration::from_millis(100), tun.recv(&mut batch))
        .await
        .is_ok()
    {
        for (_, _, packet) in batch.packets() {
            let is_icmp_v6 = packet[0] >> 4 == 6 && (packet[6] == 58 || packet[6] == 0);
            assert!(is_icmp_v6, "a packet went into the tunnel: {packet:02x?}");
        }
        batch.clear();
    }
}

const BOTH: [&str; 2] = ["2001:db8:2::1", "198.51.100.1"];

#[test]
fn the_servers_that_were_there_before_are_asked() {
    with_two_networks(|network| async move {
        route();
        let _server = NameServer::start(&network, "192.0.2.1", &NAMES);
        let files = with_resolv_conf("nameserver 192.0.2.1\nsearch example\n");
        let host = files.host();
        assert_eq!(
            resolve(&host, "vpn.example").await.len(),
            2,
            "without a tunnel, by the system"
        );
        let tun = host.apply(full_plan()).await.unwrap().tun.unwrap();
        assert!(
            fs::read_to_string(files.resolv_conf())
                .unwrap()
                .contains("10.3.0.53")
        );
        for (name, addresses) in [
            ("vpn.example", &BOTH[..]),
            ("VPN.example.", &BOTH),
            ("www.example", &BOTH),
            ("vpn", &BOTH),
            ("no.example", &[]),
        ] {
            assert_eq!(resolve(&host, name).await, addresses, "{name}");
        }
        assert_untouched(&tun).await;
        // Without a way for one family, the other one is better.
        run("ip -6 route del default");
        assert_eq!(resolve(&host, "vpn.example").await, [BOTH[1], BOTH[0]]);
        // A hosts file comes first.
        fs::write(files.path("etc/hosts"), "192.0.2.77 vpn.example\n").unwrap();
        assert_eq!(resolve(&host, "vpn.example").await, ["192.0.2.77"]);
        assert_untouched(&tun).await;
        host.apply(Plan::default()).await.unwrap();
    });
}

#[test]
fn the_servers_of_the_network_that_we_came_to_are_asked() {
    with_two_networks(|network| async move {
        route();
        let _old = NameServer::start(&network, "192.0.2.1", &["host-record=vpn.example,192.0.2.9"]);
        let _new = NameServer::start(&network, "203.0.113.1", &NAMES);
        let files = with_resolv_conf("nameserver 192.0.2.1\n");
        let host = files.host();
        let tun = host.apply(full_plan()).await.unwrap().tun.unwrap();
        assert_eq!(resolve(&host, "vpn.example").await, ["192.0.2.9"]);
        // What a DHCP client writes.
        fs::write(files.resolv_conf(), "nameserver 203.0.113.1\n").unwrap();
        assert_eq!(resolve(&host, "vpn.example").await, BOTH);
        host.apply(full_plan()).await.unwrap(); // ours again
        assert!(
            !fs::read_to_string(files.resolv_conf())
                .unwrap()
                .contains("203.0.113.1")
        );
        assert_eq!(resolve(&host, "vpn.example").await, BOTH);
        assert_untouched(&tun).await;
    });
}

#[test]
fn a_tunnel_without_name_servers_does_not_swallow_the_question() {
    with_two_networks(|network| async move {
        route();
        let _server = NameServer::start(&network, "192.0.2.1", &NAMES);
        let files = with_resolv_conf("nameserver 192.0.2.1\n");
        let host = files.host();
        let full = plan(&["10.3.0.1/32", "fd00:3::1/128"], &["0.0.0.0/0", "::/0"], &[]);
        let tun = host.apply(full).await.unwrap().tun.unwrap();
        assert_eq!(resolve(&host, "vpn.example").await, BOTH);
        assert_untouched(&tun).await;
        // With the server outside of the tunnel the system can do it.
        host.apply(plan(&["10.3.0.1/32"], &["10.0.0.0/8"], &[]))
            .await
            .unwrap();
        let mut found = resolve(&host, "vpn.example").await;
        found.sort();
        assert_eq!(found, ["198.51.100.1", "2001:db8:2::1"]);
    });
}

#[test]
fn a_server_that_is_gone_holds_nobody_up() {
    with_two_networks(|network| async move {
        route();
        let _server = NameServer::start(&network, "203.0.113.1", &NAMES);
        run("ip route add 203.0.113.1/32 dev uplink1 table main");
        let files = with_resolv_conf("nameserver 192.0.2.99\nnameserver 203.0.113.1\n");
        let host = files.host();
        let tun = host.apply(full_plan()).await.unwrap().tun.unwrap();
        let begun = Instant::now();
        assert_eq!(resolve(&host, "vpn.example").await, BOTH);
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
        assert_untouched(&tun).await;
    });
}

#[test]
fn without_any_server_it_ends_in_seconds() {
    with_two_networks(|_network| async move {
        route();
        let files = with_resolv_conf("nameserver 192.0.2.98\nnameserver 192.0.2.99\n");
        let host = files.host();
        let tun = host.apply(full_plan()).await.unwrap().tun.unwrap();
        let begun = Instant::now();
        let fault = host.resolve("vpn.example".to_owned()).await.unwrap_err();
        assert!(fault.action.contains("vpn.example"), "{fault}");
        assert!(begun.elapsed() < Duration::from_secs(7), "{:?}", begun.elapsed());
        assert_untouched(&tun).await;
        // The same for the system's own.
        host.apply(Plan::default()).await.unwrap();
        let begun = Instant::now();
        host.resolve("vpn.example".to_owned()).await.unwrap_err();
        assert!(begun.elapsed() < Duration::from_secs(9), "{:?}", begun.elapsed());
    });
}

#[test]
fn an_answer_that_does_not_fit_comes_over_tcp() {
    with_two_networks(|network| async move {
        route();
        let many: Vec<String> = (1..=60)
            .map(|last| format!("host-record=many.example,192.0.2.{last}"))
            .collect();
        let options: Vec<&str> = many.iter().map(String::as_str).collect();
        let _server = NameServer::start(&network, "192.0.2.1", &options);
        let files = with_resolv_conf("nameserver 192.0.2.1\n");
        let host = files.host();
        let tun = host.apply(full_plan()).await.unwrap().tun.unwrap();
        assert_eq!(resolve(&host, "many.example").await.len(), 60);
        assert_untouched(&tun).await;
    });
}

#[test]
fn a_refusal_is_not_taken_for_no_address() {
    with_two_networks(|network| async move {
        route();
        let _first = NameServer::start(&network, "192.0.2.1", &NAMES);
        let files = with_resolv_conf("nameserver 192.0.2.1\n");
        let host = files.host();
        let _tun = host.apply(full_plan()).await.unwrap().tun.unwrap();
        // dnsmasq refuses what it has nobody to ask about.
        let fault = host.resolve("vpn.elsewhere".to_owned()).await.unwrap_err();
        assert!(fault.reason.contains("REFUSED"), "{fault}");
    });
}

#[test]
fn resolvconf_is_asked_about_the_others() {
    with_two_networks(|network| async move {
        route();
        let _server = NameServer::start(&network, "192.0.2.1", &NAMES);
        let files = with_resolv_conf("nameserver 192.0.2.1\n");
        let program = files.path("resolvconf");
        // It does what openresolv does with one physical interface.
        let script = format!(
            "#!/bin/sh\ncase $1 in\n--version) echo openresolv ;;\n-a) cat > {conf} ;;\n-d|-f) echo nameserver 192.0.2.1 > {conf} ;;\n-l) printf '# resolv.conf from tun0.peregrine0\\nnameserver 10.3.0.53\\n\\n# resolv.conf from uplink0\\nnameserver 192.0.2.1\\n' ;;\nesac\n",
            conf = files.resolv_conf().display()
        );
        fs::write(&program, script).unwrap();
        run(&format!("chmod 755 {}", program.display()));
        let mut config = files.config();
        config.dns.resolvconf = vec![program];
        let host = LinuxHost::new(config).unwrap();
        let tun = host.apply(full_plan()).await.unwrap().tun.unwrap();
        assert_eq!(
            fs::read_to_string(files.resolv_conf()).unwrap(),
            "nameserver 10.3.0.53\n"
        );
        assert_eq!(resolve(&host, "vpn.example").await, BOTH);
        assert_untouched(&tun).await;
    });
}

/// Answers as systemd-resolved, for this link alone.
async fn serve_resolved(bus: &Bus, link: i32) -> zbus::Connection {
    let connection = bus.serve("org.freedesktop.resolve1").await;
    let answering = connection.clone();
    tokio::spawn(async move {
        let mut messages = zbus::MessageStream::from(&answering);
        while let Some(Ok(message)) = messages.next().await {
            let header = message.header();
            if header.message_type() != zbus::message::Type::MethodCall {
                continue;
            }
            if header.member().map(|member| member.as_str()) != Some("ResolveHostname") {
                answering.reply(&header, &()).await.unwrap();
                continue;
            }
            let body = message.body();
            let (asked, name, family, _): (i32, String, i32, u64) = body.deserialize().unwrap();
            assert_eq!(family, 0, "both families");
            let error = if asked != link {
                "org.freedesktop.resolve1.NoNameServers"
            } else if name == "vpn.example" {
                let addresses = vec![(link, 2, vec![198, 51, 100, 1_u8])];
                let found = (addresses, "vpn.example", 1_u64);
                answering.reply(&header, &found).await.unwrap();
                continue;
            } else {
                "org.freedesktop.resolve1.DnsError.NXDOMAIN"
            };
            answering.reply_error(&header, error, &"no").await.unwrap();
        }
    });
    connection
}

#[test]
fn systemd_resolved_is_asked_about_the_physical_link() {
    with_two_networks(|network| async move {
        route();
        let _server = NameServer::start(&network, "192.0.2.1", &["host-record=global.example,192.0.2.5"]);
        let files = with_resolv_conf("nameserver 127.0.0.53\n");
        let bus = Bus::new(&files);
        let mut config = files.config();
        config.dns.bus = Some(bus.address.clone());
        let host = LinuxHost::new(config).unwrap();
        let uplink = nix::net::if_::if_nametoindex("uplink0").unwrap();
        let resolved = serve_resolved(&bus, i32::try_from(uplink).unwrap()).await;
        let tun = host.apply(full_plan()).await.unwrap().tun.unwrap();
        assert_eq!(resolve(&host, "vpn.example").await, ["198.51.100.1"]);
        assert!(resolve(&host, "no.example").await.is_empty());
        // Where the link has no servers of its own, those that resolved has for all links are left.
        run("ip route replace default via 203.0.113.1 dev uplink1");
        run("ip -6 route replace default via 2001:db8:3::1 dev uplink1");
        run("mount -t tmpfs none /run");
        fs::create_dir_all("/run/systemd/resolve").unwrap();
        fs::write(
            "/run/systemd/resolve/resolv.conf",
            "nameserver 10.3.0.53\nnameserver 192.0.2.1\n",
        )
        .unwrap();
        assert_eq!(resolve(&host, "global.example").await, ["192.0.2.5"]);
        assert_untouched(&tun).await;
        // While there is somebody to tell it to.
        host.apply(Plan::default()).await.unwrap();
        drop(resolved);
    });
}
