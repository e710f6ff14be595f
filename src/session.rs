//! The words that every room shares: what a session is, how it may sleep, what may happen to it.
//!
//! Plain data on `std` alone. This room knows no clock, no socket, no task and no other room;
//! [`machine`] decides, the others carry out.

pub mod machine;
pub mod spec;

use std::{
    fmt,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

pub use spec::{
    DockerSpec, FirecrackerSpec, FlySpec, KubernetesSpec, Listen, ProcessSpec, QemuSpec, Spec,
};

/// The thing that sleeps and wakes. Its canonical host (`alice.localhost`, lower case, no port) is
/// its identity: one host is one session, whichever route serves it.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(Arc<str>);

impl SessionId {
    /// `host` must already be canonical.
    pub fn new(host: impl Into<Arc<str>>) -> Self {
        Self(host.into())
    }

    /// The canonical host.
    pub fn host(&self) -> &str {
        &self.0
    }
}

impl std::borrow::Borrow<str> for SessionId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What the hosts of instances end in that are nobody's yet. No route can serve one.
pub const SPARES: &str = ".spare.internal";

/// One life of an instance, from start to sleep; a number that only grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(pub u64);

impl Generation {
    /// The generation that follows this one.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Where an instance listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// TCP.
    Tcp(SocketAddr),
    /// TCP, at a forwarder that takes connections before the instance listens.
    Forwarded(SocketAddr),
    /// A unix socket's path.
    Unix(Arc<str>),
    /// Behind a proxy that has many.
    Behind(Arc<Behind>),
}

/// An instance that is reached through a proxy, which a header tells whom a request is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Behind {
    /// The proxy.
    pub proxy: SocketAddr,
    /// The name that the proxy knows: that of its certificate, and `Host` of each request.
    pub host: Box<str>,
    /// Whether the proxy speaks TLS.
    pub tls: bool,
    /// The header that names the instance, and its name there.
    pub header: (&'static str, Box<str>),
}

impl Address {
    /// The proxy before it, if there is one.
    pub fn behind(&self) -> Option<&Behind> {
        match self {
            Self::Behind(behind) => Some(behind),
            Self::Tcp(_) | Self::Forwarded(_) | Self::Unix(_) => None,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) | Self::Forwarded(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{path}"),
            Self::Behind(behind) => {
                let (header, instance) = &behind.header;
                write!(f, "{} ({}, {header}: {instance})", behind.host, behind.proxy)
            }
        }
    }
}

/// The address of one generation's instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Whose address it is.
    pub generation: Generation,
    /// The address.
    pub address: Address,
}

/// How deep a session sleeps; deeper is greater, costs less and wakes slower.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Depth {
    /// In memory, without CPU time.
    Paused,
    /// Memory on disk.
    Suspended,
    /// Not running; its disk stays.
    Stopped,
    /// Gone; the next wake creates it anew.
    Removed,
}

impl Depth {
    /// All depths, lightest first.
    pub const ALL: [Self; 4] = [Self::Paused, Self::Suspended, Self::Stopped, Self::Removed];

    /// The word used in config, logs, metrics and the admin API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Paused => "paused",
            Self::Suspended => "suspended",
            Self::Stopped => "stopped",
            Self::Removed => "removed",
        }
    }
}

impl fmt::Display for Depth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One rung of the ladder of sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rung {
    /// Counted from the end of the last activity.
    pub after: Duration,
    /// The depth to go to.
    pub to: Depth,
}

/// When a session sleeps and how long its wake may take.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Policy {
    /// Not empty; both `after` and `to` strictly rise.
    pub ladder: Arc<[Rung]>,
    /// No sleep earlier than this after a wake: no flapping.
    pub min_awake: Duration,
    /// How long a request waits for its session; a wake that the engine has not begun by then has
    /// failed.
    pub wake_timeout: Duration,
    /// A wake that is not ready by then has failed, where that is longer.
    pub boot_max: Duration,
    /// The most requests held at once for one session.
    pub held_max: u32,
}

/// When an instance counts as ready.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Probe {
    /// It accepts a TCP (or unix) connection.
    Tcp,
    /// It answers `GET path`: with `status`, or with anything below 500.
    Http {
        /// Path and query.
        path: String,
        /// The one status that counts, when given.
        status: Option<u16>,
        /// What the route sets on every request to the instance.
        headers: Vec<ProbeHeader>,
    },
    /// The engine says that it is healthy.
    Engine,
}

/// A header that the probe sends; there may be a secret in it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct ProbeHeader {
    /// As the operator spelled it.
    pub name: Vec<u8>,
    /// Its value.
    pub value: Vec<u8>,
}

