//! The calls to one Docker daemon: where it is, how long it may take, and what its refusals mean.
//!
//! Knows the API, no session. A 304, or a 404 for a container that was to go, is not an error.

use std::{
    collections::HashMap,
    env, fmt,
    net::IpAddr,
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bollard::{
    API_DEFAULT_VERSION,
    errors::Error as ApiError,
    models::{ContainerCreateBody, ContainerInspectResponse, ContainerSummary, EventMessage},
    query_parameters::{
        CreateContainerOptionsBuilder, EventsOptionsBuilder, InspectContainerOptions,
        ListContainersOptionsBuilder, LogsOptionsBuilder, RemoveContainerOptionsBuilder,
        StopContainerOptionsBuilder,
    },
};
use chrono::DateTime;
use futures::{StreamExt, TryStreamExt, stream::BoxStream};
use tokio::{sync::Mutex, time::sleep};

use super::{SETTLE, Tls};
use crate::engine::{Error, without};

/// Where a daemon is.
#[derive(Clone, Debug)]
pub(super) enum Endpoint {
    Unix(String),
    Plain(String),
    Tls(String, Tls),
    Ssh(String),
}

impl Endpoint {
    /// Without an address it is found as the `docker` command finds it.
    pub(super) fn parse(address: Option<String>, tls: Option<Tls>) -> Result<Self, Error> {
        let from_env = address.is_none();
        let address = address
            .or_else(|| env::var("DOCKER_HOST").ok().filter(|host| !host.is_empty()))
            .unwrap_or_else(|| "unix:///var/run/docker.sock".to_owned());
        let tls = tls.or_else(|| if from_env { tls_from_env() } else { None });
        match address.split_once("://") {
            Some(("unix", path)) if path.starts_with('/') => Ok(Self::Unix(address)),
            Some(("ssh", host)) if !host.is_empty() => Ok(Self::Ssh(address)),
            Some(("tcp" | "http" | "https", host)) if !host.is_empty() => match tls {
                Some(tls) => Ok(Self::Tls(address, tls)),
                None if is_near(host) => Ok(Self::Plain(address)),
                None => Err(Error::Invalid(format!(
                    "`{address}` without TLS is only for loopback and for a neighbour in a \
                     container network: whoever reads along is root on that host"
                ))),
            },
            _ => Err(Error::Invalid(format!(
                "`{address}` is no Docker endpoint: unix:///PATH, tcp://HOST:PORT, ssh://USER@HOST"
            ))),
        }
    }

    fn connect(&self, limit: Duration) -> Result<bollard::Docker, ApiError> {
        let (seconds, version) = ((limit + ROUNDING).as_secs(), API_DEFAULT_VERSION);
        match self {
            Self::Unix(address) => bollard::Docker::connect_with_unix(address, seconds, version),
            Self::Plain(address) => bollard::Docker::connect_with_http(address, seconds, version),
            Self::Ssh(address) => {
                bollard::Docker::connect_with_ssh(address, seconds, version, None)
            }
            Self::Tls(address, tls) => {
                // With several providers compiled in, rustls wants one named; the first stays.
                let _ = rustls::crypto::ring::default_provider().install_default();
                let Tls { ca, cert, key } = tls;
                bollard::Docker::connect_with_ssl(address, key, cert, ca, seconds, version)
            }
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(at) | Self::Plain(at) | Self::Tls(at, _) | Self::Ssh(at) => f.write_str(at),
        }
    }
}

fn tls_from_env() -> Option<Tls> {
    env::var("DOCKER_TLS_VERIFY").ok().filter(|verify| !verify.is_empty())?;
    let home = || env::var("HOME").map(|home| format!("{home}/.docker"));
    let folder = PathBuf::from(env::var("DOCKER_CERT_PATH").or_else(|_| home()).ok()?);
    let [ca, cert, key] = ["ca.pem", "cert.pem", "key.pem"].map(|file| folder.join(file));
    Some(Tls { ca, cert, key })
}

/// A single-label name is another container's, such as a proxy in front of the socket.
fn is_near(authority: &str) -> bool {
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.parse::<u16>().is_ok() => host,
        _ => authority,
    };
    let host = host.trim_matches(['[', ']']);
    host.parse::<IpAddr>().map_or(!host.contains(['.', ':', '/']), |ip| ip.is_loopback())
}

/// Why the daemon did not do it.
#[derive(Debug)]
pub(super) enum Refused {
    /// It answered so.
    Answer { status: u16, text: String },
    /// It did not answer.
    Engine(Error),
}

