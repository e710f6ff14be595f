//! From what `dormouse.toml` says to what it means, or to a list of what is wrong with it.

mod engines;

use std::{net::SocketAddr, path::Path, time::Duration};

use super::{
    Admin, AdminAddress, ClientAuth, Config, Entrance, Http2, Limits, Links, Listen, Networks,
    Paths, Swap, Timeouts, acme,
    file::{ConfigFile, LinksTable},
    listen::{ClientAuthWord, Entry, HttpEntry, HttpsEntry, ListenTable},
};
use crate::route::{
    RouteError,
    source::{Findings, Source, suggest},
};

/// It stands in every token.
const KEY_ID_MAX: usize = 32;
/// What Pingora reads at most of a head.
const HEADERS_MAX: u32 = 256;
const HEAD_MAX: u64 = 1024 * 1024;
const HEAD_MIN: u64 = 1024;
/// RFC 9113, 6.9.1 and 6.9.2.
const WINDOW_MAX: u64 = i32::MAX as u64;
const WINDOW_MIN: u64 = 65_535;

/// One question of TCP's, and one more.
const GONE_MIN: Duration = Duration::from_secs(3);

type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

pub(super) fn parse(
    file: &Path,
    text: &str,
    environment: Environment<'_>,
    swaps: &[Swap],
) -> Result<Config, Vec<RouteError>> {
    let (shape, source) = Source::parse::<ConfigFile>(file, text)?;
    let written = serde_json::to_value(&shape).unwrap_or_default();
    let base = file.parent().unwrap_or(Path::new("/")).to_owned();
    let mut check = Check { found: Findings::new(&source), base: &base, environment };
    let ConfigFile {
        listen,
        tls,
        admin,
        paths,
        limits,
        http2,
        timeouts,
        shutdown,
        links,
        log,
        acme,
        engines,
    } = shape;
    let listen = check.listen(listen, admin.token_file.is_some());
    if tls.redirect_port == Some(0) {
        check.found.value(&["tls", "redirect_port"], "`redirect_port` starts at 1");
    }
    check.limits(&limits);
    check.http2(&http2);
    check.timeouts(&timeouts);
    let links = check.links(links);
    let others_are_written = engines.is_some();
    let mut engines = engines.unwrap_or_default();
    let is_written =
        engines.contains_key("docker") || swaps.iter().any(|swap| swap.name == "docker");
    engines::add_defaults(&mut engines);
    check.swap(&mut engines, swaps);
    let running = check.running(&engines);
    // What is wrong with an environment for Docker is no trouble of those that use another engine.
    let is_extra = !is_written && others_are_written;
    let unwritten = is_extra.then(|| engines.remove("docker")).flatten();
    let implied = unwritten.and_then(|docker| {
        let found = Findings::new(&source);
        let mut check = Check { found, base: &base, environment };
        let engine = check.engines([("docker".to_owned(), docker)].into());
        check.found.finish(engine).ok()
    });
    let mut engines = check.engines(engines);
    engines.extend(implied.into_iter().flatten());
    let docker_is_implied = !is_written && engines::leave_out_twin(&mut engines);
    let acme = acme.map(|table| acme::check(table, &listen, check.base, &mut check.found));
    let admin = Admin { token_file: admin.token_file.map(|path| base.join(path)) };
    let paths = Paths {
        routes: base.join(paths.routes),
        certs: base.join(paths.certs),
        state: base.join(paths.state),
    };
    let on_stdout = Path::new("-");
    let access_log = log.access.map(|path| if path == on_stdout { path } else { base.join(path) });
    let Check { found, .. } = check;
    found.finish(())?;
    let file = Some(file.to_owned());
    Ok(Config {
        file,
        base,
        listen,
        tls,
        admin,
        paths,
        limits,
        http2,
        timeouts,
        shutdown,
        links,
        access_log,
        acme,
        engines,
        docker_is_implied,
        running,
        written,
        swaps: swaps.to_vec(),
    })
}

struct Check<'a> {
    found: Findings<'a>,
    base: &'a Path,
    environment: Environment<'a>,
}

