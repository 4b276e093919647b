//! The VPN's life as a state machine: resolve, race addresses, connect, plan, connected, disconnect, failure.
//!
//! After any input, drain [`Client::poll_transmit`] and [`Client::poll_event`], and call [`Client::handle_timeout`]
//! at the instant that [`Client::poll_timeout`] names.

mod race;

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;

use self::race::{Race, Winner};
use crate::command::{
    Answer, Ask, Bound, Cause, ChildSaStatus, Command, Event, Failure, Features, GatewayStatus, HostFault,
    IkeSaStatus, Path, PathStatus, Sink, Stage, State, Status, Traffic, Transmit,
};
use crate::esp::{self, Discard};
use crate::ike::{Cx, Established, IKE_PORT, IkeSa, News, SaConfig};
use crate::plan::{Plan, TunnelConfig};
use crate::profile::Host;
use crate::rng::Rng;
use crate::timer::{Instant, Timer, UnixTime};

/// The path MTU to assume when the host knows none: Ethernet's.
const DEFAULT_MTU: u16 = 1500;

/// One client with at most one tunnel.
pub struct Client {
    io: Io,
    phase: Phase,
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
}

impl Io {
    fn unix(&self, now: Instant) -> UnixTime {
        UnixTime(self.started_unix.0.saturating_add(now.since(self.started)))
    }

    fn cx(&mut self, now: Instant) -> Cx<'_> {
        let unix = self.unix(now);
        Cx {
            now,
            unix,
            rng: &mut self.rng,
            out: &mut self.out,
            news: &mut self.news,
        }
    }
}

enum Phase {
    Idle,
    Resolving(Arc<SaConfig>),
    Racing(Box<Race>),
    Negotiating(Box<Negotiating>),
    Up(Box<Up>),
    Leaving(Box<Leaving>),
}

/// The gateway answered; authentication goes on.
struct Negotiating {
    config: Arc<SaConfig>,
    sa: IkeSa,
    bound: Bound,
}

/// The SA is up, and the machine uses it or is about to.
struct Up {
    sa: IkeSa,
    bound: Bound,
    tunnel: TunnelConfig,
    applied: bool,
}

/// Everything is being taken down.
struct Leaving {
    sa: Option<IkeSa>,
    /// The host has yet to confirm that nothing of ours is left on the machine.
    applying: bool,
    failure: Option<Failure>,
    next: Option<Arc<SaConfig>>,
}

