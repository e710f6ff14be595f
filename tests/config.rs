//! `dormouse.toml`, the committed examples and the committed schemas.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{fs, path::Path, time::Duration};

use dormouse::{
    config::{
        AdminAddress, ClientAuth, CommandConfig, Config, DockerConfig, DockerEndpoint, DockerTls,
        EngineConfig, FirecrackerConfig, FlyConfig, FlyPublic, GetBody, JailConfig,
        KubernetesConfig, QemuConfig, TlsVersion, Underscores,
    },
    route::{EngineKind, Route, RouteError, load_dir},
    schema::{SchemaFile, reference},
    session::Depth,
};
use proptest::prelude::*;
use serde_json::{Value, json};

fn parse(text: &str) -> Result<Config, Vec<RouteError>> {
    Config::parse(Path::new("/etc/dormouse/dormouse.toml"), text, |_| None)
}

fn errors(text: &str) -> Vec<String> {
    let errors = parse(text).expect_err("it has an error");
    errors.iter().map(|error| error.to_string().replace("/etc/dormouse/", "")).collect()
}

fn docker(config: &Config, name: &str) -> DockerConfig {
    match &config.engines[name] {
        EngineConfig::Docker(docker) => docker.clone(),
        other => panic!("{name} is {other:?}"),
    }
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
    assert_eq!(example, parse("").unwrap());
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
fn every_form_of_a_docker_endpoint() {
    let tls = "tls_ca = \"ca.pem\"\ntls_cert = \"cert.pem\"\ntls_key = \"key.pem\"\n";
    let endpoint = |text: &str, more: &str| {
        let text = format!("[engines.d]\nkind = \"docker\"\nendpoint = \"{text}\"\n{more}");
        parse(&text).map(|config| docker(&config, "d").endpoint)
    };
    let pem = |name: &str| Path::new("/etc/dormouse").join(name);
    let with_tls = DockerTls { ca: pem("ca.pem"), cert: pem("cert.pem"), key: pem("key.pem") };
    let tcp = |tls| DockerEndpoint::Tcp { address: "10.0.0.5:2376".into(), tls };
    assert_eq!(
        endpoint("unix:///run/d.sock", "").unwrap(),
        DockerEndpoint::Unix("/run/d.sock".into())
    );
    assert_eq!(endpoint("tcp://10.0.0.5:2376", "").unwrap(), tcp(None));
    assert_eq!(endpoint("tcp://10.0.0.5:2376", tls).unwrap(), tcp(Some(with_tls.clone())));
    assert_eq!(endpoint("https://10.0.0.5:2376/", tls).unwrap(), tcp(Some(with_tls)));
    let ssh = "ssh://me@build:2222";
    assert_eq!(endpoint(ssh, "").unwrap(), DockerEndpoint::Ssh(ssh.into()));
    for (text, more) in [
        ("https://10.0.0.5:2376", ""),
        ("unix:///run/d.sock", tls),
        ("tcp://10.0.0.5", ""),
        ("tcp://", ""),
        ("npipe:////./pipe/docker", ""),
        ("/var/run/docker.sock", ""),
        ("tcp://10.0.0.5:2376", "tls_ca = \"ca.pem\""),
    ] {
        endpoint(text, more).expect_err(text);
    }
}

#[test]
fn docker_host_is_used_where_no_endpoint_is_given() {
    let environment = |name: &str| match name {
        "DOCKER_HOST" => Some("tcp://10.0.0.5:2376".to_owned()),
        "DOCKER_TLS_VERIFY" => Some("1".to_owned()),
        "DOCKER_CERT_PATH" => Some("/certs".to_owned()),
        _ => None,
    };
    let text = "[engines.a]\nkind = \"docker\"\n\
                [engines.b]\nkind = \"docker\"\nendpoint = \"unix:///b\"";
    let config = Config::parse(Path::new("/dormouse.toml"), text, environment).unwrap();
    let tls = DockerTls {
        ca: "/certs/ca.pem".into(),
        cert: "/certs/cert.pem".into(),
        key: "/certs/key.pem".into(),
    };
    let expected = DockerEndpoint::Tcp { address: "10.0.0.5:2376".into(), tls: Some(tls) };
    assert_eq!(docker(&config, "a").endpoint, expected);
    assert_eq!(docker(&config, "b").endpoint, DockerEndpoint::Unix("/b".into()));
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
         `docker`, `command`, `fly`, `kubernetes`, `qemu`, `firecracker`",
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
        "dormouse.toml:15:1: `endpoint` is for kind = \"docker\" only",
    ];
    assert_eq!(errors(text), expected);
}

