//! The protected exchanges of one IKE SA: sealing, fragments, message IDs, retransmission, repeated answers.

use std::time::Duration;

use zeroize::Zeroizing;

use super::keys::{Role, SaKeys, Spis};
use super::window::Backoff;
use super::{Cx, datagram};
use crate::command::{Path, Transmit};
use crate::crypto::CryptoError;
use crate::timer::{Instant, Timer};
use crate::wire::iana::{ExchangeType, NotifyType, PayloadType};
use crate::wire::{
    self, DecodeError, EncodeError, Flags, Header, IkeSpi, Payload, Reassembly, authenticated_octets,
    covered_head, decode_payloads, encode_payloads, open_sealed, seal_fragments,
};

/// The largest IP datagram once a request went unanswered twice (RFC 7383, section 2.5.1): every IPv4 host takes it.
const SAFE_DATAGRAM: u16 = 576;
/// What an IP and a UDP header and the non-ESP marker take, in octets.
const OVERHEAD_V4: usize = 20 + 8 + 4;
const OVERHEAD_V6: usize = 40 + 8 + 4;
/// A retransmission that is this late was not held up by the network: the machine slept.
const SLEPT: Duration = Duration::from_secs(20);
/// What went out so recently may have been lost with the path that it took.
const JUST_NOW: Duration = Duration::from_secs(2);
/// The message ID at which an IKE SA is replaced, long before the last one.
const WORN_OUT: u32 = 1 << 30;
/// The size of a sealed message that is never cut: what a frame of a TCP stream holds beside the non-ESP marker.
const UNFRAGMENTED: usize = wire::MAX_FRAME - 4;

/// A message whose integrity was verified with this SA's keys. Only [`Channel::open`] makes one.
#[derive(Clone)]
pub(crate) struct Opened {
    pub(crate) header: Header,
    /// The way that it came, and that an answer goes back (RFC 7296, section 2.11).
    pub(crate) path: Path,
    /// What came before the encrypted octets, of a divided response those of its first fragment.
    covered: Vec<u8>,
    first: PayloadType,
    body: Zeroizing<Vec<u8>>,
    /// It answers a probe that was sent once, and nothing else.
    pub(crate) answers_probe: bool,
}

impl Opened {
    pub(crate) fn payloads(&self) -> Result<Vec<Payload<'_>>, DecodeError> {
        decode_payloads(self.first, &self.body, Header::LEN)
    }

    /// What both sides prove of an IKE_INTERMEDIATE response (RFC 9242, section 3.3.2).
    pub(crate) fn authenticated(&self) -> Option<Vec<u8>> {
        authenticated_octets(&self.covered, &self.body)
    }
}

/// A request of ours without its response.
struct Outstanding {
    exchange: ExchangeType,
    first: PayloadType,
    body: Zeroizing<Vec<u8>>,
    messages: Vec<Vec<u8>>,
    backoff: Backoff,
    probe: Probe,
}

/// Whether a request is there to find out whether a datagram of its size gets through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Probe {
    No,
    /// The large datagram alone is on its way.
    Alone,
    /// It seems to be lost, and a short request with the same message ID goes out with it.
    WithTwin,
}

/// The last request of the gateway's, answered.
struct Answered {
    message_id: u32,
    messages: Vec<Vec<u8>>,
    at: Instant,
    path: Path,
}

pub(crate) struct Channel {
    pub(crate) spis: Spis,
    pub(crate) keys: SaKeys,
    pub(crate) path: Path,
    /// The largest IP datagram that a message may fill, where both sides speak RFC 7383.
    fragment_size: Option<u16>,
    next_id: u32,
    outstanding: Option<Outstanding>,
    expected_id: u32,
    answered: Option<Answered>,
    responses: Reassembly,
    /// What came before the encrypted octets of the first of `responses`.
    first_response: Vec<u8>,
    requests: Reassembly,
    /// When an authenticated message last came in.
    pub(crate) last_in: Instant,
    /// When anything was last sent.
    pub(crate) last_out: Instant,
    /// The last round trip that no retransmission blurred.
    pub(crate) round_trip: Option<Duration>,
}

