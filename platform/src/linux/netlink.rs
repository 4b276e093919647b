//! Asking the kernel for links, addresses, routes and rules (RFC 3549), one question at a time.
//!
//! The machine's thread has nothing to do while the kernel answers, and every step must know whether the one before
//! it succeeded; so this is a plain blocking socket and no asynchronous connection.

use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use socket2::{Domain, Protocol, Socket, Type};

/// The kernel's buffer for one part of a dump is 32 KiB at most.
const BUFFER: usize = 65_536;

/// How often a dump is begun again because something changed meanwhile.
const DUMP_TRIES: usize = 8;

/// The number by which our routes and rules are told from others' (`ip route` shows `proto 112`).
pub(super) const PROTOCOL: u8 = 112;

/// One of the two address families.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    #[cfg(test)]
    pub(super) const ALL: [Self; 2] = [Self::V4, Self::V6];

    pub(super) const fn of(net: &IpNet) -> Self {
        match net {
            IpNet::V4(_) => Self::V4,
            IpNet::V6(_) => Self::V6,
        }
    }

    pub(super) const fn wire(self) -> AddressFamily {
        match self {
            Self::V4 => AddressFamily::Inet,
            Self::V6 => AddressFamily::Inet6,
        }
    }
}

/// A rule of ours: `not fwmark MARK lookup TABLE`, or one that somebody made of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) family: Family,
    pub(super) priority: u32,
    pub(super) mark: u32,
    pub(super) table: u32,
}

/// What a route does with its packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// Into the device with this index, from this address unless the sender has chosen one.
    Device(u32, Option<IpAddr>),
    /// Refused at once with an ICMP error.
    Unreachable,
    /// Not ours: the rules after ours decide.
    Throw,
    /// Something that is never ours.
    Other,
}

/// What is known of a device's cable, or of what it has instead of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Carrier {
    /// How often it came or went: another number means that the network may be another one.
    pub(super) changes: u32,
    /// It is there, and the device is up.
    pub(super) is_there: bool,
}

/// A blocking rtnetlink socket.
#[derive(Debug)]
pub(super) struct Netlink {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    /// A socket in the network namespace of the calling thread.
    pub(super) fn open() -> io::Result<Self> {
        let socket = Socket::new(
            Domain::from(libc::AF_NETLINK),
            Type::RAW,
            Some(Protocol::from(libc::NETLINK_ROUTE)),
        )?;
        // The kernel answers at once; a time-out only keeps a lost answer from hanging the machine's thread.
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        Ok(Self {
            socket,
            sequence: 0,
            buffer: vec![0; BUFFER],
        })
    }

