//! Rates, running instances and turns, over the scripted engine.

use std::{net::IpAddr, sync::atomic::AtomicBool};

use dormouse::{
    fleet::{Caller, Lease, Origin},
    session::WhenFull,
};
use futures::future::try_join_all;

use super::*;

/// The fleet's limit of the one engine.
fn engine_runs(most: usize) -> Limits {
    Limits { running: BTreeMap::from([("engine".into(), most)]), ..LIMITS }
}

fn limited(running: Option<u32>, when_full: WhenFull) -> impl Fn() -> Plan {
    move || Plan { limits: RouteLimits { running, when_full, ..RouteLimits::default() }, ..plan() }
}

fn origin(n: u8) -> Origin {
    IpAddr::from([192, 0, 2, n]).into()
}

fn from(n: u8) -> Caller<'static> {
    Caller { asker: Asker::Client, origin: Some(origin(n)), may_wake: None }
}

async fn awake(fleet: &Arc<Fleet>, host: &str, plan: impl Fn() -> Plan) -> Lease {
    let mut lease = fleet.acquire(host, Asker::Client, plan).unwrap();
    lease.ready().await.unwrap();
    lease
}

fn engine_runs_now(fleet: &Fleet) -> usize {
    fleet.running().engines.get("engine").map_or(0, |engine| engine.running)
}

#[tokio::test(start_paused = true)]
async fn only_what_begins_a_wake_is_asked_whether_it_may() {
    let engine = Scripted::new();
    let fleet = fleet(&engine, 8, LIMITS).await;
    let asked = AtomicUsize::new(0);
    let may = AtomicBool::new(true);
    let may_wake = || {
        asked.fetch_add(1, SeqCst);
        if may.load(SeqCst) { Ok(()) } else { Err(Refusal::ClientRate(SECOND)) }
    };
    let caller = Caller { asker: Asker::Client, origin: None, may_wake: Some(&may_wake) };
    let mut first = fleet.acquire("a.test", caller, plan).unwrap();
    assert_eq!(asked.load(SeqCst), 1);
    may.store(false, SeqCst);
    let joined = fleet.acquire("a.test", caller, plan).unwrap();
    first.ready().await.unwrap();
    drop((first, joined));
    drop(fleet.acquire("a.test", caller, plan).unwrap());
    assert_eq!(asked.load(SeqCst), 1, "who joins a hold or is served at once is not asked");

    let refused = fleet.acquire("b.test", caller, plan).unwrap_err();
    assert_eq!(refused, Refusal::ClientRate(SECOND));
    assert!(fleet.session("b.test").is_none(), "nothing is left of it");
    sleep(SECOND * 61).await;
    assert_eq!(fleet.session("a.test").unwrap().state, "asleep");
    fleet.acquire("a.test", caller, plan).unwrap_err();
    assert_eq!(asked.load(SeqCst), 3);
    assert_eq!(*engine.starts.lock().unwrap(), ["a.test"]);
}

#[tokio::test(start_paused = true)]
async fn who_is_ignored_wakes_nobody_and_keeps_nobody_awake() {
    let engine = Scripted::new();
    let fleet = fleet(&engine, 8, LIMITS).await;
    let refused = fleet.acquire("a.test", Asker::Ignored, plan).unwrap_err();
    assert_eq!(refused, Refusal::Asleep);
    assert!(fleet.session("a.test").is_none(), "nothing is left of it");

    let held = fleet.acquire("a.test", Asker::Client, plan).unwrap();
    assert_eq!(fleet.acquire("a.test", Asker::Ignored, plan).unwrap_err(), Refusal::Asleep);
    drop(held);
    sleep(SECOND * 2).await;
    for _ in 0..5 {
        sleep(SECOND * 10).await;
        let lease = fleet.acquire("a.test", Asker::Ignored, plan).unwrap();
        assert!(lease.endpoint().is_some());
        assert_eq!(fleet.session("a.test").unwrap().state, "awake");
    }
    sleep(SECOND * 11).await;
    assert_eq!(fleet.session("a.test").unwrap().state, "asleep");
}

