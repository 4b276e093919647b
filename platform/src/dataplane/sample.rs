//! Packets of any kind for tests, put together by etherparse and not by us.

use etherparse::{
    IpDscp, IpEcn, IpFragOffset, IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, Ipv6Extensions, Ipv6Header,
    Ipv6RawExtHeader, PacketBuilder, TcpHeader,
};
use proptest::prelude::*;

/// IPv4, or IPv6 with or without extension headers.
pub(super) fn ip_headers() -> impl Strategy<Value = IpHeaders> {
    prop_oneof![
        3 => v4(false),
        1 => v4(true),
        3 => v6(false),
        1 => v6(true),
    ]
}

/// Those that may be put together: without options and extension headers.
pub(super) fn plain_ip_headers() -> impl Strategy<Value = IpHeaders> {
    prop_oneof![v4(false), v6(false)]
}

fn v4(with_options: bool) -> impl Strategy<Value = IpHeaders> {
    let options = if with_options { 1..=10_usize } else { 0..=0 };
    let fields = (any::<u16>(), any::<bool>(), 1..=u8::MAX, 0..64_u8, 0..4_u8);
    (fields, options, any::<[u8; 4]>(), any::<[u8; 4]>()).prop_map(
        |(fields, options, source, destination)| {
            let (identification, dont_fragment, time_to_live, dscp, ecn) = fields;
            let mut header = Ipv4Header {
                dscp: IpDscp::try_new(dscp).unwrap(),
                ecn: IpEcn::try_new(ecn).unwrap(),
                identification,
                dont_fragment,
                fragment_offset: IpFragOffset::ZERO,
                time_to_live,
                source,
                destination,
                ..Ipv4Header::default()
            };
            // NOP, four at a time.
            header.options = vec![1; options * 4].as_slice().try_into().unwrap();
            IpHeaders::Ipv4(header, Ipv4Extensions::default())
        },
    )
}

fn v6(with_extensions: bool) -> impl Strategy<Value = IpHeaders> {
    let fields = (any::<u8>(), 0..1_u32 << 20, 1..=u8::MAX);
    let lens = if with_extensions { 1..=3_usize } else { 0..=0 };
    (fields, lens, any::<[u8; 16]>(), any::<[u8; 16]>()).prop_map(|(fields, lens, source, destination)| {
        let (traffic_class, flow_label, hop_limit) = fields;
        let header = Ipv6Header {
            traffic_class,
            flow_label: flow_label.try_into().unwrap(),
            hop_limit,
            source,
            destination,
            ..Ipv6Header::default()
        };
        let raw = |len: usize| Ipv6RawExtHeader::new_raw(IpNumber::TCP, &vec![1; 8 * len - 2]).unwrap();
        let extensions = Ipv6Extensions {
            hop_by_hop_options: (lens > 0).then(|| raw(lens)),
            destination_options: (lens > 1).then(|| raw(1)),
            ..Ipv6Extensions::default()
        };
        IpHeaders::Ipv6(header, extensions)
    })
}

/// A header of TCP's with flags and options of any kind.
pub(super) fn tcp_header() -> impl Strategy<Value = TcpHeader> {
    let numbers = (
        any::<u16>(),
        any::<u16>(),
        any::<u32>(),
        any::<u32>(),
        any::<u16>(),
        any::<u16>(),
    );
    (numbers, any::<[bool; 8]>(), 0..=10_usize).prop_map(|(numbers, flags, options)| {
        let mut header = TcpHeader::new(numbers.0, numbers.1, numbers.2, numbers.4);
        header.acknowledgment_number = numbers.3;
        header.urgent_pointer = numbers.5;
        [header.fin, header.syn, header.rst, header.psh] = [flags[0], flags[1], flags[2], flags[3]];
        [header.ack, header.urg, header.ece, header.cwr] = [flags[4], flags[5], flags[6], flags[7]];
        header.set_options_raw(&vec![1; options * 4]).unwrap();
        header
    })
}

/// One with which segments follow each other.
pub(super) fn data_header() -> impl Strategy<Value = TcpHeader> {
    tcp_header().prop_map(|header| {
        let mut plain = TcpHeader::new(
            header.source_port,
            header.destination_port,
            header.sequence_number,
            header.window_size,
        );
        plain.ack = true;
        plain.acknowledgment_number = header.acknowledgment_number;
        plain.set_options_raw(header.options.as_slice()).unwrap();
        plain
    })
}

/// A complete packet of TCP.
pub(super) fn tcp(ip: &IpHeaders, header: &TcpHeader, payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    let builder = PacketBuilder::ip(ip.clone()).tcp_header(header.clone());
    builder.write(&mut packet, payload).unwrap();
    packet
}

/// A complete packet of UDP.
pub(super) fn udp(ip: &IpHeaders, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    let builder = PacketBuilder::ip(ip.clone()).udp(ports.0, ports.1);
    builder.write(&mut packet, payload).unwrap();
    packet
}

/// The same headers with an identification that is `by` later, where there is one.
pub(super) fn later(ip: &IpHeaders, by: usize) -> IpHeaders {
    let mut later = ip.clone();
    if let IpHeaders::Ipv4(header, _) = &mut later {
        header.identification = header.identification.wrapping_add(by as u16);
    }
    later
}

/// Octets of the IP headers.
pub(super) fn ip_len(ip: &IpHeaders) -> usize {
    ip.header_len()
}

pub(super) fn is_v4(ip: &IpHeaders) -> bool {
    matches!(ip, IpHeaders::Ipv4(..))
}

/// Octets that look like nothing, each different from its neighbours.
pub(super) fn payload(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|at| (at * 31 + at / 256) as u8 ^ seed).collect()
}
