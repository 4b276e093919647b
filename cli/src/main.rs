//! The Peregrine command line.
fn main() {}
