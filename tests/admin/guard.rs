//! Who is let in: every case over a real connection.

use dormouse::admin::{Guard, Token};

use crate::{
    admin_bed::{At, Bed, TOKEN},
    wire::{ask, raw},
};

const LIST: &str = "GET /v1/sessions";

async fn status(bed: &Bed, headers: &[&str]) -> u16 {
    let answer = raw(bed, LIST, headers).await;
    if answer.status != 200 {
        assert!(["forbidden", "unauthorized"].contains(&answer.problem().as_str()));
    }
    answer.status
}

#[tokio::test]
async fn on_loopback_the_host_is_a_name_of_loopback() {
    let bed = Bed::new().await;
    for host in ["localhost", "LOCALHOST:1", "127.0.0.1:9900", "127.8.9.10", "[::1]:9900", "[::1]"]
    {
        assert_eq!(status(&bed, &[&format!("Host: {host}")]).await, 200, "{host}");
    }
    for host in [
        "evil.example",
        "evil.localhost",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "10.0.0.1",
        "0.0.0.0",
        "",
        "localhost:80@evil.example",
    ] {
        assert_eq!(status(&bed, &[&format!("Host: {host}")]).await, 403, "{host}");
    }
    assert_eq!(status(&bed, &[]).await, 403, "no Host");
    assert_eq!(status(&bed, &["Host: localhost", "Host: localhost"]).await, 403, "two Hosts");
    let absolute = raw(&bed, "GET http://evil.example/v1/sessions", &["Host: localhost"]).await;
    assert_eq!(absolute.status, 403, "the target's authority counts too");
}

#[tokio::test]
async fn a_page_of_another_site_is_refused() {
    let bed = Bed::new().await;
    let host = "Host: localhost:9900";
    for own in ["http://localhost:9900", "https://localhost:9900", "HTTP://localhost:9900"] {
        let expected = if own.starts_with("HTTP:") { 403 } else { 200 };
        assert_eq!(status(&bed, &[host, &format!("Origin: {own}")]).await, expected, "{own}");
    }
    for origin in [
        "http://evil.example",
        "null",
        "http://localhost",
        "http://localhost:1",
        "http://alice.localhost:9900",
        "file://localhost:9900",
        "",
    ] {
        assert_eq!(status(&bed, &[host, &format!("Origin: {origin}")]).await, 403, "{origin}");
    }
    for (site, expected) in
        [("same-origin", 200), ("none", 200), ("cross-site", 403), ("same-site", 403)]
    {
        let header = format!("Sec-Fetch-Site: {site}");
        assert_eq!(status(&bed, &[host, &header]).await, expected, "{site}");
    }
}

#[tokio::test]
async fn a_refused_wake_reaches_no_engine() {
    let bed = Bed::new().await;
    let cross = ["Host: localhost", "Origin: http://evil.example"];
    let answer = raw(&bed, "POST /v1/sessions/alice.localhost/wake", &cross).await;
    assert_eq!(answer.problem(), "forbidden");
    assert!(bed.engine.calls().is_empty());
    assert!(bed.fleet.session("alice.localhost").is_none());
}

#[tokio::test]
async fn on_a_unix_socket_any_host_will_do_but_no_other_site() {
    let bed = Bed::with(At::Unix, None).await;
    for headers in [&["Host: whatever.example"][..], &["Host:"], &[]] {
        assert_eq!(status(&bed, headers).await, 200, "{headers:?}");
    }
    let own = ["Host: edge.example", "Origin: http://edge.example"];
    assert_eq!(status(&bed, &own).await, 200);
    let other = ["Host: edge.example", "Origin: http://evil.example"];
    assert_eq!(status(&bed, &other).await, 403);
    assert_eq!(status(&bed, &["Origin: http://evil.example"]).await, 403);
    assert_eq!(status(&bed, &["Host: a", "Sec-Fetch-Site: cross-site"]).await, 403);
}

