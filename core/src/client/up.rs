//! A tunnel that is up: it follows the network, and where its IKE SA cannot, a fresh one is made beside it.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::attempt::{Attempt, Ready};
use super::lost::{Lost, after_refusal, is_final, is_refusal};
use super::switch::Switch;
use super::{Client, Phase, Then, back_off, hinted_esp};
use crate::command::{
    Answer, Ask, Bound, Cause, Endpoint, Event, Failure, Happening, Means, Path, PromptId, Reconnect,
    Redirect, Roam, Stage, Transport, Why,
};
use crate::crypto::Secret;
use crate::esp;
use crate::ike::{
    Cx, Established, Hint, IKE_PORT, IkeSa, NAT_T_PORT, News, Renewal, SaConfig, Ticket, add_traffic,
};
use crate::plan::TunnelConfig;
use crate::profile::Host;
use crate::timer::{Instant, Timer};

/// Longer than any SA lives.
const NEVER: Duration = Duration::from_secs(365 * 86_400);
/// More addresses of the gateway than these are not looked for.
const MAX_REMOTES: usize = 8;
/// How long a path that was left still brings what was on its way.
const LINGER: Duration = Duration::from_secs(10);
/// Without any network the SA is kept for so long.
const OFFLINE_PATIENCE: Duration = Duration::from_secs(3600);
/// Without any network the ways are asked for so often, should nobody tell that there is one.
const SEARCH_AGAIN: Duration = Duration::from_secs(10);
/// What came in so recently shows that the path is well, whatever the network says.
const FRESH: Duration = Duration::from_secs(1);

pub(super) struct Up {
    pub(super) config: Arc<SaConfig>,
    pub(super) sa: IkeSa,
    pub(super) bound: Bound,
    pub(super) tunnel: TunnelConfig,
    pub(super) applied: bool,
    /// It took over from an SA that was lost: the machine used the tunnel before.
    was_up: bool,
    /// An SA that is given up here, but not ended at the gateway, because it may be resumed.
    pub(super) behind: Option<IkeSa>,
    /// The gateway may have an SA of ours that was asked for after this one, and that we have given up.
    has_twin: bool,
    /// A fresh SA that is to take over.
    pub(super) beside: Option<Box<Beside>>,
    /// Why nothing goes through at present, if it seems so, and since when.
    pub(super) trouble: Option<(Why, Instant)>,
    /// With what the SA can be resumed that has just died.
    ticket: Option<Arc<Ticket>>,
    /// The gateway's addresses, as its name had them here last.
    addresses: Vec<IpAddr>,
    /// The name was asked for again.
    resolving: bool,
    /// The way that the SA takes was asked for, for what the host knows of its MTU.
    asked_way: Option<Endpoint>,
    /// The ways that are being asked for.
    search: Option<Search>,
    /// When they were last asked for.
    searched_at: Instant,
    /// The ways that were found last.
    ways: Vec<Bound>,
    /// Sockets of paths that were left, and until when they are read.
    left: Vec<(Endpoint, Instant)>,
    /// What is under way between UDP and TCP.
    pub(super) switch: Switch,
    news: VecDeque<News>,
    /// Something that the status shows has changed.
    changed: bool,
}

/// A fresh SA beside the one that is up.
pub(super) struct Beside {
    /// What it is made with: where the gateway is, above all.
    config: Arc<SaConfig>,
    /// Another attempt can only fail again, for this reason.
    refused: Option<Failure>,
    pub(super) why: Why,
    began: Instant,
    pub(super) failures: u32,
    /// None while the next attempt is waited for.
    pub(super) attempt: Option<Attempt>,
    pub(super) retry_at: Instant,
    news: VecDeque<News>,
}

/// Questions about ways that are not answered yet.
struct Search {
    pending: Vec<Endpoint>,
    found: Vec<Bound>,
}

