//! The QEMU engine against real virtual machines: the contract, and what memory and disks survive.
#![expect(clippy::unwrap_used, reason = "a test's unwrap is its assertion")]

mod bed;
#[path = "../contract/mod.rs"]
mod contract;
#[path = "../support/tmpfs.rs"]
mod tmpfs;
#[path = "../support/vm.rs"]
mod vm;

use std::{fs, os::unix::fs::FileExt as _, sync::Arc, time::Duration};

use dormouse::{
    engine::{Engine as _, EngineEvent, Error, InstanceState, Started},
    session::{Address, Depth, QemuSpec, SessionId, Spec},
};
use futures::StreamExt as _;

use bed::{Bed, G1, G2, Tap, alice, booting, get, hasty, spec, with_disk};
use tmpfs::Tmpfs;

#[tokio::test]
async fn the_contract() {
    let bed = Bed::new();
    contract::run(Arc::new(bed.engine()), |_| hasty()).await;
}

#[tokio::test]
async fn the_contract_for_an_instance_that_hangs() {
    let bed = Bed::new();
    contract::hang(Arc::new(bed.engine()), |_| hasty()).await;
}

#[tokio::test]
async fn the_contract_for_an_instance_that_dies() {
    let bed = Bed::new();
    let kill = async |_: Started| bed.signal("KILL");
    contract::death(Arc::new(bed.engine()), |_| hasty(), kill).await;
}

#[tokio::test]
async fn what_a_guest_remembers_goes_on_from_a_pause_and_from_a_file() {
    let (bed, alice) = (Bed::new(), alice());
    let engine = bed.engine();
    let spec = Spec { env: [("A".to_owned(), "b c".to_owned())].into(), ..spec() };
    // On a busy machine an answer may be lost, and what was counted is asked for again.
    let count =
        async |started: &Started| -> u32 { get(&started.address, "count").await.parse().unwrap() };
    let first = engine.start(&alice, &spec, G1).await.unwrap();
    let counted = count(&first).await;
    assert_eq!(get(&first.address, "session").await, "alice.test");
    assert_eq!(get(&first.address, "env").await, "A=b c");

    engine.sleep(&alice, &spec, Some(&first.life), Depth::Paused).await.unwrap();
    let again = engine.start(&alice, &spec, G1).await.unwrap();
    assert_eq!(again, first);
    let paused = count(&again).await;
    assert!(counted < paused, "{counted} {paused}");

    engine.sleep(&alice, &spec, Some(&first.life), Depth::Suspended).await.unwrap();
    let asleep = engine.inspect(&alice, &spec).await.unwrap().unwrap();
    assert_eq!(asleep.state, InstanceState::Asleep(Depth::Suspended));
    assert!(bed.has("memory"));
    let third = engine.start(&alice, &spec, G2).await.unwrap();
    assert!(paused < count(&third).await, "its memory was not that of before");
    assert!(!bed.has("memory"), "it fits the disk no more");

    engine.sleep(&alice, &spec, Some(&third.life), Depth::Stopped).await.unwrap();
    let fourth = engine.start(&alice, &spec, G2).await.unwrap();
    assert!(count(&fourth).await < paused, "it was booted");
    bed.end(&engine).await;
}

/// No kernel of the route's: the machine's own disk says what boots.
#[tokio::test]
async fn a_disk_boots_by_its_own_loader_and_keeps_what_was_written() {
    let (bed, alice) = (Bed::new(), alice());
    let engine = bed.engine();
    let spec = booting(spec());
    let first = engine.start(&alice, &spec, G1).await.unwrap();
    assert_eq!(get(&first.address, "count").await, "1");
    engine.sleep(&alice, &spec, Some(&first.life), Depth::Suspended).await.unwrap();
    let second = engine.start(&alice, &spec, G1).await.unwrap();
    assert_eq!(get(&second.address, "count").await, "2");

    // By its power button, which it writes to its disk.
    engine.sleep(&alice, &spec, Some(&second.life), Depth::Stopped).await.unwrap();
    let third = engine.start(&alice, &spec, G2).await.unwrap();
    assert_eq!(get(&third.address, "count").await, "1");
    assert_eq!(get(&third.address, "offs").await, "1");
    bed.end(&engine).await;
}

/// The guest is on a network of the operator's, under an address of its own.
#[tokio::test]
async fn a_guest_behind_a_tap_is_met_at_its_own_address() {
    let (bed, alice, tap) = (Bed::new(), alice(), Tap::new());
    let engine = bed.engine();
    let spec = tap.behind(spec());
    let first = engine.start(&alice, &spec, G1).await.unwrap();
    assert_eq!(first.address, Address::Tcp(tap.guest()));
    assert_eq!(get(&first.address, "session").await, "alice.test");
    let counted: u32 = get(&first.address, "count").await.parse().unwrap();

    engine.sleep(&alice, &spec, Some(&first.life), Depth::Suspended).await.unwrap();
    let second = engine.start(&alice, &spec, G2).await.unwrap();
    assert_eq!(second.address, first.address);
    let again: u32 = get(&second.address, "count").await.parse().unwrap();
    assert!(counted < again, "its memory was not that of before: {counted} {again}");

    // Another machine on the same device is refused by the kernel, and that is said.
    let error = engine.start(&SessionId::new("bob.test"), &spec, G1).await.unwrap_err();
    assert!(error.to_string().contains("busy"), "{error}");
    bed.end(&engine).await;
}

