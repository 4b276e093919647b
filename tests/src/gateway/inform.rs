//! INFORMATIONAL as the one who answers it: Deletes, MOBIKE, tickets (RFC 7296, section 1.4; RFC 4555; RFC 5723).

use std::net::{IpAddr, SocketAddr};

use peregrine_core::command::Path;
use peregrine_core::crypto::{Secret, sha1};
use peregrine_core::proposal::IkeSuite;
use peregrine_core::wire::iana::{NotifyType, ProtocolId};
use peregrine_core::wire::{Delete, Header, Payload};

use super::book::{Cx, Note, Ticket};
use super::child::ChildState;
use super::keys::{SaKeys, Spis};
use super::session::{Session, Task};

impl Session {
    pub(super) fn inform(
        &mut self,
        index: usize,
        header: &Header,
        payloads: &[Payload<'_>],
        path: Path,
        cx: &mut Cx<'_>,
    ) {
        let mut ends = false;
        let mut closed = Vec::new();
        let mut notes = Vec::new();
        for payload in payloads {
            match payload {
                Payload::Delete(delete) if delete.protocol == ProtocolId::IKE => ends = true,
                Payload::Delete(delete) if delete.protocol == ProtocolId::ESP => {
                    closed.extend(delete.spis.iter().filter_map(|spi| self.delete_child(spi, cx)));
                }
                Payload::Notify(it) if it.kind == NotifyType::AUTHENTICATION_FAILED => ends = true,
                Payload::Notify(it) if it.kind == NotifyType::TICKET_REQUEST => {
                    let (suite, keys) = (self.sas[index].suite, &self.sas[index].channel.keys);
                    notes.extend(self.issue_ticket(keys, suite, cx));
                }
                _ => {}
            }
        }
        let moved = self.peer.mobike && self.mobike(index, payloads, path, &mut notes, cx);
        let mut reply: Vec<Payload<'_>> = notes.iter().map(Note::payload).collect();
        if !closed.is_empty() {
            reply.push(Payload::Delete(Delete {
                protocol: ProtocolId::ESP,
                spis: closed.iter().map(<[u8; 4]>::as_slice).collect(),
            }));
        }
        self.answer(index, header, &reply, path, cx);
        if ends {
            self.end_ike(index, cx);
        } else if moved && cx.config.check_routability {
            let cookie: [u8; 16] = cx.book.rng.bytes();
            let cookie = cookie.to_vec();
            self.want(Task::Routability { cookie, to: path }, cx.now);
        } else if moved {
            self.esp_path = path;
            self.after_update(cx);
        }
    }

    /// The client deletes a Child SA, by its SPI. The gateway's SPI, unless both are deleting it or there is none
    /// (RFC 7296, sections 1.4.1 and 2.25.1).
    fn delete_child(&mut self, spi: &[u8], cx: &Cx<'_>) -> Option<[u8; 4]> {
        let child = self.child_of_client(spi)?;
        let spi = child.spi();
        self.close_child(spi, cx.now);
        let said = self.sas.iter().any(|sa| sa.is_deleting(spi));
        (!said).then(|| spi.0.to_be_bytes())
    }

    /// What MOBIKE adds to an answer; whether the client has moved.
    fn mobike(
        &mut self,
        index: usize,
        payloads: &[Payload<'_>],
        path: Path,
        notes: &mut Vec<Note>,
        cx: &Cx<'_>,
    ) -> bool {
        let spis = self.sas[index].channel.spis;
        let mut detection = Detection::default();
        let (mut update, mut unexpected) = (false, false);
        let mut addresses = None;
        for payload in payloads {
            let Payload::Notify(it) = payload else { continue };
            detection.note(it.kind, it.data, spis, path);
            match it.kind {
                NotifyType::UPDATE_SA_ADDRESSES => update = true,
                NotifyType::COOKIE2 => notes.push(Note::new(it.kind, it.data)),
                NotifyType::NO_NATS_ALLOWED => unexpected = it.data != no_nats(path),
                NotifyType::NO_ADDITIONAL_ADDRESSES => addresses = Some(Vec::new()),
                NotifyType::ADDITIONAL_IP4_ADDRESS | NotifyType::ADDITIONAL_IP6_ADDRESS => {
                    addresses
                        .get_or_insert_with(Vec::new)
                        .push(address(it.data).expect("an address of four or sixteen octets"));
                }
                _ => {}
            }
        }
        if unexpected {
            notes.push(Note::new(NotifyType::UNEXPECTED_NAT_DETECTED, &[]));
            return false;
        }
        let refused = [path.local.ip(), path.remote.ip()]
            .iter()
            .any(|ip| cx.config.unacceptable.contains(ip));
        if update && refused {
            notes.push(Note::new(NotifyType::UNACCEPTABLE_ADDRESSES, &[]));
            return false;
        }
        if let Some(addresses) = addresses {
            self.peer.addresses = addresses;
        }
        if detection.seen {
            notes.extend(nat_detection(spis, path));
        }
        if update {
            self.path = path;
            if detection.seen {
                self.peer.behind_nat = detection.behind_nat;
            }
        }
        update
    }

    /// The Child SAs have moved.
    pub(super) fn after_update(&mut self, cx: &Cx<'_>) {
        if !cx.config.rekey_after_update {
            return;
        }
        let up = self.children.iter().filter(|child| child.state == ChildState::Up);
        let spis: Vec<_> = up.map(super::child::Child::spi).collect();
        for spi in spis {
            self.want(Task::RekeyChild(spi), cx.now);
        }
    }

    /// A ticket for the IKE SA with these keys, if the gateway gives any.
    pub(super) fn issue_ticket(&self, keys: &SaKeys, suite: IkeSuite, cx: &mut Cx<'_>) -> Option<Note> {
        let mut lifetime = cx.config.tickets?;
        if let Some(deadline) = self.auth_deadline {
            lifetime = lifetime.min(deadline.since(cx.now));
        }
        let ticket: [u8; 32] = cx.book.rng.bytes();
        cx.book.tickets.insert(
            ticket.to_vec(),
            Ticket {
                derive: Secret::from_slice(keys.derive.as_bytes()),
                suite,
                identity: self.peer.identity.clone(),
                session: self.number,
                expires: cx.now + lifetime,
            },
        );
        let seconds = u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX);
        let data = [seconds.to_be_bytes().as_slice(), &ticket].concat();
        Some(Note::new(NotifyType::TICKET_LT_OPAQUE, &data))
    }
}

/// What NAT detection says of the client (RFC 7296, section 2.23).
#[derive(Default)]
pub(super) struct Detection {
    /// There was any.
    pub(super) seen: bool,
    source_seen: bool,
    source_fits: bool,
    /// No source that the client told is the one that is seen.
    pub(super) behind_nat: bool,
}

impl Detection {
    pub(super) fn note(&mut self, kind: NotifyType, data: &[u8], spis: Spis, path: Path) {
        if kind == NotifyType::NAT_DETECTION_DESTINATION_IP {
            self.seen = true;
        }
        if kind == NotifyType::NAT_DETECTION_SOURCE_IP {
            self.seen = true;
            self.source_seen = true;
            self.source_fits |= data == nat_hash(spis, path.remote);
        }
        self.behind_nat = self.source_seen && !self.source_fits;
    }
}

/// The gateway's own NAT detection payloads for a path.
pub(super) fn nat_detection(spis: Spis, path: Path) -> [Note; 2] {
    [
        Note::new(NotifyType::NAT_DETECTION_SOURCE_IP, &nat_hash(spis, path.local)),
        Note::new(
            NotifyType::NAT_DETECTION_DESTINATION_IP,
            &nat_hash(spis, path.remote),
        ),
    ]
}

/// `SHA-1(SPIi | SPIr | address | port)`.
pub(super) fn nat_hash(spis: Spis, end: SocketAddr) -> [u8; 20] {
    let (i, r) = (spis.initiator.0, spis.responder.0);
    let port = end.port().to_be_bytes();
    match end.ip() {
        IpAddr::V4(ip) => sha1(&[&i, &r, &ip.octets(), &port]),
        IpAddr::V6(ip) => sha1(&[&i, &r, &ip.octets(), &port]),
    }
}

/// What NO_NATS_ALLOWED must say on this path: source and destination, then their ports (RFC 4555, section 4.2.6).
pub(super) fn no_nats(path: Path) -> Vec<u8> {
    let octets = |end: SocketAddr| match end.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    [
        octets(path.remote),
        octets(path.local),
        path.remote.port().to_be_bytes().to_vec(),
        path.local.port().to_be_bytes().to_vec(),
    ]
    .concat()
}

/// An address as ADDITIONAL_*_ADDRESS and configuration attributes carry it.
pub(super) fn address(octets: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(octets) {
        return Some(v4.into());
    }
    <[u8; 16]>::try_from(octets).ok().map(IpAddr::from)
}
