//! The protected messages of one IKE SA: message IDs, the window of one, retransmission, fragments (RFC 7296, sections
//! 2.1 to 2.3; RFC 7383).

use std::time::Duration;

use peregrine_core::timer::Instant;
use peregrine_core::wire::iana::{ExchangeType, PayloadType};
use peregrine_core::wire::{
    self, Flags, Header, IkeSpi, Payload, Reassembly, decode_payloads, open_sealed, seal_fragments,
};

use super::config::Side;
use super::keys::{SaKeys, Spis};

/// The wait before the first retransmission; each one is twice as long as the one before.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// No wait is longer.
const LONGEST_WAIT: Duration = Duration::from_secs(4);

pub(super) struct Channel {
    pub(super) spis: Spis,
    /// Who is the original initiator: who began the exchange that made this SA.
    pub(super) initiator: Side,
    pub(super) keys: SaKeys,
    /// Those of the last additional key exchange, with its message ID: its request may be repeated.
    before: Option<(u32, SaKeys)>,
    fragment: Option<usize>,
    iv: u64,
    next: u32,
    outstanding: Option<Outstanding>,
    expected: u32,
    answered: Vec<Vec<u8>>,
    requests: Reassembly,
    responses: Reassembly,
}

/// A request of the gateway's without its response.
struct Outstanding {
    exchange: ExchangeType,
    messages: Vec<Vec<u8>>,
    since: Instant,
    due: Instant,
    wait: Duration,
}

/// A new message of the client's.
pub(super) struct Opened {
    pub(super) header: Header,
    pub(super) first: PayloadType,
    pub(super) body: Vec<u8>,
}

impl Opened {
    pub(super) fn payloads(&self) -> Vec<Payload<'_>> {
        decode_payloads(self.first, &self.body, Header::LEN).expect("the client's payloads can be read")
    }
}

/// What came of a datagram.
pub(super) enum Incoming {
    /// Nothing, or nothing yet.
    Nothing,
    /// A request that was answered already, with this.
    Again(Vec<Vec<u8>>),
    /// A new request.
    Request(Opened),
    /// The response that was waited for.
    Response(Opened),
}

/// What the outstanding request calls for.
pub(super) enum Overdue {
    Nothing,
    /// To be sent again.
    Again(Vec<Vec<u8>>),
    /// The client does not answer any more.
    GivenUp,
}

impl Channel {
    /// A channel on which the client's next request has this message ID, and the gateway's first one zero.
    pub(super) fn new(
        spis: Spis,
        initiator: Side,
        keys: SaKeys,
        fragment: Option<usize>,
        expected: u32,
    ) -> Self {
        Self {
            spis,
            initiator,
            keys,
            before: None,
            fragment,
            iv: 0,
            next: 0,
            outstanding: None,
            expected,
            answered: Vec::new(),
            requests: Reassembly::new(),
            responses: Reassembly::new(),
        }
    }

    /// The SPI that the gateway chose.
    pub(super) fn own_spi(&self) -> IkeSpi {
        match self.initiator {
            Side::Gateway => self.spis.initiator,
            Side::Client => self.spis.responder,
        }
    }

    pub(super) fn fragment(&self) -> Option<usize> {
        self.fragment
    }

    /// Nothing of the gateway's is unanswered.
    pub(super) fn is_free(&self) -> bool {
        self.outstanding.is_none()
    }

    fn header(&self, exchange: ExchangeType, message_id: u32, response: bool) -> Header {
        Header {
            initiator_spi: self.spis.initiator,
            responder_spi: self.spis.responder,
            next_payload: PayloadType::NONE,
            version: wire::VERSION,
            exchange,
            flags: Flags {
                initiator: self.initiator == Side::Gateway,
                version: false,
                response,
            },
            message_id,
            length: 0,
        }
    }

