//! Routes that come and go, instances that others touch, messages that are stale.

use std::sync::Arc;

use super::*;

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
fn retiring_does_not_repeat_a_stop_that_is_deep_enough() {
    let mut life = Life::idle();
    life.sleep(Depth::Stopped);
    assert_eq!(life.event(Event::Retire), []);
    assert_eq!(life.event(Event::Stopped(G1)), []);
    life.assert_asleep(Depth::Stopped);
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
        boot_max: Duration::MAX,
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
