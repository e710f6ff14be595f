//! Sessions that are containers of a real Docker daemon, behind the real edge.
//!
//! A test that needs a daemon and gets none fails and says why. What a test says of a container is
//! what the daemon says, never what the edge believes.

mod named;
mod outage;
mod outside;
mod pool;
mod restart;
mod sleep;
mod wake;

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Output, Stdio},
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::UNIX_EPOCH,
};

use serde_json::Value;

use crate::{
    dockerd::{self, IMAGE, Rig},
    support::{DORMOUSE, Edge, Setup, client},
};

/// An edge whose engine `docker` is a real daemon, and what it made there.
struct Yard<'a> {
    /// Before `crew`: it ends before its containers do, and so cannot wonder about that.
    edge: Edge,
    crew: Crew<'a>,
}

/// What is ours on a daemon; gone with it.
struct Crew<'a> {
    rig: &'a Rig,
    owner: String,
}

impl Yard<'static> {
    /// An edge with one route, on the daemon that all tests share.
    fn new(route: &str) -> Self {
        Self::with(dockerd::shared(), "", &[("demo", route)])
    }
}

impl<'a> Yard<'a> {
    /// `more` is more of `dormouse.toml`.
    fn with(rig: &'a Rig, more: &str, routes: &[(&str, &str)]) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let crew = Crew { rig, owner: format!("p{}-{number}", std::process::id()) };
        let (endpoint, owner) = (rig.endpoint(), &crew.owner);
        let engines = format!(
            "[engines.local]\nkind = \"process\"\n\
             [engines.docker]\nkind = \"docker\"\nendpoint = \"{endpoint}\"\nowner = \"{owner}\"\n"
        );
        let setup = Setup::new().config(more).config(&engines);
        let setup = routes.iter().fold(setup, |setup, (name, toml)| setup.route(name, toml));
        let mut edge = setup.start();
        // On a machine that is busy elsewhere runc gives a freeze up; the edge asks again.
        edge.announce("unable to freeze");
        Self { edge, crew }
    }

    /// The name of a session's container.
    fn name(&self, host: &str) -> String {
        format!("dormouse-{}-{host}", self.crew.owner)
    }

    fn docker(&self, arguments: &[&str]) -> String {
        self.crew.rig.docker(arguments)
    }

    /// A field of `docker inspect`; `null` when there is no such container.
    fn field(&self, container: &str, path: &str) -> Value {
        self.crew.field(container, path)
    }

    /// What the daemon says that the container of `host` does; `none` when there is none.
    fn status(&self, host: &str) -> String {
        let status = self.field(&self.name(host), ".State.Status");
        status.as_str().unwrap_or("none").to_owned()
    }

    fn wait_status(&mut self, host: &str, status: &str) {
        let name = self.name(host);
        let crew = &self.crew;
        self.edge.wait_until(&format!("the container of {host} is {status}"), |_| {
            crew.field(&name, ".State.Status").as_str().unwrap_or("none") == status
        });
    }

    /// Which container it is.
    fn id(&self, host: &str) -> String {
        self.field(&self.name(host), ".Id").as_str().expect("it exists").to_owned()
    }

    fn generation(&self, host: &str) -> u64 {
        self.edge.session(host)["generation"].as_u64().expect("it is known")
    }

    /// Status and text of a GET.
    async fn get(&self, host: &str, path: &str) -> (u16, String) {
        let answer = client().get(self.edge.url(host, path)).send().await.expect("an answer");
        (answer.status().as_u16(), answer.text().await.expect("a body"))
    }

    /// The session that answers, in its own words; it must be the one that was asked.
    async fn whoami(&self, host: &str) -> Value {
        let (status, text) = self.get(host, "/whoami").await;
        assert_eq!(status, 200, "{text}");
        let who: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(who["session"], host);
        who
    }

    /// `dormouse ARGUMENTS` for this edge.
    fn cli(&self, arguments: &[&str]) -> Output {
        let config = self.edge.path("dormouse.toml");
        let mut cli = Command::new(DORMOUSE);
        cli.args(arguments).arg("--config").arg(config).output().expect("it runs")
    }

    /// Puts a session to sleep as an operator does, and waits until it sleeps.
    fn put_to_sleep(&mut self, host: &str, to: &str) {
        self.edge.wait_state(host, "idle");
        let ran = self.cli(&["sleep", host, "--to", to]);
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
        self.edge.wait_until(&format!("{host} is {to}"), |edge| {
            let session = edge.session(host);
            session["state"] == "asleep" && session["depth"] == to
        });
    }
}

