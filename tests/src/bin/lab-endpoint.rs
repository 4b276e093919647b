//! `lab-endpoint OUTER INNER [ENCR]` is the gateway of the virtual-time tests on a real socket at OUTER:4500 and :500, with
//! the client's own packet path and a tunnel device with the address INNER: the other end for measurements.
//!
//! It takes a pre-shared key, gives one client an address of 10.3.0.0/16, and takes that ENCR alone for ESP: gcm (AES-256,
//! the default), chacha or cbc. It ends with its standard input.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "it is spoken to over its standard input and output"
)]

use std::future::{pending, poll_fn};
use std::io::{self, Read as _};
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;

use peregrine_core::client::InnerMtu;
use peregrine_core::command::{Path, Sink, Transmit};
use peregrine_core::plan::{Dns, Plan, TunnelConfig};
use peregrine_core::profile::Identity;
use peregrine_core::proposal::EspProposal;
use peregrine_core::timer::Instant;
use peregrine_platform::batch::Batch;
use peregrine_platform::clock::Clock as _;
use peregrine_platform::dataplane::virtio;
use peregrine_platform::host::{Host as _, Interface, Tun as _, Way};
use peregrine_platform::linux::{Config, LinuxHost, Socket, StateDirectories, Stream, Tun};
use peregrine_platform::packets::{Endpoint, Packets};
use peregrine_tests::gateway::{ClientAuth, Gateway, GatewayConfig, Outgoing, Proof};
use peregrine_tests::lab::names;

/// What a full Ethernet frame carries over IPv4.
const MTU: u16 = 1438;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let address = |index: usize| arguments.get(index)?.parse::<IpAddr>().ok();
    let encr = arguments.get(2).map_or("gcm", String::as_str);
    let (Some(outer), Some(inner), Some(esp)) = (address(0), address(1), proposal(encr)) else {
        eprintln!("usage: lab-endpoint OUTER INNER [gcm|chacha|cbc]");
        return ExitCode::from(2);
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let served = runtime.and_then(|runtime| runtime.block_on(serve(outer, inner, esp)));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab-endpoint: {error}");
            ExitCode::FAILURE
        }
    }
}

fn proposal(encr: &str) -> Option<EspProposal> {
    let keyword = match encr {
        "gcm" => "aes256gcm16",
        "chacha" => "chacha20poly1305",
        "cbc" => "aes256-sha256",
        _ => return None,
    };
    EspProposal::parse(keyword).ok()
}

struct Other {
    gateway: Gateway,
    /// What it has to say.
    out: Vec<Outgoing>,
}

impl Endpoint for Other {
    fn open<'d>(&mut self, path: Path, datagram: &'d mut [u8], now: Instant) -> Option<&'d mut [u8]> {
        match self.gateway.open(path, datagram, now) {
            Ok(packet) => Some(packet),
            Err(said) => {
                self.out.extend(said);
                None
            }
        }
    }

    fn seal(&mut self, len: usize, write: impl FnOnce(&mut [u8]), sink: &mut impl Sink, _: Instant) {
        self.gateway.seal(len, write, sink);
    }

    fn inner_mtu(&self) -> Option<InnerMtu> {
        Some(InnerMtu {
            octets: MTU,
            is_proven: true,
        })
    }
}

async fn serve(outer: IpAddr, inner: IpAddr, esp: EspProposal) -> io::Result<()> {
    let failed = |fault| io::Error::other(format!("{fault}"));
    let folder = std::env::temp_dir().join(format!("lab-endpoint-{}", std::process::id()));
    let host = LinuxHost::new(Config {
        state: StateDirectories {
            runtime: folder.join("run"),
            persistent: folder.join("lib"),
        },
        ..Config::system()
    })
    .map_err(failed)?;
    let ike = tokio::net::UdpSocket::bind((outer, 500)).await?;
    let mut packets = Packets::<Tun, Socket, Stream>::new();
    let way = Way {
        source: outer,
        interface: None::<Interface>,
        mtu: None,
    };
    let local = SocketAddr::new(outer, 4500);
    packets.links.add(host.listen(local).map_err(failed)?, &way);
    let plan = Plan {
        tunnel: Some(TunnelConfig {
            addresses: vec![inner.into()],
            routes: ["10.3.0.0/16".parse().map_err(io::Error::other)?].into(),
            excluded: [].into(),
            refused: [].into(),
            dns: Dns::default(),
            mtu: MTU,
        }),
        ..Plan::default()
    };
    let applied = host.apply(plan).await.map_err(failed)?;
    packets.set_device(applied.tun);

    let psk = names::PSK.as_bytes().to_vec();
    let mut other = Other {
        gateway: Gateway::new(
            GatewayConfig {
                pool: vec![[10, 3, 0, 1].into()],
                addresses: vec![outer],
                esp: vec![esp],
                ..GatewayConfig::new(
                    Identity::Fqdn("psk.vpn.lab".into()),
                    Proof::Psk(psk.clone()),
                    ClientAuth::Psk(psk),
                )
            },
            0x4d,
        ),
        out: Vec::new(),
    };
    let ended = tokio::task::spawn_blocking(|| io::stdin().read_to_end(&mut Vec::new()));
    println!("ready");
    let (mut inbound, mut outbound) = (Batch::for_received(), Batch::<virtio::Header>::new());
    let mut message = vec![0; 65_536];
    let mut ended = std::pin::pin!(ended);
    loop {
        let wait = other.gateway.poll_timeout().map(|due| due.since(host.now()));
        let timer = async {
            match wait {
                Some(wait) => tokio::time::sleep(wait).await,
                None => pending().await,
            }
        };
        let Packets { links, tun, .. } = &mut packets;
        let Some(device) = &*tun else { return Ok(()) };
        let has_room = links.has_room();
        enum Wake {
            Sockets,
            Device,
            Ike(usize, SocketAddr),
            Time,
        }
        let wake = tokio::select! {
            () = poll_fn(|cx| links.poll(cx, &mut inbound)) => Wake::Sockets,
            read = device.recv(&mut outbound), if has_room => read.map(|()| Wake::Device)?,
            read = ike.recv_from(&mut message) => read.map(|(len, from)| Wake::Ike(len, from))?,
            () = timer => Wake::Time,
            _ = &mut ended => break,
        };
        let now = host.now();
        let flooded = outbound.is_flooded() || inbound.is_flooded();
        match wake {
            Wake::Sockets => packets.open(&mut other, &mut inbound, now),
            Wake::Device => packets.seal(&mut other, &mut outbound, now),
            Wake::Ike(len, from) => {
                let path = Path::udp(SocketAddr::new(outer, 500), from);
                let said = other
                    .gateway
                    .handle(path, message.get(..len).unwrap_or_default(), now);
                other.out.extend(said);
            }
            Wake::Time => other.out.extend(other.gateway.handle_timeout(now)),
        }
        for (path, datagram) in other.out.drain(..) {
            if path.local.port() == 500 {
                // What cannot be sent is lost, as anything on the way may be.
                let _lost = ike.try_send_to(&datagram, path.remote);
            } else {
                packets.links.queue(&Transmit {
                    path,
                    payload: datagram.into(),
                    is_probe: false,
                });
            }
        }
        packets.links.flush();
        if flooded {
            // As the driver does.
            tokio::task::yield_now().await;
        }
    }
    host.apply(Plan::default()).await.map_err(failed)?;
    let _gone = std::fs::remove_dir_all(folder);
    Ok(())
}
