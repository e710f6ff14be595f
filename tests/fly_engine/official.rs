//! The same calls through prism (npm `@stoplight/prism-cli`), which compares every request and
//! answer with the official OpenAPI file: `machines.openapi3.json`, from
//! <https://docs.machines.dev/spec/openapi3.json> (Apache-2.0, it says) by way of
//! alchemy-run/distilled-spec-fly-io at fcf62f10f089, 2026-05-07.

use super::{prism::Prism, *};

const OFFICIAL: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fly_engine/machines.openapi3.json");

#[tokio::test]
async fn every_call_is_one_of_the_official_file() {
    let fake = Fake::start(QUICK).await;
    let upstream = format!("http://{}/v1", fake.address);
    let prism = Prism::up(&["proxy", OFFICIAL, &upstream]).await;
    let config = Config { endpoint: prism.base.clone(), ..config(&fake, QUICK) };
    let fly = Fly::new(config.clone()).unwrap();
    let mut spec = spec(&fake);
    spec.command = vec!["serve".into()];
    spec.env.insert("A".into(), "b".into());
    spec.memory = Some(512 << 20);
    spec.volumes = vec!["home:/home".into()];
    let mut generation = 0;
    for &depth in fly.depths() {
        generation += 1;
        let started = fly.start(&session(), &spec, Generation(generation)).await.unwrap();
        contract::answers(&started.address).await;
        fly.sleep(&session(), &spec, Some(&started.life), depth).await.unwrap();
    }
    assert_eq!(fly.list().await.unwrap(), []);
    let public = Public { tls: false, host: "127.0.0.1".into(), port: fake.address.port() };
    let config = Config { endpoint: prism.base.clone(), public: Some(public), ..config };
    let started = Fly::new(config).unwrap().start(&session(), &spec, Generation(9)).await.unwrap();
    assert_eq!(started.address.behind().unwrap().proxy, fake.address);
    let machine = fake.lock().machines.values().next().unwrap().config.clone();
    assert_eq!(machine["services"][0]["internal_port"], json!(fake.port));
    let asked = fake.lock().asked.clone();
    for call in [
        "GET",
        "POST",
        "POST start",
        "POST stop",
        "POST suspend",
        "GET wait",
        "DELETE",
        "GET volumes",
        "POST volumes",
    ] {
        assert!(asked.iter().any(|one| one == call), "{call} did not get through: {asked:?}");
    }
}