impl Channel {
    /// A channel whose first request carries message ID 1: IKE_SA_INIT was 0.
    pub(crate) fn new(
        spis: Spis,
        keys: SaKeys,
        path: Path,
        fragment_size: Option<u16>,
        now: Instant,
    ) -> Self {
        Self {
            spis,
            keys,
            path,
            fragment_size,
            next_id: 1,
            outstanding: None,
            expected_id: 0,
            answered: None,
            responses: Reassembly::new(),
            first_response: Vec::new(),
            requests: Reassembly::new(),
            last_in: now,
            last_out: now,
            round_trip: None,
        }
    }

    /// The channel of an IKE SA that replaces this one: on the same path, both message IDs from zero (RFC 7296, section
    /// 2.8).
    pub(crate) fn successor(&self, spis: Spis, keys: SaKeys, now: Instant) -> Self {
        Self {
            next_id: 0,
            round_trip: self.round_trip,
            ..Self::new(spis, keys, self.path, self.fragment_size, now)
        }
    }

    /// The SPI that we chose.
    pub(crate) fn own_spi(&self) -> IkeSpi {
        match self.keys.role {
            Role::Initiator => self.spis.initiator,
            Role::Responder => self.spis.responder,
        }
    }

    /// Whether a message claims to be for this SA. Only the original initiator sets the I flag, so a message of ours
    /// that comes back is not (RFC 7296, section 3.1).
    pub(crate) fn is_for(&self, header: &Header) -> bool {
        header.initiator_spi == self.spis.initiator
            && header.responder_spi == self.spis.responder
            && header.flags.initiator == (self.keys.role == Role::Responder)
    }

    /// Nearly all message IDs are used up, which must never happen (RFC 7296, section 2.2).
    pub(crate) fn is_worn_out(&self) -> bool {
        self.next_id.max(self.expected_id) >= WORN_OUT
    }

    /// The present request's transmissions, or none without a request.
    pub(crate) fn transmissions(&self) -> u32 {
        self.outstanding
            .as_ref()
            .map_or(0, |request| request.backoff.transmissions())
    }

    /// The network changed: what is unanswered is sent again at once, and then in quick succession.
    pub(crate) fn hurry(&mut self, cx: &mut Cx<'_>) {
        self.add_twin();
        if let Some(request) = &mut self.outstanding {
            request.backoff = Backoff::quick(cx.now, cx.rng);
            self.send_again(cx);
        }
    }

    /// There is another TCP connection instead of the one before: what is unanswered is sent again, once (RFC 9329,
    /// section 6.2). It has waited as long as before: a gateway that only takes connections is not one that answers.
    pub(crate) fn follow(&mut self, path: Path, cx: &mut Cx<'_>) {
        self.path = path;
        if let Some(request) = &mut self.outstanding {
            request.backoff.hurry(cx.now, cx.rng);
            self.try_path(path, cx);
        }
    }

    /// Sends the outstanding request again, unless TCP does that for us (RFC 9329, section 6.2).
    fn send_again(&mut self, cx: &mut Cx<'_>) {
        if !self.path.is_tcp() {
            self.try_path(self.path, cx);
        }
    }

    /// What is unanswered is sent again at once and then in quick succession; it has waited as long as before.
    pub(crate) fn ask_again(&mut self, cx: &mut Cx<'_>) {
        self.add_twin();
        if let Some(request) = &mut self.outstanding {
            request.backoff.hurry(cx.now, cx.rng);
            self.send_again(cx);
        }
    }

    /// What was just asked is asked again soon: the network has just changed.
    pub(crate) fn be_quick(&mut self, cx: &mut Cx<'_>) {
        if let Some(request) = &mut self.outstanding {
            request.backoff = Backoff::quick(cx.now, cx.rng);
        }
    }

