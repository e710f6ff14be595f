//! `dormouse.toml`: the edge's own settings, every one with a default that works.
//!
//! [`Config`] is the checked form. Opens no socket and talks to no engine.

pub(crate) mod acme;
mod check;
mod engines;
pub(crate) mod file;
mod http;
mod listen;

use std::{
    collections::{BTreeMap, BTreeSet},
    io, iter,
    net::{IpAddr, SocketAddr},
    path::{self, Path, PathBuf},
    time::Duration,
};

use ipnet::IpNet;
use serde_json::Value;

pub use {
    acme::{Acme, ChallengeWord, Dns, DnsBy, DnsUpdate, OnDemand, TsigWord},
    engines::{
        CommandConfig, DockerConfig, DockerEndpoint, DockerTls, EngineConfig, FirecrackerConfig,
        FlyConfig, FlyPublic, JailConfig, KubernetesConfig, QemuConfig, Swap,
    },
    file::{Limits, Shutdown, Timeouts},
    http::{GetBody, Http2, Underscores},
    listen::{Tls, TlsVersion},
};

use crate::route::{Engines, RouteError, read_file};

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
    /// TLS with clients.
    pub tls: Tls,
    /// The admin API.
    pub admin: Admin,
    /// Folders.
    pub paths: Paths,
    /// The most of everything.
    pub limits: Limits,
    /// What one HTTP/2 connection may cost.
    pub http2: Http2,
    /// How long to wait for others.
    pub timeouts: Timeouts,
    /// How to end.
    pub shutdown: Shutdown,
    /// Signed links.
    pub links: Links,
    /// The access log's file, or `-` for standard output.
    pub access_log: Option<PathBuf>,
    /// Certificates that come by themselves; `None`: they do not.
    pub acme: Option<Acme>,
    /// What runs the instances, by name.
    pub engines: BTreeMap<String, EngineConfig>,
    /// Whether `docker` is there although nobody wrote it: it is asked nothing before a route is on it.
    pub docker_is_implied: bool,
    /// The most instances at once, of the engines that have such a limit.
    pub running: BTreeMap<String, u32>,
    /// Every key with its value, as the file has it or by default.
    written: Value,
    swaps: Vec<Swap>,
}

/// `[listen]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// Where requests come in without TLS: HTTP/1.1 and cleartext HTTP/2.
    pub http: Vec<Entrance>,
    /// Where requests come in over TLS: HTTP/1.1 and HTTP/2.
    pub https: Vec<Entrance>,
    /// Whose word is taken for who the client is.
    pub trusted_proxies: Networks,
    /// Where the admin API listens.
    pub admin: AdminAddress,
}

/// An address where requests come in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entrance {
    /// The address.
    pub address: SocketAddr,
    /// Whether connections begin with a PROXY protocol header.
    pub proxy_protocol: bool,
    /// Whether clients are asked for a certificate.
    pub client_auth: Option<ClientAuth>,
}

/// Which certificates clients may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientAuth {
    /// The authorities, a PEM file.
    pub ca: PathBuf,
    /// Whether a client without a certificate is refused.
    pub required: bool,
}

/// A set of addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Networks(pub Vec<IpNet>);

impl Networks {
    /// Whether the address is in one of them. An IPv4 address in IPv6's clothes is the IPv4 one.
    pub fn contain(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }
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

/// `[links]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Links {
    /// The files of the keys, by id.
    pub keys: BTreeMap<String, PathBuf>,
    /// The id of the one that signs; `None` where none is configured.
    pub current: Option<String>,
    /// The longest that a link may count.
    pub expires_max: Duration,
}

impl Default for Links {
    fn default() -> Self {
        let expires_max = Duration::from_secs(30 * 24 * 60 * 60);
        Self { keys: BTreeMap::new(), current: None, expires_max }
    }
}

impl Config {
    /// The settings in `path`; without a path, those in `./dormouse.toml`, or the defaults if
    /// there is no such file.
    pub fn load(path: Option<&Path>) -> Result<Self, Vec<RouteError>> {
        Self::load_with(path, &[])
    }

    /// The same, with engines that are of another kind than the file says.
    pub fn load_with(path: Option<&Path>, swaps: &[Swap]) -> Result<Self, Vec<RouteError>> {
        let file = path.unwrap_or(Path::new(DEFAULT_FILE));
        let broken = |error: RouteError| vec![error];
        let file = path::absolute(file).map_err(|error| broken(no_folder(file, &error)))?;
        match (read_file(&file).map_err(broken)?, path) {
            (Some(text), _) => check::parse(&file, &text, &environment, swaps),
            (None, Some(_)) => {
                Err(broken(RouteError::of_file(&file, "there is no such file".to_owned())))
            }
            (None, None) => {
                let mut config = check::parse(&file, "", &environment, swaps)?;
                config.file = None;
                Ok(config)
            }
        }
    }

    /// The same file as it is now.
    pub fn reread(&self) -> Result<Self, Vec<RouteError>> {
        let default = self.base.join(DEFAULT_FILE);
        match &self.file {
            None if !default.exists() => Ok(self.clone()),
            file => Self::load_with(Some(file.as_deref().unwrap_or(&default)), &self.swaps),
        }
    }

    /// The keys that say something else in `other`, as they are written in the file.
    pub fn different_keys(&self, other: &Self) -> Vec<String> {
        let mut keys = Vec::new();
        compare(&self.written, &other.written, "", &mut keys);
        keys
    }

    /// The settings in `text`, which is the content of `file` (an absolute path).
    ///
    /// `environment` gives `DOCKER_HOST` and its like, where an engine names no endpoint.
    pub fn parse(
        file: &Path,
        text: &str,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, Vec<RouteError>> {
        check::parse(file, text, &environment, &[])
    }

    /// The port that a redirect to HTTPS names.
    pub fn redirect_port(&self) -> u16 {
        let listens = self.listen.https.first().map(|entrance| entrance.address.port());
        self.tls.redirect_port.or(listens).unwrap_or(443)
    }

    /// Where certificates are read from, the operator's first.
    pub fn cert_folders(&self) -> Vec<PathBuf> {
        let acme = self.acme.as_ref().map(|acme| acme.folder(&self.paths.state).join("certs"));
        iter::once(self.paths.certs.clone()).chain(acme).collect()
    }

    /// The engines' names and kinds: what route files are checked against.
    pub fn engine_kinds(&self) -> Engines {
        self.engines.iter().map(|(name, engine)| (name.clone(), engine.kind())).collect()
    }
}

fn compare(one: &Value, other: &Value, path: &str, keys: &mut Vec<String>) {
    let (Value::Object(one), Value::Object(other)) = (one, other) else {
        if one != other {
            keys.push(path.to_owned());
        }
        return;
    };
    let names: BTreeSet<&String> = one.keys().chain(other.keys()).collect();
    for name in names {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        let value = |of: &serde_json::Map<String, Value>| of.get(name).cloned().unwrap_or_default();
        compare(&value(one), &value(other), &path, keys);
    }
}

fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn no_folder(file: &Path, error: &io::Error) -> RouteError {
    RouteError::of_file(file, format!("the current folder cannot be found: {error}"))
}
