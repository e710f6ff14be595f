//! `[engines.NAME.qemu]` becomes a [`QemuConfig`].

use std::{env::consts::ARCH, path::PathBuf};

use super::{Check, EngineTable};
use crate::config::{QemuConfig, engines::QemuTable};

impl Check<'_> {
    pub(super) fn qemu(&mut self, name: &str, mut table: EngineTable) -> QemuConfig {
        let call_timeout = self.call_timeout(name, &table);
        let QemuTable { program, image_program, kvm } = table.qemu.take().unwrap_or_default();
        let program = program.unwrap_or_else(|| format!("qemu-system-{ARCH}").into());
        let image_program = image_program.unwrap_or_else(|| PathBuf::from("qemu-img"));
        QemuConfig { program, image_program, kvm, call_timeout }
    }
}
