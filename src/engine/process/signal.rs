//! Pausing, resuming and ending an instance's processes, and waiting for their end.
//!
//! No signal leaves here for a pid that was not checked against its start time first: single
//! processes are signalled through a pidfd, the leader's group only while its number is certain.

use std::{io, os::fd::OwnedFd, time::Duration};

use rustix::{
    io::Errno,
    process::{
        Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process_group, pidfd_open,
        pidfd_send_signal, waitid,
    },
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::{Instant, sleep, timeout_at},
};

use super::family::{Family, Member, Motion, ProcessId};
use crate::engine::Error;

/// How long killed or stopped processes may take to be so; only one stuck in the kernel does.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whose processes, and which one leads them.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) owner: String,
    pub(super) session: String,
    pub(super) leader: Option<ProcessId>,
}

impl Target {
    /// All of it that lives, also what a signal to the leader's group would not reach.
    pub(super) async fn members(&self) -> Result<Family, Error> {
        self.family(&[]).await
    }

    /// Reading all of /proc takes milliseconds on a busy machine, so it has a thread of its own.
    async fn family(&self, known: &[ProcessId]) -> Result<Family, Error> {
        let (target, known) = (self.clone(), known.to_vec());
        let find =
            move || Family::find(&target.owner, &target.session, target.leader, known.as_slice());
        let found = tokio::task::spawn_blocking(find).await;
        let found = found.map_err(|e| Error::Failed(format!("cannot read /proc: {e}")))?;
        found.map_err(|e| Error::Failed(format!("cannot read /proc: {e}")))
    }

    /// TERM, `grace`, KILL, until nothing is left. No grace: KILL at once.
    pub(super) async fn end(&self, grace: Duration) -> Result<(), Error> {
        let mut known = Vec::new();
        let grace_ends = Instant::now() + grace;
        let deadline = grace_ends + PATIENCE;
        while Instant::now() < deadline {
            let family = self.family(&known).await?;
            if family.is_empty() {
                return Ok(());
            }
            known = family.ids().collect();
            let polite = Instant::now() < grace_ends;
            if polite {
                to_all(&family, Signal::TERM)?;
                to_all(&family, Signal::CONT)?; // a stopped process hears TERM only when it goes on
            } else {
                to_all(&family, Signal::KILL)?;
            }
            let until = if polite { grace_ends } else { deadline };
            // Late is no error: the next round looks at what is left.
            let _ = timeout_at(until, all_ended(&known)).await;
        }
        Err(Error::Timeout { call: "KILL", after: PATIENCE })
    }

    /// STOP, until nothing moves. Gives back the members outside the leader's group.
    pub(super) async fn pause(&self) -> Result<Vec<ProcessId>, Error> {
        let deadline = Instant::now() + PATIENCE;
        let mut known: Vec<ProcessId> = Vec::new();
        let mut wait = Duration::from_millis(1);
        while Instant::now() < deadline {
            let family = self.family(&known).await?;
            // What is stuck stops before it runs again, once it was told to. It may be stuck for as
            // long as the rest lies stopped: a parent in `vfork` waits for its child.
            let lies = |member: &Member| match member.motion {
                Motion::Stopped => true,
                Motion::Stuck => known.contains(&member.id),
                Motion::Moves => false,
            };
            if family.members.iter().all(lies) {
                return Ok(family.strays().collect());
            }
            known = family.ids().collect();
            to_all(&family, Signal::STOP)?;
            // No event tells that a process which is not our child has stopped.
            sleep(wait).await;
            wait = (wait * 2).min(Duration::from_millis(50));
        }
        Err(Error::Timeout { call: "STOP", after: PATIENCE })
    }

    /// CONT to everything, found anew.
    pub(super) async fn resume(&self) -> Result<(), Error> {
        to_all(&self.family(&[]).await?, Signal::CONT)
    }
}

/// CONT to a living `leader`'s group and to the `strays` that [`Target::pause`] gave back: no look
/// through /proc on the way of a wake.
pub(super) fn resume(leader: ProcessId, strays: &[ProcessId]) -> Result<(), Error> {
    if leader.motion().is_some() {
        to_group(leader.pid, Signal::CONT)?;
    }
    strays.iter().try_for_each(|&stray| to_one(stray, Signal::CONT))
}

fn to_all(family: &Family, signal: Signal) -> Result<(), Error> {
    if let Some(group) = family.group {
        to_group(group, signal)?;
    }
    family.strays().try_for_each(|stray| to_one(stray, signal))
}

fn to_group(group: i32, signal: Signal) -> Result<(), Error> {
    // 1 would be "everything"; no group that we made has it, but a forged record might say so.
    let Some(group) = Pid::from_raw(group).filter(|pid| pid.as_raw_nonzero().get() > 1) else {
        return Ok(());
    };
    gone_is_fine(kill_process_group(group, signal), signal)
}

fn to_one(id: ProcessId, signal: Signal) -> Result<(), Error> {
    match open(id) {
        Ok(Some(pidfd)) => gone_is_fine(pidfd_send_signal(pidfd, signal), signal),
        Ok(None) => Ok(()),
        Err(e) => Err(Error::Failed(format!("cannot open process {}: {e}", id.pid))),
    }
}

fn gone_is_fine(result: Result<(), Errno>, signal: Signal) -> Result<(), Error> {
    match result {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(e) => Err(Error::Failed(format!("cannot send signal {}: {e}", signal.as_raw()))),
    }
}

/// A pidfd that certainly means `id`: opened first, checked then, so that no reuse lies between.
fn open(id: ProcessId) -> io::Result<Option<OwnedFd>> {
    let Some(pid) = Pid::from_raw(id.pid) else { return Ok(None) };
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => Ok((ProcessId::of(id.pid) == Some(id)).then_some(pidfd)),
        Err(Errno::SRCH) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Waits for the end of one process, ours or adopted; a zombie has ended.
async fn ended(id: ProcessId) -> io::Result<()> {
    let Some(pidfd) = open(id)? else { return Ok(()) };
    #[expect(
        deprecated,
        reason = "unsound for types that share their descriptor; OwnedFd does not"
    )]
    let pidfd = AsyncFd::with_interest(pidfd, Interest::READABLE)?;
    pidfd.readable().await.map(drop)
}

/// The same, however long the edge is out of descriptors for it.
pub(super) async fn surely_ended(id: ProcessId) {
    while let Err(error) = ended(id).await {
        tracing::warn!(pid = id.pid, %error, "cannot watch an instance's process");
        sleep(Duration::from_secs(1)).await;
    }
}

async fn all_ended(ids: &[ProcessId]) {
    for &id in ids {
        surely_ended(id).await;
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exit {
    Code(i32),
    Signal(i32),
}

/// How our own dead child ended, for as long as it is not reaped; of another's child nothing is
/// known.
pub(super) fn exit(id: ProcessId) -> Option<Exit> {
    let pid = Pid::from_raw(id.pid).filter(|_| ProcessId::of(id.pid) == Some(id))?;
    let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    let status = waitid(WaitId::Pid(pid), look).ok()??;
    let signal = || status.terminating_signal().map(Exit::Signal);
    status.exit_status().map(Exit::Code).or_else(signal)
}

/// Takes the zombie of our own child away; of another's child its parent does.
pub(super) fn reap(id: ProcessId) {
    if let Some(pid) = Pid::from_raw(id.pid).filter(|_| ProcessId::of(id.pid) == Some(id)) {
        let _ = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
    }
}
