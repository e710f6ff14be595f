//! prism (npm `@stoplight/prism-cli`), which holds requests and answers against an official file.

use std::{
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// `scripts/test` puts it there.
const PRISM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/prism/node_modules/.bin/prism");

/// A running prism; ended with it.
pub(crate) struct Prism {
    child: Child,
    /// Its address, as a URL.
    pub(crate) base: String,
}

impl Prism {
    /// `prism ARGUMENTS --errors`, once it listens.
    pub(crate) async fn up(arguments: &[&str]) -> Self {
        assert!(Path::new(PRISM).exists(), "no prism: run scripts/test once, it installs it");
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let child = Command::new(PRISM)
            .args(arguments)
            .args(["--errors", "--port", &port.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let prism = Self { child, base: format!("http://127.0.0.1:{port}") };
        let since = Instant::now();
        while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            assert!(since.elapsed() < Duration::from_secs(60), "prism does not begin");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        prism
    }
}

impl Drop for Prism {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
