use std::{
    net::{IpAddr, Ipv4Addr},
    pin::Pin,
    task::{Context, Poll, Waker},
};

use proptest::prelude::*;

use super::*;

type Wait<'s> = Pin<Box<dyn Future<Output = StartPlace<'s>> + 's>>;

fn line(n: u8) -> Line {
    Some(IpAddr::V4(Ipv4Addr::new(192, 0, 2, n)).into())
}

fn poll<'s>(wait: &mut Wait<'s>) -> Option<StartPlace<'s>> {
    match wait.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(place) => Some(place),
        Poll::Pending => None,
    }
}

/// Stands in line.
fn wait<'s>(starts: &'s Starts, of: Line) -> Wait<'s> {
    let mut wait: Wait<'s> = Box::pin(starts.place(of));
    assert!(poll(&mut wait).is_none(), "all places are taken");
    wait
}

fn served<'s>(waits: &mut [Wait<'s>]) -> Option<(usize, StartPlace<'s>)> {
    waits.iter_mut().enumerate().find_map(|(n, wait)| Some((n, poll(wait)?)))
}

#[test]
fn another_client_waits_for_one_start_whatever_the_first_has_asked_for() {
    let starts = Starts::new(1);
    let place = poll(&mut (Box::pin(starts.place(line(1))) as Wait<'_>)).expect("it is free");
    let mut flood: Vec<_> = (0..10_000).map(|_| wait(&starts, line(1))).collect();
    let mut other = wait(&starts, line(2));
    drop(place);
    let (first, place) = served(&mut flood).expect("its line was there first");
    assert_eq!(first, 0);
    assert!(poll(&mut other).is_none());
    drop(place);
    assert!(poll(&mut other).is_some());
}

#[test]
fn who_leaves_the_line_keeps_no_place_not_even_one_it_was_just_given() {
    let starts = Starts::new(1);
    let place = poll(&mut (Box::pin(starts.place(None)) as Wait<'_>)).expect("it is free");
    let (gone, given) = (wait(&starts, line(1)), wait(&starts, line(1)));
    let mut last = wait(&starts, line(2));
    drop(gone);
    drop(place);
    // `given` has the place now, and does not know it yet.
    drop(given);
    let place = poll(&mut last);
    assert!(place.is_some());
    assert_eq!(starts.lock().free, 0);
    drop(place);
    assert_eq!(starts.lock().free, 1);
}

#[derive(Clone, Debug)]
enum Step {
    Stand(u8),
    Leave(usize),
    Finish(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (0_u8..5).prop_map(Step::Stand),
        any::<usize>().prop_map(Step::Leave),
        any::<usize>().prop_map(Step::Finish),
    ];
    prop::collection::vec(step, 0..200)
}

proptest! {
    /// Never more than the places, never a place empty while one waits, nothing left behind.
    #[test]
    fn places_are_neither_lost_nor_doubled(max in 1_usize..4, steps in steps()) {
        let starts = Starts::new(max);
        let (mut waits, mut places): (Vec<Wait<'_>>, Vec<StartPlace<'_>>) = Default::default();
        for step in steps {
            match step {
                Step::Stand(n) => waits.push(Box::pin(starts.place(line(n)))),
                Step::Leave(n) if !waits.is_empty() => drop(waits.remove(n % waits.len())),
                Step::Finish(n) if !places.is_empty() => drop(places.remove(n % places.len())),
                Step::Leave(_) | Step::Finish(_) => {}
            }
            while let Some((n, place)) = served(&mut waits) {
                drop(waits.remove(n));
                places.push(place);
            }
            prop_assert!(places.len() <= max);
            prop_assert!(places.len() == max || waits.is_empty());
        }
        drop((waits, places));
        let lines = starts.lock();
        prop_assert_eq!(lines.free, max);
        prop_assert!(lines.waiting.is_empty() && lines.turns.is_empty());
    }
}
