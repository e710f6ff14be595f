//! The admin API, on real sockets.

#[path = "../admin_bed/mod.rs"]
mod admin_bed;
mod guard;
mod listen;
mod reload;
mod sessions;
mod wire;
