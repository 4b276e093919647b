//! A machine in memory for the real driver: it records plans, and its only neighbour is a [`Gateway`].
//!
//! Its clock is the runtime's, so under a paused runtime all of it runs in virtual time.

use std::cell::{RefCell, RefMut};
use std::collections::VecDeque;
use std::future::{Future, pending};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use peregrine_core::command::{Bound, HostFault, Path};
use peregrine_core::plan::Plan;
use peregrine_core::timer::{Instant, UnixTime};
use peregrine_platform::batch::Batch;
use peregrine_platform::clock::{self, Clock};
use peregrine_platform::host::{self, Applied, Host};
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
    /// How many devices were made.
    pub devices: usize,
    /// Inner packets that reached this machine.
    pub received: Vec<Vec<u8>>,
    /// Packets that wait in the device.
    pub device_queue: VecDeque<Vec<u8>>,
    /// There is a device, and this is its number.
    device: Option<usize>,
    sockets: usize,
    inbox: VecDeque<(SocketAddr, Vec<u8>)>,
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
            devices: 0,
            received: Vec::new(),
            device_queue: VecDeque::new(),
            device: None,
            sockets: 0,
            inbox: VecDeque::new(),
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
        self.changed.notify_waiters();
    }

    /// Lets the gateway do something of its own.
    pub fn gateway_does(&self, act: impl FnOnce(&mut Gateway, Instant) -> Vec<Outgoing>) {
        let now = self.now();
        let sent = act(&mut self.machine().gateway, now);
        self.deliver(sent);
    }

    /// Gives the sockets room for this many datagrams more.
    pub fn make_room(&self, datagrams: usize) {
        self.machine().room = datagrams;
        self.changed.notify_waiters();
    }

    /// Somebody deletes the device.
    pub fn delete_device(&self) {
        self.machine().device = None;
        self.changed.notify_waiters();
    }

    /// How many sockets are open.
    #[must_use]
    pub fn sockets(&self) -> usize {
        self.machine().sockets
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
        let inbox = sent.into_iter().map(|(path, datagram)| (path.local, datagram));
        self.machine().inbox.extend(inbox);
        self.changed.notify_waiters();
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
        Instant::new(self.began.elapsed())
    }

    fn unix_time(&self) -> UnixTime {
        UnixTime(BEGINNING.0 + self.began.elapsed())
    }

    fn alarm(&self) -> Result<Alarm, HostFault> {
        Ok(Alarm {
            began: self.began,
            at: None,
        })
    }
}

/// The runtime's timer.
pub struct Alarm {
    began: tokio::time::Instant,
    at: Option<Instant>,
}

impl clock::Alarm for Alarm {
    fn set(&mut self, at: Option<Instant>) {
        self.at = at;
    }

    async fn ring(&mut self) {
        match self.at {
            Some(at) => tokio::time::sleep_until(self.began + at.since_origin()).await,
            None => pending().await,
        }
    }
}

impl Host for FakeHost {
    type Tun = Device;
    type Socket = Socket;

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

    fn open(&self, _remote: SocketAddr) -> Result<Socket, HostFault> {
        self.machine().sockets += 1;
        Ok(Socket { host: self.clone() })
    }

    fn way(&self, _socket: &Socket, remote: SocketAddr) -> Result<Bound, HostFault> {
        let path = Path {
            local: ([10, 0, 0, 2], 40_000).into(),
            remote,
        };
        Ok(Bound {
            path,
            mtu: Some(1500),
            interface: Some("eth0".to_owned()),
        })
    }

    fn resolve(&self, _name: String) -> impl Future<Output = Result<Vec<IpAddr>, HostFault>> + 'static {
        std::future::ready(Ok(Vec::new()))
    }
}

/// The tunnel device.
pub struct Device {
    host: FakeHost,
    number: usize,
}

impl host::Tun for Device {
    async fn recv(&self, batch: &mut Batch<()>) -> io::Result<()> {
        let packet = self.host.wait(|machine| {
            if machine.device != Some(self.number) {
                return Some(None);
            }
            machine.device_queue.pop_front().map(Some)
        });
        let packet = packet.await.ok_or(io::ErrorKind::NotFound)?;
        if let Some(room) = batch.room() {
            room[..packet.len()].copy_from_slice(&packet);
            batch.push(packet.len(), ());
        }
        Ok(())
    }

    fn send(&self, packet: &[u8]) -> io::Result<()> {
        let machine = &mut *self.host.machine();
        if machine.device != Some(self.number) {
            return Err(io::ErrorKind::NotFound.into());
        }
        machine.received.push(packet.to_vec());
        Ok(())
    }
}

/// A UDP socket.
pub struct Socket {
    host: FakeHost,
}

impl host::Socket for Socket {
    async fn recv(&self, batch: &mut Batch<SocketAddr>) -> io::Result<()> {
        let (source, datagram) = self.host.wait(|machine| machine.inbox.pop_front()).await;
        if let Some(room) = batch.room() {
            room[..datagram.len()].copy_from_slice(&datagram);
            batch.push(datagram.len(), source);
        }
        Ok(())
    }

    fn send(&self, remote: SocketAddr, datagram: &[u8]) -> io::Result<()> {
        let now = self.host.now();
        let answers = {
            let machine = &mut *self.host.machine();
            if machine.room == 0 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            machine.room -= 1;
            let path = Path {
                local: remote,
                remote: ([10, 0, 0, 2], 40_000).into(),
            };
            machine.gateway.handle(path, datagram, now)
        };
        self.host.deliver(answers);
        Ok(())
    }

    async fn writable(&self) -> io::Result<()> {
        self.host.wait(|machine| (machine.room > 0).then_some(())).await;
        Ok(())
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.host.machine().sockets -= 1;
    }
}
