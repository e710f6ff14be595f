//! What the Firecracker engine alone knows of an instance.

use std::time::Duration;

/// `[instance.firecracker]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FirecrackerSpec {
    /// The kernel to boot, uncompressed.
    pub kernel: Option<String>,
    /// Its initial file system.
    pub initrd: Option<String>,
    /// Its command line.
    pub append: Option<String>,
    /// The raw image that each session gets a copy of, or with a layer the root that all read.
    pub disk: Option<String>,
    /// The size of each session's own layer over that root, in bytes.
    pub layer: Option<u64>,
    /// The network device of the host; without one the guest is reached by vsock alone.
    pub tap: Option<String>,
    /// The guest's address behind it.
    pub address: Option<String>,
    /// A folder with the memory, the state and the disk or layer that a first wake goes on from.
    pub golden: Option<String>,
    /// Whether the guest's kernel heeds VMGenID.
    pub vmgenid: bool,
    /// From the keys to the plug.
    pub grace: Duration,
}

impl Default for FirecrackerSpec {
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
            grace: Duration::from_secs(10),
        }
    }
}
