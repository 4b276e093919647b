//! The sockets and TCP connections in use, and what waits to be sent on each.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::task::{Context, Poll};

use peregrine_core::command::{Endpoint, Path, Sink, Transmit, Transport};

use crate::batch::{Batch, LONGEST_TRAIN};
use crate::connection::Connection;
use crate::host::{Addressee, Arrival, Socket, Stream, Way};

/// More sockets than these are not open at a time.
const MOST: usize = 8;

/// A few sockets and connections, and datagrams that wait until theirs has room.
///
/// Each has a queue of its own: one that is stuck, as on a network that is being left, must not hold up the others.
pub struct Links<S, C> {
    list: Vec<Link<S>>,
    connections: Vec<Connection<C>>,
    /// Connections that have ended since [`Self::take_closed`].
    closed: Vec<Endpoint>,
    /// Where the last reserved room is, and whither.
    reserved: Option<Reserved>,
    /// What a packet of the tunnel was meant for last.
    latest: Option<Path>,
    /// Grows with each use of a link.
    uses: u64,
    /// Whose turn it is to be read first.
    turn: usize,
    /// An error said that a way may be gone.
    doubt: bool,
}

#[derive(Clone, Copy)]
enum Reserved {
    Datagram(usize, SocketAddr),
    Frame(usize),
}

/// A socket and the way that it was opened for.
struct Link<S> {
    source: IpAddr,
    interface: Option<u32>,
    local: SocketAddr,
    socket: S,
    queue: Batch<Addressee>,
    /// How many trains of the queue are sent, and how many octets of the next.
    sent: usize,
    sent_octets: usize,
    /// The number of the last use.
    used: u64,
}

