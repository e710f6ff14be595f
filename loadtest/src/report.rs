//! What is said about what was found: figures, comparisons, checks. The JSON of it is stable; the
//! README describes it.

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;
use serde_json::Value;

use crate::{
    conditions::Conditions,
    found::{Found, Served},
    metrics::{self, Unit},
    stats::{self, Interval, Series, Summary, median, median_interval},
    tally::Tally,
    threshold::{Figure, Threshold, Whose},
    watch::Seen,
};

pub mod html;
pub mod plot;
pub mod table;

/// Grows when a reader of an older report would misread a newer one.
pub const SCHEMA: u32 = 1;
/// What the floor is called among the servers.
pub const FLOOR: &str = "floor";
/// The figures of a distribution that servers are compared in.
const COMPARED: [&str; 5] = ["p50", "p90", "p95", "p99", "p99.9"];

/// A whole report.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The version of this shape.
    pub schema: u32,
    /// The scenario's name, or the command's.
    pub name: String,
    /// What the scenario is to show.
    pub promise: Option<String>,
    /// `cold`, `herd`, `warm`, `sockets` or `churn`.
    pub command: String,
    /// The distribution that `p99` alone means.
    pub main: String,
    /// How long the run took.
    pub seconds: f64,
    /// It was stopped, or ran out of time, before all was done.
    pub interrupted: bool,
    /// Where and how.
    pub conditions: Conditions,
    /// Every option.
    pub settings: Value,
    /// The target first.
    pub servers: Vec<Server>,
    /// The target against each peer.
    pub comparisons: Vec<Comparison>,
    /// What `--fail-if` asked.
    pub checks: Vec<Check>,
    /// What a reader must know.
    pub notes: Vec<String>,
}

/// What is said of one server.
#[derive(Clone, Debug, Serialize)]
pub struct Server {
    /// Its name.
    pub name: String,
    /// Where it was.
    pub url: String,
    /// Good answers.
    pub answers: u64,
    /// The others, by kind.
    pub errors: BTreeMap<String, u64>,
    /// Distributions.
    pub series: BTreeMap<String, Summary>,
    /// Single figures.
    pub values: BTreeMap<String, Figures>,
    /// Its processes, over time.
    pub seen: Vec<Seen>,
    #[serde(skip)]
    rounds: Vec<Tally>,
    #[serde(skip)]
    whole: Tally,
}

/// A single figure of several rounds.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    /// Of all that follow.
    pub unit: &'static str,
    /// The median of the rounds.
    pub median: f64,
    /// Each round's.
    pub rounds: Vec<f64>,
}

/// The target against one peer in one figure.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// The peer.
    pub peer: String,
    /// The figure.
    pub metric: String,
    /// Of the difference.
    pub unit: &'static str,
    /// The target's, divided by the peer's.
    pub ratio: Option<Interval>,
    /// The target's, less the peer's.
    pub difference: Option<Interval>,
}

/// One `--fail-if`.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// As it was written.
    pub expression: Threshold,
    /// What was measured; `None`: nothing was.
    pub value: Option<f64>,
    /// `ok`, `failed` or `not measured`.
    pub outcome: Outcome,
}

/// What came of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It is as it should be.
    Ok,
    /// It is not.
    Failed,
    /// Nobody knows.
    #[serde(rename = "not measured")]
    NotMeasured,
}

impl Report {
    /// Sums up what was found.
    pub fn new(
        name: &str,
        command: &str,
        found: Found,
        settings: Value,
        conditions: Conditions,
        took: Duration,
    ) -> Self {
        let servers: Vec<_> = found.servers.into_iter().map(Server::new).collect();
        let comparisons = match servers.split_first() {
            Some((target, peers)) => {
                peers.iter().flat_map(|peer| compare(target, peer, found.main)).collect()
            }
            None => Vec::new(),
        };
        Self {
            schema: SCHEMA,
            name: name.to_owned(),
            promise: None,
            command: command.to_owned(),
            main: found.main.to_owned(),
            seconds: took.as_secs_f64(),
            interrupted: false,
            conditions,
            settings,
            servers,
            comparisons,
            checks: Vec::new(),
            notes: found.notes,
        }
    }

    /// Checks what must not be.
    pub fn check(&mut self, thresholds: &[Threshold]) {
        for threshold in thresholds {
            let value = self.figure(threshold).filter(|value| value.is_finite());
            let outcome = match value.map(|value| threshold.fails(value)) {
                None => Outcome::NotMeasured,
                Some(true) => Outcome::Failed,
                Some(false) => Outcome::Ok,
            };
            self.checks.push(Check { expression: threshold.clone(), value, outcome });
        }
    }

