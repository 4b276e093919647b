//! What the firewall has to let out, and when: the kill switch's policy.
//!
//! While the machine is locked, a question of the client's reaches the host only once the host has confirmed a lock that
//! lets out what the question is about: the gateway's address, a name server, the host of a revocation list. So nothing of
//! ours is lost to our own firewall, and nothing is let out that nobody needs.

use std::collections::{BTreeSet, VecDeque};

use crate::command::{Answer, Ask, Endpoint, Event, FetchId};
use crate::ike::{IKE_PORT, NAT_T_PORT};
use crate::plan::{Closed, Lock, Plan, TunnelConfig};

/// More ends of gateways than these are not let out at once; the oldest goes.
const MOST_GATEWAYS: usize = 64;

/// What is let out of a machine that is locked, whatever the tunnel does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LockPolicy {
    /// The local network may be reached.
    pub(super) lan: bool,
}

/// Something that is asked of a host on the network beside the tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Errand {
    Name(String),
    Fetch(FetchId, u16),
}

/// Holds questions back until the firewall lets out what they are about.
#[derive(Debug, Default)]
pub(super) struct Gate {
    /// None while the machine is open.
    policy: Option<LockPolicy>,
    tunnel: Option<TunnelConfig>,
    /// Ends of gateways that we talk to, the latest last.
    gateways: VecDeque<Endpoint>,
    /// What was let out and has no answer yet.
    errands: Vec<Errand>,
    held: VecDeque<Ask>,
    /// The latest plan that the host was told.
    told: Plan,
    /// The lock of the last plan that the host confirmed; open when it has failed since, as nobody knows.
    in_force: Lock,
    /// The host has confirmed a lock, and no plan without one since.
    is_locked: bool,
    /// The latest plan failed: the same may have to be told again.
    has_failed: bool,
    /// The locks that it was told since: each may be in force by now.
    unconfirmed: Vec<Lock>,
}

impl Gate {
    /// Locks the machine, or lifts the lock. What was let out for an earlier connection is not any more.
    pub(super) fn set(&mut self, policy: Option<LockPolicy>) {
        self.policy = policy;
        self.gateways.clear();
        self.held.clear();
    }

    /// The machine is as this says.
    pub(super) fn begin(&mut self, lock: &Lock) {
        self.policy = match lock {
            Lock::Open => None,
            Lock::Closed(closed) => Some(LockPolicy { lan: closed.lan }),
        };
        self.told.lock = lock.clone();
        self.in_force = lock.clone();
        self.is_locked = self.policy.is_some();
    }

    pub(super) const fn policy(&self) -> Option<LockPolicy> {
        self.policy
    }

    /// Whether the machine was locked, and is not known to be open since.
    pub(super) const fn is_locked(&self) -> bool {
        self.is_locked
    }

    /// The next event that may go out. Plans go out with the lock of the moment, and there is one more whenever only the
    /// lock is to change.
    pub(super) fn next(&mut self, events: &mut VecDeque<Event>) -> Option<Event> {
        while let Some(event) = events.pop_front() {
            match event {
                Event::Plan(plan) => {
                    self.tunnel = plan.tunnel;
                    return Some(self.tell());
                }
                Event::Ask(ask) if !self.may_go(&ask) => self.held.push_back(ask),
                Event::Ask(ask) => {
                    self.errands.extend(errand(&ask));
                    return Some(Event::Ask(ask));
                }
                event @ (Event::Release(_) | Event::Status(_) | Event::Happened(_)) => return Some(event),
            }
        }
        let is_needed = self.has_failed && !self.held.is_empty();
        (is_needed || self.lock() != self.told.lock).then(|| self.tell())
    }

