//! The same calls through prism (npm `@stoplight/prism-cli`), which compares every request and
//! answer with the official OpenAPI file: `machines.openapi3.json`, from
//! <https://docs.machines.dev/spec/openapi3.json> (Apache-2.0, it says) by way of
//! alchemy-run/distilled-spec-fly-io at fcf62f10f089, 2026-05-07.

use std::{
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use super::*;

/// `scripts/test` puts it there.
const PRISM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/prism/node_modules/.bin/prism");
const OFFICIAL: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fly_engine/machines.openapi3.json");

struct Prism {
    child: Child,
    endpoint: String,
}

impl Prism {
    async fn before(fake: &Fake) -> Self {
        assert!(Path::new(PRISM).exists(), "no prism: run scripts/test once, it installs it");
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let upstream = format!("http://{}/v1", fake.address);
        let child = Command::new(PRISM)
            .args(["proxy", OFFICIAL, &upstream, "--errors", "--port", &port.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let prism = Self { child, endpoint: format!("http://127.0.0.1:{port}") };
        let since = Instant::now();
        while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            assert!(since.elapsed() < Duration::from_secs(60), "prism does not begin");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        prism
    }
}

impl Drop for Prism {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn every_call_is_one_of_the_official_file() {
    let fake = Fake::start(QUICK).await;
    let prism = Prism::before(&fake).await;
    let config = Config { endpoint: prism.endpoint.clone(), ..config(&fake, QUICK) };
    let fly = Fly::new(config).unwrap();
    let mut spec = spec(&fake);
    spec.command = vec!["serve".into()];
    spec.env.insert("A".into(), "b".into());
    spec.memory = Some(512 << 20);
    let mut generation = 0;
    for &depth in fly.depths() {
        generation += 1;
        let started = fly.start(&session(), &spec, Generation(generation)).await.unwrap();
        contract::answers(&started.address).await;
        fly.sleep(&session(), &spec, Some(&started.life), depth).await.unwrap();
    }
    assert_eq!(fly.list().await.unwrap(), []);
    let asked = fake.lock().asked.clone();
    for call in ["GET", "POST", "POST start", "POST stop", "POST suspend", "GET wait", "DELETE"] {
        assert!(asked.iter().any(|one| one == call), "{call} did not get through: {asked:?}");
    }
}
