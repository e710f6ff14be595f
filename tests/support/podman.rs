//! A real Podman for tests, as root.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use tokio::sync::{Mutex, MutexGuard};

use crate::dockerd::IMAGE;

/// Longer than it takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A Podman service of a test's own, with its own storage, bridge and containers, gone when dropped.
pub(crate) struct Podman {
    folder: PathBuf,
    /// Podman refuses more than 50 characters here, and a clone may lie deep.
    run: PathBuf,
    service: Child,
    /// Its addresses, as CIDR.
    subnet: String,
    bridge: String,
    _alone: MutexGuard<'static, ()>,
}

/// netavark's changes of iptables are no more than one at a time.
static ALONE: Mutex<()> = Mutex::const_new(());

impl Podman {
    pub(crate) async fn up(name: &str) -> Self {
        Self::with(name, "runc").await
    }

    /// Every container of it is in this runtime. `runsc` is as tests/docker_engine/gvisor.rs says.
    pub(crate) async fn with(name: &str, runtime: &str) -> Self {
        let alone = ALONE.lock().await;
        let process = std::process::id();
        let rigs = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/rig");
        let folder = rigs.join(format!("podman-{name}-{process}"));
        fs::create_dir_all(folder.join("net")).unwrap();
        let run = PathBuf::from(format!("/run/dmpod-{process}"));
        fs::create_dir_all(&run).unwrap();
        let (at, at_run) = (folder.display(), run.display());
        let runsc = folder.join("runsc");
        let words = "exec /usr/bin/runsc --platform=ptrace --network=host --ignore-cgroups \"$@\"";
        fs::write(&runsc, format!("#!/bin/sh\n{words}\n")).unwrap();
        fs::set_permissions(&runsc, fs::Permissions::from_mode(0o755)).unwrap();
        let runsc = runsc.display();
        // crun refuses this kind of machine's hybrid cgroups; without systemd there is no journal.
        // Podman's own limits of open files and processes are more than a container may have here.
        let settings = format!(
            "[containers]\ndefault_ulimits = [\"nofile=4096:4096\", \"nproc=4096:4096\"]\n\
             [engine]\nruntime = \"{runtime}\"\ncgroup_manager = \"cgroupfs\"\n\
             events_logger = \"file\"\ntmp_dir = \"{at_run}/tmp\"\n\
             [engine.runtimes]\nrunsc = [\"{runsc}\"]\n\
             [network]\nnetwork_backend = \"netavark\"\nnetwork_config_dir = \"{at}/net\"\n"
        );
        fs::write(folder.join("containers.conf"), settings).unwrap();
        let third = process % 256;
        let subnet = format!("10.215.{third}.0/24");
        let bridge = format!("dmpod{third}");
        fs::write(folder.join("net/podman.json"), network(&bridge, &subnet)).unwrap();
        // The bridge goes with its last container: nothing may leave this machine then.
        ip(&["route", "replace", "unreachable", &subnet, "metric", "9999"]);
        let service = podman(&folder, &run)
            .args(["system", "service", "--time", "0"])
            .arg(format!("unix://{at_run}/podman.sock"))
            .stderr(fs::File::create(folder.join("log")).unwrap())
            .stdout(Stdio::null())
            .spawn()
            .expect("apt-get install podman netavark");
        let podman = Self { folder, run, service, subnet, bridge, _alone: alone };
        let deadline = Instant::now() + PATIENCE;
        while !podman.docker(&["version"]).status.success() {
            assert!(Instant::now() < deadline, "no Podman: {}", podman.log());
            std::thread::sleep(Duration::from_millis(50));
        }
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/session-image");
        let image = Command::new(script).arg(IMAGE).env("DOCKER_HOST", podman.endpoint()).output();
        assert!(image.unwrap().status.success(), "no image: {}", podman.log());
        podman
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("unix://{}/podman.sock", self.run.display())
    }

    pub(crate) fn docker(&self, arguments: &[&str]) -> Output {
        let mut docker = Command::new("docker");
        docker.arg("--host").arg(self.endpoint()).args(arguments).output().unwrap()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let _ = podman(&self.folder, &self.run)
            .args(["rm", "--all", "--force", "--time", "0"])
            .output();
        let _ = podman(&self.folder, &self.run)
            .args(["system", "prune", "--force", "--volumes"])
            .output();
        let _ = self.service.kill();
        let _ = self.service.wait();
        let _ = fs::remove_dir_all(&self.folder);
        let _ = fs::remove_dir_all(&self.run);
        ip(&["link", "delete", &self.bridge]);
        ip(&["route", "delete", "unreachable", &self.subnet, "metric", "9999"]);
    }
}

/// Podman's default network, on a bridge of its own.
fn network(bridge: &str, subnet: &str) -> String {
    format!(
        r#"{{"name": "podman", "id": "{:064}", "driver": "bridge", "created": "2026-01-01T00:00:00Z",
        "network_interface": "{bridge}", "subnets": [{{"subnet": "{subnet}"}}],
        "ipv6_enabled": false, "internal": false, "dns_enabled": false,
        "ipam_options": {{"driver": "host-local"}}}}"#,
        1
    )
}

fn ip(arguments: &[&str]) {
    Command::new("ip").args(arguments).output().expect("apt-get install iproute2");
}

fn podman(folder: &Path, run: &Path) -> Command {
    let mut podman = Command::new("podman");
    podman
        .env("CONTAINERS_CONF", folder.join("containers.conf"))
        .arg("--root")
        .arg(folder.join("root"))
        .arg("--runroot")
        .arg(run.join("run"));
    podman
}