    /// Sets a device's MTU and how many packets may wait in it, and brings it up.
    pub(super) fn set_link(&mut self, index: u32, mtu: u16, queue: u32) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        message.attributes.push(LinkAttribute::Mtu(u32::from(mtu)));
        message.attributes.push(LinkAttribute::TxQueueLen(queue));
        self.change(RouteNetlinkMessage::SetLink(message), 0)
    }

    /// A device's MTU, and whether it is up.
    pub(super) fn link(&mut self, index: u32) -> io::Result<(u32, bool)> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        match self.get(RouteNetlinkMessage::GetLink(message))? {
            Some(RouteNetlinkMessage::NewLink(link)) => {
                let mtu = link.attributes.iter().find_map(|attribute| match attribute {
                    LinkAttribute::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
                Ok((mtu.unwrap_or(0), link.header.flags.contains(LinkFlags::Up)))
            }
            _ => Err(io::Error::from_raw_os_error(libc::ENODEV)),
        }
    }

    /// How often a device's carrier has come and gone, and whether it is there and the device usable.
    pub(super) fn carrier(&mut self, index: u32) -> io::Result<Carrier> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        match self.get(RouteNetlinkMessage::GetLink(message))? {
            Some(RouteNetlinkMessage::NewLink(link)) => {
                let changes = link.attributes.iter().find_map(|attribute| match attribute {
                    LinkAttribute::CarrierChanges(changes) => Some(*changes),
                    _ => None,
                });
                Ok(Carrier {
                    changes: changes.unwrap_or(0),
                    is_there: is_running(&link),
                })
            }
            _ => Err(io::Error::from_raw_os_error(libc::ENODEV)),
        }
    }

    /// Deletes a device; one that is gone already is no error.
    pub(super) fn delete_link(&mut self, index: u32) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        ignore(
            self.change(RouteNetlinkMessage::DelLink(message), 0),
            &[libc::ENODEV],
        )
    }

    /// A device's addresses, without those that the kernel gives itself (fe80::/10).
    pub(super) fn addresses(&mut self, index: u32) -> io::Result<Vec<IpNet>> {
        let dump = self.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
        Ok(dump
            .iter()
            .filter_map(|message| match message {
                RouteNetlinkMessage::NewAddress(message) if message.header.index == index => {
                    Some((interface_address(message)?, message.header.prefix_len))
                }
                _ => None,
            })
            .filter(|(address, _)| !matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local()))
            .filter_map(|(address, prefix)| IpNet::new(address, prefix).ok())
            .collect())
    }

    /// Gives a device an address, without the route that the kernel would add to the main table for its prefix, and
    /// without duplicate address detection, which on a tunnel could only delay.
    pub(super) fn add_address(&mut self, index: u32, address: IpNet) -> io::Result<()> {
        let mut message = address_message(index, address);
        message.attributes.push(AddressAttribute::Flags(
            AddressFlags::Noprefixroute | AddressFlags::Nodad,
        ));
        let done = self.change(
            RouteNetlinkMessage::NewAddress(message),
            NLM_F_CREATE | NLM_F_EXCL,
        );
        ignore(done, &[libc::EEXIST])
    }

    /// Takes an address from a device; one that is gone already is no error.
    pub(super) fn delete_address(&mut self, index: u32, address: IpNet) -> io::Result<()> {
        let message = address_message(index, address);
        ignore(
            self.change(RouteNetlinkMessage::DelAddress(message), 0),
            &[libc::EADDRNOTAVAIL, libc::ENODEV],
        )
    }

    /// The routes of one table.
    pub(super) fn routes(&mut self, family: Family, table: u32) -> io::Result<Vec<(IpNet, Target)>> {
        let mut question = RouteMessage::default();
        question.header.address_family = family.wire();
        let dump = self.dump(RouteNetlinkMessage::GetRoute(question))?;
        Ok(dump
            .iter()
            .filter_map(|message| match message {
                RouteNetlinkMessage::NewRoute(route) if route_table(route) == table => {
                    Some((route_destination(route, family)?, route_target(route)))
                }
                _ => None,
            })
            .collect())
    }

    /// Adds a route, in place of one with the same destination if there is one.
    pub(super) fn replace_route(&mut self, table: u32, net: IpNet, target: Target) -> io::Result<()> {
        let message = route_message(table, net, target);
        self.change(
            RouteNetlinkMessage::NewRoute(message),
            NLM_F_CREATE | NLM_F_REPLACE,
        )
    }

    /// Removes the route to a destination, whatever it does; one that is gone already is no error.
    pub(super) fn delete_route(&mut self, table: u32, net: IpNet) -> io::Result<()> {
        let mut message = route_message(table, net, Target::Other);
        message.header.protocol = RouteProtocol::Unspec;
        message.header.scope = RouteScope::NoWhere;
        message.header.kind = RouteType::Unspec;
        ignore(
            self.change(RouteNetlinkMessage::DelRoute(message), 0),
            &[libc::ESRCH, libc::ENODEV],
        )
    }

    /// The rules of ours, by their protocol number, that lead to `table`.
    pub(super) fn rules(&mut self, family: Family, table: u32) -> io::Result<Vec<Rule>> {
        let mut question = RuleMessage::default();
        question.header.family = family.wire();
        let dump = self.dump(RouteNetlinkMessage::GetRule(question))?;
        Ok(dump
            .iter()
            .filter_map(|message| match message {
                RouteNetlinkMessage::NewRule(rule) => read_rule(rule, family),
                _ => None,
            })
            .filter(|rule| rule.table == table)
            .collect())
    }

    /// Adds a rule.
    pub(super) fn add_rule(&mut self, rule: Rule) -> io::Result<()> {
        let done = self.change(
            RouteNetlinkMessage::NewRule(rule_message(rule)),
            NLM_F_CREATE | NLM_F_EXCL,
        );
        ignore(done, &[libc::EEXIST])
    }

    /// Removes a rule; one that is gone already is no error.
    pub(super) fn delete_rule(&mut self, rule: Rule) -> io::Result<()> {
        ignore(
            self.change(RouteNetlinkMessage::DelRule(rule_message(rule)), 0),
            &[libc::ENOENT],
        )
    }

    /// The index of the device by which a packet with `mark` leaves for `remote`.
    pub(super) fn way_out(&mut self, remote: IpAddr, mark: u32) -> io::Result<Option<u32>> {
        let mut question = RouteMessage::default();
        question.header.address_family = Family::of(&IpNet::from(remote)).wire();
        question.header.destination_prefix_length = IpNet::from(remote).max_prefix_len();
        question
            .attributes
            .push(RouteAttribute::Destination(RouteAddress::from(remote)));
        question.attributes.push(RouteAttribute::Mark(mark));
        match self.get(RouteNetlinkMessage::GetRoute(question))? {
            Some(RouteNetlinkMessage::NewRoute(route)) => {
                Ok(route.attributes.iter().find_map(|attribute| match attribute {
                    RouteAttribute::Oif(index) => Some(*index),
                    _ => None,
                }))
            }
            _ => Ok(None),
        }
    }

    /// A request that the kernel confirms or refuses.
    fn change(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.ask(message, NLM_F_REQUEST | NLM_F_ACK | flags, |_| ())
    }

    /// A question with one answer.
    fn get(&mut self, message: RouteNetlinkMessage) -> io::Result<Option<RouteNetlinkMessage>> {
        let mut answer = None;
        self.ask(message, NLM_F_REQUEST | NLM_F_ACK, |message| {
            answer = Some(message)
        })?;
        Ok(answer)
    }

    /// A question with many answers, asked again when the tables changed meanwhile.
    fn dump(&mut self, message: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        for _ in 0..DUMP_TRIES {
            let mut answers = Vec::new();
            let asked = self.ask(message.clone(), NLM_F_REQUEST | NLM_F_DUMP, |message| {
                answers.push(message)
            });
            match asked {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                Err(error) => return Err(error),
                Ok(()) => return Ok(answers),
            }
        }
        Err(io::Error::other("the tables change faster than they can be read"))
    }

    /// Sends `message` and hands every answer to `each`, up to the kernel's last word on it.
    fn ask(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
        mut each: impl FnMut(RouteNetlinkMessage),
    ) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = NetlinkMessage::from(message);
        request.header.flags = flags;
        request.header.sequence_number = self.sequence;
        request.finalize();
        let mut octets = vec![0; request.buffer_len()];
        request.serialize(&mut octets);
        (&self.socket).write_all(&octets)?;

        let mut interrupted = false;
        loop {
            let len = (&self.socket).read(&mut self.buffer)?;
            let mut rest = self.buffer.get(..len).unwrap_or_default();
            while !rest.is_empty() {
                let answer =
                    NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
                let step = usize::try_from(answer.header.length)
                    .unwrap_or(usize::MAX)
                    .next_multiple_of(4);
                rest = rest.get(step.max(4)..).unwrap_or_default();
                if answer.header.sequence_number != self.sequence {
                    continue; // the late answer to a question that was given up
                }
                interrupted |= answer.header.flags & NLM_F_DUMP_INTR != 0;
                match answer.payload {
                    NetlinkPayload::InnerMessage(message) => each(message),
                    NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                    NetlinkPayload::Error(_) | NetlinkPayload::Done(_) if interrupted => {
                        return Err(io::ErrorKind::Interrupted.into());
                    }
                    NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => return Ok(()),
                    _ => (),
                }
            }
        }
    }
}