#[test]
fn a_program_is_an_engine() {
    let text = r#"
[engines.lan]
kind = "command"
[engines.lan.command]
run = ["./wake.sh", "x"]
[engines.full]
kind = "command"
owner = "edge-2"
call_timeout = "5s"
[engines.full.command]
run = ["qm"]
depths = ["removed", "paused", "stopped"]
environment = ["SSH_AUTH_SOCK"]
at_once = 2
poll = "1m"
"#;
    let expected = CommandConfig {
        run: vec!["./wake.sh".into(), "x".into()],
        depths: &[Depth::Stopped],
        environment: Vec::new(),
        call_timeout: Duration::from_secs(60),
        at_once: 8,
        poll: Duration::from_secs(10),
        owner: "dormouse".into(),
    };
    let full = CommandConfig {
        run: vec!["qm".into()],
        depths: &[Depth::Paused, Depth::Stopped, Depth::Removed],
        environment: vec!["SSH_AUTH_SOCK".into()],
        call_timeout: Duration::from_secs(5),
        at_once: 2,
        poll: Duration::from_secs(60),
        owner: "edge-2".into(),
    };
    let config = parse(text).unwrap();
    assert_eq!(config.engines["lan"], EngineConfig::Command(expected));
    assert_eq!(config.engines["full"], EngineConfig::Command(full));

    let route = |to: &str| {
        let text = format!(
            "host = \"a.b\"\nengine = \"lan\"\nidle.sleep = [{{ after = \"1m\", to = \"{to}\" }}]"
        );
        Route::parse("a", Path::new("a.toml"), &text, &config.engine_kinds()).map(drop)
    };
    assert_eq!(route("stopped"), Ok(()));
    let error = route("paused").unwrap_err()[0].to_string();
    assert!(error.contains("an engine of kind command has no `paused`"), "{error}");
}

#[test]
fn a_fly_app_is_an_engine() {
    let text = r#"
[engines.fly]
kind = "fly"
[engines.fly.fly]
app = "desks"
token_file = "secrets/fly"
"#;
    let expected = FlyConfig {
        endpoint: "https://api.machines.dev/v1".into(),
        app: "desks".into(),
        token_file: Some("/etc/dormouse/secrets/fly".into()),
        region: None,
        public: None,
        owner: "dormouse".into(),
        call_timeout: Duration::from_secs(60),
        poll: Duration::from_secs(10),
    };
    let config = parse(text).unwrap();
    assert_eq!(config.engines["fly"], EngineConfig::Fly(expected));
    let route = "host = \"a.b\"\nengine = \"fly\"";
    let error = Route::parse("a", Path::new("a.toml"), route, &config.engine_kinds()).unwrap_err();
    assert!(error[0].to_string().contains("a machine of Fly needs an image"), "{}", error[0]);

    let text = r#"
[engines.a]
kind = "fly"
[engines.b]
kind = "fly"
[engines.b.fly]
app = "Desks"
endpoint = "http://api.machines.dev/v1"
poll = "2h"
token = "x"
[engines.c]
kind = "process"
fly.app = "x"
"#;
    let expected = ["dormouse.toml:10:1: unknown key `token`; known: `app`, `token_file`, \
         `endpoint`, `region`, `public`, `poll`"];
    assert_eq!(errors(text), expected);
    let expected = [
        "dormouse.toml:2:1: nothing says which app; set app under [engines.a.fly]",
        "dormouse.toml:7:7: no name of an app",
        "dormouse.toml:8:12: the token needs https://, or http://_api.internal inside 6PN",
        "dormouse.toml:9:8: `poll` goes from \"1s\" to \"1h\"",
        "dormouse.toml:12:1: `fly` is for kind = \"fly\" only",
    ];
    assert_eq!(errors(&text.replace("token = \"x\"\n", "")), expected);
}

