//! UDP sockets and TCP connections that are never routed into our own tunnel, each on one way.

use std::cell::Cell;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::os::fd::AsRawFd as _;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, getsockopt, sendmsg, setsockopt, sockopt};
use peregrine_core::command::{HostFault, Path};
use quinn_udp::{RecvMeta, UdpSocketState};
use socket2::{Domain, Protocol, Type};
use tokio::io::Interest;
use tokio::net::{TcpSocket, TcpStream, UdpSocket};

use super::netlink::Netlink;
use super::{Offloads, fault};
use crate::batch::{Batch, LONGEST_TRAIN, SLOTS};
use crate::host::{self, Addressee, Arrival, Interface, Way};

/// The mark of our own sockets (`pere`). Every rule of ours excepts it, so one instance's datagrams do not go into
/// another's tunnel either. Setting a mark takes `CAP_NET_ADMIN`; a program without it cannot leave beside the tunnel.
pub(super) const MARK: u32 = 0x7065_7265;

/// 10 Gbit/s for 10 ms.
const RECEIVE_BUFFER: usize = 16 << 20;
const SEND_BUFFER: usize = 2 << 20;

/// A host that does not take a TCP connection within this time does not want to, or is not there.
const CONNECT: Duration = Duration::from_secs(8);
/// A connection on which nothing is acknowledged for so long is given up: another one costs a round trip.
const UNACKNOWLEDGED: Duration = Duration::from_secs(10);
/// No more octets than these wait in the kernel before they are on their way, so that what comes after them is soon
/// there too.
const NOT_SENT: u32 = 128 << 10;

/// How many slots are filled with one system call while the kernel merges datagrams, so that they stay in the
/// processor's cache.
const MERGED_SLOTS: usize = 8;

/// How often the pause doubles after which a train is tried again: up to 65,536 datagrams.
const MOST_DOUBLINGS: u32 = 10;

/// An unconnected, marked UDP socket.
#[derive(Debug)]
pub struct Socket {
    socket: UdpSocket,
    local: SocketAddr,
    state: UdpSocketState,
    segmentation: Segmentation,
    /// The kernel merged datagrams when they were last read.
    merges: Cell<bool>,
}

/// Whether the kernel is given datagrams in trains to be cut (`UDP_SEGMENT`, since Linux 4.18).
///
/// A network card may refuse a train that the kernel took for possible, or a datagram of it may be larger than the path
/// that the kernel knows, which only goes alone. Neither says whether the next train is refused too.
#[derive(Debug)]
struct Segmentation {
    wanted: bool,
    /// How many trains were refused in a row.
    failures: Cell<u32>,
    /// How many datagrams are to go one by one before the next train is tried.
    skipped: Cell<usize>,
}

impl Segmentation {
    const fn new(wanted: bool) -> Self {
        Self {
            wanted,
            failures: Cell::new(0),
            skipped: Cell::new(0),
        }
    }

    /// How many datagrams the next train may have.
    fn longest(&self) -> usize {
        match self.skipped.get() {
            _ if !self.wanted => 1,
            0 => LONGEST_TRAIN,
            skipped => {
                self.skipped.set(skipped - 1);
                1
            }
        }
    }

    fn succeeded(&self) {
        self.failures.set(0);
    }

    fn failed(&self, error: &io::Error) {
        let failures = self.failures.get();
        if failures == 0 {
            tracing::debug!(%error, "datagrams are not taken in one piece; they are sent one by one for a while");
        }
        self.failures.set(failures + 1);
        self.skipped.set(LONGEST_TRAIN << failures.min(MOST_DOUBLINGS));
    }
}

impl Socket {
    /// A socket on `way`, on a port of the kernel's choosing.
    pub(super) fn open(way: &Way, offloads: Offloads) -> Result<Self, HostFault> {
        Self::bind(source(way), way.interface.as_ref(), offloads)
    }