    /// Nobody will answer the outstanding request any more.
    pub(crate) fn forget_request(&mut self) {
        self.outstanding = None;
    }

    /// When the outstanding request was first sent.
    pub(crate) fn asked_at(&self) -> Option<Instant> {
        self.outstanding.as_ref().map(|request| request.backoff.started())
    }

    /// Sends the last answer once more along the present path, if it went out a moment ago along one that has been left
    /// since: it may have gone nowhere, and the gateway would ask again only after seconds.
    pub(crate) fn repeat_answer(&mut self, cx: &mut Cx<'_>) {
        if let Some(answer) = self.answered.take() {
            if cx.now < answer.at + JUST_NOW && answer.path.socket() != self.path.socket() {
                self.send(&answer.messages, cx);
            }
            self.answered = Some(answer);
        }
    }

    /// Sends the outstanding request on another path too, and leaves everything else as it is (RFC 4555, section 3.5).
    pub(crate) fn try_path(&mut self, path: Path, cx: &mut Cx<'_>) {
        self.add_twin();
        if let Some(mut request) = self.outstanding.take() {
            self.fit(&mut request, path);
            self.send_on(path, &request.messages, cx);
            self.outstanding = Some(request);
        }
    }

    /// Makes the outstanding request one that `path` can carry: over TCP it is in one piece, over UDP in fragments (RFC
    /// 9329, section 7.5). A probe stays as it is.
    fn fit(&mut self, request: &mut Outstanding, path: Path) {
        let max = Self::largest(path, self.fragment_size);
        let fits = request.messages.iter().all(|message| message.len() <= max);
        if request.probe != Probe::No || (fits && !(path.is_tcp() && request.messages.len() > 1)) {
            return;
        }
        // Other cuts are other plaintexts: sealed anew, under new initialization vectors.
        let header = self.header(request.exchange, self.next_id.saturating_sub(1), false);
        if let Ok(payloads) = decode_payloads(request.first, &request.body, Header::LEN)
            && let Ok(messages) = self.seal(header, &payloads, self.fragment_size, path)
            // As many fragments as before, cut elsewhere, would be joined with those (RFC 7383, section 2.5.2).
            && (path.is_tcp() || messages.len() > request.messages.len())
        {
            request.messages = messages;
        }
    }

    /// The message ID of the next request.
    pub(crate) fn next_id(&self) -> u32 {
        self.next_id
    }

    /// What both sides prove of the outstanding IKE_INTERMEDIATE request (RFC 9242, section 3.3.2).
    pub(crate) fn authenticated_request(&self) -> Option<Vec<u8>> {
        let request = self.outstanding.as_ref()?;
        let header = self.header(request.exchange, self.next_id.checked_sub(1)?, false);
        authenticated_octets(&covered_head(header, request.first), &request.body)
    }

    /// Nothing of ours is unanswered: a new request may be sent.
    pub(crate) fn is_free(&self) -> bool {
        self.outstanding.is_none()
    }

    /// Both sides may send long messages in fragments.
    pub(crate) fn fragments(&self) -> bool {
        self.fragment_size.is_some()
    }

    /// Sends the one octet that keeps a NAT's mapping (RFC 3948, section 2.3).
    pub(crate) fn keep_mapping(&mut self, cx: &mut Cx<'_>) {
        cx.out.push_back(Transmit {
            path: self.path,
            payload: Box::new([0xff]),
            is_probe: false,
        });
        self.last_out = cx.now;
    }

    /// The outstanding request has waited for its response as long as `patience` allows, and not because the machine
    /// slept.
    pub(crate) fn is_given_up(&self, now: Instant, patience: Duration) -> bool {
        self.outstanding.as_ref().is_some_and(|request| {
            now >= request.backoff.started() + patience && now < request.backoff.due() + SLEPT
        })
    }

