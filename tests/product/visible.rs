//! What an operator finds of what went wrong: in the log by the request id of an error page, in
//! `last_error`, and in the metrics that alerts are made of.

use crate::{
    guest::{self, Guest},
    support::{Edge, PATIENCE, Setup, client, witnessed},
};

/// A route whose instance runs this, is probed so, and has a second to get ready.
fn route(command: &str, ready: &str) -> String {
    format!(
        "host = \"{{session}}.test\"\nengine = \"local\"\n[instance]\ncommand = {command}\n\
         [ready]\n{ready}\n[wake]\ntimeout = \"1s\"\nboot_max = \"0s\"\n"
    )
}

/// Asks for `/`; the status and the id of the answer.
async fn ask(edge: &Edge, host: &str) -> (u16, String) {
    let request = client().get(edge.url(host, "/")).timeout(PATIENCE);
    let answer = request.send().await.expect("an answer");
    let id = answer.headers()["x-request-id"].to_str().expect("text").to_owned();
    (answer.status().as_u16(), id)
}

/// One wake that fails, as the operator sees it.
async fn failed_wake(command: &str, ready: &str, status: u16, sees: &str) {
    let mut edge = Setup::new().route("demo", &route(command, ready)).start();
    edge.announce("wake failed");
    let (answered, id) = ask(&edge, "alice.test").await;
    assert_eq!(answered, status);
    edge.wait_until("the id of the error page is in the log", |edge| {
        0 < edge.log_count(&[" INFO ", &id, "alice.test", "generation="])
    });
    edge.wait_until(&format!("the log says {sees}"), |edge| {
        edge.log_count(&[" WARN ", "wake failed", "alice.test", sees]) == 1
    });
    let error = edge.session("alice.test")["last_error"].to_string();
    assert!(error.contains(sees), "{error}");
    assert_eq!(edge.metric(&["dormouse_wakes_total", "result=\"failed\""]), 1.0);
    assert_eq!(edge.metric(&["dormouse_wakes_total", "result=\"cancelled\""]), 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_listens_nowhere_is_told_with_the_address_that_was_asked() {
    failed_wake("[\"sleep\", \"600\"]", "", 504, "no connection: Connection refused").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_probe_that_is_answered_404_is_told_with_what_was_asked_and_answered() {
    let serves =
        "[\"busybox\", \"httpd\", \"-f\", \"-p\", \"{address}\", \"-h\", \"/proc/self/fd\"]";
    let ready = "probe = \"http\"\npath = \"/missing\"\nstatus = 200";
    failed_wake(serves, ready, 504, "answers 404, and ready.status is 200").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_on_another_port_is_told_with_the_port_that_it_is_on() {
    let free = crate::support::free_port().port();
    let serves = format!(
        "[\"busybox\", \"httpd\", \"-f\", \"-p\", \"127.0.0.1:{free}\", \"-h\", \"/proc/self/fd\"]"
    );
    failed_wake(&serves, "", 504, &format!(":{free}")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_speaks_tls_where_the_route_does_not_is_told_and_the_reverse() {
    let wake = "[ready]\nprobe = \"http\"\n[wake]\ntimeout = \"2s\"\nboot_max = \"0s\"\n";
    let plain =
        witnessed("", "[upstream]\ntls = true\n[wake]\ntimeout = \"2s\"\nboot_max = \"0s\"\n");
    for (route, sees) in [
        (guest::route(Guest::Https, wake), "if it speaks TLS, add tls = true"),
        (plain, "if it speaks plain HTTP, take tls out"),
    ] {
        let mut edge = Setup::new().route("demo", &route).start();
        edge.announce("wake failed");
        assert_eq!(ask(&edge, "alice.test").await.0, 504);
        edge.wait_until(&format!("the log says {sees}"), |edge| {
            edge.log_count(&[" WARN ", "wake failed", sees]) == 1
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_ends_at_once_is_told() {
    failed_wake("[\"sh\", \"-c\", \"exit 7\"]", "", 502, "exit code 7").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_of_our_own_is_found_by_its_id() {
    let mut edge = Setup::new()
        .route("demo", &witnessed("", "[access]\nlink = true\n"))
        .route("open", &witnessed("", "").replace("{session}.test", "{session}.open.test"))
        .start();
    let (none, missing) = (ask(&edge, "x.example").await, ask(&edge, "alice.test").await);
    assert_eq!((none.0, missing.0), (404, 403));
    for (status, id, reason) in [(404, &none.1, "no_such_host"), (403, &missing.1, "link_missing")]
    {
        let status = format!("status={status}");
        edge.wait_until("it is in the log", |edge| {
            edge.log_count(&[" INFO ", id, &status, reason, "client=127.0.0.1"]) == 1
        });
    }
    // What went well is no line of this kind.
    let (fine, id) = ask(&edge, "alice.open.test").await;
    assert_eq!((fine, edge.log_count(&[" INFO ", &id])), (200, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_probe_carries_the_routes_headers_and_the_log_does_not() {
    let more = "[ready]\nprobe = \"http\"\n\
                [upstream]\nset_headers = { Authorization = \"Bearer of-{session}\" }\n";
    let edge = Setup::new().route("demo", &guest::route(Guest::Recorder, more));
    let edge = edge.file("answer", "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").start();
    assert_eq!(ask(&edge, "alice.test").await.0, 200);
    let recorded = guest::recorded(&edge, "alice.test");
    let probe =
        recorded.iter().find(|request| request.contains("dormouse-probe")).expect("a probe");
    assert!(probe.to_lowercase().contains("\r\nauthorization: bearer of-alice\r\n"), "{probe}");
    assert_eq!(edge.log_count(&["Bearer"]), 0, "a secret in the log");
}
