//! Who a request comes from: the peer of its connection, or whom a trusted proxy speaks for.

use std::{net::IpAddr, sync::Arc};

use http::HeaderMap;
use pingora::{protocols::SocketDigest, proxy::Session as Downstream};

use super::{forwarded, listen::Connection};
use crate::config::Networks;

/// Who a connection comes from.
#[derive(Clone, Debug, Default)]
pub(super) struct Peer {
    /// The socket's other end, or whom the PROXY protocol says it speaks for.
    pub(super) address: Option<IpAddr>,
    /// Those to believe, where the peer itself is one of them.
    trusted: Option<Arc<Networks>>,
}

impl Peer {
    pub(super) fn new(address: Option<IpAddr>, trusted: &Arc<Networks>) -> Self {
        let address = address.map(|address| address.to_canonical());
        let is_trusted = address.is_some_and(|address| trusted.contain(address));
        Self { address, trusted: is_trusted.then(|| Arc::clone(trusted)) }
    }

    /// One whose headers are the word of somebody behind it, whoever that is.
    pub(super) fn untrusted(address: Option<IpAddr>) -> Self {
        Self { address: address.map(|address| address.to_canonical()), trusted: None }
    }

    /// Whether it may speak for others.
    pub(super) fn is_trusted(&self) -> bool {
        self.trusted.is_some()
    }

    /// The client of a request with these headers: the rightmost hop that is not trusted.
    fn client(&self, headers: &HeaderMap) -> Option<IpAddr> {
        match (&self.trusted, self.address) {
            (Some(trusted), Some(address)) => {
                let trusts = |address| trusted.contain(address);
                Some(forwarded::client(headers, address, trusts))
            }
            (_, address) => address,
        }
    }
}

/// The address of a socket's other end.
pub(super) fn socket_peer(digest: &SocketDigest) -> Option<IpAddr> {
    let address = digest.peer_addr()?.as_inet()?;
    Some(address.ip().to_canonical())
}

/// The client's address; `None` where it has none.
pub(super) fn address(downstream: &Downstream) -> Option<IpAddr> {
    peer(downstream)?.client(&downstream.req_header().headers)
}

/// Whether the client speaks TLS: with us, or with the trusted proxy that it came by.
pub(super) fn is_https(downstream: &Downstream) -> bool {
    let own = downstream.digest().is_some_and(|digest| digest.ssl_digest.is_some());
    let headers = &downstream.req_header().headers;
    match peer(downstream).filter(|peer| peer.is_trusted()) {
        Some(_) => forwarded::proto(headers).map_or(own, |proto| proto == "https"),
        None => own,
    }
}

/// The peer of a request's connection.
pub(super) fn peer(downstream: &Downstream) -> Option<&Peer> {
    Connection::of(downstream.digest()).map(|connection| &connection.peer)
}

/// The certificate that the client has shown and the listener has accepted: the leaf's DER.
pub(super) fn certificate(downstream: &Downstream) -> Option<&[u8]> {
    let connection = Connection::of(downstream.digest())?;
    connection.certificate.as_ref().map(|certificate| certificate.as_ref())
}
