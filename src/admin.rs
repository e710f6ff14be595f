//! The admin API: what an operator, a script, a supervisor and Prometheus ask of a running edge.
//!
//! [`Admin::router`] is the whole API behind its [`Guard`]; [`Listener`] serves it. It must not
//! know engines or Pingora: sessions are the fleet's, routes the table's, and a reload is a
//! function that `app` gives.

mod certs;
mod guard;
mod links;
mod listen;
mod problem;
mod sessions;
mod token;

use std::{
    collections::BTreeSet,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use arc_swap::ArcSwap;
use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    middleware,
    response::IntoResponse,
    routing::{get, post},
};
use humantime_serde::re::humantime::format_duration;
use serde::Serialize;
use tokio_util::task::TaskTracker;

pub(crate) use sessions::STATES;
pub use {
    guard::{Guard, Unguarded},
    listen::{Listener, bind_unix},
    token::{Token, TokenError},
};

use crate::{
    access::Door,
    acme::{Acme, NameView},
    certs::Certs,
    fleet::Fleet,
    metrics::METRICS,
    route::{Route, RouteError, RouteTable},
    session::RouteLimits,
};
use problem::Problem;

/// Reads the route files again and puts them in force: all of them, or none. May block.
pub type Reload = Arc<dyn Fn() -> Result<ReloadReport, Vec<RouteError>> + Send + Sync>;

/// What a reload has changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ReloadReport {
    /// Routes that are live now.
    pub routes: usize,
    /// The names of those that are new.
    pub added: Vec<String>,
    /// The names of those that say something else now.
    pub changed: Vec<String>,
    /// The names of those that are gone.
    pub removed: Vec<String>,
    /// Certificates that are served now.
    pub certificates: usize,
    /// What is wrong with the certificates' files: where one was served before, it still is.
    pub certificate_errors: Vec<RouteError>,
    /// Keys of `dormouse.toml` that say something else than what is in force, until a restart.
    pub waiting: Vec<String>,
}

impl ReloadReport {
    /// What is different in `after`.
    pub fn between(before: &RouteTable, after: &RouteTable) -> Self {
        let names = |routes: &RouteTable, wanted: &dyn Fn(&Route) -> bool| -> Vec<String> {
            let wanted = routes.iter().filter(|route| wanted(route));
            wanted.map(|route| route.name.to_string()).collect()
        };
        Self {
            routes: after.len(),
            added: names(after, &|route| before.get(&route.name).is_none()),
            changed: names(after, &|route| {
                before.get(&route.name).is_some_and(|old| **old != *route)
            }),
            removed: names(before, &|route| after.get(&route.name).is_none()),
            ..Self::default()
        }
    }
}

/// All that the API speaks for.
#[derive(Clone)]
pub struct Admin {
    /// The sessions.
    pub fleet: Arc<Fleet>,
    /// Who may enter.
    pub door: Arc<Door>,
    /// The routes that are live.
    pub table: Arc<ArcSwap<RouteTable>>,
    /// The certificates that are served.
    pub certs: Arc<Certs>,
    /// Puts the route files in force.
    pub reload: Reload,
    /// What the last reload, whoever asked for it, found wrong in the route files.
    pub errors: Arc<ArcSwap<Vec<RouteError>>>,
    /// Whether the edge takes requests: what runs was adopted, and it does not end yet.
    pub ready: Arc<AtomicBool>,
    /// Who may ask.
    pub guard: Guard,
    /// The certificates that come by themselves.
    pub acme: Option<Arc<Acme>>,
    /// Where clients come in.
    pub ways_in: WaysIn,
}

/// The ports that clients come in by; `None`: they do not.
#[derive(Clone, Copy, Debug)]
pub struct WaysIn {
    /// Over plain HTTP.
    pub http: Option<u16>,
    /// Over HTTPS, here or at the proxy in front.
    pub https: Option<u16>,
}

