//! `/v1/sessions`: what every session does, and an operator's wake and sleep.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    extract::{Path, Query, State, rejection::QueryRejection},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};

use super::{Shared, problem::Problem};
use crate::{
    fleet::{Held, Running, SessionView},
    route::canonical_host,
    session::{
        Depth,
        machine::{Asker, SleepAnswer},
    },
};

/// The states that a session can be in.
pub(crate) const STATES: [&str; 5] = ["asleep", "waking", "awake", "idle", "stopping"];
/// Sessions in one answer, when the request does not say how many.
const LIST_DEFAULT: usize = 1000;
/// A bound on the memory that one answer takes.
const LIST_MAX: usize = 10_000;

pub(super) type Asked<T> = Result<Query<T>, QueryRejection>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListQuery {
    state: Option<String>,
    limit: Option<usize>,
}

#[derive(Serialize)]
pub(super) struct ListAnswer {
    sessions: Vec<SessionView>,
    /// How many there are, with those that `limit` left out.
    total: usize,
    /// How many instances are awake, waking or stopping.
    running: Running,
}

pub(super) async fn list(
    State(shared): State<Arc<Shared>>,
    query: Asked<ListQuery>,
) -> Result<Json<ListAnswer>, Problem> {
    let ListQuery { state, limit } = asked(query)?;
    if let Some(state) = state.as_deref().filter(|state| !STATES.contains(state)) {
        let states = STATES.join(", ");
        return Err(Problem::bad_request(format!("`{state}` is no state: {states}")));
    }
    let mut sessions = shared.admin.fleet.sessions();
    sessions.retain(|session| state.as_deref().is_none_or(|state| state == session.state));
    let total = sessions.len();
    sessions.truncate(limit.unwrap_or(LIST_DEFAULT).min(LIST_MAX));
    let running = shared.admin.fleet.running();
    Ok(Json(ListAnswer { sessions, total, running }))
}

pub(super) async fn one(
    State(shared): State<Arc<Shared>>,
    Path(host): Path<String>,
) -> Result<Json<SessionView>, Problem> {
    shared.view(&canonical(&host)?).map(Json)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WakeQuery {
    #[serde(default = "yes")]
    wait: bool,
}

fn yes() -> bool {
    true
}

#[derive(Serialize)]
struct WakeAnswer {
    session: SessionView,
    /// `None` when it was awake already, or when nobody waited.
    took: Option<Took>,
}

/// Where the time of a wake went, in milliseconds.
#[derive(Serialize)]
struct Took {
    /// How long this request waited.
    hold_ms: f64,
    /// Waiting for a place among the engine's starts.
    queued_ms: f64,
    /// The engine's own call.
    engine_ms: f64,
    /// From the engine's word until the instance answered its probe.
    ready_ms: f64,
}

impl Took {
    fn of(held: Held) -> Self {
        let millis = |time: Duration| (time.as_secs_f64() * 1e6).round() / 1e3;
        Self {
            hold_ms: millis(held.hold),
            queued_ms: millis(held.wake.queued),
            engine_ms: millis(held.wake.engine),
            ready_ms: millis(held.wake.ready),
        }
    }
}

/// Takes an operator's lease, waits until the session is ready, and gives the lease back.
pub(super) async fn wake(
    State(shared): State<Arc<Shared>>,
    Path(host): Path<String>,
    query: Asked<WakeQuery>,
) -> Result<Response, Problem> {
    let host = canonical(&host)?;
    let WakeQuery { wait } = asked(query)?;
    shared.check_ready()?;
    let fleet = &shared.admin.fleet;
    let table = shared.admin.table.load_full();
    let route = table.lookup(&host).ok_or_else(|| Problem::no_route(&host))?;
    let mut lease = fleet
        .acquire(&host, Asker::Operator, || route.plan(&host))
        .map_err(|refusal| Problem::refused(refusal, shared.last_error(&host)))?;
    if !wait && lease.endpoint().is_none() {
        // The lease is kept: behind a stop that is under way, only a lease brings the next life.
        shared.wakes.spawn(async move {
            let session = lease.session().clone();
            if let Err(end) = lease.ready().await {
                tracing::debug!(%session, ?end, "an operator's wake failed");
            }
        });
        let answer = WakeAnswer { session: shared.view(&host)?, took: None };
        return Ok((StatusCode::ACCEPTED, Json(answer)).into_response());
    }
    let ended = lease.ready().await;
    ended.map_err(|end| Problem::of_hold(end, shared.last_error(&host)))?;
    let took = lease.held().map(Took::of);
    drop(lease);
    Ok(Json(WakeAnswer { session: shared.view(&host)?, took }).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SleepQuery {
    to: Option<String>,
}

pub(super) async fn sleep(
    State(shared): State<Arc<Shared>>,
    Path(host): Path<String>,
    query: Asked<SleepQuery>,
) -> Result<(StatusCode, Json<SessionView>), Problem> {
    let host = canonical(&host)?;
    let to = asked(query)?.to;
    shared.check_ready()?;
    let fleet = &shared.admin.fleet;
    // Known, before its engine is asked what it can do.
    shared.view(&host)?;
    let to = to.map(|to| depth(&to, fleet.depths(&host))).transpose()?;
    let status = match fleet.sleep(&host, to).ok_or_else(|| shared.unknown(&host))? {
        SleepAnswer::Begun => StatusCode::ACCEPTED,
        SleepAnswer::Already => StatusCode::OK,
        SleepAnswer::InUse(leases) => {
            let detail = format!("{leases} requests, streams or sockets hold it awake");
            let problem = Problem::new(StatusCode::CONFLICT, "in_use", "In use", detail);
            return Err(problem.with("leases", leases));
        }
    };
    Ok((status, Json(shared.view(&host)?)))
}

impl Shared {
    fn view(&self, host: &str) -> Result<SessionView, Problem> {
        self.admin.fleet.session(host).ok_or_else(|| self.unknown(host))
    }

    fn unknown(&self, host: &str) -> Problem {
        match self.admin.table.load().lookup(host) {
            Some(route) => Problem::no_session(format!(
                "nobody has asked for `{host}` yet; the route `{}` would serve it",
                route.name
            )),
            None => Problem::no_route(host),
        }
    }

    fn last_error(&self, host: &str) -> Option<String> {
        self.admin.fleet.session(host)?.last_error
    }
}

pub(super) fn canonical(host: &str) -> Result<String, Problem> {
    let canonical = canonical_host(host).map(|host| host.into_owned());
    canonical.ok_or_else(|| Problem::bad_request(format!("`{host}` cannot be a host")))
}

pub(super) fn asked<T>(query: Asked<T>) -> Result<T, Problem> {
    query.map(|Query(query)| query).map_err(|error| Problem::bad_request(error.body_text()))
}

fn depth(word: &str, has: &[Depth]) -> Result<Depth, Problem> {
    has.iter().copied().find(|depth| depth.as_str() == word).ok_or_else(|| {
        let has: Vec<_> = has.iter().map(|depth| depth.as_str()).collect();
        let detail = format!("its engine cannot put it to `{word}`, only to {}", has.join(", "));
        Problem::new(StatusCode::BAD_REQUEST, "no_such_depth", "No such depth", detail)
    })
}
