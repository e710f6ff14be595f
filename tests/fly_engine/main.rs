//! The Fly engine against a stateful fake of the Machines API: the contract, and every fault.
#![expect(clippy::unwrap_used, reason = "a test's unwrap is its assertion")]

#[path = "../contract/mod.rs"]
mod contract;
#[path = "../support/fly.rs"]
mod fake;
mod official;
#[path = "../support/prism.rs"]
mod prism;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use dormouse::{
    engine::{
        Engine as _, Error, Started,
        fly::{Config, Fly, Public},
    },
    session::{Address, Depth, Generation, SessionId, Spec},
};
use fake::{Fake, Fault, TOKEN};
use serde_json::json;

const QUICK: Duration = Duration::from_millis(20);

fn config(fake: &Fake, interval: Duration) -> Config {
    Config {
        endpoint: format!("http://{}/v1", fake.address),
        app: "desks".into(),
        token: TOKEN.into(),
        region: Some("ams".into()),
        public: None,
        owner: "lab".into(),
        call_timeout: Duration::from_secs(15),
        poll: Duration::from_millis(100),
        interval,
    }
}

fn spec(fake: &Fake) -> Spec {
    Spec { image: Some("registry.fly.io/desk".into()), port: Some(fake.port), ..Spec::default() }
}

fn session() -> SessionId {
    SessionId::new("alice.example.com")
}

async fn start(fly: &Fly, fake: &Fake) -> Result<Started, Error> {
    fly.start(&session(), &spec(fake), Generation(1)).await
}

#[tokio::test]
async fn the_contract() {
    let fake = Fake::start(QUICK).await;
    let fly = Arc::new(Fly::new(config(&fake, QUICK)).unwrap());
    contract::run(fly, |_| spec(&fake)).await;
    assert_eq!(fake.lock().machines.len(), 0, "removed is gone");
}

#[tokio::test]
async fn a_death_is_told_by_the_next_listing() {
    let fake = Fake::start(QUICK).await;
    let fly = Arc::new(Fly::new(config(&fake, QUICK)).unwrap());
    let kill = async |started: Started| {
        let id = started.life.as_str().split(':').next().unwrap().to_owned();
        fake.dies(&id);
    };
    contract::death(fly, |_| spec(&fake), kill).await;
}

#[tokio::test]
async fn no_action_is_asked_of_a_machine_twice_a_second() {
    let second = Duration::from_secs(1);
    let fake = Fake::start(second).await;
    let fly = Fly::new(config(&fake, second)).unwrap();
    let started = start(&fly, &fake).await.unwrap();
    for _ in 0..5 {
        start(&fly, &fake).await.unwrap();
    }
    fly.sleep(&session(), &spec(&fake), Some(&started.life), Depth::Stopped).await.unwrap();
    assert_eq!(fake.lock().limited, 0);
}

#[tokio::test]
async fn an_address_is_asked_anew_after_every_boot() {
    let fake = Fake::start(QUICK).await;
    let fly = Fly::new(config(&fake, QUICK)).unwrap();
    let first = start(&fly, &fake).await.unwrap();
    fly.sleep(&session(), &spec(&fake), None, Depth::Stopped).await.unwrap();
    let second = start(&fly, &fake).await.unwrap();
    assert_ne!((&first.address, &first.life), (&second.address, &second.life));
    let Address::Tcp(at) = second.address else { panic!("{second:?}") };
    assert_eq!(at.port(), fake.port);
}

#[tokio::test]
async fn faults_of_the_api_are_told_as_what_they_are() {
    type Is = fn(&Error) -> bool;
    let cases: [(Fault, Is, &str); 6] = [
        (Fault::Status(500, "boom"), |e| matches!(e, Error::Unreachable(_)), "answered 500: boom"),
        (Fault::Status(401, "no"), |e| matches!(e, Error::Invalid(_)), "does not take the token"),
        (Fault::Status(400, "bad guest"), |e| matches!(e, Error::Invalid(_)), "bad guest"),
        (Fault::Text("[{\"id\":"), |e| matches!(e, Error::Unreachable(_)), "half an answer"),
        (Fault::Text("<html>"), |e| matches!(e, Error::Unreachable(_)), "none of JSON"),
        (Fault::Hang, |e| matches!(e, Error::Conflict(_)), "Fly has not answered"),
    ];
    let fake = Fake::start(QUICK).await;
    for (fault, is, said) in cases {
        let mut config = config(&fake, QUICK);
        config.call_timeout = Duration::from_millis(700);
        let fly = Fly::new(config).unwrap();
        fake.fault("GET", fault.clone());
        let error = start(&fly, &fake).await.unwrap_err();
        assert!(is(&error), "{fault:?}: {error:?}");
        assert!(error.to_string().contains(said), "{fault:?}: {error}");
        assert!(!format!("{error:?} {fly:?}").contains(TOKEN));
    }
    assert_eq!(fake.lock().machines.len(), 0);
}

