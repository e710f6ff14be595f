//! What Pingora reads of a client's connection: whole heads that [`Framing`] lets through, bodies as
//! they come, and nothing behind an upgrade until it was granted. The time for a head runs here.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::BytesMut;
use pingora::protocols::Stream;
use tokio::{
    io::{AsyncRead, AsyncReadExt, ReadBuf},
    time::timeout,
};
use tokio_util::io::poll_read_buf;

use super::{
    framing::{Framing, HeadLimits, Refusal},
    pace::{Pace, Rate},
    patience::Patience,
};
use crate::config::{Limits, Timeouts};

/// What a client may send behind an upgrade before it is granted.
const EARLY_MAX: usize = 64 * 1024;
/// What is read at once of a head that does not come in one piece, or that is a connection's first.
const PIECE: usize = 1024;
/// What is read behind a head that was refused, while requests before it are under way.
const THROWN_AWAY_MAX: usize = 64 * 1024;
/// How long a client that was refused may take to read that, and how much it may send meanwhile.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_MAX: usize = 1024 * 1024;
/// Stands for a head that was refused, so that its answer comes when its turn comes.
const REFUSED: &[u8] = b"GET / HTTP/1.1\r\nHost: refused.invalid\r\nConnection: close\r\n\r\n";

/// What a connection of HTTP/2 begins with, and what alone it shares with no HTTP/1.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const PREFACE_LINE: &[u8] = PREFACE.split_at(16).0;

/// What a client speaks, as far as its first bytes tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Speaks {
    Http1,
    Http2,
    /// It begins as HTTP/2 does, and is not.
    Neither,
}

/// What a client's connection must keep to.
#[derive(Clone, Debug)]
pub(super) struct Terms {
    head: Duration,
    limits: Arc<HeadLimits>,
    body: Rate,
    body_silence: Duration,
    pub(super) answer: Rate,
    /// How long one may be gone before it is noticed.
    pub(super) gone: Duration,
}

impl Terms {
    pub(super) fn new(limits: &Limits, timeouts: &Timeouts) -> Self {
        Self {
            head: timeouts.client_head,
            limits: Arc::new(HeadLimits::new(limits)),
            body: Rate::of_bodies(limits, timeouts),
            body_silence: timeouts.client_body,
            answer: Rate::of_answers(limits, timeouts),
            gone: timeouts.client_gone,
        }
    }
}

/// What the inlet of a connection and the hooks of its requests tell each other. HTTP/1 alone has
/// heads.
#[derive(Debug, Default)]
pub(super) struct Heads {
    /// Heads that went on to Pingora, and how many it has found.
    passed: AtomicU32,
    found: AtomicU32,
    /// Why the last of them stands for another.
    refusal: OnceLock<Refusal>,
    is_body_bad: AtomicBool,
    is_body_slow: AtomicBool,
    /// The body may come as slowly as it likes.
    is_patient: AtomicBool,
    has_underscores: AtomicBool,
    is_upgraded: AtomicBool,
}

impl Heads {
    /// Pingora has found the next head: why it is refused, if it is.
    pub(super) fn next(&self) -> Result<(), Refusal> {
        let found = self.found.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        let ahead = self.passed.load(Ordering::Relaxed).wrapping_sub(found).cast_signed();
        match self.refusal.get() {
            _ if ahead < 0 => Err(Refusal::Unframed),
            Some(refusal) if ahead == 0 => Err(*refusal),
            _ => Ok(()),
        }
    }

    /// Whether a body that Pingora was reading is malformed.
    pub(super) fn is_body_bad(&self) -> bool {
        self.is_body_bad.load(Ordering::Relaxed)
    }

    /// Whether a body that Pingora was reading came too slowly.
    pub(super) fn is_body_slow(&self) -> bool {
        self.is_body_slow.load(Ordering::Relaxed)
    }

    /// Whether the body of the request under way may come as slowly as it likes.
    pub(super) fn set_patient(&self, is_patient: bool) {
        self.is_patient.store(is_patient, Ordering::Relaxed);
    }

