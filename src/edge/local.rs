//! What the edge answers by itself, before access and before any session: it wakes nobody, and is
//! no activity of anybody.
//!
//! Each step has its place in the order and a label of its own in `dormouse_local_answers_total`.

use pingora::{Result, proxy::Session as Downstream};

use super::{respond, target::Target};
use crate::metrics::METRICS;

/// Whether the request was answered. The steps, in their order; the first that knows an answer
/// gives it:
///
/// 1. `static`: the route's own answers.
pub(super) async fn answer(downstream: &mut Downstream, target: &Target, id: &str) -> Result<bool> {
    let path = downstream.req_header().uri.path();
    if let Some(answer) = target.route.static_answer(path) {
        count("static");
        respond::send_static(downstream, answer, id).await?;
        return Ok(true);
    }
    Ok(false)
}

/// `step` is from the list above, never from a client.
fn count(step: &'static str) {
    METRICS.local_answers.with_label_values(&[step]).inc();
}
