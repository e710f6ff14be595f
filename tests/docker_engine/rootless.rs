//! The same engine against a Podman that nobody runs as root: what is published can be reached, and
//! what it cannot do is said.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use dormouse::{
    engine::{Engine as _, Error, InstanceState},
    session::{Depth, DockerSpec, Spec},
};

use crate::{
    bench::{G1, G2, PATIENCE, engine, get, session, spec},
    dockerd::IMAGE,
};

/// A user of nobody's, known within a mount namespace alone; there, too, /dev/net/tun is open to all,
/// as it is on a machine with a systemd. All of it ends with the PID namespace.
const SERVICE: &str = r#"
set -eu
folder=$1 user=64321
mkdir -p "$folder/home/.config/containers" "$folder/run" "$folder/dev"
mount -t tmpfs tmpfs "$folder/dev"
mknod -m 666 "$folder/dev/tun" c 10 200
mount --bind "$folder/dev/tun" /dev/net/tun
for file in passwd group; do cp "/etc/$file" "$folder/$file"; done
echo "rootless:x:$user:$user::$folder/home:/bin/sh" >>"$folder/passwd"
echo "rootless:x:$user:" >>"$folder/group"
for file in subuid subgid; do echo "rootless:200000:65536" >"$folder/$file"; done
for file in passwd group subuid subgid; do mount --bind "$folder/$file" "/etc/$file"; done
cat >"$folder/home/.config/containers/containers.conf" <<CONF
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
CONF
printf '[storage]\ndriver = "vfs"\n' >"$folder/home/.config/containers/storage.conf"
chown -R "$user:$user" "$folder/home" "$folder/run"
chmod 711 "$folder"
cd "$folder/home"
exec setpriv --reuid "$user" --regid "$user" --clear-groups env -i PATH="$PATH" \
  HOME="$folder/home" XDG_RUNTIME_DIR="$folder/run" \
  podman system service --time 0 "unix://$folder/run/podman.sock"
"#;

struct Rootless {
    folder: PathBuf,
    service: Child,
}

impl Rootless {
    fn up() -> Self {
        // Short, and on the way of nobody who may not pass.
        let folder = PathBuf::from(format!("/tmp/dmrl-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let service = Command::new("unshare")
            .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c"])
            .args([SERVICE, "rootless"])
            .arg(&folder)
            .stdout(Stdio::null())
            .stderr(fs::File::create(folder.join("log")).unwrap())
            .spawn()
            .expect("unshare");
        let rootless = Self { folder, service };
        let deadline = Instant::now() + PATIENCE;
        let answers = || {
            let mut docker = Command::new("docker");
            docker
                .args(["--host", &rootless.endpoint(), "version"])
                .output()
                .unwrap()
                .status
                .success()
        };
        while !answers() {
            assert!(Instant::now() < deadline, "no rootless Podman: {}", rootless.log());
            std::thread::sleep(Duration::from_millis(50));
        }
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/session-image");
        let image =
            Command::new(script).arg(IMAGE).env("DOCKER_HOST", rootless.endpoint()).output();
        assert!(image.unwrap().status.success(), "no image: {}", rootless.log());
        rootless
    }

    fn endpoint(&self) -> String {
        format!("unix://{}/run/podman.sock", self.folder.display())
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }
}

impl Drop for Rootless {
    fn drop(&mut self) {
        // All others of its namespace end with the first one. That does not end with its parent: who
        // changes its user loses that wish.
        let parent = i32::try_from(self.service.id()).unwrap();
        for process in procfs::process::all_processes().unwrap().flatten() {
            if process.stat().is_ok_and(|stat| stat.ppid == parent) {
                let _ = Command::new("kill").args(["-KILL", &process.pid.to_string()]).status();
            }
        }
        let _ = self.service.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

#[tokio::test]
async fn what_is_published_runs_without_root_and_what_cannot_be_is_said() {
    let podman = Rootless::up();
    let engine = Arc::new(engine(podman.endpoint(), "rootless"));
    let alice = session("alice.test");
    let docker = DockerSpec {
        publish: Some("true".to_owned()),
        network: Some("slirp4netns".to_owned()),
        ..spec().docker
    };
    let spec = Spec { docker, ..spec() };
    let first = engine.start(&alice, &spec, G1).await.unwrap();
    assert!(get(&first.address).contains("hello"), "{}", podman.log());
    assert_eq!(engine.start(&alice, &spec, G1).await.unwrap(), first);

    // Without a cgroup of its own nothing can be frozen.
    let error = engine.sleep(&alice, &spec, Some(&first.life), Depth::Paused).await.unwrap_err();
    assert!(matches!(&error, Error::Failed(text) if text.contains("cgroup")), "{error:?}");
    engine.sleep(&alice, &spec, Some(&first.life), Depth::Stopped).await.unwrap();
    let state = engine.inspect(&alice, &spec).await.unwrap().unwrap().state;
    assert_eq!(state, InstanceState::Asleep(Depth::Stopped));
    let second = engine.start(&alice, &spec, G2).await.unwrap();
    assert_ne!(second.life, first.life);
    assert!(get(&second.address).contains("hello"));
    engine.sleep(&alice, &spec, Some(&second.life), Depth::Removed).await.unwrap();
    assert_eq!(engine.list().await.unwrap(), []);
}
