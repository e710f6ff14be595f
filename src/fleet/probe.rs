//! Whether an instance answers: asked at the engine's word, and then whenever the wait has grown by a
//! quarter, 1 to 50 ms later.

use std::{io, sync::Arc, time::Duration};

use http_body_util::Empty;
use hyper::{
    Request,
    body::Bytes,
    client::conn::http1,
    header::{HeaderName, HeaderValue},
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite},
    net::{TcpStream, UnixStream},
    time::{Instant, sleep, timeout},
};

use super::{
    cell::Cell,
    tls::{self, Trust},
};
use crate::{
    engine::{Health, InstanceState},
    session::{Address, Behind, Plan, Probe, ProbeHeader},
};

/// No timer of the runtime is finer.
const PAUSE_MIN: Duration = Duration::from_millis(1);
const PAUSE_MAX: Duration = Duration::from_millis(50);
/// One attempt: an instance that accepts and then says nothing is asked again after this.
const ATTEMPT_MAX: Duration = Duration::from_secs(5);
/// A connection that a forwarder has kept for so long has somebody at its other end. Docker's ended
/// those that had nobody after 0.04 ms, and after 14 at most, on two cores with a load of 10.
const KEPT: Duration = Duration::from_millis(100);

/// When the engine is first asked what is in the way; then whenever the wait has doubled.
const HINT_FIRST: Duration = Duration::from_millis(500);

/// Returns once the instance is ready as `probe` says. Whoever waits sets the limit, and reads in
/// `Core::not_ready` what the last look saw.
pub(super) async fn ready(cell: &Arc<Cell>, plan: &Plan, probe: &Probe, address: &Address) {
    let began = Instant::now();
    let (mut hint, mut hint_at) = (None, HINT_FIRST);
    loop {
        let looked = timeout(ATTEMPT_MAX, attempt(cell, plan, probe, address)).await;
        let seen = match looked {
            Ok(Ok(())) => return,
            Ok(Err(seen)) => seen,
            Err(_) => NotReady::Silent,
        };
        if hint_at <= began.elapsed() {
            hint_at = began.elapsed() * 2;
            hint = cell.fleet.hint(&cell.session, plan, address).await;
        }
        cell.lock().not_ready = Some(with_hint(seen.describe(probe, address), hint.as_deref()));
        let pause = (began.elapsed() / 4).clamp(PAUSE_MIN, PAUSE_MAX);
        tokio::select! {
            () = sleep(pause) => {}
            () = cell.changed.notified() => {}
        }
    }
}

/// What was seen, and what the engine adds to it.
fn with_hint(seen: String, hint: Option<&str>) -> String {
    match hint {
        Some(hint) => format!("{seen}; {hint}"),
        None => seen,
    }
}

/// What one look saw of an instance that is not ready.
enum NotReady {
    /// It takes no connection.
    Unreachable(io::Error),
    /// It takes a connection and says nothing.
    Silent,
    /// What it says is no HTTP answer.
    NoAnswer(String),
    /// It answers with a status that does not count.
    Status { got: u16, wanted: Option<u16> },
    /// What the engine says of it.
    Engine(String),
}

impl NotReady {
    /// For the operator: who was asked, what for, and what came back.
    fn describe(&self, probe: &Probe, address: &Address) -> String {
        let asked = match probe {
            Probe::Http { path, .. } => format!("GET {path} at {address}"),
            Probe::Tcp | Probe::Engine => address.to_string(),
        };
        match self {
            Self::Unreachable(error) => format!("{asked}: no connection: {error}"),
            Self::Silent => format!("{asked}: no answer within {} s", ATTEMPT_MAX.as_secs()),
            Self::NoAnswer(error) => format!("{asked}: no HTTP answer: {error}"),
            Self::Status { got, wanted: Some(wanted) } => {
                format!("{asked} answers {got}, and ready.status is {wanted}")
            }
            Self::Status { got, wanted: None } => {
                format!("{asked} answers {got}, and an answer below 500 is ready")
            }
            Self::Engine(said) => format!("its engine says: {said}"),
        }
    }
}

async fn attempt(
    cell: &Arc<Cell>,
    plan: &Plan,
    probe: &Probe,
    address: &Address,
) -> Result<(), NotReady> {
    match probe {
        Probe::Tcp => listens(cell, plan, address).await,
        Probe::Http { path, status: wanted, headers } => {
            let got = get(cell, plan, address, path, headers).await?;
            let counts = wanted.map_or(got < 500, |wanted| got == wanted);
            if counts { Ok(()) } else { Err(NotReady::Status { got, wanted: *wanted }) }
        }
        Probe::Engine => match cell.fleet.inspect(cell, plan).await {
            Ok(Some(InstanceState::Running(Health::Unchecked))) => {
                listens(cell, plan, address).await
            }
            Ok(Some(InstanceState::Running(Health::Healthy))) => Ok(()),
            Ok(Some(InstanceState::Running(health))) => {
                Err(NotReady::Engine(health.as_str().to_owned()))
            }
            Ok(Some(InstanceState::Asleep(depth))) => {
                Err(NotReady::Engine(format!("it is {}", depth.as_str())))
            }
            Ok(None) => Err(NotReady::Engine("there is no instance".to_owned())),
            Err(error) => Err(NotReady::Engine(error.to_string())),
        },
    }
}

