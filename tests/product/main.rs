//! The whole product: the real binary as a child process, real sockets, real instances.
//!
//! Every test has an edge of its own in a folder of its own. A WARN or ERROR in the edge's log
//! that the test did not announce fails it.
#![expect(clippy::disallowed_methods, reason = "a test's tasks end with its runtime")]

mod access;
mod access_log;
mod acme;
mod admin;
mod admission;
mod bound;
mod certificates;
mod cors;
mod desync;
mod docker;
#[expect(clippy::unwrap_used, reason = "a test's unwrap is its assertion")]
#[path = "../support/dockerd.rs"]
mod dockerd;
mod downgrade;
mod early;
mod floods;
#[expect(clippy::unwrap_used, reason = "a test's unwrap is its assertion")]
#[expect(dead_code, reason = "its faults are for the engine's own tests")]
#[path = "../support/fly.rs"]
mod fly;
mod fly_public;
mod found;
mod framing;
mod gone;
mod grpc;
mod guest;
mod h2;
mod handover;
mod headers;
mod hold;
mod http1;
#[expect(clippy::unwrap_used, reason = "a test's unwrap is its assertion")]
#[expect(dead_code, reason = "its deaths are for the engine's own tests")]
#[path = "../support/kubernetes/mod.rs"]
mod kubernetes;
mod life;
mod limits;
mod parity;
#[expect(clippy::unwrap_used, reason = "a test's unwrap is its assertion")]
#[path = "../support/podman.rs"]
mod podman;
mod pool;
mod proxies;
mod routes;
mod signals;
mod slow;
mod sni;
mod state;
mod streams;
mod strict;
mod support;
mod timeouts;
mod tls;
mod upgrades;
mod uploads;
mod upstream;
mod visible;
#[path = "../support/vm.rs"]
mod vm;
mod wake;
mod wire;
