//! One test's engine on a daemon, and what may be asked of both.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::{Duration, Instant},
};

use dormouse::{
    engine::{
        Engine as _, EngineEvent, Health, Instance, InstanceState, Started,
        docker::{Config, Docker},
    },
    session::{Address, Depth, DockerSpec, Generation, SessionId, Spec},
};
use futures::{StreamExt as _, stream::BoxStream};

use crate::dockerd::{self, IMAGE, Rig};

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
pub(crate) const G1: Generation = Generation(1);
pub(crate) const G2: Generation = Generation(2);

/// One test's engine on a daemon; `owner` keeps it apart from other tests.
pub(crate) struct Bench<'a> {
    pub(crate) rig: &'a Rig,
    pub(crate) engine: Docker,
    pub(crate) owner: &'static str,
}

impl Bench<'static> {
    pub(crate) fn new(owner: &'static str) -> Self {
        Self::on(dockerd::shared(), owner)
    }
}

impl<'a> Bench<'a> {
    pub(crate) fn on(rig: &'a Rig, owner: &'static str) -> Self {
        Self { rig, engine: engine(rig.endpoint(), owner), owner }
    }

    pub(crate) fn name(&self, session: &SessionId) -> String {
        format!("dormouse-{}-{session}", self.owner)
    }

    /// A field of `docker inspect`, as JSON.
    pub(crate) fn field(&self, container: &str, path: &str) -> serde_json::Value {
        let format = format!("{{{{json {path}}}}}");
        let json = self.rig.docker(&["inspect", "--format", &format, container]);
        serde_json::from_str(&json).unwrap()
    }

    pub(crate) fn status(&self, container: &str) -> String {
        self.field(container, ".State.Status").as_str().unwrap().to_owned()
    }

    pub(crate) async fn start(
        &self,
        session: &SessionId,
        spec: &Spec,
        generation: Generation,
    ) -> Started {
        self.engine.start(session, spec, generation).await.unwrap()
    }

    pub(crate) async fn sleep(
        &self,
        session: &SessionId,
        spec: &Spec,
        started: &Started,
        to: Depth,
    ) {
        self.engine.sleep(session, spec, Some(&started.life), to).await.unwrap();
    }

    pub(crate) async fn look(&self, session: &SessionId, spec: &Spec) -> Option<Instance> {
        self.engine.inspect(session, spec).await.unwrap()
    }

    pub(crate) async fn state(&self, session: &SessionId, spec: &Spec) -> Option<InstanceState> {
        self.look(session, spec).await.map(|instance| instance.state)
    }

    /// A container that somebody else made.
    pub(crate) fn foreign(&self, name: &str, options: &[&str]) {
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

pub(crate) fn engine(endpoint: String, owner: &str) -> Docker {
    Docker::new(Config {
        endpoint: Some(endpoint),
        owner: owner.to_owned(),
        call_timeout: PATIENCE,
        ..Config::default()
    })
    .unwrap()
}

pub(crate) fn session(host: &str) -> SessionId {
    SessionId::new(host)
}

pub(crate) fn spec() -> Spec {
    Spec {
        image: Some(IMAGE.to_owned()),
        docker: DockerSpec { grace: Duration::from_secs(1), ..DockerSpec::default() },
        ..Spec::default()
    }
}

pub(crate) fn shell(script: &str) -> Spec {
    Spec { command: ["sh", "-c", script].map(str::to_owned).into(), ..spec() }
}

pub(crate) fn running() -> Option<InstanceState> {
    Some(InstanceState::Running(Health::Unchecked))
}

pub(crate) fn asleep(depth: Depth) -> Option<InstanceState> {
    Some(InstanceState::Asleep(depth))
}

/// What the instance answers to `GET /`, once it listens.
pub(crate) fn get(address: &Address) -> String {
    let (Address::Tcp(address) | Address::Forwarded(address)) = address else {
        panic!("{address} is no TCP address")
    };
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

pub(crate) async fn next(events: &mut BoxStream<'static, EngineEvent>) -> EngineEvent {
    tokio::time::timeout(PATIENCE, events.next()).await.expect("an event").expect("no end")
}

/// Reads events until this one.
pub(crate) async fn until(events: &mut BoxStream<'static, EngineEvent>, wanted: EngineEvent) {
    let found = async { while next(events).await != wanted {} };
    tokio::time::timeout(PATIENCE, found).await.expect("the event in time");
}

/// Looks until it is so.
pub(crate) async fn eventually(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so().await {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
