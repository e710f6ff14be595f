//! Connections for upgrades, on which an answer is read a moment later than it could be.
//!
//! Pingora reads the instance's answer and its own note "the request has no body" in no fixed
//! order. If the 101 comes first, the note counts as the end of the upgraded stream, and a
//! WebSocket that was just opened is closed. An instance that answers fast on a busy machine does
//! that to one socket in 500.
//! Test: two_thousand_idle_websockets_stay_and_keep_their_session_awake.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use async_trait::async_trait;
use pingora::{
    Error, ErrorType, Result,
    connectors::L4Connect,
    protocols::l4::{
        socket::SocketAddr,
        stream::Stream,
        virt::{VirtualSockOpt, VirtualSocket, VirtualSocketStream},
    },
};
use rustix::net::sockopt;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
    task::coop,
};
use tokio_util::either::Either;

use super::tunnel::Takeover;

/// A socket to an instance.
pub(super) type Socket = Either<TcpStream, UnixStream>;

/// Connects such a stream.
#[derive(Debug)]
pub(super) struct Dial {
    pub(super) takeover: Arc<Takeover>,
}

#[async_trait]
impl L4Connect for Dial {
    async fn connect(&self, address: &SocketAddr) -> Result<Stream> {
        let connected = match address {
            SocketAddr::Inet(address) => TcpStream::connect(address).await.map(Either::Left),
            SocketAddr::Unix(address) => match address.as_pathname() {
                Some(path) => UnixStream::connect(path).await.map(Either::Right),
                None => Err(io::ErrorKind::InvalidInput.into()),
            },
        };
        let socket = connected.map_err(|error| {
            Error::because(ErrorType::ConnectError, "cannot connect for an upgrade", error)
        })?;
        let takeover = Arc::clone(&self.takeover);
        let hesitant = Hesitant { socket: Some(socket), hesitates: false, takeover };
        Ok(VirtualSocketStream::new(Box::new(hesitant)).into())
    }
}

/// Its first read after a write yields once, so that all else that is ready goes before it. What
/// was upgraded goes over to its tunnel when Pingora drops it.
#[derive(Debug)]
struct Hesitant {
    /// Taken by the drop alone.
    socket: Option<Socket>,
    hesitates: bool,
    takeover: Arc<Takeover>,
}

impl Hesitant {
    fn socket(&mut self) -> Pin<&mut Socket> {
        Pin::new(self.socket.as_mut().expect("only the drop takes it"))
    }
}

impl Drop for Hesitant {
    fn drop(&mut self) {
        if let Some(socket) = self.socket.take() {
            self.takeover.lay_down_instance(socket);
        }
    }
}

impl VirtualSocket for Hesitant {
    fn set_socket_option(&self, option: VirtualSockOpt) -> io::Result<()> {
        let Some(Either::Left(socket)) = &self.socket else { return Ok(()) };
        match option {
            VirtualSockOpt::NoDelay => socket.set_nodelay(true),
            VirtualSockOpt::KeepAlive(keepalive) => {
                sockopt::set_socket_keepalive(socket, true)?;
                sockopt::set_tcp_keepidle(socket, keepalive.idle)?;
                sockopt::set_tcp_keepintvl(socket, keepalive.interval)?;
                let count = u32::try_from(keepalive.count).unwrap_or(u32::MAX);
                Ok(sockopt::set_tcp_keepcnt(socket, count)?)
            }
            _ => Ok(()),
        }
    }
}

impl AsyncRead for Hesitant {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.hesitates {
            // Without budget nothing else has had its turn, either.
            self.hesitates = !coop::has_budget_remaining();
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if self.takeover.ends_reading(cx) {
            return Poll::Ready(Ok(()));
        }
        self.socket().poll_read(cx, buf)
    }
}

impl AsyncWrite for Hesitant {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.hesitates = true;
        self.socket().poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.takeover.wants_instance() {
            return Poll::Ready(Ok(()));
        }
        self.socket().poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.hesitates = true;
        self.socket().poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.as_ref().is_some_and(AsyncWrite::is_write_vectored)
    }
}
