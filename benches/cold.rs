//! A cold start through Dormouse against the engine's own floor: the same instance started by
//! hand, from the engine's call to the first accepted connection. A B A B in one run.
//!
//! `cargo bench --bench cold` (process engine); with DOCKER_HOST set and IMAGE naming a local
//! image whose CMD listens on port 8080, Docker too. SAMPLES changes how long it takes.

mod bed;

use std::{
    env,
    net::TcpStream,
    sync::Arc,
    time::{Duration, Instant},
};

use bed::{Edge, median, quantile};
use dormouse::{
    engine::{Engine, docker, docker::Docker, process::Process},
    session::{Address, Depth, Generation, SessionId, Spec},
};

fn main() {
    let arguments: Vec<_> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["instance", listen] => bed::instance(listen),
        _ => {
            process();
            match (env::var("DOCKER_HOST"), env::var("IMAGE")) {
                (Ok(endpoint), Ok(image)) => docker(&endpoint, &image),
                _ => println!("docker: not run (set DOCKER_HOST and IMAGE)"),
            }
        }
    }
}

fn process() {
    let this = env::current_exe().expect("a path");
    let command = vec![this.display().to_string(), "instance".into(), "{address}".into()];
    let route = format!("host = \"cold.test\"\n[instance]\ncommand = {command:?}\n{IDLE}");
    let edge = bed::edge("", &route);
    let dir = tempfile::tempdir().expect("a folder");
    let engine = Process::new(dir.path().join("state"), dir.path().to_owned()).expect("an engine");
    let spec = Spec { command, ..Spec::default() };
    compare("process, stopped", &edge, Arc::new(engine), &spec, "stopped", Depth::Stopped);
}

fn docker(endpoint: &str, image: &str) {
    let owner = |part: &str| format!("bench-{part}-{}", std::process::id());
    let toml = format!(
        "[engines.docker]\nkind = \"docker\"\nendpoint = {endpoint:?}\nowner = {:?}\n",
        owner("edge")
    );
    let route = format!(
        "host = \"cold.test\"\nengine = \"docker\"\n[instance]\nimage = {image:?}\nport = 8080\n{IDLE}"
    );
    let edge = bed::edge(&toml, &route);
    let config = docker::Config {
        endpoint: Some(endpoint.to_owned()),
        owner: owner("hand"),
        ..docker::Config::default()
    };
    let engine: Arc<dyn Engine> = Arc::new(Docker::new(config).expect("an engine"));
    let spec = Spec { image: Some(image.to_owned()), port: Some(8080), ..Spec::default() };
    for (name, word, depth) in [
        ("docker, paused", "paused", Depth::Paused),
        ("docker, stopped", "stopped", Depth::Stopped),
    ] {
        compare(name, &edge, Arc::clone(&engine), &spec, word, depth);
    }
    sleep_through(&edge, "removed");
    let session = SessionId::new("cold.test");
    block_on(engine.sleep(&session, &spec, None, Depth::Removed)).expect("removed");
}

const IDLE: &str = "[idle]\nafter = \"1h\"\n";

fn compare(
    name: &str,
    edge: &Edge,
    engine: Arc<dyn Engine>,
    spec: &Spec,
    word: &str,
    depth: Depth,
) {
    let samples = env::var("SAMPLES").ok().and_then(|n| n.parse().ok()).unwrap_or(40);
    let session = SessionId::new("cold.test");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    let (mut by_hand, mut through_us) = (Vec::new(), Vec::new());
    // The first of each creates and warms caches; it does not count.
    for sample in 0..=samples {
        let floor = runtime.block_on(async {
            let began = Instant::now();
            let started =
                engine.start(&session, spec, Generation(sample + 1)).await.expect("start");
            accepted(&started.address).await;
            let took = began.elapsed();
            engine.sleep(&session, spec, Some(&started.life), depth).await.expect("sleep");
            took
        });
        let began = Instant::now();
        let answer = bed::get(edge.http, "cold.test", "/").expect("an answer");
        let took = began.elapsed();
        assert!(answer.contains(" 200 ") && answer.contains("server-timing"), "{answer}");
        sleep_through(edge, word);
        if 0 < sample {
            by_hand.push(floor.as_secs_f64() * 1000.0);
            through_us.push(took.as_secs_f64() * 1000.0);
        }
    }
    let line = |name: &str, values: &[f64]| {
        let (p50, p95) = (median(values), quantile(values, 0.95));
        println!("  {name:<22} median {p50:>8.2} ms   p95 {p95:>8.2} ms");
    };
    println!("{name}: {samples} interleaved samples");
    line("by hand, first accept", &by_hand);
    line("through dormouse, GET", &through_us);
    println!("  added at the median    {:.2} ms", median(&through_us) - median(&by_hand));
}

/// A tight loop until the first connection is accepted.
async fn accepted(address: &Address) {
    let Address::Tcp(address) = address else { unreachable!("both engines listen on TCP here") };
    let end = Instant::now() + Duration::from_secs(60);
    while TcpStream::connect(address).is_err() {
        assert!(Instant::now() < end, "it never listens");
        tokio::task::yield_now().await;
    }
}

fn sleep_through(edge: &Edge, to: &str) {
    let path = format!("/v1/sessions/cold.test/sleep?to={to}");
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let _ = bed::post(edge.admin, "localhost", &path);
        let seen = bed::get(edge.admin, "localhost", "/v1/sessions/cold.test").expect("a session");
        if seen.contains("\"state\":\"asleep\"") {
            return;
        }
        assert!(Instant::now() < end, "it does not sleep: {seen}");
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(future)
}
