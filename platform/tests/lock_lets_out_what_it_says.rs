//! The firewall of the kill switch, seen from the network: what arrives there is what docs/security.md allows.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Files, Namespace, config_in, eventually, full_plan, plan, run, snapshot, with_two_networks};
use nix::sys::socket::{setsockopt, sockopt};
use peregrine_core::command::Endpoint;
use peregrine_core::plan::{Closed, Lock, Plan};
use peregrine_platform::host::{Host as _, Tun as _};
use peregrine_platform::linux::LinuxHost;

/// The mark of our own sockets: another program of root's could set it too, and none does by accident.
const MARK: u32 = 0x7065_7265;

const GATEWAY_V4: &str = "198.51.100.1:500";
const GATEWAY_V6: &str = "[2001:db8:2::1]:500";

fn locked(closed: Closed) -> Plan {
    Plan {
        tunnel: None,
        lock: Lock::Closed(closed),
    }
}

fn gateways() -> BTreeSet<Endpoint> {
    let udp = [GATEWAY_V4, GATEWAY_V6].map(|text| Endpoint::udp(text.parse().unwrap()));
    let tcp = Endpoint::tcp("198.51.100.1:4500".parse().unwrap());
    udp.into_iter().chain([tcp]).collect()
}

fn strict() -> Closed {
    Closed {
        gateways: gateways(),
        ..Closed::default()
    }
}

fn routes() {
    run("ip route add default via 192.0.2.1");
    run("ip -6 route add default via 2001:db8:1::1");
}

/// Whether a datagram that somebody sends to this address arrives there.
fn arrives(network: &Namespace, to: &str, mark: Option<u32>) -> bool {
    let to: SocketAddr = to.parse().unwrap();
    let there = network.run(move || {
        let socket = UdpSocket::bind(to).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        socket
    });
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).unwrap();
    if let Some(mark) = mark {
        setsockopt(&socket, sockopt::Mark, &mark).unwrap();
    }
    match socket.send_to(b"hello", to) {
        Ok(_) => {}
        // That is how the kernel tells the sender of a firewall's refusal, or of a route's.
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::PermissionDenied | ErrorKind::HostUnreachable
            ) => {}
        Err(error) => panic!("{to}: {error}"),
    }
    there.recv_from(&mut [0; 16]).is_ok()
}

/// What comes of a connection that somebody opens: none when it is there.
fn connects(network: &Namespace, to: &str, mark: Option<u32>) -> Option<ErrorKind> {
    let to: SocketAddr = to.parse().unwrap();
    let _listener = network.run(move || TcpListener::bind(to).unwrap());
    let socket = socket2::Socket::new(socket2::Domain::for_address(to), socket2::Type::STREAM, None).unwrap();
    if let Some(mark) = mark {
        socket.set_mark(mark).unwrap();
    }
    let begun = Instant::now();
    let result = socket.connect_timeout(&to.into(), Duration::from_secs(5));
    assert!(
        begun.elapsed() < Duration::from_secs(2),
        "nobody is left waiting: {to}"
    );
    drop(TcpStream::from(socket));
    result.err().map(|error| error.kind())
}

