//! The sockets in use: one for each way, and what waits to be sent on each.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::task::{Context, Poll};

use peregrine_core::command::{Path, Sink, Transmit};

use crate::batch::Batch;
use crate::host::{Socket, Way};

/// More sockets than these are not open at a time.
const MOST: usize = 8;

/// A few sockets, and datagrams that wait until theirs has room.
///
/// Each has a queue of its own: one that is stuck, as on a network that is being left, must not hold up the others.
pub(crate) struct Links<S> {
    list: Vec<Link<S>>,
    /// Where the last reserved room is, and whither.
    reserved: Option<(usize, SocketAddr)>,
    /// The link that a datagram was meant for last.
    latest: usize,
    /// Grows with each use of a link.
    uses: u64,
    /// Whose turn it is to be read first.
    turn: usize,
    /// An error said that a way may be gone.
    doubt: bool,
}

/// A socket and the way that it was opened for.
struct Link<S> {
    source: IpAddr,
    interface: Option<u32>,
    local: SocketAddr,
    socket: S,
    queue: Batch<SocketAddr>,
    /// How many of the queue are sent.
    sent: usize,
    /// The number of the last use.
    used: u64,
}

impl<S: Socket> Links<S> {
    pub(crate) const fn new() -> Self {
        Self {
            list: Vec::new(),
            reserved: None,
            latest: 0,
            uses: 0,
            turn: 0,
            doubt: false,
        }
    }

    /// The local address of the socket on `way`, if there is one.
    pub(crate) fn on(&mut self, way: &Way) -> Option<SocketAddr> {
        let index = self
            .list
            .iter()
            .position(|link| link.source == way.source && link.interface == way.index())?;
        self.touch(index);
        self.list.get(index).map(|link| link.local)
    }

    /// Keeps a new socket on `way`. Too many are a sign of ways that nobody has used for long: the first of these
    /// goes.
    pub(crate) fn add(&mut self, socket: S, way: &Way) -> SocketAddr {
        if self.list.len() >= MOST
            && let Some(oldest) = self.list.iter().min_by_key(|link| link.used)
        {
            let local = oldest.local;
            tracing::debug!(%local, "too many sockets; the one unused for longest is closed");
            self.release(local);
        }
        let local = socket.local();
        self.list.push(Link {
            source: way.source,
            interface: way.index(),
            local,
            socket,
            queue: Batch::for_sealed(),
            sent: 0,
            used: 0,
        });
        self.touch(self.list.len() - 1);
        local
    }

    /// Closes the socket with this address, when what it has room for is sent.
    pub(crate) fn release(&mut self, local: SocketAddr) {
        if let Some(index) = self.position(local) {
            if let Some(link) = self.list.get_mut(index) {
                link.flush(&mut self.doubt);
            }
            self.list.remove(index);
            self.reserved = None;
            if self.latest > index {
                self.latest -= 1;
            }
        }
    }

    /// Closes all.
    pub(crate) fn clear(&mut self) {
        *self = Self::new();
    }

    /// Queues a datagram on the socket that its path names; false when that has no room, or there is none.
    pub(crate) fn queue(&mut self, transmit: &Transmit) -> bool {
        if self.push(transmit) {
            return true;
        }
        self.flush();
        self.push(transmit)
    }

    fn push(&mut self, transmit: &Transmit) -> bool {
        let len = transmit.payload.len();
        let Some(room) = self.reserve(transmit.path, len) else {
            return false;
        };
        room.copy_from_slice(&transmit.payload);
        self.commit(len);
        true
    }

    /// Sends as much as there is room for.
    pub(crate) fn flush(&mut self) {
        for link in &mut self.list {
            link.flush(&mut self.doubt);
        }
    }

    /// Whether the socket that was used last has sent everything. While it has not, packets of the tunnel had better
    /// wait where they are.
    pub(crate) fn has_room(&self) -> bool {
        self.list
            .get(self.latest)
            .is_none_or(|link| link.queue.is_empty())
    }

    /// Whether an error said, since the last call, that a way may be gone.
    pub(crate) const fn take_doubt(&mut self) -> bool {
        std::mem::replace(&mut self.doubt, false)
    }

    /// Ready when datagrams were added to `batch`, or a full socket may have room again.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, batch: &mut Batch<Path>) -> Poll<()> {
        let mut ready = Poll::Pending;
        // Another one first each time, so that a flood on one of them leaves room for the others.
        let count = self.list.len();
        self.turn = (self.turn + 1) % count.max(1);
        let first = self.turn;
        for index in (first..count).chain(0..first) {
            let Some(link) = self.list.get_mut(index) else {
                continue;
            };
            if let Poll::Ready(received) = link.socket.poll_recv(cx, batch) {
                if let Err(error) = received {
                    tracing::debug!(local = %link.local, %error, "a socket reports");
                    self.doubt |= is_doubtful(&error);
                }
                self.touch(index);
                ready = Poll::Ready(());
            }
        }
        for link in self.list.iter().filter(|link| !link.queue.is_empty()) {
            // An error is as good as room: the next flush hears it too, and goes on.
            if link.socket.poll_writable(cx).is_ready() {
                ready = Poll::Ready(());
            }
        }
        ready
    }

    fn position(&self, local: SocketAddr) -> Option<usize> {
        self.list.iter().position(|link| link.local == local)
    }
}

impl<S> Links<S> {
    fn touch(&mut self, index: usize) {
        self.uses += 1;
        if let Some(link) = self.list.get_mut(index) {
            link.used = self.uses;
        }
    }
}

impl<S: Socket> Link<S> {
    fn flush(&mut self, doubt: &mut bool) {
        for (to, datagram) in self.queue.packets().skip(self.sent) {
            match self.socket.send(to, datagram) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    tracing::debug!(local = %self.local, %to, %error, "a datagram was not sent");
                    *doubt |= is_doubtful(&error);
                }
                Ok(()) => {}
            }
            self.sent += 1;
        }
        self.queue.clear();
        self.sent = 0;
    }
}

impl<S: Socket> Sink for Links<S> {
    fn reserve(&mut self, path: Path, len: usize) -> Option<&mut [u8]> {
        let index = self.position(path.local)?;
        self.reserved = Some((index, path.remote));
        self.latest = index;
        self.touch(index);
        self.list.get_mut(index)?.queue.room()?.get_mut(..len)
    }

    fn commit(&mut self, len: usize) {
        if let Some((index, remote)) = self.reserved.take()
            && let Some(link) = self.list.get_mut(index)
        {
            link.queue.push(len, remote);
        }
    }
}

/// Whether an error says that a way may be gone: the interface, its address, or the route.
fn is_doubtful(error: &io::Error) -> bool {
    use io::ErrorKind::{AddrNotAvailable, HostUnreachable, InvalidInput, NetworkDown, NetworkUnreachable};
    matches!(
        error.kind(),
        AddrNotAvailable | HostUnreachable | InvalidInput | NetworkDown | NetworkUnreachable
    )
}
