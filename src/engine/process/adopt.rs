//! What an edge before us left running: found by records and marks, and watched again.

use std::{collections::HashMap, io, sync::Arc, time::Duration};

use super::{
    Held, Shared, Slot, disk,
    family::{self, Marked},
    record::Record,
};
use crate::{
    engine::Error,
    session::{SessionId, Spec},
};

impl Shared {
    /// Watches every instance that there is, and ends the remains of those that died unwatched.
    pub(super) async fn reconcile(self: Arc<Self>) -> Result<(), Error> {
        let shared = self.clone();
        let look = move || {
            let unread = |error| tracing::warn!(%error, "skipped a record that cannot be read");
            Ok((family::marked(&shared.owner)?, shared.folder.all(unread)?))
        };
        let looked = tokio::task::spawn_blocking(look).await;
        let (mut marked, records) =
            looked.unwrap_or_else(|e| Err(io::Error::other(e))).map_err(|e: io::Error| {
                Error::Failed(format!("cannot find out what runs already: {e}"))
            })?;
        for record in records {
            marked.entry(record.session).or_default();
        }
        self.adopt(marked).await;
        self.prune_logs().await;
        Ok(())
    }

    async fn adopt(self: &Arc<Self>, marked: HashMap<String, Vec<Marked>>) {
        for (host, marked) in marked {
            let session = SessionId::new(host);
            let slot = self.slot(&session);
            {
                // If held, somebody works on it now, and knows more than our look did.
                let Ok(mut slot) = slot.try_lock() else { continue };
                if let Err(error) = self.adopt_one(&session, marked, &mut slot).await {
                    tracing::warn!(%session, %error, "cannot adopt or end a session's processes");
                }
            }
            drop(slot);
            self.tidy(&session);
        }
    }

    async fn adopt_one(
        self: &Arc<Self>,
        session: &SessionId,
        mut marked: Vec<Marked>,
        slot: &mut Slot,
    ) -> Result<(), Error> {
        let record = self.load(session)?;
        if let Some(record) = record.as_ref().filter(|r| r.motion(&self.boot).is_some()) {
            self.watch(record, Held::default(), slot);
            return Ok(());
        }
        // The first process of an edge that died between its spawn and its record. Where there is a
        // record, that process is dead, and who leads now is only what it left behind.
        marked.sort_by_key(|marked| marked.id.start);
        let mut leaders = marked.iter().filter(|m| m.leads && m.id.motion().is_some());
        if let (None, Some(first)) = (&record, leaders.next()) {
            let (generation, address) = (first.generation, first.address.clone());
            let spec = Spec::default();
            let record = Record::new(session, generation, first.id, &self.boot, address, &spec);
            if let Err(error) = self.folder.save(&record) {
                // The start that it is of was never answered, so it serves no request.
                self.take_back(session, first.id).await;
                return Err(disk(&error));
            }
            self.watch(&record, Held::default(), slot);
            return Ok(());
        }
        let leader = record.and_then(|record| record.leader(&self.boot));
        self.end(session, leader, Duration::ZERO, slot).await
    }
}
