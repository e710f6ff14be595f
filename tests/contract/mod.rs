//! One suite for every engine: each sentence of the docs of [`Engine`], against the real backend.
//!
//! An engine's test calls [`run`], and [`hang`] and [`death`] with an instance that can do that.
//! The suite knows no backend: it sees an engine through the trait and an instance through its
//! address. Every session it makes is asleep, as deep as the engine can, when it ends well.
#![expect(clippy::unwrap_used, unreachable_pub, reason = "a test's unwrap is its assertion")]
#![allow(dead_code, reason = "a backend may have no instance that hangs or dies on demand")]

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use dormouse::{
    engine::{Engine, EngineEvent, Instance, InstanceState, Life, Started},
    session::{Address, Depth, Generation, SessionId, Spec},
};
use futures::StreamExt;

/// Longer than anything here may take on a busy machine; never waited for in full when all is well.
const DEADLINE: Duration = Duration::from_secs(20);

/// Everything that needs nothing but an instance that listens where it is told to.
pub async fn run(engine: Arc<dyn Engine>, make_spec: impl Fn(&SessionId) -> Spec) {
    let bed = Bed { engine, make_spec };
    bed.depths_are_listed_lightest_first();
    bed.nothing_there_is_a_success().await;
    bed.start_returns_where_it_listens().await;
    bed.start_is_idempotent().await;
    bed.every_depth_can_be_woken_from().await;
    bed.paused_goes_deeper().await;
    bed.an_old_life_cannot_stop_a_newer_one().await;
    bed.without_a_life_whatever_is_there_sleeps().await;
    bed.an_abandoned_start_can_be_put_to_sleep().await;
    bed.sessions_do_not_touch_each_other().await;
    bed.list_and_inspect_agree().await;
}

/// `make_spec` makes an instance that ignores every polite request to end.
pub async fn hang(engine: Arc<dyn Engine>, make_spec: impl Fn(&SessionId) -> Spec) {
    let bed = Bed { engine, make_spec };
    let session = bed.session("hang");
    let started = bed.start(&session, 1).await;
    answers(&started.address).await;
    bed.sleep(&session, Some(&started.life), bed.deepest()).await;
    assert!(!bed.runs(&session).await, "ends a hang by force");
    refuses(&started.address).await;
}

/// `kill` ends a running instance from outside, behind the engine's back.
pub async fn death<K, F>(engine: Arc<dyn Engine>, make_spec: impl Fn(&SessionId) -> Spec, kill: K)
where
    K: Fn(Started) -> F,
    F: Future<Output = ()>,
{
    let bed = Bed { engine, make_spec };
    let session = bed.session("death");
    let (mut first, mut second) = (bed.engine.events(), bed.engine.events());
    let started = bed.start(&session, 1).await;
    answers(&started.address).await;

    kill(started.clone()).await;
    let told = async {
        for events in [&mut first, &mut second] {
            loop {
                match events.next().await.expect("events have no end") {
                    EngineEvent::Changed(who) if who != session => {}
                    // Who begins to listen late is told to look at everything.
                    EngineEvent::Changed(_) | EngineEvent::Resync | EngineEvent::Deaf(_) => {
                        if !bed.runs(&session).await {
                            break;
                        }
                    }
                }
            }
        }
    };
    tokio::time::timeout(DEADLINE, told).await.expect("every subscriber is told of a death");

    bed.sleep(&session, Some(&started.life), bed.deepest()).await;
    let again = bed.start(&session, 2).await;
    assert_ne!(again.life, started.life, "what died does not come back as the same life");
    answers(&again.address).await;
    bed.sleep(&session, Some(&again.life), bed.deepest()).await;
}

struct Bed<S> {
    engine: Arc<dyn Engine>,
    make_spec: S,
}

impl<S: Fn(&SessionId) -> Spec> Bed<S> {
    fn depths_are_listed_lightest_first(&self) {
        assert!(!self.engine.kind().is_empty());
        let depths = self.engine.depths();
        assert!(!depths.is_empty());
        assert!(depths.is_sorted_by(|a, b| a < b), "{depths:?}");
    }

    async fn nothing_there_is_a_success(&self) {
        let session = self.session("nothing");
        assert_eq!(self.inspect(&session).await, None);
        for &depth in self.engine.depths() {
            self.sleep(&session, None, depth).await;
            self.sleep(&session, Some(&Life::new("1:1")), depth).await;
        }
        assert_eq!(self.inspect(&session).await, None);
    }

