//! `[engines.NAME.kubernetes]` becomes a [`KubernetesConfig`].

use std::time::Duration;

use super::{Check, EngineTable};
use crate::config::KubernetesConfig;

const START_TIMEOUT: Duration = Duration::from_secs(120);
/// The fleet gives up on an engine's call after 5 minutes.
const START_TIMEOUT_MAX: Duration = Duration::from_secs(280);

impl Check<'_> {
    pub(super) fn kubernetes(&mut self, name: &str, mut table: EngineTable) -> KubernetesConfig {
        let owner = self.owner(name, &table);
        if !owner.starts_with(|c: char| c.is_ascii_alphanumeric())
            || !owner.ends_with(|c: char| c.is_ascii_alphanumeric())
        {
            let path = ["engines", name, "owner"];
            self.found.value(&path, "a label's value begins and ends with a letter or digit");
        }
        let call_timeout = self.call_timeout(name, &table);
        let table = table.kubernetes.take().unwrap_or_default();
        let start_timeout = table.start_timeout.map_or(START_TIMEOUT, |timeout| timeout.0);
        if start_timeout.is_zero() || start_timeout > START_TIMEOUT_MAX {
            let path = ["engines", name, "kubernetes", "start_timeout"];
            self.found.value(&path, "`start_timeout` is more than nothing and at most \"280s\"");
        }
        KubernetesConfig {
            kubeconfig: table.kubeconfig.map(|path| self.base.join(path)),
            context: table.context,
            namespace: table.namespace,
            owner,
            call_timeout,
            start_timeout,
        }
    }
}