impl Up {
    pub(super) fn new(ready: Ready, now: Instant) -> Option<Self> {
        let Ready {
            config,
            mut sa,
            bound,
            addresses,
        } = ready;
        let mut switch = Switch::new(now);
        let established = sa.established_mut()?;
        switch.arrived(bound.path, established.mobility.is_supported(), now);
        established.arrive(bound.mtu, None);
        let tunnel = tunnel_config(&config, established);
        Some(Self {
            config,
            sa,
            ways: vec![bound.clone()],
            bound,
            tunnel,
            applied: false,
            was_up: false,
            behind: None,
            has_twin: false,
            beside: None,
            trouble: None,
            ticket: None,
            addresses,
            resolving: false,
            asked_way: None,
            search: None,
            searched_at: now,
            left: Vec::new(),
            switch,
            news: VecDeque::new(),
            changed: false,
        })
    }

    fn attempt(&self) -> Option<&Attempt> {
        self.beside.as_ref().and_then(|beside| beside.attempt.as_ref())
    }

    /// What is made beside is given up; the gateway may have made it all the same.
    fn give_up_attempt(&mut self) -> Option<Attempt> {
        let attempt = self.beside.as_mut()?.attempt.take()?;
        self.has_twin |= attempt.may_be_made();
        Some(attempt)
    }

    fn is_resuming(&self) -> bool {
        self.attempt().is_some_and(Attempt::is_resuming)
    }

    fn is_offline(&self) -> bool {
        matches!(self.trouble, Some((Why::Offline, _)))
    }

    pub(super) fn poll_timeout(&self) -> Option<(Instant, Timer)> {
        let left = self.left.iter().map(|(_, until)| (*until, Timer::Release)).min();
        // Without a network nothing that is asked can be answered: the SA's own time stands still.
        if let Some((Why::Offline, since)) = self.trouble {
            let own = self.attempt().and_then(Attempt::poll_timeout);
            return left
                .into_iter()
                .chain(own)
                .chain([
                    (since + OFFLINE_PATIENCE, Timer::Reconnect),
                    (self.searched_at + SEARCH_AGAIN, Timer::NextCandidate),
                ])
                .min();
        }
        let beside = self.beside.as_ref().and_then(|beside| match &beside.attempt {
            Some(attempt) => attempt.poll_timeout(),
            None => Some((beside.retry_at, Timer::Reconnect)),
        });
        let switch = self.switch.poll_timeout(self.sa.established());
        let own = self.sa.poll_timeout().into_iter();
        own.chain(beside).chain(left).chain(switch).min()
    }

    pub(super) fn handle_timeout(&mut self, events: &mut VecDeque<Event>, cx: &mut Cx<'_>) {
        let now = cx.now;
        let attempt = self.beside.as_ref().and_then(|beside| beside.attempt.as_ref());
        for (socket, until) in &mut self.left {
            if self.sa.uses(*socket) || attempt.is_some_and(|attempt| attempt.uses(*socket)) {
                *until = (*until).max(now + LINGER);
            }
        }
        self.left.retain(|(local, until)| {
            // A connection is closed when nobody needs it.
            if now >= *until && local.transport == Transport::Udp {
                events.push_back(Event::Release(*local));
            }
            now < *until
        });
        if let Some((Why::Offline, since)) = self.trouble {
            if now >= since + OFFLINE_PATIENCE {
                self.news.push_back(News::Failed(Failure {
                    stage: Stage::Apply,
                    cause: Cause::PeerDead,
                }));
            } else if now >= self.searched_at + SEARCH_AGAIN {
                self.network_changed(events, cx);
            } else {
                self.attempt_on_time(events, cx);
            }
            return;
        }
        if self.sa.poll_timeout().is_some_and(|(at, _)| now >= at) {
            self.sa.handle_timeout(cx);
            self.news.append(cx.news);
        }
        self.switch_on_time(events, cx);
        match &self.beside {
            Some(beside) if beside.attempt.is_none() && now >= beside.retry_at => {
                self.begin_attempt(events, cx);
            }
            _ => self.attempt_on_time(events, cx),
        }
    }

    fn attempt_on_time(&mut self, events: &mut VecDeque<Event>, cx: &mut Cx<'_>) {
        if let Some(beside) = &mut self.beside
            && let Some(attempt) = &mut beside.attempt
            && attempt.poll_timeout().is_some_and(|(at, _)| cx.now >= at)
        {
            attempt.handle_timeout(events, cx);
            beside.news.append(cx.news);
        }
    }

