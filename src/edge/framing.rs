//! Where a request on an HTTP/1 connection begins and ends, told strictly and before Pingora reads a
//! byte of it. Whatever two readers could take for two different things is refused.
//!
//! Pure: bytes in, how many of them may go on. It knows no socket, and what it says does not depend
//! on how the bytes were cut into reads.

mod absolute;
mod chunks;
mod head;
mod http2;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use http::{HeaderMap, HeaderValue, header};

use crate::config::{GetBody, Limits, Underscores};
use chunks::Chunks;
use head::{After, Head};

pub(super) use absolute::Absolute;
pub(super) use head::{names_upgrade, offers_http};

/// No longer one is read by Pingora, whose refusal says nothing.
const TARGET_MAX: usize = 65_534;

/// What a request head must keep to.
#[derive(Clone, Debug)]
pub(super) struct HeadLimits {
    head_max: usize,
    uri_max: usize,
    headers_max: usize,
    underscores: Underscores,
    get_body: GetBody,
}

impl HeadLimits {
    pub(super) fn new(limits: &Limits) -> Self {
        let to_usize = |limit: u64| usize::try_from(limit).unwrap_or(usize::MAX);
        Self {
            head_max: to_usize(limits.head),
            uri_max: to_usize(limits.uri).min(TARGET_MAX),
            headers_max: to_usize(limits.headers.into()),
            underscores: limits.underscores,
            get_body: limits.get_body,
        }
    }

    /// Whether headers with `_` in their names are taken out of requests.
    pub(super) fn drops_underscores(&self) -> bool {
        self.underscores == Underscores::Drop
    }
}

/// Why a request is not passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// A line ends in LF alone, or has a CR within.
    LineEnd,
    /// The first line is not `METHOD TARGET HTTP/1.x`.
    RequestLine,
    /// Another version of HTTP.
    Version,
    /// `CONNECT`.
    Connect,
    /// A target that is no path, `*` or http URI, or has a control character.
    Target,
    /// A target with a character that must be percent-encoded.
    Unencoded,
    /// Not exactly one host, or another than the target names.
    Host,
    /// A header's name has what no name may have, a space before the colon included.
    Name,
    /// A name that some take for a header which frames the body, or, by policy, one with `_`.
    Alias,
    /// A value has a control character, or goes on in the next line.
    Value,
    /// `Content-Length` more than once, or not a plain number.
    Length,
    /// `Transfer-Encoding` is malformed, does not end in `chunked`, or has a length beside it.
    Coding,
    /// A transfer coding that nobody knows.
    UnknownCoding,
    /// `GET` or `HEAD` with a body.
    BodyOfGet,
    /// An upgrade with a chunked body: behind it, chunks and what follows could not be told apart.
    BodyOfUpgrade,
    /// The head is longer than `limits.head`.
    HeadTooLarge,
    /// More headers than `limits.headers`.
    TooManyHeaders,
    /// The target is longer than `limits.uri`.
    UriTooLong,
    /// A chunk's size, extension or end, or a trailer, is malformed.
    Chunk,
    /// Pingora found a head where this filter saw none.
    Unframed,
    /// The head was not complete within `timeouts.client_head`.
    HeadTimedOut,
}

impl Refusal {
    pub(super) fn status(self) -> u16 {
        match self {
            Self::HeadTimedOut => 408,
            Self::UriTooLong => 414,
            Self::HeadTooLarge | Self::TooManyHeaders => 431,
            Self::UnknownCoding => 501,
            Self::Version => 505,
            Self::Connect => 405,
            _ => 400,
        }
    }

    /// What is wrong, for who wrote the client.
    pub(super) fn says(self) -> &'static str {
        match self {
            Self::LineEnd => "A line of the request does not end in CR LF.",
            Self::RequestLine => "The request's first line is not one of HTTP/1.1.",
            Self::Version => "This version of HTTP is not spoken here.",
            Self::Connect => "CONNECT is not for this server.",
            Self::Target => "The request's target is not a path or an http URI.",
            Self::Unencoded => "The request's target has a character that must be percent-encoded.",
            Self::Host => "The request must name exactly one valid host.",
            Self::Name => "A header's name has a character that no name may have.",
            Self::Alias => "A header's name can be taken for that of another.",
            Self::Value => "A header's value has a control character or a second line.",
            Self::Length => "Content-Length must be one plain number.",
            Self::Coding => "Transfer-Encoding must end in chunked, without Content-Length.",
            Self::UnknownCoding => "This transfer coding is not known here.",
            Self::BodyOfGet => "A GET or HEAD must not have a body.",
            Self::BodyOfUpgrade => "A request for an upgrade must not have a chunked body.",
            Self::HeadTooLarge => "The request's head is too long.",
            Self::TooManyHeaders => "The request has too many headers.",
            Self::UriTooLong => "The request's target is too long.",
            Self::Chunk => "A chunk of the request's body is malformed.",
            Self::Unframed => "The request's end is not clear.",
            Self::HeadTimedOut => "The request's head came too slowly.",
        }
    }

    /// The label of the metric.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::HeadTimedOut => "head_timeout",
            Self::UriTooLong => "uri_too_long",
            Self::HeadTooLarge | Self::TooManyHeaders => "head_too_large",
            _ => "bad_request",
        }
    }
}

