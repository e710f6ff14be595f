//! Who may enter: whoever may not has cost no engine call, and what lets in is nobody else's to see.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Router,
    extract::Request,
    http::{HeaderMap, StatusCode},
    response::IntoResponse,
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use futures::StreamExt;
use reqwest::{RequestBuilder, Response, redirect};
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::{
    client_async,
    tungstenite::{Message, client::IntoClientRequest, protocol::frame::coding::CloseCode},
};

use crate::{
    guest::{self, Guest},
    h2 as http2,
    support::{Edge, PATIENCE, Setup, client, witnessed},
    tls::{Authority, HTTPS, Minted, NAMES, Tls, ask},
    wire::Wire,
};

pub(crate) const ALICE: &str = "alice.test";

pub(crate) fn edge(access: &str) -> Edge {
    Setup::new().route("demo", &witnessed("", access)).start()
}

/// Nobody is sent elsewhere.
pub(crate) fn still() -> reqwest::Client {
    let builder = reqwest::Client::builder().redirect(redirect::Policy::none()).no_proxy();
    let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
    builder.resolve(ALICE, loopback).resolve("bob.test", loopback).build().expect("a client")
}

pub(crate) async fn answer(request: RequestBuilder) -> Response {
    request.timeout(PATIENCE).send().await.expect("an answer")
}

/// The status, and the reason in it.
pub(crate) async fn refused(request: RequestBuilder) -> (u16, String) {
    let answer = answer(request).await;
    let status = answer.status().as_u16();
    let problem: Value = answer.json().await.expect("a problem");
    let reason = problem["type"].as_str().expect("a type").trim_start_matches("urn:dormouse:");
    (status, reason.to_owned())
}

pub(crate) async fn arrived(request: RequestBuilder) -> Vec<(String, String)> {
    let answer = answer(request).await;
    assert_eq!(answer.status(), 200, "{answer:?}");
    answer.json().await.expect("JSON")
}

pub(crate) fn all<'a>(headers: &'a [(String, String)], name: &str) -> Vec<&'a str> {
    headers.iter().filter(|(n, _)| n == name).map(|(_, value)| value.as_str()).collect()
}

/// A link to Alice's session: its id and its token.
pub(crate) fn link(edge: &Edge, more: &str) -> (String, String) {
    let (status, link) = edge.admin_post(&format!("/v1/sessions/{ALICE}/links?expires=1h{more}"));
    assert_eq!(status, 201, "{link}");
    let text = |key: &str| link[key].as_str().expect("text").to_owned();
    (text("id"), text("token"))
}

fn revoke(edge: &Edge, id: &str) {
    let (status, answer) = edge.admin_post(&format!("/v1/links/{id}/revoke"));
    assert_eq!(status, 200, "{answer}");
}

/// The cookie that a link becomes, as a browser sends it back.
pub(crate) async fn cookie(edge: &Edge, token: &str) -> String {
    let answer = answer(still().get(edge.url(ALICE, &format!("/?dormouse={token}")))).await;
    assert_eq!(answer.status(), 303);
    let cookie = answer.headers()["set-cookie"].to_str().expect("text");
    cookie.split(';').next().expect("a cookie").to_owned()
}

