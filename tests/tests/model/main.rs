//! Random histories of a tunnel: a seed becomes a profile, a gateway and a sequence of what may happen to both; then the
//! faults stop, and a quiet network must lead to a tunnel that works and to ends that agree.
//!
//! `PEREGRINE_SEEDS=FIRST..LAST` runs those seeds instead of the first [`SEEDS`]. A seed that fails prints its history.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]
#![expect(
    clippy::print_stdout,
    reason = "whoever runs many histories wants to know how they went"
)]

mod checks;
mod dice;

use std::cell::{Cell, RefCell};
use std::fmt::Write as _;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use checks::{Checks, Complaints, ERRORS, MARK};
use dice::{Dice, MS, SECOND, Step, networks, v4, v6};
use peregrine_core::command::{Cause, RekeyKind, State};
use peregrine_core::profile::Host;
use peregrine_core::timer::Instant;
use peregrine_core::wire::iana::NotifyType;
use peregrine_tests::cast::{Cast, packet};
use peregrine_tests::gateway::Gateway;
use peregrine_tests::world::World;

/// How many seeds are run by default.
const SEEDS: u64 = 10_000;
/// How many histories run at once.
const THREADS: usize = 2;
/// After so many failures it is enough.
const MAX_FAILURES: usize = 8;

/// A quiet network leads to a tunnel that works within this time. A gateway that was silent for long is tried again
/// once a minute, give or take a tenth, and what it does not know any more is given up after half a minute.
const CONVERGENCE: Duration = Duration::from_secs(120);
/// From then on both ends have the same SAs within this time. The gateway gives the client 30 s for a Delete that is the
/// client's, and waits 30 s for an answer to its own; it asks old IKE SAs whether anybody is there.
const AGREEMENT: Duration = Duration::from_secs(120);

thread_local! {
    /// What the last panic said.
    static PANIC: Cell<Option<String>> = const { Cell::new(None) };
}

/// One history.
struct Story {
    world: World,
    checks: Checks,
    log: String,
    serial: u64,
    began: Instant,
    may_be_refused: bool,
}

impl Story {
    fn begin(seed: u64, cast: &Cast, dice: &mut Dice) -> Self {
        let (config, profile) = dice.ends(cast);
        let mut log = String::new();
        let _ = writeln!(
            log,
            "client: mobike {}, pfs required {}, rekey {:?} and {:?}, dpd {:?}, rehearse {}, {:?}\n\
             gateway: mobike {}, {:?}, lives {:?} and {:?}, dpd {:?}, rekey after update {}, check routability {}, complain {}, \
             {:?}, sticky {}, lifetime {:?}, tickets {:?} (survive: {}), fragment {:?}, addresses {:?}",
            profile.ike.mobike,
            profile.child.require_pfs,
            profile.child.rekey,
            profile.ike.rekey,
            profile.ike.dpd,
            profile.child.rehearse,
            profile.gateway.host,
            config.mobike,
            config.pfs,
            config.child_life,
            config.ike_life,
            config.dpd,
            config.rekey_after_update,
            config.check_routability,
            config.complain,
            config.unique,
            config.sticky,
            config.auth_lifetime,
            config.tickets,
            config.tickets_survive,
            config.fragment,
            config.addresses,
        );
        let mut world = World::new(Gateway::new(config, 0x47), seed);
        world.names.insert("vpn.example.org".into(), vec![v4(), v6()]);
        let mut first = dice.pick(&networks());
        if first.v4.is_none() && matches!(profile.gateway.host, Host::Address(_)) {
            first = networks().swap_remove(0);
        }
        let _ = writeln!(log, "in {first:?}");
        world.link.interfaces = vec![first];
        world.connect_and_wait(profile, cast.credentials()).unwrap();
        Self {
            began: world.now,
            world,
            checks: Checks::default(),
            log,
            serial: 0,
            may_be_refused: false,
        }
    }

    fn note(&mut self, what: &str) {
        let status = self.world.status();
        let at = self.world.now.since(self.began);
        let why = status.why.map_or_else(String::new, |why| format!(" ({why:?})"));
        let _ = writeln!(
            self.log,
            "{:>12.3} {:?}{why}, {} IKE SAs there: {what}",
            at.as_secs_f64(),
            status.state,
            self.world.gateway.sas()
        );
    }

