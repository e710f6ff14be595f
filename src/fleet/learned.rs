//! How long the wakes of late took, by engine, route and the depth that they began at: what a wake
//! that begins now will take. Kept in a file, so that a restart does not forget it.

use std::{
    collections::{HashMap, VecDeque},
    fs::{self, File},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::time::sleep;

use super::Fleet;
use crate::session::Depth;

/// The wakes that are remembered of one kind: enough for a median, few enough to forget soon.
const WAKES_MAX: usize = 15;
/// More kinds than any edge has; then those that come are not learned.
const KINDS_MAX: usize = 100_000;
/// What that many kinds take in a file, and more.
const FILE_MAX: u64 = 64 << 20;
/// What a crash may lose.
const KEEP_EVERY: Duration = Duration::from_secs(60);

/// What wakes have in common.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Kind {
    pub(super) engine: Arc<str>,
    pub(super) route: Arc<str>,
    pub(super) from: Depth,
}

/// What was learned.
#[derive(Debug, Default)]
pub(super) struct Learned {
    wakes: Mutex<HashMap<Kind, VecDeque<Duration>>>,
    /// Since it was kept.
    has_changed: AtomicBool,
    file: OnceLock<PathBuf>,
}

/// One kind, as it is kept.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    engine: String,
    route: String,
    from: String,
    took_us: Vec<u64>,
}

impl Learned {
    /// A wake took so long, without its wait for a place.
    pub(super) fn note(&self, kind: Kind, took: Duration) {
        let mut all = self.lock();
        if KINDS_MAX <= all.len() && !all.contains_key(&kind) {
            return;
        }
        let wakes = all.entry(kind).or_default();
        if WAKES_MAX <= wakes.len() {
            wakes.pop_front();
        }
        wakes.push_back(took);
        self.has_changed.store(true, Ordering::Release);
    }

    /// The median; `None` of a kind that there was none of yet.
    pub(super) fn usual(&self, kind: &Kind) -> Option<Duration> {
        let all = self.lock();
        let mut wakes: Vec<_> = all.get(kind)?.iter().copied().collect();
        wakes.sort_unstable();
        wakes.get(wakes.len() / 2).copied()
    }

    /// Reads what was learned before, and keeps what comes in `file`. One that nobody can read is as
    /// good as none.
    fn open(&self, file: PathBuf) {
        match read(&file) {
            Ok(lines) => self.lock().extend(lines.into_iter().take(KINDS_MAX).filter_map(of_line)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(file = %file.display(), %error, "how long wakes took is forgotten");
            }
        }
        let _ = self.file.set(file); // a second call changes nothing
    }

    /// Writes it, whole or not at all, if there is anything new.
    fn keep(&self) -> io::Result<()> {
        let Some(file) = self.file.get() else { return Ok(()) };
        if !self.has_changed.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        let lines: Vec<_> = self.lock().iter().map(line).collect();
        let part = file.with_extension("part");
        let mut fresh = File::create(&part)?;
        fresh.write_all(&serde_json::to_vec(&lines)?)?;
        fresh.sync_all()?;
        fs::rename(part, file)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Kind, VecDeque<Duration>>> {
        self.wakes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read(file: &Path) -> io::Result<Vec<Line>> {
    // To open a pipe would wait for somebody to write.
    if !fs::metadata(file)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a regular file"));
    }
    let mut text = Vec::new();
    File::open(file)?.take(FILE_MAX).read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

fn line((kind, wakes): (&Kind, &VecDeque<Duration>)) -> Line {
    let micros = |took: &Duration| u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    Line {
        engine: kind.engine.to_string(),
        route: kind.route.to_string(),
        from: kind.from.as_str().to_owned(),
        took_us: wakes.iter().map(micros).collect(),
    }
}

fn of_line(line: Line) -> Option<(Kind, VecDeque<Duration>)> {
    let from = Depth::ALL.into_iter().find(|depth| depth.as_str() == line.from)?;
    let kind = Kind { engine: line.engine.into(), route: line.route.into(), from };
    Some((kind, line.took_us.into_iter().take(WAKES_MAX).map(Duration::from_micros).collect()))
}

impl Fleet {
    /// How long wakes took is kept in `file` from now on, and read from there.
    pub fn keep_learned(&self, file: PathBuf) {
        self.learned.open(file);
    }

    /// Until dropped.
    pub(super) async fn keep_learning(self: Arc<Self>) {
        loop {
            sleep(KEEP_EVERY).await;
            let fleet = Arc::clone(&self);
            // One that panics is told of by the panic.
            let _ = tokio::task::spawn_blocking(move || fleet.keep_learned_now()).await;
        }
    }

    /// Generations go on above those of the edges before, which `file` bounds.
    pub fn keep_generations(&self, file: PathBuf) -> io::Result<()> {
        self.generations.open(file)
    }

    /// Keeps what was learned of late.
    pub fn keep_learned_now(&self) {
        if let Err(error) = self.learned.keep() {
            tracing::warn!(%error, "cannot keep how long wakes took");
        }
        if let Err(error) = self.generations.keep() {
            tracing::warn!(%error, "cannot keep which generation is the newest");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(from: Depth) -> Kind {
        Kind { engine: "e".into(), route: "r".into(), from }
    }

    #[test]
    fn the_median_of_late_is_the_usual() {
        let learned = Learned::default();
        assert_eq!(learned.usual(&kind(Depth::Paused)), None);
        for ms in [10, 9000, 20] {
            learned.note(kind(Depth::Paused), Duration::from_millis(ms));
        }
        assert_eq!(learned.usual(&kind(Depth::Paused)), Some(Duration::from_millis(20)));
        assert_eq!(learned.usual(&kind(Depth::Stopped)), None);
        for _ in 0..WAKES_MAX {
            learned.note(kind(Depth::Paused), Duration::from_millis(500));
        }
        assert_eq!(learned.usual(&kind(Depth::Paused)), Some(Duration::from_millis(500)));
    }

    #[test]
    fn it_outlives_the_edge_and_a_spoilt_file_is_none() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("learned.json");
        let before = Learned::default();
        before.open(file.clone());
        before.note(kind(Depth::Stopped), Duration::from_millis(700));
        before.keep().expect("kept");
        let after = Learned::default();
        after.open(file.clone());
        assert_eq!(after.usual(&kind(Depth::Stopped)), Some(Duration::from_millis(700)));

        fs::write(&file, "[{\"engine\"").expect("written");
        let spoilt = Learned::default();
        spoilt.open(file.clone());
        assert_eq!(spoilt.usual(&kind(Depth::Stopped)), None);
        spoilt.note(kind(Depth::Paused), Duration::from_millis(3));
        spoilt.keep().expect("kept");
        assert_eq!(read(&file).expect("whole").len(), 1);
    }
}
