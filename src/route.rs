//! Routes: which session a host is, what wakes for it and when that sleeps again.
//!
//! [`RouteTable::lookup`] finds the [`Route`] of a host, [`Route::plan`] says all that is needed
//! to run that session. Nothing here wakes, dials or answers anybody, and nothing here knows how
//! an engine does its work.

pub mod access;
mod admit;
mod check;
pub(crate) mod file;
mod host;
mod load;
mod local;
mod rate;
mod recipe;
pub(crate) mod source;
mod table;
mod template;
pub(crate) mod text;
mod tls;

use std::{collections::BTreeMap, fmt, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use http::HeaderValue;

pub use {
    file::{Protocol, WakeOn},
    host::{HostPattern, canonical_host},
    load::{Loaded, is_route_file, load_dir, load_good},
    local::{Ignore, StaticAnswer},
    rate::{Rate, RateText},
    recipe::Recipe,
    source::{Position, RouteError},
    table::{Clash, RouteTable},
    tls::ClientTls,
};
pub(crate) use {host::is_name, load::read as read_file};

use crate::session::{Depth, Plan, Probe, ProbeHeader, Rung, SPARES, Spec, UpstreamTls};
use recipe::{SetHeader, SetValue, Tls};
use template::Names;

/// The engines that a route may name, and what each is.
pub type Engines = BTreeMap<String, EngineKind>;

/// What an engine is: the `kind` of `[engines.NAME]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EngineKind {
    /// A command per session on this machine.
    Process,
    /// Containers of a Docker daemon.
    Docker,
    /// Machines of a Fly app.
    Fly,
    /// Pods of a Kubernetes cluster.
    Kubernetes,
    /// Virtual machines on this host.
    Qemu,
    /// MicroVMs on this host.
    Firecracker,
    /// Whatever the operator's own program starts, and the depths that it knows.
    Command(&'static [Depth]),
}

impl EngineKind {
    /// The word used in config, logs, metrics and the admin API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Docker => "docker",
            Self::Fly => "fly",
            Self::Kubernetes => "kubernetes",
            Self::Qemu => "qemu",
            Self::Firecracker => "firecracker",
            Self::Command(_) => "command",
        }
    }

    /// The depths that its instances can be put to, lightest first.
    pub fn depths(self) -> &'static [Depth] {
        match self {
            Self::Process => &[Depth::Paused, Depth::Stopped],
            Self::Docker => &[Depth::Paused, Depth::Stopped, Depth::Removed],
            Self::Fly => &[Depth::Suspended, Depth::Stopped, Depth::Removed],
            Self::Kubernetes => &[Depth::Stopped, Depth::Removed],
            Self::Qemu | Self::Firecracker => {
                &[Depth::Paused, Depth::Suspended, Depth::Stopped, Depth::Removed]
            }
            Self::Command(depths) => depths,
        }
    }
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A checked route. Equal routes do the same, so a reload can tell which have changed.
#[derive(Clone)]
pub struct Route {
    /// Its name: the file's, without `.toml`.
    pub name: Arc<str>,
    /// The file that it was read from.
    pub file: PathBuf,
    /// The hosts that it serves.
    pub host: HostPattern,
    /// All that it says besides.
    pub recipe: Arc<Recipe>,
    /// What is allowed and does something else than it says, on this kind of engine.
    pub notes: Arc<[RouteError]>,
}

impl PartialEq for Route {
    /// Without the notes: they move with every line that is added above.
    fn eq(&self, other: &Self) -> bool {
        let Self { name, file, host, recipe, notes: _ } = self;
        (name, file, host, recipe) == (&other.name, &other.file, &other.host, &other.recipe)
    }
}

impl Route {
    /// Everything needed to run the session of `host`, which is canonical and matches this route.
    ///
    /// Renders every template: call it when a session is made or its route has changed, never on
    /// a warm request.
    pub fn plan(&self, host: &str) -> Plan {
        self.plan_with(host, &self.values(host))
    }

    /// What its spares are made from, if it has any: no capture stands in that. They go to sleep as
    /// soon as they are ready.
    pub fn pool_plan(&self) -> Option<Plan> {
        let pool = self.recipe.pool?;
        let mut plan = self.plan_with(&SPARES[1..], &vec!["a"; self.host.captures().len()]);
        plan.policy.ladder = [Rung { after: Duration::ZERO, to: pool.depth }].into();
        plan.policy.min_awake = Duration::ZERO;
        Some(plan)
    }

