//! `[engines.NAME]` of each kind, and what a route may ask of it.

use std::{path::Path, time::Duration};

use dormouse::{
    config::{
        CommandConfig, Config, DockerConfig, DockerEndpoint, DockerTls, EngineConfig,
        FirecrackerConfig, FlyConfig, FlyPublic, JailConfig, KubernetesConfig, QemuConfig,
    },
    route::Route,
    session::Depth,
};

use super::{errors, parse};

/// What is first said of a route on this file's engine; nothing of one that is right.
fn said_of_route(config: &Config, engine: &str, more: &str) -> String {
    said_of_text(config, &format!("host = \"{{s}}.b\"\nengine = \"{engine}\"\n{more}\n"))
}

fn said_of_text(config: &Config, text: &str) -> String {
    let parsed = Route::parse("a", Path::new("a.toml"), text, &config.engine_kinds());
    parsed.map_err(|errors| errors[0].to_string()).err().unwrap_or_default()
}

pub(crate) fn docker(config: &Config, name: &str) -> DockerConfig {
    match &config.engines[name] {
        EngineConfig::Docker(docker) => docker.clone(),
        other => panic!("{name} is {other:?}"),
    }
}

/// Of whom the edge runs as, unless something says otherwise.
#[test]
fn podman_is_where_podman_is() {
    let at = |file: &str, environment: &[(&str, &str)]| {
        let of = |name: &str| {
            let known = environment.iter().find(|(known, _)| *known == name);
            known.map(|(_, value)| (*value).to_owned())
        };
        let path = Path::new("/etc/dormouse/dormouse.toml");
        let config = Config::parse(path, &format!("[engines.p]\n{file}"), of).unwrap();
        docker(&config, "p").endpoint
    };
    let unix = |path: &str| DockerEndpoint::Unix(path.into());
    let plain = "kind = \"podman\"";
    let docker_host = ("DOCKER_HOST", "unix:///docker.sock");
    let of_user = |path| [docker_host, ("XDG_RUNTIME_DIR", path)];
    assert_eq!(at(plain, &[docker_host]), unix("/run/podman/podman.sock"));
    assert_eq!(at(plain, &of_user("/run/user/0")), unix("/run/podman/podman.sock"));
    let rootless = unix("/run/user/1000/podman/podman.sock");
    assert_eq!(at(plain, &of_user("/run/user/1000")), rootless);
    let host = ("CONTAINER_HOST", "unix:///podman.sock");
    assert_eq!(at(plain, &[docker_host, host]), unix("/podman.sock"));
    assert_eq!(at("kind = \"podman\"\nendpoint = \"unix:///p\"", &[host]), unix("/p"));
    assert_eq!(at("kind = \"docker\"", &[docker_host, host]), unix("/docker.sock"));
    let far = errors("[engines.p]\nkind = \"podman\"\nendpoint = \"ssh://u@h:22/run/podman.sock\"");
    assert!(far[0].contains("forward its socket"), "{far:?}");
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
        let ladder = format!("idle.sleep = [{{ after = \"1m\", to = \"{to}\" }}]");
        said_of_route(&config, "lan", &ladder)
    };
    assert_eq!(route("stopped"), "");
    assert_eq!(route("paused"), "", "it falls to `stopped`");
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
    let error = said_of_route(&config, "fly", "");
    assert!(error.contains("a machine of Fly needs an image"), "{error}");

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
        "https://a:70000",
        "https://u:p@a",
        "https://a/?b",
        "http://[::1]:8080",
        "https://[2001:db8::1]",
        "http://localhost.a.example",
        "http://localhost@a.example",
        "ftp://a",
    ] {
        let wrong = errors(&with(url));
        assert!(wrong[0].contains("no public name, expected one such as"), "{url}: {wrong:?}");
    }
}

