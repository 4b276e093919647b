//! What the driver asks of an operating system, without naming one.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};

use peregrine_core::command::{Bound, HostFault};
use peregrine_core::plan::Plan;

use crate::batch::Batch;
use crate::clock::Clock;

/// An operating system: it makes the machine equal to a plan, opens sockets, resolves names, and knows the time.
///
/// The futures borrow nothing and may be dropped. Work that was begun for a dropped future of [`Self::apply`] is
/// still brought to its end, before any later plan is looked at.
pub trait Host: Clock {
    /// The tunnel device.
    type Tun: Tun + 'static;
    /// A UDP socket.
    type Socket: Socket;

    /// Makes the machine equal to `plan`, whatever was there before. Idempotent. When it fails, everything of ours
    /// has been taken back as far as the machine allows, what an earlier plan had put there included.
    ///
    /// The first plan also puts back what a crashed run left behind.
    fn apply(&self, plan: Plan) -> impl Future<Output = Result<Applied<Self::Tun>, HostFault>> + 'static;

    /// An unconnected UDP socket of `remote`'s address family that is never routed into our own tunnel.
    ///
    /// # Errors
    /// The operating system refuses it; `permission` when for want of a privilege.
    fn open(&self, remote: SocketAddr) -> Result<Self::Socket, HostFault>;

    /// How a datagram from `socket` to `remote` would travel now.
    ///
    /// # Errors
    /// There is no route to `remote`.
    fn way(&self, socket: &Self::Socket, remote: SocketAddr) -> Result<Bound, HostFault>;

    /// The addresses of a host name, on the physical network; empty when it has none.
    fn resolve(&self, name: String) -> impl Future<Output = Result<Vec<IpAddr>, HostFault>> + 'static;
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

/// A tunnel device. Packets are whole IP packets, without any header before them.
pub trait Tun {
    /// Waits until packets are there, and adds to `batch` those that are there now and find room. Dropping the
    /// future loses no packet.
    ///
    /// # Errors
    /// The device is gone.
    fn recv(&self, batch: &mut Batch<()>) -> impl Future<Output = io::Result<()>>;

    /// Gives one packet to the machine, at once or not at all.
    ///
    /// # Errors
    /// The machine did not take it.
    fn send(&self, packet: &[u8]) -> io::Result<()>;
}

/// An unconnected UDP socket.
pub trait Socket {
    /// Waits until datagrams are there, and adds to `batch` those that are there now and find room, each with its
    /// source. Dropping the future loses no datagram.
    ///
    /// # Errors
    /// The operating system's own; they are reports about the network, and the socket stays usable.
    fn recv(&self, batch: &mut Batch<SocketAddr>) -> impl Future<Output = io::Result<()>>;

    /// Sends one datagram, at once or not at all.
    ///
    /// # Errors
    /// `WouldBlock` when there is no room now; anything else is a report about the network.
    fn send(&self, remote: SocketAddr, datagram: &[u8]) -> io::Result<()>;

    /// Waits until there may be room to send. Dropping the future loses nothing.
    ///
    /// # Errors
    /// The socket is gone.
    fn writable(&self) -> impl Future<Output = io::Result<()>>;
}
