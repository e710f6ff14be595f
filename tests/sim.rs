//! The session machine in a seeded world with a virtual clock: clients and operators who come, go
//! and change their minds, and an engine that is slow, fails, answers late, twice or never, loses
//! its instance and gets it started by others. The invariants are swept after every step.
//!
//! `DORMOUSE_SIM_SEEDS=N` runs more seeds, `DORMOUSE_SIM_SEED=S` one of them.
//!
//! Taken for granted of the driver: it inspects an instance only when the answers of all finished
//! calls have been handled. A `Found` or `Lost` that overtook an answer would be dropped.

#[path = "sim/engine.rs"]
mod engine;
#[path = "sim/notes.rs"]
mod notes;

use std::{
    collections::{BTreeMap, BTreeSet},
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

use dormouse::session::{
    Address, Admission, Depth, Effect, Endpoint, Event, Failure, Generation, Policy, Refusal, Rung,
    machine::{Asker, Session, SleepAnswer, State, Way},
};
use engine::{Engine, Rng};
use notes::{Note, Notes, What};

const STEPS: u32 = 600;
const SEEDS: u64 = 5000;

/// What is under way in the world.
#[derive(Clone, Debug)]
enum Message {
    /// The engine gets to a start.
    Start(Generation),
    /// The driver looks whether what was found still runs, and asks the engine where it is.
    Reach(Generation),
    /// The engine gets to a stop.
    Stop(Generation, Depth),
    /// The engine's answer arrives; the call has ended.
    Answer(Event),
    /// The answer arrives once more.
    Again(Event),
    /// The driver looks at the instance.
    Inspect,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Waits,
    Ready,
    /// Ready, and no activity.
    Ignored,
    /// Told that the wake failed, and not dropped yet.
    Failed,
}

struct World {
    session: Session,
    engine: Engine,
    rng: Rng,
    base: Instant,
    now: Instant,
    messages: BTreeMap<(Instant, u64), Message>,
    sent: u64,
    /// Calls whose answer has not arrived.
    calls: u32,
    /// Every lease that was given and not yet dropped.
    leases: Vec<(Generation, Phase)>,
    started: BTreeSet<Generation>,
    /// Generations whose instance ended by itself.
    dead: BTreeSet<Generation>,
    /// Generations that ran before anybody here asked for them.
    found: BTreeSet<Generation>,
    policy: Policy,
    /// What the last operator was promised, until a wake.
    promised: Option<Depth>,
    /// Until when clients were told to wait, unless an operator or an edit intervenes.
    cooling: Option<Instant>,
    /// When this life got ready, or its last lease that is activity was given back.
    active_at: Instant,
    notes: Notes,
}

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// The operator's route file, in four editions.
fn policy(edition: u64) -> Policy {
    let rung = |after, to| Rung { after: seconds(after), to };
    let deep = [rung(20, Depth::Paused), rung(60, Depth::Stopped), rung(300, Depth::Removed)];
    let hasty = [rung(2, Depth::Stopped), rung(4, Depth::Removed)];
    let (ladder, min_awake, wake_timeout, boot_max, held_max): (&[Rung], _, _, _, _) = match edition
    {
        0 => (&deep, 30, 20, 60, 8),
        1 => (&deep[..2], 0, 5, 0, 3),
        2 => (&hasty, 0, 10, 30, 8),
        _ => (&deep[1..], 90, 40, 300, 16),
    };
    Policy {
        ladder: ladder.into(),
        min_awake: seconds(min_awake),
        wake_timeout: seconds(wake_timeout),
        boot_max: seconds(boot_max),
        held_max,
    }
}

impl World {
    fn new(seed: u64) -> Self {
        let (base, policy) = (Instant::now(), policy(0));
        Self {
            session: Session::new(policy.clone(), Generation(0), Depth::Removed, base),
            engine: Engine::new(),
            rng: Rng::new(seed),
            base,
            now: base,
            messages: BTreeMap::new(),
            sent: 0,
            calls: 0,
            leases: Vec::new(),
            started: BTreeSet::new(),
            dead: BTreeSet::new(),
            found: BTreeSet::new(),
            policy,
            promised: None,
            cooling: None,
            active_at: base,
            notes: Notes::default(),
        }
    }

    fn send(&mut self, least_ms: u64, spread_ms: u64, message: Message) {
        let delay = Duration::from_millis(least_ms + self.rng.below(spread_ms));
        self.sent += 1;
        self.messages.insert((self.now + delay, self.sent), message);
    }

    /// One thing that somebody does.
    fn step(&mut self) {
        let current = self.session.generation();
        match self.rng.below(1000) {
            0..280 => self.acquire(Asker::Client),
            280..330 => self.acquire(Asker::Ignored),
            330..345 => self.acquire(Asker::Operator),
            345..735 => self.release(),
            735..740 => self.event(Event::Evict),
            740..900 => self.pass(4_000),
            900..920 => self.pass(200_000),
            920..935 => self.sleep(),
            935..945 => self.edit(),
            945..949 => {
                self.cooling = None;
                self.event(Event::Retire);
            }
            949..970 => self.event(Event::Timer),
            970..980 => self.die(),
            980..988 if !self.engine.runs() => {
                self.engine.start_foreign(current);
                self.note(What::Foreign, Vec::new());
                self.send(0, 5_000, Message::Inspect);
            }
            _ => self.stale(),
        }
    }

    /// The machine's word; checks that it counts for nothing when it must not.
    fn event(&mut self, event: Event) {
        let current = self.session.generation();
        let counted = match self.session.state() {
            State::Asleep { .. } | State::Idle { .. } => None,
            State::Waking { .. } | State::Awake { .. } => Some(current),
            State::Stopping { next, .. } => Some(*next),
        };
        let void = match &event {
            Event::Started(endpoint) => endpoint.generation != current,
            Event::Begun(g)
            | Event::RunsAlready(g)
            | Event::StartFailed(g, _)
            | Event::Stopped(g)
            | Event::StopFailed(g)
            | Event::Lost(g, _) => *g != current,
            Event::Release(g) | Event::ReleaseIgnored(g) => Some(*g) != counted,
            Event::Evict => self.session.evictable(self.now).is_none(),
            Event::Timer => self.session.deadline().is_none_or(|at| self.now < at),
            Event::Found | Event::Retire => false,
        };
        if matches!(event, Event::Lost(..)) && !void {
            self.dead.insert(current);
            self.promised = None;
        }
        let before = void.then(|| format!("{:?}", self.session));
        let boots = !self.session.is_found();
        let active = match event {
            Event::Release(_) => true,
            // What was found was idle before it was ready.
            Event::Started(_) => boots || 0 < self.session.leases(),
            Event::RunsAlready(_) => boots,
            Event::Found | Event::StartFailed(..) => {
                !self.session.is_retired() && (boots || 0 < self.session.leases())
            }
            _ => false,
        };
        if !void && active {
            self.active_at = self.now;
        }
        let mut effects = Vec::new();
        self.session.handle(event.clone(), self.now, &mut effects);
        if let Some(before) = before {
            assert_eq!(before, format!("{:?}", self.session), "{event:?} must change nothing");
            assert_eq!(effects, [], "{event:?} must do nothing");
        }
        self.carry_out(What::Event(event), effects);
    }

    fn acquire(&mut self, asker: Asker) {
        let mut effects = Vec::new();
        let would_wake = self.session.would_wake(asker, self.now);
        let stopping = matches!(self.session.state(), State::Stopping { .. });
        let admission = self.session.acquire(asker, self.now, &mut effects);
        let begun = effects.iter().any(|effect| matches!(effect, Effect::Start(_)));
        assert!(would_wake || !begun, "a wake that nobody was asked about");
        match &admission {
            Admission::Ready(endpoint) => {
                let ignored = asker == Asker::Ignored;
                let phase = if ignored { Phase::Ignored } else { Phase::Ready };
                self.leases.push((endpoint.generation, phase));
            }
            Admission::Wait(generation) => {
                assert_ne!(asker, Asker::Ignored, "it waits for nobody");
                assert!(!effects.is_empty() || !would_wake || stopping, "no wake was begun");
                let early = self.cooling.is_some_and(|until| self.now < until);
                assert!(!early || asker == Asker::Operator, "a wake during the cooldown");
                self.leases.push((*generation, Phase::Waits));
            }
            Admission::Refuse(refusal) => {
                assert_eq!(effects, [], "a refusal costs nothing");
                if let (Refusal::CoolingDown(until), "asleep") =
                    (refusal, self.session.state().name())
                {
                    self.cooling = Some(*until);
                }
            }
        }
        self.carry_out(What::Acquire(asker, admission), effects);
    }

    /// Any lease is dropped: served, still waiting, or failed long ago.
    fn release(&mut self) {
        if let Some(last) = (self.leases.len() as u64).checked_sub(1) {
            let at = self.rng.below(last + 1) as usize;
            let event = match self.leases.swap_remove(at) {
                (generation, Phase::Ignored) => Event::ReleaseIgnored(generation),
                (generation, _) => Event::Release(generation),
            };
            self.event(event);
        }
    }

    fn sleep(&mut self) {
        let to = Depth::ALL[self.rng.below(4) as usize];
        let mut effects = Vec::new();
        let held = self.session.leases();
        let answer = self.session.sleep(to, self.now, &mut effects);
        assert_eq!(answer == SleepAnswer::InUse(held), 0 < held, "{answer:?} with {held} leases");
        if matches!(answer, SleepAnswer::Begun | SleepAnswer::Already) {
            self.promised = self.promised.max(Some(to));
        }
        if answer == SleepAnswer::Begun {
            self.cooling = None;
        }
        self.carry_out(What::Sleep(to, answer), effects);
    }

    fn edit(&mut self) {
        self.policy = policy(self.rng.below(4));
        self.session.adopt_policy(self.policy.clone());
        self.note(What::Policy, Vec::new());
    }

    fn die(&mut self) {
        if self.engine.runs() {
            self.dead.insert(self.engine.mark);
            self.engine.die(Depth::ALL[self.rng.below(4) as usize]);
            self.note(What::Died, Vec::new());
            self.send(0, 5_000, Message::Inspect);
        }
    }

    /// Messages of other lives, which no driver should send and every machine must survive.
    fn stale(&mut self) {
        let current = self.session.generation().0;
        let other = if self.rng.percent(70) { self.rng.below(current.max(1)) } else { current + 7 };
        let generation = Generation(other);
        let event = match self.rng.below(9) {
            6 => Event::Begun(generation),
            7 => Event::RunsAlready(generation),
            5 if self.leases.iter().all(|(g, _)| *g != generation) => {
                Event::ReleaseIgnored(generation)
            }
            0 => Event::Started(endpoint(generation)),
            1 => Event::StartFailed(generation, Failure::EngineBusy),
            2 => Event::Stopped(generation),
            3 => Event::StopFailed(generation),
            4 if other != current => Event::Lost(generation, Depth::Removed),
            _ if self.leases.iter().all(|(g, _)| *g != generation) => Event::Release(generation),
            _ => Event::Timer,
        };
        self.event(event);
    }

    /// What the driver would do.
    fn carry_out(&mut self, what: What, effects: Vec<Effect>) {
        // All that may end what was merely found, besides its own death.
        let may_end = match &what {
            What::Sleep(..) | What::Event(Event::Retire | Event::Evict | Event::Timer) => true,
            What::Event(Event::Release(_) | Event::ReleaseIgnored(_)) => self.session.is_retired(),
            _ => false,
        };
        let timed_out = effects.iter().any(|effect| {
            matches!(effect, Effect::Fail(g, _)
            if self.found.contains(g) && matches!(what, What::Event(Event::Timer)))
        });
        assert!(!timed_out, "what was merely found has a deadline");
        self.note(what, effects.clone());
        for effect in effects {
            match effect {
                Effect::Start(g) if self.session.is_found() => {
                    assert!(self.started.insert(g), "{g} is started twice");
                    self.found.insert(g);
                    self.calls += 1;
                    self.send(0, 3_000, Message::Reach(g));
                }
                Effect::Start(g) => {
                    assert!(self.started.insert(g), "{g} is started twice");
                    let ours = self.engine.runs() && !self.engine.foreign;
                    assert!(!ours, "{g} starts while {} runs", self.engine.mark);
                    self.calls += 1;
                    let hangs = self.rng.percent(10);
                    self.send(if hangs { 10_000 } else { 0 }, 30_000, Message::Start(g));
                }
                Effect::Stop(g, to) => {
                    let used = self.uses(g);
                    assert!(!used || self.dead.contains(&g), "{g} is stopped under a lease");
                    let may = !self.found.contains(&g) || self.dead.contains(&g) || may_end;
                    assert!(may, "{g} was merely found, and is stopped");
                    self.calls += 1;
                    self.send(100, 8_000, Message::Stop(g, to));
                }
                Effect::Open(endpoint) => self.answer(endpoint.generation, Phase::Ready),
                Effect::Fail(g, _) => self.answer(g, Phase::Failed),
                Effect::Rejoin(g) => self.rejoin(g),
            }
        }
        self.check();
    }

    /// Those who waited for a life that is over ask for the next one, before they let go.
    fn rejoin(&mut self, generation: Generation) {
        let all = self.leases.len();
        self.leases.retain(|lease| *lease != (generation, Phase::Waits));
        for _ in self.leases.len()..all {
            let mut effects = Vec::new();
            let admission = self.session.acquire(Asker::Client, self.now, &mut effects);
            assert_eq!(effects, [], "it is being stopped");
            match admission {
                Admission::Wait(next) => {
                    assert!(generation < next, "it waits for what is over");
                    self.leases.push((next, Phase::Waits));
                }
                Admission::Refuse(Refusal::Full) => {}
                admission => panic!("{admission:?} for one who was let in"),
            }
            let before = format!("{:?}", self.session);
            self.session.handle(Event::Release(generation), self.now, &mut effects);
            assert_eq!(before, format!("{:?}", self.session), "a late release counts");
        }
    }

    /// Whether somebody has a ready lease on it, whatever it counts for.
    fn uses(&self, generation: Generation) -> bool {
        [Phase::Ready, Phase::Ignored].iter().any(|p| self.leases.contains(&(generation, *p)))
    }

    fn answer(&mut self, generation: Generation, told: Phase) {
        for (g, phase) in &mut self.leases {
            if *g == generation && *phase == Phase::Waits {
                *phase = told;
            }
        }
    }

    /// Lets up to `most_ms` pass: everything under way arrives, and the timer fires when wanted.
    fn pass(&mut self, most_ms: u64) {
        let until = self.now + Duration::from_millis(self.rng.below(most_ms));
        self.pass_until(until);
    }

    fn pass_until(&mut self, until: Instant) {
        loop {
            let message = self.messages.first_key_value().map(|(key, _)| key.0);
            let timer = self.session.deadline();
            let Some(at) = message.into_iter().chain(timer).min().filter(|at| *at <= until) else {
                break;
            };
            self.now = self.now.max(at);
            if message.is_some_and(|at| at <= self.now) {
                let (_, message) = self.messages.pop_first().expect("there is one");
                self.arrive(message);
            } else {
                self.event(Event::Timer);
                let again = self.session.deadline().is_some_and(|at| at <= self.now);
                assert!(!again, "the timer does not advance: a busy loop");
            }
        }
        self.now = until;
    }

    fn arrive(&mut self, message: Message) {
        match message {
            Message::Start(g) => self.engine_starts(g),
            Message::Reach(g) => self.engine_reaches(g),
            Message::Stop(g, to) => self.engine_stops(g, to),
            Message::Answer(event) => {
                self.calls -= 1;
                if self.rng.percent(25) {
                    self.send(0, 60_000, Message::Again(event.clone()));
                }
                self.event(event);
            }
            Message::Again(event) => self.event(event),
            Message::Inspect => self.inspect(),
        }
    }

    fn engine_starts(&mut self, generation: Generation) {
        self.event(Event::Begun(generation));
        let ran_already = self.engine.runs();
        let refused = self.rng.percent(15);
        if refused || !self.engine.start(generation) {
            let mends = self.rng.percent(50);
            let why = if mends { Failure::EngineBusy } else { Failure::EngineRefused };
            return self.send(0, 50, Message::Answer(Event::StartFailed(generation, why)));
        }
        // The call has ended: until the probe succeeds, the instance can already be found dead.
        self.calls -= 1;
        if ran_already && self.session.generation() == generation {
            self.found.insert(generation);
            self.event(Event::RunsAlready(generation));
        }
        self.probe(generation);
    }

    fn engine_reaches(&mut self, generation: Generation) {
        if let Some(depth) = self.engine.asleep {
            return self.send(0, 50, Message::Answer(Event::Lost(generation, depth)));
        }
        let refused = self.rng.percent(30);
        if refused || !self.engine.start(generation) {
            let failed = Event::StartFailed(generation, Failure::EngineBusy);
            return self.send(0, 50, Message::Answer(failed));
        }
        self.calls -= 1;
        self.probe(generation);
    }

    /// It gets ready soon, late, or never.
    fn probe(&mut self, generation: Generation) {
        let most = match self.rng.below(10) {
            0 => return,
            1 => 100_000,
            _ => 3_000,
        };
        self.send(0, most, Message::Again(Event::Started(endpoint(generation))));
    }

    fn engine_stops(&mut self, generation: Generation, to: Depth) {
        let refused = self.rng.percent(20);
        if !refused && let Some(life) = self.engine.stop(generation, to) {
            let used = self.uses(life);
            assert!(!used || self.dead.contains(&life), "{life} ends under a lease");
        }
        let answer =
            if refused || self.rng.percent(5) { Event::StopFailed } else { Event::Stopped };
        self.send(0, 500, Message::Answer(answer(generation)));
    }

    fn inspect(&mut self) {
        if 0 < self.calls {
            return self.send(50, 500, Message::Inspect);
        }
        let current = self.session.generation();
        match self.session.state() {
            State::Asleep { .. } if self.engine.runs() => self.event(Event::Found),
            State::Asleep { depth, .. } if Some(*depth) == self.engine.asleep => {}
            _ if self.engine.runs_as(current) => {}
            // Whose life it is, is not known yet.
            State::Waking { way: Way::Found { .. }, .. } if self.engine.runs() => {}
            _ => {
                let found = self.engine.asleep.unwrap_or(Depth::Stopped);
                self.event(Event::Lost(current, found));
            }
        }
        if self.engine.runs() && self.engine.foreign {
            self.send(500, 2_000, Message::Inspect);
        }
    }

    /// Everything that must hold at any time.
    fn check(&mut self) {
        let current = self.session.generation();
        let count = |generation, phase| {
            self.leases.iter().filter(|lease| **lease == (generation, phase)).count() as u32
        };
        let (waits_for, ready) = match self.session.state() {
            State::Asleep { .. } | State::Idle { .. } => (None, 0),
            State::Waking { .. } => (Some(current), 0),
            State::Awake { leases, .. } => (None, leases.get()),
            State::Stopping { next, .. } => (Some(*next), 0),
        };
        let waiting = waits_for.map_or(0, |g| count(g, Phase::Waits));
        assert_eq!(waiting + ready, self.session.leases(), "the leases are miscounted");
        if let State::Awake { endpoint, .. } | State::Idle { endpoint, .. } = self.session.state() {
            assert_eq!(endpoint.generation, current, "awake as another generation");
            let open = count(current, Phase::Ready) + count(current, Phase::Ignored);
            assert_eq!(ready, open, "the leases are miscounted");
        }
        if let State::Idle { since, .. } = self.session.state() {
            assert_eq!(*since, self.active_at, "idleness counts from what is no activity");
        }
        for (g, phase) in &self.leases {
            let stranded = *phase == Phase::Waits && Some(*g) != waits_for;
            assert!(!stranded, "one waits for {g}, which nobody will open or fail");
        }
        if let State::Asleep { depth, .. } = self.session.state()
            && self.calls == 0
        {
            let ours = self.engine.runs() && !self.engine.foreign;
            assert!(!ours, "asleep, and {} runs", self.engine.mark);
            let lighter = self.engine.asleep.is_some_and(|real| real < *depth);
            let unseen = self.dead.contains(&self.engine.mark);
            assert!(!lighter || unseen, "said {depth}, is {:?}", self.engine.asleep);
            assert!(self.promised <= Some(*depth) || unseen, "promised {:?}", self.promised);
        }
        if let State::Waking { .. } = self.session.state() {
            (self.promised, self.cooling) = (None, None);
        }
        if self.session.is_retired() {
            let wakes = matches!(self.session.state(), State::Waking { .. });
            assert!(!wakes, "a session without a route wakes");
        }
    }

    /// Everybody leaves: the house must get dark, and stay so.
    fn end(&mut self) {
        while !self.leases.is_empty() {
            self.release();
        }
        self.pass_until(self.now + seconds(3 * 3600));
        let deepest = self.policy.ladder.last().expect("no edition is empty").to;
        let dark = matches!(self.session.state(), State::Asleep { depth, .. } if deepest <= *depth);
        assert!(dark, "everybody left, and it is {}", self.session.state().name());
        assert!(self.session.is_blank(deepest), "a failure is remembered for ever");
        // Somebody else's instance of a session without a route is not ours to end.
        let theirs = self.session.is_retired() && self.engine.foreign;
        assert!(theirs || !self.engine.runs(), "the house is not dark");
        assert_eq!(self.session.deadline(), None, "a timer is left");
    }

    fn note(&mut self, what: What, effects: Vec<Effect>) {
        let at = self.now - self.base;
        self.notes.push(Note { at, what, effects, session: self.session.clone() });
    }
}

fn endpoint(generation: Generation) -> Endpoint {
    // Every life at the same address: only the generation tells them apart.
    Endpoint { generation, address: Address::Tcp(([127, 0, 0, 1], 80).into()) }
}

/// One life of the world; the panic of a broken invariant tells the seed and what led to it.
fn run(seed: u64, doing: impl Fn(&mut World)) -> Notes {
    let mut world = World::new(seed);
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| doing(&mut world))) {
        let why = panic.downcast_ref::<String>().map(String::as_str);
        let why = why.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("?");
        let notes = world.notes.last(30);
        panic!("{why}\nreplay with DORMOUSE_SIM_SEED={seed}; the last events:\n{notes}");
    }
    world.notes
}

