//! `[access]`: from what is written to what it means.

use std::{collections::BTreeMap, net::IpAddr, path::Path};

use bytes::Bytes;
use http::{HeaderName, Method, Uri};
use ipnet::IpNet;

use super::{Check, NOT_TO_SET};
use crate::route::{
    access::{
        Access, Addresses, Basic, Cors, Forward, Jwt, KeySet, KeySetAt, Mtls, Origin, Policy,
        Spelled,
    },
    canonical_host,
    file::access::{
        AccessTable, AddressesTable, AllOrAny, BasicTable, CorsTable, ForwardTable, JwtTable,
        MtlsTable, OneOrMore, OriginWord, Require, SameOrAny,
    },
    source::suggest,
};

/// The algorithms that ring checks, and that no token may choose for itself.
const ALGORITHMS: [&str; 12] = [
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA", "HS256",
    "HS384", "HS512",
];
/// Policies, in the order of what they cost.
const POLICIES: [Policy; 6] =
    [Policy::Addresses, Policy::Mtls, Policy::Link, Policy::Jwt, Policy::Basic, Policy::Forward];

impl Check<'_> {
    /// `folder` is the route file's own: relative paths start there.
    pub(super) fn access(&mut self, table: AccessTable, folder: &Path) -> Access {
        let AccessTable {
            require,
            link,
            jwt,
            forward,
            basic,
            addresses,
            mtls,
            origin,
            cors,
            end_open,
            insecure_cookie,
            user_header,
            access_header,
        } = table;
        let open = Access::open();
        let origin = self.origin(origin);
        let access = Access {
            require: Vec::new(),
            cors: cors.map(|cors| self.cors(cors, &origin)),
            origin,
            end_open,
            insecure_cookie,
            user_header: self
                .told_in(&["access", "user_header"], &user_header)
                .unwrap_or(open.user_header),
            access_header: self
                .told_in(&["access", "access_header"], &access_header)
                .unwrap_or(open.access_header),
            jwt: jwt.and_then(|jwt| self.jwt(jwt, folder)),
            forward: forward.map(|forward| self.forward(forward)),
            basic: basic.map(|basic| self.basic(basic, folder)),
            addresses: addresses.map(|addresses| self.addresses(addresses)),
            mtls: mtls.map(|mtls| self.mtls(mtls)),
        };
        let has = |policy: &Policy| match policy {
            Policy::Addresses => access.addresses.is_some(),
            Policy::Mtls => access.mtls.is_some(),
            Policy::Link => link,
            Policy::Jwt => access.jwt.is_some(),
            Policy::Basic => access.basic.is_some(),
            Policy::Forward => access.forward.is_some(),
        };
        let there: Vec<Policy> = POLICIES.into_iter().filter(has).collect();
        self.useless(&access, link, &there);
        let require = self.require(require, &there);
        Access { require, ..access }
    }

    /// What would look like protection where there is none.
    fn useless(&mut self, access: &Access, link: bool, there: &[Policy]) {
        let hint = || Some("add link = true, or [access.jwt] for example".to_owned());
        if access.end_open && there.is_empty() {
            let wrong = "there is no policy, so nothing can end: the route is open";
            self.found.value(&["access", "end_open"], wrong).hint = hint();
        }
        if access.insecure_cookie && !link {
            let wrong = "there is no `link`, so there is no cookie";
            self.found.value(&["access", "insecure_cookie"], wrong).hint = hint();
        }
    }

    fn require(&mut self, require: Option<Require>, there: &[Policy]) -> Vec<Vec<Policy>> {
        let path = ["access", "require"];
        let mut clauses = match require {
            None => return there.iter().map(|policy| vec![*policy]).collect(),
            Some(_) if there.is_empty() => {
                self.found.value(&path, "there is no policy to require").hint =
                    Some("add link = true, or [access.basic] for example".into());
                return Vec::new();
            }
            Some(Require::Word(AllOrAny::All)) => {
                return there.iter().map(|policy| vec![*policy]).collect();
            }
            Some(Require::Word(AllOrAny::Any)) => return vec![there.to_vec()],
            Some(Require::Each(clauses)) => self.clauses(&clauses, there),
        };
        if clauses.is_empty() {
            self.found.value(&path, "an empty list would let everybody in").hint =
                Some("take [access] away for an open route".into());
            return clauses;
        }
        let unused =
            there.iter().find(|policy| !clauses.iter().flatten().any(|used| used == *policy));
        // An empty clause is the mistake then.
        if let Some(unused) = unused.filter(|_| clauses.iter().all(|any| !any.is_empty())) {
            let wrong = format!("`{}` is set up, but nothing requires it", unused.as_str());
            self.found.value(&path, wrong).hint = Some("name it here, or take it away".into());
        }
        // The cheapest first: what it refuses costs nothing more.
        clauses.sort_by_key(|any| any.iter().max().copied());
        clauses
    }

    fn clauses(&mut self, clauses: &[OneOrMore], there: &[Policy]) -> Vec<Vec<Policy>> {
        let mut read = Vec::with_capacity(clauses.len());
        for (index, clause) in clauses.iter().enumerate() {
            let index = index.to_string();
            let path = ["access", "require", &index];
            let names = match clause {
                OneOrMore::One(name) => std::slice::from_ref(name),
                OneOrMore::More(names) => names,
            };
            if names.is_empty() {
                self.found.value(&path, "an empty list can never be met");
            }
            let mut any: Vec<Policy> = Vec::with_capacity(names.len());
            for name in names {
                match there.iter().find(|policy| policy.as_str() == name) {
                    Some(policy) => any.push(*policy),
                    None => {
                        let known: Vec<_> = there.iter().map(|policy| policy.as_str()).collect();
                        let wrong = format!("no policy `{name}` is set up in [access]");
                        self.found.value(&path, wrong).hint = Some(suggest(name, &known));
                    }
                }
            }
            any.sort_unstable();
            any.dedup();
            read.push(any);
        }
        read
    }

    fn origin(&mut self, origin: OriginWord) -> Origin {
        let origins = match origin {
            OriginWord::Word(SameOrAny::Same) => return Origin::Same,
            OriginWord::Word(SameOrAny::Any) => return Origin::Any,
            OriginWord::Listed(origins) => origins,
        };
        let mut listed = Vec::with_capacity(origins.len());
        for (index, origin) in origins.iter().enumerate() {
            let lower = origin.to_ascii_lowercase();
            if let Err((wrong, hint)) = check_origin(&lower) {
                let path = ["access", "origin", &index.to_string()];
                self.found.value(&path, format!("`{origin}` {wrong}")).hint = Some(hint.into());
            }
            listed.push(lower);
        }
        Origin::Listed(listed)
    }

    fn cors(&mut self, table: CorsTable, origin: &Origin) -> Cors {
        let CorsTable { methods, headers, credentials, max_age } = table;
        if *origin == Origin::Same {
            self.found.key(&["access", "cors"], "whose pages may ask is not said").hint =
                Some("add origin = [\"https://app.example.com\"] to [access]".into());
        }
        if *origin == Origin::Any && credentials {
            let wrong = "any page could ask with its visitor's credentials";
            self.found.value(&["access", "cors", "credentials"], wrong).hint =
                Some("list the pages in access.origin".into());
        }
        let is_method = |name: &str| Method::from_bytes(name.as_bytes()).is_ok();
        let is_header = |name: &str| HeaderName::try_from(name).is_ok();
        self.words("methods", &methods, is_method, "no method");
        self.words("headers", &headers, is_header, "no name of a header");
        let (methods, headers) = (methods.join(", "), headers.join(", "));
        Cors { methods, headers, credentials, max_age: max_age.0 }
    }

    fn words(&mut self, key: &str, words: &[String], is_one: fn(&str) -> bool, wrong: &str) {
        for (index, word) in words.iter().enumerate() {
            // To a request with credentials a `*` is the name itself.
            if !is_one(word) || word.contains('*') {
                let path = ["access", "cors", key, &index.to_string()];
                self.found.value(&path, format!("`{word}` is {wrong}"));
            }
        }
    }

    fn basic(&mut self, table: BasicTable, folder: &Path) -> Basic {
        let BasicTable { users, user } = table;
        self.template(&["access", "basic", "users"], &users, &[]);
        if let Some(user) = &user {
            self.template(&["access", "basic", "user"], user, &[]);
            if user.is_empty() {
                self.found.value(&["access", "basic", "user"], "nobody has an empty name");
            }
        }
        Basic { users, folder: folder.to_owned(), user }
    }

    fn addresses(&mut self, table: AddressesTable) -> Addresses {
        let AddressesTable { allow, deny } = table;
        if allow.is_empty() && deny.is_empty() {
            self.found.key(&["access", "addresses"], "neither `allow` nor `deny`");
        }
        Addresses { allow: self.networks("allow", &allow), deny: self.networks("deny", &deny) }
    }

    fn networks(&mut self, key: &str, texts: &[String]) -> Vec<IpNet> {
        let mut networks = Vec::with_capacity(texts.len());
        for (index, text) in texts.iter().enumerate() {
            let network =
                text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
            let wrong = match network {
                Ok(network) if network.trunc() == network => {
                    networks.push(network);
                    continue;
                }
                Ok(network) => (
                    format!("`{text}` has bits set behind its prefix"),
                    format!("write {}", network.trunc()),
                ),
                Err(_) => (
                    format!("`{text}` is no address and no network"),
                    "expected one such as 10.0.0.0/8, 192.0.2.7 or 2001:db8::/32".to_owned(),
                ),
            };
            let path = ["access", "addresses", key, &index.to_string()];
            self.found.value(&path, wrong.0).hint = Some(wrong.1);
        }
        networks
    }

    fn jwt(&mut self, table: JwtTable, folder: &Path) -> Option<Jwt> {
        let JwtTable { jwks, algorithm, issuer, audience, claims, user, cookie, leeway, refresh } =
            table;
        if !ALGORITHMS.contains(&&*algorithm) {
            let wrong = format!("no algorithm is called `{algorithm}`");
            self.found.value(&["access", "jwt", "algorithm"], wrong).hint =
                Some(suggest(&algorithm, &ALGORITHMS));
        }
        let is_url = jwks.contains("://");
        if is_url {
            self.url(&["access", "jwt", "jwks"], &jwks);
        } else if jwks.is_empty() {
            self.found.value(&["access", "jwt", "jwks"], "neither a file nor a URL");
        }
        for (name, value) in &claims {
            self.template(&["access", "jwt", "claims", name], value, &[]);
        }
        if cookie.as_deref().is_some_and(|name| HeaderName::try_from(name).is_err()) {
            self.found.value(&["access", "jwt", "cookie"], "no name of a cookie");
        }
        if refresh.0.as_secs() == 0 {
            self.found.value(&["access", "jwt", "refresh"], "`refresh` is at least a second");
        }
        let at = if is_url { KeySetAt::Url(jwks) } else { KeySetAt::File(folder.join(jwks)) };
        let jwks = KeySet { at, refresh: refresh.0 };
        let leeway = leeway.0;
        Some(Jwt { jwks, algorithm, issuer, audience, claims, user, cookie, leeway })
    }

    fn forward(&mut self, table: ForwardTable) -> Forward {
        let ForwardTable { url, timeout, headers, user, shows, expect, cache, at_once } = table;
        if let Some(sample) = self.template(&["access", "forward", "url"], &url, &[]) {
            self.url(&["access", "forward", "url"], &sample);
        }
        if timeout.0.is_zero() {
            self.found
                .value(&["access", "forward", "timeout"], "`timeout` must be more than nothing");
        }
        if at_once == 0 {
            self.found.value(&["access", "forward", "at_once"], "`at_once` starts at 1");
        }
        let headers = headers.iter().enumerate().filter_map(|(index, name)| {
            self.told_in(&["access", "forward", "headers", &index.to_string()], name)
        });
        let headers: Vec<_> = headers.collect();
        let shows = shows.iter().enumerate().filter_map(|(index, name)| {
            let name = HeaderName::try_from(name);
            if name.is_err() {
                let path = ["access", "forward", "shows", &index.to_string()];
                self.found.value(&path, "no name of a header");
            }
            name.ok()
        });
        let shows: Vec<_> = shows.collect();
        let user = user.and_then(|name| {
            let name = HeaderName::try_from(name);
            if name.is_err() {
                self.found.value(&["access", "forward", "user"], "no name of a header");
            }
            name.ok()
        });
        let expect = self.expect(expect);
        Forward { url, timeout: timeout.0, headers, user, shows, expect, cache: cache.0, at_once }
    }

    fn expect(&mut self, expect: BTreeMap<String, String>) -> Vec<(HeaderName, String)> {
        let mut expected = Vec::with_capacity(expect.len());
        for (name, value) in expect {
            let path = ["access", "forward", "expect", &name];
            self.template(&path, &value, &[]);
            match HeaderName::try_from(&name) {
                Ok(name) => expected.push((name, value)),
                Err(_) => drop(self.found.key(&path, format!("`{name}` is no name of a header"))),
            }
        }
        expected
    }

    fn mtls(&mut self, table: MtlsTable) -> Mtls {
        let MtlsTable { subject, san } = table;
        for (key, patterns) in [("subject", &subject), ("san", &san)] {
            for (index, pattern) in patterns.iter().enumerate() {
                self.template(&["access", "mtls", key, &index.to_string()], pattern, &[]);
            }
        }
        Mtls { subject, san }
    }

    fn url(&mut self, path: &[&str], url: &str) {
        let is_url = url.parse::<Uri>().is_ok_and(|uri| {
            matches!(uri.scheme_str(), Some("http" | "https"))
                && uri.host().is_some_and(|host| !host.is_empty())
        });
        if !is_url {
            self.found.value(path, format!("`{url}` is no URL")).hint =
                Some("expected http://… or https://…".into());
        }
    }

    /// A header in which the instance is told something.
    fn told_in(&mut self, path: &[&str], name: &str) -> Option<Spelled> {
        const ALSO_NOT: [&str; 3] = ["host", "cookie", "authorization"];
        let Ok(parsed) = HeaderName::try_from(name) else {
            self.found.value(path, format!("`{name}` is no name of a header"));
            return None;
        };
        if NOT_TO_SET.contains(&parsed.as_str()) || ALSO_NOT.contains(&parsed.as_str()) {
            self.found.value(path, format!("`{name}` cannot be set"));
        }
        Some(Spelled { name: parsed, spelled: Bytes::copy_from_slice(name.as_bytes()) })
    }
}

