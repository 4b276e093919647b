//! EAP methods, as peer (RFC 3748).
//!
//! [`Eap`] is the peer side of one conversation: EAP packets in, EAP packets out, questions to the user, and at the end
//! the MSK, if the method makes one. It knows nothing of what carries the packets. Whoever drives it must have
//! authenticated the gateway before the first packet, or use [`Eap::alone`] with a method that authenticates its server:
//! the password methods are worth no more than the channel around them.
//!
//! One conversation runs one method, the one that the profile names. Anything else that the server proposes is
//! declined once, and an EAP-Success counts only when the method itself is complete (CVE-2021-45079 was a client
//! that believed an early one).

mod alert;
mod avp;
mod binding;
mod config;
mod fragment;
mod gtc;
mod md5;
pub mod mschapv2;
mod p521;
mod packet;
mod peap;
#[cfg(test)]
mod tests;
mod text;
mod tls;
mod ttls;
mod tunnel;

use serde::Serialize;
use zeroize::Zeroizing;

use crate::crypto::Secret;
use crate::pki::{CertError, Certificate};
use crate::rng::Rng;
use crate::timer::UnixTime;
use crate::wire::iana::EapType;

pub use alert::TlsAlert;
pub use config::{
    EapConfig, EapGtc, EapMd5, EapMethod, EapMsChapV2, EapPeap, EapTls, EapTtls, InnerEap, TlsServer,
    TtlsInner,
};
pub use mschapv2::MsChapCode;
use packet::{Code, Packet};

/// Requests answered in one conversation before we give up. Authenticators give up after 40 to 50 (RFC 9191, section 3).
const MAX_ROUNDS: u32 = 64;

/// The Master Session Key: 64 octets, the same on both sides, known to nobody else (RFC 3748, section 7.10).
#[derive(Clone, Debug)]
pub struct Msk(Secret);

impl Msk {
    /// The key.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

/// What follows from a packet or an answer.
#[derive(Debug)]
pub enum Step {
    /// Send this EAP packet, and wipe it: it may hold a password.
    Reply(Vec<u8>),
    /// Ask the user, and go on with [`Eap::answer`].
    Ask(Question),
    /// The server's certificate is good; find out whether it was revoked, and go on with [`Eap::checked`].
    Check(Presented),
    /// The method is complete, the server is authenticated as far as the method can, and it says that so are we. The
    /// MSK, if the method makes one: EAP-GTC does not.
    Success(Option<Msk>),
}

/// A server's certificate with all that vouches for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Presented {
    /// The server's own certificate first, the trusted one last.
    pub path: Vec<Certificate>,
    /// The OCSP response that came with it (RFC 6066, section 8), not looked at; may be empty.
    pub ocsp: Vec<u8>,
}

/// What the server wants to know of the user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// What kind of answer it expects.
    pub kind: PromptKind,
    /// Its own words, on one line and harmless to show, but not to be trusted.
    pub message: Option<String>,
}

/// What kind of answer a question expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PromptKind {
    /// The user's password, or what the server's words ask for in its place.
    Password,
    /// Something that is good for once, such as a code from an authenticator app.
    OneTimeCode,
}

/// Why an EAP conversation failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EapError {
    /// The server ended the conversation with EAP-Failure and no better reason.
    #[error("the server refused our credentials (EAP-Failure)")]
    Refused,
    /// The server does not offer the method that the profile has.
    #[error("the server offers {offered}, the profile has {wanted}")]
    MethodOffered {
        /// What the server proposed.
        offered: EapType,
        /// What the profile has.
        wanted: EapType,
    },
    /// The server in the tunnel does not offer the method that the profile has for it.
    #[error("in the tunnel the server offers {offered}, the profile has {wanted}")]
    InnerMethodOffered {
        /// What the server proposed.
        offered: EapType,
        /// What the profile has.
        wanted: EapType,
    },
    /// The certificate of the EAP server is not acceptable.
    #[error("the EAP server's certificate is not acceptable: {0}")]
    ServerCertificate(CertError),
    /// The EAP server ended the TLS handshake with this alert.
    #[error("the EAP server {0}")]
    TlsAlert(TlsAlert),
    /// TLS failed on our side; the text says how.
    #[error("TLS with the EAP server failed: {0}")]
    Tls(String),
    /// The server refused the user name or the password.
    #[error(
        "the server refused the user name or password: {code}{}",
        text::quoted(message)
    )]
    MsChap {
        /// Its reason.
        code: MsChapCode,
        /// Its own words, made harmless to show; may be empty.
        message: String,
    },
    /// The server's proof that it knows the password is wrong or missing.
    #[error("the server could not prove that it knows the password")]
    ServerUnproven,
    /// The server that ends the tunnel could not prove that it is the one that knows the password.
    #[error("the server could not prove that tunnel and password are checked in one place")]
    Unbound,
    /// The server claimed success before the method was complete.
    #[error("the server sent EAP-Success before the authentication was complete")]
    EarlySuccess,
    /// The server broke the protocol; the text says how.
    #[error("the server broke the EAP protocol: {0}")]
    Malformed(&'static str),
    /// The server kept the conversation going beyond all measure.
    #[error("the EAP conversation did not end within {MAX_ROUNDS} rounds")]
    TooManyRounds,
    /// Our own credential cannot be used; the text says why and names no secret.
    #[error("{0}")]
    Credential(String),
}

