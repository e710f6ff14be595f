//! What may become of one call to a real server behind a proxy that spoils it.

use axum::{
    body::{Body, Bytes},
    response::Response,
};

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Fault {
    Answer(u16),
    Silence,
    /// Nothing reaches the server, and the answer breaks off.
    CutBefore,
    /// The server did it, and its answer breaks off.
    CutBehind,
}

pub(crate) const FAULTS: [Fault; 6] = [
    Fault::Answer(503),
    Fault::Answer(500),
    Fault::Answer(429),
    Fault::Silence,
    Fault::CutBefore,
    Fault::CutBehind,
];

/// An answer that says it is longer than it is.
pub(crate) fn cut() -> Response {
    let begun = futures::stream::iter([
        Ok(Bytes::from_static(b"{\"Id\": \"12")),
        Err(std::io::Error::other("cut, as told")),
    ]);
    Response::new(Body::from_stream(begun))
}
