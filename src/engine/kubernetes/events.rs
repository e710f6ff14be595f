//! What happens to Pods and workloads that are ours, as the API server tells it: which session to
//! look at again. A workload's own Pods need no watch: what becomes of one is in its status.
//!
//! Ends never, whatever the server does. The watches are `kube`'s: each goes on where it was after
//! a lost connection, lists anew where that place in history is gone (410), and each list is a
//! `Resync`.

use std::{collections::BTreeSet, iter, sync::Arc, time::Duration};

use futures::{
    StreamExt, future,
    stream::{self, BoxStream},
};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    api::{ApiResource, DynamicObject},
    runtime::watcher::{self, Event, watcher},
};
use tokio::time::sleep;

use super::{brief, client::Client, template, workload::Kind};
use crate::{
    engine::{EngineEvent, Error},
    session::SessionId,
};

const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// For what was never allowed: an edge that scales nothing has no right to look at workloads.
const BACKOFF_FORBIDDEN: Duration = Duration::from_secs(60);

/// All events of what is one owner's.
pub(super) fn stream(client: Arc<Client>, owner: String) -> BoxStream<'static, EngineEvent> {
    let watched = iter::once(ApiResource::erase::<Pod>(&())).chain(Kind::ALL.map(Kind::resource));
    let feeds = watched.enumerate().map(|(index, resource)| {
        let (client, owner) = (Arc::clone(&client), owner.clone());
        let feed =
            Feed { client, owner, resource, reached: false, backoff: BACKOFF_MIN, watch: None };
        stream::unfold(feed, |mut feed| async move { Some((feed.next().await, feed)) })
            .filter_map(move |told| future::ready(told.map(|told| (index, told))))
            .boxed()
    });
    let mut first = First { awaited: (0..=Kind::ALL.len()).collect(), listed: false };
    stream::select_all(feeds)
        .filter_map(move |(feed, told)| future::ready(first.event(feed, told)))
        .boxed()
}

/// What one feed tells.
enum Told {
    Changed(SessionId),
    Listed,
    Lost,
}

/// The first lists are one `Resync`: when each has come or failed.
struct First {
    awaited: BTreeSet<usize>,
    listed: bool,
}

impl First {
    fn event(&mut self, feed: usize, told: Told) -> Option<EngineEvent> {
        let listed = match told {
            // Until then, what changes is told by the list that it asks for.
            Told::Changed(_) if !self.awaited.is_empty() => return None,
            Told::Changed(session) => return Some(EngineEvent::Changed(session)),
            Told::Listed => true,
            Told::Lost => false,
        };
        if self.awaited.is_empty() {
            return listed.then_some(EngineEvent::Resync);
        }
        self.listed |= listed;
        self.awaited.remove(&feed);
        (self.listed && self.awaited.is_empty()).then_some(EngineEvent::Resync)
    }
}

/// One watch.
struct Feed {
    client: Arc<Client>,
    owner: String,
    resource: ApiResource,
    /// Whether the server ever told anything: until then no session may want it.
    reached: bool,
    backoff: Duration,
    watch: Option<BoxStream<'static, watcher::Result<Event<DynamicObject>>>>,
}

impl Feed {
    async fn next(&mut self) -> Option<Told> {
        let Some(watch) = &mut self.watch else {
            return match self.client.any(&self.resource).await {
                Ok(objects) => {
                    let ours = format!("{}={}", template::OWNER, self.owner);
                    let config = watcher::Config::default().labels(&ours);
                    self.watch = Some(watcher(objects, config).boxed());
                    None
                }
                Err(error) => self.lost(&brief(error)).await,
            };
        };
        match watch.next().await {
            Some(Ok(event)) => {
                self.backoff = BACKOFF_MIN;
                self.reached = true;
                match event {
                    Event::Apply(object) | Event::Delete(object) => {
                        let annotations = object.metadata.annotations.unwrap_or_default();
                        let session = annotations.get(template::SESSION);
                        session.map(|host| Told::Changed(SessionId::new(host.as_str())))
                    }
                    Event::InitDone => Some(Told::Listed),
                    Event::Init | Event::InitApply(_) => None,
                }
            }
            Some(Err(error)) => {
                let refused = self.client.unwatched(error).await;
                if refused.code() == Some(401) {
                    self.watch = None;
                }
                self.lost(&brief(refused.into())).await
            }
            None => {
                self.watch = None;
                None
            }
        }
    }

    async fn lost(&mut self, error: &Error) -> Option<Told> {
        let of = &*self.resource.plural;
        // Once for an outage; what follows says the same.
        match (self.backoff == BACKOFF_MIN, self.reached) {
            (true, true) => tracing::warn!(of, %error, "kubernetes events lost"),
            (true, false) => tracing::info!(of, %error, "no kubernetes events yet"),
            (false, _) => {}
        }
        sleep(self.backoff).await;
        let is_forbidden = !self.reached && !error.is_retryable();
        let most = if is_forbidden { BACKOFF_FORBIDDEN } else { BACKOFF_MAX };
        self.backoff = (self.backoff * 2).min(most);
        Some(Told::Lost)
    }
}
