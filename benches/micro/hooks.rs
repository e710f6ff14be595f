//! One keep-alive HTTP/1.1 request through Pingora with our hooks, and through Pingora without any.
//!
//! The client is a pipe in memory, given to the listener as an accepted connection would be. The
//! instance is a unix socket in this process, because nothing but a socket can be dialled; it, the
//! client and the proxy take turns on one thread, so no figure has a wake-up of another core in it.
//! The difference of the first two rows is what Dormouse adds to a warm request.

use std::{path::Path, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use divan::Bencher;
use dormouse::{
    access::Door,
    config::{Http2, Limits, Links, Timeouts},
    edge::{Connections, Edge, Listener},
    session::Address,
};
use pingora::{
    apps::ServerApp,
    proxy::{ProxyHttp, Session, http_proxy},
    server::configuration::ServerConf,
    upstreams::peer::HttpPeer,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    net::UnixListener,
    runtime::{Handle, Runtime},
    sync::watch,
};

use crate::{
    instant::{self, Instantly, plan},
    routes,
};

const ANSWER: &[u8] =
    b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 5\r\n\r\nhello";
const PIPE: usize = 64 * 1024;
/// The table that the hooks look into.
const ROUTES: usize = 1000;

/// Everything but the client.
struct Bed {
    runtime: Runtime,
    folder: tempfile::TempDir,
}

impl Bed {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let bed = Self {
            runtime: runtime.expect("a runtime"),
            folder: tempfile::tempdir().expect("a folder"),
        };
        let _entered = bed.runtime.enter();
        let listener = UnixListener::bind(bed.socket()).expect("a socket");
        drop(Handle::current().spawn(serve(listener)));
        drop(_entered);
        bed
    }

    fn socket(&self) -> String {
        self.folder.path().join("instance").to_str().expect("UTF-8").to_owned()
    }

    /// Accepts one connection; the client's end of it.
    fn connect<A: ServerApp + Send + Sync + 'static>(&self, app: Arc<A>) -> DuplexStream {
        let (client, server) = tokio::io::duplex(PIPE);
        let task = async move {
            let (_open, shutdown) = watch::channel(false);
            let mut stream: Option<pingora::protocols::Stream> = Some(Box::new(server));
            while let Some(open) = stream {
                stream = app.process_new(open, &shutdown).await;
            }
        };
        drop(self.runtime.spawn(task));
        client
    }

    fn edge(&self) -> Arc<Listener> {
        let table = Arc::new(ArcSwap::from_pointee(routes::table(ROUTES)));
        let fleet = self.runtime.block_on(async {
            let fleet = instant::fleet(Instantly::new(Address::Unix(self.socket().into()))).await;
            // Awake before the first request: none is held.
            instant::wake(&fleet, "h1.desk.example.com", || plan(Duration::from_secs(3600))).await;
            fleet
        });
        let door = Door::open(&Links::default(), self.folder.path()).expect("a door");
        let limits = Limits::default();
        let edge = Edge::new(table, fleet, door, Timeouts::default(), &limits);
        let proxy = http_proxy(&conf(), edge);
        let connections = Arc::new(Connections::new(10, 10));
        Arc::new(Listener::new(
            proxy,
            connections,
            &limits,
            &Timeouts::default(),
            &Http2::default(),
        ))
    }

    fn requests(&self, bencher: Bencher<'_, '_>, mut client: DuplexStream, host: &str, end: &str) {
        let request = format!("GET / HTTP/1.1\r\nhost: {host}\r\nuser-agent: bench\r\n\r\n");
        let mut buf = [0; 4096];
        let mut once = || {
            self.runtime.block_on(async {
                client.write_all(request.as_bytes()).await.expect("the proxy reads");
                let mut n = 0;
                while !buf[..n].ends_with(end.as_bytes()) {
                    let read = client.read(&mut buf[n..]).await.expect("the proxy answers");
                    assert!(0 < read, "closed: {}", String::from_utf8_lossy(&buf[..n]));
                    n += read;
                }
                n
            })
        };
        // The first one connects.
        once();
        bencher.bench_local(once);
    }
}

fn conf() -> Arc<ServerConf> {
    Arc::new(ServerConf { upstream_keepalive_pool_size: 4096, ..ServerConf::default() })
}

/// The instance.
async fn serve(listener: UnixListener) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let each = async move {
            let mut buf = [0; 4096];
            while let Ok(1..) = stream.read(&mut buf).await {
                if stream.write_all(ANSWER).await.is_err() {
                    break;
                }
            }
        };
        drop(Handle::current().spawn(each));
    }
}

/// Through Dormouse: route, lease, headers, answer.
#[divan::bench(sample_size = 500)]
fn dormouse(bencher: Bencher<'_, '_>) {
    let bed = Bed::new();
    let client = bed.connect(bed.edge());
    bed.requests(bencher, client, "h1.desk.example.com", "\r\n\r\nhello");
}

/// The same through a Pingora proxy with one hook, which names the instance.
#[divan::bench(sample_size = 500)]
fn bare_pingora(bencher: Bencher<'_, '_>) {
    let bed = Bed::new();
    let client = bed.connect(Arc::new(http_proxy(&conf(), Bare(bed.socket()))));
    bed.requests(bencher, client, "h1.desk.example.com", "\r\n\r\nhello");
}

/// No such host: answered by the hooks, without an instance.
#[divan::bench(sample_size = 500)]
fn dormouse_refuses(bencher: Bencher<'_, '_>) {
    let bed = Bed::new();
    let client = bed.connect(bed.edge());
    bed.requests(bencher, client, "nobody.example.com", "}");
}

struct Bare(String);

#[async_trait]
impl ProxyHttp for Bare {
    type CTX = ();

    fn new_ctx(&self) {}

    async fn upstream_peer(&self, _: &mut Session, (): &mut ()) -> pingora::Result<Box<HttpPeer>> {
        let path = Path::new(&self.0).to_str().expect("it was a string");
        let mut peer = HttpPeer::new_uds(path, false, String::new())?;
        // What Dormouse's defaults are: a proxy without timeouts would be no peer.
        peer.options.connection_timeout = Some(Duration::from_secs(1));
        peer.options.total_connection_timeout = Some(Duration::from_secs(1));
        peer.options.idle_timeout = Some(Duration::from_secs(4));
        peer.options.read_timeout = Some(Duration::from_secs(120));
        Ok(Box::new(peer))
    }
}
