//! One client: its IKE SAs (several while one is rekeyed), its Child SAs, and what the gateway still wants of it.

use std::net::IpAddr;
use std::time::Duration;

use peregrine_core::command::Path;
use peregrine_core::esp::Discard;
use peregrine_core::profile::Identity;
use peregrine_core::proposal::IkeSuite;
use peregrine_core::timer::Instant;
use peregrine_core::wire::iana::{ExchangeType, KeMethod, NotifyType};
use peregrine_core::wire::{EspSpi, Header, IkeSpi, Payload, TrafficSelector};

use super::auth::Handshake;
use super::book::{Cx, Note};
use super::channel::{Channel, Incoming, Opened, Overdue};
use super::child::{Aged, CONFIRMED_BY_TIME, Child, ChildState};
use super::config::{End, GatewayConfig, Life};
use super::followup::{FollowUp, Pending};
use super::rekey::{ChildAttempt, IkeAttempt};

/// How long the client has to delete an IKE SA that is its to delete.
pub(super) const DELETE_PATIENCE: Duration = Duration::from_secs(30);
/// How long an exchange is put off that the client could not go through with (RFC 7296, section 2.25).
pub(super) const PUT_OFF: Duration = Duration::from_secs(10);
/// An IKE SA on which the client never can is closed after this long.
pub(super) const PUT_OFF_LIMIT: Duration = Duration::from_secs(300);
/// The least time between the beginning of an SA's end and the end.
const LEAST_MARGIN: Duration = Duration::from_secs(60);

pub(super) struct Session {
    pub(super) number: u32,
    /// Where IKE requests go, and what the gateway's address is there.
    pub(super) path: Path,
    /// Where ESP goes.
    pub(super) esp_path: Path,
    pub(super) sas: Vec<IkeSa>,
    pub(super) children: Vec<Child>,
    pub(super) peer: Peer,
    /// Behind the gateway, and the client's: what the first Child SA carries.
    pub(super) selectors: (Vec<TrafficSelector>, Vec<TrafficSelector>),
    pub(super) auth_deadline: Option<Instant>,
    pub(super) last_in: Instant,
    pub(super) tasks: Vec<Queued>,
    /// What the client makes with several key exchanges, not all of which are over.
    pub(super) pending: Option<Box<Pending>>,
    /// SPIs that the client was told about already.
    pub(super) complained: Vec<EspSpi>,
}

/// What is known of the client.
#[derive(Default)]
pub(super) struct Peer {
    /// IDi as it came.
    pub(super) identity: Vec<u8>,
    pub(super) mobike: bool,
    pub(super) behind_nat: bool,
    /// It can be sent elsewhere.
    pub(super) redirects: bool,
    /// The addresses that it told beside the one that it uses.
    pub(super) addresses: Vec<IpAddr>,
}

pub(super) struct IkeSa {
    pub(super) channel: Channel,
    pub(super) suite: IkeSuite,
    pub(super) state: SaState,
    pub(super) made: Instant,
    /// When `state` has lasted long enough.
    pub(super) until: Option<Instant>,
    pub(super) aged: Aged,
    /// What the outstanding request is about.
    pub(super) active: Option<Active>,
    /// What IKE_AUTH needs to know.
    pub(super) handshake: Option<Box<Handshake>>,
}

/// What is the matter with an IKE SA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SaState {
    /// Authentication is going on.
    HalfOpen,
    /// It is in use.
    Up,
    /// The client made it while the gateway was rekeying the same IKE SA: it is not known which will survive.
    Contender,
    /// Another one is in use instead, or it lost a collision: the client will delete it.
    Awaiting,
    /// The gateway is deleting it, or about to, because another one is in use instead.
    Leaving,
    /// The gateway is deleting it, and the session with it.
    Closing,
}

