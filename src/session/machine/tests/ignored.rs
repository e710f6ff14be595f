//! Who is ignored wakes nobody and keeps nobody awake; who is idle makes room.

use super::*;

#[test]
fn who_is_ignored_wakes_nothing_and_waits_for_nothing() {
    for mut life in [Life::asleep(), Life::waking(), Life::stopping()] {
        let leases = life.session.leases();
        let refused = (Admission::Refuse(Refusal::Asleep), vec![]);
        assert_eq!(life.acquire(Asker::Ignored), refused);
        assert_eq!(life.session.leases(), leases);
    }
}

#[test]
fn a_lease_that_is_ignored_does_not_refresh_idleness() {
    let mut life = Life::idle();
    let due = life.due();
    life.pass(10);
    let (admission, effects) = life.acquire(Asker::Ignored);
    assert!(matches!(admission, Admission::Ready(_)) && effects.is_empty());
    life.pass(10).event(Event::ReleaseIgnored(G1));
    assert_eq!(life.due().map(|left| left + seconds(20)), due);
}

#[test]
fn nothing_sleeps_under_a_lease_although_it_is_ignored() {
    let mut life = Life::idle();
    life.acquire(Asker::Ignored);
    assert_eq!(life.timer_after(7200), []);
    assert_eq!(life.event(Event::Evict), []);
    assert_eq!(life.event(Event::ReleaseIgnored(G1)), []);
    assert_eq!(life.timer_after(0), [Effect::Stop(G1, Depth::Stopped)], "long overdue");
}

#[test]
fn one_that_counts_is_activity_until_it_ends_whoever_stays_longer() {
    let mut life = Life::awake();
    life.acquire(Asker::Ignored);
    life.pass(30).event(Event::Release(G1));
    life.pass(30).event(Event::ReleaseIgnored(G1));
    assert_eq!(life.due(), Some(seconds(120 - 30)));
}

#[test]
fn an_idle_one_makes_room_but_not_before_its_time() {
    let mut life = Life::awake();
    assert_eq!(life.session.evictable(life.now), None);
    assert_eq!(life.event(Event::Evict), []);
    life.event(Event::Release(G1));
    let since = life.now;
    life.pass(59);
    assert_eq!(life.session.evictable(life.now), None, "idle.min_awake");
    assert_eq!(life.event(Event::Evict), []);
    life.pass(1);
    assert_eq!(life.session.evictable(life.now), Some(since));
    assert_eq!(life.event(Event::Evict), [Effect::Stop(G1, Depth::Stopped)]);
}

#[test]
fn a_wake_is_what_begins_one_and_nothing_else() {
    let asks = |life: &Life, asker| life.session.would_wake(asker, life.now);
    for life in [Life::asleep(), Life::paused(), Life::stopping()] {
        assert!(asks(&life, Asker::Client) && asks(&life, Asker::Operator));
        assert!(!asks(&life, Asker::Ignored));
    }
    let mut joined = Life::stopping();
    joined.ask();
    for life in [Life::waking(), Life::awake(), Life::idle(), joined] {
        assert!(!asks(&life, Asker::Client) && !asks(&life, Asker::Operator));
    }
    let mut cooling = Life::waking();
    cooling.event(Event::StartFailed(G1, Failure::EngineBusy));
    assert!(!asks(&cooling, Asker::Client) && asks(&cooling, Asker::Operator));
    cooling.event(Event::Stopped(G1));
    assert!(!asks(&cooling, Asker::Client) && asks(&cooling, Asker::Operator));
}
