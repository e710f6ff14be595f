//! What an access rests on, for as long as something that it opened is open.

use std::{
    fmt,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
    time::Duration,
};

use tokio::time::sleep;

use super::{Door, unix_now};

/// The wall clock may be set meanwhile: it is looked at this often.
const LOOK_AGAIN: Duration = Duration::from_secs(4);

/// An access that can end: by its expiry, or because its link or its key is taken back.
pub struct Grant {
    door: Arc<Door>,
    expires: Option<u64>,
    link: Option<(String, String)>,
}

impl Grant {
    pub(super) fn new(
        door: Arc<Door>,
        expires: Option<u64>,
        link: Option<(String, String)>,
    ) -> Self {
        Self { door, expires, link }
    }

    /// The same for what ends together: their connections may be shared, and are cut together.
    pub fn number(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (&self.expires, &self.link).hash(&mut hasher);
        hasher.finish()
    }

    /// Whether it has ended.
    pub fn is_over(&self) -> bool {
        let revoked = |(id, key): &(String, String)| self.door.revoked.has(id, key);
        self.expires.is_some_and(|expires| expires <= unix_now())
            || self.link.as_ref().is_some_and(revoked)
    }

    /// Returns once it has ended.
    pub async fn over(&self) {
        let mut changes = self.door.revoked.changes();
        while !self.is_over() {
            let left = self.expires.map(|expires| expires.saturating_sub(unix_now()));
            let left = left.map_or(LOOK_AGAIN, Duration::from_secs).min(LOOK_AGAIN);
            tokio::select! {
                // The end of a second that has begun already.
                () = sleep(left.max(Duration::from_millis(100))), if self.expires.is_some() => {}
                changed = changes.changed() => if changed.is_err() { return },
            }
        }
    }
}

impl fmt::Debug for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grant").field("expires", &self.expires).finish_non_exhaustive()
    }
}
