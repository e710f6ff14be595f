use super::*;

const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + 20_000 * DAY
}

fn plan(rate: u32, max: u32) -> Plan {
    Plan::new(5 * MINUTE, Some(OnDemand { rate, max }), now())
}

fn valid(days: u32) -> Validity {
    Validity { from: now(), until: now() + days * DAY }
}

#[test]
fn a_name_without_a_certificate_is_due_at_once_and_ordered_once() {
    let mut plan = plan(1, 1);
    plan.add("a.test", WantedBy::Operator, None, now(), 0.0);
    assert_eq!(plan.take_due(now()).as_deref(), Some("a.test"));
    assert_eq!(plan.take_due(now()), None);
    assert_eq!(plan.next_due(), None);
}

#[test]
fn it_is_renewed_when_a_third_is_left_or_a_little_before() {
    for (chance, day) in [(0.0, 60), (1.0, 57)] {
        let mut plan = plan(1, 1);
        plan.add("a.test", WantedBy::Operator, Some(valid(90)), now(), chance);
        assert_eq!(plan.next_due(), Some(now() + day * DAY));
        assert_eq!(plan.take_due(now() + day * DAY - MINUTE), None);
        assert!(plan.take_due(now() + day * DAY).is_some());
    }
}

#[test]
fn a_failure_takes_nothing_away_and_waits_twice_as_long_each_time() {
    let mut plan = plan(1, 1);
    plan.add("a.test", WantedBy::Operator, Some(valid(90)), now(), 0.0);
    let mut waits = Vec::new();
    for _ in 0..12 {
        let due = plan.failed("a.test", "no".into(), now(), None, 0.5).expect("it is known");
        waits.push(due.duration_since(now()).expect("later").as_secs() / 60);
    }
    assert_eq!(waits, [5, 10, 20, 40, 80, 160, 320, 640, 720, 720, 720, 720]);
    let entry = plan.get("a.test").expect("it is known");
    assert_eq!(entry.validity, Some(valid(90)));
    assert_eq!(entry.error.as_deref(), Some("no"));
    plan.succeeded("a.test", valid(90), 0.0);
    let due = plan.failed("a.test", "no".into(), now(), None, 0.5);
    assert_eq!(due, Some(now() + 5 * MINUTE));
}

#[test]
fn the_servers_wish_to_be_left_alone_counts() {
    let mut plan = plan(1, 1);
    plan.add("a.test", WantedBy::Operator, None, now(), 0.0);
    let due = plan.failed("a.test", "no".into(), now(), Some(now() + DAY), 0.5);
    assert_eq!(due, Some(now() + DAY));
}

#[test]
fn a_client_causes_one_order_however_often_it_asks() {
    let mut plan = plan(5, 5);
    assert_eq!(plan.ask("a.test", now()), Asked::New);
    assert_eq!(plan.ask("a.test", now()), Asked::Known);
    assert!(plan.take_due(now()).is_some());
    assert_eq!(plan.ask("a.test", now()), Asked::Known);
    plan.succeeded("a.test", valid(90), 0.0);
    assert_eq!(plan.ask("a.test", now()), Asked::Known);
    assert_eq!(plan.take_due(now()), None);
}

#[test]
fn a_failed_host_is_refused_until_its_wait_is_over_and_not_tried_by_itself() {
    let mut plan = plan(5, 5);
    plan.ask("a.test", now());
    plan.take_due(now());
    plan.failed("a.test", "no".into(), now(), None, 0.5);
    assert_eq!(plan.ask("a.test", now() + 4 * MINUTE), Asked::Refused(Why::Failed));
    assert_eq!(plan.take_due(now() + DAY), None);
    assert_eq!(plan.ask("a.test", now() + 5 * MINUTE), Asked::New);
    plan.take_due(now() + 5 * MINUTE);
    let due = plan.failed("a.test", "no".into(), now(), None, 0.5);
    assert_eq!(due, Some(now() + 10 * MINUTE), "the failure before still counts");
}

#[test]
fn a_listed_host_that_failed_is_tried_by_itself() {
    let mut plan = plan(5, 5);
    plan.add("a.test", WantedBy::Operator, None, now(), 0.0);
    plan.take_due(now());
    plan.failed("a.test", "no".into(), now(), None, 0.5);
    assert_eq!(plan.ask("a.test", now()), Asked::Known);
    assert!(plan.take_due(now() + 5 * MINUTE).is_some());
}

#[test]
fn clients_cause_no_more_orders_than_the_rate() {
    let mut plan = plan(2, 100);
    assert_eq!(plan.ask("a.test", now()), Asked::New);
    assert_eq!(plan.ask("b.test", now()), Asked::New);
    assert_eq!(plan.ask("c.test", now()), Asked::Refused(Why::Rate));
    assert!(plan.get("c.test").is_none());
    assert_eq!(plan.ask("c.test", now() + 29 * MINUTE), Asked::Refused(Why::Rate));
    assert_eq!(plan.ask("c.test", now() + 31 * MINUTE), Asked::New);
    assert_eq!(plan.ask("d.test", now() + 32 * MINUTE), Asked::Refused(Why::Rate));
}

#[test]
fn clients_cause_no_more_hosts_than_the_limit_and_long_failed_ones_make_place() {
    let mut plan = plan(100, 2);
    plan.add("listed.test", WantedBy::Operator, None, now(), 0.0);
    plan.ask("a.test", now());
    plan.ask("b.test", now());
    assert_eq!(plan.ask("c.test", now()), Asked::Refused(Why::Full));
    plan.failed("a.test", "no".into(), now(), None, 0.5);
    assert_eq!(plan.ask("c.test", now() + MINUTE), Asked::Refused(Why::Full));
    assert_eq!(plan.ask("c.test", now() + 2 * DAY), Asked::New);
    assert!(plan.get("a.test").is_none());
}

#[test]
fn no_more_wait_than_there_is_room_for() {
    let mut plan = plan(1000, 1000);
    for index in 0..WAITING_MAX {
        assert_eq!(plan.ask(&format!("{index}.test"), now()), Asked::New);
    }
    assert_eq!(plan.ask("one-more.test", now()), Asked::Refused(Why::Full));
}

#[test]
fn nothing_is_ordered_for_clients_unless_the_operator_says_so() {
    let mut plan = Plan::new(MINUTE, None, now());
    assert_eq!(plan.ask("a.test", now()), Asked::Refused(Why::Off));
    assert_eq!(plan.iter().count(), 0);
}

#[test]
fn what_was_broken_off_is_due_again() {
    let mut plan = plan(1, 1);
    plan.add("a.test", WantedBy::Operator, None, now(), 0.0);
    plan.take_due(now());
    plan.broken_off("a.test", now());
    assert!(plan.take_due(now()).is_some());
}

#[test]
fn a_clock_that_is_set_back_fills_no_bucket() {
    let mut plan = plan(1, 100);
    plan.ask("a.test", now());
    assert_eq!(plan.ask("b.test", now() - DAY), Asked::Refused(Why::Rate));
}
