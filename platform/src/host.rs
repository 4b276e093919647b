//! What the driver asks of an operating system, without naming one.

use std::future::Future;
use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::task::{Context, Poll};

use peregrine_core::command::{Fetch, HostFault, Path};
use peregrine_core::plan::Plan;

use crate::batch::Batch;
use crate::clock::Clock;
use crate::dataplane::coalesce::Offers;
use crate::dataplane::virtio;

/// An operating system: it makes the machine equal to a plan, opens sockets, resolves names, tells of changes, and
/// knows the time.
///
/// The futures borrow nothing and may be dropped. Work that was begun for a dropped future of [`Self::apply`] is
/// still brought to its end, before any later plan is looked at.
pub trait Host: Clock {
    /// The tunnel device.
    type Tun: Tun + 'static;
    /// A UDP socket.
    type Socket: Socket;
    /// A TCP connection.
    type Stream: Stream + 'static;
    /// What tells of changes.
    type Changes: Changes;

    /// Makes the machine equal to `plan`, whatever was there before. Idempotent; from one plan with a tunnel to the
    /// next the device stays, and there is no moment in which what both lead into the tunnel has no route. When it
    /// fails, everything of ours has been taken back as far as the machine allows, what an earlier plan had put there
    /// included.
    ///
    /// The first plan also puts back what a crashed run left behind.
    fn apply(&self, plan: Plan) -> impl Future<Output = Result<Applied<Self::Tun>, HostFault>> + 'static;

    /// How a datagram of ours to `remote` would travel now, were the tunnel not there.
    ///
    /// # Errors
    /// There is no route to `remote`; `permission` when a privilege for asking is missing.
    fn way(&self, remote: SocketAddr) -> Result<Way, HostFault>;

    /// An unconnected UDP socket that sends from `way`'s address by `way`'s interface, whatever is routed elsewhere
    /// later, and never into our own tunnel.
    ///
    /// # Errors
    /// The way is gone already, or the operating system refuses it; `permission` when for want of a privilege.
    fn open(&self, way: &Way) -> Result<Self::Socket, HostFault>;

    /// A TCP connection to `remote` that is opened on `way`, stays there, and never goes into our own tunnel. Comes, or
    /// fails, within ten seconds.
    fn connect(
        &self,
        way: &Way,
        remote: SocketAddr,
    ) -> impl Future<Output = Result<Self::Stream, HostFault>> + 'static;

    /// The addresses of a host name, on the physical network and never through the tunnel; empty when it has none.
    /// Ends within seconds.
    fn resolve(&self, name: String) -> impl Future<Output = Result<Vec<IpAddr>, HostFault>> + 'static;

    /// The body of what is at a URL, fetched on the physical network and never through the tunnel, from addresses that
    /// the fetch permits. Ends within [`Fetch::PATIENCE`].
    fn fetch(&self, fetch: Fetch) -> impl Future<Output = Result<Vec<u8>, HostFault>> + 'static;

    /// What tells of changes from now on.
    ///
    /// # Errors
    /// The operating system tells of none.
    fn changes(&self) -> Result<Self::Changes, HostFault>;
}

/// How datagrams to one address travel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    /// Our own address.
    pub source: IpAddr,
    /// The physical interface that the way begins with, where the operating system tells.
    pub interface: Option<Interface>,
    /// The largest IP datagram that the way is known to carry, in octets.
    pub mtu: Option<u16>,
}

impl Way {
    /// The physical interface's index.
    #[must_use]
    pub fn index(&self) -> Option<u32> {
        self.interface.as_ref().map(|interface| interface.index)
    }
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// The operating system's number for it; one that is made anew gets another.
    pub index: u32,
    /// Its name.
    pub name: String,
}

/// What is not as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The way to a gateway may be another, or lead into another network.
    Networks,
    /// The machine slept, and woke.
    Woke,
    /// Somebody else changed what the last plan put on the machine.
    Plan,
}

/// Tells of changes, those that come together as one.
pub trait Changes {
    /// Waits for the next change. Dropping the future loses none.
    fn next(&mut self) -> impl Future<Output = Change>;
}

/// What the machine is after a plan was applied.
#[derive(Debug)]
pub struct Applied<T> {
    /// The tunnel device, when the plan made a new one. None when the plan has no tunnel (an earlier device is then
    /// gone), and when it kept the device that there was.
    pub tun: Option<T>,
    /// The tunnel device's name, while there is one.
    pub interface: Option<String>,
}

