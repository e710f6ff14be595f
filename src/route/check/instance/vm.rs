//! What a virtual machine of this host boots, and how it is reached.

use crate::{
    route::check::Check,
    session::{FirecrackerSpec, QemuSpec, Spec},
};

/// Less holds no file system worth the name.
const LAYER_MIN: u64 = 1 << 20;
/// Beyond what one host has; `mkfs.ext4` alone would write gigabytes.
const LAYER_MAX: u64 = 64 << 40;

impl Check<'_> {
    pub(super) fn qemu(&mut self, spec: &Spec) {
        let QemuSpec { kernel, disk, tap, address, outbound, .. } = &spec.qemu;
        self.boots("qemu", kernel.is_some() || disk.is_some(), "disk");
        self.behind_a_tap("qemu", tap.is_some(), address.is_some());
        self.without_volumes(spec);
        if tap.is_some() && *outbound {
            let wrong = "with a `tap` it is your network that says what the guest reaches";
            self.found.value(&["instance", "qemu", "outbound"], wrong);
        }
    }

    pub(super) fn firecracker(&mut self, spec: &Spec) {
        let FirecrackerSpec { kernel, disk, layer, golden, tap, address, .. } = &spec.firecracker;
        self.boots("firecracker", kernel.is_some() || golden.is_some(), "golden");
        self.behind_a_tap("firecracker", tap.is_some(), address.is_some());
        self.without_volumes(spec);
        let path = ["instance", "firecracker", "layer"];
        if layer.is_some() && disk.is_none() {
            let wrong = "`layer` lies over `disk`, and there is none";
            self.found.value(&path, wrong).hint = Some("set instance.firecracker.disk".into());
        }
        if layer.is_some_and(|size| !(LAYER_MIN..=LAYER_MAX).contains(&size)) {
            self.found.value(&path, "`layer` is at least 1MiB and at most 64TiB");
        }
    }

    fn boots(&mut self, kind: &str, does: bool, other: &str) {
        if !does {
            let wrong = "nothing says what the machine boots";
            self.found.value(&["instance", kind], wrong).hint =
                Some(format!("set instance.{kind}.kernel or instance.{kind}.{other}"));
        }
    }

    fn behind_a_tap(&mut self, kind: &str, has_tap: bool, has_address: bool) {
        if has_tap != has_address {
            let wrong = "`tap` and `address` go together: the guest's address is behind the tap";
            self.found.value(&["instance", kind], wrong);
        }
    }

    /// Who names a volume means to find there, after `removed`, what he left.
    fn without_volumes(&mut self, spec: &Spec) {
        if !spec.volumes.is_empty() {
            let wrong = "a virtual machine has no volumes here: its disk is all that it keeps";
            self.found.value(&["instance", "volumes"], wrong).hint = Some(
                "remove it, and leave `removed` out of the ladder: it removes the disk".into(),
            );
        }
    }
}
