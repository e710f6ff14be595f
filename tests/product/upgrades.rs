//! Connections that become another protocol, whatever it is called: bytes both ways, after the 101
//! and not before.

use std::{
    fs,
    process::{Command, Stdio},
};

use futures::{SinkExt as _, StreamExt as _};
use tokio_tungstenite::tungstenite::Message;

use crate::{
    dockerd,
    guest::{self, Guest},
    support::{Edge, Setup, client},
    wire::Wire,
};

const HOST: &str = "alice.test";

/// As the docker command and kubectl ask.
#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_to_any_protocol_is_carried_with_the_body_that_asks_for_it() {
    let mut edge = Setup::new().route("demo", &guest::route(Guest::Recorder, "")).start();
    for (number, protocol) in ["tcp", "SPDY/3.1"].into_iter().enumerate() {
        let taken = format!(
            "HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n\r\nits words"
        );
        fs::write(edge.path("answer"), taken).expect("a file");
        let asks = format!(
            "POST /exec HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n\
             Content-Length: 2\r\n\r\n{{}}"
        );
        let mut wire = Wire::sent(edge.http, asks.as_bytes()).await;
        let said = wire.until("its words").await;
        assert!(said.starts_with("HTTP/1.1 101 "), "{said}");
        assert!(said.contains(&format!("\r\nUpgrade: {protocol}\r\n")), "{said}");
        wire.send(b"words of its client").await;
        let seen =
            |edge: &Edge| guest::recorded(edge, HOST).get(number).cloned().unwrap_or_default();
        edge.wait_until("all has arrived", |edge| {
            seen(edge).ends_with("\r\n\r\n{}words of its client")
        });
        let seen = seen(&edge);
        assert!(seen.contains(&format!("\r\nUpgrade: {protocol}\r\n")), "{seen}");
        assert!(seen.contains("\r\nConnection: Upgrade\r\n"), "{seen}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_behind_the_body_of_an_upgrade_waits_for_the_101() {
    let mut edge = Setup::new().route("demo", &guest::route(Guest::Recorder, "")).start();
    fs::write(edge.path("answer"), "HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno")
        .expect("a file");
    let asks = format!(
        "POST /exec HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\
         Content-Length: 2\r\n\r\n{{}}GET /smuggled HTTP/1.1\r\nHost: {HOST}\r\n\r\n"
    );
    let said = Wire::sent(edge.http, asks.as_bytes()).await.rest().await;
    assert!(said.starts_with("HTTP/1.1 404 ") && said.ends_with("\r\n\r\nno"), "{said}");
    edge.wait_until("the lease is back", |edge| edge.session(HOST)["leases"] == 0);
    let seen = guest::recorded(&edge, HOST).concat();
    assert!(seen.contains("POST /exec") && !seen.contains("smuggled"), "{seen}");
}

/// A web server of another hand that takes an upgrade, and a client of it.
#[tokio::test(flavor = "multi_thread")]
async fn nodes_upgrade_goes_both_ways() {
    const SERVER: &str = "const [host, port] = process.argv[2].split(':');
        require('http').createServer((q, a) => a.end('plain')).on('upgrade', (q, s) => {
            s.write('HTTP/1.1 101 Yes\\r\\nConnection: Upgrade\\r\\nUpgrade: ');
            s.write(q.headers.upgrade + '\\r\\n\\r\\n');
            s.on('data', d => s.write('echo ' + d));
            s.on('end', () => s.end('bye'));
        }).listen(+port, host);";
    const CLIENT: &str = "const q = require('http').request({ port: process.argv[2],
            headers: { Host: 'alice.test', Connection: 'Upgrade', Upgrade: 'chat/2' } });
        q.on('response', a => { console.log('refused ' + a.statusCode); process.exit(1); });
        q.on('upgrade', (a, s) => {
            s.write('hi');
            s.once('data', d => {
                console.log(a.headers.upgrade + ' ' + d);
                s.on('data', d => console.log('' + d));
                s.end();
            });
        });
        q.end();";
    let route = "host = \"{session}.test\"\nengine = \"local\"\n[instance]\n\
         command = [\"node\", \"@DIR@/server.js\", \"{address}\"]\nenv = { TEST_DIR = \"@DIR@\" }\n";
    let edge = Setup::new()
        .file("server.js", SERVER)
        .file("client.js", CLIENT)
        .route("demo", route)
        .start();
    let port = edge.http.port().to_string();
    let ran = Command::new("node").arg(edge.path("client.js")).arg(&port).output().expect("node");
    assert_eq!(String::from_utf8_lossy(&ran.stdout), "chat/2 echo hi\nbye\n", "{ran:?}");
}

