//! `[engines.NAME.fly]` becomes a [`FlyConfig`].

use std::time::Duration;

use super::{Check, EngineTable};
use crate::{
    config::{FlyConfig, FlyPublic, engines::FlyTable},
    route::{canonical_host, is_name},
};

const ENDPOINT: &str = "https://api.machines.dev/v1";
const POLL: Duration = Duration::from_secs(10);
const POLL_MIN: Duration = Duration::from_secs(1);
const POLL_MAX: Duration = Duration::from_secs(3600);

impl Check<'_> {
    pub(super) fn fly(&mut self, name: &str, mut table: EngineTable) -> FlyConfig {
        let owner = self.owner(name, &table);
        let call_timeout = self.call_timeout(name, &table);
        let given = table.fly.take();
        if given.is_none() {
            let wrong = "nothing says which app";
            self.found.value(&["engines", name], wrong).hint =
                Some(format!("set app under [engines.{name}.fly]"));
        }
        let (app, endpoint) = (String::new(), None);
        let empty =
            FlyTable { app, token_file: None, endpoint, region: None, public: None, poll: None };
        let is_given = given.is_some();
        let FlyTable { app, token_file, endpoint, region, public, poll } = given.unwrap_or(empty);
        let path = |key| ["engines", name, "fly", key];
        if is_given && !is_name(&app) {
            self.found.value(&path("app"), "no name of an app");
        }
        let endpoint = endpoint.unwrap_or_else(|| ENDPOINT.to_owned());
        let plain = ["http://_api.internal", "http://127.0.0.1", "http://localhost"];
        if !endpoint.starts_with("https://") && !plain.iter().any(|at| endpoint.starts_with(at)) {
            let wrong = "the token needs https://, or http://_api.internal inside 6PN";
            self.found.value(&path("endpoint"), wrong);
        }
        let public = public.and_then(|url| {
            let read = public_name(&url);
            if read.is_none() {
                let wrong = "no public name, expected one such as \"https://APP.fly.dev\"";
                self.found.value(&path("public"), wrong);
            }
            read
        });
        let poll = poll.map_or(POLL, |poll| poll.0);
        if !(POLL_MIN..=POLL_MAX).contains(&poll) {
            self.found.value(&path("poll"), "`poll` goes from \"1s\" to \"1h\"");
        }
        let token_file = token_file.map(|file| self.base.join(file));
        FlyConfig { endpoint, app, token_file, region, public, owner, call_timeout, poll }
    }
}

/// Without TLS only on this machine: there are passwords and cookies in what is sent there.
fn public_name(url: &str) -> Option<FlyPublic> {
    let (tls, rest) = match url.split_once("://")? {
        ("https", rest) => (true, rest),
        ("http", rest) => (false, rest),
        _ => return None,
    };
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let (host, port) = match rest.split_once(':') {
        Some((host, port)) => (host, port.parse().ok()?),
        None => (rest, if tls { 443 } else { 80 }),
    };
    let is_local = matches!(host, "127.0.0.1" | "localhost");
    let host = canonical_host(host).filter(|_| tls || is_local)?;
    Some(FlyPublic { tls, host: host.to_string(), port })
}
