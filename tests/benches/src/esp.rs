//! One packet after another through a Child SA: sealing and opening, the replay window, the traffic selectors.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use peregrine_core::crypto::{CipherSuite, Encr, Integ, PacketKey};
use peregrine_core::esp::{Discard, Inbound, Outbound, Selectors};
use peregrine_core::wire::{EspSpi, TrafficSelector};

use crate::{Case, FAR, NEAR, PACKET, Work};

const SPI: EspSpi = EspSpi(0x0102_0304);

const GCM: CipherSuite = CipherSuite {
    encr: Encr::AesGcm16 { bits: 256 },
    integ: None,
};
const CHACHA: CipherSuite = CipherSuite {
    encr: Encr::ChaCha20Poly1305,
    integ: None,
};
const CBC: CipherSuite = CipherSuite {
    encr: Encr::AesCbc { bits: 256 },
    integ: Some(Integ::HmacSha2_256_128),
};

/// Packets in one run: enough for the clock that is read before and after.
const MANY: usize = 64;
/// The same where no cipher runs, or hardly.
const VERY_MANY: usize = 1024;
/// Octets of the smallest UDP packet.
const SMALLEST: usize = 28;

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (suite, name) in [
        (GCM, "AES-256-GCM"),
        (CHACHA, "ChaCha20-Poly1305"),
        (CBC, "AES-256-CBC-HMAC-SHA2-256"),
    ] {
        let seal = Sealing::new(suite, everything(), PACKET, MANY);
        cases.push(Case::new(format!("seal a packet, {name}"), MANY, PACKET, seal));
        let open = Opening::new(suite, PACKET, (0..MANY).collect());
        cases.push(Case::new(format!("open a packet, {name}"), MANY, PACKET, open));
    }

    let in_order = Opening::new(GCM, SMALLEST, (0..VERY_MANY).collect());
    cases.push(Case::new(
        "replay window, in order",
        VERY_MANY,
        SMALLEST,
        in_order,
    ));
    // An odd factor gives each place once.
    let mixed = (0..VERY_MANY).map(|at| at * 389 % VERY_MANY).collect();
    let mixed = Opening::new(GCM, SMALLEST, mixed);
    cases.push(Case::new("replay window, reordered", VERY_MANY, SMALLEST, mixed));
    let repeated = Repeats::new();
    cases.push(Case::new(
        "replay window, duplicates",
        VERY_MANY,
        SMALLEST,
        repeated,
    ));

    for (count, name) in [(1, "1 selector"), (64, "the last of 64 selectors")] {
        let sealing = Sealing::new(GCM, selectors(count, true), SMALLEST, VERY_MANY);
        cases.push(Case::new(
            format!("selectors, {name}"),
            VERY_MANY,
            SMALLEST,
            sealing,
        ));
    }
    let refused = Sealing {
        expected: Err(Discard::Selector),
        ..Sealing::new(GCM, selectors(64, false), SMALLEST, VERY_MANY)
    };
    cases.push(Case::new("selectors, none of 64", VERY_MANY, SMALLEST, refused));
    cases
}

/// Sealing the same packet again and again.
struct Sealing {
    outbound: Outbound,
    packet: Vec<u8>,
    room: Vec<u8>,
    times: usize,
    expected: Result<usize, Discard>,
}

impl Sealing {
    fn new(suite: CipherSuite, selectors: Arc<Selectors>, len: usize, times: usize) -> Self {
        let outbound = Outbound::new(SPI, key(suite), true, selectors);
        let sealed = outbound.sealed_len(len);
        Self {
            outbound,
            packet: packet(len),
            room: vec![0; sealed],
            times,
            expected: Ok(sealed),
        }
    }
}

impl Work for Sealing {
    fn run(&mut self) -> usize {
        let packet = black_box(&*self.packet);
        (0..self.times)
            .filter(|_| {
                let write = |room: &mut [u8]| room.copy_from_slice(packet);
                let sealed = self.outbound.seal_written(packet.len(), write, &mut self.room);
                black_box(sealed) == self.expected
            })
            .count()
    }
}

/// Opening fresh datagrams.
struct Opening {
    outbound: Outbound,
    inbound: Inbound,
    packet: Vec<u8>,
    datagrams: Vec<Vec<u8>>,
    /// Where the datagrams come in, in the order in which they were sealed.
    order: Vec<usize>,
}

impl Opening {
    fn new(suite: CipherSuite, len: usize, order: Vec<usize>) -> Self {
        let outbound = Outbound::new(SPI, key(suite), true, everything());
        let datagrams = vec![vec![0; outbound.sealed_len(len)]; order.len()];
        Self {
            outbound,
            inbound: Inbound::new(SPI, key(suite), true, everything()),
            packet: packet(len),
            datagrams,
            order,
        }
    }
}

impl Work for Opening {
    fn prepare(&mut self) {
        for place in &self.order {
            let datagram = &mut self.datagrams[*place];
            self.outbound
                .seal(&self.packet, datagram)
                .expect("it can be sealed");
        }
    }

    fn run(&mut self) -> usize {
        self.datagrams
            .iter_mut()
            .map(|datagram| black_box(self.inbound.open(datagram)).is_ok())
            .filter(|opened| *opened)
            .count()
    }
}

/// One datagram that came before.
struct Repeats {
    inbound: Inbound,
    datagram: Vec<u8>,
}

impl Repeats {
    fn new() -> Self {
        let mut opening = Opening::new(GCM, SMALLEST, vec![0]);
        opening.prepare();
        let datagram = opening.datagrams[0].clone();
        assert_eq!(opening.run(), 1);
        Self {
            inbound: opening.inbound,
            datagram,
        }
    }
}

impl Work for Repeats {
    fn run(&mut self) -> usize {
        (0..VERY_MANY)
            .filter(|_| black_box(self.inbound.open(black_box(&mut self.datagram))) == Err(Discard::Replay))
            .count()
    }
}

fn key(suite: CipherSuite) -> PacketKey {
    let encr: Vec<u8> = (0x80..).take(suite.encr_key_len()).collect();
    let integ: Vec<u8> = (0x10..).take(suite.integ_key_len()).collect();
    PacketKey::new(suite, &encr, &integ).expect("the keys are as long as the suite says")
}

/// A UDP packet from [`NEAR`] to [`FAR`].
fn packet(len: usize) -> Vec<u8> {
    let [near, far] = [NEAR, FAR].map(|address| Ipv4Addr::from(address).to_string());
    peregrine_tests::cast::packet(&near, &far, len)
}

fn everything() -> Arc<Selectors> {
    let any = vec![TrafficSelector::ANY_V4];
    Arc::new(Selectors {
        local: any.clone(),
        remote: any,
    })
}

/// `count` selectors at the far end, of which none but the last may be for [`FAR`].
fn selectors(count: u8, last_is_far: bool) -> Arc<Selectors> {
    let net = |start: [u8; 4], end: [u8; 4]| TrafficSelector::addresses(start.into(), end.into());
    let others = (0..count).map(|at| net([172, 16, at, 0], [172, 16, at, 255]));
    let mut remote: Vec<_> = others.collect();
    if last_is_far && let Some(last) = remote.last_mut() {
        *last = net([192, 0, 2, 0], [192, 0, 2, 255]);
    }
    let near = IpAddr::from(NEAR);
    Arc::new(Selectors {
        local: vec![TrafficSelector::addresses(near, near)],
        remote,
    })
}
