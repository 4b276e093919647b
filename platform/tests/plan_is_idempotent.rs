//! A plan says what shall be, not what to do: applied again it changes nothing, and it mends what others broke.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{Files, full_plan, in_namespace, plan, run, snapshot};
use peregrine_core::plan::Plan;
use peregrine_platform::batch::Batch;
use peregrine_platform::host::{Host as _, Tun as _};

#[test]
fn applied_again_nothing_changes() {
    in_namespace(|| async {
        let files = Files::new();
        let host = files.host();
        let before = snapshot();
        let first = host.apply(full_plan()).await.unwrap();
        assert_eq!(first.interface.as_deref(), Some("peregrine0"));
        assert!(first.tun.is_some());
        let up = snapshot();
        assert_ne!(before, up);

        let second = host.apply(full_plan()).await.unwrap();
        assert!(second.tun.is_none(), "the device is kept");
        assert_eq!(second.interface, first.interface);
        assert_eq!(snapshot(), up);

        let down = host.apply(Plan::default()).await.unwrap();
        assert!(down.tun.is_none() && down.interface.is_none());
        assert_eq!(snapshot(), before);
        host.apply(Plan::default()).await.unwrap();
        assert_eq!(snapshot(), before);
        drop(host);
        assert!(files.records().is_empty(), "{:?}", files.records());
    });
}

#[test]
fn what_others_broke_is_mended() {
    in_namespace(|| async {
        let files = Files::new();
        let host = files.host();
        let _first = host.apply(full_plan()).await.unwrap();
        let up = snapshot();
        for damage in [
            "ip rule del pref 7000",
            "ip -6 rule del pref 7000",
            "ip addr del 10.3.0.1/32 dev peregrine0",
            "ip -6 addr flush dev peregrine0",
            "ip route flush table 1885667328",
            "ip link set peregrine0 mtu 1300",
            "ip link set peregrine0 down",
        ] {
            run(damage);
            host.apply(full_plan()).await.unwrap();
            assert_eq!(snapshot(), up, "after {damage}");
        }
        fs::write(files.resolv_conf(), "nameserver 192.0.2.99\n").unwrap();
        host.apply(full_plan()).await.unwrap();
        assert!(
            fs::read_to_string(files.resolv_conf())
                .unwrap()
                .contains("nameserver 10.3.0.53\n")
        );
    });
}

#[test]
fn a_deleted_device_is_made_again() {
    in_namespace(|| async {
        let files = Files::new();
        let host = files.host();
        let first = host.apply(full_plan()).await.unwrap();
        run("ip link del peregrine0");
        let second = host.apply(full_plan()).await.unwrap();
        assert!(second.tun.is_some());
        assert!(run("ip route get 198.51.100.1").contains("dev peregrine0"));
        drop(first);
        assert!(
            run("ip route get 198.51.100.1").contains("dev peregrine0"),
            "the old descriptor means nothing"
        );
    });
}

