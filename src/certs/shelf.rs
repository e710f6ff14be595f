//! Which certificate a name gets. Made anew by every reload, and never changed.

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::Arc,
};

use rustls::sign::CertifiedKey;

use super::Pair;
use crate::route::RouteError;

/// All pairs, by file and by name.
#[derive(Default)]
pub(super) struct Shelf {
    pairs: BTreeMap<PathBuf, Arc<Pair>>,
    exact: HashMap<Box<str>, Arc<Pair>>,
    /// `example.com` for `*.example.com`.
    wildcards: HashMap<Box<str>, Arc<Pair>>,
    errors: Vec<RouteError>,
}

impl Shelf {
    /// A name that several pairs have belongs to the earlier folder, and in one folder to the pair
    /// that ends later.
    pub(super) fn new(folders: Vec<Vec<Arc<Pair>>>, errors: Vec<RouteError>) -> Self {
        let mut shelf = Self { errors, ..Self::default() };
        for mut pairs in folders {
            pairs.sort_by_key(|pair| std::cmp::Reverse(pair.not_after));
            for pair in pairs {
                shelf.add(&pair);
                shelf.pairs.insert(pair.file.clone(), pair);
            }
        }
        shelf
    }

    fn add(&mut self, pair: &Arc<Pair>) {
        for name in &pair.names {
            let (names, name) = match name.strip_prefix("*.") {
                Some(parent) => (&mut self.wildcards, parent),
                None => (&mut self.exact, &**name),
            };
            names.entry(name.into()).or_insert_with(|| Arc::clone(pair));
        }
    }

    pub(super) fn resolve(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        let name = name.strip_suffix('.').unwrap_or(name);
        let lower;
        let name = if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
            lower = name.to_ascii_lowercase();
            &lower
        } else {
            name
        };
        let wildcard = || self.wildcards.get(name.split_once('.')?.1);
        Some(Arc::clone(&self.exact.get(name).or_else(wildcard)?.key))
    }

    pub(super) fn pairs(&self) -> &BTreeMap<PathBuf, Arc<Pair>> {
        &self.pairs
    }

    pub(super) fn errors(&self) -> &[RouteError] {
        &self.errors
    }
}
