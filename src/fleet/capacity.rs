//! How many instances run, counted by route and by engine, and who waits for room.
//!
//! A session has a [`Place`] from the moment its start is asked for until it is asleep: whatever
//! fails, hangs or dies in between, the place is given back by the drop of the one value that
//! stands for it. A place that was claimed where there is no room is granted when there is.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

/// What is counted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Room {
    Route(Arc<str>),
    Engine(Arc<str>),
}

/// Where a place is, and how many there are there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Need {
    pub(super) route: Arc<str>,
    pub(super) engine: Arc<str>,
    pub(super) route_max: usize,
    pub(super) engine_max: usize,
}

impl Need {
    /// Each room with its limit.
    pub(super) fn rooms(&self) -> [(Room, usize); 2] {
        let route = (Room::Route(Arc::clone(&self.route)), self.route_max);
        [route, (Room::Engine(Arc::clone(&self.engine)), self.engine_max)]
    }

    /// Whether one place serves for both, whatever the limits are now.
    pub(super) fn is_same_place(&self, other: &Self) -> bool {
        self.route == other.route && self.engine == other.engine
    }

    pub(super) fn is_in(&self, room: &Room) -> bool {
        match room {
            Room::Route(route) => *route == self.route,
            Room::Engine(engine) => *engine == self.engine,
        }
    }
}

/// The count.
#[derive(Debug, Default)]
pub(super) struct Capacity(Mutex<Rooms>);

#[derive(Debug, Default)]
struct Rooms {
    /// A room without a place taken has no entry.
    taken: HashMap<Room, usize>,
    /// In the order that they came. As many as there are sessions about to make room for them.
    waiting: VecDeque<Waiting>,
    next: u64,
}

#[derive(Debug)]
struct Waiting {
    number: u64,
    need: Need,
    granted: watch::Sender<bool>,
}

/// One instance's place, or the claim to one.
#[derive(Debug)]
pub(super) struct Place {
    capacity: Arc<Capacity>,
    number: u64,
    need: Need,
    granted: watch::Receiver<bool>,
}

impl Capacity {
    /// A place at once, or the room that is full.
    pub(super) fn take(self: &Arc<Self>, need: &Need) -> Result<Place, Room> {
        let mut rooms = self.lock();
        match rooms.full(need) {
            Some(room) => Err(room),
            None => Ok(self.granted(&mut rooms, need)),
        }
    }

    /// A place whatever the limits say: for what runs already.
    pub(super) fn force(self: &Arc<Self>, need: &Need) -> Place {
        let mut rooms = self.lock();
        self.granted(&mut rooms, need)
    }

    /// A place as soon as there is room.
    pub(super) fn claim(self: &Arc<Self>, need: &Need) -> Place {
        let mut rooms = self.lock();
        if rooms.full(need).is_none() {
            return self.granted(&mut rooms, need);
        }
        let (granted, told) = watch::channel(false);
        let number = rooms.number();
        rooms.waiting.push_back(Waiting { number, need: need.clone(), granted });
        Place { capacity: Arc::clone(self), number, need: need.clone(), granted: told }
    }

    fn granted(self: &Arc<Self>, rooms: &mut Rooms, need: &Need) -> Place {
        rooms.add(need);
        let (number, granted) = (rooms.number(), watch::channel(true).1);
        Place { capacity: Arc::clone(self), number, need: need.clone(), granted }
    }

    /// How many places would have to be given back before all who wait for this room had one.
    pub(super) fn short(&self, room: &Room, max: usize) -> usize {
        let rooms = self.lock();
        let waiting = rooms.waiting.iter().filter(|waiting| waiting.need.is_in(room)).count();
        (rooms.count(room) + waiting).saturating_sub(max)
    }

    /// How many are taken.
    pub(super) fn count(&self, room: &Room) -> usize {
        self.lock().count(room)
    }

    /// Every room with a place taken.
    pub(super) fn counts(&self) -> HashMap<Room, usize> {
        self.lock().taken.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Rooms> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Rooms {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn count(&self, room: &Room) -> usize {
        self.taken.get(room).copied().unwrap_or(0)
    }

    fn full(&self, need: &Need) -> Option<Room> {
        let full = |(room, max): &(Room, usize)| *max <= self.count(room);
        need.rooms().into_iter().find(full).map(|(room, _)| room)
    }

    fn add(&mut self, need: &Need) {
        for (room, _) in need.rooms() {
            *self.taken.entry(room).or_default() += 1;
        }
    }

    fn remove(&mut self, need: &Need) {
        for (room, _) in need.rooms() {
            let left = self.count(&room).saturating_sub(1);
            if left == 0 {
                self.taken.remove(&room);
            } else {
                self.taken.insert(room, left);
            }
        }
        self.grant();
    }

    /// Whoever fits now gets a place, in the order that they came.
    fn grant(&mut self) {
        while let Some(at) = self.waiting.iter().position(|one| self.full(&one.need).is_none()) {
            let Some(Waiting { need, granted, .. }) = self.waiting.remove(at) else { return };
            self.add(&need);
            // A claim whose owner is just being dropped is given back by it.
            granted.send_replace(true);
        }
    }
}

impl Place {
    pub(super) fn need(&self) -> &Need {
        &self.need
    }

    /// Tells when it is granted.
    pub(super) fn granted(&self) -> watch::Receiver<bool> {
        self.granted.clone()
    }

    pub(super) fn is_granted(&self) -> bool {
        *self.granted.borrow()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut rooms = self.capacity.lock();
        let waiting = rooms.waiting.iter().position(|one| one.number == self.number);
        match waiting {
            Some(at) => drop(rooms.waiting.remove(at)),
            None => rooms.remove(&self.need),
        }
    }
}

#[cfg(test)]
mod tests;
