//! One TCP connection to a gateway: frames put together for it, and taken out of what comes (RFC 9329).

use std::io;
use std::task::{Context, Poll};

use peregrine_core::command::Path;
use peregrine_core::wire::{StreamReader, StreamWriter};

use crate::batch::Batch;
use crate::host::{Arrival, Stream};

/// So often it is read before others get their turn, should there be nothing in it but what means nothing.
const READS: usize = 4;

/// A stream with its two buffers, which are allocated once.
pub(crate) struct Connection<C> {
    pub(crate) path: Path,
    stream: C,
    reader: StreamReader,
    writer: StreamWriter,
}

impl<C: Stream> Connection<C> {
    /// A new one: the prefix waits to be sent.
    pub(crate) fn new(stream: C, path: Path) -> Self {
        Self {
            path,
            stream,
            reader: StreamReader::new(),
            writer: StreamWriter::new(),
        }
    }

    /// Room for an ESP packet of at most `len` octets, unless too many wait.
    pub(crate) fn reserve(&mut self, len: usize) -> Option<&mut [u8]> {
        self.writer.reserve(len)
    }

    /// The last reserved room holds a packet of `len` octets.
    pub(crate) fn commit(&mut self, len: usize) {
        self.writer.commit(len);
    }

    /// Queues an IKE message, for which there is always room on a connection that lives.
    pub(crate) fn push(&mut self, message: &[u8]) -> io::Result<()> {
        if self.writer.push(message) {
            return Ok(());
        }
        Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "it takes nothing any more",
        ))
    }

    /// Everything is sent.
    pub(crate) fn is_idle(&self) -> bool {
        self.writer.pending().is_empty()
    }

    /// Sends as much as there is room for.
    ///
    /// # Errors
    /// The connection is gone.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        while !self.is_idle() {
            match self.stream.write(self.writer.pending()) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(len) => self.writer.sent(len),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    pub(crate) fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.poll_writable(cx)
    }

    /// Adds to `batch` the frames that are there now and find room.
    ///
    /// # Errors
    /// The connection is gone, or the stream makes no sense any more. What was read before is in `batch`.
    pub(crate) fn poll_recv(
        &mut self,
        cx: &mut Context<'_>,
        batch: &mut Batch<Arrival>,
    ) -> Poll<io::Result<()>> {
        let before = batch.len();
        for _ in 0..READS {
            if !self.take(batch)? {
                return Poll::Ready(Ok(()));
            }
            match self.stream.poll_read(cx, self.reader.room()) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                Poll::Ready(Ok(len)) => self.reader.filled(len),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending if batch.len() > before => return Poll::Ready(Ok(())),
                Poll::Pending => return Poll::Pending,
            }
        }
        let _all = self.take(batch)?;
        Poll::Ready(Ok(()))
    }

    /// Takes the frames that are here; false when they do not find room.
    fn take(&mut self, batch: &mut Batch<Arrival>) -> io::Result<bool> {
        loop {
            let Some(room) = batch.room() else {
                return Ok(false);
            };
            let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
            let Some(frame) = self.reader.next_frame().map_err(invalid)? else {
                return Ok(true);
            };
            let len = frame.len();
            if let Some(room) = room.get_mut(..len) {
                room.copy_from_slice(frame);
            }
            batch.push(len, self.path.into());
        }
    }
}
