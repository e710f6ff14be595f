//! Holding a request: waiting for its session while noticing that the client has left, without
//! reading a byte of its body.

use std::{io, os::fd::RawFd};

use pingora::{protocols::http::ServerSession, proxy::Session as Downstream};
use tokio::{io::Interest, net::TcpStream};

use super::{listen::Connection, respond::Answer, socket::duplicate};
use crate::{fleet::Lease, session::Endpoint};

/// Waits until the lease's session is ready, or the client has left.
pub(super) async fn ready(
    downstream: &mut Downstream,
    lease: &mut Lease,
) -> Result<Endpoint, Answer> {
    if let Some(endpoint) = lease.endpoint() {
        return Ok(endpoint.clone());
    }
    tokio::select! {
        biased;
        ready = lease.ready() => ready.map_err(Answer::of_hold),
        () = client_left(downstream) => Err(Answer::ClientLeft),
    }
}

/// Returns when the client has closed its connection or reset its stream. A half-closed client
/// counts as gone, as it does for Pingora.
async fn client_left(downstream: &mut Downstream) {
    let socket = Connection::of(downstream.digest()).map(|connection| connection.socket);
    if let ServerSession::H2(stream) = downstream.as_downstream_mut() {
        // A reset and a broken connection are the same to us: gone.
        let _ = stream.idle().await;
        return;
    }
    let hung_up = async { watch_hangup(socket?).await.ok() };
    if hung_up.await.is_none() {
        // It cannot be watched: the wait ends by the wake or by its timeout.
        std::future::pending().await
    }
}

async fn watch_hangup(socket: RawFd) -> io::Result<()> {
    let watched = TcpStream::from_std(duplicate(socket)?.into())?;
    loop {
        if watched.ready(Interest::READABLE).await?.is_read_closed() {
            return Ok(());
        }
        // Bytes that wait to be read are no hang-up: forget them until epoll tells of a change.
        let would_block = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
        let _ = watched.try_io(Interest::READABLE, would_block);
    }
}