#[tokio::test]
async fn the_token_opens_all_but_the_health_checks() {
    let bed = Bed::with(At::Loopback, Some(TOKEN)).await;
    let with = async |authorization: String| {
        let headers = ["Host: localhost", &format!("Authorization: {authorization}")];
        status(&bed, &headers).await
    };
    assert_eq!(with(format!("Bearer {TOKEN}")).await, 200);
    assert_eq!(with(format!("bearer {TOKEN}")).await, 200);
    let longer = format!("Bearer {TOKEN}x");
    let shorter = format!("Bearer {}", &TOKEN[1..]);
    let other = format!("Bearer {}", TOKEN.to_uppercase());
    let basic = format!("Basic {TOKEN}");
    for wrong in [longer, shorter, other, basic, "Bearer ".into(), "B".into(), String::new()] {
        assert_eq!(with(wrong.clone()).await, 401, "{wrong}");
    }
    for path in [LIST, "GET /metrics", "POST /v1/reload", "GET /v1/routes", "GET /nothing"] {
        let answer = ask(&bed, path).await;
        assert_eq!((answer.status, answer.problem().as_str()), (401, "unauthorized"), "{path}");
        assert!(answer.head.contains("www-authenticate: bearer"), "{answer:?}");
        assert!(!answer.body.contains(TOKEN));
    }
    assert_eq!(ask(&bed, "GET /healthz").await.status, 200);
    assert_eq!(ask(&bed, "GET /readyz").await.status, 200);
}

#[tokio::test]
async fn beyond_loopback_there_is_a_token_or_no_api() {
    for open in ["0.0.0.0:9900", "[::]:9900", "192.0.2.1:9900"] {
        let refused = Guard::tcp(open.parse().unwrap(), None).unwrap_err().to_string();
        assert!(refused.contains(open) && refused.contains("admin.token_file"), "{refused}");
        assert!(Guard::tcp(open.parse().unwrap(), Some(TOKEN.parse().unwrap())).is_ok());
    }
    let bed = Bed::with(At::Everywhere, Some(TOKEN)).await;
    let authorization = format!("Authorization: Bearer {TOKEN}");
    for host in ["localhost", "10.1.2.3:9900", "[2001:db8::1]:9900"] {
        let host = format!("Host: {host}");
        assert_eq!(status(&bed, &[&host, &authorization]).await, 200, "{host}");
    }
    // A name may have been made to resolve to us.
    assert_eq!(status(&bed, &["Host: evil.example", &authorization]).await, 403);
}

#[test]
fn a_token_is_one_long_word_that_nobody_prints() {
    let token: Token = format!("  {TOKEN}\n").parse().unwrap();
    assert!(token.is(TOKEN.as_bytes()));
    assert_eq!(format!("{token:?}"), "Token(..)");
    let guard = Guard::unix(Some(token));
    assert!(!format!("{guard:?}").contains(TOKEN));
    for wrong in ["", "fifteen-letters", "two words of a good length", "schlüssel-schlüssel"] {
        let error = wrong.parse::<Token>().unwrap_err().to_string();
        assert!(wrong.is_empty() || !error.contains(wrong), "{error}");
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    assert!(Token::read(&file).is_err());
    std::fs::write(&file, vec![b'a'; 5000]).unwrap();
    assert!(Token::read(&file).is_err(), "no token is that long");
    std::fs::write(&file, format!("{TOKEN}\n")).unwrap();
    assert!(Token::read(&file).unwrap().is(TOKEN.as_bytes()));
}

#[tokio::test]
async fn no_answer_is_kept_by_a_cache() {
    let bed = Bed::new().await;
    for path in [LIST, "GET /nothing", "GET /metrics"] {
        let head = ask(&bed, path).await.head;
        assert!(head.contains("cache-control: no-store"), "{head}");
        assert!(head.contains("x-content-type-options: nosniff"), "{head}");
    }
    let answer = raw(&bed, LIST, &["Host: localhost", "Content-Length: 1000000"]).await;
    assert_eq!(answer.problem(), "too_large");
}
