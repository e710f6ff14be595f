//! HTTP/2 from clients: one connection, from its preface to its end. Pingora's own loop keeps the
//! connection to itself, and so neither asks whether the client is there nor widens its window.

mod pulse;
pub(super) mod request;
mod streams;
mod window;

use std::{sync::Arc, time::Duration};

use pingora::{
    apps::HttpServerApp,
    protocols::{
        Digest, Stream,
        http::{
            ServerSession,
            v2::server::{H2Accept, H2Options, HttpSession, default_h2_options, handshake},
        },
    },
    proxy::HttpProxy,
    server::ShutdownWatch,
};
use tokio_util::task::TaskTracker;

use super::{Edge, listen::Connection, socket};
use crate::{
    config::{Http2, Timeouts},
    metrics::METRICS,
};
use streams::Streams;
use window::Windows;

/// Requests of one connection that are refused before a hook sees them; with one more it is closed.
const MALFORMED_MAX: u32 = 32;

/// What is sent to a client that began as HTTP/2 does and went on as nothing: SETTINGS, without
/// which a connection has not begun, and GOAWAY with PROTOCOL_ERROR.
pub(super) const BAD_PREFACE: &[u8] = b"\0\0\0\x04\0\0\0\0\0\
    \0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\x01";

/// What clients' connections keep to.
pub(super) struct Rules {
    options: H2Options,
    windows: Windows,
    idle: Duration,
    gone: Duration,
    requests: TaskTracker,
}

impl Rules {
    pub(super) fn new(http2: &Http2, timeouts: &Timeouts) -> Self {
        Self {
            options: options(http2),
            windows: Windows::new(http2),
            idle: timeouts.client_idle,
            gone: timeouts.client_gone,
            requests: TaskTracker::new(),
        }
    }
}

/// What one connection may cost.
fn options(http2: &Http2) -> H2Options {
    let to_u32 = |size: u64| u32::try_from(size).unwrap_or(u32::MAX);
    let to_usize = |size: u64| usize::try_from(size).unwrap_or(usize::MAX);
    let mut options = default_h2_options();
    options
        .max_concurrent_streams(http2.streams)
        .initial_window_size(to_u32(http2.stream_window))
        .initial_connection_window_size(to_u32(http2.connection_window))
        .max_send_buffer_size(to_usize(http2.send_buffer))
        .max_header_list_size(to_u32(http2.header_list))
        .header_table_size(to_u32(http2.header_table))
        .max_pending_accept_reset_streams(to_usize(http2.resets.into()))
        .max_local_error_reset_streams(Some(to_usize(http2.error_resets.into())));
    options
}

/// Serves a connection's requests until the client ends it, asks for nothing or is gone. Once the
/// edge ends, the client is told, and its open requests go on.
pub(super) async fn serve(
    proxy: &Arc<HttpProxy<Edge>>,
    client: Stream,
    connection: &Connection,
    rules: &Rules,
    shutdown: &ShutdownWatch,
) {
    let digest = Arc::new(digest(&client));
    let mut http2 = match handshake(client, Some(rules.options.clone())).await {
        Ok(http2) => http2,
        Err(error) => {
            tracing::debug!(%error, "no HTTP/2 came of a connection");
            return;
        }
    };
    let streams = Arc::<Streams>::default();
    let mut window = rules.windows.open();
    let gone = pulse::gone(http2.ping_pong(), &connection.traffic, &streams, rules.gone);
    let mut gone = std::pin::pin!(gone);
    let mut shutdown = shutdown.clone();
    let (mut is_ending, mut malformed) = (false, 0);
    loop {
        let accepted = tokio::select! {
            // An end that is told at the same time comes first.
            biased;
            _ = shutdown.changed(), if !is_ending => {
                http2.graceful_shutdown();
                is_ending = true;
                continue;
            }
            accepted = HttpSession::from_h2_conn(&mut http2, Arc::clone(&digest)) => accepted,
            () = streams.idle(rules.idle), if !is_ending => return,
            () = &mut gone => {
                METRICS.refused.with_label_values(&["client_gone"]).inc();
                // A socket that is gone keeps nothing.
                let _ = socket::forget_rest(connection.socket);
                return;
            }
        };
        match accepted {
            Ok(Some(H2Accept::Session(request))) => {
                let need = rules.windows.need(&request);
                let stream = streams.enter(need);
                if let Some(wider) = window.widen(streams.needs()) {
                    http2.set_target_window_size(wider);
                }
                let (proxy, shutdown) = (Arc::clone(proxy), shutdown.clone());
                rules.requests.spawn(async move {
                    let _stream = stream;
                    proxy.process_new_http(ServerSession::new_http2(request), &shutdown).await;
                });
            }
            Ok(Some(H2Accept::Rejected)) if malformed < MALFORMED_MAX => malformed += 1,
            // Mostly the client has closed its socket without a word.
            Ok(Some(H2Accept::Rejected) | None) | Err(_) => return,
        }
    }
}

/// What every request of the connection knows of it.
fn digest(client: &Stream) -> Digest {
    Digest {
        ssl_digest: client.get_ssl_digest(),
        timing_digest: client.get_timing_digest(),
        proxy_digest: client.get_proxy_digest(),
        socket_digest: client.get_socket_digest(),
    }
}
