//! The gateway's own datagrams never go into the tunnel, and everything else does.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use std::fs;
use std::future::poll_fn;
use std::io::{ErrorKind, IoSlice};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use common::{Files, Namespace, full_plan, run};
use peregrine_core::plan::Plan;
use peregrine_platform::batch::Batch;
use peregrine_platform::dataplane::segment::Outgoing;
use peregrine_platform::dataplane::virtio;
use peregrine_platform::host::{Host as _, Socket as _, Tun};

const GATEWAYS: [&str; 2] = ["198.51.100.1:4500", "[2001:db8:2::1]:4500"];

/// A client with one uplink, 192.0.2.2/24 and 2001:db8:1::2/64, behind which there is a gateway that echoes.
fn with_gateway<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let client = Namespace::new();
    let network = Namespace::new();
    let (network, ()) = client.run(move || {
        network.connect_to_caller();
        network.run(|| {
            run("ip addr add 192.0.2.1/24 dev wire0");
            run("ip addr add 2001:db8:1::1/64 dev wire0 nodad");
            run("ip addr add 198.51.100.1/32 dev lo");
            run("ip addr add 2001:db8:2::1/128 dev lo nodad");
            run("ip link set wire0 up");
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
        run("ip addr add 192.0.2.2/24 dev uplink0");
        run("ip addr add 2001:db8:1::2/64 dev uplink0 nodad");
        run("ip link set uplink0 up mtu 1480");
        common::eventually("the cable is up", || {
            run("ip link show uplink0").contains("state UP")
        });
        run("ip route add default via 192.0.2.1");
        run("ip -6 route add default via 2001:db8:1::1");
        (network, ())
    });
    client.run(|| common::block_on(test()));
    drop(network);
}

async fn echo(socket: &impl peregrine_platform::host::Socket, gateway: SocketAddr, words: &str) -> String {
    let mut batch = Batch::new();
    for _ in 0..5 {
        socket.send(gateway.into(), words.as_bytes()).unwrap();
        let receiving = poll_fn(|cx| socket.poll_recv(cx, &mut batch));
        if tokio::time::timeout(Duration::from_secs(1), receiving)
            .await
            .is_ok()
        {
            let (from, _, answer) = batch.packets().next().unwrap();
            assert_eq!((from.path.local, from.path.remote), (socket.local(), gateway));
            return String::from_utf8(answer.to_vec()).unwrap();
        }
    }
    panic!("{gateway} did not answer");
}

/// The destination addresses of the packets that come out of the device until it is quiet.
async fn destinations(tun: &impl Tun) -> Vec<String> {
    let mut batch = Batch::new();
    let mut seen = Vec::new();
    while tokio::time::timeout(Duration::from_millis(300), tun.recv(&mut batch))
        .await
        .is_ok()
    {
        for (_, _, packet) in batch.packets() {
            seen.push(match packet[0] >> 4 {
                4 => Ipv4Addr::from(<[u8; 4]>::try_from(&packet[16..20]).unwrap()).to_string(),
                6 => std::net::Ipv6Addr::from(<[u8; 16]>::try_from(&packet[24..40]).unwrap()).to_string(),
                other => panic!("IP version {other}"),
            });
        }
        batch.clear();
    }
    seen
}

#[test]
fn marked_sockets_stay_outside_and_all_else_goes_inside() {
    with_gateway(|| async {
        // The strictest machine: it drops whatever comes in where its answer would not go out.
        for name in ["all", "default", "uplink0"] {
            fs::write(format!("/proc/sys/net/ipv4/conf/{name}/rp_filter"), "1").unwrap();
        }
        let before = common::snapshot();
        let files = Files::new();
        let host = files.host();
        let mut sockets = Vec::new();
        for gateway in GATEWAYS {
            let gateway: SocketAddr = gateway.parse().unwrap();
            let way = host.way(gateway).unwrap();
            let interface = way.interface.as_ref().map(|interface| interface.name.as_str());
            assert_eq!((way.mtu, interface), (Some(1480), Some("uplink0")));
            sockets.push((gateway, host.open(&way).unwrap(), way));
        }
        let tun = host.apply(full_plan()).await.unwrap().tun.unwrap();

        for (gateway, socket, way) in &sockets {
            assert_eq!(
                host.way(*gateway).unwrap(),
                *way,
                "the tunnel changes nothing about the way"
            );
            assert_eq!(socket.local().ip(), way.source);
            assert_eq!(
                echo(socket, *gateway, "hello").await,
                format!("hello from {}", way.source)
            );
        }
        assert!(
            destinations(&tun).await.is_empty(),
            "nothing went into the tunnel"
        );

        // Another program's packets to the same address do, with our inner address as their source.
        for (gateway, _, _) in &sockets {
            let any = if gateway.is_ipv4() { "0.0.0.0" } else { "::" };
            let other = UdpSocket::bind((any, 0)).unwrap();
            other.connect(gateway).unwrap();
            let inner = if gateway.is_ipv4() {
                "10.3.0.1"
            } else {
                "fd00:3::1"
            };
            assert_eq!(other.local_addr().unwrap().ip().to_string(), inner);
            other.send(b"hello").unwrap();
            assert_eq!(destinations(&tun).await, [gateway.ip().to_string()]);
        }

        drop(sockets);
        host.apply(Plan::default()).await.unwrap();
        assert_eq!(common::snapshot(), before);
    });
}

#[test]
fn no_route_of_the_network_pulls_traffic_out() {
    with_gateway(|| async {
        let files = Files::new();
        let host = files.host();
        let tun = host.apply(full_plan()).await.unwrap().tun.unwrap();
        // What a hostile DHCP server or router announces (CVE-2024-3661), and the network itself (CVE-2023-36672).
        run("ip route add 203.0.113.0/25 via 192.0.2.1");
        run("ip -6 route add 2001:db8:9::/64 via 2001:db8:1::1");
        for target in ["203.0.113.1", "192.0.2.77", "2001:db8:9::1", "2001:db8:1::77"] {
            let any = if target.contains(':') {
                "[::]:0"
            } else {
                "0.0.0.0:0"
            };
            let other = UdpSocket::bind(any).unwrap();
            other.send_to(b"hello", (target, 9)).unwrap();
            assert_eq!(destinations(&tun).await, [target]);
        }
        // Our own addresses are still ours.
        assert!(run("ip route get 192.0.2.2").contains("dev lo"));
        assert!(run("ip route get 127.0.0.1").contains("dev lo"));
    });
}

#[test]
fn excluded_goes_outside_and_refused_goes_nowhere() {
    with_gateway(|| async {
        let files = Files::new();
        let host = files.host();
        let mut plan = common::plan(&["10.3.0.1/32"], &["0.0.0.0/0"], &[]);
        if let Some(config) = &mut plan.tunnel {
            config.excluded.insert("192.0.2.0/24".parse().unwrap());
            config.refused.insert("::/0".parse().unwrap());
        }
        let gateway: SocketAddr = GATEWAYS[1].parse().unwrap();
        let socket = host.open(&host.way(gateway).unwrap()).unwrap();
        let tun = host.apply(plan).await.unwrap().tun.unwrap();
        assert!(run("ip route get 192.0.2.77").contains("dev uplink0"));
        assert!(run("ip route get 192.0.3.77").contains("dev peregrine0"));

        let other = UdpSocket::bind("[::]:0").unwrap();
        let refused = other.send_to(b"hello", gateway).unwrap_err();
        assert!(
            matches!(
                refused.kind(),
                ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable
            ),
            "{refused}"
        );
        // Our own datagrams over IPv6, neighbour discovery before them included, still get through.
        run("ip -6 neigh flush dev uplink0");
        assert_eq!(echo(&socket, gateway, "hello").await, "hello from 2001:db8:1::2");
        assert!(destinations(&tun).await.is_empty());
    });
}

#[test]
fn packets_go_both_ways_through_the_device() {
    with_gateway(|| async {
        let files = Files::new();
        let host = files.host();
        let tun = host.apply(full_plan()).await.unwrap().tun.unwrap();
        let inside = UdpSocket::bind("10.3.0.1:7000").unwrap();
        inside.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        inside.send_to(b"ping", "10.3.0.9:7").unwrap();
        let mut batch = Batch::new();
        tun.recv(&mut batch).await.unwrap();
        let (header, _, packet) = batch.packets().next().unwrap();
        let Ok(Outgoing::Whole(packet)) = Outgoing::new(packet, header) else {
            panic!("one datagram is not to be cut");
        };
        let mut answer = packet.to_vec();
        // Swap the addresses and the ports; the checksums do not depend on their order.
        for (from, to, len) in [(12, 16, 4), (20, 22, 2)] {
            for octet in 0..len {
                answer.swap(from + octet, to + octet);
            }
        }
        let whole = virtio::Header::default().to_octets();
        tun.send(&[IoSlice::new(&whole), IoSlice::new(&answer)]).unwrap();
        let mut buffer = [0; 16];
        let (len, source) = inside.recv_from(&mut buffer).unwrap();
        assert_eq!(
            (&buffer[..len], source.to_string().as_str()),
            (&b"ping"[..], "10.3.0.9:7")
        );
    });
}
