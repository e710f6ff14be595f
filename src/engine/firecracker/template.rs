//! From a route's template to the calls that put a machine together.
//!
//! Pure. Files have names without a path where they lie in the machine's own folder or jail: its
//! process works there, so that memory written in one is read in another.

use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use crate::{
    engine::vm::folder::Base,
    session::{SessionId, Spec},
};

/// What a machine has when its route says nothing, in bytes.
const MEMORY: u64 = 512 << 20;
const MEBIBYTE: u64 = 1 << 20;
const BILLION: u64 = 1_000_000_000;
/// Any but 0 to 2; each machine has a bus of its own.
const CID: u32 = 3;
const INTERFACE: &str = "eth0";
/// Serial console, an end at every panic and restart, no bus that is not there.
const APPEND: &str = "console=ttyS0 reboot=k panic=1 pci=off";

/// What a machine is made of: the files as its process sees them.
#[derive(Clone, Debug, Default)]
pub(super) struct Files {
    pub(super) kernel: Option<String>,
    pub(super) initrd: Option<String>,
    pub(super) disk: Option<String>,
    /// What is written to instead of the disk.
    pub(super) layer: Option<String>,
    /// Which disk that is, when sessions share it.
    pub(super) base: Option<Base>,
}

/// The calls before the boot, in their order.
pub(super) fn machine(spec: &Spec, files: &Files) -> Vec<(&'static str, Value)> {
    let firecracker = &spec.firecracker;
    let processors = spec.nano_cpus.map_or(1, |nanos| nanos.div_ceil(BILLION));
    let size = memory(spec).div_ceil(MEBIBYTE);
    let mut calls =
        vec![("/machine-config", json!({ "vcpu_count": processors, "mem_size_mib": size }))];
    let append = firecracker.append.as_deref().unwrap_or(APPEND);
    let mut boot = Map::new();
    boot.insert("kernel_image_path".into(), json!(files.kernel));
    boot.insert("boot_args".into(), json!(append));
    if let Some(initrd) = &files.initrd {
        boot.insert("initrd_path".into(), json!(initrd));
    }
    calls.push(("/boot-source", boot.into()));
    if let Some(disk) = &files.disk {
        let drive = json!({
            "drive_id": "disk", "path_on_host": disk, "is_root_device": true,
            "is_read_only": files.layer.is_some(),
        });
        calls.push(("/drives/disk", drive));
    }
    if let Some(layer) = &files.layer {
        let drive = json!({
            "drive_id": "layer", "path_on_host": layer, "is_root_device": false,
            "is_read_only": false,
        });
        calls.push(("/drives/layer", drive));
    }
    match &firecracker.tap {
        Some(tap) => {
            let interface = json!({ "iface_id": INTERFACE, "host_dev_name": tap });
            calls.push(("/network-interfaces/eth0", interface));
            calls.push((
                "/mmds/config",
                json!({ "version": "V2", "network_interfaces": [INTERFACE] }),
            ));
        }
        None => calls.push(("/vsock", json!({ "guest_cid": CID, "uds_path": super::VSOCK }))),
    }
    calls.push(("/entropy", json!({})));
    calls
}

/// In bytes.
pub(super) fn memory(spec: &Spec) -> u64 {
    spec.memory.unwrap_or(MEMORY)
}

/// What a guest with a network finds at 169.254.169.254: who it is, and its environment. It is not
/// part of a memory, so each life is told anew.
pub(super) fn metadata(spec: &Spec, session: &SessionId) -> Option<Value> {
    spec.firecracker.tap.as_ref()?;
    Some(json!({ "dormouse": { "session": session.host(), "env": spec.env } }))
}

/// The interface of a memory that was written on another tap.
pub(super) fn overrides(spec: &Spec) -> Option<Value> {
    let tap = spec.firecracker.tap.as_ref()?;
    Some(json!([{ "iface_id": INTERFACE, "host_dev_name": tap }]))
}

/// The same for equal machines, also after an update of Dormouse; another where the shared root is
/// another file by now, as a memory holds some of what it read there.
pub(super) fn fingerprint(machine: &[(&'static str, Value)], base: Option<&Base>) -> String {
    let mut digest = Sha256::new();
    for (path, body) in machine {
        digest.update(format!("{path} {body}\n"));
    }
    if let Some(base) = base {
        digest.update(json!(base).to_string());
    }
    digest.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::FirecrackerSpec;

    fn files() -> Files {
        Files { kernel: Some("/k".into()), disk: Some("disk".into()), ..Files::default() }
    }

    fn with_tap() -> Spec {
        let firecracker =
            FirecrackerSpec { tap: Some("tap0".into()), ..FirecrackerSpec::default() };
        Spec { firecracker, ..Spec::default() }
    }

    #[test]
    fn without_a_tap_the_way_in_is_the_vsock_and_nobody_is_told_anything() {
        let calls = machine(&Spec::default(), &files());
        let paths: Vec<_> = calls.iter().map(|(path, _)| *path).collect();
        assert_eq!(
            paths,
            ["/machine-config", "/boot-source", "/drives/disk", "/vsock", "/entropy"]
        );
        assert_eq!(metadata(&Spec::default(), &SessionId::new("a.test")), None);
    }

    #[test]
    fn with_a_tap_the_guest_is_told_who_it_is() {
        let spec = Spec { env: [("A".to_owned(), "b".to_owned())].into(), ..with_tap() };
        let calls = machine(&spec, &files());
        assert!(calls.iter().all(|(path, _)| *path != "/vsock"));
        let told = metadata(&spec, &SessionId::new("a.test")).unwrap();
        assert_eq!(told, json!({ "dormouse": { "session": "a.test", "env": { "A": "b" } } }));
        assert_eq!(overrides(&spec).unwrap()[0]["host_dev_name"], "tap0");
    }

    #[test]
    fn a_machine_that_is_another_has_another_fingerprint() {
        let of = |spec: &Spec| fingerprint(&machine(spec, &files()), None);
        let one = of(&Spec::default());
        assert_eq!(one, of(&Spec::default()));
        assert_ne!(one, of(&Spec { memory: Some(1 << 30), ..Spec::default() }));
        assert_ne!(one, of(&with_tap()));
    }
}
