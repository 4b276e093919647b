//! The VPN's life as a state machine: resolve, race addresses, connect, stay connected, connect again, disconnect.
//!
//! After any input, drain [`Client::poll_transmit`] and [`Client::poll_event`], and call [`Client::handle_timeout`]
//! at the instant that [`Client::poll_timeout`] names.

mod attempt;
mod gate;
mod lost;
mod race;
mod status;
mod switch;
mod up;
mod waiting;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use self::attempt::{Attempt, Ready};
use self::gate::{Gate, LockPolicy};
use self::lost::Lost;
use self::up::Up;
use self::waiting::Waiting;
use crate::command::{
    Answer, Cause, Command, Endpoint, Event, Failure, HostFault, Path, PromptId, Sink, Stage, Traffic,
    Transmit,
};
use crate::crypto::Secret;
use crate::esp::{self, Discard};
use crate::ike::{Cx, IKE_PORT, IkeSa, News, SaConfig, add_traffic};
use crate::pki::revocation;
use crate::plan::{Lock, Plan};
use crate::rng::Rng;
use crate::timer::{Instant, Timer, UnixTime};
use crate::wire::Header;
use crate::wire::iana::{ExchangeType, NotifyType, PayloadType};
use crate::wire::{Message, Payload};

/// No more SAs wait for the confirmation of their Delete at once.
const MAX_RETIRED: usize = 4;

/// How large an inner packet may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InnerMtu {
    /// The largest that the path carries, in octets.
    pub octets: u16,
    /// It was found out, or is the profile's: what is larger does not get through. Else it is a cautious beginning.
    pub is_proven: bool,
}

/// One client with at most one tunnel.
pub struct Client {
    io: Io,
    phase: Phase,
    /// SAs that others have replaced, until they are deleted; they still take what is on its way.
    retired: Vec<IkeSa>,
    /// Our ends of the TCP connections that are open.
    connections: Vec<Endpoint>,
    /// Packets for the SA that is on its way.
    waiting: Waiting,
    /// What the firewall lets out.
    gate: Gate,
    /// How often the user has wanted a tunnel.
    connects: u64,
    /// What the status says besides the phase.
    shown: Shown,
}

/// What every state writes to.
struct Io {
    rng: Rng,
    started: Instant,
    started_unix: UnixTime,
    out: VecDeque<Transmit>,
    news: VecDeque<News>,
    events: VecDeque<Event>,
    revocations: revocation::Cache,
}

impl Io {
    fn unix(&self, now: Instant) -> UnixTime {
        UnixTime(self.started_unix.0.saturating_add(now.since(self.started)))
    }

    fn cx(&mut self, now: Instant) -> Cx<'_> {
        self.split(now).0
    }

    /// What SAs write to, and beside it what the client itself does.
    fn split(&mut self, now: Instant) -> (Cx<'_>, &mut VecDeque<Event>) {
        let unix = self.unix(now);
        let cx = Cx {
            now,
            unix,
            rng: &mut self.rng,
            out: &mut self.out,
            news: &mut self.news,
            revocations: &mut self.revocations,
        };
        (cx, &mut self.events)
    }
}

enum Phase {
    Idle,
    Connecting(Box<Attempt>),
    /// The SA is up, and the machine uses it or is about to.
    Up(Box<Up>),
    /// The SA is gone; the tunnel device stays, and a new SA is on its way.
    Lost(Box<Lost>),
    Leaving(Box<Leaving>),
}

/// Everything is being taken down.
struct Leaving {
    sa: Option<IkeSa>,
    /// The host has yet to confirm that nothing of ours is left on the machine.
    applying: bool,
    failure: Option<Failure>,
    next: Option<Arc<SaConfig>>,
    /// A machine that is locked stays so.
    stays_locked: bool,
}

/// Why everything is taken down, and what comes then.
enum Then {
    /// The user wants no tunnel: the machine is open.
    Open,
    /// Nobody is there to want one any more: a machine that is locked stays so.
    Rest,
    /// It failed: the same.
    Fail(Failure),
    /// The user wants another one.
    Connect(Arc<SaConfig>),
}

