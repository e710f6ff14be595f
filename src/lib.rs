//! Dormouse: an edge reverse proxy that wakes a session's machine on the first request.

pub mod demo;
pub mod engine;
pub mod session;
