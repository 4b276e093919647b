//! One attempt to get an IKE SA with its child: look up the name, race the addresses, negotiate.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;

use super::race::{Race, Winner};
use crate::command::{
    Answer, Ask, Bound, Cause, Endpoint, Event, Failure, HostFault, Path, PromptId, Redirect, Stage,
};
use crate::crypto::Secret;
use crate::ike::{Cx, IkeSa, News, SaConfig};
use crate::profile::Host;
use crate::timer::{Instant, Timer};

/// So often a connection that is lost while the SA is negotiated is opened anew.
const MAX_RECONNECTS: u8 = 5;

/// An attempt under way.
pub(super) struct Attempt {
    config: Arc<SaConfig>,
    /// The gateway's addresses, once they are known.
    addresses: Vec<IpAddr>,
    progress: Progress,
    /// How far it has come.
    stage: Stage,
    /// The way to this address is asked for again, to see whether it is still the one in use.
    checking: Option<Endpoint>,
    /// How often the TCP connection was opened anew.
    reconnects: u8,
    /// Questions about the name whose answers do not count any more: each gets one, in its own time.
    outdated: u32,
    /// What is negotiated began with a ticket.
    resuming: bool,
    /// An SA that was given up before this one may exist at the gateway.
    left_one: bool,
}

enum Progress {
    Resolving(String),
    Racing(Box<Race>),
    Negotiating { sa: IkeSa, bound: Bound },
    Over,
}

/// An IKE SA that is up.
pub(super) struct Ready {
    pub(super) config: Arc<SaConfig>,
    pub(super) sa: IkeSa,
    pub(super) bound: Bound,
    /// All addresses of the gateway that its name has here.
    pub(super) addresses: Vec<IpAddr>,
}

impl Attempt {
    /// Begins with a question about the gateway's name, or with its address.
    pub(super) fn start(config: Arc<SaConfig>, events: &mut VecDeque<Event>, now: Instant) -> Self {
        let mut attempt = Self {
            config,
            addresses: Vec::new(),
            progress: Progress::Over,
            stage: Stage::Resolve,
            checking: None,
            reconnects: 0,
            outdated: 0,
            resuming: false,
            left_one: false,
        };
        attempt.begin(events, now);
        attempt
    }

    /// Whether the gateway may have an SA that this attempt asked for.
    pub(super) fn may_be_made(&self) -> bool {
        self.left_one || self.stage >= Stage::IkeAuth
    }

    fn begin(&mut self, events: &mut VecDeque<Event>, now: Instant) {
        self.left_one = self.may_be_made();
        match self.config.host().clone() {
            Host::Name(name) => {
                events.push_back(Event::Ask(Ask::Resolve(name.clone())));
                self.progress = Progress::Resolving(name);
                self.stage = Stage::Resolve;
            }
            Host::Address(address) => self.race(vec![address], events, now),
        }
    }

    fn race(&mut self, addresses: Vec<IpAddr>, events: &mut VecDeque<Event>, now: Instant) {
        let mut race = Race::new(Arc::clone(&self.config), &addresses, now);
        race.ask(events, now);
        self.addresses = addresses;
        self.progress = Progress::Racing(Box::new(race));
        self.stage = Stage::Reach;
    }

    /// The gateway has accepted a ticket of ours: the SA that it stands for may be gone there.
    pub(super) fn is_resuming(&self) -> bool {
        matches!(&self.progress, Progress::Negotiating { sa, .. } if sa.is_resumed())
    }

    /// How far it has come.
    pub(super) fn stage(&self) -> Stage {
        self.stage
    }

