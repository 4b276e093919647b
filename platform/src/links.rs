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

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::VecDeque;
    use std::rc::Rc;
    use std::task::Waker;

    use super::*;
    use crate::host::Interface;

    const GATEWAY: &str = "192.0.2.1:4500";

    /// What a socket has sent, how much more it takes, and what it fails with.
    #[derive(Default)]
    struct Wire {
        sent: Vec<Vec<u8>>,
        room: usize,
        error: Option<io::ErrorKind>,
        inbox: VecDeque<&'static [u8]>,
    }

    #[derive(Clone)]
    struct Fake {
        local: SocketAddr,
        wire: Rc<RefCell<Wire>>,
    }

    impl Fake {
        fn new(number: u16) -> (Self, Way) {
            let way = Way {
                source: IpAddr::from([10, 0, 0, 2]),
                interface: Some(Interface {
                    index: number.into(),
                    name: format!("eth{number}"),
                }),
                mtu: None,
            };
            let fake = Self {
                local: SocketAddr::new(way.source, number),
                wire: Rc::default(),
            };
            fake.wire.borrow_mut().room = usize::MAX;
            (fake, way)
        }

        fn sent(&self) -> Vec<Vec<u8>> {
            self.wire.borrow().sent.clone()
        }
    }

    impl Socket for Fake {
        fn local(&self) -> SocketAddr {
            self.local
        }

        fn poll_recv(&self, _: &mut Context<'_>, batch: &mut Batch<Path>) -> Poll<io::Result<()>> {
            let mut ready = Poll::Pending;
            while let Some(room) = batch.room() {
                let Some(datagram) = self.wire.borrow_mut().inbox.pop_front() else {
                    break;
                };
                room[..datagram.len()].copy_from_slice(datagram);
                let path = Path {
                    local: self.local,
                    remote: GATEWAY.parse().unwrap(),
                };
                batch.push(datagram.len(), path);
                ready = Poll::Ready(Ok(()));
            }
            ready
        }

        fn send(&self, _: SocketAddr, datagram: &[u8]) -> io::Result<()> {
            let mut wire = self.wire.borrow_mut();
            if let Some(error) = wire.error {
                return Err(error.into());
            }
            if wire.room == 0 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            wire.room -= 1;
            wire.sent.push(datagram.to_vec());
            Ok(())
        }

        fn poll_writable(&self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            if self.wire.borrow().room > 0 {
                Poll::Ready(Ok(()))
            } else {
                Poll::Pending
            }
        }
    }

    fn links(count: u16) -> (Links<Fake>, Vec<Fake>) {
        let mut links = Links::new();
        let mut fakes = Vec::new();
        for number in 0..count {
            let (fake, way) = Fake::new(number);
            assert_eq!(links.add(fake.clone(), &way), fake.local);
            fakes.push(fake);
        }
        (links, fakes)
    }

    fn transmit(fake: &Fake, payload: &[u8]) -> Transmit {
        Transmit {
            path: Path {
                local: fake.local,
                remote: GATEWAY.parse().unwrap(),
            },
            payload: payload.into(),
        }
    }

    fn poll(links: &mut Links<Fake>, batch: &mut Batch<Path>) -> bool {
        links
            .poll(&mut Context::from_waker(Waker::noop()), batch)
            .is_ready()
    }

    #[test]
    fn a_datagram_leaves_by_the_socket_that_its_path_names() {
        let (mut links, fakes) = links(3);
        for fake in [&fakes[2], &fakes[0], &fakes[2]] {
            assert!(links.queue(&transmit(fake, b"hello")));
        }
        links.flush();
        let counts: Vec<_> = fakes.iter().map(|fake| fake.sent().len()).collect();
        assert_eq!(counts, [1, 0, 2]);
        let (unknown, _) = Fake::new(9);
        assert!(!links.queue(&transmit(&unknown, b"hello")));
    }

    #[test]
    fn the_same_source_and_interface_are_the_same_way() {
        let (mut links, fakes) = links(2);
        let (_, mut way) = Fake::new(1);
        way.mtu = Some(1280);
        assert_eq!(links.on(&way), Some(fakes[1].local));
        let (_, other) = Fake::new(2);
        assert_eq!(links.on(&other), None, "another interface");
        way.source = IpAddr::from([10, 0, 0, 3]);
        assert_eq!(links.on(&way), None, "another address");
    }

    #[test]
    fn a_stuck_socket_keeps_its_own_datagrams_and_holds_up_no_other() {
        let (mut links, fakes) = links(2);
        fakes[0].wire.borrow_mut().room = 1;
        for word in [b"one", b"two", b"tri"] {
            assert!(links.queue(&transmit(&fakes[0], word)));
        }
        links.flush();
        assert_eq!(fakes[0].sent(), [b"one"]);
        assert!(!links.has_room(), "what comes next had better wait");
        let mut batch = Batch::new();
        assert!(!poll(&mut links, &mut batch));

        assert!(links.queue(&transmit(&fakes[1], b"new")));
        links.flush();
        assert_eq!(fakes[1].sent(), [b"new"]);
        assert!(links.has_room(), "the new way is free");

        fakes[0].wire.borrow_mut().room = usize::MAX;
        assert!(poll(&mut links, &mut batch));
        links.flush();
        assert_eq!(fakes[0].sent(), [b"one", b"two", b"tri"]);
    }

    #[test]
    fn a_queue_that_is_full_says_so() {
        let (mut links, fakes) = links(1);
        fakes[0].wire.borrow_mut().room = 0;
        let queued = (0..1000).take_while(|_| links.queue(&transmit(&fakes[0], b"hello")));
        assert!((10..1000).contains(&queued.count()));
        let path = transmit(&fakes[0], b"").path;
        assert!(links.reserve(path, 100).is_none());
    }

    #[test]
    fn what_is_queued_leaves_before_its_socket_is_closed() {
        let (mut links, fakes) = links(3);
        assert!(links.queue(&transmit(&fakes[1], b"bye")));
        links.release(fakes[1].local);
        assert_eq!(fakes[1].sent(), [b"bye"]);
        assert!(!links.queue(&transmit(&fakes[1], b"late")));
        assert!(links.queue(&transmit(&fakes[2], b"hello")));
        links.flush();
        assert_eq!(fakes[2].sent(), [b"hello"]);
        links.release(fakes[1].local); // again: nothing
    }

    #[test]
    fn of_too_many_the_one_unused_for_longest_goes() {
        let (mut links, fakes) = links(u16::try_from(MOST).unwrap());
        let (_, first) = Fake::new(0);
        assert!(links.on(&first).is_some()); // used again
        let (ninth, way) = Fake::new(90);
        links.add(ninth.clone(), &way);
        assert!(!links.queue(&transmit(&fakes[1], b"hello")), "closed");
        for fake in fakes.iter().filter(|fake| fake.local != fakes[1].local) {
            assert!(links.queue(&transmit(fake, b"hello")));
        }
        assert!(links.queue(&transmit(&ninth, b"hello")));
    }

    #[test]
    fn errors_of_a_lost_way_raise_doubt_once_and_end_nothing() {
        let (mut links, fakes) = links(1);
        for (error, is_doubtful) in [
            (io::ErrorKind::NetworkUnreachable, true),
            (io::ErrorKind::HostUnreachable, true),
            (io::ErrorKind::NetworkDown, true),
            (io::ErrorKind::AddrNotAvailable, true),
            (io::ErrorKind::InvalidInput, true),
            (io::ErrorKind::PermissionDenied, false),
            (io::ErrorKind::ConnectionRefused, false),
        ] {
            fakes[0].wire.borrow_mut().error = Some(error);
            assert!(links.queue(&transmit(&fakes[0], b"hello")));
            links.flush();
            assert_eq!(links.take_doubt(), is_doubtful, "{error}");
            assert!(!links.take_doubt());
        }
        fakes[0].wire.borrow_mut().error = None;
        assert!(links.queue(&transmit(&fakes[0], b"hello")));
        links.flush();
        assert_eq!(fakes[0].sent(), [b"hello"], "what could not be sent is not kept");
    }

    #[test]
    fn a_flood_on_one_socket_leaves_room_for_the_others() {
        let (mut links, fakes) = links(3);
        fakes[0].wire.borrow_mut().inbox = vec![&b"flood"[..]; 1000].into();
        fakes[2].wire.borrow_mut().inbox = vec![&b"word"[..]].into();
        let mut batch = Batch::new();
        let mut turns = 0;
        while !fakes[2].wire.borrow().inbox.is_empty() {
            assert!(poll(&mut links, &mut batch));
            batch.clear();
            turns += 1;
        }
        assert!(turns <= 3, "heard in turn {turns}");
    }
}