    pub(super) fn handle_message(&mut self, path: Path, message: &mut [u8], cx: &mut Cx<'_>) {
        if self.sa.is_for(message) {
            self.sa.handle_message(path, message, cx);
            self.news.append(cx.news);
        } else if let Some(beside) = &mut self.beside
            && let Some(attempt) = &mut beside.attempt
        {
            attempt.handle_message(path, message, cx);
            beside.news.append(cx.news);
        }
    }

    /// A message without proof says that its sender does not know our SA: a reason to ask, no more.
    pub(super) fn hint(&mut self, message: &[u8], cx: &mut Cx<'_>) {
        let about = if self.sa.is_for_hint(message) {
            Hint::IkeSa
        } else {
            let child = hinted_esp(message)
                .is_some_and(|spi| self.sa.established().is_some_and(|sa| sa.children.sends_to(&spi)));
            if !child {
                return;
            }
            Hint::ChildSa
        };
        if let Some(established) = self.sa.established_mut() {
            established.hint(about, cx);
            self.news.append(cx.news);
        }
    }

    /// The machine's networks may have changed: every way to the gateway is asked for anew.
    pub(super) fn network_changed(&mut self, events: &mut VecDeque<Event>, cx: &mut Cx<'_>) {
        self.searched_at = cx.now;
        let pending = self.remotes();
        events.extend(pending.iter().map(|remote| Event::Ask(Ask::Bind(*remote))));
        self.search = Some(Search {
            pending,
            found: Vec::new(),
        });
    }

    /// Every address that the gateway may be reached at: the present one, those of its own word, those of its name.
    /// Over UDP, whatever the present one is.
    pub(super) fn remotes(&self) -> Vec<Endpoint> {
        let Some(established) = self.sa.established() else {
            return Vec::new();
        };
        let present = established.path();
        let port = match (present.transport, self.config.profile.gateway.port) {
            (Transport::Udp, _) => present.remote.port(),
            (Transport::Tcp, IKE_PORT) => NAT_T_PORT,
            (Transport::Tcp, port) => port,
        };
        let present = present.remote.ip();
        let mut remotes = vec![Endpoint::udp(SocketAddr::new(present, port))];
        let others = established.mobility.others().iter().chain(&self.addresses);
        for ip in others {
            let remote = Endpoint::udp(SocketAddr::new(*ip, port));
            if remotes.len() < MAX_REMOTES && !remotes.contains(&remote) {
                remotes.push(remote);
            }
        }
        remotes
    }

    pub(super) fn handle_answer(&mut self, answer: &Answer, events: &mut VecDeque<Event>, cx: &mut Cx<'_>) {
        match answer {
            Answer::Bound(remote, result)
                if self
                    .search
                    .as_ref()
                    .is_some_and(|search| search.pending.contains(remote)) =>
            {
                let Some(search) = &mut self.search else { return };
                search.pending.retain(|pending| pending != remote);
                if let Ok(bound) = result {
                    search.found.push(bound.clone());
                }
                if search.pending.is_empty() {
                    let found = self.search.take().map(|search| search.found).unwrap_or_default();
                    self.ways_found(found, events, cx);
                }
            }
            Answer::Bound(remote, result) if self.switch_answered(*remote, result, cx) => {
                self.news.append(cx.news);
            }
            Answer::Bound(remote, result) if self.asked_way == Some(*remote) => {
                self.asked_way = None;
                if let Ok(bound) = result
                    && let Some(mtu) = bound.mtu
                    && let Some(established) = self.sa.established_mut()
                    && established.path() == bound.path
                {
                    established.note_way_mtu(mtu);
                }
            }
            Answer::Resolved { name, result } if self.resolving && self.is_gateway(name) => {
                self.resolving = false;
                let known = self.remotes();
                if let Ok(addresses) = result
                    && !addresses.is_empty()
                {
                    self.addresses = addresses.clone();
                }
                let moving = self.sa.established().is_some_and(|sa| sa.mobility.is_moving());
                // What works already need not be searched for.
                if moving && self.remotes() != known {
                    self.network_changed(events, cx);
                }
            }
            other => {
                if let Some(beside) = &mut self.beside
                    && let Some(attempt) = &mut beside.attempt
                {
                    attempt.handle_answer(other, events, cx);
                    beside.news.append(cx.news);
                }
            }
        }
    }

