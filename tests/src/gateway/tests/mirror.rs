//! The gateway against itself: whatever both ends begin at the same time, and whatever is lost, they agree in the end.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::time::Duration;

use peregrine_core::command::Path;
use peregrine_core::crypto::{CipherSuite, Encr, Prf, Secret};
use peregrine_core::esp::Selectors;
use peregrine_core::profile::Identity;
use peregrine_core::proposal::{AdditionalKeyExchanges, EspProposal, EspSuite, IkeProposal, IkeSuite};
use peregrine_core::rng::Rng;
use peregrine_core::timer::Instant;
use peregrine_core::wire::iana::{KeMethod, PrfId};
use peregrine_core::wire::{EspSpi, IkeSpi};

use super::peer::{BEHIND, INNER};
use crate::cast::packet;
use crate::gateway::channel::Channel;
use crate::gateway::child::{Agreed, Child, exactly};
use crate::gateway::keys::{Nonces, SaKeys, Spis};
use crate::gateway::session::{IkeSa, Peer, SaState, Session};
use crate::gateway::{ClientAuth, Gateway, GatewayConfig, Outgoing, Proof, SaSet, Side};

const SUITE: IkeSuite = IkeSuite {
    cipher: CipherSuite {
        encr: Encr::AesGcm16 { bits: 256 },
        integ: None,
    },
    prf: Prf::HmacSha2_256,
    ke: KeMethod::CURVE25519,
    additional: AdditionalKeyExchanges::NONE,
};

/// When, a number to keep order, to which end, along which path, what.
type Delivery = (Instant, u64, usize, Path, Vec<u8>);

/// Two gateways with an IKE SA and a Child SA between them, and a bad network.
struct Mirror {
    now: Instant,
    ends: [Gateway; 2],
    rng: Rng,
    /// Per mille.
    loss: u64,
    repetition: u64,
    /// Milliseconds.
    jitter: u64,
    queue: BinaryHeap<Reverse<Delivery>>,
    serial: u64,
}

/// One end of the first SAs. `initiator` is who began, seen from this end.
fn end(seed: u8, initiator: Side, path: Path, now: Instant) -> Gateway {
    let config = GatewayConfig {
        ike: vec![IkeProposal::parse("aes256gcm16-prfsha256-x25519").unwrap()],
        esp: vec![EspProposal::parse("aes256gcm16-x25519").unwrap()],
        fragment: None,
        dpd: Some(Duration::from_secs(20)),
        ..GatewayConfig::new(
            Identity::Fqdn("end.example.org".into()),
            Proof::Psk(vec![]),
            ClientAuth::Psk(vec![]),
        )
    };
    let mut gateway = Gateway::new(config, seed);
    gateway.echo = false;
    let spis = Spis {
        initiator: IkeSpi([1; 8]),
        responder: IkeSpi([2; 8]),
    };
    let nonces = Nonces {
        initiator: vec![3; 32],
        responder: vec![4; 32],
    };
    let keys = SaKeys::initial(&SUITE, &Secret::new(vec![5; 32]), &nonces, spis);
    let (inner, behind) = (
        exactly(&[INNER.parse().unwrap()]),
        exactly(&[BEHIND.parse().unwrap()]),
    );
    let (local, remote, inbound, outbound) = match initiator {
        Side::Gateway => (inner, behind, 0xaaaa, 0xbbbb),
        Side::Client => (behind, inner, 0xbbbb, 0xaaaa),
    };
    let agreed = Agreed {
        initiator,
        suite: EspSuite {
            cipher: SUITE.cipher,
            esn: false,
            ke: None,
            additional: AdditionalKeyExchanges::NONE,
        },
        inbound: EspSpi(inbound),
        outbound: EspSpi(outbound),
        selectors: Selectors {
            local: local.clone(),
            remote: remote.clone(),
        },
        shared: Vec::new(),
    };
    let child = Child::new(agreed, &keys, &nonces, now);
    let channel = Channel::new(spis, initiator, keys, None, 0);
    let sa = IkeSa::rekeyed(channel, SUITE, SaState::Up, now);
    let mut session = Session::new(1, path, sa, Peer::default(), now);
    session.selectors = (local, remote);
    session.children.push(child);
    gateway.sessions.push(session);
    gateway
}

impl Mirror {
    fn new(seed: u64) -> Self {
        assert_eq!(Prf::from_id(PrfId::HMAC_SHA2_256), Some(SUITE.prf));
        let now = Instant::new(Duration::from_secs(1000));
        let mut octets = [0x4d; 32];
        octets[..8].copy_from_slice(&seed.to_be_bytes());
        let mut rng = Rng::new(octets);
        let path = Path::udp(
            "192.0.2.1:4500".parse().unwrap(),
            "192.0.2.2:4500".parse().unwrap(),
        );
        let [one] = rng.bytes();
        Self {
            now,
            ends: [
                end(one, Side::Gateway, path, now),
                end(!one, Side::Client, swap(path), now),
            ],
            rng,
            loss: 0,
            repetition: 0,
            jitter: 0,
            queue: BinaryHeap::new(),
            serial: 0,
        }
    }

    fn carry(&mut self, from: usize, out: Vec<Outgoing>) {
        for (path, datagram) in out {
            if self.rng.below(1000) < self.loss {
                continue;
            }
            let copies = 1 + u64::from(self.rng.below(1000) < self.repetition);
            for _ in 0..copies {
                let delay = Duration::from_millis(10 + self.rng.below(self.jitter + 1));
                self.serial += 1;
                let item = (
                    self.now + delay,
                    self.serial,
                    1 - from,
                    swap(path),
                    datagram.clone(),
                );
                self.queue.push(Reverse(item));
            }
        }
    }

