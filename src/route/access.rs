//! Who may enter: `[access]` of a route, checked. Says what is asked for; whether a request has it
//! is the room `access`.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf, time::Duration};

use bytes::Bytes;
use http::HeaderName;
use ipnet::IpNet;

use super::template::has_capture;

/// What a request must bring.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Access {
    /// Each must be met, by any one of its policies. Empty: everybody may enter.
    pub require: Vec<Vec<Policy>>,
    /// Whose pages may open a WebSocket.
    pub origin: Origin,
    /// How the edge answers what a browser asks first for those pages.
    pub cors: Option<Cors>,
    /// Whether what is open ends when the access that it began with ends.
    pub end_open: bool,
    /// Whether over plain HTTP the cookie is one that browsers keep there.
    pub insecure_cookie: bool,
    /// Where the instance is told who it is.
    pub user_header: Spelled,
    /// Where the instance is told how that is known.
    pub access_header: Spelled,
    /// A JWT of somebody else's.
    pub jwt: Option<Jwt>,
    /// A service that decides.
    pub forward: Option<Forward>,
    /// Users and passwords.
    pub basic: Option<Basic>,
    /// Networks.
    pub addresses: Option<Addresses>,
    /// Client certificates.
    pub mtls: Option<Mtls>,
}

/// A policy's name; in the order of what it costs to ask it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Policy {
    /// The client's address.
    Addresses,
    /// The client's certificate.
    Mtls,
    /// A signed link of ours, or the cookie that it became.
    Link,
    /// A JWT.
    Jwt,
    /// A user's password.
    Basic,
    /// Another service.
    Forward,
}

/// Whose pages may open a WebSocket.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// Those of the session's own host.
    Same,
    /// Everybody's.
    Any,
    /// These, and those of the session's own host. In lower case; a `*` stands for the first label.
    Listed(Vec<String>),
}

/// `[access.cors]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Cors {
    /// What a page may use: `GET, PUT`.
    pub methods: String,
    /// The headers that it may send: `Authorization, X-Token`.
    pub headers: String,
    /// Whether its requests may carry cookies.
    pub credentials: bool,
    /// How long a browser may remember the answer.
    pub max_age: Duration,
}

/// A header's name, and how the operator spelled it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Spelled {
    /// In lower case.
    pub name: HeaderName,
    /// As it goes to the instance.
    pub spelled: Bytes,
}

/// `[access.jwt]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Jwt {
    /// Where the keys are.
    pub jwks: KeySet,
    /// The one kind of signature that counts: `RS256`, for example.
    pub algorithm: String,
    /// Who must have made it.
    pub issuer: Option<String>,
    /// For whom it must be: any one of these.
    pub audience: Vec<String>,
    /// What else it must say. The values are templates.
    pub claims: BTreeMap<String, String>,
    /// The claim that names the user.
    pub user: String,
    /// The cookie that may hold it.
    pub cookie: Option<String>,
    /// How wrong clocks may be.
    pub leeway: Duration,
}

/// Where the keys of JWTs are.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeySet {
    /// A file, or a URL.
    pub at: KeySetAt,
    /// How often it is read again.
    pub refresh: Duration,
}

/// Where a key set is read from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum KeySetAt {
    /// A file.
    File(PathBuf),
    /// `http://` or `https://`.
    Url(String),
}

/// `[access.forward]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Forward {
    /// Whom to ask. A template.
    pub url: String,
    /// How long to wait for the answer.
    pub timeout: Duration,
    /// The headers of its answer that go to the instance.
    pub headers: Vec<Spelled>,
    /// The one of them that names the user.
    pub user: Option<HeaderName>,
    /// The client's headers that it is shown.
    pub shows: Vec<HeaderName>,
    /// What headers of its yes must say. The values are templates.
    pub expect: Vec<(HeaderName, String)>,
    /// For how long an answer counts; nothing: ask every time.
    pub cache: Duration,
    /// How many may be asked at once.
    pub at_once: u32,
}

/// `[access.basic]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Basic {
    /// The file with a line `USER:HASH` for each, from `folder`. A template.
    pub users: String,
    /// The route file's own.
    pub folder: PathBuf,
    /// The only user that counts. A template.
    pub user: Option<String>,
}

/// `[access.addresses]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Addresses {
    /// Who may; empty: all who are not denied.
    pub allow: Vec<IpNet>,
    /// Who may not, whatever else they bring.
    pub deny: Vec<IpNet>,
}

/// `[access.mtls]`. Both lists empty: every certificate that the listener has accepted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Mtls {
    /// Patterns of the subject. Templates.
    pub subject: Vec<String>,
    /// Patterns of a subject alternative name. Templates.
    pub san: Vec<String>,
}

