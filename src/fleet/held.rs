//! The places for held requests, in all and of each route.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::Refusal;
use crate::metrics::METRICS;

/// The places.
#[derive(Debug)]
pub(super) struct HeldPlaces {
    max: usize,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    all: usize,
    /// A route of which nothing is held has no entry.
    routes: HashMap<Arc<str>, usize>,
}

/// A place. Dropping it gives it back.
#[derive(Debug)]
pub(super) struct HeldPlace {
    places: Arc<HeldPlaces>,
    route: Arc<str>,
}

impl HeldPlaces {
    pub(super) fn new(max: usize) -> Self {
        Self { max, held: Mutex::default() }
    }

    /// A place, of at most `route_max` of this route.
    pub(super) fn take(
        self: &Arc<Self>,
        route: &Arc<str>,
        route_max: usize,
    ) -> Result<HeldPlace, Refusal> {
        let mut held = self.lock();
        let of_route = held.routes.get(route).copied().unwrap_or(0);
        if route_max <= of_route {
            return Err(Refusal::RouteFull);
        }
        if self.max <= held.all {
            return Err(Refusal::HeldFull);
        }
        held.all += 1;
        held.routes.insert(Arc::clone(route), of_route + 1);
        METRICS.held.inc();
        Ok(HeldPlace { places: Arc::clone(self), route: Arc::clone(route) })
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for HeldPlace {
    fn drop(&mut self) {
        let mut held = self.places.lock();
        held.all = held.all.saturating_sub(1);
        let left = held.routes.get(&self.route).map_or(0, |held| held.saturating_sub(1));
        if left == 0 {
            held.routes.remove(&self.route);
        } else {
            held.routes.insert(Arc::clone(&self.route), left);
        }
        METRICS.held.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_is_full_before_all_are_and_leaves_nothing_behind() {
        let places = Arc::new(HeldPlaces::new(3));
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let of_a = [places.take(&a, 2).expect("room"), places.take(&a, 2).expect("room")];
        assert_eq!(places.take(&a, 2).expect_err("full"), Refusal::RouteFull);
        let of_b = places.take(&b, 2).expect("room");
        assert_eq!(places.take(&b, 2).expect_err("full"), Refusal::HeldFull);
        drop(of_a);
        let again = places.take(&a, 1).expect("room");
        assert_eq!(places.take(&a, 1).expect_err("full"), Refusal::RouteFull);
        drop((again, of_b));
        let held = places.lock();
        assert!(held.all == 0 && held.routes.is_empty());
    }
}
