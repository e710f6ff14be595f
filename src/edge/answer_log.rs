//! A log line for each answer of our own with a status of 400 or more, so that an operator finds
//! the request id that a user reads on an error page.
//!
//! The lines of each reason have a rate: a flood of one kind neither fills the disk nor hides
//! another kind. What is left out is counted in the next line; the access log has every request.

use std::{
    collections::HashMap,
    fmt,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use pingora::Error;

use super::{admit::buckets::Buckets, respond::Answer};
use crate::route::Rate;

/// Lines of one reason.
const LINES: Rate = Rate { count: 60, per: Duration::from_secs(60), burst: 60 };

/// The rates of these lines.
#[derive(Default)]
pub(super) struct AnswerLog {
    rates: Buckets<&'static str>,
    /// Lines left out since the last one of the same reason.
    left_out: Mutex<HashMap<&'static str, u64>>,
}

/// What a line says.
pub(super) struct Line<'a> {
    pub(super) answer: Answer,
    pub(super) id: &'a str,
    pub(super) client: Option<IpAddr>,
    /// The session's host; empty where no route has it.
    pub(super) session: &'a str,
    /// The life that the request waited for, or that answered it.
    pub(super) generation: Option<u64>,
    pub(super) error: Option<&'a Error>,
}

impl AnswerLog {
    /// Writes the line, unless its reason has had too many of late.
    pub(super) fn write(&self, line: &Line<'_>, now: Instant) {
        let (status, reason) = (line.answer.status(), line.answer.reason());
        if status < 400 {
            return;
        }
        let Some(left_out) = self.turn(reason, now) else { return };
        let Line { id, session, .. } = *line;
        let client = line.client.map(tracing::field::display);
        let error = line.error.map(tracing::field::display);
        let (generation, left_out) = (line.generation, (0 < left_out).then_some(left_out));
        if line.answer.is_fault() {
            tracing::warn!(id, session, generation, client, status, left_out, error, "{reason}");
        } else {
            tracing::info!(id, session, generation, client, status, left_out, "{reason}");
        }
    }

    /// How many lines of this reason were left out before this one; `None` where this one is, too.
    fn turn(&self, reason: &'static str, now: Instant) -> Option<u64> {
        let mut left_out = self.left_out.lock().unwrap_or_else(PoisonError::into_inner);
        if self.rates.take(reason, &LINES, now, || {}).is_ok() {
            return Some(left_out.remove(reason).unwrap_or(0));
        }
        *left_out.entry(reason).or_default() += 1;
        None
    }
}

impl fmt::Debug for AnswerLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AnswerLog")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_one_reason_is_cut_counted_and_hides_no_other() {
        let (log, now) = (AnswerLog::default(), Instant::now());
        let written = (0..1000).filter(|_| log.turn("no_such_host", now).is_some()).count();
        assert_eq!(written, 60);
        assert_eq!(log.turn("broken", now), Some(0));
        let later = now + Duration::from_secs(1);
        assert_eq!(log.turn("no_such_host", later), Some(940));
        assert_eq!(log.turn("no_such_host", later), None);
        let quiet = later + Duration::from_secs(60);
        assert_eq!(log.turn("no_such_host", quiet), Some(1));
        assert_eq!(log.turn("no_such_host", quiet), Some(0));
    }
}
