//! Who may enter, decided before anything wakes: a request's head in, a [`Decision`] out.
//!
//! What a route asks for is [`crate::route::access`]; [`Door`] holds what is needed to judge it:
//! the keys of links, what was revoked, users, key sets, answers that still count. It must not know
//! Pingora, the fleet or an engine: whoever it refuses has cost nobody anything.

mod basic;
mod carried;
mod cors;
mod doubts;
mod fetch;
mod files;
mod forward;
#[doc(hidden)]
pub mod fuzz;
mod grant;
mod jwt;
mod keys;
mod link;
mod mtls;
mod origin;
mod remembered;
mod revoked;
mod token;

use std::{
    collections::HashSet,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures::future::join_all;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};
use tokio::{sync::Semaphore, time::sleep};

pub use carried::{Carried, Without};
pub use cors::may_read;
pub use doubts::{doubts, readable_by_all};
pub use files::{check_files, check_keys};
pub use grant::Grant;
pub use keys::Keys;
pub use link::{Link, LinkError, NewLink};
pub use revoked::{RevokeError, Revoked};
pub use token::Flaw;

use crate::{
    config::Links,
    route::{
        Route, RouteError, RouteTable,
        access::{Access, Policy, Spelled},
    },
};
use remembered::Kept;

/// How often what was revoked elsewhere, and key sets, are looked at again.
const ROUND: Duration = Duration::from_secs(1);

/// Judges requests.
#[derive(Debug)]
pub struct Door {
    keys: Keys,
    revoked: Revoked,
    expires_max: Duration,
    users: Kept<Path, basic::Users>,
    key_sets: Kept<crate::route::access::KeySet, jwt::KeySet>,
    services: Kept<crate::route::access::Forward, forward::Service>,
    fetch: fetch::Fetch,
    /// Passwords take their time on threads of their own, this many at once.
    hashing: Arc<Semaphore>,
}

/// What is known of a request.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Its method.
    pub method: &'a Method,
    /// Its target.
    pub uri: &'a Uri,
    /// Its headers, as they came.
    pub headers: &'a HeaderMap,
    /// The session's host, canonical.
    pub host: &'a str,
    /// The host as the client wrote it.
    pub named: &'a str,
    /// Whether it came over TLS.
    pub is_secure: bool,
    /// Whether it asks for another protocol, such as WebSocket.
    pub is_upgrade: bool,
    /// Whom it comes from.
    pub address: Option<IpAddr>,
    /// The client's certificate, verified by the listener: the leaf's DER.
    pub certificate: Option<&'a [u8]>,
}

/// What becomes of a request.
#[derive(Debug)]
pub enum Decision {
    /// Everybody may enter.
    Open,
    /// It may go on.
    Allow(Box<Entry>),
    /// Its link was good: it becomes a cookie, and the same URL is asked for again without it.
    Exchange {
        /// The value of `Set-Cookie`; `None` where the client has one that is good.
        cookie: Option<HeaderValue>,
        /// The value of `Location`.
        location: HeaderValue,
    },
    /// A browser asks what a page may send: this.
    Preflight(Vec<(HeaderName, HeaderValue)>),
    /// It may not.
    Refuse(Refusal),
    /// The service that decides has said so, in its own words.
    Pass(Passed),
}

/// Who has entered, and for how long.
#[derive(Debug, Default)]
pub struct Entry {
    /// The user, where there is one.
    pub user: Option<HeaderValue>,
    /// The policies that let it in.
    pub access: Option<HeaderValue>,
    /// What the service that decides wants the instance to know.
    pub headers: Vec<(Spelled, HeaderValue)>,
    /// Whether its password was asked for here: it is not the instance's to see.
    pub hides_password: bool,
    /// What its access rests on, where that can end.
    pub grant: Option<Arc<Grant>>,
}

/// An answer of the service that decides.
#[derive(Clone, Debug)]
pub struct Passed {
    /// 401, 403 or a redirect.
    pub status: StatusCode,
    /// What it says to the client.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

/// Why a request may not enter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It brings no name and password, or wrong ones; or no JWT that counts.
    Unknown {
        /// A name and a password would help.
        basic: bool,
        /// A JWT would help.
        bearer: bool,
    },
    /// Its link does not count, or there is none.
    Link(Flaw),
    /// Its address or certificate, or what its JWT says, is not let in.
    NotAllowed,
    /// A page of another site tries to open a WebSocket.
    Origin,
    /// It cannot be decided now.
    Undecided,
}

/// What one policy says.
#[derive(Debug)]
enum Outcome {
    Met(Met),
    Not(Refusal),
    Passed(Passed),
}