/// The peer side of one EAP conversation.
#[derive(Debug)]
pub struct Eap {
    identity: String,
    wanted: EapType,
    /// Nothing but the method authenticates the server.
    alone: bool,
    rounds: u32,
    last_identifier: Option<u8>,
    state: State,
}

#[derive(Debug)]
enum State {
    /// The method has not started. We have declined another one if `declined` says so.
    Negotiating {
        method: Candidate,
        declined: Option<EapType>,
    },
    /// The method runs.
    Running(Method),
    /// The method waits for the user's answer, or for word of the server's certificate, and then answers with this
    /// identifier.
    Asking { method: Method, identifier: u8 },
    /// The method is complete; EAP-Success is all that may come.
    Complete(Option<Msk>),
    /// The conversation has failed, even if the server does not know it yet.
    Failed(EapError),
    /// The conversation has succeeded.
    Over,
}

/// A method that has not started.
#[derive(Debug)]
enum Candidate {
    Outer(EapMethod),
    /// It is nowhere else.
    Md5(EapMd5),
}

#[derive(Debug)]
enum Method {
    Tls(Box<tunnel::Peer<tls::Handshake>>),
    Ttls(Box<tunnel::Peer<ttls::Tunnelled>>),
    Peap(Box<tunnel::Peer<peap::Tunnelled>>),
    MsChapV2(Box<mschapv2::Peer>),
    Gtc(gtc::Peer),
    /// Its one answer is sent.
    Md5,
}

/// What a method makes of a request. The octets are the type data of the response.
#[derive(Debug)]
enum Progress {
    /// Answer, and wait for the next request.
    Reply(Vec<u8>),
    /// Ask the user before anything is answered.
    Ask(Question),
    /// Find out about the server's certificate before anything is answered.
    Check(Presented),
    /// Answer; the method is complete.
    Complete(Vec<u8>, Option<Msk>),
    /// Answer, so that the server learns of it; the method has failed.
    Abort(Vec<u8>, EapError),
}

/// What a method may use besides its own when it takes a request.
struct Turn<'a> {
    identifier: u8,
    rng: &'a mut Rng,
    now: UnixTime,
}

impl Eap {
    /// A conversation that has not begun.
    #[must_use]
    pub fn new(config: EapConfig) -> Self {
        Self::with(config.identity, Candidate::Outer(config.method))
    }

    /// A conversation that has not begun, with a server that nothing but its method authenticates: one that proposes
    /// a method in which it does not prove itself is not talked with any more (RFC 5998, section 3).
    #[must_use]
    pub fn alone(config: EapConfig) -> Self {
        Self {
            alone: true,
            ..Self::new(config)
        }
    }

    /// A conversation in a tunnel to a server that has proven itself.
    fn inner(username: &str, method: InnerEap) -> Self {
        let username = username.to_owned();
        let method = match method {
            InnerEap::MsChapV2 { password } => Candidate::Outer(EapMethod::MsChapV2(EapMsChapV2 {
                username: username.clone(),
                password,
            })),
            InnerEap::Gtc(config) => Candidate::Outer(EapMethod::Gtc(config)),
            InnerEap::Md5(config) => Candidate::Md5(config),
        };
        Self::with(username, method)
    }

    fn with(identity: String, method: Candidate) -> Self {
        Self {
            identity,
            wanted: method.kind(),
            alone: false,
            rounds: 0,
            last_identifier: None,
            state: State::Negotiating {
                method,
                declined: None,
            },
        }
    }

    /// Why the conversation has failed, when it has. Known before [`Eap::handle`] reports it while the server still
    /// owes us the EAP-Failure that follows a TLS alert of ours or its own.
    #[must_use]
    pub const fn failure(&self) -> Option<&EapError> {
        match &self.state {
            State::Failed(error) => Some(error),
            State::Negotiating { .. }
            | State::Running(_)
            | State::Asking { .. }
            | State::Complete(_)
            | State::Over => None,
        }
    }

