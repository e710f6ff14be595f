//! `[engines.NAME]` becomes an [`EngineConfig`].

mod command;
mod firecracker;
mod fly;
mod kubernetes;
mod qemu;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use super::Check;
use crate::{
    config::{
        DockerConfig, DockerEndpoint, DockerTls, EngineConfig, Swap,
        engines::{EngineTable, KindWord},
    },
    route::{is_name, source::suggest},
};

const DOCKER_SOCKET: &str = "unix:///var/run/docker.sock";
/// Of Podman's own units, below `/run`, or below `XDG_RUNTIME_DIR` without root.
const PODMAN_SOCKET: &str = "podman/podman.sock";
const OWNER: &str = "dormouse";
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
const FORMS: &str = "expected unix:///path, tcp://HOST:PORT, https://HOST:PORT or \
                     ssh://[USER@]HOST[:PORT]";

const DOCKER: &str = "docker";

/// Those that are there unless the file says otherwise.
pub(super) fn add_defaults(tables: &mut BTreeMap<String, EngineTable>) {
    for (name, kind) in [("local", KindWord::Process), (DOCKER, KindWord::Docker)] {
        tables.entry(name.to_owned()).or_insert_with(|| EngineTable::of(kind));
    }
}

/// Two engines on one daemon, of one owner, would each put the other's containers to sleep: the one
/// that the file does not write is left out.
pub(super) fn leave_out_twin(engines: &mut BTreeMap<String, EngineConfig>) -> bool {
    let daemon = |engine: &EngineConfig| match engine {
        EngineConfig::Docker(docker) => Some((docker.endpoint.clone(), docker.owner.clone())),
        _ => None,
    };
    let ours = engines.get(DOCKER).and_then(daemon);
    let others = engines.iter().filter(|(name, _)| *name != DOCKER);
    let has_twin = ours.is_some() && others.map(|(_, other)| daemon(other)).any(|it| it == ours);
    if has_twin {
        engines.remove(DOCKER);
    }
    ours.is_some() && !has_twin
}

