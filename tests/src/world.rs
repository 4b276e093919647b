//! One client, one gateway, the network between them, and a clock that jumps to whatever happens next.

mod connections;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use peregrine_core::client::Client;
use peregrine_core::command::{
    Answer, Ask, Bound, Command, Endpoint, Event, Failure, Fetch, Happening, HostFault, Path, Prompt,
    PromptId, RekeyKind, Sink, State, Status, Transport,
};
use peregrine_core::crypto::Secret;
use peregrine_core::plan::{Lock, Plan};
use peregrine_core::profile::{Credentials, Profile};
use peregrine_core::timer::{Instant, UnixTime};
use peregrine_core::wire::{EspSpi, IkeSpi};

use crate::gateway::{Gateway, SaSet};
use crate::link::{Interface, Link, Way};

use connections::{Connection, Happens};

/// The wall-clock time at which every world begins: 2026-11-21T00:00:00Z.
pub const BEGINNING: UnixTime = UnixTime(Duration::from_secs(1_795_219_200));

/// Everything.
pub struct World {
    /// The present.
    pub now: Instant,
    /// The client under test.
    pub client: Client,
    /// The gateway.
    pub gateway: Gateway,
    /// The network.
    pub link: Link,
    /// What host names resolve to.
    pub names: BTreeMap<String, Vec<IpAddr>>,
    /// What is at URLs, and how long fetching it takes; what is not here never answers.
    pub pages: BTreeMap<String, Page>,
    /// Everything that the client fetched, in order.
    pub fetched: Vec<(Instant, Fetch)>,
    /// Addresses that this machine has no route for.
    pub unreachable: Vec<IpAddr>,
    /// What applying a plan shall fail with.
    pub apply_fault: Option<HostFault>,
    /// What locking the machine shall fail with.
    pub lock_fault: Option<HostFault>,
    /// How long applying a plan takes.
    pub plan_takes: Duration,
    /// What this machine lets out: the lock of the last plan that was applied.
    pub lock: Lock,
    /// What this machine did not let out.
    pub refused: Vec<(Instant, Endpoint)>,
    /// What the user answers to prompts, in order; when there is nothing left, the user does not answer.
    pub replies: VecDeque<Option<Secret>>,
    /// Every prompt, in order.
    pub prompts: Vec<(Instant, Prompt)>,
    /// Every plan, in order.
    pub plans: Vec<Plan>,
    /// Every status, in order.
    pub statuses: Vec<(Instant, Status)>,
    /// What happened to the connection, in order.
    pub happenings: Vec<(Instant, Happening)>,
    /// Inner packets that reached the client.
    pub received: Vec<Vec<u8>>,
    /// Every datagram of the client's: when, whither, what.
    pub sent: Vec<(Instant, Path, Vec<u8>)>,
    /// The most timeouts that the client had at one instant.
    pub busiest: u32,
    /// How many there were at which instant last.
    timeouts: (Instant, u32),
    queue: BinaryHeap<Reverse<(Instant, u64, Delivery)>>,
    serial: u64,
    connections: Vec<Connection>,
    tcp_port: u16,
    /// After so many octets more this way the connection that carries them is reset.
    pub cut: Option<(Way, usize)>,
    /// How many octets TCP connections have carried.
    pub octets_carried: usize,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Delivery {
    ToGateway(Path, Vec<u8>),
    ToClient(Path, Vec<u8>),
    /// What this fetch, by its place among all, was for.
    Fetched(usize),
    /// The plan with this place among all is applied.
    Applied(usize),
    Tcp(u64, Happens),
}

/// How long fetching takes, and what comes of it.
pub type Page = (Duration, Result<Vec<u8>, HostFault>);

/// Sealed packets on their way out of the client.
#[derive(Default)]
struct Outbox {
    path: Option<Path>,
    room: Vec<u8>,
    sealed: Vec<(Path, Vec<u8>)>,
}

impl Sink for Outbox {
    fn reserve(&mut self, path: Path, len: usize) -> Option<&mut [u8]> {
        self.path = Some(path);
        self.room = vec![0; len];
        Some(&mut self.room)
    }

