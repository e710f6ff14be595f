//! `dormouse demo-session`: a small real session to wake, look at and put to sleep.
//!
//! A guest: it knows only what an engine tells every instance (its address and the `DORMOUSE_*`
//! variables), and no room of the house. The whole-product tests use it as an instance that can be
//! told to be slow, deaf, stubborn or dead.

use std::{
    convert::Infallible,
    env,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Context;
use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{
        Query, Request, State,
        ws::{Message, WebSocket, WebSocketUpgrade},
    },
    http::{HeaderMap, StatusCode, header},
    middleware::{self, Next},
    response::{
        Html, IntoResponse, Response,
        sse::{Event, Sse},
    },
    routing::{any, get, post},
};
use futures::{Stream, StreamExt, stream};
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::{
    net::{TcpListener, UnixListener},
    signal::unix::{SignalKind, signal},
};

const MESSAGE_MAX: usize = 16 * 1024 * 1024;
/// `/download` is made of this: whole periods of 0, 1, .. 250.
const PERIOD: u64 = 251;

/// A small session for trying things out: a page with a live socket, and an endpoint for every
/// situation that a session behind Dormouse can be in.
///
///   GET  /            the page
///   GET  /healthz     200 "ok"
///   GET  /whoami      who answers: session, generation, pid, address, requests so far
///   GET  /headers     the request's headers as they came
///   GET  /slow        an answer after ?ms=N
///   GET  /download    ?bytes=N of known content (0, 1, .. 250, 0, ..)
///   POST /upload      counts and hashes (SHA-256) the body
///   GET  /sse         ?events=N&every_ms=M, without end if N is not given
///   GET  /ws          a WebSocket that echoes; with ?tick=1 it also ticks each second
///   POST /exit        ends the process at once, with ?code=N
#[derive(Clone, Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct DemoSession {
    /// Where to listen: 127.0.0.1:PORT or unix:/PATH.
    #[arg(long, value_name = "ADDRESS")]
    pub listen: String,
    /// Listen only after this long ("800ms"), like a server that starts slowly.
    #[arg(long, value_name = "DURATION", value_parser = humantime_serde::re::humantime::parse_duration)]
    pub listen_after: Option<Duration>,
    /// Answer /healthz with 503 for ever.
    #[arg(long)]
    pub never_ready: bool,
    /// Ignore SIGTERM; only SIGKILL ends it then.
    #[arg(long)]
    pub ignore_term: bool,
}

/// Serves until the process is killed.
pub async fn serve(demo: DemoSession) -> anyhow::Result<()> {
    // As long as somebody listens for the signal, it has no other effect. As the first process of a
    // container it has none in any case, so that its end is ours to see to.
    let mut term = signal(SignalKind::terminate())?;
    let ignores_term = demo.ignore_term;
    tokio::select! {
        served = listen(demo) => served,
        _ = async {
            term.recv().await;
            if ignores_term { std::future::pending().await }
        } => Ok(()),
    }
}

