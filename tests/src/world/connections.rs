//! TCP between client and gateway: octets in order, late instead of lost, until a connection is cut or stuck.

use std::net::SocketAddr;
use std::time::Duration;

use peregrine_core::command::{Answer, Bound, Endpoint, HostFault, Path};
use peregrine_core::timer::Instant;
use peregrine_core::wire::{StreamReader, StreamWriter};

use super::{Delivery, World};
use crate::link::Way;

/// How long a machine waits for a connection, or for what it sent to be acknowledged.
const PATIENCE: Duration = Duration::from_secs(10);
/// What a lost segment costs.
const REPEATED: Duration = Duration::from_millis(300);
/// The client's first TCP port.
pub(super) const FIRST_PORT: u16 = 41_000;

/// One connection.
pub(super) struct Connection {
    id: u64,
    /// As the client sees it.
    path: Path,
    /// As the gateway sees it.
    seen: Path,
    writer: StreamWriter,
    reader: StreamReader,
    /// The client has not closed it.
    is_open: bool,
    /// Nothing gets through any more, and neither end knows.
    is_stuck: bool,
    /// When the last octets arrive: later ones do not overtake them.
    arrives: [Instant; 2],
}

/// What happens to a connection.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Happens {
    /// It is there, or not, and why not.
    Connected(Endpoint, SocketAddr, Option<String>),
    Octets(bool, Vec<u8>),
    /// The gateway's end is closed by the client.
    Finished,
    /// Both ends hear that it is gone.
    Reset,
    /// The client's end hears that it is gone.
    GivenUp,
}

impl World {
    /// The client wants a connection.
    pub(super) fn open_connection(&mut self, remote: Endpoint) -> Option<Answer> {
        let fault = |reason: &str| HostFault {
            action: format!("open a TCP connection to {}", remote.address),
            reason: reason.into(),
            permission: false,
        };
        let ip = remote.address.ip();
        let route = self.link.route(ip).filter(|_| !self.unreachable.contains(&ip));
        let Some((local, interface)) = route else {
            return Some(Answer::Bound(remote, Err(fault("network is unreachable"))));
        };
        let is_blocked = interface.no_tcp || interface.is_dead || self.link.blocked.contains(&ip);
        let local = SocketAddr::new(local.ip(), self.tcp_port);
        self.tcp_port += 1;
        let (after, reason) = if is_blocked {
            (PATIENCE, Some("connection timed out".into()))
        } else if self.link.refuses_tcp {
            (self.link.latency * 2, Some("connection refused".into()))
        } else {
            (self.link.latency * 2, None)
        };
        self.enqueue(after, Delivery::Tcp(0, Happens::Connected(remote, local, reason)));
        None
    }

    pub(super) fn happens(&mut self, id: u64, what: Happens) {
        match what {
            Happens::Connected(remote, local, reason) => self.connected(remote, local, reason),
            Happens::Octets(up, octets) => self.octets(id, up, &octets),
            Happens::Finished => {
                if let Some(connection) = self.take_connection(id) {
                    self.gateway.closed(connection.seen);
                }
            }
            Happens::Reset => {
                if let Some(connection) = self.take_connection(id) {
                    self.gateway.closed(connection.seen);
                    self.client_hears(&connection);
                }
            }
            Happens::GivenUp => {
                if let Some(connection) = self.take_connection(id) {
                    self.client_hears(&connection);
                }
            }
        }
    }

    fn take_connection(&mut self, id: u64) -> Option<Connection> {
        let position = self.connections.iter().position(|it| it.id == id)?;
        Some(self.connections.remove(position))
    }

    fn client_hears(&mut self, connection: &Connection) {
        if connection.is_open {
            self.client.handle_closed(connection.path.socket(), self.now);
            self.drain();
        }
    }

    fn connected(&mut self, remote: Endpoint, local: SocketAddr, reason: Option<String>) {
        let path = Path::tcp(local, remote.address);
        // The network may have gone meanwhile.
        let seen = self.link.up(path, self.now).filter(|_| reason.is_none());
        let result = match seen {
            None => Err(HostFault {
                action: format!("open a TCP connection to {}", remote.address),
                reason: reason.unwrap_or_else(|| "connection timed out".into()),
                permission: false,
            }),
            Some(seen) => {
                self.serial += 1;
                self.connections.push(Connection {
                    id: self.serial,
                    path,
                    seen,
                    writer: StreamWriter::new(),
                    reader: StreamReader::new(),
                    is_open: true,
                    is_stuck: false,
                    arrives: [self.now; 2],
                });
                self.gateway.opened(seen);
                let interface = self
                    .link
                    .route(remote.address.ip())
                    .map(|(_, interface)| interface);
                Ok(Bound {
                    path,
                    mtu: interface.and_then(|it| it.mtu),
                    interface: interface.map(|it| it.name.clone()),
                })
            }
        };
        self.client.handle_answer(Answer::Bound(remote, result), self.now);
        self.drain();
    }

