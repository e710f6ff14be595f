//! A changed route folder becomes the live table, as a whole or not at all.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;

use crate::{
    access::{Door, check_files},
    admin::ReloadReport,
    config::Config,
    fleet::Fleet,
    metrics::METRICS,
    route::{RouteError, RouteTable, load_dir},
};

/// Reads the folder again, for whoever asks: the watch, SIGHUP, the admin API.
pub(super) struct Reloader {
    config: Arc<Config>,
    table: Arc<ArcSwap<RouteTable>>,
    fleet: Arc<Fleet>,
    door: Arc<Door>,
    /// What is wrong with the files as they were last read.
    pub(super) errors: Arc<ArcSwap<Vec<RouteError>>>,
    one_at_a_time: Mutex<()>,
}

impl Reloader {
    pub(super) fn new(
        config: Arc<Config>,
        table: Arc<ArcSwap<RouteTable>>,
        fleet: Arc<Fleet>,
        door: Arc<Door>,
    ) -> Arc<Self> {
        count(&table.load(), &[]);
        let (errors, one_at_a_time) = (Arc::default(), Mutex::new(()));
        Arc::new(Self { config, table, fleet, door, errors, one_at_a_time })
    }

    /// Blocks for as long as the files take to read.
    pub(super) fn reload(&self) -> Result<ReloadReport, Vec<RouteError>> {
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
        let changes = report.added.len() + report.changed.len() + report.removed.len();
        if 0 < changes {
            self.door.keep(&new);
            self.table.store(Arc::new(new));
            self.fleet.replan();
            let ReloadReport { routes, added, changed, removed } = &report;
            tracing::info!(routes, ?added, ?changed, ?removed, "routes reloaded");
        }
        report
    }
}

fn count(table: &RouteTable, errors: &[RouteError]) {
    METRICS.routes.set(table.len().try_into().unwrap_or(i64::MAX));
    METRICS.route_errors.set(errors.len().try_into().unwrap_or(i64::MAX));
}
