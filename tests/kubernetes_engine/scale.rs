//! Deployments and StatefulSets that others made, and a route names.

use std::{pin::pin, sync::Arc, time::Duration};

use dormouse::{
    engine::{
        Engine as _, EngineEvent, Error, Instance, InstanceState, Life, Started,
        kubernetes::{Config, Kubernetes},
    },
    session::{Depth, Generation, KubernetesSpec, SessionId, Spec},
};
use futures::{StreamExt as _, stream::BoxStream};
use k8s_openapi::api::{
    apps::v1::{Deployment, StatefulSet},
    core::v1::Pod,
};
use kube::{
    Api, ResourceExt as _,
    api::{ApiResource, DynamicObject, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use crate::{
    bench::{Bench, G1, G2, eventually, session},
    cluster::{PATIENCE, controllers::FROZEN},
    contract::{self, answers, refuses},
};

/// What a route that names a workload makes.
pub(crate) fn scaled(workload: &str) -> Spec {
    let kubernetes =
        KubernetesSpec { scale: Some(workload.to_owned()), ..KubernetesSpec::default() };
    Spec { kubernetes, ..Spec::default() }
}

pub(crate) fn serving() -> Value {
    json!({"name": "web", "image": "busybox", "args": ["httpd", "-f", "-p", "0.0.0.0:8080"]})
}

fn of_image(image: &str) -> Value {
    json!({"name": "web", "image": image})
}

impl Bench<'_> {
    async fn workloads(&self, workload: &str) -> Api<DynamicObject> {
        let resource = match workload.split_once('/').unwrap().0 {
            "deployment" => ApiResource::erase::<Deployment>(&()),
            _ => ApiResource::erase::<StatefulSet>(&()),
        };
        Api::namespaced_with(self.cluster.client("admin").await, &self.namespace, &resource)
    }

    /// Somebody makes a workload, asleep.
    pub(crate) async fn make(&self, workload: &str, app: &str, container: &Value) {
        let (kind, name) = workload.split_once('/').unwrap();
        let kind = if kind == "deployment" { "Deployment" } else { "StatefulSet" };
        let object = json!({
            "apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name},
            "spec": {
                "replicas": 0, "serviceName": "none", "selector": {"matchLabels": {"app": app}},
                "template": {
                    "metadata": {"labels": {"app": app}},
                    "spec": {"terminationGracePeriodSeconds": 1, "containers": [container]},
                },
            },
        });
        let object = serde_json::from_value(object).unwrap();
        match self.workloads(workload).await.create(&PostParams::default(), &object).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => panic!("{error}"),
        }
    }

    async fn look(&self, workload: &str) -> DynamicObject {
        let name = workload.split_once('/').unwrap().1;
        self.workloads(workload).await.get(name).await.unwrap()
    }

    async fn replicas(&self, workload: &str) -> u64 {
        self.look(workload).await.data["spec"]["replicas"].as_u64().unwrap()
    }

    /// `kubectl scale`.
    pub(crate) async fn scale_by_hand(&self, workload: &str, replicas: u64) {
        let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
        let name = workload.split_once('/').unwrap().1;
        let api = self.workloads(workload).await;
        api.patch_scale(name, &PatchParams::default(), &patch).await.unwrap();
    }

    async fn annotate(&self, workload: &str, key: &str, value: Option<&str>) {
        let patch = Patch::Merge(json!({"metadata": {"annotations": {key: value}}}));
        let name = workload.split_once('/').unwrap().1;
        let api = self.workloads(workload).await;
        api.patch(name, &PatchParams::default(), &patch).await.unwrap();
    }

    async fn state(&self, host: &SessionId, spec: &Spec) -> Option<Instance> {
        self.engine.inspect(host, spec).await.unwrap()
    }

    async fn runs(&self, host: &SessionId, spec: &Spec) -> bool {
        let state = self.state(host, spec).await.map(|instance| instance.state);
        matches!(state, Some(InstanceState::Running(_)))
    }

    async fn sleep(&self, host: &SessionId, spec: &Spec, life: Option<&Life>, to: Depth) {
        self.engine.sleep(host, spec, life, to).await.unwrap();
    }

    async fn pod_of(&self, started: &Started) -> Option<Pod> {
        let uid = started.life.as_str().rsplit_once('/').unwrap().1;
        let pods = self.pods().await.list(&Default::default()).await.unwrap();
        pods.items.into_iter().find(|pod| pod.uid().as_deref() == Some(uid))
    }

    /// Reads events until it is so.
    pub(crate) async fn told(
        &self,
        events: &mut BoxStream<'static, EngineEvent>,
        host: &SessionId,
        mut is_so: impl AsyncFnMut() -> bool,
    ) {
        let told = async {
            while !is_so().await {
                let event = events.next().await;
                assert_eq!(event, Some(EngineEvent::Changed(host.clone())));
            }
        };
        tokio::time::timeout(PATIENCE, told).await.expect("what happens is told");
    }

    /// A workload per session of the suite, made when it is first asked for.
    fn suite(&self, kind: &str, container: &Value) -> impl Fn(&SessionId) -> Spec {
        move |session| {
            let app = session.host().replace('.', "-");
            let workload = format!("{kind}/{app}");
            std::thread::scope(|scope| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                let make = self.make(&workload, &app, container);
                scope.spawn(move || runtime.unwrap().block_on(make)).join().unwrap();
            });
            scaled(&workload)
        }
    }
}

