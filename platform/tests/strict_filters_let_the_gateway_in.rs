//! A reverse-path filter that is too strict for the tunnel is loosened, also on what comes later, and put back.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use std::fs;
use std::time::Duration;

use common::{Files, full_plan, run, with_two_networks};
use peregrine_core::plan::Plan;
use peregrine_platform::host::{Changes as _, Host as _};

const GATEWAY: &str = "198.51.100.1:4500";

fn filter(interface: &str) -> String {
    fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{interface}/rp_filter"))
        .unwrap()
        .trim()
        .to_owned()
}

fn set_filter(interface: &str, value: &str) {
    fs::write(format!("/proc/sys/net/ipv4/conf/{interface}/rp_filter"), value).unwrap();
}

/// As some distributions have it: strict on each interface, also on one that comes later.
fn strict() {
    set_filter("all", "0");
    for interface in ["default", "uplink0", "uplink1"] {
        set_filter(interface, "1");
    }
    run("ip route add default via 192.0.2.1 dev uplink0");
}

async fn becomes(interface: &str, value: &str) -> bool {
    for _ in 0..200 {
        if filter(interface) == value {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    false
}

#[test]
fn on_an_interface_that_comes_later() {
    with_two_networks(|_network| async move {
        strict();
        let files = Files::new();
        let host = files.host();
        let mut changes = host.changes().unwrap();
        host.way(GATEWAY.parse().unwrap()).unwrap();
        let tun = host.apply(full_plan()).await.unwrap();
        assert_eq!(
            (filter("uplink0"), filter("uplink1")),
            ("2".to_owned(), "2".to_owned())
        );
        run("ip link add tether0 type veth peer name tether1");
        assert_eq!(filter("tether0"), "1");
        let watch = async {
            loop {
                changes.next().await;
            }
        };
        tokio::select! {
            () = watch => {}
            is_loose = becomes("tether0", "2") => assert!(is_loose, "it stays strict"),
        }
        host.apply(Plan::default()).await.unwrap();
        for interface in ["uplink0", "uplink1", "tether0"] {
            assert_eq!(filter(interface), "1", "{interface} is put back");
        }
        drop(tun);
    });
}

#[test]
fn for_a_gateway_that_comes_later() {
    with_two_networks(|_network| async move {
        strict();
        let files = Files::new();
        let host = files.host();
        let tun = host.apply(full_plan()).await.unwrap();
        assert_eq!(filter("uplink0"), "1", "for nobody nothing is loosened");
        host.way(GATEWAY.parse().unwrap()).unwrap();
        assert!(becomes("uplink0", "2").await, "it stays strict");
        host.apply(Plan::default()).await.unwrap();
        assert_eq!(filter("uplink0"), "1");
        drop(tun);
    });
}