#[tokio::test(start_paused = true)]
async fn where_as_many_run_as_may_a_wake_is_refused_and_no_engine_is_asked() {
    let engine = Scripted::new();
    let fleet = fleet(&engine, 8, engine_runs(3)).await;
    let two = limited(Some(2), WhenFull::Refuse);
    let mut leases = vec![awake(&fleet, "a.test", &two).await];
    // One that wakes counts as much as one that is awake.
    leases.push(fleet.acquire("b.test", Asker::Client, &two).unwrap());
    let full = fleet.acquire("c.test", Asker::Client, &two).unwrap_err();
    assert_eq!(full, Refusal::RouteRunning);
    let other = || Plan { route: "other".into(), ..plan() };
    leases.push(fleet.acquire("d.test", Asker::Client, other).unwrap());
    let full = fleet.acquire("e.test", Asker::Client, other).unwrap_err();
    assert_eq!(full, Refusal::EngineRunning);
    sleep(SECOND * 5).await;
    assert_eq!(*engine.starts.lock().unwrap(), ["a.test", "b.test", "d.test"]);
    assert_eq!((engine_runs_now(&fleet), fleet.running_of_route("route")), (3, 2));

    drop(leases);
    sleep(Duration::from_millis(60_050)).await;
    // And so does one that is being put to sleep: the engine's sleep takes a tenth of a second.
    assert_eq!(fleet.session("a.test").unwrap().state, "stopping");
    let full = fleet.acquire("c.test", Asker::Client, &two).unwrap_err();
    assert_eq!(full, Refusal::RouteRunning);
    sleep(SECOND).await;
    assert_eq!(engine_runs_now(&fleet), 0);
    awake(&fleet, "c.test", &two).await;
}

#[tokio::test(start_paused = true)]
async fn whoever_was_idle_the_longest_makes_room_and_never_one_in_use() {
    let engine = Scripted::new();
    let fleet = fleet(&engine, 8, engine_runs(3)).await;
    let plan = limited(None, WhenFull::EvictIdle);
    let used = awake(&fleet, "used.test", &plan).await;
    let (first, second) =
        (awake(&fleet, "first.test", &plan).await, awake(&fleet, "second.test", &plan).await);
    // The one that woke later is left first.
    drop(second);
    sleep(SECOND).await;
    drop(first);
    sleep(SECOND).await;

    let came = Instant::now();
    let third = awake(&fleet, "third.test", &plan).await;
    assert_eq!(came.elapsed(), SECOND + SECOND / 10, "the sleep, then the start");
    let state = |host: &str| fleet.session(host).unwrap().state;
    assert_eq!(["used.test", "first.test", "second.test"].map(state), ["awake", "idle", "asleep"]);
    let fourth = awake(&fleet, "fourth.test", &plan).await;
    assert_eq!(["used.test", "first.test", "third.test"].map(state), ["awake", "asleep", "awake"]);
    let full = fleet.acquire("fifth.test", Asker::Client, &plan).unwrap_err();
    assert_eq!(full, Refusal::EngineRunning, "all are in use");
    assert_eq!((engine_runs_now(&fleet), engine.running.lock().unwrap().len()), (3, 3));
    drop((used, third, fourth));
}

#[tokio::test(start_paused = true)]
async fn a_full_route_evicts_its_own_and_a_full_engine_anybodys() {
    let engine = Scripted::new();
    let fleet = fleet(&engine, 8, engine_runs(3)).await;
    let of = |route: &'static str| {
        let limits = RouteLimits {
            running: Some(2),
            when_full: WhenFull::EvictIdle,
            ..RouteLimits::default()
        };
        move || Plan { route: route.into(), limits, ..plan() }
    };
    for (host, route) in [("x.b.test", "b"), ("x.a.test", "a"), ("y.a.test", "a")] {
        drop(awake(&fleet, host, of(route)).await);
        sleep(SECOND).await;
    }
    let state = |host: &str| fleet.session(host).unwrap().state;
    let lease = awake(&fleet, "z.a.test", of("a")).await;
    assert_eq!(["x.b.test", "x.a.test", "y.a.test"].map(state), ["idle", "asleep", "idle"]);
    let other = awake(&fleet, "y.b.test", of("b")).await;
    assert_eq!(["x.b.test", "y.a.test", "z.a.test"].map(state), ["asleep", "idle", "awake"]);
    drop((lease, other));
}

