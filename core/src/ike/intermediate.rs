//! IKE_INTERMEDIATE (RFC 9242): one exchange for each additional key exchange (RFC 9370), each under the keys of the one
//! before.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::auth::Auth;
use super::channel::{Channel, Opened};
use super::established::Established;
use super::init::Agreed;
use super::{Broken, Cx, News, Next, SaConfig, State, error_notify, is_private, refuse_critical, unsendable};
use crate::command::{Cause, Failure, Path, Stage};
use crate::crypto::{KeyExchange, Secret};
use crate::timer::{Instant, Timer};
use crate::wire::iana::{ExchangeType, KeMethod, PayloadType};
use crate::wire::{Element, EncodeError, Header, IkeSpi, Ke, Payload};

/// As long as for IKE_AUTH: the first fragments of the connection may have to find their size.
const PATIENCE: Duration = Duration::from_secs(30);

/// Waiting for the gateway's part of an additional key exchange.
pub(super) struct Intermediate {
    config: Arc<SaConfig>,
    agreed: Agreed,
    exchange: KeyExchange,
    /// The methods after this one.
    remaining: VecDeque<KeMethod>,
    /// IntAuth_i up to the outstanding request, IntAuth_r up to the last response (RFC 9242, section 3.3.2).
    proof: [Secret; 2],
}

impl Intermediate {
    /// Begins the first additional key exchange, or IKE_AUTH where none was agreed on.
    pub(super) fn start(config: Arc<SaConfig>, agreed: Agreed, cx: &mut Cx<'_>) -> Next {
        // What went into the keys of an SA goes into those of the one that is resumed from it.
        let remaining: VecDeque<KeMethod> = match agreed.resumed {
            Some(_) => VecDeque::new(),
            None => agreed.suite.additional.methods().collect(),
        };
        if !remaining.is_empty() {
            cx.news.push_back(News::Stage(Stage::IkeIntermediate));
        }
        let proof = [Secret::new(Vec::new()), Secret::new(Vec::new())];
        go_on(config, agreed, remaining, proof, cx)
    }

    /// The SPI that we chose.
    pub(super) fn spi(&self) -> IkeSpi {
        self.agreed.channel.spis.initiator
    }

    pub(super) fn path(&self) -> Path {
        self.agreed.channel.path
    }

    pub(super) fn channel_mut(&mut self) -> &mut Channel {
        &mut self.agreed.channel
    }

    pub(super) fn poll_timeout(&self) -> Option<(Instant, Timer)> {
        self.agreed.channel.poll_timeout(PATIENCE)
    }

    pub(super) fn handle_timeout(mut self: Box<Self>, cx: &mut Cx<'_>) -> Next {
        if self.agreed.channel.is_given_up(cx.now, PATIENCE) {
            return fail(Cause::WentSilent);
        }
        self.agreed.channel.handle_timeout(cx);
        Ok(State::Intermediate(self))
    }

    pub(super) fn handle(mut self: Box<Self>, path: Path, message: &mut [u8], cx: &mut Cx<'_>) -> Next {
        // The gateway has nothing to ask before either side is proven.
        if Header::decode(message).is_ok_and(|header| !header.flags.response) {
            return Ok(State::Intermediate(self));
        }
        let Some(opened) = self.agreed.channel.open(path, message, cx) else {
            return Ok(State::Intermediate(self));
        };
        match self.agree(&opened) {
            Ok(()) => {
                let Self {
                    config,
                    agreed,
                    remaining,
                    proof,
                    ..
                } = *self;
                go_on(config, agreed, remaining, proof, cx)
            }
            Err(cause) => fail(cause),
        }
    }

