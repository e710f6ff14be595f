//! An upgraded connection, once its 101 is through: bytes one way and the other, until one side
//! ends.
//!
//! Pingora makes the handshake. It could carry the stream as well, but keeps two buffers of 64 KiB
//! and all that it knew of the request as long as the socket is open. So both ends that it holds
//! are wrapped, and after the 101 fall silent: it passes on what it had read, comes to an end and
//! drops them, and the sockets fall to us.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, BytesMut};
use futures::{future::BoxFuture, task::AtomicWaker};
use pingora::protocols::Stream;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    sync::oneshot,
    time::{Instant, sleep_until, timeout},
};

use super::{connections::Place, dial::Socket, frames::Frames, pace::Paced};
use crate::{access::Grant, fleet::Lease};

/// How long one side may say nothing after the other has ended. Not for an instance whose client only
/// has no more to say, as behind `docker exec`.
const LINGER: Duration = Duration::from_secs(10);

/// How long a client may take to hear that its access has ended.
const FAREWELL: Duration = Duration::from_secs(1);

/// Read at once; what the other side does not take is kept until it does.
const CHUNK: usize = 64 * 1024;

thread_local! {
    /// One for all tunnels of a thread, as it is empty between two polls.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; CHUNK].into());
}

/// A client's connection and its place among `limits.connections`.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) stream: Paced<Stream>,
    pub(super) place: Place,
}

/// What ends a tunnel from outside.
pub(super) struct Ending {
    /// Boxed: a tunnel that nothing ends must not pay for it.
    over: BoxFuture<'static, ()>,
    /// Where the client's frames begin, if they are known.
    frames: Option<Frames>,
}

impl Ending {
    pub(super) fn new(grant: Arc<Grant>, is_websocket: bool) -> Self {
        let over = Box::pin(async move { grant.over().await });
        Self { over, frames: is_websocket.then(Frames::default) }
    }
}

/// Where the two sockets of an upgraded connection are laid down.
#[derive(Debug, Default)]
pub(super) struct Takeover {
    /// All that Pingora had read from the client is on its way.
    is_quiet: AtomicBool,
    /// Who reads from the instance.
    reader: AtomicWaker,
    client: Mutex<Option<oneshot::Sender<Client>>>,
    instance: Mutex<Option<oneshot::Sender<Socket>>>,
}

impl Takeover {
    /// From now on both sockets are kept for the tunnel, which holds the session awake.
    pub(super) fn begin(
        &self,
        lease: Lease,
        ending: Option<Ending>,
        half_closes: bool,
    ) -> impl Future<Output = ()> + use<> {
        let (to_client, client) = oneshot::channel();
        let (to_instance, instance) = oneshot::channel();
        *lock(&self.client) = Some(to_client);
        *lock(&self.instance) = Some(to_instance);
        async move {
            let _lease = lease;
            // One that is not laid down was closed before.
            let (Ok(client), Ok(instance)) = (client.await, instance.await) else { return };
            let Client { mut stream, place: _place } = client;
            // Whatever ends it, both sides see it end.
            let Some(Ending { over, mut frames }) = ending else {
                let _ = relay(&mut stream, instance, &mut None, half_closes).await;
                return;
            };
            tokio::select! {
                _ = relay(&mut stream, instance, &mut frames, half_closes) => {}
                () = over => farewell(&mut stream, frames.as_ref()).await,
            }
        }
    }

    /// Pingora asks for more from the client: it has passed on what there was.
    pub(super) fn client_is_quiet(&self) {
        self.is_quiet.store(true, Ordering::Release);
        self.reader.wake();
    }

    /// Whether Pingora is to think that the instance has ended. Registers to be woken when it is.
    pub(super) fn ends_reading(&self, cx: &Context<'_>) -> bool {
        self.reader.register(cx.waker());
        self.is_quiet.load(Ordering::Acquire)
    }

    pub(super) fn lay_down_client(&self, client: Client) {
        if let Some(taker) = lock(&self.client).take() {
            // Who does not take it lets it close.
            let _ = taker.send(client);
        }
    }

    pub(super) fn lay_down_instance(&self, instance: Socket) {
        if let Some(taker) = lock(&self.instance).take() {
            let _ = taker.send(instance);
        }
    }

    /// Whether the instance's socket will be wanted after Pingora.
    pub(super) fn wants_instance(&self) -> bool {
        lock(&self.instance).is_some()
    }
}

fn lock<T>(slot: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Carries bytes both ways until both sides have ended, or one has and the other is silent for
/// [`LINGER`]; where the client `half_closes`, its end alone is no reason to end.
///
/// `frames` is told what the client was sent.
async fn relay<A, B>(
    mut client: A,
    mut instance: B,
    frames: &mut Option<Frames>,
    half_closes: bool,
) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let (mut up, mut down) = (Flow::default(), Flow::default());
    let mut linger = std::pin::pin!(None);
    std::future::poll_fn(|cx| {
        let upward = up.poll(cx, &mut client, &mut instance, &mut None)?;
        let downward = down.poll(cx, &mut instance, &mut client, frames)?;
        match (upward, downward) {
            (Poll::Ready(()), Poll::Ready(())) => return Poll::Ready(Ok(())),
            (Poll::Pending, Poll::Pending) => return Poll::Pending,
            (Poll::Ready(()), Poll::Pending) if half_closes => return Poll::Pending,
            _ => {}
        }
        if std::mem::take(&mut up.has_moved) | std::mem::take(&mut down.has_moved) {
            linger.set(None);
        }
        if linger.is_none() {
            linger.set(Some(sleep_until(Instant::now() + LINGER)));
        }
        let timer = linger.as_mut().as_pin_mut().expect("set above");
        timer.poll(cx).map(Ok)
    })
    .await
}