    /// A socket at this address and port.
    pub(super) fn bind(
        address: SocketAddr,
        interface: Option<&Interface>,
        offloads: Offloads,
    ) -> Result<Self, HostFault> {
        let socket =
            marked_udp(address).map_err(|error| fault("open a UDP socket beside the tunnel", error))?;
        // The kernel counts its own overhead too and doubles what is asked for. The forced size goes beyond
        // net.core.rmem_max; without the privilege the plain one has to do.
        if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
            let _smaller = socket.set_recv_buffer_size(RECEIVE_BUFFER);
        }
        if setsockopt(&socket, sockopt::SndBufForce, &SEND_BUFFER).is_err() {
            let _smaller = socket.set_send_buffer_size(SEND_BUFFER);
        }
        if let Some(interface) = interface {
            keep_to(&socket, interface, address)
                .map_err(|error| fault(format!("send by {}", interface.name), error))?;
        }
        let watch = |error| fault("watch a UDP socket", error);
        socket
            .bind(&address.into())
            .map_err(|error| fault(format!("send from {}", address.ip()), error))?;
        let state = reader(address).map_err(watch)?;
        // Since Linux 5.0; without it datagrams come one by one.
        if offloads.udp_gro
            && let Err(error) = setsockopt(&socket, sockopt::UdpGroSegment, &true)
        {
            tracing::debug!(%error, "datagrams are not merged");
        }
        let told = match address {
            SocketAddr::V4(_) => setsockopt(&socket, sockopt::IpRecvTos, &true),
            SocketAddr::V6(_) => setsockopt(&socket, options::Ipv6RecvTclass, &true),
        };
        if let Err(error) = told {
            tracing::debug!(%error, "congestion marks are not seen");
        }
        let socket = UdpSocket::from_std(socket.into()).map_err(watch)?;
        let local = socket.local_addr().map_err(watch)?;
        Ok(Self {
            socket,
            local,
            segmentation: Segmentation::new(offloads.udp_gso && state.max_gso_segments() > 1),
            state,
            merges: Cell::new(false),
        })
    }

    /// Sends a datagram, or a train of them of this stride, at once. Not through the runtime, which believes a new socket
    /// to be full until its first poll.
    fn send_now(&self, to: Addressee, octets: &[u8], stride: Option<u16>) -> io::Result<()> {
        let tos = (to.ds != 0).then_some((to.ds, i32::from(to.ds)));
        let marked = tos.as_ref().map(|(tos, class)| match to.remote {
            SocketAddr::V4(_) => ControlMessage::Ipv4Tos(tos),
            SocketAddr::V6(_) => ControlMessage::Ipv6TClass(class),
        });
        let cut = stride.as_ref().map(ControlMessage::UdpGsoSegments);
        let send = |control: &[ControlMessage<'_>]| {
            let (socket, octets) = (self.socket.as_raw_fd(), [IoSlice::new(octets)]);
            let remote = SockaddrStorage::from(to.remote);
            sendmsg(socket, &octets, control, MsgFlags::empty(), Some(&remote))
        };
        let sent = match (marked, cut) {
            (None, None) => send(&[]),
            (Some(one), None) | (None, Some(one)) => send(&[one]),
            (Some(one), Some(other)) => send(&[one, other]),
        };
        match sent.map(drop).map_err(io::Error::from) {
            // Full indeed: let `poll_writable` know.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.socket.try_io(Interest::WRITABLE, || Err(error))
            }
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENXIO)) => {
                Err(io::Error::new(io::ErrorKind::NetworkDown, error))
            }
            sent => sent,
        }
    }
}

/// What reads sockets of the address's family. It sets a socket up for QUIC, and some of that cannot be taken back (the
/// kernel then notes the time of every packet that the machine receives): so it is given one that is closed at once. It keeps
/// nothing of it but what the kernel is able to do.
fn reader(address: SocketAddr) -> io::Result<UdpSocketState> {
    let scratch = socket2::Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    UdpSocketState::new((&scratch).into())
}

/// The address of a socket on `way`, on a port of the kernel's choosing.
fn source(way: &Way) -> SocketAddr {
    match way.source {
        // An address of a link alone means nothing without the link.
        IpAddr::V6(source) if source.is_unicast_link_local() => {
            SocketAddrV6::new(source, 0, 0, way.index().unwrap_or(0)).into()
        }
        source => SocketAddr::new(source, 0),
    }
}

/// A marked TCP connection.
#[derive(Debug)]
pub struct Stream {
    stream: TcpStream,
    local: SocketAddr,
}

impl Stream {
    /// Connects on `way`.
    pub(super) async fn open(way: Way, remote: SocketAddr) -> Result<Self, HostFault> {
        let failed = |error: io::Error| fault(format!("open a TCP connection to {remote}"), error);
        let socket = Self::prepare(&way).map_err(failed)?;
        let connecting = TcpSocket::from_std_stream(socket.into()).connect(remote);
        let stream = tokio::time::timeout(CONNECT, connecting)
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(failed)?;
        let local = stream.local_addr().map_err(failed)?;
        Ok(Self { stream, local })
    }

