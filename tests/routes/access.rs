//! `[access]`: what it means, and what is said when it is wrong.

use dormouse::{
    access::admits_unseen,
    route::access::{Access, Policy},
};

use crate::{mistakes::error, parse};

fn access(text: &str) -> Access {
    let text = format!("host = \"{{session}}.localhost\"\ninstance.command = [\"x\"]\n{text}");
    parse("demo", &text).expect("a route").recipe.access.clone()
}

#[test]
fn a_route_that_says_nothing_is_open() {
    assert_eq!(access(""), Access::open());
    assert!(access("").is_open() && access("[access]").is_open());
    assert_eq!(access("").in_words(), "open");
}

#[test]
fn policies_combine_by_all_or_any_or_a_list() {
    let policies =
        "link = true\naddresses = { allow = [\"10.0.0.0/8\"] }\nbasic = { users = \"u\" }\n";
    let require = |word: &str| access(&format!("[access]\n{word}\n{policies}")).require;
    let (addresses, link, basic) = (Policy::Addresses, Policy::Link, Policy::Basic);
    for all in ["", "require = \"all\""] {
        assert_eq!(require(all), [[addresses], [link], [basic]]);
    }
    assert_eq!(require("require = \"any\""), [[addresses, link, basic]]);
    let listed = "require = [[\"basic\", \"link\"], \"addresses\"]";
    assert_eq!(require(listed), [vec![addresses], vec![link, basic]]);
    let words = access(&format!("[access]\n{listed}\n{policies}")).in_words();
    assert_eq!(words, "addresses and (link or basic)");
}

#[test]
fn only_what_the_connection_decides_may_be_decided_without_a_request() {
    let ten = Some("10.1.1.1".parse().unwrap());
    let decided = |text: &str| {
        let text = format!(
            "host = \"{{session}}.localhost\"\ninstance.command = [\"x\"]\n[access]\n{text}"
        );
        let route = parse("demo", &text).expect("a route");
        let admits = |address| admits_unseen(&route, "alice.localhost", address, None);
        (route.recipe.access.is_of_connection(), admits(ten), admits(None))
    };
    assert_eq!(decided(""), (true, true, true));
    assert_eq!(decided("addresses = { allow = [\"10.0.0.0/8\"] }"), (true, true, false));
    assert_eq!(decided("addresses = { deny = [\"10.0.0.0/8\"] }"), (true, false, false));
    let any = "require = \"any\"\nlink = true\naddresses = { allow = [\"10.0.0.0/8\"] }";
    assert_eq!(decided(any), (true, true, false));
    // A certificate may decide it, and none was shown.
    assert_eq!(decided("mtls = {}"), (true, false, false));
    let either = "require = \"any\"\nmtls = {}\naddresses = { allow = [\"10.0.0.0/8\"] }";
    assert_eq!(decided(either), (true, true, false));
    for needs_more in ["link = true", "link = true\naddresses = { allow = [\"::/0\"] }"] {
        assert_eq!(decided(needs_more), (false, false, false), "{needs_more}");
    }
}

#[test]
fn paths_start_from_the_route_files_folder() {
    let basic = access("[access]\nbasic = { users = \"u\" }").basic.expect("basic");
    let parent = std::path::Path::new("demo.toml").parent().expect("a folder");
    assert_eq!(basic.one_file(), Some(parent.join("u")));
    let braces = access("[access]\nbasic = { users = \"{{u}}\" }").basic.expect("basic");
    assert_eq!(braces.one_file(), Some(parent.join("{u}")));
    let own = access("[access]\nbasic = { users = \"u/{session}\" }").basic.expect("basic");
    assert_eq!((own.one_file(), own.is_per_session()), (None, true));
}

