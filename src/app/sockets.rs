//! The listening sockets of this process: taken over from the one before, or bound before it serves,
//! so that an address that cannot be had is told at once.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    os::fd::{AsFd as _, OwnedFd},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    admin,
    config::{AdminAddress, Config, Entrance},
};

/// A process that has just ended may still have its addresses.
const IN_USE_MAX: Duration = Duration::from_secs(1);
const IN_USE_PAUSE: Duration = Duration::from_millis(20);
/// As Pingora has it; the kernel makes `net.core.somaxconn` of it.
pub(super) const BACKLOG: i32 = 65535;

/// All that this process listens on.
pub(super) struct Sockets {
    /// Those of the edge, by address.
    pub(super) edge: Vec<(SocketAddr, OwnedFd)>,
    /// The admin API's.
    pub(super) admin: OwnedFd,
    admin_name: String,
}

impl Sockets {
    /// Has every address of the config: from the process before, or bound by ourselves. What only
    /// the process before listens on is left to it.
    pub(super) fn new(
        config: &Config,
        mut inherited: HashMap<String, OwnedFd>,
    ) -> anyhow::Result<Self> {
        let mut edge = Vec::new();
        for (entrances, key) in
            [(&config.listen.http, "listen.http"), (&config.listen.https, "listen.https")]
        {
            for Entrance { address, .. } in entrances {
                let socket = match inherited.remove(&tcp_name(*address)) {
                    Some(socket) => socket,
                    None => bind(*address, key)?,
                };
                edge.push((*address, socket));
            }
        }
        let admin_name = match &config.listen.admin {
            AdminAddress::Tcp(address) => tcp_name(*address),
            AdminAddress::Unix(path) => format!("unix:{}", path.display()),
        };
        let admin = match (inherited.remove(&admin_name), &config.listen.admin) {
            (Some(socket), _) => socket,
            (None, AdminAddress::Tcp(address)) => bind(*address, "listen.admin")?,
            (None, AdminAddress::Unix(path)) => admin::bind_unix(path).context("listen.admin")?,
        };
        Ok(Self { edge, admin, admin_name })
    }

    /// The same sockets once more, by name, for the process that comes next.
    pub(super) fn share(&self) -> io::Result<Vec<(String, OwnedFd)>> {
        let edge = self.edge.iter().map(|(address, socket)| (tcp_name(*address), socket));
        let admin = (self.admin_name.clone(), &self.admin);
        edge.chain([admin])
            .map(|(name, socket)| Ok((name, socket.as_fd().try_clone_to_owned()?)))
            .collect()
    }
}

fn tcp_name(address: SocketAddr) -> String {
    format!("tcp:{address}")
}

/// Bound, but not listening: clients are refused until this process serves.
fn bind(address: SocketAddr, key: &str) -> anyhow::Result<OwnedFd> {
    let until = Instant::now() + IN_USE_MAX;
    loop {
        match try_bind(address) {
            Ok(socket) => return Ok(socket),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < until => {
                thread::sleep(IN_USE_PAUSE);
            }
            Err(error) => {
                let hint = match error.kind() {
                    io::ErrorKind::AddrInUse => "; is something else listening there?",
                    io::ErrorKind::PermissionDenied => {
                        "; a port below 1024 needs root or CAP_NET_BIND_SERVICE"
                    }
                    io::ErrorKind::AddrNotAvailable => "; no interface has this address",
                    _ => "",
                };
                return Err(anyhow::anyhow!("cannot listen on {address} ({key}): {error}{hint}"));
            }
        }
    }
}

fn try_bind(address: SocketAddr) -> io::Result<OwnedFd> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}
