//! One IKE SA as initiator, and as the gateway's responder once it is established (RFC 7296).
//!
//! A state owns exactly what is known in it and is consumed by its own `handle`: [`init::Init`] has no keys,
//! [`intermediate::Intermediate`] adds to them, [`auth::Auth`] has keys but no proof of the gateway,
//! [`established::Established`] can only be made with that proof in hand.

mod auth;
mod channel;
mod child;
mod children;
mod established;
mod followup;
mod init;
mod intermediate;
mod keys;
mod make_child;
mod method;
mod mobility;
mod nat;
mod pmtu;
mod proof;
mod redirect;
mod rekey_ike;
mod resume;
mod transport;
mod window;

use std::collections::VecDeque;
use std::sync::Arc;

use ipnet::IpNet;

pub(crate) use children::add_traffic;
pub(crate) use established::{Established, Hint};
pub(crate) use resume::{RESUME_PATIENCE, Ticket};
pub(crate) use window::jitter;

use crate::command::{
    Cause, Endpoint, Failure, HostFault, Path, Prompt, PromptId, Redirect, Rekey, Roam, Stage, Traffic,
    Transmit,
};
use crate::crypto::Secret;
use crate::esp::{self, Discard};
use crate::fetch::{Fetch, FetchId};
use crate::pki::revocation;
use crate::profile::{Credentials, Host, Ppk, Profile};
use crate::rng::Rng;
use crate::timer::{Instant, Timer, UnixTime};
use crate::wire::iana::{NotifyType, ProtocolId};
use crate::wire::{DecodeError, Delete, EncodeError, Header, IkeSpi, Notify, Payload};

/// The port of IKE without the non-ESP marker.
pub(crate) const IKE_PORT: u16 = 500;
/// The port of IKE and ESP together (RFC 3948).
pub(crate) const NAT_T_PORT: u16 = 4500;

/// What a state may use besides its own.
pub(crate) struct Cx<'a> {
    pub(crate) now: Instant,
    pub(crate) unix: UnixTime,
    pub(crate) rng: &'a mut Rng,
    pub(crate) out: &'a mut VecDeque<Transmit>,
    pub(crate) news: &'a mut VecDeque<News>,
    pub(crate) revocations: &'a mut revocation::Cache,
}

/// What an SA tells its owner.
#[derive(Debug)]
pub(crate) enum News {
    /// The attempt has come this far.
    Stage(Stage),
    /// The gateway wants to know something of the user; the answer goes to [`IkeSa::reply`].
    Prompt(Prompt),
    /// Something must be fetched before the SA goes on; the answer goes to [`IkeSa::fetched`].
    Fetch(Fetch),
    /// The gateway is proven, and the SA with its first child is up.
    Up,
    /// What the SA carried; it is gone.
    Carried(Traffic),
    /// With what it can be resumed: the gateway does not know that it is gone.
    Ticket(Arc<Ticket>),
    /// The SA is gone, and why.
    Failed(Failure),
    /// The SA is gone because we ended it.
    Closed,
    /// An SA was replaced.
    Rekeyed(Rekey),
    /// The SA has moved to another path.
    Roamed(Roam),
    /// The gateway has not answered for so long that another SA should be begun beside this one.
    Doubt,
    /// The gateway answers again.
    Trust,
    /// The gateway answers, but packets go out and none comes in.
    Silent,
    /// A fresh SA has to take over in time.
    Renew(Renewal),
    /// What was asked stays without an answer: a new TCP connection may get through (RFC 9329, sections 6.1 and 7.1).
    NeedsConnection,
    /// What the host knows by now of the present way, to be told with [`Established::note_way_mtu`].
    AskWay,
}

/// Why a fresh SA has to take over from one that still works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Renewal {
    /// The authentication's lifetime ends (RFC 4478).
    Lifetime,
    /// The gateway will not replace an SA.
    Refused(Cause),
    /// The gateway has put us off too often (RFC 7296, section 2.25).
    OutOfSync,
    /// The gateway sends us to another one (RFC 5685, section 5).
    Redirected(Redirect),
}

/// What the user configured and keeps secret, and what an SA before this one had.
pub(crate) struct SaConfig {
    pub(crate) profile: Arc<Profile>,
    pub(crate) credentials: Arc<Credentials>,
    /// The inner addresses to ask for again.
    pub(crate) former: Vec<IpNet>,
    /// What led to the gateway, if it is another than the profile's.
    pub(crate) redirected: redirect::Redirected,
    /// What an SA before this one can be resumed with (RFC 5723).
    pub(crate) ticket: Option<Arc<Ticket>>,
}