    /// When the outstanding request is sent again or given up.
    pub(crate) fn poll_timeout(&self, patience: Duration) -> Option<(Instant, Timer)> {
        let backoff = &self.outstanding.as_ref()?.backoff;
        Some((backoff.due().min(backoff.started() + patience), Timer::Retransmit))
    }

    /// Sends the outstanding request again if it is time. After sleep the waiting begins anew: nobody could answer.
    pub(crate) fn handle_timeout(&mut self, cx: &mut Cx<'_>) {
        let Some(due) = self.outstanding.as_ref().map(|request| request.backoff.due()) else {
            return;
        };
        if cx.now >= due {
            self.add_twin();
        }
        let Some(request) = &mut self.outstanding else {
            return;
        };
        if cx.now >= due + SLEPT {
            request.backoff = Backoff::start(cx.now, cx.rng);
            self.send_again(cx);
        } else if cx.now >= due {
            self.retransmit(cx);
        }
    }

    /// Sends a request. Any older one must have been answered.
    pub(crate) fn request(
        &mut self,
        exchange: ExchangeType,
        payloads: &[Payload<'_>],
        cx: &mut Cx<'_>,
    ) -> Result<(), EncodeError> {
        self.request_in(self.fragment_size, exchange, payloads, cx)
    }

    /// Sends a request in datagrams of at most this size, or in one.
    fn request_in(
        &mut self,
        fragment_size: Option<u16>,
        exchange: ExchangeType,
        payloads: &[Payload<'_>],
        cx: &mut Cx<'_>,
    ) -> Result<(), EncodeError> {
        debug_assert!(self.is_free(), "the request window is one");
        let mut body = Zeroizing::new(Vec::new());
        let first = encode_payloads(payloads, &mut body)?;
        let header = self.header(exchange, self.next_id, false);
        let messages = self.seal(header, payloads, fragment_size, self.path)?;
        self.next_id = self.next_id.saturating_add(1);
        self.responses.clear();
        self.send(&messages, cx);
        let backoff = Backoff::start(cx.now, cx.rng);
        self.outstanding = Some(Outstanding {
            exchange,
            first,
            body,
            messages,
            backoff,
            probe: Probe::No,
        });
        Ok(())
    }

    /// Asks for nothing, in an IP datagram of `size` octets or of the few less that the cipher's blocks allow; how many
    /// it has. It must not be lost with everything that waits for the window: without an answer within `wait` it gets a
    /// short twin, an empty request with the same message ID, and is from then on a request like any other.
    ///
    /// A gateway that has not seen the large one answers the twin. One that has, and whose answer was lost, sees both the
    /// same octets again, as RFC 7296 (section 2.1) wants them, and a message ID that it has answered. As both ask for
    /// nothing, its answer is right for either.
    pub(crate) fn probe(
        &mut self,
        size: u16,
        padding: NotifyType,
        wait: Duration,
        cx: &mut Cx<'_>,
    ) -> Result<u16, EncodeError> {
        const NOTIFY_HEADER: usize = 8;
        let max = usize::from(size).saturating_sub(overhead(self.path));
        let room = wire::sealed_room(self.keys.seal.suite(), max);
        let data = vec![0; room.saturating_sub(NOTIFY_HEADER)];
        let payload = super::notify(padding, &data);
        self.request_in(None, ExchangeType::INFORMATIONAL, &[payload], cx)?;
        let len = self.outstanding.as_mut().map_or(0, |request| {
            request.probe = Probe::Alone;
            request.backoff = Backoff::probe(wait, cx.now, cx.rng);
            request.messages.iter().map(Vec::len).sum()
        });
        if let Some(sent) = cx.out.back_mut() {
            sent.is_probe = true;
        }
        Ok(u16::try_from(len.saturating_add(overhead(self.path))).unwrap_or(u16::MAX))
    }

    /// A probe is to be sent again: its twin goes with it.
    fn add_twin(&mut self) {
        let Some(mut request) = self.outstanding.take() else {
            return;
        };
        if request.probe == Probe::Alone {
            request.probe = Probe::WithTwin;
            let header = self.header(request.exchange, self.next_id.saturating_sub(1), false);
            if let Ok(twin) = self.seal(header, &[], None, self.path) {
                request.messages.splice(..0, twin);
            }
        }
        self.outstanding = Some(request);
    }

    /// Sends a request whose response nobody waits for: the SA is given up.
    pub(crate) fn farewell(&mut self, exchange: ExchangeType, payloads: &[Payload<'_>], cx: &mut Cx<'_>) {
        let header = self.header(exchange, self.next_id, false);
        if let Ok(messages) = self.seal(header, payloads, self.fragment_size, self.path) {
            self.send(&messages, cx);
        }
    }

    /// Answers the gateway's request `to`, the way that it came (RFC 7296, section 2.11).
    pub(crate) fn respond(
        &mut self,
        to: &Opened,
        payloads: &[Payload<'_>],
        cx: &mut Cx<'_>,
    ) -> Result<(), EncodeError> {
        let Opened { header: to, path, .. } = *to;
        let header = self.header(to.exchange, to.message_id, true);
        let messages = self.seal(header, payloads, self.fragment_size, path)?;
        self.send_answer(path, &messages, cx);
        self.answered = Some(Answered {
            message_id: to.message_id,
            messages,
            at: cx.now,
            path,
        });
        Ok(())
    }

    /// Sends an answer the way that the request came, and along the present path too where that begins elsewhere: the
    /// gateway asked before it knew of our move, what it asked may come in by a network that takes nothing any more,
    /// and it would ask again only after seconds.
    fn send_answer(&mut self, path: Path, messages: &[Vec<u8>], cx: &mut Cx<'_>) {
        self.send_on(path, messages, cx);
        if path.socket() != self.path.socket() && !path.is_tcp() && !self.path.is_tcp() {
            self.send(messages, cx);
        }
    }

    /// Sends the outstanding request again, smaller if it was lost twice as fragments.
    fn retransmit(&mut self, cx: &mut Cx<'_>) {
        let Some(mut request) = self.outstanding.take() else {
            return;
        };
        if self.path.is_tcp() {
            request.backoff.again(cx.now, cx.rng);
            self.outstanding = Some(request);
            return;
        }
        self.fit(&mut request, self.path);
        let cut_smaller = request.probe == Probe::No
            && self.fragment_size.is_some_and(|size| size > SAFE_DATAGRAM)
            && request.messages.len() > 1
            && request.backoff.transmissions() == 2;
        if cut_smaller {
            // Other cuts are other plaintexts: sealed anew, under new initialization vectors.
            let id = self.next_id.saturating_sub(1);
            let header = self.header(request.exchange, id, false);
            if let Ok(payloads) = decode_payloads(request.first, &request.body, Header::LEN)
                && let Ok(messages) = self.seal(header, &payloads, Some(SAFE_DATAGRAM), self.path)
                // The total must grow, or the peer mixes both cuts (RFC 7383, section 2.5.2).
                && messages.len() > request.messages.len()
            {
                self.fragment_size = Some(SAFE_DATAGRAM);
                request.messages = messages;
            }
        }
        self.send(&request.messages, cx);
        request.backoff.again(cx.now, cx.rng);
        self.outstanding = Some(request);
    }

    /// Verifies and decrypts a message; none when it is not, or not yet, a new message of this SA's peer. A request
    /// that was answered already gets the same answer again.
    pub(crate) fn open(&mut self, path: Path, message: &mut [u8], cx: &mut Cx<'_>) -> Option<Opened> {
        let header = Header::decode(message).ok()?;
        let response = header.flags.response;
        if !self.is_for(&header) || header.version >> 4 != 2 {
            return None;
        }
        let expected = if response {
            self.next_id.checked_sub(1)?
        } else {
            self.expected_id
        };
        let repeated = !response
            && self
                .answered
                .as_ref()
                .is_some_and(|answer| answer.message_id == header.message_id);
        if !repeated && header.message_id != expected {
            return None;
        }
        if response
            && self
                .outstanding
                .as_ref()
                .is_none_or(|request| request.exchange != header.exchange)
        {
            return None;
        }
        let opened = open_sealed(message, &self.keys.open).ok()?;
        if repeated {
            // RFC 7383, section 2.6.1: only the first fragment of a repeated request draws the answer again.
            if opened.fragment.is_none_or(|(number, _)| number == 1)
                && let Some(answer) = self.answered.take()
            {
                self.send_answer(path, &answer.messages, cx);
                self.answered = Some(answer);
            }
            return None;
        }
        let mut covered = opened.covered.to_vec();
        let (first, body) = match opened.fragment {
            None => (opened.first, opened.body.to_vec()),
            // A peer that never agreed to fragments sends none.
            Some(_) if self.fragment_size.is_none() => return None,
            Some((number, total)) => {
                if response && number == 1 {
                    self.first_response = std::mem::take(&mut covered);
                }
                let set = if response {
                    &mut self.responses
                } else {
                    &mut self.requests
                };
                let complete = set.add(header.message_id, number, total, opened.first, opened.body)?;
                if response {
                    covered = std::mem::take(&mut self.first_response);
                }
                complete
            }
        };
        // Only what is new shows that the peer lives: anybody can replay (RFC 7296, section 2.4).
        self.last_in = cx.now;
        let mut answers_probe = false;
        if response {
            if let Some(request) = self.outstanding.take() {
                answers_probe = request.probe == Probe::Alone;
                if request.backoff.transmissions() == 1 {
                    self.round_trip = Some(cx.now.since(request.backoff.started()));
                }
            }
            self.responses.clear();
        } else {
            self.expected_id = self.expected_id.saturating_add(1);
            self.requests.clear();
        }
        Some(Opened {
            header,
            path,
            covered,
            first,
            body: Zeroizing::new(body),
            answers_probe,
        })
    }

    fn header(&self, exchange: ExchangeType, message_id: u32, response: bool) -> Header {
        Header {
            initiator_spi: self.spis.initiator,
            responder_spi: self.spis.responder,
            next_payload: PayloadType::NONE,
            version: wire::VERSION,
            exchange,
            flags: Flags {
                initiator: self.keys.role == Role::Initiator,
                version: false,
                response,
            },
            message_id,
            length: 0,
        }
    }

    /// The largest message that `path` can carry, when no IP datagram may be larger than `datagram`.
    const fn largest(path: Path, datagram: Option<u16>) -> usize {
        match datagram {
            Some(size) if !path.is_tcp() => (size as usize).saturating_sub(overhead(path)),
            Some(_) | None => UNFRAGMENTED,
        }
    }

    fn seal(
        &mut self,
        header: Header,
        payloads: &[Payload<'_>],
        datagram: Option<u16>,
        path: Path,
    ) -> Result<Vec<Vec<u8>>, EncodeError> {
        let max = Self::largest(path, datagram);
        seal_fragments(header, payloads, &self.keys.seal, &mut self.keys.next_iv, max)
    }

    fn send(&mut self, messages: &[Vec<u8>], cx: &mut Cx<'_>) {
        self.send_on(self.path, messages, cx);
    }

    fn send_on(&mut self, path: Path, messages: &[Vec<u8>], cx: &mut Cx<'_>) {
        for message in messages {
            cx.out.push_back(datagram(path, message));
        }
        self.last_out = cx.now;
    }
}

/// What IP, UDP and the non-ESP marker add to a message.
const fn overhead(path: Path) -> usize {
    if path.remote.is_ipv4() {
        OVERHEAD_V4
    } else {
        OVERHEAD_V6
    }
}

impl From<CryptoError> for super::Broken {
    fn from(error: CryptoError) -> Self {
        Self(format!(
            "the gateway's key exchange value is not acceptable: {error}"
        ))
    }
}