/// A tunnel device. Packets are whole IP packets, without any header before them; what is left to do with one is told
/// beside it.
pub trait Tun {
    /// Waits until packets are there, and adds to `batch` those that are there now and find room. Dropping the
    /// future loses no packet.
    ///
    /// # Errors
    /// The device is gone.
    fn recv(&self, batch: &mut Batch<virtio::Header>) -> impl Future<Output = io::Result<()>>;

    /// Gives one packet to the machine, at once or not at all: first the octets of a [`virtio::Header`], then the parts
    /// of the packet. What the header leaves to do must be among [`Self::offers`].
    ///
    /// # Errors
    /// The machine did not take it; `InvalidInput` when it does not take anything of that kind.
    fn send(&self, parts: &[IoSlice<'_>]) -> io::Result<()>;

    /// What the machine takes in one piece.
    fn offers(&self) -> Offers {
        Offers::default()
    }
}

/// A TCP connection. It is polled and not awaited, as sockets are.
pub trait Stream {
    /// The connection's own address and port, which no other one of this process has.
    fn local(&self) -> SocketAddr;

    /// Reads what is there into `room`, which is not empty; 0 octets are the end.
    ///
    /// # Errors
    /// The connection is gone.
    fn poll_read(&self, cx: &mut Context<'_>, room: &mut [u8]) -> Poll<io::Result<usize>>;

    /// Sends the first octets of `octets`, as many as there is room for now.
    ///
    /// # Errors
    /// `WouldBlock` when there is no room now; anything else says that the connection is gone.
    fn write(&self, octets: &[u8]) -> io::Result<usize>;

    /// Ready when there may be room to send.
    ///
    /// # Errors
    /// The connection is gone.
    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
}

/// How a datagram came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// By which way.
    pub path: Path,
    /// With which ECN field (RFC 3168), in the two lowest bits; 0 where that is not told.
    pub ecn: u8,
}

impl From<Path> for Arrival {
    /// Of which no ECN field is known.
    fn from(path: Path) -> Self {
        Self { path, ecn: 0 }
    }
}

/// Where a datagram is to go, and as what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addressee {
    /// The other end.
    pub remote: SocketAddr,
    /// DSCP and ECN field of the IP header (RFC 2474, RFC 3168).
    pub ds: u8,
}

impl From<SocketAddr> for Addressee {
    /// As ordinary traffic.
    fn from(remote: SocketAddr) -> Self {
        Self { remote, ds: 0 }
    }
}

/// A UDP socket for every host. It is polled and not awaited because there are several, and one task waits for all.
pub trait Socket {
    /// The socket's own address and port.
    fn local(&self) -> SocketAddr;

    /// Adds to `batch` the datagrams that are there now and find room; pending when there are none, or no room.
    ///
    /// # Errors
    /// The operating system's own; they are reports about the network, and the socket stays usable. What was read
    /// before the error is in `batch`.
    fn poll_recv(&self, cx: &mut Context<'_>, batch: &mut Batch<Arrival>) -> Poll<io::Result<()>>;

    /// Sends one datagram, at once or not at all.
    ///
    /// # Errors
    /// `WouldBlock` when there is no room now; anything else is a report about the network. An interface that is gone
    /// is `NetworkDown`.
    fn send(&self, to: Addressee, datagram: &[u8]) -> io::Result<()>;

    /// How many datagrams [`Self::send_train`] takes now.
    fn longest_train(&self) -> usize {
        1
    }

    /// Sends datagrams that lie back to back in `train`, each of `stride` octets and the last perhaps shorter, no more
    /// than [`Self::longest_train`], at once: all or none.
    ///
    /// # Errors
    /// Those of [`Self::send`], and `Unsupported` where they could not be sent together but may be one by one; a train
    /// is then shorter than before.
    fn send_train(&self, to: Addressee, train: &[u8], stride: usize) -> io::Result<()> {
        let _alone = stride;
        self.send(to, train)
    }

    /// From now on nearly all datagrams come from and go to this host, until another one is named. Nothing changes but what
    /// they cost.
    fn settle(&self, remote: SocketAddr) {
        let _any = remote;
    }

    /// Sends one datagram that neither this machine nor a router may fragment, whatever path MTU this machine
    /// believes in. The same as [`Self::send`] where that is so with every datagram.
    ///
    /// # Errors
    /// Those of [`Self::send`], and one for a datagram that is larger than the interface allows.
    fn send_whole(&self, remote: SocketAddr, datagram: &[u8]) -> io::Result<()> {
        self.send(remote.into(), datagram)
    }

    /// Ready when there may be room to send.
    ///
    /// # Errors
    /// The socket is gone.
    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
}
