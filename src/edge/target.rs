//! Whom a request is for: its session's host, the route that the host belongs to, and what the
//! instance is told of both. Kept for the connection's next request, which mostly asks for the
//! same.

use std::sync::{Arc, Weak};

use arc_swap::ArcSwap;
use pingora::{http::RequestHeader, proxy::Session as Downstream};

use super::{headers::Forwarding, listen::Connection, respond::Answer};
use crate::route::{Route, RouteTable, canonical_host};

/// A host and its route.
#[derive(Debug)]
pub(super) struct Target {
    /// The canonical host.
    pub(super) host: Box<str>,
    pub(super) route: Arc<Route>,
    pub(super) forwarding: Forwarding,
    /// The host as the client wrote it.
    named: Box<str>,
    /// Where the route was found. A reload makes another table, which this one's address cannot
    /// become as long as it is remembered.
    table: Weak<RouteTable>,
}

impl Target {
    pub(super) fn of(
        downstream: &Downstream,
        table: &ArcSwap<RouteTable>,
    ) -> Result<Arc<Self>, Answer> {
        let request = downstream.req_header();
        let named = one_host(request)?;
        let table = table.load();
        let last = Connection::of(downstream.digest()).map(|connection| &connection.target);
        let known = last.and_then(|last| last.load_full());
        if let Some(known) = known.filter(|known| known.is(named, &table)) {
            return Ok(known);
        }
        let target = Arc::new(Self::new(downstream, named, &table)?);
        if let Some(last) = last {
            last.store(Some(Arc::clone(&target)));
        }
        Ok(target)
    }

    fn new(downstream: &Downstream, named: &str, table: &Arc<RouteTable>) -> Result<Self, Answer> {
        let host = canonical_host(named).ok_or(Answer::BadHost)?;
        let route = Arc::clone(table.lookup(&host).ok_or(Answer::NoSuchHost)?);
        let server_name = Connection::of(downstream.digest())
            .and_then(|connection| connection.server_name.as_deref());
        if server_name.is_some_and(|name| !is_of(name, &route, table)) {
            return Err(Answer::Misdirected);
        }
        let forwarding = Forwarding::new(downstream, named).map_err(|_| Answer::BadHost)?;
        let table = Arc::downgrade(table);
        Ok(Self { host: host.into(), route, forwarding, named: named.into(), table })
    }

    /// The host as the client wrote it.
    pub(super) fn named(&self) -> &str {
        &self.named
    }

    fn is(&self, named: &str, table: &Arc<RouteTable>) -> bool {
        *self.named == *named && std::ptr::eq(self.table.as_ptr(), Arc::as_ptr(table))
    }
}

/// Whether the name that a connection was opened for belongs to this route, too.
fn is_of(server_name: &str, route: &Arc<Route>, table: &RouteTable) -> bool {
    table.lookup(server_name).is_some_and(|of| Arc::ptr_eq(of, route))
}

/// The one host that a request names: in its target, in `Host`, or the same in both.
fn one_host(request: &RequestHeader) -> Result<&str, Answer> {
    let mut named = request.headers.get_all(http::header::HOST).iter();
    let header = match (named.next(), named.next()) {
        (_, Some(_)) => return Err(Answer::BadHost),
        (None, None) => None,
        (Some(host), None) => Some(host.to_str().map_err(|_| Answer::BadHost)?),
    };
    let target = request.uri.authority().map(http::uri::Authority::as_str);
    match (target, header) {
        (Some(target), Some(header)) if canonical_host(target) != canonical_host(header) => {
            Err(Answer::BadHost)
        }
        (Some(host), _) | (None, Some(host)) => Ok(host),
        (None, None) => Err(Answer::BadHost),
    }
}
