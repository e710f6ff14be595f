//! From a route's template to the Pod and the claims that the API server is asked for.
//!
//! Pure. What is not asked for is not given: no capability, no new privilege, no writable root, no
//! token of the API server, no restart behind our back.

use std::{collections::BTreeMap, fmt::Write as _, net::Ipv4Addr};

use k8s_openapi::{
    api::core::v1::{
        Capabilities, Container, ContainerPort, EmptyDirVolumeSource, EnvVar, LocalObjectReference,
        PersistentVolumeClaim, PersistentVolumeClaimSpec, PersistentVolumeClaimVolumeSource, Pod,
        PodSecurityContext, PodSpec, ResourceRequirements, SeccompProfile, SecurityContext, Volume,
        VolumeMount, VolumeResourceRequirements,
    },
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::ObjectMeta},
};
use sha2::{Digest as _, Sha256};

use crate::{
    engine::{Error, filled},
    session::{Generation, SessionId, Spec},
};

/// Label: which edge it belongs to.
pub(super) const OWNER: &str = "dormouse.owner";
/// Annotation: the session's host, which may be longer than a label's value.
pub(super) const SESSION: &str = "dormouse.session";
/// Annotation: the generation that created it.
pub(super) const GENERATION: &str = "dormouse.generation";
/// The instance's container in its Pod.
pub(super) const CONTAINER: &str = "instance";

/// What every engine tells an instance.
const SESSION_VARIABLE: &str = "DORMOUSE_SESSION";
/// The port that an instance listens on when its route names none.
const PORT: u16 = 8080;
/// A name that is also a host's name, and a label's value, is no longer.
const NAME_MAX: usize = 63;
/// A folder in memory that the route gives no size.
const TMPFS: &str = "256Mi";

/// The port that the instance listens on.
pub(super) fn port(spec: &Spec) -> u16 {
    spec.port.unwrap_or(PORT)
}

/// The name of the session's Pod: readable, and no other session of this owner has it.
pub(super) fn name(owner: &str, session: &SessionId) -> String {
    safe(&format!("dormouse-{owner}-{}", session.host()))
}

/// `wanted` where it is a DNS label, else what is left of it and a digest of all of it.
fn safe(wanted: &str) -> String {
    let allowed = |c: char| {
        let c = c.to_ascii_lowercase();
        if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '-' }
    };
    let name: String = wanted.chars().map(allowed).collect();
    let name = name.trim_matches('-');
    if name == wanted && name.len() <= NAME_MAX {
        return name.to_owned();
    }
    let digest = Sha256::digest(wanted.as_bytes());
    let digest = digest.iter().take(8).fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    });
    let kept: String = name.chars().take(NAME_MAX - 1 - digest.len()).collect();
    format!("{}-{digest}", kept.trim_end_matches('-'))
}

/// What a session's Pod is made from.
#[derive(Debug)]
pub(super) struct Template<'a> {
    pub(super) owner: &'a str,
    pub(super) session: &'a SessionId,
    pub(super) spec: &'a Spec,
    pub(super) generation: Generation,
}

