//! One connection to a machine's QMP monitor. A monitor serves one at a time; the next one waits.

use std::{io, path::Path, time::Duration};

use qapi::{
    Command, ExecuteError,
    futures::{QapiService, QmpStreamTokio},
    qmp::{self, MigrationInfo, MigrationStatus, QmpCommand, RunState},
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, WriteHalf, split},
    net::UnixStream,
    time::{Instant, sleep, timeout},
};

use crate::engine::Error;

/// A monitor that does not answer one command within this hangs.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// A guest that took its machine over may make it write what it likes: no more is read.
const TALK_MAX: u64 = 4 << 20;
/// The least time between two looks at what takes its time.
const LOOK: Duration = Duration::from_millis(5);
/// No limit worth the name, in bytes a second: QEMU's own is 128 MiB.
const BANDWIDTH: u64 = 1 << 40;

/// A connection; closed when dropped.
pub(super) struct Monitor {
    service: QapiService<QmpStreamTokio<WriteHalf<UnixStream>>>,
}

impl Monitor {
    /// An error also where somebody else is connected and stays so.
    pub(super) async fn open(path: &Path) -> Result<Self, Error> {
        let open = async {
            let (read, write) = split(UnixStream::connect(path).await?);
            let greeted = QmpStreamTokio::open_split(read.take(TALK_MAX), write).await?;
            let (service, _ends_with_the_service) = greeted.negotiate().await?.spawn_tokio();
            Ok::<_, io::Error>(Self { service })
        };
        match timeout(ANSWER_MAX, open).await {
            Ok(Ok(monitor)) => Ok(monitor),
            Ok(Err(error)) => Err(Error::Failed(format!("the machine's monitor: {error}"))),
            Err(_) => Err(Error::Timeout { call: "QMP", after: ANSWER_MAX }),
        }
    }

    async fn call<C: QmpCommand>(&self, command: C) -> Result<C::Ok, Error> {
        match timeout(ANSWER_MAX, self.service.execute(command)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(failed::<C>(&error)),
            Err(_) => Err(Error::Timeout { call: C::NAME, after: ANSWER_MAX }),
        }
    }

    /// Makes it go on from a pause, or behind a suspend that came to nothing.
    pub(super) async fn resume(&self) -> Result<(), Error> {
        if self.call(qmp::query_status {}).await?.running {
            return Ok(());
        }
        self.call(qmp::cont {}).await.map(drop)
    }

    pub(super) async fn pause(&self) -> Result<(), Error> {
        self.call(qmp::stop {}).await.map(drop)
    }

    /// As the power button does it: the guest may heed it or not.
    pub(super) async fn press_power(&self) -> Result<(), Error> {
        self.call(qmp::system_powerdown {}).await.map(drop)
    }

    /// What its disks have not written yet is written first.
    pub(super) async fn quit(&self) -> Result<(), Error> {
        self.call(qmp::quit {}).await.map(drop)
    }

    /// Begins to write a paused machine's memory to whoever listens at `socket`.
    pub(super) async fn send_memory(&self, socket: &str) -> Result<(), Error> {
        let fast = serde_json::from_value(json!({ "max-bandwidth": BANDWIDTH }));
        let fast: qmp::MigrateSetParameters =
            fast.map_err(|error| Error::Failed(format!("QMP's parameters: {error}")))?;
        self.call(qmp::migrate_set_parameters(fast)).await?;
        let uri = Some(format!("unix:{socket}"));
        let (channels, detach, resume) = (None, None, None);
        self.call(qmp::migrate { channels, detach, resume, uri }).await.map(drop)
    }

    /// Waits until all of it is written.
    pub(super) async fn memory_sent(&self, limit: Duration) -> Result<(), Error> {
        let began = Instant::now();
        while began.elapsed() < limit {
            let MigrationInfo { status, error_desc, .. } = self.call(qmp::query_migrate {}).await?;
            match status {
                Some(MigrationStatus::completed) => return Ok(()),
                Some(MigrationStatus::failed | MigrationStatus::cancelled) => {
                    let why = error_desc.unwrap_or_else(|| "it could not be written".to_owned());
                    return Err(Error::Failed(format!("the machine's memory: {why}")));
                }
                _ => sleep(pause(began.elapsed())).await,
            }
        }
        Err(Error::Timeout { call: "migrate", after: limit })
    }

    /// Listens at `socket` for the memory of a machine like this one.
    pub(super) async fn take_memory(&self, socket: &str) -> Result<(), Error> {
        let (uri, channels, exit_on_error) = (Some(format!("unix:{socket}")), None, None);
        self.call(qmp::migrate_incoming { uri, channels, exit_on_error }).await.map(drop)
    }

    /// Waits until it is read; a machine that cannot read it ends.
    pub(super) async fn memory_taken(&self, limit: Duration) -> Result<(), Error> {
        let began = Instant::now();
        while began.elapsed() < limit {
            if self.call(qmp::query_status {}).await?.status != RunState::inmigrate {
                return Ok(());
            }
            sleep(pause(began.elapsed())).await;
        }
        Err(Error::Timeout { call: "migrate-incoming", after: limit })
    }
}

/// Until the next look at what has taken so long: all looks together must stay below what is read
/// of a monitor, however long it takes.
fn pause(took: Duration) -> Duration {
    (took / 50).max(LOOK)
}

fn failed<C: Command>(error: &ExecuteError) -> Error {
    Error::Failed(format!("the machine's monitor refused `{}`: {error}", C::NAME))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An answer to `query-migrate` is about 700 bytes.
    const ANSWER: u64 = 1024;

    #[test]
    fn an_hour_of_looks_fits_into_what_is_read_of_a_monitor() {
        let (mut took, mut looks) = (Duration::ZERO, 0);
        while took < Duration::from_secs(3600) {
            took += pause(took);
            looks += 1;
        }
        assert!(looks * ANSWER < TALK_MAX / 2, "{looks}");
    }
}