    fn seal(&mut self, header: Header, payloads: &[Payload<'_>]) -> Vec<Vec<u8>> {
        let key = match self.initiator {
            Side::Gateway => &self.keys.from_initiator,
            Side::Client => &self.keys.from_responder,
        };
        let max = self.fragment.unwrap_or(65_535);
        seal_fragments(header, payloads, key, &mut self.iv, max)
            .expect("the gateway's messages can be sealed")
    }

    /// The header of the response to a request, without what the payloads say.
    pub(super) fn response_header(&self, to: &Header) -> Header {
        self.header(to.exchange, to.message_id, true)
    }

    /// The next exchange is under these keys.
    pub(super) fn change_keys(&mut self, keys: SaKeys) {
        self.before = Some((self.expected - 1, std::mem::replace(&mut self.keys, keys)));
        self.iv = 0;
    }

    /// Makes a request out of `payloads`. Any older one must have been answered.
    pub(super) fn request(
        &mut self,
        exchange: ExchangeType,
        payloads: &[Payload<'_>],
        now: Instant,
    ) -> Vec<Vec<u8>> {
        assert!(self.is_free(), "the window is one");
        let header = self.header(exchange, self.next, false);
        let messages = self.seal(header, payloads);
        self.next += 1;
        self.responses.clear();
        self.outstanding = Some(Outstanding {
            exchange,
            messages: messages.clone(),
            since: now,
            due: now + FIRST_WAIT,
            wait: FIRST_WAIT,
        });
        messages
    }

    /// Makes the answer to the request `to`, and keeps it for repetitions.
    pub(super) fn respond(&mut self, to: &Header, payloads: &[Payload<'_>]) -> Vec<Vec<u8>> {
        let header = self.header(to.exchange, to.message_id, true);
        let messages = self.seal(header, payloads);
        self.answered.clone_from(&messages);
        messages
    }

    /// Verifies and decrypts a message.
    pub(super) fn open(&mut self, message: &mut [u8]) -> Incoming {
        let Ok(header) = Header::decode(message) else {
            return Incoming::Nothing;
        };
        let spis = Spis {
            initiator: header.initiator_spi,
            responder: header.responder_spi,
        };
        if spis != self.spis {
            return Incoming::Nothing;
        }
        let keys = match &self.before {
            Some((id, keys)) if *id == header.message_id && !header.flags.response => keys,
            _ => &self.keys,
        };
        let key = match self.initiator {
            Side::Gateway => &keys.from_responder,
            Side::Client => &keys.from_initiator,
        };
        let Ok(opened) = open_sealed(message, key) else {
            return Incoming::Nothing;
        };
        let response = header.flags.response;
        if response {
            let waited_for = self.outstanding.as_ref().is_some_and(|request| {
                request.exchange == header.exchange && header.message_id + 1 == self.next
            });
            if !waited_for {
                return Incoming::Nothing;
            }
        } else if header.message_id + 1 == self.expected {
            // RFC 7383, section 2.6.1: only the first fragment of a repeated request draws the answer again.
            let first = opened.fragment.is_none_or(|(number, _)| number == 1);
            return if first {
                Incoming::Again(self.answered.clone())
            } else {
                Incoming::Nothing
            };
        } else if header.message_id != self.expected {
            return Incoming::Nothing;
        }
        let (first, body) = match opened.fragment {
            None => (opened.first, opened.body.to_vec()),
            Some((number, total)) => {
                let set = if response {
                    &mut self.responses
                } else {
                    &mut self.requests
                };
                match set.add(header.message_id, number, total, opened.first, opened.body) {
                    Some(whole) => whole,
                    None => return Incoming::Nothing,
                }
            }
        };
        let opened = Opened { header, first, body };
        if response {
            self.outstanding = None;
            Incoming::Response(opened)
        } else {
            self.expected += 1;
            self.requests.clear();
            Incoming::Request(opened)
        }
    }

    /// When the outstanding request is sent again or given up.
    pub(super) fn due(&self, patience: Duration) -> Option<Instant> {
        let request = self.outstanding.as_ref()?;
        Some(request.due.min(request.since + patience))
    }

    /// What the outstanding request calls for now.
    pub(super) fn overdue(&mut self, now: Instant, patience: Duration) -> Overdue {
        let Some(request) = &mut self.outstanding else {
            return Overdue::Nothing;
        };
        if now >= request.since + patience {
            return Overdue::GivenUp;
        }
        if now < request.due {
            return Overdue::Nothing;
        }
        request.wait = (request.wait * 2).min(LONGEST_WAIT);
        request.due = now + request.wait;
        Overdue::Again(request.messages.clone())
    }
}