#[test]
fn a_fly_app_may_be_reached_by_its_public_name() {
    let with = |url: &str| {
        format!("[engines.f]\nkind = \"fly\"\n[engines.f.fly]\napp = \"x\"\npublic = \"{url}\"")
    };
    let public = |url: &str| match &parse(&with(url)).unwrap().engines["f"] {
        EngineConfig::Fly(fly) => fly.public.clone().unwrap(),
        other => panic!("{other:?}"),
    };
    let of = |tls, host: &str, port| FlyPublic { tls, host: host.into(), port };
    assert_eq!(public("https://desks.fly.dev"), of(true, "desks.fly.dev", 443));
    assert_eq!(public("https://Desks.example.com:8443/"), of(true, "desks.example.com", 8443));
    assert_eq!(public("http://127.0.0.1:81"), of(false, "127.0.0.1", 81));
    for url in [
        "desks.fly.dev",
        "http://desks.fly.dev",
        "https://",
        "https://a/b",
        "https://a:b",
        "ftp://a",
    ] {
        let wrong = errors(&with(url));
        assert!(wrong[0].contains("no public name, expected one such as"), "{url}: {wrong:?}");
    }
}

#[test]
fn a_route_of_fly_has_one_volume_a_session() {
    let config =
        parse("[engines.fly]\nkind = \"fly\"\nfly.app = \"x\"\nfly.token_file = \"t\"").unwrap();
    let route = |instance: &str| {
        let text =
            format!("host = \"{{s}}.b\"\nengine = \"fly\"\n[instance]\nimage = \"x\"\n{instance}");
        let parsed = Route::parse("a", Path::new("a.toml"), &text, &config.engine_kinds());
        parsed.map(drop).map_err(|errors| errors[0].to_string()).err().unwrap_or_default()
    };
    assert_eq!(route("volumes = [\"home-{s}:/home\"]\nfly.volume_size = \"3GiB\""), "");
    for (instance, said) in [
        ("volumes = [\"a-{s}:/a\", \"b-{s}:/b\"]", "a machine of Fly has one volume, no more"),
        ("volumes = [\"/srv:/srv\"]", "has no folder of its host: name a volume"),
        ("volumes = [\"home-{s}:/home:ro\"]", "a volume of Fly is always writable"),
        ("volumes = [\"home:/home\"]", "put a capture in its name"),
    ] {
        let error = route(instance);
        assert!(error.contains(said), "{instance}: {error}");
    }
}

#[test]
fn virtual_machines_are_an_engine() {
    let arch = std::env::consts::ARCH;
    let text = r#"
[engines.plain]
kind = "qemu"
[engines.set]
kind = "qemu"
call_timeout = "5s"
[engines.set.qemu]
program = "/opt/qemu/bin/qemu"
image_program = "/opt/qemu/bin/img"
kvm = false
"#;
    let config = parse(text).unwrap();
    let plain = QemuConfig {
        program: format!("qemu-system-{arch}").into(),
        image_program: "qemu-img".into(),
        kvm: None,
        call_timeout: Duration::from_secs(60),
    };
    let set = QemuConfig {
        program: "/opt/qemu/bin/qemu".into(),
        image_program: "/opt/qemu/bin/img".into(),
        kvm: Some(false),
        call_timeout: Duration::from_secs(5),
    };
    assert_eq!(config.engines["plain"], EngineConfig::Qemu(plain));
    assert_eq!(config.engines["set"], EngineConfig::Qemu(set));

    let route = |more: &str| {
        let text = format!("host = \"a.b\"\nengine = \"plain\"\n{more}\n");
        let parsed = Route::parse("a", Path::new("a.toml"), &text, &config.engine_kinds());
        parsed.map(drop).map_err(|errors| errors[0].to_string())
    };
    let boots = "instance.qemu.kernel = \"vmlinuz\"";
    assert_eq!(
        route(&format!("{boots}\ninstance.isolation = \"vm\"\nready.probe = \"http\"")),
        Ok(())
    );
    let error = route(boots).unwrap_err();
    assert!(error.contains("the way in is open before the guest listens"), "{error}");
    let error = route("ready.probe = \"http\"").unwrap_err();
    assert!(error.contains("nothing says what the machine boots"), "{error}");
}