/// What the gateway wants of the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Task {
    /// An answer.
    Liveness,
    /// An answer with the same COOKIE2, before Child SAs move to `to`.
    Routability { cookie: Vec<u8>, to: Path },
    /// To know something.
    Tell(Vec<Note>),
    /// Another Child SA in place of this one.
    RekeyChild(EspSpi),
    /// One more Child SA.
    NewChild,
    /// The end of these Child SAs.
    DeleteChild(Vec<EspSpi>),
    /// Another IKE SA in place of the present one.
    RekeyIke,
    /// The end of an IKE SA that is not in use, by the gateway's SPI.
    DeleteIke(IkeSpi),
    /// The end of the session.
    Close,
}

/// A task that waits for its turn.
#[derive(Clone, Debug)]
pub(super) struct Queued {
    pub(super) task: Task,
    pub(super) due: Instant,
    /// When it was wanted first.
    pub(super) since: Instant,
    /// The key exchange method that the client asked for.
    pub(super) method: Option<KeMethod>,
    /// The client refused a key exchange.
    pub(super) without_ke: bool,
    pub(super) tries: u32,
}

impl Queued {
    pub(super) fn new(task: Task, now: Instant) -> Self {
        Self {
            task,
            due: now,
            since: now,
            method: None,
            without_ke: false,
            tries: 0,
        }
    }
}

/// What the outstanding request of an IKE SA is about.
pub(super) enum Active {
    Plain(Queued),
    DeleteChild(Vec<EspSpi>),
    DeleteIke,
    Child(Box<ChildAttempt>),
    Ike(Box<IkeAttempt>),
    FollowUp(Box<FollowUp>),
}

impl Session {
    /// A session that begins with this IKE SA.
    pub(super) fn new(number: u32, path: Path, sa: IkeSa, peer: Peer, now: Instant) -> Self {
        Self {
            number,
            path,
            esp_path: path,
            sas: vec![sa],
            children: Vec::new(),
            peer,
            selectors: (Vec::new(), Vec::new()),
            auth_deadline: None,
            last_in: now,
            tasks: Vec::new(),
            pending: None,
            complained: Vec::new(),
        }
    }

    /// Nothing is left of it.
    pub(super) fn is_over(&self) -> bool {
        self.sas.is_empty()
    }

    /// The IKE SA in use.
    pub(super) fn current(&self) -> Option<usize> {
        self.sas.iter().position(|sa| sa.state == SaState::Up)
    }

    pub(super) fn by_own_spi(&self, spi: IkeSpi) -> Option<usize> {
        self.sas.iter().position(|sa| sa.channel.own_spi() == spi)
    }

    /// The Child SA that the gateway receives on with `spi`.
    pub(super) fn child(&mut self, spi: EspSpi) -> Option<&mut Child> {
        self.children.iter_mut().find(|child| child.spi() == spi)
    }

    /// The live Child SA that the client receives on with `spi`.
    pub(super) fn child_of_client(&mut self, spi: &[u8]) -> Option<&mut Child> {
        self.children
            .iter_mut()
            .find(|child| child.is_live() && child.client_spi().0.to_be_bytes() == *spi)
    }

    pub(super) fn want(&mut self, task: Task, now: Instant) {
        self.tasks.push(Queued::new(task, now));
    }

    /// A message for the IKE SA at `index`.
    pub(super) fn handle(&mut self, index: usize, path: Path, message: &mut [u8], cx: &mut Cx<'_>) {
        match self.sas[index].channel.open(message) {
            Incoming::Nothing => {}
            Incoming::Again(messages) => cx.send(path, &messages),
            Incoming::Request(opened) => {
                self.heard(path, cx);
                self.serve(index, &opened, path, cx);
            }
            Incoming::Response(opened) => {
                self.heard(path, cx);
                self.conclude(index, &opened, cx);
            }
        }
        self.start(cx);
    }

    /// Something authentic and new came from the client.
    fn heard(&mut self, path: Path, cx: &Cx<'_>) {
        self.last_in = cx.now;
        // RFC 7296, section 2.23; with MOBIKE an IKE message alone moves nothing (RFC 4555, section 3.8).
        if (self.peer.behind_nat && !self.peer.mobike) || self.follows_connection(path) {
            self.path = path;
            self.esp_path = path;
        }
    }

