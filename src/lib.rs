//! Dormouse: an edge reverse proxy that wakes a session's machine on the first request.

pub mod admin;
pub mod app;
pub mod cli;
pub mod config;
pub mod demo;
pub mod edge;
pub mod engine;
pub mod fleet;
pub mod metrics;
pub mod route;
pub mod schema;
pub mod session;
