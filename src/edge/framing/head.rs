//! One request head, line by line: what is in it, and what is behind it.

use memchr::memchr;

use super::{HeadLimits, Refusal, absolute::Place};
use crate::config::Underscores;

/// What a byte of a header's name is, one bit each. RFC 9110, 5.6.2.
const ALPHANUMERIC: u8 = 1;
const UNDERSCORE: u8 = 2;
/// A hyphen, and what is allowed in a name though hardly ever found in one.
const OTHER: u8 = 4;

const CLASSES: [u8; 256] = {
    let mut classes = [0; 256];
    let mut byte = 0;
    while byte < 128 {
        classes[byte] = match byte as u8 {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => ALPHANUMERIC,
            b'_' => UNDERSCORE,
            b'-' | b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'.' | b'^' | b'`'
            | b'|' | b'~' => OTHER,
            _ => 0,
        };
        byte += 1;
    }
    classes
};

/// Longer methods are of no protocol.
const METHOD_MAX: usize = 32;
/// More digits are no length of anything.
const LENGTH_DIGITS_MAX: usize = 18;

/// What comes behind a head.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum After {
    /// The next head.
    Head,
    Body(u64),
    Chunks,
    Upgrade,
    /// A body of so many bytes, and what is behind it is no request.
    BodyOfUpgrade(u64),
}

/// A head as far as it has come. Positions count from its first byte.
#[derive(Debug, Default)]
pub(super) struct Head {
    /// Where the line begins that is not complete yet.
    line: usize,
    /// No end of a line before.
    searched: usize,
    has_request_line: bool,
    is_http_1_0: bool,
    method: Method,
    /// The target, where it is a whole URI, the host in it, and the port that its scheme has.
    authority: Option<(usize, (usize, usize), &'static [u8])>,
    host: Option<(usize, usize)>,
    headers: usize,
    length: Option<u64>,
    coding: Coding,
    names_upgrade: bool,
    has_upgrade: bool,
    offers_http: bool,
    has_underscores: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Method {
    Get,
    Head,
    Options,
    #[default]
    Other,
}

/// What `Transfer-Encoding` has said so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Coding {
    #[default]
    None,
    /// Codings, and `chunked` is yet to come.
    Open,
    Chunked,
}

impl Head {
    /// Reads what has come of the head: its length once it is complete. Until then it is called
    /// again with the same bytes and more.
    pub(super) fn read(
        &mut self,
        bytes: &[u8],
        limits: &HeadLimits,
    ) -> Result<Option<usize>, Refusal> {
        while let Some(end) = memchr(b'\n', &bytes[self.searched..]) {
            let end = self.searched + end;
            if limits.head_max <= end {
                return Err(self.too_long(end, limits));
            }
            let (start, line) = (self.line, &bytes[self.line..end]);
            let line = line.strip_suffix(b"\r").ok_or(Refusal::LineEnd)?;
            (self.line, self.searched) = (end + 1, end + 1);
            if !self.has_request_line {
                // RFC 9112, 2.2: one empty line before it is no harm.
                if line.is_empty() && start == 0 {
                    continue;
                }
                self.request_line(start, line, limits)?;
                self.has_request_line = true;
            } else if line.is_empty() {
                self.check_whole(bytes, limits)?;
                return Ok(Some(end + 1));
            } else {
                self.header(start, line, limits)?;
            }
        }
        self.searched = bytes.len();
        if limits.head_max <= bytes.len() {
            return Err(self.too_long(bytes.len(), limits));
        }
        Ok(None)
    }

    fn too_long(&self, end: usize, limits: &HeadLimits) -> Refusal {
        let in_uri = !self.has_request_line && limits.uri_max < end - self.line;
        if in_uri { Refusal::UriTooLong } else { Refusal::HeadTooLarge }
    }

