//! A real Firecracker, where there is one and a KVM that works; elsewhere this says that it did not run.

use std::{fs, path::Path, process::Command};

use super::*;

/// A kernel and an image that serve HTTP on vsock port 8080: `docs/engines/firecracker.md` says how
/// to get them.
const FOLDER: &str = "DORMOUSE_FIRECRACKER";

/// Why there is none here.
fn missing() -> Option<String> {
    let kvm = fs::File::options().read(true).write(true).open("/dev/kvm");
    if let Err(error) = kvm {
        return Some(format!("/dev/kvm: {error}"));
    }
    // That it opens proves little: there are hosts whose own hypervisor keeps the rest to itself.
    let processor = fs::read_to_string("/proc/cpuinfo").unwrap();
    if cfg!(target_arch = "x86_64") && !["vmx", "svm"].iter().any(|flag| processor.contains(flag)) {
        return Some("/dev/kvm opens, and the processor has neither VMX nor SVM".to_owned());
    }
    if Command::new("firecracker").arg("--version").output().is_err() {
        return Some("no program `firecracker`".to_owned());
    }
    let folder = std::env::var_os(FOLDER);
    if folder.is_none_or(|folder| !Path::new(&folder).join("vmlinux").exists()) {
        return Some(format!("{FOLDER} names no folder with vmlinux and disk"));
    }
    None
}

#[tokio::test]
async fn a_real_microvm_boots_suspends_and_goes_on() {
    if let Some(why) = missing() {
        eprintln!(
            "NOT RUN: firecracker_engine::real::a_real_microvm_boots_suspends_and_goes_on: {why}"
        );
        return;
    }
    let folder = std::env::var(FOLDER).unwrap();
    let (bed, alice) = (Bed::new(), alice());
    let engine = bed.engine_of("firecracker");
    let firecracker = FirecrackerSpec {
        kernel: Some(format!("{folder}/vmlinux")),
        disk: Some(format!("{folder}/disk")),
        ..spec().firecracker
    };
    let spec = Spec { memory: Some(256 << 20), firecracker, ..spec() };
    let mut started = engine.start(&alice, &spec, G1).await.unwrap();
    get(&started, "").await;
    for depth in [Depth::Paused, Depth::Suspended, Depth::Stopped] {
        engine.sleep(&alice, &spec, Some(&started.life), depth).await.unwrap();
        started = engine.start(&alice, &spec, G2).await.unwrap();
        get(&started, "").await;
    }
    engine.sleep(&alice, &spec, Some(&started.life), Depth::Removed).await.unwrap();
}
