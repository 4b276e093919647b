//! Trying all addresses of a gateway, a little apart, and keeping the first that answers (after RFC 8305).

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::command::{Ask, Bound, Cause, Endpoint, Event, Failure, HostFault, Path, Stage, Transport};
use crate::ike::{Cx, IKE_PORT, IkeSa, NAT_T_PORT, News, RESUME_PATIENCE, SaConfig, Ticket};
use crate::timer::{Instant, Timer};

/// The head start of each address over the next (RFC 8305, section 5).
const HEAD_START: Duration = Duration::from_millis(250);
/// When port 500 has been silent this long, port 4500 is tried beside it: some networks block only the first.
const OTHER_PORT: Duration = Duration::from_millis(1500);
/// When UDP has been silent this long, TCP is tried beside it (RFC 9329, section 5.1): the first request has been sent
/// three times by then.
const OTHER_TRANSPORT: Duration = Duration::from_secs(3);
/// A host that does not say within this time whether there is a socket, or a connection, never will.
const BINDING_PATIENCE: Duration = Duration::from_secs(12);
/// So often a connection that the gateway's side closes is opened anew while nothing has come of it.
const MAX_RECONNECTS: u8 = 2;
/// More addresses than these are not tried.
const MAX_ADDRESSES: usize = 8;
/// Once one address refused, the others have this long to do better.
const REFUSAL_STANDS: Duration = Duration::from_secs(3);

pub(super) struct Race {
    config: Arc<SaConfig>,
    candidates: Vec<Candidate>,
    /// All that authenticate in full wait until then, or until the gateway says that it does not resume.
    held_until: Option<Instant>,
    /// A refusal by one address, and when it ends the race.
    refused: Option<(Failure, Instant)>,
    /// After a change of the network, a way was found unchanged.
    stays: bool,
}

struct Candidate {
    remote: Endpoint,
    /// The ticket to present there.
    ticket: Option<Arc<Ticket>>,
    due: Instant,
    progress: Progress,
    /// How often its connection was opened anew.
    reconnects: u8,
    /// Its way was asked for again.
    checking: bool,
}

enum Progress {
    Waiting,
    /// Since when.
    Binding(Instant),
    Running {
        sa: IkeSa,
        bound: Bound,
    },
    /// Its connection is gone, and another one is asked for.
    Reconnecting(IkeSa),
    Failed(Failure),
}

pub(super) struct Winner {
    pub(super) sa: IkeSa,
    pub(super) bound: Bound,
}

impl Race {
    pub(super) fn new(config: Arc<SaConfig>, addresses: &[IpAddr], now: Instant) -> Self {
        let port = config.profile.gateway.port;
        let ordered = interleave(addresses);
        let mut candidates: Vec<Candidate> = Vec::new();
        let mut held_until = None;
        if let Some(ticket) = config.ticket.as_ref().filter(|ticket| ticket.is_good(now))
            && let Some(home) = ordered.iter().find(|address| ticket.gateways().contains(address))
        {
            candidates.push(Candidate {
                ticket: Some(Arc::clone(ticket)),
                ..Candidate::new(Endpoint::udp(SocketAddr::new(*home, port)), now)
            });
            held_until = Some(now + RESUME_PATIENCE);
        }
        let begin = held_until.unwrap_or(now);
        let mut add = |of: fn(SocketAddr) -> Endpoint, port: u16, mut delay: Duration| {
            for address in &ordered {
                let remote = of(SocketAddr::new(*address, port));
                candidates.push(Candidate::new(remote, begin + delay));
                delay += HEAD_START;
            }
        };
        add(Endpoint::udp, port, Duration::ZERO);
        if port == IKE_PORT {
            add(Endpoint::udp, NAT_T_PORT, OTHER_PORT);
        }
        if config.profile.network.tcp_fallback {
            add(Endpoint::tcp, config.profile.gateway.tcp_port, OTHER_TRANSPORT);
        }
        Self {
            config,
            candidates,
            held_until,
            refused: None,
            stays: false,
        }
    }

