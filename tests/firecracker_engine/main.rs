//! The Firecracker engine: the contract over a stateful fake, every request against the official file,
//! and a real machine where there is KVM.
#![expect(clippy::unwrap_used, reason = "a test's unwrap is its assertion")]

mod bed;
#[path = "../contract/mod.rs"]
mod contract;
mod faults;
mod layer;
mod official;
mod overlay;
#[path = "../support/prism.rs"]
mod prism;
mod real;
#[path = "../support/tmpfs.rs"]
mod tmpfs;
#[path = "../support/vm.rs"]
mod vm;

use std::{fs, os::unix::fs::MetadataExt as _, sync::Arc};

use dormouse::{
    engine::{Engine as _, EngineEvent, Error, InstanceState, Started},
    session::{Address, Depth, FirecrackerSpec, Spec},
};
use serde_json::json;

use bed::{Bed, G1, G2, alice, get, gild, next, spec, stubborn, with_disk};

#[tokio::test]
async fn the_contract() {
    let bed = Bed::new();
    contract::run(Arc::new(bed.engine()), |_| spec()).await;
}

#[tokio::test]
async fn the_contract_in_a_jail() {
    let bed = Bed::jailed();
    contract::run(Arc::new(bed.engine()), |_| with_disk()).await;
}

#[tokio::test]
async fn the_contract_for_an_instance_that_hangs() {
    let bed = Bed::new();
    contract::hang(Arc::new(bed.engine()), |_| stubborn()).await;
}

#[tokio::test]
async fn the_contract_for_an_instance_that_dies() {
    let bed = Bed::new();
    let kill = async |_: Started| bed.signal("KILL");
    contract::death(Arc::new(bed.engine()), |_| spec(), kill).await;
}

#[tokio::test]
async fn memory_goes_on_from_a_pause_and_from_a_file_and_no_file_is_used_twice() {
    for bed in [Bed::new(), Bed::jailed()] {
        let (engine, alice, spec) = (bed.engine(), alice(), with_disk());
        let first = engine.start(&alice, &spec, G1).await.unwrap();
        assert_eq!((&*get(&first, "count").await, &*get(&first, "disk").await), ("1", "1"));
        engine.sleep(&alice, &spec, Some(&first.life), Depth::Paused).await.unwrap();
        assert_eq!(engine.start(&alice, &spec, G1).await.unwrap(), first);
        assert_eq!(get(&first, "count").await, "2");

        engine.sleep(&alice, &spec, Some(&first.life), Depth::Suspended).await.unwrap();
        let asleep = engine.inspect(&alice, &spec).await.unwrap().unwrap();
        assert_eq!(asleep.state, InstanceState::Asleep(Depth::Suspended));
        let second = engine.start(&alice, &spec, G2).await.unwrap();
        assert_eq!(get(&second, "count").await, "3");
        assert!(!bed.has("memory") && !bed.has("state"), "it fits the disk no more");
        assert_ne!(second.address, first.address, "no connection of one life serves the next");

        // Killed now, it has no memory to go on from; its disk is as it left it.
        bed.signal("KILL");
        engine.sleep(&alice, &spec, Some(&second.life), Depth::Stopped).await.unwrap();
        let third = engine.start(&alice, &spec, G2).await.unwrap();
        assert_eq!((&*get(&third, "count").await, &*get(&third, "disk").await), ("1", "2"));
        engine.sleep(&alice, &spec, Some(&third.life), Depth::Removed).await.unwrap();
        assert_eq!(engine.list().await.unwrap(), []);
        assert_eq!(
            fs::read_to_string(bed.path("base.img")).unwrap(),
            "0",
            "the image is as it was"
        );
    }
}

#[tokio::test]
async fn in_a_jail_the_machines_files_are_its_users() {
    let (bed, alice) = (Bed::jailed(), alice());
    let engine = bed.engine();
    let started = engine.start(&alice, &with_disk(), G1).await.unwrap();
    for name in ["", "kernel", "disk"] {
        assert_eq!(bed.file(name).metadata().unwrap().uid(), 4000, "{name}");
    }
    // What we believe of a machine is where it cannot write.
    for name in ["machine.json", "pid", "lock"] {
        assert_eq!(bed.ours(name).metadata().unwrap().uid(), 0, "{name}");
    }
    assert_ne!(
        bed.path("vmlinux").metadata().unwrap().ino(),
        bed.file("kernel").metadata().unwrap().ino()
    );
    engine.sleep(&alice, &with_disk(), Some(&started.life), Depth::Removed).await.unwrap();
}