impl<S: Socket, C: Stream> Links<S, C> {
    /// None yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            list: Vec::new(),
            connections: Vec::new(),
            closed: Vec::new(),
            reserved: None,
            latest: None,
            uses: 0,
            turn: 0,
            doubt: false,
        }
    }

    /// The local address of the socket on `way`, if there is one.
    pub fn on(&mut self, way: &Way) -> Option<SocketAddr> {
        let index = self
            .list
            .iter()
            .position(|link| link.source == way.source && link.interface == way.index())?;
        self.touch(index);
        self.list.get(index).map(|link| link.local)
    }

    /// Keeps a new socket on `way`. Too many are a sign of ways that nobody has used for long: the first of these
    /// goes.
    pub fn add(&mut self, socket: S, way: &Way) -> SocketAddr {
        if self.list.len() >= MOST
            && let Some(oldest) = self.list.iter().min_by_key(|link| link.used)
        {
            let local = oldest.local;
            tracing::debug!(%local, "too many sockets; the one unused for longest is closed");
            self.release_socket(local);
        }
        let local = socket.local();
        self.list.push(Link {
            source: way.source,
            interface: way.index(),
            local,
            socket,
            queue: Batch::for_sealed(),
            sent: 0,
            sent_octets: 0,
            used: 0,
        });
        self.touch(self.list.len() - 1);
        local
    }

    /// Keeps a new connection to `remote`.
    pub fn connect(&mut self, stream: C, remote: SocketAddr) -> Path {
        let path = Path::tcp(stream.local(), remote);
        if self.connections.len() >= MOST {
            // The client releases what it does not need; this is for the day on which it forgets to.
            self.end(0, &io::Error::other("too many connections"));
        }
        self.connections.push(Connection::new(stream, path));
        path
    }

    /// Connections that have ended of themselves since the last call.
    pub fn take_closed(&mut self) -> Vec<Endpoint> {
        std::mem::take(&mut self.closed)
    }

    /// The connection at `index` is gone.
    fn end(&mut self, index: usize, error: &io::Error) {
        let connection = self.connections.remove(index);
        let Path { local, remote, .. } = connection.path;
        tracing::debug!(%local, %remote, %error, "a TCP connection has ended");
        self.reserved = None;
        self.closed.push(connection.path.socket());
    }

    /// Does something on every connection, and ends those where it fails.
    fn each_connection(&mut self, mut act: impl FnMut(&mut Connection<C>) -> io::Result<()>) {
        let mut index = 0;
        while let Some(connection) = self.connections.get_mut(index) {
            match act(connection) {
                Ok(()) => index += 1,
                Err(error) => self.end(index, &error),
            }
        }
    }

    /// Closes the socket or connection with this end, when what it has room for is sent.
    pub fn release(&mut self, socket: Endpoint) {
        match socket.transport {
            Transport::Udp => self.release_socket(socket.address),
            Transport::Tcp => {
                self.reserved = None;
                let ours = |it: &Connection<C>| it.path.socket() == socket;
                if let Some(index) = self.connections.iter().position(ours) {
                    let mut connection = self.connections.remove(index);
                    if let Err(error) = connection.flush() {
                        tracing::debug!(%error, "a TCP connection has ended while it was closed");
                    }
                }
            }
        }
    }

    fn release_socket(&mut self, local: SocketAddr) {
        if let Some(index) = self.position(local) {
            if let Some(link) = self.list.get_mut(index) {
                link.flush(&mut self.doubt);
            }
            self.list.remove(index);
            self.reserved = None;
        }
    }

    /// Closes all.
    pub fn clear(&mut self) {
        *self = Self::new();
    }

    /// Queues a datagram on the socket that its path names; false when that has no room, or there is none.
    pub fn queue(&mut self, transmit: &Transmit) -> bool {
        if transmit.is_probe {
            return self.probe(transmit);
        }
        if self.push(transmit) {
            return true;
        }
        self.flush();
        self.push(transmit)
    }

    /// Sends a probe past the queue, in which every datagram is sent in the same way.
    fn probe(&mut self, transmit: &Transmit) -> bool {
        let Some(index) = self.position(transmit.path.local) else {
            return false;
        };
        self.touch(index);
        let sent = self
            .list
            .get(index)
            .map(|link| link.socket.send_whole(transmit.path.remote, &transmit.payload));
        if let Some(Err(error)) = &sent {
            tracing::debug!(%error, octets = transmit.payload.len(), "a probe was not sent");
        }
        matches!(sent, Some(Ok(())))
    }

    fn push(&mut self, transmit: &Transmit) -> bool {
        if transmit.path.is_tcp() {
            return self.push_message(transmit);
        }
        let len = transmit.payload.len();
        let Some(room) = self.room(transmit.path, len) else {
            return false;
        };
        room.copy_from_slice(&transmit.payload);
        // Alone, and not in a train: what refuses those must not hold up IKE.
        if let Some(Reserved::Datagram(index, remote)) = self.reserved.take()
            && let Some(link) = self.list.get_mut(index)
        {
            link.queue.push(len, remote.into());
        }
        true
    }

    /// What the client itself sends on a connection must not be lost, for it will not be sent again.
    fn push_message(&mut self, transmit: &Transmit) -> bool {
        let Some(index) = self.connection(transmit.path) else {
            return false;
        };
        self.reserved = None;
        let pushed = self
            .connections
            .get_mut(index)
            .map(|it| it.push(&transmit.payload));
        if let Some(Err(error)) = pushed {
            self.end(index, &error);
            return false;
        }
        true
    }

    /// Sends as much as there is room for.
    pub fn flush(&mut self) {
        for link in &mut self.list {
            link.flush(&mut self.doubt);
        }
        self.each_connection(Connection::flush);
    }

    /// Whether the socket that the tunnel's packets used last has sent everything. While it has not, they had better wait
    /// where they are.
    pub fn has_room(&self) -> bool {
        let Some(latest) = self.latest else { return true };
        match latest.transport {
            Transport::Udp => {
                let mut list = self.list.iter();
                list.find(|link| link.local == latest.local)
                    .is_none_or(|link| link.queue.is_empty())
            }
            Transport::Tcp => {
                let mut connections = self.connections.iter();
                connections
                    .find(|it| it.path.socket() == latest.socket())
                    .is_none_or(Connection::is_idle)
            }
        }
    }

    /// Whether an error said, since the last call, that a way may be gone.
    pub const fn take_doubt(&mut self) -> bool {
        std::mem::replace(&mut self.doubt, false)
    }

    /// Ready when datagrams were added to `batch`, or a full socket may have room again.
    pub fn poll(&mut self, cx: &mut Context<'_>, batch: &mut Batch<Arrival>) -> Poll<()> {
        let mut ready = self.poll_connections(cx, batch);
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

    fn poll_connections(&mut self, cx: &mut Context<'_>, batch: &mut Batch<Arrival>) -> Poll<()> {
        let mut ready = Poll::Pending;
        self.each_connection(|connection| {
            if let Poll::Ready(received) = connection.poll_recv(cx, batch) {
                ready = Poll::Ready(());
                received?;
            }
            if !connection.is_idle()
                && let Poll::Ready(writable) = connection.poll_writable(cx)
            {
                ready = Poll::Ready(());
                writable?;
            }
            Ok(())
        });
        ready
    }

    fn position(&self, local: SocketAddr) -> Option<usize> {
        self.list.iter().position(|link| link.local == local)
    }

    fn connection(&self, path: Path) -> Option<usize> {
        self.connections.iter().position(|it| it.path == path)
    }
}

