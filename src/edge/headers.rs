//! The headers that the edge itself speaks for: forwarding, request id, timings.

use std::{fmt::Write, net::IpAddr, time::Duration};

use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use pingora::{Result, http::RequestHeader, http::ResponseHeader, proxy::Session as Downstream};

use crate::fleet::Held;

/// Longer ones are replaced: an id is for logs.
const REQUEST_ID_MAX: usize = 128;

/// The client's own id if it is a harmless one, else a new one.
pub(super) fn request_id(headers: &HeaderMap) -> String {
    let given = headers.get("x-request-id").and_then(|id| id.to_str().ok());
    let harmless = |id: &&str| {
        (1..=REQUEST_ID_MAX).contains(&id.len())
            && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    given.filter(harmless).map_or_else(|| uuid::Uuid::new_v4().to_string(), str::to_owned)
}

/// Says for whom the request is forwarded. What the client claimed of that is dropped: nobody in
/// front of this edge is trusted yet.
pub(super) fn forwarded(
    downstream: &Downstream,
    upstream: &mut RequestHeader,
    host: &str,
    id: &str,
) -> Result<()> {
    let named = super::one_host(downstream.req_header()).unwrap_or(host);
    let client = downstream.client_addr().and_then(|a| a.as_inet()).map(|a| a.ip());
    let tls = downstream.digest().is_some_and(|digest| digest.ssl_digest.is_some());
    let proto = if tls { "https" } else { "http" };
    for forged in ["x-forwarded-server", "x-forwarded-port", "x-real-ip"] {
        upstream.remove_header(forged);
    }
    match client {
        Some(client) => upstream.insert_header("x-forwarded-for", client.to_string())?,
        None => drop(upstream.remove_header("x-forwarded-for")),
    }
    upstream.insert_header("x-forwarded-proto", proto)?;
    upstream.insert_header("x-forwarded-host", named)?;
    upstream.insert_header("forwarded", rfc7239(client, named, proto))?;
    upstream.insert_header("x-request-id", id)?;
    Ok(())
}

/// RFC 7239: what has a colon in it is quoted, and an IPv6 address bracketed.
fn rfc7239(client: Option<IpAddr>, host: &str, proto: &str) -> String {
    let client = match client {
        Some(IpAddr::V4(v4)) => v4.to_string(),
        Some(IpAddr::V6(v6)) => format!("\"[{v6}]\""),
        None => "unknown".to_owned(),
    };
    format!("for={client};host=\"{host}\";proto={proto}")
}

/// Whether the body's length is said in one number. Pingora passes `5, 5` on as it is, which not
/// every instance reads as 5. Test: an_ambiguous_request_does_not_become_two.
pub(super) fn has_plain_length(headers: &HeaderMap) -> bool {
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    match (lengths.next(), lengths.next()) {
        (Some(length), None) => length.as_bytes().iter().all(u8::is_ascii_digit),
        (length, _) => length.is_none(),
    }
}

/// RFC 9110, 7.8: an `Upgrade` counts only where `Connection` names it. Pingora reads the first
/// alone, and would make an upgrade of it that the client never asked for.
pub(super) fn drop_stray_upgrade(request: &mut RequestHeader) {
    let named = request.headers.get_all(header::CONNECTION).iter().any(|connection| {
        connection.to_str().is_ok_and(|names| {
            names.split(',').any(|name| name.trim().eq_ignore_ascii_case("upgrade"))
        })
    });
    if !named {
        request.remove_header(&header::UPGRADE);
    }
}

/// RFC 9110, 7.6.1: trailers may be asked for hop by hop; gRPC insists on it.
pub(super) fn keep_trailers(
    downstream: &RequestHeader,
    upstream: &mut RequestHeader,
) -> Result<()> {
    let wants = |te: &HeaderValue| {
        te.to_str().is_ok_and(|te| te.split(',').any(|t| t.trim().eq_ignore_ascii_case("trailers")))
    };
    if downstream.headers.get(header::TE).is_some_and(wants) {
        upstream.insert_header(header::TE, "trailers")?;
    }
    Ok(())
}

/// Whether a body can follow this answer, be it an empty one. RFC 9112, 6.3.
pub(super) fn has_body(request: &RequestHeader, answer: &ResponseHeader) -> bool {
    let says_none = answer.headers.get(header::CONTENT_LENGTH).is_some_and(|length| length == "0");
    let cannot = matches!(answer.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    !(says_none || cannot || request.method == Method::HEAD)
}

/// The waterfall of a wake, for the browser's network panel.
pub(super) fn server_timing(
    answer: &mut ResponseHeader,
    held: Held,
    connect: Duration,
) -> Result<()> {
    let parts = [
        ("hold", held.hold),
        ("engine", held.wake.queued + held.wake.engine),
        ("ready", held.wake.ready),
        ("connect", connect),
    ];
    let mut value = String::new();
    for (name, took) in parts {
        let comma = if value.is_empty() { "" } else { ", " };
        let millis = took.as_secs_f64() * 1000.0;
        write!(value, "{comma}{name};dur={millis:.3}").expect("a String takes all");
    }
    answer.append_header("server-timing", value)?;
    Ok(())
}
