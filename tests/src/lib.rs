//! The world outside the client.

pub mod eap_server;
pub mod lab;
