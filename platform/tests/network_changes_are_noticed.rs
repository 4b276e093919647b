//! What changes the way to the gateway is noticed soon, and what does not is no news.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]
#![expect(
    clippy::print_stdout,
    reason = "the measured times are shown with --nocapture"
)]

mod common;

use std::fs;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Bus, Files, Namespace, full_plan, in_namespace, plan, run, with_two_networks};
use peregrine_core::plan::Plan;
use peregrine_platform::clock::{Alarm as _, Clock as _};
use peregrine_platform::host::{Change, Changes as _, Host as _};
use peregrine_platform::linux::{Changes, LinuxHost};

const GATEWAY_V4: &str = "198.51.100.1:500";
const GATEWAY_V6: &str = "[2001:db8:2::1]:500";

/// What takes something away is told at once: within this time on a machine that has other things to do.
const AT_ONCE: Duration = Duration::from_millis(60);
/// What is new is told after a moment of quiet, 75 ms.
const SOON: Duration = Duration::from_millis(250);
/// What has not been told after this long will not be.
const STILL: Duration = Duration::from_millis(300);
/// Long enough for anything to be told that ever will be.
const EVER: Duration = Duration::from_millis(700);

/// The next change, if there is one within `patience`, and how long it took.
async fn next(changes: &mut Changes, patience: Duration) -> Option<(Change, Duration)> {
    let begun = Instant::now();
    let change = tokio::time::timeout(patience, changes.next()).await.ok()?;
    Some((change, begun.elapsed()))
}

/// Nothing more is told.
async fn assert_quiet(changes: &mut Changes, after: &str) {
    assert_eq!(next(changes, STILL).await, None, "after {after}");
}

/// `what` is told within `patience`.
async fn assert_told(changes: &mut Changes, what: &str, change: Change, patience: Duration) {
    let (told, after) = next(changes, EVER)
        .await
        .unwrap_or_else(|| panic!("{what} is not noticed"));
    println!("{what}: {told:?} after {:.1} ms", after.as_secs_f64() * 1000.0);
    assert_eq!(told, change, "{what}");
    assert!(after <= patience, "{what} is told after {after:?}");
}

/// Reads what is told until it is quiet.
async fn settle(changes: &mut Changes) {
    while next(changes, STILL).await.is_some() {}
}

fn ask(host: &LinuxHost) {
    for gateway in [GATEWAY_V4, GATEWAY_V6] {
        let _way = host.way(gateway.parse::<SocketAddr>().unwrap());
    }
}

/// Default routes of both families by `uplink0`.
fn routes() {
    run("ip route add default via 192.0.2.1 dev uplink0 metric 100");
    run("ip -6 route add default via 2001:db8:1::1 dev uplink0 metric 100");
}

/// Runs `test` with a monitor, after the client has asked for the ways by `uplink0`.
fn watching<F: Future<Output = ()>>(
    test: impl FnOnce(Rc<LinuxHost>, Changes, Arc<Namespace>, Rc<Files>) -> F + Send + 'static,
) {
    with_two_networks(|network| async move {
        routes();
        let files = Rc::new(Files::new());
        let host = Rc::new(files.host());
        let mut changes = host.changes().unwrap();
        ask(&host);
        settle(&mut changes).await;
        test(Rc::clone(&host), changes, network, Rc::clone(&files)).await;
    });
}

#[test]
fn a_loss_is_told_at_once() {
    for loss in [
        "ip route del default",
        "ip -6 route del default",
        "ip addr del 192.0.2.2/24 dev uplink0",
        "ip addr del 2001:db8:1::2/64 dev uplink0",
        "ip link set uplink0 down",
        "ip link del uplink0",
    ] {
        watching(move |_host, mut changes, _network, _files| async move {
            run(loss);
            assert_told(&mut changes, loss, Change::Networks, AT_ONCE).await;
            settle(&mut changes).await;
        });
    }
}

