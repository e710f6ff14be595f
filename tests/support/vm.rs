//! Debian's kernel with busybox: `scripts/vm-image`.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

/// A folder with `vmlinuz` and `initrd`, made once.
pub(crate) fn image() -> &'static Path {
    static IMAGE: OnceLock<PathBuf> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let folder = root.join("target/vm");
        let made = Command::new(root.join("scripts/vm-image")).arg(&folder).output().expect("bash");
        let why = String::from_utf8_lossy(&made.stderr).into_owned();
        assert!(made.status.success(), "no machine to boot, so no test of QEMU ran: {why}");
        folder
    })
}
