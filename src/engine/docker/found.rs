//! A container as the daemon describes it, in our words.
//!
//! The daemon's answer is taken with every field optional: Podman leaves out what Docker fills in.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use bollard::models::{
    ContainerInspectResponse, ContainerState, ContainerStateStatusEnum as Daemon, HealthStatusEnum,
    NetworkSettings,
};

use super::template;
use crate::{
    engine::{Error, Health, Instance, InstanceState, Life, Started, listeners::Listeners},
    session::{Address, Depth, Generation, SessionId, Spec},
};

/// A container.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) status: Status,
    pub(super) exit_code: i64,
    started_at: Option<String>,
    health: Health,
    labels: HashMap<String, String>,
    network: NetworkSettings,
    /// `bridge`, `host`, `container:ID` …
    network_mode: String,
    runtime: Option<String>,
    pid: Option<i32>,
}

/// What the daemon says that it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    Created,
    Running,
    Paused,
    Restarting,
    Stopping,
    Exited,
    Removing,
    Dead,
}

impl Found {
    pub(super) fn new(inspected: ContainerInspectResponse) -> Self {
        let state = inspected.state.unwrap_or_default();
        let host = inspected.host_config.unwrap_or_default();
        Self {
            id: inspected.id.unwrap_or_default(),
            name: inspected.name.unwrap_or_default().trim_start_matches('/').to_owned(),
            status: Status::of(&state),
            exit_code: state.exit_code.unwrap_or_default(),
            // The daemon's word for never.
            started_at: state.started_at.filter(|at| !at.is_empty() && !at.starts_with("0001-")),
            health: state.health.and_then(|health| health.status).map_or(
                Health::Unchecked,
                |status| match status {
                    HealthStatusEnum::STARTING => Health::Starting,
                    HealthStatusEnum::HEALTHY => Health::Healthy,
                    HealthStatusEnum::UNHEALTHY => Health::Unhealthy,
                    HealthStatusEnum::NONE | HealthStatusEnum::EMPTY => Health::Unchecked,
                },
            ),
            labels: inspected.config.and_then(|config| config.labels).unwrap_or_default(),
            network: inspected.network_settings.unwrap_or_default(),
            network_mode: host.network_mode.unwrap_or_default(),
            runtime: host.runtime,
            pid: state.pid.and_then(|pid| i32::try_from(pid).ok()).filter(|pid| 0 < *pid),
        }
    }

    pub(super) fn is_ours(&self, owner: &str, session: &SessionId) -> bool {
        self.labels.get(template::OWNER).is_some_and(|label| label == owner)
            && self.session().as_ref() == Some(session)
    }

    pub(super) fn session(&self) -> Option<SessionId> {
        self.labels.get(template::SESSION).map(|host| SessionId::new(host.as_str()))
    }

    /// Of the template that it was made from.
    pub(super) fn fingerprint(&self) -> Option<&String> {
        self.labels.get(template::FINGERPRINT)
    }

    pub(super) fn is_stopped(&self) -> bool {
        match self.status {
            Status::Created | Status::Exited | Status::Removing | Status::Dead => true,
            Status::Running | Status::Paused | Status::Restarting | Status::Stopping => false,
        }
    }

    /// The running life, or the last one; `None` for a container that never ran.
    pub(super) fn life(&self) -> Option<Life> {
        self.started_at.as_ref().map(|at| Life::new(format!("{}@{at}", self.id)))
    }

    pub(super) fn instance(&self, session: SessionId) -> Option<Instance> {
        let state = match self.status {
            Status::Running | Status::Restarting | Status::Stopping => {
                InstanceState::Running(self.health)
            }
            Status::Paused => InstanceState::Asleep(Depth::Paused),
            Status::Created | Status::Exited | Status::Dead => {
                InstanceState::Asleep(Depth::Stopped)
            }
            Status::Removing => return None,
        };
        let generation = self.labels.get(template::GENERATION);
        let generation = generation.and_then(|label| label.parse().ok()).unwrap_or_default();
        Some(Instance { session, generation: Generation(generation), life: self.life(), state })
    }

    pub(super) fn started(&self, spec: &Spec) -> Result<Started, Error> {
        let failed = |what: &str| Error::Failed(format!("container `{}` {what}", self.name));
        let life = self.life().ok_or_else(|| failed("runs and does not say since when"))?;
        let port = template::port(spec);
        let address = match &spec.docker.publish {
            Some(_) => self.published(port).map(Address::Forwarded),
            None => {
                let ip = self.own_address(spec.docker.network.as_deref());
                ip.map(|ip| Address::Tcp(SocketAddr::new(ip, port)))
            }
        };
        match (address, &spec.docker.publish, &spec.docker.network) {
            (Some(address), ..) => Ok(Started { address, life, ran_already: false }),
            (None, Some(_), _) => Err(Error::Invalid(format!(
                "container `{}` does not publish its port {port}",
                self.name
            ))),
            (None, None, Some(network)) => Err(Error::Invalid(format!(
                "container `{}` has no address on the network `{network}`",
                self.name
            ))),
            (None, None, None) if self.network_mode == "none" => Err(Error::Invalid(format!(
                "container `{}` has no network: docker network connect NETWORK {0}",
                self.name
            ))),
            (None, None, None) => Err(Error::Invalid(format!(
                "container `{}` has no address of its own: name its network, or publish",
                self.name
            ))),
        }
    }

