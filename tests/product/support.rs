//! An edge under test: the binary, its folder, its log, its clients.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use serde_json::Value;
use tempfile::TempDir;

/// The binary under test.
pub(crate) const DORMOUSE: &str = env!("CARGO_BIN_EXE_dormouse");

/// Nothing in a test takes this long unless it is broken.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A running edge. Dropping it kills it and every instance it started, and checks its log.
pub(crate) struct Edge {
    pub(crate) dir: TempDir,
    pub(crate) http: SocketAddr,
    /// Listened on only where the setup says so.
    pub(crate) https: SocketAddr,
    pub(crate) admin: SocketAddr,
    child: Option<Child>,
    log: Arc<Mutex<Vec<String>>>,
    /// Each reads the log of one process to its end.
    readers: Mutex<Vec<JoinHandle<()>>>,
    announced: Vec<String>,
}

/// What an edge is started with.
pub(crate) struct Setup {
    toml: String,
    http: Option<String>,
    ports: Option<(SocketAddr, SocketAddr)>,
    listen: String,
    files: Vec<(String, String)>,
    routes: Vec<(String, String)>,
}

impl Setup {
    pub(crate) fn new() -> Self {
        Self {
            toml: String::new(),
            http: None,
            ports: None,
            listen: String::new(),
            files: Vec::new(),
            routes: Vec::new(),
        }
    }

    /// More of `dormouse.toml`, in which `@DIR@` is its folder; `[listen]` is the harness's, and so
    /// are `[engines]` and `[limits]` if it has none.
    pub(crate) fn config(mut self, toml: &str) -> Self {
        self.toml.push_str(toml);
        self
    }

    /// [`Edge::http`] and [`Edge::https`], for who must know them before.
    pub(crate) fn ports(mut self, http: SocketAddr, https: SocketAddr) -> Self {
        self.ports = Some((http, https));
        self
    }

    /// `listen.http`, in which `@HTTP@` is [`Edge::http`].
    pub(crate) fn http(mut self, http: &str) -> Self {
        self.http = Some(http.to_owned());
        self
    }

    /// More of `[listen]`, in which `@HTTPS@` is [`Edge::https`].
    pub(crate) fn listen(mut self, toml: &str) -> Self {
        self.listen.push_str(toml);
        self
    }

    /// A file that only its owner can read.
    pub(crate) fn file(mut self, path: &str, text: &str) -> Self {
        self.files.push((path.to_owned(), text.to_owned()));
        self
    }

    /// `routes/NAME.toml`.
    pub(crate) fn route(mut self, name: &str, toml: &str) -> Self {
        self.routes.push((name.to_owned(), toml.to_owned()));
        self
    }

    pub(crate) fn start(self) -> Edge {
        let dir = tempfile::tempdir().expect("a folder");
        let (http, https) = self.ports.unwrap_or_else(|| (free_port(), free_port()));
        let admin = free_port();
        let plain = self.http.unwrap_or("[\"@HTTP@\"]".to_owned());
        let listen = format!("[listen]\nhttp = {plain}\nadmin = \"{admin}\"\n{}\n", self.listen)
            .replace("@HTTPS@", &https.to_string())
            .replace("@HTTP@", &http.to_string());
        // The default has a Docker engine, too, whose daemon is not there in most tests.
        let has_engines = self.toml.contains("[engines");
        let engines = if has_engines { "" } else { "[engines.local]\nkind = \"process\"\n" };
        let toml = self.toml.replace("@DIR@", &dir.path().to_string_lossy());
        // Some tests wake sessions hundreds of times, all from one address.
        let has_limits = toml.contains("[limits]");
        let limits = if has_limits { "" } else { "[limits]\nwakes_per_client = \"unlimited\"\n" };
        let toml = format!("{listen}{engines}{limits}{toml}");
        fs::write(dir.path().join("dormouse.toml"), toml).expect("dormouse.toml");
        fs::create_dir(dir.path().join("routes")).expect("routes");
        let (log, readers, announced) = (Arc::default(), Mutex::default(), Vec::new());
        let mut edge = Edge { dir, http, https, admin, child: None, log, readers, announced };
        for (name, toml) in &self.routes {
            edge.write_route(name, toml);
        }
        for (path, text) in &self.files {
            edge.write_file(path, text);
        }
        edge.spawn(&[]);
        edge
    }
}

impl Edge {
    /// Starts the binary on this edge's folder and waits until it serves.
    pub(crate) fn spawn(&mut self, arguments: &[&str]) {
        self.child = Some(self.launch(arguments));
        self.wait_until("the edge serves", |edge| {
            edge.assert_lives();
            edge.admin_status("/readyz") == Some(200)
        });
    }

