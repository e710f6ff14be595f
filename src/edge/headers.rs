//! The headers that the edge itself speaks for: forwarding, request id, timings.

use std::{fmt::Write, net::IpAddr, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header};
use pingora::{
    ErrorType, OrErr, Result,
    http::{RequestHeader, ResponseHeader},
    proxy::Session as Downstream,
};

use super::{
    client::{self, Peer},
    forwarded, framing,
    target::Target,
};
use crate::{fleet::Held, session::Behind};

/// Longer ones are replaced: an id is for logs.
const REQUEST_ID_MAX: usize = 128;

// Spelled as everybody spells them: there are instances that compare letter by letter, and Pingora
// copies a name that is not `&'static str`.
const X_REQUEST_ID: &str = "X-Request-Id";
const X_FORWARDED_FOR: &str = "X-Forwarded-For";
const X_FORWARDED_PROTO: &str = "X-Forwarded-Proto";
const X_FORWARDED_HOST: &str = "X-Forwarded-Host";
const FORWARDED: &str = "Forwarded";
/// Others that a client may forge, and that we say nothing in.
const FORGED: [HeaderName; 3] = [
    HeaderName::from_static("x-forwarded-server"),
    HeaderName::from_static("x-forwarded-port"),
    HeaderName::from_static("x-real-ip"),
];

/// A request's id: visible ASCII, and shared by all who say it.
#[derive(Clone, Debug)]
pub(super) struct RequestId(HeaderValue);

impl RequestId {
    /// Before the head was read.
    pub(super) fn none() -> Self {
        Self(HeaderValue::from_static(""))
    }

    /// The client's own id if it is a harmless one, else a new one.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let harmless = |id: &&HeaderValue| {
            (1..=REQUEST_ID_MAX).contains(&id.len())
                && id.as_bytes().iter().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b))
        };
        Self(headers.get(X_REQUEST_ID).filter(harmless).cloned().unwrap_or_else(Self::fresh))
    }

    fn fresh() -> HeaderValue {
        let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
        uuid::Uuid::new_v4().hyphenated().encode_lower(&mut text);
        // Owned, so that the clones for the instance and the client share it from the start.
        HeaderValue::from_maybe_shared(Bytes::from_owner(text))
            .expect("hexadecimal digits and hyphens are a value")
    }

    pub(super) fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }

    /// Says it to the instance.
    pub(super) fn ask(&self, upstream: &mut RequestHeader) -> Result<()> {
        upstream.insert_header(X_REQUEST_ID, self.0.clone())
    }

    /// Says it to the client.
    pub(super) fn answer(&self, answer: &mut ResponseHeader) -> Result<()> {
        answer.insert_header(X_REQUEST_ID, self.0.clone())
    }
}

/// For whom a connection's requests to one host are forwarded.
#[derive(Debug)]
pub(super) struct Forwarding {
    host: HeaderValue,
    client: Option<HeaderValue>,
    proto: HeaderValue,
    forwarded: HeaderValue,
}

impl Forwarding {
    pub(super) fn new(downstream: &Downstream, host: &str) -> Result<Self> {
        let client = client::peer(downstream).and_then(|peer| peer.address);
        let tls = downstream.digest().is_some_and(|digest| digest.ssl_digest.is_some());
        let proto = if tls { "https" } else { "http" };
        let value = |text: &str| {
            HeaderValue::from_str(text).or_err(ErrorType::InvalidHTTPHeader, "a host as a value")
        };
        Ok(Self {
            host: value(host)?,
            client: client.map(|client| value(&client.to_string())).transpose()?,
            proto: HeaderValue::from_static(proto),
            forwarded: value(&rfc7239(client, host, proto))?,
        })
    }

    /// Says it to the instance. What the peer itself has claimed is kept and gone on with where the
    /// peer is a trusted proxy, and dropped where it is not.
    pub(super) fn say(&self, downstream: &Downstream, upstream: &mut RequestHeader) -> Result<()> {
        if client::peer(downstream).is_some_and(Peer::is_trusted) {
            return self.go_on(&downstream.req_header().headers, upstream);
        }
        for forged in FORGED {
            upstream.remove_header(&forged);
        }
        match &self.client {
            Some(client) => upstream.insert_header(X_FORWARDED_FOR, client.clone())?,
            None => drop(upstream.remove_header(X_FORWARDED_FOR)),
        }
        upstream.insert_header(X_FORWARDED_PROTO, self.proto.clone())?;
        upstream.insert_header(X_FORWARDED_HOST, self.host.clone())?;
        upstream.insert_header(FORWARDED, self.forwarded.clone())
    }

