//! The state that the machine shall be in, as one value.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

/// Everything of ours that the operating system shall hold. Declarative and idempotent: a host makes the machine
/// equal to it, whatever was there before. The default means "nothing of ours is on this machine".
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The tunnel device with everything that leads into it, or none.
    pub tunnel: Option<TunnelConfig>,
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
