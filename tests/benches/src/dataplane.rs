//! Cutting a large packet into segments, and putting segments together.

use std::hint::black_box;

use peregrine_platform::dataplane::coalesce::{Coalescer, Offers};
use peregrine_platform::dataplane::segment::{Outgoing, Segments};
use peregrine_platform::dataplane::virtio::Header;

use crate::{Case, FAR, NEAR, PACKET, TRAIN, Work, large_packet};

/// Segments of the largest packet that the machine gives to the tunnel device: 64 KiB, less what is too little for one
/// more.
const MOST: usize = 48;

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new("segmentation, 64 KiB of TCP", MOST, PACKET, Cutting::new()),
        Case::new("coalescing, 44 segments into one", TRAIN, PACKET, Joining::new()),
    ]
}

struct Cutting {
    large: Vec<u8>,
    header: Header,
    room: Vec<u8>,
}

impl Cutting {
    fn new() -> Self {
        let (large, header) = large_packet(NEAR, FAR, MOST);
        Self {
            large,
            header,
            room: vec![0; MOST * PACKET],
        }
    }
}

impl Work for Cutting {
    fn run(&mut self) -> usize {
        let segments = segments(&mut self.large, self.header);
        let rooms = self.room.chunks_exact_mut(PACKET);
        for (index, room) in (0..segments.count()).zip(rooms) {
            segments.write(index, room);
            black_box(room);
        }
        segments.count()
    }
}

struct Joining {
    coalescer: Coalescer,
    packets: Vec<u8>,
}

impl Joining {
    fn new() -> Self {
        let (mut large, header) = large_packet(NEAR, FAR, TRAIN);
        let segments = segments(&mut large, header);
        let mut packets = vec![0; TRAIN * PACKET];
        for (index, room) in packets.chunks_exact_mut(PACKET).enumerate() {
            segments.write(index, room);
        }
        Self {
            coalescer: Coalescer::new(),
            packets,
        }
    }
}

impl Work for Joining {
    fn run(&mut self) -> usize {
        for start in (0..TRAIN).map(|index| index * PACKET) {
            self.coalescer.add(start, PACKET);
        }
        let offers = Offers {
            tcp: true,
            udp: false,
        };
        let mut pieces = 0;
        let mut parts_in_all = 0;
        let written = self.coalescer.write(&self.packets, offers, |parts| {
            pieces += 1;
            parts_in_all += black_box(parts).len();
            Ok(())
        });
        // One piece: what is left to do with it, its headers, and each payload.
        let is_one = pieces == 1 && written.lost == 0;
        if is_one { parts_in_all - 2 } else { 0 }
    }
}

fn segments(large: &mut [u8], header: Header) -> Segments<'_> {
    match Outgoing::new(large, header) {
        Ok(Outgoing::Segments(segments)) => segments,
        other => panic!("it is to be cut: {other:?}"),
    }
}
