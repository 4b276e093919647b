//! Noticing that the way to a gateway may have changed, that the machine woke, and that somebody meddles with what is ours.
//!
//! The kernel's messages about links, addresses, routes and rules (rtnetlink(7)) only say *when* to look. What counts
//! is what the look shows: for each gateway that the client asked a way to, the way that routing chooses now, beside
//! what the client was told. So the churn of containers, refreshed leases and what we do ourselves are no news, and no
//! message needs to be understood to be heeded.
//!
//! What takes a way away is looked at at once; so is everything while there is no way at all. The rest is looked at
//! when it has been quiet for a moment, since a new network comes in many messages.
//!
//! A sleep is noticed by the clocks (the driver does that); here is what tells of it early: logind's signal.

use std::fs::File;
use std::future::pending;
use std::io::{self, Read as _};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use futures_util::StreamExt as _;
use ipnet::IpNet;
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::route::RouteMessage;
use nix::sys::socket::NetlinkAddr;
use peregrine_core::command::HostFault;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc as tokio_mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use zbus::{MatchRule, MessageStream};

use super::dns::Watch;
use super::netlink::{self, Carrier, Family, Netlink};
use super::{Config, Job, READING, Shared, bus, fault, route, socket, watch};
use crate::host::{self, Change, Way};

/// `RTMGRP_LINK`, `RTMGRP_IPV4_IFADDR`, `RTMGRP_IPV4_ROUTE`, `RTMGRP_IPV4_RULE`, `RTMGRP_IPV6_IFADDR`,
/// `RTMGRP_IPV6_ROUTE`, and the groups of IPv6's rules and of next hops, which have no such names.
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x80 | 0x100 | 0x400 | 1 << 18 | 1 << 31;

/// The group `NFNLGRP_NFTABLES`.
const NFTABLES: u32 = 1 << 6;

/// The largest message of the kernel's.
const BUFFER: usize = 65_536;

/// Room for what comes while we do not read. What does not fit is reported as lost, which is a report too.
const RECEIVE_BUFFER: usize = 1 << 20;

/// New things are looked at when it has been quiet this long ...
const QUIET: Duration = Duration::from_millis(75);
/// ... and after this time even when it has not.
const AT_MOST: Duration = Duration::from_millis(400);
/// Between two looks that cannot wait.
const BREATH: Duration = Duration::from_millis(20);

/// The kernel's table of its own addresses, which change with the addresses.
const TABLE_LOCAL: u32 = 255;

/// More gateways than these are not kept in mind.
const MOST_GATEWAYS: usize = 16;

/// The gateways that the client asked ways to, the latest last, each with what it was told.
#[derive(Debug, Default)]
pub(super) struct Gateways(Vec<(IpAddr, Option<Seen>)>);

/// A way, and the state of what it begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    way: Way,
    carrier: Option<Carrier>,
}

impl Gateways {
    /// The client is told this about the way to `address`; true when it had not asked for that before.
    pub(super) fn tell(&mut self, netlink: &mut Netlink, address: IpAddr, way: Option<&Way>) -> bool {
        let before = self.0.len();
        self.0.retain(|(known, _)| *known != address);
        let is_new = self.0.len() == before;
        if self.0.len() >= MOST_GATEWAYS {
            self.0.remove(0);
        }
        self.0
            .push((address, way.map(|way| Seen::new(netlink, way.clone()))));
        is_new
    }

    /// The addresses.
    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.0.iter().map(|(address, _)| *address)
    }

    /// Looks at all ways again; whether one is not what it was. Of a machine that has asked for none, everything is
    /// news.
    fn look(&mut self, netlink: &mut Netlink) -> bool {
        let mut news = self.0.is_empty();
        for (address, told) in &mut self.0 {
            let way = socket::way(netlink, SocketAddr::new(*address, 500)).ok();
            let seen = way.map(|way| Seen::new(netlink, way));
            if seen != *told {
                tracing::debug!(gateway = %address, before = ?told, now = ?seen, "another way");
                *told = seen;
                news = true;
            }
        }
        news
    }

    /// Our own addresses on the ways.
    pub(super) fn sources(&self) -> impl Iterator<Item = IpAddr> {
        self.ways().map(|way| way.source)
    }

    fn ways(&self) -> impl Iterator<Item = &Way> {
        self.0
            .iter()
            .filter_map(|(_, seen)| seen.as_ref().map(|seen| &seen.way))
    }
}

