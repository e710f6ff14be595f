//! The 159 labelled request heads of `http_desync_guardian`, each sent by a socket of its own to an
//! instance that records raw bytes, and what became of them.

use std::{collections::BTreeMap, fs, path::PathBuf, process::Command};

use http_desync_guardian::{RequestSafetyTier, request_analyzer::HttpRequestData};
use serde::Deserialize;
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;

use crate::{
    guest::{self, Guest},
    support::{Edge, Setup},
    wire::Wire,
};

/// The bars: of each label, how many may be forwarded as risky as they were, or refused.
const AMBIGUOUS_LEFT_MAX: usize = 1;
const COMPLIANT_REFUSED_MAX: usize = 3;

#[derive(Deserialize)]
struct Case {
    name: String,
    uri: Value,
    method: String,
    version: Value,
    headers: Option<Vec<Header>>,
    expected: Expected,
}

#[derive(Deserialize)]
struct Header {
    name: Value,
    value: Value,
}

#[derive(Deserialize)]
struct Expected {
    tier: String,
}

/// Where Cargo has put the crate, whose cases are not part of its code.
fn folder() -> PathBuf {
    // Offline, only the packages of this platform are sure to be there.
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let metadata = Command::new(env!("CARGO"))
        .args(["metadata", "--offline", "--format-version", "1", "--filter-platform", &platform])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo metadata");
    let metadata: Value = serde_json::from_slice(&metadata.stdout).expect("JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let package = packages.iter().find(|package| package["name"] == "http_desync_guardian");
    let manifest = package.expect("a dev-dependency")["manifest_path"].as_str().expect("a path");
    PathBuf::from(manifest).with_file_name("tests")
}

fn cases() -> Vec<Case> {
    let files = fs::read_dir(folder()).expect("the cases").map(|file| file.expect("a file").path());
    let mut files: Vec<_> =
        files.filter(|path| path.extension().is_some_and(|ending| ending == "yaml")).collect();
    files.sort();
    let read = |path: &PathBuf| -> Vec<Case> {
        let text = fs::read_to_string(path).expect("UTF-8");
        serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    files.iter().flat_map(read).collect()
}

/// As the crate's own tests unescape: what YAML has not, in plain words and in single quotes.
fn text(value: &Value) -> String {
    let raw = match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    };
    let mut text = String::new();
    let mut chars = raw.chars();
    while let Some(char) = chars.next() {
        text.push(match char {
            '\\' => match chars.next().expect("an escape") {
                'x' => {
                    let hex: String = chars.by_ref().take(2).collect();
                    char::from(u8::from_str_radix(&hex, 16).expect("hexadecimal"))
                }
                'n' => '\n',
                'r' => '\r',
                't' => '\t',
                other => other,
            },
            char => char,
        });
    }
    text
}

impl Case {
    /// The request for `host`, with as much of a body as it says.
    fn request(&self, host: &str) -> Vec<u8> {
        let (uri, version) = (text(&self.uri), text(&self.version));
        let mut request = format!("{} {uri} {version}\r\nHost: {host}\r\n", self.method);
        let mut body = String::new();
        for header in self.headers.iter().flatten() {
            let (name, value) = (text(&header.name), text(&header.value));
            request += &format!("{name}: {value}\r\n");
            if body.is_empty() && value.to_ascii_lowercase().contains("chunk") {
                body = "0\r\n\r\n".to_owned();
            } else if name.eq_ignore_ascii_case("content-length") {
                body = "x".repeat(value.trim().parse().unwrap_or_default());
            }
        }
        (request + "\r\n" + &body).into_bytes()
    }
}

fn edge() -> Edge {
    let edge = Setup::new().route("demo", &guest::route(Guest::Recorder, "")).start();
    // The recorder answers once on a connection.
    let answer = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
    fs::write(edge.path("answer"), answer).expect("a file");
    edge
}

#[tokio::test(flavor = "multi_thread")]
async fn no_labelled_desync_reaches_an_instance() {
    let cases = cases();
    assert_eq!(cases.len(), 159);
    let mut edge = edge();
    assert_eq!(edge.admin_post("/v1/sessions/wanted.test/wake").0, 200);
    let mut table: BTreeMap<&str, [usize; 3]> = BTreeMap::new();
    let (mut risky, mut refused) = (Vec::new(), Vec::new());
    for case in &cases {
        let before = guest::recorded(&edge, "wanted.test").len();
        let mut wire = Wire::open(edge.http).await;
        // It may be refused, and closed, while it is sent.
        let _ = wire.0.write_all(&case.request("wanted.test")).await;
        let mut answers = wire.head().await;
        if !answers.starts_with("HTTP/1.1 200 ") {
            answers += &wire.rest().await;
        }
        edge.wait_until("all is over", |edge| edge.session("wanted.test")["leases"] == 0);
        let seen = guest::recorded(&edge, "wanted.test")[before..].concat();
        let verdict = HttpRequestData::analyze_raw_request(seen.as_bytes()).tier;
        let is_risky = matches!(verdict, RequestSafetyTier::Ambiguous | RequestSafetyTier::Severe);
        let tier = case.expected.tier.as_str();
        let count = table.entry(tier).or_default();
        if seen.is_empty() {
            count[0] += 1;
            refused.push((tier, &case.name, answers));
        } else if is_risky {
            count[1] += 1;
            risky.push((tier, &case.name, seen.to_owned()));
        } else {
            count[2] += 1;
        }
    }
    println!("label: [refused, forwarded and risky, forwarded and harmless]\n{table:#?}");
    println!("risky: {risky:#?}");
    let compliant: Vec<_> = refused.iter().filter(|(tier, ..)| *tier == "Compliant").collect();
    println!("compliant and refused: {compliant:#?}");
    for (_, name, answers) in &refused {
        let status = answers.split(' ').nth(1).unwrap_or("none");
        let clean = ["400", "408", "414", "431", "501", "505"].contains(&status);
        assert!(clean && answers.contains("problem+json"), "{name}: {answers}");
    }
    let severe = |(tier, ..): &&(&str, _, _)| *tier == "Severe";
    assert_eq!(risky.iter().filter(severe).count(), 0, "{risky:#?}");
    assert!(risky.len() <= AMBIGUOUS_LEFT_MAX, "{risky:#?}");
    assert!(compliant.len() <= COMPLIANT_REFUSED_MAX, "{compliant:#?}");
}
