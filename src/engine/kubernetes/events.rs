//! What happens to Pods, as the API server tells it: which session to look at again.
//!
//! Ends never, whatever the server does. The watch is `kube`'s: it goes on where it was after a
//! lost connection, lists anew where that place in history is gone (410), and each list is a
//! `Resync`.

use std::{sync::Arc, time::Duration};

use futures::{
    StreamExt,
    stream::{self, BoxStream},
};
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::watcher::{self, Event, watcher};
use tokio::time::sleep;

use super::{
    client::{Client, unwatched},
    found::Found,
    template,
};
use crate::engine::{EngineEvent, Error};

const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// All events of one owner's Pods.
pub(super) fn stream(client: Arc<Client>, owner: String) -> BoxStream<'static, EngineEvent> {
    let feed = Feed { client, owner, reached: false, backoff: BACKOFF_MIN, watch: None };
    stream::unfold(feed, |mut feed| async move { Some((feed.next().await, feed)) })
        .filter_map(|event| async move { event })
        .boxed()
}

struct Feed {
    client: Arc<Client>,
    owner: String,
    /// Whether the server was ever there: until then no session may want it.
    reached: bool,
    backoff: Duration,
    watch: Option<BoxStream<'static, watcher::Result<Event<Pod>>>>,
}

impl Feed {
    async fn next(&mut self) -> Option<EngineEvent> {
        let Some(watch) = &mut self.watch else {
            match self.client.all::<Pod>().await {
                Ok(pods) => {
                    let ours = format!("{}={}", template::OWNER, self.owner);
                    let config = watcher::Config::default().labels(&ours);
                    self.watch = Some(watcher(pods, config).boxed());
                }
                Err(error) => self.lost(&error).await,
            }
            return None;
        };
        match watch.next().await {
            Some(Ok(event)) => {
                self.backoff = BACKOFF_MIN;
                self.reached = true;
                match event {
                    Event::Apply(pod) | Event::Delete(pod) => {
                        Found::new(pod).session().map(EngineEvent::Changed)
                    }
                    Event::InitDone => Some(EngineEvent::Resync),
                    Event::Init | Event::InitApply(_) => None,
                }
            }
            Some(Err(error)) => {
                let (error, is_unknown) = unwatched(error);
                if is_unknown {
                    self.watch = None;
                    self.client.forget().await;
                }
                self.lost(&error).await;
                None
            }
            None => {
                self.watch = None;
                None
            }
        }
    }

    async fn lost(&mut self, error: &Error) {
        // Once for an outage; what follows says the same.
        match (self.backoff == BACKOFF_MIN, self.reached) {
            (true, true) => tracing::warn!(%error, "kubernetes events lost"),
            (true, false) => tracing::info!(%error, "no kubernetes events yet"),
            (false, _) => {}
        }
        sleep(self.backoff).await;
        self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
    }
}
