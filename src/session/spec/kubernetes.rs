//! What the Kubernetes engine alone knows of an instance.

use std::{collections::BTreeMap, time::Duration};

/// `[instance.kubernetes]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KubernetesSpec {
    /// `deployment/NAME` or `statefulset/NAME` that exists: scaled between 0 and 1, and nothing is
    /// created or deleted.
    pub scale: Option<String>,
    /// The service account that the Pod runs as; it never gets that account's token.
    pub service_account: Option<String>,
    /// `gvisor`, `kata` … as the cluster's RuntimeClasses are named.
    pub runtime_class: Option<String>,
    /// Secrets that open private registries.
    pub pull_secrets: Vec<String>,
    /// Labels that a node must have.
    pub node_selector: BTreeMap<String, String>,
    /// `UID` or `UID:GID`.
    pub user: Option<String>,
    /// Whether the root file system is read-only.
    pub read_only: bool,
    /// Folders in memory, writable although the root is read-only.
    pub tmpfs: Vec<String>,
    /// Capabilities given back after all were dropped.
    pub cap_add: Vec<String>,
    /// The class of a volume that is created; the cluster's default when not given.
    pub storage_class: Option<String>,
    /// Bytes of a volume that is created.
    pub volume_size: u64,
    /// From TERM to KILL.
    pub grace: Duration,
}

impl Default for KubernetesSpec {
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
            volume_size: 10 << 30,
            grace: Duration::from_secs(10),
        }
    }
}
