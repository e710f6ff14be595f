//! The files that a machine is made of, where its process finds them.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{MetadataExt as _, chown},
    path::{Path, PathBuf},
};

use super::{
    Config, Jail,
    layer::LAYER,
    part::{self, Part},
    template::Files,
};
use crate::{
    engine::{
        Error,
        vm::{
            disk,
            folder::{Base, Folder, MEMORY, MEMORY_PART, Record, STATE, STATE_PART, gone_is_fine},
        },
    },
    session::Spec,
};

/// The session's own disk.
pub(super) const DISK: &str = "disk";
/// In a jail, the root that sessions share. A session's own disk, from before its route had a layer,
/// stays beside it.
const BASE: &str = "base";

/// A memory that stands for a machine that has booted, in the machine's folder now.
#[derive(Debug)]
pub(super) struct Golden;

/// Puts everything in its place; a new session gets its disk, and a golden memory if there is one.
pub(super) fn prepare(
    config: &Config,
    folder: &Folder,
    spec: &Spec,
    before: Option<&Record>,
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
    let golden = firecracker.golden.as_ref().filter(|_| !folder.is_known());
    let golden = golden.map(|golden| config.base.join(golden));
    let image = firecracker.disk.as_ref().map(|image| config.base.join(image));
    let mut files = Files { kernel, initrd, ..Files::default() };
    match image {
        Some(image) if firecracker.layer.is_some() => {
            if let Some(golden) = &golden {
                own(folder, &golden.join(LAYER), LAYER, jail)?;
            }
            let (disk, base) = root(config, folder, &image, before)?;
            (files.disk, files.layer, files.base) =
                (Some(disk), Some(LAYER.to_owned()), Some(base));
        }
        image => files.disk = disk_of_its_own(folder, image, golden.as_deref(), jail)?,
    }
    if let Some(golden) = &golden {
        for name in [MEMORY, STATE] {
            shared(folder, &golden.join(name), name, jail)?;
        }
    }
    if let Some(jail) = jail {
        chown(folder.work(), Some(jail.uid), Some(jail.gid)).map_err(|e| disk(folder, &e))?;
    }
    Ok((files, golden.map(|_| Golden)))
}

/// Of a golden memory, where it has one, or of its route.
fn disk_of_its_own(
    folder: &Folder,
    image: Option<PathBuf>,
    golden: Option<&Path>,
    jail: Option<&Jail>,
) -> Result<Option<String>, Error> {
    let golden = golden.map(|golden| golden.join(DISK)).filter(|disk| disk.exists());
    if let Some(image) = golden.or(image) {
        own(folder, &image, DISK, jail)?;
    }
    // One that came with a golden memory stays.
    Ok(folder.has(DISK).then(|| DISK.to_owned()))
}

/// The root that all read, where the machine's process finds it, and which it is.
fn root(
    config: &Config,
    folder: &Folder,
    image: &Path,
    before: Option<&Record>,
) -> Result<(String, Base), Error> {
    missing(image)?;
    let io = |e: io::Error| disk(folder, &e);
    let base = Base::of(image).map_err(io)?;
    let Some(jail) = &config.jail else { return Ok((image.display().to_string(), base)) };
    let to = folder.file(BASE);
    let known = before.and_then(|record| record.base.as_ref()) == Some(&base);
    let is_there = linked(image, &to, jail).map_err(io)? || (known && is_copy(&to));
    if !is_there {
        copy(image, &to, Some(jail)).map_err(io)?;
    }
    Ok((BASE.to_owned(), base))
}

/// Puts the image itself into a jail, if it can be there and its user can do nothing but read it.
fn linked(image: &Path, to: &Path, jail: &Jail) -> io::Result<bool> {
    // What a link to a link points to is elsewhere in a jail.
    let image = image.canonicalize()?;
    let is = fs::metadata(&image)?;
    if !is_to_read(jail, (is.uid(), is.gid()), is.mode()) {
        return Ok(false);
    }
    // Beside it first: on another file system a copy is there that may be kept.
    let part = part::path(to);
    gone_is_fine(fs::remove_file(&part))?;
    if fs::hard_link(&image, &part).is_err() {
        return Ok(false);
    }
    fs::rename(&part, to)?;
    // Where it was the same file, a rename does nothing.
    gone_is_fine(fs::remove_file(&part))?;
    Ok(true)
}

/// Whether the jail's user can read a file and never write it: an owner could, whatever the mode
/// says. The group's bits are also the most that any other user was given by an ACL.
fn is_to_read(jail: &Jail, (uid, gid): (u32, u32), mode: u32) -> bool {
    let read = if gid == jail.gid { 0o040 } else { 0o004 };
    uid != jail.uid && mode & 0o022 == 0 && mode & read != 0
}

/// Whether it is a copy of ours: an image has a name elsewhere.
fn is_copy(file: &Path) -> bool {
    fs::symlink_metadata(file).is_ok_and(|is| is.is_file() && is.nlink() == 1)
}

/// What the jailer made for the life before: it would stumble over it.
fn clean(folder: &Folder) -> io::Result<()> {
    for name in ["dev", "run"] {
        gone_is_fine(fs::remove_dir_all(folder.work().join(name)))?;
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
    let part = Part::create(to)?;
    part.fill(from)?;
    part.finish(jail)
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
