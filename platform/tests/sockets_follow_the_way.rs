//! A socket sends by the way that it was opened for, and hears what comes back, whatever is routed elsewhere later.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use std::future::poll_fn;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use common::{Files, Namespace, full_plan, run, with_two_networks};
use peregrine_platform::batch::Batch;
use peregrine_platform::host::{Arrival, Host as _, Socket as _, Way};
use peregrine_platform::linux::Socket;

const GATEWAYS: [&str; 2] = ["198.51.100.1:4500", "[2001:db8:2::1]:4500"];

/// The gateway repeats what it hears, with the address that it heard it from.
fn serve(network: &Namespace) {
    network.run(|| {
        for gateway in GATEWAYS {
            let socket = UdpSocket::bind(gateway).unwrap();
            std::thread::spawn(move || {
                let mut buffer = [0; 2048];
                while let Ok((len, source)) = socket.recv_from(&mut buffer) {
                    let heard = [&buffer[..len], b" from ", source.ip().to_string().as_bytes()].concat();
                    let _lost = socket.send_to(&heard, source);
                }
            });
        }
    });
}

/// Default routes by this uplink, better than all before it when `metric` is smaller.
fn route(uplink: u8, metric: u32) {
    let (v4, v6) = if uplink == 0 {
        ("192.0.2.1", "2001:db8:1::1")
    } else {
        ("203.0.113.1", "2001:db8:3::1")
    };
    run(&format!(
        "ip route add default via {v4} dev uplink{uplink} metric {metric}"
    ));
    run(&format!(
        "ip -6 route add default via {v6} dev uplink{uplink} metric {metric}"
    ));
}

async fn hear(socket: &Socket) -> Option<(SocketAddr, String)> {
    let mut batch = Batch::new();
    let receiving = poll_fn(|cx| socket.poll_recv(cx, &mut batch));
    tokio::time::timeout(Duration::from_secs(1), receiving)
        .await
        .ok()?
        .unwrap();
    let (Arrival { path, .. }, _, words) = batch.packets().next().unwrap();
    assert_eq!(path.local, socket.local());
    Some((path.remote, String::from_utf8(words.to_vec()).unwrap()))
}

async fn echo(socket: &Socket, gateway: SocketAddr) -> Option<String> {
    for _ in 0..3 {
        socket.send(gateway.into(), b"hello").ok()?;
        if let Some((source, words)) = hear(socket).await {
            assert_eq!(source, gateway);
            return Some(words);
        }
    }
    None
}

fn interface(way: &Way) -> &str {
    way.interface.as_ref().map_or("", |interface| &interface.name)
}

#[test]
fn the_old_socket_works_on_beside_the_new_one() {
    with_two_networks(|network| async move {
        serve(&network);
        route(0, 100);
        let files = Files::new();
        let host = files.host();
        for gateway in GATEWAYS {
            host.way(gateway.parse().unwrap()).unwrap();
        }
        let tun = host.apply(full_plan()).await.unwrap().tun.unwrap();
        for gateway in GATEWAYS {
            let gateway: SocketAddr = gateway.parse().unwrap();
            let way = host.way(gateway).unwrap();
            assert_eq!(interface(&way), "uplink0");
            let old = host.open(&way).unwrap();
            assert_eq!(old.local().ip(), way.source);
            let from_old = format!("hello from {}", way.source);
            assert_eq!(echo(&old, gateway).await.as_deref(), Some(from_old.as_str()));

            // A better network comes.
            run(if gateway.is_ipv4() {
                "ip route add default via 203.0.113.1 dev uplink1 metric 50"
            } else {
                "ip -6 route add default via 2001:db8:3::1 dev uplink1 metric 50"
            });
            let way = host.way(gateway).unwrap();
            assert_eq!(interface(&way), "uplink1");
            let new = host.open(&way).unwrap();
            let from_new = format!("hello from {}", way.source);
            assert_ne!(from_old, from_new);
            // The network drops what comes with the one's address by the other's cable.
            for _ in 0..2 {
                assert_eq!(echo(&new, gateway).await.as_deref(), Some(from_new.as_str()));
                assert_eq!(echo(&old, gateway).await.as_deref(), Some(from_old.as_str()));
            }
        }
        drop(tun);
    });
}

#[test]
fn a_socket_hears_what_a_neighbour_sends_by_another_interface() {
    with_two_networks(|network| async move {
        route(0, 100);
        for name in ["all", "uplink1"] {
            std::fs::write(format!("/proc/sys/net/ipv4/conf/{name}/rp_filter"), "2").unwrap();
        }
        let files = Files::new();
        let host = files.host();
        let way = host.way(GATEWAYS[0].parse().unwrap()).unwrap();
        let socket = host.open(&way).unwrap();
        let to = socket.local();
        // As where two interfaces are in one network, and both answer for both addresses.
        network.run(move || {
            run("ip route add 192.0.2.2/32 via 203.0.113.2");
            let gateway = UdpSocket::bind(GATEWAYS[0]).unwrap();
            gateway.send_to(b"hello", to).unwrap();
        });
        let heard = hear(&socket).await.unwrap();
        assert_eq!(heard, (GATEWAYS[0].parse().unwrap(), "hello".to_owned()));
    });
}

#[test]
fn a_way_that_is_gone_is_told_by_errors_that_the_driver_knows() {
    use io::ErrorKind::{AddrNotAvailable, HostUnreachable, InvalidInput, NetworkDown, NetworkUnreachable};
    for loss in [
        "ip link set uplink0 down",
        "ip addr flush dev uplink0",
        "ip link del uplink0",
    ] {
        with_two_networks(move |network| async move {
            serve(&network);
            route(0, 100);
            let files = Files::new();
            let host = files.host();
            let mut sockets = Vec::new();
            for gateway in GATEWAYS {
                let gateway: SocketAddr = gateway.parse().unwrap();
                let way = host.way(gateway).unwrap();
                let socket = host.open(&way).unwrap();
                assert!(echo(&socket, gateway).await.is_some());
                sockets.push((gateway, socket));
                // One that has settled on the gateway tells the same.
                let settled = host.open(&way).unwrap();
                settled.settle(gateway);
                assert!(echo(&settled, gateway).await.is_some());
                sockets.push((gateway, settled));
            }
            run(loss);
            for (gateway, socket) in sockets {
                let sent = socket.send(gateway.into(), b"hello");
                // IPv6 goes on sending with an address that is gone, for as long as there is a route.
                if loss.contains("addr") && gateway.is_ipv6() {
                    assert!(sent.is_ok(), "{loss}: {sent:?}");
                    continue;
                }
                let error = sent.expect_err(loss);
                assert!(
                    matches!(
                        error.kind(),
                        AddrNotAvailable | HostUnreachable | InvalidInput | NetworkDown | NetworkUnreachable
                    ),
                    "{loss}: {gateway}: {error:?}"
                );
                let fault = host.way(gateway).unwrap_err();
                assert!(!fault.permission, "{loss}: {fault}");
            }
        });
    }
}
