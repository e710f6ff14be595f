//! The shape of `dormouse.toml`. The comments here are the operator's reference: they become the
//! JSON Schema's descriptions.
//!
//! Says what may be written, not what it means: that is `check`.

use std::{
    borrow::Cow, collections::BTreeMap, fmt, net::SocketAddr, path::PathBuf, time::Duration,
};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::AdminAddress;
use crate::route::{
    EngineKind, Rate, RateText,
    text::{self, AddressText, DurationText, Text, duration},
};

/// The edge's own settings. Every key has a default; no file at all works too. Relative paths
/// start from this file's folder.
#[derive(Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ConfigFile {
    /// Where to listen.
    pub(crate) listen: ListenTable,
    /// The admin API.
    pub(crate) admin: AdminTable,
    /// Folders.
    pub(crate) paths: PathsTable,
    /// The most of everything that could otherwise grow.
    pub(crate) limits: Limits,
    /// How long to wait for others. None of these cuts an open WebSocket or a flowing stream.
    pub(crate) timeouts: Timeouts,
    /// How to end.
    pub(crate) shutdown: Shutdown,
    /// What runs the instances, by the name that routes call it: `a-z`, `0-9` and `-`. Default:
    /// `local` of kind `process` and `docker` of kind `docker`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) engines: Option<BTreeMap<String, EngineTable>>,
}

/// `[listen]`.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ListenTable {
    /// Where requests come in, HTTP/1.1 and cleartext HTTP/2: a list of `ADDRESS:PORT`.
    #[schemars(length(min = 1))]
    pub(crate) http: Vec<AddressText>,
    /// Where the admin API listens: `ADDRESS:PORT` or `unix:/path`. Beyond loopback it needs
    /// `admin.token_file`.
    pub(crate) admin: AdminAddress,
}

/// `[admin]`.
#[derive(Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct AdminTable {
    /// A file that holds the token which the admin API then asks for (`Authorization: Bearer …`).
    /// Needed when `listen.admin` is neither loopback nor a unix socket. Default: no token.
    pub(crate) token_file: Option<PathBuf>,
}

/// `[paths]`.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct PathsTable {
    /// The folder of the route files.
    pub(crate) routes: PathBuf,
    /// The folder of the certificates. Not read yet: the edge does not speak TLS to clients so far.
    pub(crate) certs: PathBuf,
    /// The folder of what Dormouse itself keeps: sockets, the logs of processes, their marks.
    pub(crate) state: PathBuf,
}

/// `[limits]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// The most requests held in all; the next one gets 503.
    #[schemars(range(min = 1))]
    pub held: u32,
    /// The most starts at once, per engine; the next one waits. The clients that wait take turns.
    #[schemars(range(min = 1))]
    pub starts: u32,
    /// The most connections from clients; the next one is closed at once.
    #[schemars(range(min = 1))]
    pub connections: u32,
    /// The most connections from one client (an IPv4 address, or the /64 of an IPv6 address); the
    /// next one is closed at once. An HTTP/2 connection is one, whatever it carries.
    #[schemars(range(min = 1))]
    pub connections_per_client: u32,
    /// How often the requests of one client may begin a wake: `"60/m burst 120"` lets 120 at once
    /// pass and then one a second, `"unlimited"` all; the next one gets 429 with `Retry-After`. A
    /// request to a session that wakes already, or is awake, does not count.
    pub wakes_per_client: RateText,
    /// The most clients whose wakes are counted one by one. Who comes when so many have begun wakes
    /// of late is counted together with a few others.
    #[schemars(range(min = 1))]
    pub clients: u32,
    /// The most sessions kept in memory; those long asleep are forgotten first.
    #[schemars(range(min = 1))]
    pub sessions: u32,
}

/// `[timeouts]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Timeouts {
    /// A client's whole request head, from its first byte.
    #[serde(with = "duration")]
    #[schemars(with = "DurationText")]
    pub client_head: Duration,
    /// Between two reads of a request's body, until the answer begins.
    #[serde(with = "duration")]
    #[schemars(with = "DurationText")]
    pub client_body: Duration,
    /// A client's connection without a request (keep-alive).
    #[serde(with = "duration")]
    #[schemars(with = "DurationText")]
    pub client_idle: Duration,
    /// Connecting to an instance.
    #[serde(with = "duration")]
    #[schemars(with = "DurationText")]
    pub connect: Duration,
    /// An instance's silence: until its answer begins, and between two reads of it. Not for
    /// WebSocket, SSE and gRPC, which may be silent for as long as they like.
    #[serde(with = "duration")]
    #[schemars(with = "DurationText")]
    pub answer: Duration,
    /// A connection to an instance that is kept for the next request.
    #[serde(with = "duration")]
    #[schemars(with = "DurationText")]
    pub upstream_idle: Duration,
}

