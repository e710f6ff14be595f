//! One test's machines: of a program that stands for Firecracker, as no KVM is to be had here.

use std::{
    fs,
    os::unix::fs::chown,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use dormouse::{
    engine::{
        Engine as _, EngineEvent, InstanceState, Started,
        firecracker::{Config, Firecracker, Jail},
    },
    session::{Address, Depth, FirecrackerSpec, Generation, SessionId, Spec},
};
use futures::{StreamExt as _, stream::BoxStream};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
};

pub(crate) const G1: Generation = Generation(1);
pub(crate) const G2: Generation = Generation(2);
const HERE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/firecracker_engine");
const PATIENCE: Duration = Duration::from_secs(60);

/// A state folder, with a kernel and an image beside it.
pub(crate) struct Bed {
    folder: TempDir,
    pub(crate) jail: bool,
    /// What formats a layer.
    pub(crate) mkfs: PathBuf,
    pub(crate) call_timeout: Duration,
    pub(crate) clock_realtime: bool,
}

impl Bed {
    pub(crate) fn new() -> Self {
        // Short: sockets are in there.
        let folder = tempfile::Builder::new().prefix("fc").tempdir_in("/tmp").unwrap();
        fs::write(folder.path().join("vmlinux"), "a kernel").unwrap();
        fs::write(folder.path().join("base.img"), "0").unwrap();
        Self {
            folder,
            jail: false,
            mkfs: "mkfs.ext4".into(),
            call_timeout: Duration::from_secs(20),
            clock_realtime: false,
        }
    }

    pub(crate) fn jailed() -> Self {
        let mut bed = Self::new();
        bed.jail = true;
        bed
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn engine(&self) -> Firecracker {
        self.engine_of(&format!("{HERE}/firecracker.js"))
    }

    pub(crate) fn engine_of(&self, program: &str) -> Firecracker {
        let jail = Jail { program: format!("{HERE}/jailer.sh").into(), uid: 4000, gid: 4000 };
        Firecracker::new(Config {
            program: program.into(),
            jail: self.jail.then_some(jail),
            mkfs: self.mkfs.clone(),
            clock_realtime: self.clock_realtime,
            state: self.path("s"),
            base: self.folder.path().to_owned(),
            call_timeout: self.call_timeout,
        })
        .unwrap()
    }

    /// Of the one machine that there is: a file of ours.
    pub(crate) fn ours(&self, name: &str) -> PathBuf {
        let mut folders = fs::read_dir(self.path("s/fc")).unwrap();
        folders.next().expect("a machine").unwrap().path().join(name)
    }

    /// A file where its process works.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        let folder = self.ours("");
        if !self.jail {
            return folder.join(name);
        }
        let id = folder.file_name().unwrap().to_owned();
        folder.join("firecracker.js").join(id).join("root").join(name)
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.file(name).exists()
    }

    pub(crate) fn signal(&self, signal: &str) {
        let pid = fs::read_to_string(self.ours("pid")).unwrap();
        let kill = Command::new("kill").arg(format!("-{signal}")).arg(pid.trim()).status();
        assert!(kill.unwrap().success());
    }

    /// What the one machine's API was asked: path and body.
    pub(crate) fn asked(&self) -> Vec<(String, serde_json::Value)> {
        let lines = fs::read_to_string(self.file("requests")).unwrap();
        let read = |line: &str| -> (String, serde_json::Value) {
            let mut both: Vec<serde_json::Value> = serde_json::from_str(line).unwrap();
            let body = if both.len() == 2 { both.remove(1) } else { serde_json::Value::Null };
            (both[0].as_str().unwrap().to_owned(), body)
        };
        lines.lines().map(read).collect()
    }

    pub(crate) async fn is_off(&self, engine: &Firecracker) {
        let listed = engine.list().await.unwrap();
        let states: Vec<_> = listed.iter().map(|one| (one.state, one.life.is_none())).collect();
        assert_eq!(states, [(InstanceState::Asleep(Depth::Stopped), true)]);
    }
}

impl Drop for Bed {
    /// A test that failed leaves machines running.
    fn drop(&mut self) {
        for folder in fs::read_dir(self.path("s/fc")).into_iter().flatten().flatten() {
            let Ok(pid) = fs::read_to_string(folder.path().join("pid")) else { continue };
            let command = fs::read_to_string(format!("/proc/{}/cmdline", pid.trim()));
            if command.is_ok_and(|command| command.contains("firecracker.js")) {
                let _ = Command::new("kill").arg("-KILL").arg(pid.trim()).status();
            }
        }
    }
}

pub(crate) fn alice() -> SessionId {
    SessionId::new("alice.test")
}

pub(crate) fn spec() -> Spec {
    let firecracker = FirecrackerSpec {
        kernel: Some("vmlinux".into()),
        grace: Duration::from_secs(5),
        ..FirecrackerSpec::default()
    };
    Spec { memory: Some(8 << 20), firecracker, ..Spec::default() }
}

pub(crate) fn with_disk() -> Spec {
    let firecracker = FirecrackerSpec { disk: Some("base.img".into()), ..spec().firecracker };
    Spec { firecracker, ..spec() }
}

/// With a root that all sessions read and a layer of its own.
pub(crate) fn with_layer() -> Spec {
    let firecracker = FirecrackerSpec { layer: Some(4 << 20), ..with_disk().firecracker };
    Spec { firecracker, ..spec() }
}

/// Whose guest does what its command line says.
pub(crate) fn told(append: &str) -> Spec {
    let firecracker =
        FirecrackerSpec { append: Some(append.to_owned()), ..with_disk().firecracker };
    Spec { firecracker, ..spec() }
}

/// Whose guest ends by no request.
pub(crate) fn stubborn() -> Spec {
    let grace = Duration::from_millis(50);
    Spec { firecracker: FirecrackerSpec { grace, ..told("stubborn").firecracker }, ..spec() }
}

/// What the guest answers, once it does.
pub(crate) async fn get(started: &Started, page: &str) -> String {
    let Address::Unix(path) = &started.address else { panic!("no relay: {started:?}") };
    let deadline = Instant::now() + PATIENCE;
    loop {
        match ask(Path::new(&**path), page).await {
            Ok(answer) => return answer,
            Err(error) => assert!(Instant::now() < deadline, "no answer: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Its answer to one request.
pub(crate) async fn ask(path: &Path, page: &str) -> std::io::Result<String> {
    let mut guest = UnixStream::connect(path).await?;
    let request = format!("GET /{page} HTTP/1.1\r\nhost: guest\r\nconnection: close\r\n\r\n");
    guest.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    guest.read_to_string(&mut answer).await?;
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
    let body = body.filter(|_| answer.starts_with("HTTP/1.1 200"));
    body.ok_or_else(|| std::io::Error::other(answer))
}

/// An event that must come.
pub(crate) async fn next(events: &mut BoxStream<'static, EngineEvent>) -> EngineEvent {
    let event = tokio::time::timeout(PATIENCE, events.next()).await;
    event.expect("nobody was told").expect("events have no end")
}

/// Makes a golden folder of a machine that is suspended.
pub(crate) fn gild(bed: &Bed, folder: &Path) {
    fs::create_dir(folder).unwrap();
    let parts = ["memory", "state", "disk", "layer"];
    for name in parts.into_iter().filter(|name| bed.has(name)) {
        fs::copy(bed.file(name), folder.join(name)).unwrap();
        chown(folder.join(name), Some(0), Some(0)).unwrap();
    }
}
