//! From a route's template to the command line of a virtual machine's process.
//!
//! Pure. Files in the machine's own folder have names without a path: QEMU runs in there.

use sha2::{Digest as _, Sha256};

use super::{DISK, ENVIRONMENT, MONITOR};
use crate::{
    engine::vm::folder::PID,
    session::{SessionId, Spec},
};

/// The port that an instance listens on when its route names none.
pub(super) const PORT: u16 = 8080;
/// What a machine has when its route says nothing, in bytes.
const MEMORY: u64 = 512 << 20;
const BILLION: u64 = 1_000_000_000;
/// What the guest wrote to its serial port last, for the error when it ends.
const CONSOLE: &str = "ringbuf,id=console,size=65536";
/// No file but those that are given, no program, no other user.
const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

/// What makes a guest's processor go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Accelerator {
    Kvm,
    Tcg,
}

impl Accelerator {
    fn machine(self) -> &'static str {
        match self {
            Self::Kvm => "q35,accel=kvm",
            Self::Tcg => "q35,accel=tcg",
        }
    }

    fn processor(self) -> &'static str {
        match self {
            Self::Kvm => "host",
            Self::Tcg => "max",
        }
    }
}

/// What the machine is, but for the port of this start: memory written by one machine is for
/// another only where this is the same.
pub(super) fn machine(accelerator: Accelerator, session: &SessionId, spec: &Spec) -> Vec<String> {
    let qemu = &spec.qemu;
    let megabytes = memory(spec).div_ceil(1 << 20);
    let processors = spec.nano_cpus.map_or(1, |nanos| nanos.div_ceil(BILLION));
    let mut words: Vec<String> = Vec::new();
    let mut add = |name: &str, value: String| words.extend([format!("-{name}"), value]);
    add("machine", accelerator.machine().to_owned());
    add("cpu", accelerator.processor().to_owned());
    add("m", format!("{megabytes}M"));
    add("smp", processors.to_string());
    for (name, file) in [("kernel", &qemu.kernel), ("initrd", &qemu.initrd)] {
        if let Some(file) = file {
            add(name, file.clone());
        }
    }
    if let Some(append) = &qemu.append {
        add("append", append.clone());
    }
    if qemu.disk.is_some() {
        let drive = format!("if=none,id=disk,file={},format=qcow2,discard=unmap", DISK);
        add("drive", drive);
        add("device", "virtio-blk-pci,drive=disk".to_owned());
    }
    let card = match qemu.tap {
        // Guests of several TAPs may be on one bridge, and QEMU calls all cards the same.
        Some(_) => format!("virtio-net-pci,netdev=net,mac={}", mac(session)),
        None => "virtio-net-pci,netdev=net".to_owned(),
    };
    add("device", card);
    add("device", "virtio-rng-pci".to_owned());
    add("chardev", CONSOLE.to_owned());
    add("serial", "chardev:console".to_owned());
    // Commas are doubled: they part options.
    let host = session.host().replace(',', ",,");
    add("fw_cfg", format!("name=opt/dormouse/session,string={host}"));
    add("fw_cfg", format!("name=opt/dormouse/env,file={}", ENVIRONMENT));
    words
}

/// A locally administered one, the same for a session in all its lives. 32 bits, so that of a
/// thousand sessions on one bridge hardly two have the same.
fn mac(session: &SessionId) -> String {
    let digest = Sha256::digest(session.host());
    let [a, b, c, d] = [digest[0], digest[1], digest[2], digest[3]];
    format!("52:54:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
}

/// In bytes.
pub(super) fn memory(spec: &Spec) -> u64 {
    spec.memory.unwrap_or(MEMORY)
}

/// The same for equal machines, also after an update of Dormouse.
pub(super) fn fingerprint(machine: &[String], environment: &str) -> String {
    let mut digest = Sha256::new();
    for word in machine.iter().map(String::as_str).chain([environment]) {
        digest.update(word);
        digest.update([0]);
    }
    digest.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// The rest: where the edge meets it.
pub(super) fn meeting(spec: &Spec, host_port: u16, resumes: bool) -> Vec<String> {
    let (guest_port, restrict) =
        (spec.port.unwrap_or(PORT), if spec.qemu.outbound { "off" } else { "on" });
    let network = match &spec.qemu.tap {
        Some(tap) => {
            format!("tap,id=net,ifname={},script=no,downscript=no", tap.replace(',', ",,"))
        }
        None => {
            let forwarded = format!("hostfwd=tcp:127.0.0.1:{host_port}-:{guest_port}");
            format!("user,id=net,restrict={restrict},{forwarded}")
        }
    };
    let monitor = format!("unix:{},server=on,wait=off", MONITOR);
    let mut words = vec!["-nodefaults", "-no-user-config", "-display", "none"];
    words.extend(["-netdev", &network, "-qmp", &monitor, "-pidfile", PID]);
    words.extend(["-sandbox", SANDBOX]);
    if resumes {
        words.extend(["-incoming", "defer", "-S"]);
    }
    words.into_iter().map(str::to_owned).collect()
}

/// A line for each variable.
pub(super) fn environment(spec: &Spec) -> String {
    spec.env.iter().map(|(name, value)| format!("{name}={value}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::QemuSpec;

    fn spec() -> Spec {
        let qemu = QemuSpec { disk: Some("/base,1".into()), ..QemuSpec::default() };
        Spec { qemu, ..Spec::default() }
    }

    #[test]
    fn a_hosts_name_cannot_become_an_option() {
        let words = machine(Accelerator::Tcg, &SessionId::new("a,file=/etc/shadow"), &spec());
        let told = "name=opt/dormouse/session,string=a,,file=/etc/shadow".to_owned();
        assert!(words.contains(&told), "{words:?}");
    }

    #[test]
    fn a_machine_that_is_another_has_another_fingerprint() {
        let session = SessionId::new("a.test");
        let of = |spec: &Spec, env| fingerprint(&machine(Accelerator::Tcg, &session, spec), env);
        let one = of(&spec(), "");
        assert_eq!(one, of(&spec(), ""));
        assert_ne!(one, of(&spec(), "A=b\n"));
        assert_ne!(one, of(&Spec { memory: Some(1 << 30), ..spec() }, ""));
        assert_ne!(one, of(&Spec { nano_cpus: Some(BILLION + 1), ..spec() }, ""));
    }

    #[test]
    fn behind_a_tap_nothing_is_forwarded_and_each_session_has_a_card_of_its_own() {
        let spec = |tap: &str| {
            let qemu = QemuSpec { tap: Some(tap.to_owned()), ..spec().qemu };
            Spec { qemu, ..spec() }
        };
        let words = meeting(&spec("tap,script=/evil"), 1, false);
        let network = "tap,id=net,ifname=tap,,script=/evil,script=no,downscript=no".to_owned();
        assert!(words.contains(&network), "{words:?}");
        let card = |host: &str| {
            let words = machine(Accelerator::Tcg, &SessionId::new(host), &spec("tap0"));
            words.into_iter().find(|word| word.contains("mac=52:54:")).unwrap()
        };
        assert_ne!(card("a.test"), card("b.test"));
        assert_eq!(card("a.test"), card("a.test"));
    }

    #[test]
    fn a_guest_reaches_nobody_unless_its_route_lets_it() {
        let is_shut =
            |spec: &Spec| meeting(spec, 1, false).iter().any(|w| w.contains("restrict=on"));
        assert!(is_shut(&spec()));
        let outbound = QemuSpec { outbound: true, ..spec().qemu };
        assert!(!is_shut(&Spec { qemu: outbound, ..spec() }));
    }
}
