//! Who waits for an instance's end, and carries what it prints until then.

use std::{sync::Arc, time::Duration};

use super::{
    Held, Shared, Slot, ends,
    family::{Family, ProcessId},
    log::Output,
    record::Record,
    signal::{self, Exit},
};
use crate::{
    engine::port::Port,
    session::{Address, SessionId},
};

impl Shared {
    /// From here on the death of `record`'s leader is noticed at once.
    pub(super) fn watch(self: &Arc<Self>, record: &Record, held: Held, slot: &mut Slot) {
        if slot.watched == Some(record.leader) {
            return;
        }
        slot.watched = Some(record.leader);
        let opened = held.output.map_or_else(|| self.output(&record.session(), record.log_max), Ok);
        slot.output = match opened {
            Ok(output) => Some(Arc::new(output)),
            Err(error) => {
                let session = &record.session;
                tracing::warn!(%session, %error, "what an instance prints cannot be read");
                None
            }
        };
        let output = slot.output.clone();
        let port = held.port.or_else(|| match record.address()? {
            Address::Tcp(address) => Some(Port::of_instance(address.port())),
            Address::Forwarded(_) | Address::Unix(_) | Address::Behind(_) => None,
        });
        let (shared, record) = (self.clone(), record.clone());
        let closing = self.closing.clone();
        self.tasks.spawn(closing.run_until_cancelled_owned(async move {
            shared.attend(record, output).await;
            drop(port); // given away again only when nothing of the instance is left
        }));
    }

    async fn attend(self: Arc<Self>, record: Record, output: Option<Arc<Output>>) {
        let (session, leader) = (record.session(), record.leader);
        match output {
            Some(output) => output.carry(signal::surely_ended(leader)).await,
            None => signal::surely_ended(leader).await,
        }
        {
            let slot = self.slot(&session);
            let mut slot = slot.lock().await;
            if slot.watched == Some(leader) {
                slot.watched = None;
            }
            // Our own stop, or the start of the next life, may have been here before us.
            let by_itself = leader.motion().is_none()
                && self.load(&session).is_ok_and(|now| now.is_some_and(|now| now.leader == leader));
            if by_itself {
                self.note_end(&session, leader).await;
            }
            let _ = self.events.send(session.clone()); // no subscriber is no loss
            if by_itself
                && let Err(error) =
                    self.end(&session, Some(leader), Duration::ZERO, &mut slot).await
            {
                tracing::warn!(%session, %error, "cannot end what a dead instance left behind");
            }
        }
        // Only now: the zombie held the number of its group, by which we found the rest.
        signal::reap(leader);
        self.tidy(&session);
    }

    /// Before it is told and its remains are ended: the reason may be asked for at once.
    async fn note_end(&self, session: &SessionId, leader: ProcessId) {
        let exit = signal::exit(leader);
        // A program that goes to the background says that all went well.
        let left = match exit {
            None | Some(Exit::Code(0)) => self.target(session, Some(leader)).members().await,
            Some(_) => Ok(Family::default()),
        };
        let left = left.map_or(0, |left| left.ids().count());
        let words = ends::describe(exit, left, &self.folder.log(session));
        tracing::info!(%session, "{words}");
        self.ends.note(session, words);
    }
}