/// Another engine of the same edge, with no patience.
fn hasty(bench: &Bench<'_>) -> Kubernetes {
    Kubernetes::new(Config {
        kubeconfig: Some(bench.cluster.kubeconfig()),
        context: Some("edge".to_owned()),
        namespace: Some(bench.namespace.clone()),
        owner: "tests".to_owned(),
        call_timeout: Duration::from_secs(3),
        start_timeout: Duration::from_secs(2),
    })
}

async fn bench(namespace: &str) -> Bench<'static> {
    Bench::new(namespace).await.with_scale().await
}

#[tokio::test]
async fn the_contract_of_a_deployment() {
    let bench = bench("scale-contract").await;
    contract::run(Arc::new(bench.engine()), bench.suite("deployment", &serving())).await;
    assert_eq!(bench.engine.list().await.unwrap(), []);
}

#[tokio::test]
async fn the_contract_of_a_stateful_set() {
    let bench = bench("scale-set").await;
    contract::run(Arc::new(bench.engine()), bench.suite("statefulset", &serving())).await;
    assert_eq!(bench.engine.list().await.unwrap(), []);
}

#[tokio::test]
async fn the_contract_of_a_deployment_that_hangs() {
    let bench = bench("scale-hang").await;
    let script = "trap '' TERM; busybox httpd -f -p 0.0.0.0:8080 & while true; do sleep 1; done";
    let hangs = json!({"name": "web", "image": "busybox", "args": ["sh", "-c", script]});
    contract::hang(Arc::new(bench.engine()), bench.suite("deployment", &hangs)).await;
}

