//! Datagrams that are sent in one piece arrive as what they are, with and without the kernel's offloads.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use std::future::poll_fn;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use common::{Files, config_in, in_namespace, run};
use peregrine_platform::batch::Batch;
use peregrine_platform::host::{Host as _, Socket as _};
use peregrine_platform::linux::{LinuxHost, Offloads, Socket};

const GSO_OFF: Offloads = Offloads {
    udp_gso: false,
    ..Offloads::ALL
};
const GRO_OFF: Offloads = Offloads {
    udp_gro: false,
    ..Offloads::ALL
};

/// Two sockets on the loopback interface, which have settled on each other or not.
fn sockets(files: &Files, to: SocketAddr, offloads: Offloads, settled: bool) -> [Socket; 2] {
    let mut config = config_in(&files.path("host"));
    config.offloads = offloads;
    let host = LinuxHost::new(config).unwrap();
    let way = host.way(to).unwrap();
    let [one, other] = [host.open(&way).unwrap(), host.open(&way).unwrap()];
    if settled {
        one.settle(other.local());
        other.settle(one.local());
    }
    [one, other]
}

/// Sends as the driver does: as long trains as the socket takes.
fn send(from: &Socket, to: SocketAddr, mut train: &[u8], stride: usize) {
    while !train.is_empty() {
        let len = train.len().min(from.longest_train() * stride);
        let sent = if len > stride {
            from.send_train(to.into(), &train[..len], stride)
        } else {
            from.send(to.into(), &train[..len])
        };
        match sent {
            Ok(()) => train = &train[len..],
            Err(error) => assert_eq!(error.kind(), ErrorKind::Unsupported),
        }
    }
}

/// The datagrams that come in, and in how many pieces.
async fn hear(socket: &Socket, count: usize) -> (Vec<Vec<u8>>, usize) {
    let (mut heard, mut pieces) = (Vec::new(), 0);
    let mut batch = Batch::for_received();
    while heard.len() < count {
        let receiving = poll_fn(|cx| socket.poll_recv(cx, &mut batch));
        tokio::time::timeout(Duration::from_secs(5), receiving)
            .await
            .unwrap()
            .unwrap();
        pieces += batch.len();
        heard.extend(batch.packets().map(|(_, _, datagram)| datagram.to_vec()));
        batch.clear();
    }
    (heard, pieces)
}

fn octets(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at / 7) as u8).collect()
}

#[test]
fn a_train_arrives_as_its_datagrams() {
    in_namespace(|| async {
        let files = Files::new();
        for address in ["127.0.0.1:9", "[::1]:9"] {
            let cases = [(Offloads::ALL, true), (GSO_OFF, false), (GRO_OFF, false)];
            for ((offloads, together), settled) in
                cases.into_iter().flat_map(|case| [(case, false), (case, true)])
            {
                let [from, to] = sockets(&files, address.parse().unwrap(), offloads, settled);
                let train = octets(40 * 1000 + 300);
                send(&from, to.local(), &train, 1000);
                let (heard, pieces) = hear(&to, 41).await;
                assert!(
                    heard.iter().map(Vec::as_slice).eq(train.chunks(1000)),
                    "{offloads:?}"
                );
                assert_eq!(pieces < 10, together, "{pieces} pieces with {offloads:?}");
            }
        }
    });
}

/// As when the path has become narrower: what does not fit is fragmented, and goes alone.
#[test]
fn a_train_that_the_path_does_not_carry_goes_one_by_one() {
    in_namespace(|| async {
        run("ip link set lo mtu 600");
        let files = Files::new();
        for settled in [false, true] {
            let [from, to] = sockets(&files, "127.0.0.1:9".parse().unwrap(), Offloads::ALL, settled);
            let train = octets(10 * 1000);
            send(&from, to.local(), &train, 1000);
            let (heard, _) = hear(&to, 10).await;
            assert!(heard.iter().map(Vec::as_slice).eq(train.chunks(1000)));
            // Smaller ones are tried together again after a while.
            let mut tries = 0..1000;
            while from.longest_train() == 1 {
                assert!(tries.next().is_some());
            }
            send(&from, to.local(), &octets(40 * 500), 500);
            let (_, pieces) = hear(&to, 40).await;
            assert!(pieces < 10, "{pieces} pieces");
        }
    });
}