#[test]
fn the_gateway_is_reached_by_us_alone() {
    with_two_networks(|network| async move {
        routes();
        let files = Files::new();
        let host = files.host();
        for to in [GATEWAY_V4, GATEWAY_V6, "198.51.100.1:9", "192.0.2.1:9"] {
            assert!(
                arrives(&network, to, None),
                "{to} is not reached without a lock either"
            );
        }
        host.apply(locked(strict())).await.unwrap();
        // With nothing known of the neighbour: discovery is let through.
        run("ip neigh flush dev uplink0");
        run("ip -6 neigh flush dev uplink0");
        for (to, ours, others) in [
            (GATEWAY_V4, true, false),
            (GATEWAY_V6, true, false),
            ("198.51.100.1:4500", false, false),
            ("198.51.100.1:53", false, false),
            ("[2001:db8:2::1]:9", false, false),
            ("192.0.2.1:500", false, false),
            ("192.0.2.1:67", false, false),
        ] {
            assert_eq!(arrives(&network, to, Some(MARK)), ours, "ours to {to}");
            assert_eq!(arrives(&network, to, None), others, "another program's to {to}");
        }
        assert_eq!(connects(&network, "198.51.100.1:4500", Some(MARK)), None);
        // At once, and not after minutes.
        for to in ["198.51.100.1:4500", "198.51.100.1:80", "[2001:db8:2::1]:80"] {
            assert_eq!(
                connects(&network, to, None),
                Some(ErrorKind::ConnectionRefused),
                "{to}"
            );
        }
        assert!(run("ping -n -c 1 -W 1 127.0.0.1").contains("1 received"));
        let ping = Command::new("ping")
            .args(["-n", "-c", "1", "-W", "1", "192.0.2.1"])
            .output()
            .unwrap();
        assert!(!ping.status.success());
    });
}

#[test]
fn names_and_lists_are_asked_for_by_us_alone_and_when_it_is_allowed() {
    with_two_networks(|network| async move {
        routes();
        let files = Files::new();
        let host = files.host();
        let asking = Closed {
            names: true,
            fetches: [80].into(),
            ..strict()
        };
        host.apply(locked(asking)).await.unwrap();
        assert!(arrives(&network, "198.51.100.1:53", Some(MARK)));
        assert!(arrives(&network, "[2001:db8:2::1]:53", Some(MARK)));
        assert!(!arrives(&network, "198.51.100.1:53", None));
        assert_eq!(connects(&network, "198.51.100.1:53", Some(MARK)), None);
        assert_eq!(connects(&network, "198.51.100.1:80", Some(MARK)), None);
        assert!(connects(&network, "198.51.100.1:80", None).is_some());
        assert!(connects(&network, "198.51.100.1:81", Some(MARK)).is_some());
        host.apply(locked(strict())).await.unwrap();
        assert!(!arrives(&network, "198.51.100.1:53", Some(MARK)));
        assert!(connects(&network, "198.51.100.1:80", Some(MARK)).is_some());
    });
}

#[test]
fn the_local_network_is_private_ranges_and_nothing_that_the_network_says() {
    with_two_networks(|network| async move {
        routes();
        network.run(|| {
            run("ip addr add 192.168.77.1/24 dev wire0");
            run("ip addr add fd77::1/64 dev wire0 nodad");
        });
        run("ip addr add 192.168.77.2/24 dev uplink0");
        run("ip addr add fd77::2/64 dev uplink0 nodad");
        let files = Files::new();
        let host = files.host();
        host.apply(locked(strict())).await.unwrap();
        assert!(!arrives(&network, "192.168.77.1:9", None));
        assert!(!arrives(&network, "[fd77::1]:9", None));
        let lan = Closed {
            lan: true,
            ..strict()
        };
        host.apply(locked(lan)).await.unwrap();
        assert!(arrives(&network, "192.168.77.1:9", None));
        assert!(arrives(&network, "[fd77::1]:9", None));
        // What DHCP calls our network may be anybody's addresses (CVE-2023-36672), and a name server there would hear
        // every name.
        for to in [
            "192.0.2.1:9",
            "[2001:db8:1::1]:9",
            "192.168.77.1:53",
            "192.168.77.1:853",
            "192.168.77.1:137",
            "[fd77::1]:53",
            "[fd77::1]:5355",
        ] {
            assert!(!arrives(&network, to, None), "{to}");
        }
        assert!(connects(&network, "192.168.77.1:53", None).is_some());
        assert_eq!(connects(&network, "192.168.77.1:80", None), None);
    });
}