impl SaConfig {
    pub(crate) fn new(profile: Profile, credentials: Credentials) -> Self {
        Self {
            profile: Arc::new(profile),
            credentials: Arc::new(credentials),
            former: Vec::new(),
            redirected: redirect::Redirected::default(),
            ticket: None,
        }
    }

    /// The same for an SA that is to take over, with the inner addresses of the one before.
    pub(crate) fn again(&self, addresses: &[IpNet]) -> Self {
        Self {
            profile: Arc::clone(&self.profile),
            credentials: Arc::clone(&self.credentials),
            former: addresses.to_vec(),
            redirected: self.redirected.clone(),
            ticket: None,
        }
    }

    /// The same with a ticket, or without.
    pub(crate) fn with(self, ticket: Option<Arc<Ticket>>) -> Self {
        Self { ticket, ..self }
    }

    /// The same, from the profile's own gateway on: whoever has sent us elsewhere may send us elsewhere now.
    pub(crate) fn anew(&self, addresses: &[IpNet]) -> Self {
        Self {
            redirected: redirect::Redirected::default(),
            ..self.again(addresses)
        }
    }

    /// The same for the gateway that another one sends us to, unless they have done so too often. Nothing else changes:
    /// the other one has to prove the same identity (RFC 5685, section 3).
    pub(crate) fn follow(&self, redirect: &Redirect, now: Instant) -> Result<Self, Cause> {
        Ok(Self {
            redirected: self.redirected.further(redirect, now)?,
            ..self.again(&self.former)
        })
    }

    /// Where the gateway is.
    pub(crate) fn host(&self) -> &Host {
        let redirect = self.redirected.last();
        redirect.map_or(&self.profile.gateway.host, |redirect| &redirect.to)
    }
}

impl SaConfig {
    /// The post-quantum pre-shared key (RFC 8784), if there is one.
    fn ppk(&self) -> Option<(&Ppk, &Secret)> {
        self.profile.auth.ppk.as_ref().zip(self.credentials.ppk.as_ref())
    }
}

/// How a state goes on.
type Next = Result<State, Failure>;

enum State {
    Init(Box<init::Init>),
    Intermediate(Box<intermediate::Intermediate>),
    Auth(Box<auth::Auth>),
    Established(Box<Established>),
    Closing(Box<established::Closing>),
    Dead,
}

/// One IKE SA.
pub(crate) struct IkeSa(State);

impl IkeSa {
    /// Sends IKE_SA_INIT along `path`, or IKE_SESSION_RESUME with a ticket.
    pub(crate) fn start(
        config: Arc<SaConfig>,
        ticket: Option<Arc<Ticket>>,
        path: Path,
        cx: &mut Cx<'_>,
    ) -> Result<Self, Failure> {
        init::Init::start(config, ticket, path, cx).map(|init| Self(State::Init(Box::new(init))))
    }

    /// No SA at all.
    pub(crate) fn gone() -> Self {
        Self(State::Dead)
    }

    /// The SPI that we chose: what tells this SA from others.
    pub(crate) fn spi(&self) -> Option<IkeSpi> {
        match &self.0 {
            State::Init(init) => Some(init.spi),
            State::Intermediate(intermediate) => Some(intermediate.spi()),
            State::Auth(auth) => Some(auth.channel.spis.initiator),
            State::Established(established) => Some(established.channel.spis.initiator),
            State::Closing(closing) => Some(closing.channel.spis.initiator),
            State::Dead => None,
        }
    }

    /// The gateway has answered IKE_SA_INIT.
    pub(crate) fn is_past_init(&self) -> bool {
        !matches!(self.0, State::Init(_))
    }

    /// It comes, or came, from an SA before it (RFC 5723).
    pub(crate) fn is_resumed(&self) -> bool {
        match &self.0 {
            State::Init(init) => init.ticket.is_some(),
            State::Auth(auth) => auth.is_resumed(),
            State::Established(established) => established.is_resumed,
            State::Intermediate(_) | State::Closing(_) | State::Dead => false,
        }
    }

    /// The refusal that this SA would fail with if nothing better comes.
    pub(crate) fn refusal(&self) -> Option<&Cause> {
        match &self.0 {
            State::Init(init) => init.refusal(),
            State::Intermediate(_)
            | State::Auth(_)
            | State::Established(_)
            | State::Closing(_)
            | State::Dead => None,
        }
    }

    pub(crate) fn established(&self) -> Option<&Established> {
        match &self.0 {
            State::Established(established) => Some(established),
            State::Init(_) | State::Intermediate(_) | State::Auth(_) | State::Closing(_) | State::Dead => {
                None
            }
        }
    }

