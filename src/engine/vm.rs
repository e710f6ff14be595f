//! What engines have in common that run a virtual machine as a process of this host: its folder, and
//! its process's end.

pub(super) mod folder;
pub(super) mod process;

use std::{
    io,
    net::SocketAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::{Error, Instance};
use folder::{Folder, Record};

/// A spec may be that of no route; the machine's own knows its grace.
pub(super) fn grace(record: &Record) -> Duration {
    Duration::from_millis(record.grace_ms)
}

/// No two starts of one machine are in the same nanosecond.
pub(super) fn new_life() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{:x}", since.as_nanos())
}

/// Behind a tap a guest has an address of its own.
pub(super) fn address(ip: Option<&str>, port: u16) -> Result<Option<SocketAddr>, Error> {
    let Some(ip) = ip else { return Ok(None) };
    let wrong = |_| Error::Invalid(format!("`{ip}` is no address of a guest"));
    Ok(Some(SocketAddr::new(ip.parse().map_err(wrong)?, port)))
}

/// Every machine of these folders: a disk's answers, so not waited for where others work. A folder
/// that cannot be read is left out: it is not all of them.
pub(super) async fn all(
    folders: impl FnOnce() -> io::Result<Vec<Folder>> + Send + 'static,
) -> Result<Vec<(Folder, Instance)>, Error> {
    let look = move || {
        let folders = folders().map_err(|e| Error::Failed(format!("the state folder: {e}")))?;
        let looks = folders.into_iter().filter_map(|folder| match folder.instance() {
            Ok(instance) => Some((folder, instance?)),
            Err(error) => {
                let folder = folder.path().display();
                tracing::warn!(%folder, %error, "skipped a machine's folder that cannot be read");
                None
            }
        });
        Ok(looks.collect())
    };
    let looked = tokio::task::spawn_blocking(look).await;
    looked.unwrap_or_else(|_| Err(Error::Failed("a list panicked half-way".to_owned())))
}

pub(super) fn disk(folder: &Folder, error: &io::Error) -> Error {
    Error::Failed(format!("the machine's folder {}: {error}", folder.path().display()))
}
