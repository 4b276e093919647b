//! A machine in memory for the real driver: it records plans, and its only neighbour is a [`Gateway`].
//!
//! Its clock is the runtime's, so under a paused runtime all of it runs in virtual time.

use std::cell::{RefCell, RefMut};
use std::collections::{BTreeMap, VecDeque};
use std::future::{Future, pending};
use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use peregrine_core::command::{Fetch, HostFault, Path};
use peregrine_core::plan::Plan;
use peregrine_core::timer::{Instant, UnixTime};
use peregrine_platform::batch::Batch;
use peregrine_platform::clock::{self, Clock};
use peregrine_platform::dataplane::virtio;
use peregrine_platform::host::{self, Addressee, Applied, Arrival, Change, Host, Interface, Way};
use tokio::sync::Notify;

use crate::gateway::{Gateway, Outgoing};
use crate::world::BEGINNING;

/// What tests look at and meddle with.
pub struct Machine {
    /// The gateway, which gets every datagram at once.
    pub gateway: Gateway,
    /// Every plan that was applied, in order.
    pub plans: Vec<Plan>,
    /// How long applying takes.
    pub apply_takes: Duration,
    /// What applying a plan with a tunnel shall fail with, once.
    pub apply_fault: Option<HostFault>,
    /// What applying a plan without a tunnel shall fail with, once.
    pub repair_fault: Option<HostFault>,
    /// How many more datagrams the sockets take before they are full.
    pub room: usize,
    /// Sockets that are full whatever room there is, by their addresses.
    pub stuck: Vec<SocketAddr>,
    /// What the sockets with these addresses fail with.
    pub broken: BTreeMap<SocketAddr, io::ErrorKind>,
    /// How often the client asked for a way.
    pub asked: usize,
    /// The way to IPv4 addresses and to IPv6 addresses, while there is one.
    pub ways: [Option<Way>; 2],
    /// The addresses of names.
    pub names: BTreeMap<String, Vec<IpAddr>>,
    /// What is at URLs; what is not here is not found.
    pub pages: BTreeMap<String, Vec<u8>>,
    /// The sockets that are open.
    pub sockets: Vec<SocketAddr>,
    /// Every datagram of the client's: from which socket and whither.
    pub sent: Vec<Path>,
    /// How many devices were made.
    pub devices: usize,
    /// Inner packets that reached this machine.
    pub received: Vec<Vec<u8>>,
    /// Packets that wait in the device.
    pub device_queue: VecDeque<Vec<u8>>,
    /// There is a device, and this is its number.
    device: Option<usize>,
    ports: u16,
    inbox: VecDeque<(Path, Vec<u8>)>,
    /// Nothing comes of UDP.
    pub no_udp: bool,
    /// The gateway takes no connections.
    pub refuses_tcp: bool,
    /// The open TCP connections, with the octets that the client has yet to read.
    pub streams: BTreeMap<SocketAddr, VecDeque<u8>>,
    changes: VecDeque<Change>,
    /// How far the clock has run ahead of the runtime's.
    ahead: Duration,
    /// How much of that was sleep.
    slept: Duration,
    waiting: Vec<Waker>,
}

/// A way from this address by the interface with this number.
#[must_use]
pub fn way(source: &str, index: u32) -> Way {
    Way {
        source: source.parse().expect("an address"),
        interface: Some(Interface {
            index,
            name: format!("eth{index}"),
        }),
        mtu: Some(1500),
    }
}

/// The host.
#[derive(Clone)]
pub struct FakeHost {
    machine: Rc<RefCell<Machine>>,
    changed: Rc<Notify>,
    began: tokio::time::Instant,
}

impl FakeHost {
    /// A machine beside this gateway. Needs a runtime.
    #[must_use]
    pub fn new(gateway: Gateway) -> Self {
        let machine = Machine {
            gateway,
            plans: Vec::new(),
            apply_takes: Duration::from_millis(20),
            apply_fault: None,
            repair_fault: None,
            room: usize::MAX,
            stuck: Vec::new(),
            broken: BTreeMap::new(),
            asked: 0,
            ways: [Some(way("10.0.0.2", 0)), None],
            names: BTreeMap::new(),
            pages: BTreeMap::new(),
            sockets: Vec::new(),
            sent: Vec::new(),
            devices: 0,
            received: Vec::new(),
            device_queue: VecDeque::new(),
            device: None,
            ports: 40_000,
            inbox: VecDeque::new(),
            no_udp: false,
            refuses_tcp: false,
            streams: BTreeMap::new(),
            changes: VecDeque::new(),
            ahead: Duration::ZERO,
            slept: Duration::ZERO,
            waiting: Vec::new(),
        };
        Self {
            machine: Rc::new(RefCell::new(machine)),
            changed: Rc::default(),
            began: tokio::time::Instant::now(),
        }
    }

