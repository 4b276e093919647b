//! EAP-TTLS (RFC 5281): a tunnel to the server, which proves itself by certificate, and in it the user's password, by
//! PAP, MSCHAPv2, or an EAP method.

use std::fmt;

use rustls::SupportedProtocolVersion;
use rustls::version::{TLS12, TLS13};
use zeroize::Zeroizing;

use super::avp::{self, Kind};
use super::tunnel::{Heard, Inside, Peer, Setup, Then, Tls};
use super::{
    Eap, EapError, EapMsChapV2, EapTtls, Msk, Progress, PromptKind, Question, Step, TtlsInner, Turn, gtc,
    mschapv2,
};
use crate::crypto::Secret;
use crate::timer::UnixTime;
use crate::wire::iana::EapType;

const VERSIONS: &[&SupportedProtocolVersion] = &[&TLS13, &TLS12];

/// Answers the Start packet.
pub(super) fn start(
    config: EapTtls,
    data: &[u8],
    now: UnixTime,
) -> Result<(Peer<Tunnelled>, Progress), EapError> {
    let EapTtls {
        server,
        username,
        inner,
    } = config;
    let inside = Tunnelled {
        state: match inner {
            TtlsInner::Pap { password } => State::Pap {
                password,
                said: false,
            },
            TtlsInner::MsChapV2 { password } => State::MsChapV2Unsaid { password },
            TtlsInner::Eap(method) => State::Eap {
                eap: Box::new(Eap::inner(&username, method)),
                begun: false,
            },
        },
        username,
    };
    let setup = Setup {
        server,
        ours: None,
        versions: VERSIONS,
        announce: false,
    };
    Peer::start(setup, inside, data, now)
}

/// What is said in the tunnel.
pub(super) struct Tunnelled {
    username: String,
    state: State,
}

enum State {
    /// The password as it is; the server may ask for more.
    Pap { password: Secret, said: bool },
    /// The response to a challenge that TLS makes.
    MsChapV2Unsaid { password: Secret },
    /// It is sent; the server must prove that it knows the password.
    MsChapV2Said {
        ident: u8,
        response: Box<mschapv2::Response>,
    },
    /// The server has proven it.
    MsChapV2Proven,
    /// Packets of an EAP method.
    Eap { eap: Box<Eap>, begun: bool },
}

impl Inside for Tunnelled {
    fn start(&mut self, _hints: &[u8]) -> Result<(), EapError> {
        Ok(())
    }

    fn advance(&mut self, tls: &mut Tls, heard: &Heard, turn: &mut Turn<'_>) -> Result<Then, EapError> {
        if heard.is_early(tls) {
            return Err(EapError::Tls(
                "the server sent application data too early".to_owned(),
            ));
        }
        if heard.closed {
            return Err(EapError::Refused);
        }
        // Servers await what TLS itself has to say alone.
        if tls.is_handshaking() || tls.wants_to_speak() && heard.plaintext.is_empty() {
            return Ok(Then::Continue);
        }
        let words = Words::of(&heard.plaintext)?;
        match &mut self.state {
            State::Pap { said: true, .. } => match words {
                Words {
                    reply_message: Some(text),
                    ..
                } => Ok(Then::Ask(Question {
                    kind: PromptKind::OneTimeCode,
                    message: gtc::message(text),
                })),
                words => words.nothing(),
            },
            State::MsChapV2Said { ident, response } => match words {
                Words {
                    ms_chap_error: Some([_ident, message @ ..]),
                    ..
                } => Err(mschapv2::failure_in(message)),
                Words {
                    ms_chap_success: Some([received, message @ ..]),
                    ..
                } if received == ident => {
                    response.check(message)?;
                    self.state = State::MsChapV2Proven;
                    // The packet without data says that we are content (RFC 5281, section 11.2.4).
                    Ok(Then::Complete)
                }
                Words {
                    ms_chap_success: Some(_),
                    ..
                } => Err(EapError::ServerUnproven),
                words => words.nothing(),
            },
            State::Eap { eap, begun } => match words.eap_message {
                Some(packet) => {
                    *begun = true;
                    let step = eap.handle_inner(packet, turn)?;
                    follow(step, tls)
                }
                None if *begun => words.nothing(),
                None => self.begin(tls, turn),
            },
            State::Pap { said: false, .. } | State::MsChapV2Unsaid { .. } => {
                words.nothing()?;
                self.begin(tls, turn)
            }
            State::MsChapV2Proven => words.nothing(),
        }
    }

    fn answer(&mut self, tls: &mut Tls, answer: &Secret) -> Result<Then, EapError> {
        match &mut self.state {
            State::Pap { .. } => {
                say_password(tls, &self.username, answer)?;
                Ok(Then::Continue)
            }
            State::Eap { eap, .. } => {
                let step = eap.answer(answer)?;
                follow(step, tls)
            }
            State::MsChapV2Unsaid { .. } | State::MsChapV2Said { .. } | State::MsChapV2Proven => {
                Err(EapError::Malformed("an answer to no question"))
            }
        }
    }

    fn is_content(&self) -> bool {
        match &self.state {
            State::Pap { said, .. } => *said,
            State::Eap { eap, .. } => eap.is_content(),
            State::MsChapV2Proven => true,
            State::MsChapV2Unsaid { .. } | State::MsChapV2Said { .. } => false,
        }
    }

    fn key(&self, tls: &Tls) -> Result<Msk, EapError> {
        tls.msk(EapType::TTLS, b"ttls keying material")
    }
}