#[derive(Default)]
struct Shown {
    profile: Option<String>,
    host: Option<String>,
    since: Option<UnixTime>,
    attempt: u32,
    stage: Option<Stage>,
    failure: Option<Failure>,
    /// Of the SAs before the present one.
    traffic: Traffic,
    /// Packets that no tunnel was there for, and datagrams that belong to none.
    no_tunnel: u64,
    unknown_spi: u64,
    no_room: u64,
    /// Packets that met congestion on the way and could not be marked.
    congested: u64,
}

impl Client {
    /// A client that is idle. `seed` is fresh entropy; `now` is on the host's clock and `unix` the wall-clock time at
    /// that instant, for the validity of certificates.
    #[must_use]
    pub fn new(seed: [u8; 32], now: Instant, unix: UnixTime) -> Self {
        let io = Io {
            rng: Rng::new(seed),
            started: now,
            started_unix: unix,
            out: VecDeque::new(),
            news: VecDeque::new(),
            events: VecDeque::new(),
            revocations: revocation::Cache::default(),
        };
        Self {
            io,
            phase: Phase::Idle,
            retired: Vec::new(),
            connections: Vec::new(),
            waiting: Waiting::default(),
            gate: Gate::default(),
            connects: 0,
            shown: Shown::default(),
        }
    }

    /// The machine is locked already, from an earlier run or a host that does so at its begin. It stays so until
    /// [`Command::Disconnect`], or a profile without a kill switch.
    pub fn begin_locked(&mut self, lock: &Lock) {
        self.gate.begin(lock);
        if self.gate.is_locked() {
            self.announce();
        }
    }