#[test]
fn what_is_in_the_tunnel_or_kept_out_of_it_goes_its_way() {
    with_two_networks(|network| async move {
        routes();
        network.run(|| {
            run("ip addr add 172.16.5.1/32 dev lo");
            run("ip addr add 172.16.5.53/32 dev lo");
        });
        let files = Files::new();
        let host = files.host();
        let mut wanted = plan(&["10.3.0.1/32"], &["0.0.0.0/0", "::/0"], &["172.16.5.53"]);
        wanted.lock = Lock::Closed(strict());
        if let Some(tunnel) = &mut wanted.tunnel {
            tunnel.excluded.insert("172.16.5.0/24".parse().unwrap());
            tunnel.excluded.insert("172.16.0.0/16".parse().unwrap());
        }
        let tun = host.apply(wanted.clone()).await.unwrap().tun.unwrap();
        assert!(arrives(&network, GATEWAY_V4, Some(MARK)));
        assert!(arrives(&network, "172.16.5.1:9", None));
        // The profile's own name server, and no other one.
        assert!(arrives(&network, "172.16.5.53:53", None));
        assert!(!arrives(&network, "172.16.5.1:53", None));
        assert!(!arrives(&network, "198.51.100.1:9", None));
        // That one is in the tunnel.
        let mut batch = peregrine_platform::batch::Batch::new();
        tun.recv(&mut batch).await.unwrap();
        assert!(batch.packets().count() > 0);
        // Past the tunnel's routes, by an interface of one's own choosing.
        let socket = UdpSocket::bind("192.0.2.2:0").unwrap();
        let by_interface = std::ffi::OsString::from("uplink0");
        setsockopt(&socket, sockopt::BindToDevice, &by_interface).unwrap();
        let there = network.run(|| {
            let socket = UdpSocket::bind("198.51.100.1:9").unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
            socket
        });
        assert_eq!(
            socket.send_to(b"hello", "198.51.100.1:9").unwrap_err().kind(),
            ErrorKind::PermissionDenied
        );
        assert!(there.recv_from(&mut [0; 16]).is_err());

        // Without the tunnel nothing is kept out of it.
        wanted.tunnel = None;
        host.apply(wanted).await.unwrap();
        assert!(!arrives(&network, "172.16.5.1:9", None));
    });
}

/// Name servers and routes are not put anew for each hole; they are when the same plan comes again, as after a meddling.
#[test]
fn a_change_of_the_lock_alone_touches_nothing_else() {
    with_two_networks(|network| async move {
        routes();
        let files = Files::new();
        let host = files.host();
        let with = |names| Plan {
            lock: Lock::Closed(Closed { names, ..strict() }),
            ..full_plan()
        };
        let tun = host.apply(with(false)).await.unwrap().tun;
        assert!(tun.is_some() && !arrives(&network, "198.51.100.1:53", Some(MARK)));
        let ours = run("ip rule");
        run("ip rule del pref 7000");
        let applied = host.apply(with(true)).await.unwrap();
        assert!(applied.tun.is_none() && applied.interface.is_some());
        assert!(arrives(&network, "198.51.100.1:53", Some(MARK)));
        assert_ne!(run("ip rule"), ours);
        host.apply(with(true)).await.unwrap();
        assert_eq!(run("ip rule"), ours);
        host.apply(Plan::default()).await.unwrap();
    });
}

