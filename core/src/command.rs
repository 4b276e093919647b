//! The vocabulary between the client and everything that commands or watches it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use serde::Serialize;

use crate::crypto::Secret;
pub use crate::eap::PromptKind;
pub use crate::failure::{Cause, Failure, HostFault, Kind, Phase, RedirectRefusal, Side};
pub use crate::fetch::{Fetch, FetchId};
use crate::plan::{Dns, Plan};
use crate::profile::{Credentials, Host, Profile};
use crate::timer::UnixTime;

/// What the user wants.
#[derive(Debug)]
pub enum Command {
    /// Bring this profile's tunnel up. Ends whatever is up.
    Connect(Box<Profile>, Credentials),
    /// Take the tunnel down and tell the gateway. A machine that is locked is open then.
    Disconnect,
    /// Take the tunnel down and tell the gateway, because this program ends. A machine that is locked stays so.
    Rest,
    /// Replace an SA of the tunnel that is up, as soon as nothing else is under way.
    Rekey(RekeyKind),
    /// The user's answer to a [`Prompt`], or that there will be none. One that nobody waits for any more is ignored.
    Reply(PromptId, Option<Secret>),
}

/// Which question an answer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct PromptId(pub u32);

/// A question to the user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Prompt {
    /// Which question it is.
    pub id: PromptId,
    /// What kind of answer is expected.
    pub kind: PromptKind,
    /// The name of the profile that is being connected.
    pub profile: String,
    /// The gateway's own words, or its EAP server's, if it has any: one line, harmless to show, and not to be trusted.
    pub message: Option<String>,
}

/// What carries IKE and ESP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// Datagrams (RFC 7296, section 2; RFC 3948).
    Udp,
    /// One connection for the IKE SA and its Child SAs (RFC 9329).
    Tcp,
}

impl Transport {
    /// The transport's name in status and events.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
        }
    }
}

/// One end of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Endpoint {
    /// What carries the flow.
    pub transport: Transport,
    /// The address and port.
    pub address: SocketAddr,
}

impl Endpoint {
    /// An end of a UDP flow.
    #[must_use]
    pub const fn udp(address: SocketAddr) -> Self {
        let transport = Transport::Udp;
        Self { transport, address }
    }

    /// An end of a TCP connection.
    #[must_use]
    pub const fn tcp(address: SocketAddr) -> Self {
        let transport = Transport::Tcp;
        Self { transport, address }
    }
}

/// Two ends of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Path {
    /// Our address and port, as the socket has them. No two sockets of one transport have the same.
    pub local: SocketAddr,
    /// The gateway's address and port.
    pub remote: SocketAddr,
    /// What carries it.
    pub transport: Transport,
}

impl Path {
    /// A UDP flow.
    #[must_use]
    pub const fn udp(local: SocketAddr, remote: SocketAddr) -> Self {
        let transport = Transport::Udp;
        Self {
            local,
            remote,
            transport,
        }
    }

    /// A TCP connection.
    #[must_use]
    pub const fn tcp(local: SocketAddr, remote: SocketAddr) -> Self {
        let transport = Transport::Tcp;
        Self {
            local,
            remote,
            transport,
        }
    }

    /// Whether it is a TCP connection.
    #[must_use]
    pub const fn is_tcp(self) -> bool {
        matches!(self.transport, Transport::Tcp)
    }

    /// Our end: what tells a socket or connection from others.
    #[must_use]
    pub const fn socket(self) -> Endpoint {
        Endpoint {
            transport: self.transport,
            address: self.local,
        }
    }

    /// The gateway's end.
    #[must_use]
    pub const fn gateway(self) -> Endpoint {
        Endpoint {
            transport: self.transport,
            address: self.remote,
        }
    }
}

/// A datagram to send: a UDP payload, or what becomes one frame of a TCP stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// From where to where. `path.local` is an address that an [`Answer::Bound`] named: it says which socket sends.
    pub path: Path,
    /// The UDP payload, with the non-ESP marker where the port calls for it (RFC 3948, section 2.2). Over TCP the frame
    /// without its length (RFC 9329, section 3); it is never dropped while the connection lives.
    pub payload: Box<[u8]>,
    /// It probes how large a datagram gets through (RFC 8899): nobody on this machine or on its way may fragment it,
    /// whatever path MTU the operating system believes in.
    pub is_probe: bool,
}

