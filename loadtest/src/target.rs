//! Who is measured: a URL whose `{n}` is the session's number, and the promise that it is ours.
//! Sends nothing itself.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use url::{Host, Url};

use crate::tls;

/// The longest a name may take to resolve.
const RESOLVE_MAX: Duration = Duration::from_secs(10);

/// One server under test, as the command line describes it.
#[derive(Clone, Debug)]
pub struct Target {
    /// What the report calls it.
    pub name: String,
    /// The URL, `{n}` not yet filled in.
    pub url: String,
    /// Whose memory, CPU and so on is the server's.
    pub pids: Vec<i32>,
    host: Option<String>,
    connect: Option<String>,
    owned: bool,
    /// The address to come from, when it is not left to the kernel.
    pub from: Option<IpAddr>,
    tls: Option<Arc<rustls::ClientConfig>>,
    h2: bool,
}

/// How every target of a run is reached.
#[derive(Clone, Debug, Default, clap::Args, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Reach {
    /// Connect here instead of where the URL's host resolves to: `ADDRESS:PORT`.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub connect: Option<String>,
    /// Come from this address of this machine: limits by client see another client. All of
    /// 127.0.0.0/8 is there.
    #[arg(long, value_name = "ADDRESS")]
    pub from: Option<IpAddr>,
    /// The Host header (and the name in TLS), when it is not the URL's host; an n in braces is the
    /// session's number.
    #[arg(long, value_name = "NAME")]
    pub host: Option<String>,
    /// Speak HTTP/2: with prior knowledge to http://, by ALPN to https://.
    #[arg(long)]
    pub http2: bool,
    /// Trust this authority, a PEM file, instead of the machine's.
    #[arg(long, value_name = "FILE")]
    pub ca: Option<std::path::PathBuf>,
    /// Believe any certificate.
    #[arg(long)]
    pub insecure: bool,
    /// Measure a server that is not on this machine. Only ever do so to your own.
    #[arg(long)]
    pub i_own_this_target: bool,
}

/// Where one session of a target is.
#[derive(Clone, Debug)]
pub struct Place {
    /// The Host header.
    pub authority: String,
    /// The host alone: a session's name at the admin API.
    pub host: String,
    /// Path and query.
    pub path: String,
    /// Whom to resolve, and the port.
    pub dial: (String, u16),
}

impl Target {
    /// Reads a URL with an optional `NAME=` before it.
    pub fn new(text: &str, reach: &Reach, fallback: &str) -> anyhow::Result<Self> {
        let (name, url) = match text.split_once('=') {
            Some((name, url)) if !name.contains(['/', ':']) => (name, url),
            _ => (fallback, text),
        };
        ensure!(!url.is_empty(), "no URL is given");
        ensure!(
            name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') && !name.is_empty(),
            "`{name}` cannot name a server: letters, digits and -"
        );
        let tls = url.starts_with("https:").then(|| tls::config(reach)).transpose()?;
        let target = Self {
            name: name.to_owned(),
            url: url.to_owned(),
            pids: Vec::new(),
            host: reach.host.clone(),
            connect: reach.connect.clone(),
            owned: reach.i_own_this_target,
            from: reach.from,
            tls,
            h2: reach.http2,
        };
        target.place(0)?;
        Ok(target)
    }

    /// Where session `n` is.
    pub fn place(&self, n: usize) -> anyhow::Result<Place> {
        let fill_in = |text: &str| text.replace("{n}", &n.to_string());
        let text = fill_in(&self.url);
        let url = Url::parse(&text).with_context(|| format!("`{text}` is no URL"))?;
        ensure!(matches!(url.scheme(), "http" | "https"), "`{text}` is not http:// or https://");
        let own = url.host_str().with_context(|| format!("`{text}` has no host"))?.to_owned();
        let port = url.port_or_known_default().expect("http and https have one");
        let authority = match (&self.host, url.port()) {
            (Some(host), _) => fill_in(host),
            (None, Some(port)) => format!("{own}:{port}"),
            (None, None) => own.clone(),
        };
        let host = authority.rsplit_once(':').map_or(&*authority, |(host, _)| host).to_owned();
        let dial = match &self.connect {
            None => (own, port),
            Some(connect) => {
                let (host, port) = connect.rsplit_once(':').context("--connect has no port")?;
                (host.to_owned(), port.parse().context("--connect has no port")?)
            }
        };
        let path = url[url::Position::BeforePath..url::Position::AfterQuery].to_owned();
        Ok(Place { authority, host, path, dial })
    }

    /// The settings of TLS, when it is spoken.
    pub fn tls(&self) -> Option<&Arc<rustls::ClientConfig>> {
        self.tls.as_ref()
    }

    /// Whether HTTP/2 is asked for.
    pub fn h2(&self) -> bool {
        self.h2
    }

    /// The addresses behind a place. Refuses every one that is not this machine's, unless the
    /// caller owns the target: what is checked here is what is dialled.
    pub async fn resolve(&self, place: &Place) -> anyhow::Result<Vec<SocketAddr>> {
        resolve(&place.dial.0, place.dial.1, self.owned).await
    }

    /// Refuses early what `resolve` would refuse later.
    pub async fn check(&self) -> anyhow::Result<()> {
        self.resolve(&self.place(0)?).await.map(|_| ())
    }
}

/// The addresses of `host`: `localhost` and `*.localhost` are this machine, as in every browser.
pub async fn resolve(host: &str, port: u16, owned: bool) -> anyhow::Result<Vec<SocketAddr>> {
    let name = host.trim_end_matches('.').to_ascii_lowercase();
    if name == "localhost" || name.ends_with(".localhost") {
        return Ok(vec![([127, 0, 0, 1], port).into(), ([0, 0, 0, 0, 0, 0, 0, 1], port).into()]);
    }
    let found: Vec<SocketAddr> = match Host::parse(host) {
        Ok(Host::Ipv4(ip)) => vec![(ip, port).into()],
        Ok(Host::Ipv6(ip)) => vec![(ip, port).into()],
        _ => {
            let found = tokio::time::timeout(RESOLVE_MAX, tokio::net::lookup_host((host, port)));
            let found =
                found.await.with_context(|| format!("`{host}` takes too long to resolve"))?;
            found.with_context(|| format!("`{host}` does not resolve"))?.collect()
        }
    };
    ensure!(!found.is_empty(), "`{host}` has no address");
    if let Some(stranger) = found.iter().find(|address| !owned && !is_loopback(address)) {
        bail!(
            "{host} is {}, which is not this machine: load belongs on your own servers only. \
             If it is yours, say --i-own-this-target",
            stranger.ip()
        );
    }
    Ok(found)
}

fn is_loopback(address: &SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}
