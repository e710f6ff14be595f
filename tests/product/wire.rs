//! A client that writes bytes as it is told to, and what came back.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::support::PATIENCE;

/// One connection to the edge.
pub(crate) struct Wire<S = TcpStream>(pub(crate) S);

impl Wire {
    pub(crate) async fn open(edge: SocketAddr) -> Self {
        Self(TcpStream::connect(edge).await.expect("a connection"))
    }

    /// A connection that has sent this.
    pub(crate) async fn sent(edge: SocketAddr, bytes: &[u8]) -> Self {
        let mut wire = Self::open(edge).await;
        wire.send(bytes).await;
        wire
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.expect("sent");
    }

    /// What comes until it contains `end`, or until the end of the connection.
    pub(crate) async fn until(&mut self, end: &str) -> String {
        let mut all = Vec::new();
        let reads = async {
            let mut bytes = [0; 16 * 1024];
            while !String::from_utf8_lossy(&all).contains(end) {
                match self.0.read(&mut bytes).await {
                    Ok(n @ 1..) => all.extend_from_slice(&bytes[..n]),
                    // A reset is an end, too.
                    Ok(_) | Err(_) => break,
                }
            }
        };
        let came = timeout(PATIENCE, reads).await;
        let all = String::from_utf8_lossy(&all).into_owned();
        assert!(came.is_ok(), "waited in vain for {end:?} after {all:?}");
        all
    }

    /// All that comes until the edge closes the connection.
    pub(crate) async fn rest(&mut self) -> String {
        self.until("\0 never \0").await
    }

    /// The head of the next answer.
    pub(crate) async fn head(&mut self) -> String {
        self.until("\r\n\r\n").await
    }
}