    /// Both headers tell the same way, whichever of them the proxy wrote.
    fn go_on(&self, noted: &HeaderMap, upstream: &mut RequestHeader) -> Result<()> {
        let (mut plain, mut forwarded) = (String::new(), String::new());
        for hop in forwarded::hops(noted) {
            match hop {
                Some(hop) => write!(plain, "{hop}, "),
                None => write!(plain, "unknown, "),
            }
            .expect("a String takes all");
            write!(forwarded, "for={}, ", node(hop)).expect("a String takes all");
        }
        let own = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        plain += &self.client.as_ref().map_or("unknown".to_owned(), own);
        forwarded += &own(&self.forwarded);
        upstream.insert_header(X_FORWARDED_FOR, plain)?;
        upstream.insert_header(FORWARDED, forwarded)?;
        let proto = forwarded::proto(noted).map(HeaderValue::from_static);
        upstream.insert_header(X_FORWARDED_PROTO, proto.unwrap_or_else(|| self.proto.clone()))?;
        let host = noted.get(X_FORWARDED_HOST).unwrap_or(&self.host);
        upstream.insert_header(X_FORWARDED_HOST, host.clone())
    }
}

/// Says to the proxy before an instance which one is meant. It knows no other `Host`.
pub(super) fn through(behind: &Behind, upstream: &mut RequestHeader) -> Result<()> {
    let (header, instance) = &behind.header;
    upstream.insert_header(header::HOST, &*behind.host)?;
    upstream.insert_header(*header, &**instance)
}

/// Says that browsers are to use HTTPS only, where the route wants it and the client uses it.
pub(super) fn hsts(
    answer: &mut ResponseHeader,
    downstream: &Downstream,
    target: &Target,
) -> Result<()> {
    match &target.route.recipe.client_tls.hsts {
        Some(hsts) if client::is_https(downstream) => {
            answer.insert_header(header::STRICT_TRANSPORT_SECURITY, hsts.clone())
        }
        _ => Ok(()),
    }
}

/// RFC 7239: what has a colon in it is quoted, and an IPv6 address bracketed.
fn rfc7239(client: Option<IpAddr>, host: &str, proto: &str) -> String {
    format!("for={};host=\"{host}\";proto={proto}", node(client))
}

fn node(hop: Option<IpAddr>) -> String {
    match hop {
        Some(IpAddr::V4(v4)) => v4.to_string(),
        Some(IpAddr::V6(v6)) => format!("\"[{v6}]\""),
        None => "unknown".to_owned(),
    }
}

/// RFC 9110, 7.8: an `Upgrade` counts only where `Connection` names it, and not in HTTP/1.0. Pingora
/// reads the first alone, and would make an upgrade of it that the client never asked for. An offer
/// of HTTP itself is never taken. As `framing` has it.
pub(super) fn drop_stray_upgrade(request: &mut RequestHeader) {
    let headers = &request.headers;
    if !headers.contains_key(header::UPGRADE) {
        return;
    }
    let any = |name, is: fn(&[u8]) -> bool| {
        headers.get_all(name).iter().any(|value| is(value.as_bytes()))
    };
    let named = any(header::CONNECTION, framing::names_upgrade);
    if !named || any(header::UPGRADE, framing::offers_http) || request.version == Version::HTTP_10 {
        request.remove_header(&header::UPGRADE);
    }
}

/// Asks the instance for the upgrade that the client asks for. Pingora lets that to WebSocket through
/// alone.
pub(super) fn ask_upgrade(downstream: &RequestHeader, upstream: &mut RequestHeader) -> Result<()> {
    upstream.remove_header(&header::UPGRADE);
    for protocol in downstream.headers.get_all(header::UPGRADE) {
        upstream.append_header("Upgrade", protocol.clone())?;
    }
    upstream.insert_header("Connection", "Upgrade")
}

/// Takes out the headers with `_` in their names: all, or those alone which an instance that takes
/// `_` for `-` would take for the edge's own.
pub(super) fn drop_underscored(request: &mut RequestHeader, all: bool) {
    let ours = |name: &str| {
        let name = name.replace('_', "-");
        let said = [X_REQUEST_ID, X_FORWARDED_FOR, X_FORWARDED_PROTO, X_FORWARDED_HOST];
        said.iter().any(|said| said.eq_ignore_ascii_case(&name))
            || FORGED.iter().any(|forged| *forged == *name)
    };
    let is_underscored = |name: &&HeaderName| name.as_str().contains('_');
    let names = request.headers.keys().filter(is_underscored);
    let names: Vec<_> = names.filter(|name| all || ours(name.as_str())).cloned().collect();
    for name in names {
        request.remove_header(&name);
    }
}

/// Whether the upgrade is one to WebSocket.
pub(super) fn is_websocket(request: &RequestHeader) -> bool {
    let upgrade = request.headers.get(header::UPGRADE).map(HeaderValue::as_bytes);
    upgrade.is_some_and(|upgrade| upgrade.eq_ignore_ascii_case(b"websocket"))
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
