//! `[engines.NAME]`: its shape, and what it means.

mod command;
mod firecracker;
mod fly;
mod kubernetes;
mod qemu;

use std::{path::PathBuf, str::FromStr, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(crate) use command::CommandTable;
pub(crate) use firecracker::{FirecrackerTable, JailerTable};
pub(crate) use fly::FlyTable;
pub(crate) use kubernetes::KubernetesTable;
pub(crate) use qemu::QemuTable;
pub use {
    command::CommandConfig,
    firecracker::{FirecrackerConfig, JailConfig},
    fly::{FlyConfig, FlyPublic},
    kubernetes::KubernetesConfig,
    qemu::QemuConfig,
};

use crate::route::{EngineKind, text::DurationText};

/// `[engines.NAME]`. All but `kind`, `running`, `owner` and `call_timeout` is for one kind.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct EngineTable {
    /// `"process"`: a command per session on this machine. `"docker"`: containers of a Docker
    /// daemon. `"podman"`: the same of Podman's service. `"command"`: whatever a program of your own starts. `"fly"`: machines of a Fly app.
    /// `"kubernetes"`: Pods of a cluster. `"qemu"`: virtual machines on this one. `"firecracker"`:
    /// microVMs on this one.
    pub(crate) kind: KindWord,
    /// The most instances that are awake, waking or stopping at once; `limits.when_full` of a route
    /// says what becomes of one more. Default: as many as come.
    #[schemars(range(min = 1))]
    pub(crate) running: Option<u32>,
    /// For `kind = "command"`.
    pub(crate) command: Option<CommandTable>,
    /// For `kind = "fly"`.
    pub(crate) fly: Option<FlyTable>,
    /// For `kind = "kubernetes"`.
    pub(crate) kubernetes: Option<KubernetesTable>,
    /// For `kind = "qemu"`.
    pub(crate) qemu: Option<QemuTable>,
    /// For `kind = "firecracker"`.
    pub(crate) firecracker: Option<FirecrackerTable>,
    /// Where the Docker daemon is: `unix:///path`, `tcp://HOST:PORT`, `https://HOST:PORT` (TLS) or
    /// `ssh://[USER@]HOST[:PORT]`. Default: `DOCKER_HOST` (with `DOCKER_TLS_VERIFY` and
    /// `DOCKER_CERT_PATH`), else `unix:///var/run/docker.sock`. Podman: `CONTAINER_HOST`, else
    /// `unix:///run/podman/podman.sock`, or that of the user who runs the edge in `XDG_RUNTIME_DIR`; not over `ssh://`.
    pub(crate) endpoint: Option<String>,
    /// The authority that signed the daemon's certificate, a PEM file. With `tls_cert` and
    /// `tls_key`, a `tcp://` endpoint speaks TLS.
    pub(crate) tls_ca: Option<PathBuf>,
    /// Our certificate for the daemon, a PEM file.
    pub(crate) tls_cert: Option<PathBuf>,
    /// The key of `tls_cert`, a PEM file.
    pub(crate) tls_key: Option<PathBuf>,
    /// Whose the instances are: the value of a container's or Pod's label. Two edges on one daemon need two.
    /// Default: `"dormouse"`.
    pub(crate) owner: Option<String>,
    /// The most time for one call to the daemon or API server, or of your program. Default: `"60s"`.
    pub(crate) call_timeout: Option<DurationText>,
}

/// [`EngineKind`] as it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum KindWord {
    Process,
    Docker,
    Podman,
    Command,
    Fly,
    Kubernetes,
    Qemu,
    Firecracker,
}

/// What an engine's name means for one run: `NAME=KIND`, with the kind's defaults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Swap {
    pub(super) name: String,
    pub(super) kind: KindWord,
}

impl FromStr for Swap {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, kind) =
            text.split_once('=').ok_or("expected NAME=KIND, for example desk=docker")?;
        let word = serde::de::value::StrDeserializer::<serde::de::value::Error>::new(kind);
        let kind = KindWord::deserialize(word).map_err(|error| error.to_string())?;
        Ok(Self { name: name.to_owned(), kind })
    }
}

impl EngineTable {
    /// Nothing but the kind.
    pub(crate) fn of(kind: KindWord) -> Self {
        Self {
            kind,
            running: None,
            command: None,
            fly: None,
            kubernetes: None,
            qemu: None,
            firecracker: None,
            endpoint: None,
            tls_ca: None,
            tls_cert: None,
            tls_key: None,
            owner: None,
            call_timeout: None,
        }
    }
}

/// `[engines.NAME]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EngineConfig {
    /// A command per session on this machine.
    Process,
    /// Containers of a Docker daemon.
    Docker(DockerConfig),
    /// Whatever the operator's own program starts.
    Command(CommandConfig),
    /// Machines of a Fly app.
    Fly(FlyConfig),
    /// Pods of a Kubernetes cluster.
    Kubernetes(KubernetesConfig),
    /// Virtual machines on this host.
    Qemu(QemuConfig),
    /// MicroVMs on this host.
    Firecracker(FirecrackerConfig),
}

/// `[engines.NAME]` with `kind = "docker"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DockerConfig {
    /// Where the daemon is.
    pub endpoint: DockerEndpoint,
    /// The label value that says whose the containers are.
    pub owner: String,
    /// The most time for one call to the daemon.
    pub call_timeout: Duration,
}

/// Where a Docker daemon is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DockerEndpoint {
    /// A unix socket's path.
    Unix(PathBuf),
    /// `HOST:PORT`.
    Tcp {
        /// `HOST:PORT`.
        address: String,
        /// TLS with certificates on both sides, or none.
        tls: Option<DockerTls>,
    },
    /// `ssh://[USER@]HOST[:PORT]`, whole.
    Ssh(String),
}

/// PEM files for a Docker daemon behind TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DockerTls {
    /// The authority that signed the daemon's certificate.
    pub ca: PathBuf,
    /// Our certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl EngineConfig {
    /// Which kind it is.
    pub fn kind(&self) -> EngineKind {
        match self {
            Self::Process => EngineKind::Process,
            Self::Docker(_) => EngineKind::Docker,
            Self::Kubernetes(_) => EngineKind::Kubernetes,
            Self::Qemu(_) => EngineKind::Qemu,
            Self::Firecracker(_) => EngineKind::Firecracker,
            Self::Command(command) => EngineKind::Command(command.depths),
            Self::Fly(_) => EngineKind::Fly,
        }
    }
}