impl Crew<'_> {
    fn field(&self, container: &str, path: &str) -> Value {
        let format = format!("{{{{json {path}}}}}");
        let said = self.rig.try_docker(&["inspect", "--format", &format, container]);
        serde_json::from_slice(&said.stdout).unwrap_or_default()
    }

    fn containers(&self) -> Vec<String> {
        let ours = format!("label=dormouse.owner={}", self.owner);
        let said = self.rig.try_docker(&["ps", "-aq", "--filter", &ours]).stdout;
        String::from_utf8_lossy(&said).split_whitespace().map(str::to_owned).collect()
    }
}

impl Drop for Crew<'_> {
    fn drop(&mut self) {
        for id in self.containers() {
            self.rig.try_docker(&["rm", "-fv", &id]);
        }
    }
}

/// A container, network or volume that a test made itself; removed when dropped.
struct Made<'a> {
    rig: &'a Rig,
    remove: Vec<String>,
}

impl<'a> Made<'a> {
    /// `docker CREATE`, and later `docker REMOVE`.
    fn by(rig: &'a Rig, create: &[&str], remove: &[&str]) -> Self {
        rig.docker(create);
        Self { rig, remove: remove.iter().map(|word| (*word).to_owned()).collect() }
    }
}

impl Drop for Made<'_> {
    fn drop(&mut self) {
        self.rig.try_docker(&self.remove.iter().map(String::as_str).collect::<Vec<_>>());
    }
}

/// What the daemon tells of our containers, from now on.
struct Events {
    child: Child,
    seen: Arc<Mutex<Vec<Seen>>>,
}

#[derive(Clone, Debug)]
struct Seen {
    nanos: u64,
    action: String,
    container: String,
}

impl Events {
    fn of(crew: &Crew<'_>) -> Self {
        let filter = format!("label=dormouse.owner={}", crew.owner);
        let format = "{{.TimeNano}} {{.Action}} {{index .Actor.Attributes \"name\"}}";
        let now = UNIX_EPOCH.elapsed().expect("after 1970").as_secs().to_string();
        let mut child = Command::new("docker")
            .args(["--host", &crew.rig.endpoint(), "events", "--since", &now])
            .args(["--filter", &filter, "--format", format])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the docker command: apt-get install docker.io");
        let (lines, seen) = (BufReader::new(child.stdout.take().expect("piped")), Arc::default());
        let to: Arc<Mutex<Vec<Seen>>> = Arc::clone(&seen);
        std::thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                let mut words = line.splitn(3, ' ').map(str::to_owned);
                let mut next = || words.next().expect("three words");
                let nanos = next().parse().expect("a number");
                let (action, container) = (next(), next());
                to.lock().expect("seen").push(Seen { nanos, action, container });
            }
        });
        Self { child, seen }
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().expect("seen").clone()
    }

    fn count(&self, action: &str) -> usize {
        self.seen().iter().filter(|seen| seen.action == action).count()
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The image of the demo session, made of the binary under test; on the shared daemon only.
fn demo_image() -> &'static str {
    static NAME: OnceLock<String> = OnceLock::new();
    NAME.get_or_init(|| {
        // The daemon may outlive a run: another binary is another image.
        let file = Path::new(DORMOUSE).metadata().expect("the binary");
        let built = file.modified().expect("a time").duration_since(UNIX_EPOCH);
        let name = format!("dormouse-test/demo:{}", built.expect("after 1970").as_nanos());
        dockerd::shared().image(&name, &["--with", DORMOUSE]);
        name
    })
}

/// A route whose sessions are containers of the demo session; each start writes its host into the
/// edge's folder, so that starts are counted by the instances themselves. `docker` is more of
/// `[instance.docker]`, `more` is more of the file.
fn demo(docker: &str, more: &str) -> String {
    let start = "echo {session}.test >> /witness/starts; exec dormouse demo-session \
                 --listen {address}";
    let image = demo_image();
    format!(
        "host = \"{{session}}.test\"\nengine = \"docker\"\n[instance]\nimage = \"{image}\"\n\
         command = [\"sh\", \"-c\", \"{start}\"]\nvolumes = [\"@DIR@:/witness\"]\n\
         [instance.docker]\ngrace = \"5s\"\n{docker}\n\
         [ready]\nprobe = \"http\"\npath = \"/healthz\"\n{more}"
    )
}

/// A route whose sessions are containers of the small image of every daemon: `GET /` says hello.
fn hello(more: &str) -> String {
    format!(
        "host = \"{{session}}.test\"\nengine = \"docker\"\n[instance]\nimage = \"{IMAGE}\"\n\
         [instance.docker]\ngrace = \"1s\"\n[ready]\nprobe = \"http\"\n{more}"
    )
}
