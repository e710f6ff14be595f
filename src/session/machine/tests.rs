//! The machine by example: one sentence each. The whole state × event product is in
//! `tests/session_table.rs`, long lives are in `tests/sim.rs`.

use std::sync::Arc;

use super::*;
use crate::session::Address;

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

// ## Waking

#[test]
fn first_request_starts_the_wake() {
    let mut life = Life::asleep();
    assert_eq!(life.ask(), (Admission::Wait(G1), vec![Effect::Start(G1)]));
    assert_eq!((life.state(), life.session.generation()), ("waking", G1));
}

#[test]
fn second_request_joins_the_wake() {
    let mut life = Life::waking();
    assert_eq!(life.ask(), wait(G1));
    assert_eq!(life.session.leases(), 2);
}

#[test]
fn whoever_waits_holds_a_lease_once_it_is_ready() {
    let mut life = Life::waking();
    life.ask();
    assert_eq!(life.event(Event::Started(endpoint(G1))), [Effect::Open(endpoint(G1))]);
    assert_eq!((life.state(), life.session.leases()), ("awake", 2));
}

#[test]
fn a_wake_goes_on_when_everybody_who_waits_has_left() {
    let mut life = Life::waking();
    assert_eq!(life.event(Event::Release(G1)), []);
    assert_eq!((life.state(), life.session.leases()), ("waking", 0));
    life.event(Event::Started(endpoint(G1)));
    assert_eq!(life.state(), "idle");
}

#[test]
fn more_than_held_max_cannot_wait_for_a_wake() {
    let mut life = Life::waking();
    assert_eq!((life.ask(), life.ask()), (wait(G1), wait(G1)));
    assert_eq!(life.refused(), Refusal::Full);
    life.event(Event::Release(G1));
    assert_eq!(life.ask(), wait(G1));
}

#[test]
fn the_engines_no_fails_the_wake_and_cleans_up() {
    let mut life = Life::waking();
    let effects = life.event(Event::StartFailed(G1, Failure::EngineRefused));
    let failed = Effect::Fail(G1, Failure::EngineRefused);
    assert_eq!(effects, [failed, Effect::Stop(G1, Depth::Stopped)]);
}

#[test]
fn a_wake_fails_at_its_timeout_and_not_before() {
    let mut life = Life::waking();
    assert_eq!(life.due(), Some(seconds(30)));
    assert_eq!(life.timer_after(29), []);
    let failed = Effect::Fail(G1, Failure::Timeout);
    assert_eq!(life.timer_after(1), [failed, Effect::Stop(G1, Depth::Stopped)]);
}

#[test]
fn an_instance_that_ends_while_waking_fails_the_wake() {
    let mut life = Life::waking();
    let failed = Effect::Fail(G1, Failure::Died);
    let effects = life.event(Event::Lost(G1, Depth::Removed));
    assert_eq!(effects, [failed, Effect::Stop(G1, Depth::Stopped)]);
}

// ## Awake and idle

#[test]
fn a_request_to_an_awake_session_is_ready_at_once() {
    let mut life = Life::awake();
    assert_eq!(life.ask(), (Admission::Ready(endpoint(G1)), vec![]));
    assert_eq!(life.session.leases(), 2);
}

#[test]
fn held_max_does_not_bound_the_awake() {
    let mut life = Life::awake();
    for _ in 0..10 {
        assert_eq!(life.ask().0, Admission::Ready(endpoint(G1)));
    }
}

#[test]
fn an_awake_session_wants_no_timer() {
    let mut life = Life::awake();
    assert_eq!((life.due(), life.session.next_sleep()), (None, None));
    assert_eq!(life.timer_after(1_000_000), []);
    assert_eq!(life.state(), "awake");
}

#[test]
fn only_the_last_release_makes_it_idle() {
    let mut life = Life::awake();
    life.ask();
    life.event(Event::Release(G1));
    assert_eq!((life.state(), life.session.leases()), ("awake", 1));
    life.event(Event::Release(G1));
    assert_eq!((life.state(), life.session.leases()), ("idle", 0));
}