impl<S: Socket, C: Stream> Default for Links<S, C> {
    fn default() -> Self {
        Self::new()
    }
}

impl<S, C> Links<S, C> {
    fn touch(&mut self, index: usize) {
        self.uses += 1;
        if let Some(link) = self.list.get_mut(index) {
            link.used = self.uses;
        }
    }
}

impl<S: Socket> Link<S> {
    fn flush(&mut self, doubt: &mut bool) {
        for (to, stride, train) in self.queue.trains().skip(self.sent) {
            let mut rest = train.get(self.sent_octets..).unwrap_or_default();
            loop {
                let most = self.socket.longest_train().max(1);
                let part = rest.get(..stride * most).unwrap_or(rest);
                let sent = if part.len() > stride {
                    self.socket.send_train(to, part, stride)
                } else {
                    self.socket.send(to, part)
                };
                match sent {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        self.sent_octets = train.len() - rest.len();
                        return;
                    }
                    Err(error)
                        if error.kind() == io::ErrorKind::Unsupported
                            && self.socket.longest_train() < most =>
                    {
                        continue;
                    }
                    Err(error) => {
                        tracing::debug!(local = %self.local, to = %to.remote, %error, "a datagram was not sent");
                        *doubt |= is_doubtful(&error);
                    }
                    Ok(()) => {}
                }
                rest = rest.get(part.len()..).unwrap_or_default();
                if rest.is_empty() {
                    break;
                }
            }
            self.sent += 1;
            self.sent_octets = 0;
        }
        self.queue.clear();
        self.sent = 0;
    }
}

impl<S: Socket, C: Stream> Sink for Links<S, C> {
    fn reserve(&mut self, path: Path, len: usize) -> Option<&mut [u8]> {
        if self.latest != Some(path) {
            self.latest = Some(path);
            if let Some(link) = self.position(path.local).and_then(|index| self.list.get(index))
                && !path.is_tcp()
            {
                link.socket.settle(path.remote);
            }
        }
        self.room(path, len)
    }

    fn commit(&mut self, len: usize, ds: u8) {
        match self.reserved.take() {
            Some(Reserved::Datagram(index, remote)) => {
                if let Some(link) = self.list.get_mut(index) {
                    link.queue.join(len, Addressee { remote, ds }, LONGEST_TRAIN);
                }
            }
            Some(Reserved::Frame(index)) => {
                if let Some(connection) = self.connections.get_mut(index) {
                    connection.commit(len);
                }
            }
            None => {}
        }
    }
}

