//! IKE_SA_INIT and IKE_SESSION_RESUME: cookies, redirects, and the first keys (RFC 7296, section 1.2; RFC 5685,
//! section 3; RFC 5723, section 4.3.2).

use peregrine_core::command::Path;
use peregrine_core::crypto::{KeyExchange, sha1};
use peregrine_core::proposal;
use peregrine_core::wire::iana::{ExchangeType, NotifyType};
use peregrine_core::wire::{Flags, Header, IkeSpi, Ke, Message, Notify, Payload, Proposal, encode_message};

use super::auth::Handshake;
use super::book::{Book, Note, Ticket};
use super::channel::Channel;
use super::child::{Aged, choose};
use super::config::{Elsewhere, GatewayConfig, Redirect, RedirectWhen, Side};
use super::inform::{Detection, nat_detection};
use super::intermediate::Additional;
use super::keys::{Nonces, SaKeys, Spis};
use super::session::{IkeSa, Peer, SaState, Session};
use super::wrap;
use peregrine_core::timer::Instant;

/// A first message, with all that may be in it.
struct Hello<'a> {
    header: Header,
    sa: Option<&'a [Proposal<'a>]>,
    ke: Option<Ke<'a>>,
    nonce: &'a [u8],
    ticket: Option<&'a [u8]>,
    fragments: bool,
    intermediate: bool,
    redirects: bool,
    behind_nat: bool,
}

/// Whom to answer, and how.
struct Reply {
    header: Header,
    path: Path,
}

impl Reply {
    fn encode(&self, responder_spi: IkeSpi, payloads: &[Payload<'_>]) -> Vec<u8> {
        let header = Header {
            responder_spi,
            flags: Flags {
                initiator: false,
                version: false,
                response: true,
            },
            ..self.header
        };
        encode_message(header, payloads).expect("a response of the gateway's can be encoded")
    }

    /// Answers with one notify and without an SPI.
    fn notify(&self, kind: NotifyType, data: &[u8], book: &mut Book) {
        let message = self.encode(IkeSpi::ZERO, &[Payload::Notify(Notify::new(kind, data))]);
        book.out.push(wrap(self.path, &message));
    }
}

/// Answers a first message; the session that begins with it, if one does. `cookies` counts those given.
pub(super) fn answer(
    message: &Message<'_>,
    raw: &[u8],
    path: Path,
    now: Instant,
    config: &GatewayConfig,
    book: &mut Book,
    cookies: &mut u32,
) -> Option<Session> {
    let header = message.header;
    let reply = Reply { header, path };
    if let Some(error) = config.refuse_init {
        reply.notify(error, &[], book);
        return None;
    }
    let cookie = |number: u32| sha1(&[b"cookie", &number.to_be_bytes()]);
    let has_cookie = notifies(message)
        .filter(|it| it.kind == NotifyType::COOKIE)
        .any(|it| (0..*cookies).any(|number| it.data == cookie(number)));
    if config.cookie && !has_cookie {
        reply.notify(NotifyType::COOKIE, &cookie(*cookies), book);
        *cookies += 1;
        return None;
    }
    let hello = Hello::read(message, path)?;
    if let Some(redirect) = applicable(config, RedirectWhen::Init, path).filter(|_| hello.redirects) {
        let data = [&redirect.to.encode(), hello.nonce].concat();
        reply.notify(NotifyType::REDIRECT, &data, book);
        return None;
    }
    if header.exchange == ExchangeType::IKE_SESSION_RESUME {
        resume(&hello, raw, &reply, now, config, book)
    } else {
        agree(&hello, raw, &reply, now, config, book)
    }
}

fn notifies<'a>(message: &'a Message<'a>) -> impl Iterator<Item = &'a Notify<'a>> {
    message.payloads.iter().filter_map(|payload| match payload {
        Payload::Notify(notify) => Some(notify),
        _ => None,
    })
}

/// The redirect that applies in this exchange to whoever came along `path`.
pub(super) fn applicable(config: &GatewayConfig, when: RedirectWhen, path: Path) -> Option<&Redirect> {
    config
        .redirect
        .as_ref()
        .filter(|it| it.when == when && it.at.is_none_or(|at| at == path.local.ip()))
}

