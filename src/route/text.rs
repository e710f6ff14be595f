//! Values that our files write as text: `"15m"`, `"512MiB"`, addresses, secrets. Knows no key.

use std::{
    borrow::Cow,
    fmt,
    marker::PhantomData,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use bytesize::ByteSize;
use humantime_serde::re::humantime;
use ipnet::IpNet;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error, Visitor},
};

/// Far beyond any use; a clock plus this does not overflow.
pub(crate) const DURATION_MAX: Duration = Duration::from_secs(3650 * 24 * 60 * 60);
/// What every platform's file offset and memory limit can hold.
const SIZE_MAX: u64 = i64::MAX as u64;

/// A value that is written as a string.
pub(crate) trait Text: Sized {
    /// What should have been there, in an error.
    const EXPECTED: &'static str;
    /// The value, or what is wrong with it.
    fn parse(text: &str) -> Result<Self, String>;
}

/// Reads a [`Text`]; its `Deserialize` in one line.
pub(crate) fn read<'de, T: Text, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
    struct Reader<T>(PhantomData<T>);
    impl<T: Text> Visitor<'_> for Reader<T> {
        type Value = T;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(T::EXPECTED)
        }
        fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
            T::parse(text).map_err(|flaw| E::custom(wrong::<T>(flaw)))
        }
    }
    from.deserialize_str(Reader(PhantomData))
}

/// What is wrong, and what should have been there.
pub(crate) fn wrong<T: Text>(flaw: String) -> String {
    format!("{flaw}, expected {}", T::EXPECTED)
}

/// `"15m"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DurationText(pub(crate) Duration);

impl Text for DurationText {
    const EXPECTED: &'static str = "a duration such as \"30s\", \"15m\" or \"2h\"";

    fn parse(text: &str) -> Result<Self, String> {
        // A month to humantime, and to a person a slip of the shift key.
        if text.split(|letter: char| !letter.is_alphabetic()).any(|unit| unit == "M") {
            let minutes = text.replace('M', "m");
            return Err(format!(
                "`M` would be months: write \"{minutes}\" for minutes, or count in days"
            ));
        }
        let duration =
            humantime::parse_duration(text).map_err(|_| format!("`{text}` is no duration"))?;
        if duration > DURATION_MAX {
            return Err(format!("`{text}` is more than 3650 days"));
        }
        Ok(Self(duration))
    }
}

impl<'de> Deserialize<'de> for DurationText {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        read(from)
    }
}

impl Serialize for DurationText {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&humantime::format_duration(self.0))
    }
}

impl JsonSchema for DurationText {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": r"^\s*(0|([0-9]+\s*[A-Za-zµ]+\s*)+)$",
            "examples": ["500ms", "30s", "15m", "2h", "30d"],
        })
    }
}

/// `#[serde(with = "duration")]` for a plain [`Duration`].
pub(crate) mod duration {
    use super::{Deserializer, Duration, DurationText, Serialize, Serializer};

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        super::read::<DurationText, D>(from).map(|text| text.0)
    }

    pub(crate) fn serialize<S: Serializer>(value: &Duration, to: S) -> Result<S::Ok, S::Error> {
        DurationText(*value).serialize(to)
    }
}

/// `"512MiB"`, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SizeText(pub(crate) u64);

impl Text for SizeText {
    const EXPECTED: &'static str = "a size such as \"512MiB\" or \"2GiB\"";

    fn parse(text: &str) -> Result<Self, String> {
        if let Some(number) = text.trim_end().strip_suffix(['k', 'K', 'm', 'M', 'g', 'G', 't', 'T'])
        {
            let unit = text.trim_end()[number.len()..].to_ascii_uppercase();
            let number = number.trim_end();
            // Docker takes `512m` for MiB, Kubernetes `512M` for MB.
            return Err(format!(
                "`{text}` has two meanings: write \"{number}{unit}iB\" or \"{number}{unit}B\""
            ));
        }
        let size: ByteSize = text.parse().map_err(|_| format!("`{text}` is no size"))?;
        match size.as_u64() {
            0 => Err("no bytes at all".into()),
            bytes if bytes > SIZE_MAX => Err(format!("`{text}` is too much")),
            bytes => Ok(Self(bytes)),
        }
    }
}

