//! Every request that the engine makes is one of the official file: `firecracker.swagger.yaml`, from
//! firecracker-microvm/firecracker at 81b38b9dad60 (Apache-2.0), 2026-08-21. The fake notes them, and
//! prism, which has read the file, is asked each again.

use super::{bed::with_layer, prism::Prism, *};

const OFFICIAL: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/firecracker_engine/firecracker.swagger.yaml");

/// The status of one request.
async fn ask(prism: &Prism, call: &str, body: &serde_json::Value) -> (u16, String) {
    let (method, path) = call.split_once(' ').unwrap();
    let request = reqwest::Client::new()
        .request(method.parse().unwrap(), format!("{}{path}", prism.base))
        .header("content-type", "application/json");
    let request = if body.is_null() { request } else { request.body(body.to_string()) };
    let answer = request.send().await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

#[tokio::test]
async fn every_request_is_one_of_the_official_file() {
    let (bed, alice) = (Bed::new(), alice());
    let engine = bed.engine();
    let with_tap = FirecrackerSpec {
        tap: Some("tap0".into()),
        address: Some("192.0.2.7".into()),
        initrd: Some("vmlinux".into()),
        ..with_disk().firecracker
    };
    let with_tap = Spec { firecracker: with_tap, nano_cpus: Some(2_000_000_000), ..with_disk() };
    let mut asked = Vec::new();
    for spec in [with_layer(), with_tap] {
        for depth in [Depth::Paused, Depth::Suspended, Depth::Stopped] {
            let started = engine.start(&alice, &spec, G1).await.unwrap();
            engine.sleep(&alice, &spec, Some(&started.life), depth).await.unwrap();
        }
        asked.extend(bed.asked());
        engine.sleep(&alice, &spec, None, Depth::Removed).await.unwrap();
    }
    let prism = Prism::up(&["mock", OFFICIAL]).await;
    for (call, body) in &asked {
        let (status, says) = ask(&prism, call, body).await;
        assert!((200..300).contains(&status), "{call} {body}: {status} {says}");
    }
    // And it would say if one were not.
    let wrong = json!({ "state": "Asleep" });
    assert_eq!(ask(&prism, "PATCH /vm", &wrong).await.0, 400);
    for call in [
        "PUT /machine-config",
        "PUT /boot-source",
        "PUT /drives/disk",
        "PUT /drives/layer",
        "PUT /vsock",
        "PUT /network-interfaces/eth0",
        "PUT /mmds/config",
        "PUT /mmds",
        "PUT /entropy",
        "PUT /actions",
        "PATCH /vm",
        "PUT /snapshot/create",
        "PUT /snapshot/load",
        "GET /",
    ] {
        assert!(asked.iter().any(|(one, _)| one == call), "{call} was not asked");
    }
}