    pub(super) fn after(&self) -> After {
        match (self.is_upgrade(), self.coding, self.length) {
            (true, _, Some(length)) if 0 < length => After::BodyOfUpgrade(length),
            (true, ..) => After::Upgrade,
            (_, Coding::Chunked, _) => After::Chunks,
            (_, _, Some(length)) if 0 < length => After::Body(length),
            _ => After::Head,
        }
    }

    pub(super) fn has_underscores(&self) -> bool {
        self.has_underscores
    }

    /// The target, where it is a whole URI.
    pub(super) fn absolute(&self) -> Option<Place> {
        let (target, authority, _) = self.authority?;
        let is_options = self.method == Method::Options;
        Some(Place { target, authority, is_options, has_host: self.host.is_some() })
    }

    /// As `edge/headers.rs` has it: an offer of HTTP itself, or of TLS, is not taken.
    fn is_upgrade(&self) -> bool {
        self.has_upgrade && self.names_upgrade && !self.offers_http && !self.is_http_1_0
    }

    fn request_line(
        &mut self,
        start: usize,
        line: &[u8],
        limits: &HeadLimits,
    ) -> Result<(), Refusal> {
        let method_end = memchr(b' ', line).ok_or(Refusal::RequestLine)?;
        let (method, rest) = (&line[..method_end], &line[method_end + 1..]);
        if !is_token(method) || METHOD_MAX < method.len() {
            return Err(Refusal::RequestLine);
        }
        let target_end = memchr(b' ', rest).ok_or(Refusal::RequestLine)?;
        let (target, version) = (&rest[..target_end], &rest[target_end + 1..]);
        if limits.uri_max < target.len() {
            return Err(Refusal::UriTooLong);
        }
        self.is_http_1_0 = match version {
            b"HTTP/1.1" => false,
            b"HTTP/1.0" => true,
            [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
                if major.is_ascii_digit() && minor.is_ascii_digit() =>
            {
                return Err(Refusal::Version);
            }
            _ => return Err(Refusal::RequestLine),
        };
        self.method = match method {
            b"GET" => Method::Get,
            b"HEAD" => Method::Head,
            b"OPTIONS" => Method::Options,
            b"CONNECT" => return Err(Refusal::Connect),
            _ => Method::Other,
        };
        self.target(start + method_end + 1, target)
    }

    fn target(&mut self, start: usize, target: &[u8]) -> Result<(), Refusal> {
        // A space is none: it would have ended the target.
        if target.iter().any(|byte| byte.is_ascii_control()) {
            return Err(Refusal::Target);
        }
        match target.first() {
            Some(b'/') if is_encoded(target) => return Ok(()),
            Some(b'/') => return Err(Refusal::Unencoded),
            Some(b'*') if target.len() == 1 && self.method == Method::Options => return Ok(()),
            _ => {}
        }
        let scheme = [(&b"http://"[..], &b":80"[..]), (b"https://", b":443")];
        let scheme = scheme.into_iter().find(|(scheme, _)| {
            target.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme))
        });
        let (scheme, port) = scheme.ok_or(Refusal::Target)?;
        let begin = scheme.len();
        let is_end = |byte: &u8| b"/?#\\".contains(byte);
        let end = target[begin..].iter().position(is_end).map_or(target.len(), |at| begin + at);
        let is_ambiguous = target.get(end) == Some(&b'\\');
        if begin == end || is_ambiguous || target[begin..end].contains(&b'@') {
            return Err(Refusal::Target);
        }
        if !is_encoded(&target[end..]) {
            return Err(Refusal::Unencoded);
        }
        self.authority = Some((start, (start + begin, start + end), port));
        Ok(())
    }

