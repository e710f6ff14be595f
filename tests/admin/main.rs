//! The admin API, on real sockets.
#![expect(clippy::unwrap_used, reason = "a test's unwrap is its assertion")]

#[path = "../admin_bed/mod.rs"]
mod admin_bed;
mod guard;
mod listen;
mod reload;
mod sessions;
mod wire;
