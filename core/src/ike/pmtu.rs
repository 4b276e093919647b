//! How large a datagram the path carries, found out by probing (RFC 8899), and with it the MTU of the tunnel.
//!
//! A probe is an INFORMATIONAL request with padding, in one datagram that nobody may fragment. Its answer proves the
//! size. One without an answer gets a short twin, which gets through, so that a lost probe costs the IKE SA no more than a
//! moment. What a probe finds out holds for ESP too: it takes the same ports.

use std::time::Duration;

use super::Cx;
use super::News;
use super::established::{Doing, End, Established};
use crate::crypto::CipherSuite;
use crate::esp::{self, MIN_MTU};
use crate::timer::{Instant, Timer};
use crate::wire::iana::NotifyType;

/// What is left of an IP datagram on the narrowest path: every IPv4 host takes it.
const MIN_PLPMTU: u16 = 576;
/// Larger datagrams are not tried: gateways have buffers.
const LARGEST: u16 = 9000;
/// What the host's word is taken for, if it has none: Ethernet's.
const ETHERNET: u16 = 1500;
/// Sizes that networks have: PPPoE 1492, an IPv6 tunnel 1480, DS-Lite 1460, VXLAN 1450, LTE 1430, WireGuard 1420,
/// more than one of these 1400 and below; and what IPv6 needs.
const USUAL: [u16; 14] = [
    576, 1024, 1280, 1360, 1380, 1400, 1420, 1430, 1440, 1450, 1460, 1480, 1492, 1500,
];
/// A size is given up when so many probes stay unanswered: one that is proven later than one that is not
/// (RFC 8899, section 5.1.2).
const MAX_PROBES: u8 = 2;
const MAX_PROBES_PROVEN: u8 = 3;
/// While large packets go through, what is proven is proven again so often (CONFIRMATION_TIMER of RFC 8899, section
/// 5.1.1).
const CONFIRM_AFTER: Duration = Duration::from_secs(60);
/// After so long a path that is used may carry more than it did (PMTU_RAISE_TIMER).
const RAISE_AFTER: Duration = Duration::from_secs(600);
/// The wait for a probe's answer, unless round trips take longer.
const LEAST_WAIT: Duration = Duration::from_millis(400);
const LONGEST_WAIT: Duration = Duration::from_secs(2);
/// A status that no gateway knows, and that each must therefore ignore (RFC 7296, section 3.10.1); of those for private
/// use.
const PADDING: NotifyType = NotifyType(50_183);

/// What is known of the path.
pub(crate) struct PathMtu {
    /// What packets are sized by: the size of an IP datagram (PLPMTU).
    plpmtu: u16,
    /// What carries the least MTU of IPv6 (BASE_PLPMTU).
    base: u16,
    /// No larger datagram leaves the machine this way, as far as the host knows (MAX_PLPMTU).
    max: u16,
    /// When the largest size was last looked for.
    searched_at: Instant,
    phase: Phase,
}

enum Phase {
    /// The profile says what the MTU inside is.
    Fixed(u16),
    /// The gateway does not answer probes of any size: packets stay as small as they begin, which costs little, while one
    /// that is too large costs everything.
    Blind,
    /// A TCP connection carries datagrams of any size (RFC 9329): there is nothing to find out.
    Stream,
    /// The path is about to change, or nothing is known of it yet.
    Moving,
    Search(Search),
    Complete(Complete),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Search {
    /// The largest size that got through, if one did, and how large the datagram really was.
    passed: Option<(u16, u16)>,
    /// The smallest size that did not.
    lost: u16,
    /// What is tried now (PROBED_SIZE), why, and how often it was.
    size: u16,
    goal: Goal,
    tries: u8,
    /// The host was asked whether it has heard of a smaller path MTU.
    asked: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Goal {
    /// To find the largest size.
    Largest,
    /// To see that the present size gets through still.
    Confirm,
    /// To see whether what somebody told the host is true (a PTB message of RFC 8899, section 4.6).
    Told,
}

#[derive(Clone, Copy, Debug)]
struct Complete {
    since: Instant,
    /// Large packets moved since.
    used_large: bool,
    /// Packets still move, so long after, that it is to be confirmed, or a larger size looked for. An idle tunnel
    /// asks nothing.
    confirm: bool,
    raise: bool,
    /// The host was asked for the way, to look for a larger size.
    raising: bool,
}

/// What is to be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Task {
    Probe(u16),
    AskWay,
}

impl PathMtu {
    pub(super) fn new(fixed: Option<u16>) -> Self {
        Self {
            plpmtu: ETHERNET,
            base: MIN_PLPMTU,
            max: ETHERNET,
            searched_at: Instant::default(),
            phase: fixed.map_or(Phase::Moving, Phase::Fixed),
        }
    }

