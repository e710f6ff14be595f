//! Spares: made ahead, each one session's, of the template as it is now.

use std::{collections::BTreeMap, path::Path, sync::atomic::AtomicBool};

use super::*;
use dormouse::session::Pool;
use tempfile::TempDir;

/// Keeps what it made until it is removed, and says what became of each.
#[derive(Debug)]
struct Shelf {
    /// Where all of them listen: what goes on from a pause is asked whether it does.
    _socket: std::os::unix::net::UnixListener,
    address: Address,
    _folder: TempDir,
    instances: Mutex<BTreeMap<String, (Life, InstanceState)>>,
    /// In order.
    made: Mutex<Vec<String>>,
    starts: AtomicUsize,
    failing: AtomicBool,
}

impl Shelf {
    fn new() -> Arc<Self> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("all");
        Arc::new(Self {
            _socket: std::os::unix::net::UnixListener::bind(&path).unwrap(),
            address: Address::Unix(path.to_str().unwrap().into()),
            _folder: folder,
            instances: Mutex::default(),
            made: Mutex::default(),
            starts: AtomicUsize::new(0),
            failing: AtomicBool::new(false),
        })
    }

    fn asleep(&self, depth: Depth) -> Vec<String> {
        let instances = self.instances.lock().unwrap();
        let asleep = |(_, (_, state)): &(&String, &(Life, InstanceState))| {
            *state == InstanceState::Asleep(depth)
        };
        instances.iter().filter(asleep).map(|(host, _)| host.clone()).collect()
    }

    fn made(&self) -> Vec<String> {
        self.made.lock().unwrap().clone()
    }

    fn instance((host, (life, state)): (&String, &(Life, InstanceState))) -> Instance {
        Instance {
            session: SessionId::new(host.as_str()),
            generation: Generation(0),
            life: Some(life.clone()),
            state: *state,
        }
    }
}

#[async_trait]
impl Engine for Shelf {
    fn kind(&self) -> &'static str {
        "docker"
    }

    fn depths(&self) -> &'static [Depth] {
        &[Depth::Paused, Depth::Stopped, Depth::Removed]
    }

    async fn start(&self, id: &SessionId, _: &Spec, g: Generation) -> Result<Started, Error> {
        self.starts.fetch_add(1, SeqCst);
        sleep(SECOND).await;
        if self.failing.load(SeqCst) {
            return Err(Error::Failed("as told".into()));
        }
        let mut instances = self.instances.lock().unwrap();
        let awake = InstanceState::Running(Health::Healthy);
        let (life, state) = instances.entry(id.host().to_owned()).or_insert_with(|| {
            self.made.lock().unwrap().push(id.host().to_owned());
            (Life::new(g.to_string()), awake)
        });
        *state = awake;
        Ok(Started { address: self.address.clone(), life: life.clone(), ran_already: false })
    }

    async fn sleep(
        &self,
        id: &SessionId,
        _: &Spec,
        _: Option<&Life>,
        to: Depth,
    ) -> Result<(), Error> {
        let mut instances = self.instances.lock().unwrap();
        if to == Depth::Removed {
            instances.remove(id.host());
        } else if let Some((_, state)) = instances.get_mut(id.host()) {
            *state = InstanceState::Asleep(to);
        }
        Ok(())
    }

    async fn list(&self) -> Result<Vec<Instance>, Error> {
        Ok(self.instances.lock().unwrap().iter().map(Self::instance).collect())
    }

    async fn inspect(&self, id: &SessionId, _: &Spec) -> Result<Option<Instance>, Error> {
        Ok(self.instances.lock().unwrap().get_key_value(id.host()).map(Self::instance))
    }

    fn events(&self) -> BoxStream<'static, EngineEvent> {
        stream::pending().boxed()
    }
}

/// What routes say, and may say otherwise later.
#[derive(Clone)]
struct Said {
    plan: Arc<Mutex<Plan>>,
    folder: Arc<TempDir>,
}

impl Said {
    fn new(ready: u32) -> Self {
        let ladder = [(60, Depth::Stopped), (120, Depth::Removed)];
        let ladder = ladder.map(|(after, to)| Rung { after: SECOND * after, to }).into();
        let policy = Policy { ladder, ..plan().policy };
        let pool = Some(Pool { ready, depth: Depth::Paused });
        let plan = Arc::new(Mutex::new(Plan { policy, pool, ..plan() }));
        Self { plan, folder: Arc::new(tempfile::tempdir().unwrap()) }
    }

    fn plan(&self) -> Plan {
        self.plan.lock().unwrap().clone()
    }

