//! `dormouse.toml`: its defaults, what it means, and what is said when it is wrong.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod engines;
mod schema;

use std::{fs, path::Path, time::Duration};

use dormouse::{
    config::{
        AdminAddress, ClientAuth, Config, DockerConfig, DockerEndpoint, GetBody, TlsVersion,
        Underscores,
    },
    route::{EngineKind, RouteError},
};
use engines::docker;
use proptest::prelude::*;

fn parse(text: &str) -> Result<Config, Vec<RouteError>> {
    Config::parse(Path::new("/etc/dormouse/dormouse.toml"), text, |_| None)
}

fn errors(text: &str) -> Vec<String> {
    let errors = parse(text).expect_err("it has an error");
    errors.iter().map(|error| error.to_string().replace("/etc/dormouse/", "")).collect()
}

#[test]
fn an_empty_file_gives_the_documented_defaults() {
    let config = parse("").unwrap();
    let http: Vec<_> = config.listen.http.iter().map(|entrance| entrance.address).collect();
    assert_eq!(http, ["127.0.0.1:8080".parse().unwrap()]);
    assert!(config.listen.https.is_empty() && config.listen.trusted_proxies.0.is_empty());
    assert_eq!((config.tls.min_version, config.redirect_port()), (TlsVersion::V1_2, 443));
    assert_eq!(config.listen.admin, AdminAddress::Tcp("127.0.0.1:9900".parse().unwrap()));
    assert_eq!(config.paths.routes, Path::new("/etc/dormouse/routes"));
    assert_eq!(config.paths.certs, Path::new("/etc/dormouse/certs"));
    assert_eq!(config.paths.state, Path::new("/etc/dormouse/state"));
    let limits = &config.limits;
    let all = [limits.held, limits.starts, limits.connections, limits.sessions];
    assert_eq!(all, [10_000, 8, 50_000, 100_000]);
    let sizes = [limits.head, limits.uri, limits.body_rate, limits.answer_rate];
    assert_eq!((limits.headers, sizes), (200, [64 * 1024, 16 * 1024, 500, 500]));
    let words = (limits.underscores, limits.get_body);
    assert_eq!(words, (Underscores::Drop, GetBody::Refuse));
    let http2 = &config.http2;
    assert_eq!([http2.streams, http2.resets, http2.error_resets], [100, 20, 100]);
    let seconds = |duration: Duration| duration.as_secs();
    let timeouts = &config.timeouts;
    assert_eq!(timeouts.handshake, timeouts.client_head);
    let client = [timeouts.client_head, timeouts.client_body, timeouts.client_idle];
    assert_eq!(client.map(seconds), [10, 60, 75]);
    let slow = [timeouts.client_body_grace, timeouts.client_write];
    assert_eq!(slow.map(seconds), [20, 60]);
    let upstream = [timeouts.connect, timeouts.answer, timeouts.upstream_idle];
    assert_eq!(upstream.map(seconds), [5, 300, 4]);
    assert_eq!(config.shutdown.drain, Duration::from_secs(30));
    let kinds: Vec<_> = config.engine_kinds().into_iter().collect();
    let expected = [("docker", EngineKind::Docker), ("local", EngineKind::Process)];
    assert_eq!(kinds, expected.map(|(name, kind)| (name.to_owned(), kind)));
    let expected = DockerConfig {
        endpoint: DockerEndpoint::Unix("/var/run/docker.sock".into()),
        owner: "dormouse".into(),
        call_timeout: Duration::from_secs(60),
    };
    assert_eq!(docker(&config, "docker"), expected);
}

#[test]
fn the_example_says_the_defaults() {
    let example = parse(&fs::read_to_string("dormouse.toml").unwrap()).unwrap();
    let default = parse("").unwrap();
    // What is not compared is which of it was written.
    let meant = |config: &Config| {
        let Config { listen, tls, admin, paths, limits, http2, .. } = config.clone();
        let Config { timeouts, shutdown, links, access_log, acme, engines, .. } = config.clone();
        let first = (listen, tls, admin, paths, limits, http2);
        (first, (timeouts, shutdown, links, access_log, acme, engines))
    };
    assert_eq!(meant(&example), meant(&default));
}