    /// The largest inner packet.
    fn inner(&self, is_ipv6: bool, suite: CipherSuite) -> u16 {
        match self.phase {
            Phase::Fixed(mtu) => mtu,
            Phase::Blind | Phase::Stream | Phase::Moving | Phase::Search(_) | Phase::Complete(_) => {
                esp::inner_mtu(self.plpmtu, is_ipv6, suite)
            }
        }
    }

    /// The path is about to be another one: from now on packets have a size that nearly every path carries.
    fn leave(&mut self, base: u16) {
        self.base = base;
        self.plpmtu = self.plpmtu.min(base);
        match self.phase {
            Phase::Fixed(_) | Phase::Blind => {}
            Phase::Stream | Phase::Moving | Phase::Search(_) | Phase::Complete(_) => {
                self.phase = Phase::Moving;
            }
        }
    }

    /// A new path is there, on which the host knows of this limit.
    fn arrive(&mut self, base: u16, max: Option<u16>) {
        self.base = base;
        self.max = max.unwrap_or(ETHERNET).clamp(MIN_PLPMTU, LARGEST);
        self.plpmtu = base.min(self.max);
        match self.phase {
            Phase::Fixed(_) => {}
            Phase::Blind | Phase::Stream | Phase::Moving | Phase::Search(_) | Phase::Complete(_) => {
                self.phase = Phase::Search(Search::upward(None, self.max));
            }
        }
    }

    /// A TCP connection is there. TCP cuts what it carries to the size of the path; what we give it has the size of the
    /// host's limit, so that it seldom has to.
    fn arrive_on_stream(&mut self, max: Option<u16>) {
        self.max = max.unwrap_or(ETHERNET).clamp(MIN_PLPMTU, LARGEST);
        self.plpmtu = self.max;
        if !matches!(self.phase, Phase::Fixed(_)) {
            self.phase = Phase::Stream;
        }
    }

    /// Another SA has proven this size on the same path.
    fn believe(&mut self, plpmtu: u16) {
        if let Phase::Search(_) = self.phase {
            self.plpmtu = plpmtu.min(self.max);
            self.confirm();
        }
    }

    /// What the host knows by now of the present path: a limit, a smaller path MTU of which somebody has told it, or
    /// that one is forgotten again.
    fn note_max(&mut self, max: u16) {
        let max = max.clamp(MIN_PLPMTU, LARGEST);
        match &mut self.phase {
            Phase::Fixed(_) | Phase::Stream | Phase::Moving => {}
            Phase::Blind => {
                self.max = max;
                self.plpmtu = self.base.min(max);
            }
            Phase::Search(search) => {
                // Below the base it is not believed: anybody may say so, to make us slow.
                let is_news = max >= self.base && max < search.lost && max != search.size;
                if is_news && search.passed.is_none_or(|(size, _)| max > size) {
                    search.size = max;
                    search.goal = Goal::Told;
                    search.tries = 0;
                }
            }
            Phase::Complete(complete) => {
                let raising = std::mem::take(&mut complete.raising);
                if max < self.plpmtu {
                    // It is looked into; what does not get through is seen then.
                    self.confirm();
                } else {
                    let grew = max > self.max;
                    self.max = max;
                    if (raising || grew) && max > self.plpmtu {
                        self.phase = Phase::Search(Search::upward(Some(self.plpmtu), max));
                    }
                }
            }
        }
    }

    /// Whether the present size gets through is to be seen at once.
    fn confirm(&mut self) {
        self.phase = Phase::Search(Search {
            passed: None,
            lost: self.plpmtu.saturating_add(1),
            size: self.plpmtu,
            goal: Goal::Confirm,
            tries: 0,
            asked: false,
        });
    }

    /// Packets go out and none come in, although the gateway answers: perhaps they are too large.
    pub(super) fn suspect(&mut self) {
        if let Phase::Complete(Complete { used_large: true, .. }) = self.phase {
            self.confirm();
        }
    }

    /// An inner packet went through, either way.
    pub(super) fn note_packet(&mut self, len: usize, now: Instant) {
        if let Phase::Complete(complete) = &mut self.phase {
            complete.raise |= now >= self.searched_at + RAISE_AFTER;
            if len > usize::from(MIN_MTU) {
                complete.used_large = true;
                complete.confirm |= now >= complete.since + CONFIRM_AFTER;
            }
        }
    }

