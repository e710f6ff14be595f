//! Dormouse: an edge reverse proxy that wakes a session's machine on the first request.

pub mod engine;
pub mod fleet;
pub mod metrics;
pub mod session;
