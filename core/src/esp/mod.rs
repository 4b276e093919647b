//! Sealing and opening the user's packets: ESP in tunnel mode (RFC 4303).
//!
//! A Child SA is an [`Outbound`] and an [`Inbound`], each of which belongs to whoever moves the packets of its
//! direction: no lock, no allocation, no system call and no log per packet. Datagrams are UDP payloads; the
//! addresses, ports and the non-ESP marker around them are the caller's (RFC 3948).

mod ds;
mod inbound;
mod mss;
mod mtu;
mod outbound;
mod replay;
mod selector;
#[cfg(test)]
mod tests;

pub use ds::{Marking, ds_field, take_ecn};
pub use inbound::Inbound;
pub use mss::clamp_mss;
pub use mtu::{MIN_MTU, fragments, inner_mtu, outer_len, too_big};
pub use outbound::Outbound;
pub use replay::WINDOW;
pub use selector::Selectors;

use crate::crypto::CipherSuite;
use crate::wire::EspSpi;

/// Octets of the SPI and of the low half of the sequence number.
const HEADER: usize = 8;
/// Octets of the pad length and the next header.
const TRAILER: usize = 2;

/// IANA's protocol number of IPv4 in a tunnel.
const IPV4: u8 = 4;
/// IANA's protocol number of IPv6 in a tunnel.
const IPV6: u8 = 41;
/// Dummy packets that hide how much traffic there is (RFC 4303, section 2.6).
const NO_NEXT_HEADER: u8 = 59;

/// After how much traffic an SA should be replaced, and when it must not be used any longer.
///
/// One rule for every cipher. It keeps AES-GCM's and CBC's advantage to an attacker far below 2^-32 at any size
/// of packets (RFC 8645; draft-irtf-cfrg-aead-limits), and leaves the last half for a rekey that is slow.
const SOFT_OCTETS: u64 = 32 << 30;
const HARD_OCTETS: u64 = 64 << 30;
/// After how many octets and packets one direction of an SA is to be replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Octets that the cipher has protected.
    pub octets: u64,
    /// Packets.
    pub packets: u64,
}

impl Limits {
    /// The most octets that may be asked for: what every cipher bears.
    pub const MOST_OCTETS: u64 = SOFT_OCTETS;
    /// The most packets that may be asked for.
    pub const MOST_PACKETS: u64 = SOFT_PACKETS;

    fn bounded(self) -> Self {
        Self {
            octets: self.octets.min(SOFT_OCTETS),
            packets: self.packets,
        }
    }
}

impl Default for Limits {
    /// As late as the cipher and the sequence numbers allow.
    fn default() -> Self {
        Self {
            octets: SOFT_OCTETS,
            packets: u64::MAX,
        }
    }
}

/// Half of the sequence numbers that there are without extended ones.
const SOFT_PACKETS: u64 = 1 << 31;
/// How many forgeries one key may be tried with: 2^36 is what Poly1305 bears (RFC 9001, section 6.6).
const SOFT_FORGERIES: u64 = 1 << 35;
const HARD_FORGERIES: u64 = 1 << 36;

/// Why a packet did not go through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Discard {
    /// The datagram is for another SA.
    UnknownSpi,
    /// The datagram or the inner packet is shorter than its fields say, or cannot be of the negotiated suite.
    Malformed,
    /// The sequence number was seen before.
    Replay,
    /// The sequence number lies below the window, or is none.
    TooOld,
    /// The datagram is not authentic.
    Integrity,
    /// Authentic, but the padding is not 1, 2, 3 and so on (RFC 4303, section 2.4).
    Padding,
    /// Authentic, but neither IPv4, IPv6 nor a dummy, or not the version that it says.
    NextHeader,
    /// A dummy packet, which is to be ignored.
    Dummy,
    /// The inner packet's source or destination cannot come through a tunnel, or it speaks for the local link.
    Martian,
    /// The inner packet is outside the traffic selectors.
    Selector,
    /// The SA has used up its sequence numbers, or what its key may protect.
    Exhausted,
    /// The caller's buffer is too small for the sealed packet.
    Buffer,
}

