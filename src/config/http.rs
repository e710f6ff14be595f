//! What HTTP requests must keep to, as far as it is more than a number: the words, and `[http2]`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::route::text::{SizeText, size};

/// What becomes of a header with `_` in its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Underscores {
    /// The header is taken out of the request.
    Drop,
    /// The request gets 400.
    Refuse,
    /// It is a header like others.
    Pass,
}

/// What becomes of a `GET` with a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum GetBody {
    /// The request gets 400.
    Refuse,
    /// The body is passed on.
    Pass,
}

/// `[http2]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Http2 {
    /// The most requests at once on one connection; a client that opens more has them refused.
    #[schemars(range(min = 1))]
    pub streams: u32,
    /// What a client may send of one request's body before the instance takes it.
    #[serde(with = "size")]
    #[schemars(with = "SizeText")]
    pub stream_window: u64,
    /// What a client may send of all requests' bodies on one connection before instances take it,
    /// beside what its uploads get of `shared_window`.
    #[serde(with = "size")]
    #[schemars(with = "SizeText")]
    pub connection_window: u64,
    /// What all connections may have beyond `connection_window`, in all: each gets as much as its
    /// uploads may fill at once, so that one that waits keeps no other of its connection waiting.
    /// A connection keeps its part until it ends.
    #[serde(with = "size")]
    #[schemars(with = "SizeText")]
    pub shared_window: u64,
    /// The most of one answer that is kept in memory for a client that does not take it.
    #[serde(with = "size")]
    #[schemars(with = "SizeText")]
    pub send_buffer: u64,
    /// One request's headers when they are decompressed, names and values and 32 bytes for each.
    #[serde(with = "size")]
    #[schemars(with = "SizeText")]
    pub header_list: u64,
    /// The table that compresses headers, one in memory for each connection.
    #[serde(with = "size")]
    #[schemars(with = "SizeText")]
    pub header_table: u64,
    /// Requests that a client took back before the edge had begun with them; with one more the
    /// connection is closed (rapid reset).
    #[schemars(range(min = 1))]
    pub resets: u32,
    /// Requests of a connection that the edge had to reset for their errors; with one more the
    /// connection is closed (MadeYouReset).
    #[schemars(range(min = 1))]
    pub error_resets: u32,
}

impl Default for Http2 {
    fn default() -> Self {
        Self {
            streams: 100,
            stream_window: 1024 * 1024,
            connection_window: 1024 * 1024,
            shared_window: 256 * 1024 * 1024,
            send_buffer: 400 * 1024,
            header_list: 64 * 1024,
            header_table: 4 * 1024,
            resets: 20,
            error_resets: 100,
        }
    }
}