impl Template<'_> {
    /// The Pod.
    pub(super) fn pod(&self) -> Result<Pod, Error> {
        let annotations = [
            (SESSION.to_owned(), self.session.host().to_owned()),
            (GENERATION.to_owned(), self.generation.to_string()),
        ];
        let metadata = ObjectMeta {
            name: Some(name(self.owner, self.session)),
            labels: Some(labels(self.owner)),
            annotations: Some(annotations.into()),
            ..ObjectMeta::default()
        };
        Ok(Pod { metadata, spec: Some(self.pod_spec()?), status: None })
    }

    fn pod_spec(&self) -> Result<PodSpec, Error> {
        let kubernetes = &self.spec.kubernetes;
        let (mut volumes, mut mounts) = (Vec::new(), Vec::new());
        for (index, volume) in self.spec.volumes.iter().enumerate() {
            let (source, target, read_only) = mounted(volume)?;
            let name = format!("volume-{index}");
            mounts.push(mount(&name, target, read_only));
            let claim = PersistentVolumeClaimVolumeSource {
                claim_name: safe(source),
                read_only: Some(read_only),
            };
            volumes.push(Volume {
                name,
                persistent_volume_claim: Some(claim),
                ..Volume::default()
            });
        }
        for (index, (folder, size)) in self.tmpfs()?.into_iter().enumerate() {
            let name = format!("memory-{index}");
            mounts.push(mount(&name, folder, false));
            let memory = EmptyDirVolumeSource {
                medium: Some("Memory".to_owned()),
                size_limit: Some(Quantity(size)),
            };
            volumes.push(Volume { name, empty_dir: Some(memory), ..Volume::default() });
        }
        let secret = |name: &String| LocalObjectReference { name: name.clone() };
        let pull_secrets: Vec<_> = kubernetes.pull_secrets.iter().map(secret).collect();
        Ok(PodSpec {
            containers: vec![self.container(mounts)?],
            volumes: Some(volumes),
            // What ended is this life's end: a new life is a new Pod.
            restart_policy: Some("Never".to_owned()),
            termination_grace_period_seconds: i64::try_from(kubernetes.grace.as_secs()).ok(),
            automount_service_account_token: Some(false),
            enable_service_links: Some(false),
            service_account_name: kubernetes.service_account.clone(),
            runtime_class_name: kubernetes.runtime_class.clone(),
            image_pull_secrets: (!pull_secrets.is_empty()).then_some(pull_secrets),
            node_selector: (!kubernetes.node_selector.is_empty())
                .then(|| kubernetes.node_selector.clone()),
            security_context: Some(PodSecurityContext {
                // So that a volume is writable for who runs as that group.
                fs_group: self.user()?.and_then(|(_, group)| group),
                seccomp_profile: Some(SeccompProfile {
                    type_: "RuntimeDefault".to_owned(),
                    localhost_profile: None,
                }),
                ..PodSecurityContext::default()
            }),
            ..PodSpec::default()
        })
    }

    fn container(&self, mounts: Vec<VolumeMount>) -> Result<Container, Error> {
        let spec = self.spec;
        let image = spec.image.clone().ok_or_else(|| {
            Error::Invalid("an instance on kubernetes needs `instance.image`".to_owned())
        })?;
        let user = self.user()?;
        let cap_add = &spec.kubernetes.cap_add;
        let args: Vec<_> = spec.command.iter().map(|word| self.filled(word)).collect();
        Ok(Container {
            name: CONTAINER.to_owned(),
            image: Some(image),
            args: (!args.is_empty()).then_some(args),
            env: Some(self.environment()),
            ports: Some(vec![ContainerPort {
                container_port: port(spec).into(),
                ..ContainerPort::default()
            }]),
            resources: Some(self.resources()),
            volume_mounts: Some(mounts),
            // The last lines of what failed, without a right to read logs.
            termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
            security_context: Some(SecurityContext {
                allow_privilege_escalation: Some(false),
                capabilities: Some(Capabilities {
                    drop: Some(vec!["ALL".to_owned()]),
                    add: (!cap_add.is_empty()).then(|| cap_add.clone()),
                }),
                privileged: Some(false),
                read_only_root_filesystem: Some(spec.kubernetes.read_only),
                run_as_user: user.map(|(user, _)| user),
                run_as_group: user.and_then(|(_, group)| group),
                run_as_non_root: user.map(|(user, _)| user != 0),
                ..SecurityContext::default()
            }),
            ..Container::default()
        })
    }

    /// Limits, which Kubernetes takes for requests too.
    fn resources(&self) -> ResourceRequirements {
        let memory = self.spec.memory.map(|bytes| ("memory", bytes.to_string()));
        let cpus =
            self.spec.nano_cpus.map(|nanos| ("cpu", format!("{}m", nanos.div_ceil(1_000_000))));
        let limits: BTreeMap<_, _> = memory
            .into_iter()
            .chain(cpus)
            .map(|(name, amount)| (name.to_owned(), Quantity(amount)))
            .collect();
        ResourceRequirements {
            limits: (!limits.is_empty()).then_some(limits),
            ..ResourceRequirements::default()
        }
    }

    /// The route's, and whose instance it is.
    fn environment(&self) -> Vec<EnvVar> {
        let variable = |name: &str, value: String| EnvVar {
            name: name.to_owned(),
            value: Some(escaped(&value)),
            value_from: None,
        };
        let own = (!self.spec.env.contains_key(SESSION_VARIABLE))
            .then(|| variable(SESSION_VARIABLE, self.session.host().to_owned()));
        let of_route = self.spec.env.iter().map(|(name, value)| variable(name, self.filled(value)));
        of_route.chain(own).collect()
    }

    /// What a server that repeats what it was given may give away.
    pub(super) fn secrets(&self) -> Vec<String> {
        let filled = self.spec.env.values().map(|value| self.filled(value));
        filled.flat_map(|value| [escaped(&value), value]).collect()
    }

    /// Folders in memory, and how large.
    fn tmpfs(&self) -> Result<Vec<(&str, String)>, Error> {
        let kubernetes = &self.spec.kubernetes;
        let named: Vec<_> = kubernetes
            .tmpfs
            .iter()
            .map(|entry| match entry.split_once(':') {
                Some((folder, options)) => Ok((folder.trim_end_matches('/'), size(options)?)),
                None => Ok((entry.trim_end_matches('/'), TMPFS.to_owned())),
            })
            .collect::<Result<_, Error>>()?;
        // Hardly a program starts without a writable /tmp.
        let wants_tmp = kubernetes.read_only && named.iter().all(|(folder, _)| *folder != "/tmp");
        let tmp = wants_tmp.then(|| ("/tmp", TMPFS.to_owned()));
        Ok(tmp.into_iter().chain(named).collect())
    }

    /// `UID[:GID]`.
    fn user(&self) -> Result<Option<(i64, Option<i64>)>, Error> {
        let Some(user) = &self.spec.kubernetes.user else { return Ok(None) };
        let id = |text: &str| text.parse::<u32>().map(i64::from).ok();
        let ids = match user.split_once(':') {
            None => id(user).map(|user| (user, None)),
            Some((user, group)) => id(user).zip(id(group)).map(|(user, group)| (user, Some(group))),
        };
        let wrong = || Error::Invalid(format!("`user` is UID or UID:GID in a Pod, not `{user}`"));
        ids.map(Some).ok_or_else(wrong)
    }

    /// The volumes that the route names, made where they do not exist. They outlive every Pod:
    /// nothing here deletes one.
    pub(super) fn claims(&self) -> Result<Vec<PersistentVolumeClaim>, Error> {
        let sources: Result<Vec<_>, _> = self
            .spec
            .volumes
            .iter()
            .map(|volume| mounted(volume).map(|(source, ..)| source))
            .collect();
        Ok(sources?.into_iter().map(|source| self.claim(source)).collect())
    }

    fn claim(&self, source: &str) -> PersistentVolumeClaim {
        let kubernetes = &self.spec.kubernetes;
        let size = Quantity(kubernetes.volume_size.to_string());
        let spec = PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadWriteOnce".to_owned()]),
            storage_class_name: kubernetes.storage_class.clone(),
            resources: Some(VolumeResourceRequirements {
                requests: Some([("storage".to_owned(), size)].into()),
                limits: None,
            }),
            ..PersistentVolumeClaimSpec::default()
        };
        let metadata = ObjectMeta {
            name: Some(safe(source)),
            labels: Some(labels(self.owner)),
            ..ObjectMeta::default()
        };
        PersistentVolumeClaim { metadata, spec: Some(spec), status: None }
    }

    fn filled(&self, text: &str) -> String {
        filled(text, Ipv4Addr::UNSPECIFIED.into(), port(self.spec))
    }
}

