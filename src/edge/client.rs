//! Who a request comes from.

use std::net::IpAddr;

use pingora::{protocols::Stream, proxy::Session as Downstream};

/// The client's address; `None` where it has none.
pub(super) fn address(downstream: &Downstream) -> Option<IpAddr> {
    downstream.client_addr().and_then(|address| address.as_inet()).map(|address| address.ip())
}

/// Who has opened a connection; `None` where it has no address.
pub(super) fn of_stream(stream: &Stream) -> Option<IpAddr> {
    let digest = stream.get_socket_digest()?;
    digest.peer_addr().and_then(|address| address.as_inet()).map(|address| address.ip())
}
