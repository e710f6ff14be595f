//! The states of a session, and the words of who asks it for something.

use std::{num::NonZeroU32, time::Instant};

use crate::session::{Depth, Endpoint, Generation};

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
    /// `Start` was asked for, or what runs is not ready; leases wait at the gate.
    Waking {
        /// Held requests.
        leases: u32,
        /// What it comes from, and what may end it.
        way: Way,
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

/// How what is waking came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// It is being started.
    Boot {
        /// When the wake began.
        began: Instant,
        /// When it has failed.
        deadline: Option<Instant>,
        /// From a sleep that kept its memory: where that fails, a deeper wake may not.
        resumes: bool,
    },
    /// It ran already. Whether it gets ready or not, it ends as what is idle does, and no other way.
    Found {
        /// When: what `min_awake` counts from.
        at: Instant,
        /// The end of the last activity.
        since: Instant,
        /// When its engine is asked again where it is; `None` while the engine is at it.
        look_at: Option<Instant>,
        /// How often the engine could not say so.
        attempts: u32,
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
