//! The arithmetic, for every input: quantiles, intervals, schedules, conditions.

use std::time::Duration;

use loadtest::{
    pace::schedule,
    stats::{STATS, Series, difference_at, median, median_interval, quantile, ratio_at, slope},
    threshold::Threshold,
};
use proptest::prelude::*;

proptest! {
    #[test]
    fn a_histogram_says_what_sorting_says(
        values in prop::collection::vec(1_000u64..10_000_000_000, 1..400),
        q in 0.0f64..=1.0,
    ) {
        let (mut many, mut sorted) = (Series::many(), values);
        for nanos in &sorted {
            many.latency(Duration::from_nanos(*nanos));
        }
        sorted.sort_unstable();
        let exact: Vec<f64> = sorted.iter().map(|nanos| *nanos as f64 / 1e6).collect();
        let truth = Series::Exact(exact.clone()).summary("ms").unwrap();
        let told = many.summary("ms").unwrap();
        for stat in STATS {
            let (a, b) = (told.stat(stat).unwrap(), truth.stat(stat).unwrap());
            prop_assert!((a - b).abs() <= b * 1e-3, "{stat}: {a} is not {b}");
        }
        // By definition: at least a share q does not exceed it, and less than q is below it.
        let at = quantile(&exact, q).unwrap();
        let share = |n: usize| n as f64 / exact.len() as f64;
        prop_assert!(q <= share(exact.iter().filter(|v| **v <= at).count()) + 1e-9);
        prop_assert!(share(exact.iter().filter(|v| **v < at).count()) <= q);
    }

    #[test]
    fn merging_is_measuring_together(
        a in prop::collection::vec(0.001f64..1e4, 0..50),
        b in prop::collection::vec(0.001f64..1e4, 1..50),
        a_many: bool,
        b_many: bool,
    ) {
        let series = |values: &[f64], many: bool| {
            let mut series = if many { Series::many() } else { Series::Exact(Vec::new()) };
            for millis in values {
                series.latency(Duration::from_secs_f64(millis / 1e3));
            }
            series
        };
        let mut merged = series(&a, a_many);
        merged.merge(&series(&b, b_many));
        let merged = merged.summary("ms").unwrap();
        let whole = series(&[a, b].concat(), false).summary("ms").unwrap();
        for stat in STATS {
            let (a, b) = (merged.stat(stat).unwrap(), whole.stat(stat).unwrap());
            prop_assert!((a - b).abs() <= b * 2e-3 + 1e-6, "{stat}: {a} is not {b}");
        }
    }

    #[test]
    fn an_interval_is_of_the_values_and_around_the_median(
        values in prop::collection::vec(-1e6f64..1e6, 1..300),
    ) {
        let interval = median_interval(&values).unwrap();
        prop_assert!(values.contains(&interval.low) && values.contains(&interval.high));
        prop_assert!(interval.low <= interval.value && interval.value <= interval.high);
        prop_assert_eq!(interval.value, median(&values).unwrap());
        prop_assert!((0.0..1.0).contains(&interval.confidence));
        // Six values are the fewest of which the whole range is sure enough.
        prop_assert_eq!(0.95 <= interval.confidence, 6 <= values.len());
    }

    #[test]
    fn a_condition_is_what_it_says(limit in -1000i32..1000, value in -1000i32..1000) {
        let holds = [
            ("<", value < limit), ("<=", value <= limit), ("==", value == limit),
            ("!=", value != limit), (">", value > limit), (">=", value >= limit),
        ];
        for (operator, truth) in holds {
            let condition: Threshold = format!("p99 {operator} {limit}ms").parse().unwrap();
            prop_assert_eq!(condition.fails(f64::from(value)), truth, "{}", condition);
            let again: Threshold = condition.to_string().parse().unwrap();
            prop_assert_eq!(again, condition);
        }
    }

    #[test]
    fn no_text_breaks_the_reader_of_conditions(text in ".{0,40}", tail in "[<>=!]{0,3}[0-9.a-z%/]{0,6}") {
        let _ = text.parse::<Threshold>();
        let _ = format!("p99{tail}").parse::<Threshold>();
        let _ = format!("vs.{text}.p99{tail}").parse::<Threshold>();
    }

    #[test]
    fn arrivals_are_in_order_in_time_and_as_many_as_asked(
        rate in 1.0f64..5000.0,
        millis in 1u64..2000,
        seed: u64,
    ) {
        let time = Duration::from_millis(millis);
        let even = schedule(rate, time, false, seed).unwrap();
        prop_assert_eq!(even.len() as f64, (rate * time.as_secs_f64()).floor());
        for (n, due) in even.iter().enumerate() {
            prop_assert!((due.as_secs_f64() * rate - n as f64).abs() < 1e-3);
        }
        let random = schedule(rate, time, true, seed).unwrap();
        prop_assert_eq!(&random, &schedule(rate, time, true, seed).unwrap());
        prop_assert!(random.is_sorted() && random.iter().all(|due| *due < time));
        // Six standard deviations of a Poisson count.
        let mean = rate * time.as_secs_f64();
        prop_assert!((random.len() as f64 - mean).abs() <= 6.0 * mean.sqrt() + 6.0);
    }

    #[test]
    fn the_slope_of_a_line_is_its_own(a in -1e3f64..1e3, b in -1e3f64..1e3, n in 2usize..50) {
        let line: Vec<_> = (0..n).map(|x| (x as f64, a * x as f64 + b)).collect();
        prop_assert!((slope(&line).unwrap() - a).abs() < 1e-6);
    }
}

