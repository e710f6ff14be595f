use std::sync::Arc;

use proptest::prelude::*;

use super::{Framing, HeadLimits, Refusal, inner_codings};
use crate::config::{GetBody, Limits, Underscores};

fn limits() -> Limits {
    Limits { head: 2048, uri: 256, headers: 8, ..Limits::default() }
}

fn framing(limits: &Limits) -> Framing {
    Framing::new(Arc::new(HeadLimits::new(limits)))
}

/// The heads, how much may go on, and why not more.
fn read(bytes: &[u8]) -> (u32, usize, Result<(), Refusal>) {
    let mut framing = framing(&limits());
    let (passes, outcome) = framing.advance(bytes);
    (framing.heads(), passes, outcome)
}

/// `\n` stands for CR LF.
fn lines(text: &str) -> Vec<u8> {
    text.replace('\n', "\r\n").into_bytes()
}

/// One request with these headers.
fn get(headers: &str) -> Vec<u8> {
    lines(&format!("GET / HTTP/1.1\nHost: a.test\n{headers}\n"))
}

fn post(headers: &str) -> Vec<u8> {
    lines(&format!("POST / HTTP/1.1\nHost: a.test\n{headers}\n"))
}

fn refusal(bytes: &[u8]) -> Option<Refusal> {
    read(bytes).2.err()
}

#[test]
fn whole_heads_and_bodies_go_on_and_the_beginning_of_a_head_waits() {
    let two = [get(""), post("Content-Length: 3\n"), b"abc".to_vec(), get("")].concat();
    assert_eq!(read(&two), (3, two.len(), Ok(())));
    let begun = [two.clone(), b"GET / HT".to_vec()].concat();
    assert_eq!(read(&begun), (3, two.len(), Ok(())));
    let chunked = [post("Transfer-Encoding: chunked\n"), lines("3;a=b\nabc\n0\nA: b\n\n")].concat();
    let both = [chunked.clone(), get("")].concat();
    assert_eq!(read(&both), (2, both.len(), Ok(())));
    assert_eq!(read(&chunked[..chunked.len() - 4]), (1, chunked.len() - 4, Ok(())));
}

#[test]
fn what_is_common_goes_on() {
    for headers in [
        "",
        "Accept:\nAccept: */*\n",
        "X-Text: \u{e9}t\u{e9}\tx\n",
        "Content-Length: 0\n",
        "Connection: keep-alive, Upgrade\nUpgrade: websocket\n",
        "X_Y: z\n",
        "X.Y!#$%&'*+^`|~: z\n",
    ] {
        assert_eq!(refusal(&get(headers)), None, "{headers:?}");
    }
    for target in ["/", "/a?b#c", "http://a.test", "HTTP://a.test/x?y", "/\u{e9}|{}^\""] {
        let head = lines(&format!("GET {target} HTTP/1.1\nHost: a.test\n\n"));
        assert_eq!(refusal(&head), None, "{target:?}");
    }
    for head in [
        "\nGET / HTTP/1.1\nHost: a.test\n\n",
        "OPTIONS * HTTP/1.1\nHost: a.test\n\n",
        "GET / HTTP/1.0\n\n",
        "PROPFIND / HTTP/1.1\nHost: a.test\nContent-Length: 12\n\n",
    ] {
        assert_eq!(refusal(&lines(head)), None, "{head:?}");
    }
}