fn live(world: &mut World) {
    for _ in 0..STEPS {
        world.step();
    }
    world.end();
}

fn number(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{variable}={value} is not a number")))
}

#[test]
fn whatever_happens_nothing_breaks_and_the_house_gets_dark() {
    if let Some(seed) = number("DORMOUSE_SIM_SEED") {
        println!("{}", run(seed, live).last(usize::MAX));
        return;
    }
    let seeds = number("DORMOUSE_SIM_SEEDS").unwrap_or(SEEDS);
    println!("seeds 1 to {seeds}; one alone: DORMOUSE_SIM_SEED=S");
    let mut seen = BTreeSet::new();
    for seed in 1..=seeds {
        run(seed, live).kinds(&mut seen);
    }
    // A world in which these never happen would prove nothing about them.
    for kind in notes::KINDS {
        assert!(seen.contains(*kind) || seeds < 100, "{kind} never happened; only {seen:?}");
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
    let told = |seed| run(seed, live).last(usize::MAX);
    assert_eq!(told(7), told(7));
    assert_ne!(told(7), told(8));
}

#[test]
fn a_broken_invariant_tells_its_seed_and_the_last_events() {
    let broken = |world: &mut World| {
        world.acquire(Asker::Client);
        world.leases.clear();
        world.check();
    };
    let panic = catch_unwind(|| run(42, broken)).expect_err("a lost lease is seen");
    let text = panic.downcast_ref::<String>().expect("a formatted panic");
    for part in ["the leases are miscounted", "DORMOUSE_SIM_SEED=42", "Start(1)", "waking"] {
        assert!(text.contains(part), "{part:?} is missing in {text}");
    }
}