impl WaysIn {
    /// A session's URL, as clients reach it.
    fn url(self, host: &str, prefers_http: bool) -> String {
        let http = self.http.map(|port| ("http", port, 80));
        let https = self.https.map(|port| ("https", port, 443));
        let way = if prefers_http { http.or(https) } else { https.or(http) };
        match way {
            Some((scheme, port, usual)) if port != usual => format!("{scheme}://{host}:{port}/"),
            Some((scheme, ..)) => format!("{scheme}://{host}/"),
            None => format!("https://{host}/"),
        }
    }
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admin").field("guard", &self.guard).finish_non_exhaustive()
    }
}

/// What the endpoints share.
struct Shared {
    admin: Admin,
    /// One reload at a time.
    reloading: Arc<tokio::sync::Mutex<()>>,
    /// Wakes that nobody waits for; each holds one of the fleet's places for held requests.
    wakes: TaskTracker,
}

impl Shared {
    fn check_ready(&self) -> Result<(), Problem> {
        let is_ready = self.admin.ready.load(Ordering::Acquire);
        if is_ready { Ok(()) } else { Err(Problem::not_ready()) }
    }
}

impl Admin {
    /// The API.
    pub fn router(self) -> Router {
        let guard = middleware::from_fn_with_state(self.guard.clone(), guard::guard);
        let shared =
            Shared { admin: self, reloading: Default::default(), wakes: TaskTracker::new() };
        Router::new()
            .route("/healthz", get(|| async { "ok\n" }))
            .route("/readyz", get(readyz))
            .route("/metrics", get(metrics))
            .route("/v1/sessions", get(sessions::list))
            .route("/v1/sessions/{host}", get(sessions::one))
            .route("/v1/sessions/{host}/wake", post(sessions::wake))
            .route("/v1/sessions/{host}/sleep", post(sessions::sleep))
            .route("/v1/sessions/{host}/links", post(links::make))
            .route("/v1/links/{id}/revoke", post(links::revoke))
            .route("/v1/links/keys/{id}/revoke", post(links::revoke_key))
            .route("/v1/routes", get(routes))
            .route("/v1/certs", get(certs::list))
            .route("/v1/acme", get(acme))
            .route("/v1/reload", post(reload))
            .fallback(no_such_path)
            .method_not_allowed_fallback(wrong_method)
            .with_state(Arc::new(shared))
            .layer(guard)
    }
}

/// Ready, also where an engine is not: the sessions of the others are served.
async fn readyz(State(shared): State<Arc<Shared>>) -> Result<String, Problem> {
    shared.check_ready()?;
    let mut text = "ok\n".to_owned();
    // Which one: why is for those who may ask the rest of this API.
    let names: BTreeSet<_> = shared.admin.fleet.troubles().map(|(name, _)| name).collect();
    for name in names {
        text += &format!("engine {name} does not answer\n");
    }
    let deaf: BTreeSet<_> = shared.admin.fleet.deaf().map(|(name, _)| name).collect();
    for name in deaf {
        text += &format!("engine {name} refuses its events: it is looked at every few seconds\n");
    }
    Ok(text)
}

async fn metrics(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    shared.admin.fleet.count_sessions();
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], METRICS.render())
}

#[derive(Serialize)]
struct RoutesAnswer {
    routes: Vec<RouteView>,
    errors: Vec<RouteError>,
}

/// A route as it is live. Nothing of `[instance]` and no header: there are secrets in them.
#[derive(Serialize)]
struct RouteView {
    name: String,
    host: String,
    engine: String,
    file: String,
    access: String,
    policy: PolicyView,
    limits: LimitsView,
    #[serde(skip_serializing_if = "Option::is_none")]
    pool: Option<PoolView>,
}

/// What is made ahead.
#[derive(Serialize)]
struct PoolView {
    ready: u32,
    depth: &'static str,
}

/// What the sessions of a route may take together; `null` where only the edge's limits count.
#[derive(Serialize)]
struct LimitsView {
    wakes: Option<String>,
    held: Option<u32>,
    running: Option<u32>,
    instances: Option<u32>,
    when_full: &'static str,
    /// How many instances are awake, waking or stopping.
    running_now: usize,
}