/// A question of the client's to its host. Every question gets exactly one [`Answer`], late or never is a time-out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// The addresses of a host name, on the physical network.
    Resolve(String),
    /// A UDP socket whose datagrams to this address leave by the way that routing chooses now, and never by our own
    /// tunnel. If a socket on that way (the same source address and interface) is open already, it is that one; the
    /// client sends to more than one port of the gateway from it (RFC 7296, section 2.23). Else it is a new one, on a
    /// port of its own. Sockets on earlier ways stay open and are read until [`Event::Release`] names them or nothing
    /// is up any more.
    ///
    /// Of an end of TCP: a new connection to this address, by the way that routing chooses now and never by our own
    /// tunnel. The answer comes when it is made, or cannot be made within ten seconds. A later question about the same end
    /// takes the place of one that is not answered yet. That a connection has ended the host tells with
    /// `Client::handle_closed`.
    Bind(Endpoint),
    /// A question to the user. The client waits three minutes for the answer.
    Prompt(Prompt),
    /// Something to fetch over HTTP, on the physical network. The client waits a few seconds for it.
    Fetch(Fetch),
}

/// The host's answer to an [`Ask`] or to an [`Event::Plan`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The addresses of a name, in the resolver's order; empty when there are none.
    Resolved {
        /// The name that was asked for: an answer may come late, after another question.
        name: String,
        /// Its addresses on the physical network of the moment.
        result: Result<Vec<IpAddr>, HostFault>,
    },
    /// The socket for the address asked for, and what the host knows of the way there.
    Bound(Endpoint, Result<Bound, HostFault>),
    /// The user's answer to a prompt, or none if there will be none.
    Reply(PromptId, Option<Secret>),
    /// The body of what was fetched, of at most [`Fetch::MAX_BODY`] octets.
    Fetched(FetchId, Result<Vec<u8>, HostFault>),
    /// The latest plan is what the machine now is, or why it cannot be. `interface` is the tunnel device's name.
    Applied(Result<Option<String>, HostFault>),
}

/// A socket that reaches the gateway, and what the host knows of the way there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bound {
    /// The socket's own address and port, as a route lookup chose them, and the address asked for. The host gives
    /// what comes in on a socket to the client with the socket's own address as `local`.
    pub path: Path,
    /// The largest IP datagram that the way is known to carry, in octets; none when the host cannot tell.
    pub mtu: Option<u16>,
    /// The physical interface that the way begins with.
    pub interface: Option<String>,
}

/// What the client wants done or known.
#[derive(Clone, Debug)]
pub enum Event {
    /// A question.
    Ask(Ask),
    /// Make the machine equal to this; answer with [`Answer::Applied`].
    Plan(Plan),
    /// The socket or connection with this end of ours is not needed any more: nothing is expected on its way. What is
    /// written to a connection is sent before it is closed.
    Release(Endpoint),
    /// The whole truth, whenever it changed.
    Status(Box<Status>),
    /// Something happened to a connection that stays.
    Happened(Box<Happening>),
}

/// A gateway sends us to another one (RFC 5685).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// The other one.
    pub to: Host,
    /// The address of the one that sent us.
    pub from: IpAddr,
}

/// What happens to a connection while it lasts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Happening {
    /// An SA was replaced.
    Rekey(Rekey),
    /// The tunnel goes another way.
    Roam(Roam),
    /// A fresh IKE SA took the place of one that was lost or had to be renewed.
    Reconnect(Reconnect),
}

/// An SA was replaced by a new one (RFC 7296, section 2.8).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rekey {
    /// Of which phase.
    pub kind: RekeyKind,
    /// Who began.
    pub by: Initiator,
    /// The new SA's suite in strongSwan's proposal keywords.
    pub suite: String,
    /// The SPI before: of a Child SA the inbound one, of an IKE SA our own. None when there was none to replace.
    pub old_spi: Option<String>,
    /// The same of the new one.
    pub new_spi: String,
    /// From our request to the new SA, in milliseconds; none when the gateway began.
    #[serde(rename = "took_ms", serialize_with = "milliseconds")]
    pub took: Option<Duration>,
}

/// Which SA was replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RekeyKind {
    /// Phase 1.
    IkeSa,
    /// Phase 2.
    ChildSa,
}

/// Who began an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Initiator {
    /// We did.
    Client,
    /// The gateway did.
    Gateway,
}

/// The tunnel goes another way, and the gateway knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Roam {
    /// Before.
    pub from: Path,
    /// Now.
    pub to: Path,
    /// How.
    pub means: Means,
    /// From the moment that we knew of the change until the gateway confirmed it, in milliseconds.
    #[serde(rename = "took_ms", serialize_with = "whole_milliseconds")]
    pub took: Duration,
}

