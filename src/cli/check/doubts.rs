//! What `check` warns of around access and certificates: who can read what, and which certificate
//! is for whom.

use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf};

use super::super::exit::short;
use crate::{
    access::{doubts, readable_by_all},
    certs::{Certs, Pair},
    config::{Config, Dns, DnsBy},
    route::{HostPattern, RouteError, RouteTable},
};

/// What is allowed, and perhaps not what was meant.
pub(super) fn all(config: &Config, table: &RouteTable, certs: &Certs) -> Vec<String> {
    let mut found = doubts(table);
    found.extend(secrets(config).iter().filter_map(|file| readable_by_all(file)));
    let mut warnings: Vec<_> = found.iter().map(told).collect();
    warnings.extend(open_state(config));
    if !config.listen.https.is_empty() {
        let pairs = certs.pairs();
        warnings.extend(pairs.iter().filter_map(|pair| without_route(pair, table)));
        // Without any there is another warning, and ACME may have ordered them by the time they are
        // asked for.
        if !pairs.is_empty() && config.acme.is_none() {
            warnings.extend(without_certificate(table, certs));
        }
    }
    warnings
}

fn told(error: &RouteError) -> String {
    let RouteError { file, at, message, hint } = error;
    let at = at.map(|at| format!("{}:{}:", at.line, at.column)).unwrap_or_default();
    let hint = hint.as_ref().map(|hint| format!("; {hint}")).unwrap_or_default();
    format!("{}:{at} {message}{hint}", short(file))
}

/// The files of `dormouse.toml` that are nobody else's to read.
fn secrets(config: &Config) -> Vec<PathBuf> {
    let dns = config.acme.as_ref().and_then(|acme| acme.dns.as_ref());
    let update = dns.and_then(|Dns { by, .. }| match by {
        DnsBy::Update(update) => Some(&update.key_file),
        DnsBy::Hook(_) => None,
    });
    let all = config.admin.token_file.iter().chain(config.links.keys.values()).chain(update);
    all.cloned().collect()
}

fn open_state(config: &Config) -> Option<String> {
    let state = &config.paths.state;
    let mode = fs::metadata(state).ok()?.permissions().mode();
    let wrong = || {
        let state = short(state);
        format!(
            "{state}: everybody can look into it, and see the sessions' logs; chmod 700 {state}"
        )
    };
    (mode & 0o007 != 0).then(wrong)
}

fn without_route(pair: &Pair, table: &RouteTable) -> Option<String> {
    let is_routed = |name: &str| match name.strip_prefix("*.") {
        Some(parent) => {
            let is_under = |host: &HostPattern| {
                sample(host).split_once('.').is_some_and(|(_, above)| above == parent)
            };
            // The parent may be a capture's, or the host be longer than a capture alone.
            table.lookup(&format!("a.{parent}")).is_some()
                || table.iter().any(|route| is_under(&route.host))
        }
        None => table.lookup(name).is_some(),
    };
    if table.is_empty() || pair.names.iter().any(|name| is_routed(name)) {
        return None;
    }
    let names: Vec<_> = pair.names.iter().map(|name| &**name).collect();
    Some(format!("{}: no route serves {}", short(&pair.file), names.join(", ")))
}

fn without_certificate(table: &RouteTable, certs: &Certs) -> Vec<String> {
    let mut warnings = Vec::new();
    for route in table.iter() {
        if certs.resolve(&sample(&route.host)).is_none() {
            let file = short(&route.file);
            let wrong = "no certificate is for it: its TLS handshakes will be refused";
            warnings.push(format!("{file}: {}: {wrong}", route.host));
        }
    }
    warnings
}

/// A host of the pattern.
fn sample(host: &HostPattern) -> String {
    let mut sample = String::new();
    let mut rest = host.as_str();
    while let Some((literal, behind)) = rest.split_once('{') {
        sample.push_str(literal);
        sample.push('a');
        rest = behind.split_once('}').map_or("", |(_, rest)| rest);
    }
    sample + rest
}
