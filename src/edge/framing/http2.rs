//! The same rules for a request by HTTP/2, as far as the protocol does not enforce them itself. What
//! comes this way goes on by HTTP/1.1, where it must be readable in one way.

use http::{Method, header};
use pingora::http::RequestHeader;

use super::{
    HeadLimits, Refusal,
    head::{self, check_name},
};
use crate::config::GetBody;

impl HeadLimits {
    /// What is refused of a request's head.
    pub(in crate::edge) fn check_http2(&self, request: &RequestHeader) -> Result<(), Refusal> {
        if request.method == Method::CONNECT {
            return Err(Refusal::Connect);
        }
        let target = request.raw_path();
        if self.uri_max < target.len() {
            return Err(Refusal::UriTooLong);
        }
        let is_server = target == b"*" && request.method == Method::OPTIONS;
        if !target.starts_with(b"/") && !is_server {
            return Err(Refusal::Target);
        }
        if self.headers_max < request.headers.len() {
            return Err(Refusal::TooManyHeaders);
        }
        let mut lengths = request.headers.get_all(header::CONTENT_LENGTH).iter();
        let length = match (lengths.next(), lengths.next()) {
            (_, Some(_)) => return Err(Refusal::Length),
            (Some(length), None) => Some(head::length(length.as_bytes())?),
            (None, None) => None,
        };
        if length.is_some_and(|length| 0 < length) && self.refuses_body(&request.method) {
            return Err(Refusal::BodyOfGet);
        }
        for name in request.headers.keys() {
            check_name(name.as_str().as_bytes(), self)?;
        }
        Ok(())
    }

    /// Whether a request of this method must not have a body.
    pub(in crate::edge) fn refuses_body(&self, method: &Method) -> bool {
        match *method {
            Method::GET => self.get_body == GetBody::Refuse,
            Method::HEAD => true,
            _ => false,
        }
    }
}