pub(crate) fn assert_nobody_woke(edge: &Edge) {
    for host in [ALICE, "bob.test"] {
        assert_eq!((edge.starts(host), &*edge.state(host)), (0, "none"), "{host}");
    }
    assert_eq!(edge.metric(&["dormouse_wakes_total"]), 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_does_not_count_wakes_nobody() {
    let edge = edge("[access]\nlink = true\n");
    let (http, url) = (still(), edge.url(ALICE, "/headers"));
    let (id, token) = link(&edge, "");
    let (_, other) = link(&edge, "");
    let good = cookie(&edge, &token).await;
    let with = |token: &str| http.get(format!("{url}?dormouse={token}"));
    let forbidden = |reason: &str| (403, reason.to_owned());

    assert_eq!(refused(http.get(&url)).await, forbidden("link_missing"));
    let (head, mac) = token.rsplit_once('.').expect("a MAC");
    let (_, foreign_mac) = other.rsplit_once('.').expect("a MAC");
    for wrong in [
        "",
        "x",
        "dm1l.own.e30.AAAA",
        head,
        &format!("{head}.{foreign_mac}"),
        &format!("{token}A"),
        &token[1..],
    ] {
        assert_eq!(refused(with(wrong)).await, forbidden("link_wrong"), "{wrong}");
    }
    assert!(!mac.is_empty());
    // A link is no cookie, and a cookie no link.
    let as_cookie = http.get(&url).header("cookie", format!("__Host-dormouse={token}"));
    assert_eq!(refused(as_cookie).await, forbidden("link_wrong"));
    let cookies_token = good.split_once('=').expect("a value").1;
    assert_eq!(refused(with(cookies_token)).await, forbidden("link_wrong"));
    // The cookie for plain HTTP does not count where the route does not say so.
    let insecure = http.get(&url).header("cookie", format!("dormouse={cookies_token}"));
    assert_eq!(refused(insecure).await, forbidden("link_missing"));
    // Another session's.
    let foreign = http.get(edge.url("bob.test", &format!("/?dormouse={token}")));
    assert_eq!(refused(foreign).await, forbidden("link_elsewhere"));
    let foreign = http.get(edge.url("bob.test", "/")).header("cookie", &good);
    assert_eq!(refused(foreign).await, forbidden("link_elsewhere"));
    // Another client's.
    let (_, bound) = link(&edge, "&address=192.0.2.7");
    assert_eq!(refused(with(&bound)).await, forbidden("link_elsewhere"));
    // One that was taken back, and the cookie that it became.
    revoke(&edge, &id);
    assert_eq!(refused(with(&token)).await, forbidden("link_revoked"));
    let revoked = http.get(&url).header("cookie", &good);
    assert_eq!(refused(revoked).await, forbidden("link_revoked"));
    // Wherever it is carried.
    let bearer = http.get(&url).bearer_auth(&token);
    assert_eq!(refused(bearer).await, forbidden("link_revoked"));
    let post = http.post(&url).header("cookie", &good).body("x");
    assert_eq!(refused(post).await, forbidden("link_revoked"));

    assert_nobody_woke(&edge);
    assert!(0.0 < edge.metric(&["dormouse_refused_total", "link_revoked"]));
    assert_eq!(edge.log_count(&[&token]), 0, "a token in the log");
    assert_eq!(edge.log_count(&[cookies_token]), 0, "a cookie in the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_link_wakes_nobody() {
    let mut edge = edge("[access]\nlink = true\n");
    let path = format!("/v1/sessions/{ALICE}/links?expires=1s");
    let (_, short) = edge.admin_post(&path);
    let token = short["token"].as_str().expect("a token").to_owned();
    let url = edge.url(ALICE, &format!("/?dormouse={token}"));
    edge.wait_until("the link has expired", |_| {
        let asked = crate::support::blocking(async { answer(still().get(&url)).await.status() });
        asked == 403
    });
    assert_eq!(refused(still().get(&url)).await, (403, "link_expired".into()));
    assert_nobody_woke(&edge);
    let too_long = edge.admin_post(&format!("/v1/sessions/{ALICE}/links?expires=31d"));
    assert_eq!(too_long.0, 400, "{}", too_long.1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_becomes_a_cookie_and_neither_reaches_the_instance() {
    let edge = edge("[access]\nlink = true\n");
    let (_, token) = link(&edge, "&user=Al%20%C3%9Fe");
    let path = format!("/headers?a=1&dormouse={token}&b=2");
    let exchanged = answer(still().get(edge.url(ALICE, &path))).await;
    assert_eq!(exchanged.status(), 303);
    let header = |name: &str| exchanged.headers()[name].to_str().expect("text").to_owned();
    assert_eq!(header("location"), "/headers?a=1&b=2");
    assert_eq!(header("referrer-policy"), "no-referrer");
    assert_eq!(header("cache-control"), "no-store");
    let cookie = header("set-cookie");
    assert!(cookie.starts_with("__Host-dormouse=dm1c."), "{cookie}");
    for part in ["; Path=/", "; HttpOnly", "; Secure", "; SameSite=Lax", "; Max-Age=3"] {
        assert!(cookie.contains(part), "no {part} in {cookie}");
    }
    assert!(!cookie.contains("Domain"), "{cookie}");
    assert_nobody_woke(&edge);

    let cookie = cookie.split(';').next().expect("a cookie");
    let entered = still()
        .get(edge.url(ALICE, "/headers?a=1&b=2"))
        .header("cookie", format!("theirs=1; {cookie}; dormouse=x; more=2"));
    let headers = arrived(entered).await;
    assert_eq!(all(&headers, "cookie"), ["theirs=1; more=2"]);
    assert_eq!(all(&headers, "x-dormouse-user"), ["Al %C3%9Fe"]);
    assert_eq!(all(&headers, "x-dormouse-access"), ["link"]);
    assert!(!format!("{headers:?}").contains("dm1"), "{headers:?}");
    // Without a redirect: a program's token in its own header, a body, the only cookie.
    let program = arrived(still().get(edge.url(ALICE, "/headers")).bearer_auth(&token)).await;
    assert!(all(&program, "authorization").is_empty() && all(&program, "cookie").is_empty());
    let only = arrived(still().get(edge.url(ALICE, "/headers")).header("cookie", cookie)).await;
    assert!(all(&only, "cookie").is_empty(), "{only:?}");
    assert_eq!(edge.starts(ALICE), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_is_a_url_that_reaches_the_session() {
    let authority = Authority::new();
    let route = witnessed("", "[access]\nlink = true\n");
    let both = Setup::new().listen(HTTPS).route("demo", &route);
    let both = authority.mint(NAMES).set_up(both, "both").start();
    let insecure = "[access]\nlink = true\ninsecure_cookie = true\n";
    let insecure = Setup::new().listen(HTTPS).route("demo", &witnessed("", insecure));
    let insecure = authority.mint(NAMES).set_up(insecure, "both").start();
    let proxied =
        Setup::new().listen("trusted_proxies = [\"10.0.0.1\"]").route("demo", &route).start();
    let plain = edge("[access]\nlink = true\n");
    let https = both.https.port();
    for (edge, begins) in [
        (&plain, format!("http://{ALICE}:{}/?dormouse=dm1l.", plain.http.port())),
        (&both, format!("https://{ALICE}:{https}/?dormouse=dm1l.")),
        (&insecure, format!("http://{ALICE}:{}/?dormouse=dm1l.", insecure.http.port())),
        // Its TLS is theirs.
        (&proxied, format!("https://{ALICE}/?dormouse=dm1l.")),
    ] {
        let (_, link) = edge.admin_post(&format!("/v1/sessions/{ALICE}/links?expires=1h"));
        let url = link["url"].as_str().expect("a URL");
        assert!(url.starts_with(&begins), "{url} {begins}");
    }
    let (_, link) = plain.admin_post(&format!("/v1/sessions/{ALICE}/links?expires=1h"));
    let opened = answer(still().get(link["url"].as_str().expect("a URL"))).await;
    assert_eq!(opened.status(), 303);
}

#[tokio::test(flavor = "multi_thread")]
async fn cookies_that_a_neighbours_page_has_set_lock_nobody_out() {
    // A page of bob.example.com may set `dormouse` for all of example.com, and a path that makes a
    // browser send it first; it cannot set `__Host-dormouse`.
    let edge = edge("[access]\nlink = true\n");
    let good = cookie(&edge, &link(&edge, "").1).await;
    let insecure = self::edge("[access]\nlink = true\ninsecure_cookie = true\n");
    let good_insecure = cookie(&insecure, &link(&insecure, "").1).await;
    for (edge, good, name) in [
        (&edge, &good, "dormouse"),
        (&insecure, &good_insecure, "dormouse"),
        (&insecure, &good_insecure, "__Host-dormouse"),
    ] {
        let planted = format!("{name}=dm1c.own.e30.AAAA; ").repeat(100);
        let asked = still().get(edge.url(ALICE, "/headers"));
        let headers = arrived(asked.header("cookie", format!("{planted}{good}"))).await;
        assert!(all(&headers, "cookie").is_empty(), "{headers:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_credentials_none_of_ours_reaches_the_instance() {
    let edge = edge("[access]\nlink = true\n");
    let bearer = format!("Bearer {}", link(&edge, "").1);
    let asked = still().get(edge.url(ALICE, "/headers")).header("authorization", "Basic eDp5");
    let headers = arrived(asked.header("authorization", bearer)).await;
    assert!(all(&headers, "authorization").is_empty(), "{headers:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_in_a_url_that_is_not_asked_for_again_is_taken_out_of_it() {
    let edge = Setup::new()
        .route("demo", &guest::route(Guest::Recorder, "[access]\nlink = true\n"))
        .start();
    std::fs::write(edge.path("answer"), "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        .expect("a file");
    let (_, token) = link(&edge, "");
    let posted = still().post(edge.url(ALICE, &format!("/p?dormouse={token}&a=1"))).body("x");
    assert_eq!(answer(posted).await.status(), 200);
    let bytes = guest::recorded(&edge, ALICE).concat();
    assert!(bytes.starts_with("POST /p?a=1 HTTP/1.1\r\n") && !bytes.contains("dm1"), "{bytes}");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_route_says_so_plain_http_has_a_cookie_of_its_own() {
    let edge = edge("[access]\nlink = true\ninsecure_cookie = true\n");
    let (_, token) = link(&edge, "");
    let cookie = cookie(&edge, &token).await;
    assert!(cookie.starts_with("dormouse=dm1c."), "{cookie}");
    let headers = arrived(still().get(edge.url(ALICE, "/headers")).header("cookie", cookie)).await;
    assert!(all(&headers, "cookie").is_empty(), "{headers:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_somebody_is_cannot_be_forged() {
    let (open, closed) = ("", "[access]\naddresses = { allow = [\"127.0.0.0/8\"] }\n");
    for (access, by) in [(open, &[][..]), (closed, &["addresses"])] {
        let edge = edge(access);
        let mut forged = still().get(edge.url(ALICE, "/headers"));
        for name in [
            "X-Dormouse-User",
            "x_dormouse_user",
            "X-Dormouse_User",
            "X-Dormouse-Access",
            "X-Dormouse-Else",
        ] {
            forged = forged.header(name, "mallory");
        }
        // A header that `Connection` names is taken off: not ours.
        let headers = arrived(forged.header("connection", "x-dormouse-access")).await;
        assert!(!format!("{headers:?}").contains("mallory"), "{headers:?}");
        assert_eq!(all(&headers, "x-dormouse-access"), by);
        assert!(all(&headers, "x-dormouse-user").is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_let_in_or_keep_out() {
    for (access, status) in [
        ("addresses = { allow = [\"127.0.0.1\"] }", 200),
        ("addresses = { deny = [\"10.0.0.0/8\"] }", 200),
        ("addresses = { allow = [\"10.0.0.0/8\", \"::1\"] }", 403),
        ("addresses = { allow = [\"127.0.0.0/8\"], deny = [\"127.0.0.1\"] }", 403),
        // What is denied is denied, whatever else would let it in.
        (
            "require = \"any\"\nlink = true\naddresses = { allow = [\"::/0\"], deny = [\"127.0.0.1\"] }",
            403,
        ),
        ("require = \"any\"\nlink = true\naddresses = { allow = [\"127.0.0.1\"] }", 200),
        ("link = true\naddresses = { allow = [\"127.0.0.1\"] }", 403),
    ] {
        let edge = edge(&format!("[access]\n{access}\n"));
        let answer = answer(still().get(edge.url(ALICE, "/whoami"))).await;
        assert_eq!(answer.status(), status, "{access}");
        assert_eq!(edge.starts(ALICE), usize::from(status == 200), "{access}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_and_a_password_let_in_and_stay_here() {
    let mut edge = Setup::new()
        .config("[log]\naccess = \"access.log\"\n")
        .route("open", "host = \"x.example\"\ninstance.command = [\"x\"]\n")
        .start();
    let hash = bcrypt::hash("open sesame", 4).expect("a hash");
    std::fs::write(edge.path("routes/users"), format!("alice:{hash}\n")).expect("a file");
    edge.write_route("demo", &witnessed("", "[access]\nbasic = { users = \"users\" }\n"));
    edge.wait_until("the route is live", |edge| edge.metric(&["dormouse_routes"]) == 2.0);
    let url = edge.url(ALICE, "/headers");
    for request in [
        still().get(&url),
        still().get(&url).basic_auth("alice", Some("wrong")),
        still().get(&url).basic_auth("eve", Some("open sesame")),
        still().get(&url).header("authorization", "Basic !!!"),
        still().get(&url).header("authorization", format!("Basic {}", "A".repeat(4000))),
    ] {
        let answer = answer(request).await;
        assert_eq!(answer.status(), 401);
        let challenge = answer.headers()["www-authenticate"].to_str().expect("text");
        assert_eq!(challenge, "Basic realm=\"alice.test\", charset=\"UTF-8\"");
    }
    assert_nobody_woke(&edge);
    let headers = arrived(still().get(&url).basic_auth("alice", Some("open sesame"))).await;
    assert_eq!(all(&headers, "x-dormouse-user"), ["alice"]);
    assert!(all(&headers, "authorization").is_empty(), "{headers:?}");
    assert_eq!(edge.log_count(&["sesame"]), 0);
    edge.wait_until("the access log says who it was", |edge| {
        let log = std::fs::read_to_string(edge.path("access.log")).unwrap_or_default();
        log.lines().any(|line| line.contains("\"user\":\"alice\""))
    });

    // A file that has become wrong is told, and changes nothing.
    edge.announce("users:1:5");
    std::fs::write(edge.path("routes/users"), "eve:open sesame\n").expect("a file");
    edge.wait_until("the mistake is told", |edge| {
        let again = still().get(&url).basic_auth("alice", Some("open sesame"));
        assert_eq!(crate::support::blocking(answer(again)).status(), 200);
        0 < edge.log_count(&["users:1:5", "the users stay as they were"])
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_lets_in_where_it_names_the_session() {
    let (authority, theirs) = (Authority::new(), Authority::new());
    let listen =
        "https = [{ address = \"@HTTPS@\", client_ca = \"ca.pem\", client_auth = \"optional\" }]";
    let setup = Setup::new().listen(listen).file("ca.pem", &theirs.pem());
    let access = "[access]\nmtls = { san = [\"{session}.users.test\"] }\n";
    let setup = setup.route("demo", &witnessed("", access));
    let edge = authority.mint(NAMES).set_up(setup, "both").start();
    let status = async |tls: Tls, host: &str| {
        let stream = tls.connect(&edge, host).await.expect("a handshake");
        let (_, head) = ask(stream, &format!("GET /whoami HTTP/1.1\r\nHost: {host}")).await;
        head[9..12].to_owned()
    };
    let alice = theirs.mint(&["alice.users.test"]);
    assert_eq!(status(authority.client(), ALICE).await, "403");
    assert_eq!(status(authority.client().showing(&alice), "bob.test").await, "403");
    assert_nobody_woke(&edge);
    assert_eq!(status(authority.client().showing(&alice), ALICE).await, "200");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_wakes_nothing_for_an_address_that_may_not_enter() {
    let authority = Authority::new();
    let more = "[wake]\non = \"sni\"\n[access]\naddresses = { deny = [\"127.0.0.1\"] }\n";
    let setup = Setup::new().listen(HTTPS).route("demo", &witnessed("", more));
    let edge = authority.mint(NAMES).set_up(setup, "both").start();
    let stream = authority.client().connect(&edge, ALICE).await.expect("a handshake");
    let (_, head) = ask(stream, &format!("GET / HTTP/1.1\r\nHost: {ALICE}")).await;
    assert!(head.starts_with("HTTP/1.1 403 "), "{head}");
    assert_nobody_woke(&edge);
}

const HANDSHAKE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

async fn handshake(edge: &Edge, more: &str) -> String {
    let head = format!("GET /ws HTTP/1.1\r\nHost: {ALICE}\r\n{HANDSHAKE}{more}\r\n");
    let mut wire = Wire::sent(edge.http, head.as_bytes()).await;
    let head = wire.head().await;
    head.split("\r\n\r\n").next().expect("a head").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_foreign_page_opens_a_websocket() {
    let closed = edge("[access]\nlink = true\n");
    let (_, token) = link(&closed, "");
    let cookie = format!("Cookie: {}\r\n", cookie(&closed, &token).await);
    for origin in ["https://evil.test", "null", "http://bob.test", "http://alice.test.evil.test"] {
        let head = handshake(&closed, &format!("{cookie}Origin: {origin}\r\n")).await;
        assert!(head.starts_with("HTTP/1.1 403 "), "{origin}: {head}");
    }
    assert_nobody_woke(&closed);
    // Nor does it change anything.
    let forged = still().post(closed.url(ALICE, "/upload")).header("origin", "http://bob.test");
    let cookie_value = cookie.trim().trim_start_matches("Cookie: ").to_owned();
    let forged = forged.header("cookie", cookie_value).body("x");
    assert_eq!(refused(forged).await, (403, "foreign_origin".into()));
    assert_nobody_woke(&closed);
    for origin in ["", "Origin: http://alice.test:8080\r\n"] {
        let head = handshake(&closed, &format!("{cookie}{origin}")).await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{origin}: {head}");
    }
    // A route without a policy is open, but not to every page.
    let open = edge("");
    let head = handshake(&open, "Origin: https://evil.test\r\n").await;
    assert!(head.starts_with("HTTP/1.1 403 "), "{head}");
    assert_nobody_woke(&open);
    for (origin, status) in [("any", 101), ("app", 101)] {
        let word = if origin == "any" { "\"any\"" } else { "[\"https://evil.test\"]" };
        let edge = edge(&format!("[access]\norigin = {word}\n"));
        let head = handshake(&edge, "Origin: https://evil.test\r\n").await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_may_bring_its_token_as_a_protocol() {
    let edge = Setup::new()
        .route("demo", &guest::route(Guest::Recorder, "[access]\nlink = true\n"))
        .start();
    let upgraded =
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n";
    std::fs::write(edge.path("answer"), format!("{upgraded}\r\n")).expect("a file");
    let (_, token) = link(&edge, "");
    let wrong = handshake(&edge, "Sec-WebSocket-Protocol: dormouse.token.dm1l.x\r\n").await;
    assert!(wrong.starts_with("HTTP/1.1 403 "), "{wrong}");
    assert_nobody_woke(&edge);

    // Nothing else was offered, and a browser insists on an answer.
    let offer = format!("Sec-WebSocket-Protocol: dormouse.token.{token}\r\n");
    let head = handshake(&edge, &offer).await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert!(
        head.to_lowercase()
            .contains(&format!("sec-websocket-protocol: dormouse.token.{token}").to_lowercase()),
        "{head}"
    );
    // Something else was: the instance chooses.
    std::fs::write(
        edge.path("answer"),
        format!("{upgraded}Sec-WebSocket-Protocol: binary\r\n\r\n"),
    )
    .expect("a file");
    let offer = format!("Sec-WebSocket-Protocol: dormouse.token.{token}, binary\r\n");
    let head = handshake(&edge, &offer).await.to_lowercase();
    assert!(head.contains("sec-websocket-protocol: binary") && !head.contains("dm1l"), "{head}");

    let arrived = guest::recorded(&edge, ALICE);
    assert!(!arrived.concat().contains("dm1l"), "{arrived:?}");
    let offered = |bytes: &String| {
        bytes.lines().find(|line| line.starts_with("Sec-WebSocket-Protocol")).map(str::to_owned)
    };
    assert_eq!(
        arrived.iter().map(offered).collect::<Vec<_>>(),
        [None, Some("Sec-WebSocket-Protocol: binary".into())]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_socket_ends_when_its_link_is_revoked() {
    let edge = edge("[access]\nlink = true\nend_open = true\n");
    let (id, token) = link(&edge, "");
    let (_, other) = link(&edge, "");
    let open = async |token: &str| {
        let mut request = format!("ws://{ALICE}/ws").into_client_request().expect("a request");
        let bearer = format!("Bearer {token}").parse().expect("a value");
        request.headers_mut().insert("authorization", bearer);
        let stream = TcpStream::connect(edge.http).await.expect("connect");
        client_async(request, stream).await.expect("101").0
    };
    let (mut ends, mut stays) = (open(&token).await, open(&other).await);
    revoke(&edge, &id);
    let last = tokio::time::timeout(PATIENCE, ends.next()).await.expect("in time");
    match last {
        Some(Ok(Message::Close(Some(frame)))) => assert_eq!(frame.code, CloseCode::Policy),
        other => panic!("{other:?}"),
    }
    // The other one was made by another link.
    use futures::SinkExt as _;
    stays.send(Message::text("still here")).await.expect("sent");
    let echo = tokio::time::timeout(PATIENCE, stays.next()).await.expect("in time");
    assert_eq!(echo.expect("an echo").expect("an echo"), Message::text("still here"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_when_its_link_is_revoked_or_has_expired() {
    let edge = edge("[access]\nlink = true\nend_open = true\n");
    let (id, token) = link(&edge, "");
    let (_, short) = edge.admin_post(&format!("/v1/sessions/{ALICE}/links?expires=3s"));
    let short = short["token"].as_str().expect("a token").to_owned();
    let url = edge.url(ALICE, "/sse?every_ms=50");
    let open = async |token: &str| {
        let mut stream = answer(client().get(&url).bearer_auth(token)).await;
        assert_eq!(stream.status(), 200);
        stream.chunk().await.expect("it flows").expect("it flows");
        stream
    };
    let ends = async |mut stream: Response| while let Ok(Some(_)) = stream.chunk().await {};
    let (first, second) = (open(&token).await, open(&short).await);
    revoke(&edge, &id);
    tokio::time::timeout(PATIENCE, ends(first)).await.expect("revoked");
    tokio::time::timeout(PATIENCE, ends(second)).await.expect("expired");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_http2_ends_when_its_link_is_revoked_and_others_of_its_connection_go_on() {
    let edge = edge("[access]\nlink = true\nend_open = true\n");
    let ((id, revoked), (_, kept)) = (link(&edge, ""), link(&edge, ""));
    let mut sender = http2::connect(edge.http).await;
    let mut open = async |token: &str| {
        let mut request = http2::get(ALICE, "/sse?every_ms=50");
        let bearer = format!("Bearer {token}").parse().expect("a value");
        request.headers_mut().insert("authorization", bearer);
        let (answer, _) = sender.send_request(request, true).expect("sent");
        let mut body = answer.await.expect("an answer").into_body();
        body.data().await.expect("it flows").expect("it flows");
        body
    };
    let (mut first, mut second) = (open(&revoked).await, open(&kept).await);
    revoke(&edge, &id);
    let ends = async { while let Some(Ok(_)) = first.data().await {} };
    tokio::time::timeout(PATIENCE, ends).await.expect("revoked");
    for _ in 0..3 {
        second.data().await.expect("it flows").expect("it flows");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_revoked_stays_so_after_a_restart_and_keys_change_without_a_dead_link() {
    let setup = Setup::new()
        .config("[links]\ncurrent = \"a\"\n[links.keys]\na = \"a.key\"\nb = \"b.key\"\n");
    let setup = setup.route("demo", &witnessed("", "[access]\nlink = true\n"));
    let setup = setup.file("a.key", "0123456789 0123456789 0123456789 a");
    let mut edge = setup.file("b.key", "0123456789 0123456789 0123456789 b").start();
    let (id, revoked) = link(&edge, "");
    let ((_, by_a), (_, by_b)) = (link(&edge, ""), link(&edge, "&key=b"));
    assert!(by_a.starts_with("dm1l.a.") && by_b.starts_with("dm1l.b."), "{by_a} {by_b}");
    revoke(&edge, &id);
    edge.kill();
    let toml = std::fs::read_to_string(edge.path("dormouse.toml")).expect("settings");
    std::fs::write(edge.path("dormouse.toml"), toml.replace("current = \"a\"", "current = \"b\""))
        .expect("settings");
    edge.spawn(&[]);
    let status = async |token: &str| {
        answer(still().get(edge.url(ALICE, &format!("/?dormouse={token}")))).await.status().as_u16()
    };
    assert_eq!((status(&revoked).await, status(&by_a).await, status(&by_b).await), (403, 303, 303));
    assert!(link(&edge, "").1.starts_with("dm1l.b."));
    let (code, _) = edge.admin_post("/v1/links/keys/a/revoke");
    assert_eq!(code, 200);
    assert_eq!((status(&by_a).await, status(&by_b).await), (403, 303));
    let (code, problem) = edge.admin_post(&format!("/v1/sessions/{ALICE}/links?expires=1h&key=a"));
    assert_eq!(code, 409, "{problem}");
    assert_nobody_woke(&edge);
}

/// A server that answers by what it is asked; its address.
pub(crate) async fn serve(router: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

/// A key, its entry in a key set, and tokens that it signs.
struct Signer(EcdsaKeyPair, &'static str);

impl Signer {
    fn new(id: &'static str) -> Self {
        let (random, algorithm) = (SystemRandom::new(), &ECDSA_P256_SHA256_FIXED_SIGNING);
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).expect("a key");
        Self(EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random).expect("a key"), id)
    }

    fn entry(&self) -> Value {
        let point = self.0.public_key().as_ref();
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        json!({ "kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": self.1,
                "x": text(&point[1..33]), "y": text(&point[33..]) })
    }

    fn token(&self, algorithm: &str, subject: &str) -> String {
        let text = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let header = text(json!({ "alg": algorithm, "kid": self.1 }));
        let claims = text(json!({ "sub": subject, "exp": 4_102_444_800_u64 }));
        let signed = format!("{header}.{claims}");
        let signature = match algorithm {
            "HS256" => {
                let key =
                    ring::hmac::Key::new(ring::hmac::HMAC_SHA256, self.0.public_key().as_ref());
                ring::hmac::sign(&key, signed.as_bytes()).as_ref().to_vec()
            }
            "none" => Vec::new(),
            _ => self
                .0
                .sign(&SystemRandom::new(), signed.as_bytes())
                .expect("signed")
                .as_ref()
                .to_vec(),
        };
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jwt_lets_in_whom_it_names_and_keys_may_change() {
    let (old, new, stranger) = (Signer::new("old"), Signer::new("new"), Signer::new("old"));
    let set = Arc::new(std::sync::Mutex::new(json!({ "keys": [old.entry()] })));
    let served = Arc::clone(&set);
    let jwks = serve(Router::new().fallback(move || {
        let set = served.lock().expect("the set").to_string();
        async move { set }
    }))
    .await;
    let access = format!(
        "[access.jwt]\njwks = \"http://{jwks}/keys\"\nalgorithm = \"ES256\"\nclaims = {{ sub = \"{{session}}\" }}\n"
    );
    let mut edge = edge(&access);
    let url = edge.url(ALICE, "/headers");
    let with = |token: String| still().get(&url).bearer_auth(token);
    let missing = answer(still().get(&url)).await;
    assert_eq!(missing.headers()["www-authenticate"], "Bearer realm=\"alice.test\"");
    for token in [
        stranger.token("ES256", "alice"),
        old.token("none", "alice"),
        old.token("HS256", "alice"),
        format!("{}x", old.token("ES256", "alice")),
        "x".into(),
    ] {
        assert_eq!(refused(with(token)).await, (401, "unauthorized".into()));
    }
    assert_eq!(refused(with(old.token("ES256", "bob"))).await, (403, "not_allowed".into()));
    assert_nobody_woke(&edge);
    let headers = arrived(with(old.token("ES256", "alice"))).await;
    assert_eq!(all(&headers, "x-dormouse-user"), ["alice"]);
    assert_eq!(all(&headers, "x-dormouse-access"), ["jwt"]);

    let by_cookie = self::edge(&access.replace("\nclaims", "\ncookie = \"auth\"\nclaims"));
    let planted = format!("auth=x; auth={}; ", stranger.token("ES256", "alice"));
    let own = format!("{planted}auth={}", old.token("ES256", "alice"));
    let asked = still().get(by_cookie.url(ALICE, "/headers")).header("cookie", own);
    assert_eq!(all(&arrived(asked).await, "x-dormouse-user"), ["alice"], "a neighbour's cookies");

    *set.lock().expect("the set") = json!({ "keys": [new.entry()] });
    let after = new.token("ES256", "alice");
    edge.wait_until("the new key is read", |_| {
        crate::support::blocking(answer(with(after.clone()))).status() == 200
    });
    assert_eq!(refused(with(old.token("ES256", "alice"))).await.0, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_set_that_does_not_come_lets_nobody_in() {
    let mut edge = edge("[access.jwt]\njwks = \"http://127.0.0.1:1/\"\nalgorithm = \"ES256\"\n");
    edge.announce("a key set cannot be read");
    let token = Signer::new("old").token("ES256", "alice");
    let asked = still().get(edge.url(ALICE, "/")).bearer_auth(token);
    assert_eq!(refused(asked).await, (503, "access_undecided".into()));
    assert_nobody_woke(&edge);
}

/// Decides by the path that it is told of.
async fn judge(request: Request) -> axum::response::Response {
    let told = request.headers().clone();
    let header =
        |name: &str| told.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let mut headers = HeaderMap::new();
    let mut say = |name: &'static str, value: &str| {
        headers.append(name, value.parse().expect("a value"));
    };
    say("x-who", header("cookie"));
    let told = [
        "x-forwarded-method",
        "x-forwarded-proto",
        "x-forwarded-host",
        "x-forwarded-uri",
        "x-forwarded-for",
    ];
    say("x-told", &told.map(header).join(" "));
    say("x-secret", "for nobody");
    match header("x-forwarded-uri") {
        "/401" => {
            say("www-authenticate", "Custom realm=\"x\"");
            (StatusCode::UNAUTHORIZED, headers).into_response()
        }
        "/302" => {
            say("location", "https://id.example/login");
            say("set-cookie", "nonce=1");
            say("set-cookie", "more=2");
            (StatusCode::FOUND, headers).into_response()
        }
        "/500" => (StatusCode::INTERNAL_SERVER_ERROR, headers).into_response(),
        "/slow" => std::future::pending().await,
        _ => (StatusCode::NO_CONTENT, headers).into_response(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_service_decides_and_its_failure_refuses() {
    let judge = serve(Router::new().fallback(judge)).await;
    let mut edge = edge(&format!(
        "[access.forward]\nurl = \"http://{judge}/?{{session}}\"\ntimeout = \"200ms\"\nheaders = [\"X-Told\"]\nuser = \"X-Who\"\n"
    ));
    edge.announce("the service that decides does not");
    let get = |path: &str| still().get(edge.url(ALICE, path)).header("cookie", "c=1");
    let no = answer(get("/401")).await;
    assert_eq!(
        (no.status().as_u16(), &no.headers()["www-authenticate"]),
        (401, &"Custom realm=\"x\"".parse().expect("a value"))
    );
    let elsewhere = answer(get("/302")).await;
    assert_eq!(
        (elsewhere.status().as_u16(), elsewhere.headers()["location"].as_bytes()),
        (302, &b"https://id.example/login"[..])
    );
    assert_eq!(elsewhere.headers().get_all("set-cookie").iter().count(), 2);
    assert!(!elsewhere.headers().contains_key("x-secret"));
    for path in ["/500", "/slow"] {
        assert_eq!(refused(get(path)).await, (503, "access_undecided".into()), "{path}");
    }
    assert_nobody_woke(&edge);
    let yes =
        arrived(get("/headers").header("x-told", "mallory").header("x_told", "mallory")).await;
    let host = format!("{ALICE}:{}", edge.http.port());
    assert_eq!(all(&yes, "x-told"), [format!("GET http {host} /headers 127.0.0.1")]);
    assert_eq!(all(&yes, "x-dormouse-user"), ["c=1"]);
    assert!(!format!("{yes:?}").contains("mallory") && all(&yes, "x-secret").is_empty(), "{yes:?}");

    let down = self::edge("[access.forward]\nurl = \"http://127.0.0.1:1/\"\n");
    let mut down = down;
    down.announce("the service that decides does not");
    assert_eq!(refused(still().get(down.url(ALICE, "/"))).await, (503, "access_undecided".into()));
    assert_nobody_woke(&down);
}

/// Lets everybody in at `/judge`, and knows one key otherwise; over TLS, as `localhost`.
async fn serve_tls(authority: &Authority, key: &Signer) -> u16 {
    let Minted { certificate, key: own } = authority.mint(&["localhost"]);
    let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).expect("PEM")];
    let own = PrivateKeyDer::from_pem_slice(own.as_bytes()).expect("PEM");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config =
        ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.expect("versions").with_no_client_auth().with_single_cert(chain, own);
    let acceptor = TlsAcceptor::from(Arc::new(config.expect("a pair")));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let keys = json!({ "keys": [key.entry()] }).to_string();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            // Who does not trust it leaves in the handshake.
            let Ok(stream) = acceptor.accept(socket).await else { continue };
            let mut wire = Wire(stream);
            let body = if wire.head().await.starts_with("GET /judge ") { "" } else { &keys };
            let length = body.len();
            let answer = format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
            );
            wire.send(answer.as_bytes()).await;
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread")]
async fn who_decides_and_who_has_the_keys_is_asked_over_tls_and_only_if_it_is_trusted() {
    let (authority, key) = (Authority::new(), Signer::new("a"));
    let port = serve_tls(&authority, &key).await;
    let jwt = format!(
        "jwt = {{ jwks = \"https://localhost:{port}/keys\", algorithm = \"ES256\", claims = {{ sub = \"{{session}}\" }} }}"
    );
    let forward = format!("forward = {{ url = \"https://localhost:{port}/judge\" }}");
    for access in [forward, jwt] {
        let route = witnessed("", &format!("[access]\n{access}\n"));
        let trusting =
            Setup::new().file("trusted.pem", &authority.pem()).route("demo", &route).start();
        let mut strange =
            Setup::new().file("trusted.pem", &Authority::new().pem()).route("demo", &route).start();
        strange.announce("the service that decides does not").announce("a key set cannot be read");
        let get = |edge: &Edge| {
            still().get(edge.url(ALICE, "/whoami")).bearer_auth(key.token("ES256", "alice"))
        };
        assert_eq!(refused(get(&strange)).await, (503, "access_undecided".into()), "{access}");
        assert_nobody_woke(&strange);
        assert_eq!(answer(get(&trusting)).await.status(), 200, "{access}");
    }
}