    /// The network may have changed: the ways of all that wait for an answer are asked for again, and what had none may
    /// have one. Whether there was anything to ask for.
    pub(super) fn check(&mut self, events: &mut VecDeque<Event>, now: Instant) -> bool {
        self.stays = false;
        for candidate in &mut self.candidates {
            match &candidate.progress {
                Progress::Running { .. } => {
                    candidate.checking = true;
                    events.push_back(Event::Ask(Ask::Bind(candidate.way())));
                }
                Progress::Failed(failure) if matches!(failure.cause, Cause::NoRoute(_)) => {
                    candidate.progress = Progress::Waiting;
                    candidate.due = now;
                }
                Progress::Waiting
                | Progress::Binding(_)
                | Progress::Reconnecting(_)
                | Progress::Failed(_) => {}
            }
        }
        self.candidates.iter().any(|candidate| candidate.checking)
    }

    /// What a question of [`Self::check`] found out: whose way is unchanged goes on, and whose is not begins anew. None
    /// if it was no such question, else whether any way is left, as far as is known.
    pub(super) fn checked(
        &mut self,
        remote: Endpoint,
        result: &Result<Bound, HostFault>,
        now: Instant,
    ) -> Option<bool> {
        let asked = |candidate: &&mut Candidate| candidate.way() == remote && candidate.checking;
        let candidate = self.candidates.iter_mut().find(asked)?;
        candidate.checking = false;
        if let Progress::Running { bound, .. } = &candidate.progress {
            let present = bound.path;
            let is_unchanged = |way: &Bound| {
                let same_port = present.is_tcp() || way.path.local == present.local;
                way.path.local.ip() == present.local.ip() && same_port
            };
            if result.as_ref().is_ok_and(is_unchanged) {
                self.stays = true;
            } else {
                candidate.progress = Progress::Waiting;
                candidate.due = now;
            }
        }
        Some(self.stays || self.candidates.iter().any(|candidate| candidate.checking))
    }

    pub(super) fn poll_timeout(&self) -> Option<(Instant, Timer)> {
        let candidates = self
            .candidates
            .iter()
            .filter_map(|candidate| match &candidate.progress {
                // It waits for the one that resumes, which has a time of its own.
                Progress::Waiting if self.held_until.is_some() && candidate.ticket.is_none() => None,
                Progress::Waiting => Some((candidate.due, Timer::NextCandidate)),
                Progress::Running { sa, .. } => sa.poll_timeout(),
                Progress::Binding(since) => Some((*since + BINDING_PATIENCE, Timer::NextCandidate)),
                Progress::Reconnecting(sa) => sa.poll_timeout(),
                Progress::Failed(_) => None,
            });
        candidates
            .chain(self.refused.iter().map(|(_, until)| (*until, Timer::Refused)))
            .min()
    }

    /// Asks for sockets for the addresses whose turn it is.
    pub(super) fn ask(&mut self, events: &mut VecDeque<Event>, now: Instant) {
        if let Some(until) = self.held_until {
            let resuming = |candidate: &Candidate| candidate.ticket.is_some() && !candidate.has_failed();
            if self.candidates.iter().any(resuming) {
                // Nothing else begins: whoever has to type a code would be asked for it without need.
                return self.begin_due(events, now, |candidate| candidate.ticket.is_some());
            }
            let early = until.since(now);
            for candidate in &mut self.candidates {
                candidate.due = candidate.due - early;
            }
            self.held_until = None;
        }
        self.begin_due(events, now, |_| true);
    }

