//! What numbers mean: ranks, intervals, slopes. Knows nothing of where they came from.

use hdrhistogram::Histogram;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde::Serialize;

/// The longest latency that is told apart from longer ones.
const LATENCY_MAX_NS: u64 = 3_600_000_000_000;
/// Resamples of a bootstrap.
const RESAMPLES: usize = 2000;
/// How sure an interval is meant to be.
pub const CONFIDENCE: f64 = 0.95;
/// The points of a curve: as many for the last per mille as for the first half.
const CURVE: [f64; 19] = [
    0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.975, 0.99, 0.995, 0.999,
    0.9999, 1.0,
];

/// A distribution: every value while there are few, an HdrHistogram when there are many.
#[derive(Clone, Debug)]
pub enum Series {
    /// Every value, in its own unit.
    Exact(Vec<f64>),
    /// Latencies in nanoseconds, to three significant digits; reported in milliseconds.
    Many(Box<Histogram<u64>>),
}

impl Series {
    /// An empty histogram of latencies.
    pub fn many() -> Self {
        let histogram = Histogram::new_with_bounds(1, LATENCY_MAX_NS, 3);
        Self::Many(Box::new(histogram.expect("constant bounds")))
    }

    /// Adds one latency.
    pub fn latency(&mut self, took: std::time::Duration) {
        match self {
            Self::Exact(values) => values.push(took.as_secs_f64() * 1e3),
            Self::Many(histogram) => {
                let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
                histogram.saturating_record(nanos.max(1));
            }
        }
    }

    /// Adds all of `other`.
    pub fn merge(&mut self, other: &Self) {
        match (self, other) {
            (Self::Exact(ours), Self::Exact(theirs)) => ours.extend(theirs),
            (Self::Many(ours), Self::Many(theirs)) => {
                ours.add(&**theirs).expect("the same bounds");
            }
            (Self::Many(ours), Self::Exact(theirs)) => {
                for value in theirs {
                    ours.saturating_record((value * 1e6) as u64);
                }
            }
            (ours @ Self::Exact(_), theirs @ Self::Many(_)) => {
                let mut all = theirs.clone();
                all.merge(ours);
                *ours = all;
            }
        }
    }

    /// What is reported of it; `None` when it is empty.
    pub fn summary(&self, unit: &'static str) -> Option<Summary> {
        match self {
            Self::Exact(values) => summary_of(values, unit),
            Self::Many(histogram) if histogram.is_empty() => None,
            Self::Many(histogram) => {
                let at = |q: f64| histogram.value_at_quantile(q) as f64 / 1e6;
                let (min, mean) = (histogram.min() as f64 / 1e6, histogram.mean() / 1e6);
                Some(Summary::new(unit, histogram.len(), mean, min, at))
            }
        }
    }
}

fn summary_of(values: &[f64], unit: &'static str) -> Option<Summary> {
    let sorted = sorted(values);
    let min = *sorted.first()?;
    let mean = sorted.iter().sum::<f64>() / sorted.len() as f64;
    let count = sorted.len() as u64;
    Some(Summary::new(unit, count, mean, min, |q| quantile(&sorted, q).expect("not empty")))
}

/// What a report says of a distribution.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// Of every figure but `count`.
    pub unit: &'static str,
    /// How many values.
    pub count: u64,
    /// Their mean.
    pub mean: f64,
    /// The smallest.
    pub min: f64,
    /// The median.
    pub p50: f64,
    /// Nine of ten are at most this.
    pub p90: f64,
    /// 95 of a hundred.
    pub p95: f64,
    /// 99 of a hundred.
    pub p99: f64,
    /// 999 of a thousand.
    #[serde(rename = "p99.9")]
    pub p999: f64,
    /// The largest.
    pub max: f64,
    /// `[quantile, value]`, for a plot.
    pub curve: Vec<[f64; 2]>,
}

impl Summary {
    fn new(unit: &'static str, count: u64, mean: f64, min: f64, at: impl Fn(f64) -> f64) -> Self {
        Self {
            unit,
            count,
            mean,
            min,
            p50: at(0.5),
            p90: at(0.9),
            p95: at(0.95),
            p99: at(0.99),
            p999: at(0.999),
            max: at(1.0),
            curve: CURVE.iter().map(|&q| [q, at(q)]).collect(),
        }
    }

    /// The figure that is called `stat`: `p99`, `max` …
    pub fn stat(&self, stat: &str) -> Option<f64> {
        Some(match stat {
            "count" => self.count as f64,
            "mean" => self.mean,
            "min" => self.min,
            "p50" => self.p50,
            "p90" => self.p90,
            "p95" => self.p95,
            "p99" => self.p99,
            "p99.9" => self.p999,
            "max" => self.max,
            _ => return None,
        })
    }
}