    /// Whether a header's name had a `_` in any head so far.
    pub(super) fn has_underscores(&self) -> bool {
        self.has_underscores.load(Ordering::Relaxed)
    }

    /// The instance's 101 is there: what the client has sent, and sends, may go on.
    pub(super) fn upgrade(&self) {
        self.is_upgraded.store(true, Ordering::Relaxed);
    }
}

/// The reading side of one connection.
pub(super) struct Inlet {
    framing: Framing,
    heads: Arc<Heads>,
    /// Bytes that were read, of which the first `ready` may go on.
    held: BytesMut,
    ready: usize,
    /// HTTP/2, or upgraded: bytes are not ours to look at.
    is_raw: bool,
    /// Nothing is read for Pingora any more.
    is_closed: bool,
    /// Behind a head that was refused.
    thrown_away: usize,
    has_left: bool,
    body: Pace,
    body_silence: Duration,
    /// Since the body that is being read has stopped coming.
    silent: Option<Patience>,
    head: Duration,
    /// For the head that is being read; runs from its first byte, for a connection's first one from
    /// the connection's.
    until: Option<Patience>,
}

impl Inlet {
    pub(super) fn new(terms: &Terms, heads: Arc<Heads>, is_http2: bool) -> Self {
        Self {
            framing: Framing::new(Arc::clone(&terms.limits)),
            heads,
            held: BytesMut::new(),
            ready: 0,
            is_raw: is_http2,
            is_closed: false,
            thrown_away: 0,
            has_left: false,
            body: Pace::new(terms.body),
            body_silence: terms.body_silence,
            silent: None,
            head: terms.head,
            until: Some(Patience::new(terms.head)),
        }
    }