impl Check<'_> {
    fn listen(&mut self, table: ListenTable, has_token: bool) -> Listen {
        let ListenTable { http, https, trusted_proxies, admin } = table;
        if http.is_empty() && https.is_empty() {
            self.found.value(&["listen", "http"], "an edge needs at least one address");
        }
        let trusted_proxies = Networks(trusted_proxies.into_iter().map(|text| text.0).collect());
        let http: Vec<_> = http.into_iter().map(plain_entrance).collect();
        let https: Vec<_> =
            https.into_iter().enumerate().map(|(at, entry)| self.tls_entrance(at, entry)).collect();
        let all = [("http", &http), ("https", &https)];
        let all = all.iter().flat_map(|(key, entrances)| {
            entrances.iter().enumerate().map(move |(at, entrance)| (*key, at, entrance))
        });
        let mut taken = Vec::new();
        for (key, at, entrance) in all {
            self.entrance(&["listen", key, &at.to_string()], entrance, &trusted_proxies, &taken);
            taken.push(entrance.address);
        }
        let admin = match admin {
            AdminAddress::Unix(path) => AdminAddress::Unix(self.base.join(path)),
            AdminAddress::Tcp(address) => {
                if !address.ip().is_loopback() && !has_token {
                    let wrong = "beyond loopback, the admin API needs a token";
                    self.found.value(&["listen", "admin"], wrong).hint =
                        Some("set admin.token_file, or listen on 127.0.0.1 or unix:/path".into());
                }
                AdminAddress::Tcp(address)
            }
        };
        Listen { http, https, trusted_proxies, admin }
    }

    fn tls_entrance(&mut self, at: usize, entry: Entry<HttpsEntry>) -> Entrance {
        let (address, proxy_protocol, client_auth) = match entry {
            Entry::At(address) => (address.0, false, None),
            Entry::With(HttpsEntry { address, proxy_protocol, client_ca, client_auth }) => {
                let required = client_auth != Some(ClientAuthWord::Optional);
                let auth = client_ca.map(|ca| ClientAuth { ca: self.base.join(ca), required });
                if auth.is_none() && client_auth.is_some() {
                    let path = ["listen", "https", &at.to_string()];
                    self.found.value(&path, "`client_auth` needs a `client_ca`").hint =
                        Some("client_ca is a PEM file with the authorities to trust".into());
                }
                (address.0, proxy_protocol, auth)
            }
        };
        if address.port() == 0 {
            let path = ["listen", "https", &at.to_string()];
            self.found.value(&path, "an address with TLS needs a port of its own, not 0");
        }
        Entrance { address, proxy_protocol, client_auth }
    }

    fn entrance(
        &mut self,
        path: &[&str],
        entrance: &Entrance,
        trusted: &Networks,
        taken: &[SocketAddr],
    ) {
        let Entrance { address, proxy_protocol, .. } = entrance;
        // Port 0 is a different free port each time.
        if address.port() != 0 && taken.contains(address) {
            self.found.value(path, format!("{address} stands here twice"));
        }
        if !proxy_protocol {
            return;
        }
        if address.port() == 0 {
            self.found.value(path, "an address with `proxy_protocol` needs a port, not 0");
        }
        if trusted.0.is_empty() {
            self.found.value(path, "`proxy_protocol` without `trusted_proxies`").hint = Some(
                "set listen.trusted_proxies: the PROXY protocol is taken from them alone".into(),
            );
        }
    }

    fn limits(&mut self, limits: &Limits) {
        let all = [
            ("held", limits.held),
            ("starts", limits.starts),
            ("connections", limits.connections),
            ("connections_per_client", limits.connections_per_client),
            ("clients", limits.clients),
            ("sessions", limits.sessions),
            ("headers", limits.headers),
        ];
        for (key, _) in all.iter().filter(|(_, limit)| *limit == 0) {
            self.found.value(&["limits", key], format!("`{key}` starts at 1"));
        }
        if HEADERS_MAX < limits.headers {
            let wrong = format!("`headers` is at most {HEADERS_MAX}");
            self.found.value(&["limits", "headers"], wrong);
        }
        if !(HEAD_MIN..=HEAD_MAX).contains(&limits.head) {
            self.found.value(&["limits", "head"], "`head` is from 1 KiB to 1 MiB");
        }
        if limits.head < limits.uri {
            let wrong = "`uri` is part of the head, and so at most `limits.head`";
            self.found.value(&["limits", "uri"], wrong);
        }
    }

    fn http2(&mut self, http2: &Http2) {
        let counts = [
            ("streams", http2.streams),
            ("resets", http2.resets),
            ("error_resets", http2.error_resets),
        ];
        for (key, _) in counts.iter().filter(|(_, limit)| *limit == 0) {
            self.found.value(&["http2", key], format!("`{key}` starts at 1"));
        }
        let sizes = [
            ("stream_window", http2.stream_window, WINDOW_MAX),
            ("connection_window", http2.connection_window, WINDOW_MAX),
            ("send_buffer", http2.send_buffer, u32::MAX.into()),
            ("header_list", http2.header_list, HEAD_MAX),
            ("header_table", http2.header_table, HEAD_MAX),
        ];
        for (key, _, max) in sizes.iter().filter(|(_, size, max)| max < size) {
            self.found.value(&["http2", key], format!("`{key}` is at most {max} bytes"));
        }
        if http2.connection_window < WINDOW_MIN {
            // RFC 9113, 6.9.2: it begins with this much and cannot be made smaller.
            let wrong = format!("`connection_window` is at least {WINDOW_MIN} bytes");
            self.found.value(&["http2", "connection_window"], wrong);
        }
    }

    fn timeouts(&mut self, timeouts: &Timeouts) {
        let all = [
            ("handshake", timeouts.handshake),
            ("client_head", timeouts.client_head),
            ("client_body", timeouts.client_body),
            ("client_body_grace", timeouts.client_body_grace),
            ("client_write", timeouts.client_write),
            ("client_idle", timeouts.client_idle),
            ("client_gone", timeouts.client_gone),
            ("connect", timeouts.connect),
            ("answer", timeouts.answer),
            ("upstream_idle", timeouts.upstream_idle),
        ];
        for (key, _) in all.iter().filter(|(_, timeout)| timeout.is_zero()) {
            self.found.value(&["timeouts", key], format!("`{key}` must be more than nothing"));
        }
        if !timeouts.client_gone.is_zero() && timeouts.client_gone < GONE_MIN {
            let wrong = "`client_gone` is at least 3 s: TCP asks once a second at most";
            self.found.value(&["timeouts", "client_gone"], wrong);
        }
    }

    fn links(&mut self, table: LinksTable) -> Links {
        let LinksTable { keys, current, expires_max } = table;
        for id in keys.keys() {
            let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
            if id.is_empty() || KEY_ID_MAX < id.len() || !id.bytes().all(is_plain) {
                self.found.key(&["links", "keys", id], format!("`{id}` is no id of a key")).hint =
                    Some("expected letters, digits, `_` and `-`, at most 32".into());
            }
        }
        let known: Vec<&str> = keys.keys().map(String::as_str).collect();
        match &current {
            Some(current) if !keys.contains_key(current) => {
                let wrong = format!("no key is called `{current}`");
                self.found.value(&["links", "current"], wrong).hint =
                    Some(suggest(current, &known));
            }
            None if 1 < keys.len() => {
                let wrong = "nothing says which of the keys signs";
                self.found.value(&["links", "keys"], wrong).hint =
                    Some(format!("set links.current to one of {}", known.join(", ")));
            }
            Some(_) | None => {}
        }
        if expires_max.0.as_secs() == 0 {
            self.found.value(&["links", "expires_max"], "`expires_max` is at least a second");
        }
        let current = current.or_else(|| keys.keys().next().cloned());
        let keys = keys.into_iter().map(|(id, file)| (id, self.base.join(file))).collect();
        Links { keys, current, expires_max: expires_max.0 }
    }
}

fn plain_entrance(entry: Entry<HttpEntry>) -> Entrance {
    let (address, proxy_protocol) = match entry {
        Entry::At(address) => (address.0, false),
        Entry::With(HttpEntry { address, proxy_protocol }) => (address.0, proxy_protocol),
    };
    Entrance { address, proxy_protocol, client_auth: None }
}