/// Turns the errors `codes` into success.
fn ignore(result: io::Result<()>, codes: &[i32]) -> io::Result<()> {
    match result {
        Err(error) if error.raw_os_error().is_some_and(|code| codes.contains(&code)) => Ok(()),
        other => other,
    }
}

fn address_message(index: u32, address: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = Family::of(&address).wire();
    message.header.prefix_len = address.prefix_len();
    message.header.scope = AddressScope::Universe;
    message.header.index = index;
    // For IPv4 the kernel goes by IFA_LOCAL, for IPv6 by IFA_ADDRESS; equal, they mean an address without a peer.
    message.attributes.push(AddressAttribute::Local(address.addr()));
    message.attributes.push(AddressAttribute::Address(address.addr()));
    message
}

/// Whether a device is up and has a carrier.
pub(super) fn is_running(link: &LinkMessage) -> bool {
    link.header.flags.contains(LinkFlags::Up | LinkFlags::Running)
}

/// The address that a message is about.
pub(super) fn interface_address(message: &AddressMessage) -> Option<IpAddr> {
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    local.or_else(|| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    })
}

fn route_message(table: u32, net: IpNet, target: Target) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = Family::of(&net).wire();
    message.header.destination_prefix_length = net.prefix_len();
    message.header.protocol = RouteProtocol::Other(PROTOCOL);
    message.header.kind = match target {
        Target::Device(..) => RouteType::Unicast,
        Target::Unreachable => RouteType::Unreachable,
        Target::Throw => RouteType::Throw,
        Target::Other => RouteType::Unspec,
    };
    if net.prefix_len() > 0 {
        message
            .attributes
            .push(RouteAttribute::Destination(RouteAddress::from(net.network())));
    }
    message.attributes.push(RouteAttribute::Table(table));
    if let Target::Device(index, source) = target {
        message.header.scope = RouteScope::Link;
        message.attributes.push(RouteAttribute::Oif(index));
        if let Some(source) = source {
            message
                .attributes
                .push(RouteAttribute::PrefSource(RouteAddress::from(source)));
        }
    }
    message
}

