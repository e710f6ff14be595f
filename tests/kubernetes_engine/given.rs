//! What the API server is asked for, and what it refuses.

use std::time::Duration;

use dormouse::{
    engine::{
        Engine as _, EngineEvent, Error,
        kubernetes::{Config, Kubernetes},
    },
    session::{Depth, Generation, KubernetesSpec, Spec},
};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::{Api, api::PostParams};
use serde_json::{Value, json};

use crate::{
    bench::{Bench, G1, G2, engine, eventually, image, session, spec},
    cluster::PATIENCE,
    contract::answers,
};

#[tokio::test]
async fn a_pod_gets_what_its_route_says_and_nothing_more() {
    let bench = Bench::new("given").await;
    let host = session("Alice.sess.example.com");
    let spec = Spec {
        env: [("SECRET".to_owned(), "a$(HOME)b".to_owned())].into(),
        port: Some(9000),
        memory: Some(512 << 20),
        nano_cpus: Some(1_500_000_000),
        volumes: vec!["home-alice:/home".to_owned(), "shared_data:/shared:ro".to_owned()],
        kubernetes: KubernetesSpec {
            user: Some("1000:2000".to_owned()),
            tmpfs: vec!["/run:size=16m".to_owned()],
            cap_add: vec!["NET_BIND_SERVICE".to_owned()],
            pull_secrets: vec!["registry".to_owned()],
            volume_size: 1 << 30,
            ..spec().kubernetes
        },
        ..spec()
    };
    let started = bench.start(&host, &spec, G1).await;
    answers(&started.address).await;
    let pod = serde_json::to_value(bench.pod(&started).await).unwrap();
    let metadata = &pod["metadata"];
    assert_eq!(metadata["labels"]["dormouse.owner"], "tests");
    assert_eq!(metadata["annotations"]["dormouse.session"], host.host());
    assert_eq!(metadata["annotations"]["dormouse.generation"], "1");
    let name = metadata["name"].as_str().unwrap();
    assert!(name.starts_with("dormouse-tests-alice-sess-example-com-"), "{name}");
    let (of_pod, container) = (&pod["spec"], &pod["spec"]["containers"][0]);
    assert_eq!(of_pod["automountServiceAccountToken"], false);
    assert_eq!(of_pod["restartPolicy"], "Never");
    assert_eq!(of_pod["terminationGracePeriodSeconds"], 1);
    assert_eq!(of_pod["imagePullSecrets"], json!([{"name": "registry"}]));
    assert_eq!(of_pod["securityContext"]["fsGroup"], 2000);
    assert_eq!(container["args"], json!(["httpd", "-f", "-p", "0.0.0.0:9000"]));
    let limits = json!({"cpu": "1500m", "memory": "536870912"});
    assert_eq!(container["resources"], json!({"limits": limits, "requests": limits}));
    let rights = json!({
        "allowPrivilegeEscalation": false, "privileged": false, "readOnlyRootFilesystem": true,
        "capabilities": {"add": ["NET_BIND_SERVICE"], "drop": ["ALL"]},
        "runAsUser": 1000, "runAsGroup": 2000, "runAsNonRoot": true,
    });
    assert_eq!(container["securityContext"], rights);
    let env = json!([{"name": "SECRET", "value": "a$$(HOME)b"},
        {"name": "DORMOUSE_SESSION", "value": host.host()}]);
    assert_eq!(container["env"], env);
    let targets: Vec<&Value> =
        container["volumeMounts"].as_array().unwrap().iter().map(|m| &m["mountPath"]).collect();
    assert_eq!(targets, ["/home", "/shared", "/tmp", "/run"]);
    bench.end(&host).await;
}

#[tokio::test]
async fn a_volume_is_made_once_and_outlives_its_pods() {
    let bench = Bench::new("volumes").await;
    let host = session("v.example");
    let claims: Api<PersistentVolumeClaim> =
        Api::namespaced(bench.cluster.client("admin").await, &bench.namespace);
    let size = json!({"requests": {"storage": "1Gi"}});
    let given = json!({"metadata": {"name": "given"},
        "spec": {"accessModes": ["ReadWriteMany"], "resources": size}});
    let given = serde_json::from_value(given).unwrap();
    claims.create(&PostParams::default(), &given).await.unwrap();
    let volumes = ["Home_v:/home".to_owned(), "given:/given".to_owned()];
    let spec = Spec { volumes: volumes.into(), ..spec() };
    for generation in [G1, G2] {
        bench.start(&host, &spec, generation).await;
        bench.end(&host).await;
    }
    let left = claims.list(&Default::default()).await.unwrap().items;
    let mut left: Vec<_> = left.into_iter().map(|claim| claim.metadata.name.unwrap()).collect();
    left.sort_unstable();
    assert_eq!(left.len(), 2, "{left:?}");
    assert_eq!(left[0], "given");
    assert!(left[1].starts_with("home-v-"), "{left:?}");
}

#[tokio::test]
async fn what_nobody_can_start_says_why() {
    let bench = Bench::new("stuck").await;
    let host = session("stuck.example");
    let refused = bench.refused(&host, &image("absent")).await;
    assert!(matches!(&refused, Error::Missing(text) if text.contains("absent")), "{refused:?}");
    bench.end(&host).await;

    let refused = bench.refused(&host, &image("failing")).await;
    let said = refused.to_string();
    assert!(said.contains("exit code 3; its last lines: the last lines"), "{refused:?}");
    bench.end(&host).await;

    let hasty = Kubernetes::new(Config {
        kubeconfig: Some(bench.cluster.kubeconfig()),
        context: Some("edge".to_owned()),
        namespace: Some(bench.namespace.clone()),
        owner: "tests".to_owned(),
        start_timeout: Duration::from_secs(2),
        ..Config::default()
    });
    let refused = hasty.start(&host, &image("unplaced"), G1).await.unwrap_err();
    let said = refused.to_string();
    assert!(said.contains("no node takes") && said.contains("Insufficient memory"), "{said}");
    assert!(refused.is_retryable());
    bench.end(&host).await;
    assert_eq!(bench.engine.list().await.unwrap(), []);
}