/// No more of a daemon's text is passed on.
const TEXT_MAX: usize = 600;

impl Refused {
    fn is(&self, code: u16) -> bool {
        matches!(self, Self::Answer { status, .. } if *status == code)
    }

    fn says(&self, words: &str) -> bool {
        matches!(self, Self::Answer { text, .. } if text.to_ascii_lowercase().contains(words))
    }

    /// Podman says it with a 500.
    pub(super) fn is_name_in_use(&self) -> bool {
        self.says("already in use") && (self.says("name") || self.is(409))
    }

    pub(super) fn is_no_image(&self) -> bool {
        self.is(404) && self.says("image")
    }

    /// The container was not in the state for this call: the next look tells in which.
    fn is_wrong_state(&self) -> bool {
        self.is(409) || self.says("is not paused") || self.says("container state improper")
    }

    /// Without any of these values: a daemon may repeat what it was given.
    pub(super) fn without(self, secrets: &[String]) -> Self {
        match self {
            Self::Answer { status, text } => Self::Answer { status, text: without(text, secrets) },
            Self::Engine(error) => Self::Engine(error),
        }
    }
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        let in_use = refused.says("port is already allocated")
            || refused.says("address already in use")
            || refused.says("in progress");
        match refused {
            Refused::Engine(error) => error,
            Refused::Answer { status, text } => {
                let text: String = text.trim().chars().take(TEXT_MAX).collect();
                match status {
                    409 => Error::Conflict(text),
                    _ if in_use => Error::Conflict(text),
                    400 | 404 => Error::Invalid(text),
                    // It, or what stands before it, has too much to do.
                    429 | 502..=504 => {
                        Error::Unreachable(format!("the daemon answered {status}: {text}"))
                    }
                    _ => Error::Failed(format!("the daemon answered {status}: {text}")),
                }
            }
        }
    }
}

/// More than the fraction of a second that the library cuts off its limits.
const ROUNDING: Duration = Duration::from_secs(1);
/// More than clocks that are set right are apart.
const CLOCKS_APART: Duration = Duration::from_secs(60);

/// A daemon, connected to when it is first asked.
#[derive(Debug)]
pub(super) struct Client {
    endpoint: Endpoint,
    call_timeout: Duration,
    /// Kept for the API version that was agreed on; sockets are opened for each call.
    connected: Mutex<Option<bollard::Docker>>,
}

impl Client {
    pub(super) fn new(endpoint: Endpoint, call_timeout: Duration) -> Self {
        Self { endpoint, call_timeout, connected: Mutex::new(None) }
    }

    pub(super) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    pub(super) fn call_timeout(&self) -> Duration {
        self.call_timeout
    }

    async fn docker(&self) -> Result<bollard::Docker, ApiError> {
        let mut connected = self.connected.lock().await;
        if let Some(docker) = &*connected {
            return Ok(docker.clone());
        }
        let docker = self.endpoint.connect(self.call_timeout)?.negotiate_version().await?;
        Ok(connected.insert(docker).clone())
    }

