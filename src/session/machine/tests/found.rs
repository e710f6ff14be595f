//! What runs is not what is being started.

use super::*;

/// Generation 1 was found running, and is not ready.
fn found() -> Life {
    let mut life = Life::asleep();
    assert_eq!(life.event(Event::Found), [Effect::Start(G1)]);
    life
}

#[test]
fn what_was_found_has_no_deadline() {
    let mut life = found();
    life.ask();
    assert_eq!((life.due(), life.timer_after(1_000_000)), (None, vec![]));
    assert_eq!((life.state(), life.session.leases()), ("waking", 1));
}

#[test]
fn who_asks_for_what_was_found_waits_and_is_let_in() {
    let mut life = found();
    assert_eq!(life.ask(), wait(G1));
    assert_eq!(life.event(Event::Started(endpoint(G1))), [Effect::Open(endpoint(G1))]);
    assert_eq!((life.state(), life.session.leases()), ("awake", 1));
}

#[test]
fn what_was_found_sleeps_by_idleness_though_it_never_gets_ready() {
    let mut life = found();
    life.pass(20).ask();
    life.pass(20).event(Event::Release(G1));
    assert_eq!(life.due(), Some(seconds(120)), "from the last activity");
    assert_eq!(life.timer_after(119), []);
    assert_eq!(life.timer_after(1), [Effect::Stop(G1, Depth::Paused)]);
    life.event(Event::Stopped(G1));
    life.assert_asleep(Depth::Paused);
    assert_eq!(life.ask().0, Admission::Wait(G2), "no cooldown");
}

#[test]
fn what_was_found_gets_the_time_of_a_wake_before_it_sleeps() {
    let hasty =
        Policy { ladder: [rung(0, Depth::Paused)].into(), min_awake: seconds(0), ..policy() };
    let mut life = Life::new(hasty);
    life.event(Event::Found);
    assert_eq!(life.due(), Some(seconds(30)));
    assert_eq!(life.timer_after(29), []);
    life.event(Event::Started(endpoint(G1)));
    assert_eq!(life.due(), Some(seconds(0)), "ready, it sleeps like any other");
}

#[test]
fn an_engine_that_cannot_say_where_it_is_is_asked_again_and_nothing_stops() {
    let mut life = found();
    life.ask();
    let failed = Effect::Fail(G1, Failure::EngineRefused);
    assert_eq!(life.event(Event::StartFailed(G1, Failure::EngineRefused)), [failed]);
    assert_eq!((life.state(), life.session.leases()), ("waking", 0));
    assert_eq!(life.event(Event::Release(G1)), [], "of the lease that was failed");
    assert_eq!(life.timer_after(1), [Effect::Start(G2)]);
    for pause in [2, 4, 8] {
        let current = life.session.generation();
        assert_eq!(life.event(Event::StartFailed(current, Failure::EngineBusy)), []);
        assert_eq!(life.timer_after(pause - 1), []);
        assert_eq!(life.timer_after(1), [Effect::Start(current.next())]);
    }
}

#[test]
fn who_asks_is_not_kept_for_long_until_the_engine_is_asked_again() {
    let mut life = Life::new(Policy { ladder: [rung(86_400, Depth::Stopped)].into(), ..policy() });
    life.event(Event::Found);
    for _ in 0..8 {
        let current = life.session.generation();
        life.event(Event::StartFailed(current, Failure::EngineBusy));
        life.pass(60).event(Event::Timer);
    }
    let current = life.session.generation();
    life.event(Event::StartFailed(current, Failure::EngineBusy));
    assert_eq!(life.ask(), wait(current.next()));
    assert_eq!(life.due(), Some(seconds(1)));
    assert_eq!(life.timer_after(1), [Effect::Start(current.next())]);
}

#[test]
fn a_look_puts_nothing_to_sleep() {
    let mut life = found();
    life.event(Event::StartFailed(G1, Failure::EngineBusy));
    life.pass(1_000);
    let mut out = Vec::new();
    life.session.look(life.now, &mut out);
    assert_eq!(out, [Effect::Start(G2)]);
    assert_eq!(life.event(Event::Timer), [Effect::Stop(G2, Depth::Stopped)]);
}

#[test]
fn who_waits_for_what_was_found_and_ended_wakes_it() {
    let mut life = found();
    life.ask();
    let effects = life.event(Event::Lost(G1, Depth::Removed));
    assert_eq!(effects, [Effect::Rejoin(G1), Effect::Stop(G1, Depth::Removed)]);
    assert_eq!(life.ask(), wait(G2));
    assert_eq!(life.event(Event::Release(G1)), []);
    assert_eq!(life.event(Event::Stopped(G1)), [Effect::Start(G2)]);
}

