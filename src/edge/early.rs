//! A wake that begins with the ClientHello, or with the certificate that the client shows: the
//! handshake's round trips are then part of the wait.
//!
//! Only where a route asks for it and lets clients in before their request is seen, never for a
//! name without a route, and within the same rates as any wake.

use std::sync::Arc;

use arc_swap::ArcSwap;

use super::{admit::Admission, client::Peer, tls::Told};
use crate::{
    access::admits_unseen,
    fleet::{Fleet, Lease, Origin},
    metrics::METRICS,
    route::{Route, RouteTable, WakeOn},
    session::machine::Asker,
};

/// Wakes sessions whose request was not seen yet.
#[derive(Debug)]
pub struct Unseen {
    table: Arc<ArcSwap<RouteTable>>,
    fleet: Arc<Fleet>,
    admission: Arc<Admission>,
}

/// A lease that waits for the first request of its connection. It is given back with the
/// connection, which ends where that request does not come within `timeouts.client_head`.
#[derive(Debug)]
pub(super) struct Early {
    host: Box<str>,
    lease: Lease,
}

impl Unseen {
    /// Wakes the sessions of `table` in `fleet`, as often as `admission` lets a client.
    pub fn new(
        table: Arc<ArcSwap<RouteTable>>,
        fleet: Arc<Fleet>,
        admission: Arc<Admission>,
    ) -> Self {
        Self { table, fleet, admission }
    }

    /// A lease on the session of this canonical host, where its route wants it: at the ClientHello.
    pub(super) fn wake(&self, host: &str, peer: &Peer) -> Option<Early> {
        self.wake_if(host, peer, |route| admits_unseen(route, host, peer.address, None))
    }

    /// The same once the handshake is over, for whom the certificate alone lets in.
    pub(super) fn wake_shaken(&self, told: &Told, peer: &Peer) -> Option<Early> {
        let (host, certificate) = (told.server_name.as_deref()?, told.certificate.as_deref()?);
        self.wake_if(host, peer, |route| {
            let admits = |certificate| admits_unseen(route, host, peer.address, certificate);
            !admits(None) && admits(Some(certificate))
        })
    }

    fn wake_if(
        &self,
        host: &str,
        peer: &Peer,
        admits: impl FnOnce(&Route) -> bool,
    ) -> Option<Early> {
        let table = self.table.load();
        let route = table.lookup(host)?;
        // Whom a trusted proxy speaks for is known with the request only.
        if route.recipe.wake_on != WakeOn::Sni || peer.is_trusted() || !admits(route) {
            return None;
        }
        // What refuses it refuses the request, too, and says why.
        let origin = peer.address.map(Origin::from);
        let lease = self.admission.lease(&self.fleet, host, route, Asker::Client, origin).ok()?;
        METRICS.leases_at_sni.inc();
        Some(Early { host: host.into(), lease })
    }
}

impl Early {
    /// The lease, for the request that it was taken for.
    pub(super) fn for_host(self, host: &str) -> Option<Lease> {
        (*self.host == *host).then_some(self.lease)
    }
}
