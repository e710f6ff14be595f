//! `[instance]` of a route file becomes a [`Spec`].

mod fly;
mod isolation;
mod kubernetes;
mod pool;
mod vm;

use std::net::IpAddr;

use super::Check;
use crate::{
    route::{
        EngineKind,
        file::instance::{DockerTable, InstanceTable, ListenWord, ProcessTable, Publish},
        template_strings,
    },
    session::{DockerSpec, Listen, ProcessSpec, Spec},
};

const CPUS_MAX: f64 = 4096.0;
/// Docker makes no container with less.
const DOCKER_MEMORY_MIN: u64 = 6 << 20;

impl Check<'_> {
    pub(super) fn instance(&mut self, table: InstanceTable) -> Spec {
        let InstanceTable {
            image,
            command,
            env,
            port,
            memory,
            cpus,
            pids,
            volumes,
            isolation,
            max: _,
            parameters,
            process,
            docker,
            kubernetes,
            fly,
            qemu,
            firecracker,
        } = table;
        let mut spec = Spec {
            image,
            command,
            env: env.into_iter().map(|(name, value)| (name, value.0)).collect(),
            port,
            memory: memory.map(|size| size.0),
            nano_cpus: cpus.and_then(|cpus| self.nano_cpus(cpus)),
            pids,
            kubernetes: self.kubernetes(kubernetes, &volumes),
            volumes,
            parameters: parameters.into_iter().map(|(name, value)| (name, value.0)).collect(),
            process: process_spec(process),
            docker: self.docker(docker),
            fly: fly.into(),
            qemu: qemu.into(),
            firecracker: firecracker.into(),
        };
        for (key, is_zero) in [("port", port == Some(0)), ("pids", pids == Some(0))] {
            if is_zero {
                self.found.value(&["instance", key], format!("`{key}` starts at 1"));
            }
        }
        for name in spec.env.keys().filter(|name| name.is_empty() || name.contains(['=', '\0'])) {
            self.found.key(&["instance", "env", name], "no name of an environment variable");
        }
        for (index, volume) in spec.volumes.iter().enumerate() {
            if let Err(wrong) = check_volume(volume) {
                let path = ["instance", "volumes", &index.to_string()];
                self.found.value(&path, wrong).hint =
                    Some("expected `SOURCE:TARGET` or `SOURCE:TARGET:ro`".into());
            }
        }
        template_strings(&mut spec, |path, text, reserved| {
            self.template(path, text, reserved);
        });
        self.what_the_kind_needs(&spec);
        self.what_does_nothing(&spec);
        self.isolation(isolation, &spec);
        spec
    }

    fn what_the_kind_needs(&mut self, spec: &Spec) {
        let is_docker = self.kind == Some(EngineKind::Docker);
        if is_docker && spec.memory.is_some_and(|memory| memory < DOCKER_MEMORY_MIN) {
            let wrong = "a container needs 6 MiB or more";
            self.found.value(&["instance", "memory"], wrong);
        }
        let DockerSpec { container, label, .. } = &spec.docker;
        match self.kind {
            Some(EngineKind::Process) if spec.command.is_empty() => {
                self.found.value(&["instance", "command"], "a process needs a command").hint = Some(
                    "for example command = [\"./server\", \"--listen\", \"{address}\"]".into(),
                );
            }
            Some(EngineKind::Fly) => self.fly(spec),
            Some(EngineKind::Docker)
                if spec.image.is_none() && container.is_none() && label.is_none() =>
            {
                let hint = "set instance.image to create one, or instance.docker.container or \
                            instance.docker.label for one that exists";
                self.found.value(&["instance", "image"], "nothing says which container").hint =
                    Some(hint.into());
            }
            Some(EngineKind::Qemu) => self.qemu(spec),
            Some(EngineKind::Firecracker) => self.firecracker(spec),
            Some(EngineKind::Kubernetes)
                if spec.image.is_none() && spec.kubernetes.scale.is_none() =>
            {
                let hint = "set instance.image to create a Pod, or instance.kubernetes.scale for a \
                            Deployment or StatefulSet that exists";
                self.found.value(&["instance", "image"], "nothing says what the Pod runs").hint =
                    Some(hint.into());
            }
            _ => {}
        }
    }

    /// Not errors: the same file may run on another engine.
    fn what_does_nothing(&mut self, spec: &Spec) {
        let limits = [
            ("memory", spec.memory.is_some()),
            ("cpus", spec.nano_cpus.is_some()),
            ("pids", spec.pids.is_some()),
        ];
        let limits = limits.iter().filter(|(_, is_set)| *is_set);
        for (key, _) in limits.filter(|_| self.kind == Some(EngineKind::Process)) {
            let wrong = format!("`{key}` does nothing: an engine of kind process limits nothing");
            let hint = "limit the edge's own cgroup, or use an engine that isolates";
            self.found.note(&["instance", key], wrong, Some(hint));
        }
        let is_shell = |word: &String| word.rsplit('/').next().is_some_and(|n| n.ends_with("sh"));
        if spec.command.iter().any(is_shell) {
            return;
        }
        for (index, argument) in spec.command.iter().enumerate() {
            let Some(name) = ["PORT", "HOST", "ADDRESS"]
                .iter()
                .find(|name| argument.split('$').skip(1).any(|behind| behind.starts_with(**name)))
            else {
                continue;
            };
            let place = ["instance", "command", &index.to_string()];
            let wrong = format!("`${name}` stays as it is: no shell reads this command");
            let hint = format!("write `{{{}}}`", name.to_ascii_lowercase());
            self.found.note(&place, wrong, Some(&hint));
        }
    }

    fn nano_cpus(&mut self, cpus: f64) -> Option<u64> {
        if cpus > 0.0 && cpus <= CPUS_MAX {
            // In range, by the line above; never rounded to the zero that means "no limit".
            return Some(((cpus * 1e9) as u64).max(1));
        }
        let wrong = format!("`{cpus}` is no number of cores, expected one such as 1.5");
        self.found.value(&["instance", "cpus"], wrong);
        None
    }

    fn docker(&mut self, table: DockerTable) -> DockerSpec {
        if table.container.is_some() && table.label.is_some() {
            let path = ["instance", "docker", "label"];
            self.found.value(&path, "either `container` or `label`, not both");
        }
        if table.label.as_ref().is_some_and(|label| !label.contains('=') || label.starts_with('='))
        {
            let path = ["instance", "docker", "label"];
            self.found.value(&path, "not a label, expected `KEY=VALUE`");
        }
        let publish = match table.publish {
            Publish::Local(false) => None,
            Publish::Local(true) => Some("127.0.0.1".to_owned()),
            Publish::On(address) => {
                if !address.contains('{') && address.parse::<IpAddr>().is_err() {
                    let wrong = "not an IP address, expected true, false or one such as 10.0.0.5";
                    self.found.value(&["instance", "docker", "publish"], wrong);
                }
                Some(address)
            }
        };
        for (index, folder) in
            table.tmpfs.iter().enumerate().filter(|(_, tmpfs)| !tmpfs.starts_with('/'))
        {
            let path = ["instance", "docker", "tmpfs", &index.to_string()];
            self.found.value(&path, format!("`{folder}` is no absolute path"));
        }
        DockerSpec {
            publish,
            container: table.container,
            label: table.label,
            network: table.network,
            runtime: table.runtime,
            user: table.user,
            read_only: table.read_only,
            tmpfs: table.tmpfs,
            cap_add: table.cap_add,
            grace: table.grace.0,
        }
    }
}

fn process_spec(table: ProcessTable) -> ProcessSpec {
    let ProcessTable { listen, directory, grace, log_max } = table;
    let listen = match listen {
        ListenWord::Tcp => Listen::Tcp,
        ListenWord::Unix => Listen::Unix,
    };
    ProcessSpec { listen, directory, grace: grace.0, log_max: log_max.0 }
}

fn check_volume(volume: &str) -> Result<(), &'static str> {
    let parts: Vec<&str> = volume.split(':').collect();
    let (source, target) = match parts[..] {
        [source, target] | [source, target, "ro" | "rw"] => (source, target),
        _ => return Err("not a volume"),
    };
    let is_name_byte =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-' | b'{' | b'}');
    let is_name =
        !source.is_empty() && !source.starts_with('.') && source.bytes().all(is_name_byte);
    if !source.starts_with('/') && !is_name {
        return Err("the source is neither an absolute path nor a volume's name");
    }
    if !target.starts_with('/') {
        return Err("the target is no absolute path");
    }
    Ok(())
}
