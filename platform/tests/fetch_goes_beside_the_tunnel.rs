//! What is fetched over HTTP comes by the physical network, also while everything else goes into the tunnel, and only from
//! addresses that the fetch permits.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv6Addr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{Files, Namespace, full_plan, run, with_two_networks};
use peregrine_core::command::HostFault;
use peregrine_core::fetch::{Fetch, FetchId, HttpUrl};
use peregrine_core::plan::Plan;
use peregrine_platform::batch::Batch;
use peregrine_platform::host::{Host as _, Tun as _};
use peregrine_platform::linux::{LinuxHost, Tun};

/// A server on every address of its namespace, port 80, and the first lines of what it was asked.
#[derive(Clone, Default)]
struct WebServer(Arc<Mutex<Vec<String>>>);

impl WebServer {
    fn start(network: &Namespace) -> Self {
        let server = Self::default();
        let asked = server.clone();
        network.run(move || asked.listen());
        server
    }

    fn listen(&self) {
        let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 80)).unwrap();
        let asked = Arc::clone(&self.0);
        std::thread::spawn(move || {
            let mut kept = Vec::new();
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut request = [0; 4096];
                let len = stream.read(&mut request).unwrap_or(0);
                let request = String::from_utf8_lossy(&request[..len]).into_owned();
                let line = request.lines().next().unwrap_or_default().to_owned();
                let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
                asked.lock().unwrap().push(line);
                let location =
                    |to: &str| format!("HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n");
                let answer = match path.as_str() {
                    "/list" => "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlist".to_owned(),
                    "/moved" => location("/list"),
                    "/elsewhere" => location("http://[2001:db8:1::1]/list"),
                    "/inside" => location("http://127.0.0.1/list"),
                    "/secure" => location("https://192.0.2.1/list"),
                    "/circle" => location("/circle"),
                    "/silent" => {
                        kept.push(stream);
                        continue;
                    }
                    _ => "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_owned(),
                };
                let _gone = stream.write_all(answer.as_bytes());
            }
        });
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

async fn fetch(host: &LinuxHost, url: &str) -> Result<Vec<u8>, HostFault> {
    fetch_private(host, url, false).await
}

async fn fetch_private(host: &LinuxHost, url: &str, private: bool) -> Result<Vec<u8>, HostFault> {
    let fetch = Fetch {
        id: FetchId(1),
        url: HttpUrl::parse(url).unwrap(),
        post: None,
        private,
    };
    host.fetch(fetch).await
}

async fn reason(host: &LinuxHost, url: &str) -> String {
    let fault = fetch(host, url).await.unwrap_err();
    assert!(fault.action.contains(url), "{fault}");
    fault.reason
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

fn files() -> Files {
    run("ip route add default via 192.0.2.1 dev uplink0");
    run("ip -6 route add default via 2001:db8:1::1 dev uplink0");
    let files = Files::new();
    fs::create_dir_all(files.path("etc")).unwrap();
    fs::write(files.resolv_conf(), "nameserver 192.0.2.1\n").unwrap();
    fs::write(
        files.path("etc/hosts"),
        "192.0.2.1 crl.example\n127.0.0.1 trap.example\n",
    )
    .unwrap();
    files
}

#[test]
fn by_address_and_by_name_beside_a_tunnel_for_everything() {
    with_two_networks(|network| async move {
        let files = files();
        let server = WebServer::start(&network);
        let host = files.host();
        assert_eq!(
            fetch(&host, "http://192.0.2.1/list").await.unwrap(),
            b"list",
            "without a tunnel"
        );
        let tun = host.apply(full_plan()).await.unwrap().tun.unwrap();
        for url in [
            "http://192.0.2.1/list",
            "http://[2001:db8:1::1]/list",
            "http://crl.example/list",
            "http://crl.example/moved",
            "http://crl.example/elsewhere",
        ] {
            assert_eq!(fetch(&host, url).await.as_deref(), Ok(&b"list"[..]), "{url}");
        }
        assert_eq!(server.asked().len(), 8);
        assert_untouched(&tun).await;
        host.apply(Plan::default()).await.unwrap();
    });
}

#[test]
fn nobody_sends_us_where_we_do_not_go() {
    with_two_networks(|network| async move {
        let files = files();
        let server = WebServer::start(&network);
        // On this machine, and in a private network.
        let own = WebServer::default();
        own.listen();
        network.run(|| run("ip addr add 10.200.0.1/32 dev lo"));
        let host = files.host();
        let tun = host.apply(full_plan()).await.unwrap().tun.unwrap();
        for url in [
            "http://127.0.0.1/list",
            "http://[::1]/list",
            "http://trap.example/list",
            "http://10.200.0.1/list",
        ] {
            let reason = reason(&host, url).await;
            assert!(reason.contains("not one that is asked"), "{url}: {reason}");
        }
        assert!(
            reason(&host, "http://crl.example/inside")
                .await
                .contains("not one that is asked")
        );
        assert!(
            reason(&host, "http://crl.example/secure")
                .await
                .contains("only http")
        );
        assert_eq!(server.asked().len(), 2);
        assert!(own.asked().is_empty(), "somebody knocked at this machine");
        assert_eq!(
            fetch_private(&host, "http://10.200.0.1/list", true)
                .await
                .unwrap(),
            b"list"
        );
        assert_eq!(server.asked().len(), 1);
        assert_untouched(&tun).await;
    });
}

#[test]
fn it_ends_in_time() {
    with_two_networks(|network| async move {
        let files = files();
        let server = WebServer::start(&network);
        let host = files.host();
        assert!(reason(&host, "http://192.0.2.1/none").await.contains("404"));
        assert!(
            reason(&host, "http://192.0.2.1/circle")
                .await
                .contains("too often")
        );
        assert_eq!(server.asked().len(), 1 + Fetch::MAX_REDIRECTIONS + 1);
        assert!(reason(&host, "http://192.0.2.1:81/").await.contains("refused"));
        for url in ["http://192.0.2.1/silent", "http://198.51.100.77/"] {
            let began = Instant::now();
            assert!(!reason(&host, url).await.is_empty());
            assert!(
                began.elapsed() < Fetch::PATIENCE + Duration::from_millis(500),
                "{:?}",
                began.elapsed()
            );
        }
    });
}
