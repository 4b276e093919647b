#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::sync::Arc;

use hex_literal::hex;

use super::*;
use crate::crypto::{Encr, Integ, PacketKey};
use crate::wire::TrafficSelector;

pub(super) const CHACHA: CipherSuite = CipherSuite {
    encr: Encr::ChaCha20Poly1305,
    integ: None,
};
pub(super) const GCM: CipherSuite = CipherSuite {
    encr: Encr::AesGcm16 { bits: 256 },
    integ: None,
};
pub(super) const CBC: CipherSuite = CipherSuite {
    encr: Encr::AesCbc { bits: 256 },
    integ: Some(Integ::HmacSha2_256_128),
};
const SUITES: [CipherSuite; 6] = [
    GCM,
    CHACHA,
    CBC,
    CipherSuite {
        encr: Encr::AesCbc { bits: 128 },
        integ: Some(Integ::HmacSha1_96),
    },
    CipherSuite {
        encr: Encr::AesCbc { bits: 256 },
        integ: Some(Integ::HmacSha2_384_192),
    },
    CipherSuite {
        encr: Encr::AesCbc { bits: 256 },
        integ: Some(Integ::HmacSha2_512_256),
    },
];
const SPI: EspSpi = EspSpi(0x0102_0304);

fn key(suite: CipherSuite) -> PacketKey {
    let encr: Vec<u8> = (0x80..).take(suite.encr_key_len()).collect();
    let integ: Vec<u8> = (0x10..).take(suite.integ_key_len()).collect();
    PacketKey::new(suite, &encr, &integ).unwrap()
}

fn everything() -> Arc<Selectors> {
    let any = vec![TrafficSelector::ANY_V4, TrafficSelector::ANY_V6];
    Arc::new(Selectors {
        local: any.clone(),
        remote: any,
    })
}

/// Both ends of one direction.
fn pair(suite: CipherSuite, extended: bool) -> (Outbound, Inbound) {
    let outbound = Outbound::new(SPI, key(suite), extended, everything());
    (outbound, Inbound::new(SPI, key(suite), extended, everything()))
}

/// An IPv4/UDP packet of `len` octets from 10.0.0.2 to 192.0.2.1.
fn packet(len: usize) -> Vec<u8> {
    let mut packet = hex!("4500 0000 0000 4000 4011 0000 0a000002 c0000201 1000 2000 0000 0000").to_vec();
    packet.resize(len, 0xab);
    packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
    packet
}

fn seal(outbound: &mut Outbound, packet: &[u8]) -> Vec<u8> {
    let mut datagram = vec![0; outbound.sealed_len(packet.len())];
    let len = outbound.seal(packet, &mut datagram).unwrap();
    assert_eq!(len, datagram.len());
    datagram
}

/// Seals what no well-behaved peer would: any plaintext, trailer included.
fn seal_text(suite: CipherSuite, sequence: u64, text: &[u8]) -> Vec<u8> {
    let header = [&SPI.0.to_be_bytes()[..], &(sequence as u32).to_be_bytes()].concat();
    let mut body = [&vec![0; suite.iv_len()], text, &vec![0; suite.icv_len()]].concat();
    key(suite).seal(sequence, &header, &[], &mut body).unwrap();
    [header, body].concat()
}

/// RFC 7634, appendix A, whole.
#[test]
fn rfc7634_packet_is_byte_exact() {
    let inner = hex!(
        "45000054a6f200004001e778c6336405 c000020508005b7a3a080000553bec10 0007362708090a0b0c0d0e0f10111213
         1415161718191a1b1c1d1e1f20212223 2425262728292a2b2c2d2e2f30313233 34353637"
    );
    let sealed = hex!(
        "01020304 00000005 1011121314151617 24039428b97f417e3c13753a4f05087b 67c352e6a7fab1b982d466ef407ae5c6
         14ee8099d52844eb61aa95dfab4c02f7 2aa71e7c4c4f64c9befe2facc638e8f3 cbec163fac469b502773f6fb94e664da
         9165b82829f641e0 76aaa8266b7fb0f7b11b369907e1ad43"
    );
    let (outbound, mut inbound) = pair(CHACHA, false);
    let mut datagram = vec![0; outbound.sealed_len(inner.len())];
    datagram[16..16 + inner.len()].copy_from_slice(&inner);
    outbound
        .seal_as(5, 0x1011_1213_1415_1617, IPV4, inner.len(), &mut datagram)
        .unwrap();
    assert_eq!(datagram, sealed);
    assert_eq!(inbound.open(&mut datagram).unwrap(), inner);
}
