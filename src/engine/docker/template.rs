//! From a route's template to the container that the daemon is asked for.
//!
//! Pure. What is not asked for is not given: no capability, no new privilege, no writable root,
//! no restart behind our back.

use std::{
    collections::HashMap,
    hash::Hasher,
    net::{IpAddr, Ipv4Addr},
};

use bollard::models::{
    ContainerCreateBody, HostConfig, HostConfigLogConfig, Mount, MountType, PortBinding,
    RestartPolicy, RestartPolicyNameEnum,
};
use fnv::FnvHasher;

use crate::{
    engine::{Error, filled},
    session::{Generation, SessionId, Spec},
};

/// Label: which edge it belongs to.
pub(super) const OWNER: &str = "dormouse.owner";
/// Label: the session's host.
pub(super) const SESSION: &str = "dormouse.session";
/// Label: the generation that created it.
pub(super) const GENERATION: &str = "dormouse.generation";
/// Label: of the template that it was made from.
pub(super) const FINGERPRINT: &str = "dormouse.spec";

/// What every engine tells an instance.
const SESSION_VARIABLE: &str = "DORMOUSE_SESSION";
/// The port that an instance listens on when its route names none.
const PORT: u16 = 8080;
/// A container's name, which is also one DNS name, is no longer.
const NAME_MAX: usize = 128;
/// A folder in memory that the route gives no size.
const TMPFS: &str = "size=256m,mode=1777";

/// The port that the instance listens on.
pub(super) fn port(spec: &Spec) -> u16 {
    spec.port.unwrap_or(PORT)
}

/// The name of the session's container: readable, and no other session of this owner has it.
pub(super) fn name(owner: &str, session: &SessionId) -> String {
    let wanted = format!("dormouse-{owner}-{}", session.host());
    let allowed = |c: char| if c.is_ascii_alphanumeric() || "_.-".contains(c) { c } else { '-' };
    let name: String = wanted.chars().map(allowed).take(NAME_MAX).collect();
    if name == wanted { name } else { format!("{name}-{}", digest(wanted.as_bytes())) }
}

/// What a session's container is made from.
#[derive(Debug)]
pub(super) struct Template<'a> {
    pub(super) owner: &'a str,
    pub(super) session: &'a SessionId,
    pub(super) spec: &'a Spec,
    pub(super) generation: Generation,
}

