//! `dormouse.toml`: the edge's own settings, every one with a default that works.
//!
//! [`Config`] is the checked form. Opens no socket and talks to no engine.

mod check;
pub(crate) mod file;

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    path::{self, Path, PathBuf},
    time::Duration,
};

pub use file::{Limits, Shutdown, Timeouts};

use crate::route::{EngineKind, Engines, RouteError, read_file};

/// Where settings are looked for when nobody says where.
pub const DEFAULT_FILE: &str = "dormouse.toml";

/// The edge's settings. Every path in it is absolute.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The file that they came from; `None` for the defaults.
    pub file: Option<PathBuf>,
    /// The folder that relative paths start from: the file's, or the current one.
    pub base: PathBuf,
    /// Where to listen.
    pub listen: Listen,
    /// The admin API.
    pub admin: Admin,
    /// Folders.
    pub paths: Paths,
    /// The most of everything.
    pub limits: Limits,
    /// How long to wait for others.
    pub timeouts: Timeouts,
    /// How to end.
    pub shutdown: Shutdown,
    /// What runs the instances, by name.
    pub engines: BTreeMap<String, EngineConfig>,
    /// The most instances at once, of the engines that have such a limit.
    pub running: BTreeMap<String, u32>,
}

/// `[listen]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// Where requests come in: HTTP/1.1 and cleartext HTTP/2. Not empty.
    pub http: Vec<SocketAddr>,
    /// Where the admin API listens.
    pub admin: AdminAddress,
}

/// Where the admin API listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminAddress {
    /// TCP.
    Tcp(SocketAddr),
    /// A unix socket's path.
    Unix(PathBuf),
}

/// `[admin]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// A file with the token that the API asks for; always there when it listens beyond loopback.
    pub token_file: Option<PathBuf>,
}

/// `[paths]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// The route files.
    pub routes: PathBuf,
    /// The certificates.
    pub certs: PathBuf,
    /// What Dormouse itself keeps.
    pub state: PathBuf,
}

/// `[engines.NAME]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EngineConfig {
    /// A command per session on this machine.
    Process,
    /// Containers of a Docker daemon.
    Docker(DockerConfig),
}

/// `[engines.NAME]` with `kind = "docker"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DockerConfig {
    /// Where the daemon is.
    pub endpoint: DockerEndpoint,
    /// The label value that says whose the containers are.
    pub owner: String,
    /// The most time for one call to the daemon.
    pub call_timeout: Duration,
}

/// Where a Docker daemon is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DockerEndpoint {
    /// A unix socket's path.
    Unix(PathBuf),
    /// `HOST:PORT`.
    Tcp {
        /// `HOST:PORT`.
        address: String,
        /// TLS with certificates on both sides, or none.
        tls: Option<DockerTls>,
    },
    /// `ssh://[USER@]HOST[:PORT]`, whole.
    Ssh(String),
}

/// PEM files for a Docker daemon behind TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DockerTls {
    /// The authority that signed the daemon's certificate.
    pub ca: PathBuf,
    /// Our certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Config {
    /// The settings in `path`; without a path, those in `./dormouse.toml`, or the defaults if
    /// there is no such file.
    pub fn load(path: Option<&Path>) -> Result<Self, Vec<RouteError>> {
        let file = path.unwrap_or(Path::new(DEFAULT_FILE));
        let broken = |error: RouteError| vec![error];
        let file = path::absolute(file).map_err(|error| broken(no_folder(file, &error)))?;
        match (read_file(&file).map_err(broken)?, path) {
            (Some(text), _) => Self::parse(&file, &text, environment),
            (None, Some(_)) => {
                Err(broken(RouteError::of_file(&file, "there is no such file".to_owned())))
            }
            (None, None) => {
                let mut config = Self::parse(&file, "", environment)?;
                config.file = None;
                Ok(config)
            }
        }
    }

    /// The settings in `text`, which is the content of `file` (an absolute path).
    ///
    /// `environment` gives `DOCKER_HOST` and its like, where an engine names no endpoint.
    pub fn parse(
        file: &Path,
        text: &str,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, Vec<RouteError>> {
        check::parse(file, text, &environment)
    }

    /// The engines' names and kinds: what route files are checked against.
    pub fn engine_kinds(&self) -> Engines {
        self.engines.iter().map(|(name, engine)| (name.clone(), engine.kind())).collect()
    }
}

impl EngineConfig {
    /// Which kind it is.
    pub fn kind(&self) -> EngineKind {
        match self {
            Self::Process => EngineKind::Process,
            Self::Docker(_) => EngineKind::Docker,
        }
    }
}

fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn no_folder(file: &Path, error: &io::Error) -> RouteError {
    RouteError::of_file(file, format!("the current folder cannot be found: {error}"))
}
