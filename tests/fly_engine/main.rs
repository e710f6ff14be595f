//! The Fly engine against a stateful fake of the Machines API: the contract, and every fault.
#![expect(clippy::unwrap_used, reason = "a test's unwrap is its assertion")]

#[path = "../contract/mod.rs"]
mod contract;
#[path = "../support/fly.rs"]
mod fake;
mod faults;
mod official;
#[path = "../support/prism.rs"]
mod prism;

use std::{sync::Arc, time::Duration};

use dormouse::{
    engine::{
        Engine as _, Error, InstanceState, Started,
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

/// Fly gives one list a second: what an edge adopts must not take that long a session.
#[tokio::test]
async fn many_sessions_share_a_list() {
    let second = Duration::from_secs(1);
    let fake = Fake::start(second).await;
    let made = Fly::new(config(&fake, QUICK)).unwrap();
    let hosts: Vec<_> = (0..20).map(|n| SessionId::new(format!("s{n}.example.com"))).collect();
    for host in &hosts {
        fake.lock().forgive();
        made.start(host, &spec(&fake), Generation(1)).await.unwrap();
    }
    for listed_before in [false, true] {
        let next = Fly::new(config(&fake, second)).unwrap();
        fake.lock().forgive();
        if listed_before {
            assert_eq!(next.list().await.unwrap().len(), hosts.len());
        }
        let before = fake.lock().lists;
        let spec = spec(&fake);
        let all = hosts.iter().map(|host| next.inspect(host, &spec));
        let found = futures::future::try_join_all(all).await.unwrap();
        assert!(found.iter().all(Option::is_some), "{found:?}");
        let asked = fake.lock().lists - before;
        // One that fails is shared as well.
        (0..2).for_each(|_| fake.fault("GET", Fault::Status(500, "as told")));
        let strangers = (0..20).map(|n| SessionId::new(format!("n{n}.example.com")));
        let strangers: Vec<_> = strangers.collect();
        let looks = strangers.iter().map(|host| next.inspect(host, &spec));
        for looked in futures::future::join_all(looks).await {
            let error = looked.unwrap_err().to_string();
            assert!(error.contains("as told"), "{error}");
        }
        assert!(if listed_before { asked == 0 } else { asked <= 2 }, "{asked}");
    }
}

/// Whose call was given up takes no turn from those who still wait.
#[tokio::test]
async fn who_gives_up_takes_no_turn() {
    let hour = Duration::from_secs(3600);
    let fake = Fake::start(QUICK).await;
    let patient = Fly::new(config(&fake, QUICK)).unwrap();
    let started = start(&patient, &fake).await.unwrap();
    let second = Duration::from_millis(500);
    let fly = Fly::new(Config { call_timeout: hour, ..config(&fake, second) }).unwrap();
    assert_eq!(
        fly.inspect(&session(), &spec(&fake)).await.unwrap().unwrap().life,
        Some(started.life)
    );
    let (host, spec) = (session(), spec(&fake));
    for _ in 0..1000 {
        let mut look = Box::pin(fly.inspect(&host, &spec));
        // It has asked for its turn by then, and is dropped.
        assert!(futures::poll!(&mut look).is_pending());
    }
    let look = fly.inspect(&host, &spec);
    let looked = tokio::time::timeout(Duration::from_secs(60), look).await;
    assert!(looked.expect("a thousand turns are 500 seconds").unwrap().is_some());
}

/// Of what cannot be read, what is ours is named; what is not is none of ours.
#[tokio::test]
async fn a_machine_that_cannot_be_read_is_named_or_nobodys() {
    let fake = Fake::start(QUICK).await;
    let fly = Fly::new(config(&fake, QUICK)).unwrap();
    start(&fly, &fake).await.unwrap();
    let theirs = json!({ "id": 7, "config": { "metadata": { "a": ["b"] } } });
    let empty = json!({ "id": "m1", "state": null, "instance_id": null, "events": null,
        "config": { "metadata": { "dormouse_owner": null, "size": 3 } } });
    fake.lock().strange = vec![theirs, empty, json!(null), json!("what?")];
    assert_eq!(fly.list().await.unwrap().len(), 1);
    let metadata = json!({ "dormouse_owner": "lab", "dormouse_session": "bob.example.com" });
    let ours = json!({ "id": "m2", "state": 5, "config": { "metadata": metadata } });
    fake.lock().strange.push(ours);
    let error = fly.list().await.unwrap_err();
    assert!(error.to_string().contains("machine m2: Fly answered no machine"), "{error}");
}

/// Also where the first was known before there was a second.
#[tokio::test]
async fn two_machines_of_one_session_are_told_each_time() {
    let fake = Fake::start(QUICK).await;
    let fly = Fly::new(config(&fake, QUICK)).unwrap();
    start(&fly, &fake).await.unwrap();
    let mut twin =
        fake.lock().machines.iter().map(|(id, machine)| machine.json(id)).next().unwrap();
    twin["id"] = json!("twin");
    fake.lock().strange.push(twin);
    fly.list().await.unwrap();
    for _ in 0..2 {
        let error = start(&fly, &fake).await.unwrap_err();
        assert!(error.to_string().contains("2 machines of app desks"), "{error:?}");
    }
    fake.lock().strange.clear();
    fly.list().await.unwrap();
    start(&fly, &fake).await.unwrap();
}

/// What the proxy has of the app is where the edge asks for it.
#[tokio::test]
async fn a_service_is_where_the_public_name_is() {
    for (tls, handlers) in [(true, json!(["tls", "http"])), (false, json!(["http"]))] {
        let fake = Fake::start(QUICK).await;
        let public = Some(Public { tls, host: "localhost".into(), port: 8443 });
        let fly = Fly::new(Config { public, ..config(&fake, QUICK) }).unwrap();
        start(&fly, &fake).await.unwrap();
        let machine = fake.lock().machines.values().next().unwrap().config.clone();
        let ports = &machine["services"][0]["ports"];
        assert_eq!(*ports, json!([{ "port": 8443, "handlers": handlers }]));
    }
}

/// By whomever: what a wake then finds is waited for until it is down.
#[tokio::test]
async fn a_machine_on_its_way_down_is_asleep() {
    let fake = Fake::start(QUICK).await;
    let fly = Fly::new(config(&fake, QUICK)).unwrap();
    let started = start(&fly, &fake).await.unwrap();
    for (state, depth) in [("suspending", Depth::Suspended), ("stopping", Depth::Stopped)] {
        fake.lock().machines.values_mut().for_each(|machine| machine.state = state.into());
        let found = fly.inspect(&session(), &spec(&fake)).await.unwrap().unwrap();
        assert_eq!((found.state, found.life), (InstanceState::Asleep(depth), None));
        let (host, spec) = (session(), spec(&fake));
        let mut wake = std::pin::pin!(fly.start(&host, &spec, Generation(2)));
        let asked = fake.lock().asked.len();
        while fake.lock().asked.len() < asked + 2 {
            tokio::select! {
                woken = &mut wake => panic!("while it is {state}: {woken:?}"),
                () = tokio::task::yield_now() => {}
            }
        }
        fake.lock().machines.values_mut().for_each(|machine| machine.state = "stopped".into());
        assert_ne!(wake.await.unwrap().life, started.life);
    }
}