    fn begin_due(
        &mut self,
        events: &mut VecDeque<Event>,
        now: Instant,
        may_begin: impl Fn(&Candidate) -> bool,
    ) {
        let idle = self.candidates.iter().all(|candidate| !candidate.is_under_way());
        for index in 0..self.candidates.len() {
            let Some(candidate) = self.candidates.get(index) else {
                break;
            };
            let (remote, waiting) = (candidate.remote, matches!(candidate.progress, Progress::Waiting));
            // Nothing is gained by waiting for the next turn when nothing else is under way.
            let first = idle && !self.candidates.iter().take(index).any(Candidate::is_under_way);
            if !waiting || (now < candidate.due && !first) || !may_begin(candidate) {
                continue;
            }
            let reached = self
                .candidates
                .iter()
                .any(|other| other.remote.address.ip() == remote.address.ip() && other.is_refused());
            let Some(candidate) = self.candidates.get_mut(index) else {
                break;
            };
            if reached {
                // The gateway is there and said no; its other port would say the same.
                candidate.progress = Progress::Failed(Failure {
                    stage: Stage::Reach,
                    cause: Cause::NoAnswer,
                });
                continue;
            }
            candidate.progress = Progress::Binding(now);
            events.push_back(Event::Ask(Ask::Bind(remote)));
        }
    }

    /// A socket is there, or cannot be had. Whether it was waited for, and whether IKE_SA_INIT was sent.
    pub(super) fn bound(
        &mut self,
        remote: Endpoint,
        result: Result<Bound, HostFault>,
        cx: &mut Cx<'_>,
    ) -> (bool, bool) {
        let waiting = |candidate: &&mut Candidate| {
            candidate.remote == remote
                && matches!(
                    candidate.progress,
                    Progress::Binding(_) | Progress::Reconnecting(_)
                )
        };
        let Some(candidate) = self.candidates.iter_mut().find(waiting) else {
            return (false, false);
        };
        if let Progress::Reconnecting(sa) = &mut candidate.progress {
            let mut sa = std::mem::replace(sa, IkeSa::gone());
            candidate.progress = match result {
                Ok(bound) => {
                    sa.reconnect(bound.path, cx);
                    Progress::Running { sa, bound }
                }
                Err(fault) => Progress::Failed(no_connection(fault.reason)),
            };
            return (true, false);
        }
        let started = match result {
            Ok(bound) => {
                let ticket = candidate.ticket.clone();
                IkeSa::start(Arc::clone(&self.config), ticket, bound.path, cx).map(|sa| (sa, bound))
            }
            Err(fault) if remote.transport == Transport::Tcp => Err(no_connection(fault.reason)),
            Err(fault) => Err(Failure {
                stage: Stage::Reach,
                cause: Cause::NoRoute(fault),
            }),
        };
        let sent = started.is_ok();
        candidate.progress = match started {
            Ok((sa, bound)) => Progress::Running { sa, bound },
            Err(failure) => Progress::Failed(failure),
        };
        (true, sent)
    }

    /// A connection is gone. What was asked on it is asked again on another one, a few times.
    pub(super) fn closed(&mut self, socket: Endpoint, events: &mut VecDeque<Event>) {
        let is_it = |candidate: &&mut Candidate| matches!(&candidate.progress, Progress::Running { bound, .. } if bound.path.socket() == socket);
        let Some(candidate) = self.candidates.iter_mut().find(is_it) else {
            return;
        };
        let gone = Progress::Failed(no_connection("it closes the connection".into()));
        if let Progress::Running { sa, .. } = std::mem::replace(&mut candidate.progress, gone)
            && candidate.reconnects < MAX_RECONNECTS
        {
            candidate.reconnects += 1;
            candidate.progress = Progress::Reconnecting(sa);
            events.push_back(Event::Ask(Ask::Bind(candidate.remote)));
        }
    }

    /// Whether it needs this connection.
    pub(super) fn uses(&self, socket: Endpoint) -> bool {
        self.candidates.iter().any(|candidate| {
            matches!(&candidate.progress, Progress::Running { bound, .. } if bound.path.socket() == socket)
        })
    }

    /// Takes an IKE message if it is for one of its SAs.
    pub(super) fn handle_message(&mut self, path: Path, message: &mut [u8], cx: &mut Cx<'_>) -> bool {
        for candidate in &mut self.candidates {
            if let Progress::Running { sa, .. } = &mut candidate.progress
                && sa.is_for(message)
            {
                sa.handle_message(path, message, cx);
                candidate.note_failure(cx.news);
                return true;
            }
        }
        false
    }