#[test]
fn a_changed_plan_leaves_nothing_of_the_old_one() {
    in_namespace(|| async {
        let files = Files::new();
        let host = files.host();
        let first = host.apply(full_plan()).await.unwrap();
        let mut changed = plan(
            &["10.9.0.1/24", "10.9.0.2/24"],
            &["192.0.2.0/24", "2001:db8::/32"],
            &[],
        );
        if let Some(config) = &mut changed.tunnel {
            config.mtu = 1300;
            config.excluded.insert("192.0.2.128/25".parse().unwrap());
            config.refused.insert("2001:db8:1::/48".parse().unwrap());
        }
        let second = host.apply(changed.clone()).await.unwrap();
        assert!(second.tun.is_none(), "the device and its descriptor are kept");
        let changed_over = snapshot();
        assert_eq!(
            run("ip route show table main"),
            "",
            "a prefix of the gateway's making brings no route"
        );
        assert!(run("ip link show peregrine0").contains("mtu 1300"));
        assert!(!files.resolv_conf().exists(), "no name servers any more");

        // The same plan on a machine that never had another one.
        host.apply(Plan::default()).await.unwrap();
        drop(first);
        let again = host.apply(changed).await.unwrap();
        let without_index = |snapshot: Vec<String>| {
            snapshot
                .iter()
                .map(|part| {
                    part.split(',')
                        .filter(|field| !field.contains("\"ifindex\":"))
                        .collect::<String>()
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(without_index(snapshot()), without_index(changed_over));
        drop(again);
    });
}

/// How a program's packets to `destination` leave: the address that they carry, or why they do not.
fn source(destination: &str) -> String {
    let destination: SocketAddr = destination.parse().unwrap();
    let any = if destination.is_ipv4() {
        "0.0.0.0:0"
    } else {
        "[::]:0"
    };
    let socket = UdpSocket::bind(any).unwrap();
    match socket.connect(destination) {
        Ok(()) => socket.local_addr().unwrap().ip().to_string(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn from_plan_to_plan_there_is_no_moment_beside_the_tunnel() {
    const DESTINATIONS: [&str; 4] = [
        "198.51.100.1:9",
        "9.9.9.9:9",
        "[2001:db8:2::1]:9",
        "[fd00:9::1]:9",
    ];
    common::with_two_networks(|_network| async move {
        run("ip route add default via 192.0.2.1 dev uplink0");
        run("ip -6 route add default via 2001:db8:1::1 dev uplink0");
        let files = Files::new();
        let host = files.host();
        let halves = plan(
            &["10.3.0.2/32", "fd00:3::2/128"],
            &["0.0.0.0/1", "128.0.0.0/1", "::/1", "8000::/1"],
            &["10.3.0.54", "10.3.0.55"],
        );
        let mut narrow = full_plan();
        if let Some(config) = &mut narrow.tunnel {
            config.mtu = 1280;
            config.dns.servers.clear();
            config.excluded.insert("192.0.2.0/24".parse().unwrap());
            config.refused.insert("2001:db8:99::/48".parse().unwrap());
            config.addresses.push("10.3.0.3/32".parse().unwrap());
        }
        let first = host.apply(full_plan()).await.unwrap();
        let over = Arc::new(AtomicBool::new(false));
        let is_over = Arc::clone(&over);
        let watcher = std::thread::spawn(move || {
            let (mut looks, mut sources) = (0_u32, BTreeSet::new());
            while !is_over.load(Ordering::Relaxed) {
                for destination in DESTINATIONS {
                    sources.insert(source(destination));
                    looks += 1;
                }
            }
            (looks, sources)
        });
        for _ in 0..20 {
            for plan in [&halves, &narrow, &full_plan()] {
                let applied = host.apply(plan.clone()).await.unwrap();
                assert!(applied.tun.is_none(), "the device is kept");
                assert_eq!(applied.interface.as_deref(), Some("peregrine0"));
            }
        }
        over.store(true, Ordering::Relaxed);
        let (looks, sources) = watcher.join().unwrap();
        let expected = ["10.3.0.1", "10.3.0.2", "fd00:3::1", "fd00:3::2"];
        assert_eq!(sources, expected.map(str::to_owned).into());
        assert!(looks > 1000, "{looks} looks");
        drop(first);
    });
}

#[test]
fn instances_do_not_disturb_each_other() {
    in_namespace(|| async {
        let files = Files::new();
        let before = snapshot();
        let one = files.host();
        let first = one.apply(full_plan()).await.unwrap();
        let with_one = snapshot();
        let two = files.host();
        let second = two
            .apply(plan(&["10.4.0.1/32"], &["192.0.2.0/24"], &[]))
            .await
            .unwrap();
        assert_eq!(second.interface.as_deref(), Some("peregrine1"));
        two.apply(Plan::default()).await.unwrap();
        assert_eq!(snapshot(), with_one);
        drop((second, two));
        one.apply(Plan::default()).await.unwrap();
        drop(first);
        assert_eq!(snapshot(), before);
    });
}

#[test]
fn instances_with_other_records_do_not_disturb_each_other() {
    in_namespace(|| async {
        let (mine, yours) = (Files::new(), Files::new()); // as two users have them
        let (one, two) = (mine.host(), yours.host());
        for host in [&one, &two] {
            host.apply(Plan::default()).await.unwrap();
        }
        let first = one.apply(full_plan()).await.unwrap();
        let with_one = snapshot();
        let second = two
            .apply(plan(&["10.4.0.1/32"], &["192.0.2.0/24"], &[]))
            .await
            .unwrap();
        assert_eq!(run("ip rule").lines().count(), 5, "one each");
        two.apply(Plan::default()).await.unwrap();
        assert_eq!(snapshot(), with_one);
        drop((first, second));
    });
}

#[test]
fn dropping_the_host_takes_everything_back() {
    in_namespace(|| async {
        let files = Files::new();
        fs::create_dir_all(files.path("etc")).unwrap();
        fs::write(files.resolv_conf(), "nameserver 192.0.2.99\n").unwrap();
        let before = snapshot();
        let host = files.host();
        let _applied = host.apply(full_plan()).await.unwrap();
        drop(host);
        assert_eq!(snapshot(), before);
        assert_eq!(
            fs::read_to_string(files.resolv_conf()).unwrap(),
            "nameserver 192.0.2.99\n"
        );
    });
}

#[test]
fn settings_that_are_right_need_not_be_writable() {
    in_namespace(|| async {
        run("mount --bind /proc/sys /proc/sys");
        run("mount -o remount,ro,bind /proc/sys"); // as in a container
        let files = Files::new();
        let host = files.host();
        assert!(host.apply(full_plan()).await.unwrap().tun.is_some());
    });
}

#[test]
fn a_deleted_device_is_noticed() {
    in_namespace(|| async {
        let files = Files::new();
        let host = files.host();
        let tun = host.apply(full_plan()).await.unwrap().tun.unwrap();
        let mut batch = Batch::new();
        let delete = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            run("ip link del peregrine0");
        };
        let read = async {
            // What the kernel itself may have sent into the device comes first.
            while tun.recv(&mut batch).await.is_ok() {
                batch.clear();
            }
        };
        let both = async { tokio::join!(read, delete) };
        let noticed = tokio::time::timeout(Duration::from_secs(5), both).await;
        assert!(
            noticed.is_ok(),
            "reading goes on waiting for a device that is gone"
        );
    });
}
