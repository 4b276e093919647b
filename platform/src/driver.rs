//! The loop: bytes and events between the [`Client`], the [`Host`] and whoever commands and watches.
//!
//! It decides nothing. Everything runs on the caller's task; what takes long, such as applying a plan or resolving
//! a name, is a future beside it, so that packets never wait for it.

use std::future::{Future, pending};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use peregrine_core::client::Client;
use peregrine_core::command::{
    Answer, Ask, Bound, Command, Event, HostFault, Path, Sink, State, Status, Traffic, Transmit,
};
use peregrine_core::esp::clamp_mss;
use peregrine_core::plan::Plan;
use peregrine_core::timer::Instant;
use tokio::select;
use tokio::sync::mpsc;

use crate::batch::Batch;
use crate::clock::{Alarm as _, seed};
use crate::host::{Applied, Host, Socket as _, Tun as _};

/// News for whoever watches.
#[derive(Clone, Debug)]
pub enum Notice {
    /// The whole truth, whenever it changed.
    Status(Box<Status>),
    /// What went through so far.
    Traffic(Traffic),
}

/// How often [`Notice::Traffic`] comes while a tunnel is up.
const TRAFFIC_EVERY: Duration = Duration::from_secs(1);

/// Runs one client on `host` until `commands` is closed and everything is taken down.
///
/// First makes the machine equal to the empty plan, which puts back what a crashed run left. Notices that the
/// watcher has no room for are dropped; the next one tells the whole truth again.
///
/// # Errors
/// The host has no clock, entropy or thread for us, or what a crashed run left cannot be put back.
pub async fn run<H: Host>(
    host: &H,
    mut commands: mpsc::Receiver<Command>,
    notices: mpsc::Sender<Notice>,
) -> Result<(), HostFault> {
    host.apply(Plan::default()).await?;
    let mut alarm = host.alarm()?;
    let mut driver = Driver {
        client: Client::new(seed()?, host.now(), host.unix_time()),
        host,
        notices,
        v4: Endpoint::default(),
        v6: Endpoint::default(),
        tun: None,
        mtu: u16::MAX,
        jobs: FuturesUnordered::new(),
        plans: 0,
        sealed: Batch::for_sealed(),
    };
    let mut plain = Batch::new();
    let (mut from_v4, mut from_v6) = (Batch::new(), Batch::new());
    let mut traffic = tokio::time::interval(TRAFFIC_EVERY);
    traffic.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut closing = false;
    loop {
        driver.drain();
        let state = driver.client.status().state;
        if closing && state == State::Idle && driver.jobs.is_empty() {
            return Ok(());
        }
        alarm.set(driver.client.poll_timeout().map(|(due, _)| due));
        select! {
            command = commands.recv(), if !closing => match command {
                Some(command) => driver.client.handle_command(command, host.now()),
                None => {
                    closing = true;
                    driver.client.handle_command(Command::Disconnect, host.now());
                }
            },
            Some(done) = driver.jobs.next() => driver.finish(done),
            () = alarm.ring() => driver.client.handle_timeout(host.now()),
            received = receive(driver.v4.socket.as_ref(), &mut from_v4) => {
                driver.open(received, &mut from_v4);
            }
            received = receive(driver.v6.socket.as_ref(), &mut from_v6) => {
                driver.open(received, &mut from_v6);
            }
            read = read(driver.tun.as_ref(), &mut plain) => driver.seal(read, &mut plain).await,
            _ = traffic.tick(), if state == State::Connected => {
                driver.tell(Notice::Traffic(driver.client.traffic()));
            }
        }
    }
}

/// A socket and the local address that the gateway's answers come to.
struct Endpoint<S> {
    socket: Option<S>,
    local: Option<SocketAddr>,
}

impl<S> Default for Endpoint<S> {
    fn default() -> Self {
        Self {
            socket: None,
            local: None,
        }
    }
}

/// What a future beside the loop brings.
enum Done<T> {
    Resolved(Result<Vec<std::net::IpAddr>, HostFault>),
    /// The plan with this number.
    Applied(u64, Result<Applied<T>, HostFault>),
}

type Job<T> = Pin<Box<dyn Future<Output = Done<T>>>>;

struct Driver<'h, H: Host> {
    client: Client,
    host: &'h H,
    notices: mpsc::Sender<Notice>,
    v4: Endpoint<H::Socket>,
    v6: Endpoint<H::Socket>,
    tun: Option<H::Tun>,
    mtu: u16,
    jobs: FuturesUnordered<Job<H::Tun>>,
    /// How many plans there were: only the last one's outcome is news to the client.
    plans: u64,
    sealed: Batch<SocketAddr>,
}

