//! What the daemon tells, and what becomes of us when it goes.

use std::{net::TcpListener, path::Path, process::Command};

use dormouse::{
    engine::{
        Engine as _, EngineEvent, Error, Health, InstanceState,
        docker::{Config, Docker, Tls},
    },
    session::{Depth, Spec},
};
use futures::StreamExt as _;

use crate::{
    bench::{Bench, G1, G2, asleep, engine, eventually, get, next, running, session, spec, until},
    dockerd,
    existing::existing,
};

#[tokio::test]
async fn fifty_sessions_are_listed_with_their_states_and_no_stranger_among_them() {
    let bench = Bench::new("fifty");
    let spec = spec();
    let hosts: Vec<_> = (0..50).map(|n| session(&format!("s{n}.localhost"))).collect();
    let starts = futures::stream::iter(&hosts).map(|host| bench.start(host, &spec, G1));
    let started: Vec<_> = starts.buffered(8).collect().await;
    bench.sleep(&hosts[0], &spec, &started[0], Depth::Paused).await;
    bench.sleep(&hosts[1], &spec, &started[1], Depth::Stopped).await;
    let labels = ["--label=dormouse.owner=fifty", "--label=dormouse.session=s2.localhost"];
    bench.foreign("fifty-copy", &labels);

    let mut listed = bench.engine.list().await.unwrap();
    listed.sort_by_key(|instance| hosts.iter().position(|host| *host == instance.session));
    let sessions: Vec<_> = listed.iter().map(|instance| instance.session.clone()).collect();
    assert_eq!(sessions, hosts);
    assert_eq!(Some(listed[0].state), asleep(Depth::Paused));
    assert_eq!(Some(listed[1].state), asleep(Depth::Stopped));
    assert!(listed[2..].iter().all(|instance| Some(instance.state) == running()));
    let lives = listed.iter().map(|instance| instance.life.clone());
    assert!(lives.eq(started.into_iter().map(|started| Some(started.life))));
}

#[tokio::test]
async fn health_is_the_daemons_word() {
    let bench = Bench::new("health");
    let check = "HEALTHCHECK --interval=100ms --retries=2 CMD test -f /tmp/healthy";
    bench.rig.image("dormouse-test/health", &["--change", check]);
    let alice = session("alice.localhost");
    let spec = Spec { image: Some("dormouse-test/health".to_owned()), ..spec() };
    bench.start(&alice, &spec, G1).await;
    let mut events = bench.engine.events();
    let changed = EngineEvent::Changed(alice.clone());
    let is = async |health| {
        eventually("the health", async || {
            bench.state(&alice, &spec).await == Some(InstanceState::Running(health))
        })
        .await;
    };
    assert_eq!(next(&mut events).await, EngineEvent::Resync);
    is(Health::Unhealthy).await;
    bench.rig.docker(&["exec", &bench.name(&alice), "touch", "/tmp/healthy"]);
    until(&mut events, changed.clone()).await;
    is(Health::Healthy).await;
    let listed = bench.engine.list().await.unwrap();
    assert_eq!(listed[0].state, InstanceState::Running(Health::Healthy));
}

#[tokio::test]
async fn events_tell_what_others_do_to_ours_and_to_a_container_that_a_route_names() {
    let bench = Bench::new("events");
    let (alice, bob) = (session("alice.localhost"), session("bob.localhost"));
    let (ours, named) = (bench.name(&alice), "events-bob");
    bench.foreign(named, &[]);
    bench.start(&alice, &spec(), G1).await;
    bench.start(&bob, &existing(named), G1).await;
    let mut events = bench.engine.events();
    assert_eq!(next(&mut events).await, EngineEvent::Resync);
    for (session, name, spec) in [(&alice, ours.as_str(), spec()), (&bob, named, existing(named))] {
        for (verb, state) in [
            ("pause", asleep(Depth::Paused)),
            ("unpause", running()),
            ("kill", asleep(Depth::Stopped)),
            ("start", running()),
            ("stop", asleep(Depth::Stopped)),
        ] {
            bench.rig.docker(&[verb, name]);
            until(&mut events, EngineEvent::Changed(session.clone())).await;
            assert_eq!(bench.state(session, &spec).await, state, "{verb}");
        }
        bench.rig.docker(&["rm", name]);
        until(&mut events, EngineEvent::Changed(session.clone())).await;
        assert_eq!(bench.look(session, &spec).await, None);
    }
}

