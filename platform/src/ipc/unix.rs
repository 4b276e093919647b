//! The local stream between user interfaces and the service: a socket in the file system, and who is at its other end.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream as Std;
use std::path::Path;
use std::time::Duration;

use nix::unistd::{Gid, Group, Uid};
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use tokio::io::BufReader;
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::{Call, Hello, Refusal, Request, Said, VERSION};

/// Where the service listens.
pub const SOCKET: &str = "/run/peregrined/ipc";

/// Whoever is in this group may command the service.
pub const GROUP: &str = "peregrine";

/// How long the service may take to answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// Listens at `path`, for root and for the members of `group`; its folder is made, and no other user can enter it.
///
/// # Errors
/// The folder or socket cannot be made; `AddrInUse` when another service listens there.
pub fn listen(path: &Path, group: Option<Gid>) -> io::Result<UnixListener> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    // Another one that is there already is its owner's business.
    if !folder.exists() || path == Path::new(SOCKET) {
        fs::DirBuilder::new().recursive(true).mode(0o750).create(folder)?;
        own(folder, group, 0o750)?;
    }
    match fs::symlink_metadata(path) {
        Ok(there) if there.file_type().is_socket() => {
            if Std::connect(path).is_ok() {
                return Err(io::ErrorKind::AddrInUse.into());
            }
            fs::remove_file(path)?;
        }
        Ok(_) => {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "there is a file that is no socket",
            ));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listener = UnixListener::bind(path)?;
    own(path, group, 0o660)?;
    Ok(listener)
}

fn own(path: &Path, group: Option<Gid>, mode: u32) -> io::Result<()> {
    let group = group.unwrap_or_else(nix::unistd::getegid).as_raw();
    if fs::symlink_metadata(path)?.gid() != group {
        std::os::unix::fs::lchown(path, None, Some(group))?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// The group of this name, if there is one.
///
/// # Errors
/// The system's list of groups cannot be read.
pub fn group(name: &str) -> io::Result<Option<Gid>> {
    Ok(Group::from_name(name)?.map(|group| group.gid))
}

/// Who is at the other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The user.
    pub user: u32,
}

impl Peer {
    /// Who has made this connection, as the kernel says, if that is root or a member of `group`.
    ///
    /// # Errors
    /// `PermissionDenied` for anybody else.
    pub fn admit(stream: &UnixStream, group: Option<Gid>) -> io::Result<Self> {
        let credentials = stream.peer_cred()?;
        let user = Uid::from_raw(credentials.uid());
        // The socket's mode keeps others out already; but whoever may enter it by another way, as by an inherited
        // descriptor, may still not command.
        let is_member = || {
            group.is_some_and(|group| {
                Gid::from_raw(credentials.gid()) == group
                    || groups(stream).is_ok_and(|groups| groups.contains(&group.as_raw()))
            })
        };
        if user.is_root() || user == nix::unistd::geteuid() || is_member() {
            return Ok(Self { user: user.as_raw() });
        }
        Err(io::ErrorKind::PermissionDenied.into())
    }

    /// Whether it is root.
    #[must_use]
    pub const fn is_root(self) -> bool {
        self.user == 0
    }
}

/// The groups of who has made a connection, as the kernel noted them then (`SO_PEERGROUPS`, since Linux 4.13): no list of users
/// is asked for, which may be on a network that we have locked.
fn groups(stream: &UnixStream) -> io::Result<Vec<u32>> {
    const MOST: usize = 65_536;
    let mut groups = vec![0_u32; MOST];
    let mut len = libc::socklen_t::try_from(size_of_val(groups.as_slice())).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open for as long as `stream` is borrowed, and the kernel writes no more octets than `len` says,
    // which is the size of what the pointer leads to, and tells in `len` how many it wrote.
    let done = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERGROUPS,
            groups.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    groups.truncate(usize::try_from(len).unwrap_or(0) / size_of::<u32>());
    Ok(groups)
}

/// A user interface's end of a connection.
#[derive(Debug)]
pub struct Client {
    writer: OwnedWriteHalf,
    /// What the service says. It is read by a task of its own, so that whoever waits for it may be interrupted.
    heard: mpsc::Receiver<io::Result<Said>>,
    reader: JoinHandle<()>,
    calls: u64,
    /// What came before it was asked for.
    notices: VecDeque<Box<RawValue>>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// Why the service does not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// It is not running, or not where it is looked for.
    #[error("the service is not running (`systemctl start peregrined`, or `peregrined run`): {0}")]
    Absent(io::Error),
    /// It may not be reached by this user.
    #[error(
        "only root and members of the group `{GROUP}` may use the service; after joining the group, log in anew"
    )]
    NotPermitted,
    /// It is of another version.
    #[error(
        "the service speaks version {theirs}, and this program version {VERSION}: both must be of one release"
    )]
    Version {
        /// Its version.
        theirs: u32,
    },
    /// It ended, or said something that makes no sense.
    #[error("the service ended the conversation: {0}")]
    Broken(io::Error),
    /// It refuses.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

