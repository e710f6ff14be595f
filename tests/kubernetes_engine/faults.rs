//! Whatever one call to the API server comes to, the error says it, and the next try ends in the
//! right state: one Pod, no more.

use std::{
    fs,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    body::Body,
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
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::{
    bench::{Bench, G1, G2, session, spec},
    scale::{scaled, serving},
    spoilt::{FAULTS, Fault, cut},
};

/// What becomes of a call.
#[derive(Clone, Copy)]
enum Spoil {
    By(Fault),
    /// A refusal in these words.
    Says(u16, &'static str),
    /// It is refused, and behind so many characters stands what it was given.
    Echoes(usize),
    /// Once, and before it is asked, another session takes the Deployment and wakes it.
    Taken,
}

/// Who takes what another is about to.
const OTHER: &str = "other.test";

/// What becomes of which call: its method, and what its path and query hold.
type Spoilt = Option<(&'static str, &'static str, Spoil)>;

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

    fn of(&self, request: &Request) -> Option<Spoil> {
        let (method, within, spoil) = (*self.spoilt.lock().unwrap())?;
        let is_it =
            request.method().as_str() == method && request.uri().to_string().contains(within);
        is_it.then_some(spoil)
    }
}

fn says(code: u16, text: &str) -> Response {
    let said = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure",
        "message": text, "reason": "InternalError", "code": code});
    (StatusCode::from_u16(code).unwrap(), said.to_string()).into_response()
}

/// The words and the environment of the Pod that a call makes.
async fn echo(request: Request, behind: usize) -> Response {
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let pod: Value = serde_json::from_slice(&body).unwrap();
    let env = &pod["spec"]["containers"][0]["env"];
    let env: Vec<_> = env.as_array().unwrap().iter().map(|one| &one["value"]).collect();
    let as_they_are: String = env.iter().filter_map(|value| value.as_str()).collect();
    says(422, &format!("{}{as_they_are}{}", "x".repeat(behind), json!(env)))
}

