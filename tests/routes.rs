//! Route files: what they mean, which host they serve, and what is said when they are wrong.

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    os::unix::fs::symlink,
    path::Path,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use dormouse::{
    route::{
        EngineKind, Engines, Protocol, Route, RouteError, RouteTable, canonical_host, load_dir,
        watch::watch,
    },
    session::{Depth, DockerSpec, Listen, Policy, Probe, ProcessSpec, Rung, Spec, UpstreamTls},
};
use proptest::prelude::*;

fn engines() -> Engines {
    BTreeMap::from([
        ("local".to_owned(), EngineKind::Process),
        ("docker".to_owned(), EngineKind::Docker),
    ])
}

fn parse(name: &str, text: &str) -> Result<Route, Vec<RouteError>> {
    Route::parse(name, Path::new(&format!("{name}.toml")), text, &engines())
}

fn route(name: &str, host: &str) -> Route {
    parse(name, &format!("host = \"{host}\"\ninstance.command = [\"x\"]")).unwrap()
}

fn table(hosts: &[&str]) -> RouteTable {
    let routes = hosts.iter().enumerate().map(|(index, host)| route(&format!("r{index}"), host));
    RouteTable::new(routes).unwrap()
}

/// The pattern that serves a host.
fn found<'t>(table: &'t RouteTable, host: &str) -> Option<&'t str> {
    table.lookup(host).map(|route| route.host.as_str())
}

fn errors(text: &str) -> Vec<String> {
    let errors = parse("demo", text).expect_err("it has an error");
    errors.iter().map(ToString::to_string).collect()
}