    /// The connection that last brought something authentic is the one in use (RFC 9329, section 6.1); between UDP and
    /// TCP only UPDATE_SA_ADDRESSES moves a session (section 7.1).
    fn follows_connection(&self, path: Path) -> bool {
        path.is_tcp() && self.path.is_tcp()
    }

    fn serve(&mut self, index: usize, opened: &Opened, path: Path, cx: &mut Cx<'_>) {
        // The window is one: whoever asks again has got the answer before.
        let own_spi = self.sas[index].channel.own_spi();
        for child in &mut self.children {
            child.unconfirmed = child.unconfirmed.filter(|spi| *spi != own_spi);
        }
        let payloads = opened.payloads();
        let header = &opened.header;
        let kinds = payloads.iter().map(Payload::kind).collect();
        cx.book
            .transcript
            .push((header.exchange, header.message_id, kinds));
        cx.book.notified.extend(payloads.iter().filter_map(note));
        cx.book
            .identities
            .extend(payloads.iter().filter_map(|payload| match payload {
                Payload::IdInitiator(id) => Identity::from_wire(id.kind, id.data),
                _ => None,
            }));
        let half_open = self.sas[index].state == SaState::HalfOpen;
        match header.exchange {
            ExchangeType::IKE_INTERMEDIATE if half_open => self.add_key(index, opened, path, cx),
            ExchangeType::IKE_AUTH if half_open => self.authenticate(index, header, &payloads, path, cx),
            ExchangeType::CREATE_CHILD_SA if !half_open => self.create(index, header, &payloads, path, cx),
            ExchangeType::IKE_FOLLOWUP_KE if !half_open => {
                self.serve_followup(index, header, &payloads, path, cx);
            }
            ExchangeType::INFORMATIONAL => self.inform(index, header, &payloads, path, cx),
            _ => self.answer(index, header, &[], path, cx),
        }
    }