impl fmt::Debug for ProbeHeader {
    /// Without the value.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: …", String::from_utf8_lossy(&self.name))
    }
}

/// How the edge and the probe speak TLS to an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamTls {
    /// Whether its certificate must be valid for `sni`.
    pub verify: bool,
    /// The name to ask for and to check.
    pub sni: String,
}

/// What the sessions of one route may take together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct RouteLimits {
    /// The most requests held.
    pub held: Option<u32>,
    /// The most instances that are awake, waking or stopping.
    pub running: Option<u32>,
    /// The most instances that exist, asleep ones included.
    pub instances: Option<u32>,
    /// What becomes of a wake for which there is no place.
    pub when_full: WhenFull,
}

/// The spares of a route: instances made ahead for sessions that do not exist yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pool {
    /// How many wait.
    pub ready: u32,
    /// How deep they sleep meanwhile.
    pub depth: Depth,
}

/// What becomes of a wake where as many instances run as may.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum WhenFull {
    /// It is refused.
    #[default]
    Refuse,
    /// The instance that was idle the longest goes to sleep for it.
    EvictIdle,
}

impl WhenFull {
    /// The word used in config and the admin API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Refuse => "refuse",
            Self::EvictIdle => "evict_idle",
        }
    }
}

/// All that is needed to run one session; a route renders it for a host.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The route's name.
    pub route: Arc<str>,
    /// The engine's name: `NAME` of `[engines.NAME]`.
    pub engine: Arc<str>,
    /// When it sleeps.
    pub policy: Policy,
    /// What it may take together with the other sessions of its route.
    pub limits: RouteLimits,
    /// Whence a new session of its route takes its instance, if any waits there.
    pub pool: Option<Pool>,
    /// When it is ready.
    pub probe: Probe,
    /// TLS to the instance, if it speaks TLS.
    pub tls: Option<UpstreamTls>,
    /// What the instance is made from.
    pub spec: Spec,
}

/// What may happen to a session, besides a request for a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A lease of this generation was given back.
    Release(Generation),
    /// A lease of this generation that was no activity was given back.
    ReleaseIgnored(Generation),
    /// The engine is at the start of this generation.
    Begun(Generation),
    /// What the engine was to start as this generation ran already.
    RunsAlready(Generation),
    /// The instance of this generation is ready.
    Started(Endpoint),
    /// The engine refused or failed to start it, or to say where it is.
    StartFailed(Generation, Failure),
    /// The sleep of this generation has ended; nothing of it runs.
    Stopped(Generation),
    /// The sleep did not succeed; the instance may still run.
    StopFailed(Generation),
    /// The instance was found in this depth although nobody here asked for it.
    Lost(Generation, Depth),
    /// The instance was found running although nobody here asked for it.
    Found,
    /// The route is gone: refuse from now on, drain, sleep.
    Retire,
    /// Another session needs the place: stop, if nobody is there.
    Evict,
    /// The time of [`machine::Session::deadline`] may have come.
    Timer,
}

/// What the machine wants done, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Start an instance of this generation, or make ours what runs; asked for once per generation.
    Start(Generation),
    /// Put the instance of this generation, or what is left of an older one, to sleep; asked for
    /// again until it succeeds. A deeper sleep of a sleeper has a generation without a `Start`.
    Stop(Generation, Depth),
    /// Everybody who waits for this generation may go on.
    Open(Endpoint),
    /// Everybody who waits for this generation is told why it will not come.
    Fail(Generation, Failure),
    /// Everybody who waits for this generation asks for the next one: this one is over, by no
    /// failed wake.
    Rejoin(Generation),
}

/// The answer to a request for a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Leased, and awake.
    Ready(Endpoint),
    /// Leased; ready once this generation is.
    Wait(Generation),
    /// No lease.
    Refuse(Refusal),
}

/// Why a lease was not given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// As many requests are held for this session as its route allows.
    Full,
    /// The last wake failed; the next one may come at this time.
    CoolingDown(Instant),
    /// The instance cannot be put to sleep; tried again at this time.
    StopFailing(Instant),
    /// Its route is gone.
    Retired,
    /// It is not awake, and this one wakes nobody.
    Asleep,
}

/// Why a wake failed. What the engine said stays with the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Not ready in time.
    Timeout,
    /// The engine could not do it now; it may later.
    EngineBusy,
    /// The engine will not do it until somebody mends something.
    EngineRefused,
    /// The instance ended before it was ready.
    Died,
    /// The route was removed meanwhile.
    Retired,
    /// An operator put the session to sleep.
    PutToSleep,
    /// The instance before this one cannot be put to sleep.
    StopFailing,
}