    pub(crate) fn established_mut(&mut self) -> Option<&mut Established> {
        match &mut self.0 {
            State::Established(established) => Some(established),
            State::Init(_) | State::Intermediate(_) | State::Auth(_) | State::Closing(_) | State::Dead => {
                None
            }
        }
    }

    /// Whether an IKE message claims to be for this SA.
    pub(crate) fn is_for(&self, message: &[u8]) -> bool {
        match &self.0 {
            State::Init(init) => message.starts_with(&init.spi.0),
            State::Intermediate(intermediate) => message.starts_with(&intermediate.spi().0),
            State::Auth(auth) => message.starts_with(&auth.channel.spis.initiator.0),
            State::Established(established) => {
                Header::decode(message).is_ok_and(|header| established.is_for(&header))
            }
            State::Closing(closing) => {
                Header::decode(message).is_ok_and(|header| closing.channel.is_for(&header))
            }
            State::Dead => false,
        }
    }

    /// Whether a message without protection has the SPIs of this SA.
    pub(crate) fn is_for_hint(&self, message: &[u8]) -> bool {
        let Ok(header) = Header::decode(message) else {
            return false;
        };
        self.established().is_some_and(|sa| {
            sa.channel.spis.initiator == header.initiator_spi
                && sa.channel.spis.responder == header.responder_spi
        })
    }

    /// Opens an ESP packet in place, if it is for one of this SA's children.
    pub(crate) fn open_esp<'d>(
        &mut self,
        datagram: &'d mut [u8],
        now: Instant,
    ) -> Result<&'d mut [u8], Discard> {
        match &mut self.0 {
            State::Established(established) => established.open(datagram, now),
            State::Closing(closing) => closing.children.open(datagram, now),
            State::Init(_) | State::Intermediate(_) | State::Auth(_) | State::Dead => {
                Err(Discard::UnknownSpi)
            }
        }
    }

    /// Whether an ESP packet is for one of this SA's children.
    pub(crate) fn has_child(&self, datagram: &[u8]) -> bool {
        let Some(spi) = esp::spi(datagram) else {
            return false;
        };
        match &self.0 {
            State::Established(established) => established.children.is_for(spi),
            State::Closing(closing) => closing.children.is_for(spi),
            State::Init(_) | State::Intermediate(_) | State::Auth(_) | State::Dead => false,
        }
    }

    /// An IKE message, without the non-ESP marker.
    pub(crate) fn handle_message(&mut self, path: Path, message: &mut [u8], cx: &mut Cx<'_>) {
        self.step(cx, |state, cx| match state {
            State::Init(init) => init.handle(path, message, cx),
            State::Intermediate(intermediate) => intermediate.handle(path, message, cx),
            State::Auth(auth) => auth.handle(path, message, cx),
            State::Established(established) => established.handle(path, message, cx),
            State::Closing(closing) => closing.handle(path, message, cx),
            State::Dead => Ok(State::Dead),
        });
    }

    pub(crate) fn handle_timeout(&mut self, cx: &mut Cx<'_>) {
        self.step(cx, |state, cx| match state {
            State::Init(init) => init.handle_timeout(cx),
            State::Intermediate(intermediate) => intermediate.handle_timeout(cx),
            State::Auth(auth) => auth.handle_timeout(cx),
            State::Established(established) => established.handle_timeout(cx),
            State::Closing(closing) => closing.handle_timeout(cx),
            State::Dead => Ok(State::Dead),
        });
    }

    pub(crate) fn poll_timeout(&self) -> Option<(Instant, Timer)> {
        match &self.0 {
            State::Init(init) => Some(init.poll_timeout()),
            State::Intermediate(intermediate) => intermediate.poll_timeout(),
            State::Auth(auth) => auth.poll_timeout(),
            State::Established(established) => established.poll_timeout(),
            State::Closing(closing) => Some(closing.poll_timeout()),
            State::Dead => None,
        }
    }

    /// The connection that carried the SA is gone, and `path` is another one: what is unanswered is sent again there
    /// (RFC 9329, section 6.2).
    pub(crate) fn reconnect(&mut self, path: Path, cx: &mut Cx<'_>) {
        match &mut self.0 {
            State::Init(init) => init.reconnect(path, cx),
            State::Intermediate(intermediate) => intermediate.channel_mut().follow(path, cx),
            State::Auth(auth) => auth.channel.follow(path, cx),
            State::Established(established) => established.reconnect(path, cx),
            State::Closing(closing) => closing.channel.follow(path, cx),
            State::Dead => {}
        }
    }

    /// Whether the SA needs this socket or connection.
    pub(crate) fn uses(&self, socket: Endpoint) -> bool {
        match &self.0 {
            State::Init(init) => init.path().socket() == socket,
            State::Intermediate(intermediate) => intermediate.path().socket() == socket,
            State::Auth(auth) => auth.channel.path.socket() == socket,
            State::Established(established) => established.uses(socket),
            State::Closing(closing) => closing.channel.path.socket() == socket,
            State::Dead => false,
        }
    }

    /// The user's answer to a prompt, or that there is none. One that the SA does not wait for is ignored.
    pub(crate) fn reply(&mut self, id: PromptId, answer: Option<&Secret>, cx: &mut Cx<'_>) {
        self.step(cx, |state, cx| match state {
            State::Auth(auth) => auth.reply(id, answer, cx),
            other => Ok(other),
        });
    }

    /// What was fetched, or why not. What the SA does not wait for is ignored.
    pub(crate) fn fetched(&mut self, id: FetchId, result: &Result<Vec<u8>, HostFault>, cx: &mut Cx<'_>) {
        self.step(cx, |state, cx| match state {
            State::Auth(auth) => auth.fetched(id, result, cx),
            other => Ok(other),
        });
    }

    /// Ends the SA and tells the gateway, if it has one to end.
    pub(crate) fn close(&mut self, cx: &mut Cx<'_>) {
        self.step(cx, |state, cx| match state {
            State::Auth(mut auth) => {
                auth.abandon(cx);
                cx.news.push_back(News::Closed);
                Ok(State::Dead)
            }
            State::Established(established) => Ok(established.close(cx)),
            State::Closing(closing) => Ok(State::Closing(closing)),
            State::Init(_) | State::Intermediate(_) | State::Dead => {
                cx.news.push_back(News::Closed);
                Ok(State::Dead)
            }
        });
    }

    fn step(&mut self, cx: &mut Cx<'_>, go: impl FnOnce(State, &mut Cx<'_>) -> Next) {
        self.0 = go(std::mem::replace(&mut self.0, State::Dead), cx).unwrap_or_else(|failure| {
            cx.news.push_back(News::Failed(failure));
            State::Dead
        });
    }
}

