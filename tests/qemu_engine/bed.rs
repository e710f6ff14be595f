//! One test's machines.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use dormouse::{
    engine::{
        Engine as _, InstanceState,
        qemu::{Config, Qemu},
    },
    session::{Address, Depth, Generation, QemuSpec, SessionId, Spec},
};
use tempfile::TempDir;

use super::vm::image;

pub(crate) const G1: Generation = Generation(1);
pub(crate) const G2: Generation = Generation(2);

/// Longer than a boot takes on a busy machine without KVM.
const PATIENCE: Duration = Duration::from_secs(120);

/// A state folder, and an image beside it.
pub(crate) struct Bed {
    folder: PathBuf,
    _temporary: Option<TempDir>,
}

impl Bed {
    pub(crate) fn new() -> Self {
        // Short: sockets are in there.
        let temporary = tempfile::Builder::new().prefix("vm").tempdir_in("/tmp").unwrap();
        let mut bed = Self::in_folder(temporary.path());
        bed._temporary = Some(temporary);
        bed
    }

    pub(crate) fn in_folder(folder: &Path) -> Self {
        fs::write(folder.join("base.img"), vec![0; 1 << 20]).unwrap();
        Self { folder: folder.to_owned(), _temporary: None }
    }

    pub(crate) fn engine(&self) -> Qemu {
        self.engine_of("qemu-system-x86_64")
    }

    pub(crate) fn engine_of(&self, program: &str) -> Qemu {
        Qemu::new(Config {
            program: program.into(),
            image_program: "qemu-img".into(),
            kvm: None,
            state: self.folder.join("state"),
            base: self.folder.clone(),
            call_timeout: Duration::from_secs(60),
        })
        .unwrap()
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn disk(&self) -> String {
        self.folder.join("base.img").display().to_string()
    }

    /// Of the one machine that there is.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        let mut folders = fs::read_dir(self.folder.join("state/qemu")).unwrap();
        folders.next().expect("a machine").unwrap().path().join(name)
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.file(name).exists()
    }

    pub(crate) fn signal(&self, signal: &str) {
        let pid = fs::read_to_string(self.file("pid")).unwrap();
        let kill = Command::new("kill").arg(format!("-{signal}")).arg(pid.trim()).status();
        assert!(kill.unwrap().success());
    }

    /// The one machine that there is neither runs nor has a memory to go on with.
    pub(crate) async fn is_off(&self, engine: &Qemu) {
        let listed = engine.list().await.unwrap();
        let states: Vec<_> = listed.iter().map(|one| (one.state, one.life.is_none())).collect();
        assert_eq!(states, [(InstanceState::Asleep(Depth::Stopped), true)]);
    }

    pub(crate) async fn end(&self, engine: &Qemu) {
        for instance in engine.list().await.unwrap() {
            engine.sleep(&instance.session, &spec(), None, Depth::Removed).await.unwrap();
        }
    }
}

impl Drop for Bed {
    /// A test that failed leaves machines running.
    fn drop(&mut self) {
        let folders = fs::read_dir(self.folder.join("state/qemu")).into_iter().flatten();
        for folder in folders.flatten() {
            let Ok(pid) = fs::read_to_string(folder.path().join("pid")) else { continue };
            let command = fs::read_to_string(format!("/proc/{}/cmdline", pid.trim()));
            if command.is_ok_and(|command| command.starts_with("qemu-system")) {
                let _ = Command::new("kill").arg("-KILL").arg(pid.trim()).status();
            }
        }
    }
}

/// A network device of this machine, and the two addresses on it.
pub(crate) struct Tap {
    name: String,
    /// The last byte but one of both.
    third: u8,
}

impl Tap {
    pub(crate) fn new() -> Self {
        let third = u8::try_from(std::process::id() % 256).unwrap();
        let tap = Self { name: format!("dmtap{third}"), third };
        let (name, ours) = (&*tap.name, format!("10.216.{third}.1/30"));
        ip(&["tuntap", "add", "dev", name, "mode", "tap"]);
        ip(&["addr", "add", &ours, "dev", name]);
        ip(&["link", "set", name, "up"]);
        tap
    }

    pub(crate) fn guest(&self) -> SocketAddr {
        ([10, 216, self.third, 2], 8080).into()
    }

    pub(crate) fn behind(&self, spec: Spec) -> Spec {
        let ip = self.guest().ip().to_string();
        let append = spec.qemu.append.map(|append| format!("{append} dormouse.address={ip}/30"));
        let qemu =
            QemuSpec { append, tap: Some(self.name.clone()), address: Some(ip), ..spec.qemu };
        Spec { qemu, ..spec }
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "delete", &self.name]).status();
    }
}

fn ip(arguments: &[&str]) {
    let ran = Command::new("ip").args(arguments).output().expect("apt-get install iproute2");
    let why = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "a test of a TAP needs root: ip {arguments:?}: {why}");
}

pub(crate) fn alice() -> SessionId {
    SessionId::new("alice.test")
}

pub(crate) fn spec() -> Spec {
    let file = |name: &str| Some(image().join(name).display().to_string());
    let qemu = QemuSpec {
        kernel: file("vmlinuz"),
        initrd: file("initrd"),
        append: Some("console=ttyS0 quiet panic=-1".into()),
        grace: Duration::from_secs(20),
        ..QemuSpec::default()
    };
    Spec { memory: Some(128 << 20), qemu, ..Spec::default() }
}

/// With no time to hear of the power button.
pub(crate) fn hasty() -> Spec {
    let qemu = QemuSpec { grace: Duration::from_millis(100), ..spec().qemu };
    Spec { qemu, ..spec() }
}

pub(crate) fn with_disk(spec: Spec, image: String) -> Spec {
    let (disk, disk_format) = (Some(image), "raw".to_owned());
    Spec { qemu: QemuSpec { disk, disk_format, ..spec.qemu }, ..spec }
}

/// From a disk that boots by itself.
pub(crate) fn booting(spec: Spec) -> Spec {
    let image = image().join("disk").display().to_string();
    let spec = with_disk(spec, image);
    let qemu = QemuSpec { kernel: None, initrd: None, append: None, ..spec.qemu };
    Spec { qemu, ..spec }
}

/// What the guest answers, once it does.
pub(crate) async fn get(address: &Address, page: &str) -> String {
    let Address::Tcp(address) = address else { panic!("{address} is no TCP address") };
    let url = format!("http://{address}/cgi-bin/{page}");
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let answer = async {
        loop {
            let sent = client.get(&url).timeout(Duration::from_secs(10)).send().await;
            match sent.and_then(reqwest::Response::error_for_status) {
                Ok(answer) => return answer.text().await.unwrap().trim().to_owned(),
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    };
    tokio::time::timeout(PATIENCE, answer).await.expect("the guest answers")
}
