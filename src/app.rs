//! The one place that knows every room: builds them from the config, connects them, runs them.

mod engines;
mod lock;
mod reload;
mod signals;

use std::{
    collections::BTreeMap,
    net::{SocketAddr, TcpListener},
    path::Path,
    sync::Arc,
    thread,
};

use anyhow::Context;
use arc_swap::ArcSwap;
use async_trait::async_trait;
use pingora::{
    apps::HttpServerOptions,
    proxy::http_proxy,
    server::{
        RunArgs, Server, ShutdownWatch,
        configuration::{Opt, ServerConf},
    },
    services::{
        ServiceReadyNotifier,
        background::{BackgroundService, background_service},
        listening::Service,
    },
};
use tokio::signal::unix::SignalKind;
use tokio_util::task::TaskTracker;

pub use reload::ReloadReport;

use crate::{
    config::Config,
    edge::{Connections, Edge, Listener},
    engine::Engine,
    fleet::{self, Fleet},
    metrics::METRICS,
    route::{RouteTable, load_dir, watch},
};
use lock::StateLock;
use reload::Reloader;
use signals::Signals;

/// Connections to instances that are kept for a next request, in all.
const POOL_MAX: usize = 4096;
/// One request connects three times at most (`edge`); this only backs that up.
const RETRIES_MAX: usize = 4;
/// How long a new process waits for the old one's listening sockets.
const HANDOVER_SECONDS: usize = 300;

/// Runs the edge until a signal ends it. With `upgrade` it takes the listening sockets over from
/// the process that has the state folder, as soon as that gets SIGQUIT.
pub fn run(config: Config, upgrade: bool) -> anyhow::Result<()> {
    let config = Arc::new(config);
    let mut lock = StateLock::open(&config.paths.state)?;
    let handover = config.paths.state.join("upgrade.sock");
    if !upgrade {
        lock.take()?;
        lock::forget_handover(&handover);
        config.listen.http.iter().try_for_each(can_listen)?;
    }
    let table = load_dir(&config.paths.routes, &config.engine_kinds()).map_err(|errors| {
        let errors: Vec<_> = errors.iter().map(ToString::to_string).collect();
        anyhow::anyhow!("the routes cannot be used\n{}", errors.join("\n"))
    })?;
    METRICS.routes.set(table.len().try_into().unwrap_or(i64::MAX));
    let table = Arc::new(ArcSwap::from_pointee(table));
    let fleet = build_fleet(&config, &table)?;
    let reloader =
        Reloader::new(Arc::clone(&config), Arc::clone(&table), Arc::clone(&fleet));
    let connections = Arc::new(Connections::new(to_usize(config.limits.connections)));

    let mut server = server(&config, &handover, upgrade)?;
    let signals = Signals {
        fleet: Arc::clone(&fleet),
        connections: Arc::clone(&connections),
        handover,
        phases: server.watch_execution_phase(),
        tasks: TaskTracker::new(),
    };
    server.bootstrap();
    if upgrade {
        sleep_only_alone(lock, Arc::clone(&fleet))?;
    }
    let mut fleet_service = background_service("fleet", FleetService(Arc::clone(&fleet)));
    fleet_service.threads = Some(2);
    let adopted = server.add_service(fleet_service);
    let edge = edge_service(&server, &config, table, fleet, connections);
    server.add_service(edge).add_dependency(&adopted);
    server.add_service(background_service("reload", Hangups(Arc::clone(&reloader))));

    let watched = Arc::clone(&reloader);
    let _watch = watch::watch(&config.paths.routes, move || drop(watched.reload()))
        .with_context(|| format!("cannot watch {}", config.paths.routes.display()))?;
    server.run(RunArgs { shutdown_signal: Box::new(signals) });
    Ok(())
}

