//! The world outside the client.