#[test]
fn paths_start_from_the_files_own_folder() {
    let config = parse(
        r#"
        admin.token_file = "token"
        listen.admin = "unix:run/admin.sock"
        paths.routes = "/srv/routes"
        paths.state = "../state"
        "#,
    )
    .unwrap();
    assert_eq!(config.base, Path::new("/etc/dormouse"));
    assert_eq!(config.admin.token_file.as_deref(), Some(Path::new("/etc/dormouse/token")));
    assert_eq!(config.listen.admin, AdminAddress::Unix("/etc/dormouse/run/admin.sock".into()));
    assert_eq!(config.paths.routes, Path::new("/srv/routes"));
    assert_eq!(config.paths.state, Path::new("/etc/dormouse/../state"));
}

#[test]
fn a_missing_default_file_is_fine_and_a_missing_named_one_is_not() {
    // Cargo runs tests in the package's folder, where there is a dormouse.toml.
    let found = Config::load(None).unwrap();
    assert_eq!(found.file.as_deref(), Some(&*fs::canonicalize("dormouse.toml").unwrap()));
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("edge.toml");
    let errors = Config::load(Some(&missing)).unwrap_err();
    assert_eq!(errors[0].to_string(), format!("{}: there is no such file", missing.display()));
    fs::write(&missing, "limits.starts = 3").unwrap();
    assert_eq!(Config::load(Some(&missing)).unwrap().limits.starts, 3);
}

#[test]
fn every_error_is_told_with_its_place_and_what_was_expected() {
    let text = r#"
[listen]
http = ["localhost:80"]
admim = "127.0.0.1:1"
[limits]
held = "many"
[shutdown]
drain = "30 potatoes"
[engines.x]
kind = "dokcer"
"#;
    let expected = [
        "dormouse.toml:3:9: `localhost:80` is no address with a port, expected ADDRESS:PORT such \
         as \"127.0.0.1:8080\" or \"[::]:8080\"",
        "dormouse.toml:4:1: unknown key `admim`; did you mean `admin`? known: `http`, `https`, \
         `trusted_proxies`, `admin`",
        "dormouse.toml:6:8: invalid type: string \"many\", expected a whole number up to 4294967295",
        "dormouse.toml:8:9: `30 potatoes` is no duration, expected a duration such as \"30s\", \
         \"15m\" or \"2h\"",
        "dormouse.toml:10:8: unknown value `dokcer`; did you mean `docker`? known: `process`, \
         `docker`, `podman`, `command`, `fly`, `kubernetes`, `qemu`, `firecracker`",
    ];
    assert_eq!(errors(text), expected);
}

#[test]
fn what_has_the_right_shape_may_still_be_wrong() {
    let text = r#"
[listen]
http = ["127.0.0.1:80", "127.0.0.1:80"]
admin = "0.0.0.0:9900"
[limits]
held = 0
[timeouts]
connect = "0s"
[engines.My_Docker]
kind = "docker"
endpoint = "/var/run/docker.sock"
owner = "a b"
[engines.local]
kind = "process"
endpoint = "unix:///x"
"#;
    let expected = [
        "dormouse.toml:3:25: 127.0.0.1:80 stands here twice",
        "dormouse.toml:4:9: beyond loopback, the admin API needs a token; set admin.token_file, or \
         listen on 127.0.0.1 or unix:/path",
        "dormouse.toml:6:8: `held` starts at 1",
        "dormouse.toml:8:11: `connect` must be more than nothing",
        "dormouse.toml:9:10: `My_Docker` is no name of an engine; expected a-z, 0-9 and `-`, at \
         most 63, no `-` at the ends",
        "dormouse.toml:11:12: endpoint `/var/run/docker.sock`: no scheme; expected unix:///path, \
         tcp://HOST:PORT, https://HOST:PORT or ssh://[USER@]HOST[:PORT]",
        "dormouse.toml:12:9: not an owner's name; expected letters, digits, `.`, `_` and `-`, at \
         most 63",
        "dormouse.toml:15:1: `endpoint` is for kind = \"docker\" or \"podman\" only",
    ];
    assert_eq!(errors(text), expected);
}

