//! The real binary as a child: what it prints where, and with which exit code it ends.
#![expect(clippy::unwrap_used, reason = "a test's unwrap is its assertion")]

#[path = "../admin_bed/mod.rs"]
mod admin_bed;
mod certs;
mod command;
mod edge;
mod files;
