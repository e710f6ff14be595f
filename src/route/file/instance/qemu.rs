//! `[instance.qemu]`.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{route::text::DurationText, session::QemuSpec};

/// `[instance.qemu]`. Paths begin in the folder of `dormouse.toml`.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct QemuTable {
    /// The kernel to boot. Default: what the disk's own boot loader boots.
    pub(crate) kernel: Option<String>,
    /// The kernel's initial file system.
    pub(crate) initrd: Option<String>,
    /// The kernel's command line.
    pub(crate) append: Option<String>,
    /// The base image. Each session gets a disk of its own over it, which holds what differs; the
    /// image itself must never change again.
    pub(crate) disk: Option<String>,
    /// What kind of image that is.
    pub(crate) disk_format: DiskFormatWord,
    /// Whether the guest reaches the network, and with it this machine's loopback as 10.0.2.2.
    pub(crate) outbound: bool,
    /// A network device (TAP) of the host that exists; with `address`. Default: a network of QEMU's
    /// own, with one port of this machine's loopback forwarded.
    pub(crate) tap: Option<String>,
    /// The guest's IP address behind the TAP.
    pub(crate) address: Option<String>,
    /// The time from the power button to the plug.
    pub(crate) grace: DurationText,
}

/// `qemu.disk_format`.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum DiskFormatWord {
    Qcow2,
    Raw,
}

impl Default for QemuTable {
    fn default() -> Self {
        Self {
            kernel: None,
            initrd: None,
            append: None,
            disk: None,
            disk_format: DiskFormatWord::Qcow2,
            outbound: false,
            tap: None,
            address: None,
            grace: DurationText(Duration::from_secs(10)),
        }
    }
}

impl From<QemuTable> for QemuSpec {
    fn from(table: QemuTable) -> Self {
        let disk_format = match table.disk_format {
            DiskFormatWord::Qcow2 => "qcow2",
            DiskFormatWord::Raw => "raw",
        };
        Self {
            kernel: table.kernel,
            initrd: table.initrd,
            append: table.append,
            disk: table.disk,
            disk_format: disk_format.to_owned(),
            outbound: table.outbound,
            tap: table.tap,
            address: table.address,
            grace: table.grace.0,
        }
    }
}
