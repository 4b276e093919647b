use std::net::Ipv6Addr;

use proptest::prelude::*;

use super::*;

/// An inner packet before it is octets.
#[derive(Clone, Debug)]
struct Description {
    v6: bool,
    source: u8,
    destination: u8,
    protocol: u8,
    /// Ports, or type and code in the halves of the first.
    fields: (u16, u16),
    fragment: Option<u16>,
    /// IPv6: kinds of extension headers. IPv4: only their number counts, as options.
    extensions: Vec<u8>,
    /// Octets of the upper layer that are there.
    upper_len: usize,
    behind: usize,
}

/// Addresses differ in their last octet, from 10.9.8.0 and fd00:: on.
fn address(v6: bool, last: u8) -> IpAddr {
    if v6 {
        IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last.into()))
    } else {
        IpAddr::V4(Ipv4Addr::new(10, 9, 8, last))
    }
}

fn address_octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

impl Description {
    fn to_octets(&self) -> Vec<u8> {
        let mut upper = match self.protocol {
            ICMP | ICMPV6 => [&self.fields.0.to_be_bytes()[..], &[0; 6]].concat(),
            MOBILITY => vec![59, 0, (self.fields.0 >> 8) as u8, 0, 0, 0, 0, 0],
            _ => [
                self.fields.0.to_be_bytes(),
                self.fields.1.to_be_bytes(),
                [0; 2],
                [0; 2],
            ]
            .concat(),
        };
        upper.truncate(self.upper_len);
        let ends = [self.source, self.destination]
            .map(|last| address_octets(address(self.v6, last)))
            .concat();
        let mut packet = Vec::new();
        if self.v6 {
            let mut chain = Vec::new();
            let mut kinds = self.extensions.clone();
            if self.fragment.is_some() {
                kinds.push(FRAGMENT);
            }
            let nexts = kinds.iter().copied().skip(1).chain([self.protocol]);
            for (kind, next) in kinds.iter().zip(nexts) {
                match (*kind, self.fragment) {
                    (FRAGMENT, Some(offset)) => {
                        chain.extend([next, 0]);
                        chain.extend((offset << 3 | 1).to_be_bytes());
                        chain.extend([0; 4]);
                    }
                    _ => {
                        chain.extend([next, 1]);
                        chain.extend([0xcc; 14]);
                    }
                }
            }
            packet.extend([0x60, 0, 0, 0]);
            packet.extend(((chain.len() + upper.len()) as u16).to_be_bytes());
            packet.extend([kinds.first().copied().unwrap_or(self.protocol), 64]);
            packet.extend(ends);
            packet.extend(chain);
        } else {
            let options = self.extensions.len() * 4;
            packet.extend([0x45 + self.extensions.len() as u8, 0]);
            packet.extend(((20 + options + upper.len()) as u16).to_be_bytes());
            packet.extend([0, 0]);
            packet.extend((0x2000 | self.fragment.unwrap_or(0)).to_be_bytes());
            packet.extend([64, self.protocol, 0, 0]);
            packet.extend(ends);
            packet.extend(vec![1; options]);
        }
        packet.extend(upper);
        packet.extend(vec![0xdd; self.behind]);
        packet
    }

    fn is_later_fragment(&self) -> bool {
        self.fragment.is_some_and(|offset| offset != 0)
    }

    /// One end against one selector, as RFC 4301 says it: `first` for the end that comes first in the packet.
    fn end_matches(&self, selector: &TrafficSelector, last: u8, first: bool) -> bool {
        let end = address(self.v6, last);
        let in_range = end.is_ipv4() == selector.start.is_ipv4()
            && address_octets(selector.start) <= address_octets(end)
            && address_octets(end) <= address_octets(selector.end);
        if !in_range || (selector.protocol != 0 && selector.protocol != self.protocol) {
            return false;
        }
        let field = match self.protocol {
            _ if self.is_later_fragment() => None,
            ICMP | ICMPV6 if self.upper_len >= 2 => Some(self.fields.0),
            MOBILITY if self.upper_len >= 3 => Some(self.fields.0 & 0xff00),
            TCP | UDP if self.upper_len >= 4 => Some(if first { self.fields.0 } else { self.fields.1 }),
            _ => None,
        };
        match field {
            Some(_) if !first && matches!(self.protocol, ICMP | ICMPV6 | MOBILITY) => true,
            Some(field) => (selector.start_port..=selector.end_port).contains(&field),
            None => {
                (selector.start_port, selector.end_port) == (0, 65535)
                    || (selector.start_port, selector.end_port) == (65535, 0)
            }
        }
    }
}