impl Discard {
    /// Every reason, in the order of the declaration.
    pub const ALL: [Self; 12] = [
        Self::UnknownSpi,
        Self::Malformed,
        Self::Replay,
        Self::TooOld,
        Self::Integrity,
        Self::Padding,
        Self::NextHeader,
        Self::Dummy,
        Self::Martian,
        Self::Selector,
        Self::Exhausted,
        Self::Buffer,
    ];

    /// Whether only the holder of the key can have sent what was discarded: a sign of life, if a strange one.
    #[must_use]
    pub const fn is_authentic(self) -> bool {
        match self {
            Self::Padding | Self::NextHeader | Self::Dummy | Self::Martian | Self::Selector => true,
            Self::UnknownSpi
            | Self::Malformed
            | Self::Replay
            | Self::TooOld
            | Self::Integrity
            | Self::Exhausted
            | Self::Buffer => false,
        }
    }

    /// The reason's name in statistics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::UnknownSpi => "unknown_spi",
            Self::Malformed => "malformed",
            Self::Replay => "replay",
            Self::TooOld => "too_old",
            Self::Integrity => "integrity",
            Self::Padding => "padding",
            Self::NextHeader => "next_header",
            Self::Dummy => "dummy",
            Self::Martian => "martian",
            Self::Selector => "selector",
            Self::Exhausted => "exhausted",
            Self::Buffer => "buffer",
        }
    }
}

/// What went through one direction of an SA, and what did not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Inner packets that went through.
    pub packets: u64,
    /// Octets of these inner packets.
    pub octets: u64,
    discarded: [u64; Discard::ALL.len()],
}

impl Counters {
    /// How many packets were discarded for `reason`.
    #[must_use]
    pub fn discarded(&self, reason: Discard) -> u64 {
        self.discarded.get(reason as usize).copied().unwrap_or(0)
    }

    /// Every reason's name with its count, zeroes too.
    pub fn by_reason(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Discard::ALL
            .into_iter()
            .map(|reason| (reason.name(), self.discarded(reason)))
    }

    fn count(&mut self, inner: Result<usize, Discard>) {
        match inner {
            Ok(len) => {
                self.packets += 1;
                self.octets += len as u64;
            }
            Err(reason) => {
                if let Some(count) = self.discarded.get_mut(reason as usize) {
                    *count += 1;
                }
            }
        }
    }
}

/// The SPI of an ESP datagram: which SA it claims to be for.
#[must_use]
pub fn spi(datagram: &[u8]) -> Option<EspSpi> {
    datagram
        .first_chunk()
        .map(|octets| EspSpi(u32::from_be_bytes(*octets)))
}

/// What a datagram's ICV covers besides the IV and the ciphertext (RFC 4106, section 5; RFC 4303, section 2.2.1).
struct Authenticated {
    octets: [u8; 12],
    extended: bool,
    aead: bool,
}

impl Authenticated {
    const fn new(suite: CipherSuite, extended: bool, spi: EspSpi, sequence: u64) -> Self {
        let [h0, h1, h2, h3, l0, l1, l2, l3] = sequence.to_be_bytes();
        let [s0, s1, s2, s3] = spi.0.to_be_bytes();
        let aead = suite.is_aead();
        let octets = if extended && aead {
            [s0, s1, s2, s3, h0, h1, h2, h3, l0, l1, l2, l3]
        } else {
            [s0, s1, s2, s3, l0, l1, l2, l3, h0, h1, h2, h3]
        };
        Self {
            octets,
            extended,
            aead,
        }
    }

    /// Before the IV: SPI and sequence number, for AEADs with the high half in between.
    fn before(&self) -> &[u8] {
        let (header, _) = self.octets.split_at(HEADER);
        if self.extended && self.aead {
            &self.octets
        } else {
            header
        }
    }

    /// After the ciphertext: for the others, the unsent high half of an extended sequence number.
    fn after(&self) -> &[u8] {
        let (_, high) = self.octets.split_at(HEADER);
        if self.extended && !self.aead { high } else { &[] }
    }
}

/// What the plaintext's length must be a multiple of: four octets at least (RFC 4303, section 2.4).
const fn alignment(suite: CipherSuite) -> usize {
    if suite.block_len() < 4 {
        4
    } else {
        suite.block_len()
    }
}
