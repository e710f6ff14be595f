//! Whether this machine can run another one by itself.

use std::{fs, path::Path, process::Stdio, time::Duration};

use tokio::{io::AsyncReadExt as _, process::Command, time::timeout};

use super::arguments::Accelerator;

/// A firmware that has not said a word by then does not run.
const WORD_MAX: Duration = Duration::from_secs(5);

/// KVM where a machine truly runs by it. That `/dev/kvm` opens says little: it does so on hosts
/// whose processor can run no other kernel than one made for them (`kvm_pvm`).
pub(super) async fn best(program: &Path) -> Accelerator {
    let runs = has_virtualization() && boots(program).await;
    let accelerator = if runs { Accelerator::Kvm } else { Accelerator::Tcg };
    tracing::info!(?accelerator, "virtual machines run by it");
    accelerator
}

fn has_virtualization() -> bool {
    let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = processor.lines().find(|line| line.starts_with("flags"));
    flags.is_some_and(|flags| flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm"))
}

/// SeaBIOS writes to this port as soon as it runs.
async fn boots(program: &Path) -> bool {
    let spawned = Command::new(program)
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-m", "64"])
        .args(["-machine", "q35,accel=kvm", "-cpu", "host", "-chardev", "stdio,id=log"])
        .args(["-device", "isa-debugcon,iobase=0x402,chardev=log"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn();
    let Ok(mut child) = spawned else { return false };
    let mut word = [0; 7];
    let says = async {
        match &mut child.stdout {
            Some(stdout) => stdout.read_exact(&mut word).await.is_ok(),
            None => false,
        }
    };
    let says = timeout(WORD_MAX, says).await.unwrap_or(false);
    let _ = child.kill().await;
    says && word == *b"SeaBIOS"
}
