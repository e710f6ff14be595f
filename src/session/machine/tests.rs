//! The machine by example: one sentence each. The whole state × event product is in
//! `tests/session_table.rs`, long lives are in `tests/sim.rs`.

use super::*;
use crate::session::Address;

mod found;
mod ignored;
mod outside;
mod sleeping;
mod waking;

const G1: Generation = Generation(1);
const G2: Generation = Generation(2);
const G3: Generation = Generation(3);

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn rung(after: u64, to: Depth) -> Rung {
    Rung { after: seconds(after), to }
}

/// Paused after 2 min, stopped after 15 min, removed after a day; awake for 1 min at least.
fn policy() -> Policy {
    Policy {
        ladder: [rung(120, Depth::Paused), rung(900, Depth::Stopped), rung(86_400, Depth::Removed)]
            .into(),
        min_awake: seconds(60),
        wake_timeout: seconds(30),
        boot_max: seconds(300),
        held_max: 3,
    }
}

fn endpoint(generation: Generation) -> Endpoint {
    Endpoint { generation, address: Address::Tcp(([127, 0, 0, 1], 80).into()) }
}

/// A session and its time. Every call returns the effects that it had.
struct Life {
    session: Session,
    now: Instant,
}

impl Life {
    fn new(policy: Policy) -> Self {
        let now = Instant::now();
        Self { session: Session::new(policy, Generation(0), Depth::Removed, now), now }
    }

    fn asleep() -> Self {
        Self::new(policy())
    }

    /// Generation 1 is on its way, for one client.
    fn waking() -> Self {
        let mut life = Self::asleep();
        assert_eq!(life.ask(), (Admission::Wait(G1), vec![Effect::Start(G1)]));
        life
    }

    /// Generation 1 serves one client.
    fn awake() -> Self {
        let mut life = Self::waking();
        assert_eq!(life.event(Event::Started(endpoint(G1))), [Effect::Open(endpoint(G1))]);
        life
    }

    /// Generation 1 is ready, and nobody there.
    fn idle() -> Self {
        let mut life = Self::awake();
        assert_eq!(life.event(Event::Release(G1)), []);
        life
    }

    /// Generation 1 is being paused.
    fn stopping() -> Self {
        let mut life = Self::idle();
        assert_eq!(life.timer_after(120), [Effect::Stop(G1, Depth::Paused)]);
        life
    }

    /// Generation 1 sleeps in memory.
    fn paused() -> Self {
        let mut life = Self::stopping();
        assert_eq!(life.event(Event::Stopped(G1)), []);
        life
    }

    /// Generation 1 failed to start and is gone; the cooldown runs.
    fn cooling() -> Self {
        let mut life = Self::waking();
        life.event(Event::StartFailed(G1, Failure::EngineBusy));
        assert_eq!(life.event(Event::Stopped(G1)), []);
        life
    }

    fn pass(&mut self, by: u64) -> &mut Self {
        self.now += seconds(by);
        self
    }

    fn event(&mut self, event: Event) -> Vec<Effect> {
        let mut out = Vec::new();
        self.session.handle(event, self.now, &mut out);
        out
    }

    fn timer_after(&mut self, by: u64) -> Vec<Effect> {
        self.pass(by).event(Event::Timer)
    }

    fn acquire(&mut self, asker: Asker) -> (Admission, Vec<Effect>) {
        let mut out = Vec::new();
        (self.session.acquire(asker, self.now, &mut out), out)
    }

    fn ask(&mut self) -> (Admission, Vec<Effect>) {
        self.acquire(Asker::Client)
    }

    fn refused(&mut self) -> Refusal {
        match self.ask() {
            (Admission::Refuse(refusal), effects) if effects.is_empty() => refusal,
            other => panic!("not refused: {other:?}"),
        }
    }

    fn sleep(&mut self, to: Depth) -> (SleepAnswer, Vec<Effect>) {
        let mut out = Vec::new();
        (self.session.sleep(to, self.now, &mut out), out)
    }

    /// How long until the timer is wanted.
    fn due(&self) -> Option<Duration> {
        self.session.deadline().map(|at| at.saturating_duration_since(self.now))
    }

    fn state(&self) -> &'static str {
        self.session.state().name()
    }

    #[track_caller]
    fn assert_asleep(&self, expected: Depth) {
        match self.session.state() {
            State::Asleep { depth, .. } => assert_eq!(*depth, expected),
            other => panic!("{other:?}"),
        }
    }
}

fn wait(generation: Generation) -> (Admission, Vec<Effect>) {
    (Admission::Wait(generation), vec![])
}
