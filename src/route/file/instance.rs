//! `[instance]`: what an instance is made from, and what one kind of engine alone knows of it.

mod firecracker;
mod fly;
mod kubernetes;
mod qemu;

use std::{borrow::Cow, collections::BTreeMap, fmt, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{Error, Visitor},
};

pub(crate) use {
    firecracker::FirecrackerTable, fly::FlyTable, kubernetes::KubernetesTable, qemu::QemuTable,
};

use crate::route::text::{DurationText, Secret, SizeText};

/// `[instance]`: common to every kind of engine that has these.
#[derive(Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct InstanceTable {
    /// The image to create the instance from.
    pub(crate) image: Option<String>,
    /// Program and arguments; no shell is involved. The engine fills in `{address}` (where to
    /// listen), `{host}` and `{port}`; these three cannot be plain text here, not even behind
    /// `{{`. Default: the image's own command; the process engine needs one.
    pub(crate) command: Vec<String>,
    /// Environment variables. The engine fills in `{address}`, `{host}` and `{port}` here too.
    pub(crate) env: BTreeMap<String, Secret>,
    /// The port that the instance listens on, where it has an address of its own (Docker).
    /// Default: 8080.
    #[schemars(range(min = 1))]
    pub(crate) port: Option<u16>,
    /// The most memory: `"512MiB"`, `"2GiB"`. Default: no limit.
    pub(crate) memory: Option<SizeText>,
    /// The most CPU time, in cores: `1.5`. Default: no limit.
    pub(crate) cpus: Option<f64>,
    /// The most processes and threads. Default: no limit.
    #[schemars(range(min = 1))]
    pub(crate) pids: Option<u32>,
    /// What to mount, each `SOURCE:TARGET` or `SOURCE:TARGET:ro`; a source is an absolute path on
    /// the engine's machine or a volume's name.
    pub(crate) volumes: Vec<String>,
    /// What must stand between an instance and its host: `"container"`, namespaces of the host's
    /// kernel; `"kernel"`, a kernel in between (gVisor); `"vm"`, a virtual machine. A route whose
    /// engine gives less is refused. Default: whatever the engine gives.
    #[schemars(with = "IsolationWord")]
    pub(crate) isolation: Option<IsolationWord>,
    /// The most instances of this route that exist at once, asleep ones included; a session that
    /// has none yet gets 503 then. One ends at the last rung of its ladder, and what must outlive
    /// that belongs in a volume of the session's own. Default: no limit.
    #[schemars(range(min = 1))]
    pub(crate) max: Option<u32>,
    /// What the operator's own program is told besides (the command engine): names and texts.
    pub(crate) parameters: BTreeMap<String, Secret>,
    /// What the process engine alone knows. Checked, and not used by other engines.
    pub(crate) process: ProcessTable,
    /// What the Docker engine alone knows. Checked, and not used by other engines.
    pub(crate) docker: DockerTable,
    /// What the Kubernetes engine alone knows. Checked, and not used by other engines.
    pub(crate) kubernetes: KubernetesTable,
    /// What the Fly engine alone knows. Checked, and not used by other engines.
    pub(crate) fly: FlyTable,
    /// What the QEMU engine alone knows. Checked, and not used by other engines.
    pub(crate) qemu: QemuTable,
    /// What the Firecracker engine alone knows. Checked, and not used by other engines.
    pub(crate) firecracker: FirecrackerTable,
}

/// Weakest first.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub(crate) enum IsolationWord {
    Container,
    Kernel,
    Vm,
}

/// `[instance.process]`.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ProcessTable {
    /// What `{address}` is: `"tcp"`, a free port of 127.0.0.1, or `"unix"`, a socket in the state
    /// folder.
    pub(crate) listen: ListenWord,
    /// The working directory. Default: the folder of `dormouse.toml`.
    pub(crate) directory: Option<String>,
    /// The time from TERM to KILL.
    pub(crate) grace: DurationText,
    /// The most output that is kept, per session.
    pub(crate) log_max: SizeText,
}

/// What a process is told to listen on.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ListenWord {
    Tcp,
    Unix,
}

/// `[instance.docker]`.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct DockerTable {
    /// The name of a container that exists. Dormouse then creates and removes nothing.
    pub(crate) container: Option<String>,
    /// `KEY=VALUE`, a label of a container that exists, instead of its name.
    pub(crate) label: Option<String>,
    /// The network to join, and to reach the container on. Default: the daemon's.
    pub(crate) network: Option<String>,
    /// The OCI runtime as the daemon knows it: `runc`, `runsc` (gVisor), `kata` … Default: the
    /// daemon's.
    pub(crate) runtime: Option<String>,
    /// Publish the port and dial that instead of the container's own address: `true` for
    /// 127.0.0.1, or the IP address of the daemon's machine to publish on.
    pub(crate) publish: Publish,
    /// The user inside: a name, or `UID` or `UID:GID`. Default: the image's.
    pub(crate) user: Option<String>,
    /// Whether the root file system is read-only.
    pub(crate) read_only: bool,
    /// Folders in memory, writable although the root is read-only: `"/tmp"`, `"/run:size=16m"`.
    pub(crate) tmpfs: Vec<String>,
    /// Capabilities to give back, after all were dropped: `"NET_BIND_SERVICE"`.
    pub(crate) cap_add: Vec<String>,
    /// The time from TERM to KILL.
    pub(crate) grace: DurationText,
}

/// `false`, `true`, or an address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub(crate) enum Publish {
    Local(bool),
    On(String),
}

impl Default for Publish {
    fn default() -> Self {
        Self::Local(false)
    }
}

impl Default for ProcessTable {
    fn default() -> Self {
        let grace = DurationText(Duration::from_secs(10));
        Self { listen: ListenWord::Tcp, directory: None, grace, log_max: SizeText(1024 * 1024) }
    }
}

impl Default for DockerTable {
    fn default() -> Self {
        Self {
            container: None,
            label: None,
            network: None,
            runtime: None,
            publish: Publish::default(),
            user: None,
            read_only: true,
            tmpfs: Vec::new(),
            cap_add: Vec::new(),
            grace: DurationText(Duration::from_secs(10)),
        }
    }
}

// By hand, because serde's `untagged` forgets where in the file it is.
impl<'de> Deserialize<'de> for Publish {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Reader;
        impl Visitor<'_> for Reader {
            type Value = Publish;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("true, false or an IP address such as \"10.0.0.5\"")
            }
            fn visit_bool<E: Error>(self, local: bool) -> Result<Publish, E> {
                Ok(Publish::Local(local))
            }
            fn visit_str<E: Error>(self, address: &str) -> Result<Publish, E> {
                Ok(Publish::On(address.to_owned()))
            }
        }
        from.deserialize_any(Reader)
    }
}

impl JsonSchema for Publish {
    fn schema_name() -> Cow<'static, str> {
        "Publish".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["boolean", "string"] })
    }
}
