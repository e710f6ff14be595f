//! Machines of a Fly app that are reached by its public name, over what stands in for Fly's proxy:
//! it knows the app by its name and its machines by a header.

use std::sync::{Arc, Mutex};

use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsAcceptor, rustls};

use crate::{
    fly::{Fake, TOKEN, World},
    support::{DORMOUSE, Edge, Setup, client},
};

/// The header that says which machine.
const WHICH: &str = "fly-force-instance-id";

/// A proxy that ends with its test.
struct Proxy {
    port: u16,
    /// Who it is, as a certificate that says so itself.
    certificate: String,
    /// The heads that it was sent.
    heads: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    async fn start(fake: &Fake) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("made");
        let certificate = made.cert.pem();
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let config = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key.into())
            .expect("a pair");
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let (world, heads) = (Arc::clone(&fake.world), Arc::<Mutex<Vec<String>>>::default());
        let (told, machines_port) = (Arc::clone(&heads), fake.port);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, world, told) = (acceptor.clone(), world.clone(), told.clone());
                tokio::spawn(async move {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        serve(stream, &world, &told, machines_port).await;
                    }
                });
            }
        });
        Self { port, certificate, heads }
    }
}

/// The first request of a connection says where all of it goes.
async fn serve(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    world: &Mutex<World>,
    told: &Mutex<Vec<String>>,
    port: u16,
) {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        if stream.read_buf(&mut head).await.is_ok_and(|read| read == 0) {
            return;
        }
    }
    let text = String::from_utf8_lossy(&head).to_lowercase();
    told.lock().expect("heads").push(text.clone());
    let of = |name: &str| {
        text.lines().find_map(|line| line.strip_prefix(&format!("{name}: "))).unwrap_or_default()
    };
    let ip = {
        let world = world.lock().expect("a world");
        let machine = world.machines.get(of(WHICH)).filter(|_| of("host") == "localhost");
        machine.filter(|machine| machine.state == "started").map(|machine| machine.ip)
    };
    let connected = match ip {
        Some(ip) => TcpStream::connect((ip, port)).await.ok(),
        None => None,
    };
    let Some(mut machine) = connected else {
        let nobody = "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        let _ = stream.write_all(nobody.as_bytes()).await;
        return;
    };
    if machine.write_all(&head).await.is_ok() {
        let _ = copy_bidirectional(&mut stream, &mut machine).await;
    }
}

fn edge(fake: &Fake, proxy: &Proxy, ready: &str) -> Edge {
    let config = format!(
        "[engines.fly]\nkind = \"fly\"\n[engines.fly.fly]\napp = \"desks\"\ntoken_file = \"token\"\n\
         endpoint = \"http://{}/v1\"\npublic = \"https://localhost:{}\"\npoll = \"1s\"\n\
         [paths]\nstate = \"@DIR@/state\"\n",
        fake.address, proxy.port
    );
    let route = format!(
        "host = \"{{session}}.test\"\nengine = \"fly\"\n[instance]\nimage = \"demo\"\nport = {}\n\
         command = [\"{DORMOUSE}\", \"demo-session\", \"--listen\", \"{{address}}\"]\n\
         [ready]\nprobe = {ready}\n[idle]\nsleep = [{{ after = \"1h\", to = \"suspended\" }}]\n",
        fake.port
    );
    Setup::new()
        .config(&config)
        .route("desk", &route)
        .file("token", TOKEN)
        .file("trusted.pem", &proxy.certificate)
        .start()
}

async fn who(edge: &Edge, host: &str) -> Value {
    let asked = client().get(edge.url(host, "/whoami")).header(WHICH, "m000001");
    let answer = asked.send().await.expect("an answer");
    assert_eq!(answer.status(), 200);
    answer.json().await.expect("JSON")
}

#[tokio::test(flavor = "multi_thread")]
async fn each_session_gets_its_own_machine_through_the_apps_public_name() {
    let fake = Fake::start(std::time::Duration::from_millis(20)).await;
    let proxy = Proxy::start(&fake).await;
    let mut edge = edge(&fake, &proxy, "\"tcp\"");
    for host in ["alice.test", "bob.test", "alice.test"] {
        assert_eq!(who(&edge, host).await["session"], host);
    }
    let heads = proxy.heads.lock().expect("heads").clone();
    let asked: Vec<_> = heads.iter().filter(|head| head.starts_with("get /whoami")).collect();
    assert!(asked.iter().all(|head| head.matches(WHICH).count() == 1), "{asked:?}");
    assert!(asked[0].contains("x-forwarded-host: alice.test"), "{asked:?}");

    let url = format!("ws://bob.test:{}/ws", edge.http.port());
    let socket = TcpStream::connect(edge.http).await.expect("a connection");
    let opened = tokio_tungstenite::client_async(url, socket).await.expect("a WebSocket");
    edge.wait_state("bob.test", "awake");
    drop(opened);

    // Without a word of Fly's: the proxy says that nobody is there, and the next look why.
    fake.dies("m000001");
    edge.wait_state("alice.test", "asleep");
    assert_eq!(who(&edge, "alice.test").await["session"], "alice.test");
    assert_eq!(fake.lock().machines.len(), 2);
}