#[tokio::test(start_paused = true)]
async fn nobody_is_evicted_before_it_has_been_awake_for_its_time() {
    let engine = Scripted::new();
    let fleet = fleet(&engine, 8, engine_runs(1)).await;
    let plan = || {
        let mut plan = limited(None, WhenFull::EvictIdle)();
        plan.policy.min_awake = SECOND * 30;
        plan
    };
    drop(awake(&fleet, "a.test", plan).await);
    sleep(SECOND * 29).await;
    let full = fleet.acquire("b.test", Asker::Client, plan).unwrap_err();
    assert_eq!(full, Refusal::EngineRunning);
    sleep(SECOND).await;
    awake(&fleet, "b.test", plan).await;
}

/// Its place is another's: whoever comes for it now needs one, too.
#[tokio::test(start_paused = true)]
async fn one_that_is_evicted_and_comes_back_waits_for_a_place_of_its_own() {
    let engine = Scripted::new();
    let fleet = fleet(&engine, 8, engine_runs(1)).await;
    let plan = limited(None, WhenFull::EvictIdle);
    drop(awake(&fleet, "a.test", &plan).await);
    let mut b = fleet.acquire("b.test", Asker::Client, &plan).unwrap();
    assert_eq!(b.phase(), Phase::Queued);
    sleep(SECOND / 20).await;
    assert_eq!(b.phase(), Phase::NoRoom);
    let full = fleet.acquire("a.test", Asker::Client, &plan).unwrap_err();
    assert_eq!(full, Refusal::EngineRunning, "b holds its place");
    b.ready().await.unwrap();
    drop(b);
    let mut a = fleet.acquire("a.test", Asker::Client, &plan).unwrap();
    a.ready().await.unwrap();
    assert_eq!(*engine.starts.lock().unwrap(), ["a.test", "b.test", "a.test"]);
    assert_eq!(engine_runs_now(&fleet), 1);
}

#[tokio::test(start_paused = true)]
async fn a_wake_that_fails_gives_its_place_back() {
    let engine = Scripted::new();
    engine.failing.store(1, SeqCst);
    let fleet = fleet(&engine, 8, engine_runs(1)).await;
    let mut lease = fleet.acquire("a.test", Asker::Client, plan).unwrap();
    lease.ready().await.unwrap_err();
    let full = fleet.acquire("b.test", Asker::Client, plan).unwrap_err();
    assert_eq!(full, Refusal::EngineRunning, "what is left of it is cleaned up first");
    sleep(SECOND).await;
    assert_eq!(engine_runs_now(&fleet), 0);
    let lease = awake(&fleet, "b.test", plan).await;
    engine.kill("b.test");
    sleep(SECOND).await;
    assert_eq!(engine_runs_now(&fleet), 0, "it died");
    drop(lease);
}

#[tokio::test(start_paused = true)]
async fn what_was_found_running_is_counted_although_it_is_too_much() {
    let engine = Scripted::new();
    for n in 0..3 {
        engine.running.lock().unwrap().insert(format!("{n}.test"), Life::new("left"));
    }
    let adopting: Arc<dyn Engine> = Arc::new(Adopting(engine.clone()));
    let planner = Box::new(|_: &str| Some(plan()));
    let fleet = Fleet::new([("engine".into(), adopting)], 8, engine_runs(2), planner);
    run(&fleet).await;
    sleep(SECOND * 5).await;
    assert_eq!(engine_runs_now(&fleet), 3);
    let full = fleet.acquire("new.test", Asker::Client, plan).unwrap_err();
    assert_eq!(full, Refusal::EngineRunning);
    // One that runs is leased whatever the limit says.
    drop(awake(&fleet, "0.test", plan).await);
    sleep(SECOND * 70).await;
    assert_eq!(engine_runs_now(&fleet), 0);
}

