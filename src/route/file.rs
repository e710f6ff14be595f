//! The shape of a route file, `routes/NAME.toml`. The comments here are the operator's reference:
//! they become the JSON Schema's descriptions.
//!
//! Says what may be written, not what it means: that is `check`.

pub(crate) mod access;
pub(crate) mod instance;

use std::{borrow::Cow, collections::BTreeMap, fmt, path::PathBuf, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{Error, MapAccess, Visitor, value::MapAccessDeserializer},
};

use access::AccessTable;
use instance::InstanceTable;

use super::{
    rate::RateText,
    text::{self, DurationText, Secret},
    tls::ClientTlsTable,
};
use crate::session::{Depth, WhenFull};

/// One route: which hosts it serves, what wakes behind them, and when that sleeps again. The
/// file's name without `.toml` is the route's name: `a-z`, `0-9` and `-`.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RouteFile {
    /// The host that this route serves: an exact name, or a pattern with captures such as
    /// `{session}.example.com` or `{session}-ide.example.com`. A capture stands for one DNS label
    /// or a part of one: `a-z`, `0-9` and `-`, no `-` at its ends. Every host that matches is one
    /// session. An exact name beats a pattern, a longer literal end beats a shorter one.
    pub(crate) host: String,
    /// The engine that runs the instances: `NAME` of `[engines.NAME]` in `dormouse.toml`.
    #[serde(default = "local")]
    pub(crate) engine: String,
    /// What an instance is made from. The host's captures may stand in every string, `{session}`
    /// for example; `{{` and `}}` are braces.
    #[serde(default)]
    pub(crate) instance: InstanceTable,
    /// When an instance counts as ready.
    #[serde(default)]
    pub(crate) ready: ReadyTable,
    /// How a session wakes.
    #[serde(default)]
    pub(crate) wake: WakeTable,
    /// When a session sleeps.
    #[serde(default)]
    pub(crate) idle: IdleTable,
    /// What clients are told about HTTPS.
    #[serde(default)]
    pub(crate) tls: ClientTlsTable,
    /// How requests reach the instance.
    #[serde(default)]
    pub(crate) upstream: UpstreamTable,
    /// Who may enter, decided before anything wakes. Default: everybody.
    #[serde(default)]
    pub(crate) access: AccessTable,
    /// What the sessions of this route may take together.
    #[serde(default)]
    pub(crate) limits: LimitsTable,
    /// Instances made ahead, so that a new session's first wake is a resume. No capture may stand
    /// in `[instance]` or `ready.path` then: they are made before it is known whose they will be.
    pub(crate) pool: Option<PoolTable>,
    /// What the edge answers by itself, by path: `"/robots.txt" = { body = "…" }`. The session is
    /// not woken by it, and not kept awake. GET and HEAD; other methods get 405. At most 64.
    #[serde(default, rename = "static")]
    pub(crate) statics: BTreeMap<String, StaticTable>,
}

fn local() -> String {
    "local".into()
}

/// `[ready]`.
#[derive(Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ReadyTable {
    /// `"tcp"`: it accepts a connection. `"http"`: it answers `GET path`. `"engine"`: the engine
    /// says that it is healthy (Docker's HEALTHCHECK).
    pub(crate) probe: ProbeWord,
    /// What to ask for when `probe = "http"`; captures may stand in it. Default: `"/"`.
    pub(crate) path: Option<String>,
    /// The one status that counts as ready when `probe = "http"`. Default: any below 500.
    #[schemars(range(min = 100, max = 599))]
    pub(crate) status: Option<u16>,
}

/// How to find out that an instance is ready.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ProbeWord {
    #[default]
    Tcp,
    Http,
    Engine,
}

/// `[wake]`.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct WakeTable {
    /// How long a request is held for its session; then it gets 504. An instance whose start has
    /// begun goes on, and the next request joins its wake.
    pub(crate) timeout: DurationText,
    /// How long a wake may take in all, where that is more than `timeout`: an instance that is not
    /// ready by then is stopped. `"0s"`: no longer than `timeout`.
    pub(crate) boot_max: DurationText,
    /// When a browser that waits gets the waiting page. Only `"never"` for now.
    pub(crate) page_after: PageAfter,
    /// The most requests held at once for one session; the next one gets 503.
    #[schemars(range(min = 1))]
    pub(crate) held_max: u32,
    /// What a wake begins with: `"request"`, or `"sni"`, already the TLS handshake that names the
    /// host, so that its round trips are part of the wait. Only for routes that let everybody in,
    /// or decide by the client's address or certificate: a request is not seen by then. Where it
    /// takes the certificate, the wake begins when the handshake ends.
    pub(crate) on: WakeOn,
    /// Requests that wake nobody and keep nobody awake: monitors, crawlers, prefetchers.
    pub(crate) ignore: IgnoreTable,
}

