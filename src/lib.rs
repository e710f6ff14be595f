//! Dormouse: an edge reverse proxy that wakes a session's machine on the first request, and puts it
//! to sleep when nobody is there.
//!
//! # The path of a request
//!
//! 1. `edge/listen.rs` accepts: a place among the connections, a deadline for the head.
//! 2. [`edge`] finds the [`route`] of its host. No route: 404, and nobody was woken.
//! 3. [`fleet::Fleet::acquire`] gives it a [`fleet::Lease`] on its session. The pure machine in
//!    [`session::machine`] decides: ready at once, wait for a wake, or refused.
//! 4. The first that waits has made the machine ask for a start. `fleet/driver.rs` carries that out
//!    through an [`engine`], and opens the gate when the probe has an answer.
//! 5. The edge forwards, streaming, to the instance of exactly that generation.
//! 6. The lease is dropped with the request. After the last one idleness begins; at its end the
//!    machine asks for a sleep.
//!
//! Beside it: [`config`] and [`route`] read what operators write, [`admin`] and [`cli`] are how they
//! ask, [`app`] connects the rooms. `docs/architecture.md` says who may know whom, and why.

// In reading order: the words, what runs instances, who waits for them, who brings requests, what
// is written, who asks, who connects.
pub mod session;

pub mod engine;

pub mod fleet;

pub mod edge;

pub mod access;

pub mod route;

pub mod certs;

pub mod acme;

pub mod config;

pub mod watch;

pub mod schema;

pub mod metrics;

pub mod record;

pub mod admin;

pub mod cli;

pub mod app;

pub mod demo;
