//! Whatever one call to the API server comes to, the error says it, and the next try ends in the
//! right state: one Pod, no more.

use std::{
    fs,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    body::{Body, Bytes},
    extract::{Request, State},
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use dormouse::{
    engine::{
        Engine as _, Error, InstanceState,
        kubernetes::{Config, Kubernetes},
    },
    session::{Depth, SessionId, Spec},
};
use http_body_util::BodyExt as _;
use k8s_openapi::api::apps::v1::Deployment;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::net::TcpListener;

use crate::{
    bench::{Bench, G1, G2, session, spec},
    scale::{scaled, serving},
};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    Answer(u16),
    Silence,
    /// Nothing reaches the server, and the answer breaks off.
    CutBefore,
    /// The server did it, and its answer breaks off.
    CutBehind,
    /// Once, and before it is asked, another session takes the Deployment and wakes it.
    Taken,
}

const FAULTS: [Fault; 6] = [
    Fault::Answer(500),
    Fault::Answer(503),
    Fault::Answer(429),
    Fault::Silence,
    Fault::CutBefore,
    Fault::CutBehind,
];

/// Who takes what another is about to.
const OTHER: &str = "other.test";

/// What becomes of which call: its method, and what its path and query hold.
type Spoilt = Option<(&'static str, &'static str, Fault)>;

/// Stands before the real server and spoils one kind of call.
#[derive(Clone)]
struct Spoiler {
    server: kube::Client,
    admin: kube::Client,
    namespace: String,
    spoilt: Arc<Mutex<Spoilt>>,
}

impl Spoiler {
    fn spoil(&self, spoilt: Spoilt) {
        *self.spoilt.lock().unwrap() = spoilt;
    }

    async fn take(&self) {
        let api: Api<Deployment> = Api::namespaced(self.admin.clone(), &self.namespace);
        let marks = json!({"labels": {"dormouse.owner": "tests"},
            "annotations": {"dormouse.session": OTHER}});
        let patch = Patch::Merge(json!({"metadata": marks}));
        api.patch("desk", &PatchParams::default(), &patch).await.unwrap();
        let scale = Patch::Merge(json!({"spec": {"replicas": 1}}));
        api.patch_scale("desk", &PatchParams::default(), &scale).await.unwrap();
    }

    fn of(&self, request: &Request) -> Option<Fault> {
        let (method, within, fault) = (*self.spoilt.lock().unwrap())?;
        let is_it =
            request.method().as_str() == method && request.uri().to_string().contains(within);
        is_it.then_some(fault)
    }
}

/// An answer that says it is longer than it is.
fn cut() -> Response {
    let begun = futures::stream::iter([
        Ok(Bytes::from_static(b"{\"kind\": \"Po")),
        Err(std::io::Error::other("cut, as told")),
    ]);
    Response::new(Body::from_stream(begun))
}

async fn answer(State(spoiler): State<Spoiler>, request: Request) -> Response {
    let fault = spoiler.of(&request);
    match fault {
        Some(Fault::Answer(code)) => {
            let said = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure",
                "message": "as told", "reason": "InternalError", "code": code});
            return (StatusCode::from_u16(code).unwrap(), said.to_string()).into_response();
        }
        Some(Fault::Silence) => std::future::pending().await,
        Some(Fault::CutBefore) => return cut(),
        Some(Fault::Taken) => {
            spoiler.spoil(None);
            spoiler.take().await;
        }
        Some(Fault::CutBehind) | None => {}
    }
    let (head, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes().to_vec();
    let answer = spoiler.server.send(Request::from_parts(head, body.into())).await.unwrap();
    if fault != Some(Fault::CutBehind) {
        return answer.map(Body::new);
    }
    // Only now has the server done all of it.
    answer.into_body().collect().await.unwrap();
    cut()
}