#[test]
fn an_operator_an_edit_and_another_sessions_need_end_what_was_found() {
    let mut life = found();
    let slept = Effect::Fail(G1, Failure::PutToSleep);
    let stop = Effect::Stop(G1, Depth::Stopped);
    assert_eq!(life.sleep(Depth::Stopped), (SleepAnswer::Begun, vec![slept, stop.clone()]));
    let mut life = found();
    let retired = Effect::Fail(G1, Failure::Retired);
    assert_eq!(life.event(Event::Retire), [retired, stop.clone()]);
    let mut life = found();
    assert_eq!(life.event(Event::Evict), [], "min_awake");
    assert_eq!(life.pass(60).event(Event::Evict), [stop]);
    let mut life = found();
    life.pass(60).ask();
    assert_eq!(life.event(Event::Evict), [], "somebody waits for it");
}

#[test]
fn what_ran_before_it_was_asked_for_was_found() {
    let mut life = Life::waking();
    assert_eq!(life.event(Event::RunsAlready(G1)), []);
    assert!(life.session.is_found());
    assert_eq!((life.due(), life.timer_after(1_000_000)), (None, vec![]));
    assert_eq!(life.event(Event::Started(endpoint(G1))), [Effect::Open(endpoint(G1))]);
}

// ## What is being started

#[test]
fn a_start_that_has_begun_goes_on_behind_the_timeout_and_is_bounded() {
    let mut life = Life::waking();
    life.pass(20).event(Event::Begun(G1));
    life.event(Event::Release(G1));
    assert_eq!(life.timer_after(279), []);
    assert_eq!(life.ask(), wait(G1), "the next one joins, and starts nothing");
    let failed = Effect::Fail(G1, Failure::Timeout);
    assert_eq!(life.timer_after(1), [failed, Effect::Stop(G1, Depth::Stopped)]);
    assert_eq!(life.refused(), Refusal::CoolingDown(life.now + seconds(1)));
}

#[test]
fn a_short_boot_max_is_no_shorter_than_the_timeout() {
    let mut life = Life::new(Policy { boot_max: seconds(0), ..policy() });
    life.ask();
    life.event(Event::Begun(G1));
    assert_eq!(life.due(), Some(seconds(30)));
}

#[test]
fn a_resume_that_fails_is_a_deeper_wake_for_the_same_hold() {
    let ends = [Event::Lost(G2, Depth::Stopped), Event::StartFailed(G2, Failure::EngineRefused)];
    for end in ends {
        let mut life = Life::paused();
        assert_eq!(life.ask(), (Admission::Wait(G2), vec![Effect::Start(G2)]));
        assert_eq!(life.event(end), [Effect::Rejoin(G2), Effect::Stop(G2, Depth::Stopped)]);
        assert_eq!(life.ask(), wait(G3));
        life.event(Event::Release(G2));
        assert_eq!(life.event(Event::Stopped(G2)), [Effect::Start(G3)]);
        // Once: this one boots, and its failure is one.
        let failed = Effect::Fail(G3, Failure::Died);
        let effects = life.event(Event::Lost(G3, Depth::Stopped));
        assert_eq!(effects, [failed, Effect::Stop(G3, Depth::Stopped)]);
        assert_eq!(life.refused(), Refusal::CoolingDown(life.now + seconds(1)));
    }
}

#[test]
fn a_resume_that_fails_with_nobody_there_cools_nothing_down() {
    let mut life = Life::paused();
    life.ask();
    life.event(Event::Release(G2));
    assert_eq!(life.event(Event::Lost(G2, Depth::Stopped)), [Effect::Stop(G2, Depth::Stopped)]);
    life.event(Event::Stopped(G2));
    assert_eq!(life.ask(), (Admission::Wait(G3), vec![Effect::Start(G3)]));
}

#[test]
fn a_resume_that_its_engine_cannot_try_now_is_a_failed_wake() {
    let mut life = Life::paused();
    life.ask();
    let failed = Effect::Fail(G2, Failure::EngineBusy);
    let effects = life.event(Event::StartFailed(G2, Failure::EngineBusy));
    assert_eq!(effects, [failed, Effect::Stop(G2, Depth::Stopped)]);
}
