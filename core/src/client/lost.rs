//! A tunnel whose IKE SA is gone: the machine stays as it is while a new SA is made, however long that takes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::attempt::{Attempt, Ready};
use super::up::{Parts, Up, new_or_resumed};
use super::{Client, Phase, Then, back_off};
use crate::command::{
    Answer, Bound, Cause, Endpoint, Event, Failure, Path, PromptId, Reconnect, Transport, Why,
};
use crate::crypto::Secret;
use crate::eap::EapError;
use crate::ike::{Cx, IkeSa, News, SaConfig, Ticket};
use crate::pki::CertError;
use crate::plan::TunnelConfig;
use crate::timer::{Instant, Timer};

/// After so many attempts at a gateway that another one sent us to, we begin at the profile's own, whatever ticket we
/// have.
const REDIRECTED_ATTEMPTS: u32 = 3;
/// A gateway that ended the SA is left alone for so long.
const AFTER_DELETE: Duration = Duration::from_secs(5);

/// The pause after a gateway has refused our credential again: a minute, doubled each time up to a quarter of an hour.
/// The first refusal may have been a damaged message.
pub(super) fn after_refusal(refusals: u32) -> Duration {
    const FIRST: Duration = Duration::from_secs(60);
    const LONGEST: Duration = Duration::from_secs(900);
    match refusals {
        0 | 1 => Duration::ZERO,
        again => FIRST.saturating_mul(1 << (again - 2).min(8)).min(LONGEST),
    }
}

pub(super) struct Lost {
    config: Arc<SaConfig>,
    pub(super) tunnel: TunnelConfig,
    /// The way that the lost SA took.
    bound: Bound,
    pub(super) why: Why,
    began: Instant,
    pub(super) failures: u32,
    /// How many of them were refusals of our credential.
    refusals: u32,
    /// Why the last attempt failed, or why the SA is gone.
    pub(super) failure: Failure,
    /// None while the next attempt is waited for.
    pub(super) attempt: Option<Attempt>,
    pub(super) retry_at: Instant,
    /// What the lost SA can be resumed with (RFC 5723).
    ticket: Option<Arc<Ticket>>,
    /// The lost SA, if the gateway has to be told that it is over should it not be resumed.
    pub(super) behind: Option<IkeSa>,
    news: VecDeque<News>,
    changed: bool,
}

impl Lost {
    /// An attempt that was under way beside the SA goes on.
    pub(super) fn new(up: Up, failure: Failure, events: &mut VecDeque<Event>, cx: &mut Cx<'_>) -> Self {
        let Parts {
            config,
            tunnel,
            bound,
            beside,
            is_offline,
            left,
            ticket,
            behind,
        } = up.into_parts();
        // Nothing is expected any more on the ways that were left.
        let attempt = beside.as_ref().and_then(|beside| beside.attempt.as_ref());
        let left = left.into_iter().filter(|socket| {
            let is_used =
                *socket == bound.path.socket() || attempt.is_some_and(|attempt| attempt.uses(*socket));
            !is_used && socket.transport == Transport::Udp
        });
        events.extend(left.map(Event::Release));
        let why = match &failure.cause {
            _ if is_offline => Why::Offline,
            Cause::DeletedByGateway | Cause::EndedByGateway(_) | Cause::AuthenticationFailed => {
                Why::DeletedByGateway
            }
            Cause::Expired | Cause::Exhausted => Why::Expired,
            Cause::LeftBehind => Why::NetworkChanged,
            _ => Why::PeerDead,
        };
        let wait = if why == Why::DeletedByGateway {
            AFTER_DELETE
        } else {
            Duration::ZERO
        };
        let mut lost = Self {
            config,
            tunnel,
            bound,
            why,
            began: cx.now,
            failures: 0,
            refusals: 0,
            failure,
            attempt: None,
            retry_at: cx.now + wait,
            ticket,
            behind,
            news: VecDeque::new(),
            changed: false,
        };
        match beside.map(|beside| beside.into_attempt()) {
            Some((why, began, failures, attempt, news)) => {
                lost.why = why;
                lost.began = began;
                lost.failures = failures;
                lost.attempt = attempt;
                lost.news = news;
                // The end of what had to be replaced was expected: there is nothing to wait for.
                let expected = matches!(
                    why,
                    Why::AuthLifetime | Why::RekeyRefused | Why::Redirected | Why::Silent
                );
                if lost.attempt.is_none() && expected {
                    lost.begin(events, cx);
                }
            }
            None if wait.is_zero() => lost.begin(events, cx),
            None => {}
        }
        lost
    }

    fn begin(&mut self, events: &mut VecDeque<Event>, cx: &mut Cx<'_>) {
        // A ticket leads to the gateway that gave it, even if another one sent us there.
        let ticket = self.ticket.clone().filter(|ticket| ticket.is_good(cx.now));
        let config = match ticket {
            Some(ticket) => self.config.again(&self.tunnel.addresses).with(Some(ticket)),
            None => self.config.anew(&self.tunnel.addresses),
        };
        self.attempt = Some(Attempt::start(Arc::new(config), events, cx.now));
        self.changed = true;
    }

    pub(super) fn poll_timeout(&self) -> Option<(Instant, Timer)> {
        match &self.attempt {
            Some(attempt) => attempt.poll_timeout(),
            None => Some((self.retry_at, Timer::Reconnect)),
        }
    }