impl Tunnelled {
    /// Says the first word, which in EAP-TTLS is the client's.
    fn begin(&mut self, tls: &mut Tls, turn: &mut Turn<'_>) -> Result<Then, EapError> {
        match &mut self.state {
            State::Pap { password, said } => {
                say_password(tls, &self.username, password)?;
                *said = true;
            }
            State::MsChapV2Unsaid { password } => {
                let config = EapMsChapV2 {
                    username: self.username.clone(),
                    password: password.clone(),
                };
                // 16 octets of challenge and one of identifier (RFC 5281, section 11.2.4).
                let implicit = tls.export(b"ttls challenge", None, 17)?;
                let Some((challenge, &[ident])) = implicit.as_bytes().split_first_chunk::<16>() else {
                    return Err(EapError::Tls("the exporter gives too little".to_owned()));
                };
                let response = mschapv2::Response::new(&config, challenge, turn.rng)?;
                let mut value = vec![ident, 0];
                value.extend_from_slice(&response.peer_challenge);
                value.extend_from_slice(&[0; 8]);
                value.extend_from_slice(&response.nt_response);
                let mut message = Vec::new();
                avp::encode(Kind::USER_NAME, self.username.as_bytes(), &mut message)?;
                avp::encode(Kind::MS_CHAP_CHALLENGE, challenge, &mut message)?;
                avp::encode(Kind::MS_CHAP2_RESPONSE, &value, &mut message)?;
                tls.say(&message)?;
                self.state = State::MsChapV2Said {
                    ident,
                    response: Box::new(response),
                };
            }
            State::Eap { eap, begun } => {
                *begun = true;
                let identity = eap.unasked_identity()?;
                say_eap(tls, &identity)?;
            }
            State::MsChapV2Said { .. } | State::MsChapV2Proven => {}
        }
        Ok(Then::Continue)
    }
}

impl fmt::Debug for Tunnelled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::Pap { .. } => "PAP",
            State::MsChapV2Unsaid { .. } | State::MsChapV2Said { .. } | State::MsChapV2Proven => "MSCHAPv2",
            State::Eap { .. } => "EAP",
        };
        f.debug_tuple("Tunnelled").field(&state).finish()
    }
}

/// What of a server's message is for us.
#[derive(Default)]
struct Words<'a> {
    eap_message: Option<&'a [u8]>,
    reply_message: Option<&'a [u8]>,
    ms_chap_success: Option<&'a [u8]>,
    ms_chap_error: Option<&'a [u8]>,
}

impl<'a> Words<'a> {
    fn of(plaintext: &'a [u8]) -> Result<Self, EapError> {
        let mut words = Self::default();
        for avp in avp::decode(plaintext)? {
            let word = match avp.kind {
                Kind::EAP_MESSAGE => &mut words.eap_message,
                Kind::REPLY_MESSAGE => &mut words.reply_message,
                Kind::MS_CHAP2_SUCCESS => &mut words.ms_chap_success,
                Kind::MS_CHAP_ERROR => &mut words.ms_chap_error,
                // It may come with the success, and tells us nothing.
                Kind::MS_CHAP_DOMAIN => continue,
                // RFC 5281, section 10.1.
                _ if avp.mandatory => {
                    return Err(EapError::Malformed("a mandatory attribute that we do not know"));
                }
                kind => {
                    tracing::debug!(?kind, "an attribute of the EAP-TTLS server is not used");
                    continue;
                }
            };
            if word.replace(avp.data).is_some() {
                return Err(EapError::Malformed("an attribute that is there twice"));
            }
        }
        Ok(words)
    }

    /// Nothing of it is what the method can take now.
    fn nothing(self) -> Result<Then, EapError> {
        match self {
            Self {
                eap_message: None,
                ms_chap_success: None,
                ms_chap_error: None,
                ..
            } => Ok(Then::Continue),
            _ => Err(EapError::Malformed(
                "an attribute of another method than the one that runs",
            )),
        }
    }
}

fn follow(step: Step, tls: &mut Tls) -> Result<Then, EapError> {
    match step {
        Step::Reply(packet) => {
            say_eap(tls, &Zeroizing::new(packet))?;
            Ok(Then::Continue)
        }
        Step::Ask(question) => Ok(Then::Ask(question)),
        // No method in a tunnel has a tunnel of its own.
        Step::Check(_) => Err(EapError::Malformed("TLS in TLS")),
        // The real success comes outside of the tunnel.
        Step::Success(_) => Ok(Then::Continue),
    }
}

fn say_eap(tls: &mut Tls, packet: &[u8]) -> Result<(), EapError> {
    // As large as it gets, so that no copy of a password is left behind by a growing vector.
    let mut message = Zeroizing::new(Vec::with_capacity(packet.len() + 11));
    avp::encode(Kind::EAP_MESSAGE, packet, &mut message)?;
    tls.say(&message)
}

/// User name and password, the latter with zeros up to a multiple of 16 octets that hide its length (RFC 5281, section
/// 11.2.5).
fn say_password(tls: &mut Tls, username: &str, password: &Secret) -> Result<(), EapError> {
    let length = password.len().max(1).next_multiple_of(16);
    let mut padded = Zeroizing::new(Vec::with_capacity(length));
    padded.extend_from_slice(password.as_bytes());
    padded.resize(length, 0);
    let mut message = Zeroizing::new(Vec::with_capacity(username.len() + length + 22));
    avp::encode(Kind::USER_NAME, username.as_bytes(), &mut message)?;
    avp::encode(Kind::USER_PASSWORD, &padded, &mut message)?;
    tls.say(&message)
}