impl Elsewhere {
    /// GW Ident Type, its length, and the identity (RFC 5685, section 9.2).
    pub(super) fn encode(&self) -> Vec<u8> {
        let (kind, identity) = match self {
            Self::Address(std::net::IpAddr::V4(ip)) => (1, ip.octets().to_vec()),
            Self::Address(std::net::IpAddr::V6(ip)) => (2, ip.octets().to_vec()),
            Self::Name(name) => (3, name.as_bytes().to_vec()),
        };
        let len = u8::try_from(identity.len()).expect("names are short");
        [&[kind, len], identity.as_slice()].concat()
    }
}

impl<'a> Hello<'a> {
    fn read(message: &'a Message<'a>, path: Path) -> Option<Self> {
        let header = message.header;
        let spis = Spis {
            initiator: header.initiator_spi,
            responder: IkeSpi::ZERO,
        };
        let (mut sa, mut ke, mut nonce, mut ticket) = (None, None, None, None);
        let (mut fragments, mut intermediate, mut redirects) = (false, false, false);
        let mut detection = Detection::default();
        for payload in &message.payloads {
            match payload {
                Payload::Sa(value) => sa = Some(value.as_slice()),
                Payload::Ke(value) => ke = Some(*value),
                Payload::Nonce(value) => nonce = Some(*value),
                Payload::Notify(it) => {
                    detection.note(it.kind, it.data, spis, path);
                    match it.kind {
                        NotifyType::TICKET_OPAQUE => ticket = Some(it.data),
                        NotifyType::IKEV2_FRAGMENTATION_SUPPORTED => fragments = true,
                        NotifyType::INTERMEDIATE_EXCHANGE_SUPPORTED => intermediate = true,
                        // RFC 5685, section 3: whoever was sent here can be sent on.
                        NotifyType::REDIRECT_SUPPORTED | NotifyType::REDIRECTED_FROM => redirects = true,
                        _ => {}
                    }
                }
                _ => {}
            }
        }
        Some(Self {
            header,
            sa,
            ke,
            nonce: nonce?,
            ticket,
            fragments,
            intermediate,
            redirects,
            behind_nat: detection.behind_nat,
        })
    }
}

/// IKE_SA_INIT.
fn agree(
    hello: &Hello<'_>,
    raw: &[u8],
    reply: &Reply,
    now: Instant,
    config: &GatewayConfig,
    book: &mut Book,
) -> Option<Session> {
    let (sa, ke) = (hello.sa?, hello.ke?);
    let chosen = choose(sa, |answer| {
        let suite = proposal::select_ike(&config.ike, std::slice::from_ref(answer)).ok()?;
        // RFC 9370, section 2.2.1: without IKE_INTERMEDIATE they are unknown transform types.
        let additional = suite.additional.methods().next().is_some();
        (hello.intermediate || !additional).then_some(suite)
    });
    let Some((proposal, suite)) = chosen else {
        reply.notify(NotifyType::NO_PROPOSAL_CHOSEN, &[], book);
        return None;
    };
    let method = config.insist_on.unwrap_or(suite.ke);
    if ke.method != method {
        reply.notify(NotifyType::INVALID_KE_PAYLOAD, &method.0.to_be_bytes(), book);
        return None;
    }
    let exchange = KeyExchange::generate(method, &mut book.rng).ok()?;
    let shared = exchange.agree(ke.data).ok()?;
    let nonces = Nonces {
        initiator: hello.nonce.to_vec(),
        responder: book.rng.bytes::<32>().to_vec(),
    };
    let spis = Spis {
        initiator: hello.header.initiator_spi,
        responder: book.ike_spi(),
    };
    let keys = SaKeys::initial(&suite, &shared, &nonces, spis);
    let payloads = [
        Payload::Sa(vec![proposal]),
        Payload::Ke(Ke {
            method,
            data: exchange.public(),
        }),
        Payload::Nonce(&nonces.responder),
    ];
    let begun = Begun {
        suite,
        keys,
        nonces: nonces.clone(),
        spis,
        ticket: None,
    };
    Some(begun.session(hello, raw, reply, &payloads, now, config, book))
}

