//! What a session writes when it shares its root: an ext4 file system in a sparse file of its own.

use std::{ffi::OsString, io, path::Path, process::Stdio, time::Duration};

use tokio::{process::Command, task::spawn_blocking, time::timeout};

use super::{Config, part::Part};
use crate::engine::{
    Error,
    vm::{disk, folder::Folder},
};

/// The session's own layer.
pub(super) const LAYER: &str = "layer";
/// Where it may be for a user whose PATH has no programs of root.
const SBIN: &str = "/usr/local/sbin:/usr/sbin:/sbin";
/// The most of what it says that an error repeats, in characters.
const WORDS_MAX: usize = 300;

/// Makes it, once: one that is there keeps what it holds, and its size.
pub(super) async fn make(config: &Config, folder: &Folder, size: u64) -> Result<(), Error> {
    if folder.has(LAYER) {
        return Ok(());
    }
    let io = |e: io::Error| disk(folder, &e);
    let part = Part::create(&folder.file(LAYER)).map_err(io)?;
    part.stretch(size).map_err(io)?;
    format(&config.mkfs, part.path(), config.call_timeout).await?;
    let jail = config.jail.clone();
    let finished = spawn_blocking(move || part.finish(jail.as_ref())).await;
    finished.map_err(|_| Error::Failed("the session's layer: a panic".to_owned()))?.map_err(io)
}

async fn format(mkfs: &Path, file: &Path, limit: Duration) -> Result<(), Error> {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(OsString::from(format!(":{SBIN}")));
    let ran = Command::new(mkfs)
        // A sparse file reads as zeroes already: a journal need not be written to be empty.
        .args(["-q", "-F", "-E", "lazy_journal_init=1"])
        .arg(file)
        .env_clear()
        .env("PATH", path)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let late = |_| Error::Timeout { call: "mkfs.ext4", after: limit };
    let ran = timeout(limit, ran).await.map_err(late)?;
    let said = ran.map_err(|error| {
        let mkfs = mkfs.display();
        Error::Missing(format!("cannot run {mkfs} of e2fsprogs, which formats a layer: {error}"))
    })?;
    if said.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&said.stderr);
    let words: String = words.trim().chars().take(WORDS_MAX).collect();
    Err(Error::Failed(format!("the session's layer cannot be formatted: {words}")))
}