    pub(super) fn answer(
        &mut self,
        index: usize,
        to: &Header,
        payloads: &[Payload<'_>],
        path: Path,
        cx: &mut Cx<'_>,
    ) {
        let messages = self.sas[index].channel.respond(to, payloads);
        cx.send(path, &messages);
    }

    /// The client has answered the outstanding request of the IKE SA at `index`.
    fn conclude(&mut self, index: usize, opened: &Opened, cx: &mut Cx<'_>) {
        let payloads = opened.payloads();
        let notes: Vec<Note> = payloads.iter().filter_map(note).collect();
        cx.book.answers.push(notes.iter().map(|note| note.kind).collect());
        if notes.iter().any(|note| note.kind == NotifyType::INVALID_SYNTAX) {
            // RFC 7296, section 2.21.3: fatal on both sides.
            return self.end_ike(index, cx);
        }
        match self.sas[index].active.take() {
            None => {}
            Some(Active::Plain(queued)) => self.conclude_plain(queued.task, &notes, cx),
            Some(Active::DeleteChild(spis)) => {
                for spi in spis {
                    self.close_child(spi, cx.now);
                }
            }
            Some(Active::DeleteIke) => self.end_ike(index, cx),
            Some(Active::Child(attempt)) => self.conclude_child(index, *attempt, &payloads, cx),
            Some(Active::Ike(attempt)) => self.conclude_ike(index, *attempt, &payloads, cx),
            Some(Active::FollowUp(follow)) => self.conclude_followup(index, *follow, &payloads, cx),
        }
    }

    fn conclude_plain(&mut self, task: Task, notes: &[Note], cx: &mut Cx<'_>) {
        if let Task::Routability { cookie, to } = task {
            let echoed = notes
                .iter()
                .any(|note| note.kind == NotifyType::COOKIE2 && note.data == cookie);
            if !echoed {
                // RFC 4555, section 3.7: the IKE SA must be closed.
                self.want(Task::Close, cx.now);
            } else if to == self.path {
                self.esp_path = to;
                self.after_update(cx);
            }
        }
    }

    /// Ends a Child SA. What took its place may be sent on now (RFC 7296, section 2.8).
    pub(super) fn close_child(&mut self, spi: EspSpi, now: Instant) {
        let Some(child) = self.child(spi).filter(|child| child.is_live()) else {
            return;
        };
        child.close(now);
        for child in &mut self.children {
            if child.replaces == Some(spi) {
                child.sends = true;
            }
        }
    }

    /// Removes an IKE SA that both ends know to be over.
    pub(super) fn end_ike(&mut self, index: usize, cx: &mut Cx<'_>) {
        self.forget(index, cx.now);
        if self.is_over() {
            self.void_tickets(cx);
        }
    }

    /// RFC 5723, section 6.2: a ticket is as good as the IKE SA that it was given for.
    pub(super) fn void_tickets(&self, cx: &mut Cx<'_>) {
        cx.book.tickets.retain(|_, ticket| ticket.session != self.number);
    }

    /// Removes an IKE SA. When it was the one in use and none takes its place, the session is over.
    pub(super) fn forget(&mut self, index: usize, now: Instant) {
        let gone = self.sas.remove(index);
        let was_in_use = matches!(gone.state, SaState::Up | SaState::Closing | SaState::HalfOpen);
        let heir = self.sas.iter_mut().find(|sa| sa.state == SaState::Contender);
        match heir {
            Some(heir) if was_in_use => heir.state = SaState::Up,
            None if was_in_use => return self.sas.clear(),
            _ => {}
        }
        self.go_on_with(gone, now);
    }

    /// What was under way on an IKE SA that is gone is not lost, if it can be said on any.
    fn go_on_with(&mut self, gone: IkeSa, now: Instant) {
        match gone.active {
            Some(Active::Plain(queued)) => self.tasks.push(queued),
            Some(Active::DeleteChild(spis)) => self.want(Task::DeleteChild(spis), now),
            _ => {}
        }
    }

    /// The IKE SA that a task is for. What is about a Child SA that the client may not have yet waits: asked too early, it
    /// would know nothing of it, and have it a moment later.
    fn target(&self, task: &Task) -> Option<usize> {
        let is_too_early = |spi: &EspSpi| {
            let mut children = self.children.iter();
            children.any(|child| child.spi() == *spi && child.unconfirmed.is_some())
        };
        match task {
            Task::DeleteIke(spi) => self.by_own_spi(*spi),
            Task::RekeyChild(spi) if is_too_early(spi) => None,
            Task::DeleteChild(spis) if spis.iter().any(is_too_early) => None,
            _ => self.current(),
        }
    }

    /// The IKE SA that a task is for, if the window allows to begin it.
    fn free_target(&self, task: &Task) -> Option<usize> {
        self.target(task)
            .filter(|index| self.sas[*index].channel.is_free())
    }

    /// Begins what is due, as far as the window of each IKE SA allows.
    pub(super) fn start(&mut self, cx: &mut Cx<'_>) {
        let gone: Vec<bool> = self
            .tasks
            .iter()
            .map(|queued| matches!(queued.task, Task::DeleteIke(_)) && self.target(&queued.task).is_none())
            .collect();
        let mut gone = gone.into_iter();
        self.tasks.retain(|_| !gone.next().unwrap_or(false));
        let mut next = 0;
        while let Some(queued) = self.tasks.get(next) {
            match self.free_target(&queued.task) {
                Some(index) if queued.due <= cx.now => {
                    let queued = self.tasks.remove(next);
                    self.begin(index, queued, cx);
                    next = 0;
                }
                _ => next += 1,
            }
        }
    }

    fn begin(&mut self, index: usize, queued: Queued, cx: &mut Cx<'_>) {
        match queued.task.clone() {
            Task::Liveness => self.ask(index, &[], Active::Plain(queued), cx),
            Task::Tell(notes) => self.ask(index, &notes, Active::Plain(queued), cx),
            Task::Routability { cookie, .. } => {
                let note = Note::new(NotifyType::COOKIE2, &cookie);
                self.ask(index, &[note], Active::Plain(queued), cx);
            }
            Task::DeleteChild(spis) => self.begin_delete_child(index, spis, cx),
            Task::DeleteIke(_) | Task::Close => self.begin_delete_ike(index, cx),
            Task::RekeyChild(spi) => self.begin_child(index, Some(spi), queued, cx),
            Task::NewChild => self.begin_child(index, None, queued, cx),
            Task::RekeyIke => self.begin_ike(index, queued, cx),
        }
    }

    /// Sends an INFORMATIONAL request with these notifies.
    fn ask(&mut self, index: usize, notes: &[Note], active: Active, cx: &mut Cx<'_>) {
        let payloads: Vec<Payload<'_>> = notes.iter().map(Note::payload).collect();
        self.request(index, ExchangeType::INFORMATIONAL, &payloads, active, cx);
    }

    pub(super) fn request(
        &mut self,
        index: usize,
        exchange: ExchangeType,
        payloads: &[Payload<'_>],
        active: Active,
        cx: &mut Cx<'_>,
    ) {
        let sa = &mut self.sas[index];
        let messages = sa.channel.request(exchange, payloads, cx.now);
        sa.active = Some(active);
        cx.send(self.path, &messages);
    }

    /// An ESP packet for one of the Child SAs; the inner packet, if it is good.
    pub(super) fn open<'d>(
        &mut self,
        spi: EspSpi,
        path: Path,
        packet: &'d mut [u8],
        now: Instant,
    ) -> Result<&'d mut [u8], Discard> {
        let follows = (self.peer.behind_nat && !self.peer.mobike) || self.follows_connection(path);
        let child = self.child(spi).ok_or(Discard::UnknownSpi)?;
        let inner = child.open(packet)?;
        // The client sends on it, so it receives on it.
        child.sends = true;
        child.unconfirmed = None;
        self.last_in = now;
        if follows {
            self.path = path;
            self.esp_path = path;
        }
        Ok(inner)
    }

