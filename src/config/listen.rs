//! The shape of `[listen]` and `[tls]`. The comments here are the operator's reference.
//!
//! Says what may be written, not what it means: that is `check`.

use std::{borrow::Cow, fmt, marker::PhantomData, net::SocketAddr, path::PathBuf};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{DeserializeOwned, Error, MapAccess, Visitor, value::MapAccessDeserializer},
};

use super::AdminAddress;
use crate::route::text::{self, AddressText, NetworkText, Text};

/// `[listen]`.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ListenTable {
    /// Where requests come in without TLS, HTTP/1.1 and cleartext HTTP/2: a list of
    /// `ADDRESS:PORT`, or of `{ address = "ADDRESS:PORT", proxy_protocol = true }`.
    pub(crate) http: Vec<Entry<HttpEntry>>,
    /// Where requests come in over TLS, HTTP/1.1 and HTTP/2 by ALPN: a list of `ADDRESS:PORT`, or
    /// of tables as below. The certificates are those of `paths.certs`. Default: none.
    pub(crate) https: Vec<Entry<HttpsEntry>>,
    /// Who stands in front of this edge: addresses and networks such as `"10.0.0.0/8"`. From them,
    /// and from nobody else, the PROXY protocol is taken on an address that has
    /// `proxy_protocol`, and `X-Forwarded-For` (or `Forwarded` where there is none) and
    /// `X-Forwarded-Proto` are believed: the client is the rightmost hop that is not listed here.
    /// List only proxies that set `X-Forwarded-For` and `X-Forwarded-Proto` themselves.
    /// Default: nobody.
    pub(crate) trusted_proxies: Vec<NetworkText>,
    /// Where the admin API listens: `ADDRESS:PORT` or `unix:/path`. Beyond loopback it needs
    /// `admin.token_file`.
    pub(crate) admin: AdminAddress,
}

impl Default for ListenTable {
    fn default() -> Self {
        Self {
            http: vec![Entry::At(AddressText(SocketAddr::from(([127, 0, 0, 1], 8080))))],
            https: Vec::new(),
            trusted_proxies: Vec::new(),
            admin: AdminAddress::Tcp(SocketAddr::from(([127, 0, 0, 1], 9900))),
        }
    }
}

/// One of `listen.http`.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct HttpEntry {
    /// `ADDRESS:PORT`.
    pub(crate) address: AddressText,
    /// Whether every connection begins with a PROXY protocol header, version 1 or 2. Connections
    /// that are not from `trusted_proxies` are closed at once.
    #[serde(default)]
    pub(crate) proxy_protocol: bool,
}

/// One of `listen.https`.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct HttpsEntry {
    /// `ADDRESS:PORT`.
    pub(crate) address: AddressText,
    /// Whether every connection begins with a PROXY protocol header, version 1 or 2. Connections
    /// that are not from `trusted_proxies` are closed at once.
    #[serde(default)]
    pub(crate) proxy_protocol: bool,
    /// The authorities whose client certificates are taken here, a PEM file. Default: clients are
    /// not asked for a certificate.
    pub(crate) client_ca: Option<PathBuf>,
    /// `"required"`: no handshake without a client certificate. `"optional"`: it may be left out,
    /// and must be valid where it is not. Default: `"required"`.
    pub(crate) client_auth: Option<ClientAuthWord>,
}

/// Whether a client must have a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ClientAuthWord {
    Required,
    Optional,
}

/// `[tls]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Tls {
    /// The lowest version of TLS that clients may speak.
    pub min_version: TlsVersion,
    /// The port that a redirect to HTTPS names, where clients see another one than the edge
    /// listens on. Default: the first port of `listen.https`, else 443.
    #[schemars(range(min = 1))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redirect_port: Option<u16>,
}

/// A version of TLS.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize, JsonSchema,
)]
pub enum TlsVersion {
    /// RFC 5246.
    #[default]
    #[serde(rename = "1.2")]
    V1_2,
    /// RFC 8446.
    #[serde(rename = "1.3")]
    V1_3,
}

/// An address, or a table with one.
#[derive(Debug)]
pub(crate) enum Entry<T> {
    At(AddressText),
    With(T),
}

// By hand, because serde's `untagged` forgets where in the file it is.
impl<'de, T: DeserializeOwned> Deserialize<'de> for Entry<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Reader<T>(PhantomData<T>);
        impl<'de, T: DeserializeOwned> Visitor<'de> for Reader<T> {
            type Value = Entry<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}, or a table with such an `address`", AddressText::EXPECTED)
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Entry<T>, E> {
                let wrong = |wrong| E::custom(text::wrong::<AddressText>(wrong));
                AddressText::parse(text).map(Entry::At).map_err(wrong)
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Entry<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Entry::With)
            }
        }
        from.deserialize_any(Reader(PhantomData))
    }
}

impl<T: Serialize> Serialize for Entry<T> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::At(address) => address.serialize(to),
            Self::With(table) => table.serialize(to),
        }
    }
}

impl<T: JsonSchema> JsonSchema for Entry<T> {
    fn schema_name() -> Cow<'static, str> {
        format!("Entry{}", T::schema_name()).into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let address = generator.subschema_for::<AddressText>();
        let table = generator.subschema_for::<T>();
        json_schema!({ "anyOf": [address, table] })
    }
}
