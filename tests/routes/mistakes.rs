//! What is said when a route is wrong: where, what, and what to do.

use crate::parse;

fn errors(text: &str) -> Vec<String> {
    let errors = parse("demo", text).expect_err("it has an error");
    errors.iter().map(ToString::to_string).collect()
}

/// The one error of a route that is otherwise right.
pub(crate) fn error(more: &str) -> String {
    let text = format!("host = \"{{session}}.localhost\"\n{more}");
    let text = if text.contains("command") {
        text
    } else {
        text.replacen('\n', "\ninstance.command = [\"x\"]\n", 1)
    };
    let errors = errors(&text);
    assert_eq!(errors.len(), 1, "{errors:?}");
    errors[0].clone()
}

#[test]
fn all_errors_of_a_file_are_told_in_their_order() {
    let text = r#"host = "{session}.localhost"
engine = "locl"
prob = "http"
[instance]
command = "x"
comand = ["x"]
[instance.docker]
read_only = "yes"
[ready]
probe = "htp"
[wake]
timeout = 30
page_after = "1500ms"
held_max = -1
[idle]
after = "ever"
[upstream]
tls = "yes"
"#;
    let expected = [
        "demo.toml:3:1: unknown key `prob`; did you mean `pool`? known: `host`, `engine`, `instance`, `ready`, `wake`, \
         `idle`, `tls`, `upstream`, `access`, `limits`, `pool`, `static`",
        "demo.toml:5:11: invalid type: string \"x\", expected a list",
        "demo.toml:6:1: unknown key `comand`; did you mean `command`? known: `image`, `command`, \
         `env`, `port`, `memory`, `cpus`, `pids`, `volumes`, `isolation`, `max`, \
         `parameters`, `process`, `docker`, `kubernetes`, `fly`, `qemu`, `firecracker`",
        "demo.toml:8:13: invalid type: string \"yes\", expected true or false",
        "demo.toml:10:9: unknown value `htp`; did you mean `http`? known: `tcp`, `http`, `engine`",
        "demo.toml:12:11: invalid type: integer `30`, expected a duration such as \"30s\", \
         \"15m\" or \"2h\"",
        "demo.toml:13:14: `1500ms` is not possible, expected \"never\": there is no waiting page \
         yet",
        "demo.toml:14:12: invalid value: integer `-1`, expected a whole number up to 4294967295",
        "demo.toml:16:9: `ever` is no duration, expected a duration such as \"30s\", \"15m\" or \
         \"2h\"",
        "demo.toml:18:7: invalid type: string \"yes\", expected true, false or { verify = false, \
         sni = \"…\" }",
    ];
    assert_eq!(errors(text), expected);
}

#[test]
fn a_missing_host_is_told_and_a_wrong_one_is_not_missing() {
    assert_eq!(errors("engine = \"local\""), ["demo.toml:1:1: missing key `host`"]);
    let wrong = ["demo.toml:1:8: invalid type: integer `5`, expected a string"];
    assert_eq!(errors("host = 5"), wrong);
}

#[test]
fn broken_toml_is_told_with_its_place() {
    let errors = errors("host = \"a\"\n\n[idle\nafter = \"1m\"");
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(errors[0].starts_with("demo.toml:3:6: "), "{errors:?}");
}

#[test]
fn columns_are_counted_in_characters() {
    let text = "host = \"a\"\ninstance = { command = [\"ä\"], imag = \"ü\" }";
    assert!(
        errors(text)[0].starts_with("demo.toml:2:31: unknown key `imag`"),
        "{:?}",
        errors(text)
    );
}

#[test]
fn a_wrong_host_says_why() {
    for (host, why) in [
        ("{session.e", "`{` without its `}`"),
        ("session}.e", "`}` without its `{`"),
        ("{a}{b}.e", "nothing between `{b}` and the capture before it"),
        ("{a}.{a}.e", "`{a}` stands twice in the host"),
        ("{host}.e", "a capture cannot be called `host`"),
        ("{A}.e", "`{A}` is no capture"),
        ("{}.e", "`{}` is no capture"),
        ("Alice.e", "lower case, without port and trailing dot"),
        ("alice.e:80", "lower case, without port and trailing dot"),
        ("alice.e.", "lower case, without port and trailing dot"),
        ("*.e", "`*` stands for nothing here: name the label, as in `{session}.example.com`"),
        ("", "not a host"),
        ("-{a}.e", "not a host"),
        ("{a}-.e", "not a host"),
        ("grüße.e", "punycode"),
        ("{a}.spare.internal", "those of a [pool]'s instances"),
        ("spare.internal", "those of a [pool]'s instances"),
    ] {
        let errors = errors(&format!("host = \"{host}\"\ninstance.command = [\"x\"]"));
        assert_eq!(errors.len(), 1, "{errors:?}");
        let place = "demo.toml:1:8: ";
        assert!(errors[0].starts_with(place) && errors[0].contains(why), "{}", errors[0]);
    }
}

