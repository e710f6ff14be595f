//! Whether an instance answers: asked at the engine's word, and then whenever the wait has grown by a
//! quarter, 1 to 50 ms later.

use std::{io, sync::Arc, time::Duration};

use http_body_util::Empty;
use hyper::{Request, body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    time::{Instant, sleep, timeout},
};

use super::{cell::Cell, tls};
use crate::{
    engine::{Health, InstanceState},
    session::{Address, Behind, Plan, Probe},
};

/// No timer of the runtime is finer.
const PAUSE_MIN: Duration = Duration::from_millis(1);
const PAUSE_MAX: Duration = Duration::from_millis(50);
/// One attempt: an instance that accepts and then says nothing is asked again after this.
const ATTEMPT_MAX: Duration = Duration::from_secs(5);

/// Returns once the instance is ready as `probe` says. Whoever waits sets the limit.
pub(super) async fn ready(cell: &Arc<Cell>, plan: &Plan, probe: &Probe, address: &Address) {
    let began = Instant::now();
    while !matches!(timeout(ATTEMPT_MAX, attempt(cell, plan, probe, address)).await, Ok(true)) {
        let pause = (began.elapsed() / 4).clamp(PAUSE_MIN, PAUSE_MAX);
        tokio::select! {
            () = sleep(pause) => {}
            () = cell.changed.notified() => {}
        }
    }
}

async fn attempt(cell: &Arc<Cell>, plan: &Plan, probe: &Probe, address: &Address) -> bool {
    match probe {
        Probe::Tcp => listens(cell, plan, address).await,
        Probe::Http { path, status } => match get(cell, plan, address, path).await {
            Ok(answer) => status.map_or(answer < 500, |wanted| answer == wanted),
            Err(_) => false,
        },
        Probe::Engine => match cell.fleet.inspect(cell, plan).await {
            Ok(Some(InstanceState::Running(Health::Unchecked))) => {
                listens(cell, plan, address).await
            }
            Ok(Some(InstanceState::Running(health))) => health == Health::Healthy,
            Ok(Some(InstanceState::Asleep(_)) | None) | Err(_) => false,
        },
    }
}

/// Whether somebody takes a connection there. That a proxy does says nothing of who is behind it:
/// there, whether it answers for it.
async fn listens(cell: &Cell, plan: &Plan, address: &Address) -> bool {
    match address {
        Address::Tcp(_) | Address::Unix(_) => connect(address).await.is_ok(),
        Address::Behind(_) => {
            let answer = get(cell, plan, address, "/").await;
            answer.is_ok_and(|status| !(502..=504).contains(&status))
        }
    }
}

trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

async fn connect(address: &Address) -> io::Result<Box<dyn Connection>> {
    Ok(match address {
        Address::Tcp(address) => Box::new(TcpStream::connect(address).await?),
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
) -> Result<u16, Box<dyn std::error::Error + Send + Sync>> {
    let mut stream = connect(address).await?;
    let behind = address.behind();
    let sni = match behind {
        Some(behind) => behind.tls.then_some(&*behind.host),
        None => plan.tls.as_ref().map(|options| &*options.sni),
    };
    if let Some(sni) = sni {
        stream = Box::new(tls::connect(stream, sni).await?);
    }
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let mut request = Request::get(path);
    if let Some(Behind { header: (header, instance), .. }) = behind {
        request = request.header(*header, &**instance);
    }
    let request = request
        .header("host", behind.map_or(cell.session.host(), |behind| &behind.host))
        .header("user-agent", concat!("dormouse-probe/", env!("CARGO_PKG_VERSION")))
        .header("connection", "close")
        .body(Empty::<Bytes>::new())?;
    // The connection is driven here and ends with this attempt: nothing is left behind.
    let mut answer = std::pin::pin!(sender.send_request(request));
    let answer = tokio::select! {
        answer = &mut answer => answer,
        // It may end in the very step that brings the answer.
        _ = connection => answer.await,
    };
    Ok(answer?.status().as_u16())
}
