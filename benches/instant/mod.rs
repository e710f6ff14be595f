//! What the benches of the fleet share: an engine that does everything at once, and a fleet on it.

#![allow(dead_code, reason = "each bench uses its own share")]

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use dormouse::{
    engine::{Engine, EngineEvent, Error, Health, Instance, InstanceState, Life, Started},
    fleet::{Fleet, Limits},
    session::{
        Address, Depth, Generation, Plan, Policy, Probe, RouteLimits, Rung, SessionId, Spec,
        machine::Asker,
    },
};
use futures::stream::{self, BoxStream};
use tokio::{runtime::Handle, sync::Notify};

/// More sessions and held requests than any bench has.
const LIMITS: Limits = Limits { held: 1_000_000, sessions: 1_000_000, running: BTreeMap::new() };
/// Starts at once: they take no time.
const STARTS: usize = 64;

/// Every instance listens at one address, is healthy at once, and sleeps at once.
#[derive(Debug)]
pub(crate) struct Instantly {
    address: Address,
    /// When each sleep was called.
    pub(crate) slept: Mutex<Vec<(SessionId, Instant)>>,
}

impl Instantly {
    pub(crate) fn new(address: Address) -> Arc<Self> {
        Arc::new(Self { address, slept: Mutex::default() })
    }
}

#[async_trait]
impl Engine for Instantly {
    fn kind(&self) -> &'static str {
        "process"
    }

    fn depths(&self) -> &'static [Depth] {
        &[Depth::Stopped]
    }

    async fn start(&self, _: &SessionId, _: &Spec, g: Generation) -> Result<Started, Error> {
        Ok(Started {
            address: self.address.clone(),
            life: Life::new(g.to_string()),
            ran_already: false,
        })
    }

    async fn sleep(
        &self,
        session: &SessionId,
        _: &Spec,
        _: Option<&Life>,
        _: Depth,
    ) -> Result<(), Error> {
        self.slept.lock().expect("nothing panics in it").push((session.clone(), Instant::now()));
        Ok(())
    }

    async fn list(&self) -> Result<Vec<Instance>, Error> {
        Ok(Vec::new())
    }

    async fn inspect(&self, session: &SessionId, _: &Spec) -> Result<Option<Instance>, Error> {
        let state = InstanceState::Running(Health::Healthy);
        let session = session.clone();
        Ok(Some(Instance { session, generation: Generation(0), life: None, state }))
    }

    fn events(&self) -> BoxStream<'static, EngineEvent> {
        Box::pin(stream::pending())
    }
}

/// Where nobody listens. TCP, so that no two sessions share a counter of references.
pub(crate) const NOWHERE: Address =
    Address::Tcp(SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 1)));

/// A session of no template at all that sleeps when idle for so long.
pub(crate) fn plan(after: Duration) -> Plan {
    Plan {
        route: "route".into(),
        engine: "engine".into(),
        policy: Policy {
            ladder: Arc::new([Rung { after, to: Depth::Stopped }]),
            min_awake: Duration::ZERO,
            wake_timeout: Duration::from_secs(60),
            boot_max: Duration::from_secs(60),
            held_max: 1000,
        },
        probe: Probe::Engine,
        limits: RouteLimits::default(),
        pool: None,
        tls: None,
        spec: Spec::default(),
    }
}

/// A fleet that runs.
pub(crate) async fn fleet(engine: Arc<Instantly>) -> Arc<Fleet> {
    let port: Arc<dyn Engine> = engine;
    let nobody_asks = Box::new(|_: &str| None);
    let fleet = Fleet::new([("engine".into(), port)], STARTS, LIMITS, nobody_asks);
    let adopted = Arc::new(Notify::new());
    let told = Arc::clone(&adopted);
    // Ends with the runtime.
    drop(Handle::current().spawn(Arc::clone(&fleet).run(move || told.notify_one())));
    adopted.notified().await;
    fleet
}

/// Wakes a session and leaves it idle.
pub(crate) async fn wake(fleet: &Arc<Fleet>, host: &str, plan: impl Fn() -> Plan) {
    let lease = fleet.acquire(host, Asker::Client, plan);
    lease.expect("there is room").ready().await.expect("an engine that never fails");
}

/// A folder of so many route files with an exact host each. They differ in their host alone, or
/// each has a template of its `own`, as where every desktop was given its own container.
pub(crate) fn folder(files: usize, own: bool) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for n in 0..files {
        let of = if own { n } else { 0 };
        let text = format!(
            "# The desktop of person {n}.\n\
             host = \"person-{n}.desk.example.com\"\nengine = \"local\"\n\n\
             [instance]\ncommand = [\"/opt/desk/serve\", \"--user\", \"u{of}\", \"--listen\", \
             \"{{address}}\"]\nenv = {{ HOME_OF = \"u{of}\" }}\n\n\
             [ready]\nprobe = \"http\"\npath = \"/health\"\n\n\
             [idle]\nafter = \"15m\"\n"
        );
        std::fs::write(folder.path().join(format!("person-{n}.toml")), text).expect("a file");
    }
    folder
}

/// Whether this is `cargo bench`: `cargo test --benches` starts the binary too, and wants it short.
pub(crate) fn asked_for() -> bool {
    std::env::args().any(|argument| argument == "--bench")
}

/// CPU time that this process has used, to 10 ms.
pub(crate) fn cpu_time() -> Duration {
    let stat = procfs::process::Process::myself().and_then(|this| this.stat());
    let stat = stat.expect("a process can read its own /proc");
    let ticks = stat.utime + stat.stime;
    Duration::from_secs_f64(ticks as f64 / procfs::ticks_per_second() as f64)
}

/// Bytes of memory that this process holds and no file backs.
pub(crate) fn memory() -> u64 {
    let rollup = procfs::process::Process::myself().and_then(|this| this.smaps_rollup());
    let maps = rollup.expect("a process can read its own /proc").memory_map_rollup;
    maps.iter().filter_map(|map| map.extension.map.get("Anonymous")).sum()
}