impl Policy {
    /// The word used in route files, logs and headers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Addresses => "addresses",
            Self::Mtls => "mtls",
            Self::Link => "link",
            Self::Jwt => "jwt",
            Self::Basic => "basic",
            Self::Forward => "forward",
        }
    }
}

impl Access {
    /// Everybody may enter.
    pub fn open() -> Self {
        let spelled = |spelled: &'static str| Spelled {
            name: HeaderName::from_bytes(spelled.as_bytes()).expect("a plain name"),
            spelled: Bytes::from_static(spelled.as_bytes()),
        };
        Self {
            require: Vec::new(),
            origin: Origin::Same,
            cors: None,
            end_open: false,
            insecure_cookie: false,
            user_header: spelled(USER_HEADER),
            access_header: spelled(ACCESS_HEADER),
            jwt: None,
            forward: None,
            basic: None,
            addresses: None,
            mtls: None,
        }
    }

    /// Whether everybody may enter.
    pub fn is_open(&self) -> bool {
        self.require.is_empty()
    }

    /// Whether any of its policies is this one.
    pub fn asks(&self, policy: Policy) -> bool {
        self.require.iter().flatten().any(|other| *other == policy)
    }

    /// The policies that let one user into every session of a pattern, where nothing else keeps the
    /// users of different sessions apart.
    pub fn unbound(&self) -> Vec<Policy> {
        let is_bound = |any: &Vec<Policy>| any.iter().all(|policy| self.binds(*policy));
        if self.require.iter().any(is_bound) {
            return Vec::new();
        }
        let all = self.require.iter().flatten().copied();
        all.filter(|policy| *policy != Policy::Addresses && !self.binds(*policy)).collect()
    }

    /// Whether who meets this policy in one session does not meet it in another.
    fn binds(&self, policy: Policy) -> bool {
        match policy {
            Policy::Addresses => false,
            // A link is for one host, and the service is told which one it is asked for.
            Policy::Link | Policy::Forward => true,
            Policy::Mtls => self.mtls.as_ref().is_some_and(|mtls| {
                let mut patterns = mtls.subject.iter().chain(&mtls.san).peekable();
                patterns.peek().is_some() && patterns.all(|pattern| has_capture(pattern))
            }),
            Policy::Jwt => {
                self.jwt.as_ref().is_some_and(|jwt| jwt.claims.values().any(|it| has_capture(it)))
            }
            Policy::Basic => self.basic.as_ref().is_some_and(|basic| {
                basic.is_per_session() || basic.user.as_deref().is_some_and(has_capture)
            }),
        }
    }

    /// Whether the connection alone may decide it, so that a session can wake before its request is
    /// seen: the client's address, or the certificate that it shows in the handshake.
    pub fn is_of_connection(&self) -> bool {
        let decides = |policy: &Policy| matches!(policy, Policy::Addresses | Policy::Mtls);
        self.require.iter().all(|any| any.iter().any(decides))
    }

    /// The headers in which the instance is told something: no client may send them.
    pub fn told_in(&self) -> impl Iterator<Item = &HeaderName> {
        let forward = self.forward.iter().flat_map(|forward| &forward.headers);
        let ours = [&self.user_header, &self.access_header].into_iter().chain(forward);
        ours.map(|spelled| &spelled.name)
    }

    /// In words: `open`, or `addresses and (link or jwt)`.
    pub fn in_words(&self) -> String {
        if self.is_open() {
            return "open".into();
        }
        let alone = self.require.len() == 1;
        let clause = |any: &Vec<Policy>| {
            let words: Vec<_> = any.iter().map(|policy| policy.as_str()).collect();
            let words = words.join(" or ");
            if alone || any.len() == 1 { words } else { format!("({words})") }
        };
        self.require.iter().map(clause).collect::<Vec<_>>().join(" and ")
    }
}

impl Basic {
    /// Whether each session has a file of its own.
    pub fn is_per_session(&self) -> bool {
        has_capture(&self.users)
    }

    /// The file, where all sessions share it.
    pub fn one_file(&self) -> Option<PathBuf> {
        let plain = || self.users.replace("{{", "{").replace("}}", "}");
        (!self.is_per_session()).then(|| self.folder.join(plain()))
    }
}

impl Addresses {
    /// Whether it is among those that may not.
    pub fn denies(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.deny.iter().any(|net| net.contains(&address))
    }

    /// Whether it may enter.
    pub fn admits(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let allowed = self.allow.is_empty() || self.allow.iter().any(|net| net.contains(&address));
        allowed && !self.denies(address)
    }
}

/// Where the instance is told who it is, unless the route says otherwise.
pub(crate) const USER_HEADER: &str = "X-Dormouse-User";
/// Where the instance is told how that is known.
pub(crate) const ACCESS_HEADER: &str = "X-Dormouse-Access";
