//! What each machine is given, and what it does when something breaks in the middle.

use std::{
    io::{self, Write},
    path::Path,
    sync::Mutex,
};

use super::{
    bed::{ask, told},
    *,
};

#[tokio::test]
async fn a_connection_that_the_guest_does_not_take_is_a_closed_one() {
    let endless = format!("OK_{}", "2".repeat(40));
    for word in ["NO_1", &endless] {
        let (bed, alice, spec) = (Bed::new(), alice(), told(&format!("word={word}")));
        let engine = bed.engine();
        let started = engine.start(&alice, &spec, G1).await.unwrap();
        let Address::Unix(path) = &started.address else { panic!("no relay: {started:?}") };
        let error = ask(Path::new(&**path), "").await.unwrap_err();
        let refused = bed.asked().into_iter().any(|(call, _)| call == "said");
        assert!(refused, "the guest was not asked: {error}");
        engine.sleep(&alice, &spec, Some(&started.life), Depth::Removed).await.unwrap();
    }
}

#[tokio::test]
async fn a_machine_gets_what_its_route_says_and_nothing_of_its_edge() {
    for bed in [Bed::new(), Bed::jailed()] {
        let (engine, alice) = (bed.engine(), alice());
        let (nano_cpus, pids, port) = (Some(1_500_000_000), Some(50), Some(81));
        let spec = Spec { nano_cpus, pids, port, ..told("port=81") };
        let started = engine.start(&alice, &spec, G1).await.unwrap();
        let environment = get(&started, "env").await;
        let asked = bed.asked();
        let machine = asked.iter().find(|(call, _)| call == "PUT /machine-config").unwrap();
        assert_eq!(machine.1, json!({ "vcpu_count": 2, "mem_size_mib": 8 }));
        if bed.jail {
            let limits = fs::read_to_string(bed.ours("limits")).unwrap();
            assert_eq!(limits.trim(), "memory.max=75497472 pids.max=50", "8 and 64 MiB");
        } else {
            let known = environment.split(' ').all(|name| ["PATH", "LANG"].contains(&name));
            assert!(known, "{environment}");
        }
        engine.sleep(&alice, &spec, Some(&started.life), Depth::Removed).await.unwrap();
    }
}

#[tokio::test]
async fn a_guest_is_asked_to_end_before_it_is_made_to() {
    for (paused, to) in [
        (false, Depth::Stopped),
        (true, Depth::Stopped),
        (false, Depth::Removed),
        (true, Depth::Removed),
    ] {
        let (bed, alice) = (Bed::new(), alice());
        let spec = told(&format!("note={}", bed.path("note").display()));
        let engine = bed.engine();
        let started = engine.start(&alice, &spec, G1).await.unwrap();
        if paused {
            engine.sleep(&alice, &spec, Some(&started.life), Depth::Paused).await.unwrap();
        }
        engine.sleep(&alice, &spec, Some(&started.life), to).await.unwrap();
        let note = fs::read_to_string(bed.path("note")).unwrap_or_default();
        assert_eq!(note, "keys\n", "{to:?}, paused: {paused}");
    }
}

#[tokio::test]
async fn a_machine_that_cannot_be_paused_is_off() {
    let (bed, alice) = (Bed::new(), alice());
    let engine = bed.engine();
    let started = engine.start(&alice, &with_disk(), G1).await.unwrap();
    // No word reaches it.
    fs::remove_file(bed.file("api")).unwrap();
    engine.sleep(&alice, &with_disk(), Some(&started.life), Depth::Paused).await.unwrap();
    bed.is_off(&engine).await;
}

#[tokio::test]
async fn a_memory_that_cannot_be_kept_is_a_machine_that_is_off() {
    for what in ["short", "full"] {
        let (bed, alice) = (Bed::new(), alice());
        let spec = told(&format!("{what} note={}", bed.path("note").display()));
        let engine = bed.engine();
        let first = engine.start(&alice, &spec, G1).await.unwrap();
        assert_eq!((&*get(&first, "count").await, &*get(&first, "disk").await), ("1", "1"));
        engine.sleep(&alice, &spec, Some(&first.life), Depth::Suspended).await.unwrap();
        bed.is_off(&engine).await;
        // Who is asked to end may have much to write yet.
        let note = fs::read_to_string(bed.path("note")).unwrap();
        assert_eq!(note, "keys\n", "{what}: half a memory takes the room");
        for name in ["memory", "memory.part", "state", "state.part"] {
            assert!(!bed.has(name), "{what}: {name} takes room");
        }
        let second = engine.start(&alice, &spec, G2).await.unwrap();
        assert_eq!((&*get(&second, "count").await, &*get(&second, "disk").await), ("1", "2"));
        engine.sleep(&alice, &spec, Some(&second.life), Depth::Removed).await.unwrap();
    }
}

