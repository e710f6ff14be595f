//! A real admin API on a real listener, over a fleet whose engine does as it is told.
#![expect(clippy::unwrap_used, unreachable_pub, reason = "a test's unwrap is its assertion")]
#![allow(dead_code, reason = "each test file uses its part")]

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use dormouse::{
    access::Door,
    admin::{Admin, Guard, Listener, Reload, ReloadReport, Token, WaysIn, bind_unix},
    config::Links,
    engine::{Engine, EngineEvent, Error, Instance, InstanceState, Life, Started},
    fleet::{Fleet, Limits},
    route::{EngineKind, Engines, RouteError, RouteTable, load_dir},
    session::{Address, Depth, Generation, SessionId, Spec},
};
use futures::{StreamExt, stream, stream::BoxStream};
use tempfile::TempDir;
use tokio::{
    net::TcpListener,
    sync::{Notify, Semaphore},
    task::JoinSet,
};

/// Longer than anything here may take on a busy machine; never waited for in full.
pub const DEADLINE: Duration = Duration::from_secs(60);
pub const TOKEN: &str = "correct-horse-battery-staple";

pub const ROUTE: &str = r#"
host   = "{session}.localhost"
engine = "local"
[instance]
command = ["serve", "--key", "hunter2-in-command"]
env = { KEY = "hunter2-in-env" }
[wake]
timeout = "30s"
[idle]
after = "1h"
min_awake = "1s"
[upstream]
set_headers = { Authorization = "hunter2-in-header" }
"#;

/// An engine that waits where it is told to, fails where it is told to, and remembers.
#[derive(Debug)]
pub struct Scripted {
    address: SocketAddr,
    /// What it was asked for.
    calls: Mutex<Vec<String>>,
    called: Notify,
    /// The answers of the next starts; without one, they succeed.
    failures: Mutex<Vec<Error>>,
    /// Every call takes one and gives it back; none left: it hangs.
    pub open: Semaphore,
}

const OPEN: usize = 1000;

impl Scripted {
    fn new(address: SocketAddr) -> Arc<Self> {
        Arc::new(Self {
            address,
            calls: Mutex::default(),
            called: Notify::new(),
            failures: Mutex::default(),
            open: Semaphore::new(OPEN),
        })
    }

    pub fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }

    pub fn fail_next(&self, error: Error) {
        self.failures.lock().unwrap().push(error);
    }

    /// From now on every call hangs, until [`Self::release`].
    pub fn hang(&self) {
        assert_eq!(self.open.forget_permits(OPEN), OPEN);
    }

    pub fn release(&self) {
        self.open.add_permits(OPEN);
    }

    /// Waits until it was asked for `call`.
    pub async fn asked(&self, call: &str) {
        let asked = async {
            loop {
                let called = self.called.notified();
                if self.calls().iter().any(|made| made == call) {
                    return;
                }
                called.await;
            }
        };
        tokio::time::timeout(DEADLINE, asked).await.unwrap();
    }

    async fn call(&self, call: String) {
        self.calls.lock().unwrap().push(call);
        self.called.notify_waiters();
        let _turn = self.open.acquire().await.unwrap();
    }
}

#[async_trait]
impl Engine for Scripted {
    fn kind(&self) -> &'static str {
        "process"
    }

    fn depths(&self) -> &'static [Depth] {
        &[Depth::Paused, Depth::Stopped]
    }

    async fn start(&self, id: &SessionId, _: &Spec, g: Generation) -> Result<Started, Error> {
        self.call(format!("start {id}")).await;
        match self.failures.lock().unwrap().pop() {
            Some(error) => Err(error),
            None => Ok(Started {
                address: Address::Tcp(self.address),
                life: Life::new(g.to_string()),
                ran_already: false,
            }),
        }
    }

    async fn sleep(
        &self,
        id: &SessionId,
        _: &Spec,
        _: Option<&Life>,
        to: Depth,
    ) -> Result<(), Error> {
        self.call(format!("sleep {id} {to}")).await;
        Ok(())
    }

    async fn list(&self) -> Result<Vec<Instance>, Error> {
        Ok(Vec::new())
    }

    async fn inspect(&self, id: &SessionId, _: &Spec) -> Result<Option<Instance>, Error> {
        Ok(Some(Instance {
            session: id.clone(),
            generation: Generation(0),
            life: None,
            state: InstanceState::Asleep(Depth::Stopped),
        }))
    }

    fn events(&self) -> BoxStream<'static, EngineEvent> {
        stream::pending().boxed()
    }
}

/// Where the API of a [`Bed`] listens.
pub enum At {
    Loopback,
    /// Guarded as if it listened on every address.
    Everywhere,
    /// `admin.sock` in the bed's folder.
    Unix,
}

pub struct Bed {
    pub folder: TempDir,
    pub engine: Arc<Scripted>,
    pub fleet: Arc<Fleet>,
    pub ready: Arc<AtomicBool>,
    /// `127.0.0.1:PORT` or `unix:/PATH`.
    pub address: String,
    stop: Arc<Notify>,
    served: JoinSet<()>,
    _around: JoinSet<()>,
}

