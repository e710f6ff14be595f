//! A Deployment or StatefulSet that exists, in our words: which one a route names, whose session it
//! is, and which of its Pods the session is.

use std::{fmt, str::FromStr, time::Duration};

use k8s_openapi::{
    api::apps::v1::{Deployment, StatefulSet},
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};
use kube::{
    api::{ApiResource, DynamicObject},
    core::Selector,
};
use serde_json::Value;

use super::{
    found::{Found, Status},
    template,
};
use crate::{
    engine::{Error, Health, Instance, InstanceState, Life},
    session::{Depth, Generation, SessionId},
};

/// From TERM to KILL, where a Pod's template says nothing.
const GRACE: u64 = 30;

/// What can be scaled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Deployment,
    StatefulSet,
}

impl Kind {
    pub(super) const ALL: [Self; 2] = [Self::Deployment, Self::StatefulSet];

    fn word(self) -> &'static str {
        match self {
            Self::Deployment => "deployment",
            Self::StatefulSet => "statefulset",
        }
    }

    pub(super) fn resource(self) -> ApiResource {
        match self {
            Self::Deployment => ApiResource::erase::<Deployment>(&()),
            Self::StatefulSet => ApiResource::erase::<StatefulSet>(&()),
        }
    }
}

/// `deployment/NAME` or `statefulset/NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reference {
    pub(super) kind: Kind,
    pub(super) name: String,
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong =
            || Error::Invalid(format!("`{text}` is not `deployment/NAME` or `statefulset/NAME`"));
        let (kind, name) = text.split_once('/').ok_or_else(wrong)?;
        let kind = Kind::ALL.into_iter().find(|known| known.word() == kind).ok_or_else(wrong)?;
        // It becomes part of a path.
        let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
        let is_edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        let edges = is_edge(name.chars().next()) && is_edge(name.chars().last());
        if !edges || name.len() > 253 || !name.chars().all(is_name) {
            return Err(wrong());
        }
        Ok(Self { kind, name: name.to_owned() })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind.word(), self.name)
    }
}

/// One life of a workload's session: the Pod that it was. No Pod that was is without a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) reference: Reference,
    /// Name and uid; none where a workload is up and has no Pod yet.
    pub(super) pod: Option<(String, String)>,
}

impl Mark {
    /// `None` for the life of a Pod that was made from a template.
    pub(super) fn read(life: &Life) -> Option<Self> {
        let (reference, pod) = life.as_str().split_once('@')?;
        let pod = pod.split_once('/').map(|(name, uid)| (name.to_owned(), uid.to_owned()));
        Some(Self { reference: reference.parse().ok()?, pod })
    }

    pub(super) fn of(reference: &Reference, pod: Option<&Found>) -> Life {
        let pod = pod.map(|pod| format!("{}/{}", pod.name, pod.uid)).unwrap_or_default();
        Life::new(format!("{reference}@{pod}"))
    }
}

/// A Deployment or StatefulSet.
#[derive(Clone, Debug)]
pub(super) struct Workload {
    pub(super) reference: Reference,
    pub(super) uid: String,
    pub(super) version: String,
    /// How many Pods are wanted.
    pub(super) replicas: u64,
    /// Its end was asked for.
    pub(super) is_going: bool,
    object: DynamicObject,
}

impl Workload {
    pub(super) fn new(kind: Kind, object: DynamicObject) -> Self {
        let metadata = object.metadata.clone();
        Self {
            reference: Reference { kind, name: metadata.name.unwrap_or_default() },
            uid: metadata.uid.unwrap_or_default(),
            version: metadata.resource_version.unwrap_or_default(),
            // A server that leaves it out means its default.
            replicas: object.data["spec"]["replicas"].as_u64().unwrap_or(1),
            is_going: metadata.deletion_timestamp.is_some(),
            object,
        }
    }

    fn label(&self) -> Option<&str> {
        Some(self.object.metadata.labels.as_ref()?.get(template::OWNER)?)
    }

