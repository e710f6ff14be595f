//! Containers that others made, and a route names.

use dormouse::{
    engine::{Engine as _, Error},
    session::{Depth, DockerSpec, Generation, Spec},
};

use crate::bench::{Bench, G1, G2, get, running, session, spec};

pub(crate) fn existing(container: &str) -> Spec {
    let docker = DockerSpec { container: Some(container.to_owned()), ..spec().docker };
    Spec { docker, ..Spec::default() }
}

#[tokio::test]
async fn existing_container_is_started_and_never_created_or_removed() {
    let (bench, alice) = (Bench::new("existing"), session("alice.localhost"));
    let spec = existing("existing-alice");
    let error = bench.engine.start(&alice, &spec, G1).await.unwrap_err();
    assert!(matches!(&error, Error::Missing(text) if text.contains("`existing-alice`")));
    assert_eq!(bench.look(&alice, &spec).await, None);

    bench.foreign("existing-alice", &[]);
    let started = bench.start(&alice, &spec, G1).await;
    assert!(get(&started.address).ends_with("hello\n"));
    let instance = bench.look(&alice, &spec).await.unwrap();
    assert_eq!((instance.session.clone(), instance.generation), (alice.clone(), Generation(0)));
    assert_eq!(bench.engine.list().await.unwrap(), []);

    let life = Some(&started.life);
    let refused = bench.engine.sleep(&alice, &spec, life, Depth::Removed).await.unwrap_err();
    assert!(matches!(refused, Error::Invalid(_)), "{refused:?}");
    assert_eq!(bench.state(&alice, &spec).await, running());
    bench.sleep(&alice, &spec, &started, Depth::Paused).await;
    assert_eq!(bench.start(&alice, &spec, G2).await, started);
    bench.sleep(&alice, &spec, &started, Depth::Stopped).await;
    assert_eq!(bench.status("existing-alice"), "exited");
    bench.rig.docker(&["rm", "existing-alice"]);
}

#[tokio::test]
async fn existing_container_is_found_by_its_label_when_exactly_one_has_it() {
    let (bench, alice) = (Bench::new("labelled"), session("alice.localhost"));
    let label = Some("app=alice-desk".to_owned());
    let spec = Spec { docker: DockerSpec { label, ..spec().docker }, ..Spec::default() };
    let error = bench.engine.start(&alice, &spec, G1).await.unwrap_err();
    assert!(matches!(&error, Error::Missing(text) if text.contains("app=alice-desk")));

    bench.foreign("labelled-1", &["--label", "app=alice-desk"]);
    let started = bench.start(&alice, &spec, G1).await;
    assert!(get(&started.address).ends_with("hello\n"));
    assert_eq!(bench.status("labelled-1"), "running");

    bench.foreign("labelled-2", &["--label", "app=alice-desk"]);
    let error = bench.engine.start(&alice, &spec, G1).await.unwrap_err();
    assert!(matches!(&error, Error::Conflict(text) if text.contains("2 containers")));
    bench.rig.docker(&["rm", "-f", "labelled-1", "labelled-2"]);
}