    fn figure(&self, threshold: &Threshold) -> Option<f64> {
        let of_peer = |peer: &str| {
            let metric = match &threshold.figure {
                Figure::Value(name) => name.clone(),
                Figure::Stat(series, stat) => {
                    format!("{}.{stat}", series.as_deref().unwrap_or(&self.main))
                }
            };
            self.comparisons.iter().find(|c| c.peer == peer && c.metric == metric)
        };
        match &threshold.whose {
            Whose::Ratio(peer) => of_peer(peer)?.ratio.map(|ratio| ratio.value),
            Whose::Over(peer) => of_peer(peer)?.difference.map(|difference| difference.value),
            Whose::Own => {
                let target = self.servers.first()?;
                match &threshold.figure {
                    Figure::Value(name) => target.values.get(name).map(|figures| figures.median),
                    Figure::Stat(series, stat) => {
                        target.series.get(series.as_ref().unwrap_or(&self.main))?.stat(stat)
                    }
                }
            }
        }
    }

    /// Requests without a good answer that make the run a bad one: all of the target's and the
    /// floor's, and a peer's where they are more than one in a hundred: with few it is still a
    /// peer, and they are shown.
    pub fn errors(&self) -> u64 {
        let of = |(n, server): (usize, &Server)| {
            let errors: u64 = server.errors.values().sum();
            let own = n == 0 || server.name == FLOOR;
            if own || (errors + server.answers) / 100 < errors { errors } else { 0 }
        };
        self.servers.iter().enumerate().map(of).sum()
    }
}

impl Server {
    fn new(served: Served) -> Self {
        let mut whole = Tally::default();
        for round in &served.rounds {
            whole.merge(round.clone());
        }
        let series = whole.series.iter().filter_map(|(name, series)| {
            let unit = metrics::unit_of_series(name).unwrap_or(Unit::Millis);
            Some((name.clone(), series.summary(unit.as_str())?))
        });
        let errors = whole.faults();
        let all = (whole.answers + errors).max(1);
        let mut values = whole.values.clone();
        values.insert("answers".into(), vec![whole.answers as f64]);
        values.insert("errors".into(), vec![errors as f64]);
        values.insert("error-rate".into(), vec![errors as f64 / all as f64]);
        if let Some(peak) = served.seen.iter().map(|seen| seen.rss_bytes).max() {
            values.insert("rss-peak".into(), vec![peak as f64]);
        }
        let figures = values.into_iter().filter_map(|(name, rounds)| {
            let unit = metrics::unit_of_value(&name).map_or("", Unit::as_str);
            Some((name, Figures { unit, median: median(&rounds)?, rounds }))
        });
        Self {
            name: served.name,
            url: served.url,
            answers: whole.answers,
            errors: whole.faults.clone(),
            series: series.collect(),
            values: figures.collect(),
            seen: served.seen,
            rounds: served.rounds,
            whole,
        }
    }
}

/// Figures of rounds are compared round by round: the median of the rounds' ratios, with its rank
/// interval. Where every single value is kept, all are compared at once, with a bootstrap interval.
fn compare(target: &Server, peer: &Server, main: &str) -> Vec<Comparison> {
    let mut comparisons = Vec::new();
    let counted = ["answers", "errors", "error-rate"];
    for (name, ours) in target.values.iter().filter(|(name, _)| !counted.contains(&name.as_str())) {
        if let Some(theirs) = peer.values.get(name) {
            let (ratio, difference) = by_rounds(&ours.rounds, &theirs.rounds);
            let (peer, metric) = (peer.name.clone(), name.clone());
            comparisons.push(Comparison { peer, metric, unit: ours.unit, ratio, difference });
        }
    }
    for (name, ours) in &target.whole.series {
        let Some(theirs) = peer.whole.series.get(name) else { continue };
        let of_main = name == main;
        for stat in COMPARED.iter().filter(|stat| of_main || **stat == "p50") {
            let (ratio, difference) = match (ours, theirs) {
                (Series::Exact(a), Series::Exact(b)) => {
                    let q = stat[1..].parse::<f64>().expect("a percentile") / 100.0;
                    (stats::ratio_at(a, b, q), stats::difference_at(a, b, q))
                }
                _ => by_rounds(&of_rounds(target, name, stat), &of_rounds(peer, name, stat)),
            };
            let unit = metrics::unit_of_series(name).map_or("", Unit::as_str);
            let (peer, metric) = (peer.name.clone(), format!("{name}.{stat}"));
            comparisons.push(Comparison { peer, metric, unit, ratio, difference });
        }
    }
    comparisons
}

fn of_rounds(server: &Server, series: &str, stat: &str) -> Vec<f64> {
    let of = |tally: &Tally| tally.series.get(series)?.summary("")?.stat(stat);
    server.rounds.iter().map(|tally| of(tally).unwrap_or(f64::NAN)).collect()
}

fn by_rounds(ours: &[f64], theirs: &[f64]) -> (Option<Interval>, Option<Interval>) {
    let pairs = || ours.iter().zip(theirs).filter(|(a, b)| a.is_finite() && b.is_finite());
    let ratios: Vec<_> = pairs().filter(|(_, b)| **b != 0.0).map(|(a, b)| a / b).collect();
    let differences: Vec<_> = pairs().map(|(a, b)| a - b).collect();
    (median_interval(&ratios), median_interval(&differences))
}