#[tokio::test]
async fn a_workload_is_marked_and_scaled_and_nothing_else() {
    let bench = bench("scale-marks").await;
    let (host, spec) = (session("Marks.example"), scaled("deployment/desk"));
    bench.make("deployment/desk", "desk", &serving()).await;
    let before = bench.look("deployment/desk").await;
    assert_eq!(bench.state(&host, &spec).await, None);
    assert_eq!(bench.engine.list().await.unwrap(), []);

    let started = bench.start(&host, &spec, G2).await;
    answers(&started.address).await;
    let awake = bench.look("deployment/desk").await;
    assert_eq!(awake.labels()["dormouse.owner"], "tests");
    assert_eq!(awake.annotations()["dormouse.session"], host.host());
    assert_eq!(awake.annotations()["dormouse.generation"], "2");
    assert_eq!(awake.data["spec"]["replicas"], 1);
    assert_eq!(awake.data["spec"]["template"], before.data["spec"]["template"]);
    let listed = bench.engine().list().await.unwrap();
    assert_eq!(listed, [bench.state(&host, &spec).await.unwrap()]);
    assert_eq!(listed[0].generation, Generation(2));

    bench.sleep(&host, &spec, Some(&started.life), Depth::Stopped).await;
    refuses(&started.address).await;
    assert_eq!(bench.replicas("deployment/desk").await, 0);
    assert_eq!(bench.pod_of(&started).await, None);
    let asleep = bench.engine.list().await.unwrap();
    assert_eq!(asleep[0].state, InstanceState::Asleep(Depth::Stopped));

    bench.sleep(&host, &spec, Some(&started.life), Depth::Removed).await;
    let after = bench.look("deployment/desk").await;
    assert_eq!((after.labels(), after.annotations()), (before.labels(), before.annotations()));
    assert_eq!(after.uid(), before.uid());
    assert_eq!(bench.engine.list().await.unwrap(), []);
}

#[tokio::test]
async fn what_cannot_be_scaled_says_why() {
    let bench = bench("scale-refused").await;
    let host = session("why.example");
    let refused = bench.refused(&host, &scaled("deployment/nobody")).await;
    let said = "deployment/nobody is not in the namespace `scale-refused`";
    assert!(matches!(&refused, Error::Missing(text) if text.contains(said)), "{refused:?}");
    bench.sleep(&host, &scaled("deployment/nobody"), None, Depth::Removed).await;

    for wrong in ["pod/x", "deployment", "deployment/", "deployment/../x", "deployment/a/b"] {
        let refused = bench.refused(&host, &scaled(wrong)).await;
        assert!(matches!(refused, Error::Invalid(_)), "{wrong}: {refused:?}");
    }

    bench.make("deployment/absent", "absent", &of_image("absent")).await;
    let refused = bench.refused(&host, &scaled("deployment/absent")).await;
    assert!(matches!(&refused, Error::Missing(text) if text.contains("absent")), "{refused:?}");
    bench.sleep(&host, &scaled("deployment/absent"), None, Depth::Stopped).await;
    assert_eq!(bench.replicas("deployment/absent").await, 0);

    bench.make("deployment/crashing", "crashing", &of_image("crashing")).await;
    let refused = bench.refused(&host, &scaled("deployment/crashing")).await;
    let said = "exit code 3; its last lines: the last lines";
    assert!(refused.to_string().contains(said), "{refused:?}");
    bench.sleep(&host, &scaled("deployment/crashing"), None, Depth::Stopped).await;

    bench.make("deployment/refused", "refused", &of_image("refused")).await;
    let hasty = hasty(&bench);
    let refused = hasty.start(&host, &scaled("deployment/refused"), G1).await.unwrap_err();
    assert!(refused.to_string().contains("exceeded quota"), "{refused:?}");
    assert!(refused.is_retryable());
    bench.sleep(&host, &scaled("deployment/refused"), None, Depth::Stopped).await;
}

#[tokio::test]
async fn an_edge_without_the_role_is_told_which_it_needs() {
    let bench = Bench::new("scale-unbound").await;
    bench.make("deployment/desk", "desk", &serving()).await;
    let refused = bench.refused(&session("no.example"), &scaled("deployment/desk")).await;
    let said = refused.to_string();
    assert!(matches!(refused, Error::Invalid(_)), "{said}");
    assert!(said.contains("\"deployments\"") && said.contains("deploy/kubernetes"), "{said}");
    assert_eq!(bench.replicas("deployment/desk").await, 0);
}

