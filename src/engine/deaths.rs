//! What the watchers of an engine's own instances tell, as its events.

use futures::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use tokio::sync::broadcast::{Sender, error::RecvError};

use super::EngineEvent;
use crate::session::SessionId;

/// Who is too slow for it is told to list everything.
pub(super) fn told(deaths: &Sender<SessionId>) -> BoxStream<'static, EngineEvent> {
    let deaths = deaths.subscribe();
    stream::unfold(deaths, |mut deaths| async {
        match deaths.recv().await {
            Ok(session) => Some((EngineEvent::Changed(session), deaths)),
            Err(RecvError::Lagged(_)) => Some((EngineEvent::Resync, deaths)),
            Err(RecvError::Closed) => None,
        }
    })
    .boxed()
}