fn description() -> impl Strategy<Value = Description> {
    let protocol = prop::sample::select(vec![ICMP, TCP, UDP, 47, 50, 51, ICMPV6, MOBILITY, 59]);
    let fragment = prop_oneof![3 => Just(None), 1 => Just(Some(0)), 2 => (1_u16..100).prop_map(Some)];
    let kinds = prop::sample::select(vec![HOP_BY_HOP, ROUTING, DESTINATION_OPTIONS]);
    let upper_len = prop_oneof![1 => 0_usize..8, 3 => Just(8)];
    (
        (any::<bool>(), 0_u8..6, 0_u8..6, protocol, (port(), port())),
        (
            fragment,
            prop::collection::vec(kinds, 0..8),
            upper_len,
            0_usize..4,
        ),
    )
        .prop_map(
            |((v6, source, destination, protocol, fields), (fragment, extensions, upper_len, behind))| {
                let upper_len = if protocol == 59 { 0 } else { upper_len };
                Description {
                    v6,
                    source,
                    destination,
                    protocol,
                    fields,
                    fragment,
                    extensions,
                    upper_len,
                    behind,
                }
            },
        )
}

fn port() -> impl Strategy<Value = u16> {
    prop_oneof![
        Just(0_u16),
        Just(0x0800),
        Just(80),
        Just(81),
        Just(65535),
        any::<u16>()
    ]
}

fn selectors() -> impl Strategy<Value = Vec<TrafficSelector>> {
    let protocol = prop::sample::select(vec![0, 0, 0, ICMP, TCP, UDP, 47, ICMPV6, MOBILITY]);
    let ports = prop_oneof![
        3 => Just((0, 65535)),
        1 => Just((65535, 0)),
        3 => (port(), port()).prop_map(|(a, b)| (a.min(b), a.max(b))),
    ];
    let selector =
        (any::<bool>(), 0_u8..6, 0_u8..6, protocol, ports).prop_map(|(v6, a, b, protocol, ports)| {
            let (start, end) = (address(v6, a.min(b)), address(v6, a.max(b)));
            TrafficSelector {
                protocol,
                start_port: ports.0,
                end_port: ports.1,
                start,
                end,
            }
        });
    prop::collection::vec(selector, 0..5)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn packets_pass_as_the_slow_model_says(packet in description(), local in selectors(), remote in selectors()) {
        let octets = packet.to_octets();
        let inner = Inner::parse(&octets).unwrap();
        prop_assert_eq!(inner.len, octets.len() - packet.behind);
        let selectors = Selectors { local: local.clone(), remote: remote.clone() };
        let at = |selectors: &[TrafficSelector], last, first| {
            selectors.iter().any(|selector| packet.end_matches(selector, last, first))
        };
        let outbound = at(&local, packet.source, true) && at(&remote, packet.destination, false);
        let inbound = at(&remote, packet.source, true) && at(&local, packet.destination, false);
        prop_assert_eq!(selectors.allow_outbound(&inner), outbound);
        prop_assert_eq!(selectors.allow_inbound(&inner), inbound);
    }

    #[test]
    fn what_is_cut_short_is_malformed(packet in description(), keep in 0.0..1.0) {
        let octets = packet.to_octets();
        let len = octets.len() - packet.behind;
        let kept = (len as f64 * keep) as usize;
        prop_assert_eq!(Inner::parse(&octets[..kept]), Err(Discard::Malformed));
    }
}

const WEB: TrafficSelector = TrafficSelector {
    protocol: TCP,
    start_port: 443,
    end_port: 443,
    start: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    end: IpAddr::V4(Ipv4Addr::BROADCAST),
};

fn tcp(fragment: Option<u16>) -> Description {
    Description {
        v6: false,
        source: 1,
        destination: 2,
        protocol: TCP,
        fields: (5000, 443),
        fragment,
        extensions: Vec::new(),
        upper_len: 8,
        behind: 0,
    }
}

fn inner(description: &Description) -> Inner {
    Inner::parse(&description.to_octets()).unwrap()
}

/// RFC 4301, section 4.4.1.1: a fragment without ports matches no port.
#[test]
fn later_fragments_pass_only_where_every_port_does() {
    let web = Selectors {
        local: vec![TrafficSelector::ANY_V4],
        remote: vec![WEB],
    };
    let any = Selectors {
        local: vec![TrafficSelector::ANY_V4],
        remote: vec![TrafficSelector::ANY_V4],
    };
    for (fragment, by_port) in [
        (None, true),
        (Some(0), true),
        (Some(1), false),
        (Some(0x1fff), false),
    ] {
        assert_eq!(
            web.allow_outbound(&inner(&tcp(fragment))),
            by_port,
            "{fragment:?}"
        );
        assert!(any.allow_outbound(&inner(&tcp(fragment))));
    }
    assert!(
        !web.allow_inbound(&inner(&tcp(None))),
        "443 is the far end's port"
    );
}