    pub(super) fn handle_timeout(&mut self, cx: &mut Cx<'_>) {
        for candidate in &mut self.candidates {
            if matches!(candidate.progress, Progress::Binding(since) if cx.now >= since + BINDING_PATIENCE) {
                candidate.progress = Progress::Failed(no_connection("it does not answer".into()));
            }
            if let Progress::Running { sa, .. } | Progress::Reconnecting(sa) = &mut candidate.progress {
                if sa.poll_timeout().is_some_and(|(due, _)| cx.now >= due) {
                    sa.handle_timeout(cx);
                }
                candidate.note_failure(cx.news);
            }
        }
    }

    /// The winner, the failure of all or a redirect, or nothing yet.
    pub(super) fn outcome(
        &mut self,
        news: &mut VecDeque<News>,
        now: Instant,
    ) -> Option<Result<Winner, Failure>> {
        for candidate in &mut self.candidates {
            candidate.note_failure(news);
            if !matches!(&candidate.progress, Progress::Running { sa, .. } if sa.is_past_init()) {
                continue;
            }
            let gone = Progress::Failed(Failure {
                stage: Stage::Reach,
                cause: Cause::NoAnswer,
            });
            if let Progress::Running { sa, bound } = std::mem::replace(&mut candidate.progress, gone) {
                return Some(Ok(Winner { sa, bound }));
            }
        }
        let redirected = self
            .candidates
            .iter()
            .find_map(|candidate| match &candidate.progress {
                Progress::Failed(failure) if matches!(failure.cause, Cause::Redirected(_)) => Some(failure),
                _ => None,
            });
        if let Some(failure) = redirected {
            return Some(Err(failure.clone()));
        }
        if self.refused.is_none() {
            let refusals = self
                .candidates
                .iter()
                .filter_map(|candidate| match &candidate.progress {
                    Progress::Failed(failure) if failure.stage != Stage::Reach => {
                        Some((failure, candidate.remote.transport))
                    }
                    _ => None,
                });
            let refusal = refusals.max_by_key(|(failure, transport)| (failure.stage, *transport));
            self.refused = refusal.map(|(failure, transport)| {
                // Past IKE_SA_INIT it is our own credentials that do not serve: no other address changes that. Over TCP a
                // refusal is the gateway's own (RFC 9329, section 6.4), and UDP has been silent all the time.
                let patience = if failure.stage > Stage::IkeSaInit || transport == Transport::Tcp {
                    Duration::ZERO
                } else {
                    REFUSAL_STANDS
                };
                (failure.clone(), now + patience)
            });
        }
        let over = self
            .candidates
            .iter()
            .all(|candidate| matches!(candidate.progress, Progress::Failed(_)));
        match &self.refused {
            Some((failure, until)) if over || now >= *until => Some(Err(failure.clone())),
            None if over => Some(Err(self.worst())),
            Some(_) | None => None,
        }
    }

    /// What to tell when nothing answered: silence on the network says more than a family without a route.
    fn worst(&self) -> Failure {
        let failures = self
            .candidates
            .iter()
            .filter_map(|candidate| match &candidate.progress {
                Progress::Failed(failure) => Some(failure),
                Progress::Waiting
                | Progress::Binding(_)
                | Progress::Running { .. }
                | Progress::Reconnecting(_) => None,
            });
        let silent = failures.clone().find(|failure| failure.cause == Cause::NoAnswer);
        let tcp = failures
            .clone()
            .find(|failure| matches!(failure.cause, Cause::NoAnswerOverTcp(_)));
        tcp.filter(|_| silent.is_some())
            .or(silent)
            .or_else(|| failures.clone().next())
            .cloned()
            .unwrap_or(Failure {
                stage: Stage::Reach,
                cause: Cause::NoAnswer,
            })
    }
}