/// How a tunnel got onto another path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Means {
    /// The SA was moved (RFC 4555).
    Mobike,
    /// The same, because a NAT gave us another mapping and our own address stayed.
    NatRebinding,
    /// A TCP connection was opened anew for the same SA (RFC 9329, section 6.1).
    NewConnection,
    /// A fresh IKE SA.
    NewSa,
    /// A fresh IKE SA, resumed from the one before (RFC 5723).
    Resumption,
}

/// A fresh IKE SA took over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reconnect {
    /// Why it was needed.
    pub why: Why,
    /// Whether it authenticated anew, or was resumed.
    pub means: Means,
    /// How many attempts it took.
    pub attempts: u32,
    /// From the moment that it was needed, in milliseconds.
    #[serde(rename = "took_ms", serialize_with = "whole_milliseconds")]
    pub took: Duration,
}

/// Why a tunnel is built anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// The gateway no longer answers.
    PeerDead,
    /// The gateway ended the SA.
    DeletedByGateway,
    /// The network changed, and the gateway cannot follow (no MOBIKE), or did not.
    NetworkChanged,
    /// The machine has no network.
    Offline,
    /// The authentication's lifetime ends (RFC 4478).
    AuthLifetime,
    /// The gateway will not replace an SA, or the two sides are out of step.
    RekeyRefused,
    /// An SA must not be used any longer.
    Expired,
    /// The gateway answers, but no packet comes through, perhaps because it sends them by another SA of ours.
    Silent,
    /// The gateway sends us to another one (RFC 5685).
    Redirected,
}

fn whole_milliseconds<S: serde::Serializer>(span: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(u64::try_from(span.as_millis()).unwrap_or(u64::MAX))
}

fn milliseconds<S: serde::Serializer>(span: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    match span {
        Some(span) => whole_milliseconds(span, serializer),
        None => serializer.serialize_none(),
    }
}

/// Where inner packets become sealed datagrams: the host's own send buffers.
pub trait Sink {
    /// Room for one datagram of at most `len` octets to `path`, or none when the host has no room: the packet is
    /// then dropped and counted.
    fn reserve(&mut self, path: Path, len: usize) -> Option<&mut [u8]>;
    /// The last reserved room holds a datagram of `len` octets: send it, with `ds` as its DSCP and ECN field (RFC 2474,
    /// RFC 3168). On a TCP connection that means nothing.
    fn commit(&mut self, len: usize, ds: u8);
}

/// The state word of [`Status`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Nothing is up and nothing is wanted.
    #[default]
    Idle,
    /// A tunnel is being built.
    Connecting,
    /// The tunnel is up and the machine uses it.
    Connected,
    /// The tunnel was lost and is being built again.
    Reconnecting,
    /// Traffic is blocked until somebody acts.
    Blocked,
    /// The tunnel is being taken down.
    Disconnecting,
}

/// How far a connection attempt has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// The gateway's name becomes addresses.
    Resolve,
    /// Waiting for the first sign of life of any address.
    Reach,
    /// IKE_SA_INIT: proposals, key exchange, NAT detection.
    IkeSaInit,
    /// IKE_INTERMEDIATE: additional key exchanges (RFC 9370).
    IkeIntermediate,
    /// IKE_AUTH: certificates and identities.
    IkeAuth,
    /// EAP rounds inside IKE_AUTH.
    Eap,
    /// The Child SA: ESP suite, traffic selectors, addresses.
    ChildSa,
    /// Device, routes and DNS on this machine.
    Apply,
}

impl Stage {
    /// The stage's name in status and failures.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Resolve => "resolve",
            Self::Reach => "reach",
            Self::IkeSaInit => "ike_sa_init",
            Self::IkeIntermediate => "ike_intermediate",
            Self::IkeAuth => "ike_auth",
            Self::Eap => "eap",
            Self::ChildSa => "child_sa",
            Self::Apply => "apply",
        }
    }
}

