//! A real ACME server (pebble) and the DNS that it asks (pebble-challtestsrv).

use std::{
    fs,
    io::{BufRead, BufReader},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::support::{PATIENCE, free_port};

/// Names of this machine, for pebble: every host is 127.0.0.1.
pub(super) struct Dns {
    child: Child,
    pub(super) address: SocketAddr,
    pub(super) management: SocketAddr,
}

impl Dns {
    pub(super) fn start() -> Self {
        let (address, management) = (free_port(), free_port());
        let child = Command::new("pebble-challtestsrv")
            .args(["-defaultIPv6", "", "-http01", "", "-https01", "", "-tlsalpn01", ""])
            .args(["-dns01", &address.to_string(), "-management", &management.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("Debian's package pebble is installed");
        let dns = Self { child, address, management };
        wait_for(dns.management);
        dns
    }

    /// A `dns_hook` that sets records here.
    pub(super) fn hook(&self) -> String {
        let data = r#"{"host":"{name}.","value":"{value}"}"#;
        let url = format!("http://{}/{{action}}-txt", self.management);
        format!("dns_hook = ['curl', '-sf', '-d', '{data}', '{url}']\n")
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How pebble is started.
pub(super) struct Setup {
    /// Where it looks for http-01 and for tls-alpn-01.
    pub(super) http: u16,
    pub(super) tls: u16,
    pub(super) validity: Duration,
    /// Of a hundred good nonces.
    pub(super) nonces_rejected: u32,
    pub(super) dns: SocketAddr,
}

/// A running pebble. Its memory is its only store.
pub(super) struct Pebble {
    folder: TempDir,
    address: SocketAddr,
    management: SocketAddr,
    dns: SocketAddr,
    nonces_rejected: u32,
    child: Option<Child>,
    log: Arc<Mutex<Vec<String>>>,
}

impl Pebble {
    pub(super) fn start(setup: &Setup) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let (address, management) = (free_port(), free_port());
        let key = rcgen::KeyPair::generate().expect("a key");
        let params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("a name");
        let certificate = params.self_signed(&key).expect("a certificate");
        let file = |name: &str| folder.path().join(name);
        fs::write(file("server.pem"), certificate.pem()).expect("written");
        fs::write(file("server.key"), key.serialize_pem()).expect("written");
        let config = serde_json::json!({ "pebble": {
            "listenAddress": address.to_string(),
            "managementListenAddress": management.to_string(),
            "certificate": file("server.pem"),
            "privateKey": file("server.key"),
            "httpPort": setup.http,
            "tlsPort": setup.tls,
            "ocspResponderURL": "",
            "externalAccountBindingRequired": false,
            "certificateValidityPeriod": setup.validity.as_secs(),
        }});
        fs::write(file("pebble.json"), config.to_string()).expect("written");
        let (dns, nonces_rejected) = (setup.dns, setup.nonces_rejected);
        let log = Arc::default();
        let mut pebble =
            Self { folder, address, management, dns, nonces_rejected, child: None, log };
        pebble.run();
        pebble
    }

    /// Starts the process; it knows nothing of the one before.
    pub(super) fn run(&mut self) {
        let mut child = Command::new("pebble")
            .arg("-config")
            .arg(self.folder.path().join("pebble.json"))
            .args(["-strict", "-dnsserver", &self.dns.to_string()])
            .env("PEBBLE_VA_NOSLEEP", "1")
            .env("PEBBLE_AUTHZREUSE", "0")
            .env("PEBBLE_WFE_NONCEREJECT", self.nonces_rejected.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("Debian's package pebble is installed");
        let (stdout, log) = (child.stdout.take().expect("piped"), Arc::clone(&self.log));
        // Ends with the process.
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                log.lock().expect("log").push(line);
            }
        });
        self.child = Some(child);
        wait_for(self.address);
    }

    /// Its own authority, PEM.
    pub(super) fn root(&self) -> String {
        let output = Command::new("curl")
            .arg("-sf")
            .arg("--cacert")
            .arg(self.folder.path().join("server.pem"))
            .arg(format!("https://{}/roots/0", self.management))
            .output()
            .expect("curl runs");
        String::from_utf8(output.stdout).expect("PEM")
    }

    pub(super) fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// `[acme]` for this server, without the names.
    pub(super) fn toml(&self) -> String {
        let ca: PathBuf = self.folder.path().join("server.pem");
        format!(
            "[acme]\ndirectory = 'https://{}/dir'\ncontact = ['ops@example.com']\n\
             ca_file = '{}'\ndns_wait = '0s'\n",
            self.address,
            ca.display()
        )
    }

    /// How many orders it was asked for, by all processes so far.
    pub(super) fn orders(&self) -> usize {
        let log = self.log.lock().expect("log");
        log.iter().filter(|line| line.contains("Added order ")).count()
    }

    pub(super) fn log(&self) -> String {
        self.log.lock().expect("log").join("\n")
    }
}

impl Drop for Pebble {
    fn drop(&mut self) {
        self.stop();
        if std::thread::panicking() {
            eprintln!("pebble's log:\n{}", self.log());
        }
    }
}

pub(super) fn wait_for(address: SocketAddr) {
    let end = Instant::now() + PATIENCE;
    while TcpStream::connect(address).is_err() {
        assert!(Instant::now() < end, "nothing listens at {address}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
