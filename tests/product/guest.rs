//! Instances that the demo session cannot be: this test binary, started again by the edge.
//!
//! [`route`] makes a route whose instances run [`serve`] with one of [`Guest`]'s parts.

#![expect(clippy::disallowed_methods, reason = "an instance ends as a process")]

use std::{
    env, fs,
    io::Write as _,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{Json, Router, extract::Request, routing::get};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use crate::{strict, support::Edge};

/// What an instance is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Guest {
    /// gRPC: health and reflection.
    Grpc,
    /// HTTP/2 alone, in cleartext: `/` says what came.
    Http2,
    /// HTTPS with a certificate that nobody trusts: `/` says what came.
    Https,
    /// Writes what it receives to `bytes/SESSION-N`, one file per connection. The first bytes of
    /// each are answered with what is in the file `answer`, if it exists; more are only read.
    Recorder,
    /// Reads HTTP/1.1 to the letter, and says what came (`strict`).
    Strict,
    /// Takes connections until the file `deaf` exists; then it lives on with no listener.
    Closing,
    /// Takes connections until the file `deaf` exists; then it lives on and its queue fills up.
    Stuck,
    /// Carries bytes to and from the unix socket that the file `relay` names.
    Relay,
}

impl Guest {
    const ALL: [Self; 8] = [
        Self::Grpc,
        Self::Http2,
        Self::Https,
        Self::Recorder,
        Self::Strict,
        Self::Closing,
        Self::Stuck,
        Self::Relay,
    ];
}

