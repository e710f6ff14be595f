//! What is allowed in `[access]`, and perhaps not what was meant.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use super::basic;
use crate::route::{
    Route, RouteError, RouteTable,
    access::{Basic, KeySetAt, Policy},
};

/// Files of single sessions that are looked at for one route.
const FILES_MAX: usize = 1000;

/// What an operator should look at twice. Nothing of it keeps a route from being served.
pub fn doubts(table: &RouteTable) -> Vec<RouteError> {
    let mut doubts = Vec::new();
    let mut secrets: Vec<PathBuf> = Vec::new();
    for route in table.iter() {
        let access = &route.recipe.access;
        doubts.extend(unbound(route));
        if let Some(basic) = &access.basic {
            let own = own_files(basic);
            doubts.extend(own.iter().filter_map(|file| basic::read(file).err()).flatten());
            secrets.extend(own.into_iter().chain(basic.one_file()));
        }
        // The keys of HMAC sign as well as they check.
        let jwt = access.jwt.as_ref().filter(|jwt| jwt.algorithm.starts_with("HS"));
        if let Some(KeySetAt::File(file)) = jwt.map(|jwt| &jwt.jwks.at) {
            secrets.push(file.clone());
        }
    }
    secrets.sort_unstable();
    secrets.dedup();
    doubts.extend(secrets.iter().filter_map(|file| readable_by_all(file)));
    doubts
}

/// What is said of a secret that every user of the machine can read.
pub fn readable_by_all(file: &Path) -> Option<RouteError> {
    let lets =
        |path: &Path, bit| fs::metadata(path).is_ok_and(|it| it.permissions().mode() & bit != 0);
    // Where a folder above it keeps everybody out, its own mode is not what counts.
    let real = fs::canonicalize(file).ok()?;
    let is_open = lets(&real, 0o004) && real.ancestors().skip(1).all(|above| lets(above, 0o001));
    let wrong = || RouteError::of_file(file, "everybody on this machine can read it");
    is_open.then(|| wrong().with_hint("chmod o= takes that away"))
}

/// One user of a pattern's session may enter all of them.
fn unbound(route: &Route) -> Option<RouteError> {
    let policies = route.recipe.access.unbound();
    let capture = route.host.captures().first()?;
    let binds = |policy: &Policy| match policy {
        Policy::Basic => format!("basic.user = \"{{{capture}}}\""),
        Policy::Jwt => format!("jwt.claims = {{ sub = \"{{{capture}}}\" }}"),
        _ => format!("mtls.san = [\"{{{capture}}}.users.example.com\"]"),
    };
    let first = policies.first()?;
    let names: Vec<_> = policies.iter().map(|policy| policy.as_str()).collect();
    let wrong = format!(
        "{} binds no user to a session: who may enter one of {} may enter all of them",
        names.join(" or "),
        route.host
    );
    Some(RouteError::of_file(&route.file, wrong).with_hint(format!("if not: {}", binds(first))))
}

/// The files of single sessions that are there, where a capture stands in the file's own name.
fn own_files(basic: &Basic) -> Vec<PathBuf> {
    let (parent, name) = basic.users.rsplit_once('/').unwrap_or(("", &basic.users));
    let ends = name.find('{').zip(name.rfind('}'));
    let Some((start, end)) = ends.filter(|_| !parent.contains('{') && !name.contains("{{")) else {
        return Vec::new();
    };
    let (head, tail) = (&name[..start], &name[end + 1..]);
    let Ok(entries) = fs::read_dir(basic.folder.join(parent)) else { return Vec::new() };
    let files = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    let fits = |file: &PathBuf| {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        name.strip_prefix(head).is_some_and(|rest| rest.len() > tail.len() && rest.ends_with(tail))
    };
    let mut files: Vec<_> = files.filter(fits).take(FILES_MAX).collect();
    files.sort_unstable();
    files
}
