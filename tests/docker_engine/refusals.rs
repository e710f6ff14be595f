//! What cannot be started, and what is said of it.

use std::{collections::BTreeMap, net::TcpListener, time::Duration};

use dormouse::{
    engine::{
        Engine as _, Error,
        docker::{Config, Docker},
    },
    session::{Depth, DockerSpec, Spec},
};

use crate::{
    bench::{Bench, G1, eventually, session, shell, spec},
    existing::existing,
};

#[tokio::test]
async fn missing_image_says_how_to_get_it() {
    let (bench, alice) = (Bench::new("image"), session("alice.localhost"));
    let spec = Spec { image: Some("nowhere/nothing:1".to_owned()), ..spec() };
    let text = "image `nowhere/nothing:1` is not on the daemon: docker pull nowhere/nothing:1";
    let error = bench.engine.start(&alice, &spec, G1).await.unwrap_err();
    assert_eq!(error, Error::Missing(text.to_owned()));
    assert!(!error.is_retryable());
}

#[tokio::test]
async fn name_that_a_stranger_has_is_a_conflict_and_the_stranger_is_left_alone() {
    let (bench, alice) = (Bench::new("stranger"), session("alice.localhost"));
    let name = bench.name(&alice);
    bench.foreign(&name, &[]);
    let error = bench.engine.start(&alice, &spec(), G1).await.unwrap_err();
    assert!(matches!(&error, Error::Conflict(text) if text.contains(&name)), "{error:?}");
    assert_eq!(bench.look(&alice, &spec()).await, None);
    bench.engine.sleep(&alice, &spec(), None, Depth::Removed).await.unwrap();
    assert_eq!(bench.status(&name), "created");
    bench.rig.docker(&["rm", &name]);
}

#[tokio::test]
async fn what_the_daemon_does_not_have_is_invalid_and_leaves_nothing_behind() {
    let (bench, alice) = (Bench::new("invalid"), session("alice.localhost"));
    let docker = || spec().docker;
    let runtime = DockerSpec { runtime: Some("runsk".to_owned()), ..docker() };
    let network = DockerSpec { network: Some("no-such-net".to_owned()), ..docker() };
    let none = DockerSpec { network: Some("none".to_owned()), ..docker() };
    let publish = DockerSpec { publish: Some("example.com".to_owned()), ..docker() };
    let specs = [
        ("the daemon has no runtime `runsk`, only: ", Spec { docker: runtime, ..spec() }),
        ("no-such-net", Spec { docker: network, ..spec() }),
        ("no address on the network `none`", Spec { docker: none, ..spec() }),
        ("address of the Docker host", Spec { docker: publish, ..spec() }),
        ("no-such-program", Spec { command: vec!["no-such-program".to_owned()], ..spec() }),
        ("/no/such/folder", Spec { volumes: vec!["/no/such/folder:/mnt".to_owned()], ..spec() }),
        ("volume `nonsense`", Spec { volumes: vec!["nonsense".to_owned()], ..spec() }),
        ("needs `image`", Spec { image: None, ..spec() }),
    ];
    for (text, spec) in specs {
        let error = bench.engine.start(&alice, &spec, G1).await.unwrap_err();
        assert!(matches!(&error, Error::Invalid(said) if said.contains(text)), "{text}: {error:?}");
        bench.engine.sleep(&alice, &spec, None, Depth::Removed).await.unwrap();
        assert_eq!(bench.look(&alice, &spec).await, None);
    }
}

#[tokio::test]
async fn start_that_failed_half_way_is_cleaned_up_whatever_the_depth() {
    let (bench, alice) = (Bench::new("halfway"), session("alice.localhost"));
    let spec = Spec { command: vec!["no-such-program".to_owned()], ..spec() };
    bench.engine.start(&alice, &spec, G1).await.unwrap_err();
    assert_eq!(bench.status(&bench.name(&alice)), "created");
    bench.engine.sleep(&alice, &spec, None, Depth::Stopped).await.unwrap();
    assert_eq!(bench.look(&alice, &spec).await, None);
}

#[tokio::test]
async fn instance_that_ends_at_once_tells_its_exit_code_and_last_lines_and_no_secret() {
    let (bench, alice) = (Bench::new("ends"), session("alice.localhost"));
    let env = BTreeMap::from([("TOKEN".to_owned(), "hunter2hunter2".to_owned())]);
    // The first is where the last KiB begins: what is left of it is a secret still.
    let script = "echo $TOKEN$(printf %985s | tr ' ' x); echo cannot use $TOKEN; exit 3";
    let spec = Spec { env, ..shell(script) };
    // It may live just long enough to be seen running.
    eventually("a start that saw the end", async || {
        match bench.engine.start(&alice, &spec, G1).await {
            Err(Error::Failed(text)) => {
                assert!(text.contains("exit code 3"), "{text}");
                assert!(text.contains("cannot use ***"), "{text}");
                assert!(!text.contains("ter2"), "{text}");
                true
            }
            Ok(_) => false,
            Err(other) => panic!("{other:?}"),
        }
    })
    .await;
}

#[tokio::test]
async fn port_in_use_is_a_conflict() {
    let bench = Bench::new("ports");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let publish = format!("127.0.0.1:{}:8080", taken.local_addr().unwrap().port());
    bench.foreign("ports-taken", &["--publish", &publish]);
    let spec = existing("ports-taken");
    let error = bench.engine.start(&session("ports.localhost"), &spec, G1).await.unwrap_err();
    assert!(matches!(&error, Error::Conflict(_)), "{error:?}");
    bench.rig.docker(&["rm", "-f", "ports-taken"]);
}

#[tokio::test]
async fn daemon_that_never_answers_is_a_timeout() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("mute.sock");
    let _mute = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let engine = Docker::new(Config {
        endpoint: Some(format!("unix://{}", socket.display())),
        call_timeout: Duration::from_millis(100),
        ..Config::default()
    })
    .unwrap();
    let error = engine.list().await.unwrap_err();
    assert_eq!(error, Error::Timeout { call: "list", after: Duration::from_millis(100) });
    assert!(error.is_retryable());
}

#[test]
fn endpoint_that_gives_root_away_or_means_nothing_is_refused() {
    let new = |endpoint: &str| {
        Docker::new(Config { endpoint: Some(endpoint.to_owned()), ..Config::default() })
    };
    for endpoint in ["tcp://192.0.2.1:2375", "tcp://docker.example.com:2375", "unix://", "docker"] {
        assert!(matches!(new(endpoint), Err(Error::Invalid(_))), "{endpoint}");
    }
    for endpoint in ["tcp://127.0.0.1:2375", "tcp://[::1]:2375", "tcp://proxy:2375", "ssh://me@h"] {
        assert!(new(endpoint).is_ok(), "{endpoint}");
    }
}