#[tokio::test]
async fn scaling_by_hand_is_told() {
    let bench = bench("scale-by-hand").await;
    let (host, spec) = (session("hand.example"), scaled("deployment/desk"));
    bench.make("deployment/desk", "desk", &serving()).await;
    let first = bench.start(&host, &spec, G1).await;
    bench.sleep(&host, &spec, Some(&first.life), Depth::Stopped).await;
    let mut events = bench.engine.events();
    assert_eq!(events.next().await, Some(EngineEvent::Resync));

    bench.scale_by_hand("deployment/desk", 1).await;
    bench.told(&mut events, &host, async || bench.runs(&host, &spec).await).await;
    let found = bench.start(&host, &spec, G2).await;
    answers(&found.address).await;
    assert_ne!(found.life, first.life);

    bench.scale_by_hand("deployment/desk", 0).await;
    bench.told(&mut events, &host, async || !bench.runs(&host, &spec).await).await;
    bench.sleep(&host, &spec, Some(&found.life), Depth::Removed).await;
}

#[tokio::test]
async fn what_somebody_scaled_higher_stays_so_until_it_sleeps() {
    let bench = bench("scale-higher").await;
    let (host, spec) = (session("higher.example"), scaled("deployment/desk"));
    bench.make("deployment/desk", "desk", &serving()).await;
    bench.scale_by_hand("deployment/desk", 3).await;
    eventually("all run", async || {
        bench.look("deployment/desk").await.data["status"]["readyReplicas"] == 3
    })
    .await;
    let started = bench.start(&host, &spec, G1).await;
    answers(&started.address).await;
    assert_eq!(bench.replicas("deployment/desk").await, 3);
    let pods = bench.pods().await.list(&Default::default()).await.unwrap().items;
    let oldest = pods.iter().min_by_key(|pod| {
        let status = pod.status.as_ref().unwrap().container_statuses.as_ref().unwrap();
        status[0].state.clone().unwrap().running.unwrap().started_at.unwrap()
    });
    assert_eq!(bench.pod_of(&started).await.unwrap().uid(), oldest.unwrap().uid());
    assert_eq!(bench.start(&host, &spec, G2).await, started, "the same each time");
    bench.sleep(&host, &spec, Some(&started.life), Depth::Stopped).await;
    assert_eq!(bench.replicas("deployment/desk").await, 0);
    assert_eq!(bench.pods().await.list(&Default::default()).await.unwrap().items, []);
}

#[tokio::test]
async fn a_pod_of_another_workload_with_the_same_labels_is_not_taken() {
    let bench = bench("scale-labels").await;
    bench.make("deployment/other", "same", &serving()).await;
    bench.make("deployment/mine", "same", &of_image("slow")).await;
    let (other, host) = (session("other.example"), session("mine.example"));
    let theirs = bench.start(&other, &scaled("deployment/other"), G1).await;
    answers(&theirs.address).await;

    let spec = scaled("deployment/mine");
    let wait = Duration::from_secs(2);
    let start = tokio::time::timeout(wait, bench.engine.start(&host, &spec, G1)).await;
    assert!(start.is_err(), "its own Pod never runs: {start:?}");
    bench.sleep(&host, &spec, None, Depth::Removed).await;
    answers(&theirs.address).await;
    bench.sleep(&other, &scaled("deployment/other"), None, Depth::Removed).await;
}

#[tokio::test]
async fn a_pod_that_took_anothers_place_is_another_life() {
    let bench = bench("scale-replaced").await;
    let (host, spec) = (session("replaced.example"), scaled("deployment/desk"));
    bench.make("deployment/desk", "desk", &serving()).await;
    let first = bench.start(&host, &spec, G1).await;
    let mut events = bench.engine.events();
    assert_eq!(events.next().await, Some(EngineEvent::Resync));
    let pod = bench.pod_of(&first).await.unwrap();
    bench.pods().await.delete(&pod.name_any(), &Default::default()).await.unwrap();
    let is_other = async || {
        let instance = bench.state(&host, &spec).await.unwrap();
        instance.life != Some(first.life.clone())
    };
    bench.told(&mut events, &host, is_other).await;

    bench.sleep(&host, &spec, Some(&first.life), Depth::Stopped).await;
    assert_eq!(bench.pod_of(&first).await, None);
    assert_eq!(bench.replicas("deployment/desk").await, 1, "the newer life is left alone");
    let second = bench.start(&host, &spec, G2).await;
    answers(&second.address).await;
    assert_ne!(second.life, first.life);
    bench.sleep(&host, &spec, Some(&second.life), Depth::Removed).await;
}

