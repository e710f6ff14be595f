//! Every failure is counted by its kind and shows in the exit code; no other machine is ever asked.

mod support;

use std::{io::Write, thread, time::Duration};

use loadtest::{scenario, target};
use support::{http, loadtest, ok, report, server};

fn warm(url: &str, more: &[&str]) -> (i32, serde_json::Value) {
    let warm = ["warm", url, "-c", "2", "--rate", "100", "--time", "500ms", "--rounds", "1"];
    report(&[&warm, more].concat())
}

#[test]
fn every_kind_of_failure_is_counted_as_what_it_is() {
    // The first answer is the one that finds out whether the session is there.
    let refusing = http(|n| {
        let no = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n";
        Some(if n.is_multiple_of(2) { ok("hello") } else { no.to_owned() })
    });
    let (code, said) = warm(&format!("http://{refusing}/"), &[]);
    assert_eq!((code, &said["servers"][0]["errors"]["status-503"]), (3, &25.into()), "{said}");
    assert_eq!(said["servers"][0]["answers"], 25);

    let resetting = http(|n| (n % 10 != 5).then(|| ok("hello")));
    let (code, said) = warm(&format!("http://{resetting}/"), &[]);
    assert_eq!((code, &said["servers"][0]["errors"]["broken"]), (3, &5.into()), "{said}");

    let half = http(|n| {
        let short = "HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\nhalf".to_owned();
        match n {
            0 => Some(ok("hello")),
            _ => Some(short),
        }
    });
    let limit = ["--timeout", "300ms", "--max-time", "60s"];
    let (code, said) = warm(&format!("http://{half}/"), &limit);
    let errors = said["servers"][0]["errors"].as_object().unwrap();
    let all: u64 = errors.values().map(|count| count.as_u64().unwrap()).sum();
    assert_eq!((code, all, &said["servers"][0]["answers"]), (3, 50, &0.into()), "{said}");
    assert!(errors.contains_key("timeout"), "{said}");
}

#[test]
fn errors_that_are_allowed_are_still_counted() {
    let address = http(|n| (n % 10 != 5).then(|| ok("hello")));
    let (code, said) = warm(&format!("http://{address}/"), &["--allow-errors", "5"]);
    assert_eq!((code, &said["servers"][0]["values"]["errors"]["median"]), (0, &5.0.into()));
}

#[test]
fn a_condition_decides_and_one_that_nothing_was_measured_for_is_no_success() {
    let address = http(|_| Some(ok("hello")));
    let url = format!("http://{address}/");
    assert_eq!(warm(&url, &["--fail-if", "p50 < 0ms"]).0, 0);
    let (code, said) = warm(&url, &["--fail-if", "p50 > 0ms", "--fail-if", "errors > 0"]);
    assert_eq!(code, 1);
    assert_eq!(said["checks"][0]["outcome"], "failed");
    assert_eq!(said["checks"][1]["outcome"], "ok");
    let (code, said) = warm(&url, &["--fail-if", "cpu-per-answer > 1us"]);
    assert_eq!((code, &said["checks"][0]["outcome"]), (4, &"not measured".into()));
    let misspelt = loadtest(&["warm", &url, "--fail-if", "p9>1ms"]);
    assert_eq!(misspelt.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&misspelt.stderr).contains("`p9` is no metric"));
}

#[test]
fn nothing_there_is_nothing_measured() {
    let port = loadtest::floor::free_port().unwrap();
    let ran = loadtest(&["warm", &format!("http://{port}/")]);
    assert_eq!(ran.status.code(), Some(4), "{ran:?}");
    assert!(String::from_utf8_lossy(&ran.stderr).contains("does not answer: connect"));
}

#[test]
fn another_machine_is_refused_before_anything_is_sent() {
    // TEST-NET-1: nobody's address, so that a mistake here reaches nobody.
    let foreign = "http://192.0.2.1:9/";
    let here = http(|_| Some(ok("hello")));
    let here = format!("http://{here}/");
    let other = format!("other={foreign}");
    let reset = ["cold", &here, "--admin", foreign];
    let commands: [&[&str]; 6] = [
        &["warm", foreign],
        &["cold", foreign],
        &["sockets", "http://a.localhost/", "--connect", "192.0.2.1:9"],
        &["herd", "http://[::ffff:192.0.2.1]:9/"],
        &["warm", &here, "--compare", &other],
        &reset,
    ];
    for command in commands {
        let ran = loadtest(command);
        let said = String::from_utf8_lossy(&ran.stderr).into_owned();
        assert_eq!(ran.status.code(), Some(2), "{command:?}: {said}");
        assert!(said.contains("--i-own-this-target"), "{command:?}: {said}");
    }
}

#[tokio::test]
async fn localhost_names_are_this_machine_and_what_is_checked_is_what_is_dialled() {
    for host in
        ["localhost", "a.b.localhost", "LOCALHOST.", "127.0.0.9", "[::1]", "[::ffff:127.0.0.1]"]
    {
        let addresses = target::resolve(host, 80, false).await.unwrap();
        assert!(!addresses.is_empty(), "{host}");
    }
    for host in ["192.0.2.1", "0.0.0.0", "[::]", "10.0.0.1", "169.254.169.254", "notlocalhost."] {
        assert!(target::resolve(host, 80, false).await.is_err(), "{host}");
    }
    assert!(target::resolve("192.0.2.1", 80, true).await.is_ok(), "the owner may");
}