    /// Something to send.
    #[must_use]
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.io.out.pop_front()
    }

    /// Something to do or to know.
    #[must_use]
    pub fn poll_event(&mut self) -> Option<Event> {
        self.gate.next(&mut self.io.events)
    }

    /// When to call [`Client::handle_timeout`] if nothing else happens before, and why.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Instant, Timer)> {
        let own = match &self.phase {
            Phase::Idle => None,
            Phase::Connecting(attempt) => attempt.poll_timeout(),
            Phase::Up(up) => up.poll_timeout(),
            Phase::Lost(lost) => lost.poll_timeout(),
            Phase::Leaving(leaving) => leaving.sa.as_ref().and_then(IkeSa::poll_timeout),
        };
        let retired = self.retired.iter().filter_map(IkeSa::poll_timeout);
        own.into_iter().chain(retired).min()
    }

    /// What the user wants.
    pub fn handle_command(&mut self, command: Command, now: Instant) {
        match command {
            Command::Connect(profile, credentials) => {
                self.connects += 1;
                let config = Arc::new(SaConfig::new(*profile, credentials));
                self.leave(Then::Connect(config), now);
            }
            Command::Disconnect => self.leave(Then::Open, now),
            Command::Rest => self.leave(Then::Rest, now),
            Command::Rekey(kind) => {
                if let Phase::Up(up) = &mut self.phase
                    && let Some(established) = up.sa.established_mut()
                {
                    established.rekey_now(kind, now);
                    let (mut cx, events) = self.io.split(now);
                    up.handle_timeout(events, &mut cx);
                }
            }
            Command::Reply(id, answer) => self.reply(id, answer.as_ref(), now),
        }
        self.settle(now);
    }

    /// The answer to a question. One that nobody waits for any more is ignored.
    pub fn handle_answer(&mut self, answer: Answer, now: Instant) {
        self.gate.hear(&answer, &mut self.io.events);
        match answer {
            Answer::Applied(result) => self.applied(result, now),
            Answer::Reply(id, answer) => self.reply(id, answer.as_ref(), now),
            answer => {
                if let Answer::Bound(_, Ok(bound)) = &answer
                    && bound.path.is_tcp()
                {
                    self.connections.push(bound.path.socket());
                }
                let (mut cx, events) = self.io.split(now);
                match &mut self.phase {
                    Phase::Connecting(attempt) => {
                        attempt.handle_answer(&answer, events, &mut cx);
                    }
                    Phase::Up(up) => up.handle_answer(&answer, events, &mut cx),
                    Phase::Lost(lost) => lost.handle_answer(&answer, events, &mut cx),
                    Phase::Idle | Phase::Leaving(_) => {}
                }
            }
        }
        self.settle(now);
    }

    /// The machine's networks may have changed, or it woke: the client asks for its ways anew. A call for nothing
    /// does no harm.
    pub fn handle_network(&mut self, now: Instant) {
        let (mut cx, events) = self.io.split(now);
        match &mut self.phase {
            Phase::Connecting(attempt) => attempt.network_changed(events, &mut cx),
            Phase::Up(up) => up.network_changed(events, &mut cx),
            Phase::Lost(lost) => lost.network_changed(events, &mut cx),
            Phase::Idle | Phase::Leaving(_) => {}
        }
        self.settle(now);
    }

    /// The TCP connection with this end of ours has ended, for whatever reason but [`Event::Release`].
    pub fn handle_closed(&mut self, socket: Endpoint, now: Instant) {
        self.connections.retain(|open| *open != socket);
        let (mut cx, events) = self.io.split(now);
        match &mut self.phase {
            Phase::Connecting(attempt) => attempt.closed(socket, events, &mut cx),
            Phase::Up(up) => up.closed(socket, events, &mut cx),
            Phase::Lost(lost) => lost.closed(socket, events, &mut cx),
            // Our Delete was on its way, and nothing more can come.
            Phase::Leaving(leaving) => leaving.sa = leaving.sa.take().filter(|sa| !sa.uses(socket)),
            Phase::Idle => {}
        }
        self.settle(now);
    }

    /// Closes TCP connections that nobody needs any more (RFC 9329, sections 6.1 and 7.1).
    fn release_connections(&mut self) {
        if self.connections.is_empty() {
            return;
        }
        let (phase, retired, events) = (&self.phase, &self.retired, &mut self.io.events);
        self.connections.retain(|socket| {
            let socket = *socket;
            let is_used = retired.iter().any(|sa| sa.uses(socket))
                || match phase {
                    Phase::Idle => false,
                    Phase::Connecting(attempt) => attempt.uses(socket),
                    Phase::Up(up) => up.uses(socket),
                    Phase::Lost(lost) => lost.attempt.as_ref().is_some_and(|it| it.uses(socket)),
                    Phase::Leaving(leaving) => leaving.sa.as_ref().is_some_and(|sa| sa.uses(socket)),
                };
            if !is_used {
                events.push_back(Event::Release(socket));
            }
            is_used
        });
    }

    /// The instant of [`Client::poll_timeout`] has come. Early or late calls do no harm.
    pub fn handle_timeout(&mut self, now: Instant) {
        let (mut cx, events) = self.io.split(now);
        match &mut self.phase {
            Phase::Idle => {}
            Phase::Connecting(attempt) => attempt.handle_timeout(events, &mut cx),
            Phase::Up(up) => up.handle_timeout(events, &mut cx),
            Phase::Lost(lost) => lost.handle_timeout(events, &mut cx),
            Phase::Leaving(leaving) => {
                if let Some(sa) = &mut leaving.sa {
                    sa.handle_timeout(&mut cx);
                }
            }
        }
        self.settle(now);
        for sa in &mut self.retired {
            sa.handle_timeout(&mut self.io.cx(now));
        }
        self.forget_retired();
        self.release_connections();
    }

    /// A UDP payload from the gateway's side, or the content of a frame of a TCP connection. The inner packet that it carried, if it was a good ESP packet, decrypted
    /// in place.
    pub fn handle_datagram<'d>(
        &mut self,
        path: Path,
        datagram: &'d mut [u8],
        now: Instant,
    ) -> Option<&'d mut [u8]> {
        if path.remote.port() == IKE_PORT && !path.is_tcp() {
            self.handle_ike(path, datagram, now);
            return None;
        }
        match datagram {
            // A NAT keepalive proves nothing and changes nothing (RFC 3948, section 2.3).
            [0xff] => None,
            [0, 0, 0, 0, message @ ..] => {
                self.handle_ike(path, message, now);
                None
            }
            packet => self.open(packet, now),
        }
    }

    /// The largest inner packet that the path carries, as far as is known; none without a tunnel. It is what TCP's
    /// segments are sized by, and less than the tunnel device's MTU where that must not be as small (IPv6's 1280).
    #[must_use]
    pub fn inner_mtu(&self) -> Option<InnerMtu> {
        match &self.phase {
            Phase::Up(up) => up.sa.established().map(|sa| InnerMtu {
                octets: sa.inner_mtu(),
                is_proven: sa.is_mtu_proven(),
            }),
            Phase::Lost(lost) => Some(InnerMtu {
                octets: lost.tunnel.mtu,
                is_proven: false,
            }),
            Phase::Idle | Phase::Connecting(_) | Phase::Leaving(_) => None,
        }
    }

    fn open<'d>(&mut self, packet: &'d mut [u8], now: Instant) -> Option<&'d mut [u8]> {
        if let Phase::Up(up) = &mut self.phase
            && up.sa.has_child(packet)
        {
            return match up.sa.open_esp(packet, now) {
                Ok(inner) => Some(inner),
                Err(Discard::Exhausted) => {
                    self.lose(Cause::Exhausted, now);
                    None
                }
                Err(_) => None,
            };
        }
        if let Some(sa) = self.retired.iter_mut().find(|sa| sa.has_child(packet)) {
            return sa.open_esp(packet, now).ok();
        }
        if let (Phase::Leaving(leaving), true) = (&mut self.phase, !packet.is_empty())
            && let Some(sa) = leaving.sa.as_mut().filter(|sa| sa.has_child(packet))
        {
            return sa.open_esp(packet, now).ok();
        }
        self.shown.unknown_spi += 1;
        None
    }

    /// A packet that was opened has been dropped because [`esp::take_ecn`] asked for it.
    pub const fn note_congested(&mut self) {
        self.shown.congested += 1;
    }

    /// An inner packet to send through the tunnel; dropped and counted when that is not possible. While the tunnel is
    /// being made again, a few wait for it: see [`Client::send_waiting`].
    pub fn handle_packet(&mut self, packet: &[u8], sink: &mut impl Sink, now: Instant) {
        let write = |room: &mut [u8]| room.copy_from_slice(packet);
        self.handle_packet_of(packet.len(), write, sink, now);
    }

    /// The same for a packet of `len` octets that `write` writes into the room it is given, all of it: where it will be
    /// sealed, so that it is not copied once more.
    pub fn handle_packet_of(
        &mut self,
        len: usize,
        write: impl FnOnce(&mut [u8]),
        sink: &mut impl Sink,
        now: Instant,
    ) {
        let established = match &mut self.phase {
            Phase::Up(up) => up.sa.established_mut(),
            Phase::Idle | Phase::Connecting(_) | Phase::Lost(_) | Phase::Leaving(_) => None,
        };
        let Some((established, length)) =
            established.and_then(|sa| Some((sa.children.sealed_len(len)?, sa)).map(|(a, b)| (b, a)))
        else {
            self.shown.no_tunnel += match &self.phase {
                Phase::Up(_) | Phase::Lost(_) => {
                    let mut packet = vec![0; len].into_boxed_slice();
                    write(&mut packet);
                    self.waiting.push(packet, now)
                }
                Phase::Idle | Phase::Connecting(_) | Phase::Leaving(_) => 1,
            };
            return;
        };
        let Some(room) = sink.reserve(established.path(), length) else {
            self.shown.no_room += 1;
            return;
        };
        let marking = established.marking();
        let mut inner = 0;
        let write = |room: &mut [u8]| {
            write(room);
            inner = esp::ds_field(room);
        };
        match established.seal(len, write, room, now) {
            Ok(length) => sink.commit(length, marking.outer(inner)),
            Err(Discard::Exhausted) => self.lose(Cause::Exhausted, now),
            Err(_) => {}
        }
    }

    /// Sends the packets that have waited, once there is an SA for them. To be called after anything else: it does
    /// nothing when nothing waits.
    pub fn send_waiting(&mut self, sink: &mut impl Sink, now: Instant) {
        if self.waiting.is_empty() {
            return;
        }
        self.shown.no_tunnel += self.waiting.age(now);
        let mut waiting = match &self.phase {
            Phase::Lost(_) => return,
            Phase::Up(up) if !up.sa.established().is_some_and(|sa| sa.children.can_send()) => return,
            Phase::Up(_) => std::mem::take(&mut self.waiting),
            Phase::Idle | Phase::Connecting(_) | Phase::Leaving(_) => {
                self.waiting = Waiting::default();
                return;
            }
        };
        while let Some(packet) = waiting.pop() {
            self.handle_packet(&packet, sink, now);
        }
    }

    /// The SA cannot be used any longer: a fresh one must come.
    fn lose(&mut self, cause: Cause, now: Instant) {
        if matches!(self.phase, Phase::Up(_)) {
            self.io.news.push_back(News::Failed(Failure {
                stage: Stage::Apply,
                cause,
            }));
        }
        self.settle(now);
    }

    fn handle_ike(&mut self, path: Path, message: &mut [u8], now: Instant) {
        let (mut cx, _) = self.io.split(now);
        let retired = self.retired.iter_mut().find(|sa| sa.is_for(message));
        if let Some(sa) = retired {
            sa.handle_message(path, message, &mut cx);
            cx.news.clear();
            self.forget_retired();
            self.release_connections();
            return;
        }
        match &mut self.phase {
            Phase::Idle => {}
            Phase::Connecting(attempt) => {
                attempt.handle_message(path, message, &mut cx);
            }
            Phase::Up(up) => {
                if is_hint(message) {
                    up.hint(message, &mut cx);
                } else {
                    up.handle_message(path, message, &mut cx);
                }
            }
            Phase::Lost(lost) => lost.handle_message(path, message, &mut cx),
            Phase::Leaving(leaving) => {
                if let Some(sa) = &mut leaving.sa {
                    sa.handle_message(path, message, &mut cx);
                }
            }
        }
        self.settle(now);
    }

    fn forget_retired(&mut self) {
        self.io.news.clear();
        self.retired.retain(|sa| sa.spi().is_some());
    }

    /// An SA that another has replaced: it is deleted, and until then takes what is on its way.
    fn retire(&mut self, sa: IkeSa, now: Instant) {
        self.forget(&sa);
        self.end(sa, now);
    }

    /// Deletes an SA that is forgotten already.
    fn end(&mut self, mut sa: IkeSa, now: Instant) {
        sa.close(&mut self.io.cx(now));
        self.io.news.clear();
        if self.retired.len() >= MAX_RETIRED {
            self.retired.remove(0);
        }
        self.retired.push(sa);
    }

    /// An SA that is not ended, but not used any longer either.
    fn forget(&mut self, sa: &IkeSa) {
        if let Some(established) = sa.established() {
            add_traffic(&mut self.shown.traffic, established.traffic());
        }
    }

    /// The user's answer, for whichever attempt has asked.
    fn reply(&mut self, id: PromptId, answer: Option<&Secret>, now: Instant) {
        let cx = &mut self.io.cx(now);
        match &mut self.phase {
            Phase::Connecting(attempt) => attempt.reply(id, answer, cx),
            Phase::Up(up) => up.reply(id, answer, cx),
            Phase::Lost(lost) => lost.reply(id, answer, cx),
            Phase::Idle | Phase::Leaving(_) => {}
        }
    }

    fn connect(&mut self, config: Arc<SaConfig>, now: Instant) {
        self.gate.set(lock_of(&config));
        self.shown = Shown {
            profile: Some(config.profile.name.clone()),
            host: Some(config.profile.gateway.host.to_string()),
            since: Some(self.io.unix(now)),
            attempt: 1,
            ..Shown::default()
        };
        let attempt = Attempt::start(config, &mut self.io.events, now);
        self.phase = Phase::Connecting(Box::new(attempt));
    }

    fn applied(&mut self, result: Result<Option<String>, HostFault>, now: Instant) {
        match (&mut self.phase, result) {
            (Phase::Up(up), Ok(_)) if !up.applied => {
                up.applied = true;
                self.shown.stage = None;
                self.shown.since = Some(self.io.unix(now));
                self.announce();
            }
            // Without a tunnel it is the lock that could not be put.
            (Phase::Connecting(_) | Phase::Up(_) | Phase::Lost(_), Err(fault)) => {
                let failure = Failure {
                    stage: Stage::Apply,
                    cause: Cause::Host(fault),
                };
                self.leave(Then::Fail(failure), now);
            }
            (Phase::Leaving(leaving), result) if leaving.applying => {
                leaving.applying = false;
                if let Err(fault) = result {
                    leaving.failure.get_or_insert(Failure {
                        stage: Stage::Apply,
                        cause: Cause::Host(fault),
                    });
                }
            }
            _ => {}
        }
    }

    /// Acts on what happened until nothing is left to act on.
    fn settle(&mut self, now: Instant) {
        match std::mem::replace(&mut self.phase, Phase::Idle) {
            Phase::Idle => {}
            Phase::Connecting(attempt) => self.settle_connecting(attempt, now),
            Phase::Up(up) => self.settle_up(up, now),
            Phase::Lost(lost) => self.settle_lost(lost, now),
            Phase::Leaving(mut leaving) => {
                while let Some(news) = self.io.news.pop_front() {
                    if matches!(news, News::Closed | News::Failed(_)) {
                        leaving.sa = None;
                    }
                }
                self.phase = Phase::Leaving(leaving);
            }
        }
        self.finish_leaving(now);
        self.release_connections();
    }

    fn settle_connecting(&mut self, mut attempt: Box<Attempt>, now: Instant) {
        let io = &mut self.io;
        let outcome = attempt.outcome(&mut io.events, &mut io.news, now);
        let stage = attempt.stage();
        self.phase = Phase::Connecting(attempt);
        match outcome {
            None => self.reach(stage),
            Some(Ok(ready)) => {
                self.reach(stage);
                self.come_up(ready, now);
            }
            Some(Err(failure)) => {
                self.reach(failure.stage);
                self.leave(Then::Fail(failure), now);
            }
        }
    }

    /// The first SA is up: the machine is to use it.
    fn come_up(&mut self, ready: Ready, now: Instant) {
        let Some(up) = Up::new(ready, now) else {
            return;
        };
        self.io.events.push_back(Event::Plan(up.tunnel.clone().into()));
        self.phase = Phase::Up(Box::new(up));
        self.reach(Stage::Apply);
    }

    /// Takes down whatever is up, then does `next`.
    fn leave(&mut self, then: Then, now: Instant) {
        // From one locked profile to another, and after a failure, the machine stays locked.
        let (failure, next, policy) = match then {
            Then::Open => (None, None, None),
            Then::Rest => (None, None, self.gate.policy()),
            Then::Fail(failure) => (Some(failure), None, self.gate.policy()),
            Then::Connect(config) => {
                let policy = lock_of(&config);
                (None, Some(config), policy)
            }
        };
        let stays_locked = policy.is_some();
        // Whoever was idle, or has failed before anything was up, is not seen to disconnect.
        let is_quiet = failure.is_some() || matches!(self.phase, Phase::Idle);
        let was_locked = self.gate.policy().is_some() || self.gate.is_locked();
        let (sa, applying) = match std::mem::replace(&mut self.phase, Phase::Idle) {
            Phase::Idle => (None, false),
            Phase::Connecting(mut attempt) => {
                attempt.abandon(&mut self.io.cx(now));
                (None, false)
            }
            Phase::Up(up) => {
                let Up {
                    sa,
                    mut beside,
                    behind,
                    ..
                } = *up;
                if let Some(behind) = behind {
                    self.end(behind, now);
                }
                if let Some(attempt) = beside.as_mut().and_then(|beside| beside.attempt.as_mut()) {
                    attempt.abandon(&mut self.io.cx(now));
                }
                if let Some(established) = sa.established() {
                    add_traffic(&mut self.shown.traffic, established.traffic());
                }
                (Some(sa), true)
            }
            Phase::Lost(mut lost) => {
                if let Some(attempt) = &mut lost.attempt {
                    attempt.abandon(&mut self.io.cx(now));
                }
                if let Some(behind) = lost.behind.take() {
                    self.end(behind, now);
                }
                (None, true)
            }
            Phase::Leaving(mut leaving) => {
                let is_wish = failure.is_none();
                leaving.failure = leaving.failure.or(failure);
                // Only the user's next wish replaces the one before it.
                if is_wish {
                    leaving.next = next;
                    leaving.stays_locked = stays_locked;
                }
                self.phase = Phase::Leaving(leaving);
                return;
            }
        };
        // A lock that stays needs nobody to wait for it.
        let applying = applying || (was_locked && policy.is_none());
        if applying {
            self.io.events.push_back(Event::Plan(Plan::default()));
        }
        if policy != self.gate.policy() {
            self.gate.set(policy);
        }
        // An SA that failed has nobody left to talk to.
        let sa = sa.filter(|sa| sa.spi().is_some()).map(|mut sa| {
            sa.close(&mut self.io.cx(now));
            sa
        });
        self.phase = Phase::Leaving(Box::new(Leaving {
            sa,
            applying,
            failure,
            next,
            stays_locked,
        }));
        if applying || !is_quiet {
            self.shown.stage = None;
            self.shown.since = Some(self.io.unix(now));
            self.announce();
        }
    }

    fn finish_leaving(&mut self, now: Instant) {
        let Phase::Leaving(leaving) = &mut self.phase else {
            return;
        };
        if leaving.sa.as_ref().is_some_and(|sa| sa.spi().is_some()) || leaving.applying {
            return;
        }
        let (failure, next) = (leaving.failure.take(), leaving.next.take());
        let stays = leaving.stays_locked && self.gate.is_locked();
        self.phase = Phase::Idle;
        if let Some(config) = next {
            self.connect(config, now);
            return self.settle(now);
        }
        // Nothing is let out any more, or everything.
        self.gate.set(self.gate.policy().filter(|_| stays));
        self.shown.failure = failure;
        self.shown.stage = None;
        self.shown.since = Some(self.io.unix(now));
        self.announce();
    }

    fn reach(&mut self, stage: Stage) {
        if self.shown.stage < Some(stage) {
            self.shown.stage = Some(stage);
            self.announce();
        }
    }

    fn announce(&mut self) {
        let status = Box::new(self.status());
        self.io.events.push_back(Event::Status(status));
    }
}

