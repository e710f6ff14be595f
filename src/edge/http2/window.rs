//! How much of bodies a client may send before instances take them.
//!
//! Each request has a window of its own, wide enough for a fast upload over a long way. All of a
//! connection share its window, and a request that waits (for its session to wake, or for an instance
//! that takes nothing) keeps its part of it. So the connection's window grows by what its uploads may
//! fill; what all connections grow by in all has a bound, which is the bound on the memory.

use std::sync::Arc;

use http::header;
use pingora::protocols::http::v2::server::HttpSession;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config::Http2;

/// Permits are counted in this many bytes.
const UNIT: u64 = 1024;
/// RFC 9113, 6.9.1.
const WINDOW_MAX: u64 = i32::MAX as u64;

/// Those of all connections.
#[derive(Debug)]
pub(super) struct Windows {
    stream: u64,
    connection: u64,
    shared: Arc<Semaphore>,
}

/// One connection's.
#[derive(Debug)]
pub(super) struct Window {
    connection: u64,
    shared: Arc<Semaphore>,
    /// Until the connection ends: what a client was allowed cannot be taken back.
    grown: Vec<OwnedSemaphorePermit>,
    units: u64,
}

impl Windows {
    pub(super) fn new(http2: &Http2) -> Self {
        let units = u32::try_from(http2.shared_window / UNIT).unwrap_or(u32::MAX);
        let shared = Arc::new(Semaphore::new(units as usize));
        Self { stream: http2.stream_window, connection: http2.connection_window, shared }
    }

    pub(super) fn open(&self) -> Window {
        let shared = Arc::clone(&self.shared);
        Window { connection: self.connection, shared, grown: Vec::new(), units: 0 }
    }

    /// What a request may fill.
    pub(super) fn need(&self, request: &HttpSession) -> u64 {
        if request.is_body_empty() {
            return 0;
        }
        let length = request.req_header().headers.get(header::CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
        length.map_or(self.stream, |length: u64| length.min(self.stream))
    }
}

impl Window {
    /// The connection's window, if it grows for these needs.
    pub(super) fn widen(&mut self, needs: u64) -> Option<u32> {
        let lacks = needs.div_ceil(UNIT).saturating_sub(self.units);
        let lacks = u32::try_from(lacks.min(self.shared.available_permits() as u64)).ok()?;
        if lacks == 0 {
            return None;
        }
        let more = Arc::clone(&self.shared).try_acquire_many_owned(lacks).ok()?;
        match self.grown.last_mut() {
            Some(grown) => grown.merge(more),
            None => self.grown.push(more),
        }
        self.units += u64::from(lacks);
        let wider = (self.connection + self.units * UNIT).min(WINDOW_MAX);
        u32::try_from(wider).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn windows(shared: u64) -> Windows {
        Windows::new(&Http2 {
            connection_window: 100 * UNIT,
            shared_window: shared * UNIT,
            ..Http2::default()
        })
    }

    #[test]
    fn a_connections_window_grows_with_its_needs_and_never_shrinks() {
        let windows = windows(1000);
        let mut window = windows.open();
        let wide = |units: u64| u32::try_from((100 + units) * UNIT).ok();
        assert_eq!(window.widen(0), None);
        assert_eq!(window.widen(30 * UNIT), wide(30));
        assert_eq!(window.widen(20 * UNIT), None);
        assert_eq!(window.widen(30 * UNIT + 1), wide(31));
        assert_eq!(windows.shared.available_permits(), 969);
        drop(window);
        assert_eq!(windows.shared.available_permits(), 1000);
    }

    #[test]
    fn what_all_connections_grow_by_is_bounded_and_comes_back() {
        let windows = windows(50);
        let (mut first, mut second) = (windows.open(), windows.open());
        assert!(first.widen(40 * UNIT).is_some());
        assert_eq!(second.widen(40 * UNIT), u32::try_from(110 * UNIT).ok(), "what there is");
        assert_eq!(second.widen(40 * UNIT), None);
        drop(first);
        assert_eq!(second.widen(40 * UNIT), u32::try_from(140 * UNIT).ok());
    }
}
