//! Who a request comes from.

use std::net::IpAddr;

use pingora::proxy::Session as Downstream;

/// The client's address; `None` where it has none.
pub(super) fn address(downstream: &Downstream) -> Option<IpAddr> {
    downstream.client_addr().and_then(|address| address.as_inet()).map(|address| address.ip())
}