async fn listen(demo: DemoSession) -> anyhow::Result<()> {
    if let Some(wait) = demo.listen_after {
        tokio::time::sleep(wait).await;
    }
    let healthy = if demo.never_ready { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    let app = routes(Arc::new(Life::new(demo.listen.clone())), healthy);
    let listen = demo.listen.as_str();
    if let Some(path) = listen.strip_prefix("unix:") {
        if Path::new(path).exists() {
            std::fs::remove_file(path).with_context(|| format!("cannot replace {path}"))?;
        }
        let socket =
            UnixListener::bind(path).with_context(|| format!("cannot listen on {path}"))?;
        axum::serve(socket, app).await?;
    } else {
        let socket = TcpListener::bind(listen).await;
        let socket = socket.with_context(|| format!("cannot listen on {listen}"))?;
        axum::serve(socket, app).await?;
    }
    Ok(())
}

/// What one life of this instance knows of itself.
#[derive(Debug)]
struct Life {
    address: String,
    started_unix_ms: u64,
    requests: AtomicU64,
    uploads: AtomicU64,
}

impl Life {
    fn new(address: String) -> Self {
        let zero = AtomicU64::default;
        Self { address, started_unix_ms: unix_ms(), requests: zero(), uploads: zero() }
    }

    fn facts(&self) -> Value {
        json!({
            "session": env::var("DORMOUSE_SESSION").ok(),
            "generation": env::var("DORMOUSE_GENERATION").ok().and_then(|g| g.parse::<u64>().ok()),
            "pid": std::process::id(),
            "started_unix_ms": self.started_unix_ms,
            "address": self.address,
            "requests": self.requests.load(Ordering::Relaxed),
        })
    }
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn routes(life: Arc<Life>, healthy: StatusCode) -> Router {
    let said = if healthy.is_success() { "ok" } else { "not ready, and never will be" };
    Router::new()
        .route("/", get(page))
        .route("/whoami", get(async |State(life): State<Arc<Life>>| Json(life.facts())))
        .route("/headers", get(headers))
        .route("/slow", get(slow))
        .route("/download", get(download))
        .route("/upload", post(upload))
        .route("/sse", get(events))
        .route("/ws", any(socket))
        .route("/exit", post(exit))
        .layer(middleware::from_fn_with_state(life.clone(), count))
        .route("/healthz", get(async move || (healthy, said)))
        .with_state(life)
}

/// Probes are not counted: they are the edge's, not a visitor's.
async fn count(State(life): State<Arc<Life>>, request: Request, next: Next) -> Response {
    life.requests.fetch_add(1, Ordering::Relaxed);
    next.run(request).await
}

async fn page(State(life): State<Arc<Life>>, headers: HeaderMap) -> impl IntoResponse {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let mut facts = life.facts();
    facts["host"] = json!(text("x-forwarded-host").or(text("host")));
    facts["idle_after_ms"] =
        json!(env::var("DORMOUSE_IDLE_AFTER_MS").ok().and_then(|ms| ms.parse::<u64>().ok()));
    // The host is a stranger's text: inside a script element only `<` could end it.
    let facts = facts.to_string().replace('<', "\\u003c");
    let page = include_str!("demo/page.html").replace("__FACTS__", &facts);
    ([(header::CACHE_CONTROL, "no-store")], Html(page))
}

async fn headers(headers: HeaderMap) -> Json<Vec<(String, String)>> {
    let all = headers.iter().map(|(name, value)| {
        (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned())
    });
    Json(all.collect())
}

#[derive(Deserialize)]
struct Slow {
    #[serde(default)]
    ms: u64,
}

async fn slow(Query(Slow { ms }): Query<Slow>) -> String {
    tokio::time::sleep(Duration::from_millis(ms)).await;
    format!("answered after {ms} ms\n")
}

#[derive(Deserialize)]
struct Download {
    bytes: u64,
}

async fn download(Query(Download { bytes }): Query<Download>) -> impl IntoResponse {
    let periods: Vec<u8> = (0..PERIOD * 256).map(|at| (at % PERIOD) as u8).collect();
    let block = Bytes::from(periods);
    let blocks = stream::unfold(bytes, move |left| {
        let size = left.min(block.len() as u64);
        let next = (size > 0).then(|| (block.slice(..size as usize), left - size));
        async move { next.map(|(chunk, left)| (Ok::<_, Infallible>(chunk), left)) }
    });
    let headers = [
        (header::CONTENT_LENGTH, bytes.to_string()),
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
    ];
    (headers, Body::from_stream(blocks))
}

async fn upload(State(life): State<Arc<Life>>, body: Body) -> Result<Json<Value>, StatusCode> {
    let uploads = life.uploads.fetch_add(1, Ordering::Relaxed) + 1;
    let (mut bytes, mut hash) = (0, Sha256::new());
    let mut chunks = body.into_data_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|_| StatusCode::BAD_REQUEST)?;
        bytes += chunk.len() as u64;
        hash.update(&chunk);
    }
    let sha256: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Json(json!({ "bytes": bytes, "sha256": sha256, "uploads": uploads })))
}

#[derive(Deserialize)]
struct Events {
    events: Option<u64>,
    #[serde(default = "a_second")]
    every_ms: u64,
}

fn a_second() -> u64 {
    1000
}

async fn events(Query(asked): Query<Events>) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let last = asked.events.unwrap_or(u64::MAX);
    let every = Duration::from_millis(asked.every_ms);
    Sse::new(stream::unfold(0, move |sent| async move {
        if sent == last {
            return None;
        }
        if sent > 0 {
            tokio::time::sleep(every).await;
        }
        let event = Event::default().id(sent.to_string()).data(format!("event {sent}"));
        Some((Ok(event), sent + 1))
    }))
}

#[derive(Deserialize)]
struct Socket {
    #[serde(default)]
    tick: u8,
}

async fn socket(Query(asked): Query<Socket>, upgrade: WebSocketUpgrade) -> Response {
    let upgrade = upgrade.max_message_size(MESSAGE_MAX).max_frame_size(MESSAGE_MAX);
    upgrade.on_upgrade(move |socket| echo(socket, asked.tick == 1))
}

/// Until either side closes, or the connection is lost.
async fn echo(mut socket: WebSocket, ticking: bool) {
    let mut second = tokio::time::interval(Duration::from_secs(1));
    let mut ticks = 0_u64;
    loop {
        let answer = tokio::select! {
            _ = second.tick(), if ticking => {
                ticks += 1;
                Message::text(format!("tick {ticks}"))
            }
            received = socket.recv() => match received {
                Some(Ok(message @ (Message::Text(_) | Message::Binary(_)))) => message,
                Some(Ok(_)) => continue,
                Some(Err(_)) | None => return,
            },
        };
        if socket.send(answer).await.is_err() {
            return;
        }
    }
}

#[derive(Deserialize)]
struct Exit {
    #[serde(default)]
    code: i32,
}

async fn exit(Query(Exit { code }): Query<Exit>) {
    std::process::exit(code);
}