#[tokio::test]
async fn a_memory_that_is_cut_off_spoilt_or_of_another_machine_is_a_cold_boot() {
    let (bed, alice) = (Bed::new(), alice());
    let engine = bed.engine();
    let mut spec = with_disk();
    for (turn, what) in (1..).zip(["cut off", "spoilt", "half", "another machine"]) {
        let started = engine.start(&alice, &spec, G1).await.unwrap();
        assert_eq!(get(&started, "count").await, "1", "{what}");
        assert_eq!(get(&started, "disk").await, turn.to_string(), "{what}");
        engine.sleep(&alice, &spec, Some(&started.life), Depth::Suspended).await.unwrap();
        let memory = fs::File::options().write(true).open(bed.file("memory")).unwrap();
        match what {
            "cut off" => memory.set_len(1_000_000).unwrap(),
            // As long as it was: only the load finds out, and that ends the process.
            "spoilt" => {
                let length = bed.file("state").metadata().unwrap().len();
                fs::write(bed.file("state"), vec![b'x'; usize::try_from(length).unwrap()]).unwrap();
            }
            "half" => fs::remove_file(bed.file("state")).unwrap(),
            _ => spec.memory = Some(16 << 20),
        }
        let booted = engine.start(&alice, &spec, G2).await.unwrap();
        assert_eq!(get(&booted, "count").await, "1", "{what}: an old memory went on");
        assert!(!bed.has("memory"));
        engine.sleep(&alice, &spec, Some(&booted.life), Depth::Stopped).await.unwrap();
    }
    engine.sleep(&alice, &spec, None, Depth::Removed).await.unwrap();
}

#[tokio::test]
async fn a_new_session_goes_on_from_a_golden_memory_with_a_disk_of_its_own() {
    for bed in [Bed::new(), Bed::jailed()] {
        let (engine, alice, spec) = (bed.engine(), alice(), with_disk());
        let first = engine.start(&alice, &spec, G1).await.unwrap();
        assert_eq!((&*get(&first, "count").await, &*get(&first, "disk").await), ("1", "1"));
        engine.sleep(&alice, &spec, Some(&first.life), Depth::Suspended).await.unwrap();
        let golden = bed.path("golden");
        gild(&bed, &golden);
        engine.sleep(&alice, &spec, None, Depth::Removed).await.unwrap();

        let firecracker = FirecrackerSpec {
            golden: Some("golden".into()),
            kernel: None,
            disk: None,
            ..spec.firecracker
        };
        let clone = Spec { firecracker, ..spec };
        for host in ["bob.test", "carol.test"] {
            let of = dormouse::session::SessionId::new(host);
            let started = engine.start(&of, &clone, G1).await.unwrap();
            assert_eq!((&*get(&started, "count").await, &*get(&started, "disk").await), ("2", "2"));
            // A jail's user could read what all others go on from, or it could not read its own.
            assert_eq!(get(&started, "links").await, if bed.jail { "1" } else { "2" });
            engine.sleep(&of, &clone, Some(&started.life), Depth::Suspended).await.unwrap();
            let again = engine.start(&of, &clone, G2).await.unwrap();
            assert_eq!(
                get(&again, "count").await,
                "3",
                "{host}: its own memory, not the golden one"
            );
            engine.sleep(&of, &clone, Some(&again.life), Depth::Removed).await.unwrap();
        }
        assert!(golden.join("memory").exists() && golden.join("state").exists());
        assert_eq!(fs::read_to_string(golden.join("disk")).unwrap(), "1\n");

        // One that is spoilt, and nothing else to boot: said, and tried again as a first time.
        fs::rename(golden.join("state"), golden.join("whole")).unwrap();
        fs::write(golden.join("state"), "x").unwrap();
        let error = engine.start(&alice, &clone, G1).await.unwrap_err();
        assert!(matches!(&error, Error::Missing(text) if text.contains("no kernel")), "{error:?}");
        fs::rename(golden.join("whole"), golden.join("state")).unwrap();
        let started = engine.start(&alice, &clone, G1).await.unwrap();
        assert_eq!(get(&started, "count").await, "2");
        engine.sleep(&alice, &clone, Some(&started.life), Depth::Removed).await.unwrap();
    }
}