    /// A TCP connection is gone.
    pub(super) fn closed(&mut self, socket: Endpoint, events: &mut VecDeque<Event>, cx: &mut Cx<'_>) {
        self.left.retain(|(left, _)| *left != socket);
        let Some(established) = self.sa.established_mut() else {
            return;
        };
        if established.path().socket() == socket {
            established.cut(cx);
            self.news.append(cx.news);
            if !self.is_offline() {
                self.connect_after_loss(events, cx.now);
            }
            return;
        }
        established.lost_connection(socket);
        if let Some(beside) = &mut self.beside
            && let Some(attempt) = &mut beside.attempt
        {
            attempt.closed(socket, events, cx);
            beside.news.append(cx.news);
        }
    }

    /// Whether the SA, or what is made beside it, needs this connection.
    pub(super) fn uses(&self, socket: Endpoint) -> bool {
        self.sa.uses(socket)
            || self.left.iter().any(|(left, _)| *left == socket)
            || self
                .beside
                .as_ref()
                .and_then(|beside| beside.attempt.as_ref())
                .is_some_and(|attempt| attempt.uses(socket))
    }

    /// Only what is being made beside the SA that is up can have asked.
    pub(super) fn reply(&mut self, id: PromptId, answer: Option<&Secret>, cx: &mut Cx<'_>) {
        if let Some(beside) = &mut self.beside
            && let Some(attempt) = &mut beside.attempt
        {
            attempt.reply(id, answer, cx);
            beside.news.append(cx.news);
        }
    }

    fn is_gateway(&self, name: &str) -> bool {
        matches!(self.config.host(), Host::Name(host) if host == name)
    }

    /// All questions about ways are answered.
    fn ways_found(&mut self, found: Vec<Bound>, events: &mut VecDeque<Event>, cx: &mut Cx<'_>) {
        let Some(established) = self.sa.established_mut() else {
            return;
        };
        if found.is_empty() {
            if !matches!(self.trouble, Some((Why::Offline, _))) {
                self.trouble = Some((Why::Offline, cx.now));
                self.changed = true;
            }
            self.search_at_own(events, cx);
            return;
        }
        self.switch.network_changed(cx.now);
        let was_offline = matches!(self.trouble, Some((Why::Offline, _)));
        if was_offline {
            self.trouble = Some((Why::NetworkChanged, cx.now));
            self.changed = true;
        }
        let present = established.path();
        let by = self.bound.interface.clone();
        let mut ways = found;
        // Those to the present address first, then those of its family.
        ways.sort_by_key(|way| {
            (
                way.path.remote.ip() != present.remote.ip(),
                way.path.remote.is_ipv4() != present.remote.is_ipv4(),
            )
        });
        let paths: Vec<Path> = ways.iter().map(|way| way.path).collect();
        // What was left may be the way again.
        self.left
            .retain(|(local, _)| !paths.iter().any(|path| path.socket() == *local));
        self.ways = ways;
        // A connection goes the way that a datagram would go.
        let is_same = |way: &Bound| {
            let same_ends =
                way.path.local.ip() == present.local.ip() && way.path.remote.ip() == present.remote.ip();
            present.is_tcp() && same_ends && way.interface == by
        };
        if paths.first() == Some(&present) || self.ways.first().is_some_and(is_same) {
            if was_offline || cx.now >= established.last_heard() + FRESH {
                established.check(cx);
            }
            let is_cut = established.is_cut();
            if let Some(mtu) = self.ways.first().and_then(|way| way.mtu) {
                established.note_way_mtu(mtu);
            }
            self.news.append(cx.news);
            if is_cut {
                self.connect(events);
            }
            if was_offline {
                self.restart_beside(events, cx);
            }
            return;
        }
        if let Host::Name(name) = self.config.host() {
            self.resolving = true;
            events.push_back(Event::Ask(Ask::Resolve(name.clone())));
        }
        if established.move_to(paths, Means::Mobike, cx) {
            self.news.append(cx.news);
            self.restart_beside(events, cx);
            return;
        }
        // The SA is of no use here. Its Delete, along the new way, comes to the gateway before the request for the same
        // inner address does.
        if let Some(way) = self.ways.first().filter(|_| !present.is_tcp()) {
            established.set_path(way.path);
        }
        self.news.push_back(News::Failed(Failure {
            stage: Stage::Apply,
            cause: Cause::LeftBehind,
        }));
    }

