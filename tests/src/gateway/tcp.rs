//! TCP as the one who is connected to (RFC 9329, sections 3, 4 and 6.1). Its own reading of the frames, so that the
//! client's is not compared with itself.

use peregrine_core::command::Path;
use peregrine_core::timer::Instant;

use super::{Gateway, Outgoing};

const PREFIX: &[u8] = b"IKETCP";

/// A connection from a client, and what has come of it that is not a whole frame yet.
pub(super) struct Inlet {
    path: Path,
    octets: Vec<u8>,
    is_greeted: bool,
}

impl Inlet {
    /// The next frame; an error when the stream makes no sense.
    fn next(&mut self) -> Result<Option<Vec<u8>>, ()> {
        if !self.is_greeted {
            let len = self.octets.len().min(PREFIX.len());
            if self.octets[..len] != PREFIX[..len] {
                return Err(());
            }
            if len < PREFIX.len() {
                return Ok(None);
            }
            self.octets.drain(..len);
            self.is_greeted = true;
        }
        let [high, low, ..] = self.octets[..] else {
            return Ok(None);
        };
        let total = usize::from(u16::from_be_bytes([high, low]));
        if total < 2 {
            return Err(());
        }
        if self.octets.len() < total {
            return Ok(None);
        }
        let frame = self.octets[2..total].to_vec();
        self.octets.drain(..total);
        Ok(Some(frame))
    }
}

impl Gateway {
    /// A client has connected.
    pub fn opened(&mut self, path: Path) {
        self.inlets.push(Inlet {
            path,
            octets: Vec::new(),
            is_greeted: false,
        });
    }

    /// A connection is gone. What was made on it is not.
    pub fn closed(&mut self, path: Path) {
        self.inlets.retain(|inlet| inlet.path != path);
    }

    /// Connections that the gateway has closed since the last call.
    pub fn take_hung_up(&mut self) -> Vec<Path> {
        std::mem::take(&mut self.hung_up)
    }

    /// The next octets of a connection.
    pub fn handle_octets(&mut self, path: Path, octets: &[u8], now: Instant) -> Vec<Outgoing> {
        let mut out = Vec::new();
        if let Some(inlet) = self.inlets.iter_mut().find(|inlet| inlet.path == path) {
            inlet.octets.extend_from_slice(octets);
        }
        while let Some(inlet) = self.inlets.iter_mut().find(|inlet| inlet.path == path) {
            match inlet.next() {
                Ok(Some(frame)) if frame.is_empty() => {}
                Ok(Some(frame)) => out.extend(self.handle(path, &frame, now)),
                Ok(None) => break,
                Err(()) => {
                    self.closed(path);
                    self.hung_up.push(path);
                }
            }
        }
        out
    }

    /// What is to be sent: datagrams, and octets for the connections that there are.
    pub(super) fn out(&mut self) -> Vec<Outgoing> {
        let out = std::mem::take(&mut self.book.out);
        let framed = out.into_iter().filter_map(|(path, content)| {
            if !path.is_tcp() {
                return Some((path, content));
            }
            let is_open = self.inlets.iter().any(|inlet| inlet.path == path);
            let total = u16::try_from(content.len() + 2).expect("a frame");
            is_open.then(|| (path, [&total.to_be_bytes(), &content[..]].concat()))
        });
        framed.collect()
    }
}
