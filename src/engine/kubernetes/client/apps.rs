//! The calls about workloads that exist. What changes one is bound to the version that was read:
//! who was slower is told, and reads again.

use k8s_openapi::{
    api::{
        apps::v1::ReplicaSet,
        autoscaling::v1::{Scale, ScaleSpec},
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use kube::{
    Api,
    api::{ApiResource, DynamicObject, ListParams, Patch, PatchParams, PostParams},
};

use super::{Client, Connected, Refused};
use crate::{
    engine::{
        Error,
        kubernetes::{
            template,
            workload::{Kind, Reference, Workload, marks},
        },
    },
    session::{Generation, SessionId},
};

impl Client {
    pub(in crate::engine::kubernetes) async fn workloads(
        &self,
        kind: Kind,
    ) -> Result<Api<DynamicObject>, Error> {
        self.any(&kind.resource()).await
    }

    pub(in crate::engine::kubernetes) async fn any(
        &self,
        resource: &ApiResource,
    ) -> Result<Api<DynamicObject>, Error> {
        let Connected { client, namespace } = self.connected().await?;
        Ok(Api::namespaced_with(client, &namespace, resource))
    }

    /// `None` when there is none.
    pub(in crate::engine::kubernetes) async fn workload(
        &self,
        reference: &Reference,
    ) -> Result<Option<Workload>, Error> {
        let api = self.workloads(reference.kind).await?;
        let found = self.within("get a workload", api.get_opt(&reference.name)).await?;
        Ok(found.map(|object| Workload::new(reference.kind, object)))
    }

    /// All of one edge. None, where it has no right to see any: it cannot have marked one.
    pub(in crate::engine::kubernetes) async fn marked(
        &self,
        owner: &str,
    ) -> Result<Vec<Workload>, Error> {
        let mut all = Vec::new();
        for kind in Kind::ALL {
            let api = self.workloads(kind).await?;
            let params = ListParams::default().labels(&format!("{}={owner}", template::OWNER));
            match self.pages("list workloads", &api, params).await {
                Ok(found) => {
                    all.extend(found.into_iter().map(|object| Workload::new(kind, object)));
                    let listed = &mut self.past().listed;
                    if !listed.contains(&kind) {
                        listed.push(kind);
                    }
                }
                // What it saw before it may have marked, and that may run still.
                Err(refused)
                    if refused.code() == Some(403) && !self.past().listed.contains(&kind) => {}
                Err(refused) => return Err(refused.into()),
            }
        }
        Ok(all)
    }

    /// Says on it whose session it is, or, by `None`, that it is nobody's. `None` when somebody
    /// was faster.
    pub(in crate::engine::kubernetes) async fn mark(
        &self,
        workload: &Workload,
        owner: &str,
        session: Option<(&SessionId, Generation)>,
    ) -> Result<Option<Workload>, Error> {
        let Reference { kind, name } = &workload.reference;
        let mut metadata = marks(owner, session);
        metadata["resourceVersion"] = workload.version.as_str().into();
        metadata["uid"] = workload.uid.as_str().into();
        let patch = Patch::Merge(serde_json::json!({"metadata": metadata}));
        let (api, params) = (self.workloads(*kind).await?, PatchParams::default());
        let marked = self.within("mark a workload", api.patch(name, &params, &patch)).await;
        Ok(won(marked)?.map(|object| Workload::new(*kind, object)))
    }

    /// Whether it took: `false` when somebody was faster.
    pub(in crate::engine::kubernetes) async fn scale(
        &self,
        workload: &Workload,
        replicas: i32,
    ) -> Result<bool, Error> {
        let Reference { kind, name } = &workload.reference;
        let api = self.workloads(*kind).await?;
        let scale = Scale {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(self.connected().await?.namespace),
                uid: Some(workload.uid.clone()),
                resource_version: Some(workload.version.clone()),
                ..ObjectMeta::default()
            },
            spec: Some(ScaleSpec { replicas: Some(replicas) }),
            status: None,
        };
        let params = PostParams::default();
        let scaled = self.within("scale", api.replace_scale(name, &params, &scale)).await;
        Ok(won(scaled)?.is_some())
    }

    /// Whose a ReplicaSet is; `None` when it is gone.
    pub(in crate::engine::kubernetes) async fn owner_of_set(
        &self,
        set: &OwnerReference,
    ) -> Result<Option<String>, Error> {
        let ask = |sets: Api<ReplicaSet>| async move { sets.get_opt(&set.name).await };
        let found = self.call("get a replica set", ask).await?;
        let found = found.filter(|found| found.metadata.uid.as_deref() == Some(&*set.uid));
        Ok(found.map(|found| {
            let owners = found.metadata.owner_references.unwrap_or_default();
            let owner = owners.into_iter().find(|owner| owner.controller == Some(true));
            owner.map(|owner| owner.uid).unwrap_or_default()
        }))
    }

    pub(in crate::engine::kubernetes) async fn namespace(&self) -> Result<String, Error> {
        Ok(self.connected().await?.namespace)
    }
}

/// A conflict, or that it is gone, is no error: who reads again sees which.
fn won<T>(answer: Result<T, Refused>) -> Result<Option<T>, Error> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(refused) if matches!(refused.code(), Some(404 | 409)) => Ok(None),
        Err(refused) => Err(refused.into()),
    }
}
