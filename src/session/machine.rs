//! One session's life, as a pure machine: `acquire` and `handle` take the time and what happened,
//! and say what is to be done. No clock, no socket, no task, no log: a `for` loop can test it.
//!
//! Invariants, swept by `tests/sim.rs` over every step:
//! - `Start` is asked for once per generation, and only when nothing older runs.
//! - With a lease on a ready instance, nothing but its own death leads to `Stop`.
//! - What was found running is stopped by idleness, an operator, its route or another session's
//!   need, and never because it is not ready.
//! - A message of another generation, and a timer that is early, change nothing.

use std::{
    num::NonZeroU32,
    time::{Duration, Instant},
};

use super::{
    Admission, Depth, Effect, Endpoint, Event, Failure, Generation, Policy, Refusal, Rung,
};

mod state;

pub use state::{Asker, SleepAnswer, State, Way};

/// The cooldown after the first failed wake, and the pause before the first retry of a stop;
/// both double with every further failure.
pub const BACKOFF_FIRST: Duration = Duration::from_secs(1);
/// The most that they grow to; also how long failures are remembered after a cooldown.
pub const BACKOFF_MAX: Duration = Duration::from_secs(60);

/// The machine.
#[derive(Clone, Debug)]
pub struct Session {
    policy: Policy,
    state: State,
    /// The generation of everything not asleep; the last one used when asleep.
    generation: Generation,
    retired: bool,
    /// Failed wakes in a row.
    failures: u32,
    /// How deep it is to sleep once it has stopped, when that is deeper than the stop under way.
    then: Option<Depth>,
}

impl Session {
    /// A session asleep at `depth`; `last` is the highest generation ever seen.
    pub fn new(policy: Policy, last: Generation, depth: Depth, now: Instant) -> Self {
        let state = State::Asleep { depth, idle_since: now, not_before: None };
        Self { policy, state, generation: last, retired: false, failures: 0, then: None }
    }

    /// Where it is.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// How deep it sleeps, or is going to.
    pub fn depth(&self) -> Option<Depth> {
        match &self.state {
            State::Asleep { depth, .. } => Some(*depth),
            State::Stopping { to, .. } => Some(*to),
            State::Waking { .. } | State::Awake { .. } | State::Idle { .. } => None,
        }
    }

    /// The generation of what is not asleep; of what last was, when asleep.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Whether its route is gone.
    pub fn is_retired(&self) -> bool {
        self.retired
    }

    /// Open leases, waiting ones included.
    pub fn leases(&self) -> u32 {
        match &self.state {
            State::Asleep { .. } | State::Idle { .. } => 0,
            State::Waking { leases, .. } | State::Stopping { leases, .. } => *leases,
            State::Awake { leases, .. } => leases.get(),
        }
    }

    /// Whether forgetting the session would lose nothing: asleep at `deepest` or deeper, and no
    /// failure to remember.
    pub fn is_blank(&self, deepest: Depth) -> bool {
        matches!(self.state, State::Asleep { depth, not_before: None, .. } if deepest <= depth)
    }

    /// Whether a lease would begin a wake: now, or when the stop under way has ended.
    pub fn would_wake(&self, asker: Asker, now: Instant) -> bool {
        let patient = asker == Asker::Client;
        let wakes = match &self.state {
            State::Asleep { not_before, .. } => {
                !patient || not_before.is_none_or(|not_before| not_before <= now)
            }
            State::Stopping { retry_at: None, failed, leases: 0, .. } => !patient || !failed,
            _ => false,
        };
        wakes && !self.retired && asker != Asker::Ignored
    }

    /// Whether as many requests are held as its route allows.
    pub fn is_full(&self) -> bool {
        let held = matches!(self.state, State::Waking { .. } | State::Stopping { .. });
        held && self.policy.held_max <= self.leases()
    }

    /// Since when nobody has used it, if it may make room for another one now.
    pub fn evictable(&self, now: Instant) -> Option<Instant> {
        let (since, earliest) = self.unused()?;
        (earliest <= now).then_some(since)
    }

    /// Whether it runs and is not ready, and is not being started.
    pub fn is_found(&self) -> bool {
        matches!(self.state, State::Waking { way: Way::Found { .. }, .. })
    }

    /// Its route has a new policy, or is back.
    pub fn adopt_policy(&mut self, policy: Policy) {
        self.policy = policy;
        self.retired = false;
    }