    /// The machine. Not to be held over an `await`.
    #[must_use]
    pub fn machine(&self) -> RefMut<'_, Machine> {
        self.machine.borrow_mut()
    }

    /// A program on this machine sends a packet into the tunnel.
    pub fn send(&self, packet: Vec<u8>) {
        self.machine().device_queue.push_back(packet);
        self.notify();
    }

    /// Something changes on this machine.
    pub fn change(&self, change: Change) {
        self.machine().changes.push_back(change);
        self.notify();
    }

    /// The machine sleeps for this long, and nothing of it runs.
    pub fn sleep(&self, span: Duration) {
        self.machine().slept += span;
        self.stop(span);
    }

    /// The driver's process is stopped for this long.
    pub fn stop(&self, span: Duration) {
        self.machine().ahead += span;
        self.notify();
    }

    fn notify(&self) {
        self.changed.notify_waiters();
        let waiting = std::mem::take(&mut self.machine().waiting);
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Lets the gateway do something of its own.
    pub fn gateway_does(&self, act: impl FnOnce(&mut Gateway, Instant) -> Vec<Outgoing>) {
        let now = self.now();
        let sent = act(&mut self.machine().gateway, now);
        self.deliver(sent);
    }

    /// Every TCP connection is reset.
    pub fn reset_connections(&self) {
        self.machine().streams.clear();
        self.notify();
    }

    /// Gives the sockets room for this many datagrams more.
    pub fn make_room(&self, datagrams: usize) {
        self.machine().room = datagrams;
        self.notify();
    }

    /// Somebody deletes the device.
    pub fn delete_device(&self) {
        self.machine().device = None;
        self.notify();
    }

    /// How many sockets are open.
    #[must_use]
    pub fn sockets(&self) -> usize {
        self.machine().sockets.len()
    }

    /// Waits until `condition` holds, for a minute of virtual time at most; whether it does.
    pub async fn until(&self, mut condition: impl FnMut(&Machine) -> bool) -> bool {
        for _ in 0..6000 {
            if condition(&self.machine.borrow()) {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        false
    }

    fn deliver(&self, sent: Vec<Outgoing>) {
        // As the gateway has them, the ends are the other way round.
        let (frames, datagrams): (Vec<_>, Vec<_>) = sent.into_iter().partition(|(path, _)| path.is_tcp());
        for (path, octets) in frames {
            if let Some(stream) = self.machine().streams.get_mut(&path.remote) {
                stream.extend(octets);
            }
        }
        let inbox = datagrams.into_iter().map(|(path, datagram)| {
            let path = Path::udp(path.remote, path.local);
            (path, datagram)
        });
        self.machine().inbox.extend(inbox);
        self.notify();
    }

    /// Waits until `take` takes something from the machine.
    async fn wait<T>(&self, mut take: impl FnMut(&mut Machine) -> Option<T>) -> T {
        loop {
            let changed = self.changed.notified();
            if let Some(taken) = take(&mut self.machine()) {
                return taken;
            }
            changed.await;
        }
    }
}

impl Clock for FakeHost {
    type Alarm = Alarm;

    fn now(&self) -> Instant {
        Instant::new(self.began.elapsed() + self.machine().ahead)
    }

    fn unix_time(&self) -> UnixTime {
        UnixTime(BEGINNING.0 + self.now().since_origin())
    }

    fn slept(&self) -> Duration {
        self.machine().slept
    }

    fn alarm(&self) -> Result<Alarm, HostFault> {
        Ok(Alarm {
            host: self.clone(),
            at: None,
        })
    }
}

/// The runtime's timer, as far as the clock goes with it.
pub struct Alarm {
    host: FakeHost,
    at: Option<Instant>,
}

impl clock::Alarm for Alarm {
    fn set(&mut self, at: Option<Instant>) {
        self.at = at;
    }

    async fn ring(&mut self) {
        let Some(at) = self.at else {
            return pending().await;
        };
        loop {
            let jumped = self.host.changed.notified();
            let rest = at.since(self.host.now());
            if rest.is_zero() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(rest) => {}
                () = jumped => {}
            }
        }
    }
}

impl Host for FakeHost {
    type Tun = Device;
    type Socket = Socket;
    type Stream = Stream;
    type Changes = Changes;

    fn apply(&self, plan: Plan) -> impl Future<Output = Result<Applied<Device>, HostFault>> + 'static {
        let host = self.clone();
        async move {
            let takes = host.machine().apply_takes;
            tokio::time::sleep(takes).await;
            let machine = &mut *host.machine();
            let wants_device = plan.tunnel.is_some();
            machine.plans.push(plan);
            let fault = if wants_device {
                machine.apply_fault.take()
            } else {
                machine.repair_fault.take()
            };
            if let Some(fault) = fault {
                machine.device = None;
                return Err(fault);
            }
            if !wants_device {
                machine.device = None;
                return Ok(Applied {
                    tun: None,
                    interface: None,
                });
            }
            let made = machine.device.is_none().then(|| {
                machine.devices += 1;
                machine.device = Some(machine.devices);
                Device {
                    host: host.clone(),
                    number: machine.devices,
                }
            });
            Ok(Applied {
                tun: made,
                interface: Some("peregrine0".to_owned()),
            })
        }
    }

    fn open(&self, way: &Way) -> Result<Socket, HostFault> {
        let machine = &mut *self.machine();
        let local = SocketAddr::new(way.source, machine.ports);
        machine.ports += 1;
        machine.sockets.push(local);
        Ok(Socket {
            host: self.clone(),
            local,
        })
    }

    fn way(&self, remote: SocketAddr) -> Result<Way, HostFault> {
        let machine = &mut *self.machine();
        machine.asked += 1;
        let [v4, v6] = &machine.ways;
        let way = if remote.is_ipv4() { v4 } else { v6 };
        way.clone().ok_or_else(|| HostFault {
            action: format!("find a way to {}", remote.ip()),
            reason: "Network is unreachable".to_owned(),
            permission: false,
        })
    }

    fn connect(
        &self,
        way: &Way,
        remote: SocketAddr,
    ) -> impl Future<Output = Result<Stream, HostFault>> + 'static {
        let (host, source) = (self.clone(), way.source);
        async move {
            if host.machine().refuses_tcp {
                return Err(HostFault {
                    action: format!("open a TCP connection to {remote}"),
                    reason: "Connection refused".to_owned(),
                    permission: false,
                });
            }
            let machine = &mut *host.machine();
            let local = SocketAddr::new(source, machine.ports);
            machine.ports += 1;
            machine.gateway.opened(Path::tcp(remote, local));
            machine.streams.insert(local, VecDeque::new());
            Ok(Stream {
                host: host.clone(),
                local,
                remote,
            })
        }
    }

    fn resolve(&self, name: String) -> impl Future<Output = Result<Vec<IpAddr>, HostFault>> + 'static {
        let found = self.machine().names.get(&name).cloned();
        std::future::ready(Ok(found.unwrap_or_default()))
    }

    fn fetch(&self, fetch: Fetch) -> impl Future<Output = Result<Vec<u8>, HostFault>> + 'static {
        let found = self.machine().pages.get(&fetch.url.to_string()).cloned();
        std::future::ready(found.ok_or_else(|| HostFault {
            action: format!("fetch {}", fetch.url),
            reason: "the server says 404".to_owned(),
            permission: false,
        }))
    }

    fn changes(&self) -> Result<Changes, HostFault> {
        Ok(Changes(self.clone()))
    }
}

