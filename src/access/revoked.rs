//! What was taken back: links by their id, keys by theirs. In a file, so that it outlives the
//! process, and bounded: a link is forgotten once it would have expired anyway.

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::unix_now;
use crate::route::RouteError;

/// Links and keys, each; whoever takes back more than that changes the key.
const REVOKED_MAX: usize = 10_000;

/// The links and keys that do not count any more.
#[derive(Debug)]
pub struct Revoked {
    file: PathBuf,
    list: ArcSwap<List>,
    /// One change at a time; what the file was when it was read.
    stamp: Mutex<Option<Stamp>>,
    changed: watch::Sender<()>,
}

/// Why something was not taken back.
#[derive(Debug, thiserror::Error)]
pub enum RevokeError {
    /// There is no more room.
    #[error("{REVOKED_MAX} are revoked already: revoke the key that they were made with")]
    Full,
    /// It would not outlive the process.
    #[error("cannot be written down: {0}")]
    Unwritten(#[from] io::Error),
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct List {
    /// Each with the second from which on it has expired anyway.
    links: BTreeMap<String, u64>,
    keys: BTreeMap<String, u64>,
}

/// Tells one content of a file from the next.
type Stamp = (u64, i64, i64, u64);

impl Revoked {
    /// What `file` says; nothing where there is none. What cannot be read is no reason to let
    /// everybody in: then the edge does not start.
    pub fn open(file: &Path) -> Result<Self, RouteError> {
        let wrong = |error: io::Error| {
            let wrong = RouteError::of_file(file, format!("cannot be read: {error}"));
            wrong.with_hint("it says which links were revoked; without it they would count again")
        };
        let stamp = stamp(file).map_err(wrong)?;
        let list = read(file).map_err(wrong)?;
        Ok(Self {
            file: file.to_owned(),
            list: ArcSwap::from_pointee(list),
            stamp: Mutex::new(stamp),
            changed: watch::Sender::new(()),
        })
    }

    /// Whether this link, or the key that it was made with, was taken back.
    pub fn has(&self, link: &str, key: &str) -> bool {
        let list = self.list.load();
        list.links.contains_key(link) || list.keys.contains_key(key)
    }

    /// Whether this key was.
    pub fn has_key(&self, key: &str) -> bool {
        self.list.load().keys.contains_key(key)
    }

    /// Takes a link back that cannot count from `expires` on.
    pub fn link(&self, id: &str, expires: u64) -> Result<(), RevokeError> {
        self.change(|list| {
            list.links.insert(id.to_owned(), expires);
        })
    }

    /// Takes all links of a key back, for ever.
    pub fn key(&self, id: &str) -> Result<(), RevokeError> {
        self.change(|list| {
            list.keys.insert(id.to_owned(), unix_now());
        })
    }

    /// Woken whenever something was taken back.
    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Another process of this state folder, at a hand-over, may have taken something back.
    pub(super) fn refresh(&self) {
        let mut known = self.stamp.lock().unwrap_or_else(PoisonError::into_inner);
        let Ok(now) = stamp(&self.file) else { return };
        if *known == now {
            return;
        }
        match read(&self.file) {
            Ok(list) => {
                self.list.store(Arc::new(list));
                *known = now;
                self.changed.send_replace(());
            }
            Err(error) => {
                tracing::error!(file = %self.file.display(), %error, "cannot read what is revoked");
                *known = now;
            }
        }
    }

    fn change(&self, change: impl FnOnce(&mut List)) -> Result<(), RevokeError> {
        let mut known = self.stamp.lock().unwrap_or_else(PoisonError::into_inner);
        let mut list = List::clone(&self.list.load());
        let now = unix_now();
        list.links.retain(|_, expires| now < *expires);
        change(&mut list);
        if REVOKED_MAX < list.links.len() || REVOKED_MAX < list.keys.len() {
            return Err(RevokeError::Full);
        }
        write(&self.file, &list)?;
        *known = stamp(&self.file)?;
        self.list.store(Arc::new(list));
        self.changed.send_replace(());
        Ok(())
    }
}

fn stamp(file: &Path) -> io::Result<Option<Stamp>> {
    match fs::metadata(file) {
        // To open a pipe would wait for somebody to write.
        Ok(meta) if !meta.is_file() => {
            Err(io::Error::new(io::ErrorKind::InvalidData, "not a regular file"))
        }
        Ok(meta) => Ok(Some((meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.len()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn read(file: &Path) -> io::Result<List> {
    match fs::read(file) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(List::default()),
        Err(error) => Err(error),
    }
}

/// On the disk before it is in force.
fn write(file: &Path, list: &List) -> io::Result<()> {
    let unfinished = file.with_extension("new");
    let mut new =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
    new.write_all(&serde_json::to_vec(list)?)?;
    new.sync_all()?;
    fs::rename(&unfinished, file)?;
    let folder = file.parent().unwrap_or(Path::new("."));
    fs::File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_taken_back_stays_so_across_a_restart_and_in_another_process() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("revoked.json");
        let (here, there) = (Revoked::open(&file).unwrap(), Revoked::open(&file).unwrap());
        assert!(!here.has("a", "k"));
        let changes = there.changes();
        here.link("a", unix_now() + 100).unwrap();
        assert!(here.has("a", "k") && !here.has("b", "k"));
        assert!(!there.has("a", "k"));
        there.refresh();
        assert!(there.has("a", "k") && changes.has_changed().unwrap());
        there.key("k").unwrap();
        let after = Revoked::open(&file).unwrap();
        assert!(after.has("a", "other") && after.has("b", "k") && after.has_key("k"));
    }

    #[test]
    fn what_has_expired_makes_room_and_what_has_not_is_never_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let revoked = Revoked::open(&folder.path().join("revoked.json")).unwrap();
        let list = List {
            links: (0..REVOKED_MAX).map(|n| (n.to_string(), unix_now() + 100)).collect(),
            keys: BTreeMap::new(),
        };
        revoked.list.store(Arc::new(list.clone()));
        assert!(matches!(revoked.link("one more", u64::MAX), Err(RevokeError::Full)));
        assert!(revoked.has("0", "k"));
        let mut old = list;
        old.links.insert("0".into(), unix_now());
        revoked.list.store(Arc::new(old));
        revoked.link("one more", u64::MAX).unwrap();
        assert!(!revoked.has("0", "k") && revoked.has("1", "k"));
    }

    #[test]
    fn a_file_that_cannot_be_read_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("revoked.json");
        fs::write(&file, "half a li").unwrap();
        Revoked::open(&file).unwrap_err();
    }
}
