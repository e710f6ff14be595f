//! The same engine with gVisor's `runsc` as the containers' runtime.

use std::{fs, sync::Arc};

use dormouse::{
    engine::{Engine as _, Error, docker::Docker},
    session::{Depth, DockerSpec, Spec},
};

use crate::{
    bench::{G1, engine, get, session, shell, spec},
    contract, dockerd,
    podman_rig::Podman,
};

fn in_gvisor(spec: Spec) -> Spec {
    Spec { docker: DockerSpec { runtime: Some("runsc".to_owned()), ..spec.docker }, ..spec }
}

/// A daemon that knows it. Debian's runsc of 2022 takes the network of newer kernels for the
/// host's and refuses it (google/gvisor#10704), hence the host's stack, within the container's own
/// namespace; `ptrace` needs no KVM.
fn rig() -> dockerd::Rig {
    let config = std::env::temp_dir().join(format!("dormouse-gvisor-{}.json", std::process::id()));
    let arguments = r#"["--platform=ptrace", "--network=host", "--ignore-cgroups"]"#;
    let runsc = format!(r#"{{"path": "/usr/bin/runsc", "runtimeArgs": {arguments}}}"#);
    fs::write(&config, format!(r#"{{"runtimes": {{"runsc": {runsc}}}}}"#)).unwrap();
    let rig = dockerd::own("gvisor", &format!("--config-file {}", config.display()));
    fs::remove_file(config).unwrap();
    rig
}

#[tokio::test]
async fn a_session_in_gvisor_wakes_freezes_and_sleeps_as_any_other() {
    let rig = rig();
    lives_in_gvisor(engine(rig.endpoint(), "gvisor")).await;
}

/// Podman's service has one runtime for all.
#[tokio::test]
async fn a_session_in_gvisor_of_podman_wakes_freezes_and_sleeps_as_any_other() {
    let podman = Podman::with("gvisor", "runsc").await;
    lives_in_gvisor(engine(podman.endpoint(), "gvisor")).await;
}

/// It would take the wish, and run the session in another.
#[tokio::test]
async fn a_podman_that_would_run_it_in_another_runtime_is_refused() {
    let podman = Podman::with("gvisor-not", "runc").await;
    let (engine, alice) = (engine(podman.endpoint(), "gvisor"), session("alice.test"));
    let refused = engine.start(&alice, &in_gvisor(spec()), G1).await.unwrap_err();
    let said = "Podman runs every container in `runc`";
    assert!(matches!(&refused, Error::Invalid(text) if text.contains(said)), "{refused:?}");
    assert_eq!(engine.list().await.unwrap(), []);
    let runtime = Some("runc".to_owned());
    let its_own = Spec { docker: DockerSpec { runtime, ..spec().docker }, ..spec() };
    let started = engine.start(&alice, &its_own, G1).await.unwrap();
    engine.sleep(&alice, &its_own, Some(&started.life), Depth::Removed).await.unwrap();
}

async fn lives_in_gvisor(engine: Docker) {
    let alice = session("alice.test");
    let tells = shell("dmesg > /tmp/index.html; busybox httpd -f -p {address} -h /tmp");
    let tells = in_gvisor(tells);
    let started = engine.start(&alice, &tells, G1).await.unwrap();
    contract::answers(&started.address).await;
    let kernel = get(&started.address);
    assert!(kernel.contains("gVisor"), "its kernel says {kernel}");
    engine.sleep(&alice, &tells, Some(&started.life), Depth::Removed).await.unwrap();
    contract::run(Arc::new(engine), |_| in_gvisor(spec())).await;
}
