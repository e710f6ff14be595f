//! A file that is whole under its name, or not there: made beside it, synced, renamed.

use std::{
    fs::{self, File},
    io::{self, Read as _, Seek as _},
    os::unix::fs::{OpenOptionsExt as _, fchown},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{SeekFrom, seek},
    io::Errno,
};

use super::Jail;
use crate::engine::vm::folder::gone_is_fine;

/// What becomes the file. Dropping it unfinished leaves nothing, also not the room that it took.
pub(super) struct Part {
    file: File,
    path: PathBuf,
    to: PathBuf,
}

impl Part {
    /// A new one always: what a crash left goes, and so does a link that a jail's user laid there
    /// for us to write through.
    pub(super) fn create(to: &Path) -> io::Result<Self> {
        let path = path(to);
        gone_is_fine(fs::remove_file(&path))?;
        let file = File::options().write(true).create_new(true).mode(0o600).open(&path)?;
        Ok(Self { file, path, to: to.to_owned() })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// As long as it is to be, of holes alone.
    pub(super) fn stretch(&self, length: u64) -> io::Result<()> {
        self.file.set_len(length)
    }

    /// Holes stay holes, as images and layers are mostly that; and where the file system can do it,
    /// blocks are shared.
    pub(super) fn fill(&self, from: &Path) -> io::Result<()> {
        let (from, mut at) = (File::open(from)?, 0);
        self.stretch(from.metadata()?.len())?;
        loop {
            let start = match seek(&from, SeekFrom::Data(at)) {
                Err(Errno::NXIO) => return Ok(()),
                start => start?,
            };
            at = seek(&from, SeekFrom::Hole(start))?;
            for mut file in [&from, &self.file] {
                file.seek(io::SeekFrom::Start(start))?;
            }
            io::copy(&mut (&from).take(at - start), &mut &self.file)?;
        }
    }

    /// From here on it is the file, and the jail's user's.
    pub(super) fn finish(self, jail: Option<&Jail>) -> io::Result<()> {
        if let Some(jail) = jail {
            fchown(&self.file, Some(jail.uid), Some(jail.gid))?;
        }
        self.file.sync_all()?;
        fs::rename(&self.path, &self.to)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path); // it has its name by now, or nobody wants it
    }
}

/// Where `to` is made.
pub(super) fn path(to: &Path) -> PathBuf {
    PathBuf::from(format!("{}.part", to.display()))
}
