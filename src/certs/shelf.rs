//! Which certificate a name gets. Made anew by every reload, and never changed.

use std::{
    cmp::Reverse,
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
            pairs.sort_by_key(|pair| Reverse(pair.not_after));
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

    /// The certificate with this very name.
    pub(super) fn exact(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        self.exact.get(name).map(|pair| Arc::clone(&pair.key))
    }

    /// The certificate whose star stands for the first label of this name.
    pub(super) fn wildcard(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        let (_, parent) = name.split_once('.')?;
        self.wildcards.get(parent).map(|pair| Arc::clone(&pair.key))
    }

    pub(super) fn pairs(&self) -> &BTreeMap<PathBuf, Arc<Pair>> {
        &self.pairs
    }

    pub(super) fn errors(&self) -> &[RouteError] {
        &self.errors
    }
}