    /// Where the daemon published it; the port is drawn anew at every start.
    fn published(&self, port: u16) -> Option<SocketAddr> {
        let bindings = self.network.ports.as_ref()?.get(&format!("{port}/tcp"))?.as_ref()?;
        bindings.iter().find_map(|binding| {
            let port = binding.host_port.as_ref()?.parse().ok().filter(|port| *port != 0)?;
            let ip = binding.host_ip.as_deref().unwrap_or_default().parse::<IpAddr>();
            let ip = ip.ok().filter(|ip| !ip.is_unspecified());
            Some(SocketAddr::new(ip.unwrap_or(Ipv4Addr::LOCALHOST.into()), port))
        })
    }

    /// The container whose network it lives in, as long as that one's is not known.
    pub(super) fn shares_network_of(&self) -> Option<&str> {
        self.network_mode.strip_prefix("container:")
    }

    /// It is reached where that one is.
    pub(super) fn lives_in(&mut self, host: Self) {
        self.network = host.network;
        self.network_mode = host.network_mode;
    }

    /// What listens in it, where nothing does at this port; `None` where that cannot be seen: from
    /// another host, in a sandbox with a network of its own, among what others have there as well.
    pub(super) fn listens_elsewhere(&self, port: u16) -> Option<String> {
        let is_alone = self.shares_network_of().is_none() && self.network_mode != "host";
        let pid = self.pid.filter(|pid| is_alone && self.is_at(*pid))?;
        let listeners = Listeners::in_namespace_of(pid).ok()?;
        let shows_all = matches!(self.runtime.as_deref(), Some("runc" | "crun"));
        if listeners.is_empty() && !shows_all {
            return None;
        }
        let ip = self.own_address(None).unwrap_or(Ipv4Addr::UNSPECIFIED.into());
        let elsewhere = listeners.instead_of(&Address::Tcp(SocketAddr::new(ip, port)))?;
        Some(format!("{elsewhere}: let it listen on 0.0.0.0, or set instance.port"))
    }

    /// Whether the daemon's number of its process is of this host, and ours to look at.
    fn is_at(&self, pid: i32) -> bool {
        let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup"));
        !self.id.is_empty() && groups.is_ok_and(|groups| groups.contains(&self.id))
    }

    /// On the named network, or on the default bridge, or on whichever it has joined.
    fn own_address(&self, network: Option<&str>) -> Option<IpAddr> {
        let networks = self.network.networks.as_ref()?;
        // That one's networks are here by now.
        let network = network.filter(|name| !name.starts_with("container:"));
        if network.is_none_or(|name| name == "host") && networks.contains_key("host") {
            return Some(Ipv4Addr::LOCALHOST.into());
        }
        let on = |name: &str| {
            let endpoint = networks.get(name)?;
            let addresses = [&endpoint.ip_address, &endpoint.global_ipv6_address];
            addresses.into_iter().flatten().find_map(|ip| ip.parse().ok())
        };
        if let Some(name) = network {
            return on(name);
        }
        let mut names: Vec<_> = networks.keys().map(String::as_str).collect();
        // In a fixed order, so that one container has one address.
        names.sort_unstable_by_key(|name| (*name != "bridge", *name));
        names.into_iter().find_map(on)
    }
}

impl Status {
    fn of(state: &ContainerState) -> Self {
        match state.status {
            Some(Daemon::CREATED) => Self::Created,
            Some(Daemon::RUNNING) => Self::Running,
            Some(Daemon::PAUSED) => Self::Paused,
            Some(Daemon::RESTARTING) => Self::Restarting,
            Some(Daemon::STOPPING) => Self::Stopping,
            Some(Daemon::REMOVING) => Self::Removing,
            Some(Daemon::EXITED) => Self::Exited,
            Some(Daemon::DEAD) => Self::Dead,
            Some(Daemon::EMPTY) | None if state.paused == Some(true) => Self::Paused,
            Some(Daemon::EMPTY) | None if state.running == Some(true) => Self::Running,
            Some(Daemon::EMPTY) | None => Self::Exited,
        }
    }
}

/// The container that a life was of.
pub(super) fn container_of(life: &Life) -> &str {
    life.as_str().split_once('@').map_or(life.as_str(), |(id, _)| id)
}
