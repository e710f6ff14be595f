//! What HTTP/2 says of a request in another way than HTTP/1.1 does, made the same before anything
//! looks at it.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, header};
use pingora::{Result, http::RequestHeader, proxy::Session as Downstream};
use tokio::time::timeout;

use super::super::{
    framing::{HeadLimits, Refusal},
    respond::Answer,
};

/// RFC 9113, 8.2.3: cookies may come as fields of their own, and are one field to everything that
/// is not HTTP/2. Most servers read the first one alone.
pub(in crate::edge) fn join_cookies(request: &mut RequestHeader) -> Result<()> {
    let mut fields = request.headers.get_all(header::COOKIE).iter();
    if fields.by_ref().take(2).count() < 2 {
        return Ok(());
    }
    let fields = request.headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes);
    let joined = fields.collect::<Vec<_>>().join(&b"; "[..]);
    request.insert_header(header::COOKIE, joined)
}

/// The head of a `GET` need not say whether a body follows: the first DATA frame does. It is waited
/// for, so that the instance gets a request without a body in the only form that all understand.
pub(in crate::edge) async fn refuse_body(
    downstream: &mut Downstream,
    limits: &HeadLimits,
    within: Duration,
) -> Result<(), Answer> {
    let may_have_one = !limits.refuses_body(&downstream.req_header().method);
    if may_have_one || downstream.as_downstream_mut().is_body_done() {
        return Ok(());
    }
    match timeout(within, downstream.read_request_body()).await {
        Ok(Ok(Some(body))) if !body.is_empty() => Err(Answer::Unframed(Refusal::BodyOfGet)),
        Ok(Ok(Some(_))) => Ok(()),
        // Trailers follow, which would make it one of unknown length.
        Ok(Ok(None)) => {
            let request = downstream.req_header_mut();
            request.insert_header(header::CONTENT_LENGTH, "0").map_err(|_| Answer::Internal)
        }
        Ok(Err(_)) => Err(Answer::ClientLeft),
        Err(_) => Err(Answer::BodyTimedOut),
    }
}

/// An empty frame that ends a body is its end and nothing else. As a chunk it would be a second end,
/// which the instance takes for the beginning of the next request.
/// Test: any_frames_make_one_body_and_the_next_request_is_in_step.
pub(in crate::edge) fn drop_empty_end(body: &mut Option<Bytes>, ends: bool) {
    if ends && body.as_ref().is_some_and(Bytes::is_empty) {
        *body = None;
    }
}