#[test]
fn a_cable_that_is_pulled_and_put_into_another_network_is_told_though_nothing_else_changes() {
    watching(|_host, mut changes, network, _files| async move {
        network.run(|| run("ip link set wire0 down"));
        assert_told(&mut changes, "a pulled cable", Change::Networks, AT_ONCE).await;
        assert_quiet(&mut changes, "one report").await;
        network.run(|| run("ip link set wire0 up"));
        assert_told(
            &mut changes,
            "the cable in another network",
            Change::Networks,
            SOON,
        )
        .await;
        assert_quiet(&mut changes, "one report").await;
    });
}

#[test]
fn a_better_network_is_told_when_it_is_complete() {
    watching(|host, mut changes, _network, _files| async move {
        for part in [
            "ip link set uplink1 down",
            "ip addr flush dev uplink1",
            "ip link set uplink1 up",
        ] {
            run(part);
        }
        assert_quiet(&mut changes, "a network that nothing uses").await;
        run("ip addr add 203.0.113.77/24 dev uplink1");
        run("ip route add default via 203.0.113.1 dev uplink1 metric 50");
        assert_told(&mut changes, "a better network", Change::Networks, SOON).await;
        let way = host.way(GATEWAY_V4.parse().unwrap()).unwrap();
        assert_eq!(way.source.to_string(), "203.0.113.77");
        assert_quiet(&mut changes, "what the client was told").await;
    });
}

#[test]
fn the_first_network_is_told_at_once() {
    watching(|host, mut changes, _network, _files| async move {
        run("ip route flush table main");
        run("ip -6 route flush table main");
        run("ip addr flush dev uplink0");
        settle(&mut changes).await;
        ask(&host);
        run("ip addr add 192.0.2.9/24 dev uplink0");
        assert_quiet(&mut changes, "an address without a route").await;
        run("ip route add default via 192.0.2.1 dev uplink0");
        assert_told(&mut changes, "the first network", Change::Networks, AT_ONCE).await;
        assert_eq!(
            host.way(GATEWAY_V4.parse().unwrap()).unwrap().source.to_string(),
            "192.0.2.9"
        );
    });
}

#[test]
fn an_address_that_has_to_prove_itself_is_told_when_it_can_be_used() {
    watching(|host, mut changes, _network, _files| async move {
        run("ip -6 addr flush dev uplink0");
        settle(&mut changes).await;
        run("ip -6 addr add 2001:db8:1::99/64 dev uplink0"); // duplicates are looked for
        run("ip -6 route replace default via 2001:db8:1::1 dev uplink0 metric 100");
        let usable = tokio::time::timeout(Duration::from_secs(5), async {
            loop {
                changes.next().await;
                let way = host.way(GATEWAY_V6.parse().unwrap());
                if way.is_ok_and(|way| way.source.to_string() == "2001:db8:1::99") {
                    return;
                }
            }
        });
        usable.await.expect("the address is told when it is usable");
    });
}

#[test]
fn a_rule_that_leads_elsewhere_and_a_smaller_mtu_are_told() {
    watching(|_host, mut changes, _network, _files| async move {
        run("ip route add default via 203.0.113.1 dev uplink1 table 77");
        assert_quiet(&mut changes, "a table that nothing leads to").await;
        run("ip rule add pref 100 lookup 77");
        assert_told(&mut changes, "a rule", Change::Networks, SOON).await;
        run("ip rule del pref 100");
        assert_told(&mut changes, "no rule", Change::Networks, SOON).await;
        run("ip link set uplink0 mtu 1400");
        assert_told(&mut changes, "a smaller MTU", Change::Networks, SOON).await;
    });
}

