//! Notices that the files of a folder have changed: routes, certificates. Says only *that*
//! something changed: whoever is told reads the whole folder again, as SIGHUP and the admin API do
//! too.
//!
//! Knows no room and no async runtime: a thread of its own, which a reload may block as long as it
//! likes.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher as _};

/// An editor's or a deployment's burst of changes is over when nothing happens for this long …
const QUIET: Duration = Duration::from_millis(100);
/// … but a burst without end is not waited for longer than this.
const BURST_MAX: Duration = Duration::from_secs(1);
/// How soon a folder that was replaced, or has only just appeared, is noticed.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Watches until it is dropped.
#[derive(Debug)]
pub struct Watch {
    ended: Arc<AtomicBool>,
    wake: SyncSender<()>,
    thread: Option<JoinHandle<()>>,
}

/// Says of a file's name whether the file counts.
pub type Counts = fn(&str) -> bool;

/// Calls `changed` from a thread of its own after every burst of changes to the files of `dir` that
/// count. Begin to watch before you load, and no change falls between the two.
///
/// The folder may be missing, be replaced, or be a symlink that comes to point elsewhere (its
/// files too, as Kubernetes does with a ConfigMap). An edit behind a symlink that leads out of
/// the folder is not seen: that needs SIGHUP or the API.
pub fn watch(
    dir: &Path,
    counts: Counts,
    changed: impl FnMut() + Send + 'static,
) -> io::Result<Watch> {
    // One place: a change that is waiting to be told stands for all that come meanwhile.
    let (wake, woken) = sync_channel(1);
    let (told, watched_dir) = (wake.clone(), dir.to_owned());
    let watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
        if event.map_or(true, |event| matters(&event, &watched_dir, counts)) {
            // Full: a change is waiting to be told already.
            let _ = told.try_send(());
        }
    })
    .map_err(io::Error::other)?;
    let mut folder = Folder { dir: dir.to_owned(), watcher, watched: None };
    folder.follow();
    let ended = Arc::new(AtomicBool::new(false));
    let end = ended.clone();
    let thread = thread::Builder::new()
        .name("watch".into())
        .spawn(move || run(&woken, &end, &mut folder, changed))?;
    Ok(Watch { ended, wake, thread: Some(thread) })
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        // Full: it is about to wake up anyway.
        let _ = self.wake.try_send(());
        // `changed` itself may drop this, and a thread cannot wait for itself.
        let own = |thread: &JoinHandle<()>| thread.thread().id() == thread::current().id();
        if let Some(thread) = self.thread.take().filter(|thread| !own(thread)) {
            // It panicked, if `changed` did; there is nothing to add to that.
            let _ = thread.join();
        }
    }
}

fn run(woken: &Receiver<()>, ended: &AtomicBool, folder: &mut Folder, mut changed: impl FnMut()) {
    loop {
        let is_change = woken.recv_timeout(LOOK_AGAIN).is_ok();
        if is_change {
            settle(woken, ended);
        }
        if ended.load(Ordering::Acquire) {
            return;
        }
        // Followed before it is told: what changes after that is seen.
        let is_other = if is_change { folder.follow() } else { folder.follow_if_other() };
        if is_change || is_other {
            changed();
        }
    }
}

/// Waits for the end of a burst.
fn settle(woken: &Receiver<()>, ended: &AtomicBool) {
    let began = Instant::now();
    while began.elapsed() < BURST_MAX && !ended.load(Ordering::Acquire) {
        if woken.recv_timeout(QUIET).is_err() {
            return;
        }
    }
}

/// Whether an event may be about a file that counts. Reading a file is an event too: our own reload
/// must not be the cause of the next one.
fn matters(event: &Event, dir: &Path, counts: Counts) -> bool {
    let is_ours = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // `..data` is a ConfigMap's; the folder itself when it is moved or removed.
        counts(&name) || name.starts_with("..") || path == dir
    };
    !event.kind.is_access() && (event.paths.is_empty() || event.paths.iter().any(is_ours))
}

/// The folder behind a path, which may become another one.
struct Folder {
    dir: PathBuf,
    watcher: RecommendedWatcher,
    watched: Option<Identity>,
}

/// Which folder it is, whatever its name: device and inode.
type Identity = (u64, u64);

impl Folder {
    /// Watches what is behind the path now; `true` if that is another folder than before.
    ///
    /// Always anew: a folder that was removed and made again may have got its old inode back,
    /// and the watch on it is dead all the same.
    fn follow(&mut self) -> bool {
        // Fails when the old folder is gone, and its watch with it.
        let _ = self.watcher.unwatch(&self.dir);
        let before = self.watched;
        // A watch that fails is tried again with the next look.
        self.watched = identity(&self.dir)
            .filter(|_| self.watcher.watch(&self.dir, RecursiveMode::NonRecursive).is_ok());
        self.watched != before
    }

    fn follow_if_other(&mut self) -> bool {
        identity(&self.dir) != self.watched && self.follow()
    }
}

fn identity(dir: &Path) -> Option<Identity> {
    let metadata = fs::metadata(dir).ok().filter(fs::Metadata::is_dir)?;
    Some((metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use notify::event::{AccessKind, AccessMode, CreateKind, EventKind};

    use super::*;

    #[test]
    fn a_read_a_swap_file_and_another_kind_of_file_are_no_change() {
        let dir = Path::new("/routes");
        let counts = crate::route::is_route_file;
        let matter =
            |kind, name: &str| matters(&Event::new(kind).add_path(dir.join(name)), dir, counts);
        let create = EventKind::Create(CreateKind::File);
        for name in ["a.toml", "..data", ""] {
            assert!(matter(create, name), "{name}");
            assert!(!matter(EventKind::Access(AccessKind::Open(AccessMode::Any)), name), "{name}");
        }
        for name in [".a.toml.swp", "a.toml~", "4913", "README.md", ".hidden"] {
            assert!(!matter(create, name), "{name}");
        }
        assert!(matters(&Event::new(EventKind::Other), dir, counts));
    }
}
