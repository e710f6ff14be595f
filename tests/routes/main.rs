//! Route files: what they mean, which host they serve, and what is said when they are wrong.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod access;
mod folder;
mod lookup;
mod meaning;
mod mistakes;

use std::{collections::BTreeMap, path::Path};

use dormouse::route::{EngineKind, Engines, Route, RouteError};

fn engines() -> Engines {
    BTreeMap::from([
        ("local".to_owned(), EngineKind::Process),
        ("docker".to_owned(), EngineKind::Docker),
    ])
}

fn parse(name: &str, text: &str) -> Result<Route, Vec<RouteError>> {
    Route::parse(name, Path::new(&format!("{name}.toml")), text, &engines())
}

fn route(name: &str, host: &str) -> Route {
    parse(name, &format!("host = \"{host}\"\ninstance.command = [\"x\"]")).unwrap()
}