async fn answer(State(spoiler): State<Spoiler>, request: Request) -> Response {
    let spoil = spoiler.of(&request);
    match spoil {
        Some(Spoil::By(Fault::Answer(code))) => return says(code, "as told"),
        Some(Spoil::Says(code, text)) => return says(code, text),
        Some(Spoil::Echoes(behind)) => return echo(request, behind).await,
        Some(Spoil::By(Fault::Silence)) => std::future::pending().await,
        Some(Spoil::By(Fault::CutBefore)) => return cut(),
        Some(Spoil::Taken) => {
            spoiler.spoil(None);
            spoiler.take().await;
        }
        Some(Spoil::By(Fault::CutBehind)) | None => {}
    }
    let (head, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes().to_vec();
    let answer = spoiler.server.send(Request::from_parts(head, body.into())).await.unwrap();
    let Some(Spoil::By(Fault::CutBehind)) = spoil else { return answer.map(Body::new) };
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
                self.spoiler.spoil(Some((method, within, Spoil::By(fault))));
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
                self.spoiler.spoil(Some((method, within, Spoil::By(fault))));
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

/// In the words of the server's authorizer.
const FORBIDDEN: Spoil = Spoil::Says(
    403,
    "pods is forbidden: User \"edge\" cannot list resource \"pods\" in API group \"\" at the \
     cluster scope",
);

/// A server that has just started has not read its Roles. One that was not away means what it says.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_was_away_refuses_for_now_only() {
    let bed = Bed::new("faults-forbidden").await;
    let list = async |spoil| {
        bed.spoiler.spoil(Some(("GET", "/pods", spoil)));
        bed.spoilt.list().await.unwrap_err()
    };
    let refused = list(FORBIDDEN).await;
    let is_told = matches!(&refused, Error::Invalid(text) if text.contains("deploy/kubernetes"));
    assert!(is_told, "{refused:?}");

    list(Spoil::By(Fault::Answer(503))).await;
    let refused = list(FORBIDDEN).await;
    assert!(matches!(refused, Error::Unreachable(_)), "{refused:?}");
    // What an admission says is about what was asked for, and no Role would mend it.
    let admission = "pods \"x\" is forbidden: violates PodSecurity \"restricted:latest\"";
    let refused = list(Spoil::Says(403, admission)).await;
    assert_eq!(refused, Error::Invalid(admission.to_owned()));
    bed.spoiler.spoil(Some(("POST", "/pods", Spoil::Says(403, admission))));
    let refused = bed.spoilt.start(&session("alice.test"), &spec(), G1).await.unwrap_err();
    assert_eq!(refused, Error::Invalid(admission.to_owned()));
}

/// A watch keeps the credentials that it began with: with others, the next call may do it.
#[tokio::test(flavor = "multi_thread")]
async fn a_watch_whose_credentials_are_refused_ends_and_the_next_call_is_tried() {
    let bed = Bed::new("faults-unknown").await;
    let (host, engine) = (session("alice.test"), &bed.bench.engine);
    let started = engine.start(&host, &spec(), G1).await.unwrap();
    let life = Some(&started.life);
    bed.spoiler.spoil(Some(("GET", WATCH.within, Spoil::By(Fault::Answer(401)))));
    let refused = bed.spoilt.sleep(&host, &spec(), life, Depth::Removed).await.unwrap_err();
    let is_told = matches!(&refused, Error::Unreachable(text) if text.contains("does not know us"));
    assert!(is_told, "{refused:?}");
    bed.spoiler.spoil(None);
    bed.spoilt.sleep(&host, &spec(), life, Depth::Removed).await.unwrap();
    assert_eq!(bed.listed().await, []);
}

/// What an edge may not see it cannot have marked; what it saw before is there still.
#[tokio::test(flavor = "multi_thread")]
async fn a_kind_that_an_edge_has_no_right_to_is_none_of_its() {
    let bed = Bed::new("faults-kinds").await;
    bed.bench.make("deployment/desk", "desk", &serving()).await;
    let (host, spec) = (session("alice.test"), scaled("deployment/desk"));
    let started = bed.bench.engine.start(&host, &spec, G1).await.unwrap();
    let away = async || {
        bed.spoiler.spoil(Some(("GET", "/pods", Spoil::By(Fault::Answer(503)))));
        bed.spoilt.list().await.unwrap_err();
    };
    for was_away in [false, true] {
        if was_away {
            away().await;
        }
        bed.spoiler.spoil(Some(("GET", "/statefulsets", FORBIDDEN)));
        assert_eq!(bed.spoilt.list().await.unwrap().len(), 1, "{was_away}");
    }
    away().await;
    bed.spoiler.spoil(Some(("GET", "/deployments", FORBIDDEN)));
    let refused = bed.spoilt.list().await.unwrap_err();
    assert!(matches!(refused, Error::Unreachable(_)), "{refused:?}");
    bed.bench.engine.sleep(&host, &spec, Some(&started.life), Depth::Removed).await.unwrap();
}

/// An error is cut, and a value that is cut in two is a secret still.
#[tokio::test(flavor = "multi_thread")]
async fn no_part_of_a_secret_is_told() {
    let bed = Bed::new("faults-secrets").await;
    let alice = session("alice.test");
    for secret in ["hunter2-hunter2", "-----BEGIN\n\tKEY-----", "{address}/hunter3", "x$(hunter4)"]
    {
        let env = [("S".to_owned(), secret.to_owned())].into();
        let spec = Spec { env, ..spec() };
        for behind in [0, 590, 4090] {
            bed.spoiler.spoil(Some(("POST", "/pods", Spoil::Echoes(behind))));
            let said = bed.spoilt.start(&alice, &spec, G1).await.unwrap_err().to_string();
            assert!(said.len() < 5000, "{}", said.len());
            for part in ["hunter", "BEGIN", "KEY", "0.0.0.0"] {
                assert!(!said.contains(part), "{secret}, {behind}: {said}");
            }
        }
    }
}

/// Each change is bound to what was read: who was slower takes nothing from who was faster.
#[tokio::test(flavor = "multi_thread")]
async fn a_workload_that_another_takes_in_between_stays_the_others() {
    let bed = Bed::new("faults-taken").await;
    bed.bench.make("deployment/desk", "desk", &serving()).await;
    let (alice, other) = (session("alice.test"), session(OTHER));
    let (spec, engine) = (scaled("deployment/desk"), &bed.bench.engine);
    for (method, within) in [("PATCH", "/desk"), ("PUT", "/scale")] {
        bed.spoiler.spoil(Some((method, within, Spoil::Taken)));
        let refused = bed.spoilt.start(&alice, &spec, G1).await.unwrap_err();
        let is_told = refused.to_string().contains(OTHER) && refused.is_retryable();
        assert!(is_told, "{method}: {refused:?}");
        let theirs = engine.start(&other, &spec, G1).await.unwrap();
        assert_eq!(bed.listed().await.len(), 1, "{method}");
        engine.sleep(&other, &spec, Some(&theirs.life), Depth::Removed).await.unwrap();
    }
}