#[test]
fn a_request_to_an_idle_session_is_ready_and_keeps_min_awake_counting() {
    let mut life = Life::idle();
    life.pass(50);
    assert_eq!(life.ask(), (Admission::Ready(endpoint(G1)), vec![]));
    assert_eq!((life.state(), life.session.leases()), ("awake", 1));
    let State::Awake { woke_at, .. } = life.session.state() else { panic!() };
    assert_eq!(life.now - *woke_at, seconds(50));
}

#[test]
fn an_awake_instance_that_ends_is_cleaned_up_in_the_depth_it_was_found() {
    for mut life in [Life::awake(), Life::idle()] {
        let effects = life.event(Event::Lost(G1, Depth::Suspended));
        assert_eq!(effects, [Effect::Stop(G1, Depth::Suspended)]);
        assert_eq!(life.session.leases(), 0);
        life.event(Event::Stopped(G1));
        life.assert_asleep(Depth::Suspended);
        // Its death is not a failed wake: the next request wakes it at once.
        assert_eq!(life.ask(), (Admission::Wait(G2), vec![Effect::Start(G2)]));
    }
}

// ## The ladder

#[test]
fn it_steps_down_the_ladder_rung_by_rung() {
    let mut life = Life::idle();
    assert_eq!(life.due(), Some(seconds(120)));
    assert_eq!(life.timer_after(119), []);
    assert_eq!(life.timer_after(1), [Effect::Stop(G1, Depth::Paused)]);
    life.pass(5).event(Event::Stopped(G1));
    assert_eq!(life.due(), Some(seconds(775)), "counted from the last activity, not from the stop");
    assert_eq!(life.timer_after(775), [Effect::Stop(G2, Depth::Stopped)]);
    life.event(Event::Stopped(G2));
    assert_eq!(life.timer_after(85_500), [Effect::Stop(G3, Depth::Removed)]);
    life.event(Event::Stopped(G3));
    life.assert_asleep(Depth::Removed);
    assert_eq!((life.due(), life.session.next_sleep()), (None, None));
    assert!(life.session.is_blank(Depth::Removed));
}

#[test]
fn a_late_timer_goes_to_the_deepest_rung_that_is_due() {
    let mut life = Life::idle();
    assert_eq!(life.timer_after(900), [Effect::Stop(G1, Depth::Stopped)]);
    let mut life = Life::paused();
    assert_eq!(life.timer_after(100_000), [Effect::Stop(G2, Depth::Removed)]);
}

#[test]
fn min_awake_wins_over_a_shorter_rung() {
    let ladder = [rung(5, Depth::Paused), rung(10, Depth::Stopped)].into();
    let mut life = Life::idle();
    life.session.adopt_policy(Policy { ladder, ..policy() });
    assert_eq!(life.due(), Some(seconds(60)));
    assert_eq!(life.timer_after(59), []);
    assert_eq!(life.timer_after(1), [Effect::Stop(G1, Depth::Stopped)], "by now it is due too");
}

#[test]
fn min_awake_counts_from_the_wake_and_not_from_the_last_lease() {
    let mut life = Life::awake();
    life.pass(1_000).event(Event::Release(G1));
    assert_eq!(life.due(), Some(seconds(120)));
}

#[test]
fn an_empty_ladder_never_sleeps() {
    let mut life = Life::idle();
    life.session.adopt_policy(Policy { ladder: [].into(), ..policy() });
    assert_eq!((life.due(), life.session.next_sleep()), (None, None));
    assert_eq!(life.timer_after(1_000_000), []);
    assert_eq!(life.state(), "idle");
}

#[test]
fn next_sleep_says_when_and_how_deep() {
    let life = Life::idle();
    assert_eq!(life.session.next_sleep(), Some((life.now + seconds(120), Depth::Paused)));
    let life = Life::paused();
    assert_eq!(life.session.next_sleep(), Some((life.now + seconds(780), Depth::Stopped)));
    for life in [Life::waking(), Life::awake(), Life::stopping()] {
        assert_eq!(life.session.next_sleep(), None);
    }
}

