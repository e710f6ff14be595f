//! What runs beside the edge, each in a runtime of Pingora's.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
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
    admin::{Admin, Listener},
    config::AdminAddress,
    fleet::Fleet,
};

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
    pub(super) addresses: Vec<SocketAddr>,
    pub(super) ready: Arc<AtomicBool>,
}

#[async_trait]
impl BackgroundService for Readiness {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let listening = async {
            for address in &self.addresses {
                while TcpStream::connect(reachable(*address)).await.is_err() {
                    sleep(Duration::from_millis(1)).await;
                }
            }
        };
        tokio::select! {
            () = listening => {
                self.ready.store(true, Ordering::Release);
                tracing::info!(http = ?self.addresses, "ready");
            }
            _ = shutdown.changed() => {}
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

/// Reads the routes again at SIGHUP.
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
            tracing::info!("SIGHUP: reading the routes again");
            let reloader = Arc::clone(&self.0);
            // What is wrong is logged where it is found.
            let _ = tokio::task::spawn_blocking(move || reloader.reload()).await;
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
                    ready.store(false, Ordering::Release);
                };
                listener.serve(self.admin.clone().router(), ended).await;
            }
            Err(error) => tracing::error!(%error, "there is no admin API (listen.admin)"),
        }
    }
}