/// `[wake.ignore]`: a request that matches one of these is answered with `status` while its
/// session is not awake. While it is awake the request is passed on, and is no activity: idleness
/// goes on as if it had not come. It is not cut, though; nothing sleeps while it is open.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct IgnoreTable {
    /// User agents: `"Googlebot"` stands for every one that has this in it, `"kube-probe/*"` for
    /// those that begin so. Upper and lower case are the same. At most 100.
    pub(crate) agents: Vec<String>,
    /// Paths: `"/metrics"` stands for itself, `"/.well-known/*"` for all that begin so. At most
    /// 100.
    pub(crate) paths: Vec<String>,
    /// The answer of a session that is not awake: 200 to 299 or 400 to 599. 503 comes with
    /// `Retry-After`.
    #[schemars(range(min = 200, max = 599))]
    pub(crate) status: u16,
}

/// `[limits]` of a route.
#[derive(Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct LimitsTable {
    /// How often requests may begin a wake; the next one gets 429. A request to a session that
    /// wakes already, or is awake, does not count.
    pub(crate) wakes: RateText,
    /// The most requests held at once for all sessions of the route; the next one gets 503.
    /// Default: only `limits.held` of `dormouse.toml`.
    #[schemars(range(min = 1))]
    pub(crate) held: Option<u32>,
    /// The most instances that are awake, waking or stopping at once. Default: only `running` of
    /// the engine.
    #[schemars(range(min = 1))]
    pub(crate) running: Option<u32>,
    /// What becomes of a wake when as many run as may, by this limit or by the engine's:
    /// `"refuse"`: 503. `"evict_idle"`: the instance that was idle the longest, of the route or of
    /// the engine, is stopped first, and the request is held meanwhile. Never one with an open
    /// request, nor one that woke less than its `idle.min_awake` ago; if there is no other, 503.
    pub(crate) when_full: WhenFullWord,
}

/// [`WhenFull`] as it is written.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum WhenFullWord {
    #[default]
    Refuse,
    EvictIdle,
}

impl From<WhenFullWord> for WhenFull {
    fn from(word: WhenFullWord) -> Self {
        match word {
            WhenFullWord::Refuse => Self::Refuse,
            WhenFullWord::EvictIdle => Self::EvictIdle,
        }
    }
}

/// `[pool]`: an instance of it is taken by the first wake of a session that has none, and never by
/// a second one; another is made in its place, one at a time. Those that wait cost what their depth
/// costs; they are stopped and removed when the route changes what they are made from.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PoolTable {
    /// How many wait: 1 to 100.
    #[schemars(range(min = 1, max = 100))]
    pub(crate) ready: u32,
    /// How deep they sleep meanwhile. Default: the lightest that the engine has, `"paused"` for
    /// most.
    #[schemars(with = "DepthWord")]
    pub(crate) depth: Option<DepthWord>,
}

/// One answer of `[static]`.
#[derive(Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct StaticTable {
    /// The status: 200 to 299 or 400 to 599. Default: 200.
    #[schemars(range(min = 200, max = 599))]
    pub(crate) status: Option<u16>,
    /// The content type. Default: `"text/plain; charset=utf-8"`, for a file by its ending.
    pub(crate) content_type: Option<String>,
    /// The text.
    pub(crate) body: Option<String>,
    /// A file instead of `body`, at most 64 KiB; a relative path starts from the folder of the
    /// route file. Read when the routes are: after a change, `dormouse reload`.
    pub(crate) file: Option<PathBuf>,
}

/// What a wake begins with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum WakeOn {
    /// A request.
    #[default]
    Request,
    /// The ClientHello of a TLS handshake.
    Sni,
}

/// The one value that `wake.page_after` has so far.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum PageAfter {
    Never,
}

/// `[idle]`.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct IdleTable {
    /// The time after the last activity when the session is stopped. Short for
    /// `sleep = [{ after = "15m", to = "stopped" }]`. Default: `"15m"`.
    pub(crate) after: Option<DurationText>,
    /// The ladder of sleep, instead of `after`: ever deeper, ever later.
    #[schemars(length(min = 1))]
    pub(crate) sleep: Option<Vec<RungTable>>,
    /// No sleep earlier than this after a wake.
    pub(crate) min_awake: DurationText,
}