    /// Its host, where that is one alone and what it names exists already.
    pub fn named_host(&self) -> Option<String> {
        let spec = &self.recipe.spec;
        let names = spec.docker.container.is_some()
            || spec.docker.label.is_some()
            || spec.kubernetes.scale.is_some();
        (names && self.host.captures().is_empty()).then(|| self.host.as_str().to_owned())
    }

    fn plan_with(&self, host: &str, values: &[&str]) -> Plan {
        let fill = |text: &str, reserved: &[&str]| self.fill(text, values, reserved);
        let recipe = &*self.recipe;
        let probe = match &recipe.probe {
            Probe::Http { path, status, .. } => Probe::Http {
                path: fill(path, &[]),
                status: *status,
                headers: self.probe_headers(values),
            },
            other => other.clone(),
        };
        let mut spec = recipe.spec.clone();
        template_strings(&mut spec, |_, text, reserved| *text = fill(text, reserved));
        Plan {
            route: self.name.clone(),
            engine: recipe.engine.clone(),
            policy: recipe.policy.clone(),
            limits: recipe.limits,
            pool: recipe.pool,
            probe,
            tls: self.tls_with(host, values),
            spec,
        }
    }

    /// TLS to the instance of `host`, if it speaks TLS.
    pub fn tls(&self, host: &str) -> Option<UpstreamTls> {
        self.tls_with(host, &self.values(host))
    }

    fn tls_with(&self, host: &str, values: &[&str]) -> Option<UpstreamTls> {
        let Tls { verify, sni } = self.recipe.tls.as_ref()?;
        let sni = match sni {
            Some(sni) => self.fill(sni, values, &[]),
            None => host.to_owned(),
        };
        Some(UpstreamTls { verify: *verify, sni })
    }

    /// What is answered for a path without any session.
    pub fn static_answer(&self, path: &str) -> Option<&StaticAnswer> {
        self.recipe.statics.get(path)
    }

    /// Whether its instances speak TLS.
    pub fn speaks_tls(&self) -> bool {
        self.recipe.tls.is_some()
    }

    /// The headers to set on every request to the instance of `host`, over the client's own, named as
    /// the operator spelled them. The values are marked sensitive. Allocates only for those that a capture stands in.
    pub fn set_headers<'a>(&'a self, host: &'a str) -> impl Iterator<Item = (Bytes, HeaderValue)> {
        self.recipe.set_headers.iter().filter_map(move |header| {
            let value = match &header.value {
                SetValue::Fixed(value) => value.clone(),
                SetValue::Template(text) => {
                    sensitive(&self.fill(text, &self.values(host), &[])).ok()?
                }
            };
            Some((header.spelled.clone(), value))
        })
    }

    /// The same for the probe, whose captures are known.
    fn probe_headers(&self, values: &[&str]) -> Vec<ProbeHeader> {
        let filled = |header: &SetHeader| {
            let value = match &header.value {
                SetValue::Fixed(value) => value.as_bytes().to_vec(),
                SetValue::Template(text) => self.fill(text, values, &[]).into_bytes(),
            };
            ProbeHeader { name: header.spelled.to_vec(), value }
        };
        self.recipe.set_headers.iter().map(filled).collect()
    }

    /// A template of `[access]`, for `host`.
    pub(crate) fn render(&self, host: &str, text: &str) -> String {
        self.fill(text, &self.values(host), &[])
    }

    fn values<'h>(&self, host: &'h str) -> Vec<&'h str> {
        self.host.values(host).unwrap_or_default()
    }

    /// `check` has rendered every template once, so none can fail here; if one did, it would stay
    /// as the operator wrote it.
    fn fill(&self, text: &str, values: &[&str], reserved: &[&str]) -> String {
        let names = Names { captures: self.host.captures(), reserved };
        template::render(text, names, values).unwrap_or_else(|_| text.to_owned())
    }
}

