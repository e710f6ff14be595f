//! From what is written to what it means: a route file becomes a [`Route`], or a list of what is
//! wrong with it. Looks at nothing but the file, the files that it answers with, and the engines'
//! kinds.

mod access;
mod instance;

use std::{path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use http::HeaderName;

use super::{
    ClientTls, EngineKind, Engines, HostPattern, Position, Recipe, Route, WakeOn, canonical_host,
    file::{
        IdleTable, ProbeWord, ReadyTable, RouteFile, TlsTable, TlsWord, UpstreamTable, WakeTable,
    },
    recipe::{SetHeader, SetValue, Tls},
    sensitive,
    source::{Findings, RouteError, Source, suggest},
    template::{self, Names},
    tls::ClientTlsTable,
};
use crate::session::{Depth, DockerSpec, Policy, Probe, Rung};

/// Headers that belong to one connection, or that frame the message: setting them from outside
/// would break it.
const NOT_TO_SET: [&str; 10] = [
    "connection",
    "content-length",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// One check of one file: what it is checked against, and what was found.
pub(super) struct Check<'a> {
    pub(super) found: Findings<'a>,
    captures: &'a [String],
    kind: Option<EngineKind>,
}

impl Route {
    /// The route called `name` that `text` describes, or everything that is wrong with it.
    pub fn parse(
        name: &str,
        file: &Path,
        text: &str,
        engines: &Engines,
    ) -> Result<Self, Vec<RouteError>> {
        parse(name, file, text, engines).map(|(route, _)| route)
    }
}

/// The route, and where its host stands: another file may turn out to have the same one.
pub(super) fn parse(
    name: &str,
    file: &Path,
    text: &str,
    engines: &Engines,
) -> Result<(Route, Position), Vec<RouteError>> {
    let (shape, source) = Source::parse::<RouteFile>(file, text)?;
    let mut found = Findings::new(&source);
    let RouteFile {
        host,
        engine,
        instance,
        ready,
        wake,
        idle,
        tls: client_tls,
        upstream,
        access,
        limits,
        pool,
        statics,
    } = shape;
    let host = match HostPattern::parse(&host) {
        Ok(host) => host,
        Err(wrong) => {
            // Without the captures, nothing below could be judged.
            found.value(&["host"], wrong);
            return Err(found.finish(()).err().unwrap_or_default());
        }
    };
    let kind = engines.get(&engine).copied();
    if kind.is_none() {
        let known: Vec<&str> = engines.keys().map(String::as_str).collect();
        found.value(&["engine"], format!("no engine is called `{engine}`")).hint =
            Some(format!("{}; see [engines] in dormouse.toml", suggest(&engine, &known)));
    }
    let mut check = Check { found, captures: host.captures(), kind };
    let instances = instance.max;
    let mut spec = check.instance(instance);
    let probe = check.ready(ready);
    let wake_on = wake.on;
    let ignore = check.ignore(&wake.ignore);
    let policy = check.policy(wake, idle, &spec.docker);
    let client_tls = check.client_tls(client_tls);
    let (limits, wakes) = check.limits(&limits, instances);
    let pool = pool.map(|pool| check.pool(&pool, &mut spec, &probe));
    let statics = check.statics(statics, file.parent().unwrap_or(Path::new("")));
    let protocol = upstream.protocol;
    let (tls, set_headers) = check.upstream(upstream);
    let access = check.access(access, file.parent().unwrap_or(Path::new("")));
    let Check { mut found, .. } = check;
    let notes = found.take_notes().into();
    let engine = engine.into();
    let recipe = Recipe {
        engine,
        policy,
        limits,
        pool,
        wakes,
        ignore,
        statics,
        protocol,
        access,
        client_tls,
        wake_on,
        tls,
        set_headers,
        probe,
        spec,
    };
    let recipe = Arc::new(recipe);
    let route =
        Route { name: name.into(), file: file.to_owned(), host: host.clone(), recipe, notes };
    if wake_on == WakeOn::Sni && !route.recipe.access.is_of_connection() {
        let wrong = "this route's access needs the request: it cannot wake at the handshake";
        found.value(&["wake", "on"], wrong).hint = Some(
            "use wake.on = \"request\", or let [access] decide by addresses or mtls alone".into(),
        );
    }
    found.finish(())?;
    Ok((route, source.position(&["host"])))
}

impl Check<'_> {
    fn ready(&mut self, table: ReadyTable) -> Probe {
        let ReadyTable { probe, path, status } = table;
        if probe != ProbeWord::Http {
            for (key, is_there) in [("path", path.is_some()), ("status", status.is_some())] {
                if is_there {
                    let wrong = format!("`{key}` is for probe = \"http\" only");
                    self.found.value(&["ready", key], wrong).hint =
                        Some("add probe = \"http\" to [ready]".into());
                }
            }
        }
        let vm = matches!(self.kind, Some(EngineKind::Qemu | EngineKind::Firecracker));
        if vm && probe == ProbeWord::Tcp {
            let wrong = "a machine's port takes connections before its guest listens, so `tcp` would \
                         say ready too early";
            let hint = "use probe = \"http\", with a `path` that the program in the guest answers";
            self.found.value(&["ready", "probe"], wrong).hint = Some(hint.into());
        }
        if status.is_some_and(|status| !(100..=599).contains(&status)) {
            self.found.value(&["ready", "status"], "not an HTTP status, expected 100 to 599");
        }
        let path = path.unwrap_or_else(|| "/".into());
        let is_visible = path.bytes().all(|byte| byte.is_ascii_graphic());
        if !path.starts_with('/') || !is_visible || path.contains('#') {
            let wrong = "not a path, expected `/` and what follows it, percent-encoded";
            self.found.value(&["ready", "path"], wrong);
        }
        self.template(&["ready", "path"], &path, &[]);
        match probe {
            ProbeWord::Tcp => Probe::Tcp,
            ProbeWord::Http => Probe::Http { path, status, headers: Vec::new() },
            ProbeWord::Engine => Probe::Engine,
        }
    }

    fn policy(&mut self, wake: WakeTable, idle: IdleTable, docker: &DockerSpec) -> Policy {
        if wake.timeout.0.is_zero() {
            self.found.value(&["wake", "timeout"], "a wake needs more time than that");
        }
        if wake.held_max == 0 {
            self.found.value(&["wake", "held_max"], "`held_max` starts at 1").hint =
                Some("a session that may hold no request could never wake".into());
        }
        Policy {
            ladder: self.ladder(&idle, docker),
            min_awake: idle.min_awake.0,
            wake_timeout: wake.timeout.0,
            boot_max: wake.boot_max.0,
            held_max: wake.held_max,
        }
    }

    fn ladder(&mut self, idle: &IdleTable, docker: &DockerSpec) -> Arc<[Rung]> {
        let stopped = |after| Arc::from([Rung { after, to: Depth::Stopped }]);
        let Some(sleep) = &idle.sleep else {
            return stopped(idle.after.map_or(Duration::from_secs(15 * 60), |after| after.0));
        };
        if idle.after.is_some() {
            self.found.key(&["idle", "after"], "either `after` or `sleep`, not both").hint =
                Some("`after` is short for sleep = [{ after, to = \"stopped\" }]".into());
        }
        if sleep.is_empty() {
            self.found.value(&["idle", "sleep"], "a ladder needs at least one rung");
        }
        let rungs: Vec<Rung> =
            sleep.iter().map(|rung| Rung { after: rung.after.0, to: rung.to.into() }).collect();
        for (index, rung) in rungs.iter().enumerate() {
            let index_text = index.to_string();
            let before = index.checked_sub(1).map(|before| rungs[before]);
            if before.is_some_and(|before| before.after >= rung.after) {
                let path = ["idle", "sleep", &index_text, "after"];
                self.found.value(&path, "not later than the rung before it");
            }
            let path = ["idle", "sleep", &index_text, "to"];
            if before.is_some_and(|before| before.to >= rung.to) {
                self.found.value(&path, "not deeper than the rung before it");
            }
            self.never_removed(&path, rung.to, docker);
        }
        self.fallen(&rungs).into()
    }

    /// A rung that the engine lacks falls to the next deeper depth that it has. Of those that come to
    /// one depth the last counts: nothing sleeps deeper before the route says so. Below the deepest
    /// there is nothing more to do.
    fn fallen(&mut self, rungs: &[Rung]) -> Vec<Rung> {
        let Some(kind) = self.kind else { return rungs.to_vec() };
        let deepest = kind.depths().last().copied();
        let goal = |index: usize, to: Depth| {
            let deeper = kind.depths().iter().copied().find(|depth| to <= *depth);
            deeper.or(deepest.filter(|_| index == 0))
        };
        let goals: Vec<_> =
            rungs.iter().enumerate().map(|(index, rung)| goal(index, rung.to)).collect();
        let mut ladder = Vec::with_capacity(rungs.len());
        for (index, (rung, goal)) in rungs.iter().zip(&goals).enumerate() {
            let is_passed = goals[index + 1..].contains(goal);
            if *goal != Some(rung.to) {
                let becomes = match goal {
                    Some(to) if !is_passed => format!("the session goes to `{to}` then"),
                    Some(to) => format!("the session stays as it is until a later rung, to `{to}`"),
                    None => "the session stays as deep as it is".to_owned(),
                };
                let path = ["idle", "sleep", &index.to_string(), "to"];
                let wrong = format!("an engine of kind {kind} has no `{}`: {becomes}", rung.to);
                self.found.note(&path, wrong, None);
            }
            if let Some(to) = goal.filter(|_| !is_passed) {
                ladder.push(Rung { after: rung.after, to });
            }
        }
        ladder
    }

    fn never_removed(&mut self, path: &[&str], depth: Depth, docker: &DockerSpec) {
        let is_given = docker.container.is_some() || docker.label.is_some();
        if self.kind == Some(EngineKind::Docker) && is_given && depth == Depth::Removed {
            self.found.value(path, "a container that Dormouse did not create is never removed");
        }
    }

    fn client_tls(&mut self, table: ClientTlsTable) -> ClientTls {
        table.check().unwrap_or_else(|(key, wrong)| {
            self.found.value(&["tls", "hsts", key], wrong);
            ClientTls::default()
        })
    }

    fn upstream(&mut self, table: UpstreamTable) -> (Option<Tls>, Vec<SetHeader>) {
        let tls = match table.tls {
            TlsWord::On(false) => None,
            TlsWord::On(true) => Some(TlsTable::default()),
            TlsWord::With(tls) => Some(tls),
        };
        let tls = tls.map(|TlsTable { verify, sni }| {
            if let Some(sni) = &sni {
                self.sni(sni);
            }
            Tls { verify, sni }
        });
        let mut set_headers: Vec<SetHeader> = Vec::with_capacity(table.set_headers.len());
        for (name, value) in table.set_headers {
            let Some(header) = self.set_header(&name, &value.0) else { continue };
            if set_headers.iter().any(|other| other.name == header.name) {
                self.found
                    .key(&["upstream", "set_headers", &name], "this header stands here twice");
            }
            set_headers.push(header);
        }
        (tls, set_headers)
    }

    fn sni(&mut self, sni: &str) {
        let path = ["upstream", "tls", "sni"];
        let Some(sample) = self.template(&path, sni, &[]) else { return };
        let is_host =
            canonical_host(&sample).is_some_and(|host| host.eq_ignore_ascii_case(&sample));
        if !is_host || sample.starts_with('[') {
            self.found.value(&path, format!("`{sni}` is no host name"));
        }
    }

    fn set_header(&mut self, name: &str, value: &str) -> Option<SetHeader> {
        let path = ["upstream", "set_headers", name];
        let spelled = Bytes::copy_from_slice(name.as_bytes());
        let Ok(name) = HeaderName::try_from(name) else {
            self.found.key(&path, format!("`{name}` is no name of a header"));
            return None;
        };
        if NOT_TO_SET.contains(&name.as_str()) {
            let hint = "it belongs to one connection, or says where a message ends";
            self.found.key(&path, format!("`{name}` cannot be set")).hint = Some(hint.into());
        }
        let sample = self.template(&path, value, &[])?;
        let Ok(fixed) = sensitive(&sample) else {
            self.found.value(&path, "not a header's value: it has control characters");
            return None;
        };
        let value = if value.contains(['{', '}']) {
            SetValue::Template(value.to_owned())
        } else {
            SetValue::Fixed(fixed)
        };
        Some(SetHeader { name, spelled, value })
    }

    /// The text as it may look once it is rendered; `None` if it cannot be.
    fn template(&mut self, path: &[&str], text: &str, reserved: &[&str]) -> Option<String> {
        if text.contains('\0') {
            self.found.value(path, "a zero byte cannot stand here");
        }
        let samples = vec!["a"; self.captures.len()];
        let names = Names { captures: self.captures, reserved };
        match template::render(text, names, &samples) {
            Ok(sample) => Some(sample),
            Err(flaw) => {
                self.found.value(path, flaw.message).hint = Some(flaw.hint);
                None
            }
        }
    }
}
