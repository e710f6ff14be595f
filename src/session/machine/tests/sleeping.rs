//! The ladder, the one door out, and operators who push.

use super::*;

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
