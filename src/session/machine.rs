//! One session's life, as a pure machine: `acquire` and `handle` take the time and what happened,
//! and say what is to be done. No clock, no socket, no task, no log: a `for` loop can test it.
//!
//! Invariants, swept by `tests/sim.rs` over every step:
//! - `Start` is asked for once per generation, and only when nothing older runs.
//! - With a lease on a ready instance, nothing but its own death leads to `Stop`.
//! - A message of another generation, and a timer that is early, change nothing.

use std::{
    num::NonZeroU32,
    time::{Duration, Instant},
};

use super::{
    Admission, Depth, Effect, Endpoint, Event, Failure, Generation, Policy, Refusal, Rung,
};

/// The cooldown after the first failed wake, and the pause before the first retry of a stop;
/// both double with every further failure.
pub const BACKOFF_FIRST: Duration = Duration::from_secs(1);
/// The most that they grow to; also how long failures are remembered after a cooldown.
pub const BACKOFF_MAX: Duration = Duration::from_secs(60);

/// Where a session is in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing of ours runs.
    Asleep {
        /// How deep; `Removed` also for a session that never existed.
        depth: Depth,
        /// The end of the last activity: what the ladder counts from.
        idle_since: Instant,
        /// No wake before this, after a failed one.
        not_before: Option<Instant>,
    },
    /// `Start` was asked for; leases wait at the gate.
    Waking {
        /// Held requests.
        leases: u32,
        /// When the wake has failed.
        deadline: Option<Instant>,
    },
    /// In use.
    Awake {
        /// Where it listens.
        endpoint: Endpoint,
        /// When it got ready: what `min_awake` counts from.
        woke_at: Instant,
        /// Requests, streams and sockets that are open.
        leases: NonZeroU32,
        /// Those of them that are no activity.
        ignored: u32,
        /// The end of the last activity before: what idleness counts from when nobody but the
        /// ignored comes.
        since: Instant,
    },
    /// Ready, and nobody there.
    Idle {
        /// Where it listens.
        endpoint: Endpoint,
        /// When it got ready.
        woke_at: Instant,
        /// When the last lease was given back.
        since: Instant,
    },
    /// The only door out of a generation.
    Stopping {
        /// The depth asked for.
        to: Depth,
        /// The end of the last activity.
        idle_since: Instant,
        /// When to ask again; `None` while the engine is at it.
        retry_at: Option<Instant>,
        /// How often the engine has failed at it.
        attempts: u32,
        /// Whether it ends a failed wake: a cooldown follows.
        failed: bool,
        /// The generation that the waiting leases belong to.
        next: Generation,
        /// Held requests for `next`.
        leases: u32,
    },
}

impl State {
    /// The word used in logs, metrics and the admin API.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Asleep { .. } => "asleep",
            Self::Waking { .. } => "waking",
            Self::Awake { .. } => "awake",
            Self::Idle { .. } => "idle",
            Self::Stopping { .. } => "stopping",
        }
    }
}

/// Who asks for a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asker {
    /// A client: waits out a cooldown.
    Client,
    /// An operator: ignores it.
    Operator,
    /// One that a route ignores: wakes nothing, waits for nothing, and is no activity. What is
    /// awake does not sleep under it all the same.
    Ignored,
}