/// `[shutdown]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Shutdown {
    /// How long open requests may go on after SIGTERM.
    #[serde(with = "duration")]
    #[schemars(with = "DurationText")]
    pub drain: Duration,
}

/// `[engines.NAME]`. All but `kind` and `running` is for `kind = "docker"`.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct EngineTable {
    /// `"process"`: a command per session on this machine. `"docker"`: containers of a Docker
    /// daemon.
    pub(crate) kind: KindWord,
    /// The most instances that are awake, waking or stopping at once; `limits.when_full` of a route
    /// says what becomes of one more. Default: as many as come.
    #[schemars(range(min = 1))]
    pub(crate) running: Option<u32>,
    /// Where the Docker daemon is: `unix:///path`, `tcp://HOST:PORT`, `https://HOST:PORT` (TLS) or
    /// `ssh://[USER@]HOST[:PORT]`. Default: `DOCKER_HOST` (with `DOCKER_TLS_VERIFY` and
    /// `DOCKER_CERT_PATH`), else `unix:///var/run/docker.sock`.
    pub(crate) endpoint: Option<String>,
    /// The authority that signed the daemon's certificate, a PEM file. With `tls_cert` and
    /// `tls_key`, a `tcp://` endpoint speaks TLS.
    pub(crate) tls_ca: Option<PathBuf>,
    /// Our certificate for the daemon, a PEM file.
    pub(crate) tls_cert: Option<PathBuf>,
    /// The key of `tls_cert`, a PEM file.
    pub(crate) tls_key: Option<PathBuf>,
    /// Whose the containers are: the value of their label. Two edges on one daemon need two.
    /// Default: `"dormouse"`.
    pub(crate) owner: Option<String>,
    /// The most time for one call to the daemon. Default: `"60s"`.
    pub(crate) call_timeout: Option<DurationText>,
}

/// [`EngineKind`] as it is written.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum KindWord {
    Process,
    Docker,
}

impl From<KindWord> for EngineKind {
    fn from(word: KindWord) -> Self {
        match word {
            KindWord::Process => Self::Process,
            KindWord::Docker => Self::Docker,
        }
    }
}

impl EngineTable {
    /// Nothing but the kind.
    pub(crate) fn of(kind: KindWord) -> Self {
        Self {
            kind,
            running: None,
            endpoint: None,
            tls_ca: None,
            tls_cert: None,
            tls_key: None,
            owner: None,
            call_timeout: None,
        }
    }
}

impl Default for ListenTable {
    fn default() -> Self {
        Self {
            http: vec![AddressText(SocketAddr::from(([127, 0, 0, 1], 8080)))],
            admin: AdminAddress::Tcp(SocketAddr::from(([127, 0, 0, 1], 9900))),
        }
    }
}

impl Default for PathsTable {
    fn default() -> Self {
        Self { routes: "routes".into(), certs: "certs".into(), state: "state".into() }
    }
}

impl Default for Limits {
    fn default() -> Self {
        let wakes = Rate { count: 60, per: Duration::from_secs(60), burst: 120 };
        Self {
            held: 10_000,
            starts: 8,
            connections: 50_000,
            connections_per_client: 1000,
            wakes_per_client: RateText(Some(wakes)),
            clients: 65_536,
            sessions: 100_000,
        }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            client_head: Duration::from_secs(10),
            client_body: Duration::from_secs(60),
            client_idle: Duration::from_secs(75),
            connect: Duration::from_secs(5),
            answer: Duration::from_secs(5 * 60),
            upstream_idle: Duration::from_secs(4),
        }
    }
}

impl Default for Shutdown {
    fn default() -> Self {
        Self { drain: Duration::from_secs(30) }
    }
}

impl Text for AdminAddress {
    const EXPECTED: &'static str = "ADDRESS:PORT such as \"127.0.0.1:9900\", or \"unix:/path\"";

    fn parse(text: &str) -> Result<Self, String> {
        match text.strip_prefix("unix:") {
            Some("") => Err("`unix:` without a path".into()),
            Some(path) => Ok(Self::Unix(path.into())),
            None => AddressText::parse(text).map(|address| Self::Tcp(address.0)),
        }
    }
}

impl fmt::Display for AdminAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl<'de> Deserialize<'de> for AdminAddress {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        text::read(from)
    }
}

impl Serialize for AdminAddress {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl JsonSchema for AdminAddress {
    fn schema_name() -> Cow<'static, str> {
        "AdminAddress".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": r"^(unix:.+|.+:[0-9]+)$",
            "examples": ["127.0.0.1:9900", "unix:/run/dormouse/admin.sock"],
        })
    }
}