/// HTTP/2 has no `Upgrade`: one is asked for in HTTP/1.1.
#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_reaches_an_instance_that_is_spoken_to_in_http2() {
    let app = "async def app(scope, receive, send):\n    kind = scope['type']\n    if kind == 'http':\n        \
        await send({'type': 'http.response.start', 'status': 200, 'headers': []})\n        \
        await send({'type': 'http.response.body', 'body': scope['http_version'].encode()})\n    \
        elif kind == 'websocket':\n        await receive()\n        await send({'type': 'websocket.accept'})\n        \
        while (m := await receive())['type'] == 'websocket.receive':\n            \
        await send({'type': 'websocket.send', 'text': 'echo ' + m['text']})\n";
    let route = "host = \"{session}.test\"\nengine = \"local\"\n[instance]\n\
         command = [\"/usr/bin/python3\", \"-m\", \"hypercorn\", \"-b\", \"{address}\", \"app:app\"]\n\
         env = { TEST_DIR = \"@DIR@\", PYTHONPATH = \"@DIR@\" }\n[upstream]\nprotocol = \"http2\"\n";
    let edge = Setup::new().file("app.py", app).route("demo", route).start();
    let plain = client().get(edge.url(HOST, "/")).send().await.expect("an answer");
    assert_eq!(plain.text().await.expect("text"), "2");
    let stream = tokio::net::TcpStream::connect(edge.http).await.expect("a connection");
    let opened = tokio_tungstenite::client_async(format!("ws://{HOST}/"), stream).await;
    let (mut socket, _) = opened.expect("a WebSocket");
    socket.send(Message::text("hi")).await.expect("open");
    let echo = socket.next().await.expect("open").expect("a message");
    assert_eq!(echo, Message::text("echo hi"));
}

/// A real daemon behind the edge, and the docker command before it.
#[tokio::test(flavor = "multi_thread")]
async fn docker_run_exec_and_attach_work_through_the_edge() {
    let rig = dockerd::shared();
    let route = guest::route(Guest::Relay, "").replace("{session}.test", "localhost");
    let socket = rig.endpoint().trim_start_matches("unix://").to_owned();
    let edge = Setup::new().file("relay", &socket).route("demo", &route).start();
    let to = format!("tcp://localhost:{}", edge.http.port());
    let docker = |arguments: &[&str], input: &str| {
        let mut docker = Command::new("docker");
        docker.args(["--host", &to]).args(arguments);
        docker.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = docker.spawn().expect("the docker command");
        use std::io::Write as _;
        let mut stdin = child.stdin.take().expect("piped");
        stdin.write_all(input.as_bytes()).expect("written");
        drop(stdin);
        let ran = child.wait_with_output().expect("it ends");
        let err = String::from_utf8_lossy(&ran.stderr).into_owned();
        assert!(ran.status.success(), "docker {arguments:?}: {err}");
        String::from_utf8_lossy(&ran.stdout).trim().to_owned()
    };
    let name = format!("upgrades-{}", std::process::id());
    let image = ["--entrypoint", "/bin/busybox", dockerd::IMAGE];
    let run = [&["run", "--rm", "-i"][..], &image, &["sh", "-c", "cat; echo out"]].concat();
    assert_eq!(docker(&run, "in\n"), "in\nout");
    let long = [&["run", "-d", "--rm", "--name", &name][..], &image, &["sleep", "600"]].concat();
    docker(&long, "");
    let exec = ["exec", "-i", &name, "/bin/busybox", "sh", "-c", "cat; echo $((6 * 7))"];
    assert_eq!(docker(&exec, "through\n"), "through\n42");
    docker(&["rm", "-f", &name], "");
}