#[tokio::test]
async fn an_awake_workload_is_one_sessions_and_an_asleep_one_anybodys() {
    let bench = bench("scale-shared").await;
    let (a, b, spec) = (session("a.example"), session("b.example"), scaled("deployment/desk"));
    bench.make("deployment/desk", "desk", &serving()).await;
    let started = bench.start(&a, &spec, G1).await;
    let refused = bench.refused(&b, &spec).await;
    assert!(refused.to_string().contains("session `a.example`"), "{refused:?}");
    assert!(refused.is_retryable());
    assert_eq!(bench.state(&b, &spec).await, None);
    bench.sleep(&b, &spec, None, Depth::Removed).await;
    answers(&started.address).await;

    bench.sleep(&a, &spec, Some(&started.life), Depth::Stopped).await;
    let theirs = bench.start(&b, &spec, G1).await;
    bench.sleep(&a, &spec, Some(&started.life), Depth::Removed).await;
    answers(&theirs.address).await;
    bench.sleep(&b, &spec, Some(&theirs.life), Depth::Removed).await;
}

/// Before its controller has seen that none is wanted, it may still be about to make one.
#[tokio::test]
async fn a_workload_sleeps_when_its_controller_knows() {
    let bench = bench("scale-frozen").await;
    let (host, spec) = (session("frozen.example"), scaled("deployment/desk"));
    bench.make("deployment/desk", "desk", &serving()).await;
    bench.annotate("deployment/desk", FROZEN, Some("yes")).await;
    {
        let mut start = pin!(bench.engine.start(&host, &spec, G1));
        until(&mut start, "it is scaled up", async || bench.replicas("deployment/desk").await == 1)
            .await;
    }
    let mut sleep = pin!(bench.engine.sleep(&host, &spec, None, Depth::Stopped));
    until(&mut sleep, "it is scaled down", async || bench.replicas("deployment/desk").await == 0)
        .await;
    // Its end is not told before its controller has seen that none is wanted.
    let desk = bench.look("deployment/desk").await;
    let seen = desk.data["status"]["observedGeneration"].as_i64();
    assert!(seen < desk.metadata.generation, "{seen:?}");
    for _ in 0..20 {
        // Each is a change that its watch tells.
        until(&mut sleep, "it is written on", async || {
            bench.annotate("deployment/desk", "test/n", Some("n")).await;
            true
        })
        .await;
    }
    bench.annotate("deployment/desk", FROZEN, None).await;
    sleep.await.unwrap();
    let desk = bench.look("deployment/desk").await;
    assert_eq!(desk.data["status"]["observedGeneration"].as_i64(), desk.metadata.generation);
    assert_eq!(bench.pods().await.list(&Default::default()).await.unwrap().items, []);
}

/// Drives `call`, which must not end before it is so.
async fn until<T: std::fmt::Debug>(
    call: &mut (impl Future<Output = T> + Unpin),
    what: &str,
    is_so: impl AsyncFnMut() -> bool,
) {
    tokio::select! {
        ended = call => panic!("it has ended, and never: {what}: {ended:?}"),
        () = eventually(what, is_so) => {}
    }
}

#[tokio::test]
async fn a_start_that_somebody_ends_says_so() {
    let bench = bench("scale-ended").await;
    let (host, spec) = (session("ended.example"), scaled("deployment/desk"));
    bench.make("deployment/desk", "desk", &of_image("slow")).await;
    let ends = async {
        eventually("its Pod waits", async || {
            !bench.pods().await.list(&Default::default()).await.unwrap().items.is_empty()
        })
        .await;
        bench.scale_by_hand("deployment/desk", 0).await;
    };
    let (refused, ()) = tokio::join!(bench.refused(&host, &spec), ends);
    let said = "deployment/desk was scaled to 0 by somebody while it started";
    assert!(refused.to_string().contains(said), "{refused:?}");
}