    /// Takes the gateway's part, and with it the next keys: `SKEYSEED(n) = prf(SK_d(n-1), SK(n) | Ni | Nr)`.
    fn agree(&mut self, opened: &Opened) -> Result<(), Cause> {
        let payloads = opened.payloads().map_err(Broken::from)?;
        refuse_critical("IKE_INTERMEDIATE", &payloads)?;
        let mut kes = payloads.iter().filter_map(|payload| match payload {
            Payload::Ke(ke) => Some(ke),
            _ => None,
        });
        let (ke, more) = (kes.next(), kes.next());
        if let Some(error) = error_notify(&payloads).filter(|error| ke.is_none() || !is_private(*error)) {
            return Err(Cause::Refused(error));
        }
        let broken = |what: &str| Cause::Protocol(format!("IKE_INTERMEDIATE: {what}"));
        let ke = ke.ok_or_else(|| broken("the key exchange is missing"))?;
        if more.is_some() {
            return Err(broken("a payload is there twice"));
        }
        if ke.method != self.exchange.method() {
            return Err(broken("the key exchange is not of the chosen method"));
        }
        let shared = self.exchange.agree(ke.data).map_err(Broken::from)?;
        let Agreed {
            channel,
            transcript,
            suite,
            ..
        } = &mut self.agreed;
        let octets = opened
            .authenticated()
            .ok_or_else(|| broken("it cannot be authenticated"))?;
        let [_, theirs] = &mut self.proof;
        *theirs = channel.keys.prf.compute(
            channel.keys.proof_responder.as_bytes(),
            &[theirs.as_bytes(), &octets],
        );
        channel.keys = channel
            .keys
            .derive_next(suite, &shared, &transcript.nonces, channel.spis)
            .map_err(Broken::from)?;
        Ok(())
    }
}

impl Established {
    /// Whether a post-quantum key exchange went into the keys, when the SA began or since.
    pub(crate) fn is_post_quantum(&self) -> bool {
        self.channel.keys.post_quantum
    }

    /// Whether a post-quantum pre-shared key (RFC 8784) is in the keys.
    pub(crate) fn has_ppk(&self) -> bool {
        self.channel.keys.ppk
    }
}

/// Begins the next additional key exchange, or IKE_AUTH after the last.
fn go_on(
    config: Arc<SaConfig>,
    mut agreed: Agreed,
    mut remaining: VecDeque<KeMethod>,
    mut proof: [Secret; 2],
    cx: &mut Cx<'_>,
) -> Next {
    let Some(method) = remaining.pop_front() else {
        let [ours, theirs] = &proof;
        if !ours.is_empty() {
            let first_of_auth = agreed.channel.next_id().to_be_bytes();
            agreed.transcript.int_auth = [ours.as_bytes(), theirs.as_bytes(), &first_of_auth].concat();
        }
        cx.news.push_back(News::Stage(Stage::IkeAuth));
        return Auth::start(config, agreed, cx).map(|auth| State::Auth(Box::new(auth)));
    };
    match send(&mut agreed, method, &mut proof, cx) {
        Ok(exchange) => Ok(State::Intermediate(Box::new(Intermediate {
            config,
            agreed,
            exchange,
            remaining,
            proof,
        }))),
        Err(cause) => fail(cause),
    }
}

/// Sends our part, and adds it to what both sides prove later.
fn send(
    agreed: &mut Agreed,
    method: KeMethod,
    proof: &mut [Secret; 2],
    cx: &mut Cx<'_>,
) -> Result<KeyExchange, Cause> {
    let exchange = KeyExchange::generate(method, cx.rng)
        .map_err(|error| Cause::Credential(format!("key exchange method {method}: {error}")))?;
    let channel = &mut agreed.channel;
    let ke = Payload::Ke(Ke {
        method,
        data: exchange.public(),
    });
    channel
        .request(ExchangeType::IKE_INTERMEDIATE, &[ke], cx)
        .map_err(|error| unsendable(&error))?;
    let octets = channel
        .authenticated_request()
        .ok_or_else(|| unsendable(&EncodeError::TooLarge(Element::Payload(PayloadType::KE))))?;
    let [ours, _] = proof;
    *ours = channel.keys.prf.compute(
        channel.keys.proof_initiator.as_bytes(),
        &[ours.as_bytes(), &octets],
    );
    Ok(exchange)
}

fn fail(cause: Cause) -> Next {
    Err(Failure {
        stage: Stage::IkeIntermediate,
        cause,
    })
}