impl Seen {
    fn new(netlink: &mut Netlink, way: Way) -> Self {
        let carrier = way.index().and_then(|index| netlink.carrier(index).ok());
        Self { way, carrier }
    }
}

/// What a message of the kernel's may mean to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Concern {
    Nothing,
    /// Ways may have changed.
    Ways,
    /// A way may be gone.
    Loss,
}

/// Messages that belong together: when the first and the last of them came.
#[derive(Clone, Copy, Debug)]
struct Span {
    first: Instant,
    last: Instant,
}

impl Span {
    /// When to look into them: it has been quiet long enough, or gone on long enough.
    fn end(self) -> Instant {
        (self.last + QUIET).min(self.first + AT_MOST)
    }
}

/// What the monitor tells. The monitor is a task of its own: whoever waits for news beside much else, as for each
/// packet, asks one queue and not every source.
#[derive(Debug)]
pub struct Changes {
    task: JoinHandle<()>,
    news: tokio_mpsc::Receiver<Change>,
}

impl Changes {
    pub(super) fn new(
        config: &Config,
        shared: Arc<Shared>,
        jobs: mpsc::Sender<Job>,
    ) -> Result<Self, HostFault> {
        let mut monitor = Monitor::new(config, shared, jobs)?;
        let (tell, news) = tokio_mpsc::channel(1);
        let task = tokio::spawn(async move { while tell.send(monitor.next().await).await.is_ok() {} });
        Ok(Self { task, news })
    }
}

impl host::Changes for Changes {
    async fn next(&mut self) -> Change {
        match self.news.recv().await {
            Some(change) => change,
            None => pending().await,
        }
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The monitor.
#[derive(Debug)]
struct Monitor {
    kernel: AsyncFd<File>,
    /// What the kernel says about the firewall; none where it has no nftables.
    firewall: Option<AsyncFd<File>>,
    buffer: Vec<u8>,
    /// To look at ways.
    netlink: Netlink,
    shared: Arc<Shared>,
    jobs: mpsc::Sender<Job>,
    files: Option<Watch>,
    logind: Logind,
    /// Messages about what ways depend on, that were not looked into yet.
    ways: Option<Span>,
    /// A look that cannot wait for quiet, only for a breath.
    hurry: Option<Instant>,
    looked: Option<Instant>,
    /// An interface is among what changed.
    has_link: bool,
    /// Messages about what is ours, that were not looked into yet.
    ours: Option<Span>,
    /// The machine's thread looks whether everything of ours is as it should be.
    check: Option<oneshot::Receiver<bool>>,
}

impl Monitor {
    fn new(config: &Config, shared: Arc<Shared>, jobs: mpsc::Sender<Job>) -> Result<Self, HostFault> {
        let failed = |error| fault("listen to the kernel about networks", error);
        Ok(Self {
            kernel: subscribe(libc::NETLINK_ROUTE, GROUPS)
                .and_then(|it| watch(it, READING))
                .map_err(failed)?,
            firewall: subscribe(libc::NETLINK_NETFILTER, NFTABLES)
                .and_then(|it| watch(it, READING))
                .inspect_err(|error| tracing::debug!(%error, "changes of the firewall are not noticed"))
                .ok(),
            buffer: vec![0; BUFFER],
            netlink: Netlink::open().map_err(failed)?,
            shared,
            jobs,
            files: Watch::new(&config.dns),
            logind: Logind::new(config.dns.bus.clone()),
            ways: None,
            hurry: None,
            looked: None,
            has_link: false,
            ours: None,
            check: None,
        })
    }

    /// The kernel said something that is now at the begin of our buffer: decides when to look.
    fn hear(&mut self, said: io::Result<usize>) {
        let concern = match said {
            Ok(len) => {
                let octets = std::mem::take(&mut self.buffer);
                let concern = self.understand(octets.get(..len).unwrap_or_default());
                self.buffer = octets;
                concern
            }
            // ENOBUFS: there was too much of it. Anything may have changed.
            Err(error) => {
                tracing::debug!(%error, "the kernel's messages were lost");
                self.has_link = true;
                note(&mut self.ours);
                Concern::Loss
            }
        };
        if concern >= Concern::Ways {
            note(&mut self.ways);
        }
        if concern == Concern::Loss {
            let now = Instant::now();
            self.hurry = Some(self.looked.map_or(now, |looked| now.max(looked + BREATH)));
        }
    }

    fn understand(&mut self, mut octets: &[u8]) -> Concern {
        let mut worst = Concern::Nothing;
        while !octets.is_empty() {
            let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(octets) else {
                note(&mut self.ours);
                return Concern::Loss;
            };
            let step = usize::try_from(message.header.length)
                .unwrap_or(usize::MAX)
                .next_multiple_of(4);
            octets = octets.get(step.max(4)..).unwrap_or_default();
            if let NetlinkPayload::InnerMessage(message) = message.payload {
                worst = worst.max(self.weigh(&message));
            }
        }
        worst
    }

    fn weigh(&mut self, message: &RouteNetlinkMessage) -> Concern {
        let (device, table) = {
            let tunnel = self.shared.tunnel();
            tunnel
                .as_ref()
                .map_or((None, None), |tunnel| (Some(tunnel.index), Some(tunnel.table)))
        };
        let is_ours = match message {
            RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link) => {
                Some(link.header.index) == device
            }
            RouteNetlinkMessage::NewAddress(address) | RouteNetlinkMessage::DelAddress(address) => {
                Some(address.header.index) == device
            }
            RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) => {
                Some(netlink::route_table(route)) == table
            }
            RouteNetlinkMessage::NewRule(rule) | RouteNetlinkMessage::DelRule(rule) => {
                Some(netlink::rule_table(rule)) == table
            }
            _ => false,
        };
        if is_ours {
            note(&mut self.ours);
            return Concern::Nothing;
        }
        match message {
            RouteNetlinkMessage::NewLink(link) => {
                self.has_link = true;
                self.weigh_link(link, netlink::is_running(link))
            }
            RouteNetlinkMessage::DelLink(link) => self.weigh_link(link, false),
            RouteNetlinkMessage::NewAddress(_) => self.gain(),
            RouteNetlinkMessage::DelAddress(address) => self.weigh_lost_address(address),
            RouteNetlinkMessage::NewRoute(route) => self.weigh_route(route, false),
            RouteNetlinkMessage::DelRoute(route) => self.weigh_route(route, true),
            // Other instances' rules, like ours, do not apply to our sockets.
            RouteNetlinkMessage::NewRule(rule) | RouteNetlinkMessage::DelRule(rule)
                if route::is_place(netlink::rule_table(rule)) =>
            {
                Concern::Nothing
            }
            _ => self.gain(),
        }
    }

