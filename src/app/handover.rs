//! How a new process takes the listening sockets over from the one that runs, so that at every
//! instant at least one of the two accepts, whichever is killed when.
//!
//! The one that runs listens on `upgrade.sock` in the state folder. What they say to each other, a
//! line of JSON each:
//!
//! | who | says | from then on |
//! |---|---|---|
//! | old | `sockets`, with the descriptors | the new one has them; it accepts nothing, and waits |
//! | old | `begin`, at SIGQUIT | the old one puts nothing to sleep; both accept, once the new one has adopted |
//! | new | `serving` | |
//! | old | `yours` | the new one listens on `upgrade.sock` |
//! | new | `thanks` | the old one closes its sockets, and drains |
//! | old | `no`, where that took too long | the new one ends |
//!
//! A connection that ends before `thanks` is the death of the other side: an old one goes on as it
//! was, a new one begins at once with the sockets that it has.

mod new;
mod old;
mod wire;

use std::{
    io,
    os::fd::OwnedFd,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::{sync::watch, task::spawn_blocking};

use super::custody::Custody;
use new::{Leaver, Verdict};
use old::Successor;

pub(super) use new::{Before, Found, find};

/// This process between the one before, if it took over from one, and the next.
pub(super) struct Handover {
    before: Mutex<Option<Before>>,
    leaver: Option<Leaver>,
    successor: Successor,
    custody: Arc<Custody>,
    /// Whether the file of the admin API's socket is another process's.
    admin_file_stays: Arc<AtomicBool>,
    refused: watch::Sender<bool>,
}

impl Handover {
    /// Where there is a process `before`, it has handed over or is about to.
    pub(super) fn new(before: Option<Before>, custody: Arc<Custody>) -> io::Result<Arc<Self>> {
        let leaver = before.as_ref().map(Before::leaver).transpose()?;
        let admin_file_stays = Arc::new(AtomicBool::new(before.is_some()));
        let (before, successor, refused) =
            (Mutex::new(before), Successor::default(), watch::Sender::new(false));
        Ok(Arc::new(Self { before, leaver, successor, custody, admin_file_stays, refused }))
    }

    /// Whether this process took over from one.
    pub(super) fn has_process_before(&self) -> bool {
        self.leaver.is_some()
    }

    /// Whether the file of the admin API's socket is to stay when this process ends.
    pub(super) fn admin_file_stays(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.admin_file_stays)
    }

    /// This process serves: the one before ends, and new ones may wait until this is dropped.
    pub(super) async fn serve(&self, state: &Path, sockets: Vec<(String, OwnedFd)>) {
        let before = self.before.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(before) = before {
            match spawn_blocking(move || before.succeed()).await {
                Ok(Verdict::Yours | Verdict::Died) => {}
                Ok(Verdict::Left) | Err(_) => return,
                Ok(Verdict::Refused) => {
                    tracing::error!(
                        "the process before goes on: this one served too late, and ends"
                    );
                    self.refused.send_replace(true);
                    return;
                }
            }
        }
        self.admin_file_stays.store(false, Ordering::Release);
        self.successor.welcome(state, &sockets).await;
    }

    /// Returns where the process before does not let this one serve.
    pub(super) async fn refused(&self) {
        // Its sender is ours.
        let _ = self.refused.subscribe().wait_for(|refused| *refused).await;
    }

    /// Whether it did not.
    pub(super) fn is_refused(&self) -> bool {
        *self.refused.borrow()
    }

    /// This process ends: the one before goes on, unless this one has succeeded it.
    pub(super) fn leave(&self) {
        self.leaver.iter().for_each(Leaver::leave);
    }

    /// Hands over to the new process that waits: whether that has succeeded. `None` where there is
    /// none.
    pub(super) async fn hand_over(&self) -> Option<bool> {
        let next = self.successor.take()?;
        let pid = next.pid;
        tracing::info!(pid, "the new process begins; this one serves until that does");
        self.custody.hand_over(true);
        let handed = spawn_blocking(|| next.hand_over()).await;
        let failure = match handed {
            Ok(Ok(())) => {
                self.admin_file_stays.store(true, Ordering::Release);
                tracing::info!(pid, "the new process serves");
                return Some(true);
            }
            Ok(Err(failure)) => failure.to_string(),
            Err(error) => error.to_string(),
        };
        self.custody.hand_over(false);
        self.successor.keep();
        tracing::warn!(pid, why = failure, "the new process does not take over: this one goes on");
        Some(false)
    }
}