    fn commit(&mut self, len: usize, _: u8) {
        self.room.truncate(len);
        if let Some(path) = self.path {
            self.sealed.push((path, std::mem::take(&mut self.room)));
        }
    }
}

impl World {
    /// A world in which everything works.
    #[must_use]
    pub fn new(gateway: Gateway, seed: u64) -> Self {
        let mut octets = [0x57; 32];
        octets[..8].copy_from_slice(&seed.to_be_bytes());
        let now = Instant::new(Duration::from_secs(1000));
        Self {
            now,
            client: Client::new(octets, now, BEGINNING),
            gateway,
            link: Link::new(seed),
            names: BTreeMap::new(),
            pages: BTreeMap::new(),
            fetched: Vec::new(),
            unreachable: Vec::new(),
            apply_fault: None,
            lock_fault: None,
            plan_takes: Duration::ZERO,
            lock: Lock::Open,
            refused: Vec::new(),
            replies: VecDeque::new(),
            prompts: Vec::new(),
            plans: Vec::new(),
            statuses: Vec::new(),
            happenings: Vec::new(),
            received: Vec::new(),
            sent: Vec::new(),
            busiest: 0,
            timeouts: (now, 0),
            queue: BinaryHeap::new(),
            serial: 0,
            connections: Vec::new(),
            tcp_port: connections::FIRST_PORT,
            cut: None,
            octets_carried: 0,
        }
    }

    /// Tells the client to connect.
    pub fn connect(&mut self, profile: Profile, credentials: Credentials) {
        self.client
            .handle_command(Command::Connect(Box::new(profile), credentials), self.now);
        self.drain();
    }

    /// Tells the client to disconnect.
    pub fn disconnect(&mut self) {
        self.client.handle_command(Command::Disconnect, self.now);
        self.drain();
    }

    /// Tells the client to replace an SA.
    pub fn rekey(&mut self, kind: RekeyKind) {
        self.client.handle_command(Command::Rekey(kind), self.now);
        self.drain();
    }

    /// Gives the client a command of the user's.
    pub fn command(&mut self, command: Command) {
        self.client.handle_command(command, self.now);
        self.drain();
    }

    /// Gives the client the user's answer to a prompt.
    pub fn reply(&mut self, id: PromptId, answer: Option<Secret>) {
        self.client.handle_answer(Answer::Reply(id, answer), self.now);
        self.drain();
    }

    /// Sends an inner packet from the client's machine.
    pub fn send(&mut self, packet: &[u8]) {
        let mut outbox = Outbox::default();
        self.client.handle_packet(packet, &mut outbox, self.now);
        for (path, sealed) in outbox.sealed {
            self.carry_up(path, sealed);
        }
        self.drain();
    }

    /// Lets the gateway do something of its own.
    pub fn gateway_does(&mut self, act: impl FnOnce(&mut Gateway, Instant) -> Vec<(Path, Vec<u8>)>) {
        let sent = act(&mut self.gateway, self.now);
        self.carry_down(sent);
    }

    /// The machine leaves all networks for this one.
    pub fn move_to(&mut self, interface: Interface) {
        self.link.interfaces = vec![interface];
        self.tell_network();
    }

    /// The machine is in this network too, and prefers it.
    pub fn join(&mut self, interface: Interface) {
        self.link.interfaces.insert(0, interface);
        self.tell_network();
    }

    /// The machine leaves the network of this name.
    pub fn leave(&mut self, name: &str) {
        self.link.interfaces.retain(|interface| interface.name != name);
        self.tell_network();
    }

    /// The machine leaves all networks.
    pub fn go_offline(&mut self) {
        self.link.interfaces.clear();
        self.tell_network();
    }

    /// Nothing gets through any more in the network of this name, and nobody says so.
    pub fn black_hole(&mut self, name: &str) {
        for interface in &mut self.link.interfaces {
            interface.is_dead |= interface.name == name;
        }
    }

    /// The route by the network of this name is gone: nothing gets out there any more, and what is on its way still
    /// comes in. The other networks are preferred.
    pub fn lose_route(&mut self, name: &str) {
        let (left, mut rest): (Vec<_>, Vec<_>) = std::mem::take(&mut self.link.interfaces)
            .into_iter()
            .partition(|interface| interface.name == name);
        rest.extend(left.into_iter().map(|interface| Interface {
            takes_nothing: true,
            ..interface
        }));
        self.link.interfaces = rest;
        self.tell_network();
    }