/// `#[serde(with = "size")]` for a plain number of bytes.
pub(crate) mod size {
    use super::{Deserializer, Serialize, Serializer, SizeText};

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
        super::read::<SizeText, D>(from).map(|text| text.0)
    }

    pub(crate) fn serialize<S: Serializer>(value: &u64, to: S) -> Result<S::Ok, S::Error> {
        SizeText(*value).serialize(to)
    }
}

impl<'de> Deserialize<'de> for SizeText {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        read(from)
    }
}

impl Serialize for SizeText {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&ByteSize::b(self.0))
    }
}

impl JsonSchema for SizeText {
    fn schema_name() -> Cow<'static, str> {
        "Size".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": r"^[0-9]+(\.[0-9]+)?\s*([kKmMgGtTpPeE]([iI][bB]?|[bB])|[bB])?$",
            "examples": ["512MiB", "2GiB"],
        })
    }
}

/// `"127.0.0.1:8080"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AddressText(pub(crate) SocketAddr);

impl Text for AddressText {
    const EXPECTED: &'static str = "ADDRESS:PORT such as \"127.0.0.1:8080\" or \"[::]:8080\"";

    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map(Self).map_err(|_| format!("`{text}` is no address with a port"))
    }
}

impl<'de> Deserialize<'de> for AddressText {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        read(from)
    }
}

impl Serialize for AddressText {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&self.0)
    }
}

impl JsonSchema for AddressText {
    fn schema_name() -> Cow<'static, str> {
        "Address".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": r"^.+:[0-9]+$",
            "examples": ["127.0.0.1:8080", "[::]:8080"],
        })
    }
}

/// `"10.0.0.0/8"`, or one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct NetworkText(pub(crate) IpNet);

impl Text for NetworkText {
    const EXPECTED: &'static str = "an address or a network such as \"10.0.0.0/8\"";

    fn parse(text: &str) -> Result<Self, String> {
        let address = text.parse::<IpAddr>().map(IpNet::from);
        let network = address.or_else(|_| text.parse::<IpNet>());
        network.map(Self).map_err(|_| format!("`{text}` is no network"))
    }
}

impl<'de> Deserialize<'de> for NetworkText {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        read(from)
    }
}

impl Serialize for NetworkText {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&self.0)
    }
}

impl JsonSchema for NetworkText {
    fn schema_name() -> Cow<'static, str> {
        "Network".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": r"^[0-9a-fA-F.:]+(/[0-9]{1,3})?$",
            "examples": ["10.0.0.0/8", "192.0.2.7", "2001:db8::/32"],
        })
    }
}

/// A string that may be a secret: neither `Debug` nor an error about it shows it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(pub(crate) String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Reader;
        impl Visitor<'_> for Reader {
            type Value = Secret;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Secret, E> {
                Ok(Secret(text.to_owned()))
            }
            // serde's own answers to these would quote the value.
            fn visit_bool<E: Error>(self, _: bool) -> Result<Secret, E> {
                Err(E::custom("expected a string"))
            }
            fn visit_i64<E: Error>(self, _: i64) -> Result<Secret, E> {
                Err(E::custom("expected a string"))
            }
            fn visit_u64<E: Error>(self, _: u64) -> Result<Secret, E> {
                Err(E::custom("expected a string"))
            }
            fn visit_i128<E: Error>(self, _: i128) -> Result<Secret, E> {
                Err(E::custom("expected a string"))
            }
            fn visit_u128<E: Error>(self, _: u128) -> Result<Secret, E> {
                Err(E::custom("expected a string"))
            }
            fn visit_f64<E: Error>(self, _: f64) -> Result<Secret, E> {
                Err(E::custom("expected a string"))
            }
        }
        from.deserialize_str(Reader)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(to)
    }
}

impl JsonSchema for Secret {
    fn schema_name() -> Cow<'static, str> {
        "Secret".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string" })
    }
}
