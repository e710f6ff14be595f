//! `[engines.NAME.fly]` becomes a [`FlyConfig`].

use std::time::Duration;

use http::Uri;

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
        if !place(&endpoint).is_some_and(|at| at.tls || at.is_near()) {
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

/// Where a URL points.
struct Place {
    tls: bool,
    host: String,
    port: u16,
    path: String,
}

impl Place {
    /// Whether what is sent there in clear text stays on this machine or inside the 6PN.
    fn is_near(&self) -> bool {
        self.is_here() || self.host == "_api.internal"
    }

    fn is_here(&self) -> bool {
        matches!(&*self.host, "127.0.0.1" | "[::1]" | "localhost")
    }
}

/// `None` for what is no URL of a server, or has a password in it.
fn place(url: &str) -> Option<Place> {
    let uri: Uri = url.parse().ok().filter(|_| !url.contains(['?', '#']))?;
    let tls = match uri.scheme_str()? {
        "https" => true,
        "http" => false,
        _ => return None,
    };
    let authority = uri.authority()?;
    // No name or password before the host; and a port that is there must be one.
    let port = match authority.as_str().strip_prefix(authority.host())? {
        "" => {
            if tls {
                443
            } else {
                80
            }
        }
        port => port.strip_prefix(':')?.parse().ok()?,
    };
    let path = uri.path().to_owned();
    Some(Place { tls, host: authority.host().to_ascii_lowercase(), port, path })
}

/// Without TLS only on this machine: there are passwords and cookies in what is sent there.
fn public_name(url: &str) -> Option<FlyPublic> {
    let at = place(url).filter(|at| at.path == "/" && (at.tls || at.is_here()))?;
    let at = Some(at).filter(|at| !at.host.starts_with('['))?;
    Some(FlyPublic { tls: at.tls, host: canonical_host(&at.host)?.to_string(), port: at.port })
}
