//! Whose a spare has become, on disk: a file each, named as the instance is, that can be made once.
//!
//! So an instance is never handed out twice, not by a process that crashed half-way and not by two
//! that run side by side while one takes over. One that was somebody's stays used until its engine
//! lists it no more, whatever became of its session.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, DirBuilder, File},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::is_spare;
use crate::session::SessionId;

/// An engine may not see an instance for a while; what is then listed again is used still.
const FORGET_AFTER: Duration = Duration::from_secs(60 * 60);
/// An engine's name and a host are no longer than this together.
const FILE_MAX: u64 = 1024;

/// The claims.
#[derive(Debug)]
pub(super) struct Claims {
    folder: PathBuf,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// By the instance.
    used: HashMap<SessionId, Used>,
    /// By the session.
    instances: HashMap<SessionId, SessionId>,
}

/// What a file says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Used {
    engine: String,
    /// `None` once that session has another one, or none.
    session: Option<String>,
    /// Since when that is known here.
    #[serde(skip, default = "Instant::now")]
    since: Instant,
}

/// How a claim ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Claim {
    Made,
    /// It was somebody's already.
    Taken,
}

impl Claims {
    /// Reads what was claimed before; makes the folder.
    pub(super) fn open(folder: PathBuf) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        let claims = Self { folder, known: Mutex::default() };
        claims.refresh()?;
        Ok(claims)
    }

    /// Reads what another process claimed meanwhile.
    pub(super) fn refresh(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).map(SessionId::new);
            let Some(instance) = name.filter(is_spare) else { continue };
            if !self.is_used(&instance) {
                self.lock().add(instance, read(&path));
            }
        }
        Ok(())
    }

    /// `instance` is `session`'s from now on, whatever happens to this process.
    pub(super) fn claim(
        &self,
        instance: &SessionId,
        engine: &str,
        session: &SessionId,
    ) -> io::Result<Claim> {
        let path = self.folder.join(instance.host());
        let used = Used {
            engine: engine.to_owned(),
            session: Some(session.host().to_owned()),
            since: Instant::now(),
        };
        let part = self.write_part(instance, &used)?;
        // Whole, and by one alone.
        let made = fs::hard_link(&part, &path);
        fs::remove_file(part)?;
        match made {
            Ok(()) => {
                // It is there for all others, also where the disk cannot say that it stays.
                self.lock().add(instance.clone(), used);
                File::open(&self.folder)?.sync_all()?;
                Ok(Claim::Made)
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.lock().add(instance.clone(), read(&path));
                Ok(Claim::Taken)
            }
            Err(error) => Err(error),
        }
    }

    /// The session has this instance no more. Nobody else may have it, as long as there is one.
    pub(super) fn release(&self, session: &SessionId) -> io::Result<()> {
        let Some(instance) = self.instance(session.host()) else { return Ok(()) };
        let Some(engine) = self.lock().used.get(&instance).map(|used| used.engine.clone()) else {
            return Ok(());
        };
        let used = Used { engine, session: None, since: Instant::now() };
        let part = self.write_part(&instance, &used)?;
        fs::rename(part, self.folder.join(instance.host()))?;
        let mut known = self.lock();
        known.instances.remove(session);
        known.used.insert(instance, used);
        Ok(())
    }

    /// Forgets what was used of an engine, is nobody's for an hour, and is not among all that the
    /// engine has.
    pub(super) fn forget_gone(
        &self,
        engine: &str,
        listed: &HashSet<SessionId>,
        now: Instant,
    ) -> io::Result<()> {
        let gone = |(instance, used): (&SessionId, &Used)| {
            let of_nobody = used.engine == engine && used.session.is_none();
            let is_old = FORGET_AFTER <= now.saturating_duration_since(used.since);
            let gone = of_nobody && is_old && !listed.contains(instance);
            gone.then(|| instance.clone())
        };
        let gone: Vec<_> = self.lock().used.iter().filter_map(gone).collect();
        for instance in gone {
            fs::remove_file(self.folder.join(instance.host()))?;
            self.lock().used.remove(&instance);
        }
        Ok(())
    }

    /// The sessions whose instance is not among all that this engine has.
    pub(super) fn lost(&self, engine: &str, listed: &HashSet<SessionId>) -> Vec<SessionId> {
        let known = self.lock();
        let lost = known.instances.iter().filter(|(_, instance)| {
            let of = known.used.get(*instance);
            of.is_some_and(|used| used.engine == engine) && !listed.contains(*instance)
        });
        lost.map(|(session, _)| session.clone()).collect()
    }

    /// Whether it is, or was, somebody's.
    pub(super) fn is_used(&self, instance: &SessionId) -> bool {
        self.lock().used.contains_key(instance)
    }

    pub(super) fn owner(&self, instance: &SessionId) -> Option<SessionId> {
        let known = self.lock();
        known.used.get(instance).and_then(|used| used.session.clone()).map(SessionId::new)
    }

    pub(super) fn instance(&self, session: &str) -> Option<SessionId> {
        self.lock().instances.get(session).cloned()
    }

    fn write_part(&self, instance: &SessionId, used: &Used) -> io::Result<PathBuf> {
        let part = self.folder.join(format!("{}.part-{}", instance.host(), std::process::id()));
        let mut options = File::options();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&part)?;
        file.write_all(&serde_json::to_vec(used)?)?;
        file.sync_all()?;
        Ok(part)
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn add(&mut self, instance: SessionId, used: Used) {
        if let Some(session) = &used.session {
            self.instances.insert(SessionId::new(session.as_str()), instance.clone());
        }
        self.used.insert(instance, used);
    }
}

