//! The floor: the same instance started by hand, without any proxy, until it takes a connection.
//! Nobody who waits for it can be faster than this.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    os::unix::process::CommandExt as _,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use bollard::{
    API_DEFAULT_VERSION, Docker,
    models::ContainerCreateBody,
    query_parameters::{RemoveContainerOptions, StopContainerOptions},
};
use futures::future::join_all;
use rustix::process::{Pid, Signal, kill_process_group};
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;

use crate::{client::Fault, reset::words};

/// An instance that does not listen after this long never will.
const START_MAX: Duration = Duration::from_secs(120);
/// For one call to the Docker daemon.
const CALL_MAX_S: u64 = 120;
/// Between two tries to connect, where several start at once: tight loops would take the CPU that
/// they wait for.
const TRY_EVERY: Duration = Duration::from_millis(1);

/// How an instance is started by hand.
#[derive(Clone, Debug, Default, clap::Args, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct FloorArgs {
    /// Start the instance by hand, too, and compare: `COMMAND {address}`, or `docker:IMAGE` for a
    /// container of a local image (removed at the end).
    #[arg(long, value_name = "COMMAND|docker:IMAGE")]
    pub floor: Option<String>,
    /// The port that the container listens on.
    #[arg(long, value_name = "PORT")]
    pub floor_port: Option<u16>,
    /// The Docker daemon, `unix:///path` or `tcp://ADDRESS:PORT`, if not that of DOCKER_HOST.
    #[arg(long, value_name = "ENDPOINT")]
    pub floor_docker: Option<String>,
    /// Pause the container between two samples instead of stopping it.
    #[arg(long)]
    pub floor_paused: bool,
}

/// An engine without a proxy.
#[derive(Debug)]
pub enum Floor {
    /// A process per start.
    Command(Vec<String>),
    /// Containers that exist.
    Docker {
        /// The daemon of `DOCKER_HOST`.
        docker: Docker,
        /// Their ids.
        containers: Vec<String>,
        /// Where they listen.
        port: u16,
        /// Paused or stopped in between.
        paused: bool,
    },
}

impl FloorArgs {
    /// Makes what is needed for `k` starts at once.
    pub async fn open(&self, k: usize) -> anyhow::Result<Option<Floor>> {
        let Some(floor) = &self.floor else { return Ok(None) };
        let Some(image) = floor.strip_prefix("docker:") else {
            let command = words(floor)?;
            if !command.iter().any(|word| word.contains("{address}")) {
                bail!("--floor '{floor}' has no {{address}} to listen on");
            }
            return Ok(Some(Floor::Command(command)));
        };
        let docker = match &self.floor_docker {
            None => Docker::connect_with_defaults(),
            Some(at) => match at.strip_prefix("unix://") {
                Some(path) => Docker::connect_with_unix(path, CALL_MAX_S, API_DEFAULT_VERSION),
                None => Docker::connect_with_http(at, CALL_MAX_S, API_DEFAULT_VERSION),
            },
        };
        let docker = docker.context("no Docker daemon")?;
        let mut containers = Vec::new();
        for _ in 0..k {
            let body = ContainerCreateBody {
                image: Some(image.to_owned()),
                labels: Some([("loadtest".to_owned(), std::process::id().to_string())].into()),
                ..ContainerCreateBody::default()
            };
            let created = docker.create_container(None, body).await;
            containers.push(created.with_context(|| format!("cannot create {image}"))?.id);
        }
        let port = self.floor_port.unwrap_or(8080);
        Ok(Some(Floor::Docker { docker, containers, port, paused: self.floor_paused }))
    }
}

impl Floor {
    /// Starts `k` at the same instant; how long each took until its first accepted connection.
    /// Then ends them, which is not measured.
    pub async fn measure(&self, k: usize) -> Vec<Result<Duration, Fault>> {
        join_all((0..k).map(|n| async move {
            let tight = k == 1;
            let measured = match self {
                Self::Command(command) => by_command(command, tight).await,
                Self::Docker { docker, containers, port, paused } => {
                    by_docker(docker, &containers[n % containers.len()], *port, *paused, tight)
                        .await
                }
            };
            measured.map_err(|error| Fault::Floor(format!("{error:#}")))
        }))
        .await
    }

    /// Removes what was made.
    pub async fn close(self) {
        let Self::Docker { docker, containers, .. } = self else { return };
        for container in containers {
            let force = RemoveContainerOptions { force: true, ..Default::default() };
            if let Err(error) = docker.remove_container(&container, Some(force)).await {
                eprintln!("the container {container} of the floor is left: {error}");
            }
        }
    }
}

/// A process group that does not outlive its measurement.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process_group(pid, Signal::KILL);
        }
        let _ = self.0.wait();
    }
}

async fn by_command(command: &[String], tight: bool) -> anyhow::Result<Duration> {
    let began = Instant::now();
    let address = free_port()?;
    let fill_in = |word: &String| word.replace("{address}", &address.to_string());
    let words: Vec<_> = command.iter().map(fill_in).collect();
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).process_group(0);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let child = command.spawn().with_context(|| format!("cannot start {}", words[0]))?;
    let mut group = Group(child);
    loop {
        if TcpStream::connect(address).await.is_ok() {
            let took = began.elapsed();
            // Ending it may take a while; no other start is to wait for that.
            tokio::task::spawn_blocking(move || drop(group)).await?;
            return Ok(took);
        }
        if let Some(status) = group.0.try_wait()? {
            bail!("{} ended before it listened: {status}", words[0]);
        }
        pause(began, tight).await?;
    }
}

async fn by_docker(
    docker: &Docker,
    container: &str,
    port: u16,
    paused: bool,
    tight: bool,
) -> anyhow::Result<Duration> {
    let state = docker.inspect_container(container, None).await?.state.unwrap_or_default();
    let began = Instant::now();
    if state.paused == Some(true) {
        docker.unpause_container(container).await?;
    } else {
        docker.start_container(container, None).await?;
    }
    let address = address_of(docker, container, port).await?;
    while TcpStream::connect(address).await.is_err() {
        pause(began, tight).await?;
    }
    let took = began.elapsed();
    if paused {
        docker.pause_container(container).await?;
    } else {
        let at_once = StopContainerOptions { t: Some(0), ..Default::default() };
        docker.stop_container(container, Some(at_once)).await?;
    }
    Ok(took)
}

async fn address_of(docker: &Docker, container: &str, port: u16) -> anyhow::Result<SocketAddr> {
    let seen = docker.inspect_container(container, None).await?;
    let networks = seen.network_settings.and_then(|settings| settings.networks);
    let mut addresses = networks.into_iter().flatten().filter_map(|(_, net)| net.ip_address);
    let ip = addresses.find(|ip| !ip.is_empty()).context("the container has no address")?;
    Ok(SocketAddr::new(ip.parse().context("the container's address is none")?, port))
}

async fn pause(began: Instant, tight: bool) -> anyhow::Result<()> {
    if START_MAX < began.elapsed() {
        bail!("it does not listen after {START_MAX:?}");
    }
    if tight {
        tokio::task::yield_now().await;
    } else {
        tokio::time::sleep(TRY_EVERY).await;
    }
    Ok(())
}

/// A port of 127.0.0.1 that nobody listens on.
pub fn free_port() -> std::io::Result<SocketAddr> {
    free_port_at(Ipv4Addr::LOCALHOST.into())
}

/// A port of an address of this machine that nobody listens on.
pub fn free_port_at(address: IpAddr) -> std::io::Result<SocketAddr> {
    TcpListener::bind((address, 0))?.local_addr()
}
