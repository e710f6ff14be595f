//! The other parts of a scenario: a bare Pingora proxy, built with the same settings and allocator
//! as Dormouse, and an instance that costs next to nothing and says who it is.

use std::{env, net::SocketAddr, process::ExitCode, thread, time::Duration};

use async_trait::async_trait;
use futures::{SinkExt, StreamExt};
use pingora::{
    proxy::{ProxyHttp, Session, http_proxy_service},
    server::{Server, configuration::ServerConf},
    upstreams::peer::HttpPeer,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_tungstenite::{WebSocketStream, tungstenite};

/// The same as Dormouse's own binary.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// As much of a request's head as is read.
const HEAD_MAX: usize = 16 * 1024;

fn main() -> ExitCode {
    let arguments: Vec<_> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["bare-pingora", listen, upstream] => match upstream.parse() {
            Ok(upstream) => bare(listen, upstream),
            Err(error) => eprintln!("{upstream}: {error}"),
        },
        ["instance", listen] => {
            if let Err(error) = instance(listen) {
                eprintln!("{listen}: {error}");
            }
        }
        _ => eprintln!("loadtest-peer bare-pingora LISTEN UPSTREAM\nloadtest-peer instance LISTEN"),
    }
    ExitCode::FAILURE
}

/// What Pingora costs without us.
fn bare(listen: &str, upstream: SocketAddr) {
    struct Bare(SocketAddr);

    #[async_trait]
    impl ProxyHttp for Bare {
        type CTX = ();

        fn new_ctx(&self) {}

        async fn upstream_peer(
            &self,
            _: &mut Session,
            (): &mut (),
        ) -> pingora::Result<Box<HttpPeer>> {
            let mut peer = HttpPeer::new(self.0, false, String::new());
            // Dormouse's defaults: a proxy that waits for ever would be no peer.
            peer.options.connection_timeout = Some(Duration::from_secs(5));
            peer.options.total_connection_timeout = Some(Duration::from_secs(5));
            peer.options.idle_timeout = Some(Duration::from_secs(4));
            peer.options.read_timeout = Some(Duration::from_secs(300));
            Ok(Box::new(peer))
        }
    }

    let conf = ServerConf {
        threads: thread::available_parallelism().map_or(1, usize::from),
        upstream_keepalive_pool_size: 4096,
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let mut service = http_proxy_service(&server.configuration, Bare(upstream));
    service.add_tcp(listen);
    server.add_service(service);
    server.run_forever();
}

/// Answers every GET with who it is, and echoes on every WebSocket.
fn instance(listen: &str) -> std::io::Result<()> {
    // One thread: a session's instance is small, and starts fast.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let whoami = format!(
        "{{\"session\":\"{}\",\"generation\":{},\"pid\":{}}}",
        env::var("DORMOUSE_SESSION").unwrap_or_default(),
        env::var("DORMOUSE_GENERATION").ok().and_then(|g| g.parse().ok()).unwrap_or(0_u64),
        std::process::id()
    );
    let answer: &'static str = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{whoami}",
        whoami.len()
    )
    .leak();
    runtime.block_on(async {
        let listener = TcpListener::bind(listen).await?;
        let mut connections = tokio::task::JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => {
                    let (stream, _) = accepted?;
                    connections.spawn(serve(stream, answer));
                }
                Some(_) = connections.join_next() => {}
            }
        }
    })
}

async fn serve(mut stream: TcpStream, answer: &'static str) {
    let _ = stream.set_nodelay(true);
    let (mut head, mut n) = (vec![0; HEAD_MAX], 0);
    while n < HEAD_MAX {
        match stream.read(&mut head[n..]).await {
            Ok(more @ 1..) => n += more,
            _ => return,
        }
        if !head[..n].ends_with(b"\r\n\r\n") {
            continue;
        }
        if let Some(accept) = accept_key(&head[..n]) {
            drop(head);
            return echo(stream, &accept).await;
        }
        n = 0;
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// The answer to a WebSocket's key, where the request has one.
fn accept_key(head: &[u8]) -> Option<String> {
    let head = std::str::from_utf8(head).ok()?;
    let key = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("sec-websocket-key").then(|| value.trim())
    })?;
    Some(tungstenite::handshake::derive_accept_key(key.as_bytes()))
}

async fn echo(mut stream: TcpStream, accept: &str) {
    let head = format!(
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\
         sec-websocket-accept: {accept}\r\n\r\n"
    );
    if stream.write_all(head.as_bytes()).await.is_err() {
        return;
    }
    let role = tungstenite::protocol::Role::Server;
    let mut socket = WebSocketStream::from_raw_socket(stream, role, None).await;
    while let Some(Ok(message)) = socket.next().await {
        if (message.is_text() || message.is_binary()) && socket.send(message).await.is_err() {
            return;
        }
    }
}
