//! The world outside the client.

pub mod lab;
