//! A train of packets along the whole path: from what the tunnel device gave to what a socket sends, and back, with the
//! Child SAs of a tunnel that a client and a gateway have made.

use std::cell::Cell;
use std::future::pending;
use std::hint::black_box;
use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::task::{Context, Poll};

use peregrine_core::client::Client;
use peregrine_core::command::{Path, Sink};
use peregrine_core::profile::AuthKind;
use peregrine_core::timer::Instant;
use peregrine_platform::batch::Batch;
use peregrine_platform::dataplane::coalesce::Offers;
use peregrine_platform::dataplane::segment::Outgoing;
use peregrine_platform::dataplane::virtio::Header;
use peregrine_platform::host::{self, Addressee, Arrival, Way};
use peregrine_platform::packets::Packets;
use peregrine_tests::cast::{Cast, esp};
use peregrine_tests::gateway::Gateway;
use peregrine_tests::world::World;

use crate::{Case, FAR, PACKET, TRAIN, Work, large_packet};

pub(super) fn cases() -> Vec<Case> {
    let cast = Cast::default();
    let mut cases = Vec::new();
    for (keywords, name) in [
        ("aes256gcm16-esn", "AES-256-GCM"),
        ("chacha20poly1305-esn", "ChaCha20-Poly1305"),
        ("aes256-sha256-esn", "AES-256-CBC-HMAC-SHA2-256"),
    ] {
        let send = Sending(Tunnel::new(&cast, keywords));
        cases.push(Case::new(format!("seal a train, {name}"), TRAIN, PACKET, send));
        let receive = Receiving(Tunnel::new(&cast, keywords));
        cases.push(Case::new(format!("open a train, {name}"), TRAIN, PACKET, receive));
    }
    cases
}

/// Both ends of a tunnel, and what is between the client and its machine.
struct Tunnel {
    client: Client,
    gateway: Gateway,
    now: Instant,
    packets: Packets<Device, Socket, Stream>,
    from_device: Batch<Header>,
    from_socket: Batch<Arrival>,
    large: Vec<u8>,
    header: Header,
    /// The same train on its way back: the packets that come in.
    segments: Vec<Vec<u8>>,
    sealed: Sealed,
}

impl Tunnel {
    fn new(cast: &Cast, keywords: &str) -> Self {
        let mut profile = cast.profile(AuthKind::Psk);
        profile.child.proposals = esp(keywords);
        let mut config = cast.gateway(AuthKind::Psk);
        config.esp = esp(keywords);
        let mut world = World::new(Gateway::new(config, 0x47), 1);
        world
            .connect_and_wait(profile, cast.credentials())
            .expect("they connect");
        let tunnel = world.plans.last().and_then(|plan| plan.tunnel.as_ref());
        let near = tunnel
            .and_then(|tunnel| {
                tunnel.addresses.iter().find_map(|net| match net.addr() {
                    IpAddr::V4(address) => Some(address.octets()),
                    IpAddr::V6(_) => None,
                })
            })
            .expect("an inner address");
        let World {
            mut client,
            gateway,
            now,
            ..
        } = world;

        let (large, header) = large_packet(near, FAR, TRAIN);
        let (mut back, _) = large_packet(FAR, near, TRAIN);
        let Ok(Outgoing::Segments(cut)) = Outgoing::new(&mut back, header) else {
            panic!("it is to be cut");
        };
        let segments: Vec<_> = (0..cut.count())
            .map(|index| {
                let mut segment = vec![0; cut.len(index)];
                cut.write(index, &mut segment);
                segment
            })
            .collect();

        let mut sealed = Sealed::default();
        let ping = peregrine_tests::cast::packet(&IpAddr::from(near).to_string(), "192.0.2.80", 100);
        client.handle_packet(&ping, &mut sealed, now);
        let local = sealed.path.expect("the client sends").local;
        let mut packets = Packets::new();
        packets.set_device(Some(Device::default()));
        let way = Way {
            source: local.ip(),
            interface: None,
            mtu: None,
        };
        packets.links.add(Socket { local }, &way);
        Self {
            client,
            gateway,
            now,
            packets,
            from_device: Batch::new(),
            from_socket: Batch::for_received(),
            large,
            header,
            segments,
            sealed,
        }
    }
}

/// From the tunnel device to the socket.
struct Sending(Tunnel);

