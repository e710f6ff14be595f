//! The same engine with gVisor's `runsc` as the containers' runtime.

use std::{fs, sync::Arc};

use dormouse::session::{DockerSpec, Spec};

use crate::{
    bench::{Bench, G1, engine, get, session, shell, spec},
    contract, dockerd,
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
    let (bench, alice) = (Bench::on(&rig, "gvisor"), session("alice.test"));
    let tells = shell("dmesg > /tmp/index.html; busybox httpd -f -p {address} -h /tmp");
    let tells = in_gvisor(tells);
    let started = bench.start(&alice, &tells, G1).await;
    let kernel = get(&started.address);
    assert!(kernel.contains("gVisor"), "its kernel says {kernel}");
    drop(bench);
    contract::run(Arc::new(engine(rig.endpoint(), "gvisor")), |_| in_gvisor(spec())).await;
}