impl<S: Socket, C: Stream> Links<S, C> {
    /// Room for a datagram or frame of `len` octets. What waits is sent first where that makes room.
    fn room(&mut self, path: Path, len: usize) -> Option<&mut [u8]> {
        if path.is_tcp() {
            let index = self.connection(path)?;
            self.reserved = Some(Reserved::Frame(index));
            let connection = self.connections.get_mut(index)?;
            if connection.reserve(len).is_none()
                && let Err(error) = connection.flush()
            {
                self.end(index, &error);
                return None;
            }
            return self.connections.get_mut(index)?.reserve(len);
        }
        let index = self.position(path.local)?;
        self.reserved = Some(Reserved::Datagram(index, path.remote));
        self.touch(index);
        let link = self.list.get_mut(index)?;
        if link.queue.room().is_none() {
            link.flush(&mut self.doubt);
        }
        link.queue.room()?.get_mut(..len)
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
        fields: Vec<u8>,
        settled: Vec<SocketAddr>,
        /// How many of them must not be fragmented.
        whole: usize,
        room: usize,
        /// How many datagrams it takes at once, and how many it refuses at once although it said so.
        longest_train: usize,
        refuses_from: usize,
        /// How many datagrams each call brought.
        trains: Vec<usize>,
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
            fake.wire.borrow_mut().refuses_from = usize::MAX;
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

        fn poll_recv(&self, _: &mut Context<'_>, batch: &mut Batch<Arrival>) -> Poll<io::Result<()>> {
            let mut ready = Poll::Pending;
            while let Some(room) = batch.room() {
                let Some(datagram) = self.wire.borrow_mut().inbox.pop_front() else {
                    break;
                };
                room[..datagram.len()].copy_from_slice(datagram);
                let path = Path::udp(self.local, GATEWAY.parse().unwrap());
                batch.push(datagram.len(), path.into());
                ready = Poll::Ready(Ok(()));
            }
            ready
        }

        fn send(&self, to: Addressee, datagram: &[u8]) -> io::Result<()> {
            let mut wire = self.wire.borrow_mut();
            if let Some(error) = wire.error {
                return Err(error.into());
            }
            if wire.room == 0 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            wire.room -= 1;
            wire.sent.push(datagram.to_vec());
            wire.fields.push(to.ds);
            Ok(())
        }

        fn longest_train(&self) -> usize {
            self.wire.borrow().longest_train
        }

        fn send_train(&self, to: Addressee, train: &[u8], stride: usize) -> io::Result<()> {
            let datagrams = train.chunks(stride);
            if datagrams.len() >= self.wire.borrow().refuses_from {
                self.wire.borrow_mut().longest_train = 1;
                return Err(io::ErrorKind::Unsupported.into());
            }
            if self.wire.borrow().room < datagrams.len() {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            self.wire.borrow_mut().trains.push(datagrams.len());
            for datagram in datagrams {
                self.send(to, datagram)?;
            }
            Ok(())
        }

        fn settle(&self, remote: SocketAddr) {
            self.wire.borrow_mut().settled.push(remote);
        }

        fn send_whole(&self, remote: SocketAddr, datagram: &[u8]) -> io::Result<()> {
            self.send(remote.into(), datagram)?;
            self.wire.borrow_mut().whole += 1;
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

    /// A connection whose other end is in `wire`: what was sent are pieces of a stream.
    struct FakeStream(Fake);

    impl Stream for FakeStream {
        fn local(&self) -> SocketAddr {
            self.0.local
        }

        fn poll_read(&self, _: &mut Context<'_>, room: &mut [u8]) -> Poll<io::Result<usize>> {
            let mut wire = self.0.wire.borrow_mut();
            if let Some(error) = wire.error {
                return Poll::Ready(Err(error.into()));
            }
            let Some(octets) = wire.inbox.pop_front() else {
                return Poll::Pending;
            };
            room[..octets.len()].copy_from_slice(octets);
            Poll::Ready(Ok(octets.len()))
        }

        fn write(&self, octets: &[u8]) -> io::Result<usize> {
            let mut wire = self.0.wire.borrow_mut();
            if let Some(error) = wire.error {
                return Err(error.into());
            }
            let len = octets.len().min(wire.room);
            if len == 0 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            wire.room -= len;
            wire.sent.push(octets[..len].to_vec());
            Ok(len)
        }

        fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Socket::poll_writable(&self.0, cx)
        }
    }

    fn links(count: u16) -> (Links<Fake, FakeStream>, Vec<Fake>) {
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
            path: Path::udp(fake.local, GATEWAY.parse().unwrap()),
            payload: payload.into(),
            is_probe: false,
        }
    }

    fn poll(links: &mut Links<Fake, FakeStream>, batch: &mut Batch<Arrival>) -> bool {
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
    fn a_probe_goes_out_whole_and_at_once() {
        let (mut links, fakes) = links(2);
        let probe = |fake| Transmit {
            is_probe: true,
            ..transmit(fake, b"hello")
        };
        assert!(links.queue(&probe(&fakes[1])));
        assert_eq!((fakes[1].wire.borrow().whole, fakes[1].sent().len()), (1, 1));
        assert!(links.queue(&transmit(&fakes[1], b"hello")));
        links.flush();
        assert_eq!((fakes[1].wire.borrow().whole, fakes[1].sent().len()), (1, 2));
        fakes[0].wire.borrow_mut().room = 0;
        assert!(!links.queue(&probe(&fakes[0])), "it does not wait");
        assert!(links.has_room());
        let (unknown, _) = Fake::new(9);
        assert!(!links.queue(&probe(&unknown)));
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
            seal(&mut links, transmit(&fakes[0], b"").path, word);
        }
        links.flush();
        assert_eq!(fakes[0].sent(), [b"one"]);
        assert!(!links.has_room(), "what comes next had better wait");
        let mut batch = Batch::new();
        assert!(!poll(&mut links, &mut batch));

        seal(&mut links, transmit(&fakes[1], b"").path, b"new");
        links.flush();
        assert_eq!(fakes[1].sent(), [b"new"]);
        assert!(links.has_room(), "the new way is free");
        assert!(links.queue(&transmit(&fakes[0], b"bye")));
        links.flush();
        assert!(
            links.has_room(),
            "what IKE says on the old way holds up no packet"
        );

        fakes[0].wire.borrow_mut().room = usize::MAX;
        assert!(poll(&mut links, &mut batch));
        links.flush();
        assert_eq!(fakes[0].sent(), [b"one", b"two", b"tri", b"bye"]);
    }

    #[test]
    fn a_queue_that_is_full_says_so() {
        let (mut links, fakes) = links(1);
        fakes[0].wire.borrow_mut().room = 0;
        let queued = (0..2000).take_while(|_| links.queue(&transmit(&fakes[0], &[b'a'; 1000])));
        assert!((10..2000).contains(&queued.count()));
        let path = transmit(&fakes[0], b"").path;
        assert!(links.reserve(path, 100).is_none());
    }

    /// Datagrams with their numbers, all but the last equally long.
    fn numbered(count: u8) -> Vec<Vec<u8>> {
        (0..count)
            .map(|number| vec![number; if number + 1 == count { 3 } else { 5 }])
            .collect()
    }

    /// A packet of the tunnel.
    fn seal(links: &mut Links<Fake, FakeStream>, path: Path, packet: &[u8]) {
        let room = links.reserve(path, packet.len()).unwrap();
        room.copy_from_slice(packet);
        links.commit(packet.len(), 0);
    }

    fn seal_numbered(links: &mut Links<Fake, FakeStream>, fake: &Fake, count: u8) {
        for datagram in numbered(count) {
            seal(links, transmit(fake, b"").path, &datagram);
        }
    }

    #[test]
    fn equal_datagrams_leave_together() {
        let (mut links, fakes) = links(1);
        fakes[0].wire.borrow_mut().longest_train = 4;
        seal_numbered(&mut links, &fakes[0], 11);
        links.flush();
        assert_eq!(fakes[0].sent(), numbered(11));
        assert_eq!(fakes[0].wire.borrow().trains, [4, 4, 3]);
    }

    #[test]
    fn a_socket_settles_on_where_the_tunnel_leads_once() {
        let (mut links, fakes) = links(2);
        let elsewhere: SocketAddr = "192.0.2.7:4500".parse().unwrap();
        assert!(links.queue(&transmit(&fakes[0], b"IKE alone settles nothing")));
        for (fake, remote) in [(0, GATEWAY), (0, GATEWAY), (0, "192.0.2.7:4500"), (1, GATEWAY)] {
            let path = Path::udp(fakes[fake].local, remote.parse().unwrap());
            seal(&mut links, path, b"packet");
        }
        let gateway: SocketAddr = GATEWAY.parse().unwrap();
        assert_eq!(fakes[0].wire.borrow().settled, [gateway, elsewhere]);
        assert_eq!(fakes[1].wire.borrow().settled, [gateway]);
    }

    #[test]
    fn a_train_is_of_one_ds_field() {
        let (mut links, fakes) = links(1);
        fakes[0].wire.borrow_mut().longest_train = 4;
        for ds in [0, 0, 2, 2, 2, 184, 2] {
            let room = links.reserve(transmit(&fakes[0], b"").path, 5).unwrap();
            room.fill(ds);
            links.commit(5, ds);
        }
        links.flush();
        let wire = fakes[0].wire.borrow();
        assert_eq!(wire.trains, [2, 3]);
        assert_eq!(wire.fields, [0, 0, 2, 2, 2, 184, 2]);
        assert!(wire.sent.iter().zip(&wire.fields).all(|(it, ds)| *it == [*ds; 5]));
    }

    #[test]
    fn a_socket_that_is_full_in_the_middle_of_a_train_goes_on_there() {
        let (mut links, fakes) = links(1);
        fakes[0].wire.borrow_mut().longest_train = 4;
        fakes[0].wire.borrow_mut().room = 6;
        seal_numbered(&mut links, &fakes[0], 11);
        links.flush();
        assert_eq!(fakes[0].sent(), numbered(11)[..4]);
        assert!(!links.has_room());
        fakes[0].wire.borrow_mut().room = usize::MAX;
        links.flush();
        assert_eq!(fakes[0].sent(), numbered(11));
        assert!(links.has_room());
    }

    #[test]
    fn a_train_that_is_refused_leaves_one_by_one() {
        let (mut links, fakes) = links(1);
        fakes[0].wire.borrow_mut().longest_train = 64;
        fakes[0].wire.borrow_mut().refuses_from = 2;
        seal_numbered(&mut links, &fakes[0], 11);
        links.flush();
        assert_eq!(fakes[0].sent(), numbered(11));
        assert_eq!(fakes[0].wire.borrow().trains, [0_usize; 0]);
    }

    #[test]
    fn what_is_queued_leaves_before_its_socket_is_closed() {
        let (mut links, fakes) = links(3);
        assert!(links.queue(&transmit(&fakes[1], b"bye")));
        links.release(Endpoint::udp(fakes[1].local));
        assert_eq!(fakes[1].sent(), [b"bye"]);
        assert!(!links.queue(&transmit(&fakes[1], b"late")));
        assert!(links.queue(&transmit(&fakes[2], b"hello")));
        links.flush();
        assert_eq!(fakes[2].sent(), [b"hello"]);
        links.release(Endpoint::udp(fakes[1].local)); // again: nothing
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

    /// A connection beside a socket with the same address and port.
    fn connection() -> (Links<Fake, FakeStream>, Fake, Fake, Path) {
        let (mut links, mut fakes) = links(1);
        let (fake, _) = Fake::new(0);
        let path = links.connect(FakeStream(fake.clone()), GATEWAY.parse().unwrap());
        assert_eq!(path, Path::tcp(fakes[0].local, GATEWAY.parse().unwrap()));
        (links, fakes.remove(0), fake, path)
    }

    fn message(path: Path, payload: &[u8]) -> Transmit {
        let payload = payload.into();
        Transmit {
            path,
            payload,
            is_probe: false,
        }
    }

    #[test]
    fn a_connection_begins_with_its_prefix_and_carries_frames() {
        let (mut links, socket, fake, path) = connection();
        assert!(links.queue(&message(path, b"hello")));
        links.reserve(path, 100).unwrap()[..3].copy_from_slice(b"esp");
        links.commit(3, 0);
        links.flush();
        assert_eq!(fake.sent().concat(), b"IKETCP\0\x07hello\0\x05esp");
        assert!(socket.sent().is_empty(), "a socket is not a connection");
        fake.wire.borrow_mut().inbox = vec![&b"\0\x05on"[..], b"e\0\x03\xff\0", b"\x05two"].into();
        let mut batch = Batch::new();
        assert!(poll(&mut links, &mut batch));
        let packets: Vec<_> = batch
            .packets()
            .map(|(from, _, it)| (from.path, it.to_vec()))
            .collect();
        assert_eq!(packets, [(path, b"one".to_vec()), (path, b"two".to_vec())]);
        assert!(links.take_closed().is_empty());
    }

    #[test]
    fn a_connection_that_takes_nothing_drops_packets_and_keeps_messages() {
        let (mut links, _, fake, path) = connection();
        fake.wire.borrow_mut().room = 4;
        let mut packets = 0;
        while let Some(room) = links.reserve(path, 1400) {
            room.fill(7);
            links.commit(1400, 0);
            packets += 1;
        }
        assert!(packets > 64, "{packets}");
        assert!(links.queue(&message(path, &[1; 3000])));
        links.flush();
        assert_eq!(fake.sent(), [b"IKET"]);
        assert!(!links.has_room());
        assert!(!poll(&mut links, &mut Batch::new()));
        fake.wire.borrow_mut().room = usize::MAX;
        assert!(poll(&mut links, &mut Batch::new()));
        links.flush();
        assert!(links.has_room());
        let sent = fake.sent().concat();
        assert_eq!(sent.len(), 6 + packets * 1402 + 3002);
        assert!(sent.ends_with(&[1; 3000]));
    }

    #[test]
    fn a_connection_that_takes_everything_drops_nothing() {
        let (mut links, _, fake, path) = connection();
        for _ in 0..10_000 {
            seal(&mut links, path, &[7; 100]);
        }
        links.flush();
        assert_eq!(fake.sent().concat().len(), 6 + 10_000 * 102);
    }

    #[test]
    fn a_connection_that_ends_or_makes_no_sense_is_told_once() {
        for octets in [Some(&b""[..]), Some(b"\0\x05one\0\x01"), None] {
            let (mut links, _, fake, path) = connection();
            match octets {
                Some(octets) => fake.wire.borrow_mut().inbox = vec![octets].into(),
                None => fake.wire.borrow_mut().error = Some(io::ErrorKind::ConnectionReset),
            }
            let mut batch = Batch::new();
            assert!(poll(&mut links, &mut batch));
            assert_eq!(links.take_closed(), [path.socket()], "{octets:?}");
            assert!(links.take_closed().is_empty());
            assert!(!links.queue(&message(path, b"late")));
            assert!(links.reserve(path, 10).is_none());
            assert!(!links.take_doubt(), "the way may be well");
            let whole = octets.is_some_and(|octets| octets.len() > 4);
            assert_eq!(batch.len(), usize::from(whole), "what was whole counts");
        }
    }

    #[test]
    fn what_is_queued_leaves_before_its_connection_is_closed_and_nobody_is_told() {
        let (mut links, socket, fake, path) = connection();
        assert!(links.queue(&message(path, b"bye")));
        links.release(path.socket());
        assert_eq!(fake.sent().concat(), b"IKETCP\0\x05bye");
        assert!(links.take_closed().is_empty());
        assert!(!links.queue(&message(path, b"late")));
        assert!(links.queue(&transmit(&socket, b"still here")));
    }
}
