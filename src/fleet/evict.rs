//! Room for one more: whoever was idle the longest goes to sleep for it.

use std::{
    sync::{Arc, PoisonError, atomic::Ordering},
    time::Instant,
};

use super::{
    Fleet,
    capacity::{Need, Room},
    cell::{Cell, Core},
};
use crate::{
    metrics::METRICS,
    session::{Event, machine::State},
};

impl Fleet {
    /// Sees to it that a place will be free for a claim that is waiting, where its route or its
    /// engine is full; whether it will. Nobody is put to sleep who has a lease, or who woke less
    /// than `idle.min_awake` ago.
    pub(super) fn make_place(&self, need: &Need) -> bool {
        if !self.may_sleep.load(Ordering::Acquire) {
            // Another process may hold leases on any of them.
            return false;
        }
        // One at a time: two that look together would count the same one's leaving twice.
        let _one = self.evicting.lock().unwrap_or_else(PoisonError::into_inner);
        need.rooms().iter().all(|(room, max)| self.make_room_in(room, *max))
    }

    fn make_room_in(&self, room: &Room, max: usize) -> bool {
        let short = self.capacity.short(room, max);
        if short == 0 {
            return true;
        }
        let (idle, leaving) = self.look_for_idle(room);
        // Their places come back without our doing.
        let wanted = short.saturating_sub(leaving);
        if idle.len() < wanted {
            return false;
        }
        let mut evicted = 0;
        for (_, _, cell) in idle {
            if wanted <= evicted {
                break;
            }
            evicted += usize::from(self.evict(&cell));
        }
        wanted <= evicted
    }

    /// Who could go, the longest idle first; and how many are going.
    fn look_for_idle(&self, room: &Room) -> (Vec<(Instant, u64, Arc<Cell>)>, usize) {
        let now = tokio::time::Instant::now().into_std();
        let running = self.lock_running().clone();
        let (mut idle, mut leaving) = (Vec::new(), 0);
        for cell in running.values().filter_map(|cell| cell.upgrade()) {
            let core = cell.lock();
            if !core.place.as_ref().is_some_and(|place| place.need().is_in(room)) {
                continue;
            }
            leaving += usize::from(is_leaving(&core));
            if let Some(since) = core.machine.evictable(now) {
                drop(core);
                idle.push((since, cell.id, cell));
            }
        }
        idle.sort_unstable_by_key(|(since, id, _)| (*since, *id));
        (idle, leaving)
    }

    /// Whether it goes: somebody may have come since it was looked at.
    fn evict(&self, cell: &Arc<Cell>) -> bool {
        let engine = self.apply(cell, "evicted", |core, now, out| {
            core.machine.handle(Event::Evict, now, out);
            core.gives_way = !out.is_empty();
            core.gives_way.then(|| Arc::clone(&core.plan.engine))
        });
        if let Some(engine) = &engine {
            METRICS.evictions.with_label_values(&[&**engine]).inc();
        }
        engine.is_some()
    }
}

/// Whether its place comes back by itself. One whose stop has failed may run for long yet.
fn is_leaving(core: &Core) -> bool {
    let stopping = matches!(core.machine.state(), State::Stopping { attempts: 0, .. });
    stopping && (core.machine.leases() == 0 || core.next_place.is_some())
}