/// A bench, and an engine of the same edge that reaches its server through a spoiler, and has no
/// patience.
struct Bed {
    bench: Bench<'static>,
    spoilt: Kubernetes,
    spoiler: Spoiler,
    _folder: tempfile::TempDir,
}

impl Bed {
    async fn new(namespace: &str) -> Self {
        let bench = Bench::new(namespace).await.with_scale().await;
        let server = bench.cluster.client("edge").await;
        let admin = bench.cluster.client("admin").await;
        let spoilt = Arc::default();
        let spoiler = Spoiler { server, admin, namespace: namespace.to_owned(), spoilt };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let app = axum::Router::new().fallback(answer).with_state(spoiler.clone());
        // Ends with the test's runtime.
        drop(tokio::runtime::Handle::current().spawn(async { axum::serve(listener, app).await }));
        let folder = tempfile::tempdir().unwrap();
        let kubeconfig = folder.path().join("kubeconfig");
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: test\nclusters:\n- {{name: test, \
             cluster: {{server: \"http://{at}\"}}}}\nusers:\n- {{name: test, user: {{}}}}\n\
             contexts:\n- {{name: test, context: {{cluster: test, user: test}}}}\n"
        );
        fs::write(&kubeconfig, text).unwrap();
        let spoilt = Kubernetes::new(Config {
            kubeconfig: Some(kubeconfig),
            namespace: Some(namespace.to_owned()),
            owner: "tests".to_owned(),
            call_timeout: Duration::from_secs(3),
            start_timeout: Duration::from_secs(5),
            ..Config::default()
        });
        Self { bench, spoilt, spoiler, _folder: folder }
    }

    /// The instances that there are, as the server itself tells.
    async fn listed(&self) -> Vec<(SessionId, InstanceState)> {
        let listed = self.bench.engine.list().await.unwrap();
        listed.into_iter().map(|instance| (instance.session, instance.state)).collect()
    }

    async fn a_start_is_made_good(&self, host: &SessionId, spec: &Spec, calls: &[Call]) {
        let engine = &self.bench.engine;
        for Call { method, within, faults } in calls {
            for &fault in *faults {
                let case = format!("{method} {within} {fault:?}");
                self.spoiler.spoil(Some((method, within, fault)));
                match self.spoilt.start(host, spec, G1).await {
                    Err(error) => assert!(told(&error, fault), "{case}: {error:?}"),
                    // An answer that nobody needs may be lost.
                    Ok(_) => assert_eq!(fault, Fault::CutBehind, "{case}"),
                }
                let started = engine.start(host, spec, G2).await.unwrap();
                let listed = self.listed().await;
                assert!(
                    matches!(&listed[..], [(of, InstanceState::Running(_))] if of == host),
                    "{case}: {listed:?}"
                );
                engine.sleep(host, spec, Some(&started.life), Depth::Removed).await.unwrap();
                assert_eq!(self.listed().await, [], "{case}");
            }
        }
    }

    async fn a_sleep_is_made_good(&self, host: &SessionId, spec: &Spec, calls: &[Call]) {
        let engine = &self.bench.engine;
        for Call { method, within, faults } in calls {
            for &fault in *faults {
                let case = format!("{method} {within} {fault:?}");
                let started = engine.start(host, spec, G1).await.unwrap();
                let life = Some(&started.life);
                self.spoiler.spoil(Some((method, within, fault)));
                match self.spoilt.sleep(host, spec, life, Depth::Removed).await {
                    Err(error) => assert!(told(&error, fault), "{case}: {error:?}"),
                    Ok(()) => assert_eq!(fault, Fault::CutBehind, "{case}"),
                }
                engine.sleep(host, spec, life, Depth::Removed).await.unwrap();
                assert_eq!(self.listed().await, [], "{case}");
            }
        }
    }
}

/// A call, by its method and by what its path and query hold, and what may become of it.
struct Call {
    method: &'static str,
    within: &'static str,
    faults: &'static [Fault],
}

const fn call(method: &'static str, within: &'static str) -> Call {
    Call { method, within, faults: &FAULTS }
}

/// The list before a watch: it is asked again and again, as long as there is time.
const WATCH: Call = Call {
    method: "GET",
    within: "/pods?&fieldSelector",
    faults: &[Fault::Answer(503), Fault::Silence, Fault::CutBefore],
};

fn told(error: &Error, fault: Fault) -> bool {
    let says_it = match fault {
        Fault::Answer(_) => error.to_string().contains("as told"),
        Fault::Silence => matches!(error, Error::Timeout { .. } | Error::Conflict(_)),
        Fault::Taken => error.to_string().contains(OTHER),
        Fault::CutBefore | Fault::CutBehind => matches!(error, Error::Unreachable(_)),
    };
    // All of it passes by itself.
    says_it && error.is_retryable()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_of_a_pod_of_which_one_call_fails_says_so_and_the_next_is_whole() {
    let bed = Bed::new("faults-start").await;
    let calls = [call("POST", "/pods"), WATCH];
    bed.a_start_is_made_good(&session("alice.test"), &spec(), &calls).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sleep_of_a_pod_of_which_one_call_fails_says_so_and_the_next_ends_it() {
    let bed = Bed::new("faults-sleep").await;
    let calls = [call("GET", "/pods/"), call("DELETE", "/pods/"), WATCH];
    bed.a_sleep_is_made_good(&session("alice.test"), &spec(), &calls).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_of_which_one_call_fails_is_scaled_by_the_next() {
    let bed = Bed::new("faults-scale").await;
    bed.bench.make("deployment/desk", "desk", &serving()).await;
    let (host, spec) = (session("alice.test"), scaled("deployment/desk"));
    let [get, mark, scale] = [("GET", "/desk"), ("PATCH", "/desk"), ("PUT", "/scale")]
        .map(|(method, within)| call(method, within));
    let calls = [get, mark, scale];
    bed.a_start_is_made_good(&host, &spec, &calls).await;
    bed.a_sleep_is_made_good(&host, &spec, &calls).await;
}

/// A server that has just started has not read its Roles, and refuses what it allowed before.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_allowed_before_is_refused_for_now_only() {
    let bed = Bed::new("faults-forbidden").await;
    let forbidden = Some(("GET", "/pods", Fault::Answer(403)));
    bed.spoiler.spoil(forbidden);
    let refused = bed.spoilt.list().await.unwrap_err();
    assert!(matches!(refused, Error::Invalid(_)), "{refused:?}");
    bed.spoiler.spoil(None);
    assert_eq!(bed.spoilt.list().await.unwrap(), []);
    bed.spoiler.spoil(forbidden);
    let refused = bed.spoilt.list().await.unwrap_err();
    assert!(told(&refused, Fault::Answer(403)), "{refused:?}");
}

/// Each change is bound to what was read: who was slower takes nothing from who was faster.
#[tokio::test(flavor = "multi_thread")]
async fn a_workload_that_another_takes_in_between_stays_the_others() {
    let bed = Bed::new("faults-taken").await;
    bed.bench.make("deployment/desk", "desk", &serving()).await;
    let (alice, other) = (session("alice.test"), session(OTHER));
    let (spec, engine) = (scaled("deployment/desk"), &bed.bench.engine);
    for (method, within) in [("PATCH", "/desk"), ("PUT", "/scale")] {
        bed.spoiler.spoil(Some((method, within, Fault::Taken)));
        let refused = bed.spoilt.start(&alice, &spec, G1).await.unwrap_err();
        assert!(told(&refused, Fault::Taken), "{method}: {refused:?}");
        let theirs = engine.start(&other, &spec, G1).await.unwrap();
        assert_eq!(bed.listed().await.len(), 1, "{method}");
        engine.sleep(&other, &spec, Some(&theirs.life), Depth::Removed).await.unwrap();
    }
}