/// What nobody can read was somebody's.
fn read(path: &Path) -> Used {
    contents(path).unwrap_or_else(|error| {
        tracing::warn!(path = %path.display(), %error, "nobody can read whose this spare is");
        Used { engine: String::new(), session: None, since: Instant::now() }
    })
}

fn contents(path: &Path) -> io::Result<Used> {
    // To open a pipe would wait for somebody to write.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a regular file"));
    }
    let mut text = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(File::open(path)?, FILE_MAX), &mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::pool::spare_id;

    struct Folder {
        _folder: tempfile::TempDir,
        path: PathBuf,
        engine: &'static str,
        alice: SessionId,
        bob: SessionId,
    }

    fn folder() -> Folder {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("claims");
        let (alice, bob) = (SessionId::new("alice.test"), SessionId::new("bob.test"));
        Folder { _folder: folder, path, engine: "main", alice, bob }
    }

    /// One that was somebody's, as far as can be known, and no reason to give up the others.
    #[test]
    fn what_is_no_file_is_skipped() {
        let Folder { _folder, path, engine, alice, .. } = folder();
        let claims = Claims::open(path.clone()).unwrap();
        let spares = ["0011", "0022", "0033"].map(spare_id);
        assert_eq!(claims.claim(&spares[0], engine, &alice).unwrap(), Claim::Made);
        fs::create_dir(path.join(spares[1].host())).unwrap();
        std::os::unix::fs::symlink("loop", path.join("loop")).unwrap();
        std::os::unix::fs::symlink(path.join("loop"), path.join(spares[2].host())).unwrap();
        let again = Claims::open(path).unwrap();
        assert_eq!(again.owner(&spares[0]), Some(alice));
        assert!(spares.iter().all(|spare| again.is_used(spare)));
    }

    #[test]
    fn a_claim_is_made_once_by_whichever_process_and_outlives_both() {
        let Folder { path, engine, alice, bob, _folder } = folder();
        let spare = spare_id("0011");
        let (one, other) =
            (Claims::open(path.clone()).unwrap(), Claims::open(path.clone()).unwrap());
        assert_eq!(one.claim(&spare, engine, &alice).unwrap(), Claim::Made);
        assert_eq!(other.claim(&spare, engine, &bob).unwrap(), Claim::Taken);
        assert_eq!(other.owner(&spare), Some(alice.clone()), "it learns whose it is");
        let later = Claims::open(path.clone()).unwrap();
        assert_eq!(later.instance(alice.host()), Some(spare));
        assert_eq!(fs::read_dir(path).unwrap().count(), 1, "no part is left");
    }

    #[test]
    fn what_was_somebodys_is_nobody_elses_while_its_engine_has_it() {
        let Folder { path, engine, alice, bob, _folder } = folder();
        let spare = spare_id("0011");
        let claims = Claims::open(path.clone()).unwrap();
        claims.claim(&spare, engine, &alice).unwrap();
        claims.release(&alice).unwrap();
        claims.release(&alice).unwrap();
        assert_eq!(claims.owner(&spare), None);
        assert_eq!(claims.claim(&spare, engine, &bob).unwrap(), Claim::Taken);
        let later = Instant::now() + FORGET_AFTER * 2;
        for claims in [&claims, &Claims::open(path.clone()).unwrap()] {
            assert!(claims.is_used(&spare) && claims.instance(bob.host()).is_none());
            claims.forget_gone("other", &HashSet::new(), later).unwrap();
            claims.forget_gone("main", &[spare.clone()].into(), later).unwrap();
            claims.forget_gone("main", &HashSet::new(), Instant::now()).unwrap();
            assert!(claims.is_used(&spare), "its engine lists it still, or did a moment ago");
        }
        claims.forget_gone("main", &HashSet::new(), later).unwrap();
        assert!(!claims.is_used(&spare));
        assert_eq!(fs::read_dir(path).unwrap().count(), 0);
    }

    #[test]
    fn what_nobody_can_read_is_no_spare() {
        let Folder { path, engine, alice, _folder, .. } = folder();
        let spare = spare_id("0011");
        fs::create_dir(&path).unwrap();
        fs::write(path.join(spare.host()), "").unwrap();
        let claims = Claims::open(path).unwrap();
        assert!(claims.is_used(&spare));
        assert_eq!(claims.claim(&spare, engine, &alice).unwrap(), Claim::Taken);
    }
}
