//! The one place that knows every room: builds them from the config, connects them, runs them.

mod engines;
mod lock;
mod reload;
mod services;
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
use pingora::{
    apps::HttpServerOptions,
    listeners::{L4BufferSettings, ListenerConfig},
    proxy::http_proxy,
    server::{
        RunArgs, Server,
        configuration::{Opt, ServerConf},
    },
    services::{background::background_service, listening::Service},
};
use tokio_util::task::TaskTracker;

use crate::{
    admin::{Admin, Guard, Token},
    config::{AdminAddress, Config},
    edge::{Connections, Edge, Listener},
    engine::Engine,
    fleet::{self, Fleet},
    route::{RouteError, RouteTable, load_dir, watch},
};
use lock::StateLock;
use reload::Reloader;
use services::{Administration, Fleeting, Hangups, Readiness};
use signals::Signals;

/// Connections to instances that are kept for a next request, in all.
const POOL_MAX: usize = 4096;
/// One request connects three times at most (`edge`); this only backs that up.
const RETRIES_MAX: usize = 4;
/// How long a new process waits for the old one's listening sockets.
const HANDOVER_SECONDS: usize = 300;

/// Why the edge did not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The route files are wrong.
    #[error("the routes cannot be used")]
    Routes(Vec<RouteError>),
    /// Anything else.
    #[error(transparent)]
    Other(#[from] anyhow::Error),
}

/// Runs the edge until a signal ends it. With `upgrade` it takes the listening sockets over from
/// the process that has the state folder, as soon as that gets SIGQUIT.
pub fn run(config: Config, upgrade: bool) -> Result<(), Error> {
    let config = Arc::new(config);
    let mut lock = StateLock::open(&config.paths.state)?;
    let handover = config.paths.state.join("upgrade.sock");
    let guard = guard(&config)?;
    if !upgrade {
        lock.take()?;
        lock::forget_handover(&handover);
        config.listen.http.iter().try_for_each(|address| can_listen(address, "listen.http"))?;
        if let AdminAddress::Tcp(address) = &config.listen.admin {
            can_listen(address, "listen.admin")?;
        }
    }
    let table = load_dir(&config.paths.routes, &config.engine_kinds()).map_err(Error::Routes)?;
    if table.is_empty() {
        tracing::warn!(folder = %config.paths.routes.display(), "there is no route yet");
    }
    let table = Arc::new(ArcSwap::from_pointee(table));
    let fleet = build_fleet(&config, &table)?;
    let reloader = Reloader::new(Arc::clone(&config), Arc::clone(&table), Arc::clone(&fleet));
    let (most, per_client) = (config.limits.connections, config.limits.connections_per_client);
    let connections = Arc::new(Connections::new(to_usize(most), to_usize(per_client)));

    let mut server = server(&config, &handover, upgrade)?;
    let signals = Signals {
        fleet: Arc::clone(&fleet),
        connections: Arc::clone(&connections),
        handover,
        phases: server.watch_execution_phase(),
        tasks: TaskTracker::new(),
    };
    if upgrade {
        tracing::info!("waiting for the process before to get SIGQUIT");
    }
    server.bootstrap();
    let _lock = if upgrade { sleep_only_alone(lock, Arc::clone(&fleet))? } else { Some(lock) };

    let watched = Arc::clone(&reloader);
    let _watch = watch::watch(&config.paths.routes, move || drop(watched.reload()))
        .with_context(|| format!("cannot watch {}", config.paths.routes.display()))?;
    add_services(&mut server, &config, &table, fleet, connections, reloader, guard);
    server.run(RunArgs { shutdown_signal: Box::new(signals) });
    Ok(())
}