    pub(super) fn handle_timeout(&mut self, events: &mut VecDeque<Event>, cx: &mut Cx<'_>) {
        match &mut self.attempt {
            Some(attempt) => {
                attempt.handle_timeout(events, cx);
                self.news.append(cx.news);
            }
            None if cx.now >= self.retry_at => self.begin(events, cx),
            None => {}
        }
    }

    pub(super) fn handle_answer(&mut self, answer: &Answer, events: &mut VecDeque<Event>, cx: &mut Cx<'_>) {
        if let Some(attempt) = &mut self.attempt {
            attempt.handle_answer(answer, events, cx);
            self.news.append(cx.news);
        }
    }

    pub(super) fn closed(&mut self, socket: Endpoint, events: &mut VecDeque<Event>, cx: &mut Cx<'_>) {
        if let Some(attempt) = &mut self.attempt {
            attempt.closed(socket, events, cx);
            self.news.append(cx.news);
        }
    }

    pub(super) fn reply(&mut self, id: PromptId, answer: Option<&Secret>, cx: &mut Cx<'_>) {
        if let Some(attempt) = &mut self.attempt {
            attempt.reply(id, answer, cx);
            self.news.append(cx.news);
        }
    }

    pub(super) fn handle_message(&mut self, path: Path, message: &mut [u8], cx: &mut Cx<'_>) {
        if let Some(attempt) = &mut self.attempt {
            attempt.handle_message(path, message, cx);
            self.news.append(cx.news);
        }
    }

    /// On another network, or after sleep, the next attempt begins at once.
    pub(super) fn network_changed(&mut self, events: &mut VecDeque<Event>, cx: &mut Cx<'_>) {
        match &mut self.attempt {
            Some(attempt) => attempt.network_changed(events, cx),
            None => {
                self.failures = 0;
                self.begin(events, cx);
            }
        }
    }
}

impl Client {
    /// Acts on what became of the attempt.
    pub(super) fn settle_lost(&mut self, mut lost: Box<Lost>, now: Instant) {
        lost.news.append(&mut self.io.news);
        let outcome = lost
            .attempt
            .as_mut()
            .and_then(|attempt| attempt.outcome(&mut self.io.events, &mut lost.news, now));
        match outcome {
            None => {
                let changed = std::mem::take(&mut lost.changed);
                self.phase = Phase::Lost(lost);
                if changed {
                    self.announce();
                }
            }
            Some(Ok(ready)) => self.come_back(*lost, ready, now),
            Some(Err(failure)) => {
                lost.attempt = None;
                lost.failures += 1;
                if lost.failures >= REDIRECTED_ATTEMPTS && lost.config.redirected.last().is_some() {
                    lost.ticket = None;
                }
                lost.failure = failure.clone();
                lost.refusals += u32::from(is_refusal(&failure.cause));
                let pause = back_off(lost.failures - 1, &mut self.io.rng);
                lost.retry_at = now
                    + if is_refusal(&failure.cause) {
                        pause.max(after_refusal(lost.refusals))
                    } else {
                        pause
                    };
                let failures = lost.failures;
                self.phase = Phase::Lost(lost);
                if is_final(&failure, failures) {
                    self.leave(Then::Fail(failure), now);
                } else {
                    self.announce();
                }
            }
        }
    }

    fn come_back(&mut self, lost: Lost, ready: Ready, now: Instant) {
        let Some(mut up) = Up::new(ready, now) else { return };
        let (from, to) = (lost.bound.path, up.bound.path);
        let resumed = up.sa.is_resumed();
        if let Some(mut behind) = lost.behind.filter(|_| !resumed) {
            if let Some(old) = behind.established_mut() {
                old.leave_along(to);
            }
            self.end(behind, now);
        }
        up.was_up();
        if from.socket() != to.socket() && !from.is_tcp() {
            self.io.events.push_back(Event::Release(from.socket()));
        }
        if up.tunnel == lost.tunnel {
            up.applied = true;
        } else {
            self.io.events.push_back(Event::Plan(up.tunnel.clone().into()));
        }
        self.shown.since = Some(self.io.unix(now));
        self.phase = Phase::Up(Box::new(up));
        let again = Reconnect {
            why: lost.why,
            means: new_or_resumed(resumed),
            attempts: lost.failures + 1,
            took: now.since(lost.began),
        };
        self.tell_reconnected(again, from, to);
    }
}

/// Whether the same is likely to come again, so that it is tried at long intervals.
pub(super) fn is_refusal(cause: &Cause) -> bool {
    matches!(
        cause,
        Cause::AuthenticationFailed
            | Cause::Certificate(CertError::Revoked { .. })
            | Cause::Eap(EapError::ServerCertificate(CertError::Revoked { .. }))
    )
}

/// Whether another attempt can only fail again, or do harm: a wrong password is not sent twice, because accounts are
/// locked for that. Neither AUTHENTICATION_FAILED is among these, which comes before the gateway has proven anything, nor a
/// revoked certificate, which anybody may show who has stolen its key: whoever is in the path must not be able to end a
/// tunnel, and lead its traffic beside it ([`is_refusal`]).
pub(super) fn is_final(failure: &Failure, failures: u32) -> bool {
    match &failure.cause {
        Cause::Eap(
            EapError::Refused
            | EapError::MsChap { .. }
            | EapError::Credential(_)
            | EapError::ServerUnproven
            | EapError::Unbound,
        )
        | Cause::Credential(_)
        | Cause::Unanswered(_)
        | Cause::OneRoundOnly
        | Cause::Host(_) => true,
        Cause::Eap(EapError::TlsAlert(_)) => failures > 1,
        _ => false,
    }
}
