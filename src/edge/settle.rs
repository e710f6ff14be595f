//! What an instance's answer head must be, and what of it is for the edge alone.
//!
//! What two readers could take for two different things is refused: the client gets a 502, and the
//! connection to the instance is not used again.

use http::{HeaderName, HeaderValue, StatusCode, Version, header};
use pingora::{Error, ErrorType, Result, http::ResponseHeader};

/// From hop to hop only. RFC 9110, 7.6.1. Pingora sets `Connection` for the client.
const HOP_BY_HOP: [HeaderName; 7] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    HeaderName::from_static("proxy-authentication-info"),
    header::TE,
    header::TRAILER,
];

/// Types of answers that come bit by bit, with silence in between.
const STREAMS: [&str; 9] = [
    "text/event-stream",
    "multipart/x-mixed-replace",
    "application/x-ndjson",
    "application/ndjson",
    "application/jsonl",
    "application/json-seq",
    "application/stream+json",
    "application/vnd.docker.raw-stream",
    "application/vnd.docker.multiplexed-stream",
];

/// Makes one plain answer of it for the client, or refuses it.
pub(super) fn settle(answer: &mut ResponseHeader, asks_upgrade: bool) -> Result<()> {
    if answer.status == StatusCode::SWITCHING_PROTOCOLS {
        // RFC 9110, 7.8: nobody switches who was not asked.
        if !asks_upgrade || answer.version != Version::HTTP_11 {
            return refused("a 101 that was not asked for");
        }
        return Ok(());
    }
    framing(answer)?;
    drop_hop_by_hop(answer);
    if matches!(answer.version, Version::HTTP_10 | Version::HTTP_09) {
        // RFC 9112, 2.3: the version is the sender's own, and that is the edge.
        answer.set_version(Version::HTTP_11);
    }
    Ok(())
}

/// Whether the instance may be silent within it for as long as it likes.
pub(super) fn is_stream(answer: &ResponseHeader) -> bool {
    let kind = answer.headers.get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    let kind = kind.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
    let is = |stream: &&str| kind.eq_ignore_ascii_case(stream.as_bytes());
    // What many apps say to proxies of what they stream, since nginx heeds it.
    let unbuffered = answer.headers.get("x-accel-buffering").is_some_and(|value| value == "no");
    unbuffered || STREAMS.iter().any(is) || is_grpc(kind)
}

fn is_grpc(kind: &[u8]) -> bool {
    const GRPC: &[u8] = b"application/grpc";
    kind.get(..GRPC.len()).is_some_and(|start| start.eq_ignore_ascii_case(GRPC))
}

/// RFC 9112, 6.1 and 6.3. Pingora has refused lengths that are none or differ.
fn framing(answer: &mut ResponseHeader) -> Result<()> {
    if matches!(answer.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
        || answer.status.is_informational()
    {
        answer.remove_header(&header::TRANSFER_ENCODING);
    }
    if answer.status == StatusCode::NO_CONTENT {
        answer.remove_header(&header::CONTENT_LENGTH);
    }
    if answer.headers.contains_key(header::TRANSFER_ENCODING) {
        // An old client and a new one would read two different bodies.
        if answer.version == Version::HTTP_10 {
            return refused("Transfer-Encoding in an answer of HTTP/1.0");
        }
        if !is_chunked_alone(answer) {
            return refused("a Transfer-Encoding that was not asked for");
        }
        answer.insert_header(header::TRANSFER_ENCODING, "chunked")?;
    }
    one_length(answer)
}

/// `chunked`, once, with nothing but `identity` before it. Without a request's `TE` no other coding
/// may be used.
fn is_chunked_alone(answer: &ResponseHeader) -> bool {
    let all = answer.headers.get_all(header::TRANSFER_ENCODING).iter();
    let mut names = all.flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
    let mut last_is_chunked = false;
    let plain = names.all(|name| {
        let name = name.trim_ascii();
        let before = std::mem::replace(&mut last_is_chunked, name.eq_ignore_ascii_case(b"chunked"));
        !before && (last_is_chunked || name.eq_ignore_ascii_case(b"identity"))
    });
    plain && last_is_chunked
}

/// The same length said more than once is said once.
fn one_length(answer: &mut ResponseHeader) -> Result<()> {
    let mut all = answer.headers.get_all(header::CONTENT_LENGTH).iter();
    let (Some(first), second) = (all.next(), all.next()) else { return Ok(()) };
    let first = first.as_bytes();
    if second.is_none() && first.iter().all(u8::is_ascii_digit) {
        return Ok(());
    }
    let one = first.split(|byte| *byte == b',').next().unwrap_or_default().trim_ascii();
    let Ok(one) = HeaderValue::from_bytes(one) else {
        return refused("a Content-Length that is none");
    };
    answer.insert_header(header::CONTENT_LENGTH, one)
}

fn drop_hop_by_hop(answer: &mut ResponseHeader) {
    let named = answer.headers.get_all(header::CONNECTION).iter();
    let named = named.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    let named = named.filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok());
    // What frames the body stays: it was read by it.
    let frames = [header::CONTENT_LENGTH, header::TRANSFER_ENCODING];
    // In a 426 it says what to upgrade to.
    let says_upgrade = answer.status == StatusCode::UPGRADE_REQUIRED;
    let upgrade = (!says_upgrade).then_some(header::UPGRADE);
    let named = named.filter(|name| !frames.contains(name) && *name != header::UPGRADE);
    let names: Vec<_> = named.chain(HOP_BY_HOP).chain(upgrade).collect();
    for name in names {
        answer.remove_header(&name);
    }
}