/// One connection's requests, one after the other.
#[derive(Debug)]
pub(super) struct Framing {
    limits: Arc<HeadLimits>,
    stage: Stage,
    /// Heads that were complete.
    heads: u32,
    has_underscores: bool,
    /// Heads with a whole URI, of those that the last bytes have completed.
    absolutes: Vec<Absolute>,
}

#[derive(Debug)]
enum Stage {
    Head(Head),
    /// So many bytes of a body are to come.
    Body(u64),
    /// The same, of an upgrade.
    BodyOfUpgrade(u64),
    Chunks(Chunks),
    /// Behind the head of an upgrade: what comes is no request.
    Upgrade,
}

impl Framing {
    pub(super) fn new(limits: Arc<HeadLimits>) -> Self {
        let stage = Stage::Head(Head::default());
        Self { limits, stage, heads: 0, has_underscores: false, absolutes: Vec::new() }
    }

    /// How many of `bytes`, from the first, may go on: whole heads, and bodies as they come. What is
    /// left is the beginning of a head, or comes behind an upgrade; it must be given again, with
    /// more behind it. On a refusal nothing behind the bytes that may go on is to be read; of a
    /// malformed chunk nothing of these `bytes` goes on.
    pub(super) fn advance(&mut self, bytes: &[u8]) -> (usize, Result<(), Refusal>) {
        let mut at = 0;
        self.absolutes.clear();
        while at < bytes.len() {
            let rest = &bytes[at..];
            match &mut self.stage {
                Stage::Head(head) => match head.read(rest, &self.limits) {
                    Ok(None) => break,
                    Ok(Some(length)) => {
                        let absolute = head.absolute().map(|place| Absolute { at, place });
                        self.absolutes.extend(absolute);
                        at += length;
                        self.heads = self.heads.wrapping_add(1);
                        self.has_underscores |= head.has_underscores();
                        self.stage = match head.after() {
                            After::Head => Stage::Head(Head::default()),
                            After::Body(length) => Stage::Body(length),
                            After::Chunks => Stage::Chunks(Chunks::default()),
                            After::Upgrade => Stage::Upgrade,
                            After::BodyOfUpgrade(length) => Stage::BodyOfUpgrade(length),
                        };
                    }
                    Err(refusal) => return (at, Err(refusal)),
                },
                Stage::Body(left) => {
                    at += take(left, rest);
                    if *left == 0 {
                        self.stage = Stage::Head(Head::default());
                    }
                }
                Stage::BodyOfUpgrade(left) => {
                    at += take(left, rest);
                    if *left == 0 {
                        self.stage = Stage::Upgrade;
                    }
                }
                Stage::Chunks(chunks) => match chunks.read(rest, self.limits.head_max) {
                    Ok((read, ends)) => {
                        at += read;
                        if ends {
                            self.stage = Stage::Head(Head::default());
                        }
                    }
                    Err(refusal) => return (at, Err(refusal)),
                },
                Stage::Upgrade => break,
            }
        }
        (at, Ok(()))
    }

    /// How many heads were complete.
    pub(super) fn heads(&self) -> u32 {
        self.heads
    }

    /// Whether a header's name had a `_` so far.
    pub(super) fn has_underscores(&self) -> bool {
        self.has_underscores
    }

    /// Whether a body is under way.
    pub(super) fn is_in_body(&self) -> bool {
        matches!(self.stage, Stage::Body(_) | Stage::BodyOfUpgrade(_) | Stage::Chunks(_))
    }

    /// The heads with a whole URI that the last bytes have completed, the first one first.
    pub(super) fn absolutes(&self) -> &[Absolute] {
        &self.absolutes
    }

    /// Whether the last head asked for an upgrade.
    pub(super) fn is_behind_upgrade(&self) -> bool {
        matches!(self.stage, Stage::Upgrade)
    }
}

/// How many of these belong to a body of which so many are left.
fn take(left: &mut u64, bytes: &[u8]) -> usize {
    let here = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
    *left -= here as u64;
    here
}

/// The transfer codings below `chunked`, which is the edge's own on both sides, for the instance:
/// one line, whatever the client made of them. `None` where there are none.
pub(super) fn inner_codings(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut lines = headers.get_all(header::TRANSFER_ENCODING).iter();
    let (first, second) = (lines.next()?, lines.next());
    if second.is_none() && first.as_bytes().eq_ignore_ascii_case(b"chunked") {
        return None;
    }
    let all = headers.get_all(header::TRANSFER_ENCODING).iter();
    let names = all.filter_map(|line| line.to_str().ok()).flat_map(|line| line.split(','));
    let names = names.map(|name| name.trim().to_ascii_lowercase());
    let names: Vec<_> = names.filter(|name| name != "identity").collect();
    HeaderValue::from_str(&names.join(", ")).ok().filter(|_| 1 < names.len())
}
