//! A real Docker daemon for tests: `scripts/dockerd-rig`, shared by all tests of a run or one's own.
//!
//! A test that needs a daemon and gets none fails and says why; none is ever skipped. The daemon
//! ends by itself, with everything in it, soon after the last test process that used it.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::OnceLock,
};

/// The image that sessions of tests run: busybox, serving `hello` on port 8080.
pub(crate) const IMAGE: &str = "dormouse-test/session";

/// A daemon in use.
#[derive(Debug)]
pub(crate) struct Rig {
    folder: PathBuf,
    /// While this process holds it, the daemon stays.
    _in_use: File,
    own: bool,
    /// More arguments for dockerd.
    more: String,
}

/// The daemon that all tests of a run share.
pub(crate) fn shared() -> &'static Rig {
    static SHARED: OnceLock<Rig> = OnceLock::new();
    SHARED.get_or_init(|| Rig::up("shared", false, ""))
}

/// A daemon for one test alone, which may stop and start it; gone when dropped. `more` arguments
/// are for dockerd.
pub(crate) fn own(name: &str, more: &str) -> Rig {
    Rig::up(&format!("{name}-{}", std::process::id()), true, more)
}

impl Rig {
    fn up(name: &str, own: bool, more: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/rig").join(name);
        std::fs::create_dir_all(folder.parent().unwrap()).unwrap();
        let in_use = File::create(folder.with_extension("lock")).unwrap();
        in_use.lock_shared().unwrap();
        let rig = Self { folder, _in_use: in_use, own, more: more.to_owned() };
        rig.start();
        if !rig.try_docker(&["image", "inspect", IMAGE]).status.success() {
            rig.image(IMAGE, &[]);
        }
        rig
    }

    /// For `engine::docker::Config::endpoint` and `DOCKER_HOST`.
    pub(crate) fn endpoint(&self) -> String {
        format!("unix://{}", self.folder.join("docker.sock").display())
    }

    /// Starts the daemon; nothing when it runs.
    pub(crate) fn start(&self) {
        self.rig("start");
    }

    /// Ends the daemon and the containers that run, and keeps its data.
    pub(crate) fn halt(&self) {
        self.rig("halt");
    }

    /// A verb of `scripts/dockerd-rig`.
    pub(crate) fn rig(&self, verb: &str) {
        let folder = self.folder.to_str().unwrap();
        let mut rig = script("dockerd-rig");
        let ran = rig.args([verb, folder]).env("DORMOUSE_RIG_ARGS", &self.more).output().unwrap();
        assert!(ran.status.success(), "no Docker daemon, so this test did not run: {}", err(&ran));
    }

    /// Makes an image from `scripts/session-image`.
    pub(crate) fn image(&self, name: &str, arguments: &[&str]) {
        let mut image = script("session-image");
        image.arg(name).args(arguments).env("DOCKER_HOST", self.endpoint());
        let ran = image.output().unwrap();
        assert!(ran.status.success(), "session-image: {}", err(&ran));
    }

    /// What `docker ARGUMENTS` prints; it must succeed.
    pub(crate) fn docker(&self, arguments: &[&str]) -> String {
        let ran = self.try_docker(arguments);
        assert!(ran.status.success(), "docker {arguments:?}: {}", err(&ran));
        String::from_utf8(ran.stdout).unwrap().trim().to_owned()
    }

    /// `docker ARGUMENTS`, whatever comes of it.
    pub(crate) fn try_docker(&self, arguments: &[&str]) -> Output {
        let mut docker = Command::new("docker");
        docker.arg("--host").arg(self.endpoint()).args(arguments);
        docker.output().expect("the docker command: apt-get install docker.io")
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if self.own {
            self.rig("stop");
            for lock in ["lock", "start.lock"] {
                let _ = std::fs::remove_file(self.folder.with_extension(lock));
            }
        }
    }
}

fn script(name: &str) -> Command {
    Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts").join(name))
}

fn err(ran: &Output) -> String {
    String::from_utf8_lossy(&ran.stderr).into_owned()
}