    /// Asks for a lease.
    pub fn acquire(&mut self, asker: Asker, now: Instant, out: &mut Vec<Effect>) -> Admission {
        if self.retired {
            return Admission::Refuse(Refusal::Retired);
        }
        let ignored = u32::from(asker == Asker::Ignored);
        if 0 < ignored && !matches!(self.state, State::Awake { .. } | State::Idle { .. }) {
            return Admission::Refuse(Refusal::Asleep);
        }
        let held_max = self.policy.held_max;
        let patient = asker == Asker::Client;
        match &mut self.state {
            State::Asleep { not_before: Some(at), .. } if patient && now < *at => {
                Admission::Refuse(Refusal::CoolingDown(*at))
            }
            State::Asleep { depth, .. } => {
                let depth = *depth;
                self.generation = self.generation.next();
                self.start(1, depth, now, out);
                Admission::Wait(self.generation)
            }
            State::Waking { leases, .. } if held_max <= *leases => Admission::Refuse(Refusal::Full),
            State::Waking { leases, way } => {
                *leases += 1;
                if let Way::Found { look_at: Some(at), .. } = way {
                    *at = (*at).min(now + BACKOFF_FIRST);
                }
                Admission::Wait(self.generation)
            }
            State::Awake { endpoint, leases, ignored: others, .. } => {
                *leases = leases.saturating_add(1);
                *others = others.saturating_add(ignored);
                Admission::Ready(endpoint.clone())
            }
            State::Idle { endpoint, woke_at, since } => {
                let (endpoint, woke_at, since) = (endpoint.clone(), *woke_at, *since);
                let leases = NonZeroU32::MIN;
                let ready = Admission::Ready(endpoint.clone());
                self.state = State::Awake { endpoint, woke_at, leases, ignored, since };
                ready
            }
            State::Stopping { retry_at: Some(at), .. } => {
                Admission::Refuse(Refusal::StopFailing(*at))
            }
            State::Stopping { failed: true, .. } if patient => {
                Admission::Refuse(Refusal::CoolingDown(now + backoff(self.failures)))
            }
            State::Stopping { leases, .. } if held_max <= *leases => {
                Admission::Refuse(Refusal::Full)
            }
            State::Stopping { leases, next, .. } => {
                *leases += 1;
                Admission::Wait(*next)
            }
        }
    }

    /// An operator wants it asleep at least `to` deep.
    pub fn sleep(&mut self, to: Depth, now: Instant, out: &mut Vec<Effect>) -> SleepAnswer {
        match &self.state {
            State::Asleep { depth, .. } if to <= *depth => SleepAnswer::Already,
            State::Stopping { to: under_way, leases: 0, .. } => {
                if to <= *under_way || Some(to) <= self.then {
                    return SleepAnswer::Already;
                }
                self.then = Some(to);
                SleepAnswer::Begun
            }
            State::Asleep { .. } | State::Waking { leases: 0, .. } | State::Idle { .. } => {
                self.stop(to, Some(Failure::PutToSleep), now, out);
                SleepAnswer::Begun
            }
            State::Waking { .. } | State::Awake { .. } | State::Stopping { .. } => {
                SleepAnswer::InUse(self.leases())
            }
        }
    }