/// Says that the access has ended, where a frame may begin. What the client still sends is taken for
/// a moment: bytes that nobody reads would reset the connection, and it would not hear why.
async fn farewell<A: AsyncRead + AsyncWrite + Unpin>(client: &mut A, frames: Option<&Frames>) {
    let says = async {
        if let Some(close) = frames.and_then(Frames::close) {
            client.write_all(&close).await?;
        }
        client.shutdown().await?;
        let mut rest = [0; 1024];
        while 0 < client.read(&mut rest).await? {}
        io::Result::Ok(())
    };
    // Heard or not, it is over.
    let _ = timeout(FAREWELL, says).await;
}

/// One direction of a tunnel.
#[derive(Debug, Default)]
struct Flow {
    /// Read, but not taken by the other side yet.
    left: BytesMut,
    has_moved: bool,
    stage: Stage,
}

#[derive(Debug, Default)]
enum Stage {
    #[default]
    Open,
    /// The source has ended; the other side does not know yet.
    Ending,
    Ended,
}

impl Flow {
    /// Ready once the source has ended and the other side was told.
    fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        frames: &mut Option<Frames>,
    ) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        loop {
            while self.left.has_remaining() {
                let written = some(ready!(Pin::new(&mut *to).poll_write(cx, &self.left))?)?;
                if let Some(frames) = frames {
                    frames.pass(&self.left[..written]);
                }
                self.left.advance(written);
            }
            // An idle tunnel keeps no buffer.
            self.left = BytesMut::new();
            match self.stage {
                Stage::Open => match self.step(cx, from, to, frames)? {
                    Poll::Ready(()) => {}
                    Poll::Pending => {
                        ready!(Pin::new(&mut *to).poll_flush(cx))?;
                        return Poll::Pending;
                    }
                },
                Stage::Ending => {
                    ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                    self.stage = Stage::Ended;
                }
                Stage::Ended => return Poll::Ready(Ok(())),
            }
        }
    }

    /// Reads once, and writes what the other side takes at once.
    fn step<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        frames: &mut Option<Frames>,
    ) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut chunk = ReadBuf::new(scratch);
            ready!(Pin::new(from).poll_read(cx, &mut chunk))?;
            let chunk = chunk.filled();
            if chunk.is_empty() {
                self.stage = Stage::Ending;
                return Poll::Ready(Ok(()));
            }
            self.has_moved = true;
            let written = match Pin::new(to).poll_write(cx, chunk)? {
                Poll::Ready(written) => some(written)?,
                Poll::Pending => 0,
            };
            if let Some(frames) = frames {
                frames.pass(&chunk[..written]);
            }
            self.left.extend_from_slice(&chunk[written..]);
            Poll::Ready(Ok(()))
        })
    }
}

fn some(written: usize) -> io::Result<usize> {
    if written == 0 { Err(io::ErrorKind::WriteZero.into()) } else { Ok(written) }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex, split};

    use super::*;

    /// Small, so that each side is often too slow for the other.
    fn pipes() -> (DuplexStream, DuplexStream, tokio::task::JoinHandle<io::Result<()>>) {
        let (client, near) = duplex(1000);
        let (far, instance) = duplex(17);
        (
            client,
            instance,
            tokio_util::task::TaskTracker::new()
                .spawn(async { relay(near, far, &mut None, false).await }),
        )
    }

    #[tokio::test]
    async fn bytes_go_both_ways_and_an_end_goes_after_them() {
        let (client, instance, tunnel) = pipes();
        let sent = |salt: u32| -> Vec<u8> {
            (0..200_000_u32)
                .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8 ^ salt as u8)
                .collect()
        };
        let side = async |end: DuplexStream, says: Vec<u8>| {
            let (mut reader, mut writer) = split(end);
            let mut heard = Vec::new();
            let speak = async {
                writer.write_all(&says).await?;
                writer.shutdown().await
            };
            tokio::try_join!(speak, reader.read_to_end(&mut heard)).expect("both ways");
            heard
        };
        let (by_client, by_instance) = tokio::join!(side(client, sent(1)), side(instance, sent(2)));
        assert!(by_client == sent(2) && by_instance == sent(1));
        tunnel.await.expect("no panic").expect("both have ended");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_only_has_no_more_to_say_is_answered_however_late() {
        let (mut client, near) = duplex(1000);
        let (far, mut instance) = duplex(17);
        let tracker = tokio_util::task::TaskTracker::new();
        let tunnel = tracker.spawn(async { relay(near, far, &mut None, true).await });
        client.shutdown().await.expect("half closed");
        assert_eq!(instance.read(&mut [0]).await.expect("told"), 0);
        tokio::time::sleep(LINGER * 100).await;
        instance.write_all(b"x").await.expect("it may speak");
        client.read_exact(&mut [0]).await.expect("it is heard");
        drop(instance);
        tunnel.await.expect("no panic").expect("both have ended");
    }

    #[tokio::test(start_paused = true)]
    async fn a_side_that_is_left_alone_may_speak_but_not_be_silent_for_long() {
        let (mut client, mut instance, tunnel) = pipes();
        client.shutdown().await.expect("half closed");
        let mut byte = [0];
        assert_eq!(instance.read(&mut byte).await.expect("told"), 0);
        for _ in 0..5 {
            tokio::time::sleep(LINGER * 9 / 10).await;
            instance.write_all(b"x").await.expect("it may speak");
            client.read_exact(&mut byte).await.expect("it is heard");
        }
        let began = Instant::now();
        tunnel.await.expect("no panic").expect("an end");
        assert_eq!(began.elapsed(), LINGER);
        assert_eq!(client.read(&mut byte).await.expect("closed"), 0);
    }
}