    fn prepare(way: &Way) -> io::Result<socket2::Socket> {
        let address = source(way);
        let socket = marked_tcp(address)?;
        socket.set_tcp_nodelay(true)?;
        socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
        socket.set_tcp_notsent_lowat(NOT_SENT)?;
        // The interface, for both families: a connection that outlives its network must not appear on another one with
        // an address that is not of there.
        if let Some(interface) = &way.interface
            && let Err(error) = socket.bind_device(Some(interface.name.as_bytes()))
        {
            tracing::debug!(%error, interface = interface.name, "a connection is not bound to its interface");
        }
        // Bound here and not by connecting: so no other connection can have the same port.
        socket.bind(&address.into())?;
        Ok(socket)
    }
}

impl host::Stream for Stream {
    fn local(&self) -> SocketAddr {
        self.local
    }

    fn poll_read(&self, cx: &mut Context<'_>, room: &mut [u8]) -> Poll<io::Result<usize>> {
        loop {
            match self.stream.poll_read_ready(cx) {
                Poll::Ready(ready) => ready?,
                Poll::Pending => return Poll::Pending,
            }
            match self.stream.try_read(room) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return Poll::Ready(read),
            }
        }
    }

    fn write(&self, octets: &[u8]) -> io::Result<usize> {
        self.stream.try_write(octets)
    }

    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.poll_write_ready(cx)
    }
}

/// Makes a socket send by `interface`, whatever else routing would choose later. What comes in is the socket's by its
/// address.
///
/// For IPv4 that is all that is asked of the kernel: where two interfaces are in the same network, a neighbour may
/// send what is for the address of one by the other, and the socket shall hear it. For IPv6, where neighbours do not
/// do that, the same option (`IPV6_UNICAST_IF`) loses to a route of a better metric; the socket is bound to the
/// interface. That takes no privilege since Linux 5.7, and `CAP_NET_RAW` before it: without it the weaker one has to
/// do.
fn keep_to(socket: &socket2::Socket, interface: &Interface, address: SocketAddr) -> io::Result<()> {
    // Both options take the index as it stands in a packet.
    let index = interface.index.to_be().cast_signed();
    if address.is_ipv4() {
        return Ok(setsockopt(socket, options::UnicastIf, &index)?);
    }
    match socket.bind_device(Some(interface.name.as_bytes())) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            tracing::debug!(%error, interface = interface.name, "a socket is not bound to its interface");
            Ok(setsockopt(socket, options::Ipv6UnicastIf, &index)?)
        }
        bound => bound,
    }
}

/// How a datagram of ours to `remote` would travel now.
pub(super) fn way(netlink: &mut Netlink, remote: SocketAddr) -> Result<Way, HostFault> {
    let action = || format!("find a way to {}", remote.ip());
    // Connecting sends nothing: it makes the kernel choose a route and, from it, our address and the path MTU.
    let probe = marked_udp(remote).map_err(|error| fault("open a UDP socket beside the tunnel", error))?;
    probe
        .connect(&remote.into())
        .map_err(|error| fault(action(), error))?;
    let local = probe.local_addr().map_err(|error| fault(action(), error))?;
    let local = local
        .as_socket()
        .ok_or_else(|| fault(action(), "no Internet address"))?;
    let mtu = match remote {
        SocketAddr::V4(_) => getsockopt(&probe, sockopt::IpMtu),
        SocketAddr::V6(_) => getsockopt(&probe, options::Ipv6Mtu),
    };
    let index = netlink.way_out(remote.ip(), MARK).ok().flatten();
    let interface = index.and_then(|index| {
        let name = nix::net::if_::if_indextoname(index).ok()?;
        Some(Interface {
            index,
            name: name.to_string_lossy().into_owned(),
        })
    });
    Ok(Way {
        source: local.ip(),
        interface,
        mtu: mtu
            .ok()
            .and_then(|mtu| u16::try_from(mtu.min(i32::from(u16::MAX))).ok())
            .filter(|mtu| *mtu > 0),
    })
}

/// A marked TCP socket of the address's family that is not connected yet.
pub(super) fn marked_tcp(address: SocketAddr) -> io::Result<socket2::Socket> {
    let socket = socket2::Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_mark(MARK)?;
    Ok(socket)
}

