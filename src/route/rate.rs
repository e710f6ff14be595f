//! How often something may happen: `"30/m"`, `"30/m burst 60"`, `"unlimited"`.

use std::{borrow::Cow, fmt, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::text::{self, Text};

/// Beyond any use; so many intervals do not overflow a clock.
const COUNT_MAX: u32 = 1_000_000;
/// The units of time by their letters.
const UNITS: [(&str, u64); 4] = [("s", 1), ("m", 60), ("h", 60 * 60), ("d", 24 * 60 * 60)];

/// So many in a time, and so many at once when there were none for long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rate {
    /// How many, at least 1.
    pub count: u32,
    /// In how long.
    pub per: Duration,
    /// How many at once, at least 1.
    pub burst: u32,
}

impl Rate {
    /// From one to the next, when they come evenly.
    pub fn interval(&self) -> Duration {
        self.per / self.count.max(1)
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = UNITS.iter().find(|(_, seconds)| *seconds == self.per.as_secs());
        write!(f, "{}/{}", self.count, unit.map_or("s", |(letter, _)| letter))?;
        if self.burst != self.count { write!(f, " burst {}", self.burst) } else { Ok(()) }
    }
}

/// A rate, or none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateText(pub Option<Rate>);

impl Text for RateText {
    const EXPECTED: &'static str =
        "a rate such as \"30/m\", \"5/s burst 20\" or \"1000/h\", or \"unlimited\"";

    fn parse(text: &str) -> Result<Self, String> {
        if text == "unlimited" {
            return Ok(Self(None));
        }
        let wrong = || format!("`{text}` is no rate");
        let (rate, burst) = match text.split_once(" burst ") {
            Some((rate, burst)) => (rate, Some(burst)),
            None => (text, None),
        };
        let (count, unit) = rate.split_once('/').ok_or_else(wrong)?;
        let number = |text: &str| match text.trim().parse::<u32>() {
            Ok(0) => Err(format!("`{text}` starts at 1")),
            Ok(n) if COUNT_MAX < n => Err(format!("`{text}` is more than {COUNT_MAX}")),
            Ok(n) => Ok(n),
            Err(_) => Err(wrong()),
        };
        let count = number(count)?;
        let burst = burst.map_or(Ok(count), number)?;
        let (_, seconds) =
            UNITS.iter().find(|(letter, _)| *letter == unit.trim()).ok_or_else(wrong)?;
        Ok(Self(Some(Rate { count, per: Duration::from_secs(*seconds), burst })))
    }
}

impl fmt::Display for RateText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(rate) => rate.fmt(f),
            None => f.write_str("unlimited"),
        }
    }
}

impl<'de> Deserialize<'de> for RateText {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        text::read(from)
    }
}

impl Serialize for RateText {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl JsonSchema for RateText {
    fn schema_name() -> Cow<'static, str> {
        "Rate".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": r"^(unlimited|\s*[0-9]+\s*/\s*[smhd]\s*( burst \s*[0-9]+\s*)?)$",
            "examples": ["30/m", "5/s burst 20", "unlimited"],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_reads_as_it_is_written() {
        for text in ["30/m", "5/s burst 20", "1000/h", "3/d burst 1", "unlimited"] {
            assert_eq!(RateText::parse(text).expect("a rate").to_string(), text);
        }
        let rate = RateText::parse(" 30 / m burst 60").expect("a rate").0.expect("limited");
        assert_eq!((rate.interval(), rate.burst), (Duration::from_secs(2), 60));
    }

    #[test]
    fn what_is_no_rate_is_refused() {
        for text in
            ["", "30", "30/", "/m", "30/y", "0/s", "1/s burst 0", "-1/s", "2000000/s", "1/s burst"]
        {
            assert!(RateText::parse(text).is_err(), "{text}");
        }
    }
}