#[tokio::test]
async fn with_a_tap_the_guest_is_dialled_at_its_address_and_told_who_it_is_in_each_life() {
    let (bed, alice) = (Bed::new(), alice());
    let engine = bed.engine();
    let firecracker = FirecrackerSpec {
        tap: Some("tap-alice".into()),
        address: Some("192.0.2.7".into()),
        ..spec().firecracker
    };
    let env = [("A".to_owned(), "b".to_owned())].into();
    let spec = Spec { firecracker, env, port: Some(81), ..spec() };
    let first = engine.start(&alice, &spec, G1).await.unwrap();
    assert_eq!(first.address, Address::Tcp("192.0.2.7:81".parse().unwrap()));
    engine.sleep(&alice, &spec, Some(&first.life), Depth::Suspended).await.unwrap();
    let second = engine.start(&alice, &spec, G2).await.unwrap();
    let asked = bed.asked();
    let told = json!({ "dormouse": { "session": "alice.test", "env": { "A": "b" } } });
    let tellings = asked.iter().filter(|(call, body)| call == "PUT /mmds" && *body == told);
    assert_eq!(tellings.count(), 2, "{asked:?}");
    let load = asked.iter().find(|(call, _)| call == "PUT /snapshot/load").unwrap();
    assert_eq!(load.1["network_overrides"][0]["host_dev_name"], "tap-alice");
    engine.sleep(&alice, &spec, Some(&second.life), Depth::Removed).await.unwrap();
}

#[tokio::test]
async fn a_machine_outlives_its_edge_and_the_next_one_finds_it() {
    let (bed, alice) = (Bed::jailed(), alice());
    let before = bed.engine();
    let first = before.start(&alice, &spec(), G2).await.unwrap();
    assert_eq!(get(&first, "count").await, "1");
    drop(before);
    contract::refuses(&first.address).await;

    let engine = bed.engine();
    let listed = engine.list().await.unwrap();
    assert_eq!((listed.len(), listed[0].generation), (1, G2));
    assert_eq!(listed[0].life.as_ref(), Some(&first.life));
    assert_eq!(engine.start(&alice, &spec(), G1).await.unwrap(), first);
    assert_eq!(get(&first, "count").await, "2", "the next edge lays a relay of its own");
    let mut events = engine.events();
    bed.signal("KILL");
    assert_eq!(next(&mut events).await, EngineEvent::Changed(alice));
    bed.is_off(&engine).await;
}

#[tokio::test]
async fn what_cannot_be_started_is_said_and_leaves_no_process() {
    let (bed, alice) = (Bed::new(), alice());
    let engine = bed.engine();
    let nowhere = Spec {
        firecracker: FirecrackerSpec { kernel: Some("nowhere".into()), ..spec().firecracker },
        ..spec()
    };
    let error = engine.start(&alice, &nowhere, G1).await.unwrap_err();
    assert!(matches!(&error, Error::Missing(text) if text.contains("nowhere")), "{error:?}");
    let firecracker = FirecrackerSpec {
        tap: Some("tap-alice".into()),
        address: Some("alice".into()),
        ..spec().firecracker
    };
    let lost = Spec { firecracker, ..spec() };
    let error = engine.start(&alice, &lost, G1).await.unwrap_err();
    assert!(matches!(&error, Error::Invalid(text) if text.contains("alice")), "{error:?}");
    assert_eq!(fs::read_dir(bed.path("s/fc")).unwrap().count(), 0, "nothing is left");
    let none = bed.engine_of("no-such-firecracker");
    let error = none.start(&alice, &spec(), G1).await.unwrap_err();
    assert!(matches!(&error, Error::Missing(text) if text.contains("no-such")), "{error:?}");
    let mute = bed.engine_of("false");
    let error = mute.start(&alice, &spec(), G1).await.unwrap_err();
    assert!(matches!(&error, Error::Failed(text) if text.contains("did not start")), "{error:?}");
    engine.sleep(&alice, &spec(), None, Depth::Stopped).await.unwrap();
    assert_eq!(engine.list().await.unwrap(), []);
}

#[tokio::test]
async fn a_guest_that_turns_itself_off_is_told_and_wakes_nobody() {
    let (bed, alice) = (Bed::new(), alice());
    let engine = bed.engine();
    let mut events = engine.events();
    let first = engine.start(&alice, &spec(), G1).await.unwrap();
    assert_eq!(get(&first, "count").await, "1");
    bed.signal("TERM");
    assert_eq!(next(&mut events).await, EngineEvent::Changed(alice));
    bed.is_off(&engine).await;
}