/// A marked UDP socket of the address's family that is not bound yet.
pub(super) fn marked_udp(address: SocketAddr) -> io::Result<socket2::Socket> {
    let socket = socket2::Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    socket.set_mark(MARK)?;
    // The path MTU discovery stays at the kernel's default, "want": DF is set, and the kernel fragments what is larger
    // than the path that it knows (probes apart, see `send_whole`). An IKE message for a gateway without fragmentation of its own (RFC 7383) still
    // gets through, and so does a full ESP packet after the path has become narrower.
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

impl host::Socket for Socket {
    fn local(&self) -> SocketAddr {
        self.local
    }

    fn poll_recv(&self, cx: &mut Context<'_>, batch: &mut Batch<Arrival>) -> Poll<io::Result<()>> {
        let most = if self.merges.get() { MERGED_SLOTS } else { SLOTS };
        let count = batch.free_slots().min(most);
        if count == 0 {
            return Poll::Pending;
        }
        let mut about = [RecvMeta::default(); SLOTS];
        loop {
            ready!(self.socket.poll_recv_ready(cx))?;
            let read = self.socket.try_io(Interest::READABLE, || {
                let mut free = batch.slots();
                let mut slots: [_; SLOTS] =
                    std::array::from_fn(|_| IoSliceMut::new(free.next().unwrap_or_default()));
                let slots = slots.get_mut(..count).unwrap_or_default();
                self.state.recv((&self.socket).into(), slots, &mut about)
            });
            match read {
                Ok(filled) => {
                    if filled == count {
                        batch.note_flood();
                    }
                    let filled = about.get(..filled).unwrap_or_default();
                    self.merges.set(filled.iter().any(|it| it.len > it.stride));
                    batch.push_slots(filled.iter().map(|it| {
                        let arrival = Arrival {
                            path: Path::udp(self.local, it.addr),
                            ecn: it.ecn.map_or(0, |ecn| ecn as u8),
                        };
                        (it.len, it.stride, arrival)
                    }));
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn send(&self, to: Addressee, datagram: &[u8]) -> io::Result<()> {
        self.send_now(to, datagram, None)
    }

    fn longest_train(&self) -> usize {
        self.segmentation.longest()
    }

    fn send_train(&self, to: Addressee, train: &[u8], stride: usize) -> io::Result<()> {
        let stride = u16::try_from(stride).map_err(io::Error::other)?;
        match self.send_now(to, train, Some(stride)) {
            Ok(()) => self.segmentation.succeeded(),
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EIO | libc::EINVAL | libc::EMSGSIZE)
                ) =>
            {
                self.segmentation.failed(&error);
                return Err(io::ErrorKind::Unsupported.into());
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn send_whole(&self, remote: SocketAddr, datagram: &[u8]) -> io::Result<()> {
        let set = |ipv4, ipv6| match remote {
            SocketAddr::V4(_) => setsockopt(&self.socket, options::MtuDiscover, &ipv4),
            SocketAddr::V6(_) => setsockopt(&self.socket, options::Ipv6MtuDiscover, &ipv6),
        };
        set(libc::IP_PMTUDISC_PROBE, libc::IPV6_PMTUDISC_PROBE)?;
        let sent = host::Socket::send(self, remote.into(), datagram);
        set(libc::IP_PMTUDISC_WANT, libc::IPV6_PMTUDISC_WANT)?;
        sent
    }

    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket.poll_send_ready(cx)
    }
}

/// Socket options that `nix` does not name.
mod options {
    use nix::{getsockopt_impl, setsockopt_impl, sockopt_impl};

    sockopt_impl!(
        /// The path MTU of a connected socket.
        Ipv6Mtu,
        GetOnly,
        libc::IPPROTO_IPV6,
        libc::IPV6_MTU,
        libc::c_int
    );
    sockopt_impl!(
        /// Whether datagrams may be fragmented, and which path MTU counts.
        MtuDiscover,
        SetOnly,
        libc::IPPROTO_IP,
        libc::IP_MTU_DISCOVER,
        libc::c_int
    );
    sockopt_impl!(
        /// The same for IPv6.
        Ipv6MtuDiscover,
        SetOnly,
        libc::IPPROTO_IPV6,
        libc::IPV6_MTU_DISCOVER,
        libc::c_int
    );
    sockopt_impl!(
        /// Whether each datagram's traffic class is told.
        Ipv6RecvTclass,
        SetOnly,
        libc::IPPROTO_IPV6,
        libc::IPV6_RECVTCLASS,
        bool
    );
    sockopt_impl!(
        /// The interface by which packets to one host leave, in network byte order.
        UnicastIf,
        SetOnly,
        libc::IPPROTO_IP,
        libc::IP_UNICAST_IF,
        libc::c_int
    );
    sockopt_impl!(
        /// The interface by which packets to one host had better leave, in network byte order.
        Ipv6UnicastIf,
        SetOnly,
        libc::IPPROTO_IPV6,
        libc::IPV6_UNICAST_IF,
        libc::c_int
    );
}
