//! What the fuzzer calls with bytes: each function reads them as an attacker's or an operator's, and
//! says what must hold. `tests/fuzz.rs` runs the committed corpora through the same functions.

use std::{collections::BTreeMap, path::Path};

use dormouse::{
    access,
    config::Config,
    edge::fuzz,
    route::{EngineKind, Engines, Route, RouteError, RouteTable, canonical_host},
};

/// Holds what it says for any bytes, or panics.
pub type Target = fn(&[u8]);

/// All targets, by the names of their binaries and their corpora.
pub const TARGETS: [(&str, Target); 8] = [
    ("hosts", hosts),
    ("route_file", route_file),
    ("config_file", config_file),
    ("proxy_header", proxy_header),
    ("forwarded", forwarded),
    ("framing", framing),
    ("token", token),
    ("carried", carried),
];

fn engines() -> Engines {
    BTreeMap::from([
        ("local".to_owned(), EngineKind::Process),
        ("docker".to_owned(), EngineKind::Docker),
    ])
}

/// The first line is a client's `Host`, each other one the host of a route.
pub fn hosts(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut lines = text.split('\n');
    let Some(host) = lines.next().and_then(canonical_host) else { return };
    assert_eq!(canonical_host(&host).as_deref(), Some(&*host), "canonical is canonical");
    let mut routes = Vec::new();
    for (index, pattern) in lines.take(8).enumerate() {
        let name = format!("r{index}");
        let toml = format!("host = {pattern:?}\nengine = \"local\"\ninstance.command = [\"x\"]");
        routes.extend(Route::parse(&name, Path::new("r.toml"), &toml, &engines()));
    }
    let matches: Vec<_> =
        routes.iter().filter(|route| route.host.values(&host).is_some()).cloned().collect();
    let Ok(table) = RouteTable::new(routes) else { return };
    match table.lookup(&host) {
        None => assert!(matches.is_empty(), "{host} matches {matches:?}"),
        Some(route) => {
            let values = route.host.values(&host).expect("what was found matches");
            assert_eq!(values.len(), route.host.captures().len());
            for value in values {
                assert!((1..=63).contains(&value.len()) && !value.contains('.'), "{value}");
            }
            let _ = route.plan(&host);
        }
    }
}

/// A route file, as an operator or an editor leaves it.
pub fn route_file(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match Route::parse("fuzz", Path::new("fuzz.toml"), text, &engines()) {
        Ok(route) => {
            let host = route.host.as_str().replace(['{', '}'], "");
            let _ = route.plan(&host);
        }
        Err(errors) => are_told(text, &errors),
    }
}

/// `dormouse.toml`.
pub fn config_file(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let parsed = Config::parse(Path::new("/etc/dormouse.toml"), text, |_| None);
    if let Err(errors) = parsed {
        are_told(text, &errors);
    }
}

/// Something is said, and where it is said to be there is something.
fn are_told(text: &str, errors: &[RouteError]) {
    assert!(!errors.is_empty());
    let lines = text.split('\n').count();
    for error in errors {
        assert!(!error.message.is_empty());
        assert!(error.at.is_none_or(|at| at.line <= lines), "{error}");
    }
}

/// What comes before TLS or HTTP where the PROXY protocol is spoken.
pub fn proxy_header(data: &[u8]) {
    fuzz::proxy_header(data);
}

/// Lines of `X-Forwarded-For`, `X-Forwarded-Proto` and `Forwarded`; the first byte says of which.
pub fn forwarded(data: &[u8]) {
    fuzz::forwarded(data);
}

/// All that a client sends on a connection; the first byte says how it is cut into reads.
pub fn framing(data: &[u8]) {
    fuzz::framing(data);
}

/// A link's token, or a cookie's.
pub fn token(data: &[u8]) {
    access::fuzz::token(data);
}

/// A request that may carry tokens.
pub fn carried(data: &[u8]) {
    access::fuzz::carried(data);
}