impl Candidate {
    const fn new(remote: Endpoint, due: Instant) -> Self {
        Self {
            remote,
            ticket: None,
            due,
            progress: Progress::Waiting,
            reconnects: 0,
            checking: false,
        }
    }

    const fn is_under_way(&self) -> bool {
        matches!(
            self.progress,
            Progress::Binding(_) | Progress::Running { .. } | Progress::Reconnecting(_)
        )
    }

    /// What to ask the host for to know its way: datagrams go the same way as a connection does, and cost nothing to ask
    /// about.
    const fn way(&self) -> Endpoint {
        Endpoint::udp(self.remote.address)
    }

    const fn has_failed(&self) -> bool {
        matches!(self.progress, Progress::Failed(_))
    }

    fn is_refused(&self) -> bool {
        // That the gateway does not resume says nothing of what else it does.
        if self.ticket.is_some() {
            return false;
        }
        match &self.progress {
            Progress::Running { sa, .. } | Progress::Reconnecting(sa) => sa.refusal().is_some(),
            Progress::Failed(failure) => failure.stage != Stage::Reach,
            Progress::Waiting | Progress::Binding(_) => false,
        }
    }

    /// The SA's own failure is this candidate's, not yet the attempt's.
    fn note_failure(&mut self, news: &mut VecDeque<News>) {
        let dead = matches!(&self.progress,
            Progress::Running { sa, .. } | Progress::Reconnecting(sa) if sa.spi().is_none());
        if !dead {
            return;
        }
        let position = news.iter().position(|news| matches!(news, News::Failed(_)));
        if let Some(News::Failed(failure)) = position.and_then(|index| news.remove(index)) {
            let counts = self.ticket.is_none() || matches!(failure.cause, Cause::Redirected(_));
            self.progress = Progress::Failed(match (failure.cause, self.remote.transport) {
                _ if !counts => Failure {
                    stage: Stage::Reach,
                    cause: Cause::NoAnswer,
                },
                (Cause::NoAnswer, Transport::Tcp) => {
                    no_connection("nothing answers on the connection".into())
                }
                (cause, _) => Failure { cause, ..failure },
            });
        }
    }
}

/// The gateway cannot be talked to over TCP, and why.
fn no_connection(reason: String) -> Failure {
    Failure {
        stage: Stage::Reach,
        cause: Cause::NoAnswerOverTcp(reason),
    }
}

/// IPv6 and IPv4 by turns, each in the resolver's order, IPv6 first if the resolver says so.
fn interleave(addresses: &[IpAddr]) -> Vec<IpAddr> {
    let first_is_v6 = addresses.first().is_some_and(IpAddr::is_ipv6);
    let (first, second): (Vec<IpAddr>, Vec<IpAddr>) = addresses
        .iter()
        .partition(|address| address.is_ipv6() == first_is_v6);
    let mut ordered: Vec<IpAddr> = Vec::new();
    for index in 0..first.len().max(second.len()) {
        let turn = first.get(index).into_iter().chain(second.get(index));
        for address in turn {
            if !ordered.contains(address) {
                ordered.push(*address);
            }
        }
    }
    ordered.truncate(MAX_ADDRESSES);
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_take_turns_and_nobody_is_asked_twice() {
        let parse = |texts: &[&str]| {
            texts
                .iter()
                .map(|text| text.parse().unwrap())
                .collect::<Vec<IpAddr>>()
        };
        let given = parse(&[
            "2001:db8::1",
            "2001:db8::2",
            "192.0.2.1",
            "2001:db8::1",
            "192.0.2.2",
        ]);
        assert_eq!(
            interleave(&given),
            parse(&["2001:db8::1", "192.0.2.1", "2001:db8::2", "192.0.2.2"])
        );
        let v4_first = parse(&["192.0.2.1", "2001:db8::1"]);
        assert_eq!(interleave(&v4_first), v4_first);
        let many: Vec<IpAddr> = (0..20).map(|last| IpAddr::from([192, 0, 2, last])).collect();
        assert_eq!(interleave(&many).len(), MAX_ADDRESSES);
    }
}
