//! The host for Linux: a TUN device, rtnetlink, policy routing, and whatever resolves names here.

mod bus;
mod clock;
mod dns;
mod fetch;
mod lock;
mod machine;
mod netlink;
mod network;
mod program;
mod resolve;
mod route;
mod socket;
mod state;
mod sysctl;
mod tun;
mod udp;

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::errno::Errno;
use peregrine_core::command::{Fetch, HostFault};
use peregrine_core::plan::{Plan, TunnelConfig};
use peregrine_core::timer::{Instant, UnixTime};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;

pub use self::clock::Alarm;
pub use self::dns::DnsSystem;
use self::machine::{Machine, Made};
use self::netlink::Netlink;
pub use self::network::Changes;
use self::network::Gateways;
pub use self::socket::Stream;
pub use self::state::StateDirectories;
pub use self::tun::Tun;
pub use self::udp::Socket;
use crate::clock::Clock;
use crate::host::{Applied, Host, Way};

/// Where this host finds and keeps things.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where it writes down what it does to the machine.
    pub state: StateDirectories,
    /// Where name resolution is configured.
    pub dns: DnsSystem,
    /// Where nft(8) may be, which the kill switch needs.
    pub nft: Vec<PathBuf>,
    /// What of the packets' work is left to the kernel and the network card.
    pub offloads: Offloads,
}

/// What the kernel and the network card do of the packets' work where they can: without one of these everything still
/// works, and more slowly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offloads {
    /// The tunnel device gives packets of TCP and UDP in large pieces, to be cut by us (`IFF_VNET_HDR`).
    pub tso: bool,
    /// The tunnel device takes packets in large pieces.
    pub tun_gro: bool,
    /// Sockets take datagrams of one length in one piece (`UDP_SEGMENT`).
    pub udp_gso: bool,
    /// Sockets give them in one piece (`UDP_GRO`).
    pub udp_gro: bool,
}

impl Offloads {
    /// All of them.
    pub const ALL: Self = Self {
        tso: true,
        tun_gro: true,
        udp_gso: true,
        udp_gro: true,
    };
}