#[test]
fn micro_vms_are_an_engine() {
    let text = r#"
[engines.plain]
kind = "firecracker"
[engines.jailed]
kind = "firecracker"
call_timeout = "5s"
[engines.jailed.firecracker]
program = "/opt/firecracker"
clock_realtime = true
[engines.jailed.firecracker.jailer]
uid = 4000
gid = 4001
"#;
    let config = parse(text).unwrap();
    let plain = FirecrackerConfig {
        program: "firecracker".into(),
        jail: None,
        clock_realtime: false,
        call_timeout: Duration::from_secs(60),
    };
    let jailed = FirecrackerConfig {
        program: "/opt/firecracker".into(),
        jail: Some(JailConfig { program: "jailer".into(), uid: 4000, gid: 4001 }),
        clock_realtime: true,
        call_timeout: Duration::from_secs(5),
    };
    assert_eq!(config.engines["plain"], EngineConfig::Firecracker(plain));
    assert_eq!(config.engines["jailed"], EngineConfig::Firecracker(jailed));
    let wrong = errors(&text.replace("uid = 4000", "uid = 0").replace("/opt/fire", "fire"));
    assert!(wrong[0].contains("`program` is an absolute path"), "{wrong:?}");
    assert!(wrong[1].contains("a jail of root is none"), "{wrong:?}");

    let route = |more: &str| {
        let text =
            format!("host = \"{{s}}.b\"\nengine = \"plain\"\nready.probe = \"http\"\n{more}\n");
        let parsed = Route::parse("a", Path::new("a.toml"), &text, &config.engine_kinds());
        parsed.map(drop).map_err(|errors| errors[0].to_string())
    };
    assert_eq!(
        route("[instance.firecracker]\nkernel = \"k\"\n[instance]\nisolation = \"vm\""),
        Ok(())
    );
    assert_eq!(route("[instance.firecracker]\ngolden = \"g-{s}\""), Ok(()));
    let error = route("").unwrap_err();
    assert!(error.contains("nothing says what the machine boots"), "{error}");
    let error = route("[instance.firecracker]\nkernel = \"k\"\ntap = \"t-{s}\"").unwrap_err();
    assert!(error.contains("`tap` and `address` go together"), "{error}");
    let layered = |more: &str| route(&format!("[instance.firecracker]\nkernel = \"k\"\n{more}"));
    for fits in ["1MiB", "64TiB"] {
        assert_eq!(layered(&format!("disk = \"d\"\nlayer = \"{fits}\"")), Ok(()));
    }
    let error = layered("layer = \"8GiB\"").unwrap_err();
    assert!(error.contains("a.toml:6:9: `layer` lies over `disk`, and there is none"), "{error}");
    for beyond in ["1023KiB", "65TiB"] {
        let error = layered(&format!("disk = \"d\"\nlayer = \"{beyond}\"")).unwrap_err();
        assert!(error.contains("at least 1MiB and at most 64TiB"), "{error}");
    }
}

#[test]
fn a_cluster_is_an_engine() {
    let text = r#"
[engines.near]
kind = "kubernetes"
[engines.far]
kind = "kubernetes"
owner = "edge-2"
call_timeout = "5s"
[engines.far.kubernetes]
kubeconfig = "far.yaml"
context = "prod"
namespace = "sessions"
start_timeout = "4m"
"#;
    let near = KubernetesConfig {
        kubeconfig: None,
        context: None,
        namespace: None,
        owner: "dormouse".into(),
        call_timeout: Duration::from_secs(60),
        start_timeout: Duration::from_secs(120),
    };
    let far = KubernetesConfig {
        kubeconfig: Some("/etc/dormouse/far.yaml".into()),
        context: Some("prod".into()),
        namespace: Some("sessions".into()),
        owner: "edge-2".into(),
        call_timeout: Duration::from_secs(5),
        start_timeout: Duration::from_secs(240),
    };
    let config = parse(text).unwrap();
    assert_eq!(config.engines["near"], EngineConfig::Kubernetes(near));
    assert_eq!(config.engines["far"], EngineConfig::Kubernetes(far));

    let route = |instance: &str| {
        let text = format!("host = \"a.b\"\nengine = \"near\"\n[instance]\n{instance}\n");
        let parsed = Route::parse("a", Path::new("a.toml"), &text, &config.engine_kinds());
        parsed.map(drop).map_err(|errors| errors[0].to_string())
    };
    assert_eq!(route("image = \"x\"\nvolumes = [\"home:/home\"]"), Ok(()));
    assert_eq!(route("kubernetes.scale = \"statefulset/db\""), Ok(()));
    let told = |instance: &str, wanted: &str| {
        let error = route(instance).unwrap_err();
        assert!(error.contains(wanted), "{error}");
    };
    told("port = 1", "nothing says what the Pod runs");
    told("kubernetes.scale = \"pod/x\"", "expected `deployment/NAME` or `statefulset/NAME`");
    let unknown = "isolation = \"container\"\nkubernetes.scale = \"deployment/x\"";
    told(unknown, "how a workload that exists was made is not known here");
    told("image = \"x\"\nvolumes = [\"/srv:/srv\"]", "a Pod gets no folder of its node");
    told("image = \"x\"\nkubernetes.user = \"root\"", "expected `UID` or `UID:GID`");
    told("image = \"x\"\nkubernetes.tmpfs = [\"tmp\"]", "`tmp` is no absolute path");
}

