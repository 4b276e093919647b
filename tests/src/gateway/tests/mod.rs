//! The gateway against a client played by hand.

mod channel;
mod children;
mod connect;
mod drafts;
mod ike;
mod life;
mod mirror;
mod mobike;
mod peer;
mod said;
