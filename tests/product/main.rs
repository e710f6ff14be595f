//! The whole product: the real binary as a child process, real sockets, real instances.
//!
//! Every test has an edge of its own in a folder of its own. A WARN or ERROR in the edge's log
//! that the test did not announce fails it.

mod admin;
mod grpc;
mod guest;
mod h2;
mod headers;
mod limits;
mod support;
mod timeouts;
mod upstream;
mod wake;
mod wire;
