//! What a browser asks before a page of another origin may send more than a form could (a CORS
//! preflight): it carries no credentials by the standard, so no policy can let it in.

use crate::{
    access::{ALICE, answer, assert_nobody_woke, cookie, edge, link, refused, still},
    support::Edge,
    wire::Wire,
};

const CORS: &str = "[access]\nlink = true\norigin = [\"https://app.example.com\", \"https://*.vscode-cdn.net\"]\n\
                    cors = { methods = [\"GET\", \"PUT\"], headers = [\"Authorization\", \"X-Token\"], credentials = true, max_age = \"10m\" }\n";

/// As Chromium sends it: no cookie, no Authorization. The whole answer.
async fn preflight(edge: &Edge, origin: &str, method: &str, headers: &str) -> String {
    let asks = if headers.is_empty() {
        String::new()
    } else {
        format!("Access-Control-Request-Headers: {headers}\r\n")
    };
    let head = format!(
        "OPTIONS /api HTTP/1.1\r\nHost: {ALICE}\r\nConnection: keep-alive\r\nAccept: */*\r\n\
         Access-Control-Request-Method: {method}\r\n{asks}Origin: {origin}\r\n\
         User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36\r\n\
         Sec-Fetch-Mode: cors\r\nSec-Fetch-Site: cross-site\r\nSec-Fetch-Dest: empty\r\n\
         Referer: {origin}/\r\nAccept-Encoding: gzip, deflate\r\nAccept-Language: en-US,en;q=0.9\r\n\r\n"
    );
    Wire::sent(edge.http, head.as_bytes()).await.head().await.to_lowercase()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preflight_of_a_page_that_may_is_answered_and_wakes_nobody() {
    let edge = edge(CORS);
    for (origin, method, headers) in [
        ("https://app.example.com", "PUT", "authorization,x-token"),
        ("https://0abc.vscode-cdn.net", "GET", "x-token"),
        // The browser judges by the lists: they are told as they are.
        ("https://app.example.com", "POST", "accept,content-type"),
    ] {
        let head = preflight(&edge, origin, method, headers).await;
        assert!(head.starts_with("http/1.1 204 "), "{head}");
        for line in [
            format!("access-control-allow-origin: {origin}"),
            "access-control-allow-methods: get, put".into(),
            "access-control-allow-headers: authorization, x-token".into(),
            "access-control-allow-credentials: true".into(),
            "access-control-max-age: 600".into(),
            "vary: origin".into(),
        ] {
            assert!(head.contains(&line), "no {line} in {head}");
        }
    }
    assert_nobody_woke(&edge);
    assert_eq!(edge.metric(&["dormouse_local_answers_total", "preflight"]), 3.0);
    // What follows it carries credentials, and is judged.
    let upload = |body: &'static str| {
        let to = still().post(edge.url(ALICE, "/upload"));
        to.header("origin", "https://app.example.com").body(body)
    };
    let told = answer(upload("x")).await;
    assert_eq!(told.status(), 403);
    // The page may read why.
    assert_eq!(told.headers()["access-control-allow-origin"], "https://app.example.com");
    assert_eq!(told.headers()["access-control-allow-credentials"], "true");
    assert_nobody_woke(&edge);
    let own = cookie(&edge, &link(&edge, "").1).await;
    assert_eq!(answer(upload("x").header("cookie", own)).await.status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preflight_of_any_other_page_is_refused() {
    let edge = edge(CORS);
    for origin in
        ["https://evil.test", "null", "https://a.b.vscode-cdn.net", "http://app.example.com"]
    {
        let head = preflight(&edge, origin, "PUT", "").await;
        assert!(head.starts_with("http/1.1 403 ") && !head.contains("access-control"), "{head}");
    }
    // What is not in the lists the browser refuses: it is told what is.
    let head = preflight(&edge, "https://app.example.com", "DELETE", "x-other").await;
    assert!(
        head.starts_with("http/1.1 204 ") && !head.contains("delete") && !head.contains("x-other"),
        "{head}"
    );
    // An OPTIONS that is no preflight is a request like any other.
    for more in
        ["", "Origin: https://app.example.com\r\n", "Access-Control-Request-Method: PUT\r\n"]
    {
        let head = format!("OPTIONS / HTTP/1.1\r\nHost: {ALICE}\r\n{more}\r\n");
        let head = Wire::sent(edge.http, head.as_bytes()).await.head().await;
        assert!(head.starts_with("HTTP/1.1 403 "), "{head}");
    }
    assert_nobody_woke(&edge);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_key_a_preflight_is_a_request_like_any_other() {
    let edge = edge("[access]\nlink = true\norigin = [\"https://app.example.com\"]\n");
    let head = preflight(&edge, "https://app.example.com", "PUT", "").await;
    assert!(head.starts_with("http/1.1 403 ") && !head.contains("access-control"), "{head}");
    let denied = self::edge(&format!("{CORS}addresses = {{ deny = [\"127.0.0.1\"] }}\n"));
    let head = preflight(&denied, "https://app.example.com", "PUT", "").await;
    assert!(head.starts_with("http/1.1 403 "), "who is denied is denied: {head}");
    let asked = still().get(edge.url(ALICE, "/")).header("origin", "https://app.example.com");
    assert_eq!(refused(asked).await.0, 403);
    assert_nobody_woke(&edge);
}
