//! Who may import whom: the table of the house, read from `src/**`. A room may be missing; a room
//! without a rule may not.

use std::{collections::BTreeSet, fs, iter::once, path::Path};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// One room, and what it may know.
struct Rule {
    room: &'static str,
    /// The rooms it may import; `None`: all.
    rooms: Option<&'static [&'static str]>,
    /// Paths of crates or rooms that it must not know, though it may import others.
    never: &'static [&'static str],
    says: &'static str,
}

const fn rule(
    room: &'static str,
    rooms: &'static [&'static str],
    never: &'static [&'static str],
    says: &'static str,
) -> Rule {
    Rule { room, rooms: Some(rooms), never, says }
}

const fn roof(room: &'static str) -> Rule {
    Rule { room, rooms: None, never: &[], says: "the roof knows every room" }
}

/// Stands for every crate but `std`.
const ANY_CRATE: &str = "*";

const HOUSE: &[Rule] = &[
    rule("session", &[], &[ANY_CRATE], "session knows std alone: no crate, no other room"),
    rule("route", &["session"], ROUTE_NEVER, ROUTE_SAYS),
    rule(
        "watch",
        &["route"],
        SHELL,
        "watch knows notify, and of the rooms a file's name in its test",
    ),
    rule("config", &["session", "route"], ROUTE_NEVER, "config knows what route knows, and route"),
    rule(
        "acme",
        &["certs", "config", "metrics"],
        &["pingora", "notify", "bollard", "kube", "procfs", "axum"],
        "acme fills the folder that certs reads; it knows no request, no route and no session",
    ),
    rule(
        "certs",
        &["route", "metrics"],
        ROUTE_NEVER,
        "certs knows files, names and keys, no socket",
    ),
    rule("schema", &["config", "route"], ROUTE_NEVER, "schema knows the shapes of the files alone"),
    rule(
        "access",
        &["route", "config"],
        &["pingora", "bollard", "kube", "procfs", "notify", "axum"],
        "access knows what routes ask for: no proxy, no fleet, no engine",
    ),
    rule(
        "engine",
        &["session"],
        &["pingora", "notify", "axum"],
        "engine knows session and its own client library, nobody who asks it",
    ),
    rule(
        "fleet",
        &["session", "engine", "record", "metrics"],
        &[
            "engine::command",
            "engine::docker",
            "engine::fly",
            "engine::kubernetes",
            "engine::process",
            "engine::qemu",
            "pingora",
            "notify",
            "bollard",
            "kube",
            "procfs",
            "axum",
        ],
        "fleet knows the engine trait, never an engine, a route file or pingora",
    ),
    rule(
        "edge",
        &["session", "access", "acme", "certs", "config", "route", "fleet", "record", "metrics"],
        &["bollard", "kube", "procfs", "notify"],
        "edge never knows an engine: it borrows a session from the fleet",
    ),
    rule(
        "admin",
        &["session", "access", "acme", "certs", "route", "fleet", "metrics"],
        &["pingora", "bollard", "kube", "procfs", "notify"],
        "admin asks the fleet and the routes; it knows no engine and no proxy",
    ),
    rule(
        "record",
        &["session", "metrics"],
        SHELL,
        "record knows what happened and where it writes",
    ),
    rule("metrics", &["session"], SHELL, "metrics knows session and prometheus"),
    rule(
        "demo",
        &[],
        &["pingora", "bollard", "kube", "procfs"],
        "demo is a guest: it knows no room",
    ),
    roof("app"),
    roof("cli"),
    roof("lib"),
    roof("main"),
];

const SHELL: &[&str] = &["pingora", "bollard", "kube", "procfs", "axum"];
const ROUTE_NEVER: &[&str] = &["notify", "pingora", "bollard", "kube", "procfs", "axum", "hyper"];
const ROUTE_SAYS: &str = "route knows session and serde; notify only in watch";

/// `session/machine/tests` for `src/session/machine/tests.rs`.
fn rule_of(module: &str) -> Option<&'static Rule> {
    let inside =
        |rule: &&Rule| module == rule.room || module.starts_with(&format!("{}/", rule.room));
    HOUSE.iter().filter(inside).max_by_key(|rule| rule.room.len())
}

/// Every path that `source` names, also inside `use` trees and macros.
fn paths(source: TokenStream, prefix: &[String], all: &mut Vec<Vec<String>>) {
    let (mut path, mut colons, mut in_use) =
        (prefix.to_vec(), 2 * usize::from(!prefix.is_empty()), false);
    for token in source {
        match token {
            TokenTree::Ident(name) => {
                if colons < 2 {
                    path.clear();
                }
                // A longer path replaces its own beginning.
                all.pop_if(|last| 1 < colons && *last == path);
                path.push(name.to_string());
                // One name alone is a path only right behind `use`; `use notify;` is one.
                if in_use || 1 < path.len() {
                    all.push(path.clone());
                }
                (colons, in_use) = (0, name == "use");
            }
            TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
            TokenTree::Group(group) => {
                let tree = group.delimiter() == Delimiter::Brace && colons == 2;
                paths(group.stream(), if tree { &path } else { &[] }, all);
                colons = 0;
            }
            _ => (path, colons) = (prefix.to_vec(), 2 * usize::from(!prefix.is_empty())),
        }
    }
}

