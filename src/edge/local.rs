//! What a route answers by itself, before access and before any session: it wakes nobody, and is no
//! activity of anybody. ACME's questions and the redirect to HTTPS come before (`edge`).

use pingora::{Result, proxy::Session as Downstream};

use super::{respond, target::Target};
use crate::metrics::METRICS;

/// Whether the request was answered.
pub(super) async fn answer(downstream: &mut Downstream, target: &Target, id: &str) -> Result<bool> {
    let path = downstream.req_header().uri.path();
    let Some(answer) = target.route.static_answer(path) else { return Ok(false) };
    METRICS.local_answers.with_label_values(&["static"]).inc();
    respond::send_static(downstream, answer, target, id).await?;
    Ok(true)
}
