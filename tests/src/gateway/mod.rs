//! A gateway in memory: a whole IKEv2 peer that decides every octet and every delay.
//!
//! It shares `wire` and `crypto` with the client and so proves nothing about how we read octets; keys, exchanges and
//! collisions it reads out of the RFCs for itself. It proves how the client behaves when messages are lost, repeated,
//! late or hostile, and when both ends want something at the same time. The real gateways are in `netns/`.
//!
//! | module | its one job |
//! |---|---|
//! | `config` | how it behaves |
//! | `session` | one client: its SAs, and what the gateway still wants of it |
//! | `channel` | the protected messages of one IKE SA |
//! | `init`, `auth` | connecting |
//! | `create` | CREATE_CHILD_SA of the client's |
//! | `rekey` | CREATE_CHILD_SA and Deletes of its own |
//! | `inform` | INFORMATIONAL of the client's: Deletes, MOBIKE, tickets |
//! | `tcp` | connections, and the frames in them (RFC 9329) |
//! | `child` | Child SAs |
//! | `keys` | keys |
//! | `book` | leases, tickets, records |

mod auth;
mod book;
mod channel;
mod child;
mod config;
mod create;
mod followup;
mod inform;
mod init;
mod intermediate;
mod keys;
mod rekey;
mod session;
mod tcp;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use peregrine_core::command::{Path, Sink};
use peregrine_core::esp;
use peregrine_core::profile::Identity;
use peregrine_core::timer::Instant;
use peregrine_core::wire::iana::{ExchangeType, NotifyType, PayloadType};
use peregrine_core::wire::{
    EspSpi, Flags, Header, IkeSpi, Message, Notify, Payload, VERSION, encode_message,
};

use book::{Book, Cx, Note};
use child::ChildState;
use session::{SaState, Session, Task};

pub use child::ChildTraffic;
pub use config::{
    ClientAuth, EapOnly, Elsewhere, End, GatewayConfig, Life, Pfs, Proof, Redirect, RedirectWhen, Side,
    Unique,
};

/// A datagram of the gateway's, or octets for a connection.
pub type Outgoing = (Path, Vec<u8>);

/// A request of the client's: its exchange, its message ID, and the types of its payloads.
pub type Heard = (ExchangeType, u32, Vec<PayloadType>);

/// Every IKE SA by its SPIs, the initiator's first, with the SPIs of its live Child SAs: what the client sends with,
/// and what the gateway sends with.
pub type SaSet = BTreeMap<(IkeSpi, IkeSpi), BTreeSet<(EspSpi, EspSpi)>>;

/// Complaints about unknown SPIs are sent no more often than this.
const COMPLAINT_PAUSE: Duration = Duration::from_secs(1);
/// How long an older IKE SA outlives a new one from the same address.
const REPLACE_PAUSE: Duration = Duration::from_secs(10);

/// The gateway.
pub struct Gateway {
    /// How it behaves. May be changed between messages.
    pub config: GatewayConfig,
    /// Inner packets that came through the tunnel.
    pub received: Vec<Vec<u8>>,
    /// Answer every inner packet with its reverse.
    pub echo: bool,
    /// Every request of the client's, decrypted.
    pub transcript: Vec<Heard>,
    /// No more than this is answered: the gateway is dead.
    pub silent: bool,
    sessions: Vec<Session>,
    book: Book,
    cookies: u32,
    complained: Option<Instant>,
    /// Older sessions that end when their time has come.
    replaced: Vec<(Instant, u32)>,
    inlets: Vec<tcp::Inlet>,
    hung_up: Vec<Path>,
}

impl Gateway {
    /// A gateway with its own random numbers.
    #[must_use]
    pub fn new(config: GatewayConfig, seed: u8) -> Self {
        Self {
            config,
            received: Vec::new(),
            echo: true,
            transcript: Vec::new(),
            silent: false,
            sessions: Vec::new(),
            book: Book::new(seed),
            cookies: 0,
            complained: None,
            replaced: Vec::new(),
            inlets: Vec::new(),
            hung_up: Vec::new(),
        }
    }

    /// Asks every client whether it lives.
    pub fn ask_liveness(&mut self, now: Instant) -> Vec<Outgoing> {
        self.want(now, |_| vec![Task::Liveness])
    }

