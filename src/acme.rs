//! Certificates that come by themselves (ACME, RFC 8555): an order for every name that the operator
//! lists, and on demand for hosts that a route matches; again before they end.
//!
//! It fills a folder that [`Certs`] reads, and never takes from it what still counts. It must not
//! know requests, sessions or handshakes: it is asked for a file, or for a host's certificate.

mod challenges;
mod dns;
mod issue;
mod plan;
mod store;
mod wire;

use std::{
    fmt,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use futures::{StreamExt, stream::FuturesUnordered};
use humantime_serde::re::humantime::{format_duration, format_rfc3339_seconds};
use serde::Serialize;
use tokio::{
    sync::{Notify, Semaphore, watch},
    time::{sleep, timeout},
};

use crate::{certs::Certs, config, metrics::METRICS};
use challenges::Challenges;
use dns::Dns;
use issue::Issuer;
use plan::{Asked, Entry, Phase, Plan, WantedBy};
use store::{Store, Validity};
use wire::Wire;

/// Orders under way at once.
const ORDERS_AT_ONCE: usize = 4;
/// Handshakes that wait for a certificate at once; one more is refused.
const WAITERS_MAX: usize = 200;
/// How long such a handshake waits.
const WAIT_MAX: Duration = Duration::from_secs(20);
/// The wall clock may be set: what is due is looked at this often.
const LOOK_AGAIN: Duration = Duration::from_secs(60 * 60);
/// A certificate that nobody wants stays for a while after its end.
const UNWANTED_FOR: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Says whether a route matches a host.
pub type Routed = Box<dyn Fn(&str) -> bool + Send + Sync>;

/// Everything about ACME, for as long as the process lives.
pub struct Acme {
    config: config::Acme,
    store: Arc<Store>,
    certs: Arc<Certs>,
    challenges: Arc<Challenges>,
    issuer: Issuer,
    routed: Routed,
    plan: Mutex<Plan>,
    /// There may be something to order.
    asked: Notify,
    /// Counts the orders that came to an end.
    ended: watch::Sender<u64>,
    /// Whether the state folder is ours: two processes must not order the same.
    may_order: watch::Sender<bool>,
    waiters: Semaphore,
}

/// Why there is no ACME.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The folder.
    #[error("cannot use the folder acme/ of the state folder: {0}")]
    Disk(#[from] std::io::Error),
    /// Nobody is trusted.
    #[error(transparent)]
    NoTrust(#[from] wire::NoTrust),
    /// Nobody can set TXT records.
    #[error(transparent)]
    Dns(#[from] dns::Unusable),
}

/// A name, as the admin API shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NameView {
    /// The host, or the wildcard.
    pub name: String,
    /// `operator` (`acme.hosts`) or `clients` (`acme.on_demand`).
    pub wanted_by: &'static str,
    /// `valid`, `missing` or `expired`: what is served for it now.
    pub certificate: &'static str,
    /// When the certificate ends.
    pub not_after: Option<String>,
    /// `resting`, `ordered` or `failed`.
    pub phase: &'static str,
    /// When it is ordered next; once it has failed for a client, when it may be asked for again.
    pub next_order: String,
    /// Failures since the last success.
    pub failures: u32,
    /// The last of them.
    pub error: Option<String>,
}

/// Whether the files that `[acme]` names can be used. Asks nobody, and writes nothing.
pub fn check(config: &config::Acme) -> Result<(), Error> {
    config.dns.as_ref().map(Dns::new).transpose()?;
    Wire::new(config.ca_file.as_deref())?;
    Ok(())
}

impl Acme {
    /// Makes its folder in the `state` folder, if it is not there; orders nothing before [`Acme::run`].
    pub fn open(
        config: config::Acme,
        state: &Path,
        certs: Arc<Certs>,
        routed: Routed,
    ) -> Result<Arc<Self>, Error> {
        let store = Arc::new(Store::open(&config.folder(state))?);
        let challenges = Challenges::new(Arc::clone(&certs));
        let dns = config.dns.as_ref().map(Dns::new).transpose()?;
        let wire = Wire::new(config.ca_file.as_deref())?;
        let (stored, shown) = (Arc::clone(&store), Arc::clone(&challenges));
        let issuer = Issuer::new(config.clone(), stored, shown, dns, wire);
        let plan = Plan::new(config.retry, config.on_demand, SystemTime::now());
        Ok(Arc::new(Self {
            config,
            store,
            certs,
            challenges,
            issuer,
            routed,
            plan: Mutex::new(plan),
            asked: Notify::new(),
            ended: watch::Sender::new(0),
            may_order: watch::Sender::new(false),
            waiters: Semaphore::new(WAITERS_MAX),
        }))
    }

    /// What http-01 finds at this path. `None`: the path is not its own. `Some(None)`: nothing, and
    /// nobody else is to be asked.
    pub fn file(&self, path: &str) -> Option<Option<String>> {
        self.challenges.file(path)
    }

    /// A client wants this canonical host, which may have no certificate yet: if a route matches
    /// it, and all limits allow, one is ordered. Waits for nothing.
    pub fn want(&self, host: &str) {
        if self.config.on_demand.is_some() && self.certs.resolve(host).is_none() {
            self.ask(host);
        }
    }

    /// As [`Acme::want`], and waits until there is one, or will be none for now. Whether there is.
    pub async fn obtain(&self, host: &str) -> bool {
        if self.config.on_demand.is_none() {
            return false;
        }
        let mut ended = self.ended.subscribe();
        let Ok(_place) = self.waiters.try_acquire() else { return false };
        if !self.ask(host) {
            return false;
        }
        let settled = async {
            while self.plan().get(host).is_some_and(Entry::is_awaited) {
                if ended.changed().await.is_err() {
                    return;
                }
            }
        };
        // Too late is the same as in vain: the client comes again.
        let _ = timeout(WAIT_MAX, settled).await;
        self.certs.resolve(host).is_some()
    }

    /// Whether a certificate is there or on its way.
    fn ask(&self, host: &str) -> bool {
        if !config::acme::is_name(host) || !(self.routed)(host) {
            return false;
        }
        let asked = self.plan().ask(host, SystemTime::now());
        match asked {
            Asked::New => {
                tracing::info!(host, "a certificate is ordered on demand");
                self.asked.notify_one();
            }
            Asked::Known => {}
            Asked::Refused(why) => {
                METRICS.acme_refused.with_label_values(&[why.as_str()]).inc();
                tracing::debug!(host, why = why.as_str(), "no certificate is ordered");
            }
        }
        !matches!(asked, Asked::Refused(_))
    }

    /// Whether this process may order: it has the state folder, and does not end.
    pub fn set_may_order(&self, may_order: bool) {
        self.may_order.send_replace(may_order);
    }

    /// Orders whatever is due, for as long as it may, until it is dropped. What is under way then
    /// is on the disk, and goes on with the next process.
    pub async fn run(&self) {
        let mut may_order = self.may_order.subscribe();
        loop {
            if may_order.wait_for(|may| *may).await.is_err() {
                return;
            }
            self.look_around();
            tokio::select! {
                () = self.order_what_is_due() => {}
                _ = may_order.wait_for(|may| !*may) => self.break_off(),
            }
        }
    }

    /// Takes in every name that is wanted, and what is on the disk for it.
    fn look_around(&self) {
        let now = SystemTime::now();
        let mut plan = self.plan();
        for name in &self.config.hosts {
            plan.add(name, WantedBy::Operator, self.store.certificate(name), now, chance());
        }
        for name in told(self.store.certified()) {
            let validity = self.store.certificate(&name);
            if self.is_wanted(&name) {
                plan.add(&name, WantedBy::Clients, validity, now, chance());
            } else if validity.is_none_or(|validity| validity.until + UNWANTED_FOR < now) {
                tracing::info!(name, "nobody wants this certificate, and it is over: removed");
                told(self.store.forget_certificate(&name));
            }
        }
        for name in told(self.store.ordered()) {
            if self.is_wanted(&name) {
                plan.add(&name, WantedBy::Clients, None, now, chance());
            } else {
                told(self.store.forget_order(&name));
            }
        }
        drop(plan);
        self.count();
    }

    fn is_wanted(&self, name: &str) -> bool {
        self.config.hosts.iter().any(|host| host == name)
            || self.config.on_demand.is_some() && (self.routed)(name)
    }

    async fn order_what_is_due(&self) {
        let mut orders = FuturesUnordered::new();
        loop {
            while orders.len() < ORDERS_AT_ONCE
                && let Some(name) = self.next()
            {
                orders.push(self.order(name));
            }
            let wait = self.plan().next_due().map_or(LOOK_AGAIN, |due| {
                due.duration_since(SystemTime::now()).unwrap_or_default().min(LOOK_AGAIN)
            });
            // While all places are taken, what is due waits for one of them.
            let is_full = orders.len() == ORDERS_AT_ONCE;
            tokio::select! {
                Some(()) = orders.next() => {}
                () = self.asked.notified() => {}
                () = sleep(wait), if !is_full => {}
            }
        }
    }

    /// The next name that is due and still wanted.
    fn next(&self) -> Option<String> {
        loop {
            let name = self.plan().take_due(SystemTime::now())?;
            if self.is_wanted(&name) {
                return Some(name);
            }
            self.plan().forget(&name);
        }
    }

    async fn order(&self, name: String) {
        tracing::info!(name, "a certificate is ordered");
        match self.issuer.issue(&name).await {
            Ok(validity) => self.issued(&name, validity).await,
            Err(error) => self.not_issued(&name, &error),
        }
        self.count();
        self.ended.send_modify(|ended| *ended += 1);
    }

    async fn issued(&self, name: &str, validity: Validity) {
        let certs = Arc::clone(&self.certs);
        // What is wrong with a file is logged where it is found.
        let _ = tokio::task::spawn_blocking(move || certs.reload()).await;
        METRICS.acme_orders.with_label_values(&["issued"]).inc();
        self.plan().succeeded(name, validity, chance());
        let until = format_rfc3339_seconds(validity.until).to_string();
        tracing::info!(name, until, "a certificate was issued");
    }

    fn not_issued(&self, name: &str, error: &issue::Error) {
        METRICS.acme_orders.with_label_values(&["failed"]).inc();
        let (now, calm) = (SystemTime::now(), self.issuer.wire().calm_until());
        let mut plan = self.plan();
        let due = plan.failed(name, error.to_string(), now, calm, chance());
        let is_served = plan.get(name).is_some_and(|entry| entry.is_served(now));
        drop(plan);
        let wait = due.and_then(|due| due.duration_since(now).ok()).unwrap_or_default();
        let wait = format_duration(Duration::from_secs(wait.as_secs())).to_string();
        if is_served {
            tracing::warn!(name, %error, wait, "no new certificate: the one before stays");
        } else {
            tracing::error!(name, %error, wait, "no certificate");
        }
    }

    fn break_off(&self) {
        let now = SystemTime::now();
        let mut plan = self.plan();
        let ordered = plan.iter().filter(|(_, entry)| entry.phase == Phase::Ordered);
        let ordered: Vec<_> = ordered.map(|(name, _)| name.clone()).collect();
        for name in &ordered {
            plan.broken_off(name, now);
        }
    }

    fn count(&self) {
        let failing = self.plan().iter().filter(|(_, entry)| 0 < entry.failures).count();
        METRICS.acme_failing.set(failing.try_into().unwrap_or(i64::MAX));
    }

    /// Every name, in the order of the alphabet.
    pub fn names(&self) -> Vec<NameView> {
        let now = SystemTime::now();
        self.plan().iter().map(|(name, entry)| entry.view(name, now)).collect()
    }

    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    /// Whether a first certificate is on its way.
    fn is_awaited(&self) -> bool {
        self.validity.is_none() && self.phase != Phase::Failed && self.failures == 0
    }

    fn is_served(&self, now: SystemTime) -> bool {
        self.validity.is_some_and(|validity| now < validity.until)
    }

    fn view(&self, name: &str, now: SystemTime) -> NameView {
        NameView {
            name: name.to_owned(),
            wanted_by: match self.wanted_by {
                WantedBy::Operator => "operator",
                WantedBy::Clients => "clients",
            },
            certificate: match self.validity {
                None => "missing",
                Some(_) if self.is_served(now) => "valid",
                Some(_) => "expired",
            },
            not_after: self.validity.map(|is| format_rfc3339_seconds(is.until).to_string()),
            phase: match self.phase {
                Phase::Rests => "resting",
                Phase::Ordered => "ordered",
                Phase::Failed => "failed",
            },
            next_order: format_rfc3339_seconds(self.due).to_string(),
            failures: self.failures,
            error: self.error.clone(),
        }
    }
}

impl fmt::Debug for Acme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acme").field("directory", &self.config.directory).finish_non_exhaustive()
    }
}

/// A number from 0 to 1: so that not all edges, and not all names, come at once.
fn chance() -> f64 {
    let byte = uuid::Uuid::new_v4().as_bytes()[0];
    f64::from(byte) / f64::from(u8::MAX)
}

/// What was read; what cannot be is said, and as if it were not there.
fn told<T: Default>(result: std::io::Result<T>) -> T {
    result.unwrap_or_else(|error| {
        tracing::error!(%error, "the folder acme/ of the state folder");
        T::default()
    })
}
