//! `[engines.NAME.qemu]`.

use std::{path::PathBuf, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `[engines.NAME.qemu]`.
#[derive(Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct QemuTable {
    /// The program that runs a machine. Default: `qemu-system-x86_64`, or that of this processor.
    pub(crate) program: Option<PathBuf>,
    /// The program that makes disks. Default: `qemu-img`.
    pub(crate) image_program: Option<PathBuf>,
    /// Whether machines run by KVM; without it QEMU translates every instruction. Default: where
    /// the processor can do it and a first machine truly runs.
    pub(crate) kvm: Option<bool>,
}

/// `[engines.NAME]` with `kind = "qemu"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QemuConfig {
    /// Runs a machine.
    pub program: PathBuf,
    /// Makes disks.
    pub image_program: PathBuf,
    /// Whether by KVM; as it can when not given.
    pub kvm: Option<bool>,
    /// The most time for a start, a resume or a suspend.
    pub call_timeout: Duration,
}