#[test]
fn addresses_may_be_tables_and_start_from_the_files_own_folder() {
    let config = parse(
        r#"
        [listen]
        http = ["127.0.0.1:80", { address = "127.0.0.1:81", proxy_protocol = true }]
        https = [
            "[::]:8443",
            { address = "127.0.0.1:444", client_ca = "ca.pem" },
            { address = "127.0.0.1:445", client_ca = "/ca.pem", client_auth = "optional" },
        ]
        trusted_proxies = ["10.0.0.0/8", "192.0.2.7", "2001:db8::/32"]
        [tls]
        min_version = "1.3"
        "#,
    )
    .unwrap();
    let listen = &config.listen;
    assert!(!listen.http[0].proxy_protocol && listen.http[1].proxy_protocol);
    let auth = |at: usize| listen.https[at].client_auth.clone();
    let ca = |ca: &str, required| Some(ClientAuth { ca: ca.into(), required });
    assert_eq!(auth(0), None);
    assert_eq!([auth(1), auth(2)], [ca("/etc/dormouse/ca.pem", true), ca("/ca.pem", false)]);
    for (address, trusted) in
        [("10.1.2.3", true), ("192.0.2.7", true), ("192.0.2.8", false), ("::ffff:10.1.2.3", true)]
    {
        assert_eq!(listen.trusted_proxies.contain(address.parse().unwrap()), trusted, "{address}");
    }
    assert_eq!((config.tls.min_version, config.redirect_port()), (TlsVersion::V1_3, 8443));
}

#[test]
fn what_cannot_listen_is_told_with_its_place() {
    let text = r#"[listen]
http = [{ address = "127.0.0.1:80", proxy_protocol = true }, "127.0.0.1:443"]
https = ["127.0.0.1:443", "127.0.0.1:0", { address = "[::1]:444", client_auth = "optional" }]
[tls]
redirect_port = 0
"#;
    let expected = [
        "dormouse.toml:2:9: `proxy_protocol` without `trusted_proxies`; set \
         listen.trusted_proxies: the PROXY protocol is taken from them alone",
        "dormouse.toml:3:10: 127.0.0.1:443 stands here twice",
        "dormouse.toml:3:27: an address with TLS needs a port of its own, not 0",
        "dormouse.toml:3:42: `client_auth` needs a `client_ca`; client_ca is a PEM file with the \
         authorities to trust",
        "dormouse.toml:5:17: `redirect_port` starts at 1",
    ];
    assert_eq!(errors(text), expected);
    assert_eq!(errors("listen.http = []").len(), 1);
}

#[test]
fn a_limit_of_http_beyond_what_can_be_is_told() {
    let text = r#"
[limits]
headers = 300
head = "2MiB"
[http2]
streams = 0
connection_window = "1KiB"
stream_window = "4GiB"
[timeouts]
client_write = "0s"
"#;
    let expected = [
        "dormouse.toml:3:11: `headers` is at most 256",
        "dormouse.toml:4:8: `head` is from 1 KiB to 1 MiB",
        "dormouse.toml:6:11: `streams` starts at 1",
        "dormouse.toml:7:21: `connection_window` is at least 65535 bytes",
        "dormouse.toml:8:17: `stream_window` is at most 2147483647 bytes",
        "dormouse.toml:10:16: `client_write` must be more than nothing",
    ];
    assert_eq!(errors(text), expected);
    let expected = ["dormouse.toml:2:7: `uri` is part of the head, and so at most `limits.head`"];
    assert_eq!(errors("[limits]\nuri = \"128KiB\""), expected);
}