    /// Begins to rekey every Child SA.
    pub fn rekey_child(&mut self, now: Instant) -> Vec<Outgoing> {
        self.want(now, |session| {
            children_up(session).into_iter().map(Task::RekeyChild).collect()
        })
    }

    /// Asks every client for one more Child SA, like the first one.
    pub fn new_child(&mut self, now: Instant) -> Vec<Outgoing> {
        self.want(now, |_| vec![Task::NewChild])
    }

    /// Begins to rekey every IKE SA.
    pub fn rekey_ike(&mut self, now: Instant) -> Vec<Outgoing> {
        self.want(now, |_| vec![Task::RekeyIke])
    }

    /// Ends every Child SA.
    pub fn delete_child(&mut self, now: Instant) -> Vec<Outgoing> {
        self.want(now, |session| vec![Task::DeleteChild(children_up(session))])
    }

    /// Ends every IKE SA.
    pub fn delete_ike(&mut self, now: Instant) -> Vec<Outgoing> {
        self.want(now, |_| vec![Task::Close])
    }

    /// Tells every client how long its authentication is good for from now on (RFC 4478), and ends its IKE SA then.
    pub fn announce_lifetime(&mut self, lifetime: Duration, now: Instant) -> Vec<Outgoing> {
        let seconds = u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX);
        let note = Note::new(NotifyType::AUTH_LIFETIME, &seconds.to_be_bytes());
        self.want(now, |session| {
            session.auth_deadline = Some(now + lifetime);
            vec![Task::Tell(vec![note.clone()])]
        })
    }

    /// Sends every client that can be sent elsewhere (RFC 5685, section 5).
    pub fn redirect(&mut self, to: &Elsewhere, now: Instant) -> Vec<Outgoing> {
        let note = Note::new(NotifyType::REDIRECT, &to.encode());
        self.want(now, |session| {
            if session.peer.redirects {
                vec![Task::Tell(vec![note.clone()])]
            } else {
                vec![]
            }
        })
    }

    /// Tells every client the addresses that the gateway has now (RFC 4555, section 3.6).
    pub fn announce_addresses(&mut self, addresses: Vec<IpAddr>, now: Instant) -> Vec<Outgoing> {
        self.config.addresses = addresses;
        let lists: Vec<(u32, Vec<Note>)> = self
            .sessions
            .iter()
            .filter(|session| session.peer.mobike)
            .map(|session| (session.number, session.additional_addresses(&self.config)))
            .collect();
        self.want(now, |session| {
            let list = lists.iter().find(|(number, _)| *number == session.number);
            let tell = list.map(|(_, notes)| {
                if notes.is_empty() {
                    vec![Note::new(NotifyType::NO_ADDITIONAL_ADDRESSES, &[])]
                } else {
                    notes.clone()
                }
            });
            tell.map(Task::Tell).into_iter().collect()
        })
    }

    /// Forgets every Child SA, and lets nobody know.
    pub fn lose_children(&mut self) {
        for session in &mut self.sessions {
            let gone = session.children.drain(..);
            self.book.past.extend(gone.map(|child| child.traffic()));
        }
    }

    /// Starts anew: all that it knew is gone, except its configuration, and tickets if they outlive that.
    pub fn restart(&mut self) {
        self.sessions.clear();
        self.replaced.clear();
        self.book.leases.clear();
        if !self.config.tickets_survive {
            self.book.tickets.clear();
        }
    }

    /// How many clients have a Child SA.
    #[must_use]
    pub fn established(&self) -> usize {
        self.sessions
            .iter()
            .filter(|session| session.children.iter().any(child::Child::is_live))
            .count()
    }

    /// How many IKE SAs there are, finished or not.
    #[must_use]
    pub fn sas(&self) -> usize {
        self.sessions.iter().map(|session| session.sas.len()).sum()
    }

    /// All SAs, to be compared with those of the client.
    #[must_use]
    pub fn sa_set(&self) -> SaSet {
        let mut set = SaSet::new();
        for session in &self.sessions {
            // Whichever IKE SA is in use has the Child SAs.
            let owner = session
                .sas
                .iter()
                .position(|sa| matches!(sa.state, SaState::Up | SaState::Closing));
            for (index, sa) in session.sas.iter().enumerate() {
                if sa.state == SaState::HalfOpen {
                    continue;
                }
                let children = session.children.iter().filter(|child| child.is_live());
                let pairs = children
                    .filter(|_| owner == Some(index))
                    .map(|child| (child.spi(), child.client_spi()));
                let spis = sa.channel.spis;
                set.insert((spis.initiator, spis.responder), pairs.collect());
            }
        }
        set
    }

    /// What went through each Child SA that ever was, the oldest first.
    #[must_use]
    pub fn traffic(&self) -> Vec<ChildTraffic> {
        let present = self.sessions.iter().flat_map(|session| &session.children);
        let past = self.book.past.iter().copied();
        past.chain(present.map(child::Child::traffic)).collect()
    }

    /// What the client answered the gateway's requests with: the notifies of each answer.
    #[must_use]
    pub fn answers(&self) -> Vec<Vec<NotifyType>> {
        self.book.answers.clone()
    }

    /// Every IDi that the client sent.
    #[must_use]
    pub fn identities(&self) -> &[Identity] {
        &self.book.identities
    }

    /// Whom EAP has proven, by the name in EAP-Response/Identity, which is not the one that a tunnel hides.
    #[must_use]
    pub fn eap_identities(&self) -> &[String] {
        &self.book.eap_identities
    }

    /// The data of every notify of this kind in the client's requests, in order.
    #[must_use]
    pub fn notified(&self, kind: NotifyType) -> Vec<Vec<u8>> {
        let notes = self.book.notified.iter().filter(|note| note.kind == kind);
        notes.map(|note| note.data.clone()).collect()
    }

    /// Along which paths the gateway sends ESP to its clients.
    #[must_use]
    pub fn paths(&self) -> Vec<Path> {
        self.sessions.iter().map(|session| session.esp_path).collect()
    }

    /// The further addresses that each client has told (RFC 4555, section 3.4).
    #[must_use]
    pub fn client_addresses(&self) -> Vec<Vec<IpAddr>> {
        let sessions = self.sessions.iter();
        sessions.map(|session| session.peer.addresses.clone()).collect()
    }

    /// When the gateway has something to do of its own accord.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.silent {
            return None;
        }
        let sessions = self
            .sessions
            .iter()
            .filter_map(|session| session.poll_timeout(&self.config));
        sessions.chain(self.replaced.iter().map(|(due, _)| *due)).min()
    }

    /// Does what is due: sends again, gives up, rekeys, deletes.
    pub fn handle_timeout(&mut self, now: Instant) -> Vec<Outgoing> {
        if self.silent {
            return Vec::new();
        }
        let due: Vec<u32> = self
            .replaced
            .iter()
            .filter(|(due, _)| *due <= now)
            .map(|(_, number)| *number)
            .collect();
        self.replaced.retain(|(due, _)| *due > now);
        for session in &mut self.sessions {
            if due.contains(&session.number) {
                session.want(Task::Close, now);
            }
        }
        self.each(now, Session::handle_timeout)
    }

    /// A UDP payload, or a frame's content, from a client. `path` is as the gateway sees it: its own address is `local`.
    pub fn handle(&mut self, path: Path, datagram: &[u8], now: Instant) -> Vec<Outgoing> {
        if self.silent {
            return Vec::new();
        }
        match datagram {
            [0xff] => {}
            _ if path.local.port() == 500 && !path.is_tcp() => self.handle_ike(path, datagram, now),
            [0, 0, 0, 0, message @ ..] => self.handle_ike(path, message, now),
            packet => self.handle_esp(path, packet, now),
        }
        self.out()
    }

    /// The same for a datagram on port 4500 whose packet, if it is one of ESP's, is opened in place and neither kept nor
    /// answered: the packet, or what the gateway has to say.
    pub fn open<'d>(
        &mut self,
        path: Path,
        datagram: &'d mut [u8],
        now: Instant,
    ) -> Result<&'d mut [u8], Vec<Outgoing>> {
        let holder = esp::spi(datagram).and_then(|spi| {
            let mut sessions = self.sessions.iter_mut();
            let session = sessions.find(|session| session.children.iter().any(|child| child.spi() == spi))?;
            Some((session, spi))
        });
        match holder {
            Some((session, spi)) => session.open(spi, path, datagram, now).map_err(|_| Vec::new()),
            None => Err(self.handle(path, datagram, now)),
        }
    }

    /// Seals an inner packet of `len` octets, which `write` writes, for the newest client.
    pub fn seal(&mut self, len: usize, write: impl FnOnce(&mut [u8]), sink: &mut impl Sink) {
        for session in self.sessions.iter_mut().rev() {
            let mut children = session.children.iter_mut().rev();
            if let Some(child) = children.find(|child| child.is_for_sending()) {
                child.seal_into(len, write, session.esp_path, sink);
                return;
            }
        }
    }

    /// An inner packet for whichever client has its destination.
    pub fn send(&mut self, packet: &[u8]) -> Vec<Outgoing> {
        self.send_inner(packet);
        self.out()
    }

    fn send_inner(&mut self, packet: &[u8]) {
        // The newest Child SA that the client is known to receive on, of the newest session that has one.
        for session in self.sessions.iter_mut().rev() {
            for child in session.children.iter_mut().rev() {
                if !child.is_for_sending() {
                    continue;
                }
                if let Ok(sealed) = child.seal(packet) {
                    self.book.out.push((session.esp_path, sealed));
                    return;
                }
            }
        }
    }

    fn handle_esp(&mut self, path: Path, packet: &[u8], now: Instant) {
        let Some(spi) = esp::spi(packet) else { return };
        let mut packet = packet.to_vec();
        let holder = self
            .sessions
            .iter_mut()
            .find(|session| session.children.iter().any(|child| child.spi() == spi));
        let Some(session) = holder else {
            self.unknown_spi(path, spi, now);
            return;
        };
        let Ok(inner) = session.open(spi, path, &mut packet, now) else {
            return;
        };
        let inner = inner.to_vec();
        let answer = self.echo.then(|| reverse(&inner));
        self.received.push(inner);
        if let Some(packet) = answer {
            self.send_inner(&packet);
        }
    }

    /// RFC 7296, section 1.5: inside the IKE SA, if there is one with that address, and else in clear.
    fn unknown_spi(&mut self, path: Path, spi: EspSpi, now: Instant) {
        let octets = spi.0.to_be_bytes();
        let known = self
            .sessions
            .iter_mut()
            .find(|session| session.esp_path == path && session.current().is_some());
        if let Some(session) = known {
            if self.config.complain && !session.complained.contains(&spi) {
                session.complained.push(spi);
                session.want(Task::Tell(vec![Note::new(NotifyType::INVALID_SPI, &octets)]), now);
                self.act(now, Session::start);
            }
            return;
        }
        let header = Header {
            initiator_spi: IkeSpi::ZERO,
            responder_spi: IkeSpi::ZERO,
            next_payload: PayloadType::NONE,
            version: VERSION,
            exchange: ExchangeType::INFORMATIONAL,
            flags: Flags {
                initiator: true,
                version: false,
                response: false,
            },
            message_id: 0,
            length: 0,
        };
        self.complain(path, header, NotifyType::INVALID_SPI, &octets, now);
    }

    /// Says in clear that something is not known.
    fn complain(&mut self, path: Path, header: Header, kind: NotifyType, data: &[u8], now: Instant) {
        let is_soon = self.complained.is_some_and(|last| now < last + COMPLAINT_PAUSE);
        if !self.config.complain || is_soon {
            return;
        }
        self.complained = Some(now);
        let notify = Payload::Notify(Notify::new(kind, data));
        let message = encode_message(header, &[notify]).expect("a complaint can be encoded");
        self.book.out.push(wrap(path, &message));
    }

    fn handle_ike(&mut self, path: Path, message: &[u8], now: Instant) {
        let Ok(header) = Header::decode(message) else {
            return;
        };
        if matches!(
            header.exchange,
            ExchangeType::IKE_SA_INIT | ExchangeType::IKE_SESSION_RESUME
        ) {
            self.handle_first(path, message, now);
            return;
        }
        let own_spi = if header.flags.initiator {
            header.responder_spi
        } else {
            header.initiator_spi
        };
        let holder = self
            .sessions
            .iter()
            .enumerate()
            .find_map(|(position, session)| session.by_own_spi(own_spi).map(|index| (position, index)));
        let Some((position, index)) = holder else {
            if !header.flags.response && header.major_version() == 2 {
                let header = Header {
                    flags: Flags {
                        initiator: !header.flags.initiator,
                        version: false,
                        response: true,
                    },
                    ..header
                };
                self.complain(path, header, NotifyType::INVALID_IKE_SPI, &[], now);
            }
            return;
        };
        let mut message = message.to_vec();
        let mut cx = Cx {
            now,
            config: &self.config,
            book: &mut self.book,
        };
        self.sessions[position].handle(index, path, &mut message, &mut cx);
        self.settle(now);
    }

    /// IKE_SA_INIT or IKE_SESSION_RESUME.
    fn handle_first(&mut self, path: Path, raw: &[u8], now: Instant) {
        let Ok(message) = Message::decode(raw) else { return };
        let header = message.header;
        if header.flags.response || header.message_id != 0 {
            return;
        }
        let begun = self
            .sessions
            .iter()
            .flat_map(|session| &session.sas)
            .find(|sa| sa.handshake.is_some() && sa.channel.spis.initiator == header.initiator_spi);
        if let Some(handshake) = begun.and_then(|sa| sa.handshake.as_deref()) {
            if handshake.request == raw {
                self.book.out.push(wrap(path, &handshake.response));
            }
            return;
        }
        let session = init::answer(
            &message,
            raw,
            path,
            now,
            &self.config,
            &mut self.book,
            &mut self.cookies,
        );
        self.sessions.extend(session);
    }

    /// Gives every session something to want, and begins what can be begun.
    fn want(&mut self, now: Instant, tasks: impl Fn(&mut Session) -> Vec<Task>) -> Vec<Outgoing> {
        self.each(now, |session, cx| {
            if session.current().is_some() {
                for task in tasks(session) {
                    session.want(task, now);
                }
                session.start(cx);
            }
        })
    }

    fn each(&mut self, now: Instant, act: impl Fn(&mut Session, &mut Cx<'_>)) -> Vec<Outgoing> {
        self.act(now, act);
        self.out()
    }

    fn act(&mut self, now: Instant, act: impl Fn(&mut Session, &mut Cx<'_>)) {
        let mut cx = Cx {
            now,
            config: &self.config,
            book: &mut self.book,
        };
        for session in &mut self.sessions {
            act(session, &mut cx);
        }
        self.settle(now);
    }

    /// Acts on what sessions have come to.
    fn settle(&mut self, now: Instant) {
        self.transcript.append(&mut self.book.transcript);
        if let Some(arrival) = self.book.arrival.take() {
            self.arrived(&arrival, now);
        }
        let past = &mut self.book.past;
        self.sessions.retain(|session| {
            if session.is_over() {
                past.extend(session.children.iter().map(child::Child::traffic));
            }
            !session.is_over()
        });
    }

    /// What a new session means for older ones of the same client.
    fn arrived(&mut self, arrival: &book::Arrival, now: Instant) {
        let new_path = self
            .sessions
            .iter()
            .find(|session| session.number == arrival.session)
            .map(|session| session.path);
        for session in &mut self.sessions {
            let is_older = session.number != arrival.session && session.current().is_some();
            let continued = arrival.continues == Some(session.number);
            let is_same = session.peer.identity == arrival.identity;
            if !is_older || !(continued || is_same) {
                continue;
            }
            // RFC 5723, section 4.3.4, and RFC 7296, section 2.4: without a word.
            if continued || arrival.initial_contact {
                session.sas.clear();
            } else if self.config.unique == Unique::Replace {
                let same_host = new_path.is_some_and(|path| path.remote.ip() == session.path.remote.ip());
                let due = if same_host { now + REPLACE_PAUSE } else { now };
                self.replaced.push((due, session.number));
            }
        }
    }
}

fn children_up(session: &Session) -> Vec<EspSpi> {
    let up = session
        .children
        .iter()
        .filter(|child| child.state == ChildState::Up);
    up.map(child::Child::spi).collect()
}

/// A message as the UDP payload that `path` calls for (RFC 3948, section 2.2).
fn wrap(path: Path, message: &[u8]) -> Outgoing {
    let marker: &[u8] = if path.local.port() == 500 && !path.is_tcp() {
        &[]
    } else {
        &[0; 4]
    };
    (path, [marker, message].concat())
}

/// The same packet with its addresses exchanged.
fn reverse(packet: &[u8]) -> Vec<u8> {
    let mut reversed = packet.to_vec();
    let (source, destination, len) = if packet[0] >> 4 == 4 {
        (12, 16, 4)
    } else {
        (8, 24, 16)
    };
    reversed[source..source + len].copy_from_slice(&packet[destination..destination + len]);
    reversed[destination..destination + len].copy_from_slice(&packet[source..source + len]);
    reversed
}
