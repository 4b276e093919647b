//! The state that the machine shall be in, as one value.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::command::Endpoint;

/// Everything of ours that the operating system shall hold. Declarative and idempotent: a host makes the machine
/// equal to it, whatever was there before. The default means "nothing of ours is on this machine".
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The tunnel device with everything that leads into it, or none.
    pub tunnel: Option<TunnelConfig>,
    /// What may leave the machine beside it.
    pub lock: Lock,
}

impl From<TunnelConfig> for Plan {
    /// The tunnel, and no lock.
    fn from(tunnel: TunnelConfig) -> Self {
        Self {
            tunnel: Some(tunnel),
            lock: Lock::Open,
        }
    }
}

/// What may leave the machine: the kill switch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Lock {
    /// Everything: the firewall is as it is without us.
    #[default]
    Open,
    /// What goes into the tunnel, what the profile keeps out of it, what is listed here, and what a machine cannot be on
    /// a network without: its loopback interface, DHCP, neighbour discovery.
    Closed(Closed),
}

/// What leaves a machine whose lock is closed, besides what goes into the tunnel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Closed {
    /// What our own sockets, and nobody else's, may talk to.
    pub gateways: BTreeSet<Endpoint>,
    /// Our own sockets may ask name servers.
    pub names: bool,
    /// The ports of TCP to which our own sockets may go for what they fetch.
    pub fetches: BTreeSet<u16>,
    /// Private and link-local networks may be reached (RFC 1918, RFC 3927, RFC 4193, RFC 4291), and the multicast of
    /// links and sites, but no name servers there that are not the tunnel's.
    pub lan: bool,
}

/// A tunnel device, its addresses, and what is sent into it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelConfig {
    /// Our inner addresses, as the gateway assigned them (RFC 7296, section 3.15).
    pub addresses: Vec<IpNet>,
    /// Destinations that go into the tunnel.
    pub routes: BTreeSet<IpNet>,
    /// Destinations that the profile keeps out of the tunnel although a route covers them.
    pub excluded: BTreeSet<IpNet>,
    /// Destinations that would leave beside the tunnel although the profile wants them inside, such as all of
    /// IPv6 when the gateway gave us IPv4 only: to be refused at once, not sent in clear and not dropped in silence.
    pub refused: BTreeSet<IpNet>,
    /// Name servers and domains to use while the tunnel is up.
    pub dns: Dns,
    /// The largest inner packet, in octets.
    pub mtu: u16,
}

/// Name resolution through the tunnel.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Dns {
    /// Name servers; empty leaves the machine's own in place.
    pub servers: Vec<IpAddr>,
    /// Domains to resolve there (RFC 8598); empty means all names when all traffic goes into the tunnel, and else
    /// the machine's own search list unchanged.
    pub domains: Vec<String>,
}
