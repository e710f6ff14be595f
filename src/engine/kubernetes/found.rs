//! A Pod as the API server describes it, in our words.

use std::net::{IpAddr, SocketAddr};

use k8s_openapi::{
    api::core::v1::{ContainerState, ContainerStatus, Pod, PodStatus},
    apimachinery::pkg::apis::meta::v1::{OwnerReference, Time},
};

use super::template::{self, CONTAINER};
use crate::{
    engine::{Error, Health, Instance, InstanceState, Life, Started},
    session::{Address, Depth, Generation, SessionId, Spec},
};

/// A Pod.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) name: String,
    /// One life: a Pod of the same name is another.
    pub(super) uid: String,
    pub(super) status: Status,
    pod: Pod,
}

/// What it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    /// It waits for a node, its image, its volumes.
    Pending,
    /// Its container runs, or nobody knows: a node that is silent may run it still.
    Running,
    /// Its end was asked for; it may run until it is gone.
    Ending,
    /// Its container has ended.
    Ended,
}

impl Found {
    pub(super) fn new(pod: Pod) -> Self {
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        let status = match phase {
            _ if pod.metadata.deletion_timestamp.is_some() => Status::Ending,
            Some("Running" | "Unknown") => Status::Running,
            Some("Succeeded" | "Failed") => Status::Ended,
            _ => Status::Pending,
        };
        Self {
            name: pod.metadata.name.clone().unwrap_or_default(),
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            status,
            pod,
        }
    }

    pub(super) fn is_ours(&self, owner: &str, session: &SessionId) -> bool {
        let labels = self.pod.metadata.labels.as_ref();
        labels.and_then(|labels| labels.get(template::OWNER)).is_some_and(|label| label == owner)
            && self.session().as_ref() == Some(session)
    }

    /// What made it, and makes another when it is gone.
    pub(super) fn controller(&self) -> Option<&OwnerReference> {
        let owners = self.pod.metadata.owner_references.as_ref()?;
        owners.iter().find(|owner| owner.controller == Some(true))
    }

    /// Since when its container runs, and since when there is a Pod.
    pub(super) fn age(&self) -> (Option<&Time>, Option<&Time>) {
        let state = self.container().and_then(|container| container.state.as_ref());
        let running = state.and_then(|state| state.running.as_ref()?.started_at.as_ref());
        (running, self.pod.metadata.creation_timestamp.as_ref())
    }

    /// Whether a container of it may run: until its end is said, one may.
    pub(super) fn may_run(&self) -> bool {
        let phase = self.status().and_then(|status| status.phase.as_deref());
        !matches!(phase, Some("Succeeded" | "Failed"))
    }

    fn annotation(&self, key: &str) -> Option<&String> {
        self.pod.metadata.annotations.as_ref()?.get(key)
    }

    pub(super) fn session(&self) -> Option<SessionId> {
        self.annotation(template::SESSION).map(|host| SessionId::new(host.as_str()))
    }

    pub(super) fn life(&self) -> Life {
        Life::new(self.uid.as_str())
    }

    pub(super) fn instance(&self, session: SessionId) -> Instance {
        let generation = self.annotation(template::GENERATION);
        let generation = generation.and_then(|text| text.parse().ok()).unwrap_or_default();
        let state = match self.status {
            Status::Pending => InstanceState::Running(Health::Starting),
            Status::Running => InstanceState::Running(self.health()),
            // Nobody is sent to it any more.
            Status::Ending | Status::Ended => InstanceState::Asleep(Depth::Stopped),
        };
        let generation = Generation(generation);
        Instance { session, generation, life: Some(self.life()), state }
    }

    pub(super) fn health(&self) -> Health {
        let conditions = self.status().and_then(|status| status.conditions.as_ref());
        let ready = conditions.into_iter().flatten().find(|condition| condition.type_ == "Ready");
        let began = self.container().and_then(|container| container.started) != Some(false);
        match ready.map(|ready| ready.status.as_str()) {
            Some("True") => Health::Healthy,
            _ if began => Health::Unhealthy,
            _ => Health::Starting,
        }
    }

    fn status(&self) -> Option<&PodStatus> {
        self.pod.status.as_ref()
    }

    fn container(&self) -> Option<&ContainerStatus> {
        let statuses = self.status()?.container_statuses.as_ref()?;
        statuses.iter().find(|status| status.name == CONTAINER).or_else(|| statuses.first())
    }

    /// Where it listens, once its container runs and it has an address.
    pub(super) fn started(&self, spec: &Spec) -> Option<Started> {
        if self.status != Status::Running {
            return None;
        }
        let ip: IpAddr = self.status()?.pod_ip.as_ref()?.parse().ok()?;
        let address = Address::Tcp(SocketAddr::new(ip, template::port(spec)));
        Some(Started { address, life: self.life(), ran_already: false })
    }

    /// Why it will never run, as the kubelet says it; nothing for what it tries again.
    pub(super) fn stuck(&self) -> Option<Error> {
        let container = self.container()?;
        let waiting = container.state.as_ref()?.waiting.as_ref()?;
        let reason = waiting.reason.as_deref()?;
        let said = waiting.message.as_deref().unwrap_or("it does not say why");
        let image = &container.image;
        match reason {
            "ImagePullBackOff" | "ErrImageNeverPull" | "InvalidImageName" => {
                Some(Error::Missing(format!("image `{image}` cannot be pulled ({reason}): {said}")))
            }
            "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" => {
                Some(Error::Invalid(format!("pod `{}`: {reason}: {said}", self.name)))
            }
            "CrashLoopBackOff" => Some(Error::Failed(self.ended())),
            _ => None,
        }
    }

    /// What a Pod that is not up waits for.
    pub(super) fn waits_for(&self) -> Option<String> {
        let conditions = self.status().and_then(|status| status.conditions.as_ref());
        let unplaced = conditions
            .into_iter()
            .flatten()
            .find(|condition| condition.type_ == "PodScheduled" && condition.status == "False");
        if let Some(condition) = unplaced {
            let said = condition.message.as_deref().unwrap_or_default();
            return Some(format!("no node takes pod `{}`: {said}", self.name));
        }
        let waiting = self.container()?.state.as_ref()?.waiting.as_ref()?;
        let said = waiting.message.as_deref().unwrap_or_default();
        let reason = waiting.reason.as_deref().unwrap_or_default();
        Some(format!("pod `{}` waits: {reason} {said}", self.name).trim_end().to_owned())
    }

    /// How its container ended.
    pub(super) fn ended(&self) -> String {
        let terminated = self.container().and_then(|container| {
            let ended = |state: &Option<ContainerState>| state.as_ref()?.terminated.clone();
            ended(&container.state).or_else(|| ended(&container.last_state))
        });
        let of_pod =
            self.status().and_then(|status| status.message.as_deref().or(status.reason.as_deref()));
        match terminated {
            Some(end) => format!(
                "pod `{}` ended right after its start with exit code {}; its last lines: {}",
                self.name,
                end.exit_code,
                end.message.as_deref().unwrap_or_default().trim(),
            ),
            None => format!("pod `{}` ended: {}", self.name, of_pod.unwrap_or("nobody says why")),
        }
    }
}
