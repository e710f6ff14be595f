//! One test's engine in a namespace of its own, and what may be asked of both.

use std::time::{Duration, Instant};

use dormouse::{
    engine::{
        Engine as _, Error, Started,
        kubernetes::{Config, Kubernetes},
    },
    session::{Depth, Generation, KubernetesSpec, SessionId, Spec},
};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::{
    Api,
    api::{ApiResource, DeleteParams, DynamicObject, PostParams},
    core::GroupVersionKind,
};
use rustix::process::{Pid, Signal, kill_process_group};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::cluster::{self, Cluster, PATIENCE};

pub(crate) const G1: Generation = Generation(1);
pub(crate) const G2: Generation = Generation(2);

/// One test's engine. Its user is bound to the Role of `deploy/kubernetes`, and to nothing else.
#[derive(Debug)]
pub(crate) struct Bench<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) engine: Kubernetes,
    pub(crate) namespace: String,
}

impl Bench<'static> {
    pub(crate) async fn new(namespace: &str) -> Self {
        let cluster = tokio::task::spawn_blocking(cluster::shared).await.unwrap();
        Self::on(cluster, namespace).await
    }
}

impl<'a> Bench<'a> {
    pub(crate) async fn on(cluster: &'a Cluster, namespace: &str) -> Self {
        let admin = cluster.client("admin").await;
        let named: Namespace =
            serde_json::from_value(json!({"metadata": {"name": namespace}})).unwrap();
        Api::all(admin.clone()).create(&PostParams::default(), &named).await.unwrap();
        grant_all(&admin, namespace, include_str!("../../deploy/kubernetes/base/rbac.yaml")).await;
        let engine = engine(cluster, namespace, "edge");
        Self { cluster, engine, namespace: namespace.to_owned() }
    }

    /// Its user has the Role of `deploy/kubernetes/scale`, too.
    pub(crate) async fn with_scale(self) -> Self {
        let admin = self.cluster.client("admin").await;
        let rbac = include_str!("../../deploy/kubernetes/scale/rbac.yaml");
        grant_all(&admin, &self.namespace, rbac).await;
        self
    }

    /// Another engine of the same edge: what a restart makes.
    pub(crate) fn engine(&self) -> Kubernetes {
        engine(self.cluster, &self.namespace, "edge")
    }

    pub(crate) async fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.cluster.client("admin").await, &self.namespace)
    }

    /// The Pod of a life.
    pub(crate) async fn pod(&self, started: &Started) -> Pod {
        let pods = self.pods().await.list(&Default::default()).await.unwrap();
        let is_it = |pod: &Pod| pod.metadata.uid.as_deref() == Some(started.life.as_str());
        pods.items.into_iter().find(is_it).expect("its Pod is there")
    }

    pub(crate) async fn delete_pod(&self, started: &Started) {
        let name = self.pod(started).await.metadata.name.unwrap();
        self.pods().await.delete(&name, &DeleteParams::default()).await.unwrap();
    }

    /// Ends the processes of a Pod behind everybody's back.
    pub(crate) async fn kill_processes(&self, started: &Started) {
        let status = self.pod(started).await.status.unwrap().container_statuses.unwrap().remove(0);
        let id = status.container_id.unwrap();
        let pid = id.strip_prefix("process://").unwrap().parse().unwrap();
        kill_process_group(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    }

    pub(crate) async fn start(&self, session: &SessionId, spec: &Spec, g: Generation) -> Started {
        self.engine.start(session, spec, g).await.unwrap()
    }

    pub(crate) async fn refused(&self, session: &SessionId, spec: &Spec) -> Error {
        self.engine.start(session, spec, G1).await.unwrap_err()
    }

    pub(crate) async fn end(&self, session: &SessionId) {
        self.engine.sleep(session, &spec(), None, Depth::Removed).await.unwrap();
    }
}

pub(crate) fn engine(cluster: &Cluster, namespace: &str, user: &str) -> Kubernetes {
    Kubernetes::new(Config {
        kubeconfig: Some(cluster.kubeconfig()),
        context: Some(user.to_owned()),
        namespace: Some(namespace.to_owned()),
        owner: "tests".to_owned(),
        call_timeout: Duration::from_secs(20),
        start_timeout: PATIENCE,
    })
}

async fn grant_all(admin: &kube::Client, namespace: &str, rbac: &str) {
    for document in rbac.split("\n---\n") {
        grant(admin, namespace, document).await;
    }
}

/// Creates what `rbac.yaml` says, for a user of the tests in the place of the service account.
async fn grant(admin: &kube::Client, namespace: &str, yaml: &str) {
    let mut object: Value = serde_saphyr::from_str(yaml).unwrap();
    if let Some(subjects) = object.get_mut("subjects") {
        *subjects =
            json!([{"kind": "User", "name": "edge", "apiGroup": "rbac.authorization.k8s.io"}]);
    }
    let (group, version) = match object["apiVersion"].as_str().unwrap().split_once('/') {
        Some((group, version)) => (group, version),
        None => ("", "v1"),
    };
    let kind = GroupVersionKind::gvk(group, version, object["kind"].as_str().unwrap());
    let api: Api<DynamicObject> =
        Api::namespaced_with(admin.clone(), namespace, &ApiResource::from_gvk(&kind));
    let object = DynamicObject::deserialize(object).unwrap();
    api.create(&PostParams::default(), &object).await.unwrap();
}

pub(crate) fn session(host: &str) -> SessionId {
    SessionId::new(host)
}

pub(crate) fn spec() -> Spec {
    Spec {
        image: Some("busybox".to_owned()),
        command: ["httpd", "-f", "-p", "{address}"].map(str::to_owned).into(),
        kubernetes: KubernetesSpec { grace: Duration::from_secs(1), ..KubernetesSpec::default() },
        ..Spec::default()
    }
}

pub(crate) fn shell(script: &str) -> Spec {
    Spec { command: ["sh", "-c", script].map(str::to_owned).into(), ..spec() }
}

pub(crate) fn image(name: &str) -> Spec {
    Spec { image: Some(name.to_owned()), ..spec() }
}

/// Looks until it is so.
pub(crate) async fn eventually(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so().await {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