fn refused(why: &'static str) -> Result<()> {
    Err(Error::explain(ErrorType::InvalidHTTPHeader, why).into_up())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, version: Version, headers: &[(&'static str, &str)]) -> ResponseHeader {
        let mut answer = ResponseHeader::build(status, None).expect("a status");
        answer.set_version(version);
        for (name, value) in headers {
            answer.append_header(*name, *value).expect("a header");
        }
        answer
    }

    fn settled(status: u16, headers: &[(&'static str, &str)]) -> Option<Vec<(String, String)>> {
        let mut answer = answer(status, Version::HTTP_11, headers);
        settle(&mut answer, false).ok()?;
        let text = |(name, value): (&HeaderName, &HeaderValue)| {
            (name.to_string(), value.to_str().expect("text").to_owned())
        };
        Some(answer.headers.iter().map(text).collect())
    }

    #[test]
    fn what_is_for_one_hop_stays_there() {
        let kept = settled(
            200,
            &[
                ("connection", "keep-alive, X-Named,upgrade"),
                ("connection", "x-other, content-length"),
                ("keep-alive", "timeout=5"),
                ("x-named", "1"),
                ("x-other", "1"),
                ("upgrade", "h2c"),
                ("proxy-authenticate", "Basic"),
                ("proxy-connection", "keep-alive"),
                ("te", "trailers"),
                ("trailer", "x-sum"),
                ("content-length", "5"),
                ("x-kept", "1"),
            ],
        );
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(kept, Some(vec![pair("content-length", "5"), pair("x-kept", "1")]));
        let says = [("upgrade", "TLS/1.3"), ("connection", "upgrade")];
        assert_eq!(settled(426, &says), Some(vec![pair("upgrade", "TLS/1.3")]));
    }

    #[test]
    fn framing_is_made_plain_or_refused() {
        let lengths = |all: &[&str]| {
            let headers: Vec<_> = all.iter().map(|one| ("content-length", *one)).collect();
            settled(200, &headers).map(|all| all.into_iter().map(|(_, value)| value).collect())
        };
        for same in [&["2, 2"][..], &["2", "2"], &["2,2", "2"], &["2"]] {
            assert_eq!(lengths(same), Some(vec!["2".to_owned()]), "{same:?}");
        }
        let codings = |all: &[&str]| {
            let headers: Vec<_> = all.iter().map(|one| ("transfer-encoding", *one)).collect();
            settled(200, &headers).map(|all| all.into_iter().map(|(_, value)| value).collect())
        };
        for chunked in [&["chunked"][..], &["Chunked"], &["identity, chunked"]] {
            assert_eq!(codings(chunked), Some(vec!["chunked".to_owned()]), "{chunked:?}");
        }
        for odd in
            [&["gzip, chunked"][..], &["chunked, identity"], &["chunked, chunked"], &["gzip"]]
        {
            assert_eq!(codings(odd), None, "{odd:?}");
        }
        let none = settled(204, &[("transfer-encoding", "chunked"), ("content-length", "0")]);
        assert_eq!(none, Some(Vec::new()));
        let chunked = [("transfer-encoding", "chunked")];
        assert_eq!(settled(304, &chunked), Some(Vec::new()));
        assert!(settle(&mut answer(200, Version::HTTP_10, &chunked), false).is_err());
        let mut old = answer(200, Version::HTTP_10, &[("content-length", "1")]);
        settle(&mut old, false).expect("plain");
        assert_eq!(old.version, Version::HTTP_11);
    }

    #[test]
    fn nobody_switches_who_was_not_asked() {
        let upgrade = [("upgrade", "tcp"), ("connection", "Upgrade")];
        for (version, asked, may) in [
            (Version::HTTP_11, true, true),
            (Version::HTTP_11, false, false),
            (Version::HTTP_10, true, false),
        ] {
            let mut answer = answer(101, version, &upgrade);
            assert_eq!(settle(&mut answer, asked).is_ok(), may, "{version:?}");
            assert_eq!(answer.headers.len(), 2, "the handshake is whole");
        }
    }

    #[test]
    fn an_answer_says_itself_whether_it_is_a_stream() {
        let says = |name, value| is_stream(&answer(200, Version::HTTP_11, &[(name, value)]));
        for stream in
            ["text/event-stream", "Text/Event-Stream; charset=utf-8", "application/grpc+proto"]
        {
            assert!(says("content-type", stream), "{stream}");
        }
        for other in ["text/html", "text/event-stream-not", "application/json", ""] {
            assert!(!says("content-type", other), "{other}");
        }
        assert!(says("x-accel-buffering", "no") && !says("x-accel-buffering", "yes"));
    }
}
