//! `--fail-if`: a figure, a comparison, a number with its unit. Knows the names of all figures, so
//! that a misspelt one is refused before the run, not after it.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

use crate::{
    metrics::{self, Unit},
    stats::STATS,
};

/// Whose figure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whose {
    /// The target's.
    Own,
    /// The target's, divided by the peer's.
    Ratio(String),
    /// The target's, less the peer's.
    Over(String),
}

/// Which figure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Figure {
    /// Of a distribution; `None` is the command's main one.
    Stat(Option<String>, &'static str),
    /// A single one.
    Value(String),
}

/// What must not be.
#[derive(Clone, Debug, PartialEq)]
pub struct Threshold {
    /// Whose figure.
    pub whose: Whose,
    /// Which figure.
    pub figure: Figure,
    operator: &'static str,
    limit: f64,
    text: String,
}

/// Longer ones first: `>` begins `>=`.
const OPERATORS: [&str; 6] = [">=", "<=", "==", "!=", ">", "<"];

const MILLIS: &[(&str, f64)] =
    &[("ns", 1e-6), ("us", 1e-3), ("µs", 1e-3), ("ms", 1.0), ("s", 1e3), ("m", 6e4)];
const MICROS: &[(&str, f64)] =
    &[("ns", 1e-3), ("us", 1.0), ("µs", 1.0), ("ms", 1e3), ("s", 1e6), ("m", 6e7)];
const BYTES: &[(&str, f64)] = &[
    ("B", 1.0),
    ("kB", 1e3),
    ("MB", 1e6),
    ("GB", 1e9),
    ("KiB", 1024.0),
    ("MiB", 1_048_576.0),
    ("GiB", 1_073_741_824.0),
];
const BYTES_PER_HOUR: &[(&str, f64)] =
    &[("B/h", 1.0), ("kB/h", 1e3), ("MB/h", 1e6), ("KiB/h", 1024.0), ("MiB/h", 1_048_576.0)];

impl Threshold {
    /// Whether `value` is what must not be.
    pub fn fails(&self, value: f64) -> bool {
        match self.operator {
            ">=" => value >= self.limit,
            "<=" => value <= self.limit,
            "==" => value == self.limit,
            "!=" => value != self.limit,
            ">" => value > self.limit,
            _ => value < self.limit,
        }
    }

    /// The limit, in the figure's own unit.
    pub fn limit(&self) -> f64 {
        self.limit
    }
}

impl FromStr for Threshold {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let at = |operator: &&'static str| text.find(*operator).map(|at| (at, *operator));
        // The first in the text, and at one place the longest.
        let found = OPERATORS.iter().filter_map(at).min_by_key(|(at, op)| (*at, 3 - op.len()));
        let (at, operator) =
            found.ok_or_else(|| format!("`{text}` compares nothing: write p99>50ms"))?;
        let (name, number) = (text[..at].trim(), text[at + operator.len()..].trim());
        let (whose, base) = whose(name)?;
        let (figure, unit) = figure(base)?;
        let unit = if let Whose::Ratio(_) = whose { Unit::Share } else { unit };
        let limit = limit(number, unit)?;
        Ok(Self { whose, figure, operator, limit, text: text.trim().to_owned() })
    }
}

fn whose(name: &str) -> Result<(Whose, &str), String> {
    for (word, make) in [("vs.", Whose::Ratio as fn(String) -> Whose), ("over.", Whose::Over)] {
        if let Some(rest) = name.strip_prefix(word) {
            let (peer, base) = rest
                .split_once('.')
                .ok_or_else(|| format!("`{name}` names no figure: write {word}PEER.p99"))?;
            return Ok((make(peer.to_owned()), base));
        }
    }
    Ok((Whose::Own, name))
}

fn figure(name: &str) -> Result<(Figure, Unit), String> {
    if let Some(unit) = metrics::unit_of_value(name) {
        return Ok((Figure::Value(name.to_owned()), unit));
    }
    let unit = |stat: &str, unit| if stat == "count" { Unit::Count } else { unit };
    if let Some(stat) = STATS.iter().find(|stat| **stat == name) {
        return Ok((Figure::Stat(None, stat), unit(stat, Unit::Millis)));
    }
    for stat in STATS {
        let series = name.strip_suffix(stat).and_then(|rest| rest.strip_suffix('.'));
        if let Some((series, of)) =
            series.and_then(|name| metrics::unit_of_series(name).map(|unit| (name, unit)))
        {
            return Ok((Figure::Stat(Some(series.to_owned()), stat), unit(stat, of)));
        }
    }
    Err(format!("`{name}` is no metric: see `loadtest metrics`"))
}

fn limit(text: &str, unit: Unit) -> Result<f64, String> {
    let end = text.find(|c: char| !c.is_ascii_digit() && !".-+".contains(c)).unwrap_or(text.len());
    let (number, word) = (&text[..end], text[end..].trim());
    let number: f64 =
        number.parse().map_err(|_| format!("`{text}` does not begin with a number"))?;
    let known: &[(&str, f64)] = match unit {
        Unit::Millis => MILLIS,
        Unit::Micros => MICROS,
        Unit::Bytes => BYTES,
        Unit::BytesPerHour => BYTES_PER_HOUR,
        Unit::PerSecond => &[("", 1.0), ("/s", 1.0)],
        Unit::PerHour => &[("", 1.0), ("/h", 1.0)],
        Unit::Cores => &[("", 1.0), ("cores", 1.0)],
        Unit::Share => &[("", 1.0), ("%", 0.01)],
        Unit::Count => &[("", 1.0)],
    };
    let factor = known.iter().find(|(name, _)| *name == word).map(|(_, factor)| factor);
    let factor = factor.ok_or_else(|| {
        let words: Vec<_> = known.iter().map(|(name, _)| format!("`{name}`")).collect();
        format!("`{text}` ends with `{word}`, not with one of {}", words.join(" "))
    })?;
    Ok(number * factor)
}

impl fmt::Display for Threshold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Threshold {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

impl Serialize for Threshold {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}
