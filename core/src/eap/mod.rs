//! EAP methods, as peer (RFC 3748).
//!
//! [`Eap`] is the peer side of one conversation: EAP packets in, EAP packets out, and at the end the MSK. It knows
//! nothing of what carries the packets. Whoever drives it must have authenticated the gateway before the first
//! packet: the password method is worth no more than the channel around it.
//!
//! One conversation runs one method, the one that the profile names. Anything else that the server proposes is
//! declined once, and an EAP-Success counts only when the method itself is complete (CVE-2021-45079 was a client
//! that believed an early one).

mod alert;
mod fragment;
pub mod mschapv2;
mod p521;
mod packet;
#[cfg(test)]
mod tests;
mod tls;

use crate::crypto::Secret;
use crate::pki::{CertError, Certificate, PrivateKey};
use crate::profile::Identity;
use crate::rng::Rng;
use crate::timer::UnixTime;
use crate::wire::iana::EapType;

pub use alert::TlsAlert;
pub use mschapv2::MsChapCode;
use packet::{Code, Packet};

/// Requests answered in one conversation before we give up. Authenticators give up after 40 to 50 (RFC 9191, section 3).
const MAX_ROUNDS: u32 = 64;

/// What an EAP conversation needs to know.
#[derive(Clone, Debug)]
pub struct EapConfig {
    /// What to answer to a request for our identity, in UTF-8. Not secret, and not authenticated.
    pub identity: String,
    /// The one method that may run.
    pub method: EapMethod,
}

/// An EAP method with what it needs.
#[derive(Clone, Debug)]
pub enum EapMethod {
    /// EAP-TLS (RFC 5216, RFC 9190).
    Tls(EapTls),
    /// EAP-MSCHAPv2.
    MsChapV2(EapMsChapV2),
}

/// What EAP-TLS needs.
#[derive(Clone, Debug)]
pub struct EapTls {
    /// Our certificate first, then intermediate ones in any order.
    pub chain: Vec<Certificate>,
    /// The private key of the first certificate.
    pub key: PrivateKey,
    /// The certification authorities that may vouch for the server.
    pub anchors: Vec<Certificate>,
    /// The name that the server's certificate must carry.
    pub server_identity: Identity,
    /// The largest EAP packet that we send, in octets; brought into 256..=1400.
    pub fragment_size: usize,
}

/// What EAP-MSCHAPv2 needs.
#[derive(Clone, Debug)]
pub struct EapMsChapV2 {
    /// The user name, in UTF-8, with its domain (`DOMAIN\name`) if the server wants one.
    pub username: String,
    /// The password, in UTF-8.
    pub password: Secret,
}

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

/// What follows from a packet.
#[derive(Debug)]
pub enum Step {
    /// Send this EAP packet.
    Reply(Vec<u8>),
    /// The method is complete, the server is authenticated as far as the method can, and it says that so are we.
    Success(Msk),
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
    /// The certificate of the EAP-TLS server is not acceptable.
    #[error("the EAP-TLS server's certificate is not acceptable: {0}")]
    ServerCertificate(CertError),
    /// The EAP-TLS server ended the TLS handshake with this alert.
    #[error("the EAP-TLS server {0}")]
    TlsAlert(TlsAlert),
    /// The TLS handshake failed on our side; the text says how.
    #[error("EAP-TLS failed: {0}")]
    Tls(String),
    /// The server refused the user name or the password.
    #[error(
        "the server refused the user name or password: {code}{}",
        mschapv2::quoted(message)
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
    rounds: u32,
    last_identifier: Option<u8>,
    state: State,
}

#[derive(Debug)]
enum State {
    /// The method has not started. We have declined another one if `declined` says so.
    Negotiating {
        method: EapMethod,
        declined: Option<EapType>,
    },
    /// The method runs.
    Running(Method),
    /// The method is complete; EAP-Success is all that may come.
    Complete(Msk),
    /// The conversation has failed, even if the server does not know it yet.
    Failed(EapError),
    /// The conversation has succeeded.
    Over,
}

#[derive(Debug)]
enum Method {
    Tls(Box<tls::Peer>),
    MsChapV2(Box<mschapv2::Peer>),
}

/// What a method makes of a request. The octets are the type data of the response.
#[derive(Debug)]
enum Progress {
    /// Answer, and wait for the next request.
    Reply(Vec<u8>),
    /// Answer; the method is complete.
    Complete(Vec<u8>, Msk),
    /// Answer, so that the server learns of it; the method has failed.
    Abort(Vec<u8>, EapError),
}

