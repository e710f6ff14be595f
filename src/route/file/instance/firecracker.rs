//! `[instance.firecracker]`.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    route::text::{DurationText, SizeText},
    session::FirecrackerSpec,
};

/// `[instance.firecracker]`. Paths begin in the folder of `dormouse.toml`.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct FirecrackerTable {
    /// The kernel to boot: an uncompressed `vmlinux` (x86-64) or `Image` (arm64).
    pub(crate) kernel: Option<String>,
    /// The kernel's initial file system.
    pub(crate) initrd: Option<String>,
    /// The kernel's command line. Default: `"console=ttyS0 reboot=k panic=1 pci=off"`.
    pub(crate) append: Option<String>,
    /// A raw image, the root device. Without a `layer` each session gets a copy of its own, of shared blocks where the
    /// file system has them (XFS, Btrfs).
    pub(crate) disk: Option<String>,
    /// The size of an ext4 file system of the session's own, its second drive (`/dev/vdb`): `"8GiB"`,
    /// of which a host holds what was written. `disk` is then read-only, and one file for all
    /// sessions; the guest's init lays the one over the other. A layer that exists keeps its size.
    /// Default: none.
    pub(crate) layer: Option<SizeText>,
    /// A network device (TAP) of the host that exists; with `address`. Default: none, and the guest is
    /// reached through its vsock, at `instance.port`.
    pub(crate) tap: Option<String>,
    /// The guest's IP address behind the TAP.
    pub(crate) address: Option<String>,
    /// A folder with `memory`, `state` and `disk` or `layer` of a machine that was suspended: the first wake of
    /// a session goes on from there instead of booting.
    pub(crate) golden: Option<String>,
    /// Whether the guest's kernel makes new random numbers when it goes on elsewhere (VMGenID: Linux
    /// from 5.18). Without it, clones of one golden memory are warned of.
    pub(crate) vmgenid: bool,
    /// The time from Ctrl-Alt-Del to the plug.
    pub(crate) grace: DurationText,
}

impl Default for FirecrackerTable {
    fn default() -> Self {
        Self {
            kernel: None,
            initrd: None,
            append: None,
            disk: None,
            layer: None,
            tap: None,
            address: None,
            golden: None,
            vmgenid: false,
            grace: DurationText(Duration::from_secs(10)),
        }
    }
}

impl From<FirecrackerTable> for FirecrackerSpec {
    fn from(table: FirecrackerTable) -> Self {
        let FirecrackerTable {
            kernel,
            initrd,
            append,
            disk,
            layer,
            tap,
            address,
            golden,
            vmgenid,
            grace,
        } = table;
        let (layer, grace) = (layer.map(|size| size.0), grace.0);
        Self { kernel, initrd, append, disk, layer, tap, address, golden, vmgenid, grace }
    }
}