    /// There is no way to the gateway, and so none for what is made beside, unless another gateway sent us to where there is
    /// none from here: there may be one to the profile's own.
    fn search_at_own(&mut self, events: &mut VecDeque<Event>, cx: &mut Cx<'_>) {
        let is_elsewhere = self.config.redirected.last().is_some();
        if let Some(beside) = &mut self.beside {
            if is_elsewhere
                && beside.config.redirected.last().is_none()
                && let Some(attempt) = &mut beside.attempt
            {
                attempt.network_changed(events, cx);
                beside.news.append(cx.news);
                return;
            }
            beside.news.clear();
            if let Some(mut attempt) = self.give_up_attempt() {
                attempt.abandon(cx);
            }
        }
        if !is_elsewhere {
            return;
        }
        let own = Arc::new(self.config.anew(&[]));
        match &mut self.beside {
            // What had to be made anew for another reason still has to be.
            Some(beside) => {
                beside.config = own;
                self.begin_attempt(events, cx);
            }
            None => self.begin_beside_at(own, Why::Offline, events, cx),
        }
    }

    fn restart_beside(&mut self, events: &mut VecDeque<Event>, cx: &mut Cx<'_>) {
        self.give_up_attempt();
        if let Some(beside) = &mut self.beside {
            beside.news.clear();
            beside.retry_at = cx.now;
            self.begin_attempt(events, cx);
        }
    }

    /// A fresh SA is to be made beside this one, unless one is already.
    fn begin_beside(&mut self, why: Why, events: &mut VecDeque<Event>, cx: &mut Cx<'_>) {
        if let Some(beside) = &mut self.beside {
            // Whoever has to be replaced in any case is not spared because it answers again.
            if matches!(why, Why::AuthLifetime | Why::RekeyRefused | Why::Silent) {
                beside.why = why;
            }
            return;
        }
        self.begin_beside_at(Arc::clone(&self.config), why, events, cx);
    }

    fn begin_beside_at(
        &mut self,
        config: Arc<SaConfig>,
        why: Why,
        events: &mut VecDeque<Event>,
        cx: &mut Cx<'_>,
    ) {
        self.beside = Some(Box::new(Beside {
            config,
            refused: None,
            why,
            began: cx.now,
            failures: 0,
            attempt: None,
            retry_at: cx.now,
            news: VecDeque::new(),
        }));
        self.begin_attempt(events, cx);
    }

    /// A fresh SA is to be made at another gateway, whatever else is under way (RFC 5685, section 5).
    fn follow(&mut self, redirect: &Redirect, events: &mut VecDeque<Event>, cx: &mut Cx<'_>) {
        // Whoever says it again does not make us begin again, and whoever says otherwise is counted.
        let under_way = self
            .beside
            .as_ref()
            .filter(|beside| beside.why == Why::Redirected);
        if under_way.is_some_and(|beside| *beside.config.host() == redirect.to) {
            return;
        }
        let present = under_way.map_or(&self.config, |beside| &beside.config);
        let config = match present.follow(redirect, cx.now) {
            Ok(config) => Arc::new(config),
            Err(cause) => return tracing::warn!(?cause, "a redirect is not followed"),
        };
        tracing::info!(from = %redirect.from, to = %redirect.to, "the gateway sends us to another one");
        if let Some(mut attempt) = self.give_up_attempt() {
            attempt.abandon(cx);
        }
        self.begin_beside_at(config, Why::Redirected, events, cx);
    }