#[tokio::test(start_paused = true)]
async fn a_route_holds_no_more_than_its_share() {
    let engine = Scripted::new();
    let fleet = fleet(&engine, 8, LIMITS).await;
    let two = || Plan { limits: RouteLimits { held: Some(2), ..RouteLimits::default() }, ..plan() };
    let mut a = fleet.acquire("a.test", Asker::Client, two).unwrap();
    let mut b = fleet.acquire("b.test", Asker::Client, two).unwrap();
    for host in ["a.test", "c.test"] {
        let full = fleet.acquire(host, Asker::Client, two).unwrap_err();
        assert_eq!(full, Refusal::RouteFull, "{host}");
    }
    let other = || Plan { route: "other".into(), ..two() };
    drop(fleet.acquire("d.test", Asker::Client, other).unwrap());
    a.ready().await.unwrap();
    b.ready().await.unwrap();
    drop(fleet.acquire("c.test", Asker::Client, two).unwrap());
}

#[tokio::test(start_paused = true)]
async fn one_clients_flood_delays_anothers_wake_by_no_more_than_one_start() {
    let engine = Scripted::new();
    let fleet = fleet(&engine, 1, Limits { held: 20_000, sessions: 20_000, ..LIMITS }).await;
    let patient = || {
        let mut plan = plan();
        plan.policy.wake_timeout = SECOND * 100_000;
        plan
    };
    let flood: Vec<_> = (0..10_000)
        .map(|n| fleet.acquire(&format!("f{n}.test"), from(1), patient).unwrap())
        .collect();
    sleep(SECOND / 2).await;
    let came = Instant::now();
    let mut others: Vec<_> =
        [2, 3].map(|n| fleet.acquire(&format!("other{n}.test"), from(n), patient).unwrap()).into();
    try_join_all(others.iter_mut().map(|lease| lease.ready())).await.unwrap();
    // The flood's start that is under way, one more of it in its turn, and the two of the others.
    assert!(came.elapsed() <= SECOND * 4, "{:?}", came.elapsed());
    drop(flood);
}