impl Config {
    /// As the system has it.
    #[must_use]
    pub fn system() -> Self {
        Self {
            state: StateDirectories::system(),
            dns: DnsSystem::default(),
            nft: [
                "/usr/sbin/nft",
                "/sbin/nft",
                "/usr/bin/nft",
                "/run/current-system/sw/bin/nft",
            ]
            .map(PathBuf::from)
            .into(),
            offloads: Offloads::ALL,
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

/// Whether a run that has crashed, or that ended and was to leave it so, has left this machine locked: what comes next must
/// not open it by failing.
///
/// # Errors
/// The records cannot be read.
pub fn is_left_locked(config: &Config) -> Result<bool, HostFault> {
    state::Slot::is_left_locked(&config.state)
}

/// This machine. Dropping it takes back everything of ours but a lock, which only a plan lifts.
#[derive(Debug)]
pub struct LinuxHost {
    config: Config,
    jobs: mpsc::Sender<Job>,
    /// None only while dropping.
    thread: Option<JoinHandle<()>>,
    shared: Arc<Shared>,
}

/// What the machine's thread does, one after the other.
#[derive(Debug)]
enum Job {
    /// Apply a plan, and tell what came of it.
    Apply(Box<Plan>, oneshot::Sender<Result<Made, HostFault>>),
    /// Look whether everything of ours is as the last plan says.
    Check(oneshot::Sender<bool>),
    /// Look for reverse-path filters that have become too strict.
    Loosen,
    /// Take everything back, and end.
    End,
}

/// What the machine's thread, sockets, lookups and the monitor know in common.
#[derive(Debug, Default)]
struct Shared {
    gateways: Mutex<Gateways>,
    tunnel: Mutex<Option<Tunnel>>,
    /// Only our own sockets get out beside the tunnel.
    locked: AtomicBool,
}

impl Shared {
    fn is_locked(&self) -> bool {
        self.locked.load(Ordering::Relaxed)
    }

    fn gateways(&self) -> MutexGuard<'_, Gateways> {
        self.gateways.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tunnel(&self) -> MutexGuard<'_, Option<Tunnel>> {
        self.tunnel.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The tunnel that is on this machine.
#[derive(Clone, Debug)]
struct Tunnel {
    /// The device's index.
    index: u32,
    /// Our routing table.
    table: u32,
    config: TunnelConfig,
    /// The name servers that the tunnel's have taken the place of, while it has any.
    replaced: Option<dns::Replaced>,
}

impl LinuxHost {
    /// The host in the namespaces of the calling thread. Changes nothing yet.
    ///
    /// # Errors
    /// The kernel does not talk to us about routes, or gives us no thread.
    pub fn new(config: Config) -> Result<Self, HostFault> {
        let shared = Arc::<Shared>::default();
        let mut machine = Machine::new(config.clone(), Arc::clone(&shared))?;
        let (jobs, queue) = mpsc::channel::<Job>();
        let work = move || {
            // Nobody waits for an answer when the driver has ended meanwhile.
            while let Ok(job) = queue.recv() {
                match job {
                    Job::Apply(plan, done) => {
                        let _unheard = done.send(machine.apply(&plan));
                    }
                    Job::Check(done) => {
                        let is_locked = machine.restore_lock();
                        let _unheard = done.send(is_locked && machine.is_intact());
                    }
                    Job::Loosen => {
                        if let Err(fault) = machine.loosen() {
                            tracing::warn!(%fault, "the gateway may not be heard on another network");
                        }
                    }
                    Job::End => break,
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("peregrine-host".to_owned())
            .spawn(work)
            .map_err(|error| fault("start a thread", error))?;
        Ok(Self {
            config,
            jobs,
            thread: Some(thread),
            shared,
        })
    }
}

impl LinuxHost {
    /// A UDP socket at this address and port, for a gateway's end of a tunnel: it waits for whoever comes.
    ///
    /// # Errors
    /// The operating system refuses it; `permission` when for want of a privilege.
    pub fn listen(&self, address: SocketAddr) -> Result<Socket, HostFault> {
        Socket::bind(address, None, self.config.offloads)
    }
}

impl Drop for LinuxHost {
    fn drop(&mut self) {
        let _ended_already = self.jobs.send(Job::End);
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

    fn slept(&self) -> Duration {
        clock::slept()
    }

    fn alarm(&self) -> Result<Alarm, HostFault> {
        Alarm::new()
    }
}

impl Host for LinuxHost {
    type Tun = Tun;
    type Socket = Socket;
    type Stream = Stream;
    type Changes = Changes;

    fn apply(&self, plan: Plan) -> impl Future<Output = Result<Applied<Tun>, HostFault>> + 'static {
        let (done, answer) = oneshot::channel();
        // Not taken: then `done` is dropped with it, and the answer says so.
        let _not_taken = self.jobs.send(Job::Apply(Box::new(plan), done));
        async move {
            let ended = |_| fault("change this machine", "the thread that does it has ended");
            let Made { queue, interface } = answer.await.map_err(ended)??;
            Ok(Applied {
                tun: queue.map(Tun::new).transpose()?,
                interface,
            })
        }
    }

    fn way(&self, remote: SocketAddr) -> Result<Way, HostFault> {
        let mut netlink = Netlink::open().map_err(|error| fault("talk to the kernel about routes", error))?;
        let way = socket::way(&mut netlink, remote);
        let is_new = self
            .shared
            .gateways()
            .tell(&mut netlink, remote.ip(), way.as_ref().ok());
        if is_new && self.shared.tunnel().is_some() {
            let _ended = self.jobs.send(Job::Loosen);
        }
        way
    }

    fn open(&self, way: &Way) -> Result<Socket, HostFault> {
        Socket::open(way, self.config.offloads)
    }

    fn connect(
        &self,
        way: &Way,
        remote: SocketAddr,
    ) -> impl Future<Output = Result<Stream, HostFault>> + 'static {
        Stream::open(way.clone(), remote)
    }

    fn changes(&self) -> Result<Changes, HostFault> {
        Changes::new(&self.config, Arc::clone(&self.shared), self.jobs.clone())
    }

    fn resolve(&self, name: String) -> impl Future<Output = Result<Vec<IpAddr>, HostFault>> + 'static {
        look_up(Arc::clone(&self.shared), self.config.dns.clone(), name)
    }

    fn fetch(&self, fetch: Fetch) -> impl Future<Output = Result<Vec<u8>, HostFault>> + 'static {
        let action = format!("fetch {}", fetch.url);
        let (shared, config) = (Arc::clone(&self.shared), self.config.dns.clone());
        let work = fetch::fetch(fetch, move |name| {
            look_up(Arc::clone(&shared), config.clone(), name)
        });
        async move {
            let late = |_| fault(action.as_str(), "no answer in time");
            tokio::time::timeout(Fetch::PATIENCE, work)
                .await
                .map_err(late)?
                .map_err(|error| fault(action.as_str(), error))
        }
    }
}

/// The addresses of a name, beside the tunnel.
fn look_up(
    shared: Arc<Shared>,
    system: DnsSystem,
    name: String,
) -> impl Future<Output = Result<Vec<IpAddr>, HostFault>> + 'static {
    let (done, answer) = oneshot::channel();
    let action = format!("look up {name}");
    // On a thread that nobody waits for at the end: the C library cannot be told to stop.
    let work = move || {
        let _unheard = done.send(resolve::look_up(&shared, &system, &name));
    };
    let spawned = std::thread::Builder::new()
        .name("peregrine-resolve".to_owned())
        .spawn(work);
    async move {
        spawned.map_err(|error| fault(action.as_str(), error))?;
        let ended = |_| fault(action.as_str(), "the thread that does it has ended");
        let late = |_| fault(action.as_str(), "no name server answered in time");
        tokio::time::timeout(resolve::PATIENCE, answer)
            .await
            .map_err(late)?
            .map_err(ended)?
            .map_err(|error| fault(action.as_str(), error))
    }
}

/// What to wait for before reading. The kernel reports a deleted device as an error alone, without anything to read.
const READING: Interest = Interest::READABLE.add(Interest::ERROR);

/// Registers a descriptor that does not block with the runtime of the calling task.
fn watch<T: AsRawFd + Into<OwnedFd>>(owner: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    // SAFETY: what can become an `OwnedFd` owns its descriptor (here: files and sockets), returns the same one for as long as
    // it lives, and the `AsyncFd` owns it.
    let watched = unsafe { AsyncFd::register_with_interest(owner, interest) };
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