#[test]
fn a_virtual_machine_behind_a_tap_has_an_address_there() {
    let config = parse("[engines.vm]\nkind = \"qemu\"").unwrap();
    let route = |qemu: &str| {
        let text = format!(
            "host = \"{{s}}.b\"\nengine = \"vm\"\nready.probe = \"http\"\n[instance.qemu]\nkernel = \"k\"\n{qemu}"
        );
        let parsed = Route::parse("a", Path::new("a.toml"), &text, &config.engine_kinds());
        parsed.map(drop).map_err(|errors| errors[0].to_string()).err().unwrap_or_default()
    };
    let behind = "tap = \"t-{s}\"\naddress = \"10.0.0.2\"\n";
    assert_eq!(route(behind), "");
    assert!(route("tap = \"t\"").contains("`tap` and `address` go together"));
    let both = format!("{behind}outbound = true");
    assert!(route(&both).contains("it is your network that says what the guest reaches"));
}

#[test]
fn what_is_wrong_with_a_cluster_is_told() {
    let text = r#"
[engines.a]
kind = "kubernetes"
owner = "-x"
[engines.a.kubernetes]
start_timeout = "5m"
[engines.b]
kind = "docker"
kubernetes = {}
"#;
    let expected = [
        "dormouse.toml:4:9: a label's value begins and ends with a letter or digit",
        "dormouse.toml:6:17: `start_timeout` is more than nothing and at most \"280s\"",
        "dormouse.toml:9:1: `kubernetes` is for kind = \"kubernetes\" only",
    ];
    assert_eq!(errors(text), expected);
}

