//! A changed route folder becomes the live table, as a whole or not at all; certificates come into
//! force file by file.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;

use crate::{
    access::{Door, check_files},
    admin::ReloadReport,
    certs::Certs,
    config::Config,
    fleet::Fleet,
    metrics::METRICS,
    record::AccessLog,
    route::{RouteError, RouteTable, load_dir},
};

/// More would not be read by anybody.
const NOTES_MAX: usize = 50;

/// Reads the folders again, for whoever asks: the watches, SIGHUP, the admin API.
pub(super) struct Reloader {
    config: Arc<Config>,
    table: Arc<ArcSwap<RouteTable>>,
    fleet: Arc<Fleet>,
    door: Arc<Door>,
    pub(super) certs: Arc<Certs>,
    /// What is wrong with the files as they were last read.
    pub(super) errors: Arc<ArcSwap<Vec<RouteError>>>,
    access_log: Option<Arc<AccessLog>>,
    one_at_a_time: Mutex<()>,
}

impl Reloader {
    pub(super) fn new(
        config: &Arc<Config>,
        table: &Arc<ArcSwap<RouteTable>>,
        fleet: &Arc<Fleet>,
        door: &Arc<Door>,
        certs: &Arc<Certs>,
        access_log: Option<Arc<AccessLog>>,
        errors: Vec<RouteError>,
    ) -> Arc<Self> {
        count(&table.load(), &errors);
        let (errors, one_at_a_time) = (Arc::new(ArcSwap::from_pointee(errors)), Mutex::new(()));
        let (config, table) = (Arc::clone(config), Arc::clone(table));
        let (fleet, door, certs) = (Arc::clone(fleet), Arc::clone(door), Arc::clone(certs));
        Arc::new(Self { config, table, fleet, door, certs, errors, access_log, one_at_a_time })
    }

    /// SIGHUP: all files, and the access log, which may have been moved away.
    pub(super) fn hangup(&self) {
        if let Some(log) = &self.access_log {
            log.reopen();
        }
        // What is wrong is logged where it is found.
        let _ = self.reload();
    }

    /// Blocks for as long as the files take to read.
    pub(super) fn reload(&self) -> Result<ReloadReport, Vec<RouteError>> {
        let waiting = self.waiting_keys()?;
        let certificate_errors = self.reload_certs();
        let report = self.reload_routes()?;
        let certificates = self.certs.pairs().len();
        Ok(ReloadReport { certificates, certificate_errors, waiting, ..report })
    }

    /// The keys of `dormouse.toml` that were edited since the start.
    fn waiting_keys(&self) -> Result<Vec<String>, Vec<RouteError>> {
        let now = self.config.reread().inspect_err(|errors| {
            for error in errors {
                tracing::error!(%error, "nothing is reloaded");
            }
        })?;
        let keys = self.config.different_keys(&now);
        if !keys.is_empty() {
            tracing::warn!(
                keys = keys.join(", "),
                "these keys of dormouse.toml wait for a restart"
            );
        }
        Ok(keys)
    }

    /// What is wrong is logged where it is found.
    pub(super) fn reload_certs(&self) -> Vec<RouteError> {
        self.certs.reload()
    }

    pub(super) fn reload_routes(&self) -> Result<ReloadReport, Vec<RouteError>> {
        let _one = self.one_at_a_time.lock().unwrap_or_else(PoisonError::into_inner);
        let read = load_dir(&self.config.paths.routes, &self.config.engine_kinds());
        let result = read.and_then(|new| match check_files(&new) {
            errors if errors.is_empty() => Ok(self.swap(new)),
            errors => Err(errors),
        });
        let errors = result.as_ref().err().cloned().unwrap_or_default();
        count(&self.table.load(), &errors);
        METRICS.reloads.with_label_values(&[if errors.is_empty() { "ok" } else { "failed" }]).inc();
        if *self.errors.swap(Arc::new(errors.clone())) != errors {
            for error in &errors {
                tracing::error!(%error, "the routes stay as they were");
            }
        }
        result
    }

    fn swap(&self, new: RouteTable) -> ReloadReport {
        let report = ReloadReport::between(&self.table.load(), &new);
        self.fleet.set_routed(new.iter().map(|route| &*route.recipe.engine));
        let was_partial = self.table.load().is_partial();
        let changes = report.added.len() + report.changed.len() + report.removed.len();
        if 0 < changes || was_partial {
            self.door.keep(&new);
            tell_notes(&new);
            self.table.store(Arc::new(new));
            self.fleet.replan();
            let ReloadReport { routes, added, changed, removed, .. } = &report;
            tracing::info!(routes, ?added, ?changed, ?removed, "routes reloaded");
        }
        self.fleet.set_knows_all_routes(true);
        report
    }
}

/// What routes say and their engines do otherwise.
pub(super) fn tell_notes(table: &RouteTable) {
    for note in table.iter().flat_map(|route| route.notes.iter()).take(NOTES_MAX) {
        tracing::info!("{note}");
    }
}

fn count(table: &RouteTable, errors: &[RouteError]) {
    METRICS.routes.set(table.len().try_into().unwrap_or(i64::MAX));
    METRICS.route_errors.set(errors.len().try_into().unwrap_or(i64::MAX));
}