    /// When [`Self::task`] gives one: at once or not at all.
    fn due_at(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Fixed(_) | Phase::Blind | Phase::Stream | Phase::Moving => None,
            Phase::Search(_) => Some(Instant::default()),
            Phase::Complete(complete) => (complete.confirm || complete.raise).then(Instant::default),
        }
    }

    fn task(&mut self, now: Instant) -> Option<Task> {
        match &mut self.phase {
            Phase::Fixed(_) | Phase::Blind | Phase::Stream | Phase::Moving => None,
            Phase::Search(search) => {
                let tells = search.tries > 0 && search.goal != Goal::Told;
                if tells && !std::mem::replace(&mut search.asked, true) {
                    return Some(Task::AskWay);
                }
                Some(Task::Probe(search.size))
            }
            Phase::Complete(complete) if complete.raise => {
                complete.raising = true;
                complete.raise = false;
                self.searched_at = now;
                Some(Task::AskWay)
            }
            Phase::Complete(Complete { confirm: true, .. }) => {
                self.confirm();
                Some(Task::Probe(self.plpmtu))
            }
            Phase::Complete(_) => None,
        }
    }

    /// The gateway has answered a probe of `size` that had `len` octets.
    fn passed(&mut self, size: u16, len: u16, now: Instant) {
        let Phase::Search(search) = &mut self.phase else {
            return;
        };
        if search.size != size {
            return;
        }
        let is_largest = search.size.saturating_add(1) >= search.lost.min(self.max.saturating_add(1));
        match search.goal {
            Goal::Confirm => self.complete(self.plpmtu, now),
            Goal::Largest if !is_largest => {
                search.passed = Some((size, len));
                self.go_on(now);
            }
            Goal::Largest | Goal::Told => {
                self.searched_at = now;
                self.complete(len, now);
            }
        }
    }

    /// A probe of `size` was not answered, although the gateway answers.
    fn lost(&mut self, size: u16, now: Instant) {
        let Phase::Search(search) = &mut self.phase else {
            return;
        };
        if search.size != size {
            return;
        }
        search.tries += 1;
        let max = if search.goal == Goal::Confirm {
            MAX_PROBES_PROVEN
        } else {
            MAX_PROBES
        };
        if search.tries >= max {
            search.lost = search.size;
            if self.plpmtu >= search.lost {
                self.plpmtu = self.plpmtu.min(self.base);
            }
            self.go_on(now);
        }
    }

    /// Chooses the next size between what got through and what did not.
    fn go_on(&mut self, now: Instant) {
        let Phase::Search(search) = &mut self.phase else {
            return;
        };
        let next = match search.passed {
            None if self.base < search.lost => self.base,
            // Nothing of a size that should get through did. One that must get through tells whether that is for its size.
            None if MIN_PLPMTU < search.lost => MIN_PLPMTU,
            None => {
                self.phase = Phase::Blind;
                self.plpmtu = self.base.min(self.max);
                return;
            }
            Some((passed, proven)) => {
                self.plpmtu = self.plpmtu.min(proven);
                let lost = search.lost;
                let between = USUAL.iter().filter(|size| **size > passed && **size < lost);
                let count = between.clone().count();
                let Some(middle) = between.clone().nth(count / 2) else {
                    self.searched_at = now;
                    self.complete(proven, now);
                    return;
                };
                *middle
            }
        };
        search.size = next;
        search.goal = Goal::Largest;
        search.tries = 0;
    }

    fn complete(&mut self, plpmtu: u16, now: Instant) {
        self.plpmtu = plpmtu;
        self.phase = Phase::Complete(Complete {
            since: now,
            used_large: false,
            confirm: false,
            raise: false,
            raising: false,
        });
    }
}

impl Search {
    /// From what is proven to `max`, which is the likeliest.
    const fn upward(proven: Option<u16>, max: u16) -> Self {
        Self {
            passed: match proven {
                Some(proven) => Some((proven, proven)),
                None => None,
            },
            lost: max.saturating_add(1),
            size: max,
            goal: Goal::Largest,
            tries: 0,
            asked: false,
        }
    }
}

impl Established {
    /// The largest inner packet that the path carries, as far as is known: below 1280 octets on some paths.
    pub(crate) fn inner_mtu(&self) -> u16 {
        let is_ipv6 = self.channel.path.remote.is_ipv6();
        self.pmtu.inner(is_ipv6, self.child_suite.cipher)
    }

    /// Whether [`Self::inner_mtu`] is known to be true, and not a beginning.
    pub(crate) fn is_mtu_proven(&self) -> bool {
        matches!(
            self.pmtu.phase,
            Phase::Complete(_) | Phase::Fixed(_) | Phase::Stream
        )
    }

