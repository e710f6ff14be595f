//! What happened, a JSON object a line: the access log.
//!
//! A request only appends to a bounded buffer; a thread of its own writes what has gathered. So a
//! request never waits for a disk, and a thousand lines are one system call.

use std::{
    cell::RefCell,
    fmt,
    fs::{File, OpenOptions},
    io::{self, Write},
    mem,
    net::IpAddr,
    os::unix::fs::OpenOptionsExt,
    path::PathBuf,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use serde::Serialize;

use crate::metrics::METRICS;

/// How long a line may wait for others to be written with it.
const GATHER: Duration = Duration::from_millis(100);
/// As much is written at once without waiting any longer.
const ENOUGH: usize = 64 * 1024;
/// Bytes that may wait. Lines for which there is no room are dropped and counted.
const WAITING_MAX: usize = 4 * 1024 * 1024;
/// Longer methods, paths and user agents are cut: a client must not fill the disk with one request.
const TEXT_MAX: usize = 512;

thread_local! {
    static LINE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// One request, from its head to its last byte; an upgraded one to its 101.
#[derive(Debug, Serialize)]
pub struct Access<'a> {
    /// When it ended, in milliseconds since 1970.
    pub at: u64,
    /// Its `X-Request-Id`.
    pub id: &'a str,
    /// The client's address.
    pub client: Option<IpAddr>,
    /// Its method.
    #[serde(serialize_with = "cut")]
    pub method: &'a str,
    /// The session's host, where a route has it.
    pub host: &'a str,
    /// The path without the query: there are secrets in queries.
    #[serde(serialize_with = "cut")]
    pub path: &'a str,
    /// The route's name.
    pub route: &'a str,
    /// The life that answered, or that it waited for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// The status of the answer; 0 when the client left before there was one.
    pub status: u16,
    /// Who has entered by the route's access policies, as the instance is told it; empty where that
    /// is not known.
    #[serde(serialize_with = "cut", skip_serializing_if = "str::is_empty")]
    pub user: &'a str,
    /// Why the edge itself answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
    /// Bytes of the answer's body.
    pub bytes: usize,
    /// Milliseconds from its head to its last byte.
    pub took_ms: f64,
    /// Milliseconds that it was held for a wake.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held_ms: Option<f64>,
    /// The client's `User-Agent`.
    #[serde(serialize_with = "cut")]
    pub agent: &'a str,
}

fn cut<S: serde::Serializer>(text: &str, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&text[..text.floor_char_boundary(TEXT_MAX)])
}

/// Where the access log goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogTarget {
    /// Standard output.
    Stdout,
    /// A file, appended to.
    File(PathBuf),
}

impl From<PathBuf> for LogTarget {
    /// `-` is standard output.
    fn from(path: PathBuf) -> Self {
        if path.as_os_str() == "-" { Self::Stdout } else { Self::File(path) }
    }
}

/// The access log.
pub struct AccessLog {
    target: LogTarget,
    waiting: Mutex<Waiting>,
    told: Condvar,
    /// Held while lines are on their way to the file, so that [`AccessLog::flush`] knows the end.
    out: Mutex<Out>,
}

#[derive(Default)]
struct Waiting {
    lines: Vec<u8>,
    reopen: bool,
}

struct Out {
    file: Box<dyn Write + Send>,
    is_failing: bool,
}

impl AccessLog {
    /// Opens the target and starts the thread that writes.
    pub fn open(target: LogTarget) -> io::Result<Arc<Self>> {
        let out = Mutex::new(Out { file: target.open()?, is_failing: false });
        let log = Arc::new(Self { target, waiting: Mutex::default(), told: Condvar::new(), out });
        let writer = Arc::clone(&log);
        thread::Builder::new().name("access-log".into()).spawn(move || writer.write_on())?;
        Ok(log)
    }

    /// Appends a line. Never waits for the disk.
    pub fn write(&self, access: &Access<'_>) {
        LINE.with_borrow_mut(|line| {
            line.clear();
            if serde_json::to_writer(&mut *line, access).is_err() {
                return;
            }
            line.push(b'\n');
            let mut waiting = lock(&self.waiting);
            let before = waiting.lines.len();
            let after = before + line.len();
            if WAITING_MAX < after {
                drop(waiting);
                METRICS.access_log_dropped.inc();
                return;
            }
            waiting.lines.extend_from_slice(line);
            drop(waiting);
            if before == 0 || (before < ENOUGH && ENOUGH <= after) {
                self.told.notify_one();
            }
        });
    }

    /// Opens the file anew, after what waits is written: somebody has moved it away.
    pub fn reopen(&self) {
        lock(&self.waiting).reopen = true;
        self.told.notify_one();
    }

