//! Sockets and connections that are never routed into our own tunnel, each on one way.

use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::task::{Context, Poll};
use std::time::Duration;

use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use peregrine_core::command::HostFault;
use socket2::{Domain, Protocol, Type};
use tokio::net::{TcpSocket, TcpStream};

use super::fault;
use super::netlink::Netlink;
use crate::host::{self, Interface, Way};

/// The mark of our own sockets (`pere`). Every rule of ours excepts it, so one instance's datagrams do not go into
/// another's tunnel either. Setting a mark takes `CAP_NET_ADMIN`; a program without it cannot leave beside the tunnel.
pub(super) const MARK: u32 = 0x7065_7265;

/// A host that does not take a TCP connection within this time does not want to, or is not there.
const CONNECT: Duration = Duration::from_secs(8);
/// A connection on which nothing is acknowledged for so long is given up: another one costs a round trip.
const UNACKNOWLEDGED: Duration = Duration::from_secs(10);
/// No more octets than these wait in the kernel before they are on their way, so that what comes after them is soon
/// there too.
const NOT_SENT: u32 = 128 << 10;

/// The address of a socket on `way`, on a port of the kernel's choosing.
pub(super) fn source(way: &Way) -> SocketAddr {
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
pub(super) fn keep_to(
    socket: &socket2::Socket,
    interface: &Interface,
    address: SocketAddr,
) -> io::Result<()> {
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

/// Socket options that `nix` does not name.
pub(super) mod options {
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
