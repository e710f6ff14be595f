//! The instrument against servers whose truth is known: it must say what is, and hide nothing.
//! Only lower bounds are timed: a busy machine makes things slower, never faster.

mod support;

use std::{
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use loadtest::{
    cli::defaults,
    run::Run,
    stats::Series,
    target::{Reach, Target},
    text::Span,
    wake,
    warm::{self, Warm},
};
use support::{http, ok};

const STALL: Duration = Duration::from_millis(400);

/// A server that does nothing for `STALL`, once, from its hundredth request on.
fn stalls() -> std::net::SocketAddr {
    let door = Mutex::new(());
    http(move |n| {
        let open = door.lock().expect("no panic");
        if n == 100 {
            thread::sleep(STALL);
        }
        drop(open);
        Some(ok("hello"))
    })
}

/// How many latencies are beyond `limit`.
fn beyond(series: &Series, limit: Duration) -> u64 {
    let Series::Many(histogram) = series else { panic!("a histogram") };
    histogram.len() - histogram.count_between(0, u64::try_from(limit.as_nanos()).expect("short"))
}

async fn measure(args: Warm) -> loadtest::tally::Tally {
    let found = warm::run(&args, &Run::new(1, true)).await.expect("it runs");
    found.servers[0].rounds[0].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_loop_shows_a_stall_in_every_request_that_was_due_in_it() {
    let tally = measure(Warm {
        url: format!("http://{}/", stalls()),
        rate: Some(500.0),
        connections: 1,
        time: Span(Duration::from_secs(1)),
        rounds: 1,
        ..defaults()
    })
    .await;
    assert_eq!((tally.answers, tally.faults()), (500, 0), "each that was due was sent");
    // Due every 2 ms: of the 200 in the stall, 150 waited for more than a quarter of it.
    let (latency, service) = (&tally.series["latency"], &tally.series["service"]);
    assert!(150 <= beyond(latency, STALL / 4), "{latency:?}");
    // The connection itself was slow once: that is all a closed loop could ever have seen.
    assert!(beyond(service, STALL / 4) * 10 < beyond(latency, STALL / 4), "{service:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_loop_sees_a_stall_once_for_each_connection() {
    let tally = measure(Warm {
        url: format!("http://{}/", stalls()),
        connections: 1,
        time: Span(Duration::from_secs(1)),
        rounds: 1,
        ..defaults()
    })
    .await;
    let latency = &tally.series["latency"];
    assert_eq!(beyond(latency, STALL - Duration::from_millis(50)), 1, "{latency:?}");
}

#[tokio::test]
async fn an_answer_after_exactly_so_long_took_at_least_so_long() {
    const DELAY: Duration = Duration::from_millis(40);
    let address = http(|_| {
        thread::sleep(DELAY);
        Some(ok("hello"))
    });
    let target = Target::new(&format!("http://{address}/"), &Reach::default(), "t").unwrap();
    let place = target.place(0).unwrap();
    let began = Instant::now();
    let visit = wake::visit(&target, &place, false, Duration::from_secs(60)).await.unwrap();
    let whole = began.elapsed();
    assert!(DELAY <= visit.wait && visit.wait <= visit.took, "{visit:?}");
    assert!(visit.dialled.total() + visit.took <= whole, "the phases are parts of the whole");
}

#[tokio::test]
async fn the_phases_of_a_visit_add_up_and_the_server_s_own_are_read() {
    let address = http(|_| {
        Some(
            "HTTP/1.1 200 OK\r\nserver-timing: hold;dur=7.5, engine;dur=2.25;desc=\"x\", junk\r\n\
             content-length: 0\r\n\r\n"
                .to_owned(),
        )
    });
    let target = Target::new(&format!("http://{address}/"), &Reach::default(), "t").unwrap();
    let place = target.place(0).unwrap();
    let visit = wake::visit(&target, &place, false, Duration::from_secs(60)).await.unwrap();
    let parts = [("hold".to_owned(), 7.5), ("engine".to_owned(), 2.25)];
    assert_eq!(visit.timing, parts);
    let ttfb = visit.dialled.total() + visit.wait;
    let mut tally = loadtest::tally::Tally::default();
    wake::record(&mut tally, Ok(visit));
    let one = |name: &str| tally.series[name].summary("ms").unwrap().p50;
    assert!((one("ttfb") - ttfb.as_secs_f64() * 1e3).abs() < 1e-9);
    assert!((one("ttfb") - one("overhead") - 2.25).abs() < 1e-9, "ttfb less the engine's time");
    assert!((one("dns") + one("connect") + one("wait") - one("ttfb")).abs() < 1e-9);
}