    fn header(&mut self, start: usize, line: &[u8], limits: &HeadLimits) -> Result<(), Refusal> {
        self.headers += 1;
        if limits.headers_max < self.headers {
            return Err(Refusal::TooManyHeaders);
        }
        if matches!(line[0], b' ' | b'\t') {
            return Err(Refusal::Value);
        }
        let (name_end, has_underscore) = name_end(line, limits)?;
        if line.get(name_end) != Some(&b':') {
            return Err(Refusal::Name);
        }
        let (name, raw) = (&line[..name_end], &line[name_end + 1..]);
        if has_control(raw) {
            return Err(Refusal::Value);
        }
        self.has_underscores |= has_underscore;
        let value = trim(raw);
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => {
                let begin = start + line.len() - raw.trim_ascii_start().len();
                let host = (begin, begin + value.len());
                self.host.replace(host).map_or(Ok(()), |_| Err(Refusal::Host))
            }
            7 if name.eq_ignore_ascii_case(b"upgrade") => {
                self.has_upgrade = true;
                self.offers_http |= offers_http(value);
                Ok(())
            }
            10 if name.eq_ignore_ascii_case(b"connection") => {
                self.names_upgrade |= names_upgrade(value);
                Ok(())
            }
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                self.length.replace(length(value)?).map_or(Ok(()), |_| Err(Refusal::Length))
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => self.codings(value),
            _ => Ok(()),
        }
    }

    /// Bare names of codings, and `chunked` last and once.
    fn codings(&mut self, value: &[u8]) -> Result<(), Refusal> {
        for name in value.split(|byte| *byte == b',').map(trim) {
            if self.coding == Coding::Chunked || !is_token(name) {
                return Err(Refusal::Coding);
            }
            let known = |names: &[&str]| {
                names.iter().any(|known| name.eq_ignore_ascii_case(known.as_bytes()))
            };
            self.coding = if known(&["chunked"]) {
                Coding::Chunked
            } else if known(&["gzip", "x-gzip", "deflate", "compress", "x-compress", "identity"]) {
                Coding::Open
            } else {
                return Err(Refusal::UnknownCoding);
            };
        }
        Ok(())
    }

    /// What no line alone can tell.
    fn check_whole(&self, bytes: &[u8], limits: &HeadLimits) -> Result<(), Refusal> {
        match self.coding {
            Coding::None => {}
            Coding::Open => return Err(Refusal::Coding),
            Coding::Chunked if self.length.is_some() || self.is_http_1_0 => {
                return Err(Refusal::Coding);
            }
            Coding::Chunked => {}
        }
        let has_body = self.coding != Coding::None || self.length.is_some_and(|n| 0 < n);
        let refuses = match self.method {
            Method::Get => limits.refuses_body(&http::Method::GET),
            Method::Head => true,
            Method::Options | Method::Other => false,
        };
        if has_body && refuses {
            return Err(Refusal::BodyOfGet);
        }
        if self.coding != Coding::None && self.is_upgrade() {
            return Err(Refusal::BodyOfUpgrade);
        }
        let text = |(begin, end): (usize, usize)| &bytes[begin..end];
        let target = self.authority.map(|(_, authority, port)| (text(authority), port));
        match (target, self.host.map(text)) {
            (Some((authority, port)), Some(host)) if !is_same_host(authority, host, port) => {
                Err(Refusal::Host)
            }
            (_, None) if !self.is_http_1_0 => Err(Refusal::Host),
            _ => Ok(()),
        }
    }
}

/// Whether a path and its query have no character that RFC 3986 wants percent-encoded and that
/// Pingora reads in no form. What else should be and is not, as `|` and `{`, browsers send.
pub(super) fn is_encoded(path: &[u8]) -> bool {
    let path = &path[..memchr(b'#', path).unwrap_or(path.len())];
    let (path, query) = path.split_at(memchr(b'?', path).unwrap_or(path.len()));
    let has = |part: &[u8], any: &[u8]| part.iter().any(|byte| any.contains(byte));
    !has(path, b"<>`") && !has(query, b"\"<>")
}

/// Why the name is none, or must not be.
pub(super) fn check_name(name: &[u8], limits: &HeadLimits) -> Result<(), Refusal> {
    let (end, _) = name_end(name, limits)?;
    if end == name.len() { Ok(()) } else { Err(Refusal::Name) }
}

