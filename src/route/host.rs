//! Hosts and the patterns that match them. Knows names only: no route, no request, no DNS.

use std::{borrow::Cow, fmt, net::Ipv6Addr, sync::Arc};

use crate::session::SPARES;

/// The longest host name of DNS.
pub(crate) const HOST_MAX: usize = 253;
const LABEL_MAX: usize = 63;
/// Names that a capture may not have: the engine fills them in.
pub(crate) const RESERVED: [&str; 3] = ["address", "host", "port"];

/// The one spelling of a `Host` or `:authority`: lower case, no port, no trailing dot.
///
/// `None` for what cannot be a host. Borrowed, without an allocation, when `raw` (port and
/// trailing dot aside) is canonical already.
pub fn canonical_host(raw: &str) -> Option<Cow<'_, str>> {
    if raw.starts_with('[') {
        return canonical_ipv6(raw);
    }
    let host = match raw.split_once(':') {
        Some((host, port)) if is_port(port) => host,
        Some(_) => return None,
        None => raw,
    };
    let host = host.strip_suffix('.').unwrap_or(host);
    if host.len() > HOST_MAX || !host.split('.').all(is_label) {
        return None;
    }
    Some(if host.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(host.to_ascii_lowercase())
    } else {
        Cow::Borrowed(host)
    })
}

/// `[::1]:8080` → `[::1]`. One address has many spellings; the standard library's is the one kept.
fn canonical_ipv6(raw: &str) -> Option<Cow<'_, str>> {
    let end = raw.find(']')?;
    match raw[end + 1..].strip_prefix(':') {
        Some(port) if is_port(port) => {}
        None if raw.len() == end + 1 => {}
        _ => return None,
    }
    let address: Ipv6Addr = raw[1..end].parse().ok()?;
    let given = &raw[..=end];
    if is_written_as(given, format_args!("[{address}]")) {
        return Some(Cow::Borrowed(given));
    }
    Some(Cow::Owned(format!("[{address}]")))
}

/// Compares without building the second string.
fn is_written_as(text: &str, written: fmt::Arguments<'_>) -> bool {
    struct Rest<'a>(&'a str);
    impl fmt::Write for Rest<'_> {
        fn write_str(&mut self, piece: &str) -> fmt::Result {
            self.0 = self.0.strip_prefix(piece).ok_or(fmt::Error)?;
            Ok(())
        }
    }
    let mut rest = Rest(text);
    fmt::write(&mut rest, written).is_ok() && rest.0.is_empty()
}

fn is_port(port: &str) -> bool {
    // RFC 3986 allows an empty port.
    port.bytes().all(|byte| byte.is_ascii_digit())
        && (port.is_empty() || port.len() <= 5 && port.parse::<u16>().is_ok())
}

/// A label that a host may have. The underscore is not DNS's, but container networks use it.
fn is_label(label: &str) -> bool {
    (1..=LABEL_MAX).contains(&label.len())
        && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        && !label.starts_with('-')
        && !label.ends_with('-')
}

/// What a capture may stand for: one DNS label, or a part of one.
fn is_capture(value: &str) -> bool {
    (1..=LABEL_MAX).contains(&value.len())
        && value.bytes().all(is_capture_byte)
        && !value.starts_with('-')
        && !value.ends_with('-')
}

fn is_capture_byte(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-'
}

/// A name of a route, an engine: `[a-z0-9-]`, 1 to 63, no hyphen at its ends.
pub(crate) fn is_name(name: &str) -> bool {
    is_capture(name)
}

/// `HOST` of a route: an exact name, or one with captures such as `{session}-ide.example.com`.
///
/// Taken apart into `head {capture} middle {capture} … tail`. Each capture stays within one label
/// and takes as little as it can.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPattern {
    text: Arc<str>,
    /// `None` when it is exact: most of a hundred thousand are.
    parts: Option<Box<Parts>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Parts {
    captures: Vec<String>,
    head: String,
    middle: Vec<String>,
    tail: String,
}

