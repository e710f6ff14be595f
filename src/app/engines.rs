//! The table of backends: one row a kind.

use std::{path::PathBuf, sync::Arc, time::Duration};

use crate::{
    config::{
        CommandConfig, Config, DockerConfig, DockerEndpoint, EngineConfig, FirecrackerConfig,
        FlyConfig, FlyPublic, JailConfig, KubernetesConfig, QemuConfig,
    },
    engine::{
        Engine, Error,
        command::{self, Command},
        docker::{self, Docker},
        firecracker::{self, Firecracker},
        fly::{self, Fly},
        kubernetes::{self, Kubernetes},
        process::Process,
        qemu::{self, Qemu},
    },
};

/// The engine of `[engines.NAME]`.
pub(super) fn build(
    config: &Config,
    name: &str,
    engine: &EngineConfig,
) -> Result<Arc<dyn Engine>, Error> {
    Ok(match engine {
        EngineConfig::Process => {
            // A folder each: the same folder would be the same instances.
            let state = config.paths.state.join("engines").join(name);
            Arc::new(Process::new(state, config.base.clone())?)
        }
        EngineConfig::Command(command) => {
            Arc::new(Command::new(command_config(command, config.base.clone()))?)
        }
        EngineConfig::Fly(fly) => Arc::new(Fly::new(fly_config(fly)?)?),
        EngineConfig::Kubernetes(kubernetes) => {
            Arc::new(Kubernetes::new(kubernetes_config(kubernetes)))
        }
        EngineConfig::Qemu(qemu) => {
            let state = config.paths.state.join("engines").join(name);
            Arc::new(Qemu::new(qemu_config(qemu, state, config.base.clone()))?)
        }
        EngineConfig::Firecracker(firecracker) => {
            let state = config.paths.state.join("engines").join(name);
            let config = firecracker_config(firecracker, state, config.base.clone());
            Arc::new(Firecracker::new(config)?)
        }
        EngineConfig::Docker(docker) => Arc::new(Docker::new(docker_config(docker))?),
    })
}

fn command_config(config: &CommandConfig, directory: PathBuf) -> command::Config {
    let CommandConfig { run, depths, environment, call_timeout, at_once, poll, owner } =
        config.clone();
    command::Config { run, directory, depths, environment, call_timeout, at_once, poll, owner }
}

/// The token is read now, from where the config says; it is in no config.
fn fly_config(config: &FlyConfig) -> Result<fly::Config, Error> {
    let FlyConfig { endpoint, app, token_file, region, public, owner, call_timeout, poll } =
        config.clone();
    let public = public.map(|FlyPublic { tls, host, port }| fly::Public { tls, host, port });
    let token = match &token_file {
        Some(path) => std::fs::read_to_string(path)
            .map_err(|e| Error::Missing(format!("the token in {}: {e}", path.display())))?,
        None => std::env::var(FLY_TOKEN).map_err(|_| {
            Error::Missing(format!("no token of Fly: set fly.token_file, or {FLY_TOKEN}"))
        })?,
    };
    let token = token.trim().to_owned();
    let interval = FLY_INTERVAL;
    Ok(fly::Config { endpoint, app, token, region, public, owner, call_timeout, poll, interval })
}

/// As `flyctl` reads it.
const FLY_TOKEN: &str = "FLY_API_TOKEN";
/// One request a second for an action and machine: fly.io/docs/machines/api/working-with-machines-api.
const FLY_INTERVAL: Duration = Duration::from_secs(1);
/// Of e2fsprogs; the engine looks beyond PATH.
const MKFS: &str = "mkfs.ext4";

fn kubernetes_config(config: &KubernetesConfig) -> kubernetes::Config {
    let KubernetesConfig { kubeconfig, context, namespace, owner, call_timeout, start_timeout } =
        config.clone();
    kubernetes::Config { kubeconfig, context, namespace, owner, call_timeout, start_timeout }
}

fn qemu_config(config: &QemuConfig, state: PathBuf, base: PathBuf) -> qemu::Config {
    let QemuConfig { program, image_program, kvm, call_timeout } = config.clone();
    qemu::Config { program, image_program, kvm, state, base, call_timeout }
}

fn firecracker_config(
    config: &FirecrackerConfig,
    state: PathBuf,
    base: PathBuf,
) -> firecracker::Config {
    let FirecrackerConfig { program, jail, clock_realtime, call_timeout } = config.clone();
    let jail = jail.map(|JailConfig { program, uid, gid }| firecracker::Jail { program, uid, gid });
    firecracker::Config {
        program,
        jail,
        mkfs: MKFS.into(),
        clock_realtime,
        state,
        base,
        call_timeout,
    }
}

fn docker_config(config: &DockerConfig) -> docker::Config {
    let (endpoint, tls) = match &config.endpoint {
        DockerEndpoint::Unix(path) => (format!("unix://{}", path.display()), None),
        DockerEndpoint::Tcp { address, tls } => (format!("tcp://{address}"), tls.as_ref()),
        DockerEndpoint::Ssh(url) => (url.clone(), None),
    };
    let tls = tls.map(|tls| docker::Tls {
        ca: tls.ca.clone(),
        cert: tls.cert.clone(),
        key: tls.key.clone(),
    });
    docker::Config {
        endpoint: Some(endpoint),
        owner: config.owner.clone(),
        tls,
        call_timeout: config.call_timeout,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::EngineKind;

    /// Routes are checked against what their engine's kind can, without an engine being there.
    #[test]
    fn a_kind_has_the_depths_of_its_engine() {
        let folder = tempfile::tempdir().unwrap();
        let process = Process::new(folder.path().to_owned(), folder.path().to_owned()).unwrap();
        let endpoint = Some("unix:///nowhere".to_owned());
        let docker = Docker::new(docker::Config { endpoint, ..Default::default() }).unwrap();
        let kubernetes = Kubernetes::new(kubernetes::Config::default());
        let engines: [(EngineKind, &dyn Engine); 3] = [
            (EngineKind::Process, &process),
            (EngineKind::Docker, &docker),
            (EngineKind::Kubernetes, &kubernetes),
        ];
        for (kind, engine) in engines {
            assert_eq!((kind.as_str(), kind.depths()), (engine.kind(), engine.depths()));
        }
    }
}
