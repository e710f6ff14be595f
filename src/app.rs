//! The one place that knows every room: builds them from the config, connects them, runs them.

mod custody;
mod engines;
mod handover;
mod lock;
mod reload;
mod services;
mod signals;
mod sockets;

use std::{
    collections::{BTreeMap, HashMap},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    thread,
    time::SystemTime,
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
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use crate::{
    access::{Door, check_files},
    acme::Acme,
    admin::{Admin, Guard, Token, WaysIn},
    certs::{Certs, DEV_FOLDER, is_cert_file},
    config::{AdminAddress, Config, Entrance, Listen},
    edge::{Admission, Connections, Edge, Entrances, Listener, Unseen},
    engine::Engine,
    fleet::{self, Fleet},
    record::AccessLog,
    route::{Loaded, RouteError, RouteTable, is_route_file, load_good},
    watch::{Watch, watch},
};
use custody::Custody;
use handover::{Found, Handover};
use lock::StateLock;
use reload::Reloader;
use services::{
    Accepting, Administration, Doorkeeper, Expiry, Fleeting, Hangups, Ordering, Readiness,
};
use signals::Signals;
use sockets::Sockets;

/// Connections to instances that are kept for a next request, in all.
const POOL_MAX: usize = 4096;
/// One request connects three times at most (`edge`); this only backs that up.
const RETRIES_MAX: usize = 4;

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
///
/// Route files that are wrong are left out and told, or with `strict` a reason not to run; with `upgrade`, too:
/// the process before may serve more of them, and goes on.
pub fn run(config: Config, upgrade: bool, strict: bool) -> Result<(), Error> {
    check_clock(SystemTime::now())?;
    let config = Arc::new(config);
    let mut lock = StateLock::open(&config.paths.state)?;
    let guard = guard(&config)?;
    let sockets = if upgrade {
        None
    } else {
        lock.take()?;
        Some(Sockets::new(&config, HashMap::new())?)
    };
    let Loaded { table, errors } = load_routes(&config, strict || upgrade)?;
    if table.is_empty() {
        tracing::warn!(folder = %config.paths.routes.display(), "there is no route yet");
    }
    let door = Door::open(&config.links, &config.paths.state).map_err(anyhow::Error::from)?;
    let table = Arc::new(ArcSwap::from_pointee(table));
    let fleet = build_fleet(&config, &table)?;
    let certs = Arc::new(load_certs(&config));
    let entrances = Entrances::new(&config, &certs).map_err(anyhow::Error::from)?;
    let admission = Arc::new(Admission::new(&config.limits));
    let unseen = Unseen::new(Arc::clone(&table), Arc::clone(&fleet), Arc::clone(&admission));
    let acme = acme(&config, &table, &certs)?;
    let entrances = entrances.waking(unseen).ordering(acme.clone());
    let access_log = access_log(&config)?;
    let reloader =
        Reloader::new(&config, &table, &fleet, &door, &certs, access_log.clone(), errors);
    let (timeouts, limits) = (config.timeouts.clone(), &config.limits);
    let (shared, sessions) = (Arc::clone(&table), Arc::clone(&fleet));
    let edge = Edge::new(shared, sessions, Arc::clone(&door), timeouts, limits)
        .with_admission(admission)
        .with_redirect_port(config.redirect_port())
        .with_access_log(access_log.clone())
        .with_acme(acme.clone());
    let (most, per_client) = (config.limits.connections, config.limits.connections_per_client);
    let connections = Arc::new(Connections::new(to_usize(most), to_usize(per_client)));

    let custody = Custody::new(Arc::clone(&fleet), acme.clone());
    let (sockets, before) = match sockets {
        Some(sockets) => (sockets, None),
        None => take_over(&config, &mut lock)?,
    };
    match &before {
        None => custody.take(lock),
        Some(_) => Arc::clone(&custody).take_when_alone(lock)?,
    }
    let has_waited = before.is_some();
    // Kept here, and with it the lock, until this process ends.
    let handover = Handover::new(before, Arc::clone(&custody))
        .context("cannot speak to the process before")?;

    let mut server = server(&config);
    let signals = Signals {
        fleet: Arc::clone(&fleet),
        connections: Arc::clone(&connections),
        handover: Arc::clone(&handover),
        access_log,
        phases: server.watch_execution_phase(),
        tasks: TaskTracker::new(),
    };
    server.bootstrap();

    let _watches = watches(&config, &reloader)?;
    if has_waited {
        // Edits since it began. What is wrong is logged where it is found.
        let _ = reloader.reload();
    }
    let edge = edge_service(&server, &config, edge, connections, entrances);
    let rooms = Rooms { table, fleet, door, acme, handover: Arc::clone(&handover) };
    add_services(&mut server, &config, rooms, edge, reloader, guard, sockets)?;
    server.run(RunArgs { shutdown_signal: Box::new(signals) });
    drop(custody);
    if handover.is_refused() {
        return Err(anyhow::anyhow!("the process before goes on").into());
    }
    Ok(())
}

/// Has the sockets of the process before, and returns once that has begun to hand over, or has died.
fn take_over(
    config: &Config,
    lock: &mut StateLock,
) -> anyhow::Result<(Sockets, Option<handover::Before>)> {
    match handover::find(&config.paths.state, lock)? {
        Found::Nobody => Ok((Sockets::new(config, HashMap::new())?, None)),
        Found::Serving(mut before, inherited) => {
            let sockets = Sockets::new(config, inherited)?;
            before.wait()?;
            Ok((sockets, Some(before)))
        }
    }
}

/// Those of the good files; what is wrong with the others.
fn load_routes(config: &Config, strict: bool) -> Result<Loaded, Error> {
    let loaded = load_good(&config.paths.routes, &config.engine_kinds(), check_files);
    let loaded = loaded.map_err(Error::Routes)?;
    if strict && !loaded.errors.is_empty() {
        return Err(Error::Routes(loaded.errors));
    }
    for error in &loaded.errors {
        tracing::error!(%error, "this file is left out, and its hosts get 404 until it is mended");
    }
    reload::tell_notes(&loaded.table);
    Ok(loaded)
}

/// Those that TLS needs; without TLS, none.
fn load_certs(config: &Config) -> Certs {
    if config.listen.https.is_empty() {
        return Certs::load([]);
    }
    let dev = config.paths.state.join(DEV_FOLDER);
    let certs = Certs::load(config.cert_folders()).with_dev(dev);
    if certs.pairs().is_empty() && config.acme.is_none() {
        let folder = config.paths.certs.display();
        tracing::warn!(%folder, "there is no certificate yet: every TLS handshake is refused");
    }
    certs
}

/// A thread a folder.
fn watches(config: &Config, reloader: &Arc<Reloader>) -> anyhow::Result<Vec<Watch>> {
    let begun = |folder: &Path, watch: io::Result<Watch>| {
        watch.with_context(|| format!("cannot watch {}", folder.display()))
    };
    let (routes, changed) = (&config.paths.routes, Arc::clone(reloader));
    let watch_routes = watch(routes, is_route_file, move || drop(changed.reload_routes()));
    let mut watches = vec![begun(routes, watch_routes)?];
    let folders = config.cert_folders();
    for folder in folders.iter().filter(|_| !config.listen.https.is_empty()) {
        let changed = Arc::clone(reloader);
        let watch_certs = watch(folder, is_cert_file, move || drop(changed.reload_certs()));
        watches.push(begun(folder, watch_certs)?);
    }
    Ok(watches)
}

/// What the services share.
struct Rooms {
    table: Arc<ArcSwap<RouteTable>>,
    fleet: Arc<Fleet>,
    door: Arc<Door>,
    acme: Option<Arc<Acme>>,
    handover: Arc<Handover>,
}

fn add_services(
    server: &mut Server,
    config: &Config,
    Rooms { table, fleet, door, acme, handover }: Rooms,
    edge: Service<Listener>,
    reloader: Arc<Reloader>,
    guard: Guard,
    sockets: Sockets,
) -> anyhow::Result<()> {
    let ready = Arc::default();
    let mut fleeting = background_service("fleet", Fleeting(Arc::clone(&fleet)));
    fleeting.threads = Some(2);
    let adopted = server.add_service(fleeting);

    let shared = sockets.share().context("cannot keep the listening sockets")?;
    let Sockets { edge: edge_sockets, admin: admin_socket, .. } = sockets;
    let (accepts, accepting) = watch::channel(false);
    let edge = Accepting { edge, sockets: edge_sockets, accepts };
    server.add_service(edge).add_dependency(&adopted);
    let addresses = |entrances: &[Entrance]| -> Vec<_> {
        entrances.iter().map(|entrance| entrance.address).collect()
    };
    let readiness = Readiness {
        http: addresses(&config.listen.http),
        https: addresses(&config.listen.https),
        accepts: accepting.clone(),
        ready: Arc::clone(&ready),
        handover: Arc::clone(&handover),
        state: config.paths.state.clone(),
        sockets: Mutex::new(shared),
    };
    server.add_service(background_service("readiness", readiness));
    if let Some(acme) = acme.clone() {
        let ordering = Ordering { acme, accepts: accepting.clone() };
        server.add_service(background_service("acme", ordering));
    }

    let errors = Arc::clone(&reloader.errors);
    let certs = Arc::clone(&reloader.certs);
    server.add_service(background_service("certificates", Expiry(Arc::clone(&certs))));
    let hangups = Hangups(Arc::clone(&reloader));
    let reload: crate::admin::Reload = Arc::new(move || reloader.reload());
    let doorkeeper = Doorkeeper(Arc::clone(&door));
    server.add_service(background_service("access", doorkeeper));
    let ways_in = ways_in(config);
    let admin = Admin { fleet, door, table, certs, reload, errors, ready, guard, acme, ways_in };
    let administration = Administration {
        admin,
        address: config.listen.admin.clone(),
        socket: Mutex::new(Some(admin_socket)),
        handover,
        accepts: accepting,
    };
    server.add_service(background_service("admin", administration));
    server.add_service(background_service("hangups", hangups));
    Ok(())
}

/// Whoever has trusted proxies in front has TLS there.
fn ways_in(config: &Config) -> WaysIn {
    let Listen { http, https, trusted_proxies, .. } = &config.listen;
    let is_https = !https.is_empty() || !trusted_proxies.0.is_empty();
    WaysIn {
        http: http.first().map(|entrance| entrance.address.port()),
        https: is_https.then(|| config.redirect_port()),
    }
}

fn access_log(config: &Config) -> anyhow::Result<Option<Arc<AccessLog>>> {
    let open = |path: &PathBuf| {
        AccessLog::open(path.clone().into())
            .with_context(|| format!("cannot write to {} (log.access)", path.display()))
    };
    config.access_log.as_ref().map(open).transpose()
}

fn guard(config: &Config) -> anyhow::Result<Guard> {
    let read = |file: &Path| {
        let of_file = || format!("{} (admin.token_file)", file.display());
        Token::read(file).with_context(of_file)
    };
    let token = config.admin.token_file.as_deref().map(read).transpose()?;
    Ok(match &config.listen.admin {
        AdminAddress::Tcp(address) => Guard::tcp(*address, token)?,
        AdminAddress::Unix(_) => Guard::unix(token),
    })
}

/// Before 1970 neither TLS nor HTTP has a date to tell, and what they are built on panics.
fn check_clock(now: SystemTime) -> anyhow::Result<()> {
    let wrong = "this machine's clock says that it is before 1970: set it, then start";
    now.duration_since(SystemTime::UNIX_EPOCH).map(drop).map_err(|_| anyhow::anyhow!(wrong))
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
    let [planned, pooled, named] = std::array::from_fn(|_| Arc::clone(table));
    let planner = move |host: &str| planned.load().lookup(host).map(|route| route.plan(host));
    let fleet = Fleet::new(engines, to_usize(config.limits.starts), limits, Box::new(planner));
    if config.docker_is_implied {
        fleet.leave_until_routed("docker");
    }
    let routes = table.load();
    fleet.set_routed(routes.iter().map(|route| &*route.recipe.engine));
    fleet.set_knows_all_routes(!routes.is_partial());
    let templates = move || pooled.load().iter().filter_map(|route| route.pool_plan()).collect();
    let named = move || named.load().iter().filter_map(|route| route.named_host()).collect();
    fleet.keep_named(Box::new(named));
    fleet.keep_learned(config.paths.state.join("learned.json"));
    let generation = config.paths.state.join("generation");
    fleet
        .keep_generations(generation.clone())
        .with_context(|| format!("cannot use {}", generation.display()))?;
    let claims = config.paths.state.join("spares");
    fleet
        .keep_pools(Box::new(templates), &claims)
        .with_context(|| format!("cannot use {}", claims.display()))?;
    Ok(fleet)
}

/// Who orders certificates, if anybody does.
fn acme(
    config: &Config,
    table: &Arc<ArcSwap<RouteTable>>,
    certs: &Arc<Certs>,
) -> anyhow::Result<Option<Arc<Acme>>> {
    let Some(settings) = config.acme.clone() else { return Ok(None) };
    let (table, certs) = (Arc::clone(table), Arc::clone(certs));
    let routed = Box::new(move |host: &str| table.load().lookup(host).is_some());
    Acme::open(settings, &config.paths.state, certs, routed).map(Some).context("[acme]")
}

fn server(config: &Config) -> Server {
    let drain = config.shutdown.drain;
    let conf = ServerConf {
        threads: thread::available_parallelism().map_or(1, usize::from),
        grace_period_seconds: Some(drain.as_secs() + u64::from(0 < drain.subsec_nanos())),
        graceful_shutdown_timeout_seconds: Some(1),
        upstream_keepalive_pool_size: POOL_MAX,
        max_retries: RETRIES_MAX,
        ..ServerConf::default()
    };
    Server::new_with_opt_and_conf(Opt::default(), conf)
}

fn edge_service(
    server: &Server,
    config: &Config,
    edge: Edge,
    connections: Arc<Connections>,
    entrances: Entrances,
) -> Service<Listener> {
    let mut proxy = http_proxy(&server.configuration, edge);
    let mut options = HttpServerOptions::default();
    // Refused by the edge (`framing`), with an id and counted. Pingora's refusal has neither.
    options.allow_connect_method_proxying = true;
    proxy.server_options = Some(options);
    let Config { limits, timeouts, http2, .. } = config;
    let listener = Listener::new(proxy, connections, limits, timeouts, http2);
    let listener = listener.with_entrances(entrances);
    let mut service = Service::new("edge".to_owned(), listener);
    for Entrance { address, .. } in config.listen.http.iter().chain(&config.listen.https) {
        // Pingora reads heads and bodies into buffers of their own; one more, of 64 KiB, would stay
        // with every idle client.
        let unbuffered = L4BufferSettings::default().read(0);
        service.add_listener(ListenerConfig::tcp(address.to_string()).l4_buffer(unbuffered));
    }
    service
}

fn to_usize(limit: u32) -> usize {
    usize::try_from(limit).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_clock_before_1970_is_told_and_any_other_is_good() {
        let epoch = SystemTime::UNIX_EPOCH;
        check_clock(epoch).expect("1970 has begun");
        let error = check_clock(epoch - Duration::from_secs(1)).expect_err("1969");
        assert!(error.to_string().contains("before 1970"), "{error}");
    }
}