impl Eap {
    /// A conversation that has not begun.
    #[must_use]
    pub fn new(config: EapConfig) -> Self {
        let EapConfig { identity, method } = config;
        let wanted = match method {
            EapMethod::Tls(_) => EapType::TLS,
            EapMethod::MsChapV2(_) => EapType::MSCHAPV2,
        };
        let state = State::Negotiating {
            method,
            declined: None,
        };
        Self {
            identity,
            wanted,
            rounds: 0,
            last_identifier: None,
            state,
        }
    }

    /// Why the conversation has failed, when it has. Known before [`Eap::handle`] reports it while the server still
    /// owes us the EAP-Failure that follows a TLS alert of ours or its own.
    #[must_use]
    pub const fn failure(&self) -> Option<&EapError> {
        match &self.state {
            State::Failed(error) => Some(error),
            State::Negotiating { .. } | State::Running(_) | State::Complete(_) | State::Over => None,
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
            Code::Request { kind, data } => self.request(packet.identifier, kind, data, rng, now),
            Code::Success => self.success(packet.identifier),
            Code::Failure => Err(self.refusal()),
        });
        if let Err(error) = &result {
            self.state = State::Failed(error.clone());
        }
        result
    }

    fn request(
        &mut self,
        identifier: u8,
        kind: EapType,
        data: &[u8],
        rng: &mut Rng,
        now: UnixTime,
    ) -> Result<Step, EapError> {
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
                self.start(method, data, rng, now)?
            }
            (
                State::Negotiating {
                    declined: Some(_), ..
                },
                offered,
            ) => {
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
            (
                State::Negotiating {
                    method,
                    declined: None,
                },
                offered,
            ) => {
                self.state = State::Negotiating {
                    method,
                    declined: Some(offered),
                };
                return reply(EapType::NAK, &[self.wanted.0]);
            }
            (State::Running(mut method), kind) if kind == self.wanted => {
                let progress = method.handle(data, now)?;
                self.state = State::Running(method);
                progress
            }
            (State::Running(_), _) => {
                return Err(EapError::Malformed(
                    "a request of another type while the method runs",
                ));
            }
        };
        match progress {
            Progress::Reply(data) => reply(kind, &data),
            Progress::Complete(data, msk) => {
                self.state = State::Complete(msk);
                reply(kind, &data)
            }
            Progress::Abort(data, error) => {
                self.state = State::Failed(error);
                reply(kind, &data)
            }
        }
    }

    fn start(
        &mut self,
        method: EapMethod,
        data: &[u8],
        rng: &mut Rng,
        now: UnixTime,
    ) -> Result<Progress, EapError> {
        let (method, progress) = match method {
            EapMethod::Tls(config) => {
                let (peer, progress) = tls::Peer::start(config, data, now)?;
                (Method::Tls(Box::new(peer)), progress)
            }
            EapMethod::MsChapV2(config) => {
                let (peer, data) = mschapv2::Peer::start(&config, data, rng)?;
                (Method::MsChapV2(Box::new(peer)), Progress::Reply(data))
            }
        };
        self.state = State::Running(method);
        Ok(progress)
    }

    fn success(&mut self, identifier: u8) -> Result<Step, EapError> {
        match std::mem::replace(&mut self.state, State::Over) {
            State::Complete(msk) => {
                // It must be that of our last response (RFC 3748, section 4.2), but some servers count on, by one or by two.
                let ahead = identifier.wrapping_sub(self.last_identifier.unwrap_or(identifier));
                if ahead > 2 {
                    return Err(EapError::Malformed("EAP-Success with a wrong identifier"));
                }
                Ok(Step::Success(msk))
            }
            State::Over => Err(EapError::Malformed("a packet after the end of the conversation")),
            State::Failed(error) => Err(error),
            State::Negotiating { .. } | State::Running(_) => Err(EapError::EarlySuccess),
        }
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
            State::Negotiating { declined: None, .. } | State::Running(_) | State::Complete(_) => {
                EapError::Refused
            }
        }
    }
}

impl Method {
    fn handle(&mut self, data: &[u8], now: UnixTime) -> Result<Progress, EapError> {
        match self {
            Self::Tls(peer) => peer.handle(data, now),
            Self::MsChapV2(peer) => peer.handle(data),
        }
    }
}
