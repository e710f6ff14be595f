//! Values that are written as words, on the command line and in scenarios: `"15s"`, `"poisson=20"`.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

/// No run is longer; a clock plus this does not overflow.
const SPAN_MAX: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// More at once than one client could keep apart.
const PARALLEL_MAX: usize = 100_000;

/// A duration such as `15s`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let span = humantime::parse_duration(text)
            .map_err(|_| format!("`{text}` is no duration: write 500ms, 15s or 2m"))?;
        if span > SPAN_MAX { Err(format!("`{text}` is more than a week")) } else { Ok(Self(span)) }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

/// When sessions are woken.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Pattern {
    /// One after the other.
    #[default]
    Sequential,
    /// This many at the same instant, again and again.
    Parallel(usize),
    /// At random times, this many a second on average.
    Poisson(f64),
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no pattern: sequential, parallel=K or poisson=RATE");
        match text.split_once('=') {
            None if text == "sequential" => Ok(Self::Sequential),
            Some(("parallel", k)) => {
                let k = k.parse().ok().filter(|k| (1..=PARALLEL_MAX).contains(k));
                k.map(Self::Parallel).ok_or_else(wrong)
            }
            Some(("poisson", rate)) => {
                let rate = rate.parse().ok().filter(|rate| 0.0 < *rate && f64::is_finite(*rate));
                rate.map(Self::Poisson).ok_or_else(wrong)
            }
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sequential => f.write_str("sequential"),
            Self::Parallel(k) => write!(f, "parallel={k}"),
            Self::Poisson(rate) => write!(f, "poisson={rate}"),
        }
    }
}

macro_rules! as_text {
    ($($name:ty),*) => {$(
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                String::deserialize(from)?.parse().map_err(D::Error::custom)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(self)
            }
        }
    )*};
}

as_text!(Span, Pattern);