#[test]
fn what_is_wrong_with_a_program_is_told() {
    let text = r#"
[engines.a]
kind = "command"
endpoint = "unix:///x"
[engines.b]
kind = "command"
[engines.b.command]
run = []
depths = ["paused"]
environment = ["A=b"]
at_once = 0
poll = "10ms"
[engines.c]
kind = "docker"
command.run = ["x"]
"#;
    let expected = [
        "dormouse.toml:2:1: nothing says which program to run; for example, under \
         [engines.a.command]: run = [\"./engines/wake-on-lan.sh\"]",
        "dormouse.toml:4:1: `endpoint` is for kind = \"docker\" only",
        "dormouse.toml:8:7: nothing says which program to run; for example, under \
         [engines.b.command]: run = [\"./engines/wake-on-lan.sh\"]",
        "dormouse.toml:9:10: `depths` needs \"stopped\"",
        "dormouse.toml:10:16: no name of an environment variable",
        "dormouse.toml:11:11: `at_once` goes from 1 to 1024",
        "dormouse.toml:12:8: `poll` goes from \"1s\" to \"1h\"",
        "dormouse.toml:15:1: `command` is for kind = \"command\" only",
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

/// `DORMOUSE_BLESS=1 cargo test --test config` writes them anew.
#[test]
fn the_committed_schemas_are_those_of_the_types() {
    for schema in SchemaFile::ALL {
        let file = Path::new("schema").join(schema.file_name());
        if std::env::var_os("DORMOUSE_BLESS").is_some() {
            fs::write(&file, schema.text()).unwrap();
        }
        let committed = fs::read_to_string(&file).unwrap();
        assert!(committed == schema.text(), "stale: {}; set DORMOUSE_BLESS=1", file.display());
    }
}

/// `DORMOUSE_BLESS=1 cargo test --test config` writes it anew.
#[test]
fn the_committed_reference_is_that_of_the_types() {
    if std::env::var_os("DORMOUSE_BLESS").is_some() {
        fs::write("docs/reference.md", reference()).unwrap();
    }
    let committed = fs::read_to_string("docs/reference.md").unwrap();
    assert!(committed == reference(), "stale: docs/reference.md; set DORMOUSE_BLESS=1");
    for key in ["limits", "timeouts", "engines.NAME", "instance.docker", "upstream"] {
        assert!(committed.contains(&format!("### `[{key}]`")), "{key}");
    }
    for key in ["host", "held", "tls_ca", "sleep { to }", "tls { verify }", "set_headers"] {
        assert!(committed.contains(&format!("| `{key}` |")), "{key}");
    }
}

fn as_json(text: &str) -> Value {
    serde_json::to_value(toml::from_str::<toml::Table>(text).unwrap()).unwrap()
}

fn is_valid(schema: SchemaFile, text: &str) -> bool {
    jsonschema::draft7::meta::validate(&schema.generate()).unwrap();
    jsonschema::validator_for(&schema.generate()).unwrap().is_valid(&as_json(text))
}

#[test]
fn the_examples_are_valid_to_an_editor_and_to_us() {
    assert!(is_valid(SchemaFile::Dormouse, &fs::read_to_string("dormouse.toml").unwrap()));
    assert!(is_valid(SchemaFile::Route, &fs::read_to_string("routes/demo.toml").unwrap()));
    let config = Config::load(Some(Path::new("dormouse.toml"))).unwrap();
    let table = load_dir(&config.paths.routes, &config.engine_kinds()).unwrap();
    assert_eq!(&*table.lookup("alice.localhost").unwrap().name, "demo");
    for (file, schema) in
        [("dormouse.toml", "./schema/dormouse"), ("routes/demo.toml", "../schema/route")]
    {
        let text = fs::read_to_string(file).unwrap();
        assert!(text.starts_with(&format!("#:schema {schema}.schema.json\n")), "{file}");
    }
}

#[test]
fn an_editor_accepts_what_we_accept() {
    assert!(is_valid(SchemaFile::Dormouse, ""));
    assert!(is_valid(SchemaFile::Route, "host = \"a.example\""));
    assert!(is_valid(SchemaFile::Route, include_str!("routes/full.toml")));
}

#[test]
fn an_editor_refuses_what_is_obviously_wrong() {
    for text in [
        "listen.htp = []",
        "listen.https = [{ adress = \"127.0.0.1:443\" }]",
        "listen.https = [{ address = \"127.0.0.1:443\", client_auth = \"maybe\" }]",
        "listen.http = [{ address = \"127.0.0.1:80\", client_ca = \"ca.pem\" }]",
        "listen.trusted_proxies = [\"everybody\"]",
        "tls.min_version = \"1.1\"",
        "listen.http = \"127.0.0.1:80\"",
        "limits.held = 0",
        "limits.held = \"many\"",
        "shutdown.drain = 30",
        "shutdown.drain = \"soon\"",
        "engines.x.kind = \"vm\"",
        "engines.x.owner = \"me\"",
    ] {
        assert!(!is_valid(SchemaFile::Dormouse, text), "{text}");
    }
    for text in [
        "",
        "host = 5",
        "ready.probe = \"http\"",
        "host = \"a\"\nready.prob = \"http\"",
        "host = \"a\"\nready.probe = \"htp\"",
        "host = \"a\"\nwake.page_after = \"1s\"",
        "host = \"a\"\nidle.sleep = []",
        "host = \"a\"\nidle.sleep = [{ after = \"1s\" }]",
        "host = \"a\"\nidle.sleep = [{ after = \"1s\", to = \"asleep\" }]",
        "host = \"a\"\nupstream.tls = { verfy = true }",
        "host = \"a\"\nupstream.tls = \"yes\"",
        "host = \"a\"\ninstance.memory = 512",
        "host = \"a\"\ninstance.docker.publish = 1",
    ] {
        assert!(!is_valid(SchemaFile::Route, text), "{text}");
    }
}

#[test]
fn every_key_of_the_schemas_is_described() {
    fn walk(path: &str, schema: &Value, bare: &mut Vec<String>) {
        for (key, property) in schema["properties"].as_object().into_iter().flatten() {
            let path = format!("{path}.{key}");
            if property["description"].as_str().is_none_or(str::is_empty) {
                bare.push(path.clone());
            }
            walk(&path, property, bare);
            walk(&path, &property["items"], bare);
            walk(&path, &property["additionalProperties"], bare);
            for one in property["anyOf"].as_array().into_iter().flatten() {
                walk(&path, one, bare);
            }
        }
    }
    let mut bare = Vec::new();
    for schema in SchemaFile::ALL {
        walk(schema.file_name(), &schema.generate(), &mut bare);
    }
    assert_eq!(bare, [""; 0]);
    assert_eq!(
        SchemaFile::Dormouse.generate()["properties"]["limits"]["properties"]["starts"]["default"],
        json!(8)
    );
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "\\PC*") {
        let _ = parse(&text);
    }

    #[test]
    fn no_mangled_example_makes_it_panic(start in 0usize..800, len in 0usize..12, with in "\\PC{0,6}") {
        let mut text: Vec<char> = include_str!("../dormouse.toml").chars().collect();
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
