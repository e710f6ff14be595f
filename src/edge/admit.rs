//! Who may wake a session, and how often: the step between access and the lease.
//!
//! The whole order, as `docs/architecture.md` has it: local answers (`local`), access, and then
//! here: whom the route ignores, the rate of the client, the rate of the route; under the
//! session's lock, by the fleet: held requests of the session, of the route and in all, running
//! instances of the route and of the engine. A warm request passes without any of it.

pub(super) mod buckets;

use std::sync::Arc;

use http::header;
use pingora::proxy::Session as Downstream;
use tokio::time::Instant;

use super::{client, respond::Answer};
use crate::{
    config::Limits,
    fleet::{Caller, Fleet, Lease, Origin, Refusal},
    metrics::METRICS,
    route::{Rate, Route},
    session::machine::Asker,
};
use buckets::Buckets;

/// Routes whose buckets are kept although they are full again.
const ROUTES_KEPT: usize = 1024;

/// The rates of wakes.
#[derive(Debug)]
pub struct Admission {
    per_client: Option<Rate>,
    /// Who has no address is one client.
    clients: Buckets<Option<Origin>>,
    /// By name. As many as there are routes that were woken of late.
    routes: Buckets<Arc<str>>,
}

impl Admission {
    /// By the edge's own limits; routes have theirs.
    pub fn new(limits: &Limits) -> Self {
        let clients = usize::try_from(limits.clients).unwrap_or(usize::MAX);
        Self {
            per_client: limits.wakes_per_client.0,
            clients: Buckets::bounded(clients),
            routes: Buckets::unbounded(ROUTES_KEPT),
        }
    }

    /// A lease on the session of a host, whose route this is, or why there is none.
    pub(super) fn lease(
        &self,
        fleet: &Arc<Fleet>,
        host: &str,
        route: &Route,
        asker: Asker,
        origin: Option<Origin>,
    ) -> Result<Lease, Answer> {
        let may_wake = || self.may_wake(origin, route);
        let caller = Caller { asker, origin, may_wake: Some(&may_wake) };
        fleet.acquire(host, caller, || route.plan(host)).map_err(|refusal| match refusal {
            Refusal::Asleep => Answer::Ignored(route.recipe.ignore.status),
            refusal => Answer::Refused(refusal),
        })
    }

    /// Takes a token of the client, then one of the route. Asked only for what begins a wake.
    fn may_wake(&self, origin: Option<Origin>, route: &Route) -> Result<(), Refusal> {
        let now = Instant::now().into_std();
        if let Some(rate) = &self.per_client {
            let crowded = || METRICS.clients_crowded.inc();
            self.clients.take(origin, rate, now, crowded).map_err(Refusal::ClientRate)?;
        }
        if let Some(rate) = &route.recipe.wakes {
            let name = Arc::clone(&route.name);
            self.routes.take(name, rate, now, || {}).map_err(Refusal::RouteRate)?;
        }
        Ok(())
    }
}

/// Whose limits a request counts against.
pub(super) fn origin(downstream: &Downstream) -> Option<Origin> {
    client::address(downstream).map(Origin::from)
}

/// What the request is to its session.
pub(super) fn asker(downstream: &Downstream, route: &Route) -> Asker {
    let request = downstream.req_header();
    let agent = request.headers.get(header::USER_AGENT).map(|agent| agent.as_bytes());
    let ignored = route.recipe.ignore.has(request.uri.path(), agent);
    if ignored { Asker::Ignored } else { Asker::Client }
}