    /// The NATs forget the client, and nobody says so: it appears from another port, and the old one leads nowhere.
    pub fn rebind_nat(&mut self) {
        self.link.forget_mappings();
        self.stick_connections();
    }

    /// The machine sleeps: its clock goes on, and nothing else. What is sent to it meanwhile is lost, and connections do
    /// not survive it.
    ///
    /// # Panics
    ///
    /// If the gateway does not come to rest.
    pub fn sleep(&mut self, span: Duration) {
        let end = self.now + span;
        self.stick_connections();
        let mut heard_later = Vec::new();
        for _ in 0..1_000_000 {
            let arrival = self.queue.peek().map(|Reverse((due, ..))| *due);
            let next = [arrival, self.gateway.poll_timeout()];
            let Some(next) = next.into_iter().flatten().min().filter(|next| *next <= end) else {
                self.now = end;
                for (id, what) in heard_later {
                    self.enqueue(Duration::ZERO, Delivery::Tcp(id, what));
                }
                self.tell_network();
                return;
            };
            self.now = self.now.max(next);
            if arrival != Some(next) {
                let sent = self.gateway.handle_timeout(self.now);
                self.carry_down(sent);
                continue;
            }
            match self.queue.pop() {
                Some(Reverse((_, _, Delivery::ToGateway(path, datagram)))) => {
                    let answers = self.gateway.handle(path, &datagram, self.now);
                    self.carry_down(answers);
                }
                Some(Reverse((
                    _,
                    _,
                    Delivery::Tcp(id, what @ (Happens::Octets(true, _) | Happens::Finished)),
                ))) => {
                    self.happens(id, what);
                }
                Some(Reverse((_, _, Delivery::Tcp(id, what)))) => heard_later.push((id, what)),
                Some(_) | None => {}
            }
        }
        panic!(
            "the gateway does not come to rest: {:?}",
            self.gateway.poll_timeout()
        );
    }

    /// Networks may have changed, or the machine has woken: what a real host tells its client then.
    fn tell_network(&mut self) {
        self.client.handle_network(self.now);
        self.drain();
    }

    /// The SAs that the client shows in its status, in the gateway's terms.
    ///
    /// # Panics
    ///
    /// If the status shows something else than SPIs.
    #[must_use]
    pub fn client_sa_set(&self) -> SaSet {
        let status = self.status();
        let esp = |text: &str| EspSpi(u32::from_str_radix(text, 16).expect("an SPI"));
        let ike = |text: &str| IkeSpi(u64::from_str_radix(text, 16).expect("an SPI").to_be_bytes());
        let children: BTreeSet<_> = status
            .child_sas
            .iter()
            .map(|child| (esp(&child.outbound_spi), esp(&child.inbound_spi)))
            .collect();
        let sas = status
            .ike_sa
            .iter()
            .map(|sa| ((ike(&sa.initiator_spi), ike(&sa.responder_spi)), children.clone()));
        sas.collect()
    }

    /// Both ends have the same SAs.
    #[must_use]
    pub fn ends_agree(&self) -> bool {
        self.client_sa_set() == self.gateway.sa_set()
    }

    /// The client's last status.
    #[must_use]
    pub fn status(&self) -> Status {
        self.client.status()
    }

    /// How the last attempt or connection failed.
    #[must_use]
    pub fn failure(&self) -> Option<Failure> {
        self.status().failure
    }

    /// Runs until `done` or for `limit`, whichever comes first; whether it was done.
    pub fn run_until(&mut self, limit: Duration, mut done: impl FnMut(&Self) -> bool) -> bool {
        let end = self.now + limit;
        for _ in 0..200_000 {
            if done(self) {
                return true;
            }
            let next = [
                self.queue.peek().map(|Reverse((due, ..))| *due),
                self.client.poll_timeout().map(|(due, _)| due),
                self.gateway.poll_timeout(),
            ];
            let Some(next) = next.into_iter().flatten().min().filter(|next| *next <= end) else {
                self.now = self.now.max(end);
                return done(self);
            };
            self.now = self.now.max(next);
            self.happen();
        }
        panic!(
            "the world does not come to rest: {:?}",
            self.client.poll_timeout()
        );
    }

