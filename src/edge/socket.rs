//! What the edge does to a client's socket beside Pingora.

use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd, RawFd},
    time::Duration,
};

use socket2::{SockRef, TcpKeepalive};

/// What the kernel keeps for a client beyond what is on its way to it. It takes more only when half
/// of this is gone: at `limits.answer_rate` that must take less than `timeouts.client_write`.
const UNSENT_MAX: u32 = 32 * 1024;

/// A descriptor of our own for a request's socket, so that it can be watched, or ended, beside
/// Pingora.
#[expect(unsafe_code, reason = "Pingora gives the number of a request's socket, not the socket")]
pub(super) fn duplicate(socket: RawFd) -> io::Result<OwnedFd> {
    if socket < 0 {
        // One that we dialled ourselves (`dial`): Pingora has no number for it.
        return Err(io::ErrorKind::Unsupported.into());
    }
    // SAFETY: the request or the connection owns the socket, and calls us.
    let borrowed = unsafe { BorrowedFd::borrow_raw(socket) };
    borrowed.try_clone_to_owned()
}

/// Makes the kernel keep no more of an answer than it must, so that who reads slowly is seen to, and
/// costs kilobytes, not the megabytes that a send buffer grows to. And makes it notice within `gone`
/// that a client is gone without a word: one that is silent is asked, and what it was sent must be
/// acknowledged.
pub(super) fn settle(socket: RawFd, gone: Duration) -> io::Result<()> {
    let socket = duplicate(socket)?;
    let socket = SockRef::from(&socket);
    socket.set_tcp_notsent_lowat(UNSENT_MAX)?;
    // TCP counts these in seconds. The kernel gives up at the first question after the last of the
    // three.
    let pause = (gone / 10).max(Duration::from_secs(1));
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(gone / 2).with_interval(pause))?;
    socket.set_tcp_user_timeout(Some(gone * 9 / 10))
}

/// Makes the close a reset, which forgets what was not taken. After an ordinary close the kernel
/// would go on offering it for minutes.
pub(super) fn forget_rest(socket: RawFd) -> io::Result<()> {
    SockRef::from(&duplicate(socket)?).set_linger(Some(Duration::ZERO))
}
