//! A server whose behaviour is known to the last answer, and the program under test.

#![allow(dead_code, reason = "each test file uses its own share")]

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Command, Output},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use serde_json::Value;

/// Listens on loopback and gives every connection to `serve`, a thread each.
pub(crate) fn server(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let serve = Arc::new(serve);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let serve = Arc::clone(&serve);
            thread::spawn(move || serve(stream));
        }
    });
    address
}

/// Answers every request with what `answer` makes of its number, counted over all connections;
/// nothing ends the connection.
pub(crate) fn http(answer: impl Fn(usize) -> Option<String> + Send + Sync + 'static) -> SocketAddr {
    let count = AtomicUsize::new(0);
    server(move |mut stream| {
        while read_head(&mut stream) {
            match answer(count.fetch_add(1, Ordering::SeqCst)) {
                Some(text) => stream.write_all(text.as_bytes()).unwrap_or_default(),
                None => return,
            }
        }
    })
}

/// A 200 with a body.
pub(crate) fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

fn read_head(stream: &mut TcpStream) -> bool {
    let (mut head, mut n) = ([0; 4096], 0);
    while !head[..n].ends_with(b"\r\n\r\n") {
        match stream.read(&mut head[n..]) {
            Ok(more @ 1..) => n += more,
            _ => return false,
        }
    }
    true
}

/// Runs the program.
pub(crate) fn loadtest(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_loadtest")).args(arguments).output().expect("it runs")
}

/// Runs the program with `--json`; its exit code and report.
pub(crate) fn report(arguments: &[&str]) -> (i32, Value) {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("report.json");
    let ran = loadtest(&[arguments, &["--json", file.to_str().expect("text")]].concat());
    (ran.status.code().expect("no signal"), read(&file, &ran))
}

/// The report that a run wrote.
pub(crate) fn read(file: &Path, ran: &Output) -> Value {
    let text = std::fs::read_to_string(file).unwrap_or_else(|_| panic!("no report: {ran:?}"));
    serde_json::from_str(&text).expect("JSON")
}
