//! Sealing and opening the user's packets (RFC 4303).
