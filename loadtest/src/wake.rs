//! One visit of one client on a connection of its own: over HTTP or WebSocket, phase by phase.

use std::time::{Duration, Instant};

use futures::{SinkExt, StreamExt};
use hyper::{HeaderMap, Uri};
use tokio::time::timeout;
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{ClientRequestBuilder, Error, Message},
};

use crate::{
    client::{Connection, Dialled, Fault, Io, dial, server_timing},
    tally::Tally,
    target::{Place, Target},
};

/// A WebSocket to a session.
pub type Socket = WebSocketStream<Box<dyn Io>>;

/// What one visit took.
#[derive(Debug)]
pub struct Visit {
    /// Getting the connection.
    pub dialled: Dialled,
    /// From the request until the head of the answer.
    pub wait: Duration,
    /// From the request until the last byte, or the first echo.
    pub took: Duration,
    /// The server's own waterfall, in milliseconds.
    pub timing: Vec<(String, f64)>,
}

/// Visits a session: a GET, or a WebSocket and one echo.
pub async fn visit(
    target: &Target,
    place: &Place,
    websocket: bool,
    limit: Duration,
) -> Result<Visit, Fault> {
    if !websocket {
        let mut connection = Connection::open(target, place, limit).await?;
        let answer = connection.get(place, limit).await?;
        let timing = server_timing(&answer.headers);
        let dialled = connection.dialled;
        return Ok(Visit { dialled, wait: answer.wait, took: answer.took, timing });
    }
    timeout(limit, async {
        let (stream, dialled) = dial(target, place).await?;
        let began = Instant::now();
        let (mut socket, headers) = upgrade(target, place, stream).await?;
        let wait = began.elapsed();
        echo(&mut socket, Message::text("loadtest")).await?;
        let took = began.elapsed();
        // What comes of the goodbye is not measured.
        let _ = socket.close(None).await;
        Ok(Visit { dialled, wait, took, timing: server_timing(&headers) })
    })
    .await?
}

/// Opens a WebSocket; `limit` bounds it.
pub async fn open(target: &Target, place: &Place, limit: Duration) -> Result<Socket, Fault> {
    timeout(limit, async {
        let (stream, _) = dial(target, place).await?;
        Ok(upgrade(target, place, stream).await?.0)
    })
    .await?
}

async fn upgrade(
    target: &Target,
    place: &Place,
    stream: Box<dyn Io>,
) -> Result<(Socket, HeaderMap), Fault> {
    let scheme = if target.tls().is_some() { "wss" } else { "ws" };
    let uri = format!("{scheme}://{}{}", place.authority, place.path).parse::<Uri>();
    let request = ClientRequestBuilder::new(uri.map_err(|_| Fault::Broken)?);
    match client_async(request, stream).await {
        Ok((socket, response)) => Ok((socket, response.headers().clone())),
        Err(Error::Http(answer)) => Err(Fault::Status(answer.status().as_u16())),
        Err(_) => Err(Fault::Broken),
    }
}

/// Sends a message and waits until the same one comes back.
pub async fn echo(socket: &mut Socket, message: Message) -> Result<(), Fault> {
    socket.send(message.clone()).await.map_err(|_| Fault::Broken)?;
    loop {
        match socket.next().await {
            Some(Ok(answer)) if answer == message => return Ok(()),
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            Some(Ok(Message::Text(_) | Message::Binary(_))) => return Err(Fault::NotEchoed),
            Some(Ok(Message::Close(_) | Message::Frame(_)) | Err(_)) | None => {
                return Err(Fault::Broken);
            }
        }
    }
}

/// Adds a visit, or its fault, to a tally.
pub fn record(tally: &mut Tally, visit: Result<Visit, Fault>) {
    let visit = match visit {
        Ok(visit) => visit,
        Err(fault) => return tally.fault(&fault),
    };
    let Visit { dialled, wait, took, timing } = visit;
    let ttfb = dialled.total() + wait;
    let parts = [
        ("dns", dialled.dns),
        ("connect", dialled.connect),
        ("wait", wait),
        ("ttfb", ttfb),
        ("total", dialled.total() + took),
    ];
    if !dialled.tls.is_zero() {
        tally.took("tls", dialled.tls);
    }
    for (name, took) in parts {
        tally.took(name, took);
    }
    if let Some((_, engine)) = timing.iter().find(|(name, _)| name == "engine") {
        tally.exact("overhead", ttfb.as_secs_f64() * 1e3 - engine);
    }
    for (name, millis) in timing {
        tally.exact(&format!("server.{name}"), millis);
    }
    tally.answers += 1;
}