impl Work for Sending {
    fn prepare(&mut self) {
        let Self(tunnel) = self;
        let room = tunnel.from_device.room().expect("the batch is empty");
        room[..tunnel.large.len()].copy_from_slice(&tunnel.large);
        tunnel.from_device.push(tunnel.large.len(), tunnel.header);
    }

    fn run(&mut self) -> usize {
        let Self(tunnel) = self;
        SENT.set(0);
        tunnel
            .packets
            .seal(&mut tunnel.client, &mut tunnel.from_device, tunnel.now);
        tunnel.packets.links.flush();
        SENT.get()
    }
}

/// From the socket to the tunnel device.
struct Receiving(Tunnel);

impl Work for Receiving {
    fn prepare(&mut self) {
        let Self(tunnel) = self;
        let path = tunnel.sealed.path.expect("the client has sent");
        tunnel.sealed.octets.clear();
        for segment in &tunnel.segments {
            let write = |room: &mut [u8]| room.copy_from_slice(segment);
            tunnel.gateway.seal(segment.len(), write, &mut tunnel.sealed);
        }
        let train = &tunnel.sealed.octets;
        let room = tunnel.from_socket.room().expect("the batch is empty");
        room[..train.len()].copy_from_slice(train);
        let stride = train.len() / TRAIN;
        tunnel.from_socket.push_train(train.len(), stride, path.into());
    }

    fn run(&mut self) -> usize {
        let Self(tunnel) = self;
        tunnel
            .packets
            .open(&mut tunnel.client, &mut tunnel.from_socket, tunnel.now);
        let device = tunnel.packets.tun.as_ref();
        device.map_or(0, |device| device.joined.take())
    }
}

/// Datagrams back to back.
#[derive(Default)]
struct Sealed {
    path: Option<Path>,
    octets: Vec<u8>,
    start: usize,
}

impl Sink for Sealed {
    fn reserve(&mut self, path: Path, len: usize) -> Option<&mut [u8]> {
        self.path.get_or_insert(path);
        self.start = self.octets.len();
        self.octets.resize(self.start + len, 0);
        self.octets.get_mut(self.start..)
    }

    fn commit(&mut self, len: usize, _ds: u8) {
        self.octets.truncate(self.start + len);
    }
}

/// A tunnel device that takes everything and keeps nothing.
#[derive(Default)]
struct Device {
    /// How many packets were in the last piece.
    joined: Cell<usize>,
}

impl host::Tun for Device {
    async fn recv(&self, _batch: &mut Batch<Header>) -> io::Result<()> {
        pending().await
    }

    fn send(&self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        // What is left to do, and the headers, are parts of their own.
        self.joined.set(black_box(parts).len() - 2);
        Ok(())
    }

    fn offers(&self) -> Offers {
        Offers { tcp: true, udp: true }
    }
}

thread_local! {
    /// How many datagrams were sent. The socket belongs to the links, which show it to nobody.
    static SENT: Cell<usize> = const { Cell::new(0) };
}

/// A socket that sends everything nowhere.
struct Socket {
    local: SocketAddr,
}

impl host::Socket for Socket {
    fn local(&self) -> SocketAddr {
        self.local
    }

    fn poll_recv(&self, _: &mut Context<'_>, _: &mut Batch<Arrival>) -> Poll<io::Result<()>> {
        Poll::Pending
    }

    fn send(&self, _to: Addressee, datagram: &[u8]) -> io::Result<()> {
        black_box(datagram);
        SENT.set(SENT.get() + 1);
        Ok(())
    }

    fn longest_train(&self) -> usize {
        64
    }

    fn send_train(&self, _to: Addressee, train: &[u8], stride: usize) -> io::Result<()> {
        SENT.set(SENT.get() + black_box(train).len().div_ceil(stride));
        Ok(())
    }

    fn poll_writable(&self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// There is no TCP connection.
enum Stream {}

impl host::Stream for Stream {
    fn local(&self) -> SocketAddr {
        match *self {}
    }

    fn poll_read(&self, _: &mut Context<'_>, _: &mut [u8]) -> Poll<io::Result<usize>> {
        match *self {}
    }

    fn write(&self, _: &[u8]) -> io::Result<usize> {
        match *self {}
    }

    fn poll_writable(&self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match *self {}
    }
}