#[tokio::test]
async fn a_machine_whose_edge_died_over_its_suspend_goes_on_without_that_memory() {
    let (bed, alice, spec) = (Bed::new(), alice(), with_disk());
    let engine = bed.engine();
    let first = engine.start(&alice, &spec, G2).await.unwrap();
    engine.sleep(&alice, &spec, Some(&first.life), Depth::Suspended).await.unwrap();
    let parts = ["memory", "state", "memory.json"];
    for name in parts {
        fs::copy(bed.ours(name), bed.path(name)).unwrap();
    }
    let second = engine.start(&alice, &spec, G2).await.unwrap();
    engine.sleep(&alice, &spec, Some(&second.life), Depth::Paused).await.unwrap();
    // All but the end of its process.
    for name in parts {
        fs::copy(bed.path(name), bed.ours(name)).unwrap();
    }
    assert_eq!(engine.start(&alice, &spec, G1).await.unwrap(), second);
    assert_eq!(get(&second, "disk").await, "1");
    assert!(!bed.has("memory") && !bed.has("state"), "it fits the disk no more");
    let instance = engine.inspect(&alice, &spec).await.unwrap().unwrap();
    assert_eq!(instance.generation, G2, "an older number is no news");
    assert!(matches!(instance.state, InstanceState::Running(_)), "{instance:?}");
    engine.sleep(&alice, &spec, Some(&second.life), Depth::Removed).await.unwrap();
}

#[tokio::test]
async fn the_clock_is_set_on_where_the_operator_says_so() {
    for clock_realtime in [false, true] {
        let (mut bed, alice, spec) = (Bed::new(), alice(), with_disk());
        bed.clock_realtime = clock_realtime;
        let engine = bed.engine();
        let first = engine.start(&alice, &spec, G1).await.unwrap();
        engine.sleep(&alice, &spec, Some(&first.life), Depth::Suspended).await.unwrap();
        let second = engine.start(&alice, &spec, G1).await.unwrap();
        let asked = bed.asked();
        let load = asked.iter().find(|(call, _)| call == "PUT /snapshot/load").unwrap();
        let said = load.1.get("clock_realtime");
        assert_eq!(said, clock_realtime.then_some(&json!(true)), "older ones refuse the word");
        engine.sleep(&alice, &spec, Some(&second.life), Depth::Removed).await.unwrap();
    }
}

/// What is logged in this thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn clones_of_one_memory_are_warned_of_once_unless_their_kernel_knows() {
    let (bed, alice, mut spec) = (Bed::new(), alice(), with_disk());
    let engine = bed.engine();
    let first = engine.start(&alice, &spec, G1).await.unwrap();
    engine.sleep(&alice, &spec, Some(&first.life), Depth::Suspended).await.unwrap();
    gild(&bed, &bed.path("golden"));
    engine.sleep(&alice, &spec, None, Depth::Removed).await.unwrap();

    spec.firecracker.golden = Some("golden".into());
    let log = Log::default();
    let into = log.clone();
    let subscriber = tracing_subscriber::fmt().with_writer(move || into.clone()).finish();
    let _log = tracing::subscriber::set_default(subscriber);
    let warnings = || String::from_utf8_lossy(&log.0.lock().unwrap()).matches("VMGenID").count();
    for (vmgenid, expected) in [(true, 0), (false, 1), (false, 1)] {
        spec.firecracker.vmgenid = vmgenid;
        let clone = engine.start(&alice, &spec, G1).await.unwrap();
        assert_eq!(warnings(), expected);
        engine.sleep(&alice, &spec, Some(&clone.life), Depth::Removed).await.unwrap();
    }
}
