//! Who connects, and what they say. Whatever goes wrong here ends one connection and nothing else.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use nix::unistd::Gid;
use peregrine_core::crypto::Secret;
use peregrine_platform::ipc::unix::Peer;
use peregrine_platform::ipc::{self, Call, Code, Hello, Refusal, Request, Said, VERSION};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;

use crate::service::{Frame, Service, Watcher};

/// A user has no more connections than this at once ...
const MOST_OF_ONE: usize = 16;
/// ... and all together no more than this.
const MOST: usize = 128;

/// How long a frame may take from its first octet to its last, and the first frame to come.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a caller may take to read what waits for it.
const UNREAD: Duration = Duration::from_secs(10);
/// How many notices may wait for a caller.
const QUEUE: usize = 64;

/// How many connections each user has.
type Counts = Rc<RefCell<BTreeMap<u32, usize>>>;

/// Takes connections for as long as the service runs.
pub(crate) async fn accept(listener: UnixListener, group: Option<Gid>, service: Rc<Service>) {
    let counts = Counts::default();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let (service, counts) = (Rc::clone(&service), Rc::clone(&counts));
                tokio::task::spawn_local(async move {
                    if let Err(error) = talk(stream, group, &service, counts).await {
                        tracing::debug!(%error, "a connection ends");
                    }
                });
            }
            Err(error) => {
                // There are too many descriptors, for example: it passes.
                tracing::warn!(%error, "a connection cannot be taken");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

/// A connection that counts.
struct Counted {
    counts: Counts,
    user: u32,
}

impl Counted {
    fn new(counts: Counts, user: u32) -> Option<Self> {
        let mut all = counts.borrow_mut();
        let sum: usize = all.values().sum();
        let own = all.entry(user).or_default();
        // Root's are not counted against root: it must always get in.
        if user != 0 && (*own >= MOST_OF_ONE || sum >= MOST) {
            return None;
        }
        *own += 1;
        drop(all);
        Some(Self { counts, user })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut all = self.counts.borrow_mut();
        if let Some(own) = all.get_mut(&self.user) {
            *own -= 1;
            if *own == 0 {
                all.remove(&self.user);
            }
        }
    }
}

async fn talk(stream: UnixStream, group: Option<Gid>, service: &Service, counts: Counts) -> io::Result<()> {
    let peer = Peer::admit(&stream, group);
    let (reader, mut writer) = stream.into_split();
    let peer = match peer {
        Ok(peer) => peer,
        Err(error) => {
            let message = "only root and members of the service's group may use it";
            refuse(&mut writer, Refusal::new(Code::NotPermitted, message)).await?;
            return Err(error);
        }
    };
    let Some(_counted) = Counted::new(counts, peer.user) else {
        return refuse(
            &mut writer,
            Refusal::new(Code::Failed, "there are too many connections"),
        )
        .await;
    };
    let mut reader = BufReader::new(reader);
    let hello = timeout(PATIENCE, ipc::read::<Hello>(&mut reader)).await??;
    let ours = Hello {
        version: VERSION,
        program: concat!("peregrined ", env!("CARGO_PKG_VERSION")).to_owned(),
    };
    send(&mut writer, ipc::frame(&Said::Hello(ours))?.into()).await?;
    let Some(Hello { version: VERSION, .. }) = hello else {
        return Ok(());
    };

    let (notices, notice_queue) = mpsc::channel(QUEUE);
    // One answer waits while the one before it is written: whoever does not read what it has asked for asks in vain.
    let (answers, answer_queue) = mpsc::channel(1);
    let is_late = Rc::new(Notify::new());
    let watcher = Watcher {
        user: peer.user,
        frames: notices,
        is_late: Rc::clone(&is_late),
    };
    let conversation = async {
        let ended = hear(reader, service, watcher, &answers).await;
        // What was answered last is still on its way.
        let _written = timeout(UNREAD, answers.reserve()).await;
        ended
    };
    tokio::select! {
        ended = conversation => ended,
        ended = write(writer, answer_queue, notice_queue) => ended,
        () = is_late.notified() => Err(io::Error::new(io::ErrorKind::TimedOut, "it does not read what it watches")),
    }
}

async fn refuse(writer: &mut OwnedWriteHalf, refusal: Refusal) -> io::Result<()> {
    send(writer, ipc::frame(&Said::reply(0, Err(refusal)))?.into()).await
}

async fn send(writer: &mut OwnedWriteHalf, frame: Frame) -> io::Result<()> {
    timeout(UNREAD, writer.write_all(frame.as_bytes())).await?
}

async fn write(
    mut writer: OwnedWriteHalf,
    mut answers: mpsc::Receiver<Frame>,
    mut notices: mpsc::Receiver<Frame>,
) -> io::Result<()> {
    loop {
        let frame = tokio::select! {
            biased;
            Some(answer) = answers.recv() => answer,
            Some(notice) = notices.recv() => notice,
            else => return Ok(()),
        };
        send(&mut writer, frame).await?;
    }
}

/// Does what is asked for, one after the other.
async fn hear(
    mut reader: BufReader<OwnedReadHalf>,
    service: &Service,
    watcher: Watcher,
    answers: &mpsc::Sender<Frame>,
) -> io::Result<()> {
    let user = watcher.user;
    let mut watcher = Some(watcher);
    loop {
        // A caller may be silent for as long as it likes, but not in the middle of a frame.
        let mut header = [0; 4];
        if reader.read(&mut header[..1]).await? == 0 {
            return Ok(());
        }
        let call = timeout(PATIENCE, ipc::read_begun::<Call>(&mut reader, header)).await?;
        let Call { id, request } = match call {
            Ok(call) => call,
            Err(error) => {
                let refusal = Refusal::new(Code::NotUnderstood, error.to_string());
                answer(answers, 0, Err(refusal)).await?;
                return Err(error);
            }
        };
        let begins = matches!(request, Request::Watch);
        answer(answers, id, service.serve(user, request).await).await?;
        if begins && let Some(watcher) = watcher.take() {
            service.watch(watcher);
        }
    }
}

async fn answer(
    answers: &mpsc::Sender<Frame>,
    id: u64,
    result: Result<Box<serde_json::value::RawValue>, Refusal>,
) -> io::Result<()> {
    let frame: Secret = ipc::frame(&Said::reply(id, result))?;
    let gone = |_| io::ErrorKind::BrokenPipe.into();
    answers.send(Rc::new(frame)).await.map_err(gone)
}