/// A storm over few places, with failures, deaths and operators: never more run than may, what is
/// counted is what runs, and in the end no place is lost.
#[tokio::test(start_paused = true)]
async fn a_storm_over_few_places_never_runs_more_than_may_and_loses_no_place() {
    let seed = std::env::var("DORMOUSE_FLEET_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(rand_seed);
    eprintln!("DORMOUSE_FLEET_SEED={seed}");
    let engine = Scripted::new();
    let fleet = fleet(&engine, 2, engine_runs(4)).await;
    let watch = async {
        for _ in 0..20_000 {
            sleep(Duration::from_millis(97)).await;
            let states: Vec<_> = fleet.sessions();
            let live = |route: &str| {
                let of =
                    |s: &&dormouse::fleet::SessionView| s.state != "asleep" && s.route == route;
                // What waits for room does not run yet.
                let waits = |s: &&dormouse::fleet::SessionView| {
                    s.phase == Some(Phase::NoRoom.as_str()) && s.state == "waking"
                };
                states.iter().filter(of).filter(|s| !waits(s)).count()
            };
            assert!(engine_runs_now(&fleet) <= 4, "the engine has four places");
            assert!(fleet.running_of_route("a") <= 3, "route a has three");
            assert!(engine.running.lock().unwrap().len() <= 4);
            for route in ["a", "b"] {
                assert!(fleet.running_of_route(route) <= live(route) + 1, "{route} is overcounted");
            }
        }
    };
    let clients = (0..12).map(|n| {
        let (fleet, engine, mut random) =
            (Arc::clone(&fleet), Arc::clone(&engine), Random(seed.wrapping_add(n)));
        async move {
            for _ in 0..150 {
                sleep(Duration::from_millis(random.below(15_000))).await;
                match random.below(20) {
                    0 => drop(engine.failing.fetch_add(1, SeqCst)),
                    1 => drop(fleet.sleep(&format!("{}.a.test", random.below(6)), None)),
                    _ => {}
                }
                let route = if random.below(2) == 0 { "a" } else { "b" };
                let host = format!("{}.{route}.test", random.below(6));
                let plan = move || {
                    let when_full =
                        if route == "a" { WhenFull::EvictIdle } else { WhenFull::Refuse };
                    let running = (route == "a").then_some(3);
                    let limits = RouteLimits { running, when_full, ..RouteLimits::default() };
                    Plan { route: route.into(), limits, ..plan() }
                };
                let Ok(mut lease) = fleet.acquire(&host, from(n as u8), plan) else { continue };
                let patience = Duration::from_millis(random.below(4_000));
                if tokio::time::timeout(patience, lease.ready()).await.is_ok_and(|r| r.is_ok()) {
                    *engine.leased.lock().unwrap().entry(host.clone()).or_default() += 1;
                    sleep(Duration::from_millis(random.below(20_000))).await;
                    *engine.leased.lock().unwrap().get_mut(&host).unwrap() -= 1;
                }
            }
        }
    });
    futures::join!(watch, join_all(clients));
    sleep(SECOND * 600).await;
    let running = fleet.running();
    assert!(running.routes.is_empty() && engine_runs_now(&fleet) == 0, "{running:?}");
    assert!(engine.running.lock().unwrap().is_empty());
    assert!(fleet.sessions().iter().all(|session| session.state == "asleep"));
}

/// Returns what runs already at a start, as real engines do.
#[derive(Debug)]
struct Adopting(Arc<Scripted>);

#[async_trait]
impl Engine for Adopting {
    fn kind(&self) -> &'static str {
        self.0.kind()
    }

    fn depths(&self) -> &'static [Depth] {
        self.0.depths()
    }

    async fn start(&self, id: &SessionId, spec: &Spec, g: Generation) -> Result<Started, Error> {
        let known = self.0.running.lock().unwrap().get(id.host()).cloned();
        match known {
            Some(life) => {
                Ok(Started { address: Address::Unix("nowhere".into()), life, ran_already: false })
            }
            None => self.0.start(id, spec, g).await,
        }
    }

    async fn sleep(
        &self,
        id: &SessionId,
        spec: &Spec,
        life: Option<&Life>,
        to: Depth,
    ) -> Result<(), Error> {
        self.0.sleep(id, spec, life, to).await
    }

    async fn list(&self) -> Result<Vec<Instance>, Error> {
        self.0.list().await
    }

    async fn inspect(&self, id: &SessionId, spec: &Spec) -> Result<Option<Instance>, Error> {
        self.0.inspect(id, spec).await
    }

    fn events(&self) -> BoxStream<'static, EngineEvent> {
        self.0.events()
    }
}

#[tokio::test(start_paused = true)]
async fn who_leaves_before_the_next_life_begins_takes_its_place_along() {
    let engine = Scripted::new();
    let fleet = fleet(&engine, 8, engine_runs(2)).await;
    let plan = limited(None, WhenFull::EvictIdle);
    drop(awake(&fleet, "a.test", &plan).await);
    drop(awake(&fleet, "b.test", &plan).await);
    // c gets a's place; a comes back while it is put to sleep, and gets b's; then it leaves.
    let c = fleet.acquire("c.test", Asker::Client, &plan).unwrap();
    drop(fleet.acquire("a.test", Asker::Client, &plan).unwrap());
    sleep(SECOND).await;
    assert_eq!(engine_runs_now(&fleet), 1);
    drop(c);
}
