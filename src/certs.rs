//! Certificates by name: PEM pairs from the operator's folder, and from the one that ACME fills.
//!
//! The names are read from the certificates, never from the files' names. Knows no socket and no
//! handshake: it is asked for a name, and told when to read the folders again.

mod dev;
mod keys;
mod mint;
mod pair;
mod shelf;

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use arc_swap::{ArcSwap, ArcSwapOption};
use rustls::sign::CertifiedKey;

pub use {
    mint::{DEV_FOLDER, MintError, Minted, mint_dev},
    pair::{Pair, is_cert_file},
    shelf::Offer,
};

use crate::{metrics::METRICS, route::RouteError};
use dev::Dev;
use keys::Keys;
use pair::{CERTBOT, Files};
use shelf::Shelf;

/// A certificate that ends sooner is reported.
pub const EXPIRES_SOON: Duration = Duration::from_secs(21 * 24 * 60 * 60);
/// Names with a TLS-ALPN-01 challenge at once; one more is refused.
pub const CHALLENGES_MAX: usize = 1000;

/// All certificates. Read without a lock, by every handshake.
pub struct Certs {
    /// The first has priority: the operator's.
    folders: Vec<PathBuf>,
    /// Where `dormouse cert dev` keeps its authority.
    dev_folder: Option<PathBuf>,
    dev: ArcSwapOption<Dev>,
    shelf: ArcSwap<Shelf>,
    challenges: ArcSwap<HashMap<Box<str>, Arc<CertifiedKey>>>,
    /// One reload, and one change of the challenges, at a time.
    turn: Mutex<()>,
}

/// There are [`CHALLENGES_MAX`] challenges already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many TLS-ALPN-01 challenges at once")]
pub struct TooManyChallenges;

impl Certs {
    /// Reads the folders; where a name stands in two of them, the earlier folder has it. What is
    /// wrong with a file is in [`Certs::errors`]: the others are served all the same.
    pub fn load(folders: impl IntoIterator<Item = PathBuf>) -> Self {
        let certs = Self {
            folders: folders.into_iter().collect(),
            dev_folder: None,
            dev: ArcSwapOption::empty(),
            shelf: ArcSwap::default(),
            challenges: ArcSwap::default(),
            turn: Mutex::default(),
        };
        certs.reload();
        certs
    }

    /// Names under `localhost` get a certificate by the authority in this folder, where there is one.
    #[must_use]
    pub fn with_dev(mut self, folder: PathBuf) -> Self {
        self.dev.store(Dev::read(&folder).map(Arc::new));
        self.dev_folder = Some(folder);
        self
    }

    /// The certificates for a name as a ClientHello says it, or for an IP address where it says
    /// none: one of each kind of key. An exact name beats a wildcard.
    pub fn resolve(&self, name: &str) -> Option<Offer> {
        let name = canonical(name);
        let shelf = self.shelf.load();
        let minted = || Some(Offer::from(self.dev.load().as_ref()?.resolve(&name)?));
        shelf.exact(&name).or_else(minted).or_else(|| shelf.wildcard(&name))
    }

    /// Reads the folders again. A file that is broken changes nothing: the pair that was read from
    /// it before stays. May block.
    pub fn reload(&self) -> Vec<RouteError> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.shelf.load_full();
        let mut read = Vec::new();
        let mut errors = Vec::new();
        for folder in &self.folders {
            let (pairs, wrong) = load_dir(folder, before.pairs());
            read.push(pairs);
            errors.extend(wrong);
        }
        let after = Shelf::new(read, errors.clone());
        tell(&before, &after);
        self.shelf.store(Arc::new(after));
        if let Some(folder) = &self.dev_folder {
            self.dev.store(Dev::read(folder).map(Arc::new));
        }
        self.count();
        errors
    }

    /// What was wrong with the files when they were last read.
    pub fn errors(&self) -> Vec<RouteError> {
        self.shelf.load().errors().to_vec()
    }

    /// Every pair that is served, by file.
    pub fn pairs(&self) -> Vec<Arc<Pair>> {
        self.shelf.load().pairs().values().cloned().collect()
    }

    /// Says again which certificates end soon.
    pub fn tell_expiring(&self) {
        for pair in self.expiring() {
            tell_end(&pair);
        }
    }

    /// The pairs that end within [`EXPIRES_SOON`].
    pub fn expiring(&self) -> Vec<Arc<Pair>> {
        let soon = SystemTime::now() + EXPIRES_SOON;
        self.pairs().into_iter().filter(|pair| pair.not_after < soon).collect()
    }

    /// Puts how many there are, and the days that are left, into the metrics.
    pub fn count(&self) {
        let shelf = self.shelf.load();
        let first = shelf.pairs().values().map(|pair| pair.days_left()).min();
        METRICS.certificates.set(shelf.pairs().len().try_into().unwrap_or(i64::MAX));
        METRICS.certificate_errors.set(shelf.errors().len().try_into().unwrap_or(i64::MAX));
        METRICS.certificate_days.set(first.unwrap_or_default());
    }

    /// The certificate that answers a TLS-ALPN-01 challenge for this name: for a ClientHello whose
    /// one protocol is `acme-tls/1`, and for no other.
    pub fn challenge(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        self.challenges.load().get(&*name.to_ascii_lowercase()).cloned()
    }

    /// Answers challenges for this name with `key` from now on, until [`Certs::forget_challenge`].
    pub fn answer_challenge(
        &self,
        name: &str,
        key: Arc<CertifiedKey>,
    ) -> Result<(), TooManyChallenges> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let mut challenges = HashMap::clone(&self.challenges.load());
        challenges.insert(name.to_ascii_lowercase().into(), key);
        if CHALLENGES_MAX < challenges.len() {
            return Err(TooManyChallenges);
        }
        self.challenges.store(Arc::new(challenges));
        Ok(())
    }

    /// Answers no challenge for this name any more.
    pub fn forget_challenge(&self, name: &str) {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let mut challenges = HashMap::clone(&self.challenges.load());
        challenges.remove(&*name.to_ascii_lowercase());
        self.challenges.store(Arc::new(challenges));
    }
}