    /// Starts another process of the binary on this edge's folder.
    pub(crate) fn launch(&self, arguments: &[&str]) -> Child {
        let mut child = Command::new(DORMOUSE)
            .arg("run")
            .arg("--config")
            .arg(self.dir.path().join("dormouse.toml"))
            .args(arguments)
            .env(
                "RUST_LOG",
                "info,dormouse=debug,pingora_proxy=off,pingora_core=error,pingora_core::apps=off,\
                 pingora_core::connectors=off,pingora_pool=error,qapi=error",
            )
            .env("NO_COLOR", "1")
            .envs(self.trusted().map(|file| ("SSL_CERT_FILE", file)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let (stderr, log) = (child.stderr.take().expect("piped"), Arc::clone(&self.log));
        let reader = std::thread::spawn(move || {
            use std::io::BufRead;
            for line in std::io::BufReader::new(stderr).lines().map_while(Result::ok) {
                log.lock().expect("log").push(line);
            }
        });
        self.readers.lock().expect("readers").push(reader);
        child
    }

    /// Whom the edge is to take for trusted by the system: `trusted.pem`, if it is there.
    fn trusted(&self) -> Option<PathBuf> {
        Some(self.path("trusted.pem")).filter(|file| file.exists())
    }

    /// Makes the process that was launched the one under test; returns the one before.
    pub(crate) fn replace(&mut self, child: Child) -> Child {
        self.child.replace(child).expect("it runs")
    }

    /// Makes the process that was launched the one under test; there was none.
    pub(crate) fn put(&mut self, child: Child) {
        assert!(self.child.replace(child).is_none(), "one runs already");
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn write_route(&self, name: &str, toml: &str) {
        let routes = self.path("routes");
        let temporary = routes.join(format!(".{name}.tmp"));
        let dir = self.dir.path().to_string_lossy();
        fs::write(&temporary, toml.replace("@DIR@", &dir)).expect("route");
        fs::rename(temporary, routes.join(format!("{name}.toml"))).expect("route");
    }

    /// Writes a file whole or not at all, for its owner alone.
    pub(crate) fn write_file(&self, path: &str, text: &str) {
        use std::os::unix::fs::PermissionsExt as _;
        let file = self.path(path);
        let temporary = file.with_extension("tmp");
        fs::create_dir_all(file.parent().expect("a folder")).expect("a folder");
        fs::write(&temporary, text).expect("written");
        fs::set_permissions(&temporary, fs::Permissions::from_mode(0o600)).expect("private");
        fs::rename(temporary, file).expect("written");
    }

    pub(crate) fn remove_route(&self, name: &str) {
        fs::remove_file(self.path("routes").join(format!("{name}.toml"))).expect("route");
    }

    /// A WARN or ERROR whose line contains this is expected.
    pub(crate) fn announce(&mut self, part: &str) -> &mut Self {
        self.announced.push(part.to_owned());
        self
    }

    pub(crate) fn url(&self, host: &str, path: &str) -> String {
        format!("http://{host}:{}{path}", self.http.port())
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        signal_pid(self.pid(), signal);
    }

    /// kill -9 and reap.
    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().expect("kill");
        child.wait().expect("wait");
    }

    /// Waits for the process to end by itself; its log is complete then.
    pub(crate) fn wait_exit(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("it runs");
        let status = wait_exit(&mut child);
        self.read_log_to_its_end();
        status
    }

    /// Once every process of this edge has ended: what they said last may still be in a pipe.
    fn read_log_to_its_end(&self) {
        for reader in self.readers.lock().expect("readers").drain(..) {
            reader.join().expect("it does not panic");
        }
    }

    pub(crate) fn assert_lives(&mut self) {
        let child = self.child.as_mut().expect("it runs");
        if let Some(status) = child.try_wait().expect("wait") {
            panic!("the edge has ended ({status}):\n{}", self.log().join("\n"));
        }
    }

    pub(crate) fn log(&self) -> Vec<String> {
        self.log.lock().expect("log").clone()
    }

    pub(crate) fn log_count(&self, parts: &[&str]) -> usize {
        self.log().iter().filter(|line| parts.iter().all(|part| line.contains(part))).count()
    }

    /// Asks again until it is so.
    pub(crate) fn wait_until(&mut self, what: &str, mut so: impl FnMut(&mut Self) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !so(self) {
            let log = || self.log().join("\n");
            assert!(Instant::now() < end, "waited in vain until {what}; the log:\n{}", log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Resident memory in bytes.
    pub(crate) fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("status");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("VmRSS");
        let kib: u64 = line.split_whitespace().nth(1).expect("a number").parse().expect("a number");
        kib * 1024
    }

    pub(crate) fn admin_status(&self, path: &str) -> Option<u16> {
        Some(blocking(reqwest::get(format!("http://{}{path}", self.admin))).ok()?.status().as_u16())
    }

    pub(crate) fn admin_get(&self, path: &str) -> Value {
        let url = format!("http://{}{path}", self.admin);
        blocking(async { reqwest::get(url).await?.json().await }).expect("the admin API answers")
    }

    pub(crate) fn admin_post(&self, path: &str) -> (u16, Value) {
        let url = format!("http://{}{path}", self.admin);
        blocking(async {
            let answer = reqwest::Client::new().post(url).send().await?;
            Ok::<_, reqwest::Error>((answer.status().as_u16(), answer.json().await?))
        })
        .expect("the admin API answers")
    }

    /// One session as the admin API shows it; `null` when there is none.
    pub(crate) fn session(&self, host: &str) -> Value {
        self.admin_get(&format!("/v1/sessions/{host}"))
    }

    pub(crate) fn state(&self, host: &str) -> String {
        self.session(host)["state"].as_str().unwrap_or("none").to_owned()
    }

    pub(crate) fn wait_state(&mut self, host: &str, state: &str) {
        self.wait_until(&format!("{host} is {state}"), |edge| edge.state(host) == state);
    }

    /// A metric's value, summed over the lines that contain all the parts.
    pub(crate) fn metric(&self, parts: &[&str]) -> f64 {
        let url = format!("http://{}/metrics", self.admin);
        let text = blocking(async { reqwest::get(url).await?.text().await }).expect("metrics");
        text.lines()
            .filter(|line| !line.starts_with('#') && parts.iter().all(|part| line.contains(part)))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    /// How many instances of `host` were ever started, told by the instances themselves: routes
    /// made by [`witnessed`] write a line each.
    pub(crate) fn starts(&self, host: &str) -> usize {
        let witness = fs::read_to_string(self.path("starts")).unwrap_or_default();
        witness.lines().filter(|line| *line == host).count()
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        end_instances(self.dir.path());
        if std::thread::panicking() {
            eprintln!("the edge's log:\n{}", self.log().join("\n"));
            return;
        }
        self.read_log_to_its_end();
        let loud: Vec<_> = self
            .log()
            .into_iter()
            .filter(|line| line.contains(" WARN ") || line.contains(" ERROR "))
            .filter(|line| !self.announced.iter().any(|part| line.contains(part)))
            .collect();
        assert!(loud.is_empty(), "not announced:\n{}", loud.join("\n"));
    }
}

/// Kills every process that has this folder in its marks: what the edge left up on purpose.
pub(crate) fn end_instances(dir: &Path) {
    let dir = dir.to_string_lossy().into_owned();
    for process in procfs::process::all_processes().expect("/proc").flatten() {
        let marked = process.environ().is_ok_and(|environ| {
            environ.get(std::ffi::OsStr::new("TEST_DIR")).is_some_and(|mark| *mark == *dir)
        });
        if marked {
            signal_pid(process.pid.cast_unsigned(), rustix::process::Signal::KILL);
        }
    }
}

pub(crate) fn signal_pid(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).expect("a pid");
    // Gone already is what was wanted.
    let _ = rustix::process::kill_process(pid, signal);
}

pub(crate) fn wait_exit(child: &mut Child) -> ExitStatus {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().expect("wait") {
            return status;
        }
        assert!(Instant::now() < end, "it does not end");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A route of the process engine whose instances write a line to `starts` when they start.
/// `arguments` are the demo session's, `more` is more of the route file.
pub(crate) fn witnessed(arguments: &str, more: &str) -> String {
    let script = format!(
        "echo $DORMOUSE_SESSION >> starts; exec {DORMOUSE} demo-session --listen {{address}} {arguments}"
    );
    format!(
        "host = \"{{session}}.test\"\nengine = \"local\"\n[instance]\n\
         command = [\"/bin/sh\", \"-c\", {script:?}]\nenv = {{ TEST_DIR = \"@DIR@\" }}\n\
         [ready]\nprobe = \"http\"\npath = \"/healthz\"\n{more}"
    )
}

/// A port that was free a moment ago, below those that instances are given.
pub(crate) fn free_port() -> SocketAddr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let drawn =
            std::process::id().wrapping_mul(97).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = u16::try_from(10_000 + drawn % 10_000).expect("below 20,000");
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}

/// Every name is this machine.
struct Loopback;

impl Resolve for Loopback {
    fn resolve(&self, _: Name) -> Resolving {
        Box::pin(async {
            let loopback: Addrs = Box::new(std::iter::once((Ipv4Addr::LOCALHOST, 0).into()));
            Ok(loopback)
        })
    }
}

/// A client for which every host is the edge.
pub(crate) fn client() -> reqwest::Client {
    client_builder().build().expect("a client")
}

pub(crate) fn client_builder() -> reqwest::ClientBuilder {
    reqwest::Client::builder().dns_resolver(Arc::new(Loopback)).no_proxy().timeout(PATIENCE)
}

/// Runs a future on a runtime of its own, from wherever.
pub(crate) fn blocking<T: Send>(future: impl Future<Output = T> + Send) -> T {
    std::thread::scope(|scope| {
        let run = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(future)
        };
        scope.spawn(run).join().expect("it does not panic")
    })
}
