//! Whatever one call to the daemon comes to, the error says it, and the next try ends in the right
//! state: one container, no more.

use std::{
    path::PathBuf,
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
        Engine as _, EngineEvent, Error, InstanceState,
        docker::{Config, Docker},
    },
    session::Depth,
};
use http_body_util::BodyExt as _;
use hyper_util::rt::TokioIo;
use tokio::net::{UnixListener, UnixStream};

use crate::{
    bench::{Bench, G1, G2, next, session, spec, until},
    spoilt::{FAULTS, Fault, cut},
};

/// Stands before a real daemon and spoils one kind of call.
#[derive(Clone)]
struct Spoiler {
    daemon: PathBuf,
    /// What the call's method and path hold, and what becomes of it.
    spoilt: Arc<Mutex<Option<(&'static str, Fault)>>>,
}

impl Spoiler {
    /// Its endpoint.
    fn listen(&self, folder: &std::path::Path) -> String {
        let socket = folder.join("spoilt.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let app = axum::Router::new().fallback(answer).with_state(self.clone());
        // Ends with the test's runtime.
        drop(tokio::runtime::Handle::current().spawn(async { axum::serve(listener, app).await }));
        format!("unix://{}", socket.display())
    }

    fn spoil(&self, spoilt: Option<(&'static str, Fault)>) {
        *self.spoilt.lock().unwrap() = spoilt;
    }
}

async fn answer(State(spoiler): State<Spoiler>, request: Request) -> Response {
    let call = format!("{} {}", request.method(), request.uri().path());
    let spoilt = *spoiler.spoilt.lock().unwrap();
    let fault = spoilt.filter(|(which, _)| call.contains(which)).map(|(_, fault)| fault);
    match fault {
        Some(Fault::Answer(status)) => {
            let says = "{\"message\": \"as told\"}";
            return (StatusCode::from_u16(status).unwrap(), says).into_response();
        }
        Some(Fault::Silence) => std::future::pending().await,
        Some(Fault::CutBefore) => return cut(),
        Some(Fault::CutBehind) | None => {}
    }
    let stream = TokioIo::new(UnixStream::connect(&spoiler.daemon).await.unwrap());
    let (mut daemon, connection) = hyper::client::conn::http1::handshake(stream).await.unwrap();
    drop(tokio::runtime::Handle::current().spawn(connection));
    let answer = daemon.send_request(request).await.unwrap();
    if fault.is_none() {
        return answer.map(Body::new);
    }
    // Only now has the daemon done all of it.
    answer.into_body().collect().await.unwrap();
    cut()
}

fn told(error: &Error, fault: Fault) -> bool {
    match fault {
        Fault::Answer(429 | 503) => error.is_retryable() && error.to_string().contains("as told"),
        Fault::Answer(_) => matches!(error, Error::Failed(text) if text.contains("as told")),
        Fault::Silence => matches!(error, Error::Timeout { .. }),
        Fault::CutBefore | Fault::CutBehind => {
            matches!(error, Error::Unreachable(_) | Error::Failed(_))
        }
    }
}

fn bed(owner: &'static str) -> (Bench<'static>, Docker, Spoiler, tempfile::TempDir) {
    let bench = Bench::new(owner);
    let folder = tempfile::tempdir().unwrap();
    let daemon = bench.rig.endpoint().trim_start_matches("unix://").into();
    let spoiler = Spoiler { daemon, spoilt: Arc::default() };
    let engine = Docker::new(Config {
        endpoint: Some(spoiler.listen(folder.path())),
        owner: owner.to_owned(),
        call_timeout: Duration::from_secs(3),
        ..Config::default()
    });
    (bench, engine.unwrap(), spoiler, folder)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_of_which_one_call_fails_says_so_and_the_next_is_whole() {
    let (bench, engine, spoiler, _folder) = bed("faults-start");
    let alice = session("alice.test");
    for call in ["/create", "/start", "/json"] {
        for fault in FAULTS {
            spoiler.spoil(Some((call, fault)));
            let failed = engine.start(&alice, &spec(), G1).await;
            match failed {
                Err(error) => assert!(told(&error, fault), "{call} {fault:?}: {error:?}"),
                // An answer that nobody needs may be lost.
                Ok(_) => assert!(matches!(fault, Fault::CutBehind), "{call} {fault:?}"),
            }
            spoiler.spoil(None);
            let started = engine.start(&alice, &spec(), G2).await.unwrap();
            let listed = engine.list().await.unwrap();
            assert_eq!(listed.len(), 1, "{call} {fault:?}: {listed:?}");
            assert!(matches!(listed[0].state, InstanceState::Running(_)), "{call} {fault:?}");
            engine.sleep(&alice, &spec(), Some(&started.life), Depth::Removed).await.unwrap();
            assert_eq!(engine.list().await.unwrap(), [], "{call} {fault:?}");
        }
    }
    drop(bench);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sleep_of_which_one_call_fails_says_so_and_the_next_ends_it() {
    let (bench, engine, spoiler, _folder) = bed("faults-sleep");
    let alice = session("alice.test");
    let calls = [
        (Depth::Paused, "/pause"),
        (Depth::Stopped, "/stop"),
        (Depth::Removed, "DELETE "),
        (Depth::Stopped, "/json"),
    ];
    for (depth, call) in calls {
        for fault in FAULTS {
            let started = engine.start(&alice, &spec(), G1).await.unwrap();
            spoiler.spoil(Some((call, fault)));
            if let Err(error) = engine.sleep(&alice, &spec(), Some(&started.life), depth).await {
                assert!(told(&error, fault), "{call} {fault:?}: {error:?}");
            }
            spoiler.spoil(None);
            engine.sleep(&alice, &spec(), Some(&started.life), depth).await.unwrap();
            let found = engine.inspect(&alice, &spec()).await.unwrap();
            let expected = (depth < Depth::Removed).then_some(InstanceState::Asleep(depth));
            assert_eq!(found.map(|instance| instance.state), expected, "{call} {fault:?}");
        }
    }
    drop(bench);
}

/// Proxies before the socket let some calls through and refuse others.
#[tokio::test(flavor = "multi_thread")]
async fn events_come_where_info_is_refused_and_their_own_refusal_is_told() {
    let (bench, engine, spoiler, _folder) = bed("faults-proxy");
    let alice = session("alice.test");
    spoiler.spoil(Some(("/info", Fault::Answer(403))));
    let mut events = engine.events();
    assert_eq!(next(&mut events).await, EngineEvent::Resync);
    bench.start(&alice, &spec(), G1).await;
    until(&mut events, EngineEvent::Changed(alice.clone())).await;
    drop(events);

    spoiler.spoil(Some(("/events", Fault::Answer(403))));
    let mut events = engine.events();
    let told = async {
        loop {
            if let EngineEvent::Deaf(why) = next(&mut events).await {
                break why;
            }
        }
    };
    let why = told.await;
    assert!(why.contains("403") && why.contains("as told"), "{why}");
    spoiler.spoil(None);
    until(&mut events, EngineEvent::Resync).await;
    bench.rig.docker(&["kill", &bench.name(&alice)]);
    until(&mut events, EngineEvent::Changed(alice)).await;
}
