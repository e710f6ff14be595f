//! Holding a request: waiting for its session while noticing that the client has left, without
//! reading a byte of its body.

use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd, RawFd},
};

use pingora::{protocols::http::ServerSession, proxy::Session as Downstream};
use tokio::io::{Interest, unix::AsyncFd};

use super::{listen::Connection, respond::Answer};
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
    let watched = AsyncFd::with_interest(duplicate(socket)?, Interest::READABLE)?;
    loop {
        let mut guard = watched.ready(Interest::READABLE).await?;
        if guard.ready().is_read_closed() {
            return Ok(());
        }
        // Bytes that wait to be read are no hang-up; epoll tells of the next change.
        guard.clear_ready();
    }
}

/// A descriptor of our own for the client's socket, so that it can be watched beside Pingora.
#[expect(unsafe_code, reason = "Pingora gives the number of the client's socket, not the socket")]
fn duplicate(socket: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the request that is being held owns the socket, and we are called within its hook.
    let borrowed = unsafe { BorrowedFd::borrow_raw(socket) };
    borrowed.try_clone_to_owned()
}
