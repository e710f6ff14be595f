//! The other end of the admin API: where it is, the token it wants, and what its answers mean as
//! exit codes.

use std::{
    env,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use clap::Args;
use reqwest::{Method, StatusCode, Url, redirect::Policy};
use serde::Deserialize;
use serde_json::Value;

use super::exit::{Exit, Failure, plain};
use crate::{
    admin::{Token, TokenError},
    config::{AdminAddress, Config},
    route::{Position, RouteError, text::Text as _},
};

const TOKEN_VARIABLE: &str = "DORMOUSE_ADMIN_TOKEN";
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// For every request that does not wait for a session.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// Far more than the longest list.
const BODY_MAX: usize = 256 * 1024 * 1024;

/// Which edge.
#[derive(Clone, Debug, Args)]
pub(super) struct Target {
    /// The edge's settings, which say where its admin API is [default: ./dormouse.toml].
    #[arg(long, value_name = "PATH")]
    pub(super) config: Option<PathBuf>,
    /// The admin API itself: ADDRESS:PORT or unix:/PATH. Without it, [listen] admin of the
    /// settings counts. The token comes from DORMOUSE_ADMIN_TOKEN, or from [admin] token_file of
    /// the settings, where the address is theirs too or --config is given.
    #[arg(long, value_name = "ADDRESS", env = "DORMOUSE_ADMIN", value_parser = AdminAddress::parse)]
    pub(super) admin: Option<AdminAddress>,
    /// Print what the admin API answers as it is: JSON, problems too.
    #[arg(long)]
    pub(super) json: bool,
}

/// A client of one edge's admin API.
#[derive(Debug)]
pub(super) struct Client {
    http: reqwest::Client,
    base: Url,
    address: AdminAddress,
    token: Option<Token>,
    json: bool,
}

/// What the API answered, if it was no problem.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: Value,
}

/// What we read of a problem (RFC 9457).
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Problem {
    #[serde(rename = "type")]
    kind: String,
    title: String,
    detail: String,
    /// Of a reload.
    errors: Vec<FileError>,
}

/// A [`RouteError`] as the API writes it.
#[derive(Debug, Deserialize)]
pub(super) struct FileError {
    file: PathBuf,
    line: Option<usize>,
    column: Option<usize>,
    message: String,
    hint: Option<String>,
}

impl From<FileError> for RouteError {
    fn from(error: FileError) -> Self {
        let FileError { file, line, column, message, hint } = error;
        let at = line.zip(column).map(|(line, column)| Position { line, column });
        Self { file, at, message, hint }
    }
}

impl Target {
    pub(super) fn client(&self) -> Result<Client, Failure> {
        let from_environment = env::var(TOKEN_VARIABLE).ok().filter(|token| !token.is_empty());
        let token = from_environment.map(|token| token.parse()).transpose();
        let token = token.map_err(|error: TokenError| wrong_token(TOKEN_VARIABLE, &error))?;
        let (address, config) = match (&self.admin, &self.config) {
            (Some(address), None) => (address.clone(), None),
            (named, file) => {
                let config = Config::load(file.as_deref());
                let config = config.map_err(|errors| Failure::of_files(&errors))?;
                let address = named.clone().unwrap_or_else(|| config.listen.admin.clone());
                (address, Some(config))
            }
        };
        let token = match (token, config) {
            (None, Some(config)) => token_of(&config)?,
            (token, _) => token,
        };
        Client::new(address, token, self.json)
    }
}

/// The token that the API of this edge asks for.
fn token_of(config: &Config) -> Result<Option<Token>, Failure> {
    let Some(file) = &config.admin.token_file else { return Ok(None) };
    let token = Token::read(file);
    token.map(Some).map_err(|error| wrong_token(&file.display().to_string(), &error))
}

fn wrong_token(origin: &str, error: &TokenError) -> Failure {
    Failure::new(Exit::Usage, format!("{origin}: {error}"))
}