/// Whether somebody takes a connection there. That a proxy does says nothing of who is behind it:
/// there, whether it answers for it.
async fn listens(cell: &Cell, plan: &Plan, address: &Address) -> Result<(), NotReady> {
    match address {
        Address::Tcp(_) | Address::Forwarded(_) | Address::Unix(_) => {
            takes_connections(address).await.map_err(NotReady::Unreachable)
        }
        Address::Behind(_) => match get(cell, plan, address, "/", &[]).await? {
            got @ 502..=504 => Err(NotReady::Status { got, wanted: None }),
            _ => Ok(()),
        },
    }
}

/// Whether a connection to it is taken, and at a forwarder also kept: it ends a connection at once
/// that it has taken and cannot pass on, whatever the instance speaks.
pub async fn takes_connections(address: &Address) -> io::Result<()> {
    let mut stream = connect(address).await?;
    if !matches!(address, Address::Forwarded(_)) {
        return Ok(());
    }
    match timeout(KEPT, stream.read_u8()).await {
        // It says something, or waits to be asked.
        Ok(Ok(_)) | Err(_) => Ok(()),
        Ok(Err(error)) => {
            let says = format!("its port's forwarder ends the connection: {error}");
            Err(io::Error::new(error.kind(), says))
        }
    }
}

trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

async fn connect(address: &Address) -> io::Result<Box<dyn Connection>> {
    Ok(match address {
        Address::Tcp(address) | Address::Forwarded(address) => {
            Box::new(TcpStream::connect(address).await?)
        }
        Address::Unix(path) => Box::new(UnixStream::connect(&**path).await?),
        Address::Behind(behind) => Box::new(TcpStream::connect(behind.proxy).await?),
    })
}

/// The status of one `GET path`, over TLS where the instance speaks it.
async fn get(
    cell: &Cell,
    plan: &Plan,
    address: &Address,
    path: &str,
    headers: &[ProbeHeader],
) -> Result<u16, NotReady> {
    let mut stream = connect(address).await.map_err(NotReady::Unreachable)?;
    let behind = address.behind();
    let tls = match behind {
        Some(behind) => behind.tls.then_some((&*behind.host, true)),
        None => plan.tls.as_ref().map(|options| (&*options.sni, options.verify)),
    };
    if let Some((sni, verify)) = tls {
        // Without a secret to send, it does not matter who answers.
        let trust = if verify && !headers.is_empty() { Trust::System } else { Trust::Anyone };
        let connected = tls::connect(stream, sni, trust).await;
        stream = Box::new(connected.map_err(|error| NotReady::NoAnswer(no_tls(&error)))?);
    }
    let no_answer = |error: &dyn std::error::Error| NotReady::NoAnswer(error.to_string());
    let handshake = http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| no_answer(&error))?;
    let mut request = Request::get(path);
    if let Some(Behind { header: (header, instance), .. }) = behind {
        request = request.header(*header, &**instance);
    }
    request = request
        .header("host", behind.map_or(cell.session.host(), |behind| &behind.host))
        .header("user-agent", concat!("dormouse-probe/", env!("CARGO_PKG_VERSION")))
        .header("connection", "close");
    let mut request = request.body(Empty::<Bytes>::new()).map_err(|error| no_answer(&error))?;
    for ProbeHeader { name, value } in headers {
        let name = HeaderName::from_bytes(name).map_err(|error| no_answer(&error))?;
        let value = HeaderValue::from_bytes(value).map_err(|error| no_answer(&error))?;
        request.headers_mut().insert(name, value);
    }
    // The connection is driven here and ends with this attempt: nothing is left behind.
    let mut answer = std::pin::pin!(sender.send_request(request));
    let answer = tokio::select! {
        answer = &mut answer => answer,
        // It may end in the very step that brings the answer.
        _ = connection => answer.await,
    };
    let answer = answer.map_err(|error| match tls {
        None if error.is_parse() || error.is_incomplete_message() => {
            let hint = "if it speaks TLS, add tls = true to [upstream]";
            NotReady::NoAnswer(format!("{error}; {hint}"))
        }
        _ => no_answer(&error),
    })?;
    Ok(answer.status().as_u16())
}

/// Why there is no TLS. What is no TLS at all is most often HTTP.
fn no_tls(error: &io::Error) -> String {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::InvalidMessage(_)) => {
            format!("TLS: {error}; if it speaks plain HTTP, take tls out of [upstream]")
        }
        _ => format!("TLS: {error}"),
    }
}