impl fmt::Debug for Route {
    /// Without the environment and the headers: there are secrets in them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Route")
            .field("name", &self.name)
            .field("host", &self.host.as_str())
            .field("engine", &self.recipe.engine)
            .finish_non_exhaustive()
    }
}

fn sensitive(value: &str) -> Result<HeaderValue, http::header::InvalidHeaderValue> {
    let mut value = HeaderValue::from_str(value)?;
    value.set_sensitive(true);
    Ok(value)
}

/// Every string of `[instance]`: the keys that lead to it, itself, and the names that are the
/// engine's to fill in. One list, so that what is checked and what is rendered are the same.
fn template_strings(spec: &mut Spec, mut each: impl FnMut(&[&str], &mut String, &[&str])) {
    let Spec {
        image,
        command,
        env,
        volumes,
        parameters,
        process,
        docker,
        kubernetes,
        qemu,
        firecracker,
        ..
    } = spec;
    for (index, argument) in command.iter_mut().enumerate() {
        each(&["instance", "command", &index.to_string()], argument, &host::RESERVED);
    }
    for (name, value) in env {
        each(&["instance", "env", name], value, &host::RESERVED);
    }
    for (name, value) in parameters {
        each(&["instance", "parameters", name], value, &[]);
    }
    let docker_lists = [("tmpfs", &mut docker.tmpfs), ("cap_add", &mut docker.cap_add)];
    for (index, volume) in volumes.iter_mut().enumerate() {
        each(&["instance", "volumes", &index.to_string()], volume, &[]);
    }
    for (key, list) in docker_lists {
        for (index, text) in list.iter_mut().enumerate() {
            each(&["instance", "docker", key, &index.to_string()], text, &[]);
        }
    }
    let kubernetes_lists = [
        ("pull_secrets", &mut kubernetes.pull_secrets),
        ("tmpfs", &mut kubernetes.tmpfs),
        ("cap_add", &mut kubernetes.cap_add),
    ];
    for (key, list) in kubernetes_lists {
        for (index, text) in list.iter_mut().enumerate() {
            each(&["instance", "kubernetes", key, &index.to_string()], text, &[]);
        }
    }
    for (label, value) in &mut kubernetes.node_selector {
        each(&["instance", "kubernetes", "node_selector", label], value, &[]);
    }
    let single: [(&[&str], &mut Option<String>); 26] = [
        (&["instance", "image"], image),
        (&["instance", "process", "directory"], &mut process.directory),
        (&["instance", "docker", "container"], &mut docker.container),
        (&["instance", "docker", "label"], &mut docker.label),
        (&["instance", "docker", "network"], &mut docker.network),
        (&["instance", "docker", "runtime"], &mut docker.runtime),
        (&["instance", "docker", "publish"], &mut docker.publish),
        (&["instance", "docker", "user"], &mut docker.user),
        (&["instance", "kubernetes", "scale"], &mut kubernetes.scale),
        (&["instance", "kubernetes", "service_account"], &mut kubernetes.service_account),
        (&["instance", "kubernetes", "runtime_class"], &mut kubernetes.runtime_class),
        (&["instance", "kubernetes", "user"], &mut kubernetes.user),
        (&["instance", "kubernetes", "storage_class"], &mut kubernetes.storage_class),
        (&["instance", "qemu", "kernel"], &mut qemu.kernel),
        (&["instance", "qemu", "initrd"], &mut qemu.initrd),
        (&["instance", "qemu", "append"], &mut qemu.append),
        (&["instance", "qemu", "disk"], &mut qemu.disk),
        (&["instance", "qemu", "tap"], &mut qemu.tap),
        (&["instance", "qemu", "address"], &mut qemu.address),
        (&["instance", "firecracker", "kernel"], &mut firecracker.kernel),
        (&["instance", "firecracker", "initrd"], &mut firecracker.initrd),
        (&["instance", "firecracker", "append"], &mut firecracker.append),
        (&["instance", "firecracker", "disk"], &mut firecracker.disk),
        (&["instance", "firecracker", "tap"], &mut firecracker.tap),
        (&["instance", "firecracker", "address"], &mut firecracker.address),
        (&["instance", "firecracker", "golden"], &mut firecracker.golden),
    ];
    for (path, text) in single {
        if let Some(text) = text {
            each(path, text, &[]);
        }
    }
}