impl Client {
    fn new(address: AdminAddress, token: Option<Token>, json: bool) -> Result<Self, Failure> {
        let builder = reqwest::Client::builder()
            .no_proxy()
            .redirect(Policy::none())
            .connect_timeout(CONNECT_MAX)
            .user_agent(concat!("dormouse/", env!("CARGO_PKG_VERSION")));
        let (builder, base) = match &address {
            AdminAddress::Tcp(socket) => (builder, format!("http://{}/", reachable(*socket))),
            AdminAddress::Unix(path) => {
                (builder.unix_socket(path.as_path()), "http://localhost/".to_owned())
            }
        };
        let impossible = |error: &dyn std::fmt::Display| Failure::new(Exit::Failed, error);
        let http = builder.build().map_err(|error| impossible(&error))?;
        let base = Url::parse(&base).map_err(|error| impossible(&error))?;
        Ok(Self { http, base, address, token, json })
    }

    /// One request. `path` is made of segments that need no escaping by the caller.
    pub(super) async fn ask(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, &str)],
        patience: Option<Duration>,
    ) -> Result<Answer, Failure> {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.clear().extend(path);
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let mut request = self.http.request(method, url);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token.reveal());
        }
        if let Some(patience) = patience {
            request = request.timeout(patience);
        }
        let mut response = request.send().await.map_err(|error| self.unreachable(&error))?;
        let status = response.status();
        let mut body = Vec::new();
        while let Some(part) = response.chunk().await.map_err(|error| self.unreachable(&error))? {
            if BODY_MAX < body.len() + part.len() {
                return Err(self.stranger());
            }
            body.extend_from_slice(&part);
        }
        let body: Value = serde_json::from_slice(&body).map_err(|_| self.stranger())?;
        if status.is_success() {
            return Ok(Answer { status, body });
        }
        let mut failure = refused(status, &body);
        failure.data = self.json.then_some(body);
        Err(failure)
    }

    pub(super) async fn get(
        &self,
        path: &[&str],
        query: &[(&str, &str)],
    ) -> Result<Answer, Failure> {
        self.ask(Method::GET, path, query, Some(ANSWER_MAX)).await
    }

    pub(super) async fn post(
        &self,
        path: &[&str],
        query: &[(&str, &str)],
    ) -> Result<Answer, Failure> {
        self.ask(Method::POST, path, query, Some(ANSWER_MAX)).await
    }

    fn unreachable(&self, error: &reqwest::Error) -> Failure {
        let mut cause: &dyn std::error::Error = error;
        while let Some(deeper) = cause.source() {
            cause = deeper;
        }
        let text = format!(
            "the edge's admin API at {} cannot be reached: {cause}\n    hint: is `dormouse run` \
             up? --config or --admin says where to look",
            self.address
        );
        Failure::new(Exit::Unreachable, text)
    }

    fn stranger(&self) -> Failure {
        let text = format!("what answers at {} is no admin API of Dormouse", self.address);
        Failure::new(Exit::Unreachable, text)
    }
}

/// What the API refused, and what that means for a script.
fn refused(status: StatusCode, body: &Value) -> Failure {
    let problem = Problem::deserialize(body).unwrap_or_default();
    let reason = problem.kind.strip_prefix("urn:dormouse:").unwrap_or_default();
    let exit = match (status, reason) {
        (StatusCode::NOT_FOUND, _) => Exit::Unknown,
        (StatusCode::CONFLICT, _) => Exit::Refused,
        (StatusCode::SERVICE_UNAVAILABLE, "wake_failed") => Exit::Failed,
        (StatusCode::SERVICE_UNAVAILABLE, _) => Exit::Refused,
        (status, _) if status.is_client_error() => Exit::Usage,
        _ => Exit::Failed,
    };
    let mut text = match (problem.title.as_str(), problem.detail.as_str()) {
        ("", _) => format!("the edge answered {status}"),
        (title, "") => plain(title),
        (title, detail) => format!("{}: {}", plain(title), plain(detail)),
    };
    if !problem.errors.is_empty() {
        let errors: Vec<_> = problem.errors.into_iter().map(RouteError::from).collect();
        let mut failure = Failure::of_files(&errors);
        failure.text += &format!("\nerror: {text}");
        return failure;
    }
    if status == StatusCode::UNAUTHORIZED {
        text += &format!("\n    hint: set {TOKEN_VARIABLE}, or --config to the edge's settings");
    }
    Failure { reason: Some(reason.to_owned()), ..Failure::new(exit, text) }
}

/// Who listens on every address is asked on loopback.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}
