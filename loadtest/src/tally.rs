//! What one round of work found. Rounds are added up; nothing is left out on the way.

use std::{collections::BTreeMap, time::Duration};

use crate::{client::Fault, stats::Series};

/// More kinds than this are counted together.
const FAULTS_MAX: usize = 64;

/// Distributions, figures and faults of one server in one round, or in all.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Distributions by name.
    pub series: BTreeMap<String, Series>,
    /// Figures by name, one a round; their median is reported.
    pub values: BTreeMap<String, Vec<f64>>,
    /// Faults by kind.
    pub faults: BTreeMap<String, u64>,
    /// Good answers.
    pub answers: u64,
}

impl Tally {
    /// One more value of a distribution of few.
    pub fn exact(&mut self, name: &str, value: f64) {
        let series = self.series.entry(name.to_owned());
        match series.or_insert_with(|| Series::Exact(Vec::new())) {
            Series::Exact(values) => values.push(value),
            many @ Series::Many(_) => many.latency(Duration::from_secs_f64(value.max(0.0) / 1e3)),
        }
    }

    /// One more duration, in milliseconds.
    pub fn took(&mut self, name: &str, took: Duration) {
        self.exact(name, took.as_secs_f64() * 1e3);
    }

    /// One more duration of a distribution of many.
    pub fn many(&mut self, name: &str, took: Duration) {
        self.series.entry(name.to_owned()).or_insert_with(Series::many).latency(took);
    }

    /// Adds a whole distribution.
    pub fn series(&mut self, name: &str, series: Series) {
        match self.series.get_mut(name) {
            Some(all) => all.merge(&series),
            None => drop(self.series.insert(name.to_owned(), series)),
        }
    }

    /// This round's figure.
    pub fn value(&mut self, name: &str, value: f64) {
        self.values.entry(name.to_owned()).or_default().push(value);
    }

    /// One more fault.
    pub fn fault(&mut self, fault: &Fault) {
        self.count(fault.to_string(), 1);
    }

    /// How many faults.
    pub fn faults(&self) -> u64 {
        self.faults.values().sum()
    }

    fn count(&mut self, kind: String, more: u64) {
        let full = FAULTS_MAX <= self.faults.len() && !self.faults.contains_key(&kind);
        *self.faults.entry(if full { "others".to_owned() } else { kind }).or_default() += more;
    }

    /// Adds all of `other`.
    pub fn merge(&mut self, other: Self) {
        for (name, series) in other.series {
            self.series(&name, series);
        }
        for (name, values) in other.values {
            self.values.entry(name).or_default().extend(values);
        }
        for (kind, count) in other.faults {
            self.count(kind, count);
        }
        self.answers += other.answers;
    }
}
