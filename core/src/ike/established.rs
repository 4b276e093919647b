//! An IKE SA that is up, with everything that keeps it up: rekeying, mobility, liveness, the gateway's requests, and
//! its end (RFC 7296, sections 1.3 to 1.5, 2.4, 2.8 and 2.25; RFC 4555).
//!
//! Our requests go out one at a time. What to ask next is computed each time the window is free ([`Established::turn`]),
//! from what is due; nothing is queued, so nothing queued can be stale.

use std::sync::Arc;
use std::time::Duration;

use super::channel::{Channel, Opened};
use super::child::{ChildSa, InnerNetwork, Made};
use super::children::{Child, ChildState, Children};
use super::followup::{FollowUp, Pending};
use super::make_child::{MakeChild, Pfs};
use super::mobility::{Mobility, Update};
use super::nat::Nat;
use super::pmtu::PathMtu;
use super::proof::PeerVerified;
use super::rekey_ike::{Heir, Old, RekeyIke};
use super::resume::{Identities, Ticket, Tickets};
use super::{Broken, Cx, News, Next, Renewal, SaConfig, State, delete_ike, error_notify, notify, redirect};
use crate::command::{Cause, Failure, Path, RekeyKind, Stage, Traffic};
use crate::esp::{Discard, Marking, Selectors};
use crate::proposal::{EspSuite, IkeSuite};
use crate::rng::Rng;
use crate::timer::{Instant, Timer, UnixTime};
use crate::wire::iana::{ExchangeType, NotifyType, ProtocolId};
use crate::wire::{Delete, EspSpi, Header, IkeSpi, Notify, Payload};

/// A gateway that has not answered a request within this time is gone.
const PATIENCE: Duration = Duration::from_secs(30);
/// A gateway that has not answered for so long may be gone: another SA is begun beside this one.
const DOUBT: Duration = Duration::from_secs(8);
/// How long packets go out without any coming in, before we ask whether the gateway lives.
const UNANSWERED: Duration = Duration::from_secs(10);
/// In an idle tunnel without NAT we ask this many times less often than the profile's `dpd` says: nobody waits.
const IDLE_FACTOR: u32 = 4;
/// How often what the gateway puts off or refuses for reasons that may pass is tried again (RFC 7296, section 2.25).
const LATER: Duration = Duration::from_secs(10);
/// After so many tries in a row the state is out of sync: a fresh IKE SA has to take over.
const MAX_SETBACKS: u8 = 12;
/// How long the gateway has to confirm our Delete.
const FAREWELL: Duration = Duration::from_secs(2);
/// An unprotected hint that the gateway does not know us is looked into at most this often.
const HINT_EVERY: Duration = Duration::from_secs(30);
/// A hint about a child counts where packets have been going out for so long without any coming in.
const HINT_COUNTS: Duration = Duration::from_secs(3);
/// How long a Child SA that was replaced because nothing came in through it is left alone; twice as long each time in a
/// row. Traffic that goes one way only looks the same.
const SILENT_AGAIN: Duration = Duration::from_secs(30);
const SILENT_AGAIN_LATEST: Duration = Duration::from_secs(3600);
/// The shortest lifetime of an authentication that we believe, so that a gateway cannot keep us busy.
const SHORTEST_AUTH: Duration = Duration::from_secs(60);

/// An IKE SA with its Child SAs, both sides proven.
pub(crate) struct Established {
    pub(super) config: Arc<SaConfig>,
    pub(super) channel: Channel,
    pub(crate) suite: IkeSuite,
    pub(crate) nat: Nat,
    pub(super) ids: Identities,
    /// It was resumed, and not authenticated anew (RFC 5723).
    pub(crate) is_resumed: bool,
    pub(super) tickets: Tickets,
    /// What the user should know although all is well.
    pub(crate) notes: Vec<String>,
    pub(crate) children: Children,
    pub(crate) network: InnerNetwork,
    /// When the present IKE SA was made.
    pub(crate) since: UnixTime,
    pub(super) made_at: Instant,
    pub(crate) mobility: Mobility,
    /// How large a datagram the path carries.
    pub(super) pmtu: PathMtu,
    /// Our request that is unanswered.
    pub(super) doing: Doing,
    /// When the IKE SA is replaced, and when it must not be used any longer.
    pub(crate) rekey_at: Instant,
    pub(super) expires_at: Instant,
    /// The IKE SA by which the gateway is replacing this one.
    pub(super) heir: Option<Box<Heir>>,
    /// What the gateway makes with several key exchanges, of which not all are over.
    pub(super) pending: Option<Box<Pending>>,
    /// Replaced IKE SAs that have yet to be deleted.
    pub(super) old: Vec<Old>,
    /// What the Child SAs carry, and the suite that the last one had.
    pub(super) selectors: Arc<Selectors>,
    pub(crate) child_suite: EspSuite,
    /// Whether Child SAs are replaced with a fresh key exchange.
    pub(super) pfs: Pfs,
    /// When a Child SA is made again after the last one is gone.
    pub(super) remake_at: Instant,
    /// How many times in a row the gateway put off what we asked.
    pub(super) setbacks: u8,
    /// When our authentication expires (RFC 4478).
    pub(super) reauth_at: Option<Instant>,
    /// The first packet that went out since the last one came in.
    unanswered: Option<Instant>,
    hinted_at: Option<Instant>,
    /// When nothing came in through a Child SA although the gateway answers, it was replaced: until when it is not
    /// again, and for how long that is.
    pub(super) silent: Option<(Instant, Duration)>,
    doubted: bool,
    /// The machine came back to its network or woke: that the gateway answers is news.
    checking: bool,
    /// A packet came in since the present IKE SA was made, or the gateway was told anew where we are.
    pub(super) is_reached: bool,
    renewal_told: bool,
}

