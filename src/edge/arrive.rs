//! From a socket that was accepted to a client that may ask: whose address it is, by the PROXY
//! protocol where there is one, and TLS, as the address that it came to has it.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use pingora::protocols::Stream;

use super::{
    client::{self, Peer},
    connections::Place,
    early::{Early, Unseen},
    patience::Patience,
    proxy_protocol,
    tls::{self, Handshakes, TlsError, Told},
};
use crate::{
    acme::Acme,
    certs::Certs,
    config::{Config, Networks},
    fleet::Origin,
    metrics::METRICS,
};

/// What is done at each address, before there is a request.
#[derive(Debug, Default)]
pub struct Entrances {
    all: Vec<(SocketAddr, Entrance)>,
    trusted: Arc<Networks>,
    unseen: Option<Unseen>,
    acme: Option<Arc<Acme>>,
    within: Duration,
}

/// What is done at one address.
#[derive(Debug)]
struct Entrance {
    proxy_protocol: bool,
    tls: Option<Handshakes>,
}

/// A client that may ask.
#[derive(Debug)]
pub(super) struct Arrival {
    pub(super) stream: Stream,
    pub(super) peer: Peer,
    pub(super) told: Option<Told>,
    /// A lease on the session that its handshake has named.
    pub(super) early: Option<Early>,
}

impl Entrances {
    /// Those of the config's addresses. Certificates are chosen from `certs`.
    pub fn new(config: &Config, certs: &Arc<Certs>) -> Result<Self, TlsError> {
        let mut all = Vec::new();
        for entrance in config.listen.http.iter().filter(|entrance| entrance.proxy_protocol) {
            all.push((entrance.address, Entrance { proxy_protocol: true, tls: None }));
        }
        for entrance in &config.listen.https {
            let auth = entrance.client_auth.as_ref();
            let tls = Some(Handshakes::new(Arc::clone(certs), &config.tls, auth)?);
            let proxy_protocol = entrance.proxy_protocol;
            all.push((entrance.address, Entrance { proxy_protocol, tls }));
        }
        let trusted = Arc::new(config.listen.trusted_proxies.clone());
        let within = config.timeouts.handshake;
        Ok(Self { all, trusted, unseen: None, acme: None, within })
    }

    /// Sessions whose routes allow it wake from a ClientHello on.
    #[must_use]
    pub fn waking(mut self, unseen: Unseen) -> Self {
        self.unseen = Some(unseen);
        self
    }

    /// A ClientHello may cause an order, and waits for its certificate as long as a handshake may
    /// take.
    #[must_use]
    pub fn ordering(mut self, acme: Option<Arc<Acme>>) -> Self {
        self.acme = acme;
        self
    }

    /// The client behind a socket, counted in its place; `None` if there is none to serve.
    pub(super) async fn arrive(&self, stream: Stream, place: &mut Place) -> Option<Arrival> {
        let digest = stream.get_socket_digest();
        let address = digest.as_deref().and_then(client::socket_peer);
        let local = digest.as_deref().and_then(|digest| digest.local_addr()?.as_inet().copied());
        let Some(entrance) = local.and_then(|local| self.at(local)) else {
            let peer = Peer::new(address, &self.trusted);
            if !has_room(place, &peer) {
                return None;
            }
            return Some(Arrival { stream, peer, told: None, early: None });
        };
        let local = local.map(|local| local.ip().to_canonical());
        let pass = self.pass(entrance, stream, place, address, local);
        let through = Patience::new(self.within).bound(pass).await;
        let (arrived, result) = match through {
            Some(Ok(arrival)) => (Some(arrival), "ok"),
            Some(Err(refused)) => (None, refused),
            None => (None, "timeout"),
        };
        METRICS.handshakes.with_label_values(&[result]).inc();
        arrived
    }

    /// What listens on every address of a port is what a connection to one of them has come to.
    fn at(&self, local: SocketAddr) -> Option<&Entrance> {
        let is = |at: &SocketAddr| {
            let same = at.ip().to_canonical() == local.ip().to_canonical();
            at.port() == local.port() && (same || at.ip().is_unspecified())
        };
        let exact = self.all.iter().find(|(at, _)| *at == local);
        exact.or_else(|| self.all.iter().find(|(at, _)| is(at))).map(|(_, entrance)| entrance)
    }

    /// The word of the metric, where there is no client to serve.
    async fn pass(
        &self,
        entrance: &Entrance,
        mut stream: Stream,
        place: &mut Place,
        address: Option<IpAddr>,
        local: Option<IpAddr>,
    ) -> Result<Arrival, &'static str> {
        let peer = if entrance.proxy_protocol {
            if !address.is_some_and(|address| self.trusted.contain(address)) {
                return Err("untrusted_proxy");
            }
            let said = proxy_protocol::read(&mut stream).await;
            let said = said.map_err(|error| failed("proxy_header", address, &error))?;
            match said {
                Some(client) => Peer::new(Some(client), &self.trusted),
                // A proxy of connections adds nothing to requests: what is in them is no word of
                // its own.
                None => Peer::untrusted(address),
            }
        } else {
            Peer::new(address, &self.trusted)
        };
        // Before the handshake, which costs more than all else here.
        if !has_room(place, &peer) {
            return Err("client_full");
        }
        let Some(tls) = &entrance.tls else {
            return Ok(Arrival { stream, peer, told: None, early: None });
        };
        let hello = |name: &str| self.unseen.as_ref()?.wake(name, &peer);
        let shaken = tls.shake(stream, local, self.acme.as_deref(), hello).await;
        let (stream, told, early) = shaken.map_err(|end| match end {
            tls::End::UnknownName => "unknown_name",
            tls::End::Challenge => "challenge",
            tls::End::Failed(error) => failed("failed", address, &error),
        })?;
        let early = early.flatten();
        let early = early.or_else(|| self.unseen.as_ref()?.wake_shaken(&told, &peer));
        Ok(Arrival { stream, told: Some(told), early, peer })
    }
}

/// Whether the peer may have one more connection. One that is trusted brings many clients.
fn has_room(place: &mut Place, peer: &Peer) -> bool {
    let client = peer.address.filter(|_| !peer.is_trusted()).map(Origin::from);
    client.is_none_or(|client| place.is_for(client))
}

/// The word of the metric. Who leaves without a word, as a health check does, has not failed.
fn failed(what: &'static str, peer: Option<IpAddr>, error: &io::Error) -> &'static str {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        return "left";
    }
    tracing::debug!(?peer, %error, what, "no client came of a connection");
    what
}