#[test]
fn what_has_the_right_shape_may_still_be_wrong() {
    let two_rungs = |first: &str, second: &str| {
        format!("idle.sleep = [\n{{ after = {first} }},\n{{ after = {second} }}]")
    };
    let mut differing = Vec::new();
    for (more, expected) in [
        (
            "engine = \"dokcer\"",
            "3:10: no engine is called `dokcer`; did you mean `docker`? known: `docker`, `local`; see [engines] in dormouse.toml",
        ),
        (
            "instance.command = []",
            "2:20: a process needs a command; for example command = [\"./server\", \"--listen\", \"{address}\"]",
        ),
        (
            "engine = \"docker\"",
            "2:1: nothing says which container; set instance.image to create one, or instance.docker.container or instance.docker.label for one that exists",
        ),
        (
            "limits.running = 0",
            "3:18: `running` starts at 1; a route whose sessions could never wake is better removed",
        ),
        (
            "limits.wakes = \"fast\"",
            "3:16: `fast` is no rate, expected a rate such as \"30/m\", \"5/s burst 20\" or \"1000/h\", or \"unlimited\"",
        ),
        (
            "limits.when_full = \"evict\"",
            "3:20: unknown value `evict`; known: `refuse`, `evict_idle`",
        ),
        (
            "wake.ignore.agents = [\"a\", \"*\"]",
            "3:28: it would ignore everybody; name what is in it, or what it begins with",
        ),
        (
            "wake.ignore.paths = [\"metrics\"]",
            "3:22: `metrics` is no path, expected `/` and what follows it",
        ),
        (
            "wake.ignore.status = 302",
            "3:22: not a status for it, expected 200 to 299 or 400 to 599",
        ),
        (
            "static.\"/a?b\" = { body = \"\" }",
            "3:8: `/a?b` is no path; expected `/` and what follows it, percent-encoded, without `?`",
        ),
        ("static.\"/x\" = { file = \"none.txt\" }", "3:24: none.txt: there is no such file"),
        (
            "static.\"/x\" = { body = \"\", file = \"x\" }",
            "3:28: either `body` or `file`, not both",
        ),
        ("static.\"/x\" = { status = 204, body = \"x\" }", "3:15: 204 has no body"),
        (
            "instance.image = \"a:{team}\"",
            "3:18: unknown `{team}`; known here: `{session}`; write `{{` for the brace itself",
        ),
        (
            "instance.command = [\"a\", \"${HOME}\"]",
            "2:26: unknown `{HOME}`; known here: `{session}`, `{address}`, `{host}`, `{port}`; write `{{` for the brace itself",
        ),
        (
            "instance.env = { A = \"{\" }",
            "3:22: `{` without its `}`; write `{{` for the character itself",
        ),
        (
            "instance.env = { A = \"}\" }",
            "3:22: `}` without its `{`; write `}}` for the character itself",
        ),
        ("instance.env = { \"A=B\" = \"\" }", "3:18: no name of an environment variable"),
        (
            "instance.image = \"{address}\"",
            "3:18: unknown `{address}`; known here: `{session}`; write `{{` for the brace itself",
        ),
        ("instance.image = \"a\\u0000\"", "3:18: a zero byte cannot stand here"),
        (
            "instance.memory = \"lots\"",
            "3:19: `lots` is no size, expected a size such as \"512MiB\" or \"2GiB\"",
        ),
        (
            "instance.memory = \"0\"",
            "3:19: no bytes at all, expected a size such as \"512MiB\" or \"2GiB\"",
        ),
        ("instance.cpus = nan", "3:17: `NaN` is no number of cores, expected one such as 1.5"),
        ("instance.cpus = 0", "3:17: `0` is no number of cores, expected one such as 1.5"),
        ("instance.port = 0", "3:17: `port` starts at 1"),
        ("instance.pids = 0", "3:17: `pids` starts at 1"),
        (
            "instance.volumes = [\"/a\"]",
            "3:21: not a volume; expected `SOURCE:TARGET` or `SOURCE:TARGET:ro`",
        ),
        (
            "instance.volumes = [\"./a:/b\"]",
            "3:21: the source is neither an absolute path nor a volume's name; expected `SOURCE:TARGET` or `SOURCE:TARGET:ro`",
        ),
        (
            "instance.volumes = [\"a:b\"]",
            "3:21: the target is no absolute path; expected `SOURCE:TARGET` or `SOURCE:TARGET:ro`",
        ),
        (
            "instance.docker = { container = \"a\", label = \"b=c\" }",
            "3:46: either `container` or `label`, not both",
        ),
        ("instance.docker.label = \"b\"", "3:25: not a label, expected `KEY=VALUE`"),
        (
            "instance.docker.publish = \"here\"",
            "3:27: not an IP address, expected true, false or one such as 10.0.0.5",
        ),
        ("instance.docker.tmpfs = [\"tmp\"]", "3:26: `tmp` is no absolute path"),
        (
            "ready.path = \"/x\"",
            "3:14: `path` is for probe = \"http\" only; add probe = \"http\" to [ready]",
        ),
        (
            "ready = { probe = \"http\", path = \"x y\" }",
            "3:34: not a path, expected `/` and what follows it, percent-encoded",
        ),
        (
            "ready = { probe = \"http\", status = 42 }",
            "3:36: not an HTTP status, expected 100 to 599",
        ),
        ("wake.timeout = \"0s\"", "3:16: a wake needs more time than that"),
        (
            "wake.timeout = \"20years\"",
            "3:16: `20years` is more than 3650 days, expected a duration such as \"30s\", \"15m\" or \"2h\"",
        ),
        (
            "wake.held_max = 0",
            "3:17: `held_max` starts at 1; a session that may hold no request could never wake",
        ),
        (
            "idle = { after = \"1m\", sleep = [{ after = \"1m\", to = \"stopped\" }] }",
            "3:10: either `after` or `sleep`, not both; `after` is short for sleep = [{ after, to = \"stopped\" }]",
        ),
        ("idle.sleep = []", "3:14: a ladder needs at least one rung"),
        (
            &two_rungs("\"2m\", to = \"paused\"", "\"2m\", to = \"stopped\""),
            "5:11: not later than the rung before it",
        ),
        (
            &two_rungs("\"1m\", to = \"stopped\"", "\"2m\", to = \"paused\""),
            "5:22: not deeper than the rung before it",
        ),
        (
            "engine = \"docker\"\ninstance.docker.container = \"a\"\nidle.sleep = [{ after = \"1m\", to = \"removed\" }]",
            "5:36: a container that Dormouse did not create is never removed",
        ),
        ("upstream.set_headers = { \"a b\" = \"c\" }", "3:26: `a b` is no name of a header"),
        (
            "upstream.set_headers = { a = \"x\\n\" }",
            "3:30: not a header's value: it has control characters",
        ),
        (
            "upstream.set_headers = { Connection = \"close\" }",
            "3:26: `connection` cannot be set; it belongs to one connection, or says where a message ends",
        ),
        ("upstream.set_headers = { a = \"1\", A = \"2\" }", "3:26: this header stands here twice"),
        (
            "tls.hsts = { max_age = \"1d\", include_subdomains = true, preload = true }",
            "3:67: `preload` needs `include_subdomains` and a year of `max_age`",
        ),
        (
            "tls.hsts = 180",
            "3:12: invalid type: integer `180`, expected a duration such as \"30s\", \"15m\" or \"2h\", or { max_age = \"365d\", … }",
        ),
        ("wake.on = \"hello\"", "3:11: unknown value `hello`; known: `request`, `sni`"),
        ("upstream.tls = { sni = \"a b\" }", "3:24: `a b` is no host name"),
        (
            "upstream.tls = { verfy = true }",
            "3:18: unknown key `verfy`; did you mean `verify`? known: `verify`, `sni`",
        ),
    ] {
        let found = error(more);
        if found != format!("demo.toml:{expected}") {
            differing.push(format!("{more}\n  found    {found}\n  expected demo.toml:{expected}"));
        }
    }
    assert!(differing.is_empty(), "{}", differing.join("\n"));
}