impl Client {
    /// Connects to the service at `path`; `program` is who we are, for its log.
    ///
    /// # Errors
    /// All but [`CallError::Refused`].
    pub async fn connect(path: &Path, program: &str) -> Result<Self, CallError> {
        let stream = UnixStream::connect(path)
            .await
            .map_err(|error| match error.kind() {
                io::ErrorKind::PermissionDenied => CallError::NotPermitted,
                _ => CallError::Absent(error),
            })?;
        let (reader, writer) = stream.into_split();
        let (tell, heard) = mpsc::channel(16);
        let reader = tokio::spawn(async move {
            let mut reader = BufReader::new(reader);
            loop {
                let said = super::read(&mut reader)
                    .await
                    .and_then(|said| said.ok_or_else(|| io::ErrorKind::UnexpectedEof.into()));
                let is_last = said.is_err();
                if tell.send(said).await.is_err() || is_last {
                    break;
                }
            }
        });
        let mut client = Self {
            writer,
            heard,
            reader,
            calls: 0,
            notices: VecDeque::new(),
        };
        let ours = Hello {
            version: VERSION,
            program: program.to_owned(),
        };
        super::write(&mut client.writer, &ours)
            .await
            .map_err(CallError::Broken)?;
        match client.hear().await? {
            Said::Hello(Hello { version: VERSION, .. }) => Ok(client),
            Said::Hello(Hello { version: theirs, .. }) => Err(CallError::Version { theirs }),
            Said::Refusal { refusal, .. } => Err(match refusal.code {
                super::Code::NotPermitted => CallError::NotPermitted,
                _ => refusal.into(),
            }),
            Said::Answer { .. } | Said::Notice(_) => {
                Err(CallError::Broken(io::ErrorKind::InvalidData.into()))
            }
        }
    }

    /// Asks for something and waits for the answer.
    ///
    /// # Errors
    /// [`CallError::Refused`] and [`CallError::Broken`].
    pub async fn call<T: DeserializeOwned>(&mut self, request: Request) -> Result<T, CallError> {
        self.calls += 1;
        let id = self.calls;
        let exchange = async {
            super::write(&mut self.writer, &Call { id, request })
                .await
                .map_err(CallError::Broken)?;
            loop {
                match self.hear().await? {
                    Said::Answer { id: to, answer } if to == id => break Ok(answer),
                    Said::Refusal { id: to, refusal } if to == id || to == 0 => break Err(refusal.into()),
                    Said::Notice(notice) => self.notices.push_back(notice),
                    Said::Hello(_) | Said::Answer { .. } | Said::Refusal { .. } => {}
                }
            }
        };
        let answer: Result<Box<RawValue>, CallError> = tokio::time::timeout(PATIENCE, exchange)
            .await
            .unwrap_or_else(|_| Err(CallError::Broken(io::ErrorKind::TimedOut.into())));
        serde_json::from_str(answer?.get()).map_err(|error| CallError::Broken(error.into()))
    }

    /// The next notice, for whoever watches.
    ///
    /// # Errors
    /// [`CallError::Broken`].
    pub async fn notice(&mut self) -> Result<Box<RawValue>, CallError> {
        if let Some(notice) = self.notices.pop_front() {
            return Ok(notice);
        }
        loop {
            if let Said::Notice(notice) = self.hear().await? {
                return Ok(notice);
            }
        }
    }

    async fn hear(&mut self) -> Result<Said, CallError> {
        let ended = || Err(io::ErrorKind::UnexpectedEof.into());
        let said = self.heard.recv().await.unwrap_or_else(ended);
        said.map_err(CallError::Broken)
    }
}
