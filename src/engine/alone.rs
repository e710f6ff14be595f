//! One call at a time for a session, each to its end even if nobody waits for it any longer: the
//! sleep after an abandoned start finds what that start did.

use std::{fmt, sync::Arc};

use dashmap::DashMap;
use tokio::sync::Mutex;
use tokio_util::task::TaskTracker;

use super::Error;
use crate::session::SessionId;

/// A lock for every session that is being worked on.
#[derive(Default)]
pub(super) struct Alone {
    slots: Arc<DashMap<SessionId, Arc<Mutex<()>>>>,
    tasks: TaskTracker,
}

impl fmt::Debug for Alone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Alone").field("sessions", &self.slots.len()).finish()
    }
}

impl Alone {
    /// What `call` comes to. It must have a limit of its own.
    pub(super) async fn run<T, F>(&self, session: &SessionId, call: F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>> + Send + 'static,
        T: Send + 'static,
    {
        let (slots, session) = (self.slots.clone(), session.clone());
        let slot = slots.entry(session.clone()).or_default().clone();
        let task = self.tasks.spawn(async move {
            let done = {
                let _alone = slot.lock().await;
                call.await
            };
            drop(slot);
            slots.remove_if(&session, |_, slot| Arc::strong_count(slot) == 1);
            done
        });
        task.await.unwrap_or_else(|e| Err(Error::Failed(format!("the runtime ends: {e}"))))
    }
}
