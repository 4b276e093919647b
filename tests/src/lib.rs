//! The world outside the client.

pub mod authority;
pub mod cast;
pub mod eap_server;
pub mod fake_host;
pub mod fuzz;
pub mod gateway;
pub mod lab;
pub mod link;
pub mod world;