#[test]
fn every_mistake_is_told_with_its_place() {
    for (text, expected) in [
        ("link = 1", "invalid type: integer `1`, expected true or false"),
        ("require = \"some\"\nlink = true", "unknown value `some`"),
        ("require = \"any\"", "there is no policy to require"),
        ("require = \"all\"", "there is no policy to require"),
        ("require = \"all\"\nlink = false", "there is no policy to require"),
        ("end_open = true", "there is no policy, so nothing can end"),
        ("insecure_cookie = true", "there is no `link`, so there is no cookie"),
        ("basic = { users = \"{user}\" }", "unknown `{user}`"),
        ("basic = { users = \"u\", user = \"{user}\" }", "unknown `{user}`"),
        ("basic = { users = \"u\", user = \"\" }", "nobody has an empty name"),
        (
            "forward = { url = \"http://a/\", expect = { \"a b\" = \"x\" } }",
            "`a b` is no name of a header",
        ),
        ("forward = { url = \"http://a/\", expect = { X = \"{x}\" } }", "unknown `{x}`"),
        ("origin = [\"https://a*.example.com\"]", "is no origin"),
        ("origin = [\"https://*example.com\"]", "is no origin"),
        ("origin = [\"https://a.*.example.com\"]", "is no origin"),
        ("origin = [\"https://*.*.example.com\"]", "is no origin"),
        ("origin = [\"https://*:8443\"]", "every host"),
        ("origin = [\"*://example.com\"]", "is no origin"),
        ("origin = [\"https://*\"]", "every host"),
        ("origin = [\"null\"]", "is no origin"),
        ("cors = {}", "whose pages"),
        ("origin = \"any\"\ncors = { credentials = true }", "with its visitor's credentials"),
        ("origin = [\"https://a.test\"]\ncors = { methods = [\"G ET\"] }", "`G ET` is no method"),
        (
            "origin = [\"https://a.test\"]\ncors = { headers = [\"a b\"] }",
            "`a b` is no name of a header",
        ),
        ("require = []\nlink = true", "an empty list would let everybody in"),
        ("require = [[]]\nlink = true", "an empty list can never be met"),
        ("require = [\"lnk\"]\nlink = true", "did you mean `link`?"),
        (
            "require = [\"link\"]\nlink = true\nmtls = {}",
            "`mtls` is set up, but nothing requires it",
        ),
        ("origin = [\"app.example.com\"]", "`app.example.com` is no origin"),
        ("origin = [\"https://app.example.com/\"]", "is no origin"),
        ("addresses = {}", "neither `allow` nor `deny`"),
        ("addresses = { allow = [\"10.0.0.0/33\"] }", "is no address and no network"),
        ("addresses = { deny = [\"10.0.0.1/8\"] }", "bits set behind its prefix; write 10.0.0.0/8"),
        ("user_header = \"a b\"", "`a b` is no name of a header"),
        ("access_header = \"Content-Length\"", "`Content-Length` cannot be set"),
        ("mtls = { subject = [\"CN={user}\"] }", "unknown `{user}`"),
        ("jwt = { jwks = \"k\", algorithm = \"none\" }", "no algorithm is called `none`"),
        ("jwt = { jwks = \"ftp://k\", algorithm = \"RS256\" }", "`ftp://k` is no URL"),
        (
            "jwt = { jwks = \"k\", algorithm = \"RS256\", claims = { sub = \"{x}\" } }",
            "unknown `{x}`",
        ),
        ("jwt = { jwks = \"k\" }", "missing key `algorithm`"),
        ("forward = { url = \"auth\" }", "`auth` is no URL"),
        ("forward = { url = \"http://a/\", at_once = 0 }", "`at_once` starts at 1"),
        ("forward = { url = \"http://a/\", headers = [\"Host\"] }", "`Host` cannot be set"),
    ] {
        let told = error(&format!("[access]\n{text}"));
        assert!(told.contains(expected), "{text}: {told}");
        let place = told.strip_prefix("demo.toml:").and_then(|rest| rest.split(':').next());
        assert!(
            place.and_then(|line| line.parse::<usize>().ok()).is_some_and(|line| 3 < line),
            "{told}"
        );
    }
}
