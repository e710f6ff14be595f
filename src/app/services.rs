//! What runs beside the edge, each in a runtime of Pingora's.

use std::{
    io,
    net::SocketAddr,
    os::fd::{IntoRawFd as _, OwnedFd},
    path::PathBuf,
    pin::pin,
    process,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{self, AtomicBool},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures::poll;
use pingora::{
    server::{ListenFds, ShutdownWatch},
    services::{
        self as service, ServiceReadyNotifier, ServiceWithDependents,
        background::BackgroundService, listening::Service,
    },
};
use tokio::{signal::unix::SignalKind, sync::watch, time::sleep};

use super::{handover::Handover, reload::Reloader, signals, sockets::BACKLOG};
use crate::{
    access::Door,
    acme::Acme,
    admin::{Admin, Listener},
    certs::Certs,
    config::AdminAddress,
    edge,
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

/// The edge on sockets that are bound: Pingora binds for itself otherwise, and panics where it
/// cannot.
pub(super) struct Accepting {
    pub(super) edge: Service<edge::Listener>,
    pub(super) sockets: Vec<(SocketAddr, OwnedFd)>,
    /// Becomes true once connections are taken.
    pub(super) accepts: watch::Sender<bool>,
}

#[async_trait]
impl ServiceWithDependents for Accepting {
    async fn start_service(
        &mut self,
        sockets: Option<ListenFds>,
        shutdown: ShutdownWatch,
        tasks_per_socket: usize,
        _: ServiceReadyNotifier,
    ) {
        for (address, socket) in self.sockets.drain(..) {
            // Bound by two at once, an address is the first one's that listens.
            if let Err(error) = rustix::net::listen(&socket, BACKLOG) {
                tracing::error!(%address, %error, "cannot listen");
                process::exit(1);
            }
            let known = sockets.as_ref().expect("Pingora gives it on unix");
            known.lock().add(address.to_string(), socket.into_raw_fd());
        }
        let serve =
            service::Service::start_service(&mut self.edge, sockets, shutdown, tasks_per_socket);
        let mut serve = pin!(serve);
        // The tasks that accept are there after the first step, which panics where they cannot be.
        if poll!(&mut serve).is_pending() {
            self.accepts.send_replace(true);
            serve.await;
        }
    }

    fn name(&self) -> &str {
        service::Service::name(&self.edge)
    }
}

/// Says that the edge is ready once it takes connections; tells so the process before, and lets a
/// next one wait.
pub(super) struct Readiness {
    pub(super) http: Vec<SocketAddr>,
    pub(super) https: Vec<SocketAddr>,
    pub(super) accepts: watch::Receiver<bool>,
    pub(super) ready: Arc<AtomicBool>,
    pub(super) handover: Arc<Handover>,
    pub(super) state: PathBuf,
    /// The listening sockets, for the next process.
    pub(super) sockets: Mutex<Vec<(String, OwnedFd)>>,
}

#[async_trait]
impl BackgroundService for Readiness {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let sockets =
            std::mem::take(&mut *self.sockets.lock().unwrap_or_else(PoisonError::into_inner));
        let serve = async {
            if !does_accept(&self.accepts).await {
                return;
            }
            self.ready.store(true, atomic::Ordering::Release);
            tracing::info!(http = ?self.http, https = ?self.https, "ready");
            self.handover.serve(&self.state, sockets).await;
        };
        tokio::select! {
            () = serve => {}
            _ = shutdown.changed() => {}
        }
    }
}

/// Whether the edge accepts at last; not where it has failed to.
async fn does_accept(accepts: &watch::Receiver<bool>) -> bool {
    accepts.clone().wait_for(|accepts| *accepts).await.is_ok()
}

/// Orders certificates, once the edge can answer the ACME server's questions.
pub(super) struct Ordering {
    pub(super) acme: Arc<Acme>,
    pub(super) accepts: watch::Receiver<bool>,
}

#[async_trait]
impl BackgroundService for Ordering {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let orders = async {
            if does_accept(&self.accepts).await {
                self.acme.run().await;
            }
        };
        tokio::select! {
            () = orders => {}
            _ = shutdown.changed() => {}
        }
    }
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
            // What is not watched, too: folders of one certificate each.
            let certs = Arc::clone(&self.0);
            let _ = tokio::task::spawn_blocking(move || certs.reload()).await;
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
    pub(super) socket: Mutex<Option<OwnedFd>>,
    pub(super) handover: Arc<Handover>,
    pub(super) accepts: watch::Receiver<bool>,
}

impl Administration {
    fn listener(&self) -> io::Result<Listener> {
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner).take();
        let socket = socket.ok_or(io::ErrorKind::NotConnected)?;
        rustix::net::listen(&socket, BACKLOG)?;
        match &self.address {
            AdminAddress::Tcp(_) => Listener::tcp(socket),
            AdminAddress::Unix(path) => {
                Listener::unix(socket, path.clone(), self.handover.admin_file_stays())
            }
        }
    }
}

#[async_trait]
impl BackgroundService for Administration {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        // The process before answers until then: what asks `/readyz` is to hear of one that serves.
        if self.handover.has_process_before() && !does_accept(&self.accepts).await {
            return;
        }
        match self.listener() {
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
