//! The IKEv2 client as a pure function of inputs and time.
//!
//! Nothing in here opens a socket, reads a clock, or asks the operating system for anything. A host
//! (`peregrine-platform`, or the virtual world of `peregrine-tests`) feeds [`client::Client`] with commands,
//! answers, datagrams, packets and the present [`timer::Instant`], and after each input drains what it wants
//! done: datagrams to send, events to act on, and the next instant at which it must be called.
//!
//! | module | its one job |
//! |---|---|
//! | [`client`] | the VPN's life: resolve, race address families, connect, plan, disconnect, fail |
//! | [`command`] | the vocabulary between the client and everything that commands or watches it |
//! | [`fetch`] | what the client wants to have from the web, and whence it may come |
//! | [`plan`] | the state that the machine shall be in, as one value |
//! | [`profile`] | what the user configured, already parsed |
//! | `ike` | one IKE SA as initiator |
//! | [`eap`] | EAP methods, as peer |
//! | [`esp`] | sealing and opening the user's packets |
//! | [`wire`] | bytes to borrowed values and back |
//! | [`pki`] | certificates, private keys, signatures, and who may be trusted |
//! | [`crypto`] | the one place that names a cryptography crate |

#![forbid(unsafe_code)]

pub mod client;
pub mod command;
pub mod crypto;
pub mod eap;
pub mod esp;
pub mod failure;
pub mod fetch;
mod ike;
pub mod pki;
pub mod plan;
pub mod profile;
pub mod proposal;
pub mod rng;
pub mod timer;
pub mod wire;
