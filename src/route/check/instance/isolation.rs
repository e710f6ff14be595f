//! `instance.isolation`: what a route demands, against what its engine gives.

use super::Check;
use crate::{
    route::{EngineKind, file::instance::IsolationWord},
    session::{DockerSpec, Spec},
};

impl Check<'_> {
    pub(super) fn isolation(&mut self, demanded: Option<IsolationWord>, spec: &Spec) {
        let (Some(demanded), Some(kind)) = (demanded, self.kind) else { return };
        let (given, hint) = given(kind, spec);
        if given < Some(demanded) {
            let wrong = format!("the engine gives {}", said(given));
            self.found.value(&["instance", "isolation"], wrong).hint = Some(hint.to_owned());
        }
    }
}

/// The least that an engine makes sure of, and how it could be more. What is not known is nothing.
fn given(kind: EngineKind, spec: &Spec) -> (Option<IsolationWord>, &'static str) {
    match kind {
        EngineKind::Process => (None, "a process sees its host: use another engine"),
        EngineKind::Command(_) => (None, "what a program of yours makes is not known here"),
        EngineKind::Fly | EngineKind::Qemu | EngineKind::Firecracker => {
            (Some(IsolationWord::Vm), "")
        }
        EngineKind::Docker => match &spec.docker {
            DockerSpec { container: None, label: None, runtime, .. } => (
                Some(of_runtime(runtime.as_deref())),
                "set docker.runtime to \"runsc\" or \"kata\"",
            ),
            _ => (None, "how a container that exists was made is not known here"),
        },
        EngineKind::Kubernetes if spec.kubernetes.scale.is_some() => {
            (None, "how a workload that exists was made is not known here")
        }
        EngineKind::Kubernetes => {
            let class = spec.kubernetes.runtime_class.as_deref();
            (Some(of_runtime(class)), "set kubernetes.runtime_class to one of gVisor or Kata")
        }
    }
}

/// By the names that their projects' guides give them; a runtime by another name is a container.
fn of_runtime(name: Option<&str>) -> IsolationWord {
    let name = name.unwrap_or_default();
    let is = |word| name.split(['-', '.']).any(|part| part == word);
    if is("kata") {
        IsolationWord::Vm
    } else if is("runsc") || is("gvisor") {
        IsolationWord::Kernel
    } else {
        IsolationWord::Container
    }
}

fn said(given: Option<IsolationWord>) -> &'static str {
    match given {
        None => "none that is known",
        Some(IsolationWord::Container) => "\"container\"",
        Some(IsolationWord::Kernel) => "\"kernel\"",
        Some(IsolationWord::Vm) => "\"vm\"",
    }
}
