//! An API server that dies in the middle of a watch and comes back over the same etcd.

use dormouse::engine::{Engine as _, EngineEvent, Error};
use futures::{StreamExt as _, stream::BoxStream};
use kube::ResourceExt as _;

use crate::{
    bench::{Bench, G1, G2, eventually, session, spec},
    cluster::{Cluster, PATIENCE},
    scale::{scaled, serving},
};

async fn own() -> Cluster {
    tokio::task::spawn_blocking(Cluster::up).await.unwrap()
}

/// A server that has just started refuses everybody until it has read its Roles. What was allowed
/// before will be so again, and is tried again.
async fn allowed(bench: &Bench<'_>) {
    let listed = async || match bench.engine.list().await {
        Ok(_) => true,
        Err(error) => {
            assert!(error.is_retryable(), "{error:?}");
            false
        }
    };
    eventually("it has read them", listed).await;
}

/// Reads events until this one comes.
async fn until(events: &mut BoxStream<'static, EngineEvent>, wanted: EngineEvent) {
    let came = async { while events.next().await.expect("events have no end") != wanted {} };
    tokio::time::timeout(PATIENCE, came).await.unwrap_or_else(|_| panic!("never: {wanted:?}"));
}

#[tokio::test]
async fn a_server_that_comes_back_is_listened_to_again() {
    let cluster = own().await;
    let bench = Bench::on(&cluster, "restart").await.with_scale().await;
    let [lost, kept, scale] = ["lost.example", "kept.example", "scaled.example"].map(session);
    let workload = scaled("deployment/desk");
    bench.make("deployment/desk", "desk", &serving()).await;
    let started = bench.start(&lost, &spec(), G1).await;
    let lost_pod = bench.pod(&started).await.name_any();
    let staying = bench.start(&kept, &spec(), G1).await;
    bench.start(&scale, &workload, G1).await;
    let mut events = bench.engine.events();
    assert_eq!(events.next().await, Some(EngineEvent::Resync));
    assert_eq!(bench.engine.list().await.unwrap().len(), 3);

    // What happens meanwhile no watch will tell, and the place where each was is forgotten: 410.
    cluster.kill_server().await;
    let refused = bench.engine.list().await.unwrap_err();
    assert!(matches!(refused, Error::Unreachable(_)), "{refused:?}");
    cluster.lose(&format!("/registry/pods/restart/{lost_pod}")).await;
    cluster.start_server().await;
    // Of Pods, of Deployments and of StatefulSets; what changes earlier is in the list of its kind.
    for _ in 0..3 {
        until(&mut events, EngineEvent::Resync).await;
    }
    allowed(&bench).await;
    let state = async |host| bench.engine.inspect(host, &spec()).await.unwrap();
    assert_eq!(state(&lost).await, None);
    assert_eq!(state(&kept).await.unwrap().life, Some(staying.life.clone()));

    bench.delete_pod(&staying).await;
    until(&mut events, EngineEvent::Changed(kept.clone())).await;
    bench.scale_by_hand("deployment/desk", 0).await;
    until(&mut events, EngineEvent::Changed(scale.clone())).await;
}

#[tokio::test]
async fn a_server_that_comes_back_with_its_history_goes_on_with_it() {
    let cluster = own().await;
    let bench = Bench::on(&cluster, "history").await;
    let mut events = bench.engine.events();
    assert_eq!(events.next().await, Some(EngineEvent::Resync));
    let [before, after] = ["before.example", "after.example"].map(session);
    bench.start(&before, &spec(), G1).await;
    assert_eq!(bench.engine.list().await.unwrap().len(), 1);
    cluster.kill_server().await;
    cluster.start_server().await;
    allowed(&bench).await;
    bench.end(&before).await;
    bench.start(&after, &spec(), G2).await;
    until(&mut events, EngineEvent::Changed(after.clone())).await;
    bench.end(&after).await;
    assert_eq!(bench.engine.list().await.unwrap(), []);
}
