//! A changed route folder becomes the live table, as a whole or not at all.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;

use crate::{
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
    one_at_a_time: Mutex<()>,
}

/// What a reload changed: routes by number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct ReloadReport {
    /// Live now.
    pub routes: usize,
    /// New.
    pub added: usize,
    /// There before, and different now.
    pub changed: usize,
    /// There before, and gone.
    pub removed: usize,
}

impl Reloader {
    pub(super) fn new(
        config: Arc<Config>,
        table: Arc<ArcSwap<RouteTable>>,
        fleet: Arc<Fleet>,
    ) -> Arc<Self> {
        Arc::new(Self { config, table, fleet, one_at_a_time: Mutex::new(()) })
    }

    /// Blocks for as long as the files take to read.
    pub(super) fn reload(&self) -> Result<ReloadReport, Vec<RouteError>> {
        let _one = self.one_at_a_time.lock().unwrap_or_else(PoisonError::into_inner);
        match load_dir(&self.config.paths.routes, &self.config.engine_kinds()) {
            Ok(new) => Ok(self.swap(new)),
            Err(errors) => {
                METRICS.reloads.with_label_values(&["failed"]).inc();
                METRICS.route_errors.set(errors.len().try_into().unwrap_or(i64::MAX));
                for error in &errors {
                    tracing::error!(%error, "the routes stay as they were");
                }
                Err(errors)
            }
        }
    }

    fn swap(&self, new: RouteTable) -> ReloadReport {
        let old = self.table.load_full();
        let report = difference(&old, &new);
        METRICS.reloads.with_label_values(&["ok"]).inc();
        METRICS.route_errors.set(0);
        METRICS.routes.set(report.routes.try_into().unwrap_or(i64::MAX));
        if report == (ReloadReport { routes: report.routes, ..ReloadReport::default() }) {
            tracing::debug!(routes = report.routes, "routes read again, nothing changed");
            return report;
        }
        self.table.store(Arc::new(new));
        self.fleet.replan();
        let ReloadReport { routes, added, changed, removed } = report;
        tracing::info!(routes, added, changed, removed, "routes reloaded");
        report
    }
}

fn difference(old: &RouteTable, new: &RouteTable) -> ReloadReport {
    let mut report = ReloadReport::default();
    for route in new.iter() {
        report.routes += 1;
        match old.get(&route.name) {
            None => report.added += 1,
            Some(before) => report.changed += usize::from(before != route),
        }
    }
    report.removed = old.iter().filter(|route| new.get(&route.name).is_none()).count();
    report
}
