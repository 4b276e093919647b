//! A socket that has settled on one host is one for all others too.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use std::future::poll_fn;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use common::{Files, config_in, in_namespace, run};
use peregrine_platform::batch::Batch;
use peregrine_platform::host::{Host as _, Socket as _};
use peregrine_platform::linux::{LinuxHost, Socket};

const FAMILIES: [&str; 2] = ["127.0.0.1:0", "[::1]:0"];

fn socket(files: &Files, remote: SocketAddr) -> Socket {
    let host = LinuxHost::new(config_in(&files.path("host"))).unwrap();
    let way = host.way(remote).unwrap();
    host.open(&way).unwrap()
}

/// How many connected sockets have this port.
fn connected(socket: &Socket) -> usize {
    const ESTABLISHED: &str = "01";
    let port = format!(":{:04X}", socket.local().port());
    ["/proc/thread-self/net/udp", "/proc/thread-self/net/udp6"]
        .map(|file| std::fs::read_to_string(file).unwrap())
        .iter()
        .flat_map(|list| list.lines())
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|words| words[1].ends_with(&port) && words[3] == ESTABLISHED)
        .count()
}

/// Whether another socket of this user does not get the same port, even if it wants to share it.
fn is_refused(socket: &Socket) -> bool {
    let domain = socket2::Domain::for_address(socket.local());
    let other = socket2::Socket::new(domain, socket2::Type::DGRAM, None).unwrap();
    other.set_reuse_port(true).unwrap();
    other.bind(&socket.local().into()).is_err()
}

fn peer(address: &str) -> UdpSocket {
    let peer = UdpSocket::bind(address).unwrap();
    peer.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    peer
}

/// What comes in, from whom.
async fn hear(socket: &Socket, count: usize) -> Vec<(SocketAddr, Vec<u8>)> {
    let mut heard = Vec::new();
    let mut batch = Batch::for_received();
    while heard.len() < count {
        let receiving = poll_fn(|cx| socket.poll_recv(cx, &mut batch));
        let received = tokio::time::timeout(Duration::from_secs(5), receiving).await;
        received.unwrap().unwrap();
        for (from, _, datagram) in batch.packets() {
            assert_eq!(from.path.local, socket.local());
            heard.push((from.path.remote, datagram.to_vec()));
        }
        batch.clear();
    }
    heard
}

/// Sends to `peer`, which must see our address, and back.
async fn exchange(socket: &Socket, peer: &UdpSocket, words: &[u8]) {
    let to = peer.local_addr().unwrap();
    socket.send(to.into(), words).unwrap();
    let mut buffer = [0; 100];
    let (len, from) = peer.recv_from(&mut buffer).unwrap();
    assert_eq!((from, &buffer[..len]), (socket.local(), words));
    peer.send_to(words, from).unwrap();
    assert_eq!(hear(socket, 1).await, [(to, words.to_vec())]);
}

#[test]
fn every_host_is_heard_and_reached_whoever_the_socket_has_settled_on() {
    in_namespace(|| async {
        let files = Files::new();
        for family in FAMILIES {
            let peers = [peer(family), peer(family), peer(family)];
            let socket = socket(&files, peers[0].local_addr().unwrap());
            let others = [peer(family), peer(family)];
            for settled in [None, Some(0), Some(0), Some(1), Some(2), Some(0)] {
                if let Some(settled) = settled {
                    socket.settle(peers[settled].local_addr().unwrap());
                    assert_eq!(connected(&socket), 1, "to {settled}");
                    assert!(is_refused(&socket), "somebody else has the port too");
                }
                for peer in peers.iter().chain(&others) {
                    exchange(&socket, peer, b"hello").await;
                }
                let whole = socket.send_whole(peers[0].local_addr().unwrap(), b"whole");
                whole.unwrap();
                let mut buffer = [0; 100];
                assert_eq!(peers[0].recv_from(&mut buffer).unwrap(), (5, socket.local()));
            }
        }
    });
}

/// What waits when the socket settles on another host is not lost.
#[test]
fn nothing_is_lost_while_it_settles() {
    in_namespace(|| async {
        let files = Files::new();
        for family in FAMILIES {
            let peers = [peer(family), peer(family)];
            let addresses = [peers[0].local_addr().unwrap(), peers[1].local_addr().unwrap()];
            let socket = socket(&files, addresses[0]);
            for round in 0..10 {
                for peer in &peers {
                    peer.send_to(b"before", socket.local()).unwrap();
                }
                socket.settle(addresses[round % 2]);
                for peer in &peers {
                    peer.send_to(b"after", socket.local()).unwrap();
                }
                let mut heard = hear(&socket, 4).await;
                heard.sort();
                let mut expected =
                    addresses.map(|from| [(from, b"after".to_vec()), (from, b"before".to_vec())]);
                expected.sort();
                assert_eq!(heard, expected.concat(), "round {round}");
            }
        }
    });
}

