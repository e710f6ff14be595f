//! The Docker engine against a real daemon: each promise of `Engine`, and what others may do to a
//! container meanwhile.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod contract;
#[path = "support/dockerd.rs"]
mod dockerd;

use std::{
    collections::BTreeMap,
    fs::Permissions,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use dockerd::{IMAGE, Rig};
use dormouse::{
    engine::{
        Engine, EngineEvent, Error, Health, Instance, InstanceState, Started,
        docker::{Config, Docker, Tls},
    },
    session::{Address, Depth, DockerSpec, Generation, SessionId, Spec},
};
use futures::{StreamExt as _, future::join_all, stream::BoxStream};

const PATIENCE: Duration = Duration::from_secs(60);
const G1: Generation = Generation(1);
const G2: Generation = Generation(2);

/// One test's engine on a daemon; `owner` keeps it apart from other tests.
struct Bench<'a> {
    rig: &'a Rig,
    engine: Docker,
    owner: &'static str,
}

impl Bench<'static> {
    fn new(owner: &'static str) -> Self {
        Self::on(dockerd::shared(), owner)
    }
}

impl<'a> Bench<'a> {
    fn on(rig: &'a Rig, owner: &'static str) -> Self {
        Self { rig, engine: engine(rig.endpoint(), owner), owner }
    }

    fn name(&self, session: &SessionId) -> String {
        format!("dormouse-{}-{session}", self.owner)
    }

    /// A field of `docker inspect`, as JSON.
    fn field(&self, container: &str, path: &str) -> serde_json::Value {
        let format = format!("{{{{json {path}}}}}");
        let json = self.rig.docker(&["inspect", "--format", &format, container]);
        serde_json::from_str(&json).unwrap()
    }

    fn status(&self, container: &str) -> String {
        self.field(container, ".State.Status").as_str().unwrap().to_owned()
    }

    async fn start(&self, session: &SessionId, spec: &Spec, generation: Generation) -> Started {
        self.engine.start(session, spec, generation).await.unwrap()
    }

    async fn sleep(&self, session: &SessionId, spec: &Spec, started: &Started, to: Depth) {
        self.engine.sleep(session, spec, Some(&started.life), to).await.unwrap();
    }

    async fn look(&self, session: &SessionId, spec: &Spec) -> Option<Instance> {
        self.engine.inspect(session, spec).await.unwrap()
    }

    async fn state(&self, session: &SessionId, spec: &Spec) -> Option<InstanceState> {
        self.look(session, spec).await.map(|instance| instance.state)
    }

    /// A container that somebody else made.
    fn foreign(&self, name: &str, options: &[&str]) {
        let create = ["create", "--name", name];
        self.rig.docker(&[&create, options, &[IMAGE]].concat());
    }
}

impl Drop for Bench<'_> {
    fn drop(&mut self) {
        let owner = format!("label=dormouse.owner={}", self.owner);
        let ours = self.rig.try_docker(&["ps", "-aq", "--filter", &owner]).stdout;
        for id in String::from_utf8_lossy(&ours).split_whitespace() {
            self.rig.try_docker(&["rm", "-fv", id]);
        }
    }
}

fn engine(endpoint: String, owner: &str) -> Docker {
    Docker::new(Config {
        endpoint: Some(endpoint),
        owner: owner.to_owned(),
        call_timeout: PATIENCE,
        ..Config::default()
    })
    .unwrap()
}

fn session(host: &str) -> SessionId {
    SessionId::new(host)
}

fn spec() -> Spec {
    Spec {
        image: Some(IMAGE.to_owned()),
        docker: DockerSpec { grace: Duration::from_secs(1), ..DockerSpec::default() },
        ..Spec::default()
    }
}

fn shell(script: &str) -> Spec {
    Spec { command: ["sh", "-c", script].map(str::to_owned).into(), ..spec() }
}