#[test]
fn what_two_readers_could_understand_differently_is_refused() {
    use Refusal::{
        Alias, BodyOfGet, BodyOfUpgrade, Coding, Host, Length, LineEnd, Name, UnknownCoding, Value,
    };
    let te = "Transfer-Encoding: chunked\n";
    for (headers, expected) in [
        ("Content-Length: 1\nContent-Length: 1\n", Length),
        ("Content-Length: 1, 1\n", Length),
        ("Content-Length: +1\n", Length),
        ("Content-Length: 0x1\n", Length),
        ("Content-Length: 01\n", Length),
        ("Content-Length: 1 1\n", Length),
        ("Content-Length:\n", Length),
        ("Content-Length: 1234567890123456789\n", Length),
        (&format!("{te}Content-Length: 1\n"), Coding),
        (&format!("{te}{te}"), Coding),
        ("Transfer-Encoding: chunked, chunked\n", Coding),
        ("Transfer-Encoding: chunked, gzip\n", Coding),
        ("Transfer-Encoding: gzip\n", Coding),
        ("Transfer-Encoding: identity\n", Coding),
        ("Transfer-Encoding: chunked;a=b\n", Coding),
        ("Transfer-Encoding: ,chunked\n", Coding),
        ("Transfer-Encoding:\n", Coding),
        ("Transfer-Encoding: xchunked\n", UnknownCoding),
        ("Transfer-Encoding: \"chunked\"\n", Coding),
        ("Transfer_Encoding: chunked\n", Alias),
        ("Transfer--Encoding: chunked\n", Alias),
        ("Content.Length: 1\n", Alias),
        ("contentlength: 1\n", Alias),
        ("Transfer-Encoding : chunked\n", Name),
        ("Transfer-Encoding\u{b}: chunked\n", Name),
        ("X Y: z\n", Name),
        ("no colon\n", Name),
        (": z\n", Name),
        ("X\u{e9}: z\n", Name),
        ("X\0: z\n", Name),
        ("X: a\n b\n", Value),
        ("X: a\n\tTransfer-Encoding: chunked\n", Value),
        ("X: a\0b\n", Value),
        ("X: a\u{7f}\n", Value),
        ("X: a\u{1}\n", Value),
        ("Host: a.test\n", Host),
        ("Host: b.test\n", Host),
        ("Connection: upgrade\nUpgrade: tcp\nTransfer-Encoding: chunked\n", BodyOfUpgrade),
    ] {
        assert_eq!(refusal(&post(headers)), Some(expected), "{headers:?}");
    }
    for (headers, expected) in [
        ("Content-Length: 1\n", BodyOfGet),
        (te, BodyOfGet),
        (&format!("{te}Content-Length: 1\n"), Coding),
        (" leading: x\n", Value),
    ] {
        assert_eq!(refusal(&get(headers)), Some(expected), "{headers:?}");
    }
    for bytes in [
        &b"GET / HTTP/1.1\nHost: a.test\r\n\r\n"[..],
        b"GET / HTTP/1.1\r\nHost: a.test\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a.test\r\n\n",
    ] {
        assert_eq!(refusal(bytes), Some(LineEnd), "{bytes:?}");
    }
    assert_eq!(refusal(&get("X: a\rY: b\n")), Some(Value));
}

#[test]
fn a_first_line_that_is_none_is_refused() {
    use Refusal::{Connect, Host, RequestLine, Target, Version};
    for (line, expected) in [
        ("GET /", RequestLine),
        ("GET", RequestLine),
        ("GET  / HTTP/1.1", RequestLine),
        ("GET /  HTTP/1.1", RequestLine),
        ("GET / HTTP/1.1 ", RequestLine),
        (" GET / HTTP/1.1", RequestLine),
        ("GET /a b HTTP/1.1", RequestLine),
        ("GET\t/ HTTP/1.1", RequestLine),
        ("GET /\t HTTP/1.1", Target),
        ("GET /\0 HTTP/1.1", Target),
        ("G@T / HTTP/1.1", RequestLine),
        ("GET  HTTP/1.1", Target),
        ("GET a HTTP/1.1", Target),
        ("GET * HTTP/1.1", Target),
        ("GET ftp://a.test/ HTTP/1.1", Target),
        ("GET http:// HTTP/1.1", Target),
        ("GET http://u@a.test/ HTTP/1.1", Target),
        ("GET http://b.test/ HTTP/1.1", Host),
        ("GET http://a.test:443/ HTTP/1.1", Host),
        ("GET http://a.test\\\\b/ HTTP/1.1", Target),
        ("GET / HTTP/1.2", Version),
        ("GET / HTTP/2.0", Version),
        ("GET / HTTP/0.9", Version),
        ("GET / http/1.1", RequestLine),
        ("GET / HTTP/1.11", RequestLine),
        ("CONNECT a.test:443 HTTP/1.1", Connect),
    ] {
        let head = lines(&format!("{line}\nHost: a.test\n\n"));
        assert_eq!(refusal(&head), Some(expected), "{line:?}");
    }
    assert_eq!(refusal(b"GET / HTTP/1.1\r\n\r\n"), Some(Host));
    assert_eq!(refusal(b"\r\n\r\nGET / HTTP/1.1\r\n"), Some(RequestLine));
    let old = lines("POST / HTTP/1.0\nTransfer-Encoding: chunked\n\n");
    assert_eq!(refusal(&old), Some(Refusal::Coding));
}

#[test]
fn a_chunk_that_is_none_is_refused_and_what_is_before_goes_on() {
    let head = post("Transfer-Encoding: chunked\n");
    for bad in [
        "x\r\n",
        "\r\n",
        "0x1\r\na",
        "-1\r\n",
        " 1\r\na",
        "1 \r\na",
        "1\na\r\n",
        "1\r\nab\r\n",
        "1\r\na\n",
        "1;a\nb\r\n",
        "1;a\0b\r\n",
        "1;a\rb\r\n",
        "1234567890123456\r\n",
        "0\r\nX Y: z\r\n\r\n",
        "0\r\n: z\r\n\r\n",
        "0\r\nX: z\n\r\n",
        "0\r\n x: z\r\n\r\n",
        "0\r\nno colon\r\n\r\n",
        "0\r\n\n",
    ] {
        let all = [head.clone(), bad.into()].concat();
        assert_eq!(read(&all), (1, head.len(), Err(Refusal::Chunk)), "{bad:?}");
    }
    let long = format!("1;{}\r\na\r\n", "x".repeat(2000));
    assert_eq!(refusal(&[head.clone(), long.into()].concat()), Some(Refusal::Chunk));
    let trailers = format!("0\r\nX: {}\r\n\r\n", "x".repeat(3000));
    assert_eq!(refusal(&[head, trailers.into()].concat()), Some(Refusal::Chunk));
}