/// The answer to an operator's wish to put a session to sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SleepAnswer {
    /// It goes to sleep now.
    Begun,
    /// It is asleep that deep, or on its way.
    Already,
    /// So many leases hold it awake.
    InUse(u32),
}

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
        let State::Idle { woke_at, since, .. } = &self.state else { return None };
        let earliest = woke_at.checked_add(self.policy.min_awake)?;
        (earliest <= now).then_some(*since)
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
            State::Asleep { .. } => {
                self.start(self.generation.next(), 1, now, out);
                Admission::Wait(self.generation)
            }
            State::Waking { leases, .. } if held_max <= *leases => Admission::Refuse(Refusal::Full),
            State::Waking { leases, .. } => {
                *leases += 1;
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
                self.start(current.next(), 0, now, out);
            }
            (State::Asleep { .. }, Event::Timer) => self.asleep_timer(now, out),
            (State::Asleep { depth, .. }, Event::Retire) => {
                self.retired = true;
                if *depth < Depth::Stopped {
                    self.stop(Depth::Stopped, None, now, out);
                }
            }

            // ## Waking => Awake | Idle | Stopping
            (State::Waking { leases, .. }, Event::Started(endpoint))
                if endpoint.generation == current =>
            {
                self.failures = 0;
                out.push(Effect::Open(endpoint.clone()));
                self.state = match NonZeroU32::new(*leases) {
                    Some(leases) => {
                        State::Awake { endpoint, woke_at: now, leases, ignored: 0, since: now }
                    }
                    None => State::Idle { endpoint, woke_at: now, since: now },
                };
            }
            (State::Waking { .. }, Event::StartFailed(g, failure)) if g == current => {
                self.stop(Depth::Stopped, Some(failure), now, out);
            }
            (State::Waking { .. }, Event::Lost(g, _)) if g == current => {
                self.stop(Depth::Stopped, Some(Failure::Died), now, out);
            }
            (State::Waking { deadline: Some(at), .. }, Event::Timer) if *at <= now => {
                self.stop(Depth::Stopped, Some(Failure::Timeout), now, out);
            }
            (State::Waking { leases, .. }, Event::Release(g)) if g == current => {
                *leases = leases.saturating_sub(1);
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

            // ## Idle => Stopping
            (State::Idle { .. }, Event::Evict) => {
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
            State::Waking { deadline, .. } => *deadline,
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
            State::Idle { woke_at, since, .. } => {
                (*since, woke_at.checked_add(self.policy.min_awake)?, None)
            }
            State::Asleep { depth, idle_since, not_before } => {
                let earliest = not_before.map_or(Some(*idle_since), forgotten_at)?;
                (*idle_since, earliest, Some(*depth))
            }
            State::Waking { .. } | State::Awake { .. } | State::Stopping { .. } => return None,
        };
        let rung = self.policy.ladder.iter().find(|rung| above < Some(rung.to))?;
        Some((idle_since.checked_add(rung.after)?.max(earliest), rung.to))
    }

    /// The deepest rung whose time has come.
    fn due_rung(&self, now: Instant) -> Option<Rung> {
        let (at, to) = self.next_sleep()?;
        let (State::Idle { since: idle_since, .. } | State::Asleep { idle_since, .. }) =
            &self.state
        else {
            return None;
        };
        let idle = now.saturating_duration_since(*idle_since);
        let due = |rung: &&Rung| to <= rung.to && rung.after <= idle;
        self.policy.ladder.iter().rfind(due).copied().filter(|_| at <= now)
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

    fn start(&mut self, generation: Generation, leases: u32, now: Instant, out: &mut Vec<Effect>) {
        self.generation = generation;
        let deadline = now.checked_add(self.policy.wake_timeout);
        self.state = State::Waking { leases, deadline };
        out.push(Effect::Start(generation));
    }

    /// Enters the one door. `failure` is told to those who wait for the wake that ends here.
    fn stop(&mut self, to: Depth, failure: Option<Failure>, now: Instant, out: &mut Vec<Effect>) {
        let mut failed = false;
        let idle_since = match (&self.state, failure) {
            (State::Waking { .. }, Some(failure)) => {
                out.push(Effect::Fail(self.generation, failure));
                failed = !matches!(failure, Failure::Retired | Failure::PutToSleep);
                now
            }
            (State::Idle { since: idle_since, .. } | State::Asleep { idle_since, .. }, _) => {
                *idle_since
            }
            (State::Waking { .. } | State::Awake { .. } | State::Stopping { .. }, _) => now,
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
            self.start(next, leases, now, out);
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