    /// The size of the outer datagrams that were proven here, if they were.
    pub(crate) fn proven_mtu(&self) -> Option<u16> {
        matches!(self.pmtu.phase, Phase::Complete(_)).then_some(self.pmtu.plpmtu)
    }

    /// The SA goes this way from now on, of which the host knows that. Another SA may have proven a size there.
    pub(crate) fn arrive(&mut self, way_mtu: Option<u16>, proven: Option<u16>) {
        if self.channel.path.is_tcp() {
            return self.pmtu.arrive_on_stream(way_mtu);
        }
        self.pmtu.arrive(self.base_mtu(), way_mtu);
        if let Some(proven) = proven {
            self.pmtu.believe(proven);
        }
    }

    /// The SA has moved for good to the path that it tries, of which the host knows that.
    pub(crate) fn settle_on(&mut self, way_mtu: Option<u16>) {
        match self.pmtu.phase {
            Phase::Fixed(_) | Phase::Search(_) | Phase::Complete(_) => {
                if let Some(mtu) = way_mtu {
                    self.pmtu.note_max(mtu);
                }
            }
            Phase::Blind | Phase::Stream | Phase::Moving => self.arrive(way_mtu, None),
        }
    }

    /// What the host knows by now of the way that the SA takes.
    pub(crate) fn note_way_mtu(&mut self, mtu: u16) {
        self.pmtu.note_max(mtu);
    }

    /// The SA tries another path.
    pub(super) fn leave_path_mtu(&mut self) {
        self.pmtu.leave(self.base_mtu());
    }

    fn base_mtu(&self) -> u16 {
        let is_ipv6 = self.channel.path.remote.is_ipv6();
        esp::outer_len(MIN_MTU, is_ipv6, self.child_suite.cipher)
    }

    /// When [`Self::probe_path`] has something to do.
    pub(super) fn probe_at(&self) -> Option<(Instant, Timer)> {
        let due = self.pmtu.due_at().filter(|_| !self.mobility.is_moving());
        Some((due?, Timer::PathMtu))
    }

    /// Sends the next probe, if one is due; the window must be free.
    pub(super) fn probe_path(&mut self, cx: &mut Cx<'_>) -> Result<(), End> {
        if self.mobility.is_moving() {
            return Ok(());
        }
        match self.pmtu.task(cx.now) {
            None => Ok(()),
            Some(Task::AskWay) => {
                cx.news.push_back(News::AskWay);
                Ok(())
            }
            Some(Task::Probe(size)) => {
                let wait = self.channel.round_trip.unwrap_or_default() * 3;
                let wait = wait.clamp(LEAST_WAIT, LONGEST_WAIT);
                let len = self
                    .channel
                    .probe(size, PADDING, wait, cx)
                    .map_err(|error| End::Tell(super::unsendable(&error)))?;
                self.doing = Doing::Probe { size, len };
                Ok(())
            }
        }
    }

