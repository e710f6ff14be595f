//! HTTPS: certificates by name, what the handshake refuses, and all that HTTP does, over TLS.

#![expect(clippy::disallowed_methods, reason = "a connection ends with its test")]

use std::{fs, io, sync::Arc};

use futures::{SinkExt as _, StreamExt as _};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::{
    ClientConfig, HandshakeKind, ProtocolVersion, RootCertStore, SupportedProtocolVersion,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
    version::{TLS12, TLS13},
};
use tokio::{io::AsyncReadExt as _, net::TcpStream};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_tungstenite::tungstenite::Message;

use crate::{
    hold::{gated, open_gate, wait_held},
    support::{Edge, Setup, witnessed},
    wire::Wire,
};

/// Clients take no star right under a top level.
pub(crate) const NAMES: &[&str] = &["alice.test", "bob.test"];
pub(crate) const HTTPS: &str = "https = [\"@HTTPS@\"]";

/// An authority that its own clients trust.
pub(crate) struct Authority {
    params: CertificateParams,
    key: KeyPair,
}

/// A certificate's PEM, and its key's.
pub(crate) struct Minted {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self { params, key: KeyPair::generate().expect("a key") }
    }

    pub(crate) fn pem(&self) -> String {
        self.params.self_signed(&self.key).expect("a certificate").pem()
    }

    pub(crate) fn mint(&self, names: &[&str]) -> Minted {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let params = CertificateParams::new(names).expect("names");
        let key = KeyPair::generate().expect("a key");
        let issuer = Issuer::from_params(&self.params, &self.key);
        let certificate = params.signed_by(&key, &issuer).expect("a certificate").pem();
        Minted { certificate, key: key.serialize_pem() }
    }

    pub(crate) fn client(&self) -> Tls {
        Tls::trusting(&self.pem())
    }
}

impl Minted {
    pub(crate) fn der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(self.certificate.as_bytes()).expect("PEM")
    }

    /// `certs/NAME.pem` and `certs/NAME.key`.
    pub(crate) fn set_up(&self, setup: Setup, name: &str) -> Setup {
        setup
            .file(&format!("certs/{name}.key"), &self.key)
            .file(&format!("certs/{name}.pem"), &self.certificate)
    }

    fn put(&self, edge: &Edge, name: &str) {
        edge.write_file(&format!("certs/{name}.key"), &self.key);
        edge.write_file(&format!("certs/{name}.pem"), &self.certificate);
    }
}

/// How a client speaks TLS.
#[derive(Clone)]
pub(crate) struct Tls {
    roots: Vec<CertificateDer<'static>>,
    alpn: Vec<Vec<u8>>,
    versions: Vec<&'static SupportedProtocolVersion>,
    shows: Option<(String, String)>,
}

impl Tls {
    /// Trusts this authority alone.
    pub(crate) fn trusting(pem: &str) -> Self {
        let roots = [CertificateDer::from_pem_slice(pem.as_bytes()).expect("PEM")];
        Self { roots: roots.into(), alpn: Vec::new(), versions: vec![&TLS12, &TLS13], shows: None }
    }

    pub(crate) fn alpn(mut self, protocols: &[&str]) -> Self {
        self.alpn = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        self
    }

    fn version(mut self, version: &'static SupportedProtocolVersion) -> Self {
        self.versions = vec![version];
        self
    }

    pub(crate) fn showing(mut self, minted: &Minted) -> Self {
        self.shows = Some((minted.certificate.clone(), minted.key.clone()));
        self
    }

    /// Shakes hands over `socket`, asking for `name`.
    pub(crate) async fn over(
        self,
        socket: TcpStream,
        name: &str,
    ) -> io::Result<TlsStream<TcpStream>> {
        shake(&TlsConnector::from(Arc::new(self.config())), socket, name).await
    }

    fn config(self) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(self.roots);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&self.versions)
            .expect("versions")
            .with_root_certificates(roots);
        let mut config = match self.shows {
            None => config.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain =
                    vec![CertificateDer::from_pem_slice(certificate.as_bytes()).expect("PEM")];
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("PEM");
                config.with_client_auth_cert(chain, key).expect("a pair")
            }
        };
        config.alpn_protocols = self.alpn;
        config
    }

    pub(crate) async fn connect(self, edge: &Edge, name: &str) -> io::Result<TlsStream<TcpStream>> {
        let socket = TcpStream::connect(edge.https).await.expect("a connection");
        self.over(socket, name).await
    }
}

async fn shake(
    connector: &TlsConnector,
    socket: TcpStream,
    name: &str,
) -> io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    connector.connect(name, socket).await
}