#[test]
fn a_new_policy_counts_from_the_old_activity() {
    let mut life = Life::idle();
    life.pass(100);
    life.session.adopt_policy(Policy { ladder: [rung(90, Depth::Stopped)].into(), ..policy() });
    assert_eq!(life.due(), Some(Duration::ZERO));
    assert_eq!(life.timer_after(0), [Effect::Stop(G1, Depth::Stopped)]);
}

#[test]
fn a_paused_session_wakes_as_a_new_generation() {
    let mut life = Life::paused();
    assert_eq!(life.ask(), (Admission::Wait(G2), vec![Effect::Start(G2)]));
}

#[test]
fn a_late_answer_to_the_lighter_sleep_does_not_end_the_deeper_one() {
    let mut life = Life::paused();
    assert_eq!(life.timer_after(780), [Effect::Stop(G2, Depth::Stopped)]);
    life.event(Event::Stopped(G1));
    assert_eq!(life.state(), "stopping");
    life.event(Event::Stopped(G2));
    life.assert_asleep(Depth::Stopped);
}

// ## Stopping

#[test]
fn a_request_while_stopping_wakes_the_next_generation() {
    let mut life = Life::stopping();
    assert_eq!(life.ask(), wait(G2));
    assert_eq!(life.ask(), wait(G2));
    assert_eq!(life.event(Event::Stopped(G1)), [Effect::Start(G2)]);
    assert_eq!((life.state(), life.session.leases()), ("waking", 2));
    assert_eq!(life.due(), Some(seconds(30)), "its timeout counts from its own start");
}

#[test]
fn more_than_held_max_cannot_wait_behind_a_stop() {
    let mut life = Life::stopping();
    assert_eq!((life.ask(), life.ask(), life.ask()), (wait(G2), wait(G2), wait(G2)));
    assert_eq!(life.refused(), Refusal::Full);
}

#[test]
fn it_sleeps_when_everybody_behind_the_stop_has_left() {
    let mut life = Life::stopping();
    life.ask();
    assert_eq!(life.event(Event::Release(G2)), []);
    assert_eq!(life.event(Event::Stopped(G1)), []);
    life.assert_asleep(Depth::Paused);
}

#[test]
fn a_lease_of_the_ended_generation_counts_nowhere() {
    let mut life = Life::awake();
    life.event(Event::Lost(G1, Depth::Stopped));
    life.ask();
    life.event(Event::Release(G1));
    assert_eq!(life.session.leases(), 1);
    life.event(Event::Stopped(G1));
    life.event(Event::Release(G1));
    assert_eq!((life.state(), life.session.leases()), ("waking", 1));
}

#[test]
fn a_stop_that_fails_is_tried_again_with_growing_pauses() {
    let mut life = Life::stopping();
    for pause in [1, 2, 4, 8, 16, 32, 60, 60] {
        assert_eq!(life.due(), None, "the engine is at it");
        assert_eq!(life.event(Event::StopFailed(G1)), []);
        assert_eq!(life.due(), Some(seconds(pause)));
        assert_eq!(life.timer_after(pause - 1), []);
        assert_eq!(life.timer_after(1), [Effect::Stop(G1, Depth::Paused)]);
    }
    life.event(Event::Stopped(G1));
    life.assert_asleep(Depth::Paused);
}

#[test]
fn a_failing_stop_fails_those_who_wait_and_refuses_all_others() {
    let mut life = Life::stopping();
    life.ask();
    assert_eq!(life.event(Event::StopFailed(G1)), [Effect::Fail(G2, Failure::StopFailing)]);
    assert_eq!(life.refused(), Refusal::StopFailing(life.now + seconds(1)));
    let operator = life.acquire(Asker::Operator).0;
    assert_eq!(operator, Admission::Refuse(Refusal::StopFailing(life.now + seconds(1))));
}