/// Where the name ends that the bytes begin with, and whether it has a `_`.
fn name_end(bytes: &[u8], limits: &HeadLimits) -> Result<(usize, bool), Refusal> {
    let (mut end, mut alphanumeric, mut seen) = (0, 0, 0);
    while let Some(byte) = bytes.get(end) {
        let class = CLASSES[usize::from(*byte)];
        if class == 0 {
            break;
        }
        seen |= class;
        alphanumeric += usize::from(class & ALPHANUMERIC);
        end += 1;
    }
    let has_underscore = seen & UNDERSCORE != 0;
    // Without what readers drop or exchange, it is as long as one of the two that frame a body.
    let is_as_long = matches!(alphanumeric, 13 | 16);
    let is_refused = has_underscore && limits.underscores == Underscores::Refuse;
    if is_refused || (is_as_long && is_alias(&bytes[..end])) {
        return Err(Refusal::Alias);
    }
    if end == 0 { Err(Refusal::Name) } else { Ok((end, has_underscore)) }
}

/// Whether it is not, but can be taken for `Content-Length` or `Transfer-Encoding`.
fn is_alias(name: &[u8]) -> bool {
    let is = |exact: &str, bare: &str| {
        let plain = name.iter().filter(|byte| byte.is_ascii_alphanumeric());
        !name.eq_ignore_ascii_case(exact.as_bytes())
            && plain.map(u8::to_ascii_lowercase).eq(bare.bytes())
    };
    is("content-length", "contentlength") || is("transfer-encoding", "transferencoding")
}

/// A `Content-Length`.
pub(super) fn length(value: &[u8]) -> Result<u64, Refusal> {
    let plain = value.iter().all(u8::is_ascii_digit) && value.len() <= LENGTH_DIGITS_MAX;
    let padded = 1 < value.len() && value[0] == b'0';
    if value.is_empty() || !plain || padded {
        return Err(Refusal::Length);
    }
    Ok(value.iter().fold(0, |length, digit| length * 10 + u64::from(digit - b'0')))
}

/// Whether a `Connection` names the upgrade.
pub(in crate::edge) fn names_upgrade(connection: &[u8]) -> bool {
    names(connection, b"upgrade")
}

/// Whether an `Upgrade` offers to go on with requests: HTTP/2 in clear, which RFC 9113 has done away
/// with, another version of HTTP, or TLS. It would take them past every rule of this edge.
pub(in crate::edge) fn offers_http(upgrade: &[u8]) -> bool {
    let is_http = |protocol: &[u8]| {
        let name = protocol.split(|byte| *byte == b'/').next().unwrap_or_default();
        [&b"h2c"[..], b"h2", b"h3", b"http", b"tls"]
            .iter()
            .any(|one| name.eq_ignore_ascii_case(one))
    };
    upgrade.split(|byte| *byte == b',').any(|one| is_http(trim(one)))
}

/// RFC 9110, 4.2.3: case, and the port that a scheme has by default, make no difference.
fn is_same_host(target: &[u8], host: &[u8], port: &[u8]) -> bool {
    let bare = |host: &[u8]| {
        let bare = [port, b":"].iter().find_map(|port| host.strip_suffix(*port));
        bare.unwrap_or(host).to_ascii_lowercase()
    };
    target == host || bare(target) == bare(host)
}

fn names(list: &[u8], name: &[u8]) -> bool {
    list.split(|byte| *byte == b',').any(|part| trim(part).eq_ignore_ascii_case(name))
}

fn is_token(name: &[u8]) -> bool {
    !name.is_empty() && name.iter().copied().all(is_name_byte)
}

/// Whether a header's name may have it.
pub(super) fn is_name_byte(byte: u8) -> bool {
    CLASSES[usize::from(byte)] != 0
}

/// All but TAB.
pub(super) fn has_control(value: &[u8]) -> bool {
    // Without a branch for each byte, so that it goes many bytes at a time.
    let count = |byte: &u8| u8::from((*byte < b' ' && *byte != b'\t') || *byte == 0x7f);
    value.iter().map(count).fold(0, |all, one| all | one) != 0
}

/// Without spaces and tabs around.
fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}
