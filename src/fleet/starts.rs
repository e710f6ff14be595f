//! The places for starts of one engine, shared fairly: whoever waits stands in the line of the
//! client that it wakes for, and the lines take turns. One client's thousand wakes delay another's
//! first by one start, not by a thousand.
//!
//! Bounded: one that waits is one session that wakes.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

use super::Origin;

/// Whose line: a client's; of all wakes that no client asked for, one together.
type Line = Option<Origin>;

/// The places of one engine.
#[derive(Debug)]
pub(super) struct Starts(Mutex<Lines>);

#[derive(Debug)]
struct Lines {
    free: usize,
    /// None of them is empty. In a line, the first to come is the first to go.
    waiting: HashMap<Line, BTreeMap<u64, oneshot::Sender<()>>>,
    /// The lines in the order of their turns, each once.
    turns: VecDeque<Line>,
    next: u64,
}

/// A place. Dropping it gives it to the next in turn.
#[derive(Debug)]
pub(super) struct StartPlace<'s>(&'s Starts);

/// One that waits. Dropping it leaves the line, or gives back what it was given meanwhile.
struct Waiter<'s> {
    starts: &'s Starts,
    line: Line,
    number: u64,
    is_served: bool,
}

impl Starts {
    /// At most `max` at once.
    pub(super) fn new(max: usize) -> Self {
        let (waiting, turns) = (HashMap::new(), VecDeque::new());
        Self(Mutex::new(Lines { free: max, waiting, turns, next: 0 }))
    }

    /// Waits for a place.
    pub(super) async fn place(&self, line: Line) -> StartPlace<'_> {
        let Some((mut waiter, turn)) = self.stand_in(line) else { return StartPlace(self) };
        // The sender is dropped only by the waiter itself.
        let _ = turn.await;
        waiter.is_served = true;
        StartPlace(self)
    }

    /// `None` when there is a place at once.
    fn stand_in(&self, line: Line) -> Option<(Waiter<'_>, oneshot::Receiver<()>)> {
        let mut lines = self.lock();
        if 0 < lines.free {
            lines.free -= 1;
            return None;
        }
        let number = lines.next;
        lines.next += 1;
        let (call, turn) = oneshot::channel();
        let others = lines.waiting.entry(line).or_default();
        let is_new = others.is_empty();
        others.insert(number, call);
        if is_new {
            lines.turns.push_back(line);
        }
        Some((Waiter { starts: self, line, number, is_served: false }, turn))
    }

    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lines {
    /// A place is free: the next line's first gets it.
    fn give(&mut self) {
        while let Some(line) = self.turns.pop_front() {
            let Some(waiting) = self.waiting.get_mut(&line) else { continue };
            let first = waiting.pop_first();
            if waiting.is_empty() {
                self.waiting.remove(&line);
            } else {
                self.turns.push_back(line);
            }
            if first.is_some_and(|(_, call)| call.send(()).is_ok()) {
                return;
            }
        }
        self.free += 1;
    }

    /// Whether it was still in its line.
    fn leave(&mut self, line: Line, number: u64) -> bool {
        let Some(waiting) = self.waiting.get_mut(&line) else { return false };
        let was_there = waiting.remove(&number).is_some();
        if waiting.is_empty() {
            self.waiting.remove(&line);
            self.turns.retain(|turn| *turn != line);
        }
        was_there
    }
}

impl Drop for StartPlace<'_> {
    fn drop(&mut self) {
        self.0.lock().give();
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        if self.is_served {
            return;
        }
        let mut lines = self.starts.lock();
        if !lines.leave(self.line, self.number) {
            lines.give();
        }
    }
}

#[cfg(test)]
mod tests;