    /// The gateway has answered our probe alone, or what was sent with it later.
    pub(super) fn probed(&mut self, size: u16, len: u16, alone: bool, now: Instant) {
        if alone {
            self.pmtu.passed(size, len, now);
        } else {
            self.pmtu.lost(size, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: u16 = 1344;

    fn at(seconds: u64) -> Instant {
        Instant::new(Duration::from_secs(seconds))
    }

    fn begun(max: u16) -> PathMtu {
        let mut mtu = PathMtu::new(None);
        mtu.arrive(BASE, Some(max));
        mtu
    }

    /// Probes as long as there is something to probe, on a path that carries so much; the sizes.
    fn search(mtu: &mut PathMtu, carries: u16, now: Instant) -> Vec<u16> {
        search_in_blocks(mtu, carries, 1, now)
    }

    fn search_in_blocks(mtu: &mut PathMtu, carries: u16, block: u16, now: Instant) -> Vec<u16> {
        let mut sizes = Vec::new();
        while let Some(task) = mtu.task(now) {
            let Task::Probe(size) = task else { continue };
            sizes.push(size);
            assert!(sizes.len() < 20, "{sizes:?}");
            let len = size / block * block;
            if len <= carries {
                mtu.passed(size, len, now);
            } else {
                mtu.lost(size, now);
            }
        }
        sizes
    }

    #[test]
    fn the_largest_is_tried_first() {
        for max in [576, 1280, 1400, 1500, 9000] {
            let mut mtu = begun(max);
            assert_eq!(search(&mut mtu, max, at(1)), [max]);
            assert_eq!(mtu.plpmtu, max);
        }
        assert_eq!(begun(65_535).max, LARGEST);
        assert_eq!(begun(68).max, MIN_PLPMTU);
    }

    #[test]
    fn few_probes_find_the_usual_sizes() {
        for size in USUAL {
            let mut mtu = begun(1500);
            let sizes = search(&mut mtu, size, at(1));
            assert_eq!(mtu.plpmtu, size.max(MIN_PLPMTU), "{sizes:?}");
            assert!(sizes.len() <= 11, "{sizes:?}");
        }
        let mut jumbo = begun(9000);
        search(&mut jumbo, 1500, at(1));
        assert_eq!(jumbo.plpmtu, 1500);
    }

    #[test]
    fn no_more_than_what_was_sent_is_proven() {
        for carries in 576..1501 {
            let mut mtu = begun(1500);
            search_in_blocks(&mut mtu, carries, 16, at(1));
            assert!(mtu.plpmtu <= carries, "{} on {carries}", mtu.plpmtu);
        }
    }

    #[test]
    fn whoever_answers_no_probe_is_not_taken_for_a_narrow_path() {
        let mut mtu = begun(1500);
        assert_eq!(search(&mut mtu, 0, at(1)), [1500, 1500, BASE, BASE, 576, 576]);
        assert_eq!((mtu.plpmtu, mtu.due_at()), (BASE, None));
        // On another path it may be different.
        mtu.arrive(BASE, Some(1500));
        assert_eq!(search(&mut mtu, 1500, at(2)), [1500]);
    }

    #[test]
    fn what_is_proven_is_confirmed_where_it_is_used() {
        let mut mtu = begun(1500);
        search(&mut mtu, 1500, at(0));
        assert_eq!(mtu.due_at(), None);
        mtu.note_packet(1400, at(59));
        mtu.note_packet(1000, at(599));
        assert_eq!(mtu.due_at(), None, "nobody uses it any more");
        mtu.note_packet(1400, at(60));
        assert!(mtu.due_at().is_some());
        assert_eq!(search(&mut mtu, 1500, at(60)), [1500]);
        assert_eq!(mtu.due_at(), None);
        // Three are lost: it is wrong.
        mtu.note_packet(1400, at(120));
        let sizes = search(&mut mtu, 1400, at(120));
        assert_eq!(sizes[..4], [1500, 1500, 1500, BASE]);
        assert_eq!(mtu.plpmtu, 1400);
    }

    #[test]
    fn two_lost_confirmations_are_bad_luck() {
        let mut mtu = begun(1500);
        search(&mut mtu, 1500, at(0));
        mtu.note_packet(1400, at(60));
        for _ in 0..2 {
            while mtu.task(at(60)) != Some(Task::Probe(1500)) {}
            mtu.lost(1500, at(60));
        }
        assert_eq!(search(&mut mtu, 1500, at(60)), [1500]);
        assert_eq!(mtu.plpmtu, 1500);
    }

    #[test]
    fn an_answer_to_another_probe_says_nothing() {
        let mut mtu = begun(1500);
        mtu.passed(1400, 1400, at(1));
        mtu.lost(1400, at(1));
        assert_eq!(mtu.task(at(1)), Some(Task::Probe(1500)));
        mtu.leave(BASE);
        mtu.passed(1500, 1500, at(1));
        mtu.lost(1500, at(1));
        assert_eq!((mtu.plpmtu, mtu.due_at()), (BASE, None));
    }

    #[test]
    fn what_the_host_is_told_is_tried_and_not_believed() {
        let mut mtu = begun(1500);
        assert_eq!(mtu.task(at(1)), Some(Task::Probe(1500)));
        mtu.lost(1500, at(1));
        assert_eq!(mtu.task(at(1)), Some(Task::AskWay));
        mtu.note_max(600); // to make us slow
        assert_eq!(mtu.task(at(1)), Some(Task::Probe(1500)));
        mtu.note_max(1412);
        assert_eq!(search(&mut mtu, 1412, at(1)), [1412]);
        assert_eq!(mtu.plpmtu, 1412);
        mtu.note_max(1300);
        assert_eq!(mtu.plpmtu, 1412);
        assert_eq!(search(&mut mtu, 1412, at(2)), [1412]);
        assert_eq!(mtu.plpmtu, 1412);
        // It forgets what it was told, and more gets through by now.
        mtu.note_packet(100, at(601));
        assert_eq!(mtu.task(at(601)), Some(Task::AskWay));
        mtu.note_max(1500);
        assert_eq!(search(&mut mtu, 1500, at(601)), [1500]);
        assert_eq!(mtu.plpmtu, 1500);
    }
}