/// What a policy that is met knows.
#[derive(Debug, Default)]
struct Met {
    user: Option<String>,
    /// In seconds since 1970.
    expires: Option<u64>,
    /// The link's own id and its key's.
    link: Option<(String, String)>,
    headers: Vec<(Spelled, HeaderValue)>,
}

impl Door {
    /// Reads the keys and what was revoked. Makes a key in `state` where none is configured.
    pub fn open(links: &Links, state: &Path) -> Result<Arc<Self>, RouteError> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Arc::new(Self {
            keys: Keys::open(links, state)?,
            revoked: Revoked::open(&state.join("revoked.json"))?,
            expires_max: links.expires_max,
            users: Kept::default(),
            key_sets: Kept::default(),
            services: Kept::default(),
            fetch: fetch::Fetch::new(),
            hashing: Arc::new(Semaphore::new(threads)),
        }))
    }

    /// Forgets what belongs to no route any more.
    pub fn keep(&self, table: &RouteTable) {
        let all = || table.iter().map(|route| &route.recipe.access);
        // Those of single sessions are read again when somebody asks.
        let fixed: HashSet<PathBuf> =
            all().filter_map(|access| access.basic.as_ref()?.one_file()).collect();
        self.users.retain(|file| fixed.contains(file));
        self.key_sets.retain(|set| all().any(|a| a.jwt.as_ref().is_some_and(|j| j.jwks == *set)));
        self.services.retain(|service| all().any(|a| a.forward.as_ref() == Some(service)));
    }

    /// Looks again at what changes by itself, for ever.
    pub async fn run(&self) {
        let revoked = async {
            loop {
                // First of all: it may be long since it was read, where another process had to end.
                self.revoked.refresh();
                sleep(ROUND).await;
            }
        };
        // A set that is slow to come delays the others, and nothing else.
        let key_sets = async {
            loop {
                sleep(ROUND).await;
                let sets = self.key_sets.all();
                join_all(sets.iter().map(|set| set.refresh_if_due(&self.fetch))).await;
            }
        };
        tokio::join!(revoked, key_sets);
    }

    /// Decides. Costs nothing but time, and only where a policy has to ask somebody.
    pub async fn decide(
        self: &Arc<Self>,
        route: &Route,
        request: &Request<'_>,
        carried: &Carried<'_>,
    ) -> Decision {
        let access = &route.recipe.access;
        if !origin::admits(access, request) {
            return Decision::Refuse(Refusal::Origin);
        }
        if is_denied(access, request.address) {
            return Decision::Refuse(Refusal::NotAllowed);
        }
        if let Some(decision) = cors::answer(access, request) {
            return decision;
        }
        if access.is_open() {
            return Decision::Open;
        }
        let mut met: Vec<(Policy, Met)> = Vec::with_capacity(access.require.len());
        for any in &access.require {
            match self.one_of(any, route, request, carried, &met).await {
                Ok(Some(one)) => met.push(one),
                Ok(None) => {}
                Err(decision) => return decision,
            }
        }
        self.let_in(access, request, carried, met)
    }

    /// The first policy of these that is met; `None` if it was met before.
    async fn one_of(
        &self,
        any: &[Policy],
        route: &Route,
        request: &Request<'_>,
        carried: &Carried<'_>,
        met: &[(Policy, Met)],
    ) -> Result<Option<(Policy, Met)>, Decision> {
        if any.iter().any(|policy| met.iter().any(|(known, _)| known == policy)) {
            return Ok(None);
        }
        let mut refused: Option<Refusal> = None;
        for policy in any {
            let refusal = match self.ask(*policy, route, request, carried).await {
                Outcome::Met(one) => return Ok(Some((*policy, one))),
                Outcome::Passed(passed) => return Err(Decision::Pass(passed)),
                Outcome::Not(refusal) => refusal,
            };
            refused = Some(refused.map_or(refusal, |before| before.or(refusal)));
        }
        Err(Decision::Refuse(refused.unwrap_or(Refusal::NotAllowed)))
    }

    async fn ask(
        &self,
        policy: Policy,
        route: &Route,
        request: &Request<'_>,
        carried: &Carried<'_>,
    ) -> Outcome {
        let access = &route.recipe.access;
        match policy {
            Policy::Addresses => {
                if is_allowed(access, request.address) {
                    Outcome::Met(Met::default())
                } else {
                    Outcome::Not(Refusal::NotAllowed)
                }
            }
            Policy::Mtls => mtls::ask(route, request),
            Policy::Link => link::ask(&self.keys, &self.revoked, access, request, carried),
            Policy::Jwt => match &access.jwt {
                Some(jwt) => {
                    let keys = self.key_sets.get(&jwt.jwks, jwt::KeySet::new);
                    jwt::ask(jwt, &keys, &self.fetch, route, request).await
                }
                None => Outcome::Not(Refusal::Undecided),
            },
            Policy::Basic => match &access.basic {
                Some(basic) => basic::ask(basic, &self.users, &self.hashing, route, request).await,
                None => Outcome::Not(Refusal::Undecided),
            },
            Policy::Forward => match &access.forward {
                Some(forward) => {
                    let service = self.services.get(forward, forward::Service::new);
                    forward::ask(forward, &service, &self.fetch, route, request).await
                }
                None => Outcome::Not(Refusal::Undecided),
            },
        }
    }

    /// All is met. A link in the URL becomes a cookie now, also where it was not asked for.
    fn let_in(
        self: &Arc<Self>,
        access: &Access,
        request: &Request<'_>,
        carried: &Carried<'_>,
        met: Vec<(Policy, Met)>,
    ) -> Decision {
        if let Some(location) = carried.location(request)
            && access.asks(Policy::Link)
            && let Ok(location) = HeaderValue::try_from(location)
        {
            let cookie = link::exchange(&self.keys, &self.revoked, access, request, carried);
            return Decision::Exchange { cookie, location };
        }
        let names: Vec<_> = met.iter().map(|(policy, _)| policy.as_str()).collect();
        let mut entry = Entry {
            access: HeaderValue::try_from(names.join(", ")).ok(),
            hides_password: met.iter().any(|(policy, _)| *policy == Policy::Basic),
            ..Entry::default()
        };
        let (mut expires, mut link): (Option<u64>, _) = (None, None);
        for (_, met) in met {
            entry.user = entry.user.or_else(|| user_value(&met.user?));
            entry.headers.extend(met.headers);
            expires = [expires, met.expires].into_iter().flatten().min();
            link = link.or(met.link);
        }
        if access.end_open && (expires.is_some() || link.is_some()) {
            entry.grant = Some(Arc::new(Grant::new(Arc::clone(self), expires, link)));
        }
        Decision::Allow(Box::new(entry))
    }
}