/// The certificate that the edge has shown.
pub(crate) fn shown(stream: &TlsStream<TcpStream>) -> CertificateDer<'static> {
    let (_, session) = stream.get_ref();
    session.peer_certificates().expect("a chain")[0].clone().into_owned()
}

pub(crate) async fn ask(
    stream: TlsStream<TcpStream>,
    request: &str,
) -> (Wire<TlsStream<TcpStream>>, String) {
    let mut wire = Wire(stream);
    wire.send(format!("{request}\r\n\r\n").as_bytes()).await;
    let head = wire.head().await;
    (wire, head)
}

/// Asks for a small JSON, which comes whole.
pub(crate) async fn whoami(wire: &mut Wire<TlsStream<TcpStream>>, host: &str) -> String {
    wire.send(format!("{}\r\n\r\n", get(host)).as_bytes()).await;
    wire.until("}").await
}

fn get(host: &str) -> String {
    format!("GET /whoami HTTP/1.1\r\nHost: {host}")
}

/// An edge with a certificate for [`NAMES`].
fn edge(authority: &Authority, more: &str) -> Edge {
    let setup = Setup::new().listen(HTTPS).route("demo", &witnessed("", more));
    authority.mint(NAMES).set_up(setup, "both").start()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exact_name_beats_a_wildcard_and_an_unknown_one_is_refused_in_the_handshake() {
    let authority = Authority::new();
    let (wild, exact) = (authority.mint(&["*.desk.test"]), authority.mint(&["alice.desk.test"]));
    let route = witnessed("", "").replace("{session}.test", "{session}.desk.test");
    let setup = Setup::new().listen(HTTPS).route("demo", &route);
    let setup = exact.set_up(wild.set_up(setup, "wild"), "exact");
    let mut edge = setup.start();
    for (name, minted) in
        [("alice.desk.test", &exact), ("bob.desk.test", &wild), ("ALICE.desk.test", &exact)]
    {
        let stream = authority.client().connect(&edge, name).await.expect("a handshake");
        assert!(shown(&stream) == minted.der(), "{name}");
        let (_, head) = ask(stream, &get(name)).await;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    }
    for name in ["other.example", "a.b.desk.test", "desk.test"] {
        let error = authority.client().connect(&edge, name).await.expect_err("refused");
        assert!(error.to_string().contains("UnrecognisedName"), "{name}: {error}");
    }
    edge.wait_until("they are counted", |edge| {
        edge.metric(&["dormouse_handshakes_total", "unknown_name"]) == 3.0
    });
    assert_eq!(edge.starts("other.example"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_pair_is_served_to_the_next_handshake_and_a_broken_one_changes_nothing() {
    let authority = Authority::new();
    let (old, new) = (authority.mint(&["alice.test"]), authority.mint(&["alice.test"]));
    let setup = Setup::new().listen(HTTPS).route("demo", &witnessed("", ""));
    let mut edge = old.set_up(setup, "alice").start();
    let stream = authority.client().connect(&edge, "alice.test").await.expect("a handshake");
    assert!(shown(&stream) == old.der());
    let url = "ws://alice.test/ws";
    let (mut socket, _) = tokio_tungstenite::client_async(url, stream).await.expect("a socket");

    // The certificate of one pair with the key of the other.
    edge.announce("another certificate's");
    edge.write_file("certs/alice.pem", &new.certificate);
    edge.wait_until("it is told", |edge| edge.metric(&["dormouse_certificate_errors "]) == 1.0);
    let errors = &edge.admin_get("/v1/certs")["errors"];
    assert!(errors[0]["message"].as_str().expect("text").contains("another certificate's"));
    let stream = authority.client().connect(&edge, "alice.test").await.expect("a handshake");
    assert!(shown(&stream) == old.der());

    new.put(&edge, "alice");
    edge.wait_until("it is right", |edge| edge.metric(&["dormouse_certificate_errors "]) == 0.0);
    let stream = authority.client().connect(&edge, "alice.test").await.expect("a handshake");
    assert!(shown(&stream) == new.der());

    // By the API, too: it is in force when the answer is there.
    old.put(&edge, "alice");
    assert_eq!(edge.admin_post("/v1/reload").1["certificates"], 1);
    let stream = authority.client().connect(&edge, "alice.test").await.expect("a handshake");
    assert!(shown(&stream) == old.der());

    socket.send(Message::text("still here")).await.expect("sent");
    let echo = socket.next().await.expect("open").expect("a message");
    assert_eq!(echo.into_text().expect("text").as_str(), "still here");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_ends_soon_and_a_key_that_others_read_are_told() {
    let authority = Authority::new();
    let mut params = CertificateParams::new(vec!["alice.test".to_owned()]).expect("names");
    params.not_after = rcgen::date_time_ymd(2026, 1, 1);
    let key = KeyPair::generate().expect("a key");
    let issuer = Issuer::from_params(&authority.params, &authority.key);
    let certificate = params.signed_by(&key, &issuer).expect("a certificate").pem();
    let minted = Minted { certificate, key: key.serialize_pem() };
    let setup = Setup::new().listen(HTTPS).route("demo", &witnessed("", ""));
    let mut edge = minted.set_up(setup, "alice").start();
    edge.announce("ends soon").announce("can read this key");
    edge.wait_until("it is told", |edge| edge.log_count(&["WARN", "ends soon"]) == 1);
    assert!(edge.metric(&["dormouse_certificate_expiry_days "]) < 0.0);
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    fs::set_permissions(edge.path("certs/alice.key"), mode).expect("open");
    edge.admin_post("/v1/reload");
    edge.wait_until("it is told", |edge| edge.log_count(&["WARN", "can read this key"]) == 1);
    assert_eq!(edge.admin_get("/v1/certs")["certificates"][0]["key_exposed"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_speak_tls_1_2_and_1_3_or_1_3_alone() {
    let authority = Authority::new();
    let edge = edge(&authority, "");
    for (offered, spoken) in
        [(&TLS12, ProtocolVersion::TLSv1_2), (&TLS13, ProtocolVersion::TLSv1_3)]
    {
        let client = authority.client().version(offered);
        let stream = client.connect(&edge, "alice.test").await.expect("a handshake");
        assert_eq!(stream.get_ref().1.protocol_version(), Some(spoken));
        let (_, head) = ask(stream, &get("alice.test")).await;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    }
    drop(edge);
    let setup = Setup::new().listen(HTTPS).config("[tls]\nmin_version = \"1.3\"\n");
    let setup = setup.route("demo", &witnessed("", ""));
    let edge = authority.mint(NAMES).set_up(setup, "both").start();
    let old = authority.client().version(&TLS12).connect(&edge, "alice.test").await;
    assert!(old.expect_err("refused").to_string().contains("ProtocolVersion"));
    authority.client().connect(&edge, "alice.test").await.expect("a handshake");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_comes_back_resumes_by_its_ticket_and_a_certificate_counts_then_too() {
    let (authority, theirs) = (Authority::new(), Authority::new());
    let listen = "https = [{ address = \"@HTTPS@\", client_ca = \"ca.pem\" }]";
    let setup = Setup::new().listen(listen).file("ca.pem", &theirs.pem());
    let route = witnessed("", "[access]\nmtls = { san = [\"me\"] }\n");
    let edge = authority.mint(NAMES).set_up(setup.route("demo", &route), "both").start();
    for version in [&TLS12, &TLS13] {
        let client = authority.client().version(version).showing(&theirs.mint(&["me"]));
        let connector = TlsConnector::from(Arc::new(client.config()));
        for kind in [HandshakeKind::Full, HandshakeKind::Resumed] {
            let socket = TcpStream::connect(edge.https).await.expect("a connection");
            let stream = shake(&connector, socket, "alice.test").await.expect("a handshake");
            let mut wire = Wire(stream);
            // With TLS 1.3 the ticket comes with what is read.
            let answer = whoami(&mut wire, "alice.test").await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            assert_eq!(wire.0.get_ref().1.handshake_kind(), Some(kind), "{version:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_shows_a_certificate_where_it_must_and_may_leave_it_out_where_it_can() {
    let (authority, theirs, strangers) = (Authority::new(), Authority::new(), Authority::new());
    let (client, stranger) = (theirs.mint(&["me"]), strangers.mint(&["me"]));
    for (auth, without_is_served) in [("required", false), ("optional", true)] {
        let listen = format!(
            "https = [{{ address = \"@HTTPS@\", client_ca = \"ca.pem\", client_auth = \"{auth}\" }}]"
        );
        let setup = Setup::new().listen(&listen).file("ca.pem", &theirs.pem());
        let setup = setup.route("demo", &witnessed("", ""));
        let edge = authority.mint(NAMES).set_up(setup, "both").start();
        // With TLS 1.3 the client hears of it only when it reads.
        let served = async |tls: Tls| {
            let Ok(stream) = tls.connect(&edge, "alice.test").await else { return false };
            let (_, head) = ask(stream, &get("alice.test")).await;
            head.starts_with("HTTP/1.1 200")
        };
        assert!(served(authority.client().showing(&client)).await);
        assert!(!served(authority.client().showing(&stranger)).await);
        assert_eq!(served(authority.client()).await, without_is_served, "{auth}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_over_tls_wakes_its_session_and_holds_it() {
    let authority = Authority::new();
    let setup = Setup::new().listen(HTTPS).route("demo", &gated(""));
    let mut edge = authority.mint(NAMES).set_up(setup, "both").start();
    let stream = authority.client().connect(&edge, "alice.test").await.expect("a handshake");
    let opening = tokio::spawn(tokio_tungstenite::client_async("ws://alice.test/ws", stream));
    wait_held(&mut edge, "alice.test", 1);
    open_gate(&edge, "alice.test");
    let (mut socket, answer) = opening.await.expect("no panic").expect("a socket");
    assert!(answer.headers().contains_key("server-timing"));
    let large = "x".repeat(300_000);
    for text in ["one", &large, "three"] {
        socket.send(Message::text(text)).await.expect("sent");
        let echo = socket.next().await.expect("open").expect("a message");
        assert_eq!(echo.into_text().expect("text").as_str(), text);
    }
    assert_eq!(edge.session("alice.test")["leases"], 1);
    socket.close(None).await.expect("closed");
    drop(socket);
    edge.wait_until("the lease is back", |edge| edge.session("alice.test")["leases"] == 0);
    assert_eq!(edge.starts("alice.test"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_during_its_hold_is_noticed_over_tls() {
    let authority = Authority::new();
    let setup = Setup::new().listen(HTTPS).route("demo", &gated(""));
    let mut edge = authority.mint(NAMES).set_up(setup, "both").start();
    let mut wire = Wire(authority.client().connect(&edge, "alice.test").await.expect("TLS"));
    wire.send(format!("{}\r\n\r\n", get("alice.test")).as_bytes()).await;
    wait_held(&mut edge, "alice.test", 1);
    drop(wire);
    edge.wait_until("its place is free", |edge| edge.metric(&["dormouse_held_requests "]) == 0.0);
    open_gate(&edge, "alice.test");
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_is_spoken_by_alpn_and_says_https_to_the_instance() {
    let authority = Authority::new();
    let edge = edge(&authority, "");
    let client = authority.client().alpn(&["h2", "http/1.1"]);
    let stream = client.connect(&edge, "alice.test").await.expect("a handshake");
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (mut sender, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
    tokio::spawn(connection);
    let request = http::Request::get("https://alice.test/headers").body(()).expect("a request");
    let (answer, _) = sender.send_request(request, true).expect("sent");
    let answer = answer.await.expect("an answer");
    assert_eq!((answer.status(), answer.version()), (http::StatusCode::OK, http::Version::HTTP_2));
    let mut body = answer.into_body();
    let mut all = Vec::new();
    while let Some(chunk) = body.data().await {
        all.extend_from_slice(&chunk.expect("a chunk"));
    }
    let all = String::from_utf8(all).expect("text");
    assert!(all.contains("[\"x-forwarded-proto\",\"https\"]"), "{all}");

    let client = authority.client().alpn(&["http/1.1"]);
    let stream = client.connect(&edge, "alice.test").await.expect("a handshake");
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    let (_, head) = ask(stream, &get("alice.test")).await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
}

#[tokio::test(flavor = "multi_thread")]
async fn events_flow_over_tls_one_by_one() {
    let authority = Authority::new();
    let edge = edge(&authority, "");
    let stream = authority.client().connect(&edge, "alice.test").await.expect("a handshake");
    let request = "GET /sse HTTP/1.1\r\nHost: alice.test\r\nAccept: text/event-stream";
    let (mut wire, head) = ask(stream, request).await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    wire.until("data:").await;
    wire.until("data:").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_to_https_wakes_nobody_and_hsts_is_said_over_https_alone() {
    let authority = Authority::new();
    let mut edge = edge(&authority, "[tls]\nredirect = true\nhsts = \"180d\"\n");
    let mut wire = Wire::open(edge.http).await;
    wire.send(b"GET /a/b?c=%20d HTTP/1.1\r\nHost: alice.test:80\r\n\r\n").await;
    let head = wire.head().await;
    assert!(head.starts_with("HTTP/1.1 308"), "{head}");
    let location = format!("https://alice.test:{}/a/b?c=%20d\r\n", edge.https.port());
    assert!(head.to_lowercase().contains(&format!("location: {location}")), "{head}");
    assert!(!head.to_lowercase().contains("strict-transport"), "{head}");
    let upgrade = "GET /ws HTTP/1.1\r\nHost: alice.test\r\nConnection: upgrade\r\n\
                   Upgrade: websocket\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\
                   Sec-WebSocket-Version: 13\r\n\r\n";
    let mut wire = Wire::sent(edge.http, upgrade.as_bytes()).await;
    assert!(wire.head().await.starts_with("HTTP/1.1 308"));
    edge.wait_until("they are counted", |edge| edge.metric(&["dormouse_redirected_total "]) == 2.0);
    assert_eq!((edge.starts("alice.test"), &*edge.state("alice.test")), (0, "none"));

    let stream = authority.client().connect(&edge, "alice.test").await.expect("a handshake");
    let (_, head) = ask(stream, &get("alice.test")).await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(head.to_lowercase().contains("strict-transport-security: max-age=15552000\r\n"));
    assert_eq!(edge.starts("alice.test"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_for_one_route_is_not_used_for_another() {
    let authority = Authority::new();
    let other = witnessed("", "").replace("{session}.test", "{session}.other");
    let setup = Setup::new().listen(HTTPS).route("demo", &witnessed("", "")).route("other", &other);
    let edge = authority.mint(NAMES).set_up(setup, "both").start();

    let stream = authority.client().connect(&edge, "alice.test").await.expect("a handshake");
    let mut wire = Wire(stream);
    // Sessions of the same route, one of another, one of none, and the first again.
    for (host, status) in [
        ("alice.test", "200"),
        ("bob.test", "200"),
        ("bob.other", "421"),
        ("bob.none", "404"),
        ("alice.test", "200"),
    ] {
        let answer = whoami(&mut wire, host).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{host}: {answer}");
    }

    let client = authority.client().alpn(&["h2"]);
    let stream = client.connect(&edge, "alice.test").await.expect("a handshake");
    let (mut sender, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
    tokio::spawn(connection);
    for (host, status) in [("alice.test", 200), ("bob.other", 421), ("alice.test", 200)] {
        let url = format!("https://{host}/whoami");
        let request = http::Request::get(url).body(()).expect("a request");
        let (answer, _) = sender.send_request(request, true).expect("sent");
        assert_eq!(answer.await.expect("an answer").status().as_u16(), status, "{host}");
    }
    assert_eq!(edge.starts("bob.other"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_that_does_not_end_is_cut() {
    let authority = Authority::new();
    let setup = Setup::new().listen(HTTPS).config("[timeouts]\nhandshake = \"300ms\"\n");
    let setup = setup.route("demo", &witnessed("", ""));
    let mut edge = authority.mint(NAMES).set_up(setup, "both").start();
    // Nothing, the start of a ClientHello, and what is no TLS at all.
    for (bytes, result) in [
        (&b""[..], "timeout"),
        (&[22, 3, 1, 2, 0, 1][..], "timeout"),
        (b"GET / HTTP/1.1\r\n\r\n", "failed"),
    ] {
        let before = edge.metric(&["dormouse_handshakes_total", result]);
        let mut socket = TcpStream::connect(edge.https).await.expect("a connection");
        tokio::io::AsyncWriteExt::write_all(&mut socket, bytes).await.expect("sent");
        let mut rest = Vec::new();
        // A reset is an end, too.
        let _ = socket.read_to_end(&mut rest).await;
        edge.wait_until("it is counted", |edge| {
            edge.metric(&["dormouse_handshakes_total", result]) == before + 1.0
        });
    }
    edge.wait_until("none is open", |edge| edge.metric(&["dormouse_connections "]) == 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_cert_dev_names_under_localhost_are_served_to_who_trusts_its_authority() {
    let route = witnessed("", "").replace("{session}.test", "{session}.localhost");
    let setup = Setup::new().listen(HTTPS).route("demo", &route);
    let mut edge = setup.start();
    edge.announce("there is no certificate yet");
    let config = edge.path("dormouse.toml");
    let minting = std::process::Command::new(crate::support::DORMOUSE)
        .args(["cert", "dev", "--config"])
        .arg(&config)
        .output()
        .expect("it runs");
    assert!(minting.status.success(), "{minting:?}");
    edge.wait_until("it is served", |edge| edge.metric(&["dormouse_certificates "]) == 1.0);
    let pem = fs::read(edge.path("state/dev-ca/ca.pem")).expect("an authority");
    let roots = vec![CertificateDer::from_pem_slice(&pem).expect("PEM")];
    let client = Tls { roots, ..Authority::new().client() };
    for name in ["alice.localhost", "bob.localhost"] {
        let stream = client.clone().connect(&edge, name).await.expect("a handshake");
        let (_, head) = ask(stream, &get(name)).await;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    }
    client.connect(&edge, "alice.example").await.expect_err("refused");
}