    /// Runs for `span`.
    pub fn run(&mut self, span: Duration) {
        self.run_until(span, |_| false);
    }

    /// Connects and waits until the machine uses the tunnel, or the attempt has failed.
    pub fn connect_and_wait(&mut self, profile: Profile, credentials: Credentials) -> Result<(), Failure> {
        self.connect(profile, credentials);
        self.run_until(Duration::from_secs(300), |world| {
            matches!(
                world.status().state,
                State::Connected | State::Idle | State::Blocked
            )
        });
        match self.failure() {
            Some(failure) => Err(failure),
            None if self.status().state == State::Connected => Ok(()),
            None => panic!("neither connected nor failed: {:?}", self.status()),
        }
    }

    fn happen(&mut self) {
        if let Some((due, _)) = self.client.poll_timeout()
            && due <= self.now
        {
            let (last, count) = self.timeouts;
            self.timeouts = (self.now, if last == self.now { count + 1 } else { 1 });
            self.busiest = self.busiest.max(self.timeouts.1);
            self.client.handle_timeout(self.now);
            self.drain();
            return;
        }
        if self.gateway.poll_timeout().is_some_and(|due| due <= self.now) {
            let again = self.gateway.handle_timeout(self.now);
            self.carry_down(again);
            return;
        }
        let Some(Reverse((_, _, delivery))) = self.queue.pop() else {
            return;
        };
        match delivery {
            Delivery::ToGateway(path, datagram) => {
                let answers = self.gateway.handle(path, &datagram, self.now);
                self.carry_down(answers);
            }
            Delivery::Fetched(place) => {
                let fetch = &self.fetched[place].1;
                let page = self.pages.get(&fetch.url.to_string());
                if let Some((_, result)) = page {
                    let answer = Answer::Fetched(fetch.id, result.clone());
                    self.client.handle_answer(answer, self.now);
                    self.drain();
                }
            }
            Delivery::Applied(place) => {
                self.apply(place);
                self.drain();
            }
            // Whatever comes to an address that the machine has left is lost.
            Delivery::ToClient(path, _) if !self.link.is_here(path.local.ip()) => {}
            Delivery::Tcp(id, what) => self.happens(id, what),
            Delivery::ToClient(path, mut datagram) => {
                if let Some(packet) = self.client.handle_datagram(path, &mut datagram, self.now) {
                    self.received.push(packet.to_vec());
                }
                self.drain();
            }
        }
    }

    fn drain(&mut self) {
        loop {
            if let Some(transmit) = self.client.poll_transmit() {
                self.carry_up(transmit.path, transmit.payload.into_vec());
            } else if let Some(event) = self.client.poll_event() {
                self.act(event);
            } else {
                break;
            }
        }
        let mut outbox = Outbox::default();
        self.client.send_waiting(&mut outbox, self.now);
        for (path, sealed) in outbox.sealed {
            self.carry_up(path, sealed);
        }
    }

