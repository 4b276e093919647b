//! Between UDP and TCP (RFC 9329): to a TCP connection where UDP does not get through, back when it does, and to
//! another connection when one is lost.

use std::time::Duration;

use super::established::Established;
use super::mobility::Probe;
use super::{Cx, News};
use crate::command::{Endpoint, Means, Path};
use crate::timer::Instant;

/// What was sent over UDP so often without an answer is tried over TCP too (RFC 9329, section 7.1).
const UDP_TRIES: u32 = 4;
/// The same where UDP did not get through before.
const DOUBTFUL_UDP_TRIES: u32 = 3;
/// A connection on which nothing has come back for that many waits (6 s, or 3.6 s where the network has just changed) may
/// be dead without a word: another one is tried.
const TCP_WAITS: u32 = 5;
/// While there is no answer, a connection is asked for so often.
const ASK_AGAIN: Duration = Duration::from_secs(8);
/// So often a question that only tells whether UDP gets through is sent there, within two seconds.
const PROBES: u32 = 3;

impl Established {
    /// Whether the SA needs this socket or connection.
    pub(super) fn uses(&self, socket: Endpoint) -> bool {
        let moving = self.mobility.moving.as_ref();
        let others = moving
            .iter()
            .flat_map(|moving| moving.connections.iter().chain([&moving.from]));
        self.channel.path.socket() == socket || others.copied().any(|path| path.socket() == socket)
    }

    /// The SA is on a TCP connection that is gone.
    pub(crate) fn is_cut(&self) -> bool {
        self.mobility.is_cut
    }

    /// The connection of the present path is gone. The SA stays (RFC 9329, section 6.1); whether the gateway does will be
    /// asked on the next one.
    pub(crate) fn cut(&mut self, cx: &mut Cx<'_>) {
        self.mobility.is_cut = true;
        self.mobility.probe = None;
        self.mobility.asked = Some(cx.now);
        self.check(cx);
        if self.channel.is_free() {
            // An empty request can always be sent.
            let _ = self.turn(cx);
        }
    }

    /// There is another TCP connection instead of the one that carried the SA.
    pub(super) fn reconnect(&mut self, path: Path, cx: &mut Cx<'_>) {
        self.begin_move(vec![path], Means::NewConnection, cx);
        self.mobility.asked = Some(cx.now);
        self.channel.repeat_answer(cx);
        if self.channel.is_free() {
            if !self.mobility.supported {
                self.check(cx);
            }
            let _ = self.turn(cx);
        } else {
            self.channel.follow(path, cx);
        }
    }

    /// A TCP connection to the gateway is there; whether it is of any use.
    pub(crate) fn connected(&mut self, path: Path, cx: &mut Cx<'_>) -> bool {
        if self.channel.is_free() && !self.mobility.is_cut {
            return false; // answered meanwhile
        }
        if self.channel.path.is_tcp() {
            self.reconnect(path, cx);
            return true;
        }
        if !self.mobility.supported {
            return false;
        }
        if self.mobility.moving.is_none() {
            let present = self.channel.path;
            self.begin_move(vec![present], Means::Mobike, cx);
            self.mobility.asked = Some(cx.now);
        }
        if let Some(moving) = &mut self.mobility.moving {
            moving.connections.push(path);
        }
        // The same request, not a new one (RFC 9329, section 7.1).
        self.channel.try_path(path, cx);
        true
    }

    /// A request is sent on every connection that is tried, once: TCP repeats it for us.
    pub(super) fn try_connections(&mut self, cx: &mut Cx<'_>) {
        let moving = self.mobility.moving.iter();
        let others: Vec<Path> = moving
            .flat_map(|moving| moving.connections.iter().copied())
            .filter(|path| *path != self.channel.path)
            .collect();
        for path in others {
            self.channel.try_path(path, cx);
        }
    }

    /// A connection that was tried, and did not carry the SA yet, is gone.
    pub(crate) fn lost_connection(&mut self, socket: Endpoint) {
        if let Some(moving) = &mut self.mobility.moving {
            moving.connections.retain(|path| path.socket() != socket);
        }
    }

    /// Asks along `path` whether UDP gets through while the SA is on TCP; false when it is not the time for that.
    pub(crate) fn probe_udp(&mut self, path: Path, cx: &mut Cx<'_>) -> bool {
        let is_time = self.channel.path.is_tcp()
            && self.mobility.supported
            && !self.mobility.is_cut
            && self.mobility.moving.is_none()
            && self.channel.is_free()
            && self.heir.is_none();
        if !is_time {
            return false;
        }
        let tcp = std::mem::replace(&mut self.channel.path, path);
        let asked = self.ask_liveness(cx);
        self.channel.path = tcp;
        if asked.is_err() {
            return false;
        }
        self.channel.be_quick(cx);
        self.mobility.probe = Some(Probe { path, sent: 1 });
        true
    }

    pub(super) fn transport_on_time(&mut self, cx: &mut Cx<'_>) {
        if self.mobility.probe.is_some() {
            return self.probe_on_time(cx);
        }
        if self.needs_connection(cx.now) {
            self.mobility.asked = Some(cx.now);
            cx.news.push_back(News::NeedsConnection);
        }
    }

    fn needs_connection(&self, now: Instant) -> bool {
        let was_tcp = self
            .mobility
            .moving
            .as_ref()
            .is_some_and(|moving| moving.from.is_tcp());
        let tries = match (self.channel.path.is_tcp(), was_tcp) {
            (true, _) => TCP_WAITS,
            (false, true) => DOUBTFUL_UDP_TRIES,
            (false, false) => UDP_TRIES,
        };
        self.config.profile.network.tcp_fallback
            && !self.mobility.is_cut
            && (self.mobility.supported || self.channel.path.is_tcp())
            && self.channel.transmissions() >= tries
            && self.mobility.asked.is_none_or(|asked| now >= asked + ASK_AGAIN)
    }

    /// Repeats the question over UDP, and asks it over TCP when UDP stays silent.
    fn probe_on_time(&mut self, cx: &mut Cx<'_>) {
        let count = self.channel.transmissions();
        let Some(probe) = self.mobility.probe.as_mut().filter(|probe| count > probe.sent) else {
            return;
        };
        probe.sent = count;
        let path = probe.path;
        if count <= PROBES {
            return self.channel.try_path(path, cx);
        }
        self.mobility.probe = None;
        // From now on it waits as any request over TCP does.
        self.channel.be_quick(cx);
        let tcp = self.channel.path;
        self.channel.try_path(tcp, cx);
    }
}