    /// Something happened.
    pub fn handle(&mut self, event: Event, now: Instant, out: &mut Vec<Effect>) {
        let current = self.generation;
        match (&mut self.state, event) {
            // ## Asleep => Asleep | Waking | Stopping
            (State::Asleep { depth, .. }, Event::Lost(g, found)) if g == current => *depth = found,
            (State::Asleep { .. }, Event::Found) if !self.retired => {
                self.generation = current.next();
                self.state = State::Waking { leases: 0, way: found(now) };
                out.push(Effect::Start(self.generation));
            }
            (State::Asleep { .. }, Event::Timer) => self.asleep_timer(now, out),
            (State::Asleep { depth, .. }, Event::Retire) => {
                self.retired = true;
                if *depth < Depth::Stopped {
                    self.stop(Depth::Stopped, None, now, out);
                }
            }

            // ## Waking => Waking | Awake | Idle | Stopping
            (State::Waking { way: Way::Boot { began, deadline, .. }, .. }, Event::Begun(g))
                if g == current =>
            {
                let most = self.policy.wake_timeout.max(self.policy.boot_max);
                *deadline = began.checked_add(most);
            }
            (State::Waking { way: way @ Way::Boot { .. }, .. }, Event::RunsAlready(g))
                if g == current =>
            {
                *way = found(now);
            }
            (State::Waking { .. }, Event::Started(endpoint)) if endpoint.generation == current => {
                self.started(endpoint, now, out);
            }
            (State::Waking { way, .. }, Event::StartFailed(g, failure)) if g == current => {
                match way {
                    Way::Found { .. } => self.not_reached(failure, now, out),
                    Way::Boot { resumes: true, .. } if failure == Failure::EngineRefused => {
                        self.stop(Depth::Stopped, None, now, out);
                    }
                    Way::Boot { .. } => self.stop(Depth::Stopped, Some(failure), now, out),
                }
            }
            (State::Waking { way, .. }, Event::Lost(g, depth)) if g == current => match way {
                Way::Found { .. } => self.stop(depth, None, now, out),
                Way::Boot { resumes: true, .. } => self.stop(Depth::Stopped, None, now, out),
                Way::Boot { .. } => self.stop(Depth::Stopped, Some(Failure::Died), now, out),
            },
            (State::Waking { way, .. }, Event::Timer) => match way {
                Way::Boot { deadline: Some(at), .. } if *at <= now => {
                    self.stop(Depth::Stopped, Some(Failure::Timeout), now, out);
                }
                Way::Boot { .. } => {}
                Way::Found { .. } => match self.due_rung(now) {
                    Some(rung) => self.stop(rung.to, None, now, out),
                    None => self.look(now, out),
                },
            },
            (State::Waking { leases, way }, Event::Release(g)) if g == current => {
                *leases = leases.saturating_sub(1);
                if let Way::Found { since, .. } = way {
                    *since = now;
                }
            }
            (State::Waking { .. }, Event::Retire) => {
                self.retired = true;
                self.stop(Depth::Stopped, Some(Failure::Retired), now, out);
            }

            // ## Awake => Awake | Idle | Stopping
            (State::Awake { since, .. }, Event::Release(g)) if g == current => {
                *since = now;
                self.released(now, out);
            }
            (State::Awake { ignored, .. }, Event::ReleaseIgnored(g)) if g == current => {
                *ignored = ignored.saturating_sub(1);
                self.released(now, out);
            }
            (State::Awake { .. } | State::Idle { .. }, Event::Lost(g, found)) if g == current => {
                self.stop(found, None, now, out);
            }

            // ## Idle, and what was found => Stopping
            (State::Idle { .. } | State::Waking { .. }, Event::Evict) => {
                if self.evictable(now).is_some() {
                    self.stop(Depth::Stopped, None, now, out);
                }
            }
            (State::Idle { .. }, Event::Timer) => {
                if let Some(rung) = self.due_rung(now) {
                    self.stop(rung.to, None, now, out);
                }
            }
            (State::Idle { .. }, Event::Retire) => {
                self.retired = true;
                self.stop(Depth::Stopped, None, now, out);
            }

            // ## Stopping => Stopping | Asleep | Waking
            (State::Stopping { .. }, Event::Stopped(g)) if g == current => self.stopped(now, out),
            (State::Stopping { retry_at, attempts, next, leases, .. }, Event::StopFailed(g))
                if g == current =>
            {
                *attempts = attempts.saturating_add(1);
                *retry_at = now.checked_add(backoff(*attempts));
                fail_waiting(next, leases, Failure::StopFailing, out);
            }
            (State::Stopping { retry_at, to, .. }, Event::Timer)
                if retry_at.is_some_and(|at| at <= now) =>
            {
                *retry_at = None;
                out.push(Effect::Stop(current, *to));
            }
            (State::Stopping { next, leases, .. }, Event::Release(g)) if g == *next => {
                *leases = leases.saturating_sub(1);
            }
            (State::Stopping { next, leases, .. }, Event::Retire) => {
                self.retired = true;
                self.then = self.then.max(Some(Depth::Stopped));
                fail_waiting(next, leases, Failure::Retired, out);
            }

            (State::Awake { .. }, Event::Retire) => self.retired = true,

            // Everything else is stale: of another generation, or a timer that has moved.
            (
                _,
                Event::Release(_)
                | Event::ReleaseIgnored(_)
                | Event::Evict
                | Event::Begun(_)
                | Event::RunsAlready(_)
                | Event::Started(_)
                | Event::StartFailed(..)
                | Event::Stopped(_)
                | Event::StopFailed(_)
                | Event::Lost(..)
                | Event::Found
                | Event::Timer,
            ) => {}
        }
    }