    fn weigh_link(&self, link: &LinkMessage, is_running: bool) -> Concern {
        let gateways = self.shared.gateways();
        let is_used = gateways.ways().any(|way| way.index() == Some(link.header.index));
        drop(gateways);
        if is_used && !is_running {
            Concern::Loss
        } else {
            self.gain()
        }
    }

    fn weigh_lost_address(&self, message: &AddressMessage) -> Concern {
        let address = netlink::interface_address(message);
        if self
            .shared
            .gateways()
            .ways()
            .any(|way| Some(way.source) == address)
        {
            Concern::Loss
        } else {
            Concern::Ways
        }
    }

    fn weigh_route(&self, route: &RouteMessage, is_lost: bool) -> Concern {
        let table = netlink::route_table(route);
        if table == TABLE_LOCAL || route::is_place(table) {
            return Concern::Nothing;
        }
        if !is_lost {
            return self.gain();
        }
        let families = [Family::V4, Family::V6];
        let family = families
            .into_iter()
            .find(|family| family.wire() == route.header.address_family);
        let net: Option<IpNet> = family.and_then(|family| netlink::route_destination(route, family));
        if self
            .shared
            .gateways()
            .addresses()
            .any(|gateway| net.is_none_or(|net| net.contains(&gateway)))
        {
            Concern::Loss
        } else {
            Concern::Ways
        }
    }

    /// Something came. Whoever has no way at all does not wait for more.
    fn gain(&self) -> Concern {
        let gateways = self.shared.gateways();
        let has_none = gateways.ways().next().is_none() && gateways.addresses().next().is_some();
        if has_none { Concern::Loss } else { Concern::Ways }
    }

    /// Looks at the ways; whether one is not what it was.
    fn look(&mut self) -> bool {
        self.hurry = None;
        self.looked = Some(Instant::now());
        if std::mem::take(&mut self.has_link) && self.shared.tunnel().is_some() {
            // A new interface may filter what we expect on it.
            let _ended = self.jobs.send(Job::Loosen);
        }
        self.shared.gateways().look(&mut self.netlink)
    }