#[test]
fn what_has_nothing_to_do_with_the_way_is_no_news() {
    watching(|_host, mut changes, _network, _files| async move {
        for (what, commands) in [
            (
                "a container",
                &[
                    "ip link add bridge0 type bridge",
                    "ip link set bridge0 up",
                    "ip addr add 172.17.0.1/16 dev bridge0",
                    "ip link add inside0 type veth peer name inside1",
                    "ip link set inside0 master bridge0",
                    "ip link set inside0 up",
                    "ip link set inside1 up",
                    "ip route add 172.18.0.0/16 dev bridge0",
                    "ip link del inside0",
                    "ip link del bridge0",
                ][..],
            ),
            (
                "a refreshed lease",
                &[
                    "ip addr change 192.0.2.2/24 dev uplink0 valid_lft 3600 preferred_lft 3600",
                    "ip addr change 2001:db8:1::2/64 dev uplink0 valid_lft 3600 preferred_lft 3600",
                    "ip route replace default via 192.0.2.1 dev uplink0 metric 100",
                ],
            ),
            (
                "a worse network",
                &["ip route add default via 203.0.113.1 dev uplink1 metric 600"],
            ),
        ] {
            for command in commands {
                run(command);
            }
            assert_quiet(&mut changes, what).await;
        }
    });
}

#[test]
fn what_we_do_ourselves_is_no_news() {
    watching(|host, mut changes, _network, files| async move {
        let tun = host.apply(full_plan()).await.unwrap();
        assert_quiet(&mut changes, "a plan").await;
        let mut other = plan(
            &["10.3.0.9/32", "fd00:3::9/128"],
            &["0.0.0.0/1", "128.0.0.0/1", "2000::/3"],
            &["10.3.0.54"],
        );
        if let Some(config) = &mut other.tunnel {
            config.excluded.insert("192.0.2.0/24".parse().unwrap());
            config.refused.insert("2001:db8:99::/48".parse().unwrap());
            config.mtu = 1300;
        }
        host.apply(other).await.unwrap();
        assert_quiet(&mut changes, "another plan").await;
        let second = files.host();
        let other_tun = second
            .apply(plan(&["10.4.0.1/32"], &["192.168.0.0/16"], &[]))
            .await
            .unwrap();
        assert_quiet(&mut changes, "another instance's plan").await;
        second.apply(Plan::default()).await.unwrap();
        drop((second, other_tun));
        host.apply(Plan::default()).await.unwrap();
        assert_quiet(&mut changes, "the end of it").await;
        drop(tun);
    });
}

#[test]
fn without_a_gateway_everything_is_news() {
    with_two_networks(|_network| async move {
        let files = Files::new();
        let host = files.host();
        let mut changes = host.changes().unwrap();
        settle(&mut changes).await;
        run("ip route add default via 192.0.2.1 dev uplink0");
        assert_told(&mut changes, "a network", Change::Networks, SOON).await;
    });
}

#[test]
fn changes_that_come_without_end_are_told_all_the_same() {
    watching(|_host, mut changes, _network, _files| async move {
        run("ip route add default via 203.0.113.1 dev uplink1 metric 50");
        let begun = Instant::now();
        let told = tokio::time::timeout(Duration::from_secs(3), async {
            loop {
                tokio::select! {
                    change = changes.next() => return change,
                    () = tokio::time::sleep(Duration::from_millis(20)) => {
                        run("ip route replace 172.16.0.0/16 dev uplink1");
                        run("ip route del 172.16.0.0/16 dev uplink1");
                    }
                }
            }
        });
        assert_eq!(told.await, Ok(Change::Networks));
        assert!(
            begun.elapsed() < Duration::from_millis(700),
            "{:?}",
            begun.elapsed()
        );
    });
}

#[test]
fn more_changes_than_anybody_can_read_are_one_change() {
    watching(|_host, mut changes, _network, files| async move {
        let batch: String = (0..20_000)
            .map(|n| {
                format!(
                    "route replace 10.{}.{}.0/24 dev uplink1\n",
                    n / 250 % 250,
                    n % 250
                )
            })
            .collect();
        fs::write(files.path("batch"), batch).unwrap();
        run(&format!("ip -batch {}", files.path("batch").display()));
        run("ip route del default");
        assert_told(&mut changes, "a flood", Change::Networks, SOON).await;
    });
}