    fn act(&mut self, event: Event) {
        let answer = match event {
            Event::Status(status) => {
                self.statuses.push((self.now, *status));
                return;
            }
            Event::Release(socket) => return self.close_connection(socket),
            Event::Happened(happening) => {
                self.happenings.push((self.now, *happening));
                return;
            }
            Event::Plan(plan) => {
                self.plans.push(plan);
                let place = self.plans.len() - 1;
                if self.plan_takes.is_zero() {
                    return self.apply(place);
                }
                return self.enqueue(self.plan_takes, Delivery::Applied(place));
            }
            Event::Ask(Ask::Resolve(name)) => {
                if let Lock::Closed(closed) = &self.lock {
                    assert!(closed.names, "{name} cannot be looked up");
                }
                Answer::Resolved {
                    result: Ok(self.names.get(&name).cloned().unwrap_or_default()),
                    name,
                }
            }
            Event::Ask(Ask::Fetch(fetch)) => {
                if let Lock::Closed(closed) = &self.lock {
                    let port = fetch.url.port();
                    assert!(
                        closed.names && closed.fetches.contains(&port),
                        "{} cannot be fetched",
                        fetch.url
                    );
                }
                if let Some((takes, _)) = self.pages.get(&fetch.url.to_string()) {
                    self.enqueue(*takes, Delivery::Fetched(self.fetched.len()));
                }
                self.fetched.push((self.now, fetch));
                return;
            }
            Event::Ask(Ask::Bind(remote)) if !self.lets(remote) => {
                panic!("{remote:?} is behind the firewall");
            }
            Event::Ask(Ask::Bind(remote)) if remote.transport == Transport::Tcp => {
                match self.open_connection(remote) {
                    Some(answer) => answer,
                    None => return,
                }
            }
            Event::Ask(Ask::Bind(remote)) => Answer::Bound(remote, self.bind(remote.address)),
            Event::Ask(Ask::Prompt(prompt)) => {
                let id = prompt.id;
                self.prompts.push((self.now, prompt));
                let Some(reply) = self.replies.pop_front() else {
                    return;
                };
                Answer::Reply(id, reply)
            }
        };
        self.client.handle_answer(answer, self.now);
    }

    /// A plan is applied; only of the latest the client is told.
    fn apply(&mut self, place: usize) {
        if place + 1 != self.plans.len() {
            return;
        }
        let plan = &self.plans[place];
        let locks = plan.lock != Lock::Open;
        let lock_fault = if locks { self.lock_fault.take() } else { None };
        let fault = lock_fault.or_else(|| self.apply_fault.take_if(|_| plan.tunnel.is_some()));
        if fault.is_none() {
            self.lock = plan.lock.clone();
        }
        let answer = Answer::Applied(fault.map_or_else(|| Ok(Some("peregrine0".into())), Err));
        self.client.handle_answer(answer, self.now);
    }

    /// Whether the firewall lets out what our own sockets send there.
    fn lets(&self, remote: Endpoint) -> bool {
        match &self.lock {
            Lock::Open => true,
            Lock::Closed(closed) => closed.gateways.contains(&remote),
        }
    }

    fn bind(&self, remote: SocketAddr) -> Result<Bound, HostFault> {
        let route = self.link.route(remote.ip());
        let route = route.filter(|_| !self.unreachable.contains(&remote.ip()));
        let Some((local, interface)) = route else {
            return Err(HostFault {
                action: format!("reach {remote}"),
                reason: "network is unreachable".into(),
                permission: false,
            });
        };
        Ok(Bound {
            path: Path::udp(local, remote),
            mtu: interface.mtu,
            interface: Some(interface.name.clone()),
        })
    }

    fn carry_up(&mut self, path: Path, datagram: Vec<u8>) {
        if !self.lets(path.gateway()) {
            return self.refused.push((self.now, path.gateway()));
        }
        self.sent.push((self.now, path, datagram.clone()));
        if path.is_tcp() {
            return self.carry_frame(path, &datagram);
        }
        if !self.link.is_carried(path.local.ip(), datagram.len()) {
            return;
        }
        let Some(seen) = self.link.up(path, self.now) else {
            return;
        };
        for delay in self.link.carry(Way::Up, path.remote.port(), &datagram) {
            let mut copy = datagram.clone();
            self.link.damage(&mut copy);
            self.enqueue(delay, Delivery::ToGateway(seen, copy));
        }
    }

    fn carry_down(&mut self, datagrams: Vec<(Path, Vec<u8>)>) {
        for (path, datagram) in datagrams {
            if path.is_tcp() {
                self.carry_stream(path, datagram);
                continue;
            }
            let Some(seen) = self.link.down(path, self.now) else {
                continue;
            };
            if !self.link.is_carried(seen.local.ip(), datagram.len()) {
                continue;
            }
            for delay in self.link.carry(Way::Down, path.local.port(), &datagram) {
                let mut copy = datagram.clone();
                self.link.damage(&mut copy);
                self.enqueue(delay, Delivery::ToClient(seen, copy));
            }
        }
    }

    fn enqueue(&mut self, delay: Duration, delivery: Delivery) {
        self.serial += 1;
        self.queue
            .push(Reverse((self.now + delay, self.serial, delivery)));
    }
}