    fn act(&mut self, end: usize, act: impl FnOnce(&mut Gateway, Instant) -> Vec<Outgoing>) {
        let out = act(&mut self.ends[end], self.now);
        self.carry(end, out);
    }

    fn run(&mut self, span: Duration) {
        let until = self.now + span;
        for _ in 0..100_000 {
            let due = [
                self.queue.peek().map(|Reverse((due, ..))| *due),
                self.ends[0].poll_timeout(),
                self.ends[1].poll_timeout(),
            ];
            let Some(next) = due.into_iter().flatten().min().filter(|due| *due <= until) else {
                self.now = until;
                return;
            };
            self.now = self.now.max(next);
            if due[0] == Some(next) {
                let Some(Reverse((_, _, to, path, datagram))) = self.queue.pop() else {
                    return;
                };
                self.act(to, |gateway, now| gateway.handle(path, &datagram, now));
            } else {
                let end = usize::from(due[1] != Some(next));
                self.act(end, Gateway::handle_timeout);
            }
        }
        panic!("no rest: {:?}", self.ends.each_ref().map(Gateway::poll_timeout));
    }

    /// Something that either end may want, of the first so many kinds.
    fn whim(&mut self, kinds: u64) {
        let end = usize::from(self.rng.below(2) == 1);
        match self.rng.below(kinds) {
            0 | 1 => self.act(end, Gateway::rekey_child),
            2 | 3 => self.act(end, Gateway::rekey_ike),
            4 => self.act(end, Gateway::ask_liveness),
            5 => self.act(end, Gateway::new_child),
            _ => self.act(end, Gateway::delete_child),
        }
    }

    /// The SAs of the second end, as the first one would name them.
    fn sets(&self) -> (SaSet, SaSet) {
        let turned = self.ends[1].sa_set().into_iter().map(|(spis, children)| {
            let children: BTreeSet<_> = children
                .into_iter()
                .map(|(inbound, outbound)| (outbound, inbound))
                .collect();
            (spis, children)
        });
        (self.ends[0].sa_set(), turned.collect())
    }

    /// Each end sends a packet.
    fn send(&mut self) {
        self.act(0, |gateway, _| gateway.send(&packet(INNER, BEHIND, 60)));
        self.act(1, |gateway, _| gateway.send(&packet(BEHIND, INNER, 60)));
    }

    /// Packets go both ways, on whatever Child SAs there are.
    fn carries(&mut self) -> bool {
        self.ends.iter_mut().for_each(|end| end.received.clear());
        self.send();
        self.run(Duration::from_secs(1));
        self.ends.iter().all(|end| end.received.len() == 1)
    }
}

fn swap(path: Path) -> Path {
    Path::udp(path.remote, path.local)
}

#[test]
fn whatever_both_begin_they_end_with_the_same_sas_and_no_packet_is_lost() {
    for seed in 0..150 {
        let mut mirror = Mirror::new(seed);
        mirror.jitter = seed % 4 * 60;
        mirror.repetition = seed % 3 * 100;
        let mut sent = 0;
        for _ in 0..12 {
            mirror.whim(5);
            let pause = mirror.rng.below(3) * 20;
            mirror.run(Duration::from_millis(pause));
            mirror.send();
            sent += 1;
        }
        for _ in 0..200 {
            mirror.run(Duration::from_millis(100));
            mirror.send();
            sent += 1;
        }
        mirror.run(Duration::from_secs(120));
        let (one, other) = mirror.sets();
        assert_eq!(one, other, "seed {seed}");
        let children: Vec<usize> = one.values().map(BTreeSet::len).collect();
        assert_eq!(children, [1], "seed {seed}: one of each");
        let received = mirror.ends.each_ref().map(|end| end.received.len());
        assert_eq!(received, [sent, sent], "seed {seed}: packets");
    }
}

#[test]
fn whatever_both_delete_they_agree_on_what_is_left() {
    let mut left = 0;
    for seed in 0..150 {
        let mut mirror = Mirror::new(seed);
        mirror.jitter = seed % 4 * 60;
        mirror.repetition = seed % 3 * 100;
        mirror.loss = seed % 5 * 50;
        for _ in 0..10 {
            mirror.whim(7);
            let pause = mirror.rng.below(4) * 20;
            mirror.run(Duration::from_millis(pause));
        }
        mirror.run(Duration::from_secs(30));
        mirror.loss = 0;
        mirror.run(Duration::from_secs(240));
        let (one, other) = mirror.sets();
        assert_eq!(one, other, "seed {seed}");
        left += one.values().map(BTreeSet::len).sum::<usize>();
    }
    assert!(left > 100, "only {left} Child SAs were left");
}

#[test]
fn whatever_is_lost_they_agree_in_the_end() {
    let mut lived = 0;
    for seed in 0..150 {
        let mut mirror = Mirror::new(seed);
        mirror.jitter = seed % 4 * 60;
        mirror.repetition = 100;
        mirror.loss = 50 + seed % 6 * 50;
        for _ in 0..8 {
            mirror.whim(5);
            let pause = mirror.rng.below(4) * 20;
            mirror.run(Duration::from_millis(pause));
        }
        mirror.run(Duration::from_secs(30));
        mirror.loss = 0;
        mirror.run(Duration::from_secs(240));
        let (one, other) = mirror.sets();
        assert_eq!(one, other, "seed {seed}");
        if let Some(children) = one.values().next() {
            lived += 1;
            assert_eq!((one.len(), children.len()), (1, 1), "seed {seed}: one of each");
            assert!(mirror.carries(), "seed {seed}");
        }
    }
    assert!(lived > 120, "only {lived} lived");
}