    /// When something is to be done of its own accord.
    pub(super) fn poll_timeout(&self, config: &GatewayConfig) -> Option<Instant> {
        let sas = self.sas.iter().flat_map(|sa| {
            let life = self.next_of_life(config.ike_life, sa.made, sa.aged);
            let is_up = sa.state == SaState::Up;
            [
                sa.channel.due(config.patience),
                sa.until,
                life.map(|(due, _)| due).filter(|_| is_up),
            ]
        });
        let children = self.children.iter().flat_map(|child| {
            let life = self.next_of_life(config.child_life, child.made, child.aged);
            let confirmed = child.unconfirmed.map(|_| child.made + CONFIRMED_BY_TIME);
            [
                child.until,
                confirmed,
                life.map(|(due, _)| due).filter(|_| child.is_live()),
            ]
        });
        let tasks = self
            .tasks
            .iter()
            .map(|queued| self.free_target(&queued.task).map(|_| queued.due));
        let silence = config
            .dpd
            .filter(|_| self.free_target(&Task::Liveness).is_some())
            .map(|dpd| self.last_in + dpd);
        let deadline = self.auth_deadline.filter(|_| self.current().is_some());
        sas.chain(children)
            .chain(tasks)
            .chain([silence, deadline])
            .flatten()
            .min()
    }

    /// When the age of an SA next leads to something, and to what.
    fn next_of_life(&self, life: Option<Life>, made: Instant, aged: Aged) -> Option<(Instant, Aged)> {
        let life = life?;
        let soft = made + life.age;
        match aged {
            Aged::Not => Some((soft, Aged::Soft)),
            Aged::Soft => Some((soft + (life.age / 10).max(LEAST_MARGIN), Aged::Hard)),
            Aged::Hard => None,
        }
    }

    /// Does what is due.
    pub(super) fn handle_timeout(&mut self, cx: &mut Cx<'_>) {
        self.retransmit(cx);
        self.expire(cx);
        self.age(cx);
        if self.is_over() {
            return;
        }
        self.start(cx);
        // What was just begun is as good a question as any.
        let silent = cx.config.dpd.is_some_and(|dpd| cx.now >= self.last_in + dpd);
        if let Some(index) = self.free_target(&Task::Liveness).filter(|_| silent) {
            self.begin(index, Queued::new(Task::Liveness, cx.now), cx);
        }
    }

