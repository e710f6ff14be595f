//! How work is carried out: against several servers in turn, bounded, and so that Ctrl-C loses
//! nothing. Knows no work.

use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::{
    tally::Tally,
    target::{Reach, Target},
};

/// What the target is called, unless it is `NAME=URL`.
const OWN: &str = "target";

/// Who else is measured.
#[derive(Clone, Debug, Default, clap::Args, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Peers {
    /// The same work against another server, in turn with the first: `[NAME=]URL`. Several allowed.
    #[arg(long, value_name = "[NAME=]URL")]
    pub compare: Vec<String>,
    /// Connect to a server of --compare here instead of where its URL's host resolves to.
    #[arg(long, value_name = "NAME=ADDRESS:PORT")]
    pub compare_connect: Vec<String>,
    /// The server's process ids, comma-separated: its memory, descriptors and CPU are recorded.
    #[arg(long, value_name = "PID,…")]
    pub pid: Option<String>,
    /// The same for a server of --compare.
    #[arg(long, value_name = "NAME=PID,…")]
    pub compare_pid: Vec<String>,
}

impl Peers {
    /// The target, and whom it is compared with.
    pub fn targets(&self, url: &str, reach: &Reach) -> anyhow::Result<Vec<Target>> {
        let mut targets = vec![Target::new(url, reach, OWN)?];
        for (n, text) in self.compare.iter().enumerate() {
            // A peer is another server: --connect is the target's alone.
            let reach = Reach { connect: None, ..reach.clone() };
            let peer = Target::new(text, &reach, &format!("peer{}", n + 1))?;
            let own = self.compare_connect.iter().filter_map(|text| text.split_once('='));
            let mut own = own.filter(|(name, _)| *name == peer.name).map(|(_, at)| at.to_owned());
            let reach = Reach { connect: own.next_back(), ..reach };
            targets.push(Target::new(text, &reach, &peer.name)?);
        }
        for (name, pids) in self.pids()? {
            let at = targets.iter().position(|target| target.name == name);
            let at = at.or((name == OWN).then_some(0));
            let at = at.with_context(|| format!("no --compare is called `{name}`"))?;
            targets[at].pids = pids;
        }
        let mut names: Vec<_> = targets.iter().map(|target| &target.name).collect();
        names.sort();
        names.dedup();
        ensure!(names.len() == targets.len(), "two servers have one name");
        Ok(targets)
    }

    /// The processes of each server that has any.
    pub fn pids(&self) -> anyhow::Result<Vec<(String, Vec<i32>)>> {
        let own = self.pid.as_deref().map(|list| Ok((OWN, list)));
        let peers = self
            .compare_pid
            .iter()
            .map(|text| text.split_once('=').context("--compare-pid is NAME=PID"));
        own.into_iter()
            .chain(peers)
            .map(|entry| entry.and_then(|(name, list)| Ok((name.to_owned(), pids(list)?))))
            .collect()
    }
}

fn pids(list: &str) -> anyhow::Result<Vec<i32>> {
    let words = list.split(',').map(str::trim).filter(|word| !word.is_empty());
    words.map(|pid| pid.parse().with_context(|| format!("`{pid}` is no process id"))).collect()
}

/// A run in progress.
#[derive(Clone, Debug)]
pub struct Run {
    /// Cancelled when there is to be no more work; what was measured so far counts.
    pub stop: CancellationToken,
    /// For the person who waits.
    pub bar: ProgressBar,
    /// Of everything random.
    pub seed: u64,
    /// When it began.
    pub began: Instant,
}

impl Run {
    /// A run whose progress is drawn on a terminal's stderr, if that is one.
    pub fn new(seed: u64, quiet: bool) -> Self {
        let bar = ProgressBar::no_length();
        let style = ProgressStyle::with_template("{elapsed_precise} {wide_bar} {pos}/{len} {msg}");
        bar.set_style(style.expect("a constant template"));
        if quiet || !std::io::stderr().is_terminal() {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        Self { stop: CancellationToken::new(), bar, seed, began: Instant::now() }
    }

    /// Whether to go on.
    pub fn goes_on(&self) -> bool {
        !self.stop.is_cancelled()
    }

    /// `future`, or nothing when the run is stopped first.
    pub async fn unless_stopped<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => None,
            done = future => Some(done),
        }
    }

    /// Waits, unless the run is stopped first.
    pub async fn nap(&self, time: Duration) {
        self.unless_stopped(tokio::time::sleep(time)).await;
    }

    /// `rounds` rounds of all `servers`, one after the other: A B, B A, A B … What any of them
    /// suffers from the machine, or leaves behind on it, the others do too.
    pub async fn in_turn(
        &self,
        servers: usize,
        rounds: usize,
        mut round: impl AsyncFnMut(usize, usize) -> Tally,
    ) -> Vec<Vec<Tally>> {
        self.bar.set_length((servers * rounds) as u64);
        self.bar.set_position(0);
        let mut tallies = vec![Vec::new(); servers];
        for n in 0..rounds {
            let mut order: Vec<_> = (0..servers).collect();
            order.rotate_left(n % servers);
            for server in order {
                if self.goes_on() {
                    tallies[server].push(round(server, n).await);
                    self.bar.inc(1);
                }
            }
        }
        tallies
    }
}