/// Everything that a user interface shows; never a difference to an earlier one.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Status {
    /// What is up.
    pub state: State,
    /// How often a tunnel has been wanted since the program began: tells what is said of one from what is said of the next.
    pub connection: u64,
    /// The profile's name.
    pub profile: Option<String>,
    /// Since when the state word is true.
    pub since: Option<UnixTime>,
    /// The number of the connection attempt, from 1.
    pub attempt: u32,
    /// Why a tunnel that was up is built anew.
    pub why: Option<Why>,
    /// When the next attempt begins, while it is waited for.
    pub retry_at: Option<UnixTime>,
    /// How far the attempt has come, while there is one.
    pub stage: Option<Stage>,
    /// The gateway as configured and as found.
    pub gateway: Option<GatewayStatus>,
    /// The flow in use.
    pub path: Option<PathStatus>,
    /// Phase 1.
    pub ike_sa: Option<IkeSaStatus>,
    /// Phase 2.
    pub child_sas: Vec<ChildSaStatus>,
    /// Our inner addresses.
    pub addresses: Vec<IpNet>,
    /// Name resolution through the tunnel.
    pub dns: Dns,
    /// The largest inner packet, in octets.
    pub mtu: Option<u16>,
    /// What went through, and what did not and why.
    pub traffic: Traffic,
    /// What was negotiated beyond the bare protocol.
    pub features: Features,
    /// What the user should know of a tunnel that works all the same, in sentences.
    pub notes: Vec<String>,
    /// Why the last attempt or connection ended, if it failed.
    pub failure: Option<Failure>,
}

/// The gateway as configured and as found.
#[derive(Clone, Debug, Serialize)]
pub struct GatewayStatus {
    /// The host name or address of the profile.
    pub host: String,
    /// The address and port in use.
    pub address: Option<SocketAddr>,
    /// The identity that the gateway proved.
    pub identity: Option<String>,
    /// The host name or address that a gateway has sent us to (RFC 5685).
    pub redirected_to: Option<String>,
}

/// The flow in use.
#[derive(Clone, Debug, Serialize)]
pub struct PathStatus {
    /// Our end.
    pub local: SocketAddr,
    /// The gateway's end.
    pub remote: SocketAddr,
    /// `udp`, or `tcp` (RFC 9329).
    pub transport: &'static str,
    /// Who is behind a NAT: `none`, `local`, `remote`, `both` (RFC 7296, section 2.23).
    pub nat: &'static str,
    /// The physical interface, where the host knows it.
    pub interface: Option<String>,
    /// The last exchange's round trip, in milliseconds.
    pub rtt_ms: Option<u32>,
}

/// Phase 1, the secure channel.
#[derive(Clone, Debug, Serialize)]
pub struct IkeSaStatus {
    /// The initiator's SPI, 16 hexadecimal digits.
    pub initiator_spi: String,
    /// The responder's SPI, 16 hexadecimal digits.
    pub responder_spi: String,
    /// The negotiated suite in strongSwan's proposal keywords.
    pub suite: String,
    /// When it was established.
    pub established: UnixTime,
    /// When it will be rekeyed, if it will be.
    pub rekey_at: Option<UnixTime>,
}

/// Phase 2, the user's traffic.
#[derive(Clone, Debug, Serialize)]
pub struct ChildSaStatus {
    /// The SPI that the gateway sends with, 8 hexadecimal digits.
    pub inbound_spi: String,
    /// The SPI that we send with, 8 hexadecimal digits.
    pub outbound_spi: String,
    /// The negotiated suite in strongSwan's proposal keywords.
    pub suite: String,
    /// Our traffic selectors after narrowing.
    pub local_ts: Vec<String>,
    /// The gateway's traffic selectors after narrowing.
    pub remote_ts: Vec<String>,
    /// When it will be rekeyed, if it will be.
    pub rekey_at: Option<UnixTime>,
}

/// What went through the tunnel since it came up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Traffic {
    /// Octets of inner packets sent.
    pub tx_bytes: u64,
    /// Octets of inner packets received.
    pub rx_bytes: u64,
    /// Inner packets sent.
    pub tx_packets: u64,
    /// Inner packets received.
    pub rx_packets: u64,
    /// Packets that did not go through, by reason.
    pub dropped: BTreeMap<&'static str, u64>,
}

/// What was negotiated beyond the bare protocol.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Features {
    /// The gateway follows address changes (RFC 4555).
    pub mobike: bool,
    /// Long IKE messages travel in fragments (RFC 7383).
    pub fragmentation: bool,
    /// ESP counts with 64 bits (RFC 4303, section 2.2.1).
    pub esn: bool,
    /// A post-quantum key exchange contributed to the keys (RFC 9370).
    pub post_quantum: bool,
    /// A post-quantum pre-shared key is in the keys (RFC 8784).
    pub ppk: bool,
}
