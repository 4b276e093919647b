//! What is measured of the packet path: its functions, each on its own and all together. [`all`] of it is timed by
//! `./x bench micro` and counted in instructions by `./x bench instructions`.

mod dataplane;
mod esp;
mod train;

use peregrine_platform::dataplane::checksum::pseudo_header;
use peregrine_platform::dataplane::virtio::{Header, Kind};

/// Octets of an inner packet, headers included.
const PACKET: usize = 1400;

/// Packets in one train: what the machine gives to or takes from the tunnel device in one piece.
const TRAIN: usize = 44;

/// IANA's protocol number.
const TCP: u8 = 6;

/// Where the inner packets of the cases without a gateway come from and go to.
const NEAR: [u8; 4] = [10, 3, 0, 1];
const FAR: [u8; 4] = [192, 0, 2, 80];

/// One thing to measure.
pub struct Case {
    /// The function, and with what.
    pub name: String,
    /// How many packets one run handles.
    pub packets: usize,
    /// Octets of an inner packet.
    pub len: usize,
    work: Box<dyn Work>,
}

/// What a case does.
trait Work {
    /// Makes ready for the next run. It is not measured.
    fn prepare(&mut self) {}

    /// Handles the packets. How many came out as they should.
    fn run(&mut self) -> usize;
}

impl Case {
    fn new(name: impl Into<String>, packets: usize, len: usize, work: impl Work + 'static) -> Self {
        Self {
            name: name.into(),
            packets,
            len,
            work: Box::new(work),
        }
    }

    /// Runs once, with what is to be measured within `measure`.
    ///
    /// # Panics
    ///
    /// If not every packet came out as it should: it would be something else that is measured.
    pub fn run<R>(&mut self, measure: impl FnOnce(&mut dyn FnMut()) -> R) -> R {
        self.work.prepare();
        let mut done = None;
        let measured = measure(&mut || done = Some(self.work.run()));
        assert_eq!(
            done,
            Some(self.packets),
            "{}: packets that went through",
            self.name
        );
        measured
    }
}

/// Everything that is measured.
#[must_use]
pub fn all() -> Vec<Case> {
    let mut cases = esp::cases();
    cases.extend(train::cases());
    cases.extend(dataplane::cases());
    cases
}

/// A large TCP packet over IPv4 as the machine gives it to the tunnel device, and what is left to do with it: `segments`
/// packets of [`PACKET`] octets.
fn large_packet(near: [u8; 4], far: [u8; 4], segments: usize) -> (Vec<u8>, Header) {
    const HEADERS: usize = 40;
    let payload = segments * (PACKET - HEADERS);
    let len = (HEADERS + payload) as u16;
    let [l0, l1] = len.to_be_bytes();
    let head = [0x45, 0, l0, l1, 0x12, 0x34, 0x40, 0, 64, TCP, 0, 0];
    let ports_and_numbers = [0x30, 0x39, 0x01, 0xbb, 0x10, 0, 0, 0, 0x20, 0, 0, 0];
    let ack_and_window = [0x50, 0x10, 0x20, 0, 0, 0, 0, 0];
    let mut packet = [&head[..], &near, &far, &ports_and_numbers, &ack_and_window].concat();
    packet.extend((0..payload).map(|at| (at * 31 + at / 256) as u8));
    let pseudo = pseudo_header(&packet, TCP, HEADERS - 20 + payload).expect("a header");
    packet[36..38].copy_from_slice(&pseudo.folded());
    let header = Header {
        checksum: Some((20, 16)),
        kind: Kind::TcpV4,
        ecn: false,
        header_len: HEADERS as u16,
        segment_len: (PACKET - HEADERS) as u16,
    };
    (packet, header)
}
