//! `[instance.kubernetes]`.

use std::{collections::BTreeMap, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    route::text::{DurationText, SizeText},
    session::KubernetesSpec,
};

/// `[instance.kubernetes]`.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct KubernetesTable {
    /// `deployment/NAME` or `statefulset/NAME`: one that exists is scaled to 1 at a wake and to 0
    /// at a sleep. Dormouse then creates and deletes nothing, and of `[instance]` only `port`
    /// counts.
    pub(crate) scale: Option<String>,
    /// The service account that the Pod runs as; it never gets that account's token. Default: the
    /// namespace's.
    pub(crate) service_account: Option<String>,
    /// The RuntimeClass: `gvisor`, `kata` … as the cluster names them. Default: the cluster's.
    pub(crate) runtime_class: Option<String>,
    /// Names of Secrets that open private registries.
    pub(crate) pull_secrets: Vec<String>,
    /// Labels that a node must have.
    pub(crate) node_selector: BTreeMap<String, String>,
    /// The user inside: `UID` or `UID:GID`. Default: the image's.
    pub(crate) user: Option<String>,
    /// Whether the root file system is read-only.
    pub(crate) read_only: bool,
    /// Folders in memory, writable although the root is read-only: `"/run"`, `"/run:size=16m"`.
    /// `/tmp` is one where the root is read-only.
    pub(crate) tmpfs: Vec<String>,
    /// Capabilities to give back, after all were dropped: `"NET_BIND_SERVICE"`.
    pub(crate) cap_add: Vec<String>,
    /// The StorageClass of a volume that does not exist yet. Default: the cluster's.
    pub(crate) storage_class: Option<String>,
    /// The size of a volume that does not exist yet.
    pub(crate) volume_size: SizeText,
    /// The time from TERM to KILL.
    pub(crate) grace: DurationText,
}

impl Default for KubernetesTable {
    fn default() -> Self {
        Self {
            scale: None,
            service_account: None,
            runtime_class: None,
            pull_secrets: Vec::new(),
            node_selector: BTreeMap::new(),
            user: None,
            read_only: true,
            tmpfs: Vec::new(),
            cap_add: Vec::new(),
            storage_class: None,
            volume_size: SizeText(10 << 30),
            grace: DurationText(Duration::from_secs(10)),
        }
    }
}

impl From<KubernetesTable> for KubernetesSpec {
    fn from(table: KubernetesTable) -> Self {
        Self {
            scale: table.scale,
            service_account: table.service_account,
            runtime_class: table.runtime_class,
            pull_secrets: table.pull_secrets,
            node_selector: table.node_selector,
            user: table.user,
            read_only: table.read_only,
            tmpfs: table.tmpfs,
            cap_add: table.cap_add,
            storage_class: table.storage_class,
            volume_size: table.volume_size.0,
            grace: table.grace.0,
        }
    }
}