    fn begin_attempt(&mut self, events: &mut VecDeque<Event>, cx: &mut Cx<'_>) {
        if let Some(beside) = &mut self.beside {
            // Only what is lost is resumed: authentication that expires, or an SA out of step, has to be made anew.
            let is_lost = matches!(beside.why, Why::PeerDead | Why::NetworkChanged | Why::Offline);
            let ticket = self.sa.established().and_then(Established::ticket);
            let config = beside.config.again(&self.tunnel.addresses);
            let config = Arc::new(config.with(ticket.filter(|_| is_lost)));
            beside.attempt = Some(Attempt::start(config, events, cx.now));
            self.changed = true;
        }
    }

    /// The socket of a path that was left is read a little longer.
    pub(super) fn leave_path(&mut self, local: Endpoint, now: Instant) {
        self.left.retain(|(other, _)| *other != local);
        self.left.push((local, now + LINGER));
    }

    /// What the host found out about a way that may become the SA's.
    pub(super) fn note_connection(&mut self, bound: &Bound) {
        self.ways.retain(|way| way.path.gateway() != bound.path.gateway());
        self.ways.push(bound.clone());
    }

    /// What the host found out about the way that the SA now takes.
    fn note_way(&mut self, path: Path, now: Instant) {
        let before = self.bound.path.socket();
        if let Some(way) = self.ways.iter().find(|way| way.path == path) {
            self.bound = way.clone();
        }
        self.bound.path = path;
        self.left.retain(|(local, _)| *local != path.socket());
        if before != path.socket() {
            self.leave_path(before, now);
        }
        let may_return = self.sa.established().is_some_and(|sa| sa.mobility.is_supported());
        self.switch.arrived(path, may_return, now);
    }

    /// Makes the tunnel as large as the path is known to carry.
    fn follow_mtu(&mut self, events: &mut VecDeque<Event>) {
        let Some(established) = self.sa.established() else {
            return;
        };
        let mtu = tunnel_mtu(established);
        if mtu != self.tunnel.mtu {
            self.tunnel.mtu = mtu;
            self.changed = true;
            events.push_back(Event::Plan(self.tunnel.clone().into()));
        }
    }
}

impl Client {
    /// Acts on what the SA that is up, and the one beside it, have said.
    pub(super) fn settle_up(&mut self, mut up: Box<Up>, now: Instant) {
        let news = std::mem::take(&mut self.io.news);
        up.news.extend(news);
        while let Some(news) = up.news.pop_front() {
            if let News::Failed(failure) = news {
                return self.fall(up, failure, now);
            }
            self.hear(&mut up, news, now);
        }
        if let Some(beside) = &mut up.beside
            && let Some(attempt) = &mut beside.attempt
            && let Some(outcome) = attempt.outcome(&mut self.io.events, &mut beside.news, now)
        {
            match outcome {
                Ok(ready) => return self.take_over(up, ready, now),
                Err(failure) => {
                    let is_refusal = is_refusal(&failure.cause);
                    // What was refused does not exist.
                    up.has_twin |= attempt.may_be_made() && !is_refusal;
                    beside.attempt = None;
                    beside.failures += 1;
                    beside.retry_at = now + back_off(beside.failures - 1, &mut self.io.rng);
                    up.changed = true;
                    tracing::info!(message = %failure.message(), "no fresh IKE SA beside this one yet");
                    if is_final(&failure, beside.failures) {
                        // What is up is used for as long as it lasts.
                        beside.retry_at = now + NEVER;
                        beside.refused = Some(failure);
                    } else if is_refusal {
                        let pause = after_refusal(beside.failures);
                        beside.retry_at = beside.retry_at.max(now + pause);
                    }
                }
            }
        }
        up.follow_mtu(&mut self.io.events);
        let changed = std::mem::take(&mut up.changed);
        self.phase = Phase::Up(up);
        if changed {
            self.announce();
        }
    }