/// A route whose instances are such guests and write a line to `starts`.
pub(crate) fn route(guest: Guest, more: &str) -> String {
    let this = env::current_exe().expect("this binary").display().to_string();
    let script = format!(
        "echo $DORMOUSE_SESSION >> starts; exec {this} guest::serve --exact --ignored --nocapture"
    );
    format!(
        "host = \"{{session}}.test\"\nengine = \"local\"\n[instance]\n\
         command = [\"/bin/sh\", \"-c\", {script:?}]\n\
         env = {{ TEST_DIR = \"@DIR@\", GUEST = \"{guest:?}\", AT = \"{{address}}\" }}\n{more}"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "no test: an instance, which the edge starts"]
async fn serve() {
    let Ok(name) = env::var("GUEST") else { return };
    let guest = Guest::ALL.into_iter().find(|guest| format!("{guest:?}") == name);
    let at: SocketAddr = env::var("AT").expect("an address").parse().expect("an address");
    match guest.expect("a guest") {
        Guest::Grpc => grpc(at).await,
        Guest::Http2 => http2(at).await,
        Guest::Https => https(at).await,
        Guest::Recorder => record(at).await,
        Guest::Strict => strict::serve(at).await,
        Guest::Closing => close(at).await,
        Guest::Stuck => stick(at).await,
        Guest::Relay => relay(at).await,
    }
}

async fn grpc(at: SocketAddr) {
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_service_status("demo", tonic_health::ServingStatus::Serving).await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .expect("reflection");
    let server = tonic::transport::Server::builder().add_service(health).add_service(reflection);
    server.serve(at).await.expect("it serves");
}

/// Says what came.
fn mirror() -> Router {
    Router::new().route("/healthz", get(|| async { "ok" })).fallback(|request: Request| async {
        let (parts, body) = request.into_parts();
        let headers = parts.headers.iter().map(|(name, value)| {
            (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned())
        });
        let headers: Vec<_> = headers.collect();
        let body = axum::body::to_bytes(body, 64 * 1024 * 1024).await.expect("a body");
        let version = format!("{:?}", parts.version);
        let session = env::var("DORMOUSE_SESSION").expect("a session");
        let uri = parts.uri.to_string();
        Json::<Value>(json!({
            "version": version, "uri": uri, "headers": headers, "bytes": body.len(),
            "session": session,
        }))
    })
}

async fn http2(at: SocketAddr) {
    let listener = TcpListener::bind(at).await.expect("bind");
    loop {
        let (socket, _) = listener.accept().await.expect("accept");
        tokio::spawn(async move {
            let service = TowerToHyperService::new(mirror());
            let server = auto::Builder::new(TokioExecutor::new()).http2_only();
            let _ = server.serve_connection(TokioIo::new(socket), service).await;
        });
    }
}

struct Tls(TcpListener, TlsAcceptor);

impl axum::serve::Listener for Tls {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (socket, peer) = self.0.accept().await.expect("accept");
            if let Ok(stream) = self.1.accept(socket).await {
                return (stream, peer);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.0.local_addr()
    }
}

async fn https(at: SocketAddr) {
    let session = env::var("DORMOUSE_SESSION").expect("a session");
    let made = rcgen::generate_simple_self_signed([session]).expect("a certificate");
    let key = made.signing_key.serialize_der().try_into().expect("a key");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .expect("a certificate");
    let listener = TcpListener::bind(at).await.expect("bind");
    axum::serve(Tls(listener, Arc::new(config).into()), mirror()).await.expect("it serves");
}

/// The probe is a connection without a byte, and leaves no file.
async fn record(at: SocketAddr) {
    let listener = TcpListener::bind(at).await.expect("bind");
    let session = env::var("DORMOUSE_SESSION").expect("a session");
    fs::create_dir_all("bytes").expect("a folder");
    let files = Arc::new(AtomicUsize::new(0));
    loop {
        let (mut socket, _) = listener.accept().await.expect("accept");
        let (files, session) = (Arc::clone(&files), session.clone());
        tokio::spawn(async move {
            let mut bytes = vec![0; 64 * 1024];
            let mut file = None;
            let mut answer = fs::read("answer").unwrap_or_default();
            while let Ok(n @ 1..) = socket.read(&mut bytes).await {
                let file = file.get_or_insert_with(|| {
                    let number = files.fetch_add(1, Ordering::Relaxed);
                    fs::File::create(format!("bytes/{session}-{number}")).expect("a file")
                });
                file.write_all(&bytes[..n]).expect("written");
                // A request's first bytes are answered; whatever follows is only looked at.
                let _ = socket.write_all(&std::mem::take(&mut answer)).await;
            }
        });
    }
}

async fn close(at: SocketAddr) {
    let listener = TcpListener::bind(at).await.expect("bind");
    let mut kept = Vec::new();
    while !fs::exists("deaf").expect("a folder") {
        let pause = tokio::time::sleep(Duration::from_millis(5));
        tokio::select! {
            accepted = listener.accept() => kept.push(accepted.expect("accept")),
            () = pause => {}
        }
    }
    drop((listener, kept));
    fs::write("closed", "").expect("a file");
    std::future::pending::<()>().await;
}

async fn stick(at: SocketAddr) {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_reuseaddr(true).expect("an option");
    socket.bind(at).expect("bind");
    // The kernel takes one connection more than this.
    let listener = socket.listen(1).expect("listen");
    while !fs::exists("deaf").expect("a folder") {
        let pause = tokio::time::sleep(Duration::from_millis(5));
        tokio::select! {
            accepted = listener.accept() => drop(accepted.expect("accept")),
            () = pause => {}
        }
    }
    fs::write("stuck", "").expect("a file");
    std::future::pending::<()>().await;
}

async fn relay(at: SocketAddr) {
    let to = fs::read_to_string("relay").expect("a path");
    let listener = TcpListener::bind(at).await.expect("bind");
    loop {
        let (mut near, _) = listener.accept().await.expect("accept");
        let to = to.clone();
        tokio::spawn(async move {
            let mut far = tokio::net::UnixStream::connect(to).await.expect("it is there");
            let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
        });
    }
}

/// Takes what room there is in the queue of one that is [`Guest::Stuck`].
pub(crate) async fn fill_queue(address: &str) -> Vec<TcpStream> {
    let mut queue = Vec::new();
    let second = Duration::from_secs(1);
    while let Ok(Ok(one)) = tokio::time::timeout(second, TcpStream::connect(address)).await {
        queue.push(one);
        assert!(queue.len() < 100, "its queue does not fill up");
    }
    queue
}

/// All that a recorder received, a text for each connection.
pub(crate) fn recorded(edge: &Edge, host: &str) -> Vec<String> {
    let file = |number| fs::read(edge.path(&format!("bytes/{host}-{number}"))).ok();
    let connections = (0..).map_while(file);
    connections.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).collect()
}