    /// Writes what waits, now.
    pub fn flush(&self) {
        // First, so that lines that were taken before are in the file before these.
        let mut out = lock(&self.out);
        let lines = mem::take(&mut lock(&self.waiting).lines);
        out.write(&lines);
    }

    fn write_on(&self) {
        let mut buffer = Vec::new();
        loop {
            let idle = |waiting: &mut Waiting| waiting.lines.is_empty() && !waiting.reopen;
            let waiting = self.told.wait_while(lock(&self.waiting), idle);
            let waiting = waiting.unwrap_or_else(PoisonError::into_inner);
            let few = |waiting: &mut Waiting| waiting.lines.len() < ENOUGH && !waiting.reopen;
            drop(self.told.wait_timeout_while(waiting, GATHER, few));

            let mut out = lock(&self.out);
            let mut waiting = lock(&self.waiting);
            mem::swap(&mut waiting.lines, &mut buffer);
            let reopen = mem::take(&mut waiting.reopen);
            drop(waiting);
            out.write(&buffer);
            buffer.clear();
            if reopen {
                match self.target.open() {
                    Ok(file) => out.file = file,
                    Err(error) => tracing::error!(%error, "the access log stays in the old file"),
                }
            }
        }
    }
}

impl Out {
    fn write(&mut self, lines: &[u8]) {
        let written = self.file.write_all(lines).and_then(|()| self.file.flush());
        match written {
            Ok(()) => self.is_failing = false,
            Err(error) => {
                let lost = lines.iter().filter(|byte| **byte == b'\n').count();
                METRICS.access_log_dropped.inc_by(lost.try_into().unwrap_or(u64::MAX));
                if !mem::replace(&mut self.is_failing, true) {
                    tracing::error!(%error, "the access log cannot be written; lines are lost");
                }
            }
        }
    }
}

impl LogTarget {
    fn open(&self) -> io::Result<Box<dyn Write + Send>> {
        Ok(match self {
            Self::Stdout => Box::new(io::stdout()),
            Self::File(path) => {
                let file: File =
                    OpenOptions::new().append(true).create(true).mode(0o640).open(path)?;
                Box::new(file)
            }
        })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for AccessLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AccessLog({:?})", self.target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(path: &str) -> Access<'_> {
        Access {
            at: 1,
            id: "an-id",
            client: Some(IpAddr::from([127, 0, 0, 1])),
            method: "GET",
            host: "alice.localhost",
            path,
            route: "desk",
            generation: None,
            status: 200,
            user: "",
            reason: None,
            bytes: 3,
            took_ms: 0.5,
            held_ms: None,
            agent: "",
        }
    }

    fn lines(path: &std::path::Path) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(path).expect("a log");
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    #[test]
    fn a_line_is_an_object_and_a_client_cannot_break_out_of_it() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("log");
        let log = AccessLog::open(LogTarget::File(path.clone())).expect("opens");
        log.write(&access("/a\"b\n{}"));
        let long = "ä".repeat(TEXT_MAX);
        log.write(&Access { method: &long, ..access(&long) });
        log.flush();
        let lines = lines(&path);
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0]["path"], "/a\"b\n{}");
        for key in ["path", "method"] {
            assert_eq!(lines[1][key].as_str().expect("text").len(), TEXT_MAX);
        }
    }

    #[test]
    fn more_lines_than_have_room_are_dropped_and_counted() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("log");
        let log = AccessLog::open(LogTarget::File(path.clone())).expect("opens");
        // Nothing is written while the file is ours.
        let held = lock(&log.out);
        let before = METRICS.access_log_dropped.get();
        let sent = 2 * WAITING_MAX as u64 / 200;
        for _ in 0..sent {
            log.write(&access("/"));
        }
        drop(held);
        log.flush();
        let dropped = METRICS.access_log_dropped.get() - before;
        assert!(0 < dropped, "none of {sent} was dropped");
        assert_eq!(lines(&path).len() as u64 + dropped, sent);
    }

    #[test]
    fn after_a_rotation_lines_go_to_the_new_file() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("log");
        let log = AccessLog::open(LogTarget::File(path.clone())).expect("opens");
        log.write(&access("/old"));
        log.flush();
        std::fs::rename(&path, dir.path().join("log.1")).expect("moved");
        log.reopen();
        while !path.exists() {
            thread::yield_now();
        }
        log.write(&access("/new"));
        log.flush();
        assert_eq!(lines(&path)[0]["path"], "/new");
        assert_eq!(lines(&dir.path().join("log.1")).len(), 1);
    }
}