/// Whoever uses this machine as a router: containers, virtual machines, a phone.
#[test]
fn what_passes_through_this_machine_is_held_too() {
    with_two_networks(|network| async move {
        routes();
        let guest = Arc::new(Namespace::new());
        guest.connect(7);
        run("ip addr add 192.168.9.1/24 dev uplink7");
        run("ip link set uplink7 up");
        guest.run(|| {
            run("ip addr add 192.168.9.2/24 dev wire7");
            run("ip link set wire7 up");
            run("ip route add default via 192.168.9.1");
        });
        network.run(|| {
            run("ip route add 192.168.9.0/24 via 192.0.2.2");
        });
        fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        let passes = |to: &'static str| {
            let there = network.run(move || {
                let socket = UdpSocket::bind(to).unwrap();
                socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
                socket
            });
            guest.run(move || {
                UdpSocket::bind("192.168.9.2:0")
                    .unwrap()
                    .send_to(b"hello", to)
                    .unwrap()
            });
            there.recv_from(&mut [0; 16]).is_ok()
        };
        let files = Files::new();
        let host = files.host();
        assert!(passes("198.51.100.1:9"));
        host.apply(locked(strict())).await.unwrap();
        assert!(!passes("198.51.100.1:9"));
        assert!(!passes(GATEWAY_V4));
        host.apply(Plan::default()).await.unwrap();
        assert!(passes("198.51.100.1:9"));
    });
}

/// CVE-2019-14899: whoever shares our network must not find out what address we have in the tunnel.
#[test]
fn neighbours_get_no_answer_from_our_address_in_the_tunnel() {
    with_two_networks(|network| async move {
        routes();
        let files = Files::new();
        let host = files.host();
        let answers = || {
            network.run(|| {
                let probe = |line: &str| {
                    let mut words = line.split_whitespace();
                    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
                    output.status.success()
                };
                run("ip neigh flush dev wire0");
                let v4 = probe("ping -n -c 1 -W 1 10.3.0.1");
                let v6 = probe("ping -n -c 1 -W 1 fd00:3::1");
                let arp = run("ip neigh show 10.3.0.1 dev wire0").contains("lladdr");
                (v4, v6, arp)
            })
        };
        network.run(|| {
            run("ip route add 10.3.0.1/32 dev wire0");
            run("ip route add fd00:3::1/128 via 2001:db8:1::2");
        });
        run("ip addr add 10.3.0.1/32 dev lo");
        assert!(answers().2, "this test asks for nothing");
        run("ip addr del 10.3.0.1/32 dev lo");
        for lock in [Lock::Open, Lock::Closed(strict())] {
            let plan = Plan { lock, ..full_plan() };
            let _tun = host.apply(plan).await.unwrap();
            assert_eq!(answers(), (false, false, false));
            assert!(run("ping -n -c 1 -W 1 10.3.0.1").contains("1 received"));
            host.apply(Plan::default()).await.unwrap();
        }
    });
}

#[test]
fn what_another_program_changes_is_put_back_within_a_second() {
    with_two_networks(|network| async move {
        routes();
        let files = Files::new();
        let host = files.host();
        let _changes = host.changes().unwrap();
        host.apply(locked(strict())).await.unwrap();
        let ours = run("nft -s list ruleset");
        for meddling in [
            "nft flush ruleset",
            "nft delete table inet peregrine_0",
            "nft flush chain inet peregrine_0 output",
            "nft insert rule inet peregrine_0 output accept",
            "nft add chain inet peregrine_0 output { policy accept ; }",
        ] {
            run(meddling);
            let begun = Instant::now();
            while run("nft -s list ruleset") != ours {
                assert!(
                    begun.elapsed() < Duration::from_secs(1),
                    "{meddling}: not put back in time"
                );
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            assert!(!arrives(&network, "198.51.100.1:9", None), "{meddling}");
        }
        // What others have is theirs.
        run("nft add table inet theirs");
        host.apply(Plan::default()).await.unwrap();
        assert_eq!(run("nft list tables"), "table inet theirs\n");
    });
}

#[test]
fn without_nft_nothing_is_promised() {
    with_two_networks(|_| async move {
        let files = Files::new();
        let mut config = files.config();
        config.nft = vec!["/nonexistent/nft".into()];
        let host = LinuxHost::new(config).unwrap();
        let before = snapshot();
        let fault = host.apply(locked(strict())).await.unwrap_err();
        assert!(fault.reason.contains("package nftables"), "{fault}");
        // Without a lock, the tunnel does not need it.
        let _tun = host.apply(full_plan()).await.unwrap();
        host.apply(Plan::default()).await.unwrap();
        assert_eq!(snapshot(), before);
        drop(host);
        assert!(files.records().is_empty(), "{:?}", files.records());
    });
}

/// Not a test: the process that the tests kill. It locks the machine, with a tunnel, and stays.
#[test]
#[ignore = "only the other tests run it, in a process of its own"]
fn victim() {
    let Some(root) = std::env::var_os("PEREGRINE_VICTIM") else {
        return;
    };
    let root = Path::new(&root);
    common::block_on(async {
        let host = LinuxHost::new(config_in(root)).unwrap();
        let plan = Plan {
            lock: Lock::Closed(strict()),
            ..full_plan()
        };
        let _tun = host.apply(plan).await.unwrap();
        fs::write(root.join(format!("up-{}", std::process::id())), "").unwrap();
        if std::env::var_os("PEREGRINE_PANICS").is_some() {
            panic!("on purpose");
        }
        std::future::pending::<()>().await;
    });
}

struct Victim(Child);

impl Victim {
    fn start(files: &Files, panics: bool) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "victim", "--ignored"])
            .env("PEREGRINE_VICTIM", files.path(""))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        if panics {
            command.env("PEREGRINE_PANICS", "1");
        }
        let child = command.spawn().unwrap();
        let up = files.path(&format!("up-{}", child.id()));
        let victim = Self(child);
        eventually("the victim has applied its plan", || up.exists());
        victim
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        self.0.wait().unwrap();
    }
}