/// The host that it has settled on refuses datagrams for a while, and says so (ICMP port unreachable).
#[test]
fn a_refusal_costs_no_later_datagram_and_no_other_host() {
    in_namespace(|| async {
        let files = Files::new();
        for family in FAMILIES {
            let settled = peer(family);
            let address = settled.local_addr().unwrap();
            let socket = socket(&files, address);
            socket.settle(address);
            exchange(&socket, &settled, b"hello").await;
            drop(settled);
            for _ in 0..3 {
                socket.send(address.into(), b"refused").unwrap();
                socket.send_train(address.into(), b"refused", 3).unwrap();
            }
            let other = peer(family);
            exchange(&socket, &other, b"other").await;
            let settled = UdpSocket::bind(address).unwrap();
            settled.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            exchange(&socket, &settled, b"again").await;
        }
    });
}

/// A network that is slower than we send: the socket says when it has room again, and nothing that was taken is sent twice.
#[test]
fn without_room_it_waits_for_room_of_the_socket_that_has_none() {
    in_namespace(|| async {
        run("tc qdisc add dev lo root tbf rate 80mbit burst 2kb limit 50mb");
        let files = Files::new();
        for family in FAMILIES {
            for settles in [true, false] {
                let peer = peer(family);
                peer.set_nonblocking(true).unwrap();
                let address = peer.local_addr().unwrap();
                let socket = socket(&files, address);
                if settles {
                    socket.settle(address);
                }
                poll_fn(|cx| socket.poll_writable(cx)).await.unwrap();
                let mut sent = 0_u32;
                let error = loop {
                    match socket.send(address.into(), &[0; 1400]) {
                        Ok(()) => sent += 1,
                        Err(error) => break error,
                    }
                    assert!(sent < 100_000, "the buffer does not fill");
                };
                assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
                assert!(sent > 100, "{sent}");
                let pending = poll_fn(|cx| std::task::Poll::Ready(socket.poll_writable(cx).is_pending()));
                assert!(pending.await, "it has no room");
                // Meanwhile it is read from.
                let other = self::peer(family);
                other.send_to(b"hello", socket.local()).unwrap();
                assert_eq!(
                    hear(&socket, 1).await,
                    [(other.local_addr().unwrap(), b"hello".to_vec())]
                );
                let room = poll_fn(|cx| socket.poll_writable(cx));
                tokio::time::timeout(Duration::from_secs(5), room)
                    .await
                    .unwrap()
                    .unwrap();
                socket.send(address.into(), b"and again").unwrap();
            }
        }
    });
}

/// Whoever floods us does not keep the others from being heard, whichever socket they come to.
#[test]
fn a_flood_on_one_leaves_the_other_its_turn() {
    in_namespace(|| async {
        let files = Files::new();
        for family in FAMILIES {
            let (settled, stranger) = (peer(family), peer(family));
            let socket = socket(&files, settled.local_addr().unwrap());
            socket.settle(settled.local_addr().unwrap());
            for (flooding, quiet) in [(&settled, &stranger), (&stranger, &settled)] {
                let mut batch = Batch::for_received();
                // More than a batch has room for, before the one that counts.
                for _ in 0..2000 {
                    flooding.send_to(&[1; 40], socket.local()).unwrap();
                }
                quiet.send_to(b"quiet", socket.local()).unwrap();
                let mut turns = 0;
                loop {
                    let receiving = poll_fn(|cx| socket.poll_recv(cx, &mut batch));
                    let received = tokio::time::timeout(Duration::from_secs(5), receiving).await;
                    received.unwrap().unwrap();
                    turns += 1;
                    let is_heard = batch.packets().any(|(_, _, words)| *words == *b"quiet");
                    batch.clear();
                    if is_heard {
                        break;
                    }
                }
                assert!(turns <= 2, "heard in turn {turns}");
                // What is left of the flood.
                while poll_fn(|cx| std::task::Poll::Ready(socket.poll_recv(cx, &mut batch).is_ready())).await
                {
                    batch.clear();
                }
            }
        }
    });
}