    /// What the connection begins as. Reads until it can be no preface of HTTP/2 any more: a client
    /// of HTTP/1.0 may send less than a preface and wait.
    pub(super) async fn peek(&mut self, stream: &mut Stream) -> io::Result<Speaks> {
        let until = self.until.get_or_insert_with(|| Patience::new(self.head));
        while self.held.len() < PREFACE.len() && PREFACE.starts_with(&self.held) {
            self.held.reserve(PIECE);
            match until.bound(stream.read_buf(&mut self.held)).await {
                Some(Ok(0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Some(read) => read?,
                None => return Err(io::ErrorKind::TimedOut.into()),
            };
        }
        if self.held.starts_with(PREFACE) {
            self.is_raw = true;
            self.ready = self.held.len();
            return Ok(Speaks::Http2);
        }
        if self.held.starts_with(PREFACE_LINE) {
            return Ok(Speaks::Neither);
        }
        self.look();
        Ok(Speaks::Http1)
    }

    /// Gives what was held back and may go on now; whether there was any.
    pub(super) fn give(&mut self, buf: &mut ReadBuf<'_>) -> bool {
        if self.framing.is_behind_upgrade() && self.heads.is_upgraded.load(Ordering::Relaxed) {
            self.is_raw = true;
            self.ready = self.held.len();
        }
        let n = self.ready.min(buf.remaining());
        if n == 0 {
            return false;
        }
        buf.put_slice(&self.held.split_to(n));
        self.ready -= n;
        if self.held.is_empty() {
            // An idle connection keeps no buffer.
            self.held = BytesMut::new();
        }
        true
    }

    /// Reads for Pingora. Call [`Self::give`] first.
    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut Stream,
        in_request: bool,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_closed {
            return self.poll_closed(cx, stream);
        }
        if in_request {
            self.until = None;
        }
        if self.is_late(cx, in_request) {
            return Poll::Ready(self.time_out(buf));
        }
        let read = if self.is_raw {
            self.poll_raw(cx, stream, in_request, buf)
        } else {
            let was_in_body = self.framing.is_in_body();
            let before = buf.filled().len();
            let read = self.poll_framed(cx, stream, buf);
            self.pace(cx, was_in_body, buf.filled().len() - before, read)
        };
        if read.is_pending() && self.is_late(cx, in_request) {
            return Poll::Ready(self.time_out(buf));
        }
        read
    }

    /// Whether the client is to be given time to read why it was refused.
    pub(super) fn lingers(&self) -> bool {
        self.is_closed || (self.framing.is_behind_upgrade() && !self.is_raw)
    }

    /// Holds a body to its rate, and to `timeouts.client_body`.
    fn pace(
        &mut self,
        cx: &mut Context<'_>,
        was_in_body: bool,
        came: usize,
        read: Poll<io::Result<()>>,
    ) -> Poll<io::Result<()>> {
        if !self.framing.is_in_body() || self.heads.is_patient.load(Ordering::Relaxed) {
            self.silent = None;
            return read;
        }
        if read.is_ready() {
            self.silent = None;
        }
        if !was_in_body {
            self.body.restart();
        } else if read.is_ready() {
            self.body.moved(came);
        }
        if read.is_pending() && self.waits_for_body(cx) {
            self.is_closed = true;
            self.heads.is_body_slow.store(true, Ordering::Relaxed);
            return Poll::Ready(self.end());
        }
        read
    }

    /// Nothing comes of a body. Whether that is too slow.
    fn waits_for_body(&mut self, cx: &mut Context<'_>) -> bool {
        let silent = self.silent.get_or_insert_with(|| Patience::new(self.body_silence));
        silent.poll_over(cx).is_ready() || self.body.waits(cx)
    }

    fn poll_raw(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut Stream,
        in_request: bool,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(stream).poll_read(cx, buf);
        if !in_request && self.until.is_none() && before < buf.filled().len() {
            self.until = Some(Patience::new(self.head));
        }
        read
    }

    fn poll_framed(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut Stream,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.held.is_empty() && !self.framing.is_behind_upgrade() {
            let before = buf.filled().len();
            std::task::ready!(Pin::new(&mut *stream).poll_read(cx, buf))?;
            let came = &buf.filled()[before..];
            if came.is_empty() {
                return Poll::Ready(Ok(()));
            }
            // Mostly one whole head, which stays where Pingora wants it.
            let (passes, outcome) = self.framing.advance(came);
            if !self.framing.absolutes().is_empty() {
                self.held.extend_from_slice(came);
                buf.set_filled(before);
                self.take(passes, outcome);
                self.give(buf);
                return Poll::Ready(Ok(()));
            }
            if outcome.is_ok() {
                self.held.extend_from_slice(&came[passes..]);
            }
            buf.set_filled(before + passes);
            self.note(outcome);
            if 0 < passes || self.give(buf) {
                return Poll::Ready(Ok(()));
            }
        }
        while !self.is_closed {
            if EARLY_MAX <= self.held.len() && self.framing.is_behind_upgrade() {
                return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
            }
            self.held.reserve(PIECE);
            if std::task::ready!(poll_read_buf(Pin::new(&mut *stream), cx, &mut self.held))? == 0 {
                // What was begun is never finished.
                self.held = BytesMut::new();
                self.is_closed = true;
                return Poll::Ready(Ok(()));
            }
            self.look();
            if self.give(buf) {
                return Poll::Ready(Ok(()));
            }
        }
        Poll::Ready(self.end())
    }

    /// Behind a head that was refused: an end of the client is one, whatever else comes is none, as
    /// requests before that head may be under way. It is thrown away, up to a limit.
    fn poll_closed(&mut self, cx: &mut Context<'_>, stream: &mut Stream) -> Poll<io::Result<()>> {
        if self.heads.refusal.get().is_none() || self.has_left {
            return Poll::Ready(self.end());
        }
        while self.thrown_away < THROWN_AWAY_MAX {
            let mut bytes = [0; 1024];
            let mut bytes = ReadBuf::new(&mut bytes);
            let read = std::task::ready!(Pin::new(&mut *stream).poll_read(cx, &mut bytes));
            if read.is_err() || bytes.filled().is_empty() {
                self.has_left = true;
                return Poll::Ready(self.end());
            }
            self.thrown_away += bytes.filled().len();
        }
        Poll::Pending
    }

    /// What Pingora finds where nothing is read any more.
    fn end(&self) -> io::Result<()> {
        if self.heads.is_body_bad() {
            Err(io::ErrorKind::InvalidData.into())
        } else if self.heads.is_body_slow() {
            Err(io::ErrorKind::TimedOut.into())
        } else {
            Ok(())
        }
    }

    /// Frames what is held.
    fn look(&mut self) {
        let (passes, outcome) = self.framing.advance(&self.held);
        self.take(passes, outcome);
    }

    /// Of what is held, so much may go on.
    fn take(&mut self, passes: usize, outcome: Result<(), Refusal>) {
        let passes = self.rewrite(passes);
        self.ready = passes;
        if outcome.is_err() {
            self.held.truncate(passes);
        }
        self.note(outcome);
    }

    /// Rewrites the targets that are whole URIs; how much may go on then.
    fn rewrite(&mut self, mut passes: usize) -> usize {
        let absolutes = self.framing.absolutes();
        if absolutes.is_empty() {
            return passes;
        }
        let mut bytes = self.held.to_vec();
        // From behind, so that the places of those before stay what they are.
        for absolute in absolutes.iter().rev() {
            passes = passes.saturating_add_signed(absolute.to_origin(&mut bytes));
        }
        self.held = BytesMut::from(&*bytes);
        passes
    }

    /// Tells the hooks what was framed, and puts the stand-in behind it where that was refused.
    fn note(&mut self, outcome: Result<(), Refusal>) {
        let mut passed = self.framing.heads();
        if let Err(refusal) = outcome {
            self.is_closed = true;
            if self.framing.is_in_body() {
                self.heads.is_body_bad.store(true, Ordering::Relaxed);
            } else {
                // The first one counts, and there is no second.
                let _ = self.heads.refusal.set(refusal);
                self.held.extend_from_slice(REFUSED);
                self.ready = self.held.len();
                passed = passed.wrapping_add(1);
            }
        }
        self.heads.passed.store(passed, Ordering::Relaxed);
        if self.framing.has_underscores() {
            self.heads.has_underscores.store(true, Ordering::Relaxed);
        }
        if self.ready == self.held.len() {
            // No head has begun.
            self.until = None;
        }
    }

    /// Whether the head's time is over. Registers to be woken when it will be.
    fn is_late(&mut self, cx: &mut Context<'_>, in_request: bool) -> bool {
        if in_request {
            return false;
        }
        let has_begun = !self.held.is_empty() && !self.framing.is_behind_upgrade();
        if self.until.is_none() && has_begun {
            self.until = Some(Patience::new(self.head));
        }
        self.until.as_mut().is_some_and(|until| until.poll_over(cx).is_ready())
    }

    /// Who has begun a head is told.
    fn time_out(&mut self, buf: &mut ReadBuf<'_>) -> io::Result<()> {
        // An empty line behind a request's body is no beginning.
        let has_begun = !matches!(&*self.held, b"" | b"\r" | b"\r\n");
        if self.is_raw || !has_begun || self.framing.is_behind_upgrade() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.held.clear();
        self.note(Err(Refusal::HeadTimedOut));
        self.give(buf);
        Ok(())
    }
}

/// Closing a socket with bytes unread resets it, and the client would lose its answer: what it still
/// sends is taken and thrown away.
pub(super) async fn linger(stream: &mut Stream) {
    let mut bytes = [0; 4096];
    let rest = async {
        let mut taken = 0;
        while taken < LINGER_MAX {
            match stream.read(&mut bytes).await {
                Ok(n @ 1..) => taken += n,
                _ => break,
            }
        }
    };
    // Either way it is closed now.
    let _ = timeout(LINGER, rest).await;
}