impl HostPattern {
    /// Takes a pattern apart, or says in one sentence what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut captures = Vec::new();
        let mut literals = Vec::new();
        let mut rest = text;
        while let Some((literal, behind)) = rest.split_once('{') {
            let (name, behind) = behind
                .split_once('}')
                .ok_or_else(|| "`{` without its `}`: a capture is `{name}`".to_owned())?;
            check_capture_name(name, &captures)?;
            if literal.is_empty() && !literals.is_empty() {
                return Err(format!("nothing between `{{{name}}}` and the capture before it"));
            }
            literals.push(literal.to_owned());
            captures.push(name.to_owned());
            rest = behind;
        }
        literals.push(rest.to_owned());
        check_spelling(&literals)?;
        if text.ends_with(SPARES) || text == &SPARES[1..] {
            return Err(format!("hosts in `{SPARES}` are those of a [pool]'s instances"));
        }
        let head = literals.remove(0);
        let parts = literals.pop().map(|tail| Parts { captures, head, middle: literals, tail });
        Ok(Self { text: text.into(), parts: parts.map(Box::new) })
    }

    /// As it is written in the route file.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The same, to keep.
    pub(crate) fn text(&self) -> &Arc<str> {
        &self.text
    }

    /// The captures' names, from left to right; none when the host is exact.
    pub fn captures(&self) -> &[String] {
        self.parts.as_ref().map_or(&[], |parts| &parts.captures)
    }

    /// Whether it is one host only.
    pub fn is_exact(&self) -> bool {
        self.parts.is_none()
    }

    /// The values of the captures, in the order of [`Self::captures`]; `None` for a host that
    /// does not match.
    pub fn values<'h>(&self, host: &'h str) -> Option<Vec<&'h str>> {
        let Some(parts) = &self.parts else { return (*self.text == *host).then(Vec::new) };
        let between = host.strip_prefix(&*parts.head)?.strip_suffix(&*parts.tail)?;
        let mut values = Vec::with_capacity(parts.captures.len());
        self.cut(between, |value| values.push(value)).then_some(values)
    }

    /// Whether what stands between head and tail of a host can be cut into the captures.
    pub(crate) fn fits(&self, between: &str) -> bool {
        self.cut(between, |_| ())
    }

    /// The earliest end of a capture leaves the most to those behind it, so there is never a
    /// reason to come back and try a later one; `lookup_agrees_with_the_naive_reference` holds it.
    fn cut<'h>(&self, between: &'h str, mut value: impl FnMut(&'h str)) -> bool {
        let mut rest = between;
        for literal in self.middle() {
            let Some(end) = capture_end(rest, literal) else { return false };
            value(&rest[..end]);
            rest = &rest[end + literal.len()..];
        }
        value(rest);
        is_capture(rest)
    }

    /// The literal text before the first capture; the whole host when it is exact.
    pub(crate) fn head(&self) -> &str {
        self.parts.as_ref().map_or(&*self.text, |parts| &parts.head)
    }

    fn middle(&self) -> &[String] {
        self.parts.as_ref().map_or(&[], |parts| &parts.middle)
    }

    /// The literal text behind the last capture.
    pub(crate) fn tail(&self) -> &str {
        self.parts.as_ref().map_or("", |parts| &parts.tail)
    }

    /// How many characters between head and tail are literal.
    pub(crate) fn middle_len(&self) -> usize {
        self.middle().iter().map(String::len).sum()
    }

    /// The pattern without its captures' names: equal shapes match the same hosts.
    pub(crate) fn shape(&self) -> String {
        if self.is_exact() {
            return self.text.to_string();
        }
        let mut shape = format!("{}{{}}", self.head());
        for literal in self.middle() {
            shape.push_str(literal);
            shape.push_str("{}");
        }
        shape + self.tail()
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Where the capture at the start of `rest` ends, when `literal` and another capture follow it.
fn capture_end(rest: &str, literal: &str) -> Option<usize> {
    let bytes = rest.as_bytes();
    if bytes.first() == Some(&b'-') {
        return None;
    }
    for end in 1..=bytes.len().min(LABEL_MAX) {
        let last = bytes[end - 1];
        if !is_capture_byte(last) {
            return None;
        }
        let next = bytes.get(end + literal.len());
        let next_may_start = next.is_some_and(|byte| is_capture_byte(*byte) && *byte != b'-');
        if last != b'-' && next_may_start && bytes[end..].starts_with(literal.as_bytes()) {
            return Some(end);
        }
    }
    None
}

fn check_capture_name(name: &str, known: &[String]) -> Result<(), String> {
    let first_is_letter = name.starts_with(|first: char| first.is_ascii_lowercase());
    let rest_is_plain =
        name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    if !first_is_letter || !rest_is_plain || name.len() > LABEL_MAX {
        return Err(format!(
            "`{{{name}}}` is no capture: its name is a letter, then letters, digits and `_`, \
             in lower case"
        ));
    }
    if RESERVED.contains(&name) {
        return Err(format!("a capture cannot be called `{name}`: the engine fills that one in"));
    }
    if known.iter().any(|other| other == name) {
        return Err(format!("`{{{name}}}` stands twice in the host"));
    }
    Ok(())
}

/// What remains must be a host wherever a capture stands for a plain letter.
fn check_spelling(literals: &[String]) -> Result<(), String> {
    let sample = literals.join("a");
    if sample.contains('*') {
        return Err(
            "`*` stands for nothing here: name the label, as in `{session}.example.com`".into()
        );
    }
    if sample.contains('}') {
        return Err("`}` without its `{`: a capture is `{name}`".into());
    }
    if !sample.is_ascii() {
        return Err("not ASCII: write the name as browsers send it, in punycode (`xn--…`)".into());
    }
    match canonical_host(&sample) {
        Some(canonical) if canonical == sample => Ok(()),
        Some(_) => Err("a host is written in lower case, without port and trailing dot".into()),
        None => Err("not a host: labels of `a-z`, `0-9`, `-` and `_`, 1 to 63 long, \
                     with dots between them"
            .into()),
    }
}