/// What our unanswered request asks.
pub(super) enum Doing {
    Nothing,
    Liveness,
    /// Whether a datagram of a size gets through, and how many octets it really has.
    Probe {
        size: u16,
        len: u16,
    },
    Update(Box<Update>),
    DeleteChildren(Vec<EspSpi>),
    MakeChild(Box<MakeChild>),
    RekeyIke(Box<RekeyIke>),
    FollowUp(Box<FollowUp>),
    Ticket,
}

/// What a message without proof says that the gateway does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hint {
    IkeSa,
    ChildSa,
}

/// How the SA ends.
pub(super) enum End {
    /// The gateway knows, or cannot be told.
    Dead(Cause),
    /// The gateway is to be told.
    Tell(Cause),
}

/// What IKE_AUTH found out.
pub(super) struct Proven {
    pub(super) config: Arc<SaConfig>,
    pub(super) channel: Channel,
    pub(super) suite: IkeSuite,
    pub(super) nat: Nat,
    pub(super) ids: Identities,
    pub(super) resumed: Option<Arc<Ticket>>,
    pub(super) notes: Vec<String>,
    pub(super) made: Made,
}

impl Established {
    /// `payloads` are those of the last IKE_AUTH response.
    pub(super) fn new(
        _witness: PeerVerified,
        proven: Proven,
        payloads: &[Payload<'_>],
        cx: &mut Cx<'_>,
    ) -> Self {
        let Proven {
            config,
            channel,
            suite,
            nat,
            ids,
            resumed,
            notes,
            made: Made { child, network },
        } = proven;
        let (ike_rekey, rehearse) = (config.profile.ike.rekey, config.profile.child.rehearse);
        let rekey_at = cx.now + early(ike_rekey, cx.rng);
        let pfs = Pfs::wanted(&config.profile.child);
        let mobility = Mobility::new(config.profile.ike.mobike, payloads);
        let pmtu = PathMtu::new(config.profile.network.mtu);
        let mut sa = Self {
            config,
            channel,
            suite,
            nat,
            ids,
            is_resumed: resumed.is_some(),
            tickets: Tickets::default(),
            notes,
            children: Children::default(),
            network,
            since: cx.unix,
            made_at: cx.now,
            mobility,
            pmtu,
            doing: Doing::Nothing,
            rekey_at,
            expires_at: rekey_at + grace(ike_rekey),
            heir: None,
            pending: None,
            old: Vec::new(),
            selectors: Arc::clone(&child.selectors),
            child_suite: child.suite,
            pfs,
            remake_at: cx.now,
            setbacks: 0,
            reauth_at: resumed.and_then(|ticket| ticket.reauth_at),
            unanswered: None,
            hinted_at: None,
            silent: None,
            doubted: false,
            checking: false,
            is_reached: false,
            renewal_told: false,
        };
        let mut child = sa.new_child(child, cx);
        if rehearse {
            child.rekey_at = cx.now + REHEARSAL;
        }
        sa.children.add(child);
        sa.note_lifetime(payloads, cx.now);
        sa.note_ticket(payloads, cx.now);
        sa
    }

    /// A Child SA at the beginning of its life.
    pub(super) fn new_child(&mut self, mut sa: ChildSa, cx: &mut Cx<'_>) -> Child {
        sa.inbound.limit(self.config.profile.child.limits);
        sa.outbound.limit(self.config.profile.child.limits);
        self.child_suite = sa.suite;
        let lifetime = self.config.profile.child.rekey;
        let rekey_at = cx.now + early(lifetime, cx.rng);
        Child {
            sa,
            made_at: cx.now,
            rekey_at,
            expires_at: rekey_at + grace(lifetime),
            is_used_up: false,
            state: ChildState::Live,
        }
    }

    pub(crate) fn path(&self) -> Path {
        self.channel.path
    }

    /// The way to the gateway that is left, whether it knows or not.
    pub(crate) fn set_path(&mut self, path: Path) {
        self.channel.path = path;
    }

    /// What is left to say to the gateway goes the way that another SA takes, as the one before may not be there any
    /// more: to its own address still, and not along a connection, which belongs to one SA (RFC 9329, section 6.1).
    pub(crate) fn leave_along(&mut self, way: Path) {
        let present = self.channel.path;
        if present.is_tcp() || way.is_tcp() {
            return;
        }
        if way.remote.ip() == present.remote.ip() {
            self.channel.path = way;
        } else if way.local.is_ipv4() == present.remote.is_ipv4() {
            self.channel.path.local = way.local;
        }
    }

    /// When something authentic last came in.
    pub(crate) fn last_heard(&self) -> Instant {
        self.channel.last_in
    }

    pub(crate) fn round_trip(&self) -> Option<Duration> {
        self.channel.round_trip
    }

    /// Both SPIs, the initiator's first, in hexadecimal.
    pub(crate) fn spis(&self) -> (String, String) {
        (
            self.channel.spis.initiator.to_string(),
            self.channel.spis.responder.to_string(),
        )
    }

    /// Both sides may send long messages in fragments.
    pub(crate) fn fragments(&self) -> bool {
        self.channel.fragments()
    }

    /// What went through all Child SAs so far.
    pub(crate) fn traffic(&self) -> Traffic {
        self.children.traffic()
    }

    /// Whether an IKE message claims to be for this SA, or for one that it replaces or that replaces it.
    pub(crate) fn is_for(&self, header: &Header) -> bool {
        self.channel.is_for(header)
            || self.heir.as_ref().is_some_and(|heir| heir.channel.is_for(header))
            || self.old.iter().any(|old| old.channel.is_for(header))
    }

    /// Opens an ESP packet in place.
    pub(crate) fn open<'d>(&mut self, datagram: &'d mut [u8], now: Instant) -> Result<&'d mut [u8], Discard> {
        let opened = self.children.open(datagram, now);
        if opened
            .as_ref()
            .map_or_else(|reason| reason.is_authentic(), |_| true)
        {
            self.channel.last_in = now;
            self.unanswered = None;
            self.silent = None;
            self.is_reached = true;
        }
        if let Ok(packet) = &opened {
            self.pmtu.note_packet(packet.len(), now);
        }
        opened
    }

    /// What the datagrams on the way show of the packets in them.
    pub(crate) fn marking(&self) -> Marking {
        self.config.profile.child.marking
    }

    /// Seals an inner packet into `out`.
    pub(crate) fn seal(
        &mut self,
        len: usize,
        write: impl FnOnce(&mut [u8]),
        out: &mut [u8],
        now: Instant,
    ) -> Result<usize, Discard> {
        let sealed = self.children.seal(len, write, out, now);
        if sealed.is_ok() {
            self.channel.last_out = now;
            self.unanswered.get_or_insert(now);
            self.pmtu.note_packet(len, now);
        }
        sealed
    }

    /// When there is something to do if nothing else happens, and why.
    pub(super) fn poll_timeout(&self) -> Option<(Instant, Timer)> {
        let own = match self.channel.poll_timeout(PATIENCE) {
            Some(due) if !self.doubted => Some(due.min((self.doubt_at(), Timer::Retransmit))),
            Some(due) => Some(due),
            None => self.next_task(),
        };
        let others = [
            (self.mobility.due_at(self.channel.is_free()), Timer::NextCandidate),
            (self.keepalive_at(), Timer::NatKeepalive),
            (self.children.tidy_at(), Timer::Rekey),
            (self.children.expires_at(), Timer::Rekey),
            (Some(self.expires_at), Timer::Rekey),
            (self.heir.as_ref().map(|heir| heir.until), Timer::Rekey),
            (
                self.reauth_at.filter(|_| !self.renewal_told),
                Timer::Reauthenticate,
            ),
        ];
        others
            .into_iter()
            .filter_map(|(at, timer)| Some((at?, timer)))
            .chain(own)
            .chain(self.old.iter().map(|old| (old.due_at(), Timer::Retransmit)))
            .min()
    }

    /// The first thing that [`Self::turn`] will do when the window is free.
    fn next_task(&self) -> Option<(Instant, Timer)> {
        if self.heir.is_some() {
            return None;
        }
        let child = if self.children.is_alive() {
            self.children.rekey_at()
        } else {
            Some(self.remake_at)
        };
        let tasks = [
            (Some(self.rekey_at), Timer::Rekey),
            (child, Timer::Rekey),
            (Some(self.liveness_at()), Timer::Liveness),
            (self.tickets.ask_at, Timer::Ticket),
        ];
        tasks
            .into_iter()
            .filter_map(|(at, timer)| Some((at?, timer)))
            .chain(self.probe_at())
            .min()
    }

    /// When to ask whether the gateway lives: soon when packets stay without any answer, late in an idle tunnel, where
    /// behind a NAT the keepalives ask (RFC 7296, section 2.4).
    fn liveness_at(&self) -> Instant {
        let dpd = self.config.profile.ike.dpd;
        let idle = self.channel.last_in + dpd * IDLE_FACTOR;
        let reasons = [
            self.unanswered.map(|since| since + self.unanswered_patience()),
            self.mobility
                .first_look_at(self.made_at)
                .filter(|_| self.nat.local),
            self.checking.then_some(self.made_at),
        ];
        reasons.into_iter().flatten().fold(idle, Instant::min)
    }

    fn unanswered_patience(&self) -> Duration {
        self.config.profile.ike.dpd.min(UNANSWERED)
    }

    /// Packets went out and none came in, although the gateway answers: it may have forgotten the Child SA and not say
    /// so, which its answer to a rekeying tells. Or a NAT has changed its mapping before there was one to compare with,
    /// which an update heals.
    fn suspect_child(&mut self, cx: &mut Cx<'_>) {
        let now = cx.now;
        cx.news.push_back(News::Silent);
        let pause = match self.silent {
            Some((until, _)) if now < until => return,
            Some((_, pause)) => (pause * 2).min(SILENT_AGAIN_LATEST),
            None => SILENT_AGAIN,
        };
        self.silent = Some((now + pause, pause));
        if self.nat.local {
            self.mobility.want_update();
        }
        self.children.rekey_now(now);
    }

    fn doubt_at(&self) -> Instant {
        self.channel.asked_at().unwrap_or(self.channel.last_in) + DOUBT
    }

    /// NATs keep the mappings of TCP for long (RFC 9329, section 6.6).
    fn keepalive_at(&self) -> Option<Instant> {
        (self.nat.local && !self.channel.path.is_tcp()).then(|| {
            self.mobility
                .keepalive_at(self.channel.last_in, self.channel.last_out)
        })
    }

    pub(super) fn handle_timeout(mut self: Box<Self>, cx: &mut Cx<'_>) -> Next {
        if self.channel.is_given_up(cx.now, PATIENCE) {
            return self.conclude(Err(End::Dead(Cause::PeerDead)), cx);
        }
        if cx.now >= self.expires_at || self.children.expires_at().is_some_and(|at| cx.now >= at) {
            return self.conclude(Err(End::Dead(Cause::Expired)), cx);
        }
        let result = self.on_time(cx);
        self.conclude(result, cx)
    }

    fn on_time(&mut self, cx: &mut Cx<'_>) -> Result<(), End> {
        self.channel.handle_timeout(cx);
        if !self.doubted && !self.channel.is_free() && cx.now >= self.doubt_at() {
            self.doubted = true;
            cx.news.push_back(News::Doubt);
        }
        self.mobility_on_time(cx);
        self.transport_on_time(cx);
        if self.reauth_at.is_some_and(|at| cx.now >= at) {
            self.renew(Renewal::Lifetime, cx);
        }
        if self.heir.as_ref().is_some_and(|heir| cx.now >= heir.until) {
            self.inherit(cx);
        }
        self.old_on_time(cx);
        self.turn(cx)?;
        if self.keepalive_at().is_some_and(|at| cx.now >= at) {
            self.keep_alive(cx)?;
        }
        Ok(())
    }

    /// A NAT must see something of us. Where the tunnel is idle and the gateway can tell us how it sees our address, the
    /// keepalive is a question, which notices a new mapping and a dead gateway as well (RFC 4555, section 3.8).
    fn keep_alive(&mut self, cx: &mut Cx<'_>) -> Result<(), End> {
        let asks = self.mobility.is_supported() && self.channel.is_free() && self.heir.is_none();
        if asks && cx.now >= self.channel.last_in + self.mobility.keepalive_gap() {
            return self.ask_liveness(cx);
        }
        self.channel.keep_mapping(cx);
        Ok(())
    }

    /// Sends the most urgent of what is due, when the window is free.
    pub(super) fn turn(&mut self, cx: &mut Cx<'_>) -> Result<(), End> {
        self.children.tidy(cx.now);
        self.forget_pending(cx.now);
        if !self.channel.is_free() {
            return Ok(());
        }
        if self.channel.is_worn_out() {
            self.rekey_at = self.rekey_at.min(cx.now);
        }
        if self.mobility.wants_update() {
            return self.send_update(cx);
        }
        // What is begun now would have to be begun again on the new IKE SA.
        if self.heir.is_some() {
            return Ok(());
        }
        let condemned = self.children.condemned();
        if !condemned.is_empty() {
            return self.delete_children(condemned, cx);
        }
        if !self.children.is_alive() && cx.now >= self.remake_at {
            return self.make_child(None, cx);
        }
        self.leave_to_gateway();
        if cx.now >= self.rekey_at {
            return self.rekey_ike(None, cx);
        }
        if let Some(spi) = self.children.due(cx.now) {
            return self.make_child(Some(spi), cx);
        }
        if cx.now >= self.liveness_at() {
            // No packet ever came in: a NAT's mapping may have changed before there was one to compare with.
            let is_lost = self.unanswered.is_some() && self.nat.local && self.mobility.is_supported();
            if is_lost && !std::mem::replace(&mut self.is_reached, true) {
                return self.send_update(cx);
            }
            return self.ask_liveness(cx);
        }
        if self.tickets.ask_at.is_some_and(|at| cx.now >= at) {
            return self.ask_ticket(cx);
        }
        self.probe_path(cx)
    }

    /// An empty request, or one that also asks how the gateway sees our address: the gateway lives if it answers.
    pub(super) fn ask_liveness(&mut self, cx: &mut Cx<'_>) -> Result<(), End> {
        let (source, destination) = self.nat_payload_data(cx);
        let payloads = if self.mobility.is_supported() {
            self.mobility.look();
            vec![
                notify(NotifyType::NAT_DETECTION_SOURCE_IP, &source),
                notify(NotifyType::NAT_DETECTION_DESTINATION_IP, &destination),
            ]
        } else {
            vec![]
        };
        self.request(ExchangeType::INFORMATIONAL, &payloads, Doing::Liveness, cx)
    }

    fn delete_children(&mut self, spis: Vec<EspSpi>, cx: &mut Cx<'_>) -> Result<(), End> {
        let octets: Vec<[u8; 4]> = spis.iter().map(|spi| spi.0.to_be_bytes()).collect();
        let delete = Payload::Delete(Delete {
            protocol: ProtocolId::ESP,
            spis: octets.iter().map(<[u8; 4]>::as_slice).collect(),
        });
        self.request(
            ExchangeType::INFORMATIONAL,
            &[delete],
            Doing::DeleteChildren(spis),
            cx,
        )
    }

    /// Sends a request; the window must be free.
    pub(super) fn request(
        &mut self,
        exchange: ExchangeType,
        payloads: &[Payload<'_>],
        doing: Doing,
        cx: &mut Cx<'_>,
    ) -> Result<(), End> {
        self.channel
            .request(exchange, payloads, cx)
            .map_err(|error| End::Tell(super::unsendable(&error)))?;
        self.doing = doing;
        if self.mobility.is_unsettled() {
            self.channel.be_quick(cx);
            self.try_connections(cx);
        }
        Ok(())
    }

    /// An IKE message, for the present SA or one beside it.
    pub(super) fn handle(mut self: Box<Self>, path: Path, message: &mut [u8], cx: &mut Cx<'_>) -> Next {
        let Ok(header) = Header::decode(message) else {
            return Ok(State::Established(self));
        };
        let result = if self.channel.is_for(&header) {
            self.handle_present(path, message, cx)
        } else if self
            .heir
            .as_ref()
            .is_some_and(|heir| heir.channel.is_for(&header))
        {
            self.handle_heir(path, message, cx)
        } else {
            self.handle_old(&header, path, message, cx);
            Ok(())
        };
        let result = result.and_then(|()| self.turn(cx));
        self.conclude(result, cx)
    }

    fn handle_present(&mut self, path: Path, message: &mut [u8], cx: &mut Cx<'_>) -> Result<(), End> {
        let Some(opened) = self.channel.open(path, message, cx) else {
            return Ok(());
        };
        self.handle_opened(&opened, cx)
    }

    /// A new and authentic message of the present IKE SA.
    pub(super) fn handle_opened(&mut self, opened: &Opened, cx: &mut Cx<'_>) -> Result<(), End> {
        if !opened.header.flags.response {
            return self.serve(opened, cx);
        }
        // Only these answers tell anything of why no packet comes in; a tunnel may be dead although its IKE SA is busy.
        let asked = matches!(self.doing, Doing::Liveness | Doing::Update(_));
        let unanswered = self.unanswered.take_if(|_| asked);
        self.answered_along(opened.path, cx);
        if std::mem::take(&mut self.doubted) | std::mem::take(&mut self.checking) {
            cx.news.push_back(News::Trust);
        }
        let payloads = opened
            .payloads()
            .map_err(|error| End::Tell(Broken::from(error).into()))?;
        match std::mem::replace(&mut self.doing, Doing::Nothing) {
            Doing::Nothing => Ok(()),
            Doing::Liveness => {
                if unanswered.is_some_and(|since| cx.now >= since + self.unanswered_patience()) {
                    self.pmtu.suspect();
                    self.suspect_child(cx);
                }
                self.note_addresses(&payloads);
                self.compare_mapping(opened.path, &payloads, cx);
                Ok(())
            }
            Doing::Probe { size, len } => {
                self.probed(size, len, opened.answers_probe, cx.now);
                Ok(())
            }
            Doing::Update(update) => self.updated(&update, &payloads, cx),
            Doing::DeleteChildren(spis) => {
                for spi in spis {
                    self.children.drain(spi, cx.now);
                }
                Ok(())
            }
            Doing::MakeChild(making) => self.child_answered(*making, &payloads, cx),
            Doing::RekeyIke(rekeying) => self.ike_answered(*rekeying, &payloads, cx),
            Doing::FollowUp(follow) => self.followed(*follow, &payloads, cx),
            Doing::Ticket => {
                self.note_ticket(&payloads, cx.now);
                Ok(())
            }
        }
    }

    /// Answers a request of the gateway's.
    fn serve(&mut self, opened: &Opened, cx: &mut Cx<'_>) -> Result<(), End> {
        let payloads = match opened.payloads() {
            Ok(payloads) => payloads,
            Err(error) => {
                // RFC 7296, section 2.21.3: fatal on both sides.
                self.answer(opened, &[notify(NotifyType::INVALID_SYNTAX, &[])], cx);
                return Err(End::Dead(Broken::from(error).into()));
            }
        };
        if let Some(kind) = critical_unknown(&payloads) {
            self.answer(
                opened,
                &[notify(NotifyType::UNSUPPORTED_CRITICAL_PAYLOAD, &[kind])],
                cx,
            );
            return Ok(());
        }
        match opened.header.exchange {
            ExchangeType::INFORMATIONAL => self.inform(opened, &payloads, cx),
            ExchangeType::CREATE_CHILD_SA => {
                self.create(opened, &payloads, cx);
                Ok(())
            }
            ExchangeType::IKE_FOLLOWUP_KE => {
                self.serve_followup(opened, &payloads, cx);
                Ok(())
            }
            _ => {
                self.answer(opened, &[notify(NotifyType::INVALID_SYNTAX, &[])], cx);
                Ok(())
            }
        }
    }

    fn create(&mut self, opened: &Opened, payloads: &[Payload<'_>], cx: &mut Cx<'_>) {
        let rekeys_ike = payloads.iter().any(|payload| {
            matches!(payload, Payload::Sa(proposals)
                if proposals.iter().any(|proposal| proposal.protocol == ProtocolId::IKE))
        });
        if rekeys_ike {
            self.serve_ike_rekey(opened, payloads, cx);
        } else {
            self.serve_child(opened, payloads, cx);
        }
    }

    fn inform(&mut self, opened: &Opened, payloads: &[Payload<'_>], cx: &mut Cx<'_>) -> Result<(), End> {
        let mut deleted: Vec<EspSpi> = Vec::new();
        for payload in payloads {
            match payload {
                Payload::Delete(delete) if delete.protocol == ProtocolId::IKE => {
                    self.answer(opened, &[], cx);
                    return self.deleted_by_gateway(payloads, cx);
                }
                Payload::Delete(delete) if delete.protocol == ProtocolId::ESP => {
                    let found = delete.spis.iter().filter_map(|spi| self.deleted_child(spi, cx));
                    deleted.extend(found.collect::<Vec<_>>());
                }
                // The gateway has lost the child that we send with (RFC 7296, section 1.5).
                // Its answer to a rekeying tells whether it has: nothing is changed on its word alone (section 2.21.4).
                Payload::Notify(notify)
                    if notify.kind == NotifyType::INVALID_SPI
                        && self.children.theirs(notify.data).is_some() =>
                {
                    self.children.rekey_now(cx.now);
                }
                Payload::Notify(notify) if notify.kind == NotifyType::AUTHENTICATION_FAILED => {
                    self.answer(opened, &[], cx);
                    return Err(End::Dead(Cause::AuthenticationFailed));
                }
                _ => {}
            }
        }
        // RFC 7296, section 1.4.1: the gateway's SPIs in its request, the paired ones in our answer.
        let octets: Vec<[u8; 4]> = deleted.iter().map(|spi| spi.0.to_be_bytes()).collect();
        let spis: Vec<&[u8]> = octets.iter().map(<[u8; 4]>::as_slice).collect();
        let (source, destination) = self.nat_payload_data(cx);
        let mut reply = self.mobility_reply(payloads, opened.path, &source, &destination);
        if !spis.is_empty() {
            reply.push(Payload::Delete(Delete {
                protocol: ProtocolId::ESP,
                spis,
            }));
        }
        self.answer(opened, &reply, cx);
        self.note_addresses(payloads);
        self.note_lifetime(payloads, cx.now);
        self.heed_redirect(payloads, opened.path, cx);
        Ok(())
    }

    /// The gateway wants us at another one (RFC 5685, section 5). This SA goes on until one is up there.
    fn heed_redirect(&mut self, payloads: &[Payload<'_>], path: Path, cx: &mut Cx<'_>) {
        match redirect::proven(&self.config, payloads, path.remote.ip()) {
            Some(Ok(redirect)) => cx.news.push_back(News::Renew(Renewal::Redirected(redirect))),
            Some(Err(cause)) => tracing::warn!(?cause, "a redirect is not followed"),
            None => {}
        }
    }

    /// The gateway deletes the child that it receives on `spi`: our SPI of the pair, unless we are deleting it too
    /// (RFC 7296, section 2.25.1).
    pub(super) fn deleted_child(&mut self, spi: &[u8], cx: &mut Cx<'_>) -> Option<EspSpi> {
        let Some(child) = self.children.theirs(spi) else {
            match &mut self.doing {
                Doing::MakeChild(making) => making.note_deleted(spi),
                Doing::FollowUp(follow) => follow.note_deleted(spi),
                _ => {}
            }
            return None;
        };
        let (inbound, made_at) = (child.sa.inbound_spi, child.made_at);
        self.children.drain(inbound, cx.now);
        if !self.children.is_alive() {
            // A gateway that deletes what it has just granted is not asked without end.
            let at = if cx.now < made_at + LATER {
                self.put_off(cx)
            } else {
                cx.now
            };
            self.remake_at = self.remake_at.max(at);
        }
        let ours_too = matches!(&self.doing, Doing::DeleteChildren(spis) if spis.contains(&inbound));
        (!ours_too).then_some(inbound)
    }

    /// The gateway ended the IKE SA: the end, unless it has replaced it before.
    fn deleted_by_gateway(&mut self, payloads: &[Payload<'_>], cx: &mut Cx<'_>) -> Result<(), End> {
        if self.heir.is_some() {
            self.inherit_after_delete(cx);
            return Ok(());
        }
        let cause = error_notify(payloads).map_or(Cause::DeletedByGateway, Cause::EndedByGateway);
        Err(End::Dead(cause))
    }

    /// AUTH_LIFETIME: authentication must be renewed before so many seconds are over (RFC 4478, section 3).
    fn note_lifetime(&mut self, payloads: &[Payload<'_>], now: Instant) {
        let lifetime = notifies(payloads, NotifyType::AUTH_LIFETIME)
            .find_map(|notify| Some(u32::from_be_bytes(*notify.data.as_array::<4>()?)));
        if let Some(seconds) = lifetime {
            let lifetime = Duration::from_secs(seconds.into()).max(SHORTEST_AUTH);
            let at = now + lifetime * 9 / 10;
            self.reauth_at = Some(self.reauth_at.map_or(at, |before| before.min(at)));
        }
    }

    /// A fresh IKE SA has to take over; said once.
    pub(super) fn renew(&mut self, why: Renewal, cx: &mut Cx<'_>) {
        if !std::mem::replace(&mut self.renewal_told, true) {
            cx.news.push_back(News::Renew(why));
        }
    }

    /// When what the gateway put off is tried again. After too many times a fresh IKE SA has to take over.
    pub(super) fn put_off(&mut self, cx: &mut Cx<'_>) -> Instant {
        self.setbacks = self.setbacks.saturating_add(1);
        if self.setbacks >= MAX_SETBACKS {
            self.renew(Renewal::OutOfSync, cx);
        }
        cx.now + super::window::jitter(LATER, cx.rng)
    }

    /// Something without proof says that the gateway does not know us: a reason to ask, and no more (RFC 7296, section
    /// 2.21.4). Where it is about a child the question is a rekeying, whose answer tells whether the gateway has it.
    pub(crate) fn hint(&mut self, about: Hint, cx: &mut Cx<'_>) {
        if self.hinted_at.is_some_and(|at| cx.now < at + HINT_EVERY) {
            return;
        }
        self.hinted_at = Some(cx.now);
        match about {
            // Only where our own packets have stayed without an answer for a while.
            Hint::ChildSa => {
                if self.unanswered.is_some_and(|since| cx.now >= since + HINT_COUNTS) {
                    self.children.rekey_now(cx.now);
                }
            }
            // Asked at the next timeout, which is now.
            Hint::IkeSa if self.channel.is_free() => self.worry(cx.now),
            // Nobody without proof makes us resume: the SA that is may be well (RFC 5723, section 9.4).
            Hint::IkeSa if self.channel.transmissions() > 1 && !self.doubted && self.ticket().is_none() => {
                self.doubted = true;
                cx.news.push_back(News::Doubt);
            }
            Hint::IkeSa => {}
        }
    }

    /// Whether the gateway lives is to be asked at once.
    fn worry(&mut self, now: Instant) {
        self.unanswered = Some(now - UNANSWERED.max(self.config.profile.ike.dpd));
    }

    /// The machine woke, or its network changed in a way that left our path alone: ask at once, and again soon.
    pub(crate) fn check(&mut self, cx: &mut Cx<'_>) {
        self.checking = true;
        // When the window is free, the question is due at the next timeout, which is now.
        self.channel.ask_again(cx);
    }

    /// An SA is to be replaced before its time.
    pub(crate) fn rekey_now(&mut self, kind: RekeyKind, now: Instant) {
        match kind {
            RekeyKind::IkeSa => self.rekey_at = self.rekey_at.min(now),
            RekeyKind::ChildSa => self.children.rekey_now(now),
        }
    }

    pub(super) fn answer(&mut self, to: &Opened, payloads: &[Payload<'_>], cx: &mut Cx<'_>) {
        if let Err(error) = self.channel.respond(to, payloads, cx) {
            tracing::error!(%error, "an answer of fixed size cannot be encoded");
        }
    }

    fn conclude(self: Box<Self>, result: Result<(), End>, cx: &mut Cx<'_>) -> Next {
        match result {
            Ok(()) => Ok(State::Established(self)),
            Err(End::Dead(cause)) => {
                cx.news.push_back(News::Carried(self.traffic()));
                // What the gateway has ended cannot be resumed (RFC 5723, section 6.2).
                if cause == Cause::PeerDead {
                    cx.news.extend(self.ticket().map(News::Ticket));
                }
                Err(lost(cause))
            }
            Err(End::Tell(cause)) => {
                cx.news.push_back(News::Carried(self.traffic()));
                cx.news.push_back(News::Failed(lost(cause)));
                Ok(self.end(cx))
            }
        }
    }

    /// Says Delete, and waits a moment for the gateway to confirm.
    pub(super) fn close(self: Box<Self>, cx: &mut Cx<'_>) -> State {
        self.end(cx)
    }

    fn end(self: Box<Self>, cx: &mut Cx<'_>) -> State {
        let until = cx.now + FAREWELL;
        let mut this = self;
        // The gateway has moved what is left to the SA that it made to replace this one.
        if let Some(heir) = &mut this.heir {
            heir.channel
                .farewell(ExchangeType::INFORMATIONAL, &[delete_ike()], cx);
        }
        let rekeying = match this.doing {
            Doing::RekeyIke(rekeying) => Some(rekeying),
            _ => None,
        };
        let mut closing = Box::new(Closing {
            rekeying,
            channel: this.channel,
            children: this.children,
            until,
            told: false,
        });
        // What is unanswered stands before the Delete, and there is little time for both.
        closing.channel.hurry(cx);
        closing.tell(cx);
        State::Closing(closing)
    }

    /// The SPI of the present IKE SA that we chose.
    pub(super) fn own_spi(&self) -> IkeSpi {
        self.channel.own_spi()
    }
}

/// The rehearsal of a rekeying comes so long after the beginning.
const REHEARSAL: Duration = Duration::from_secs(3);

/// A lifetime less up to a tenth, so that not all clients of a gateway rekey together.
pub(super) fn early(lifetime: Duration, rng: &mut Rng) -> Duration {
    let tenth = u64::try_from(lifetime.as_micros() / 10).unwrap_or(0);
    lifetime.saturating_sub(Duration::from_micros(rng.below(tenth + 1)))
}

/// The time that a rekeying may take after it is due.
pub(super) fn grace(lifetime: Duration) -> Duration {
    (lifetime / 10).max(Duration::from_secs(120))
}

fn lost(cause: Cause) -> Failure {
    Failure {
        stage: Stage::Apply,
        cause,
    }
}

/// The notifies of one kind.
pub(super) fn notifies<'a, 'w>(
    payloads: &'a [Payload<'w>],
    kind: NotifyType,
) -> impl Iterator<Item = &'a Notify<'w>> {
    payloads.iter().filter_map(move |payload| match payload {
        Payload::Notify(notify) if notify.kind == kind => Some(notify),
        _ => None,
    })
}

fn critical_unknown(payloads: &[Payload<'_>]) -> Option<u8> {
    payloads.iter().find_map(|payload| match payload {
        Payload::Unknown {
            kind, critical: true, ..
        } => Some(kind.0),
        _ => None,
    })
}

/// An IKE SA that we ended.
pub(super) struct Closing {
    /// Our request to replace it, which the gateway may yet grant.
    rekeying: Option<Box<RekeyIke>>,
    pub(super) channel: Channel,
    /// They take what is on its way, for as long as this lasts.
    pub(super) children: Children,
    until: Instant,
    told: bool,
}

impl Closing {
    /// The window is one: an unanswered request goes first.
    fn tell(&mut self, cx: &mut Cx<'_>) {
        if !self.told && self.channel.is_free() {
            self.told = self
                .channel
                .request(ExchangeType::INFORMATIONAL, &[delete_ike()], cx)
                .is_ok();
        }
    }

    pub(super) fn poll_timeout(&self) -> (Instant, Timer) {
        let close = (self.until, Timer::CloseDeadline);
        self.channel
            .poll_timeout(Duration::MAX)
            .map_or(close, |due| close.min(due))
    }

    pub(super) fn handle_timeout(mut self: Box<Self>, cx: &mut Cx<'_>) -> Next {
        if cx.now >= self.until {
            return self.gone(cx);
        }
        self.channel.handle_timeout(cx);
        Ok(State::Closing(self))
    }

    pub(super) fn handle(mut self: Box<Self>, path: Path, message: &mut [u8], cx: &mut Cx<'_>) -> Next {
        let Some(opened) = self.channel.open(path, message, cx) else {
            return Ok(State::Closing(self));
        };
        if !opened.header.flags.response {
            // Whatever the gateway wants of an SA that is going: an empty answer ends its asking, and a rekeying of it
            // is refused (RFC 7296, section 2.25.2).
            let refusal = [notify(NotifyType::TEMPORARY_FAILURE, &[])];
            let payloads: &[Payload<'_>] = match opened.header.exchange {
                ExchangeType::CREATE_CHILD_SA => &refusal,
                _ => &[],
            };
            let _ = self.channel.respond(&opened, payloads, cx);
            return Ok(State::Closing(self));
        }
        if self.told {
            return self.gone(cx);
        }
        if let (Some(rekeying), Ok(payloads)) = (self.rekeying.take(), opened.payloads()) {
            rekeying.undo(&self.channel, &payloads, cx);
        }
        self.tell(cx);
        Ok(State::Closing(self))
    }

    fn gone(self: Box<Self>, cx: &mut Cx<'_>) -> Next {
        cx.news.push_back(News::Closed);
        Ok(State::Dead)
    }
}
