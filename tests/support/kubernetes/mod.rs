//! A real API server over a real etcd, and a kubelet that the test plays.
//!
//! `scripts/kube-apiserver` builds the server once. All that a cluster starts is started by one
//! thread that lives as long as the test's process, and dies with it.

pub(crate) mod controllers;
mod kubelet;

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use futures::future;
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::{mpsc, oneshot};

/// Longer than anything here may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A cluster.
#[derive(Debug)]
pub(crate) struct Cluster {
    folder: TempDir,
    etcd: u16,
    orders: mpsc::UnboundedSender<(Order, oneshot::Sender<()>)>,
}

/// What a cluster can be told.
#[derive(Debug)]
enum Order {
    /// The API server is killed.
    Kill,
    /// It starts again, over the same etcd.
    Start,
}

/// The cluster that all tests of a run share.
pub(crate) fn shared() -> &'static Cluster {
    static SHARED: OnceLock<Cluster> = OnceLock::new();
    SHARED.get_or_init(Cluster::up)
}

impl Cluster {
    /// One that no other test has.
    pub(crate) fn up() -> Self {
        let binary = server_binary();
        let folder = tempfile::tempdir().unwrap();
        let [etcd, peers, server] = ports();
        configure(folder.path(), server);
        let (up, is_up) = std::sync::mpsc::channel();
        let (orders, given) = mpsc::unbounded_channel();
        let keeper = Keeper { folder: folder.path().to_owned(), binary, etcd, peers, server };
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(keeper.run(up, given));
        });
        is_up.recv_timeout(PATIENCE * 2).expect("a cluster comes up");
        Self { folder, etcd, orders }
    }

    pub(crate) async fn kill_server(&self) {
        self.order(Order::Kill).await;
    }

    pub(crate) async fn start_server(&self) {
        self.order(Order::Start).await;
    }

    async fn order(&self, order: Order) {
        let (done, is_done) = oneshot::channel();
        self.orders.send((order, done)).unwrap();
        is_done.await.unwrap();
    }

    /// Deletes an object behind the API server's back, and forgets all history up to now.
    pub(crate) async fn lose(&self, key: &str) {
        let at = format!("http://127.0.0.1:{}", self.etcd).parse().unwrap();
        let etcd = Client::try_from(Config::new(at)).unwrap();
        let ask = async |path: &str, body: Value| {
            let ask = http::Request::post(path).body(serde_json::to_vec(&body).unwrap()).unwrap();
            etcd.request::<Value>(ask).await.unwrap()
        };
        let gone = ask("/v3/kv/deleterange", json!({"key": BASE64_STANDARD.encode(key)})).await;
        assert_eq!(gone["deleted"], "1", "{gone}");
        let revision = &gone["header"]["revision"];
        ask("/v3/kv/compaction", json!({"revision": revision, "physical": true})).await;
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("kubeconfig")
    }

    pub(crate) async fn client(&self, user: &str) -> Client {
        client(&self.kubeconfig(), user).await
    }
}

async fn client(kubeconfig: &Path, user: &str) -> Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let file = Kubeconfig::read_from(kubeconfig).unwrap();
    let options = KubeConfigOptions { context: Some(user.into()), ..Default::default() };
    Config::from_custom_kubeconfig(file, &options).await.unwrap().try_into().unwrap()
}

fn server_binary() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let ran = Command::new(root.join("scripts/kube-apiserver")).output().unwrap();
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "no kube-apiserver, so this test did not run: {said}");
    PathBuf::from(String::from_utf8(ran.stdout).unwrap().trim())
}

/// Free ones.
fn ports() -> [u16; 3] {
    let listeners = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}

