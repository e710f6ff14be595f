//! What a command found, before anything is said about it.

use crate::{tally::Tally, target::Target, watch::Seen};

/// The result of one command.
#[derive(Debug, Default)]
pub struct Found {
    /// The distribution that `p99` alone means.
    pub main: &'static str,
    /// The target first, then its peers, then the floor.
    pub servers: Vec<Served>,
    /// What a reader must know.
    pub notes: Vec<String>,
}

/// One server, or the floor.
#[derive(Debug, Default)]
pub struct Served {
    /// What the report calls it.
    pub name: String,
    /// Where it was.
    pub url: String,
    /// One tally a round.
    pub rounds: Vec<Tally>,
    /// Its processes, over time.
    pub seen: Vec<Seen>,
}

impl Found {
    /// `tallies` of `targets`, in the same order.
    pub fn of(main: &'static str, targets: &[Target], tallies: Vec<Vec<Tally>>) -> Self {
        let served = targets.iter().zip(tallies).map(|(target, rounds)| Served {
            name: target.name.clone(),
            url: target.url.clone(),
            rounds,
            seen: Vec::new(),
        });
        Self { main, servers: served.collect(), notes: Vec::new() }
    }
}