#[tokio::test]
async fn what_passes_is_waited_for() {
    let fake = Fake::start(QUICK).await;
    let fly = Fly::new(config(&fake, QUICK)).unwrap();
    fake.fault("GET", Fault::Status(429, "slow down"));
    fake.fault("GET wait", Fault::Status(408, "deadline exceeded"));
    let started = start(&fly, &fake).await.unwrap();
    fake.fault("POST lease", Fault::Status(409, "lease held"));
    fake.fault("POST stop", Fault::Status(412, "is replacing"));
    fake.fault("GET wait", Fault::Status(408, "deadline exceeded"));
    fly.sleep(&session(), &spec(&fake), Some(&started.life), Depth::Stopped).await.unwrap();
    fake.fault("POST start", Fault::Status(409, "lease held"));
    let again = start(&fly, &fake).await.unwrap();
    contract::answers(&again.address).await;
    assert!(fake.lock().machines.values().all(|machine| machine.lease.is_none()));
}

#[tokio::test]
async fn a_wedged_machine_is_named() {
    let fake = Fake::start(QUICK).await;
    let mut config = config(&fake, QUICK);
    let fly = Fly::new(config.clone()).unwrap();
    start(&fly, &fake).await.unwrap();
    fake.lock().machines.values_mut().for_each(|machine| machine.state = "replacing".into());
    config.call_timeout = Duration::from_millis(700);
    let fly = Fly::new(config).unwrap();
    let since = Instant::now();
    for error in [
        start(&fly, &fake).await.unwrap_err(),
        fly.sleep(&session(), &spec(&fake), None, Depth::Stopped).await.unwrap_err(),
    ] {
        assert!(error.to_string().contains("is `replacing`") && error.is_retryable(), "{error}");
    }
    assert!(since.elapsed() < Duration::from_secs(60), "both ended by their limit");
}

/// Where Fly has no room, another try may find some; and what it said is told.
#[tokio::test]
async fn no_room_is_tried_again_and_told() {
    let fake = Fake::start(QUICK).await;
    let mut config = config(&fake, QUICK);
    let full = Fault::Status(422, "insufficient memory available to fulfill request");
    fake.fault("POST", full.clone());
    start(&Fly::new(config.clone()).unwrap(), &fake).await.unwrap();
    fake.lock().machines.clear();
    (0..100).for_each(|_| fake.fault("POST", full.clone()));
    config.call_timeout = Duration::from_millis(1500);
    let error = start(&Fly::new(config).unwrap(), &fake).await.unwrap_err();
    let said = "Fly makes no machine: insufficient memory available";
    assert!(error.to_string().contains(said) && error.is_retryable(), "{error:?}");
}

#[tokio::test]
async fn a_machine_that_was_removed_by_hand_is_made_anew() {
    let fake = Fake::start(QUICK).await;
    let fly = Fly::new(config(&fake, QUICK)).unwrap();
    let first = start(&fly, &fake).await.unwrap();
    fake.lock().machines.clear();
    assert_eq!(fly.inspect(&session(), &spec(&fake)).await.unwrap(), None);
    fly.sleep(&session(), &spec(&fake), Some(&first.life), Depth::Removed).await.unwrap();
    let second = start(&fly, &fake).await.unwrap();
    assert_ne!(first.life, second.life);
}

fn with_volume(fake: &Fake) -> Spec {
    Spec { volumes: vec!["home-alice:/home".into()], ..spec(fake) }
}

