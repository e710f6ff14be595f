//! Where a request goes: the instance of one generation, and how to speak to it.

use std::{sync::Arc, time::Duration};

use http::{HeaderValue, header};
use pingora::{
    Result,
    http::RequestHeader,
    protocols::{ALPN, TcpKeepalive},
    upstreams::peer::{HttpPeer, HttpUpstreamRequestPolicy},
};
use tokio::time::{Instant, sleep, timeout_at};

use super::{dial::Dial, tunnel::Takeover};
use crate::{
    config::Timeouts,
    fleet::{Lease, takes_connections},
    route::{Protocol, Route},
    session::{Address, Behind, Endpoint, UpstreamTls},
};

/// A host that is gone without a word is noticed within about half a minute, also on open sockets.
const KEEPALIVE: TcpKeepalive = TcpKeepalive {
    idle: Duration::from_secs(15),
    interval: Duration::from_secs(5),
    count: 3,
    user_timeout: Duration::ZERO,
};

/// How a request wants to be spoken to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Manner {
    grpc: bool,
    upgrade: bool,
    /// It would take events: whether it gets them, the answer says.
    events: bool,
}

impl Manner {
    pub(super) fn of(request: &RequestHeader) -> Self {
        let content = request.headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
        let grpc = content.is_some_and(is_grpc);
        let events = request.headers.get_all(header::ACCEPT).iter().any(names_events);
        let upgrade = request.headers.contains_key(header::UPGRADE);
        Self { grpc, upgrade, events }
    }

    /// Whether it asks for another protocol, such as WebSocket.
    pub(super) fn is_upgrade(self) -> bool {
        self.upgrade
    }

    /// Whether both sides may be slow from the first byte on: WebSocket and gRPC.
    pub(super) fn is_stream(self) -> bool {
        self.grpc || self.upgrade
    }

    /// Whether the instance may be silent until it answers.
    pub(super) fn may_wait(self) -> bool {
        self.is_stream() || self.events
    }
}

/// Whether an `Accept` names server-sent events, wherever in it.
fn names_events(accept: &HeaderValue) -> bool {
    let mut kinds = accept.as_bytes().split(|byte| *byte == b',');
    kinds.any(|kind| {
        let kind = kind.split(|byte| *byte == b';').next().unwrap_or_default();
        kind.trim_ascii().eq_ignore_ascii_case(b"text/event-stream")
    })
}

/// Whether the edge itself watches over the silence of this instance. HTTP/2 leaves it to Pingora.
pub(super) fn is_watched(peer: &HttpPeer, manner: Manner) -> bool {
    peer.options.alpn != ALPN::H2 && !manner.is_stream()
}

/// `application/grpc`, alone or with the format of its messages. Others begin with the same letters:
/// gRPC-Web, which HTTP/1.1 carries.
fn is_grpc(content: &[u8]) -> bool {
    const GRPC: &[u8] = b"application/grpc";
    let Some((kind, rest)) = content.split_at_checked(GRPC.len()) else { return false };
    kind.eq_ignore_ascii_case(GRPC) && matches!(rest.first(), None | Some(b'+' | b';' | b' '))
}

/// The peer of a leased endpoint.
pub(super) fn build(
    endpoint: &Endpoint,
    lease: &Lease,
    route: &Route,
    tls: Option<UpstreamTls>,
    manner: Manner,
    takeover: Option<Arc<Takeover>>,
    timeouts: &Timeouts,
) -> Result<Box<HttpPeer>> {
    let tls = match endpoint.address.behind() {
        Some(Behind { tls, host, .. }) => {
            tls.then(|| UpstreamTls { verify: true, sni: host.to_string() })
        }
        None => tls,
    };
    let is_tls = tls.is_some();
    let (verify, sni) = tls.map_or((false, String::new()), |tls| (tls.verify, tls.sni));
    let mut peer = match &endpoint.address {
        Address::Tcp(address) | Address::Forwarded(address) => HttpPeer::new(address, is_tls, sni),
        Address::Unix(path) => HttpPeer::new_uds(path, is_tls, sni)?,
        Address::Behind(behind) => HttpPeer::new(behind.proxy, is_tls, sni),
    };
    // A pooled connection belongs to one life of one session and is never used by another.
    peer.group_key = mix(mix(lease.session_number()) ^ endpoint.generation.0);
    let options = &mut peer.options;
    options.verify_cert = verify;
    options.verify_hostname = verify;
    options.connection_timeout = Some(timeouts.connect);
    options.total_connection_timeout = Some(timeouts.connect);
    options.idle_timeout = Some(timeouts.upstream_idle);
    options.tcp_keepalive = Some(KEEPALIVE);
    if let Some(takeover) = takeover {
        // It goes over to this request's tunnel, and so is for this request alone.
        peer.group_key ^= mix(Arc::as_ptr(&takeover).addr() as u64);
        options.custom_l4 = Some(Arc::new(Dial { takeover }));
    }
    options.http_upstream_request_policy = HttpUpstreamRequestPolicy::standard();
    options.alpn = match route.recipe.protocol {
        // HTTP/2 has no `Upgrade`, and what speaks it mostly speaks HTTP/1.1 as well.
        _ if manner.upgrade => ALPN::H1,
        Protocol::Http2 => ALPN::H2,
        Protocol::Auto if manner.grpc => ALPN::H2,
        Protocol::Auto | Protocol::Http1 => ALPN::H1,
    };
    let leaves_silence = options.alpn == ALPN::H2 && !manner.may_wait();
    options.read_timeout = leaves_silence.then_some(timeouts.answer);
    Ok(Box::new(peer))
}

/// Nobody else's requests go over the same HTTP/2 connection: it is cut when this access ends.
pub(super) fn set_apart(peer: &mut HttpPeer, grant: u64) {
    if peer.options.alpn == ALPN::H2 {
        peer.group_key ^= mix(grant);
    }
}

/// SplitMix64's finalizer: spreads every bit over all, one to one.
fn mix(mut n: u64) -> u64 {
    n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

/// Waits until the endpoint takes a connection, at most until `until` or until it is `over`: it
/// runs, and may only just be opening its socket again.
pub(super) async fn listens(endpoint: &Endpoint, until: Instant, over: impl Fn() -> bool) -> bool {
    let mut pause = Duration::from_millis(1);
    let attempts = async {
        loop {
            if takes_connections(&endpoint.address).await.is_ok() {
                return true;
            }
            if over() {
                return false;
            }
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    };
    timeout_at(until, attempts).await.unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_begins_like_grpc_is_not_grpc() {
        let grpc = ["", "+proto", "+json", ";charset=utf-8", " ; x=y"];
        for more in grpc {
            assert!(is_grpc(format!("application/grpc{more}").as_bytes()), "{more}");
        }
        assert!(is_grpc(b"Application/gRPC"));
        for other in ["-web", "-web+proto", "-web-text", "x", "/1"] {
            assert!(!is_grpc(format!("application/grpc{other}").as_bytes()), "{other}");
        }
        assert!(!is_grpc(b"application/grp") && !is_grpc(b""));
    }
}