impl Refusal {
    /// What helps more, of two ways in that are both closed.
    fn or(self, other: Self) -> Self {
        match (self, other) {
            (Self::Unknown { basic: a, bearer: b }, Self::Unknown { basic: c, bearer: d }) => {
                Self::Unknown { basic: a || c, bearer: b || d }
            }
            (known @ Self::Unknown { .. }, _) | (_, known @ Self::Unknown { .. }) => known,
            (Self::Undecided, _) | (_, Self::Undecided) => Self::Undecided,
            (Self::Link(flaw), _) | (_, Self::Link(flaw)) => Self::Link(flaw),
            (first, _) => first,
        }
    }
}

/// Whether a client may enter whatever it asks for, as far as its connection tells: by its address
/// and the certificate that it has shown, checked by the listener.
pub fn admits_unseen(
    route: &Route,
    host: &str,
    address: Option<IpAddr>,
    certificate: Option<&[u8]>,
) -> bool {
    let access = &route.recipe.access;
    let admits = |policy: &Policy| match policy {
        Policy::Addresses => is_allowed(access, address),
        Policy::Mtls => mtls::admits(route, host, certificate).is_some(),
        _ => false,
    };
    !is_denied(access, address) && access.require.iter().all(|any| any.iter().any(admits))
}

fn is_allowed(access: &Access, address: Option<IpAddr>) -> bool {
    let addresses = access.addresses.as_ref().zip(address);
    addresses.is_some_and(|(addresses, address)| addresses.admits(address))
}

fn is_denied(access: &Access, address: Option<IpAddr>) -> bool {
    let denies = access.addresses.as_ref().filter(|addresses| !addresses.deny.is_empty());
    // Who has no address cannot be told from those that are denied.
    denies.is_some_and(|addresses| address.is_none_or(|address| addresses.denies(address)))
}

/// As a header's value: what cannot be one is percent-encoded, so that no name becomes another's.
fn user_value(user: &str) -> Option<HeaderValue> {
    let mut value = String::with_capacity(user.len());
    for byte in user.bytes() {
        match byte {
            b'%' | 0..=0x1f | 0x7f.. => value.push_str(&format!("%{byte:02X}")),
            _ => value.push(char::from(byte)),
        }
    }
    // White space at the ends would be cut by whoever reads it.
    let trimmed = value.trim_matches(' ');
    if trimmed.len() == value.len() { HeaderValue::try_from(value).ok() } else { None }
}

/// Seconds since 1970.
pub(crate) fn unix_now() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs())
}