/// A message as the payload that `path` calls for: except on UDP port 500 the non-ESP marker tells IKE from ESP
/// (RFC 3948, section 2.2; RFC 9329, section 3.1).
fn datagram(path: Path, message: &[u8]) -> Transmit {
    let marker: &[u8] = if path.remote.port() == IKE_PORT && !path.is_tcp() {
        &[]
    } else {
        &[0; 4]
    };
    Transmit {
        path,
        payload: [marker, message].concat().into(),
        is_probe: false,
    }
}

/// A notify without protocol and SPI.
fn notify(kind: NotifyType, data: &[u8]) -> Payload<'_> {
    Payload::Notify(Notify::new(kind, data))
}

/// The error that a message tells: IANA's before a private one that stands beside it, as Windows sends them.
fn error_notify(payloads: &[Payload<'_>]) -> Option<NotifyType> {
    let mut errors = payloads.iter().filter_map(|payload| match payload {
        Payload::Notify(notify) if notify.kind.is_error() => Some(notify.kind),
        _ => None,
    });
    let first = errors.clone().next();
    errors.find(|error| !is_private(*error)).or(first)
}

/// Whether an error's number is for private use (RFC 7296, section 3.10.1).
const fn is_private(error: NotifyType) -> bool {
    error.0 >= 8192
}

fn refuse_critical(exchange: &str, payloads: &[Payload<'_>]) -> Result<(), Cause> {
    payloads.iter().try_for_each(|payload| match payload {
        Payload::Unknown {
            kind, critical: true, ..
        } => Err(Cause::Protocol(format!(
            "{exchange}: unknown critical payload {kind}"
        ))),
        _ => Ok(()),
    })
}

/// The end of the IKE SA itself (RFC 7296, section 3.11).
const fn delete_ike<'a>() -> Payload<'a> {
    Payload::Delete(Delete {
        protocol: ProtocolId::IKE,
        spis: Vec::new(),
    })
}

/// A rule of the protocol that the gateway's message broke, in words.
#[derive(Debug, PartialEq, Eq)]
struct Broken(String);

impl From<DecodeError> for Broken {
    fn from(error: DecodeError) -> Self {
        Self(error.to_string())
    }
}

impl From<Broken> for Cause {
    fn from(broken: Broken) -> Self {
        Self::Protocol(broken.0)
    }
}

/// Encoding fails only for what the profile made too long.
fn unsendable(error: &EncodeError) -> Cause {
    Cause::Credential(format!("our message cannot be encoded: {error}"))
}