/// In clear text a token goes to nobody else, whatever a host's name begins with.
#[test]
fn a_token_of_fly_stays_near_where_it_is_not_encrypted() {
    let with = |url: &str| {
        format!("[engines.f]\nkind = \"fly\"\n[engines.f.fly]\napp = \"x\"\nendpoint = \"{url}\"")
    };
    for url in [
        "https://api.machines.dev/v1",
        "https://fly.example:8443/v1/",
        "http://_api.internal:4280/v1",
        "http://127.0.0.1:1/v1",
        "http://LOCALHOST/v1",
        "http://[::1]:4280/v1",
    ] {
        let parsed = parse(&with(url));
        assert!(parsed.is_ok(), "{url}: {:?}", parsed.err());
    }
    for url in [
        "http://localhost.evil.example/v1",
        "http://127.0.0.1.evil.example/v1",
        "http://_api.internal.evil.example/v1",
        "http://localhost@evil.example/v1",
        "https://api.machines.dev@api.machines.dev/v1",
        "https://user:word@api.machines.dev/v1",
        "http://localhost:port/v1",
        "https://api.machines.dev/v1?x",
        "https://api.machines.dev/v1#x",
        "//localhost/v1",
        "",
    ] {
        let wrong = errors(&with(url));
        assert!(wrong[0].contains("the token needs https://"), "{url}: {wrong:?}");
    }
}