    fn hear(&mut self, up: &mut Up, news: News, now: Instant) {
        match news {
            News::Carried(traffic) => add_traffic(&mut self.shown.traffic, traffic),
            News::Ticket(ticket) => up.ticket = Some(ticket),
            News::Rekeyed(rekey) => {
                up.changed = true;
                self.happened(Happening::Rekey(rekey));
            }
            News::Roamed(roam) => {
                up.note_way(roam.to, now);
                let mtu = up.bound.mtu;
                if let Some(established) = up.sa.established_mut() {
                    established.settle_on(mtu);
                }
                self.well_again(up, now);
                // TCP was tried, and then UDP was well again.
                if roam.from != roam.to || roam.means != Means::Mobike {
                    self.happened(Happening::Roam(roam));
                }
            }
            News::Doubt => {
                let moving = up.sa.established().is_some_and(|sa| sa.mobility.is_moving());
                let why = if moving {
                    Why::NetworkChanged
                } else {
                    Why::PeerDead
                };
                if up.trouble.is_none() {
                    up.trouble = Some((why, now));
                }
                let (mut cx, events) = self.io.split(now);
                up.begin_beside(why, events, &mut cx);
                up.changed = true;
            }
            News::Trust => {
                if !up.sa.established().is_some_and(|sa| sa.mobility.is_moving()) {
                    self.well_again(up, now);
                }
            }
            News::Renew(renewal) => {
                let (mut cx, events) = self.io.split(now);
                match renewal {
                    Renewal::Lifetime => up.begin_beside(Why::AuthLifetime, events, &mut cx),
                    Renewal::Refused(_) | Renewal::OutOfSync => {
                        up.begin_beside(Why::RekeyRefused, events, &mut cx);
                    }
                    Renewal::Redirected(redirect) => up.follow(&redirect, events, &mut cx),
                }
            }
            News::Silent => {
                // Rekeying heals a child that the gateway has forgotten, and not that it sends all to our address by the
                // newest SA that it takes for ours.
                if up.has_twin {
                    let (mut cx, events) = self.io.split(now);
                    up.begin_beside(Why::Silent, events, &mut cx);
                }
            }
            News::AskWay => {
                if let Some(established) = up.sa.established() {
                    let gateway = established.path().gateway();
                    up.asked_way = Some(gateway);
                    self.io.events.push_back(Event::Ask(Ask::Bind(gateway)));
                }
            }
            News::Stage(_) | News::Prompt(_) | News::Fetch(_) | News::Up | News::Closed | News::Failed(_) => {
            }
            News::NeedsConnection => up.connect(&mut self.io.events),
        }
    }

    /// The SA works: what was begun because it seemed not to is given up.
    fn well_again(&mut self, up: &mut Up, now: Instant) {
        up.changed = true;
        up.trouble = None;
        let needless =
            up.beside.as_ref().is_some_and(|beside| {
                matches!(beside.why, Why::PeerDead | Why::NetworkChanged | Why::Offline)
            }) && !up.is_resuming();
        if needless {
            if let Some(mut attempt) = up.give_up_attempt() {
                attempt.abandon(&mut self.io.cx(now));
            }
            up.beside = None;
        }
    }

    pub(super) fn happened(&mut self, happening: Happening) {
        self.io.events.push_back(Event::Happened(Box::new(happening)));
    }

    /// The fresh SA takes the place of the one that is up.
    fn take_over(&mut self, mut up: Box<Up>, mut ready: Ready, now: Instant) {
        let Some(beside) = up.beside.take() else { return };
        let Some(established) = ready.sa.established_mut() else {
            return;
        };
        let (from, to, resumed) = (up.bound.path, established.path(), established.is_resumed);
        let old = up.sa.established().filter(|old| old.path() == to);
        established.arrive(ready.bound.mtu, old.and_then(Established::proven_mtu));
        let tunnel = tunnel_config(&ready.config, established);
        let mut old = std::mem::replace(&mut up.sa, ready.sa);
        if let Some(old) = old.established_mut() {
            old.leave_along(to);
        }
        if resumed {
            // The gateway has deleted it without a word, and its Child SAs with it (RFC 5723, section 4.3.4).
            self.forget(&old);
        } else {
            self.retire(old, now);
        }
        up.news.clear();
        up.ways = vec![ready.bound];
        up.note_way(to, now);
        if !ready.addresses.is_empty() {
            up.addresses = ready.addresses;
        }
        up.config = ready.config;
        up.trouble = None;
        up.has_twin = false;
        if tunnel != up.tunnel {
            up.tunnel = tunnel;
            self.io.events.push_back(Event::Plan(up.tunnel.clone().into()));
        }
        self.phase = Phase::Up(up);
        let again = Reconnect {
            why: beside.why,
            means: new_or_resumed(resumed),
            attempts: beside.failures + 1,
            took: now.since(beside.began),
        };
        self.tell_reconnected(again, from, to);
    }