    /// The socket in use, once one address has answered.
    pub(super) fn bound(&self) -> Option<&Bound> {
        match &self.progress {
            Progress::Negotiating { bound, .. } => Some(bound),
            Progress::Resolving(_) | Progress::Racing(_) | Progress::Over => None,
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<(Instant, Timer)> {
        match &self.progress {
            Progress::Resolving(_) | Progress::Over => None,
            Progress::Racing(race) => race.poll_timeout(),
            Progress::Negotiating { sa, .. } => sa.poll_timeout(),
        }
    }

    /// The machine's networks may have changed. Whoever waits for an answer on another one begins anew; what the gateway
    /// has answered goes on.
    pub(super) fn network_changed(&mut self, events: &mut VecDeque<Event>, cx: &mut Cx<'_>) {
        match &mut self.progress {
            Progress::Resolving(_) => {
                self.outdated = self.outdated.saturating_add(1);
                self.begin(events, cx.now);
            }
            // A network that changes again and again must not keep an answer from being waited for.
            Progress::Racing(race) => {
                if !race.check(events, cx.now) {
                    self.begin(events, cx.now);
                }
            }
            Progress::Negotiating { bound, .. } => {
                // Datagrams go the same way as a connection does, and cost nothing to ask about.
                let remote = Endpoint::udp(bound.path.remote);
                self.checking = Some(remote);
                events.push_back(Event::Ask(Ask::Bind(remote)));
            }
            Progress::Over => {}
        }
    }

    /// What went out on another network is begun anew.
    fn restart(&mut self, events: &mut VecDeque<Event>, cx: &mut Cx<'_>) {
        self.abandon(cx);
        self.begin(events, cx.now);
    }

    /// Takes an answer if it is for this attempt.
    pub(super) fn handle_answer(
        &mut self,
        answer: &Answer,
        events: &mut VecDeque<Event>,
        cx: &mut Cx<'_>,
    ) -> bool {
        match (&mut self.progress, answer) {
            (Progress::Resolving(asked), Answer::Resolved { name, .. })
                if asked == name && self.outdated > 0 =>
            {
                self.outdated -= 1;
                true
            }
            (Progress::Resolving(asked), Answer::Resolved { name, result }) if asked == name => {
                self.resolved(result, events, cx);
                true
            }
            (Progress::Racing(race), Answer::Bound(remote, result)) => {
                match race.checked(*remote, result, cx.now) {
                    Some(true) => {
                        race.ask(events, cx.now);
                        return true;
                    }
                    Some(false) => {
                        self.begin(events, cx.now);
                        return true;
                    }
                    None => {}
                }
                let (taken, sent) = race.bound(*remote, result.clone(), cx);
                if sent {
                    self.stage = self.stage.max(Stage::IkeSaInit);
                }
                taken
            }
            (Progress::Negotiating { bound, .. }, Answer::Bound(remote, result))
                if self.checking == Some(*remote) =>
            {
                self.checking = None;
                let stays = result.as_ref().is_ok_and(|way| {
                    let same_port = bound.path.is_tcp() || way.path.local == bound.path.local;
                    way.path.local.ip() == bound.path.local.ip() && same_port
                });
                if !stays {
                    self.restart(events, cx);
                }
                true
            }
            (Progress::Negotiating { sa, .. }, Answer::Fetched(id, result)) => {
                sa.fetched(*id, result, cx);
                true
            }
            (Progress::Negotiating { sa, bound }, Answer::Bound(remote, result))
                if *remote == bound.path.gateway() && self.reconnects > 0 =>
            {
                match result {
                    Ok(new) => {
                        *bound = new.clone();
                        sa.reconnect(new.path, cx);
                    }
                    Err(_) => cx.news.push_back(News::Failed(Failure {
                        stage: self.stage,
                        cause: Cause::WentSilent,
                    })),
                }
                true
            }
            _ => false,
        }
    }

    /// A TCP connection is gone. The SA that is being made on it is not (RFC 9329, section 6.1).
    pub(super) fn closed(&mut self, socket: Endpoint, events: &mut VecDeque<Event>, cx: &mut Cx<'_>) {
        match &mut self.progress {
            Progress::Racing(race) => race.closed(socket, events),
            Progress::Negotiating { bound, .. } if bound.path.socket() == socket => {
                self.reconnects += 1;
                if self.reconnects > MAX_RECONNECTS {
                    cx.news.push_back(News::Failed(Failure {
                        stage: self.stage,
                        cause: Cause::WentSilent,
                    }));
                } else {
                    events.push_back(Event::Ask(Ask::Bind(bound.path.gateway())));
                }
            }
            Progress::Resolving(_) | Progress::Negotiating { .. } | Progress::Over => {}
        }
    }

    /// Whether it needs this connection.
    pub(super) fn uses(&self, socket: Endpoint) -> bool {
        match &self.progress {
            Progress::Racing(race) => race.uses(socket),
            Progress::Negotiating { bound, .. } => bound.path.socket() == socket,
            Progress::Resolving(_) | Progress::Over => false,
        }
    }

    fn resolved(
        &mut self,
        result: &Result<Vec<IpAddr>, HostFault>,
        events: &mut VecDeque<Event>,
        cx: &mut Cx<'_>,
    ) {
        let addresses = result.clone().unwrap_or_default();
        if !addresses.is_empty() {
            return self.race(addresses, events, cx.now);
        }
        self.progress = Progress::Over;
        cx.news.push_back(News::Failed(Failure {
            stage: Stage::Resolve,
            cause: Cause::NameNotFound(self.config.host().to_string()),
        }));
    }

    /// Takes the user's answer if this attempt has asked for it.
    pub(super) fn reply(&mut self, id: PromptId, answer: Option<&Secret>, cx: &mut Cx<'_>) {
        if let Progress::Negotiating { sa, .. } = &mut self.progress {
            sa.reply(id, answer, cx);
        }
    }

    /// Takes an IKE message if it is for this attempt.
    pub(super) fn handle_message(&mut self, path: Path, message: &mut [u8], cx: &mut Cx<'_>) -> bool {
        match &mut self.progress {
            Progress::Resolving(_) | Progress::Over => false,
            Progress::Racing(race) => race.handle_message(path, message, cx),
            Progress::Negotiating { sa, .. } if sa.is_for(message) => {
                sa.handle_message(path, message, cx);
                true
            }
            Progress::Negotiating { .. } => false,
        }
    }

    pub(super) fn handle_timeout(&mut self, events: &mut VecDeque<Event>, cx: &mut Cx<'_>) {
        match &mut self.progress {
            Progress::Resolving(_) | Progress::Over => {}
            Progress::Racing(race) => {
                race.handle_timeout(cx);
                race.ask(events, cx.now);
            }
            Progress::Negotiating { sa, .. } => sa.handle_timeout(cx),
        }
    }

    /// What came of it, or nothing yet. `news` is what its SAs said since the last call.
    pub(super) fn outcome(
        &mut self,
        events: &mut VecDeque<Event>,
        news: &mut VecDeque<News>,
        now: Instant,
    ) -> Option<Result<Ready, Failure>> {
        if let Progress::Racing(race) = &mut self.progress {
            match race.outcome(news, now) {
                None => race.ask(events, now),
                Some(Ok(Winner { sa, bound })) => {
                    self.resuming = sa.is_resumed();
                    self.progress = Progress::Negotiating { sa, bound };
                }
                Some(Err(failure)) => {
                    news.clear();
                    return self.fail(failure, events, now).map(Err);
                }
            }
        }
        while let Some(item) = news.pop_front() {
            match item {
                News::Stage(stage) => self.stage = self.stage.max(stage),
                News::Prompt(prompt) => events.push_back(Event::Ask(Ask::Prompt(prompt))),
                News::Fetch(fetch) => events.push_back(Event::Ask(Ask::Fetch(fetch))),
                News::Failed(failure) => return self.fail(failure, events, now).map(Err),
                News::Up => {
                    if let Progress::Negotiating { sa, mut bound } =
                        std::mem::replace(&mut self.progress, Progress::Over)
                    {
                        if let Some(established) = sa.established() {
                            bound.path = established.path();
                        }
                        return Some(Ok(Ready {
                            config: Arc::clone(&self.config),
                            sa,
                            bound,
                            addresses: std::mem::take(&mut self.addresses),
                        }));
                    }
                }
                _ => {}
            }
        }
        None
    }

    /// Its SA has failed: the end, unless the gateway only sends us elsewhere, or does not resume.
    fn fail(&mut self, failure: Failure, events: &mut VecDeque<Event>, now: Instant) -> Option<Failure> {
        let was_resuming = std::mem::take(&mut self.resuming);
        self.progress = Progress::Over;
        let Cause::Redirected(redirect) = &failure.cause else {
            if !was_resuming {
                return Some(failure);
            }
            tracing::info!(message = %failure.message(), "the IKE SA cannot be resumed: authenticating anew");
            self.config = Arc::new(self.config.again(&self.config.former));
            self.begin(events, now);
            return None;
        };
        let Failure { stage, .. } = failure;
        self.follow(redirect, events, now)
            .err()
            .map(|cause| Failure { stage, cause })
    }

    /// Goes on at another gateway (RFC 5685).
    fn follow(
        &mut self,
        redirect: &Redirect,
        events: &mut VecDeque<Event>,
        now: Instant,
    ) -> Result<(), Cause> {
        self.config = Arc::new(self.config.follow(redirect, now)?);
        tracing::info!(from = %redirect.from, to = %redirect.to, "the gateway sends us to another one");
        self.begin(events, now);
        Ok(())
    }

    /// Nobody wants it any more: a gateway that has an SA half made is told.
    pub(super) fn abandon(&mut self, cx: &mut Cx<'_>) {
        if let Progress::Negotiating { mut sa, .. } = std::mem::replace(&mut self.progress, Progress::Over) {
            sa.close(cx);
        }
        cx.news.clear();
    }
}
