//! The files that a machine is made of, where its process finds them.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::chown,
    path::{Path, PathBuf},
};

use super::{Config, Jail, template::Files};
use crate::{
    engine::{
        Error,
        vm::{
            disk,
            folder::{Folder, MEMORY, MEMORY_PART, STATE, STATE_PART},
        },
    },
    session::Spec,
};

/// The session's own disk.
pub(super) const DISK: &str = "disk";

/// A memory that stands for a machine that has booted, in the machine's folder now.
#[derive(Debug)]
pub(super) struct Golden;

/// Puts everything in its place; a new session gets its disk, and a golden memory if there is one.
pub(super) fn prepare(
    config: &Config,
    folder: &Folder,
    spec: &Spec,
    is_new: bool,
) -> Result<(Files, Option<Golden>), Error> {
    let jail = config.jail.as_ref();
    if jail.is_some() {
        clean(folder).map_err(|e| disk(folder, &e))?;
    }
    let firecracker = &spec.firecracker;
    let place = |file: &Option<String>, name: &str| match file {
        None => Ok(None),
        Some(file) => read_only(config, folder, &config.base.join(file), name).map(Some),
    };
    let (kernel, initrd) =
        (place(&firecracker.kernel, "kernel")?, place(&firecracker.initrd, "initrd")?);
    let golden =
        firecracker.golden.as_ref().filter(|_| is_new).map(|golden| config.base.join(golden));
    let image = match &golden {
        Some(golden) if golden.join(DISK).exists() => Some(golden.join(DISK)),
        _ => firecracker.disk.as_ref().map(|image| config.base.join(image)),
    };
    let disk = match image {
        // One that came with a golden memory stays.
        None => folder.has(DISK).then(|| DISK.to_owned()),
        Some(image) => {
            own(folder, &image, DISK, jail)?;
            Some(DISK.to_owned())
        }
    };
    let golden = match golden {
        None => None,
        Some(golden) => {
            for name in [MEMORY, STATE] {
                shared(folder, &golden.join(name), name, jail)?;
            }
            Some(Golden)
        }
    };
    if let Some(jail) = jail {
        chown(folder.work(), Some(jail.uid), Some(jail.gid))
            .map_err(|e| super::disk(folder, &e))?;
    }
    Ok((Files { kernel, initrd, disk }, golden))
}

/// What the jailer made for the life before: it would stumble over it.
fn clean(folder: &Folder) -> io::Result<()> {
    for name in ["dev", "run"] {
        match fs::remove_dir_all(folder.work().join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// By its path, or in a jail by a name of its own.
fn read_only(config: &Config, folder: &Folder, file: &Path, name: &str) -> Result<String, Error> {
    missing(file)?;
    match &config.jail {
        None => Ok(file.display().to_string()),
        Some(jail) => shared(folder, file, name, Some(jail)).map(|()| name.to_owned()),
    }
}

/// The same file under another name, where both are on one file system; else a copy.
fn shared(folder: &Folder, file: &Path, name: &str, jail: Option<&Jail>) -> Result<(), Error> {
    missing(file)?;
    let io = |e: io::Error| disk(folder, &e);
    folder.forget(&[name]).map_err(io)?;
    let to = folder.file(name);
    if jail.is_none() && fs::hard_link(file, &to).is_ok() {
        return Ok(());
    }
    // In a jail it must be readable by its user, and no link to what others read.
    copy(file, &to, jail).map_err(io)
}

/// A copy that the session may write, made once: shared blocks where the file system can do that.
fn own(folder: &Folder, image: &Path, name: &str, jail: Option<&Jail>) -> Result<(), Error> {
    if folder.has(name) {
        return Ok(());
    }
    missing(image)?;
    copy(image, &folder.file(name), jail).map_err(|e| disk(folder, &e))
}

/// Whole or not at all.
fn copy(from: &Path, to: &Path, jail: Option<&Jail>) -> io::Result<()> {
    let part = PathBuf::from(format!("{}.part", to.display()));
    fs::copy(from, &part)?;
    if let Some(jail) = jail {
        chown(&part, Some(jail.uid), Some(jail.gid))?;
    }
    File::open(&part)?.sync_all()?;
    fs::rename(part, to)
}

fn missing(file: &Path) -> Result<(), Error> {
    match fs::metadata(file) {
        Ok(_) => Ok(()),
        Err(error) => Err(Error::Missing(format!("{}: {error}", file.display()))),
    }
}

/// Sees to it that a memory outlives a crash of the host; how long its two parts are.
pub(super) fn sync(folder: &Folder) -> io::Result<(u64, u64)> {
    let length = |name| {
        let file = File::open(folder.file(name))?;
        file.sync_all()?;
        Ok::<_, io::Error>(file.metadata()?.len())
    };
    Ok((length(MEMORY_PART)?, length(STATE_PART)?))
}