#[test]
fn beyond_loopback_the_admin_api_needs_a_token() {
    parse("listen.admin = \"[::1]:9900\"").unwrap();
    parse("listen.admin = \"0.0.0.0:9900\"\nadmin.token_file = \"token\"").unwrap();
    parse("listen.admin = \"0.0.0.0:9900\"").unwrap_err();
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "\\PC*") {
        let _ = parse(&text);
    }

    #[test]
    fn no_mangled_example_makes_it_panic(start in 0usize..800, len in 0usize..12, with in "\\PC{0,6}") {
        let mut text: Vec<char> = include_str!("../../dormouse.toml").chars().collect();
        let start = start.min(text.len());
        let end = (start + len).min(text.len());
        text.splice(start..end, with.chars());
        for error in parse(&String::from_iter(text)).err().into_iter().flatten() {
            prop_assert!(error.at.is_none_or(|at| at.line >= 1 && at.column >= 1));
        }
    }
}

#[test]
fn acme_means_what_it_says() {
    let text = "listen.https = [\"127.0.0.1:443\"]\n[acme]\ndirectory = \"staging\"\n\
                contact = [\"ops@a.test\"]\nhosts = [\"*.a.test\"]\nca_file = \"ca.pem\"\n\
                dns_hook = [\"txt\", \"{action}\", \"{name}={value}\"]\n";
    let config = parse(text).unwrap();
    let acme = config.acme.as_ref().unwrap();
    assert_eq!(acme.directory, "https://acme-staging-v02.api.letsencrypt.org/directory");
    assert_eq!(acme.contact, ["mailto:ops@a.test"]);
    assert_eq!(acme.ca_file.as_deref(), Some(Path::new("/etc/dormouse/ca.pem")));
    assert_eq!((acme.on_demand, acme.retry), (None, Duration::from_secs(300)));
    let folders = config.cert_folders();
    assert_eq!(folders.len(), 2);
    let server = "/etc/dormouse/state/acme/acme-staging-v02.api.letsencrypt.org-67f27506";
    assert_eq!(folders[1], Path::new(server).join("certs"));
    assert!(parse("").unwrap().acme.is_none());
}

#[test]
fn acme_says_what_is_wrong_and_where() {
    let with = |more: &str| errors(&format!("listen.https = [\"[::1]:443\"]\n[acme]\n{more}\n"));
    let cases = [
        ("directory = \"http://a.test/\"", "3:13: not an ACME directory; expected \"production\""),
        ("contact = [\"mailto:a@b.test\"]", "3:12: not a mail address; expected ops@example.com"),
        ("hosts = [\"a.test\", \"A.test\"]", "3:20: `A.test` can have no certificate; expected"),
        ("hosts = [\"a.test\", \"a.test\"]", "3:20: `a.test` stands here twice"),
        ("hosts = [\"*.a.test\"]", "3:10: a wildcard needs dns-01, and that a way into DNS; set"),
        ("challenge = \"dns-01\"", "3:13: dns-01 needs a way into DNS; set acme.dns_hook or"),
        ("on_demand_rate = 0", "3:18: `on_demand_rate` starts at 1"),
        ("retry = \"0s\"", "3:9: `retry` must be more than nothing"),
        ("dns_hook = [\"x\"]", "3:12: the command is not told what to do; its arguments need"),
        ("dns_hook = []", "3:12: no command"),
    ];
    for (text, says) in cases {
        let errors = with(text);
        assert_eq!(errors.len(), 1, "{text}: {errors:?}");
        assert!(errors[0].starts_with(&format!("dormouse.toml:{says}")), "{text}: {errors:?}");
    }
    let without = errors("[acme]\nhosts = [\"a.test\"]\n");
    assert!(without[0].contains("nobody would be shown the certificates"), "{without:?}");
}