#[tokio::test]
async fn a_memory_that_is_cut_off_spoilt_or_of_another_machine_is_a_cold_boot() {
    let (bed, alice) = (Bed::new(), alice());
    let engine = bed.engine();
    let mut spec = with_disk(spec(), bed.disk());
    for (turn, what) in (1..).zip(["cut off", "spoilt", "another machine"]) {
        let started = engine.start(&alice, &spec, G1).await.unwrap();
        assert_eq!(get(&started.address, "count").await, "1", "{what}");
        assert_eq!(get(&started.address, "disk").await, turn.to_string(), "{what}");
        engine.sleep(&alice, &spec, Some(&started.life), Depth::Suspended).await.unwrap();
        let memory = fs::File::options().write(true).open(bed.file("memory")).unwrap();
        match what {
            "cut off" => memory.set_len(1_000_000).unwrap(),
            "spoilt" => memory.write_all_at(&[0xff; 4096], 100_000).unwrap(),
            _ => spec.memory = Some(160 << 20),
        }
        let booted = engine.start(&alice, &spec, G2).await.unwrap();
        assert_eq!(get(&booted.address, "count").await, "1", "{what}: an old memory went on");
        assert!(!bed.has("memory"));
        engine.sleep(&alice, &spec, Some(&booted.life), Depth::Stopped).await.unwrap();
    }
    bed.end(&engine).await;
}

#[tokio::test]
async fn a_disk_is_a_sessions_own_and_lasts_until_it_is_removed() {
    let (bed, alice) = (Bed::new(), alice());
    let engine = bed.engine();
    let spec = with_disk(spec(), bed.disk());
    let first = engine.start(&alice, &spec, G1).await.unwrap();
    assert_eq!(get(&first.address, "disk").await, "1");
    engine.sleep(&alice, &spec, Some(&first.life), Depth::Stopped).await.unwrap();
    let asleep = engine.inspect(&alice, &spec).await.unwrap().unwrap();
    assert_eq!(asleep.state, InstanceState::Asleep(Depth::Stopped));

    let second = engine.start(&alice, &spec, G2).await.unwrap();
    assert_eq!(get(&second.address, "disk").await, "2");
    assert_eq!(get(&second.address, "offs").await, "1", "its power button was pressed");
    engine.sleep(&alice, &spec, Some(&second.life), Depth::Stopped).await.unwrap();
    assert!(fs::read(bed.disk()).unwrap().iter().all(|byte| *byte == 0), "the image is as it was");

    // What lies over an image means nothing over another one.
    fs::write(bed.disk(), vec![1; 1 << 20]).unwrap();
    let error = engine.start(&alice, &spec, G2).await.unwrap_err();
    assert!(matches!(&error, Error::Conflict(text) if text.contains("base image")), "{error}");
    engine.sleep(&alice, &spec, None, Depth::Removed).await.unwrap();
    assert_eq!(engine.list().await.unwrap(), []);
    fs::write(bed.disk(), vec![0; 1 << 20]).unwrap();
    let third = engine.start(&alice, &spec, G2).await.unwrap();
    assert_eq!(get(&third.address, "disk").await, "1");
    bed.end(&engine).await;
}

/// There is room for what the guest writes, and none for its memory.
#[tokio::test]
async fn a_full_disk_at_a_suspend_costs_the_memory_and_nothing_else() {
    let (tmpfs, alice) = (Tmpfs::mount("24m"), alice());
    let bed = Bed::in_folder(tmpfs.path());
    let engine = bed.engine();
    let spec = with_disk(spec(), bed.disk());
    let first = engine.start(&alice, &spec, G1).await.unwrap();
    assert_eq!(get(&first.address, "disk").await, "1");
    engine.sleep(&alice, &spec, Some(&first.life), Depth::Suspended).await.unwrap();
    let asleep = engine.inspect(&alice, &spec).await.unwrap().unwrap();
    assert_eq!(asleep.state, InstanceState::Asleep(Depth::Stopped));
    let second = engine.start(&alice, &spec, G2).await.unwrap();
    assert_eq!(get(&second.address, "disk").await, "2");
    assert_eq!(get(&second.address, "offs").await, "1", "it was shut down, not cut off");
    bed.end(&engine).await;
}

