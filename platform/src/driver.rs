//! The loop that moves bytes and events between [`Client`] and [`Host`]. It decides nothing.

use std::future::{Future, pending, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use peregrine_core::client::Client;
use peregrine_core::command::{
    Answer, Ask, Bound, Command, Endpoint, Event, Failure, Happening, HostFault, Path, Prompt, State, Status,
    Traffic, Transmit, Transport,
};
use peregrine_core::plan::{Lock, Plan};
use peregrine_core::timer::Instant;
use serde::{Serialize, Serializer};
use tokio::sync::mpsc;

use crate::batch::Batch;
use crate::clock::{self, Alarm as _};
use crate::dataplane::virtio;
use crate::host::{Applied, Change, Changes, Host, Tun, Way};
use crate::packets::Packets;

/// How long the end may take: the client waits two seconds for the gateway, and the host needs its time too.
const END_PATIENCE: Duration = Duration::from_secs(10);

/// The shortest time between two [`Notice::Traffic`].
const REPORT_EVERY: Duration = Duration::from_secs(1);

/// An alarm that is this late, or a sleep of this length, means that the world went on without us.
const AWAY: Duration = Duration::from_secs(1);

/// The shortest time between two suspicions, from errors of sockets alone, that networks have changed.
const DOUBT_EVERY: Duration = Duration::from_secs(1);

/// The shortest time between two repairs of what somebody else does to the machine again and again.
const REPAIR_EVERY: Duration = Duration::from_secs(15);

/// Whether the machine is locked while nothing is wanted: before the first command, and after the last.
#[derive(Clone, Debug, Default)]
pub struct Locking {
    /// The lock at the begin.
    pub at_begin: Lock,
    /// A machine that is locked at the end stays so: this program ends, but nobody has said that traffic may go beside the
    /// tunnel.
    pub stays: bool,
}

/// What the driver tells whoever runs it.
#[derive(Clone, Debug)]
pub enum Notice {
    /// The whole truth, whenever it changed. When the reader is slow, only the latest is kept.
    Status(Box<Status>),
    /// What went through, after something did, and at most once a second.
    Traffic(Traffic),
    /// Something happened to a connection that stays; lost when the reader is slow.
    Happened(Box<Happening>),
    /// A question to the user, to be answered with [`Command::Reply`].
    Prompt(Prompt),
}

/// What a program that watches is told, one JSON object each: the key `event` says which.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Report<'a> {
    /// The whole truth.
    Status(&'a Status),
    /// The counters.
    Traffic(&'a Traffic),
    /// A question.
    Prompt(&'a Prompt),
    /// Why it ended.
    Failure(&'a Failure),
}

impl Serialize for Notice {
    /// As a [`Report`], or as the [`Happening`] that it is.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Status(status) => Report::Status(status).serialize(serializer),
            Self::Traffic(traffic) => Report::Traffic(traffic).serialize(serializer),
            Self::Happened(happening) => happening.serialize(serializer),
            Self::Prompt(prompt) => Report::Prompt(prompt).serialize(serializer),
        }
    }
}

/// Runs one client on `host` until `commands` is closed: then it tells the gateway, takes everything back, and
/// returns. It belongs on a runtime with one thread; everything happens on the caller's task, and what takes long,
/// such as applying a plan or looking up a name, is a future beside it, so that packets do not wait.
///
/// The first thing it does is to put back what a crashed run left on the machine, and to lock it as `locking` says: so a
/// machine that was locked is so without a gap.
///
/// # Errors
/// What a crashed run left could not be put back, so nothing was begun; or what this run did could not be taken back
/// at its end. What became of a connection is no error here: the last [`Notice::Status`] tells it.
pub async fn run<H: Host>(
    host: &H,
    locking: Locking,
    mut commands: mpsc::Receiver<Command>,
    notices: mpsc::Sender<Notice>,
) -> Result<(), HostFault> {
    let first = Plan {
        tunnel: None,
        lock: locking.at_begin,
    };
    host.apply(first.clone()).await?;
    let mut client = Client::new(clock::seed()?, host.now(), host.unix_time());
    client.begin_locked(&first.lock);
    let mut alarm = host.alarm()?;
    let mut changes = host.changes().map_or_else(
        |fault| {
            tracing::warn!(%fault, "a change of networks is noticed only when nothing gets through");
            None
        },
        Some,
    );
    let mut driver = Driver::new(host, client, first, locking.stays, notices);

    let mut inbound = Batch::for_received();
    let mut outbound = Batch::new();
    let mut report = pin!(tokio::time::sleep(Duration::ZERO));
    let mut report_is_due = false;
    let mut end_by = None;
    while end_by.is_none() || !driver.is_at_rest() {
        let next = driver.client.poll_timeout().map(|(at, _)| at);
        let due = next.into_iter().chain(end_by).chain(driver.repair_at).min();
        alarm.set(due);

        let Driver {
            packets: Packets { links, tun, .. },
            plans,
            answers,
            connecting,
            notices,
            unsent,
            unasked,
            ..
        } = &mut driver;
        let has_room = links.has_room();
        let wake = tokio::select! {
            () = poll_fn(|cx| links.poll(cx, &mut inbound)) => Wake::Sockets,
            // While sealed packets wait for room, the next ones wait in the device's queue.
            read = read(tun.as_ref(), &mut outbound), if has_room => Wake::Packets(read),
            applied = finish(&mut plans.running) => Wake::Applied(applied),
            Some(answer) = answers.next() => Wake::Answer(answer),
            Some(connected) = connecting.next() => Wake::Connected(connected),
            command = commands.recv(), if end_by.is_none() => Wake::Command(command),
            () = alarm.ring() => Wake::Time,
            change = next_change(changes.as_mut()) => Wake::Change(change),
            Ok(room) = notices.reserve(), if unsent.is_some() || unasked.is_some() => {
                let status = unsent.take().map(Notice::Status);
                if let Some(notice) = status.or_else(|| unasked.take().map(Notice::Prompt)) {
                    room.send(notice);
                }
                continue;
            }
            () = &mut report, if report_is_due => Wake::Report,
        };
        let now = driver.host.now();
        // Where everything that can be read at once was read, there may be more.
        let flooded = outbound.is_flooded() || inbound.is_flooded();
        // Before anything else, so that no peer is given up for its silence while we were away.
        driver.look_away(due, now);
        match wake {
            Wake::Sockets => driver.packets.open(&mut driver.client, &mut inbound, now),
            Wake::Packets(Ok(())) => driver.packets.seal(&mut driver.client, &mut outbound, now),
            Wake::Packets(Err(error)) => driver.lose_tun(&error),
            Wake::Change(Change::Networks) => driver.client.handle_network(now),
            Wake::Change(Change::Woke) => driver.wake(now),
            Wake::Change(Change::Plan) => driver.repair_soon(now),
            Wake::Applied(result) => driver.applied(result, now),
            Wake::Answer(answer) => driver.client.handle_answer(answer, now),
            Wake::Connected(connected) => driver.connected(connected, now),
            Wake::Command(Some(command)) => driver.client.handle_command(command, now),
            Wake::Command(None) => {
                end_by = Some(now + END_PATIENCE);
                let end = if driver.stays_locked {
                    Command::Rest
                } else {
                    Command::Disconnect
                };
                driver.client.handle_command(end, now);
            }
            Wake::Time => {
                driver.repair(now);
                driver.client.handle_timeout(now);
            }
            Wake::Report => {
                report_is_due = false;
                driver.report();
            }
        }
        if !report_is_due && driver.packets.moved {
            report_is_due = true;
            report.as_mut().reset(tokio::time::Instant::now() + REPORT_EVERY);
        }
        driver.drain(now);
        driver.tell_closed(now);
        driver.look_at_doubt(now);
        if end_by.is_some_and(|end_by| now >= end_by) {
            tracing::warn!("the connection did not end in time");
            break;
        }
        if flooded {
            // A descriptor that stays ready never waits: others on this thread, such as the one who would stop us,
            // must get their turn under a flood of packets too.
            tokio::task::yield_now().await;
        }
    }
    driver.end().await
}

/// What happened.
enum Wake<T, C> {
    /// Datagrams came in, or there may be room to send again.
    Sockets,
    Packets(io::Result<()>),
    Change(Change),
    Applied(Result<Applied<T>, HostFault>),
    Answer(Answer),
    Connected(Connected<C>),
    Command(Option<Command>),
    Time,
    Report,
}

type Pending<T> = Pin<Box<dyn Future<Output = T>>>;

/// A TCP connection, or why there is none.
struct Connected<C> {
    remote: SocketAddr,
    way: Way,
    result: Result<C, HostFault>,
}

struct Driver<'h, H: Host> {
    host: &'h H,
    client: Client,
    packets: Packets<H::Tun, H::Socket, H::Stream>,
    plans: Plans<H::Tun>,
    /// The last plan could not be applied; something of ours may be left.
    failed: bool,
    /// A machine that is locked at the end stays so.
    stays_locked: bool,
    answers: FuturesUnordered<Pending<Answer>>,
    /// TCP connections that are being opened.
    connecting: FuturesUnordered<Pending<Connected<H::Stream>>>,
    /// The way on which a connection to each of these addresses was last asked for.
    ways: Vec<(SocketAddr, Way)>,
    /// How long the machine had slept when we looked last.
    slept: Duration,
    /// When we last noticed that the world had gone on without us.
    woken: Option<Instant>,
    /// When anything last happened.
    turned: Instant,
    /// When an error of a socket last made us look for other ways.
    doubted: Option<Instant>,
    /// When the plan was last applied again because of somebody else, and when it shall be.
    repaired: Option<Instant>,
    repair_at: Option<Instant>,
    notices: mpsc::Sender<Notice>,
    /// The latest status, when there was no room for it.
    unsent: Option<Box<Status>>,
    /// The latest question, when there was no room for it.
    unasked: Option<Prompt>,
    state: State,
    reported: Traffic,
}

impl<'h, H: Host> Driver<'h, H> {
    fn new(
        host: &'h H,
        client: Client,
        wanted: Plan,
        stays_locked: bool,
        notices: mpsc::Sender<Notice>,
    ) -> Self {
        Self {
            host,
            client,
            packets: Packets::new(),
            plans: Plans {
                wanted,
                running: None,
                outdated: false,
            },
            failed: false,
            stays_locked,
            answers: FuturesUnordered::new(),
            connecting: FuturesUnordered::new(),
            ways: Vec::new(),
            slept: host.slept(),
            woken: None,
            turned: host.now(),
            doubted: None,
            repaired: None,
            repair_at: None,
            notices,
            unsent: None,
            unasked: None,
            state: State::Idle,
            reported: Traffic::default(),
        }
    }

    /// Nothing is up and nothing is under way.
    fn is_at_rest(&self) -> bool {
        let is_resting = match self.state {
            State::Idle => true,
            State::Blocked => self.stays_locked,
            _ => false,
        };
        is_resting && self.plans.running.is_none()
    }

    /// The tunnel device is gone although nobody asked for that: make the machine equal to the plan again.
    fn lose_tun(&mut self, error: &io::Error) {
        self.packets.set_device(None);
        if self.plans.wanted.tunnel.is_none() {
            return; // it goes because we take it back
        }
        tracing::warn!(%error, "the tunnel device is gone");
        let wanted = self.plans.wanted.clone();
        self.plans.ask(self.host, wanted);
    }

    /// Notices that the machine slept, or that this process was stopped: then an alarm rings long after its time.
    fn look_away(&mut self, due: Option<Instant>, now: Instant) {
        let slept = self.host.slept();
        let has_slept = slept.saturating_sub(self.slept) >= AWAY;
        // What is due before the last turn's time was due at once, and never waited for.
        let last = std::mem::replace(&mut self.turned, now);
        let is_late = due.is_some_and(|due| due >= last && now.since(due) >= AWAY);
        if has_slept || is_late {
            self.wake(now);
        }
    }

    /// The world went on without us. More than one thing may tell so.
    fn wake(&mut self, now: Instant) {
        self.slept = self.host.slept();
        if self.woken.is_some_and(|last| now.since(last) < AWAY) {
            return;
        }
        tracing::debug!("woken");
        self.woken = Some(now);
        self.client.handle_network(now);
    }

    /// Looks for other ways when a socket said that its own may be gone.
    fn look_at_doubt(&mut self, now: Instant) {
        let is_soon = self.doubted.is_some_and(|last| now.since(last) < DOUBT_EVERY);
        if self.packets.links.take_doubt() && !is_soon {
            self.doubted = Some(now);
            self.client.handle_network(now);
            self.drain(now);
        }
    }

    /// Somebody else changed what the plan put on the machine.
    fn repair_soon(&mut self, now: Instant) {
        if self.plans.wanted == Plan::default() {
            return;
        }
        let earliest = self.repaired.map_or(now, |last| last + REPAIR_EVERY);
        self.repair_at = Some(earliest.max(now));
        self.repair(now);
    }

    /// Makes the machine equal to the plan again, when it is time to.
    fn repair(&mut self, now: Instant) {
        if self.repair_at.is_none_or(|at| now < at) {
            return;
        }
        self.repair_at = None;
        if self.plans.wanted != Plan::default() {
            tracing::warn!(
                "somebody changed the tunnel's device, routes, rules, name servers or firewall; putting them back"
            );
            self.repaired = Some(now);
            let wanted = self.plans.wanted.clone();
            self.plans.ask(self.host, wanted);
        }
    }

    /// A plan was applied, or could not be.
    fn applied(&mut self, result: Result<Applied<H::Tun>, HostFault>, now: Instant) {
        self.plans.running = None;
        self.failed = result.is_err();
        let answer = match result {
            Ok(Applied { tun, interface }) => {
                if tun.is_some() || interface.is_none() {
                    self.packets.set_device(tun);
                }
                Ok(interface)
            }
            Err(fault) => {
                self.packets.set_device(None);
                Err(fault)
            }
        };
        if self.plans.outdated {
            let wanted = self.plans.wanted.clone();
            self.plans.ask(self.host, wanted);
        } else {
            self.client.handle_answer(Answer::Applied(answer), now);
        }
    }

    /// Acts on what the client wants until it wants nothing more, and sends what there is to send.
    fn drain(&mut self, now: Instant) {
        loop {
            while let Some(transmit) = self.client.poll_transmit() {
                self.queue(&transmit);
            }
            // A question may be answered at once, and the answer may have consequences.
            let Some(event) = self.client.poll_event() else {
                break;
            };
            self.act(event, now);
        }
        self.client.send_waiting(&mut self.packets.links, now);
        self.packets.links.flush();
        if matches!(self.state, State::Idle | State::Blocked) {
            self.packets.links.clear();
            self.connecting.clear();
            self.ways.clear();
        }
    }

    /// Tells the client of connections that have ended, until none has.
    fn tell_closed(&mut self, now: Instant) {
        loop {
            let closed = self.packets.links.take_closed();
            if closed.is_empty() {
                return;
            }
            for socket in closed {
                self.client.handle_closed(socket, now);
            }
            self.drain(now);
        }
    }

    fn act(&mut self, event: Event, now: Instant) {
        match event {
            Event::Ask(Ask::Resolve(name)) => {
                let resolving = self.host.resolve(name.clone());
                self.answers.push(Box::pin(async {
                    Answer::Resolved {
                        name,
                        result: resolving.await,
                    }
                }));
            }
            Event::Ask(Ask::Bind(remote)) => {
                let bound = match remote.transport {
                    Transport::Udp => self.bind(remote.address),
                    Transport::Tcp => match self.host.way(remote.address) {
                        Ok(way) => return self.connect(remote.address, way),
                        Err(fault) => Err(fault),
                    },
                };
                self.client.handle_answer(Answer::Bound(remote, bound), now);
            }
            Event::Ask(Ask::Prompt(prompt)) => {
                // There is one at a time. If nobody listens any more, the client's patience ends.
                let told = self.notices.try_send(Notice::Prompt(prompt));
                if let Err(mpsc::error::TrySendError::Full(Notice::Prompt(prompt))) = told {
                    self.unasked = Some(prompt);
                }
            }
            Event::Ask(Ask::Fetch(fetch)) => {
                let (id, fetching) = (fetch.id, self.host.fetch(fetch));
                self.answers
                    .push(Box::pin(async move { Answer::Fetched(id, fetching.await) }));
            }
            Event::Plan(plan) => self.plans.ask(self.host, plan),
            Event::Happened(happening) => {
                let _not_read = self.notices.try_send(Notice::Happened(happening));
            }
            Event::Release(local) => self.packets.links.release(local),
            Event::Status(status) => {
                self.state = status.state;
                // An earlier one that still waits is overtaken: each says everything.
                self.unsent = None;
                // If nobody listens any more, the end comes by the other channel.
                let told = self.notices.try_send(Notice::Status(status));
                if let Err(mpsc::error::TrySendError::Full(Notice::Status(status))) = told {
                    self.unsent = Some(status);
                }
            }
        }
    }

    /// The socket on the way to `remote`, which is opened if there is none yet.
    fn bind(&mut self, remote: SocketAddr) -> Result<Bound, HostFault> {
        let way = self.host.way(remote)?;
        let local = match self.packets.links.on(&way) {
            Some(local) => local,
            None => self.packets.links.add(self.host.open(&way)?, &way),
        };
        Ok(Bound {
            path: Path::udp(local, remote),
            mtu: way.mtu,
            interface: way.interface.map(|interface| interface.name),
        })
    }

    /// Begins to open a connection.
    fn connect(&mut self, remote: SocketAddr, way: Way) {
        self.ways.retain(|(other, _)| *other != remote);
        self.ways.push((remote, way.clone()));
        let connecting = self.host.connect(&way, remote);
        self.connecting.push(Box::pin(async move {
            Connected {
                remote,
                way,
                result: connecting.await,
            }
        }));
    }

    /// A connection is there, or cannot be had. One on a way that has been left since nobody waits for any more.
    fn connected(&mut self, connected: Connected<H::Stream>, now: Instant) {
        let Connected { remote, way, result } = connected;
        if !self
            .ways
            .iter()
            .any(|(other, latest)| *other == remote && *latest == way)
        {
            return;
        }
        let bound = result.map(|stream| Bound {
            path: self.packets.links.connect(stream, remote),
            mtu: way.mtu,
            interface: way.interface.map(|interface| interface.name),
        });
        self.client
            .handle_answer(Answer::Bound(Endpoint::tcp(remote), bound), now);
    }

    fn queue(&mut self, transmit: &Transmit) {
        if !self.packets.links.queue(transmit) {
            let Path { local, remote, .. } = transmit.path;
            tracing::debug!(%local, %remote, "no socket with room to send; it will be sent again");
        }
    }

    /// Tells what went through, and once more when nothing did since, so that a watcher sees that it has stopped.
    fn report(&mut self) {
        let traffic = self.client.traffic();
        let again = traffic != self.reported;
        if std::mem::replace(&mut self.packets.moved, again) {
            self.reported = traffic.clone();
            // A reader without room for it has not looked at the last one yet.
            let _not_read = self.notices.try_send(Notice::Traffic(traffic));
        }
    }

    /// Leaves nothing of ours on the machine.
    async fn end(mut self) -> Result<(), HostFault> {
        // What could not be taken back is tried once more, and is told if it stays.
        let lock = if self.stays_locked {
            self.plans.wanted.lock.clone()
        } else {
            Lock::Open
        };
        let last = Plan { tunnel: None, lock };
        let is_clean = self.plans.wanted == last && self.plans.running.is_none() && !self.failed;
        let result = if is_clean {
            Ok(())
        } else {
            self.host.apply(last).await.map(drop)
        };
        if let Some(status) = self.unsent.take() {
            let told = self
                .notices
                .send_timeout(Notice::Status(status), REPORT_EVERY)
                .await;
            if told.is_err() {
                tracing::debug!("nobody reads the last status");
            }
        }
        result
    }
}

/// The plan that is wanted and the one that is being applied.
struct Plans<T> {
    wanted: Plan,
    running: Option<Pending<Result<Applied<T>, HostFault>>>,
    /// What is being applied is not what is wanted any more.
    outdated: bool,
}

impl<T> Plans<T> {
    /// Applies `plan`, after the one that is being applied. Of those that wait, the latest wins.
    fn ask<H: Host<Tun = T>>(&mut self, host: &H, plan: Plan) {
        self.wanted = plan;
        self.outdated = self.running.is_some();
        if !self.outdated {
            self.running = Some(Box::pin(host.apply(self.wanted.clone())));
        }
    }
}

async fn read<T: Tun>(tun: Option<&T>, batch: &mut Batch<virtio::Header>) -> io::Result<()> {
    match tun {
        Some(tun) => tun.recv(batch).await,
        None => pending().await,
    }
}

async fn next_change(changes: Option<&mut impl Changes>) -> Change {
    match changes {
        Some(changes) => changes.next().await,
        None => pending().await,
    }
}

async fn finish<T>(running: &mut Option<Pending<T>>) -> T {
    match running {
        Some(running) => running.await,
        None => pending().await,
    }
}
