use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn rate(count: u32, seconds: u64, burst: u32) -> Rate {
    Rate { count, per: Duration::from_secs(seconds), burst }
}

fn take_of(
    buckets: &Buckets<u32>,
    key: u32,
    rate: &Rate,
    now: Instant,
) -> (Result<(), Duration>, bool) {
    let mut crowded = false;
    let result = buckets.take(key, rate, now, || crowded = true);
    (result, crowded)
}

#[test]
fn a_burst_passes_and_then_one_at_a_time_and_the_wait_is_exact() {
    let (buckets, rate) = (Buckets::bounded(10), rate(30, 60, 5));
    let mut now = Instant::now();
    for _ in 0..5 {
        assert_eq!(take_of(&buckets, 1, &rate, now).0, Ok(()));
    }
    assert_eq!(take_of(&buckets, 1, &rate, now).0, Err(SECOND * 2));
    now += SECOND;
    assert_eq!(take_of(&buckets, 1, &rate, now).0, Err(SECOND));
    assert_eq!(take_of(&buckets, 2, &rate, now).0, Ok(()), "another's bucket is another");
    now += SECOND;
    assert_eq!(take_of(&buckets, 1, &rate, now).0, Ok(()));
    assert_eq!(take_of(&buckets, 1, &rate, now).0, Err(SECOND * 2));
    now += SECOND * 3600;
    for _ in 0..5 {
        assert_eq!(take_of(&buckets, 1, &rate, now).0, Ok(()));
    }
    assert!(take_of(&buckets, 1, &rate, now).0.is_err(), "no more than the burst is saved up");
}

#[test]
fn a_refusal_takes_nothing() {
    let (buckets, rate) = (Buckets::bounded(10), rate(1, 10, 1));
    let now = Instant::now();
    assert_eq!(take_of(&buckets, 1, &rate, now).0, Ok(()));
    for _ in 0..100 {
        assert_eq!(take_of(&buckets, 1, &rate, now).0, Err(SECOND * 10));
    }
    assert_eq!(take_of(&buckets, 1, &rate, now + SECOND * 10).0, Ok(()));
}

#[test]
fn other_addresses_do_not_give_a_client_a_fresh_bucket() {
    let (buckets, rate) = (Buckets::bounded(100), rate(1, 3600, 1));
    let now = Instant::now();
    assert_eq!(take_of(&buckets, 0, &rate, now).0, Ok(()));
    let mut shared = 0;
    for key in 1..5000 {
        shared += u32::from(take_of(&buckets, key, &rate, now + SECOND * 2).1);
        assert!(buckets.0.lock().expect("no panic").own.len() <= 100);
    }
    assert_eq!(shared, 4900);
    let (refused, crowded) = take_of(&buckets, 0, &rate, now + SECOND * 4);
    assert!(refused.is_err() && !crowded, "its own bucket is still empty");
}

#[test]
fn in_the_crowd_one_is_limited_together_with_others_and_not_before_them() {
    let (buckets, rate) = (Buckets::bounded(1), rate(1, 3600, 1));
    let now = Instant::now();
    assert_eq!(take_of(&buckets, 0, &rate, now).0, Ok(()));
    let passed = (1..100_000).filter(|key| take_of(&buckets, *key, &rate, now).0.is_ok()).count();
    assert_eq!(passed, CROWD, "one for each bucket of the crowd");
}

#[test]
fn a_full_bucket_is_forgotten_and_makes_room() {
    let (buckets, rate) = (Buckets::bounded(2), rate(1, 1, 1));
    let now = Instant::now();
    for key in 0..2 {
        assert_eq!(take_of(&buckets, key, &rate, now), (Ok(()), false));
    }
    assert_eq!(take_of(&buckets, 2, &rate, now), (Ok(()), true));
    assert_eq!(take_of(&buckets, 3, &rate, now + SECOND), (Ok(()), false));
}

#[test]
fn a_smaller_rate_after_a_reload_counts_at_once() {
    let buckets = Buckets::bounded(2);
    let now = Instant::now();
    for _ in 0..100 {
        assert_eq!(take_of(&buckets, 1, &rate(1, 3600, 100), now).0, Ok(()));
    }
    assert_eq!(take_of(&buckets, 1, &rate(1, 1, 1), now).0, Err(SECOND));
}

proptest! {
    /// In any time, no more than the burst and what has trickled in since.
    #[test]
    fn no_more_pass_than_the_rate_allows(
        count in 1_u32..100,
        seconds in 1_u64..100,
        burst in 1_u32..20,
        pauses in prop::collection::vec(0_u64..5_000, 1..200),
    ) {
        let (buckets, rate) = (Buckets::bounded(10), rate(count, seconds, burst));
        let began = Instant::now();
        let (mut now, mut passed) = (began, 0_u64);
        for pause in pauses {
            now += Duration::from_millis(pause);
            match take_of(&buckets, 1, &rate, now).0 {
                Ok(()) => passed += 1,
                Err(wait) => {
                    prop_assert!(wait <= rate.interval());
                    let early = now + wait - Duration::from_nanos(1);
                    prop_assert!(take_of(&buckets, 1, &rate, early).0.is_err());
                }
            }
            let trickled = (now - began).as_secs_f64() / rate.interval().as_secs_f64();
            prop_assert!(passed as f64 <= f64::from(burst) + trickled + 1e-6);
        }
    }
}
