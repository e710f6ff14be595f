//! `[instance.kubernetes]` becomes a [`KubernetesSpec`].

use super::Check;
use crate::{
    route::{EngineKind, file::instance::KubernetesTable},
    session::KubernetesSpec,
};

impl Check<'_> {
    pub(super) fn kubernetes(
        &mut self,
        table: KubernetesTable,
        volumes: &[String],
    ) -> KubernetesSpec {
        let path = |key| ["instance", "kubernetes", key];
        if table.user.as_ref().is_some_and(|user| !user.contains('{') && !is_user(user)) {
            self.found.value(&path("user"), "no user of a Pod, expected `UID` or `UID:GID`");
        }
        let kinds = ["deployment/", "statefulset/"];
        if let Some(scale) = table.scale.as_ref().filter(|scale| {
            !scale.starts_with('{') && !kinds.iter().any(|kind| scale.starts_with(kind))
        }) {
            let wrong = format!("`{scale}` is nothing that is scaled");
            self.found.value(&path("scale"), wrong).hint =
                Some("expected `deployment/NAME` or `statefulset/NAME`".into());
        }
        for (index, folder) in
            table.tmpfs.iter().enumerate().filter(|(_, tmpfs)| !tmpfs.starts_with('/'))
        {
            let path = ["instance", "kubernetes", "tmpfs", &index.to_string()];
            self.found.value(&path, format!("`{folder}` is no absolute path"));
        }
        if table.volume_size.0 == 0 {
            self.found.value(&path("volume_size"), "`volume_size` must be more than nothing");
        }
        if self.kind == Some(EngineKind::Kubernetes) {
            for (index, _) in volumes.iter().enumerate().filter(|(_, v)| v.starts_with('/')) {
                let path = ["instance", "volumes", &index.to_string()];
                self.found.value(&path, "a Pod gets no folder of its node").hint =
                    Some("name a volume: `NAME:TARGET` is a PersistentVolumeClaim".into());
            }
        }
        table.into()
    }
}

/// `UID` or `UID:GID`: a Pod knows no names.
fn is_user(user: &str) -> bool {
    let is_id = |id: &str| id.parse::<u32>().is_ok();
    user.split_once(':').map_or(is_id(user), |(user, group)| is_id(user) && is_id(group))
}