#[test]
fn a_late_release_of_a_failed_lease_never_counts_against_a_living_one() {
    let mut life = Life::stopping();
    life.ask();
    life.event(Event::StopFailed(G1));
    life.timer_after(1);
    assert_eq!(life.ask(), wait(G3), "2 was failed");
    life.event(Event::Release(G2));
    assert_eq!(life.session.leases(), 1);
    assert_eq!(life.event(Event::Stopped(G1)), [Effect::Start(G3)]);
    life.event(Event::Release(G2));
    assert_eq!(life.session.leases(), 1);
}

#[test]
fn a_failed_generation_is_not_used_again_after_a_sleep() {
    let mut life = Life::stopping();
    life.ask();
    life.event(Event::StopFailed(G1));
    assert_eq!(life.event(Event::Stopped(G1)), [], "nobody waits any more");
    assert_eq!(life.ask(), (Admission::Wait(G3), vec![Effect::Start(G3)]));
    life.event(Event::Release(G2));
    assert_eq!(life.session.leases(), 1);
}

#[test]
fn one_release_too_many_does_no_harm() {
    let mut life = Life::waking();
    life.event(Event::Release(G1));
    life.event(Event::Release(G1));
    assert_eq!(life.session.leases(), 0);
    let mut life = Life::stopping();
    life.event(Event::Release(G2));
    assert_eq!(life.session.leases(), 0);
}

// ## Cooldown

#[test]
fn the_cooldown_doubles_up_to_a_minute() {
    let mut life = Life::asleep();
    let mut generation = Generation(0);
    for pause in [1, 2, 4, 8, 16, 32, 60, 60] {
        generation = generation.next();
        assert_eq!(life.ask(), (Admission::Wait(generation), vec![Effect::Start(generation)]));
        life.event(Event::StartFailed(generation, Failure::EngineBusy));
        let until = life.now + seconds(pause);
        assert_eq!(life.refused(), Refusal::CoolingDown(until), "while it is cleaned up");
        life.event(Event::Stopped(generation));
        assert_eq!(life.refused(), Refusal::CoolingDown(until));
        life.pass(pause - 1);
        assert_eq!(life.refused(), Refusal::CoolingDown(until));
        life.pass(1);
    }
}

#[test]
fn a_success_resets_the_cooldown() {
    let mut life = Life::cooling();
    life.pass(1).ask();
    life.event(Event::Started(endpoint(G2)));
    life.event(Event::Lost(G2, Depth::Stopped));
    life.event(Event::Stopped(G2));
    life.ask();
    life.event(Event::StartFailed(G3, Failure::EngineBusy));
    life.event(Event::Stopped(G3));
    assert_eq!(life.refused(), Refusal::CoolingDown(life.now + seconds(1)));
}

#[test]
fn an_operator_does_not_wait_for_the_cooldown() {
    let mut life = Life::cooling();
    let admission = life.acquire(Asker::Operator);
    assert_eq!(admission, (Admission::Wait(G2), vec![Effect::Start(G2)]));
    life.event(Event::StartFailed(G2, Failure::EngineBusy));
    assert_eq!(life.acquire(Asker::Operator), wait(G3), "not while it is cleaned up either");
    assert_eq!(life.event(Event::Stopped(G2)), [Effect::Start(G3)]);
}

#[test]
fn failures_are_forgotten_a_minute_after_the_cooldown() {
    let mut life = Life::cooling();
    assert!(!life.session.is_blank(Depth::Stopped));
    assert_eq!(life.due(), Some(seconds(61)));
    assert_eq!(life.timer_after(60), []);
    assert!(!life.session.is_blank(Depth::Stopped));
    assert_eq!(life.timer_after(1), []);
    assert!(life.session.is_blank(Depth::Stopped));
    life.ask();
    life.event(Event::StartFailed(G2, Failure::EngineBusy));
    life.event(Event::Stopped(G2));
    assert_eq!(life.refused(), Refusal::CoolingDown(life.now + seconds(1)));
}