/// What is on its way out is not woken, and its name may come back.
#[tokio::test]
async fn a_workload_that_is_being_deleted_is_not_woken() {
    let bench = bench("scale-going").await;
    let (host, spec) = (session("going.example"), scaled("deployment/desk"));
    bench.make("deployment/desk", "desk", &serving()).await;
    let api = bench.workloads("deployment/desk").await;
    let keep = |finalizers: Value| Patch::Merge(json!({"metadata": {"finalizers": finalizers}}));
    let params = PatchParams::default();
    api.patch("desk", &params, &keep(json!(["test/keep"]))).await.unwrap();
    api.delete("desk", &Default::default()).await.unwrap();
    let refused = bench.refused(&host, &spec).await;
    let said = "deployment/desk is being deleted";
    assert!(matches!(&refused, Error::Conflict(text) if text.contains(said)), "{refused:?}");
    assert_eq!(bench.replicas("deployment/desk").await, 0);
    api.patch("desk", &params, &keep(json!(null))).await.unwrap();
}

/// The marks on it are another session's by now, and so is the Pod.
#[tokio::test]
async fn a_workload_that_another_session_took_is_not_scaled_down_under_it() {
    let bench = bench("scale-taken").await;
    let (a, b, spec) = (session("a.example"), session("b.example"), scaled("deployment/desk"));
    bench.make("deployment/desk", "desk", &serving()).await;
    let started = bench.start(&a, &spec, G1).await;
    bench.annotate("deployment/desk", "dormouse.session", Some(b.host())).await;
    let hasty = hasty(&bench);
    let refused = hasty.sleep(&a, &spec, Some(&started.life), Depth::Stopped).await.unwrap_err();
    assert!(refused.to_string().contains("is still there"), "{refused:?}");
    assert_eq!(bench.replicas("deployment/desk").await, 1);
    answers(&started.address).await;
    bench.sleep(&b, &spec, None, Depth::Removed).await;
}

/// What a boot does with what no route wants any longer: nothing but the list says what it is.
#[tokio::test]
async fn an_unrouted_workload_sleeps_and_is_let_go() {
    let bench = bench("scale-unrouted").await;
    let (host, spec) = (session("gone.example"), scaled("statefulset/desk"));
    bench.make("statefulset/desk", "desk", &serving()).await;
    bench.start(&host, &spec, G1).await;
    let listed = bench.engine().list().await.unwrap().remove(0);
    bench.sleep(&host, &Spec::default(), listed.life.as_ref(), Depth::Stopped).await;
    let after = bench.look("statefulset/desk").await;
    assert_eq!(after.data["spec"]["replicas"], 0);
    assert!(!after.labels().contains_key("dormouse.owner"));
    assert_eq!(bench.engine.list().await.unwrap(), []);
}

#[tokio::test]
async fn somebody_who_writes_meanwhile_is_waited_for() {
    let bench = bench("scale-contended").await;
    let (host, spec) = (session("busy.example"), scaled("deployment/desk"));
    bench.make("deployment/desk", "desk", &serving()).await;
    let api = bench.workloads("deployment/desk").await;
    // One after the other without a pause: whoever reads first and writes then is too late.
    let write = async |times: u32| {
        for n in 0..times {
            let patch = Patch::Merge(json!({"metadata": {"annotations": {"n": n.to_string()}}}));
            api.patch("desk", &PatchParams::default(), &patch).await.unwrap();
        }
    };
    let (started, ()) = tokio::join!(bench.start(&host, &spec, G1), write(50));
    answers(&started.address).await;
    let life = Some(&started.life);
    tokio::join!(bench.sleep(&host, &spec, life, Depth::Removed), write(50));
    assert_eq!(bench.pod_of(&started).await, None);
    let after = bench.look("deployment/desk").await;
    assert!(!after.labels().contains_key("dormouse.owner"));
}
