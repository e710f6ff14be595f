//! The shape of `[access]`.

use std::{borrow::Cow, collections::BTreeMap, fmt, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{Error, SeqAccess, Visitor, value::SeqAccessDeserializer},
};

use crate::route::{
    access::{ACCESS_HEADER, USER_HEADER},
    text::DurationText,
};

/// `[access]`.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct AccessTable {
    /// How the policies below combine: `"all"` of them, `"any"` one, or a list of which each must
    /// be met, and in it a list where one is enough: `["addresses", ["link", "jwt"]]`. Without any
    /// policy the route is open.
    pub(crate) require: Option<Require>,
    /// Whether a signed link of `dormouse link`, or the cookie that it became, lets in.
    pub(crate) link: bool,
    /// A JWT lets in.
    pub(crate) jwt: Option<JwtTable>,
    /// Another service decides, as with nginx's `auth_request` and Traefik's ForwardAuth.
    pub(crate) forward: Option<ForwardTable>,
    /// A user's name and password let in.
    pub(crate) basic: Option<BasicTable>,
    /// The client's address decides.
    pub(crate) addresses: Option<AddressesTable>,
    /// The client's certificate decides, on listeners that ask for one.
    pub(crate) mtls: Option<MtlsTable>,
    /// Whose pages may open a WebSocket here, also on a route that is open: `"same"` for those of
    /// the session's own host, `"any"`, or a list of others: `["https://app.example.com",
    /// "https://*.vscode-cdn.net", "vscode-webview://*"]`, where `*` stands for the whole first
    /// label, and for one alone. A client that names no origin is no page.
    pub(crate) origin: OriginWord,
    /// The edge itself answers what browsers ask first for the pages of `origin` (CORS preflights).
    /// Such a question carries no credentials, so nothing else can let it in, and it wakes nobody.
    pub(crate) cors: Option<CorsTable>,
    /// Whether an open WebSocket or stream is closed, within 5 seconds, when the link that it began
    /// with is revoked or has expired, or its JWT has expired.
    pub(crate) end_open: bool,
    /// Whether a link that comes over plain HTTP becomes a cookie for plain HTTP. Otherwise browsers
    /// keep it for HTTPS (and on `localhost`) alone. For a private network without TLS.
    pub(crate) insecure_cookie: bool,
    /// The header that tells the instance who the user is. Clients cannot send it.
    pub(crate) user_header: String,
    /// The header that tells the instance by which policies. Clients cannot send it.
    pub(crate) access_header: String,
}

/// `access.require`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub(crate) enum Require {
    Word(AllOrAny),
    Each(Vec<OneOrMore>),
}

/// A word for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum AllOrAny {
    All,
    Any,
}

/// A policy, or some of which one is enough.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub(crate) enum OneOrMore {
    One(String),
    More(Vec<String>),
}

/// `access.origin`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub(crate) enum OriginWord {
    Word(SameOrAny),
    Listed(Vec<String>),
}

/// A word for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum SameOrAny {
    Same,
    Any,
}

/// `[access.jwt]`.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct JwtTable {
    /// The key set (JWKS): a file, from this file's folder, or an `http://` or `https://` URL.
    pub(crate) jwks: String,
    /// The one algorithm that counts: `"RS256"`, `"ES256"`, `"EdDSA"`, … What a token says of
    /// itself is never believed.
    pub(crate) algorithm: String,
    /// Who must have made it (`iss`). Default: anybody whose key is in the set.
    pub(crate) issuer: Option<String>,
    /// For whom it must be (`aud`): any one of these. Default: a token that is for nobody in
    /// particular.
    #[serde(default)]
    pub(crate) audience: Vec<String>,
    /// What else it must say: `{ sub = "{session}" }`. The host's captures may stand in the values.
    #[serde(default)]
    pub(crate) claims: BTreeMap<String, String>,
    /// The claim that names the user.
    #[serde(default = "sub")]
    pub(crate) user: String,
    /// A cookie that may hold it, besides `Authorization: Bearer …`. Default: none.
    pub(crate) cookie: Option<String>,
    /// How wrong clocks may be.
    #[serde(default = "half_a_minute")]
    pub(crate) leeway: DurationText,
    /// How often the key set is read again. A key that it does not have causes one more reading,
    /// at most every 10 seconds.
    #[serde(default = "ten_minutes")]
    pub(crate) refresh: DurationText,
}

/// `[access.forward]`.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ForwardTable {
    /// Whom to ask: an `http://` or `https://` URL; captures may stand in it. It is sent
    /// `X-Forwarded-Method`, `-Proto`, `-Host`, `-Uri` and `-For`. 2xx lets in; 401, 403 and
    /// redirects go to the client; everything else, and silence, refuses.
    pub(crate) url: String,
    /// How long its answer may take.
    #[serde(default = "five_seconds")]
    pub(crate) timeout: DurationText,
    /// The headers of its 2xx answer that go to the instance. Clients cannot send them.
    #[serde(default)]
    pub(crate) headers: Vec<String>,
    /// The header of its answer that names the user.
    pub(crate) user: Option<String>,
    /// The client's headers that it is shown.
    #[serde(default = "credentials")]
    pub(crate) shows: Vec<String>,
    /// What headers of its 2xx answer must say, for this session: `{ Remote-User = "{session}" }`.
    /// The host's captures may stand in the values; otherwise it is a no.
    #[serde(default)]
    pub(crate) expect: BTreeMap<String, String>,
    /// For how long its yes to one and the same question counts. `"0s"`: ask every time.
    #[serde(default = "five_seconds")]
    pub(crate) cache: DurationText,
    /// How many questions may be open at once; the next one is refused.
    #[serde(default = "sixty_four")]
    #[schemars(range(min = 1))]
    pub(crate) at_once: u32,
}