#[derive(Serialize)]
struct PolicyView {
    sleep: Vec<RungView>,
    min_awake: String,
    wake_timeout: String,
    boot_max: String,
    held_max: u32,
}

#[derive(Serialize)]
struct RungView {
    after: String,
    to: &'static str,
}

impl RouteView {
    fn of(route: &Route, running_now: usize) -> Self {
        let RouteLimits { held, running, instances, when_full } = route.recipe.limits;
        let pool = route.recipe.pool;
        let pool = pool.map(|pool| PoolView { ready: pool.ready, depth: pool.depth.as_str() });
        let wakes = route.recipe.wakes.map(|rate| rate.to_string());
        let when_full = when_full.as_str();
        let policy = &route.recipe.policy;
        let sleep = policy.ladder.iter().map(|rung| RungView {
            after: format_duration(rung.after).to_string(),
            to: rung.to.as_str(),
        });
        Self {
            name: route.name.to_string(),
            host: route.host.as_str().to_owned(),
            engine: route.recipe.engine.to_string(),
            file: route.file.display().to_string(),
            access: route.recipe.access.in_words(),
            policy: PolicyView {
                sleep: sleep.collect(),
                min_awake: format_duration(policy.min_awake).to_string(),
                wake_timeout: format_duration(policy.wake_timeout).to_string(),
                boot_max: format_duration(policy.boot_max).to_string(),
                held_max: policy.held_max,
            },
            limits: LimitsView { wakes, held, running, instances, when_full, running_now },
            pool,
        }
    }
}

async fn routes(State(shared): State<Arc<Shared>>) -> Json<RoutesAnswer> {
    let running = shared.admin.fleet.running().routes;
    let view =
        |route: &Arc<Route>| RouteView::of(route, running.get(&*route.name).copied().unwrap_or(0));
    let routes = shared.admin.table.load().iter().map(view).collect();
    Json(RoutesAnswer { routes, errors: shared.admin.errors.load().to_vec() })
}

/// `enabled` is false where there is no `[acme]`.
#[derive(Serialize)]
struct AcmeAnswer {
    enabled: bool,
    names: Vec<NameView>,
}

async fn acme(State(shared): State<Arc<Shared>>) -> Json<AcmeAnswer> {
    let acme = shared.admin.acme.as_ref();
    let names = acme.map_or_else(Vec::new, |acme| acme.names());
    Json(AcmeAnswer { enabled: acme.is_some(), names })
}

async fn reload(State(shared): State<Arc<Shared>>) -> Result<Json<ReloadReport>, Problem> {
    // Kept by the reload itself: it goes on when the client leaves.
    let turn = Arc::clone(&shared.reloading).lock_owned().await;
    let reload = Arc::clone(&shared.admin.reload);
    let reloaded = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        reload()
    });
    match reloaded.await {
        Ok(Ok(report)) => Ok(Json(report)),
        Ok(Err(errors)) => {
            let status = StatusCode::UNPROCESSABLE_ENTITY;
            let detail = "the files have errors: the routes before stay in force";
            let problem = Problem::new(status, "route_errors", "Not reloaded", detail);
            Err(problem.with("errors", serde_json::json!(errors)))
        }
        Err(error) => {
            tracing::error!(%error, "a reload has failed");
            let status = StatusCode::INTERNAL_SERVER_ERROR;
            let detail = "the reload itself failed: see the edge's log";
            Err(Problem::new(status, "internal", "Internal error", detail))
        }
    }
}

async fn no_such_path() -> Problem {
    let detail = "the admin API has /healthz, /readyz, /metrics, /v1/sessions, /v1/links, /v1/routes, \
                  /v1/certs, /v1/acme and /v1/reload";
    Problem::new(StatusCode::NOT_FOUND, "no_such_path", "No such path", detail)
}

async fn wrong_method() -> Problem {
    let detail = "GET reads, POST acts: see the Allow header";
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "wrong_method", "Wrong method", detail)
}