    /// As `Route::pool_plan` makes it.
    fn of_spares(&self) -> Vec<Plan> {
        let mut plan = self.plan();
        let Some(pool) = plan.pool else { return Vec::new() };
        plan.policy.ladder = [Rung { after: Duration::ZERO, to: pool.depth }].into();
        vec![plan]
    }

    async fn fleet(&self, engine: &Arc<Shelf>) -> Arc<Fleet> {
        let port: Arc<dyn Engine> = engine.clone();
        let (said, pools) = (self.clone(), self.clone());
        let planner = Box::new(move |host: &str| host.ends_with(".test").then(|| said.plan()));
        let fleet = Fleet::new([("engine".into(), port)], 8, LIMITS, planner);
        fleet.keep_pools(Box::new(move || pools.of_spares()), self.claims()).unwrap();
        run(&fleet).await;
        fleet
    }

    fn claims(&self) -> &Path {
        self.folder.path()
    }

    /// The files that say whose an instance is, or was.
    fn claimed(&self) -> usize {
        std::fs::read_dir(self.claims()).unwrap().count()
    }

    /// Wakes a session; the name of its instance.
    async fn wake(&self, fleet: &Arc<Fleet>, host: &str) -> String {
        let mut lease = fleet.acquire(host, Asker::Client, || self.plan()).unwrap();
        lease.ready().await.unwrap();
        fleet.session(host).unwrap().instance.unwrap_or_else(|| host.to_owned())
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_session_takes_a_spare_and_another_is_made_in_its_place() {
    let (engine, said) = (Shelf::new(), Said::new(3));
    let fleet = said.fleet(&engine).await;
    sleep(SECOND * 10).await;
    let spares = engine.asleep(Depth::Paused);
    assert_eq!((spares.len(), fleet.spares_of_route("route")), (3, 3));

    let (alice, bob) = tokio::join!(said.wake(&fleet, "alice.test"), said.wake(&fleet, "bob.test"));
    assert!(spares.contains(&alice) && spares.contains(&bob) && alice != bob);
    assert_eq!(fleet.session("alice.test").unwrap().instance, Some(alice.clone()));
    sleep(SECOND * 10).await;
    assert_eq!(engine.made().len(), 5, "two were made in their place, and no more");
    assert_eq!(engine.asleep(Depth::Paused).len(), 3);
    assert!(!engine.made().contains(&"alice.test".to_owned()));

    // It is hers until it is removed.
    sleep(SECOND * 60).await;
    assert!(engine.asleep(Depth::Stopped).contains(&alice));
    assert_eq!(said.wake(&fleet, "alice.test").await, alice);
    sleep(SECOND * 130).await;
    assert_eq!(fleet.session("alice.test").unwrap().instance, None);
    // Forgotten once the engine has not listed them for an hour: it is asked every minute.
    sleep(SECOND * 3700).await;
    assert_eq!(said.claimed(), 0, "their instances are gone");
    assert_ne!(said.wake(&fleet, "alice.test").await, alice);
}

#[tokio::test(start_paused = true)]
async fn who_finds_no_spare_gets_an_instance_of_its_own() {
    let (engine, said) = (Shelf::new(), Said::new(1));
    let fleet = said.fleet(&engine).await;
    sleep(SECOND * 10).await;
    let hosts = ["a.test", "b.test"];
    let got = join_all(hosts.map(|host| said.wake(&fleet, host))).await;
    assert_eq!(got.iter().filter(|instance| hosts.contains(&instance.as_str())).count(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_was_claimed_and_what_waits_outlives_the_edge() {
    let (engine, said) = (Shelf::new(), Said::new(2));
    let before = said.fleet(&engine).await;
    sleep(SECOND * 10).await;
    let alice = said.wake(&before, "alice.test").await;
    sleep(SECOND * 10).await;
    let made = engine.made();

    let after = said.fleet(&engine).await;
    assert_eq!(after.session("alice.test").unwrap().instance, Some(alice.clone()));
    assert_eq!(after.spares_of_route("route"), 2);
    assert_eq!(said.wake(&after, "alice.test").await, alice);
    sleep(SECOND * 30).await;
    assert_eq!(engine.made(), made, "none was made anew, none was handed out twice");
}

#[tokio::test(start_paused = true)]
async fn spares_of_an_older_template_are_removed_and_made_anew() {
    let (engine, said) = (Shelf::new(), Said::new(2));
    let fleet = said.fleet(&engine).await;
    sleep(SECOND * 10).await;
    let old = engine.asleep(Depth::Paused);
    said.plan.lock().unwrap().spec.image = Some("newer".into());
    fleet.replan();
    // Before it is drained, an old one would still be there to be taken.
    let alice = said.wake(&fleet, "alice.test").await;
    assert!(!old.contains(&alice), "a session got what its route does not say any more");
    sleep(SECOND * 10).await;
    let new = engine.asleep(Depth::Paused);
    assert!(new.len() == 2 && new.iter().all(|spare| !old.contains(spare)), "{new:?}");

    said.plan.lock().unwrap().pool = None;
    fleet.replan();
    sleep(SECOND * 10).await;
    assert_eq!(engine.asleep(Depth::Paused), [] as [String; 0]);
    assert!(fleet.sessions().iter().all(|session| !session.spare));
}

#[tokio::test(start_paused = true)]
async fn a_route_without_room_for_another_instance_refuses_new_sessions_alone() {
    let (engine, said) = (Shelf::new(), Said::new(2));
    said.plan.lock().unwrap().limits.instances = Some(2);
    let fleet = said.fleet(&engine).await;
    sleep(SECOND * 10).await;
    said.wake(&fleet, "a.test").await;
    said.wake(&fleet, "b.test").await;
    let refused = fleet.acquire("c.test", Asker::Client, || said.plan()).unwrap_err();
    assert_eq!(refused, Refusal::RouteInstances);
    sleep(SECOND * 70).await;
    assert_eq!(engine.instances.lock().unwrap().len(), 2, "and there is no spare");
    said.wake(&fleet, "a.test").await;
    // At the ladder's end there is room again.
    sleep(SECOND * 130).await;
    said.wake(&fleet, "c.test").await;
}

#[tokio::test(start_paused = true)]
async fn a_template_that_fails_is_not_tried_all_the_time() {
    let (engine, said) = (Shelf::new(), Said::new(3));
    engine.failing.store(true, SeqCst);
    let fleet = said.fleet(&engine).await;
    sleep(SECOND * 100).await;
    let tried = engine.starts.load(SeqCst);
    assert!((2..=4).contains(&tried), "{tried} starts in 100 s");
    engine.failing.store(false, SeqCst);
    sleep(SECOND * 60).await;
    assert_eq!(fleet.spares_of_route("route"), 3);
}

#[tokio::test(start_paused = true)]
async fn what_the_process_before_handed_out_at_its_end_is_no_spare() {
    let (engine, said) = (Shelf::new(), Said::new(2));
    let before = said.fleet(&engine).await;
    sleep(SECOND * 10).await;
    let after = said.fleet(&engine).await;
    after.set_may_sleep(false);
    before.set_may_sleep(false);
    assert_eq!(after.spares_of_route("route"), 2);
    let alice = said.wake(&before, "alice.test").await;
    after.set_may_sleep(true);
    assert!(after.spares_of_route("route") < 2);
    sleep(SECOND * 70).await;
    assert_eq!(after.session("alice.test").unwrap().instance, Some(alice.clone()));
    let others = [said.wake(&after, "bob.test").await, said.wake(&after, "carol.test").await];
    assert!(!others.contains(&alice), "it was handed out twice");
    assert_eq!(said.wake(&after, "alice.test").await, alice);
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_was_given_up_and_is_there_still_is_stopped_and_not_handed_out() {
    let (engine, said) = (Shelf::new(), Said::new(1));
    let fleet = said.fleet(&engine).await;
    sleep(SECOND * 10).await;
    let alice = said.wake(&fleet, "alice.test").await;
    // Its engine does not see it for a while.
    let hidden = engine.instances.lock().unwrap().remove(&alice).unwrap();
    sleep(SECOND * 130).await;
    assert_eq!(fleet.session("alice.test").unwrap().instance, None);
    let paused = (hidden.0, InstanceState::Asleep(Depth::Paused));
    engine.instances.lock().unwrap().insert(alice.clone(), paused);
    let got = said.wake(&fleet, "alice.test").await;
    assert_ne!(got, alice);
    assert_ne!(said.wake(&fleet, "bob.test").await, alice);
    sleep(SECOND * 70).await;
    // What somebody did in there is the operator's to keep or to remove.
    assert!(engine.asleep(Depth::Stopped).contains(&alice));
}

#[tokio::test(start_paused = true)]
async fn nobody_reaches_a_spare_by_its_name() {
    let (engine, said) = (Shelf::new(), Said::new(1));
    let fleet = said.fleet(&engine).await;
    sleep(SECOND * 10).await;
    let spare = &engine.asleep(Depth::Paused)[0];
    let refused = fleet.acquire(spare, Asker::Client, || said.plan()).unwrap_err();
    assert_eq!(refused, Refusal::Retired);
}