/// RFC 4301, section 4.4.1.3: we may ask for echoes and answer none.
#[test]
fn icmp_types_are_checked_at_the_sender() {
    let (request, reply) = (0x0800, 0x0000);
    let icmp = |port| TrafficSelector {
        protocol: ICMP,
        start_port: port,
        end_port: port,
        ..TrafficSelector::ANY_V4
    };
    let selectors = Selectors {
        local: vec![icmp(request)],
        remote: vec![icmp(reply)],
    };
    let ping = |kind| {
        inner(&Description {
            protocol: ICMP,
            fields: (kind, 0),
            ..tcp(None)
        })
    };
    assert!(selectors.allow_outbound(&ping(request)) && selectors.allow_inbound(&ping(reply)));
    assert!(!selectors.allow_outbound(&ping(reply)) && !selectors.allow_inbound(&ping(request)));
}

#[test]
fn extension_headers_are_walked_to_a_bound() {
    let with = |count| Description {
        v6: true,
        extensions: vec![DESTINATION_OPTIONS; count],
        ..tcp(None)
    };
    assert!(Inner::parse(&with(MAX_EXTENSION_HEADERS).to_octets()).is_ok());
    assert_eq!(
        Inner::parse(&with(MAX_EXTENSION_HEADERS + 1).to_octets()),
        Err(Discard::Malformed)
    );
}

#[test]
fn a_fragment_that_hides_its_protocol_has_none() {
    let hidden = Description {
        v6: true,
        protocol: DESTINATION_OPTIONS,
        ..tcp(Some(9))
    };
    assert_eq!(inner(&hidden).protocol, None);
    let udp = TrafficSelector {
        protocol: UDP,
        ..TrafficSelector::ANY_V6
    };
    let selectors = Selectors {
        local: vec![TrafficSelector::ANY_V6],
        remote: vec![udp],
    };
    assert!(!selectors.allow_outbound(&inner(&hidden)));
}

#[test]
fn headers_that_lie_are_malformed() {
    let good = tcp(None).to_octets();
    let with = |at: usize, octet: u8| {
        let mut packet = good.clone();
        packet[at] = octet;
        Inner::parse(&packet)
    };
    assert!(with(0, 0x45).is_ok());
    for (at, octet) in [
        (0, 0x44),
        (0, 0x4f),
        (0, 0x55),
        (0, 0x65),
        (3, 19),
        (3, 29),
        (2, 1),
    ] {
        assert_eq!(with(at, octet), Err(Discard::Malformed), "{octet:#x} at {at}");
    }
    assert_eq!(Inner::parse(&[]), Err(Discard::Malformed));
}

#[test]
fn martians_are_known() {
    let from = |source: &str, destination: &str| Inner {
        len: 0,
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
        protocol: Some(UDP),
        upper: Upper::Hidden,
        later_fragment: false,
    };
    for source in ["0.0.0.0", "0.1.2.3", "127.0.0.1", "224.0.0.1", "255.255.255.255"] {
        assert!(from(source, "10.0.0.1").is_martian(), "{source}");
    }
    for source in ["::", "::1", "ff02::1", "::ffff:10.0.0.1"] {
        assert!(from(source, "fd00::1").is_martian(), "{source}");
    }
    assert!(from("10.0.0.1", "127.0.0.1").is_martian() && from("fd00::1", "::1").is_martian());
    assert!(from("10.0.0.1", "0.0.0.0").is_martian() && from("fd00::1", "::").is_martian());
    for (source, destination) in [
        ("10.0.0.1", "10.0.0.2"),
        ("8.8.8.8", "255.255.255.255"),
        ("fe80::1", "ff02::1"),
    ] {
        assert!(!from(source, destination).is_martian(), "{source}");
    }
    for kind in 0..=255_u8 {
        let types = Upper::Type(u16::from_be_bytes([kind, 0]));
        let v4 = Inner {
            protocol: Some(ICMP),
            upper: types,
            ..from("10.0.0.1", "10.0.0.2")
        };
        let v6 = Inner {
            protocol: Some(ICMPV6),
            upper: types,
            ..from("fd00::1", "fd00::2")
        };
        assert_eq!(
            (v4.is_martian(), v6.is_martian()),
            (kind == 5, (133..=137).contains(&kind)),
            "{kind}"
        );
    }
}