#[tokio::test]
async fn refusals_of_the_server_say_what_to_do() {
    let bench = Bench::new("refusals").await;
    let (cluster, host) = (bench.cluster, session("r.example"));
    let refused =
        async |engine: &Kubernetes, spec: &Spec| engine.start(&host, spec, G1).await.unwrap_err();

    let guest = engine(cluster, &bench.namespace, "guest");
    let said = refused(&guest, &spec()).await;
    assert!(matches!(said, Error::Invalid(_)), "{said:?}");
    let said = said.to_string();
    let wanted = "User \"guest\" cannot list resource \"pods\"";
    assert!(said.contains(wanted) && said.contains("deploy/kubernetes"), "{said}");
    assert!(matches!(guest.list().await, Err(Error::Invalid(_))));

    let nobody = engine(cluster, &bench.namespace, "nobody");
    let said = refused(&nobody, &spec()).await;
    assert!(matches!(&said, Error::Invalid(text) if text.contains("does not know us")), "{said:?}");

    let nowhere = engine(cluster, "nowhere", "admin");
    let said = refused(&nowhere, &spec()).await;
    assert!(matches!(&said, Error::Missing(text) if text.contains("nowhere")), "{said:?}");

    let secret = Spec { env: [("not a name".to_owned(), "hunter2".to_owned())].into(), ..spec() };
    let said = refused(&bench.engine, &secret).await;
    assert!(matches!(&said, Error::Invalid(text) if text.contains("not a name")), "{said:?}");
    assert!(!said.to_string().contains("hunter2"));

    let gone = Kubernetes::new(Config {
        kubeconfig: Some("/nowhere/kubeconfig".into()),
        ..Config::default()
    });
    let said = gone.list().await.unwrap_err();
    assert!(said.to_string().contains("/nowhere/kubeconfig"), "{said:?}");
}

#[tokio::test]
async fn a_pod_of_others_is_in_the_way_and_left_alone() {
    let bench = Bench::new("strangers").await;
    let host = session("s.example");
    let started = bench.start(&host, &spec(), G1).await;
    let name = bench.pod(&started).await.metadata.name.unwrap();
    bench.end(&host).await;
    let theirs = json!({"metadata": {"name": name, "labels": {"dormouse.owner": "others"}},
        "spec": {"containers": [{"name": "x", "image": "slow"}]}});
    let theirs = serde_json::from_value(theirs).unwrap();
    let theirs = bench.pods().await.create(&PostParams::default(), &theirs).await.unwrap();

    let refused = bench.refused(&host, &spec()).await;
    assert!(matches!(&refused, Error::Conflict(text) if text.contains(&name)), "{refused:?}");
    assert_eq!(bench.engine.inspect(&host, &spec()).await.unwrap(), None);
    bench.end(&host).await;
    let left = bench.pods().await.get(&name).await.unwrap();
    assert_eq!(left.metadata.uid, theirs.metadata.uid);
    assert_eq!(left.metadata.deletion_timestamp, None);
    assert_eq!(bench.engine.list().await.unwrap(), []);
}

#[tokio::test]
async fn a_pod_deleted_by_hand_is_told_and_comes_back_as_another_life() {
    let bench = Bench::new("by-hand").await;
    let host = session("h.example");
    let mut events = bench.engine.events();
    assert_eq!(events.next().await, Some(EngineEvent::Resync));
    let first = bench.start(&host, &spec(), G1).await;
    bench.delete_pod(&first).await;
    let told = async {
        while bench.engine.inspect(&host, &spec()).await.unwrap().is_some() {
            let event = events.next().await;
            assert_eq!(event, Some(EngineEvent::Changed(host.clone())));
        }
    };
    tokio::time::timeout(PATIENCE, told).await.expect("a deletion is told");
    let again = bench.start(&host, &spec(), G2).await;
    assert_ne!(again.life, first.life);
    let instance = bench.engine.inspect(&host, &spec()).await.unwrap().unwrap();
    assert_eq!(instance.generation, Generation(2));
    bench.end(&host).await;
}

#[tokio::test]
async fn a_pod_deleted_by_hand_while_it_starts_fails_that_start() {
    let bench = Bench::new("mid-start").await;
    let host = session("m.example");
    let slow = image("slow");
    let start = bench.engine.start(&host, &slow, G1);
    let delete = async {
        let pods = bench.pods().await;
        let mut name = None;
        eventually("a Pod is made", async || {
            let found = pods.list(&Default::default()).await.unwrap().items;
            name = found.into_iter().next().and_then(|pod| pod.metadata.name);
            name.is_some()
        })
        .await;
        pods.delete(&name.unwrap(), &Default::default()).await.unwrap();
    };
    let (started, ()) = tokio::join!(start, delete);
    let refused = started.unwrap_err();
    assert!(matches!(&refused, Error::Conflict(text) if text.contains("deleted")), "{refused:?}");
    bench.engine.sleep(&host, &spec(), None, Depth::Stopped).await.unwrap();
    assert_eq!(bench.engine.list().await.unwrap(), []);
}