    async fn start_returns_where_it_listens(&self) {
        let session = self.session("listens");
        let started = self.start(&session, 1).await;
        answers(&started.address).await;
        let instance = self.inspect(&session).await.expect("it runs, so it exists");
        assert_eq!(instance.session, session);
        assert_eq!(instance.generation, Generation(1));
        assert_eq!(instance.life.as_ref(), Some(&started.life));
        assert!(matches!(instance.state, InstanceState::Running(_)), "{instance:?}");
        self.end(&session).await;
        refuses(&started.address).await;
    }

    async fn start_is_idempotent(&self) {
        let session = self.session("twice");
        let first = self.start(&session, 1).await;
        let again = self.start(&session, 1).await;
        assert_eq!(again, first, "of the same generation");
        // What a command starts, it alone knows.
        let is_told = self.engine.kind() != "command";
        assert_eq!((first.ran_already, again.ran_already), (false, is_told));
        answers(&first.address).await;
        assert_eq!(self.start(&session, 2).await, first, "of a later one");
        let instance = self.inspect(&session).await.unwrap();
        assert!(instance.generation >= Generation(1) && instance.generation <= Generation(2));
        self.end(&session).await;
    }

    async fn every_depth_can_be_woken_from(&self) {
        let session = self.session("depths");
        let mut generation = 1;
        let mut last = self.start(&session, generation).await;
        for &depth in self.engine.depths() {
            answers(&last.address).await;
            self.sleep(&session, Some(&last.life), depth).await;
            assert!(!self.runs(&session).await, "asleep in {depth}");
            self.sleep(&session, Some(&last.life), depth).await; // nothing left to do: a success

            generation += 1;
            let woken = self.start(&session, generation).await;
            answers(&woken.address).await;
            assert!(self.runs(&session).await, "awake from {depth}");
            match depth {
                Depth::Paused => assert_eq!(woken.life, last.life, "paused resumes"),
                Depth::Suspended => {}
                Depth::Stopped | Depth::Removed => assert_ne!(woken.life, last.life, "{depth}"),
            }
            last = woken;
        }
        self.end(&session).await;
    }

    async fn paused_goes_deeper(&self) {
        if !self.engine.depths().contains(&Depth::Paused) {
            return;
        }
        let session = self.session("ladder");
        let started = self.start(&session, 1).await;
        answers(&started.address).await;
        for &depth in self.engine.depths() {
            self.sleep(&session, Some(&started.life), depth).await;
            let state = self.inspect(&session).await.map(|instance| instance.state);
            let fits = match state {
                Some(InstanceState::Asleep(at)) => at == depth,
                None => depth >= Depth::Stopped,
                Some(InstanceState::Running(_)) => false,
            };
            assert!(fits, "put to {depth}, found {state:?}");
        }
        refuses(&started.address).await;
        self.end(&session).await;
    }

    async fn an_old_life_cannot_stop_a_newer_one(&self) {
        let session = self.session("fence");
        let old = self.start(&session, 1).await;
        self.sleep(&session, Some(&old.life), Depth::Stopped).await;
        let new = self.start(&session, 2).await;
        assert_ne!(new.life, old.life);
        answers(&new.address).await;
        for &depth in self.engine.depths() {
            self.sleep(&session, Some(&old.life), depth).await;
            assert!(self.runs(&session).await, "a late {depth} of the old life hit the new one");
        }
        assert_eq!(self.start(&session, 2).await, new);
        self.sleep(&session, Some(&new.life), Depth::Stopped).await;
        assert!(!self.runs(&session).await);
        self.end(&session).await;
    }

    async fn without_a_life_whatever_is_there_sleeps(&self) {
        for &depth in self.engine.depths() {
            let session = self.session("lifeless");
            let started = self.start(&session, 1).await;
            answers(&started.address).await;
            self.sleep(&session, None, depth).await;
            assert!(!self.runs(&session).await, "to {depth}");
            self.end(&session).await;
        }
    }

    /// However far a start had come when nobody waited for it any longer, the sleep after it wins.
    async fn an_abandoned_start_can_be_put_to_sleep(&self) {
        let mut sessions = Vec::new();
        for polls in [1, 2, 3, 5] {
            let session = self.session("abandoned");
            self.abandon(&session, polls).await;
            self.sleep(&session, None, Depth::Stopped).await;
            sessions.push(session);
        }
        // Begun later, so when this one is up, nothing of the others is still to come.
        let witness = self.session("witness");
        answers(&self.start(&witness, 1).await.address).await;
        sessions.push(witness.clone());
        for session in &sessions {
            assert_eq!(self.runs(session).await, *session == witness, "it came after its sleep");
            self.end(session).await;
        }
    }

