//! The demo session as the binary serves it: what other tests and operators rely on.
#![expect(clippy::unwrap_used, reason = "a test's unwrap is its assertion")]

use std::{
    process::{Child, Command},
    time::{Duration, Instant},
};

use futures::{SinkExt, StreamExt};
use serde_json::Value;
use tokio_tungstenite::tungstenite::{Message, protocol::WebSocketConfig};

/// A demo session without an engine.
struct Demo {
    process: Child,
    port: u16,
}

impl Demo {
    async fn start(flags: &[&str]) -> Self {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let process = Command::new(env!("CARGO_BIN_EXE_dormouse"))
            .args(["demo-session", "--listen", &format!("127.0.0.1:{port}")])
            .args(flags)
            .env("DORMOUSE_SESSION", "demo.localhost")
            .env("DORMOUSE_GENERATION", "5")
            .env("DORMOUSE_IDLE_AFTER_MS", "90000")
            .spawn()
            .unwrap();
        let demo = Self { process, port };
        let since = Instant::now();
        while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            assert!(since.elapsed() < Duration::from_secs(20), "it never listens");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        demo
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    async fn get(&self, path: &str) -> reqwest::Response {
        reqwest::get(self.url(path)).await.unwrap()
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test]
async fn it_says_who_answers_and_counts_visitors_but_not_probes() {
    let demo = Demo::start(&[]).await;
    let health = demo.get("/healthz").await;
    assert_eq!((health.status().as_u16(), health.text().await.unwrap().as_str()), (200, "ok"));
    demo.get("/slow?ms=1").await;
    let who: Value = demo.get("/whoami").await.json().await.unwrap();
    assert_eq!(who["session"], "demo.localhost");
    assert_eq!(who["generation"], 5);
    assert_eq!(who["pid"], demo.process.id());
    assert_eq!(who["address"], format!("127.0.0.1:{}", demo.port));
    assert_eq!(who["requests"], 2);
    assert!(who["started_unix_ms"].as_u64().unwrap() > 1_700_000_000_000);
}

#[tokio::test]
async fn the_page_needs_nothing_else_and_a_forged_host_cannot_leave_its_place() {
    let demo = Demo::start(&[]).await;
    let request = reqwest::Client::new().get(demo.url("/"));
    let page = request.header("x-forwarded-host", "</script><b>x").send().await.unwrap();
    assert_eq!(page.headers()["content-type"], "text/html; charset=utf-8");
    let page = page.text().await.unwrap();
    assert!(!page.contains("__FACTS__"));
    let (_, facts) = page.split_once("id=\"facts\">").unwrap();
    let facts: Value = serde_json::from_str(facts.split_once("</script>").unwrap().0).unwrap();
    assert_eq!(facts["host"], "</script><b>x");
    assert_eq!(facts["idle_after_ms"], 90_000);
    assert!(!page.contains("src=") && !page.contains("http://") && !page.contains("https://"));
}

#[tokio::test]
async fn bodies_both_ways() {
    let demo = Demo::start(&[]).await;
    let body = demo.get("/download?bytes=1000003").await.bytes().await.unwrap();
    assert_eq!(body.len(), 1_000_003);
    assert!(body.iter().enumerate().all(|(at, &byte)| usize::from(byte) == at % 251));
    for uploads in 1..=2 {
        let upload = reqwest::Client::new().post(demo.url("/upload")).body("abc");
        let said: Value = upload.send().await.unwrap().json().await.unwrap();
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(said, serde_json::json!({"bytes": 3, "sha256": abc, "uploads": uploads}));
    }
    let none = demo.get("/download?bytes=0").await;
    assert_eq!(none.bytes().await.unwrap().len(), 0);
}

#[tokio::test]
async fn headers_come_back_as_they_came() {
    let demo = Demo::start(&[]).await;
    let request = reqwest::Client::new().get(demo.url("/headers"));
    let request = request.header("x-twice", "one").header("x-twice", "two");
    let all: Vec<(String, String)> = request.send().await.unwrap().json().await.unwrap();
    let twice: Vec<_> = all.iter().filter(|(name, _)| name == "x-twice").map(|h| &h.1).collect();
    assert_eq!(twice, ["one", "two"]);
}

#[tokio::test]
async fn events_flow_and_end() {
    let demo = Demo::start(&[]).await;
    let events = demo.get("/sse?events=3&every_ms=1").await;
    assert_eq!(events.headers()["content-type"], "text/event-stream");
    let text = events.text().await.unwrap();
    let got: Vec<_> = text.lines().filter(|line| line.starts_with("data:")).collect();
    assert_eq!(got, ["data: event 0", "data: event 1", "data: event 2"]);
}

#[tokio::test]
async fn the_socket_echoes_big_messages_and_ticks_only_when_asked() {
    let demo = Demo::start(&[]).await;
    let big = WebSocketConfig::default().max_message_size(None).max_frame_size(None);
    let url = |path| format!("ws://127.0.0.1:{}{path}", demo.port);
    let connect = tokio_tungstenite::connect_async_with_config(url("/ws"), Some(big), false);
    let (mut socket, _) = connect.await.unwrap();
    for message in [Message::text("hello"), Message::binary(vec![7; 16 * 1024 * 1024])] {
        socket.send(message.clone()).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), message);
    }
    let (mut ticking, _) = tokio_tungstenite::connect_async(url("/ws?tick=1")).await.unwrap();
    assert_eq!(ticking.next().await.unwrap().unwrap(), Message::text("tick 1"));
    assert_eq!(ticking.next().await.unwrap().unwrap(), Message::text("tick 2"));
}

#[tokio::test]
async fn it_misbehaves_as_it_is_told() {
    let mut demo = Demo::start(&["--never-ready", "--listen-after", "10ms"]).await;
    assert_eq!(demo.get("/healthz").await.status().as_u16(), 503);
    let exit = reqwest::Client::new().post(demo.url("/exit?code=3"));
    assert!(exit.send().await.is_err(), "it ends before it answers");
    assert_eq!(demo.process.wait().unwrap().code(), Some(3));
}
