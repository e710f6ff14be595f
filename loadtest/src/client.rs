//! One client: dials, asks, and says how long each phase took and what went wrong. Decides nothing.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Empty};
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode,
    body::Incoming,
    client::conn::{http1, http2},
    header::{self, HeaderValue},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpSocket, TcpStream},
    task::JoinSet,
    time::{error::Elapsed, timeout},
};
use tokio_rustls::TlsConnector;

use crate::target::{Place, Target};

/// As much of a body as is kept; the rest is read and counted.
const BODY_KEPT_MAX: usize = 64 * 1024;

/// What went wrong with one request. Each kind is counted apart, and none is left out.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fault {
    /// The name did not resolve, or is not allowed.
    Resolve(String),
    /// No connection.
    Connect,
    /// No TLS handshake.
    Tls,
    /// No answer in `--timeout`.
    Timeout,
    /// The connection ended, or spoke nonsense, before the answer was whole.
    Broken,
    /// Not a 2xx (or 101).
    Status(u16),
    /// A WebSocket said something other than what was sent.
    NotEchoed,
    /// Came from the wrong session.
    WrongSession,
    /// Came from a life that had already ended.
    OldLife,
    /// No identity could be read from the answer.
    NoIdentity,
    /// It was due, and there was no time left to send it.
    NotSent,
    /// The session could not be brought back to sleep.
    NotReset(String),
    /// It was said to be asleep, and more than one life answered.
    TwoLives,
    /// The instance by hand did not start.
    Floor(String),
}

impl Fault {
    /// For a person, who must do something about it; its short name is what is counted.
    pub(crate) fn says(&self) -> String {
        let says = match self {
            Self::Connect => "no connection: does it listen there?",
            Self::Tls => {
                "no TLS handshake: does it speak TLS there, with a certificate that is trusted? see --ca and --insecure"
            }
            Self::Timeout => "no answer within --timeout",
            Self::Broken => "the connection ended, or spoke nonsense, before the answer was whole",
            Self::Status(status) => return format!("it answered {status}"),
            Self::NoIdentity => "nothing in the answer says which instance gave it",
            other => return other.to_string(),
        };
        says.to_owned()
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Resolve(why) => write!(f, "resolve: {why}"),
            Self::Connect => f.write_str("connect"),
            Self::Tls => f.write_str("tls"),
            Self::Timeout => f.write_str("timeout"),
            Self::Broken => f.write_str("broken"),
            Self::Status(status) => write!(f, "status-{status}"),
            Self::NotEchoed => f.write_str("not-echoed"),
            Self::WrongSession => f.write_str("wrong-session"),
            Self::OldLife => f.write_str("old-life"),
            Self::NoIdentity => f.write_str("no-identity"),
            Self::NotSent => f.write_str("not-sent"),
            Self::NotReset(why) => write!(f, "not-reset: {why}"),
            Self::TwoLives => f.write_str("two-lives"),
            Self::Floor(why) => write!(f, "floor: {why}"),
        }
    }
}

impl From<Elapsed> for Fault {
    fn from(_: Elapsed) -> Self {
        Self::Timeout
    }
}

impl From<hyper::Error> for Fault {
    fn from(_: hyper::Error) -> Self {
        Self::Broken
    }
}

/// How long it took to get a connection.
#[derive(Clone, Copy, Debug, Default)]
pub struct Dialled {
    /// Resolving the name.
    pub dns: Duration,
    /// The TCP handshake.
    pub connect: Duration,
    /// The TLS handshake; zero without TLS.
    pub tls: Duration,
}

impl Dialled {
    /// All of it.
    pub fn total(&self) -> Duration {
        self.dns + self.connect + self.tls
    }
}

/// A byte stream to the server, TLS or not.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

async fn connect(from: Option<IpAddr>, addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    let Some(from) = from else { return TcpStream::connect(addresses).await };
    let socket = if from.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.bind((from, 0).into())?;
    let same_kind = addresses.iter().find(|address| address.is_ipv4() == from.is_ipv4());
    socket.connect(*same_kind.ok_or(io::ErrorKind::AddrNotAvailable)?).await
}

/// Dials a session's place.
pub async fn dial(target: &Target, place: &Place) -> Result<(Box<dyn Io>, Dialled), Fault> {
    let began = Instant::now();
    let found = target.resolve(place).await;
    let addresses = found.map_err(|error| Fault::Resolve(format!("{error:#}")))?;
    let dns = began.elapsed();
    let began = Instant::now();
    let stream = connect(target.from, &addresses).await.map_err(|_| Fault::Connect)?;
    stream.set_nodelay(true).map_err(|_| Fault::Connect)?;
    let connect = began.elapsed();
    let Some(config) = target.tls() else {
        return Ok((Box::new(stream), Dialled { dns, connect, tls: Duration::ZERO }));
    };
    let began = Instant::now();
    let name = ServerName::try_from(place.host.clone()).map_err(|_| Fault::Tls)?;
    let connector = TlsConnector::from(config.clone());
    let stream = connector.connect(name, stream).await.map_err(|_| Fault::Tls)?;
    Ok((Box::new(stream), Dialled { dns, connect, tls: began.elapsed() }))
}

/// A connection that takes requests.
pub struct Connection {
    sender: Sender,
    scheme: &'static str,
    /// Sent with every request.
    pub authorization: Option<HeaderValue>,
    /// How it was got.
    pub dialled: Dialled,
    /// Ends with the last of its lanes.
    driver: Arc<JoinSet<()>>,
    closed: bool,
}

