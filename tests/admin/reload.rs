//! Routes as they are live, and what a reload says.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use dormouse::admin::ReloadReport;

use crate::{
    admin_bed::{At, Bed, ROUTE},
    wire::ask,
};

#[tokio::test]
async fn a_reload_tells_what_has_changed() {
    let bed = Bed::new().await;
    let nothing = ask(&bed, "POST /v1/reload").await;
    let expected = serde_json::json!({
        "routes": 1, "added": [], "changed": [], "removed": [],
        "certificates": 0, "certificate_errors": [], "waiting": [],
    });
    assert_eq!((nothing.status, nothing.json()), (200, expected));

    std::fs::write(bed.route_file("demo.toml"), ROUTE.replace("1h", "2h")).unwrap();
    let exact = ROUTE.replace("{session}.localhost", "one.example");
    std::fs::write(bed.route_file("new.toml"), &exact).unwrap();
    let changed = ask(&bed, "POST /v1/reload").await.json();
    assert_eq!((&changed["added"][0], &changed["changed"][0]), (&"new".into(), &"demo".into()));

    std::fs::remove_file(bed.route_file("demo.toml")).unwrap();
    let removed = ask(&bed, "POST /v1/reload").await.json();
    assert_eq!((&removed["routes"], &removed["removed"][0]), (&1.into(), &"demo".into()));
}

#[tokio::test]
async fn a_bad_file_changes_nothing_and_is_reported_until_it_is_mended() {
    let bed = Bed::new().await;
    std::fs::write(bed.route_file("bad.toml"), "host = \"a.example\"\nengine = \"lcal\"\n")
        .unwrap();
    let refused = ask(&bed, "POST /v1/reload").await;
    assert_eq!((refused.status, refused.problem().as_str()), (422, "route_errors"));
    let error = &refused.json()["errors"][0];
    assert!(error["file"].as_str().unwrap().ends_with("routes/bad.toml"), "{error}");
    assert_eq!((&error["line"], &error["column"]), (&2.into(), &10.into()), "{error}");
    assert!(error["message"].as_str().unwrap().contains("lcal"), "{error}");

    let routes = ask(&bed, "GET /v1/routes").await.json();
    assert_eq!(routes["routes"].as_array().unwrap().len(), 1, "the routes before stay");
    assert_eq!(&routes["errors"][0], error);
    std::fs::remove_file(bed.route_file("bad.toml")).unwrap();
    assert_eq!(ask(&bed, "POST /v1/reload").await.status, 200);
    assert_eq!(ask(&bed, "GET /v1/routes").await.json()["errors"], serde_json::json!([]));
}

#[tokio::test]
async fn routes_say_their_policy_and_no_secret() {
    let bed = Bed::new().await;
    let answer = ask(&bed, "GET /v1/routes").await;
    let route = &answer.json()["routes"][0];
    assert_eq!(route["name"], "demo");
    assert_eq!(route["host"], "{session}.localhost");
    assert_eq!(route["engine"], "local");
    let policy = serde_json::json!({
        "sleep": [{"after": "1h", "to": "stopped"}],
        "min_awake": "1s",
        "wake_timeout": "30s",
        "boot_max": "5m",
        "held_max": 1000,
    });
    assert_eq!(route["policy"], policy);
    assert!(route["file"].as_str().unwrap().ends_with("routes/demo.toml"), "{route}");
    assert!(!answer.body.contains("hunter2"), "{}", answer.body);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reloads_come_one_after_the_other() {
    let (inside, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (within, seen) = (inside.clone(), most.clone());
    let reload = Arc::new(move || {
        let together = within.fetch_add(1, Ordering::SeqCst) + 1;
        seen.fetch_max(together, Ordering::SeqCst);
        // The other one has this long to come in, if nothing keeps it out.
        let until = Instant::now() + Duration::from_millis(500);
        while Instant::now() < until && seen.load(Ordering::SeqCst) < 2 {
            thread::yield_now();
        }
        within.fetch_sub(1, Ordering::SeqCst);
        Ok(ReloadReport::default())
    });
    let bed = Bed::with_reload(At::Loopback, None, Some(reload)).await;
    let (one, other) = tokio::join!(ask(&bed, "POST /v1/reload"), ask(&bed, "POST /v1/reload"));
    assert_eq!((one.status, other.status), (200, 200));
    assert_eq!(most.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_reload_that_panics_is_a_problem_and_not_the_end() {
    let reload = Arc::new(|| panic!("announced: the test's reload fails"));
    let bed = Bed::with_reload(At::Loopback, None, Some(reload)).await;
    for _ in 0..2 {
        assert_eq!(ask(&bed, "POST /v1/reload").await.problem(), "internal");
    }
    assert_eq!(ask(&bed, "GET /healthz").await.status, 200);
}

/// A file's name on Linux is bytes, and an answer is UTF-8.
#[tokio::test]
async fn a_file_whose_name_is_no_text_is_reported_like_any_other() {
    let bed = Bed::new().await;
    let name = <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"caf\xe9.toml");
    let file = bed.route_file("x").with_file_name(name);
    std::fs::write(&file, ROUTE).unwrap();
    let refused = ask(&bed, "POST /v1/reload").await;
    assert_eq!((refused.status, refused.problem().as_str()), (422, "route_errors"));
    let error = &refused.json()["errors"][0];
    assert!(error["file"].as_str().unwrap().ends_with("caf\u{fffd}.toml"), "{error}");
    let routes = ask(&bed, "GET /v1/routes").await;
    assert_eq!(routes.status, 200);
    assert_eq!(&routes.json()["errors"][0], error);
}