    /// When `Event::Timer` is next wanted. Earlier is harmless.
    pub fn deadline(&self) -> Option<Instant> {
        match &self.state {
            State::Waking { way: Way::Boot { deadline, .. }, .. } => *deadline,
            State::Waking { way: Way::Found { look_at, .. }, .. } => {
                let sleep = self.next_sleep().map(|(at, _)| at);
                look_at.iter().copied().chain(sleep).min()
            }
            State::Awake { .. } => None,
            State::Stopping { retry_at, .. } => *retry_at,
            State::Idle { .. } => self.next_sleep().map(|(at, _)| at),
            State::Asleep { not_before, .. } => {
                let forget = not_before.and_then(forgotten_at);
                let deeper = self.next_sleep().map(|(at, _)| at);
                forget.into_iter().chain(deeper).min()
            }
        }
    }

    /// When the ladder will next be stepped down, and to which depth.
    pub fn next_sleep(&self) -> Option<(Instant, Depth)> {
        let (idle_since, earliest, above) = match &self.state {
            State::Asleep { depth, idle_since, not_before } => {
                let earliest = not_before.map_or(Some(*idle_since), forgotten_at)?;
                (*idle_since, earliest, Some(*depth))
            }
            _ => {
                let (since, earliest) = self.unused()?;
                (since, earliest, None)
            }
        };
        let rung = self.policy.ladder.iter().find(|rung| above < Some(rung.to))?;
        Some((idle_since.checked_add(rung.after)?.max(earliest), rung.to))
    }

    /// Since when nobody has used what runs, and when it may sleep at the earliest.
    fn unused(&self) -> Option<(Instant, Instant)> {
        let (since, from, least) = match &self.state {
            State::Idle { woke_at, since, .. } => (since, woke_at, self.policy.min_awake),
            State::Waking { leases: 0, way: Way::Found { at, since, .. } } => {
                // It may be in the middle of a wake that an edge before this one began.
                (since, at, self.policy.min_awake.max(self.policy.wake_timeout))
            }
            _ => return None,
        };
        Some((*since, from.checked_add(least)?))
    }

    /// The deepest rung whose time has come.
    fn due_rung(&self, now: Instant) -> Option<Rung> {
        let (at, to) = self.next_sleep()?;
        let idle = now.saturating_duration_since(self.idle_since(now));
        let due = |rung: &&Rung| to <= rung.to && rung.after <= idle;
        self.policy.ladder.iter().rfind(due).copied().filter(|_| at <= now)
    }

    /// The end of the last activity.
    fn idle_since(&self, now: Instant) -> Instant {
        match &self.state {
            State::Idle { since, .. } | State::Asleep { idle_since: since, .. } => *since,
            State::Waking { leases: 0, way: Way::Found { since, .. } } => *since,
            State::Waking { .. } | State::Awake { .. } | State::Stopping { .. } => now,
        }
    }

    fn asleep_timer(&mut self, now: Instant, out: &mut Vec<Effect>) {
        if let State::Asleep { not_before, .. } = &mut self.state
            && not_before.and_then(forgotten_at).is_some_and(|at| at <= now)
        {
            *not_before = None;
            self.failures = 0;
        }
        if let Some(rung) = self.due_rung(now) {
            self.stop(rung.to, None, now, out);
        }
    }

    /// One lease less on what is awake.
    fn released(&mut self, now: Instant, out: &mut Vec<Effect>) {
        let State::Awake { endpoint, woke_at, leases, since, .. } = &mut self.state else { return };
        match NonZeroU32::new(leases.get() - 1) {
            Some(left) => *leases = left,
            None if self.retired => self.stop(Depth::Stopped, None, now, out),
            None => {
                let (endpoint, woke_at, since) = (endpoint.clone(), *woke_at, *since);
                self.state = State::Idle { endpoint, woke_at, since };
            }
        }
    }

    /// Begins a wake from a sleep of `depth`.
    fn start(&mut self, leases: u32, depth: Depth, now: Instant, out: &mut Vec<Effect>) {
        let deadline = now.checked_add(self.policy.wake_timeout);
        let way = Way::Boot { began: now, deadline, resumes: depth < Depth::Stopped };
        self.state = State::Waking { leases, way };
        out.push(Effect::Start(self.generation));
    }

