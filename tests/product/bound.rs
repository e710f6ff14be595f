//! Whose session it is: who may enter one of a pattern's sessions may not enter the others.

use axum::{Router, extract::Request, http::HeaderMap};

use crate::{
    access::{ALICE, all, answer, arrived, assert_nobody_woke, edge, refused, serve, still},
    support::{Edge, Setup, witnessed},
};

const BOB: &str = "bob.test";

fn line(user: &str, password: &str) -> String {
    format!("{user}:{}\n", bcrypt::hash(password, 4).expect("a hash"))
}

/// What a name and a password get at a host.
async fn status(edge: &Edge, host: &str, user: &str, password: &str) -> u16 {
    let asked = still().get(edge.url(ALICE, "/whoami")).header("host", host);
    let asked = asked.basic_auth(user, Some(password));
    answer(asked).await.status().as_u16()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_users_password_opens_that_users_session_and_no_other() {
    let access = "[access]\nbasic = { users = \"users\", user = \"{session}\" }\n";
    let users = line("alice", "open sesame") + &line("bob", "hunter two");
    let setup = Setup::new().file("routes/users", &users);
    let edge = setup.route("demo", &witnessed("", access)).start();
    assert_eq!(status(&edge, BOB, "alice", "open sesame").await, 401);
    assert_eq!(status(&edge, ALICE, "bob", "hunter two").await, 401);
    assert_nobody_woke(&edge);
    assert_eq!(status(&edge, ALICE, "alice", "open sesame").await, 200);
    // What was verified a moment ago is remembered, and not for another session.
    assert_eq!(status(&edge, BOB, "alice", "open sesame").await, 401);
    assert_eq!(status(&edge, BOB, "bob", "hunter two").await, 200);
    assert_eq!((edge.starts(ALICE), edge.starts(BOB)), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_session_may_have_a_users_file_of_its_own() {
    let access = "[access]\nbasic = { users = \"users/{session}.htpasswd\" }\n";
    let setup = Setup::new()
        .file("routes/users/alice.htpasswd", &line("guest", "of alice"))
        .file("routes/users/bob.htpasswd", &line("guest", "of bob"));
    let mut edge = setup.route("demo", &witnessed("", access)).start();
    for (host, user, password) in [
        (ALICE, "guest", "of bob"),
        (BOB, "guest", "of alice"),
        ("carol.test", "guest", "of alice"),
    ] {
        assert_eq!(status(&edge, host, user, password).await, 401, "{host}");
    }
    // No host leads out of the folder: what could is no host.
    for host in ["..test", "../users/alice.test", "%2e%2e.test", "alice/.test", "a\\b.test"] {
        let code = status(&edge, host, "guest", "of alice").await;
        assert!(matches!(code, 400 | 404), "{host}: {code}");
    }
    assert_nobody_woke(&edge);
    assert_eq!(status(&edge, ALICE, "guest", "of alice").await, 200);
    assert_eq!(status(&edge, BOB, "guest", "of bob").await, 200);
    // A session's file may come later; that it is not there is no fault to tell of.
    edge.write_file("routes/users/carol.htpasswd", &line("guest", "of carol"));
    edge.wait_until("Carol's users are read", |edge| {
        200 == crate::support::blocking(status(edge, "carol.test", "guest", "of carol"))
    });
    // One that cannot be read is told, and lets nobody in.
    edge.announce("dave.htpasswd:1:6");
    edge.write_file("routes/users/dave.htpasswd", "dave:plain\n");
    assert_eq!(status(&edge, "dave.test", "dave", "plain").await, 401);
    edge.wait_until("it is told", |edge| 0 < edge.log_count(&["dave.htpasswd:1:6"]));
}

/// Says who it is by the cookie.
async fn name(request: Request) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for cookie in request.headers().get_all("cookie") {
        for name in cookie.to_str().expect("text").split("; ") {
            headers.append("remote-user", name.parse().expect("a value"));
        }
    }
    headers
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_service_says_must_fit_the_session() {
    let service = serve(Router::new().fallback(name)).await;
    let edge = edge(&format!(
        "[access.forward]\nurl = \"http://{service}/\"\nuser = \"Remote-User\"\n\
         expect = {{ Remote-User = \"{{session}}\" }}\n"
    ));
    let get =
        |host: &str, cookie: &str| still().get(edge.url(host, "/headers")).header("cookie", cookie);
    for (host, cookie) in [
        (BOB, "alice"),
        (ALICE, "bob"),
        (ALICE, "alice2"),
        (ALICE, "Alice"),
        (ALICE, "alice,bob"),
        (ALICE, "alice; bob"),
    ] {
        let told = refused(get(host, cookie)).await;
        assert_eq!(told, (403, "not_allowed".into()), "{host} {cookie}");
    }
    let nothing = still().get(edge.url(ALICE, "/headers"));
    assert_eq!(refused(nothing).await, (403, "not_allowed".into()));
    assert_nobody_woke(&edge);
    for host in [ALICE, BOB] {
        let name = host.split('.').next().expect("a name");
        assert_eq!(all(&arrived(get(host, name)).await, "x-dormouse-user"), [name]);
    }
    // A yes that is remembered counts where it was given.
    assert_eq!(refused(get(BOB, "alice")).await.0, 403);
}
