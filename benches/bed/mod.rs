//! What the A/B benches share: an edge, an instance of our own, a closed-loop client, medians.
//!
//! A bench binary plays every part but the edge: it is started again, with its part as arguments.

#![allow(dead_code, reason = "each bench uses its own share")]

use std::{
    ffi::OsStr,
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

pub(crate) const ANSWER: &[u8] =
    b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 5\r\n\r\nhello";

/// A process that ends with its owner.
pub(crate) struct Part(Child);

impl Part {
    /// CPU time used so far.
    pub(crate) fn cpu(&self) -> Duration {
        let stat = procfs::process::Process::new(self.0.id().cast_signed())
            .and_then(|process| process.stat())
            .expect("it runs");
        let ticks = stat.utime + stat.stime;
        Duration::from_secs_f64(ticks as f64 / procfs::ticks_per_second() as f64)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// This binary again, in another part.
pub(crate) fn part(arguments: &[&str]) -> Part {
    let this = std::env::current_exe().expect("a path");
    let child = Command::new(this).args(arguments).stdin(Stdio::null()).spawn();
    Part(child.expect("it starts"))
}

/// The part of the instance: answers everything with `ANSWER`, a thread a connection.
pub(crate) fn instance(listen: &str) {
    let listener = TcpListener::bind(listen).expect("bind");
    for stream in listener.incoming() {
        let mut stream = stream.expect("a connection");
        stream.set_nodelay(true).expect("nodelay");
        thread::spawn(move || {
            let mut buf = [0; 4096];
            while let Ok(1..) = stream.read(&mut buf) {
                if stream.write_all(ANSWER).is_err() {
                    break;
                }
            }
        });
    }
}

/// An edge with one route file, serving.
pub(crate) struct Edge {
    pub(crate) dir: TempDir,
    pub(crate) http: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) process: Part,
}

pub(crate) fn edge(toml: &str, route: &str) -> Edge {
    let dir = tempfile::tempdir().expect("a folder");
    let (http, admin) = (free_port(), free_port());
    let listen = format!("[listen]\nhttp = [\"{http}\"]\nadmin = \"{admin}\"\n");
    fs::write(dir.path().join("dormouse.toml"), listen + toml).expect("dormouse.toml");
    fs::create_dir(dir.path().join("routes")).expect("routes");
    fs::write(dir.path().join("routes/bench.toml"), route).expect("route");
    let process = Command::new(env!("CARGO_BIN_EXE_dormouse"))
        .args(["run", "--config"])
        .arg(dir.path().join("dormouse.toml"))
        .env("RUST_LOG", "warn,pingora_proxy=off,pingora_core=error,pingora_core::apps=off")
        .stdin(Stdio::null())
        .spawn();
    let edge = Edge { dir, http, admin, process: Part(process.expect("it starts")) };
    wait_for(edge.admin, "/readyz");
    edge
}

/// Waits until a GET is answered with 200.
pub(crate) fn wait_for(address: SocketAddr, path: &str) {
    let end = Instant::now() + Duration::from_secs(60);
    while !get(address, "localhost", path).is_some_and(|answer| answer.contains(" 200 ")) {
        assert!(Instant::now() < end, "{address}{path} does not answer");
        thread::sleep(Duration::from_millis(5));
    }
}

/// One GET on a connection of its own.
pub(crate) fn get(address: SocketAddr, host: &str, path: &str) -> Option<String> {
    ask(address, &format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n"))
}

pub(crate) fn post(address: SocketAddr, host: &str, path: &str) -> Option<String> {
    ask(
        address,
        &format!(
            "POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        ),
    )
}

fn ask(address: SocketAddr, request: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

/// Requests a second that `connections` keep-alive clients get in `time`, each with one request
/// under way, and how many requests that were.
pub(crate) fn closed_loop(
    address: SocketAddr,
    host: &str,
    connections: usize,
    time: Duration,
) -> (f64, u64) {
    let request = format!("GET / HTTP/1.1\r\nhost: {host}\r\nuser-agent: bench\r\n\r\n");
    let began = Instant::now();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let counts = runtime.expect("a runtime").block_on(async {
        let clients = (0..connections).map(|_| client(address, request.clone(), began + time));
        futures::future::join_all(clients).await
    });
    let total = counts.iter().sum();
    (total as f64 / began.elapsed().as_secs_f64(), total)
}

async fn client(address: SocketAddr, request: String, end: Instant) -> u64 {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(address).await.expect("connect");
    stream.set_nodelay(true).expect("nodelay");
    let mut buf = [0; 4096];
    let mut count = 0;
    while Instant::now() < end {
        stream.write_all(request.as_bytes()).await.expect("write");
        let mut n = 0;
        while !buf[..n].ends_with(b"\r\n\r\nhello") {
            let read = stream.read(&mut buf[n..]).await.expect("read");
            assert!(0 < read, "closed: {}", String::from_utf8_lossy(&buf[..n]));
            n += read;
        }
        count += 1;
    }
    count
}

pub(crate) fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").expect("bind").local_addr().expect("an address")
}

pub(crate) fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

pub(crate) fn quantile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[((sorted.len() - 1) as f64 * q).round() as usize]
}

/// Ends the instance that an edge left up for a session.
pub(crate) fn end_instance(session: &str) {
    for process in procfs::process::all_processes().expect("/proc").flatten() {
        let mark = |environ: std::collections::HashMap<_, _>| {
            environ.get(OsStr::new("DORMOUSE_SESSION")).is_some_and(|mark| *mark == *session)
        };
        if process.environ().is_ok_and(mark)
            && let Some(pid) = rustix::process::Pid::from_raw(process.pid)
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}