    /// The host has answered.
    pub(super) fn hear(&mut self, answer: &Answer, events: &mut VecDeque<Event>) {
        let done = |errand: &Errand| match (errand, answer) {
            (Errand::Name(asked), Answer::Resolved { name, .. }) => asked == name,
            (Errand::Fetch(asked, _), Answer::Fetched(id, _)) => asked == id,
            _ => false,
        };
        if let Some(at) = self.errands.iter().position(done) {
            self.errands.swap_remove(at);
        }
        match answer {
            Answer::Applied(Ok(_)) => {
                self.unconfirmed.clear();
                self.has_failed = false;
                self.in_force = self.told.lock.clone();
                self.is_locked = self.in_force != Lock::Open;
                for ask in self.held.drain(..).rev() {
                    events.push_front(Event::Ask(ask));
                }
            }
            // What became of the firewall is not known.
            Answer::Applied(Err(_)) => {
                self.unconfirmed.clear();
                self.has_failed = true;
                self.in_force = Lock::Open;
            }
            _ => {}
        }
    }

    /// Whether the firewall lets out what this is about; if not, it will.
    fn may_go(&mut self, ask: &Ask) -> bool {
        if self.policy.is_none() {
            // Until the lock is lifted, nothing of ours gets out by any other hole.
            return !self.is_locked;
        }
        let needed = match ask {
            Ask::Prompt(_) => return true,
            Ask::Bind(remote) => {
                self.gateways.retain(|known| known != remote);
                self.gateways.push_back(*remote);
                if self.gateways.len() > MOST_GATEWAYS {
                    self.gateways.pop_front();
                }
                Closed {
                    gateways: BTreeSet::from([*remote]),
                    ..Closed::default()
                }
            }
            Ask::Resolve(_) => Closed {
                names: true,
                ..Closed::default()
            },
            Ask::Fetch(fetch) => Closed {
                names: true,
                fetches: BTreeSet::from([fetch.url.port()]),
                ..Closed::default()
            },
        };
        let mut locks = self.unconfirmed.iter().chain([&self.in_force]);
        locks.all(|lock| lets(lock, &needed))
    }

    /// The lock that is wanted now.
    fn lock(&self) -> Lock {
        let Some(LockPolicy { lan }) = self.policy else {
            return Lock::Open;
        };
        let held = self.held.iter().filter_map(errand);
        let errands: Vec<Errand> = self.errands.iter().cloned().chain(held).collect();
        let port = |errand: &Errand| match errand {
            Errand::Fetch(_, port) => Some(*port),
            Errand::Name(_) => None,
        };
        Lock::Closed(Closed {
            gateways: self.gateways.iter().copied().flat_map(ends).collect(),
            names: !errands.is_empty(),
            fetches: errands.iter().filter_map(port).collect(),
            lan,
        })
    }

    fn tell(&mut self) -> Event {
        self.has_failed = false;
        self.told = Plan {
            tunnel: self.tunnel.clone(),
            lock: self.lock(),
        };
        if self.unconfirmed.last() != Some(&self.told.lock) {
            self.unconfirmed.push(self.told.lock.clone());
        }
        Event::Plan(self.told.clone())
    }
}

fn errand(ask: &Ask) -> Option<Errand> {
    match ask {
        Ask::Resolve(name) => Some(Errand::Name(name.clone())),
        Ask::Fetch(fetch) => Some(Errand::Fetch(fetch.id, fetch.url.port())),
        Ask::Bind(_) | Ask::Prompt(_) => None,
    }
}

/// The ends at which a gateway is that was asked for at one: with UDP, both ports of IKE (RFC 7296, section 2.23).
fn ends(asked: Endpoint) -> BTreeSet<Endpoint> {
    let mut ends = BTreeSet::from([asked]);
    let mut address = asked.address;
    if asked == Endpoint::udp(address) && [IKE_PORT, NAT_T_PORT].contains(&address.port()) {
        for port in [IKE_PORT, NAT_T_PORT] {
            address.set_port(port);
            ends.insert(Endpoint::udp(address));
        }
    }
    ends
}

/// Whether a lock lets this out. With none, everything gets out, but not only this: it is waited for.
fn lets(lock: &Lock, needed: &Closed) -> bool {
    match lock {
        Lock::Open => false,
        Lock::Closed(closed) => {
            needed.gateways.is_subset(&closed.gateways)
                && needed.fetches.is_subset(&closed.fetches)
                && (closed.names || !needed.names)
        }
    }
}