/// The one error of a route that is otherwise right.
fn error(more: &str) -> String {
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

// ## Which route

#[test]
fn an_exact_host_beats_a_pattern_and_a_longer_end_beats_a_shorter() {
    let hosts = [
        "{session}.example.com",
        "{session}-ide.example.com",
        "pr-{session}.example.com",
        "{session}.desk.example.com",
        "{session}.{team}.example.com",
        "{session}.x.{team}.example.com",
        "alice.example.com",
        "{any}",
    ];
    let table = table(&hosts);
    for (host, pattern) in [
        ("alice.example.com", "alice.example.com"),
        ("bob.example.com", "{session}.example.com"),
        ("bob-ide.example.com", "{session}-ide.example.com"),
        ("pr-7.example.com", "pr-{session}.example.com"),
        ("pr-7-ide.example.com", "{session}-ide.example.com"),
        ("bob.desk.example.com", "{session}.desk.example.com"),
        ("bob.red.example.com", "{session}.{team}.example.com"),
        ("bob.x.red.example.com", "{session}.x.{team}.example.com"),
        ("-ide.example.com", ""),
        ("bob.y.red.example.com", ""),
        ("example.com", ""),
        ("a-.example.com", ""),
        ("a_b.example.com", ""),
        ("localhost", "{any}"),
    ] {
        assert_eq!(found(&table, host).unwrap_or_default(), pattern, "{host}");
    }
}

#[test]
fn with_equal_ends_the_longer_start_wins_then_more_letters_then_the_alphabet() {
    let hosts = ["{a}.{b}.e", "x{a}.{b}.e", "xy{a}.{b}.e", "xy{a}z{c}.{b}.e", "xy{a}q{c}.{b}.e"];
    let table = table(&hosts);
    assert_eq!(found(&table, "xy1q2z3.b.e"), Some("xy{a}q{c}.{b}.e"));
    assert_eq!(found(&table, "xy1z3.b.e"), Some("xy{a}z{c}.{b}.e"));
    assert_eq!(found(&table, "xy1.b.e"), Some("xy{a}.{b}.e"));
    assert_eq!(found(&table, "x1.b.e"), Some("x{a}.{b}.e"));
    assert_eq!(found(&table, "1.b.e"), Some("{a}.{b}.e"));
}

#[test]
fn a_capture_takes_as_little_as_it_can_and_never_a_hyphen_at_its_ends() {
    let values = |pattern: &str, host: &str| {
        let route = route("r", pattern);
        route.host.values(host).map(|values| values.join(" "))
    };
    assert_eq!(values("{a}-{b}.e", "x-y-z.e").as_deref(), Some("x y-z"));
    assert_eq!(values("{a}-{b}.e", "x--y.e"), None);
    assert_eq!(values("{a}x{b}.e", "1x-2x3.e").as_deref(), Some("1x-2 3"));
    assert_eq!(values("{a}.{b}.e", "x.y.e").as_deref(), Some("x y"));
    assert_eq!(values("{a}.{b}.e", "x.y.z.e"), None);
    assert_eq!(values("{a}.e", "e"), None);
    assert_eq!(values("{a}.e", ".e"), None);
    assert_eq!(values("a.e", "a.e").as_deref(), Some(""));
    assert_eq!(values("a.e", "b.e"), None);
}

#[test]
fn hosts_that_differ_only_in_their_captures_names_clash() {
    let routes = ["{a}.e", "x.e", "{b}.e", "x.e"]
        .map(|host| route(&host.replace(['{', '}', '.'], ""), host));
    let clashes = RouteTable::new(routes).unwrap_err();
    let clashes: Vec<_> = clashes.iter().map(ToString::to_string).collect();
    let expected =
        ["routes `ae` and `be` have the same host", "routes `xe` and `xe` have the same name"];
    assert_eq!(clashes, expected);
}

#[test]
fn a_hundred_thousand_routes_are_found_each_by_its_host() {
    let exact = (0..100_000).map(|i| route(&format!("e{i}"), &format!("h{i}.example.com")));
    let patterns = (0..1000).flat_map(|i| {
        let hosts = [
            format!("{{s}}.t{i}.example.com"),
            format!("{{s}}-p{i}.example.com"),
            format!("p{i}-{{s}}.example.com"),
        ];
        hosts.into_iter().enumerate().map(move |(kind, host)| route(&format!("p{i}-{kind}"), &host))
    });
    let table = RouteTable::new(exact.chain(patterns)).unwrap();
    assert_eq!(table.len(), 103_000);
    for (host, name) in [
        ("h99999.example.com", "e99999"),
        ("a.t999.example.com", "p999-0"),
        ("a-p999.example.com", "p999-1"),
        ("p999-a.example.com", "p999-2"),
    ] {
        assert_eq!(table.lookup(host).map(|route| &*route.name), Some(name), "{host}");
        assert_eq!(table.get(name).map(|route| &*route.name), Some(name));
    }
    assert!(table.lookup("nobody.example.org").is_none());
}

/// What the table does in a few look-ups, said again without a thought for speed: every way to
/// cut the host is tried.
fn matches_naively(pattern: &str, host: &str) -> bool {
    let Some((literal, rest)) = pattern.split_once('{') else { return pattern == host };
    let Some(host) = host.strip_prefix(literal) else { return false };
    let (_, rest) = rest.split_once('}').unwrap();
    (1..=host.len()).any(|end| {
        let (capture, behind) = host.split_at(end);
        let is_label = capture.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !capture.starts_with('-')
            && !capture.ends_with('-');
        is_label && matches_naively(rest, behind)
    })
}

/// The order of precedence as `RouteTable`'s doc says it.
fn rank(pattern: &str) -> impl Ord + use<> {
    let Some((head, rest)) = pattern.split_once('{') else { return (true, 0, 0, 0, None) };
    let (between, tail) = rest.rsplit_once('}').unwrap();
    let mut shape = String::new();
    let mut literals = 0;
    let mut in_name = true;
    for c in between.chars() {
        match c {
            '}' => in_name = false,
            '{' => in_name = true,
            c if !in_name => {
                literals += 1;
                shape.push(c);
                continue;
            }
            _ => continue,
        }
        shape.push(c);
    }
    // Of two shapes, the first in the alphabet is the better one.
    let shape = format!("{head}{{{}}}{tail}", shape);
    (false, tail.len(), head.len(), literals, Some(std::cmp::Reverse(shape)))
}

fn host_pattern() -> impl Strategy<Value = String> {
    // Few letters and short labels, so that patterns and hosts meet often.
    let part =
        prop_oneof![3 => "[ab-]{1,2}", 4 => Just("{}".to_owned()), 2 => Just(".".to_owned())];
    prop::collection::vec(part, 1..8).prop_map(|parts| {
        let mut count = 0;
        let name = |part: String| {
            if part != "{}" {
                return part;
            }
            count += 1;
            format!("{{c{count}}}")
        };
        parts.into_iter().map(name).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn lookup_agrees_with_the_naive_reference(
        patterns in prop::collection::vec(host_pattern(), 1..12),
        hosts in prop::collection::vec("[ab-]{1,3}(\\.[ab-]{1,3}){0,3}", 1..12),
    ) {
        let mut shapes = HashSet::new();
        let routes: Vec<Route> = patterns
            .iter()
            .enumerate()
            .filter_map(|(index, pattern)| {
                let text = format!("host = \"{pattern}\"\ninstance.command = [\"x\"]");
                parse(&format!("r{index}"), &text).ok()
            })
            .filter(|route| {
                let shape: String =
                    route.host.as_str().chars().filter(|c| !c.is_ascii_digit()).collect();
                shapes.insert(shape)
            })
            .collect();
        let table = RouteTable::new(routes.clone()).unwrap();
        for host in hosts.iter().filter(|host| canonical_host(host).is_some()) {
            let expected = routes
                .iter()
                .map(|route| route.host.as_str())
                .filter(|pattern| matches_naively(pattern, host))
                .max_by_key(|pattern| rank(pattern));
            prop_assert_eq!(found(&table, host), expected, "{}", host);
            if let Some(route) = table.lookup(host) {
                let values = route.host.values(host).unwrap();
                let mut filled = route.host.as_str().to_owned();
                for (name, value) in route.host.captures().iter().zip(values) {
                    filled = filled.replace(&format!("{{{name}}}"), value);
                }
                prop_assert_eq!(&filled, host);
            }
        }
    }

    #[test]
    fn canonical_host_never_panics_and_is_idempotent(raw in "(\\PC{0,20}|[a-zA-Z0-9.:\\[\\]_-]{0,30})") {
        if let Some(host) = canonical_host(&raw) {
            let again = canonical_host(&host);
            prop_assert_eq!(again.as_deref(), Some(&*host));
            prop_assert!(matches!(again, Some(std::borrow::Cow::Borrowed(_))));
            prop_assert!(!host.bytes().any(|b| b.is_ascii_uppercase()));
        }
    }

    #[test]
    fn no_host_makes_lookup_panic(host in "\\PC*") {
        let table = table(&["{a}.example.com", "{a}-x.{b}", "{a}", "x{a}", "e"]);
        let _ = table.lookup(&host);
    }

    #[test]
    fn no_text_makes_a_route_panic(text in "\\PC*", mangled in 0usize..1500, with in "\\PC{0,4}") {
        let _ = parse("r", &text);
        let mut full: Vec<char> = include_str!("routes/full.toml").chars().collect();
        let start = mangled.min(full.len());
        let end = (start + 3).min(full.len());
        full.splice(start..end, with.chars());
        let _ = parse("r", &String::from_iter(full));
    }

    #[test]
    fn no_template_makes_a_plan_panic(text in "[a-z{}]{0,12}") {
        let file = format!("host = \"{{a}}.e\"\ninstance.command = [\"{text}\"]");
        if let Ok(route) = parse("r", &file) {
            let plan = route.plan("alice.e");
            let expected = text
                .replace("{{", "\u{1}")
                .replace("{a}", "alice")
                .replace("}}", "}")
                .replace('\u{1}', "{");
            prop_assert_eq!(&plan.spec.command[0], &expected);
        }
    }
}

// ## The one spelling of a host

#[test]
fn a_host_has_one_spelling() {
    for (raw, canonical) in [
        ("alice.localhost", "alice.localhost"),
        ("Alice.LocalHost:8080", "alice.localhost"),
        ("alice.localhost.", "alice.localhost"),
        ("alice.localhost.:8080", "alice.localhost"),
        ("alice.localhost:", "alice.localhost"),
        ("127.0.0.1:80", "127.0.0.1"),
        ("[::1]:8080", "[::1]"),
        ("[::1]", "[::1]"),
        ("[0:0:0:0:0:0:0:1]", "[::1]"),
        ("[2001:DB8::1]:443", "[2001:db8::1]"),
        ("my_app", "my_app"),
    ] {
        assert_eq!(canonical_host(raw).as_deref(), Some(canonical), "{raw}");
    }
}

#[test]
fn what_cannot_be_a_host_is_none() {
    let long_label = "a".repeat(64);
    let long_host = ["a"; 127].join(".") + ".b";
    for raw in [
        "",
        ".",
        ":80",
        "a..b",
        ".a",
        "a..",
        "-a.b",
        "a-.b",
        "a b",
        "a/b",
        "a@b",
        "a:x",
        "a:1:2",
        "a:65536",
        "a:000080",
        "::1",
        "[::1",
        "[::1]x",
        "[::1]:x",
        "[a]",
        "[]",
        "[fe80::1%eth0]",
        "ä.example",
        "a\0",
        "*.example",
        &long_label,
        &long_host,
    ] {
        assert_eq!(canonical_host(raw), None, "{raw:?}");
    }
}

// ## What a route means

#[test]
fn the_shortest_route_has_all_defaults() {
    let route = route("demo", "alice.localhost");
    assert_eq!((&*route.name, &*route.engine, route.protocol), ("demo", "local", Protocol::Auto));
    let plan = route.plan("alice.localhost");
    let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
    let expected = Policy {
        ladder: [Rung { after: minutes(15), to: Depth::Stopped }].into(),
        min_awake: minutes(1),
        wake_timeout: Duration::from_secs(30),
        held_max: 1000,
    };
    assert_eq!(plan.policy, expected);
    assert_eq!((plan.probe, plan.tls), (Probe::Tcp, None));
    assert_eq!(plan.spec, Spec { command: vec!["x".into()], ..Spec::default() });
    assert_eq!(route.set_headers("alice.localhost").count(), 0);
}

#[test]
fn every_key_reaches_the_plan_with_its_captures_filled_in() {
    let route = parse("full", include_str!("routes/full.toml")).unwrap();
    let host = "alice-6080.desk.example.com";
    let plan = route.plan(host);
    let text = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
    let some = |text: &str| Some(text.to_owned());
    let process = ProcessSpec {
        listen: Listen::Unix,
        directory: some("/srv/alice"),
        grace: Duration::from_secs(5),
        log_max: 64 * 1024,
    };
    let docker = DockerSpec {
        container: None,
        label: None,
        network: some("desk-alice"),
        runtime: some("runsc"),
        publish: some("127.0.0.2"),
        user: some("1000:1000"),
        read_only: false,
        tmpfs: text(&["/tmp", "/run:size=16m"]),
        cap_add: text(&["NET_BIND_SERVICE"]),
        grace: Duration::from_secs(3),
    };
    let env = [("SESSION", "alice"), ("WHERE", "{host}:{port}")];
    let expected = Spec {
        image: some("desk:alice"),
        command: text(&["serve", "--listen", "{address}", "--name=alice", "{braces}"]),
        env: env.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        port: Some(6080),
        memory: Some(512 * 1024 * 1024),
        nano_cpus: Some(1_500_000_000),
        pids: Some(200),
        volumes: text(&["home-alice:/home/user", "/srv/shared:/shared:ro"]),
        process,
        docker,
    };
    assert_eq!(plan.spec, expected);
    assert_eq!(plan.probe, Probe::Http { path: "/ready?of=alice".into(), status: Some(204) });
    let tls = UpstreamTls { verify: false, sni: "alice.internal".into() };
    assert_eq!((plan.tls, route.tls(host)), (Some(tls.clone()), Some(tls)));
    let rungs: Vec<_> =
        plan.policy.ladder.iter().map(|rung| (rung.after.as_secs(), rung.to)).collect();
    let day = 24 * 60 * 60;
    assert_eq!(rungs, [(120, Depth::Paused), (900, Depth::Stopped), (30 * day, Depth::Removed)]);
    assert_eq!((plan.policy.held_max, route.protocol), (7, Protocol::Http2));
    let headers: Vec<_> = route.set_headers(host).collect();
    let headers: Vec<_> =
        headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
    assert_eq!(headers, [("authorization", "Bearer s3cret"), ("x-session", "alice")]);
}

#[test]
fn tls_without_a_name_asks_for_the_sessions_host() {
    let text = "host = \"{s}.e\"\ninstance.command = [\"x\"]\nupstream.tls = true";
    let tls = parse("r", text).unwrap().tls("alice.e").unwrap();
    assert_eq!(tls, UpstreamTls { verify: true, sni: "alice.e".into() });
}

#[test]
fn routes_are_equal_when_they_do_the_same() {
    let text = include_str!("routes/full.toml");
    let full = parse("full", text).unwrap();
    assert_eq!(full, parse("full", &format!("# a comment\n{text}")).unwrap());
    assert_ne!(full, parse("full", &text.replace("s3cret", "other")).unwrap());
    assert_ne!(full, parse("full", &text.replace("desk:{session}", "desk:2")).unwrap());
}

#[test]
fn no_secret_in_debug_or_in_errors() {
    let full = parse("full", include_str!("routes/full.toml")).unwrap();
    let table = RouteTable::new([full]).unwrap();
    let route = table.get("full").unwrap();
    let headers: Vec<_> = route.set_headers("alice-1.desk.example.com").collect();
    assert!(!format!("{table:?} {route:?} {headers:?}").contains("s3cret"));
    for wrong in
        ["4711", "4711.5", "\"4711{\"", "\"4711\\u0001\"", "[4711]", "{ a = 4711 }", "true"]
    {
        let header = error(&format!("upstream.set_headers = {{ Authorization = {wrong} }}"));
        assert!(!header.contains("4711"), "{header}");
    }
    let env = error("instance.env = { TOKEN = 4711 }");
    assert!(!env.contains("4711"), "{env}");
}

// ## What is said when it is wrong

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
        "demo.toml:3:1: unknown key `prob`; known: `host`, `engine`, `instance`, `ready`, `wake`, \
         `idle`, `upstream`",
        "demo.toml:5:11: invalid type: string \"x\", expected a list",
        "demo.toml:6:1: unknown key `comand`; did you mean `command`? known: `image`, `command`, \
         `env`, `port`, `memory`, `cpus`, `pids`, `volumes`, `process`, `docker`",
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
        ("*.e", "not a host"),
        ("", "not a host"),
        ("-{a}.e", "not a host"),
        ("{a}-.e", "not a host"),
        ("grüße.e", "punycode"),
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
            "3:45: either `container` or `label`, not both",
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
            &two_rungs("\"1m\", to = \"stopped\"", "\"2m\", to = \"removed\""),
            "5:22: an engine of kind process has no `removed`; known: `paused`, `stopped`",
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
        ("upstream.tls = { sni = \"a b\" }", "3:24: `a b` is no host name"),
        (
            "upstream.tls = { verfy = true }",
            "3:18: unknown key `verfy`; did you mean `verify`? known: `verify`, `sni`",
        ),
    ] {
        assert_eq!(error(more), format!("demo.toml:{expected}"));
    }
}

// ## A folder of routes

fn write(dir: &Path, name: &str, host: &str) {
    fs::write(dir.join(name), format!("host = \"{host}\"\ninstance.command = [\"x\"]")).unwrap();
}

#[test]
fn every_toml_file_of_a_folder_is_a_route_and_nothing_else_is() {
    let dir = tempfile::tempdir().unwrap();
    assert!(load_dir(dir.path(), &engines()).unwrap().is_empty());
    write(dir.path(), "one.toml", "one.e");
    write(dir.path(), "README.md", "two.e");
    for hidden in [".hidden.toml", "#edited.toml#", "#edited.toml", "one.toml~", ".one.toml.swp"] {
        fs::write(dir.path().join(hidden), "not a route").unwrap();
    }
    fs::create_dir(dir.path().join("folder.toml")).unwrap();
    symlink("one.toml.real", dir.path().join("two.toml")).unwrap();
    write(dir.path(), "one.toml.real", "two.e");
    let table = load_dir(dir.path(), &engines()).unwrap();
    let names: Vec<_> = table.iter().map(|route| route.name.to_string()).collect();
    assert_eq!(names, ["one", "two"]);
}

#[test]
fn the_errors_of_all_files_are_told_together() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    write(dir.path(), "a.toml", "{x}.e");
    write(dir.path(), "b.toml", "{y}.e");
    write(dir.path(), "good.toml", "good.e");
    write(dir.path(), "Bad_Name.toml", "c.e");
    fs::write(path("c.toml"), "host = 1").unwrap();
    fs::write(path("d.toml"), "host = 2\nx = 3").unwrap();
    fs::write(path("e.toml"), b"host = \"a\"\nengine = \"l\xff\"").unwrap();
    fs::write(path("f.toml"), vec![b'#'; 1024 * 1024 + 1]).unwrap();
    symlink("nowhere", path("g.toml")).unwrap();
    let errors = load_dir(dir.path(), &engines()).unwrap_err();
    let prefix = format!("{}/", dir.path().display());
    let errors: Vec<_> =
        errors.iter().map(|error| error.to_string().replace(&prefix, "")).collect();
    let expected = [
        "Bad_Name.toml: `Bad_Name` is no name of a route; name the file with a-z, 0-9 and `-`, \
         at most 63, no `-` at the ends",
        "c.toml:1:8: invalid type: integer `1`, expected a string",
        "d.toml:1:8: invalid type: integer `2`, expected a string",
        "d.toml:2:1: unknown key `x`; known: `host`, `engine`, `instance`, `ready`, `wake`, \
         `idle`, `upstream`",
        "e.toml:2:12: not UTF-8; save the file as UTF-8",
        "f.toml: larger than 1 MiB",
        "g.toml: cannot be read: No such file or directory (os error 2)",
        "b.toml:1:8: the same host as a.toml: `{y}.e`; a host belongs to one route; the \
         captures' names make no difference",
    ];
    assert_eq!(errors, expected);
}

