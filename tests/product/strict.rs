//! An instance that reads HTTP/1.1 to the letter: what is not exactly a request or its body is an
//! error, answered with 400, and says in the file `strayed` what came instead.

use std::{
    fs,
    io::{Error, ErrorKind, Result},
    net::SocketAddr,
};

use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
};

use crate::support::Edge;

/// A request as it came.
struct Came {
    line: String,
    fields: Vec<String>,
    body: Vec<u8>,
    chunks: usize,
}

/// Serves until it is killed.
pub(crate) async fn serve(at: SocketAddr) {
    let listener = TcpListener::bind(at).await.expect("bind");
    loop {
        let (socket, _) = listener.accept().await.expect("accept");
        tokio::spawn(answer_all(socket));
    }
}

/// What was no request, if anything was.
pub(crate) fn strayed(edge: &Edge) -> Option<String> {
    fs::read_to_string(edge.path("strayed")).ok()
}

/// Each with what came, and with how many came before it on this connection.
async fn answer_all(socket: TcpStream) {
    let mut socket = BufReader::new(socket);
    for before in 0.. {
        let (status, body) = match read(&mut socket).await {
            Ok(None) => return,
            Ok(Some(Came { line, fields, body, chunks })) => {
                let body = String::from_utf8_lossy(&body);
                let said = json!({
                    "line": line, "fields": fields, "body": body, "chunks": chunks,
                    "before": before,
                });
                ("200 OK", said.to_string())
            }
            // A client that has left is none of its business.
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return,
            Err(error) => {
                fs::write("strayed", error.to_string()).expect("a file");
                ("400 Bad Request", error.to_string())
            }
        };
        let length = body.len();
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{body}");
        if socket.write_all(answer.as_bytes()).await.is_err() || status.starts_with("400") {
            return;
        }
    }
}

async fn read(socket: &mut BufReader<TcpStream>) -> Result<Option<Came>> {
    if socket.fill_buf().await?.is_empty() {
        return Ok(None);
    }
    let line = line(socket).await?;
    if line.split(' ').count() != 3 || !line.ends_with(" HTTP/1.1") {
        return Err(stray(&line));
    }
    let fields = fields(socket).await?;
    let value = |name: &str| {
        let mut values = fields.iter().filter_map(|field| {
            let (key, value) = field.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then(|| value.to_owned())
        });
        let first = values.next();
        if values.next().is_some() { Err(stray(name)) } else { Ok(first) }
    };
    let (mut body, mut chunks) = (Vec::new(), 0);
    match (value("content-length")?, value("transfer-encoding")?) {
        (Some(_), Some(_)) => return Err(stray("both lengths")),
        (Some(length), None) => {
            body.resize(length.parse().map_err(|_| stray(&length))?, 0);
            socket.read_exact(&mut body).await?;
        }
        (None, Some(coding)) if coding == "chunked" => {
            while let Some(chunk) = chunk(socket).await? {
                body.extend(chunk);
                chunks += 1;
            }
        }
        (None, Some(coding)) => return Err(stray(&coding)),
        (None, None) => {}
    }
    Ok(Some(Came { line, fields, body, chunks }))
}

async fn chunk(socket: &mut BufReader<TcpStream>) -> Result<Option<Vec<u8>>> {
    let size = line(socket).await?;
    let size = usize::from_str_radix(&size, 16).map_err(|_| stray(&size))?;
    if size == 0 {
        fields(socket).await?;
        return Ok(None);
    }
    let mut chunk = vec![0; size + 2];
    socket.read_exact(&mut chunk).await?;
    if !chunk.ends_with(b"\r\n") {
        return Err(stray("the end of a chunk"));
    }
    chunk.truncate(size);
    Ok(Some(chunk))
}

async fn fields(socket: &mut BufReader<TcpStream>) -> Result<Vec<String>> {
    let mut all = Vec::new();
    loop {
        let field = line(socket).await?;
        if field.is_empty() {
            return Ok(all);
        }
        if !field.contains(':') {
            return Err(stray(&field));
        }
        all.push(field);
    }
}

async fn line(socket: &mut BufReader<TcpStream>) -> Result<String> {
    let mut bytes = Vec::new();
    socket.read_until(b'\n', &mut bytes).await?;
    let line = String::from_utf8_lossy(&bytes).into_owned();
    match line.strip_suffix("\r\n") {
        Some(line) => Ok(line.to_owned()),
        None if bytes.last() == Some(&b'\n') => Err(stray(&line)),
        None => Err(ErrorKind::UnexpectedEof.into()),
    }
}

fn stray(what: &str) -> Error {
    Error::new(ErrorKind::InvalidData, format!("not HTTP/1.1: {what:?}"))
}