/// What a profile's kill switch asks for.
fn lock_of(config: &SaConfig) -> Option<LockPolicy> {
    let network = &config.profile.network;
    let lan = network.allow_lan;
    network.kill_switch.then_some(LockPolicy { lan })
}

/// Whether an IKE message is one without protection that says that its sender does not know an SA (RFC 7296, section
/// 2.21.4).
fn is_hint(message: &[u8]) -> bool {
    Header::decode(message).is_ok_and(|header| {
        header.exchange == ExchangeType::INFORMATIONAL && header.next_payload == PayloadType::NOTIFY
    })
}

/// The SPI of ESP that such a message is about, if it is about one.
fn hinted_esp(message: &[u8]) -> Option<Vec<u8>> {
    let message = Message::decode(message).ok()?;
    message.payloads.iter().find_map(|payload| match payload {
        Payload::Notify(notify) if notify.kind == NotifyType::INVALID_SPI => Some(notify.data.to_vec()),
        _ => None,
    })
}

/// The delay before an attempt after `failures` that failed: 2 s, doubled each time up to a minute, shifted by up to a
/// tenth so that the clients of a gateway that restarts do not come all at once.
fn back_off(failures: u32, rng: &mut Rng) -> Duration {
    const FIRST: Duration = Duration::from_secs(2);
    const LONGEST: Duration = Duration::from_secs(60);
    let doubled = FIRST.saturating_mul(1 << failures.min(8)).min(LONGEST);
    crate::ike::jitter(doubled, rng)
}