#[test]
fn limits_hold() {
    assert_eq!(refusal(&get(&"X: y\n".repeat(7))), None);
    assert_eq!(refusal(&get(&"X: y\n".repeat(8))), Some(Refusal::TooManyHeaders));
    let value = |n| get(&format!("X: {}\n", "y".repeat(n)));
    let plain = value(0).len();
    assert_eq!(refusal(&value(2048 - plain)), None);
    assert_eq!(refusal(&value(2049 - plain)), Some(Refusal::HeadTooLarge));
    let target = |n| lines(&format!("GET /{} HTTP/1.1\nHost: a.test\n\n", "y".repeat(n)));
    assert_eq!(refusal(&target(255)), None);
    assert_eq!(refusal(&target(256)), Some(Refusal::UriTooLong));
    // Neither ends.
    assert_eq!(refusal(&target(4000)[..3000]), Some(Refusal::UriTooLong));
    assert_eq!(refusal(&value(4000)[..3000]), Some(Refusal::HeadTooLarge));
}

#[test]
fn what_is_behind_an_upgrade_does_not_go_on() {
    let upgrade = get("Upgrade: websocket\nConnection: x, upgrade\n");
    let all = [upgrade.clone(), get("")].concat();
    assert_eq!(read(&all), (1, upgrade.len(), Ok(())));
    let upload = post("Upgrade: tcp\nConnection: upgrade\nContent-Length: 2\n");
    let all = [upload.clone(), b"hi".to_vec(), get("")].concat();
    assert_eq!(read(&all), (1, upload.len() + 2, Ok(())));
    for none in [
        "Upgrade: websocket\n",
        "Upgrade: TLS/1.2\nConnection: upgrade\n",
        "Upgrade: HTTP/2.0, tcp\nConnection: upgrade\n",
        "Connection: upgrade\n",
        "Upgrade: h2c\nConnection: upgrade, HTTP2-Settings\nHTTP2-Settings: AAMAAABk\n",
        "Upgrade: websocket, h2c\nConnection: upgrade\n",
    ] {
        let all = [get(none), get("")].concat();
        assert_eq!(read(&all), (2, all.len(), Ok(())), "{none:?}");
    }
}

#[test]
fn a_target_that_is_a_whole_uri_goes_on_as_a_path() {
    for (from, to) in [
        (
            "GET http://A.test:80/x?y HTTP/1.1\nHost: a.test\n\n",
            "GET /x?y HTTP/1.1\nHost: a.test\n\n",
        ),
        (
            "GET HTTPS://a.test?y HTTP/1.1\nX: y\nHost: a.test:443\n\n",
            "GET /?y HTTP/1.1\nX: y\nHost: a.test:443\n\n",
        ),
        (
            "OPTIONS http://a.test: HTTP/1.1\nHost: a.test\n\n",
            "OPTIONS * HTTP/1.1\nHost: a.test\n\n",
        ),
        ("GET http://a.test HTTP/1.0\nX: y\n\n", "GET / HTTP/1.0\nHost: a.test\nX: y\n\n"),
    ] {
        let all = [get(""), lines(from), lines(from), get("")].concat();
        let mut framing = framing(&limits());
        assert_eq!(framing.advance(&all), (all.len(), Ok(())));
        let mut went = all.clone();
        let mut length = all.len();
        for absolute in framing.absolutes().iter().rev() {
            length = length.saturating_add_signed(absolute.to_origin(&mut went));
        }
        let expected = [get(""), lines(to), lines(to), get("")].concat();
        assert_eq!(String::from_utf8_lossy(&went), String::from_utf8_lossy(&expected));
        assert_eq!(length, went.len());
    }
}

#[test]
fn policies_say_what_becomes_of_underscores_and_of_the_body_of_a_get() {
    let refusal = |limits: &Limits, bytes: &[u8]| framing(limits).advance(bytes).1.err();
    for (underscores, x_y) in [
        (Underscores::Drop, None),
        (Underscores::Pass, None),
        (Underscores::Refuse, Some(Refusal::Alias)),
    ] {
        let limits = Limits { underscores, ..limits() };
        assert_eq!(refusal(&limits, &get("X_Y: z\n")), x_y);
        assert_eq!(refusal(&limits, &get("Content_Length: 1\n")), Some(Refusal::Alias));
    }
    let limits = Limits { get_body: GetBody::Pass, ..limits() };
    assert_eq!(refusal(&limits, &get("Content-Length: 1\n")), None);
    let head = lines("HEAD / HTTP/1.1\nHost: a.test\nContent-Length: 1\n\n");
    assert_eq!(refusal(&limits, &head), Some(Refusal::BodyOfGet));
}

