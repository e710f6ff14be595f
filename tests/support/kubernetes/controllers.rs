//! What the controllers of Deployments, ReplicaSets and StatefulSets do, as far as an edge can see
//! it: as many Pods as are wanted, each owned by what it is of, and a status that says so.

use futures::{FutureExt as _, StreamExt as _, stream};
use k8s_openapi::{
    api::{
        apps::v1::{Deployment, ReplicaSet, StatefulSet},
        core::v1::Pod,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    runtime::{WatchStreamExt as _, watcher, watcher::watcher as watch},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Every ReplicaSet's; a real one is a digest of the template.
const HASH: &str = "5d4f8c7b9";

/// On a Deployment: its controller sleeps.
pub(crate) const FROZEN: &str = "test/frozen";

/// Serves a cluster until it is dropped.
pub(crate) async fn run(client: Client) {
    let deployments = changes::<Deployment>(&client);
    let sets = changes::<StatefulSet>(&client);
    let mut changes = stream::select_all([deployments, sets, changes::<Pod>(&client)]);
    while changes.next().await.is_some() {
        // One look is for all that has changed.
        while changes.next().now_or_never().flatten().is_some() {}
        // What the server cannot take now, or another was faster with, comes with a later change.
        drop(look(&client).await);
    }
}

fn changes<K>(client: &Client) -> stream::BoxStream<'static, ()>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    watch(Api::<K>::all(client.clone()), watcher::Config::default())
        .default_backoff()
        .map(drop)
        .boxed()
}

async fn look(client: &Client) -> kube::Result<()> {
    let all = ListParams::default();
    let pods = Api::<Pod>::all(client.clone()).list(&all).await?.items;
    for deployment in Api::<Deployment>::all(client.clone()).list(&all).await? {
        if deployment.annotations().contains_key(FROZEN) {
            continue;
        }
        drop(of_deployment(client, &pods, deployment).await);
    }
    for set in Api::<StatefulSet>::all(client.clone()).list(&all).await? {
        let spec = set.spec.clone().unwrap();
        let owner = ("StatefulSet", &set.metadata);
        let template = serde_json::to_value(&spec.template).unwrap();
        let wanted = spec.replicas.unwrap();
        let status = scale(client, &pods, owner, template, wanted).await;
        drop(say(client, &set, status).await);
    }
    Ok(())
}

async fn of_deployment(client: &Client, pods: &[Pod], deployment: Deployment) -> kube::Result<()> {
    let spec = deployment.spec.clone().unwrap();
    let (namespace, name) = (deployment.namespace().unwrap(), deployment.name_any());
    let sets = Api::<ReplicaSet>::namespaced(client.clone(), &namespace);
    let set_name = format!("{name}-{HASH}");
    let set = match sets.get_opt(&set_name).await? {
        Some(set) => set,
        None => {
            let (labels, template) = (&spec.selector.match_labels, &spec.template);
            let set = json!({
                "metadata": {"name": set_name, "labels": labels,
                    "ownerReferences": [owner("Deployment", &deployment.metadata)]},
                "spec": {"selector": spec.selector, "template": template, "replicas": 0},
            });
            sets.create(&PostParams::default(), &serde_json::from_value(set).unwrap()).await?
        }
    };
    let mut template = serde_json::to_value(&spec.template).unwrap();
    template["metadata"]["labels"]["pod-template-hash"] = HASH.into();
    let wanted = spec.replicas.unwrap();
    let status = scale(client, pods, ("ReplicaSet", &set.metadata), template, wanted).await;
    say(client, &deployment, status).await
}

/// Makes and deletes Pods; what there is. None for `image = "refused"`.
async fn scale(
    client: &Client,
    pods: &[Pod],
    (kind, of): (&str, &ObjectMeta),
    template: Value,
    wanted: i32,
) -> Value {
    let its = |pod: &&Pod| pod.owner_references().iter().any(|o| Some(&o.uid) == of.uid.as_ref());
    let phase = |pod: &Pod| pod.status.clone().unwrap_or_default().phase.unwrap_or_default();
    if wanted > 0 && template["spec"]["containers"][0]["image"] == "refused" {
        let condition = json!({"type": "ReplicaFailure", "status": "True",
            "reason": "FailedCreate", "message": "exceeded quota: pods=1"});
        return json!({"replicas": 0, "conditions": [condition]});
    }
    let is_alive = |pod: &&Pod| {
        pod.metadata.deletion_timestamp.is_none()
            && !["Succeeded", "Failed"].contains(&phase(pod).as_str())
    };
    let alive: Vec<_> = pods.iter().filter(its).filter(is_alive).collect();
    let wanted = usize::try_from(wanted).unwrap();
    let api = Api::<Pod>::namespaced(client.clone(), of.namespace.as_deref().unwrap());
    for _ in alive.len()..wanted {
        let unique = uuid::Uuid::new_v4().simple().to_string();
        let mut pod = template.clone();
        let name = of.name.as_ref().unwrap();
        pod["metadata"]["name"] = match kind {
            "StatefulSet" => format!("{name}-0").into(),
            _ => format!("{name}-{}", &unique[..5]).into(),
        };
        pod["metadata"]["ownerReferences"] = json!([owner(kind, of)]);
        drop(api.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await);
    }
    for pod in alive.iter().skip(wanted) {
        drop(api.delete(&pod.name_any(), &DeleteParams::default()).await);
    }
    let ready = alive.iter().take(wanted).filter(|pod| phase(pod) == "Running").count();
    json!({"replicas": alive.len().min(wanted), "readyReplicas": ready})
}

fn owner(kind: &str, of: &ObjectMeta) -> Value {
    json!({"apiVersion": "apps/v1", "kind": kind, "name": of.name, "uid": of.uid,
        "controller": true})
}

async fn say<K>(client: &Client, object: &K, mut status: Value) -> kube::Result<()>
where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + serde::Serialize
        + DeserializeOwned
        + std::fmt::Debug,
{
    let was = serde_json::to_value(object).unwrap()["status"].clone();
    status["observedGeneration"] = object.meta().generation.into();
    let is_new = |(key, value): (&String, &Value)| {
        was[key] != *value && !(was[key].is_null() && *value == 0)
    };
    if !status.as_object().unwrap().iter().any(is_new) {
        return Ok(());
    }
    let api = Api::<K>::namespaced(client.clone(), &object.namespace().unwrap());
    let patch = Patch::Merge(json!({"status": status}));
    api.patch_status(&object.name_any(), &PatchParams::default(), &patch).await.map(drop)
}