/// What tests say that changes.
pub struct Changes(FakeHost);

impl host::Changes for Changes {
    async fn next(&mut self) -> Change {
        self.0.wait(|machine| machine.changes.pop_front()).await
    }
}

/// The tunnel device.
pub struct Device {
    host: FakeHost,
    number: usize,
}

impl host::Tun for Device {
    async fn recv(&self, batch: &mut Batch<virtio::Header>) -> io::Result<()> {
        let packet = self.host.wait(|machine| {
            if machine.device != Some(self.number) {
                return Some(None);
            }
            machine.device_queue.pop_front().map(Some)
        });
        let packet = packet.await.ok_or(io::ErrorKind::NotFound)?;
        if let Some(room) = batch.room() {
            room[..packet.len()].copy_from_slice(&packet);
            batch.push(packet.len(), virtio::Header::default());
        }
        Ok(())
    }

    fn send(&self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        let machine = &mut *self.host.machine();
        if machine.device != Some(self.number) {
            return Err(io::ErrorKind::NotFound.into());
        }
        machine
            .received
            .push(parts[1..].iter().flat_map(|part| part.to_vec()).collect());
        Ok(())
    }
}

/// A UDP socket.
pub struct Socket {
    host: FakeHost,
    local: SocketAddr,
}

impl host::Socket for Socket {
    fn local(&self) -> SocketAddr {
        self.local
    }

