//! How long the wakes of late took, by engine, route and the depth that they began at: what a wake
//! that begins now will take.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use crate::session::Depth;

/// The wakes that are remembered of one kind: enough for a median, few enough to forget soon.
const WAKES_MAX: usize = 15;
/// More kinds than any edge has; then those that come are not learned.
const KINDS_MAX: usize = 100_000;

/// What wakes have in common.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Kind {
    pub(super) engine: Arc<str>,
    pub(super) route: Arc<str>,
    pub(super) from: Depth,
}

/// What was learned since the edge began.
#[derive(Debug, Default)]
pub(super) struct Learned(Mutex<HashMap<Kind, VecDeque<Duration>>>);

impl Learned {
    /// A wake took so long, without its wait for a place.
    pub(super) fn note(&self, kind: Kind, took: Duration) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if KINDS_MAX <= all.len() && !all.contains_key(&kind) {
            return;
        }
        let wakes = all.entry(kind).or_default();
        if WAKES_MAX <= wakes.len() {
            wakes.pop_front();
        }
        wakes.push_back(took);
    }

    /// The median; `None` of a kind that there was none of yet.
    pub(super) fn usual(&self, kind: &Kind) -> Option<Duration> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut wakes: Vec<_> = all.get(kind)?.iter().copied().collect();
        wakes.sort_unstable();
        wakes.get(wakes.len() / 2).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_late_is_the_usual() {
        let learned = Learned::default();
        let kind = |from| Kind { engine: "e".into(), route: "r".into(), from };
        assert_eq!(learned.usual(&kind(Depth::Paused)), None);
        for ms in [10, 9000, 20] {
            learned.note(kind(Depth::Paused), Duration::from_millis(ms));
        }
        assert_eq!(learned.usual(&kind(Depth::Paused)), Some(Duration::from_millis(20)));
        assert_eq!(learned.usual(&kind(Depth::Stopped)), None);
        for _ in 0..WAKES_MAX {
            learned.note(kind(Depth::Paused), Duration::from_millis(500));
        }
        assert_eq!(learned.usual(&kind(Depth::Paused)), Some(Duration::from_millis(500)));
    }
}
