//! `[engines.NAME.firecracker]` becomes a [`FirecrackerConfig`].

use std::path::PathBuf;

use super::{Check, EngineTable};
use crate::config::{
    FirecrackerConfig, JailConfig,
    engines::{FirecrackerTable, JailerTable},
};

impl Check<'_> {
    pub(super) fn firecracker(&mut self, name: &str, mut table: EngineTable) -> FirecrackerConfig {
        let call_timeout = self.call_timeout(name, &table);
        let table = table.firecracker.take().unwrap_or_default();
        let FirecrackerTable { program, jailer, clock_realtime } = table;
        // The jailer wants an absolute path, and so do messages.
        let program = program.unwrap_or_else(|| PathBuf::from("firecracker"));
        let jail = jailer.map(|JailerTable { program: jailer, uid, gid }| {
            if uid == 0 || gid == 0 {
                let wrong = "a jail of root is none: give it a user and a group of its own";
                self.found.value(&["engines", name, "firecracker", "jailer"], wrong);
            }
            if !program.is_absolute() {
                let wrong =
                    "in a jail, `program` is an absolute path: \"/usr/local/bin/firecracker\"";
                self.found.value(&["engines", name, "firecracker", "program"], wrong);
            }
            JailConfig { program: jailer.unwrap_or_else(|| PathBuf::from("jailer")), uid, gid }
        });
        FirecrackerConfig { program, jail, clock_realtime, call_timeout }
    }
}