/// `[access.basic]`.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct BasicTable {
    /// A file with a line `USER:HASH` for each user, from this file's folder; argon2
    /// (`$argon2id$…`) or bcrypt (`$2y$…`, as `htpasswd -B` writes). Read again when it changes. The
    /// host's captures may stand in it: `"users/{session}.htpasswd"` is a file for each session.
    pub(crate) users: String,
    /// The only user that may enter: `"{session}"`. Default: everybody in the file, into every
    /// session of the route.
    pub(crate) user: Option<String>,
}

/// `[access.cors]`.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct CorsTable {
    /// The methods that the pages may use.
    pub(crate) methods: Vec<String>,
    /// The headers that they may send.
    pub(crate) headers: Vec<String>,
    /// Whether they may send cookies along (`fetch` with `credentials: "include"`).
    pub(crate) credentials: bool,
    /// How long a browser may remember the answer. Chromium does for 2 hours at most.
    pub(crate) max_age: DurationText,
}

impl Default for CorsTable {
    fn default() -> Self {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        Self {
            methods: words(&["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]),
            headers: words(&["Authorization", "Content-Type"]),
            credentials: false,
            max_age: ten_minutes(),
        }
    }
}

/// `[access.addresses]`.
#[derive(Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct AddressesTable {
    /// Addresses and networks that may enter: `["10.0.0.0/8", "2001:db8::/32"]`. Default: all that
    /// are not denied.
    pub(crate) allow: Vec<String>,
    /// Addresses and networks that may not, whatever else they bring.
    pub(crate) deny: Vec<String>,
}

/// `[access.mtls]`. Empty: every certificate that the listener has accepted.
#[derive(Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct MtlsTable {
    /// Patterns of the subject, `*` for anything: `["CN={session},*"]`. One is enough.
    pub(crate) subject: Vec<String>,
    /// Patterns of a subject alternative name (DNS, mail, URI): `["*@example.com"]`. One is enough.
    pub(crate) san: Vec<String>,
}

fn sub() -> String {
    "sub".into()
}

fn half_a_minute() -> DurationText {
    DurationText(Duration::from_secs(30))
}

fn ten_minutes() -> DurationText {
    DurationText(Duration::from_secs(600))
}

fn five_seconds() -> DurationText {
    DurationText(Duration::from_secs(5))
}

fn credentials() -> Vec<String> {
    vec!["Cookie".into(), "Authorization".into()]
}

fn sixty_four() -> u32 {
    64
}

impl Default for AccessTable {
    fn default() -> Self {
        Self {
            require: None,
            link: false,
            jwt: None,
            forward: None,
            basic: None,
            addresses: None,
            mtls: None,
            origin: OriginWord::Word(SameOrAny::Same),
            cors: None,
            end_open: false,
            insecure_cookie: false,
            user_header: USER_HEADER.into(),
            access_header: ACCESS_HEADER.into(),
        }
    }
}

// By hand, because serde's `untagged` forgets where in the file it is.
impl<'de> Deserialize<'de> for Require {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Require;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "\"all\", \"any\" or a list such as [\"addresses\", [\"link\", \"jwt\"]]",
                )
            }
            fn visit_str<E: Error>(self, word: &str) -> Result<Require, E> {
                match word {
                    "all" => Ok(Require::Word(AllOrAny::All)),
                    "any" => Ok(Require::Word(AllOrAny::Any)),
                    _ => Err(E::unknown_variant(word, &["all", "any"])),
                }
            }
            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Require, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(seq)).map(Require::Each)
            }
        }
        from.deserialize_any(Reader)
    }
}

impl<'de> Deserialize<'de> for OneOrMore {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = OneOrMore;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a policy's name, or a list of them")
            }
            fn visit_str<E: Error>(self, word: &str) -> Result<OneOrMore, E> {
                Ok(OneOrMore::One(word.to_owned()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<OneOrMore, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(seq)).map(OneOrMore::More)
            }
        }
        from.deserialize_any(Reader)
    }
}

impl<'de> Deserialize<'de> for OriginWord {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = OriginWord;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"same\", \"any\" or a list such as [\"https://app.example.com\"]")
            }
            fn visit_str<E: Error>(self, word: &str) -> Result<OriginWord, E> {
                match word {
                    "same" => Ok(OriginWord::Word(SameOrAny::Same)),
                    "any" => Ok(OriginWord::Word(SameOrAny::Any)),
                    _ => Err(E::unknown_variant(word, &["same", "any"])),
                }
            }
            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<OriginWord, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(seq)).map(OriginWord::Listed)
            }
        }
        from.deserialize_any(Reader)
    }
}

fn words_or_list(words: [&str; 2], items: &Schema) -> Schema {
    json_schema!({ "anyOf": [
        { "type": "string", "enum": words },
        { "type": "array", "items": items },
    ] })
}

impl JsonSchema for Require {
    fn schema_name() -> Cow<'static, str> {
        "Require".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let names = json_schema!({ "type": ["string", "array"], "items": { "type": "string" } });
        words_or_list(["all", "any"], &names)
    }
}

impl JsonSchema for OriginWord {
    fn schema_name() -> Cow<'static, str> {
        "Origin".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        words_or_list(["same", "any"], &json_schema!({ "type": "string" }))
    }
}