/// One rung of the ladder.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RungTable {
    /// The time after the last activity.
    pub(crate) after: DurationText,
    /// How deep: `"paused"`, `"suspended"`, `"stopped"`, `"removed"`, as far as the engine has it.
    pub(crate) to: DepthWord,
}

/// [`Depth`] as it is written.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum DepthWord {
    Paused,
    Suspended,
    Stopped,
    Removed,
}

/// `[upstream]`.
#[derive(Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct UpstreamTable {
    /// Whether the instance speaks HTTPS: `true`, or `{ verify = false, sni = "…" }`.
    pub(crate) tls: TlsWord,
    /// Headers to set on every request, over the client's own: an `Authorization`, for example,
    /// that the instance wants and the client must not know. Captures may stand in the values.
    pub(crate) set_headers: BTreeMap<String, Secret>,
    /// What to speak to the instance: `"http1"`, `"http2"` (without TLS: with prior knowledge), or
    /// `"auto"`: HTTP/2 for gRPC requests and HTTP/1.1 for all others. An upgrade (WebSocket) is
    /// asked for in HTTP/1.1 in any case, as HTTP/2 has none.
    pub(crate) protocol: Protocol,
}

/// What an instance is spoken to in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// HTTP/2 for gRPC requests, HTTP/1.1 for all others.
    #[default]
    Auto,
    /// HTTP/1.1.
    Http1,
    /// HTTP/2; without TLS, with prior knowledge.
    Http2,
}

/// `upstream.tls`.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum TlsWord {
    On(bool),
    With(TlsTable),
}

/// How to speak TLS to the instance.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct TlsTable {
    /// Whether its certificate must be valid.
    pub(crate) verify: bool,
    /// The name to ask for and to check; captures may stand in it. Default: the session's host.
    pub(crate) sni: Option<String>,
}

impl Default for TlsTable {
    fn default() -> Self {
        Self { verify: true, sni: None }
    }
}

impl Default for TlsWord {
    fn default() -> Self {
        Self::On(false)
    }
}

impl Default for WakeTable {
    fn default() -> Self {
        let timeout = DurationText(Duration::from_secs(30));
        let boot_max = DurationText(Duration::from_secs(5 * 60));
        let ignore = IgnoreTable::default();
        let on = WakeOn::default();
        Self { timeout, boot_max, page_after: PageAfter::Never, held_max: 1000, on, ignore }
    }
}

impl Default for IgnoreTable {
    fn default() -> Self {
        Self { agents: Vec::new(), paths: Vec::new(), status: 503 }
    }
}

impl Default for IdleTable {
    fn default() -> Self {
        Self { after: None, sleep: None, min_awake: DurationText(Duration::from_secs(60)) }
    }
}

impl From<DepthWord> for Depth {
    fn from(word: DepthWord) -> Self {
        match word {
            DepthWord::Paused => Self::Paused,
            DepthWord::Suspended => Self::Suspended,
            DepthWord::Stopped => Self::Stopped,
            DepthWord::Removed => Self::Removed,
        }
    }
}

impl text::Text for PageAfter {
    const EXPECTED: &'static str = "\"never\": there is no waiting page yet";

    fn parse(text: &str) -> Result<Self, String> {
        if text == "never" { Ok(Self::Never) } else { Err(format!("`{text}` is not possible")) }
    }
}

impl<'de> Deserialize<'de> for PageAfter {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        text::read(from)
    }
}

impl JsonSchema for PageAfter {
    fn schema_name() -> Cow<'static, str> {
        "PageAfter".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "enum": ["never"] })
    }
}

impl<'de> Deserialize<'de> for TlsWord {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = TlsWord;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("true, false or { verify = false, sni = \"…\" }")
            }
            fn visit_bool<E: Error>(self, on: bool) -> Result<TlsWord, E> {
                Ok(TlsWord::On(on))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<TlsWord, A::Error> {
                TlsTable::deserialize(MapAccessDeserializer::new(map)).map(TlsWord::With)
            }
        }
        from.deserialize_any(Reader)
    }
}

impl JsonSchema for TlsWord {
    fn schema_name() -> Cow<'static, str> {
        "Tls".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let table = generator.subschema_for::<TlsTable>();
        json_schema!({ "anyOf": [{ "type": "boolean" }, table] })
    }
}