    /// Has the machine's thread look at what is ours.
    fn look_at_ours(&mut self) {
        let (done, answer) = oneshot::channel();
        if self.jobs.send(Job::Check(done)).is_ok() {
            self.check = Some(answer);
        }
    }

    async fn next(&mut self) -> Change {
        loop {
            tokio::select! {
                said = listen(&self.kernel, &mut self.buffer) => self.hear(said),
                () = until(self.hurry) => {
                    // What came with it may have more to come: that is looked at in its own time.
                    if self.look() {
                        return Change::Networks;
                    }
                }
                () = until(self.ways.map(Span::end)) => {
                    self.ways = None;
                    if self.look() {
                        return Change::Networks;
                    }
                }
                () = until(self.ours.map(Span::end)), if self.check.is_none() => {
                    self.ours = None;
                    self.look_at_ours();
                }
                is_intact = answer(&mut self.check) => {
                    self.check = None;
                    if !is_intact {
                        return Change::Plan;
                    }
                }
                () = firewall_changed(self.firewall.as_ref()) => note(&mut self.ours),
                () = file_changed(self.files.as_mut()) => note(&mut self.ours),
                () = self.logind.woke() => return Change::Woke,
            }
        }
    }
}

/// Something happened now.
fn note(span: &mut Option<Span>) {
    let now = Instant::now();
    *span = Some(Span {
        first: span.map_or(now, |span| span.first),
        last: now,
    });
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => pending().await,
    }
}

/// Waits for the kernel's next words.
async fn listen(kernel: &AsyncFd<File>, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        // A descriptor that cannot be waited for belongs to a runtime that ends.
        let Ok(mut ready) = kernel.ready(READING).await else {
            return pending().await;
        };
        match kernel.get_ref().read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
            said => return said,
        }
    }
}

async fn answer(check: &mut Option<oneshot::Receiver<bool>>) -> bool {
    match check {
        // The thread has ended: nothing is ours any more.
        Some(check) => check.await.unwrap_or(true),
        None => pending().await,
    }
}

/// Waits until anything about the firewall has changed. What it was does not matter.
async fn firewall_changed(firewall: Option<&AsyncFd<File>>) {
    match firewall {
        Some(firewall) => {
            let _lost = listen(firewall, &mut [0; 4096]).await;
        }
        None => pending().await,
    }
}

async fn file_changed(files: Option<&mut Watch>) {
    match files {
        Some(files) => files.changed().await,
        None => pending().await,
    }
}

/// A socket that gets the kernel's messages. Messages of other processes do not reach it (netlink(7)).
fn subscribe(protocol: i32, groups: u32) -> io::Result<File> {
    let socket = Socket::new(
        Domain::from(libc::AF_NETLINK),
        Type::RAW.nonblocking().cloexec(),
        Some(Protocol::from(protocol)),
    )?;
    let _smaller = socket.set_recv_buffer_size(RECEIVE_BUFFER);
    nix::sys::socket::bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    Ok(File::from(OwnedFd::from(socket)))
}

/// Hears from logind, where there is one, that the machine woke. Nothing waits for it.
#[derive(Debug)]
struct Logind {
    task: JoinHandle<()>,
    woke: tokio_mpsc::Receiver<()>,
}

impl Logind {
    fn new(bus: Option<String>) -> Self {
        let (tell, woke) = tokio_mpsc::channel(1);
        let task = tokio::spawn(async move {
            if let Err(error) = listen_to_logind(bus.as_deref(), &tell).await {
                tracing::debug!(%error, "logind will not tell when the machine wakes");
            }
        });
        Self { task, woke }
    }

    async fn woke(&mut self) {
        if self.woke.recv().await.is_none() {
            pending().await
        }
    }
}

impl Drop for Logind {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// `PrepareForSleep` of org.freedesktop.login1(5): true before a sleep, false after it.
async fn listen_to_logind(address: Option<&str>, tell: &tokio_mpsc::Sender<()>) -> zbus::Result<()> {
    let bus = bus::connect(address).await?;
    let rule = MatchRule::builder()
        .msg_type(zbus::message::Type::Signal)
        .sender("org.freedesktop.login1")
        .interface("org.freedesktop.login1.Manager")
        .member("PrepareForSleep")
        .build()?;
    let mut signals = MessageStream::for_match_rule(rule, &bus, None).await?;
    while let Some(signal) = signals.next().await {
        if !signal?.body().deserialize::<bool>()? {
            // One that was not heard yet says the same.
            let _told_already = tell.try_send(());
        }
    }
    Ok(())
}