    fn annotation(&self, key: &str) -> Option<&str> {
        Some(self.object.metadata.annotations.as_ref()?.get(key)?)
    }

    pub(super) fn session(&self) -> Option<SessionId> {
        self.annotation(template::SESSION).map(SessionId::new)
    }

    pub(super) fn is_ours(&self, owner: &str, session: &SessionId) -> bool {
        self.label() == Some(owner) && self.session().as_ref() == Some(session)
    }

    /// Whether it carries the marks of any edge.
    pub(super) fn is_marked(&self) -> bool {
        self.label().is_some()
    }

    pub(super) fn whose(&self) -> String {
        let session = self.annotation(template::SESSION).unwrap_or("another");
        format!("session `{session}` of the edge `{}`", self.label().unwrap_or_default())
    }

    /// Its Pods' labels, as a list is asked for; which are its own their owners say.
    pub(super) fn selector(&self) -> Result<String, Error> {
        let selector = self.object.data["spec"]["selector"].clone();
        let selector: Result<LabelSelector, _> = serde_json::from_value(selector);
        let selector = selector.ok().and_then(|selector| Selector::try_from(selector).ok());
        // One that selects everything would take in Pods of others.
        let selector = selector.filter(|selector| !selector.selects_all());
        let selector = selector.map(|selector| selector.to_string());
        selector.ok_or_else(|| {
            Error::Invalid(format!("{} has no selector that selects Pods", self.reference))
        })
    }

    /// How long its Pods may take to end.
    pub(super) fn grace(&self) -> Duration {
        let of_pod = &self.object.data["spec"]["template"]["spec"];
        let seconds = of_pod["terminationGracePeriodSeconds"].as_u64().unwrap_or(GRACE);
        // A day is longer than anybody waits for a sleep; a template may say more.
        Duration::from_secs(seconds.min(86_400))
    }

    /// Whether its controller has seen how many Pods are wanted, and made that none.
    pub(super) fn is_obeyed(&self) -> bool {
        let (seen, has) = (&self.object.data["status"], self.object.metadata.generation);
        seen["observedGeneration"].as_i64() >= has && seen["replicas"].as_u64().unwrap_or(0) == 0
    }

    /// Why it has no Pod, as its controller says it: a quota, an admission that refuses.
    pub(super) fn refusal(&self) -> Option<&str> {
        let conditions = self.object.data["status"]["conditions"].as_array()?;
        let failure = conditions.iter().find(|condition| {
            condition["type"] == "ReplicaFailure" && condition["status"] == "True"
        });
        failure?["message"].as_str()
    }

    pub(super) fn instance(&self, session: SessionId, pod: Option<&Found>) -> Instance {
        let generation = self.annotation(template::GENERATION);
        let generation = generation.and_then(|text| text.parse().ok()).unwrap_or_default();
        let state = match pod {
            _ if self.replicas == 0 => InstanceState::Asleep(Depth::Stopped),
            Some(pod) if pod.status == Status::Running => InstanceState::Running(pod.health()),
            // Its controller makes one, or the kubelet is about to start it.
            Some(_) | None => InstanceState::Running(Health::Starting),
        };
        let life = (self.replicas > 0).then(|| Mark::of(&self.reference, pod));
        Instance { session, generation: Generation(generation), life, state }
    }
}

/// What a merge patch makes of a workload's marks: they go where `marks` is `None`.
pub(super) fn marks(owner: &str, marks: Option<(&SessionId, Generation)>) -> Value {
    let (owner, session, generation) = match marks {
        Some((session, generation)) => {
            (Value::from(owner), Value::from(session.host()), Value::from(generation.to_string()))
        }
        None => (Value::Null, Value::Null, Value::Null),
    };
    serde_json::json!({
        "labels": {template::OWNER: owner},
        "annotations": {template::SESSION: session, template::GENERATION: generation},
    })
}
