//! Following changes of addresses (RFC 4555): moving the SA to another path, choosing among paths by trying them, NAT
//! mappings that change, keepalives.

use std::net::IpAddr;
use std::time::Duration;

use super::established::{Doing, End, Established, notifies};
use super::nat::{self, Nat};
use super::{Cx, News, notify};
use crate::command::{Cause, Means, Path, Roam};
use crate::timer::Instant;
use crate::wire::Payload;
use crate::wire::iana::{ExchangeType, NotifyType};

/// The head start of each path over the next.
const HEAD_START: Duration = Duration::from_millis(250);
/// Once all were tried, they are tried in turn again, so far apart.
const AGAIN: Duration = Duration::from_secs(1);
/// More paths than these are not tried.
const MAX_PATHS: usize = 16;
/// More further addresses of the gateway than these are not kept.
const MAX_OTHERS: usize = 4;
/// The silence after which a NAT may forget us (RFC 3948, section 4), and what is tried where it does not.
const SHORTEST_GAP: Duration = Duration::from_secs(20);
const LONGEST_GAP: Duration = Duration::from_secs(60);
const STEP: Duration = Duration::from_secs(10);
/// While packets come in we need not speak; but no longer than a NAT must keep a mapping (RFC 4787, REQ-5).
const LONGEST_SILENCE: Duration = Duration::from_secs(110);
/// How soon after its beginning an IKE SA asks how the gateway sees us.
const FIRST_LOOK: Duration = Duration::from_secs(1);

/// What an IKE SA knows of addresses.
pub(crate) struct Mobility {
    /// Both sides speak MOBIKE.
    pub(super) supported: bool,
    /// The gateway's further addresses, by its own word.
    others: Vec<IpAddr>,
    /// The gateway does not know our present address yet.
    wants_update: bool,
    /// Counts changes: an answer to an older one says nothing of the present path.
    changes: u32,
    pub(super) moving: Option<Moving>,
    /// The hash of our address and port as the gateway last saw them, on the present IKE SA.
    mapping: Option<[u8; 20]>,
    /// The gateway was asked how it sees us, on the present IKE SA.
    looked: bool,
    /// The keepalive's pace: longer while the mapping is seen to survive.
    gap: Duration,
    longest_gap: Duration,
    /// When a TCP connection was last asked for, for what is unanswered.
    pub(super) asked: Option<Instant>,
    /// UDP is being asked, beside TCP, whether it gets through.
    pub(super) probe: Option<Probe>,
    /// The TCP connection that carried the SA is gone.
    pub(super) is_cut: bool,
}

/// A change of the path that is under way.
pub(super) struct Moving {
    began: Instant,
    pub(super) from: Path,
    means: Means,
    paths: Vec<Path>,
    next: usize,
    next_at: Instant,
    /// TCP connections that are tried beside these paths; each is asked once.
    pub(super) connections: Vec<Path>,
}

/// A question to the gateway over UDP, while the SA is on TCP.
pub(super) struct Probe {
    pub(super) path: Path,
    /// How often it was sent.
    pub(super) sent: u32,
}

/// Our UPDATE_SA_ADDRESSES request.
pub(super) struct Update {
    path: Path,
    cookie: [u8; 16],
    change: u32,
}

