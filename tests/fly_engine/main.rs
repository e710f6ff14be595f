//! The Fly engine against a stateful fake of the Machines API: the contract, and every fault.
#![expect(clippy::unwrap_used, reason = "a test's unwrap is its assertion")]

#[path = "../contract/mod.rs"]
mod contract;
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
        fly::{Config, Fly},
    },
    session::{Address, Depth, Generation, SessionId, Spec},
};
use fake::{Fake, Fault, TOKEN};

const QUICK: Duration = Duration::from_millis(20);

fn config(fake: &Fake, interval: Duration) -> Config {
    Config {
        endpoint: format!("http://{}/v1", fake.address),
        app: "desks".into(),
        token: TOKEN.into(),
        region: Some("ams".into()),
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