    fn run(&mut self, span: Duration) {
        self.world.run(span);
        self.checks.look(&self.world);
    }

    /// A packet that there was none like before, every other one as large as the tunnel allows.
    fn packet(&mut self, up: bool) -> Option<Vec<u8>> {
        let inner = self.world.status().addresses.first()?.addr().to_string();
        let mut packet = if up {
            let mtu = self.world.client.inner_mtu().map_or(64, |mtu| mtu.octets);
            let len = if self.serial.is_multiple_of(2) { mtu } else { 64 };
            packet(&inner, "10.9.9.9", len.into())
        } else {
            packet("10.9.9.9", &inner, 64)
        };
        self.serial += 1;
        packet[28..44].copy_from_slice(MARK);
        packet[44..52].copy_from_slice(&self.serial.to_be_bytes());
        Some(packet)
    }

    /// Sends a packet; what it carries.
    fn send_up(&mut self) -> Option<Vec<u8>> {
        let packet = self.packet(true)?;
        self.world.send(&packet);
        Some(packet[28..].to_vec())
    }

    fn send_down(&mut self) -> Option<Vec<u8>> {
        let packet = self.packet(false)?;
        self.world.gateway_does(|gateway, _| gateway.send(&packet));
        Some(packet[28..].to_vec())
    }

    fn gateway_rekeys(&mut self, kind: RekeyKind) {
        self.world.gateway_does(|gateway, now| match kind {
            RekeyKind::IkeSa => gateway.rekey_ike(now),
            RekeyKind::ChildSa => gateway.rekey_child(now),
        });
    }

    fn act(&mut self, step: Step) {
        let world = &mut self.world;
        match step {
            Step::Send(count) => (0..count).for_each(|_| drop(self.send_up())),
            Step::GatewaySends(count) => (0..count).for_each(|_| drop(self.send_down())),
            Step::Rekey(kind) => world.rekey(kind),
            Step::GatewayRekeys(kind) => self.gateway_rekeys(kind),
            Step::BothRekey(ours, theirs, apart) => {
                world.rekey(ours);
                world.run(apart);
                self.gateway_rekeys(theirs);
            }
            Step::GatewayDeletesChild => world.gateway_does(Gateway::delete_child),
            Step::GatewayDeletesIke => world.gateway_does(Gateway::delete_ike),
            // A gateway that forgets a child and never says so is not found out before the next rekeying.
            Step::GatewayLosesChildren => world.gateway.lose_children(),
            Step::GatewayRestarts => world.gateway.restart(),
            Step::GatewayIsSilent(span) => {
                world.gateway.silent = true;
                world.run(span / 2);
                drop(self.send_up());
                self.run(span / 2);
                self.world.gateway.silent = false;
            }
            Step::GatewayAsksLiveness => world.gateway_does(Gateway::ask_liveness),
            Step::GatewayAnnouncesLifetime(span) => {
                world.gateway_does(|gateway, now| gateway.announce_lifetime(span, now));
            }
            Step::GatewayAnnouncesAddresses(list) => {
                world.gateway_does(|gateway, now| gateway.announce_addresses(list, now));
            }
            Step::GatewayRefusesUs(span) => {
                self.may_be_refused = true;
                world.gateway.config.refuse_auth = Some(NotifyType::AUTHENTICATION_FAILED);
                world.run(span);
                world.gateway.config.refuse_auth = None;
            }
            Step::GatewayRedirects(to) => {
                world.gateway_does(|gateway, now| gateway.redirect(&to, now));
            }
            Step::Move(to) => world.move_to(to),
            Step::Join(to) => {
                world.link.interfaces.retain(|present| present.name != to.name);
                world.join(to);
            }
            Step::Leave(name) => world.leave(&name),
            Step::Offline(span) => {
                let before = world.link.interfaces.clone();
                world.go_offline();
                world.run(span);
                for interface in before.into_iter().rev() {
                    self.world.join(interface);
                }
            }
            Step::BlackHole(name) => world.black_hole(&name),
            Step::Blocked(address) => world.link.blocked = address.into_iter().collect(),
            Step::Transports(name, no_udp, no_tcp) => {
                let here = world.link.interfaces.iter_mut().filter(|it| it.name == name);
                here.for_each(|it| (it.no_udp, it.no_tcp) = (no_udp, no_tcp));
            }
            Step::ConnectionsReset => world.reset_connections(),
            Step::ConnectionsStuck => world.stick_connections(),
            Step::Cut(way, octets) => world.cut = Some((way, octets)),
            Step::NatForgets => world.rebind_nat(),
            Step::NatPatience(patience) => world.link.nat_patience = patience,
            Step::Sleep(span) => world.sleep(span),
            Step::Loss(loss) => world.link.loss = loss,
            Step::Repetition(repetition) => world.link.repetition = repetition,
            Step::Damage(damage) => {
                // Nothing protects IKE_SA_INIT before AUTH, which fails then.
                self.may_be_refused |= damage > 0;
                world.link.damage = damage;
            }
            Step::Jitter(jitter) => world.link.jitter = jitter,
            Step::Latency(latency) => world.link.latency = latency,
            Step::Pause(span) => world.run(span),
        }
    }

