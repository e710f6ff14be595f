//! Which route a host belongs to, and what a host is.

use std::collections::HashSet;

use dormouse::route::{HostPattern, Route, RouteTable, canonical_host};
use proptest::prelude::*;

use crate::{parse, route};

fn table(hosts: &[&str]) -> RouteTable {
    let routes = hosts.iter().enumerate().map(|(index, host)| route(&format!("r{index}"), host));
    RouteTable::new(routes).unwrap()
}

/// The pattern that serves a host.
fn found<'t>(table: &'t RouteTable, host: &str) -> Option<&'t str> {
    table.lookup(host).map(|route| route.host.as_str())
}

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
    let one = route("one", "one.e");
    let named = |name: String, host: String| {
        let mut route = one.clone();
        route.name = name.into();
        route.host = HostPattern::parse(&host).unwrap();
        route
    };
    let exact = (0..100_000).map(|i| named(format!("e{i}"), format!("h{i}.example.com")));
    let patterns = (0..1000).flat_map(|i| {
        [
            named(format!("p{i}-0"), format!("{{s}}.t{i}.example.com")),
            named(format!("p{i}-1"), format!("{{s}}-p{i}.example.com")),
            named(format!("p{i}-2"), format!("p{i}-{{s}}.example.com")),
        ]
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

/// Few letters and short labels, so that patterns meet in the same hosts.
fn host_pattern() -> impl Strategy<Value = String> {
    let part =
        prop_oneof![3 => "[ab-]{1,2}", 5 => Just("{}".to_owned()), 1 => Just(".".to_owned())];
    prop::collection::vec(part, 1..7).prop_map(|parts| {
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

/// The pattern's text with its captures filled in by other text.
fn fill(pattern: &str, mut value: impl FnMut(usize) -> String) -> String {
    let mut pieces = pattern.split(['{', '}']).enumerate();
    let first = pieces.next().map(|(_, literal)| literal.to_owned()).unwrap_or_default();
    pieces.fold(first, |text, (index, piece)| {
        text + &if index % 2 == 1 { value(index / 2) } else { piece.to_owned() }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn lookup_agrees_with_the_naive_reference(
        patterns in prop::collection::vec(host_pattern(), 1..16),
        fillings in prop::collection::vec(prop::collection::vec("[ab-]{1,4}", 7), 1..8),
    ) {
        let mut shapes = HashSet::new();
        let routes: Vec<Route> = patterns
            .iter()
            .enumerate()
            .filter_map(|(index, pattern)| {
                let text = format!("host = \"{pattern}\"\ninstance.command = [\"x\"]");
                parse(&format!("r{index}"), &text).ok()
            })
            .filter(|route| shapes.insert(fill(route.host.as_str(), |_| "{}".into())))
            .collect();
        let table = RouteTable::new(routes.clone()).unwrap();
        let hosts = routes.iter().flat_map(|route| {
            fillings.iter().map(|values| fill(route.host.as_str(), |index| values[index].clone()))
        });
        for host in hosts.filter(|host| canonical_host(host).is_some()) {
            let expected = routes
                .iter()
                .map(|route| route.host.as_str())
                .filter(|pattern| matches_naively(pattern, &host))
                .max_by_key(|pattern| rank(pattern));
            prop_assert_eq!(found(&table, &host), expected, "{}", host);
            if let Some(route) = table.lookup(&host) {
                let values = route.host.values(&host).unwrap();
                let filled = fill(route.host.as_str(), |index| values[index].to_owned());
                prop_assert_eq!(filled, host);
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
        let mut full: Vec<char> = include_str!("full.toml").chars().collect();
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
