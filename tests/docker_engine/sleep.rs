//! Every depth, and who is left alone.

use dormouse::{
    engine::{Engine as _, Error},
    session::{Depth, DockerSpec, Generation, Spec},
};

use crate::bench::{
    Bench, G1, G2, PATIENCE, asleep, eventually, get, running, session, shell, spec,
};

#[tokio::test]
async fn paused_instance_resumes_as_the_same_life_at_the_same_address() {
    let (bench, alice) = (Bench::new("pause"), session("alice.localhost"));
    let first = bench.start(&alice, &spec(), G1).await;
    for _ in 0..2 {
        bench.sleep(&alice, &spec(), &first, Depth::Paused).await;
        assert_eq!(bench.state(&alice, &spec()).await, asleep(Depth::Paused));
    }
    assert_eq!(bench.start(&alice, &spec(), G2).await, first);
    assert_eq!(bench.state(&alice, &spec()).await, running());
    assert!(get(&first.address).ends_with("hello\n"));
}

#[tokio::test]
async fn instance_that_ignores_term_is_killed_after_its_grace() {
    let (bench, alice) = (Bench::new("stubborn"), session("alice.localhost"));
    let spec = shell("trap '' TERM; while true; do sleep 1; done");
    let started = bench.start(&alice, &spec, G1).await;
    bench.sleep(&alice, &spec, &started, Depth::Stopped).await;
    assert_eq!(bench.state(&alice, &spec).await, asleep(Depth::Stopped));
    assert_eq!(bench.field(&bench.name(&alice), ".State.ExitCode"), 137);
}

#[tokio::test]
async fn paused_instance_ends_in_its_own_way_when_stopped() {
    let (bench, alice) = (Bench::new("thaw"), session("alice.localhost"));
    let script = "trap 'exit 7' TERM; touch /tmp/trap; while true; do sleep 0.1; done";
    let docker = DockerSpec { grace: PATIENCE, ..spec().docker };
    let spec = Spec { docker, ..shell(script) };
    let started = bench.start(&alice, &spec, G1).await;
    // Until the trap is set, TERM means nothing to it: PID 1 has no default action.
    let set = ["exec", &bench.name(&alice), "test", "-f", "/tmp/trap"];
    eventually("the trap", async || bench.rig.try_docker(&set).status.success()).await;
    bench.sleep(&alice, &spec, &started, Depth::Paused).await;
    bench.sleep(&alice, &spec, &started, Depth::Stopped).await;
    assert_eq!(bench.field(&bench.name(&alice), ".State.ExitCode"), 7);
    bench.sleep(&alice, &spec, &started, Depth::Stopped).await;
}

#[tokio::test]
async fn removed_instance_is_gone_and_its_named_volume_stays() {
    let (bench, alice) = (Bench::new("removed"), session("alice.localhost"));
    let volumes = vec!["dormouse-removed:/data".to_owned()];
    let spec = Spec { volumes, ..spec() };
    let name = bench.name(&alice);
    let first = bench.start(&alice, &spec, G1).await;
    bench.rig.docker(&["exec", &name, "touch", "/data/kept"]);
    bench.sleep(&alice, &spec, &first, Depth::Removed).await;
    assert_eq!(bench.look(&alice, &spec).await, None);
    bench.sleep(&alice, &spec, &first, Depth::Removed).await;
    let second = bench.start(&alice, &spec, G2).await;
    assert_ne!(second.life, first.life);
    bench.rig.docker(&["exec", &name, "cat", "/data/kept"]);
    bench.sleep(&alice, &spec, &second, Depth::Paused).await;
    bench.sleep(&alice, &spec, &second, Depth::Removed).await;
    assert_eq!(bench.look(&alice, &spec).await, None);
    bench.rig.docker(&["volume", "rm", "dormouse-removed"]);
}

#[tokio::test]
async fn sleep_of_an_older_life_leaves_a_newer_one_alone() {
    let (bench, alice) = (Bench::new("fence"), session("alice.localhost"));
    let first = bench.start(&alice, &spec(), G1).await;
    bench.sleep(&alice, &spec(), &first, Depth::Stopped).await;
    let second = bench.start(&alice, &spec(), G2).await;
    for depth in [Depth::Paused, Depth::Stopped, Depth::Removed] {
        bench.sleep(&alice, &spec(), &first, depth).await;
        assert_eq!(bench.look(&alice, &spec()).await.unwrap().life.as_ref(), Some(&second.life));
        assert_eq!(bench.state(&alice, &spec()).await, running());
    }
    bench.sleep(&alice, &spec(), &second, Depth::Removed).await;
    let third = bench.start(&alice, &spec(), Generation(3)).await;
    bench.sleep(&alice, &spec(), &second, Depth::Removed).await;
    assert_eq!(bench.state(&alice, &spec()).await, running());
    assert!(get(&third.address).ends_with("hello\n"));
}

#[tokio::test]
async fn sleep_without_a_life_is_for_whatever_is_there_and_for_nothing() {
    let (bench, alice) = (Bench::new("lifeless"), session("alice.localhost"));
    bench.engine.sleep(&alice, &spec(), None, Depth::Stopped).await.unwrap();
    bench.start(&alice, &spec(), G1).await;
    bench.engine.sleep(&alice, &spec(), None, Depth::Stopped).await.unwrap();
    assert_eq!(bench.state(&alice, &spec()).await, asleep(Depth::Stopped));
    let error = bench.engine.sleep(&alice, &spec(), None, Depth::Suspended).await.unwrap_err();
    assert!(matches!(error, Error::Invalid(_)), "{error:?}");
}
