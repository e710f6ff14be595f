//! Waking, failing to, and being awake.

use super::*;

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