#[test]
fn a_route_of_fly_has_one_volume_a_session() {
    let config =
        parse("[engines.fly]\nkind = \"fly\"\nfly.app = \"x\"\nfly.token_file = \"t\"").unwrap();
    let route = |instance: &str| {
        said_of_route(&config, "fly", &format!("[instance]\nimage = \"x\"\n{instance}"))
    };
    assert_eq!(route("volumes = [\"home-{s}:/home\"]\nfly.volume_size = \"3GiB\""), "");
    for (instance, said) in [
        ("volumes = [\"a-{s}:/a\", \"b-{s}:/b\"]", "a machine of Fly has one volume, no more"),
        ("volumes = [\"/srv:/srv\"]", "has no folder of its host: name a volume"),
        ("volumes = [\"home-{s}:/home:ro\"]", "a volume of Fly is always writable"),
        ("volumes = [\"home:/home\"]", "put all its captures in the volume's name"),
        ("volumes = [\"home:/{s}\"]", "put all its captures in the volume's name"),
    ] {
        let error = route(instance);
        assert!(error.contains(said), "{instance}: {error}");
    }
    let two = |volume: &str| {
        let text = format!(
            "host = \"{{app}}-{{user}}.x.example\"\nengine = \"fly\"\n[instance]\nimage = \"x\"\n\
             volumes = [\"{volume}:/home\"]"
        );
        said_of_text(&config, &text)
    };
    assert_eq!(two("{app}.{user}"), "");
    // Hosts `a-b.c…` and `a.b-c…` of such a route would share one.
    for shared in ["home-{user}", "{user}-{app}", "{app}_{user}", "{app}{user}", "{{app}}.{user}"] {
        assert!(two(shared).contains("put all its captures"), "{shared}: {}", two(shared));
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

    let route = |more: &str| said_of_route(&config, "plain", more);
    let boots = "instance.qemu.kernel = \"vmlinuz\"";
    let volumes = "instance.volumes = [\"home-{s}:/home\"]\nready.probe = \"http\"";
    let kept = route(&format!("{boots}\n{volumes}"));
    assert!(kept.contains("a virtual machine has no volumes here"), "{kept}");
    assert_eq!(route(&format!("{boots}\ninstance.isolation = \"vm\"\nready.probe = \"http\"")), "");
    let error = route(boots);
    assert!(error.contains("takes connections before its guest listens"), "{error}");
    let error = route("ready.probe = \"http\"");
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

    let route =
        |more: &str| said_of_route(&config, "plain", &format!("ready.probe = \"http\"\n{more}"));
    assert_eq!(route("[instance.firecracker]\nkernel = \"k\"\n[instance]\nisolation = \"vm\""), "");
    assert_eq!(route("[instance.firecracker]\ngolden = \"g-{s}\""), "");
    let error = route("");
    assert!(error.contains("nothing says what the machine boots"), "{error}");
    let error = route("[instance.firecracker]\nkernel = \"k\"\ntap = \"t-{s}\"");
    assert!(error.contains("`tap` and `address` go together"), "{error}");
    let layered = |more: &str| route(&format!("[instance.firecracker]\nkernel = \"k\"\n{more}"));
    for fits in ["1MiB", "64TiB"] {
        assert_eq!(layered(&format!("disk = \"d\"\nlayer = \"{fits}\"")), "");
    }
    let error = layered("layer = \"8GiB\"");
    assert!(error.contains("a.toml:6:9: `layer` lies over `disk`, and there is none"), "{error}");
    for beyond in ["1023KiB", "65TiB"] {
        let error = layered(&format!("disk = \"d\"\nlayer = \"{beyond}\""));
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

    let route = |instance: &str| said_of_route(&config, "near", &format!("[instance]\n{instance}"));
    assert_eq!(route("image = \"x\"\nvolumes = [\"home:/home\"]"), "");
    assert_eq!(route("kubernetes.scale = \"statefulset/db\""), "");
    let told = |instance: &str, wanted: &str| {
        let error = route(instance);
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
        said_of_route(
            &config,
            "vm",
            &format!("ready.probe = \"http\"\n[instance.qemu]\nkernel = \"k\"\n{qemu}"),
        )
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
        "dormouse.toml:4:1: `endpoint` is for kind = \"docker\" or \"podman\" only",
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
fn the_default_engines_stay_beside_others() {
    let names = |text: &str| parse(text).unwrap().engines.into_keys().collect::<Vec<_>>();
    assert_eq!(names("[engines.lab]\nkind = \"process\"\n"), ["docker", "lab", "local"]);
    // The same containers twice: each would put the other's to sleep.
    let twin = "[engines.desk]\nkind = \"docker\"\n";
    assert_eq!(names(twin), ["desk", "local"]);
    assert_eq!(names(&format!("{twin}owner = \"b\"\n")), ["desk", "docker", "local"]);
    let config = parse("[engines.lab]\nkind = \"process\"\n").unwrap();
    assert!(config.docker_is_implied);
    assert!(!parse("[engines.docker]\nkind = \"docker\"\n").unwrap().docker_is_implied);
    let odd = |_: &str| Some("npipe://x".to_owned());
    let local = "[engines.lab]\nkind = \"process\"\n";
    let config = Config::parse(Path::new("/etc/dormouse.toml"), local, odd).unwrap();
    assert!(!config.engines.contains_key("docker"), "nobody asked for Docker");
}

/// Every key that a file may say, with its name as a reload tells it.
#[test]
fn an_edited_key_has_a_name() {
    let before = parse("").unwrap();
    for (text, key) in [
        ("[listen]\nhttp = [\"127.0.0.1:1\"]", "listen.http"),
        ("[tls]\nmin_version = \"1.3\"", "tls.min_version"),
        ("[admin]\ntoken_file = \"t\"", "admin.token_file"),
        ("[paths]\nroutes = \"r\"", "paths.routes"),
        ("[limits]\nheld = 1", "limits.held"),
        ("[http2]\nstreams = 1", "http2.streams"),
        ("[timeouts]\nconnect = \"1s\"", "timeouts.connect"),
        ("[shutdown]\ndrain = \"1s\"", "shutdown.drain"),
        ("[links]\nkeys = { a = \"k\" }", "links.keys.a"),
        ("[log]\naccess = \"a\"", "log.access"),
        ("[engines.x]\nkind = \"process\"", "engines"),
    ] {
        assert_eq!(before.different_keys(&parse(text).unwrap()), [key], "{text}");
    }
    assert_eq!(before.different_keys(&parse("[limits]\nheld = 10000").unwrap()), [""; 0]);
}