proptest! {
    // Thousands of resamples each.
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_distribution_does_not_differ_from_itself(
        values in prop::collection::vec(0.1f64..1e3, 2..60),
        by in 0.0f64..100.0,
    ) {
        for q in [0.5, 0.95] {
            let same = difference_at(&values, &values, q).unwrap();
            prop_assert!(same.value == 0.0 && same.low <= 0.0 && 0.0 <= same.high);
            let more: Vec<_> = values.iter().map(|value| value + by).collect();
            let shifted = difference_at(&more, &values, q).unwrap();
            prop_assert!((shifted.value - by).abs() < 1e-9);
            let twice: Vec<_> = values.iter().map(|value| value * 2.0).collect();
            prop_assert!((ratio_at(&twice, &values, q).unwrap().value - 2.0).abs() < 1e-9);
        }
    }
}

#[test]
fn the_rank_interval_is_that_of_the_books() {
    // Conover, Practical Nonparametric Statistics: n = 20, 95 % → the 6th and the 15th.
    let values: Vec<f64> = (1..=20).map(f64::from).collect();
    let interval = median_interval(&values).unwrap();
    assert_eq!((interval.low, interval.value, interval.high), (6.0, 10.5, 15.0));
    assert!((interval.confidence - 0.9586).abs() < 1e-4, "{interval:?}");
    assert!(median_interval(&[]).is_none());
}

#[test]
fn units_are_those_of_the_figure() {
    let limit = |text: &str| text.parse::<Threshold>().map(|threshold| threshold.limit());
    assert_eq!(limit("p99>50ms"), Ok(50.0));
    assert_eq!(limit("ttfb.p99.9 >= 1.5s"), Ok(1500.0));
    assert_eq!(limit("over.direct.latency.p50 > 150us"), Ok(0.15));
    assert_eq!(limit("memory-per-socket > 16kB"), Ok(16_000.0));
    assert_eq!(limit("error-rate > 1%"), Ok(0.01));
    assert_eq!(limit("vs.nginx.latency.p99 > 1.2"), Ok(1.2));
    assert_eq!(limit("server.engine.p50 < 1ms"), Ok(1.0));
    assert_eq!(limit("latency.count < 100"), Ok(100.0));
    for wrong in [
        "p99",
        "p99>",
        "p99>50",
        "p99>50MB",
        "p98>1ms",
        "ttfb>1ms",
        "vs.p99>1",
        "memory>1B",
        "rate<5ms",
        "vs.nginx.p99>1ms",
        "> 5ms",
        "server..p50>1ms",
        "p99>>5ms",
        "p99>nanms",
    ] {
        assert!(limit(wrong).is_err(), "{wrong}");
    }
}
