//! UDP sockets that are never routed into our own tunnel.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use peregrine_core::command::{Bound, HostFault, Path};
use socket2::{Domain, Protocol, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use super::fault;
use super::netlink::Netlink;
use crate::batch::Batch;
use crate::host;

/// The mark of our own sockets (`pere`). Every rule of ours excepts it, so one instance's datagrams do not go into
/// another's tunnel either. Setting a mark takes `CAP_NET_ADMIN`; a program without it cannot leave beside the tunnel.
pub(super) const MARK: u32 = 0x7065_7265;

/// 10 Gbit/s for 10 ms.
const RECEIVE_BUFFER: usize = 16 << 20;
const SEND_BUFFER: usize = 2 << 20;

/// An unconnected, marked UDP socket.
#[derive(Debug)]
pub struct Socket(UdpSocket);

impl Socket {
    /// A socket of `remote`'s family on a port of the kernel's choosing.
    pub(super) fn open(remote: SocketAddr) -> Result<Self, HostFault> {
        let socket = marked(remote).map_err(|error| fault("open a UDP socket beside the tunnel", error))?;
        // The kernel counts its own overhead too and doubles what is asked for. The forced size goes beyond
        // net.core.rmem_max; without the privilege the plain one has to do.
        if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
            let _smaller = socket.set_recv_buffer_size(RECEIVE_BUFFER);
        }
        if setsockopt(&socket, sockopt::SndBufForce, &SEND_BUFFER).is_err() {
            let _smaller = socket.set_send_buffer_size(SEND_BUFFER);
        }
        let any: IpAddr = match remote {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        socket
            .bind(&SocketAddr::new(any, 0).into())
            .map_err(|error| fault("bind a UDP socket", error))?;
        UdpSocket::from_std(socket.into())
            .map(Self)
            .map_err(|error| fault("watch a UDP socket", error))
    }

    /// How a datagram from this socket to `remote` would travel now.
    pub(super) fn way(&self, remote: SocketAddr) -> Result<Bound, HostFault> {
        let action = || format!("find a way to {}", remote.ip());
        let port = self
            .0
            .local_addr()
            .map_err(|error| fault("ask for a socket's address", error))?
            .port();
        // Connecting sends nothing: it makes the kernel choose a route and, from it, our address and the path MTU.
        let probe = marked(remote).map_err(|error| fault("open a UDP socket beside the tunnel", error))?;
        probe
            .connect(&remote.into())
            .map_err(|error| fault(action(), error))?;
        let local = probe.local_addr().map_err(|error| fault(action(), error))?;
        let mut local = local
            .as_socket()
            .ok_or_else(|| fault(action(), "no Internet address"))?;
        local.set_port(port);
        let mtu = match remote {
            SocketAddr::V4(_) => getsockopt(&probe, sockopt::IpMtu),
            SocketAddr::V6(_) => getsockopt(&probe, options::Ipv6Mtu),
        };
        let index = Netlink::open()
            .and_then(|mut netlink| netlink.way_out(remote.ip(), MARK))
            .ok()
            .flatten();
        let interface = index.and_then(|index| nix::net::if_::if_indextoname(index).ok());
        Ok(Bound {
            path: Path { local, remote },
            mtu: mtu
                .ok()
                .and_then(|mtu| u16::try_from(mtu.min(i32::from(u16::MAX))).ok())
                .filter(|mtu| *mtu > 0),
            interface: interface.map(|name| name.to_string_lossy().into_owned()),
        })
    }
}

/// A marked socket that is not bound yet.
fn marked(remote: SocketAddr) -> io::Result<socket2::Socket> {
    let socket = socket2::Socket::new(Domain::for_address(remote), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    socket.set_mark(MARK)?;
    // The path MTU discovery stays at the kernel's default, "want": DF is set, and the kernel fragments what is larger
    // than the path that it knows. An IKE message for a gateway without fragmentation of its own (RFC 7383) still
    // gets through, and so does a full ESP packet after the path has become narrower.
    if remote.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

impl host::Socket for Socket {
    async fn recv(&self, batch: &mut Batch<SocketAddr>) -> io::Result<()> {
        while batch.is_empty() {
            self.0.readable().await?;
            while let Some(room) = batch.room() {
                match self.0.try_recv_from(room) {
                    Ok((len, source)) => batch.push(len, source),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) if batch.is_empty() => return Err(error),
                    Err(_) => break,
                }
            }
        }
        Ok(())
    }

    fn send(&self, remote: SocketAddr, datagram: &[u8]) -> io::Result<()> {
        // Not through the runtime, which believes a new socket to be full until its first poll.
        let sent = socket2::SockRef::from(&self.0)
            .send_to(datagram, &remote.into())
            .map(drop);
        match sent {
            // Full indeed: let `writable` know.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.0.try_io(Interest::WRITABLE, || Err(error))
            }
            sent => sent,
        }
    }

    async fn writable(&self) -> io::Result<()> {
        self.0.writable().await
    }
}

/// Socket options that `nix` does not name.
mod options {
    use nix::{getsockopt_impl, sockopt_impl};

    sockopt_impl!(
        /// The path MTU of a connected socket.
        Ipv6Mtu,
        GetOnly,
        libc::IPPROTO_IPV6,
        libc::IPV6_MTU,
        libc::c_int
    );
}