    /// The client sends a frame.
    pub(super) fn carry_frame(&mut self, path: Path, content: &[u8]) {
        let connection = self
            .connections
            .iter_mut()
            .find(|it| it.path == path && it.is_open);
        let Some(connection) = connection else { return };
        assert!(connection.writer.push(content), "nothing waits in a writer");
        let octets = connection.writer.pending().to_vec();
        connection.writer.sent(octets.len());
        let id = connection.id;
        self.carry_octets(id, Way::Up, octets);
    }

    /// The gateway sends octets along a connection.
    pub(super) fn carry_stream(&mut self, seen: Path, octets: Vec<u8>) {
        let connection = self.connections.iter().find(|it| it.seen == seen);
        if let Some(id) = connection.map(|it| it.id) {
            self.carry_octets(id, Way::Down, octets);
        }
    }

    fn carry_octets(&mut self, id: u64, way: Way, mut octets: Vec<u8>) {
        let delay = self.link.segment_delay(REPEATED);
        let Some(connection) = self.connections.iter_mut().find(|it| it.id == id) else {
            return;
        };
        if !self.link.lets_tcp_through(connection.path) && !connection.is_stuck {
            connection.is_stuck = true;
            self.enqueue(PATIENCE, Delivery::Tcp(id, Happens::GivenUp));
            return;
        }
        if connection.is_stuck {
            return;
        }
        let side = usize::from(way == Way::Up);
        connection.arrives[side] = connection.arrives[side].max(self.now + delay);
        let after = connection.arrives[side].since(self.now);
        let mut is_cut = false;
        if let Some((cut, left)) = &mut self.cut
            && *cut == way
        {
            is_cut = octets.len() >= *left;
            octets.truncate(*left);
            *left -= octets.len();
        }
        self.octets_carried += octets.len();
        self.enqueue(after, Delivery::Tcp(id, Happens::Octets(way == Way::Up, octets)));
        if is_cut {
            self.cut = None;
            self.enqueue(after, Delivery::Tcp(id, Happens::Reset));
        }
    }

    fn octets(&mut self, id: u64, up: bool, octets: &[u8]) {
        let Some(connection) = self.connections.iter_mut().find(|it| it.id == id) else {
            return;
        };
        if up {
            let seen = connection.seen;
            let answers = self.gateway.handle_octets(seen, octets, self.now);
            self.carry_down(answers);
            for hung_up in self.gateway.take_hung_up() {
                let connection = self.connections.iter().find(|it| it.seen == hung_up);
                if let Some(id) = connection.map(|it| it.id) {
                    self.enqueue(self.link.latency, Delivery::Tcp(id, Happens::Reset));
                }
            }
            return;
        }
        if !connection.is_open || !self.link.is_here(connection.path.local.ip()) {
            return;
        }
        let path = connection.path;
        let mut frames = Vec::new();
        for piece in octets.chunks(1000) {
            let room = connection.reader.room();
            room[..piece.len()].copy_from_slice(piece);
            connection.reader.filled(piece.len());
            while let Some(frame) = connection.reader.next_frame().expect("the gateway's frames") {
                frames.push(frame.to_vec());
            }
        }
        for mut frame in frames {
            if let Some(packet) = self.client.handle_datagram(path, &mut frame, self.now) {
                self.received.push(packet.to_vec());
            }
            self.drain();
        }
    }

    /// The client closes a connection.
    pub(super) fn close_connection(&mut self, socket: Endpoint) {
        let connection = self
            .connections
            .iter_mut()
            .find(|it| it.path.socket() == socket && it.is_open);
        if let Some(connection) = connection {
            connection.is_open = false;
            let (id, after) = (connection.id, connection.arrives[1].since(self.now));
            self.enqueue(after, Delivery::Tcp(id, Happens::Finished));
        }
    }

    /// How many connections the client has open.
    #[must_use]
    pub fn open_connections(&self) -> usize {
        self.connections.iter().filter(|it| it.is_open).count()
    }

    /// Every connection is reset, and both ends hear of it.
    pub fn reset_connections(&mut self) {
        let ids: Vec<u64> = self.connections.iter().map(|it| it.id).collect();
        for id in ids {
            self.happens(id, Happens::Reset);
        }
    }

    /// Nothing gets through on the present connections any more, and nobody says so.
    pub fn stick_connections(&mut self) {
        let stuck: Vec<u64> = self
            .connections
            .iter_mut()
            .filter(|it| !it.is_stuck)
            .map(|it| {
                it.is_stuck = true;
                it.id
            })
            .collect();
        for id in stuck {
            self.enqueue(PATIENCE, Delivery::Tcp(id, Happens::GivenUp));
        }
    }
}
