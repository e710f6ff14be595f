//! Token buckets by key, in bounded memory, with the time given: a `for` loop can test them.
//!
//! A bucket is one point in time: when it will be full again (GCRA, as the `governor` crate does
//! it; that crate bounds no memory, and a store of ours with its clock would be more than this).
//!
//! Nobody gets a fresh bucket before the old one is full: only full ones are forgotten, which makes
//! no difference. When as many as may be kept are not full, whoever comes new shares one of a fixed
//! crowd with others, by a hash that no client knows. So it takes as many addresses as are kept
//! to make the others share, and even then nobody's own bucket comes back.

use std::{
    collections::{HashMap, hash_map::RandomState},
    hash::{BuildHasher, Hash},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::route::Rate;

/// Buckets that are shared when there is no room for one's own.
const CROWD: usize = 1024;
/// To look through all of them costs; when all are in use it would be in vain.
const FORGET_EVERY: Duration = Duration::from_secs(1);

/// Buckets.
#[derive(Debug)]
pub(in crate::edge) struct Buckets<K>(Mutex<Kept<K>>);

#[derive(Debug)]
struct Kept<K> {
    own: HashMap<K, Instant>,
    /// Full ones are forgotten when there are as many as this.
    forget_at: usize,
    /// Whether there may be more than `forget_at`.
    grows: bool,
    forgotten_at: Option<Instant>,
    /// Empty until somebody is in it.
    crowd: Vec<Option<Instant>>,
    seed: RandomState,
}

impl<K: Eq + Hash> Buckets<K> {
    /// At most `max` of their own, for keys that anybody can make.
    pub(in crate::edge) fn bounded(max: usize) -> Self {
        Self::new(max, false)
    }

    /// For keys that are bounded elsewhere; above `kept`, full ones are forgotten.
    pub(in crate::edge) fn unbounded(kept: usize) -> Self {
        Self::new(kept, true)
    }

    fn new(forget_at: usize, grows: bool) -> Self {
        let (own, crowd, seed) = (HashMap::new(), Vec::new(), RandomState::new());
        Self(Mutex::new(Kept { own, forget_at, grows, forgotten_at: None, crowd, seed }))
    }

    /// A token from the bucket of `key`, or how long until there is one. `crowded` is told when the
    /// bucket is shared.
    pub(in crate::edge) fn take(
        &self,
        key: K,
        rate: &Rate,
        now: Instant,
        crowded: impl FnOnce(),
    ) -> Result<(), Duration> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(full_at) = kept.own.get_mut(&key) {
            *full_at = take(Some(*full_at), rate, now)?;
            return Ok(());
        }
        if kept.has_room(now) {
            let full_at = take(None, rate, now)?;
            kept.own.insert(key, full_at);
            return Ok(());
        }
        crowded();
        let shared = kept.shared(&key);
        *shared = Some(take(*shared, rate, now)?);
        Ok(())
    }
}

impl<K: Eq + Hash> Default for Buckets<K> {
    /// For the few keys of a closed set.
    fn default() -> Self {
        Self::unbounded(0)
    }
}

impl<K: Eq + Hash> Kept<K> {
    fn has_room(&mut self, now: Instant) -> bool {
        if self.own.len() < self.forget_at {
            return true;
        }
        if self.forgotten_at.is_none_or(|at| FORGET_EVERY <= now.saturating_duration_since(at)) {
            self.forgotten_at = Some(now);
            self.own.retain(|_, full_at| now < *full_at);
        }
        self.own.len() < self.forget_at || self.grows
    }

    fn shared(&mut self, key: &K) -> &mut Option<Instant> {
        if self.crowd.is_empty() {
            self.crowd = vec![None; CROWD];
        }
        let hash = self.seed.hash_one(key) % CROWD as u64;
        &mut self.crowd[usize::try_from(hash).unwrap_or(0)]
    }
}

/// When the bucket will be full without one token more, or how long until it has that.
fn take(full_at: Option<Instant>, rate: &Rate, now: Instant) -> Result<Instant, Duration> {
    let each = rate.interval();
    let whole = each * rate.burst;
    // A reload may have made the bucket smaller.
    let full_at = full_at.map_or(now, |at| at.clamp(now, now + whole)) + each;
    match full_at.checked_duration_since(now + whole) {
        Some(wait) if !wait.is_zero() => Err(wait),
        _ => Ok(full_at),
    }
}

#[cfg(test)]
mod tests;