    /// The faults stop.
    fn quiet_down(&mut self, dice: &mut Dice) {
        let link = &mut self.world.link;
        (link.loss, link.repetition, link.damage) = (0, 0, 0);
        (link.jitter, link.latency) = (Duration::ZERO, 10 * MS);
        link.nat_patience = None;
        link.blocked.clear();
        for interface in &mut link.interfaces {
            interface.is_dead = false;
            // What UDP cannot do the other one can, and most networks let both through.
            interface.no_tcp = false;
            interface.no_udp &= dice.one_in(2);
        }
        self.world.cut = None;
        // What is on its way arrives.
        self.run(2 * SECOND);
        let link = &mut self.world.link;
        let is_reachable = link.interfaces.iter().any(|interface| interface.v4.is_some());
        if !is_reachable || dice.one_in(3) {
            let to = networks().swap_remove(dice.pick(&[0, 1, 3, 4]));
            let what = format!("the last move, to {}", to.name);
            self.world.move_to(to);
            self.note(&what);
        } else {
            self.note("quiet");
        }
    }

    /// Sends a packet a second until one goes through and its answer comes back; how long that took.
    fn converge(&mut self) -> Option<Duration> {
        let begun = self.world.now;
        while self.world.now.since(begun) <= CONVERGENCE {
            let sent = self.send_up();
            let is_back = |world: &World| {
                let last = world.received.last().map(|packet| &packet[28..]);
                last.is_some() && last == sent.as_deref()
            };
            self.world.run_until(SECOND, |world| match world.status().state {
                State::Idle => true,
                State::Connected => is_back(world),
                _ => false,
            });
            self.checks.look(&self.world);
            match self.world.status().state {
                State::Idle => return None,
                State::Connected if is_back(&self.world) => return Some(self.world.now.since(begun)),
                _ => {}
            }
        }
        self.note("too late");
        panic!(
            "nothing goes through {CONVERGENCE:?} after the last fault: {:?}",
            self.world.status()
        );
    }

    /// Whether a packet each way goes through, and an echo.
    fn goes_through(&mut self) -> bool {
        let (up, down) = (self.send_up(), self.send_down());
        self.run(SECOND);
        let has = |packets: &[Vec<u8>], what: &Option<Vec<u8>>| {
            packets
                .iter()
                .any(|packet| Some(&packet[28..]) == what.as_deref())
        };
        let (world, gateway) = (&self.world.received, &self.world.gateway.received);
        has(gateway, &up) && has(world, &up) && has(world, &down)
    }

