//! What the QEMU engine alone knows of an instance.

use std::time::Duration;

/// `[instance.qemu]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct QemuSpec {
    /// The kernel to boot; the disk's own boot loader when not given.
    pub kernel: Option<String>,
    /// Its initial file system.
    pub initrd: Option<String>,
    /// Its command line.
    pub append: Option<String>,
    /// The base image that each session gets a disk of its own over.
    pub disk: Option<String>,
    /// `qcow2` or `raw`.
    pub disk_format: String,
    /// Whether the guest reaches the network, this host's loopback included.
    pub outbound: bool,
    /// The network device of the host, instead of a network of QEMU's own.
    pub tap: Option<String>,
    /// The guest's address behind it.
    pub address: Option<String>,
    /// From the power button to the plug.
    pub grace: Duration,
}

impl Default for QemuSpec {
    fn default() -> Self {
        Self {
            kernel: None,
            initrd: None,
            append: None,
            disk: None,
            disk_format: "qcow2".to_owned(),
            outbound: false,
            tap: None,
            address: None,
            grace: Duration::from_secs(10),
        }
    }
}
