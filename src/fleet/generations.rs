//! Which generation is the newest of all. The wall clock alone would not do: it may be set back
//! while an edge is down, and a session that then slept would begin again with a number that was.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use crate::session::Generation;

/// How far above the newest one the file says it is: so many may be given before it is written
/// anew, and by the clock's milliseconds that is an hour.
const AHEAD: u64 = 60 * 60 * 1000;
/// What bears a higher one was not marked by an edge.
const MAX: u64 = 1 << 62;

#[derive(Debug)]
pub(super) struct Generations {
    newest: AtomicU64,
    file: OnceLock<PathBuf>,
    /// What the file says.
    kept: Mutex<u64>,
}

impl Default for Generations {
    fn default() -> Self {
        let newest = AtomicU64::new(millis_since_1970());
        Self { newest, file: OnceLock::new(), kept: Mutex::default() }
    }
}

impl Generations {
    /// Above every one that was seen and, by the wall clock, above those of the processes before.
    pub(super) fn newest(&self) -> Generation {
        let millis = millis_since_1970();
        Generation(self.newest.fetch_max(millis, Ordering::AcqRel).max(millis))
    }

    /// There is, or was, this one.
    pub(super) fn see(&self, generation: Generation) {
        if generation.0 < MAX {
            self.newest.fetch_max(generation.0, Ordering::AcqRel);
        }
    }

    /// Goes on above what `file` says, and keeps it true from now on.
    pub(super) fn open(&self, file: PathBuf) -> io::Result<()> {
        match fs::read_to_string(&file) {
            Ok(text) => match text.trim().parse() {
                Ok(kept) => self.see(Generation(kept)),
                Err(_) => tracing::warn!(file = %file.display(), "not a generation: by the clock"),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let _ = self.file.set(file); // a second call changes nothing
        self.keep()
    }

    /// Writes it, whole or not at all, before it would become untrue.
    pub(super) fn keep(&self) -> io::Result<()> {
        let Some(file) = self.file.get() else { return Ok(()) };
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = self.newest().0;
        if newest + AHEAD / 2 <= *kept {
            return Ok(());
        }
        write(file, newest + AHEAD)?;
        *kept = newest + AHEAD;
        Ok(())
    }
}

fn write(file: &Path, newest: u64) -> io::Result<()> {
    let part = file.with_extension("part");
    let mut fresh = File::create(&part)?;
    writeln!(fresh, "{newest}")?;
    fresh.sync_all()?;
    fs::rename(part, file)
}

fn millis_since_1970() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_was_set_back_gives_no_generation_twice() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("generation");
        let before = Generations::default();
        // As if the clock had been a year ahead.
        let ahead = Generation(before.newest().0 + 365 * 24 * 60 * 60 * 1000);
        before.see(ahead);
        before.open(file.clone()).expect("kept");
        before.see(ahead.next());
        let after = Generations::default();
        assert!(after.newest() < ahead, "by the clock alone");
        after.open(file.clone()).expect("read");
        assert!(ahead.next() < after.newest());
    }

    #[test]
    fn a_spoilt_file_is_none_and_a_mark_beyond_reason_is_not_followed() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("generation");
        fs::write(&file, "seven").expect("written");
        let all = Generations::default();
        all.open(file.clone()).expect("opened");
        all.see(Generation(u64::MAX));
        assert!(all.newest().0 < MAX);
        let kept: u64 = fs::read_to_string(&file).expect("text").trim().parse().expect("a number");
        assert!(all.newest().0 < kept);
    }
}