    /// Takes an EAP packet from the server. `now` is for the validity of the server's certificate.
    ///
    /// # Errors
    ///
    /// The conversation has failed, finally: any further packet yields the same error.
    pub fn handle(&mut self, packet: &[u8], rng: &mut Rng, now: UnixTime) -> Result<Step, EapError> {
        // Our reason came first, and it is the one to report, whatever the server says to it.
        if let State::Failed(error) = &self.state {
            return Err(error.clone());
        }
        let result = Packet::decode(packet).and_then(|packet| match packet.code {
            Code::Request { kind, data } => {
                let identifier = packet.identifier;
                let mut turn = Turn { identifier, rng, now };
                self.request(kind, data, &mut turn)
            }
            Code::Success => self.success(packet.identifier),
            Code::Failure => Err(self.refusal()),
        });
        self.remember(result)
    }

    /// Takes the user's answer to the [`Question`] with which the last step ended.
    ///
    /// # Errors
    ///
    /// Nothing was asked, or the conversation has failed, finally.
    pub fn answer(&mut self, answer: &Secret) -> Result<Step, EapError> {
        self.resume(|method, _| method.answer(answer))
    }

    /// Takes word of the certificates of the [`Presented`] with which the last step ended: none of them is known to be
    /// revoked, or why the server is not to be believed.
    ///
    /// # Errors
    ///
    /// Nothing was to be found out, or the conversation has failed, finally. Nothing is sent then: the server learns no
    /// more of us.
    pub fn checked(
        &mut self,
        verdict: Result<(), CertError>,
        rng: &mut Rng,
        now: UnixTime,
    ) -> Result<Step, EapError> {
        self.resume(|method, identifier| {
            let mut turn = Turn { identifier, rng, now };
            method.checked(verdict, &mut turn)
        })
    }

    fn resume(
        &mut self,
        go: impl FnOnce(&mut Method, u8) -> Result<Progress, EapError>,
    ) -> Result<Step, EapError> {
        let (mut method, identifier) = match std::mem::replace(&mut self.state, State::Over) {
            State::Asking { method, identifier } => (method, identifier),
            other => {
                self.state = other;
                return Err(EapError::Malformed("an answer to no question"));
            }
        };
        let progress = go(&mut method, identifier);
        self.state = State::Running(method);
        let result = progress.and_then(|progress| self.follow(progress, self.wanted, identifier));
        self.remember(result)
    }

    /// Takes a packet from the server in a tunnel.
    fn handle_inner(&mut self, packet: &[u8], turn: &mut Turn<'_>) -> Result<Step, EapError> {
        self.handle(packet, turn.rng, turn.now)
            .map_err(|error| match error {
                EapError::MethodOffered { offered, wanted } => {
                    EapError::InnerMethodOffered { offered, wanted }
                }
                other => other,
            })
    }

    /// The response that a server awaits without having asked (RFC 5281, section 11.2.1).
    fn unasked_identity(&self) -> Result<Vec<u8>, EapError> {
        packet::response(0, EapType::IDENTITY, self.identity.as_bytes())
    }

    /// The server may be content now.
    fn is_content(&self) -> bool {
        match &self.state {
            State::Complete(_) | State::Over => true,
            State::Running(method) => method.is_content(),
            State::Negotiating { .. } | State::Asking { .. } | State::Failed(_) => false,
        }
    }

    /// The key of a method that is complete, if it makes one.
    const fn key(&self) -> Option<&Msk> {
        match &self.state {
            State::Complete(msk) => msk.as_ref(),
            State::Negotiating { .. }
            | State::Running(_)
            | State::Asking { .. }
            | State::Failed(_)
            | State::Over => None,
        }
    }

    fn remember(&mut self, result: Result<Step, EapError>) -> Result<Step, EapError> {
        if let Err(error) = &result {
            self.state = State::Failed(error.clone());
        }
        result
    }