#[test]
fn the_ladder_waits_for_the_cooldown() {
    let ladder = [rung(5, Depth::Paused), rung(10, Depth::Removed)].into();
    let mut life = Life::cooling();
    life.session.adopt_policy(Policy { ladder, ..policy() });
    assert_eq!(life.timer_after(60), []);
    assert_eq!(life.session.next_sleep(), Some((life.now + seconds(1), Depth::Removed)));
    assert_eq!(life.timer_after(1), [Effect::Stop(G2, Depth::Removed)]);
    life.event(Event::Stopped(G2));
    assert!(life.session.is_blank(Depth::Removed));
}

#[test]
fn a_wake_that_an_operator_or_an_edit_ends_is_no_failure() {
    for retired in [true, false] {
        let mut life = Life::cooling();
        life.pass(1).ask();
        if retired {
            life.event(Event::Retire);
            life.session.adopt_policy(policy());
        } else {
            life.event(Event::Release(G2));
            life.sleep(Depth::Stopped);
        }
        assert_eq!(life.event(Event::Stopped(G2)), []);
        assert!(life.session.is_blank(Depth::Stopped));
        assert_eq!(life.ask(), (Admission::Wait(G3), vec![Effect::Start(G3)]));
    }
}

#[test]
fn blank_means_asleep_deep_enough() {
    assert!(Life::asleep().session.is_blank(Depth::Removed));
    assert!(Life::paused().session.is_blank(Depth::Paused));
    assert!(!Life::paused().session.is_blank(Depth::Stopped));
    for life in [Life::waking(), Life::awake(), Life::idle(), Life::stopping()] {
        assert!(!life.session.is_blank(Depth::Paused));
    }
}

// ## Operators put it to sleep

#[test]
fn an_operator_cannot_put_to_sleep_what_is_in_use() {
    let mut behind = Life::stopping();
    behind.ask();
    for mut life in [Life::waking(), Life::awake(), behind] {
        assert_eq!(life.sleep(Depth::Removed), (SleepAnswer::InUse(1), vec![]));
    }
}

#[test]
fn an_operator_puts_an_idle_session_to_sleep_at_once() {
    let mut life = Life::idle();
    let stop = Effect::Stop(G1, Depth::Removed);
    assert_eq!(life.sleep(Depth::Removed), (SleepAnswer::Begun, vec![stop]));
}

#[test]
fn an_operator_ends_a_wake_that_nobody_waits_for() {
    let mut life = Life::waking();
    life.event(Event::Release(G1));
    let failed = Effect::Fail(G1, Failure::PutToSleep);
    let stop = Effect::Stop(G1, Depth::Stopped);
    assert_eq!(life.sleep(Depth::Stopped), (SleepAnswer::Begun, vec![failed, stop]));
}

#[test]
fn an_operator_may_let_it_sleep_deeper_but_not_lighter() {
    let mut life = Life::paused();
    assert_eq!(life.sleep(Depth::Paused), (SleepAnswer::Already, vec![]));
    let stop = Effect::Stop(G2, Depth::Suspended);
    assert_eq!(life.sleep(Depth::Suspended), (SleepAnswer::Begun, vec![stop]));
    assert_eq!(life.sleep(Depth::Paused), (SleepAnswer::Already, vec![]));
}

#[test]
fn a_deeper_sleep_asked_for_while_stopping_follows_the_lighter_one() {
    let mut life = Life::stopping();
    assert_eq!(life.sleep(Depth::Paused), (SleepAnswer::Already, vec![]));
    assert_eq!(life.sleep(Depth::Removed), (SleepAnswer::Begun, vec![]));
    assert_eq!(life.sleep(Depth::Removed), (SleepAnswer::Already, vec![]));
    assert_eq!(life.sleep(Depth::Stopped), (SleepAnswer::Already, vec![]));
    assert_eq!(life.event(Event::Stopped(G1)), [Effect::Stop(G2, Depth::Removed)]);
    assert_eq!(life.event(Event::Stopped(G2)), []);
    life.assert_asleep(Depth::Removed);
}