    fn poll_recv(&self, cx: &mut Context<'_>, batch: &mut Batch<Arrival>) -> Poll<io::Result<()>> {
        let machine = &mut *self.host.machine();
        let mine = |(path, _): &(Path, Vec<u8>)| path.local == self.local;
        let Some(index) = machine.inbox.iter().position(mine) else {
            machine.waiting.push(cx.waker().clone());
            return Poll::Pending;
        };
        if let (Some(room), Some((path, datagram))) = (batch.room(), machine.inbox.remove(index)) {
            room[..datagram.len()].copy_from_slice(&datagram);
            batch.push(datagram.len(), path.into());
        }
        Poll::Ready(Ok(()))
    }

    fn send(&self, Addressee { remote, .. }: Addressee, datagram: &[u8]) -> io::Result<()> {
        let now = self.host.now();
        let answers = {
            let machine = &mut *self.host.machine();
            if let Some(kind) = machine.broken.get(&self.local) {
                return Err((*kind).into());
            }
            if machine.room == 0 || machine.stuck.contains(&self.local) {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            machine.room -= 1;
            machine.sent.push(Path::udp(self.local, remote));
            let path = Path::udp(remote, self.local);
            if machine.no_udp {
                return Ok(());
            }
            machine.gateway.handle(path, datagram, now)
        };
        self.host.deliver(answers);
        Ok(())
    }

    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let machine = &mut *self.host.machine();
        if machine.room > 0 && !machine.stuck.contains(&self.local) {
            return Poll::Ready(Ok(()));
        }
        machine.waiting.push(cx.waker().clone());
        Poll::Pending
    }
}

/// A TCP connection to the gateway.
pub struct Stream {
    host: FakeHost,
    local: SocketAddr,
    remote: SocketAddr,
}

impl host::Stream for Stream {
    fn local(&self) -> SocketAddr {
        self.local
    }

    fn poll_read(&self, cx: &mut Context<'_>, room: &mut [u8]) -> Poll<io::Result<usize>> {
        let machine = &mut *self.host.machine();
        let Some(octets) = machine.streams.get_mut(&self.local) else {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        };
        if octets.is_empty() {
            machine.waiting.push(cx.waker().clone());
            return Poll::Pending;
        }
        // In pieces that are no frames.
        let len = octets.len().min(room.len()).min(777);
        for (slot, octet) in room.iter_mut().zip(octets.drain(..len)) {
            *slot = octet;
        }
        Poll::Ready(Ok(len))
    }

    fn write(&self, octets: &[u8]) -> io::Result<usize> {
        let now = self.host.now();
        let path = Path::tcp(self.remote, self.local);
        let len = octets.len().min(555);
        let answers = {
            let machine = &mut *self.host.machine();
            if !machine.streams.contains_key(&self.local) {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            machine.sent.push(Path::tcp(self.local, self.remote));
            machine.gateway.handle_octets(path, &octets[..len], now)
        };
        self.host.deliver(answers);
        Ok(len)
    }

    fn poll_writable(&self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let machine = &mut *self.host.machine();
        machine.streams.remove(&self.local);
        machine.gateway.closed(Path::tcp(self.remote, self.local));
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.host.machine().sockets.retain(|local| *local != self.local);
    }
}
