//! HTTP/2 from clients.

pub(super) mod request;
