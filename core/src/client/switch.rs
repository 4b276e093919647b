//! Between UDP and TCP, for a tunnel that is up: connections are asked for, UDP is asked from time to time whether it gets
//! through again (RFC 9329, sections 5.1, 6.1 and 7.1).

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use super::up::Up;
use crate::command::{Ask, Bound, Endpoint, Event, HostFault, Path, Transport};
use crate::ike::{Cx, Established};
use crate::timer::{Instant, Timer};

/// On TCP, UDP is asked for the first time after so long; each pause is twice as long as the one before.
const FIRST_PAUSE: Duration = Duration::from_secs(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(600);
/// UDP that has carried the tunnel for so long is asked as if it had never failed.
const PROVEN: Duration = Duration::from_secs(300);
/// A moment that does not suit is followed by another so soon.
const SOON: Duration = Duration::from_secs(2);
/// When a lost connection cannot be opened anew, the first pause before the next try, and the longest.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LONGEST_RETRY: Duration = Duration::from_secs(8);
/// A connection that lasted so long is opened anew at once when it is lost; one that did not, after a pause.
const LASTED: Duration = Duration::from_secs(2);
/// To so many addresses of the gateway connections are opened at once.
const MAX_CONNECTIONS: usize = 2;

/// What is under way between UDP and TCP.
pub(super) struct Switch {
    /// Connections that were asked for.
    connecting: Vec<Endpoint>,
    /// When a connection that was lost is asked for again, and the pause after that.
    retry_at: Option<Instant>,
    retry: Duration,
    /// When the connection in use was opened, if it took another one's place.
    opened_at: Option<Instant>,
    /// A UDP socket was asked for, to see whether UDP gets through.
    probing: Option<Endpoint>,
    /// When UDP is asked next, while the SA is on TCP, and the pause after that.
    probe_at: Option<Instant>,
    pause: Duration,
    /// Since when the SA is on the present transport.
    since: (Transport, Instant),
}

impl Switch {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            connecting: Vec::new(),
            retry_at: None,
            retry: FIRST_RETRY,
            opened_at: None,
            probing: None,
            probe_at: None,
            pause: FIRST_PAUSE,
            since: (Transport::Udp, now),
        }
    }

    /// The SA is on this path now.
    /// Only one that `may_return` can be told to go back to UDP.
    pub(super) fn arrived(&mut self, path: Path, may_return: bool, now: Instant) {
        self.retry_at = None;
        if path.transport == self.since.0 {
            return;
        }
        if path.is_tcp() {
            if now >= self.since.1 + PROVEN {
                self.pause = FIRST_PAUSE;
            }
            self.probe_at = may_return.then(|| now + self.pause);
        } else {
            self.probe_at = None;
        }
        self.since = (path.transport, now);
    }

    /// What was blocked before may not be any more.
    pub(super) fn network_changed(&mut self, now: Instant) {
        self.pause = FIRST_PAUSE;
        self.retry = FIRST_RETRY;
        self.probe_at = self.probe_at.map(|_| now);
        self.retry_at = self.retry_at.map(|_| now);
    }

    pub(super) fn poll_timeout(&self, sa: Option<&Established>) -> Option<(Instant, Timer)> {
        let is_cut = sa.is_some_and(Established::is_cut);
        let times = [self.retry_at.filter(|_| is_cut), self.probe_at];
        let next = times.into_iter().flatten().min()?;
        Some((next, Timer::NextCandidate))
    }
}

impl Up {
    /// Asks for connections to the gateway.
    pub(super) fn connect(&mut self, events: &mut VecDeque<Event>) {
        let Some(path) = self.sa.established().map(Established::path) else {
            return;
        };
        let port = if path.is_tcp() {
            path.remote.port()
        } else {
            self.config.profile.gateway.tcp_port
        };
        let remotes = self.remotes().into_iter().take(MAX_CONNECTIONS);
        for remote in remotes {
            let remote = Endpoint::tcp(SocketAddr::new(remote.address.ip(), port));
            if !self.switch.connecting.contains(&remote) {
                self.switch.connecting.push(remote);
            }
            events.push_back(Event::Ask(Ask::Bind(remote)));
        }
    }

    /// A connection was lost, and another one is asked for: at once, unless it did not last.
    pub(super) fn connect_after_loss(&mut self, events: &mut VecDeque<Event>, now: Instant) {
        let opened = self.switch.opened_at;
        if opened.is_none_or(|opened| now >= opened + LASTED) {
            self.switch.retry = FIRST_RETRY;
            return self.connect(events);
        }
        self.switch.retry_at = Some(now + self.switch.retry);
        self.switch.retry = (self.switch.retry * 2).min(LONGEST_RETRY);
    }

    /// What is due.
    pub(super) fn switch_on_time(&mut self, events: &mut VecDeque<Event>, cx: &mut Cx<'_>) {
        let is_cut = self.sa.established().is_some_and(Established::is_cut);
        if is_cut && self.switch.retry_at.is_some_and(|at| cx.now >= at) {
            self.switch.retry_at = None;
            self.connect(events);
        }
        if self.switch.probe_at.is_some_and(|at| cx.now >= at) {
            self.switch.probe_at = Some(cx.now + self.switch.pause);
            self.switch.pause = (self.switch.pause * 2).min(LONGEST_PAUSE);
            if let Some(remote) = self.remotes().first().copied() {
                self.switch.probing = Some(remote);
                events.push_back(Event::Ask(Ask::Bind(remote)));
            }
        }
    }

    /// Takes an answer if it is about a connection, or a socket to ask UDP from.
    pub(super) fn switch_answered(
        &mut self,
        remote: Endpoint,
        result: &Result<Bound, HostFault>,
        cx: &mut Cx<'_>,
    ) -> bool {
        if self.switch.probing == Some(remote) {
            self.switch.probing = None;
            if let Ok(bound) = result {
                self.probe(bound, cx);
            }
            return true;
        }
        if !self.switch.connecting.contains(&remote) {
            return false;
        }
        self.switch.connecting.retain(|asked| *asked != remote);
        let Some(established) = self.sa.established_mut() else {
            return true;
        };
        match result {
            Ok(bound) => {
                if established.connected(bound.path, cx) {
                    self.switch.opened_at = Some(cx.now);
                    self.note_connection(bound);
                }
            }
            Err(fault) => {
                tracing::debug!(%fault, "no TCP connection to the gateway");
                if established.is_cut() && self.switch.connecting.is_empty() {
                    self.switch.retry_at = Some(cx.now + self.switch.retry);
                    self.switch.retry = (self.switch.retry * 2).min(LONGEST_RETRY);
                }
            }
        }
        true
    }

    fn probe(&mut self, bound: &Bound, cx: &mut Cx<'_>) {
        let Some(established) = self.sa.established_mut() else {
            return;
        };
        if established.probe_udp(bound.path, cx) {
            self.note_connection(bound);
        } else if established.path().is_tcp() {
            self.switch.probe_at = Some(cx.now + SOON);
        }
        // Unless it becomes the way, nobody needs the socket for long.
        self.leave_path(bound.path.socket(), cx.now);
    }
}