    fn request(&mut self, kind: EapType, data: &[u8], turn: &mut Turn<'_>) -> Result<Step, EapError> {
        let identifier = turn.identifier;
        // IKE repeats requests by itself, so a repeated identifier is not a retransmission (RFC 3748, section 4.1).
        if self.last_identifier.replace(identifier) == Some(identifier) {
            return Err(EapError::Malformed("two requests with the same identifier"));
        }
        self.rounds = self.rounds.saturating_add(1);
        if self.rounds > MAX_ROUNDS {
            return Err(EapError::TooManyRounds);
        }

        let reply = |kind: EapType, data: &[u8]| packet::response(identifier, kind, data).map(Step::Reply);
        let progress = match (std::mem::replace(&mut self.state, State::Over), kind) {
            (State::Complete(_) | State::Over, _) => {
                return Err(EapError::Malformed("a request after the method was complete"));
            }
            (State::Failed(error), _) => return Err(error),
            (State::Asking { .. }, _) => {
                return Err(EapError::Malformed("a request before the last one was answered"));
            }
            // Nothing in the message may change what we do (RFC 3748, section 5.2).
            (state, EapType::NOTIFICATION) => {
                self.state = state;
                tracing::debug!(message = ?String::from_utf8_lossy(data), "EAP notification");
                return reply(kind, &[]);
            }
            (state @ State::Negotiating { .. }, EapType::IDENTITY) => {
                self.state = state;
                return reply(kind, self.identity.as_bytes());
            }
            (State::Negotiating { method, .. }, kind) if kind == self.wanted => {
                let (method, progress) = method.start(data, turn)?;
                self.state = State::Running(method);
                progress
            }
            // Windows Server asks for its own extensions one by one before it comes to the point.
            (State::Negotiating { declined, .. }, offered)
                if self.alone && !may_stand_alone(offered)
                    || declined.is_some() && offered != EapType::EXPANDED =>
            {
                return Err(EapError::MethodOffered {
                    offered,
                    wanted: self.wanted,
                });
            }
            (State::Negotiating { .. }, EapType(..=3)) => {
                return Err(EapError::Malformed(
                    "a request of a type that exists only in responses",
                ));
            }
            (State::Negotiating { method, .. }, offered) => {
                self.state = State::Negotiating {
                    method,
                    declined: Some(offered),
                };
                return reply(EapType::NAK, &[self.wanted.0]);
            }
            (State::Running(mut method), kind) if kind == self.wanted => {
                let progress = method.handle(data, turn)?;
                self.state = State::Running(method);
                progress
            }
            (State::Running(_), _) => {
                return Err(EapError::Malformed(
                    "a request of another type while the method runs",
                ));
            }
        };
        self.follow(progress, kind, identifier)
    }

    /// Does what the method, which is running, wants done.
    fn follow(&mut self, progress: Progress, kind: EapType, identifier: u8) -> Result<Step, EapError> {
        let data = match progress {
            Progress::Reply(data) => data,
            Progress::Ask(question) => {
                self.wait(identifier);
                return Ok(Step::Ask(question));
            }
            Progress::Check(presented) => {
                self.wait(identifier);
                return Ok(Step::Check(presented));
            }
            Progress::Complete(data, msk) => {
                self.state = State::Complete(msk);
                data
            }
            Progress::Abort(data, error) => {
                self.state = State::Failed(error);
                data
            }
        };
        // It may be a password.
        let data = Zeroizing::new(data);
        packet::response(identifier, kind, &data).map(Step::Reply)
    }

    /// The method, which is running, waits.
    fn wait(&mut self, identifier: u8) {
        if let State::Running(method) = std::mem::replace(&mut self.state, State::Over) {
            self.state = State::Asking { method, identifier };
        }
    }

    fn success(&mut self, identifier: u8) -> Result<Step, EapError> {
        let msk = match std::mem::replace(&mut self.state, State::Over) {
            State::Complete(msk) => msk,
            State::Running(method) if method.is_content() => method.key()?,
            State::Over => return Err(EapError::Malformed("a packet after the end of the conversation")),
            State::Failed(error) => return Err(error),
            State::Negotiating { .. } | State::Running(_) | State::Asking { .. } => {
                return Err(EapError::EarlySuccess);
            }
        };
        // It must be that of our last response (RFC 3748, section 4.2), but some servers count on, by one or by two.
        let ahead = identifier.wrapping_sub(self.last_identifier.unwrap_or(identifier));
        if ahead > 2 {
            return Err(EapError::Malformed("EAP-Success with a wrong identifier"));
        }
        Ok(Step::Success(msk))
    }

    fn refusal(&self) -> EapError {
        match &self.state {
            State::Negotiating {
                declined: Some(offered),
                ..
            } => EapError::MethodOffered {
                offered: *offered,
                wanted: self.wanted,
            },
            State::Over => EapError::Malformed("a packet after the end of the conversation"),
            State::Failed(error) => error.clone(),
            State::Negotiating { declined: None, .. }
            | State::Running(_)
            | State::Asking { .. }
            | State::Complete(_) => EapError::Refused,
        }
    }
}