impl Bed {
    pub async fn new() -> Self {
        Self::with(At::Loopback, None).await
    }

    pub async fn with(at: At, token: Option<&str>) -> Self {
        Self::with_reload(at, token, None).await
    }

    pub async fn with_reload(at: At, token: Option<&str>, reload: Option<Reload>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("routes")).unwrap();
        std::fs::write(folder.path().join("routes/demo.toml"), ROUTE).unwrap();
        let mut around = JoinSet::new();
        let instance = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let engine = Scripted::new(instance.local_addr().unwrap());
        around.spawn(async move { while instance.accept().await.is_ok() {} });

        let routes = folder.path().join("routes");
        let table = Arc::new(ArcSwap::from_pointee(load(&routes).unwrap()));
        let planned = Arc::clone(&table);
        let port: Arc<dyn Engine> = engine.clone();
        let fleet = Fleet::new(
            [("local".into(), port)],
            8,
            Limits { held: 100, sessions: 100, running: BTreeMap::new() },
            Box::new(move |host| planned.load().lookup(host).map(|route| route.plan(host))),
        );
        let ready = Arc::new(AtomicBool::new(false));
        let (adopted, is_ready) = (Arc::new(Notify::new()), Arc::clone(&ready));
        let told = Arc::clone(&adopted);
        around.spawn(Arc::clone(&fleet).run(move || {
            is_ready.store(true, Ordering::Release);
            told.notify_one();
        }));
        adopted.notified().await;

        let token = token.map(|token| token.parse::<Token>().unwrap());
        let (listener, guard, address) = listen(at, token, folder.path()).await;
        let errors = Arc::new(ArcSwap::from_pointee(Vec::new()));
        let reload = reload.unwrap_or_else(|| reload_of(routes, &table, &errors));
        let door = Door::open(&Links::default(), folder.path()).unwrap();
        let certs = Arc::new(dormouse::certs::Certs::load([]));
        let (fleet_of, is_ready) = (fleet.clone(), ready.clone());
        let admin = Admin {
            fleet: fleet_of,
            door,
            table,
            certs,
            reload,
            errors,
            ready: is_ready,
            guard,
            acme: None,
            ways_in: WaysIn { http: Some(8080), https: None },
        };
        let stop = Arc::new(Notify::new());
        let stopped = Arc::clone(&stop);
        let mut served = JoinSet::new();
        let serve = listener.serve(admin.router(), async move { stopped.notified().await });
        served.spawn(serve);
        Self { folder, engine, fleet, ready, address, stop, served, _around: around }
    }

    pub fn route_file(&self, name: &str) -> PathBuf {
        self.folder.path().join("routes").join(name)
    }

    /// Ends the API, as the edge does when it ends.
    pub fn begin_stop(&self) {
        self.stop.notify_one();
    }

    pub async fn stopped(&mut self) {
        tokio::time::timeout(DEADLINE, self.served.join_next()).await.unwrap().unwrap().unwrap();
    }

    /// Waits until the session is in `state`.
    pub async fn until(&self, host: &str, state: &str) {
        let reached = async {
            while self.fleet.session(host).is_none_or(|session| session.state != state) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let ended = tokio::time::timeout(DEADLINE, reached).await;
        assert!(ended.is_ok(), "never {state}: {:?}", self.fleet.session(host));
    }
}

async fn listen(at: At, token: Option<Token>, folder: &Path) -> (Listener, Guard, String) {
    let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
    match at {
        At::Unix => {
            let path = folder.join("admin.sock");
            let socket = bind_unix(&path).unwrap();
            let listener = Listener::unix(socket, path.clone(), Arc::default()).unwrap();
            (listener, Guard::unix(token), format!("unix:{}", path.display()))
        }
        At::Loopback => {
            let listener =
                Listener::tcp(std::net::TcpListener::bind(loopback).unwrap().into()).unwrap();
            let address = listener.address().unwrap();
            (listener, Guard::tcp(address, token).unwrap(), address.to_string())
        }
        At::Everywhere => {
            let listener =
                Listener::tcp(std::net::TcpListener::bind(loopback).unwrap().into()).unwrap();
            let address = listener.address().unwrap();
            let everywhere = SocketAddr::from(([0, 0, 0, 0], address.port()));
            (listener, Guard::tcp(everywhere, token).unwrap(), address.to_string())
        }
    }
}

fn load(routes: &Path) -> Result<RouteTable, Vec<RouteError>> {
    load_dir(routes, &Engines::from([("local".to_owned(), EngineKind::Process)]))
}

/// What `app` does, without the log.
fn reload_of(
    routes: PathBuf,
    table: &Arc<ArcSwap<RouteTable>>,
    errors: &Arc<ArcSwap<Vec<RouteError>>>,
) -> Reload {
    let (table, errors) = (Arc::clone(table), Arc::clone(errors));
    Arc::new(move || {
        let loaded = load(&routes);
        errors.store(Arc::new(loaded.as_ref().err().cloned().unwrap_or_default()));
        let after = Arc::new(loaded?);
        let before = table.swap(Arc::clone(&after));
        Ok(ReloadReport::between(&before, &after))
    })
}
