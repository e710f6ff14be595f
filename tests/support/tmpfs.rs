//! A disk that is full: a file system in memory.

use std::{path::Path, process::Command};

use tempfile::TempDir;

/// A file system of its own that is soon full.
pub(crate) struct Tmpfs(TempDir);

impl Tmpfs {
    pub(crate) fn mount(size: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("vm").tempdir_in("/tmp").unwrap();
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(folder.path())
            .status();
        assert!(mount.unwrap().success(), "a test of a full disk needs root");
        Self(folder)
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}