#[test]
fn what_others_do_to_ours_is_told() {
    watching(|host, mut changes, _network, files| async move {
        let tun = host.apply(full_plan()).await.unwrap();
        settle(&mut changes).await;
        for damage in [
            "ip rule del pref 7000",
            "ip -6 rule del pref 7000",
            "ip addr del 10.3.0.1/32 dev peregrine0",
            "ip addr add 10.3.0.2/32 dev peregrine0",
            "ip -6 addr flush dev peregrine0",
            "ip route flush table 1885667328",
            "ip -6 route del default table 1885667328",
            "ip route replace default via 192.0.2.1 dev uplink0 table 1885667328",
            "ip link set peregrine0 mtu 1300",
            "ip link set peregrine0 down",
        ] {
            run(damage);
            assert_told(&mut changes, damage, Change::Plan, EVER).await;
            host.apply(full_plan()).await.unwrap();
            assert_quiet(&mut changes, "the repair").await;
        }
        // A DHCP client writes what it got on a new network.
        for replace in [false, true] {
            let content = "nameserver 203.0.113.53\n";
            if replace {
                fs::write(files.path("etc/new"), content).unwrap();
                fs::rename(files.path("etc/new"), files.resolv_conf()).unwrap();
            } else {
                fs::write(files.resolv_conf(), content).unwrap();
            }
            assert_told(&mut changes, "other name servers", Change::Plan, EVER).await;
            host.apply(full_plan()).await.unwrap();
            assert_quiet(&mut changes, "the repair").await;
        }
        // A link to where another program writes, and what that program writes.
        fs::create_dir(files.path("run-dns")).unwrap();
        fs::remove_file(files.resolv_conf()).unwrap();
        std::os::unix::fs::symlink(files.path("run-dns/resolv.conf"), files.resolv_conf()).unwrap();
        for turn in ["a link", "what it leads to"] {
            if turn != "a link" {
                fs::write(files.path("run-dns/resolv.conf"), "nameserver 203.0.113.53\n").unwrap();
            }
            assert_told(&mut changes, turn, Change::Plan, EVER).await;
            host.apply(full_plan()).await.unwrap();
            assert_quiet(&mut changes, "the repair").await;
        }
        drop(tun);
        host.apply(Plan::default()).await.unwrap();
        assert_eq!(
            fs::read_to_string(files.resolv_conf()).unwrap(),
            "nameserver 203.0.113.53\n",
            "what the DHCP client wrote comes back"
        );
    });
}

#[test]
fn logind_tells_of_waking() {
    in_namespace(|| async {
        let files = Files::new();
        let bus = Bus::new(&files);
        let logind = bus.serve("org.freedesktop.login1").await;
        let mut config = files.config();
        config.dns.bus = Some(bus.address.clone());
        let host = LinuxHost::new(config).unwrap();
        let mut changes = host.changes().unwrap();
        settle(&mut changes).await;
        for (is_going, expected) in [(true, None), (false, Some(Change::Woke))] {
            logind
                .emit_signal(
                    None::<&str>,
                    "/org/freedesktop/login1",
                    "org.freedesktop.login1.Manager",
                    "PrepareForSleep",
                    &is_going,
                )
                .await
                .unwrap();
            assert_eq!(next(&mut changes, EVER).await.map(|(change, _)| change), expected);
        }
        // Without a bus, as when it is restarted, everything else goes on.
        drop((logind, bus));
        run("ip link add inside0 type veth peer name inside1");
        assert_told(&mut changes, "a link", Change::Networks, SOON).await;
    });
}

#[test]
fn while_nothing_happens_nothing_runs() {
    watching(|host, mut changes, _network, _files| async move {
        let tun = host.apply(full_plan()).await.unwrap();
        settle(&mut changes).await;
        let switches = || {
            let status = fs::read_to_string("/proc/thread-self/status").unwrap();
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            line.unwrap().trim().parse::<u32>().unwrap()
        };
        // Not the runtime's timer, which wakes up a few times on its way to a far instant.
        let mut alarm = host.alarm().unwrap();
        alarm.set(Some(host.now() + Duration::from_secs(5)));
        let before = switches();
        tokio::select! {
            change = changes.next() => panic!("{change:?}"),
            () = alarm.ring() => {}
        }
        let wakes = switches() - before;
        println!("{wakes} wake-ups in 5 s, one of them the end of the 5 s");
        assert!(wakes <= 1, "{wakes} wake-ups in 5 s");
        drop(tun);
    });
}