#[test]
fn a_missing_folder_says_what_to_do() {
    let errors = load_dir(Path::new("/nowhere/routes"), &engines()).unwrap_err();
    assert_eq!(
        errors[0].to_string(),
        "/nowhere/routes: cannot read the folder of routes: No such file or directory (os error \
         2); create it, or set paths.routes in dormouse.toml to where the *.toml files are"
    );
}

// ## Its changes

/// Reloads whenever the watch says so, until the folder holds exactly these routes.
fn wait_for(changes: &mpsc::Receiver<()>, dir: &Path, names: &[&str]) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        changes.recv_timeout(left).unwrap_or_else(|_| panic!("never told of {names:?}"));
        if let Ok(table) = load_dir(dir, &engines())
            && table.iter().map(|route| &*route.name).eq(names.iter().copied())
        {
            return;
        }
    }
}

#[test]
fn every_kind_of_change_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("routes");
    let (changed, changes) = mpsc::channel();
    let watch = watch(&dir, move || changed.send(()).unwrap_or_default()).unwrap();
    // It appears.
    fs::create_dir(&dir).unwrap();
    write(&dir, "one.toml", "one.e");
    wait_for(&changes, &dir, &["one"]);
    // A file more, in place and by rename.
    write(&dir, "two.toml", "two.e");
    wait_for(&changes, &dir, &["one", "two"]);
    write(&dir, ".three.tmp", "three.e");
    fs::rename(dir.join(".three.tmp"), dir.join("three.toml")).unwrap();
    wait_for(&changes, &dir, &["one", "three", "two"]);
    fs::remove_file(dir.join("two.toml")).unwrap();
    wait_for(&changes, &dir, &["one", "three"]);
    // The folder is replaced: by rename, then removed and made again.
    let other = folder.path().join("other");
    fs::create_dir(&other).unwrap();
    write(&other, "four.toml", "four.e");
    fs::rename(&dir, folder.path().join("old")).unwrap();
    fs::rename(&other, &dir).unwrap();
    wait_for(&changes, &dir, &["four"]);
    write(&dir, "five.toml", "five.e");
    wait_for(&changes, &dir, &["five", "four"]);
    fs::remove_dir_all(&dir).unwrap();
    fs::create_dir(&dir).unwrap();
    write(&dir, "six.toml", "six.e");
    wait_for(&changes, &dir, &["six"]);
    write(&dir, "seven.toml", "seven.e");
    wait_for(&changes, &dir, &["seven", "six"]);
    drop(watch);
    // Its thread has ended, and the sender with it.
    while changes.try_recv().is_ok() {}
    assert_eq!(changes.try_recv(), Err(mpsc::TryRecvError::Disconnected));
}