fn running() -> Option<InstanceState> {
    Some(InstanceState::Running(Health::Unchecked))
}

fn asleep(depth: Depth) -> Option<InstanceState> {
    Some(InstanceState::Asleep(depth))
}

/// What the instance answers to `GET /`, once it listens.
fn get(address: &Address) -> String {
    let Address::Tcp(address) = address else { panic!("{address} is no TCP address") };
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = TcpStream::connect_timeout(address, PATIENCE).and_then(|mut stream| {
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).map(|_| answer)
        });
        match answer {
            Ok(answer) if !answer.is_empty() => return answer,
            other if Instant::now() > deadline => panic!("{address} does not answer: {other:?}"),
            _ => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

async fn next(events: &mut BoxStream<'static, EngineEvent>) -> EngineEvent {
    tokio::time::timeout(PATIENCE, events.next()).await.expect("an event").expect("no end")
}

/// Reads events until this one.
async fn until(events: &mut BoxStream<'static, EngineEvent>, wanted: EngineEvent) {
    let found = async { while next(events).await != wanted {} };
    tokio::time::timeout(PATIENCE, found).await.expect("the event in time");
}

/// Looks until it is so.
async fn eventually(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so().await {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

// ## Start

#[tokio::test]
async fn first_start_creates_a_container_that_answers() {
    let (bench, alice) = (Bench::new("create"), session("alice.localhost"));
    assert_eq!(bench.look(&alice, &spec()).await, None);
    let started = bench.start(&alice, &spec(), G1).await;
    assert!(get(&started.address).ends_with("hello\n"));
    let instance = bench.look(&alice, &spec()).await.unwrap();
    assert_eq!(instance.session, alice);
    assert_eq!(instance.generation, G1);
    assert_eq!(instance.life, Some(started.life));
    assert_eq!(Some(instance.state), running());
}

#[tokio::test]
async fn second_start_of_a_running_instance_is_the_same_life() {
    let (bench, alice) = (Bench::new("idempotent"), session("alice.localhost"));
    let first = bench.start(&alice, &spec(), G1).await;
    assert_eq!(bench.start(&alice, &spec(), G2).await, first);
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_starts_make_one_container() {
    let (bench, alice) = (Bench::new("herd"), session("alice.localhost"));
    let spec = spec();
    // Two edges that share an owner: nothing in one process keeps them apart.
    let engines: Vec<_> = (0..4).map(|_| engine(bench.rig.endpoint(), bench.owner)).collect();
    let starts = engines.iter().map(|engine| engine.start(&alice, &spec, G1));
    let started: Vec<_> = join_all(starts).await.into_iter().map(Result::unwrap).collect();
    assert!(started.iter().all(|each| *each == started[0]), "{started:?}");
    assert_eq!(bench.engine.list().await.unwrap().len(), 1);
}

#[tokio::test]
async fn stopped_instance_starts_as_a_new_life_of_the_same_container() {
    let (bench, alice) = (Bench::new("restart"), session("alice.localhost"));
    let first = bench.start(&alice, &spec(), G1).await;
    bench.sleep(&alice, &spec(), &first, Depth::Stopped).await;
    let id = bench.field(&bench.name(&alice), ".Id");
    let second = bench.start(&alice, &spec(), G2).await;
    assert_ne!(second.life, first.life);
    assert_eq!(bench.field(&bench.name(&alice), ".Id"), id);
    assert!(get(&second.address).ends_with("hello\n"));
}

#[tokio::test]
async fn host_that_is_no_container_name_gets_a_name_of_its_own() {
    let bench = Bench::new("names");
    let long = format!("{}.localhost", ["x".repeat(60).as_str(); 4].join("."));
    for host in [long.as_str(), "[::1]"] {
        let session = session(host);
        let started = bench.start(&session, &spec(), G1).await;
        assert!(get(&started.address).ends_with("hello\n"));
        bench.sleep(&session, &spec(), &started, Depth::Stopped).await;
    }
    assert_eq!(bench.engine.list().await.unwrap().len(), 2);
}

#[tokio::test]
async fn placeholders_in_command_and_environment_are_filled_in() {
    let (bench, alice) = (Bench::new("filled"), session("alice.localhost"));
    let script =
        "echo $AT $NAME {port} > /tmp/index.html; exec busybox httpd -f -p {address} -h /tmp";
    let env = [("AT", "{host}:{port}"), ("NAME", "alice")];
    let env = env.map(|(key, value)| (key.to_owned(), value.to_owned()));
    let spec = Spec { port: Some(9000), env: BTreeMap::from(env), ..shell(script) };
    let started = bench.start(&alice, &spec, G1).await;
    assert!(get(&started.address).ends_with("0.0.0.0:9000 alice 9000\n"));
}

#[tokio::test]
async fn limits_and_hardening_reach_the_daemon() {
    let (bench, alice) = (Bench::new("limits"), session("alice.localhost"));
    let folder = tempfile::tempdir().unwrap();
    // Only the mount keeps user 1000 from writing there.
    std::fs::set_permissions(folder.path(), Permissions::from_mode(0o777)).unwrap();
    let host = folder.path().display();
    let spec = Spec {
        memory: Some(64 << 20),
        nano_cpus: Some(500_000_000),
        pids: Some(50),
        volumes: vec![format!("{host}:/mnt:ro"), "dormouse-limits:/data".to_owned()],
        docker: DockerSpec {
            user: Some("1000:1000".to_owned()),
            cap_add: vec!["NET_BIND_SERVICE".to_owned()],
            tmpfs: vec!["/run".to_owned(), "/var:size=1m".to_owned()],
            ..spec().docker
        },
        ..spec()
    };
    let started = bench.start(&alice, &spec, G1).await;
    get(&started.address);
    let name = bench.name(&alice);
    let set = |key: &str| bench.field(&name, &format!(".HostConfig.{key}"));
    assert_eq!(set("Memory"), 64 << 20);
    assert_eq!(set("NanoCpus"), 500_000_000);
    assert_eq!(set("PidsLimit"), 50);
    assert_eq!(set("ReadonlyRootfs"), true);
    assert_eq!(set("CapDrop"), serde_json::json!(["ALL"]));
    assert_eq!(set("CapAdd"), serde_json::json!(["NET_BIND_SERVICE"]));
    assert_eq!(set("RestartPolicy.Name"), "no");
    assert_eq!(set("LogConfig.Config"), serde_json::json!({"max-size": "1m", "max-file": "2"}));
    // As the program inside meets them.
    let inside = |script: &str| {
        let ran = bench.rig.try_docker(&["exec", &name, "sh", "-c", script]);
        (ran.status.success(), String::from_utf8(ran.stdout).unwrap())
    };
    let status = inside("while read key value; do echo $key $value; done < /proc/self/status").1;
    assert!(status.contains("NoNewPrivs: 1"), "{status}");
    assert!(status.contains("CapBnd: 0000000000000400"), "{status}");
    assert!(status.contains("Uid: 1000 1000"), "{status}");
    let writable = |folder: &str| inside(&format!("touch {folder}/file")).0;
    assert!(["/tmp", "/run", "/var"].into_iter().all(writable));
    assert!(!["/", "/www", "/mnt"].into_iter().any(writable));
    assert!(!folder.path().join("file").exists());
}

#[tokio::test]
async fn published_port_is_dialled_anew_after_each_start() {
    let (bench, alice) = (Bench::new("publish"), session("alice.localhost"));
    let docker = DockerSpec { publish: Some("127.0.0.1".to_owned()), ..spec().docker };
    let spec = Spec { docker, ..spec() };
    let mut generation = G1;
    for _ in 0..2 {
        let started = bench.start(&alice, &spec, generation).await;
        let Address::Tcp(address) = started.address else { panic!("no TCP") };
        assert!(address.ip().is_loopback());
        assert!(get(&started.address).ends_with("hello\n"));
        bench.sleep(&alice, &spec, &started, Depth::Stopped).await;
        generation = generation.next();
    }
}

#[tokio::test]
async fn instance_is_dialled_on_the_network_that_it_joins() {
    let (bench, alice) = (Bench::new("network"), session("alice.localhost"));
    bench.rig.try_docker(&["network", "create", "sessions"]);
    let docker = DockerSpec { network: Some("sessions".to_owned()), ..spec().docker };
    let spec = Spec { docker, ..spec() };
    let started = bench.start(&alice, &spec, G1).await;
    let path = ".NetworkSettings.Networks.sessions.IPAddress";
    let ip = bench.field(&bench.name(&alice), path);
    assert_eq!(started.address.to_string(), format!("{}:8080", ip.as_str().unwrap()));
    assert!(get(&started.address).ends_with("hello\n"));
}

#[tokio::test]
async fn edited_route_takes_effect_at_the_next_start_and_not_under_a_running_instance() {
    let (bench, alice) = (Bench::new("edited"), session("alice.localhost"));
    let first = bench.start(&alice, &spec(), G1).await;
    let edited = Spec { pids: Some(77), ..spec() };
    assert_eq!(bench.start(&alice, &edited, G1).await, first);
    bench.sleep(&alice, &edited, &first, Depth::Stopped).await;
    bench.start(&alice, &edited, G2).await;
    assert_eq!(bench.field(&bench.name(&alice), ".HostConfig.PidsLimit"), 77);
    assert_eq!(bench.look(&alice, &edited).await.unwrap().generation, G2);
}

// ## The contract

#[tokio::test]
async fn the_contract() {
    let bench = Bench::new("contract");
    let engine = Arc::new(engine(bench.rig.endpoint(), bench.owner));
    contract::run(engine, |_| spec()).await;
    let left = bench.engine.list().await.unwrap();
    assert!(left.iter().all(|instance| matches!(instance.state, InstanceState::Asleep(_))));
}

#[tokio::test]
async fn the_contract_for_an_instance_that_hangs() {
    let bench = Bench::new("contract-hang");
    let engine = Arc::new(engine(bench.rig.endpoint(), bench.owner));
    let script = "trap '' TERM; busybox httpd -p {address} -h /www; while true; do sleep 1; done";
    contract::hang(engine, |_| shell(script)).await;
}

#[tokio::test]
async fn the_contract_for_an_instance_that_dies() {
    let bench = Bench::new("contract-death");
    let engine = Arc::new(engine(bench.rig.endpoint(), bench.owner));
    let kill = async |started: Started| {
        let (container, _) = started.life.as_str().split_once('@').unwrap();
        bench.rig.docker(&["kill", container]);
    };
    contract::death(engine, |_| spec(), kill).await;
}

// ## Refusals

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
        ("runsk", Spec { docker: runtime, ..spec() }),
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
    let spec = Spec { env, ..shell("echo cannot use $TOKEN; exit 3") };
    // It may live just long enough to be seen running.
    eventually("a start that saw the end", async || {
        match bench.engine.start(&alice, &spec, G1).await {
            Err(Error::Failed(text)) => {
                assert!(text.contains("exit code 3"), "{text}");
                assert!(text.contains("cannot use ***"), "{text}");
                assert!(!text.contains("hunter2"), "{text}");
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

// ## Sleep

#[tokio::test]
async fn paused_instance_resumes_as_the_same_life_at_the_same_address() {
    let (bench, alice) = (Bench::new("pause"), session("alice.localhost"));
    let first = bench.start(&alice, &spec(), G1).await;
    for _ in 0..2 {
        bench.sleep(&alice, &spec(), &first, Depth::Paused).await;
        assert_eq!(bench.state(&alice, &spec()).await, asleep(Depth::Paused));
    }
    assert_eq!(bench.start(&alice, &spec(), G2).await, first);
    assert_eq!(bench.state(&alice, &spec()).await, running());
    assert!(get(&first.address).ends_with("hello\n"));
}

#[tokio::test]
async fn instance_that_ignores_term_is_killed_after_its_grace() {
    let (bench, alice) = (Bench::new("stubborn"), session("alice.localhost"));
    let spec = shell("trap '' TERM; while true; do sleep 1; done");
    let started = bench.start(&alice, &spec, G1).await;
    bench.sleep(&alice, &spec, &started, Depth::Stopped).await;
    assert_eq!(bench.state(&alice, &spec).await, asleep(Depth::Stopped));
    assert_eq!(bench.field(&bench.name(&alice), ".State.ExitCode"), 137);
}

#[tokio::test]
async fn paused_instance_ends_in_its_own_way_when_stopped() {
    let (bench, alice) = (Bench::new("thaw"), session("alice.localhost"));
    let script = "trap 'exit 7' TERM; touch /tmp/trap; while true; do sleep 0.1; done";
    let docker = DockerSpec { grace: PATIENCE, ..spec().docker };
    let spec = Spec { docker, ..shell(script) };
    let started = bench.start(&alice, &spec, G1).await;
    // Until the trap is set, TERM means nothing to it: PID 1 has no default action.
    let set = ["exec", &bench.name(&alice), "test", "-f", "/tmp/trap"];
    eventually("the trap", async || bench.rig.try_docker(&set).status.success()).await;
    bench.sleep(&alice, &spec, &started, Depth::Paused).await;
    bench.sleep(&alice, &spec, &started, Depth::Stopped).await;
    assert_eq!(bench.field(&bench.name(&alice), ".State.ExitCode"), 7);
    bench.sleep(&alice, &spec, &started, Depth::Stopped).await;
}

#[tokio::test]
async fn removed_instance_is_gone_and_its_named_volume_stays() {
    let (bench, alice) = (Bench::new("removed"), session("alice.localhost"));
    let volumes = vec!["dormouse-removed:/data".to_owned()];
    let spec = Spec { volumes, ..spec() };
    let name = bench.name(&alice);
    let first = bench.start(&alice, &spec, G1).await;
    bench.rig.docker(&["exec", &name, "touch", "/data/kept"]);
    bench.sleep(&alice, &spec, &first, Depth::Removed).await;
    assert_eq!(bench.look(&alice, &spec).await, None);
    bench.sleep(&alice, &spec, &first, Depth::Removed).await;
    let second = bench.start(&alice, &spec, G2).await;
    assert_ne!(second.life, first.life);
    bench.rig.docker(&["exec", &name, "cat", "/data/kept"]);
    bench.sleep(&alice, &spec, &second, Depth::Paused).await;
    bench.sleep(&alice, &spec, &second, Depth::Removed).await;
    assert_eq!(bench.look(&alice, &spec).await, None);
    bench.rig.docker(&["volume", "rm", "dormouse-removed"]);
}

#[tokio::test]
async fn sleep_of_an_older_life_leaves_a_newer_one_alone() {
    let (bench, alice) = (Bench::new("fence"), session("alice.localhost"));
    let first = bench.start(&alice, &spec(), G1).await;
    bench.sleep(&alice, &spec(), &first, Depth::Stopped).await;
    let second = bench.start(&alice, &spec(), G2).await;
    for depth in [Depth::Paused, Depth::Stopped, Depth::Removed] {
        bench.sleep(&alice, &spec(), &first, depth).await;
        assert_eq!(bench.look(&alice, &spec()).await.unwrap().life.as_ref(), Some(&second.life));
        assert_eq!(bench.state(&alice, &spec()).await, running());
    }
    bench.sleep(&alice, &spec(), &second, Depth::Removed).await;
    let third = bench.start(&alice, &spec(), Generation(3)).await;
    bench.sleep(&alice, &spec(), &second, Depth::Removed).await;
    assert_eq!(bench.state(&alice, &spec()).await, running());
    assert!(get(&third.address).ends_with("hello\n"));
}

#[tokio::test]
async fn sleep_without_a_life_is_for_whatever_is_there_and_for_nothing() {
    let (bench, alice) = (Bench::new("lifeless"), session("alice.localhost"));
    bench.engine.sleep(&alice, &spec(), None, Depth::Stopped).await.unwrap();
    bench.start(&alice, &spec(), G1).await;
    bench.engine.sleep(&alice, &spec(), None, Depth::Stopped).await.unwrap();
    assert_eq!(bench.state(&alice, &spec()).await, asleep(Depth::Stopped));
    let error = bench.engine.sleep(&alice, &spec(), None, Depth::Suspended).await.unwrap_err();
    assert!(matches!(error, Error::Invalid(_)), "{error:?}");
}

// ## Containers that exist

fn existing(container: &str) -> Spec {
    let docker = DockerSpec { container: Some(container.to_owned()), ..spec().docker };
    Spec { docker, ..Spec::default() }
}

#[tokio::test]
async fn existing_container_is_started_and_never_created_or_removed() {
    let (bench, alice) = (Bench::new("existing"), session("alice.localhost"));
    let spec = existing("existing-alice");
    let error = bench.engine.start(&alice, &spec, G1).await.unwrap_err();
    assert!(matches!(&error, Error::Missing(text) if text.contains("`existing-alice`")));
    assert_eq!(bench.look(&alice, &spec).await, None);

    bench.foreign("existing-alice", &[]);
    let started = bench.start(&alice, &spec, G1).await;
    assert!(get(&started.address).ends_with("hello\n"));
    let instance = bench.look(&alice, &spec).await.unwrap();
    assert_eq!((instance.session.clone(), instance.generation), (alice.clone(), Generation(0)));
    assert_eq!(bench.engine.list().await.unwrap(), []);

    let life = Some(&started.life);
    let refused = bench.engine.sleep(&alice, &spec, life, Depth::Removed).await.unwrap_err();
    assert!(matches!(refused, Error::Invalid(_)), "{refused:?}");
    assert_eq!(bench.state(&alice, &spec).await, running());
    bench.sleep(&alice, &spec, &started, Depth::Paused).await;
    assert_eq!(bench.start(&alice, &spec, G2).await, started);
    bench.sleep(&alice, &spec, &started, Depth::Stopped).await;
    assert_eq!(bench.status("existing-alice"), "exited");
    bench.rig.docker(&["rm", "existing-alice"]);
}

#[tokio::test]
async fn existing_container_is_found_by_its_label_when_exactly_one_has_it() {
    let (bench, alice) = (Bench::new("labelled"), session("alice.localhost"));
    let label = Some("app=alice-desk".to_owned());
    let spec = Spec { docker: DockerSpec { label, ..spec().docker }, ..Spec::default() };
    let error = bench.engine.start(&alice, &spec, G1).await.unwrap_err();
    assert!(matches!(&error, Error::Missing(text) if text.contains("app=alice-desk")));

    bench.foreign("labelled-1", &["--label", "app=alice-desk"]);
    let started = bench.start(&alice, &spec, G1).await;
    assert!(get(&started.address).ends_with("hello\n"));
    assert_eq!(bench.status("labelled-1"), "running");

    bench.foreign("labelled-2", &["--label", "app=alice-desk"]);
    let error = bench.engine.start(&alice, &spec, G1).await.unwrap_err();
    assert!(matches!(&error, Error::Conflict(text) if text.contains("2 containers")));
    bench.rig.docker(&["rm", "-f", "labelled-1", "labelled-2"]);
}

// ## What the daemon tells

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