/// Killed while its memory is half written.
#[tokio::test]
async fn a_machine_killed_in_the_middle_of_a_suspend_boots_from_its_disk() {
    let (bed, alice) = (Bed::new(), alice());
    let engine = bed.engine();
    let spec = with_disk(spec(), bed.disk());
    let first = engine.start(&alice, &spec, G1).await.unwrap();
    assert_eq!(get(&first.address, "disk").await, "1");
    let kill = async {
        while !bed.has("memory.part") {
            tokio::task::yield_now().await;
        }
        bed.signal("KILL");
    };
    let suspend = engine.sleep(&alice, &spec, Some(&first.life), Depth::Suspended);
    let (suspended, ()) = tokio::join!(suspend, kill);
    // The fleet asks again where it failed.
    if suspended.is_err() {
        engine.sleep(&alice, &spec, Some(&first.life), Depth::Suspended).await.unwrap();
    }
    bed.is_off(&engine).await;
    assert!(!bed.has("memory") && !bed.has("memory.part"), "half a memory is left");
    let second = engine.start(&alice, &spec, G2).await.unwrap();
    assert_eq!(get(&second.address, "disk").await, "2");
    bed.end(&engine).await;
}

#[tokio::test]
async fn a_machine_outlives_its_edge_and_the_next_one_finds_it() {
    let (bed, alice) = (Bed::new(), alice());
    let before = bed.engine();
    let first = before.start(&alice, &spec(), G2).await.unwrap();
    assert_eq!(get(&first.address, "count").await, "1");
    drop(before);

    let engine = bed.engine();
    let listed = engine.list().await.unwrap();
    assert_eq!((listed.len(), listed[0].generation), (1, G2));
    assert_eq!(listed[0].life.as_ref(), Some(&first.life));
    assert_eq!(engine.start(&alice, &spec(), G1).await.unwrap(), first);
    assert_eq!(get(&first.address, "count").await, "2");
    let mut events = engine.events();
    bed.signal("KILL");
    assert_eq!(events.next().await, Some(EngineEvent::Changed(alice)));
    bed.is_off(&engine).await;
}

/// Its process does not even answer its monitor.
#[tokio::test]
async fn a_machine_that_is_stuck_is_killed() {
    let (bed, alice) = (Bed::new(), alice());
    let engine = bed.engine();
    let first = engine.start(&alice, &spec(), G1).await.unwrap();
    bed.signal("STOP");
    engine.sleep(&alice, &spec(), Some(&first.life), Depth::Paused).await.unwrap();
    bed.is_off(&engine).await;
    contract::refuses(&first.address).await;
}

#[tokio::test]
async fn what_cannot_be_started_is_said_and_leaves_no_process() {
    let (bed, alice) = (Bed::new(), alice());
    let engine = bed.engine();
    let kernel = QemuSpec { kernel: Some("/nowhere/vmlinuz".into()), ..spec().qemu };
    let error = engine.start(&alice, &Spec { qemu: kernel, ..spec() }, G1).await.unwrap_err();
    assert!(error.to_string().contains("/nowhere/vmlinuz"), "{error}");
    let image = with_disk(spec(), "/nowhere/desk.img".into());
    let error = engine.start(&alice, &image, G1).await.unwrap_err();
    assert!(matches!(&error, Error::Missing(text) if text.contains("/nowhere/desk")), "{error}");
    engine.sleep(&alice, &spec(), None, Depth::Stopped).await.unwrap();
    bed.is_off(&engine).await;

    let none = bed.engine_of("no-such-qemu");
    let error = none.start(&alice, &spec(), G1).await.unwrap_err();
    assert!(matches!(&error, Error::Missing(text) if text.contains("no-such-qemu")), "{error}");
}

#[tokio::test]
async fn a_guest_that_turns_itself_off_is_told_and_wakes_nobody() {
    let (bed, alice) = (Bed::new(), alice());
    let engine = bed.engine();
    let mut events = engine.events();
    let first = engine.start(&alice, &spec(), G1).await.unwrap();
    // It answers no more.
    let _ = tokio::time::timeout(Duration::from_secs(60), get(&first.address, "off")).await;
    assert_eq!(events.next().await, Some(EngineEvent::Changed(alice)));
    bed.is_off(&engine).await;
}

/// What lies beside the machines is not all of them.
#[tokio::test]
async fn an_odd_entry_among_the_folders_is_skipped() {
    let bed = Bed::new();
    let engine = bed.engine();
    let folder = bed.folder().join("state/qemu");
    fs::write(folder.join("file"), "").unwrap();
    std::os::unix::fs::symlink("loop", folder.join("loop")).unwrap();
    for name in ["folder", "pipe"] {
        fs::create_dir(folder.join(name)).unwrap();
    }
    fs::create_dir(folder.join("folder/machine.json")).unwrap();
    let pipe = folder.join("pipe/machine.json");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let listed = tokio::time::timeout(Duration::from_secs(20), engine.list()).await;
    assert_eq!(listed.expect("it waits").unwrap(), []);
}