/// The table that a route is in.
pub(super) fn route_table(route: &RouteMessage) -> u32 {
    let attribute = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    attribute.unwrap_or_else(|| u32::from(route.header.table))
}

/// What a route of this family leads to.
pub(super) fn route_destination(route: &RouteMessage, family: Family) -> Option<IpNet> {
    let address = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(address) => ip(address),
        _ => None,
    });
    let unspecified = match family {
        Family::V4 => IpAddr::from([0; 4]),
        Family::V6 => IpAddr::from([0; 16]),
    };
    IpNet::new(
        address.unwrap_or(unspecified),
        route.header.destination_prefix_length,
    )
    .ok()
}

fn route_target(route: &RouteMessage) -> Target {
    match route.header.kind {
        RouteType::Unreachable => Target::Unreachable,
        RouteType::Throw => Target::Throw,
        RouteType::Unicast => {
            let mut device = None;
            let mut source = None;
            for attribute in &route.attributes {
                match attribute {
                    RouteAttribute::Oif(index) => device = Some(*index),
                    RouteAttribute::PrefSource(address) => source = ip(address),
                    _ => (),
                }
            }
            device.map_or(Target::Other, |index| Target::Device(index, source))
        }
        _ => Target::Other,
    }
}

const fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

fn rule_message(rule: Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = rule.family.wire();
    message.header.action = RuleAction::ToTable;
    message.header.flags = RuleFlags::Invert;
    message.attributes = vec![
        RuleAttribute::Priority(rule.priority),
        RuleAttribute::FwMark(rule.mark),
        RuleAttribute::FwMask(u32::MAX),
        RuleAttribute::Table(rule.table),
        RuleAttribute::Protocol(RouteProtocol::Other(PROTOCOL)),
    ];
    message
}

/// The table that a rule leads to.
pub(super) fn rule_table(rule: &RuleMessage) -> u32 {
    let attribute = rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Table(table) => Some(*table),
        _ => None,
    });
    attribute.unwrap_or_else(|| u32::from(rule.header.table))
}

/// The rule as one of ours, or none.
fn read_rule(message: &RuleMessage, family: Family) -> Option<Rule> {
    let mut rule = Rule {
        family,
        priority: 0,
        mark: 0,
        table: rule_table(message),
    };
    let mut ours = false;
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(priority) => rule.priority = *priority,
            RuleAttribute::FwMark(mark) => rule.mark = *mark,
            RuleAttribute::Protocol(protocol) => ours = *protocol == RouteProtocol::Other(PROTOCOL),
            _ => (),
        }
    }
    ours.then_some(rule)
}