impl Check<'_> {
    /// Nothing of what the file says of another kind is left.
    pub(super) fn swap(&mut self, tables: &mut BTreeMap<String, EngineTable>, swaps: &[Swap]) {
        for Swap { name, kind } in swaps {
            if let Some(table) = tables.get_mut(name) {
                *table = EngineTable { running: table.running, ..EngineTable::of(*kind) };
                continue;
            }
            let known: Vec<&str> = tables.keys().map(String::as_str).collect();
            let hint = suggest(name, &known);
            let wrong = format!("`--engine {name}=…`: no engine is called `{name}`");
            self.found.value(&["engines"], wrong).hint = Some(hint);
        }
    }

    pub(super) fn running(
        &mut self,
        tables: &BTreeMap<String, EngineTable>,
    ) -> BTreeMap<String, u32> {
        let limited =
            tables.iter().filter_map(|(name, table)| Some((name.clone(), table.running?)));
        let limits: BTreeMap<_, _> = limited.collect();
        for (name, _) in limits.iter().filter(|(_, limit)| **limit == 0) {
            self.found.value(&["engines", name, "running"], "`running` starts at 1");
        }
        limits
    }

    pub(super) fn engines(
        &mut self,
        tables: BTreeMap<String, EngineTable>,
    ) -> BTreeMap<String, EngineConfig> {
        let mut engines = BTreeMap::new();
        for (name, table) in tables {
            if !is_name(&name) {
                let wrong = format!("`{name}` is no name of an engine");
                self.found.key(&["engines", &name], wrong).hint =
                    Some("expected a-z, 0-9 and `-`, at most 63, no `-` at the ends".into());
            }
            self.of_other_kinds(&name, &table);
            let engine = match table.kind {
                KindWord::Process => EngineConfig::Process,
                KindWord::Docker | KindWord::Podman => self.docker(&name, table),
                KindWord::Fly => EngineConfig::Fly(self.fly(&name, table)),
                KindWord::Command => EngineConfig::Command(self.command(&name, table)),
                KindWord::Kubernetes => EngineConfig::Kubernetes(self.kubernetes(&name, table)),
                KindWord::Qemu => EngineConfig::Qemu(self.qemu(&name, table)),
                KindWord::Firecracker => EngineConfig::Firecracker(self.firecracker(&name, table)),
            };
            engines.insert(name, engine);
        }
        engines
    }

    fn of_other_kinds(&mut self, name: &str, table: &EngineTable) {
        use KindWord::{Command, Docker, Firecracker, Fly, Kubernetes, Podman, Qemu};
        let keys: [(&str, bool, &[KindWord], &str); 11] = [
            ("endpoint", table.endpoint.is_some(), &[Docker, Podman], "\"docker\" or \"podman\""),
            ("tls_ca", table.tls_ca.is_some(), &[Docker, Podman], "\"docker\" or \"podman\""),
            ("tls_cert", table.tls_cert.is_some(), &[Docker, Podman], "\"docker\" or \"podman\""),
            ("tls_key", table.tls_key.is_some(), &[Docker, Podman], "\"docker\" or \"podman\""),
            (
                "owner",
                table.owner.is_some(),
                &[Docker, Podman, Command, Fly, Kubernetes],
                "\"docker\", \"podman\", \"command\", \"fly\" or \"kubernetes\"",
            ),
            (
                "call_timeout",
                table.call_timeout.is_some(),
                &[Docker, Podman, Command, Fly, Kubernetes, Qemu, Firecracker],
                "\"docker\", \"podman\", \"command\", \"fly\", \"kubernetes\", \"qemu\" or \
                 \"firecracker\"",
            ),
            ("fly", table.fly.is_some(), &[Fly], "\"fly\""),
            ("command", table.command.is_some(), &[Command], "\"command\""),
            ("qemu", table.qemu.is_some(), &[Qemu], "\"qemu\""),
            ("firecracker", table.firecracker.is_some(), &[Firecracker], "\"firecracker\""),
            ("kubernetes", table.kubernetes.is_some(), &[Kubernetes], "\"kubernetes\""),
        ];
        for (key, is_there, kinds, said) in keys {
            if is_there && !kinds.contains(&table.kind) {
                let wrong = format!("`{key}` is for kind = {said} only");
                self.found.key(&["engines", name, key], wrong);
            }
        }
    }

    fn docker(&mut self, name: &str, table: EngineTable) -> EngineConfig {
        let owner = self.owner(name, &table);
        let call_timeout = self.call_timeout(name, &table);
        let endpoint = self.endpoint(name, table);
        EngineConfig::Docker(DockerConfig { endpoint, owner, call_timeout })
    }

    pub(super) fn owner(&mut self, name: &str, table: &EngineTable) -> String {
        let owner = table.owner.clone().unwrap_or_else(|| OWNER.to_owned());
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if owner.is_empty() || owner.len() > 63 || !owner.bytes().all(is_plain) {
            self.found.value(&["engines", name, "owner"], "not an owner's name").hint =
                Some("expected letters, digits, `.`, `_` and `-`, at most 63".into());
        }
        owner
    }

    pub(super) fn call_timeout(&mut self, name: &str, table: &EngineTable) -> Duration {
        let call_timeout = table.call_timeout.as_ref().map_or(CALL_TIMEOUT, |timeout| timeout.0);
        if call_timeout.is_zero() {
            let path = ["engines", name, "call_timeout"];
            self.found.value(&path, "`call_timeout` must be more than nothing");
        }
        call_timeout
    }

    fn endpoint(&mut self, name: &str, table: EngineTable) -> DockerEndpoint {
        let mut tls = self.tls(name, &table);
        let variable =
            if table.kind == KindWord::Podman { "CONTAINER_HOST" } else { "DOCKER_HOST" };
        let (endpoint, origin) = match (table.endpoint, (self.environment)(variable)) {
            (Some(endpoint), _) => (endpoint, "endpoint"),
            (None, Some(endpoint)) => {
                tls = tls.or_else(|| self.tls_from_environment(table.kind, &endpoint));
                (endpoint, variable)
            }
            (None, None) => (self.socket(table.kind), "endpoint"),
        };
        let is_far = table.kind == KindWord::Podman && endpoint.starts_with("ssh://");
        let parsed = match is_far {
            // What is run over SSH is Docker's own client.
            true => Err("Podman does not answer over ssh: forward its socket with ssh -L"),
            false => parse_endpoint(&endpoint, tls, self.base),
        };
        parsed.unwrap_or_else(|wrong| {
            let wrong = format!("{origin} `{endpoint}`: {wrong}");
            self.found.value(&["engines", name, "endpoint"], wrong).hint = Some(FORMS.into());
            DockerEndpoint::Unix(PathBuf::new())
        })
    }

    /// Where it is by default.
    fn socket(&self, kind: KindWord) -> String {
        if kind != KindWord::Podman {
            return DOCKER_SOCKET.to_owned();
        }
        let of_user = (self.environment)("XDG_RUNTIME_DIR").filter(|path| path != "/run/user/0");
        format!("unix://{}/{PODMAN_SOCKET}", of_user.as_deref().unwrap_or("/run"))
    }

    fn tls(&mut self, name: &str, table: &EngineTable) -> Option<DockerTls> {
        let EngineTable { tls_ca, tls_cert, tls_key, .. } = table;
        match (tls_ca, tls_cert, tls_key) {
            (None, None, None) => None,
            (Some(ca), Some(cert), Some(key)) => Some(DockerTls {
                ca: self.base.join(ca),
                cert: self.base.join(cert),
                key: self.base.join(key),
            }),
            _ => {
                let wrong = "TLS needs all of `tls_ca`, `tls_cert` and `tls_key`";
                self.found.value(&["engines", name], wrong);
                None
            }
        }
    }

    /// As Docker's own client does it.
    fn tls_from_environment(&self, kind: KindWord, endpoint: &str) -> Option<DockerTls> {
        let is_meant = kind == KindWord::Docker && endpoint.starts_with("tcp://");
        (self.environment)("DOCKER_TLS_VERIFY").filter(|_| is_meant)?;
        let folder = self.base.join((self.environment)("DOCKER_CERT_PATH")?);
        let file = |name| folder.join(name);
        Some(DockerTls { ca: file("ca.pem"), cert: file("cert.pem"), key: file("key.pem") })
    }
}

fn parse_endpoint(
    endpoint: &str,
    tls: Option<DockerTls>,
    base: &Path,
) -> Result<DockerEndpoint, &'static str> {
    let (scheme, rest) = endpoint.split_once("://").ok_or("no scheme")?;
    if rest.is_empty() {
        return Err("nothing behind the scheme");
    }
    let has_port = |address: &str| {
        address
            .rsplit_once(':')
            .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
    };
    match (scheme, tls) {
        ("unix", None) => Ok(DockerEndpoint::Unix(base.join(rest))),
        ("ssh", None) => Ok(DockerEndpoint::Ssh(endpoint.to_owned())),
        ("unix" | "ssh", Some(_)) => Err("no TLS over this scheme: leave out tls_ca and its like"),
        ("tcp" | "https", _) if !has_port(rest.trim_end_matches('/')) => Err("no HOST:PORT"),
        ("https", None) => Err("https needs `tls_ca`, `tls_cert` and `tls_key`"),
        ("tcp" | "https", tls) => {
            Ok(DockerEndpoint::Tcp { address: rest.trim_end_matches('/').to_owned(), tls })
        }
        _ => Err("unknown scheme"),
    }
}
