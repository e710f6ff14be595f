//! What runs beside the edge, each in a runtime of Pingora's.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{self, AtomicBool},
    },
    time::Duration,
};

use async_trait::async_trait;
use pingora::{
    server::ShutdownWatch,
    services::{ServiceReadyNotifier, background::BackgroundService},
};
use tokio::{net::TcpStream, signal::unix::SignalKind, time::sleep};

use super::{reload::Reloader, signals};
use crate::{
    access::Door,
    acme::Acme,
    admin::{Admin, Listener},
    certs::Certs,
    config::AdminAddress,
    fleet::Fleet,
};

const HOUR: Duration = Duration::from_secs(60 * 60);

/// Adopts what runs, lets the edge begin, and keeps the fleet's clock.
pub(super) struct Fleeting(pub(super) Arc<Fleet>);

#[async_trait]
impl BackgroundService for Fleeting {
    async fn start_with_ready_notifier(&self, _: ShutdownWatch, adopted: ServiceReadyNotifier) {
        Arc::clone(&self.0).run(|| adopted.notify_ready()).await;
    }
}

/// Says that the edge is ready once it takes connections: Pingora tells nobody when it listens.
pub(super) struct Readiness {
    pub(super) http: Vec<SocketAddr>,
    pub(super) https: Vec<SocketAddr>,
    pub(super) ready: Arc<AtomicBool>,
}

#[async_trait]
impl BackgroundService for Readiness {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        tokio::select! {
            () = listening(self.http.iter().chain(&self.https)) => {
                self.ready.store(true, atomic::Ordering::Release);
                tracing::info!(http = ?self.http, https = ?self.https, "ready");
            }
            _ = shutdown.changed() => {}
        }
    }
}

/// Orders certificates, once the edge can answer the ACME server's questions.
pub(super) struct Ordering {
    pub(super) acme: Arc<Acme>,
    pub(super) addresses: Vec<SocketAddr>,
}

#[async_trait]
impl BackgroundService for Ordering {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let orders = async {
            listening(self.addresses.iter()).await;
            self.acme.run().await;
        };
        tokio::select! {
            () = orders => {}
            _ = shutdown.changed() => {}
        }
    }
}

/// Returns when there is a listener at every address.
async fn listening(addresses: impl Iterator<Item = &SocketAddr>) {
    for address in addresses {
        while TcpStream::connect(reachable(*address)).await.is_err() {
            sleep(Duration::from_millis(1)).await;
        }
    }
}

/// Where a listener of every address is found.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}

/// Looks again at what access rests on.
pub(super) struct Doorkeeper(pub(super) Arc<Door>);

#[async_trait]
impl BackgroundService for Doorkeeper {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        tokio::select! {
            () = self.0.run() => {}
            _ = shutdown.changed() => {}
        }
    }
}

/// Says once a day which certificates end soon, and keeps the metric that counts their days.
pub(super) struct Expiry(pub(super) Arc<Certs>);

#[async_trait]
impl BackgroundService for Expiry {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        // What ends soon is told when it is read, and then once a day.
        for hour in 1_u64.. {
            tokio::select! {
                () = sleep(HOUR) => {}
                _ = shutdown.changed() => return,
            }
            self.0.count();
            if hour % 24 == 0 {
                self.0.tell_expiring();
            }
        }
    }
}

/// Reads routes and certificates again at SIGHUP.
pub(super) struct Hangups(pub(super) Arc<Reloader>);

#[async_trait]
impl BackgroundService for Hangups {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let mut hangup = signals::listen(SignalKind::hangup());
        loop {
            tokio::select! {
                () = signals::next(&mut hangup) => {}
                _ = shutdown.changed() => return,
            }
            tracing::info!("SIGHUP: reading routes and certificates again");
            let reloader = Arc::clone(&self.0);
            let _ = tokio::task::spawn_blocking(move || reloader.hangup()).await;
        }
    }
}

/// Serves the admin API until the shutdown begins.
pub(super) struct Administration {
    pub(super) admin: Admin,
    pub(super) address: AdminAddress,
}

#[async_trait]
impl BackgroundService for Administration {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let listener = match &self.address {
            AdminAddress::Tcp(address) => Listener::tcp(*address).await,
            AdminAddress::Unix(path) => Listener::unix(path).await,
        };
        match listener {
            Ok(listener) => {
                let ready = Arc::clone(&self.admin.ready);
                let ended = async move {
                    let _ = shutdown.wait_for(|ending| *ending).await;
                    ready.store(false, atomic::Ordering::Release);
                };
                listener.serve(self.admin.clone().router(), ended).await;
            }
            Err(error) => tracing::error!(%error, "there is no admin API (listen.admin)"),
        }
    }
}
