//! How many instances of each route exist, asleep ones included.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// The count.
#[derive(Debug, Default)]
pub(super) struct Existing(Mutex<HashMap<Arc<str>, usize>>);

/// One instance; dropping it says that there is none any more.
#[derive(Debug)]
pub(super) struct Exists {
    all: Arc<Existing>,
    route: Arc<str>,
}

impl Existing {
    /// One more of at most `max`; `None` where there are as many.
    pub(super) fn add(self: &Arc<Self>, route: &Arc<str>, max: usize) -> Option<Exists> {
        let mut counts = self.lock();
        let count = counts.get(route).copied().unwrap_or(0);
        (count < max).then(|| {
            counts.insert(Arc::clone(route), count + 1);
            Exists { all: Arc::clone(self), route: Arc::clone(route) }
        })
    }

    pub(super) fn of_route(&self, route: &str) -> usize {
        self.lock().get(route).copied().unwrap_or(0)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Exists {
    pub(super) fn is_of(&self, route: &str) -> bool {
        *self.route == *route
    }
}

impl Drop for Exists {
    fn drop(&mut self) {
        let mut counts = self.all.lock();
        let left = counts.get(&self.route).map_or(0, |count| count.saturating_sub(1));
        if left == 0 {
            counts.remove(&self.route);
        } else {
            counts.insert(Arc::clone(&self.route), left);
        }
    }
}
