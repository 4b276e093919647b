//! An IKE SA that is up: liveness, the gateway's requests, and its end (RFC 7296, sections 1.4 and 2.4).

use std::sync::Arc;
use std::time::Duration;

use super::channel::{Channel, Opened};
use super::child::{ChildSa, InnerNetwork, Made};
use super::nat::Nat;
use super::proof::PeerVerified;
use super::{Broken, Cx, News, Next, SaConfig, State, delete_ike, notify};
use crate::command::{Cause, Failure, Path, Stage};
use crate::esp::Discard;
use crate::proposal::IkeSuite;
use crate::timer::{Instant, Timer, UnixTime};
use crate::wire::iana::{ExchangeType, NotifyType, ProtocolId};
use crate::wire::{Delete, Header, Payload};

/// A gateway that has not answered a request within this time is gone.
const PATIENCE: Duration = Duration::from_secs(30);
/// The silence after which a NAT may forget us (RFC 3948, section 4).
const NAT_KEEPALIVE: Duration = Duration::from_secs(20);
/// How long the gateway has to confirm our Delete.
const FAREWELL: Duration = Duration::from_secs(2);

/// An IKE SA with its Child SA, both sides proven.
pub(crate) struct Established {
    config: Arc<SaConfig>,
    pub(super) channel: Channel,
    pub(crate) suite: IkeSuite,
    pub(crate) nat: Nat,
    /// Who the gateway proved to be.
    pub(crate) identity: String,
    pub(crate) child: ChildSa,
    pub(crate) network: InnerNetwork,
    pub(crate) since: UnixTime,
}