#[test]
fn a_wake_overrules_the_deeper_sleep_asked_for() {
    let mut life = Life::stopping();
    life.sleep(Depth::Removed);
    life.ask();
    assert_eq!(life.event(Event::Stopped(G1)), [Effect::Start(G2)]);
    life.event(Event::Started(endpoint(G2)));
    life.event(Event::Release(G2));
    assert_eq!(life.timer_after(120), [Effect::Stop(G2, Depth::Paused)]);
    assert_eq!(life.event(Event::Stopped(G2)), []);
    life.assert_asleep(Depth::Paused);
}

// ## Routes come and go

#[test]
fn a_retired_session_refuses_everybody() {
    for mut life in [
        Life::asleep(),
        Life::cooling(),
        Life::waking(),
        Life::awake(),
        Life::idle(),
        Life::stopping(),
    ] {
        life.event(Event::Retire);
        assert!(life.session.is_retired());
        assert_eq!(life.refused(), Refusal::Retired);
        let operator = life.acquire(Asker::Operator);
        assert_eq!(operator, (Admission::Refuse(Refusal::Retired), vec![]));
    }
}

#[test]
fn retiring_fails_a_wake() {
    let mut life = Life::waking();
    let failed = Effect::Fail(G1, Failure::Retired);
    assert_eq!(life.event(Event::Retire), [failed, Effect::Stop(G1, Depth::Stopped)]);
}

#[test]
fn retiring_lets_the_awake_drain_and_then_stops_them() {
    let mut life = Life::awake();
    life.ask();
    assert_eq!(life.event(Event::Retire), []);
    assert_eq!(life.event(Event::Release(G1)), []);
    assert_eq!(life.event(Event::Release(G1)), [Effect::Stop(G1, Depth::Stopped)]);
    life.event(Event::Stopped(G1));
    life.assert_asleep(Depth::Stopped);
}

#[test]
fn retiring_stops_the_idle_at_once() {
    assert_eq!(Life::idle().event(Event::Retire), [Effect::Stop(G1, Depth::Stopped)]);
}

#[test]
fn retiring_fails_those_who_wait_behind_a_stop() {
    let mut life = Life::stopping();
    life.ask();
    assert_eq!(life.event(Event::Retire), [Effect::Fail(G2, Failure::Retired)]);
    assert_eq!(life.session.leases(), 0);
    let mut life = Life::stopping();
    assert_eq!(life.event(Event::Retire), []);
}

#[test]
fn a_session_without_a_route_does_not_stay_in_memory() {
    let mut life = Life::paused();
    assert_eq!(life.event(Event::Retire), [Effect::Stop(G2, Depth::Stopped)]);
    let mut life = Life::stopping();
    life.event(Event::Retire);
    assert_eq!(life.event(Event::Stopped(G1)), [Effect::Stop(G2, Depth::Stopped)]);
    life.event(Event::Stopped(G2));
    assert_eq!(life.event(Event::Retire), [], "stopped is deep enough");
}

#[test]
fn retiring_does_not_undo_a_deeper_sleep_asked_for() {
    let mut life = Life::stopping();
    life.sleep(Depth::Removed);
    life.event(Event::Retire);
    assert_eq!(life.event(Event::Stopped(G1)), [Effect::Stop(G2, Depth::Removed)]);
}

#[test]
fn a_retired_session_goes_on_down_the_ladder() {
    let mut life = Life::idle();
    life.event(Event::Retire);
    life.event(Event::Stopped(G1));
    assert_eq!(life.timer_after(86_400), [Effect::Stop(G2, Depth::Removed)]);
}

#[test]
fn a_route_that_is_back_revives_its_session() {
    let mut life = Life::awake();
    life.event(Event::Retire);
    life.session.adopt_policy(policy());
    assert!(!life.session.is_retired());
    assert_eq!(life.ask(), (Admission::Ready(endpoint(G1)), vec![]));
    life.event(Event::Release(G1));
    life.event(Event::Release(G1));
    assert_eq!(life.state(), "idle");
}