fn add_services(
    server: &mut Server,
    config: &Config,
    table: &Arc<ArcSwap<RouteTable>>,
    fleet: Arc<Fleet>,
    connections: Arc<Connections>,
    reloader: Arc<Reloader>,
    guard: Guard,
) {
    let ready = Arc::default();
    let mut fleeting = background_service("fleet", Fleeting(Arc::clone(&fleet)));
    fleeting.threads = Some(2);
    let adopted = server.add_service(fleeting);

    let edge = edge_service(server, config, Arc::clone(table), Arc::clone(&fleet), connections);
    server.add_service(edge).add_dependency(&adopted);
    let readiness = Readiness { addresses: config.listen.http.clone(), ready: Arc::clone(&ready) };
    let readiness = background_service("readiness", readiness);
    server.add_service(readiness).add_dependency(&adopted);

    let (table, errors) = (Arc::clone(table), Arc::clone(&reloader.errors));
    let hangups = Hangups(Arc::clone(&reloader));
    let reload: crate::admin::Reload = Arc::new(move || reloader.reload());
    let admin = Admin { fleet, table, reload, errors, ready, guard };
    let address = config.listen.admin.clone();
    server.add_service(background_service("admin", Administration { admin, address }));
    server.add_service(background_service("hangups", hangups));
}

fn guard(config: &Config) -> anyhow::Result<Guard> {
    let token = config.admin.token_file.as_deref().map(Token::read).transpose()?;
    Ok(match &config.listen.admin {
        AdminAddress::Tcp(address) => Guard::tcp(*address, token)?,
        AdminAddress::Unix(_) => Guard::unix(token),
    })
}

fn build_fleet(config: &Config, table: &Arc<ArcSwap<RouteTable>>) -> anyhow::Result<Arc<Fleet>> {
    let mut engines: BTreeMap<Arc<str>, Arc<dyn Engine>> = BTreeMap::new();
    for (name, engine) in &config.engines {
        let engine = engines::build(config, name, engine)
            .with_context(|| format!("engine `{name}` cannot be used"))?;
        engines.insert(name.as_str().into(), engine);
    }
    let limits = fleet::Limits {
        held: to_usize(config.limits.held),
        sessions: to_usize(config.limits.sessions),
        running: config
            .running
            .iter()
            .map(|(engine, limit)| (engine.as_str().into(), to_usize(*limit)))
            .collect(),
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
    let edge = Edge::new(table, fleet, config.timeouts.clone(), &config.limits);
    let mut proxy = http_proxy(&server.configuration, edge);
    let mut options = HttpServerOptions::default();
    options.h2c = true;
    options.h2_idle_timeout = Some(config.timeouts.client_idle);
    proxy.server_options = Some(options);
    let listener = Listener::new(proxy, connections, config.timeouts.client_head);
    let mut service = Service::new("edge".to_owned(), listener);
    for address in &config.listen.http {
        // Pingora reads heads and bodies into buffers of their own; one more, of 64 KiB, would stay
        // with every idle client.
        let unbuffered = L4BufferSettings::default().read(0);
        service.add_listener(ListenerConfig::tcp(address.to_string()).l4_buffer(unbuffered));
    }
    service
}

/// Pingora panics where it cannot listen; an operator wants a sentence.
fn can_listen(address: &SocketAddr, key: &str) -> anyhow::Result<()> {
    TcpListener::bind(address).map(drop).with_context(|| {
        format!("cannot listen on {address}: is something else listening there? ({key})")
    })
}

/// While the old process drains, its requests hold leases that this one cannot see: nothing is put
/// to sleep until it has ended. The thread that waits for that keeps the lock.
fn sleep_only_alone(mut lock: StateLock, fleet: Arc<Fleet>) -> anyhow::Result<Option<StateLock>> {
    fleet.set_may_sleep(false);
    let wait = move || match lock.wait() {
        Ok(()) => {
            tracing::info!("the process before has ended: idle sessions sleep from now on");
            fleet.set_may_sleep(true);
            // The lock lives as long as the process.
            loop {
                thread::park();
            }
        }
        Err(error) => tracing::error!(%error, "cannot lock the state folder: nothing will sleep"),
    };
    thread::Builder::new().name("state-lock".into()).spawn(wait).context("cannot make a thread")?;
    Ok(None)
}

fn to_usize(limit: u32) -> usize {
    usize::try_from(limit).unwrap_or(usize::MAX)
}
