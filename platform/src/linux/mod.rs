//! The host for Linux: a TUN device, rtnetlink, policy routing, and whatever resolves names here.

mod clock;
mod dns;
mod machine;
mod netlink;
mod route;
mod socket;
mod state;
mod sysctl;
mod tun;

use std::fs::File;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::sync::{Arc, PoisonError, mpsc};
use std::thread::JoinHandle;

use nix::errno::Errno;
use peregrine_core::command::{Bound, HostFault};
use peregrine_core::plan::Plan;
use peregrine_core::timer::{Instant, UnixTime};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;

pub use self::clock::Alarm;
pub use self::dns::DnsSystem;
use self::machine::{Gateways, Machine, Made};
pub use self::socket::Socket;
pub use self::state::StateDirectories;
pub use self::tun::Tun;
use crate::clock::Clock;
use crate::host::{Applied, Host};

/// Where this host finds and keeps things.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where it writes down what it does to the machine.
    pub state: StateDirectories,
    /// Where name resolution is configured.
    pub dns: DnsSystem,
}

impl Config {
    /// As the system has it.
    #[must_use]
    pub fn system() -> Self {
        Self {
            state: StateDirectories::system(),
            dns: DnsSystem::default(),
        }
    }
}

/// Whether this process may make tunnel devices and change routes: it has `CAP_NET_ADMIN`, as root has and as
/// `setcap cap_net_admin+ep` gives it to one program.
#[must_use]
pub fn can_manage_network() -> bool {
    const CAP_NET_ADMIN: u32 = 12;
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask >> CAP_NET_ADMIN & 1 == 1)
}

/// This machine. Dropping it takes back everything of ours.
#[derive(Debug)]
pub struct LinuxHost {
    /// None only while dropping.
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    gateways: Gateways,
}

/// A plan to apply, and where to tell what came of it.
#[derive(Debug)]
struct Job {
    plan: Plan,
    done: oneshot::Sender<Result<Made, HostFault>>,
}

impl LinuxHost {
    /// The host in the namespaces of the calling thread. Changes nothing yet.
    ///
    /// # Errors
    /// The kernel does not talk to us about routes, or gives us no thread.
    pub fn new(config: Config) -> Result<Self, HostFault> {
        let gateways = Gateways::default();
        let mut machine = Machine::new(config, Arc::clone(&gateways))?;
        let (jobs, queue) = mpsc::channel::<Job>();
        let work = move || {
            while let Ok(job) = queue.recv() {
                // Nobody waits for the answer when the driver has ended meanwhile.
                let _unheard = job.done.send(machine.apply(&job.plan));
            }
        };
        let thread = std::thread::Builder::new()
            .name("peregrine-host".to_owned())
            .spawn(work)
            .map_err(|error| fault("start a thread", error))?;
        Ok(Self {
            jobs: Some(jobs),
            thread: Some(thread),
            gateways,
        })
    }
}

impl Drop for LinuxHost {
    fn drop(&mut self) {
        self.jobs = None; // ends the thread, which takes everything back
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that changes the machine had ended by a panic");
        }
    }
}

impl Clock for LinuxHost {
    type Alarm = Alarm;

    fn now(&self) -> Instant {
        clock::now()
    }

    fn unix_time(&self) -> UnixTime {
        crate::clock::unix_time()
    }

    fn alarm(&self) -> Result<Alarm, HostFault> {
        Alarm::new()
    }
}

impl Host for LinuxHost {
    type Tun = Tun;
    type Socket = Socket;

    fn apply(&self, plan: Plan) -> impl Future<Output = Result<Applied<Tun>, HostFault>> + 'static {
        let (done, answer) = oneshot::channel();
        if let Some(jobs) = &self.jobs {
            // Not taken: then `done` is dropped with it, and the answer says so.
            let _not_taken = jobs.send(Job { plan, done });
        }
        async move {
            let ended = |_| fault("change this machine", "the thread that does it has ended");
            let Made { file, interface } = answer.await.map_err(ended)??;
            Ok(Applied {
                tun: file.map(Tun::new).transpose()?,
                interface,
            })
        }
    }

    fn open(&self, remote: SocketAddr) -> Result<Socket, HostFault> {
        Socket::open(remote)
    }

    fn way(&self, socket: &Socket, remote: SocketAddr) -> Result<Bound, HostFault> {
        self.gateways
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(remote.ip());
        socket.way(remote)
    }

    fn resolve(&self, name: String) -> impl Future<Output = Result<Vec<IpAddr>, HostFault>> + 'static {
        let (done, answer) = oneshot::channel();
        let action = format!("look up {name}");
        // On a thread that nobody waits for at the end: the C library cannot be told to stop.
        let work = move || {
            let addresses = (name.as_str(), 0).to_socket_addrs();
            let addresses = addresses.map(|all| {
                let mut found = Vec::new();
                for address in all.map(|address| address.ip()) {
                    if !found.contains(&address) {
                        found.push(address);
                    }
                }
                found
            });
            let _unheard = done.send(addresses);
        };
        let spawned = std::thread::Builder::new()
            .name("peregrine-resolve".to_owned())
            .spawn(work);
        async move {
            spawned.map_err(|error| fault(action.as_str(), error))?;
            let ended = |_| fault(action.as_str(), "the thread that does it has ended");
            answer
                .await
                .map_err(ended)?
                .map_err(|error| fault(action.as_str(), error))
        }
    }
}

/// What to wait for before reading. The kernel reports a deleted device as an error alone, without anything to read.
const READING: Interest = Interest::READABLE.add(Interest::ERROR);

/// Registers a descriptor that does not block with the runtime of the calling task, for reading.
fn watch(file: File) -> io::Result<AsyncFd<File>> {
    // SAFETY: a `File` owns its descriptor, returns the same one for as long as it lives, and the `AsyncFd` owns it.
    let watched = unsafe { AsyncFd::register_with_interest(file, READING) };
    watched.map_err(|error| error.into_parts().1)
}

/// The operating system's own words.
struct Reason {
    text: String,
    permission: bool,
}

/// What could not be done, and why.
fn fault(action: impl Into<String>, reason: impl Into<Reason>) -> HostFault {
    let Reason { text, permission } = reason.into();
    HostFault {
        action: action.into(),
        reason: text,
        permission,
    }
}

impl From<Errno> for Reason {
    fn from(error: Errno) -> Self {
        Self {
            text: error.desc().to_owned(),
            permission: matches!(error, Errno::EPERM | Errno::EACCES),
        }
    }
}

impl From<io::Error> for Reason {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(code) => Errno::from_raw(code).into(),
            None => Self {
                text: error.to_string(),
                permission: error.kind() == io::ErrorKind::PermissionDenied,
            },
        }
    }
}

impl From<&str> for Reason {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

impl From<String> for Reason {
    fn from(text: String) -> Self {
        Self {
            text,
            permission: false,
        }
    }
}