#[test]
fn a_crash_leaves_the_machine_locked_and_a_start_without_a_lock_opens_it() {
    for panics in [false, true] {
        with_two_networks(move |network| async move {
            routes();
            let files = Files::new();
            let (before, tables) = (snapshot(), run("nft list ruleset"));
            let mut victim = Victim::start(&files, panics);
            if panics {
                victim.0.wait().unwrap();
            }
            drop(victim);
            for to in ["198.51.100.1:9", "[2001:db8:2::1]:9", GATEWAY_V4] {
                assert!(!arrives(&network, to, None), "{to} is reached after a crash");
            }
            let host = files.host();
            host.apply(Plan::default()).await.unwrap();
            assert!(arrives(&network, "198.51.100.1:9", None));
            assert_eq!((snapshot(), run("nft list ruleset")), (before, tables));
            drop(host);
            assert!(files.records().is_empty(), "{:?}", files.records());
        });
    }
}

/// A program that sends all the time gets nothing out between the crash and the end of the next run.
#[test]
fn from_a_crash_to_the_next_locked_run_there_is_no_gap() {
    with_two_networks(|network| async move {
        routes();
        let files = Files::new();
        drop(Victim::start(&files, false));
        network.run(|| {
            run("nft add table inet count");
            run("nft add chain inet count in { type filter hook prerouting priority 0 ; }");
            run("nft add rule inet count in udp dport 9 counter");
        });
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let sender = {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                let (mut sent, mut refused) = (0_u32, 0_u32);
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    match socket.send_to(b"hello", "198.51.100.1:9") {
                        Ok(_) => sent += 1,
                        Err(_) => refused += 1,
                    }
                }
                (sent, refused)
            })
        };
        let host = files.host();
        host.apply(locked(strict())).await.unwrap();
        let plan = Plan {
            lock: Lock::Closed(strict()),
            ..full_plan()
        };
        let _tun = host.apply(plan).await.unwrap();
        host.apply(locked(strict())).await.unwrap();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let (sent, refused) = sender.join().unwrap();
        assert!(
            refused > 100,
            "{sent} sent, {refused} refused: this test shows nothing"
        );
        let count = network.run(|| run("nft list chain inet count in"));
        assert!(count.contains("packets 0"), "{count}");
        host.apply(Plan::default()).await.unwrap();
        assert!(arrives(&network, "198.51.100.1:9", None));
    });
}
