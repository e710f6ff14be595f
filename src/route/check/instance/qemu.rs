//! What a virtual machine boots, and how it is reached.

use crate::{route::check::Check, session::QemuSpec};

impl Check<'_> {
    pub(super) fn qemu(&mut self, spec: &QemuSpec) {
        let QemuSpec { kernel, disk, tap, address, outbound, .. } = spec;
        if kernel.is_none() && disk.is_none() {
            let wrong = "nothing says what the machine boots";
            self.found.value(&["instance", "qemu"], wrong).hint =
                Some("set instance.qemu.kernel or instance.qemu.disk".into());
        }
        if tap.is_some() != address.is_some() {
            let wrong = "`tap` and `address` go together: the guest's address is behind the tap";
            self.found.value(&["instance", "qemu"], wrong);
        }
        if tap.is_some() && *outbound {
            let wrong = "with a `tap` it is your network that says what the guest reaches";
            self.found.value(&["instance", "qemu", "outbound"], wrong);
        }
    }
}
