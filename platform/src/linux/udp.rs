//! UDP sockets that are never routed into our own tunnel, each on one way.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd as _, RawFd};
use std::task::{Context, Poll, ready};

use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg, setsockopt, sockopt};
use peregrine_core::command::{HostFault, Path};
use quinn_udp::{RecvMeta, UdpSocketState};
use socket2::{Domain, Protocol, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::socket::{keep_to, marked_udp, options, source};
use super::{Offloads, READING, fault, watch};
use crate::batch::{Batch, LONGEST_TRAIN, SLOTS};
use crate::host::{self, Addressee, Arrival, Interface, Way};

/// 10 Gbit/s for 10 ms.
const RECEIVE_BUFFER: usize = 16 << 20;
const SEND_BUFFER: usize = 2 << 20;

/// How many slots are filled with one system call while the kernel merges datagrams, so that they stay in the
/// processor's cache.
const MERGED_SLOTS: usize = 8;

/// How often the pause doubles after which a train is tried again: up to 65,536 datagrams.
const MOST_DOUBLINGS: u32 = 10;

/// A marked UDP socket for every host.
#[derive(Debug)]
pub struct Socket {
    socket: AsyncFd<socket2::Socket>,
    local: SocketAddr,
    interface: Option<Interface>,
    offloads: Offloads,
    flow: RefCell<Option<Flow>>,
    was_flow_first: Cell<bool>,
    full: RefCell<Option<Full>>,
    state: UdpSocketState,
    segmentation: Segmentation,
    /// The kernel merged datagrams when they were last read.
    merges: Cell<bool>,
}

/// A second socket of the same address and port, connected to the host that nearly all datagrams come from and go to: the
/// kernel then looks up no route for each of them. Datagrams of other hosts come to the first one as before.
#[derive(Debug)]
struct Flow {
    socket: AsyncFd<socket2::Socket>,
    remote: SocketAddr,
}

/// What waits for a socket to have room again. It is there only while it waits, as the kernel otherwise wakes the runtime
/// for every datagram that has left.
#[derive(Debug)]
struct Full {
    of: RawFd,
    copy: AsyncFd<socket2::Socket>,
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
        let socket = prepare(address, interface, offloads, false)?;
        let watching = |error| fault("watch a UDP socket", error);
        let local = socket.local_addr().map_err(watching)?.as_socket();
        let local = local.ok_or_else(|| fault("watch a UDP socket", "no Internet address"))?;
        let state = reader(address).map_err(watching)?;
        Ok(Self {
            socket: watch(socket, READING).map_err(watching)?,
            local,
            interface: interface.cloned(),
            flow: RefCell::new(None),
            was_flow_first: Cell::new(false),
            full: RefCell::new(None),
            segmentation: Segmentation::new(offloads.udp_gso && state.max_gso_segments() > 1),
            offloads,
            state,
            merges: Cell::new(false),
        })
    }

    /// Another socket of the same address and port, connected to `remote`.
    fn connect(&self, remote: SocketAddr) -> Result<Flow, HostFault> {
        let failed = |error| fault(format!("open a UDP socket for {remote}"), error);
        // Only now, and not before it had its port: or the kernel may have chosen one that a socket of somebody else has.
        let first = self.socket.get_ref();
        first.set_reuse_port(true).map_err(failed)?;
        let second = prepare(self.local, self.interface.as_ref(), self.offloads, true);
        // And no longer than that: the port is nobody else's.
        first.set_reuse_port(false).map_err(failed)?;
        let socket = second?;
        socket.connect(&remote.into()).map_err(failed)?;
        socket.set_reuse_port(false).map_err(failed)?;
        let socket = watch(socket, READING).map_err(failed)?;
        Ok(Flow { socket, remote })
    }

    /// Sends a datagram, or a train of them of this stride, at once.
    fn send_now(&self, to: Addressee, octets: &[u8], stride: Option<u16>) -> io::Result<()> {
        if let Some(flow) = &*self.flow.borrow()
            && flow.remote == to.remote
        {
            match self.send_by(flow.socket.get_ref(), None, to, octets, stride) {
                // A connected socket tells what became of an earlier datagram, and does not send this one (udp(7)). Whoever
                // wants to can forge that. The other socket is told only what this machine knows.
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => {}
                sent => return sent,
            }
        }
        let remote = SockaddrStorage::from(to.remote);
        self.send_by(self.socket.get_ref(), Some(&remote), to, octets, stride)
    }

    fn send_by(
        &self,
        socket: &socket2::Socket,
        remote: Option<&SockaddrStorage>,
        to: Addressee,
        octets: &[u8],
        stride: Option<u16>,
    ) -> io::Result<()> {
        let tos = (to.ds != 0).then_some((to.ds, i32::from(to.ds)));
        let marked = tos.as_ref().map(|(tos, class)| match to.remote {
            SocketAddr::V4(_) => ControlMessage::Ipv4Tos(tos),
            SocketAddr::V6(_) => ControlMessage::Ipv6TClass(class),
        });
        let cut = stride.as_ref().map(ControlMessage::UdpGsoSegments);
        let octets = [IoSlice::new(octets)];
        let send = |control: &[ControlMessage<'_>]| {
            sendmsg(socket.as_raw_fd(), &octets, control, MsgFlags::empty(), remote)
        };
        let sent = match (marked, cut) {
            (None, None) => send(&[]),
            (Some(one), None) | (None, Some(one)) => send(&[one]),
            (Some(one), Some(other)) => send(&[one, other]),
        };
        match sent.map(drop).map_err(io::Error::from) {
            Ok(()) => {
                self.full.replace(None);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.wait_for_room(socket)?;
                Err(error)
            }
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENXIO)) => {
                Err(io::Error::new(io::ErrorKind::NetworkDown, error))
            }
            sent => sent,
        }
    }

    /// Lets [`host::Socket::poll_writable`] be ready when this socket has room.
    fn wait_for_room(&self, socket: &socket2::Socket) -> io::Result<()> {
        let mut full = self.full.borrow_mut();
        if full.as_ref().is_none_or(|full| full.of != socket.as_raw_fd()) {
            // Another descriptor of the same socket, since the runtime asks for one thing of each.
            let copy = watch(socket.try_clone()?, Interest::WRITABLE)?;
            let of = socket.as_raw_fd();
            *full = Some(Full { of, copy });
        }
        Ok(())
    }

    /// Reads what one of the two sockets has.
    fn poll_one(
        &self,
        socket: &AsyncFd<socket2::Socket>,
        cx: &mut Context<'_>,
        batch: &mut Batch<Arrival>,
    ) -> Poll<io::Result<()>> {
        let most = if self.merges.get() { MERGED_SLOTS } else { SLOTS };
        let count = batch.free_slots().min(most);
        if count == 0 {
            return Poll::Pending;
        }
        let mut about = [RecvMeta::default(); SLOTS];
        loop {
            let mut ready = ready!(socket.poll_read_ready(cx))?;
            let read = ready.try_io(|socket| {
                let mut free = batch.slots();
                let mut slots: [_; SLOTS] =
                    std::array::from_fn(|_| IoSliceMut::new(free.next().unwrap_or_default()));
                let slots = slots.get_mut(..count).unwrap_or_default();
                self.state.recv(socket.get_ref().into(), slots, &mut about)
            });
            match read {
                Ok(Ok(filled)) => {
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
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

/// A marked UDP socket at this address and port; `is_second` if another one of ours has both.
fn prepare(
    address: SocketAddr,
    interface: Option<&Interface>,
    offloads: Offloads,
    is_second: bool,
) -> Result<socket2::Socket, HostFault> {
    let socket = marked_udp(address).map_err(|error| fault("open a UDP socket beside the tunnel", error))?;
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
    if is_second {
        // For IPv4 too: a connected socket's route is looked up anew, when the network speaks of a path MTU, without what
        // `keep_to` asks for. What a neighbour sends by another interface is for the first socket.
        if let Some(interface) = interface {
            socket
                .bind_device(Some(interface.name.as_bytes()))
                .map_err(|error| fault(format!("bind a UDP socket to {}", interface.name), error))?;
        }
        socket
            .set_reuse_port(true)
            .map_err(|error| fault("share a UDP port", error))?;
    }
    socket
        .bind(&address.into())
        .map_err(|error| fault(format!("send from {}", address.ip()), error))?;
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
    Ok(socket)
}

/// What reads sockets of the address's family. It sets a socket up for QUIC, and some of that cannot be taken back (the
/// kernel then notes the time of every packet that the machine receives): so it is given one that is closed at once. It keeps
/// nothing of it but what the kernel is able to do.
fn reader(address: SocketAddr) -> io::Result<UdpSocketState> {
    let scratch = socket2::Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    UdpSocketState::new((&scratch).into())
}

impl host::Socket for Socket {
    fn local(&self) -> SocketAddr {
        self.local
    }

    fn poll_recv(&self, cx: &mut Context<'_>, batch: &mut Batch<Arrival>) -> Poll<io::Result<()>> {
        if batch.free_slots() == 0 {
            return Poll::Pending;
        }
        let flow = self.flow.borrow();
        // Another one first each time that there is room, so that a flood on one leaves room for the other.
        let is_flow_first = !self.was_flow_first.replace(!self.was_flow_first.get());
        let mut polled = Poll::Pending;
        let mut failed = None;
        for is_flow in [is_flow_first, !is_flow_first] {
            let socket = if is_flow {
                flow.as_ref().map(|flow| &flow.socket)
            } else {
                Some(&self.socket)
            };
            let Some(socket) = socket else { continue };
            match self.poll_one(socket, cx, batch) {
                // What the network says to a connected socket is no more than a rumour.
                Poll::Ready(Err(error)) if is_flow => {
                    tracing::debug!(local = %self.local, %error, "the network reports");
                    polled = Poll::Ready(Ok(()));
                }
                // The other one is read too, and may have something.
                Poll::Ready(Err(error)) => failed = Some(error),
                Poll::Ready(Ok(())) => polled = Poll::Ready(Ok(())),
                Poll::Pending => {}
            }
        }
        failed.map_or(polled, |error| Poll::Ready(Err(error)))
    }

    fn settle(&self, remote: SocketAddr) {
        let mut flow = self.flow.borrow_mut();
        let result = match &mut *flow {
            Some(flow) if flow.remote == remote => return,
            Some(flow) => {
                flow.remote = remote;
                let connected = flow.socket.get_ref().connect(&remote.into());
                connected.map_err(|error| fault(format!("send to {remote} only"), error))
            }
            none => self.connect(remote).map(|flow| *none = Some(flow)),
        };
        // Nothing may keep a socket alive that is given up.
        self.full.replace(None);
        if let Err(error) = result {
            tracing::debug!(%error, "datagrams go by the first socket");
            *flow = None;
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
            SocketAddr::V4(_) => setsockopt(self.socket.get_ref(), options::MtuDiscover, &ipv4),
            SocketAddr::V6(_) => setsockopt(self.socket.get_ref(), options::Ipv6MtuDiscover, &ipv6),
        };
        set(libc::IP_PMTUDISC_PROBE, libc::IPV6_PMTUDISC_PROBE)?;
        let whole = self.send_by(
            self.socket.get_ref(),
            Some(&remote.into()),
            remote.into(),
            datagram,
            None,
        );
        set(libc::IP_PMTUDISC_WANT, libc::IPV6_PMTUDISC_WANT)?;
        whole
    }

    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut full = self.full.borrow_mut();
        if let Some(Full { copy, .. }) = &*full {
            let ready = ready!(copy.poll_write_ready(cx)).map(drop);
            *full = None;
            return Poll::Ready(ready);
        }
        Poll::Ready(Ok(()))
    }
}
