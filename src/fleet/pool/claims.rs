//! Whose a spare has become, on disk: a file each, named as the instance is, that can be made once.
//!
//! So an instance is never handed out twice, not by a process that crashed half-way and not by two
//! that run side by side while one takes over.

use std::{
    collections::HashMap,
    fs::{self, DirBuilder, File},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::is_spare;
use crate::session::SessionId;

/// A host is no longer.
const HOST_MAX: u64 = 253;

/// The claims.
#[derive(Debug)]
pub(in crate::fleet) struct Claims {
    folder: PathBuf,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// By the instance.
    owners: HashMap<SessionId, SessionId>,
    /// By the session.
    instances: HashMap<SessionId, SessionId>,
}

/// How a claim ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Claim {
    Made,
    /// Another process was there first.
    Taken,
}

impl Claims {
    /// Reads what was claimed before; makes the folder.
    pub(in crate::fleet) fn open(folder: PathBuf) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        let mut known = Known::default();
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).map(SessionId::new);
            let Some(instance) = name.filter(is_spare) else { continue };
            match read(&path) {
                Some(owner) => known.add(instance, owner),
                // A crash between its making and its text: nobody was told of it.
                None => fs::remove_file(&path)?,
            }
        }
        Ok(Self { folder, known: Mutex::new(known) })
    }

    /// `instance` is `session`'s from now on, whatever happens to this process.
    pub(super) fn claim(&self, instance: &SessionId, session: &SessionId) -> io::Result<Claim> {
        let path = self.folder.join(instance.host());
        let made = File::options().write(true).create_new(true).mode(0o600).open(&path);
        let mut file = match made {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if let Some(owner) = read(&path) {
                    self.lock().add(instance.clone(), owner);
                }
                return Ok(Claim::Taken);
            }
            made => made?,
        };
        let written = file
            .write_all(session.host().as_bytes())
            .and_then(|()| file.sync_all())
            .and_then(|()| File::open(&self.folder)?.sync_all());
        if let Err(error) = written {
            let _ = fs::remove_file(&path); // the first error tells more
            return Err(error);
        }
        self.lock().add(instance.clone(), session.clone());
        Ok(Claim::Made)
    }

    /// There is no such instance any more.
    pub(super) fn release(&self, session: &SessionId) -> io::Result<()> {
        let Some(instance) = self.lock().instances.remove(session) else { return Ok(()) };
        self.lock().owners.remove(&instance);
        match fs::remove_file(self.folder.join(instance.host())) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    pub(super) fn owner(&self, instance: &SessionId) -> Option<SessionId> {
        self.lock().owners.get(instance).cloned()
    }

    pub(super) fn instance(&self, session: &str) -> Option<SessionId> {
        self.lock().instances.get(session).cloned()
    }

    pub(super) fn sessions(&self) -> Vec<(SessionId, SessionId)> {
        let known = self.lock();
        known.instances.iter().map(|(of, is)| (of.clone(), is.clone())).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn add(&mut self, instance: SessionId, owner: SessionId) {
        self.owners.insert(instance.clone(), owner.clone());
        self.instances.insert(owner, instance);
    }
}

fn read(path: &std::path::Path) -> Option<SessionId> {
    let mut text = String::new();
    let file = File::open(path).ok()?;
    io::Read::read_to_string(&mut io::Read::take(file, HOST_MAX), &mut text).ok()?;
    (!text.is_empty()).then(|| SessionId::new(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_is_made_once_and_outlives_the_process() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("claims");
        let (spare, alice, bob) = (
            super::super::spare_id("0011223344556677"),
            SessionId::new("alice.test"),
            SessionId::new("bob.test"),
        );
        let (one, other) =
            (Claims::open(path.clone()).unwrap(), Claims::open(path.clone()).unwrap());
        assert_eq!(one.claim(&spare, &alice).unwrap(), Claim::Made);
        assert_eq!(other.claim(&spare, &bob).unwrap(), Claim::Taken);
        assert_eq!(other.owner(&spare), Some(alice.clone()), "it learns whose it is");
        fs::write(path.join(super::super::spare_id("8899aabbccddeeff").host()), "").unwrap();
        let later = Claims::open(path.clone()).unwrap();
        assert_eq!(later.sessions(), [(alice.clone(), spare)], "half a claim is none");
        later.release(&alice).unwrap();
        later.release(&alice).unwrap();
        assert_eq!(fs::read_dir(path).unwrap().count(), 0);
    }
}