enum Sender {
    H1(http1::SendRequest<Empty<Bytes>>),
    H2(http2::SendRequest<Empty<Bytes>>),
}

/// A whole answer.
#[derive(Debug)]
pub struct Answer {
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body, as far as it is kept.
    pub body: Bytes,
    /// From sending the request until its head was there.
    pub wait: Duration,
    /// From sending the request until its last byte.
    pub took: Duration,
}

impl Connection {
    /// Opens one; `limit` bounds it.
    pub async fn open(target: &Target, place: &Place, limit: Duration) -> Result<Self, Fault> {
        timeout(limit, Self::open_unbounded(target, place)).await?
    }

    async fn open_unbounded(target: &Target, place: &Place) -> Result<Self, Fault> {
        let (stream, dialled) = dial(target, place).await?;
        let scheme = if target.tls().is_some() { "https" } else { "http" };
        Self::over(stream, target.h2(), scheme, dialled).await
    }

    /// Speaks HTTP over a stream that is there already.
    pub async fn over(
        stream: Box<dyn Io>,
        h2: bool,
        scheme: &'static str,
        dialled: Dialled,
    ) -> Result<Self, Fault> {
        let mut driver = JoinSet::new();
        let stream = TokioIo::new(stream);
        let sender = if h2 {
            let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await?;
            // Its end shows at the sender.
            driver.spawn(async { drop(connection.await) });
            Sender::H2(sender)
        } else {
            let (sender, connection) = http1::handshake(stream).await?;
            driver.spawn(async { drop(connection.await) });
            Sender::H1(sender)
        };
        let driver = Arc::new(driver);
        Ok(Self { sender, scheme, authorization: None, dialled, driver, closed: false })
    }

    /// Whether it still takes requests: an orderly close between two requests is no fault.
    pub fn is_open(&self) -> bool {
        let closed = match &self.sender {
            Sender::H1(sender) => sender.is_closed(),
            Sender::H2(sender) => sender.is_closed(),
        };
        !self.closed && !closed
    }

    /// Takes no more requests: a late answer must not be taken for the next one's.
    pub fn close(&mut self) {
        self.closed = true;
    }

    /// `n` that share it, each with one request under way at a time; HTTP/1.1 has one such lane.
    pub fn lanes(self, n: usize) -> Vec<Self> {
        let Sender::H2(sender) = &self.sender else { return vec![self] };
        let lane = |_| Self {
            sender: Sender::H2(sender.clone()),
            scheme: self.scheme,
            authorization: self.authorization.clone(),
            dialled: self.dialled,
            driver: Arc::clone(&self.driver),
            closed: false,
        };
        (0..n).map(lane).collect()
    }

    /// A GET, and its whole answer; `limit` bounds it. What is not a 2xx is a fault.
    pub async fn get(&mut self, place: &Place, limit: Duration) -> Result<Answer, Fault> {
        let (status, answer) = self.ask(Method::GET, place, limit).await?;
        if status.is_success() { Ok(answer) } else { Err(Fault::Status(status.as_u16())) }
    }

    /// One request and its answer, whatever its status.
    pub async fn ask(
        &mut self,
        method: Method,
        place: &Place,
        limit: Duration,
    ) -> Result<(StatusCode, Answer), Fault> {
        timeout(limit, async {
            let began = Instant::now();
            let response = self.send(method, place).await?;
            let wait = began.elapsed();
            let (head, mut incoming) = response.into_parts();
            let mut body = BytesMut::new();
            while let Some(frame) = incoming.frame().await {
                if let Ok(data) = frame?.into_data() {
                    let room = BODY_KEPT_MAX - body.len();
                    body.extend_from_slice(&data[..data.len().min(room)]);
                }
            }
            let took = began.elapsed();
            Ok((head.status, Answer { headers: head.headers, body: body.freeze(), wait, took }))
        })
        .await?
    }

    async fn send(&mut self, method: Method, place: &Place) -> Result<Response<Incoming>, Fault> {
        let mut request = Request::builder()
            .method(method)
            .header(header::USER_AGENT, concat!("loadtest/", env!("CARGO_PKG_VERSION")));
        if let Some(authorization) = &self.authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        let answered = match &mut self.sender {
            Sender::H1(sender) => {
                sender.ready().await?;
                let request = request.uri(&place.path).header(header::HOST, &place.authority);
                sender.send_request(whole(request)?).await
            }
            Sender::H2(sender) => {
                sender.ready().await?;
                let uri = format!("{}://{}{}", self.scheme, place.authority, place.path);
                sender.send_request(whole(request.uri(uri))?).await
            }
        };
        Ok(answered?)
    }
}

fn whole(request: hyper::http::request::Builder) -> Result<Request<Empty<Bytes>>, Fault> {
    request.body(Empty::new()).map_err(|_| Fault::Broken)
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("dialled", &self.dialled).finish_non_exhaustive()
    }
}

/// `Server-Timing`: each part's name and milliseconds. What cannot be read is left out.
pub fn server_timing(headers: &HeaderMap) -> Vec<(String, f64)> {
    const PARTS_MAX: usize = 16;
    let values = headers.get_all("server-timing").iter().filter_map(|value| value.to_str().ok());
    let part = |part: &str| {
        let mut words = part.split(';').map(str::trim);
        let name = words.next()?.to_ascii_lowercase();
        let millis = words.find_map(|word| word.strip_prefix("dur="))?.parse().ok()?;
        let is_token = name.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c));
        (is_token && !name.is_empty() && f64::is_finite(millis)).then_some((name, millis))
    };
    values.flat_map(|value| value.split(',')).filter_map(part).take(PARTS_MAX).collect()
}