impl fmt::Debug for Certs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certs").field("folders", &self.folders).finish_non_exhaustive()
    }
}

/// The one spelling of a name.
fn canonical(name: &str) -> Cow<'_, str> {
    let name = name.strip_suffix('.').unwrap_or(name);
    match name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        true => name.to_ascii_lowercase().into(),
        false => name.into(),
    }
}

/// Reads every pair of `folder`. Where a file is wrong, the pair that `before` has for it stays. A
/// folder that is not there is empty.
pub fn load_dir(
    folder: &Path,
    before: &BTreeMap<PathBuf, Arc<Pair>>,
) -> (Vec<Arc<Pair>>, Vec<RouteError>) {
    let files = match pair::files(folder) {
        Ok(files) => files,
        Err(error) => {
            let stay = before.values().filter(|pair| pair.file.starts_with(folder));
            return (stay.cloned().collect(), vec![error]);
        }
    };
    let Files { certificates, keys, below } = files;
    let (mut pairs, mut errors) = (Vec::with_capacity(certificates.len()), Vec::new());
    let mut read = |file: &Path, keys: &Keys<'_>| match Pair::read(file, keys) {
        Ok(Some(pair)) => pairs.push(Arc::new(pair)),
        Ok(None) => {
            // It is a certificate's, and holds none any more.
            if let Some(before) = before.get(file).filter(|_| file.is_file()) {
                pairs.push(Arc::clone(before));
                errors.push(pair::none(file));
            }
        }
        Err(error) => {
            pairs.extend(before.get(file).cloned());
            errors.push(error);
        }
    };
    let keys = Keys::of(&keys);
    certificates.iter().for_each(|file| read(file, &keys));
    for folder in below {
        let [chain, key] = CERTBOT.map(|name| folder.join(name));
        read(&chain, &Keys::of(&[key]));
    }
    (longest(pairs), errors)
}

/// Without those that are another one with fewer of its issuers: certbot's `cert.pem` beside its
/// `fullchain.pem`.
fn longest(pairs: Vec<Arc<Pair>>) -> Vec<Arc<Pair>> {
    let mut lengths: HashMap<&[u8], usize> = HashMap::with_capacity(pairs.len());
    for pair in &pairs {
        let length = lengths.entry(pair.leaf()).or_default();
        *length = pair.key.cert.len().max(*length);
    }
    let is_whole = |pair: &&Arc<Pair>| lengths.get(pair.leaf()) == Some(&pair.key.cert.len());
    pairs.iter().filter(is_whole).cloned().collect()
}

/// Says what has changed, once.
fn tell(before: &Shelf, after: &Shelf) {
    for error in after.errors().iter().filter(|error| !before.errors().contains(error)) {
        let stays = after.pairs().contains_key(&error.file);
        let what =
            if stays { "the certificate before stays" } else { "not a certificate to serve" };
        tracing::error!(%error, "{what}");
    }
    for pair in after.pairs().values() {
        let old = before.pairs().get(&pair.file);
        if old.is_some_and(|old| old.is_same(pair)) {
            continue;
        }
        let (file, names) = (pair.file.display(), &pair.names);
        tracing::info!(%file, ?names, days = pair.days_left(), "certificate");
        if pair.not_after < SystemTime::now() + EXPIRES_SOON {
            tell_end(pair);
        }
        if let Some(key) = &pair.exposed {
            let key = key.display();
            tracing::warn!(%key, "others than its owner can read this key: chmod 600");
        }
    }
    for file in before.pairs().keys().filter(|file| !after.pairs().contains_key(*file)) {
        tracing::info!(file = %file.display(), "certificate removed");
    }
}

fn tell_end(pair: &Pair) {
    let (file, names) = (pair.file.display(), &pair.names);
    tracing::warn!(%file, ?names, days = pair.days_left(), "a certificate ends soon");
}

#[cfg(test)]
mod tests;
