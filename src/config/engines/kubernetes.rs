//! `[engines.NAME.kubernetes]`.

use std::{path::PathBuf, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::route::text::DurationText;

/// `[engines.NAME.kubernetes]`, for `kind = "kubernetes"`.
#[derive(Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct KubernetesTable {
    /// The kubeconfig that says where the API server is and who we are. Default: `KUBECONFIG`, else
    /// `~/.kube/config`, else the service account of the Pod that the edge runs in.
    pub(crate) kubeconfig: Option<PathBuf>,
    /// The context of that file. Default: its current one.
    pub(crate) context: Option<String>,
    /// The namespace that the Pods are in. Default: the context's, else the edge's own.
    pub(crate) namespace: Option<String>,
    /// The most time until a Pod has a node, its image and an address. Default: `"2m"`.
    pub(crate) start_timeout: Option<DurationText>,
}

/// `[engines.NAME]` with `kind = "kubernetes"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubernetesConfig {
    /// The kubeconfig; found as `kubectl` finds it, or in-cluster, when not given.
    pub kubeconfig: Option<PathBuf>,
    /// The context of that file.
    pub context: Option<String>,
    /// The namespace of the Pods.
    pub namespace: Option<String>,
    /// The label value that says whose the Pods are.
    pub owner: String,
    /// The most time for one call to the API server.
    pub call_timeout: Duration,
    /// The most time until a Pod has an address.
    pub start_timeout: Duration,
}