/// Keys, users and a kubeconfig with a context for each user. `nobody` is known to no server.
fn configure(folder: &Path, server: u16) {
    let key = folder.join("accounts.key");
    let made = Command::new("openssl").args(["genrsa", "-out"]).arg(&key).arg("2048").output();
    assert!(made.expect("the openssl command: apt-get install openssl").status.success());
    let users = "admin-token,admin,1,\"system:masters\"\nedge-token,edge,2\nguest-token,guest,3\n";
    fs::write(folder.join("tokens.csv"), users).unwrap();
    let names = ["admin", "edge", "guest", "nobody"];
    let users: String = names
        .iter()
        .map(|name| format!("- {{name: {name}, user: {{token: {name}-token}}}}\n"))
        .collect();
    let contexts: String = names
        .iter()
        .map(|name| format!("- {{name: {name}, context: {{cluster: test, user: {name}}}}}\n"))
        .collect();
    let ca = folder.join("certs/apiserver.crt");
    let kubeconfig = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: edge\nclusters:\n- name: test\n  cluster: \
         {{server: \"https://127.0.0.1:{server}\", certificate-authority: {}}}\nusers:\n{users}\
         contexts:\n{contexts}",
        ca.display()
    );
    fs::write(folder.join("kubeconfig"), kubeconfig).unwrap();
}

/// Has the children.
struct Keeper {
    folder: PathBuf,
    binary: PathBuf,
    etcd: u16,
    peers: u16,
    server: u16,
}

impl Keeper {
    async fn run(
        self,
        up: std::sync::mpsc::Sender<()>,
        mut orders: mpsc::UnboundedReceiver<(Order, oneshot::Sender<()>)>,
    ) {
        let (mut etcd, mut server) = (self.start_etcd(), self.start_server());
        self.ready().await;
        let client = client(&self.folder.join("kubeconfig"), "admin").await;
        up.send(()).unwrap();
        let obeys = async {
            while let Some((order, done)) = orders.recv().await {
                match order {
                    Order::Kill => end(&mut server),
                    Order::Start => {
                        server = self.start_server();
                        self.ready().await;
                    }
                }
                // Who gave it may wait for it no longer.
                let _ = done.send(());
            }
        };
        let controllers = controllers::run(client.clone());
        // Until nobody has the cluster any longer.
        tokio::select! {
            () = obeys => {}
            ((), ()) = future::join(kubelet::run(client), controllers) => {}
        }
        end(&mut server);
        end(&mut etcd);
    }

    fn start_etcd(&self) -> Child {
        let (client, peers) =
            (format!("http://127.0.0.1:{}", self.etcd), format!("http://127.0.0.1:{}", self.peers));
        let mut etcd = mortal("etcd");
        etcd.arg("--data-dir").arg(self.folder.join("etcd"));
        etcd.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        etcd.args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers]);
        etcd.args(["--initial-cluster", &format!("default={peers}")]);
        self.spawn(etcd, "etcd.log")
    }

    fn start_server(&self) -> Child {
        let mut server = mortal(self.binary.to_str().unwrap());
        let key = self.folder.join("accounts.key").display().to_string();
        for (flag, value) in [
            ("etcd-servers", format!("http://127.0.0.1:{}", self.etcd)),
            ("bind-address", "127.0.0.1".to_owned()),
            ("secure-port", self.server.to_string()),
            ("cert-dir", self.folder.join("certs").display().to_string()),
            ("service-account-issuer", "https://test".to_owned()),
            ("service-account-key-file", key.clone()),
            ("service-account-signing-key-file", key),
            ("token-auth-file", self.folder.join("tokens.csv").display().to_string()),
            ("authorization-mode", "RBAC".to_owned()),
            ("disable-admission-plugins", "ServiceAccount".to_owned()),
            ("enable-priority-and-fairness", "false".to_owned()),
            // With Go 1.18 and newer its vendored reflect2 panics on every write otherwise.
            ("feature-gates", "ServerSideApply=false".to_owned()),
        ] {
            server.arg(format!("--{flag}={value}"));
        }
        self.spawn(server, "server.log")
    }

    fn spawn(&self, mut command: Command, log: &str) -> Child {
        let log = fs::File::options().create(true).append(true).open(self.folder.join(log));
        command.stderr(log.unwrap()).stdout(Stdio::null()).stdin(Stdio::null());
        command.spawn().expect("etcd and setpriv: apt-get install etcd-server util-linux")
    }

    async fn ready(&self) {
        let since = Instant::now();
        loop {
            // Its certificate is made at its first start.
            if self.folder.join("certs/apiserver.crt").exists() {
                let client = client(&self.folder.join("kubeconfig"), "admin").await;
                let ask = http::Request::get("/readyz").body(Vec::new()).unwrap();
                if client.request_text(ask).await.is_ok_and(|answer| answer == "ok") {
                    return;
                }
            }
            let log = || fs::read_to_string(self.folder.join("server.log")).unwrap_or_default();
            assert!(since.elapsed() < PATIENCE, "the API server is not ready: {}", log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

fn end(child: &mut Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

/// A command that the kernel ends with the thread that started it.
pub(crate) fn mortal(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", program]);
    command
}