#[tokio::test]
async fn daemon_that_is_down_and_back_is_unreachable_then_resynced() {
    let rig = dockerd::own("outage", "");
    let bench = Bench::on(&rig, "outage");
    let alice = session("alice.localhost");
    let spec = spec();
    let first = bench.start(&alice, &spec, G1).await;
    let mut events = bench.engine.events();
    assert_eq!(next(&mut events).await, EngineEvent::Resync);

    rig.halt();
    let life = Some(&first.life);
    let errors = [
        bench.engine.start(&alice, &spec, G2).await.unwrap_err(),
        bench.engine.sleep(&alice, &spec, life, Depth::Stopped).await.unwrap_err(),
        bench.engine.inspect(&alice, &spec).await.unwrap_err(),
        bench.engine.list().await.unwrap_err(),
    ];
    for error in errors {
        let Error::Unreachable(text) = &error else { panic!("{error:?}") };
        assert!(text.contains(&rig.endpoint()), "{text}");
        assert!(error.is_retryable());
    }
    // An engine made while the daemon is down works once it is up.
    let late = engine(rig.endpoint(), "outage");
    let mut late_events = late.events();

    rig.start();
    until(&mut events, EngineEvent::Resync).await;
    until(&mut late_events, EngineEvent::Resync).await;
    assert_eq!(bench.state(&alice, &spec).await, asleep(Depth::Stopped));
    let second = late.start(&alice, &spec, G2).await.unwrap();
    assert!(get(&second.address).ends_with("hello\n"));
    until(&mut events, EngineEvent::Changed(alice.clone())).await;
}

/// A certificate authority, and certificates by it for a daemon on loopback and for an edge.
fn certificates(folder: &Path) {
    let script = r#"
        set -e
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 \
            -subj /CN=ca -keyout ca-key.pem -out ca.pem
        for whose in server client; do
            openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes \
                -subj /CN=$whose -keyout $whose-key.pem -out $whose.csr
            printf 'subjectAltName=IP:127.0.0.1\nextendedKeyUsage=%sAuth\n' $whose > ext
            openssl x509 -req -in $whose.csr -CA ca.pem -CAkey ca-key.pem -CAcreateserial \
                -days 2 -extfile ext -out $whose.pem
        done"#;
    let ran = Command::new("sh").args(["-c", script]).current_dir(folder).output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
}

#[tokio::test]
async fn daemon_behind_tls_takes_our_certificate_and_no_other() {
    let folder = tempfile::tempdir().unwrap();
    certificates(folder.path());
    let at = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let pem = |file: &str| folder.path().join(format!("{file}.pem"));
    let [ca, cert, key] =
        ["ca", "server", "server-key"].map(|file| pem(file).display().to_string());
    let _rig = dockerd::own(
        "tls",
        &format!("--host tcp://{at} --tlsverify --tlscacert {ca} --tlscert {cert} --tlskey {key}"),
    );
    let new = |cert, key| {
        let tls = Tls { ca: pem("ca"), cert: pem(cert), key: pem(key) };
        let endpoint = Some(format!("tcp://{at}"));
        Docker::new(Config { endpoint, tls: Some(tls), ..Config::default() }).unwrap()
    };
    assert_eq!(new("client", "client-key").list().await.unwrap(), []);
    let refused = new("server", "server-key").list().await.unwrap_err();
    assert!(matches!(refused, Error::Unreachable(_)), "{refused:?}");
    let refused = new("missing", "client-key").list().await.unwrap_err();
    assert!(!refused.to_string().is_empty());
    let endpoint = Some(format!("tcp://{at}"));
    let plain = Docker::new(Config { endpoint, ..Config::default() }).unwrap();
    assert!(plain.list().await.is_err());
}
