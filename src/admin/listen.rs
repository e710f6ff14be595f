//! The admin API's own listener: TCP or a unix socket, with few connections and short patience.
//!
//! Knows nothing of what is served.

use std::{
    fs::{self, DirBuilder, Permissions},
    io,
    net::SocketAddr,
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
    process,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::{GracefulShutdown, Watcher},
    service::TowerToHyperService,
};
use socket2::{Domain, SockAddr, Type};
use tokio::{
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    task::JoinSet,
};
use tokio_util::either::Either;

/// A process that has just ended may still have the address.
const IN_USE_MAX: Duration = Duration::from_secs(1);
const IN_USE_PAUSE: Duration = Duration::from_millis(20);
const BACKLOG: i32 = 1024;
/// The next connection waits to be accepted.
const CONNECTIONS_MAX: usize = 64;
/// For a whole request head, from when the connection is free for it.
const HEAD_MAX: Duration = Duration::from_secs(10);
const HEAD_BYTES_MAX: usize = 32 * 1024;
/// What is under way when the edge ends may go on for this long.
const DRAIN_MAX: Duration = Duration::from_secs(5);
/// After a failed accept, as when there are no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A bound address.
#[derive(Debug)]
pub struct Listener(Socket);

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    /// The file first: fields are dropped in this order.
    Unix {
        _file: SocketFile,
        listener: UnixListener,
    },
}

/// Removed when dropped: before the socket itself is closed, and so while it is surely still ours.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    stays: Arc<AtomicBool>,
}

impl Listener {
    /// On a TCP socket that listens already.
    pub fn tcp(socket: OwnedFd) -> io::Result<Self> {
        let listener = std::net::TcpListener::from(socket);
        listener.set_nonblocking(true)?;
        Ok(Self(Socket::Tcp(TcpListener::from_std(listener)?)))
    }

    /// On a unix socket that listens already. Its file is removed in the end, unless it is to stay
    /// by then: another process may listen on the same socket.
    pub fn unix(socket: OwnedFd, path: PathBuf, stays: Arc<AtomicBool>) -> io::Result<Self> {
        let file = SocketFile { path, stays };
        let listener = std::os::unix::net::UnixListener::from(socket);
        listener.set_nonblocking(true)?;
        Ok(Self(Socket::Unix { _file: file, listener: UnixListener::from_std(listener)? }))
    }

    /// The TCP address; `None` for a unix socket.
    pub fn address(&self) -> Option<SocketAddr> {
        match &self.0 {
            Socket::Tcp(listener) => listener.local_addr().ok(),
            Socket::Unix { .. } => None,
        }
    }

    /// Serves until `shutdown` ends, then at most 5 s more for what is under way.
    pub async fn serve(self, router: Router, shutdown: impl Future<Output = ()>) {
        let mut shutdown = std::pin::pin!(shutdown);
        let mut connections = JoinSet::new();
        let draining = GracefulShutdown::new();
        loop {
            tokio::select! {
                accepted = self.accept(), if connections.len() < CONNECTIONS_MAX => match accepted {
                    Ok(stream) => {
                        connections.spawn(connection(stream, router.clone(), draining.watcher()));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "the admin API cannot accept a connection");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(_) = connections.join_next() => {}
                () = &mut shutdown => break,
            }
        }
        drop(self);
        // What is left after that is cut off with `connections`.
        let _ = tokio::time::timeout(DRAIN_MAX, draining.shutdown()).await;
    }

    async fn accept(&self) -> io::Result<Either<TcpStream, UnixStream>> {
        match &self.0 {
            Socket::Tcp(listener) => Ok(Either::Left(listener.accept().await?.0)),
            Socket::Unix { listener, .. } => Ok(Either::Right(listener.accept().await?.0)),
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if !self.stays.load(Ordering::Acquire) {
            // It may be gone already; and the next start replaces what is left.
            let _ = fs::remove_file(&self.path);
        }
    }
}

async fn connection(stream: Either<TcpStream, UnixStream>, router: Router, draining: Watcher) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    if let Err(error) = draining.watch(connection).await {
        tracing::debug!(%error, "a connection to the admin API has failed");
    }
}

/// A unix socket that listens, and that only our own user can connect to. A file that a dead process
/// left is replaced; one that another process listens on is tried again for a moment.
pub fn bind_unix(path: &Path) -> io::Result<OwnedFd> {
    let end = Instant::now() + IN_USE_MAX;
    loop {
        match try_bind_unix(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < end => {
                std::thread::sleep(IN_USE_PAUSE);
            }
            bound => return bound.map_err(|error| explain(path, error)),
        }
    }
}

fn explain(path: &Path, error: io::Error) -> io::Error {
    let text = format!("the admin API cannot listen on unix:{}: {error}", path.display());
    io::Error::new(error.kind(), text)
}

fn try_bind_unix(path: &Path) -> io::Result<OwnedFd> {
    // Whether the path is too long for an address is not to depend on a process that listens there.
    SockAddr::unix(path)?;
    refuse_living(path)?;
    // Made where nobody else can reach it, and moved when only its owner may connect.
    let folder = path.parent().unwrap_or(Path::new("."));
    let folder = folder.join(format!(".dm{}", process::id()));
    let own = folder.join("s");
    let _ = fs::remove_file(&own);
    let _ = fs::remove_dir(&folder);
    DirBuilder::new().mode(0o700).create(&folder)?;
    let bound = unix_socket().and_then(|socket| {
        socket.bind(&SockAddr::unix(&own)?)?;
        socket.listen(BACKLOG)?;
        fs::set_permissions(&own, Permissions::from_mode(0o600))?;
        fs::rename(&own, path)?;
        Ok(socket.into())
    });
    let _ = fs::remove_file(&own);
    let _ = fs::remove_dir(&folder);
    bound
}

/// One that never blocks.
fn unix_socket() -> io::Result<socket2::Socket> {
    let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Fails unless `path` is free, or is a socket that nobody listens on any more.
fn refuse_living(path: &Path) -> io::Result<()> {
    let kind = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !kind.is_socket() {
        return Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "there is a file of this name that is no socket",
        ));
    }
    match unix_socket()?.connect(&SockAddr::unix(path)?) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // A full backlog is somebody.
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
        Ok(()) | Err(_) => {
            Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens on it"))
        }
    }
}