impl Established {
    #[expect(
        clippy::too_many_arguments,
        reason = "all that IKE_AUTH found out, moved once"
    )]
    pub(super) fn new(
        _witness: PeerVerified,
        config: Arc<SaConfig>,
        channel: Channel,
        suite: IkeSuite,
        nat: Nat,
        identity: String,
        made: Made,
        cx: &Cx<'_>,
    ) -> Self {
        let Made { child, network } = made;
        Self {
            config,
            channel,
            suite,
            nat,
            identity,
            child,
            network,
            since: cx.unix,
        }
    }

    pub(crate) fn path(&self) -> Path {
        self.channel.path
    }

    pub(crate) fn round_trip(&self) -> Option<Duration> {
        self.channel.round_trip
    }

    /// Both SPIs, the initiator's first, in hexadecimal.
    pub(crate) fn spis(&self) -> (String, String) {
        (
            self.channel.spis.initiator.to_string(),
            self.channel.spis.responder.to_string(),
        )
    }

    /// Both sides may send long messages in fragments.
    pub(crate) fn fragments(&self) -> bool {
        self.channel.fragments()
    }

    /// Opens an ESP packet in place.
    pub(crate) fn open<'d>(&mut self, datagram: &'d mut [u8], now: Instant) -> Result<&'d mut [u8], Discard> {
        let opened = self.child.inbound.open(datagram);
        if opened
            .as_ref()
            .map_or_else(|reason| reason.is_authentic(), |_| true)
        {
            self.channel.last_in = now;
        }
        opened
    }

    /// Seals an inner packet into `out`.
    pub(crate) fn seal(&mut self, packet: &[u8], out: &mut [u8], now: Instant) -> Result<usize, Discard> {
        let sealed = self.child.outbound.seal(packet, out);
        if sealed.is_ok() {
            self.channel.last_out = now;
        }
        sealed
    }

    pub(super) fn poll_timeout(&self) -> Option<(Instant, Timer)> {
        let silence = (
            self.channel.last_in + self.config.profile.ike.dpd,
            Timer::Liveness,
        );
        let liveness = self.channel.poll_timeout(PATIENCE).unwrap_or(silence);
        let keepalive = (self.channel.last_out + NAT_KEEPALIVE, Timer::NatKeepalive);
        Some(if self.nat.local {
            liveness.min(keepalive)
        } else {
            liveness
        })
    }

    pub(super) fn handle_timeout(mut self: Box<Self>, cx: &mut Cx<'_>) -> Next {
        if self.channel.is_given_up(cx.now, PATIENCE) {
            return Err(lost(Cause::PeerDead));
        }
        self.channel.handle_timeout(cx);
        if self.channel.is_free() && cx.now >= self.channel.last_in + self.config.profile.ike.dpd {
            // An empty request: the gateway lives if it answers (RFC 7296, section 2.4).
            let asked = self.channel.request(ExchangeType::INFORMATIONAL, &[], cx);
            asked.map_err(|error| lost(super::unsendable(&error)))?;
        }
        if self.nat.local && cx.now >= self.channel.last_out + NAT_KEEPALIVE {
            self.channel.keep_mapping(cx);
        }
        Ok(State::Established(self))
    }

    pub(super) fn handle(mut self: Box<Self>, message: &mut [u8], cx: &mut Cx<'_>) -> Next {
        let Some(opened) = self.channel.open(message, cx) else {
            return Ok(State::Established(self));
        };
        if opened.header.flags.response {
            // Only liveness is asked for, and any authentic answer shows it.
            return Ok(State::Established(self));
        }
        match self.serve(&opened, cx) {
            Ok(true) => Ok(State::Established(self)),
            // Without its only child the SA carries nothing.
            Ok(false) => Ok(self.end(Some(lost(Cause::DeletedByGateway)), cx)),
            Err(cause) => Err(lost(cause)),
        }
    }

    /// Answers a request of the gateway's. False: our only child is gone. An error is the end of the SA.
    fn serve(&mut self, opened: &Opened, cx: &mut Cx<'_>) -> Result<bool, Cause> {
        let header = opened.header;
        let payloads = match opened.payloads() {
            Ok(payloads) => payloads,
            Err(error) => {
                // RFC 7296, section 2.21.3: fatal on both sides.
                self.answer(header, &[notify(NotifyType::INVALID_SYNTAX, &[])], cx);
                return Err(Broken::from(error).into());
            }
        };
        if let Some(kind) = critical_unknown(&payloads) {
            self.answer(
                header,
                &[notify(NotifyType::UNSUPPORTED_CRITICAL_PAYLOAD, &[kind])],
                cx,
            );
            return Ok(true);
        }
        match header.exchange {
            ExchangeType::INFORMATIONAL => self.inform(header, &payloads, cx),
            ExchangeType::CREATE_CHILD_SA => {
                self.answer(header, &[refuse_child(&payloads)], cx);
                Ok(true)
            }
            _ => {
                self.answer(header, &[notify(NotifyType::INVALID_SYNTAX, &[])], cx);
                Ok(true)
            }
        }
    }

    fn inform(&mut self, header: Header, payloads: &[Payload<'_>], cx: &mut Cx<'_>) -> Result<bool, Cause> {
        let mut ours_deleted = false;
        for payload in payloads {
            match payload {
                Payload::Delete(delete) if delete.protocol == ProtocolId::IKE => {
                    self.answer(header, &[], cx);
                    return Err(Cause::DeletedByGateway);
                }
                Payload::Delete(delete) if delete.protocol == ProtocolId::ESP => {
                    let theirs = self.child.outbound_spi.0.to_be_bytes();
                    ours_deleted |= delete.spis.iter().any(|spi| **spi == theirs);
                }
                Payload::Notify(notify) if notify.kind == NotifyType::AUTHENTICATION_FAILED => {
                    self.answer(header, &[], cx);
                    return Err(Cause::AuthenticationFailed);
                }
                _ => {}
            }
        }
        if !ours_deleted {
            self.answer(header, &[], cx);
            return Ok(true);
        }
        // RFC 7296, section 1.4.1: the gateway's SPI in its request, the paired one in our answer.
        let spi = self.child.inbound_spi.0.to_be_bytes();
        self.answer(
            header,
            &[Payload::Delete(Delete {
                protocol: ProtocolId::ESP,
                spis: vec![&spi],
            })],
            cx,
        );
        Ok(false)
    }

    fn answer(&mut self, to: Header, payloads: &[Payload<'_>], cx: &mut Cx<'_>) {
        if let Err(error) = self.channel.respond(to, payloads, cx) {
            tracing::error!(%error, "an answer of fixed size cannot be encoded");
        }
    }

    /// Says Delete, and waits a moment for the gateway to confirm.
    pub(super) fn close(self: Box<Self>, cx: &mut Cx<'_>) -> State {
        self.end(None, cx)
    }

    fn end(self: Box<Self>, why: Option<Failure>, cx: &mut Cx<'_>) -> State {
        let until = cx.now + FAREWELL;
        let mut closing = Box::new(Closing {
            channel: self.channel,
            until,
            told: false,
            why,
        });
        closing.tell(cx);
        State::Closing(closing)
    }
}

fn lost(cause: Cause) -> Failure {
    Failure {
        stage: Stage::Apply,
        cause,
    }
}

fn critical_unknown(payloads: &[Payload<'_>]) -> Option<u8> {
    payloads.iter().find_map(|payload| match payload {
        Payload::Unknown {
            kind, critical: true, ..
        } => Some(kind.0),
        _ => None,
    })
}

/// We neither rekey nor take further children yet. TEMPORARY_FAILURE makes the gateway come back later and keeps what
/// is up until its lifetime ends (RFC 7296, section 2.25); a new child is refused for good.
fn refuse_child(payloads: &[Payload<'_>]) -> Payload<'static> {
    let rekey = payloads.iter().any(|payload| match payload {
        Payload::Notify(notify) => notify.kind == NotifyType::REKEY_SA,
        Payload::Sa(proposals) => proposals
            .iter()
            .any(|proposal| proposal.protocol == ProtocolId::IKE),
        _ => false,
    });
    notify(
        if rekey {
            NotifyType::TEMPORARY_FAILURE
        } else {
            NotifyType::NO_ADDITIONAL_SAS
        },
        &[],
    )
}

/// An IKE SA that we ended.
pub(super) struct Closing {
    pub(super) channel: Channel,
    until: Instant,
    told: bool,
    /// What is told of the SA's end, if it was not our wish.
    why: Option<Failure>,
}

impl Closing {
    /// The window is one: an unanswered request goes first.
    fn tell(&mut self, cx: &mut Cx<'_>) {
        if !self.told && self.channel.is_free() {
            self.told = self
                .channel
                .request(ExchangeType::INFORMATIONAL, &[delete_ike()], cx)
                .is_ok();
        }
    }

    pub(super) fn poll_timeout(&self) -> (Instant, Timer) {
        let close = (self.until, Timer::CloseDeadline);
        self.channel
            .poll_timeout(Duration::MAX)
            .map_or(close, |due| close.min(due))
    }

    pub(super) fn handle_timeout(mut self: Box<Self>, cx: &mut Cx<'_>) -> Next {
        if cx.now >= self.until {
            return self.gone(cx);
        }
        self.channel.handle_timeout(cx);
        Ok(State::Closing(self))
    }

    pub(super) fn handle(mut self: Box<Self>, message: &mut [u8], cx: &mut Cx<'_>) -> Next {
        let Some(opened) = self.channel.open(message, cx) else {
            return Ok(State::Closing(self));
        };
        if !opened.header.flags.response {
            // Whatever the gateway wants of an SA that is going: an empty answer ends its asking.
            let _ = self.channel.respond(opened.header, &[], cx);
            return Ok(State::Closing(self));
        }
        if self.told {
            return self.gone(cx);
        }
        self.tell(cx);
        Ok(State::Closing(self))
    }

    fn gone(self: Box<Self>, cx: &mut Cx<'_>) -> Next {
        match self.why {
            Some(failure) => Err(failure),
            None => {
                cx.news.push_back(News::Closed);
                Ok(State::Dead)
            }
        }
    }
}
