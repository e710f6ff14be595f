//! What the routes' policies read besides the route files, looked at before it is needed.

use std::collections::BTreeSet;

use super::{basic, jwt, keys};
use crate::{
    config::Links,
    route::{
        RouteError, RouteTable,
        access::{Basic, KeySetAt},
    },
};

/// Everything that is wrong with the files that `[access]` names: users, key sets.
pub fn check_files(table: &RouteTable) -> Vec<RouteError> {
    let (mut users, mut sets) = (BTreeSet::new(), BTreeSet::new());
    for route in table.iter() {
        let access = &route.recipe.access;
        // Those of single sessions are read when somebody asks: see `doubts`.
        users.extend(access.basic.iter().filter_map(Basic::one_file));
        sets.extend(access.jwt.iter().filter_map(|jwt| match &jwt.jwks.at {
            KeySetAt::File(file) => Some(file),
            KeySetAt::Url(_) => None,
        }));
    }
    let users = users.into_iter().filter_map(|file| basic::read(&file).err()).flatten();
    let sets = sets.into_iter().filter_map(|file| jwt::read(file).err());
    users.chain(sets).collect()
}

/// What is wrong with the files of keys.
pub fn check_keys(links: &Links) -> Option<RouteError> {
    keys::read_all(links).err()
}
