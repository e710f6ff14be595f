//! The simulation's engine: one instance, and the fence. What it does is what `engine::Engine`
//! promises; when, and whether it says so, is up to the world in `sim.rs`.

use dormouse::session::{Depth, Generation};

/// The one instance of the one session.
#[derive(Debug)]
pub(crate) struct Engine {
    /// The highest generation whose mark it bears.
    pub(crate) mark: Generation,
    /// Started by somebody else after `mark` was made.
    pub(crate) foreign: bool,
    /// How deep it sleeps; `None` while it runs.
    pub(crate) asleep: Option<Depth>,
    fenced: Generation,
}

impl Engine {
    pub(crate) fn new() -> Self {
        let none = Generation(0);
        Self { mark: none, foreign: false, asleep: Some(Depth::Removed), fenced: none }
    }

    pub(crate) fn runs(&self) -> bool {
        self.asleep.is_none()
    }

    /// Whether the life of `generation` runs.
    pub(crate) fn runs_as(&self, generation: Generation) -> bool {
        self.runs() && !self.foreign && self.mark == generation
    }

    /// Whether `generation` runs now. Somebody else's instance is taken as it is.
    pub(crate) fn start(&mut self, generation: Generation) -> bool {
        if generation <= self.fenced {
            return false;
        }
        let second = self.runs() && !self.foreign && self.mark != generation;
        assert!(!second, "two lives: {generation} starts while {} runs", self.mark);
        (self.mark, self.foreign, self.asleep) = (generation, false, None);
        true
    }

    /// Ends `generation` and everything older; returns the life that ended. Newer is left alone.
    pub(crate) fn stop(&mut self, generation: Generation, to: Depth) -> Option<Generation> {
        self.fenced = self.fenced.max(generation);
        if generation < self.mark || (generation == self.mark && self.foreign) {
            return None;
        }
        let ended = self.runs().then_some(self.mark);
        self.asleep = self.asleep.max(Some(to));
        ended
    }

    /// It ends without anybody here asking.
    pub(crate) fn die(&mut self, found: Depth) {
        (self.asleep, self.foreign) = (Some(found), false);
    }

    /// Somebody else starts it, knowing nothing of generations.
    pub(crate) fn start_foreign(&mut self, current: Generation) {
        (self.mark, self.foreign, self.asleep) = (current, true, None);
    }
}

/// Small, seeded, and the same on every machine.
#[derive(Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % n
    }

    pub(crate) fn percent(&mut self, p: u64) -> bool {
        self.below(100) < p
    }
}