#[test]
fn a_config_maps_swap_of_symlinks_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    for version in ["..v1", "..v2"] {
        fs::create_dir(path(version)).unwrap();
    }
    write(&path("..v1"), "demo.toml", "one.e");
    write(&path("..v2"), "demo.toml", "two.e");
    symlink("..v1", path("..data")).unwrap();
    symlink("..data/demo.toml", path("demo.toml")).unwrap();
    let host = || {
        let table = load_dir(dir.path(), &engines()).unwrap();
        table.get("demo").unwrap().host.to_string()
    };
    assert_eq!(host(), "one.e");
    let (changed, changes) = mpsc::channel();
    let _watch = watch(dir.path(), move || changed.send(()).unwrap_or_default()).unwrap();
    symlink("..v2", path("..data_tmp")).unwrap();
    fs::rename(path("..data_tmp"), path("..data")).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while host() != "two.e" || changes.try_recv().is_err() {
        assert!(Instant::now() < deadline, "never told");
        std::thread::yield_now();
    }
}

#[test]
fn a_folder_behind_a_symlink_that_is_turned_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    for version in ["v1", "v2"] {
        fs::create_dir(path(version)).unwrap();
        write(&path(version), &format!("{version}.toml"), &format!("{version}.e"));
    }
    symlink("v1", path("routes")).unwrap();
    let (changed, changes) = mpsc::channel();
    let _watch = watch(&path("routes"), move || changed.send(()).unwrap_or_default()).unwrap();
    symlink("v2", path("tmp")).unwrap();
    fs::rename(path("tmp"), path("routes")).unwrap();
    wait_for(&changes, &path("routes"), &["v2"]);
    write(&path("v2"), "new.toml", "new.e");
    wait_for(&changes, &path("routes"), &["new", "v2"]);
}

#[test]
fn a_watch_may_be_dropped_by_what_it_calls() {
    let dir = tempfile::tempdir().unwrap();
    let slot = Arc::new(std::sync::Mutex::new(None));
    let (dropped, drops) = mpsc::channel();
    let own = slot.clone();
    let watch = watch(dir.path(), move || {
        drop(own.lock().unwrap().take());
        dropped.send(()).unwrap_or_default();
    });
    *slot.lock().unwrap() = Some(watch.unwrap());
    write(dir.path(), "one.toml", "one.e");
    drops.recv_timeout(Duration::from_secs(20)).unwrap();
    assert!(slot.lock().unwrap().is_none());
}