    /// What was waking is ready.
    fn started(&mut self, endpoint: Endpoint, now: Instant, out: &mut Vec<Effect>) {
        let State::Waking { leases, way } = &self.state else { return };
        let (woke_at, since) = match way {
            Way::Boot { .. } => (now, now),
            Way::Found { at, since, .. } => (*at, *since),
        };
        self.failures = 0;
        out.push(Effect::Open(endpoint.clone()));
        self.state = match NonZeroU32::new(*leases) {
            Some(leases) => State::Awake { endpoint, woke_at, leases, ignored: 0, since },
            None => State::Idle { endpoint, woke_at, since },
        };
    }

    /// The engine cannot say where what was found is: it stays, and is asked for again.
    fn not_reached(&mut self, failure: Failure, now: Instant, out: &mut Vec<Effect>) {
        let State::Waking { leases, way: Way::Found { since, look_at, attempts, .. } } =
            &mut self.state
        else {
            return;
        };
        if 0 < std::mem::take(leases) {
            out.push(Effect::Fail(self.generation, failure));
            *since = now;
        }
        *attempts = attempts.saturating_add(1);
        *look_at = now.checked_add(backoff(*attempts));
        // The late release of a lease that was failed must be stale.
        self.generation = self.generation.next();
    }

    /// Asks the engine again where what was found is, when it is time to: all of
    /// [`Event::Timer`] that puts nothing to sleep.
    pub fn look(&mut self, now: Instant, out: &mut Vec<Effect>) {
        if let State::Waking { way: Way::Found { look_at, .. }, .. } = &mut self.state
            && look_at.is_some_and(|at| at <= now)
        {
            *look_at = None;
            out.push(Effect::Start(self.generation));
        }
    }

    /// Enters the one door. Those who wait for a wake that ends here are told why by `failure`;
    /// without one they ask again.
    fn stop(&mut self, to: Depth, failure: Option<Failure>, now: Instant, out: &mut Vec<Effect>) {
        let idle_since = self.idle_since(now);
        let failed = match (&self.state, failure) {
            (State::Waking { .. }, Some(failure)) => {
                out.push(Effect::Fail(self.generation, failure));
                !matches!(failure, Failure::Retired | Failure::PutToSleep)
            }
            (State::Waking { leases: 1.., .. }, None) => {
                out.push(Effect::Rejoin(self.generation));
                false
            }
            _ => false,
        };
        if let State::Asleep { .. } = self.state {
            // A deeper sleep has a number of its own: a late answer to the lighter one is stale.
            self.generation = self.generation.next();
        }
        self.failures = if failed { self.failures.saturating_add(1) } else { 0 };
        self.state = State::Stopping {
            to,
            idle_since,
            retry_at: None,
            attempts: 0,
            failed,
            next: self.generation.next(),
            leases: 0,
        };
        out.push(Effect::Stop(self.generation, to));
    }

    fn stopped(&mut self, now: Instant, out: &mut Vec<Effect>) {
        let State::Stopping { to, idle_since, failed, next, leases, .. } = self.state else {
            return;
        };
        let then = self.then.take();
        if 0 < leases {
            self.generation = next;
            self.start(leases, to, now, out);
            return;
        }
        // `next` may have moved past leases that were failed; their late releases must stay stale.
        self.generation = Generation(next.0 - 1);
        let not_before = if failed { now.checked_add(backoff(self.failures)) } else { None };
        self.state = State::Asleep { depth: to, idle_since, not_before };
        if let Some(deeper) = then.filter(|then| to < *then) {
            self.stop(deeper, None, now, out);
        }
    }
}

/// What runs already.
fn found(now: Instant) -> Way {
    Way::Found { at: now, since: now, look_at: None, attempts: 0 }
}

/// Everybody who waits behind a stop is told why; who comes later leases another generation, so
/// that the release of a failed lease never counts against a living one.
fn fail_waiting(next: &mut Generation, leases: &mut u32, failure: Failure, out: &mut Vec<Effect>) {
    if 0 < std::mem::take(leases) {
        out.push(Effect::Fail(*next, failure));
        *next = next.next();
    }
}

/// When failed wakes are no longer remembered. Until then the ladder waits: a step down it ends in
/// a fresh `Asleep`, and would cut the cooldown short.
fn forgotten_at(not_before: Instant) -> Option<Instant> {
    not_before.checked_add(BACKOFF_MAX)
}

/// Doubles from `BACKOFF_FIRST` with each failure, up to `BACKOFF_MAX`.
fn backoff(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    BACKOFF_FIRST.saturating_mul(1 << doublings).min(BACKOFF_MAX)
}

#[cfg(test)]
mod tests;