    /// One call within `limit`, connecting included.
    async fn call<T, F>(
        &self,
        call: &'static str,
        limit: Duration,
        ask: impl FnOnce(bollard::Docker) -> F,
    ) -> Result<T, Refused>
    where
        F: Future<Output = Result<T, ApiError>>,
    {
        // The library's own limit, in whole seconds, is for what it does after this call: events.
        let asked = async { ask(self.docker().await?.with_timeout(limit + ROUNDING)).await };
        let refused = match tokio::time::timeout(limit, asked).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => self.refused(error, call, limit),
            Err(_) => Refused::Engine(Error::Timeout { call, after: limit }),
        };
        if matches!(refused, Refused::Engine(Error::Unreachable(_))) {
            // It may come back as another version.
            *self.connected.lock().await = None;
        }
        Err(refused)
    }

    /// Why a stream that was opened brings nothing.
    pub(super) fn stream_error(&self, error: ApiError) -> Error {
        self.refused(error, "events", self.call_timeout).into()
    }

    fn refused(&self, error: ApiError, call: &'static str, after: Duration) -> Refused {
        let at = &self.endpoint;
        match error {
            ApiError::DockerResponseServerError { status_code: status, message: text } => {
                Refused::Answer { status, text }
            }
            ApiError::RequestTimeoutError => Refused::Engine(Error::Timeout { call, after }),
            error @ (ApiError::CertPathError { .. }
            | ApiError::CertParseError { .. }
            | ApiError::CertMultipleKeys { .. }
            | ApiError::NoNativeCertsError { .. }) => {
                Refused::Engine(Error::Invalid(format!("{at}: {error}")))
            }
            error @ (ApiError::HyperLegacyError { .. }
            | ApiError::HyperResponseError { .. }
            | ApiError::SocketNotFoundError(_)
            | ApiError::IOError { .. }) => {
                Refused::Engine(Error::Unreachable(format!("{at}: {}", with_causes(&error))))
            }
            error => {
                Refused::Engine(Error::Failed(format!("{at}: {call}: {}", with_causes(&error))))
            }
        }
    }

    /// `None` when there is none.
    pub(super) async fn inspect(
        &self,
        name: &str,
    ) -> Result<Option<ContainerInspectResponse>, Error> {
        let ask = |docker: bollard::Docker| async move {
            docker.inspect_container(name, None::<InspectContainerOptions>).await
        };
        match self.call("inspect", self.call_timeout, ask).await {
            Ok(found) => Ok(Some(found)),
            Err(refused) if refused.is(404) => Ok(None),
            Err(refused) => Err(refused.into()),
        }
    }

    /// All containers with this `KEY=VALUE` label.
    pub(super) async fn list(&self, label: &str) -> Result<Vec<ContainerSummary>, Error> {
        let filters = HashMap::from([("label", vec![label])]);
        let options = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
        let ask =
            |docker: bollard::Docker| async move { docker.list_containers(Some(options)).await };
        Ok(self.call("list", self.call_timeout, ask).await?)
    }

    pub(super) async fn create(
        &self,
        name: &str,
        body: ContainerCreateBody,
    ) -> Result<(), Refused> {
        let options = CreateContainerOptionsBuilder::new().name(name).build();
        let ask = |docker: bollard::Docker| async move {
            docker.create_container(Some(options), body).await
        };
        self.call("create", self.call_timeout, ask).await.map(drop)
    }

    /// Whether it did; not when the container was in another state than it seemed to be.
    pub(super) async fn start(&self, id: &str) -> Result<bool, Refused> {
        let ask = |docker: bollard::Docker| async move { docker.start_container(id, None).await };
        match self.call("start", self.call_timeout, ask).await {
            Ok(()) => Ok(true),
            Err(refused) if refused.is(404) && refused.says("no such container") => Ok(false),
            Err(refused) if refused.is_wrong_state() => Ok(false),
            Err(refused) => Err(refused),
        }
    }

    /// Whether it did.
    pub(super) async fn unpause(&self, id: &str) -> Result<bool, Error> {
        let ask = |docker: bollard::Docker| async move { docker.unpause_container(id).await };
        match self.call("unpause", self.call_timeout, ask).await {
            Ok(()) => Ok(true),
            Err(refused) if refused.is(404) || refused.is_wrong_state() => Ok(false),
            Err(refused) => Err(refused.into()),
        }
    }

    /// A container that was paused, or ended, meanwhile is no error.
    pub(super) async fn pause(&self, id: &str) -> Result<(), Error> {
        let ask = |docker: bollard::Docker| async move { docker.pause_container(id).await };
        match self.call("pause", self.call_timeout, ask).await {
            Err(refused) if !refused.is(404) && !refused.is_wrong_state() => Err(refused.into()),
            _ => Ok(()),
        }
    }

    /// TERM, then after `grace` KILL.
    pub(super) async fn stop(&self, id: &str, grace: Duration) -> Result<(), Error> {
        let seconds = grace.as_secs() + u64::from(grace.subsec_nanos() > 0);
        let options = StopContainerOptionsBuilder::new()
            .t(i32::try_from(seconds).unwrap_or(i32::MAX))
            .build();
        let ask =
            |docker: bollard::Docker| async move { docker.stop_container(id, Some(options)).await };
        match self.call("stop", self.call_timeout + grace, ask).await {
            Err(refused) if !refused.is(404) => Err(refused.into()),
            _ => Ok(()),
        }
    }

    pub(super) async fn kill(&self, id: &str) -> Result<(), Error> {
        let ask = |docker: bollard::Docker| async move { docker.kill_container(id, None).await };
        match self.call("kill", self.call_timeout, ask).await {
            Err(refused) if !refused.is(404) && !refused.is_wrong_state() => Err(refused.into()),
            _ => Ok(()),
        }
    }

    /// Force-removes a container with its anonymous volumes, and waits until it is gone.
    pub(super) async fn remove(&self, id: &str) -> Result<(), Error> {
        let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
        let ask = |docker: bollard::Docker| async move {
            docker.remove_container(id, Some(options)).await
        };
        match self.call("remove", self.call_timeout, ask).await {
            Ok(()) => return Ok(()),
            Err(refused) if refused.is(404) => return Ok(()),
            Err(refused) if !refused.is(409) => return Err(refused.into()),
            Err(_) => {}
        }
        // Somebody else is removing it.
        let gone = async {
            while self.inspect(id).await?.is_some() {
                sleep(SETTLE).await;
            }
            Ok(())
        };
        tokio::time::timeout(self.call_timeout, gone)
            .await
            .unwrap_or(Err(Error::Timeout { call: "remove", after: self.call_timeout }))
    }

    /// The last lines that a container wrote, 1 KiB at most, without any of these values.
    pub(super) async fn log_tail(&self, id: &str, secrets: &[String]) -> Result<String, Error> {
        let options = LogsOptionsBuilder::new().stdout(true).stderr(true).tail("20").build();
        let ask = |docker: bollard::Docker| async move {
            docker.logs(id, Some(options)).map_ok(|line| line.to_string()).try_collect().await
        };
        let log: String = self.call("logs", self.call_timeout, ask).await?;
        let log = without(log, secrets);
        let from = log.ceil_char_boundary(log.len().saturating_sub(1024));
        Ok(log[from..].trim_end().to_owned())
    }

    /// The daemon's own clock, as [`Client::events`] wants it: seconds, a point, nanoseconds. A minute
    /// ago by this host's where the daemon does not say: an event that is told again does no harm.
    pub(super) async fn now(&self) -> Result<String, Error> {
        let ask = |docker: bollard::Docker| async move { docker.info().await };
        let info = match self.call("info", self.call_timeout, ask).await {
            Ok(info) => info,
            // A proxy before the socket may refuse it and let events through.
            Err(Refused::Answer { .. }) => return Ok(of_this_host()),
            Err(refused) => return Err(refused.into()),
        };
        let said = info.system_time.unwrap_or_default();
        let now = DateTime::parse_from_rfc3339(&said)
            .map_err(|_| Error::Failed(format!("the daemon says that its time is `{said}`")))?;
        Ok(format!("{}.{:09}", now.timestamp(), now.timestamp_subsec_nanos()))
    }

    /// The one runtime that every container gets, where a daemon heeds no wish: Podman's does not.
    /// 4.3 takes `HostConfig.Runtime` and makes the container in its own.
    pub(super) async fn only_runtime(&self) -> Result<Option<String>, Error> {
        let ask = |docker: bollard::Docker| async move { docker.version().await };
        let parts = self.call("version", self.call_timeout, ask).await?.components;
        if parts.into_iter().flatten().all(|part| part.name != "Podman Engine") {
            return Ok(None);
        }
        let ask = |docker: bollard::Docker| async move { docker.info().await };
        let info = self.call("info", self.call_timeout, ask).await?;
        Ok(Some(info.default_runtime.unwrap_or_default()))
    }

    /// The names of the OCI runtimes that it is set up with, in order. Docker takes others, too: the
    /// full names of shims.
    pub(super) async fn runtimes(&self) -> Result<Vec<String>, Error> {
        let ask = |docker: bollard::Docker| async move { docker.info().await };
        let runtimes = self.call("info", self.call_timeout, ask).await?.runtimes;
        let mut names: Vec<_> = runtimes.unwrap_or_default().into_keys().collect();
        names.sort_unstable();
        Ok(names)
    }

    /// What happened to containers since then and happens from now on, until the connection ends.
    pub(super) async fn events(
        &self,
        since: &str,
        actions: &[&str],
    ) -> Result<BoxStream<'static, Result<EventMessage, ApiError>>, Error> {
        let filters = HashMap::from([("type", vec!["container"]), ("event", actions.to_vec())]);
        let options = EventsOptionsBuilder::new().since(since).filters(&filters).build();
        let ask = |docker: bollard::Docker| async move { Ok(docker.events(Some(options)).boxed()) };
        Ok(self.call("events", self.call_timeout, ask).await?)
    }
}

/// They name a part of the client library, which nobody can mend.
const LIBRARY_WORDS: &str = "Error in the hyper legacy client: ";

fn of_this_host() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{}.000000000", since.saturating_sub(CLOCKS_APART).as_secs())
}

/// The error with what caused it; the outermost words alone say little.
pub(super) fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    let text = error.to_string();
    let text = text.strip_prefix(LIBRARY_WORDS).unwrap_or(&text).to_owned();
    causes.fold(text, |text, cause| {
        let cause = cause.to_string();
        if text.contains(&cause) { text } else { format!("{text}: {cause}") }
    })
}
