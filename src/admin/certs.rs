//! The certificates, as they are served. Never a key.

use std::{sync::Arc, time::UNIX_EPOCH};

use axum::{Json, extract::State};
use serde::Serialize;

use super::Shared;
use crate::{certs::Pair, route::RouteError};

#[derive(Serialize)]
pub(super) struct CertsAnswer {
    certificates: Vec<CertView>,
    errors: Vec<RouteError>,
}

#[derive(Serialize)]
struct CertView {
    file: String,
    names: Vec<String>,
    /// In seconds since 1970.
    not_after: u64,
    days_left: i64,
    /// Whether others than its owner can read its key.
    key_exposed: bool,
}

impl CertView {
    fn of(pair: &Pair) -> Self {
        Self {
            file: pair.file.display().to_string(),
            names: pair.names.iter().map(ToString::to_string).collect(),
            not_after: pair.not_after.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
            days_left: pair.days_left(),
            key_exposed: pair.exposed.is_some(),
        }
    }
}

pub(super) async fn list(State(shared): State<Arc<Shared>>) -> Json<CertsAnswer> {
    let certs = &shared.admin.certs;
    let certificates = certs.pairs().iter().map(|pair| CertView::of(pair)).collect();
    Json(CertsAnswer { certificates, errors: certs.errors() })
}
