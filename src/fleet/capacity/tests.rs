use proptest::prelude::*;

use super::*;

fn need(route: usize, engine: usize) -> Need {
    // Few places for many, so that rooms are full most of the time; one is without a limit.
    let route_max = [2, 4, usize::MAX][route];
    let engine_max = [3, 5][engine];
    let (route, engine) = (format!("route-{route}").into(), format!("engine-{engine}").into());
    Need { route, engine, route_max, engine_max }
}

fn room(need: &Need) -> Room {
    Room::Route(Arc::clone(&need.route))
}

#[test]
fn a_claim_is_granted_when_a_place_of_its_rooms_is_given_back_and_no_other() {
    let capacity = Arc::new(Capacity::default());
    let (wanted, other) = (need(0, 0), need(1, 1));
    let stranger = capacity.take(&other).expect("room");
    let places = [capacity.take(&wanted).expect("room"), capacity.take(&wanted).expect("room")];
    assert_eq!(capacity.take(&wanted).expect_err("two is the most"), room(&wanted));
    let claims = [capacity.claim(&wanted), capacity.claim(&wanted)];
    assert_eq!(capacity.short(&room(&wanted), 2), 2);
    drop(stranger);
    assert!(claims.iter().all(|claim| !claim.is_granted()));
    let [first, second] = places;
    drop(first);
    assert!(claims[0].is_granted() && !claims[1].is_granted());
    drop(second);
    assert!(claims[1].is_granted());
    drop(claims);
    assert!(capacity.counts().is_empty());
}

#[test]
fn what_runs_already_is_counted_above_the_limit_and_keeps_others_out() {
    let capacity = Arc::new(Capacity::default());
    let wanted = need(0, 0);
    let found: Vec<_> = (0..4).map(|_| capacity.force(&wanted)).collect();
    assert_eq!(capacity.count(&room(&wanted)), 4);
    let claim = capacity.claim(&wanted);
    assert_eq!(capacity.short(&room(&wanted), 2), 3);
    for (left, place) in found.into_iter().enumerate() {
        assert_eq!(claim.is_granted(), 2 < left);
        drop(place);
    }
    assert!(claim.is_granted());
}

#[derive(Clone, Debug)]
enum Step {
    Take(usize, usize),
    Force(usize, usize),
    Claim(usize, usize),
    Drop(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0_usize..3, 0_usize..2).prop_map(|(route, engine)| Step::Take(route, engine)),
        1 => (0_usize..3, 0_usize..2).prop_map(|(route, engine)| Step::Force(route, engine)),
        3 => (0_usize..3, 0_usize..2).prop_map(|(route, engine)| Step::Claim(route, engine)),
        6 => any::<usize>().prop_map(Step::Drop),
    ];
    prop::collection::vec(step, 0..300)
}

proptest! {
    /// The count is that of the granted places; only what was forced goes beyond a limit; nobody
    /// waits who fits.
    #[test]
    fn the_count_is_exact_whatever_comes_and_goes(steps in steps()) {
        let capacity = Arc::new(Capacity::default());
        let mut places: Vec<(Place, bool)> = Vec::new();
        for step in steps {
            match step {
                Step::Take(route, engine) => {
                    places.extend(capacity.take(&need(route, engine)).map(|place| (place, false)));
                }
                Step::Force(route, engine) => {
                    places.push((capacity.force(&need(route, engine)), true));
                }
                Step::Claim(route, engine) => {
                    places.push((capacity.claim(&need(route, engine)), false));
                }
                Step::Drop(n) if !places.is_empty() => drop(places.swap_remove(n % places.len())),
                Step::Drop(_) => {}
            }
            for (route, engine) in (0..3).flat_map(|route| (0..2).map(move |e| (route, e))) {
                for (room, max) in need(route, engine).rooms() {
                    let inside = |(place, _): &&(Place, bool)| {
                        place.need().is_in(&room) && place.is_granted()
                    };
                    let granted = places.iter().filter(inside).count();
                    let forced = places.iter().filter(inside).filter(|(_, forced)| *forced).count();
                    prop_assert_eq!(capacity.count(&room), granted);
                    prop_assert!(granted <= max.saturating_add(forced));
                }
            }
            for (place, _) in places.iter().filter(|(place, _)| !place.is_granted()) {
                let fits = place.need().rooms().iter().all(|(room, max)| capacity.count(room) < *max);
                prop_assert!(!fits, "one waits who fits");
            }
        }
        places.clear();
        prop_assert!(capacity.counts().is_empty());
        prop_assert!(capacity.lock().waiting.is_empty());
    }
}
