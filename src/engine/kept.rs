//! Small files in which engines keep what outlives the edge.

use std::{
    fs::OpenOptions,
    io::{self, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use rustix::fs::OFlags;

/// No record is nearly as long.
const LENGTH_MAX: u64 = 1024 * 1024;

/// What is in a regular file; `None` where nothing has this name. Errors name the path.
pub(super) fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match contents(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(at(path, &error)),
    }
}

fn contents(path: &Path) -> io::Result<Vec<u8>> {
    // A pipe of this name must not be waited for.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a regular file"));
    }
    let mut text = Vec::new();
    file.take(LENGTH_MAX + 1).read_to_end(&mut text)?;
    if LENGTH_MAX < text.len() as u64 {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "longer than any record"));
    }
    Ok(text)
}

/// `error` with the path that it is about.
pub(super) fn at(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