// ## What others do to the instance

#[test]
fn an_instance_found_running_is_adopted() {
    let mut life = Life::paused();
    assert_eq!(life.event(Event::Found), [Effect::Start(G2)]);
    life.event(Event::Started(endpoint(G2)));
    assert_eq!((life.state(), life.due()), ("idle", Some(seconds(120))));
}

#[test]
fn an_instance_found_running_without_a_route_is_left_alone() {
    let mut life = Life::asleep();
    life.event(Event::Retire);
    assert_eq!(life.event(Event::Found), []);
    life.assert_asleep(Depth::Removed);
}

#[test]
fn found_says_nothing_new_of_what_is_not_asleep() {
    for mut life in [Life::waking(), Life::awake(), Life::idle(), Life::stopping()] {
        let before = life.session.state().clone();
        assert_eq!(life.event(Event::Found), []);
        assert_eq!(life.session.state(), &before);
    }
}

#[test]
fn a_sleeper_is_as_deep_as_it_was_found() {
    let mut life = Life::paused();
    assert_eq!(life.event(Event::Lost(G1, Depth::Removed)), []);
    life.assert_asleep(Depth::Removed);
    assert_eq!(life.due(), None);
}

// ## Fencing and arithmetic

#[test]
fn a_message_of_another_generation_changes_nothing() {
    let lives = [
        Life::asleep,
        Life::cooling,
        Life::waking,
        Life::awake,
        Life::idle,
        Life::stopping,
        Life::paused,
    ];
    for make in lives {
        for g in [Generation(0), Generation(9)] {
            for event in [
                Event::Release(g),
                Event::Started(endpoint(g)),
                Event::StartFailed(g, Failure::EngineBusy),
                Event::Stopped(g),
                Event::StopFailed(g),
                Event::Lost(g, Depth::Suspended),
            ] {
                let mut life = make();
                if life.session.generation() == g {
                    continue;
                }
                let before = format!("{:?}", life.session);
                assert_eq!(life.event(event.clone()), [], "{event:?} in {before}");
                assert_eq!(format!("{:?}", life.session), before, "{event:?}");
            }
        }
    }
}

#[test]
fn durations_without_end_never_panic_and_never_come() {
    let ladder = [Rung { after: Duration::MAX, to: Depth::Stopped }].into();
    let endless = || Policy {
        ladder: Arc::clone(&ladder),
        min_awake: Duration::MAX,
        wake_timeout: Duration::MAX,
        held_max: u32::MAX,
    };
    let mut life = Life::new(endless());
    life.ask();
    assert_eq!((life.due(), life.timer_after(1_000_000)), (None, vec![]));
    life.event(Event::Started(endpoint(G1)));
    life.event(Event::Release(G1));
    assert_eq!((life.due(), life.timer_after(1_000_000)), (None, vec![]));
    life.session.adopt_policy(Policy { min_awake: Duration::ZERO, ..endless() });
    assert_eq!((life.due(), life.timer_after(1_000_000)), (None, vec![]));
    life.sleep(Depth::Paused);
    life.event(Event::Stopped(G1));
    assert_eq!((life.due(), life.timer_after(1_000_000)), (None, vec![]));
    life.assert_asleep(Depth::Paused);
}

#[test]
fn a_new_session_goes_on_from_the_highest_generation_ever_seen() {
    let now = Instant::now();
    let session = Session::new(policy(), Generation(41), Depth::Stopped, now);
    let mut life = Life { session, now };
    life.assert_asleep(Depth::Stopped);
    assert_eq!(life.ask().0, Admission::Wait(Generation(42)));
}

#[test]
fn states_have_the_words_of_the_admin_api() {
    let lives = [Life::asleep(), Life::waking(), Life::awake(), Life::idle(), Life::stopping()];
    let words = lives.map(|life| life.state());
    assert_eq!(words, ["asleep", "waking", "awake", "idle", "stopping"]);
}
