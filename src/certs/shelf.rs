//! Which certificates a name gets. Made anew by every reload, and never changed.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::Arc,
    time::SystemTime,
};

use rustls::{SignatureAlgorithm, SignatureScheme, sign::CertifiedKey};

use super::Pair;
use crate::route::RouteError;

/// All pairs, by file and by name.
#[derive(Default)]
pub(super) struct Shelf {
    pairs: BTreeMap<PathBuf, Arc<Pair>>,
    exact: HashMap<Box<str>, Vec<Arc<Pair>>>,
    /// `example.com` for `*.example.com`.
    wildcards: HashMap<Box<str>, Vec<Arc<Pair>>>,
    errors: Vec<RouteError>,
}

/// The certificates that a name may get, the best first.
#[derive(Clone, Debug)]
pub struct Offer(Vec<Arc<CertifiedKey>>);

impl Shelf {
    /// A name that several pairs have belongs to the earlier folder. In one folder it may have a
    /// pair of each kind of key; of one kind, the pair that ends later has it.
    pub(super) fn new(folders: Vec<Vec<Arc<Pair>>>, errors: Vec<RouteError>) -> Self {
        let mut shelf = Self { errors, ..Self::default() };
        for mut pairs in folders {
            pairs.sort_by_key(|pair| Reverse(pair.not_after));
            let mut folder = Self::default();
            for pair in pairs {
                folder.add(&pair);
                shelf.pairs.insert(pair.file.clone(), pair);
            }
            for (name, pairs) in folder.exact {
                shelf.exact.entry(name).or_insert(pairs);
            }
            for (name, pairs) in folder.wildcards {
                shelf.wildcards.entry(name).or_insert(pairs);
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
            let pairs = names.entry(name.into()).or_default();
            if pairs.iter().all(|other| kind(other) != kind(pair)) {
                pairs.push(Arc::clone(pair));
                pairs.sort_by_key(|pair| kind(pair));
            }
        }
    }

    /// The certificates with this very name.
    pub(super) fn exact(&self, name: &str) -> Option<Offer> {
        self.exact.get(name).map(|pairs| Offer::of(pairs))
    }

    /// The certificates whose star stands for the first label of this name.
    pub(super) fn wildcard(&self, name: &str) -> Option<Offer> {
        let (_, parent) = name.split_once('.')?;
        self.wildcards.get(parent).map(|pairs| Offer::of(pairs))
    }

    pub(super) fn pairs(&self) -> &BTreeMap<PathBuf, Arc<Pair>> {
        &self.pairs
    }

    pub(super) fn errors(&self) -> &[RouteError] {
        &self.errors
    }
}

impl Offer {
    /// Whoever has renewed with another kind of key may have left the old pair lying there: one that
    /// is over comes last.
    fn of(pairs: &[Arc<Pair>]) -> Self {
        let now = SystemTime::now();
        let (over, good): (Vec<_>, Vec<_>) = pairs.iter().partition(|pair| pair.not_after < now);
        Self(good.into_iter().chain(over).map(|pair| Arc::clone(&pair.key)).collect())
    }

    /// Of a client that can check these signatures, the best that it can check; the best of all
    /// where that is none.
    pub fn choose(&self, schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let can = |key: &&Arc<CertifiedKey>| key.key.choose_scheme(schemes).is_some();
        self.0.iter().find(can).or_else(|| self.0.first()).cloned()
    }

    /// All of them, the best first.
    pub fn keys(&self) -> &[Arc<CertifiedKey>] {
        &self.0
    }
}

impl From<Arc<CertifiedKey>> for Offer {
    fn from(key: Arc<CertifiedKey>) -> Self {
        Self(vec![key])
    }
}

/// The cheapest to sign with first, among those that all but old clients know.
fn kind(pair: &Pair) -> u8 {
    match pair.key.key.algorithm() {
        SignatureAlgorithm::ECDSA => 0,
        SignatureAlgorithm::RSA => 2,
        _ => 1,
    }
}