    /// All to the end; how long it took for the tunnel to work again, unless the gateway refuses our credential.
    fn tell(&mut self, dice: &mut Dice) -> Option<Duration> {
        let count = dice.between(10..31);
        for _ in 0..count {
            let step = dice.step();
            self.note(&format!("{step:?}"));
            self.act(step);
            let pause = dice.pause();
            self.run(pause);
            if self.world.status().state == State::Idle {
                break;
            }
        }
        self.quiet_down(dice);
        let Some(took) = self.converge() else {
            let cause = self.world.failure().map(|failure| failure.cause);
            assert!(
                self.may_be_refused && cause == Some(Cause::AuthenticationFailed),
                "a failure that is not final: {cause:?}"
            );
            return None;
        };
        self.note("works again");
        // When the client has taken leave of old IKE SAs, the gateway finds out which ones nobody is behind.
        self.run(5 * SECOND);
        self.world.gateway_does(Gateway::ask_liveness);
        let agree = (0..AGREEMENT.as_secs() / 10).any(|_| {
            // Whoever is given up at this moment notices by its packets.
            self.send_up();
            self.world.run_until(10 * SECOND, World::ends_agree)
        });
        self.checks.look(&self.world);
        self.note("the end");
        let world = &self.world;
        assert!(
            agree,
            "the ends do not agree: {:?} here, {:?} there",
            world.client_sa_set(),
            world.gateway.sa_set()
        );
        // A gateway that deletes SAs as they come of age may do so just now, while the client pauses after attempts that
        // the faults made fail: for a minute and a tenth at most.
        let goes_through = (0..90).any(|_| self.goes_through());
        assert!(goes_through, "packets do not go through, or only one way");
        Some(took)
    }
}

/// The seeds to run.
fn seeds() -> Range<u64> {
    let Ok(text) = std::env::var("PEREGRINE_SEEDS") else {
        return 0..SEEDS;
    };
    let (first, last) = text.split_once("..").expect("PEREGRINE_SEEDS=FIRST..LAST");
    first.parse().expect("the first seed")..last.parse().expect("the seed after the last")
}

/// Runs a history; how long its tunnel took to work again, or how it failed.
fn run(seed: u64, cast: &Cast) -> Result<Option<Duration>, String> {
    ERRORS.with_borrow_mut(Vec::clear);
    let mut dice = Dice::new(seed);
    let log = RefCell::new(String::new());
    let told = catch_unwind(AssertUnwindSafe(|| {
        let mut story = Story::begin(seed, cast, &mut dice);
        let told = catch_unwind(AssertUnwindSafe(|| story.tell(&mut dice)));
        log.replace(std::mem::take(&mut story.log));
        told
    }));
    match told {
        Ok(Ok(took)) => Ok(took),
        Ok(Err(_)) | Err(_) => Err(format!(
            "{}{}\nrepeat with PEREGRINE_SEEDS={seed}..{}",
            log.into_inner(),
            PANIC.take().unwrap_or_default(),
            seed + 1
        )),
    }
}

#[test]
fn whatever_happens_a_quiet_network_leads_to_a_tunnel_that_works() {
    let cast = Cast::default();
    let seeds = seeds();
    let next = AtomicU64::new(seeds.start);
    let failures = Mutex::new(Vec::new());
    let times = Mutex::new(Vec::new());
    std::panic::set_hook(Box::new(|info| PANIC.set(Some(info.to_string()))));
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                tracing::subscriber::with_default(Complaints, || {
                    loop {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if seed >= seeds.end || failures.lock().unwrap().len() >= MAX_FAILURES {
                            return;
                        }
                        match run(seed, &cast) {
                            Ok(took) => times.lock().unwrap().push(took),
                            Err(failure) => {
                                println!("---- seed {seed}\n{failure}");
                                failures.lock().unwrap().push(seed);
                            }
                        }
                    }
                });
            });
        }
    });
    let _ = std::panic::take_hook();
    let (mut failures, times) = (failures.into_inner().unwrap(), times.into_inner().unwrap());
    failures.sort_unstable();
    let mut works: Vec<Duration> = times.iter().flatten().copied().collect();
    works.sort();
    let at = |share: usize| works.get(works.len().saturating_sub(1) * share / 100).copied();
    println!(
        "{} histories, {} refused; working again after {:?}, p90 {:?}, p99 {:?}, at most {:?}",
        times.len(),
        times.len() - works.len(),
        at(50),
        at(90),
        at(99),
        at(100)
    );
    assert!(failures.is_empty(), "seeds that failed: {failures:?}");
}