/// The sentences of the rules that this file breaks.
fn broken(module: &str, source: &str, rooms: &BTreeSet<String>, crates: &[String]) -> Vec<String> {
    let Some(rule) = rule_of(module) else {
        return vec![format!("{module} has no rule: give its room one in tests/house.rs")];
    };
    let tokens = source.parse().unwrap_or_else(|error| panic!("{module}: {error}"));
    let mut all = Vec::new();
    paths(tokens, &[], &mut all);
    let home = module.split('/').next().unwrap_or(module);
    let mut sentences = BTreeSet::new();
    for path in all {
        let ups = path.iter().take_while(|part| *part == "super").count();
        let steps: Vec<&str> = match path[0].as_str() {
            "crate" => path[1..].iter().map(String::as_str).collect(),
            "super" => {
                let up = module.split('/').rev().skip(ups).collect::<Vec<_>>().into_iter().rev();
                up.chain(path[ups..].iter().map(String::as_str)).collect()
            }
            _ => path.iter().map(String::as_str).collect(),
        };
        let Some(first) = steps.first() else { continue };
        let ours = matches!(path[0].as_str(), "crate" | "super");
        let room = ours && rooms.contains(*first) && *first != home;
        let foreign = !ours && crates.iter().any(|name| name == first);
        let named = steps.join("::");
        let never = |never: &&str| {
            (foreign && **never == *ANY_CRATE)
                || named == **never
                || named.starts_with(&format!("{never}::"))
                || (foreign && first.starts_with(&format!("{never}_")))
        };
        let closed = room && rule.rooms.is_some_and(|may| !may.contains(first));
        if closed || ((room || foreign) && rule.never.iter().any(never)) {
            sentences.insert(format!("src/{module}.rs names {named}: {}", rule.says));
        }
    }
    sentences.into_iter().collect()
}

fn files(folder: &Path, prefix: &str, all: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).expect("src is a folder") {
        let path = entry.expect("src can be read").path();
        let stem = path.file_stem().and_then(|stem| stem.to_str()).expect("names are UTF-8");
        if path.is_dir() {
            files(&path, &format!("{prefix}{stem}/"), all);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).expect("sources are UTF-8");
            all.push((format!("{prefix}{stem}"), text));
        }
    }
}

/// The crates of `Cargo.toml`, as code names them.
fn crates() -> Vec<String> {
    let manifest: toml::Table = include_str!("../Cargo.toml").parse().expect("a valid manifest");
    let tables = ["dependencies", "dev-dependencies"].map(|table| manifest[table].as_table());
    let names = tables.into_iter().flatten().flat_map(|table| table.keys());
    names.map(|name| name.replace('-', "_")).chain(once("pingora_proxy".to_owned())).collect()
}

#[test]
fn every_room_knows_only_whom_it_may() {
    let mut all = Vec::new();
    files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), "", &mut all);
    let rooms = all.iter().filter_map(|(module, _)| module.split('/').next());
    let (rooms, crates) = (rooms.map(str::to_owned).collect(), crates());
    assert!(all.iter().any(|(module, _)| module == "session/machine"), "src was not read");
    let broken: Vec<_> =
        all.iter().flat_map(|(module, text)| broken(module, text, &rooms, &crates)).collect();
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

#[test]
fn a_broken_rule_is_seen() {
    let rooms = HOUSE.iter().map(|rule| rule.room.to_owned()).collect();
    let bad = [
        ("session/machine", "use tokio::time;"),
        ("session", "use crate::engine::Error;"),
        ("session/machine", "fn f() { super::super::fleet::wake() }"),
        ("session/why", "fn f() { tracing::info!(\"no\") }"),
        ("route", "use notify;"),
        ("watch", "use pingora::server::Server;"),
        ("route/load", "use crate::{session::Policy, fleet};"),
        ("engine/docker", "use crate::fleet::Fleet;"),
        ("fleet/driver", "use crate::engine::{Engine, docker::Docker};"),
        ("fleet", "use crate::route::Route;"),
        ("edge/ctx", "fn f(e: &dyn crate::engine::Engine) {}"),
        ("access/link", "use crate::fleet::Fleet;"),
        ("access", "use pingora::proxy::Session;"),
        ("admin", "use pingora_proxy::Session;"),
        ("demo", "use crate::session::Depth;"),
        ("attic", ""),
    ];
    for (module, source) in bad {
        assert_eq!(broken(module, source, &rooms, &crates()).len(), 1, "{module}: {source}");
    }
    let good = [
        ("session/machine", "use super::{Depth, spec::Spec}; use std::fmt; //! tokio::time"),
        ("session", "const S: &str = \"crate::engine::Error\"; use crate::session::Depth;"),
        ("watch", "use notify::Watcher;"),
        ("fleet/driver", "use crate::{engine::{Engine, Error}, session::*}; use tokio::time;"),
        ("edge", "use pingora::proxy::ProxyHttp; use crate::fleet::Lease;"),
        ("app", "use crate::{edge, engine::docker};"),
    ];
    for (module, source) in good {
        assert_eq!(broken(module, source, &rooms, &crates()), [""; 0], "{module}: {source}");
    }
}