/// IKE_SESSION_RESUME.
fn resume(
    hello: &Hello<'_>,
    raw: &[u8],
    reply: &Reply,
    now: Instant,
    config: &GatewayConfig,
    book: &mut Book,
) -> Option<Session> {
    let known = hello.ticket.and_then(|octets| book.tickets.get(octets)).cloned();
    let Some(ticket) = known.filter(|ticket| now < ticket.expires) else {
        reply.notify(NotifyType::TICKET_NACK, &[], book);
        return None;
    };
    let nonces = Nonces {
        initiator: hello.nonce.to_vec(),
        responder: book.rng.bytes::<32>().to_vec(),
    };
    let spis = Spis {
        initiator: hello.header.initiator_spi,
        responder: book.ike_spi(),
    };
    let begun = Begun {
        suite: ticket.suite,
        keys: SaKeys::resumed(&ticket.derive, &ticket.suite, &nonces, spis),
        nonces: nonces.clone(),
        spis,
        ticket: hello.ticket.map(|octets| (octets.to_vec(), ticket)),
    };
    let payloads = [Payload::Nonce(&nonces.responder)];
    Some(begun.session(hello, raw, reply, &payloads, now, config, book))
}

/// What the first exchange led to.
struct Begun {
    suite: proposal::IkeSuite,
    keys: SaKeys,
    nonces: Nonces,
    spis: Spis,
    ticket: Option<(Vec<u8>, Ticket)>,
}

impl Begun {
    #[expect(clippy::too_many_arguments, reason = "all that the first exchange found out")]
    fn session(
        self,
        hello: &Hello<'_>,
        raw: &[u8],
        reply: &Reply,
        payloads: &[Payload<'_>],
        now: Instant,
        config: &GatewayConfig,
        book: &mut Book,
    ) -> Session {
        let detection = nat_detection(self.spis, reply.path);
        let fragment = config.fragment.filter(|_| hello.fragments);
        let hashes: Vec<u8> = [2_u16, 3, 4, 5]
            .iter()
            .flat_map(|hash| hash.to_be_bytes())
            .collect();
        let mut payloads = payloads.to_vec();
        if !(config.resumes_without_nat && self.ticket.is_some()) {
            payloads.extend(detection.iter().map(Note::payload));
        }
        let mut say = |kind, data| payloads.push(Payload::Notify(Notify::new(kind, data)));
        // What was in the keys of an SA is in those of the one that is resumed from it.
        let additional = match self.ticket {
            Some(_) => Additional::default(),
            None => Additional::new(self.suite.additional.methods()),
        };
        if !additional.remaining.is_empty() && !config.silent_intermediate {
            say(NotifyType::INTERMEDIATE_EXCHANGE_SUPPORTED, &[]);
        }
        if fragment.is_some() {
            say(NotifyType::IKEV2_FRAGMENTATION_SUPPORTED, &[]);
        }
        if config.multiple_auth {
            say(NotifyType::MULTIPLE_AUTH_SUPPORTED, &[]);
        }
        if config.signature_hashes && self.ticket.is_none() {
            say(NotifyType::SIGNATURE_HASH_ALGORITHMS, &hashes);
        }
        let response = reply.encode(self.spis.responder, &payloads);
        book.out.push(wrap(reply.path, &response));
        let sa = IkeSa {
            channel: Channel::new(self.spis, Side::Client, self.keys, fragment, 1),
            suite: self.suite,
            state: SaState::HalfOpen,
            made: now,
            until: Some(now + config.half_open),
            aged: Aged::Not,
            active: None,
            handshake: Some(Box::new(Handshake::new(
                raw.to_vec(),
                response,
                self.nonces,
                additional,
                self.ticket,
            ))),
        };
        let peer = Peer {
            behind_nat: hello.behind_nat,
            redirects: hello.redirects,
            ..Peer::default()
        };
        Session::new(book.serial(), reply.path, sa, peer, now)
    }
}
