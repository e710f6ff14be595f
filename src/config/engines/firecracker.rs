//! `[engines.NAME.firecracker]`.

use std::{path::PathBuf, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `[engines.NAME.firecracker]`.
#[derive(Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct FirecrackerTable {
    /// The program that runs a machine. Default: `firecracker`.
    pub(crate) program: Option<PathBuf>,
    /// How each machine is locked in. Default: not at all, as the edge's user.
    pub(crate) jailer: Option<JailerTable>,
    /// Whether a resumed guest's clock is set on by the time that it slept: on x86-64, a host's
    /// kernel from 5.16, and a Firecracker that knows it; others refuse to resume then.
    pub(crate) clock_realtime: bool,
}

/// `jailer`: a root directory, a user and a cgroup (v2) for each machine. The edge needs root for it.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct JailerTable {
    /// The program. Default: `jailer`.
    pub(crate) program: Option<PathBuf>,
    /// The user that machines run as.
    pub(crate) uid: u32,
    /// The group that machines run as.
    pub(crate) gid: u32,
}

/// `[engines.NAME]` with `kind = "firecracker"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirecrackerConfig {
    /// Runs a machine.
    pub program: PathBuf,
    /// Locks it in.
    pub jail: Option<JailConfig>,
    /// Whether a resumed guest's clock is set on.
    pub clock_realtime: bool,
    /// The most time for a start, a resume or a suspend.
    pub call_timeout: Duration,
}

/// `jailer`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JailConfig {
    /// The jailer.
    pub program: PathBuf,
    /// The user that machines run as.
    pub uid: u32,
    /// The group that machines run as.
    pub gid: u32,
}