impl Template<'_> {
    pub(super) fn name(&self) -> String {
        name(self.owner, self.session)
    }

    /// Equal for equal templates, also after an update of Dormouse: containers outlive it.
    pub(super) fn fingerprint(&self) -> String {
        let Spec { image, command, env, port, memory, nano_cpus, pids, volumes, docker, .. } =
            self.spec;
        let limits = (memory, nano_cpus, pids);
        let network = (&docker.network, &docker.runtime, &docker.publish, port);
        let rights = (&docker.user, docker.read_only, &docker.tmpfs, &docker.cap_add);
        let all = (image, command, env, volumes, limits, network, rights);
        digest(&serde_json::to_vec(&all).expect("strings and numbers are JSON"))
    }

    /// The daemon's words for it.
    pub(super) fn body(&self) -> Result<ContainerCreateBody, Error> {
        let spec = self.spec;
        let image = spec.image.clone().ok_or_else(|| {
            Error::Invalid("an instance on docker needs `image`, or `docker.container`".to_owned())
        })?;
        let exposed = format!("{}/tcp", port(spec));
        let labels = [
            (OWNER, self.owner.to_owned()),
            (SESSION, self.session.host().to_owned()),
            (GENERATION, self.generation.to_string()),
            (FINGERPRINT, self.fingerprint()),
        ];
        let env = self.environment();
        let command: Vec<_> = spec.command.iter().map(|word| self.filled(word)).collect();
        Ok(ContainerCreateBody {
            image: Some(image),
            cmd: (!command.is_empty()).then_some(command),
            env: Some(env),
            user: spec.docker.user.clone(),
            exposed_ports: spec.docker.publish.as_ref().map(|_| vec![exposed.clone()]),
            // For those who stop it by other means: `docker stop`, a daemon that ends.
            stop_timeout: i64::try_from(spec.docker.grace.as_secs()).ok(),
            labels: Some(labels.map(|(key, value)| (key.to_owned(), value)).into()),
            host_config: Some(self.host_config(exposed)?),
            ..Default::default()
        })
    }

    /// The route's, and whose instance it is. Not the generation: a container has several lives.
    fn environment(&self) -> Vec<String> {
        let own = (!self.spec.env.contains_key(SESSION_VARIABLE))
            .then(|| format!("{SESSION_VARIABLE}={}", self.session.host()));
        let of_route = self.spec.env.iter();
        let of_route = of_route.map(|(key, value)| format!("{key}={}", self.filled(value)));
        of_route.chain(own).collect()
    }

    fn host_config(&self, exposed: String) -> Result<HostConfig, Error> {
        let (spec, docker) = (self.spec, &self.spec.docker);
        let log = [("max-size", "1m"), ("max-file", "2")];
        let published = docker.publish.as_deref().map(|on| publish(on, exposed)).transpose()?;
        Ok(HostConfig {
            memory: spec.memory.map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX)),
            nano_cpus: spec.nano_cpus.map(|nanos| i64::try_from(nanos).unwrap_or(i64::MAX)),
            pids_limit: spec.pids.map(i64::from),
            mounts: Some(
                spec.volumes.iter().map(|volume| mount(volume)).collect::<Result<_, _>>()?,
            ),
            network_mode: docker.network.clone(),
            runtime: docker.runtime.clone(),
            port_bindings: published,
            readonly_rootfs: Some(docker.read_only),
            tmpfs: Some(self.tmpfs()),
            cap_drop: Some(vec!["ALL".to_owned()]),
            cap_add: (!docker.cap_add.is_empty()).then(|| docker.cap_add.clone()),
            security_opt: Some(vec!["no-new-privileges".to_owned()]),
            // A daemon that restarts must not wake what sleeps.
            restart_policy: Some(RestartPolicy {
                name: Some(RestartPolicyNameEnum::NO),
                maximum_retry_count: None,
            }),
            log_config: Some(HostConfigLogConfig {
                typ: Some("json-file".to_owned()),
                config: Some(log.map(|(key, value)| (key.to_owned(), value.to_owned())).into()),
            }),
            ..Default::default()
        })
    }

    fn tmpfs(&self) -> HashMap<String, String> {
        let named = self.spec.docker.tmpfs.iter().map(|entry| match entry.split_once(':') {
            Some((folder, options)) => (folder.to_owned(), options.to_owned()),
            None => (entry.clone(), TMPFS.to_owned()),
        });
        // Hardly a program starts without a writable /tmp.
        let tmp = self.spec.docker.read_only.then(|| ("/tmp".to_owned(), TMPFS.to_owned()));
        tmp.into_iter().chain(named).collect()
    }

    fn filled(&self, text: &str) -> String {
        filled(text, Ipv4Addr::UNSPECIFIED.into(), port(self.spec))
    }

    /// What a daemon that repeats what it was given may give away.
    pub(super) fn secrets(&self) -> Vec<String> {
        self.spec.env.values().map(|value| self.filled(value)).collect()
    }
}

type Bindings = HashMap<String, Option<Vec<PortBinding>>>;

/// On this address of the host, with a port that the daemon draws.
fn publish(on: &str, exposed: String) -> Result<Bindings, Error> {
    let on = if on == "true" { "127.0.0.1" } else { on };
    on.parse::<IpAddr>().map_err(|_| {
        Error::Invalid(format!("`publish` is an address of the Docker host, not `{on}`"))
    })?;
    let binding = PortBinding { host_ip: Some(on.to_owned()), host_port: Some("0".to_owned()) };
    Ok([(exposed, Some(vec![binding]))].into())
}

/// A host folder must exist: a bind would have the daemon make it, owned by root.
fn mount(volume: &str) -> Result<Mount, Error> {
    let malformed =
        || Error::Invalid(format!("volume `{volume}` is not SOURCE:TARGET or SOURCE:TARGET:ro"));
    let mut parts = volume.split(':');
    let (Some(source), Some(target)) = (parts.next(), parts.next()) else {
        return Err(malformed());
    };
    let read_only = match (parts.next(), parts.next()) {
        (None | Some("rw"), None) => false,
        (Some("ro"), None) => true,
        _ => return Err(malformed()),
    };
    if source.is_empty() || !target.starts_with('/') {
        return Err(malformed());
    }
    let typ = if source.starts_with('/') { MountType::BIND } else { MountType::VOLUME };
    Ok(Mount {
        source: Some(source.to_owned()),
        target: Some(target.to_owned()),
        typ: Some(typ),
        read_only: Some(read_only),
        ..Default::default()
    })
}

fn digest(bytes: &[u8]) -> String {
    let mut hasher = FnvHasher::default();
    hasher.write(bytes);
    format!("{:016x}", hasher.finish())
}