/// Kubernetes would expand `$(NAME)`; nobody else does.
fn escaped(value: &str) -> String {
    value.replace("$(", "$$(")
}

fn labels(owner: &str) -> BTreeMap<String, String> {
    let labels = [(OWNER, owner), ("app.kubernetes.io/managed-by", "dormouse")];
    labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
}

fn mount(name: &str, target: &str, read_only: bool) -> VolumeMount {
    VolumeMount {
        name: name.to_owned(),
        mount_path: target.to_owned(),
        read_only: Some(read_only),
        ..VolumeMount::default()
    }
}

/// Source, target and whether it is read-only.
fn mounted(volume: &str) -> Result<(&str, &str, bool), Error> {
    let parts: Vec<_> = volume.split(':').collect();
    let (source, target, read_only) = match parts[..] {
        [source, target] | [source, target, "rw"] => (source, target, false),
        [source, target, "ro"] => (source, target, true),
        _ => ("", "", false),
    };
    if source.is_empty() || !target.starts_with('/') {
        return Err(Error::Invalid(format!(
            "volume `{volume}` is not SOURCE:TARGET or SOURCE:TARGET:ro"
        )));
    }
    if source.starts_with('/') {
        return Err(Error::Invalid(format!(
            "volume `{volume}`: a Pod gets no folder of its node, name a volume"
        )));
    }
    Ok((source, target, read_only))
}

/// `size=16m`, as Docker takes it, in the words of Kubernetes.
fn size(options: &str) -> Result<String, Error> {
    let wrong = || Error::Invalid(format!("tmpfs option `{options}` is not such as `size=16m`"));
    let size = options.split(',').find_map(|option| option.strip_prefix("size="));
    let size = size.ok_or_else(wrong)?;
    let digits = size.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &size[digits.len()..] {
        "" => "",
        "k" | "K" => "Ki",
        "m" | "M" => "Mi",
        "g" | "G" => "Gi",
        _ => return Err(wrong()),
    };
    let amount: u64 = digits.parse().map_err(|_| wrong())?;
    Ok(format!("{amount}{unit}"))
}