/// `SCHEME://HOST` as browsers say it, whose first label may be a `*`; otherwise what is wrong, and
/// what to do.
fn check_origin(origin: &str) -> Result<(), (&'static str, &'static str)> {
    const EXPECTED: (&str, &str) = (
        "is no origin",
        "expected SCHEME://HOST or SCHEME://HOST:PORT, and nothing after it; the first label may be `*`",
    );
    let (scheme, authority) = origin.split_once("://").ok_or(EXPECTED)?;
    let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.');
    let is_scheme = scheme.starts_with(|first: char| first.is_ascii_lowercase());
    let default_port = match scheme {
        "https" => Some(":443"),
        "http" => Some(":80"),
        _ => None,
    };
    if authority.split(':').next() == Some("*") {
        return match default_port {
            Some(_) => {
                Err(("is every host there is", "say \"any\", or name the domain behind the `*`"))
            }
            None if authority == "*" && is_scheme && scheme.bytes().all(is_letter) => Ok(()),
            None => Err(EXPECTED),
        };
    }
    if default_port.is_some_and(|port| authority.ends_with(port)) {
        return Err(("is said by no browser", "leave the scheme's own port out"));
    }
    let host = authority.strip_prefix("*.").unwrap_or(authority);
    let is_host = canonical_host(host).is_some() && !host.ends_with([':', '.']);
    let is_good = is_host && is_scheme && scheme.bytes().all(is_letter);
    if is_good { Ok(()) } else { Err(EXPECTED) }
}
