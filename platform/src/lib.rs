//! Everything of Peregrine that touches an operating system.
