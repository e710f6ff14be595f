//! What instances print: through a named pipe into a file per session that never grows beyond its
//! bound.
//!
//! An instance holds both ends of its pipe, so it outlives the edge: what it prints then waits in
//! the pipe, and so does the instance once that is full, until the next edge reads on. No writer is
//! faster than its reader, so the bound holds for every writer.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    pin::pin,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use rustix::fs::{CWD, Mode, mkfifoat};
use tokio::{
    net::unix::pipe::{OpenOptions as PipeOptions, Receiver},
    sync::Mutex,
    time::sleep,
};

use crate::engine::kept;

/// The most that is taken from a pipe at once.
const CHUNK_MAX: usize = 64 * 1024;
/// After a whole chunk: one that prints without end must not take a core of the edge.
const BREATH: Duration = Duration::from_millis(1);
/// As many chunks as the largest pipe of a user without privileges holds, and more.
const DRAIN_MAX: usize = 32;

/// A new pipe under this name, opened for an instance: for both reading and writing, so that it is
/// never without a reader.
pub(super) fn make_pipe(path: &Path) -> io::Result<File> {
    let at = |error: io::Error| kept::at(path, &error);
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(error)),
        _ => {}
    }
    mkfifoat(CWD, path, Mode::RUSR | Mode::WUSR).map_err(|error| at(error.into()))?;
    OpenOptions::new().read(true).write(true).open(path).map_err(at)
}

/// Carries what one instance prints from its pipe into its file.
#[derive(Debug)]
pub(super) struct Output {
    pipe: Receiver,
    log: PathBuf,
    max: u64,
    /// Held from the read to the write, so that the file has the order of the pipe.
    turn: Mutex<()>,
    is_failing: AtomicBool,
}

impl Output {
    /// Within a runtime.
    pub(super) fn open(pipe: &Path, log: PathBuf, max: u64) -> io::Result<Self> {
        let opened = PipeOptions::new().read_write(true).open_receiver(pipe);
        Ok(Self {
            pipe: opened.map_err(|error| kept::at(pipe, &error))?,
            log,
            max,
            turn: Mutex::default(),
            is_failing: AtomicBool::new(false),
        })
    }

    /// Carries until `end`, and no chunk is left half-way.
    pub(super) async fn carry(&self, end: impl Future<Output = ()>) {
        let mut end = pin!(end);
        loop {
            tokio::select! {
                biased;
                () = &mut end => return,
                ready = self.pipe.readable() => if ready.is_err() {
                    return end.await; // the runtime ends
                },
            }
            if self.carry_chunk().await == CHUNK_MAX {
                sleep(BREATH).await;
            }
        }
    }

    /// Carries what is in the pipe now: its instance has ended.
    pub(super) async fn drain(&self) {
        for _ in 0..DRAIN_MAX {
            if self.carry_chunk().await == 0 {
                return;
            }
        }
    }

    async fn carry_chunk(&self) -> usize {
        let _turn = self.turn.lock().await;
        let mut chunk = Vec::with_capacity(CHUNK_MAX);
        let Ok(length) = self.pipe.try_read_buf(&mut chunk) else { return 0 };
        let (log, max) = (self.log.clone(), self.max);
        let written = tokio::task::spawn_blocking(move || append(&log, &chunk, max)).await;
        if let Ok(written) = written {
            self.say(written);
        }
        length
    }

    /// What cannot be written is lost: an instance must not wait for a disk to have room again.
    fn say(&self, written: io::Result<()>) {
        let failed = written.is_err();
        let was_failing = self.is_failing.swap(failed, Ordering::Relaxed);
        if let (Err(error), false) = (written, was_failing) {
            let log = self.log.display();
            tracing::warn!(%log, %error, "cannot write an instance's log: lines are lost");
        }
    }
}

/// Half of `max` is for the file, half for `.1`, which holds what was before.
fn append(path: &Path, chunk: &[u8], max: u64) -> io::Result<()> {
    let half = max / 2;
    let most = usize::try_from(half).unwrap_or(usize::MAX);
    let chunk = &chunk[chunk.len().saturating_sub(most)..];
    let mut log = open(path)?;
    let length = log.metadata()?.len();
    if half < length.saturating_add(chunk.len() as u64) {
        let older = path.with_extension("log.1");
        if length <= half {
            fs::rename(path, older)?;
        } else {
            // It was written under a larger bound.
            log.seek(SeekFrom::Start(length - half))?;
            let mut fresh = open(&older)?;
            fresh.set_len(0)?;
            io::copy(&mut (&mut log).take(half), &mut fresh)?;
            fs::remove_file(path)?;
        }
        log = open(path)?;
    }
    log.write_all(chunk)
}

/// The file; made where there is none, so that it can be followed before the first line.
pub(super) fn open(path: &Path) -> io::Result<File> {
    let opened = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path);
    opened.map_err(|error| kept::at(path, &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_files_keep_to_their_halves_and_the_latest_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.example.log");
        let older = folder.path().join("a.example.log.1");
        let length = |path: &Path| fs::metadata(path).map_or(0, |is| is.len());
        for number in 0..100 {
            append(&path, line(number).as_bytes(), 180).unwrap(); // 9 bytes
            assert!(length(&path) <= 90 && length(&older) <= 90, "after line {number}");
        }
        let text = fs::read_to_string(&older).unwrap() + &fs::read_to_string(&path).unwrap();
        assert_eq!(text, (80..100).map(line).collect::<String>());

        let long: String = (0..100).map(line).collect();
        append(&path, long.as_bytes(), 180).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), (90..100).map(line).collect::<String>());
    }

    #[test]
    fn a_file_of_a_larger_bound_is_cut_to_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.example.log");
        fs::write(&path, (0..100).map(line).collect::<String>()).unwrap();
        append(&path, line(100).as_bytes(), 180).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), line(100));
        let older = fs::read_to_string(folder.path().join("a.example.log.1")).unwrap();
        assert_eq!(older, (90..100).map(line).collect::<String>());
    }

    #[test]
    fn nothing_is_kept_where_nothing_may_be() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.example.log");
        append(&path, b"words", 0).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), 0);
    }

    fn line(number: usize) -> String {
        format!("line {number:03}\n")
    }
}