#[test]
fn an_instance_is_told_the_codings_below_chunked_in_one_line() {
    let codings = |lines: &[&'static str]| {
        let mut headers = http::HeaderMap::new();
        for line in lines {
            let line = http::HeaderValue::from_static(line);
            headers.append(http::header::TRANSFER_ENCODING, line);
        }
        inner_codings(&headers)
    };
    assert_eq!(codings(&[]), None);
    assert_eq!(codings(&["Chunked"]), None);
    assert_eq!(codings(&["identity", "chunked"]), None);
    assert_eq!(codings(&["GZIP , identity", "chunked"]).expect("two"), "gzip, chunked");
}

/// Pieces of heads and bodies, good and bad, often enough put together to something whole.
fn stream() -> impl Strategy<Value = Vec<u8>> {
    let whole = [
        get(""),
        get("X_Y: z\nAccept: */*\n"),
        post("Content-Length: 5\n"),
        post("Transfer-Encoding: chunked\n"),
        lines("3\nabc\n0\n\n"),
        lines("0\nX: y\n\n"),
        b"hello".to_vec(),
        b"\r\n".to_vec(),
        b"\n".to_vec(),
        b"a".to_vec(),
        get("Content-Length: 1\n"),
        get("Upgrade: websocket\nConnection: upgrade\n"),
        b"GET /".to_vec(),
    ];
    let piece = prop_oneof![
        8 => prop::sample::select(whole.to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..20),
    ];
    prop::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
}

proptest! {
    /// However the bytes are cut into reads, the same goes on and the same is refused.
    #[test]
    fn reads_may_be_cut_anywhere(
        bytes in stream(),
        cuts in prop::collection::vec(1_usize..40, 1..40),
    ) {
        let (heads, passes, outcome) = read(&bytes);
        let mut cut = framing(&limits());
        let (mut begin, mut end, mut refusal) = (0, 0, Ok(()));
        for size in cuts.iter().cycle() {
            if end == bytes.len() || refusal.is_err() {
                break;
            }
            end = bytes.len().min(end + size);
            let (passed, outcome) = cut.advance(&bytes[begin..end]);
            (begin, refusal) = (begin + passed, outcome);
        }
        prop_assert_eq!(refusal, outcome);
        prop_assert_eq!(cut.heads(), heads);
        // Of a bad chunk, what came in reads of its own before has gone on.
        if outcome == Err(Refusal::Chunk) {
            prop_assert!(passes <= begin);
        } else {
            prop_assert_eq!(begin, passes);
        }
    }

    /// Of what goes on, every head is one that a lenient reader understands in the same way.
    #[test]
    fn a_head_that_goes_on_is_one_for_httparse(bytes in stream()) {
        let (heads, passes, _) = read(&bytes);
        if 0 < heads {
            let mut headers = [httparse::EMPTY_HEADER; 64];
            let mut request = httparse::Request::new(&mut headers);
            let parsed = request.parse(&bytes[..passes]).expect("a head");
            prop_assert!(parsed.is_complete());
        }
    }
}

/// What Pingora cannot read it refuses without a word, so it must be refused before.
#[test]
fn a_target_that_goes_on_is_one_that_pingora_reads() {
    for byte in (b'!'..=b'~').chain(0x80..=0xff) {
        for place in ["/a@b", "/a?b@c", "/@", "/?@", "/a?b#@"] {
            let target: Vec<u8> = place
                .bytes()
                .flat_map(|at| if at == b'@' { vec![byte] } else { vec![at] })
                .collect();
            let goes_on = super::head::is_encoded(&target);
            let read = pingora::http::RequestHeader::build("GET", &target, None).is_ok();
            assert_eq!(goes_on, read, "{}", String::from_utf8_lossy(&target));
        }
    }
    for target in ["/<b>", "/a`", "/?q=\"x\"", "http://a.test/<b>", "http://a.test?q=<"] {
        let request = lines(&format!("GET {target} HTTP/1.1\nHost: a.test\n\n"));
        assert_eq!(refusal(&request), Some(Refusal::Unencoded), "{target}");
    }
    for target in ["/\"a\"", "/{a}|^\\", "/?q=`{|}^", "/a?b#<"] {
        let request = lines(&format!("GET {target} HTTP/1.1\nHost: a.test\n\n"));
        assert_eq!(refusal(&request), None, "{target}");
    }
}
