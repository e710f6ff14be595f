//! Which processes belong to an instance: read from /proc, never guessed from a pid.
//!
//! A pid alone says nothing, because pids are used again: a [`ProcessId`] is a pid with the start
//! time that /proc gives for it. Nothing here sends a signal.

use std::{collections::HashMap, ffi::OsStr, io, os::unix::ffi::OsStrExt, path::Path};

use procfs::process::{Process, Stat};
use serde::{Deserialize, Serialize};

/// Whose instances: the mark that tells one state folder's instances from another's.
pub(super) const OWNER: &str = "DORMOUSE_OWNER";
/// Which session: its host.
pub(super) const SESSION: &str = "DORMOUSE_SESSION";
/// Which generation it was spawned for.
pub(super) const GENERATION: &str = "DORMOUSE_GENERATION";
/// Where it was told to listen.
pub(super) const ADDRESS: &str = "DORMOUSE_ADDRESS";

/// One process of one boot, and no other that ever has the same pid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct ProcessId {
    pub(super) pid: i32,
    /// Clock ticks from boot to its start.
    pub(super) start: u64,
}

/// What a living process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Motion {
    Moves,
    /// Inside the kernel, deaf for now: for instance in `vfork`, until its child has made its exec.
    Stuck,
    /// By SIGSTOP or one of its kind.
    Stopped,
}

impl ProcessId {
    /// Who has this pid now; a zombie has it still.
    pub(super) fn of(pid: i32) -> Option<Self> {
        let stat = Process::new(pid).and_then(|process| process.stat()).ok()?;
        Some(Self { pid, start: stat.starttime })
    }

    /// What it does; `None` when it has ended, whoever has its pid now.
    pub(super) fn motion(self) -> Option<Motion> {
        let stat = Process::new(self.pid).and_then(|process| process.stat()).ok()?;
        (stat.starttime == self.start).then(|| motion(&stat)).flatten()
    }
}

fn motion(stat: &Stat) -> Option<Motion> {
    match stat.state {
        'Z' | 'X' | 'x' => None,
        'T' => Some(Motion::Stopped),
        'D' => Some(Motion::Stuck),
        _ => Some(Motion::Moves),
    }
}

/// A living process of an instance.
#[derive(Clone, Copy, Debug)]
pub(super) struct Member {
    pub(super) id: ProcessId,
    pub(super) group: i32,
    pub(super) motion: Motion,
}

/// The living processes of one instance.
#[derive(Debug, Default)]
pub(super) struct Family {
    /// The leader's process group, when its number certainly still means that group.
    pub(super) group: Option<i32>,
    pub(super) members: Vec<Member>,
}

impl Family {
    /// Everything alive of `session`: the leader's kernel session (the leader called `setsid`), and
    /// whatever left it but carries our marks. `known` were members when we last looked.
    pub(super) fn find(
        owner: &str,
        session: &str,
        leader: Option<ProcessId>,
        known: &[ProcessId],
    ) -> io::Result<Self> {
        let mut marked_or_known = Vec::new();
        let mut unmarked = Vec::new();
        let mut pinned = false;
        for (process, stat) in processes()? {
            let id = ProcessId { pid: stat.pid, start: stat.starttime };
            // A pid is not given away while anything has it as its group or kernel session: as long
            // as the leader (or its zombie) or one certain member is there, the number is ours.
            pinned |= leader == Some(id);
            let Some(motion) = motion(&stat) else { continue };
            let member = Member { id, group: stat.pgrp, motion };
            let in_session = leader.is_some_and(|leader| stat.session == leader.pid);
            if known.contains(&id) || leader == Some(id) || carries(&process, owner, session) {
                pinned |= in_session;
                marked_or_known.push(member);
            } else if in_session {
                unmarked.push(member);
            }
        }
        let mut members = marked_or_known;
        if pinned {
            members.append(&mut unmarked);
        }
        let group = leader.filter(|_| pinned).map(|leader| leader.pid);
        let group = group.filter(|&group| members.iter().any(|member| member.group == group));
        Ok(Self { group, members })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = ProcessId> {
        self.members.iter().map(|member| member.id)
    }

    /// The members that a signal to the leader's group does not reach.
    pub(super) fn strays(&self) -> impl Iterator<Item = ProcessId> {
        let group = self.group;
        self.members.iter().filter(move |m| Some(m.group) != group).map(|m| m.id)
    }
}

/// What the marks of a living process say.
#[derive(Debug)]
pub(super) struct Marked {
    pub(super) id: ProcessId,
    /// It leads a kernel session, as every instance's first process does.
    pub(super) leads: bool,
    pub(super) generation: u64,
    pub(super) address: String,
}

/// Every living process that carries `owner`'s marks, by session.
pub(super) fn marked(owner: &str) -> io::Result<HashMap<String, Vec<Marked>>> {
    let mut found: HashMap<String, Vec<Marked>> = HashMap::new();
    let us = rustix::process::geteuid().as_raw();
    for (process, stat) in processes()? {
        if motion(&stat).is_none() {
            continue;
        }
        let Ok(environ) = process.environ() else { continue };
        let mark = |name: &str| environ.get(OsStr::new(name)).and_then(|value| value.to_str());
        if mark(OWNER) != Some(owner) {
            continue;
        }
        let Some(session) = mark(SESSION) else { continue };
        found.entry(session.to_owned()).or_default().push(Marked {
            id: ProcessId { pid: stat.pid, start: stat.starttime },
            // Anybody may forge marks; another user's process is never taken for an instance.
            leads: stat.session == stat.pid && process.uid().is_ok_and(|uid| uid == us),
            generation: mark(GENERATION).and_then(|value| value.parse().ok()).unwrap_or(0),
            address: mark(ADDRESS).unwrap_or_default().to_owned(),
        });
    }
    Ok(found)
}

/// All processes but the kernel's own; those that end meanwhile are left out.
fn processes() -> io::Result<impl Iterator<Item = (Process, Stat)>> {
    let all = procfs::process::all_processes().map_err(io::Error::other)?;
    Ok(all.filter_map(|process| {
        let process = process.ok()?;
        let stat = process.stat().ok()?;
        (stat.session != 0 || stat.pgrp != 0).then_some((process, stat))
    }))
}

fn carries(process: &Process, owner: &str, session: &str) -> bool {
    process.environ().is_ok_and(|environ| {
        let is = |name: &str, value: &str| {
            environ.get(OsStr::new(name)).is_some_and(|found| found.as_bytes() == value.as_bytes())
        };
        is(OWNER, owner) && is(SESSION, session)
    })
}

/// In which boot, and among which pids, a [`ProcessId`] means anything.
pub(super) fn boot() -> io::Result<String> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let pids = std::fs::read_link(Path::new("/proc/self/ns/pid"))?;
    Ok(format!("{} {}", boot.trim(), pids.display()))
}