    async fn abandon(&self, session: &SessionId, polls: usize) {
        let spec = (self.make_spec)(session);
        let mut start = self.engine.start(session, &spec, Generation(1));
        for _ in 0..polls {
            if futures::poll!(&mut start).is_ready() {
                return;
            }
            tokio::task::yield_now().await;
        }
    }

    async fn sessions_do_not_touch_each_other(&self) {
        let (a, b) = (self.session("side-a"), self.session("side-b"));
        let (one, two) = tokio::join!(self.start(&a, 1), self.start(&b, 7));
        assert_ne!(one.address, two.address);
        assert_ne!(one.life, two.life);
        tokio::join!(answers(&one.address), answers(&two.address));
        self.sleep(&a, Some(&one.life), Depth::Stopped).await;
        assert!(!self.runs(&a).await);
        assert!(self.runs(&b).await, "only the one that was meant sleeps");
        answers(&two.address).await;
        tokio::join!(self.end(&a), self.end(&b));
    }

    async fn list_and_inspect_agree(&self) {
        let sessions = ["list-a", "list-b", "list-c"].map(|name| self.session(name));
        for (session, generation) in sessions.iter().zip(11..) {
            let started = self.start(session, generation).await;
            answers(&started.address).await;
        }
        let lightest = self.engine.depths()[0];
        self.sleep(&sessions[1], None, lightest).await;
        let mut listed = self.engine.list().await.unwrap();
        listed.retain(|instance| sessions.contains(&instance.session));
        for (session, generation) in sessions.iter().zip(11..) {
            let of: Vec<_> = listed.iter().filter(|i| &i.session == session).collect();
            assert!(of.len() <= 1, "one session, one instance: {of:?}");
            assert_eq!(of.first().copied(), self.inspect(session).await.as_ref());
            if let Some(instance) = of.first() {
                assert_eq!(instance.generation, Generation(generation));
            }
        }
        assert!(listed.iter().any(|i| i.session == sessions[0]), "what runs is listed");
        if lightest < Depth::Stopped {
            assert!(listed.iter().any(|i| i.session == sessions[1]), "what sleeps lightly too");
        }
        for session in &sessions {
            self.end(session).await;
        }
        let left = self.engine.list().await.unwrap();
        let runs = |i: &Instance| matches!(i.state, InstanceState::Running(_));
        assert!(!left.iter().any(|i| sessions.contains(&i.session) && runs(i)), "{left:?}");
    }

    /// A host that no other run of the suite has used.
    fn session(&self, name: &str) -> SessionId {
        let unique = uuid::Uuid::new_v4().simple().to_string();
        SessionId::new(format!("{name}-{}.contract.localhost", &unique[..8]))
    }

    async fn start(&self, session: &SessionId, generation: u64) -> Started {
        let spec = (self.make_spec)(session);
        let start = self.engine.start(session, &spec, Generation(generation));
        tokio::time::timeout(DEADLINE, start).await.expect("start ends").unwrap()
    }

    async fn sleep(&self, session: &SessionId, life: Option<&Life>, to: Depth) {
        let spec = (self.make_spec)(session);
        let sleep = self.engine.sleep(session, &spec, life, to);
        tokio::time::timeout(DEADLINE, sleep).await.expect("sleep ends").unwrap();
    }

    async fn inspect(&self, session: &SessionId) -> Option<Instance> {
        let spec = (self.make_spec)(session);
        self.engine.inspect(session, &spec).await.unwrap()
    }

    async fn runs(&self, session: &SessionId) -> bool {
        let state = self.inspect(session).await.map(|instance| instance.state);
        matches!(state, Some(InstanceState::Running(_)))
    }

    async fn end(&self, session: &SessionId) {
        self.sleep(session, None, self.deepest()).await;
        assert!(!self.runs(session).await);
    }

    fn deepest(&self) -> Depth {
        *self.engine.depths().last().unwrap()
    }
}

/// Waits until something accepts there.
pub async fn answers(address: &Address) {
    let since = Instant::now();
    while !accepts(address).await {
        assert!(since.elapsed() < DEADLINE, "nothing listens at {address}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until nothing accepts there.
pub async fn refuses(address: &Address) {
    let since = Instant::now();
    while accepts(address).await {
        assert!(since.elapsed() < DEADLINE, "something listens at {address}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn accepts(address: &Address) -> bool {
    match address {
        Address::Tcp(address) | Address::Forwarded(address) => {
            tokio::net::TcpStream::connect(address).await.is_ok()
        }
        Address::Unix(path) => tokio::net::UnixStream::connect(&**path).await.is_ok(),
        Address::Behind(behind) => tokio::net::TcpStream::connect(behind.proxy).await.is_ok(),
    }
}