/// The methods in which both sides prove themselves, which make a key, and which withstand guessing (RFC 5998, section 4).
const fn may_stand_alone(method: EapType) -> bool {
    matches!(
        method,
        EapType::TLS
            | EapType::SIM
            | EapType::TTLS
            | EapType::AKA
            | EapType::PEAP
            | EapType::FAST
            | EapType::AKA_PRIME
            | EapType::GPSK
            | EapType::PWD
            | EapType::TEAP
    )
}

impl Candidate {
    const fn kind(&self) -> EapType {
        match self {
            Self::Outer(EapMethod::Tls(_)) => EapType::TLS,
            Self::Outer(EapMethod::Ttls(_)) => EapType::TTLS,
            Self::Outer(EapMethod::Peap(_)) => EapType::PEAP,
            Self::Outer(EapMethod::MsChapV2(_)) => EapType::MSCHAPV2,
            Self::Outer(EapMethod::Gtc(_)) => EapType::GTC,
            Self::Md5(_) => EapType::MD5_CHALLENGE,
        }
    }

    fn start(self, data: &[u8], turn: &mut Turn<'_>) -> Result<(Method, Progress), EapError> {
        Ok(match self {
            Self::Outer(EapMethod::Tls(config)) => {
                let (peer, progress) = tls::start(config, data, turn.now)?;
                (Method::Tls(Box::new(peer)), progress)
            }
            Self::Outer(EapMethod::Ttls(config)) => {
                let (peer, progress) = ttls::start(config, data, turn.now)?;
                (Method::Ttls(Box::new(peer)), progress)
            }
            Self::Outer(EapMethod::Peap(config)) => {
                let (peer, progress) = peap::start(config, data, turn.now)?;
                (Method::Peap(Box::new(peer)), progress)
            }
            Self::Outer(EapMethod::MsChapV2(config)) => {
                let (peer, data) = mschapv2::Peer::start(&config, data, turn.rng)?;
                (Method::MsChapV2(Box::new(peer)), Progress::Reply(data))
            }
            Self::Outer(EapMethod::Gtc(config)) => {
                let mut peer = gtc::Peer::new(config);
                let progress = peer.handle(data);
                (Method::Gtc(peer), progress)
            }
            Self::Md5(config) => {
                let data = md5::response(&config, turn.identifier, data)?;
                (Method::Md5, Progress::Reply(data))
            }
        })
    }
}

impl Method {
    fn handle(&mut self, data: &[u8], turn: &mut Turn<'_>) -> Result<Progress, EapError> {
        match self {
            Self::Tls(peer) => peer.handle(data, turn),
            Self::Ttls(peer) => peer.handle(data, turn),
            Self::Peap(peer) => peer.handle(data, turn),
            Self::MsChapV2(peer) => peer.handle(data),
            Self::Gtc(peer) => Ok(peer.handle(data)),
            Self::Md5 => Err(EapError::Malformed("a second EAP-MD5 challenge")),
        }
    }

    fn answer(&mut self, answer: &Secret) -> Result<Progress, EapError> {
        match self {
            Self::Ttls(peer) => peer.answer(answer),
            Self::Peap(peer) => peer.answer(answer),
            Self::Gtc(peer) => Ok(peer.answer(answer)),
            Self::Tls(_) | Self::MsChapV2(_) | Self::Md5 => {
                Err(EapError::Malformed("an answer to no question"))
            }
        }
    }

    fn checked(&mut self, verdict: Result<(), CertError>, turn: &mut Turn<'_>) -> Result<Progress, EapError> {
        match self {
            Self::Tls(peer) => peer.checked(verdict, turn),
            Self::Ttls(peer) => peer.checked(verdict, turn),
            Self::Peap(peer) => peer.checked(verdict, turn),
            Self::MsChapV2(_) | Self::Gtc(_) | Self::Md5 => {
                Err(EapError::Malformed("no certificate to check"))
            }
        }
    }

    /// EAP-Success may come although the method has no end of its own.
    fn is_content(&self) -> bool {
        match self {
            Self::Ttls(peer) => peer.is_content(),
            // Whenever these run, the last question is answered.
            Self::Gtc(_) | Self::Md5 => true,
            Self::Tls(_) | Self::Peap(_) | Self::MsChapV2(_) => false,
        }
    }

    /// The key of a method that has no end of its own, if it makes one.
    fn key(&self) -> Result<Option<Msk>, EapError> {
        match self {
            Self::Ttls(peer) => peer.key().map(Some),
            Self::Tls(_) | Self::Peap(_) | Self::MsChapV2(_) | Self::Gtc(_) | Self::Md5 => Ok(None),
        }
    }
}