#[test]
fn a_wrong_session_and_an_old_life_are_found() {
    let say = |session: &str, life: usize| {
        ok(&format!("{{\"session\":\"{session}\",\"generation\":{life}}}"))
    };
    let churn = |url: &str| {
        report(&["churn", url, "--sessions", "1", "-c", "1", "--time", "300ms", "--pause", "1ms"])
    };
    let aging = http(move |n| Some(say("127.0.0.1", 1000 - n)));
    let (code, said) = churn(&format!("http://{aging}/"));
    assert_eq!(code, 3);
    assert!(said["servers"][0]["errors"]["old-life"].as_u64() > Some(0), "{said}");
    assert!(said["servers"][0]["values"]["wrong-answers"]["median"].as_f64() > Some(0.0));

    let stranger = http(move |n| Some(say(if n == 0 { "127.0.0.1" } else { "other" }, n)));
    let (code, said) = churn(&format!("http://{stranger}/"));
    assert_eq!(code, 3);
    assert!(said["servers"][0]["errors"]["wrong-session"].as_u64() > Some(0), "{said}");

    let young = http(move |n| Some(say("127.0.0.1", n)));
    let (code, said) = churn(&format!("http://{young}/"));
    assert_eq!((code, &said["servers"][0]["values"]["wrong-answers"]["median"]), (0, &0.0.into()));
}

#[test]
fn two_lives_in_one_herd_are_found() {
    let address =
        http(|n| Some(ok(&format!("{{\"session\":\"127.0.0.1\",\"generation\":{}}}", n / 5))));
    let url = format!("http://{address}/");
    let (code, said) = report(&["herd", &url, "-k", "10", "--rounds", "1", "--identity"]);
    assert_eq!((code, &said["servers"][0]["series"]["starts"]["max"]), (3, &2.0.into()), "{said}");
    assert_eq!(said["servers"][0]["errors"]["two-lives"], 1);
}

#[test]
fn a_socket_that_does_not_echo_is_no_good_one() {
    let silent = server(|mut stream| {
        let _ = stream.write_all(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n");
        thread::sleep(Duration::from_secs(1));
    });
    let ran = loadtest(&["sockets", &format!("http://{silent}/"), "-c", "1"]);
    assert_eq!(ran.status.code(), Some(4));
    assert!(String::from_utf8_lossy(&ran.stderr).contains("status-403"), "{ran:?}");
}

#[test]
fn the_clock_stops_a_run_and_what_was_measured_is_said() {
    let address = http(|_| Some(ok("hello")));
    let url = format!("http://{address}/");
    let warm = ["warm", &url, "--time", "1h", "--rounds", "1", "--max-time", "300ms"];
    let (code, said) = report(&warm);
    assert_eq!((code, &said["interrupted"]), (130, &true.into()));
    assert!(said["servers"][0]["answers"].as_u64() > Some(0), "{said}");
}

#[test]
fn the_report_has_the_shape_that_the_readme_describes() {
    let address = http(|_| Some(ok("hello")));
    let peer = format!("other=http://{address}/");
    let (_, said) =
        warm(&format!("http://{address}/"), &["--compare", &peer, "--fail-if", "p99>9s"]);
    let readme = include_str!("../README.md");
    let mut keys = Vec::new();
    for (part, value) in [
        ("", &said),
        ("servers", &said["servers"][0]),
        ("series", &said["servers"][0]["series"]["latency"]),
        ("values", &said["servers"][0]["values"]["rate"]),
        ("comparisons", &said["comparisons"][0]),
        ("ratio", &said["comparisons"][0]["ratio"]),
        ("checks", &said["checks"][0]),
        ("conditions", &said["conditions"]),
    ] {
        keys.extend(value.as_object().expect(part).keys().cloned());
    }
    for key in keys {
        assert!(readme.contains(&format!("`{key}`")), "the README does not know `{key}`");
    }
    assert_eq!(said["schema"], 1);
    let table = loadtest::metrics::table();
    assert!(readme.contains(&table), "the README's metrics are not `loadtest metrics`:\n{table}");
}

#[test]
fn pages_and_pictures_are_whole() {
    let address = http(|_| Some(ok("hello")));
    let dir = tempfile::tempdir().unwrap();
    let (html, svg) = (dir.path().join("r.html"), dir.path().join("svg"));
    let paths = [html.to_str().unwrap(), svg.to_str().unwrap()];
    let evil = format!("http://{address}/?<script>");
    let (code, _) = warm(&evil, &["--html", paths[0], "--svg", paths[1]]);
    assert_eq!(code, 0);
    let page = std::fs::read_to_string(html).unwrap();
    assert!(page.contains("<svg") && page.contains("load average") && page.ends_with("</html>\n"));
    assert!(!page.contains("<script"), "what was given is text");
    assert!(!page.contains("src=") && !page.contains("href="), "it needs nothing else");
    assert!(std::fs::read_to_string(svg.join("latency.svg")).unwrap().ends_with("</svg>\n"));
}

#[test]
fn a_scenario_that_says_too_much_is_refused_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("wrong.toml");
    let text = "promise = \"x\"\n[measure.warm]\nurl = \"http://localhost/\"\nconections = 3\n";
    std::fs::write(&file, text).unwrap();
    let ran = loadtest(&["run", file.to_str().unwrap()]);
    let said = String::from_utf8_lossy(&ran.stderr);
    assert_eq!(ran.status.code(), Some(2));
    assert!(said.contains("line 4") && said.contains("conections"), "{said}");
    std::fs::write(&file, text.replace("conections", "connections") + "[bed.parts.x]\n").unwrap();
    let said = loadtest(&["run", file.to_str().unwrap()]).stderr;
    assert!(String::from_utf8_lossy(&said).contains("line 5"), "missing command");
}

#[test]
fn the_committed_scenarios_can_be_read_and_the_readme_knows_them() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/scenarios");
    let readme = include_str!("../README.md");
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        scenario::read(&path).unwrap();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        assert!(readme.contains(&name), "the README does not know {name}");
    }
}