/// The figures of a [`Summary`], as `--fail-if` calls them.
pub const STATS: [&str; 9] = ["p50", "p90", "p95", "p99", "p99.9", "mean", "min", "max", "count"];

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// The smallest value that at least a share `q` of `sorted` does not exceed (nearest rank, as an
/// HdrHistogram has it).
pub fn quantile(sorted: &[f64], q: f64) -> Option<f64> {
    let rank = (q * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied()
}

/// The median, in any order.
pub fn median(values: &[f64]) -> Option<f64> {
    let sorted = sorted(values);
    let half = sorted.len() / 2;
    if sorted.len().is_multiple_of(2) && half > 0 {
        return Some(f64::midpoint(sorted[half - 1], sorted[half]));
    }
    sorted.get(half).copied()
}

/// A figure, and where the true one is with `confidence`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Interval {
    /// The estimate.
    pub value: f64,
    /// The lower end.
    pub low: f64,
    /// The upper end.
    pub high: f64,
    /// How often such an interval holds the true figure.
    pub confidence: f64,
}

/// The median with its rank interval: two of the values themselves, without any assumption about
/// how they are distributed. Few values cannot reach [`CONFIDENCE`]; what they reach is said.
pub fn median_interval(values: &[f64]) -> Option<Interval> {
    let sorted = sorted(values);
    let n = sorted.len();
    let value = median(&sorted)?;
    let (mut below, mut confidence) = (0, 1.0 - 2.0 * binomial_up_to(n, 0));
    while below + 1 < n / 2 {
        let next = 1.0 - 2.0 * binomial_up_to(n, below + 1);
        if next < CONFIDENCE {
            break;
        }
        (below, confidence) = (below + 1, next);
    }
    let confidence = f64::max(confidence, 0.0);
    Some(Interval { value, low: sorted[below], high: sorted[n - 1 - below], confidence })
}

/// P(X <= k) for X of n fair coins.
fn binomial_up_to(n: usize, k: usize) -> f64 {
    // In logarithms: 0.5^n alone is zero from n = 1075 on.
    let mut log = -(n as f64) * std::f64::consts::LN_2;
    let mut sum = log.exp();
    for i in 0..k {
        log += ((n - i) as f64).ln() - ((i + 1) as f64).ln();
        sum += log.exp();
    }
    sum
}

/// The difference of two distributions at `q`, `a - b`, with a percentile bootstrap interval. The
/// same values give the same interval.
pub fn difference_at(a: &[f64], b: &[f64], q: f64) -> Option<Interval> {
    bootstrap(a, b, q, |a, b| a - b)
}

/// The same of their ratio, `a / b`.
pub fn ratio_at(a: &[f64], b: &[f64], q: f64) -> Option<Interval> {
    bootstrap(a, b, q, |a, b| a / b).filter(|interval| interval.value.is_finite())
}

fn bootstrap(a: &[f64], b: &[f64], q: f64, of: fn(f64, f64) -> f64) -> Option<Interval> {
    let (a, b) = (sorted(a), sorted(b));
    let value = of(quantile(&a, q)?, quantile(&b, q)?);
    let mut random = StdRng::seed_from_u64(0x10ad);
    let mut again = vec![];
    // The values are sorted, so the quantile of a resample is that of its ranks.
    let mut resample = |values: &[f64]| {
        again.clear();
        again.extend(values.iter().map(|_| random.random_range(0..values.len())));
        let rank = (q * values.len() as f64).ceil() as usize;
        let (_, at, _) = again.select_nth_unstable(rank.saturating_sub(1));
        values[*at]
    };
    let resampled: Vec<_> = (0..RESAMPLES).map(|_| of(resample(&a), resample(&b))).collect();
    let resampled = sorted(&resampled);
    let tail = (1.0 - CONFIDENCE) / 2.0;
    let (low, high) = (quantile(&resampled, tail)?, quantile(&resampled, 1.0 - tail)?);
    Some(Interval { value, low, high, confidence: CONFIDENCE })
}

/// The least-squares slope of `(x, y)` points; `None` when they do not have one.
pub fn slope(points: &[(f64, f64)]) -> Option<f64> {
    let n = points.len() as f64;
    let (x, y) = points.iter().fold((0.0, 0.0), |(x, y), point| (x + point.0, y + point.1));
    let (x, y) = (x / n, y / n);
    let above: f64 = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum();
    let below: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
    (2 <= points.len() && 0.0 < below).then(|| above / below)
}