    pub(super) fn tell_reconnected(&mut self, again: Reconnect, from: Path, to: Path) {
        if from != to {
            self.happened(Happening::Roam(Roam {
                from,
                to,
                means: again.means,
                took: again.took,
            }));
        }
        self.happened(Happening::Reconnect(again));
        self.announce();
    }

    /// The SA is gone. The tunnel device, its addresses and routes stay, so that nothing goes beside it meanwhile.
    fn fall(&mut self, mut up: Box<Up>, failure: Failure, now: Instant) {
        let sa = std::mem::replace(&mut up.sa, IkeSa::gone());
        let ticket = sa
            .established()
            .and_then(Established::ticket)
            .filter(|ticket| ticket.is_good(now));
        if ticket.is_some() && matches!(failure.cause, Cause::PeerDead | Cause::LeftBehind) {
            // A Delete would void the ticket (RFC 5723, section 6.2).
            self.forget(&sa);
            up.ticket = ticket;
            up.behind = Some(sa);
        } else if sa.spi().is_some() {
            self.retire(sa, now);
        }
        let refused = up.beside.as_mut().and_then(|beside| beside.refused.take());
        if let Some(refused) = refused {
            self.phase = Phase::Up(up);
            return self.leave(Then::Fail(refused), now);
        }
        if !up.applied && !up.was_up {
            // The machine never used it: the attempt has failed.
            self.phase = Phase::Up(up);
            return self.leave(Then::Fail(failure), now);
        }
        let (mut cx, events) = self.io.split(now);
        let lost = Lost::new(*up, failure, events, &mut cx);
        self.shown.since = Some(self.io.unix(now));
        self.phase = Phase::Lost(Box::new(lost));
        self.announce();
        self.settle(now);
    }
}

pub(super) const fn new_or_resumed(resumed: bool) -> Means {
    if resumed { Means::Resumption } else { Means::NewSa }
}

fn tunnel_config(config: &SaConfig, established: &Established) -> TunnelConfig {
    let profile = &config.profile;
    let network = &established.network;
    TunnelConfig {
        addresses: network.assigned.addresses.clone(),
        routes: network.routes.clone(),
        excluded: profile.child.exclude.clone(),
        refused: network.refused.clone(),
        dns: network.dns(profile),
        mtu: tunnel_mtu(established),
    }
}

/// The tunnel device's MTU. Below 1280 octets a device has no IPv6.
fn tunnel_mtu(established: &Established) -> u16 {
    let addresses = &established.network.assigned.addresses;
    let has_ipv6 = addresses.iter().any(|net| matches!(net, IpNet::V6(_)));
    let mtu = established.inner_mtu();
    if has_ipv6 { mtu.max(esp::MIN_MTU) } else { mtu }
}

impl Up {
    /// The machine has used this tunnel before.
    pub(super) fn was_up(&mut self) {
        self.was_up = true;
    }

    /// What a tunnel that is lost keeps, and the sockets that were left.
    pub(super) fn into_parts(self) -> Parts {
        Parts {
            is_offline: self.is_offline(),
            left: self.left.into_iter().map(|(local, _)| local).collect(),
            config: self.config,
            tunnel: self.tunnel,
            bound: self.bound,
            beside: self.beside,
            ticket: self.ticket,
            behind: self.behind,
        }
    }
}

/// What is left of a tunnel that is lost.
pub(super) struct Parts {
    pub(super) config: Arc<SaConfig>,
    pub(super) tunnel: TunnelConfig,
    pub(super) bound: Bound,
    pub(super) beside: Option<Box<Beside>>,
    pub(super) is_offline: bool,
    pub(super) left: Vec<Endpoint>,
    pub(super) ticket: Option<Arc<Ticket>>,
    pub(super) behind: Option<IkeSa>,
}

impl Beside {
    pub(super) fn into_attempt(self) -> (Why, Instant, u32, Option<Attempt>, VecDeque<News>) {
        (self.why, self.began, self.failures, self.attempt, self.news)
    }
}
