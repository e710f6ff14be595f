//! What is kept between requests: bounded, and for a while.

use std::{
    borrow::Borrow,
    collections::HashMap,
    fmt,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// Answers that count for a while, each to a question that is only known by its digest.
#[derive(Debug)]
pub(super) struct Remembered<V> {
    max: usize,
    counts_for: Duration,
    answers: Mutex<HashMap<[u8; 32], (Instant, V)>>,
}

impl<V: Clone> Remembered<V> {
    pub(super) fn new(max: usize, counts_for: Duration) -> Self {
        Self { max, counts_for, answers: Mutex::default() }
    }

    pub(super) fn get(&self, question: &[u8; 32]) -> Option<V> {
        let answers = lock(&self.answers);
        let (until, answer) = answers.get(question)?;
        (Instant::now() < *until).then(|| answer.clone())
    }

    /// Where there is no room, one that still counts is asked for again.
    pub(super) fn put(&self, question: [u8; 32], answer: V) {
        if self.counts_for.is_zero() {
            return;
        }
        let now = Instant::now();
        let mut answers = lock(&self.answers);
        if self.max <= answers.len() {
            answers.retain(|_, (until, _)| now < *until);
        }
        if self.max <= answers.len()
            && let Some(any) = answers.keys().next().copied()
        {
            answers.remove(&any);
        }
        answers.insert(question, (now + self.counts_for, answer));
    }
}

/// What belongs to a route's policy and outlives a reload: one for all routes that say the same.
pub(super) struct Kept<K: ToOwned + ?Sized, V>(Mutex<HashMap<K::Owned, Arc<V>>>);

impl<K, V> Kept<K, V>
where
    K: ToOwned + Hash + Eq + ?Sized,
    K::Owned: Hash + Eq,
{
    /// There are as many as routes say, and [`Kept::retain`] forgets the others.
    pub(super) fn get(&self, key: &K, make: impl FnOnce(&K) -> V) -> Arc<V> {
        let mut all = lock(&self.0);
        if let Some(known) = all.get(key) {
            return Arc::clone(known);
        }
        let new = Arc::new(make(key));
        all.insert(key.to_owned(), Arc::clone(&new));
        new
    }

    pub(super) fn retain(&self, wanted: impl Fn(&K) -> bool) {
        lock(&self.0).retain(|key, _| wanted(key.borrow()));
    }

    pub(super) fn all(&self) -> Vec<Arc<V>> {
        lock(&self.0).values().cloned().collect()
    }
}

impl<K: ToOwned + ?Sized, V> Default for Kept<K, V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: ToOwned + ?Sized, V> fmt::Debug for Kept<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Kept")
    }
}

fn lock<T>(slot: &Mutex<T>) -> MutexGuard<'_, T> {
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_answer_counts_for_its_time_and_no_longer() {
        let answers = Remembered::new(2, Duration::from_secs(5));
        answers.put([1; 32], "yes");
        tokio::time::advance(Duration::from_millis(4_999)).await;
        assert_eq!(answers.get(&[1; 32]), Some("yes"));
        assert_eq!(answers.get(&[2; 32]), None);
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(answers.get(&[1; 32]), None);
    }

    #[tokio::test(start_paused = true)]
    async fn there_are_never_more_than_the_most() {
        let answers = Remembered::new(2, Duration::from_secs(5));
        for n in 0..10 {
            answers.put([n; 32], n);
            assert_eq!(answers.get(&[n; 32]), Some(n));
        }
        assert_eq!(lock(&answers.answers).len(), 2);
    }
}