#[test]
fn a_pool_is_of_what_is_the_same_for_every_session() {
    let told = |head: &str, more: &str, pool: &str| {
        let text =
            format!("{head}\n[instance]\ncommand = [\"x\"]\nimage = \"x\"\n{more}\n[pool]\n{pool}");
        let parsed = parse("demo", &text);
        parsed
            .map(drop)
            .map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    let (docker, local) =
        ("host = \"{session}.test\"\nengine = \"docker\"", "host = \"{session}.test\"");
    for depth in ["", "depth = \"paused\"", "depth = \"stopped\""] {
        assert_eq!(told(docker, "", &format!("ready = 3\n{depth}")), Ok(()));
    }
    assert_eq!(told(local, "env = { AT = \"{address} {{x}}\" }", "ready = 100"), Ok(()));
    for (head, more, pool, expected) in [
        (docker, "", "ready = 0", "8:9: `ready` is 1 to 100"),
        (docker, "", "ready = 101", "8:9: `ready` is 1 to 100"),
        (docker, "", "depth = \"paused\"", "7:1: missing key `ready`"),
        (
            docker,
            "",
            "ready = 1\ndepth = \"removed\"",
            "9:9: at `removed` this engine keeps nothing ahead; expected `paused` or `stopped`",
        ),
        (
            local,
            "",
            "ready = 1\ndepth = \"stopped\"",
            "8:9: at `stopped` this engine keeps nothing ahead; expected `paused`",
        ),
        (
            docker,
            "env = { ME = \"x {session}\" }",
            "ready = 1",
            "6:14: a capture stands here, and [pool] makes instances before there is a session; \
             remove the capture, or remove [pool]",
        ),
        (
            "host = \"a.test\"",
            "",
            "ready = 1",
            "6:1: this route has one host, so one session: nobody else would take a spare",
        ),
        (
            docker,
            "docker.container = \"mine\"",
            "ready = 1",
            "7:1: a container that exists is not made ahead",
        ),
        (
            docker,
            "kubernetes.scale = \"deployment/x\"",
            "ready = 1",
            "7:1: a workload that exists is not made ahead",
        ),
    ] {
        assert_eq!(told(head, more, pool), Err(vec![format!("demo.toml:{expected}")]));
    }
}

#[test]
fn an_engine_that_isolates_less_than_a_route_demands_is_refused() {
    let told = |engine: &str, isolation: &str, more: &str| {
        let text = format!(
            "host = \"a.test\"\nengine = \"{engine}\"\n[instance]\ncommand = [\"x\"]\n\
             image = \"x\"\nisolation = \"{isolation}\"\n{more}"
        );
        parse("demo", &text).map(drop).map_err(|errors| errors[0].to_string())
    };
    for (engine, isolation, more) in [
        ("docker", "container", ""),
        ("docker", "container", "docker.runtime = \"sysbox-runc\""),
        ("docker", "container", "docker.runtime = \"kata\""),
        ("docker", "kernel", "docker.runtime = \"runsc\""),
        ("docker", "kernel", "docker.runtime = \"runsc-kvm\""),
        ("docker", "vm", "docker.runtime = \"io.containerd.kata.v2\""),
        ("docker", "vm", "docker.runtime = \"kata-qemu\""),
    ] {
        assert_eq!(told(engine, isolation, more), Ok(()), "{engine} {isolation} {more}");
    }
    for (engine, isolation, more, text) in [
        (
            "local",
            "container",
            "",
            "6:13: the engine gives none that is known; a process sees its host: use another engine",
        ),
        (
            "docker",
            "kernel",
            "",
            "6:13: the engine gives \"container\"; set docker.runtime to \"runsc\" or \"kata\"",
        ),
        ("docker", "kernel", "docker.runtime = \"notrunsc\"", "gives \"container\""),
        ("docker", "vm", "docker.runtime = \"runsc\"", "gives \"kernel\""),
        (
            "docker",
            "container",
            "docker.container = \"mine\"",
            "how a container that exists was made",
        ),
        ("docker", "strong", "", "unknown value `strong`; known: `container`, `kernel`, `vm`"),
    ] {
        let error = told(engine, isolation, more).unwrap_err();
        assert!(error.contains(text), "{error}");
    }
}
