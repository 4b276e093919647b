//! Everything of Peregrine that touches an operating system.
//!
//! [`driver::run`] moves bytes and events between the pure [`peregrine_core::client::Client`] and a
//! [`host::Host`]; it decides nothing. A host makes the machine equal to a plan, opens sockets that never lead
//! into our own tunnel, resolves names, and knows the time.
//!
//! | module | its one job |
//! |---|---|
//! | [`driver`] | the loop: `Client` <-> `Host` <-> channels |
//! | [`host`] | what the driver asks of an operating system, without naming one |
//! | [`anchors`] | the certification authorities that the operating system trusts |
//! | [`clock`] | an instant that counts sleep, the wall clock, entropy |
//! | [`ipc`] | what user interfaces and the service say to each other |
//! | `http` | one request over HTTP/1.1, and its answer |
//! | [`packets`] | packets on their way between the tunnel device and the sockets |
//! | [`links`] | the sockets in use, one for each way, and what waits to be sent |
//! | [`batch`] | many packets in one buffer, without an allocation per packet |
//! | [`dataplane`] | cutting large packets into segments, and putting segments together |
//! | `linux` | the host for Linux |

pub mod anchors;
pub mod batch;
pub mod clock;
mod connection;
pub mod dataplane;
pub mod driver;
pub mod host;
mod http;
pub mod ipc;
pub mod links;
#[cfg(target_os = "linux")]
pub mod linux;
pub mod packets;