#[derive(Default)]
struct Shown {
    profile: Option<String>,
    host: Option<String>,
    since: Option<UnixTime>,
    attempt: u32,
    stage: Option<Stage>,
    failure: Option<Failure>,
    /// Of the tunnel that was up last.
    traffic: Traffic,
    /// Packets that no tunnel was there for, and datagrams that belong to none.
    no_tunnel: u64,
    unknown_spi: u64,
    no_room: u64,
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
        };
        Self {
            io,
            phase: Phase::Idle,
            shown: Shown::default(),
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
        self.io.events.pop_front()
    }

    /// When to call [`Client::handle_timeout`] if nothing else happens before, and why.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Instant, Timer)> {
        match &self.phase {
            Phase::Idle | Phase::Resolving(_) => None,
            Phase::Racing(race) => race.poll_timeout(),
            Phase::Negotiating(negotiating) => negotiating.sa.poll_timeout(),
            Phase::Up(up) => up.sa.poll_timeout(),
            Phase::Leaving(leaving) => leaving.sa.as_ref().and_then(IkeSa::poll_timeout),
        }
    }

    /// What the user wants.
    pub fn handle_command(&mut self, command: Command, now: Instant) {
        match command {
            Command::Connect(profile, credentials) => {
                let config = Arc::new(SaConfig {
                    profile: *profile,
                    credentials,
                });
                self.leave(None, Some(config), now);
            }
            Command::Disconnect => self.leave(None, None, now),
        }
        self.settle(now);
    }

    /// The answer to a question. One that nobody waits for any more is ignored.
    pub fn handle_answer(&mut self, answer: Answer, now: Instant) {
        match answer {
            Answer::Resolved { name, result } => self.resolved(&name, result, now),
            Answer::Bound(remote, result) => {
                if let Phase::Racing(race) = &mut self.phase
                    && race.bound(remote, result, &mut self.io.cx(now))
                {
                    self.reach(Stage::IkeSaInit, now);
                }
            }
            Answer::Applied(result) => self.applied(result, now),
        }
        self.settle(now);
    }

    /// The machine's networks may have changed, or it woke: the client asks for its ways anew. A call for nothing
    /// does no harm.
    pub fn handle_network(&mut self, now: Instant) {
        self.settle(now);
    }

    /// The instant of [`Client::poll_timeout`] has come. Early or late calls do no harm.
    pub fn handle_timeout(&mut self, now: Instant) {
        match &mut self.phase {
            Phase::Idle | Phase::Resolving(_) => {}
            Phase::Racing(race) => {
                race.handle_timeout(&mut self.io.cx(now));
                race.ask(&mut self.io.events, now);
            }
            Phase::Negotiating(negotiating) => negotiating.sa.handle_timeout(&mut self.io.cx(now)),
            Phase::Up(up) => up.sa.handle_timeout(&mut self.io.cx(now)),
            Phase::Leaving(leaving) => {
                if let Some(sa) = &mut leaving.sa {
                    sa.handle_timeout(&mut self.io.cx(now));
                }
            }
        }
        self.settle(now);
    }

    /// A UDP payload from the gateway's side. The inner packet that it carried, if it was a good ESP packet, decrypted
    /// in place.
    pub fn handle_datagram<'d>(
        &mut self,
        path: Path,
        datagram: &'d mut [u8],
        now: Instant,
    ) -> Option<&'d mut [u8]> {
        if path.remote.port() == IKE_PORT {
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
            packet => {
                if self.is_inbound_exhausted() {
                    self.leave(
                        Some(Failure {
                            stage: Stage::Apply,
                            cause: Cause::Exhausted,
                        }),
                        None,
                        now,
                    );
                    self.settle(now);
                }
                let Phase::Up(up) = &mut self.phase else {
                    self.shown.unknown_spi += 1;
                    return None;
                };
                up.sa.established_mut()?.open(packet, now).ok()
            }
        }
    }

    /// The inbound SA has refused a packet because its key has protected all that it may: it will take no more.
    fn is_inbound_exhausted(&self) -> bool {
        match &self.phase {
            Phase::Up(up) => up
                .sa
                .established()
                .is_some_and(|sa| sa.child.is_inbound_exhausted()),
            Phase::Idle
            | Phase::Resolving(_)
            | Phase::Racing(_)
            | Phase::Negotiating(_)
            | Phase::Leaving(_) => false,
        }
    }

    /// An inner packet to send through the tunnel; dropped and counted when that is not possible.
    pub fn handle_packet(&mut self, packet: &[u8], sink: &mut impl Sink, now: Instant) {
        let Phase::Up(up) = &mut self.phase else {
            self.shown.no_tunnel += 1;
            return;
        };
        let Some(established) = up.sa.established_mut() else {
            return;
        };
        let length = established.child.outbound.sealed_len(packet.len());
        let Some(room) = sink.reserve(established.path(), length) else {
            self.shown.no_room += 1;
            return;
        };
        match established.seal(packet, room, now) {
            Ok(length) => sink.commit(length),
            Err(Discard::Exhausted) => {
                self.leave(
                    Some(Failure {
                        stage: Stage::Apply,
                        cause: Cause::Exhausted,
                    }),
                    None,
                    now,
                );
                self.settle(now);
            }
            Err(_) => {}
        }
    }

    fn handle_ike(&mut self, path: Path, message: &mut [u8], now: Instant) {
        let io = &mut self.io;
        match &mut self.phase {
            Phase::Idle | Phase::Resolving(_) => {}
            Phase::Racing(race) => race.handle_message(path, message, &mut io.cx(now)),
            Phase::Negotiating(negotiating) => negotiating.sa.handle_message(path, message, &mut io.cx(now)),
            Phase::Up(up) => up.sa.handle_message(path, message, &mut io.cx(now)),
            Phase::Leaving(leaving) => {
                if let Some(sa) = &mut leaving.sa {
                    sa.handle_message(path, message, &mut io.cx(now));
                }
            }
        }
        self.settle(now);
    }

    fn connect(&mut self, config: Arc<SaConfig>, now: Instant) {
        let host = config.profile.gateway.host.clone();
        self.shown = Shown {
            profile: Some(config.profile.name.clone()),
            host: Some(match &host {
                Host::Name(name) => name.clone(),
                Host::Address(address) => address.to_string(),
            }),
            since: Some(self.io.unix(now)),
            attempt: 1,
            ..Shown::default()
        };
        match host {
            Host::Name(name) => {
                self.io.events.push_back(Event::Ask(Ask::Resolve(name)));
                self.phase = Phase::Resolving(config);
                self.reach(Stage::Resolve, now);
            }
            Host::Address(address) => self.race(config, vec![address], now),
        }
    }

    fn resolved(&mut self, name: &str, result: Result<Vec<IpAddr>, HostFault>, now: Instant) {
        let Phase::Resolving(config) = &self.phase else {
            return;
        };
        // The late answer to a question of an earlier attempt says nothing about this one's gateway.
        if !matches!(&config.profile.gateway.host, Host::Name(asked) if asked == name) {
            return;
        }
        let config = Arc::clone(config);
        let addresses = result.unwrap_or_default();
        if addresses.is_empty() {
            let name = self.shown.host.clone().unwrap_or_default();
            self.leave(
                Some(Failure {
                    stage: Stage::Resolve,
                    cause: Cause::NameNotFound(name),
                }),
                None,
                now,
            );
        } else {
            self.race(config, addresses, now);
        }
    }

    fn race(&mut self, config: Arc<SaConfig>, addresses: Vec<IpAddr>, now: Instant) {
        let mut race = Race::new(config, &addresses, now);
        race.ask(&mut self.io.events, now);
        self.phase = Phase::Racing(Box::new(race));
        self.reach(Stage::Reach, now);
    }

    fn applied(&mut self, result: Result<Option<String>, HostFault>, now: Instant) {
        match (&mut self.phase, result) {
            (Phase::Up(up), Ok(_)) if !up.applied => {
                up.applied = true;
                self.shown.stage = None;
                self.shown.since = Some(self.io.unix(now));
                self.announce();
            }
            (Phase::Up(_), Err(fault)) => {
                self.leave(
                    Some(Failure {
                        stage: Stage::Apply,
                        cause: Cause::Host(fault),
                    }),
                    None,
                    now,
                );
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

    /// Acts on what the SAs said until nothing is left to act on.
    fn settle(&mut self, now: Instant) {
        if let Phase::Racing(race) = &mut self.phase {
            match race.outcome(&mut self.io.news, now) {
                None => race.ask(&mut self.io.events, now),
                Some(Ok(Winner { config, sa, bound })) => {
                    self.phase = Phase::Negotiating(Box::new(Negotiating { config, sa, bound }));
                }
                Some(Err(failure)) => self.leave(Some(failure), None, now),
            }
        }
        while let Some(news) = self.io.news.pop_front() {
            match news {
                News::Stage(stage) => self.reach(stage, now),
                News::Up => self.come_up(now),
                News::Failed(failure) => self.leave(Some(failure), None, now),
                News::Closed => {
                    if let Phase::Leaving(leaving) = &mut self.phase {
                        leaving.sa = None;
                    }
                }
            }
        }
        self.finish_leaving(now);
    }

    fn come_up(&mut self, now: Instant) {
        let negotiating = match std::mem::replace(&mut self.phase, Phase::Idle) {
            Phase::Negotiating(negotiating) => negotiating,
            other => {
                self.phase = other;
                return;
            }
        };
        let Negotiating { config, sa, bound } = *negotiating;
        let Some(established) = sa.established() else {
            return;
        };
        let tunnel = tunnel_config(&config, established, bound.mtu);
        self.io.events.push_back(Event::Plan(Plan {
            tunnel: Some(tunnel.clone()),
        }));
        self.phase = Phase::Up(Box::new(Up {
            sa,
            bound,
            tunnel,
            applied: false,
        }));
        self.reach(Stage::Apply, now);
    }

    /// Takes down whatever is up, then does `next`.
    fn leave(&mut self, failure: Option<Failure>, next: Option<Arc<SaConfig>>, now: Instant) {
        // Whoever was idle, or has failed before anything was up, is not seen to disconnect.
        let is_quiet = failure.is_some() || matches!(self.phase, Phase::Idle);
        if matches!(self.phase, Phase::Up(_)) {
            self.shown.traffic = self.traffic();
        }
        let (sa, applying) = match std::mem::replace(&mut self.phase, Phase::Idle) {
            Phase::Idle | Phase::Resolving(_) | Phase::Racing(_) => (None, false),
            Phase::Negotiating(negotiating) => (Some(negotiating.sa), false),
            Phase::Up(up) => {
                self.io.events.push_back(Event::Plan(Plan::default()));
                (Some(up.sa), true)
            }
            Phase::Leaving(mut leaving) => {
                let is_wish = failure.is_none();
                leaving.failure = leaving.failure.or(failure);
                // Only the user's next wish replaces the one before it.
                if is_wish {
                    leaving.next = next;
                }
                self.phase = Phase::Leaving(leaving);
                return;
            }
        };
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
        self.phase = Phase::Idle;
        if let Some(config) = next {
            self.connect(config, now);
            return;
        }
        self.shown.failure = failure;
        self.shown.stage = None;
        self.shown.since = Some(self.io.unix(now));
        self.announce();
    }

    fn reach(&mut self, stage: Stage, _now: Instant) {
        if self.shown.stage < Some(stage) {
            self.shown.stage = Some(stage);
            self.announce();
        }
    }

    fn announce(&mut self) {
        let status = Box::new(self.status());
        self.io.events.push_back(Event::Status(status));
    }

    /// The whole truth at this moment.
    #[must_use]
    pub fn status(&self) -> Status {
        let shown = &self.shown;
        let mut status = Status {
            state: match &self.phase {
                Phase::Idle => State::Idle,
                Phase::Resolving(_) | Phase::Racing(_) | Phase::Negotiating(_) => State::Connecting,
                Phase::Up(up) if up.applied => State::Connected,
                Phase::Up(_) => State::Connecting,
                Phase::Leaving(_) => State::Disconnecting,
            },
            profile: shown.profile.clone(),
            since: shown.since,
            attempt: shown.attempt,
            stage: shown.stage,
            traffic: self.traffic(),
            failure: shown.failure.clone(),
            ..Status::default()
        };
        status.gateway = shown.host.as_ref().map(|host| GatewayStatus {
            host: host.clone(),
            address: None,
            identity: None,
        });
        let (bound, established) = match &self.phase {
            Phase::Up(up) => (&up.bound, up.sa.established()),
            Phase::Negotiating(negotiating) => (&negotiating.bound, None),
            Phase::Idle | Phase::Resolving(_) | Phase::Racing(_) | Phase::Leaving(_) => return status,
        };
        if let Some(gateway) = &mut status.gateway {
            gateway.address = Some(established.map_or(bound.path.remote, |sa| sa.path().remote));
            gateway.identity = established.map(|sa| sa.identity.clone());
        }
        if let (Phase::Up(up), Some(sa)) = (&self.phase, established) {
            fill_connected(&mut status, up, sa);
        }
        status
    }

    /// What went through the tunnel, or through the last one.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        let shown = &self.shown;
        let mut traffic = match &self.phase {
            Phase::Up(up) => up
                .sa
                .established()
                .map_or_else(Traffic::default, |sa| sa.child.traffic()),
            Phase::Idle
            | Phase::Resolving(_)
            | Phase::Racing(_)
            | Phase::Negotiating(_)
            | Phase::Leaving(_) => return shown.traffic.clone(),
        };
        for (reason, count) in [
            ("no_tunnel", shown.no_tunnel),
            ("unknown_spi", shown.unknown_spi),
            ("no_room", shown.no_room),
        ] {
            if count > 0 {
                *traffic.dropped.entry(reason).or_default() += count;
            }
        }
        traffic
    }
}

fn tunnel_config(config: &SaConfig, established: &Established, path_mtu: Option<u16>) -> TunnelConfig {
    let profile = &config.profile;
    let network = &established.network;
    let outer_v6 = established.path().remote.is_ipv6();
    let computed = esp::inner_mtu(
        path_mtu.unwrap_or(DEFAULT_MTU),
        outer_v6,
        established.child.suite.cipher,
    );
    TunnelConfig {
        addresses: network.assigned.addresses.clone(),
        routes: network.routes.clone(),
        excluded: profile.child.exclude.clone(),
        refused: network.refused.clone(),
        dns: network.dns(profile),
        mtu: profile.network.mtu.unwrap_or(computed),
    }
}

fn fill_connected(status: &mut Status, up: &Up, sa: &Established) {
    let path = sa.path();
    let (initiator_spi, responder_spi) = sa.spis();
    status.path = Some(PathStatus {
        local: path.local,
        remote: path.remote,
        transport: "udp",
        nat: sa.nat.name(),
        interface: up.bound.interface.clone(),
        rtt_ms: sa
            .round_trip()
            .map(|trip| u32::try_from(trip.as_millis()).unwrap_or(u32::MAX)),
    });
    status.ike_sa = Some(IkeSaStatus {
        initiator_spi,
        responder_spi,
        suite: sa.suite.to_string(),
        established: sa.since,
        rekey_at: None,
    });
    let child = &sa.child;
    let texts =
        |selectors: &[crate::wire::TrafficSelector]| selectors.iter().map(ToString::to_string).collect();
    status.child_sas = vec![ChildSaStatus {
        inbound_spi: child.inbound_spi.to_string(),
        outbound_spi: child.outbound_spi.to_string(),
        suite: child.suite.to_string(),
        local_ts: texts(&child.selectors.local),
        remote_ts: texts(&child.selectors.remote),
        rekey_at: None,
    }];
    status.addresses = up.tunnel.addresses.clone();
    status.dns = up.tunnel.dns.clone();
    status.mtu = Some(up.tunnel.mtu);
    status.features = Features {
        mobike: false,
        fragmentation: sa.fragments(),
        esn: child.suite.esn,
        post_quantum: false,
    };
}