impl<H: Host> Driver<'_, H> {
    /// Brings out everything that the client has for others.
    fn drain(&mut self) {
        loop {
            if let Some(transmit) = self.client.poll_transmit() {
                self.transmit(&transmit);
            } else if let Some(event) = self.client.poll_event() {
                self.act(event);
            } else {
                return;
            }
        }
    }

    fn transmit(&self, transmit: &Transmit) {
        let remote = transmit.path.remote;
        let Some(socket) = &self.endpoint(remote).socket else {
            return;
        };
        if let Err(error) = socket.send(remote, &transmit.payload) {
            // As good as lost on the way: the client sends it again.
            tracing::debug!(%remote, %error, "an IKE message was not sent");
        }
    }

    fn act(&mut self, event: Event) {
        match event {
            Event::Status(status) => self.tell(Notice::Status(status)),
            Event::Plan(plan) => {
                self.plans += 1;
                let number = self.plans;
                if let Some(tunnel) = &plan.tunnel {
                    self.mtu = tunnel.mtu;
                } else {
                    self.tun = None;
                }
                let applied = self.host.apply(plan);
                self.jobs
                    .push(Box::pin(async move { Done::Applied(number, applied.await) }));
            }
            Event::Ask(Ask::Resolve(name)) => {
                let resolved = self.host.resolve(name);
                self.jobs
                    .push(Box::pin(async move { Done::Resolved(resolved.await) }));
            }
            Event::Ask(Ask::Bind(remote)) => {
                let bound = self.bind(remote);
                self.client
                    .handle_answer(Answer::Bound(remote, bound), self.host.now());
            }
        }
    }

    fn bind(&mut self, remote: SocketAddr) -> Result<Bound, HostFault> {
        let host = self.host;
        let endpoint = if remote.is_ipv4() {
            &mut self.v4
        } else {
            &mut self.v6
        };
        let socket = match endpoint.socket.take() {
            Some(socket) => socket,
            None => host.open(remote)?,
        };
        let way = host.way(&socket, remote);
        endpoint.socket = Some(socket);
        let bound = way?;
        endpoint.local = Some(bound.path.local);
        Ok(bound)
    }

    fn finish(&mut self, done: Done<H::Tun>) {
        let answer = match done {
            Done::Resolved(result) => Answer::Resolved(result),
            // A later plan undoes or replaces whatever this one did.
            Done::Applied(number, _) if number != self.plans => return,
            Done::Applied(_, Ok(applied)) => {
                if applied.tun.is_some() {
                    self.tun = applied.tun;
                }
                Answer::Applied(Ok(applied.interface))
            }
            Done::Applied(_, Err(fault)) => Answer::Applied(Err(fault)),
        };
        self.client.handle_answer(answer, self.host.now());
    }

    fn endpoint(&self, remote: SocketAddr) -> &Endpoint<H::Socket> {
        if remote.is_ipv4() { &self.v4 } else { &self.v6 }
    }

    fn tell(&self, notice: Notice) {
        if self.notices.try_send(notice).is_err() {
            tracing::debug!("nobody took a notice");
        }
    }

    /// Datagrams from the gateway's side: inner packets go to the machine.
    fn open(&mut self, received: io::Result<()>, batch: &mut Batch<SocketAddr>) {
        if let Err(error) = received {
            // A report about the network, such as a port that is closed: nothing that an attacker may act with.
            tracing::debug!(%error, "receiving");
        }
        let now = self.host.now();
        for (remote, datagram) in batch.packets() {
            let Some(local) = self.endpoint(remote).local else {
                continue;
            };
            let path = Path { local, remote };
            let Some(packet) = self.client.handle_datagram(path, datagram, now) else {
                continue;
            };
            clamp_mss(packet, self.mtu);
            if let Some(tun) = &self.tun
                && let Err(error) = tun.send(packet)
            {
                tracing::trace!(%error, "the machine did not take a packet");
            }
        }
        batch.clear();
    }

    /// Inner packets from the machine: sealed, they go to the gateway.
    async fn seal(&mut self, read: io::Result<()>, batch: &mut Batch<()>) {
        if let Err(error) = read {
            // The device went away under us; whoever took it tells why in the answer to the plan.
            tracing::warn!(%error, "the tunnel device cannot be read any longer");
            self.tun = None;
        }
        let now: Instant = self.host.now();
        for ((), packet) in batch.packets() {
            clamp_mss(packet, self.mtu);
            self.client.handle_packet(
                packet,
                &mut Outbox {
                    sealed: &mut self.sealed,
                    remote: None,
                },
                now,
            );
        }
        batch.clear();
        let (v4, v6) = (&self.v4.socket, &self.v6.socket);
        for (remote, datagram) in self.sealed.packets() {
            let Some(socket) = (if remote.is_ipv4() { v4 } else { v6 }) else {
                continue;
            };
            let mut sent = socket.send(remote, datagram);
            if matches!(&sent, Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
                // The machine's own queue slows the sender down rather than dropping what was sealed already.
                sent = match socket.writable().await {
                    Ok(()) => socket.send(remote, datagram),
                    Err(error) => Err(error),
                };
            }
            if let Err(error) = sent {
                tracing::trace!(%remote, %error, "a packet was not sent");
            }
        }
        self.sealed.clear();
    }
}

/// The batch of sealed packets as the client's sink.
struct Outbox<'a> {
    sealed: &'a mut Batch<SocketAddr>,
    remote: Option<SocketAddr>,
}

impl Sink for Outbox<'_> {
    fn reserve(&mut self, path: Path, len: usize) -> Option<&mut [u8]> {
        self.remote = Some(path.remote);
        self.sealed.room()?.get_mut(..len)
    }

    fn commit(&mut self, len: usize) {
        if let Some(remote) = self.remote.take() {
            self.sealed.push(len, remote);
        }
    }
}

async fn receive<S: crate::host::Socket>(
    socket: Option<&S>,
    batch: &mut Batch<SocketAddr>,
) -> io::Result<()> {
    match socket {
        Some(socket) => socket.recv(batch).await,
        None => pending().await,
    }
}

async fn read<T: crate::host::Tun>(tun: Option<&T>, batch: &mut Batch<()>) -> io::Result<()> {
    match tun {
        Some(tun) => tun.recv(batch).await,
        None => pending().await,
    }
}
