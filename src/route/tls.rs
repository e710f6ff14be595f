//! `[tls]` of a route: what its clients are told about HTTPS. The comments here are the operator's
//! reference.

use std::{borrow::Cow, fmt, fmt::Write as _, time::Duration};

use http::HeaderValue;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{Error, MapAccess, Visitor, value::MapAccessDeserializer},
};

use super::text::{self, DurationText, Text};

/// What the lists that browsers ship with ask for.
const PRELOAD_AGE_MIN: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// `[tls]`.
#[derive(Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ClientTlsTable {
    /// Whether a request without TLS is answered with a redirect (308) to HTTPS, and wakes nobody.
    pub(crate) redirect: bool,
    /// How long browsers are to use HTTPS only (`Strict-Transport-Security`): `"180d"`, or a
    /// table. Said over HTTPS only. Default: not said.
    pub(crate) hsts: Option<HstsWord>,
}

/// `tls.hsts`.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum HstsWord {
    For(DurationText),
    With(HstsTable),
}

/// `tls.hsts` as a table.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct HstsTable {
    /// How long.
    pub(crate) max_age: DurationText,
    /// Whether it counts for all names below the host, too.
    #[serde(default)]
    pub(crate) include_subdomains: bool,
    /// Whether browsers may ship with it. Needs `include_subdomains` and a year at least.
    #[serde(default)]
    pub(crate) preload: bool,
}

/// What a route says to clients about HTTPS.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ClientTls {
    /// Whether a request without TLS is sent to HTTPS.
    pub redirect: bool,
    /// The value of `Strict-Transport-Security`.
    pub hsts: Option<HeaderValue>,
}

impl ClientTlsTable {
    /// What it means, or the key that is wrong and why.
    pub(super) fn check(self) -> Result<ClientTls, (&'static str, &'static str)> {
        let hsts = self.hsts.map(HstsWord::value).transpose()?;
        Ok(ClientTls { redirect: self.redirect, hsts })
    }
}

impl HstsWord {
    fn value(self) -> Result<HeaderValue, (&'static str, &'static str)> {
        let HstsTable { max_age, include_subdomains, preload } = match self {
            Self::For(max_age) => HstsTable { max_age, include_subdomains: false, preload: false },
            Self::With(table) => table,
        };
        if preload && (!include_subdomains || max_age.0 < PRELOAD_AGE_MIN) {
            return Err((
                "preload",
                "`preload` needs `include_subdomains` and a year of `max_age`",
            ));
        }
        let mut value = format!("max-age={}", max_age.0.as_secs());
        for (said, directive) in [(include_subdomains, "includeSubDomains"), (preload, "preload")] {
            if said {
                write!(value, "; {directive}").expect("a String takes all");
            }
        }
        Ok(HeaderValue::try_from(value).expect("words and digits are a value"))
    }
}

// By hand, because serde's `untagged` forgets where in the file it is.
impl<'de> Deserialize<'de> for HstsWord {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = HstsWord;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}, or {{ max_age = \"365d\", … }}", DurationText::EXPECTED)
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<HstsWord, E> {
                let wrong = |flaw| E::custom(text::wrong::<DurationText>(flaw));
                DurationText::parse(text).map(HstsWord::For).map_err(wrong)
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<HstsWord, A::Error> {
                HstsTable::deserialize(MapAccessDeserializer::new(map)).map(HstsWord::With)
            }
        }
        from.deserialize_any(Reader)
    }
}

impl JsonSchema for HstsWord {
    fn schema_name() -> Cow<'static, str> {
        "Hsts".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let duration = generator.subschema_for::<DurationText>();
        let table = generator.subschema_for::<HstsTable>();
        json_schema!({ "anyOf": [duration, table] })
    }
}