impl Mobility {
    /// `payloads` are those of the last IKE_AUTH response, to a request that offered MOBIKE if `wanted`.
    pub(super) fn new(wanted: bool, payloads: &[Payload<'_>]) -> Self {
        let agreed = notifies(payloads, NotifyType::MOBIKE_SUPPORTED).next().is_some();
        let mut mobility = Self {
            supported: wanted && agreed,
            others: Vec::new(),
            wants_update: false,
            changes: 0,
            moving: None,
            mapping: None,
            looked: false,
            gap: SHORTEST_GAP,
            longest_gap: LONGEST_GAP,
            asked: None,
            probe: None,
            is_cut: false,
        };
        mobility.note_others(payloads);
        mobility
    }

    pub(crate) fn is_supported(&self) -> bool {
        self.supported
    }

    /// The gateway's further addresses.
    pub(crate) fn others(&self) -> &[IpAddr] {
        &self.others
    }

    /// The SA is on its way to another path, because the present one is none any more. That TCP is tried beside it, or a
    /// connection opened anew, says nothing of the network.
    pub(crate) fn is_moving(&self) -> bool {
        self.moving.as_ref().is_some_and(|moving| match moving.means {
            Means::NewConnection => false,
            Means::Mobike => moving.paths.first() != Some(&moving.from),
            Means::NatRebinding | Means::NewSa | Means::Resumption => true,
        })
    }

    /// More than one path is tried, or the gateway does not know the present one yet.
    pub(super) fn is_unsettled(&self) -> bool {
        self.moving.is_some()
    }

    pub(super) fn wants_update(&self) -> bool {
        self.wants_update && self.supported
    }

    /// The gateway is to be told where we are, whether that has changed or not.
    pub(super) fn want_update(&mut self) {
        self.wants_update = true;
    }

    /// When another path is tried, which needs a request that is unanswered.
    pub(super) fn due_at(&self, window_is_free: bool) -> Option<Instant> {
        let moving = self.moving.as_ref()?;
        (!window_is_free && moving.paths.len() > 1).then_some(moving.next_at)
    }

    /// How long the tunnel may be silent before a NAT must see something of us.
    pub(super) fn keepalive_gap(&self) -> Duration {
        self.gap
    }

    /// When a NAT must see something of us: not while packets come in, which show that the mapping lives.
    pub(super) fn keepalive_at(&self, last_in: Instant, last_out: Instant) -> Instant {
        (last_in.max(last_out) + self.gap).min(last_out + LONGEST_SILENCE)
    }

    /// When to ask for the first time how the gateway sees us: there must be something to compare with.
    pub(super) fn first_look_at(&self, since: Instant) -> Option<Instant> {
        (self.supported && !self.looked).then(|| since + FIRST_LOOK)
    }

    /// The gateway is asked how it sees us.
    pub(super) fn look(&mut self) {
        self.looked = true;
    }

    /// Another IKE SA is the present one. An update that was asked on the old one is asked again; and behind a NAT one is
    /// due, because the hash of our address on the new one has nothing to be compared with: the mapping may have changed
    /// since the old one's.
    pub(super) fn renewed(&mut self, wants_update: bool) {
        self.mapping = None;
        self.looked = false;
        self.wants_update |= wants_update;
    }

    /// The list in a message replaces the one before (RFC 4555, section 3.6).
    fn note_others(&mut self, payloads: &[Payload<'_>]) {
        let mut told = notifies(payloads, NotifyType::NO_ADDITIONAL_ADDRESSES)
            .next()
            .is_some();
        let mut others = Vec::new();
        for payload in payloads {
            let Payload::Notify(notify) = payload else {
                continue;
            };
            let address = match notify.kind {
                NotifyType::ADDITIONAL_IP4_ADDRESS => notify.data.as_array::<4>().map(|ip| IpAddr::from(*ip)),
                NotifyType::ADDITIONAL_IP6_ADDRESS => {
                    notify.data.as_array::<16>().map(|ip| IpAddr::from(*ip))
                }
                _ => continue,
            };
            told = true;
            let usable = |ip: &IpAddr| {
                let is_link_local = matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
                !(ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || is_link_local)
            };
            if let Some(ip) = address.filter(usable)
                && others.len() < MAX_OTHERS
                && !others.contains(&ip)
            {
                others.push(ip);
            }
        }
        if told {
            self.others = others;
        }
    }
}

impl Established {
    /// The way to the gateway changed: the SA goes to the first of these paths that works, and its traffic to the first
    /// at once. Without MOBIKE the gateway cannot be told; then nothing happens, and false is returned.
    pub(crate) fn move_to(&mut self, mut paths: Vec<Path>, means: Means, cx: &mut Cx<'_>) -> bool {
        paths.truncate(MAX_PATHS);
        if paths.is_empty() || !self.mobility.supported {
            return false;
        }
        self.begin_move(paths, means, cx);
        self.mobility.gap = SHORTEST_GAP;
        self.mobility.longest_gap = LONGEST_GAP;
        self.channel.repeat_answer(cx);
        if self.channel.is_free() {
            // An update of a few octets can always be sent.
            let _ = self.turn(cx);
        } else {
            self.channel.hurry(cx);
        }
        true
    }

    /// The SA goes to the first of these paths, and the gateway is to be told.
    pub(super) fn begin_move(&mut self, paths: Vec<Path>, means: Means, cx: &mut Cx<'_>) {
        let Some(first) = paths.first().copied() else {
            return;
        };
        let before = self.mobility.moving.take();
        self.mobility.moving = Some(Moving {
            began: before.as_ref().map_or(cx.now, |moving| moving.began),
            from: before.map_or(self.channel.path, |moving| moving.from),
            means,
            paths,
            next: 1,
            next_at: cx.now + HEAD_START,
            connections: Vec::new(),
        });
        self.mobility.wants_update = true;
        self.mobility.changes = self.mobility.changes.wrapping_add(1);
        self.mobility.asked = None;
        self.mobility.probe = None;
        self.mobility.is_cut = false;
        self.go(first, cx);
    }

    /// The paths that the SA is trying, the present one when it is not moving.
    fn go(&mut self, path: Path, cx: &mut Cx<'_>) {
        if path != std::mem::replace(&mut self.channel.path, path) {
            self.leave_path_mtu();
        }
        if let Some(heir) = &mut self.heir {
            heir.channel.path = path;
        }
        for old in &mut self.old {
            if path.is_tcp() {
                old.channel.follow(path, cx);
            } else {
                old.channel.path = path;
            }
        }
    }

    /// Tries the next path with the request that waits for an answer (RFC 4555, section 3.5).
    pub(super) fn mobility_on_time(&mut self, cx: &mut Cx<'_>) {
        let free = self.channel.is_free();
        if self.mobility.due_at(free).is_none_or(|at| cx.now < at) {
            return;
        }
        let Some(moving) = &mut self.mobility.moving else {
            return;
        };
        let index = moving.next % moving.paths.len();
        moving.next = moving.next.saturating_add(1);
        let pause = if moving.next < moving.paths.len() {
            HEAD_START
        } else {
            AGAIN
        };
        moving.next_at = cx.now + pause;
        if let Some(path) = moving.paths.get(index).copied() {
            self.channel.try_path(path, cx);
        }
    }

    /// Tells the gateway where we are.
    pub(super) fn send_update(&mut self, cx: &mut Cx<'_>) -> Result<(), End> {
        let (source, destination) = self.nat_payload_data(cx);
        let update = Update {
            path: self.channel.path,
            cookie: cx.rng.bytes(),
            change: self.mobility.changes,
        };
        let cookie = update.cookie;
        let payloads = [
            notify(NotifyType::UPDATE_SA_ADDRESSES, &[]),
            notify(NotifyType::NAT_DETECTION_SOURCE_IP, &source),
            notify(NotifyType::NAT_DETECTION_DESTINATION_IP, &destination),
            notify(NotifyType::COOKIE2, &cookie),
        ];
        self.mobility.wants_update = false;
        self.request(
            ExchangeType::INFORMATIONAL,
            &payloads,
            Doing::Update(Box::new(update)),
            cx,
        )
    }

    /// A response came along `path`, which therefore works.
    pub(super) fn answered_along(&mut self, path: Path, cx: &mut Cx<'_>) {
        self.mobility.asked = None;
        if let Some(probe) = self.mobility.probe.take()
            && probe.path == path
        {
            // UDP gets through again.
            return self.begin_move(vec![path], Means::Mobike, cx);
        }
        let Some(moving) = &self.mobility.moving else {
            return;
        };
        if !self.mobility.supported {
            // A new connection for the same SA: the gateway follows what comes there (RFC 9329, section 6.1).
            if path == self.channel.path {
                self.arrived(path, cx);
            }
        } else if path != self.channel.path
            && (moving.paths.contains(&path) || moving.connections.contains(&path))
        {
            self.go(path, cx);
            self.mobility.wants_update = true;
            self.mobility.changes = self.mobility.changes.wrapping_add(1);
        }
    }

    /// The gateway knows the path.
    fn arrived(&mut self, to: Path, cx: &mut Cx<'_>) {
        if let Some(moving) = self.mobility.moving.take() {
            cx.news.push_back(News::Roamed(Roam {
                from: moving.from,
                to,
                means: moving.means,
                took: cx.now.since(moving.began),
            }));
        }
    }

    /// The gateway's answer to an update.
    pub(super) fn updated(
        &mut self,
        update: &Update,
        payloads: &[Payload<'_>],
        cx: &mut Cx<'_>,
    ) -> Result<(), End> {
        let mut cookies = notifies(payloads, NotifyType::COOKIE2);
        if !cookies.all(|cookie| cookie.data == update.cookie)
            || notifies(payloads, NotifyType::COOKIE2).next().is_none()
        {
            // RFC 4555, section 3.7: whoever answers does not see what we send there.
            return Err(End::Tell(Cause::Protocol(
                "INFORMATIONAL: the gateway's answer to UPDATE_SA_ADDRESSES has another COOKIE2".into(),
            )));
        }
        self.note_addresses(payloads);
        if update.change != self.mobility.changes {
            // Overtaken by another change; the next update is due already.
            self.mobility.wants_update = true;
            return Ok(());
        }
        if notifies(payloads, NotifyType::UNACCEPTABLE_ADDRESSES)
            .next()
            .is_some()
        {
            self.refused(update.path, cx);
            return Ok(());
        }
        // An answer without NAT detection says nothing new: what was behind a NAT needs its keepalives.
        if let Some(seen) = mapping(payloads) {
            let path = update.path;
            self.nat = Nat::detect(payloads, self.channel.spis, path.local, path.remote);
            self.mobility.mapping = Some(seen);
        }
        self.arrived(update.path, cx);
        Ok(())
    }

    /// The gateway does not want us on this path: the next one, or a fresh SA if there is none.
    fn refused(&mut self, path: Path, cx: &mut Cx<'_>) {
        let Some(moving) = &mut self.mobility.moving else {
            return;
        };
        moving.paths.retain(|other| *other != path);
        moving.next = 1;
        moving.next_at = cx.now + HEAD_START;
        match moving.paths.first().copied() {
            Some(next) => {
                self.go(next, cx);
                self.mobility.wants_update = true;
                self.mobility.changes = self.mobility.changes.wrapping_add(1);
            }
            None => cx.news.push_back(News::Doubt),
        }
    }

    /// How the gateway sees us, by its answer along the present path: another mapping of a NAT than before means that
    /// its packets go astray until it is told (RFC 4555, section 3.8).
    pub(super) fn compare_mapping(&mut self, path: Path, payloads: &[Payload<'_>], cx: &Cx<'_>) {
        let Some(seen) = mapping(payloads) else { return };
        if self.mobility.is_unsettled() || path != self.channel.path {
            return;
        }
        match self.mobility.mapping.replace(seen) {
            Some(before) if before != seen => {
                // Where a NAT forgets so soon, it must hear of us more often.
                self.mobility.longest_gap = (self.mobility.gap - STEP).max(SHORTEST_GAP);
                self.mobility.gap = SHORTEST_GAP;
                self.mobility.wants_update = true;
                self.mobility.changes = self.mobility.changes.wrapping_add(1);
                self.mobility.moving = Some(Moving {
                    began: cx.now,
                    from: path,
                    means: Means::NatRebinding,
                    paths: vec![path],
                    next: 1,
                    next_at: cx.now,
                    connections: Vec::new(),
                });
            }
            Some(_) => self.mobility.gap = (self.mobility.gap + STEP).min(self.mobility.longest_gap),
            None => {}
        }
    }

    pub(super) fn note_addresses(&mut self, payloads: &[Payload<'_>]) {
        if self.mobility.supported {
            self.mobility.note_others(payloads);
        }
    }

    /// What NAT detection payloads of ours carry: a source that cannot be right, so that the gateway always
    /// encapsulates ESP in UDP, and the gateway's address.
    pub(super) fn nat_payload_data(&self, cx: &mut Cx<'_>) -> ([u8; 20], [u8; 20]) {
        (
            cx.rng.bytes(),
            nat::hash(self.channel.spis, self.channel.path.remote),
        )
    }

    /// What belongs into the answer to a request of the gateway's: its COOKIE2, NAT detection if it detects, and whether
    /// there is a NAT where it allows none. The gateway does not decide which addresses are used, so that its
    /// UPDATE_SA_ADDRESSES changes nothing (RFC 4555, section 3.5).
    pub(super) fn mobility_reply<'a>(
        &self,
        payloads: &[Payload<'a>],
        path: Path,
        source: &'a [u8],
        destination: &'a [u8],
    ) -> Vec<Payload<'a>> {
        let mut reply = Vec::new();
        let mut detects = false;
        for payload in payloads {
            let Payload::Notify(request) = payload else {
                continue;
            };
            match request.kind {
                NotifyType::COOKIE2 => reply.push(notify(NotifyType::COOKIE2, request.data)),
                NotifyType::NAT_DETECTION_SOURCE_IP | NotifyType::NAT_DETECTION_DESTINATION_IP => {
                    detects = true;
                }
                // TCP gets along with NATs (RFC 9329, section 7.1).
                NotifyType::NO_NATS_ALLOWED if !path.is_tcp() && !is_untranslated(request.data, path) => {
                    reply.push(notify(NotifyType::UNEXPECTED_NAT_DETECTED, &[]));
                }
                _ => {}
            }
        }
        if detects {
            reply.push(notify(NotifyType::NAT_DETECTION_SOURCE_IP, source));
            reply.push(notify(NotifyType::NAT_DETECTION_DESTINATION_IP, destination));
        }
        reply
    }
}

/// The gateway's hash of our address.
fn mapping(payloads: &[Payload<'_>]) -> Option<[u8; 20]> {
    notifies(payloads, NotifyType::NAT_DETECTION_DESTINATION_IP)
        .next()
        .and_then(|notify| notify.data.as_array().copied())
}

/// Whether the addresses and ports that the sender wrote into NO_NATS_ALLOWED are those that the packet has here
/// (RFC 4555, section 4.2.5).
fn is_untranslated(data: &[u8], path: Path) -> bool {
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let expected = [
        octets(path.remote.ip()),
        octets(path.local.ip()),
        path.remote.port().to_be_bytes().to_vec(),
        path.local.port().to_be_bytes().to_vec(),
    ];
    data == expected.concat()
}
