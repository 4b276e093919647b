//! A small internet in network namespaces with real gateways in it: `tests/netns/lab` builds it.

pub mod certs;
pub mod names;
pub mod profile;