#[tokio::test]
async fn a_volume_is_made_once_and_outlives_its_machines() {
    let fake = Fake::start(QUICK).await;
    let fly = Fly::new(config(&fake, QUICK)).unwrap();
    let spec = Spec { memory: Some(512 << 20), ..with_volume(&fake) };
    for generation in 1..=3 {
        fly.start(&session(), &spec, Generation(generation)).await.unwrap();
        {
            let world = fake.lock();
            assert_eq!(world.volumes.len(), 1, "{:?}", world.volumes);
            let volume = world.volumes.values().next().unwrap();
            assert_eq!((&volume["region"], &volume["size_gb"]), (&"ams".into(), &1.into()));
            let machine = world.machines.values().next().unwrap();
            let mounts = json!([{ "volume": volume["id"], "path": "/home" }]);
            assert_eq!(machine.config["mounts"], mounts);
        }
        fly.sleep(&session(), &spec, None, Depth::Removed).await.unwrap();
        assert_eq!(fake.lock().machines.len(), 0);
    }
}

/// The machine goes where the volume is, wherever others are made by now.
#[tokio::test]
async fn a_machine_is_made_where_its_volume_is() {
    let fake = Fake::start(QUICK).await;
    let spec = with_volume(&fake);
    let fly = Fly::new(config(&fake, QUICK)).unwrap();
    fly.start(&session(), &spec, Generation(1)).await.unwrap();
    fly.sleep(&session(), &spec, None, Depth::Removed).await.unwrap();
    let elsewhere = Config { region: Some("nrt".into()), ..config(&fake, QUICK) };
    Fly::new(elsewhere).unwrap().start(&session(), &spec, Generation(2)).await.unwrap();
    assert_eq!(fake.lock().volumes.len(), 1);
}

/// Of two that bear one name nobody knows which has the data.
#[tokio::test]
async fn two_volumes_of_one_name_are_told_and_neither_is_taken() {
    let fake = Fake::start(QUICK).await;
    let fly = Fly::new(config(&fake, QUICK)).unwrap();
    let spec = with_volume(&fake);
    fly.start(&session(), &spec, Generation(1)).await.unwrap();
    fly.sleep(&session(), &spec, None, Depth::Removed).await.unwrap();
    {
        let mut world = fake.lock();
        let twin = world.volumes["vol_0"].clone();
        world.volumes.insert("vol_1".into(), twin);
    }
    let error = fly.start(&session(), &spec, Generation(2)).await.unwrap_err();
    assert!(error.to_string().contains("2 volumes are called `home_alice_"), "{error}");
    assert_eq!(fake.lock().machines.len(), 0);
}

/// The answer to a create may be lost: what was made is found.
#[tokio::test]
async fn a_volume_whose_answer_was_lost_is_found_by_the_next_start() {
    let fake = Fake::start(QUICK).await;
    let fly = Fly::new(config(&fake, QUICK)).unwrap();
    let spec = with_volume(&fake);
    fake.fault("POST volumes", Fault::Behind("{\"id\":"));
    let error = fly.start(&session(), &spec, Generation(1)).await.unwrap_err();
    assert!(error.is_retryable(), "{error:?}");
    fly.start(&session(), &spec, Generation(1)).await.unwrap();
    assert_eq!(fake.lock().volumes.len(), 1);
}

#[tokio::test]
async fn a_command_and_an_environment_are_told_where_to_listen() {
    let fake = Fake::start(QUICK).await;
    let fly = Fly::new(config(&fake, QUICK)).unwrap();
    let spec = Spec {
        command: vec!["serve".into(), "{address}".into()],
        env: [("AT".to_owned(), "{host} {port}".to_owned())].into(),
        port: Some(fake.port),
        ..spec(&fake)
    };
    fly.start(&session(), &spec, Generation(1)).await.unwrap();
    let config = fake.lock().machines.values().next().unwrap().config.clone();
    let port = fake.port;
    assert_eq!(config["init"]["cmd"], json!(["serve", format!("[::]:{port}")]));
    assert_eq!(config["env"]["AT"], json!(format!(":: {port}")));
}

/// What an edge before us made is found by its metadata, and another owner's is not.
#[tokio::test]
async fn machines_are_adopted_by_their_metadata() {
    let fake = Fake::start(QUICK).await;
    let started = start(&Fly::new(config(&fake, QUICK)).unwrap(), &fake).await.unwrap();
    let next = Fly::new(config(&fake, QUICK)).unwrap();
    let listed = next.list().await.unwrap();
    assert_eq!((listed.len(), &listed[0].life), (1, &Some(started.life.clone())));
    assert_eq!(listed[0].generation, Generation(1));
    assert_eq!(start(&next, &fake).await.unwrap(), started);
    let other = Config { owner: "other".into(), ..config(&fake, QUICK) };
    assert_eq!(Fly::new(other).unwrap().list().await.unwrap(), []);
}