    fn retransmit(&mut self, cx: &mut Cx<'_>) {
        let mut index = 0;
        while let Some(sa) = self.sas.get_mut(index) {
            match sa.channel.overdue(cx.now, cx.config.patience) {
                Overdue::Nothing => index += 1,
                Overdue::Again(messages) => {
                    cx.send(self.path, &messages);
                    index += 1;
                }
                // A client that went silent may come back with its ticket.
                Overdue::GivenUp => self.forget(index, cx.now),
            }
        }
    }

    /// Ends what has waited long enough.
    fn expire(&mut self, cx: &mut Cx<'_>) {
        let now = cx.now;
        let is_due = |until: Option<Instant>| until.is_some_and(|until| until <= now);
        while let Some(index) = self.sas.iter().position(|sa| is_due(sa.until)) {
            let sa = &mut self.sas[index];
            sa.until = None;
            if sa.state == SaState::HalfOpen {
                self.forget(index, cx.now);
            } else {
                sa.state = SaState::Leaving;
                let spi = sa.channel.own_spi();
                self.want(Task::DeleteIke(spi), now);
            }
        }
        let mut overdue = Vec::new();
        for child in &mut self.children {
            if now >= child.made + CONFIRMED_BY_TIME {
                child.unconfirmed = None;
            }
            if child.state == ChildState::Awaiting && is_due(child.until) {
                child.until = None;
                child.state = ChildState::Closing;
                overdue.push(child.spi());
            }
        }
        if !overdue.is_empty() {
            self.want(Task::DeleteChild(overdue), now);
        }
        let past = &mut cx.book.past;
        self.children.retain(|child| {
            let is_gone = !child.is_live() && is_due(child.until);
            if is_gone {
                past.push(child.traffic());
            }
            !is_gone
        });
    }

    /// Begins or makes the end of what has come of age.
    fn age(&mut self, cx: &mut Cx<'_>) {
        let now = cx.now;
        for position in 0..self.children.len() {
            let child = &self.children[position];
            let next = self.next_of_life(cx.config.child_life, child.made, child.aged);
            let Some((_, aged)) = next.filter(|(due, _)| *due <= now && child.is_live()) else {
                continue;
            };
            let (spi, state) = (child.spi(), child.state);
            self.children[position].aged = aged;
            let rekey = cx.config.child_life.is_some_and(|life| life.end == End::Rekey);
            match aged {
                Aged::Soft if rekey && state == ChildState::Up => self.want(Task::RekeyChild(spi), now),
                Aged::Soft if rekey => {}
                _ if state == ChildState::Closing => {}
                _ => self.want(Task::DeleteChild(vec![spi]), now),
            }
        }
        let Some(index) = self.current() else { return };
        let sa = &self.sas[index];
        let next = self.next_of_life(cx.config.ike_life, sa.made, sa.aged);
        if let Some((_, aged)) = next.filter(|(due, _)| *due <= now) {
            self.sas[index].aged = aged;
            let rekey = cx.config.ike_life.is_some_and(|life| life.end == End::Rekey);
            let task = if rekey && aged == Aged::Soft {
                Task::RekeyIke
            } else {
                Task::Close
            };
            self.want(task, now);
        }
        if self.auth_deadline.is_some_and(|deadline| deadline <= now) {
            self.auth_deadline = None;
            self.want(Task::Close, now);
        }
    }
}

fn note(payload: &Payload<'_>) -> Option<Note> {
    match payload {
        Payload::Notify(notify) => Some(Note::new(notify.kind, notify.data)),
        _ => None,
    }
}

impl IkeSa {
    /// A Delete for this Child SA is on its way.
    pub(super) fn is_deleting(&self, spi: EspSpi) -> bool {
        matches!(&self.active, Some(Active::DeleteChild(spis)) if spis.contains(&spi))
    }
}
