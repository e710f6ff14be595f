//! What an instance is made from: a route's `[instance]` tables with every capture filled in.

mod firecracker;
mod fly;
mod kubernetes;
mod qemu;

use std::{collections::BTreeMap, fmt, time::Duration};

pub use {firecracker::FirecrackerSpec, fly::FlySpec, kubernetes::KubernetesSpec, qemu::QemuSpec};

/// One instance's template. An engine reads the common part and its own kind's part.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Spec {
    /// The image's name.
    pub image: Option<String>,
    /// Program and arguments. `{address}`, `{host}` and `{port}` are for the engine to fill in.
    pub command: Vec<String>,
    /// Environment variables.
    pub env: BTreeMap<String, String>,
    /// The port the instance listens on, for kinds where it has an address of its own.
    pub port: Option<u16>,
    /// The most memory, in bytes.
    pub memory: Option<u64>,
    /// The most CPU time, in billionths of a core.
    pub nano_cpus: Option<u64>,
    /// The most processes and threads.
    pub pids: Option<u32>,
    /// `SOURCE:TARGET[:ro]`; a source is an absolute host path or a volume's name.
    pub volumes: Vec<String>,
    /// What the operator's own program is told, for the command engine.
    pub parameters: BTreeMap<String, String>,
    /// What the process engine alone knows.
    pub process: ProcessSpec,
    /// What the Docker engine alone knows.
    pub docker: DockerSpec,
    /// What the Kubernetes engine alone knows.
    pub kubernetes: KubernetesSpec,
    /// What the Fly engine alone knows.
    pub fly: FlySpec,
    /// What the QEMU engine alone knows.
    pub qemu: QemuSpec,
    /// What the Firecracker engine alone knows.
    pub firecracker: FirecrackerSpec,
}

impl fmt::Debug for Spec {
    /// Without the environment and the command: there are secrets in them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spec").field("image", &self.image).finish_non_exhaustive()
    }
}

/// `[instance.process]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ProcessSpec {
    /// What `{address}` is.
    pub listen: Listen,
    /// The working directory; the folder of `dormouse.toml` when not given.
    pub directory: Option<String>,
    /// From TERM to KILL.
    pub grace: Duration,
    /// The most bytes of output kept for one session.
    pub log_max: u64,
}

impl Default for ProcessSpec {
    fn default() -> Self {
        Self {
            listen: Listen::Tcp,
            directory: None,
            grace: Duration::from_secs(10),
            log_max: 1024 * 1024,
        }
    }
}

/// Where a process is told to listen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Listen {
    /// A free port of 127.0.0.1.
    #[default]
    Tcp,
    /// A unix socket in the state folder.
    Unix,
}

/// `[instance.docker]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DockerSpec {
    /// The name of a container that exists; nothing is created or removed then.
    pub container: Option<String>,
    /// `KEY=VALUE` label of a container that exists.
    pub label: Option<String>,
    /// The network to join and to dial on; the daemon's default when not given.
    pub network: Option<String>,
    /// `runc`, `runsc` (gVisor), `kata` … as the daemon knows it.
    pub runtime: Option<String>,
    /// Dial a port published on this host's address instead of the container's own address.
    pub publish: Option<String>,
    /// `UID[:GID]` or a name.
    pub user: Option<String>,
    /// Whether the root file system is read-only.
    pub read_only: bool,
    /// Folders in memory, writable although the root is read-only.
    pub tmpfs: Vec<String>,
    /// Capabilities given back after all were dropped.
    pub cap_add: Vec<String>,
    /// From TERM to KILL.
    pub grace: Duration,
}

impl Default for DockerSpec {
    fn default() -> Self {
        Self {
            container: None,
            label: None,
            network: None,
            runtime: None,
            publish: None,
            user: None,
            read_only: true,
            tmpfs: Vec::new(),
            cap_add: Vec::new(),
            grace: Duration::from_secs(10),
        }
    }
}