fn build_fleet(config: &Config, table: &Arc<ArcSwap<RouteTable>>) -> anyhow::Result<Arc<Fleet>> {
    let mut engines: BTreeMap<Arc<str>, Arc<dyn Engine>> = BTreeMap::new();
    for (name, engine) in &config.engines {
        let engine = engines::build(config, engine)
            .with_context(|| format!("engine `{name}` cannot be used"))?;
        engines.insert(name.as_str().into(), engine);
    }
    let limits = fleet::Limits {
        held: to_usize(config.limits.held),
        sessions: to_usize(config.limits.sessions),
    };
    let table = Arc::clone(table);
    let planner = move |host: &str| table.load().lookup(host).map(|route| route.plan(host));
    Ok(Fleet::new(engines, to_usize(config.limits.starts), limits, Box::new(planner)))
}

fn server(config: &Config, handover: &Path, upgrade: bool) -> anyhow::Result<Server> {
    let drain = config.shutdown.drain;
    let conf = ServerConf {
        threads: thread::available_parallelism().map_or(1, usize::from),
        upgrade_sock: handover.to_str().context("the state folder's path is not UTF-8")?.to_owned(),
        upgrade_sock_connect_accept_max_retries: Some(HANDOVER_SECONDS),
        grace_period_seconds: Some(drain.as_secs() + u64::from(0 < drain.subsec_nanos())),
        graceful_shutdown_timeout_seconds: Some(1),
        upstream_keepalive_pool_size: POOL_MAX,
        max_retries: RETRIES_MAX,
        ..ServerConf::default()
    };
    let opt = Opt { upgrade, ..Opt::default() };
    Ok(Server::new_with_opt_and_conf(opt, conf))
}

fn edge_service(
    server: &Server,
    config: &Config,
    table: Arc<ArcSwap<RouteTable>>,
    fleet: Arc<Fleet>,
    connections: Arc<Connections>,
) -> Service<Listener> {
    let edge = Edge::new(table, fleet, config.timeouts.clone());
    let mut proxy = http_proxy(&server.configuration, edge);
    let mut options = HttpServerOptions::default();
    options.h2c = true;
    options.h2_idle_timeout = Some(config.timeouts.client_idle);
    proxy.server_options = Some(options);
    let listener = Listener::new(proxy, connections, config.timeouts.client_head);
    let mut service = Service::new("edge".to_owned(), listener);
    for address in &config.listen.http {
        service.add_tcp(&address.to_string());
    }
    service
}

/// Pingora panics where it cannot listen; an operator wants a sentence.
fn can_listen(address: &SocketAddr) -> anyhow::Result<()> {
    TcpListener::bind(address).map(drop).with_context(|| {
        format!("cannot listen on {address}: is something else listening there? (listen.http)")
    })
}

/// While the old process drains, its requests hold leases that this one cannot see: nothing is put
/// to sleep until it has ended.
fn sleep_only_alone(mut lock: StateLock, fleet: Arc<Fleet>) -> anyhow::Result<()> {
    fleet.set_may_sleep(false);
    let wait = move || match lock.wait() {
        Ok(()) => {
            tracing::info!("the process before has ended: idle sessions sleep from now on");
            fleet.set_may_sleep(true);
            // The lock is held for as long as the process lives.
            std::mem::forget(lock);
        }
        Err(error) => tracing::error!(%error, "cannot lock the state folder: nothing will sleep"),
    };
    thread::Builder::new().name("state-lock".into()).spawn(wait)?;
    Ok(())
}

fn to_usize(limit: u32) -> usize {
    usize::try_from(limit).unwrap_or(usize::MAX)
}

struct FleetService(Arc<Fleet>);

#[async_trait]
impl BackgroundService for FleetService {
    async fn start_with_ready_notifier(&self, _: ShutdownWatch, ready: ServiceReadyNotifier) {
        Arc::clone(&self.0).run(|| ready.notify_ready()).await;
    }
}

struct Hangups(Arc<Reloader>);

#[async_trait]
impl BackgroundService for Hangups {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let mut hangup = signals::listen(SignalKind::hangup());
        loop {
            tokio::select! {
                () = signals::next(&mut hangup) => {}
                _ = shutdown.changed() => return,
            }
            tracing::info!("SIGHUP: reading the routes again");
            let reloader = Arc::clone(&self.0);
            // What went wrong is logged where it is known.
            let _ = tokio::task::spawn_blocking(move || reloader.reload()).await;
        }
    }
}
