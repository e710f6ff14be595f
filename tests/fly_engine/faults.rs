//! Whatever Fly's API does to a call, the error says it, and the next try ends in the right state:
//! one machine, no more.

use std::time::Instant;

use super::*;

#[tokio::test]
async fn faults_of_the_api_are_told_as_what_they_are() {
    type Is = fn(&Error) -> bool;
    let cases: [(Fault, Is, &str); 6] = [
        (Fault::Status(500, "boom"), |e| matches!(e, Error::Unreachable(_)), "answered 500: boom"),
        (Fault::Status(401, "no"), |e| matches!(e, Error::Invalid(_)), "does not take the token"),
        (Fault::Status(400, "bad guest"), |e| matches!(e, Error::Invalid(_)), "bad guest"),
        (Fault::Text("[{\"id\":"), |e| matches!(e, Error::Unreachable(_)), "half an answer"),
        (Fault::Text("<html>"), |e| matches!(e, Error::Unreachable(_)), "none of JSON"),
        (Fault::Hang, |e| matches!(e, Error::Timeout { .. }), "start did not end within"),
    ];
    let fake = Fake::start(QUICK).await;
    for (fault, is, said) in cases {
        let mut config = config(&fake, QUICK);
        config.call_timeout = Duration::from_millis(700);
        let fly = Fly::new(config).unwrap();
        fake.fault("GET", fault);
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
    fake.fault("POST", full);
    start(&Fly::new(config.clone()).unwrap(), &fake).await.unwrap();
    fake.lock().machines.clear();
    (0..100).for_each(|_| fake.fault("POST", full));
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

/// Its answer is lost, whether Fly did it or not; or it is refused, or there is none.
const FAULTS: [Fault; 5] = [
    Fault::Status(500, "as told"),
    Fault::Status(503, "as told"),
    Fault::Text("{\"id\":"),
    Fault::Behind("{\"id\":"),
    Fault::Hang,
];

fn is_told(error: &Error, fault: Fault) -> bool {
    let says_it = match fault {
        Fault::Status(..) => error.to_string().contains("as told"),
        Fault::Hang => matches!(error, Error::Timeout { .. } | Error::Conflict(_)),
        _ => matches!(error, Error::Unreachable(_)),
    };
    // All of it passes by itself.
    says_it && error.is_retryable()
}

/// An engine that soon gives up, and one that does not.
fn both(fake: &Fake) -> (Fly, Fly) {
    let hasty = Config { call_timeout: Duration::from_millis(1500), ..config(fake, QUICK) };
    (Fly::new(hasty).unwrap(), Fly::new(config(fake, QUICK)).unwrap())
}

/// What there is, and whether it runs.
async fn listed(fly: &Fly) -> Vec<bool> {
    let listed = fly.list().await.unwrap();
    listed.iter().map(|one| matches!(one.state, InstanceState::Running(_))).collect()
}

#[tokio::test]
async fn a_start_of_which_one_call_fails_says_so_and_the_next_is_whole() {
    let fake = Fake::start(QUICK).await;
    let (hasty, fly) = both(&fake);
    let spec = with_volume(&fake);
    for (from, call) in [
        (Depth::Removed, "GET volumes"),
        (Depth::Removed, "POST volumes"),
        (Depth::Removed, "POST"),
        (Depth::Removed, "GET wait"),
        (Depth::Stopped, "POST start"),
        (Depth::Suspended, "POST start"),
        (Depth::Stopped, "GET wait"),
    ] {
        for fault in FAULTS {
            let case = format!("{call} from {from}: {fault:?}");
            if from < Depth::Removed {
                let started = fly.start(&session(), &spec, Generation(1)).await.unwrap();
                fly.sleep(&session(), &spec, Some(&started.life), from).await.unwrap();
            } else if call == "POST volumes" {
                fake.lock().volumes.clear();
            }
            fake.fault(call, fault);
            let error = hasty.start(&session(), &spec, Generation(2)).await.unwrap_err();
            assert!(is_told(&error, fault), "{case}: {error:?}");
            let started = fly.start(&session(), &spec, Generation(3)).await.unwrap();
            contract::answers(&started.address).await;
            assert_eq!((listed(&fly).await, fake.lock().volumes.len()), (vec![true], 1), "{case}");
            fly.sleep(&session(), &spec, Some(&started.life), Depth::Removed).await.unwrap();
            assert!(listed(&fly).await.is_empty(), "{case}");
        }
    }
}

#[tokio::test]
async fn a_sleep_of_which_one_call_fails_says_so_and_the_next_ends_it() {
    let fake = Fake::start(QUICK).await;
    let (hasty, fly) = both(&fake);
    let spec = spec(&fake);
    for (to, call) in [
        (Depth::Stopped, "GET"),
        (Depth::Stopped, "POST lease"),
        (Depth::Stopped, "POST stop"),
        (Depth::Suspended, "POST suspend"),
        (Depth::Stopped, "GET wait"),
        (Depth::Removed, "DELETE"),
    ] {
        for fault in FAULTS {
            let case = format!("{call} to {to}: {fault:?}");
            let started = fly.start(&session(), &spec, Generation(1)).await.unwrap();
            fake.fault(call, fault);
            let error = hasty.sleep(&session(), &spec, Some(&started.life), to).await.unwrap_err();
            assert!(is_told(&error, fault), "{case}: {error:?}");
            // Nobody has the nonce of a lease whose answer was lost: it ends by its time.
            fake.lock().machines.values_mut().for_each(|machine| machine.lease = None);
            fly.sleep(&session(), &spec, Some(&started.life), to).await.unwrap();
            let left = if to == Depth::Removed { vec![] } else { vec![false] };
            assert_eq!(listed(&fly).await, left, "{case}");
            fly.sleep(&session(), &spec, None, Depth::Removed).await.unwrap();
        }
    }
}

/// An edge that crashed in a sleep has left its lease: the next waits for its end.
#[tokio::test]
async fn a_lease_that_was_left_is_waited_for_and_told() {
    let fake = Fake::start(QUICK).await;
    let (hasty, fly) = both(&fake);
    let started = start(&fly, &fake).await.unwrap();
    let lease = |to: Option<&str>| {
        let lease = to.map(str::to_owned);
        fake.lock().machines.values_mut().for_each(|machine| machine.lease = lease.clone());
    };
    lease(Some("of a crashed edge"));
    let (spec, life) = (spec(&fake), Some(&started.life));
    let error = hasty.sleep(&session(), &spec, life, Depth::Stopped).await.unwrap_err();
    let said = "is leased: machine lease currently held by another";
    assert!(error.to_string().contains(said) && error.is_retryable(), "{error:?}");
    assert_eq!(listed(&fly).await, [true]);
    let asked = |fake: &Fake| fake.lock().asked.iter().filter(|call| *call == "POST lease").count();
    let before = asked(&fake);
    let host = session();
    let mut sleep = std::pin::pin!(fly.sleep(&host, &spec, life, Depth::Stopped));
    while asked(&fake) < before + 2 {
        tokio::select! {
            slept = &mut sleep => panic!("under another's lease: {slept:?}"),
            () = tokio::task::yield_now() => {}
        }
    }
    lease(None);
    sleep.await.unwrap();
    assert_eq!(listed(&fly).await, [false]);
}

/// An error is cut, and a value that is cut in two is a secret still.
#[tokio::test]
async fn no_part_of_a_secret_is_told() {
    let fake = Fake::start(QUICK).await;
    let (hasty, _) = both(&fake);
    let secrets = ["hunter2-hunter2", "-----BEGIN\n\tKEY-----", "http://{address}/hunter3"];
    for secret in secrets {
        let spec = Spec { env: [("S".to_owned(), secret.to_owned())].into(), ..spec(&fake) };
        for (status, behind) in [(400, " is bad"), (422, " insufficient"), (500, " broke")] {
            (0..100).for_each(|_| fake.fault("POST", Fault::Echo { status, behind }));
            let error = hasty.start(&session(), &spec, Generation(1)).await.unwrap_err();
            let said = error.to_string();
            assert!(said.contains("xxx"), "{secret} {status}: {said}");
            for part in ["hunter", "BEGIN", "KEY", &fake.port.to_string()] {
                assert!(!said.contains(part), "{secret} {status}: {said}");
            }
            fake.lock().faults.clear();
        }
    }
}

/// A create that is refused for its own name's sake is wrong for good, and so are other names.
#[tokio::test]
async fn a_name_of_something_else_is_no_name_in_use() {
    let fake = Fake::start(QUICK).await;
    let fly = Fly::new(config(&fake, QUICK)).unwrap();
    // Nor is every word with `lease` in it one of a lease.
    for text in ["invalid image name", "unknown hostname", "please verify your account"] {
        fake.fault("POST", Fault::Status(422, text));
        let error = start(&fly, &fake).await.unwrap_err();
        assert!(matches!(&error, Error::Invalid(said) if said.contains(text)), "{error:?}");
    }
    for text in ["name already taken", "machine name is already in use"] {
        fake.fault("POST", Fault::Status(422, text));
        let started = start(&fly, &fake).await.unwrap();
        fly.sleep(&session(), &spec(&fake), Some(&started.life), Depth::Removed).await.unwrap();
    }
}
