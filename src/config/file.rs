//! The shape of `dormouse.toml`. The comments here are the operator's reference: they become the
//! JSON Schema's descriptions.
//!
//! Says what may be written, not what it means: that is `check`.

use std::{borrow::Cow, collections::BTreeMap, fmt, path::PathBuf, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{
    AdminAddress,
    acme::AcmeTable,
    engines::EngineTable,
    http::{GetBody, Http2, Underscores},
    listen::{ListenTable, Tls},
};
use crate::route::{
    Rate, RateText,
    text::{self, AddressText, DurationText, SizeText, Text, duration, size},
};

/// The edge's own settings. Every key has a default; no file at all works too. Relative paths
/// start from this file's folder.
#[derive(Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ConfigFile {
    /// Where to listen.
    pub(crate) listen: ListenTable,
    /// TLS with clients.
    pub(crate) tls: Tls,
    /// The admin API.
    pub(crate) admin: AdminTable,
    /// Folders.
    pub(crate) paths: PathsTable,
    /// The most of everything that could otherwise grow.
    pub(crate) limits: Limits,
    /// What one HTTP/2 connection may cost.
    pub(crate) http2: Http2,
    /// How long to wait for others. None of these cuts an open WebSocket or a flowing stream.
    pub(crate) timeouts: Timeouts,
    /// How to end.
    pub(crate) shutdown: Shutdown,
    /// Signed links (`[access] link` of a route).
    pub(crate) links: LinksTable,
    /// What is written down.
    pub(crate) log: LogTable,
    /// Certificates that come and renew by themselves. Without this table nothing is ordered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) acme: Option<AcmeTable>,
    /// What runs the instances, by the name that routes call it: `a-z`, `0-9` and `-`. Always there:
    /// `local` of kind `process` and `docker` of kind `docker`, unless written anew here. `docker` is
    /// not there beside another engine with the same daemon and owner, and is asked nothing before a
    /// route is on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) engines: Option<BTreeMap<String, EngineTable>>,
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
    /// The folder of the certificates: `NAME.pem` or `NAME.crt` with the chain and `NAME.key`, or
    /// all in one file. Which hosts they are for is read from them; an exact name beats a wildcard.
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
    /// A request's head, all of it; a longer one gets 431. At most 1 MiB.
    #[serde(with = "size")]
    #[schemars(with = "SizeText")]
    pub head: u64,
    /// The most headers of a request; one more gets 431. At most 256.
    #[schemars(range(min = 1, max = 256))]
    pub headers: u32,
    /// A request's target, path and query; a longer one gets 414.
    #[serde(with = "size")]
    #[schemars(with = "SizeText")]
    pub uri: u64,
    /// A header with `_` in its name, which many instances take for one with `-`, such as
    /// `X_Forwarded_For`: `"drop"` takes it out, `"refuse"` answers 400, `"pass"` passes it on.
    /// Those that could be taken for the framing of the body are refused in any case.
    pub underscores: Underscores,
    /// A `GET` with a body, which instances that expect none take for a second request:
    /// `"refuse"` answers 400, `"pass"` passes it on. One with `Transfer-Encoding`, and a `HEAD`
    /// with a body, are refused in any case.
    pub get_body: GetBody,
    /// The fewest bytes a second of a request's body, on average, while the edge waits for them
    /// and until the answer begins; a slower one gets 408. Not for upgrades and gRPC, and what the
    /// instance or a wake takes does not count.
    #[serde(with = "size")]
    #[schemars(with = "SizeText")]
    pub body_rate: u64,
    /// The fewest bytes a second that a client takes of what there is for it, on average, while the
    /// edge waits for it; a slower one is cut. Not for who is sent less.
    #[serde(with = "size")]
    #[schemars(with = "SizeText")]
    pub answer_rate: u64,
}

/// `[timeouts]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Timeouts {
    /// A client's TLS handshake, and the PROXY protocol header before it or before a request.
    #[serde(with = "duration")]
    #[schemars(with = "DurationText")]
    pub handshake: Duration,
    /// A client's whole request head, from its first byte.
    #[serde(with = "duration")]
    #[schemars(with = "DurationText")]
    pub client_head: Duration,
    /// Between two reads of a request's body, until the answer begins.
    #[serde(with = "duration")]
    #[schemars(with = "DurationText")]
    pub client_body: Duration,
    /// Waiting for a request's body before `limits.body_rate` counts, and how far a fast start
    /// carries.
    #[serde(with = "duration")]
    #[schemars(with = "DurationText")]
    pub client_body_grace: Duration,
    /// Waiting for a client to take what there is for it before `limits.answer_rate` counts, and how
    /// far a fast start carries. Who takes nothing is cut after this.
    #[serde(with = "duration")]
    #[schemars(with = "DurationText")]
    pub client_write: Duration,
    /// A client's connection without a request (keep-alive).
    #[serde(with = "duration")]
    #[schemars(with = "DurationText")]
    pub client_idle: Duration,
    /// How long a client may be gone without a word before it is noticed: one that is silent is asked
    /// (TCP keepalive, and PING by HTTP/2), and what it was sent must be acknowledged. It then keeps
    /// no session awake. Who takes nothing of what there is for it is cut after this, too. At least
    /// 3 s.
    #[serde(with = "duration")]
    #[schemars(with = "DurationText")]
    pub client_gone: Duration,
    /// Connecting to an instance.
    #[serde(with = "duration")]
    #[schemars(with = "DurationText")]
    pub connect: Duration,
    /// An instance's silence: until its answer begins, and between two reads of it. Not for
    /// upgrades, gRPC, and answers that say that they are streams, such as server-sent events.
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

/// `[links]`.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct LinksTable {
    /// The keys, each a file of 32 bytes or more (`openssl rand -base64 32`), by its id. All of them
    /// verify: to change a key, add one, make it `current`, and take the old one away once its links
    /// have expired. Default: one that Dormouse makes itself, `links.key` in the state folder.
    pub(crate) keys: BTreeMap<String, PathBuf>,
    /// The id of the key that signs new links. Default: the only one.
    pub(crate) current: Option<String>,
    /// The longest that a link may count.
    pub(crate) expires_max: DurationText,
}

/// `[log]`.
#[derive(Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct LogTable {
    /// The access log: a file that gets a JSON object for each request, or `"-"` for standard
    /// output. SIGHUP opens it anew, after a rotation. Default: none.
    pub(crate) access: Option<PathBuf>,
}

impl Default for PathsTable {
    fn default() -> Self {
        Self { routes: "routes".into(), certs: "certs".into(), state: "state".into() }
    }
}

impl Default for LinksTable {
    fn default() -> Self {
        let expires_max = DurationText(super::Links::default().expires_max);
        Self { keys: BTreeMap::new(), current: None, expires_max }
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
            head: 64 * 1024,
            headers: 200,
            uri: 16 * 1024,
            underscores: Underscores::Drop,
            get_body: GetBody::Refuse,
            body_rate: 500,
            answer_rate: 500,
        }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(10),
            client_head: Duration::from_secs(10),
            client_body: Duration::from_secs(60),
            client_body_grace: Duration::from_secs(20),
            client_write: Duration::from_secs(60),
            client_idle: Duration::from_secs(75),
            client_gone: Duration::from_secs(30),
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
